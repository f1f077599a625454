//! Puts the sources of models together: their directory, which the manager watches too, and the versions that must stay.

use crate::config::Config;
use crate::fleet::Fleet;
use crate::lifecycle::Handle;
use crate::mirror::{self, Beside, Mirror, Other};
use crate::mlflow::{self, Mlflow};
use crate::model::VersionId;
use crate::prepare::ModelDirs;
use crate::registry::Reader;
use crate::source::Awaited;
use crate::telemetry::Telemetry;
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

/// The sources, before they are started: the manager needs to know their directory first.
pub(super) struct Remote {
    dir: PathBuf,
    first: Vec<Other>,
    others: Vec<Other>,
    fleet: Option<Fleet>,
    /// `None` where there is nothing to read and nothing stored.
    awaited: Option<Awaited>,
}

impl Remote {
    /// `registry`: MLflow's, as a source. The store of the fleet comes before all others: it is the same on every gateway.
    pub(super) fn of(config: &Config, registry: Option<Other>, fleet: Option<&Fleet>, reader: &Reader) -> Remote {
        let dir = config.data.dir.join("sources");
        let others: Vec<Other> = registry.into_iter().collect();
        let first: Vec<Other> = fleet.map(|fleet| fleet.source(reader.clone())).into_iter().collect();
        let has_sources = !config.models.sources.uris.is_empty() || !others.is_empty() || !first.is_empty();
        // What a document names is served from here also when its source is not configured any more.
        let awaited = (has_sources || mirror::models_in(&dir).exists()).then(Awaited::begin);
        Remote { dir, first, others, fleet: fleet.cloned(), awaited }
    }

    pub(super) fn models_dir(&self) -> Option<PathBuf> {
        self.awaited.as_ref().map(|_| mirror::models_in(&self.dir))
    }

    pub(super) fn awaited(&self) -> Awaited {
        self.awaited.clone().unwrap_or_default()
    }

    /// Starts the threads. The stored traffic documents must be published.
    pub(super) fn start(
        self,
        config: &Config,
        reader: &Reader,
        telemetry: &Telemetry,
    ) -> io::Result<(Mirror, mirror::Stop)> {
        let Some(awaited) = self.awaited else { return Ok((Mirror::default(), mirror::Stop::default())) };
        let (reader, fleet) = (reader.clone(), self.fleet);
        let beside = Beside {
            dir: self.dir,
            models_dir: config.models.dir.clone(),
            settle: config.models.settle,
            first: self.first,
            others: self.others,
            named: Box::new(move || named(&reader, fleet.as_ref())),
            awaited,
            telemetry: telemetry.clone(),
        };
        Mirror::start(&config.models.sources, beside)
    }
}

/// MLflow's model registry as a source, and what follows its aliases, where one is configured.
///
/// # Errors
/// When the authorities to trust cannot be read.
pub(super) fn registry(config: &Config, reader: &Reader) -> io::Result<(Option<Other>, Option<mlflow::Follower>)> {
    let credentials = mlflow::Credentials::of_environment(|name| std::env::var(name).ok());
    let mirrored = mirror::models_in(&config.data.dir.join("sources"));
    let opened = mlflow::open(&config.models.mlflow, &credentials, reader, &config.data.dir, mirrored)?;
    Ok(opened.unzip())
}

/// Follows the aliases of the registry.
///
/// # Errors
/// When the system refuses a thread.
pub(super) fn follow(
    follower: Option<mlflow::Follower>,
    handle: &Handle,
    mirror: &Mirror,
    telemetry: &Telemetry,
) -> io::Result<(Mlflow, Option<mlflow::Stop>)> {
    let Some(follower) = follower else { return Ok((Mlflow::default(), None)) };
    let mirror = mirror.clone();
    let (mlflow, stop) = follower.follow(handle.clone(), Box::new(move || mirror.read_now()), telemetry)?;
    Ok((mlflow, Some(stop)))
}

/// The directories with versions, in the order of their precedence.
pub(super) fn roots(config: &Config) -> Vec<PathBuf> {
    vec![config.models.dir.clone(), mirror::models_in(&config.data.dir.join("sources"))]
}

/// The same for a command that reads a data directory, where it is the one of a server with sources.
pub(super) fn model_dirs(models: &Path, data: &Path) -> ModelDirs {
    ModelDirs::new(models, [mirror::models_in(&data.join("sources"))])
}

/// The versions that the traffic documents name, of the models that this gateway is to have.
fn named(reader: &Reader, fleet: Option<&Fleet>) -> BTreeSet<VersionId> {
    let snapshot = reader.snapshot();
    let is_kept =
        |entry: &&std::sync::Arc<crate::registry::Entry>| fleet.is_none_or(|fleet| fleet.keeps(entry.name(), reader));
    let of_model = |entry: &std::sync::Arc<crate::registry::Entry>| {
        let versions = entry.document().map(crate::route::Document::named).unwrap_or_default();
        versions.into_iter().map(|version| VersionId { model: entry.name().clone(), version }).collect::<Vec<_>>()
    };
    snapshot.models().filter(is_kept).flat_map(of_model).collect()
}
