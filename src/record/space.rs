//! The bytes of the log on the disk, against its budget. Deletes the oldest sealed files.

use super::config::Config;
use super::deleted::Deletions;
use super::segment::{self, Number};
use crate::telemetry::LogMetrics;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

/// Reasons for which files are deleted.
pub(super) const DELETED: [&str; 2] = ["age", "budget"];

/// What the log has on the disk. The writer and the sealer report every change, so the sums are right at any time.
#[derive(Debug)]
pub(super) struct Space {
    budget: u64,
    keep_for: Option<Duration>,
    /// Bytes of all segments: the open one, those that wait to be sealed, and those that cannot be sealed.
    segments: AtomicU64,
    /// Of these, bytes of segments that cannot be sealed at the moment.
    stuck: AtomicU64,
    sealed: Mutex<Sealed>,
}

/// The sealed files with their sizes, oldest first.
#[derive(Debug, Default)]
struct Sealed {
    files: BTreeMap<(Number, PathBuf), u64>,
    bytes: u64,
    /// The directory of the files.
    data: PathBuf,
    /// What was deleted, for the audit trail.
    deletions: Deletions,
}

impl Space {
    /// Reads or changes what is to be reported as deleted.
    pub fn deletions<T>(&self, of: impl FnOnce(&Deletions) -> T) -> T {
        of(&self.lock().deletions)
    }

    /// Counts what earlier servers left, and removes their unfinished files.
    ///
    /// # Errors
    /// When the directory of the segments cannot be read.
    pub fn find(config: &Config) -> io::Result<Space> {
        let size = |path: &Path| std::fs::metadata(path).map_or(0, |meta| meta.len());
        let segments =
            segment::list(&config.data)?.into_iter().map(|number| size(&segment::path(&config.data, number)));
        Ok(Space {
            budget: config.disk_budget,
            keep_for: config.keep_for,
            segments: AtomicU64::new(segments.sum()),
            stuck: AtomicU64::new(0),
            sealed: Mutex::new(Sealed::find(&config.data)),
        })
    }

    /// Bytes of all segments.
    #[must_use]
    pub fn segments(&self) -> u64 {
        self.segments.load(Ordering::Acquire)
    }

    /// Bytes of all sealed files.
    #[must_use]
    pub fn sealed(&self) -> u64 {
        self.lock().bytes
    }

    #[must_use]
    pub fn budget(&self) -> u64 {
        self.budget
    }

    /// Bytes of the segments that the sealer has yet to seal, where `open` is the length of the open segment.
    #[must_use]
    pub fn backlog(&self, open: u64) -> u64 {
        self.segments().saturating_sub(open).saturating_sub(self.stuck.load(Ordering::Acquire))
    }

    /// A segment has grown.
    pub fn wrote(&self, bytes: u64) {
        self.segments.fetch_add(bytes, Ordering::AcqRel);
    }

    /// These bytes of a segment were cut off.
    pub fn cut(&self, bytes: u64) {
        let less = |segments: u64| Some(segments.saturating_sub(bytes));
        let _ = self.segments.fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
    }

    /// A segment of this length was replaced by these files.
    pub fn sealed_into(&self, number: Number, segment: u64, files: Vec<(PathBuf, u64)>) {
        let mut sealed = self.lock();
        for (path, size) in files {
            let before = sealed.files.insert((number, path), size).unwrap_or(0);
            sealed.bytes = sealed.bytes + size - before;
        }
        drop(sealed);
        self.cut(segment);
    }

    /// Sets how many bytes are in segments that cannot be sealed.
    pub fn set_stuck(&self, bytes: u64) {
        self.stuck.store(bytes, Ordering::Release);
    }

    /// Deletes the oldest sealed files until `bytes` more fit into the budget. Whether they fit now.
    pub fn make_room(&self, bytes: u64, metrics: &LogMetrics) -> bool {
        let fits = |sealed: &Sealed| {
            let total = sealed.bytes.saturating_add(self.segments()).saturating_add(bytes);
            total <= self.budget
        };
        let mut sealed = self.lock();
        while !fits(&sealed) {
            if !sealed.delete_oldest(DELETED[1], metrics) {
                return false;
            }
        }
        true
    }

    /// Deletes the sealed files that are older than `keep_for`.
    pub fn delete_old(&self, metrics: &LogMetrics) {
        let Some(keep) = self.keep_for else { return };
        let begin = SystemTime::now().checked_sub(keep).and_then(|t| t.duration_since(SystemTime::UNIX_EPOCH).ok());
        let oldest = begin.map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX));
        let mut sealed = self.lock();
        while sealed.files.first_key_value().is_some_and(|((number, _), _)| *number < oldest)
            && sealed.delete_oldest(DELETED[0], metrics)
        {}
    }

    /// Shows the sums.
    pub fn show(&self, metrics: &LogMetrics) {
        metrics.segment_bytes.set(self.segments() as f64);
        metrics.sealed_bytes.set(self.sealed() as f64);
    }

    fn lock(&self) -> MutexGuard<'_, Sealed> {
        self.sealed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sealed {
    fn find(data: &Path) -> Sealed {
        let mut sealed = Sealed { data: data.to_owned(), ..Sealed::default() };
        for kind in ["predictions", "feedback", "gaps"] {
            let mut dirs = vec![data.join(kind)];
            while let Some(dir) = dirs.pop() {
                for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
                    let path = entry.path();
                    let Ok(meta) = entry.metadata() else { continue };
                    if meta.is_dir() {
                        dirs.push(path);
                    } else if let Some(number) = number_of(&path, "parquet") {
                        sealed.bytes += meta.len();
                        sealed.files.insert((number, path), meta.len());
                    } else if number_of(&path, "tmp").is_some() {
                        // A server was killed while it wrote this file. Its segment is still there and is sealed again.
                        let _ = std::fs::remove_file(&path);
                    }
                }
            }
        }
        sealed
    }

    /// Whether there was a file, and it is gone.
    fn delete_oldest(&mut self, reason: &'static str, metrics: &LogMetrics) -> bool {
        let Some(((_, path), _)) = self.files.first_key_value() else { return false };
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::error!(file = %path.display(), %error, "a sealed file cannot be deleted");
                return false;
            }
            _ => {}
        }
        tracing::info!(file = %path.display(), reason, "a sealed file was deleted");
        // This only removes a directory without files.
        let _ = path.parent().map(std::fs::remove_dir);
        metrics.deleted(reason);
        if let Some(((_, path), size)) = self.files.pop_first() {
            self.bytes = self.bytes.saturating_sub(size);
            self.deletions.add(&self.data, &path, size, reason);
        }
        true
    }
}

/// The number of the segment that a file with this extension was made from.
fn number_of(path: &Path, extension: &str) -> Option<Number> {
    let name = path.file_name()?.to_str()?.strip_suffix(extension)?.strip_suffix('.')?;
    name.split_once('-')?.0.parse().ok()
}
