//! The nodes of an ONNX graph with their inputs, outputs and attributes, for the analysis in `rows.rs`.
//!
//! A reading of its own beside `proto.rs`, which steps over all of this. Weights are views into the file, not copies.

use super::proto::{OperatorSet, Port};
use bytes::Bytes;
use prost::Message;

#[derive(Clone, PartialEq, prost::Message)]
pub struct Model {
    #[prost(message, optional, tag = "7")]
    pub graph: Option<Graph>,
    #[prost(message, repeated, tag = "8")]
    pub opset_import: Vec<OperatorSet>,
    #[prost(message, repeated, tag = "25")]
    pub functions: Vec<Function>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Function {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, repeated, tag = "4")]
    pub input: Vec<String>,
    #[prost(string, repeated, tag = "5")]
    pub output: Vec<String>,
    #[prost(message, repeated, tag = "7")]
    pub node: Vec<Node>,
    #[prost(string, tag = "10")]
    pub domain: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Graph {
    #[prost(message, repeated, tag = "1")]
    pub node: Vec<Node>,
    #[prost(message, repeated, tag = "5")]
    pub initializer: Vec<Constant>,
    #[prost(message, repeated, tag = "11")]
    pub input: Vec<Port>,
    #[prost(message, repeated, tag = "12")]
    pub output: Vec<Port>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Node {
    #[prost(string, repeated, tag = "1")]
    pub input: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    pub output: Vec<String>,
    #[prost(string, tag = "4")]
    pub op_type: String,
    #[prost(message, repeated, tag = "5")]
    pub attribute: Vec<Attribute>,
    #[prost(string, tag = "7")]
    pub domain: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Attribute {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(int64, tag = "3")]
    pub i: i64,
    #[prost(bytes = "bytes", tag = "4")]
    pub s: Bytes,
    #[prost(message, optional, tag = "5")]
    pub t: Option<Constant>,
    #[prost(message, optional, tag = "6")]
    pub g: Option<Graph>,
    #[prost(int64, repeated, tag = "8")]
    pub ints: Vec<i64>,
    #[prost(message, repeated, tag = "11")]
    pub graphs: Vec<Graph>,
}

/// A `TensorProto`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Constant {
    #[prost(int64, repeated, tag = "1")]
    pub dims: Vec<i64>,
    #[prost(int32, tag = "2")]
    pub data_type: i32,
    /// Packed variable-length integers, as they are in the file: weights may be kept here too, and are not decoded.
    #[prost(bytes = "bytes", tag = "5")]
    pub int32_data: Bytes,
    #[prost(bytes = "bytes", tag = "7")]
    pub int64_data: Bytes,
    #[prost(string, tag = "8")]
    pub name: String,
    #[prost(bytes = "bytes", tag = "9")]
    pub raw_data: Bytes,
}

/// Longer constants are weights, not shapes or axes.
const MAX_INTEGERS: usize = 64;
/// `TensorProto.DataType`.
const INT32: i32 = 6;
const INT64: i32 = 7;

impl Model {
    /// Reads the nodes of a model file.
    ///
    /// # Errors
    /// When the bytes are no ONNX model, or messages are nested more than 100 deep.
    pub fn read(file: Bytes) -> Result<Model, prost::DecodeError> {
        Model::decode(file)
    }

    /// The version of ONNX's own operator set.
    pub fn opset(&self) -> i64 {
        let own = |set: &&OperatorSet| set.domain.is_empty() || set.domain == "ai.onnx";
        self.opset_import.iter().find(own).map_or(1, |set| set.version)
    }
}

impl Node {
    pub fn attribute(&self, name: &str) -> Option<&Attribute> {
        self.attribute.iter().find(|a| a.name == name)
    }

    pub fn int(&self, name: &str) -> Option<i64> {
        self.attribute(name).map(|a| a.i)
    }

    pub fn subgraphs(&self) -> impl Iterator<Item = &Graph> {
        self.attribute.iter().flat_map(|a| a.g.iter().chain(&a.graphs))
    }
}

impl Constant {
    /// The elements of a small constant of INT64 or INT32: a shape, axes or indices.
    pub fn integers(&self) -> Option<Vec<i64>> {
        let fixed = |width: usize, read: fn(&[u8]) -> i64| {
            let few = self.raw_data.len() / width <= MAX_INTEGERS;
            few.then(|| self.raw_data.chunks_exact(width).map(read).collect())
        };
        match self.data_type {
            INT64 if !self.int64_data.is_empty() => packed(&self.int64_data),
            INT64 => fixed(8, |b| i64::from_le_bytes(b.try_into().unwrap_or_default())),
            INT32 if !self.int32_data.is_empty() => packed(&self.int32_data),
            INT32 => fixed(4, |b| i64::from(i32::from_le_bytes(b.try_into().unwrap_or_default()))),
            _ => None,
        }
    }
}

/// Decodes packed variable-length integers; a negative INT32 is written with 64 bits as well. `None` where there are more than
/// [`MAX_INTEGERS`].
fn packed(bytes: &Bytes) -> Option<Vec<i64>> {
    let mut rest = bytes.clone();
    let mut integers = Vec::new();
    while !rest.is_empty() {
        if integers.len() == MAX_INTEGERS {
            return None;
        }
        integers.push(prost::encoding::decode_varint(&mut rest).ok()?.cast_signed());
    }
    Some(integers)
}
