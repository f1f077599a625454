//! `serve --model NAME=DIR`: serves one model whose files are in any directory, as KServe mounts them.
//!
//! A models directory of links is made in the data directory. It is never emptied, as another server may be using it: its name has the hash of
//! what it is for, and a link that leads elsewhere is replaced.

use crate::backend::VersionFiles;
use crate::model::{ModelName, Version};
use crate::source;
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::xxh3_64;

/// What the option says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OneModel {
    pub name: ModelName,
    pub dir: PathBuf,
}

/// More entries than a version can have are not looked at.
const MOST_ENTRIES: usize = 10_000;

impl OneModel {
    /// # Errors
    /// What was expected.
    pub(super) fn parse(text: &str) -> Result<OneModel, String> {
        let expected = || format!("--model {text:?}: expected NAME=DIRECTORY, such as fraud=/mnt/models");
        let (name, dir) = text.split_once('=').filter(|(_, dir)| !dir.is_empty()).ok_or_else(expected)?;
        let name = name.parse::<ModelName>().map_err(|e| format!("--model {text:?}: {e}"))?;
        let dir = std::path::absolute(dir).map_err(|e| format!("--model {text:?}: {e}"))?;
        Ok(OneModel { name, dir })
    }

    /// Makes the models directory, and returns its path.
    ///
    /// # Errors
    /// When the directory holds no model, or the links cannot be made.
    pub(super) fn arrange(&self, data_dir: &Path) -> io::Result<PathBuf> {
        let mut identity = self.name.as_str().as_bytes().to_vec();
        identity.push(b'=');
        identity.extend_from_slice(self.dir.as_os_str().as_bytes());
        let root = data_dir.join("one-model").join(format!("{:016x}", xxh3_64(&identity)));
        let place = root.join(self.name.as_str());
        match self.layout()? {
            Layout::Model(dir) => {
                std::fs::create_dir_all(&root)?;
                link(&dir, &place)?;
            }
            Layout::Version => {
                make_directory(&place)?;
                link(&self.dir, &place.join(Version::FIRST.to_string()))?;
            }
            Layout::Renamed { file, others } => {
                let version = place.join(Version::FIRST.to_string());
                make_directory(&place)?;
                make_directory(&version)?;
                link(&self.dir.join(file), &version.join(VersionFiles::MODEL))?;
                for other in others {
                    link(&self.dir.join(&other), &version.join(&other))?;
                }
            }
        }
        source::allow_links_into(&self.dir);
        Ok(root)
    }

    fn layout(&self) -> io::Result<Layout> {
        let in_dir = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", self.dir.display()));
        let of_name = self.dir.join(self.name.as_str());
        if has_versions(&of_name) {
            return Ok(Layout::Model(of_name));
        }
        if self.dir.join(VersionFiles::MODEL).is_file() {
            return Ok(Layout::Version);
        }
        if has_versions(&self.dir) {
            return Ok(Layout::Model(self.dir.clone()));
        }
        let entries = std::fs::read_dir(&self.dir).map_err(in_dir)?.take(MOST_ENTRIES);
        let mut names: Vec<OsString> =
            entries.map(|entry| entry.map(|entry| entry.file_name())).collect::<io::Result<_>>().map_err(in_dir)?;
        names.retain(|name| !name.as_bytes().starts_with(b"."));
        names.sort();
        let is_model = |name: &OsString| Path::new(name).extension().is_some_and(|ending| ending == "onnx");
        let (models, others): (Vec<OsString>, Vec<OsString>) = names.into_iter().partition(is_model);
        match <[OsString; 1]>::try_from(models) {
            Ok([file]) => Ok(Layout::Renamed { file, others }),
            Err(models) => Err(self.no_model(&models, &others)),
        }
    }

    fn no_model(&self, models: &[OsString], others: &[OsString]) -> io::Error {
        let found: Vec<String> =
            models.iter().chain(others).take(5).map(|name| format!("{}", name.display())).collect();
        let found = if found.is_empty() { "nothing".to_owned() } else { found.join(", ") };
        io::Error::other(format!(
            "{} holds no model {}: expected model.onnx, one file that ends in .onnx, versions (1/model.onnx), or {}/1/model.onnx; found {found}",
            self.dir.display(),
            self.name,
            self.name
        ))
    }
}

/// What a directory holds.
enum Layout {
    /// The versions of the model are in this directory.
    Model(PathBuf),
    /// The files of a version.
    Version,
    /// The same, with another name of the model file.
    Renamed { file: OsString, others: Vec<OsString> },
}

/// Whether a directory has a directory with the name of a version.
fn has_versions(dir: &Path) -> bool {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten().take(MOST_ENTRIES);
    let mut names =
        entries.filter(|entry| entry.path().is_dir()).filter_map(|entry| entry.file_name().into_string().ok());
    names.any(|name| name.parse::<Version>().is_ok())
}

/// Makes a directory, in place of a link that is there from another layout.
fn make_directory(at: &Path) -> io::Result<()> {
    if at.is_symlink() {
        std::fs::remove_file(at)?;
    }
    std::fs::create_dir_all(at)
}

/// Makes a link, in place of a link or a directory of links that is there from another layout.
fn link(to: &Path, at: &Path) -> io::Result<()> {
    match std::fs::read_link(at) {
        Ok(target) if target == to => return Ok(()),
        Ok(_) => std::fs::remove_file(at)?,
        Err(_) if at.is_dir() => std::fs::remove_dir_all(at)?,
        Err(_) => {}
    }
    symlink(to, at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "x").unwrap();
    }

    #[test]
    fn every_layout_becomes_a_models_directory() {
        for (files, place) in [
            (&["model.onnx", "model.onnx.data"][..], "1/model.onnx.data"),
            (&["iris.onnx", "labels.txt", ".hidden"], "1/model.onnx"),
            (&["1/model.onnx", "3/model.onnx"], "3/model.onnx"),
            (&["fraud/1/model.onnx", "other/1/model.onnx"], "1/model.onnx"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            for file in files {
                write(&dir.path().join("mounted").join(file));
            }
            let model = OneModel { name: "fraud".parse().unwrap(), dir: dir.path().join("mounted") };
            for _ in 0..2 {
                let root = model.arrange(&dir.path().join("data")).unwrap();
                assert!(root.join("fraud").join(place).is_file(), "{files:?}");
                let models = std::fs::read_dir(&root).unwrap().count();
                assert_eq!(models, 1, "{files:?}: only this model");
            }
        }
    }

    #[test]
    fn another_layout_in_the_same_directory_replaces_the_links() {
        let dir = tempfile::tempdir().unwrap();
        let mounted = dir.path().join("mounted");
        let model = OneModel { name: "m".parse().unwrap(), dir: mounted.clone() };
        let arranged = |place: &str| model.arrange(&dir.path().join("data")).unwrap().join("m").join(place).is_file();
        write(&mounted.join("1/model.onnx"));
        assert!(arranged("1/model.onnx"));
        std::fs::remove_dir_all(&mounted).unwrap();
        write(&mounted.join("a.onnx"));
        assert!(arranged("1/model.onnx"));
        std::fs::remove_dir_all(&mounted).unwrap();
        write(&mounted.join("model.onnx"));
        assert!(arranged("1/model.onnx"));
        std::fs::remove_dir_all(&mounted).unwrap();
        write(&mounted.join("2/model.onnx"));
        assert!(arranged("2/model.onnx"));
    }

    #[test]
    fn a_directory_without_a_model_is_refused_with_what_it_holds() {
        let dir = tempfile::tempdir().unwrap();
        let model = OneModel { name: "m".parse().unwrap(), dir: dir.path().join("mounted") };
        let refused = || model.arrange(dir.path()).unwrap_err().to_string();
        assert!(refused().contains("mounted"), "{}", refused());
        std::fs::create_dir(&model.dir).unwrap();
        assert!(refused().contains("found nothing"), "{}", refused());
        for file in ["a.onnx", "b.onnx", "saved_model.pb"] {
            write(&model.dir.join(file));
        }
        assert!(refused().contains("found a.onnx, b.onnx, saved_model.pb"), "{}", refused());
        for wrong in ["m", "m=", "=x", "../m=x", ""] {
            assert!(OneModel::parse(wrong).unwrap_err().contains("--model"), "{wrong}");
        }
        assert_eq!(OneModel::parse("m=/a=b").unwrap(), OneModel { name: "m".parse().unwrap(), dir: "/a=b".into() });
    }
}
