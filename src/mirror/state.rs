//! What all threads of the mirror share: what the sources have, what is stored, and the plan that follows from both.

use super::download::disk;
use super::offer::{Listing, Offer, RemoteFile, Trouble};
use super::plan::{self, Verdict};
use super::report::{SourceReport, Unfinished, VersionReport, VersionState};
use super::store::{Manifest, SettingsOrigin, Store};
use crate::model::{ModelName, VersionId};
use crate::source::Told;
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Everything behind one lock. What is done under it takes no longer than a few operations on directories.
pub(super) struct State {
    pub sources: Vec<SourceState>,
    stored: BTreeMap<VersionId, Manifest>,
    settings: BTreeMap<ModelName, SettingsOrigin>,
    /// Blobs and downloads that are in use, with how many threads use them.
    in_use: BTreeMap<String, usize>,
}

/// One source.
pub(super) struct SourceState {
    pub name: String,
    versions: BTreeMap<VersionId, KnownVersion>,
    /// The identity of each `model.toml`.
    settings: BTreeMap<ModelName, String>,
    remarks: Vec<String>,
    last_read: Option<Timestamp>,
    next_read: Option<Instant>,
    failures: u32,
    message: Option<String>,
    /// Whether it was listed, or could not be, since the start.
    is_asked: bool,
}

/// A version that a source has.
#[derive(Debug, Clone)]
struct KnownVersion {
    identity: String,
    bytes: u64,
    state: VersionState,
    message: Option<String>,
    /// Failures in a row, and when to try again.
    failures: u32,
    retry: Option<Instant>,
    /// The version cannot be taken as it is.
    refused: bool,
}

/// What does not change while the server runs.
pub(super) struct Rules {
    pub store: Store,
    pub models_dir: PathBuf,
    pub newest: usize,
    pub limit: u64,
    pub interval: Duration,
    /// The versions that the traffic documents name.
    pub named: Box<dyn Fn() -> BTreeSet<VersionId> + Send + Sync>,
}

/// What a source's thread does next.
#[derive(Debug, Default)]
pub(super) struct Work {
    pub settings: Vec<(ModelName, RemoteFile)>,
    pub versions: Vec<Offer>,
    /// A version may still be changing: look again soon.
    pub unsettled: bool,
}

/// The most versions that cannot be read and are told in the place of their files. A source may have thousands; all are in the report.
const MAX_TOLD: usize = 100;
const NOT_TOLD: &str = "versions cannot be read, and are only told here";
/// The longest pause between two tries.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_mins(10);

impl SourceState {
    /// As it was when the server stopped.
    fn remembered(name: String, stored: &BTreeMap<VersionId, Manifest>) -> SourceState {
        let versions = stored.iter().filter(|(_, manifest)| manifest.source == name).map(|(id, manifest)| {
            (id.clone(), KnownVersion::new(manifest.identity.clone(), manifest.bytes(), VersionState::Stored))
        });
        SourceState {
            versions: versions.collect(),
            name,
            settings: BTreeMap::new(),
            remarks: Vec::new(),
            last_read: None,
            next_read: None,
            failures: 0,
            message: None,
            is_asked: false,
        }
    }

    fn set(&mut self, id: &VersionId, state: VersionState, message: Option<String>) {
        if let Some(version) = self.versions.get_mut(id) {
            (version.state, version.message) = (state, message);
        }
    }
}

impl KnownVersion {
    fn new(identity: String, bytes: u64, state: VersionState) -> KnownVersion {
        KnownVersion { identity, bytes, state, message: None, failures: 0, retry: None, refused: false }
    }
}

impl State {
    /// # Errors
    /// When the directories cannot be read.
    pub(super) fn new(names: Vec<String>, rules: &Rules) -> io::Result<State> {
        let stored = rules.store.stored()?;
        let sources = names.into_iter().map(|name| SourceState::remembered(name, &stored)).collect();
        let mut state = State { sources, stored, settings: rules.store.settings(), in_use: BTreeMap::new() };
        for source in &mut state.sources {
            let of_source = state.settings.iter().filter(|(_, origin)| origin.source == source.name);
            source.settings = of_source.map(|(model, origin)| (model.clone(), origin.identity.clone())).collect();
        }
        Ok(state)
    }

    /// Keeps what the documents name, and nothing else, where no source is configured.
    ///
    /// # Errors
    /// When the disk fails.
    pub(super) fn without_sources(&mut self, rules: &Rules) -> io::Result<()> {
        let named = (rules.named)();
        for (id, manifest) in &self.stored {
            if named.contains(id) {
                let words = format!(
                    "its source {} is not configured any more; it is kept because the traffic document names it",
                    manifest.source
                );
                rules.store.tell(id, Some(&Told::Note(words)))?;
            } else {
                rules.store.remove(id)?;
            }
        }
        self.stored.retain(|id, _| named.contains(id));
        for model in self.settings.keys().filter(|model| !named.iter().any(|id| id.model == **model)) {
            rules.store.remove_settings(model)?;
        }
        Ok(())
    }

    /// Whether anything of a source is stored.
    pub(super) fn has_stored(&self, source: usize) -> bool {
        self.stored.values().any(|manifest| manifest.source == self.sources[source].name)
    }

    /// Takes in what a source has now. Removes what is not kept any more, and returns what is to be read.
    ///
    /// # Errors
    /// When the listing cannot be meant, or the disk fails.
    pub(super) fn take_in(
        &mut self,
        source: usize,
        listing: Listing,
        settled: &BTreeSet<VersionId>,
        rules: &Rules,
    ) -> Result<Work, Trouble> {
        let known = &mut self.sources[source];
        if listing.versions.is_empty() && !known.versions.is_empty() && !listing.is_final {
            return Err(Trouble::new("it lists no version any more; what was read from it before is kept"));
        }
        let mut before = std::mem::take(&mut known.versions);
        let mut offers: BTreeMap<VersionId, Offer> = BTreeMap::new();
        for offer in listing.versions {
            let identity = offer.identity();
            let version = before.remove(&offer.id).filter(|version| version.identity == identity);
            let mut version =
                version.unwrap_or_else(|| KnownVersion::new(identity, offer.bytes(), VersionState::Waiting));
            version.bytes = offer.bytes();
            version.refused = false;
            if let Err(trouble) = offer.check() {
                version.refused = true;
                (version.state, version.message) = (VersionState::Failed, Some(trouble.words));
            } else if !offer.has_model() {
                version.refused = true;
                (version.state, version.message) = (VersionState::Waiting, Some("it has no model.onnx".to_owned()));
            }
            known.versions.insert(offer.id.clone(), version);
            offers.insert(offer.id.clone(), offer);
        }
        known.is_asked = true;
        known.settings = listing.settings.iter().map(|(model, file)| (model.clone(), file.identity())).collect();
        known.remarks = listing.remarks;
        let mut work = self.follow_plan(source, &mut offers, settled, rules).map_err(|e| disk(&e))?;
        work.settings = self.settings_to_read(source, listing.settings, rules).map_err(|e| disk(&e))?;
        Ok(work)
    }

    /// Does what the plan says, as far as that needs no source.
    pub(super) fn follow_plan(
        &mut self,
        source: usize,
        offers: &mut BTreeMap<VersionId, Offer>,
        settled: &BTreeSet<VersionId>,
        rules: &Rules,
    ) -> io::Result<Work> {
        let named = (rules.named)();
        let plan = self.plan(&named, rules);
        for id in &plan.remove {
            rules.store.remove(id)?;
            self.stored.remove(id);
            tracing::info!(model = %id.model, version = %id.version, "a version from a source is not kept any more");
        }
        for id in &plan.orphans {
            let manifest = &self.stored[id];
            let words = format!(
                "{} does not have it any more; it is kept because the traffic document names it",
                manifest.source
            );
            rules.store.tell(id, Some(&Told::Note(words)))?;
        }
        let mut work = Work::default();
        // Otherwise a version could be read from a later source that an earlier one has.
        let is_turn = self.sources[..source].iter().all(|earlier| earlier.is_asked);
        for (id, _) in plan.order.iter().filter(|(_, giver)| *giver == source) {
            match self.judge(source, id, is_turn && settled.contains(id), named.contains(id)) {
                Next::Read => work.versions.extend(offers.remove(id)),
                Next::Settle => work.unsettled = true,
                Next::Say(told) => rules.store.tell(id, told.as_ref())?,
                Next::Nothing => {}
            }
        }
        self.show_verdicts(source, &plan.verdicts[source]);
        let mut shown: BTreeSet<VersionId> = plan.order.into_iter().map(|(id, _)| id).collect();
        for SourceState { name, versions, remarks, .. } in &mut self.sources {
            let (mut told, mut left) = (0, 0_usize);
            for (id, version) in versions.iter().filter(|(_, version)| version.refused) {
                if self.stored.contains_key(id) || shown.contains(id) {
                    continue;
                }
                if told == MAX_TOLD {
                    left += 1;
                    continue;
                }
                told += 1;
                shown.insert(id.clone());
                let message = version.message.as_deref().unwrap_or_default();
                rules.store.tell(id, Some(&Told::Waits(format!("it is not read from {name}: {message}"))))?;
            }
            remarks.retain(|remark| !remark.ends_with(NOT_TOLD));
            if left > 0 {
                remarks.push(format!("{left} more {NOT_TOLD}"));
            }
        }
        for id in rules.store.announced().difference(&shown) {
            rules.store.remove(id)?;
        }
        Ok(work)
    }

    fn plan(&self, named: &BTreeSet<VersionId>, rules: &Rules) -> plan::Plan {
        let is_offered = |version: &&KnownVersion| !version.refused;
        // What is stored of an image is larger than its layers.
        let bytes =
            |id: &VersionId, offered: u64| self.stored.get(id).map_or(offered, |known| known.bytes().max(offered));
        let of_source = |source: &SourceState| {
            let offered = source.versions.iter().filter(|(_, version)| is_offered(version));
            offered.map(|(id, version)| (id.clone(), bytes(id, version.bytes))).collect()
        };
        let offers: Vec<BTreeMap<VersionId, u64>> = self.sources.iter().map(of_source).collect();
        let stored = self.stored.iter().map(|(id, manifest)| (id.clone(), manifest.bytes())).collect();
        let is_local = |id: &&VersionId| {
            rules.models_dir.join(id.model.as_str()).join(id.version.to_string()).join("model.onnx").exists()
        };
        let local = offers.iter().flat_map(BTreeMap::keys).filter(is_local).cloned().collect();
        plan::plan(&plan::Known {
            offers,
            stored: &stored,
            named,
            local: &local,
            newest: rules.newest,
            limit: rules.limit,
        })
    }

    /// What to do with a version that this source gives.
    fn judge(&mut self, source: usize, id: &VersionId, settled: bool, named: bool) -> Next {
        let SourceState { name, versions, .. } = &mut self.sources[source];
        let Some(version) = versions.get_mut(id) else { return Next::Nothing };
        let has_failed = version.state == VersionState::Failed;
        let mut is =
            |state, message: Option<&str>| (version.state, version.message) = (state, message.map(str::to_owned));
        match self.stored.get(id) {
            Some(stored) if stored.source == *name && stored.identity == version.identity => {
                is(VersionState::Stored, None);
                Next::Say(None)
            }
            Some(stored) if named => {
                let words = if stored.source == *name {
                    format!(
                        "{name} has other bytes for it now; those that it was read with are kept, because the traffic document names it"
                    )
                } else {
                    format!(
                        "{name} has it now; what was read from {} is kept, because the traffic document names it",
                        stored.source
                    )
                };
                is(VersionState::Stored, Some(&words));
                Next::Say(Some(Told::Note(words)))
            }
            // What was wrong with it stays until it is tried again.
            _ if !settled && has_failed => Next::Settle,
            _ if !settled => {
                is(VersionState::Waiting, Some("its files may still be changing"));
                Next::Settle
            }
            _ if version.retry.is_some_and(|retry| retry > Instant::now()) => Next::Nothing,
            _ => Next::Read,
        }
    }

    fn show_verdicts(&mut self, source: usize, verdicts: &BTreeMap<VersionId, Verdict>) {
        for (id, verdict) in verdicts {
            let message = match verdict {
                Verdict::Take => continue,
                Verdict::Other(other) => format!("{} gives it", self.sources[*other].name),
                Verdict::Local => "the models directory has it".to_owned(),
                Verdict::NotNewest => "not among the newest versions of its model (models.sources.versions)".to_owned(),
                Verdict::NoRoom => "no room in the cache (models.sources.cache)".to_owned(),
            };
            self.sources[source].set(id, VersionState::NotKept, Some(message));
        }
    }

    /// The `model.toml` files that this source gives and that are not stored. Removes those that no source has any more.
    fn settings_to_read(
        &mut self,
        source: usize,
        mut files: BTreeMap<ModelName, RemoteFile>,
        rules: &Rules,
    ) -> io::Result<Vec<(ModelName, RemoteFile)>> {
        let mut gone = Vec::new();
        for model in self.settings.keys() {
            let is_given = self.sources.iter().any(|source| source.settings.contains_key(model));
            let is_configured = self.sources.iter().any(|source| source.name == self.settings[model].source);
            if !is_given && (is_configured || !self.stored.keys().any(|id| id.model == *model)) {
                rules.store.remove_settings(model)?;
                gone.push(model.clone());
            }
        }
        for model in &gone {
            self.settings.remove(model);
        }
        let gives = |model: &ModelName| {
            self.sources.iter().position(|source| source.settings.contains_key(model)) == Some(source)
        };
        let name = &self.sources[source].name;
        files.retain(|model, file| {
            let is_stored = |origin: &SettingsOrigin| origin.source == *name && origin.identity == file.identity();
            gives(model) && !self.settings.get(model).is_some_and(is_stored)
        });
        Ok(files.into_iter().collect())
    }

    /// Adds to what is said about the last listing.
    pub(super) fn remark(&mut self, source: usize, remarks: Vec<String>) {
        self.sources[source].remarks.extend(remarks);
    }

    pub(super) fn put_settings(
        &mut self,
        model: ModelName,
        text: &[u8],
        origin: SettingsOrigin,
        rules: &Rules,
    ) -> io::Result<()> {
        rules.store.put_settings(&model, text, &origin)?;
        self.settings.insert(model, origin);
        Ok(())
    }

    // === one version ===

    pub(super) fn begin(&mut self, source: usize, id: &VersionId, rules: &Rules) -> io::Result<()> {
        self.sources[source].set(id, VersionState::Downloading, None);
        self.say(id, format!("it is being read from {}", self.sources[source].name), rules)
    }

    /// What was read is there.
    pub(super) fn land(&mut self, source: usize, id: &VersionId, manifest: Manifest, rules: &Rules) -> io::Result<()> {
        rules.store.land(id, &manifest)?;
        tracing::info!(model = %id.model, version = %id.version, source = manifest.source, bytes = manifest.bytes(), "a version was read from a source");
        self.stored.insert(id.clone(), manifest);
        if let Some(version) = self.sources[source].versions.get_mut(id) {
            (version.state, version.message, version.failures, version.retry) = (VersionState::Stored, None, 0, None);
        }
        Ok(())
    }

    /// It could not be read. It is tried again after a pause that grows.
    pub(super) fn fail(&mut self, source: usize, id: &VersionId, trouble: &Trouble, rules: &Rules) -> io::Result<()> {
        let name = self.sources[source].name.clone();
        if let Some(version) = self.sources[source].versions.get_mut(id) {
            version.failures = version.failures.saturating_add(1);
            version.retry = Some(Instant::now() + pause(rules.interval, version.failures));
            (version.state, version.message) = (VersionState::Failed, Some(trouble.words.clone()));
        }
        tracing::warn!(model = %id.model, version = %id.version, source = name, "a version cannot be read from its source: {trouble}");
        self.say(id, format!("it cannot be read from {name}: {trouble}; it is tried again"), rules)
    }

    /// Says it on the version: beside its files, or in their place.
    fn say(&self, id: &VersionId, words: String, rules: &Rules) -> io::Result<()> {
        let told = if self.stored.contains_key(id) { Told::Note(words) } else { Told::Waits(words) };
        rules.store.tell(id, Some(&told))
    }

    // === files in use ===

    pub(super) fn hold(&mut self, name: &str) {
        *self.in_use.entry(name.to_owned()).or_default() += 1;
    }

    pub(super) fn release(&mut self, names: &[String]) {
        for name in names {
            if let Some(count) = self.in_use.get_mut(name) {
                *count -= 1;
                if *count == 0 {
                    self.in_use.remove(name);
                }
            }
        }
    }

    pub(super) fn in_use(&self) -> BTreeSet<String> {
        self.in_use.keys().cloned().collect()
    }

    // === one source ===

    /// A round ended. Returns the pause until the next one.
    pub(super) fn end_round(
        &mut self,
        source: usize,
        result: &Result<bool, Trouble>,
        settle: Duration,
        rules: &Rules,
    ) -> Duration {
        let source = &mut self.sources[source];
        let pause = match result {
            Ok(again) => {
                if source.failures > 0 {
                    tracing::info!(source = source.name, "the source can be read again");
                }
                (source.failures, source.message, source.last_read) = (0, None, Some(Timestamp::now()));
                let now = Instant::now();
                let retries = source.versions.values().filter_map(|version| version.retry).filter(|retry| *retry > now);
                let retry = retries.min().map_or(rules.interval, |retry| (retry - now).max(settle));
                if *again { settle } else { jittered(rules.interval).min(retry) }
            }
            Err(trouble) => {
                if source.failures == 0 {
                    tracing::warn!(
                        source = source.name,
                        "the source cannot be read; what was read from it before stays: {trouble}"
                    );
                }
                source.is_asked = true;
                source.failures = source.failures.saturating_add(1);
                source.message = Some(trouble.words.clone());
                jittered(pause(rules.interval, source.failures))
            }
        };
        source.next_read = Some(Instant::now() + pause);
        pause
    }

    /// The versions of a source that are to be read and are not there, with the bytes and what is wrong. `arrived`: of the one that is being read.
    pub(super) fn unfinished(&self, source: usize, arrived: u64) -> Vec<Unfinished> {
        let of = |(id, known): (&VersionId, &KnownVersion)| {
            let why = known.message.clone().filter(|_| known.state == VersionState::Failed);
            let arrived = if known.state == VersionState::Downloading { arrived.min(known.bytes) } else { 0 };
            let is_left =
                matches!(known.state, VersionState::Waiting | VersionState::Downloading | VersionState::Failed);
            is_left.then(|| Unfinished { id: id.clone(), bytes: known.bytes, arrived, why })
        };
        self.sources[source].versions.iter().filter_map(of).collect()
    }

    pub(super) fn reports(&self) -> Vec<SourceReport> {
        let version = |(id, known): (&VersionId, &KnownVersion)| VersionReport {
            model: id.model.clone(),
            version: id.version,
            state: known.state,
            bytes: known.bytes,
            message: known.message.clone(),
        };
        let now = Instant::now();
        let report = |source: &SourceState| SourceReport {
            source: source.name.clone(),
            failures: source.failures,
            message: source.message.clone(),
            last_read: source.last_read,
            next_read: source.next_read.map(|at| at.saturating_duration_since(now)),
            remarks: source.remarks.clone(),
            versions: source.versions.iter().map(version).collect(),
        };
        self.sources.iter().map(report).collect()
    }
}

/// What is done with a version that a source gives.
enum Next {
    Read,
    /// It may still be changing.
    Settle,
    /// It is there; this is what to say about it.
    Say(Option<Told>),
    /// It waits for its next try.
    Nothing,
}

/// The pause after a number of failures in a row.
pub(super) fn pause(interval: Duration, failures: u32) -> Duration {
    let factor = 1_u32 << failures.saturating_sub(1).min(16);
    interval.saturating_mul(factor).min(LONGEST_PAUSE.max(interval))
}

/// Up to a tenth more or less, so that servers that started together do not ask together.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(fastrand::f64().mul_add(0.2, 0.9))
}
