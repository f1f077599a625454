//! What really happened, told about predictions.

use super::answer::{self, HttpResponse};
use super::door::DataPlane;
use super::predict::{self, Taken};
use crate::codec::feedback;
use crate::model::Failure;
use http::{HeaderMap, StatusCode};
use hyper::body::Incoming;
use jiff::Timestamp;
use std::sync::Arc;
use std::time::Instant;

/// Takes feedback about a model's predictions: all of a request's entries or none, and on the disk before it says so.
pub(super) async fn feedback(
    door: &Arc<DataPlane>,
    headers: &HeaderMap,
    body: Incoming,
    model: &str,
    received: Instant,
) -> HttpResponse {
    match attempt(door, headers, body, model, received).await {
        Ok(taken) => {
            let mut response = answer::json(format!("{{\"taken\":{taken}}}"));
            *response.status_mut() = StatusCode::ACCEPTED;
            response
        }
        Err(failure) => {
            door.count_refusal(failure.code);
            answer::failed(&failure)
        }
    }
}

async fn attempt(
    door: &Arc<DataPlane>,
    headers: &HeaderMap,
    body: Incoming,
    model: &str,
    received: Instant,
) -> Result<usize, Failure> {
    let Taken { _permit, body, .. } = predict::take_in(door, headers, body, received).await?;
    let entries = feedback::decode(&body, Timestamp::now().as_microsecond())?;
    door.gateway.told(model, &entries).await?;
    Ok(entries.len())
}
