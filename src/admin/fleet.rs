//! Handlers of the fleet: the gateways that share what was decided about models with this one, and what they share.

use super::Admin;
use super::caller::Caller;
use super::error::ErrorResponse;
use super::extract::Parameters;
use super::history::read;
use super::rollout::seconds;
use super::schemas::Problem;
use crate::access::Action;
use crate::fleet::{Fleet, FleetState, NodeView, RolloutView};
use crate::ledger::LedgerReader;
use crate::model::{Code, Failure, ModelName};
use axum::Json;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use utoipa::ToSchema;

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Fleet)]
pub(super) struct FleetAnswer {
    name: String,
    /// The gateway that answers.
    node: String,
    nodes: Vec<Node>,
    /// The active rollouts of models that the caller may see.
    rollouts: Vec<FleetRollout>,
}

/// An active rollout of the fleet.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct FleetRollout {
    model: String,
    /// The gateway that drives it.
    driver: String,
    /// Seconds since its lease was renewed, as the gateway that answers saw it; null where it was not seen.
    lease_age: Option<f64>,
    /// The gateways whose counts are in the driver's sum, and the seconds since their last counts are there.
    counted: BTreeMap<String, f64>,
}

/// A gateway of the fleet.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = FleetNode)]
pub(super) struct Node {
    name: String,
    /// `ready`, `starting`, `degraded` (cut off from NATS, as the gateway that answers sees itself) or `lost` (not heard for some seconds).
    state: &'static str,
    /// The version of the program.
    program: String,
    /// When it joined; empty where it has not.
    since: String,
    /// `[fleet] labels` of its configuration.
    labels: BTreeMap<String, String>,
    /// Documents that it has in force in an older revision than the fleet's.
    behind: u64,
    /// From NATS's time of the last change that was made elsewhere until it was in force there, in milliseconds. By two clocks: a figure for people.
    lag_ms: Option<u64>,
    /// By name; those that the caller may see.
    models: BTreeMap<String, NodeModel>,
}

/// What a gateway has of a model.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = FleetModel)]
pub(super) struct NodeModel {
    /// The fleet's revision of the traffic document that is in force there; 0 for none.
    revision: u64,
    /// The versions that get traffic.
    serving: Vec<String>,
    /// The versions that can get traffic.
    ready: Vec<String>,
    /// The versions that failed, and why.
    failed: BTreeMap<String, String>,
    /// The versions of the fleet's store that it fetches.
    fetching: BTreeMap<String, Fetching>,
    /// Why a newer revision is not in force there yet.
    waits: Option<String>,
}

/// How far a version is fetched.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = FleetFetching)]
pub(super) struct Fetching {
    /// The bytes that are there.
    bytes: u64,
    /// All bytes.
    of: u64,
}

/// Whether a model is to be on this gateway. One that cannot be served here and is somewhere else is not found.
///
/// # Errors
/// `MODEL_NOT_FOUND`, with where it is.
pub(super) fn check_here(admin: &Admin, model: &ModelName) -> Result<(), Failure> {
    let snapshot = admin.reader.snapshot();
    if snapshot.model(model.as_str()).is_some_and(|entry| entry.has_loaded()) {
        return Ok(());
    }
    snapshot.elsewhere(model.as_str()).map_or(Ok(()), |why| Err(Failure::new(Code::ModelNotFound, why)))
}

/// The gateways of the fleet
///
/// What each has in force, as the gateway that answers knows it: reports come each second. In a fleet of more than fifty gateways they are read when
/// somebody asks, and come less often.
#[utoipa::path(
    get, path = "/api/v1/fleet", operation_id = "show_fleet", tag = "fleet",
    responses(
        (status = 200, description = "The gateways", body = FleetAnswer),
        (status = 404, description = "This gateway is in no fleet", body = Problem),
        (status = 503, description = "The reports of the gateways could not be read in 3 s", body = Problem),
    )
)]
pub(super) async fn show(
    State(admin): State<Arc<Admin>>,
    Caller(caller): Caller,
) -> Result<Json<FleetAnswer>, ErrorResponse> {
    let view = of(&admin)?.view().await.map_err(|why| Failure::new(Code::NotReady, why))?;
    let shown = |node: NodeView| {
        let visible = node.models.into_iter().filter(|(model, _)| caller.may(Action::View, Some(model)));
        let models = visible.map(|(name, model)| {
            let crate::fleet::NodeModel { revision, serving, ready, failed, fetching, waits, .. } = model;
            let of = |(version, crate::fleet::Fetching { bytes, of })| (version, Fetching { bytes, of });
            let fetching = fetching.into_iter().map(of).collect();
            (name, NodeModel { revision, serving, ready, failed, fetching, waits })
        });
        let models = models.collect();
        let NodeView { name, state, program, since, labels, behind, lag_ms, .. } = node;
        Node { name, state, program, since, labels, behind, lag_ms, models }
    };
    let rollout = |of: RolloutView| FleetRollout {
        model: of.model.to_string(),
        driver: of.driver,
        lease_age: of.heard.map(seconds),
        counted: of.counted.into_iter().map(|(node, age)| (node, seconds(age))).collect(),
    };
    let rollouts = view.rollouts.into_iter().filter(|of| caller.may(Action::View, Some(of.model.as_str())));
    let rollouts = rollouts.map(rollout).collect();
    let nodes = view.nodes.into_iter().map(shown).collect();
    Ok(Json(FleetAnswer { name: view.name, node: view.node, nodes, rollouts }))
}

/// All that the fleet shares
///
/// A document that `sluicegate fleet import-state` stores in the data directory of a single gateway.
#[utoipa::path(
    get, path = "/api/v1/fleet/state", operation_id = "fleet_state", tag = "fleet",
    params(("tokens" = Option<bool>, Query, description = "With the tokens of the fleet, without their secrets; absent: false")),
    responses(
        (status = 200, description = "Each model with its traffic document, and what else is shared of it", body = Value),
        (status = 400, description = "A parameter is wrong; the error names it", body = Problem),
        (status = 404, description = "This gateway is in no fleet", body = Problem),
        (status = 503, description = "This gateway is cut off from its fleet", body = Problem),
    )
)]
pub(super) async fn state(
    State(admin): State<Arc<Admin>>,
    mut parameters: Parameters,
) -> Result<Json<FleetState>, ErrorResponse> {
    let tokens = parameters.take("tokens", |text| text.parse::<bool>().map_err(|_| "true or false".to_owned()));
    parameters.finish()?;
    let mut state = of(&admin)?.state().map_err(|why| {
        Failure::new(
            Code::NotReady,
            format!("the fleet's state is not known here now: {why}; ask another gateway of it"),
        )
    })?;
    if tokens == Some(true) {
        let stored = read(&admin.ledger, LedgerReader::tokens).await?;
        state.tokens = Some(stored.into_iter().filter(|token| token.shared).collect());
    }
    Ok(Json(state))
}

/// The audit trail of the fleet as JSON lines, oldest first, in pages
///
/// The events of all gateways in one chain, in the order in which the fleet took them.
#[utoipa::path(
    get, path = "/api/v1/fleet/audit", operation_id = "fleet_audit", tag = "fleet",
    params(("after" = Option<u64>, Query, description = "Only messages with a higher number; absent: from the first one")),
    responses(
        (status = 200, description = "One message per line: its number in the fleet, the gateway, its chain, the number of the event there, and as a text \
                                      the line of that gateway's own export (a large one in parts), with the hashes of the chain of the fleet. A page \
                                      has 4 MiB or a little more at most. An empty page is the end",
         body = String, content_type = "application/jsonl"),
        (status = 400, description = "A parameter is wrong; the error names it", body = Problem),
        (status = 404, description = "This gateway is in no fleet", body = Problem),
        (status = 503, description = "This gateway is cut off from its fleet", body = Problem),
    )
)]
pub(super) async fn audit(
    State(admin): State<Arc<Admin>>,
    mut parameters: Parameters,
) -> Result<impl IntoResponse, ErrorResponse> {
    let after = parameters.take("after", |text| text.parse().map_err(|_| "the number of a message".to_owned()));
    parameters.finish()?;
    let lines = of(&admin)?.audit(after.unwrap_or(0), AUDIT_MESSAGES, AUDIT_BYTES).await;
    let lines = lines.map_err(|why| Failure::new(Code::NotReady, format!("the fleet cannot be asked now: {why}")))?;
    Ok(([(CONTENT_TYPE, "application/jsonl")], lines))
}

/// What one page of the audit trail has at most.
const AUDIT_MESSAGES: usize = 1000;
const AUDIT_BYTES: usize = 4 << 20;

/// # Errors
/// `NOT_FOUND` in no fleet.
fn of(admin: &Admin) -> Result<&Fleet, Failure> {
    admin.fleet.as_ref().ok_or_else(|| {
        let words = "this gateway is in no fleet: [fleet] urls in its configuration names no server";
        Failure::new(Code::NotFound, words)
    })
}
