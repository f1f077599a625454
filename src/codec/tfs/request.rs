//! Decoding `{"instances": …}` and `{"inputs": …}`.

use super::Style;
use crate::budget::Hold;
use crate::codec::elements::Rules;
use crate::codec::json::{Reader, Seen, Syntax};
use crate::codec::nested::{Buffer, Nesting, ParseError};
use crate::model::{Code, Dim, Failure, InferenceRequest, NamedTensor, Signature, TensorSpec, names, quoted};
use crate::tensor::{Shape, Tensor};
use bytes::Bytes;

pub(in crate::codec) const RULES: Rules = Rules { fp16_as_numbers: true, base64_objects: true };

/// A predict request whose form is known and whose values are not parsed yet.
#[derive(Debug, Clone)]
pub struct TfsRequest {
    body: Bytes,
    style: Style,
    /// The offset of the value of `instances` or `inputs`.
    start: usize,
    /// Whether the values are objects with the names of the inputs.
    named: bool,
}

/// Finds the form of a predict request. Checks that the whole body is valid JSON.
///
/// # Errors
/// `INVALID_REQUEST` if the body is not JSON, has both or neither of `instances` and `inputs`, or names a signature other than
/// `serving_default`.
pub fn parse(body: &Bytes) -> Result<TfsRequest, Failure> {
    const MEMBERS: [&str; 3] = ["signature_name", "instances", "inputs"];
    let mut reader = Reader::new(body);
    if reader.peek().is_none() {
        return Err(invalid("the body is empty: expected a JSON object with \"instances\" or \"inputs\""));
    }
    reader.refuse_byte_order_mark()?;
    let start = reader.offset();
    if !reader.eat(b'{') {
        reader.skip_value()?;
        return Err(invalid(format!(
            "expected a JSON object with \"instances\" or \"inputs\", got {}",
            reader.excerpt(start)
        )));
    }
    let (mut rows, mut columns) = (None, None);
    let mut seen = Seen::new(&MEMBERS);
    let mut first = true;
    while let Some(member) = reader.next_member(&mut first)? {
        if seen.is_repeated(&member) {
            return Err(invalid(format!("member {member:?} is given more than once")));
        }
        reader.peek();
        match &*member {
            "signature_name" => signature_name(&mut reader)?,
            "instances" => rows = Some(instances(&mut reader, body)?),
            "inputs" => columns = Some(tensors(&mut reader, body)?),
            _ => {
                reader.skip_value()?;
            }
        }
    }
    reader.end()?;
    match (rows, columns) {
        (Some(rows), None) => Ok(rows),
        (None, Some(columns)) => Ok(columns),
        (Some(_), Some(_)) => Err(invalid(
            "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist, got both",
        )),
        (None, None) => Err(invalid("Missing 'inputs' or 'instances' key")),
    }
}

impl TfsRequest {
    /// The layout of the values. The answer has the same.
    #[must_use]
    pub fn style(&self) -> Style {
        self.style
    }

    /// Whether the values are objects with names.
    pub(in crate::codec) fn is_named(&self) -> bool {
        self.named
    }

    /// The offset of the value of `instances` or `inputs`.
    pub(in crate::codec) fn start(&self) -> usize {
        self.start
    }

    /// Parses the values with the signature's datatypes. [`Signature::check`] finds missing inputs and wrong dimensions later.
    ///
    /// # Errors
    /// `INVALID_TENSOR` or `INVALID_REQUEST`, with the name of the input and the row or element that is wrong, and those of [`Hold::grow`].
    pub fn decode(&self, signature: &Signature, hold: &Hold) -> Result<InferenceRequest, Failure> {
        let mut reader = Reader::counted(&self.body, hold).at(self.start);
        let specs = signature.inputs();
        let inputs = match (self.style, self.named) {
            (Style::Rows(rows), true) => named_rows(&mut reader, signature, rows)?,
            (_, true) => named_columns(&mut reader, signature.all_inputs())?,
            (style, false) => vec![only_input(&mut reader, specs, style)?],
        };
        Ok(InferenceRequest { inputs, ..InferenceRequest::default() })
    }
}

/// Collects the elements of one input, row by row or all at once.
#[derive(Debug)]
pub(in crate::codec) struct Column<'s> {
    spec: &'s TensorSpec,
    buffer: Buffer,
    /// The nesting of the values so far. All must be the same.
    nesting: Option<Nesting>,
}

impl<'s> Column<'s> {
    pub(in crate::codec) fn new(spec: &'s TensorSpec, rows: usize, reader: &Reader<'_>) -> Result<Column<'s>, Syntax> {
        let fixed = spec.dims.iter().flatten().map(|d| if let Dim::Fixed(n) = d { *n } else { 1 });
        let expected = fixed.fold(rows, usize::saturating_mul);
        Ok(Column { spec, buffer: Buffer::new(spec.datatype, expected, reader)?, nesting: None })
    }

    /// Parses one value of this input. Each one must have the same nesting.
    pub(in crate::codec) fn read(&mut self, reader: &mut Reader<'_>) -> Result<(), Failure> {
        let nesting = self.buffer.read(reader, RULES).map_err(|error| self.failure(error))?;
        match &self.nesting {
            Some(before) if *before != nesting => Err(Failure::new(
                Code::InvalidTensor,
                format!(
                    "input {:?} has shape {}, but the rows before it have {}",
                    &*self.spec.name,
                    nesting.as_shape(),
                    before.as_shape()
                ),
            )),
            Some(_) => Ok(()),
            None => {
                self.nesting = Some(nesting);
                Ok(())
            }
        }
    }

    /// Builds the tensor, with `rows` as the first extent if given. An empty list does not show the extents inside it, so those come
    /// from the signature, and so do dimensions at the end that are fixed at 1.
    pub(in crate::codec) fn finish(self, rows: Option<usize>) -> Result<NamedTensor, Failure> {
        let nesting = self.nesting.unwrap_or_default().as_shape();
        let mut extents: Vec<usize> = rows.into_iter().chain(nesting.iter().copied()).collect();
        if extents.contains(&0) {
            let known = extents.len();
            let rest = self.spec.dims.iter().flatten().skip(known);
            extents.extend(rest.map(|dim| if let Dim::Fixed(n) = dim { *n } else { 0 }));
        } else if let Some(rest) = self.spec.dims.as_deref().and_then(|dims| dims.get(extents.len()..))
            && rest.iter().all(|dim| *dim == Dim::Fixed(1))
        {
            extents.extend(rest.iter().map(|_| 1));
        }
        let tensor = Tensor::new(Shape::new(&extents), self.buffer.finish())
            .map_err(|e| Failure::new(Code::InvalidTensor, format!("input {:?}: {e}", &*self.spec.name)))?;
        Ok(NamedTensor { name: self.spec.name.to_string(), tensor })
    }

    fn failure(&self, error: ParseError) -> Failure {
        let place = format!("input {:?}", &*self.spec.name);
        match error {
            ParseError::Syntax(syntax) => syntax.within(&place).into(),
            ParseError::WrongValue(problem) => Failure::new(Code::InvalidTensor, format!("{place}: {problem}")),
        }
    }
}

/// Parses a value, or a list of one value per row, for a model with one input.
fn only_input(reader: &mut Reader<'_>, specs: &[TensorSpec], style: Style) -> Result<NamedTensor, Failure> {
    let [spec] = specs else {
        let (given, wanted) = match style {
            Style::Rows(_) => ("'instances' is a plain list", "a list of objects"),
            _ => ("'inputs' is a plain value or list", "an object"),
        };
        return Err(invalid(format!("{given}, but expected {wanted} that names the inputs: {}", names(specs))));
    };
    let rows = if let Style::Rows(rows) = style { rows } else { 1 };
    let mut column = Column::new(spec, rows, reader)?;
    column.read(reader)?;
    column.finish(None)
}

/// Parses `"inputs": {"a": …, "b": …}`.
fn named_columns(reader: &mut Reader<'_>, specs: &[TensorSpec]) -> Result<Vec<NamedTensor>, Failure> {
    let mut inputs: Vec<NamedTensor> = Vec::with_capacity(specs.len());
    reader.bump();
    let mut first = true;
    while let Some(name) = reader.next_member(&mut first)? {
        let spec = &specs[known(specs, &name)?];
        if inputs.iter().any(|input| input.name == name) {
            return Err(invalid(format!("input {name:?} is given more than once")));
        }
        let mut column = Column::new(spec, 1, reader)?;
        column.read(reader)?;
        inputs.push(column.finish(None)?);
    }
    Ok(inputs)
}

/// Parses `"instances": [{"a": …, "b": …}, …]`.
fn named_rows(reader: &mut Reader<'_>, signature: &Signature, rows: usize) -> Result<Vec<NamedTensor>, Failure> {
    let specs = signature.inputs();
    let mut columns: Vec<Column<'_>> =
        specs.iter().map(|spec| Column::new(spec, rows, reader)).collect::<Result<_, _>>()?;
    // The number of rows in each column so far.
    let mut filled = vec![0usize; columns.len()];
    reader.bump();
    let (mut row, mut first_row) = (0, true);
    while reader.next_item(&mut first_row)? {
        let in_row = |failure: Failure| failure.within(&format!("instances[{row}]: "));
        reader.peek();
        let start = reader.offset();
        if !reader.eat(b'{') {
            return Err(invalid(format!(
                "instances[{row}] is expected to be an object like the first one, got {}",
                reader.excerpt(start)
            )));
        }
        let mut first = true;
        while let Some(name) = reader.next_member(&mut first)? {
            if signature.optional_inputs().iter().any(|spec| *spec.name == *name) {
                return Err(in_row(invalid(format!(
                    "input {name:?} is optional and counts for all rows: give it in the column form, {{\"inputs\": {{…}}}}"
                ))));
            }
            let i = known(specs, &name).map_err(in_row)?;
            if filled[i] > row {
                return Err(in_row(invalid(format!("input {name:?} is given more than once"))));
            }
            columns[i].read(reader).map_err(in_row)?;
            filled[i] += 1;
        }
        row += 1;
        if let Some(i) = filled.iter().position(|n| *n < row) {
            return Err(invalid(format!("instances[{}]: input {:?} is missing", row - 1, &*specs[i].name)));
        }
    }
    columns.into_iter().map(|column| column.finish(Some(row))).collect()
}

/// Finds the form of the value of `inputs`, at the cursor.
///
/// # Errors
/// When it is not valid JSON.
pub(in crate::codec) fn tensors(reader: &mut Reader<'_>, body: &Bytes) -> Result<TfsRequest, Failure> {
    let start = reader.offset();
    let named = is_named(reader);
    reader.skip_value()?;
    Ok(TfsRequest { body: body.clone(), style: Style::Columns, start, named })
}

/// Finds the form of the value of `instances`, at the cursor.
///
/// # Errors
/// `INVALID_REQUEST` when it is not a list with at least one entry.
pub(in crate::codec) fn instances(reader: &mut Reader<'_>, body: &Bytes) -> Result<TfsRequest, Failure> {
    let start = reader.offset();
    if !reader.eat(b'[') {
        reader.skip_value()?;
        return Err(invalid(format!("Expecting 'instances' to be a list/array, got {}", reader.excerpt(start))));
    }
    let mut named = false;
    let (mut rows, mut first) = (0, true);
    while reader.next_item(&mut first)? {
        reader.peek();
        if rows == 0 {
            named = is_named(reader);
        }
        reader.skip_value()?;
        rows += 1;
    }
    if rows == 0 {
        return Err(invalid("No values in 'instances' array"));
    }
    Ok(TfsRequest { body: body.clone(), style: Style::Rows(rows), start, named })
}

fn signature_name(reader: &mut Reader<'_>) -> Result<(), Failure> {
    let start = reader.offset();
    let mut ahead = *reader;
    reader.skip_value()?;
    let name = if ahead.peek() == Some(b'"') { Some(ahead.string()?) } else { None };
    match name.as_deref() {
        // TensorFlow Serving reads an empty name as the default one. The metadata of a model carries an empty name.
        Some("serving_default" | "") => Ok(()),
        _ => Err(invalid(format!(
            "'signature_name' is expected to be \"serving_default\" or absent, got {}",
            reader.excerpt(start)
        ))),
    }
}

/// Whether the next value is an object with the names of inputs, and not a base64 string (`{"b64": "…"}`).
fn is_named(reader: &Reader<'_>) -> bool {
    let mut ahead = *reader;
    ahead.eat(b'{') && !is_base64(&mut ahead).unwrap_or_default()
}

/// Whether `"b64": "…"}` follows, after a `{`.
fn is_base64(reader: &mut Reader<'_>) -> Result<bool, Syntax> {
    let mut first = true;
    if reader.next_member(&mut first)?.as_deref() != Some("b64") || reader.peek() != Some(b'"') {
        return Ok(false);
    }
    reader.string()?;
    Ok(reader.eat(b'}'))
}

fn known(specs: &[TensorSpec], name: &str) -> Result<usize, Failure> {
    specs.iter().position(|spec| *spec.name == *name).ok_or_else(|| {
        Failure::new(Code::InvalidTensor, format!("unknown input {}: this model takes {}", quoted(name), names(specs)))
    })
}

fn invalid(message: impl Into<String>) -> Failure {
    Failure::new(Code::InvalidRequest, message)
}
