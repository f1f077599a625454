//! The command `fleet`, and the commands that take a fleet's state out and bring it in.

use super::CommandError;
use super::client::{Client, Done, print, print_json};
use super::show::{cell, list, table};
use clap::Subcommand;
use serde_json::Value;
use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What to do with the state of a fleet. Without one of these, the gateways are listed.
#[derive(Debug, Subcommand)]
pub enum FleetCommand {
    /// Write all that the fleet shares into a file, as one JSON document: traffic documents, approvals, retirements, and tokens if asked for.
    #[command(after_help = "Examples:
  sluicegate fleet export-state shop.json
  sluicegate fleet export-state shop.json --tokens       with the hashes of the fleet's tokens
  sluicegate fleet export-state - | jq '.models | keys'")]
    ExportState {
        /// The file; `-` is standard output.
        file: PathBuf,
        /// With the tokens: their hashes, roles and models. Nobody has their secrets.
        #[arg(long)]
        tokens: bool,
    },
    /// Store a fleet's state in the data directory of a stopped gateway, which then serves alone what the fleet served.
    #[command(after_help = "Examples:
  sluicegate fleet import-state shop.json --data-dir data

The audit trail has an event import_state for each model. What the file does not have stays. The files of versions are not in it.")]
    ImportState {
        /// A file of `export-state`.
        file: PathBuf,
        /// The data directory, which no server uses now.
        #[arg(long, value_name = "DIR")]
        data_dir: PathBuf,
    },
    /// Make what a stopped gateway has stored the first state of a fleet.
    #[command(after_help = "Examples:
  sluicegate fleet join --seed --config /etc/sluicegate.toml
  sluicegate fleet join --seed --fleet nats://10.0.0.1:4222 --data-dir data

It is refused where the fleet has a state already: a gateway joins such a fleet by being started with [fleet] urls, and the fleet's state decides.
Tokens are given too, but not those that a server made for itself at its first start (admin.first_token).")]
    Join {
        /// Give the fleet its first state.
        #[arg(long, required = true)]
        seed: bool,
        /// The configuration file [default: config/sluicegate.toml, if it exists]
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// The data directory [default: that of the configuration]
        #[arg(long, value_name = "DIR")]
        data_dir: Option<String>,
        /// The NATS servers, separated by commas [default: those of the configuration]
        #[arg(long, value_name = "URLS")]
        fleet: Option<String>,
    },
}

/// The longest export.
const LONGEST: Duration = Duration::from_mins(10);

impl Client {
    pub(super) fn fleet(&self) -> Done {
        self.show(&self.get("/api/v1/fleet")?, fleet)
    }

    /// `fleet export-state`.
    pub(super) fn export_fleet(&self, file: &Path, tokens: bool) -> Done {
        let answer = self.get_within(&format!("/api/v1/fleet/state?tokens={tokens}"), LONGEST)?;
        let models = answer.json()?["models"].as_object().map_or(0, serde_json::Map::len);
        let failed = |e: io::Error| CommandError::Failed(format!("cannot write {}: {e}", file.display()));
        if file == Path::new("-") {
            return print_json(&answer.bytes);
        }
        let mut name = file.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.tmp", std::process::id()));
        let temporary = file.with_file_name(name);
        // For its owner: it says who may do what.
        let created = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary);
        let written = created.and_then(|mut out| out.write_all(&answer.bytes).and_then(|()| out.sync_all()));
        written.and_then(|()| std::fs::rename(&temporary, file)).map_err(|error| {
            // If it cannot be removed, its name shows that it is temporary.
            let _ = std::fs::remove_file(&temporary);
            failed(error)
        })?;
        if self.json() {
            let done = serde_json::json!({"file": file.display().to_string(), "models": models});
            return print_json(done.to_string().as_bytes());
        }
        print(&format!("{}: {models} models, {} bytes\n", file.display(), answer.bytes.len()))
    }
}

fn fleet(answer: &Value) -> String {
    let empty = Vec::new();
    let nodes = answer["nodes"].as_array().unwrap_or(&empty);
    let none = serde_json::Map::new();
    let mut rows = Vec::new();
    for node in nodes {
        let models = node["models"].as_object().unwrap_or(&none);
        let waits = models.values().filter(|model| !model["waits"].is_null()).count() as u64;
        let waits = waits.max(node["behind"].as_u64().unwrap_or(0));
        rows.push(vec![
            cell(&node["name"]),
            cell(&node["state"]),
            cell(&node["program"]),
            pairs(&node["labels"]),
            models.len().to_string(),
            if waits == 0 { "-".to_owned() } else { format!("{waits} behind") },
            cell(&node["since"]),
        ]);
    }
    let mut text = format!("fleet {}, seen from {}\n\n", cell(&answer["name"]), cell(&answer["node"]));
    text += &table(&["GATEWAY", "STATE", "PROGRAM", "LABELS", "MODELS", "FOLLOWS", "SINCE"], &rows);
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
                waits_for(model),
            ]);
        }
    }
    rows.sort();
    if !rows.is_empty() {
        let _ = write!(text, "\n{}", table(&["MODEL", "GATEWAY", "REVISION", "SERVING", "READY", "WAITS FOR"], &rows));
    }
    let rows: Vec<Vec<String>> = list(answer, "rollouts").map(rollout).collect();
    if !rows.is_empty() {
        let _ = write!(text, "\n{}", table(&["ROLLOUT", "DRIVEN BY", "LEASE", "COUNTS OF"], &rows));
    }
    text
}

fn rollout(rollout: &Value) -> Vec<String> {
    let age = |age: &Value| age.as_f64().map_or_else(|| "not seen".to_owned(), |age| format!("{age} s ago"));
    let counted = rollout["counted"].as_object().into_iter().flatten();
    let counted: Vec<String> = counted.map(|(node, last)| format!("{node} ({})", age(last))).collect();
    vec![cell(&rollout["model"]), cell(&rollout["driver"]), age(&rollout["lease_age"]), counted.join(", ")]
}

fn pairs(table: &Value) -> String {
    let pairs = table.as_object().into_iter().flatten().map(|(name, value)| format!("{name}={}", cell(value)));
    let text = pairs.collect::<Vec<_>>().join(", ");
    if text.is_empty() { "-".to_owned() } else { text }
}

/// A newer document, and versions that are being fetched.
fn waits_for(model: &Value) -> String {
    let fetched = model["fetching"].as_object().into_iter().flatten().map(|(version, fetching)| {
        let part = |key: &str| fetching[key].as_f64().unwrap_or_default();
        let percent = if part("of") > 0.0 { 100.0 * part("bytes") / part("of") } else { 0.0 };
        format!("{version} is {percent:.0} % fetched")
    });
    let document = model["waits"].as_str().map(str::to_owned);
    let all: Vec<String> = document.into_iter().chain(fetched).collect();
    if all.is_empty() { cell(&Value::Null) } else { all.join("; ") }
}
