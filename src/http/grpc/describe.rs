//! Metadata and status of models, as both protocols have them.

use super::super::data_plane::DataPlane;
use super::super::endpoint::{Target, VersionPart};
use super::super::info::{callable, platform, status_rows, version_of, with_entry};
use super::target;
use crate::access::Identity;
use crate::codec::grpc::generated::google::protobuf::Any;
use crate::codec::grpc::generated::inference::{ModelMetadataResponse, model_metadata_response::TensorMetadata};
use crate::codec::grpc::generated::tensorflow::serving::model_version_status::State;
use crate::codec::grpc::generated::tensorflow::serving::{
    GetModelMetadataRequest, GetModelMetadataResponse, GetModelStatusRequest, GetModelStatusResponse, ModelSpec,
    ModelVersionStatus, SignatureDefMap, StatusProto,
};
use crate::codec::grpc::generated::tensorflow::{
    SignatureDef, TensorInfo, TensorShapeProto, error, tensor_info::Encoding, tensor_shape_proto::Dim,
};
use crate::codec::grpc::predict::{SIGNATURE, named, spec, tf_type};
use crate::model::{Code, Failure, TensorSpec, quoted};
use prost::{Message, Name};
use std::collections::BTreeMap;

/// What only this server tells: inputs that a request may leave out.
const OPTIONAL_INPUTS: &str = "optional_inputs";

pub(super) fn model_metadata(plane: &DataPlane, target: &Target<'_>) -> Result<ModelMetadataResponse, Failure> {
    with_entry(plane, target, |entry| {
        let served = version_of(entry, &target.version)?;
        let facts = &served.loaded.facts;
        let side = |specs: &[TensorSpec]| specs.iter().map(tensor_metadata).collect();
        let optional = facts.signature.optional_inputs();
        let mut properties = BTreeMap::new();
        if !optional.is_empty() {
            let names = optional.iter().map(|spec| &*spec.name).collect::<Vec<_>>().join(",");
            properties.insert(OPTIONAL_INPUTS.to_owned(), names);
        }
        Ok(ModelMetadataResponse {
            name: entry.name().to_string(),
            versions: callable(entry, &served, &target.version).iter().map(ToString::to_string).collect(),
            platform: platform(facts.engine).to_owned(),
            inputs: side(facts.signature.inputs()),
            outputs: side(facts.signature.outputs()),
            properties,
        })
    })
}

fn tensor_metadata(spec: &TensorSpec) -> TensorMetadata {
    TensorMetadata {
        name: spec.name.to_string(),
        datatype: spec.datatype.as_str().to_owned(),
        shape: spec.wire_shape(),
    }
}

/// The target of a specification.
fn of_spec(
    plane: &DataPlane,
    identity: Option<&Identity>,
    spec: Option<ModelSpec>,
) -> Result<Target<'static>, Failure> {
    let spec = spec.ok_or_else(|| Failure::new(Code::InvalidRequest, "model_spec is missing: it names the model"))?;
    target(plane, identity, named(spec).0)
}

/// # Errors
/// `INVALID_REQUEST` for a field of metadata other than `signature_def`, the only one there is.
pub(super) fn tf_metadata(
    plane: &DataPlane,
    identity: Option<&Identity>,
    request: GetModelMetadataRequest,
) -> Result<GetModelMetadataResponse, Failure> {
    const FIELD: &str = "signature_def";
    let target = of_spec(plane, identity, request.model_spec)?;
    with_entry(plane, &target, |entry| {
        let served = version_of(entry, &target.version)?;
        match &request.metadata_field[..] {
            [] => {
                return Err(Failure::new(Code::InvalidRequest, format!("metadata_field is empty: expected {FIELD:?}")));
            }
            fields => {
                if let Some(other) = fields.iter().find(|field| *field != FIELD) {
                    let message = format!("metadata_field is expected to be {FIELD:?}, got {}", quoted(other));
                    return Err(Failure::new(Code::InvalidRequest, message));
                }
            }
        }
        let signature = &served.loaded.facts.signature;
        let side = |specs: &[TensorSpec]| specs.iter().map(|spec| (spec.name.to_string(), tensor_info(spec))).collect();
        let definition = SignatureDef {
            inputs: side(signature.inputs()),
            outputs: side(signature.outputs()),
            method_name: "tensorflow/serving/predict".to_owned(),
        };
        let map = SignatureDefMap { signature_def: BTreeMap::from([(SIGNATURE.to_owned(), definition)]) };
        // The form that clients unpack.
        let any = Any {
            type_url: format!("type.googleapis.com{}", SignatureDefMap::type_url()),
            value: map.encode_to_vec().into(),
        };
        let mut model_spec = spec(entry.name().as_str(), Some(served.loaded.version));
        // As TensorFlow Serving answers: the metadata is that of all signatures.
        model_spec.signature_name.clear();
        Ok(GetModelMetadataResponse {
            model_spec: Some(model_spec),
            metadata: BTreeMap::from([(FIELD.to_owned(), any)]),
        })
    })
}

fn tensor_info(spec: &TensorSpec) -> TensorInfo {
    let dim = |size| Dim { size, name: String::new() };
    TensorInfo {
        encoding: Some(Encoding::Name(spec.name.to_string())),
        dtype: tf_type(spec.datatype).into(),
        tensor_shape: Some(TensorShapeProto {
            dim: spec.wire_shape().into_iter().map(dim).collect(),
            unknown_rank: spec.dims.is_none(),
        }),
    }
}

pub(super) fn tf_status(
    plane: &DataPlane,
    identity: Option<&Identity>,
    request: GetModelStatusRequest,
) -> Result<GetModelStatusResponse, Failure> {
    let target = of_spec(plane, identity, request.model_spec)?;
    with_entry(plane, &target, |entry| {
        let rows = status_rows(entry, &target.version)?;
        let model_version_status = rows
            .iter()
            .map(|row| ModelVersionStatus {
                version: i64::try_from(row.version.number()).unwrap_or(i64::MAX),
                state: State::from_str_name(row.state).unwrap_or(State::Unknown).into(),
                status: Some(StatusProto {
                    error_code: error::Code::from_str_name(row.error_code).unwrap_or(error::Code::Unknown).into(),
                    error_message: row.error_message.to_owned(),
                }),
            })
            .collect();
        Ok(GetModelStatusResponse { model_version_status })
    })
}

/// The target of a model without a version.
pub(super) fn any_version(model: &str) -> Target<'_> {
    Target { model: model.into(), version: VersionPart::Any }
}
