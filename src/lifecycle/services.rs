//! What the manager uses to change a model: the ledger, the load queue, the drains, the publisher, the schedule.
//!
//! Separate from the table of models, so that a method can change one model while it uses these.

use super::Config;
use super::drain::Drains;
use super::handle::Reply;
use super::journal::{self, Journal};
use super::load_queue::LoadQueue;
use super::peers::Peers;
use super::publisher::Publisher;
use super::version_record::VersionRecord;
use crate::ledger::{Change, Committed, ModelState};
use crate::model::{Failure, ModelName, VersionId};
use crate::registry::State;
use crate::shadow::Figures;
use crate::source::WakeHandle;
use crate::telemetry::{Telemetry, names};
use metrics::Gauge;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tracing::{error, info};

pub(super) struct Services {
    pub config: Config,
    pub journal: Box<dyn Journal>,
    /// The other gateways of a fleet.
    pub peers: Option<Box<dyn Peers>>,
    /// Comparisons of shadow answers, for gates.
    pub figures: Figures,
    pub telemetry: Telemetry,
    pub state_counts: StateCounts,
    pub source: WakeHandle,
    pub loading: LoadQueue,
    pub drains: Drains,
    pub evictions: Evictions,
    pub schedule: Schedule,
    pub publisher: Publisher,
}

/// Versions that are to be unloaded to make room.
#[derive(Debug, Default)]
pub(super) struct Evictions {
    /// Versions that no document names.
    pub evicted: Vec<VersionId>,
    /// Versions whose time to be kept warm ends early.
    pub no_longer_warm: Vec<VersionId>,
}

/// Which models to look at, now and later.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    now: BTreeSet<ModelName>,
    later: BTreeSet<(Instant, ModelName)>,
}

/// The metric that counts versions by state.
#[derive(Debug)]
pub(super) struct StateCounts {
    gauges: Vec<Gauge>,
}

// === impl Services ===

impl Services {
    /// Moves a version to another state, counts and logs it. An illegal move changes nothing and is logged as the bug it is.
    pub(super) fn set_state(&mut self, id: &VersionId, record: &mut VersionRecord, to: State) -> bool {
        match record.set_state(to) {
            Ok(from) => {
                self.state_counts.remove(from);
                self.state_counts.add(to);
                self.publisher.changed.insert(id.model.clone());
                // Ready and failed versions are logged with more detail elsewhere.
                if to != State::Failed && from != State::Warming {
                    info!(model = %id.model, version = %id.version, %from, state = %to, "version");
                }
                true
            }
            Err(illegal) => {
                error!(model = %id.model, version = %id.version, %illegal, "bug in the manager: illegal state change");
                false
            }
        }
    }

    /// Takes a loaded version out of service. The next publish makes it unreachable, and it is freed when no request holds it.
    pub(super) fn drain(&mut self, id: &VersionId, record: &mut VersionRecord, timeout: Duration) {
        if let Some(loaded) = record.loaded.take()
            && self.set_state(id, record, State::Draining)
        {
            record.drain = Some(self.drains.begin(id.clone(), loaded, timeout));
        }
        record.digests = None;
        record.compared = None;
    }

    /// Stores a change of a model, of which this is stored. In a fleet, the other gateways agree first.
    ///
    /// # Errors
    /// When they do not agree, or the ledger cannot store it. Nothing was changed here then.
    pub(super) fn commit(&mut self, stored: &ModelState, change: Change) -> Result<Committed, Failure> {
        self.commit_with(stored, change, None)
    }

    /// The same, where a share of the other gateways may do.
    ///
    /// # Errors
    /// As [`Services::commit`].
    pub(super) fn commit_with(
        &mut self,
        stored: &ModelState,
        change: Change,
        quorum: Option<f64>,
    ) -> Result<Committed, Failure> {
        self.agree(stored, &change, quorum)?;
        let model = change.model.clone();
        let committed = self.commit_here(change);
        if let (Err(_), Some(peers)) = (&committed, self.peers.as_mut()) {
            peers.not_stored(&model);
        }
        committed
    }

    /// Stores a change that the other gateways of a fleet know.
    ///
    /// # Errors
    /// When the ledger cannot store it. Nothing was changed then.
    pub(super) fn commit_here(&mut self, change: Change) -> Result<Committed, Failure> {
        self.journal.commit(change).map_err(|e| journal::failure(&e))
    }

    /// Answers an operator once the change is published.
    pub(super) fn answer<T: Send + 'static>(&mut self, reply: Reply<T>, result: Result<T, Failure>) {
        self.publisher.after_publish(move || {
            // A send fails only when the operator no longer waits. The change stays.
            let _ = reply.send(result);
        });
    }

    /// The directory of a version in the models directory, whether it is there or not.
    #[must_use]
    pub(super) fn dir(&self, id: &VersionId) -> PathBuf {
        self.config.models_dir.join(id.model.as_str()).join(id.version.to_string())
    }

    pub(super) fn record_stage_time(&self, stage: &'static str, took: Duration) {
        let histogram = self.telemetry.process().histogram(&names::STAGE_SECONDS, &[("stage", stage)]);
        histogram.record(took.as_secs_f64());
    }

    pub(super) fn show_left_behind(&self) {
        let gauge = self.telemetry.process().gauge(&names::LOADS_LEFT_BEHIND, &[]);
        gauge.set(self.loading.loaders.left_behind() as f64);
    }

    pub(super) fn count_failure(&self, stage: &'static str) {
        self.telemetry.process().counter(&names::STAGE_FAILURES, &[("stage", stage)]).increment(1);
    }
}

// === impl Schedule ===

impl Schedule {
    /// Has a model looked at before the manager waits for the next event.
    pub(super) fn look_now(&mut self, model: ModelName) {
        self.now.insert(model);
    }

    pub(super) fn look_at(&mut self, at: Instant, model: &ModelName) {
        self.later.insert((at, model.clone()));
    }

    /// The next model to look at now.
    pub(super) fn next(&mut self) -> Option<ModelName> {
        self.now.pop_first()
    }

    #[must_use]
    pub(super) fn is_idle(&self) -> bool {
        self.now.is_empty()
    }

    /// Moves what is due at `now` to the models to look at now.
    pub(super) fn advance(&mut self, now: Instant) {
        while let Some((at, model)) = self.later.pop_first() {
            if at > now {
                self.later.insert((at, model));
                break;
            }
            self.now.insert(model);
        }
    }

    /// When the next look is due.
    #[must_use]
    pub(super) fn next_due(&self, now: Instant) -> Option<Instant> {
        if self.now.is_empty() { self.later.first().map(|(at, _)| *at) } else { Some(now) }
    }

    /// Cancels the later looks.
    pub(super) fn clear_later(&mut self) {
        self.later.clear();
    }
}

// === impl StateCounts ===

impl StateCounts {
    #[must_use]
    pub(super) fn new(telemetry: &Telemetry) -> StateCounts {
        let gauge = |s: &State| telemetry.process().gauge(&names::STATES, &[("state", s.as_str())]);
        let gauges: Vec<Gauge> = State::ALL.iter().map(gauge).collect();
        for gauge in &gauges {
            gauge.set(0.0);
        }
        StateCounts { gauges }
    }

    pub(super) fn add(&self, state: State) {
        self.gauges[state as usize].increment(1.0);
    }

    pub(super) fn remove(&self, state: State) {
        self.gauges[state as usize].decrement(1.0);
    }
}
