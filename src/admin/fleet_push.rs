//! A push into a fleet: checked here, stored once, fetched by every gateway that should have the model.

use crate::fleet::{Fleet, Pushing};
use crate::lifecycle::{Actor, Handle};
use crate::mirror::Mirror;
use crate::model::{Code, Failure, ModelName, Version, VersionId};
use crate::registry::Reader;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A version that was received.
pub(super) struct FleetPush {
    pub fleet: Fleet,
    pub mirror: Mirror,
    pub handle: Handle,
    pub model: ModelName,
    /// `None`: the next free number.
    pub version: Option<Version>,
    /// A model file, or a directory of files.
    pub path: PathBuf,
    /// The fleet has a version with this number, so the files are only compared.
    pub is_known: bool,
    pub signature: Option<String>,
    pub actor: Actor,
}

impl FleetPush {
    /// Returns the number of the version.
    ///
    /// # Errors
    /// As [`Handle::check_push`] and [`Fleet::push`].
    pub async fn run(self) -> Result<Version, Failure> {
        let FleetPush { fleet, mirror, handle, model, version, path, is_known, signature, actor } = self;
        // The number of a version that the fleet has is taken here too, so that only another one can be checked.
        let asked = if is_known { None } else { version };
        let checked = handle.check_push(model.clone(), asked, path, signature, actor.clone()).await?;
        let pushing = Pushing {
            model: model.clone(),
            version: version.unwrap_or(checked.version),
            next_free: version.is_none(),
            dir: checked.dir().to_owned(),
            actor: actor.0.clone(),
            mirror,
        };
        let stored = fleet.push(pushing).await?;
        drop(checked);
        let version = stored.version;
        if !stored.is_new {
            return Ok(version);
        }
        let id = VersionId { model: model.clone(), version };
        let Err(refused) = told(&handle, &id, &actor).await else { return Ok(version) };
        // A version without an audit event must not stay.
        match fleet.take_back(&model, &stored).await {
            Ok(()) => Err(refused),
            Err(why) => {
                let words = format!(
                    "version {version} of model {model} is in the fleet's store, but the ledger could not store the event, and the version could not be \
                     removed again: {why}"
                );
                Err(Failure::new(Code::Internal, words).with_internal(refused.operator_text()))
            }
        }
    }
}

/// Stores the event of a push. It adds to what the fleet knows of the model, so where another gateway changes that at the same time it is tried again.
async fn told(handle: &Handle, id: &VersionId, actor: &Actor) -> Result<(), Failure> {
    const WITHIN: Duration = Duration::from_secs(5);
    // Until the other change has arrived here.
    const PAUSE: Duration = Duration::from_millis(50);
    let until = Instant::now() + WITHIN;
    loop {
        match handle.pushed(id.clone(), actor.clone()).await {
            Err(refused) if refused.code == Code::Conflict && Instant::now() < until => tokio::time::sleep(PAUSE).await,
            told => return told,
        }
    }
}

/// Waits a moment until this gateway lists a version that it is to have, so that whoever pushed it can ask for it.
pub(super) async fn wait_until_known(reader: &Reader, model: &ModelName, version: Version) {
    const MOMENT: Duration = Duration::from_secs(3);
    let is_listed = |snapshot: &crate::registry::Snapshot| {
        snapshot.model(model.as_str()).is_some_and(|entry| entry.versions().contains_key(&version)).then_some(())
    };
    // It is fetched later where this takes longer.
    let _ = tokio::time::timeout(MOMENT, reader.wait_for(is_listed)).await;
}
