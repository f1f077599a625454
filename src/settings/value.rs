//! Values of settings, and their line numbers.

use super::complaint::Origin;
use super::table::{Found, Written};
use serde::Serialize;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use toml::de::DeValue;

/// A TOML value. It serializes to the matching JSON; dates and times become strings.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Value {
    String(String),
    Integer(i64),
    Float(f64),
    Bool(bool),
    /// A date, a time or both, as in RFC 3339.
    Time(String),
    /// The digits of a number that does not fit 64 bits. No setting accepts it.
    OutOfRange(String),
    List(Vec<Value>),
    Table(BTreeMap<String, Value>),
}

/// Converts byte positions of a text into line numbers.
#[derive(Debug)]
pub(super) struct Lines {
    name: Arc<str>,
    /// The start of each line after the first.
    starts: Vec<usize>,
}

// === impl Value ===

impl Value {
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    #[must_use]
    pub fn as_integer(&self) -> Option<i64> {
        match self {
            Value::Integer(n) => Some(*n),
            _ => None,
        }
    }

    #[must_use]
    pub fn as_list(&self) -> Option<&[Value]> {
        match self {
            Value::List(items) => Some(items),
            _ => None,
        }
    }

    pub(super) fn from_toml(value: DeValue<'_>) -> Value {
        match value {
            DeValue::String(text) => Value::String(text.into_owned()),
            DeValue::Integer(n) => match i64::from_str_radix(n.as_str(), n.radix()) {
                Ok(n) => Value::Integer(n),
                Err(_) => Value::OutOfRange(n.to_string()),
            },
            DeValue::Float(x) => x.as_str().parse().map_or_else(|_| Value::OutOfRange(x.to_string()), Value::Float),
            DeValue::Boolean(b) => Value::Bool(b),
            DeValue::Datetime(t) => Value::Time(t.to_string()),
            DeValue::Array(items) => Value::List(items.into_iter().map(|v| Value::from_toml(v.into_inner())).collect()),
            DeValue::Table(members) => {
                let members = members.into_iter();
                Value::Table(
                    members.map(|(k, v)| (k.into_inner().into_owned(), Value::from_toml(v.into_inner()))).collect(),
                )
            }
        }
    }

    fn without_credentials(&self) -> Value {
        match self {
            Value::String(text) => Value::String(without_credentials(text).into_owned()),
            Value::List(items) => Value::List(items.iter().map(Value::without_credentials).collect()),
            Value::Table(members) => {
                Value::Table(members.iter().map(|(key, value)| (key.clone(), value.without_credentials())).collect())
            }
            other => other.clone(),
        }
    }

    /// Reads a text as TOML. `None` if it is not TOML.
    fn from_text(text: &str) -> Option<Value> {
        DeValue::parse(text).ok().map(|value| Value::from_toml(value.into_inner()))
    }
}

/// In TOML syntax.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::String(text) => write!(f, "{text:?}"),
            Value::Integer(n) => n.fmt(f),
            // `{:?}` prints 1.0 with its point, which an integer does not have.
            Value::Float(x) => write!(f, "{x:?}"),
            Value::Bool(b) => b.fmt(f),
            Value::Time(text) | Value::OutOfRange(text) => f.write_str(text),
            Value::List(items) => {
                f.write_str("[")?;
                for (i, item) in items.iter().enumerate() {
                    write!(f, "{}{item}", if i == 0 { "" } else { ", " })?;
                }
                f.write_str("]")
            }
            Value::Table(members) => {
                f.write_str("{")?;
                for (i, (key, value)) in members.iter().enumerate() {
                    write!(f, "{}{key} = {value}", if i == 0 { " " } else { ", " })?;
                }
                f.write_str(if members.is_empty() { "}" } else { " }" })
            }
        }
    }
}

// === impl Found ===

impl Found {
    /// The value, if no type is expected.
    pub(super) fn value(&self) -> Value {
        match &self.written {
            Written::Typed(value) => value.clone(),
            Written::Text(text) => Value::from_text(text).unwrap_or_else(|| Value::String(text.clone())),
        }
    }

    /// Converts the value with `accept`. A text is first tried as TOML, then as a string.
    pub(super) fn convert<T>(&self, accept: impl Fn(&Value) -> Option<T>) -> Option<T> {
        match &self.written {
            Written::Typed(value) => accept(value),
            Written::Text(text) => {
                let plain = || accept(&Value::String(text.clone()));
                Value::from_text(text).and_then(|value| accept(&value)).or_else(plain)
            }
        }
    }

    /// The value for a complaint, without credentials in addresses. Long values are cut.
    pub(super) fn show(&self) -> String {
        match &self.written {
            Written::Typed(value) => cut(&value.without_credentials().to_string()),
            Written::Text(text) => cut(&format!("{:?}", without_credentials(text))),
        }
    }
}

/// Hides what stands before the `@` of an address, such as `user:password` or a token, with and without a scheme (`token@host:4222`). The name of a
/// mail address is hidden too: it cannot be told from a token. A text with several addresses is hidden from the first scheme to the last `@`.
#[must_use]
pub(crate) fn without_credentials(text: &str) -> Cow<'_, str> {
    match text.rsplit_once('@') {
        Some((before, after)) => {
            let scheme = before.find("://").map_or("", |at| &before[..at + "://".len()]);
            format!("{scheme}…@{after}").into()
        }
        None => text.into(),
    }
}

/// Cuts a text to at most 80 characters.
pub(super) fn cut(text: &str) -> String {
    if text.chars().count() <= 80 { text.to_owned() } else { text.chars().take(77).chain("...".chars()).collect() }
}

// === impl Lines ===

impl Lines {
    pub(super) fn new(name: Arc<str>, text: &str) -> Lines {
        Lines { name, starts: text.match_indices('\n').map(|(at, _)| at + 1).collect() }
    }

    pub(super) fn origin(&self, at: usize) -> Origin {
        let line = self.starts.partition_point(|start| *start <= at) + 1;
        Origin::File { name: Arc::clone(&self.name), line }
    }

    /// The text of the line at a position.
    pub(super) fn line<'t>(&self, text: &'t str, at: usize) -> &'t str {
        let start = self.starts.iter().rev().find(|start| **start <= at).copied().unwrap_or(0);
        text.get(start..).and_then(|rest| rest.lines().next()).unwrap_or_default().trim()
    }
}
