//! Reads what an ONNX file declares, before an engine loads it: errors that need no engine, and facts that engines do
//! not report.
//!
//! ONNX Runtime's API does not distinguish a scalar from a tensor of unknown rank, tract has no type for sequences, and
//! neither says what a file that is not a model is instead. The weights are skipped, so that this costs little compared
//! with a load.

mod graph;
mod proto;
mod rows;
mod traits;
mod weights;

pub use rows::RowAnalysis;

use super::{LoadError, VersionFiles};
use crate::model::{Dim, TensorSpec};
use crate::tensor::DataType;
use bytes::Bytes;
use prost::Message;
use std::collections::{BTreeSet, HashSet};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A file that lists more initializers among its inputs was exported with all its weights there. None of them is optional then: each would
/// stand in the metadata and in every record.
const MAX_OPTIONAL_INPUTS: usize = 32;

/// A version's `model.onnx`, read and checked: it is a model, and all its weight files are present.
#[derive(Debug)]
pub(crate) struct OnnxFile {
    dir: PathBuf,
    bytes: Bytes,
    model: proto::Model,
    graph: proto::Graph,
}

/// The name of an operator: `Relu`, `ai.onnx.ml:TreeEnsembleClassifier`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Operator {
    /// Empty for ONNX's own operators.
    pub(crate) domain: String,
    pub(crate) name: String,
}

/// What the graph says about runs, beyond its signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GraphFacts {
    /// Whether the rows of a request can influence each other.
    pub rows: RowAnalysis,
    /// The first operator whose running time or output size depends on the values of an input.
    pub time_by_values: Option<String>,
    /// The first operator that draws random numbers.
    pub random: Option<String>,
}

impl GraphFacts {
    /// Of a model that has no graph.
    #[cfg(test)]
    pub(crate) fn not_read() -> &'static GraphFacts {
        static NOT_READ: std::sync::LazyLock<GraphFacts> = std::sync::LazyLock::new(GraphFacts::unknown);
        &NOT_READ
    }

    /// Of a model whose graph cannot be read.
    #[must_use]
    pub fn unknown() -> GraphFacts {
        let rows = RowAnalysis::Unknown { operator: "the file".to_owned() };
        GraphFacts { rows, time_by_values: None, random: None }
    }
}

/// An output as the file declares it. Only an engine can infer what is left out.
#[derive(Debug, Clone)]
pub(crate) struct DeclaredOutput {
    pub(crate) name: Arc<str>,
    pub(crate) datatype: Option<DataType>,
    pub(crate) dims: Option<Vec<Dim>>,
}

impl OnnxFile {
    /// Reads `model.onnx` and looks for the weight files it names.
    ///
    /// # Errors
    /// [`LoadError::Io`] when it cannot be read. [`LoadError::Invalid`] when it is empty, truncated or not an ONNX model,
    /// or when a weight file is missing or outside of the version's directory.
    pub(crate) fn read(files: &VersionFiles) -> Result<OnnxFile, LoadError> {
        let name = VersionFiles::MODEL;
        let read_error = |source: std::io::Error| match source.kind() {
            ErrorKind::NotFound => LoadError::Invalid(format!("{name} is missing")),
            _ => LoadError::Io { what: name.to_owned(), source },
        };
        // Opening a named pipe would wait for a writer that may never come.
        if !std::fs::metadata(files.model()).map_err(read_error)?.is_file() {
            return Err(LoadError::Invalid(format!("{name} is not a regular file")));
        }
        let bytes = std::fs::read(files.model()).map_err(read_error)?;
        let mut model = parse(&bytes)?;
        let graph = model.graph.take().filter(|graph| !graph.output.is_empty()).ok_or_else(|| {
            LoadError::Invalid(format!("{name} holds no graph with an output: it is not an ONNX model"))
        })?;
        let file = OnnxFile { dir: files.dir.clone(), bytes: bytes.into(), model, graph };
        weights::check(&file)?;
        Ok(file)
    }

    #[must_use]
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The whole file.
    #[must_use]
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The version of ONNX's operator set that the model uses.
    #[must_use]
    pub(crate) fn opset(&self) -> Option<i64> {
        self.model.opset_import.iter().find(|set| is_onnx(&set.domain)).map(|set| set.version)
    }

    /// Every operator in the model, including inner graphs, without the functions that the model defines itself.
    #[must_use]
    pub(crate) fn operators(&self) -> BTreeSet<Operator> {
        let mut operators = BTreeSet::new();
        self.each_node(&mut |node| {
            let domain = if is_onnx(&node.domain) { String::new() } else { node.domain.clone() };
            let own = self.model.functions.iter().any(|f| f.name == node.op_type && f.domain == node.domain);
            if !own {
                operators.insert(Operator { domain, name: node.op_type.clone() });
            }
        });
        operators
    }

    /// What the graph says about runs. Reads the nodes of the file again; weights are not copied.
    #[must_use]
    pub fn facts(&self) -> GraphFacts {
        let Ok(model) = graph::Model::read(self.bytes.clone()) else { return GraphFacts::unknown() };
        let given = self.graph.input.iter().filter(|port| !self.is_weight(&port.name));
        let inputs: HashSet<&str> = given.map(|port| port.name.as_str()).collect();
        GraphFacts {
            rows: rows::analyse(&model, &inputs),
            time_by_values: traits::time_by_values(&model, &inputs),
            random: traits::random_operator(&model),
        }
    }

    /// The functions the model defines itself.
    pub(crate) fn functions(&self) -> impl Iterator<Item = &str> {
        self.model.functions.iter().map(|f| f.name.as_str())
    }

    /// The inputs a caller must send, in the model's order. Older files list initializers among the inputs; those are
    /// weights and are left out.
    ///
    /// # Errors
    /// [`LoadError::Unsupported`] with every input that is not a tensor of a supported type.
    pub(crate) fn inputs(&self) -> Result<Vec<TensorSpec>, LoadError> {
        let mut complaints = Vec::new();
        let mut inputs = Vec::new();
        for port in self.graph.input.iter().filter(|port| !self.is_weight(&port.name)) {
            match tensor_of("input", port) {
                Ok(Some((Some(datatype), dims))) => {
                    inputs.push(TensorSpec { name: port.name.as_str().into(), datatype, dims });
                }
                Ok(_) => complaints.push(format!("input {:?} has no type", port.name)),
                Err(complaint) => complaints.push(complaint),
            }
        }
        if complaints.is_empty() { Ok(inputs) } else { Err(LoadError::Unsupported(complaints.join("; "))) }
    }

    /// The inputs a caller may send, in the model's order: initializers that the file lists among its inputs, of types that requests can
    /// contain and with a declared number of dimensions. Files with an IR version before 4 list all their weights there, which is not
    /// meant so.
    pub(crate) fn optional_inputs(&self) -> Vec<TensorSpec> {
        if self.model.ir_version < 4 {
            return Vec::new();
        }
        let is_optional = |port: &&proto::Port| self.graph.initializer.iter().any(|i| i.name == port.name);
        let spec = |port: &proto::Port| match tensor_of("input", port) {
            Ok(Some((Some(datatype), dims @ Some(_)))) => {
                Some(TensorSpec { name: port.name.as_str().into(), datatype, dims })
            }
            _ => None,
        };
        let optional: Vec<TensorSpec> = self.graph.input.iter().filter(is_optional).filter_map(spec).collect();
        if optional.len() > MAX_OPTIONAL_INPUTS { Vec::new() } else { optional }
    }

    /// The outputs, in the model's order.
    ///
    /// # Errors
    /// [`LoadError::Unsupported`] with every output that is not a tensor of a supported type, and how to export without
    /// it.
    pub(crate) fn outputs(&self) -> Result<Vec<DeclaredOutput>, LoadError> {
        let mut complaints = Vec::new();
        let mut outputs = Vec::new();
        for port in &self.graph.output {
            match tensor_of("output", port) {
                Ok(found) => {
                    let (datatype, dims) = found.unwrap_or_default();
                    outputs.push(DeclaredOutput { name: port.name.as_str().into(), datatype, dims });
                }
                Err(complaint) => complaints.push(complaint),
            }
        }
        if complaints.is_empty() { Ok(outputs) } else { Err(LoadError::Unsupported(complaints.join("; "))) }
    }

    /// The weight files of the main graph, relative to the version's directory.
    #[must_use]
    pub(crate) fn weight_files(&self) -> BTreeSet<&str> {
        weights::files(&self.graph)
    }

    fn is_weight(&self, name: &str) -> bool {
        self.graph.initializer.iter().any(|i| i.name == name)
            || self.graph.sparse_initializer.iter().any(|s| s.values.as_ref().is_some_and(|v| v.name == name))
    }

    fn each_node<'a>(&'a self, visit: &mut dyn FnMut(&'a proto::Node)) {
        each_node_of(&self.graph.node, visit);
        for function in &self.model.functions {
            each_node_of(&function.node, visit);
        }
    }
}

impl std::fmt::Display for Operator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.domain.as_str() {
            "" => f.write_str(&self.name),
            domain => write!(f, "{domain}:{}", self.name),
        }
    }
}

/// The recursion is bounded: the parser refuses messages nested more than 100 deep.
fn each_node_of<'a>(nodes: &'a [proto::Node], visit: &mut dyn FnMut(&'a proto::Node)) {
    for node in nodes {
        visit(node);
        for attribute in &node.attribute {
            for graph in attribute.graph.iter().chain(&attribute.graphs) {
                each_node_of(&graph.node, visit);
            }
        }
    }
}

fn is_onnx(domain: &str) -> bool {
    domain.is_empty() || domain == "ai.onnx"
}

fn parse(bytes: &[u8]) -> Result<proto::Model, LoadError> {
    let what = VersionFiles::MODEL;
    if bytes.is_empty() {
        return Err(LoadError::Invalid(format!("{what} is empty")));
    }
    if let Some(found) = other_format(bytes) {
        return Err(LoadError::Invalid(format!("{what} is {found}")));
    }
    proto::Model::decode(bytes).map_err(|error| {
        LoadError::Invalid(format!(
            "{what} is not an ONNX model, or was truncated after {} bytes: {error}",
            bytes.len()
        ))
    })
}

/// Recognises other file formats by their first bytes, to say what was copied by mistake.
fn other_format(bytes: &[u8]) -> Option<&'static str> {
    let starts = |prefix: &[u8]| bytes.starts_with(prefix);
    let tag = bytes.get(4..8);
    if starts(b"version https://git-lfs") {
        Some("a Git LFS pointer, not the model itself: run `git lfs pull` where it was copied from")
    } else if starts(b"<") {
        Some("a web page or XML, not an ONNX model: was a download answered with an error page?")
    } else if starts(b"PK\x03\x04") {
        Some("a zip archive (a PyTorch or Keras file?), not an ONNX model: export it with torch.onnx.export or tf2onnx")
    } else if starts(b"\x89HDF") {
        Some("an HDF5 file (Keras?), not an ONNX model: export it with tf2onnx")
    } else if starts(b"\x1f\x8b") {
        Some("compressed with gzip: unpack it first")
    } else if starts(b"\x80\x02") || starts(b"\x80\x03") || starts(b"\x80\x04") || starts(b"\x80\x05") {
        Some("a Python pickle, not an ONNX model: export it with skl2onnx or torch.onnx.export")
    } else if tag == Some(b"ORTM") {
        Some("in ONNX Runtime's own ORT format, which changes between its versions: put the .onnx file here")
    } else if tag == Some(b"TFL3") {
        Some("a TensorFlow Lite model, not an ONNX model: convert it with tf2onnx")
    } else {
        None
    }
}

type Tensor = (Option<DataType>, Option<Vec<Dim>>);

/// The type and dimensions of a tensor. `None` when the file declares nothing, an error when it is not a tensor.
fn tensor_of(side: &str, port: &proto::Port) -> Result<Option<Tensor>, String> {
    let name = &port.name;
    let Some(r#type) = &port.r#type else { return Ok(None) };
    let kind = if let Some(sequence) = &r#type.sequence {
        let of_maps = sequence.elements.as_ref().is_some_and(|t| t.map.is_some());
        if of_maps { "a sequence of maps" } else { "a sequence" }
    } else if r#type.map.is_some() {
        "a map"
    } else if r#type.optional.is_some() {
        "an optional value"
    } else if r#type.sparse_tensor.is_some() {
        "a sparse tensor"
    } else if r#type.opaque.is_some() {
        "an opaque value"
    } else {
        let Some(tensor) = &r#type.tensor else { return Ok(None) };
        let dims = tensor.shape.as_ref().map(|shape| shape.dim.iter().map(dim).collect());
        return match element(tensor.elem_type) {
            Element::Is(datatype) => Ok(Some((Some(datatype), dims))),
            Element::Undefined => Ok(Some((None, dims))),
            Element::Other(found) => Err(format!(
                "{side} {name:?} has element type {found}, which requests cannot contain: cast it inside the model to a type of \
                 the Open Inference Protocol"
            )),
        };
    };
    let help = if kind == "a sequence of maps" || kind == "a map" {
        "; scikit-learn's classifiers give tensors when exported with zipmap=False: \
         to_onnx(model, X, options={\"zipmap\": False})"
    } else {
        "; only tensors can be served: export the model without it"
    };
    Err(format!("{side} {name:?} is {kind}, not a tensor{help}"))
}

fn dim(dimension: &proto::Dimension) -> Dim {
    match (&dimension.dim_value, &dimension.dim_param) {
        // Older exporters write -1 for a dimension of any size.
        (Some(extent), _) => usize::try_from(*extent).map_or(Dim::Free(None), Dim::Fixed),
        (None, Some(symbol)) if !symbol.is_empty() && symbol != "?" => Dim::Free(Some(symbol.as_str().into())),
        (None, _) => Dim::Free(None),
    }
}

enum Element {
    Is(DataType),
    Undefined,
    Other(String),
}

/// `TensorProto.DataType` by its number in onnx.proto3.
fn element(number: i32) -> Element {
    let other = match number {
        0 => return Element::Undefined,
        1 => return Element::Is(DataType::Fp32),
        2 => return Element::Is(DataType::Uint8),
        3 => return Element::Is(DataType::Int8),
        4 => return Element::Is(DataType::Uint16),
        5 => return Element::Is(DataType::Int16),
        6 => return Element::Is(DataType::Int32),
        7 => return Element::Is(DataType::Int64),
        8 => return Element::Is(DataType::Bytes),
        9 => return Element::Is(DataType::Bool),
        10 => return Element::Is(DataType::Fp16),
        11 => return Element::Is(DataType::Fp64),
        12 => return Element::Is(DataType::Uint32),
        13 => return Element::Is(DataType::Uint64),
        14 => "COMPLEX64",
        15 => "COMPLEX128",
        16 => "BFLOAT16",
        17 => "FLOAT8E4M3FN",
        18 => "FLOAT8E4M3FNUZ",
        19 => "FLOAT8E5M2",
        20 => "FLOAT8E5M2FNUZ",
        21 => "UINT4",
        22 => "INT4",
        23 => "FLOAT4E2M1",
        24 => "FLOAT8E8M0",
        25 => "UINT2",
        26 => "INT2",
        n => return Element::Other(format!("number {n}")),
    };
    Element::Other(other.to_owned())
}
