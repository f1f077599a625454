//! Splits: which arm answers a request, while documents change and in several processes.

use crate::support::process::Served;
use crate::support::{Gateway, infer_body, onnx};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

fn fill(models: &std::path::Path) {
    for v in 1..=3 {
        onnx::install(models, "self", v, &onnx::answering(v as f32, 4, 0));
    }
}

fn put(gateway: &Gateway, document: &Value) -> u16 {
    gateway.admin_send("PUT", "/api/v1/models/self/traffic", &[], document).status
}

/// The arm, the version in the header, the version in the body, and the first output, which identifies the version that really ran.
fn ask(agent: &ureq::Agent, url: &str, headers: &[(&str, &str)]) -> (String, String, String, f64) {
    let request = headers.iter().fold(agent.post(url), |request, (name, value)| request.header(*name, *value));
    let mut answer = request.send(infer_body(&[1, 4], &[0.0; 4])).unwrap();
    assert_eq!(answer.status(), 200, "{answer:?}");
    let header = |name: &str| answer.headers().get(name).unwrap().to_str().unwrap().to_owned();
    let (arm, version) = (header("x-sluicegate-arm"), header("x-sluicegate-version"));
    let body: Value = serde_json::from_str(&answer.body_mut().read_to_string().unwrap()).unwrap();
    let named = body["model_version"].as_str().unwrap().to_owned();
    (arm, version, named, body["outputs"][0]["data"][0].as_f64().unwrap())
}

#[test]
fn no_request_sees_a_mixture_of_two_documents_while_they_change_a_hundred_times() {
    let gateway = Gateway::start(fill);
    // The arms of each document carry its number, and the number determines their versions. So a mixed answer is detected.
    let versions = |n: u64| [1 + n % 3, 1 + (n + 1) % 3];
    let document = |n: u64| {
        let [a, b] = versions(n);
        json!({"split": [
            {"version": a.to_string(), "weight": 1 + n % 7, "arm": format!("a{n}")},
            {"version": b.to_string(), "weight": 1 + n % 5, "arm": format!("b{n}")},
        ], "sticky_by": {"header": "x-user"}})
    };
    assert_eq!(put(&gateway, &document(0)), 200);
    let (done, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    // The documents that may answer: from the last one published before a request began to the last one put since.
    let latest = Arc::new(Mutex::new((0u64, 0u64)));
    let url = format!("http://{}/v2/models/self/infer", gateway.data());
    let callers: Vec<_> = (0..3)
        .map(|caller| {
            let (done, asked, latest, url) = (Arc::clone(&done), Arc::clone(&asked), Arc::clone(&latest), url.clone());
            std::thread::spawn(move || {
                let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
                let mut i = 0;
                while !done.load(Ordering::Relaxed) {
                    i += 1;
                    let answered = latest.lock().unwrap().0;
                    let (arm, version, named, weights) = ask(&agent, &url, &[("x-user", &format!("{caller}-{i}"))]);
                    let begun = latest.lock().unwrap().1;
                    let n: u64 = arm[1..].parse().unwrap();
                    assert!((answered..=begun).contains(&n), "document {n} answered between {answered} and {begun}");
                    let side = usize::from(arm.starts_with('b'));
                    assert_eq!(version, versions(n)[side].to_string(), "arm {arm}");
                    assert_eq!((&named, weights.to_string()), (&version, version.clone()));
                    asked.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for n in 1..=100 {
        let before = asked.load(Ordering::Relaxed);
        latest.lock().unwrap().1 = n;
        assert_eq!(put(&gateway, &document(n)), 200);
        latest.lock().unwrap().0 = n;
        crate::support::eventually("more requests are answered", || {
            (asked.load(Ordering::Relaxed) > before + 5).then_some(())
        });
    }
    done.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.join().unwrap();
    }
    assert!(asked.load(Ordering::Relaxed) > 500);
}

#[test]
fn of_two_concurrent_writers_with_if_match_exactly_one_succeeds() {
    let gateway = Gateway::start(fill);
    for round in 0..20 {
        let etag = gateway.admin_get("/api/v1/models/self/traffic").header("etag").unwrap().to_owned();
        let statuses: Vec<u16> = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..2)
                .map(|writer| {
                    let (gateway, etag) = (&gateway, &etag);
                    scope.spawn(move || {
                        let document =
                            json!({"split": [{"version": "1", "weight": 1}], "reason": format!("{round} {writer}")});
                        let headers = [("if-match", etag.as_str())];
                        gateway.admin_send("PUT", "/api/v1/models/self/traffic", &headers, &document).status
                    })
                })
                .collect();
            writers.into_iter().map(|writer| writer.join().unwrap()).collect()
        });
        assert!(statuses == [200, 412] || statuses == [412, 200], "round {round}: {statuses:?}");
    }
}

/// The arm of each user in one process.
fn arms(served: &Served, users: usize) -> Vec<String> {
    let arm = |user: usize| {
        let answer = served.ask(&[("x-user", &format!("user-{user}"))]);
        answer.headers().get("x-sluicegate-arm").unwrap().to_str().unwrap().to_owned()
    };
    (0..users).map(arm).collect()
}

#[test]
fn a_user_has_the_same_arm_in_every_process_and_after_a_restart() {
    let dirs = [tempfile::TempDir::new().unwrap(), tempfile::TempDir::new().unwrap()];
    for dir in &dirs {
        std::fs::create_dir(dir.path().join("models")).unwrap();
        fill(&dir.path().join("models"));
    }
    let replicas: Vec<Served> = dirs.iter().map(|dir| Served::start(dir.path())).collect();
    for replica in &replicas {
        replica.ready();
        let split = ["traffic", "self", "--split", "1=60,2=30,beta:3=10", "--sticky-by", "header:x-user"];
        let put = replica.cli(&split);
        assert!(put.status.success(), "{put:?}");
    }
    let first = arms(&replicas[0], 200);
    assert_eq!(first, arms(&replicas[1], 200));
    assert_eq!(first.iter().collect::<BTreeSet<_>>().len(), 3, "every arm has users");
    drop(replicas);
    let again = Served::start(dirs[0].path());
    again.ready();
    assert_eq!(first, arms(&again, 200));
}

#[test]
fn rules_labels_and_versions_are_checked_before_the_split() {
    let gateway = Gateway::start(fill);
    let document = json!({
        "split": [{"version": "1", "weight": 1, "arm": "control"}, {"version": "2", "weight": 1, "arm": "challenger"}],
        "sticky_by": {"parameter": "user_id"},
        "rules": [{"header": "x-cohort", "equals": "beta", "version": "3"}],
        "labels": {"stable": "1", "canary": "3"},
    });
    assert_eq!(put(&gateway, &document), 200);
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let at = |path: &str| format!("http://{}{path}", gateway.data());
    let by_rule = ask(&agent, &at("/v2/models/self/infer"), &[("x-cohort", "beta")]);
    assert_eq!((by_rule.0.as_str(), by_rule.1.as_str()), ("rule", "3"));
    let pinned = ask(&agent, &at("/v2/models/self/versions/2/infer"), &[("x-cohort", "beta")]);
    assert_eq!((pinned.0.as_str(), pinned.1.as_str()), ("pinned", "2"));
    for (label, version) in [("stable", 1.0), ("canary", 3.0)] {
        let body = json!({"instances": [[0.0, 0.0, 0.0, 0.0]]}).to_string();
        let answer = gateway.post(&format!("/v1/models/self/labels/{label}:predict"), body);
        assert_eq!((answer.status, answer.header("x-sluicegate-arm")), (200, Some("label")), "{answer:?}");
        assert_eq!(answer.json()["predictions"][0][0], version);
    }
    let with_user = |user: Value| {
        let mut body: Value = serde_json::from_str(&infer_body(&[1, 4], &[0.0; 4])).unwrap();
        body["parameters"] = json!({"user_id": user});
        let answer = gateway.post("/v2/models/self/infer", body.to_string());
        answer.header("x-sluicegate-arm").unwrap().to_owned()
    };
    let arms: Vec<String> = (0..40).map(|user| with_user(json!(user))).collect();
    assert_eq!(
        arms,
        (0..40).map(|user| with_user(json!(user.to_string()))).collect::<Vec<_>>(),
        "a number and its text are the same key"
    );
    assert_eq!(arms.iter().collect::<BTreeSet<_>>().len(), 2);
    // Five requests without the key and one with an empty key: assigned by request id, and counted.
    for _ in 0..5 {
        gateway.post("/v2/models/self/infer", infer_body(&[1, 4], &[0.0; 4]));
    }
    with_user(json!(""));
    let metrics = String::from_utf8(gateway.admin_get("/metrics").body).unwrap();
    let counted = |line: &&str| line.starts_with("sluicegate_sticky_key_missing_total{model=\"self\"");
    let missing: f64 =
        metrics.lines().filter(counted).map(|l| l.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum();
    assert_eq!(missing, 6.0, "{metrics}");
    let traffic = gateway.admin_get("/api/v1/models/self/traffic").json();
    let ratio = &traffic["sample_ratio"];
    assert_eq!(ratio["requests"], 86, "only requests that the split assigned: {traffic}");
    assert_eq!(
        (&ratio["unit"], &ratio["keys"], &ratio["followed"]),
        (&json!("key"), &json!(40), &json!(1.0)),
        "each user once, however often it sends: {traffic}"
    );
    let without_key = json!({"split": document["split"]});
    assert_eq!(put(&gateway, &without_key), 200);
    let ratio = &gateway.admin_get("/api/v1/models/self/traffic").json()["sample_ratio"];
    assert_eq!((&ratio["unit"], &ratio["keys"]), (&json!("request"), &Value::Null), "{ratio}");
}
