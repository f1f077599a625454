//! What there is to read: sealed files, and what still stands in segments.

use super::error::Error;
use super::pick::Pick;
use crate::model::ModelName;
use crate::record::{About, unsealed};
use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use arrow_select::filter::filter_record_batch;
use jiff::civil::Date;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::file::metadata::KeyValue;
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Everything of one model that can be wanted, in the order it was made: nothing is read yet but what says where it stands.
#[derive(Debug)]
pub struct Sources {
    pub predictions: Vec<Source>,
    pub feedback: Vec<Stored>,
    /// Files that were deleted between being listed and being opened: the log's own retention.
    pub gone: usize,
}

/// Predictions of one version, in one place.
#[derive(Debug)]
pub struct Source {
    pub about: Arc<About>,
    pub stored: Stored,
}

/// Rows in one place, in parts that can be read by themselves.
#[derive(Debug)]
pub struct Stored {
    place: Place,
    pub schema: SchemaRef,
    pub parts: Vec<Part>,
}

#[derive(Debug)]
enum Place {
    File(PathBuf),
    Memory(Vec<RecordBatch>),
}

/// A row group of a file, or a batch in memory.
#[derive(Debug, Clone, Copy)]
pub struct Part {
    index: usize,
    pub rows: usize,
    /// Before compression.
    bytes: usize,
}

/// The most of a file that is decoded at once.
const BATCH_BYTES: usize = 16 << 20;
const BATCH_ROWS: usize = 8192;

impl Sources {
    /// Looks at what a data directory has of a model.
    ///
    /// # Errors
    /// When something that is there cannot be read, or is no file of the log.
    pub fn open(data: &Path, model: &ModelName, pick: &Pick) -> Result<Sources, Error> {
        if !data.is_dir() {
            return Err(Error::Failed(format!("there is no data directory {}", data.display())));
        }
        // Before the files are listed: a segment that is sealed in between is then found in both places, and read once.
        let unsealed = unsealed(data, model).map_err(|e| Error::at("read the segments in", &data.join("log"), e))?;
        let mut sources = Sources { predictions: Vec::new(), feedback: Vec::new(), gone: 0 };
        for file in listed(&data.join("predictions"), model, &unsealed.segments)? {
            if file.date.is_none_or(|date| pick.wants_date(date)) {
                match prediction_file(&file.path, pick) {
                    Ok(found) => sources.predictions.extend(found),
                    Err(Opened::Gone) => sources.gone += 1,
                    Err(Opened::Failed(error)) => return Err(error),
                }
            }
        }
        for file in listed(&data.join("feedback"), model, &unsealed.segments)? {
            match Stored::file(&file.path, |_| true) {
                Ok((stored, _)) => sources.feedback.push(stored),
                Err(Opened::Gone) => sources.gone += 1,
                Err(Opened::Failed(error)) => return Err(error),
            }
        }
        for (about, batches) in unsealed.predictions {
            if pick.wants_version(about.version) {
                let chosen: Result<Vec<RecordBatch>, Error> = batches.iter().map(|batch| choose(batch, pick)).collect();
                let chosen: Vec<RecordBatch> = chosen?.into_iter().filter(|batch| batch.num_rows() > 0).collect();
                sources.predictions.extend(Stored::memory(chosen).map(|stored| Source { about, stored }));
            }
        }
        sources.feedback.extend(unsealed.feedback.into_iter().filter_map(|batch| Stored::memory(vec![batch])));
        Ok(sources)
    }

    #[must_use]
    pub fn rows(&self) -> usize {
        self.predictions.iter().map(|source| source.stored.rows()).sum()
    }
}

/// The models a data directory has predictions of, sealed or not.
///
/// # Errors
/// When a directory that is there cannot be read.
pub fn models(data: &Path) -> Result<BTreeSet<ModelName>, Error> {
    let root = data.join("predictions");
    let named = names(&root)?.into_iter();
    Ok(named.filter_map(|name| name.strip_prefix("model=")?.parse().ok()).collect())
}

/// The wanted records of a batch.
///
/// # Errors
/// When a column is missing or of another type.
pub fn choose(batch: &RecordBatch, pick: &Pick) -> Result<RecordBatch, Error> {
    let mask = pick.mask(batch)?;
    if mask.true_count() == batch.num_rows() {
        return Ok(batch.clone());
    }
    filter_record_batch(batch, &mask).map_err(|e| Error::Failed(format!("cannot choose records: {e}")))
}

impl Stored {
    fn memory(batches: Vec<RecordBatch>) -> Option<Stored> {
        let schema = batches.first()?.schema();
        let part = |(index, batch): (usize, &RecordBatch)| Part {
            index,
            rows: batch.num_rows(),
            bytes: batch.get_array_memory_size(),
        };
        let parts = batches.iter().enumerate().map(part).collect();
        Some(Stored { place: Place::Memory(batches), schema, parts })
    }

    /// What a file's own words say about it come with it.
    fn file(
        path: &Path,
        wanted: impl Fn(&parquet::file::metadata::RowGroupMetaData) -> bool,
    ) -> Result<(Stored, Vec<KeyValue>), Opened> {
        let builder = open(path)?;
        let metadata = builder.metadata();
        let groups = metadata.row_groups().iter().enumerate();
        let parts = groups
            .filter(|(_, group)| wanted(group))
            .map(|(index, group)| Part {
                index,
                rows: usize::try_from(group.num_rows()).unwrap_or_default(),
                bytes: usize::try_from(group.total_byte_size()).unwrap_or_default(),
            })
            .collect();
        let words = metadata.file_metadata().key_value_metadata().cloned().unwrap_or_default();
        // The words are kept apart: thousands of files would each keep theirs.
        let schema = Arc::new(builder.schema().as_ref().clone().with_metadata(std::collections::HashMap::new()));
        Ok((Stored { place: Place::File(path.to_owned()), schema, parts }, words))
    }

    #[must_use]
    pub fn rows(&self) -> usize {
        self.parts.iter().map(|part| part.rows).sum()
    }

    /// What it is called in messages.
    #[must_use]
    pub fn shown(&self) -> String {
        match &self.place {
            Place::File(path) => path.display().to_string(),
            Place::Memory(_) => "the segments".to_owned(),
        }
    }

    /// Puts where it happened before what happened.
    #[must_use]
    pub fn named(&self, error: Error) -> Error {
        match error {
            Error::Failed(words) => Error::Failed(format!("{}: {words}", self.shown())),
            usage @ Error::Usage(_) => usage,
        }
    }

    /// Reads some of its parts (places in `parts`), in order; of a file only the columns named, or all.
    ///
    /// # Errors
    /// When it cannot be opened; each batch, when it cannot be read.
    pub fn read<'s>(
        &'s self,
        parts: &[usize],
        columns: Option<&[&str]>,
    ) -> Result<Box<dyn Iterator<Item = Result<RecordBatch, Error>> + 's>, Error> {
        let path = match &self.place {
            Place::Memory(batches) => {
                let parts: Vec<usize> = parts.iter().map(|part| self.parts[*part].index).collect();
                return Ok(Box::new(parts.into_iter().map(|index| Ok(batches[index].clone()))));
            }
            Place::File(path) => path,
        };
        let builder = open(path).map_err(|opened| match opened {
            Opened::Gone => Error::at("read", path, "it was deleted meanwhile"),
            Opened::Failed(error) => error,
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
        let chosen = || parts.iter().map(|part| self.parts[*part]);
        // Records of which each is large are decoded few at a time.
        let widest = chosen().map(|part| part.bytes / part.rows.max(1)).max().unwrap_or_default();
        let rows = if columns.is_some() { BATCH_ROWS } else { (BATCH_BYTES / widest.max(1)).clamp(1, BATCH_ROWS) };
        let groups = chosen().map(|part| part.index).collect();
        let reader = builder.with_projection(mask).with_row_groups(groups).with_batch_size(rows).build();
        let reader = reader.map_err(|e| Error::at("read", path, e))?;
        Ok(Box::new(reader.map(move |batch| batch.map_err(|e| Error::at("read", path, e)))))
    }
}

/// Why a file is not opened.
enum Opened {
    Gone,
    Failed(Error),
}

fn open(path: &Path) -> Result<ParquetRecordBatchReaderBuilder<File>, Opened> {
    let file = File::open(path).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => Opened::Gone,
        _ => Opened::Failed(Error::at("read", path, e)),
    })?;
    ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| Opened::Failed(Error::at("read", path, e)))
}

fn prediction_file(path: &Path, pick: &Pick) -> Result<Option<Source>, Opened> {
    let (stored, words) = Stored::file(path, |group| pick.may_be_in(group))?;
    let about = about(&words).map_err(|why| {
        let words = format!("{} is no file of the prediction log: {why}", path.display());
        Opened::Failed(Error::Failed(words))
    })?;
    let wanted = pick.wants_version(about.version) && !stored.parts.is_empty();
    Ok(wanted.then(|| Source { about: Arc::new(about), stored }))
}

/// What a file says of all its records.
fn about(words: &[KeyValue]) -> Result<About, String> {
    let said = |key: &str| {
        let value = words.iter().find(|word| word.key == key).and_then(|word| word.value.as_deref());
        value.ok_or_else(|| format!("its metadata lack {key}"))
    };
    let names = |key: &str| {
        let names: Result<BTreeSet<String>, _> = serde_json::from_str(said(key)?);
        names.map_err(|e| format!("{key} is no list of columns: {e}"))
    };
    let signature = serde_json::from_str(said("sluicegate.signature")?).map_err(|e| e.to_string());
    Ok(About {
        model: said("sluicegate.model")?.parse().map_err(|e| format!("{e}"))?,
        version: said("sluicegate.version")?.parse().map_err(|e| format!("{e}"))?,
        sha256: said("sluicegate.sha256")?.to_owned(),
        signature: signature.and_then(About::signature_of).map_err(|e| format!("sluicegate.signature: {e}"))?,
        hashed: names("sluicegate.hashed")?,
        dropped: names("sluicegate.dropped")?,
    })
}

/// A sealed file, and the day in its path.
struct Listed {
    date: Option<Date>,
    path: PathBuf,
}

/// The sealed files of a model below `root`, oldest first, without those of segments that were read already.
fn listed(root: &Path, model: &ModelName, read: &BTreeSet<u64>) -> Result<Vec<Listed>, Error> {
    let dir = root.join(format!("model={model}"));
    let mut files = Vec::new();
    for day in names(&dir)? {
        let date = day.strip_prefix("date=").and_then(|date| date.parse().ok());
        for name in names(&dir.join(&day))? {
            let segment = name.split('-').next().and_then(|number| number.parse().ok());
            if name.ends_with(".parquet") && !segment.is_some_and(|number| read.contains(&number)) {
                files.push(Listed { date, path: dir.join(&day).join(&name) });
            }
        }
    }
    Ok(files)
}

/// The names in a directory, sorted; none where it is not there, or is none.
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

/// The directories of a models directory that can be a model's.
#[must_use]
pub fn models_in(models: &Path) -> BTreeSet<ModelName> {
    let named = names(models).unwrap_or_default().into_iter();
    named.filter(|name| models.join(name).is_dir()).filter_map(|name| name.parse().ok()).collect()
}
