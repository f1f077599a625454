//! The `OpenAPI` document, generated from the handlers.

use super::{execution, models, past, probes, push, quality, rollout, shadows, traffic, triton};
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use std::sync::LazyLock;
use utoipa::OpenApi;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Sluicegate admin API",
        description = "The operators' plane: what is loaded, which version answers whom, and who changed it. Every error is answered \
                       as Problem. Requests that carry a foreign `origin` header may only read. `x-sluicegate-actor` says who asks, \
                       for the audit trail; without it, that is `local`."
    ),
    paths(
        probes::healthz,
        probes::readyz,
        probes::metrics,
        document,
        models::list,
        models::show,
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
        past::history,
        past::audit,
        triton::index,
        triton::load,
        triton::unload,
    ),
    tags(
        (name = "probes", description = "For orchestrators and scrapers"),
        (name = "models", description = "Models and their versions"),
        (name = "traffic", description = "Which version answers whom"),
        (name = "quality", description = "What feedback says, and the log it is kept in"),
        (name = "history", description = "What was changed, by whom and why"),
        (name = "triton", description = "Triton's model repository extension, for clients that speak it"),
    )
)]
struct Document;

/// The document's text, as `docs/openapi.json` has it.
pub(super) static TEXT: LazyLock<String> = LazyLock::new(|| {
    let text = Document::openapi().to_pretty_json();
    text.expect("the document is made of strings and lists, which JSON can write") + "\n"
});

/// This document
#[utoipa::path(
    get, path = "/openapi.json", operation_id = "openapi", tag = "probes",
    responses((status = 200, description = "OpenAPI 3.1", content_type = "application/json"))
)]
pub(super) async fn document() -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], TEXT.as_str())
}
