//! Makes a profile from a table or from the prediction log, in one pass and bounded memory.

use super::atomic_file::AtomicFile;
use super::error::Error;
use super::filter::Filter;
use super::options::no_predictions;
use super::profile_csv;
use super::profile_rows::Rows;
use super::records::Records;
use super::scan::{Budget, Progress, ScanOptions, scan};
use super::sources::Sources;
use crate::model::{ModelName, Version};
use crate::prepare::{Loader, ModelDirs, load_offline};
use crate::profile::Profile;
use jiff::Timestamp;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use std::fs::File;
use std::io::Write as _;
use std::ops::ControlFlow;
use std::path::Path;

/// What to make a profile of.
#[derive(Debug)]
pub enum ProfileSource<'a> {
    /// A Parquet or CSV file with one row per example.
    Table(&'a Path),
    /// Answered rows of the prediction log. The filter names one version.
    Log { data: Records<'a>, model: &'a ModelName, filter: Filter },
}

/// The version whose columns a profile is to describe.
#[derive(Debug, Clone, Copy)]
pub struct ProfiledVersion<'a> {
    pub models: &'a ModelDirs,
    pub model: &'a ModelName,
    pub version: Version,
}

/// What was written.
#[derive(Debug, Clone, PartialEq)]
pub struct Profiled {
    pub rows: u64,
    pub columns: usize,
    /// Whole rows that explanations can be made against.
    pub sampled: usize,
    pub bytes: u64,
    /// Columns that were left out, and columns that the version does not have, in words.
    pub notes: Vec<String>,
}

/// Writes a `profile.json`, complete or not at all. `sample`: how many whole rows are kept in it.
///
/// # Errors
/// When there are no rows, or something cannot be read or written.
pub fn profile(
    source: &ProfileSource,
    check: Option<ProfiledVersion>,
    sample: usize,
    engines: &dyn Loader,
    to: &Path,
    progress: Progress,
) -> Result<Profiled, Error> {
    // The file is created first, so that a wrong path fails before anything is read.
    let mut file = AtomicFile::create(to)?;
    let version = match check {
        None => None,
        Some(ProfiledVersion { models, model, version }) => {
            let loaded = load_offline(engines, &models.version(model, version)).map_err(Error::Failed)?;
            Some((loaded.runner.signature().clone(), loaded.features))
        }
    };
    let mut rows = Rows::new(version.as_ref(), sample);
    let (from, to_time) = match source {
        ProfileSource::Table(path) => {
            read_table(path, &mut rows, progress)?;
            (None, None)
        }
        ProfileSource::Log { data, model, filter } => {
            read_log(*data, model, filter, &mut rows, progress)?;
            rows.times()
        }
    };
    let name = match source {
        ProfileSource::Table(path) => path.file_name().map(|name| name.to_string_lossy().into_owned()),
        ProfileSource::Log { model, .. } => Some(format!("the prediction log of {model}")),
    };
    let (count, columns, sample, mut notes) = rows.finish();
    if count == 0 || columns.is_empty() {
        return Err(Error::Failed("there are no rows with columns to make a profile of".to_owned()));
    }
    let profile = Profile {
        format: if sample.is_some() { Profile::FORMAT_WITH_SAMPLE } else { Profile::FORMAT },
        rows: count,
        from: from.and_then(|ts| Timestamp::from_microsecond(ts).ok()),
        to: to_time.and_then(|ts| Timestamp::from_microsecond(ts).ok()),
        source: name,
        metrics: std::collections::BTreeMap::new(),
        columns,
        sample,
    };
    if let Some((signature, names)) = &version {
        let bound = profile.bind(signature, names);
        notes.extend(bound.complaints);
        if bound.columns.is_empty() {
            return Err(Error::Failed(format!("no column is one of the version: {}", notes.join("; "))));
        }
    }
    let sampled = profile.sample.as_ref().map_or(0, |sample| sample.rows.len());
    let text = profile.to_json();
    let limit = Profile::MAX_BYTES;
    if text.len() as u64 > limit {
        return Err(Error::Failed(format!("the profile would have {} bytes, more than {limit}", text.len())));
    }
    file.write_all(text.as_bytes()).map_err(|e| Error::at("write", to, e))?;
    Ok(Profiled { rows: count, columns: profile.columns.len(), sampled, bytes: file.finish()?, notes })
}

fn read_table(path: &Path, rows: &mut Rows, progress: Progress) -> Result<(), Error> {
    let extension = path.extension().map(|extension| extension.to_string_lossy().to_ascii_lowercase());
    match extension.as_deref() {
        Some("csv") => profile_csv::read(path, rows, progress),
        Some("parquet") => {
            let file = File::open(path).map_err(|e| Error::at("read", path, e))?;
            let wrong = |e: &dyn std::fmt::Display| Error::at("read", path, e);
            let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| wrong(&e))?;
            let total = usize::try_from(builder.metadata().file_metadata().num_rows()).unwrap_or_default();
            let mut done = 0;
            for batch in builder.with_batch_size(1024).build().map_err(|e| wrong(&e))? {
                let batch = batch.map_err(|e| wrong(&e))?;
                progress("reading rows", done, total);
                rows.add(&batch);
                done += batch.num_rows();
            }
            Ok(())
        }
        _ => Err(Error::Usage(format!("{}: expected a file named *.parquet or *.csv", path.display()))),
    }
}

fn read_log(
    data: Records,
    model: &ModelName,
    filter: &Filter,
    rows: &mut Rows,
    progress: Progress,
) -> Result<(), Error> {
    let sources = Sources::open(data, model, filter)?;
    if sources.rows() == 0 {
        return Err(no_predictions(data, model));
    }
    let options = ScanOptions { filter, join_feedback: false, budget: Budget::default(), first_chunk: None, progress };
    scan(&sources, &options, &mut |scanned| {
        let about = &scanned.source.about;
        let hidden = about.hashed.iter().chain(&about.dropped).cloned().chain(about.masked().map(str::to_owned));
        rows.hide(hidden);
        rows.add(&scanned.batch);
        Ok(ControlFlow::Continue(()))
    })
}
