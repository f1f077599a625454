//! What a path asks for: a closed set.

use crate::model::{Code, Failure, Version};
use crate::route::Selector;
use http::Method;
use percent_encoding::percent_decode_str;
use std::borrow::Cow;

/// One of the data plane's endpoints, borrowed from the path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint<'p> {
    ServerMetadata,
    Live,
    Ready,
    /// Open Inference Protocol metadata of a model.
    Metadata(Target<'p>),
    ModelReady(Target<'p>),
    Infer(Target<'p>),
    /// TensorFlow Serving: status of a model's versions, or of one.
    TfsStatus(Target<'p>),
    TfsMetadata(Target<'p>),
    TfsPredict(Target<'p>),
    /// What really happened, about this model's predictions.
    Feedback(Cow<'p, str>),
}

/// Which model, and which of its versions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target<'p> {
    pub model: Cow<'p, str>,
    pub version: Asked<'p>,
}

/// The version part of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked<'p> {
    Any,
    Version(Version),
    Label(Cow<'p, str>),
}

impl Asked<'_> {
    #[must_use]
    pub fn selector(&self) -> Selector<'_> {
        match self {
            Asked::Any => Selector::Traffic,
            Asked::Version(v) => Selector::Version(*v),
            Asked::Label(l) => Selector::Label(l),
        }
    }
}

const READ: &str = "GET, HEAD";
const WRITE: &str = "POST";

impl<'p> Endpoint<'p> {
    /// Reads a method and path.
    ///
    /// # Errors
    /// `NOT_FOUND` for a path that is none of the promised ones, `VERSION_NOT_FOUND` for a version that is no number, and
    /// `METHOD_NOT_ALLOWED` with the methods that are allowed.
    pub fn parse(method: &Method, path: &'p str) -> Result<Endpoint<'p>, Refused> {
        let (endpoint, allow) = Endpoint::of_path(path)?;
        let fits = match allow {
            READ => method == Method::GET || method == Method::HEAD,
            _ => method == Method::POST,
        };
        if fits {
            return Ok(endpoint);
        }
        let words = format!("{method} is not a method of {path}; allowed: {allow}");
        Err(Refused { failure: Failure::new(Code::MethodNotAllowed, words), allow: Some(allow) })
    }

    fn of_path(path: &'p str) -> Result<(Endpoint<'p>, &'static str), Refused> {
        let unknown = || Refused::from(Failure::new(Code::NotFound, format!("no such path: {}", shown(path))));
        if let Some(rest) = path.strip_prefix("/v2") {
            return Endpoint::of_v2(rest).ok_or_else(unknown)?.map_err(Refused::from);
        }
        if let Some(rest) = path.strip_prefix("/v1/models/") {
            return Endpoint::of_v1(rest).ok_or_else(unknown)?.map_err(Refused::from);
        }
        Err(unknown())
    }

    /// `rest` is what follows `/v2`.
    fn of_v2(rest: &'p str) -> Option<Result<(Endpoint<'p>, &'static str), Failure>> {
        let endpoint = match rest {
            "" | "/" => Endpoint::ServerMetadata,
            "/health/live" => Endpoint::Live,
            "/health/ready" => Endpoint::Ready,
            _ => {
                let mut parts = rest.strip_prefix("/models/")?.split('/');
                let model = name(parts.next()?);
                let (version, last) = match parts.next() {
                    Some("versions") => (Some(parts.next()?), parts.next()),
                    other => (None, other),
                };
                if parts.next().is_some() {
                    return None;
                }
                let version = match version.map(asked_version) {
                    None => Asked::Any,
                    Some(Ok(version)) => version,
                    Some(Err(failure)) => return Some(Err(failure)),
                };
                let target = Target { model, version };
                match last {
                    None => Endpoint::Metadata(target),
                    Some("ready") => Endpoint::ModelReady(target),
                    Some("infer") => return Some(Ok((Endpoint::Infer(target), WRITE))),
                    Some(_) => return None,
                }
            }
        };
        Some(Ok((endpoint, READ)))
    }

    /// `rest` is what follows `/v1/models/`: `M`, `M:predict`, `M/versions/V`, `M/labels/L:predict`, `M/metadata`, …
    fn of_v1(rest: &'p str) -> Option<Result<(Endpoint<'p>, &'static str), Failure>> {
        let (rest, verb) = match rest.rsplit_once(':') {
            Some((rest, verb)) => (rest, Some(verb)),
            None => (rest, None),
        };
        let mut parts = rest.split('/');
        let model = name(parts.next()?);
        let (kind, value, last) = match parts.next() {
            Some(kind @ ("versions" | "labels")) => (kind, Some(parts.next()?), parts.next()),
            other => ("", None, other),
        };
        if parts.next().is_some() {
            return None;
        }
        let version = match (kind, value) {
            ("versions", Some(value)) => match asked_version(value) {
                Ok(version) => version,
                Err(failure) => return Some(Err(failure)),
            },
            ("labels", Some(label)) if !label.is_empty() => Asked::Label(name(label)),
            ("labels", _) => return None,
            _ => Asked::Any,
        };
        let target = Target { model, version };
        match (last, verb) {
            (None, None) => Some(Ok((Endpoint::TfsStatus(target), READ))),
            (Some("metadata"), None) => Some(Ok((Endpoint::TfsMetadata(target), READ))),
            (None, Some("predict")) => Some(Ok((Endpoint::TfsPredict(target), WRITE))),
            (None, Some("feedback")) if target.version == Asked::Any => {
                Some(Ok((Endpoint::Feedback(target.model), WRITE)))
            }
            _ => None,
        }
    }
}

/// A path or method that is not answered, with what the `allow` header says.
#[derive(Debug)]
pub struct Refused {
    pub failure: Failure,
    pub allow: Option<&'static str>,
}

impl From<Failure> for Refused {
    fn from(failure: Failure) -> Refused {
        Refused { failure, allow: None }
    }
}

/// A path segment, its percent-encoding undone; what is not UTF-8 afterwards names nothing that exists.
fn name(segment: &str) -> Cow<'_, str> {
    percent_decode_str(segment).decode_utf8_lossy()
}

fn asked_version(segment: &str) -> Result<Asked<'_>, Failure> {
    let text = name(segment);
    text.parse().map(Asked::Version).map_err(|_| {
        let words = format!("no version is named {:?}: versions are positive integers", shown(&text));
        Failure::new(Code::VersionNotFound, words)
    })
}

fn shown(text: &str) -> String {
    text.chars().take(200).collect()
}
