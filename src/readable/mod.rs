//! readable: figures, times and texts as people read them, in the console and in a terminal.
//!
//! - Numbers have three digits, sizes and times a unit, shares a percent sign: [`number`], [`bytes()`], [`ms_of_us`], [`share`], [`since`]. What is
//!   not known is a dash.
//! - [`text`] shows what others wrote: characters that would control a terminal, hide or reorder text are shown as their code, and a long text is
//!   cut.
//! - [`tone`] says whether a state is good or bad, so that all screens mark it alike.
//!
//! Uses: nothing.
//!
//! Invariant: no markup, no colours, no input or output; every function is pure.
//!
//! To add a kind of value: a function here, with its row in the test.

#[cfg(test)]
mod tests;

use std::fmt::Write as _;

/// What is shown where nothing is known.
pub(crate) const UNKNOWN: &str = "–";

/// How a state is to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Tone {
    Quiet,
    Good,
    Warning,
    Bad,
}

/// The tone of a state of a version, a rollout, an alert, a breaker, an approval or a comparison.
pub(crate) fn tone(state: &str) -> Tone {
    match state {
        "serving" | "ready" | "ok" | "running" | "finished" | "resolved" | "approved" | "closed" | "better" => {
            Tone::Good
        }
        "failed" | "taken_back" | "critical" | "firing" | "rejected" | "mismatch" | "open" | "worse" | "lost" => {
            Tone::Bad
        }
        "pending" | "loading" | "verifying" | "warming" | "draining" | "paused" | "warning" | "half_open"
        | "aborted" | "degraded" | "starting" => Tone::Warning,
        _ => Tone::Quiet,
    }
}

/// At most this many characters of a text, with a mark where it goes on. Characters that would hide or reorder others are shown as their code.
pub(crate) fn text(text: &str, most: usize) -> String {
    let mut shown = String::with_capacity(text.len().min(most));
    for (nth, c) in text.chars().enumerate() {
        if nth == most {
            shown.push('…');
            break;
        }
        if is_hidden(c) {
            // Writing to a String cannot fail.
            let _ = write!(shown, "⟨U+{:04X}⟩", u32::from(c));
        } else {
            shown.push(c);
        }
    }
    shown
}

/// The same on one line.
pub(crate) fn line(text: &str, most: usize) -> String {
    self::text(text, most).replace('\n', " ")
}

/// Controls and marks of direction (Unicode's Cc and bidirectional Cf) could disguise what follows.
pub(crate) fn is_hidden(c: char) -> bool {
    c.is_control() && c != '\n'
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}' | '\u{061c}')
}

/// The time since a moment that is so many seconds ago; a negative number is in the future.
pub(crate) fn since(seconds: i64) -> String {
    let (word, seconds) = if seconds < 0 { ("in ", seconds.saturating_neg()) } else { ("", seconds) };
    let span = match seconds {
        0..=1 => return "now".to_owned(),
        2..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    };
    if word.is_empty() { format!("{span} ago") } else { format!("{word}{span}") }
}

/// From 0 to 1, in percent, with as many digits as mean something.
pub(crate) fn share(share: f64) -> String {
    let percent = share * 100.0;
    if percent == 0.0 || percent >= 99.95 || (percent - percent.round()).abs() < 1e-9 {
        format!("{percent:.0} %")
    } else if percent >= 10.0 {
        format!("{percent:.1} %")
    } else {
        format!("{percent:.2} %")
    }
}

/// Three digits of a number.
pub(crate) fn number(value: f64) -> String {
    if !value.is_finite() {
        return UNKNOWN.to_owned();
    }
    let magnitude = value.abs();
    if magnitude >= 1000.0 || value.fract() == 0.0 {
        return grouped(value.round());
    }
    if magnitude >= 100.0 {
        format!("{value:.0}")
    } else if magnitude >= 10.0 {
        format!("{value:.1}")
    } else if magnitude >= 1.0 {
        format!("{value:.2}").trim_end_matches('0').trim_end_matches('.').to_owned()
    } else if magnitude >= 0.001 {
        format!("{value:.3}").trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        format!("{value:.1e}")
    }
}

/// A whole number with thin spaces between thousands.
fn grouped(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    if value < 0.0 { format!("−{text}") } else { text }
}

/// Microseconds as milliseconds.
pub(crate) fn ms_of_us(us: f64) -> String {
    format!("{} ms", number(us / 1e3))
}

pub(crate) fn bytes(bytes: f64) -> String {
    const GIB: f64 = 1024.0 * 1024.0 * 1024.0;
    let (scaled, unit) = match bytes {
        b if b >= 1e9 => (b / GIB, "GiB"),
        b if b >= 1e6 => (b / (GIB / 1024.0), "MiB"),
        b if b >= 1e3 => (b / 1024.0, "KiB"),
        b => (b, "B"),
    };
    format!("{} {unit}", number(scaled))
}
