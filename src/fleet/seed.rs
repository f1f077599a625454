//! Makes the ledger of one gateway the first state of a fleet.

use super::session::{Buckets, EXCHANGE, connect, no_answer, open};
use super::state::{self, By, SharedState};
use super::tokens::SharedToken;
use super::{Config, wire};
use crate::ledger::{SharedModel, StoredToken};
use crate::model::ModelName;
use async_nats::jetstream::kv::Store;
use tokio::time::timeout;

/// What a fleet got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seeded {
    pub models: usize,
    pub tokens: usize,
}

/// Gives a fleet without a state all of this one. Blocking.
///
/// # Errors
/// In words, when the fleet has a state already, or NATS cannot be reached.
pub(crate) fn seed(
    config: &Config,
    models: Vec<(ModelName, SharedModel)>,
    tokens: Vec<StoredToken>,
) -> Result<Seeded, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
    runtime.block_on(give(config, models, tokens))
}

async fn give(
    config: &Config,
    models: Vec<(ModelName, SharedModel)>,
    tokens: Vec<StoredToken>,
) -> Result<Seeded, String> {
    let client = connect(config).await?;
    let Buckets { state, tokens: token_bucket, .. } = Box::pin(open(&client, config)).await?;
    for bucket in [&state, &token_bucket] {
        let status = timeout(EXCHANGE, bucket.status()).await.map_err(|_| no_answer())?;
        let values = status.map_err(|error| format!("the fleet's state cannot be read: {error}"))?.values();
        if values > 0 {
            return Err(format!(
                "the fleet {} has a state already ({} has {values} keys): join it without --seed, by `sluicegate serve --fleet`; its state \
                 decides then",
                config.name, bucket.name
            ));
        }
    }
    let by = || By {
        actor: "local".to_owned(),
        node: config.node.clone(),
        action: "join".to_owned(),
        reason: Some("the first state of the fleet".to_owned()),
    };
    // All values are made before one is given.
    let values = models.into_iter().map(|(model, shared)| {
        let value = SharedState::new(shared, by()).write().map_err(|why| format!("model {model}: {why}"))?;
        Ok((wire::key(&model), value))
    });
    let models: Vec<_> = values.collect::<Result<_, String>>()?;
    let values = tokens.into_iter().map(|token| {
        let name = token.name.clone();
        Ok((SharedToken::key(&name), state::write(&SharedToken::new(&name, Some(token), by()))?))
    });
    let tokens: Vec<_> = values.collect::<Result<_, String>>()?;
    let seeded = Seeded { models: models.len(), tokens: tokens.len() };
    put_all(&state, models).await?;
    put_all(&token_bucket, tokens).await?;
    Ok(seeded)
}

async fn put_all(bucket: &Store, values: Vec<(String, Vec<u8>)>) -> Result<(), String> {
    let all = values.len();
    for (number, (key, value)) in values.into_iter().enumerate() {
        let put = timeout(EXCHANGE, bucket.update(&key, value.into(), 0)).await.map_err(|_| no_answer())?;
        put.map_err(|error| {
            if super::store::is_stale(&error) {
                format!(
                    "a gateway joined the fleet at the same time and gave {key}: {number} of {all} keys are there; the rest is given when this \
                     gateway joins"
                )
            } else {
                format!("{key} cannot be given to the fleet ({number} of {all} keys are there): {error}")
            }
        })?;
    }
    Ok(())
}
