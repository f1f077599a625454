//! Versions are tried in a process of their own before the server loads them: what ends an engine does not end the server.

use crate::support::process::Served;
use crate::support::{infer_body, onnx};
use serde_json::Value;

/// The binary, with these models.
fn serve(models: &[(&str, Vec<u8>)], environment: &[(&str, &str)]) -> (tempfile::TempDir, Served) {
    let dir = tempfile::TempDir::new().unwrap();
    let root = dir.path().join("models");
    std::fs::create_dir(&root).unwrap();
    for (name, bytes) in models {
        onnx::install(&root, name, 1, bytes);
    }
    let served = Served::start_with(dir.path(), environment);
    (dir, served)
}

/// Sends one FP32 input `x` of ones. The status and the body.
fn infer(served: &Served, model: &str, shape: &[usize]) -> (u16, String) {
    let url = format!("http://{}/v2/models/{model}/infer", served.data);
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let body = infer_body(shape, &vec![1.0; shape.iter().product()]);
    let mut answer = agent.post(&url).send(body).unwrap_or_else(|e| panic!("{model} {shape:?}: {e}"));
    (answer.status().as_u16(), answer.body_mut().read_to_string().unwrap())
}

fn version(served: &Served, model: &str) -> Value {
    serde_json::from_str(&served.admin_get(&format!("/api/v1/models/{model}/versions/1"))).unwrap()
}

#[test]
fn empty_inputs_that_end_the_engine_are_refused_and_others_are_answered() {
    let models = [("lstm", onnx::lstm()), ("norm", onnx::instance_normalization()), ("good", onnx::scaling(2.0))];
    let (_dir, served) = serve(&models, &[]);
    served.ready();
    for shape in [[0, 1, 4], [1, 0, 4], [0, 0, 4]] {
        let (status, body) = infer(&served, "lstm", &shape);
        // An engine that takes them gives an answer; one that would end the process is not asked.
        assert!(
            status == 200 || (status == 400 && body.contains("ended the engine's process")),
            "{shape:?}: {status} {body}"
        );
    }
    assert_eq!(infer(&served, "lstm", &[2, 3, 4]).0, 200);
    for shape in [[1, 3, 0], [0, 3, 5], [0, 3, 0]] {
        let (status, body) = infer(&served, "norm", &shape);
        assert_eq!(status, 200, "{shape:?}: {body}");
    }
    assert_eq!(infer(&served, "good", &[0, 2]).0, 200);
    assert_eq!(infer(&served, "good", &[1, 2]).0, 200, "the server is still there");
}

#[test]
fn a_model_that_takes_all_memory_at_its_load_fails_in_words() {
    let models = [("bottomless", onnx::of_unbounded_memory()), ("good", onnx::scaling(2.0))];
    // The limit protects the machine of the test: the server sets one of its own for the trial.
    let (dir, served) = serve(&models, &[("TEST_ADDRESS_SPACE_KIB", "6291456")]);
    served.wait_state("good", 1, "serving");
    served.wait_state("bottomless", 1, "failed");
    let state = version(&served, "bottomless");
    assert_eq!(state["stage"], "load");
    assert!(state["reason"].as_str().unwrap().contains("memory"), "{state}");
    assert_eq!(infer(&served, "good", &[1, 2]).0, 200);

    let checked = served.cli(&["check", &dir.path().join("models/bottomless").display().to_string()]);
    let said = String::from_utf8_lossy(&checked.stdout);
    assert!(
        checked.status.code() == Some(1) && said.contains("failed: load:") && said.contains("memory"),
        "{checked:?}"
    );
}

#[test]
fn a_load_that_does_not_end_is_ended() {
    // 2^30 calls after inlining.
    let models = [("nested", onnx::nested_functions(30)), ("good", onnx::scaling(2.0))];
    let (_dir, served) = serve(&models, &[("SLUICEGATE__MODELS__LOAD_TIMEOUT", "\"3s\"")]);
    served.wait_state("good", 1, "serving");
    served.wait_state("nested", 1, "failed");
    let state = version(&served, "nested");
    assert_eq!(state["stage"], "load");
    assert!(state["reason"].as_str().unwrap().contains("took longer than 3 s"), "{state}");
    assert_eq!(infer(&served, "good", &[1, 2]).0, 200);
    assert!(
        trial_processes(served.child.id()).len() <= 1,
        "the process of the trial was ended; the other one may wait for more"
    );
}

#[test]
fn trial_processes_end_with_the_server() {
    let (_dir, mut served) = serve(&[("good", onnx::scaling(2.0))], &[]);
    served.ready();
    let trials = trial_processes(served.child.id());
    assert_eq!(trials.len(), 1, "one process has tried the version, and waits for more");
    served.kill();
    crate::support::eventually("the trial process has ended", || {
        let gone =
            |pid: &u32| std::fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |s| s.contains(") Z "));
        trials.iter().all(gone).then_some(())
    });
}

#[test]
fn the_engine_opens_no_database_of_usage() {
    let (_dir, served) = serve(&[("good", onnx::scaling(2.0))], &[]);
    served.ready();
    let pid = served.server_pid().unwrap().as_raw_nonzero().get().unsigned_abs();
    for pid in trial_processes(served.child.id()).into_iter().chain([pid]) {
        let files = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
        let open: Vec<_> = files.filter_map(|file| std::fs::read_link(file.path()).ok()).collect();
        let of_engine = open.iter().find(|path| path.to_string_lossy().contains("onnxruntime.db"));
        assert!(!open.is_empty() && of_engine.is_none(), "{of_engine:?}");
    }
}

#[test]
fn a_restart_does_not_repeat_trials() {
    let (dir, mut served) = serve(&[("lstm", onnx::lstm())], &[]);
    served.ready();
    assert_eq!(trial_processes(served.child.id()).len(), 1);
    let before = infer(&served, "lstm", &[1, 0, 4]).0;
    served.stop();
    let served = Served::start(dir.path());
    served.ready();
    assert!(trial_processes(served.child.id()).is_empty(), "the result was kept");
    assert_eq!(infer(&served, "lstm", &[1, 0, 4]).0, before, "what is known of empty inputs too");
    assert_eq!(infer(&served, "lstm", &[2, 3, 4]).0, 200);
}

#[test]
fn trials_can_be_switched_off() {
    let (_dir, served) = serve(&[("good", onnx::scaling(2.0))], &[("SLUICEGATE__MODELS__TRIALS", "false")]);
    served.ready();
    assert!(trial_processes(served.child.id()).is_empty());
    assert_eq!(infer(&served, "good", &[1, 2]).0, 200);
}

/// The trial processes of a server: processes below it with that argument.
fn trial_processes(server: u32) -> Vec<u32> {
    // `pid (name) state parent …`
    let parent = |pid: u32| -> Option<u32> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()
    };
    let is_below = |pid: &u32| std::iter::successors(parent(*pid), |pid| parent(*pid)).any(|above| above == server);
    let is_trial = |pid: &u32| {
        let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        arguments.split(|b| *b == 0).any(|argument| argument == b"trial")
    };
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| is_trial(pid) && is_below(pid))
        .collect()
}
