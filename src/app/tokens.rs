//! Tokens in the data directory: the commands on a stopped server, and the first token.

use super::commands::{Failed, keep_files_private_in};
use crate::access::{self, Grant, Models, NewToken, Role, TokenFacts, is_token_name};
use crate::cli::{self, TokenCommand, token_table};
use crate::ledger::{self, LedgerError, LedgerWriter, TokenChange, TokenEffect, rfc3339};
use crate::settings::parse_duration;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

/// The actor of changes that this program makes to a data directory without a server.
const OFFLINE: &str = "local";

/// Makes, lists or revokes tokens in the data directory of a stopped server.
#[must_use]
pub fn token(command: &TokenCommand, dir: &Path, json: bool) -> ExitCode {
    match run(command, dir, json) {
        Ok(text) => {
            // Fails when it cannot be written anywhere; the exit code says the rest.
            let _ = cli::print(&text, json);
            ExitCode::SUCCESS
        }
        Err(failed) => failed.report(),
    }
}

fn run(command: &TokenCommand, dir: &Path, json: bool) -> Result<String, Failed> {
    match command {
        TokenCommand::Create { name, role, models, expires, data_dir: _ } => {
            let token = new_token(name, role, models, expires.as_deref()).map_err(Failed::Usage)?;
            let (mut writer, _) = open(dir)?;
            let (secret, facts) =
                create(&mut writer, token, OFFLINE).map_err(|e| stored(dir, &e))?.ok_or_else(|| {
                    Failed::Done(format!(
                        "there is a token named {name} already; revoke it first, or choose another name"
                    ))
                })?;
            let mut answer = facts.map_or(Value::Null, |facts| view(&facts));
            answer["token"] = secret.clone().into();
            Ok(if json { format!("{answer:#}\n") } else { format!("{secret}\n") })
        }
        TokenCommand::Generate => {
            let secret = access::generate_token().map_err(|e| Failed::Done(format!("cannot make a token: {e}")))?;
            Ok(if json { format!("{:#}\n", json!({"token": secret})) } else { format!("{secret}\n") })
        }
        TokenCommand::List { data_dir: _ } => {
            let (_, reader) = open(dir)?;
            let tokens = reader.tokens().map_err(|e| stored(dir, &e))?;
            let tokens: Vec<Value> = tokens.iter().filter_map(TokenFacts::of).map(|facts| view(&facts)).collect();
            let answer = json!({"tokens": tokens});
            Ok(if json { format!("{answer:#}\n") } else { token_table(&answer) })
        }
        TokenCommand::Revoke { name, data_dir: _ } => {
            let (mut writer, _) = open(dir)?;
            let effect = TokenEffect::Revoke { name: name.clone() };
            let change = TokenChange { actor: OFFLINE.to_owned(), reason: None, effect };
            match writer.commit_token(&change) {
                Ok(true) if json => Ok(format!("{:#}\n", json!({"name": name, "revoked": true}))),
                Ok(true) => Ok(format!("the token {name} is revoked\n")),
                Ok(false) => Err(Failed::Done(format!("no token is named {name:?}"))),
                Err(error) => Err(stored(dir, &error)),
            }
        }
    }
}

fn open(dir: &Path) -> Result<(LedgerWriter, ledger::LedgerReader), Failed> {
    keep_files_private_in(dir);
    ledger::open(dir).map_err(|error| match error {
        LedgerError::InUse { .. } => {
            Failed::Done(format!("{error}; leave out --data-dir to ask that server, or stop it first"))
        }
        error => Failed::Done(error.to_string()),
    })
}

fn stored(dir: &Path, error: &LedgerError) -> Failed {
    Failed::Done(format!("cannot use the data directory {}: {error}", dir.display()))
}

fn new_token(name: &str, role: &str, models: &[String], expires: Option<&str>) -> Result<NewToken, String> {
    if !is_token_name(name) {
        return Err(format!(
            "--name {name:?}: expected 1 to 64 letters, digits, `.`, `_`, `-`, `@` and `+`, but not local or system"
        ));
    }
    let role: Role = role.parse().map_err(|e| format!("--role: {e}"))?;
    let models = Models::of(models.iter().map(String::as_str)).map_err(|e| format!("--models: {e}"))?;
    let expires_at = match expires {
        None => None,
        Some(text) => {
            let time = parse_duration(text).filter(|time| !time.is_zero());
            let at = time.and_then(|time| Timestamp::now().checked_add(time).ok());
            Some(at.ok_or_else(|| format!("--expires {text:?}: expected a time such as 90d or 12h"))?)
        }
    };
    Ok(NewToken { name: name.to_owned(), grant: Grant { role, models }, expires_at, created_by: OFFLINE.to_owned() })
}

/// Stores a new token. `None` when its name is taken.
type Created = Option<(String, Option<TokenFacts>)>;

fn create(writer: &mut LedgerWriter, token: NewToken, actor: &str) -> Result<Created, LedgerError> {
    let file = |source| LedgerError::Directory { dir: "/dev/urandom".into(), source };
    let (secret, stored) = token.make().map_err(file)?;
    let facts = TokenFacts::of(&stored);
    let effect = TokenEffect::Create(Box::new(stored));
    let change = TokenChange { actor: actor.to_owned(), reason: None, effect };
    Ok(writer.commit_token(&change)?.then_some((secret, facts)))
}

/// A token in the form of the admin API.
fn view(facts: &TokenFacts) -> Value {
    json!({
        "name": facts.name,
        "role": facts.role.as_str(),
        "models": facts.models.texts(),
        "created_at": rfc3339(facts.created_at),
        "created_by": facts.created_by,
        "expires_at": facts.expires_at.map(rfc3339),
        "expired": facts.is_expired(Timestamp::now()),
        "last_used": facts.last_used.map(rfc3339),
    })
}

/// Makes a token for an admin and prints it to standard output, alone on its line. The log, which others may read, gets only its name.
///
/// # Errors
/// When it cannot be stored.
pub(super) fn print_first_token(writer: &mut LedgerWriter) -> Result<(), LedgerError> {
    let nth_name = |n: u32| if n == 0 { "first-admin".to_owned() } else { format!("first-admin-{n}") };
    // An earlier first token may have expired, or be limited to some models.
    for name in (0..100).map(nth_name) {
        let grant = Grant { role: Role::Admin, models: Models::All };
        let token = NewToken { name: name.clone(), grant, expires_at: None, created_by: "system".to_owned() };
        if let Some((secret, _)) = create(writer, token, "system")? {
            match writeln!(std::io::stdout(), "{secret}") {
                Ok(()) => tracing::info!(token = name, "made the first token for an admin; it is on standard output"),
                Err(error) => tracing::error!(
                    token = name,
                    %error,
                    "made the first token for an admin, and it cannot be printed: revoke it and make another one"
                ),
            }
            return Ok(());
        }
    }
    Ok(())
}
