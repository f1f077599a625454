//! Explanations over HTTP and from the prediction log.

use crate::support::{Gateway, infer_body, onnx};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;

/// A linear model `m` and a tree model `tree` of six columns.
fn gateway() -> Gateway {
    gateway_with(|_| {})
}

/// The same with more files. `add` gets the models directory.
fn gateway_with(add: impl Fn(&Path)) -> Gateway {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/explain");
    let gateway = Gateway::start(|models| {
        for (model, file) in [("m", "linear.onnx"), ("tree", "tree.onnx")] {
            onnx::install(models, model, 1, &std::fs::read(fixtures.join(file)).unwrap());
        }
        onnx::install(models, "m", 2, &std::fs::read(fixtures.join("tree.onnx")).unwrap());
        std::fs::write(models.join("m/model.toml"), "feature_names = [\"a\", \"b\", \"c\", \"d\", \"e\", \"f\"]\n")
            .unwrap();
        onnx::install(models, "scaling", 1, &onnx::scaling(2.0));
        onnx::install(models, "zeros", 1, &onnx::zeros());
        add(models);
    });
    gateway.wait_ready();
    assert_eq!(gateway.promote("m", 1).status, 200);
    gateway
}

fn values() -> Value {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/explain");
    serde_json::from_slice(&std::fs::read(fixtures.join("values.json")).unwrap()).unwrap()
}

/// The body for the first row of the fixture.
fn body() -> Value {
    let values = values();
    let input = |rows: &[Value]| {
        let data: Vec<Value> = rows.iter().flat_map(|row| row.as_array().unwrap().clone()).collect();
        json!([{"name": "X", "shape": [rows.len(), 6], "datatype": "FP32", "data": data}])
    };
    json!({
        "inputs": input(&values["rows"].as_array().unwrap()[..1]),
        "background": {"inputs": input(values["background"].as_array().unwrap())},
    })
}

#[test]
fn an_answer_is_explained_by_its_columns() {
    let gateway = gateway();
    let values = values();
    let answer = gateway.post("/v1/models/m:explain", body().to_string());
    assert_eq!(answer.status, 200, "{answer:?}");
    let json = answer.json();
    assert_eq!((&json["model_name"], &json["model_version"], &json["element"]), (&json!("m"), &json!("1"), &json!(0)));
    let columns = json["columns"].as_array().unwrap();
    let names: Vec<&str> = columns.iter().map(|column| column["column"].as_str().unwrap()).collect();
    assert_eq!(names, ["a", "b", "c", "d", "e", "f"]);
    let number = |value: &Value| value.as_f64().unwrap();
    for (column, expected) in columns.iter().zip(values["linear"]["values"][0].as_array().unwrap()) {
        assert!((number(&column["value"]) - number(expected)).abs() < 1e-5, "{column} {expected}");
        assert!(column["standard_error"].is_number() && column["input"].is_string(), "{column}");
    }
    let sum: f64 = columns.iter().map(|column| number(&column["value"])).sum();
    assert!((sum - (number(&json["answer"]) - number(&json["base"]))).abs() < 1e-9, "{json}");
    assert_eq!((&json["background_rows"], json["pairs"].as_u64().unwrap() % 40), (&json!(40), 0));
    assert_eq!(json["compared_with"], "rows of the request");

    // Another version, with options, and an id.
    let mut asked = body();
    asked["explain"] = json!({"output": "variable", "element": 0, "rows": 4000, "seed": 7});
    asked["id"] = json!("why-1");
    let tree = gateway.post("/v1/models/m/versions/2:explain", asked.to_string());
    assert_eq!((tree.status, tree.header("x-request-id")), (200, Some("why-1")), "{tree:?}");
    assert_eq!(tree.json()["model_version"], "2");
    assert_eq!(gateway.post("/v1/models/m/versions/2:explain", asked.to_string()).json(), tree.json(), "the same seed");
    let log = gateway.admin_get("/api/v1/log").json();
    assert_eq!(log["records"]["written"].as_u64().unwrap_or(0), 0, "an explanation leaves no record: {log}");
}

#[test]
fn explanations_that_cannot_be_made_are_refused_in_words() {
    let gateway = gateway();
    let refused = |path: &str, body: &str, status: u16, words: &str| {
        let answer = gateway.post(path, body);
        assert!(answer.status == status && answer.json().to_string().contains(words), "{path}: {answer:?} {words}");
    };
    let changed = |change: fn(&mut Value)| {
        let mut body = body();
        change(&mut body);
        body.to_string()
    };
    let path = "/v1/models/m:explain";
    refused(path, &changed(|body| body["background"] = Value::Null), 400, "\\\"background\\\" is missing");
    refused(path, &changed(|body| body["background"] = json!(3)), 400, "background: ");
    refused(path, &changed(|body| body["background"]["inputs"][0]["name"] = json!("Y")), 400, "background: ");
    refused(path, &changed(|body| body["explain"] = json!([])), 400, "explain: expected an object");
    refused(
        path,
        &changed(|body| body["explain"] = json!({"rows": 1e9, "colour": 1})),
        400,
        "explain.rows: expected a whole number",
    );
    refused(path, &changed(|body| body["explain"] = json!({"output": "y"})), 400, "output: expected one of");
    let two = changed(|body| {
        let both = body["background"]["inputs"].clone();
        body["inputs"] = both;
    });
    refused(path, &two, 400, "expected one row to explain, got 40");
    refused(path, "{", 400, "");
    refused(path, &body().to_string().replacen("\"background\":", "\"background\":null,\"background\":", 1), 400, "");
    refused("/v1/models/m/versions/9:explain", "{", 404, "version 9");
    refused("/v1/models/nobody:explain", "{", 404, "nobody");
    let background = |inputs: Value| json!({"inputs": inputs, "background": {"inputs": inputs}}).to_string();
    refused(
        "/v1/models/zeros:explain",
        &background(json!([{"name": "shape", "shape": [1], "datatype": "INT64", "data": [3]}])),
        400,
        "explanations are for models",
    );
    let get = gateway.get(path);
    assert_eq!((get.status, get.header("allow")), (405, Some("POST")));
    let binary = gateway.post_with(path, &[("inference-header-content-length", "5")], body().to_string());
    assert!(binary.status == 400 && binary.json().to_string().contains("without binary tensors"), "{binary:?}");
}

#[test]
fn one_caller_has_at_most_two_explanations_at_a_time_and_predictions_go_on() {
    let gateway = gateway();
    let mut asked = body();
    asked["explain"] = json!({"rows": 200_000});
    let asked = asked.to_string();
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let ask = || {
            let answer = gateway.post_with("/v1/models/tree:explain", &[("x-request-timeout-ms", "3000")], &asked);
            if answer.status == 429 {
                assert!(answer.code() == "TOO_MANY_REQUESTS" && answer.header("retry-after").is_some(), "{answer:?}");
            }
            answer.status
        };
        let asking: Vec<_> = (0..16).map(|_| scope.spawn(ask)).collect();
        for i in 0..20_u8 {
            let answer = gateway.post("/v2/models/scaling/infer", infer_body(&[1, 2], &[f32::from(i), 1.0]));
            assert_eq!(answer.status, 200, "{answer:?}");
        }
        asking.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    // All come from one address, which may have two at a time.
    assert!(statuses.iter().filter(|status| **status == 429).count() >= 8, "{statuses:?}");
    assert!(statuses.iter().all(|status| [200, 429, 504].contains(status)), "{statuses:?}");
}

#[test]
fn a_logged_answer_is_explained_against_other_logged_rows() {
    let gateway = gateway();
    let values = values();
    for (i, row) in values["background"].as_array().unwrap().iter().chain(&[values["rows"][0].clone()]).enumerate() {
        let body =
            json!({"id": format!("r{i}"), "inputs": [{"name": "X", "shape": [1, 6], "datatype": "FP32", "data": row}]});
        assert_eq!(gateway.post("/v2/models/m/infer", body.to_string()).status, 200);
    }
    let dir = gateway.stop();
    let run = |line: &str| {
        let result = Command::new(env!("CARGO_BIN_EXE_sluicegate"))
            .args(line.split(' '))
            .current_dir(dir.path())
            .output()
            .unwrap();
        let output = format!("{}{}", String::from_utf8_lossy(&result.stdout), String::from_utf8_lossy(&result.stderr));
        (result.status.code().unwrap(), output)
    };
    let (code, out) = run("explain r40 --json");
    assert_eq!(code, 0, "{out}");
    let explained: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&explained["model"], &explained["background_rows"]), (&json!("m"), &json!(40)));
    for (column, expected) in
        explained["columns"].as_array().unwrap().iter().zip(values["linear"]["values"][0].as_array().unwrap())
    {
        assert!((column["value"].as_f64().unwrap() - expected.as_f64().unwrap()).abs() < 1e-5, "{column} {expected}");
    }
    let (code, out) = run("explain r40 --model m");
    let compared = "the mean of 40 rows of other requests to m in the hour before is ";
    assert!(code == 0 && out.contains("PART OF THE DIFFERENCE") && out.contains(compared), "{out}");
    for (line, code, words) in [
        ("explain nobody", 1, "has no prediction with the id"),
        ("explain r0", 1, "no other rows of m in the month before"),
        ("explain r40 --row 1", 2, "the request has 1 rows"),
        ("explain r40 --rows 0", 2, "--rows: expected 1 to 200000"),
        ("explain r40 --output z", 1, "output: expected one of"),
    ] {
        let (got, out) = run(line);
        assert!(got == code && out.contains(words), "{line}: {got} {out}");
    }
}

#[test]
fn a_row_is_explained_against_the_rows_in_the_profile_of_its_version() {
    let values = values();
    let gateway = gateway_with(|models| {
        let sample = json!({"columns": ["f", "e", "d", "c", "b", "a"], "rows": reversed(&values["background"])});
        let profile = json!({"format": 2, "rows": 891, "source": "train.csv", "columns": {}, "sample": sample});
        std::fs::write(models.join("m/1/profile.json"), profile.to_string()).unwrap();
        let other = json!({"format": 2, "rows": 1, "columns": {}, "sample": {"columns": ["a"], "rows": [[1]]}});
        std::fs::write(models.join("m/2/profile.json"), other.to_string()).unwrap();
    });
    let mut asked = body();
    asked.as_object_mut().unwrap().remove("background");
    let answer = gateway.post("/v1/models/m:explain", asked.to_string());
    assert_eq!(answer.status, 200, "{answer:?}");
    let named = "rows from the profile of version 1 (train.csv, a sample of 891 rows)";
    let check = |explained: &Value| {
        assert_eq!((&explained["compared_with"], &explained["background_rows"]), (&json!(named), &json!(40)));
        let expected = values["linear"]["values"][0].as_array().unwrap();
        for (column, expected) in explained["columns"].as_array().unwrap().iter().zip(expected) {
            assert!(
                (column["value"].as_f64().unwrap() - expected.as_f64().unwrap()).abs() < 1e-5,
                "{column} {expected}"
            );
        }
    };
    check(&answer.json());
    for (path, words) in [
        (
            "/v1/models/m/versions/2:explain",
            "the rows in the profile of version 2 cannot be compared with: its rows have no column \\\"b\\\"",
        ),
        ("/v1/models/tree:explain", "version 1 has no profile.json with such rows"),
    ] {
        let answer = gateway.post(path, asked.to_string());
        assert!(answer.status == 400 && String::from_utf8_lossy(&answer.body).contains(words), "{path}: {answer:?}");
    }
    // A logged row, of which there is no other.
    asked["id"] = json!("alone");
    assert_eq!(gateway.post("/v2/models/m/infer", asked.to_string()).status, 200);
    let dir = gateway.stop();
    let run = |options: &[&str]| {
        let explain = Command::new(env!("CARGO_BIN_EXE_sluicegate")).args(options).current_dir(dir.path()).output();
        let output = explain.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    check(&serde_json::from_str(&run(&["explain", "alone", "--json"])).unwrap());
    assert!(run(&["explain", "alone"]).contains(&format!("the mean of 40 {named} is ")));
}

fn reversed(rows: &Value) -> Vec<Vec<Value>> {
    let row = |row: &Value| row.as_array().unwrap().iter().rev().cloned().collect();
    rows.as_array().unwrap().iter().map(row).collect()
}
