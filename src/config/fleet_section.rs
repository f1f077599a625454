//! `[fleet]`: the gateways that this one shares what was decided about its models with.

use crate::access::Pattern;
use crate::fleet::{Config, Labels, Rule};
use crate::settings::{Table, Value};

const MOST_URLS: usize = 16;
const MOST_LABELS: usize = 32;
const MOST_RULES: usize = 1000;
const MOST_PATTERNS: usize = 1000;
const MOST_REPLICAS: i64 = 10_000;
const LABELS: &str =
    "a table with up to 32 names and values of 1 to 64 letters, digits, ., - and _, such as { region = \"eu\" }";
const PLACEMENT: &str = "a list of up to 1000 rules such as { models = [\"eu-*\"], labels = { region = \"eu\" }, replicas = 2 }, with models and at least one of \
                         labels and replicas (1 to 10000)";

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
        labels: t.custom("labels", LABELS, labels).unwrap_or(d.labels),
        placement: t.custom("placement", PLACEMENT, placement).unwrap_or(d.placement),
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

fn labels(value: &Value) -> Option<Labels> {
    let Value::Table(members) = value else { return None };
    let is_text = |text: &str| {
        (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
    };
    let label = |(name, value): (&String, &Value)| {
        let value = value.as_str().filter(|value| is_text(value) && is_text(name))?;
        Some((name.clone(), value.to_owned()))
    };
    (members.len() <= MOST_LABELS).then(|| members.iter().map(label).collect::<Option<Labels>>())?
}

fn placement(value: &Value) -> Option<Vec<Rule>> {
    value.as_list().filter(|rules| rules.len() <= MOST_RULES)?.iter().map(rule).collect()
}

fn rule(value: &Value) -> Option<Rule> {
    let Value::Table(members) = value else { return None };
    if members.keys().any(|name| !["models", "labels", "replicas"].contains(&name.as_str())) || members.len() < 2 {
        return None;
    }
    let patterns = members.get("models")?.as_list().filter(|list| (1..=MOST_PATTERNS).contains(&list.len()))?;
    let models = patterns.iter().map(|text| text.as_str()?.parse::<Pattern>().ok()).collect::<Option<_>>()?;
    let labels = members.get("labels").map_or(Some(Labels::new()), labels)?;
    let replicas = match members.get("replicas") {
        None => None,
        Some(count) => Some(count.as_integer().filter(|count| (1..=MOST_REPLICAS).contains(count))?),
    };
    Some(Rule { models, labels, replicas: replicas.and_then(|count| usize::try_from(count).ok()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_rules_of_placement_are_read_and_wrong_ones_are_named() {
        let read_text = |text: &str| {
            let mut table = Table::parse("c.toml", text);
            let config = read(&mut table);
            table.finish().map(|()| config).map_err(|complaints| complaints.to_string())
        };
        let config = read_text(
            "labels = { region = \"eu\" }\nplacement = [{ models = [\"eu-*\"], labels = { region = \"eu\" } }, { models = [\"*\"], replicas = 2 }]",
        )
        .unwrap();
        assert_eq!(config.labels["region"], "eu");
        assert_eq!(config.placement.len(), 2);
        assert_eq!((config.placement[0].replicas, config.placement[1].replicas), (None, Some(2)));
        for wrong in ["\"eu\"", "{ region = 1 }", "{ region = \"e u\" }", "{ region = \"\" }"] {
            assert!(
                read_text(&format!("labels = {wrong}")).unwrap_err().contains("labels: expected a table"),
                "{wrong}"
            );
        }
        for wrong in [
            "[{ models = [\"m\"] }]",
            "[{ models = [], replicas = 1 }]",
            "[{ models = [\"m\"], replicas = 0 }]",
            "[{ models = [\"m n\"], replicas = 1 }]",
            "[{ replicas = 1, labels = {} }]",
            "[{ models = [\"m\"], replicas = 1, more = 1 }]",
        ] {
            let found = read_text(&format!("placement = {wrong}")).unwrap_err();
            assert!(found.contains("placement: expected a list of up to 1000 rules"), "{wrong}: {found}");
        }
    }
}
