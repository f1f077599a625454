//! Protection against web pages in an operator's browser.
//!
//! On loopback the API may ask for no token, and any page can make a browser on this machine send requests to it. These checks stop that:
//!
//! - **Host.** With DNS rebinding a page's own host name resolves to this machine, so that the browser treats the API as the page's
//!   origin and lets the page read answers. The `Host` header still carries the page's name, so only known names are allowed. IP
//!   addresses are always allowed, because they cannot be rebound.
//! - **Sec-Fetch-Site.** Browsers say whether a request comes from a page of another site. Such a request may not change anything.
//! - **Origin.** Browsers add the page's origin to requests that change something. It must be this API itself. Requests that only read
//!   pass: the browser does not show the answer to a page of another origin.

use super::Admin;
use super::error::ErrorResponse;
use crate::model::{Code, Failure};
use crate::telemetry::names;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::header::{HOST, ORIGIN};
use http::uri::Authority;
use http::{HeaderValue, Method, Uri, Version};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

pub(super) async fn check(State(admin): State<Arc<Admin>>, request: Request, next: Next) -> Response {
    let checked = host(&request).and_then(|host| {
        check_host(host.as_ref(), &admin.allowed_hosts)?;
        check_origin(&request, host.as_ref())
    });
    match checked {
        Ok(()) => next.run(request).await,
        Err(failure) => {
            if failure.code == Code::Forbidden {
                let labels = [("code", failure.code.as_str())];
                admin.telemetry.process().counter(&names::ADMIN_REFUSED, &labels).increment(1);
            }
            ErrorResponse::from(failure).into_response()
        }
    }
}

/// The host and port that the request names; `None` only before HTTP/1.1, which no browser speaks.
fn host(request: &Request) -> Result<Option<Authority>, Failure> {
    let invalid = |message: &str| Failure::new(Code::InvalidRequest, message);
    let mut headers = request.headers().get_all(HOST).iter();
    let header = headers.next().map(|value| {
        let host = Authority::try_from(value.as_bytes()).ok().filter(|host| !host.as_str().contains('@'));
        host.ok_or_else(|| invalid("the host header is not a host with an optional port"))
    });
    let header = header.transpose()?;
    if headers.next().is_some() {
        return Err(invalid("the request has more than one host header"));
    }
    // HTTP/2 sends the host in the request target, and so may HTTP/1.1.
    let target = request.uri().authority().cloned();
    match (target, header) {
        (Some(target), Some(header)) if target != header => {
            Err(invalid("the host header and the request target name different hosts"))
        }
        (None, None) if request.version() >= Version::HTTP_11 => Err(invalid("the host header is missing")),
        (target, header) => Ok(target.or(header)),
    }
}

fn check_host(host: Option<&Authority>, allowed: &[String]) -> Result<(), Failure> {
    let Some(host) = host.map(Authority::host) else { return Ok(()) };
    let name = host.strip_suffix('.').unwrap_or(host);
    let is_ipv6 = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).map(str::parse::<Ipv6Addr>);
    let is_ip = name.parse::<Ipv4Addr>().is_ok() || is_ipv6.is_some_and(|ip| ip.is_ok());
    let is = |allowed: &str| allowed.strip_suffix('.').unwrap_or(allowed).eq_ignore_ascii_case(name);
    if is_ip || is("localhost") || allowed.iter().any(|allowed| is(allowed)) {
        return Ok(());
    }
    let host: String = host.chars().take(128).collect();
    let message = format!(
        "host {host:?} is not allowed on the admin port: allowed are IP addresses, localhost and the names in allowed_hosts, \
         section [admin] of the configuration; if operators use this name, add it there"
    );
    Err(Failure::new(Code::Forbidden, message))
}

fn check_origin(request: &Request, host: Option<&Authority>) -> Result<(), Failure> {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let site = request.headers().get("sec-fetch-site").map(HeaderValue::as_bytes);
    if !reads && !matches!(site, None | Some(b"same-origin" | b"none")) {
        let message = "the sec-fetch-site header says that a web page of another origin sends this, which may not change anything here";
        return Err(Failure::new(Code::Forbidden, message));
    }
    match request.headers().get(ORIGIN) {
        Some(origin) if !reads && !is_same_origin(origin, host) => {
            let message = "the origin header names a web page of another origin, which may not change anything here";
            Err(Failure::new(Code::Forbidden, message))
        }
        _ => Ok(()),
    }
}

fn is_same_origin(origin: &HeaderValue, host: Option<&Authority>) -> bool {
    let origin = std::str::from_utf8(origin.as_bytes()).ok().and_then(|text| text.parse::<Uri>().ok());
    let is_http = |uri: &Uri| matches!(uri.scheme_str(), Some("http" | "https"));
    // Hosts are compared without regard to case.
    origin.filter(is_http).is_some_and(|origin| origin.authority().is_some() && origin.authority() == host)
}
