//! `sluicegate fleet import-state` and `fleet join --seed`: the state of a fleet, and the ledger of one gateway.

use super::commands::{Failed, keep_files_private_in};
use crate::cli::{self, FleetCommand};
use crate::config::{self, Config, Overrides};
use crate::fleet::{FleetState, Seeded, seed};
use crate::ledger::{
    self, Action, LedgerError, LedgerReader, LedgerWriter, Replaced, SharedModel, TokenChange, TokenEffect,
};
use crate::model::ModelName;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The actor of changes that this program makes to a data directory without a server.
const OFFLINE: &str = "local";

/// The largest file with a state, in bytes.
const LARGEST: u64 = 1 << 30;

/// Runs one of these commands.
#[must_use]
pub fn fleet_command(command: &FleetCommand, json: bool) -> ExitCode {
    let done = match command {
        FleetCommand::ImportState { file, data_dir } => import(file, data_dir),
        FleetCommand::Join { seed: _, config, data_dir, fleet } => {
            let overrides = Overrides { data_dir: data_dir.clone(), fleet: fleet.clone(), ..Overrides::default() };
            join(config.as_deref(), &overrides)
        }
        FleetCommand::ExportState { .. } => Err(Failed::Usage("a server exports its fleet's state".to_owned())),
    };
    match done {
        Ok((answer, text)) => {
            let text = if json { format!("{answer:#}\n") } else { text };
            // Fails when it cannot be written anywhere; the exit code says the rest.
            let _ = cli::print(&text, json);
            ExitCode::SUCCESS
        }
        Err(failed) => failed.report(),
    }
}

/// The answer as JSON and as text.
type Done = Result<(Value, String), Failed>;

fn import(file: &Path, dir: &Path) -> Done {
    let at_file = |why: String| Failed::Done(format!("{}: {why}", file.display()));
    let mut bytes = Vec::new();
    let opened = File::open(file).and_then(|file| file.take(LARGEST + 1).read_to_end(&mut bytes));
    opened.map_err(|error| at_file(format!("cannot be read: {error}")))?;
    if bytes.len() as u64 > LARGEST {
        return Err(at_file(format!("it has more than {LARGEST} bytes, the most that a state has")));
    }
    // All of it is checked before anything is changed.
    let state = FleetState::read(&bytes).map_err(|why| at_file(format!("it is not the state of a fleet: {why}")))?;
    if !dir.is_dir() {
        return Err(Failed::Done(format!(
            "there is no data directory {}; for a new gateway create it first",
            dir.display()
        )));
    }
    let (mut writer, _) = open(dir)?;
    let reason = format!("the state of the fleet {} at {}", state.fleet, state.at);
    let stored = writer.load().map_err(|error| failed(dir, &error))?;
    let stored: BTreeMap<ModelName, SharedModel> =
        stored.into_iter().map(|model| (model.model.clone(), SharedModel::of(&model))).collect();
    let (models, mut changed) = (state.models.len(), 0);
    for (model, next) in state.models {
        let local = stored.get(&model).cloned().unwrap_or_default();
        let next = next.with_missing(&local);
        if local.is_as(&next) {
            continue;
        }
        let (actor, action, reason) = (OFFLINE.to_owned(), Action::ImportState, Some(reason.clone()));
        let by = Replaced { model, actor, action, reason, made_by: None };
        writer.commit(local.replaced_by(next, by)).map_err(|error| failed(dir, &error))?;
        changed += 1;
    }
    let mut tokens = 0;
    for token in state.tokens.into_iter().flatten() {
        let effect = TokenEffect::Follow(Box::new(token));
        let change = TokenChange { actor: OFFLINE.to_owned(), reason: Some(reason.clone()), effect };
        tokens += usize::from(writer.commit_token(&change).map_err(|error| failed(dir, &error))?);
    }
    let answer = json!({"fleet": state.fleet, "models": models, "changed": changed, "tokens": tokens});
    let text = format!(
        "{} of the fleet {}: {changed} changed here, and {}; the files of versions come as on every gateway\n",
        counted(models, "model"),
        state.fleet,
        counted(tokens, "token")
    );
    Ok((answer, text))
}

fn join(file: Option<&Path>, overrides: &Overrides) -> Done {
    let default = Path::new(Config::DEFAULT_FILE);
    let file: Option<PathBuf> = file.map(Path::to_owned).or_else(|| default.exists().then(|| default.to_owned()));
    let config = Config::load(file.as_deref(), config::environment(), overrides)
        .map_err(|complaints| Failed::Usage(complaints.to_string()))?;
    if config.fleet.urls.is_empty() {
        let words = "the configuration names no fleet: set [fleet] urls, or --fleet nats://HOST:PORT";
        return Err(Failed::Usage(words.to_owned()));
    }
    let dir = &config.data.dir;
    if !dir.is_dir() {
        return Err(Failed::Done(format!("there is no data directory {}", dir.display())));
    }
    // It holds the lock of the directory until the end, so that no server changes anything meanwhile.
    let (writer, reader) = open(dir)?;
    let (models, tokens) = everything(&writer, &reader).map_err(|error| failed(dir, &error))?;
    let mut fleet = config.fleet.clone();
    if fleet.node.is_empty() {
        fleet.node = crate::fleet::Config::host();
    }
    let Seeded { models, tokens } = seed(&fleet, models, tokens).map_err(Failed::Done)?;
    let answer = json!({"fleet": fleet.name, "models": models, "tokens": tokens});
    let text = format!(
        "the fleet {} has {} and {} of {}; start its gateways with [fleet] urls\n",
        fleet.name,
        counted(models, "model"),
        counted(tokens, "token"),
        dir.display()
    );
    Ok((answer, text))
}

fn counted(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

type Everything = (Vec<(ModelName, SharedModel)>, Vec<ledger::StoredToken>);

/// What a fleet shares. A token that a server made for itself at its start stays its own.
fn everything(writer: &LedgerWriter, reader: &LedgerReader) -> Result<Everything, LedgerError> {
    let models = writer.load()?.into_iter().map(|stored| (stored.model.clone(), SharedModel::of(&stored)));
    let models = models.filter(|(_, state)| !state.is_empty()).collect();
    let tokens = reader.tokens()?.into_iter().filter(|token| token.created_by != "system").collect();
    Ok((models, tokens))
}

fn open(dir: &Path) -> Result<(LedgerWriter, LedgerReader), Failed> {
    keep_files_private_in(dir);
    ledger::open(dir).map_err(|error| match error {
        LedgerError::InUse { .. } => Failed::Done(format!("{error}; stop it first")),
        error => Failed::Done(error.to_string()),
    })
}

fn failed(dir: &Path, error: &LedgerError) -> Failed {
    Failed::Done(format!("cannot use the data directory {}: {error}", dir.display()))
}
