//! The thread that watches the models directory: what changed since the last report, and which files have stopped changing.

use super::notices::DirWatcher;
use super::roots::{Awaited, Roots};
use super::scan::{Fingerprint, Found, FoundModel, FoundRoot, Ignored, look_at_model, look_at_root};
use super::staging::remove_leftovers;
use crate::model::{ModelName, Version};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tracing::{error, warn};

/// What changed since the last report.
#[derive(Debug, Default)]
pub(crate) struct Look {
    /// Models whose directories changed. `None` where the directory is gone.
    pub changed: Vec<(ModelName, Option<FoundModel>)>,
    /// Set on the first successful reading of the whole directory.
    pub first: bool,
}

/// Compares each reading of the directory with the one before.
#[derive(Debug)]
pub(super) struct ScanState {
    root: PathBuf,
    settle: Duration,
    reported: HashMap<ModelName, FoundModel>,
    /// Versions whose files were still changing at the last look.
    settling: BTreeMap<ModelName, BTreeMap<Version, Settling>>,
    /// Paths that a warning was logged for. Each path is logged once, until it is right again.
    warned: HashSet<PathBuf>,
    /// Whether a root that was never there is read as one without models.
    may_be_absent: bool,
    looked: bool,
}

/// A version whose files have not been unchanged for long enough.
#[derive(Debug)]
struct Settling {
    fingerprint: Fingerprint,
    /// When the files were first seen with this fingerprint.
    since: Instant,
    /// When to look again. Every look moves it into the future, whatever the look finds.
    next_look: Instant,
}

/// Files that last changed this long ago are not being written, so they need not be watched first. Far longer than the settle time,
/// because a file server's clock may differ from this machine's.
const OLD_ENOUGH: Duration = Duration::from_secs(10);
/// The shortest time between two looks at the same files, whatever settle time and interval are configured.
const MIN_PAUSE: Duration = Duration::from_millis(10);
/// How long to collect notices before a look: one copy causes thousands of them.
const COLLECT_NOTICES: Duration = Duration::from_millis(30);
/// How often to read the whole directory where the system sends no change notices.
const UNWATCHED_RESCAN: Duration = Duration::from_secs(1);

// === impl ScanState ===

impl ScanState {
    #[must_use]
    pub(super) fn new(root: PathBuf, settle: Duration) -> ScanState {
        ScanState {
            root,
            settle,
            reported: HashMap::new(),
            settling: BTreeMap::new(),
            warned: HashSet::new(),
            may_be_absent: false,
            looked: false,
        }
    }

    pub(super) fn that_may_be_absent(self) -> ScanState {
        ScanState { may_be_absent: true, ..self }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Whether the whole directory was read once.
    pub(super) fn has_looked(&self) -> bool {
        self.looked
    }

    /// The model as it was last reported.
    pub(super) fn reported(&self, model: &ModelName) -> Option<&FoundModel> {
        self.reported.get(model)
    }

    /// Reads the whole directory. A root that cannot be read, or that holds no model any more, changes nothing: a volume went away,
    /// which is far more likely than somebody deleting every model.
    pub(super) fn look_at_all(&mut self, now: Instant) -> Look {
        let root = self.root.clone();
        let found = match look_at_root(&root) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.may_be_absent && self.reported.is_empty() => {
                FoundRoot::default()
            }
            Err(error) => {
                if self.is_first_warning(&root) {
                    warn!(dir = %root.display(), %error, "cannot read the models directory; loaded versions stay loaded");
                }
                return Look::default();
            }
        };
        if found.models.is_empty() && !self.reported.is_empty() {
            if self.is_first_warning(&root) {
                warn!(dir = %root.display(), "the models directory is empty; loaded versions stay loaded");
            }
            return Look::default();
        }
        self.warned.remove(&root);
        self.warn_of(&found.ignored);
        let mut names: BTreeSet<ModelName> = found.models.into_iter().collect();
        names.extend(self.reported.keys().cloned());
        let changed = self.look_at_each(names, now, true);
        let first = !std::mem::replace(&mut self.looked, true);
        Look { changed, first }
    }

    /// Reads the directories of some models.
    pub(super) fn look_at(&mut self, models: BTreeSet<ModelName>, now: Instant) -> Look {
        Look { changed: self.look_at_each(models, now, false), first: false }
    }

    /// Models with a version whose files may have settled by `now`.
    #[must_use]
    pub(super) fn due(&self, now: Instant) -> BTreeSet<ModelName> {
        let due = |settling: &Settling| now >= settling.next_look;
        self.settling
            .iter()
            .filter(|(_, versions)| versions.values().any(due))
            .map(|(model, _)| model.clone())
            .collect()
    }

    /// When [`ScanState::due`] will next return a model.
    #[must_use]
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.settling.values().flat_map(BTreeMap::values).map(|settling| settling.next_look).min()
    }

    fn warn_of(&mut self, ignored: &[Ignored]) {
        for Ignored { path, why } in ignored {
            if self.is_first_warning(path) {
                warn!(path = %path.display(), "ignored: {why}");
            }
        }
    }

    /// `root_is_whole`: the root was just read and holds models. Otherwise it is read when a model's directory is missing.
    fn look_at_each(
        &mut self,
        models: BTreeSet<ModelName>,
        now: Instant,
        root_is_whole: bool,
    ) -> Vec<(ModelName, Option<FoundModel>)> {
        let mut changed = Vec::new();
        let mut missing = Vec::new();
        for model in models {
            let path = self.root.join(model.as_str());
            match look_at_model(&self.root, &model) {
                Err(error) => {
                    if self.is_first_warning(&path) {
                        warn!(%model, %error, "cannot read the model's directory; loaded versions stay loaded");
                    }
                }
                Ok(None) => {
                    if self.reported.contains_key(&model) {
                        missing.push(model.clone());
                    }
                }
                Ok(Some(mut found)) => {
                    self.warned.remove(&path);
                    self.warn_of(&found.ignored);
                    for (version, seen) in &mut found.versions {
                        seen.still = self.is_still(&model, *version, seen, now);
                    }
                    if let Some(settling) = self.settling.get_mut(&model) {
                        settling.retain(|version, _| found.versions.contains_key(version));
                    }
                    if self.reported.get(&model) != Some(&found) {
                        self.reported.insert(model.clone(), found.clone());
                        changed.push((model.clone(), Some(found)));
                    }
                }
            }
            self.postpone(&model, now);
        }
        // Read once, after the directories: there may be thousands of models.
        let is_whole = || root_is_whole || look_at_root(&self.root).is_ok_and(|found| !found.models.is_empty());
        if !missing.is_empty() && is_whole() {
            for model in missing {
                self.reported.remove(&model);
                self.settling.remove(&model);
                changed.push((model, None));
            }
        }
        changed
    }

    fn is_still(&mut self, model: &ModelName, version: Version, seen: &Found, now: Instant) -> bool {
        let before = self.reported.get(model).and_then(|m| m.versions.get(&version));
        if before.is_some_and(|b| b.still && b.fingerprint == seen.fingerprint && seen.trouble.is_none()) {
            return true;
        }
        let age = SystemTime::now().duration_since(seen.fingerprint.changed);
        let is_old = age.is_ok_and(|age| age >= OLD_ENOUGH);
        let settled =
            self.settling.get(model).and_then(|versions| versions.get(&version)).is_some_and(|settling| {
                settling.fingerprint == seen.fingerprint && now >= settling.since + self.settle
            });
        if seen.trouble.is_none() && (is_old || settled) {
            if let Some(versions) = self.settling.get_mut(model) {
                versions.remove(&version);
            }
            return true;
        }
        let fresh = || Settling { fingerprint: seen.fingerprint, since: now, next_look: now + self.settle };
        let entry = self.settling.entry(model.clone()).or_default().entry(version).or_insert_with(fresh);
        if entry.fingerprint != seen.fingerprint || seen.trouble.is_some() {
            *entry = fresh();
        }
        false
    }

    /// Moves the looks that were due into the future. A look that failed, or found nothing new, leaves none in the past: the thread
    /// sleeps until the next one.
    fn postpone(&mut self, model: &ModelName, now: Instant) {
        let next_look = now + self.settle.max(MIN_PAUSE);
        let Some(versions) = self.settling.get_mut(model) else { return };
        for settling in versions.values_mut().filter(|settling| settling.next_look <= now) {
            settling.next_look = next_look;
        }
        if versions.is_empty() {
            self.settling.remove(model);
        }
    }

    /// After a panic: the next look finds out again which files are being written.
    pub(super) fn forget_settling(&mut self) {
        self.settling.clear();
    }

    fn is_first_warning(&mut self, path: &Path) -> bool {
        self.warned.insert(path.to_owned())
    }
}

// === the thread ===

/// Wakes the watching thread.
#[derive(Debug, Clone)]
pub(crate) struct WakeHandle {
    requests: Arc<Mutex<Requests>>,
    /// Holds one signal. More are not needed, because the requests say what to do.
    signal: Sender<()>,
}

/// What the thread is asked to do.
#[derive(Debug, Default)]
struct Requests {
    /// Bounded by the number of models.
    models: BTreeSet<ModelName>,
    all: bool,
    stop: bool,
}

impl WakeHandle {
    /// Asks for a look at one model.
    pub(crate) fn model(&self, model: ModelName) {
        self.models([model]);
    }

    pub(super) fn models(&self, models: impl IntoIterator<Item = ModelName>) {
        self.request(|requests| requests.models.extend(models));
    }

    pub(super) fn everything(&self) {
        self.request(|requests| requests.all = true);
    }

    pub(crate) fn stop(&self) {
        self.request(|requests| requests.stop = true);
    }

    fn request(&self, add: impl FnOnce(&mut Requests)) {
        add(&mut self.requests.lock().unwrap_or_else(PoisonError::into_inner));
        // Full: the thread is being woken already.
        let _ = self.signal.try_send(());
    }

    fn take(&self) -> Requests {
        std::mem::take(&mut *self.requests.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Starts the watching thread. `report` is called with each [`Look`] on that thread. The thread ends when `report` returns `false`
/// or [`WakeHandle::stop`] is called. The first report waits for `awaited`.
///
/// # Errors
/// When the system refuses a new thread.
pub(crate) fn watch(
    roots: Vec<PathBuf>,
    settle: Duration,
    rescan: Duration,
    awaited: Awaited,
    report: impl FnMut(Look) -> bool + Send + 'static,
) -> std::io::Result<WakeHandle> {
    let (signal, signals) = bounded(1);
    let wake = WakeHandle { requests: Arc::new(Mutex::new(Requests::default())), signal };
    let watching = wake.clone();
    awaited.wakes(&wake);
    std::thread::Builder::new()
        .name("watch".to_owned())
        .spawn(move || run(Roots::new(roots, settle, awaited), rescan, &watching, &signals, report))?;
    Ok(wake)
}

fn run(
    mut state: Roots,
    rescan: Duration,
    wake: &WakeHandle,
    signals: &Receiver<()>,
    mut report: impl FnMut(Look) -> bool,
) {
    let roots: Vec<PathBuf> = state.roots().map(Path::to_owned).collect();
    for root in &roots {
        remove_leftovers(root);
    }
    let mut watchers: Vec<DirWatcher> = roots.iter().map(|_| DirWatcher::default()).collect();
    let mut next_whole = Instant::now();
    loop {
        let mut requests = wake.take();
        if requests.stop {
            return;
        }
        let now = Instant::now();
        let whole = requests.all || now >= next_whole;
        if whole {
            watchers.iter_mut().zip(&roots).for_each(|(watcher, root)| watcher.ensure(root, wake));
            let all_active = watchers.iter().all(DirWatcher::is_active);
            let pause = if all_active { rescan } else { rescan.min(UNWATCHED_RESCAN) };
            next_whole = now + pause.max(MIN_PAUSE);
        }
        // Without this thread no new version would ever be found, so a panic must not end it.
        let look = catch_unwind(AssertUnwindSafe(|| {
            if whole {
                return state.look_at_all(now);
            }
            requests.models.append(&mut state.due(now));
            if requests.models.is_empty() { Look::default() } else { state.look_at(&requests.models, now) }
        }));
        let look = look.unwrap_or_else(|panic| {
            let message = crate::model::panic_message(&*panic);
            error!(message, "reading the models directory panicked; it is read again later");
            next_whole = now + rescan.max(UNWATCHED_RESCAN);
            state.forget_settling();
            Look::default()
        });
        if (look.first || !look.changed.is_empty()) && !report(look) {
            return;
        }
        let next_look = state.next_due().map_or(next_whole, |due| due.min(next_whole));
        if let Ok(()) | Err(RecvTimeoutError::Disconnected) = signals.recv_deadline(next_look) {
            // Requests are kept while notices are collected, so none is lost.
            let collected = Instant::now() + COLLECT_NOTICES;
            while signals.recv_deadline(collected).is_ok() {}
        }
    }
}
