//! Evidence of a whole fleet: the figures of three gateways are those of one that has all requests, whatever gateway feedback reaches, and whatever fails.

use super::fleet::{Nats, wait_for_nodes};
use super::support::{Answer, Gateway, eventually, onnx};
use serde_json::{Value, json};
use std::path::Path;

const METRICS: &str = "[metrics.clicked]\nkind = \"proportion\"\nvalue = \"clicked\"\n[metrics.revenue]\nkind = \"mean\"\nvalue = \"revenue\"\n[metrics.accuracy]\nkind = \"accuracy\"\n";

fn fill(models: &Path) {
    onnx::install(models, "m", 1, &onnx::scaling(1.0));
    onnx::install(models, "m", 2, &onnx::scaling(1.0));
    std::fs::write(models.join("m/model.toml"), METRICS).unwrap();
}

fn put_split(gateway: &Gateway) {
    let document = json!({
        "split": [{"version": "1", "weight": 1, "arm": "control"}, {"version": "2", "weight": 1, "arm": "treatment"}],
        "sticky_by": {"header": "x-user"}, "salt": "s",
    });
    eventually("the split is in force", || {
        let put = gateway.admin_send("PUT", "/api/v1/models/m/traffic", &[], &document);
        (put.status == 200).then_some(())
    });
}

fn three(nats: &Nats) -> [Gateway; 3] {
    let gateways = ["a", "b", "c"].map(|node| Gateway::start_with(&nats.config(node), fill));
    wait_for_nodes(&gateways[0], &["a", "b", "c"]);
    eventually("version 1 is promoted", || (gateways[0].promote("m", 1).status == 200).then_some(()));
    gateways
}

fn send(gateway: &Gateway, id: &str, user: &str, p: f32) {
    let data = [1.0 - p, p];
    let body = json!({"id": id, "inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": data}]});
    let answer = gateway.post_with("/v2/models/m/infer", &[("x-user", user)], body.to_string());
    assert_eq!(answer.status, 200, "{answer:?}");
}

fn feedback(gateway: &Gateway, entries: &[Value]) {
    let answer = gateway.post("/v1/models/m:feedback", json!({"feedback": entries}).to_string());
    assert_eq!(answer.status, 202, "{answer:?}");
}

fn get(gateway: &Gateway, path: &str) -> Value {
    let answer: Answer = gateway.admin_get(&format!("/api/v1/models/m/{path}"));
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

/// What does not depend on the time and on the order of rows.
fn figures(gateway: &Gateway) -> Value {
    let rounded = |value: &Value| value.as_f64().map(|x| (x * 1e9).round() / 1e9);
    let experiment = get(gateway, "experiment");
    let recent = get(gateway, "quality");
    let arms: Vec<Value> = recent["arms"]
        .as_array()
        .unwrap()
        .iter()
        .map(|arm| {
            let value = |name: &str| {
                let of = &arm["values"][name];
                json!([of["count"], rounded(&of["mean"]), of["units"], rounded(&of["standard_error"])])
            };
            json!([
                arm["arm"],
                arm["version"],
                arm["predictions"],
                arm["told"],
                arm["labelled"],
                arm["accuracy"],
                value("clicked"),
                value("revenue")
            ])
        })
        .collect();
    let windows = get(gateway, "quality?window=1d");
    let groups: Vec<Value> = windows["groups"]
        .as_array()
        .unwrap()
        .iter()
        .map(|group| {
            let of = |name: &str| {
                let of = &group["metrics"][name];
                json!([rounded(&of["value"]), rounded(&of["low"]), rounded(&of["high"]), of["n"], of["units"]])
            };
            json!([group["arm"], group["rows"], of("clicked"), of("accuracy")])
        })
        .collect();
    json!({
        "arms": experiment["arms"], "metrics": experiment["metrics"], "ratio": experiment["sample_ratio"], "two": experiment["units_on_two_arms"],
        "recent": arms, "unmatched": recent["unmatched"], "windows": groups,
    })
}

/// Requests of users and feedback about them that is early, late, doubled and corrected: all on one gateway, and each on any of three.
fn traffic(all: &Gateway, some: &[&Gateway], from: u32, requests: u32) {
    let rng = &mut fastrand::Rng::with_seed(u64::from(from) + 5);
    let mut later: Vec<Value> = Vec::new();
    for request in from..from + requests {
        let (id, user) = (format!("r{request}"), format!("u{}", rng.u32(0..40)));
        let p = [0.25, 0.5, 0.75][rng.usize(0..3)];
        let entry = |second: u8, of: Value| {
            let mut entry = json!({"request_id": id, "ts": format!("2026-11-01T00:00:{second:02}Z")});
            entry.as_object_mut().unwrap().extend(of.as_object().unwrap().clone());
            entry
        };
        let mut entries = vec![
            entry(rng.u8(0..20), json!({"label": rng.u8(0..2), "values": {"clicked": rng.u8(0..2)}})),
            entry(rng.u8(20..40), json!({"values": {"revenue": rng.u8(0..50)}})),
        ];
        if rng.bool() {
            entries.push(entry(rng.u8(40..60), json!({"label": rng.u8(0..2)})));
        }
        if rng.u8(0..4) == 0 {
            entries.push(entries[0].clone());
        }
        if rng.u8(0..5) == 0 {
            let early = [entries.remove(0)];
            feedback(all, &early);
            feedback(some[rng.usize(0..some.len())], &early);
        }
        send(all, &id, &user, p);
        send(some[rng.usize(0..some.len())], &id, &user, p);
        later.extend(entries);
    }
    rng.shuffle(&mut later);
    for entries in later.chunks(9) {
        feedback(all, entries);
        feedback(some[rng.usize(0..some.len())], entries);
    }
}

fn wait_for_figures(what: &str, gateways: &[&Gateway], alone: &Gateway) {
    let expected = figures(alone);
    for gateway in gateways {
        let mut last = Value::Null;
        let same = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            eventually(what, || {
                last = figures(gateway);
                (last == expected).then_some(())
            });
        }));
        assert!(same.is_ok(), "{what}: expected {expected:#}, found {last:#}");
    }
}

#[test]
fn the_figures_of_three_gateways_are_those_of_one_that_has_all_requests() {
    let Some(mut nats) = Nats::start() else { return };
    let alone = Gateway::start(fill);
    assert_eq!(alone.promote("m", 1).status, 200);
    put_split(&alone);
    let [a, b, c] = three(&nats);
    put_split(&b);
    eventually("all have the split", || {
        [&a, &b, &c].iter().all(|gateway| get(gateway, "traffic")["split"].as_array().unwrap().len() == 2).then_some(())
    });
    // One that has answered nothing yet is not missing.
    traffic(&alone, &[&a, &b], 5000, 10);
    wait_for_figures("two gateways have rows", &[&a, &c], &alone);
    eventually("c is not missing", || (get(&a, "experiment")["fleet"]["missing"] == json!([])).then_some(()));
    traffic(&alone, &[&a, &b, &c], 0, 150);
    wait_for_figures("each gateway has the figures of all", &[&a, &b, &c], &alone);
    let experiment = get(&b, "experiment");
    let names: Vec<&str> =
        experiment["fleet"]["gateways"].as_array().unwrap().iter().map(|of| of["name"].as_str().unwrap()).collect();
    assert_eq!((names, &experiment["fleet"]["missing"]), (vec!["a", "b", "c"], &json!([])), "{}", experiment["fleet"]);
    assert_eq!(get(&alone, "experiment")["fleet"], Value::Null);
    assert_eq!(get(&b, "quality")["feedback"], get(&alone, "quality")["feedback"], "entries, wherever they arrived");
    assert_eq!(experiment["began"], get(&a, "experiment")["began"], "one experiment begins once");

    // What was cut off is told later, and nothing counts twice.
    nats.kill();
    traffic(&alone, &[&a, &b, &c], 1000, 30);
    assert_eq!(a.admin_get("/api/v1/models/m/experiment").status, 200, "it answers with what it has");
    nats.again();
    wait_for_figures("what came meanwhile is counted", &[&a, &b, &c], &alone);

    // Gone and back again: what it had given counts all the time, and what it answers then too.
    let dir = c.stop();
    wait_for_figures("what a gateway gave that is gone stays", &[&a, &b], &alone);
    let c = Gateway::start_in(dir, &nats.config("c"));
    c.wait_ready();
    wait_for_figures("it has them again", &[&c, &a], &alone);
    eventually("c serves the split", || (get(&c, "traffic")["split"].as_array()?.len() == 2).then_some(()));
    traffic(&alone, &[&c, &a], 2000, 20);
    wait_for_figures("it goes on", &[&a, &b, &c], &alone);
}

/// Users of whom each sends one request to some gateway; another one gets what they did.
fn users(gateways: &[&Gateway], from: u32, n: u32, clicks: impl Fn(&str) -> f64) {
    let rng = &mut fastrand::Rng::with_seed(u64::from(from));
    let mut entries = vec![Vec::new(); gateways.len()];
    for user in from..from + n {
        let (id, user) = (format!("user {user}"), format!("u{user}"));
        send(gateways[rng.usize(0..gateways.len())], &id, &user, 0.5);
        let arm = get(gateways[0], &format!("assignment?key={user}"))["arm"].clone();
        let clicked = rng.f64() < clicks(arm.as_str().unwrap());
        entries[rng.usize(0..gateways.len())].push(json!({"request_id": id, "values": {"clicked": u8::from(clicked)}}));
    }
    for (gateway, entries) in gateways.iter().zip(entries) {
        feedback(gateway, &entries);
    }
}

#[test]
fn a_rollout_of_a_fleet_is_decided_by_the_business_metrics_of_all_gateways() {
    let Some(nats) = Nats::start() else { return };
    let [a, b, c] = three(&nats);
    let all = [&a, &b, &c];
    let document = json!({"split": [{"version": "1", "weight": 1}], "sticky_by": {"header": "x-user"}});
    eventually("version 1 has sticky keys", || {
        (a.admin_send("PUT", "/api/v1/models/m/traffic", &[], &document).status == 200).then_some(())
    });
    let guardrails = json!({"metrics": {"clicked": {"not_worse_than": -0.05}}, "p99_latency_ratio": null, "engine_time_ratio": null,
                            "constant_output_ratio": null});
    let plan = json!({"to": "2", "steps": [50, 100], "hold": "1s", "min_requests": 20, "reason": "a test", "guardrails": guardrails});
    eventually("the rollout begins", || {
        let begun = b.admin_send("POST", "/api/v1/models/m:rollout", &[], &plan);
        (begun.status == 200).then_some(())
    });
    eventually("all have the step", || {
        all.iter().all(|gateway| get(gateway, "traffic")["split"].as_array().unwrap().len() == 2).then_some(())
    });
    users(&all, 1000, 330, |arm| if arm == "2" { 0.1 } else { 0.7 });
    let ended = eventually("the rollout is taken back", || {
        Some(get(&c, "rollout")).filter(|rollout| rollout["state"] != "running")
    });
    let why = ended["why"].as_str().unwrap();
    assert!(ended["state"] == "taken_back" && why.starts_with("clicked is worse beyond doubt"), "{ended}");
}

/// Runs a command against a gateway.
fn cli(gateway: &Gateway, line: &str) -> (bool, String) {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_sluicegate"))
        .args(line.split(' '))
        .env("SLUICEGATE_ADMIN", format!("http://{}", gateway.admin()))
        .output()
        .unwrap();
    (
        output.status.success(),
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr),
    )
}

/// How many events each gateway has, and the events of the fleet.
fn events(gateways: &[(&str, &Gateway)]) -> Vec<(String, u64)> {
    let of = |(name, gateway): &(&str, &Gateway)| {
        ((*name).to_owned(), gateway.admin_get("/api/v1/audit/head").json()["id"].as_u64().unwrap())
    };
    gateways.iter().map(of).collect()
}

/// The same in the chain of the fleet.
fn events_of_fleet(gateway: &Gateway) -> Option<Vec<(String, u64)>> {
    let (ok, text) = cli(gateway, "audit --fleet --verify --json");
    // While NATS is away, the answer says so.
    let verified: Value = serde_json::from_str(&text).ok()?;
    assert!(ok && verified["ok"] == true, "{verified:#}");
    let of = |one: &Value| (one["node"].as_str().unwrap().to_owned(), one["events"].as_u64().unwrap());
    let mut events: Vec<(String, u64)> = verified["gateways"].as_array().unwrap().iter().map(of).collect();
    events.sort();
    Some(events)
}

#[test]
fn the_trails_of_all_gateways_are_one_chain_that_has_every_event_once() {
    let Some(mut nats) = Nats::start() else { return };
    let [a, b, c] = three(&nats);
    for (gateway, version) in [(&b, 2), (&c, 1), (&a, 2)] {
        eventually("it is promoted", || (gateway.promote("m", version).status == 200).then_some(()));
    }
    let all = [("a", &a), ("b", &b), ("c", &c)];
    let complete = |all: &[(&str, &Gateway)]| {
        eventually("the fleet has every event of each gateway once", || {
            (events_of_fleet(all[0].1)? == events(all)).then_some(())
        });
    };
    complete(&all);
    let (ok, listed) = cli(&b, "audit --fleet --model m");
    assert!(ok && listed.lines().filter(|line| line.contains("  promote  ")).count() == 4, "{listed}");

    // What happens while NATS is away, and what was there before a start, is appended later.
    nats.kill();
    let until = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1);
    let silenced = json!({"matcher": {"rule": "drift"}, "until": until.to_string(), "reason": "a test"});
    for gateway in [&a, &b] {
        let answer = gateway.admin_send("POST", "/api/v1/alerts/silences", &[], &silenced);
        assert!(answer.status < 300, "{answer:?}");
    }
    let answer = a.admin_get("/api/v1/fleet/audit");
    assert_eq!((answer.status, answer.code()), (503, "NOT_READY".to_owned()));
    nats.again();
    complete(&all);
    let dir = c.stop();
    let c = Gateway::start_in(dir, &nats.config("c"));
    c.wait_ready();
    complete(&[("a", &a), ("b", &b), ("c", &c)]);

    // An export is verified anywhere.
    let (ok, lines) = cli(&a, "audit --fleet --export");
    assert!(ok && !lines.is_empty());
    let dir = tempfile::TempDir::new().unwrap();
    let file = dir.path().join("fleet.jsonl");
    std::fs::write(&file, &lines).unwrap();
    let (ok, text) = cli(&a, &format!("audit --fleet --verify --file {}", file.display()));
    assert!(ok && text.starts_with("ok: "), "{text}");
    std::fs::write(&file, lines.replacen("promote", "pramote", 1)).unwrap();
    let (ok, text) = cli(&a, &format!("audit --fleet --verify --file {}", file.display()));
    assert!(!ok && text.contains("was altered"), "{text}");
}
