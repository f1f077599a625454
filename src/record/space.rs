//! The bytes of the log on the disk, against its budget. Deletes the oldest sealed files.

use super::config::{Config, Uploads};
use super::deleted::Deletions;
use super::leaving::{SealedFile, Waiting};
use super::segment::{self, Number};
use super::uploaded::Journal;
use crate::telemetry::LogMetrics;
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

/// Reasons for which files are deleted.
pub(super) const DELETED: [&str; 4] = ["age", "budget", "uploaded", "not_uploaded"];

/// What the log has on the disk. The writer and the sealer report every change, so the sums are right at any time.
#[derive(Debug)]
pub(super) struct Space {
    budget: u64,
    keep_for: Option<Duration>,
    /// Where files are uploaded to; `None`: nowhere.
    uploads: Option<Uploads>,
    /// Bytes of all segments: the open one, those that wait to be sealed, and those that cannot be sealed.
    segments: AtomicU64,
    /// Of these, bytes of segments that cannot be sealed at the moment.
    stuck: AtomicU64,
    sealed: Mutex<Sealed>,
    /// What is uploaded, where files are. It is synced, so it has a lock of its own: nobody who needs room waits for it.
    journal: Option<Mutex<Journal>>,
}

/// The sealed files with their sizes, oldest first.
#[derive(Debug, Default)]
struct Sealed {
    files: BTreeMap<(Number, PathBuf), File>,
    bytes: u64,
    /// Files that were deleted before they were uploaded.
    lost: u64,
    /// The directory of the files.
    data: PathBuf,
    /// What was deleted, for the audit trail.
    deletions: Deletions,
}

#[derive(Debug, Clone, Copy)]
struct File {
    bytes: u64,
    /// When it was sealed, in microseconds since 1970.
    since: i64,
    /// It is in object storage too.
    uploaded: bool,
}

impl Space {
    /// Reads or changes what is to be reported as deleted.
    pub fn deletions<T>(&self, of: impl FnOnce(&Deletions) -> T) -> T {
        of(&self.lock().deletions)
    }

    /// Counts what earlier servers left, and removes their unfinished files.
    ///
    /// # Errors
    /// When the directory of the segments cannot be read, or the journal of uploaded files cannot be read and written.
    pub fn find(config: &Config) -> io::Result<Space> {
        let size = |path: &Path| std::fs::metadata(path).map_or(0, |meta| meta.len());
        let segments =
            segment::list(&config.data)?.into_iter().map(|number| size(&segment::path(&config.data, number)));
        let mut sealed = Sealed::find(&config.data);
        let mut journal = None;
        if let Some(Uploads { to, .. }) = &config.uploads {
            let (opened, uploaded) = Journal::open(&config.data, to)?;
            journal = Some(Mutex::new(opened));
            for ((_, path), file) in &mut sealed.files {
                file.uploaded = path.strip_prefix(&config.data).is_ok_and(|below| uploaded.contains(below));
            }
        }
        Ok(Space {
            budget: config.disk_budget,
            keep_for: config.keep_for,
            uploads: config.uploads.clone(),
            segments: AtomicU64::new(segments.sum()),
            stuck: AtomicU64::new(0),
            sealed: Mutex::new(sealed),
            journal,
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
            let file = File { bytes: size, since: super::now(), uploaded: false };
            let before = sealed.files.insert((number, path), file).map_or(0, |before| before.bytes);
            sealed.bytes = sealed.bytes + size - before;
        }
        drop(sealed);
        self.cut(segment);
    }

    /// Sets how many bytes are in segments that cannot be sealed.
    pub fn set_stuck(&self, bytes: u64) {
        self.stuck.store(bytes, Ordering::Release);
    }

    /// Deletes the oldest sealed files until `bytes` more fit into the budget, those that are uploaded first. Whether they fit now.
    pub fn make_room(&self, bytes: u64, metrics: &LogMetrics) -> bool {
        let fits = |sealed: &Sealed| {
            let total = sealed.bytes.saturating_add(self.segments()).saturating_add(bytes);
            total <= self.budget
        };
        let mut sealed = self.lock();
        while !fits(&sealed) {
            let uploaded = sealed.files.iter().find(|(_, file)| self.uploads.is_none() || file.uploaded);
            let uploaded = uploaded.map(|(key, _)| key.clone());
            let oldest = || sealed.files.first_key_value().map(|(key, _)| key.clone());
            let Some(key) = uploaded.clone().or_else(oldest) else { return false };
            let reason = if uploaded.is_none() { DELETED[3] } else { DELETED[1] };
            if !sealed.delete(&key, reason, metrics) {
                return false;
            }
        }
        true
    }

    /// Deletes the sealed files that are older than `keep_for`, and uploaded ones that need not stay so long. Where files are uploaded, only those that are.
    pub fn delete_old(&self, metrics: &LogMetrics) {
        let keep_local = self.uploads.as_ref().and_then(|uploads| uploads.keep_local);
        for (keep, reason) in [(self.keep_for, DELETED[0]), (keep_local, DELETED[2])] {
            let Some(keep) = keep else { continue };
            let begin = SystemTime::now().checked_sub(keep).and_then(|t| t.duration_since(SystemTime::UNIX_EPOCH).ok());
            let oldest = begin.map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX));
            let mut sealed = self.lock();
            let old = sealed.files.range(..(oldest, PathBuf::new()));
            let old = old.filter(|(_, file)| file.uploaded || self.uploads.is_none());
            let old: Vec<(Number, PathBuf)> = old.map(|(key, _)| key.clone()).collect();
            for key in old {
                if !sealed.delete(&key, reason, metrics) {
                    break;
                }
            }
        }
    }

    /// What is not uploaded.
    #[must_use]
    pub fn waiting(&self) -> Waiting {
        let sealed = self.lock();
        let mut waiting = Waiting { lost_files: sealed.lost, ..Waiting::default() };
        let mut oldest = i64::MAX;
        for file in sealed.files.values().filter(|file| !file.uploaded) {
            waiting.files += 1;
            waiting.bytes += file.bytes;
            oldest = oldest.min(file.since);
        }
        let oldest = Timestamp::from_microsecond(oldest).ok();
        Waiting { oldest: oldest.filter(|_| waiting.files > 0), ..waiting }
    }

    /// As [`super::Log::next_waiting`]. `is_sealing`: the segment still exists.
    pub fn next_waiting(
        &self,
        tries: &dyn Fn(&Path) -> u32,
        is_sealing: impl Fn(Number) -> bool,
    ) -> Option<SealedFile> {
        let sealed = self.lock();
        let below = |path: &Path| path.strip_prefix(&sealed.data).unwrap_or(path).to_owned();
        let waiting = sealed.files.iter().filter(|(_, file)| !file.uploaded);
        let mut best: Option<(u32, SealedFile)> = None;
        for ((number, path), file) in waiting {
            let candidate = SealedFile { number: *number, file: below(path), bytes: file.bytes };
            let failures = tries(&candidate.file);
            if best.as_ref().is_none_or(|(fewest, _)| failures < *fewest) && !is_sealing(*number) {
                best = Some((failures, candidate));
                if failures == 0 {
                    break;
                }
            }
        }
        best.map(|(_, file)| file)
    }

    /// As [`super::Log::uploaded`].
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub fn uploaded(&self, uploaded: &SealedFile) -> io::Result<()> {
        let data = self.lock().data.clone();
        if !data.join(&uploaded.file).exists() {
            // It was deleted here meanwhile.
            self.gone(uploaded);
            return Ok(());
        }
        if let Some(journal) = &self.journal {
            let mut journal = journal.lock().unwrap_or_else(PoisonError::into_inner);
            journal.add(&data, &uploaded.file, || self.uploaded_files(&uploaded.file))?;
        }
        if let Some(file) = self.lock().files.get_mut(&(uploaded.number, data.join(&uploaded.file))) {
            file.uploaded = true;
        }
        Ok(())
    }

    /// As [`super::Log::gone`].
    pub fn gone(&self, gone: &SealedFile) {
        let mut sealed = self.lock();
        let key = (gone.number, sealed.data.join(&gone.file));
        if !key.1.exists()
            && let Some(file) = sealed.files.remove(&key)
        {
            sealed.bytes = sealed.bytes.saturating_sub(file.bytes);
        }
    }

    /// All files that are uploaded, and `one` more.
    fn uploaded_files(&self, one: &Path) -> BTreeSet<PathBuf> {
        let sealed = self.lock();
        let uploaded = sealed.files.iter().filter(|(_, file)| file.uploaded);
        let below = uploaded.filter_map(|((_, path), _)| Some(path.strip_prefix(&sealed.data).ok()?.to_owned()));
        below.chain([one.to_owned()]).collect()
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
                    } else if !segment::may_be_regular(meta.file_type()) {
                        // Nothing of the log: it is not uploaded, and not deleted.
                    } else if let Some(number) = number_of(&path, "parquet") {
                        sealed.bytes += meta.len();
                        let since = meta.modified().ok().and_then(|time| Timestamp::try_from(time).ok());
                        let since = since.unwrap_or_default().as_microsecond();
                        sealed.files.insert((number, path), File { bytes: meta.len(), since, uploaded: false });
                    } else if number_of(&path, "tmp").is_some() {
                        // A server was killed while it wrote this file. Its segment is still there and is sealed again.
                        let _ = std::fs::remove_file(&path);
                    }
                }
            }
        }
        sealed
    }

    /// Whether the file is gone.
    fn delete(&mut self, key: &(Number, PathBuf), reason: &'static str, metrics: &LogMetrics) -> bool {
        let (_, path) = key;
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::error!(file = %path.display(), %error, "a sealed file cannot be deleted");
                return false;
            }
            _ => {}
        }
        if reason == DELETED[3] {
            self.lost += 1;
            tracing::error!(file = %path.display(), "prediction_log.disk_budget is full: a sealed file was deleted that is not uploaded");
        } else {
            tracing::info!(file = %path.display(), reason, "a sealed file was deleted");
        }
        // This only removes a directory without files.
        let _ = path.parent().map(std::fs::remove_dir);
        metrics.deleted(reason);
        if let Some(File { bytes, .. }) = self.files.remove(key) {
            self.bytes = self.bytes.saturating_sub(bytes);
            self.deletions.add(&self.data, path, bytes, reason);
        }
        true
    }
}

/// The number of the segment that a file with this extension was made from.
fn number_of(path: &Path, extension: &str) -> Option<Number> {
    let name = path.file_name()?.to_str()?.strip_suffix(extension)?.strip_suffix('.')?;
    name.split_once('-')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Telemetry;

    #[test]
    fn uploaded_files_are_deleted_first_and_a_file_that_failed_is_uploaded_last() {
        let dir = tempfile::tempdir().unwrap();
        let day = dir.path().join("predictions/model=m/date=2026-11-01");
        std::fs::create_dir_all(&day).unwrap();
        let path = |number: Number| day.join(format!("{number:020}-0.parquet"));
        for number in 1..=3 {
            std::fs::write(path(number), [0; 10]).unwrap();
        }
        let uploads = Some(Uploads { to: "s3://b".to_owned(), keep_local: None });
        let config = Config {
            uploads,
            disk_budget: 25,
            keep_for: Some(Duration::from_secs(1)),
            ..Config::of(dir.path().to_owned())
        };
        let space = Space::find(&config).unwrap();
        let metrics = LogMetrics::new(&Telemetry::new(), &[], &DELETED);
        space.delete_old(&metrics);
        assert_eq!(space.waiting().files, 3, "their age deletes nothing that is not uploaded");
        let first_failed = |file: &Path| u32::from(file.ends_with(path(1).file_name().unwrap()));
        let next = space.next_waiting(&first_failed, |_| false).unwrap();
        assert_eq!((next.number, next.bytes), (2, 10));
        let free = space.next_waiting(&first_failed, |number| number != 1).unwrap();
        assert_eq!(free.number, 1, "a file whose segment is there still may be replaced");
        space.uploaded(&next).unwrap();
        let again = Space::find(&config).unwrap();
        assert_eq!((space.waiting().files, again.waiting().files), (2, 2), "it is known after a restart");
        assert!(space.make_room(0, &metrics));
        assert_eq!([1, 2, 3].map(|number| path(number).exists()), [true, false, true]);
        assert_eq!((space.waiting().lost_files, space.sealed()), (0, 20));
        assert!(space.make_room(10, &metrics), "new records are worth more than old ones");
        assert_eq!([1, 3].map(|number| path(number).exists()), [false, true]);
        let waiting = space.waiting();
        assert_eq!((waiting.lost_files, waiting.files, waiting.bytes), (1, 1, 10));
        let reasons: BTreeSet<&str> = space.deletions(Deletions::take).iter().map(|deleted| deleted.reason).collect();
        assert_eq!(reasons, BTreeSet::from(["budget", "not_uploaded"]));
        // Somebody removes a file by hand.
        std::fs::remove_file(path(3)).unwrap();
        let last = space.next_waiting(&|_| 0, |_| false).unwrap();
        space.gone(&last);
        assert_eq!((space.next_waiting(&|_| 0, |_| false), space.sealed()), (None, 0));
    }
}
