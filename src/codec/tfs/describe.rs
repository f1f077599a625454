//! Version status and model metadata, in the format of `TensorFlow` Serving.

use crate::codec::text::{integer, plain, string};
use crate::model::{Signature, TensorSpec, Version};
use crate::tensor::DataType;
use bytes::Bytes;

/// One version in the answer to `GET /v1/models/M`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionStatus<'a> {
    pub version: Version,
    /// `START`, `LOADING`, `AVAILABLE`, `UNLOADING` or `END`.
    pub state: &'a str,
    /// `OK`, or the name of a gRPC status code.
    pub error_code: &'a str,
    pub error_message: &'a str,
}

/// The answer to `GET /v1/models/M`. `of_kserve`: the name of the model and whether it is ready, which KServe's V1 protocol has there.
#[must_use]
pub fn status_json(versions: &[VersionStatus<'_>], of_kserve: Option<(&str, bool)>) -> Bytes {
    let mut out = Vec::new();
    plain(&mut out, "{\"model_version_status\":[");
    for (i, status) in versions.iter().enumerate() {
        plain(&mut out, if i > 0 { ",{\"version\":\"" } else { "{\"version\":\"" });
        integer(&mut out, status.version.number());
        plain(&mut out, "\",\"state\":");
        string(&mut out, status.state);
        plain(&mut out, ",\"status\":{\"error_code\":");
        string(&mut out, status.error_code);
        plain(&mut out, ",\"error_message\":");
        string(&mut out, status.error_message);
        plain(&mut out, "}}");
    }
    out.push(b']');
    if let Some((name, ready)) = of_kserve {
        plain(&mut out, ",\"name\":");
        string(&mut out, name);
        plain(&mut out, if ready { ",\"ready\":true" } else { ",\"ready\":false" });
    }
    out.push(b'}');
    out.into()
}

/// The answer to `GET /v1/models` (KServe V1): the names of the models.
#[must_use]
pub fn models_json<'a>(names: impl Iterator<Item = &'a str>) -> Bytes {
    let mut out = Vec::new();
    plain(&mut out, "{\"models\":[");
    for (i, name) in names.enumerate() {
        plain(&mut out, if i > 0 { "," } else { "" });
        string(&mut out, name);
    }
    plain(&mut out, "]}");
    out.into()
}

/// The answer to `GET /v1/models/M/metadata`.
#[must_use]
pub fn metadata_json(model: &str, version: Version, signature: &Signature) -> Bytes {
    let mut out = Vec::new();
    plain(&mut out, "{\"model_spec\":{\"name\":");
    string(&mut out, model);
    plain(&mut out, ",\"signature_name\":\"\",\"version\":\"");
    integer(&mut out, version.number());
    plain(&mut out, "\"},\"metadata\":{\"signature_def\":{\"signature_def\":{\"serving_default\":{\"inputs\":");
    side(&mut out, signature.inputs());
    plain(&mut out, ",\"outputs\":");
    side(&mut out, signature.outputs());
    plain(&mut out, ",\"method_name\":\"tensorflow/serving/predict\"}}}}}");
    out.into()
}

fn side(out: &mut Vec<u8>, specs: &[TensorSpec]) {
    out.push(b'{');
    for (i, spec) in specs.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        string(out, &spec.name);
        plain(out, ":{\"dtype\":\"");
        plain(out, dtype(spec.datatype));
        plain(out, "\",\"tensor_shape\":{\"dim\":[");
        for (axis, dim) in spec.wire_shape().into_iter().enumerate() {
            plain(out, if axis > 0 { ",{\"size\":\"" } else { "{\"size\":\"" });
            integer(out, dim);
            plain(out, "\",\"name\":\"\"}");
        }
        plain(out, "],\"unknown_rank\":");
        plain(out, if spec.dims.is_none() { "true" } else { "false" });
        plain(out, "},\"name\":");
        string(out, &spec.name);
        out.push(b'}');
    }
    out.push(b'}');
}

/// `TensorFlow`'s name for a datatype.
const fn dtype(datatype: DataType) -> &'static str {
    match datatype {
        DataType::Bool => "DT_BOOL",
        DataType::Uint8 => "DT_UINT8",
        DataType::Uint16 => "DT_UINT16",
        DataType::Uint32 => "DT_UINT32",
        DataType::Uint64 => "DT_UINT64",
        DataType::Int8 => "DT_INT8",
        DataType::Int16 => "DT_INT16",
        DataType::Int32 => "DT_INT32",
        DataType::Int64 => "DT_INT64",
        DataType::Fp16 => "DT_HALF",
        DataType::Fp32 => "DT_FLOAT",
        DataType::Fp64 => "DT_DOUBLE",
        DataType::Bytes => "DT_STRING",
    }
}
