//! Parsing one tensor: a name, a datatype, a shape, and values as JSON or in the bytes after the JSON.

use super::binary::{self, Blobs};
use super::parameters::{parameters, quoted_value};
use crate::codec::elements::{self, Rules};
use crate::codec::json::{MAX_DEPTH, Reader, Seen, Syntax};
use crate::codec::nested::{Buffer, Nesting, ParseError};
use crate::model::{Complaints, NamedTensor, Parameter, Parameters, quoted};
use crate::tensor::{Data, DataType, Shape, Tensor};
use bytes::Bytes;
use smallvec::SmallVec;
use sonic_number::{ParserNumber, parse_number};

/// The names of a list of tensors and of one tensor in messages, for example `inputs` and `input`.
#[derive(Debug, Clone, Copy)]
pub(in crate::codec) struct Side {
    pub(in crate::codec) list: &'static str,
    pub(in crate::codec) one: &'static str,
}

/// What a short string takes beside its text: its place in a list, and what the allocator adds.
pub(in crate::codec) const STRING: usize = 64;

/// Parses a list of tensors. Stops when the list of complaints is full.
pub(in crate::codec) fn tensors(
    reader: &mut Reader<'_>,
    blobs: &mut Blobs,
    rules: Rules,
    side: Side,
    complaints: &mut Complaints,
) -> Result<Vec<NamedTensor>, Syntax> {
    let mut tensors = Vec::new();
    reader.peek();
    let start = reader.offset();
    if !reader.eat(b'[') {
        reader.skip_value()?;
        complaints.request(format!("{:?} is expected to be a list, got {}", side.list, reader.excerpt(start)));
        return Ok(tensors);
    }
    let mut first = true;
    let mut index = 0;
    while reader.next_item(&mut first)? && !complaints.is_full() {
        let mut draft = Draft::new(rules);
        let read = draft.read(reader);
        let read = read.and_then(|()| draft.finish(reader, blobs));
        reader.grow(size_of::<NamedTensor>() + STRING + draft.name.as_ref().map_or(0, String::len))?;
        match read {
            Ok(Some(tensor)) if draft.complaints.is_empty() => {
                tensors.push(NamedTensor { name: draft.name.unwrap_or_default(), tensor });
            }
            Ok(_) => {
                let place = place(side, index, draft.name.as_deref());
                complaints.absorb(draft.complaints, &place);
            }
            Err(syntax) => return Err(syntax.within(&place(side, index, draft.name.as_deref()))),
        }
        index += 1;
    }
    Ok(tensors)
}

#[cold]
fn place(side: Side, index: usize, name: Option<&str>) -> String {
    match name {
        Some(name) => format!("{} {}", side.one, quoted(name)),
        None => format!("{}[{index}]", side.list),
    }
}

/// A tensor while its members are parsed. They can come in any order.
#[derive(Debug)]
struct Draft {
    rules: Rules,
    name: Option<String>,
    datatype: Option<DataType>,
    shape: Option<Shape>,
    values: Values,
    parameters: Parameters,
    complaints: Complaints,
}

#[derive(Debug)]
enum Values {
    Absent,
    /// They came before the datatype, so they are parsed later. The offset where they start.
    Deferred(usize),
    Parsed(Data, Nesting),
    /// Wrong, and a complaint was added.
    Invalid,
}

// === impl Draft ===

impl Draft {
    const MEMBERS: [&'static str; 5] = ["name", "shape", "datatype", "data", "parameters"];

    fn new(rules: Rules) -> Draft {
        Draft {
            rules,
            name: None,
            datatype: None,
            shape: None,
            values: Values::Absent,
            parameters: Parameters::new(),
            complaints: Complaints::default(),
        }
    }

    /// Parses the object at the cursor.
    fn read(&mut self, reader: &mut Reader<'_>) -> Result<(), Syntax> {
        reader.peek();
        let start = reader.offset();
        if !reader.eat(b'{') {
            reader.skip_value()?;
            self.complaints.request(format!("expected an object, got {}", reader.excerpt(start)));
            self.values = Values::Invalid;
            return Ok(());
        }
        let mut seen = Seen::new(&Draft::MEMBERS);
        let mut first = true;
        while let Some(member) = reader.next_member(&mut first)? {
            if seen.is_repeated(&member) {
                self.complaints.request(format!("member {member:?} is given more than once"));
                reader.skip_value()?;
                continue;
            }
            match &*member {
                "name" => self.name = self.text(reader, "name")?.map(String::from),
                "shape" => self.shape = self.read_shape(reader)?,
                "datatype" => self.datatype = self.read_datatype(reader)?,
                "data" => self.read_data(reader)?,
                "parameters" => self.parameters = parameters(reader, &mut self.complaints)?,
                _ => {
                    reader.skip_value()?;
                }
            }
        }
        for member in ["name", "shape", "datatype"] {
            if !seen.contains(member) {
                self.complaints.request(format!("member {member:?} is missing"));
            }
        }
        Ok(())
    }

    /// Builds the tensor. Takes its bytes from `blobs` if it announces some. `None` if there is a complaint.
    fn finish(&mut self, reader: &Reader<'_>, blobs: &mut Blobs) -> Result<Option<Tensor>, Syntax> {
        let blob = match self.binary_data_size(blobs).map(|size| blobs.take(size)) {
            None => None,
            Some(Ok(blob)) => Some(blob),
            Some(Err(problem)) => {
                self.complaints.request(problem);
                return Ok(None);
            }
        };
        if let Values::Deferred(start) = self.values {
            self.read_data(&mut reader.at(start))?;
        }
        let values = std::mem::replace(&mut self.values, Values::Invalid);
        let (Some(shape), Some(datatype)) = (self.shape.take(), self.datatype) else { return Ok(None) };
        let data = match (values, blob) {
            (Values::Invalid, _) | (Values::Deferred(_), None) => return Ok(None),
            (Values::Absent, None) => {
                self.complaints.request("has neither \"data\" nor the parameter \"binary_data_size\"");
                return Ok(None);
            }
            (Values::Absent, Some(blob)) => {
                reader.grow(binary::copied_bytes(datatype, shape.elements().unwrap_or(0), &blob))?;
                binary::tensor_data(datatype, &shape, blob)
            }
            (Values::Parsed(data, nesting), None) if !nesting.is_accepted_for(&shape) => Err(if nesting.depth() == 0 {
                format!("data is expected to be a list for shape {shape}, got a single value")
            } else {
                format!("data nested as {} with {} elements does not fit shape {shape}", nesting.as_shape(), data.len())
            }),
            (Values::Parsed(Data::Bytes(texts), _), None) if self.is_base64() => {
                let content: usize = texts.iter().map(|text| text.len() + STRING).sum();
                reader.grow(content)?;
                decode_base64(&texts)
            }
            (Values::Parsed(data, _), None) => Ok(data),
            (_, Some(_)) => {
                self.complaints.request("has both \"data\" and the parameter \"binary_data_size\"");
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

    /// Parses `data`, or stores its offset if the datatype is not known yet.
    fn read_data(&mut self, reader: &mut Reader<'_>) -> Result<(), Syntax> {
        reader.peek();
        let start = reader.offset();
        let Some(datatype) = self.datatype else {
            reader.skip_value()?;
            self.values = Values::Deferred(start);
            return Ok(());
        };
        if datatype == DataType::Fp16 && !self.rules.fp16_as_numbers {
            reader.skip_value()?;
            self.complaints.tensor("FP16 values are accepted in binary form only (\"binary_data_size\"), got \"data\"");
            self.values = Values::Invalid;
            return Ok(());
        }
        let expected = self.shape.as_ref().and_then(Shape::elements).unwrap_or_default();
        let mut buffer = Buffer::new(datatype, expected, reader)?;
        match buffer.read(reader, self.rules) {
            Ok(nesting) => self.values = Values::Parsed(buffer.finish(), nesting),
            Err(ParseError::Syntax(syntax)) => return Err(syntax),
            Err(ParseError::WrongValue(problem)) => {
                *reader = reader.at(start);
                reader.skip_value()?;
                self.complaints.tensor(problem);
                self.values = Values::Invalid;
            }
        }
        Ok(())
    }

    fn read_datatype(&mut self, reader: &mut Reader<'_>) -> Result<Option<DataType>, Syntax> {
        let Some(name) = self.text(reader, "datatype")? else { return Ok(None) };
        let datatype = DataType::parse(&name);
        if datatype.is_none() {
            let known = DataType::ALL.map(DataType::as_str).join(", ");
            self.complaints.request(format!("unknown datatype {}, expected one of {known}", quoted(&name)));
        }
        Ok(datatype)
    }

    fn read_shape(&mut self, reader: &mut Reader<'_>) -> Result<Option<Shape>, Syntax> {
        reader.peek();
        let start = reader.offset();
        if !reader.eat(b'[') {
            reader.skip_value()?;
            let got = reader.excerpt(start);
            self.complaints.tensor(format!("shape is expected to be a list of non-negative integers, got {got}"));
            return Ok(None);
        }
        let mut extents = SmallVec::<[usize; 4]>::new();
        let mut first = true;
        while reader.next_item(&mut first)? {
            match extent(reader)? {
                Ok(extent) if extents.len() < MAX_DEPTH => extents.push(extent),
                invalid => {
                    self.complaints.tensor(match invalid {
                        Ok(_) => format!("shape has more than {MAX_DEPTH} dimensions"),
                        Err(got) => format!(
                            "dimension {} of shape is expected to be a non-negative integer, got {got}",
                            extents.len()
                        ),
                    });
                    *reader = reader.at(start);
                    reader.skip_value()?;
                    return Ok(None);
                }
            }
        }
        Ok(Some(Shape::new(&extents)))
    }

    fn text<'a>(&mut self, reader: &mut Reader<'a>, member: &str) -> Result<Option<std::borrow::Cow<'a, str>>, Syntax> {
        if reader.peek() == Some(b'"') {
            return reader.string().map(Some);
        }
        let start = reader.offset();
        reader.skip_value()?;
        self.complaints.request(format!("{member:?} is expected to be a string, got {}", reader.excerpt(start)));
        Ok(None)
    }

    /// Whether the strings are base64, as `MLServer`'s `Base64Codec` sends binary data in JSON.
    fn is_base64(&self) -> bool {
        let is_base64 = |value: &Parameter| matches!(value, Parameter::String(text) if text == "base64");
        self.parameters.iter().any(|(name, value)| name == "content_type" && is_base64(value))
    }

    /// The `binary_data_size` in the parameters. Adds complaints about parameters that are not supported.
    fn binary_data_size(&mut self, blobs: &mut Blobs) -> Option<usize> {
        let mut size = None;
        for (name, value) in &self.parameters {
            if name.starts_with("shared_memory_") {
                self.complaints.request(format!(
                    "parameter {}: shared memory is not supported, send the values in \"data\" or in binary form",
                    quoted(name)
                ));
                self.values = Values::Invalid;
            } else if name == "binary_data_size" {
                match value {
                    Parameter::Integer(n) if usize::try_from(*n).is_ok() => size = usize::try_from(*n).ok(),
                    other => {
                        self.complaints.request(format!(
                            "parameter \"binary_data_size\" is expected to be a non-negative integer, got {}",
                            quoted_value(other)
                        ));
                        self.values = Values::Invalid;
                        blobs.set_out_of_sync();
                    }
                }
            }
        }
        size
    }
}

/// Parses one extent of a shape. The inner error is what was found instead.
fn extent(reader: &mut Reader<'_>) -> Result<Result<usize, String>, Syntax> {
    let first = reader.peek();
    let start = reader.offset();
    if !matches!(first, Some(b'-' | b'0'..=b'9')) {
        reader.skip_value()?;
        return Ok(Err(reader.excerpt(start)));
    }
    let extent = match reader.number(parse_number)? {
        Some(ParserNumber::Unsigned(n)) => usize::try_from(n).ok(),
        _ => None,
    };
    Ok(extent.ok_or_else(|| reader.excerpt(start)))
}

/// Decodes each string from base64, in the standard or the URL-safe alphabet, with or without padding.
fn decode_base64(texts: &[Bytes]) -> Result<Data, String> {
    let decode = |(index, text): (usize, &Bytes)| {
        elements::decode_base64(text).map(Bytes::from).ok_or_else(|| {
            let shown = quoted(&String::from_utf8_lossy(text));
            format!("content_type is base64, and data[{index}] is not base64: {shown}")
        })
    };
    texts.iter().enumerate().map(decode).collect::<Result<Vec<Bytes>, String>>().map(Data::Bytes)
}
