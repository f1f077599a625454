//! `inputs` as an object: a list of values for each input or column.

use super::plan::{Model, Target, Targets, tensor, width};
use super::{invalid, wrong};
use crate::codec::json::Reader;
use crate::codec::nested::{Buffer, ParseError};
use crate::codec::tfs::{Column, RULES};
use crate::model::{Failure, NamedTensor, Signature, TensorSpec, quoted};
use std::borrow::Cow;

/// The members of an object: their names, and the offsets of their values.
struct Members<'a> {
    names: Vec<Cow<'a, str>>,
    values: Vec<usize>,
}

/// Whether all members are inputs of the model. Then the request is one of TensorFlow Serving's.
///
/// # Errors
/// When there is no memory.
pub(super) fn are_inputs(reader: Reader<'_>, signature: &Signature) -> Result<bool, Failure> {
    let members = members(reader)?;
    let is_input = |name: &Cow<'_, str>| signature.all_inputs().iter().any(|spec| *spec.name == **name);
    Ok(members.names.iter().all(is_input))
}

/// Reads a list for each column.
///
/// # Errors
/// For columns that are not the model's, and for lists of different lengths.
pub(super) fn decode(reader: Reader<'_>, model: Model<'_>) -> Result<Vec<NamedTensor>, Failure> {
    let Members { names, values } = members(reader)?;
    let specs = model.signature.inputs();
    let targets = match model.targets(&names)? {
        Targets::Named(targets) => targets,
        Targets::InOrder(columns) => (0..columns).map(|element| Target::Element { input: 0, element }).collect(),
    };
    let mut inputs = Vec::with_capacity(specs.len());
    let mut rows = None;
    for (input, spec) in specs.iter().enumerate() {
        let of_input: Vec<(usize, Target)> =
            targets.iter().copied().enumerate().filter(|(_, target)| target.input() == input).collect();
        inputs.push(match of_input[..] {
            [(column, Target::Whole(_))] => {
                let mut at = reader.at(values[column]);
                let mut whole = Column::new(spec, 1, &at)?;
                whole.read(&mut at)?;
                whole.finish(None)?
            }
            _ => elements(reader, spec, &of_input, &names, &values, model, &mut rows)?,
        });
    }
    Ok(inputs)
}

/// Reads the lists of the elements of one input.
fn elements(
    reader: Reader<'_>,
    spec: &TensorSpec,
    of_input: &[(usize, Target)],
    names: &[Cow<'_, str>],
    values: &[usize],
    model: Model<'_>,
    rows: &mut Option<(usize, usize)>,
) -> Result<NamedTensor, Failure> {
    let known = model.names_of(spec);
    let expected = width(spec).unwrap_or(if known.is_empty() { of_input.len() } else { known.len() });
    let element_of = |(column, target): &(usize, Target)| match target {
        Target::Element { element, .. } => Some((*element, *column)),
        Target::Whole(_) => None,
    };
    let mut order: Vec<(usize, usize)> = of_input.iter().filter_map(element_of).collect();
    order.sort_unstable();
    if order.len() != of_input.len() {
        return Err(invalid(format!("input {:?} and elements of it are given at once", &*spec.name)));
    }
    if order.is_empty() || !order.iter().map(|(element, _)| *element).eq(0..expected) {
        let absent =
            known.iter().enumerate().find(|(element, _)| order.binary_search_by_key(element, |(e, _)| *e).is_err());
        let missing = absent.map_or(&*spec.name, |(_, name)| name.as_str());
        return Err(wrong(format!(
            "column {} is missing: input {spec} takes {expected} columns, got {}",
            quoted(missing),
            order.len()
        )));
    }
    let mut buffer = Buffer::new(spec.datatype, expected, &reader)?;
    for (_, column) in &order {
        let (name, mut at) = (&names[*column], reader.at(values[*column]));
        let nesting = buffer.read(&mut at, RULES).map_err(|error| match error {
            ParseError::Syntax(syntax) => syntax.into(),
            ParseError::WrongValue(problem) => wrong(format!("column {}: {problem}", quoted(name))),
        })?;
        let shape = nesting.as_shape();
        let [got] = shape[..] else {
            let message =
                format!("column {}: expected a list with one value for each row, got the shape {shape}", quoted(name));
            return Err(wrong(message));
        };
        match *rows {
            Some((expected, first)) if expected != got => {
                let (name, first) = (quoted(name), quoted(&names[first]));
                return Err(wrong(format!("column {name} has {got} values, but column {first} has {expected}")));
            }
            Some(_) => {}
            None => *rows = Some((got, *column)),
        }
    }
    buffer.columns_to_rows(order.len(), &reader)?;
    tensor(spec, buffer, rows.map_or(0, |(rows, _)| rows), order.len())
}

fn members(mut reader: Reader<'_>) -> Result<Members<'_>, Failure> {
    let mut members = Members { names: Vec::new(), values: Vec::new() };
    reader.bump();
    let mut first = true;
    while let Some(name) = reader.next_member(&mut first)? {
        reader.peek();
        reader.room(&mut members.names, 1)?;
        reader.room(&mut members.values, 1)?;
        members.names.push(name);
        members.values.push(reader.offset());
        reader.skip_value()?;
    }
    Ok(members)
}
