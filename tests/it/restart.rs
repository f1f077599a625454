//! What serves survives a restart, also one nobody announced.

use crate::support::Gateway;
use crate::support::{eventually, infer_body, onnx};
use serde_json::json;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

#[test]
fn promotions_and_unloads_survive_a_clean_restart() {
    let gateway = Gateway::start(|models| {
        for v in 1..=3 {
            onnx::install(models, "self", v, &onnx::answering(v as f32, 4, 0));
        }
    });
    assert_eq!(gateway.promote("self", 2).status, 200);
    let unload = gateway.admin_send("POST", "/api/v1/models/self/versions/3:unload", &[], &json!({}));
    assert_eq!(unload.status, 200, "{unload:?}");
    let before = gateway.admin_get("/api/v1/models/self/traffic");
    let dir = gateway.stop();
    let gateway = Gateway::start_in(dir, "");
    gateway.wait_ready();
    let after = gateway.admin_get("/api/v1/models/self/traffic");
    assert_eq!(after.json()["split"], before.json()["split"]);
    assert_eq!(after.header("etag"), before.header("etag"), "the revision is the same");
    assert_eq!(gateway.state("self", 3).as_deref(), Some("unloaded"), "what an operator unloaded stays unloaded");
    let answer = gateway.post("/v2/models/self/infer", infer_body(&[1, 4], &[0.0; 4]));
    assert_eq!(answer.json()["model_version"], "2", "not the highest, but the promoted one");
    let audit = gateway.admin_get("/api/v1/audit?model=self").json();
    let actions: Vec<&str> =
        audit["events"].as_array().unwrap().iter().map(|e| e["action"].as_str().unwrap()).collect();
    assert!(actions.contains(&"promote") && actions.contains(&"unload"), "{actions:?}");
}

/// The real binary, as `make run` starts it, on ports of the system's choice.
struct Served {
    child: Child,
    data: String,
    admin: String,
}

impl Served {
    fn start(dir: &Path) -> Served {
        let mut child = Command::new(env!("CARGO_BIN_EXE_sluicegate"))
            .args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--models"])
            .arg(dir.join("models"))
            .arg("--data-dir")
            .arg(dir.join("data"))
            .current_dir(dir)
            .env("SLUICEGATE__LOG__FORMAT", "json")
            .env(
                "ORT_DYLIB_PATH",
                std::env::var("ORT_DYLIB_PATH").unwrap_or_else(|_| {
                    Path::new(env!("CARGO_MANIFEST_DIR")).join(".ort/libonnxruntime.so").display().to_string()
                }),
            )
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (mut data, mut admin) = (None, None);
        while data.is_none() || admin.is_none() {
            let line = lines.next().expect("the server says where it listens before it ends").unwrap();
            let json: serde_json::Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"));
            data = data.or(json["data"].as_str().map(str::to_owned));
            admin = admin.or(json["admin"].as_str().map(str::to_owned));
        }
        // Somebody has to read on, or the server would stop at a full pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Served { child, data: data.unwrap(), admin: admin.unwrap() }
    }

    fn ready(&self) {
        let url = format!("http://{}/v2/health/ready", self.data);
        eventually("the binary is ready", || ureq::get(&url).call().ok().map(drop));
    }

    fn version_serving(&self) -> String {
        let url = format!("http://{}/v2/models/self/infer", self.data);
        let mut answer = ureq::post(&url).send(infer_body(&[1, 4], &[0.0; 4])).unwrap();
        let json: serde_json::Value = serde_json::from_str(&answer.body_mut().read_to_string().unwrap()).unwrap();
        json["model_version"].as_str().unwrap().to_owned()
    }

    fn cli(&self, arguments: &[&str]) -> std::process::Output {
        Command::new(env!("CARGO_BIN_EXE_sluicegate"))
            .args(arguments)
            .env("SLUICEGATE_ADMIN", format!("http://{}", self.admin))
            .output()
            .unwrap()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn after_kill_9_the_same_version_serves() {
    let dir = tempfile::TempDir::new().unwrap();
    std::fs::create_dir(dir.path().join("models")).unwrap();
    for v in 1..=2 {
        onnx::install(&dir.path().join("models"), "self", v, &onnx::answering(v as f32, 4, 0));
    }
    let mut expected = "2".to_owned();
    for round in 0..4 {
        let mut served = Served::start(dir.path());
        served.ready();
        assert_eq!(served.version_serving(), expected, "round {round}");
        expected = if expected == "2" { "1".to_owned() } else { "2".to_owned() };
        let promoted = served.cli(&["promote", "self", &expected, "--reason", "a test"]);
        assert!(promoted.status.success(), "{promoted:?}");
        // The command has answered, so the change is durable: nothing may undo it, not even this.
        served.child.kill().unwrap();
        served.child.wait().unwrap();
    }
}

#[test]
fn sigterm_ends_with_exit_code_0() {
    let dir = tempfile::TempDir::new().unwrap();
    std::fs::create_dir(dir.path().join("models")).unwrap();
    onnx::install(&dir.path().join("models"), "self", 1, &onnx::answering(1.0, 4, 0));
    let mut served = Served::start(dir.path());
    served.ready();
    let pid = rustix::process::Pid::from_child(&served.child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(served.child.wait().unwrap().code(), Some(0));
}
