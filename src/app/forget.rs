//! `sluicegate forget`: removes the records of a person from the prediction log of a stopped server.

use super::commands::{Failed, keep_files_private_in};
use super::uploads;
use crate::bucket::Prefix;
use crate::cli::{self, ForgetOptions};
use crate::ledger::{self, Action, LedgerError, Note};
use crate::model::ModelName;
use crate::record::{Forgotten, Removed, Subject, forget as remove};
use crate::upload::{Place, end_begun};
use serde_json::json;
use std::fmt::Write as _;
use std::process::ExitCode;
use std::sync::Arc;

/// Removes the records and writes into the audit trail that it was done, and not whose they were.
#[must_use]
pub fn forget(options: &ForgetOptions, json: bool) -> ExitCode {
    match run(options) {
        Ok(forgotten) => {
            let text =
                if json { format!("{:#}\n", as_json(options, &forgotten)) } else { as_text(options, &forgotten) };
            // Fails when it cannot be written anywhere; the exit code says the rest.
            let _ = cli::print(&text, json);
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
    let bucket = bucket(options)?;
    let forgotten = remove(data, options.hash_key_file.as_deref(), model.as_ref(), &subject, bucket.as_ref());
    let forgotten = forgotten.map_err(|e| e.to_string())?;
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

/// The bucket that the data directory was uploaded to. What an upload had begun there is ended.
fn bucket(options: &ForgetOptions) -> Result<Option<Arc<Prefix>>, Failed> {
    if options.local_only {
        return Ok(None);
    }
    let Some(place) = Place::find(&options.data_dir).map_err(|e| e.to_string())? else { return Ok(None) };
    let failed = |error: std::io::Error| {
        format!("{error}; nothing was changed (--local-only leaves the bucket alone, and what is there stays)")
    };
    let prefix = uploads::bucket(&place.to, options.log_instance_metadata).map_err(|e| e.to_string())?;
    prefix.dirs("predictions").map_err(failed)?;
    end_begun(&options.data_dir, &prefix).map_err(failed)?;
    Ok(Some(prefix))
}

/// What was done, without the key and the id.
fn as_json(options: &ForgetOptions, forgotten: &Forgotten) -> serde_json::Value {
    let Forgotten { predictions, feedback, files, models, uploaded } = forgotten;
    let by = if options.route_key.is_some() { "route_key" } else { "request_id" };
    let uploaded = uploaded.map(|Removed { predictions, feedback, files }| {
        json!({ "predictions": predictions, "feedback": feedback, "files": files })
    });
    json!({
        "by": by, "predictions": predictions, "feedback": feedback, "files": files, "models": models, "uploaded": uploaded,
    })
}

fn as_text(options: &ForgetOptions, forgotten: &Forgotten) -> String {
    let Forgotten { predictions, feedback, files, models, uploaded } = forgotten;
    let models = models.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let of = if models.is_empty() { String::new() } else { format!(" of {models}") };
    let mut text =
        format!("removed {predictions} records of predictions and {feedback} of feedback{of}, in {files} files\n");
    // Writing to a String cannot fail.
    if let Some(Removed { predictions, feedback, files }) = uploaded {
        let _ = writeln!(
            text,
            "in the bucket: removed {predictions} records of predictions and {feedback} of feedback, in {files} objects; \
             the data directories of other gateways were not looked at: run it on each"
        );
    } else if matches!(Place::find(&options.data_dir), Ok(Some(_))) {
        let _ = writeln!(text, "the bucket that this data directory is uploaded to was left alone");
    }
    let crashes = std::fs::read_dir(options.data_dir.join("crashes")).map_or(0, Iterator::count);
    if crashes > 0 {
        let _ = writeln!(
            text,
            "{crashes} files in {} were written after crashes and may hold requests as they came: look at them",
            options.data_dir.join("crashes").display()
        );
    }
    text
}
