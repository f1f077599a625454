//! The GET endpoints: health, metadata, status.

use super::answer::{self, HttpResponse};
use super::data_plane::DataPlane;
use super::endpoint::{Endpoint, Target, VersionPart};
use super::{invocations, triton};
use crate::access::Identity;
use crate::codec::{self, metadata, tfs};
use crate::model::{Code, Failure, Parameters, Version, quoted};
use crate::registry::{Entry, Served, State, VersionStatus};
use crate::route::RouteRequest;
use crate::serve::find;
use std::sync::Arc;

/// Answers a GET endpoint. `identity`: who asks, where that is known.
pub(super) fn answer(
    plane: &DataPlane,
    endpoint: &Endpoint,
    identity: Option<&Identity>,
) -> Result<HttpResponse, Failure> {
    match endpoint {
        Endpoint::ServerMetadata => Ok(answer::json(metadata::server_json(env!("CARGO_PKG_VERSION")))),
        Endpoint::Live if plane.gateway().executor().can_replace_workers() => Ok(answer::json("{\"live\":true}")),
        Endpoint::Live => Err(Failure::new(
            Code::NotReady,
            "too many threads are held by runs that do not end: only a restart helps; the admin plane names them",
        )),
        Endpoint::Ready if plane.ready() => Ok(answer::json("{\"ready\":true}")),
        Endpoint::Ready => Err(Failure::new(
            Code::NotReady,
            "the server is not ready: it is starting or stopping, or a model's traffic document cannot be served; the admin plane has the reason",
        )),
        Endpoint::Metadata(target) => with_entry(plane, target, |entry| {
            let served = version_of(entry, &target.version)?;
            let versions = callable(entry, &served, &target.version);
            let facts = &served.loaded.facts;
            Ok(answer::json(metadata::model_json(
                entry.name().as_str(),
                &versions,
                platform(facts.engine),
                &facts.signature,
            )))
        }),
        Endpoint::ModelReady(target) => with_entry(plane, target, |entry| {
            check_ready(entry, &target.version)?;
            Ok(answer::json(format!("{{\"name\":\"{}\",\"ready\":true}}", entry.name())))
        }),
        Endpoint::Config(target) => Ok(answer::json(codec::triton::config_json(&triton::config(plane, target)?))),
        Endpoint::Statistics(target) => {
            let statistics = triton::statistics(plane, identity, target.as_ref())?;
            Ok(answer::json(codec::triton::statistics_json(&statistics)))
        }
        Endpoint::TfsStatus(target) => {
            with_entry(plane, target, |entry| {
                let rows = status_rows(entry, &target.version)?;
                // KServe's clients ask this path whether the model is ready.
                let of_kserve = (target.version == VersionPart::Any)
                    .then(|| (entry.name().as_str(), check_ready(entry, &target.version).is_ok()));
                Ok(answer::json(tfs::status_json(&rows, of_kserve)))
            })
        }
        Endpoint::TfsMetadata(target) => with_entry(plane, target, |entry| {
            let served = version_of(entry, &target.version)?;
            let name = entry.name().as_str();
            Ok(answer::json(tfs::metadata_json(name, served.loaded.version, &served.loaded.facts.signature)))
        }),
        Endpoint::Models => Ok(answer::json(tfs::models_json(
            triton::visible(plane, identity).iter().map(|entry| entry.name().as_str()),
        ))),
        Endpoint::Alive => Ok(answer::json("{\"status\":\"alive\"}")),
        Endpoint::Ping => invocations::ping(plane),
        Endpoint::Version => Ok(answer::text(env!("CARGO_PKG_VERSION"))),
        Endpoint::Infer(_)
        | Endpoint::RepositoryIndex
        | Endpoint::Invocations
        | Endpoint::TfsPredict(_)
        | Endpoint::Explain(_)
        | Endpoint::Feedback(_)
        | Endpoint::Grpc(_) => {
            Err(Failure::new(Code::MethodNotAllowed, "predictions, feedback, the repository index and gRPC use POST"))
        }
    }
}

/// What `answer` makes of the model that the target names.
///
/// # Errors
/// `MODEL_NOT_FOUND`, and those of `answer`.
pub(super) fn with_entry<T>(
    plane: &DataPlane,
    target: &Target,
    answer: impl FnOnce(&Entry) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let snapshot = plane.gateway.snapshot();
    answer(find(&snapshot, &target.model)?)
}

/// The versions that metadata lists: all that can be called, or the one that the path names.
pub(super) fn callable(entry: &Entry, served: &Served, named: &VersionPart) -> Vec<Version> {
    match named {
        VersionPart::Any => entry.callable().map(|s| s.loaded.version).collect(),
        _ => vec![served.loaded.version],
    }
}

/// Whether requests to this target can be answered.
///
/// # Errors
/// Why not.
pub(super) fn check_ready(entry: &Entry, version: &VersionPart) -> Result<(), Failure> {
    match version {
        VersionPart::Any if entry.taken_out() => version_of(entry, &VersionPart::Any).map(drop),
        VersionPart::Any if !entry.can_serve() => {
            let message = format!("model {} has no version that answers requests without a version yet", entry.name());
            Err(Failure::new(Code::NotReady, message))
        }
        VersionPart::Any => Ok(()),
        other => version_of(entry, other).map(drop),
    }
}

/// The version that the path names, or else the one that represents the model.
pub(super) fn version_of(entry: &Entry, version: &VersionPart) -> Result<Arc<Served>, Failure> {
    if entry.taken_out() || !matches!(version, VersionPart::Any) {
        let ask = RouteRequest {
            selector: version.selector(),
            header: &|_| None,
            parameters: &Parameters::new(),
            request_id: "",
        };
        return entry.route(&ask).map(|routed| Arc::clone(routed.served));
    }
    entry
        .representative()
        .cloned()
        .ok_or_else(|| Failure::new(Code::NotReady, format!("model {} has no version loaded yet", entry.name())))
}

/// Triton's name for the combination of engine and format.
pub(super) fn platform(engine: &str) -> &'static str {
    if engine == "onnxruntime" { "onnxruntime_onnx" } else { "tract_onnx" }
}

/// The versions of a model that a status lists, under TensorFlow Serving's names.
///
/// # Errors
/// `LABEL_NOT_FOUND`, `VERSION_NOT_FOUND`.
pub(super) fn status_rows<'e>(entry: &'e Entry, version: &VersionPart) -> Result<Vec<tfs::VersionStatus<'e>>, Failure> {
    let only: Option<Version> = match version {
        VersionPart::Any => None,
        VersionPart::Version(v) => Some(*v),
        VersionPart::Label(label) => {
            let known = entry.document().and_then(|d| d.labels.get(label.as_ref()));
            let message = || format!("model {} has no label {}", entry.name(), quoted(label));
            Some(*known.ok_or_else(|| Failure::new(Code::LabelNotFound, message()))?)
        }
    };
    let rows: Vec<tfs::VersionStatus> =
        entry.versions().values().filter(|s| only.is_none_or(|v| v == s.version)).map(status_row).collect();
    if rows.is_empty() {
        let which = only.map_or_else(String::new, |v| format!(" {v}"));
        return Err(Failure::new(Code::VersionNotFound, format!("model {} has no version{which}", entry.name())));
    }
    Ok(rows)
}

/// A version's state under TensorFlow Serving's names.
fn status_row(status: &VersionStatus) -> tfs::VersionStatus<'_> {
    let state = match status.state {
        State::Pending => "START",
        State::Loading | State::Verifying | State::Warming => "LOADING",
        State::Ready | State::Serving => "AVAILABLE",
        State::Draining => "UNLOADING",
        State::Unloaded | State::Failed => "END",
    };
    let (error_code, error_message) = match status.state {
        // The reason can contain file names. It is for operators, so only the admin plane shows it.
        State::Failed => ("UNKNOWN", "the version failed to become ready; the admin plane has the reason"),
        _ => ("OK", ""),
    };
    tfs::VersionStatus { version: status.version, state, error_code, error_message }
}
