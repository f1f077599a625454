//! Error responses.

use crate::http::problem;
use crate::model::{Code, Failure};
use axum::body::Body;
use axum::response::{IntoResponse, Response};

/// A failure as a response. Details that only operators of the server may see are logged.
#[derive(Debug)]
pub(super) struct ErrorResponse(Failure);

impl From<Failure> for ErrorResponse {
    fn from(failure: Failure) -> ErrorResponse {
        ErrorResponse(failure)
    }
}

impl IntoResponse for ErrorResponse {
    fn into_response(self) -> Response {
        if let Some(internal) = &self.0.internal {
            tracing::warn!(code = %self.0.code, internal, "admin request failed: {}", self.0.message);
        }
        problem::response(&self.0).map(Body::from)
    }
}

/// The response to a path with invalid escapes.
pub(super) fn invalid_path() -> Failure {
    Failure::new(Code::NotFound, "the path is not valid UTF-8")
}
