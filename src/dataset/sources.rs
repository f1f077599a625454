//! The records of a data directory: sealed files, and segments that are not sealed yet.

use super::error::Error;
use super::filter::Filter;
use super::records::{Input, Place, Records, objects};
use crate::bucket::Prefix;
use crate::model::ModelName;
use crate::record::{About, Side, Unsealed, unsealed};
use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use arrow_select::filter::filter_record_batch;
use jiff::civil::Date;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReaderBuilder, RowSelection};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use std::collections::BTreeSet;
use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// All files and segments of one model that can hold matching records, oldest first. Only metadata has been read.
#[derive(Debug)]
pub(super) struct Sources {
    pub(super) predictions: Vec<Source>,
    pub(super) feedback: Vec<Stored>,
    /// Files that the log's retention deleted between listing and opening.
    pub(super) deleted_files: usize,
}

/// Predictions of one version, in one file or segment.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) about: Arc<About>,
    pub(super) stored: Stored,
}

/// Records in one file or in memory, in parts that can be read independently.
#[derive(Debug)]
pub(super) struct Stored {
    location: Location,
    pub(super) schema: SchemaRef,
    pub(super) parts: Vec<Part>,
}

#[derive(Debug)]
enum Location {
    Stored(Place),
    Memory(Vec<RecordBatch>),
}

/// A row group of a file, or a batch in memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    index: usize,
    pub(super) rows: usize,
    /// The uncompressed size.
    bytes: usize,
}

/// Limits for one decoded batch of a file.
const BATCH_BYTES: usize = 16 << 20;
const BATCH_ROWS: usize = 8192;
/// The lengths of Bloom filters that are read: a header and at least one block. The log writes at most 256 KiB.
const FILTER_BYTES: std::ops::RangeInclusive<i32> = 33..=16 << 20;

impl Sources {
    /// Finds the records of a model in a data directory, or in a bucket.
    ///
    /// # Errors
    /// When a file cannot be read, or is not a file of the log.
    pub(super) fn open<'r>(
        records: impl Into<Records<'r>>,
        model: &ModelName,
        filter: &Filter,
    ) -> Result<Sources, Error> {
        let data = match records.into() {
            Records::Dir(data) => data,
            Records::Bucket(prefix) => return Sources::uploaded(prefix, model, filter),
        };
        if !data.is_dir() {
            return Err(Error::Failed(format!("there is no data directory {}", data.display())));
        }
        // Segments are read before files are listed. A segment that is sealed in between is then found twice, and read once.
        let unsealed = unsealed(data, model).map_err(|e| Error::at("read the segments in", &data.join("log"), e))?;
        Sources::with(data, model, filter, unsealed)
    }

    /// Only what is in sealed files.
    ///
    /// # Errors
    /// When a file cannot be read, or is not a file of the log.
    pub(super) fn sealed(data: &Path, model: &ModelName, filter: &Filter) -> Result<Sources, Error> {
        Sources::with(data, model, filter, Unsealed::default())
    }

    fn with(data: &Path, model: &ModelName, filter: &Filter, unsealed: Unsealed) -> Result<Sources, Error> {
        let mut sources = Sources { predictions: Vec::new(), feedback: Vec::new(), deleted_files: 0 };
        for file in sealed_files(&data.join("predictions"), model, &unsealed.segments)? {
            if file.date.is_none_or(|date| filter.matches_date(date)) {
                match prediction_file(&*file.path, filter) {
                    Ok(found) => sources.predictions.extend(found),
                    Err(OpenError::Deleted) => sources.deleted_files += 1,
                    Err(OpenError::Failed(error)) => return Err(error),
                }
            }
        }
        for file in sealed_files(&data.join("feedback"), model, &unsealed.segments)? {
            match Stored::file(&*file.path, |_| true, &[]) {
                Ok((stored, _)) => sources.feedback.push(stored),
                Err(OpenError::Deleted) => sources.deleted_files += 1,
                Err(OpenError::Failed(error)) => return Err(error),
            }
        }
        for (about, batches) in unsealed.predictions {
            if filter.matches_version(about.version) {
                let selected: Result<Vec<RecordBatch>, Error> =
                    batches.iter().map(|batch| select(batch, filter)).collect();
                let selected: Vec<RecordBatch> = selected?.into_iter().filter(|batch| batch.num_rows() > 0).collect();
                sources.predictions.extend(Stored::memory(selected).map(|stored| Source { about, stored }));
            }
        }
        sources.feedback.extend(unsealed.feedback.into_iter().filter_map(|batch| Stored::memory(vec![batch])));
        Ok(sources)
    }

    /// What gateways uploaded. Only the footers of files are read.
    fn uploaded(prefix: &Arc<Prefix>, model: &ModelName, filter: &Filter) -> Result<Sources, Error> {
        let mut sources = Sources { predictions: Vec::new(), feedback: Vec::new(), deleted_files: 0 };
        let days = filter.days();
        for (date, place) in objects(prefix, "predictions", model, days)? {
            if date.is_none_or(|date| filter.matches_date(date)) {
                match prediction_file(place, filter) {
                    Ok(found) => sources.predictions.extend(found),
                    Err(OpenError::Deleted) => sources.deleted_files += 1,
                    Err(OpenError::Failed(error)) => return Err(error),
                }
            }
        }
        for (_, place) in objects(prefix, "feedback", model, (None, None))? {
            match Stored::file(place, |_| true, &[]) {
                Ok((stored, _)) => sources.feedback.push(stored),
                Err(OpenError::Deleted) => sources.deleted_files += 1,
                Err(OpenError::Failed(error)) => return Err(error),
            }
        }
        Ok(sources)
    }

    #[must_use]
    pub(super) fn rows(&self) -> usize {
        self.predictions.iter().map(|source| source.stored.rows()).sum()
    }
}

/// The models with a directory of predictions in the data directory.
///
/// # Errors
/// When an existing directory cannot be read.
pub(super) fn models(data: &Path) -> Result<BTreeSet<ModelName>, Error> {
    let root = data.join("predictions");
    Ok(names(&root)?.into_iter().filter_map(|name| name.strip_prefix("model=")?.parse().ok()).collect())
}

/// The matching records of a batch.
///
/// # Errors
/// When a column is missing or of another type.
pub(super) fn select(batch: &RecordBatch, filter: &Filter) -> Result<RecordBatch, Error> {
    let mask = filter.mask(batch)?;
    if mask.true_count() == batch.num_rows() {
        return Ok(batch.clone());
    }
    filter_record_batch(batch, &mask).map_err(|e| Error::Failed(format!("cannot select records: {e}")))
}

impl Stored {
    pub(super) fn memory(batches: Vec<RecordBatch>) -> Option<Stored> {
        let schema = batches.first()?.schema();
        let part = |(index, batch): (usize, &RecordBatch)| Part {
            index,
            rows: batch.num_rows(),
            bytes: batch.get_array_memory_size(),
        };
        let parts = batches.iter().enumerate().map(part).collect();
        Some(Stored { location: Location::Memory(batches), schema, parts })
    }

    /// Opens a file and selects its row groups: those that `matches`, and whose Bloom filters do not rule out all of the values of a column. Also returns
    /// its key-value metadata.
    pub(super) fn file(
        place: impl Into<Place>,
        matches: impl Fn(&parquet::file::metadata::RowGroupMetaData) -> bool,
        looked_up: &[(&str, Vec<&str>)],
    ) -> Result<(Stored, Vec<KeyValue>), OpenError> {
        let place = place.into();
        let builder = open(&place)?;
        let metadata = builder.metadata();
        let groups = metadata.row_groups().iter().enumerate();
        let parts = groups
            .filter(|(index, group)| matches(group) && looked_up.iter().all(|named| may_hold(&builder, *index, named)))
            .map(|(index, group)| Part {
                index,
                rows: usize::try_from(group.num_rows()).unwrap_or_default(),
                bytes: usize::try_from(group.total_byte_size()).unwrap_or_default(),
            })
            .collect();
        let key_values = metadata.file_metadata().key_value_metadata().cloned().unwrap_or_default();
        // The schema is kept without the metadata, because there may be thousands of files.
        let schema = Arc::new(builder.schema().as_ref().clone().with_metadata(std::collections::HashMap::new()));
        Ok((Stored { location: Location::Stored(place), schema, parts }, key_values))
    }

    #[must_use]
    pub(super) fn rows(&self) -> usize {
        self.parts.iter().map(|part| part.rows).sum()
    }

    /// Whether the records are in memory already.
    #[must_use]
    pub(super) fn is_in_memory(&self) -> bool {
        matches!(self.location, Location::Memory(_))
    }

    /// The file of the records; `None` for those in memory.
    #[must_use]
    pub(super) fn path(&self) -> Option<&Path> {
        match &self.location {
            Location::Stored(Place::File(path)) => Some(path),
            Location::Stored(Place::Object(_)) | Location::Memory(_) => None,
        }
    }

    /// The name for messages.
    #[must_use]
    pub(super) fn name(&self) -> String {
        match &self.location {
            Location::Stored(place) => place.name(),
            Location::Memory(_) => "the segments".to_owned(),
        }
    }

    /// Adds the name to an error.
    #[must_use]
    pub(super) fn locate(&self, error: Error) -> Error {
        match error {
            Error::Failed(message) => Error::Failed(format!("{}: {message}", self.name())),
            usage @ Error::Usage(_) => usage,
        }
    }

    /// Reads parts, given by their indices in `self.parts`, in order. `columns` selects columns of a file; `None` reads all.
    ///
    /// # Errors
    /// When the file cannot be opened. An item is an error if its batch cannot be read.
    pub(super) fn read<'s>(
        &'s self,
        parts: &[usize],
        columns: Option<&[&str]>,
    ) -> Result<Box<dyn Iterator<Item = Result<RecordBatch, Error>> + 's>, Error> {
        self.read_rows(parts, columns, None)
    }

    /// The same, but only some rows, given by their places among all rows of the parts. Only those of a file are selected, and `None` is all.
    ///
    /// # Errors
    /// As [`Stored::read`].
    pub(super) fn read_rows<'s>(
        &'s self,
        parts: &[usize],
        columns: Option<&[&str]>,
        rows: Option<RowSelection>,
    ) -> Result<Box<dyn Iterator<Item = Result<RecordBatch, Error>> + 's>, Error> {
        let place = match &self.location {
            Location::Memory(batches) => {
                let parts: Vec<usize> = parts.iter().map(|part| self.parts[*part].index).collect();
                return Ok(Box::new(parts.into_iter().map(|index| Ok(batches[index].clone()))));
            }
            Location::Stored(place) => place,
        };
        let failed = move |cause: &dyn Display| Error::Failed(format!("cannot read {}: {cause}", place.name()));
        let builder = open(place).map_err(|opened| match opened {
            OpenError::Deleted => failed(&"it was deleted in the meantime"),
            OpenError::Failed(error) => error,
        })?;
        let mask = match columns {
            None => ProjectionMask::all(),
            Some(names) => {
                let fields = builder.schema().fields().iter().enumerate();
                let roots: Vec<usize> =
                    fields.filter(|(_, field)| names.contains(&field.name().as_str())).map(|(i, _)| i).collect();
                ProjectionMask::roots(builder.parquet_schema(), roots)
            }
        };
        let selected = || parts.iter().map(|part| self.parts[*part]);
        // Large records are decoded in smaller batches.
        let record_bytes = selected().map(|part| part.bytes / part.rows.max(1)).max().unwrap_or_default();
        let has_tensors = columns.is_none_or(|names| Side::ALL.iter().any(|side| names.contains(&side.as_str())));
        let batch_rows =
            if has_tensors { (BATCH_BYTES / record_bytes.max(1)).clamp(1, BATCH_ROWS) } else { BATCH_ROWS };
        let groups = selected().map(|part| part.index).collect();
        let mut builder = builder.with_projection(mask).with_row_groups(groups).with_batch_size(batch_rows);
        if let Some(rows) = rows {
            builder = builder.with_row_selection(rows);
        }
        let reader = builder.build();
        let reader = reader.map_err(|e| failed(&e))?;
        Ok(Box::new(reader.map(move |batch| batch.map_err(|e| failed(&e)))))
    }
}

/// Whether a row group can have one of these values in a column, according to the column's Bloom filter. A filter that is missing or cannot be read rules out
/// nothing.
fn may_hold(
    builder: &ParquetRecordBatchReaderBuilder<Input>,
    group: usize,
    (column, values): &(&str, Vec<&str>),
) -> bool {
    let mut columns = builder.metadata().row_group(group).columns().iter();
    let Some(at) = columns.position(|known| known.column_path().string() == *column) else { return true };
    let length = builder.metadata().row_group(group).column(at).bloom_filter_length();
    if length.is_some_and(|bytes| !FILTER_BYTES.contains(&bytes)) {
        return true;
    }
    match builder.get_row_group_column_bloom_filter(group, at) {
        Ok(Some(filter)) => values.iter().any(|value| filter.check(value.as_bytes())),
        Ok(None) | Err(_) => true,
    }
}

/// Why a file was not opened.
#[derive(Debug)]
pub(super) enum OpenError {
    Deleted,
    Failed(Error),
}

/// Files that are damaged, or no files of the log: they are left out of an answer, and named in it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NotRead {
    /// The first of them, with the reason of each. A path is below the data directory.
    pub named: Vec<(PathBuf, String)>,
    /// All of them.
    pub count: usize,
}

impl NotRead {
    /// The most files that are named.
    pub const MOST: usize = 20;

    /// Notes a file, once. `data` is the data directory.
    pub(super) fn add(&mut self, data: &Path, path: &Path, why: &Error) {
        let path = path.strip_prefix(data).unwrap_or(path);
        if self.named.iter().any(|(known, _)| known == path) {
            return;
        }
        self.count += 1;
        if self.named.len() < NotRead::MOST {
            // An error names the file itself, which the reader of the answer sees anyway.
            let why = why.to_string().replace(&format!("{}/", data.display()), "<data-dir>/");
            self.named.push((path.to_owned(), why));
        }
    }
}

fn open(place: &Place) -> Result<ParquetRecordBatchReaderBuilder<Input>, OpenError> {
    let failed =
        |cause: &dyn Display| OpenError::Failed(Error::Failed(format!("cannot read {}: {cause}", place.name())));
    let input = place.open().map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => OpenError::Deleted,
        _ => failed(&e),
    })?;
    ParquetRecordBatchReaderBuilder::try_new(input).map_err(|e| match &e {
        // An object is asked for when its footer is read.
        ParquetError::External(cause)
            if cause.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::NotFound) =>
        {
            OpenError::Deleted
        }
        _ => failed(&e),
    })
}

/// The predictions of a sealed file, if it can hold matching ones.
pub(super) fn prediction_file(place: impl Into<Place>, filter: &Filter) -> Result<Option<Source>, OpenError> {
    let (stored, key_values) = Stored::file(place, |group| filter.may_match(group), &filter.looked_up())?;
    let about = about(&key_values).map_err(|why| {
        let message = format!("{} is not a file of the prediction log: {why}", stored.name());
        OpenError::Failed(Error::Failed(message))
    })?;
    let matches = filter.matches_version(about.version) && !stored.parts.is_empty();
    Ok(matches.then(|| Source { about: Arc::new(about), stored }))
}

/// Reads the metadata that applies to all records of a file.
fn about(key_values: &[KeyValue]) -> Result<About, String> {
    let value = |key: &str| {
        let found = key_values.iter().find(|pair| pair.key == key).and_then(|pair| pair.value.as_deref());
        found.ok_or_else(|| format!("its metadata has no {key}"))
    };
    let names = |key: &str| {
        let names: Result<BTreeSet<String>, _> = serde_json::from_str(value(key)?);
        names.map_err(|e| format!("{key} is not a list of columns: {e}"))
    };
    let signature = serde_json::from_str(value("sluicegate.signature")?).map_err(|e| e.to_string());
    Ok(About {
        model: value("sluicegate.model")?.parse().map_err(|e| format!("{e}"))?,
        version: value("sluicegate.version")?.parse().map_err(|e| format!("{e}"))?,
        sha256: value("sluicegate.sha256")?.to_owned(),
        signature: signature.and_then(About::signature_of).map_err(|e| format!("sluicegate.signature: {e}"))?,
        hashed: names("sluicegate.hashed")?,
        dropped: names("sluicegate.dropped")?,
    }
    // Absent in files of earlier versions.
    .with_masked(names("sluicegate.masked").unwrap_or_default()))
}

/// A sealed file, the date in its path, and the number of its segment.
#[derive(Debug)]
pub(super) struct SealedFile {
    pub(super) date: Option<Date>,
    pub(super) segment: Option<u64>,
    pub(super) path: PathBuf,
}

/// The sealed files of a model below `root`, oldest first, without those of the segments in `already_read`.
///
/// # Errors
/// When an existing directory cannot be listed.
pub(super) fn sealed_files(
    root: &Path,
    model: &ModelName,
    already_read: &BTreeSet<u64>,
) -> Result<Vec<SealedFile>, Error> {
    let dir = root.join(format!("model={model}"));
    let mut files = Vec::new();
    for day in names(&dir)? {
        let date = day.strip_prefix("date=").and_then(|date| date.parse().ok());
        for name in names(&dir.join(&day))? {
            let segment = name.split('-').next().and_then(|number| number.parse().ok());
            if name.ends_with(".parquet") && !segment.is_some_and(|number| already_read.contains(&number)) {
                files.push(SealedFile { date, segment, path: dir.join(&day).join(&name) });
            }
        }
    }
    Ok(files)
}

/// The names in a directory, sorted. Empty if it does not exist or is not a directory.
fn names(dir: &Path) -> Result<Vec<String>, Error> {
    let entries = match std::fs::read_dir(dir) {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(Vec::new()),
        entries => entries.map_err(|e| Error::at("list", dir, e))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| Error::at("list", dir, e))?;
        names.extend(entry.file_name().into_string());
    }
    names.sort_unstable();
    Ok(names)
}
