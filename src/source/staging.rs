//! Staging directories, in which a pushed version is prepared. Their names begin with a dot, so the scan skips them.

use crate::model::Version;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// Separates the version from the part that makes a staging directory's name unique.
const MARK: &str = ".tmp-";

/// A new name for the staging directory of a version, unique in this process.
#[must_use]
pub(crate) fn staging_name(version: Version) -> String {
    // Directories left behind by another process are removed at start, so the process id is enough to tell processes apart.
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!(".{version}{MARK}{}-{count}", std::process::id())
}

/// Removes the staging directories of pushes that did not complete. They are in the models directory or in a model's directory.
pub(super) fn remove_leftovers(root: &Path) {
    let is_leftover = |name: &str| {
        let version = name.strip_prefix('.').and_then(|rest| rest.split_once(MARK));
        version.is_some_and(|(version, _)| version.parse::<Version>().is_ok())
    };
    let entries = |dir: &Path| std::fs::read_dir(dir).into_iter().flatten().flatten();
    let in_models = entries(root).flat_map(|model| entries(&model.path()));
    for entry in entries(root).chain(in_models).filter(|e| e.file_name().to_str().is_some_and(is_leftover)) {
        // `remove_dir_all` does not follow links.
        if let Err(error) = std::fs::remove_dir_all(entry.path()) {
            tracing::warn!(dir = %entry.path().display(), %error, "cannot remove the directory of an unfinished push");
        }
    }
}
