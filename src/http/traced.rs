//! What a traced request tells about its protocol, its version and its answer. Nothing here runs for a request that is not traced.

use super::answer::{Dialect, HttpResponse};
use super::data_plane::DataPlane;
use super::grpc;
use crate::model::{Failure, RequestId};
use crate::registry::Served;
use crate::serve::RunOutput;
use crate::traces::{Call, Outcome, Run, Trace};
use http::Version;
use http::header::{HOST, HeaderName, HeaderValue, USER_AGENT};
use http::request::Parts;
use std::net::IpAddr;
use std::time::Instant;

/// The span of this server, for the caller (<https://www.w3.org/TR/trace-context-2/#traceresponse-header>).
const TRACERESPONSE: HeaderName = HeaderName::from_static("traceresponse");

/// The most bytes that are kept of a text from a client.
const MOST: usize = 256;

/// Begins the trace of a prediction whose headers were read at `received`, if it is traced.
pub(super) fn begin(plane: &DataPlane, parts: &Parts, client: IpAddr, received: Instant) -> Option<Trace> {
    let mut trace = plane.traces.begin(&parts.headers, received)?;
    trace.called(call(parts), client);
    Some(trace)
}

/// Notes why the request fails.
pub(super) fn failed(trace: &mut Option<Trace>, failure: &Failure) {
    if let Some(trace) = trace {
        trace.failed(failure.code);
    }
}

/// The body had been read at this time.
pub(super) fn read(trace: &mut Option<Trace>, at: Instant) {
    if let Some(trace) = trace {
        trace.read(at);
    }
}

/// The run has ended now.
pub(super) fn ran(trace: &mut Trace, output: &RunOutput) {
    let RunOutput { queue, infer, batch_rows, requests, .. } = *output;
    trace.ran(Run { ended: Instant::now(), queue, infer, batch_rows, requests });
}

/// The version that answers. Its latency histogram gets the trace as an exemplar.
pub(super) fn served(trace: &mut Option<Trace>, served: &Served, fallback: Option<&'static str>, started: Instant) {
    let Some(trace) = trace else { return };
    trace.served_by(served.loaded.model.as_str(), &served.version_text, served.arm(), fallback);
    served.metrics.exemplar(trace.failure(), started.elapsed(), trace.id());
}

/// The answer is ready. It names the span.
pub(super) fn end(mut trace: Trace, dialect: Dialect, id: &RequestId, response: &mut HttpResponse) {
    let outcome = match dialect {
        Dialect::Http | Dialect::Invocations => {
            let status = response.status();
            Outcome { status: status.as_u16(), is_error: status.is_server_error() }
        }
        Dialect::Grpc => grpc::outcome(trace.failure()),
    };
    trace.answered(id.as_str(), outcome);
    if let Ok(context) = HeaderValue::from_str(&trace.context()) {
        response.headers_mut().insert(TRACERESPONSE, context);
    }
}

fn call(parts: &Parts) -> Call {
    let text = |name| parts.headers.get(name).and_then(text_of);
    // HTTP/2 has the host in its target.
    let host = text(HOST).or_else(|| parts.uri.authority().map(|authority| cut(authority.as_str())));
    let user_agent = text(USER_AGENT);
    let path = parts.uri.path();
    if grpc::is_call(&parts.headers) {
        let (service, method) = path.trim_start_matches('/').split_once('/').unwrap_or((path, ""));
        return Call::Grpc { service: cut(service), method: cut(method), host, user_agent };
    }
    let protocol = match parts.version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        _ => "1.1",
    };
    let method = parts.method.as_str().to_owned();
    Call::Http { method, path: cut(path), route: cut(&route(path)), protocol, host, user_agent }
}

/// The path with names in the place of values, so that there are few different ones.
fn route(path: &str) -> String {
    let mut after = "";
    let parts = path.split('/').map(|part| {
        let (value, verb) = part.find(':').map_or((part, ""), |at| part.split_at(at));
        // A value is no word of the path, whatever it says.
        let (name, word) = match after {
            "models" => ("{model}", ""),
            "versions" => ("{version}", ""),
            "labels" => ("{label}", ""),
            _ => (value, part),
        };
        after = word;
        format!("{name}{verb}")
    });
    parts.collect::<Vec<_>>().join("/")
}

fn text_of(value: &HeaderValue) -> Option<String> {
    value.to_str().ok().map(cut)
}

fn cut(text: &str) -> String {
    text[..text.floor_char_boundary(MOST)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_has_names_in_the_place_of_values() {
        for (path, expected) in [
            ("/v2/models/iris/infer", "/v2/models/{model}/infer"),
            ("/v2/models/iris/versions/3/infer", "/v2/models/{model}/versions/{version}/infer"),
            ("/v1/models/iris:predict", "/v1/models/{model}:predict"),
            ("/v1/models/iris/labels/best:predict", "/v1/models/{model}/labels/{label}:predict"),
            ("/v2/models/models/infer", "/v2/models/{model}/infer"),
            ("/invocations", "/invocations"),
        ] {
            assert_eq!(route(path), expected, "{path}");
        }
    }
}
