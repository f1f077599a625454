//! Watching the models directory: what changed since the manager was last reported, and which files have come to rest.

use super::scan::{Fingerprint, Found, FoundModel, look_at_model, look_at_root};
use crate::model::{ModelName, Version};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use notify::{EventKind, RecursiveMode, Watcher};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tracing::{info, warn};

/// What changed since the last look.
#[derive(Debug, Default)]
pub struct Look {
    /// Models whose directories changed; `None` where one is gone.
    pub changed: Vec<(ModelName, Option<FoundModel>)>,
    /// Set on the first look at the whole directory that succeeded.
    pub first: bool,
}

/// Remembers what was seen, and says what is new.
#[derive(Debug)]
pub struct ScanState {
    root: PathBuf,
    settle: Duration,
    reported: HashMap<ModelName, FoundModel>,
    /// Versions whose files were changing when last seen: as they were, and since when they have been so.
    moving: BTreeMap<(ModelName, Version), (Fingerprint, Instant)>,
    /// What was complained of already: each thing once, until it is right again.
    complained: HashSet<PathBuf>,
    looked: bool,
}

/// Files whose last change lies this far back are not being written: no need to watch them for a while first. Far more than
/// `settle`, as a file server's clock may differ from this machine's.
const LONG_STILL: Duration = Duration::from_secs(10);
/// Between an event and the look it causes: a copy makes thousands of events.
const GATHER: Duration = Duration::from_millis(30);
/// How often the whole directory is looked at where the system does not tell of changes.
const UNWATCHED_RESCAN: Duration = Duration::from_secs(1);

// === impl ScanState ===

impl ScanState {
    #[must_use]
    pub fn new(root: PathBuf, settle: Duration) -> ScanState {
        ScanState {
            root,
            settle,
            reported: HashMap::new(),
            moving: BTreeMap::new(),
            complained: HashSet::new(),
            looked: false,
        }
    }

    /// Looks at everything. A directory that cannot be read, or holds no model at all, changes nothing that was known: it is a
    /// volume that went away, not somebody who deleted every model.
    pub fn look_at_all(&mut self, now: Instant) -> Look {
        let root = self.root.clone();
        let found = match look_at_root(&root) {
            Ok(found) => found,
            Err(error) => {
                if self.complain(&root) {
                    warn!(dir = %root.display(), %error, "cannot read the models directory; what is loaded stays");
                }
                return Look::default();
            }
        };
        if found.models.is_empty() && !self.reported.is_empty() {
            if self.complain(&root) {
                warn!(dir = %root.display(), "the models directory is empty; what is loaded stays");
            }
            return Look::default();
        }
        self.complained.remove(&root);
        for stranger in found.strangers {
            if self.complain(&stranger) {
                warn!(dir = %stranger.display(), "ignored: not a model's name (a letter or digit, then letters, digits, '.', '_' or '-')");
            }
        }
        let mut names: BTreeSet<ModelName> = found.models.into_iter().collect();
        names.extend(self.reported.keys().cloned());
        let changed = self.look_at_each(names, now, true);
        let first = !std::mem::replace(&mut self.looked, true);
        Look { changed, first }
    }

    /// Looks at some models.
    pub fn look_at(&mut self, models: BTreeSet<ModelName>, now: Instant) -> Look {
        Look { changed: self.look_at_each(models, now, false), first: false }
    }

    /// Models with a version whose files may have come to rest at `now`.
    #[must_use]
    pub fn due(&self, now: Instant) -> BTreeSet<ModelName> {
        let due = self.moving.iter().filter(|(_, (_, since))| now >= *since + self.settle);
        due.map(|((model, _), _)| model.clone()).collect()
    }

    /// When [`ScanState::due`] will next name a model.
    #[must_use]
    pub fn next_due(&self) -> Option<Instant> {
        self.moving.values().map(|(_, since)| *since + self.settle).min()
    }

    /// `root_is_whole`: the root was just read, and holds models; else that is looked at when a model seems to be gone.
    fn look_at_each(
        &mut self,
        models: BTreeSet<ModelName>,
        now: Instant,
        root_is_whole: bool,
    ) -> Vec<(ModelName, Option<FoundModel>)> {
        let root = self.root.clone();
        let is_whole = || root_is_whole || look_at_root(&root).is_ok_and(|found| !found.models.is_empty());
        let mut changed = Vec::new();
        for model in models {
            let path = self.root.join(model.as_str());
            match look_at_model(&self.root, &model) {
                Err(error) => {
                    if self.complain(&path) {
                        warn!(%model, %error, "cannot read the model's directory; what is loaded stays");
                    }
                }
                Ok(None) => {
                    if self.reported.contains_key(&model) && is_whole() {
                        self.reported.remove(&model);
                        self.moving.retain(|(m, _), _| *m != model);
                        changed.push((model, None));
                    }
                }
                Ok(Some(mut found)) => {
                    self.complained.remove(&path);
                    for stranger in &found.strangers {
                        if self.complain(stranger) {
                            warn!(dir = %stranger.display(), "ignored: not a version (a positive integer without leading zeros)");
                        }
                    }
                    for (version, seen) in &mut found.versions {
                        seen.still = self.is_still(&model, *version, seen, now);
                    }
                    self.moving.retain(|(m, v), _| *m != model || found.versions.contains_key(v));
                    if self.reported.get(&model) != Some(&found) {
                        self.reported.insert(model.clone(), found.clone());
                        changed.push((model, Some(found)));
                    }
                }
            }
        }
        changed
    }

    fn is_still(&mut self, model: &ModelName, version: Version, seen: &Found, now: Instant) -> bool {
        let before = self.reported.get(model).and_then(|m| m.versions.get(&version));
        if before.is_some_and(|b| b.still && b.fingerprint == seen.fingerprint && seen.trouble.is_none()) {
            return true;
        }
        let key = (model.clone(), version);
        let long_still = SystemTime::now().duration_since(seen.fingerprint.changed).is_ok_and(|age| age >= LONG_STILL);
        let still = seen.trouble.is_none()
            && (long_still
                || self.moving.get(&key).is_some_and(|(fingerprint, since)| {
                    *fingerprint == seen.fingerprint && now >= *since + self.settle
                }));
        if still {
            self.moving.remove(&key);
            return true;
        }
        let entry = self.moving.entry(key).or_insert((seen.fingerprint, now));
        // What cannot be listed is looked at again after as long as what moves.
        if entry.0 != seen.fingerprint || seen.trouble.is_some() {
            *entry = (seen.fingerprint, now);
        }
        false
    }

    fn complain(&mut self, about: &Path) -> bool {
        self.complained.insert(about.to_owned())
    }
}

// === the thread ===

/// Wakes the watching thread.
#[derive(Debug, Clone)]
pub struct WakeHandle {
    wishes: Arc<Mutex<Wishes>>,
    /// Holds one: a second wake-up says nothing that the wishes do not.
    signal: Sender<()>,
}

#[derive(Debug, Default)]
struct Wishes {
    /// Bounded by the models there are.
    models: BTreeSet<ModelName>,
    all: bool,
    stop: bool,
}

impl WakeHandle {
    pub fn model(&self, model: ModelName) {
        self.wish(|wishes| wishes.models.extend([model]));
    }

    pub fn stop(&self) {
        self.wish(|wishes| wishes.stop = true);
    }

    fn wish(&self, what: impl FnOnce(&mut Wishes)) {
        what(&mut self.wishes.lock().unwrap_or_else(PoisonError::into_inner));
        // Full: the thread is being woken already.
        let _ = self.signal.try_send(());
    }

    fn take(&self) -> Wishes {
        std::mem::take(&mut *self.wishes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Starts the watching thread. `report` is called with each [`Look`] on that thread; the thread ends when `report` returns `false`
/// or [`WakeHandle::stop`] is called.
///
/// # Errors
/// When the system gives no thread.
pub fn watch(
    root: PathBuf,
    settle: Duration,
    rescan: Duration,
    report: impl FnMut(Look) -> bool + Send + 'static,
) -> std::io::Result<WakeHandle> {
    let (signal, signals) = bounded(1);
    let wake = WakeHandle { wishes: Arc::new(Mutex::new(Wishes::default())), signal };
    let watching = wake.clone();
    std::thread::Builder::new()
        .name("watch".to_owned())
        .spawn(move || run(ScanState::new(root, settle), rescan, &watching, &signals, report))?;
    Ok(wake)
}

fn run(
    mut state: ScanState,
    rescan: Duration,
    wake: &WakeHandle,
    signals: &Receiver<()>,
    mut report: impl FnMut(Look) -> bool,
) {
    super::remove_leftovers(&state.root);
    let mut watcher = DirWatcher::default();
    let mut next_whole = Instant::now();
    loop {
        let mut wishes = wake.take();
        if wishes.stop {
            return;
        }
        let now = Instant::now();
        let look = if wishes.all || now >= next_whole {
            watcher.ensure(&state.root, wake);
            next_whole = now + if watcher.is_active() { rescan } else { rescan.min(UNWATCHED_RESCAN) };
            state.look_at_all(now)
        } else {
            wishes.models.append(&mut state.due(now));
            if wishes.models.is_empty() { Look::default() } else { state.look_at(wishes.models, now) }
        };
        if (look.first || !look.changed.is_empty()) && !report(look) {
            return;
        }
        let next_look = state.next_due().map_or(next_whole, |due| due.min(next_whole));
        if let Ok(()) | Err(RecvTimeoutError::Disconnected) = signals.recv_deadline(next_look) {
            // A signal that comes meanwhile is kept in the wishes; waiting for one more second of them only gathers.
            let gathered = Instant::now() + GATHER;
            while signals.recv_deadline(gathered).is_ok() {}
        }
    }
}

/// The system's notices of changes, where it gives them.
#[derive(Default)]
struct DirWatcher {
    watcher: Option<notify::RecommendedWatcher>,
    /// The directory watched: when another stands at its path, notices of the old one say nothing.
    identity: Option<(u64, u64)>,
    complained: bool,
}

impl DirWatcher {
    fn is_active(&self) -> bool {
        self.watcher.is_some()
    }

    fn ensure(&mut self, root: &Path, wake: &WakeHandle) {
        let identity = std::fs::metadata(root).ok().map(|meta| (meta.dev(), meta.ino()));
        if identity == self.identity && (self.watcher.is_some() || self.complained) {
            return;
        }
        self.identity = identity;
        self.watcher = None;
        if identity.is_none() {
            return;
        }
        match watch_directory(root, wake.clone()) {
            Ok(watcher) => {
                self.watcher = Some(watcher);
                self.complained = false;
                info!(dir = %root.display(), "watching the models directory");
            }
            Err(error) => {
                self.complained = true;
                warn!(dir = %root.display(), %error, "the system does not tell of changes here; looking every second");
            }
        }
    }
}

fn watch_directory(root: &Path, wake: WakeHandle) -> notify::Result<notify::RecommendedWatcher> {
    let base = root.to_owned();
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        let Ok(event) = event else {
            return wake.wish(|wishes| wishes.all = true);
        };
        // Reading makes notices too: ours would never end.
        if matches!(event.kind, EventKind::Access(_)) {
            return;
        }
        let model = |path: &PathBuf| {
            let first = path.strip_prefix(&base).ok()?.components().next()?;
            first.as_os_str().to_str()?.parse::<ModelName>().ok()
        };
        let models: BTreeSet<ModelName> = event.paths.iter().filter_map(model).collect();
        if event.need_rescan() {
            wake.wish(|wishes| wishes.all = true);
        } else if !models.is_empty() {
            wake.wish(|wishes| wishes.models.extend(models));
        }
    })?;
    watcher.watch(root, RecursiveMode::Recursive)?;
    Ok(watcher)
}
