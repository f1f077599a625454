//! Drift over a fleet: the rows of all gateways are judged together, the alert is sent once, and an hour does not wait for a gateway that is gone.

use super::fleet::Nats;
use crate::support::library::Clock;
use crate::support::onnx;
use crate::support::process::{Served, binary};
use crate::support::receiver::{Receiver, Reply};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// An hour, and the time after which one without newer rows has ended.
const HOUR: Duration = Duration::from_mins(62);
/// Rows of each gateway in the hour that alarms: a third of what it takes (`alone` has as many, and does not alarm).
const ROWS: usize = 20;

/// Numbers that look random and are the same each time, from 0 to 1.
fn numbers(n: u16) -> impl Iterator<Item = f32> {
    // Multiples of the golden ratio's fraction, in 65,536ths.
    (0..n).map(|i| f32::from(i.wrapping_mul(40_503)) / 65_536.0)
}

/// A model whose column `age` was from 0 to 1 in training.
fn install(dir: &Path) {
    onnx::install(&dir.join("models"), "m", 1, &onnx::scaling(1.0));
    std::fs::write(dir.join("models/m/model.toml"), "feature_names = [\"age\", \"fare\"]\n").unwrap();
    let mut text = "x[0],x[1]\n".to_owned();
    for x in numbers(5000) {
        writeln!(text, "{x},{}", 1.0 - x).unwrap();
    }
    std::fs::write(dir.join("train.csv"), text).unwrap();
    let line = "profile train.csv --model m --version 1 -o models/m/1/profile.json";
    let made = Command::new(binary()).args(line.split(' ')).current_dir(dir).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// A gateway as a process of its own, with the calendar of `clock`. `node`: its name in the fleet, or alone.
struct Node {
    served: Served,
    _dir: TempDir,
}

impl Node {
    fn start(clock: &Clock, receiver: &Receiver, fleet: &str) -> Node {
        let dir = TempDir::new().unwrap();
        install(dir.path());
        std::fs::create_dir_all(dir.path().join("config")).unwrap();
        let text = format!(
            "{fleet}[alerts]\ncheck_interval = \"100ms\"\nend_after = \"300ms\"\noff = [\"disk_full\", \"memory_full\"]\n\
             [[alerts.targets]]\nname = \"ops\"\nkind = \"webhook\"\nurl = \"{}\"\nsend = [\"alerts\"]\n",
            receiver.url("/hook")
        );
        std::fs::write(dir.path().join("config/sluicegate.toml"), text).unwrap();
        let served = Served::start_with(dir.path(), &clock.environment());
        Node { served, _dir: dir }
    }

    fn drift(&self) -> Value {
        serde_json::from_str(&self.served.admin_get("/api/v1/models/m/drift")).unwrap()
    }

    /// The rows of the hours that were closed for all, and of the one that is open here.
    fn counted(&self) -> u64 {
        self.drift()["versions"][0]["arms"][0]["counted"].as_u64().unwrap_or(0)
    }

    fn ask(&self, shift: f32) {
        let before = self.counted();
        for x in numbers(u16::try_from(ROWS).unwrap()) {
            let data = [x + shift, 1.0 - x];
            let body = json!({"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": data}]});
            let url = format!("http://{}/v2/models/m/infer", self.served.data);
            assert_eq!(ureq::post(&url).send(body.to_string()).unwrap().status(), 200);
        }
        wait("the rows are counted", || (self.counted() == before + ROWS as u64).then_some(()));
    }
}

/// As `eventually`, for what takes some of the periods of a fleet: a gateway tells every ten seconds what it counted.
#[track_caller]
fn wait<T>(what: &str, mut holds: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(40);
    loop {
        if let Some(found) = holds() {
            return found;
        }
        assert!(Instant::now() < end, "within 40 s: {what}");
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

/// The alerts of drift that were sent, whoever sent them: each message counts, also one that came twice.
fn alerts(receiver: &Receiver) -> Vec<String> {
    let messages = receiver.got();
    let all = messages.iter().flat_map(|got| got.json()["alerts"].as_array().unwrap().clone());
    let drift = all.filter(|alert| alert["rule"] == "drift");
    drift.map(|alert| format!("{} {}", alert["state"].as_str().unwrap(), alert["summary"].as_str().unwrap())).collect()
}

#[test]
fn rows_that_alarm_only_together_alarm_everywhere_once_and_an_hour_is_closed_without_a_gateway_that_was_killed() {
    let Some(nats) = Nats::start() else { return };
    let (receiver, alone_receiver) = (Receiver::start(Reply::Status(204)), Receiver::start(Reply::Status(204)));
    let dir = TempDir::new().unwrap();
    // A Friday at ten: no week ends in this test, and no day.
    let mut clock = Clock::new(dir.path());
    let today = clock.now().as_second().div_euclid(86_400);
    let friday = (today + 1..today + 8).find(|day| day.rem_euclid(7) == 1).unwrap();
    let begin = jiff::Timestamp::from_second(friday * 86_400 + 10 * 3600).unwrap();
    clock.pass(Duration::try_from(begin.duration_since(clock.now())).unwrap());
    let alone = Node::start(&clock, &alone_receiver, "");
    let mut nodes = ["a", "b", "c"].map(|node| Node::start(&clock, &receiver, &nats.config(node)));
    for node in nodes.iter().chain([&alone]) {
        node.served.ready();
        node.served.wait_state("m", 1, "serving");
    }
    let promote = json!({"version": "1", "reason": "a test"});
    wait("version 1 is promoted", || {
        let url = format!("http://{}/api/v1/models/m:promote", nodes[0].served.admin);
        let answer = ureq::post(&url).content_type("application/json").send(promote.to_string());
        answer.is_ok().then_some(())
    });
    wait("all see each other serve", || {
        nodes.iter().all(|node| of_fleet(&node.served) == ["a ready", "b ready", "c ready"]).then_some(())
    });

    // An hour of rows that differ.
    for node in nodes.iter().chain([&alone]) {
        node.ask(0.5);
    }
    assert_eq!(alerts(&receiver), [""; 0]);
    clock.pass(HOUR);
    wait("the hour alarms on all", || {
        nodes.iter().all(|node| node.drift()["troubles"].as_array().is_some_and(|all| all.len() == 1)).then_some(())
    });
    let rows = 3 * ROWS;
    for node in &nodes {
        let drift = node.drift();
        let words = drift["troubles"][0]["words"].as_str().unwrap();
        assert!(words.contains(&format!("age differs from the profile in the hour of {rows} rows")), "{drift}");
        let fleet = &drift["fleet"];
        let names: Vec<&str> =
            fleet["gateways"].as_array().unwrap().iter().map(|of| of["name"].as_str().unwrap()).collect();
        assert_eq!((names, &fleet["missing"]), (vec!["a", "b", "c"], &json!([])), "{drift}");
    }
    wait("the alert is sent", || (!alerts(&receiver).is_empty()).then_some(()));
    wait("one gateway alone has judged its hour", || (last_hour(&alone.drift()) == ROWS as u64).then_some(()));
    assert_eq!(alone.drift()["troubles"], json!([]), "a third of the rows is not enough");

    // Another hour, of which the one that is killed counts nothing.
    nodes[2].served.kill();
    let closed_before = nodes[0].drift()["closed_until"].clone();
    for node in &nodes[..2] {
        node.ask(0.0);
    }
    clock.pass(HOUR);
    wait("the hour is closed without it", || {
        nodes[..2].iter().all(|node| node.drift()["closed_until"] != closed_before).then_some(())
    });
    for node in &nodes[..2] {
        let drift = node.drift();
        let fleet = &drift["fleet"];
        let names: Vec<&str> =
            fleet["gateways"].as_array().unwrap().iter().map(|of| of["name"].as_str().unwrap()).collect();
        assert_eq!((names, &fleet["missing"]), (vec!["a", "b"], &json!(["c"])), "{drift}");
        assert_eq!(last_hour(&drift), 2 * ROWS as u64, "{drift}");
    }
    let sent = alerts(&receiver);
    assert!(sent.len() == 1 && sent[0].starts_with("firing "), "sent by one gateway, and once: {sent:?}");
    assert_eq!(alerts(&alone_receiver), [""; 0]);
}

/// The rows of the last hour that was judged.
fn last_hour(drift: &Value) -> u64 {
    drift["versions"][0]["arms"][0]["columns"][0]["windows"][0]["rows"].as_u64().unwrap_or(0)
}

/// The gateways that one of them knows, with their states; those that do not serve the model are left out.
fn of_fleet(served: &Served) -> Vec<String> {
    let fleet: Value = serde_json::from_str(&served.admin_get("/api/v1/fleet")).unwrap();
    let nodes = fleet["nodes"].as_array().cloned().unwrap_or_default();
    let serve = nodes.iter().filter(|node| node["models"]["m"]["revision"].as_u64() > Some(0));
    serve.map(|node| format!("{} {}", node["name"].as_str().unwrap(), node["state"].as_str().unwrap())).collect()
}
