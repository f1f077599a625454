//! Handlers of the fleet: the gateways that share their traffic documents with this one.

use super::Admin;
use super::caller::Caller;
use super::error::ErrorResponse;
use super::schemas::Problem;
use crate::access::Action;
use crate::fleet::NodeView;
use crate::model::{Code, Failure};
use axum::Json;
use axum::extract::State;
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
    /// Why a newer revision is not in force there yet.
    waits: Option<String>,
}

/// The gateways of the fleet
///
/// What each has in force, as the gateway that answers knows it: reports come each second.
#[utoipa::path(
    get, path = "/api/v1/fleet", operation_id = "show_fleet", tag = "fleet",
    responses(
        (status = 200, description = "The gateways", body = FleetAnswer),
        (status = 404, description = "This gateway is in no fleet", body = Problem),
    )
)]
pub(super) async fn show(
    State(admin): State<Arc<Admin>>,
    Caller(caller): Caller,
) -> Result<Json<FleetAnswer>, ErrorResponse> {
    let Some(fleet) = &admin.fleet else {
        let words = "this gateway is in no fleet: [fleet] urls in its configuration names no server";
        return Err(Failure::new(Code::NotFound, words).into());
    };
    let view = fleet.view();
    let of = |node: NodeView| {
        let visible = node.models.into_iter().filter(|(model, _)| caller.may(Action::View, Some(model)));
        let models = visible.map(|(name, model)| {
            let crate::fleet::NodeModel { revision, serving, ready, failed, waits } = model;
            (name, NodeModel { revision, serving, ready, failed, waits })
        });
        Node { name: node.name, state: node.state, program: node.program, since: node.since, models: models.collect() }
    };
    Ok(Json(FleetAnswer { name: view.name, node: view.node, nodes: view.nodes.into_iter().map(of).collect() }))
}
