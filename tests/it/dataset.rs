//! What was recorded, read on the command line: export, replay, reproduce; beside a running server and without one.

use crate::support::{Gateway, onnx};
use arrow_array::RecordBatch;
use arrow_array::cast::AsArray;
use arrow_array::types::Float64Type;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Value, json};
use std::fs::File;
use std::path::Path;
use std::process::Command;

/// Runs the command in a directory with `models/` and `data/`; its exit code, and what it said.
fn cli(dir: &Path, line: &str) -> (i32, String) {
    let output =
        Command::new(env!("CARGO_BIN_EXE_sluicegate")).args(line.split(' ')).current_dir(dir).output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.code().unwrap(), said)
}

fn asked(dir: &Path, line: &str) -> (i32, Value) {
    let (code, said) = cli(dir, &format!("{line} --json"));
    (code, serde_json::from_str(&said).unwrap_or_else(|e| panic!("{line}: {e}: {said}")))
}

fn rows(path: &Path) -> Vec<RecordBatch> {
    ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap())
        .unwrap()
        .build()
        .unwrap()
        .map(Result::unwrap)
        .collect()
}

/// Thirty requests of two rows each, and a label for each row: of 60 rows the first of two is the larger in 31, and all are said to be.
fn recorded() -> Gateway {
    let gateway = Gateway::start(|models| {
        onnx::install(models, "m", 1, &onnx::scaling(1.0));
        onnx::install(models, "m", 2, &onnx::off_above(20.0, 1.0));
    });
    assert_eq!(gateway.promote("m", 1).status, 200);
    let mut feedback = Vec::new();
    for i in 0..30_u8 {
        let (id, x) = (format!("r{i}"), f32::from(i));
        let body =
            json!({"id": id, "inputs": [{"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [x, 10, 10, x]}]});
        let answer = gateway.post("/v2/models/m/infer", body.to_string());
        assert_eq!(answer.status, 200, "{answer:?}");
        feedback.push(json!({"request_id": id, "row": 0, "label": 0, "values": {"revenue": x}}));
        feedback.push(json!({"request_id": id, "row": 1, "label": 0}));
    }
    assert_eq!(gateway.post("/v1/models/m:feedback", json!({"feedback": feedback}).to_string()).status, 202);
    gateway
}

#[test]
fn what_was_recorded_is_exported_replayed_and_reproduced_beside_a_server_and_after_it() {
    let gateway = recorded();
    let dir = gateway.models().parent().unwrap().to_owned();
    // Nothing is sealed yet.
    let (code, exported) = asked(&dir, "export m -o live.parquet");
    assert_eq!((code, &exported["rows"], &exported["labelled"]), (0, &json!(60), &json!(60)), "{exported}");
    let (code, said) = cli(&dir, "reproduce r7");
    assert_eq!(code, 0, "{said}");
    assert!(said.starts_with("REPRODUCED: 1 output, bit for bit as logged") && said.contains("of 2 rows"), "{said}");

    let dir_kept = gateway.stop();
    let dir = dir_kept.path();
    let (code, exported) = asked(dir, "export m -o stopped.parquet");
    assert_eq!((code, &exported["rows"]), (0, &json!(60)), "{exported}");
    assert_eq!(rows(&dir.join("live.parquet")), rows(&dir.join("stopped.parquet")), "sealed or not, the same");
    let revenue = |batch: &RecordBatch| {
        let values = batch["values"].as_map();
        values.values().as_primitive::<Float64Type>().values().iter().sum::<f64>()
    };
    assert_eq!(rows(&dir.join("stopped.parquet")).iter().map(revenue).sum::<f64>(), 435.0);

    let (code, said) = cli(dir, "export m --require-label --limit 5 -o five.csv");
    assert_eq!(code, 0, "{said}");
    assert_eq!(std::fs::read_to_string(dir.join("five.csv")).unwrap().lines().count(), 6);
    let (code, replayed) = asked(dir, "replay m --version 1 --gate within_tolerance>=1 --gate accuracy>0.5");
    assert_eq!((code, &replayed["passed"], &replayed["requests"]), (0, &json!(true), &json!(30)), "{replayed}");
    assert_eq!(replayed["tolerance"], json!({"rtol": 0.001, "atol": 0.00001}), "as a shadow's");
    assert_eq!(replayed["labels"][0]["accuracy"], json!({"logged": 31.0 / 60.0, "candidate": 31.0 / 60.0}));
    // Version 2 gives one more in one of four numbers from the 22nd request on.
    let (code, replayed) = asked(dir, "replay m --version 2 --gate within_tolerance>=0.925 --gate agreement<0.8");
    assert_eq!((code, &replayed["gates"][0]["found"], &replayed["gates"][1]["found"]), (0, &json!(0.925), &json!(0.7)));
    let (code, said) = cli(dir, "replay m --version 2 --gate within_tolerance>=0.999");
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("within_tolerance>=0.999  FAILED") && said.contains("worst pairs"), "{said}");
}

#[test]
fn a_window_of_the_log_becomes_golden_answers_that_a_version_is_held_against() {
    let dir = recorded().stop();
    let dir = dir.path();
    onnx::install(&dir.join("models"), "m", 3, &onnx::scaling(1.0));
    onnx::install(&dir.join("models"), "m", 4, &onnx::scaling(1.5));
    for line in ["export m --limit 10 -o models/m/3/golden.json", "export m --limit 10 -o models/m/4/golden.json"] {
        let (code, said) = cli(dir, line);
        assert_eq!(code, 0, "{said}");
    }
    assert_eq!(cli(dir, "export m -o models/m/3/warmup.json").0, 0);
    let (code, said) = cli(dir, "check models/m/3");
    assert!(code == 0 && said.contains("10 golden cases"), "{said}");
    let (code, said) = cli(dir, "check models/m/4");
    assert!(code == 1 && said.contains("elements differ"), "{said}");
}

#[test]
fn what_makes_no_sense_is_usage_and_what_is_not_there_is_said() {
    let dir = recorded().stop();
    let dir = dir.path();
    for (line, code, words) in [
        ("export m -o x.txt", 2, "does not give a format"),
        ("export m --from yesterday -o x.csv", 2, "\"yesterday\" is not a time"),
        ("export m --role boss -o x.csv", 2, "expected primary, pinned or shadow"),
        ("export m --version one -o x.csv", 2, "\"one\" is no version"),
        ("replay m --version 1 --gate speed>=1", 2, "the gate \"speed>=1\""),
        ("replay m --version 1 --rtol=-1", 2, "rtol"),
        ("replay m --version 9", 1, "there is no version 9 of m"),
        ("export other -o x.csv", 1, "there are predictions of m"),
        ("export m --to 2000-01-01 -o x.csv", 1, "though there are others of this model"),
        ("export m -o no/x.csv", 1, "there is no directory no"),
        ("reproduce nobody", 1, "no prediction with the id \"nobody\""),
    ] {
        let (found, said) = cli(dir, line);
        assert_eq!(found, code, "{line}: {said}");
        assert!(said.contains(words), "{line}: {said}");
    }
    assert!(!dir.join("x.csv").exists(), "a file is there whole or not at all");
    // Other bytes under the same number are not the version that answered.
    std::fs::write(dir.join("models/m/1/model.onnx"), onnx::scaling(3.0)).unwrap();
    let (code, said) = cli(dir, "reproduce r3 --model m");
    assert!(code == 1 && said.starts_with("NOT RUN: no version of m has the model file that answered"), "{said}");
    onnx::install(&dir.join("models"), "m", 5, &onnx::scaling(1.0));
    let (code, said) = cli(dir, "reproduce r3");
    assert!(code == 0 && said.contains("version 5, which has the same bytes"), "{said}");
}
