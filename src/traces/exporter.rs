//! The thread that makes spans and sends them.

use super::Shared;
use super::collector::Collector;
use super::request::Facts;
use super::spans::{self, Clock};
use crate::machine::lower_priority;
use crate::telemetry::{Telemetry, names};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use metrics::Counter;
use opentelemetry::InstrumentationScope;
use opentelemetry_sdk::trace::SpanData;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often the queue is emptied. Nobody wakes the thread: that would cost requests a system call.
const LOOK: Duration = Duration::from_millis(100);
/// The requests of one message to the collector: about 2,500 spans, or 1 MB.
const BATCH: usize = 512;
/// A smaller batch is sent after this time.
const WAIT: Duration = Duration::from_secs(1);
/// The time limit of one try.
const TRY: Duration = Duration::from_secs(5);
/// A batch is tried so many times, and then given up.
const TRIES: u32 = 3;
/// The pauses after failures: 1 s, 2 s, and so on up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// The nice value of the thread.
const NICE: i32 = 10;
const NAME: &str = "traces";

/// The running thread. Nothing without a collector.
#[derive(Debug)]
pub struct Stop(Option<Running>);

#[derive(Debug)]
struct Running {
    /// Takes the time until which the last spans may be sent.
    stop: Sender<Instant>,
    ended: Receiver<()>,
}

struct Exporter {
    shared: Arc<Shared>,
    collector: Collector,
    scope: InstrumentationScope,
    batch: Batch,
    failures: u32,
    not_before: Option<Instant>,
    sent: Counter,
    given_up: Counter,
    failed: Counter,
}

/// What is sent next.
#[derive(Default)]
struct Batch {
    spans: Vec<SpanData>,
    requests: usize,
    since: Option<Instant>,
    tries: u32,
}

pub(super) fn start(shared: Arc<Shared>, collector: Collector, telemetry: &Telemetry) -> io::Result<Stop> {
    let process = telemetry.process();
    let exporter = Exporter {
        shared,
        collector,
        scope: spans::scope(),
        batch: Batch::default(),
        failures: 0,
        not_before: None,
        sent: process.counter(&names::TRACES_SENT, &[]),
        given_up: process.counter(&names::TRACES_DROPPED, &[("reason", "failed")]),
        failed: process.counter(&names::TRACE_EXPORTS_FAILED, &[]),
    };
    let (stop, stopping) = crossbeam_channel::bounded(1);
    let (end, ended) = crossbeam_channel::bounded(0);
    std::thread::Builder::new().name(NAME.to_owned()).spawn(move || {
        let _ends = end;
        lower_priority(NAME, NICE);
        exporter.run(&stopping);
    })?;
    Ok(Stop(Some(Running { stop, ended })))
}

impl Stop {
    pub(super) fn nothing() -> Stop {
        Stop(None)
    }

    /// Sends what is left, and waits until that is done or the time is over.
    pub fn stop(self, within: Duration) {
        let Some(Running { stop, ended }) = self.0 else { return };
        let _ = stop.try_send(Instant::now() + within);
        // The thread drops its sender when it ends.
        let _ = ended.recv_timeout(within);
    }
}

impl Exporter {
    fn run(mut self, stopping: &Receiver<Instant>) {
        loop {
            match stopping.recv_timeout(LOOK) {
                Err(RecvTimeoutError::Timeout) => self.look(),
                Ok(until) => return self.finish(until),
                Err(RecvTimeoutError::Disconnected) => return self.finish(Instant::now()),
            }
        }
    }

    /// Sends what is due. After a failure the queue is left alone until the pause is over: it keeps the oldest requests and drops new ones.
    fn look(&mut self) {
        loop {
            let now = Instant::now();
            if self.not_before.is_some_and(|at| now < at) {
                return;
            }
            self.fill(now);
            let is_due = self.batch.since.is_some_and(|since| now.saturating_duration_since(since) >= WAIT);
            if self.batch.requests < BATCH && !is_due {
                return;
            }
            if !self.send(TRY) {
                return;
            }
        }
    }

    /// Moves requests from the queue into the batch.
    fn fill(&mut self, now: Instant) {
        let clock = Clock::now();
        while self.batch.requests < BATCH
            && let Some(facts) = self.shared.queue.pop()
        {
            self.batch.since.get_or_insert(now);
            self.batch.add(&facts, &clock, &self.scope);
        }
    }

    /// Tries to send the batch. False after a failure: the batch is kept for another try, unless it had all of them.
    fn send(&mut self, within: Duration) -> bool {
        match self.collector.send(&self.batch.spans, within) {
            Ok(()) => {
                if self.failures > 0 {
                    tracing::info!("the collector takes spans again");
                }
                self.sent.increment(self.batch.requests as u64);
                (self.failures, self.not_before, self.batch) = (0, None, Batch::default());
                true
            }
            Err(error) => {
                // Each failure counts, but only the first of a row is logged.
                if self.failures == 0 {
                    tracing::warn!(error, "spans cannot be sent to the collector; requests are not affected");
                }
                self.failed.increment(1);
                self.failures = self.failures.saturating_add(1);
                let pause = Duration::from_secs(1 << self.failures.saturating_sub(1).min(5)).min(LONGEST_PAUSE);
                self.not_before = Some(Instant::now() + pause);
                self.batch.tries += 1;
                if self.batch.tries >= TRIES {
                    self.give_up();
                }
                false
            }
        }
    }

    fn give_up(&mut self) {
        self.given_up.increment(self.batch.requests as u64);
        self.batch = Batch::default();
    }

    /// Sends everything that is left. The first failure ends it.
    fn finish(mut self, until: Instant) {
        loop {
            self.fill(Instant::now());
            if self.batch.requests == 0 {
                return;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || !self.send(left.min(TRY)) {
                self.give_up();
                let mut lost = 0;
                while self.shared.queue.pop().is_some() {
                    lost += 1;
                }
                return self.given_up.increment(lost);
            }
        }
    }
}

impl Batch {
    fn add(&mut self, facts: &Facts, clock: &Clock, scope: &InstrumentationScope) {
        self.requests += 1;
        self.spans.extend(spans::of(facts, clock, scope));
    }
}
