//! Three gateways and three NATS servers under load: traffic is promoted while processes are killed, stopped and started again. No request may fail, no
//! answer may come from a version that its gateway's document did not name, and nothing that was acknowledged may be lost. `make fleet-chaos` is the long
//! form.

use crate::fleet_cluster::Cluster;
use crate::support::process::Served;
use crate::support::{eventually, infer_body, onnx};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Versions that take turns. A late answer by an old one is not named again before many promotions.
const VERSIONS: u64 = 10;
const NAMES: [&str; 3] = ["a", "b", "c"];
/// The pause of a client between two requests.
const PAUSE: Duration = Duration::from_millis(5);

/// Promotions in the undisturbed part.
fn promotions() -> usize {
    std::env::var("SLUICEGATE_FLEET_PROMOTIONS").ok().and_then(|text| text.parse().ok()).unwrap_or(12)
}

/// Everything that takes long is done too.
pub(crate) fn is_long() -> bool {
    promotions() >= 100
}

fn agent() -> ureq::Agent {
    let config =
        ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(Duration::from_secs(20)));
    config.build().into()
}

/// A request of a client.
#[derive(Debug)]
struct Asked {
    begun: Instant,
    ended: Instant,
    /// What was wrong with the answer.
    fault: Option<String>,
    /// The revisions of the document before and after the request, and the version that answered, where that was looked at.
    checked: Option<(u64, u64, String)>,
}

/// What the clients of a gateway share with the test.
#[derive(Debug, Default)]
struct Shared {
    /// The addresses of both planes; `None` while the gateway is down.
    addresses: Mutex<Option<(String, String)>>,
    asked: Mutex<Vec<Asked>>,
    /// Times in which the gateway was ended or stopped.
    down: Mutex<Vec<(Instant, Instant)>>,
    stop: AtomicBool,
}

impl Shared {
    fn addresses(&self) -> Option<(String, String)> {
        self.addresses.lock().unwrap().clone()
    }
}

/// A gateway that can be ended and started again, with its clients.
struct Member {
    dir: TempDir,
    environment: Vec<(&'static str, String)>,
    served: Option<Served>,
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<()>>,
}

impl Member {
    fn start(name: &'static str, cluster: &Cluster) -> Member {
        let dir = TempDir::new().unwrap();
        for version in 1..=VERSIONS {
            onnx::install(&dir.path().join("models"), "m", version, &onnx::answering(version as f32, 4, 0));
        }
        let urls: Vec<String> = cluster.ports().iter().map(|port| format!("nats://127.0.0.1:{port}")).collect();
        let environment = vec![
            ("SLUICEGATE__FLEET__URLS", urls.join(",")),
            ("SLUICEGATE__FLEET__NAME", "shop".to_owned()),
            ("SLUICEGATE__FLEET__NODE", name.to_owned()),
            ("SLUICEGATE__FLEET__REPLICAS", "3".to_owned()),
            ("SLUICEGATE__MODELS__SETTLE", "100ms".to_owned()),
            ("SLUICEGATE__SERVER__SHUTDOWN_GRACE", "2s".to_owned()),
        ];
        let mut member = Member { dir, environment, served: None, shared: Arc::default(), clients: Vec::new() };
        member.run();
        member
    }

    /// Starts the process. Its clients begin when it is ready.
    fn run(&mut self) {
        let environment: Vec<(&str, &str)> =
            self.environment.iter().map(|(name, text)| (*name, text.as_str())).collect();
        self.served = Some(Served::start_with(self.dir.path(), &environment));
    }

    fn served(&self) -> &Served {
        self.served.as_ref().expect("the gateway runs")
    }

    fn begin(&mut self) {
        self.served().ready();
        *self.shared.addresses.lock().unwrap() = Some((self.served().data.clone(), self.served().admin.clone()));
        if self.clients.is_empty() {
            for checks in [true, false] {
                let shared = Arc::clone(&self.shared);
                self.clients.push(std::thread::spawn(move || ask(&shared, checks)));
            }
        }
    }

    /// Does something during which requests to this gateway may fail.
    fn while_down(&mut self, what: impl FnOnce(&mut Member)) {
        let from = Instant::now();
        let before = self.shared.addresses.lock().unwrap().take();
        assert!(before.is_some(), "it was up");
        what(self);
        self.begin();
        self.shared.down.lock().unwrap().push((from, Instant::now()));
    }

    fn get(&self, path: &str) -> Value {
        serde_json::from_str(&self.served().admin_get(path)).unwrap()
    }

    /// The version that the traffic document names alone.
    fn version(&self) -> String {
        let traffic = self.get("/api/v1/models/m/traffic");
        let split = traffic["split"].as_array().unwrap();
        assert_eq!(split.len(), 1, "{traffic}");
        split[0]["version"].as_str().unwrap().to_owned()
    }

    fn warnings(&self) -> String {
        self.get("/readyz")["warnings"].to_string()
    }

    /// Wrong answers and failed requests, outside of the times in which the gateway was down; and how many requests there were.
    fn judge(&self) -> (Vec<String>, usize, usize) {
        let history = self.get("/api/v1/models/m/history");
        let named: HashMap<u64, Vec<String>> = history["history"]
            .as_array()
            .unwrap()
            .iter()
            .map(|entry| {
                let split = entry["document"]["split"].as_array().unwrap();
                let versions = split.iter().map(|arm| arm["version"].as_str().unwrap().to_owned()).collect();
                (entry["revision"].as_u64().unwrap(), versions)
            })
            .collect();
        let (down, asked) = (self.shared.down.lock().unwrap(), self.shared.asked.lock().unwrap());
        let mut faults = Vec::new();
        let mut checked = 0;
        for one in asked.iter() {
            let is_down = down.iter().any(|(from, until)| one.ended >= *from && one.begun <= *until);
            if let Some(fault) = one.fault.as_ref().filter(|_| !is_down) {
                faults.push(fault.clone());
            }
            if let Some((before, after, version)) = &one.checked {
                checked += 1;
                let is_named = (*before..=*after)
                    .any(|revision| named.get(&revision).is_some_and(|versions| versions.contains(version)));
                if !is_named {
                    faults.push(format!("version {version} answered between the revisions {before} and {after}"));
                }
            }
        }
        (faults, asked.len(), checked)
    }
}

/// Asks one gateway all the time. With `checks` it looks at the revision of the document before and after each request.
fn ask(shared: &Shared, checks: bool) {
    let agent = agent();
    let body = infer_body(&[1, 4], &[0.0; 4]);
    while !shared.stop.load(Ordering::Relaxed) {
        std::thread::park_timeout(PAUSE);
        let Some((data, admin)) = shared.addresses() else { continue };
        let begun = Instant::now();
        let answer = if checks {
            ask_between_looks(&agent, &data, &admin, &body)
        } else {
            infer(&agent, &data, &body).map(|_| None)
        };
        let ended = Instant::now();
        let (fault, checked) = match answer {
            Ok(checked) => (None, checked),
            Err(fault) => (Some(fault), None),
        };
        shared.asked.lock().unwrap().push(Asked { begun, ended, fault, checked });
    }
}

/// The version that answered. It must have given its own number.
fn infer(agent: &ureq::Agent, data: &str, body: &str) -> Result<String, String> {
    let url = format!("http://{data}/v2/models/m/infer");
    let mut answer = agent.post(&url).send(body).map_err(|error| error.to_string())?;
    let status = answer.status().as_u16();
    let text = answer.body_mut().read_to_string().map_err(|error| error.to_string())?;
    if status != 200 {
        return Err(format!("{status}: {text}"));
    }
    let json: Value = serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))?;
    let version = json["model_version"].as_str().unwrap_or_default().to_owned();
    let is_its_own = json["outputs"][0]["data"][0].as_f64() == version.parse().ok();
    if is_its_own { Ok(version) } else { Err(format!("a wrong answer: {text}")) }
}

fn ask_between_looks(
    agent: &ureq::Agent,
    data: &str,
    admin: &str,
    body: &str,
) -> Result<Option<(u64, u64, String)>, String> {
    let revision = || -> Result<u64, String> {
        let url = format!("http://{admin}/api/v1/models/m/traffic");
        let mut answer = agent.get(&url).call().map_err(|error| error.to_string())?;
        let text = answer.body_mut().read_to_string().map_err(|error| error.to_string())?;
        let json: Value = serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))?;
        json["revision"].as_u64().ok_or_else(|| format!("no revision: {text}"))
    };
    let before = revision()?;
    let version = infer(agent, data, body)?;
    Ok(Some((before, revision()?, version)))
}

/// The whole of it.
struct Fleet {
    cluster: Cluster,
    members: Vec<Member>,
    agent: ureq::Agent,
    /// The version that was promoted last, and those of attempts after it whose outcome nobody knows.
    last: u64,
    perhaps: Vec<u64>,
    story: String,
    began: Instant,
}

impl Fleet {
    fn start() -> Option<Fleet> {
        let began = Instant::now();
        let cluster = Cluster::start()?;
        let members: Vec<Member> = NAMES.iter().map(|name| Member::start(name, &cluster)).collect();
        let mut fleet = Fleet {
            cluster,
            members,
            agent: agent(),
            last: VERSIONS,
            perhaps: Vec::new(),
            story: String::new(),
            began,
        };
        fleet.wait_complete();
        fleet.members.iter_mut().for_each(Member::begin);
        Some(fleet)
    }

    /// All gateways are seen by all, follow, and have the same document.
    fn wait_complete(&self) {
        for member in &self.members {
            eventually("all gateways are ready and follow", || {
                let fleet = member.get("/api/v1/fleet");
                let nodes = fleet["nodes"].as_array().unwrap();
                let ready = nodes.iter().filter(|node| {
                    node["state"] == "ready"
                        && node["behind"] == 0
                        && node["models"]["m"]["revision"].as_u64() > Some(0)
                });
                (ready.count() == NAMES.len() && member.warnings() == "null").then_some(())
            });
        }
        eventually("all have one document", || {
            let versions: Vec<String> = self.members.iter().map(Member::version).collect();
            (versions.iter().all(|version| *version == versions[0])).then_some(())
        });
    }

    fn tell(&mut self, words: &str) {
        let line = format!("{:.1} s: {words}", self.began.elapsed().as_secs_f64());
        println!("{line}");
        writeln!(self.story, "{line}").unwrap();
    }

    /// Promotes the next version by a gateway. Returns the status, the answer and the version.
    fn promote(&mut self, by: usize) -> (u16, String, u64) {
        let from = self.perhaps.last().copied().unwrap_or(self.last);
        let version = from % VERSIONS + 1;
        let url = format!("http://{}/api/v1/models/m:promote", self.members[by].served().admin);
        let body = json!({"version": version.to_string(), "reason": "chaos"}).to_string();
        let mut answer = self.agent.post(&url).content_type("application/json").send(body).unwrap();
        let (status, text) = (answer.status().as_u16(), answer.body_mut().read_to_string().unwrap());
        match status {
            200 => {
                self.last = version;
                self.perhaps.clear();
            }
            // A version that was refused is tried again: what is in force already would be promoted without asking the fleet.
            503 if text.contains("it was made or not") => self.perhaps.push(version),
            503 | 409 => {}
            _ => panic!("{status}: {text}"),
        }
        (status, text, version)
    }

    /// Promotes as soon as it is possible again. Returns how long that took.
    fn promote_again(&mut self, by: usize) -> Duration {
        let began = Instant::now();
        while self.promote(by).0 != 200 {
            assert!(began.elapsed() < Duration::from_secs(30), "within 30 s a promotion is possible: {}", self.story);
            std::thread::park_timeout(Duration::from_millis(50));
        }
        began.elapsed()
    }

    /// Promotes, and returns the time from the request until each gateway has the document in force.
    fn promote_and_time(&mut self, by: usize) -> Vec<Duration> {
        let version = (self.last % VERSIONS + 1).to_string();
        // The document is in force a moment before the gateway has written that down, and until then it refuses another change.
        let asked = &self.members[by];
        eventually("the gateway that is asked is up to date", || (asked.warnings() == "null").then_some(()));
        let began = Instant::now();
        let waiting: Vec<JoinHandle<Duration>> = self
            .members
            .iter()
            .map(|member| {
                let url = format!("http://{}/api/v1/models/m/traffic", member.served().admin);
                let (agent, version) = (agent(), version.clone());
                std::thread::spawn(move || {
                    let is_there = || -> Option<bool> {
                        let text = agent.get(&url).call().ok()?.body_mut().read_to_string().ok()?;
                        let traffic: Value = serde_json::from_str(&text).ok()?;
                        Some(traffic["split"][0]["version"] == version.as_str())
                    };
                    while is_there() != Some(true) {
                        assert!(began.elapsed() < Duration::from_secs(30), "version {version} is followed within 30 s");
                        std::thread::park_timeout(Duration::from_millis(1));
                    }
                    began.elapsed()
                })
            })
            .collect();
        let (status, text, promoted) = self.promote(by);
        assert_eq!((status, promoted.to_string()), (200, version), "{text}");
        waiting.into_iter().map(|thread| thread.join().unwrap()).collect()
    }

    /// What the fleet has in force is what was acknowledged last, or what an unanswered attempt after it wanted.
    fn check_nothing_is_lost(&self) {
        self.wait_complete();
        let found = self.members[0].version();
        let allowed: Vec<String> = self.perhaps.iter().chain([&self.last]).map(u64::to_string).collect();
        assert!(allowed.contains(&found), "version {found} is in force, {allowed:?} were promoted: {}", self.story);
    }

    fn server(&self, by: usize) -> Pid {
        self.members[by].served().server_pid().expect("the gateway has a server process")
    }

    // === what happens ===

    fn a_gateway_is_killed(&mut self) {
        let mut ended = self.members.remove(2);
        let mut took = Duration::ZERO;
        ended.while_down(|member| {
            member.served.take().expect("it runs").kill();
            took = self.promote_again_with(&[0, 1]);
            member.run();
        });
        self.members.insert(2, ended);
        self.check_nothing_is_lost();
        self.tell(&format!("a gateway was killed: the next promotion took {} ms", took.as_millis()));
    }

    fn promote_again_with(&mut self, by: &[usize]) -> Duration {
        by.iter().map(|by| self.promote_again(*by)).max().unwrap_or_default()
    }

    fn a_nats_server_is_killed(&mut self, which: usize) {
        self.cluster.nodes[which].kill();
        let took = self.promote_again_with(&[0, 1, 2]);
        self.cluster.nodes[which].again();
        self.check_nothing_is_lost();
        self.tell(&format!(
            "NATS server {which} was killed: promotions by all gateways were possible after {} ms",
            took.as_millis()
        ));
    }

    fn a_gateway_is_stopped_for_a_while(&mut self, time: Duration) {
        let pid = self.server(1);
        let mut stopped = self.members.remove(1);
        let mut took = Duration::ZERO;
        stopped.while_down(|_| {
            kill_process(pid, Signal::STOP).unwrap();
            let until = Instant::now() + time;
            took = self.promote_again_with(&[0, 1]);
            std::thread::park_timeout(until.saturating_duration_since(Instant::now()));
            kill_process(pid, Signal::CONT).unwrap();
        });
        self.members.insert(1, stopped);
        self.check_nothing_is_lost();
        self.tell(&format!(
            "a gateway was stopped for {} s: the next promotion took {} ms",
            time.as_secs(),
            took.as_millis()
        ));
    }

    /// Two of three NATS servers hang: the third cannot store anything.
    fn no_majority(&mut self) {
        let pids = [self.cluster.nodes[0].process(), self.cluster.nodes[1].process()];
        for pid in pids {
            kill_process(pid, Signal::STOP).unwrap();
        }
        let (status, text, _) = self.promote(2);
        assert_eq!(status, 503, "no majority stores it: {text}");
        for pid in pids {
            kill_process(pid, Signal::CONT).unwrap();
        }
        let took = self.promote_again_with(&[0, 1, 2]);
        self.check_nothing_is_lost();
        self.tell(&format!(
            "two NATS servers hung: a promotion was answered with 503, and possible {} ms after they went on",
            took.as_millis()
        ));
    }

    fn all_of_nats_is_gone(&mut self, time: Duration) {
        self.cluster.nodes.iter_mut().for_each(crate::fleet::Nats::kill);
        let until = Instant::now() + time;
        for member in &self.members {
            eventually("it is degraded", || member.warnings().contains("degraded").then_some(()));
        }
        for by in 0..NAMES.len() {
            let (status, text, _) = self.promote(by);
            assert!(status == 503 && text.contains("cut off from its fleet"), "{status}: {text}");
        }
        std::thread::park_timeout(until.saturating_duration_since(Instant::now()));
        self.cluster.nodes.iter_mut().for_each(crate::fleet::Nats::again);
        let took = self.promote_again_with(&[0, 1, 2]);
        self.check_nothing_is_lost();
        self.tell(&format!(
            "all of NATS was gone for {} s: promotions were possible {} ms after it was started",
            time.as_secs(),
            took.as_millis()
        ));
    }

    /// Ends the clients. Every answer of the whole time must be right.
    fn end(&mut self) {
        for member in &mut self.members {
            member.shared.stop.store(true, Ordering::Relaxed);
            for client in member.clients.drain(..) {
                client.join().unwrap();
            }
        }
        let judged: Vec<(Vec<String>, usize, usize)> = self.members.iter().map(Member::judge).collect();
        let requests: usize = judged.iter().map(|(_, asked, _)| asked).sum();
        let checked: usize = judged.iter().map(|(.., checked)| checked).sum();
        let faults: Vec<&String> = judged.iter().flat_map(|(faults, ..)| faults).collect();
        self.tell(&format!(
            "{requests} requests, {} failed or were answered by a version that was not named ({checked} were checked for that)",
            faults.len()
        ));
        assert!(faults.is_empty(), "{:?}: {}", &faults[..faults.len().min(5)], self.story);
        assert!(checked > 50, "{}", self.story);
    }
}

/// The median and the 99th percentile, in milliseconds.
fn percentiles(times: &mut [Duration]) -> (f64, f64) {
    times.sort_unstable();
    let at = |share: usize| times[(times.len() - 1) * share / 100].as_secs_f64() * 1e3;
    (at(50), at(99))
}

#[test]
fn promotions_reach_all_gateways_and_no_request_fails_whatever_ends() {
    let Some(mut fleet) = Fleet::start() else { return };
    let is_long = is_long();
    fleet.tell("three gateways follow three NATS servers");
    let mut here = Vec::new();
    let mut elsewhere = Vec::new();
    for number in 0..promotions() {
        let by = number % NAMES.len();
        for (index, took) in fleet.promote_and_time(by).into_iter().enumerate() {
            if index == by { here.push(took) } else { elsewhere.push(took) }
        }
    }
    let (median, p99) = percentiles(&mut elsewhere);
    let (own, own_p99) = percentiles(&mut here);
    fleet.tell(&format!(
        "{} promotions: from the request to in force on the others: median {median:.1} ms, p99 {p99:.1} ms; on the gateway that was asked: median {own:.1} ms, p99 {own_p99:.1} ms",
        promotions()
    ));
    fleet.check_nothing_is_lost();
    fleet.a_gateway_is_killed();
    if is_long {
        for which in 0..3 {
            fleet.a_nats_server_is_killed(which);
        }
        fleet.a_gateway_is_stopped_for_a_while(Duration::from_secs(8));
        fleet.no_majority();
        fleet.all_of_nats_is_gone(Duration::from_secs(30));
    }
    fleet.end();
}
