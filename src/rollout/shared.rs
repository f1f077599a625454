//! What a rollout needs of the other gateways of a fleet. The room `fleet` implements it; a gateway alone has none of it.
//!
//! The fleet has one state of a rollout, which changes by compare-and-set together with the traffic document (docs/FLEET.md). One gateway
//! drives: it judges the sums of what all gateways counted. Every gateway counts what it answered by the thresholds of the driver.

use crate::model::ModelName;
use crate::route::Document;
use crate::telemetry::{ArmEvidence, Watch};
use serde::{Deserialize, Serialize};
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

/// The other gateways. None of the calls waits for the network.
pub(crate) trait Fellows: Debug + Send + Sync {
    /// The name of this gateway.
    fn node(&self) -> &str;

    /// What the fleet has of the models of which anything changed since the last call.
    ///
    /// # Errors
    /// Why it is not known now, in words: this gateway is cut off.
    fn told(&self) -> Result<Vec<Told>, String>;

    /// The next change of this model's rollout is computed from this revision. It is refused where the fleet has another one by then.
    fn based_on(&self, model: &ModelName, revision: u64);

    /// This gateway drives a rollout at this moment. It keeps the lease for as long as this is called again and again.
    fn drives(&self, model: &ModelName, orders: Orders);

    /// What the driver said last, and how long ago it came.
    fn orders(&self, model: &ModelName) -> Option<(Orders, Duration)>;

    /// What the fleet keeps of this gateway's own counts.
    fn stored(&self, model: &ModelName) -> Stored;

    /// Keeps this gateway's counts. They replace those before.
    fn tell(&self, model: &ModelName, report: String);

    /// What other gateways counted, as far as it came after the mark. Only where this gateway drives.
    fn reports(&self, model: &ModelName, after: Mark) -> Vec<Heard>;

    /// The other gateways that are there and have the model's document in force. `None` while it is not known which.
    fn others(&self, model: &ModelName) -> Option<Vec<String>>;
}

/// A model's rollout, as the fleet has it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Told {
    pub(crate) model: ModelName,
    /// The fleet's revision: every change of the document or of the rollout gives another one.
    pub(crate) revision: u64,
    /// Whether the document of this revision is in force here.
    pub(crate) in_force: bool,
    /// `None` where it cannot be read here.
    pub(crate) document: Option<Document>,
    /// The state of the rollout as JSON; `None` where the model has never had one in the fleet.
    pub(crate) rollout: Option<ToldRollout>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ToldRollout {
    pub(crate) state: String,
    /// The gateway that drives it.
    pub(crate) driver: String,
    /// Another one for each document that the rollout puts in force.
    pub(crate) step: String,
    /// Who changed the traffic document since, and how.
    pub(crate) overridden: Option<String>,
}

/// What the driver tells the others, about twice a second. It is its lease too.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Orders {
    /// As in [`ToldRollout::step`].
    pub(crate) step: String,
    /// How long the step has been held.
    pub(crate) held_ms: u64,
    /// What requests of the candidate and of the control are judged by. `None` while the candidate is a shadow.
    pub(crate) watch: Option<(Watch, Watch)>,
    /// Why the rollout waits, in words.
    pub(crate) why: String,
    /// The gateways whose counts are in the sum.
    pub(crate) counted: Vec<Counted>,
}

/// A gateway whose counts are in the sum.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Counted {
    pub(crate) node: String,
    /// Requests of both sides, or pairs of a shadow.
    pub(crate) requests: u64,
    /// Since its last report came.
    pub(crate) age_ms: u64,
}

/// What the fleet keeps of this gateway's counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stored {
    /// Not read yet.
    Unknown,
    Nothing,
    Report(Arc<str>),
}

/// The order in which reports come: first the connections, then the revisions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Mark {
    pub(crate) connection: u64,
    pub(crate) revision: u64,
}

/// A report of another gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Heard {
    pub(crate) node: String,
    pub(crate) mark: Mark,
    pub(crate) report: Arc<str>,
}

/// What a view shows of the fleet.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Driving {
    pub(crate) driver: String,
    /// Whether this gateway is the driver.
    pub(crate) here: bool,
    /// Since the driver was heard; `None` where it was not.
    pub(crate) lease: Option<Duration>,
    pub(crate) counted: Vec<Counted>,
    /// Gateways that are there and have not told their counts of this step lately. Only known on the driver.
    pub(crate) silent: Vec<String>,
    /// Why this gateway does not know the fleet's state now.
    pub(crate) cut_off: Option<String>,
}

/// The sums of a step.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sums {
    pub(crate) candidate: ArmEvidence,
    pub(crate) control: ArmEvidence,
    /// Pairs of the candidate as a shadow, and those of them that agreed.
    pub(crate) pairs: (u64, u64),
}
