//! Decoding `inference.ModelInferRequest`.

use super::answer::InferForm;
use super::values::{Problem, Values};
use super::wire::{Fields, Value, malformed};
use super::{Named, NamedVersion, Undecoded};
use crate::budget::Hold;
use crate::codec::json::MAX_DEPTH;
use crate::codec::oip::{STRING, copied_bytes, repeated, tensor_data};
use crate::model::{Complaints, Failure, InferenceRequest, NamedTensor, Parameter, Parameters, quoted};
use crate::tensor::{Data, DataType, Shape, Tensor};
use bytes::Bytes;
use smallvec::SmallVec;

/// A decoded request, and the form of its answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct InferCall {
    pub(crate) named: Named,
    pub(crate) request: InferenceRequest,
    /// The outputs are raw where the inputs were.
    pub(crate) form: InferForm,
}

/// Decodes a message, and counts the memory of the result.
///
/// # Errors
/// `INVALID_REQUEST` or `INVALID_TENSOR`, with the input, dimension or element that is wrong, and with several complaints at once where
/// possible. Those of [`Hold::grow`].
pub(crate) fn decode(message: Bytes, hold: &Hold) -> Result<InferCall, Undecoded> {
    let mut parts = Parts::default();
    match parts.read(message, hold).and_then(|()| parts.decode(hold)) {
        Ok((request, raw)) => Ok(InferCall { named: parts.named, request, form: InferForm { raw, in_stream: false } }),
        Err(failure) => Err(Undecoded { named: Some(Box::new(parts.named)), failure }),
    }
}

/// The fields of a message. Those of the tensors are not read yet.
#[derive(Debug, Default)]
struct Parts {
    named: Named,
    id: Option<String>,
    parameters: Parameters,
    inputs: Vec<Bytes>,
    outputs: Vec<Bytes>,
    raw: Vec<Bytes>,
}

impl Parts {
    fn read(&mut self, message: Bytes, hold: &Hold) -> Result<(), Failure> {
        let mut fields = Fields::new(message);
        let list = |list: &mut Vec<Bytes>, value: Value, name: &str| {
            hold.room(list, 1, usize::MAX)?;
            list.push(value.bytes(name)?);
            Ok::<_, Failure>(())
        };
        while let Some((number, value)) = fields.next()? {
            match number {
                1 => self.named.model = value.string("model_name")?,
                2 => {
                    let version = value.string("model_version")?;
                    self.named.version =
                        if version.is_empty() { NamedVersion::Any } else { NamedVersion::Version(version) };
                }
                3 => self.id = Some(value.string("id")?).filter(|id| !id.is_empty()),
                4 => parameter(&mut self.parameters, value.bytes("parameters")?, hold)?,
                5 => list(&mut self.inputs, value, "inputs")?,
                6 => list(&mut self.outputs, value, "outputs")?,
                7 => list(&mut self.raw, value, "raw_input_contents")?,
                _ => {}
            }
        }
        Ok(())
    }

    fn decode(&mut self, hold: &Hold) -> Result<(InferenceRequest, bool), Failure> {
        let mut complaints = Complaints::default();
        if let Some(name) = repeated(&self.parameters) {
            complaints.request(format!("parameter {} is given more than once", quoted(name)));
        }
        let raw = !self.raw.is_empty();
        if raw && self.raw.len() != self.inputs.len() {
            let (got, inputs) = (self.raw.len(), self.inputs.len());
            complaints.request(format!(
                "raw_input_contents is expected to have one entry for each of the {inputs} inputs, got {got}"
            ));
            return complaints.into_result((InferenceRequest::default(), raw));
        }
        let mut inputs = Vec::new();
        for (index, message) in std::mem::take(&mut self.inputs).into_iter().enumerate() {
            if complaints.is_full() {
                break;
            }
            hold.grow(size_of::<NamedTensor>() + STRING)?;
            let bytes = self.raw.get_mut(index).map(std::mem::take);
            let mut input = Input::default();
            let read = input.read(message, hold).and_then(|()| input.finish(bytes, hold));
            let place = || {
                if input.name.is_empty() {
                    format!("inputs[{index}]")
                } else {
                    format!("input {}", quoted(&input.name))
                }
            };
            match read {
                Ok(Some(tensor)) if input.complaints.is_empty() => {
                    inputs.push(NamedTensor { name: input.name, tensor });
                }
                Ok(_) => {
                    let place = place();
                    complaints.absorb(input.complaints, &place);
                }
                Err(failure) => return Err(failure.within(&format!("{}: ", place()))),
            }
        }
        let outputs = outputs(std::mem::take(&mut self.outputs), &mut complaints, hold)?;
        let (id, parameters) = (self.id.take(), std::mem::take(&mut self.parameters));
        complaints.into_result((InferenceRequest { id, parameters, inputs, outputs }, raw))
    }
}

/// One of the inputs.
#[derive(Debug, Default)]
struct Input {
    name: String,
    datatype: Option<DataType>,
    shape: SmallVec<[usize; 4]>,
    contents: Option<Bytes>,
    complaints: Complaints,
}

impl Input {
    fn read(&mut self, message: Bytes, hold: &Hold) -> Result<(), Failure> {
        let mut fields = Fields::new(message);
        let mut has_datatype = false;
        while let Some((number, value)) = fields.next()? {
            match number {
                1 => {
                    self.name = value.string("name")?;
                    hold.grow(self.name.len())?;
                }
                2 => {
                    has_datatype = true;
                    self.set_datatype(&value.string("datatype")?);
                }
                3 => self.add_extents(value)?,
                4 => self.check_parameter(value.bytes("parameters")?)?,
                5 if self.contents.is_some() => self.complaints.request("contents is given more than once"),
                5 => self.contents = Some(value.bytes("contents")?),
                _ => {}
            }
        }
        if self.name.is_empty() {
            self.complaints.request("name is missing");
        }
        if !has_datatype {
            self.complaints.request("datatype is missing");
        }
        Ok(())
    }

    fn set_datatype(&mut self, name: &str) {
        self.datatype = DataType::parse(name);
        if self.datatype.is_none() {
            let known = DataType::ALL.map(DataType::as_str).join(", ");
            self.complaints.request(format!("unknown datatype {}, expected one of {known}", quoted(name)));
        }
    }

    fn add_extents(&mut self, value: Value) -> Result<(), Failure> {
        let mut add = |n: u64| {
            let (axis, n) = (self.shape.len(), n.cast_signed());
            match usize::try_from(n) {
                Ok(extent) if axis < MAX_DEPTH => {
                    self.shape.push(extent);
                    true
                }
                Ok(_) => {
                    self.complaints.tensor(format!("shape has more than {MAX_DEPTH} dimensions"));
                    false
                }
                Err(_) => {
                    self.complaints
                        .tensor(format!("dimension {axis} of shape is expected to be a non-negative integer, got {n}"));
                    false
                }
            }
        };
        match value {
            Value::Varint(n) => drop(add(n)),
            other => {
                let mut run = other.bytes("shape")?;
                while !run.is_empty() {
                    let n = super::wire::varint(&mut run).ok_or_else(|| malformed("shape is cut off"))?;
                    if !add(n) {
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    /// Of the parameters of an input, only those have a meaning that ask for what this server does not do.
    fn check_parameter(&mut self, entry: Bytes) -> Result<(), Failure> {
        if let Some((name, _)) = map_entry(entry)?
            && name.starts_with("shared_memory_")
            && !self.complaints.is_full()
        {
            self.complaints.request(format!(
                "parameter {}: shared memory is not supported, send the values in contents or raw_input_contents",
                quoted(&name)
            ));
        }
        Ok(())
    }

    /// Builds the tensor, of `raw` where the request has raw contents. `None` if there is a complaint.
    fn finish(&mut self, raw: Option<Bytes>, hold: &Hold) -> Result<Option<Tensor>, Failure> {
        let Some(datatype) = self.datatype.filter(|_| self.complaints.is_empty()) else { return Ok(None) };
        let shape = Shape::new(&self.shape);
        let elements = shape.elements();
        let data = match (raw, self.contents.take()) {
            (Some(_), Some(_)) => {
                self.complaints
                    .request("has contents although the request has raw_input_contents: expected one of the two");
                return Ok(None);
            }
            (Some(raw), None) => {
                hold.grow(copied_bytes(datatype, elements.unwrap_or(0), &raw))?;
                tensor_data(datatype, &shape, raw)
            }
            (None, Some(contents)) => match typed(datatype, elements.unwrap_or(usize::MAX), contents, hold) {
                Ok(data) => Ok(data),
                Err(Problem::Wrong(problem)) => Err(problem),
                Err(Problem::Refused(failure)) => return Err(failure),
            },
            (None, None) if elements == Some(0) => Ok(Data::zeros(datatype, 0)),
            (None, None) => {
                self.complaints.request("has neither contents, nor an entry in raw_input_contents");
                return Ok(None);
            }
        };
        match data.and_then(|data| Tensor::new(shape, data).map_err(|e| e.to_string())) {
            Ok(tensor) => Ok(Some(tensor)),
            Err(problem) => {
                self.complaints.tensor(problem);
                Ok(None)
            }
        }
    }
}

/// The field of `InferTensorContents` that has the values of a datatype. FP16 has none.
pub(super) const fn field_of(datatype: DataType) -> Option<u32> {
    match datatype {
        DataType::Bool => Some(1),
        DataType::Int8 | DataType::Int16 | DataType::Int32 => Some(2),
        DataType::Int64 => Some(3),
        DataType::Uint8 | DataType::Uint16 | DataType::Uint32 => Some(4),
        DataType::Uint64 => Some(5),
        DataType::Fp32 => Some(6),
        DataType::Fp64 => Some(7),
        DataType::Bytes => Some(8),
        DataType::Fp16 => None,
    }
}

/// Decodes typed contents.
fn typed(datatype: DataType, expected: usize, contents: Bytes, hold: &Hold) -> Result<Data, Problem> {
    const NAMES: [&str; 8] = [
        "bool_contents",
        "int_contents",
        "int64_contents",
        "uint_contents",
        "uint64_contents",
        "fp32_contents",
        "fp64_contents",
        "bytes_contents",
    ];
    let name = |field: u32| NAMES[field as usize - 1];
    let Some(wanted) = field_of(datatype) else {
        return Err(Problem::Wrong("FP16 has no typed contents: send the values in raw_input_contents".into()));
    };
    let mut values = Values::new(datatype, expected, hold);
    let mut fields = Fields::new(contents);
    while let Some((number, value)) = fields.next()? {
        match number {
            _ if number == wanted => values.push(value)?,
            1..=8 => {
                let (wanted, got) = (name(wanted), name(number));
                return Err(Problem::Wrong(format!("expected {wanted} for {datatype}, got {got}")));
            }
            _ => {}
        }
    }
    Ok(values.finish())
}

/// The requested outputs: names, in order. `None`: all.
fn outputs(messages: Vec<Bytes>, complaints: &mut Complaints, hold: &Hold) -> Result<Option<Vec<String>>, Failure> {
    if messages.is_empty() {
        return Ok(None);
    }
    let mut names = Vec::new();
    for (index, message) in messages.into_iter().enumerate() {
        if complaints.is_full() {
            break;
        }
        hold.grow(size_of::<String>() + STRING)?;
        let (mut name, mut of_output) = (String::new(), Complaints::default());
        let mut fields = Fields::new(message);
        while let Some((number, value)) = fields.next()? {
            match number {
                1 => {
                    name = value.string("the name of an output")?;
                    hold.grow(name.len())?;
                }
                2 => {
                    let entry = map_entry(value.bytes("the parameters of an output")?)?;
                    let Some((parameter, value)) = entry.filter(|_| !of_output.is_full()) else { continue };
                    let classes = parameter == "classification" && value != Parameter::Integer(0);
                    if classes || parameter.starts_with("shared_memory_") {
                        of_output.request(format!("parameter {} is not supported", quoted(&parameter)));
                    }
                }
                _ => {}
            }
        }
        if name.is_empty() {
            of_output.request("name is missing");
        }
        let place = if name.is_empty() { format!("outputs[{index}]") } else { format!("output {}", quoted(&name)) };
        complaints.absorb(of_output, &place);
        names.push(name);
    }
    Ok(Some(names))
}

/// Adds an entry of a map of parameters.
fn parameter(parameters: &mut Parameters, entry: Bytes, hold: &Hold) -> Result<(), Failure> {
    let Some((name, value)) = map_entry(entry)? else { return Ok(()) };
    let text = if let Parameter::String(text) = &value { text.len() } else { 0 };
    hold.grow(size_of::<(String, Parameter)>() + 2 * STRING + name.len() + text)?;
    parameters.push((name, value));
    Ok(())
}

/// One entry of a map of `InferParameter`. `None` where it has no value.
fn map_entry(entry: Bytes) -> Result<Option<(String, Parameter)>, Failure> {
    let (mut name, mut value) = (String::new(), None);
    let mut fields = Fields::new(entry);
    while let Some((number, field)) = fields.next()? {
        match number {
            1 => name = field.string("the name of a parameter")?,
            2 => value = parameter_value(field.bytes("the value of a parameter")?)?,
            _ => {}
        }
    }
    Ok(value.map(|value| (name, value)))
}

fn parameter_value(message: Bytes) -> Result<Option<Parameter>, Failure> {
    const WHAT: &str = "the value of a parameter";
    let mut value = None;
    let mut fields = Fields::new(message);
    while let Some((number, field)) = fields.next()? {
        value = Some(match (number, field) {
            (1, field) => Parameter::Bool(field.varint(WHAT)? != 0),
            (2, field) => Parameter::Integer(field.varint(WHAT)?.cast_signed()),
            (3, field) => Parameter::String(field.string(WHAT)?),
            (4, Value::Fixed64(bits)) => Parameter::Number(f64::from_bits(bits)),
            (4, _) => return Err(malformed("double_param is expected to have 64 bits")),
            (5, field) => {
                let n = field.varint(WHAT)?;
                i64::try_from(n).map_or(Parameter::Number(n as f64), Parameter::Integer)
            }
            _ => continue,
        });
    }
    Ok(value)
}
