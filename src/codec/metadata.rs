//! Metadata of the server and of a model, for the Open Inference Protocol.

use super::text::{integer, plain, string};
use crate::model::{Signature, TensorSpec, Version};
use bytes::Bytes;

/// The protocol extensions that this server supports.
pub(crate) const EXTENSIONS: [&str; 3] = ["binary_tensor_data", "model_configuration", "statistics"];

/// The answer to `GET /v2`.
#[must_use]
pub fn server_json(version: &str) -> Bytes {
    let mut out = Vec::new();
    plain(&mut out, "{\"name\":\"sluicegate\",\"version\":");
    string(&mut out, version);
    plain(&mut out, ",\"extensions\":[");
    for (i, extension) in EXTENSIONS.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        string(&mut out, extension);
    }
    plain(&mut out, "]}");
    out.into()
}

/// The answer to `GET /v2/models/M`.
///
/// `versions` are the versions that can be called. `platform` is for example `onnxruntime_onnx`. Free dimensions are -1.
#[must_use]
pub fn model_json(model: &str, versions: &[Version], platform: &str, signature: &Signature) -> Bytes {
    let mut out = Vec::new();
    plain(&mut out, "{\"name\":");
    string(&mut out, model);
    plain(&mut out, ",\"versions\":[");
    for (i, version) in versions.iter().enumerate() {
        plain(&mut out, if i > 0 { ",\"" } else { "\"" });
        integer(&mut out, version.number());
        out.push(b'"');
    }
    plain(&mut out, "],\"platform\":");
    string(&mut out, platform);
    plain(&mut out, ",\"inputs\":");
    side(&mut out, signature.inputs());
    // A member of its own: clients fill everything that stands under `inputs`.
    if !signature.optional_inputs().is_empty() {
        plain(&mut out, ",\"optional_inputs\":");
        side(&mut out, signature.optional_inputs());
    }
    plain(&mut out, ",\"outputs\":");
    side(&mut out, signature.outputs());
    out.push(b'}');
    out.into()
}

fn side(out: &mut Vec<u8>, specs: &[TensorSpec]) {
    out.push(b'[');
    for (i, spec) in specs.iter().enumerate() {
        plain(out, if i > 0 { ",{\"name\":" } else { "{\"name\":" });
        string(out, &spec.name);
        plain(out, ",\"datatype\":\"");
        plain(out, spec.datatype.as_str());
        plain(out, "\",\"shape\":[");
        for (axis, dim) in spec.wire_shape().into_iter().enumerate() {
            if axis > 0 {
                out.push(b',');
            }
            integer(out, dim);
        }
        plain(out, "]}");
    }
    out.push(b']');
}
