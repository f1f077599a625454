//! What a kind of source does, and what it lists.

use crate::model::{ModelName, VersionId};
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Instant;

/// A place with versions. Its methods are called on a thread of its own, and may block until `until`.
pub(crate) trait Source: Send {
    /// Everything that is there now.
    ///
    /// # Errors
    /// When it cannot be listed completely. A listing with a part of the versions would remove the others.
    fn list(&mut self, until: Instant) -> Result<Listing, Trouble>;

    /// Reads the bytes of a file from byte `from` on, and gives them to `to` in order.
    ///
    /// # Errors
    /// When they cannot all be read, [`Trouble::changed`] when the file is not the one of the listing any more, and what `to` returns.
    fn read(&mut self, place: &Place, from: u64, until: Instant, to: &mut Sink<'_>) -> Result<(), Trouble>;
}

/// Takes the next bytes of a file. An error ends the read.
pub(crate) type Sink<'a> = dyn FnMut(&[u8]) -> Result<(), Trouble> + 'a;

/// What a source has.
#[derive(Debug, Clone, Default)]
pub(crate) struct Listing {
    pub versions: Vec<Offer>,
    /// The `model.toml` of each model that has one.
    pub settings: BTreeMap<ModelName, RemoteFile>,
    /// What is there and is not read, each with the reason. The first [`MAX_REMARKS`] are kept.
    pub remarks: Vec<String>,
    /// The source knows that every version in it is complete and never changes. They are read at once, and a listing without versions is meant.
    pub is_final: bool,
}

/// A version that a source has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Offer {
    pub id: VersionId,
    pub files: Vec<RemoteFile>,
}

/// One file of a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RemoteFile {
    /// The path in the directory of the version, with `/`.
    pub path: String,
    pub content: Content,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    /// The bytes themselves: a file that the source writes from what it knows.
    Given(Vec<u8>),
    /// Bytes to read.
    At(Place),
    /// A tar archive with files of the version. The path of this file is only a name.
    Archive(Archive),
}

/// A tar archive, such as a layer of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Archive {
    pub place: Place,
    pub compression: Compression,
    /// The directory in the archive whose files are taken.
    pub below: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

/// Bytes in a source, and what is known of them before they are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// An address that only the source understands. It is not shown.
    pub location: String,
    pub size: Option<u64>,
    /// What changes when the bytes change: an `ETag`, or a time of change.
    pub tag: Option<String>,
    /// In lower-case hex.
    pub sha256: Option<String>,
}

/// Why a source could not do what it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Trouble {
    /// A sentence without a full stop, for operators: what was wrong, expected and found. No secrets.
    pub words: String,
    /// What was read so far belongs to other bytes.
    pub changed: bool,
}

/// The file that every version has.
pub(super) const MODEL: &str = "model.onnx";
/// Remarks of one listing.
pub(super) const MAX_REMARKS: usize = 20;
/// Limits of a version, as of one in the models directory.
const MAX_FILES: usize = 10_000;
const MAX_DEPTH: usize = 8;
const MAX_NAME: usize = 255;

impl Trouble {
    pub(crate) fn new(words: impl Into<String>) -> Trouble {
        Trouble { words: words.into(), changed: false }
    }

    /// The file is another one than the one that was listed.
    pub(crate) fn changed(words: impl Into<String>) -> Trouble {
        Trouble { words: words.into(), changed: true }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words)
    }
}

impl Listing {
    /// Adds a remark while there is room.
    pub(crate) fn remark(&mut self, words: impl Into<String>) {
        if self.remarks.len() < MAX_REMARKS {
            self.remarks.push(words.into());
        }
    }
}

impl RemoteFile {
    #[must_use]
    pub(crate) fn size(&self) -> Option<u64> {
        match &self.content {
            Content::Given(bytes) => Some(bytes.len() as u64),
            Content::At(place) | Content::Archive(Archive { place, .. }) => place.size,
        }
    }

    /// Changes when the file changes, as far as the source tells.
    #[must_use]
    pub(super) fn identity(&self) -> String {
        let mut hasher = Sha256::new();
        self.add_to(&mut hasher);
        format!("{:x}", hasher.finalize())
    }

    fn add_to(&self, hasher: &mut Sha256) {
        // The form of a text in a literal has no line break, so that no two files give the same text.
        match &self.content {
            Content::Given(bytes) => {
                hasher.update(format!("{:?} given {}\n", self.path, bytes.len()));
                hasher.update(bytes);
            }
            Content::At(place) | Content::Archive(Archive { place, .. }) => {
                let Place { location: _, size, tag, sha256 } = place;
                hasher.update(format!("{:?} {size:?} {tag:?} {sha256:?}\n", self.path));
            }
        }
    }
}

impl Offer {
    /// Changes when a file of the version changes, as far as the source tells.
    #[must_use]
    pub(super) fn identity(&self) -> String {
        let mut files: Vec<&RemoteFile> = self.files.iter().collect();
        files.sort_by(|a, b| a.path.cmp(&b.path));
        let mut hasher = Sha256::new();
        for file in &files {
            file.add_to(&mut hasher);
        }
        format!("{:x}", hasher.finalize())
    }

    /// Whether it can be loaded, as far as that is known before it is read.
    #[must_use]
    pub(super) fn has_model(&self) -> bool {
        self.files.iter().any(|file| file.path == MODEL || matches!(file.content, Content::Archive(_)))
    }

    /// The bytes of all files whose size is known.
    #[must_use]
    pub(super) fn bytes(&self) -> u64 {
        self.files.iter().filter_map(RemoteFile::size).fold(0, u64::saturating_add)
    }

    /// Checks what is known before anything is read: a source may be anybody's.
    ///
    /// # Errors
    /// In words: a path that leaves the directory, a name that is there twice, too many files.
    pub(super) fn check(&self) -> Result<(), Trouble> {
        if self.files.len() > MAX_FILES {
            return Err(Trouble::new(format!("it has more than {MAX_FILES} files")));
        }
        let mut paths: BTreeSet<&str> = BTreeSet::new();
        for file in &self.files {
            check_path(&file.path)?;
            if !paths.insert(&file.path) {
                return Err(Trouble::new(format!("the file {:?} is there twice", file.path)));
            }
        }
        let dirs = paths.iter().flat_map(|path| path.match_indices('/').map(|(at, _)| &path[..at]));
        match dirs.into_iter().find(|dir| paths.contains(dir)) {
            Some(path) => Err(Trouble::new(format!("{path:?} is a file and a directory"))),
            None => Ok(()),
        }
    }
}

/// # Errors
/// When a path may not be written below a directory.
pub(super) fn check_path(path: &str) -> Result<(), Trouble> {
    let is_name = |name: &str| {
        let is_plain = !name.starts_with('.') && !name.contains(['\\', '\0']) && !name.chars().any(char::is_control);
        (1..=MAX_NAME).contains(&name.len()) && is_plain
    };
    let parts: Vec<&str> = path.split('/').collect();
    if parts.len() > MAX_DEPTH || !parts.iter().all(|part| is_name(part)) {
        let shown: String = path.chars().take(80).collect();
        return Err(Trouble::new(format!(
            "the file name {shown:?} is refused: expected at most {MAX_DEPTH} names separated by '/', each of at most {MAX_NAME} bytes, without a dot at its beginning, a backslash or a control character"
        )));
    }
    Ok(())
}
