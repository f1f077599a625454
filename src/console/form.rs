//! The fields of a form that was sent: read within a time and a size, so that nobody holds a connection with a body that does not end.

use super::api::Problem;
use super::{Console, Fields, NoPage};
use axum::extract::{Form, FromRequest, Request};
use axum::http::StatusCode;
use std::sync::Arc;
use std::time::Duration;

/// Of a person who may see a page: the whole traffic document may be in a form.
const MOST: usize = 2 << 20;
const LONGEST: Duration = Duration::from_secs(30);
/// Of anybody: a token has at most 16 KiB.
const MOST_OF_ANYBODY: usize = 64 << 10;
const LONGEST_OF_ANYBODY: Duration = Duration::from_secs(5);
/// Forms of anybody that are read at the same time. A further one is refused at once, so that strangers take no more of the connections.
pub(super) const OF_ANYBODY: usize = 16;

/// A form of a person who was let in: handlers take the [`super::Visitor`] before it.
#[derive(Debug)]
pub(super) struct Posted(pub(super) Fields);

/// A form of anybody, such as that of signing in.
#[derive(Debug)]
pub(super) struct PostedByAnybody(pub(super) Fields);

impl FromRequest<Arc<Console>> for Posted {
    type Rejection = NoPage;

    async fn from_request(request: Request, console: &Arc<Console>) -> Result<Posted, NoPage> {
        read(request, MOST, LONGEST).await.map(Posted).map_err(|problem| refused(problem, console))
    }
}

impl FromRequest<Arc<Console>> for PostedByAnybody {
    type Rejection = NoPage;

    async fn from_request(request: Request, console: &Arc<Console>) -> Result<PostedByAnybody, NoPage> {
        let Ok(_place) = console.forms.try_acquire() else {
            let words = "other forms are being received, as many as may be; try again in some seconds";
            return Err(refused(Problem::of(StatusCode::TOO_MANY_REQUESTS, words), console));
        };
        let read = read(request, MOST_OF_ANYBODY, LONGEST_OF_ANYBODY).await;
        read.map(PostedByAnybody).map_err(|problem| refused(problem, console))
    }
}

fn refused(problem: Problem, console: &Console) -> NoPage {
    NoPage::Refused { problem, who: String::new(), fleet: console.fleet }
}

pub(super) async fn read(request: Request, most: usize, longest: Duration) -> Result<Fields, Problem> {
    let (parts, body) = request.into_parts();
    let bytes = match tokio::time::timeout(longest, axum::body::to_bytes(body, most)).await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(error)) => {
            // The limit is an error of the body like others.
            let words = format!("the form cannot be read: expected at most {most} bytes; {error}");
            return Err(Problem::of(StatusCode::PAYLOAD_TOO_LARGE, &words));
        }
        Err(_) => {
            let words = format!("the form did not arrive within {} s", longest.as_secs());
            return Err(Problem::of(StatusCode::REQUEST_TIMEOUT, &words));
        }
    };
    let request = Request::from_parts(parts, bytes.into());
    let form = Form::<Fields>::from_request(request, &()).await;
    form.map(|Form(fields)| fields).map_err(|wrong| Problem::of(wrong.status(), &wrong.body_text()))
}
