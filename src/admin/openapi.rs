//! The `OpenAPI` document, generated from the handlers.

use super::{execution, history, models, probes, push, quality, rollout, shadows, traffic, triton};
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use std::sync::LazyLock;
use utoipa::OpenApi;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Sluicegate admin API",
        description = "For operators: which versions are loaded, which of them answers, and who changed that. Every error has the body \
                       Problem. The host must be an IP address, localhost or a name in `allowed_hosts` (section [admin] of the \
                       configuration). A request with the `origin` header of another site may only read. The header \
                       `x-sluicegate-actor` names the operator for the audit trail; without it, the name is `local`."
    ),
    paths(
        probes::healthz,
        probes::readyz,
        probes::metrics,
        document,
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
        models::load,
        models::unload,
        traffic::show,
        traffic::replace,
        shadows::list,
        shadows::show,
        execution::show,
        quality::show,
        quality::log,
        history::history,
        history::audit,
        triton::index,
        triton::load,
        triton::unload,
    ),
    tags(
        (name = "probes", description = "For orchestrators and scrapers"),
        (name = "models", description = "Models and their versions"),
        (name = "traffic", description = "Which version answers"),
        (name = "quality", description = "Quality from feedback, and the prediction log"),
        (name = "history", description = "Past changes"),
        (name = "triton", description = "Triton's model repository extension"),
    )
)]
struct Document;

/// The text of `docs/openapi.json`.
pub(super) static TEXT: LazyLock<String> = LazyLock::new(|| {
    let text = Document::openapi().to_pretty_json();
    text.expect("the document consists of strings and lists, which always serialize") + "\n"
});

/// This document
#[utoipa::path(
    get, path = "/openapi.json", operation_id = "openapi", tag = "probes",
    responses((status = 200, description = "OpenAPI 3.1", content_type = "application/json"))
)]
pub(super) async fn document() -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], TEXT.as_str())
}
