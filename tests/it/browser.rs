//! Chromium as a client: TLS with HTTP/2, and what a page of another site can do to the admin plane.
//!
//! `SLUICEGATE_TEST_BROWSER` names the program; `.ci/run` sets it. Without it these tests use a Chromium that is installed. Where there is none they do
//! nothing and say so; in CI (the variable `CI` is set) they fail.

use crate::support::tls::Certificates;
use crate::support::{Gateway, onnx};
use base64::Engine as _;
use sha2::{Digest as _, Sha256};
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

pub(crate) fn browser() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("SLUICEGATE_TEST_BROWSER") {
        return Some(named.into());
    }
    let path = std::env::var_os("PATH")?;
    let names = ["chromium-headless-shell", "chromium", "chromium-browser", "google-chrome"];
    let found =
        std::env::split_paths(&path).flat_map(|dir| names.map(|name| dir.join(name))).find(|file| file.is_file());
    if found.is_none() {
        assert!(
            !in_ci(),
            "CI has no Chromium (Debian: chromium-headless-shell): the tests with a browser are never left out there"
        );
        eprintln!("no Chromium is installed (Debian: chromium-headless-shell): this test does nothing");
    }
    found
}

/// Whether this is a run of CI, where no test is left out.
pub(crate) fn in_ci() -> bool {
    std::env::var_os("CI").is_some_and(|value| !value.is_empty())
}

/// What a page looks like once its scripts have run, and what the browser printed about errors.
pub(crate) fn open(browser: &Path, options: &[&str], url: &str) -> (String, String) {
    let profile = TempDir::new().unwrap();
    let mut child = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .args(options)
        .args(["--dump-dom", url])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{} does not run: {e}", browser.display()));
    let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let reading = std::thread::spawn(move || {
        let mut text = String::new();
        err.read_to_string(&mut text).map(|_| text).unwrap_or_default()
    });
    let dumped = std::thread::spawn(move || {
        let mut text = String::new();
        out.read_to_string(&mut text).map(|_| text).unwrap_or_default()
    });
    let until = Instant::now() + Duration::from_mins(1);
    while child.try_wait().unwrap().is_none() {
        if Instant::now() >= until {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("the browser has not ended within 60 s: {}", reading.join().unwrap());
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
    (dumped.join().unwrap(), reading.join().unwrap())
}

/// The option that makes the browser accept the certificate with this key, and no other that it does not trust.
fn trusting(certificates: &Certificates) -> String {
    let key = std::fs::read_to_string(certificates.path("server.key")).unwrap();
    let public = rcgen::PublicKeyData::subject_public_key_info(&rcgen::KeyPair::from_pem(&key).unwrap());
    let hash = base64::engine::general_purpose::STANDARD.encode(Sha256::digest(public));
    format!("--ignore-certificate-errors-spki-list={hash}")
}

#[test]
fn a_browser_speaks_http2_over_tls_and_refuses_a_certificate_that_it_does_not_trust() {
    let Some(browser) = browser() else { return };
    let dir = TempDir::new().unwrap();
    let certificates = Certificates::make(dir.path());
    std::fs::create_dir(dir.path().join("models")).unwrap();
    let trust = trusting(&certificates);
    let config = format!("{}{}", certificates.section("server.tls"), certificates.section("admin.tls"));
    let net_log = dir.path().join("net.json");
    let gateway = Gateway::start_in(dir, &config);
    let at = |port: u16, path: &str| format!("https://localhost:{port}{path}");
    let log = format!("--log-net-log={}", net_log.display());
    let (page, errors) = open(&browser, &[&trust, &log], &at(gateway.data().port(), "/v2"));
    assert!(page.contains("{\"name\":\"sluicegate\""), "{page}\n{errors}");
    let log = std::fs::read_to_string(&net_log).unwrap();
    assert!(log.contains("\"negotiated_protocol\":\"h2\"") || log.contains("\"next_proto\":\"h2\""), "HTTP/2 by ALPN");
    let (page, errors) = open(&browser, &[&trust], &at(gateway.admin().port(), "/api/v1/models"));
    assert!(page.contains("\"models\":[]"), "{page}\n{errors}");
    let (page, errors) = open(&browser, &[], &at(gateway.data().port(), "/v2"));
    // Chromium writes the name of the error into the page, or only its number into its log.
    let is_refused = errors.contains("ERR_CERT_AUTHORITY_INVALID") || errors.contains("net_error -202");
    assert!(!page.contains("sluicegate\"") && is_refused, "{page}\n{errors}");
}

/// A web server of another site with one page. It ends when the test drops the address and a last connection comes.
fn other_site(page: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://127.0.0.1:{}/", listener.local_addr().unwrap().port());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let page = page.clone();
            std::thread::spawn(move || {
                stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
                let mut request: Vec<u8> = Vec::new();
                let mut part = [0; 4096];
                while !request.windows(4).any(|w| w == b"\r\n\r\n") {
                    match stream.read(&mut part) {
                        Ok(n) if n > 0 => request.extend(&part[..n]),
                        _ => return,
                    }
                }
                let length = page.len();
                let _ = write!(
                    stream,
                    "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{page}"
                );
            });
        }
    });
    address
}

/// Tries to read and to change things, in every way that a page has, and writes down what it got.
const HOSTILE: &str = r#"<html><body><pre id="found"></pre><iframe name="hidden"></iframe><script>
const admin = "ADMIN", found = document.getElementById("found");
const say = (what, got) => { found.textContent += what + ": " + got + "\n"; };
const tries = [
  ["read", "/api/v1/models", {}],
  ["read without cors", "/api/v1/models", {mode: "no-cors"}],
  ["json", "/api/v1/models/scale:promote", {method: "POST", headers: {"content-type": "application/json"}, body: BODY}],
  ["text", "/api/v1/models/scale:promote", {method: "POST", mode: "no-cors", headers: {"content-type": "text/plain"}, body: BODY}],
  ["blob", "/api/v1/models/scale:promote", {method: "POST", mode: "no-cors", body: new Blob([BODY])}],
  ["put", "/api/v1/models/scale/traffic", {method: "PUT", body: BODY}],
  ["delete", "/api/v1/models/scale", {method: "DELETE"}],
];
const form = document.createElement("form");
form.action = admin + "/api/v1/models/scale:promote"; form.method = "POST"; form.enctype = "text/plain"; form.target = "hidden";
const field = document.createElement("input");
field.name = BODY.slice(0, -1) + ',"x":"'; field.value = '"}';
form.append(field); document.body.append(form); form.submit();
Promise.all(tries.map(([what, path, how]) => fetch(admin + path, how)
  .then(async answer => say(what, answer.type === "opaque" ? "opaque" : "READ " + await answer.text()), () => say(what, "refused"))))
  .then(() => say("all", "done"));
</script></body></html>"#;

#[test]
fn a_page_of_another_site_reads_nothing_of_the_admin_plane_and_changes_nothing() {
    let Some(browser) = browser() else { return };
    let gateway = Gateway::start(|models| {
        onnx::install(models, "scale", 1, &onnx::scaling(2.0));
        onnx::install(models, "scale", 2, &onnx::scaling(3.0));
    });
    assert_eq!(gateway.promote("scale", 1).status, 200);
    let events = |gateway: &Gateway| gateway.admin_get("/api/v1/audit").json()["events"].as_array().unwrap().clone();
    let before = events(&gateway);
    let body = serde_json::to_string(r#"{"version":"2","reason":"hostile"}"#).unwrap();
    for host in ["127.0.0.1", "localhost"] {
        let admin = format!("http://{host}:{}", gateway.admin().port());
        let site = other_site(HOSTILE.replace("ADMIN", &admin).replace("BODY", &body));
        let (page, errors) = open(&browser, &["--virtual-time-budget=10000"], &site);
        let found =
            page.split("<pre id=\"found\">").nth(1).and_then(|rest| rest.split("</pre>").next()).unwrap_or_default();
        let said = |what: &str| {
            let line = found
                .lines()
                .find_map(|line| line.split_once(&format!("{what}: ")).map(|(_, got)| got.trim().to_owned()));
            line.unwrap_or_else(|| panic!("{host}: the page says nothing about {what}: {page}\n{errors}"))
        };
        assert!(said("all").starts_with("done"), "{page}");
        // What needs a preflight gets none, and cross-origin-resource-policy keeps the answer to everything else from the page.
        for what in ["read", "read without cors", "json", "text", "blob", "put", "delete"] {
            assert_eq!(said(what), "refused", "{host}: {what}: {found}");
        }
    }
    // Other names can be made to lead here (DNS rebinding); then the browser takes the page for one of this origin.
    let rebound = "--host-resolver-rules=MAP evil.example 127.0.0.1";
    let evil = format!("http://evil.example:{}/api/v1/models", gateway.admin().port());
    let (page, errors) = open(&browser, &[rebound], &evil);
    assert!(page.contains("is not allowed on the admin port"), "{page}\n{errors}");
    assert!(!page.contains("\"scale\""), "{page}");
    assert_eq!(events(&gateway), before, "nothing was changed");
    let metrics = String::from_utf8(gateway.admin_get("/metrics").body).unwrap();
    let series = "sluicegate_admin_refused_total{code=\"FORBIDDEN\"} ";
    let refused = metrics.lines().find_map(|line| line.strip_prefix(series)).map(|count| count.parse::<f64>().unwrap());
    // For each address a text, a blob and a form; and the other name.
    assert!(refused.is_some_and(|count| count >= 7.0), "the refusals are counted: {refused:?}");
    assert!(gateway.admin_get("/api/v1/models").json().to_string().contains("scale"), "the model is there");
}
