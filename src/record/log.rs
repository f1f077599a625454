//! The log itself: starts and stops its threads, and takes records.

use super::config::{Acknowledge, Config, OnFailure};
use super::deleted::{Deleted, Deletions};
use super::disk::{Disk, RealDisk};
use super::gaps::{DropReason, Gap};
use super::hash::HashKey;
use super::prediction::{Planned, Prediction};
use super::queue::{Queue, Ticket};
use super::sampling::{self, Kept, Sampling};
use super::seal::Sealer;
use super::segment::{self, Number, Segment};
use super::space::{self, Space};
use super::stream::{Choice, Stream};
use super::writer::Writer;
use super::{About, Side, feedback, now, unavailable};
use crate::drift::Drift;
use crate::model::{Code, Failure, Feedback, ModelName};
use crate::quality::Quality;
use crate::telemetry::{LogMetrics, Telemetry};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use jiff::Timestamp;
use std::collections::{BTreeSet, HashMap};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The state of the log.
#[derive(Debug, Clone)]
pub struct Status {
    /// Records written since the start.
    pub records: u64,
    /// The last failure to write, and the time since which nothing can be written; both `None` while writing works.
    pub last_error: Option<String>,
    pub failing_since: Option<Timestamp>,
    /// Why a segment cannot be sealed.
    pub seal_error: Option<String>,
    pub last_written: Option<Timestamp>,
    /// The share of the offered records that was kept lately: 1 while the log keeps up.
    pub kept_share: f64,
    /// Since when records are left out because the log cannot keep up; `None` while all are kept.
    pub sampling_since: Option<Timestamp>,
}

/// Bytes of the log on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskBytes {
    /// All segments: records that are not sealed yet.
    pub segments: u64,
    /// The sealed Parquet files.
    pub sealed: u64,
    /// The most bytes that both may have.
    pub budget: u64,
}

/// The prediction log. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Log(pub(super) Arc<Shared>);

/// Stops the log in order.
#[derive(Debug)]
pub struct Stop {
    shared: Arc<Shared>,
    writer: Running,
    sealer: Running,
}

/// A thread of the log.
#[derive(Debug)]
struct Running {
    thread: JoinHandle<()>,
    /// Disconnected when the thread ends.
    ended: Receiver<()>,
}

/// What the log, its writer and its sealer share.
#[derive(Debug)]
pub(super) struct Shared {
    pub config: Config,
    pub queue: Queue,
    pub key: Arc<HashKey>,
    pub quality: Quality,
    pub drift: Drift,
    /// By number; the writer looks them up once per segment.
    pub streams: Mutex<HashMap<u32, Arc<Stream>>>,
    last_number: AtomicU64,
    /// The segment that is being written, which the sealer leaves alone; 0 for none.
    pub open_segment: AtomicU64,
    pub open_length: AtomicU64,
    /// What is on the disk.
    pub space: Space,
    pub sampling: Sampling,
    /// Bytes of segments that the sealer seals per second, as the bits of an `f64`; 0 before it has sealed one.
    pub seal_speed: AtomicU64,
    status: Mutex<Status>,
    pub metrics: LogMetrics,
    /// Tells the writer to stop.
    pub stopping: AtomicBool,
    /// Tells the sealer to stop, once the writer has stopped.
    pub sealer_stopping: AtomicBool,
    /// Asks the writer to end the open segment; for tests.
    pub seal_now: AtomicBool,
    sealer: Sender<()>,
    /// Has an item after files were sealed, for the room that uploads them.
    pub sealed: (Sender<()>, Receiver<()>),
}

impl Log {
    /// Starts the threads. They first seal what a previous server left.
    ///
    /// # Errors
    /// When the data directory cannot be used, the hash key cannot be read, or a thread cannot be started.
    pub fn start(config: Config, quality: Quality, telemetry: &Telemetry) -> io::Result<(Log, Stop)> {
        Log::start_on(config, quality, telemetry, Box::new(RealDisk))
    }

    pub(super) fn start_on(
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
        let reasons = DropReason::ALL.map(DropReason::as_str);
        let shared = Arc::new(Shared {
            queue: Queue::new(config.shards, config.queue_bytes),
            key,
            quality: quality.clone(),
            drift: Drift::default(),
            streams: Mutex::new(HashMap::new()),
            last_number: AtomicU64::new(left.last().copied().unwrap_or(0)),
            open_segment: AtomicU64::new(0),
            open_length: AtomicU64::new(0),
            space: Space::find(&config)?,
            sampling: Sampling::new(config.acknowledge == Acknowledge::Memory),
            seal_speed: AtomicU64::new(0),
            status: Mutex::new(Status::default()),
            metrics: LogMetrics::new(telemetry, &reasons, &space::DELETED),
            stopping: AtomicBool::new(false),
            sealer_stopping: AtomicBool::new(false),
            seal_now: AtomicBool::new(false),
            sealer,
            sealed: crossbeam_channel::bounded(1),
            config,
        });
        shared.space.show(&shared.metrics);
        // An existing marker keeps its time until the gap it stands for is written: this server may be killed before.
        if gap.is_none() {
            shared.mark_running();
        }
        let writer = Writer::new(Arc::clone(&shared), disk, quality, gap.into_iter().collect());
        let closing = CloseQueue(Arc::clone(&shared));
        let writer = Running::start("log", move || {
            let _closing = closing;
            writer.run();
        })?;
        let own = Sealer::new(Arc::clone(&shared));
        let sealer = Running::start("log-seal", move || own.run(&woken))?;
        Ok((Log(Arc::clone(&shared)), Stop { shared, writer, sealer }))
    }

    /// Tells the key that route keys are hashed with apart from those of other gateways.
    #[must_use]
    pub fn key_fingerprint(&self) -> String {
        self.0.key.fingerprint()
    }

    /// The counts of the values of recorded rows.
    #[must_use]
    pub fn drift(&self) -> &Drift {
        &self.0.drift
    }

    /// The stream for the records of one version; `None` where it is not recorded. Equal arguments give the same stream.
    #[must_use]
    pub fn stream(&self, about: &About, choice: &Choice) -> Option<Arc<Stream>> {
        if !choice.enabled {
            return None;
        }
        let pick = |side: Side, named: &BTreeSet<String>| -> Vec<String> {
            about.specs(side).iter().map(|spec| side.column(spec)).filter(|column| named.contains(column)).collect()
        };
        let both = |named| pick(Side::Inputs, named).into_iter().chain(pick(Side::Outputs, named)).collect();
        let masks = choice.mask.iter().map(|mask| mask.column.clone()).collect();
        let (hashed, dropped, masked) = (both(&choice.hash), both(&choice.drop), both(&masks));
        let about = About { hashed, dropped, ..about.clone() }.with_masked(masked);
        let mut streams = self.0.streams.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = streams.values().find(|known| *known.about == about && known.choice == *choice) {
            return Some(Arc::clone(known));
        }
        // A new number for each stream of this process: there are only as many as loads and changes of model.toml.
        let id = u32::try_from(streams.len()).unwrap_or(u32::MAX);
        let stream = Arc::new(Stream::new(id, Arc::new(about), choice.clone(), Arc::clone(&self.0.key)));
        streams.insert(id, Arc::clone(&stream));
        Some(stream)
    }

    /// Queues a prediction. Never waits. With `waits` and `acknowledge = "disk"` there is a ticket to wait for. While the log cannot keep
    /// up, only a share of the predictions is kept, unless answers wait for the disk.
    ///
    /// # Errors
    /// `LOG_UNAVAILABLE` when the prediction must not be answered, as its record cannot be queued.
    pub fn offer(&self, stream: &Stream, prediction: &Prediction, waits: bool) -> Result<Option<Ticket>, Failure> {
        self.plan(stream, prediction).map_or(Ok(None), |frame| self.queue(&frame, waits))
    }

    /// The frame of a prediction; `None` where it has no record, or is not in the sample that the log can keep up with. Decided before
    /// anything is copied.
    fn plan<'a>(&self, stream: &'a Stream, prediction: &'a Prediction<'a>) -> Option<Planned<'a>> {
        let frame = Planned::new(stream, prediction)?.within(self.0.queue.max_frame());
        let sampling = &self.0.sampling;
        let probability = sampling.probability(frame.bytes(), self.0.queue.full_for(frame.bytes()));
        if probability >= 1.0 {
            return Some(frame);
        }
        if !sampling::is_kept(prediction.request_id, prediction.ts, probability) {
            sampling.leave_out(frame.records());
            return None;
        }
        Some(frame.sampled(probability))
    }

    fn queue(&self, frame: &Planned, waits: bool) -> Result<Option<Ticket>, Failure> {
        let queued = self.0.queue.reserve(frame.bytes(), frame.records()).and_then(|reserved| {
            // Only a record that fits is hashed, and before a shard is locked.
            let hashes = frame.hash();
            reserved.append(self.waits(waits), Some(frame.stream().id), |out| frame.write(out, &hashes))
        });
        if queued.is_ok() {
            frame.join(&self.0.quality);
        }
        self.answer(queued, frame.bytes(), waits)
    }

    /// Whether an answer waits for its record.
    fn waits(&self, waits: bool) -> bool {
        waits && self.0.config.acknowledge == Acknowledge::Disk
    }

    /// What a caller of [`Log::offer`] gets.
    fn answer(
        &self,
        queued: Result<Option<Ticket>, DropReason>,
        bytes: usize,
        waits: bool,
    ) -> Result<Option<Ticket>, Failure> {
        match queued {
            Err(reason) if self.waits(waits) && self.0.config.on_failure == OnFailure::Refuse => {
                Err(self.refusal(reason, bytes))
            }
            queued => Ok(queued.unwrap_or(None)),
        }
    }

    /// Waits until a prediction's record is on the disk, at most until the deadline.
    ///
    /// # Errors
    /// `LOG_UNAVAILABLE` when the prediction must not be answered: its record could not be written, or not in time.
    pub(crate) async fn durable(&self, ticket: Ticket, deadline: Instant) -> Result<(), Failure> {
        match ticket.durable(deadline).await {
            Err(failure) if self.0.config.on_failure == OnFailure::Refuse => Err(failure),
            _ => Ok(()),
        }
    }

    /// Stores feedback for a model, all entries or none, as `choice` says. Returns when they are on the disk.
    ///
    /// # Errors
    /// `LOG_UNAVAILABLE` when it cannot be stored, or was not on the disk before the deadline; then it may still be stored.
    /// `BODY_TOO_LARGE` when it can never be queued.
    pub(crate) async fn record_feedback(
        &self,
        model: &ModelName,
        choice: &Choice,
        entries: &[Feedback],
        deadline: Instant,
    ) -> Result<(), Failure> {
        self.queue_feedback(model, choice, entries)?.durable(deadline).await
    }

    pub(super) fn queue_feedback(
        &self,
        model: &ModelName,
        choice: &Choice,
        entries: &[Feedback],
    ) -> Result<Ticket, Failure> {
        let queue = &self.0.queue;
        let mut frame = Vec::new();
        let too_large = |_| self.too_many(entries.len());
        let hides = choice.hides_feedback();
        if hides {
            let stored = entries.iter().filter_map(|entry| choice.stored_feedback(entry, &self.0.key));
            feedback::write(&mut frame, model, now(), &stored.collect::<Vec<_>>(), true).map_err(too_large)?;
        } else {
            feedback::write(&mut frame, model, now(), entries, false).map_err(too_large)?;
        }
        let queued = queue
            .reserve(frame.len(), 0)
            .and_then(|reserved| reserved.append(true, None, |out| out.extend_from_slice(&frame)));
        let ticket = queued.map_err(|reason| match reason {
            DropReason::TooLarge => self.too_many(entries.len()),
            reason => self.refusal(reason, frame.len()),
        })?;
        self.0.metrics.feedback.increment(entries.len() as u64);
        if hides {
            // What is hidden in the log is joined before.
            self.0.quality.record_feedback(model, entries.to_vec(), now());
        }
        ticket.ok_or_else(|| unavailable("no ticket for feedback"))
    }

    /// The answer where a record cannot be queued.
    fn refusal(&self, reason: DropReason, bytes: usize) -> Failure {
        let words = match reason {
            // Another try would end in the same way.
            DropReason::TooLarge => format!(
                "the record of this request has {bytes} bytes, more than the {} that prediction_log.queue_bytes allows; send fewer rows",
                self.0.queue.max_frame()
            ),
            DropReason::Stopping => "the prediction log has stopped".to_owned(),
            reason => return unavailable(reason.as_str()),
        };
        Failure::new(Code::LogUnavailable, words).with_internal(reason.as_str())
    }

    /// Feedback is stored as a whole or not at all, so another try would end in the same way.
    fn too_many(&self, entries: usize) -> Failure {
        let limit = self.0.queue.max_frame();
        let words = format!(
            "{entries} entries of feedback take more than the {limit} bytes that one request may have; send fewer entries"
        );
        Failure::new(Code::BodyTooLarge, words)
    }

    /// The files that were deleted since the last call.
    pub(crate) fn take_deleted(&self) -> Vec<Deleted> {
        self.0.space.deletions(Deletions::take)
    }

    /// Puts a deletion back that could not be stored in the audit trail.
    pub(crate) fn put_deleted_back(&self, deleted: Deleted) {
        self.0.space.deletions(|deletions| deletions.put_back(deleted));
    }

    #[must_use]
    pub(crate) fn status(&self) -> Status {
        self.0.status().clone()
    }

    /// Records lost since the start, by reason.
    pub fn dropped(&self) -> impl Iterator<Item = (DropReason, u64)> {
        DropReason::ALL.map(|reason| (reason, self.0.queue.dropped(reason))).into_iter()
    }

    /// Records left out since the start because the log could not keep up. `sample_rate` of the others accounts for them.
    #[must_use]
    pub fn left_out(&self) -> u64 {
        self.0.sampling.left_out()
    }

    /// Bytes that wait to be written.
    #[must_use]
    pub fn queue_bytes(&self) -> usize {
        self.0.queue.bytes()
    }

    /// Bytes on the disk.
    #[must_use]
    pub fn disk_bytes(&self) -> DiskBytes {
        let space = &self.0.space;
        DiskBytes { segments: space.segments(), sealed: space.sealed(), budget: space.budget() }
    }
}

/// The records that a previous server may have lost: it left its marker, so it did not stop in order.
fn unclean_stop(config: &Config, last: Option<Number>) -> io::Result<Option<Gap>> {
    let marked = match std::fs::metadata(Shared::marker(config)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        marked => marked?.modified()?,
    };
    let segment = last.map(|number| Segment::read(&segment::path(&config.data, number))).transpose()?;
    let contents = segment.as_ref().map(Segment::contents);
    // The last record of a segment that was not closed, else the time at which the last segment was closed.
    let last = contents.filter(|contents| !contents.ended).and_then(|contents| contents.last);
    let from = last.unwrap_or_else(|| Timestamp::try_from(marked).unwrap_or_default().as_microsecond());
    tracing::warn!(
        "the previous server did not stop in order: records since {} may be missing",
        Timestamp::from_microsecond(from).unwrap_or_default()
    );
    Ok(Some(Gap { from, to: now(), records: None, reason: DropReason::UncleanStop }))
}

impl Shared {
    /// A file that is there while a server runs.
    fn marker(config: &Config) -> PathBuf {
        segment::dir(&config.data).join("running")
    }

    /// Writes the marker of a running server, which may hold records that are not on the disk yet. Its time is when a segment was last
    /// closed.
    pub fn mark_running(&self) {
        // Without the marker, an unclean stop goes unnoticed when nothing was written since. That is no reason not to serve.
        if let Err(error) = std::fs::write(Shared::marker(&self.config), b"") {
            tracing::warn!(%error, "the log's marker of a running server cannot be written");
        }
    }

    pub fn next_number(&self) -> Number {
        let now = u64::try_from(now()).unwrap_or(0);
        let next = |last: Number| Some(now.max(last + 1));
        let last = self.last_number.fetch_update(Ordering::AcqRel, Ordering::Acquire, next).unwrap_or_else(|last| last);
        now.max(last + 1)
    }

    pub fn status(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn wake_sealer(&self) {
        // A full channel means that it was woken already.
        let _ = self.sealer.try_send(());
    }

    /// Closes the queue and resolves the tickets of everything in it with an error.
    fn close_queue(&self) {
        for filled in self.queue.close() {
            self.queue.count_dropped(DropReason::Stopping, filled.records);
            self.queue.done(filled, Err(unavailable("the log stopped before the record was written")));
        }
    }
}

/// Closes the queue when the writer's thread ends, also when it panics.
struct CloseQueue(Arc<Shared>);

impl Drop for CloseQueue {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!("the prediction log's writer panicked; no more records are written until a restart");
        }
        self.0.close_queue();
    }
}

impl Default for Status {
    fn default() -> Status {
        Status {
            records: 0,
            last_error: None,
            failing_since: None,
            seal_error: None,
            last_written: None,
            kept_share: 1.0,
            sampling_since: None,
        }
    }
}

impl Status {
    /// Notes how much was kept. Returns whether the log samples, where that has changed.
    pub(super) fn kept(&mut self, kept: Kept) -> Option<bool> {
        self.kept_share = kept.share;
        if kept.samples == self.sampling_since.is_some() {
            return None;
        }
        self.sampling_since = kept.samples.then(Timestamp::now);
        Some(kept.samples)
    }

    pub(super) fn worked(&mut self, records: u64) {
        self.records += records;
        self.last_written = Some(Timestamp::now());
        self.failing_since = None;
        self.last_error = None;
    }

    pub(super) fn failed(&mut self, error: &io::Error) {
        self.failing_since = self.failing_since.or_else(|| Some(Timestamp::now()));
        self.last_error = Some(error.to_string());
    }
}

impl Stop {
    /// Writes everything that waits and seals it, within `limit`. The next start seals the rest.
    pub fn stop(self, limit: Duration) {
        let until = Instant::now() + limit;
        self.shared.stopping.store(true, Ordering::Release);
        self.shared.queue.wake();
        if !self.writer.join(until) {
            tracing::error!("the prediction log did not stop in time; records that were not written yet are lost");
            self.shared.close_queue();
            return;
        }
        // Everything is on the disk: this is a clean stop.
        let _ = std::fs::remove_file(Shared::marker(&self.shared.config));
        self.shared.sealer_stopping.store(true, Ordering::Release);
        self.shared.wake_sealer();
        if !self.sealer.join(until) {
            tracing::info!("some segments of the log are not sealed yet; the next start seals them");
        }
    }
}

impl Running {
    fn start(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<Running> {
        let (alive, ended) = crossbeam_channel::bounded::<()>(0);
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let _alive = alive;
            run();
        })?;
        Ok(Running { thread, ended })
    }

    /// Waits for the thread, at most until `until`. Whether it ended without a panic.
    fn join(self, until: Instant) -> bool {
        // Nothing is ever sent: the channel is disconnected when the thread ends.
        match self.ended.recv_deadline(until) {
            Err(RecvTimeoutError::Timeout) => false,
            _ => self.thread.join().is_ok(),
        }
    }
}
