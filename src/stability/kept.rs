//! The results, and their file: a restart within the hour does not forget that a version gave other answers. The file has numbers alone: a request id and
//! what was answered may be about a person, whom `sluicegate forget` could not find there.

use super::{Checked, Ran};
use crate::machine::durable;
use crate::model::{ModelName, Version};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

/// The file in the data directory, and the most bytes of it that are read: a result has about 500.
const FILE: &str = "reproduced.json";
const MAX_BYTES: u64 = 16 << 20;

/// The results of a version.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Kept {
    pub(super) last: Checked,
    /// The last one in which something was run: what is known, where the newest says nothing, as without requests in the last hour.
    pub(super) judged: Option<Checked>,
}

pub(super) type Results = BTreeMap<(ModelName, Version), Kept>;

/// A version in the file.
#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    model: ModelName,
    version: Version,
    last: StoredCheck,
    judged: Option<StoredCheck>,
}

#[derive(Debug, Serialize, Deserialize)]
struct StoredCheck {
    at: Timestamp,
    ran: Result<Ran, String>,
}

impl Kept {
    /// After another sample.
    pub(super) fn next(before: Option<&Kept>, last: Checked) -> Kept {
        let says = last.ran.as_ref().is_ok_and(|ran| ran.equal + ran.close + ran.different > 0);
        let judged = if says { Some(last.clone()) } else { before.and_then(|before| before.judged.clone()) };
        Kept { last, judged }
    }
}

/// What was written before. Without the file there is nothing yet.
pub(super) fn read(data: &Path) -> Results {
    let path = data.join(FILE);
    let length = fs::metadata(&path).map_or(0, |file| file.len());
    if length == 0 || length > MAX_BYTES {
        return Results::new();
    }
    let stored = fs::read(&path).map_err(|e| e.to_string());
    let stored = stored.and_then(|bytes| serde_json::from_slice(&bytes).map_err(|e| e.to_string()));
    let stored: Vec<Stored> = stored.unwrap_or_else(|error| {
        tracing::warn!(error, "the results of predictions that were run again cannot be read; they begin anew");
        Vec::new()
    });
    let check = |StoredCheck { at, ran }: StoredCheck| Checked { at, ran };
    let kept = |Stored { model, version, last, judged }: Stored| {
        ((model, version), Kept { last: check(last), judged: judged.map(check) })
    };
    stored.into_iter().map(kept).collect()
}

/// Writes all results, or says that a restart would lose them.
pub(super) fn write(data: &Path, results: &Results) {
    let numbers = |ran: &Ran| Ran { first_different: None, words: None, why_not_run: None, ..ran.clone() };
    let check =
        |Checked { at, ran }: &Checked| StoredCheck { at: *at, ran: ran.as_ref().map(numbers).map_err(Clone::clone) };
    let stored: Vec<Stored> = results
        .iter()
        .map(|((model, version), kept)| Stored {
            model: model.clone(),
            version: *version,
            last: check(&kept.last),
            judged: kept.judged.as_ref().map(check),
        })
        .collect();
    let bytes = serde_json::to_vec(&stored).map_err(io::Error::other);
    if let Err(error) = bytes.and_then(|bytes| durable::write_atomically(&data.join(FILE), &bytes)) {
        tracing::warn!(%error, "the results of predictions that were run again cannot be written; a restart would lose them");
    }
}
