//! Uploads sealed files, where the configuration names a bucket, and opens buckets for commands.

use super::StartError;
use crate::bucket::{Address, Prefix};
use crate::config::Config;
use crate::dataset::Error;
use crate::fleet;
use crate::record::{self, Log};
use crate::telemetry::Telemetry;
use crate::upload::{self, Stop, Uploads};
use std::sync::Arc;

/// What the log must know of uploads.
pub(super) fn rules(config: &upload::Config) -> Option<record::Uploads> {
    let to = config.to.as_ref()?.to_string();
    Some(record::Uploads { to, keep_local: config.keep_local })
}

pub(super) fn start(
    config: &Config,
    log: &Log,
    telemetry: &Telemetry,
) -> Result<(Option<Uploads>, Option<Stop>), StartError> {
    let node = if config.fleet.node.is_empty() { fleet::Config::host() } else { config.fleet.node.clone() };
    let (settings, data) = (&config.prediction_log.upload, config.data.dir.clone());
    let started = Uploads::start(settings, data, &node, log.clone(), telemetry);
    let started = started.map_err(|source| StartError::Start { what: "the uploads of the prediction log", source })?;
    Ok(started.unzip())
}

/// The bucket that `--log` names.
pub(super) fn bucket(log: &str, instance_metadata: bool) -> Result<Arc<Prefix>, Error> {
    let address = Address::parse(log);
    let address = address.ok_or_else(|| Error::Usage(format!("--log {log:?}: expected {}", Address::EXPECTED)))?;
    let opened = Prefix::open(&address, instance_metadata);
    opened.map(Arc::new).map_err(|error| Error::Failed(error.to_string()))
}
