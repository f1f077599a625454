//! The fields of an ONNX file that this room reads, from `onnx.proto3`
//! (<https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3>).
//!
//! The decoder skips all other fields without copying them, above all the weights. tract's own types copy the weights and
//! have neither sequences nor maps.

#[derive(Clone, PartialEq, prost::Message)]
pub struct Model {
    #[prost(int64, tag = "1")]
    pub ir_version: i64,
    #[prost(message, optional, tag = "7")]
    pub graph: Option<Graph>,
    #[prost(message, repeated, tag = "8")]
    pub opset_import: Vec<OperatorSet>,
    #[prost(message, repeated, tag = "25")]
    pub functions: Vec<Function>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct OperatorSet {
    #[prost(string, tag = "1")]
    pub domain: String,
    #[prost(int64, tag = "2")]
    pub version: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Function {
    #[prost(string, tag = "1")]
    pub name: String,
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
    pub initializer: Vec<Initializer>,
    #[prost(message, repeated, tag = "11")]
    pub input: Vec<Port>,
    #[prost(message, repeated, tag = "12")]
    pub output: Vec<Port>,
    #[prost(message, repeated, tag = "15")]
    pub sparse_initializer: Vec<SparseInitializer>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Node {
    #[prost(string, tag = "4")]
    pub op_type: String,
    #[prost(message, repeated, tag = "5")]
    pub attribute: Vec<Attribute>,
    #[prost(string, tag = "7")]
    pub domain: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Attribute {
    #[prost(message, optional, tag = "5")]
    pub tensor: Option<Initializer>,
    #[prost(message, optional, tag = "6")]
    pub graph: Option<Graph>,
    #[prost(message, repeated, tag = "10")]
    pub tensors: Vec<Initializer>,
    #[prost(message, repeated, tag = "11")]
    pub graphs: Vec<Graph>,
    #[prost(message, optional, tag = "22")]
    pub sparse_tensor: Option<SparseInitializer>,
    #[prost(message, repeated, tag = "23")]
    pub sparse_tensors: Vec<SparseInitializer>,
}

/// A `TensorProto` without its values.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Initializer {
    #[prost(string, tag = "8")]
    pub name: String,
    #[prost(message, repeated, tag = "13")]
    pub external_data: Vec<Entry>,
    #[prost(int32, tag = "14")]
    pub data_location: i32,
}

impl Initializer {
    /// `TensorProto.DataLocation.EXTERNAL`
    pub const EXTERNAL: i32 = 1;
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct SparseInitializer {
    #[prost(message, optional, tag = "1")]
    pub values: Option<Initializer>,
    #[prost(message, optional, tag = "2")]
    pub indices: Option<Initializer>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Entry {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(string, tag = "2")]
    pub value: String,
}

/// A `ValueInfoProto`: a graph's input or output.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Port {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, optional, tag = "2")]
    pub r#type: Option<Type>,
}

/// A `TypeProto`. Of its variants only tensors are read; the others are only recognised.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Type {
    #[prost(message, optional, tag = "1")]
    pub tensor: Option<TensorType>,
    #[prost(message, optional, tag = "4")]
    pub sequence: Option<SequenceType>,
    #[prost(message, optional, tag = "5")]
    pub map: Option<Anything>,
    #[prost(message, optional, tag = "7")]
    pub opaque: Option<Anything>,
    #[prost(message, optional, tag = "8")]
    pub sparse_tensor: Option<Anything>,
    #[prost(message, optional, tag = "9")]
    pub optional: Option<Anything>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct SequenceType {
    #[prost(message, optional, boxed, tag = "1")]
    pub elements: Option<Box<Type>>,
}

/// A message of which only the presence matters.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Anything {}

#[derive(Clone, PartialEq, prost::Message)]
pub struct TensorType {
    #[prost(int32, tag = "1")]
    pub elem_type: i32,
    #[prost(message, optional, tag = "2")]
    pub shape: Option<Dims>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Dims {
    #[prost(message, repeated, tag = "1")]
    pub dim: Vec<Dimension>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Dimension {
    #[prost(int64, optional, tag = "1")]
    pub dim_value: Option<i64>,
    #[prost(string, optional, tag = "2")]
    pub dim_param: Option<String>,
}
