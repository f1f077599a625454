//! The table of endpoints, and the router built from it.

use super::caller::{self, Needs};
use super::error::{ErrorResponse, invalid_path};
use super::extract::{Parameters, SegmentWithoutVerb};
use super::{
    Admin, alerts, approvals, callers, drift, execution, figures, fleet, gateway, guard, headers, history, lineage,
    logged, mlflow, models, openapi, outcomes, overview, probes, push, quality, rollout, search, shadows, sources,
    tokens, traffic, triton,
};
use crate::access::{Action, Permission, Scope};
use crate::model::{Code, Failure};
use axum::Router;
use axum::extract::rejection::RawPathParamsRejection;
use axum::extract::{RawPathParams, Request};
use axum::handler::Handler;
use axum::middleware::{Next, from_fn, from_fn_with_state, map_response};
use axum::response::{IntoResponse, Response};
use axum::routing::{self, MethodRouter};
use http::Method;
use std::collections::BTreeMap;
use std::sync::Arc;
use tower::ServiceExt;

/// One method of one path, with what it needs of its caller. A path may end in a verb: `/api/v1/models/{model}:promote`.
pub(super) struct Endpoint {
    pub(super) method: Method,
    pub(super) path: &'static str,
    pub(super) permission: Permission,
    methods: MethodRouter<Arc<Admin>>,
}

/// The table. Open are the probes, which an orchestrator sends without credentials, and the description of this API, which is public.
pub(super) fn endpoints() -> Vec<Endpoint> {
    use Action::{Administer, Approve, Operate, View};
    use Permission::{AnyIdentity, Open, To};
    use Scope::{Everything, Listed, Model};
    vec![
        get("/healthz", Open, probes::healthz),
        get("/readyz", Open, probes::readyz),
        get("/metrics", To(View, Everything), probes::metrics),
        get("/openapi.json", Open, openapi::document),
        plain("/api/v1/whoami", AnyIdentity, tokens::whoami),
        get("/api/v1/overview", To(View, Listed), overview::show),
        plain("/api/v1/figures", To(View, Listed), figures::list),
        get("/api/v1/models/{model}/figures", To(View, Model), figures::show),
        plain("/api/v1/gateway", To(View, Everything), gateway::show),
        plain("/api/v1/callers", To(View, Everything), callers::list),
        plain("/api/v1/sources", To(View, Everything), sources::list),
        post("/api/v1/sources:read", To(Operate, Everything), sources::read),
        plain("/api/v1/mlflow", To(View, Everything), mlflow::show),
        plain("/api/v1/fleet", To(View, Listed), fleet::show),
        get("/api/v1/fleet/state", To(Administer, Everything), fleet::state),
        get("/api/v1/fleet/audit", To(View, Everything), fleet::audit),
        get("/api/v1/alerts", To(View, Listed), alerts::list),
        post("/api/v1/alerts:test", To(Operate, Everything), alerts::test),
        plain("/api/v1/alerts/silences", To(View, Listed), alerts::silences),
        post("/api/v1/alerts/silences", To(Operate, Listed), alerts::silence),
        delete("/api/v1/alerts/silences/{silence}", To(Operate, Listed), alerts::end_silence),
        plain("/api/v1/tokens", To(Administer, Everything), tokens::list),
        post("/api/v1/tokens", To(Administer, Everything), tokens::create),
        delete("/api/v1/tokens/{token}", To(Administer, Everything), tokens::revoke),
        plain("/api/v1/models", To(View, Listed), models::list),
        plain("/api/v1/models/{model}", To(View, Model), models::show),
        delete("/api/v1/models/{model}", To(Operate, Model), models::retire),
        post("/api/v1/models/{model}:promote", To(Operate, Model), traffic::promote),
        post("/api/v1/models/{model}:rollback", To(Operate, Model), traffic::rollback),
        post("/api/v1/models/{model}:rollout", To(Operate, Model), rollout::begin),
        plain("/api/v1/models/{model}/rollout", To(View, Model), rollout::show),
        post("/api/v1/models/{model}/rollout:pause", To(Operate, Model), rollout::pause),
        post("/api/v1/models/{model}/rollout:resume", To(Operate, Model), rollout::resume),
        post("/api/v1/models/{model}/rollout:abort", To(Operate, Model), rollout::abort),
        post("/api/v1/models/{model}/versions", To(Operate, Model), push::push_next),
        get("/api/v1/models/{model}/versions/{version}", To(View, Model), models::version),
        put("/api/v1/models/{model}/versions/{version}", To(Operate, Model), push::push),
        plain("/api/v1/models/{model}/versions/{version}/lineage", To(View, Model), lineage::show),
        post("/api/v1/models/{model}/versions/{version}:load", To(Operate, Model), models::load),
        post("/api/v1/models/{model}/versions/{version}:unload", To(Operate, Model), models::unload),
        plain("/api/v1/models/{model}/versions/{version}/approval", To(View, Model), approvals::show),
        post("/api/v1/models/{model}/versions/{version}:approve", To(Approve, Model), approvals::approve),
        post("/api/v1/models/{model}/versions/{version}:reject", To(Approve, Model), approvals::reject),
        plain("/api/v1/models/{model}/traffic", To(View, Model), traffic::show),
        put("/api/v1/models/{model}/traffic", To(Operate, Model), traffic::replace),
        get("/api/v1/models/{model}/assignment", To(View, Model), traffic::assignment),
        plain("/api/v1/models/{model}/shadows", To(View, Model), shadows::list),
        plain("/api/v1/models/{model}/shadows/{version}", To(View, Model), shadows::show),
        plain("/api/v1/models/{model}/execution", To(View, Model), execution::show),
        get("/api/v1/models/{model}/quality", To(View, Model), quality::show),
        get("/api/v1/models/{model}/experiment", To(View, Model), outcomes::show),
        get("/api/v1/models/{model}/drift", To(View, Model), drift::show),
        post("/api/v1/models/{model}/export", To(Operate, Model), logged::export),
        post("/api/v1/models/{model}/replay", To(Operate, Model), logged::replay),
        get("/api/v1/models/{model}/requests", To(View, Model), search::list),
        get("/api/v1/models/{model}/requests/{request}", To(View, Model), search::show),
        post("/api/v1/models/{model}/requests:reproduce", To(Operate, Model), search::reproduce),
        post("/api/v1/models/{model}/requests:explain", To(Operate, Model), search::explain),
        plain("/api/v1/log", To(View, Everything), quality::log),
        plain("/api/v1/models/{model}/history", To(View, Model), history::history),
        get("/api/v1/audit", To(View, Listed), history::audit),
        plain("/api/v1/audit/head", To(View, Everything), history::head),
        get("/api/v1/audit/export", To(View, Everything), history::export),
        post("/v2/repository/index", To(View, Listed), triton::index),
        post("/v2/repository/models/{model}/load", To(Operate, Model), triton::load),
        post("/v2/repository/models/{model}/unload", To(Operate, Model), triton::unload),
    ]
}

fn get<T: 'static>(path: &'static str, permission: Permission, handler: impl Handler<T, Arc<Admin>>) -> Endpoint {
    Endpoint { method: Method::GET, path, permission, methods: routing::get(handler) }
}

/// A GET without parameters: one that is given is refused, as on the other paths.
fn plain<T: 'static>(path: &'static str, permission: Permission, handler: impl Handler<T, Arc<Admin>>) -> Endpoint {
    let methods = routing::get(handler).route_layer(from_fn(no_parameters));
    Endpoint { method: Method::GET, path, permission, methods }
}

fn post<T: 'static>(path: &'static str, permission: Permission, handler: impl Handler<T, Arc<Admin>>) -> Endpoint {
    Endpoint { method: Method::POST, path, permission, methods: routing::post(handler) }
}

fn delete<T: 'static>(path: &'static str, permission: Permission, handler: impl Handler<T, Arc<Admin>>) -> Endpoint {
    Endpoint { method: Method::DELETE, path, permission, methods: routing::delete(handler) }
}

fn put<T: 'static>(path: &'static str, permission: Permission, handler: impl Handler<T, Arc<Admin>>) -> Endpoint {
    Endpoint { method: Method::PUT, path, permission, methods: routing::put(handler) }
}

/// The methods of one path for each of its verbs; `None` is the path without a verb.
type Verbs = Vec<(Option<&'static str>, MethodRouter)>;

/// `beside` adds what stands beside the API on its port, and asks the API it is given.
pub(super) fn build<E>(admin: &Arc<Admin>, beside: impl FnOnce(Router) -> Result<Router, E>) -> Result<Router, E> {
    let mut paths: BTreeMap<&'static str, Verbs> = BTreeMap::new();
    for endpoint in endpoints() {
        // After a parameter, axum would read the verb as part of the value. After a fixed segment it is an ordinary part of the path.
        let verb = endpoint.path.split_once(':').filter(|(path, _)| path.ends_with('}'));
        let (path, verb) = verb.map_or((endpoint.path, None), |(path, verb)| (path, Some(verb)));
        let needs = Needs { admin: Arc::clone(admin), permission: endpoint.permission };
        let methods = endpoint.methods.route_layer(from_fn_with_state(needs, caller::check));
        let methods = methods.with_state(Arc::clone(admin));
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
    let router = beside(router.fallback(not_found))?;
    let router = router.layer(from_fn_with_state(Arc::clone(admin), guard::check));
    Ok(router.layer(map_response(headers::add)))
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
            let Ok(params) = params else { return ErrorResponse::from(invalid_path()).into_response() };
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

async fn no_parameters(parameters: Parameters, request: Request, next: Next) -> Result<Response, ErrorResponse> {
    parameters.finish()?;
    Ok(next.run(request).await)
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
