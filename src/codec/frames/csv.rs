//! Tables as CSV (RFC 4180).

use super::plan::{Model, Plan};
use super::{cells, invalid, wrong};
use crate::codec::json::Reader;
use crate::model::{Failure, NamedTensor, quoted};
use std::borrow::Cow;

/// Checks that a body is text, and not empty.
///
/// # Errors
/// `INVALID_REQUEST`.
pub(super) fn check(body: &[u8]) -> Result<(), Failure> {
    let text = std::str::from_utf8(body)
        .map_err(|e| invalid(format!("the body is not UTF-8 text: byte {} is wrong", e.valid_up_to())))?;
    if without_mark(text).trim().is_empty() {
        return Err(invalid("the body is empty: expected CSV"));
    }
    Ok(())
}

/// Reads the values of a body that was checked. Returns the number of rows too.
///
/// Without `header`, the first line has the names of the columns, as for `MLflow`. It has values, as for SageMaker, where the model has one input,
/// and the line has nothing but numbers, which are not 0, 1, 2 and so on: these are the names that pandas writes for columns without names.
///
/// # Errors
/// `INVALID_REQUEST` for what is no CSV, `INVALID_TENSOR` for columns and values that do not fit the model.
pub(super) fn decode(
    reader: Reader<'_>,
    model: Model<'_>,
    header: Option<bool>,
) -> Result<(Vec<NamedTensor>, usize), Failure> {
    let text = std::str::from_utf8(reader.text()).map_err(|_| invalid("the body is not UTF-8 text"))?;
    let mut lines = Lines { text: without_mark(text), at: 0, line: 0 };
    let (mut first, mut fields) = (Vec::new(), Vec::new());
    lines.next(&mut first, &reader)?;
    reader.grow(first.len() * size_of::<&str>())?;
    let one_input = model.signature.inputs().len() == 1;
    let numbered = first.len() > 1 && first.iter().enumerate().all(|(at, field)| field.trim() == at.to_string());
    let has_header = header.unwrap_or_else(|| !one_input || numbered || !has_values(&first));
    // pandas writes its index as a first column without a name.
    let skipped = usize::from(has_header && first.len() > 1 && first[0].trim().is_empty());
    let names: Vec<&str> = first.iter().skip(skipped).map(|field| field.trim()).collect();
    let targets =
        if has_header && !(numbered && one_input) { model.targets(&names)? } else { model.in_order(names.len())? };
    let shown = |column: usize| if has_header { quoted(names[column]) } else { column.to_string() };
    let mut plan = Plan::new(model, targets, 1, true, &reader)?;
    let mut rows = 0;
    let mut row = |fields: &[Field<'_>], line: usize| -> Result<(), Failure> {
        if fields.len() != names.len() + skipped {
            let (expected, got) = (names.len() + skipped, fields.len());
            return Err(invalid(format!("line {line}: expected {expected} fields, as in the first line, got {got}")));
        }
        for (column, field) in fields[skipped..].iter().enumerate() {
            let Some(buffer) = plan.buffer(column) else { continue };
            cells::push(buffer, field, &reader).map_err(|error| match error {
                cells::Error::NoMemory(failure) => failure,
                cells::Error::Wrong(expected) => {
                    let (name, got) = (shown(column), quoted(field));
                    wrong(format!("line {line}, column {name}: expected {expected}, got {got}"))
                }
            })?;
        }
        rows += 1;
        Ok(())
    };
    if !has_header {
        row(&first, lines.line)?;
    }
    while lines.next(&mut fields, &reader)? {
        row(&fields, lines.line)?;
    }
    if rows == 0 {
        return Err(invalid("the table has no rows: the first line has the names of the columns"));
    }
    Ok((plan.finish(rows)?, rows))
}

fn without_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

/// Whether a line has values and not names: numbers, some of which may be missing.
fn has_values(fields: &[Field<'_>]) -> bool {
    let is_number = |field: &Field<'_>| field.trim().parse::<f64>().is_ok();
    fields.iter().any(is_number) && fields.iter().all(|field| field.is_empty() || is_number(field))
}

/// A field of a line: a text of the body, unless it had doubled quotes.
pub(super) type Field<'a> = Cow<'a, str>;

/// Reads line by line. A field in quotes may have several.
struct Lines<'a> {
    text: &'a str,
    at: usize,
    /// The number of the last line, from 1.
    line: usize,
}

impl<'a> Lines<'a> {
    /// Reads the fields of the next line that is not blank. `false` at the end.
    fn next(&mut self, fields: &mut Vec<Field<'a>>, reader: &Reader<'_>) -> Result<bool, Failure> {
        fields.clear();
        while let Some(length) = self.line_break() {
            self.at += length;
            self.line += 1;
        }
        if self.at == self.text.len() {
            return Ok(false);
        }
        let mut within = 0;
        loop {
            let field = if self.text[self.at..].starts_with('"') {
                let (field, breaks) = self.quoted(reader)?;
                within += breaks;
                field
            } else {
                let rest = &self.text[self.at..];
                let end = rest.find([',', '\n', '\r']).unwrap_or(rest.len());
                self.at += end;
                Cow::Borrowed(&rest[..end])
            };
            reader.room(fields, 1)?;
            fields.push(field);
            if self.text[self.at..].starts_with(',') {
                self.at += 1;
                continue;
            }
            let ended = self.line_break();
            if ended.is_none() && self.at < self.text.len() {
                let got = self.text[self.at..].chars().next().unwrap_or_default();
                let line = self.line + 1 + within;
                return Err(invalid(format!(
                    "line {line}: expected a comma or the end of the line behind a quoted field, got {got:?}"
                )));
            }
            self.at += ended.unwrap_or_default();
            self.line += 1 + within;
            return Ok(true);
        }
    }

    /// The length of the line break at the cursor.
    fn line_break(&self) -> Option<usize> {
        match &self.text.as_bytes()[self.at..] {
            [b'\r', b'\n', ..] => Some(2),
            [b'\r' | b'\n', ..] => Some(1),
            _ => None,
        }
    }

    /// Reads a field in quotes, and how many line breaks it has.
    fn quoted(&mut self, reader: &Reader<'_>) -> Result<(Field<'a>, usize), Failure> {
        let start = self.at + 1;
        let bytes = self.text.as_bytes();
        let (mut at, mut doubled) = (start, 0);
        loop {
            match bytes[at..].iter().position(|byte| *byte == b'"') {
                None => return Err(invalid(format!("line {}: a quoted field has no end", self.line + 1))),
                Some(found) if bytes.get(at + found + 1) == Some(&b'"') => {
                    doubled += 1;
                    at += found + 2;
                }
                Some(found) => {
                    at += found;
                    break;
                }
            }
        }
        let inside = &self.text[start..at];
        self.at = at + 1;
        let breaks = inside.bytes().filter(|byte| *byte == b'\n').count();
        let text = if doubled == 0 {
            Cow::Borrowed(inside)
        } else {
            reader.grow(inside.len())?;
            Cow::Owned(inside.replace("\"\"", "\""))
        };
        Ok((text, breaks))
    }
}
