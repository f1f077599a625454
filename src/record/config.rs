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

/// How predictions are logged. All fields but `data`, `shards` and `cores` are keys of `[prediction_log]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The data directory.
    pub data: PathBuf,
    /// Default `memory`.
    pub acknowledge: Acknowledge,
    /// Default `refuse`.
    pub on_failure: OnFailure,
    /// The most time of records that `kill -9` loses when answers do not wait for the disk. Default 200 ms.
    pub flush_interval: Duration,
    /// Bytes of records that may wait to be written, over all shards. When they are used up, new records are dropped. A record larger than
    /// this is never written. Default 64 MiB: some seconds at full speed.
    pub queue_bytes: usize,
    /// The number of threads that offer records.
    pub shards: usize,
    /// The cores that this process may use.
    pub cores: usize,
    /// The share of these cores that sealing may use on average, from 0 (excluded) to 1. Sealing is one thread, so it never uses more than
    /// one core. Default 0.05: by estimate enough for 30,000 small records a second on each core.
    pub seal_cpu_share: f64,
    /// The bytes after which a segment is sealed into Parquet. Default 64 MiB: sealing holds a segment in memory.
    pub segment_bytes: u64,
    /// The age after which a segment is sealed. Default 10 min: a model with few requests should not get too many files.
    pub seal_after: Duration,
    /// Sealed files older than this are deleted. Default `None`: age does not matter.
    pub keep_for: Option<Duration>,
    /// The most bytes of the log on the disk; beyond, the oldest sealed files are deleted and counted. Default 10 GiB.
    pub disk_budget: u64,
    /// The file with the secret for keyed hashes. `SLUICEGATE_HASH_KEY` in the environment overrides it. Default: a secret is created in
    /// the data directory at the first start.
    pub hash_key_file: Option<PathBuf>,
    /// Where another room uploads sealed files to. Default `None`: nowhere.
    pub uploads: Option<Uploads>,
}

/// What the log must know of uploads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uploads {
    /// The address. With another one, no file is uploaded.
    pub to: String,
    /// Uploaded files that are older are deleted here; `None`: they stay until `keep_for` or `disk_budget` delete them.
    pub keep_local: Option<Duration>,
}

impl Config {
    /// The defaults, with this data directory.
    #[must_use]
    pub fn of(data: PathBuf) -> Config {
        Config {
            data,
            acknowledge: Acknowledge::default(),
            on_failure: OnFailure::default(),
            flush_interval: Duration::from_millis(200),
            queue_bytes: 64 << 20,
            shards: 4,
            cores: 1,
            seal_cpu_share: 0.05,
            segment_bytes: 64 << 20,
            seal_after: Duration::from_mins(10),
            keep_for: None,
            disk_budget: 10 << 30,
            hash_key_file: None,
            uploads: None,
        }
    }

    /// The cores that sealing may use.
    #[must_use]
    pub(super) fn seal_cores(&self) -> f64 {
        self.seal_cpu_share * self.cores.max(1) as f64
    }
}
