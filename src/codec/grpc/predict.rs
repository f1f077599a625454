//! `tensorflow.serving.PredictRequest` and its response.

use super::answer::EncodedMessage;
use super::frame::HEAD;
use super::generated::google::protobuf::Int64Value;
use super::generated::tensorflow::serving::{ModelSpec, model_spec::VersionChoice};
pub(crate) use super::tensor_proto::tf_type;
use super::tensor_proto::{self, Lengths, encode_entry, entry_len};
use super::values::{bytes_len, write_bytes};
use super::wire::{Fields, malformed};
use super::{Named, NamedVersion, Undecoded};
use crate::budget::Hold;
use crate::codec::oip::STRING;
use crate::model::{Answer, Complaints, Failure, InferenceRequest, NamedTensor, Version, quoted};
use bytes::Bytes;
use prost::Message;

/// The only signature of a model.
pub(crate) const SIGNATURE: &str = "serving_default";

/// A decoded request.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PredictCall {
    pub(crate) named: Named,
    pub(crate) request: InferenceRequest,
}

/// Decodes a message, and counts the memory of the result.
///
/// # Errors
/// `INVALID_REQUEST` or `INVALID_TENSOR`, with the input, dimension or element that is wrong. Those of [`Hold::grow`].
pub(crate) fn decode(message: Bytes, hold: &Hold) -> Result<PredictCall, Undecoded> {
    let mut named = None;
    match read(message, &mut named, hold) {
        Ok(request) => Ok(PredictCall { named: named.unwrap_or_default(), request }),
        Err(failure) => Err(Undecoded { named: named.map(Box::new), failure }),
    }
}

fn read(message: Bytes, named: &mut Option<Named>, hold: &Hold) -> Result<InferenceRequest, Failure> {
    let mut complaints = Complaints::default();
    let mut request = InferenceRequest::default();
    let mut filter = Vec::new();
    let mut fields = Fields::new(message);
    while let Some((number, value)) = fields.next()? {
        match number {
            1 => *named = Some(model(value.bytes("model_spec")?, &mut complaints)?),
            2 if complaints.is_full() => {}
            2 => {
                hold.grow(size_of::<NamedTensor>() + STRING)?;
                let (name, tensor) = entry(value.bytes("inputs")?)?;
                hold.grow(name.len())?;
                let mut of_input = Complaints::default();
                let decoded = tensor_proto::decode(tensor, &mut of_input, hold)
                    .map_err(|failure| failure.within(&format!("input {}: ", quoted(&name))))?;
                complaints.absorb(of_input, &format!("input {}", quoted(&name)));
                if let Some(tensor) = decoded {
                    request.inputs.push(NamedTensor { name, tensor });
                }
            }
            3 => {
                hold.grow(size_of::<String>() + STRING)?;
                let name = value.string("output_filter")?;
                hold.grow(name.len())?;
                filter.push(name);
            }
            _ => {}
        }
    }
    if named.is_none() {
        complaints.request("model_spec is missing: it names the model");
    }
    request.outputs = Some(filter).filter(|names| !names.is_empty());
    complaints.into_result(request)
}

/// An entry of `inputs`: a name and a tensor.
fn entry(message: Bytes) -> Result<(String, Bytes), Failure> {
    let (mut name, mut tensor) = (String::new(), Bytes::new());
    let mut fields = Fields::new(message);
    while let Some((number, value)) = fields.next()? {
        match number {
            1 => name = value.string("the name of an input")?,
            2 => tensor = value.bytes("the tensor of an input")?,
            _ => {}
        }
    }
    Ok((name, tensor))
}

fn model(message: Bytes, complaints: &mut Complaints) -> Result<Named, Failure> {
    let spec = ModelSpec::decode(message).map_err(|e| malformed(format!("model_spec: {e}")))?;
    let (named, signature) = named(spec);
    if let Err(problem) = check_signature(&signature) {
        complaints.request(problem);
    }
    Ok(named)
}

/// The model that a specification names, and its signature.
pub(crate) fn named(spec: ModelSpec) -> (Named, String) {
    let version = match spec.version_choice {
        // 0 is no version here. OpenVINO's clients send it for "the default version".
        None | Some(VersionChoice::Version(Int64Value { value: 0 })) => NamedVersion::Any,
        Some(VersionChoice::Version(Int64Value { value })) => NamedVersion::Version(value.to_string()),
        Some(VersionChoice::VersionLabel(label)) => NamedVersion::Label(label),
    };
    (Named { model: spec.name, version }, spec.signature_name)
}

/// Checks that a request asks for the only signature. The error is a complaint.
pub(crate) fn check_signature(name: &str) -> Result<(), String> {
    match name {
        "" | SIGNATURE => Ok(()),
        other => Err(format!("signature_name is expected to be {SIGNATURE:?} or absent, got {}", quoted(other))),
    }
}

/// A specification for an answer. `version` is absent where the configuration hides it.
pub(crate) fn spec(model: &str, version: Option<Version>) -> ModelSpec {
    ModelSpec {
        name: model.to_owned(),
        signature_name: SIGNATURE.to_owned(),
        version_choice: version.map(|version| {
            let value = i64::try_from(version.number()).unwrap_or(i64::MAX);
            VersionChoice::Version(Int64Value { value })
        }),
    }
}

/// Encodes an answer. `hold` counts the message.
///
/// # Errors
/// Those of [`Hold::room`].
pub(crate) fn encode(answer: &Answer, spec: &ModelSpec, hold: &Hold) -> Result<EncodedMessage, Failure> {
    let outputs: Vec<(&str, _, Lengths)> =
        answer.outputs.iter().map(|(name, tensor)| (&**name, tensor, tensor_proto::lengths(tensor))).collect();
    let spec = spec.encode_to_vec();
    let entries: usize = outputs.iter().map(|(name, _, lengths)| bytes_len(1, entry_len(name, *lengths))).sum();
    let whole = HEAD + entries + bytes_len(2, spec.len());
    let mut out = Vec::new();
    hold.room(&mut out, whole, whole)?;
    out.extend_from_slice(&[0; HEAD]);
    for (name, tensor, lengths) in outputs {
        encode_entry(1, name, tensor, lengths, &mut out);
    }
    write_bytes(2, &spec, &mut out);
    debug_assert_eq!(out.len(), whole, "the length was computed before");
    let nonfinite = answer.outputs.iter().map(|(_, tensor)| tensor.data().count_nonfinite()).sum();
    Ok(EncodedMessage { framed: out, nonfinite })
}
