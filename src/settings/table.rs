//! A table of settings: where its keys come from, which of them were read, and the complaints about them.

use super::complaint::{Complaint, Complaints, Origin};
use super::value::{Lines, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The prefix of environment variables that set a key: `SLUICEGATE__SERVER__LISTEN` sets `server.listen`.
pub const ENVIRONMENT_PREFIX: &str = "SLUICEGATE__";

/// Limit for the parts of an overridden key. No key has as many, and a deeper tree could overflow the stack.
const MAX_DEPTH: usize = 8;

/// Settings that are read key by key. See the documentation of the room.
#[derive(Debug, Default)]
pub struct Table {
    /// The dotted path of this section. Empty at the top level.
    path: String,
    origin: Option<Origin>,
    values: BTreeMap<String, Found>,
    sections: BTreeMap<String, Table>,
    /// The keys that the code has read, present or not. These are the known keys.
    read: BTreeSet<String>,
    /// Whether the code read this as a section. Then its unknown keys are reported one by one.
    opened: bool,
    complaints: Vec<Complaint>,
}

/// A value and its location.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) written: Written,
    pub(super) origin: Origin,
}

#[derive(Debug, Clone)]
pub(super) enum Written {
    Typed(Value),
    /// A text from the environment. It is TOML if that fits the expected type, else a plain string.
    Text(String),
}

impl Table {
    /// Reads TOML. Complaints use `name`, which is usually the path of the file.
    ///
    /// [`Table::finish`] reports syntax errors. The rest of the text is still read.
    #[must_use]
    pub fn parse(name: &str, text: &str) -> Table {
        let (parsed, errors) = DeTable::parse_recoverable(text);
        let lines = Lines::new(Arc::from(name), text);
        let mut table = Table::section_of(String::new(), None, parsed.into_inner(), &lines);
        for error in errors {
            let at = error.span().unwrap_or_default().start;
            table.complaints.push(Complaint::syntax(lines.origin(at), error.message(), lines.line(text, at)));
        }
        table
    }

    fn section_of(path: String, origin: Option<Origin>, members: DeTable<'_>, lines: &Lines) -> Table {
        let mut table = Table { path, origin, ..Table::default() };
        for (key, value) in members {
            let origin = lines.origin(key.span().start);
            let key = key.into_inner().into_owned();
            match Spanned::into_inner(value) {
                DeValue::Table(members) => {
                    let path = table.path_of(&key);
                    table.sections.insert(key, Table::section_of(path, Some(origin), members, lines));
                }
                value => {
                    table.values.insert(key, Found { written: Written::Typed(Value::from_toml(value)), origin });
                }
            }
        }
        table
    }

    /// Overrides keys from environment variables that begin with [`ENVIRONMENT_PREFIX`]. Others are ignored.
    pub fn override_from_environment(&mut self, variables: impl IntoIterator<Item = (String, String)>) {
        for (name, text) in variables {
            let Some(rest) = name.strip_prefix(ENVIRONMENT_PREFIX) else { continue };
            let path: Vec<String> = rest.split("__").map(str::to_lowercase).collect();
            let origin = Origin::Environment(name.clone());
            if path.len() > MAX_DEPTH || path.iter().any(String::is_empty) {
                let key = rest.to_lowercase().replace("__", ".");
                self.complaints.push(Complaint::unknown(key, origin, &BTreeSet::new(), &[]));
            } else {
                self.set(&path, Found { written: Written::Text(text), origin });
            }
        }
    }

    /// Overrides one key from the command line. Complaints use `option`, such as `--listen`.
    pub fn override_from_command_line(&mut self, path: &[&str], option: &str, text: &str) {
        let path: Vec<String> = path.iter().take(MAX_DEPTH).map(|s| (*s).to_owned()).collect();
        let written = Written::Typed(Value::String(text.to_owned()));
        self.set(&path, Found { written, origin: Origin::CommandLine(option.to_owned()) });
    }

    fn set(&mut self, path: &[String], found: Found) {
        match path {
            [] => {}
            [key] => {
                // A value for a whole section replaces the section.
                self.sections.remove(key);
                self.values.insert(key.clone(), found);
            }
            [key, rest @ ..] => {
                let path = self.path_of(key);
                let origin = found.origin.clone();
                let new = || Table { path, origin: Some(origin), ..Table::default() };
                self.sections.entry(key.clone()).or_insert_with(new).set(rest, found);
            }
        }
    }

    /// A section, which is read like the table itself. Empty if it is absent.
    pub fn section(&mut self, key: &str) -> &mut Table {
        self.read.insert(key.to_owned());
        if let Some(found) = self.values.get(key) {
            let expected = format!("a section, written [{}]", self.path_of(key));
            self.complaints.push(Complaint::wrong(self.path_of(key), Some(found), expected));
        }
        let path = self.path_of(key);
        let section = self.sections.entry(key.to_owned()).or_insert_with(|| Table { path, ..Table::default() });
        section.opened = true;
        section
    }

    /// The names of the sections in this one, for a section whose keys are chosen by whoever writes the file.
    #[must_use]
    pub fn section_names(&self) -> Vec<String> {
        self.sections.keys().cloned().collect()
    }

    /// Whether a key has a value, right or wrong.
    #[must_use]
    pub fn has(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    /// The values of all keys that were not read: free metadata. It marks them as read, so call it last.
    pub fn rest(&mut self) -> BTreeMap<String, Value> {
        let unread = |read: &BTreeSet<String>, key: &String| !read.contains(key);
        let values = self.values.iter().filter(|(k, _)| unread(&self.read, k)).map(|(k, f)| (k.clone(), f.value()));
        let sections = self.sections.iter().filter(|(k, _)| unread(&self.read, k)).map(|(k, s)| (k.clone(), s.value()));
        let rest: BTreeMap<String, Value> = values.chain(sections).collect();
        self.read.extend(rest.keys().cloned());
        rest
    }

    /// Adds a complaint about a key that was read, for keys that must agree with each other.
    pub fn complain(&mut self, key: &str, expected: impl Into<String>) {
        let complaint = Complaint::wrong(self.path_of(key), self.found(key).as_ref(), expected.into());
        self.complaints.push(complaint);
    }

    /// The same, without the value: it may be a secret.
    pub fn complain_hidden(&mut self, key: &str, expected: &str) {
        let origin = self.found(key).map(|found| found.origin);
        self.complaints.push(Complaint::hidden(&self.path_of(key), origin, expected));
    }

    /// Returns all complaints: those about the file in its order, then the environment, then the command line.
    pub fn finish(mut self) -> Result<(), Complaints> {
        self.opened = true;
        let mut known = BTreeSet::new();
        self.collect_known(&mut known);
        let mut complaints = Vec::new();
        self.collect(&known, &mut complaints);
        Complaints::from_all(complaints)
    }

    /// The dotted paths of all keys that were read so far, without sections.
    #[cfg(test)]
    pub(crate) fn known_keys(&self) -> BTreeSet<String> {
        let mut known = BTreeSet::new();
        self.collect_known(&mut known);
        known
    }

    pub(super) fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// The value of a key, without marking it as read. A section is a table.
    pub(super) fn found(&self, key: &str) -> Option<Found> {
        let section = || {
            let section = self.sections.get(key).filter(|s| s.origin.is_some())?;
            Some(Found { written: Written::Typed(section.value()), origin: section.origin.clone()? })
        };
        self.values.get(key).cloned().or_else(section)
    }

    /// The value of a key, which is marked as read.
    pub(super) fn take(&mut self, key: &str) -> Option<Found> {
        self.read.insert(key.to_owned());
        self.found(key)
    }

    pub(super) fn push(&mut self, complaint: Complaint) {
        self.complaints.push(complaint);
    }

    fn value(&self) -> Value {
        let values = self.values.iter().map(|(k, f)| (k.clone(), f.value()));
        let sections = self.sections.iter().map(|(k, s)| (k.clone(), s.value()));
        Value::Table(values.chain(sections).collect())
    }

    fn collect_known(&self, known: &mut BTreeSet<String>) {
        for key in &self.read {
            match self.sections.get(key).filter(|s| s.opened) {
                Some(section) => section.collect_known(known),
                None => drop(known.insert(self.path_of(key))),
            }
        }
    }

    fn collect(self, known: &BTreeSet<String>, complaints: &mut Vec<Complaint>) {
        let here: Vec<String> = self.read.iter().map(|key| self.path_of(key)).collect();
        let mut unread = Vec::new();
        for (key, found) in &self.values {
            if !self.read.contains(key) {
                unread.push((self.path_of(key), found.origin.clone()));
            }
        }
        for (key, section) in self.sections {
            if section.opened {
                section.collect(known, complaints);
            } else if !self.read.contains(&key) {
                unread.extend(section.origin.clone().filter(Origin::is_file).map(|at| (section.path.clone(), at)));
                section.collect_overrides(&mut unread);
            }
        }
        complaints.extend(unread.into_iter().map(|(key, origin)| Complaint::unknown(key, origin, known, &here)));
        complaints.extend(self.complaints);
    }

    /// Overridden keys of an unknown section. Each variable gets its own complaint, but a section of a file only one.
    fn collect_overrides(&self, unread: &mut Vec<(String, Origin)>) {
        let overridden = self.values.iter().filter(|(_, found)| !found.origin.is_file());
        unread.extend(overridden.map(|(key, found)| (self.path_of(key), found.origin.clone())));
        self.sections.values().for_each(|section| section.collect_overrides(unread));
    }
}
