//! The feedback endpoint: the true outcomes of earlier predictions.

use super::admission::{AdmittedBody, admit_and_read};
use super::answer::{self, Dialect, HttpResponse};
use super::data_plane::{DataPlane, RequestKind};
use super::door::Arrived;
use super::workers::LARGE;
use crate::codec::feedback;
use crate::model::Failure;
use http::StatusCode;
use jiff::Timestamp;
use std::sync::Arc;

/// Stores feedback about a model's predictions: all entries of a request or none. The answer is sent after they are on the disk,
/// or an error at the request's deadline.
pub(super) async fn feedback(plane: &Arc<DataPlane>, request: Arrived<'_>, model: &str) -> HttpResponse {
    match attempt(plane, request, model).await {
        Ok(stored) => {
            let mut response = answer::json(format!("{{\"taken\":{stored}}}"));
            *response.status_mut() = StatusCode::ACCEPTED;
            response
        }
        Err(failure) => {
            plane.count_refusal(failure.code);
            answer::error(&failure)
        }
    }
}

async fn attempt(plane: &Arc<DataPlane>, request: Arrived<'_>, model: &str) -> Result<usize, Failure> {
    let admitted = admit_and_read(plane, RequestKind::Feedback, request, None, Dialect::Http).await?;
    let AdmittedBody { _admitted, deadline, body, hold, .. } = admitted;
    let large = body.len() > LARGE;
    let decode =
        move || feedback::decode(&body, Timestamp::now().as_microsecond(), &hold).map(|entries| (entries, hold));
    let (entries, _hold) = if large { plane.workers.run(deadline, decode).await?? } else { decode()? };
    plane.gateway.record_feedback(model, &entries, deadline).await?;
    Ok(entries.len())
}
