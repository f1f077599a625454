//! Versions and entries for tests of this and other rooms.

use crate::backend::Model;
use crate::execute::Runner;
use crate::model::{ModelName, Version};
use crate::registry::{Entry, Facts, Limits, Loaded, State, VersionStatus};
use crate::route::Document;
use crate::telemetry::{Telemetry, VersionMetrics};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

pub(crate) fn version(n: u64) -> Version {
    n.to_string().parse().unwrap()
}

/// A loaded version `n` of the model `m`. `sha256` identifies its bytes.
pub(crate) fn loaded(n: u64, runs: Arc<dyn Model>, sha256: &str) -> Arc<Loaded> {
    let model: ModelName = "m".parse().unwrap();
    let facts = Facts {
        signature: runs.signature().clone(),
        sha256: sha256.to_owned(),
        engine: "fake",
        bytes: 0,
        load: Duration::ZERO,
        verify: Duration::ZERO,
        warm: Duration::ZERO,
        golden_cases: 0,
        metadata: serde_json::Value::Null,
        origin: crate::registry::Origin::default(),
        profile: None,
    };
    Arc::new(Loaded {
        metrics: VersionMetrics::new(Telemetry::new().scope(), model.clone(), version(n)),
        runner: Arc::new(Runner::new(runs)),
        facts: Arc::new(facts),
        limits: Limits::default(),
        breaker: crate::registry::Breaker::new(None),
        version: version(n),
        model,
    })
}

/// A model with these versions, all of them ready.
pub(crate) fn entry(
    model: &str,
    held: &[Arc<Loaded>],
    document: Option<Document>,
    revision: u64,
) -> Result<Entry, Vec<Version>> {
    let status = |loaded: &Arc<Loaded>| VersionStatus {
        version: loaded.version,
        state: State::Ready,
        stage: None,
        reason: None,
        notes: Vec::new(),
        facts: Some(Arc::clone(&loaded.facts)),
        loaded: Some(Arc::clone(loaded)),
    };
    let versions: BTreeMap<Version, VersionStatus> = held.iter().map(|l| (l.version, status(l))).collect();
    Entry::new(model.parse().unwrap(), versions, document, revision, false, false)
}
