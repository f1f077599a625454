//! The client `tritonclient` from `PyPI` against the shipped models (see tests/python).

use crate::support::{Gateway, copy};
use std::path::Path;
use std::process::Command;

fn gateway() -> Gateway {
    Gateway::start(|models| copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models"), models))
}

#[test]
fn tritonclient_works_unchanged() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python =
        std::env::var("SLUICEGATE_TEST_PYTHON").unwrap_or_else(|_| root.join(".venv/bin/python").display().to_string());
    let gateway = gateway();
    let output = Command::new(&python)
        .arg(root.join("tests/python/triton_client.py"))
        .arg(gateway.data().to_string())
        .output()
        .unwrap_or_else(|e| panic!("{python} does not run (`make venv` creates it): {e}"));
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("ok"), "{text}");
}

#[test]
fn each_shipped_version_is_ready_and_has_golden_answers() {
    let gateway = gateway();
    let models = gateway.admin_get("/api/v1/models").json();
    let names: Vec<String> =
        models["models"].as_array().unwrap().iter().map(|m| m["name"].as_str().unwrap().to_owned()).collect();
    assert!(names.len() >= 5, "{names:?}");
    for name in names {
        let model = gateway.admin_get(&format!("/api/v1/models/{name}")).json();
        for version in model["versions"].as_array().unwrap() {
            let v = version["version"].as_str().unwrap();
            let detail = gateway.admin_get(&format!("/api/v1/models/{name}/versions/{v}")).json();
            assert!(matches!(detail["state"].as_str().unwrap(), "ready" | "serving"), "{name} {v}: {detail}");
            assert!(detail["golden_cases"].as_u64().unwrap() > 0, "{name} {v} has golden answers: {detail}");
        }
    }
}
