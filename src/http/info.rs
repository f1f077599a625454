//! Questions that are not predictions: health, metadata, status.

use super::answer::{self, HttpResponse};
use super::door::DataPlane;
use super::endpoint::{Asked, Endpoint, Target};
use crate::codec::{metadata, tfs};
use crate::model::{Code, Failure, Parameters, Version};
use crate::registry::{Entry, Served, State, VersionStatus};
use crate::route::Ask;
use crate::serve::find;
use std::sync::Arc;

/// Answers one of the endpoints that are read with GET.
pub(super) fn answer(door: &DataPlane, endpoint: &Endpoint) -> Result<HttpResponse, Failure> {
    match endpoint {
        Endpoint::ServerMetadata => Ok(answer::json(metadata::server_json(env!("CARGO_PKG_VERSION")))),
        Endpoint::Live => Ok(answer::json("{\"live\":true}")),
        Endpoint::Ready if door.ready() => Ok(answer::json("{\"ready\":true}")),
        Endpoint::Ready => Err(Failure::new(
            Code::NotReady,
            "the server is not ready: it is starting or stopping, or a model's traffic document cannot be served; the admin plane says which",
        )),
        Endpoint::Metadata(target) => with_entry(door, target, |entry| {
            let served = named(entry, &target.version)?;
            let versions: Vec<Version> = match target.version {
                Asked::Any => entry.callable().map(|s| s.loaded.version).collect(),
                _ => vec![served.loaded.version],
            };
            let facts = &served.loaded.facts;
            Ok(answer::json(metadata::model_json(
                entry.name().as_str(),
                &versions,
                platform(facts.engine),
                &facts.signature,
            )))
        }),
        Endpoint::ModelReady(target) => with_entry(door, target, |entry| {
            match &target.version {
                Asked::Any if !entry.can_serve() => {
                    let words = format!("model {} has no version that answers un-pinned requests yet", entry.name());
                    return Err(Failure::new(Code::NotReady, words));
                }
                Asked::Any => {}
                other => drop(named(entry, other)?),
            }
            Ok(answer::json(format!("{{\"name\":\"{}\",\"ready\":true}}", entry.name())))
        }),
        Endpoint::TfsStatus(target) => with_entry(door, target, |entry| tfs_status(entry, &target.version)),
        Endpoint::TfsMetadata(target) => with_entry(door, target, |entry| {
            let served = named(entry, &target.version)?;
            let name = entry.name().as_str();
            Ok(answer::json(tfs::metadata_json(name, served.loaded.version, &served.loaded.facts.signature)))
        }),
        Endpoint::Infer(_) | Endpoint::TfsPredict(_) | Endpoint::Feedback(_) => {
            Err(Failure::new(Code::MethodNotAllowed, "predictions are asked for, and feedback is sent, with POST"))
        }
    }
}

fn with_entry(
    door: &DataPlane,
    target: &Target,
    answer: impl FnOnce(&Entry) -> Result<HttpResponse, Failure>,
) -> Result<HttpResponse, Failure> {
    let snapshot = door.gateway.snapshot();
    answer(find(&snapshot, &target.model)?)
}

/// The version a question is about: the one named, else the one that speaks for the model.
fn named(entry: &Entry, version: &Asked) -> Result<Arc<Served>, Failure> {
    if entry.taken_out() || !matches!(version, Asked::Any) {
        let ask =
            Ask { selector: version.selector(), header: &|_| None, parameters: &Parameters::new(), request_id: "" };
        return entry.route(&ask).map(|routed| Arc::clone(routed.served));
    }
    entry
        .representative()
        .cloned()
        .ok_or_else(|| Failure::new(Code::NotReady, format!("model {} has no version loaded yet", entry.name())))
}

/// Triton's name for the pair of engine and format; clients take it as it is.
fn platform(engine: &str) -> &'static str {
    if engine == "onnxruntime" { "onnxruntime_onnx" } else { "tract_onnx" }
}

fn tfs_status(entry: &Entry, version: &Asked) -> Result<HttpResponse, Failure> {
    let only: Option<Version> = match version {
        Asked::Any => None,
        Asked::Version(v) => Some(*v),
        Asked::Label(label) => {
            let known = entry.document().and_then(|d| d.labels.get(label.as_ref()));
            let words = || format!("model {} has no label {label:?}", entry.name());
            Some(*known.ok_or_else(|| Failure::new(Code::LabelNotFound, words()))?)
        }
    };
    let rows: Vec<tfs::VersionStatus> =
        entry.versions().values().filter(|s| only.is_none_or(|v| v == s.version)).map(status_row).collect();
    if rows.is_empty() {
        let which = only.map_or_else(String::new, |v| format!(" {v}"));
        return Err(Failure::new(Code::VersionNotFound, format!("model {} has no version{which}", entry.name())));
    }
    Ok(answer::json(tfs::status_json(&rows)))
}

/// A version's state in TensorFlow Serving's words.
fn status_row(status: &VersionStatus) -> tfs::VersionStatus<'_> {
    let state = match status.state {
        State::Pending => "START",
        State::Loading | State::Verifying | State::Warming => "LOADING",
        State::Ready | State::Serving => "AVAILABLE",
        State::Draining => "UNLOADING",
        State::Unloaded | State::Failed => "END",
    };
    let (error_code, error_message) = match status.state {
        // The reason itself may name files; it is for operators, on the admin plane.
        State::Failed => ("UNKNOWN", "the version failed to become ready; the admin plane says why"),
        _ => ("OK", ""),
    };
    tfs::VersionStatus { version: status.version, state, error_code, error_message }
}
