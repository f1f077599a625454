//! Weights that lie in files beside the model.

use super::{OnnxFile, proto};
use crate::backend::LoadError;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

/// Where a tensor keeps its values.
struct External<'a> {
    name: &'a str,
    /// Relative to the version's directory, and inside it.
    location: &'a str,
    /// How many bytes of the file it needs, from the start.
    needs: u64,
}

/// Complains of every weight file that is missing or too short, once per file.
pub(super) fn check(file: &OnnxFile) -> Result<(), LoadError> {
    let mut complaints = Vec::new();
    // Per file: how many bytes the tensors need of it, and one of them.
    let mut needed: BTreeMap<&str, (u64, &str)> = BTreeMap::new();
    each_tensor(&file.graph, &mut |tensor| match external(tensor) {
        Err(complaint) => complaints.push(complaint),
        Ok(None) => {}
        Ok(Some(external)) => {
            let most = needed.entry(external.location).or_insert((0, external.name));
            most.0 = most.0.max(external.needs);
        }
    });
    for (location, (needs, name)) in needed {
        match std::fs::metadata(file.dir.join(location)) {
            Err(error) => complaints.push(format!(
                "the weight file {location:?}, which holds tensor {name:?}, cannot be read beside model.onnx: {error}"
            )),
            Ok(found) if found.len() < needs => complaints.push(format!(
                "the weight file {location:?} is too short: the model needs {needs} bytes of it, it has {}",
                found.len()
            )),
            Ok(_) => {}
        }
    }
    if complaints.is_empty() { Ok(()) } else { Err(LoadError::Invalid(complaints.join("; "))) }
}

/// The files that hold tensors of this graph itself.
pub(super) fn files(graph: &proto::Graph) -> BTreeSet<&str> {
    graph.initializer.iter().filter_map(|i| external(i).ok().flatten()).map(|e| e.location).collect()
}

/// `None` for a tensor that holds its values itself; an error in words for an entry no file could satisfy.
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
    // A model must not make the server read files elsewhere.
    let inside = Path::new(location).components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
    if location.is_empty() || !inside {
        return Err(format!(
            "tensor {name:?} keeps its values in {location:?}, which is not a file inside the version's directory"
        ));
    }
    let needs = number("offset")?.saturating_add(number("length")?);
    Ok(Some(External { name, location, needs }))
}

fn each_tensor<'a>(graph: &'a proto::Graph, visit: &mut dyn FnMut(&'a proto::Initializer)) {
    let sparse = graph.sparse_initializer.iter().filter_map(|s| s.values.as_ref());
    graph.initializer.iter().chain(sparse).for_each(&mut *visit);
    for attribute in graph.node.iter().flat_map(|n| &n.attribute) {
        attribute.tensor.iter().for_each(&mut *visit);
        for inner in attribute.graph.iter().chain(&attribute.graphs) {
            each_tensor(inner, visit);
        }
    }
}
