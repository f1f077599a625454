//! `sluicegate forget`: removes the records of a person from the prediction log of a stopped server.

use super::commands::{Failed, keep_files_private_in};
use crate::cli::ForgetOptions;
use crate::ledger::{self, Action, LedgerError, Note};
use crate::model::ModelName;
use crate::record::{Forgotten, Subject, forget as remove};
use serde_json::json;
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;

/// Removes the records and writes into the audit trail that it was done, and not whose they were.
#[must_use]
pub fn forget(options: &ForgetOptions, json: bool) -> ExitCode {
    match run(options) {
        Ok(forgotten) => {
            let text =
                if json { format!("{:#}\n", as_json(options, &forgotten)) } else { as_text(options, &forgotten) };
            // Fails when the reader has closed the pipe.
            let _ = std::io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Err(failed) => failed.report(),
    }
}

fn run(options: &ForgetOptions) -> Result<Forgotten, Failed> {
    let data = &options.data_dir;
    let model: Option<ModelName> = options
        .model
        .as_deref()
        .map(|model| model.parse().map_err(|e| Failed::Usage(format!("--model {model:?}: {e}"))))
        .transpose()?;
    let subject = match (&options.route_key, &options.request_id) {
        (Some(key), _) => Subject::RouteKey(key.clone()),
        (None, Some(id)) => Subject::RequestId(id.clone()),
        (None, None) => return Err(Failed::Usage("--route-key or --request-id is required".to_owned())),
    };
    if !data.is_dir() {
        return Err(Failed::Done(format!("there is no data directory {}", data.display())));
    }
    keep_files_private_in(data);
    // The writer holds the lock of the directory until the end, so that no server starts meanwhile.
    let (mut writer, _reader) = ledger::open(data).map_err(|error| match error {
        LedgerError::InUse { .. } => {
            format!("{error}; stop it first: a server holds records in memory and in open files")
        }
        error => error.to_string(),
    })?;
    let forgotten =
        remove(data, options.hash_key_file.as_deref(), model.as_ref(), &subject).map_err(|e| e.to_string())?;
    let note = Note {
        model,
        actor: "local".to_owned(),
        action: Action::Forget,
        reason: Some(options.reason.clone()),
        before: None,
        after: Some(as_json(options, &forgotten).to_string()),
    };
    writer.note(note).map_err(|error| {
        format!("the records were removed, but the audit trail could not store that: {error}; run the command again")
    })?;
    Ok(forgotten)
}

/// What was done, without the key and the id.
fn as_json(options: &ForgetOptions, forgotten: &Forgotten) -> serde_json::Value {
    let Forgotten { predictions, feedback, files, models } = forgotten;
    let by = if options.route_key.is_some() { "route_key" } else { "request_id" };
    json!({ "by": by, "predictions": predictions, "feedback": feedback, "files": files, "models": models })
}

fn as_text(options: &ForgetOptions, forgotten: &Forgotten) -> String {
    let Forgotten { predictions, feedback, files, models } = forgotten;
    let models = models.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let of = if models.is_empty() { String::new() } else { format!(" of {models}") };
    let mut text =
        format!("removed {predictions} records of predictions and {feedback} of feedback{of}, in {files} files\n");
    let crashes = std::fs::read_dir(options.data_dir.join("crashes")).map_or(0, Iterator::count);
    if crashes > 0 {
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{crashes} files in {} were written after crashes and may hold requests as they came: look at them",
            options.data_dir.join("crashes").display()
        );
    }
    text
}
