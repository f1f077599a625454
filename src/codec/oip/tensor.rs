//! One entry of `inputs`: a name, a datatype, a shape, and values as JSON or in the bytes after it.

use super::binary::{self, Blobs};
use super::parameters::{parameters, quoted_value};
use crate::codec::elements::Rules;
use crate::codec::json::{MAX_DEPTH, Reader, Seen, Syntax};
use crate::codec::nested::{Buffer, Nesting, Unread};
use crate::model::{Complaints, NamedTensor, Parameter, Parameters, quoted};
use crate::tensor::{Data, DataType, Shape, Tensor};
use smallvec::SmallVec;
use sonic_number::{ParserNumber, parse_number};

/// How a list of tensors is called in messages: `inputs`, and one of them `input`.
#[derive(Debug, Clone, Copy)]
pub(in crate::codec) struct Side {
    pub(in crate::codec) list: &'static str,
    pub(in crate::codec) one: &'static str,
}

/// Reads a list of tensors. Stops early, wherever it stands, once there are complaints enough.
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
        match read {
            Ok(Some(tensor)) if draft.wrong.is_empty() => {
                tensors.push(NamedTensor { name: draft.name.unwrap_or_default(), tensor });
            }
            Ok(_) => {
                let place = place(side, index, draft.name.as_deref());
                complaints.absorb(draft.wrong, &place);
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

/// A tensor while its members are read, in whatever order they come.
#[derive(Debug)]
struct Draft {
    rules: Rules,
    name: Option<String>,
    datatype: Option<DataType>,
    shape: Option<Shape>,
    values: Values,
    parameters: Parameters,
    wrong: Complaints,
}

#[derive(Debug)]
enum Values {
    Absent,
    /// They came before their datatype: where they start.
    Unread(usize),
    Read(Data, Nesting),
    /// Read and found wrong: the complaint is made.
    Wrong,
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
            wrong: Complaints::default(),
        }
    }

    /// Reads the object at the cursor.
    fn read(&mut self, reader: &mut Reader<'_>) -> Result<(), Syntax> {
        reader.peek();
        let start = reader.offset();
        if !reader.eat(b'{') {
            reader.skip_value()?;
            self.wrong.request(format!("expected an object, got {}", reader.excerpt(start)));
            self.values = Values::Wrong;
            return Ok(());
        }
        let mut seen = Seen::new(&Draft::MEMBERS);
        let mut first = true;
        while let Some(member) = reader.next_member(&mut first)? {
            if seen.again(&member) {
                self.wrong.request(format!("member {member:?} is given more than once"));
                reader.skip_value()?;
                continue;
            }
            match &*member {
                "name" => self.name = self.text(reader, "name")?.map(String::from),
                "shape" => self.shape = self.read_shape(reader)?,
                "datatype" => self.datatype = self.read_datatype(reader)?,
                "data" => self.read_data(reader)?,
                "parameters" => self.parameters = parameters(reader, &mut self.wrong)?,
                _ => {
                    reader.skip_value()?;
                }
            }
        }
        for member in ["name", "shape", "datatype"] {
            if !seen.once(member) {
                self.wrong.request(format!("member {member:?} is missing"));
            }
        }
        Ok(())
    }

    /// Puts the parts together, taking this tensor's bytes off the blobs when it announces some. `None` when something is
    /// wrong.
    fn finish(&mut self, reader: &Reader<'_>, blobs: &mut Blobs) -> Result<Option<Tensor>, Syntax> {
        let blob = match self.binary_data_size(blobs).map(|size| blobs.take(size)) {
            None => None,
            Some(Ok(blob)) => Some(blob),
            Some(Err(why)) => {
                self.wrong.request(why);
                return Ok(None);
            }
        };
        if let Values::Unread(start) = self.values {
            self.read_data(&mut reader.at(start))?;
        }
        let values = std::mem::replace(&mut self.values, Values::Wrong);
        let (Some(shape), Some(datatype)) = (self.shape.take(), self.datatype) else { return Ok(None) };
        let data = match (values, blob) {
            (Values::Wrong, _) | (Values::Unread(_), None) => return Ok(None),
            (Values::Absent, None) => {
                self.wrong.request("has neither \"data\" nor the parameter \"binary_data_size\"");
                return Ok(None);
            }
            (Values::Absent, Some(blob)) => binary::tensor_data(datatype, &shape, blob),
            (Values::Read(data, nesting), None) if !nesting.may_stand_for(&shape) => Err(if nesting.depth() == 0 {
                format!("data is expected to be a list for shape {shape}, got one bare value")
            } else {
                format!("data nested as {}, {} elements, does not fit shape {shape}", nesting.as_shape(), data.len())
            }),
            (Values::Read(data, _), None) => Ok(data),
            (_, Some(_)) => {
                self.wrong.request("has both \"data\" and the parameter \"binary_data_size\"");
                return Ok(None);
            }
        };
        match data.and_then(|data| Tensor::new(shape, data).map_err(|e| e.to_string())) {
            Ok(tensor) => Ok(Some(tensor)),
            Err(why) => {
                self.wrong.tensor(why);
                Ok(None)
            }
        }
    }

    /// Reads `data`, or notes where it stands when its datatype is still to come.
    fn read_data(&mut self, reader: &mut Reader<'_>) -> Result<(), Syntax> {
        reader.peek();
        let start = reader.offset();
        let Some(datatype) = self.datatype else {
            reader.skip_value()?;
            self.values = Values::Unread(start);
            return Ok(());
        };
        if datatype == DataType::Fp16 && !self.rules.fp16_as_numbers {
            reader.skip_value()?;
            self.wrong.tensor("FP16 values are taken in binary form only (\"binary_data_size\"), got \"data\"");
            self.values = Values::Wrong;
            return Ok(());
        }
        let expected = self.shape.as_ref().and_then(Shape::elements).unwrap_or_default();
        let mut buffer = Buffer::new(datatype, expected, reader);
        match buffer.read(reader, self.rules) {
            Ok(nesting) => self.values = Values::Read(buffer.finish(), nesting),
            Err(Unread::Syntax(syntax)) => return Err(syntax),
            Err(Unread::Misfit(why)) => {
                *reader = reader.at(start);
                reader.skip_value()?;
                self.wrong.tensor(why);
                self.values = Values::Wrong;
            }
        }
        Ok(())
    }

    fn read_datatype(&mut self, reader: &mut Reader<'_>) -> Result<Option<DataType>, Syntax> {
        let Some(name) = self.text(reader, "datatype")? else { return Ok(None) };
        let datatype = DataType::parse(&name);
        if datatype.is_none() {
            let known = DataType::ALL.map(DataType::as_str).join(", ");
            let shown: String = name.chars().take(40).collect();
            self.wrong.request(format!("unknown datatype {shown:?}, expected one of {known}"));
        }
        Ok(datatype)
    }

    fn read_shape(&mut self, reader: &mut Reader<'_>) -> Result<Option<Shape>, Syntax> {
        reader.peek();
        let start = reader.offset();
        if !reader.eat(b'[') {
            reader.skip_value()?;
            let got = reader.excerpt(start);
            self.wrong.tensor(format!("shape is expected to be a list of non-negative integers, got {got}"));
            return Ok(None);
        }
        let mut extents = SmallVec::<[usize; 4]>::new();
        let mut first = true;
        while reader.next_item(&mut first)? {
            match extent(reader)? {
                Ok(extent) if extents.len() < MAX_DEPTH => extents.push(extent),
                wrong => {
                    self.wrong.tensor(match wrong {
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
        self.wrong.request(format!("{member:?} is expected to be a string, got {}", reader.excerpt(start)));
        Ok(None)
    }

    /// What the parameters announce; complains of those this server cannot follow.
    fn binary_data_size(&mut self, blobs: &mut Blobs) -> Option<usize> {
        let mut size = None;
        for (name, value) in &self.parameters {
            if name.starts_with("shared_memory_") {
                self.wrong.request(format!(
                    "parameter {}: shared memory is not supported, send the values in \"data\" or in binary form",
                    quoted(name)
                ));
                self.values = Values::Wrong;
            } else if name == "binary_data_size" {
                match value {
                    Parameter::Integer(n) if usize::try_from(*n).is_ok() => size = usize::try_from(*n).ok(),
                    other => {
                        self.wrong.request(format!(
                            "parameter \"binary_data_size\" is expected to be a non-negative integer, got {}",
                            quoted_value(other)
                        ));
                        self.values = Values::Wrong;
                        blobs.lose_track();
                    }
                }
            }
        }
        size
    }
}

/// Reads one extent of a shape; what stood there when it is none.
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
