//! The options and the result of an export.

use super::error::Error;
use super::filter::Filter;
use super::records::{Records, models_in_bucket};
use super::scan::Budget;
use super::sources;
use crate::model::ModelName;
use std::collections::BTreeMap;
use std::path::Path;

/// The format of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Parquet,
    Csv,
    /// Answered requests as a `golden.json` of the models directory.
    Golden,
    /// Requests as a `warmup.json`.
    Warmup,
}

/// What to export, and where to.
#[derive(Debug, Clone)]
pub struct Export<'a> {
    pub model: &'a ModelName,
    pub data: Records<'a>,
    pub filter: Filter,
    pub require_label: bool,
    pub format: Format,
    /// Limit for the rows of a table, the cases of a golden file or the requests of a warm-up. Golden files and warm-ups have a default
    /// limit.
    pub limit: Option<usize>,
    pub to: &'a Path,
    pub budget: Budget,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Exported {
    /// Rows, cases or requests.
    pub rows: usize,
    /// Rows with a label, for a table.
    pub labelled: usize,
    /// Requests that were skipped, by reason.
    pub left_out: BTreeMap<&'static str, usize>,
    pub bytes: u64,
    /// Sealed files that retention deleted before they were opened.
    pub deleted_files: usize,
}

impl Format {
    pub const ALL: [Format; 4] = [Format::Parquet, Format::Csv, Format::Golden, Format::Warmup];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Format::Parquet => "parquet",
            Format::Csv => "csv",
            Format::Golden => "golden",
            Format::Warmup => "warmup",
        }
    }

    /// The format that a file name implies.
    ///
    /// # Errors
    /// When the name implies none.
    pub fn of(path: &Path) -> Result<Format, Error> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        let extension = name.rsplit_once('.').map(|(_, extension)| extension);
        match (name.as_str(), extension) {
            ("golden.json", _) => Ok(Format::Golden),
            ("warmup.json", _) => Ok(Format::Warmup),
            (_, Some("parquet")) => Ok(Format::Parquet),
            (_, Some("csv")) => Ok(Format::Csv),
            _ => Err(Error::Usage(format!(
                "the name {} does not give a format: expected *.parquet, *.csv, golden.json or warmup.json; or use --format",
                path.display()
            ))),
        }
    }
}

/// The error for an export or a replay without any matching prediction.
pub(super) fn no_predictions(records: Records, model: &ModelName) -> Error {
    let known = match records {
        Records::Dir(data) => sources::models(data).unwrap_or_default().into_iter().collect(),
        Records::Bucket(prefix) => models_in_bucket(prefix),
    };
    let known: Vec<&str> = known.iter().map(ModelName::as_str).collect();
    let hint = match known.as_slice() {
        [] => "there are no sealed predictions of any model".to_owned(),
        known if known.contains(&model.as_str()) => "there are other predictions of this model".to_owned(),
        // Their names may be none of the caller's business: a server runs this for operators of some models.
        known => format!("there are predictions of {} other models", known.len()),
    };
    Error::Failed(format!("{records} has no matching predictions of {model}; {hint}"))
}
