//! One request, from its head to its answer.

use super::answer::{self, HttpResponse};
use super::door::DataPlane;
use super::endpoint::{Endpoint, Refused};
use super::{feedback, info, predict};
use crate::model::RequestId;
use http::header::{ALLOW, CONNECTION, HeaderValue};
use http::{HeaderMap, Request, Version};
use hyper::body::Incoming;
use std::sync::Arc;
use std::time::Instant;

/// Answers one request; while the server closes, with word that the connection ends with it.
pub(super) async fn handle(door: Arc<DataPlane>, request: Request<Incoming>) -> HttpResponse {
    let is_http1 = request.version() < Version::HTTP_2;
    let mut response = answer(&door, request).await;
    // HTTP/2 has no such header: its connections are told by a frame.
    if is_http1 && door.is_closing() {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

async fn answer(door: &Arc<DataPlane>, request: Request<Incoming>) -> HttpResponse {
    let received = Instant::now();
    let (parts, body) = request.into_parts();
    let parsed = door
        .check_head(parts.version, &parts.headers)
        .map_err(Refused::from)
        .and_then(|()| Endpoint::parse(&parts.method, parts.uri.path()));
    match parsed {
        Ok(Endpoint::Infer(target)) => {
            predict::predict(door, &parts.headers, body, predict::Wire::Oip, &target, received).await
        }
        Ok(Endpoint::TfsPredict(target)) => {
            predict::predict(door, &parts.headers, body, predict::Wire::Tfs, &target, received).await
        }
        Ok(Endpoint::Feedback(model)) => {
            let mut response = feedback::feedback(door, &parts.headers, body, &model, received).await;
            answer::request_id(response.headers_mut(), &id_or_new(&parts.headers));
            response
        }
        Ok(endpoint) => {
            let mut response = info::answer(door, &endpoint).unwrap_or_else(|failure| answer::failed(&failure));
            answer::request_id(response.headers_mut(), &id_or_new(&parts.headers));
            response
        }
        Err(Refused { failure, allow }) => {
            door.count_refusal(failure.code);
            super::body::discard(&parts.headers, body).await;
            let mut response = answer::failed(&failure);
            if let Some(allow) = allow {
                response.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
            }
            answer::request_id(response.headers_mut(), &id_or_new(&parts.headers));
            response
        }
    }
}

fn id_or_new(headers: &HeaderMap) -> RequestId {
    answer::caller_id(headers).unwrap_or_else(RequestId::generate)
}
