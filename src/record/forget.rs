//! Removes what holds a person from the log of a stopped server: rewrites the files that have such records, without them.

use super::config::Config;
use super::forget_bucket::InBucket;
use super::log::Log;
use super::parquet_file::properties;
use super::segment;
use crate::bucket::{Listed, Prefix};
use crate::machine::durable::{publish, sync_parent, temporary};
use crate::machine::open_regular;
use crate::model::ModelName;
use crate::quality::Quality;
use crate::telemetry::Telemetry;
use arrow_array::cast::AsArray;
use arrow_array::{Array, BooleanArray, RecordBatch};
use arrow_schema::Schema;
use arrow_select::filter::filter_record_batch;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::arrow::{ARROW_SCHEMA_META_KEY, ArrowWriter, ProjectionMask};
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::reader::ChunkReader;
use std::collections::{BTreeSet, HashSet};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Whose records are removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// All predictions with this route key, as it is or hashed, and the feedback about them.
    RouteKey(String),
    /// The predictions with this request id, and the feedback about them.
    RequestId(String),
}

/// What was removed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Forgotten {
    /// Records: rows of predictions, shadows' included, and entries of feedback.
    pub predictions: u64,
    pub feedback: u64,
    /// Files that were written again or removed.
    pub files: u64,
    /// The models of these records.
    pub models: BTreeSet<ModelName>,
    /// What was removed in the bucket; `None` where it was left alone.
    pub uploaded: Option<Removed>,
}

/// What was removed in one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Removed {
    pub predictions: u64,
    pub feedback: u64,
    pub files: u64,
}

/// How long the segments that a server left may take to be sealed.
const SEALING: Duration = Duration::from_mins(30);
/// Bytes of a batch while a file is written again.
const BATCH_BYTES: usize = 16 << 20;

/// Seals what the last server left, and then removes the records of a person from the files. Each file is replaced as a whole. The caller holds
/// the lock of the data directory, so that no server runs. `key_file`: as in the configuration. `bucket`: the objects of all gateways there are treated
/// as the files.
///
/// # Errors
/// When something cannot be read or written. Files that were done stay done, and another try goes on.
pub fn forget(
    data: &Path,
    key_file: Option<&Path>,
    model: Option<&ModelName>,
    subject: &Subject,
    bucket: Option<&Arc<Prefix>>,
) -> io::Result<Forgotten> {
    // The bucket first: where it cannot be read, nothing is changed.
    let bucket = bucket.map(|prefix| InBucket { prefix, scratch: data.join("upload/forget.parquet") });
    // A try that ended in the middle may have left an object here.
    bucket.iter().for_each(InBucket::clean);
    let mut models = bucket.as_ref().map_or_else(|| Ok(BTreeSet::new()), InBucket::models)?;
    let hashed = seal_all(data, key_file, subject)?;
    models.extend(local_models(data)?);
    let mut forgotten = Forgotten { uploaded: bucket.as_ref().map(|_| Removed::default()), ..Forgotten::default() };
    for name in models.into_iter().filter(|name| model.is_none_or(|model| model == name)) {
        let of = |kind: &str| files(&data.join(kind).join(format!("model={name}")));
        let in_bucket = |kind: &str| bucket.as_ref().map_or_else(|| Ok(Vec::new()), |bucket| bucket.files(kind, &name));
        let (predictions, feedback) = (of("predictions")?, of("feedback")?);
        let (objects, feedback_objects) = (in_bucket("predictions")?, in_bucket("feedback")?);
        let ids = match subject {
            Subject::RequestId(id) => HashSet::from([id.clone()]),
            Subject::RouteKey(key) => {
                let mut ids = ids_of(&predictions, [key, &hashed])?;
                if let Some(bucket) = &bucket {
                    ids.extend(bucket.ids(&objects, [key, &hashed])?);
                }
                ids
            }
        };
        if ids.is_empty() {
            continue;
        }
        let (column, texts) = match subject {
            Subject::RequestId(_) => ("request_id", ids.clone()),
            Subject::RouteKey(key) => ("route_key", HashSet::from([key.clone(), hashed.clone()])),
        };
        // The feedback goes first: without the predictions, another try would not find it by the route key.
        let of_local_feedback = remove_all(&feedback, &mut forgotten.files, "request_id", &ids)?;
        let mut changed_objects = 0;
        let mut in_objects = |objects: &[Listed], column: &str, texts: &HashSet<String>| -> io::Result<u64> {
            let mut removed = 0;
            for object in objects {
                let rows = bucket.as_ref().map_or(Ok(0), |bucket| bucket.rewrite(object, column, texts))?;
                removed += rows;
                changed_objects += u64::from(rows > 0);
            }
            Ok(removed)
        };
        let of_feedback = in_objects(&feedback_objects, "request_id", &ids)?;
        let of_predictions = in_objects(&objects, column, &texts)?;
        let removed = remove_all(&predictions, &mut forgotten.files, column, &texts)?;
        forgotten.predictions += removed;
        forgotten.feedback += of_local_feedback;
        if let Some(all) = &mut forgotten.uploaded {
            all.feedback += of_feedback;
            all.predictions += of_predictions;
            all.files += changed_objects;
        }
        if removed + of_local_feedback + of_feedback + of_predictions > 0 {
            forgotten.models.insert(name);
        }
    }
    bucket.iter().for_each(InBucket::clean);
    Ok(forgotten)
}

/// Removes the rows of files that have one of these texts in a column. Returns how many were removed, and adds the files to `changed`.
fn remove_all(paths: &[PathBuf], changed: &mut u64, column: &str, texts: &HashSet<String>) -> io::Result<u64> {
    let mut removed = 0;
    for path in paths {
        let rows = rewrite(path, &[column], |batch| named(batch, column, |text| texts.contains(text)))?;
        removed += rows;
        *changed += u64::from(rows > 0);
    }
    Ok(removed)
}

/// Seals all segments, as they cannot be written again. Returns the hash of the route key.
fn seal_all(data: &Path, key_file: Option<&Path>, subject: &Subject) -> io::Result<String> {
    if !segment::dir(data).is_dir() {
        let words = format!("{} holds no prediction log", data.display());
        return Err(io::Error::new(io::ErrorKind::NotFound, words));
    }
    // Nothing is deleted because of its size or age: the limits of the server are not known here.
    let config = Config {
        disk_budget: u64::MAX,
        seal_cpu_share: 1.0,
        hash_key_file: key_file.map(Path::to_owned),
        ..Config::of(data.to_owned())
    };
    let (log, stop) = Log::start(config, Quality::default(), &Telemetry::new())?;
    let hashed = match subject {
        Subject::RouteKey(key) => String::from_utf8_lossy(&log.0.key.hash(key.as_bytes())).into_owned(),
        Subject::RequestId(_) => String::new(),
    };
    drop(log);
    stop.stop(SEALING);
    let left = segment::list(data)?.len();
    if left > 0 {
        return Err(io::Error::other(format!(
            "{left} segments in {} cannot be turned into Parquet files, so records in them cannot be removed; nothing was changed",
            segment::dir(data).display()
        )));
    }
    Ok(hashed)
}

/// The models that have files.
fn local_models(data: &Path) -> io::Result<BTreeSet<ModelName>> {
    let mut models = BTreeSet::new();
    for kind in ["predictions", "feedback"] {
        let names = entries(&data.join(kind))?;
        let name = |path: &PathBuf| path.file_name()?.to_str()?.strip_prefix("model=")?.parse().ok();
        models.extend(names.iter().filter_map(name));
    }
    Ok(models)
}

/// The Parquet files of a model, sorted.
fn files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for day in entries(dir)? {
        files.extend(entries(&day)?.into_iter().filter(|path| path.extension().is_some_and(|e| e == "parquet")));
    }
    files.sort_unstable();
    Ok(files)
}

/// The paths in a directory. None where it does not exist or is no directory.
fn entries(dir: &Path) -> io::Result<Vec<PathBuf>> {
    match std::fs::read_dir(dir) {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(Vec::new()),
        Err(e) => Err(at(dir)(e)),
        Ok(found) => found.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<_>>().map_err(at(dir)),
    }
}

/// The request ids of the predictions with one of these route keys.
fn ids_of(files: &[PathBuf], keys: [&str; 2]) -> io::Result<HashSet<String>> {
    let mut ids = HashSet::new();
    for path in files {
        ids_in(open(path)?, path, keys, &mut ids)?;
    }
    Ok(ids)
}

/// The same of one file. `path` is for messages.
pub(super) fn ids_in<R: ChunkReader + 'static>(
    builder: ParquetRecordBatchReaderBuilder<R>,
    path: &Path,
    keys: [&str; 2],
    ids: &mut HashSet<String>,
) -> io::Result<()> {
    for batch in read(builder, path, Some(&["request_id", "route_key"]))? {
        let batch = batch?;
        let theirs = named(&batch, "route_key", |found| keys.contains(&found));
        let Some(column) = batch.column_by_name("request_id").and_then(|column| column.as_string_opt::<i32>()) else {
            continue;
        };
        ids.extend((0..batch.num_rows()).filter(|i| theirs.value(*i)).map(|i| column.value(i).to_owned()));
    }
    Ok(())
}

/// How many rows of a file have a text in a column that `matches`. `path` is for messages.
pub(super) fn matching<R: ChunkReader + 'static>(
    builder: ParquetRecordBatchReaderBuilder<R>,
    path: &Path,
    column: &str,
    matches: impl Fn(&str) -> bool,
) -> io::Result<usize> {
    let mut rows = 0;
    for batch in read(builder, path, Some(&[column]))? {
        rows += named(&batch?, column, &matches).true_count();
    }
    Ok(rows)
}

/// Which rows have a text in a column that `matches`. None where the column does not exist.
pub(super) fn named(batch: &RecordBatch, column: &str, matches: impl Fn(&str) -> bool) -> BooleanArray {
    let column = batch.column_by_name(column).and_then(|column| column.as_string_opt::<i32>());
    let one = |i: usize| column.is_some_and(|column| column.is_valid(i) && matches(column.value(i)));
    (0..batch.num_rows()).map(|i| Some(one(i))).collect()
}

type Batches = Box<dyn Iterator<Item = io::Result<RecordBatch>>>;

fn open(path: &Path) -> io::Result<ParquetRecordBatchReaderBuilder<File>> {
    let failed = at(path);
    let builder = ParquetRecordBatchReaderBuilder::try_new(open_regular(path).map_err(&failed)?);
    builder.map_err(io::Error::other).map_err(&failed)
}

/// The batches of a file, of some columns or of all.
fn read<R: ChunkReader + 'static>(
    builder: ParquetRecordBatchReaderBuilder<R>,
    path: &Path,
    columns: Option<&[&str]>,
) -> io::Result<Batches> {
    let failed = at(path);
    let fields = builder.schema().fields().iter().enumerate();
    let roots: Vec<usize> = fields
        .filter(|(_, field)| columns.is_none_or(|columns| columns.contains(&field.name().as_str())))
        .map(|(i, _)| i)
        .collect();
    let mask = ProjectionMask::roots(builder.parquet_schema(), roots);
    let metadata = builder.metadata();
    let bytes: i64 = metadata.row_groups().iter().map(RowGroupMetaData::total_byte_size).sum();
    let each = usize::try_from(bytes / metadata.file_metadata().num_rows().max(1)).unwrap_or(0).max(1);
    let rows = if columns.is_some() { 8192 } else { (BATCH_BYTES / each).clamp(1, 8192) };
    let reader =
        builder.with_projection(mask).with_batch_size(rows).build().map_err(io::Error::other).map_err(&failed)?;
    let path = path.to_owned();
    Ok(Box::new(reader.map(move |batch| batch.map_err(io::Error::other).map_err(at(&path)))))
}

/// Writes a file again without the rows that `remove` names, or removes it where none is left. Returns how many rows were removed.
/// `columns` are those that `remove` reads.
pub(super) fn rewrite(path: &Path, columns: &[&str], remove: impl Fn(&RecordBatch) -> BooleanArray) -> io::Result<u64> {
    let (mut rows, mut removed) = (0, 0);
    for batch in read(open(path)?, path, Some(columns))? {
        let batch = batch?;
        rows += batch.num_rows();
        removed += remove(&batch).true_count();
    }
    if removed == 0 {
        return Ok(0);
    }
    let failed = at(path);
    if removed == rows {
        std::fs::remove_file(path).and_then(|()| sync_parent(path)).map_err(&failed)?;
        return Ok(removed as u64);
    }
    let builder = open(path)?;
    let schema = Arc::new(Schema::new(builder.schema().fields().clone()));
    let metadata = builder.metadata().file_metadata().key_value_metadata().cloned().unwrap_or_default();
    // The writer adds its own.
    let metadata = metadata.into_iter().filter(|pair| pair.key != ARROW_SCHEMA_META_KEY).collect();
    drop(builder);
    let unfinished = temporary(path);
    let write = || -> io::Result<()> {
        let file = File::create(&unfinished)?;
        let properties = properties(&schema, metadata);
        let mut writer = ArrowWriter::try_new(file, Arc::clone(&schema), Some(properties)).map_err(io::Error::other)?;
        for batch in read(open(path)?, path, None)? {
            let batch = batch?;
            let keep: BooleanArray = remove(&batch).iter().map(|remove| Some(remove != Some(true))).collect();
            let kept = filter_record_batch(&batch, &keep).map_err(io::Error::other)?;
            let kept = kept.with_schema(Arc::clone(&schema)).map_err(io::Error::other)?;
            writer.write(&kept).map_err(io::Error::other)?;
        }
        let file = writer.into_inner().map_err(io::Error::other)?;
        publish(&file, &unfinished, path)
    };
    write().inspect_err(|_| drop(std::fs::remove_file(&unfinished))).map_err(&failed)?;
    Ok(removed as u64)
}

/// Adds the path to an error.
fn at(path: &Path) -> impl Fn(io::Error) -> io::Error {
    move |e| io::Error::new(e.kind(), format!("{}: {e}", path.display()))
}
