//! Extractors for everything but the body: names in the path, query parameters, the operator, `if-match`.

use super::caller::Caller;
use super::error::{ErrorResponse, invalid_path};
use crate::lifecycle::Actor;
use crate::model::{Code, Failure, ModelName, NameError, Version};
use crate::registry::{Entry, Snapshot};
use axum::extract::{FromRequestParts, Query, RawPathParams};
use http::header::IF_MATCH;
use http::request::Parts;
use std::sync::Arc;

/// The last segment of the path without its verb. `routes.rs` adds it to the request.
#[derive(Debug, Clone)]
pub(super) struct SegmentWithoutVerb(pub(super) String);

/// The model and the version in the path, not yet checked.
#[derive(Debug)]
pub(super) struct Target {
    model: String,
    version: String,
    token: String,
    silence: String,
    request: String,
}

impl<S: Send + Sync> FromRequestParts<S> for Target {
    type Rejection = ErrorResponse;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Target, ErrorResponse> {
        Ok(Target::of(parts).await?)
    }
}

impl Target {
    /// What the path names.
    ///
    /// # Errors
    /// `NOT_FOUND` when the path has invalid escapes.
    pub(super) async fn of(parts: &mut Parts) -> Result<Target, Failure> {
        let params = RawPathParams::from_request_parts(parts, &()).await.map_err(|_| invalid_path())?;
        let without_verb = parts.extensions.get::<SegmentWithoutVerb>();
        let last = params.iter().last().map(|(name, _)| name);
        let named = |name: &str| {
            let value = params.iter().find(|(known, _)| *known == name).map_or("", |(_, value)| value);
            without_verb.filter(|_| last == Some(name)).map_or(value, |segment| segment.0.as_str()).to_owned()
        };
        Ok(Target {
            model: named("model"),
            version: named("version"),
            token: named("token"),
            silence: named("silence"),
            request: named("request"),
        })
    }

    /// The model as the path names it.
    pub(super) fn model_text(&self) -> &str {
        &self.model
    }

    /// The token as the path names it.
    pub(super) fn token(&self) -> &str {
        &self.token
    }

    /// The silence as the path names it.
    pub(super) fn silence(&self) -> &str {
        &self.silence
    }

    /// The request id as the path names it.
    pub(super) fn request(&self) -> &str {
        &self.request
    }

    /// The name of an existing model. A name that is not valid is reported as unknown, like any other.
    pub(super) fn model(&self) -> Result<ModelName, ErrorResponse> {
        self.model.parse().map_err(|_| unknown_model(&self.model).into())
    }

    /// The number of an existing version.
    pub(super) fn version(&self) -> Result<Version, ErrorResponse> {
        self.version
            .parse()
            .map_err(|e: NameError| Failure::new(Code::VersionNotFound, format!("no such version: {e}")).into())
    }

    /// The name of a model that may be new.
    pub(super) fn new_model(&self) -> Result<ModelName, ErrorResponse> {
        self.model.parse().map_err(|e: NameError| Failure::new(Code::InvalidRequest, e.to_string()).into())
    }

    /// The model and the number of a version to be created, with the complaints about both.
    pub(super) fn new_version(&self) -> Result<(ModelName, Version), ErrorResponse> {
        match (self.model.parse(), self.version.parse()) {
            (Ok(model), Ok(version)) => Ok((model, version)),
            (model, version) => {
                let complaints = [model.err(), version.err()].iter().flatten().map(ToString::to_string).collect();
                Err(Failure::several(Code::InvalidRequest, complaints).into())
            }
        }
    }

    /// The published model.
    pub(super) fn entry<'s>(&self, snapshot: &'s Snapshot) -> Result<&'s Arc<Entry>, ErrorResponse> {
        snapshot.model(&self.model).ok_or_else(|| unknown_model(&self.model).into())
    }
}

fn unknown_model(name: &str) -> Failure {
    let name: String = name.chars().take(128).collect();
    Failure::new(Code::ModelNotFound, format!("no model is named {name:?}"))
}

/// The parameters of the query. Those that no handler takes are refused by [`Parameters::finish`].
#[derive(Debug)]
pub(super) struct Parameters {
    given: Vec<(String, String)>,
    complaints: Vec<String>,
    known: Vec<&'static str>,
}

impl<S: Send + Sync> FromRequestParts<S> for Parameters {
    type Rejection = ErrorResponse;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Parameters, ErrorResponse> {
        let Query(given) = Query::try_from_uri(&parts.uri)
            .map_err(|e| Failure::new(Code::InvalidRequest, format!("the query cannot be read: {e}")))?;
        Ok(Parameters { given, complaints: Vec::new(), known: Vec::new() })
    }
}

impl Parameters {
    /// Takes a parameter. `parse` returns the value, or what was expected. An empty value counts as absent.
    pub(super) fn take<T>(&mut self, name: &'static str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        self.known.push(name);
        let mut values = self.given.extract_if(.., |(known, _)| known == name).map(|(_, value)| value);
        let value = values.next();
        let repeated = values.next().is_some();
        drop(values);
        if repeated {
            self.complaints.push(format!("{name}: given more than once"));
        }
        let value = value.filter(|value| !value.is_empty())?;
        match parse(&value) {
            Ok(value) => Some(value),
            Err(expected) => {
                let value: String = value.chars().take(80).collect();
                self.complaints.push(format!("{name}: expected {expected}, got {value:?}"));
                None
            }
        }
    }

    /// Reports all complaints at once.
    pub(super) fn finish(mut self) -> Result<(), ErrorResponse> {
        for (name, _) in &self.given {
            let name: String = name.chars().take(80).collect();
            self.complaints.push(match &self.known[..] {
                [] => format!("{name}: unknown parameter; this path has none"),
                known => format!("{name}: unknown parameter; known parameters: {}", known.join(", ")),
            });
        }
        if self.complaints.is_empty() {
            return Ok(());
        }
        Err(Failure::several(Code::InvalidRequest, self.complaints).into())
    }
}

/// The caller as the actor of the audit trail.
#[derive(Debug)]
pub(super) struct Operator(pub(super) Actor);

impl<S: Send + Sync> FromRequestParts<S> for Operator {
    type Rejection = ErrorResponse;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Operator, ErrorResponse> {
        let Caller(identity) = Caller::from_request_parts(parts, state).await?;
        Ok(Operator(Actor(identity.name.clone())))
    }
}

/// The `if-match` header (RFC 9110, 13.1.1): which revision of the traffic document may be replaced.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum IfMatch {
    /// Any revision, or none.
    Absent,
    /// `*`: any revision, but there must be one.
    Any,
    /// One of these. Weak tags and tags that are not revisions match nothing.
    Revisions(Vec<u64>),
}

impl<S: Send + Sync> FromRequestParts<S> for IfMatch {
    type Rejection = ErrorResponse;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<IfMatch, ErrorResponse> {
        let mut tags = Vec::new();
        for value in parts.headers.get_all(IF_MATCH) {
            let text =
                value.to_str().map_err(|_| Failure::new(Code::InvalidRequest, "if-match: expected ASCII text"))?;
            tags.extend(text.split(',').map(str::trim).filter(|tag| !tag.is_empty()));
        }
        if !parts.headers.contains_key(IF_MATCH) {
            return Ok(IfMatch::Absent);
        }
        if tags.is_empty() {
            let message =
                "if-match: expected the etag of a traffic document such as \"7\", several of them, or *; got nothing";
            return Err(Failure::new(Code::InvalidRequest, message).into());
        }
        if tags.contains(&"*") {
            return Ok(IfMatch::Any);
        }
        // An etag has quotes, but a number without them is accepted: its meaning is clear.
        let revision = |tag: &str| {
            let bare = tag.strip_prefix('"').and_then(|t| t.strip_suffix('"')).unwrap_or(tag);
            bare.parse().ok()
        };
        Ok(IfMatch::Revisions(tags.into_iter().filter_map(revision).collect()))
    }
}
