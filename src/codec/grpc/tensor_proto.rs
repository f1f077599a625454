//! `tensorflow.TensorProto` both ways. Read are `tensor_content` and typed values, also one value for all elements. Written are typed values, as
//! `TensorFlow` Serving writes them by default: clients read `float_val` and the like directly.

use super::generated::tensorflow::DataType as TfType;
use super::values::{Problem, Values, bytes_len, write, write_bytes, write_head, written_len};
use super::wire::{Fields, Value};
use crate::budget::Hold;
use crate::codec::json::MAX_DEPTH;
use crate::codec::oip::{copied_bytes, tensor_data};
use crate::model::{Complaints, Failure};
use crate::tensor::{DataType, Shape, Tensor};
use bytes::Bytes;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};
use smallvec::SmallVec;

/// Decodes a tensor. `None` if there is a complaint.
pub(super) fn decode(message: Bytes, complaints: &mut Complaints, hold: &Hold) -> Result<Option<Tensor>, Failure> {
    let mut draft = Draft::default();
    draft.read(message.clone(), complaints)?;
    draft.finish(message, complaints, hold)
}

#[derive(Debug, Default)]
struct Draft {
    dtype: Option<DataType>,
    shape: SmallVec<[usize; 4]>,
    content: Option<Bytes>,
}

impl Draft {
    /// Reads everything but the typed values, for which datatype and shape must be known.
    fn read(&mut self, message: Bytes, complaints: &mut Complaints) -> Result<(), Failure> {
        let mut fields = Fields::new(message);
        while let Some((number, value)) = fields.next()? {
            match number {
                1 => {
                    let n = value.varint("dtype")?;
                    self.dtype = datatype(n);
                    if self.dtype.is_none() && !complaints.is_full() {
                        complaints.tensor(unknown(n));
                    }
                }
                2 => self.add_shape(value.bytes("tensor_shape")?, complaints)?,
                4 => self.content = Some(value.bytes("tensor_content")?).filter(|content| !content.is_empty()),
                _ => {}
            }
        }
        if self.dtype.is_none() && complaints.is_empty() {
            complaints.tensor("dtype is missing");
        }
        Ok(())
    }

    fn add_shape(&mut self, message: Bytes, complaints: &mut Complaints) -> Result<(), Failure> {
        let mut fields = Fields::new(message);
        while let Some((number, value)) = fields.next()? {
            match number {
                2 => {
                    let mut size = 0;
                    let mut dim = Fields::new(value.bytes("dim")?);
                    while let Some((number, value)) = dim.next()? {
                        if number == 1 {
                            size = value.varint("size")?.cast_signed();
                        }
                    }
                    let axis = self.shape.len();
                    match usize::try_from(size) {
                        _ if complaints.is_full() => {}
                        Ok(extent) if axis < MAX_DEPTH => self.shape.push(extent),
                        Ok(_) => {
                            complaints.tensor(format!("tensor_shape has more than {MAX_DEPTH} dimensions"));
                            return Ok(());
                        }
                        Err(_) => complaints.tensor(format!(
                            "dimension {axis} of tensor_shape is expected to be a non-negative integer, got {size}"
                        )),
                    }
                }
                3 if value.varint("unknown_rank")? != 0 => {
                    complaints.tensor("tensor_shape has an unknown rank, which a value cannot have");
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn finish(self, message: Bytes, complaints: &mut Complaints, hold: &Hold) -> Result<Option<Tensor>, Failure> {
        let Some(datatype) = self.dtype.filter(|_| complaints.is_empty()) else { return Ok(None) };
        let shape = Shape::new(&self.shape);
        let elements = shape.elements();
        let data = match self.content {
            Some(_) if datatype == DataType::Bytes => {
                Err("tensor_content is not supported for DT_STRING: send the strings in string_val".to_owned())
            }
            Some(content) => {
                hold.grow(copied_bytes(datatype, elements.unwrap_or(0), &content))?;
                tensor_data(datatype, &shape, content)
            }
            None => match typed(datatype, elements, message, hold) {
                Ok(data) => Ok(data),
                Err(Problem::Wrong(problem)) => Err(problem),
                Err(Problem::Refused(failure)) => return Err(failure),
            },
        };
        match data.and_then(|data| Tensor::new(shape, data).map_err(|e| e.to_string())) {
            Ok(tensor) => Ok(Some(tensor)),
            Err(problem) => {
                complaints.tensor(problem);
                Ok(None)
            }
        }
    }
}

/// Reads the typed values.
fn typed(
    datatype: DataType,
    elements: Option<usize>,
    message: Bytes,
    hold: &Hold,
) -> Result<crate::tensor::Data, Problem> {
    let wanted = field_of(datatype);
    let mut values = Values::new(datatype, elements.unwrap_or(usize::MAX), hold);
    let mut fields = Fields::new(message);
    while let Some((number, value)) = fields.next()? {
        match number {
            _ if number == wanted => values.push(value)?,
            5..=17 if number != 9 && number != 12 && !is_empty(&value) => {
                let dtype = name(datatype);
                return Err(Problem::Wrong(format!(
                    "expected the values of {dtype} in {}, got them in {}",
                    field_name(wanted),
                    field_name(number)
                )));
            }
            _ => {}
        }
    }
    if values.len() == 1 && elements.is_some() {
        values.fill()?;
    }
    Ok(values.finish())
}

fn is_empty(value: &Value) -> bool {
    matches!(value, Value::Bytes(bytes) if bytes.is_empty())
}

/// The field that has the values of a datatype.
const fn field_of(datatype: DataType) -> u32 {
    match datatype {
        DataType::Fp16 => 13,
        DataType::Fp32 => 5,
        DataType::Fp64 => 6,
        DataType::Int32 | DataType::Int16 | DataType::Int8 | DataType::Uint8 | DataType::Uint16 => 7,
        DataType::Bytes => 8,
        DataType::Int64 => 10,
        DataType::Bool => 11,
        DataType::Uint32 => 16,
        DataType::Uint64 => 17,
    }
}

const fn field_name(field: u32) -> &'static str {
    match field {
        5 => "float_val",
        6 => "double_val",
        7 => "int_val",
        8 => "string_val",
        10 => "int64_val",
        11 => "bool_val",
        13 => "half_val",
        14 => "resource_handle_val",
        15 => "variant_val",
        16 => "uint32_val",
        _ => "uint64_val",
    }
}

/// `TensorFlow`'s datatype.
pub(crate) const fn tf_type(datatype: DataType) -> TfType {
    match datatype {
        DataType::Bool => TfType::DtBool,
        DataType::Uint8 => TfType::DtUint8,
        DataType::Uint16 => TfType::DtUint16,
        DataType::Uint32 => TfType::DtUint32,
        DataType::Uint64 => TfType::DtUint64,
        DataType::Int8 => TfType::DtInt8,
        DataType::Int16 => TfType::DtInt16,
        DataType::Int32 => TfType::DtInt32,
        DataType::Int64 => TfType::DtInt64,
        DataType::Fp16 => TfType::DtHalf,
        DataType::Fp32 => TfType::DtFloat,
        DataType::Fp64 => TfType::DtDouble,
        DataType::Bytes => TfType::DtString,
    }
}

fn name(datatype: DataType) -> &'static str {
    tf_type(datatype).as_str_name()
}

fn datatype(n: u64) -> Option<DataType> {
    DataType::ALL.into_iter().find(|datatype| tf_type(*datatype) as u64 == n)
}

#[cold]
fn unknown(n: u64) -> String {
    let known = DataType::ALL.map(name).join(", ");
    let got = i32::try_from(n)
        .ok()
        .and_then(|n| TfType::try_from(n).ok())
        .map_or_else(|| n.to_string(), |t| t.as_str_name().to_owned());
    format!("dtype {got} is not supported, expected one of {known}")
}

/// The lengths of a tensor's message and of its shape.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lengths {
    shape: usize,
    pub(super) message: usize,
}

/// The length of one dimension's message: its size, where that is not 0.
fn dim_len(extent: usize) -> usize {
    if extent == 0 { 0 } else { key_len(1) + encoded_len_varint(extent as u64) }
}

pub(super) fn lengths(tensor: &Tensor) -> Lengths {
    let shape = tensor.shape().iter().map(|extent| bytes_len(2, dim_len(*extent))).sum();
    let dtype = key_len(1) + encoded_len_varint(tf_type(tensor.datatype()) as u64);
    let values = written_len(field_of(tensor.datatype()), tensor.data());
    Lengths { shape, message: dtype + bytes_len(2, shape) + values }
}

/// Appends the message of a tensor.
pub(super) fn encode(tensor: &Tensor, lengths: Lengths, out: &mut Vec<u8>) {
    encode_key(1, WireType::Varint, out);
    encode_varint(tf_type(tensor.datatype()) as u64, out);
    write_head(2, lengths.shape, out);
    for extent in tensor.shape().iter() {
        write_head(2, dim_len(*extent), out);
        if *extent > 0 {
            encode_key(1, WireType::Varint, out);
            encode_varint(*extent as u64, out);
        }
    }
    write(field_of(tensor.datatype()), tensor.data(), out);
}

/// Appends a tensor as an entry of a map, under a field with this number.
pub(super) fn encode_entry(field: u32, key: &str, tensor: &Tensor, lengths: Lengths, out: &mut Vec<u8>) {
    write_head(field, entry_len(key, lengths), out);
    write_bytes(1, key.as_bytes(), out);
    write_head(2, lengths.message, out);
    encode(tensor, lengths, out);
}

/// The length of an entry of a map.
pub(super) fn entry_len(key: &str, lengths: Lengths) -> usize {
    bytes_len(1, key.len()) + bytes_len(2, lengths.message)
}
