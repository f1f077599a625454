//! Change notices from the operating system, where the file system supports them.

use super::watch::WakeHandle;
use crate::model::ModelName;
use notify::{EventKind, RecursiveMode, Watcher};
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use tracing::{info, warn};

/// Receives change notices for the models directory and wakes the watching thread.
#[derive(Default)]
pub(super) struct DirWatcher {
    watcher: Option<notify::RecommendedWatcher>,
    /// Device and inode of the watched directory. When another directory takes its place, notices about the old one are useless.
    identity: Option<(u64, u64)>,
    warned: bool,
}

impl DirWatcher {
    pub(super) fn is_active(&self) -> bool {
        self.watcher.is_some()
    }

    /// Starts watching, or starts again when the directory was replaced.
    pub(super) fn ensure(&mut self, root: &Path, wake: &WakeHandle) {
        let identity = std::fs::metadata(root).ok().map(|meta| (meta.dev(), meta.ino()));
        if identity == self.identity && (self.watcher.is_some() || self.warned) {
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
                self.warned = false;
                info!(dir = %root.display(), "watching the models directory");
            }
            Err(error) => {
                self.warned = true;
                warn!(dir = %root.display(), %error, "the system sends no change notices for the models directory; it is read every second");
            }
        }
    }
}

fn watch_directory(root: &Path, wake: WakeHandle) -> notify::Result<notify::RecommendedWatcher> {
    let base = root.to_owned();
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        let Ok(event) = event else {
            return wake.everything();
        };
        // Reading the directory causes access notices. Reacting to them would never end.
        if matches!(event.kind, EventKind::Access(_)) {
            return;
        }
        let model = |path: &PathBuf| {
            let first = path.strip_prefix(&base).ok()?.components().next()?;
            first.as_os_str().to_str()?.parse::<ModelName>().ok()
        };
        let models: BTreeSet<ModelName> = event.paths.iter().filter_map(model).collect();
        if event.need_rescan() {
            wake.everything();
        } else if !models.is_empty() {
            wake.models(models);
        }
    })?;
    watcher.watch(root, RecursiveMode::Recursive)?;
    Ok(watcher)
}
