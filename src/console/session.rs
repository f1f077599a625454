//! Signing in: a cookie stands for a token until the session ends.
//!
//! The cookie has 256 random bits, and this process keeps its hash with the token, in memory. A session ends when it was not used for an hour, after
//! twelve hours, when the person signs out, with the process, and with its token: each page asks the API with the token.

use super::api::Credentials;
use super::form::PostedByAnybody;
use super::layout::Page;
use super::{Asked, Console, Console_, Fields, NoPage, refused, to};
use axum::extract::{Query, State};
use axum::http::header::{COOKIE, SET_COOKIE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac as _};
use maud::html;
use sha2::{Digest as _, Sha256};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use subtle::ConstantTimeEq as _;

const NAME: &str = "sluicegate-session";
const LONGEST: Duration = Duration::from_hours(12);
const IDLE: Duration = Duration::from_hours(1);
/// The most sessions. For a further one the one that was not used for longest ends.
const MOST: usize = 10_000;
/// The most of one token: whoever signs in again and again ends their own sessions, and not those of others.
const MOST_OF_ONE: usize = 20;
/// The longest text that is taken for a token. Those of identity providers have one to four kilobytes.
const MAX_TOKEN: usize = 16 << 10;

/// Who is signed in.
#[derive(Debug)]
pub(super) struct Sessions {
    open: Mutex<HashMap<[u8; 32], Session>>,
    /// Signs the forms of this process.
    key: [u8; 32],
}

#[derive(Debug)]
struct Session {
    credentials: Credentials,
    began: Instant,
    used: Instant,
}

impl Session {
    fn is_over(&self, now: Instant) -> bool {
        now.duration_since(self.began) >= LONGEST || now.duration_since(self.used) >= IDLE
    }
}

impl Sessions {
    /// # Errors
    /// When the system has no random bits.
    pub(super) fn new() -> std::io::Result<Sessions> {
        Ok(Sessions { open: Mutex::default(), key: random()? })
    }

    /// Begins a session. Returns what its cookie holds.
    ///
    /// # Errors
    /// When the system has no random bits.
    pub(super) fn begin(&self, credentials: Credentials, now: Instant) -> std::io::Result<String> {
        let id = URL_SAFE_NO_PAD.encode(random()?);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|_, session| !session.is_over(now));
        let own = || open.iter().filter(|(_, session)| session.credentials.is_same(&credentials));
        if own().count() >= MOST_OF_ONE
            && let Some(oldest) = own().min_by_key(|(_, session)| session.used).map(|(hash, _)| *hash)
        {
            open.remove(&oldest);
        }
        if open.len() >= MOST
            && let Some(oldest) = open.iter().min_by_key(|(_, session)| session.used).map(|(hash, _)| *hash)
        {
            open.remove(&oldest);
        }
        open.insert(hash(&id), Session { credentials, began: now, used: now });
        Ok(id)
    }

    pub(super) fn credentials(&self, id: &str) -> Option<Credentials> {
        self.credentials_at(id, Instant::now())
    }

    pub(super) fn credentials_at(&self, id: &str, now: Instant) -> Option<Credentials> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let session = open.get_mut(&hash(id)).filter(|session| !session.is_over(now))?;
        session.used = now;
        Some(session.credentials.clone())
    }

    pub(super) fn end(&self, id: &str) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&hash(id));
    }

    /// What a form must hold: no page of another site can know it.
    pub(super) fn csrf(&self, session: Option<&str>) -> String {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key).expect("HMAC takes keys of any length");
        mac.update(session.unwrap_or("nobody").as_bytes());
        URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes())
    }

    pub(super) fn is_ours(&self, session: Option<&str>, given: &str) -> bool {
        self.csrf(session).as_bytes().ct_eq(given.as_bytes()).into()
    }
}

fn random() -> std::io::Result<[u8; 32]> {
    let mut bits = [0; 32];
    getrandom::fill(&mut bits).map_err(std::io::Error::other)?;
    Ok(bits)
}

fn hash(id: &str) -> [u8; 32] {
    Sha256::digest(id.as_bytes()).into()
}

/// The session that a browser names.
pub(super) fn of(headers: &HeaderMap) -> Option<String> {
    let cookies = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    let pairs = cookies.flat_map(|text| text.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.filter(|(name, _)| *name == NAME).map(|(_, value)| value.to_owned()).next()
}

fn cookie(value: &str, secure: bool, seconds: u64) -> HeaderValue {
    let secure = if secure { "; Secure" } else { "" };
    let text = format!("{NAME}={value}; Path=/; HttpOnly; SameSite=Strict; Max-Age={seconds}{secure}");
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static(""))
}

/// A path of this site, to come back to.
fn back(fields: &Fields) -> &str {
    let path = fields.get("back").map_or("/", String::as_str);
    // "//host" and "/\host" lead elsewhere.
    let is_local = path.starts_with('/') && !path.starts_with("//") && !path.contains('\\');
    let is_local = is_local && path.bytes().all(|b| b.is_ascii_graphic());
    if is_local { path } else { "/" }
}

pub(super) async fn page(State(console): Console_, Query(fields): Asked) -> Response {
    form(&console, &fields, None)
}

fn form(console: &Console, fields: &Fields, refused: Option<&str>) -> Response {
    let csrf = console.sessions.csrf(None);
    let content = html! {
        h1 { "Sign in" }
        @if let Some(refused) = refused { p .bad role="alert" { (refused) } }
        form method="post" action="/sign-in" {
            input type="hidden" name="csrf" value=(csrf);
            input type="hidden" name="back" value=(back(fields));
            p {
                label for="token" { "Token" }
                input #token name="token" type="password" required autocomplete="current-password" autofocus spellcheck="false";
            }
            p { button .main { "Sign in" } }
        }
        p .quiet { "An admin makes a token with " code { "sluicegate token create --name N --role viewer" } ". It begins with " code { "sluice_" } "." }
    };
    let status = if refused.is_some() { StatusCode::UNAUTHORIZED } else { StatusCode::OK };
    (status, Page { title: "Sign in", section: "", who: "", csrf: "", signed_in: false, fleet: false }.with(&content))
        .into_response()
}

pub(super) async fn sign_in(State(console): Console_, PostedByAnybody(fields): PostedByAnybody) -> Response {
    let csrf = fields.get("csrf").map_or("", String::as_str);
    if !console.sessions.is_ours(None, csrf) {
        return form(&console, &fields, Some("This page is from before a restart of the server: try again."));
    }
    let token = fields.get("token").map_or("", |token| token.trim());
    let credentials = (token.len() <= MAX_TOKEN).then(|| Credentials::of_token(token)).flatten();
    let Some(credentials) = credentials.filter(|_| !token.is_empty()) else {
        return form(&console, &fields, Some("That is not a token."));
    };
    if let Err(problem) = console.api.get(&credentials, "/api/v1/whoami").await {
        return form(&console, &fields, Some(&problem.error));
    }
    match console.sessions.begin(credentials, Instant::now()) {
        Ok(id) => {
            let mut response = to(back(&fields));
            response.headers_mut().insert(SET_COOKIE, cookie(&id, console.secure, LONGEST.as_secs()));
            response
        }
        Err(error) => {
            tracing::error!(%error, "no session can begin");
            form(&console, &fields, Some("The server has no random bits for a session now."))
        }
    }
}

pub(super) async fn sign_out(
    State(console): Console_,
    headers: HeaderMap,
    PostedByAnybody(fields): PostedByAnybody,
) -> Result<Response, NoPage> {
    let session = of(&headers);
    check(&console, session.as_deref(), &fields)?;
    if let Some(session) = session {
        console.sessions.end(&session);
    }
    let mut response = to("/sign-in");
    response.headers_mut().insert(SET_COOKIE, cookie("", console.secure, 0));
    Ok(response)
}

/// Whether a form is one of ours, sent by the person it was made for.
pub(super) fn check(console: &Console, session: Option<&str>, fields: &Fields) -> Result<(), NoPage> {
    let given = fields.get("csrf").map_or("", String::as_str);
    if console.sessions.is_ours(session, given) {
        return Ok(());
    }
    let error = "this form is not one of yours, or is from before a restart of the server: go back, load the page again, and send it again";
    Err(refused(super::api::Problem::of(StatusCode::FORBIDDEN, error), "/", String::new(), console.fleet))
}
