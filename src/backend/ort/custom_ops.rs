//! Libraries with custom operators. They are native code that runs in this process, so only those in a directory of the configuration are
//! loaded: a model can name one there, and cannot bring one along.

use crate::backend::{EngineOptions, LoadError};
use std::io;
use std::path::{Path, PathBuf};

/// The files of the libraries that a model names.
///
/// # Errors
/// When the configuration allows none, a name is no file name, a file does not exist, or it is a link that leads out of the directory.
pub(in crate::backend) fn files(dir: Option<&Path>, names: &[String]) -> Result<Vec<PathBuf>, LoadError> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let Some(dir) = dir else {
        return Err(LoadError::Unsupported(format!(
            "the model needs custom operators ({}), and this server allows none, because they are native code: put them into a directory \
             and name it in engines.custom_ops_dir",
            names.join(", ")
        )));
    };
    let unreadable = |source| LoadError::Io { what: "the directory engines.custom_ops_dir".to_owned(), source };
    let dir = dir.canonicalize().map_err(unreadable)?;
    names.iter().map(|name| file(&dir, name)).collect()
}

fn file(dir: &Path, name: &str) -> Result<PathBuf, LoadError> {
    let wrong = |why: &str| LoadError::Unsupported(format!("the library {name:?} with custom operators {why}"));
    if !EngineOptions::is_library_name(name) {
        return Err(wrong("has no plain file name"));
    }
    let missing = |source: io::Error| {
        let what = format!("the library {name:?} with custom operators in engines.custom_ops_dir");
        LoadError::Io { what, source }
    };
    let file = dir.join(name).canonicalize().map_err(missing)?;
    if !file.starts_with(dir) {
        return Err(wrong("is a link that leads out of engines.custom_ops_dir"));
    }
    if !file.metadata().map_err(missing)?.is_file() {
        return Err(wrong("is not a regular file"));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn only_files_of_the_allowed_directory_are_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let (allowed, outside) = (dir.path().join("ops"), dir.path().join("outside.so"));
        std::fs::create_dir_all(allowed.join("directory.so")).unwrap();
        for file in [&outside, &allowed.join("real.so")] {
            std::fs::write(file, b"x").unwrap();
        }
        symlink("real.so", allowed.join("inside.so")).unwrap();
        symlink(&outside, allowed.join("leads-out.so")).unwrap();
        let files =
            |names: &[&str]| files(Some(&allowed), &names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        let real = allowed.canonicalize().unwrap().join("real.so");
        assert_eq!(files(&["real.so", "inside.so"]).unwrap(), [real.clone(), real]);
        for (name, words) in [
            ("leads-out.so", "leads out of"),
            ("directory.so", "not a regular file"),
            ("../outside.so", "no plain file name"),
            ("/etc/passwd", "no plain file name"),
            ("..", "no plain file name"),
            ("", "no plain file name"),
            ("none.so", "cannot read the library \"none.so\""),
        ] {
            let error = files(&[name]).unwrap_err().to_string();
            assert!(error.contains(words), "{name}: {error}");
        }
        let error = super::files(None, &["real.so".to_owned()]).unwrap_err().to_string();
        assert!(error.contains("engines.custom_ops_dir") && error.contains("real.so"), "{error}");
        assert_eq!(super::files(None, &[]).unwrap(), Vec::<PathBuf>::new());
    }
}
