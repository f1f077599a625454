//! One key for the hashes of route keys, so that a key whose requests reach two gateways is one unit in the figures of the fleet.
//!
//! A gateway without a key takes that of the fleet at its first start, or gives the fleet a new one; one that made its own before gives that. A key that the configuration names is never given.

use super::Config;
use super::session::{EXCHANGE, SharedEvidence, connect, no_answer};
use crate::record::hash_key;
use async_nats::jetstream::kv::{CreateErrorKind, Operation, Store};
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

const KEY: &str = "hash-key";
/// NATS servers that start at the same moment elect a leader first. A gateway without documents is not ready without them anyway.
const PATIENT: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_millis(250);

/// Takes the key of the fleet, or gives it a new one, before anything is hashed in a data directory that has none. What fails is told, and changes
/// nothing: the gateway then makes a key of its own, and figures by key leave its rows out.
pub(crate) fn agree(config: &Config, data: &Path, configured: Option<&Path>) {
    if hash_key::is_configured(configured) {
        return;
    }
    let agreed = hash_key::made(data).map_err(|error| error.to_string()).and_then(|own| {
        if own.is_some() {
            return Ok(());
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| error.to_string())?;
        let until = Instant::now() + PATIENT;
        let secret = runtime.block_on(async {
            loop {
                match timeout(EXCHANGE * 2, of_fleet(config)).await.map_err(|_| no_answer()).flatten() {
                    Ok(secret) => return Ok(secret),
                    Err(why) if Instant::now() > until => return Err(why),
                    Err(_) => sleep(RETRY).await,
                }
            }
        })?;
        hash_key::adopt(data, &secret).map_err(|error| error.to_string())?;
        info!(fleet = config.name, "route keys are hashed with the key of the fleet");
        Ok(())
    });
    if let Err(why) = agreed {
        warn!(
            fleet = config.name,
            why,
            "the fleet was not asked for the key that route keys are hashed with; this gateway makes its own, and figures by key leave its rows out until all have one (prediction_log.hash_key_file)"
        );
    }
}

/// Gives the fleet the key that this gateway made, where it has none.
///
/// # Errors
/// When NATS does not answer.
pub(super) async fn offer(bucket: &Store, secret: &str) -> Result<(), String> {
    let made = timeout(EXCHANGE, bucket.create(KEY, secret.to_owned().into())).await.map_err(|_| no_answer())?;
    match made {
        Err(error) if error.kind() != CreateErrorKind::AlreadyExists => {
            Err(format!("the key of the fleet cannot be given: {error}"))
        }
        _ => Ok(()),
    }
}

/// The key of the fleet; a new one where it has none yet.
async fn of_fleet(config: &Config) -> Result<String, String> {
    let client = connect(config).await?;
    let bucket = SharedEvidence::open(&client, config).await?.bucket;
    let unreadable = |error: &dyn std::fmt::Display| format!("the key of the fleet cannot be read: {error}");
    // Of two that give one at once, one wins.
    for _ in 0..2 {
        let entry = timeout(EXCHANGE, bucket.entry(KEY)).await.map_err(|_| no_answer())?;
        let entry = entry.map_err(|error| unreadable(&error))?;
        if let Some(entry) = entry.filter(|entry| entry.operation == Operation::Put) {
            let secret = std::str::from_utf8(&entry.value).map_err(|error| unreadable(&error))?;
            return hash_key::checked(secret).map_err(|why| unreadable(&why));
        }
        let secret = hash_key::fresh().map_err(|error| unreadable(&error))?;
        let made = timeout(EXCHANGE, bucket.create(KEY, secret.clone().into())).await.map_err(|_| no_answer())?;
        if made.is_ok() {
            return Ok(secret);
        }
    }
    Err(unreadable(&"another gateway changes it"))
}
