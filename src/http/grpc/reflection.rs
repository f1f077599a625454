//! Server reflection, versions 1 and 1 alpha, by `tonic-reflection`.

use super::super::answer::{self, Dialect, HttpResponse};
use super::super::answer_body::AnswerBody;
use super::super::data_plane::DataPlane;
use super::messages::{Messages, Sender};
use super::{Asked, Call, set_headers};
use crate::codec::grpc::{DESCRIPTORS, frame};
use crate::model::{Code, Failure, RequestId};
use bytes::{Bytes, BytesMut};
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use std::sync::Arc;
use std::time::Duration;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic_reflection::server::Builder;

/// The most bytes of a message: it holds a name.
const MOST: usize = 64 << 10;
/// The longest time of a call. Clients ask for what they need and end it.
const MOST_TIME: Duration = Duration::from_mins(1);

/// Answers a call of reflection.
pub(super) async fn open(plane: &Arc<DataPlane>, call: Call, asked: Asked<'_>) -> HttpResponse {
    let id = answer::caller_id(&asked.parts.headers).unwrap_or_else(RequestId::generate);
    let mut response = attempt(plane, call, asked).await.unwrap_or_else(|failure| {
        plane.count_refusal(failure.code);
        Dialect::Grpc.error(&failure)
    });
    answer::set_request_id(response.headers_mut(), &id);
    response
}

async fn attempt(plane: &Arc<DataPlane>, call: Call, asked: Asked<'_>) -> Result<HttpResponse, Failure> {
    let Asked { caller, parts, incoming, .. } = asked;
    let held = plane.streams.enter(caller.address)?;
    let mut request = Request::new(incoming);
    *request.headers_mut() = parts.headers.clone();
    *request.method_mut() = parts.method.clone();
    *request.uri_mut() = parts.uri.clone();
    let answered = serve(call, request).await?;
    let (answer_parts, mut body) = answered.into_parts();
    let stopping = Arc::clone(plane);
    let messages = Messages::new(plane, |sender| async move {
        let _held = held;
        let passing = pass(&mut body, &sender);
        match tokio::time::timeout(MOST_TIME, until_stop(&stopping, passing)).await {
            Ok(ended) => ended,
            Err(_) => Err(Failure::new(Code::DeadlineExceeded, "a call of reflection may take a minute")),
        }
    });
    let mut response = Response::new(AnswerBody::of_messages(messages));
    *response.headers_mut() = answer_parts.headers;
    set_headers(response.headers_mut());
    Ok(response)
}

/// Ends what waits when the server stops.
async fn until_stop(plane: &DataPlane, work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    tokio::select! {
        ended = work => ended,
        () = super::stream::stopped(plane) => Err(Failure::new(Code::Draining, "the server is stopping")),
    }
}

/// Passes on the messages, each whole. Their end is a status of `tonic`.
async fn pass(body: &mut Body, sender: &Sender) -> Result<(), Failure> {
    let mut partial = BytesMut::new();
    while let Some(next) = body.frame().await {
        let next = next.map_err(|status| failed(&status))?;
        match next.into_data() {
            Ok(data) => {
                partial.extend_from_slice(&data);
                while let Some(message) = whole(&mut partial)? {
                    if sender.send(message).await.is_err() {
                        return Ok(());
                    }
                }
            }
            Err(other) => {
                let trailers = other.into_trailers().unwrap_or_default();
                return match tonic::Status::from_header_map(&trailers) {
                    Some(status) if status.code() != tonic::Code::Ok => Err(failed(&status)),
                    _ => Ok(()),
                };
            }
        }
    }
    Ok(())
}

/// Takes one message with its frame.
fn whole(partial: &mut BytesMut) -> Result<Option<Bytes>, Failure> {
    let Some(head) = frame::head(partial)? else { return Ok(None) };
    let length = head.length.saturating_add(frame::HEAD);
    Ok((partial.len() >= length).then(|| partial.split_to(length).freeze()))
}

fn failed(status: &tonic::Status) -> Failure {
    let code = match status.code() {
        tonic::Code::NotFound => Code::ModelNotFound,
        tonic::Code::InvalidArgument | tonic::Code::OutOfRange => Code::InvalidRequest,
        tonic::Code::Unimplemented => Code::UnsupportedMediaType,
        tonic::Code::ResourceExhausted => Code::BodyTooLarge,
        _ => Code::Internal,
    };
    Failure::new(code, status.message())
}

/// Asks the service. Its descriptors are read for each call: a program asks once, when a person looks.
async fn serve(call: Call, request: Request<Incoming>) -> Result<Response<Body>, Failure> {
    let broken = |e: tonic_reflection::server::Error| Failure::new(Code::Internal, format!("descriptors: {e}"));
    let builder = || {
        Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let answered = if call == Call::ReflectionV1 {
        builder().build_v1().map_err(broken)?.max_decoding_message_size(MOST).call(request).await
    } else {
        builder().build_v1alpha().map_err(broken)?.max_decoding_message_size(MOST).call(request).await
    };
    answered.map_err(|never| match never {})
}
