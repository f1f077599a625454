//! Rollouts of a fleet: one gateway drives, all of them count, and whatever fails, no step is made twice and no request counts twice.

use super::fleet::{Nats, fleet, split, wait_for_nodes};
use super::support::process::Served;
use super::support::{Answer, Gateway, eventually, infer_body, onnx};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::path::Path;
use tempfile::TempDir;

/// Version 1 accepts all rows; version 2 fails on rows that begin with more than 9. See `rollout.rs`.
fn fill(models: &Path) {
    onnx::install(models, "m", 1, &onnx::scaling(1.0));
    onnx::install(models, "m", 2, &onnx::out_of_memory_above(9));
    std::fs::write(models.join("m/model.toml"), "[execution]\nat_once = false\n").unwrap();
}

fn three(nats: &Nats) -> [Gateway; 3] {
    let gateways = ["a", "b", "c"].map(|node| Gateway::start_with(&nats.config(node), fill));
    let [a, ..] = &gateways;
    wait_for_nodes(a, &["a", "b", "c"]);
    eventually("version 1 is promoted", || (a.promote("m", 1).status == 200).then_some(()));
    wait_for_split(&gateways.each_ref()[..], &[("1", 1.0)]);
    gateways
}

fn wait_for_split(gateways: &[&Gateway], expected: &[(&str, f64)]) {
    let expected: Vec<(String, f64)> =
        expected.iter().map(|(version, weight)| ((*version).to_owned(), *weight)).collect();
    for gateway in gateways {
        eventually(&format!("the split is {expected:?}"), || (split(gateway) == expected).then_some(()));
    }
}

fn begin(gateway: &Gateway, plan: &Value) -> Answer {
    gateway.admin_send("POST", "/api/v1/models/m:rollout", &[], plan)
}

fn verb(gateway: &Gateway, verb: &str) -> Answer {
    gateway.admin_send("POST", &format!("/api/v1/models/m/rollout:{verb}"), &[], &json!({"reason": "a test"}))
}

fn rollout(gateway: &Gateway) -> Value {
    gateway.admin_get("/api/v1/models/m/rollout").json()
}

fn until(gateway: &Gateway, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
    eventually(what, || {
        let rollout = rollout(gateway);
        holds(&rollout).then_some(rollout)
    })
}

fn ask(gateway: &Gateway, x: f32) -> Answer {
    gateway.post("/v2/models/m/infer", infer_body(&[1, 2], &[x, 1.0]))
}

fn send(gateway: &Gateway, x: f32) -> u16 {
    ask(gateway, x).status
}

/// Begins a rollout, once the gateway has the last change of the fleet in force.
fn begun(gateway: &Gateway, plan: &Value) -> Value {
    eventually("the rollout begins", || Some(begin(gateway, plan)).filter(|answer| answer.status == 200)).json()
}

/// The same for what an operator does to it.
fn done(gateway: &Gateway, what: &str) -> Value {
    eventually(what, || Some(verb(gateway, what)).filter(|answer| answer.status == 200)).json()
}

/// The requests of both sides in the driver's sum.
fn counted(rollout: &Value) -> u64 {
    let of = |side: &str| rollout[side]["requests"].as_u64().unwrap_or_default();
    of("candidate") + of("control")
}

fn moves(rollout: &Value) -> Vec<(String, f64)> {
    let of = |m: &Value| (m["action"].as_str().unwrap().to_owned(), m["percent"].as_f64().unwrap());
    rollout["moves"].as_array().unwrap().iter().map(of).collect()
}

#[test]
fn the_counts_of_all_gateways_decide_together_and_every_gateway_reaches_the_rollout() {
    let Some(nats) = Nats::start() else { return };
    let [a, b, c] = three(&nats);
    let all = [&a, &b, &c];

    // What one gateway alone knows does not decide for all.
    let metrics = json!({"to": "2", "guardrails": {"p99_before_ratio": 2}, "reason": "a test"});
    let refused = begin(&a, &metrics);
    assert_eq!((refused.status, refused.code()), (400, "INVALID_REQUEST".to_owned()));
    assert!(refused.json()["error"].as_str().unwrap().contains("p99 from before the rollout"), "{:?}", refused.json());

    // A good version, with requests that suffice in sum only.
    let plan = json!({"to": "2", "steps": [50, 100], "hold": "1s", "min_requests": 12, "reason": "a test"});
    let first = begun(&b, &plan);
    assert_eq!((&first["fleet"]["driver"], &first["fleet"]["here"]), (&json!("b"), &json!(true)), "{first}");
    wait_for_split(&all, &[("1", 50.0), ("2", 50.0)]);
    assert_eq!(begin(&a, &plan).status, 409, "a model has one rollout in the fleet");
    // Each gateway of the fleet shows it.
    until(&c, "c knows who drives", |rollout| {
        rollout["fleet"]["driver"] == "b"
            && rollout["fleet"]["lease_age"].as_f64() < Some(5.0)
            && rollout["state"] == "running"
    });
    let (mut sent, mut of_candidate) = (0, [0, 0, 0]);
    let waits = until(&b, "every gateway tells its counts", |rollout| {
        rollout["fleet"]["counted"].as_array().is_some_and(|counted| counted.len() == 3)
    });
    assert_eq!(waits["fleet"]["silent"], json!([]), "{waits}");
    let finished = loop {
        for (gateway, of_candidate) in all.into_iter().zip(&mut of_candidate) {
            let answer = ask(gateway, 1.0);
            assert_eq!(answer.status, 200);
            *of_candidate += u64::from(answer.header("x-sluicegate-version") == Some("2"));
            sent += 1;
        }
        let seen = until(&b, "all are counted", |rollout| rollout["state"] != "running" || counted(rollout) == sent);
        if seen["state"] != "running" || seen["candidate"]["requests"].as_u64() >= Some(12) {
            break until(&b, "the rollout finishes", |rollout| rollout["state"] == "finished");
        }
        assert!(sent < 90, "{seen}");
    };
    assert!(of_candidate.iter().all(|of_one| *of_one < 12), "no gateway alone had enough: {of_candidate:?}");
    // The step does not wait for the counts of requests that it needs no more.
    assert!((12..=sent).contains(&counted(&finished)), "nothing counts twice: {finished}");
    wait_for_split(&all, &[("2", 1.0)]);
    assert_eq!(moves(&finished), [("rollout_start".to_owned(), 50.0), ("rollout_finish".to_owned(), 100.0)]);
    until(&a, "a knows that it is over", |rollout| rollout["state"] == "finished");

    // A bad version: three gateways together need about as many requests as one.
    eventually("version 1 is promoted", || (a.promote("m", 1).status == 200).then_some(()));
    wait_for_split(&all, &[("1", 1.0)]);
    let plan = json!({"to": "2", "steps": [50, 100], "hold": "1h", "reason": "a test"});
    begun(&a, &plan);
    wait_for_split(&all, &[("1", 50.0), ("2", 50.0)]);
    // Another gateway pauses and continues it.
    assert_eq!(done(&c, "pause")["state"], "paused");
    until(&a, "the driver knows that it is paused", |rollout| rollout["state"] == "paused");
    done(&b, "pause");
    until(&b, "b knows it too", |rollout| rollout["state"] == "paused");
    assert_eq!(done(&b, "resume")["state"], "running");
    until(&a, "the driver goes on", |rollout| rollout["state"] == "running");
    let (mut sent, mut failed) = (0, 0);
    let back = loop {
        for gateway in [&a, &b, &c, &a, &b, &c] {
            failed += u64::from(send(gateway, 12.0) != 200);
            sent += 1;
        }
        let seen = until(&a, "all are counted", |rollout| rollout["state"] != "running" || counted(rollout) == sent);
        if seen["state"] != "running" {
            break seen;
        }
        assert!(sent < 90, "one gateway needs 7 to 25 failures: {seen}");
    };
    assert_eq!(back["state"], "taken_back", "{back}");
    assert!(back["why"].as_str().unwrap().starts_with("error_rate_ratio violated: "), "{back}");
    // How many it takes is by chance. That none was counted twice, so that nothing is decided sooner than on one gateway, is not.
    assert!(counted(&back) <= sent, "{sent} were sent: {back}");
    assert!((1..=failed).contains(&back["candidate"]["failed"].as_u64().unwrap()), "{failed} failed: {back}");
    assert!(failed < 40, "about as many as one gateway needs: {failed}, {back}");
    wait_for_split(&all, &[("1", 1.0)]);

    // Aborted on a gateway that does not drive, and seen on all.
    begun(&a, &plan);
    wait_for_split(&all, &[("1", 50.0), ("2", 50.0)]);
    let shown = eventually("the fleet shows the rollout", || {
        let answer = fleet(&c);
        (answer["rollouts"][0]["driver"] == "a" && answer["rollouts"][0]["counted"].as_object()?.len() == 3)
            .then_some(answer)
    });
    assert_eq!(shown["rollouts"][0]["model"], "m", "{shown}");
    let aborted = done(&c, "abort");
    assert_eq!((&aborted["state"], &aborted["why"]), (&json!("aborted"), &json!("aborted: a test")));
    wait_for_split(&all, &[("1", 1.0)]);
    until(&a, "the driver knows it", |rollout| rollout["state"] == "aborted");
    // A change by somebody else ends a rollout.
    begun(&a, &plan);
    wait_for_split(&all, &[("1", 50.0), ("2", 50.0)]);
    eventually("b promotes", || (b.promote("m", 1).status == 200).then_some(()));
    let stopped = until(&c, "the rollout stops", |rollout| rollout["state"] == "stopped");
    assert!(stopped["why"].as_str().unwrap().contains(" on b (promote)"), "{stopped}");
    wait_for_split(&all, &[("1", 1.0)]);
}

#[test]
fn without_nats_a_rollout_stands_still_and_nothing_counts_twice() {
    let Some(mut nats) = Nats::start() else { return };
    let [a, b, c] = three(&nats);
    let plan = json!({"to": "2", "steps": [50, 100], "hold": "1h", "reason": "a test"});
    begun(&a, &plan);
    wait_for_split(&[&a, &b, &c], &[("1", 50.0), ("2", 50.0)]);
    let mut sent = 0;
    let mut answer = |gateways: &[&Gateway], each: u64| {
        for gateway in gateways {
            for _ in 0..each {
                assert_eq!(send(gateway, 1.0), 200);
            }
            sent += each;
        }
        sent
    };
    let expected = answer(&[&a, &b, &c], 7);
    until(&a, "all are counted", |rollout| counted(rollout) == expected);

    nats.kill();
    until(&a, "the driver is cut off", |rollout| !rollout["fleet"]["cut_off"].is_null());
    let refused = verb(&a, "abort");
    assert_eq!((refused.status, refused.code()), (503, "NOT_READY".to_owned()), "{:?}", refused.json());
    answer(&[&a, &b, &c], 5);
    assert_eq!(rollout(&a)["state"], "running");
    nats.again();
    let expected = answer(&[&b], 2);
    let seen = until(&a, "what came meanwhile is counted", |rollout| counted(rollout) >= expected);
    assert_eq!((counted(&seen), &seen["fleet"]["driver"]), (expected, &json!("a")), "{seen}");

    // A gateway that starts again keeps what it had told, and counts on.
    let c = Gateway::start_in(c.stop(), &nats.config("c"));
    c.wait_ready();
    eventually("c serves the step", || (split(&c).len() == 2).then_some(()));
    let expected = answer(&[&a, &b, &c], 3);
    let seen = until(&a, "the counts of both starts are there", |rollout| counted(rollout) >= expected);
    assert_eq!(counted(&seen), expected, "{seen}");
    // So does the driver.
    let a = Gateway::start_in(a.stop(), &nats.config("a"));
    a.wait_ready();
    let seen = eventually("some gateway drives and has all counts", || {
        [&a, &b, &c]
            .into_iter()
            .map(rollout)
            .find(|rollout| rollout["fleet"]["here"] == true && counted(rollout) >= expected)
    });
    assert_eq!((counted(&seen), &seen["state"]), (expected, &json!("running")), "{seen}");
}

/// A gateway as a process of its own.
struct Process {
    served: Served,
    dir: TempDir,
}

impl Process {
    fn start(nats: &Nats, node: &str) -> Process {
        let dir = TempDir::new().unwrap();
        fill(&dir.path().join("models"));
        let url = nats.url();
        let environment = [
            ("SLUICEGATE__SERVER__SUPERVISE", "false"),
            ("SLUICEGATE__FLEET__URLS", url.as_str()),
            ("SLUICEGATE__FLEET__NAME", "shop"),
            ("SLUICEGATE__FLEET__NODE", node),
        ];
        let served = Served::start_with(dir.path(), &environment);
        Process { served, dir }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.served.child), signal).unwrap();
    }

    fn rollout(&self) -> Value {
        serde_json::from_str(&self.served.admin_get("/api/v1/models/m/rollout")).unwrap()
    }

    fn send(&self) {
        let url = format!("http://{}/v2/models/m/infer", self.served.data);
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        assert_eq!(agent.post(&url).send(infer_body(&[1, 2], &[1.0, 1.0])).unwrap().status(), 200);
    }
}

/// Which gateway made each change of traffic that this one followed, oldest first.
fn followed(gateway: &Gateway) -> Vec<String> {
    let events = gateway.admin_get("/api/v1/audit?model=m&limit=100").json()["events"].clone();
    let mut reasons: Vec<String> = events
        .as_array()
        .unwrap()
        .iter()
        .filter(|event| event["action"] == "follow")
        .filter_map(|event| Some(event["reason"].as_str()?.split(',').next()?.to_owned()))
        .filter(|reason| reason.starts_with("rollout"))
        .collect();
    reasons.reverse();
    reasons
}

#[test]
fn a_driver_that_is_stopped_or_killed_is_replaced_and_changes_nothing_more() {
    let Some(nats) = Nats::start() else { return };
    let (a, mut b) = (Process::start(&nats, "a"), Process::start(&nats, "b"));
    let c = Gateway::start_with(&nats.config("c"), fill);
    wait_for_nodes(&c, &["a", "b", "c"]);
    eventually("version 1 is promoted", || (c.promote("m", 1).status == 200).then_some(()));
    let plan = json!({"to": "2", "steps": [20, 50, 100], "hold": "500ms", "min_requests": 8, "reason": "a test"});
    eventually("a begins", || {
        let url = format!("http://{}/api/v1/models/m:rollout", a.served.admin);
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let answer = agent.post(&url).content_type("application/json").send(plan.to_string());
        (answer.unwrap().status() == 200).then_some(())
    });
    wait_for_split(&[&c], &[("1", 80.0), ("2", 20.0)]);
    a.send();
    b.send();
    assert_eq!(send(&c, 1.0), 200);
    eventually("the driver has the counts of all", || {
        let rollout = a.rollout();
        (rollout["fleet"]["here"] == true && counted(&rollout) == 3).then_some(())
    });

    // In the middle of a step the driver is paused. Another one has its counts and makes the next step.
    a.signal(Signal::STOP);
    let taken = eventually("b drives", || Some(b.rollout()).filter(|rollout| rollout["fleet"]["driver"] == "b"));
    assert_eq!((&taken["percent"], &taken["state"]), (&json!(20.0), &json!("running")), "{taken}");
    // The request that a answered last may not have been told before it was stopped.
    let seen =
        eventually("b has the counts of the others", || Some(b.rollout()).filter(|rollout| counted(rollout) >= 2));
    assert!((2..=3).contains(&counted(&seen)), "nothing counts twice: {seen}");
    eventually("b makes the next step", || {
        b.send();
        assert_eq!(send(&c, 1.0), 200);
        (b.rollout()["percent"] == 50.0).then_some(())
    });
    wait_for_split(&[&c], &[("1", 50.0), ("2", 50.0)]);
    a.signal(Signal::CONT);
    let after = eventually("a follows b", || {
        Some(a.rollout()).filter(|rollout| rollout["fleet"]["driver"] == "b" && rollout["percent"] == 50.0)
    });
    assert_eq!(after["fleet"]["here"], false, "{after}");
    a.send();
    assert_eq!(rollout(&c)["fleet"]["driver"], "b");

    // Killed in the middle of the next one.
    b.served.kill();
    eventually("another one drives and finishes", || {
        a.send();
        assert_eq!(send(&c, 1.0), 200);
        (rollout(&c)["state"] == "finished").then_some(())
    });
    wait_for_split(&[&c], &[("2", 1.0)]);
    let finished = rollout(&c);
    assert_eq!(
        moves(&finished),
        [("rollout_start".to_owned(), 20.0), ("rollout_step".to_owned(), 50.0), ("rollout_finish".to_owned(), 100.0)]
    );
    // Every step was made once, in order.
    let mut steps = followed(&c);
    let last = finished["fleet"]["driver"].as_str().unwrap();
    assert_ne!(last, "b");
    if last != "c" {
        assert_eq!(steps.pop(), Some(format!("rollout_finish on {last}")), "{steps:?}");
    }
    assert_eq!(steps, ["rollout_start on a", "rollout_step on b"]);
    drop(b.dir);
}
