//! `[fleet]`: the gateways that this one shares its traffic documents with.

use crate::fleet::Config;
use crate::settings::{Table, Value};

const MOST_URLS: usize = 16;

pub(super) fn read(t: &mut Table) -> Config {
    let expected = "up to 16 addresses of NATS servers, such as [\"nats://10.0.0.1:4222\", \"tls://nats.example:4222\"]; on the command line \
                    and in the environment separated by commas";
    let name = "1 to 64 letters, digits, - and _";
    let as_name = |value: &Value| value.as_str().filter(|text| Config::is_name(text)).map(str::to_owned);
    let optional =
        |value: &Value| value.as_str().filter(|text| text.is_empty() || Config::is_name(text)).map(str::to_owned);
    let d = Config::default();
    Config {
        urls: t.custom("urls", expected, urls).unwrap_or_default(),
        name: t.custom("name", name, as_name).unwrap_or(d.name),
        node: t.custom("node", name, optional).unwrap_or(d.node),
        credentials: t.path("credentials"),
        ca: t.path("ca"),
        replicas: t.integer("replicas", 1..=5).unwrap_or(d.replicas),
    }
}

fn urls(value: &Value) -> Option<Vec<String>> {
    let texts: Vec<&str> = match (value.as_list(), value.as_str()) {
        (Some(items), _) => items.iter().map(Value::as_str).collect::<Option<_>>()?,
        (None, Some(text)) => text.split(',').map(str::trim).filter(|url| !url.is_empty()).collect(),
        (None, None) => return None,
    };
    let is_url = |url: &&str| {
        let rest = url.strip_prefix("nats://").or_else(|| url.strip_prefix("tls://"));
        rest.is_some_and(|rest| {
            !rest.is_empty() && rest.len() <= 512 && !rest.contains(|c: char| c.is_whitespace() || c == '/')
        })
    };
    (texts.len() <= MOST_URLS && texts.iter().all(is_url)).then(|| texts.into_iter().map(str::to_owned).collect())
}
