//! `{"instances": …}` and `{"inputs": …}` → tensors.

use super::Style;
use crate::codec::elements::Rules;
use crate::codec::json::{Reader, Seen, Syntax};
use crate::codec::nested::{Buffer, Nesting, Unread};
use crate::model::{Code, Dim, Failure, InferenceRequest, NamedTensor, Signature, TensorSpec, names, quoted};
use crate::tensor::{Shape, Tensor};
use bytes::Bytes;

const RULES: Rules = Rules { fp16_as_numbers: true, base64_objects: true };

/// A predict request of which the form is known and the values are not read yet.
#[derive(Debug, Clone)]
pub struct TfsRequest {
    body: Bytes,
    style: Style,
    /// Where the value of `instances` or `inputs` starts.
    start: usize,
    /// Whether the values are objects that name the inputs.
    named: bool,
}

/// Finds out which form a predict request has. All of the body is checked to be JSON.
///
/// # Errors
/// `INVALID_REQUEST` when the body is not JSON, has both or neither of `instances` and `inputs`, or asks for a signature other
/// than `serving_default`.
pub fn parse(body: &Bytes) -> Result<TfsRequest, Failure> {
    const MEMBERS: [&str; 3] = ["signature_name", "instances", "inputs"];
    let mut reader = Reader::new(body);
    if reader.peek().is_none() {
        return Err(refused("the body is empty: expected a JSON object with \"instances\" or \"inputs\""));
    }
    let start = reader.offset();
    if !reader.eat(b'{') {
        reader.skip_value()?;
        return Err(refused(format!(
            "expected a JSON object with \"instances\" or \"inputs\", got {}",
            reader.excerpt(start)
        )));
    }
    let (mut rows, mut columns) = (None, None);
    let mut seen = Seen::new(&MEMBERS);
    let mut first = true;
    while let Some(member) = reader.next_member(&mut first)? {
        if seen.again(&member) {
            return Err(refused(format!("member {member:?} is given more than once")));
        }
        reader.peek();
        match &*member {
            "signature_name" => signature_name(&mut reader)?,
            "instances" => rows = Some(instances(&mut reader, body)?),
            "inputs" => {
                let start = reader.offset();
                let named = is_named(&reader);
                reader.skip_value()?;
                columns = Some(TfsRequest { body: body.clone(), style: Style::Columns, start, named });
            }
            _ => {
                reader.skip_value()?;
            }
        }
    }
    reader.end()?;
    match (rows, columns) {
        (Some(rows), None) => Ok(rows),
        (None, Some(columns)) => Ok(columns),
        (Some(_), Some(_)) => Err(refused(
            "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist, got both",
        )),
        (None, None) => Err(refused("Missing 'inputs' or 'instances' key")),
    }
}

impl TfsRequest {
    /// How the values are laid out; the answer is to be laid out alike.
    #[must_use]
    pub fn style(&self) -> Style {
        self.style
    }

    /// Reads the values with the signature's datatypes. What the signature alone can judge (inputs missing, dimensions that
    /// do not fit) is left to [`Signature::check`].
    ///
    /// # Errors
    /// `INVALID_TENSOR` or `INVALID_REQUEST` naming the input, and the row or element that is wrong.
    pub fn decode(&self, signature: &Signature) -> Result<InferenceRequest, Failure> {
        let mut reader = Reader::new(&self.body).at(self.start);
        let specs = signature.inputs();
        let inputs = match (self.style, self.named) {
            (Style::Rows(rows), true) => named_rows(&mut reader, specs, rows)?,
            (Style::Columns, true) => named_columns(&mut reader, specs)?,
            (style, false) => vec![only_input(&mut reader, specs, style)?],
        };
        Ok(InferenceRequest { inputs, ..InferenceRequest::default() })
    }
}

/// Reads the elements of one input as they come, row by row or at once.
struct Column<'s> {
    spec: &'s TensorSpec,
    buffer: Buffer,
    /// What the values read so far are nested like.
    nesting: Option<Nesting>,
}

impl<'s> Column<'s> {
    fn new(spec: &'s TensorSpec, rows: usize, reader: &Reader<'_>) -> Column<'s> {
        let fixed = spec.dims.iter().flatten().map(|d| if let Dim::Fixed(n) = d { *n } else { 1 });
        let expected = fixed.fold(rows, usize::saturating_mul);
        Column { spec, buffer: Buffer::new(spec.datatype, expected, reader), nesting: None }
    }

    /// Reads one value of this input; every one has to be nested alike.
    fn read(&mut self, reader: &mut Reader<'_>) -> Result<(), Failure> {
        let nesting = self.buffer.read(reader, RULES).map_err(|unread| self.unread(unread))?;
        match &self.nesting {
            Some(before) if *before != nesting => Err(Failure::new(
                Code::InvalidTensor,
                format!(
                    "input {:?} has shape {} where the rows before it have {}",
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

    /// The tensor, with `rows` before its own extents. Brackets say nothing of what lies within an extent of 0: there the
    /// signature does.
    fn finish(self, rows: Option<usize>) -> Result<NamedTensor, Failure> {
        let nesting = self.nesting.unwrap_or_default().as_shape();
        let mut extents: Vec<usize> = rows.into_iter().chain(nesting.iter().copied()).collect();
        if extents.contains(&0) {
            let known = extents.len();
            let rest = self.spec.dims.iter().flatten().skip(known);
            extents.extend(rest.map(|dim| if let Dim::Fixed(n) = dim { *n } else { 0 }));
        }
        let tensor = Tensor::new(Shape::new(&extents), self.buffer.finish())
            .map_err(|e| Failure::new(Code::InvalidTensor, format!("input {:?}: {e}", &*self.spec.name)))?;
        Ok(NamedTensor { name: self.spec.name.to_string(), tensor })
    }

    fn unread(&self, unread: Unread) -> Failure {
        let place = format!("input {:?}", &*self.spec.name);
        match unread {
            Unread::Syntax(syntax) => syntax.within(&place).into(),
            Unread::Misfit(why) => Failure::new(Code::InvalidTensor, format!("{place}: {why}")),
        }
    }
}

/// A value, or a list of one value per row, for the only input there is.
fn only_input(reader: &mut Reader<'_>, specs: &[TensorSpec], style: Style) -> Result<NamedTensor, Failure> {
    let [spec] = specs else {
        let (given, wanted) = match style {
            Style::Rows(_) => ("'instances' is a plain list", "a list of objects"),
            Style::Columns => ("'inputs' is a plain value or list", "an object"),
        };
        return Err(refused(format!("{given}, but expected {wanted} that names the inputs: {}", names(specs))));
    };
    let rows = if let Style::Rows(rows) = style { rows } else { 1 };
    let mut column = Column::new(spec, rows, reader);
    column.read(reader)?;
    column.finish(None)
}

/// `"inputs": {"a": …, "b": …}`.
fn named_columns(reader: &mut Reader<'_>, specs: &[TensorSpec]) -> Result<Vec<NamedTensor>, Failure> {
    let mut inputs: Vec<NamedTensor> = Vec::with_capacity(specs.len());
    reader.bump();
    let mut first = true;
    while let Some(name) = reader.next_member(&mut first)? {
        let spec = &specs[known(specs, &name)?];
        if inputs.iter().any(|input| input.name == name) {
            return Err(refused(format!("input {name:?} is given more than once")));
        }
        let mut column = Column::new(spec, 1, reader);
        column.read(reader)?;
        inputs.push(column.finish(None)?);
    }
    Ok(inputs)
}

/// `"instances": [{"a": …, "b": …}, …]`.
fn named_rows(reader: &mut Reader<'_>, specs: &[TensorSpec], rows: usize) -> Result<Vec<NamedTensor>, Failure> {
    let mut columns: Vec<Column<'_>> = specs.iter().map(|spec| Column::new(spec, rows, reader)).collect();
    // How many rows each column has.
    let mut filled = vec![0usize; columns.len()];
    reader.bump();
    let (mut row, mut first_row) = (0, true);
    while reader.next_item(&mut first_row)? {
        let in_row = |failure: Failure| failure.within(&format!("instances[{row}]: "));
        reader.peek();
        let start = reader.offset();
        if !reader.eat(b'{') {
            return Err(refused(format!(
                "instances[{row}] is expected to be an object as the first one is, got {}",
                reader.excerpt(start)
            )));
        }
        let mut first = true;
        while let Some(name) = reader.next_member(&mut first)? {
            let i = known(specs, &name).map_err(in_row)?;
            if filled[i] > row {
                return Err(in_row(refused(format!("input {name:?} is given more than once"))));
            }
            columns[i].read(reader).map_err(in_row)?;
            filled[i] += 1;
        }
        row += 1;
        if let Some(i) = filled.iter().position(|n| *n < row) {
            return Err(refused(format!("instances[{}]: input {:?} is missing", row - 1, &*specs[i].name)));
        }
    }
    columns.into_iter().map(|column| column.finish(Some(row))).collect()
}

fn instances(reader: &mut Reader<'_>, body: &Bytes) -> Result<TfsRequest, Failure> {
    let start = reader.offset();
    if !reader.eat(b'[') {
        reader.skip_value()?;
        return Err(refused(format!("Expecting 'instances' to be a list/array, got {}", reader.excerpt(start))));
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
        return Err(refused("No values in 'instances' array"));
    }
    Ok(TfsRequest { body: body.clone(), style: Style::Rows(rows), start, named })
}

fn signature_name(reader: &mut Reader<'_>) -> Result<(), Failure> {
    let start = reader.offset();
    let mut ahead = *reader;
    reader.skip_value()?;
    let name = if ahead.peek() == Some(b'"') { ahead.string()? } else { "".into() };
    match &*name {
        "serving_default" => Ok(()),
        _ => Err(refused(format!(
            "'signature_name' is expected to be \"serving_default\" or absent, got {}",
            reader.excerpt(start)
        ))),
    }
}

/// Whether the value at the cursor is an object that names inputs, and not the bytes of one: `{"b64": "…"}`.
fn is_named(reader: &Reader<'_>) -> bool {
    let mut ahead = *reader;
    ahead.eat(b'{') && !is_base64(&mut ahead).unwrap_or_default()
}

/// Whether what follows a `{` is `"b64": "…"}`.
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

fn refused(why: impl Into<String>) -> Failure {
    Failure::new(Code::InvalidRequest, why)
}
