//! The command `fleet`.

use super::client::{Client, Done};
use super::show::{cell, table};
use serde_json::Value;
use std::fmt::Write as _;

impl Client {
    pub(super) fn fleet(&self) -> Done {
        self.show(&self.get("/api/v1/fleet")?, fleet)
    }
}

fn fleet(answer: &Value) -> String {
    let empty = Vec::new();
    let nodes = answer["nodes"].as_array().unwrap_or(&empty);
    let none = serde_json::Map::new();
    let mut rows = Vec::new();
    for node in nodes {
        let models = node["models"].as_object().unwrap_or(&none);
        let waits = models.values().filter(|model| !model["waits"].is_null()).count();
        rows.push(vec![
            cell(&node["name"]),
            cell(&node["state"]),
            cell(&node["program"]),
            models.len().to_string(),
            if waits == 0 { "-".to_owned() } else { format!("{waits} behind") },
            cell(&node["since"]),
        ]);
    }
    let mut text = format!("fleet {}, seen from {}\n\n", cell(&answer["name"]), cell(&answer["node"]));
    text += &table(&["GATEWAY", "STATE", "PROGRAM", "MODELS", "FOLLOWS", "SINCE"], &rows);
    let mut rows = Vec::new();
    for node in nodes {
        for (name, model) in node["models"].as_object().unwrap_or(&none) {
            let list = |key: &str| {
                let values = model[key].as_array().unwrap_or(&empty);
                values.iter().map(cell).collect::<Vec<_>>().join(", ")
            };
            rows.push(vec![
                name.clone(),
                cell(&node["name"]),
                cell(&model["revision"]),
                list("serving"),
                list("ready"),
                cell(&model["waits"]),
            ]);
        }
    }
    rows.sort();
    if !rows.is_empty() {
        let _ = write!(text, "\n{}", table(&["MODEL", "GATEWAY", "REVISION", "SERVING", "READY", "WAITS FOR"], &rows));
    }
    text
}
