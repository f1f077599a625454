//! From a name to the column that it means.

use super::column::{Column, ElementNames, Side, elements_per_row};
use crate::model::{Signature, quoted};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Why a name does not mean one column. `Display` says what was expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("{name} is no column of this version; its columns are {known}")]
    Unknown { name: String, known: String },
    #[error("{name} may mean {meanings}: use one of these names")]
    Ambiguous { name: String, meanings: String },
    #[error("{tensor} has {elements} elements per row: name one of them, such as {tensor}[0]")]
    NoElement { tensor: String, elements: String },
    #[error("{tensor} has {elements} elements per row: expected an index from 0 to {last}, got {index}")]
    OutOfRange { tensor: String, elements: usize, last: usize, index: usize },
}

/// Limit for the columns that a message lists.
const LISTED: usize = 10;
/// No tensor of a row has as many elements.
const MAX_DIGITS: usize = 9;

/// The column that `name` means. A full name (`inputs.NAME`, `outputs.NAME[i]`) goes before the short forms `NAME`, `NAME[i]` and the names of
/// elements. Of an open number of elements any may be named; a row with fewer has no value there.
///
/// # Errors
/// When no column has this name, when several may be meant, and when an element is missing from the name or does not exist.
pub fn resolve(signature: &Signature, names: &ElementNames, name: &str) -> Result<Column, NameError> {
    let full = tensors(signature, name, true);
    let tensors = if full.is_empty() { tensors(signature, name, false) } else { full };
    let (mut columns, mut first_error) = (BTreeMap::new(), None);
    for (side, tensor, index) in tensors {
        match element(signature, names, side, tensor, index) {
            Ok(column) => drop(columns.insert(column.name.clone(), column)),
            Err(error) => first_error = first_error.or(Some(error)),
        }
    }
    // A tensor with several elements does not hide an element of the same name.
    columns.extend(named_elements(signature, names, name).into_iter().map(|column| (column.name.clone(), column)));
    if columns.len() > 1 {
        return Err(NameError::Ambiguous { name: quoted(name), meanings: join(columns.into_keys()) });
    }
    let unknown = || NameError::Unknown { name: quoted(name), known: known(signature, names) };
    columns.pop_first().map(|(_, column)| column).ok_or_else(|| first_error.unwrap_or_else(unknown))
}

/// The tensors that a name may mean, each with its index, where the name has one.
fn tensors(signature: &Signature, name: &str, full: bool) -> Vec<(Side, usize, Option<usize>)> {
    let mut found = Vec::new();
    // A tensor's own name may end like an index, so the whole name is tried first.
    for (name, index) in std::iter::once((name, None)).chain(split_index(name)) {
        for side in Side::ALL {
            for (tensor, spec) in side.specs(signature).iter().enumerate() {
                let fits = if full { side.column(spec) == name } else { *spec.name == *name };
                if fits {
                    found.push((side, tensor, index));
                }
            }
        }
        if !found.is_empty() {
            break;
        }
    }
    found
}

/// `NAME[i]` as its two parts.
fn split_index(name: &str) -> Option<(&str, Option<usize>)> {
    let (tensor, index) = name.strip_suffix(']')?.rsplit_once('[')?;
    let is_index = (1..=MAX_DIGITS).contains(&index.len()) && index.bytes().all(|b| b.is_ascii_digit());
    is_index.then(|| (tensor, index.parse().ok()))
}

fn element(
    signature: &Signature,
    names: &ElementNames,
    side: Side,
    tensor: usize,
    index: Option<usize>,
) -> Result<Column, NameError> {
    let whole = side.column(&side.specs(signature)[tensor]);
    let elements = elements_per_row(signature, side, tensor);
    match (elements, index) {
        (Some(1), None | Some(0)) => Ok(Column::of(signature, names, (side, tensor), 0, true)),
        (Some(elements), Some(index)) if index >= elements => {
            let last = elements.saturating_sub(1);
            Err(NameError::OutOfRange { tensor: whole, elements, last, index })
        }
        (_, Some(index)) => Ok(Column::of(signature, names, (side, tensor), index, false)),
        (elements, None) => {
            let elements = elements.map_or_else(|| "an open number of".to_owned(), |n| n.to_string());
            Err(NameError::NoElement { tensor: whole, elements })
        }
    }
}

/// The columns whose element has this name in `model.toml`.
fn named_elements(signature: &Signature, names: &ElementNames, name: &str) -> Vec<Column> {
    let mut found = Vec::new();
    for side in Side::ALL {
        for (tensor, spec) in side.specs(signature).iter().enumerate() {
            // `inputs.NAME` of an element, where a tensor of another name holds it.
            let of_side = name.strip_prefix(side.as_str()).and_then(|rest| rest.strip_prefix('.'));
            let elements = elements_per_row(signature, side, tensor);
            for (element, known) in names.of(signature, side, spec).iter().enumerate() {
                let fits = known == name || of_side == Some(known);
                if fits && elements.is_none_or(|elements| element < elements) {
                    found.push(Column::of(signature, names, (side, tensor), element, elements == Some(1)));
                }
            }
        }
    }
    found
}

/// The names of a signature's columns, for a message.
fn known(signature: &Signature, names: &ElementNames) -> String {
    let mut listed = Vec::new();
    for side in Side::ALL {
        for (tensor, spec) in side.specs(signature).iter().enumerate() {
            let whole = side.column(spec);
            let elements = elements_per_row(signature, side, tensor);
            let elements = elements.or_else(|| Some(names.of(signature, side, spec).len()).filter(|n| *n > 0));
            listed.push(match elements {
                Some(1) => whole,
                Some(0) => continue,
                Some(n) => format!("{whole}[0] to {whole}[{}]", n - 1),
                None => format!("{whole}[i]"),
            });
        }
    }
    let more = listed.len().saturating_sub(LISTED);
    listed.truncate(LISTED);
    let mut text = join(listed);
    if more > 0 {
        let _ = write!(text, " and {more} more");
    }
    text
}

fn join(names: impl IntoIterator<Item = String>) -> String {
    names.into_iter().collect::<Vec<_>>().join(", ")
}
