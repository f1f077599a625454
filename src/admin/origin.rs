//! Pages in a browser may not change anything.

use super::refused::Refused;
use crate::model::{Code, Failure};
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::header::ORIGIN;
use http::{Method, Uri};

/// The plane listens on loopback and asks for no token, and any web page can have a browser there send a `POST`. Browsers put
/// the page's origin on such requests and nothing else does, so a foreign origin is refused. What only reads is let through:
/// a page cannot read the answer.
pub(super) async fn check(request: Request, next: Next) -> Response {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    match request.headers().get(ORIGIN) {
        Some(origin) if !reads && !is_loopback(origin.as_bytes()) => {
            let words = "this request comes from a web page of another origin, and such may not change anything here";
            Refused::from(Failure::new(Code::Forbidden, words)).into_response()
        }
        _ => next.run(request).await,
    }
}

/// A page served from this machine itself.
fn is_loopback(origin: &[u8]) -> bool {
    let Some(uri) = std::str::from_utf8(origin).ok().and_then(|text| text.parse::<Uri>().ok()) else { return false };
    matches!(uri.host(), Some("localhost" | "127.0.0.1" | "[::1]"))
}
