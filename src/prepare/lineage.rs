//! `[lineage]` of `version.toml`: data, code, parameters, metrics, parent and trainer.

use crate::registry::{Lineage, Parent, SourceCode, TrainingData};
use crate::settings::{Table, Value};
use std::collections::BTreeMap;

/// The longest text of one key.
const MAX_TEXT: usize = 1000;
/// The most parameters, and the most metrics.
const MAX_MEMBERS: usize = 200;

/// Reads the section, where there is one. Complaints are collected in the table; the keys that are right are kept.
pub(super) fn read(t: &mut Table) -> Lineage {
    let data = t.section("data");
    let data = TrainingData {
        digest: data.custom(
            "digest",
            "64 hexadecimal digits, after \"sha256:\" or not, or a digest of another kind after its name, such as \"mlflow:0e60fe4c\"",
            |value| digest(value.as_str()?),
        ),
        from: time(data, "from"),
        to: time(data, "to"),
        location: text(data, "location"),
        rows: data.integer("rows", 0..=i64::MAX).map(i64::cast_unsigned),
    };
    let code = t.section("code");
    let code = SourceCode {
        repository: text(code, "repository"),
        commit: code.custom("commit", "7 to 64 hexadecimal digits", |value| {
            let text = value.as_str()?;
            ((7..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit())).then(|| text.to_owned())
        }),
    };
    Lineage {
        data,
        code,
        trainer: text(t, "trainer"),
        trained_at: time(t, "trained_at"),
        parent: t.custom(
            "parent",
            "a version of this model, such as \"3\", or of another, such as \"iris/3\"",
            |value| {
                let number;
                let text = match value {
                    Value::Integer(n) => {
                        number = n.to_string();
                        &number
                    }
                    value => value.as_str()?,
                };
                let (model, version) = match text.split_once('/') {
                    Some((model, version)) => (Some(model.parse().ok()?), version),
                    None => (None, text),
                };
                Some(Parent { model, version: version.parse().ok()? })
            },
        ),
        parameters: members(t, "parameters", "a number, a text or a boolean", |value| {
            let is_scalar = !matches!(value, Value::List(_) | Value::Table(_) | Value::OutOfRange(_));
            serde_json::to_value(value).ok().filter(|_| is_scalar)
        }),
        metrics: members(t, "metrics", "a finite number", |value| match value {
            Value::Integer(n) => Some(*n as f64),
            Value::Float(number) => Some(*number).filter(|number| number.is_finite()),
            _ => None,
        }),
    }
}

/// A SHA-256 without its name, or a digest of another kind with it.
fn digest(text: &str) -> Option<String> {
    if let Some(digits) = text.strip_prefix("sha256:").or((!text.contains(':')).then_some(text)) {
        let is_digest = digits.len() == 64 && digits.bytes().all(|b| b.is_ascii_hexdigit());
        is_digest.then(|| digits.to_ascii_lowercase())
    } else {
        let (kind, rest) = text.split_once(':')?;
        let is_kind =
            (1..=16).contains(&kind.len()) && kind.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let is_value = |b: u8| b.is_ascii_alphanumeric() || b"+/=._-".contains(&b);
        (is_kind && (1..=128).contains(&rest.len()) && rest.bytes().all(is_value)).then(|| text.to_owned())
    }
}

fn text(t: &mut Table, key: &str) -> Option<String> {
    t.custom(key, &format!("a text of 1 to {MAX_TEXT} bytes"), |value| {
        value.as_str().filter(|text| (1..=MAX_TEXT).contains(&text.len())).map(str::to_owned)
    })
}

fn time(t: &mut Table, key: &str) -> Option<String> {
    t.custom(key, "a time such as 2026-11-21T08:00:00Z, or a date", |value| {
        let text = match value {
            Value::Time(text) => text,
            value => value.as_str()?,
        };
        let is_time = text.parse::<jiff::Timestamp>().is_ok() || text.parse::<jiff::civil::Date>().is_ok();
        is_time.then(|| text.to_owned())
    })
}

/// The free members of a section.
fn members<T>(t: &mut Table, key: &str, expected: &str, accept: impl Fn(&Value) -> Option<T>) -> BTreeMap<String, T> {
    let section = t.section(key);
    let mut kept = BTreeMap::new();
    for (number, (name, value)) in section.rest().into_iter().enumerate() {
        if number >= MAX_MEMBERS {
            section.complain(&name, format!("at most {MAX_MEMBERS} members in this section"));
            break;
        }
        let short = value.as_str().is_none_or(|text| text.len() <= MAX_TEXT) && name.len() <= MAX_TEXT;
        match accept(&value).filter(|_| short) {
            Some(value) => drop(kept.insert(name, value)),
            None => section.complain(&name, format!("{expected}, of at most {MAX_TEXT} bytes")),
        }
    }
    kept
}
