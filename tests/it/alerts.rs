//! Alerts and events: each is told once when it begins and once when it ends, whatever happens to the receiver and to the server.

use crate::support::process::Served;
use crate::support::receiver::{Got, Receiver, Reply};
use crate::support::{Gateway, eventually, infer_body, onnx};
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, Stdio};

/// Short times, and these targets. What the machine of the test has is no alert.
fn config(targets: &str) -> String {
    let off = "off = [\"disk_full\", \"memory_full\"]";
    format!("[alerts]\ncheck_interval = \"100ms\"\nend_after = \"400ms\"\nname = \"test\"\n{off}\n{targets}")
}

fn webhook(receiver: &Receiver, more: &str) -> String {
    let url = receiver.url("/hook");
    format!("[[alerts.targets]]\nname = \"ops\"\nkind = \"webhook\"\nurl = \"{url}\"\ntimeout = \"2s\"\n{more}\n")
}

fn break_version(models: &Path, model: &str, version: u64) {
    onnx::install(models, model, version, b"this is no model");
}

fn alerts(gateway: &Gateway, query: &str) -> Value {
    let answer = gateway.admin_get(&format!("/api/v1/alerts{query}"));
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

/// Waits until these alerts were received, and no others.
fn wait_alerts(receiver: &Receiver, expected: &[&str]) {
    eventually(&format!("{expected:?} was received; it was {:?}", receiver.alerts()), || {
        let got = receiver.alerts();
        (got.len() >= expected.len()).then_some(())
    });
    assert_eq!(receiver.alerts(), expected);
}

#[test]
fn a_failed_version_is_told_when_it_begins_and_when_it_ends_with_everything_that_helps() {
    let receiver = Receiver::start(Reply::Status(204));
    let gateway = Gateway::start_with(&config(&webhook(&receiver, "")), |models| {
        onnx::install(models, "m", 1, &onnx::answering(1.0, 4, 0));
    });
    let document = json!({"split": [{"version": "1", "weight": 7}], "reason": "a test"});
    let put = gateway.admin_send("PUT", "/api/v1/models/m/traffic", &[("x-sluicegate-actor", "ann")], &document);
    assert_eq!(put.status, 200, "{put:?}");
    break_version(&gateway.models(), "m", 2);
    wait_alerts(&receiver, &["+version_failed m/2"]);
    let message = receiver.got()[0].json();
    assert_eq!(
        (&message["kind"], &message["gateway"], &message["rule"]),
        (&json!("alerts"), &json!("test"), &json!("version_failed"))
    );
    let told = &message["alerts"][0];
    assert!(told["summary"].as_str().unwrap().starts_with("version 2 of m failed (load): "), "{told}");
    assert!(told["change_before"].as_str().unwrap().starts_with("put_traffic by ann on "), "{told}");
    assert_eq!((&told["severity"], &told["link"]), (&json!("warning"), &json!("/models/m")));
    assert!(!told["how_sure"].as_str().unwrap().is_empty() && !told["what_to_do"].as_str().unwrap().is_empty());

    let list = alerts(&gateway, "?state=firing&model=m");
    assert_eq!((&list["firing"], list["alerts"].as_array().unwrap().len()), (&json!(1), 1));
    let listed = &list["alerts"][0];
    assert_eq!((&listed["id"], &listed["told"], &listed["until"]), (&told["id"], &json!(true), &Value::Null));
    assert_eq!(listed["change_before"]["action"], "put_traffic");
    assert_eq!(alerts(&gateway, "?model=other")["alerts"], json!([]));
    assert_eq!(gateway.admin_get("/api/v1/alerts?state=on").status, 400);
    let metrics = String::from_utf8(gateway.admin_get("/metrics").body).unwrap();
    assert!(metrics.contains("sluicegate_alerts_firing{rule=\"version_failed\"} 1"), "{metrics}");

    std::fs::remove_dir_all(gateway.models().join("m/2")).unwrap();
    wait_alerts(&receiver, &["+version_failed m/2", "-version_failed m/2"]);
    let ended = receiver.got().last().unwrap().json()["alerts"][0].clone();
    assert_eq!((&ended["id"], &ended["state"]), (&told["id"], &json!("resolved")));
    assert_eq!(alerts(&gateway, "?state=resolved")["alerts"][0]["id"], told["id"]);
    let target = &alerts(&gateway, "")["targets"][0];
    assert_eq!(
        (&target["sent"], &target["failed"], &target["dropped"], &target["waiting"]),
        (&json!(2), &json!(0), &json!(0), &json!(0))
    );
}

#[test]
fn a_receiver_that_was_down_gets_each_message_once_and_in_order_also_after_kill_9() {
    let receiver = Receiver::start(Reply::Down);
    let dir = tempfile::TempDir::new().unwrap();
    let models = dir.path().join("models");
    std::fs::create_dir_all(dir.path().join("config")).unwrap();
    std::fs::write(dir.path().join("config/sluicegate.toml"), config(&webhook(&receiver, ""))).unwrap();
    onnx::install(&models, "self", 1, &onnx::answering(1.0, 4, 0));
    break_version(&models, "self", 2);
    let list = |served: &Served| -> Value { serde_json::from_str(&served.admin_get("/api/v1/alerts")).unwrap() };
    let mut served = Served::start(dir.path());
    served.ready();
    let id = eventually("the alert fires, and the receiver is down", || {
        let list = list(&served);
        let tried = list["targets"][0]["failed"].as_u64() > Some(0) && list["targets"][0]["waiting"] == 1;
        tried.then(|| list["alerts"][0]["id"].clone())
    });
    assert!(
        list(&served)["targets"][0]["last_error"].as_str().unwrap().contains("cannot be reached"),
        "{}",
        list(&served)
    );
    served.kill();

    // The alert ends while the receiver is still down, and another server tells both.
    let mut served = Served::start(dir.path());
    served.ready();
    let firing = list(&served);
    assert_eq!(firing["alerts"][0]["id"], id, "it is the same alert after the restart: {firing}");
    std::fs::remove_dir_all(models.join("self/2")).unwrap();
    eventually("both messages wait", || (list(&served)["targets"][0]["waiting"] == 2).then_some(()));
    served.kill();
    receiver.set(Reply::Status(200));
    let mut served = Served::start(dir.path());
    served.ready();
    wait_alerts(&receiver, &["+version_failed self/2", "-version_failed self/2"]);
    eventually("nothing waits any more", || (list(&served)["targets"][0]["waiting"] == 0).then_some(()));
    served.kill();

    // Nothing is told again by a server that finds everything as it was.
    let served = Served::start(dir.path());
    served.ready();
    break_version(&models, "self", 3);
    wait_alerts(&receiver, &["+version_failed self/2", "-version_failed self/2", "+version_failed self/3"]);
}

#[test]
fn a_receiver_verifies_the_signature_with_the_function_of_the_documentation() {
    let receiver = Receiver::start(Reply::Status(200));
    let dir = tempfile::TempDir::new().unwrap();
    let secret = dir.path().join("secret");
    std::fs::write(&secret, "a secret of the test\n").unwrap();
    let more = format!("secret_file = {secret:?}");
    let gateway = Gateway::start_with(&config(&webhook(&receiver, &more)), |_| {});
    let answer = gateway.admin_send("POST", "/api/v1/alerts:test", &[], &json!({"target": "ops"}));
    assert_eq!((answer.status, &answer.json()["delivered"]), (200, &json!(true)), "{answer:?}");
    let got = receiver.got().pop().unwrap();
    assert_eq!((got.path.as_str(), &got.json()["kind"]), ("/hook", &json!("test")));
    assert_eq!(got.headers["idempotency-key"], got.json()["key"].as_str().unwrap());

    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let documentation = std::fs::read_to_string(root.join("docs/ALERTS.md")).unwrap();
    let function = documentation.split("```python").nth(1).unwrap().split("```").next().unwrap();
    let script = format!(
        "{function}\nimport json, sys\nsecret, headers, body, later = json.load(sys.stdin)\n\
         print(verify(secret.encode(), headers, body.encode(), time.time() + later))\n"
    );
    let python =
        std::env::var("SLUICEGATE_TEST_PYTHON").unwrap_or_else(|_| root.join(".venv/bin/python").display().to_string());
    let verified = |secret: &str, body: &str, later: u32| {
        let mut child =
            Command::new(&python).args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let given = json!([secret, got.headers, body, later]);
        serde_json::to_writer(child.stdin.take().unwrap(), &given).unwrap();
        String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap().trim().to_owned()
    };
    assert_eq!(verified("a secret of the test", &got.body, 0), "True");
    assert_eq!(verified("another secret", &got.body, 0), "False");
    assert_eq!(verified("a secret of the test", &got.body.replace("test", "tost"), 0), "False");
    assert_eq!(verified("a secret of the test", &got.body, 1000), "False", "it is too old");
}

#[test]
fn silences_hold_back_what_begins_and_survive_a_restart() {
    let receiver = Receiver::start(Reply::Status(200));
    let gateway = Gateway::start_with(&config(&webhook(&receiver, "")), |models| {
        onnx::install(models, "m", 1, &onnx::answering(1.0, 4, 0));
    });
    let until = jiff_in_an_hour();
    let silence = |matcher: Value| {
        let body = json!({"matcher": matcher, "until": until, "reason": "known"});
        gateway.admin_send("POST", "/api/v1/alerts/silences", &[("x-sluicegate-actor", "ann")], &body)
    };
    for (matcher, words) in [
        (json!({}), "at least one of rule, model and version"),
        (json!({"rule": "drifft"}), "with a rule of version_failed"),
        (json!({"model": "a b"}), "the name or pattern of a model"),
        (json!({"version": 3}), "a version as a string"),
        (json!({"colour": "red"}), "no other member"),
    ] {
        let answer = silence(matcher.clone());
        assert_eq!(answer.status, 400, "{matcher}");
        assert!(answer.json().to_string().contains(words), "{matcher}: {}", answer.json());
    }
    let late = json!({"matcher": {"rule": "drift"}, "until": "2020-01-01T00:00:00Z"});
    let answer = gateway.admin_send("POST", "/api/v1/alerts/silences", &[], &late).json();
    assert_eq!(answer["details"].as_array().map(Vec::len), Some(2), "the time and the reason: {answer}");

    let made = silence(json!({"model": "m*", "rule": "version_failed"}));
    assert_eq!((made.status, &made.json()["created_by"]), (201, &json!("ann")));
    break_version(&gateway.models(), "m", 2);
    let silenced = eventually("the alert is silenced", || {
        let list = alerts(&gateway, "?state=silenced");
        list["alerts"].get(0).cloned()
    });
    assert_eq!((&silenced["silence"], &silenced["told"]), (&made.json()["id"], &json!(false)));

    let gateway = Gateway::start_in(gateway.stop(), &config(&webhook(&receiver, "")));
    gateway.wait_ready();
    let list = gateway.admin_get("/api/v1/alerts/silences").json();
    assert_eq!(list["silences"][0]["matcher"], json!({"rule": "version_failed", "model": "m*", "version": null}));
    assert_eq!(alerts(&gateway, "")["silenced"], 1);
    assert_eq!(receiver.alerts(), [""; 0], "nobody was told");
    let id = made.json()["id"].as_str().unwrap().to_owned();
    let ended = gateway.admin_send("DELETE", &format!("/api/v1/alerts/silences/{id}"), &[], &json!({}));
    assert_eq!(ended.status, 200, "{ended:?}");
    wait_alerts(&receiver, &["+version_failed m/2"]);
    assert_eq!(gateway.admin_send("DELETE", &format!("/api/v1/alerts/silences/{id}"), &[], &json!({})).status, 404);
    let events = gateway.admin_get("/api/v1/audit?limit=100").json()["events"].as_array().unwrap().clone();
    let of = |action: &str| events.iter().find(|event| event["action"] == action).cloned().unwrap_or_default();
    assert_eq!((&of("silence")["actor"], &of("silence")["after"]["matcher"]["model"]), (&json!("ann"), &json!("m*")));
    assert_eq!(of("end_silence")["actor"], "local", "the audit trail has who made nobody hear of it: {events:?}");
}

fn jiff_in_an_hour() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    jiff::Timestamp::from_second(i64::try_from(now).unwrap() + 3600).unwrap().to_string()
}

#[test]
fn alertmanager_and_slack_get_their_own_forms() {
    let (manager, chat) = (Receiver::start(Reply::Status(200)), Receiver::start(Reply::Status(200)));
    let targets = format!(
        "console = \"https://gateway.internal:8081/\"\n\
         [[alerts.targets]]\nname = \"am\"\nkind = \"alertmanager\"\nurl = \"{}\"\n\
         [[alerts.targets]]\nname = \"chat\"\nkind = \"slack\"\nurl = \"{}\"\nsend = [\"alerts\", \"version.failed\", \"version.ready\"]\n",
        manager.url("/"),
        chat.url("/services/x")
    );
    let gateway = Gateway::start_with(&config(&targets), |models| {
        onnx::install(models, "m", 1, &onnx::answering(1.0, 4, 0));
    });
    // What is there at the first look is no news.
    eventually("a look was made", || {
        let bytes = std::fs::read(gateway.dir.path().join("data/alerts.sqlite3-wal")).ok()?;
        bytes.windows(14).any(|text| text == b"versions_known").then_some(())
    });
    break_version(&gateway.models(), "m", 2);
    let began = eventually("Alertmanager has the alert", || manager.got().pop());
    assert_eq!((began.path.as_str(), began.headers["content-type"].as_str()), ("/api/v2/alerts", "application/json"));
    let posted = began.json();
    let alert = &posted[0];
    assert_eq!(posted.as_array().unwrap().len(), 1);
    assert_eq!(
        alert["labels"],
        json!({"alertname": "sluicegate_version_failed", "severity": "warning", "gateway": "test", "model": "m", "version": "2"})
    );
    assert_eq!(alert["generatorURL"], "https://gateway.internal:8081/models/m");
    for name in ["summary", "how_sure", "what_to_do", "link"] {
        assert!(alert["annotations"][name].as_str().is_some_and(|text| !text.is_empty()), "{alert}");
    }
    let time = |value: &Value| value.as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    assert!(time(&alert["endsAt"]) > jiff::Timestamp::now(), "it fires: {alert}");
    std::fs::remove_dir_all(gateway.models().join("m/2")).unwrap();
    let ended = eventually("and its end", || manager.got().into_iter().nth(1)).json();
    assert_eq!(ended[0]["labels"], alert["labels"], "the same labels are the same alert");
    assert_eq!(ended[0]["startsAt"], alert["startsAt"]);
    assert!(time(&ended[0]["endsAt"]) <= jiff::Timestamp::now(), "{ended}");

    let texts = eventually("Slack has three messages", || {
        let texts: Vec<String> = chat.got().iter().map(|got| got.json()["text"].as_str().unwrap().to_owned()).collect();
        (texts.len() >= 3).then_some(texts)
    });
    assert!(texts.iter().any(|text| text.starts_with("*version.failed* on test: m: version 2 failed: ")), "{texts:?}");
    assert!(texts.iter().any(|text| text.contains("[warning] m/2: version 2 of m failed")), "{texts:?}");
    assert!(
        texts.iter().any(|text| text.starts_with("*version_failed* on test: 0 began, 1 ended\n• [ended] m/2")),
        "{texts:?}"
    );
}

#[test]
fn a_rollout_that_is_taken_back_is_an_alert_and_each_of_its_moves_an_event() {
    let receiver = Receiver::start(Reply::Status(200));
    let send = "send = [\"alerts\", \"rollout.*\", \"version.promoted\", \"version.rolled_back\"]";
    let gateway = Gateway::start_with(&config(&webhook(&receiver, send)), |models| {
        onnx::install(models, "m", 1, &onnx::scaling(1.0));
        onnx::install(models, "m", 2, &onnx::out_of_memory_above(9));
        std::fs::write(models.join("m/model.toml"), "[execution]\nat_once = false\n").unwrap();
    });
    assert_eq!(gateway.promote("m", 1).status, 200);
    let plan = json!({"to": "2", "steps": [50, 100], "hold": "1h", "reason": "a test"});
    assert_eq!(gateway.admin_send("POST", "/api/v1/models/m:rollout", &[], &plan).status, 200);
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let url = format!("http://{}/v2/models/m/infer", gateway.data());
    eventually("the rollout is taken back", || {
        // The candidate fails on these rows.
        let _ = agent.post(&url).send(infer_body(&[1, 2], &[12.0, 1.0])).unwrap().into_body().read_to_vec();
        let rollout = gateway.admin_get("/api/v1/models/m/rollout").json();
        (rollout["state"] == "taken_back").then_some(())
    });
    let alert = eventually("the alert is told", || {
        let messages = receiver.got();
        let mut told = messages.iter().flat_map(|got| got.json()["alerts"].as_array().unwrap().clone());
        told.find(|alert| alert["rule"] == "rollout_taken_back")
    });
    assert_eq!(
        (&alert["model"], &alert["version"], &alert["severity"]),
        (&json!("m"), &json!("2"), &json!("critical"))
    );
    assert!(alert["summary"].as_str().unwrap().contains("error_rate_ratio violated"), "{alert}");
    let events = eventually("the events are told", || Some(receiver.events()).filter(|events| events.len() >= 3));
    let wanted = ["version.promoted", "rollout.moved", "rollout.taken_back"];
    assert_eq!(
        events.iter().filter(|event| *event != "version.promoted").collect::<Vec<_>>(),
        wanted[1..].iter().collect::<Vec<_>>()
    );
    let trail = gateway.admin_get("/api/v1/audit?model=m").json();
    let promoted = |action: &Value| ["promote", "first_document"].contains(&action.as_str().unwrap());
    let promotions = trail["events"].as_array().unwrap().iter().filter(|event| promoted(&event["action"])).count();
    let told = events.iter().filter(|event| *event == "version.promoted").count();
    assert!(told <= promotions, "each once; the first document may come before the first look: {events:?}");
    // Another document ends the alert.
    assert_eq!(
        gateway
            .admin_send("PUT", "/api/v1/models/m/traffic", &[], &json!({"split": [{"version": "1", "weight": 2}]}))
            .status,
        200
    );
    eventually("the alert ends", || receiver.alerts().contains(&"-rollout_taken_back m/2".to_owned()).then_some(()));
}

#[test]
fn a_token_that_expires_is_an_alert_until_it_is_revoked() {
    let receiver = Receiver::start(Reply::Status(200));
    let gateway = Gateway::start_with(&config(&webhook(&receiver, "")), |_| {});
    let body = json!({"name": "ci", "role": "viewer", "expires": "1s"});
    assert_eq!(gateway.admin_send("POST", "/api/v1/tokens", &[], &body).status, 201);
    wait_alerts(&receiver, &["+token_expires /"]);
    let told = receiver.got()[0].json()["alerts"][0].clone();
    assert_eq!(told["subject"], "ci");
    assert!(told["summary"].as_str().unwrap().starts_with("the token ci (viewer) expire"), "{told}");
    assert_eq!(gateway.admin_send("DELETE", "/api/v1/tokens/ci", &[], &json!({})).status, 200);
    wait_alerts(&receiver, &["+token_expires /", "-token_expires /"]);
}

#[test]
fn an_audit_trail_that_was_changed_is_an_alert_at_the_next_start() {
    let receiver = Receiver::start(Reply::Status(200));
    let gateway = Gateway::start_with(&config(""), |models| {
        onnx::install(models, "m", 1, &onnx::answering(1.0, 4, 0));
    });
    assert_eq!(gateway.promote("m", 1).status, 200);
    let dir = gateway.stop();
    let ledger = rusqlite::Connection::open(dir.path().join("data/ledger.sqlite3")).unwrap();
    assert!(ledger.execute("UPDATE events SET actor = 'mallory' WHERE id = 1", []).unwrap() > 0);
    drop(ledger);
    let gateway = Gateway::start_in(dir, &config(&webhook(&receiver, "")));
    gateway.wait_ready();
    wait_alerts(&receiver, &["+audit_broken /"]);
    let told = receiver.got()[0].json()["alerts"][0].clone();
    assert!(told["summary"].as_str().unwrap().contains("event 1"), "{told}");
    assert_eq!(told["severity"], "critical");
}

#[test]
fn a_target_that_hangs_redirects_or_never_ends_its_answer_disturbs_nothing_and_its_address_is_never_shown() {
    let (good, hanging) = (Receiver::start(Reply::Status(200)), Receiver::start(Reply::Hang));
    let (redirecting, endless) = (Receiver::start(Reply::Status(307)), Receiver::start(Reply::Endless));
    let target = |name: &str, receiver: &Receiver| {
        let url = receiver.url("/a-secret-path");
        format!(
            "[[alerts.targets]]\nname = \"{name}\"\nkind = \"webhook\"\nurl = \"{url}\"\ntimeout = \"1s\"\nsend = [\"alerts\", \"events\"]\n"
        )
    };
    let targets = [("hanging", &hanging), ("redirecting", &redirecting), ("endless", &endless), ("good", &good)];
    let targets: String = targets.iter().map(|(name, receiver)| target(name, receiver)).collect();
    let gateway = Gateway::start_with(&config(&targets), |models| {
        onnx::install(models, "m", 1, &onnx::answering(1.0, 4, 0));
    });
    break_version(&gateway.models(), "m", 2);
    eventually("the good target has it", || good.alerts().contains(&"+version_failed m/2".to_owned()).then_some(()));
    assert_eq!(gateway.promote("m", 1).status, 200);
    assert_eq!(gateway.post("/v2/models/m/infer", infer_body(&[1, 4], &[0.0; 4])).status, 200);
    let list = eventually("the others have failed or are done", || {
        let list = alerts(&gateway, "");
        let failed = |n: usize| list["targets"][n]["failed"].as_u64() > Some(0);
        let sent = list["targets"][2]["sent"].as_u64() > Some(0);
        (failed(0) && failed(1) && sent).then_some(list)
    });
    let error = |n: usize| list["targets"][n]["last_error"].as_str().unwrap_or_default().to_owned();
    assert!(error(0).contains("no complete answer within 1000 ms"), "{list}");
    assert!(error(1).contains("status 307, and redirections are not followed"), "{list}");
    assert!(!endless.alerts().is_empty(), "what its answer holds is not read");
    assert!(!list.to_string().contains("a-secret-path") && !list.to_string().contains("127.0.0.1"), "{list}");
    let answer = gateway.admin_send("POST", "/api/v1/alerts:test", &[], &json!({"target": "redirecting"}));
    assert_eq!((answer.status, &answer.json()["delivered"]), (200, &json!(false)));
    assert!(!answer.json().to_string().contains("a-secret-path"), "{answer:?}");
    let unknown = gateway.admin_send("POST", "/api/v1/alerts:test", &[], &json!({"target": "nobody"}));
    assert_eq!((unknown.status, unknown.code().as_str()), (404, "NOT_FOUND"));
    // A stop does not wait for them.
    let began = std::time::Instant::now();
    gateway.stop();
    assert!(began.elapsed() < std::time::Duration::from_secs(5), "{:?}", began.elapsed());
}

#[test]
fn the_commands_list_silence_and_test() {
    let receiver = Receiver::start(Reply::Status(200));
    let dir = tempfile::TempDir::new().unwrap();
    std::fs::create_dir_all(dir.path().join("config")).unwrap();
    std::fs::write(dir.path().join("config/sluicegate.toml"), config(&webhook(&receiver, ""))).unwrap();
    let models = dir.path().join("models");
    onnx::install(&models, "self", 1, &onnx::answering(1.0, 4, 0));
    break_version(&models, "self", 2);
    let served = Served::start(dir.path());
    served.ready();
    let run = |arguments: &[&str]| {
        let output = served.cli(arguments);
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.code().unwrap(), text)
    };
    let text =
        eventually("the alert is listed", || Some(run(&["alerts"]).1).filter(|text| text.contains("FIRING warning")));
    for words in
        ["version_failed: self/2 (since ", "  what to do: `sluicegate check models/self/2`", "TARGET", "webhook"]
    {
        assert!(text.contains(words), "{words:?}: {text}");
    }
    assert_eq!(run(&["alerts", "--test", "ops"]), (0, "the target ops accepted a test\n".to_owned()));
    receiver.set(Reply::Status(500));
    let (code, text) = run(&["alerts", "--test", "ops"]);
    assert!(code == 1 && text.contains("did not accept a test: the answer has the status 500"), "{code}: {text}");
    let (code, text) =
        run(&["silence", "--rule", "version_failed", "--model", "self", "--for", "2h", "--reason", "known"]);
    assert_eq!(code, 0, "{text}");
    let id = text.split(' ').nth(1).unwrap().to_owned();
    let (_, list) = run(&["silence", "--list"]);
    assert!(list.contains(&id) && list.contains("rule=version_failed model=self") && list.contains("known"), "{list}");
    eventually("it is silenced", || run(&["alerts"]).1.contains("SILENCED warning").then_some(()));
    assert_eq!(run(&["silence", "--end", &id]), (0, format!("the silence {id} has ended\n")));
    assert_eq!(run(&["silence", "--end", &id]).0, 1);
    assert_eq!(run(&["silence", "--rule", "drift"]).0, 2, "without a time there is nothing to do");
    assert_eq!(run(&["silence", "--rule", "drift", "--for", "soon", "--reason", "r"]).0, 2);
}

#[test]
fn requests_that_fail_burn_the_error_budget_and_callers_mistakes_do_not() {
    let receiver = Receiver::start(Reply::Status(200));
    let gateway = Gateway::start_with(&config(&webhook(&receiver, "min_severity = \"critical\"")), |models| {
        onnx::install(models, "m", 1, &onnx::out_of_memory_above(9));
    });
    assert_eq!(gateway.promote("m", 1).status, 200);
    for _ in 0..50 {
        let wrong = gateway.post("/v2/models/m/infer", infer_body(&[1, 3], &[1.0; 3]));
        assert_eq!(wrong.status, 400, "{wrong:?}");
    }
    for _ in 0..9 {
        assert_eq!(gateway.post("/v2/models/m/infer", infer_body(&[1, 2], &[12.0, 1.0])).status, 500);
    }
    // A later version that fails shows that a look was made: it is only a warning, so nobody is told.
    break_version(&gateway.models(), "m", 2);
    eventually("a look was made", || (alerts(&gateway, "")["firing"] == 1).then_some(()));
    assert_eq!(alerts(&gateway, "")["alerts"][0]["rule"], "version_failed", "nine failures are chance");
    assert_eq!(gateway.post("/v2/models/m/infer", infer_body(&[1, 2], &[12.0, 1.0])).status, 500);
    eventually("the budget burns", || receiver.alerts().contains(&"+error_budget m/".to_owned()).then_some(()));
    assert!(!receiver.alerts().contains(&"+version_failed m/2".to_owned()), "it is not critical");
    let messages = receiver.got();
    let mut told = messages.iter().flat_map(|got| got.json()["alerts"].as_array().unwrap().clone());
    let told = told.find(|alert| alert["rule"] == "error_budget").unwrap();
    let summary = told["summary"].as_str().unwrap();
    assert!(summary.starts_with("10 of 10 requests for m failed in the last 1h (100.00 %): 1000.0 times"), "{summary}");
}

#[test]
fn on_a_full_disk_alerts_are_listed_at_once_and_told_when_there_is_room() {
    let receiver = Receiver::start(Reply::Status(200));
    let dir = tempfile::TempDir::new().unwrap();
    std::fs::create_dir_all(dir.path().join("config")).unwrap();
    std::fs::write(dir.path().join("config/sluicegate.toml"), config(&webhook(&receiver, ""))).unwrap();
    onnx::install(&dir.path().join("models"), "self", 1, &onnx::answering(1.0, 4, 0));
    let served = Served::start(dir.path());
    served.ready();
    assert_eq!(served.ask(&[]).status(), 200);
    // From here on no file can grow.
    let pid = served.server_pid().unwrap();
    let limit = |most: Option<u64>| {
        let limit = rustix::process::Rlimit { current: most, maximum: None };
        rustix::process::prlimit(Some(pid), rustix::process::Resource::Fsize, limit).unwrap();
    };
    limit(Some(0));
    let listed = eventually("the loss is listed", || {
        assert_eq!(served.ask(&[]).status(), 200, "answers do not wait for the log");
        let list: Value = serde_json::from_str(&served.admin_get("/api/v1/alerts?state=firing")).unwrap();
        let subjects: Vec<Value> =
            list["alerts"].as_array().unwrap().iter().map(|alert| alert["subject"].clone()).collect();
        (subjects.contains(&json!("writing")) && subjects.contains(&json!("losing"))).then_some(list)
    });
    assert!(
        listed["alerts"].as_array().unwrap().iter().all(|alert| alert["rule"] == "log_loss" && alert["told"] == false),
        "{listed}"
    );
    served.wait_logged("alerts cannot be kept; it is tried again");
    assert_eq!(receiver.alerts(), [""; 0]);
    limit(None);
    eventually("both are told, and the end of the first", || {
        let told = receiver.alerts();
        let count = |sign: &str| told.iter().filter(|alert| alert.starts_with(sign)).count();
        assert!(count("+") <= 2 && count("-") <= 1, "{told:?}");
        (count("+") == 2 && count("-") == 1).then_some(())
    });
}

#[test]
fn a_version_that_predicts_worse_than_in_training_is_told_and_asks_for_retraining_with_its_data() {
    let receiver = Receiver::start(Reply::Status(204));
    let gateway = Gateway::start_with(&config(&webhook(&receiver, "send = [\"alerts\", \"retrain\"]")), |models| {
        onnx::install(models, "m", 1, &onnx::answering(1.0, 4, 0));
        std::fs::write(models.join("m/1/version.toml"), "[lineage.metrics]\nmae = 0.1\n").unwrap();
        std::fs::write(models.join("m/model.toml"), "[metrics.mae]\nkind = \"mae\"\n").unwrap();
    });
    let say = |label: f64, from: usize| {
        let entries: Vec<Value> = (from..from + 200)
            .map(|n| {
                let id = format!("r{n}");
                let body = json!({"id": id, "inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [0, 0, 0, 0]}]});
                assert_eq!(gateway.post("/v2/models/m/infer", body.to_string()).status, 200);
                // Not all alike: an error that never varies has no interval.
                json!({"request_id": id, "label": label + (n % 10) as f64 / 50.0})
            })
            .collect();
        let told = gateway.post("/v1/models/m:feedback", json!({"feedback": entries}).to_string());
        assert_eq!(told.status, 202, "{told:?}");
    };
    say(0.95, 0);
    let measured = || gateway.admin_get("/api/v1/models/m/quality?window=1h").json();
    eventually("the labels count", || measured().to_string().contains("\"mae\"").then_some(()));
    assert_eq!(alerts(&gateway, "?state=firing")["alerts"], json!([]), "as good as in training");
    say(6.0, 200);
    let fired = eventually("the alert fires", || alerts(&gateway, "?state=firing")["alerts"].get(0).cloned());
    assert_eq!((&fired["rule"], &fired["version"]), (&json!("decay"), &json!("1")), "{fired}");
    assert!(fired["summary"].as_str().unwrap().contains("worse than 0.1000 in training"), "{fired}");
    let retrain = eventually("the event is sent", || {
        receiver.got().iter().map(Got::json).find(|message| message.to_string().contains("sluicegate export m"))
    });
    assert!(retrain.to_string().contains("retrain"), "{retrain}");
}
