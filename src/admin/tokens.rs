//! Tokens, and who the caller is.

use super::Admin;
use super::body::{JsonBody, Members};
use super::caller::Caller;
use super::error::ErrorResponse;
use super::extract::{Operator, Target};
use super::schemas::Problem;
use crate::access::{Action, Grant, Identity, Models, NewToken, TokenFacts, is_token_name};
use crate::ledger::{TokenChange, TokenEffect, rfc3339};
use crate::model::{Code, Failure, quoted};
use crate::settings::parse_duration;
use axum::Json;
use axum::extract::State;
use axum::response::IntoResponse;
use http::StatusCode;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;
use utoipa::ToSchema;

/// The most tokens of a server.
const MOST_TOKENS: usize = 10_000;
/// The longest time until a token expires.
const LONGEST: Duration = Duration::from_hours(10 * 365 * 24);

/// Who the caller is, and what the caller may do.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct WhoAmI {
    /// The actor in the audit trail.
    actor: String,
    /// What proved it: `token`, `certificate`, `oidc`, or `unproven` where the admin plane needs no credentials.
    via: &'static str,
    grants: Vec<GrantView>,
    /// All actions that the grants allow on some model.
    actions: Vec<&'static str>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct GrantView {
    #[schema(value_type = RoleName)]
    role: &'static str,
    /// Names and patterns of models; `*` is all.
    models: Vec<String>,
}

/// The names of the roles.
#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
#[expect(dead_code, reason = "the schema of access::Role")]
pub(super) enum RoleName {
    Predict,
    Viewer,
    Operator,
    Approver,
    Admin,
}

/// A token without its secret.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Token {
    name: String,
    #[schema(value_type = RoleName)]
    role: &'static str,
    /// Names and patterns of models; `*` is all.
    models: Vec<String>,
    #[schema(format = DateTime)]
    created_at: String,
    created_by: String,
    /// Null: never.
    #[schema(format = DateTime)]
    expires_at: Option<String>,
    expired: bool,
    /// Null: not yet. After a crash, a use of the last minute may be missing.
    #[schema(format = DateTime)]
    last_used: Option<String>,
    /// It is valid on every gateway of the fleet.
    shared: bool,
}

/// All tokens, by name.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Tokens {
    tokens: Vec<Token>,
}

/// A new token. This answer is the only place where its secret ever stands.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct CreatedToken {
    #[serde(flatten)]
    facts: Token,
    /// The secret, for the header `authorization: Bearer …`.
    token: String,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RevokedToken {
    name: String,
    revoked: bool,
}

/// The body of a new token.
#[derive(ToSchema)]
#[schema(as = TokenRequest)]
#[expect(dead_code, reason = "the schema of what `TokenRequest::read` reads")]
pub(super) struct TokenRequest {
    /// The actor in the audit trail: 1 to 64 letters, digits, `.`, `_`, `-`, `@`, `+`.
    name: String,
    #[schema(value_type = RoleName)]
    role: String,
    /// Names and patterns such as `fraud-*`. Absent: all.
    #[schema(required = false)]
    models: Vec<String>,
    /// The time until it expires, such as `90d`. Absent: never.
    #[schema(required = false)]
    expires: Option<String>,
}

impl TokenRequest {
    /// Reads a body. Every complaint is reported at once.
    fn read(body: JsonBody, created_by: &str) -> Result<NewToken, Failure> {
        let mut members =
            Members::of(body, "{\"name\":\"ci\",\"role\":\"operator\",\"models\":[\"fraud-*\"],\"expires\":\"90d\"}")?;
        let name = members.take("name");
        let text = name.as_ref().and_then(Value::as_str).filter(|name| is_token_name(name)).map(str::to_owned);
        if text.is_none() {
            let expected = "1 to 64 letters, digits, `.`, `_`, `-`, `@` and `+`, but not local or system";
            members.complain("name", expected, name.as_ref());
        }
        let role = members.take("role");
        let parsed = role.as_ref().and_then(Value::as_str).and_then(|role| role.parse().ok());
        if parsed.is_none() {
            members.complain("role", "predict, viewer, operator, approver or admin", role.as_ref());
        }
        let models = members.parse("models", |value| {
            let wrong =
                || vec!["models: expected a list of names and patterns, such as [\"fraud\", \"risk-*\"]".to_owned()];
            let list = value.as_array().ok_or_else(wrong)?;
            let texts: Option<Vec<&str>> = list.iter().map(Value::as_str).collect();
            let texts = texts.filter(|texts| !texts.is_empty()).ok_or_else(wrong)?;
            Models::of(texts).map_err(|e| vec![format!("models: {e}")])
        });
        let expires_at = members.parse("expires", |value| {
            let time = value.as_str().and_then(expiry);
            time.ok_or_else(|| {
                vec!["expires: expected a time such as \"90d\" or \"12h\", at most ten years".to_owned()]
            })
        });
        members.finish()?;
        let incomplete = || Failure::new(Code::Internal, "the request is incomplete");
        let grant = Grant { role: parsed.ok_or_else(incomplete)?, models: models.unwrap_or(Models::All) };
        Ok(NewToken { name: text.ok_or_else(incomplete)?, grant, expires_at, created_by: created_by.to_owned() })
    }
}

/// When a token that is made now and is valid for this long expires.
fn expiry(text: &str) -> Option<Timestamp> {
    let time = parse_duration(text).filter(|time| !time.is_zero() && *time <= LONGEST)?;
    Timestamp::now().checked_add(time).ok()
}

/// Who am I
///
/// The identity that the credentials of this request prove.
#[utoipa::path(
    get, path = "/api/v1/whoami", tag = "access",
    responses(
        (status = 200, description = "The caller", body = WhoAmI),
        (status = 401, description = "No credentials, or wrong ones", body = Problem),
    )
)]
pub(super) async fn whoami(Caller(caller): Caller) -> Json<WhoAmI> {
    let Identity { name, via, grants } = &*caller;
    let view = |grant: &Grant| GrantView { role: grant.role.as_str(), models: grant.models.texts() };
    let actions = Action::ALL.into_iter().filter(|action| caller.may_somewhere(*action)).map(Action::as_str).collect();
    Json(WhoAmI { actor: name.clone(), via: via.as_str(), grants: grants.iter().map(view).collect(), actions })
}

/// All tokens
///
/// Without their secrets, which nobody has.
#[utoipa::path(
    get, path = "/api/v1/tokens", operation_id = "list_tokens", tag = "access",
    responses((status = 200, description = "Ordered by name", body = Tokens))
)]
pub(super) async fn list(State(admin): State<Arc<Admin>>) -> Json<Tokens> {
    Json(Tokens { tokens: admin.access.tokens().into_iter().map(Token::from).collect() })
}

/// Make a token
///
/// The answer has the secret, and nothing else ever has it.
#[utoipa::path(
    post, path = "/api/v1/tokens", operation_id = "create_token", tag = "access",
    request_body = TokenRequest,
    responses(
        (status = 201, description = "The token", body = CreatedToken),
        (status = 400, description = "The body is wrong; all complaints at once", body = Problem),
        (status = 409, description = "There is a token of this name", body = Problem),
    )
)]
pub(super) async fn create(
    State(admin): State<Arc<Admin>>,
    Operator(actor): Operator,
    body: JsonBody,
) -> Result<impl IntoResponse, ErrorResponse> {
    let new = TokenRequest::read(body, &actor.0)?;
    if admin.access.tokens().len() >= MOST_TOKENS {
        let message = format!("there are {MOST_TOKENS} tokens, which is the limit; revoke those that nobody uses");
        return Err(Failure::new(Code::Conflict, message).into());
    }
    let name = new.name.clone();
    let made = new
        .make()
        .map_err(|e| Failure::new(Code::Internal, "the system has no random bits").with_internal(e.to_string()));
    let (secret, stored) = made?;
    let facts = TokenFacts::of(&stored);
    let change = TokenChange { actor: actor.0, reason: None, effect: TokenEffect::Create(Box::new(stored)) };
    if !change_tokens(&admin, change).await? {
        let message =
            format!("there is a token named {} already; revoke it first, or choose another name", quoted(&name));
        return Err(Failure::new(Code::Conflict, message).into());
    }
    let facts = facts.ok_or_else(|| Failure::new(Code::Internal, "the token cannot be read back"))?;
    let facts = TokenFacts { shared: admin.fleet.is_some(), ..facts };
    Ok((StatusCode::CREATED, Json(CreatedToken { facts: facts.into(), token: secret })))
}

/// Revoke a token
///
/// Every later request with it is answered 401. Requests that are being answered are finished.
#[utoipa::path(
    delete, path = "/api/v1/tokens/{token}", operation_id = "revoke_token", tag = "access",
    params(("token" = String, Path, description = "Its name")),
    responses(
        (status = 200, description = "Revoked", body = RevokedToken),
        (status = 404, description = "No token has this name", body = Problem),
    )
)]
pub(super) async fn revoke(
    State(admin): State<Arc<Admin>>,
    target: Target,
    Operator(actor): Operator,
) -> Result<Json<RevokedToken>, ErrorResponse> {
    let name = target.token().to_owned();
    let effect = TokenEffect::Revoke { name: name.clone() };
    if !change_tokens(&admin, TokenChange { actor: actor.0, reason: None, effect }).await? {
        return Err(Failure::new(Code::NotFound, format!("no token is named {}", quoted(&name))).into());
    }
    Ok(Json(RevokedToken { name, revoked: true }))
}

/// Stores a change, and has it in force on both planes when this returns. In a task of its own: what is stored must come into force, even if
/// the client disconnects.
async fn change_tokens(admin: &Arc<Admin>, change: TokenChange) -> Result<bool, Failure> {
    let admin = Arc::clone(admin);
    let changing = tokio::spawn(async move {
        let changed = admin.handle.change_token(change).await?;
        if changed {
            let read = tokio::task::spawn_blocking(move || admin.access.reload(|| admin.ledger.tokens()));
            let read = read.await.map_err(|e| e.to_string()).and_then(|read| read.map_err(|e| e.to_string()));
            read.map_err(|internal| {
                let message =
                    "the change is stored, but comes into force only after a restart: the ledger cannot be read";
                Failure::new(Code::Internal, message).with_internal(internal)
            })?;
        }
        Ok(changed)
    });
    changing.await.map_err(|e| Failure::new(Code::Internal, "the change failed").with_internal(e.to_string()))?
}

impl From<TokenFacts> for Token {
    fn from(facts: TokenFacts) -> Token {
        Token {
            expired: facts.is_expired(Timestamp::now()),
            name: facts.name,
            role: facts.role.as_str(),
            models: facts.models.texts(),
            created_at: rfc3339(facts.created_at),
            created_by: facts.created_by,
            expires_at: facts.expires_at.map(rfc3339),
            last_used: facts.last_used.map(rfc3339),
            shared: facts.shared,
        }
    }
}
