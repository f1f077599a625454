//! The prediction log: predictions, feedback and gaps; kills, a failing disk, and readers that are not ours.

use crate::support::process::Served;
use crate::support::{Gateway, eventually, infer_body, onnx};
use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Float64Type, TimestampMicrosecondType};
use arrow_array::{Array, RecordBatch};
use bytes::Bytes;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Value, json};
use sluicegate::model::{Code, Dim, InferenceRequest, NamedTensor, Role, Signature, TensorSpec};
use sluicegate::quality::Quality;
use sluicegate::record::{self, About, Choice, Log, Prediction};
use sluicegate::telemetry::Telemetry;
use sluicegate::tensor::{Data, DataType, Elements, Shape, Tensor};
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// All records under a directory, in the order of the files.
fn read(dir: &Path) -> Vec<RecordBatch> {
    let mut paths = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(next) = dirs.pop() {
        for entry in std::fs::read_dir(&next).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else {
                assert!(path.extension().is_some_and(|e| e == "parquet"), "{}", path.display());
                paths.push(path);
            }
        }
    }
    paths.sort();
    let open = |path: &std::path::PathBuf| ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap()).unwrap();
    paths.iter().flat_map(|path| open(path).build().unwrap()).map(Result::unwrap).collect()
}

fn predictions(data: &Path) -> Vec<RecordBatch> {
    read(&data.join("predictions"))
}

fn texts(batches: &[RecordBatch], column: &str) -> Vec<Option<String>> {
    let one = |batch: &RecordBatch| {
        let column = batch[column].as_string::<i32>().clone();
        column.iter().map(|text| text.map(str::to_owned)).collect::<Vec<_>>()
    };
    batches.iter().flat_map(one).collect()
}

fn body(id: &str, x: &[f32]) -> String {
    let shape = [x.len() / 2, 2];
    json!({"id": id, "inputs": [{"name": "x", "shape": shape, "datatype": "FP32", "data": x}]}).to_string()
}

#[test]
fn answers_labels_failures_and_shadows_leave_the_right_records() {
    let gateway = Gateway::start(|models| {
        onnx::install(models, "m", 1, &onnx::up_to(4));
        onnx::install(models, "m", 2, &onnx::off_above(2.0, 1.0));
    });
    assert_eq!(gateway.promote("m", 1).status, 200);
    let document = json!({
        "split": [{"version": "1", "weight": 1, "arm": "control"}],
        "sticky_by": {"header": "x-user-id"},
        "labels": {"next": "2"},
        "shadows": [{"version": "2", "sample": 1.0}],
    });
    let put = gateway.admin_send("PUT", "/api/v1/models/m/traffic", &[], &document);
    assert_eq!(put.status, 200, "{put:?}");
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let headers = [("x-user-id", "alice"), ("traceparent", parent)];
    let answers = [
        gateway.post_with("/v2/models/m/infer", &headers, body("two rows", &[1.0, 2.0, 3.0, 4.0])),
        gateway.post("/v2/models/m/versions/2/infer", body("pinned", &[1.0, 1.0])),
        gateway.post("/v1/models/m/labels/next:predict", json!({"instances": [[0.5, 0.25]]}).to_string()),
        gateway.post("/v2/models/m/infer", body("fails", &[9.0, 9.0])),
        gateway.post("/v2/models/m/infer", json!({"id": "refused", "inputs": []}).to_string()),
    ];
    let statuses: Vec<u16> = answers.iter().map(|a| a.status).collect();
    assert!(statuses[..3] == [200, 200, 200] && statuses[3] >= 400 && statuses[4] == 400, "{statuses:?}");
    eventually("both copies are compared", || {
        let shadow = gateway.admin_get("/api/v1/models/m/shadows/2").json();
        (shadow["compared"] == 2).then_some(())
    });
    let dir = gateway.stop();
    let batches = predictions(&dir.path().join("data"));
    let mut seen: HashMap<(String, String), usize> = HashMap::new();
    let (ids, roles) = (texts(&batches, "request_id"), texts(&batches, "role"));
    for (id, role) in ids.iter().zip(&roles) {
        let id = id.clone().unwrap();
        // The request by label had no id, so it got a UUID.
        let id = if id.len() == 36 { "label".to_owned() } else { id };
        *seen.entry((id, role.clone().unwrap())).or_default() += 1;
    }
    let of = |id: &str, role: &str| seen.get(&(id.to_owned(), role.to_owned())).copied().unwrap_or(0);
    assert_eq!((of("two rows", "primary"), of("two rows", "shadow")), (2, 2), "{seen:?}");
    assert_eq!((of("pinned", "pinned"), of("label", "pinned")), (1, 1), "{seen:?}");
    assert_eq!((of("fails", "primary"), of("fails", "shadow")), (1, 1), "{seen:?}");
    assert_eq!(seen.values().sum::<usize>(), 8, "a request that the signature refuses leaves no record: {seen:?}");
    for batch in &batches {
        let one = |column: &str, row: usize| texts(std::slice::from_ref(batch), column)[row].clone();
        for row in 0..batch.num_rows() {
            let (id, role) = (one("request_id", row).unwrap(), one("role", row).unwrap());
            let has_outputs = batch["outputs"].is_valid(row);
            let expected = if id == "fails" && role == "primary" { "" } else { "ok" };
            let status = one("status", row).unwrap();
            assert!(status == expected || expected.is_empty() && status != "ok", "{id} {role} {status}");
            assert_eq!(has_outputs, status == "ok");
            if id == "two rows" {
                assert_eq!(one("traceparent", row).unwrap(), parent);
                let key = one("route_key", row).unwrap();
                assert!(key.len() == 64 && key != "alice", "a keyed hash: {key}");
                let y = batch["outputs"].as_struct().column_by_name("y").unwrap().as_list::<i32>().value(row);
                let first = y.as_primitive::<Float32Type>().value(0);
                let n = batch["row"].as_primitive::<arrow_array::types::Int32Type>().value(row);
                // The shadow adds one to values above two.
                let expected = match (n, role.as_str()) {
                    (0, _) => 1.0,
                    (_, "primary") => 3.0,
                    _ => 4.0,
                };
                assert_eq!(first, expected, "row {n} of the {role}");
            }
        }
    }
}

#[test]
fn the_sample_keeps_primary_and_shadow_together_and_errors_and_disagreements_always() {
    let gateway = Gateway::start(|models| {
        onnx::install(models, "m", 1, &onnx::up_to(100));
        onnx::install(models, "m", 2, &onnx::off_above(90.0, 1.0));
        std::fs::write(
            models.join("m/model.toml"),
            "[prediction_log]\nsample_rate = 0.2\ndrop = [\"outputs.y\", \"inputs.zz\"]\n",
        )
        .unwrap();
    });
    assert_eq!(gateway.promote("m", 1).status, 200);
    let notes = gateway.admin_get("/api/v1/models/m/versions/1").json()["notes"].to_string();
    assert!(notes.contains("inputs.zz"), "an unknown column is reported: {notes}");
    let document = json!({"split": [{"version": "1", "weight": 1}], "shadows": [{"version": "2", "sample": 1.0}]});
    assert_eq!(gateway.admin_send("PUT", "/api/v1/models/m/traffic", &[], &document).status, 200);
    for i in 0..300 {
        // One in thirty fails, and on one in thirty the shadow disagrees.
        let first = if i % 30 == 0 {
            1000.0
        } else if i % 30 == 1 {
            95.0
        } else {
            1.0
        };
        gateway.post("/v2/models/m/infer", body(&format!("r{i}"), &[first, 1.0]));
        if i % 50 == 49 {
            eventually("the shadow keeps up", || {
                let shadow = gateway.admin_get("/api/v1/models/m/shadows/2").json();
                (shadow["compared"].as_u64() == Some(i + 1)).then_some(())
            });
        }
    }
    let dir = gateway.stop();
    let batches = predictions(&dir.path().join("data"));
    let mut kept: HashMap<(String, String), f64> = HashMap::new();
    for batch in &batches {
        assert!(batch["outputs"].data_type().is_null(), "dropped columns are not stored");
        let (ids, roles) =
            (texts(std::slice::from_ref(batch), "request_id"), texts(std::slice::from_ref(batch), "role"));
        let rates = batch["sample_rate"].as_primitive::<Float64Type>();
        for row in 0..batch.num_rows() {
            kept.insert((ids[row].clone().unwrap(), roles[row].clone().unwrap()), rates.value(row));
        }
    }
    let rate = |i: u64, role: &str| kept.get(&(format!("r{i}"), role.to_owned())).copied();
    let mut sampled = 0;
    for i in 0..300 {
        let (primary, shadow) = (rate(i, "primary"), rate(i, "shadow"));
        match i % 30 {
            0 => assert_eq!((primary, shadow), (Some(1.0), Some(1.0)), "r{i} failed"),
            1 => {
                assert_eq!(shadow, Some(1.0), "the shadow disagreed on r{i}");
                assert!(primary == Some(0.2) || primary == Some(0.0), "0.2 in the sample, else 0: {primary:?}");
            }
            _ => {
                assert_eq!(primary, shadow, "r{i}: both or neither");
                sampled += usize::from(primary.is_some());
                assert!(primary.is_none_or(|rate| rate == 0.2));
            }
        }
    }
    // 280 at 0.2, ± 6 standard deviations.
    assert!((16..=96).contains(&sampled), "{sampled} of 280");
}

/// Sends predictions from several threads until `until` is set. Returns which were answered, and when.
fn hammer(served: &Served, round: usize, until: &AtomicBool, count: &AtomicUsize) -> Vec<(String, Instant)> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|t| {
                let url = format!("http://{}/v2/models/self/infer", served.data);
                scope.spawn(move || {
                    let mut answered = Vec::new();
                    for i in 0.. {
                        if until.load(Ordering::Relaxed) {
                            break;
                        }
                        let id = format!("{round}-{t}-{i}");
                        let body = json!({"id": id, "inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]});
                        // The kill may interrupt a request.
                        if ureq::post(&url).send(body.to_string()).is_ok_and(|answer| answer.status() == 200) {
                            answered.push((id, Instant::now()));
                            count.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                    answered
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    })
}

fn unclean_stops(data: &Path) -> Vec<std::ops::RangeInclusive<i64>> {
    let mut found = Vec::new();
    for batch in read(&data.join("gaps")) {
        let [from, to] = ["from", "to"].map(|name| batch[name].as_primitive::<TimestampMicrosecondType>().clone());
        let reasons = texts(std::slice::from_ref(&batch), "reason");
        for (row, reason) in reasons.iter().enumerate() {
            if reason.as_deref() == Some("unclean_stop") {
                found.push(from.value(row)..=to.value(row));
            }
        }
    }
    found
}

#[test]
fn kill_9_loses_nothing_with_disk_at_most_an_interval_with_memory_and_doubles_nothing() {
    const INTERVAL: Duration = Duration::from_secs(1);
    for mode in ["disk", "memory"] {
        let environment = [
            ("SLUICEGATE__PREDICTION_LOG__ACKNOWLEDGE", mode),
            ("SLUICEGATE__PREDICTION_LOG__FLUSH_INTERVAL", "1s"),
            // So that sealing and new segments happen between the kills.
            ("SLUICEGATE__PREDICTION_LOG__SEAL_AFTER", "300ms"),
            // The moment of the kill must be known: a supervisor's child ends a moment after it.
            ("SLUICEGATE__SERVER__SUPERVISE", "false"),
        ];
        let dir = tempfile::TempDir::new().unwrap();
        std::fs::create_dir(dir.path().join("models")).unwrap();
        onnx::install(&dir.path().join("models"), "self", 1, &onnx::answering(1.0, 4, 0));
        let mut all = Vec::new();
        for round in 0..8 {
            let mut served = Served::start_with(dir.path(), &environment);
            served.ready();
            let done = AtomicBool::new(false);
            let (count, kill_after) = (AtomicUsize::new(0), fastrand::usize(1..800));
            let answered = std::thread::scope(|scope| {
                let hammering = scope.spawn(|| hammer(&served, round, &done, &count));
                eventually("enough requests are answered", || {
                    (count.load(Ordering::Relaxed) >= kill_after).then_some(())
                });
                let pid = rustix::process::Pid::from_child(&served.child);
                let killed = (Instant::now(), jiff::Timestamp::now().as_microsecond());
                rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
                done.store(true, Ordering::Relaxed);
                (hammering.join().unwrap(), killed)
            });
            served.kill();
            all.push(answered);
        }
        let mut served = Served::start_with(dir.path(), &environment);
        served.ready();
        served.stop();
        let data = dir.path().join("data");
        assert!(std::fs::read_dir(data.join("log")).unwrap().next().is_none(), "a stop seals everything");
        let found: Vec<String> = texts(&predictions(&data), "request_id").into_iter().map(Option::unwrap).collect();
        let known: HashSet<&String> = found.iter().collect();
        assert_eq!(known.len(), found.len(), "{mode}: no record is stored twice");
        let (mut answers, mut lost) = (0, 0);
        for (answered, (killed, _)) in &all {
            for (id, at) in answered {
                answers += 1;
                if !known.contains(id) {
                    lost += 1;
                    assert_eq!(mode, "memory", "{id} was acknowledged");
                    let before = killed.saturating_duration_since(*at);
                    assert!(before <= INTERVAL, "{id} was answered {before:?} before the kill");
                }
            }
        }
        assert!(answers > 100, "{answers}");
        let gaps = unclean_stops(&data);
        for (_, (_, killed)) in &all {
            assert!(gaps.iter().any(|gap| gap.contains(killed)), "{mode}: no gap for {killed}: {gaps:?}");
        }
        // A server that is killed before it wrote the previous gap leaves one gap for both kills.
        assert!(gaps.len() <= 8, "{mode}: {gaps:?} ({lost} of {answers} lost)");
    }
}

#[test]
fn a_full_disk_refuses_durable_answers_and_recovers_by_itself() {
    let dir = tempfile::TempDir::new().unwrap();
    std::fs::create_dir(dir.path().join("models")).unwrap();
    onnx::install(&dir.path().join("models"), "self", 1, &onnx::answering(1.0, 4, 0));
    let mut served = Served::start_with(dir.path(), &[("SLUICEGATE__PREDICTION_LOG__ACKNOWLEDGE", "disk")]);
    served.ready();
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let ask = |id: &str| {
        let url = format!("http://{}/v2/models/self/infer", served.data);
        let body =
            json!({"id": id, "inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]});
        let mut answer = agent.post(&url).send(body.to_string()).unwrap();
        (answer.status().as_u16(), answer.body_mut().read_to_string().unwrap())
    };
    let send_feedback = || {
        let url = format!("http://{}/v1/models/self:feedback", served.data);
        agent
            .post(&url)
            .send(json!({"feedback": [{"request_id": "before", "label": 1}]}).to_string())
            .unwrap()
            .status()
            .as_u16()
    };
    let log = || {
        let mut answer = agent.get(format!("http://{}/api/v1/log", served.admin)).call().unwrap();
        serde_json::from_str::<Value>(&answer.body_mut().read_to_string().unwrap()).unwrap()
    };
    assert_eq!((ask("before").0, send_feedback()), (200, 202));
    // From here on no file can grow.
    let pid = served.server_pid().unwrap();
    let limit = |most: Option<u64>| {
        let limit = rustix::process::Rlimit { current: most, maximum: None };
        rustix::process::prlimit(Some(pid), rustix::process::Resource::Fsize, limit).unwrap();
    };
    limit(Some(0));
    let (status, text) = ask("during");
    assert_eq!(status, 503, "{text}");
    assert!(text.contains("LOG_UNAVAILABLE") && !text.contains("os error"), "{text}");
    assert_eq!(send_feedback(), 503);
    let shown = log();
    assert!(shown["failing_since"].is_string() && shown["dropped"]["disk"].as_u64() > Some(0), "{shown}");
    limit(None);
    eventually("it recovers by itself", || (ask("after").0 == 200).then_some(()));
    assert_eq!(send_feedback(), 202);
    assert!(log()["failing_since"].is_null());
    served.stop();
    let data = dir.path().join("data");
    let mut found: Vec<String> = texts(&predictions(&data), "request_id").into_iter().map(Option::unwrap).collect();
    found.sort();
    assert_eq!(found, ["after", "before"], "refused requests are not stored");
    assert_eq!(texts(&read(&data.join("feedback")), "request_id").len(), 2);
    assert!(texts(&read(&data.join("gaps")), "reason").iter().all(|reason| reason.as_deref() == Some("disk")));
}

#[test]
fn feedback_is_stored_as_a_whole_or_not_at_all_and_visible_at_once() {
    let gateway = Gateway::start(|models| onnx::install(models, "m", 1, &onnx::scaling(2.0)));
    let answered = gateway.post("/v2/models/m/infer", body("a", &[1.0, 2.0, 3.0, 4.0]));
    assert_eq!(answered.status, 200);
    let send = |body: &Value| gateway.post("/v1/models/m:feedback", body.to_string());
    // For an answered request, for one that is answered later, and for an unknown one. The label is the index of the larger output.
    let stored = send(&json!({"feedback": [
        {"request_id": "a", "row": 0, "label": 1, "values": {"revenue": 10}, "ts": "2026-01-01T00:00:00Z"},
        {"request_id": "a", "row": 1, "label": 0},
        {"request_id": "b", "label": true},
        {"request_id": "unknown", "label": "x"},
    ]}));
    assert_eq!((stored.status, stored.json()["taken"].as_u64()), (202, Some(4)), "{stored:?}");
    assert_eq!(send(&json!({"feedback": [{"request_id": "a", "label": 0, "values": {"revenue": 30}}]})).status, 202);
    gateway.post("/v2/models/m/infer", body("b", &[1.0, 2.0]));
    let quality = eventually("feedback before its prediction is joined", || {
        let quality = gateway.admin_get("/api/v1/models/m/quality").json();
        (quality["arms"][0]["labelled"] == 3).then_some(quality)
    });
    let arm = &quality["arms"][0];
    assert_eq!(
        (arm["version"].as_str(), arm["predictions"].as_u64(), arm["classified"].as_u64()),
        (Some("1"), Some(3), Some(3))
    );
    // Row 0 has the new label 0 and is wrong, row 1 is wrong, b is right.
    assert_eq!(arm["accuracy"].as_f64(), Some(1.0 / 3.0), "{arm}");
    assert_eq!(arm["values"]["revenue"]["mean"].as_f64(), Some(30.0));
    assert_eq!((quality["feedback"].as_u64(), quality["unmatched"].as_u64()), (Some(5), Some(1)), "{quality}");
    for (bad, words) in [
        (json!({"feedback": [{"request_id": "a", "label": 1}, {"label": 1}]}), "feedback[1]: request_id is missing"),
        (json!({"feedback": [{"request_id": "a", "label": {}}]}), "feedback[0]: label"),
        (json!({"feedback": [{"request_id": "a", "label": 1, "ts": "2099-01-01T00:00:00Z"}]}), "feedback[0]: ts"),
        (json!({"feedback": vec![json!({"request_id": "a", "label": 1}); 10_001]}), "at most 10000 entries"),
    ] {
        let answer = send(&bad);
        assert_eq!((answer.status, answer.code().as_str()), (400, "INVALID_REQUEST"));
        assert!(answer.json()["error"].as_str().unwrap().contains(words), "{answer:?}");
    }
    assert_eq!(gateway.post("/v1/models/none:feedback", "{\"feedback\":[]}").status, 404);
    assert_eq!(gateway.get("/v1/models/m:feedback").status, 405);
    eventually("it is in /metrics", || {
        let metrics = String::from_utf8(gateway.admin_get("/metrics").body).unwrap();
        let series = "sluicegate_quality_value_mean{model=\"m\",version=\"1\",arm=\"1\",value=\"revenue\"} 30";
        metrics.contains(series).then_some(())
    });
    let data = gateway.stop();
    assert_eq!(
        texts(&read(&data.path().join("data/feedback")), "request_id").len(),
        5,
        "refused feedback is not stored"
    );
}

#[test]
fn pyarrow_and_duckdb_read_the_values_that_were_sent() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python =
        std::env::var("SLUICEGATE_TEST_PYTHON").unwrap_or_else(|_| root.join(".venv/bin/python").display().to_string());
    let run = |arguments: &[&str]| {
        let output = Command::new(&python)
            .arg(root.join("tests/python/prediction_log.py"))
            .args(arguments)
            .output()
            .unwrap_or_else(|e| panic!("{python} should run (make venv makes it): {e}"));
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && said.contains("ok"), "{said}");
    };
    // Sealing has a low priority; on a busy machine it takes long.
    let config = "[server]\nio_threads = 1\nshutdown_grace = \"2m\"\n";
    let gateway = Gateway::start_with(config, |models| {
        // The marker of a server that did not stop in order, which leaves a gap.
        let log = models.parent().unwrap().join("data/log");
        std::fs::create_dir_all(&log).unwrap();
        std::fs::write(log.join("running"), b"").unwrap();
        onnx::install(models, "types", 1, &onnx::echoing_every_type());
        onnx::install(models, "types", 2, &onnx::echoing_every_type());
        onnx::install(models, "m", 1, &onnx::scaling(1.0));
        onnx::install(models, "m", 2, &onnx::scaling(2.0));
        onnx::install(models, "m", 3, &onnx::off_above(2.0, 1.0));
        onnx::install(models, "m", 4, &onnx::answering(0.25, 2, 0));
        onnx::install(models, "m", 5, &onnx::up_to(4));
    });
    let document = json!({
        "split": [{"version": "1", "weight": 1, "arm": "control"}, {"version": "2", "weight": 1, "arm": "challenger"}],
        "shadows": [{"version": "3", "sample": 0.05}],
    });
    assert_eq!(gateway.admin_send("PUT", "/api/v1/models/m/traffic", &[], &document).status, 200);
    run(&["send", &gateway.data().to_string()]);
    eventually("a shadow ran", || {
        let shadow = gateway.admin_get("/api/v1/models/m/shadows/3").json();
        (shadow["compared"].as_u64() > Some(0)).then_some(())
    });
    let quality = gateway.admin_get("/api/v1/models/m/quality");
    let dir = gateway.stop();
    let live = dir.path().join("quality.json");
    std::fs::write(&live, &quality.body).unwrap();
    let data = dir.path().join("data").display().to_string();
    run(&["read", &data, &live.display().to_string(), &root.join("docs/QUERIES.md").display().to_string()]);
}

#[test]
fn a_model_with_recording_disabled_leaves_no_files() {
    let gateway = Gateway::start(|models| {
        onnx::install(models, "m", 1, &onnx::scaling(1.0));
        std::fs::write(models.join("m/model.toml"), "[prediction_log]\nenabled = false\n").unwrap();
    });
    assert_eq!(gateway.post("/v2/models/m/infer", infer_body(&[1, 2], &[1.0, 2.0])).status, 200);
    let dir = gateway.stop();
    assert!(predictions(&dir.path().join("data")).is_empty());
}

/// Bytes that do not compress, or do, from the number of a record; `tests/python/large_tensors.py` computes the same.
fn bytes_of(record: u64, n: u64, repeats: bool) -> Bytes {
    // SplitMix64.
    let random = |k: u64| {
        let z = k.wrapping_add(record.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb).to_be_bytes()[0]
    };
    (0..n).map(|k| if repeats { (k % 3).to_le_bytes()[0] } else { random(k) }).collect()
}

#[test]
fn pyarrow_and_duckdb_read_tensors_that_are_stored_as_they_are() {
    const ELEMENTS: u64 = 5000;
    let types = [
        ("uint8", DataType::Uint8),
        ("int8", DataType::Int8),
        ("int32", DataType::Int32),
        ("uint32", DataType::Uint32),
        ("int64", DataType::Int64),
        ("uint64", DataType::Uint64),
        ("float16", DataType::Fp16),
        ("float32", DataType::Fp32),
        ("float64", DataType::Fp64),
        ("repeats", DataType::Fp32),
    ];
    let dims = Some(vec![Dim::Free(None), Dim::Fixed(5000)]);
    let specs = types.map(|(name, datatype)| TensorSpec { name: name.into(), datatype, dims: dims.clone() });
    let about = About {
        model: "m".parse().unwrap(),
        version: "1".parse().unwrap(),
        sha256: "ab".repeat(32),
        signature: Signature::new(specs.to_vec(), vec![]),
        hashed: [].into(),
        dropped: [].into(),
    };
    let dir = tempfile::tempdir().unwrap();
    let config = record::Config { acknowledge: record::Acknowledge::Disk, ..record::Config::of(dir.path().to_owned()) };
    let (log, stop) = Log::start(config, Quality::default(), &Telemetry::new()).unwrap();
    let all = log.stream(&about, &Choice::default()).unwrap();
    // One of the largest tensors, `int64`, is left out of these.
    let cut = log.stream(&about, &Choice { max_record_bytes: 200_000, ..Choice::default() }).unwrap();
    for record in 0..50 {
        let tensor = |(name, datatype): (&str, DataType)| {
            let bytes = bytes_of(record, ELEMENTS * datatype.width().unwrap() as u64, name == "repeats");
            let data = match datatype {
                DataType::Uint8 => Data::Uint8(Elements::view(bytes).unwrap()),
                DataType::Int8 => Data::Int8(Elements::view(bytes).unwrap()),
                DataType::Int32 => Data::Int32(Elements::view(bytes).unwrap()),
                DataType::Uint32 => Data::Uint32(Elements::view(bytes).unwrap()),
                DataType::Int64 => Data::Int64(Elements::view(bytes).unwrap()),
                DataType::Uint64 => Data::Uint64(Elements::view(bytes).unwrap()),
                DataType::Fp16 => Data::Fp16(Elements::view(bytes).unwrap()),
                DataType::Fp32 => Data::Fp32(Elements::view(bytes).unwrap()),
                _ => Data::Fp64(Elements::view(bytes).unwrap()),
            };
            NamedTensor { name: name.to_owned(), tensor: Tensor::new(Shape::new(&[1, 5000]), data).unwrap() }
        };
        let inputs = types.map(tensor).to_vec();
        let request = about.signature.check(InferenceRequest { inputs, ..InferenceRequest::default() }).unwrap();
        let id = record.to_string();
        let prediction = Prediction {
            request_id: &id,
            ts: record::now(),
            role: Role::Primary,
            arm: "1",
            route_key: None,
            traceparent: None,
            request: &request,
            outcome: Err(Code::EngineFailed),
            latency_us: 1,
            infer_us: 1,
            batch_rows: 1,
            sample_rate: 1.0,
        };
        let stream = if record % 7 == 6 { &cut } else { &all };
        assert!(log.offer(stream, &prediction, true).unwrap().is_some());
    }
    stop.stop(Duration::from_mins(2));
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python =
        std::env::var("SLUICEGATE_TEST_PYTHON").unwrap_or_else(|_| root.join(".venv/bin/python").display().to_string());
    let output = Command::new(&python)
        .arg(root.join("tests/python/large_tensors.py"))
        .arg(dir.path())
        .output()
        .unwrap_or_else(|e| panic!("{python} should run (make venv makes it): {e}"));
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.contains("ok"), "{said}");
}
