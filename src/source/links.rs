//! Symbolic links. Only those that resolve inside the models directory are followed: a link to any other file would let its content
//! be loaded, hashed or served as a model.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Another directory that links may lead into.
static OUTSIDE: OnceLock<PathBuf> = OnceLock::new();

/// Lets links lead into this directory too: the one that `serve --model` names. The first call counts, as a server serves one such directory.
pub(crate) fn allow_links_into(dir: &Path) {
    let _ = OUTSIDE.set(dir.to_owned());
}

/// Checks that a path resolves inside the models directory, whatever links it goes through. A link to nothing passes, as there is
/// nothing to read.
///
/// # Errors
/// The reason, as a sentence without a subject: "is a link that …".
pub(crate) fn check_link(root: &Path, path: &Path) -> Result<(), String> {
    let target = match path.canonicalize() {
        Ok(target) => target,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(format!("cannot be resolved: {error}")),
    };
    match root.canonicalize() {
        Ok(root) if target.starts_with(&root) || leads_into_the_other(&target) => Ok(()),
        Ok(_) => Err("is a link that leads out of the models directory, which is not allowed".to_owned()),
        Err(error) => Err(format!("cannot be compared with the models directory: {error}")),
    }
}

/// Whether a link leads into the directory of [`allow_links_into`].
fn leads_into_the_other(target: &Path) -> bool {
    OUTSIDE.get().and_then(|dir| dir.canonicalize().ok()).is_some_and(|dir| target.starts_with(dir))
}
