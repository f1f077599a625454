//! JSON read strictly: a member that stands twice in its object is complained of, where others quietly take the last; and what is
//! not JSON is said with the place it stands at, NaN by its name.

use crate::model::{Code, Failure};
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use std::cell::RefCell;
use std::fmt;

/// A value, and what is wrong with it although it is JSON.
#[derive(Debug)]
pub(super) struct Strict {
    /// Of members that stand twice, the last.
    pub value: Value,
    /// Each names the member by its place: `labels.stable`.
    pub complaints: Vec<String>,
}

/// A body of a megabyte has room for a hundred thousand; nobody reads more than these.
const MOST_COMPLAINTS: usize = 100;

/// Reads a whole text.
///
/// # Errors
/// `INVALID_REQUEST` with the place, when it is not JSON.
pub(super) fn parse(text: &[u8]) -> Result<Strict, Failure> {
    let notes = RefCell::default();
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let read = Reading { at: Place::Top, notes: &notes }.deserialize(&mut deserializer);
    let read = read.and_then(|value| deserializer.end().map(|()| value));
    let Notes { twice, broken_at } = notes.into_inner();
    match read {
        Ok(value) => {
            let words = |place| format!("{place}: stands twice; a member stands once in its object");
            Ok(Strict { value, complaints: twice.into_iter().map(words).collect() })
        }
        Err(error) => {
            let place = broken_at.filter(|place| !place.is_empty()).map(|place| format!("{place}: "));
            let hint = not_a_number(text, &error)
                .map(|token| format!("; JSON has no {token}: a number is finite, and is left out where there is none"));
            let (place, hint) = (place.unwrap_or_default(), hint.unwrap_or_default());
            Err(Failure::new(Code::InvalidRequest, format!("{place}the body is not JSON: {error}{hint}")))
        }
    }
}

#[derive(Default)]
struct Notes {
    twice: Vec<String>,
    /// The innermost value that could not be read.
    broken_at: Option<String>,
}

/// Where a value stands.
enum Place<'a> {
    Top,
    Member(&'a Place<'a>, &'a str),
    Item(&'a Place<'a>, usize),
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Top => Ok(()),
            Place::Member(Place::Top, name) => f.write_str(short(name)),
            Place::Member(of, name) => write!(f, "{of}.{}", short(name)),
            Place::Item(of, i) => write!(f, "{of}[{i}]"),
        }
    }
}

/// No longer than anybody reads.
fn short(name: &str) -> &str {
    name.char_indices().nth(80).map_or(name, |(end, _)| &name[..end])
}

/// One value being read; the depth is bounded by `serde_json`.
struct Reading<'a> {
    at: Place<'a>,
    notes: &'a RefCell<Notes>,
}

impl<'de> DeserializeSeed<'de> for Reading<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(&self).inspect_err(|_| {
            self.notes.borrow_mut().broken_at.get_or_insert_with(|| self.at.to_string());
        })
    }
}

impl<'de> Visitor<'de> for &Reading<'_> {
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
            items.next_element_seed(Reading { at: Place::Item(&self.at, list.len()), notes: self.notes })?
        {
            list.push(item);
        }
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            let at = Place::Member(&self.at, &name);
            if object.contains_key(&name) {
                let (mut notes, place) = (self.notes.borrow_mut(), at.to_string());
                if notes.twice.len() < MOST_COMPLAINTS && !notes.twice.contains(&place) {
                    notes.twice.push(place);
                }
            }
            let value = members.next_value_seed(Reading { at, notes: self.notes })?;
            object.insert(name, value);
        }
        Ok(object.into())
    }
}

/// The word at which reading broke off, where it is a way of writing a number that is none.
fn not_a_number<'t>(text: &'t [u8], error: &serde_json::Error) -> Option<&'t str> {
    let line = text.split_inclusive(|byte| *byte == b'\n').nth(error.line().checked_sub(1)?)?;
    let is_word = |byte: &u8| byte.is_ascii_alphabetic() || b"+-".contains(byte);
    let at = error.column().saturating_sub(1).min(line.len().saturating_sub(1));
    let begin = line[..at].iter().rposition(|byte| !is_word(byte)).map_or(0, |i| i + 1);
    let end = line[at..].iter().position(|byte| !is_word(byte)).map_or(line.len(), |i| at + i);
    let word = std::str::from_utf8(&line[begin..end]).ok()?;
    let bare = word.trim_start_matches(['+', '-']).to_ascii_lowercase();
    matches!(bare.as_str(), "nan" | "inf" | "infinity").then_some(word)
}
