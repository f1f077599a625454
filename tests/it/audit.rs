//! The audit trail of a running and of a stopped server: verified, exported, and with heads outside the data directory.

use crate::support::process::Served;
use crate::support::{eventually, onnx};
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, Output};

/// Runs a command without a server.
fn offline(dir: &Path, line: &str) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_sluicegate"))
        .args(line.split(' '))
        .env("SLUICEGATE_ADMIN", "http://127.0.0.1:1")
        .current_dir(dir)
        .output()
        .unwrap();
    texts(&output)
}

fn texts(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

/// Changes the database as somebody with the `sqlite3` tool would.
fn tamper(dir: &Path, sql: &str) {
    let connection = rusqlite::Connection::open(dir.join("data/ledger.sqlite3")).unwrap();
    connection.execute_batch(&format!("PRAGMA foreign_keys = OFF; {sql}")).unwrap();
}

#[test]
fn the_trail_is_verified_with_and_without_a_server() {
    let dir = tempfile::TempDir::new().unwrap();
    std::fs::create_dir(dir.path().join("models")).unwrap();
    for v in 1..=2 {
        onnx::install(&dir.path().join("models"), "self", v, &onnx::answering(v as f32, 4, 0));
    }
    let heads = dir.path().join("heads.jsonl");
    let settings = [
        ("SLUICEGATE__AUDIT__HEADS_FILE", heads.to_str().unwrap()),
        ("SLUICEGATE__AUDIT__HEAD_INTERVAL", "1s"),
        ("SLUICEGATE__PREDICTION_LOG__SEAL_AFTER", "100ms"),
        ("SLUICEGATE__PREDICTION_LOG__KEEP_FOR", "1ms"),
    ];
    let mut served = Served::start_with(dir.path(), &settings);
    served.ready();
    for v in [1, 2, 1] {
        let body = json!({"version": v.to_string(), "reason": "a \"test\" \u{7}"});
        served.admin_post("/api/v1/models/self:promote", &body);
    }
    // Records that are older than a millisecond are deleted once they are sealed.
    eventually("a file of the prediction log was deleted", || {
        served.ask(&[("x-request-id", "secret-7")]);
        let metrics = served.admin_get("/metrics");
        metrics
            .lines()
            .any(|line| line.starts_with("sluicegate_log_files_deleted_total{reason=\"age\"}") && !line.ends_with(" 0"))
            .then_some(())
    });

    let logged = served.wait_logged("audit head");
    assert!(logged["hash"].as_str().is_some_and(|hash| hash.len() == 64), "{logged}");
    let (code, out, err) = texts(&served.cli(&["audit", "--verify"]));
    assert!(code == 0 && out.starts_with("ok: ") && out.contains("without heads from outside"), "{out}{err}");
    let (code, export, _) = texts(&served.cli(&["audit", "--export"]));
    assert!(code == 0 && export.lines().count() >= 4, "{export}");
    let (_, rest, _) = texts(&served.cli(&["audit", "--export", "--after", "2"]));
    assert_eq!(rest, export.split_inclusive('\n').skip(2).collect::<String>());
    let (code, while_it_runs, _) = offline(dir.path(), "audit --export --data-dir data");
    assert!(code == 0 && while_it_runs.starts_with(&export), "a server may be using the directory");
    std::fs::write(dir.path().join("export.jsonl"), &export).unwrap();
    served.stop();

    let last = std::fs::read_to_string(&heads).unwrap().lines().last().unwrap().to_owned();
    let last: Value = serde_json::from_str(&last).unwrap();
    let (_, all, _) = offline(dir.path(), "audit --export --data-dir data");
    let newest: Value = serde_json::from_str(all.lines().last().unwrap()).unwrap();
    assert_eq!((&last["id"], &last["hash"]), (&newest["id"], &newest["hash"]), "the stop sends the last head");
    let retention = all.lines().find(|line| line.contains("\"retention\"")).expect("deleted files leave an event");
    assert!(retention.contains("\\\"kind\\\":\\\"predictions\\\"") && !all.contains("secret-7"), "{retention}");

    let (code, out, err) = offline(dir.path(), "audit --verify --data-dir data --heads heads.jsonl");
    assert!(code == 0 && out.contains("compared with "), "{out}{err}");
    let (code, out, _) = offline(dir.path(), "audit --verify --file export.jsonl --json");
    assert!(code == 0 && serde_json::from_str::<Value>(&out).unwrap()["ok"] == true, "{out}");
    let (code, _, err) = offline(dir.path(), "audit --verify --data-dir nowhere");
    assert!(code == 1 && err.contains("cannot use the data directory nowhere"), "{err}");
    let (code, _, err) = offline(dir.path(), "audit --verify --heads export.jsonl --data-dir data");
    assert!(code == 0 || err.contains("it has no head"), "{err}");
    let (code, _, _) = offline(dir.path(), "audit --verify --model self");
    assert_eq!(code, 2, "options of the list do not go with a verification");

    let export = export.replacen("\"actor\":\"", "\"actor\":\"x", 1);
    std::fs::write(dir.path().join("export.jsonl"), export).unwrap();
    let (code, out, _) = offline(dir.path(), "audit --verify --file export.jsonl");
    assert!(code == 1 && out.contains("FOUND event 1 was altered"), "{out}");
    tamper(dir.path(), "UPDATE events SET actor = 'nobody' WHERE id = 3;");
    let (code, out, _) = offline(dir.path(), "audit --verify --data-dir data");
    assert!(code == 1 && out.contains("FOUND event 3 was altered") && out.contains("FAILED: "), "{out}");
    tamper(dir.path(), "DELETE FROM events WHERE id > 2; UPDATE sqlite_sequence SET seq = 2;");
    let (code, out, _) = offline(dir.path(), "audit --verify --data-dir data --heads heads.jsonl");
    assert!(code == 1 && out.contains("are missing: the head of "), "{out}");

    // The server starts on it all the same: what serves matters more. The verification goes on naming it.
    let served = Served::start(dir.path());
    served.ready();
    let (code, out, _) = texts(&served.cli(&["audit", "--verify", "--heads", heads.to_str().unwrap()]));
    assert!(code == 1 && out.contains("FOUND "), "{out}");
}
