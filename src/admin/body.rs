//! Bodies: small JSON ones, read whole and strictly.

use super::refused::Refused;
use super::strict::{self, Strict};
use crate::model::{Code, Failure, Version};
use axum::body::Body;
use axum::extract::{FromRequest, Request};
use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http::header::CONTENT_ENCODING;
use http_body_util::BodyExt;
use serde_json::{Map, Value};
use std::time::Duration;

/// Traffic documents with hundreds of rules are tens of kilobytes.
pub(super) const MAX_JSON: usize = 1 << 20;

/// Between two pieces of a body; a sender slower than that has gone away.
const PATIENCE: Duration = Duration::from_secs(30);

/// A JSON body, or none where it is empty. Its content type is not asked for: there is nothing else it could be, and `curl -d`
/// sends a wrong one.
#[derive(Debug)]
pub(super) struct Json {
    pub value: Option<Value>,
    /// What is wrong with it although it is JSON: members that stand twice.
    pub complaints: Vec<String>,
}

impl<S: Send + Sync> FromRequest<S> for Json {
    type Rejection = Refused;

    async fn from_request(request: Request, _: &S) -> Result<Json, Refused> {
        check_encoding(request.headers())?;
        let mut body = request.into_body();
        let mut bytes = BytesMut::new();
        while let Some(piece) = next(&mut body).await? {
            if bytes.len() + piece.len() > MAX_JSON {
                let words = format!("the body is larger than the {MAX_JSON} bytes it may have");
                return Err(Failure::new(Code::BodyTooLarge, words).into());
            }
            bytes.extend_from_slice(&piece);
        }
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Ok(Json { value: None, complaints: Vec::new() });
        }
        let Strict { value, complaints } = strict::parse(&bytes)?;
        Ok(Json { value: Some(value), complaints })
    }
}

/// Compressed bodies are not taken on this plane.
pub(super) fn check_encoding(headers: &HeaderMap) -> Result<(), Failure> {
    match headers.get(CONTENT_ENCODING) {
        Some(encoding) if !encoding.as_bytes().eq_ignore_ascii_case(b"identity") => {
            let words = format!("content-encoding {encoding:?} is not taken here; send the body as it is");
            Err(Failure::new(Code::UnsupportedMediaType, words))
        }
        _ => Ok(()),
    }
}

/// The next piece of a body; `None` at its end.
pub(super) async fn next(body: &mut Body) -> Result<Option<Bytes>, Failure> {
    loop {
        let frame = tokio::time::timeout(PATIENCE, body.frame()).await.map_err(|_| {
            Failure::new(Code::BodyTimeout, format!("nothing of the body came for {} seconds", PATIENCE.as_secs()))
        })?;
        match frame {
            None => return Ok(None),
            Some(Err(e)) => {
                let words = "the body ended before it was whole";
                return Err(Failure::new(Code::InvalidRequest, words).with_internal(e.to_string()));
            }
            Some(Ok(frame)) => {
                if let Ok(piece) = frame.into_data() {
                    return Ok(Some(piece));
                }
            }
        }
    }
}

/// The members of a body; each is taken by its reader, and what is left is unknown.
#[derive(Debug)]
pub(super) struct Members {
    given: Map<String, Value>,
    complaints: Vec<String>,
    known: Vec<&'static str>,
}

impl Members {
    /// `wanted`: an example for who sent something else. No body is an object without members.
    pub(super) fn of(body: Json, wanted: &str) -> Result<Members, Refused> {
        let Json { value, complaints } = body;
        match value {
            None => Ok(Map::new()),
            Some(Value::Object(given)) => Ok(given),
            Some(other) => Err(format!("expected a JSON object such as {wanted}, got {}", shown(&other))),
        }
        .map(|given| Members { given, complaints, known: Vec::new() })
        .map_err(|words| Failure::new(Code::InvalidRequest, words).into())
    }

    pub(super) fn take(&mut self, name: &'static str) -> Option<Value> {
        self.known.push(name);
        self.given.shift_remove(name).filter(|value| !value.is_null())
    }

    pub(super) fn complain(&mut self, name: &str, expected: &str, got: Option<&Value>) {
        let got = got.map_or_else(|| "nothing".to_owned(), shown);
        self.complaints.push(format!("{name}: expected {expected}, got {got}"));
    }

    /// A member with a reader of its own, which gives its complaints; absent and null are none.
    pub(super) fn read<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(&Value) -> Result<T, Vec<String>>,
    ) -> Option<T> {
        let value = self.take(name)?;
        read(&value).map_err(|complaints| self.complaints.extend(complaints)).ok()
    }

    /// True or false; absent is false.
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

    /// A version; absent is complained of.
    pub(super) fn version(&mut self) -> Option<Version> {
        let value = self.take("version");
        let parsed = value.as_ref().and_then(Value::as_str).and_then(|text| text.parse().ok());
        if parsed.is_none() {
            self.complain("version", "a version as a string, such as \"3\"", value.as_ref());
        }
        parsed
    }

    /// Why; whoever reads the audit trail later needs it, so absent and empty are complained of.
    pub(super) fn reason(&mut self) -> Option<String> {
        match self.take("reason") {
            Some(Value::String(reason)) if !reason.trim().is_empty() => Some(reason),
            other => {
                self.complain("reason", "a reason, which is required and is kept in the audit trail", other.as_ref());
                None
            }
        }
    }

    /// Every complaint at once.
    pub(super) fn finish(mut self) -> Result<(), Refused> {
        for name in self.given.keys() {
            let name: String = name.chars().take(80).collect();
            let known = if self.known.is_empty() { "none".to_owned() } else { self.known.join(", ") };
            self.complaints.push(format!("{name}: unknown member; known here: {known}"));
        }
        if self.complaints.is_empty() {
            return Ok(());
        }
        Err(Failure::several(Code::InvalidRequest, self.complaints).into())
    }
}

fn shown(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() > 80 { text.chars().take(77).chain("...".chars()).collect() } else { text }
}
