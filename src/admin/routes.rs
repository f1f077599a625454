//! The table of endpoints, and the router built from it.

use super::error::{ErrorResponse, invalid_path};
use super::extract::SegmentWithoutVerb;
use super::{
    Admin, execution, guard, history, models, openapi, probes, push, quality, rollout, shadows, traffic, triton,
};
use crate::model::{Code, Failure};
use axum::Router;
use axum::extract::rejection::RawPathParamsRejection;
use axum::extract::{RawPathParams, Request};
use axum::handler::Handler;
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{self, MethodRouter};
use http::Method;
use std::collections::BTreeMap;
use std::sync::Arc;
use tower::ServiceExt;

/// One method of one path. A path may end in a verb: `/api/v1/models/{model}:promote`.
pub(super) struct Endpoint {
    #[cfg_attr(not(test), expect(dead_code, reason = "a test compares it with the OpenAPI document"))]
    pub(super) method: Method,
    pub(super) path: &'static str,
    methods: MethodRouter<Arc<Admin>>,
}

/// The table.
pub(super) fn endpoints() -> Vec<Endpoint> {
    vec![
        get("/healthz", probes::healthz),
        get("/readyz", probes::readyz),
        get("/metrics", probes::metrics),
        get("/openapi.json", openapi::document),
        get("/api/v1/models", models::list),
        get("/api/v1/models/{model}", models::show),
        delete("/api/v1/models/{model}", models::retire),
        post("/api/v1/models/{model}:promote", traffic::promote),
        post("/api/v1/models/{model}:rollback", traffic::rollback),
        post("/api/v1/models/{model}:rollout", rollout::begin),
        get("/api/v1/models/{model}/rollout", rollout::show),
        post("/api/v1/models/{model}/rollout:pause", rollout::pause),
        post("/api/v1/models/{model}/rollout:resume", rollout::resume),
        post("/api/v1/models/{model}/rollout:abort", rollout::abort),
        get("/api/v1/models/{model}/versions/{version}", models::version),
        put("/api/v1/models/{model}/versions/{version}", push::push),
        post("/api/v1/models/{model}/versions/{version}:load", models::load),
        post("/api/v1/models/{model}/versions/{version}:unload", models::unload),
        get("/api/v1/models/{model}/traffic", traffic::show),
        put("/api/v1/models/{model}/traffic", traffic::replace),
        get("/api/v1/models/{model}/shadows", shadows::list),
        get("/api/v1/models/{model}/shadows/{version}", shadows::show),
        get("/api/v1/models/{model}/execution", execution::show),
        get("/api/v1/models/{model}/quality", quality::show),
        get("/api/v1/log", quality::log),
        get("/api/v1/models/{model}/history", history::history),
        get("/api/v1/audit", history::audit),
        post("/v2/repository/index", triton::index),
        post("/v2/repository/models/{model}/load", triton::load),
        post("/v2/repository/models/{model}/unload", triton::unload),
    ]
}

fn get<T: 'static>(path: &'static str, handler: impl Handler<T, Arc<Admin>>) -> Endpoint {
    Endpoint { method: Method::GET, path, methods: routing::get(handler) }
}

fn post<T: 'static>(path: &'static str, handler: impl Handler<T, Arc<Admin>>) -> Endpoint {
    Endpoint { method: Method::POST, path, methods: routing::post(handler) }
}

fn delete<T: 'static>(path: &'static str, handler: impl Handler<T, Arc<Admin>>) -> Endpoint {
    Endpoint { method: Method::DELETE, path, methods: routing::delete(handler) }
}

fn put<T: 'static>(path: &'static str, handler: impl Handler<T, Arc<Admin>>) -> Endpoint {
    Endpoint { method: Method::PUT, path, methods: routing::put(handler) }
}

/// The methods of one path for each of its verbs; `None` is the path without a verb.
type Verbs = Vec<(Option<&'static str>, MethodRouter)>;

pub(super) fn build(admin: &Arc<Admin>) -> Router {
    let mut paths: BTreeMap<&'static str, Verbs> = BTreeMap::new();
    for endpoint in endpoints() {
        // After a parameter, axum would read the verb as part of the value. After a fixed segment it is an ordinary part of the path.
        let verb = endpoint.path.split_once(':').filter(|(path, _)| path.ends_with('}'));
        let (path, verb) = verb.map_or((endpoint.path, None), |(path, verb)| (path, Some(verb)));
        let methods = endpoint.methods.with_state(Arc::clone(admin));
        let verbs = paths.entry(path).or_default();
        match verbs.iter_mut().find(|(known, _)| *known == verb) {
            Some((_, known)) => *known = std::mem::take(known).merge(methods),
            None => verbs.push((verb, methods)),
        }
    }
    let mut router = Router::new();
    for (path, verbs) in paths {
        router = router.route(path, dispatch(verbs));
    }
    router.fallback(not_found).layer(from_fn_with_state(Arc::clone(admin), guard::check))
}

/// Routes by the verb after the last `:` of the path. Patterns of axum cannot express that.
fn dispatch(verbs: Verbs) -> MethodRouter {
    let verbs: Verbs = verbs.into_iter().map(|(verb, methods)| (verb, methods.fallback(method_not_allowed))).collect();
    if let [(None, methods)] = &verbs[..] {
        return methods.clone();
    }
    let verbs = Arc::new(verbs);
    routing::any(move |params: Result<RawPathParams, RawPathParamsRejection>, mut request: Request| {
        let verbs = Arc::clone(&verbs);
        async move {
            let Ok(params) = params else { return invalid_path().into_response() };
            let last = params.iter().last().map_or("", |(_, segment)| segment);
            let (segment, verb) = last.rsplit_once(':').map_or((last, None), |(segment, verb)| (segment, Some(verb)));
            let Some((_, methods)) = verbs.iter().find(|(known, _)| *known == verb) else {
                return unknown_verb(verb.unwrap_or_default(), &verbs).into_response();
            };
            request.extensions_mut().insert(SegmentWithoutVerb(segment.to_owned()));
            methods.clone().oneshot(request).await.into_response()
        }
    })
}

fn unknown_verb(verb: &str, verbs: &Verbs) -> ErrorResponse {
    let known: Vec<&str> = verbs.iter().filter_map(|(verb, _)| *verb).collect();
    let verb: String = verb.chars().take(40).collect();
    Failure::new(Code::NotFound, format!("unknown verb {verb:?}; known verbs: {}", known.join(", "))).into()
}

async fn not_found(request: Request) -> Response {
    let path: String = request.uri().path().chars().take(200).collect();
    let message = format!("there is no endpoint at {path:?}; /openapi.json lists all endpoints");
    ErrorResponse::from(Failure::new(Code::NotFound, message)).into_response()
}

/// axum adds the `allow` header.
async fn method_not_allowed(method: Method) -> ErrorResponse {
    let message = format!("{method} is not allowed on this path; the allow header lists the methods that are");
    Failure::new(Code::MethodNotAllowed, message).into()
}
