//! The sealer: one thread at low priority that turns segments into Parquet files and deletes old files.

use super::columns::Layout;
use super::feedback;
use super::frame::MAGIC;
use super::gaps::{self, DropReason, Gap};
use super::log::Shared;
use super::now;
use super::segment::{self, Contents, Day, Number, Segment};
use crate::machine::durable::{self, sync_parent, temporary};
use arrow_array::RecordBatch;
use arrow_schema::{Schema, SchemaRef};
use crossbeam_channel::{Receiver, RecvTimeoutError};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::schema::types::ColumnPath;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

/// Time between checks of the age of files and attempts to seal what could not be sealed.
const CHECK: Duration = Duration::from_secs(30);
/// Records in a row group; as many as in `DuckDB`'s own row groups, so readers plan for it.
const ROW_GROUP: usize = 122_880;
/// Bytes of a row group, which is held in memory while it is written.
const ROW_GROUP_BYTES: usize = 64 << 20;
/// Nice value of the sealing thread: threads that answer requests run first.
const NICENESS: i32 = 15;

/// Reasons for which files are deleted.
pub(super) const DELETED: [&str; 2] = ["age", "budget"];

#[derive(Debug)]
pub(super) struct Sealer {
    shared: Arc<Shared>,
    /// The sealed files with their sizes, oldest first.
    files: BTreeMap<(Number, PathBuf), u64>,
    total: u64,
    /// Segments that could not be sealed and were reported.
    stuck: BTreeSet<Number>,
}

impl Sealer {
    pub fn new(shared: Arc<Shared>) -> Sealer {
        Sealer { shared, files: BTreeMap::new(), total: 0, stuck: BTreeSet::new() }
    }

    /// Seals until the log stops, and then the last segments.
    pub fn run(mut self, woken: &Receiver<()>) {
        crate::machine::lower_priority("log-seal", NICENESS);
        self.find_files();
        loop {
            self.seal_all();
            self.retain();
            match woken.recv_timeout(CHECK) {
                Ok(()) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if self.shared.sealer_stopping.load(Ordering::Acquire) {
                break;
            }
        }
        self.seal_all();
        self.retain();
    }

    /// Seals every segment that is not open. A failure of one does not stop the others.
    pub fn seal_all(&mut self) {
        let data = self.shared.config.data.clone();
        let segments = match segment::list(&data) {
            Ok(segments) => segments,
            Err(error) => {
                tracing::error!(%error, "the log's segments cannot be listed");
                return;
            }
        };
        let mut left = 0;
        for number in segments {
            let path = segment::path(&data, number);
            let size = std::fs::metadata(&path).map_or(0, |meta| meta.len());
            // Read after the listing: a segment that was closed since then waits for the next round.
            if number == self.shared.open_segment.load(Ordering::Acquire) {
                continue;
            }
            let begun = Instant::now();
            match self.seal(number) {
                Ok(()) => {
                    self.stuck.remove(&number);
                    self.shared.metrics.seal.record(begun.elapsed());
                }
                Err(error) => {
                    left += size;
                    self.shared.status().seal_error = Some(error.to_string());
                    if self.stuck.insert(number) {
                        tracing::error!(segment = number, %error, "a segment cannot be sealed; it is kept and tried again");
                    }
                }
            }
        }
        if self.stuck.is_empty() {
            self.shared.status().seal_error = None;
        }
        self.shared.closed_bytes.store(left, Ordering::Release);
    }

    /// Writes a segment's files and deletes the segment. A second run writes the same files.
    fn seal(&mut self, number: Number) -> io::Result<()> {
        let path = segment::path(&self.shared.config.data, number);
        let segment = Segment::read(&path)?;
        let contents = segment.contents();
        let mut files = self.write_predictions(number, &contents)?;
        files.extend(self.write_feedback(number, &contents)?);
        let mut gaps: Vec<&Gap> = contents.gaps.iter().collect();
        let damaged = damage(&segment, &contents);
        gaps.extend(&damaged);
        files.extend(self.write_gaps(number, &gaps)?);
        for file in files {
            let size = std::fs::metadata(&file)?.len();
            if self.files.insert((number, file), size).is_none() {
                self.total += size;
            }
        }
        self.shared.metrics.sealed_bytes.set(self.total as f64);
        std::fs::remove_file(&path)?;
        sync_parent(&path)
    }

    fn write_predictions(&self, number: Number, contents: &Contents) -> io::Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for (k, ((at, day), bodies)) in contents.predictions.iter().enumerate() {
            let about = &contents.abouts[*at];
            let dir = partition(&self.shared.config.data, "predictions", Some(about.model.as_str()), *day);
            let file = dir.join(format!("{number:020}-{k}.parquet"));
            let metadata = about.file_metadata();
            let mut unfinished: Option<Unfinished> = None;
            {
                let slot = std::cell::RefCell::new(&mut unfinished);
                let begin = |layout: &Layout| {
                    **slot.borrow_mut() = Some(Unfinished::begin(&file, &layout.schema(), &metadata)?);
                    Ok::<_, io::Error>(())
                };
                let mut full = |batch: RecordBatch| slot.borrow_mut().as_mut().map_or(Ok(()), |u| u.write(&batch));
                segment::batches(about, bodies, begin, &mut full)?;
            }
            if let Some(unfinished) = unfinished {
                unfinished.finish()?;
                files.push(file);
            }
        }
        Ok(files)
    }

    fn write_feedback(&self, number: Number, contents: &Contents) -> io::Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for ((model, day), bodies) in &contents.feedback {
            let dir = partition(&self.shared.config.data, "feedback", Some(model), *day);
            let file = dir.join(format!("{number:020}-0.parquet"));
            let mut unfinished = Unfinished::begin(&file, &feedback::schema(), &[("model", model.clone())])?;
            for bodies in bodies.chunks(64) {
                unfinished.write(&feedback::batch(bodies))?;
            }
            unfinished.finish()?;
            files.push(file);
        }
        Ok(files)
    }

    fn write_gaps(&self, number: Number, all: &[&Gap]) -> io::Result<Vec<PathBuf>> {
        let mut by_day: BTreeMap<Day, Vec<&Gap>> = BTreeMap::new();
        for gap in all {
            by_day.entry(Day::of(gap.to)).or_default().push(gap);
        }
        let mut files = Vec::new();
        for (day, gaps) in by_day {
            let file = partition(&self.shared.config.data, "gaps", None, day).join(format!("{number:020}-0.parquet"));
            let mut unfinished = Unfinished::begin(&file, &gaps::schema(), &[])?;
            unfinished.write(&gaps::batch(&gaps))?;
            unfinished.finish()?;
            files.push(file);
        }
        Ok(files)
    }

    /// Finds the files of previous servers.
    fn find_files(&mut self) {
        for kind in ["predictions", "feedback", "gaps"] {
            let mut dirs = vec![self.shared.config.data.join(kind)];
            while let Some(dir) = dirs.pop() {
                for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
                    let path = entry.path();
                    let Ok(meta) = entry.metadata() else { continue };
                    if meta.is_dir() {
                        dirs.push(path);
                    } else if let Some(number) = number_of(&path) {
                        self.total += meta.len();
                        self.files.insert((number, path), meta.len());
                    }
                }
            }
        }
        self.shared.metrics.sealed_bytes.set(self.total as f64);
    }

    /// Deletes files that are too old, then the oldest files until the rest fits the budget.
    fn retain(&mut self) {
        let config = &self.shared.config;
        let oldest = config.keep_for.map(|keep| {
            let begin = SystemTime::now().checked_sub(keep).and_then(|t| t.duration_since(SystemTime::UNIX_EPOCH).ok());
            begin.map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
        });
        let segments =
            self.shared.closed_bytes.load(Ordering::Acquire) + self.shared.open_length.load(Ordering::Acquire);
        while let Some(((number, path), size)) = self.files.first_key_value() {
            let too_old = oldest.is_some_and(|oldest| *number < oldest);
            if !too_old && self.total + segments <= config.disk_budget {
                break;
            }
            let reason = if too_old { DELETED[0] } else { DELETED[1] };
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::error!(file = %path.display(), %error, "a sealed file cannot be deleted");
                    break;
                }
                _ => {}
            }
            tracing::info!(file = %path.display(), reason, "a sealed file was deleted");
            // This only removes a directory without files.
            let _ = path.parent().map(std::fs::remove_dir);
            self.shared.metrics.deleted(reason);
            self.total -= size;
            let key = (*number, path.clone());
            self.files.remove(&key);
        }
        self.shared.metrics.sealed_bytes.set(self.total as f64);
        let over = self.files.is_empty() && segments > config.disk_budget;
        self.shared.queue.set_over_budget(over);
    }
}

/// The gap for bytes that cannot be read. After an unclean stop the end of the segment is torn, which another gap accounts for.
fn damage(segment: &Segment, contents: &Contents) -> Option<Gap> {
    let torn = segment.len() > contents.valid.max(MAGIC.len()) && contents.ended;
    (torn || contents.unreadable > 0).then(|| {
        let at = contents.last.unwrap_or_else(now);
        let records = (!torn).then_some(contents.unreadable as u64);
        Gap { from: at, to: at, records, reason: DropReason::Damaged }
    })
}

fn partition(data: &Path, kind: &str, model: Option<&str>, day: Day) -> PathBuf {
    let mut dir = data.join(kind);
    dir.extend(model.map(|model| format!("model={model}")));
    dir.join(format!("date={day}"))
}

/// The number of the segment that a sealed file was made from.
fn number_of(path: &Path) -> Option<Number> {
    let name = path.file_name()?.to_str()?.strip_suffix(".parquet")?;
    name.split_once('-')?.0.parse().ok()
}

/// A Parquet file under a temporary name.
struct Unfinished {
    path: PathBuf,
    writer: ArrowWriter<File>,
}

impl Unfinished {
    fn begin(path: &Path, schema: &SchemaRef, metadata: &[(&str, String)]) -> io::Result<Unfinished> {
        if let Some(dir) = path.parent() {
            create_dirs(dir)?;
        }
        let pairs = metadata.iter().map(|(key, value)| KeyValue::new(format!("sluicegate.{key}"), value.clone()));
        let properties = properties(schema, pairs.collect());
        let file = File::create(temporary(path))?;
        let writer = ArrowWriter::try_new(file, Arc::clone(schema), Some(properties)).map_err(as_io)?;
        Ok(Unfinished { path: path.to_owned(), writer })
    }

    fn write(&mut self, batch: &RecordBatch) -> io::Result<()> {
        self.writer.write(batch).map_err(as_io)
    }

    fn finish(self) -> io::Result<()> {
        let file = self.writer.into_inner().map_err(as_io)?;
        durable::publish(&file, &temporary(&self.path), &self.path)
    }
}

/// Creates directories and makes their names durable.
fn create_dirs(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    if let Some(parent) = dir.parent() {
        create_dirs(parent)?;
    }
    match std::fs::create_dir(dir) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
        _ => sync_parent(dir),
    }
}

fn as_io(error: ParquetError) -> io::Error {
    match error {
        ParquetError::External(source) => match source.downcast::<io::Error>() {
            Ok(error) => *error,
            Err(source) => io::Error::other(source),
        },
        other => io::Error::other(other),
    }
}

/// How the files are written: zstd at its fastest level, and dictionaries for the few columns whose texts repeat.
#[must_use]
pub(crate) fn properties(schema: &Schema, metadata: Vec<KeyValue>) -> WriterProperties {
    let level = ZstdLevel::try_new(1).expect("1 is a level of zstd");
    let mut builder = WriterProperties::builder()
        .set_compression(Compression::ZSTD(level))
        .set_max_row_group_row_count(Some(ROW_GROUP))
        .set_max_row_group_bytes(Some(ROW_GROUP_BYTES))
        .set_dictionary_enabled(false)
        .set_created_by(concat!("sluicegate ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_key_value_metadata(Some(metadata));
    for column in ["version", "arm", "role", "status", "batch_rows", "sample_rate", "reason"] {
        if schema.column_with_name(column).is_some() {
            builder = builder.set_column_dictionary_enabled(ColumnPath::from(column), true);
        }
    }
    builder.build()
}
