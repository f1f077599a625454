//! What rooms report to the room `alerts`: one source for each kind of thing that can be wrong.
//!
//! To add a rule: a function here that lists findings, and its place in [`inputs`].

mod decay;
mod fleet;
mod monitoring;
mod rollouts;
mod server;
mod slower;
mod traffic;
mod uploads;
mod versions;

use super::certificates::Certificates;
use crate::admin::Admin;
use crate::alerts::{self, Burn, Finding, Inputs, Now, Rule, Source};
use crate::config::Config;
use crate::machine::Machine;
use crate::registry::{Reader, Snapshot};
use std::sync::{Arc, Weak};
use std::time::Instant;

/// Starts the alerts, and gives the admin plane their handle.
///
/// # Errors
/// As [`alerts::start`].
pub(super) fn start(
    config: &Config,
    machine: &Machine,
    plane: Admin,
    tls: &Certificates,
) -> std::io::Result<(Admin, alerts::Stop)> {
    let inputs = inputs(config, machine, &plane, tls.clone());
    let (alerts, stop) = alerts::start(config.alerts.clone(), &config.data.dir, inputs, &plane.telemetry)?;
    Ok((Admin { alerts, ..plane }, stop))
}

/// Lists what is wrong.
type Findings = Box<dyn FnMut(Now) -> Option<Vec<Finding>> + Send>;

/// A source of some rules.
fn source(rules: &'static [Rule], mut look: Findings) -> Source {
    Source { rules, look: Box::new(move |now| look(now).map(Arc::new)) }
}

/// A source that reads nothing but the snapshot.
fn source_of_snapshot(rules: &'static [Rule], reader: &Reader, look: fn(&Snapshot) -> Option<Vec<Finding>>) -> Source {
    let mut found = OfSnapshot::new(reader.clone(), look);
    Source { rules, look: Box::new(move |_| found.read()) }
}

/// What is made of a snapshot. It is made again when there is another snapshot: an idle server with 2,000 models has the same one for hours.
struct OfSnapshot<T> {
    reader: Reader,
    make: fn(&Snapshot) -> Option<T>,
    /// The snapshot it was made of. It is not held, so that versions are freed in time; while this is here, no other snapshot has its address.
    of: Weak<Snapshot>,
    made: Option<Arc<T>>,
}

impl<T> OfSnapshot<T> {
    fn new(reader: Reader, make: fn(&Snapshot) -> Option<T>) -> OfSnapshot<T> {
        OfSnapshot { reader, make, of: Weak::new(), made: None }
    }

    fn read(&mut self) -> Option<Arc<T>> {
        let snapshot = self.reader.snapshot();
        if !std::ptr::eq(self.of.as_ptr(), Arc::as_ptr(&snapshot)) {
            self.made = (self.make)(&snapshot).map(Arc::new);
            self.of = Arc::downgrade(&snapshot);
        }
        self.made.clone()
    }
}

/// All sources.
fn inputs(config: &Config, machine: &Machine, plane: &Admin, tls: Certificates) -> Inputs {
    let Admin { reader, ledger, rollouts, log, access, .. } = plane;
    let (data_dir, memory, error_budget) = (config.data.dir.clone(), machine.memory_bytes, config.alerts.error_budget);
    let access = access.clone();
    let mut burn = Burn::new(Instant::now());
    let mut nonfinite = traffic::NonFinite::new(Instant::now());
    let mut watched = rollouts::Watched::new(ledger.clone(), rollouts.clone(), reader.clone());
    let (outcomes, interval) = (plane.quality.history().clone(), config.alerts.check_interval);
    let mut decayed = decay::Watched::new(reader.clone(), ledger.clone(), outcomes, interval);
    let (of_samples, of_serving) = (plane.stability.clone(), reader.clone());
    let mut slow = slower::Watched::new(reader.clone(), plane.history.clone());
    let mut losses = server::Losses::new(log.clone());
    let mut behind = uploads::Behind::new(plane.uploads.clone(), log.clone());
    let mut trail = server::Trail::new(data_dir.clone());
    let (of_budget, of_outputs) = (reader.clone(), reader.clone());
    let (mut states, of_engines) = (OfSnapshot::new(reader.clone(), versions::states), reader.clone());
    let (of_drift, of_hours, of_ages) = (log.drift().clone(), log.drift().clone(), reader.clone());
    let of_arms = reader.clone();
    // What is judged of the whole fleet is told by one gateway.
    let [drift_tells, decay_tells, hours_tell] = [(); 3].map(|()| plane.fleet.clone());
    let mut sources = vec![
        source_of_snapshot(&[Rule::VersionFailed], reader, versions::failed),
        source_of_snapshot(&[Rule::ModelUnserved], reader, versions::unserved),
        source(&[Rule::BreakerOpen], Box::new(move |_| Some(versions::breakers(&of_engines)))),
        source(
            &[Rule::ErrorBudget],
            Box::new(move |now| Some(traffic::error_budget(&of_budget, &mut burn, error_budget, now))),
        ),
        source(&[Rule::NonFinite], Box::new(move |now| Some(nonfinite.look(&of_outputs, now)))),
        source(&[Rule::RolloutTakenBack, Rule::GuardrailNear], Box::new(move |now| watched.look(now))),
        source(&[Rule::Decay], Box::new(move |now| fleet::told_once(decay_tells.as_ref(), || decayed.look(now)))),
        // While a server starts, it does not know yet which versions serve: what was wrong before is not over then.
        source(
            &[Rule::Drift],
            Box::new(move |_| {
                let all = || of_arms.snapshot().ready.then(|| monitoring::drift(&of_drift, &of_arms));
                fleet::told_once(drift_tells.as_ref(), all)
            }),
        ),
        source(
            &[Rule::Unstable],
            Box::new(move |_| {
                let tells = hours_tell.as_ref().map_or(Some(true), crate::fleet::Fleet::tells)?;
                of_serving
                    .snapshot()
                    .ready
                    .then(|| monitoring::unstable(tells.then_some(&of_hours), &of_samples, &of_serving))
            }),
        ),
        source(&[Rule::Slower], Box::new(move |_| Some(slow.look()))),
        source(&[Rule::Staleness], Box::new(move |now| Some(monitoring::stale(&of_ages, now.ts)))),
        source(&[Rule::LogLoss], Box::new(move |now| Some(losses.look(now)))),
        source(&[Rule::UploadBehind], Box::new(move |now| Some(behind.look(now)))),
        source(&[Rule::DiskFull], Box::new(move |_| server::disk(&data_dir))),
        source(&[Rule::MemoryFull], Box::new(move |_| server::memory(memory))),
        source(&[Rule::CertificateExpires], Box::new(move |now| Some(server::certificates(&tls, now.ts)))),
        source(&[Rule::TokenExpires], Box::new(move |now| Some(server::tokens(&access.tokens(), now.ts)))),
        source(&[Rule::AuditBroken], Box::new(move |now| trail.look(now))),
    ];
    if let Some(fleet) = &plane.fleet {
        let (of_link, of_documents, of_others) = (fleet.clone(), fleet.clone(), fleet.clone());
        sources.extend([
            source(&[Rule::FleetCutOff], Box::new(move |_| Some(fleet::cut_off(&of_link.troubles())))),
            source(&[Rule::FleetBehind], Box::new(move |_| Some(fleet::behind(&of_documents.troubles())))),
            source(&[Rule::FleetLost], Box::new(move |_| fleet::lost(&of_others.troubles()))),
        ]);
    }
    Inputs { ledger: ledger.clone(), sources, versions: Box::new(move || states.read()) }
}
