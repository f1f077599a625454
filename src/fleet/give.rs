//! Gives the fleet what this gateway knows and the fleet does not: after it has joined, and after all state of NATS was lost.

use super::board::{Board, Known};
use super::session::no_answer;
use super::state::{By, SharedState};
use super::wire;
use crate::ledger::SharedModel;
use crate::lifecycle::Handle;
use crate::model::ModelName;
use async_nats::jetstream::kv::Store;
use std::time::Duration;
use tokio::time::{sleep, timeout};
use tracing::{error, info};

/// How often to look whether the bucket was read.
const LOOK: Duration = Duration::from_millis(50);
/// How often a state is given that other gateways change meanwhile.
const ATTEMPTS: usize = 5;

/// A gateway that gives.
pub(super) struct Giver<'a> {
    pub board: &'a Board,
    pub handle: &'a Handle,
    pub node: &'a str,
    pub exchange: Duration,
}

impl Giver<'_> {
    /// Gives everything once. The fleet decides: it gets whole states of models that it does not know, and of others only who pushed or asked for
    /// what, and a traffic document where it has none.
    ///
    /// # Errors
    /// When NATS does not answer.
    pub async fn run(&self, bucket: &Store) -> Result<(), String> {
        while !self.board.is_following() {
            sleep(LOOK).await;
        }
        let states = self.handle.shared_states().await.map_err(|failure| failure.message)?;
        for (model, local) in states {
            for _ in 0..ATTEMPTS {
                if self.give(bucket, &model, &local).await? {
                    break;
                }
                // The state that came between is read by the session.
                sleep(LOOK).await;
            }
        }
        Ok(())
    }

    /// Returns false when another gateway was faster.
    async fn give(&self, bucket: &Store, model: &ModelName, local: &SharedModel) -> Result<bool, String> {
        let known = self.board.known(model)?;
        let (expected, next) = match &known {
            None => (0, local.clone()),
            Some(Known { revision, shared: Ok(shared), .. }) => {
                let merged = shared.model.clone().with_missing(local);
                if merged == shared.model {
                    return Ok(true);
                }
                (*revision, merged)
            }
            // It is not understood, and so not replaced.
            Some(Known { shared: Err(_), .. }) => return Ok(true),
        };
        let by = By { actor: "system".to_owned(), node: self.node.to_owned(), action: "join".to_owned(), reason: None };
        let of_rollout = known.and_then(|known| known.shared.ok()?.rollout);
        let bytes = match SharedState::new(next, by).with_rollout(of_rollout).write() {
            Ok(bytes) => bytes,
            Err(why) => {
                error!(%model, "the fleet does not get this gateway's state of the model: {why}");
                return Ok(true);
            }
        };
        let given = timeout(self.exchange, bucket.update(wire::key(model), bytes.into(), expected)).await;
        match given.map_err(|_| no_answer())? {
            Ok(_) => {
                info!(%model, "the fleet has this gateway's state of the model now");
                Ok(true)
            }
            Err(error) if super::store::is_stale(&error) => Ok(false),
            Err(error) => Err(format!("a state cannot be given to the fleet: {error}")),
        }
    }
}
