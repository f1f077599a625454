//! What one connection is doing, and what it is told to do. The connection writes the first, its timers and the acceptor read it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

/// How soon after the end of its request a client closes its sending half if it waits for the answer (`nc -N`, `socat`). A client that closes
/// later gave up: its request is dropped.
const HALF_CLOSE: Duration = Duration::from_millis(100);

/// The frames of HTTP/2 after which other connections of the thread are served. A frame may be a request, which takes microseconds.
const FRAMES_PER_TURN: u32 = 128;

/// What a connection is told, in rising order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Stage {
    /// Answer requests.
    Open,
    /// The server stops. Each answer says that its connection closes.
    Announce,
    /// Close as soon as no request is in progress.
    CloseIdle,
}

impl Stage {
    pub(super) fn of(stage: u8) -> Stage {
        match stage {
            0 => Stage::Open,
            1 => Stage::Announce,
            _ => Stage::CloseIdle,
        }
    }
}

/// What one connection is doing. All fields are written by the thread of the connection, except `stage` and `evicted`. Others read them.
#[derive(Debug)]
pub(crate) struct Activity {
    /// HTTP/1, as far as is known.
    is_http1: AtomicBool,
    /// A [`Stage`].
    stage: AtomicU8,
    /// The acceptor needs the place of this connection.
    evicted: AtomicBool,
    /// Notified after a change of `stage` or `evicted`.
    told: Notify,
    /// Not 0: bytes of request headers have arrived, but not all of them. The number differs from that of the last incomplete headers.
    partial_head: AtomicU64,
    /// All requests so far.
    requests: AtomicU64,
    /// Requests whose answer is not handed to the socket completely.
    active: AtomicU32,
    /// Those of them whose answer has begun.
    answering: AtomicU32,
    /// The body of the current request is not read completely. For HTTP/1.
    reading_body: AtomicBool,
    /// The client closed its sending half, which is hidden from the protocol until the answer is written. For HTTP/1.
    half_closed: AtomicBool,
    /// It did so in the middle of a request.
    is_cut_off: AtomicBool,
    /// When the current request was complete, as far as is known. For HTTP/1.
    complete: AtomicU64,
    /// When the last request ended, or else when the connection began.
    last: AtomicU64,
    /// The socket takes no more bytes at the moment.
    write_blocked: AtomicBool,
    /// The connection is closing, and the client has not taken all bytes yet.
    lingers: AtomicBool,
    /// Bytes that the socket took.
    written: AtomicU64,
    /// The connection is closed while it is idle, so that no answer is on its way.
    closes_at_once: AtomicBool,
    /// Close without waiting for the client, and drop what the kernel has not sent.
    reset: AtomicBool,
    /// Frames of HTTP/2 that were read since the connection's turn on its thread began.
    turn: AtomicU32,
    /// The client has sent too many frames that carry no request.
    flooded: AtomicBool,
    /// Answers on streams of HTTP/2 that are not handed to the socket completely.
    /// The key is the address of the value.
    streams: Mutex<HashMap<usize, Arc<Stream>>>,
}

/// An answer on a stream of HTTP/2.
#[derive(Debug, Default)]
pub(super) struct Stream {
    /// The body, and each part that was taken out of it, as long as they exist.
    guards: AtomicU32,
    /// Parts that are not written yet.
    waiting: AtomicU32,
    /// Bytes of the answer that were written to the connection.
    taken: AtomicU64,
    /// The task that offers the answer's bytes to HTTP/2's flow control. Ending it resets the stream.
    pub(super) task: OnceLock<AbortHandle>,
}

impl Stream {
    pub(super) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// Resets the stream. False if HTTP/2 has all of the answer already, or if it was reset before.
    pub(super) fn reset(&self) -> bool {
        let Some(task) = self.task.get().filter(|task| !task.is_finished()) else { return false };
        task.abort();
        true
    }
}

/// Adds without an atomic read-modify-write: only one thread writes the counters of a connection.
fn add(counter: &AtomicU32, n: u32) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
}

fn add_long(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
}

fn subtract_one(counter: &AtomicU32) -> u32 {
    let left = counter.load(Ordering::Relaxed).wrapping_sub(1);
    counter.store(left, Ordering::Relaxed);
    left
}

/// Milliseconds since the first call.
fn millis(at: Instant) -> u64 {
    static FIRST: LazyLock<Instant> = LazyLock::new(Instant::now);
    u64::try_from(at.saturating_duration_since(*FIRST).as_millis()).unwrap_or(u64::MAX)
}

impl Activity {
    pub(super) fn new(stage: Stage) -> Activity {
        let now = millis(Instant::now());
        Activity {
            is_http1: AtomicBool::new(true),
            stage: AtomicU8::new(stage as u8),
            evicted: AtomicBool::new(false),
            told: Notify::new(),
            partial_head: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            active: AtomicU32::new(0),
            answering: AtomicU32::new(0),
            reading_body: AtomicBool::new(false),
            half_closed: AtomicBool::new(false),
            is_cut_off: AtomicBool::new(false),
            complete: AtomicU64::new(now),
            last: AtomicU64::new(now),
            write_blocked: AtomicBool::new(false),
            lingers: AtomicBool::new(false),
            written: AtomicU64::new(0),
            closes_at_once: AtomicBool::new(false),
            reset: AtomicBool::new(false),
            turn: AtomicU32::new(0),
            flooded: AtomicBool::new(false),
            streams: Mutex::default(),
        }
    }

    // === what the connection is told ===

    pub(super) fn stage(&self) -> Stage {
        Stage::of(self.stage.load(Ordering::Acquire))
    }

    pub(super) fn tell(&self, stage: Stage) {
        self.stage.fetch_max(stage as u8, Ordering::AcqRel);
        self.told.notify_one();
    }

    /// Asks an idle connection to close.
    pub(super) fn evict(&self) {
        self.evicted.store(true, Ordering::Release);
        self.told.notify_one();
    }

    pub(super) fn is_evicted(&self) -> bool {
        self.evicted.load(Ordering::Acquire)
    }

    /// Takes the request to close. A connection that is in use again keeps its place.
    pub(super) fn take_eviction(&self) -> bool {
        self.evicted.load(Ordering::Relaxed) && self.evicted.swap(false, Ordering::AcqRel)
    }

    pub(super) fn told(&self) -> impl Future<Output = ()> + '_ {
        self.told.notified()
    }

    // === requests ===

    pub(super) fn set_http2(&self) {
        self.is_http1.store(false, Ordering::Relaxed);
    }

    /// Begins a request. It is active until the guard is dropped.
    pub(super) fn begin(self: &Arc<Self>, has_body: bool, now: Instant) -> RequestGuard {
        add_long(&self.requests, 1);
        add(&self.active, 1);
        self.reading_body.store(has_body, Ordering::Relaxed);
        self.complete.store(millis(now), Ordering::Relaxed);
        RequestGuard(Arc::clone(self))
    }

    /// The body of the current request is complete.
    pub(super) fn body_is_read(&self) {
        self.complete.store(millis(Instant::now()), Ordering::Relaxed);
        self.reading_body.store(false, Ordering::Relaxed);
    }

    pub(super) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    pub(super) fn is_answering(&self) -> bool {
        self.answering.load(Ordering::Relaxed) > 0
    }

    /// A request is in progress.
    pub(super) fn has_request(&self) -> bool {
        self.active.load(Ordering::Relaxed) > 0
    }

    /// No request is in progress, and the socket has taken all bytes of the answers.
    pub(super) fn is_idle(&self) -> bool {
        self.active.load(Ordering::Relaxed) == 0 && !self.is_write_blocked() && !self.lingers.load(Ordering::Relaxed)
    }

    /// How long the connection has been without a request.
    pub(super) fn idle_for(&self, now: Instant) -> Duration {
        Duration::from_millis(millis(now).saturating_sub(self.last.load(Ordering::Relaxed)))
    }

    // === frames ===

    /// The thread begins to serve this connection.
    pub(super) fn begin_turn(&self) {
        self.turn.store(0, Ordering::Relaxed);
    }

    pub(super) fn add_to_turn(&self, frames: u32) {
        self.turn.store(self.turn.load(Ordering::Relaxed).saturating_add(frames), Ordering::Relaxed);
    }

    /// Whether so many frames were read that the thread should serve other connections first.
    pub(super) fn turn_is_over(&self) -> bool {
        self.turn.load(Ordering::Relaxed) >= FRAMES_PER_TURN
    }

    pub(super) fn set_flooded(&self) {
        self.flooded.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_flooded(&self) -> bool {
        self.flooded.load(Ordering::Relaxed)
    }

    // === bytes ===

    /// Sets the number of the incomplete headers, or 0 if there are none.
    pub(super) fn set_partial_head(&self, number: u64) {
        self.partial_head.store(number, Ordering::Relaxed);
    }

    pub(super) fn partial_head(&self) -> u64 {
        self.partial_head.load(Ordering::Relaxed)
    }

    /// The client closed its sending half. Returns whether the request in progress is answered all the same, which hides the end from
    /// the protocol. Where its body is being read, [`Activity::cut_off_request`] tells afterwards whether it had arrived.
    pub(super) fn client_stopped_sending(&self) -> bool {
        let is_waiting = !self.is_idle()
            && !self.is_cut_off.load(Ordering::Relaxed)
            && (self.is_half_closed()
                || self.reading_body.load(Ordering::Relaxed)
                || self.is_answering()
                || self.is_write_blocked()
                || self.is_just_complete());
        if is_waiting {
            self.half_closed.store(true, Ordering::Relaxed);
        }
        is_waiting
    }

    fn is_just_complete(&self) -> bool {
        let age = millis(Instant::now()).saturating_sub(self.complete.load(Ordering::Relaxed));
        u128::from(age) <= HALF_CLOSE.as_millis()
    }

    /// Whether the client closed its sending half before its request was complete. To be asked when the request has been read as far as
    /// it has arrived. True once: from then on the end is not hidden.
    pub(super) fn cut_off_request(&self) -> bool {
        let is_cut_off = self.is_half_closed()
            && self.reading_body.load(Ordering::Relaxed)
            && !self.is_answering()
            && !self.is_cut_off.load(Ordering::Relaxed);
        if is_cut_off {
            self.is_cut_off.store(true, Ordering::Relaxed);
        }
        is_cut_off
    }

    pub(super) fn is_half_closed(&self) -> bool {
        self.half_closed.load(Ordering::Relaxed)
    }

    /// The socket took bytes.
    pub(super) fn wrote(&self, bytes: usize) {
        add_long(&self.written, bytes as u64);
        self.write_blocked.store(false, Ordering::Relaxed);
    }

    pub(super) fn set_write_blocked(&self) {
        self.write_blocked.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_write_blocked(&self) -> bool {
        self.write_blocked.load(Ordering::Relaxed)
    }

    /// The connection waits for the client before it closes.
    pub(super) fn set_lingers(&self) {
        self.lingers.store(true, Ordering::Relaxed);
    }

    pub(super) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// The connection is about to be closed. No answer is on its way, so nothing needs to be awaited.
    pub(super) fn set_closes_at_once(&self) {
        self.closes_at_once.store(true, Ordering::Relaxed);
    }

    pub(super) fn closes_at_once(&self) -> bool {
        self.closes_at_once.load(Ordering::Relaxed)
    }

    pub(super) fn set_reset(&self) {
        self.reset.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_reset(&self) -> bool {
        self.reset.load(Ordering::Relaxed)
    }

    /// The streams of HTTP/2 whose client has not taken a part of the answer that is offered to it.
    pub(super) fn waiting_streams(&self) -> Vec<Arc<Stream>> {
        let is_waiting = |stream: &&Arc<Stream>| stream.waiting.load(Ordering::Relaxed) > 0;
        self.lock_streams().values().filter(is_waiting).cloned().collect()
    }

    /// A panic while the lock is held leaves a complete map.
    fn lock_streams(&self) -> MutexGuard<'_, HashMap<usize, Arc<Stream>>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts a request as active until it is dropped, also if the client disconnects.
#[derive(Debug)]
pub(super) struct RequestGuard(Arc<Activity>);

impl RequestGuard {
    /// The answer begins. `stream` is the stream of HTTP/2 that it is sent on.
    pub(super) fn answer(self, stream: Option<Arc<Stream>>) -> AnswerGuard {
        if let Some(stream) = &stream {
            add(&stream.guards, 1);
            self.0.lock_streams().insert(Arc::as_ptr(stream) as usize, Arc::clone(stream));
        }
        add(&self.0.answering, 1);
        AnswerGuard { request: self, stream, is_part: false }
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        let activity = &self.0;
        if activity.active.load(Ordering::Relaxed) == 1 {
            activity.last.store(millis(Instant::now()), Ordering::Relaxed);
            // The bytes so far belonged to this request. The next ones belong to the next request's headers.
            if activity.is_http1.load(Ordering::Relaxed) {
                activity.set_partial_head(0);
            }
        }
        subtract_one(&activity.active);
    }
}

/// Counts an answer as being written until it is dropped. The body has one, and so has each part of it that is not written yet.
#[derive(Debug)]
pub(super) struct AnswerGuard {
    request: RequestGuard,
    stream: Option<Arc<Stream>>,
    is_part: bool,
}

impl AnswerGuard {
    /// For one more part of the answer.
    pub(super) fn again(&self) -> AnswerGuard {
        let activity = &self.request.0;
        add(&activity.active, 1);
        add(&activity.answering, 1);
        if let Some(stream) = &self.stream {
            add(&stream.guards, 1);
            add(&stream.waiting, 1);
        }
        AnswerGuard { request: RequestGuard(Arc::clone(activity)), stream: self.stream.clone(), is_part: true }
    }

    /// Whether the answer is sent on a stream of HTTP/2.
    pub(super) fn has_stream(&self) -> bool {
        self.stream.is_some()
    }

    /// Bytes of the answer were written.
    pub(super) fn took(&self, bytes: usize) {
        if let Some(stream) = &self.stream {
            add_long(&stream.taken, bytes as u64);
        }
    }
}

impl Drop for AnswerGuard {
    fn drop(&mut self) {
        let activity = &self.request.0;
        subtract_one(&activity.answering);
        if let Some(stream) = &self.stream {
            if self.is_part {
                subtract_one(&stream.waiting);
            }
            if subtract_one(&stream.guards) == 0 {
                activity.lock_streams().remove(&(Arc::as_ptr(stream) as usize));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait_longer_than_a_half_close() {
        let until = Instant::now() + HALF_CLOSE * 2;
        while Instant::now() < until {
            std::thread::park_timeout(HALF_CLOSE);
        }
    }

    #[test]
    fn a_client_that_stops_sending_right_after_its_request_is_answered_however_long_the_run_is() {
        let activity = Arc::new(Activity::new(Stage::Open));
        let request = activity.begin(true, Instant::now());
        wait_longer_than_a_half_close();
        assert!(activity.client_stopped_sending(), "the last bytes of the body may have arrived before");
        activity.body_is_read();
        assert!(!activity.cut_off_request(), "the body is complete");
        wait_longer_than_a_half_close();
        assert!(activity.client_stopped_sending(), "the run goes on");
        drop(request.answer(None));
        assert!(activity.is_idle() && !activity.client_stopped_sending());
    }

    #[test]
    fn a_client_that_leaves_later_or_within_its_request_is_not_answered() {
        let activity = Arc::new(Activity::new(Stage::Open));
        let _request = activity.begin(false, Instant::now());
        wait_longer_than_a_half_close();
        assert!(!activity.client_stopped_sending(), "it gave up");

        let activity = Arc::new(Activity::new(Stage::Open));
        let _request = activity.begin(true, Instant::now());
        assert!(activity.client_stopped_sending());
        assert!(activity.cut_off_request(), "the body is incomplete");
        assert!(!activity.cut_off_request(), "once");
        assert!(!activity.client_stopped_sending(), "the end is no longer hidden");
    }
}
