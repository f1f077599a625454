//! `[access]`: who the holders of client certificates are, and the identity provider.

use crate::access::{
    ALGORITHMS, CertificateRule, Config, Grant, KeySource, Models, OidcConfig, RoleRule, TokenRule, is_token_name,
};
use crate::settings::{Table, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// The most rules of one list.
const MOST_RULES: usize = 1000;

pub(super) fn read(t: &mut Table) -> Config {
    let expected = "a list such as [{ name = \"ops.example\", role = \"operator\", models = [\"fraud-*\"] }], with the roles predict, viewer, \
                    operator, approver and admin";
    let certificates =
        t.custom("certificates", expected, |value| rules(value, "name", |name, grant| CertificateRule { name, grant }));
    let expected = "a list such as [{ name = \"prometheus\", role = \"viewer\", file = \"/run/secrets/metrics-token\" }], with different names";
    let tokens = t.custom("tokens", expected, token_rules);
    let oidc = read_oidc(t.section("oidc"));
    Config { certificates: certificates.unwrap_or_default(), tokens: tokens.unwrap_or_default(), oidc }
}

/// `None` where no issuer is set.
fn read_oidc(t: &mut Table) -> Option<OidcConfig> {
    let text = |t: &mut Table, key: &str| {
        t.custom(key, "a text that is not empty", |value| {
            value.as_str().filter(|s| !s.trim().is_empty()).map(str::to_owned)
        })
    };
    let (issuer, audience) = (text(t, "issuer"), text(t, "audience"));
    let expected = "the path of a file, an https:// address, or an http:// address on this machine";
    let keys = t.custom("jwks", expected, |value| key_source(value.as_str()?));
    let ca = t.path("ca");
    if ca.is_some() && !matches!(&keys, Some(KeySource::Url(url)) if url.starts_with("https://")) {
        t.complain("jwks", "an address that begins with https://, because ca is set");
    }
    let refresh = t.duration("refresh", Duration::from_secs(10)..=Duration::from_hours(24 * 7));
    let words: Vec<&str> = ALGORITHMS.iter().map(|(name, _)| *name).collect();
    let algorithms = t.custom("algorithms", &format!("a list of some of {}", words.join(", ")), |value| {
        let known = |item: &Value| ALGORITHMS.iter().find(|(name, _)| item.as_str() == Some(name)).map(|(_, a)| *a);
        value.as_list().filter(|items| !items.is_empty())?.iter().map(known).collect::<Option<Vec<_>>>()
    });
    let leeway = t.duration("leeway", Duration::ZERO..=Duration::from_mins(10));
    let (name_claim, roles_claim) = (text(t, "name_claim"), text(t, "roles_claim"));
    let expected = "a list such as [{ value = \"ml-ops\", role = \"operator\", models = [\"fraud-*\"] }], with the roles predict, viewer, \
                    operator, approver and admin";
    let roles = t.custom("roles", expected, |value| rules(value, "value", |value, grant| RoleRule { value, grant }));
    let set = [audience.is_some(), keys.is_some(), ca.is_some(), roles.as_ref().is_some_and(|roles| !roles.is_empty())];
    match (issuer, audience, keys) {
        (Some(issuer), Some(audience), Some(keys)) => Some(OidcConfig {
            issuer,
            audience,
            keys,
            ca,
            refresh: refresh.unwrap_or(Duration::from_mins(10)),
            algorithms: algorithms.unwrap_or_else(|| {
                ALGORITHMS.iter().filter(|(n, _)| ["RS256", "ES256"].contains(n)).map(|(_, a)| *a).collect()
            }),
            leeway: leeway.unwrap_or(Duration::from_mins(1)),
            name_claim: name_claim.unwrap_or_else(|| "sub".to_owned()),
            roles_claim: roles_claim.unwrap_or_else(|| "roles".to_owned()),
            roles: roles.unwrap_or_default(),
        }),
        (None, _, _) if set.contains(&true) => {
            t.complain("issuer", "the claim iss of the tokens, because other keys of [access.oidc] are set");
            None
        }
        (Some(_), audience, keys) => {
            if audience.is_none() {
                t.complain("audience", "the claim aud of the tokens, because an issuer is set");
            }
            if keys.is_none() {
                t.complain("jwks", expected_keys());
            }
            None
        }
        (None, ..) => None,
    }
}

fn expected_keys() -> &'static str {
    "where the keys are, because an issuer is set: the path of a file, an https:// address, or an http:// address on this machine"
}

/// Keys that come over plain HTTP from another machine could be replaced on the way.
fn key_source(text: &str) -> Option<KeySource> {
    if let Some(rest) = text.strip_prefix("http://") {
        let authority = rest.split('/').next().unwrap_or_default();
        let host = authority
            .rsplit_once(':')
            .map_or(authority, |(host, port)| if port.bytes().all(|b| b.is_ascii_digit()) { host } else { authority });
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let is_here = host == "localhost" || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        return is_here.then(|| KeySource::Url(text.to_owned()));
    }
    if text.starts_with("https://") {
        return Some(KeySource::Url(text.to_owned()));
    }
    (!text.is_empty() && !text.contains('\0') && !text.contains("://")).then(|| KeySource::File(PathBuf::from(text)))
}

/// Tokens that files hold: rules with the member `file`.
fn token_rules(value: &Value) -> Option<Vec<TokenRule>> {
    let items = value.as_list().filter(|items| items.len() <= MOST_RULES)?;
    let read = |item: &Value| {
        let Value::Table(members) = item else { return None };
        let mut members = members.clone();
        let file = members.remove("file")?.as_str().filter(|file| !file.is_empty() && !file.contains('\0'))?.into();
        let (name, grant) = rule(&Value::Table(members), "name")?;
        is_token_name(&name).then_some(TokenRule { name, grant, file })
    };
    let rules: Vec<TokenRule> = items.iter().map(read).collect::<Option<_>>()?;
    let names: BTreeSet<&str> = rules.iter().map(|rule| rule.name.as_str()).collect();
    (names.len() == rules.len()).then_some(rules)
}

/// A list of rules: the member `key` is whom or what a rule is about, `role` and `models` are what it grants.
fn rules<T>(value: &Value, key: &str, make: impl Fn(String, Grant) -> T) -> Option<Vec<T>> {
    let items = value.as_list().filter(|items| items.len() <= MOST_RULES)?;
    items.iter().map(|item| rule(item, key).map(|(about, grant)| make(about, grant))).collect()
}

fn rule(item: &Value, key: &str) -> Option<(String, Grant)> {
    let Value::Table(members) = item else { return None };
    if members.keys().any(|name| ![key, "role", "models"].contains(&name.as_str())) {
        return None;
    }
    let text = |members: &BTreeMap<String, Value>, name: &str| members.get(name)?.as_str().map(str::to_owned);
    let about =
        text(members, key).filter(|about| (1..=512).contains(&about.len()) && !about.chars().any(char::is_control))?;
    let role = text(members, "role")?.parse().ok()?;
    let models = match members.get("models") {
        None => Models::All,
        Some(list) => {
            let texts: Vec<&str> =
                list.as_list().filter(|items| !items.is_empty())?.iter().map(Value::as_str).collect::<Option<_>>()?;
            Models::of(texts).ok()?
        }
    };
    Some((about, Grant { role, models }))
}
