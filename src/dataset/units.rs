//! The parts of a model's log in which it is searched, newest first: a segment that is not sealed yet, or the files that a segment became.
//!
//! Records are in the order in which they were written: a unit is searched whole, and what it holds is newer than what older units hold. Only one unit is
//! in memory at a time.

use super::error::Error;
use super::filter::Filter;
use super::sources::{NotRead, OpenError, SealedFile, Source, Stored, prediction_file, sealed_files};
use crate::model::ModelName;
use crate::record::{About, OpenSegment, PredictionView, open_segments};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The number of a segment. It orders segments by time, also after they were sealed.
pub(super) type Number = u64;

/// The log of one model, as it is at one moment.
#[derive(Debug)]
pub(super) struct Units {
    data: PathBuf,
    model: ModelName,
    /// By number, with the sealed files.
    all: BTreeMap<Number, Unit>,
}

#[derive(Debug, Default)]
struct Unit {
    is_open: bool,
    files: Vec<SealedFile>,
}

/// What is not in an answer, although it was in the log when that was listed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Missing {
    /// Files that retention deleted in the meantime.
    pub(super) deleted: usize,
    /// Files that are damaged.
    pub(super) not_read: NotRead,
}

/// Chooses predictions of an open segment.
pub(super) type Keep<'k> = &'k dyn Fn(&About, &PredictionView) -> bool;

impl Units {
    /// # Errors
    /// When there is no data directory, or it cannot be listed.
    pub(super) fn list(data: &Path, model: &ModelName) -> Result<Units, Error> {
        if !data.is_dir() {
            return Err(Error::Failed(format!("there is no data directory {}", data.display())));
        }
        let mut units: BTreeMap<Number, Unit> = BTreeMap::new();
        // Segments are listed before files. A segment that is sealed in between is found twice, and read once.
        for number in open_segments(data).map_err(|e| Error::at("list the segments in", &data.join("log"), e))? {
            units.entry(number).or_default().is_open = true;
        }
        for file in sealed_files(&data.join("predictions"), model, &BTreeSet::new())? {
            // A file with a name of its own is searched last.
            units.entry(file.segment.unwrap_or(0)).or_default().files.push(file);
        }
        Ok(Units { data: data.to_owned(), model: model.clone(), all: units })
    }

    /// Their numbers, the newest first.
    pub(super) fn newest_first(&self) -> impl Iterator<Item = Number> {
        self.all.keys().rev().copied()
    }

    /// The newest unit that is older than this one.
    pub(super) fn before(&self, number: Number) -> Option<Number> {
        self.all.range(..number).next_back().map(|(number, _)| *number)
    }

    /// The predictions of a unit that can match. `keep` chooses those of an open segment, which are copied: with `most` only about so many requests, the
    /// newest. Files that are gone or damaged are left out, and noted in `missing`.
    ///
    /// # Errors
    /// When a segment or a directory exists and cannot be read.
    pub(super) fn open(
        &self,
        number: Number,
        filter: &Filter,
        most: Option<usize>,
        keep: Keep,
        missing: &mut Missing,
    ) -> Result<Vec<Source>, Error> {
        let Some(unit) = self.all.get(&number) else { return Ok(Vec::new()) };
        if unit.is_open {
            if let Some(segment) = self.segment(number)? {
                let since = most.map_or(i64::MIN, |most| newest(&segment, &self.model, most, keep));
                let found = segment.predictions(&self.model, &mut |about, view| view.ts >= since && keep(about, view));
                let found = found.into_iter();
                let sources =
                    found.filter_map(|(about, batches)| Some(Source { about, stored: Stored::memory(batches)? }));
                return Ok(sources.collect());
            }
            // It was sealed after the listing.
            let files = sealed_files(&self.data.join("predictions"), &self.model, &BTreeSet::new())?;
            let files: Vec<SealedFile> = files.into_iter().filter(|file| file.segment == Some(number)).collect();
            return Ok(self.open_files(&files, filter, missing));
        }
        Ok(self.open_files(&unit.files, filter, missing))
    }

    fn open_files(&self, files: &[SealedFile], filter: &Filter, missing: &mut Missing) -> Vec<Source> {
        let mut sources = Vec::new();
        for file in files.iter().filter(|file| file.date.is_none_or(|date| filter.matches_date(date))) {
            match prediction_file(&*file.path, filter) {
                Ok(found) => sources.extend(found),
                Err(OpenError::Deleted) => missing.deleted += 1,
                Err(OpenError::Failed(error)) => missing.not_read.add(&self.data, &file.path, &error),
            }
        }
        sources
    }

    /// Goes on without a source that cannot be read, if it is a file: then it is noted in `missing`.
    ///
    /// # Errors
    /// The error itself where the records were in memory.
    pub(super) fn without(&self, stored: &Stored, error: Error, missing: &mut Missing) -> Result<(), Error> {
        let Some(path) = stored.path() else { return Err(stored.locate(error)) };
        if path.exists() {
            missing.not_read.add(&self.data, path, &error);
        } else {
            missing.deleted += 1;
        }
        Ok(())
    }

    /// An open segment. `None` where it was sealed or deleted in the meantime.
    ///
    /// # Errors
    /// When it exists and cannot be read.
    pub(super) fn segment(&self, number: Number) -> Result<Option<OpenSegment>, Error> {
        let failed = |e| Error::at("read the segments in", &self.data.join("log"), e);
        OpenSegment::read(&self.data, number).map_err(failed)
    }

    /// The numbers of the segments that were not sealed at the listing.
    pub(super) fn open_numbers(&self) -> impl Iterator<Item = Number> {
        self.all.iter().filter(|(_, unit)| unit.is_open).map(|(number, _)| *number)
    }
}

/// The time of the last of the `most` newest predictions that are kept.
fn newest(segment: &OpenSegment, model: &ModelName, most: usize, keep: Keep) -> i64 {
    let mut times = Vec::new();
    segment.predictions(model, &mut |about, view| {
        if keep(about, view) {
            times.push(view.ts);
        }
        false
    });
    if times.len() <= most {
        return i64::MIN;
    }
    let at = times.len() - most.max(1);
    *times.select_nth_unstable(at).1
}
