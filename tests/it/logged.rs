//! Export and replay on a running server.

use crate::support::process::Served;
use crate::support::{eventually, onnx};
use parquet::file::reader::{FileReader as _, SerializedFileReader};
use serde_json::{Value, json};
use std::path::Path;

/// A server with two versions of `self`, which answered thirty requests; each has the label 0.
fn served(dir: &Path) -> Served {
    for (v, x) in [(1, 1.0), (2, 2.0)] {
        onnx::install(&dir.join("models"), "self", v, &onnx::answering(x, 4, 0));
    }
    let served = Served::start(dir);
    served.ready();
    for i in 0..30 {
        let body = json!({"id": format!("r{i}"), "inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [i, 0, 0, 0]}]});
        let url = format!("http://{}/v2/models/self/versions/1/infer", served.data);
        assert_eq!(ureq::post(&url).send(body.to_string()).unwrap().status(), 200);
    }
    served
}

fn run(served: &Served, line: &str) -> (i32, String) {
    let output = served.cli(&line.split(' ').collect::<Vec<_>>());
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.code().unwrap(), text)
}

fn post(served: &Served, path: &str, body: &Value) -> (u16, String) {
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let url = format!("http://{}/api/v1/models/{path}", served.admin);
    let mut answer = agent.post(&url).content_type("application/json").send(body.to_string()).unwrap();
    (answer.status().as_u16(), answer.body_mut().read_to_string().unwrap())
}

#[test]
fn a_server_exports_and_replays_its_log() {
    let dir = tempfile::tempdir().unwrap();
    let served = served(dir.path());
    let file = dir.path().join("out.parquet");
    let line = format!("export self -o {}", file.display());
    eventually("all records are written", || {
        let (code, _) = run(&served, &line);
        let reader = SerializedFileReader::new(std::fs::File::open(&file).ok()?).ok()?;
        (code == 0 && reader.metadata().file_metadata().num_rows() == 30).then_some(())
    });
    let (code, csv) = run(&served, "export self --limit 7 --format csv -o -");
    assert_eq!((code, csv.lines().count()), (0, 8), "{csv}");
    assert!(csv.starts_with("request_id,"), "{csv}");
    let (_, audit) = run(&served, "audit --model self --limit 3");
    assert!(audit.contains("export"), "{audit}");

    let (code, out) = run(&served, "replay self --version 2 --role pinned --gate failed<=0");
    assert!(code == 0 && out.contains("replayed 30 requests (30 records) of self through version 2"), "{out}");
    assert!(out.contains("failed<=0") && out.contains("passed"), "{out}");
    let (code, out) = run(&served, "replay self --version 2 --role pinned --gate agreement>=0.5 --json");
    let result: Value = serde_json::from_str(out.split("sluicegate: ").next().unwrap()).unwrap();
    assert_eq!((code, &result["passed"], &result["requests"]), (1, &json!(false), &json!(30)), "{out}");
    let offline = format!(
        "replay self --version 2 --role pinned --json --models {0}/models --data-dir {0}/data",
        dir.path().display()
    );
    let offline: Value = serde_json::from_str(&run(&served, &offline).1).unwrap();
    let same = |name: &str| assert_eq!(offline[name], result[name], "{name}");
    ["model", "version", "sha256", "engine", "tolerance", "requests", "records", "left_out"].into_iter().for_each(same);

    for (path, body, status, words) in [
        ("self/export", json!({"format": "xls"}), 400, "format: expected"),
        ("self/export", json!({"format": "csv", "from": "yesterday"}), 400, "is not a time"),
        ("self/export", json!({"format": "csv", "versions": [1]}), 400, "versions: expected a list"),
        ("self/export", json!({"format": "csv", "output": "/etc/passwd"}), 400, "output: unknown member"),
        ("self/export", json!({"format": "csv", "arms": ["--help"]}), 409, "has no matching predictions"),
        ("self/export", json!({"format": "csv", "to": "2020-01-01"}), 409, "has no matching predictions"),
        ("nobody/export", json!({"format": "csv"}), 404, "nobody"),
        ("self/replay", json!({"version": "9"}), 409, "there is no version 9 of self"),
        ("self/replay", json!({}), 400, "version: expected"),
        ("self/replay", json!({"version": "2", "gates": ["better"]}), 400, "has no operator"),
        ("self/replay", json!({"version": "2", "rtol": -1}), 400, "rtol: expected"),
    ] {
        let (got, text) = post(&served, path, &body);
        assert!(got == status && text.contains(words), "{path} {body}: {got} {text}");
        assert!(!text.contains(dir.path().to_str().unwrap()), "no path of the server: {text}");
    }
    let (code, out) = run(&served, "export self -o golden.json");
    assert!(code == 2 && out.contains("a server exports parquet and csv"), "{out}");
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().ends_with(".tmp")), "{left:?}");
}

/// An id, a label and a reason with controls of a terminal: no command prints them as they are, from a server and from a data directory.
#[test]
fn texts_of_callers_do_not_control_the_terminal() {
    let dir = tempfile::tempdir().unwrap();
    onnx::install(&dir.path().join("models"), "self", 1, &onnx::answering(1.0, 4, 0));
    let served = Served::start(dir.path());
    served.ready();
    let id = "\u{1b}[31mred\u{1b}]0;pwn\u{7}\u{9b}2J\u{202e}x";
    let body = json!({"id": id, "inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 0, 0, 0]}]});
    let url = format!("http://{}/v2/models/self/infer", served.data);
    assert_eq!(ureq::post(&url).send(body.to_string()).unwrap().status(), 200);
    let split = json!({"split": [{"version": "1", "weight": 1}], "reason": format!("{id}\nrevision 9")});
    let traffic = format!("http://{}/api/v1/models/self/traffic", served.admin);
    assert_eq!(ureq::put(&traffic).content_type("application/json").send(split.to_string()).unwrap().status(), 200);
    let data = dir.path().join("data").display().to_string();
    eventually("the record is written", || run(&served, "requests self").1.contains("red").then_some(()));
    for words in [
        vec!["requests", "self"],
        vec!["requests", "self", "--json"],
        vec!["requests", "self", "--lines"],
        vec!["requests", "self", "--data-dir", &data],
        vec!["requests", "self", "--data-dir", &data, "--json"],
        vec!["requests", "self", "--data-dir", &data, "--lines"],
        vec!["request", "self", id],
        vec!["request", "self", id, "--data-dir", &data],
        vec!["request", "self", &format!("{id}y")],
        vec!["history", "self"],
        vec!["audit"],
        vec!["traffic", "self"],
        vec!["traffic", "self", "--json"],
    ] {
        let output = served.cli(&words);
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8(text).unwrap();
        let bad = text.contains(|c: char| c != '\n' && c.is_control() || c == '\u{202e}');
        assert!(!bad && text.contains("red"), "{words:?}: {text:?}");
        assert!(!text.lines().any(|line| line.starts_with("revision 9")), "{words:?}: a line of somebody else: {text}");
    }
}

#[test]
fn a_server_runs_its_logged_predictions_again() {
    let dir = tempfile::tempdir().unwrap();
    onnx::install(&dir.path().join("models"), "self", 1, &onnx::answering(1.0, 4, 0));
    let served = Served::start_with(dir.path(), &[("SLUICEGATE__PREDICTION_LOG__REPRODUCE_EVERY", "500ms")]);
    served.ready();
    let send = |i: usize| {
        let body = json!({"id": format!("r{i}"), "inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [i, 0, 0, 0]}]});
        let url = format!("http://{}/v2/models/self/infer", served.data);
        assert_eq!(ureq::post(&url).send(body.to_string()).unwrap().status(), 200);
    };
    (0..30).for_each(send);
    let get = |path: &str| {
        let mut answer = ureq::get(format!("http://{}{path}", served.admin)).call().unwrap();
        answer.body_mut().read_to_string().unwrap()
    };
    let checked = eventually("a sample was run again", || {
        let figures: Value = serde_json::from_str(&get("/api/v1/models/self/figures")).unwrap();
        let checked = figures["reproduced"][0].clone();
        (checked["ran"]["answered"] == 30).then_some(checked)
    });
    let ran = &checked["ran"];
    assert_eq!((&checked["version"], &checked["error"], &ran["different"]), (&json!("1"), &Value::Null, &json!(0)));
    assert_eq!(
        (ran["equal"].as_u64().unwrap() + ran["close"].as_u64().unwrap(), &ran["not_run"]),
        (20, &json!(0)),
        "{ran}"
    );
    let metrics = get("/metrics");
    assert!(
        metrics.contains("sluicegate_reproduced_total{model=\"self\",version=\"1\",result=\"equal\"}"),
        "{metrics}"
    );
    let of = format!("--data-dir {0}/data --models {0}/models", dir.path().display());
    let (code, out) = run(&served, &format!("reproduce --sample 5 --model self --version 1 {of}"));
    assert!(code == 0 && out.contains("5 of 30 answers were taken: 5 are bit for bit"), "{out}");
    for (line, words) in [
        ("reproduce", "<REQUEST_ID>"),
        ("reproduce r1 --sample 5 --model self --version 1", "cannot be used with"),
        ("reproduce --sample 5", "--model"),
        ("reproduce --sample 0 --model self --version 1", "--sample: expected 1 to 1000 requests, got 0"),
    ] {
        let (code, out) = run(&served, line);
        assert!(code == 2 && out.contains(words), "{line}: {code} {out}");
    }
}
