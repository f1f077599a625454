//! Requests of the clients, whose answers have a limit in bytes: all but an object's own bytes are kept as a whole.

use http::Method;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody, HttpService,
    ReqwestConnector,
};
use std::io;
use std::pin::Pin;

/// Makes the clients of buckets. Those of the crate `object_store` read a listing, the answer to a change and what comes with a failure to its end; here all
/// have a limit.
#[derive(Debug)]
pub(crate) struct Bounded;

#[derive(Debug)]
struct BoundedService(HttpClient);

/// The largest page of a listing: a thousand names of a kilobyte, each with what belongs to it.
const MAX_PAGE: usize = 16 << 20;
/// The largest other answer, such as the one that begins an upload in parts.
const MAX_ANSWER: usize = 1 << 20;

impl HttpConnector for Bounded {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(BoundedService(ReqwestConnector::default().connect(options)?)))
    }
}

impl HttpService for BoundedService {
    fn call<'a, 'b>(
        &'a self,
        request: HttpRequest,
    ) -> Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(async move {
            // S3 and Google's storage, and Azure's.
            let is_listing =
                request.uri().query().is_some_and(|q| q.contains("list-type=2") || q.contains("comp=list"));
            let is_object = request.method() == Method::GET && !is_listing;
            let response = self.0.execute(request).await?;
            if response.status().is_success() && is_object {
                return Ok(response);
            }
            let most = if is_listing { MAX_PAGE } else { MAX_ANSWER };
            Ok(response
                .map(|body| HttpResponseBody::new(Limited::new(body, most).map_err(move |e| too_large(e, most)))))
        })
    }
}

fn too_large(error: Box<dyn std::error::Error + Send + Sync>, most: usize) -> HttpError {
    match error.downcast::<HttpError>() {
        Ok(error) => *error,
        Err(error) if error.is::<LengthLimitError>() => {
            let what = if most == MAX_PAGE { "a page of its listing" } else { "its answer" };
            let words = format!("{what} is larger than {most} bytes");
            HttpError::new(HttpErrorKind::Decode, io::Error::other(words))
        }
        Err(error) => HttpError::new_boxed(HttpErrorKind::Unknown, error),
    }
}
