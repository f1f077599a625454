//! A strict JSON parser: duplicate members are reported (most parsers silently keep the last one), and a syntax error names the member
//! it is in.

use crate::model::{Code, Failure};
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use std::cell::RefCell;
use std::fmt;

/// A JSON value and the duplicate members in it.
#[derive(Debug)]
pub(super) struct StrictJson {
    /// Has the last of duplicate members.
    pub(super) value: Value,
    /// One for each duplicate member, with its path: `labels.stable`.
    pub(super) complaints: Vec<String>,
}

/// A body of a megabyte could have a hundred thousand.
const MAX_COMPLAINTS: usize = 100;

/// Parses a whole text.
///
/// # Errors
/// `INVALID_REQUEST` with the path and position of the error, when it is not JSON.
pub(super) fn parse(text: &[u8]) -> Result<StrictJson, Failure> {
    let notes = RefCell::default();
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let parsed = ValueSeed { path: Path::Root, notes: &notes }.deserialize(&mut deserializer);
    let parsed = parsed.and_then(|value| deserializer.end().map(|()| value));
    let Notes { duplicates, error_path } = notes.into_inner();
    match parsed {
        Ok(value) => {
            let complaint = |path| format!("{path}: duplicate member");
            Ok(StrictJson { value, complaints: duplicates.into_iter().map(complaint).collect() })
        }
        Err(error) => {
            let path = error_path.filter(|path| !path.is_empty()).map(|path| format!("{path}: "));
            let hint = non_finite_word(text, &error)
                .map(|word| format!("; JSON has no {word}: numbers are finite, and an absent number is left out"));
            let (path, hint) = (path.unwrap_or_default(), hint.unwrap_or_default());
            Err(Failure::new(Code::InvalidRequest, format!("{path}the body is not JSON: {error}{hint}")))
        }
    }
}

#[derive(Default)]
struct Notes {
    duplicates: Vec<String>,
    /// The path of the innermost value that could not be parsed.
    error_path: Option<String>,
}

/// The path of a value.
enum Path<'a> {
    Root,
    Member(&'a Path<'a>, &'a str),
    Item(&'a Path<'a>, usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Path::Root => Ok(()),
            Path::Member(Path::Root, name) => f.write_str(short(name)),
            Path::Member(of, name) => write!(f, "{of}.{}", short(name)),
            Path::Item(of, i) => write!(f, "{of}[{i}]"),
        }
    }
}

/// The first 80 characters.
fn short(name: &str) -> &str {
    name.char_indices().nth(80).map_or(name, |(end, _)| &name[..end])
}

/// Parses one value. `serde_json` limits the depth.
struct ValueSeed<'a> {
    path: Path<'a>,
    notes: &'a RefCell<Notes>,
}

impl<'de> DeserializeSeed<'de> for ValueSeed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(&self).inspect_err(|_| {
            self.notes.borrow_mut().error_path.get_or_insert_with(|| self.path.to_string());
        })
    }
}

impl<'de> Visitor<'de> for &ValueSeed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("a number that is not finite"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) =
            items.next_element_seed(ValueSeed { path: Path::Item(&self.path, list.len()), notes: self.notes })?
        {
            list.push(item);
        }
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            let path = Path::Member(&self.path, &name);
            if object.contains_key(&name) {
                let (mut notes, text) = (self.notes.borrow_mut(), path.to_string());
                if notes.duplicates.len() < MAX_COMPLAINTS && !notes.duplicates.contains(&text) {
                    notes.duplicates.push(text);
                }
            }
            let value = members.next_value_seed(ValueSeed { path, notes: self.notes })?;
            object.insert(name, value);
        }
        Ok(object.into())
    }
}

/// The word at the position of the error, if it is a spelling of NaN or infinity.
fn non_finite_word<'t>(text: &'t [u8], error: &serde_json::Error) -> Option<&'t str> {
    let line = text.split_inclusive(|byte| *byte == b'\n').nth(error.line().checked_sub(1)?)?;
    let is_word = |byte: &u8| byte.is_ascii_alphabetic() || b"+-".contains(byte);
    let at = error.column().saturating_sub(1).min(line.len().saturating_sub(1));
    let begin = line[..at].iter().rposition(|byte| !is_word(byte)).map_or(0, |i| i + 1);
    let end = line[at..].iter().position(|byte| !is_word(byte)).map_or(line.len(), |i| at + i);
    let word = std::str::from_utf8(&line[begin..end]).ok()?;
    let bare = word.trim_start_matches(['+', '-']).to_ascii_lowercase();
    matches!(bare.as_str(), "nan" | "inf" | "infinity").then_some(word)
}
