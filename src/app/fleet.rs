//! Joins the fleet, where the configuration names one.

use super::StartError;
use crate::access::Access;
use crate::config::Config;
use crate::fleet::{Fleet, Joining, Place, Reload, Stop};
use crate::ledger::LedgerReader;
use crate::lifecycle::{Handle, Peers};
use crate::mirror::Mirror;
use crate::registry::{Elsewhere, Reader};
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
    /// Where models are that this gateway should not have, for requests that name them.
    pub fn elsewhere(&self) -> Elsewhere {
        let fleet = self.fleet.clone();
        Elsewhere::new(move |model| fleet.as_ref()?.elsewhere(model))
    }

    /// `ledger` and `access` have the tokens of this gateway.
    pub fn join(
        self,
        handle: &Handle,
        reader: &Reader,
        mirror: &Mirror,
        (ledger, access): (&LedgerReader, &Access),
        telemetry: &Telemetry,
    ) -> Result<Joined, StartError> {
        let (tokens, access) = (ledger.clone(), access.clone());
        let reload: Reload = Arc::new(move || access.reload(|| tokens.tokens()).map_err(|error| error.to_string()));
        let place = Place { ledger: ledger.clone(), reload };
        let start =
            |joining: Joining| joining.start(handle.clone(), reader.clone(), (place, mirror.clone()), telemetry);
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
