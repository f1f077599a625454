//! The thread that uploads: takes the next file, and waits after failures.

use super::Shared;
use super::begun::Begun;
use super::counts::Counts;
use super::transfer::{Pace, Transfer, Trouble};
use crate::bucket::{Address, Client};
use crate::machine::{lower_priority, open_regular};
use crate::record::SealedFile;
use crossbeam_channel::RecvTimeoutError;
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::sync::watch;

pub(super) struct Worker {
    pub shared: Arc<Shared>,
    /// The data directory.
    pub data: PathBuf,
    pub to: Address,
    pub client: Client,
    pub timeout: Duration,
    pub pace: Pace,
    pub counts: Counts,
    /// Files that failed, and how often.
    pub tries: BTreeMap<PathBuf, u32>,
    /// Failures since the last success.
    pub failures: u32,
    pub stop: watch::Receiver<Option<Instant>>,
}

/// As for sealing: threads that answer requests run first.
const NICENESS: i32 = 15;
/// The time between two looks at what waits. Sealing ends it.
const LOOK: Duration = Duration::from_secs(10);
/// How soon a stop is noticed while nothing is uploaded.
const STEP: Duration = Duration::from_millis(100);
/// The first and the longest wait after failures.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_mins(5);

impl Worker {
    /// Uploads until the server stops, and then what waits while that works.
    pub(super) fn run(mut self, runtime: &Runtime) {
        lower_priority("upload", NICENESS);
        let sealed = self.shared.log.sealed();
        loop {
            self.counts.waiting(&self.shared.log.waiting());
            let tries = |file: &std::path::Path| self.tries.get(file).copied().unwrap_or(0);
            let Some(file) = self.shared.log.next_waiting(&tries) else {
                self.tries.clear();
                let until = Instant::now() + LOOK;
                while Instant::now() < until {
                    if self.is_stopping() {
                        return;
                    }
                    if !matches!(sealed.recv_timeout(STEP), Err(RecvTimeoutError::Timeout)) {
                        break;
                    }
                }
                continue;
            };
            // Without this thread nothing would be uploaded again, so a panic must not end it.
            let uploaded = catch_unwind(AssertUnwindSafe(|| runtime.block_on(self.upload(&file))));
            let uploaded = uploaded.unwrap_or_else(|panic| {
                Err(Trouble::Failed(format!("it panicked: {}", crate::model::panic_message(&*panic))))
            });
            match uploaded {
                Ok(()) => drop(self.tries.remove(&file.file)),
                Err(Trouble::Gone) => self.shared.log.gone(&file),
                Err(Trouble::Stopped) => return,
                Err(Trouble::Failed(words)) => {
                    self.failed(file.file, words);
                    if self.is_stopping() || !self.pause() {
                        return;
                    }
                }
            }
        }
    }

    fn is_stopping(&self) -> bool {
        self.stop.borrow().is_some()
    }

    /// Brings one file into the bucket, and tells the log.
    async fn upload(&mut self, sealed: &SealedFile) -> Result<(), Trouble> {
        let failed = |e: io::Error| Trouble::Failed(format!("{}: {e}", sealed.file.display()));
        // What is opened here stays what it is, also when sealing or retention replaces or deletes the name.
        let mut file = match open_regular(&self.data.join(&sealed.file)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(Trouble::Gone),
            opened => opened.map_err(failed)?,
        };
        let (bytes, sha256) = digest(&mut file).map_err(failed)?;
        let known = Begun::find(&self.data).filter(|begun| begun.to == self.shared.place.to);
        let (counts, shared) = (&self.counts, Arc::clone(&self.shared));
        let arrived = move |bytes: u64| {
            counts.bytes.increment(bytes);
            shared.state().bytes += bytes;
        };
        let mut transfer = Transfer {
            client: &self.client,
            to: &self.to,
            data: &self.data,
            timeout: self.timeout,
            pace: &mut self.pace,
            stop: self.stop.clone(),
            sent: &arrived,
        };
        let mut begun = match known {
            Some(begun) if begun.file == sealed.file && begun.sha256 == sha256 => begun,
            other => {
                if let Some((Begun { object, .. }, id)) =
                    other.and_then(|begun| begun.upload.clone().map(|id| (begun, id)))
                {
                    transfer.abort(&object, &id).await;
                }
                let object = self.shared.place.object(&sealed.file);
                let (file, to) = (sealed.file.clone(), self.shared.place.to.clone());
                let begun = Begun { file, object, to, sha256, upload: None, parts: Vec::new() };
                begun.store(&self.data).map_err(failed)?;
                begun
            }
        };
        transfer.run(&mut file, bytes, &mut begun).await?;
        self.shared.log.uploaded(sealed).map_err(failed)?;
        Begun::clear(&self.data);
        self.worked();
        Ok(())
    }

    fn worked(&mut self) {
        self.failures = 0;
        self.counts.files.increment(1);
        let mut state = self.shared.state();
        state.files += 1;
        state.last_uploaded = Some(Timestamp::now());
        state.last_error = None;
        if state.failing_since.take().is_some() {
            tracing::info!(to = %self.to, "sealed files are uploaded again");
        }
    }

    fn failed(&mut self, file: PathBuf, words: String) {
        self.counts.failures.increment(1);
        self.failures = self.failures.saturating_add(1);
        *self.tries.entry(file).or_default() += 1;
        let mut state = self.shared.state();
        if state.failing_since.is_none() {
            tracing::warn!(to = %self.to, error = %words, "a sealed file cannot be uploaded; it is kept and tried again");
            state.failing_since = Some(Timestamp::now());
        }
        state.last_error = Some(words);
    }

    /// Waits after a failure. False where the server stops meanwhile.
    fn pause(&self) -> bool {
        let until = Instant::now() + wait_after(self.failures, fastrand::f64());
        while Instant::now() < until {
            if self.is_stopping() {
                return false;
            }
            std::thread::park_timeout(STEP.min(until.saturating_duration_since(Instant::now())));
        }
        true
    }
}

/// The wait after so many failures in a row, less up to a half. `chance` is from 0 to 1.
fn wait_after(failures: u32, chance: f64) -> Duration {
    let longest = FIRST_WAIT.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1).min(20)));
    longest.min(LONGEST_WAIT).mul_f64(1.0 - 0.5 * chance)
}

/// The length and the SHA-256 of a file.
fn digest(file: &mut File) -> io::Result<(u64, String)> {
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        digest.update(&buffer[..n]);
        bytes += n as u64;
    }
    file.rewind()?;
    Ok((bytes, format!("{:x}", digest.finalize())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_to_five_minutes_and_differ() {
        let whole = [1, 2, 3, 10, 11, u32::MAX].map(|failures| wait_after(failures, 0.0).as_millis());
        assert_eq!(whole, [500, 1000, 2000, 256_000, 300_000, 300_000]);
        assert_eq!(wait_after(1, 1.0), Duration::from_millis(250));
    }
}
