//! `sluicegate top`: in a pseudo terminal (`tests/python/top_terminal.py`), and where there is no terminal.

use crate::support::{Gateway, infer_body, onnx};
use std::path::Path;
use std::process::Command;

fn gateway() -> Gateway {
    Gateway::start(|models| {
        onnx::install(models, "scale", 1, &onnx::scaling(2.0));
        std::fs::create_dir_all(models.join("broken/1")).unwrap();
        std::fs::write(models.join("broken/1/model.onnx"), "no model").unwrap();
    })
}

#[test]
fn top_draws_filters_looks_and_restores_the_terminal() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python =
        std::env::var("SLUICEGATE_TEST_PYTHON").unwrap_or_else(|_| root.join(".venv/bin/python").display().to_string());
    let gateway = gateway();
    let output = Command::new(&python)
        .arg(root.join("tests/python/top_terminal.py"))
        .arg(env!("CARGO_BIN_EXE_sluicegate"))
        .arg(format!("http://{}", gateway.admin()))
        .output()
        .unwrap_or_else(|e| panic!("{python} does not run (`make venv` creates it): {e}"));
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && output.stdout.ends_with(b"ok\n"), "{text}");
}

#[test]
fn top_prints_one_table_where_there_is_no_terminal() {
    let gateway = gateway();
    assert_eq!(gateway.post("/v2/models/scale/infer", infer_body(&[1, 2], &[1.0, 2.0])).status, 200);
    let top = |arguments: &[&str], admin: &str| {
        let output =
            Command::new(env!("CARGO_BIN_EXE_sluicegate")).args(arguments).args(["--admin", admin]).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let admin = format!("http://{}", gateway.admin());
    let (code, table, errors) = top(&["top"], &admin);
    assert_eq!((code, errors.as_str()), (Some(0), ""), "{table}");
    let lines: Vec<&str> = table.lines().collect();
    assert!(
        lines[1].starts_with("broken") && lines[2].starts_with("scale") && lines[2].contains("v1 100 %"),
        "{table}"
    );
    let (_, filtered, _) = top(&["top", "--filter", "SCALE", "--sort", "name"], &admin);
    assert_eq!(filtered.lines().count(), 2, "{filtered}");
    let (_, json, _) = top(&["top", "--json"], &admin);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap_or_else(|e| panic!("{e}: {json}"));
    assert_eq!((&json["models"], &json["found"], &json["wrong"]), (&2.into(), &2.into(), &1.into()), "{json}");
    assert_eq!((&json["rows"][0]["name"], &json["rows"][1]["name"]), (&"broken".into(), &"scale".into()), "{json}");
    let (code, _, errors) = top(&["top"], "http://127.0.0.1:1");
    assert!(code == Some(1) && errors.contains("cannot reach the admin API"), "{code:?} {errors}");
    let (code, _, errors) = top(&["top", "--every", "1ms"], &admin);
    assert!(code == Some(2) && errors.contains("500ms to 1h"), "{code:?} {errors}");
}
