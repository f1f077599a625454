//! Golden answers and warm-up requests beside a model.

use super::fixture::*;
use crate::registry::{Stage, State};
use serde_json::{Value, json};

fn x(rows: usize) -> Value {
    json!({"name": "x", "datatype": "FP32", "shape": [rows], "data": vec![1.0; rows]})
}

fn golden(cases: &[f64]) -> String {
    let case = |y: &f64| json!({"request": {"inputs": [x(2)]}, "outputs": [{"name": "y", "datatype": "FP32", "shape": [2], "data": [2.0, y]}]});
    json!({"rtol": 1e-3, "atol": 0.0, "cases": cases.iter().map(case).collect::<Vec<_>>()}).to_string()
}

/// Loads a model that answers 2, with one file beside it.
fn with(file: &str, text: &str) -> crate::registry::VersionStatus {
    let workspace = Workspace::new();
    workspace.put_with("m", 1, &[("model.onnx", &answers(2)), (file, text)]);
    let fixture = workspace.start();
    fixture.wait_ready();
    fixture.status("m", 1).unwrap()
}

#[track_caller]
fn failed(file: &str, text: &str, stage: Stage, parts: &[&str]) {
    let status = with(file, text);
    assert_eq!((status.state, status.stage), (State::Failed, Some(stage)), "{text}: {:?}", status.reason);
    let reason = status.reason.unwrap();
    for part in parts {
        assert!(reason.contains(part), "{part:?} in {reason:?}");
    }
}

#[test]
fn golden_answers_are_checked_within_their_tolerance() {
    let status = with("golden.json", &golden(&[2.0, 2.001]));
    assert_eq!((status.state, status.facts.unwrap().golden_cases), (State::Serving, 2));
}

#[test]
fn a_wrong_answer_is_reported_with_case_output_and_element() {
    failed("golden.json", &golden(&[2.0, 2.5]), Stage::Verify, &["case 1", "\"y\"", "[1]", "2.5"]);
}

#[test]
fn golden_requests_that_are_refused_fail_the_version() {
    let unknown = json!({"cases": [{"request": {"inputs": []}, "outputs": []}]}).to_string();
    failed("golden.json", &unknown, Stage::Verify, &["case 0", "input \"x\" is missing"]);
    failed("golden.json", "{\"cases\": [", Stage::Verify, &["golden.json"]);
}

#[test]
fn a_written_warm_up_must_succeed() {
    let fine = json!({"requests": [{"inputs": [x(1)]}, {"inputs": [x(3)]}]}).to_string();
    let status = with("warmup.json", &fine);
    assert_eq!((status.state, status.notes.len()), (State::Serving, 0));
    let wrong = json!({"requests": [{"inputs": [x(1)]}, {"inputs": []}]}).to_string();
    failed("warmup.json", &wrong, Stage::Warm, &["request 1", "input \"x\" is missing"]);
    failed("warmup.json", "nonsense", Stage::Warm, &["warmup.json"]);
}

#[test]
fn a_version_is_loaded_once_its_golden_answers_are_corrected() {
    let workspace = Workspace::new();
    workspace.put_with("m", 1, &[("model.onnx", &answers(2)), ("golden.json", &golden(&[9.0]))]);
    let fixture = workspace.start();
    fixture.wait_state("m", 1, State::Failed);
    fixture.workspace.write("m/1", "golden.json", &golden(&[2.0]));
    fixture.wait_state("m", 1, State::Serving);
}
