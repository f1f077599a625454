//! `[models.mlflow]`: MLflow's model registry.

use super::reload::{Change, at_start};
use crate::mlflow::Config;
use crate::model::ModelName;
use crate::settings::Table;
use std::collections::BTreeSet;
use std::time::Duration;

/// The most registered models that are read: each costs two requests in each round.
const MAX_MODELS: usize = 200;

pub(super) fn read(t: &mut Table) -> Config {
    let d = Config::default();
    let uri = t.string("uri");
    if uri.as_ref().is_some_and(|uri| !is_address(uri)) {
        // The address may have a password in it.
        t.complain_hidden(
            "uri",
            "the address of a tracking server that begins with http:// or https://, without a user, a query and a fragment, such as \"https://mlflow.internal\"",
        );
    }
    let models = t.custom(
        "models",
        &format!("a list of up to {MAX_MODELS} names of registered models, none of them twice, such as [\"fraud\"]; each a letter or digit, then up to 127 letters, digits, '.', '_' or '-'"),
        |value| {
            let items = value.as_list().filter(|items| items.len() <= MAX_MODELS)?;
            let names: Option<Vec<ModelName>> = items.iter().map(|item| item.as_str()?.parse().ok()).collect();
            names.filter(|names| names.iter().collect::<BTreeSet<_>>().len() == names.len())
        },
    );
    // A wrong list is reported already.
    let names_none = models.as_ref().is_none_or(Vec::is_empty) && (models.is_some() || !t.has("models"));
    let promote_alias = t.custom("promote_alias", "the name of an alias, such as \"champion\"", |value| {
        let is_alias = |text: &&str| (1..=255).contains(&text.len()) && !text.chars().any(char::is_control);
        value.as_str().filter(is_alias).map(str::to_owned)
    });
    let tags = t.custom("tags", "up to 64 letters, digits, '.', '_' or '-', or \"\"", |value| {
        let is_plain =
            |text: &&str| text.len() <= 64 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        value.as_str().filter(is_plain).map(str::to_owned)
    });
    let config = Config {
        uri,
        models: models.unwrap_or(d.models),
        promote_alias,
        versions: t.integer("versions", 1..=1000).unwrap_or(d.versions),
        timeout: t.duration("timeout", Duration::from_millis(100)..=Duration::from_mins(5)).unwrap_or(d.timeout),
        ca: t.path("ca"),
        tags: tags.unwrap_or(d.tags),
    };
    if config.uri.is_some() && names_none {
        t.complain("models", "the names of the registered models to read, because uri is set");
    }
    if !t.has("uri") && !config.models.is_empty() {
        t.complain("uri", "the address of the tracking server, because models are named");
    }
    if config.ca.is_some() && config.uri.as_ref().is_some_and(|uri| !uri.starts_with("https://")) {
        t.complain_hidden("uri", "an address that begins with https://, because ca is set");
    }
    config
}

fn is_address(text: &str) -> bool {
    let known = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let uri: Option<::http::Uri> = text.parse().ok();
    let has_host = uri.is_some_and(|uri| uri.host().is_some_and(|host| !host.is_empty()) && uri.query().is_none());
    // A password in an address ends in logs; MLflow's variables are for that.
    known.is_some() && has_host && !text.contains(['@', '#'])
}

pub(super) fn changes(before: &Config, new: &Config) -> [Option<Change>; 7] {
    let Config { uri, models, promote_alias, versions, timeout, ca, tags } = before;
    [
        at_start("models.mlflow.uri", uri, &new.uri),
        at_start("models.mlflow.models", models, &new.models),
        at_start("models.mlflow.promote_alias", promote_alias, &new.promote_alias),
        at_start("models.mlflow.versions", versions, &new.versions),
        at_start("models.mlflow.timeout", timeout, &new.timeout),
        at_start("models.mlflow.ca", ca, &new.ca),
        at_start("models.mlflow.tags", tags, &new.tags),
    ]
}
