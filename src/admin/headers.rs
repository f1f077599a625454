//! What a browser is told with every answer.

use axum::response::Response;
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, HeaderName, HeaderValue, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
    X_FRAME_OPTIONS,
};

/// Each header with its value and reason. A handler that sets one of them keeps its own.
const HEADERS: [(HeaderName, HeaderValue); 6] = [
    // An answer is data: nothing in it is run, loaded, framed or submitted, even if a browser takes it for a page.
    (
        CONTENT_SECURITY_POLICY,
        HeaderValue::from_static("default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"),
    ),
    // The content type is what it says.
    (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    // For browsers that do not know frame-ancestors.
    (X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
    // Names of models do not leave with a link.
    (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    // No other site may load an answer as an image or a script.
    (HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin")),
    // An answer may have a token, and depends on who asks.
    (CACHE_CONTROL, HeaderValue::from_static("no-store")),
];

/// Adds them to an answer, errors included. There are no CORS headers: no other site reads an answer.
pub(super) async fn add(mut response: Response) -> Response {
    for (name, value) in HEADERS {
        response.headers_mut().entry(name).or_insert(value);
    }
    response
}
