//! `/invocations`, `/ping` and `/version`, as MLflow's scoring server and SageMaker's containers offer them, and rows with named values.

use crate::support::{Gateway, configuration, eventually, onnx};
use serde_json::json;
use sluicegate::config::Config;

const DEFAULT: &str = "[serving]\ndefault_model = \"penguins\"\n";
const CSV: [(&str, &str); 1] = [("content-type", "text/csv")];

/// A model of several columns, with names for the elements of its wide input.
fn penguins(config: &str) -> Gateway {
    Gateway::start_with(config, |models| {
        onnx::install(models, "penguins", 1, &onnx::echoing_columns());
        let names = "[features]\nbill = [\"length\", \"depth\"]\n";
        std::fs::write(models.join("penguins/model.toml"), names).unwrap();
    })
}

#[test]
fn tables_are_answered_with_a_record_for_each_row_and_tensors_with_a_list_for_each_output() {
    let gateway = penguins(DEFAULT);
    let records = json!({"predictions": [
        {"island_out": "Biscoe", "mass_out": 4200.0, "year_out": 2007, "bill_out": [39.5, 17.5]},
        {"island_out": "Dream", "mass_out": 3800.0, "year_out": 2008, "bill_out": [40.0, 18.0]},
    ]});
    let tensors = json!({"predictions": {
        "island_out": [["Biscoe"], ["Dream"]], "mass_out": [[4200.0], [3800.0]], "year_out": [2007, 2008],
        "bill_out": [[39.5, 17.5], [40.0, 18.0]],
    }});
    let split = json!({"dataframe_split": {"columns": ["depth", "island", "mass", "year", "length"], "index": [0, 1],
        "data": [[17.5, "Biscoe", 4200, 2007, 39.5], [18, "Dream", 3800, 2008, 40]]}});
    let rows = json!([{"island": "Biscoe", "mass": 4200.0, "year": 2007, "length": 39.5, "depth": 17.5},
        {"year": 2008, "island": "Dream", "mass": 3800.0, "depth": 18, "length": 40}]);
    let columns = json!({"inputs": {"island": ["Biscoe", "Dream"], "mass": [4200, 3800], "year": [2007, 2008],
        "length": [39.5, 40], "depth": [17.5, 18]}});
    let csv = "island,mass,year,length,depth\nBiscoe,4200.0,2007,39.5,17.5\nDream,3800.0,2008,40.0,18.0\n";
    let lines = rows.as_array().unwrap().iter().map(|row| row.to_string() + "\n").collect::<String>();
    for (body, media, expected) in [
        (split.to_string(), "application/json", &records),
        (json!({ "dataframe_records": rows }).to_string(), "application/json; charset=utf-8", &records),
        (csv.to_owned(), "text/csv", &records),
        (csv.to_owned(), "text/csv; charset=UTF-8; header=present", &records),
        (lines, "application/jsonlines", &records),
        (json!({"instances": rows, "params": {"temperature": 1}}).to_string(), "application/json", &tensors),
        (columns.to_string(), "application/json", &tensors),
    ] {
        let answer = gateway.post_with("/invocations", &[("content-type", media), ("x-request-id", "r-1")], &body);
        assert_eq!(answer.status, 200, "{body}: {answer:?}");
        assert_eq!(&answer.json(), expected, "{body}");
        assert_eq!(answer.header("content-type"), Some("application/json"));
        assert_eq!(answer.header("x-request-id"), Some("r-1"));
        assert_eq!((answer.header("x-sluicegate-version"), answer.header("x-sluicegate-arm")), (Some("1"), Some("1")));
        assert!(answer.header("server-timing").unwrap().contains("infer;dur="));
    }
    // A body without a media type is JSON.
    assert_eq!(gateway.post("/invocations", split.to_string()).json(), records);
}

#[test]
fn rows_of_tensorflow_serving_may_have_a_value_for_an_input_with_one_column() {
    let gateway = penguins("");
    let body = json!({"instances": [{"island": "Biscoe", "mass": 4200.0, "year": 2007, "bill": [39.5, 17.5]}]});
    let answer = gateway.post("/v1/models/penguins:predict", body.to_string());
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(
        answer.json()["predictions"],
        json!([{"island_out": ["Biscoe"], "mass_out": [4200.0], "year_out": 2007, "bill_out": [39.5, 17.5]}])
    );
}

#[test]
fn csv_without_names_has_the_columns_of_the_only_input_in_order() {
    let gateway = Gateway::start_with("[serving]\ndefault_model = \"scale\"\n", |models| {
        onnx::install(models, "scale", 1, &onnx::scaling(2.0));
    });
    let expected = json!({"predictions": [{"y": [2.0, 4.0]}, {"y": [6.0, 9.0]}]});
    for (body, media) in [
        ("1,2\n3,4.5\n", "text/csv"),
        ("1,2\n3,4.5\n", "text/csv;header=absent"),
        ("a,b\n1,2\n3,4.5\n", "text/csv"),
        ("0,1\n1,2\n3,4.5\n", "text/csv"),
        ("[1,2]\n[3,4.5]", "application/x-ndjson"),
    ] {
        let answer = gateway.post_with("/invocations", &[("content-type", media)], body);
        assert_eq!((answer.status, answer.json()), (200, expected.clone()), "{media}: {body}");
    }
}

#[test]
fn what_cannot_be_read_is_refused_in_words() {
    let gateway = penguins(DEFAULT);
    let json = |headers: &[(&str, &str)], body: &str| gateway.post_with("/invocations", headers, body);
    for (headers, body, status, code, words) in [
        (&[][..], "", 400, "INVALID_REQUEST", "the body is empty"),
        (&[], "[[1]]", 400, "INVALID_REQUEST", "exactly one of"),
        (&[], r#"{"dataframe_records":[{"island":"a"}]}"#, 400, "INVALID_TENSOR", "column \"mass\" is missing"),
        (&CSV, "a,b\n1,2\n", 400, "INVALID_TENSOR", "unknown column \"a\""),
        (&[("content-type", "application/xml")], "<a/>", 415, "UNSUPPORTED_MEDIA_TYPE", "text/csv"),
        (&[("content-type", "text/csv; charset=latin-1")], "a\n1\n", 415, "UNSUPPORTED_MEDIA_TYPE", "utf-8"),
        (&[("content-type", "text/csv; header=maybe")], "a\n1\n", 415, "UNSUPPORTED_MEDIA_TYPE", "header=present"),
        (&[("accept", "text/csv")], "{}", 406, "NOT_ACCEPTABLE", "application/json"),
    ] {
        let answer = json(headers, body);
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{body}: {answer:?}");
        let message = answer.json()["error"].as_str().unwrap().to_owned();
        assert!(message.contains(words), "{body}: {message}");
        assert!(answer.header("x-request-id").is_some());
    }
    assert_eq!(gateway.get("/invocations").status, 405);
    // CSV is for this path only.
    let other = gateway.post_with("/v1/models/penguins:predict", &CSV, "island\na\n");
    assert_eq!(other.status, 415);
}

#[test]
fn predictions_of_the_default_model_are_recorded_and_routed_as_all_others() {
    let gateway = Gateway::start_with("[serving]\ndefault_model = \"scale\"\n", |models| {
        onnx::install(models, "scale", 1, &onnx::scaling(2.0));
        onnx::install(models, "scale", 2, &onnx::scaling(3.0));
    });
    let traffic = json!({"split": [{"version": "1", "weight": 1}, {"version": "2", "weight": 1}], "sticky_by": {"header": "x-user"},
        "rules": [{"header": "x-team", "equals": "b", "version": "2"}]});
    let put = gateway.admin_send("PUT", "/api/v1/models/scale/traffic", &[], &traffic);
    assert_eq!(put.status, 200, "{put:?}");
    let arm_of = |path: &str, user: &str, body: &str| {
        let answer = gateway.post_with(path, &[("x-user", user)], body);
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.header("x-sluicegate-version").unwrap().to_owned()
    };
    for user in ["a", "b", "c", "d", "e"] {
        let table = arm_of("/invocations", user, r#"{"dataframe_records":[{"p":1,"q":2}]}"#);
        let tensor = arm_of("/v1/models/scale:predict", user, r#"{"instances":[[1,2]]}"#);
        assert_eq!(table, tensor, "the key of user {user} has one arm");
    }
    let by_rule =
        gateway.post_with("/invocations", &[("x-team", "b"), ("x-request-id", "by-rule")], r#"{"inputs":[[1,2]]}"#);
    assert_eq!(by_rule.header("x-sluicegate-version"), Some("2"));
    let feedback = json!({"feedback": [{"request_id": "by-rule", "label": 1}]});
    assert_eq!(gateway.post("/v1/models/scale:feedback", feedback.to_string()).status, 202);
    eventually("the feedback meets the record of the prediction", || {
        let quality = gateway.admin_get("/api/v1/models/scale/quality").json();
        let labelled = |arm: &serde_json::Value| arm["version"] == "2" && arm["labelled"] == 1;
        quality["arms"].as_array().is_some_and(|arms| arms.iter().any(labelled)).then_some(())
    });
}

#[test]
fn a_ping_tells_whether_the_default_model_answers() {
    let gateway = penguins(DEFAULT);
    for path in ["/ping", "/health"] {
        let answer = gateway.get(path);
        assert_eq!((answer.status, answer.body.len()), (200, 0), "{answer:?}");
    }
    let version = gateway.get("/version");
    assert_eq!((version.status, version.body), (200, env!("CARGO_PKG_VERSION").as_bytes().to_vec()));
    let out = gateway.admin_send("POST", "/v2/repository/models/penguins/unload", &[], &json!({}));
    assert_eq!(out.status, 200, "{out:?}");
    let answer = gateway.get("/ping");
    assert_eq!((answer.status, answer.code().as_str()), (503, "NOT_READY"));
    let invoked = gateway.post("/invocations", r#"{"inputs":[]}"#);
    assert_eq!((invoked.status, invoked.code().as_str()), (503, "NOT_READY"));
}

#[test]
fn without_a_default_model_the_error_names_the_setting_and_a_reload_sets_it() {
    let mut gateway = penguins("");
    for answer in [gateway.get("/ping"), gateway.post("/invocations", "{}")] {
        assert_eq!((answer.status, answer.code().as_str()), (404, "NOT_FOUND"));
        assert!(answer.json()["error"].as_str().unwrap().contains("default_model in [serving]"), "{answer:?}");
    }
    let mut reload = |lines: &str| {
        let config: Config = configuration(gateway.dir.path(), lines);
        gateway.app.as_mut().unwrap().reload(&config);
        (gateway.get("/ping").status, gateway.post("/invocations", "{}").status)
    };
    assert_eq!(reload(DEFAULT), (200, 400));
    assert_eq!(reload("[serving]\ndefault_model = \"nobody\"\n"), (404, 404));
    assert_eq!(reload(""), (404, 404));
}
