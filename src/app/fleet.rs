//! Joins the fleet, where the configuration names one.

use super::StartError;
use crate::config::Config;
use crate::fleet::{Fleet, Joining, Stop};
use crate::lifecycle::{Handle, Peers};
use crate::registry::Reader;
use crate::telemetry::Telemetry;
use std::sync::Arc;

/// A gateway before it follows. All `None` in no fleet.
#[derive(Default)]
pub(super) struct Before {
    pub fleet: Option<Fleet>,
    pub peers: Option<Box<dyn Peers>>,
    joining: Option<Joining>,
}

/// What operators are warned of.
pub(super) type Warnings = Arc<dyn Fn() -> Vec<String> + Send + Sync>;

pub(super) fn prepare(config: &Config) -> Result<Before, StartError> {
    if config.fleet.urls.is_empty() {
        return Ok(Before::default());
    }
    let (fleet, joining, peers) = Fleet::prepare(config.fleet.clone(), &config.data.dir)
        .map_err(|source| StartError::Start { what: "the fleet", source })?;
    Ok(Before { fleet: Some(fleet), peers: Some(peers), joining: Some(joining) })
}

impl Before {
    pub fn join(self, handle: &Handle, reader: &Reader, telemetry: &Telemetry) -> Result<Joined, StartError> {
        let start = |joining: Joining| joining.start(handle.clone(), reader.clone(), telemetry);
        let stop = self.joining.map(start).transpose();
        let stop = stop.map_err(|source| StartError::Start { what: "the fleet", source })?;
        Ok(Joined { fleet: self.fleet, stop })
    }
}

/// A gateway that follows.
pub(super) struct Joined {
    pub fleet: Option<Fleet>,
    pub stop: Option<Stop>,
}

/// The warnings of the certificates, and what is wrong with the fleet.
pub(super) fn warnings(fleet: Option<Fleet>, others: Warnings) -> Warnings {
    let Some(fleet) = fleet else { return others };
    Arc::new(move || fleet.trouble().into_iter().chain(others()).collect())
}
