//! Joins the fleet, where the configuration names one.

use super::StartError;
use crate::access::Access;
use crate::config::Config;
use crate::fleet::{Counted, Fleet, Joining, Place, Reload, Stop};
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
    let configured = config.prediction_log.log.hash_key_file.as_deref();
    crate::fleet::agree_on_hash_key(&config.fleet, &config.data.dir, configured);
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
        (mirror, counted): (&Mirror, Counted),
        (ledger, access): (&LedgerReader, &Access),
        telemetry: &Telemetry,
    ) -> Result<Joined, StartError> {
        let (tokens, access) = (ledger.clone(), access.clone());
        let reload: Reload = Arc::new(move || access.reload(|| tokens.tokens()).map_err(|error| error.to_string()));
        let place = Place { ledger: ledger.clone(), reload };
        let start = |joining: Joining| {
            joining.start(handle.clone(), reader.clone(), (place, mirror.clone(), counted), telemetry)
        };
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

/// The key that this gateway made to hash route keys with; `None` where the configuration names one.
pub(super) fn made_hash_key(config: &Config) -> Option<String> {
    let configured = config.prediction_log.log.hash_key_file.as_deref();
    if crate::record::hash_key::is_configured(configured) {
        return None;
    }
    crate::record::hash_key::made(&config.data.dir).ok().flatten()
}
