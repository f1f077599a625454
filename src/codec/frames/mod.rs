//! frames: requests as tables: the scoring protocol of `MLflow` (`dataframe_split`, `dataframe_records`, `instances`, `inputs`), CSV, and JSON
//! lines. docs/CLIENTS.md has the rules.
//!
//! A table has neither datatypes nor tensors, so it is parsed in two steps. [`parse`] finds its form before a version is chosen.
//! [`FrameRequest::decode`] reads the values with the datatypes of the version's signature. [`plan`] decides which column goes to which element of
//! which input; [`table`], [`named`] and [`csv`] read the three layouts.
//!
//! The answers are written by the room `tfs` ([`Style::Records`], [`Style::Named`]).

mod cells;
mod csv;
mod named;
mod plan;
mod table;
#[cfg(test)]
mod tests;

use super::json::{Reader, Seen};
use super::tfs::{self, Style, TfsRequest};
use crate::budget::Hold;
use crate::columns::ElementNames;
use crate::model::{Code, Failure, InferenceRequest, Signature, quoted};
use bytes::Bytes;
use plan::Model;
use std::sync::Arc;
use table::{Records, Split};

/// The format of a body, which its media type names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Media {
    Json,
    /// One row of JSON in each line.
    Lines,
    /// Whether the first line has the names of the columns, where the media type says so.
    Csv {
        header: Option<bool>,
    },
}

/// A request whose form is known and whose values are not parsed yet.
#[derive(Debug, Clone)]
pub struct FrameRequest {
    body: Bytes,
    form: Form,
    names: Arc<ElementNames>,
}

#[derive(Debug, Clone)]
enum Form {
    /// `instances` or `inputs`, without names of columns.
    Tensors(TfsRequest),
    /// `inputs` as an object: a list for each input or column. The request that it is, if the names are those of inputs.
    Named(TfsRequest),
    Records(Records),
    Split(Split),
    Csv {
        header: Option<bool>,
    },
}

/// Finds the form of a request. Checks that the whole body is valid.
///
/// # Errors
/// `INVALID_REQUEST` if the body is not what its media type says, or has not exactly one of the four members.
pub fn parse(body: &Bytes, media: Media) -> Result<FrameRequest, Failure> {
    let form = match media {
        Media::Csv { header } => {
            csv::check(body)?;
            Form::Csv { header }
        }
        Media::Lines => Form::Records(Records::of_lines(body)?),
        Media::Json => json(body)?,
    };
    Ok(FrameRequest { body: body.clone(), form, names: Arc::default() })
}

impl FrameRequest {
    /// Sets the names of the elements of inputs, from `model.toml`.
    pub fn set_names(&mut self, names: Arc<ElementNames>) {
        self.names = names;
    }

    /// Parses the values with the signature's datatypes. The style is that of the answer.
    ///
    /// # Errors
    /// `INVALID_TENSOR` or `INVALID_REQUEST`, with the column and the row that is wrong, and those of [`Hold::grow`].
    pub fn decode(&self, signature: &Signature, hold: &Hold) -> Result<(InferenceRequest, Style), Failure> {
        let reader = Reader::counted(&self.body, hold);
        let model = Model { signature, names: &self.names };
        let (inputs, style) = match &self.form {
            Form::Tensors(request) => return Ok((request.decode(signature, hold)?, Style::Named)),
            Form::Named(request) if named::are_inputs(reader.at(request.start()), signature)? => {
                return Ok((request.decode(signature, hold)?, Style::Named));
            }
            Form::Named(request) => (named::decode(reader.at(request.start()), model)?, Style::Named),
            Form::Records(records) => (records.decode(reader, model)?, records.style()),
            Form::Split(split) => (split.decode(reader, model)?, split.style()),
            Form::Csv { header } => {
                let (inputs, rows) = csv::decode(reader, model, *header)?;
                (inputs, Style::Records(rows))
            }
        };
        Ok((InferenceRequest { inputs, ..InferenceRequest::default() }, style))
    }
}

/// Finds the form of a JSON body.
fn json(body: &Bytes) -> Result<Form, Failure> {
    const MEMBERS: [&str; 4] = ["dataframe_split", "dataframe_records", "instances", "inputs"];
    const EXPECTED: &str =
        "a JSON object with exactly one of \"dataframe_split\", \"dataframe_records\", \"instances\" and \"inputs\"";
    let mut reader = Reader::new(body);
    if reader.peek().is_none() {
        return Err(invalid(format!("the body is empty: expected {EXPECTED}")));
    }
    reader.refuse_byte_order_mark()?;
    let start = reader.offset();
    if !reader.eat(b'{') {
        reader.skip_value()?;
        return Err(invalid(format!("expected {EXPECTED}, got {}", reader.excerpt(start))));
    }
    let (mut form, mut first) = (None, true);
    let mut seen = Seen::new(&MEMBERS);
    let mut others = Vec::new();
    while let Some(member) = reader.next_member(&mut first)? {
        if seen.is_repeated(&member) {
            return Err(invalid(format!("member {} is given more than once", quoted(&member))));
        }
        reader.peek();
        let found = match &*member {
            "dataframe_split" => Form::Split(Split::parse(&mut reader)?),
            "dataframe_records" => Form::Records(Records::parse(&mut reader)?),
            "instances" => {
                let request = tfs::instances(&mut reader, body)?;
                if request.is_named() { Form::Records(Records::of_instances(&request)) } else { Form::Tensors(request) }
            }
            "inputs" => {
                let request = tfs::tensors(&mut reader, body)?;
                if request.is_named() { Form::Named(request) } else { Form::Tensors(request) }
            }
            // `params` are for models in Python. An ONNX model takes none, in MLflow too.
            other => {
                if other != "params" && others.len() < 5 {
                    others.push(quoted(other));
                }
                reader.skip_value()?;
                continue;
            }
        };
        if form.replace(found).is_some() {
            return Err(invalid(format!("expected {EXPECTED}, got several of them")));
        }
    }
    reader.end()?;
    form.ok_or_else(|| {
        let got = if others.is_empty() { "none of them".to_owned() } else { others.join(", ") };
        invalid(format!("expected {EXPECTED}, got {got}"))
    })
}

fn invalid(message: impl Into<String>) -> Failure {
    Failure::new(Code::InvalidRequest, message)
}

fn wrong(message: impl Into<String>) -> Failure {
    Failure::new(Code::InvalidTensor, message)
}
