//! history: how much each arm answered, how fast and how often it failed, over the last hours and days, and against the first day of a version.
//!
//! - A thread reads the counts of all arms every ten seconds ([`Sample`]) and keeps their differences: ten seconds each for up to six hours, five
//!   minutes each for up to two weeks ([`Point`]).
//! - [`History::of`] returns the points of a model, by version and arm.
//! - It counts the processor time of this process too: [`History::cores_used`].
//! - The first day of each version stays ([`FirstDay`]), and [`History::against_first_day`] says whether the version is slower now.
//! - Points are written to files each minute and read at the next start. A crash loses at most the last minute.
//! - Memory is bounded: 1.5 million points of 28 bytes over all arms, and 10,000 arms. With many arms the past is shorter.
//!
//! Uses: machine (durable files, processor time), model, telemetry (the evidence of an arm).
//!
//! Invariant: nothing here is called by a request, and nothing is lost for callers where the disk fails.
//!
//! To add a figure: a field of [`Point`], its column in `files.rs`, shown by the admin plane.

mod files;
mod first_day;
mod series;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_first_day;

#[cfg(test)]
pub use first_day::Usual;
pub use first_day::{Compared, FirstDay, LIMIT, Measure};
pub use series::{AgainstFirstDay, Arm, EngineTime, Percentiles, Point, Recent, Sample, SeriesOf};

use crate::machine::process_time;
use crate::model::{ModelName, Version};
use files::Files;
use series::All;
use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often counts are read, in seconds.
pub const STEP: u32 = 10;
/// How often points are written.
const WRITE_EVERY: Duration = Duration::from_mins(1);
/// The time over which the cores in use are an average.
const OVER: Duration = Duration::from_mins(1);
/// Counts of the processor time that are kept: one every [`STEP`] in that time.
const COUNTS: usize = 8;

/// The points of all arms. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct History(Arc<Mutex<All>>);

/// Ends the thread. Points that are not written yet are written.
#[derive(Debug)]
pub struct Stop {
    asked: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl History {
    /// Reads what was written before, and starts the thread. `samples` reads the counts of all arms.
    ///
    /// # Errors
    /// When the thread cannot be started. Files that cannot be read are reported in the log.
    pub fn start(dir: &Path, samples: impl Fn() -> Vec<Sample> + Send + 'static) -> std::io::Result<(History, Stop)> {
        let history = History::default();
        let (kept, asked) = (history.clone(), Arc::new(AtomicBool::new(false)));
        let (mut files, ended) = (Files::new(dir), Arc::clone(&asked));
        let thread = std::thread::Builder::new().name("history".to_owned()).spawn(move || {
            let now = seconds_now();
            files.read(now, |arm, fine, point| kept.lock().restore(arm, fine, point));
            kept.lock().restore_first_days(files.read_first_days());
            let mut written = Instant::now();
            loop {
                let began = Instant::now();
                kept.lock().note_use(began, process_time());
                let stopping = ended.load(Ordering::Acquire);
                kept.lock().take(seconds_now(), samples());
                if stopping || written.elapsed() >= WRITE_EVERY {
                    written = Instant::now();
                    let fresh = kept.lock().fresh();
                    files.write(seconds_now(), &fresh);
                    let days = kept.lock().learn_first_days(seconds_now());
                    if let Some(days) = days {
                        files.write_first_days(days);
                    }
                }
                if stopping {
                    return;
                }
                let rest = Duration::from_secs(STEP.into()).saturating_sub(began.elapsed());
                std::thread::park_timeout(rest);
            }
        })?;
        Ok((history, Stop { asked, thread }))
    }

    /// The points of a model that are not older than this, by version and arm; the finest that are kept for that time.
    #[must_use]
    pub fn of(&self, model: &ModelName, since: u32) -> Vec<SeriesOf> {
        self.lock().of(model, since)
    }

    /// What each wanted model did in the last `buckets` spans of so many seconds; those with requests, and maybe others.
    #[must_use]
    pub fn recent(
        &self,
        now: u32,
        span: u32,
        buckets: usize,
        wanted: impl Fn(&ModelName) -> bool,
    ) -> HashMap<ModelName, Recent> {
        self.lock().recent(now, span, buckets, wanted)
    }

    /// The last point of each arm of all models that had requests in the last so many seconds.
    #[must_use]
    pub fn last(&self, now: u32, seconds: u32) -> HashMap<ModelName, Vec<Point>> {
        self.lock().last(now, seconds)
    }

    /// The last 24 hours of each version of a model against its first day; only of versions whose first day is over. `limit`: how many times as long is
    /// slower, where the model says it; else [`LIMIT`].
    #[must_use]
    pub fn against_first_day(
        &self,
        model: &ModelName,
        now: u32,
        limit: Option<f64>,
    ) -> Vec<(Version, FirstDay, Vec<Compared>)> {
        let limit = |of: &ModelName| (of == model).then(|| limit.unwrap_or(LIMIT));
        let compared = self.lock().against_first_day(now, limit).into_iter();
        compared.map(|AgainstFirstDay { version, first_day, compared, .. }| (version, first_day, compared)).collect()
    }

    /// The same of many models, in one pass. `limit` returns `None` for a model that is left out.
    #[must_use]
    pub fn all_against_first_day(&self, now: u32, limit: impl Fn(&ModelName) -> Option<f64>) -> Vec<AgainstFirstDay> {
        self.lock().against_first_day(now, limit)
    }

    /// The cores that this process used on average over the last minute; `None` before there are two counts.
    #[must_use]
    pub fn cores_used(&self) -> Option<f64> {
        let (now, used) = (Instant::now(), process_time());
        let mut all = self.lock();
        // The oldest count that is kept is a minute old, or the first one.
        while all.used.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= OVER) {
            all.used.pop_front();
        }
        let (began, before) = all.used.front()?;
        let passed = now.duration_since(*began).as_secs_f64();
        (passed >= 1.0).then(|| used.saturating_sub(*before).as_secs_f64() / passed)
    }

    /// Takes a point as if it had been written before.
    #[cfg(test)]
    pub fn restore(&self, arm: Arm, fine: bool, point: Point) {
        self.lock().restore(arm, fine, point);
    }

    fn lock(&self) -> MutexGuard<'_, All> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stop {
    /// Waits until the last points are written, at most so long.
    pub fn stop(self, within: Duration) {
        self.asked.store(true, Ordering::Release);
        self.thread.thread().unpark();
        let until = Instant::now() + within;
        while !self.thread.is_finished() && Instant::now() < until {
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }
}

/// Seconds since 1970. Enough until 2106.
#[must_use]
pub fn seconds_now() -> u32 {
    u32::try_from(jiff::Timestamp::now().as_second()).unwrap_or(0)
}
