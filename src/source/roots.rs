//! Several directories that are read as one. The first one that has a version gives it; the same holds for `model.toml`.

use super::scan::FoundModel;
use super::watch::{Look, ScanState, WakeHandle};
use crate::model::ModelName;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// Something that the first report waits for: directories that are being filled. Nothing is awaited by default.
#[derive(Debug, Clone, Default)]
pub struct Awaited(Option<Arc<Waiting>>);

#[derive(Debug, Default)]
struct Waiting {
    over: AtomicBool,
    wake: OnceLock<WakeHandle>,
}

/// The states of all directories.
#[derive(Debug)]
pub(super) struct Roots {
    /// In the order of their precedence. At least one.
    states: Vec<ScanState>,
    awaited: Awaited,
    /// Whether the first report was sent.
    reported: bool,
}

// === impl Awaited ===

impl Awaited {
    /// The first report waits until [`Awaited::end`].
    #[must_use]
    pub fn begin() -> Awaited {
        Awaited(Some(Arc::default()))
    }

    /// Ends the wait. Once is enough.
    pub fn end(&self) {
        if let Some(waiting) = &self.0
            && !waiting.over.swap(true, Ordering::AcqRel)
            && let Some(wake) = waiting.wake.get()
        {
            wake.everything();
        }
    }

    pub(super) fn wakes(&self, wake: &WakeHandle) {
        if let Some(waiting) = &self.0 {
            // It is set once, because a directory is watched once.
            let _ = waiting.wake.set(wake.clone());
        }
    }

    fn is_over(&self) -> bool {
        self.0.as_ref().is_none_or(|waiting| waiting.over.load(Ordering::Acquire))
    }
}

// === impl Roots ===

impl Roots {
    pub(super) fn new(roots: Vec<PathBuf>, settle: Duration, awaited: Awaited) -> Roots {
        let several = roots.len() > 1;
        let state = |(number, root)| {
            // Versions of sources get their names when they are whole.
            let state = ScanState::new(root, if number == 0 { settle } else { Duration::ZERO });
            // A server whose models come from elsewhere needs no models directory.
            if several { state.that_may_be_absent() } else { state }
        };
        Roots { states: roots.into_iter().enumerate().map(state).collect(), awaited, reported: false }
    }

    pub(super) fn roots(&self) -> impl Iterator<Item = &Path> {
        self.states.iter().map(ScanState::root)
    }

    pub(super) fn look_at_all(&mut self, now: Instant) -> Look {
        let mut changed = BTreeSet::new();
        for state in &mut self.states {
            changed.extend(state.look_at_all(now).changed.into_iter().map(|(model, _)| model));
        }
        let is_complete = self.states.iter().all(ScanState::has_looked) && self.awaited.is_over();
        let first = is_complete && !self.reported;
        self.reported |= is_complete;
        Look { changed: self.merged(changed), first }
    }

    pub(super) fn look_at(&mut self, models: &BTreeSet<ModelName>, now: Instant) -> Look {
        let mut changed = BTreeSet::new();
        for state in &mut self.states {
            changed.extend(state.look_at(models.clone(), now).changed.into_iter().map(|(model, _)| model));
        }
        Look { changed: self.merged(changed), first: false }
    }

    pub(super) fn due(&self, now: Instant) -> BTreeSet<ModelName> {
        self.states.iter().flat_map(|state| state.due(now)).collect()
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        self.states.iter().filter_map(ScanState::next_due).min()
    }

    pub(super) fn forget_settling(&mut self) {
        self.states.iter_mut().for_each(ScanState::forget_settling);
    }

    fn merged(&self, models: BTreeSet<ModelName>) -> Vec<(ModelName, Option<FoundModel>)> {
        let merge = |model: ModelName| {
            let found = self.states.iter().filter_map(|state| state.reported(&model)).cloned().reduce(add);
            (model, found)
        };
        models.into_iter().map(merge).collect()
    }
}

/// Adds what only a later directory has.
fn add(mut first: FoundModel, later: FoundModel) -> FoundModel {
    first.settings = first.settings.or(later.settings);
    for (version, found) in later.versions {
        first.versions.entry(version).or_insert(found);
    }
    first.ignored.extend(later.ignored);
    first
}

#[cfg(test)]
mod tests {
    use super::super::told::Told;
    use super::*;

    fn write(path: &Path, text: &str) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    #[test]
    fn the_first_directory_that_has_a_version_gives_it_and_the_first_report_waits() {
        let dir = tempfile::tempdir().unwrap();
        let (own, mirrored) = (dir.path().join("models"), dir.path().join("mirrored"));
        write(&mirrored.join("m/1/model.onnx"), "mirrored");
        write(&mirrored.join("m/2/model.onnx"), "mirrored");
        write(&mirrored.join("m/model.toml"), "versions = \"all\"");
        let awaited = Awaited::begin();
        let mut roots = Roots::new(vec![own.clone(), mirrored.clone()], Duration::ZERO, awaited.clone());
        let m: ModelName = "m".parse().unwrap();
        let look = roots.look_at_all(Instant::now());
        assert!(!look.first, "the mirror has not ended its first round");
        let found = look.changed[0].1.clone().unwrap();
        assert!(found.versions.values().all(|found| found.dir.starts_with(&mirrored)), "there is no models directory");
        assert!(found.settings.is_some());

        write(&own.join("m/2/model.onnx"), "own");
        write(&own.join("m/3/model.onnx"), "own");
        awaited.end();
        let look = roots.look_at_all(Instant::now());
        assert!(look.first);
        let found = look.changed[0].1.clone().unwrap();
        let from_own: Vec<bool> = found.versions.values().map(|found| found.dir.starts_with(&own)).collect();
        assert_eq!(from_own, [false, true, true], "{found:?}");
        assert!(!roots.look_at_all(Instant::now()).first, "there is one first report");

        std::fs::remove_dir_all(own.join("m")).unwrap();
        write(&own.join("other/1/model.onnx"), "own");
        let look = roots.look_at(&BTreeSet::from([m]), Instant::now());
        let found = look.changed[0].1.clone().unwrap();
        assert_eq!(found.versions.len(), 2, "the versions of the mirror are still there: {found:?}");
    }

    #[test]
    fn what_is_told_about_a_version_is_its_trouble_or_a_note() {
        let dir = tempfile::tempdir().unwrap();
        let version = dir.path().join("m/1");
        std::fs::create_dir_all(&version).unwrap();
        let look = || super::super::look_at_version(&version);
        assert_eq!((look().trouble, look().note), (None, None));
        let waits = Told::Waits("being downloaded\nfrom s3".to_owned());
        assert!(Told::write(Some(&waits), &version).unwrap());
        assert_eq!(look().trouble.as_deref(), Some("being downloaded from s3"), "a line break is no part of it");
        let note = Told::Note("ä".repeat(3000));
        assert!(Told::write(Some(&note), &version).unwrap());
        let (trouble, said) = (look().trouble, look().note.unwrap());
        assert_eq!(trouble, None);
        assert!(said.starts_with('ä') && said.len() <= MAX, "{} bytes", said.len());
        assert!(Told::write(None, &version).unwrap());
        assert!(!Told::write(None, &version).unwrap(), "nothing changed");
        assert_eq!((look().trouble, look().note), (None, None));
    }

    const MAX: usize = 2000;
}
