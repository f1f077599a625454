//! How this plane says no.

use crate::http::problem;
use crate::model::Failure;
use axum::body::Body;
use axum::response::{IntoResponse, Response};

/// A failure as this plane's answer; what only the log may say goes there.
#[derive(Debug)]
pub(super) struct Refused(Failure);

impl From<Failure> for Refused {
    fn from(failure: Failure) -> Refused {
        Refused(failure)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        if let Some(internal) = &self.0.internal {
            tracing::warn!(code = %self.0.code, internal, "admin request refused: {}", self.0.message);
        }
        problem::response(&self.0).map(Body::from)
    }
}
