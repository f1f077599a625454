//! `version.toml` of a version from MLflow: what its run says about where it comes from.

use super::wire::{DatasetInput, ModelVersion, Run, map_of};
use crate::model::{ModelName, Version};
use toml::{Table, Value};

/// The longest text of one key, and the most members of a section, as `version.toml` takes them.
const MAX_TEXT: usize = 1000;
const MAX_MEMBERS: usize = 200;
/// The most data sets that are listed.
const MAX_DATASETS: usize = 20;

/// Which version of which registry it is. Two versions with equal ones have the same files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity<'v> {
    pub uri: &'v str,
    pub model: &'v ModelName,
    pub version: Version,
    pub source: &'v str,
    pub run_id: &'v str,
}

/// Writes `version.toml`.
pub(super) fn version_toml(of: &Identity<'_>, version: &ModelVersion, run: Option<&Run>) -> String {
    let mut registry = Table::new();
    put(&mut registry, "uri", of.uri);
    put(&mut registry, "model", of.model.as_str());
    put(&mut registry, "version", &of.version.to_string());
    put(&mut registry, "source", of.source);
    put(&mut registry, "run_id", of.run_id);
    put(&mut registry, "description", &version.description);
    let mut lineage = Table::new();
    if let Some(run) = run {
        put(&mut registry, "run_name", &run.info.run_name);
        put(&mut registry, "experiment_id", &run.info.experiment_id);
        let datasets: Vec<Value> = run.inputs.dataset_inputs.iter().take(MAX_DATASETS).map(dataset).collect();
        if !datasets.is_empty() {
            registry.insert("datasets".to_owned(), Value::Array(datasets));
        }
        lineage = lineage_of(run);
    }
    let mut all = Table::new();
    all.insert("mlflow".to_owned(), Value::Table(registry));
    if !lineage.is_empty() {
        all.insert("lineage".to_owned(), Value::Table(lineage));
    }
    // Tables of texts and numbers; only keys that are no texts cannot be written.
    toml::to_string(&all).unwrap_or_default()
}

/// Whether a `version.toml` was written for this version.
pub(super) fn is_of(text: &str, of: &Identity<'_>) -> bool {
    let Ok(table) = text.parse::<Table>() else { return false };
    let Some(registry) = table.get("mlflow").and_then(Value::as_table) else { return false };
    let is = |key: &str, expected: &str| registry.get(key).and_then(Value::as_str).unwrap_or_default() == cut(expected);
    is("uri", of.uri)
        && is("model", of.model.as_str())
        && is("version", &of.version.to_string())
        && is("source", of.source)
        && is("run_id", of.run_id)
}

fn lineage_of(run: &Run) -> Table {
    let mut lineage = Table::new();
    put(&mut lineage, "trainer", run.tag("mlflow.user").unwrap_or(&run.info.user_id));
    let ended = run.info.end_time.or(run.info.start_time).and_then(|ms| i64::try_from(ms).ok());
    if let Some(at) = ended.and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok()) {
        put(&mut lineage, "trained_at", &at.to_string());
    }
    if let Some(data) = training_data(run) {
        lineage.insert("data".to_owned(), Value::Table(data));
    }
    let mut code = Table::new();
    if let Some(commit) = run.tag("mlflow.source.git.commit").filter(|commit| is_commit(commit)) {
        put(&mut code, "commit", commit);
    }
    put(&mut code, "repository", run.tag("mlflow.source.git.repoURL").unwrap_or_default());
    if !code.is_empty() {
        lineage.insert("code".to_owned(), Value::Table(code));
    }
    let parameters = map_of(&run.data.params).into_iter().map(|(key, value)| (key, parameter(value)));
    put_members(&mut lineage, "parameters", parameters);
    let metrics = run.data.metrics.iter().filter_map(|metric| {
        let value = metric.value.as_f64().filter(|value| value.is_finite())?;
        Some((metric.key.as_str(), Value::Float(value)))
    });
    put_members(&mut lineage, "metrics", metrics);
    lineage
}

/// The data set that the run was trained on: the one that says so, else the first.
fn training_data(run: &Run) -> Option<Table> {
    let inputs = &run.inputs.dataset_inputs;
    let is_training = |input: &&DatasetInput| input.context().is_some_and(|context| context.starts_with("train"));
    let input = inputs.iter().find(is_training).or(inputs.first())?;
    let mut data = Table::new();
    if let Some(digest) = digest(&input.dataset.digest) {
        put(&mut data, "digest", &digest);
    }
    put(&mut data, "location", &location(input));
    if let Some(rows) = rows(&input.dataset.profile) {
        data.insert("rows".to_owned(), Value::Integer(rows));
    }
    (!data.is_empty()).then_some(data)
}

fn dataset(input: &DatasetInput) -> Value {
    let mut table = Table::new();
    put(&mut table, "name", &input.dataset.name);
    put(&mut table, "digest", &input.dataset.digest);
    put(&mut table, "context", input.context().unwrap_or_default());
    put(&mut table, "location", &location(input));
    put(&mut table, "source_type", &input.dataset.source_type);
    Value::Table(table)
}

/// MLflow's digests are short ones of its own. A SHA-256 stays one.
fn digest(text: &str) -> Option<String> {
    let is_hex = text.bytes().all(|b| b.is_ascii_hexdigit());
    if is_hex && text.len() == 64 {
        return Some(format!("sha256:{}", text.to_ascii_lowercase()));
    }
    let is_token = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"+/=._-".contains(&b));
    (is_token && (1..=128).contains(&text.len())).then(|| format!("mlflow:{text}"))
}

fn location(input: &DatasetInput) -> String {
    let source = &input.dataset.source;
    let json: serde_json::Value = serde_json::from_str(source).unwrap_or_default();
    let known = ["uri", "url", "path", "table", "table_name"].into_iter().find_map(|key| json[key].as_str());
    known.map_or_else(|| source.clone(), str::to_owned)
}

fn rows(profile: &str) -> Option<i64> {
    let json: serde_json::Value = serde_json::from_str(profile).ok()?;
    let shaped = json["features_shape"].get(0).and_then(serde_json::Value::as_i64);
    json["num_rows"].as_i64().or(shaped).filter(|rows| *rows >= 0)
}

fn is_commit(text: &str) -> bool {
    (7..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// A parameter, which MLflow keeps as a text. A text that a number or a boolean is written as becomes that again.
fn parameter(text: &str) -> Value {
    match text {
        "True" | "true" => return Value::Boolean(true),
        "False" | "false" => return Value::Boolean(false),
        _ => {}
    }
    if let Ok(number) = text.parse::<i64>()
        && number.to_string() == text
    {
        return Value::Integer(number);
    }
    let is_number = text.starts_with(|c: char| c.is_ascii_digit() || c == '-') && text.len() <= 32;
    match text.parse::<f64>() {
        Ok(number) if is_number && number.is_finite() && text.contains(['.', 'e']) => Value::Float(number),
        _ => Value::String(cut(text)),
    }
}

/// The first of them in the order of their names; the section takes no more.
fn put_members<'m>(lineage: &mut Table, name: &str, members: impl Iterator<Item = (&'m str, Value)>) {
    let mut sorted: Vec<(&str, Value)> = members.filter(|(key, _)| (1..=MAX_TEXT).contains(&key.len())).collect();
    sorted.sort_by(|a, b| a.0.cmp(b.0));
    sorted.truncate(MAX_MEMBERS);
    let section: Table = sorted.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    if !section.is_empty() {
        lineage.insert(name.to_owned(), Value::Table(section));
    }
}

fn put(table: &mut Table, key: &str, text: &str) {
    if !text.is_empty() {
        table.insert(key.to_owned(), Value::String(cut(text)));
    }
}

/// The beginning of a text that is too long for `version.toml`.
fn cut(text: &str) -> String {
    let end = (0..=text.len().min(MAX_TEXT)).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text[..end].to_owned()
}
