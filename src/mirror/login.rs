//! The logins of registries, as Docker and Podman keep them: in a file, or with a program (a credential helper).

use super::registry::Login;
use crate::bucket::{program, variable};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::Value;
use std::path::Path;
use std::time::Duration;

/// The name under which Docker keeps the login of its own registry.
const HUB: &str = "https://index.docker.io/v1/";
/// What a helper prints that knows no login for a registry.
const NO_LOGIN: &str = "credentials not found";
/// The user of a login that is a token of another kind, which would have to be exchanged.
const TOKEN_USER: &str = "<token>";

/// From the variables of the environment, else from the configuration of Docker and Podman. `None` where no login is kept for the registry.
///
/// # Errors
/// When a credential helper is named that gives no answer within this time, in words.
pub(super) fn of_environment(registry: &str, within: Duration) -> Result<Option<Login>, String> {
    if let (Some(user), Some(password)) = (variable("SLUICEGATE_OCI_USERNAME"), variable("SLUICEGATE_OCI_PASSWORD")) {
        return Ok(Some(Login { user, password }));
    }
    let dir = variable("DOCKER_CONFIG").or_else(|| variable("HOME").map(|home| home + "/.docker"));
    let text = dir.and_then(|dir| std::fs::read_to_string(Path::new(&dir).join("config.json")).ok());
    // Without a file that can be read there is no login.
    let Some(config) = text.and_then(|text| serde_json::from_str::<Value>(&text).ok()) else { return Ok(None) };
    match helper(&config, registry) {
        Some(helper) => ask(helper, registry, within),
        None => Ok(kept(&config, registry)),
    }
}

/// The helper that knows the login: that of the registry, else the one for all.
fn helper<'c>(config: &'c Value, registry: &str) -> Option<&'c str> {
    let named = names(registry).find_map(|name| config["credHelpers"][name.as_str()].as_str());
    named.or_else(|| config["credsStore"].as_str()).filter(|name| !name.is_empty())
}

/// The login in the file itself.
fn kept(config: &Value, registry: &str) -> Option<Login> {
    let auths = config["auths"].as_object()?;
    let auth = names(registry).filter_map(|name| auths.get(&name)).find_map(|login| login["auth"].as_str())?;
    let both = String::from_utf8(STANDARD.decode(auth).ok()?).ok()?;
    let (user, password) = both.split_once(':')?;
    Some(Login { user: user.to_owned(), password: password.to_owned() })
}

/// The names that a registry may have in the file.
fn names(registry: &str) -> impl Iterator<Item = String> + use<'_> {
    let names = [registry.to_owned(), format!("https://{registry}")];
    names.into_iter().chain((registry == "docker.io").then(|| HUB.to_owned()))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Printed {
    username: String,
    secret: String,
}

/// Asks a credential helper (the protocol of `docker-credential-helpers`): the command `get`, with the name of the registry on standard input.
fn ask(helper: &str, registry: &str, within: Duration) -> Result<Option<Login>, String> {
    let is_name = helper.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    if !is_name {
        let helper: String = helper.chars().take(80).collect();
        return Err(format!(
            "the configuration of Docker names the credential helper {helper:?}: expected letters, digits, '-', '_' and '.'"
        ));
    }
    let program = format!("docker-credential-{helper}");
    let name = if registry == "docker.io" { HUB } else { registry };
    let printed = match program::ask(&[&program, "get"], name.as_bytes(), within) {
        Ok(printed) => printed,
        Err(refused) if String::from_utf8_lossy(&refused.printed).contains(NO_LOGIN) => return Ok(None),
        Err(refused) => return Err(refused.words),
    };
    let Printed { username: user, secret: password } = serde_json::from_slice(&printed)
        .map_err(|_| format!("the program {program} printed no login; expected JSON with Username and Secret"))?;
    if user == TOKEN_USER {
        return Err(format!(
            "the program {program} has an identity token for {registry}, which cannot be used here; expected a user and a password"
        ));
    }
    Ok(Some(Login { user, password }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn user(name: &str) -> Login {
        Login { user: name.to_owned(), password: "secret".to_owned() }
    }

    #[test]
    fn logins_in_the_file_of_docker_are_read() {
        let config = json!({"auths": {"r.example:5000": {"auth": STANDARD.encode("user:secret")}, "https://x": {"auth": "!"},
            HUB: {"auth": STANDARD.encode("hub:secret")}}});
        assert_eq!(kept(&config, "r.example:5000"), Some(user("user")));
        assert_eq!(kept(&config, "docker.io"), Some(user("hub")));
        assert!(!format!("{:?}", user("user")).contains("secret"));
        for (config, registry) in
            [(&config, "x"), (&config, "other"), (&json!(null), "x"), (&json!({"auths": []}), "x")]
        {
            assert_eq!(kept(config, registry), None, "{registry}");
        }
    }

    #[test]
    fn a_helper_for_one_registry_comes_before_that_for_all() {
        let config = json!({"credsStore": "all", "credHelpers": {"r.example": "one", HUB: "hub"}});
        let of = |registry: &str| helper(&config, registry);
        assert_eq!([of("r.example"), of("docker.io"), of("other")], [Some("one"), Some("hub"), Some("all")]);
        for without in [json!({}), json!({"credsStore": ""}), json!({"credsStore": 1, "credHelpers": ["x"]}), json!([])]
        {
            assert_eq!(helper(&without, "r.example"), None, "{without}");
        }
    }

    #[test]
    fn helpers_that_are_no_names_or_not_there_are_told() {
        for name in ["../sh", "a b", "x;y", "ü"] {
            let error = ask(name, "r.example", Duration::from_mins(1)).unwrap_err();
            assert!(error.contains("expected letters"), "{error}");
        }
        let error = ask("no-such-helper", "r.example", Duration::from_mins(1)).unwrap_err();
        assert_eq!(error, "the program docker-credential-no-such-helper cannot be started: it is not installed");
    }
}
