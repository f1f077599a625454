//! The command line reads the prediction log: export, replay, reproduce. With a running server and without one.

use crate::support::{Gateway, onnx};
use arrow_array::RecordBatch;
use arrow_array::cast::AsArray;
use arrow_array::types::Float64Type;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Value, json};
use std::fs::File;
use std::path::Path;
use std::process::Command;

/// Runs the command in a directory with `models/` and `data/`. Returns the exit code and the output.
fn cli(dir: &Path, line: &str) -> (i32, String) {
    let result =
        Command::new(env!("CARGO_BIN_EXE_sluicegate")).args(line.split(' ')).current_dir(dir).output().unwrap();
    let output = format!("{}{}", String::from_utf8_lossy(&result.stdout), String::from_utf8_lossy(&result.stderr));
    (result.status.code().unwrap(), output)
}

/// The same with `--json`.
fn cli_json(dir: &Path, line: &str) -> (i32, Value) {
    let (code, output) = cli(dir, &format!("{line} --json"));
    (code, serde_json::from_str(&output).unwrap_or_else(|e| panic!("{line}: {e}: {output}")))
}

fn rows(path: &Path) -> Vec<RecordBatch> {
    ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap())
        .unwrap()
        .build()
        .unwrap()
        .map(Result::unwrap)
        .collect()
}

/// Thirty requests of two rows each, with the label 0 for each row. The first of two numbers is the larger one in 31 of 60 rows.
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
fn export_replay_and_reproduce_work_with_a_running_server_and_after_a_stop() {
    let gateway = recorded();
    let dir = gateway.models().parent().unwrap().to_owned();
    // Nothing is sealed yet.
    let (code, exported) = cli_json(&dir, "export m -o live.parquet");
    assert_eq!((code, &exported["rows"], &exported["labelled"]), (0, &json!(60), &json!(60)), "{exported}");
    let (code, output) = cli(&dir, "reproduce r7");
    assert_eq!(code, 0, "{output}");
    assert!(
        output.starts_with("REPRODUCED: 1 output, bit for bit as logged") && output.contains("of 2 rows"),
        "{output}"
    );

    let dir_kept = gateway.stop();
    let dir = dir_kept.path();
    let (code, exported) = cli_json(dir, "export m -o stopped.parquet");
    assert_eq!((code, &exported["rows"]), (0, &json!(60)), "{exported}");
    assert_eq!(
        rows(&dir.join("live.parquet")),
        rows(&dir.join("stopped.parquet")),
        "segments and sealed files give the same rows"
    );
    let revenue = |batch: &RecordBatch| {
        let values = batch["values"].as_map();
        values.values().as_primitive::<Float64Type>().values().iter().sum::<f64>()
    };
    assert_eq!(rows(&dir.join("stopped.parquet")).iter().map(revenue).sum::<f64>(), 435.0);

    let (code, output) = cli(dir, "export m --require-label --limit 5 -o five.csv");
    assert_eq!(code, 0, "{output}");
    assert_eq!(std::fs::read_to_string(dir.join("five.csv")).unwrap().lines().count(), 6);
    let (code, replayed) = cli_json(dir, "replay m --version 1 --gate within_tolerance>=1 --gate accuracy>0.5");
    assert_eq!((code, &replayed["passed"], &replayed["requests"]), (0, &json!(true), &json!(30)), "{replayed}");
    assert_eq!(replayed["tolerance"], json!({"rtol": 0.001, "atol": 0.00001}), "the default of shadows");
    assert_eq!(replayed["labels"][0]["accuracy"], json!({"logged": 31.0 / 60.0, "candidate": 31.0 / 60.0}));
    // From the 22nd request on, one of four outputs of version 2 is larger by 1.
    let (code, replayed) = cli_json(dir, "replay m --version 2 --gate within_tolerance>=0.925 --gate agreement<0.8");
    assert_eq!((code, &replayed["gates"][0]["found"], &replayed["gates"][1]["found"]), (0, &json!(0.925), &json!(0.7)));
    let (code, output) = cli(dir, "replay m --version 2 --gate within_tolerance>=0.999");
    assert_eq!(code, 1, "{output}");
    assert!(output.contains("within_tolerance>=0.999  FAILED") && output.contains("largest differences"), "{output}");
}

#[test]
fn golden_answers_from_the_log_verify_a_version() {
    let dir = recorded().stop();
    let dir = dir.path();
    onnx::install(&dir.join("models"), "m", 3, &onnx::scaling(1.0));
    onnx::install(&dir.join("models"), "m", 4, &onnx::scaling(1.5));
    for line in ["export m --limit 10 -o models/m/3/golden.json", "export m --limit 10 -o models/m/4/golden.json"] {
        let (code, output) = cli(dir, line);
        assert_eq!(code, 0, "{output}");
    }
    assert_eq!(cli(dir, "export m -o models/m/3/warmup.json").0, 0);
    let (code, output) = cli(dir, "check models/m/3");
    assert!(code == 0 && output.contains("10 golden cases"), "{output}");
    let (code, output) = cli(dir, "check models/m/4");
    assert!(code == 1 && output.contains("elements differ"), "{output}");
}

#[test]
fn invalid_options_exit_with_2_and_missing_data_with_1() {
    let dir = recorded().stop();
    let dir = dir.path();
    for (line, code, words) in [
        ("export m -o x.txt", 2, "does not give a format"),
        ("export m --from yesterday -o x.csv", 2, "\"yesterday\" is not a time"),
        ("export m --role boss -o x.csv", 2, "expected primary, pinned or shadow"),
        ("export m --version one -o x.csv", 2, "\"one\" is not a version"),
        ("replay m --version 1 --gate speed>=1", 2, "the gate \"speed>=1\""),
        ("replay m --version 1 --rtol=-1", 2, "rtol"),
        ("replay m --version 9", 1, "there is no version 9 of m"),
        ("export other -o x.csv", 1, "there are predictions of 1 other models"),
        ("export m --to 2000-01-01 -o x.csv", 1, "there are other predictions of this model"),
        ("export m -o no/x.csv", 1, "there is no directory no"),
        ("reproduce missing", 1, "no prediction with the id \"missing\""),
    ] {
        let (found, output) = cli(dir, line);
        assert_eq!(found, code, "{line}: {output}");
        assert!(output.contains(words), "{line}: {output}");
    }
    assert!(!dir.join("x.csv").exists(), "a failed export leaves no file");
    // Another model file in the directory of version 1 cannot reproduce the answer.
    std::fs::write(dir.join("models/m/1/model.onnx"), onnx::scaling(3.0)).unwrap();
    let (code, output) = cli(dir, "reproduce r3 --model m");
    assert!(code == 1 && output.starts_with("NOT RUN: no version of m has the model file that answered"), "{output}");
    onnx::install(&dir.join("models"), "m", 5, &onnx::scaling(1.0));
    let (code, output) = cli(dir, "reproduce r3");
    assert!(code == 0 && output.contains("version 5, which has the same bytes"), "{output}");
}
