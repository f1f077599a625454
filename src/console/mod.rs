//! console: the pages for people who operate the gateway, in a browser.
//!
//! - [`pages`] adds the pages to the router of the admin API. A page asks that API in process, with the credentials of the person, so it shows and does
//!   what the API would, with the same permissions.
//! - `form.rs` reads the forms that are sent, within limits.
//! - `session.rs` signs people in: a cookie that only the browser holds, which stands for a token until it ends.
//! - `models.rs`, `model.rs`, `requests.rs`, `request.rs`, `alerts.rs`, `audit.rs`, `gateway.rs` (with `well.rs`) and `fleet.rs` are one page each. `actions.rs` changes models
//!   (with documents of `proposals.rs`) and `silence.rs` silences alerts: they first show what would change.
//! - A page is complete without JavaScript. `assets/console.js` replaces its content every few seconds.
//!
//! Uses: access (client certificates, patterns), readable.
//!
//! Invariant: nothing here reads or changes anything but through the API; text of models, callers and operators is never markup; nothing is
//! loaded from elsewhere.
//!
//! To add a page: a file with its function, its line in [`pages`], its link in `layout.rs`, its row in docs/CONSOLE.md.

mod actions;
mod alerts;
mod api;
mod audit;
mod chart;
mod difference;
mod drift;
mod evidence;
mod fleet;
mod flow;
mod form;
mod gateway;
mod layout;
mod model;
mod models;
mod percentiles;
mod proposals;
mod request;
mod requests;
mod rollout;
mod runs;
mod searching;
mod session;
mod show;
mod silence;
#[cfg(test)]
mod tests;
mod timeline;
mod well;

use api::{Api, Credentials};
use axum::Router;
use axum::extract::{Query, Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, LOCATION, REFERRER_POLICY};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::middleware::{Next, from_fn};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use layout::Page;
use maud::Markup;
use session::Sessions;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::Semaphore;

/// What all pages share.
#[derive(Debug)]
struct Console {
    api: Api,
    sessions: Sessions,
    /// The admin plane has TLS, so cookies are for it alone.
    secure: bool,
    /// The gateway is in a fleet, which has a page.
    fleet: bool,
    /// Places of forms of anybody.
    forms: Semaphore,
}

/// The parameters of a query or a form. Of a name that is given twice the last one counts.
type Fields = HashMap<String, String>;

/// What a page loads: this style and this script, from here. Nothing in a page is run or styled by itself.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; \
                      base-uri 'none'; frame-ancestors 'none'";

const STYLE: &str = include_str!("assets/console.css");
const SCRIPT: &str = include_str!("assets/console.js");
const ICON: &str = include_str!("assets/console.svg");

/// The router of the API with the pages beside it. `secure`: it is reached over TLS. `fleet`: the gateway is in a fleet.
///
/// # Errors
/// When the system has no random bits.
pub(crate) fn pages(api: Router, secure: bool, fleet: bool) -> std::io::Result<Router> {
    let (sessions, forms) = (Sessions::new()?, Semaphore::new(form::OF_ANYBODY));
    let console = Arc::new(Console { api: Api::new(api.clone()), sessions, secure, fleet, forms });
    let pages = Router::new()
        .route("/", get(models::page))
        .route("/sign-in", get(session::page).post(session::sign_in))
        .route("/sign-out", axum::routing::post(session::sign_out))
        .route("/models/{model}", get(model::page))
        .route("/models/{model}/versions/{version}", get(model::version))
        .route("/models/{model}/{action}", get(actions::preview).post(actions::perform))
        .route("/requests", get(requests::page))
        .route("/requests/{model}/{request}", get(request::page))
        .route("/requests/{model}/{request}/{action}", axum::routing::post(request::again))
        .route("/alerts", get(alerts::page))
        .route("/alerts/silence", get(silence::preview).post(silence::perform))
        .route("/alerts/silences/{id}/end", get(silence::preview_end).post(silence::end))
        .route("/audit", get(audit::page))
        .route("/gateway", get(gateway::page))
        .route("/fleet", get(fleet::page))
        .layer(from_fn(html_headers))
        .with_state(console);
    let assets = Router::new().route("/console.css", get(style)).route("/console.js", get(script));
    let assets = assets.route("/console.svg", get(icon));
    Ok(pages.merge(assets).fallback_service(api))
}

async fn html_headers(request: Request, next: Next) -> Response {
    let began = Instant::now();
    let mut response = next.run(request).await;
    // The script asks for a page that takes long more seldom.
    let took = format!("page;dur={:.1}", began.elapsed().as_secs_f64() * 1e3);
    let took = HeaderValue::try_from(took).unwrap_or(HeaderValue::from_static("page"));
    response.headers_mut().insert(HeaderName::from_static("server-timing"), took);
    response.headers_mut().insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    // Names of models do not leave with a link, and forms name their origin: with `no-referrer` a browser calls it "null", and the admin plane refuses.
    response.headers_mut().insert(REFERRER_POLICY, HeaderValue::from_static("same-origin"));
    response
}

async fn style() -> Response {
    asset("text/css; charset=utf-8", STYLE)
}

async fn script() -> Response {
    asset("text/javascript; charset=utf-8", SCRIPT)
}

async fn icon() -> Response {
    asset("image/svg+xml", ICON)
}

/// Pages name them with their digest, so a browser may keep them.
fn asset(content_type: &'static str, text: &'static str) -> Response {
    let kept = HeaderValue::from_static("private, max-age=31536000, immutable");
    ([(CONTENT_TYPE, HeaderValue::from_static(content_type)), (CACHE_CONTROL, kept)], text).into_response()
}

/// Why there is no page.
#[derive(Debug)]
enum NoPage {
    /// The person has to sign in first, and comes back here.
    SignIn { back: String },
    /// The API refused, in words.
    Refused { problem: api::Problem, who: String, fleet: bool },
}

impl IntoResponse for NoPage {
    fn into_response(self) -> Response {
        match self {
            NoPage::SignIn { back } => to(&format!("/sign-in?back={}", show::escaped(&back))),
            NoPage::Refused { problem, who, fleet } => {
                let content = layout::problem(&problem);
                let page = Page { title: "Refused", section: "", who: &who, csrf: "", signed_in: false, fleet };
                (problem.status, page.with(&content)).into_response()
            }
        }
    }
}

/// See other: a form is not sent again when the page is loaded again.
fn to(path: &str) -> Response {
    let location = HeaderValue::from_str(path).unwrap_or(HeaderValue::from_static("/"));
    (StatusCode::SEE_OTHER, [(LOCATION, location)]).into_response()
}

/// A person who looks at a page.
#[derive(Debug)]
struct Visitor {
    console: Arc<Console>,
    credentials: Credentials,
    /// As the audit trail will name them.
    name: String,
    /// What they may do to every model, as the API spells it.
    actions: Vec<String>,
    /// Proves that a form is one of ours.
    csrf: String,
    /// With a session, which can be ended.
    signed_in: bool,
    /// The path and query of this page.
    here: String,
}

impl axum::extract::FromRequestParts<Arc<Console>> for Visitor {
    type Rejection = NoPage;

    async fn from_request_parts(
        parts: &mut axum::http::request::Parts,
        console: &Arc<Console>,
    ) -> Result<Visitor, NoPage> {
        let here = parts.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        let session = session::of(&parts.headers);
        let credentials = console.credentials(parts, session.as_deref());
        let who = console.api.get(&credentials, "/api/v1/whoami").await;
        let who = who.map_err(|problem| refused(problem, &here, String::new(), console.fleet))?;
        let actions = who["actions"].as_array().into_iter().flatten().filter_map(|a| a.as_str().map(str::to_owned));
        let csrf = console.sessions.csrf(session.as_deref());
        let name = who["actor"].as_str().unwrap_or_default().to_owned();
        let signed_in = session.is_some_and(|session| console.sessions.credentials(&session).is_some());
        let actions = actions.collect();
        Ok(Visitor { console: Arc::clone(console), credentials, name, actions, csrf, signed_in, here })
    }
}

fn refused(problem: api::Problem, here: &str, who: String, fleet: bool) -> NoPage {
    if problem.status == StatusCode::UNAUTHORIZED {
        return NoPage::SignIn { back: here.to_owned() };
    }
    NoPage::Refused { problem, who, fleet }
}

impl Visitor {
    /// What the API answers this person.
    async fn get(&self, path: &str) -> Result<serde_json::Value, NoPage> {
        self.console.api.get(&self.credentials, path).await.map_err(|problem| self.no_page(problem))
    }

    /// The same where an error is an answer too: a model may have no rollout.
    async fn try_get(&self, path: &str) -> Option<serde_json::Value> {
        self.console.api.get(&self.credentials, path).await.ok()
    }

    fn no_page(&self, problem: api::Problem) -> NoPage {
        refused(problem, &self.here, self.name.clone(), self.console.fleet)
    }

    fn may(&self, action: &str) -> bool {
        self.actions.iter().any(|allowed| allowed == action)
    }

    fn page(&self, title: &str, section: &str, content: &Markup) -> Response {
        Html(self.html(title, section, content)).into_response()
    }

    fn html(&self, title: &str, section: &str, content: &Markup) -> String {
        let Visitor { name: who, csrf, signed_in, console, .. } = self;
        Page { title, section, who, csrf, signed_in: *signed_in, fleet: console.fleet }.with(content).0
    }
}

/// Extractors that most pages need.
type Console_ = State<Arc<Console>>;
type Asked = Query<Fields>;
