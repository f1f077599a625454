//! Inputs that a request may leave out: over the wire, in the prediction log, and when a prediction is run again.

use crate::support::{Gateway, onnx};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;

fn body(id: &str, given: &[(&str, Value)]) -> String {
    let x = json!({"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [1, 2, 3, 4]});
    let optional =
        given.iter().map(|(name, value)| json!({"name": name, "shape": [1], "datatype": "FP32", "data": [value]}));
    let inputs: Vec<Value> = [x].into_iter().chain(optional).collect();
    json!({"id": id, "inputs": inputs}).to_string()
}

/// The output of a request that must succeed.
fn ask(gateway: &Gateway, id: &str, given: &[(&str, Value)]) -> Value {
    let answer = gateway.post("/v2/models/m/infer", body(id, given));
    assert_eq!(answer.status, 200, "{id}: {answer:?}");
    answer.json()["outputs"][0]["data"].clone()
}

fn cli(dir: &Path, line: &str) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_sluicegate"))
        .args(line.split(' '))
        .env("ORT_DYLIB_PATH", crate::support::process::onnxruntime())
        .current_dir(dir)
        .output()
        .unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.code().unwrap(), text)
}

#[test]
fn optional_inputs_are_shown_taken_recorded_and_reproduced() {
    let gateway = Gateway::start(|models| {
        onnx::install(models, "m", 1, &onnx::adjustable());
        std::fs::write(models.join("m/model.toml"), "[limits]\nmax_rows = 2\n").unwrap();
    });
    let metadata = gateway.get("/v2/models/m").json();
    let named = |name: &str| json!({"name": name, "datatype": "FP32", "shape": [1]});
    assert_eq!(metadata["optional_inputs"], json!([named("factor"), named("shift")]));
    assert_eq!(metadata["inputs"], json!([{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]));
    let detail = gateway.admin_get("/api/v1/models/m/versions/1").json();
    assert_eq!(detail["signature"]["optional_inputs"], json!([named("factor"), named("shift")]));

    assert_eq!(ask(&gateway, "plain", &[]), json!([2.5, 4.5, 6.5, 8.5]));
    assert_eq!(ask(&gateway, "factor", &[("factor", json!(10))]), json!([10.5, 20.5, 30.5, 40.5]));
    assert_eq!(ask(&gateway, "both", &[("shift", json!(-1)), ("factor", json!(3))]), json!([2.0, 5.0, 8.0, 11.0]));
    // A null is a NaN, also here: it is a value, and not the absence of one.
    assert_eq!(ask(&gateway, "nan", &[("shift", json!(null))]), json!([null, null, null, null]));
    assert_eq!(ask(&gateway, "again", &[]), json!([2.5, 4.5, 6.5, 8.5]));

    // TensorFlow Serving: the column form takes them, the row form has one value per row and cannot.
    let columns = json!({"inputs": {"x": [[1, 2]], "factor": [4]}}).to_string();
    assert_eq!(gateway.post("/v1/models/m:predict", columns).json()["outputs"], json!([[4.5, 8.5]]));
    let rows = json!({"instances": [{"x": [1, 2], "factor": [4]}]}).to_string();
    let refused = gateway.post("/v1/models/m:predict", rows);
    assert_eq!(refused.status, 400);
    assert!(refused.json()["error"].as_str().unwrap().contains("\"factor\" is optional"), "{refused:?}");

    // What a request may not do without them, it may not do with them.
    let three = json!({"inputs": [
        {"name": "x", "shape": [3, 2], "datatype": "FP32", "data": [1, 2, 3, 4, 5, 6]},
        {"name": "factor", "shape": [1], "datatype": "FP32", "data": [1]},
    ]});
    let refused = gateway.post("/v2/models/m/infer", three.to_string());
    assert!(
        refused.status == 400 && refused.json()["error"].as_str().unwrap().contains("at most 2 rows"),
        "{refused:?}"
    );
    let empty = json!({"inputs": [
        {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]},
        {"name": "factor", "shape": [0], "datatype": "FP32", "data": []},
    ]});
    assert_eq!(gateway.post("/v2/models/m/infer", empty.to_string()).status, 400);

    let dir = gateway.stop();
    let dir = dir.path();
    // One record per row, but one for a whole request that gave an optional input.
    let (code, output) = cli(dir, "export m -o all.csv");
    assert_eq!(code, 0, "{output}");
    let text = std::fs::read_to_string(dir.join("all.csv")).unwrap();
    let head: Vec<&str> = text.lines().next().unwrap().split(',').collect();
    assert!(head.iter().any(|name| name.starts_with("inputs.factor")), "{head:?}");
    let rows_of = |id: &str| text.lines().filter(|line| line.starts_with(&format!("{id},"))).count();
    assert_eq!((rows_of("plain"), rows_of("factor"), rows_of("both"), rows_of("nan")), (2, 1, 1, 1), "{text}");

    for id in ["plain", "factor", "both", "nan", "again"] {
        let (code, output) = cli(dir, &format!("reproduce {id}"));
        assert!(code == 0 && output.starts_with("REPRODUCED"), "{id}: {output}");
    }
    // Another version with the same answers: every request is sent again as it was.
    onnx::install(&dir.join("models"), "m", 2, &onnx::adjustable());
    let (code, output) = cli(dir, "replay m --version 2 --gate within_tolerance>=1 --json");
    let replayed: Value = serde_json::from_str(&output).unwrap_or_else(|e| panic!("{e}: {output}"));
    assert_eq!((code, &replayed["requests"], &replayed["passed"]), (0, &json!(6), &json!(true)), "{replayed}");
    // A version without them cannot answer the requests that gave some, and says so.
    onnx::install(&dir.join("models"), "m", 3, &onnx::scaling(2.0));
    let (code, output) = cli(dir, "replay m --version 3 --gate failed<=0");
    assert!(code == 1 && output.contains("unknown input"), "{output}");
    // Golden answers made of the log hold them too.
    let (code, output) = cli(dir, "export m -o models/m/2/golden.json");
    assert_eq!(code, 0, "{output}");
    let (code, output) = cli(dir, "check models/m/2");
    assert!(code == 0 && output.contains("input   factor FP32 [1] (optional)"), "{output}");
}

#[test]
fn a_version_without_the_optional_input_is_not_promoted_unasked_and_shadows_say_why() {
    let gateway = Gateway::start(|models| {
        onnx::install(models, "m", 1, &onnx::adjustable());
        onnx::install(models, "m", 2, &onnx::scaling(2.0));
    });
    // The highest serves at first. Nobody loses anything by a version that takes more.
    assert_eq!(gateway.promote("m", 1).status, 200);
    let refused = gateway.promote("m", 2);
    assert_eq!(refused.status, 409);
    assert!(refused.json()["error"].as_str().unwrap().contains("optional input \"factor\" is removed"), "{refused:?}");

    let document = json!({"split": [{"version": "1", "weight": 1}], "shadows": [{"version": "2", "sample": 1}]});
    assert_eq!(gateway.admin_send("PUT", "/api/v1/models/m/traffic", &[], &document).status, 200);
    ask(&gateway, "plain", &[]);
    ask(&gateway, "factor", &[("factor", json!(10))]);
    let shadow = crate::support::eventually("both copies were compared", || {
        let shadow = gateway.admin_get("/api/v1/models/m/shadows/2").json();
        (shadow["compared"] == 2).then_some(shadow)
    });
    let pair = &shadow["primaries"][0];
    assert_eq!((&pair["pairs"], &pair["shadow_failed"]), (&json!(2), &json!(1)), "{shadow}");
    assert!(pair["worst"].to_string().contains("unknown input"), "{shadow}");
}
