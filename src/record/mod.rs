//! record: remembers predictions and feedback without slowing them; segments, Parquet, gaps (`docs/RECORDS.md`).
//!
//! - [`Log::offer`] takes a prediction: it is encoded at once into a buffer of this thread's own, and the caller may go on. With
//!   `acknowledge = "disk"` it gives a [`Ticket`], and the answer leaves when that is durable.
//! - [`Log::tell`] takes feedback; its ticket is always waited for.
//! - One thread writes and syncs, one at low priority seals segments into Parquet and deletes what is too old. What cannot be kept is
//!   dropped, counted, and a row in `gaps/`.
//! - [`unsealed`] reads what is not sealed yet, without a server.
//!
//! Uses: quality, model, tensor, telemetry, machine.
//!
//! Invariant: nobody who answers callers waits for a disk or another thread here, unless the configuration asks for it.
//!
//! To add a column: INTERFACES and docs/RECORDS.md first, then `frame.rs` and `columns.rs`.

mod about;
mod columns;
mod disk;
mod feedback;
mod frame;
mod gaps;
mod hash;
mod learn;
mod queue;
mod read;
mod seal;
mod segment;
mod stream;
#[cfg(test)]
mod tests;
mod writer;

pub use about::{About, Column, Side};
pub use columns::{Builder, Layout, SHAPES, timestamp};
pub use feedback::schema as feedback_schema;
pub use frame::{Prediction, PredictionView, TensorView};
pub use gaps::{Gap, Why};
pub use hash::HashKey;
pub use queue::Ticket;
pub use read::{Unsealed, unsealed};
pub use seal::properties as parquet_properties;
pub use stream::{Choice, Stream, is_sampled};

use crate::model::{Code, Failure, Feedback, ModelName};
use crate::quality::Quality;
use crate::telemetry::{LogMetrics, Telemetry};
use crossbeam_channel::Sender;
use disk::{Disk, RealDisk};
use jiff::Timestamp;
use queue::Queue;
use seal::Sealer;
use segment::{Number, Segment};
use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use writer::Writer;

/// When an answer may leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Acknowledge {
    /// At once. At most a flush interval of records is lost to `kill -9` or power.
    #[default]
    Memory,
    /// When its record is on the disk.
    Disk,
}

/// What becomes of answers whose record cannot be written, where they wait for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnFailure {
    /// 503.
    #[default]
    Refuse,
    /// They leave all the same, and the record is counted as dropped.
    Serve,
}

/// How predictions are kept.
#[derive(Debug, Clone)]
pub struct Config {
    /// The data directory.
    pub data: PathBuf,
    pub acknowledge: Acknowledge,
    pub on_failure: OnFailure,
    pub flush_interval: Duration,
    /// Bytes of records that may wait to be written; the newest are dropped beyond.
    pub queue_bytes: usize,
    /// As many as threads offer records.
    pub shards: usize,
    pub segment_bytes: u64,
    pub seal_after: Duration,
    /// `None`: as long as they fit.
    pub keep_for: Option<Duration>,
    pub disk_budget: u64,
    pub hash_key_file: Option<PathBuf>,
}

impl Config {
    /// The defaults, in this data directory.
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

/// How the log is doing.
#[derive(Debug, Clone, Default)]
pub struct Status {
    /// Written since the start.
    pub records: u64,
    /// The last failure to write, and since when nothing can be written; both `None` while all is well.
    pub last_error: Option<String>,
    pub failing_since: Option<Timestamp>,
    /// Why some segment cannot be sealed.
    pub seal_error: Option<String>,
    pub last_written: Option<Timestamp>,
}

/// The prediction log. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Log(Arc<Shared>);

/// Ends the log in order.
#[derive(Debug)]
pub struct Stop {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
    sealer: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    config: Config,
    queue: Queue,
    key: Arc<HashKey>,
    /// By number; the writer looks them up once per segment.
    streams: Mutex<HashMap<u32, Arc<Stream>>>,
    last_number: AtomicU64,
    /// The segment that is written to now, which the sealer leaves alone; 0 for none.
    open_segment: AtomicU64,
    open_length: AtomicU64,
    /// Of segments that wait to be sealed.
    closed_bytes: AtomicU64,
    status: Mutex<Status>,
    metrics: LogMetrics,
    stopping: AtomicBool,
    sealer_stopping: AtomicBool,
    seal_now: AtomicBool,
    sealer: Sender<()>,
}

/// Microseconds since 1970, UTC.
#[must_use]
pub fn now() -> i64 {
    Timestamp::now().as_microsecond()
}

fn unavailable(why: &str) -> Failure {
    Failure::new(Code::LogUnavailable, "the prediction log cannot be written now; try again shortly").with_internal(why)
}

impl Log {
    /// Starts the threads, which first seal what a server before this one left.
    ///
    /// # Errors
    /// When the data directory cannot be used, the hash key not be read, or there are no threads.
    pub fn start(config: Config, quality: Quality, telemetry: &Telemetry) -> io::Result<(Log, Stop)> {
        Log::start_on(config, quality, telemetry, Box::new(RealDisk))
    }

    fn start_on(
        config: Config,
        quality: Quality,
        telemetry: &Telemetry,
        disk: Box<dyn Disk>,
    ) -> io::Result<(Log, Stop)> {
        std::fs::create_dir_all(segment::dir(&config.data))?;
        let key = Arc::new(HashKey::find(config.hash_key_file.as_deref(), &config.data)?);
        let left = segment::list(&config.data)?;
        let gap = unclean_stop(&config, left.last().copied())?;
        let (sealer, woken) = crossbeam_channel::bounded(1);
        let reasons = Why::ALL.map(Why::as_str);
        let shared = Arc::new(Shared {
            queue: Queue::new(config.shards, config.queue_bytes),
            key,
            streams: Mutex::new(HashMap::new()),
            last_number: AtomicU64::new(left.last().copied().unwrap_or(0)),
            open_segment: AtomicU64::new(0),
            open_length: AtomicU64::new(0),
            closed_bytes: AtomicU64::new(0),
            status: Mutex::new(Status::default()),
            metrics: LogMetrics::new(telemetry, &reasons, &seal::DELETED),
            stopping: AtomicBool::new(false),
            sealer_stopping: AtomicBool::new(false),
            seal_now: AtomicBool::new(false),
            sealer,
            config,
        });
        // A mark that is there stays as old as it is until the gap it stands for is written: this server may be killed before.
        if gap.is_none() {
            shared.mark_running();
        }
        let writer = Writer::new(Arc::clone(&shared), disk, quality, gap.into_iter().collect());
        let writer = std::thread::Builder::new().name("log".to_owned()).spawn(move || writer.run())?;
        let own = Sealer::new(Arc::clone(&shared));
        let sealer = std::thread::Builder::new().name("log-seal".to_owned()).spawn(move || own.run(&woken))?;
        let stop = Stop { shared: Arc::clone(&shared), writer: Some(writer), sealer: Some(sealer) };
        Ok((Log(shared), stop))
    }

    /// Where a version's records go; `None` where they are not wanted. The same answer for the same question.
    #[must_use]
    pub fn stream(&self, about: &About, choice: &Choice) -> Option<Arc<Stream>> {
        if !choice.enabled {
            return None;
        }
        let pick = |side: Side, named: &std::collections::BTreeSet<String>| -> Vec<String> {
            let of_side = |spec: &crate::model::TensorSpec| format!("{}.{}", side.as_str(), spec.name);
            about.specs(side).iter().map(of_side).filter(|column| named.contains(column)).collect()
        };
        let both = |named| pick(Side::Inputs, named).into_iter().chain(pick(Side::Outputs, named)).collect();
        let about = About { hashed: both(&choice.hash), dropped: both(&choice.drop), ..about.clone() };
        let mut streams = self.0.streams.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = streams.values().find(|known| *known.about == about && known.choice == *choice) {
            return Some(Arc::clone(known));
        }
        // A number that is new in this process: streams are as few as loads and changes of model.toml.
        let id = u32::try_from(streams.len()).unwrap_or(u32::MAX);
        let stream = Arc::new(Stream::new(id, Arc::new(about), choice.clone(), Arc::clone(&self.0.key)));
        streams.insert(id, Arc::clone(&stream));
        Some(stream)
    }

    /// Whether an answer waits for its record.
    #[must_use]
    pub fn waits(&self) -> bool {
        self.0.waits()
    }

    /// Takes in a prediction. Never waits. `waits`: somebody will wait for the ticket, where the configuration asks for one.
    ///
    /// # Errors
    /// `LOG_UNAVAILABLE`, where the answer must not leave without its record and the record cannot be taken in.
    pub fn offer(&self, stream: &Stream, prediction: &Prediction, waits: bool) -> Result<Option<Ticket>, Failure> {
        let waits = waits && self.0.waits();
        let append = |out: &mut Vec<u8>| Ok((frame::prediction(out, stream, prediction)?, Some(stream.id)));
        self.0.queue.append(waits, append).or_else(|why| {
            let refuse = waits && self.0.config.on_failure == OnFailure::Refuse;
            if refuse { Err(unavailable(why.as_str())) } else { Ok(None) }
        })
    }

    /// Waits for a prediction's record, and says what that means for the answer.
    ///
    /// # Errors
    /// `LOG_UNAVAILABLE`, where the answer must not leave.
    pub async fn durable(&self, ticket: Ticket) -> Result<(), Failure> {
        match ticket.durable().await {
            Err(failure) if self.0.config.on_failure == OnFailure::Refuse => Err(failure),
            _ => Ok(()),
        }
    }

    /// Takes in feedback; it is on the disk when the ticket is durable, all of it or nothing.
    ///
    /// # Errors
    /// `LOG_UNAVAILABLE` when it cannot be taken in.
    pub fn tell(&self, model: &ModelName, entries: &[Feedback]) -> Result<Ticket, Failure> {
        let append = |out: &mut Vec<u8>| feedback::write(out, model, now(), entries).map(|()| (0, None));
        let ticket = self.0.queue.append(true, append).map_err(|why| match why {
            Why::TooLarge => self.too_many(entries.len()),
            why => unavailable(why.as_str()),
        })?;
        self.0.metrics.feedback.increment(entries.len() as u64);
        ticket.ok_or_else(|| unavailable("feedback without bytes"))
    }

    /// Feedback is taken whole or not at all, so trying again would not help.
    fn too_many(&self, entries: usize) -> Failure {
        let most = self.0.queue.most();
        let words = format!(
            "{entries} entries of feedback take more than the {most} bytes taken at once; send fewer in a request"
        );
        Failure::new(Code::BodyTooLarge, words)
    }

    /// How it is doing.
    #[must_use]
    pub fn status(&self) -> Status {
        self.0.status().clone()
    }

    /// Records lost since the start, by reason.
    pub fn dropped(&self) -> impl Iterator<Item = (Why, u64)> {
        Why::ALL.map(|why| (why, self.0.queue.dropped(why))).into_iter()
    }

    /// Bytes that wait to be written.
    #[must_use]
    pub fn queue_bytes(&self) -> usize {
        self.0.queue.bytes()
    }
}

/// What a server before this one may have lost: it left the mark that it runs.
fn unclean_stop(config: &Config, last: Option<Number>) -> io::Result<Option<Gap>> {
    let marked = match std::fs::metadata(Shared::mark(config)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        marked => marked?.modified()?,
    };
    let segment = last.map(|number| Segment::read(&segment::path(&config.data, number))).transpose()?;
    let contents = segment.as_ref().map(Segment::contents);
    // The last record of a segment that was not closed, else when the last one was.
    let last = contents.filter(|contents| !contents.ended).and_then(|contents| contents.last);
    let from = last.unwrap_or_else(|| Timestamp::try_from(marked).unwrap_or_default().as_microsecond());
    tracing::warn!(
        "the server before this one did not stop in order: records since {} may be missing",
        Timestamp::from_microsecond(from).unwrap_or_default()
    );
    Ok(Some(Gap { from, to: now(), records: None, why: Why::UncleanStop }))
}

impl Shared {
    fn mark(config: &Config) -> PathBuf {
        segment::dir(&config.data).join("running")
    }

    /// Leaves the mark that a server runs and may hold what is on no disk yet; its time is when a segment was last closed.
    fn mark_running(&self) {
        // Without it, an unclean stop goes unnoticed when nothing was written since: no reason not to serve.
        if let Err(error) = std::fs::write(Shared::mark(&self.config), b"") {
            tracing::warn!(%error, "the log cannot mark that it runs");
        }
    }

    fn next_number(&self) -> Number {
        let now = u64::try_from(now()).unwrap_or(0);
        let next = |last: Number| Some(now.max(last + 1));
        let last = self.last_number.fetch_update(Ordering::AcqRel, Ordering::Acquire, next).unwrap_or_else(|last| last);
        now.max(last + 1)
    }

    fn status(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake_sealer(&self) {
        // Full: it is woken already.
        let _ = self.sealer.try_send(());
    }

    fn over_budget(&self, over: bool) {
        let stopping = self.stopping.load(Ordering::Acquire);
        if !stopping {
            self.queue.close(over.then_some(Why::Budget));
        }
    }
}

impl Status {
    fn worked(&mut self, records: u64) {
        self.records += records;
        self.last_written = Some(Timestamp::now());
        self.failing_since = None;
        self.last_error = None;
    }

    fn failed(&mut self, error: &io::Error) {
        self.failing_since = self.failing_since.or_else(|| Some(Timestamp::now()));
        self.last_error = Some(error.to_string());
    }
}

impl Stop {
    /// Writes what waits and seals it, as far as `left` allows; what is not sealed then is by the next start.
    pub fn stop(mut self, left: Duration) {
        let until = Instant::now() + left;
        self.shared.stopping.store(true, Ordering::Release);
        self.shared.queue.wake();
        if let Some(writer) = self.writer.take()
            && !join(writer, until)
        {
            tracing::error!("the prediction log did not end in time; what it had not written is lost");
            return;
        }
        // Everything is on the disk; that much is in order.
        let _ = std::fs::remove_file(Shared::mark(&self.shared.config));
        self.shared.sealer_stopping.store(true, Ordering::Release);
        self.shared.wake_sealer();
        if let Some(sealer) = self.sealer.take()
            && !join(sealer, until)
        {
            tracing::info!("some of the log is not sealed yet; the next start does it");
        }
    }
}

/// Waits for a thread, no longer than until then.
fn join(thread: JoinHandle<()>, until: Instant) -> bool {
    while !thread.is_finished() {
        if Instant::now() >= until {
            return false;
        }
        std::thread::park_timeout(Duration::from_millis(2));
    }
    thread.join().is_ok()
}
