//! The documents that describe the interfaces hold: docs/API.md, docs/openapi.json and docs/openapi-data.json.

use crate::support::{Gateway, copy};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

#[test]
fn every_operation_of_both_openapi_documents_answers_as_documented() {
    let gateway = Gateway::start_with("[serving]\ndefault_model = \"iris\"\n", |models| {
        copy(&root().join("models/iris"), &models.join("iris"));
    });
    let python = std::env::var("SLUICEGATE_TEST_PYTHON")
        .unwrap_or_else(|_| root().join(".venv/bin/python").display().to_string());
    let output = Command::new(&python)
        .arg(root().join("tests/python/openapi_check.py"))
        .arg(gateway.data().to_string())
        .arg(gateway.admin().to_string())
        .output()
        .unwrap_or_else(|e| panic!("{python} should run (make venv makes it): {e}"));
    let printed = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && printed.contains("ok: "), "{printed}");
}

/// The paths in the indented blocks of API.md, with `[/optional]`, `[/a|/b]` and `path | :other` written out.
fn paths_of_api_md() -> BTreeSet<String> {
    let text = read("docs/API.md");
    let methods = ["GET ", "PUT ", "POST ", "DELETE "];
    let lines =
        text.lines().filter_map(|l| l.strip_prefix("    ")).filter(|l| methods.iter().any(|m| l.starts_with(m)));
    let mut paths = BTreeSet::new();
    for line in lines {
        let mut previous = String::new();
        for word in line.split_whitespace().skip(1) {
            if word.starts_with('/') {
                for path in written_out(word.split('?').next().unwrap()) {
                    paths.insert(path.clone());
                    previous = path;
                }
            } else if word.starts_with(':') {
                let stem = &previous[..previous.rfind(':').unwrap_or(previous.len())];
                paths.insert(format!("{stem}{word}"));
            } else if word != "|" {
                break;
            }
        }
        // `/v2/repository/models/M/load | /unload` names a sibling.
        for path in paths.clone() {
            if path == "/unload" {
                paths.remove(&path);
                paths.insert("/v2/repository/models/M/unload".to_owned());
            }
        }
    }
    paths
}

fn written_out(path: &str) -> Vec<String> {
    let Some((before, rest)) = path.split_once('[') else { return vec![path.to_owned()] };
    let (choices, after) = rest.split_once(']').expect("a bracket closes");
    let mut all: Vec<String> = written_out(&format!("{before}{after}"));
    for choice in choices.split('|') {
        all.extend(written_out(&format!("{before}{choice}{after}")));
    }
    all
}

fn documented(file: &str) -> BTreeSet<String> {
    let document: Value = serde_json::from_str(&read(file)).unwrap();
    let paths = document["paths"].as_object().unwrap().keys();
    let named = |p: &String| {
        p.replace("{model}", "M")
            .replace("{version}", "V")
            .replace("{label}", "L")
            .replace("{token}", "NAME")
            .replace("{silence}", "ID")
            .replace("{request}", "ID")
    };
    paths.map(named).collect()
}

#[test]
fn api_md_names_exactly_the_paths_of_the_openapi_documents() {
    let mut documented_paths = documented("docs/openapi.json");
    documented_paths.extend(documented("docs/openapi-data.json"));
    assert_eq!(paths_of_api_md(), documented_paths);
}

#[test]
fn api_md_names_every_command() {
    let text = read("docs/API.md");
    let help = Command::new(env!("CARGO_BIN_EXE_sluicegate")).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let commands = help.split("Commands:").nth(1).unwrap().split("Options:").next().unwrap();
    let names: Vec<&str> = commands
        .lines()
        .filter(|l| l.starts_with("  ") && !l.starts_with("   "))
        .filter_map(|l| l.split_whitespace().next())
        .collect();
    assert!(names.len() > 10, "the help lists the commands: {help}");
    for name in names.iter().filter(|n| **n != "help") {
        assert!(
            text.contains(&format!("`{name} ")) || text.contains(&format!("`{name}`")),
            "docs/API.md has no command {name}"
        );
    }
}
