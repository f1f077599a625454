//! Parsing `parameters`: an object whose values are strings, numbers or booleans. Clients add members of their own with any value (`MLServer`
//! sends `headers`); those are skipped.

use super::tensor::STRING;
use crate::codec::json::{Reader, Syntax};
use crate::model::{Complaints, Parameter, Parameters, quoted};
use sonic_number::{ParserNumber, parse_number};

/// Parses the object at the cursor. `null` counts as an empty one.
pub(super) fn parameters(reader: &mut Reader<'_>, complaints: &mut Complaints) -> Result<Parameters, Syntax> {
    let mut parameters = Parameters::new();
    reader.peek();
    let start = reader.offset();
    if !reader.eat(b'{') {
        reader.skip_value()?;
        let got = reader.excerpt(start);
        if got != "null" {
            complaints.request(format!("\"parameters\" is expected to be an object, got {got}"));
        }
        return Ok(parameters);
    }
    let mut first = true;
    while let Some(name) = reader.next_member(&mut first)? {
        match value(reader)? {
            Ok(parameter) => {
                let text = if let Parameter::String(text) = &parameter { text.len() } else { 0 };
                reader.grow(size_of::<(String, Parameter)>() + 2 * STRING + name.len() + text)?;
                parameters.push((name.into_owned(), parameter));
            }
            // A null member is an absent one.
            Err(got) if got == "null" || !is_known(&name) => {}
            Err(got) => complaints.request(format!(
                "parameter {} is expected to be a string, a number or a boolean, got {got}",
                quoted(&name)
            )),
        }
    }
    if let Some(name) = repeated(&parameters) {
        complaints.request(format!("parameter {} is given more than once", quoted(name)));
    }
    Ok(parameters)
}

/// Whether the gateway gives a parameter of this name a meaning, so that its value must have the right type.
fn is_known(name: &str) -> bool {
    matches!(name, "binary_data" | "binary_data_size" | "binary_data_output" | "classification" | "content_type")
        || name.starts_with("shared_memory_")
}

/// A parameter's value, for a message.
#[cold]
pub(super) fn quoted_value(value: &Parameter) -> String {
    match value {
        Parameter::String(text) => quoted(text),
        other => other.to_string(),
    }
}

/// Parses one value. The inner error is what was found instead.
fn value(reader: &mut Reader<'_>) -> Result<Result<Parameter, String>, Syntax> {
    let first = reader.peek();
    let start = reader.offset();
    Ok(Ok(match first {
        Some(b'"') => Parameter::String(reader.string()?.into_owned()),
        Some(b't') => {
            reader.word("true")?;
            Parameter::Bool(true)
        }
        Some(b'f') => {
            reader.word("false")?;
            Parameter::Bool(false)
        }
        Some(b'-' | b'0'..=b'9') => match reader.number(parse_number)? {
            Some(ParserNumber::Unsigned(n)) => match i64::try_from(n) {
                Ok(n) => Parameter::Integer(n),
                Err(_) => Parameter::Number(n as f64),
            },
            Some(ParserNumber::Signed(n)) => Parameter::Integer(n),
            Some(ParserNumber::Float(x)) => Parameter::Number(x),
            None => return Ok(Err(format!("{}, which overflows a double", reader.excerpt(start)))),
        },
        _ => {
            reader.skip_value()?;
            return Ok(Err(reader.excerpt(start)));
        }
    }))
}

/// A name that is given more than once.
pub(in crate::codec) fn repeated(parameters: &Parameters) -> Option<&str> {
    if parameters.len() < 2 {
        return None;
    }
    let mut names: Vec<&str> = parameters.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    names.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0])
}
