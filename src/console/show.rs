//! How values look: numbers, times, sizes, shares.

use jiff::Timestamp;
use maud::{Markup, html};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

/// A text as part of a path or a query.
pub(super) fn escaped(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

/// At most this many characters of a text, with a mark where it goes on. Characters that would hide or reorder others are shown as their code.
pub(super) fn text(text: &str, most: usize) -> String {
    let mut shown: String = text.chars().take(most).flat_map(visible).collect();
    if text.chars().nth(most).is_some() {
        shown.push('…');
    }
    shown
}

/// Controls and marks of direction (Unicode's Cc and bidirectional Cf) could disguise what follows.
fn is_hidden(c: char) -> bool {
    c.is_control() && c != '\n'
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}' | '\u{061c}')
}

/// A character as it can be seen.
fn visible(c: char) -> impl Iterator<Item = char> {
    let code = if is_hidden(c) { format!("⟨U+{:04X}⟩", u32::from(c)) } else { c.to_string() };
    code.chars().collect::<Vec<_>>().into_iter()
}

/// JSON for people to edit: characters that cannot be seen are escaped. They stand only inside strings.
pub(super) fn json_text(json: &str) -> String {
    let escape = |c: char| if is_hidden(c) { format!("\\u{:04x}", u32::from(c)) } else { c.to_string() };
    json.chars().map(escape).collect()
}

/// A moment, as the time since then, with the moment itself to read on hover.
pub(super) fn ago(ts: &Value) -> Markup {
    let Some(text) = ts.as_str() else { return html! { "–" } };
    let Ok(then) = text.parse::<Timestamp>() else { return html! { (self::text(text, 40)) } };
    let exact = then.strftime("%Y-%m-%d %H:%M:%S UTC").to_string();
    html! { time datetime=(text) title=(exact) { (since(Timestamp::now().as_second() - then.as_second())) } }
}

/// A moment to look for in other logs, in UTC, with the time since then to read on hover.
pub(super) fn moment(ts: &Value) -> Markup {
    let Some(text) = ts.as_str() else { return html! { "–" } };
    let Ok(then) = text.parse::<Timestamp>() else { return html! { (self::text(text, 40)) } };
    let exact = then.strftime("%Y-%m-%d %H:%M:%S%.3f").to_string();
    html! { time .number datetime=(text) title=(since(Timestamp::now().as_second() - then.as_second())) { (exact) } }
}

/// How a request ended: `ok`, or the code of its error.
pub(super) fn ended(status: &Value) -> Markup {
    match status.as_str() {
        None => html! { "–" },
        Some("ok") => state("ok"),
        Some(code) => html! { span .state.bad { (text(&code.to_lowercase().replace('_', " "), 40)) } },
    }
}

fn since(seconds: i64) -> String {
    let (word, seconds) = if seconds < 0 { ("in ", -seconds) } else { ("", seconds) };
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
pub(super) fn share(share: f64) -> String {
    let percent = share * 100.0;
    if percent == 0.0 || percent >= 99.95 || (percent - percent.round()).abs() < 1e-9 {
        format!("{percent:.0} %")
    } else if percent >= 10.0 {
        format!("{percent:.1} %")
    } else {
        format!("{percent:.2} %")
    }
}

pub(super) fn share_of(value: &Value) -> String {
    value.as_f64().map_or_else(|| "–".to_owned(), share)
}

/// Three digits of a number.
pub(super) fn number(value: f64) -> String {
    if !value.is_finite() {
        return "–".to_owned();
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

pub(super) fn number_of(value: &Value) -> String {
    value.as_f64().map_or_else(|| "–".to_owned(), number)
}

/// Microseconds as milliseconds.
pub(super) fn ms_of_us(value: &Value) -> String {
    value.as_f64().map_or_else(|| "–".to_owned(), |us| format!("{} ms", number(us / 1e3)))
}

pub(super) fn bytes(value: &Value) -> String {
    const GIB: f64 = 1024.0 * 1024.0 * 1024.0;
    let Some(bytes) = value.as_f64() else { return "–".to_owned() };
    let (scaled, unit) = match bytes {
        b if b >= 1e9 => (b / GIB, "GiB"),
        b if b >= 1e6 => (b / (GIB / 1024.0), "MiB"),
        b if b >= 1e3 => (b / 1024.0, "KiB"),
        b => (b, "B"),
    };
    format!("{} {unit}", number(scaled))
}

/// A state in words, with a mark and a colour that say the same.
pub(super) fn state(state: &str) -> Markup {
    let class = match state {
        "serving" | "ready" | "ok" | "running" | "finished" | "resolved" | "approved" | "closed" | "better" => "good",
        "failed" | "taken_back" | "critical" | "firing" | "rejected" | "mismatch" | "open" | "worse" => "bad",
        "pending" | "loading" | "verifying" | "warming" | "draining" | "paused" | "warning" | "half_open"
        | "aborted" => "warn",
        _ => "quiet",
    };
    html! { span class=(format!("state {class}")) { (text(&state.replace('_', " "), 40)) } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_rounded_to_what_is_known() {
        assert_eq!(
            [share(0.0), share(0.05), share(0.123_45), share(0.001_23), share(1.0)],
            ["0 %", "5 %", "12.3 %", "0.12 %", "100 %"]
        );
        assert_eq!(
            [number(0.5), number(12.34), number(123.4), number(12_345.6), number(0.0001)],
            ["0.5", "12.3", "123", "12\u{202f}346", "1.0e-4"]
        );
        assert_eq!(number(f64::NAN), "–");
        assert_eq!(
            [since(0), since(61), since(600), since(-30), since(200_000)],
            ["now", "61 s ago", "10 min ago", "in 30 s", "2 days ago"]
        );
        assert_eq!(bytes(&serde_json::json!(4681)), "4.57 KiB");
    }

    #[test]
    fn texts_cannot_hide_or_reorder_what_follows() {
        assert_eq!(text("a\u{202e}b\u{7}c", 10), "a⟨U+202E⟩b⟨U+0007⟩c");
        assert_eq!(json_text("{\"a\": \"b\u{202e}\"}\n"), "{\"a\": \"b\\u202e\"}\n");
        assert_eq!(text("abcdef", 3), "abc…");
        assert_eq!(text("😀😀", 1), "😀…");
    }
}
