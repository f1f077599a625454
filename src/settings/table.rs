//! A table of settings: where its keys come from, which were asked for, and what is wrong with the rest.

use super::complaint::{Complaint, Complaints, Origin};
use super::value::{Lines, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// What an environment variable that sets a key begins with: `SLUICEGATE__SERVER__LISTEN` is `server.listen`.
pub const ENVIRONMENT_PREFIX: &str = "SLUICEGATE__";

/// Deeper than any key there is; a name with more parts names none, and cannot make the tree deep enough to overflow a stack.
const MAX_DEPTH: usize = 8;

/// Settings to be read key by key; see the room's door.
#[derive(Debug, Default)]
pub struct Table {
    /// The dotted path of this section; empty at the top.
    path: String,
    origin: Option<Origin>,
    values: BTreeMap<String, Found>,
    sections: BTreeMap<String, Table>,
    /// Keys somebody asked for, whether they were there or not: the keys that exist.
    asked: BTreeSet<String>,
    /// Whether somebody read this as a section, so that its own keys are to be accounted for.
    opened: bool,
    complaints: Vec<Complaint>,
}

/// A value and where it was written.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) written: Written,
    pub(super) origin: Origin,
}

#[derive(Debug, Clone)]
pub(super) enum Written {
    Typed(Value),
    /// From the environment, where everything is text: a TOML value where that fits what is asked for, else a plain string.
    Text(String),
}

impl Table {
    /// Reads TOML. `name` is what complaints call the text: its file's path.
    ///
    /// What does not parse is a complaint of [`Table::finish`]; the rest is read all the same.
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

    /// Lays environment variables over what is there: those that begin with [`ENVIRONMENT_PREFIX`]; the others are ignored.
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

    /// Lays one option of the command line over what is there. `option` is what complaints call it: `--listen`.
    pub fn override_from_command_line(&mut self, path: &[&str], option: &str, text: &str) {
        let path: Vec<String> = path.iter().take(MAX_DEPTH).map(|s| (*s).to_owned()).collect();
        let written = Written::Typed(Value::String(text.to_owned()));
        self.set(&path, Found { written, origin: Origin::CommandLine(option.to_owned()) });
    }

    fn set(&mut self, path: &[String], found: Found) {
        match path {
            [] => {}
            [key] => {
                // What is laid over the whole of a section hides it, as it hides a value.
                self.sections.remove(key);
                self.values.insert(key.clone(), found);
            }
            [key, rest @ ..] => {
                let path = self.path_of(key);
                let origin = found.origin.clone();
                let fresh = || Table { path, origin: Some(origin), ..Table::default() };
                self.sections.entry(key.clone()).or_insert_with(fresh).set(rest, found);
            }
        }
    }

    /// A section, to be read like the table itself; an empty one where there is none.
    pub fn section(&mut self, key: &str) -> &mut Table {
        self.asked.insert(key.to_owned());
        if let Some(found) = self.values.get(key) {
            let right = format!("a section, written [{}]", self.path_of(key));
            self.complaints.push(Complaint::wrong(self.path_of(key), Some(found), right));
        }
        let path = self.path_of(key);
        let section = self.sections.entry(key.to_owned()).or_insert_with(|| Table { path, ..Table::default() });
        section.opened = true;
        section
    }

    /// Every key that nobody asked for, with what it holds: free metadata. Takes them as asked for, so call it last.
    pub fn rest(&mut self) -> BTreeMap<String, Value> {
        let left = |asked: &BTreeSet<String>, key: &String| !asked.contains(key);
        let values = self.values.iter().filter(|(k, _)| left(&self.asked, k)).map(|(k, f)| (k.clone(), f.value()));
        let sections = self.sections.iter().filter(|(k, _)| left(&self.asked, k)).map(|(k, s)| (k.clone(), s.value()));
        let rest: BTreeMap<String, Value> = values.chain(sections).collect();
        self.asked.extend(rest.keys().cloned());
        rest
    }

    /// Adds a complaint about a key that was read: what would be right where keys must agree with each other.
    pub fn complain(&mut self, key: &str, right: impl Into<String>) {
        let complaint = Complaint::wrong(self.path_of(key), self.found(key).as_ref(), right.into());
        self.complaints.push(complaint);
    }

    /// Done reading: every complaint, in the order of the file, then of the environment and the command line.
    pub fn finish(mut self) -> Result<(), Complaints> {
        self.opened = true;
        let mut known = BTreeSet::new();
        self.gather_known(&mut known);
        let mut complaints = Vec::new();
        self.gather(&known, &mut complaints);
        Complaints::from_all(complaints)
    }

    /// The dotted paths of all keys asked for so far, sections left out: the keys there are.
    #[must_use]
    pub fn known_keys(&self) -> BTreeSet<String> {
        let mut known = BTreeSet::new();
        self.gather_known(&mut known);
        known
    }

    pub(super) fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// What was written under a key, marking nothing. A section is a table.
    pub(super) fn found(&self, key: &str) -> Option<Found> {
        let section = || {
            let section = self.sections.get(key).filter(|s| s.origin.is_some())?;
            Some(Found { written: Written::Typed(section.value()), origin: section.origin.clone()? })
        };
        self.values.get(key).cloned().or_else(section)
    }

    pub(super) fn ask(&mut self, key: &str) -> Option<Found> {
        self.asked.insert(key.to_owned());
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

    fn gather_known(&self, known: &mut BTreeSet<String>) {
        for key in &self.asked {
            match self.sections.get(key).filter(|s| s.opened) {
                Some(section) => section.gather_known(known),
                None => drop(known.insert(self.path_of(key))),
            }
        }
    }

    fn gather(self, known: &BTreeSet<String>, complaints: &mut Vec<Complaint>) {
        let here: Vec<String> = self.asked.iter().map(|key| self.path_of(key)).collect();
        let mut unasked = Vec::new();
        for (key, found) in &self.values {
            if !self.asked.contains(key) {
                unasked.push((self.path_of(key), found.origin.clone()));
            }
        }
        for (key, section) in self.sections {
            if section.opened {
                section.gather(known, complaints);
            } else if !self.asked.contains(&key) {
                unasked.extend(section.origin.clone().filter(Origin::is_file).map(|at| (section.path.clone(), at)));
                section.gather_overrides(&mut unasked);
            }
        }
        complaints.extend(unasked.into_iter().map(|(key, origin)| Complaint::unknown(key, origin, known, &here)));
        complaints.extend(self.complaints);
    }

    /// Keys of a section nobody knows that were laid over it: each variable is named, where a file's section is named once.
    fn gather_overrides(&self, unasked: &mut Vec<(String, Origin)>) {
        let laid_over = self.values.iter().filter(|(_, found)| !found.origin.is_file());
        unasked.extend(laid_over.map(|(key, found)| (self.path_of(key), found.origin.clone())));
        self.sections.values().for_each(|section| section.gather_overrides(unasked));
    }
}
