//! The thread of one source: lists it, reads what is new, and waits until the next round.

use super::counts::Counts;
use super::download::{Blob, Download, disk, key};
use super::offer::{Archive, Content, Listing, MODEL, Offer, Place, RemoteFile, Sink, Source, Trouble};
use super::store::{Manifest, SettingsOrigin, StoredFile};
use super::{Make, Shared, unpack};
use crate::machine::lower_priority;
use crate::model::{ModelName, VersionId};
use crossbeam_channel::Receiver;
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

pub(super) struct Worker {
    pub shared: Arc<Shared>,
    /// The number of the source.
    pub source: usize,
    pub name: String,
    pub make: Make,
    pub opened: Option<Box<dyn Source>>,
    /// It was not listed since the start.
    pub is_first: bool,
    /// How long two listings of a version must be apart and equal.
    pub settle: Duration,
    /// The identity of each version in the last listings, and since when it is the same.
    pub seen: BTreeMap<VersionId, (String, Instant)>,
    pub counts: Counts,
}

/// The most versions of a source.
const MAX_VERSIONS: usize = 10_000;
/// The longest time for a listing, and for the first one since the start: the server is not ready before it, and sources that come later wait for it.
const LIST_WITHIN: Duration = Duration::from_mins(5);
const FIRST_LIST_WITHIN: Duration = Duration::from_mins(1);
/// After so many `model.toml` files in a row that cannot be read, the others are not tried in this round.
const MOST_FAILURES: usize = 3;
/// The largest `model.toml`, as in the models directory.
const MAX_SETTINGS: u64 = 1 << 20;
/// The largest `version.toml`.
const MAX_VERSION_TOML: u64 = 1 << 20;
/// The disk space that is left to the ledger and the prediction log.
const LEFT_FREE: u64 = 1 << 30;
const VERSION_TOML: &str = "version.toml";

impl Worker {
    /// Works until the server stops. A signal on `wake` begins the next round at once.
    pub(super) fn run(mut self, wake: &Receiver<()>) {
        lower_priority("source", 10);
        let began = Instant::now();
        while !self.is_stopping() {
            // Without this thread the source would never be read again, so a panic must not end it.
            let round = catch_unwind(AssertUnwindSafe(|| self.round()));
            let result = round.unwrap_or_else(|panic| {
                self.opened = None;
                Err(Trouble::new(format!("reading it panicked: {}", crate::model::panic_message(&*panic))))
            });
            if self.is_stopping() {
                return;
            }
            self.counts.round(result.is_ok(), self.shared.rules.store.used());
            let pause = self.shared.state().end_round(self.source, &result, self.settle, &self.shared.rules);
            if !matches!(result, Ok(true)) || began.elapsed() > self.shared.first_round_within {
                self.shared.first_round_over(self.source);
            }
            // Disconnected or asked: the next round begins now.
            let _ = wake.recv_timeout(pause);
        }
    }

    /// The bytes that are here of the version that is being read.
    fn arrived(&self) -> &AtomicU64 {
        &self.shared.arrived[self.source]
    }

    fn is_stopping(&self) -> bool {
        self.shared.stopping.load(Ordering::Acquire)
    }

    /// Returns whether the next round should come soon.
    fn round(&mut self) -> Result<bool, Trouble> {
        let began = Instant::now();
        if self.opened.is_none() {
            self.opened = Some((self.make)()?);
        }
        let listing = match self.opened.as_mut() {
            Some(source) => {
                let within = if self.is_first { FIRST_LIST_WITHIN } else { LIST_WITHIN };
                self.is_first = false;
                source.list(began + within)?
            }
            None => return Ok(false),
        };
        if listing.versions.len() > MAX_VERSIONS {
            let found = listing.versions.len();
            return Err(Trouble::new(format!("it has {found} versions; expected at most {MAX_VERSIONS}")));
        }
        let listed = Instant::now();
        let settled = self.settled(&listing, began);
        let shared = Arc::clone(&self.shared);
        let work = shared.state().take_in(self.source, listing, &settled, &shared.rules)?;
        let without = self.read_all_settings(work.settings);
        let mut again = work.unsettled;
        for (number, offer) in work.versions.into_iter().enumerate() {
            if self.is_stopping() {
                return Ok(false);
            }
            // It would be loaded without its settings.
            if let Some(why) = without.get(&offer.id.model) {
                shared
                    .state()
                    .fail(self.source, &offer.id, &Trouble::new(why.clone()), &shared.rules)
                    .map_err(|e| disk(&e))?;
                continue;
            }
            if number > 0 && listed.elapsed() > shared.rules.interval.max(self.settle) {
                // What was listed is old.
                again = true;
                break;
            }
            self.read_version(&offer).map_err(|e| disk(&e))?;
        }
        Ok(again)
    }

    /// The versions that were the same in listings that are far enough apart.
    fn settled(&mut self, listing: &Listing, now: Instant) -> BTreeSet<VersionId> {
        let mut seen = BTreeMap::new();
        for offer in &listing.versions {
            let identity = offer.identity();
            let since = match self.seen.remove(&offer.id) {
                Some((known, since)) if known == identity => since,
                _ => now,
            };
            seen.insert(offer.id.clone(), (identity, since));
        }
        self.seen = seen;
        let is_settled = |(_, since): &(String, Instant)| {
            listing.is_final || (now.duration_since(*since) >= self.settle && *since != now)
        };
        self.seen.iter().filter(|(_, seen)| is_settled(seen)).map(|(id, _)| id.clone()).collect()
    }

    /// Reads the `model.toml` files. Returns the models whose file cannot be read, with why: one model's file does not keep others from being read.
    fn read_all_settings(&mut self, files: Vec<(ModelName, RemoteFile)>) -> BTreeMap<ModelName, String> {
        let (mut without, mut failures) = (BTreeMap::new(), 0);
        for (model, file) in files {
            let read = match failures {
                MOST_FAILURES => Err(Trouble::new(
                    "model.toml was not read: those of other models before it could not be read either",
                )),
                _ => self.read_settings(model.clone(), &file),
            };
            match read {
                Ok(()) => failures = 0,
                Err(trouble) => {
                    failures = MOST_FAILURES.min(failures + 1);
                    without.insert(model, trouble.words);
                }
            }
        }
        let remarks = without.values().take(MOST_FAILURES).cloned().collect();
        self.shared.state().remark(self.source, remarks);
        without
    }

    fn read_settings(&mut self, model: ModelName, file: &RemoteFile) -> Result<(), Trouble> {
        let about = |trouble: Trouble| Trouble::new(format!("model.toml of model {model} cannot be read: {trouble}"));
        let text = self.read_small(file, MAX_SETTINGS).map_err(about)?;
        let origin = SettingsOrigin { source: self.name.clone(), identity: file.identity() };
        let shared = Arc::clone(&self.shared);
        shared.state().put_settings(model, &text, origin, &shared.rules).map_err(|e| disk(&e))
    }

    fn read_small(&mut self, file: &RemoteFile, most: u64) -> Result<Vec<u8>, Trouble> {
        let place = match &file.content {
            Content::Given(bytes) => return Ok(bytes.clone()),
            Content::At(place) | Content::Archive(Archive { place, .. }) => place,
        };
        let mut bytes = Vec::new();
        let mut sink = |piece: &[u8]| {
            if (bytes.len() + piece.len()) as u64 > most {
                return Err(Trouble::new(format!("it is larger than {most} bytes")));
            }
            bytes.extend_from_slice(piece);
            Ok(())
        };
        let source = self.opened.as_mut().ok_or_else(|| Trouble::new("the source is closed"))?;
        source.read(place, 0, Instant::now() + LIST_WITHIN, &mut sink)?;
        Ok(bytes)
    }

    /// Reads a version. What goes wrong with it is told on the version.
    ///
    /// # Errors
    /// When the data directory cannot be used.
    fn read_version(&mut self, offer: &Offer) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let rules = &shared.rules;
        shared.state().begin(self.source, &offer.id, rules)?;
        self.arrived().store(0, Ordering::Relaxed);
        let mut held = Vec::new();
        let read = self.read_files(offer, &mut held);
        let mut state = shared.state();
        let done = match read {
            _ if self.is_stopping() => Ok(()),
            Ok(files) => {
                self.counts.downloads_ok.increment(1);
                let manifest = Manifest { source: self.name.clone(), identity: offer.identity(), files };
                rules.store.forget_complete(&held);
                state.land(self.source, &offer.id, manifest, rules)
            }
            Err(trouble) => {
                self.counts.downloads_failed.increment(1);
                if trouble.changed {
                    // It has to be the same in two listings again.
                    self.seen.remove(&offer.id);
                }
                state.fail(self.source, &offer.id, &trouble, rules)
            }
        };
        state.release(&held);
        done
    }

    fn read_files(&mut self, offer: &Offer, held: &mut Vec<String>) -> Result<Vec<StoredFile>, Trouble> {
        self.hold(offer, held);
        let room = self.make_room(offer)?;
        // First, because it may have the digest of the model.
        let mut files: Vec<&RemoteFile> = offer.files.iter().collect();
        files.sort_by_key(|file| file.path != VERSION_TOML);
        let mut stored: Vec<StoredFile> = Vec::new();
        let (mut expected, mut left): (Option<String>, u64) = (None, room);
        let mut read = 0_u64;
        for file in files {
            let about = |trouble: Trouble| Trouble { words: format!("{}: {}", file.path, trouble.words), ..trouble };
            let is_model = file.path == MODEL;
            let blob = self.read_file(file, expected.as_deref().filter(|_| is_model), left).map_err(about)?;
            self.shared.state().hold(&blob.sha256);
            held.push(blob.sha256.clone());
            left = left.saturating_sub(blob.bytes);
            read = read.saturating_add(blob.bytes);
            self.arrived().store(read, Ordering::Relaxed);
            if file.path == VERSION_TOML {
                expected = self.expected_digest(&blob);
            }
            if let Content::Archive(archive) = &file.content {
                let files = unpack::unpack(&self.shared.rules.store, &blob, archive, left).map_err(about)?;
                left = left.saturating_sub(files.iter().map(|file| file.bytes).sum());
                self.hold_blobs(&files, held);
                // A later layer replaces the files of an earlier one.
                stored.retain(|known| !files.iter().any(|file| file.path == known.path));
                stored.extend(files);
            } else {
                stored.push(StoredFile { path: file.path.clone(), bytes: blob.bytes, sha256: blob.sha256 });
            }
        }
        if offer.files.iter().any(|file| matches!(file.content, Content::Archive(_))) {
            stored = unpack::of_version(stored, &offer.id)?;
        }
        Ok(stored)
    }

    fn hold_blobs(&self, files: &[StoredFile], held: &mut Vec<String>) {
        let mut state = self.shared.state();
        for file in files {
            state.hold(&file.sha256);
            held.push(file.sha256.clone());
        }
    }

    /// Keeps what is there of a version from being removed to make room.
    fn hold(&self, offer: &Offer, held: &mut Vec<String>) {
        for file in &offer.files {
            let place = place_of(file);
            held.push(key(&self.name, &place));
            held.extend(place.sha256.clone());
        }
        let mut state = self.shared.state();
        for name in held.iter() {
            state.hold(name);
        }
    }

    /// Makes room for a version, and returns the bytes that it may have.
    fn make_room(&self, offer: &Offer) -> Result<u64, Trouble> {
        let shared = &self.shared;
        let store = &shared.rules.store;
        let here = |file: &RemoteFile| {
            let place = place_of(file);
            let size = |path: std::path::PathBuf| std::fs::metadata(path).map_or(0, |meta| meta.len());
            let blob = place.sha256.as_ref().map_or(0, |sha256| size(store.blob(sha256)));
            blob.max(size(store.partial(&key(&self.name, &place)))).min(place.size.unwrap_or(0))
        };
        let all = offer.bytes();
        let bytes = all.saturating_sub(offer.files.iter().map(here).fold(0, u64::saturating_add));
        let state = shared.state();
        let room = store.make_room(bytes, shared.rules.limit, &state.in_use()).map_err(|e| disk(&e))?;
        drop(state);
        let models = shared.rules.store.models();
        let free = crate::machine::disk_space(&models).map_or(u64::MAX, |space| space.free.saturating_sub(LEFT_FREE));
        if bytes > free {
            return Err(Trouble::new(format!(
                "it has {bytes} bytes, and the disk has room for {free} (1 GiB is left free for the ledger and the prediction log)"
            )));
        }
        if bytes > room {
            return Err(Trouble::new(format!(
                "it has {bytes} bytes, and the cache has room for {room} (models.sources.cache)"
            )));
        }
        // What is here of it counts in the cache already.
        Ok(room.min(free).max(all))
    }

    fn read_file(&mut self, file: &RemoteFile, expected: Option<&str>, most: u64) -> Result<Blob, Trouble> {
        let place = place_of(file);
        if let (Some(found), Some(expected)) = (&place.sha256, expected)
            && found != expected
        {
            return Err(Trouble::new(format!("its SHA-256 is {found}, and version.toml expects {expected}")));
        }
        let shared = Arc::clone(&self.shared);
        let (counts, stopping) = (&self.counts, || shared.stopping.load(Ordering::Acquire));
        let here = &shared.arrived[self.source];
        let begins = |bytes: u64| {
            here.fetch_add(bytes, Ordering::Relaxed);
        };
        let arrived = |bytes: usize| {
            counts.bytes.increment(bytes as u64);
            here.fetch_add(bytes as u64, Ordering::Relaxed);
        };
        let download = Download {
            store: &shared.rules.store,
            source: &self.name,
            expected: place.sha256.as_deref().or(expected),
            most,
            stopping: &stopping,
            begins: &begins,
            arrived: &arrived,
        };
        match (&file.content, self.opened.as_mut()) {
            (Content::Given(bytes), _) => download.run(&mut Given(bytes), &place),
            (Content::At(_) | Content::Archive(_), Some(source)) => download.run(&mut **source, &place),
            (Content::At(_) | Content::Archive(_), None) => Err(Trouble::new("the source is closed")),
        }
    }

    /// The digest of the model that `version.toml` gives, where it is right. A wrong one is reported when the version is verified.
    fn expected_digest(&self, blob: &Blob) -> Option<String> {
        if blob.bytes > MAX_VERSION_TOML {
            return None;
        }
        let text = std::fs::read_to_string(self.shared.rules.store.blob(&blob.sha256)).ok()?;
        let table: toml::Table = text.parse().ok()?;
        let digest = table.get("sha256")?.as_str()?.to_ascii_lowercase();
        (digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_hexdigit())).then_some(digest)
    }
}

/// Where the bytes of a file are. Those that a source gives itself are known by their digest.
fn place_of(file: &RemoteFile) -> Place {
    match &file.content {
        Content::At(place) | Content::Archive(Archive { place, .. }) => place.clone(),
        Content::Given(bytes) => {
            let sha256 = format!("{:x}", Sha256::digest(bytes));
            Place { location: String::new(), size: Some(bytes.len() as u64), tag: None, sha256: Some(sha256) }
        }
    }
}

/// Bytes that a source gives itself.
struct Given<'a>(&'a [u8]);

impl Source for Given<'_> {
    fn list(&mut self, _: Instant) -> Result<Listing, Trouble> {
        Ok(Listing::default())
    }

    fn read(&mut self, _: &Place, from: u64, _: Instant, to: &mut Sink<'_>) -> Result<(), Trouble> {
        let from = usize::try_from(from).unwrap_or(usize::MAX).min(self.0.len());
        to(&self.0[from..])
    }
}
