//! The endpoints of the data plane, and their paths.

use super::grpc::Call;
use crate::access::{Action, Permission, Scope};
use crate::model::{Code, Failure, Version, quoted};
use crate::route::Selector;
use http::Method;
use percent_encoding::percent_decode_str;
use std::borrow::Cow;

/// An endpoint with the parts of its path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Endpoint<'p> {
    ServerMetadata,
    Live,
    Ready,
    /// Open Inference Protocol: metadata of a model.
    Metadata(Target<'p>),
    ModelReady(Target<'p>),
    Infer(Target<'p>),
    /// Triton: the configuration of a model.
    Config(Target<'p>),
    /// Triton: the statistics of a model, or of all.
    Statistics(Option<Target<'p>>),
    /// Triton: the versions of all models.
    RepositoryIndex,
    /// TensorFlow Serving: status of all versions of a model, or of one.
    TfsStatus(Target<'p>),
    TfsMetadata(Target<'p>),
    TfsPredict(Target<'p>),
    /// Which columns of a row an answer came from.
    Explain(Target<'p>),
    /// Feedback about predictions of this model.
    Feedback(Cow<'p, str>),
    /// The names of all models (KServe V1).
    Models,
    /// KServe V1: whether the server is up.
    Alive,
    /// A prediction of the default model, as MLflow and SageMaker ask for it.
    Invocations,
    /// Whether the default model answers requests.
    Ping,
    /// The version of this server, as MLflow's scoring server tells its own.
    Version,
    /// A gRPC call. Its message names the model.
    Grpc(Call),
}

/// The model and the version that a path names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target<'p> {
    pub model: Cow<'p, str>,
    pub version: VersionPart<'p>,
}

/// The version part of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum VersionPart<'p> {
    /// The path names no version.
    Any,
    Version(Version),
    Label(Cow<'p, str>),
}

impl VersionPart<'_> {
    #[must_use]
    pub(super) fn selector(&self) -> Selector<'_> {
        match self {
            VersionPart::Any => Selector::Traffic,
            VersionPart::Version(v) => Selector::Version(*v),
            VersionPart::Label(l) => Selector::Label(l),
        }
    }
}

impl Endpoint<'_> {
    /// What it needs of its caller, and the model that it is about. Open are the probes: an orchestrator sends them without credentials,
    /// and they name no model.
    pub(super) fn permission(&self) -> (Permission, Option<&str>) {
        const OF_MODEL: Permission = Permission::To(Action::Predict, Scope::Model);
        match self {
            Endpoint::Live | Endpoint::Ready | Endpoint::Alive | Endpoint::Ping => (Permission::Open, None),
            // Of all models, a caller is shown those that it may use.
            // The default model is checked when it is known.
            Endpoint::ServerMetadata
            | Endpoint::Statistics(None)
            | Endpoint::RepositoryIndex
            | Endpoint::Models
            | Endpoint::Invocations
            | Endpoint::Version => (Permission::AnyIdentity, None),
            Endpoint::Metadata(target)
            | Endpoint::Config(target)
            | Endpoint::Statistics(Some(target))
            | Endpoint::ModelReady(target)
            | Endpoint::Infer(target)
            | Endpoint::TfsStatus(target)
            | Endpoint::TfsMetadata(target)
            | Endpoint::TfsPredict(target)
            | Endpoint::Explain(target) => (OF_MODEL, Some(&target.model)),
            Endpoint::Feedback(model) => (OF_MODEL, Some(model)),
            Endpoint::Grpc(call) => (call.permission(), None),
        }
    }
}

const READ: &str = "GET, HEAD";
const WRITE: &str = "POST";

impl<'p> Endpoint<'p> {
    /// Parses a method and a path.
    ///
    /// # Errors
    /// `NOT_FOUND` for an unknown path, `VERSION_NOT_FOUND` for a version that is not a number, `METHOD_NOT_ALLOWED` with the
    /// allowed methods.
    pub(super) fn parse(method: &Method, path: &'p str) -> Result<Endpoint<'p>, Refused> {
        let (endpoint, allow) = Endpoint::of_path(path)?;
        let allowed = match allow {
            READ => method == Method::GET || method == Method::HEAD,
            _ => method == Method::POST,
        };
        if allowed {
            return Ok(endpoint);
        }
        let message = format!("method {} is not allowed for {}: use {allow}", quoted(method.as_str()), quoted(path));
        Err(Refused { failure: Failure::new(Code::MethodNotAllowed, message), allow: Some(allow) })
    }

    fn of_path(path: &'p str) -> Result<(Endpoint<'p>, &'static str), Refused> {
        let unknown = || {
            Refused::from(match not_supported(path) {
                Some(what) => Failure::new(Code::Unsupported, format!("the server does not support {what}")),
                None => Failure::new(Code::NotFound, format!("unknown path {}", quoted(path))),
            })
        };
        if let Some(rest) = path.strip_prefix("/v2") {
            return Endpoint::of_v2(rest).ok_or_else(unknown)?.map_err(Refused::from);
        }
        if let Some(rest) = path.strip_prefix("/v1/models/") {
            return Endpoint::of_v1(rest).ok_or_else(unknown)?.map_err(Refused::from);
        }
        Ok(match path {
            "/" => (Endpoint::Alive, READ),
            "/v1/models" => (Endpoint::Models, READ),
            "/invocations" => (Endpoint::Invocations, WRITE),
            "/ping" | "/health" => (Endpoint::Ping, READ),
            "/version" => (Endpoint::Version, READ),
            _ => (Endpoint::Grpc(Call::of(path).ok_or_else(unknown)?), WRITE),
        })
    }

    /// `rest` is the path after `/v2`.
    fn of_v2(rest: &'p str) -> Option<Result<(Endpoint<'p>, &'static str), Failure>> {
        let endpoint = match rest {
            "" | "/" => Endpoint::ServerMetadata,
            "/health/live" => Endpoint::Live,
            "/health/ready" => Endpoint::Ready,
            "/models/stats" => Endpoint::Statistics(None),
            "/repository/index" => return Some(Ok((Endpoint::RepositoryIndex, WRITE))),
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
                let version = match version.map(version_part) {
                    None => VersionPart::Any,
                    Some(Ok(version)) => version,
                    Some(Err(failure)) => return Some(Err(failure)),
                };
                let target = Target { model, version };
                match last {
                    None => Endpoint::Metadata(target),
                    Some("ready") => Endpoint::ModelReady(target),
                    Some("config") => Endpoint::Config(target),
                    Some("stats") => Endpoint::Statistics(Some(target)),
                    Some("infer") => return Some(Ok((Endpoint::Infer(target), WRITE))),
                    Some(_) => return None,
                }
            }
        };
        Some(Ok((endpoint, READ)))
    }

    /// `rest` is the path after `/v1/models/`: `M`, `M:predict`, `M/versions/V`, `M/labels/L:predict`, `M/metadata`, …
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
            // OpenVINO's clients write this for "the default version".
            ("versions", Some("0")) => VersionPart::Any,
            ("versions", Some(value)) => match version_part(value) {
                Ok(version) => version,
                Err(failure) => return Some(Err(failure)),
            },
            ("labels", Some(label)) if !label.is_empty() => VersionPart::Label(name(label)),
            ("labels", _) => return None,
            _ => VersionPart::Any,
        };
        let target = Target { model, version };
        match (last, verb) {
            (None, None) => Some(Ok((Endpoint::TfsStatus(target), READ))),
            (Some("metadata"), None) => Some(Ok((Endpoint::TfsMetadata(target), READ))),
            (None, Some("predict")) => Some(Ok((Endpoint::TfsPredict(target), WRITE))),
            (None, Some("explain")) => Some(Ok((Endpoint::Explain(target), WRITE))),
            (None, Some("feedback")) if target.version == VersionPart::Any => {
                Some(Ok((Endpoint::Feedback(target.model), WRITE)))
            }
            _ => None,
        }
    }
}

/// What a path of Triton is for that this server does not have. It is answered as by a Triton that was built without it, so that its tools go
/// on.
fn not_supported(path: &str) -> Option<&'static str> {
    match path {
        "/v2/logging" | "/inference.GRPCInferenceService/LogSettings" => Some("dynamic logging"),
        "/v2/trace/setting" | "/inference.GRPCInferenceService/TraceSetting" => Some("tracing"),
        _ => {
            let model = path.strip_prefix("/v2/models/")?.strip_suffix("/trace/setting")?;
            (!model.is_empty() && !model.contains('/')).then_some("tracing")
        }
    }
}

/// The error for an unknown path or a wrong method, with the value of the `allow` header.
#[derive(Debug)]
pub(super) struct Refused {
    pub failure: Failure,
    pub allow: Option<&'static str>,
}

impl From<Failure> for Refused {
    fn from(failure: Failure) -> Refused {
        Refused { failure, allow: None }
    }
}

/// Decodes the percent-encoding of a path segment. Bytes that are not UTF-8 are replaced, so the name matches nothing.
fn name(segment: &str) -> Cow<'_, str> {
    percent_decode_str(segment).decode_utf8_lossy()
}

fn version_part(segment: &str) -> Result<VersionPart<'static>, Failure> {
    version(&name(segment))
}

/// The version that a text names.
///
/// # Errors
/// `VERSION_NOT_FOUND` for what is not a version.
pub(super) fn version(text: &str) -> Result<VersionPart<'static>, Failure> {
    text.parse().map(VersionPart::Version).map_err(|_| {
        let message = format!("there is no version {}: versions are positive integers", quoted(text));
        Failure::new(Code::VersionNotFound, message)
    })
}
