//! Files with the inputs of runs that ended the process.

use crate::machine::durable;
use crate::marks::MarkedThread;
use std::io;
use std::path::{Path, PathBuf};

/// The directory inside the data directory.
const DIRECTORY: &str = "crashes";
/// Older files are removed when there are more.
const MAX_FILES: usize = 20;

/// Writes the inputs that were kept for a thread's run. `None` where none were kept. `when` becomes a part of the name.
///
/// Only the owner can read the file: inputs may be personal data.
///
/// # Errors
/// When the file cannot be written.
pub(super) fn write(data_dir: &Path, thread: &MarkedThread, when: &str) -> io::Result<Option<PathBuf>> {
    let (Some(inputs), Some(version)) = (&thread.inputs, &thread.version) else { return Ok(None) };
    let dir = data_dir.join(DIRECTORY);
    create_private(&dir)?;
    let when: String = when.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let path = dir.join(format!("{when}-{}-{}.request", version.model, version.version));
    durable::write_atomically(&path, &inputs.body())?;
    remove_oldest(&dir);
    Ok(Some(path))
}

fn create_private(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Names begin with the time, so that their order is that of the files.
fn remove_oldest(dir: &Path) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "request"))
        .collect();
    files.sort();
    let surplus = files.len().saturating_sub(MAX_FILES);
    for file in &files[..surplus] {
        if let Err(error) = std::fs::remove_file(file) {
            tracing::warn!(file = %file.display(), %error, "an old file with inputs cannot be removed");
        }
    }
}
