//! What a request says besides its body: names in the path, parameters, who asks, which revision is meant.

use super::refused::Refused;
use super::routes::unreadable;
use crate::lifecycle::Actor;
use crate::model::{Code, Failure, ModelName, Version};
use crate::registry::{Entry, Snapshot};
use axum::extract::{FromRequestParts, Query, RawPathParams};
use http::header::IF_MATCH;
use http::request::Parts;
use std::sync::Arc;

/// The last segment of the path without its verb; put there by the routes.
#[derive(Debug, Clone)]
pub(super) struct Bare(pub String);

/// The model and version in the path, as they were written.
#[derive(Debug)]
pub(super) struct Target {
    model: String,
    version: String,
}

impl<S: Send + Sync> FromRequestParts<S> for Target {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Target, Refused> {
        let params = RawPathParams::from_request_parts(parts, state).await.map_err(|_| unreadable())?;
        let bare = parts.extensions.get::<Bare>();
        let last = params.iter().last().map(|(name, _)| name);
        let named = |name: &str| {
            let written = params.iter().find(|(known, _)| *known == name).map_or("", |(_, value)| value);
            bare.filter(|_| last == Some(name)).map_or(written, |bare| bare.0.as_str()).to_owned()
        };
        Ok(Target { model: named("model"), version: named("version") })
    }
}

impl Target {
    /// The model of a request about one that should be there: a name that cannot be one is as unknown as any other.
    pub(super) fn model(&self) -> Result<ModelName, Refused> {
        self.model.parse().map_err(|_| no_model(&self.model).into())
    }

    /// The version of a request about one that should be there.
    pub(super) fn version(&self) -> Result<Version, Refused> {
        self.version.parse().map_err(|e: crate::model::NameError| {
            Failure::new(Code::VersionNotFound, format!("there is no such version: {e}")).into()
        })
    }

    /// The names of something new; both complaints at once.
    pub(super) fn new_version(&self) -> Result<(ModelName, Version), Refused> {
        match (self.model.parse(), self.version.parse()) {
            (Ok(model), Ok(version)) => Ok((model, version)),
            (model, version) => {
                let complaints = [model.err(), version.err()].iter().flatten().map(ToString::to_string).collect();
                Err(Failure::several(Code::InvalidRequest, complaints).into())
            }
        }
    }

    /// The model as it is now.
    pub(super) fn entry<'s>(&self, snapshot: &'s Snapshot) -> Result<&'s Arc<Entry>, Refused> {
        snapshot.model(&self.model).ok_or_else(|| no_model(&self.model).into())
    }
}

fn no_model(name: &str) -> Failure {
    let name: String = name.chars().take(128).collect();
    Failure::new(Code::ModelNotFound, format!("no model is named {name:?}"))
}

/// The query's parameters; each is taken by its reader, and what is left is unknown.
#[derive(Debug)]
pub(super) struct Parameters {
    given: Vec<(String, String)>,
    complaints: Vec<String>,
    known: Vec<&'static str>,
}

impl<S: Send + Sync> FromRequestParts<S> for Parameters {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Parameters, Refused> {
        let Query(given) = Query::try_from_uri(&parts.uri)
            .map_err(|e| Failure::new(Code::InvalidRequest, format!("the query cannot be read: {e}")))?;
        Ok(Parameters { given, complaints: Vec::new(), known: Vec::new() })
    }
}

impl Parameters {
    /// Takes a parameter, read by `read`, which says what would be right. An empty value is none.
    pub(super) fn take<T>(&mut self, name: &'static str, read: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        self.known.push(name);
        let mut values = self.given.extract_if(.., |(known, _)| known == name).map(|(_, value)| value);
        let value = values.next();
        let twice = values.next().is_some();
        drop(values);
        if twice {
            self.complaints.push(format!("{name}: given more than once"));
        }
        let value = value.filter(|value| !value.is_empty())?;
        match read(&value) {
            Ok(value) => Some(value),
            Err(right) => {
                let value: String = value.chars().take(80).collect();
                self.complaints.push(format!("{name}: expected {right}, got {value:?}"));
                None
            }
        }
    }

    /// Every complaint at once.
    pub(super) fn finish(mut self) -> Result<(), Refused> {
        for (name, _) in &self.given {
            let name: String = name.chars().take(80).collect();
            self.complaints.push(format!("{name}: unknown parameter; known here: {}", self.known.join(", ")));
        }
        if self.complaints.is_empty() {
            return Ok(());
        }
        Err(Failure::several(Code::InvalidRequest, self.complaints).into())
    }
}

/// Who asks, for the audit trail: what the caller says of itself, as there are no tokens yet.
#[derive(Debug)]
pub(super) struct Operator(pub Actor);

impl Operator {
    const HEADER: &'static str = "x-sluicegate-actor";
    const MAX_CHARS: usize = 128;
}

impl<S: Send + Sync> FromRequestParts<S> for Operator {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Operator, Refused> {
        let Some(value) = parts.headers.get(Self::HEADER) else { return Ok(Operator(Actor("local".to_owned()))) };
        let name = std::str::from_utf8(value.as_bytes()).map(str::trim).ok();
        let fits = |name: &&str| !name.is_empty() && name.chars().count() <= Self::MAX_CHARS;
        let Some(name) = name.filter(fits) else {
            let words = format!("{}: expected 1 to {} characters of UTF-8", Self::HEADER, Self::MAX_CHARS);
            return Err(Failure::new(Code::InvalidRequest, words).into());
        };
        Ok(Operator(Actor(name.to_owned())))
    }
}

/// Which revision of the traffic document a change is meant for (RFC 9110, 13.1.1).
#[derive(Debug, PartialEq, Eq)]
pub(super) enum IfMatch {
    /// Any, also none.
    Absent,
    /// `*`: any, but there has to be one.
    Any,
    /// One of these. A tag that is no revision of ours matches nothing, and neither does a weak one.
    Revisions(Vec<u64>),
}

impl<S: Send + Sync> FromRequestParts<S> for IfMatch {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<IfMatch, Refused> {
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
            let words =
                "if-match: expected the etag of a traffic document such as \"7\", several of them, or *; got nothing";
            return Err(Failure::new(Code::InvalidRequest, words).into());
        }
        if tags.contains(&"*") {
            return Ok(IfMatch::Any);
        }
        // Without quotes it is no etag, but there is only one thing that a bare number can mean.
        let revision = |tag: &str| {
            let bare = tag.strip_prefix('"').and_then(|t| t.strip_suffix('"')).unwrap_or(tag);
            bare.parse().ok()
        };
        Ok(IfMatch::Revisions(tags.into_iter().filter_map(revision).collect()))
    }
}
