//! Keeps every log event on one line of printable text, whatever its values contain.

use std::fmt::{self, Write as _};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::registry::LookupSpan;

/// Formats events with the inner formatter and escapes the result.
///
/// Messages and fields hold text from outside, such as request ids. A newline in it would begin a line that looks like the server's own,
/// and control codes would change what a terminal shows. Escaping the whole line here means that no call-site can forget it.
#[derive(Debug, Clone)]
pub(super) struct Escaped<F>(pub F);

impl<S, N, F> FormatEvent<S, N> for Escaped<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(&self, ctx: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut line = String::new();
        // This writer has no colours, so every control code in the line comes from a value.
        self.0.format_event(ctx, Writer::new(&mut line), event)?;
        let line = escape(line.strip_suffix('\n').unwrap_or(&line));
        let level = event.metadata().level();
        match line.split_once(level.as_str()).filter(|_| out.has_ansi_escapes()) {
            // The time stands before the level and holds no letters of a level's name.
            Some((time, rest)) => writeln!(out, "\x1b[2m{time}\x1b[0m{}{level}\x1b[0m{rest}", colour(*level)),
            None => writeln!(out, "{line}"),
        }
    }
}

fn colour(level: Level) -> &'static str {
    match level {
        Level::ERROR => "\x1b[31m",
        Level::WARN => "\x1b[33m",
        Level::INFO => "\x1b[32m",
        Level::DEBUG => "\x1b[34m",
        Level::TRACE => "\x1b[35m",
    }
}

/// Replaces characters that control a terminal or the direction of text by `\u001b` and the like, which JSON reads as the same text.
fn escape(line: &str) -> String {
    let mut escaped = String::with_capacity(line.len());
    for c in line.chars() {
        if is_unprintable(c) {
            // Writing to a String cannot fail. All of these characters are below U+10000.
            let _ = write!(escaped, "\\u{:04x}", u32::from(c));
        } else {
            escaped.push(c);
        }
    }
    escaped
}

/// C0, DEL, C1, the line and paragraph separators, the controls of bidirectional text, and characters without width.
fn is_unprintable(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{061c}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}')
        || matches!(c, '\u{2060}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};
    use tracing_subscriber::fmt::MakeWriter;
    use tracing_subscriber::layer::SubscriberExt as _;

    #[derive(Clone, Default)]
    struct Output(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Output {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Output {
        type Writer = Output;

        fn make_writer(&'a self) -> Output {
            self.clone()
        }
    }

    /// The lines that `log` writes.
    fn logged(json: bool, ansi: bool, log: impl Fn()) -> String {
        let output = Output::default();
        let lines = tracing_subscriber::fmt::layer().with_writer(output.clone()).with_ansi(ansi).with_target(false);
        let registry = tracing_subscriber::registry();
        if json {
            let lines = lines.json().flatten_event(true).map_event_format(Escaped);
            tracing::subscriber::with_default(registry.with(lines), log);
        } else {
            tracing::subscriber::with_default(registry.with(lines.map_event_format(Escaped)), log);
        }
        let bytes = output.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    /// A forged line, erased text, a changed direction, and every other kind of control.
    const ATTACK: &str = "x\n2026-01-01T00:00:00Z  INFO traffic changed actor=root\r\x1b[2K\x07\x7f\u{9b}31m\u{85}\u{2028}\u{2029}\u{202e}\u{2066}\0";

    fn attack() {
        let error = std::io::Error::other(ATTACK);
        tracing::warn!(request_id = %ATTACK, detail = ATTACK, debug = ?ATTACK, %error, "failed: {ATTACK}");
        tracing::info!("{ATTACK}");
        tracing::info!(message = ATTACK);
    }

    #[test]
    fn values_from_outside_cannot_write_lines_or_control_codes_in_either_format() {
        for json in [false, true] {
            let text = logged(json, false, attack);
            assert_eq!(text.matches('\n').count(), 3, "json: {json}\n{text}");
            let bad = text.chars().filter(|c| *c != '\n').find(|c| is_unprintable(*c));
            assert_eq!(bad, None, "json: {json}\n{text}");
        }
    }

    #[test]
    fn json_lines_hold_the_original_text() {
        let text = logged(true, false, attack);
        for (i, line) in text.lines().enumerate() {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            if i == 0 {
                assert_eq!(line["request_id"], ATTACK);
                assert_eq!(line["detail"], ATTACK);
            } else {
                assert_eq!(line["message"], ATTACK);
            }
        }
    }

    #[test]
    fn colours_come_from_the_formatter_alone() {
        let text = logged(false, true, attack);
        assert_eq!(text.matches('\x1b').count(), 4 * 3, "two colours and two resets per line\n{text}");
        assert_eq!(text.matches('\n').count(), 3);
        assert!(text.contains("\x1b[33mWARN\x1b[0m failed: "), "{text}");
    }

    #[test]
    fn printable_text_of_any_language_stays_as_it_is() {
        let text = logged(false, false, || tracing::info!(name = %"schön 日本語 \\n", "an ordinary line"));
        assert!(text.ends_with(" INFO an ordinary line name=schön 日本語 \\n\n"), "{text}");
    }
}
