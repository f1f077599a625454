//! The kinds of settings.

use super::complaint::Complaint;
use super::table::Table;
use super::units::{parse_bytes, parse_duration, show_bytes, show_duration};
use super::value::Value;
use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

/// Each method returns the value of a key, or `None` if the key is absent or wrong. A wrong value adds a complaint.
impl Table {
    pub fn string(&mut self, key: &str) -> Option<String> {
        self.custom(key, "a string", |value| value.as_str().map(str::to_owned))
    }

    pub fn bool(&mut self, key: &str) -> Option<bool> {
        self.custom(key, "true or false", |value| match value {
            Value::Bool(b) => Some(*b),
            _ => None,
        })
    }

    pub fn integer<N>(&mut self, key: &str, range: RangeInclusive<N>) -> Option<N>
    where
        N: TryFrom<i64> + PartialOrd + Display,
    {
        let expected = format!("a whole number from {} to {}", range.start(), range.end());
        self.custom(key, &expected, |value| {
            value.as_integer().and_then(|n| N::try_from(n).ok()).filter(|n| range.contains(n))
        })
    }

    /// Also accepts an integer. NaN is always out of range.
    pub fn float(&mut self, key: &str, range: RangeInclusive<f64>) -> Option<f64> {
        let expected = format!("a number from {} to {}", range.start(), range.end());
        self.custom(key, &expected, |value| {
            let x = match value {
                Value::Float(x) => *x,
                Value::Integer(n) => *n as f64,
                _ => return None,
            };
            Some(x).filter(|x| range.contains(x))
        })
    }

    /// A number with a unit, such as `200ms`. A number alone is refused, because its unit is not clear.
    pub fn duration(&mut self, key: &str, range: RangeInclusive<Duration>) -> Option<Duration> {
        let (min, max) = (show_duration(*range.start()), show_duration(*range.end()));
        let expected = format!("a duration with its unit, such as \"200ms\", \"30s\" or \"10m\", from {min} to {max}");
        self.custom(key, &expected, |value| value.as_str().and_then(parse_duration).filter(|d| range.contains(d)))
    }

    /// A number with a unit, such as `64MiB`. A number alone is in bytes.
    pub fn bytes(&mut self, key: &str, range: RangeInclusive<u64>) -> Option<u64> {
        let (min, max) = (show_bytes(*range.start()), show_bytes(*range.end()));
        let expected = format!("a size, such as \"64MiB\", \"1GB\" or a number of bytes, from {min} to {max}");
        self.custom(key, &expected, |value| {
            let bytes = match value {
                Value::String(text) => parse_bytes(text),
                Value::Integer(n) => u64::try_from(*n).ok(),
                _ => None,
            };
            bytes.filter(|n| range.contains(n))
        })
    }

    pub fn socket_addr(&mut self, key: &str) -> Option<SocketAddr> {
        let expected = "an IP address with its port, such as \"0.0.0.0:8080\" or \"[::]:8080\"";
        self.custom(key, expected, |value| value.as_str().and_then(|text| text.parse().ok()))
    }

    /// A path that is not empty. Relative paths start at the working directory of the process.
    pub fn path(&mut self, key: &str) -> Option<PathBuf> {
        self.custom(key, "a path that is not empty", |value| {
            value.as_str().filter(|text| !text.is_empty() && !text.contains('\0')).map(PathBuf::from)
        })
    }

    /// One of a few words, each with its meaning.
    pub fn one_of<T: Clone>(&mut self, key: &str, choices: &[(&str, T)]) -> Option<T> {
        let words: Vec<String> = choices.iter().map(|(word, _)| format!("{word:?}")).collect();
        self.custom(key, &words.join(" or "), |value| {
            choices.iter().find(|(word, _)| value.as_str() == Some(word)).map(|(_, meaning)| meaning.clone())
        })
    }

    pub fn string_list(&mut self, key: &str) -> Option<Vec<String>> {
        self.custom(key, "a list of strings, such as [\"a\", \"b\"]", |value| {
            value.as_list()?.iter().map(|item| item.as_str().map(str::to_owned)).collect()
        })
    }

    /// Any other kind. `accept` converts a value, or returns `None` if it is wrong. `expected` describes a right value.
    ///
    /// A text from the environment is first tried as TOML, then as a string.
    pub fn custom<T>(&mut self, key: &str, expected: &str, accept: impl Fn(&Value) -> Option<T>) -> Option<T> {
        let found = self.take(key)?;
        let value = found.convert(accept);
        if value.is_none() {
            self.push(Complaint::wrong(self.path_of(key), Some(&found), expected.to_owned()));
        }
        value
    }
}
