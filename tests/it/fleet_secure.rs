//! A fleet over NATS with TLS and credentials: a user's JWT and nkey seed, made here as `nsc` makes them.

use crate::fleet::{Nats, install, wait_for_nodes, wait_for_version, warnings};
use crate::support::tls::Certificates;
use crate::support::{Gateway, eventually};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nkeys::KeyPair;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A JWT as NATS has it, signed by `issuer`.
fn jwt(issuer: &KeyPair, subject: &KeyPair, name: &str, claims: &Value) -> String {
    let header = json!({"typ": "JWT", "alg": "ed25519-nkey"});
    let body = json!({"jti": name, "iat": 1_700_000_000, "iss": issuer.public_key(), "name": name, "sub": subject.public_key(), "nats": claims});
    let signed = [header, body].map(|part| URL_SAFE_NO_PAD.encode(part.to_string())).join(".");
    let signature = issuer.sign(signed.as_bytes()).unwrap();
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// The operator of a NATS server and an account, which can make users.
struct Authority {
    operator: KeyPair,
    account: KeyPair,
}

impl Authority {
    fn new() -> Authority {
        Authority { operator: KeyPair::new_operator(), account: KeyPair::new_account() }
    }

    /// What the configuration of a server needs to know its users.
    fn config(&self) -> String {
        let operator = jwt(&self.operator, &self.operator, "operator", &json!({"type": "operator", "version": 2}));
        let account = |key: &KeyPair, jetstream: i64| {
            let limits = json!({"subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1,
                "mem_storage": jetstream, "disk_storage": jetstream, "streams": jetstream, "consumer": jetstream});
            let claims = json!({"type": "account", "version": 2, "limits": limits, "default_permissions": {"pub": {}, "sub": {}}});
            jwt(&self.operator, key, "account", &claims)
        };
        let system = KeyPair::new_account();
        format!(
            "operator: {operator}\nsystem_account: {system_key}\nresolver: MEMORY\nresolver_preload: {{\n  {system_key}: {}\n  {}: {}\n}}\n",
            account(&system, 0),
            self.account.public_key(),
            account(&self.account, -1),
            system_key = system.public_key(),
        )
    }

    /// Writes a credentials file of a new user.
    fn user(&self, file: &Path) {
        let user = KeyPair::new_user();
        let claims = json!({"type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1, "pub": {}, "sub": {}});
        let text = format!(
            "-----BEGIN NATS USER JWT-----\n{}\n------END NATS USER JWT------\n\n-----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
            jwt(&self.account, &user, "gateway", &claims),
            user.seed().unwrap()
        );
        std::fs::write(file, text).unwrap();
    }
}

/// A gateway without models, which is ready whether it joins or not.
fn empty(config: &str) -> Gateway {
    let dir = TempDir::new().unwrap();
    std::fs::create_dir(dir.path().join("models")).unwrap();
    Gateway::start_in(dir, config)
}

#[test]
fn a_fleet_with_tls_and_credentials_and_what_is_said_where_they_are_wrong() {
    let dir = TempDir::new().unwrap();
    let (certificates, authority) = (Certificates::make(dir.path()), Authority::new());
    let file = dir.path().join("nats.conf");
    let tls = format!(
        "tls {{ cert_file: {:?}, key_file: {:?} }}\n",
        certificates.path("server.crt"),
        certificates.path("server.key")
    );
    std::fs::write(&file, authority.config() + &tls).unwrap();
    let Some(nats) = Nats::start_with(&["-c", file.to_str().unwrap()]) else { return };
    let creds = |name: &str| -> PathBuf { dir.path().join(name) };
    authority.user(&creds("good.creds"));
    Authority::new().user(&creds("foreign.creds"));
    std::fs::write(creds("empty.creds"), "").unwrap();
    let config = |node: &str, ca: &str, credentials: &str| {
        let mut config =
            format!("[fleet]\nurls = [\"tls://localhost:{}\"]\nname = \"shop\"\nnode = \"{node}\"\n", nats.port);
        for (key, path) in [("ca", ca), ("credentials", credentials)] {
            if !path.is_empty() {
                writeln!(config, "{key} = {:?}", dir.path().join(path)).unwrap();
            }
        }
        config
    };
    let good = |node: &str| config(node, "tls/server.crt", "good.creds");
    let start = |node: &str| Gateway::start_with(&good(node), |models| [1, 2].iter().for_each(|v| install(models, *v)));
    let (a, b) = (start("a"), start("b"));
    wait_for_nodes(&a, &["a", "b"]);
    eventually("version 1 is promoted", || (a.promote("m", 1).status == 200).then_some(()));
    wait_for_version(&[&a, &b], "1");

    for (ca, credentials, words) in [
        ("tls/server.crt", "foreign.creds", "NATS refuses the credentials of this gateway ([fleet] credentials)"),
        ("tls/server.crt", "", "NATS refuses the credentials of this gateway ([fleet] credentials)"),
        ("tls/server.crt", "empty.creds", "empty.creds is not a credentials file of NATS"),
        ("tls/server.crt", "missing.creds", "missing.creds cannot be read"),
        ("", "good.creds", "no TLS connection with NATS ([fleet] ca)"),
        ("tls/client-ca.crt", "good.creds", "no TLS connection with NATS ([fleet] ca)"),
        ("good.creds", "good.creds", "no TLS connection with NATS ([fleet] ca)"),
    ] {
        let other = empty(&config("c", ca, credentials));
        let mut last = String::new();
        eventually(&format!("{ca:?} and {credentials:?}: {words}"), || {
            last = warnings(&other);
            let seed = std::fs::read_to_string(creds("good.creds")).unwrap();
            let seed = seed.lines().find(|line| line.starts_with("SU")).unwrap();
            assert!(!last.contains(seed), "no secret is shown");
            (last.contains(words) && last.contains("degraded")).then_some(())
        });
    }
    // Certificates and credentials are replaced while the gateway runs: the next connection uses them.
    let late = empty(&config("late", "tls/server.crt", "late.creds"));
    eventually("it has no credentials", || warnings(&late).contains("late.creds cannot be read").then_some(()));
    authority.user(&creds("late.creds"));
    eventually("it follows", || (!warnings(&late).contains("degraded")).then_some(()));
}
