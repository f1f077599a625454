//! The formats of a prediction: what is read before the version is known, what is decoded with its signature, and how the answer is written.

use super::answer::{self, Dialect, HttpResponse};
use super::grpc;
use crate::budget::Hold;
use crate::codec::frames::{self, FrameRequest, Media};
use crate::codec::grpc::answer::{EncodedMessage, InferForm};
use crate::codec::grpc::infer::InferCall;
use crate::codec::grpc::predict::PredictCall;
use crate::codec::grpc::{Named, Undecoded, frame};
use crate::codec::inflate::Encoding;
use crate::codec::pieces::Pieces;
use crate::codec::{self, oip, tfs};
use crate::columns::ElementNames;
use crate::model::{Answer, Code, Failure, InferenceRequest, RequestId, Signature};
use crate::serve::ActiveRequest;
use bytes::Bytes;
use http::HeaderValue;
use std::sync::Arc;

/// The protocol of a predict request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    /// Open Inference Protocol v2, JSON or binary.
    Oip,
    /// TensorFlow Serving's REST predict.
    Tfs,
    /// MLflow's and SageMaker's `/invocations`.
    Invocations(Media),
    /// Open Inference Protocol v2 over gRPC.
    GrpcInfer,
    /// The same, as one message of a stream.
    GrpcStream,
    /// TensorFlow Serving's Predict over gRPC.
    GrpcPredict,
}

impl Protocol {
    pub(super) const fn dialect(self) -> Dialect {
        match self {
            Protocol::Oip | Protocol::Tfs => Dialect::Http,
            Protocol::Invocations(_) => Dialect::Invocations,
            Protocol::GrpcInfer | Protocol::GrpcStream | Protocol::GrpcPredict => Dialect::Grpc,
        }
    }

    /// An error answer. On a stream it is a message like the others.
    pub(super) fn error(self, failure: &Failure, id: Option<&RequestId>) -> HttpResponse {
        match self {
            Protocol::GrpcStream => grpc::message(codec::grpc::answer::failed(failure, id), None),
            _ => self.dialect().error(failure),
        }
    }
}

/// A body, parsed as far as possible before the version and so the signature is known.
pub(super) enum Parsed {
    Oip(oip::OipRequest),
    /// One tensor without JSON. Its datatype is in the signature.
    OipRaw(Bytes),
    Tfs(tfs::TfsRequest),
    /// A table. The names of its columns are in the signature, and in `model.toml`.
    Frames(Box<FrameRequest>),
    GrpcInfer(Box<InferCall>),
    GrpcPredict(Box<PredictCall>),
}

/// What the encoder of the answer needs to know about the request.
pub(super) enum AnswerFormat {
    Oip(oip::AnswerForm),
    Tfs(tfs::Style),
    GrpcInfer(InferForm),
    GrpcPredict,
}

/// Parses a body as far as possible before its version is known.
///
/// # Errors
/// What is wrong with it, and for a gRPC call the model that it names.
pub(super) fn parse(
    protocol: Protocol,
    length: Option<&HeaderValue>,
    body: Bytes,
    hold: &Hold,
) -> Result<Parsed, Undecoded> {
    match protocol {
        Protocol::Tfs => Ok(tfs::parse(&body).map(Parsed::Tfs)?),
        Protocol::Invocations(media) => Ok(Parsed::Frames(Box::new(frames::parse(&body, media)?))),
        Protocol::GrpcInfer | Protocol::GrpcStream => {
            let mut call = codec::grpc::infer::decode(body, hold)?;
            call.form.in_stream = protocol == Protocol::GrpcStream;
            Ok(Parsed::GrpcInfer(Box::new(call)))
        }
        Protocol::GrpcPredict => Ok(Parsed::GrpcPredict(Box::new(codec::grpc::predict::decode(body, hold)?))),
        Protocol::Oip => {
            let length = match length {
                None => None,
                Some(value) => Some(oip::header_length(value.as_bytes(), body.len())?),
            };
            if length == Some(0) {
                return Ok(Parsed::OipRaw(body));
            }
            Ok(oip::decode_counted(&body, length, hold).map(Parsed::Oip)?)
        }
    }
}

impl Parsed {
    /// The model that a gRPC call names.
    pub(super) fn take_named(&mut self) -> Option<Named> {
        match self {
            Parsed::GrpcInfer(call) => Some(std::mem::take(&mut call.named)),
            Parsed::GrpcPredict(call) => Some(std::mem::take(&mut call.named)),
            Parsed::Oip(_) | Parsed::OipRaw(_) | Parsed::Tfs(_) | Parsed::Frames(_) => None,
        }
    }

    /// Sets the names of the elements of inputs, for a request that needs them.
    pub(super) fn set_names(&mut self, names: impl FnOnce() -> Option<Arc<ElementNames>>) {
        if let Parsed::Frames(request) = self
            && let Some(names) = names()
        {
            request.set_names(names);
        }
    }

    /// The request, where it is decoded already.
    pub(super) fn request(&self) -> Option<&InferenceRequest> {
        match self {
            Parsed::Oip(request) => Some(&request.request),
            Parsed::GrpcInfer(call) => Some(&call.request),
            Parsed::GrpcPredict(call) => Some(&call.request),
            Parsed::OipRaw(_) | Parsed::Tfs(_) | Parsed::Frames(_) => None,
        }
    }
}

/// The id in the body of a request, where it has one.
pub(super) fn id_of(parsed: &Parsed) -> Result<Option<RequestId>, Failure> {
    let Some(request) = parsed.request() else { return Ok(None) };
    let Some(text) = request.id.as_ref().filter(|id| !id.is_empty()) else { return Ok(None) };
    RequestId::from_caller(text.clone()).map(Some).map_err(|e| Failure::new(Code::InvalidRequest, format!("id: {e}")))
}

/// The request, decoded with the signature of its version.
pub(super) fn decode(
    parsed: Parsed,
    signature: &Signature,
    hold: &Hold,
) -> Result<(InferenceRequest, AnswerFormat), Failure> {
    match parsed {
        Parsed::Oip(oip::OipRequest { request, form }) => Ok((request, AnswerFormat::Oip(form))),
        Parsed::GrpcInfer(call) => Ok((call.request, AnswerFormat::GrpcInfer(call.form))),
        Parsed::GrpcPredict(call) => Ok((call.request, AnswerFormat::GrpcPredict)),
        Parsed::OipRaw(body) => {
            let oip::OipRequest { request, form } = oip::decode_raw(&body, signature, hold)?;
            Ok((request, AnswerFormat::Oip(form)))
        }
        Parsed::Tfs(parsed) => {
            let style = parsed.style();
            let request = parsed.decode(signature, hold)?;
            Ok((request, AnswerFormat::Tfs(style)))
        }
        Parsed::Frames(parsed) => {
            let (request, style) = parsed.decode(signature, hold)?;
            Ok((request, AnswerFormat::Tfs(style)))
        }
    }
}

/// Encodes an answer: a small one at once; a large one of HTTP is prepared to be encoded in pieces. `encoding`: for the answer of a gRPC call.
pub(super) fn encode(
    answer: &Answer,
    format: AnswerFormat,
    active: &ActiveRequest,
    head: &oip::AnswerHead<'_>,
    hold: &Hold,
    encoding: Option<Encoding>,
) -> Result<(HttpResponse, Option<Pieces>), Failure> {
    match format {
        AnswerFormat::GrpcInfer(form) => {
            let encoded = codec::grpc::answer::encode(answer, head, form, hold)?;
            Ok((grpc_message(active, encoded, encoding)?, None))
        }
        AnswerFormat::GrpcPredict => {
            let version = head.model_version.map(|_| active.served().loaded.version);
            let spec = codec::grpc::predict::spec(head.model_name, version);
            let encoded = codec::grpc::predict::encode(answer, &spec, hold)?;
            Ok((grpc_message(active, encoded, encoding)?, None))
        }
        AnswerFormat::Oip(form) => encode_oip(answer, form, active, head, hold),
        AnswerFormat::Tfs(style) => encode_tfs(answer, style, active, hold),
    }
}

/// The answer of a gRPC call. Its memory is counted already.
fn grpc_message(
    active: &ActiveRequest,
    encoded: EncodedMessage,
    encoding: Option<Encoding>,
) -> Result<HttpResponse, Failure> {
    active.nonfinite(encoded.nonfinite);
    Ok(grpc::message(frame::finish(encoded.framed, encoding)?, encoding))
}

/// Encodes a small answer. Prepares a large one to be encoded in pieces.
fn encode_oip(
    answer: &Answer,
    form: oip::AnswerForm,
    active: &ActiveRequest,
    head: &oip::AnswerHead<'_>,
    hold: &Hold,
) -> Result<(HttpResponse, Option<Pieces>), Failure> {
    let (body, json_length, nonfinite, pieces) = if oip::is_large(answer, head, &form) {
        let large = oip::encode_in_pieces(answer.clone(), head, form, hold)?;
        (Bytes::new(), large.json_length, large.nonfinite, Some(large.pieces))
    } else {
        let encoded = oip::encode(answer, head, &form)?;
        (encoded.body, encoded.json_length, encoded.nonfinite, None)
    };
    active.nonfinite(nonfinite);
    hold.grow(body.len())?;
    Ok((answer::prediction(body.into(), json_length), pieces))
}

/// The same for TensorFlow Serving's REST predict, and for MLflow's answers.
fn encode_tfs(
    answer: &Answer,
    style: tfs::Style,
    active: &ActiveRequest,
    hold: &Hold,
) -> Result<(HttpResponse, Option<Pieces>), Failure> {
    let (body, nonfinite, pieces) = if tfs::is_large(answer, style) {
        let (pieces, nonfinite) = tfs::predict_in_pieces(answer.clone(), style)?;
        (Bytes::new(), nonfinite, Some(pieces))
    } else {
        let encoded = tfs::encode_predict(answer, style)?;
        (encoded.body, encoded.nonfinite, None)
    };
    active.nonfinite(nonfinite);
    hold.grow(body.len())?;
    Ok((answer::prediction(body.into(), None), pieces))
}
