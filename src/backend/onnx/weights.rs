//! Weights stored in files of their own beside the model.
//!
//! A model may only name files inside its version's directory: it must not make the server read other files. Symbolic links
//! are followed, and the file they lead to must be inside as well.

use super::{OnnxFile, proto};
use crate::backend::LoadError;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

/// Where a tensor's values are stored.
struct External<'a> {
    tensor: &'a str,
    /// Relative to the version's directory.
    location: &'a str,
    /// How many bytes of the file the tensor needs, counted from the start of the file.
    needs: u64,
}

/// Reports every weight file that is outside of the directory, missing or too short, once per file.
pub(super) fn check(file: &OnnxFile) -> Result<(), LoadError> {
    let mut complaints = Vec::new();
    // Per file: how many bytes the tensors need of it, and the name of one tensor.
    let mut needed: BTreeMap<&str, (u64, &str)> = BTreeMap::new();
    let mut visit = |tensor| match external(tensor) {
        Err(complaint) => complaints.push(complaint),
        Ok(None) => {}
        Ok(Some(external)) => {
            let most = needed.entry(external.location).or_insert((0, external.tensor));
            most.0 = most.0.max(external.needs);
        }
    };
    each_tensor(&file.graph, &mut visit);
    for function in &file.model.functions {
        each_tensor_of_nodes(&function.node, &mut visit);
    }
    for (location, (needs, tensor)) in needed {
        complaints.extend(check_file(&file.dir, location, needs, tensor).err());
    }
    if complaints.is_empty() { Ok(()) } else { Err(LoadError::Invalid(complaints.join("; "))) }
}

fn check_file(dir: &Path, location: &str, needs: u64, tensor: &str) -> Result<(), String> {
    let unreadable = |error: std::io::Error| {
        format!(
            "the weight file {location:?}, which holds tensor {tensor:?}, cannot be read beside model.onnx: {error}"
        )
    };
    let real = std::fs::canonicalize(dir.join(location)).map_err(unreadable)?;
    if !real.starts_with(std::fs::canonicalize(dir).map_err(unreadable)?) {
        return Err(format!(
            "the weight file {location:?}, which holds tensor {tensor:?}, is a link to a file outside of the version's \
             directory: copy the file into the directory"
        ));
    }
    let found = std::fs::metadata(&real).map_err(unreadable)?;
    if !found.is_file() {
        return Err(format!("the weight file {location:?}, which holds tensor {tensor:?}, is not a regular file"));
    }
    if found.len() < needs {
        let bytes = found.len();
        return Err(format!(
            "the weight file {location:?} is too short: the model needs {needs} bytes of it, it has {bytes}"
        ));
    }
    Ok(())
}

/// The files that hold tensors of this graph, without those of inner graphs.
pub(super) fn files(graph: &proto::Graph) -> BTreeSet<&str> {
    graph.initializer.iter().filter_map(|i| external(i).ok().flatten()).map(|e| e.location).collect()
}

/// `None` for a tensor whose values are in `model.onnx`. An error for an entry that no file can satisfy.
fn external(tensor: &proto::Initializer) -> Result<Option<External<'_>>, String> {
    if tensor.data_location != proto::Initializer::EXTERNAL {
        return Ok(None);
    }
    let name = tensor.name.as_str();
    let entry = |key: &str| tensor.external_data.iter().find(|e| e.key == key).map(|e| e.value.as_str());
    let number = |key: &str| {
        let value = entry(key).unwrap_or("0");
        value
            .parse::<u64>()
            .map_err(|_| format!("the {key} of tensor {name:?} in its weight file is {value:?}, not a number"))
    };
    let location = entry("location").unwrap_or_default();
    let is_inside = Path::new(location).components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
    if location.is_empty() || !is_inside {
        return Err(format!(
            "tensor {name:?} keeps its values in {location:?}, which is not a file inside the version's directory"
        ));
    }
    let needs = number("offset")?.saturating_add(number("length")?);
    Ok(Some(External { tensor: name, location, needs }))
}

/// Visits every tensor of a graph, including those of inner graphs and of attributes.
fn each_tensor<'a>(graph: &'a proto::Graph, visit: &mut dyn FnMut(&'a proto::Initializer)) {
    graph.initializer.iter().for_each(&mut *visit);
    graph.sparse_initializer.iter().flat_map(sparse).for_each(&mut *visit);
    each_tensor_of_nodes(&graph.node, visit);
}

fn each_tensor_of_nodes<'a>(nodes: &'a [proto::Node], visit: &mut dyn FnMut(&'a proto::Initializer)) {
    for attribute in nodes.iter().flat_map(|n| &n.attribute) {
        attribute.tensor.iter().chain(&attribute.tensors).for_each(&mut *visit);
        attribute.sparse_tensor.iter().chain(&attribute.sparse_tensors).flat_map(sparse).for_each(&mut *visit);
        for inner in attribute.graph.iter().chain(&attribute.graphs) {
            each_tensor(inner, visit);
        }
    }
}

fn sparse(tensor: &proto::SparseInitializer) -> impl Iterator<Item = &proto::Initializer> {
    tensor.values.iter().chain(&tensor.indices)
}
