//! How values look in a page: those of the room `readable`, with markup where there is some.

use crate::readable::{self, Tone, UNKNOWN, is_hidden};
use jiff::Timestamp;
use maud::{Markup, html};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

pub(super) use crate::readable::{number, share, text};

/// A text as part of a path or a query.
pub(super) fn escaped(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

/// JSON for people to edit: characters that cannot be seen are escaped. They stand only inside strings.
pub(super) fn json_text(json: &str) -> String {
    let escape = |c: char| if is_hidden(c) { format!("\\u{:04x}", u32::from(c)) } else { c.to_string() };
    json.chars().map(escape).collect()
}

/// A word of a command line that somebody may copy: quoted where a shell would read more than a word.
pub(super) fn word(text: &str) -> String {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"._-:,=/@%+".contains(&b);
    let text = self::text(text, 300);
    if !text.is_empty() && text.bytes().all(is_plain) { text } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

/// A moment, as the time since then, with the moment itself to read on hover.
pub(super) fn ago(ts: &Value) -> Markup {
    let Some(text) = ts.as_str() else { return html! { (UNKNOWN) } };
    let Ok(then) = text.parse::<Timestamp>() else { return html! { (self::text(text, 40)) } };
    let exact = then.strftime("%Y-%m-%d %H:%M:%S UTC").to_string();
    let seconds = Timestamp::now().as_second() - then.as_second();
    html! { time datetime=(text) title=(exact) { (readable::since(seconds)) } }
}

/// A moment to look for in other logs, in UTC, with the time since then to read on hover.
pub(super) fn moment(ts: &Value) -> Markup {
    let Some(text) = ts.as_str() else { return html! { (UNKNOWN) } };
    let Ok(then) = text.parse::<Timestamp>() else { return html! { (self::text(text, 40)) } };
    let exact = then.strftime("%Y-%m-%d %H:%M:%S%.3f").to_string();
    html! { time .number datetime=(text) title=(readable::since(Timestamp::now().as_second() - then.as_second())) { (exact) } }
}

/// How a request ended: `ok`, or the code of its error.
pub(super) fn ended(status: &Value) -> Markup {
    match status.as_str() {
        None => html! { (UNKNOWN) },
        Some("ok") => state("ok"),
        Some(code) => html! { span .state.bad { (text(&code.to_lowercase().replace('_', " "), 40)) } },
    }
}

/// How many of something: `1 model`, `2 models`, `0 models`.
pub(super) fn counted(count: f64, one: &str, many: &str) -> String {
    format!("{} {}", number(count), if count == 1.0 { one } else { many })
}

/// A number, or what is shown where it is not known.
fn known(value: &Value, shown: impl FnOnce(f64) -> String) -> String {
    value.as_f64().map_or_else(|| UNKNOWN.to_owned(), shown)
}

pub(super) fn share_of(value: &Value) -> String {
    known(value, share)
}

pub(super) fn number_of(value: &Value) -> String {
    known(value, number)
}

/// Microseconds as milliseconds.
pub(super) fn ms_of_us(value: &Value) -> String {
    known(value, readable::ms_of_us)
}

pub(super) fn bytes(value: &Value) -> String {
    known(value, readable::bytes)
}

/// A state in words, with a mark and a colour that say the same.
pub(super) fn state(state: &str) -> Markup {
    let class = match readable::tone(state) {
        Tone::Good => "good",
        Tone::Bad => "bad",
        Tone::Warning => "warn",
        Tone::Quiet => "quiet",
    };
    html! { span class=(format!("state {class}")) { (text(&state.replace('_', " "), 40)) } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_has_the_words_that_it_seems_to_have() {
        assert_eq!(
            [word("fraud-1"), word("fraud-*"), word("1; rm x"), word("a'b"), word("")],
            ["fraud-1", "'fraud-*'", "'1; rm x'", r"'a'\''b'", "''"]
        );
    }

    #[test]
    fn json_stays_json_where_characters_cannot_be_seen() {
        assert_eq!(json_text("{\"a\": \"b\u{202e}\"}\n"), "{\"a\": \"b\\u202e\"}\n");
        assert_eq!([share_of(&Value::Null), number_of(&12.into()), ms_of_us(&1500.into())], ["–", "12", "1.5 ms"]);
    }
}
