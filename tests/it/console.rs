//! The console of a running gateway: pages that show what the API says, and forms that do what it would do.

use crate::support::tls::{Certificates, handshake};
use crate::support::{Answer, Gateway, eventually, infer_body, onnx};
use serde_json::{Value, json};
use sluicegate::tls::{Wanted, make};
use std::io::{Read as _, Write as _};
use tempfile::TempDir;

fn gateway() -> Gateway {
    Gateway::start(|models| {
        onnx::install(models, "scale", 1, &onnx::scaling(2.0));
        onnx::install(models, "scale", 2, &onnx::scaling(3.0));
        std::fs::create_dir_all(models.join("broken/1")).unwrap();
        std::fs::write(models.join("broken/1/model.onnx"), "<script>alert(1)</script>").unwrap();
    })
}

fn text(answer: &Answer) -> String {
    String::from_utf8(answer.body.clone()).unwrap()
}

/// The value of a hidden field of the page's last form.
fn hidden(page: &str, name: &str) -> String {
    let mark = format!("name=\"{name}\" value=\"");
    let value = page.rsplit_once(&mark).map(|(_, rest)| rest.split('"').next().unwrap());
    value.unwrap_or_else(|| panic!("no field {name}: {page}")).to_owned()
}

fn split(gateway: &Gateway) -> Value {
    gateway.admin_get("/api/v1/models/scale/traffic").json()["split"].clone()
}

#[test]
fn a_person_promotes_splits_and_goes_back_by_the_pages() {
    let gateway = gateway();
    assert_eq!(gateway.post("/v2/models/scale/infer", infer_body(&[1, 2], &[1.0, 2.0])).status, 200);
    let home = text(&gateway.admin_get("/"));
    assert!(home.find(">broken<").unwrap() < home.find(">scale<").unwrap(), "what does not answer comes first: {home}");
    assert!(text(&gateway.admin_get("/models/scale")).contains("Version 2 answers 100 %"));

    let look = text(&gateway.admin_get("/models/scale/promote?version=1"));
    assert!(look.contains("split[0].version") && look.contains("Version 1 answers 100 %"), "{look}");
    assert_eq!(split(&gateway)[0]["version"], "2", "a look changes nothing");
    let (csrf, revision) = (hidden(&look, "csrf"), hidden(&look, "revision"));
    let promote =
        [("csrf", &*csrf), ("revision", &*revision), ("version", "1"), ("reason", "fewer \"errors\" & <b>more</b>")];
    let done = gateway.admin_form("/models/scale/promote", &promote);
    assert!(done.status == 200 && text(&done).contains("Done: promote"), "{}", text(&done));
    assert_eq!(split(&gateway)[0]["version"], "1");
    let audit = gateway.admin_get("/api/v1/audit?model=scale").json()["events"][0].clone();
    assert_eq!((&audit["action"], &audit["reason"]), (&json!("promote"), &json!("fewer \"errors\" & <b>more</b>")));
    assert!(text(&gateway.admin_get("/audit")).contains("fewer &quot;errors&quot; &amp; &lt;b&gt;more&lt;/b&gt;"));

    // A second person acts on what was there before.
    let stale = [("csrf", &*csrf), ("revision", &*revision), ("version", "2"), ("reason", "mine")];
    let refused = gateway.admin_form("/models/scale/promote", &stale);
    assert_eq!(refused.status, 412, "{}", text(&refused));
    assert!(text(&refused).contains("changed since you looked at it"), "{}", text(&refused));
    assert_eq!(split(&gateway)[0]["version"], "1", "nothing was overwritten");

    let look = text(&gateway.admin_form(
        "/models/scale/split",
        &[("csrf", &csrf), ("step", "preview"), ("weight-1", "70"), ("weight-2", "30")],
    ));
    assert!(look.contains("Version 1 answers 70 %, version 2 answers 30 %"), "{look}");
    let revision = hidden(&look, "revision");
    let fields = [
        ("csrf", &*csrf),
        ("revision", &*revision),
        ("weight-1", "70"),
        ("weight-2", "30"),
        ("sticky_by", "header:x-user"),
        ("reason", "try"),
    ];
    assert_eq!(gateway.admin_form("/models/scale/split", &fields).status, 200);
    assert_eq!(split(&gateway).as_array().unwrap().len(), 2);

    let look = text(&gateway.admin_get("/models/scale/rollback"));
    let fields = [("csrf", &*csrf), ("revision", &*hidden(&look, "revision")), ("reason", "enough")];
    assert_eq!(gateway.admin_form("/models/scale/rollback", &fields).status, 200);
    assert_eq!(split(&gateway)[0]["version"], "1");
    let unload = gateway.admin_form("/models/scale/unload", &[("csrf", &csrf), ("version", "2"), ("reason", "memory")]);
    assert_eq!(unload.status, 200, "{}", text(&unload));
    gateway.wait_state("scale", 2, "unloaded");
    let event = gateway.admin_get("/api/v1/audit?model=scale&limit=1").json()["events"][0].clone();
    assert_eq!((&event["action"], &event["reason"]), (&json!("unload"), &json!("memory")));
    let refused =
        gateway.admin_form("/models/scale/unload", &[("csrf", &csrf), ("version", "1"), ("reason", "memory")]);
    assert!(refused.status == 409 && text(&refused).contains("traffic document"), "{}", text(&refused));
}

/// Strangers that begin to send a form and never end take no place from others.
#[test]
fn forms_that_never_end_do_not_lock_the_admin_plane() {
    let gateway = gateway();
    let head = format!(
        "POST /sign-in HTTP/1.1\r\nhost: {}\r\ncontent-type: application/x-www-form-urlencoded\r\ncontent-length: 100000\r\n\r\n",
        gateway.admin()
    );
    let strangers: Vec<std::net::TcpStream> = (0..200)
        .map(|_| {
            let mut stream = std::net::TcpStream::connect(gateway.admin()).unwrap();
            // The server may have refused it already.
            let _ = stream.write_all(head.as_bytes());
            stream
        })
        .collect();
    let began = std::time::Instant::now();
    assert_eq!(gateway.admin_get("/healthz").status, 200);
    assert!(began.elapsed() < std::time::Duration::from_secs(4), "{:?}", began.elapsed());
    drop(strangers);
}

/// Chromium without a window can be given no client certificate, so the pages are asked for as a browser with one asks for them.
#[test]
fn a_client_certificate_signs_a_person_in_and_a_viewers_changes_nothing() {
    let dir = TempDir::new().unwrap();
    let certificates = Certificates { dir: dir.path().join("tls") };
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let clients = ["anna", "ben", "eve"].map(str::to_owned).to_vec();
    make(&Wanted { dir: certificates.dir.clone(), names, clients, days: 30 }).unwrap();
    let models = dir.path().join("models");
    for version in [1, 2] {
        onnx::install(&models, "scale", version, &onnx::scaling(version as f32));
    }
    let config = format!(
        "[admin]\nrequire_token = true\n{}[access]\ncertificates = [{{ name = \"anna\", role = \"viewer\" }}, {{ name = \"ben\", role = \"operator\" }}]\n",
        certificates.section_with_clients("admin.tls")
    );
    let gateway = Gateway::start_in(dir, &config);
    let ask = |identity: Option<&str>, method: &str, path: &str, form: &str| -> (u16, String) {
        let mut tls = handshake(gateway.admin(), &certificates.client(&["http/1.1"], identity));
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\norigin: https://localhost\r\nsec-fetch-site: same-origin\r\nconnection: close\r\n\
             content-type: application/x-www-form-urlencoded\r\ncontent-length: {}\r\n\r\n{form}",
            form.len()
        );
        tls.write_all(head.as_bytes()).unwrap();
        let mut answer = Vec::new();
        // Without a certificate the server ends the handshake, which the client may see only now.
        let read = tls.read_to_end(&mut answer);
        let text = String::from_utf8_lossy(&answer).into_owned();
        (text.get(9..12).and_then(|code| code.parse().ok()).unwrap_or(0), format!("{text}{read:?}"))
    };
    let get = |identity: &str, path: &str| ask(Some(identity), "GET", path, "");
    eventually("both versions are there", || {
        get("anna", "/models/scale").1.contains("Version 2 answers 100 %").then_some(())
    });

    let (status, home) = get("anna", "/");
    assert!(
        status == 200 && home.contains(">anna<") && !home.contains("Sign out"),
        "there is no session to end: {home}"
    );
    let (_, page) = get("anna", "/models/scale");
    for action in ["/promote?", "/split", "/rollback", "/unload?", "/retire"] {
        assert!(!page.contains(&format!("href=\"/models/scale{action}")), "a viewer is offered no {action}: {page}");
    }
    let (_, page) = get("ben", "/models/scale");
    assert!(page.contains(">ben<") && page.contains("/models/scale/promote?version=1"), "{page}");

    let (status, look) = get("ben", "/models/scale/promote?version=1");
    assert_eq!(status, 200, "{look}");
    let form = |csrf: &str, revision: &str| format!("csrf={csrf}&revision={revision}&version=1&reason=by+certificate");
    let (csrf, revision) = (hidden(&look, "csrf"), hidden(&look, "revision"));
    // The token of a form proves where the form is from, and not who sends it.
    let (status, refused) = ask(Some("anna"), "POST", "/models/scale/promote", &form(&csrf, &revision));
    assert!(status == 403 && refused.contains("operator or admin"), "{status} {refused}");
    let (_, page) = get("anna", "/models/scale");
    assert!(page.contains("Version 2 answers 100 %"), "nothing was changed: {page}");
    let (status, refused) = ask(Some("ben"), "POST", "/models/scale/promote", &form("x", &revision));
    assert_eq!(status, 403, "{refused}");
    let (status, done) = ask(Some("ben"), "POST", "/models/scale/promote", &form(&csrf, &revision));
    assert!(status == 303 && done.contains("location: /models/scale?done=promote"), "{status} {done}");
    let (_, page) = get("anna", "/models/scale");
    assert!(page.contains("Version 1 answers 100 %"), "{page}");
    let (_, audit) = get("anna", "/api/v1/audit?model=scale&limit=1");
    assert!(audit.contains("\"actor\":\"ben\"") && audit.contains("by certificate"), "{audit}");

    let (status, stranger) = get("eve", "/");
    assert!(
        status == 303 && stranger.contains("location: /sign-in"),
        "a certificate that nobody named is nobody: {stranger}"
    );
    assert_eq!(ask(None, "GET", "/", "").0, 0, "without a certificate there is no connection");
}

#[test]
fn figures_of_arms_are_kept_and_shown() {
    let gateway = gateway();
    for _ in 0..20 {
        assert_eq!(gateway.post("/v2/models/scale/infer", infer_body(&[1, 2], &[1.0, 2.0])).status, 200);
    }
    let series = crate::support::eventually("the requests are in the history", || {
        let figures = gateway.admin_get("/api/v1/models/scale/figures?window=5m").json();
        let series = figures["series"].as_array().unwrap().clone();
        (!series.is_empty()).then_some(series)
    });
    assert_eq!((&series[0]["version"], &series[0]["arm"]), (&json!("2"), &json!("2")));
    assert!(series[0]["points"][0]["p99_us"].as_f64().unwrap() > 0.0, "{series:?}");
    let all = gateway.admin_get("/api/v1/figures").json();
    assert!(all["models"]["scale"]["requests_per_s"].as_f64().unwrap() > 0.0, "{all}");
    assert!(all["models"]["broken"].is_null(), "a model without requests is not there");
    assert!(text(&gateway.admin_get("/")).contains("polyline"), "the page draws them");
    let wrong = gateway.admin_get("/api/v1/models/scale/figures?window=20d");
    assert_eq!(wrong.status, 400);
    let dir = gateway.stop();
    let again = Gateway::start_in(dir, "");
    crate::support::eventually("they are there after a restart", || {
        let figures = again.admin_get("/api/v1/models/scale/figures?window=1h").json();
        figures["series"].as_array().is_some_and(|series| !series.is_empty()).then_some(())
    });
}
