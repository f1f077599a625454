//! Who may do what, on the real binary: tokens made offline and over the API, both planes closed, and the refusals.

use crate::support::process::Served;
use crate::support::tls::{Certificates, handshake};
use crate::support::{Answer, Gateway, configuration, eventually, infer_body, onnx};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde_json::{Value, json};
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use tempfile::TempDir;

struct Reply {
    status: u16,
    headers: ureq::http::HeaderMap,
    text: String,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }
}

fn call(method: &str, url: &str, token: Option<&str>, body: Option<&str>) -> Reply {
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let mut request = ureq::http::Request::builder().method(method).uri(url);
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let answer = match body {
        Some(body) => agent.run(request.header("content-type", "application/json").body(body.to_owned()).unwrap()),
        None => agent.run(request.body(()).unwrap()),
    };
    let mut answer = answer.unwrap_or_else(|e| panic!("{method} {url}: {e}"));
    let text = answer.body_mut().read_to_string().unwrap();
    Reply { status: answer.status().as_u16(), headers: answer.headers().clone(), text }
}

fn sluicegate(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sluicegate"))
        .args(arguments)
        .env_remove("SLUICEGATE_TOKEN")
        .env_remove("SLUICEGATE_ADMIN")
        .envs(environment.iter().copied())
        .output()
        .unwrap()
}

#[track_caller]
fn printed(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Makes a token in a data directory without a server.
fn token(dir: &Path, name: &str, role: &str, models: &str) -> String {
    let data = dir.join("data").display().to_string();
    let mut arguments = vec!["token", "create", "--name", name, "--role", role, "--data-dir", &data];
    if !models.is_empty() {
        arguments.extend(["--models", models]);
    }
    let text = printed(&sluicegate(&arguments, &[]));
    let secret = text.strip_suffix('\n').expect("one line");
    assert!(secret.len() == 56 && secret.starts_with("sluice_"), "the token alone is on standard output: {text:?}");
    secret.to_owned()
}

fn models(dir: &Path) {
    let models = dir.join("models");
    onnx::install(&models, "self", 1, &onnx::answering(1.0, 4, 0));
    onnx::install(&models, "other", 1, &onnx::answering(1.0, 4, 0));
}

fn wait_ready(served: &Served) {
    served.ready();
}

#[test]
fn a_closed_data_plane_answers_those_whose_role_and_model_fit() {
    let dir = tempfile::tempdir().unwrap();
    models(dir.path());
    let shop = token(dir.path(), "shop", "predict", "se*");
    let viewer = token(dir.path(), "watch", "viewer", "");
    let mut served = Served::start_with(dir.path(), &[("SLUICEGATE__SERVER__REQUIRE_TOKEN", "true")]);
    wait_ready(&served);
    let body = String::from_utf8(infer_body(&[1, 4], &[0.0; 4]).into()).unwrap();
    let url = |path: &str| format!("http://{}{path}", served.data);
    let post = |path: &str, token: Option<&str>, body: &str| call("POST", &url(path), token, Some(body));

    assert_eq!(post("/v2/models/self/infer", Some(&shop), &body).status, 200);
    let anonymous = post("/v2/models/self/infer", None, &body);
    assert_eq!(
        (anonymous.status, anonymous.json()["code"].clone()),
        (401, json!("UNAUTHENTICATED")),
        "{}",
        anonymous.text
    );
    assert_eq!(anonymous.headers["www-authenticate"], "Bearer realm=\"sluicegate\"");
    assert!(
        anonymous.headers.contains_key("x-request-id") && anonymous.text.contains("token create"),
        "{}",
        anonymous.text
    );
    // Neither says whether the model exists.
    for model in ["other", "nobody"] {
        let refused = post(&format!("/v2/models/{model}/infer"), Some(&shop), &body);
        assert_eq!((refused.status, refused.json()["code"].clone()), (403, json!("FORBIDDEN")), "{}", refused.text);
    }
    for (method, path) in [
        ("POST", "/v1/models/self:predict"),
        ("POST", "/v1/models/self:feedback"),
        ("GET", "/v2/models/self"),
        ("GET", "/v2/models/self/ready"),
        ("GET", "/v1/models/self"),
        ("GET", "/v1/models/self/metadata"),
    ] {
        let body = (method == "POST").then_some("{}");
        assert_eq!(call(method, &url(path), None, body).status, 401, "{method} {path}");
        assert_eq!(call(method, &url(path), Some(&viewer), body).status, 403, "{method} {path}");
        let allowed = call(method, &url(path), Some(&shop), body).status;
        assert!(allowed == 200 || allowed == 400, "{method} {path}: {allowed}");
    }
    assert_eq!(call("GET", &url("/v2"), None, None).status, 401);
    assert_eq!(call("GET", &url("/v2"), Some(&viewer), None).status, 200, "any identity may read the server's name");
    for probe in ["/v2/health/live", "/v2/health/ready"] {
        assert_eq!(call("GET", &url(probe), None, None).status, 200, "{probe} is open");
        assert_eq!(call("GET", &url(probe), Some("wrong"), None).status, 200, "{probe} looks at no credentials");
    }
    // A large body that is refused is still read, so that the client gets its answer.
    let large = "x".repeat(4 << 20);
    assert_eq!(post("/v2/models/self/infer", None, &large).status, 401);

    // The admin plane on loopback is open, and shows the use.
    let list = call("GET", &format!("http://{}/api/v1/tokens", served.admin), None, None).json();
    let shop_facts = list["tokens"].as_array().unwrap().iter().find(|t| t["name"] == "shop").unwrap().clone();
    assert!(shop_facts["last_used"].is_string(), "{shop_facts}");
    served.stop();
    let data = dir.path().join("data").display().to_string();
    let offline = printed(&sluicegate(&["token", "list", "--data-dir", &data, "--json"], &[]));
    let offline: Value = serde_json::from_str(&offline).unwrap();
    let kept = offline["tokens"].as_array().unwrap().iter().find(|t| t["name"] == "shop").unwrap();
    assert!(kept["last_used"].is_string(), "the last use survives a stop: {kept}");
}

#[test]
fn tokens_work_from_the_command_line_and_their_names_are_in_the_audit_trail() {
    let dir = tempfile::tempdir().unwrap();
    models(dir.path());
    let root = token(dir.path(), "root", "admin", "");
    let served = Served::start_with(dir.path(), &[("SLUICEGATE__ADMIN__REQUIRE_TOKEN", "true")]);
    wait_ready(&served);
    let address = format!("http://{}", served.admin);
    let run = |token: &str, arguments: &[&str]| {
        sluicegate(arguments, &[("SLUICEGATE_ADMIN", &address), ("SLUICEGATE_TOKEN", token)])
    };
    let made = printed(&run(
        &root,
        &["token", "create", "--name", "anna", "--role", "operator", "--models", "self", "--expires", "1h"],
    ));
    let anna = made.trim();
    assert_eq!(made.lines().count(), 1, "{made:?}");
    let who = printed(&run(anna, &["whoami"]));
    assert!(who.starts_with("anna (by token)\n") && who.contains("operator for self"), "{who}");
    eventually("self serves", || {
        run(anna, &["versions", "self"]).stdout.windows(7).any(|w| w == b"serving").then_some(())
    });

    printed(&run(anna, &["retire", "self", "--reason", "a test"]));
    let refused = run(anna, &["retire", "other", "--reason", "a test"]);
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && words.contains("operator or admin for model \"other\""), "{words}");
    let nobody = sluicegate(&["models"], &[("SLUICEGATE_ADMIN", &address)]);
    assert!(String::from_utf8_lossy(&nobody.stderr).contains("SLUICEGATE_TOKEN"), "{nobody:?}");
    assert!(!run(anna, &["token", "list"]).status.success(), "an operator lists no tokens");

    let audit = printed(&run(&root, &["audit"]));
    let line = |action: &str| {
        audit.lines().find(|l| l.contains(action)).unwrap_or_else(|| panic!("{action}: {audit}")).to_owned()
    };
    assert!(line("retire").contains("anna"), "{audit}");
    assert!(line("token_create").contains("root") || line("token_create").contains("local"), "{audit}");
    assert!(!audit.contains(&anna[..20]), "no secret is in the audit trail");

    printed(&run(&root, &["token", "revoke", "anna"]));
    let refused = run(anna, &["whoami"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("revoked"), "{refused:?}");
    assert!(printed(&run(&root, &["audit"])).contains("token_revoke"));
    // A running server keeps its data directory to itself.
    let data = dir.path().join("data").display().to_string();
    let offline = sluicegate(&["token", "list", "--data-dir", &data], &[]);
    assert!(String::from_utf8_lossy(&offline.stderr).contains("leave out --data-dir"), "{offline:?}");
}

#[test]
fn answers_do_not_show_which_version_a_key_gets_where_that_is_hidden() {
    let mut gateway = Gateway::start_with("", |models| {
        onnx::install(models, "scale", 1, &onnx::scaling(2.0));
        onnx::install(models, "large", 1, &onnx::scaling(2.0));
    });
    let answers = |gateway: &Gateway| -> Vec<(&str, Answer)> {
        let json = infer_body(&[1, 2], &[1.0, 2.0]);
        let large = infer_body(&[50_000, 2], &vec![0.5; 100_000]);
        vec![
            ("json", gateway.post("/v2/models/scale/infer", &json)),
            ("pinned", gateway.post("/v2/models/scale/versions/1/infer", &json)),
            ("in pieces", gateway.post("/v2/models/large/infer", large)),
            ("rows", gateway.post("/v1/models/scale:predict", r#"{"instances": [[1, 2]]}"#)),
            ("an error of the request", gateway.post("/v2/models/scale/infer", infer_body(&[1, 3], &[0.0; 3]))),
        ]
    };
    let shown = |answer: &Answer| {
        let headers =
            ["version", "arm", "fallback"].map(|name| answer.header(&format!("x-sluicegate-{name}")).is_some());
        (headers, answer.json().get("model_version").is_some())
    };
    let found = |gateway: &Gateway| -> Vec<_> {
        let all = answers(gateway).into_iter();
        all.map(|(what, answer)| (what, answer.status, shown(&answer))).collect()
    };
    let all = [true, true, false];
    assert_eq!(
        found(&gateway),
        [
            ("json", 200, (all, true)),
            ("pinned", 200, (all, true)),
            ("in pieces", 200, (all, true)),
            ("rows", 200, (all, false)),
            ("an error of the request", 400, (all, false)),
        ]
    );
    // Both keys are live.
    let hidden = configuration(gateway.dir.path(), "[server]\nversion_headers = false\n");
    gateway.app.as_mut().unwrap().reload(&hidden);
    let none = [false; 3];
    assert_eq!(
        found(&gateway),
        [
            ("json", 200, (none, true)),
            ("pinned", 200, (none, true)),
            ("in pieces", 200, (none, true)),
            ("rows", 200, (none, false)),
            ("an error of the request", 400, (none, false)),
        ]
    );
    let hidden = configuration(gateway.dir.path(), "[server]\nversion_headers = false\nversion_in_body = false\n");
    gateway.app.as_mut().unwrap().reload(&hidden);
    for (what, answer) in answers(&gateway) {
        assert_eq!(shown(&answer), (none, false), "{what}");
    }
    let kept = answers(&gateway).swap_remove(0).1;
    assert!(kept.header("x-request-id").is_some() && kept.header("server-timing").is_some(), "{kept:?}");
    let body = kept.json();
    let members: Vec<&str> = body.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(members, ["model_name", "id", "outputs"]);
}

fn serve(dir: &Path, environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluicegate"));
    command
        .args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "0.0.0.0:0", "--models"])
        .arg(dir.join("models"))
        .arg("--data-dir")
        .arg(dir.join("data"))
        .current_dir(dir)
        .envs(environment.iter().copied());
    command
}

#[test]
fn a_public_admin_plane_without_credentials_does_not_start() {
    let dir = tempfile::tempdir().unwrap();
    models(dir.path());
    // A token of the data plane opens nothing there.
    token(dir.path(), "shop", "predict", "");
    for supervise in ["true", "false"] {
        let output = serve(dir.path(), &[("SLUICEGATE__SERVER__SUPERVISE", supervise)]).output().unwrap();
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "supervise = {supervise}: {words}");
        assert!(words.contains("nobody has credentials") && words.contains("token create"), "{words}");
    }
}

#[test]
fn the_first_token_is_printed_once_where_it_is_asked_for() {
    use std::io::{BufRead, BufReader};
    let dir = tempfile::tempdir().unwrap();
    models(dir.path());
    let mut secrets: Vec<String> = Vec::new();
    for _ in 0..2 {
        let mut child =
            serve(dir.path(), &[("SLUICEGATE__ADMIN__FIRST_TOKEN", "true"), ("SLUICEGATE__LOG__FORMAT", "json")])
                .stdout(std::process::Stdio::piped())
                .stderr(std::process::Stdio::piped())
                .spawn()
                .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        let admin = loop {
            let line = log.next().expect("the server says where it listens").unwrap();
            assert!(!line.contains("sluice_"), "the log has no token: {line}");
            let json: Value = serde_json::from_str(&line).unwrap();
            if let Some(admin) = json["admin"].as_str() {
                break admin.replace("0.0.0.0", "127.0.0.1");
            }
        };
        let rest = std::thread::spawn(move || log.for_each(drop));
        assert_eq!(call("GET", &format!("http://{admin}/api/v1/models"), None, None).status, 401);
        if let Some(secret) = secrets.first() {
            let who = call("GET", &format!("http://{admin}/api/v1/whoami"), Some(secret), None).json();
            assert_eq!((&who["actor"], &who["grants"][0]["role"]), (&json!("first-admin"), &json!("admin")));
        }
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let output = child.wait_with_output().unwrap();
        rest.join().unwrap();
        secrets.extend(String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned));
    }
    assert_eq!(secrets.len(), 1, "one token, at the first start: {secrets:?}");
}

#[test]
fn wrong_arguments_of_the_token_commands_are_usage_errors() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data").display().to_string();
    for (arguments, words) in [
        (vec!["--name", "a b", "--role", "viewer"], "--name"),
        (vec!["--name", "a", "--role", "king"], "predict, viewer, operator, approver or admin"),
        (vec!["--name", "a", "--role", "viewer", "--models", "a/b"], "--models"),
        (vec!["--name", "a", "--role", "viewer", "--expires", "soon"], "--expires"),
    ] {
        let output = sluicegate(&[&["token", "create", "--data-dir", &data], &arguments[..]].concat(), &[]);
        let found = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {found}");
        assert!(found.contains(words), "{words:?}: {found}");
    }
    assert!(!Path::new(&data).exists(), "a wrong command line makes no data directory");
    token(dir.path(), "a", "viewer", "");
    let twice = sluicegate(&["token", "create", "--data-dir", &data, "--name", "a", "--role", "admin"], &[]);
    assert_eq!(twice.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&twice.stderr).contains("already"), "{twice:?}");
}

/// From nothing to two people and an approval, by the command line alone.
#[test]
fn a_version_gets_traffic_when_a_second_person_approved_it() {
    let dir = tempfile::tempdir().unwrap();
    models(dir.path());
    let anna = token(dir.path(), "anna", "operator", "");
    let bob = token(dir.path(), "bob", "approver", "self");
    let root = token(dir.path(), "root", "admin", "");
    let environment = [("SLUICEGATE__ADMIN__REQUIRE_TOKEN", "true"), ("SLUICEGATE__APPROVAL__REQUIRED", "true")];
    let mut served = Served::start_with(dir.path(), &environment);
    let address = format!("http://{}", served.admin);
    let run = |token: &str, arguments: &[&str]| {
        sluicegate(arguments, &[("SLUICEGATE_ADMIN", &address), ("SLUICEGATE_TOKEN", token)])
    };
    let in_state = |version: &str, state: &str| {
        eventually(&format!("version {version} is {state}"), || {
            let text = String::from_utf8(run(&anna, &["versions", "self"]).stdout).unwrap();
            text.lines().any(|line| line.starts_with(version) && line.contains(state)).then_some(())
        });
    };
    let file = dir.path().join("two.onnx");
    onnx::install(&dir.path().join("spare"), "self", 2, &onnx::answering(2.0, 4, 0));
    std::fs::copy(dir.path().join("spare/self/2/model.onnx"), &file).unwrap();
    in_state("1", "ready");
    let refused = |output: Output, words: &str| {
        let found = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && found.contains(words), "{words:?}: {found}");
    };
    refused(run(&anna, &["promote", "self", "1", "--reason", "first"]), "needs an approval");
    let shown = printed(&run(&bob, &["approve", "self", "1"]));
    assert!(shown.contains("approval      none") && shown.contains("anna") && shown.contains("golden"), "{shown}");
    refused(run(&anna, &["promote", "self", "1", "--reason", "first"]), "nobody has approved");
    printed(&run(&bob, &["approve", "self", "1", "--reason", "the golden answers are right"]));
    // A first version serves as soon as it is approved.
    in_state("1", "serving");

    printed(&run(&anna, &["push", "self", "2", file.to_str().unwrap()]));
    in_state("2", "ready");
    refused(run(&bob, &["promote", "self", "2", "--reason", "mine"]), "operator or admin");
    refused(run(&anna, &["approve", "self", "2", "--reason", "mine"]), "approver or admin");
    refused(run(&anna, &["rollout", "self", "--to", "2", "--reason", "slowly"]), "needs an approval");
    refused(run(&anna, &["traffic", "self", "--split", "1=9,2=1", "--reason", "some"]), "needs an approval");
    refused(run(&anna, &["promote", "self", "2", "--reason", "now", "--break-glass"]), "admin for model");
    let attached = dir.path().join("replay.json");
    std::fs::write(&attached, r#"{"agreement": 0.999}"#).unwrap();
    let file = attached.to_str().unwrap();
    let approved = printed(&run(&bob, &["approve", "self", "2", "--attach", file, "--reason", "the replay agrees"]));
    assert!(approved.contains("is approved by bob"), "{approved}");
    served.stop();
    served = Served::start_with(dir.path(), &environment);
    let address = format!("http://{}", served.admin);
    let run = |token: &str, arguments: &[&str]| {
        sluicegate(arguments, &[("SLUICEGATE_ADMIN", &address), ("SLUICEGATE_TOKEN", token)])
    };
    eventually("the promotion is accepted after the restart", || {
        run(&anna, &["promote", "self", "2", "--reason", "approved"]).status.success().then_some(())
    });
    let audit = printed(&run(&root, &["audit", "--json"]));
    let audit: Value = serde_json::from_str(&audit).unwrap();
    let approval = audit["events"].as_array().unwrap().iter().find(|e| e["action"] == "approve").unwrap();
    assert_eq!((&approval["actor"], &approval["reason"]), (&json!("bob"), &json!("the replay agrees")));
    assert_eq!(approval["after"]["evidence"]["attachments"]["replay.json"]["agreement"], 0.999);
    assert!(approval["after"]["evidence"]["version"]["sha256"].is_string(), "{approval}");

    // Version 1 was approved too.
    printed(&run(&anna, &["rollback", "self", "--reason", "worse"]));
    onnx::install(&dir.path().join("models"), "self", 3, &onnx::answering(3.0, 4, 0));
    eventually("the emergency release", || {
        run(&root, &["promote", "self", "3", "--reason", "the house burns", "--break-glass"])
            .status
            .success()
            .then_some(())
    });
    let metrics = call("GET", &format!("{address}/metrics"), Some(&root), None).text;
    assert!(metrics.contains("sluicegate_break_glass_total{action=\"promote\"} 1"), "it is counted");
    let logged = served.wait_logged("BREAK GLASS");
    assert_eq!((&logged["level"], &logged["actor"]), (&json!("ERROR"), &json!("root")), "{logged}");
}

/// Requests that schemathesis generates from one of the documents: every status is documented, and every body fits its schema.
fn schemathesis(document: &str, address: &str, token: Option<&str>) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python =
        std::env::var("SLUICEGATE_TEST_PYTHON").unwrap_or_else(|_| root.join(".venv/bin/python").display().to_string());
    let program = Path::new(&python).with_file_name("schemathesis");
    let mut command = Command::new(&program);
    command.arg("run").arg(root.join("docs").join(document)).args(["-u", &format!("http://{address}")]);
    if let Some(token) = token {
        command.args(["-H", &format!("authorization: Bearer {token}")]);
    }
    let checks = "status_code_conformance,content_type_conformance,response_schema_conformance";
    // The seed makes a failure repeatable; the time bounds the run.
    command.args(["--phases", "coverage,fuzzing", "-n", "10", "--max-time", "30", "--seed", "1", "-c", checks]);
    command.args(["--continue-on-failure", "--request-timeout", "10"]).current_dir(std::env::temp_dir());
    let output =
        command.output().unwrap_or_else(|e| panic!("{} should run (make venv makes it): {e}", program.display()));
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let with = if token.is_some() { "with a token" } else { "without a token" };
    assert!(output.status.success(), "{document} {with}: {printed}{}", String::from_utf8_lossy(&output.stderr));
    let passed = printed.lines().find(|line| line.contains("generated,") && line.contains("passed"));
    assert!(passed.is_some(), "{document} {with}: requests were generated: {printed}");
}

#[test]
fn generated_requests_get_documented_answers_with_and_without_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let iris = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/iris");
    crate::support::copy(&iris, &dir.path().join("models/iris"));
    let root = token(dir.path(), "root", "admin", "");
    let environment = [("SLUICEGATE__SERVER__REQUIRE_TOKEN", "true"), ("SLUICEGATE__ADMIN__REQUIRE_TOKEN", "true")];
    let mut served = Served::start_with(dir.path(), &environment);
    wait_ready(&served);
    std::thread::scope(|scope| {
        for (document, address) in [("openapi-data.json", &served.data), ("openapi.json", &served.admin)] {
            for token in [None, Some(root.as_str())] {
                scope.spawn(move || schemathesis(document, address, token));
            }
        }
    });
    let metrics = call("GET", &format!("http://{}/metrics", served.admin), Some(&root), None).text;
    let panics = metrics.lines().filter(|line| line.starts_with("sluicegate_panics_total") && !line.ends_with(" 0"));
    assert_eq!(panics.collect::<Vec<_>>(), Vec::<&str>::new());
    // Whatever was sent, the server still stops in order.
    served.stop();
}

/// The matrix role × endpoint × model, from the document that the server serves.
#[test]
fn each_operation_of_the_openapi_document_allows_what_its_permission_says() {
    let dir = tempfile::tempdir().unwrap();
    models(dir.path());
    let roles = ["predict", "viewer", "operator", "approver", "admin"];
    let tokens: Vec<(&str, &str, String)> = roles
        .iter()
        .flat_map(|role| [("", role), ("self", role)])
        .enumerate()
        .map(|(n, (models, role))| (*role, models, token(dir.path(), &format!("t{n}"), role, models)))
        .collect();
    let served = Served::start_with(dir.path(), &[("SLUICEGATE__ADMIN__REQUIRE_TOKEN", "true")]);
    wait_ready(&served);
    let base = format!("http://{}", served.admin);
    let document = call("GET", &format!("{base}/openapi.json"), None, None).json();
    let allows = |role: &str, action: &str| match action {
        "any identity" => true,
        "predict" => matches!(role, "predict" | "operator" | "admin"),
        "view" => role != "predict",
        "operate" => matches!(role, "operator" | "admin"),
        "approve" => matches!(role, "approver" | "admin"),
        "administer" => role == "admin",
        other => panic!("the permission {other:?} is unknown here"),
    };
    let (mut allowed, mut refused) = (0, 0);
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            let permission = &operation["x-permission"];
            let action = permission["action"].as_str().unwrap_or_else(|| panic!("{method} {path} states a permission"));
            for model in ["self", "other"] {
                let path = path.replace("{model}", model).replace("{version}", "7").replace("{token}", "nobody");
                let url = format!("{base}{path}");
                let method = method.to_uppercase();
                // A body that no endpoint accepts: what is allowed gets 4xx from its handler and changes nothing.
                let body = (method != "GET").then_some(r#"{"nonsense": 1}"#);
                let anonymous = call(&method, &url, None, body).status;
                if action == "nothing" {
                    assert!(anonymous < 400, "{method} {path} is open: {anonymous}");
                    continue;
                }
                assert_eq!(anonymous, 401, "{method} {path}");
                for (role, models, token) in &tokens {
                    let in_scope = match permission["scope"].as_str() {
                        Some("all models") => models.is_empty(),
                        Some("the model in the path") => models.is_empty() || model == "self",
                        _ => true,
                    };
                    let answer = call(&method, &url, Some(token), body);
                    let may = allows(role, action) && in_scope;
                    assert_eq!(answer.status != 403, may, "{method} {path} as {role} of {models:?}: {}", answer.text);
                    assert!(answer.status != 401 && answer.status != 500, "{method} {path}: {}", answer.text);
                    *(if may { &mut allowed } else { &mut refused }) += 1;
                }
            }
        }
    }
    assert!(allowed > 100 && refused > 100, "{allowed} allowed, {refused} refused");
}

/// The indented blocks of a section of docs/SECURITY.md.
fn blocks(section: &str) -> Vec<Vec<String>> {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/SECURITY.md")).unwrap();
    let section = text.split(&format!("## {section}\n")).nth(1).unwrap().split("\n## ").next().unwrap();
    let mut blocks = vec![Vec::new()];
    for line in section.lines() {
        match line.strip_prefix("    ") {
            Some(line) => blocks.last_mut().unwrap().push(line.to_owned()),
            None if blocks.last().unwrap().is_empty() => {}
            None => blocks.push(Vec::new()),
        }
    }
    blocks.retain(|block| !block.is_empty());
    blocks
}

/// Runs a line of a shell with the program of this build. Returns whether it succeeded, and what it printed.
fn shell(dir: &Path, script: &str) -> (bool, String) {
    let program = Path::new(env!("CARGO_BIN_EXE_sluicegate")).parent().unwrap();
    let path = format!("{}:{}", program.display(), std::env::var("PATH").unwrap());
    let mut command = Command::new("sh");
    for name in ["ADMIN", "TOKEN", "CA", "CLIENT_CERT", "CLIENT_KEY"] {
        command.env_remove(format!("SLUICEGATE_{name}"));
    }
    let output = command.args(["-c", script]).current_dir(dir).env("PATH", path).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

#[test]
fn security_md_leads_from_nothing_to_two_people_with_certificates_and_an_approval() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("model.onnx"), onnx::answering(1.0, 4, 0)).unwrap();
    let blocks = blocks("From nothing to two people");
    let [setup, anna, ben] = &blocks[..] else { panic!("three shells: {blocks:?}") };
    let (serve, setup) = setup.split_last().unwrap();
    assert_eq!(serve, "sluicegate serve");
    let (done, said) = shell(dir.path(), &setup.join("\n"));
    assert!(done && said.contains("client-ca.crt"), "{said}");
    // The command says how its certificates are used.
    assert!(said.contains("[access]") && said.contains("{ name = \"ben\", role = \"operator\" },"), "{said}");
    let served = Served::start(dir.path());
    served.ready();

    let run = |shell_lines: &[String]| -> Vec<(String, String)> {
        let is_export = |line: &&String| line.starts_with("export ");
        let exports: Vec<&str> = shell_lines.iter().filter(is_export).map(String::as_str).collect();
        let exports =
            (exports.join("\n") + "\n").replace("localhost:8081", &served.admin.replace("127.0.0.1", "localhost"));
        let lines = shell_lines.iter().filter(|line| !is_export(line));
        let lines = lines.map(|line| {
            let (command, expected) = line.split_once(" # ").unwrap_or((line, ""));
            let script = format!("{exports}{command}");
            let (done, said) = shell(dir.path(), &script);
            assert_eq!(done, !expected.starts_with("refused"), "{command}: {said}");
            if command.contains(" push ") {
                eventually("the version is ready", || {
                    let versions = shell(dir.path(), &format!("{exports}sluicegate versions fraud")).1;
                    versions.contains("ready").then_some(())
                });
            }
            (command.trim().to_owned(), said)
        });
        lines.collect()
    };
    let said = |all: &[(String, String)], command: &str| {
        let found = all.iter().find(|(line, _)| line.starts_with(command));
        found.unwrap_or_else(|| panic!("{command}: {all:?}")).1.clone()
    };
    let all = run(anna);
    assert!(said(&all, "sluicegate whoami").starts_with("anna (by certificate)\n"), "{all:?}");
    assert!(said(&all, "sluicegate versions").contains("needs an approval"), "{all:?}");
    assert!(said(&all, "sluicegate promote").contains("needs an approval"), "{all:?}");
    assert!(said(&all, "sluicegate approve").contains("approver or admin"), "{all:?}");
    let all = run(ben);
    assert!(said(&all, "sluicegate approve fraud 1 --reason").contains("is approved by ben"), "{all:?}");
    assert!(said(&all, "sluicegate promote").contains("operator or admin"), "{all:?}");
    let audit = said(&all, "sluicegate audit");
    for (actor, action) in [("anna", "push"), ("ben", "approve")] {
        assert!(audit.lines().any(|line| line.contains(actor) && line.contains(action)), "{actor} {action}: {audit}");
    }
    let answer = |served: &Served| {
        let url = format!("http://{}/v2/models/fraud/infer", served.data);
        call("POST", &url, None, Some(&infer_body(&[1, 4], &[0.0; 4])))
    };
    eventually("the approved version answers", || (answer(&served).status == 200).then_some(()));
}

#[test]
fn a_client_certificate_opens_a_closed_data_plane_for_its_models() {
    let dir = TempDir::new().unwrap();
    let certificates = Certificates::make(dir.path());
    models(dir.path());
    let config = format!(
        "[server]\nrequire_token = true\n{}client_auth = \"optional\"\n[access]\ncertificates = [{{ name = \"anna\", role = \"predict\", models = [\"se*\"] }}]\n",
        certificates.section_with_clients("server.tls")
    );
    let gateway = Gateway::start_in(dir, &config);
    eventually("the gateway is ready", || (gateway.admin_get("/readyz").status == 200).then_some(()));
    let ask = |identity: Option<&str>, model: &str, token: Option<&str>| -> u16 {
        let mut tls = handshake(gateway.data(), &certificates.client(&["http/1.1"], identity));
        let body = infer_body(&[1, 4], &[0.0; 4]);
        let authorization = token.map(|token| format!("authorization: Bearer {token}\r\n")).unwrap_or_default();
        let head = format!(
            "POST /v2/models/{model}/infer HTTP/1.1\r\nhost: localhost\r\n{authorization}connection: close\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        tls.write_all((head + &body).as_bytes()).unwrap();
        let mut answer = Vec::new();
        tls.read_to_end(&mut answer).unwrap();
        String::from_utf8_lossy(&answer[9..12]).parse().unwrap()
    };
    assert_eq!(ask(Some("anna"), "self", None), 200);
    assert_eq!(ask(Some("anna"), "other", None), 403);
    assert_eq!(ask(None, "self", None), 401);
    assert_eq!(ask(Some("anna"), "self", Some("wrong")), 401, "a token comes first, and a wrong one is nobody");
}

#[test]
fn an_identity_provider_and_a_webhook_over_https_with_an_authority_of_their_own() {
    let dir = TempDir::new().unwrap();
    let certificates = Certificates::make(dir.path());
    models(dir.path());
    let pkcs8 = Ed25519KeyPair::generate_pkcs8(&ring::rand::SystemRandom::new()).unwrap();
    let pair = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap();
    let x = URL_SAFE_NO_PAD.encode(pair.public_key().as_ref());
    let keys = json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": "one", "x": x}]});
    let heads: Arc<Mutex<Vec<Value>>> = Arc::default();
    let posted = Arc::clone(&heads);
    let address = certificates.serve(move |first, body| match first.split(' ').next() {
        Some("POST") => {
            posted.lock().unwrap().push(serde_json::from_str(body).unwrap());
            String::new()
        }
        _ => keys.to_string(),
    });
    let ca = certificates.path("server.crt");
    let environment = [
        ("SLUICEGATE__SERVER__REQUIRE_TOKEN", "true".to_owned()),
        ("SLUICEGATE__ADMIN__REQUIRE_TOKEN", "true".to_owned()),
        ("SLUICEGATE__ACCESS__OIDC__ISSUER", "https://idp.example".to_owned()),
        ("SLUICEGATE__ACCESS__OIDC__AUDIENCE", "sluicegate".to_owned()),
        ("SLUICEGATE__ACCESS__OIDC__JWKS", format!("{address}/certs")),
        ("SLUICEGATE__ACCESS__OIDC__CA", ca.clone()),
        ("SLUICEGATE__AUDIT__WEBHOOK", format!("{address}/heads")),
        ("SLUICEGATE__AUDIT__WEBHOOK_CA", ca),
    ];
    let environment: Vec<(&str, &str)> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    std::fs::create_dir_all(dir.path().join("config")).unwrap();
    // Lists of tables have no form in the environment.
    let roles = "[access.oidc]\nalgorithms = [\"EdDSA\"]\nroles = [{ value = \"ops\", role = \"operator\", models = [\"self\"] }]\n";
    std::fs::write(dir.path().join("config/sluicegate.toml"), roles).unwrap();
    let served = Served::start_with(dir.path(), &environment);
    served.ready();
    let claims = json!({
        "iss": "https://idp.example", "aud": "sluicegate", "sub": "carol", "roles": ["ops"],
        "exp": jiff::Timestamp::now().as_second() + 600,
    });
    let header = jsonwebtoken::Header {
        kid: Some("one".to_owned()),
        ..jsonwebtoken::Header::new(jsonwebtoken::Algorithm::EdDSA)
    };
    let key = jsonwebtoken::EncodingKey::from_ed_der(pkcs8.as_ref());
    let token = jsonwebtoken::encode(&header, &claims, &key).unwrap();
    let body = infer_body(&[1, 4], &[0.0; 4]);
    let infer = |model: &str, token: Option<&str>| {
        call("POST", &format!("http://{}/v2/models/{model}/infer", served.data), token, Some(&body)).status
    };
    assert_eq!((infer("self", Some(&token)), infer("other", Some(&token)), infer("self", None)), (200, 403, 401));
    let who = call("GET", &format!("http://{}/api/v1/whoami", served.admin), Some(&token), None);
    assert_eq!((&who.json()["actor"], who.status), (&json!("carol"), 200), "{}", who.text);
    let retired = json!({"reason": "a test"}).to_string();
    let change = call("DELETE", &format!("http://{}/api/v1/models/self", served.admin), Some(&token), Some(&retired));
    assert_eq!(change.status, 200, "{}", change.text);
    eventually("the head after the change arrives", || {
        heads.lock().unwrap().iter().any(|head| head["id"].as_u64().is_some_and(|id| id >= 1)).then_some(())
    });
}
