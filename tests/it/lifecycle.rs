//! Versions that do not end, models that cannot be served, and models that are retired, on the real gateway.

use crate::support::process::Served;
use crate::support::{Gateway, eventually, infer_body, onnx};
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};

fn infer(gateway: &Gateway, model: &str) -> u16 {
    gateway.post(&format!("/v2/models/{model}/infer"), infer_body(&[1, 4], &[0.0; 4])).status
}

fn version(gateway: &Gateway, model: &str, v: u64) -> Value {
    gateway.admin_get(&format!("/api/v1/models/{model}/versions/{v}")).json()
}

#[test]
fn a_version_whose_runs_never_end_fails_in_its_time_limit_and_holds_nobody_else() {
    let limits = "[models]\nverify_timeout = \"2s\"\nload_timeout = \"20s\"\n";
    let gateway = Gateway::start_with(limits, |models| {
        onnx::install(models, "bad", 1, &onnx::never_ending());
        onnx::install(models, "good", 1, &onnx::answering(1.0, 4, 0));
    });
    gateway.wait_ready();
    onnx::install(&gateway.models(), "good", 2, &onnx::answering(2.0, 4, 0));
    gateway.wait_state("good", 2, "ready");
    let pushed = gateway.admin_put_bytes("/api/v1/models/good/versions/3", &onnx::answering(3.0, 4, 0));
    assert_eq!(pushed.status, 201, "{pushed:?}");
    gateway.wait_state("bad", 1, "failed");
    let bad = version(&gateway, "bad", 1);
    assert_eq!(
        (&bad["stage"], &bad["reason"]),
        (&json!("verify"), &json!("took longer than 2 s; models.verify_timeout sets the limit"))
    );
    let metrics = String::from_utf8(gateway.admin_get("/metrics").body).unwrap();
    assert!(metrics.contains("sluicegate_loads_left_behind 0"), "its runs were interrupted: {metrics}");
    assert_eq!(infer(&gateway, "good"), 200);
    let begun = Instant::now();
    gateway.stop();
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_version_that_is_still_being_verified_holds_neither_a_push_nor_an_unload_nor_a_stop() {
    let gateway = Gateway::start(|models| install(models, "other"));
    onnx::install(&gateway.models(), "bad", 1, &onnx::never_ending());
    gateway.wait_state("bad", 1, "verifying");
    // After 5 s in one stage, another version is loaded beside it.
    onnx::install(&gateway.models(), "good", 1, &onnx::answering(1.0, 4, 0));
    gateway.wait_state("good", 1, "serving");
    let pushed = gateway.admin_put_bytes("/api/v1/models/good/versions/2", &onnx::answering(2.0, 4, 0));
    assert_eq!(pushed.status, 201, "{pushed:?}");
    let unloaded = gateway.admin_send("POST", "/api/v1/models/bad/versions/1:unload", &[], &json!({}));
    assert_eq!((unloaded.status, &unloaded.json()["state"]), (200, &json!("unloaded")));
    let begun = Instant::now();
    gateway.stop();
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

#[test]
fn what_cannot_be_served_at_a_start_is_listed_and_the_rest_is_ready() {
    let gateway = Gateway::start(|models| {
        for model in ["fraud", "old", "pruned"] {
            onnx::install(models, model, 1, &onnx::answering(1.0, 4, 0));
        }
        onnx::install(models, "pruned", 2, &onnx::answering(2.0, 4, 0));
    });
    gateway.wait_ready();
    assert_eq!(gateway.promote("pruned", 1).status, 200);
    let dir = gateway.stop();
    std::fs::remove_dir_all(dir.path().join("models/old")).unwrap();
    std::fs::remove_dir_all(dir.path().join("models/pruned/1")).unwrap();

    let gateway = Gateway::start_in(dir, "");
    gateway.wait_ready();
    let unserved = gateway.admin_get("/readyz").json()["unserved"].clone();
    let listed: Vec<&str> = unserved.as_array().unwrap().iter().map(|u| u["model"].as_str().unwrap()).collect();
    assert_eq!(listed, ["old", "pruned"], "{unserved}");
    assert!(unserved[1]["advice"].as_str().unwrap().contains("sluicegate promote pruned 2"), "{unserved}");
    assert_eq!((infer(&gateway, "fraud"), infer(&gateway, "old"), infer(&gateway, "pruned")), (200, 503, 503));
    assert_eq!(gateway.promote("pruned", 2).status, 200);
    let retired = gateway.admin_send("DELETE", "/api/v1/models/old", &[], &json!({"reason": "replaced by fraud"}));
    assert_eq!(retired.status, 200, "{retired:?}");
    let dir = gateway.stop();

    let gateway = Gateway::start_in(dir, "");
    gateway.wait_ready();
    let ready = gateway.admin_get("/readyz").json();
    assert_eq!((&ready["ready"], &ready["unserved"]), (&json!(true), &json!([])));
    assert_eq!((infer(&gateway, "old"), infer(&gateway, "pruned")), (404, 200));
    let answer = gateway.post("/v2/models/old/infer", infer_body(&[1, 4], &[0.0; 4]));
    assert!(answer.json()["error"].as_str().unwrap().ends_with(": replaced by fraud"), "{answer:?}");
}

fn cli(served: &Served, line: &[&str]) -> String {
    let output = served.cli(line);
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{line:?}: {text}");
    text
}

#[test]
fn a_model_is_retired_and_brought_back_from_the_command_line() {
    let dir = tempfile::TempDir::new().unwrap();
    let models = dir.path().join("models");
    std::fs::create_dir(&models).unwrap();
    install(&models, "self");
    install(&models, "other");
    let mut served = Served::start(dir.path());
    served.ready();
    let text = cli(&served, &["retire", "self", "--reason", "replaced by other"]);
    assert!(text.starts_with("self is retired (") && text.contains("replaced by other"), "{text}");
    served.kill();
    let served = Served::start(dir.path());
    served.ready();
    let history = cli(&served, &["history", "self"]);
    assert!(history.contains("retire ") && history.contains("replaced by other"), "{history}");
    served.wait_state("self", 1, "unloaded");
    let text = cli(&served, &["promote", "self", "1", "--reason", "needed again"]);
    assert_eq!(text, "self: was retired, and is served again by version 1, revision 3\n");
    assert_eq!(eventually("it serves", || Some(served.version_serving())), "1");
}

fn install(models: &Path, model: &str) {
    onnx::install(models, model, 1, &onnx::answering(1.0, 4, 0));
}

// === memory ===

/// Bytes of a model that is large enough for its peak to be counted.
const LARGE: usize = 40 << 20;

fn install_large(dir: &Path) {
    onnx::install(&dir.join("models"), "large", 1, &onnx::looking_up(LARGE / 4));
}

fn small_server(dir: &Path) -> Served {
    std::fs::create_dir(dir.join("models")).unwrap();
    install(&dir.join("models"), "self");
    let served = Served::start_with(dir, &[("SLUICEGATE__SERVER__SUPERVISE", "false")]);
    served.ready();
    served
}

fn refused(served: &Served, by: &str) {
    served.wait_state("large", 1, "failed");
    let large: Value = serde_json::from_str(&served.admin_get("/api/v1/models/large/versions/1")).unwrap();
    let reason = large["reason"].as_str().unwrap();
    assert!(reason.contains(by) && reason.ends_with("it was not begun"), "{reason}");
    assert_eq!(served.version_serving(), "1", "the other model serves");
}

#[test]
fn a_load_that_would_exceed_the_address_space_is_refused_before_it_begins() {
    use rustix::process::{Pid, Resource, Rlimit, prlimit};
    let dir = tempfile::TempDir::new().unwrap();
    let served = small_server(dir.path());
    let pid = Pid::from_child(&served.child);
    let status = std::fs::read_to_string(format!("/proc/{}/status", served.child.id())).unwrap();
    let used = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap();
    let used = used.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024;
    let limit = |bytes: u64| Rlimit { current: Some(bytes), maximum: None };
    prlimit(Some(pid), Resource::As, limit(used + LARGE as u64)).unwrap();
    install_large(dir.path());
    refused(&served, "the limit of the address space has only");
    // It is tried again by itself.
    prlimit(Some(pid), Resource::As, limit(64 << 30)).unwrap();
    served.wait_state("large", 1, "serving");
}

#[test]
fn a_load_that_would_exceed_the_control_group_is_refused_before_it_begins() {
    let dir = tempfile::TempDir::new().unwrap();
    let served = small_server(dir.path());
    let Some(group) = Group::new(served.child.id(), 64 << 20) else {
        println!("skipped: this machine allows no new control group");
        return;
    };
    install_large(dir.path());
    refused(&served, "the control group has only");
    group.limit(1 << 30);
    served.wait_state("large", 1, "serving");
    drop(served);
}

/// A control group with a limit on memory, under the one of this process. Removed when dropped.
struct Group {
    dir: std::path::PathBuf,
    limit: &'static str,
}

impl Group {
    /// `None` where the machine does not allow it.
    fn new(process: u32, bytes: u64) -> Option<Group> {
        let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
        let v1 = groups.lines().find_map(|line| line.split_once(":memory:"));
        let (root, path, limit) = match v1 {
            Some((_, path)) => ("/sys/fs/cgroup/memory", path, "memory.limit_in_bytes"),
            None => ("/sys/fs/cgroup", groups.lines().find_map(|line| line.strip_prefix("0::"))?, "memory.max"),
        };
        let name = format!("sluicegate-test-{process}");
        let dir = Path::new(root).join(path.trim_start_matches('/')).join(name);
        std::fs::create_dir(&dir).ok()?;
        let group = Group { dir, limit };
        std::fs::write(group.dir.join(limit), bytes.to_string()).ok()?;
        std::fs::write(group.dir.join("cgroup.procs"), process.to_string()).ok()?;
        Some(group)
    }

    fn limit(&self, bytes: u64) {
        std::fs::write(self.dir.join(self.limit), bytes.to_string()).unwrap();
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Fails while a process is in it.
        let _ = std::fs::remove_dir(&self.dir);
    }
}

// === the layout of directories ===

#[test]
fn model_files_in_the_wrong_place_are_told() {
    let gateway = Gateway::start(|models| install(models, "other"));
    let models = gateway.models();
    std::fs::create_dir_all(models.join("flat")).unwrap();
    std::fs::write(models.join("flat/model.onnx"), onnx::scaling(1.0)).unwrap();
    std::fs::create_dir_all(models.join("named/1")).unwrap();
    std::fs::write(models.join("named/1/net.onnx"), onnx::scaling(1.0)).unwrap();
    let note = eventually("the note", || {
        let model = gateway.admin_get("/api/v1/models/flat").json();
        model["notes"][0].as_str().map(str::to_owned)
    });
    let expected = "model.onnx in the model's directory is ignored: a model file has to be in the directory of a version: move it to \
                    1/model.onnx";
    assert_eq!(note, expected);
    let reason = eventually("the reason", || {
        let version = version(&gateway, "named", 1);
        version["reason"].as_str().filter(|r| r.contains("net.onnx")).map(str::to_owned)
    });
    assert_eq!(reason, "there is no model.onnx in its directory; it has net.onnx: rename it to model.onnx");
    std::fs::create_dir(models.join("flat/1")).unwrap();
    std::fs::rename(models.join("flat/model.onnx"), models.join("flat/1/model.onnx")).unwrap();
    gateway.wait_state("flat", 1, "serving");
    eventually("the note goes", || {
        (gateway.admin_get("/api/v1/models/flat").json()["notes"] == json!([])).then_some(())
    });
}
