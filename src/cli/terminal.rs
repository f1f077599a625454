//! What is printed. Texts come from callers and other users, and must not control the terminal, hide what follows or look like lines of their own.
//!
//! - [`one_line`] for a cell or a part of a line, [`text`] for all that is printed: characters that control a terminal or reorder text are shown as
//!   their code.
//! - [`json`]: the same JSON, with these characters escaped.

use crate::readable;
use std::borrow::Cow;
use std::fmt::{Display, Write as _};
use std::io::{self, Write as _};

/// Prints a text, or JSON and the end of its line, to standard output.
///
/// # Errors
/// When it cannot be written.
pub(crate) fn print(what: &str, as_json: bool) -> io::Result<()> {
    let shown = if as_json { json(what) } else { text(what).into() };
    let end = if as_json && !shown.ends_with('\n') { "\n" } else { "" };
    let mut out = io::stdout().lock();
    match out.write_all(shown.as_bytes()).and_then(|()| out.write_all(end.as_bytes())).and_then(|()| out.flush()) {
        // A reader that has closed the pipe, such as `| head`, has seen what it wants.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// Prints a message to standard error.
pub(crate) fn complain(message: &dyn Display) {
    // Nobody may read it any more; the exit code says the same.
    let _ = io::stderr().write_all(text(&format!("sluicegate: {message}\n")).as_bytes());
}

/// A text of several lines.
pub(crate) fn text(text: &str) -> String {
    readable::text(&text.replace('\t', " "), usize::MAX)
}

/// A text without line breaks.
pub(crate) fn one_line(text: &str) -> String {
    if !text.contains('\n') {
        return self::text(text);
    }
    self::text(&text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" "))
}

/// Such characters stand in strings only, except for line breaks, returns and tabs between tokens.
pub(crate) fn json(text: &str) -> Cow<'_, str> {
    let is_escaped = |c: char| readable::is_hidden(c) && !['\r', '\t'].contains(&c);
    if !text.contains(is_escaped) {
        return text.into();
    }
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if is_escaped(c) {
            // Writing to a String cannot fail. All hidden characters are in the basic plane.
            let _ = write!(shown, "\\u{:04x}", u32::from(c));
        } else {
            shown.push(c);
        }
    }
    shown.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{alerts, approve, show, show_outcomes, show_requests};
    use serde_json::{Value, json};

    /// What a caller may have sent as an id, a label or a reason: controls of one and of two bytes, marks of direction, and lines of its own.
    const HOSTILE: &str = "a\u{1b}[31mred\u{1b}]0;pwn\u{7}\u{9b}2J\u{202e}b\r\nall is well\t\u{2066}";

    #[test]
    fn what_others_wrote_controls_no_terminal_and_makes_no_lines() {
        let text = || HOSTILE.to_owned();
        let request = json!({"requests": [{"request_id": HOSTILE, "arm": HOSTILE, "difference": HOSTILE}], "next": null, "not_read": {"files": 0, "named": []}});
        let prediction = json!({
            "role": "primary", "version": "1", "arm": HOSTILE, "rows": 1, "status": HOSTILE,
            "inputs": [{"name": HOSTILE, "datatype": "BYTES", "shape": [1], "data": [HOSTILE], "elements": 1, "recorded": "as_is"}],
            "compared": {"agrees": false, "words": HOSTILE},
        });
        let one = json!({"model": "m", "predictions": [prediction], "feedback": [{"row": 0, "label": HOSTILE, "values": {HOSTILE: 1}}], "commands": {}, "not_read": {}});
        let event = json!({"id": 1, "ts": "t", "actor": HOSTILE, "action": "promote", "model": "m", "reason": HOSTILE, "after": null});
        let change = json!({"action": "promote", "actor": HOSTILE, "ts": "t", "reason": HOSTILE});
        let alert = json!({"state": "firing", "rule": "r", "severity": "s", "summary": HOSTILE, "how_sure": HOSTILE, "until": null, "change_before": change});
        let history =
            json!({"history": [{"revision": 1, "actor": HOSTILE, "reason": HOSTILE, "document": {"split": []}}]});
        let quality = json!({"arms": [{"version": "1", "arm": HOSTILE, "values": {HOSTILE: {"mean": 1.0}}}]});
        let traffic = json!({"revision": 1, "split": [{"arm": HOSTILE, "version": "1", "weight": 1}], "salt": HOSTILE, "reason": HOSTILE});
        let review = json!({"model": "m", "version": "1", "status": "pending", "proposers": [HOSTILE], "evidence": {"version": {"notes": [HOSTILE]}}});
        let printed: [(&str, String, &[usize]); 10] = [
            ("requests", show_requests::found(&request), &[2]),
            ("request", show_requests::one(&one), &[4]),
            ("audit", show::audit(&json!({"events": [event]})), &[2]),
            ("alerts", alerts::alerts(&json!({"alerts": [alert]})), &[5]),
            ("history", show::history(&history), &[2]),
            ("quality", show_outcomes::recent(&quality), &[2]),
            ("traffic", show::traffic(&traffic), &[5]),
            ("approve", approve::looked_at(&review), &[5]),
            ("a table", show::table(&["A"], &[vec![text()]]), &[2]),
            (
                "an error",
                super::super::client::error_message(400, json!({"error": HOSTILE}).to_string().as_bytes()),
                &[1, 2],
            ),
        ];
        for (what, printed, lines) in printed {
            let shown = super::text(&printed);
            assert!(!shown.contains(|c: char| c != '\n' && readable::is_hidden(c)), "{what}: {shown:?}");
            assert!(shown.contains("red"), "{what}: the rest of the text is there: {shown}");
            assert!(lines.contains(&shown.lines().count()), "{what}: {} lines: {shown}", shown.lines().count());
        }
    }

    #[test]
    fn json_is_the_same_with_escapes() {
        let value = json!({ HOSTILE: [HOSTILE, 1] });
        for text in [value.to_string(), format!("{value:#}\r\n")] {
            let shown = json(&text);
            assert!(!shown.contains(|c: char| !c.is_whitespace() && readable::is_hidden(c)), "{shown:?}");
            assert!(!shown.contains(['\u{2066}', '\u{85}', '\u{2028}']), "{shown:?}");
            assert_eq!(serde_json::from_str::<Value>(&shown).unwrap(), value);
        }
        assert_eq!(json("{\"é\":\t1}\r\n"), "{\"é\":\t1}\r\n");
        assert_eq!(text("a\tb\n"), "a b\n");
        assert_eq!(one_line("a\n  b\n"), "a b");
    }
}
