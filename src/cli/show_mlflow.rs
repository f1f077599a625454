//! Formats the answer about MLflow's model registry.

use super::show::{cell, list, table};
use serde_json::Value;

pub(super) fn registry(answer: &Value) -> String {
    let Some(uri) = answer["uri"].as_str() else {
        return "no registry is configured: [models.mlflow] uri\n".to_owned();
    };
    let mut rows = Vec::new();
    for model in list(answer, "models") {
        let name = cell(&model["model"]);
        for alias in list(model, "aliases") {
            let what = if alias["promotes"] == true { "promotion" } else { "label" };
            let version = if alias["version"].is_null() { "removed".to_owned() } else { cell(&alias["version"]) };
            rows.push(vec![
                name.clone(),
                cell(&alias["alias"]),
                version,
                what.to_owned(),
                cell(&alias["state"]),
                cell(&alias["message"]),
            ]);
        }
        for version in list(model, "versions").filter(|version| !version["unusable"].is_null()) {
            let empty = String::new();
            rows.push(vec![
                name.clone(),
                empty.clone(),
                cell(&version["version"]),
                empty,
                "not served".to_owned(),
                cell(&version["unusable"]),
            ]);
        }
    }
    if rows.is_empty() {
        return format!("{uri}: no aliases, and no version that cannot be served\n");
    }
    format!("{uri}\n{}", table(&["MODEL", "ALIAS", "VERSION", "IS A", "STATE", "MESSAGE"], &rows))
}
