//! Which sealed files are in object storage too: a journal in the data directory, a line for each file.

use crate::machine::durable::write_atomically;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs::{File, Metadata};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// The journal. Its first line says where the files are; with another place, nothing counts as uploaded.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    to: String,
    file: File,
    /// Lines since the journal was written as a whole.
    appended: usize,
}

#[derive(Debug, Serialize, Deserialize)]
struct Head {
    to: String,
}

/// A file that is uploaded. One with another length or time of change is another file.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    /// Below the data directory.
    file: PathBuf,
    bytes: u64,
    /// Nanoseconds since 1970.
    modified: u64,
}

/// The journal is written again without what is gone when it has so many new lines.
const MANY: usize = 10_000;

impl Journal {
    /// Opens the journal of a place. Also returns the files of it that are as they were when they were uploaded.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub(super) fn open(data: &Path, to: &str) -> io::Result<(Journal, BTreeSet<PathBuf>)> {
        let uploaded = uploaded(data, to)?;
        let path = journal(data);
        std::fs::create_dir_all(data.join("upload"))?;
        write_all(&path, to, data, &uploaded)?;
        let file = File::options().append(true).open(&path)?;
        Ok((Journal { path, to: to.to_owned(), file, appended: 0 }, uploaded))
    }

    /// Notes that a file is uploaded. On the disk when this returns. `all` has all files that are, with this one.
    ///
    /// # Errors
    /// When the file is gone, or the journal cannot be written.
    pub(super) fn add(&mut self, data: &Path, file: &Path, all: impl Fn() -> BTreeSet<PathBuf>) -> io::Result<()> {
        if self.appended >= MANY {
            write_all(&self.path, &self.to, data, &all())?;
            self.file = File::options().append(true).open(&self.path)?;
            self.appended = 0;
            return Ok(());
        }
        let line = line(file, &std::fs::metadata(data.join(file))?)?;
        self.file.write_all(&line)?;
        self.appended += 1;
        self.file.sync_data()
    }
}

/// The files of a data directory that are uploaded to `to`, and unchanged since.
///
/// # Errors
/// When the journal exists and cannot be read.
pub(super) fn uploaded(data: &Path, to: &str) -> io::Result<BTreeSet<PathBuf>> {
    let text = match std::fs::read_to_string(journal(data)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        text => text?,
    };
    let mut lines = text.lines();
    let head: Option<Head> = lines.next().and_then(|line| serde_json::from_str(line).ok());
    if head.is_none_or(|head| head.to != to) {
        return Ok(BTreeSet::new());
    }
    // A line that a crash has cut is no JSON. The next one begins on the same line then, and its file is compared with its object again.
    let known = lines.filter_map(|line| serde_json::from_str::<Line>(line).ok());
    let is_same = |line: &Line| {
        let meta = std::fs::metadata(data.join(&line.file));
        meta.is_ok_and(|meta| meta.len() == line.bytes && modified(&meta) == line.modified)
    };
    Ok(known.filter(is_same).map(|line| line.file).collect())
}

fn journal(data: &Path) -> PathBuf {
    data.join("upload/uploaded.jsonl")
}

fn write_all(path: &Path, to: &str, data: &Path, files: &BTreeSet<PathBuf>) -> io::Result<()> {
    let mut text = serde_json::to_vec(&Head { to: to.to_owned() })?;
    text.push(b'\n');
    for file in files {
        // A file that was deleted meanwhile needs no line.
        if let Ok(meta) = std::fs::metadata(data.join(file)) {
            text.extend(line(file, &meta)?);
        }
    }
    write_atomically(path, &text)
}

fn line(file: &Path, meta: &Metadata) -> io::Result<Vec<u8>> {
    let mut text = serde_json::to_vec(&Line { file: file.to_owned(), bytes: meta.len(), modified: modified(meta) })?;
    text.push(b'\n');
    Ok(text)
}

fn modified(meta: &Metadata) -> u64 {
    let since = meta.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    since.map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_journal_knows_what_is_uploaded_to_its_place_and_unchanged() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path();
        let names = ["a.parquet", "b.parquet", "c.parquet"].map(PathBuf::from);
        for name in &names {
            std::fs::write(data.join(name), "records").unwrap();
        }
        let (mut journal, known) = Journal::open(data, "s3://b/p").unwrap();
        assert!(known.is_empty());
        for name in &names {
            journal.add(data, name, BTreeSet::new).unwrap();
        }
        assert!(journal.add(data, Path::new("gone.parquet"), BTreeSet::new).is_err());
        std::fs::write(data.join("b.parquet"), "fewer").unwrap();
        std::fs::remove_file(data.join("c.parquet")).unwrap();
        // A crash in the middle of a line.
        journal.file.write_all(b"{\"file\":\"a").unwrap();
        drop(journal);
        let (_, known) = Journal::open(data, "s3://b/p").unwrap();
        assert_eq!(known, BTreeSet::from([names[0].clone()]), "changed and deleted files are not uploaded");
        assert!(uploaded(data, "s3://other").unwrap().is_empty(), "another place has none of them");
        assert_eq!(std::fs::read_to_string(super::journal(data)).unwrap().lines().count(), 2, "it was written again");
    }
}
