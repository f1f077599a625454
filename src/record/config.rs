//! How the prediction log is configured.

use std::path::PathBuf;
use std::time::Duration;

/// When a prediction may be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Acknowledge {
    /// At once. `kill -9` or a power cut loses at most the records of one flush interval.
    #[default]
    Memory,
    /// When its record is on the disk.
    Disk,
}

/// What to do with [`Acknowledge::Disk`] when a record cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnFailure {
    /// Answer 503.
    #[default]
    Refuse,
    /// Answer the prediction. The record is counted as dropped.
    Serve,
}

/// How predictions are logged.
#[derive(Debug, Clone)]
pub struct Config {
    /// The data directory.
    pub data: PathBuf,
    pub acknowledge: Acknowledge,
    pub on_failure: OnFailure,
    pub flush_interval: Duration,
    /// Bytes of records that may wait to be written, over all shards. When they are used up, new records are dropped. A record larger than
    /// this is never written.
    pub queue_bytes: usize,
    /// The number of threads that offer records.
    pub shards: usize,
    pub segment_bytes: u64,
    pub seal_after: Duration,
    /// Sealed files older than this are deleted; `None`: age does not matter.
    pub keep_for: Option<Duration>,
    /// Bytes of the log on the disk.
    pub disk_budget: u64,
    pub hash_key_file: Option<PathBuf>,
}

impl Config {
    /// The defaults, with this data directory.
    #[must_use]
    pub fn of(data: PathBuf) -> Config {
        Config {
            data,
            acknowledge: Acknowledge::Memory,
            on_failure: OnFailure::Refuse,
            flush_interval: Duration::from_millis(200),
            queue_bytes: 64 << 20,
            shards: 4,
            segment_bytes: 64 << 20,
            seal_after: Duration::from_mins(10),
            keep_for: None,
            disk_budget: 10 << 30,
            hash_key_file: None,
        }
    }
}
