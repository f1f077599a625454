//! The checks of host and origin.

use super::fixture::{Answer, Fixture};
use axum::body::Body;
use http::{HeaderValue, Request, Version};

const PATH: &str = "/api/v1/models/fraud:rollback";
const BODY: &str = r#"{"reason":"r"}"#;

fn get(fixture: &Fixture, host: &str) -> Answer {
    fixture.send("GET", "/api/v1/models", &[("host", host)], "")
}

#[test]
fn ip_addresses_localhost_and_configured_names_are_allowed_hosts() {
    let fixture = Fixture::new();
    for host in [
        "localhost",
        "localhost:8081",
        "LocalHost:9000",
        "localhost.",
        "127.0.0.1",
        "127.0.0.1:8081",
        "[::1]",
        "[::1]:8081",
        "10.1.2.3:8081",
        "[fe80::1]:8081",
        "ops.example",
        "OPS.example:443",
        "ops.example.:8081",
    ] {
        assert_eq!(get(&fixture, host).status, 200, "{host}");
    }
}

#[test]
fn any_other_host_is_refused_with_the_setting_that_allows_it() {
    let fixture = Fixture::new();
    for host in [
        "evil.example",
        "evil.example:8081",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "127.0.0.1.evil.example:8081",
        "evil-ops.example",
        "ops.example.evil.example",
        "notlocalhost",
        "127.1",
        "0x7f000001",
    ] {
        let answer = get(&fixture, host);
        answer.refused(403, "FORBIDDEN", "allowed_hosts, section [admin]");
        assert_eq!(fixture.send("POST", PATH, &[("host", host)], BODY).status, 403, "{host}");
    }
    let long = format!("{}.example", "a".repeat(5000));
    assert!(get(&fixture, &long).bytes.len() < 500, "the error does not repeat a long name");
    assert!(fixture.asked().is_empty(), "no command reached the manager");
}

#[test]
fn a_host_that_is_missing_malformed_or_given_twice_is_400() {
    let fixture = Fixture::new();
    let request = |version: Version, hosts: &[&'static [u8]]| {
        let mut request = Request::new(Body::empty());
        *request.uri_mut() = "/healthz".parse().unwrap();
        *request.version_mut() = version;
        for host in hosts {
            request.headers_mut().append("host", HeaderValue::from_bytes(host).unwrap());
        }
        fixture.send_request(request)
    };
    request(Version::HTTP_11, &[]).refused(400, "INVALID_REQUEST", "the host header is missing");
    request(Version::HTTP_2, &[]).refused(400, "INVALID_REQUEST", "the host header is missing");
    assert_eq!(request(Version::HTTP_10, &[]).status, 200, "HTTP/1.0 has no host header");
    for host in [&b""[..], b"a b", b"user@localhost", b"localhost/path", b"\xff", b"[::1"] {
        request(Version::HTTP_11, &[host]).refused(400, "INVALID_REQUEST", "the host header is not a host");
    }
    request(Version::HTTP_11, &[b"localhost", b"localhost"]).refused(400, "INVALID_REQUEST", "more than one");
    request(Version::HTTP_11, &[b"localhost", b"evil.example"]).refused(400, "INVALID_REQUEST", "more than one");
}

#[test]
fn the_host_in_the_request_target_is_checked_as_well() {
    let fixture = Fixture::new();
    let request = |uri: &str, host: Option<&'static str>| {
        let mut request = Request::new(Body::empty());
        *request.uri_mut() = uri.parse().unwrap();
        *request.version_mut() = if host.is_some() { Version::HTTP_11 } else { Version::HTTP_2 };
        if let Some(host) = host {
            request.headers_mut().insert("host", HeaderValue::from_static(host));
        }
        fixture.send_request(request)
    };
    assert_eq!(request("http://localhost:8081/healthz", None).status, 200);
    request("http://evil.example/healthz", None).refused(403, "FORBIDDEN", "evil.example");
    assert_eq!(request("http://localhost/healthz", Some("localhost")).status, 200);
    request("http://evil.example/healthz", Some("localhost")).refused(400, "INVALID_REQUEST", "different hosts");
}

#[test]
fn a_page_of_another_origin_may_read_but_not_change_anything() {
    let fixture = Fixture::new();
    let post = |host: &str, origin: &str| fixture.send("POST", PATH, &[("host", host), ("origin", origin)], BODY);
    for origin in [
        "https://evil.example",
        "null",
        "",
        "http://localhost.evil.example:8081",
        "http://127.0.0.1.evil.example",
        // Other servers on this machine are other origins.
        "http://localhost",
        "http://localhost:3000",
        "http://127.0.0.1:8081",
        "http://[::1]:8081",
        "file://localhost:8081",
        "localhost:8081",
    ] {
        post("localhost:8081", origin).refused(403, "FORBIDDEN", "web page");
    }
    assert!(fixture.asked().is_empty(), "no command reached the manager");
    assert_eq!(fixture.send("GET", "/healthz", &[("origin", "https://evil.example")], "").status, 200);
    for (host, origin) in [
        ("localhost:8081", "http://localhost:8081"),
        ("127.0.0.1:8081", "http://127.0.0.1:8081"),
        ("[::1]:8081", "http://[::1]:8081"),
        ("ops.example", "https://ops.example"),
    ] {
        assert_eq!(post(host, origin).status, 200, "{origin}");
    }
}

#[test]
fn a_request_that_a_page_of_another_site_sends_may_not_change_anything() {
    let fixture = Fixture::new();
    let send = |method: &str, path: &str, site: &str| fixture.send(method, path, &[("sec-fetch-site", site)], BODY);
    for site in ["cross-site", "same-site", "", "anything"] {
        send("POST", PATH, site).refused(403, "FORBIDDEN", "sec-fetch-site");
    }
    assert!(fixture.asked().is_empty(), "no command reached the manager");
    for site in ["same-origin", "none"] {
        assert_eq!(send("POST", PATH, site).status, 200, "{site}");
    }
    assert_eq!(fixture.send("GET", "/api/v1/models", &[("sec-fetch-site", "cross-site")], "").status, 200);
}

#[test]
fn another_port_of_localhost_is_another_origin() {
    let fixture = Fixture::new();
    for origin in [
        "http://localhost",
        "http://localhost:3000",
        "https://localhost:80",
        "http://127.0.0.1:8081",
        "http://localhost:*",
    ] {
        let headers = [("host", "localhost:8081"), ("origin", origin)];
        fixture.send("POST", PATH, &headers, BODY).refused(403, "FORBIDDEN", "another origin");
    }
    let own = [("host", "localhost:8081"), ("origin", "http://localhost:8081")];
    assert_eq!(fixture.send("POST", PATH, &own, BODY).status, 200);
}
