//! What a program that fills a directory says about a version: a hidden file in the directory of the version.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

/// A sentence about a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Told {
    /// The files are not complete, for this reason. They are not read.
    Waits(String),
    /// The files can be read, and operators should know this.
    Note(String),
}

/// The rest of a longer text is left out.
const MAX_BYTES: usize = 2000;
const WAITS: &str = "waits: ";
const NOTE: &str = "note: ";

impl Told {
    /// The name of the file.
    pub(crate) const FILE: &'static str = ".told";

    /// What is said about the version in a directory, if anything.
    pub(super) fn read(dir: &Path) -> Option<Told> {
        let mut bytes = Vec::new();
        File::open(dir.join(Told::FILE)).ok()?.take(MAX_BYTES as u64).read_to_end(&mut bytes).ok()?;
        let text = String::from_utf8_lossy(&bytes);
        let waits = text.strip_prefix(WAITS).map(|words| Told::Waits(words.to_owned()));
        waits.or_else(|| text.strip_prefix(NOTE).map(|words| Told::Note(words.to_owned())))
    }

    /// Writes it, or removes what was written where there is nothing to say. Returns whether that changed anything.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn write(told: Option<&Told>, dir: &Path) -> io::Result<bool> {
        if Told::read(dir).map(|told| told.text()) == told.map(Told::text) {
            return Ok(false);
        }
        let path = dir.join(Told::FILE);
        match told {
            None => std::fs::remove_file(path)?,
            Some(told) => crate::machine::durable::write_atomically(&path, told.text().as_bytes())?,
        }
        Ok(true)
    }

    fn text(&self) -> String {
        let (kind, words) = match self {
            Told::Waits(words) => (WAITS, words),
            Told::Note(words) => (NOTE, words),
        };
        let mut text: String = format!("{kind}{words}").chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let end = (0..=text.len().min(MAX_BYTES)).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        text
    }

    /// Why the files are not read, and what to know about them.
    pub(super) fn split(self) -> (Option<String>, Option<String>) {
        match self {
            Told::Waits(words) => (Some(words), None),
            Told::Note(words) => (None, Some(words)),
        }
    }
}
