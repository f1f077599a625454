//! JSON request bodies: received with limits, read member by member.

use super::error::ErrorResponse;
use super::json::{self, StrictJson};
use crate::model::{Code, Failure, REASON, Version, is_reason, quoted};
use axum::body::Body;
use axum::extract::{FromRequest, Request};
use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, Method};
use http_body_util::BodyExt;
use serde_json::{Map, Value};
use std::time::Duration;

/// The largest JSON body. A traffic document with hundreds of rules has tens of kilobytes.
pub(super) const MAX_JSON: usize = 1 << 20;

/// The longest wait for a whole JSON body, and for the next piece of a pushed file.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// A JSON body; an empty body and `null` are `None`. With POST, the content type is JSON or absent: that is what a form of a web page cannot
/// send. A web page cannot send other methods without asking first, and `curl -d` and other clients name a wrong type.
#[derive(Debug)]
pub(super) struct JsonBody {
    pub(super) value: Option<Value>,
    /// One for each duplicate member.
    pub(super) complaints: Vec<String>,
}

impl<S: Send + Sync> FromRequest<S> for JsonBody {
    type Rejection = ErrorResponse;

    async fn from_request(request: Request, _: &S) -> Result<JsonBody, ErrorResponse> {
        refuse_encoding(request.headers())?;
        let typed = match *request.method() {
            Method::POST => check_media_type(request.headers(), is_json, "application/json"),
            _ => Ok(()),
        };
        let bytes =
            tokio::time::timeout(BODY_TIMEOUT, receive(request.into_body())).await.map_err(|_| timed_out())??;
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Ok(JsonBody { value: None, complaints: Vec::new() });
        }
        typed?;
        let StrictJson { value, complaints } = json::parse(&bytes)?;
        Ok(JsonBody { value: Some(value).filter(|value| !value.is_null()), complaints })
    }
}

async fn receive(mut body: Body) -> Result<BytesMut, Failure> {
    let mut bytes = BytesMut::new();
    while let Some(piece) = next_piece(&mut body).await? {
        if bytes.len() + piece.len() > MAX_JSON {
            let message = format!("the body is larger than the limit of {MAX_JSON} bytes");
            return Err(Failure::new(Code::BodyTooLarge, message));
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

/// Refuses compressed bodies.
pub(super) fn refuse_encoding(headers: &HeaderMap) -> Result<(), Failure> {
    match headers.get(CONTENT_ENCODING) {
        Some(encoding) if !encoding.as_bytes().eq_ignore_ascii_case(b"identity") => {
            let message =
                format!("content-encoding {encoding:?} is not supported on the admin port; send the body as it is");
            Err(Failure::new(Code::UnsupportedMediaType, message))
        }
        _ => Ok(()),
    }
}

fn is_json(media: &str) -> bool {
    media.eq_ignore_ascii_case("application/json")
        || (media.len() > 5 && media.is_ascii() && media[media.len() - 5..].eq_ignore_ascii_case("+json"))
}

/// Refuses a body of another type. Absent is accepted: programs leave it out, and a web page's form cannot.
pub(super) fn check_media_type(
    headers: &HeaderMap,
    accepts: impl Fn(&str) -> bool,
    expected: &str,
) -> Result<(), Failure> {
    let mut given = headers.get_all(CONTENT_TYPE).iter();
    let Some(value) = given.next() else { return Ok(()) };
    let media = value.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim();
    if accepts(media) && given.next().is_none() {
        return Ok(());
    }
    let message =
        format!("content-type: expected {expected} (curl: -H 'content-type: {expected}'), got {}", quoted(media));
    Err(Failure::new(Code::UnsupportedMediaType, message))
}

/// The next piece of a body; `None` at its end.
pub(super) async fn next_piece(body: &mut Body) -> Result<Option<Bytes>, Failure> {
    loop {
        match tokio::time::timeout(BODY_TIMEOUT, body.frame()).await.map_err(|_| timed_out())? {
            None => return Ok(None),
            Some(Err(e)) => {
                let message = "the connection ended before the body was complete";
                return Err(Failure::new(Code::InvalidRequest, message).with_internal(e.to_string()));
            }
            Some(Ok(frame)) => {
                if let Ok(piece) = frame.into_data() {
                    return Ok(Some(piece));
                }
            }
        }
    }
}

fn timed_out() -> Failure {
    let seconds = BODY_TIMEOUT.as_secs();
    Failure::new(Code::BodyTimeout, format!("the body did not arrive within {seconds} seconds"))
}

/// The members of a JSON object. A reader takes one member after the other; `null` counts as absent. Members that nobody took are
/// refused by [`Members::finish`].
#[derive(Debug)]
pub(super) struct Members {
    given: Map<String, Value>,
    complaints: Vec<String>,
    known: Vec<&'static str>,
}

impl Members {
    /// An empty body counts as an empty object. `example` is shown when the body is not an object.
    pub(super) fn of(body: JsonBody, example: &str) -> Result<Members, Failure> {
        let JsonBody { value, complaints } = body;
        match value {
            None => Ok(Members { given: Map::new(), complaints, known: Vec::new() }),
            Some(Value::Object(given)) => Ok(Members { given, complaints, known: Vec::new() }),
            Some(other) => {
                let message = format!("expected a JSON object such as {example}, got {}", shorten(&other));
                Err(Failure::new(Code::InvalidRequest, message))
            }
        }
    }

    pub(super) fn take(&mut self, name: &'static str) -> Option<Value> {
        self.known.push(name);
        self.given.shift_remove(name).filter(|value| !value.is_null())
    }

    pub(super) fn complain(&mut self, name: &str, expected: &str, found: Option<&Value>) {
        let found = found.map_or_else(|| "nothing".to_owned(), shorten);
        self.complaints.push(format!("{name}: expected {expected}, got {found}"));
    }

    /// A member with a parser of its own, which returns its complaints.
    pub(super) fn parse<T>(
        &mut self,
        name: &'static str,
        parse: impl FnOnce(&Value) -> Result<T, Vec<String>>,
    ) -> Option<T> {
        let value = self.take(name)?;
        parse(&value).map_err(|complaints| self.complaints.extend(complaints)).ok()
    }

    /// `true` or `false`; absent is `false`.
    pub(super) fn flag(&mut self, name: &'static str) -> bool {
        match self.take(name) {
            None => false,
            Some(Value::Bool(flag)) => flag,
            Some(other) => {
                self.complain(name, "true or false", Some(&other));
                false
            }
        }
    }

    /// The member `quorum`: a share of the gateways of a fleet.
    pub(super) fn quorum(&mut self) -> Option<f64> {
        let value = self.take("quorum")?;
        let share = value.as_f64().filter(|share| *share > 0.0 && *share <= 1.0);
        if share.is_none() {
            self.complain("quorum", crate::route::Proposal::QUORUM, Some(&value));
        }
        share
    }

    /// An object; absent is an empty one.
    pub(super) fn object(&mut self, name: &'static str) -> Map<String, Value> {
        match self.take(name) {
            None => Map::new(),
            Some(Value::Object(members)) => members,
            Some(other) => {
                self.complain(name, "a JSON object", Some(&other));
                Map::new()
            }
        }
    }

    /// The required member `version`.
    pub(super) fn version(&mut self) -> Option<Version> {
        let value = self.take("version");
        let parsed = value.as_ref().and_then(Value::as_str).and_then(|text| text.parse().ok());
        if parsed.is_none() {
            self.complain("version", "a version as a string, such as \"3\"", value.as_ref());
        }
        parsed
    }

    /// The required member `reason`.
    pub(super) fn reason(&mut self) -> Option<String> {
        match self.take("reason") {
            Some(Value::String(reason)) if is_reason(&reason) => Some(reason),
            other => {
                self.complain("reason", REASON, other.as_ref());
                None
            }
        }
    }

    /// A reason where none is needed.
    pub(super) fn reason_if_given(&mut self) -> Option<String> {
        match self.take("reason") {
            None => None,
            Some(Value::String(reason)) if is_reason(&reason) => Some(reason),
            other => {
                self.complain("reason", REASON, other.as_ref());
                None
            }
        }
    }

    /// Reports all complaints at once, unknown members among them.
    pub(super) fn finish(mut self) -> Result<(), Failure> {
        for name in self.given.keys() {
            let name: String = name.chars().take(80).collect();
            let known = if self.known.is_empty() { "none".to_owned() } else { self.known.join(", ") };
            self.complaints.push(format!("{name}: unknown member; known members: {known}"));
        }
        self.finish_without_unknown()
    }

    /// The same, but unknown members are ignored.
    pub(super) fn finish_without_unknown(self) -> Result<(), Failure> {
        if self.complaints.is_empty() {
            return Ok(());
        }
        Err(Failure::several(Code::InvalidRequest, self.complaints))
    }
}

/// A value as it is quoted in a complaint.
fn shorten(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() > 80 { text.chars().take(77).chain("...".chars()).collect() } else { text }
}
