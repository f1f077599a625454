//! The `OpenAPI` document, generated from the handlers.

use super::routes::{Endpoint, endpoints};
use super::{
    alerts, approvals, callers, drift, execution, figures, fleet, gateway, history, lineage, logged, mlflow, models,
    outcomes, overview, probes, push, quality, rollout, search, shadows, sources, tokens, traffic, triton,
};
use crate::access::{Permission, Scope};
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use serde_json::{Value, json};
use std::sync::LazyLock;
use utoipa::OpenApi;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Sluicegate admin API",
        description = "For operators: which versions are loaded, which of them answers, and who changed that. Every error has the body \
                       Problem. The host must be an IP address, localhost or a name in `allowed_hosts` (section [admin] of the \
                       configuration). A request with the `origin` header of another site may only read. Where credentials \
                       are needed, 401 UNAUTHENTICATED is the answer to none or wrong ones, and 403 FORBIDDEN to those that do not allow it. \
                       The name of the token, of the certificate or of the identity provider is the actor in the audit trail. Where none are \
                       needed, the header `x-sluicegate-actor` names the operator; without it, the name is `local`."
    ),
    paths(
        probes::healthz,
        probes::readyz,
        probes::metrics,
        gateway::show,
        document,
        tokens::whoami,
        callers::list,
        sources::list,
        sources::read,
        mlflow::show,
        alerts::list,
        alerts::test,
        alerts::silences,
        alerts::silence,
        alerts::end_silence,
        overview::show,
        figures::list,
        figures::show,
        fleet::show, fleet::state, fleet::audit,
        tokens::list,
        tokens::create,
        tokens::revoke,
        approvals::show,
        approvals::approve,
        approvals::reject,
        models::list,
        models::show,
        models::retire,
        traffic::promote,
        traffic::rollback,
        rollout::begin,
        rollout::show,
        rollout::pause,
        rollout::resume,
        rollout::abort,
        models::version,
        push::push,
        push::push_next,
        lineage::show,
        models::load,
        models::unload,
        traffic::show,
        traffic::replace,
        traffic::assignment,
        shadows::list,
        shadows::show,
        execution::show,
        quality::show,
        drift::show,
        quality::log,
        logged::export,
        logged::replay,
        search::list,
        search::show,
        search::reproduce,
        search::explain,
        outcomes::show,
        history::history,
        history::audit,
        history::head,
        history::export,
        triton::index,
        triton::load,
        triton::unload,
    ),
    tags(
        (name = "probes", description = "For orchestrators and scrapers"),
        (name = "access", description = "Who may do what"),
        (name = "models", description = "Models and their versions"),
        (name = "traffic", description = "Which version answers"),
        (name = "quality", description = "Quality from feedback, and the prediction log"),
        (name = "requests", description = "Logged requests: find them, look at one, run it again"),
        (name = "fleet", description = "The gateways that share what was decided about models, and tokens"),
        (name = "alerts", description = "What is wrong, and who is told"),
        (name = "history", description = "Past changes"),
        (name = "triton", description = "Triton's model repository extension"),
    )
)]
struct Document;

/// The text of `docs/openapi.json`.
pub(super) static TEXT: LazyLock<String> = LazyLock::new(|| {
    let document = serde_json::to_value(Document::openapi());
    let mut document = document.expect("the document consists of strings and lists, which always serialize");
    add_permissions(&mut document);
    format!("{document:#}\n")
});

/// Adds what each endpoint needs of its caller, as the table of endpoints states it: `x-permission`, `security`, and the answers 401 and 403.
fn add_permissions(document: &mut Value) {
    let bearer = json!({"type": "http", "scheme": "bearer", "description": "A token of `sluicegate token create`"});
    document["components"]["securitySchemes"] = json!({"bearer": bearer});
    let problem = |description: &str| {
        let schema = json!({"$ref": "#/components/schemas/Problem"});
        json!({"description": description, "content": {"application/json": {"schema": schema}}})
    };
    for Endpoint { method, path, permission, .. } in endpoints() {
        let operation = &mut document["paths"][path][method.as_str().to_lowercase()];
        let (needs, scope) = match permission {
            Permission::Open => ("nothing", None),
            Permission::AnyIdentity => ("any identity", None),
            Permission::To(action, Scope::Model) => (action.as_str(), Some("the model in the path")),
            Permission::To(action, Scope::Listed) => (action.as_str(), Some("some model; the answer has only those")),
            Permission::To(action, Scope::Everything) => (action.as_str(), Some("all models")),
        };
        operation["x-permission"] = json!({"action": needs, "scope": scope});
        if permission == Permission::Open {
            operation["security"] = json!([]);
            continue;
        }
        operation["security"] = json!([{"bearer": []}, {}]);
        operation["responses"]["401"] = problem("No credentials where they are needed, or wrong ones");
        operation["responses"]["403"] = problem("The credentials do not allow it; the error says what would be needed");
        if let Some(responses) = operation["responses"].as_object_mut() {
            responses.sort_keys();
        }
    }
}

/// This document
#[utoipa::path(
    get, path = "/openapi.json", operation_id = "openapi", tag = "probes",
    responses((status = 200, description = "OpenAPI 3.1", content_type = "application/json"))
)]
pub(super) async fn document() -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], TEXT.as_str())
}
