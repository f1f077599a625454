//! Who sends a request, and whether its endpoint allows that.

use super::Admin;
use super::error::ErrorResponse;
use super::extract::Target;
use crate::access::{ClientCertificate, Identity, Permission, Scope, credentials_needed};
use crate::http::discard;
use crate::model::{Code, Failure};
use crate::telemetry::names;
use axum::extract::{FromRequestParts, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::header::EXPECT;
use http::request::Parts;
use std::sync::Arc;

/// What an endpoint needs.
#[derive(Debug, Clone)]
pub(super) struct Needs {
    pub(super) admin: Arc<Admin>,
    pub(super) permission: Permission,
}

/// Who sent the request. Every endpoint that is not open has it.
#[derive(Debug, Clone)]
pub(super) struct Caller(pub(super) Arc<Identity>);

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = ErrorResponse;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Caller, ErrorResponse> {
        let caller = parts.extensions.get::<Caller>().cloned();
        let missing = "a handler of an open endpoint asks who the caller is";
        Ok(caller.ok_or_else(|| Failure::new(Code::Internal, "an internal error").with_internal(missing))?)
    }
}

/// Runs before the handler of every endpoint.
pub(super) async fn check(State(needs): State<Needs>, request: Request, next: Next) -> Response {
    let (mut parts, mut body) = request.into_parts();
    match allowed(&needs, &mut parts).await {
        Ok(caller) => {
            if let Some(caller) = caller {
                parts.extensions.insert(caller);
            }
            next.run(Request::from_parts(parts, body)).await
        }
        Err(refused) => {
            let code = refused.code;
            needs.admin.telemetry.process().counter(&names::ADMIN_REFUSED, &[("code", code.as_str())]).increment(1);
            tracing::warn!(%code, method = %parts.method, path = parts.uri.path(), "admin request refused: {}", refused.message);
            // A client that waits for `100 continue` has not sent its body.
            if !parts.headers.contains_key(EXPECT) {
                discard(&mut body).await;
            }
            ErrorResponse::from(refused).into_response()
        }
    }
}

/// The caller, if the endpoint allows it. An open endpoint looks at no credentials.
async fn allowed(needs: &Needs, parts: &mut Parts) -> Result<Option<Caller>, Failure> {
    let Needs { admin, permission } = needs;
    if *permission == Permission::Open {
        return Ok(None);
    }
    let certificate = parts.extensions.get::<Arc<ClientCertificate>>().map(AsRef::as_ref);
    let identity = match admin.access.identify(&parts.headers, certificate, None)? {
        Some(identity) => identity,
        None if admin.require_token => return Err(credentials_needed(certificate)),
        None => Arc::new(Identity::unproven(claimed_name(parts)?)),
    };
    match *permission {
        Permission::Open | Permission::AnyIdentity => {}
        Permission::To(action, Scope::Listed) => identity.check_somewhere(action)?,
        Permission::To(action, Scope::Everything) => identity.check(action, None)?,
        Permission::To(action, Scope::Model) => {
            let target = Target::of(parts).await?;
            identity.check(action, Some(target.model_text()))?;
        }
    }
    Ok(Some(Caller(identity)))
}

/// The name of a caller without credentials, for the audit trail: nothing proves it.
fn claimed_name(parts: &Parts) -> Result<String, Failure> {
    const HEADER: &str = "x-sluicegate-actor";
    const MAX_CHARS: usize = 128;
    let Some(value) = parts.headers.get(HEADER) else { return Ok("local".to_owned()) };
    let name = std::str::from_utf8(value.as_bytes()).map(str::trim).ok();
    // The names under which the server itself acts.
    let is_ours = |name: &str| ["system", "rollout"].contains(&name);
    let fits = |name: &&str| !name.is_empty() && name.chars().count() <= MAX_CHARS && !is_ours(name);
    let Some(name) = name.filter(fits) else {
        let message = format!(
            "{HEADER}: expected 1 to {MAX_CHARS} characters of UTF-8, and not a name of the server (system, rollout)"
        );
        return Err(Failure::new(Code::InvalidRequest, message));
    };
    Ok(name.to_owned())
}
