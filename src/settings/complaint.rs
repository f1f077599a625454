//! Messages about wrong settings, for the person who wrote them.

use super::table::{ENVIRONMENT_PREFIX, Found};
use super::value::{cut, without_credentials};
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

/// Where a setting comes from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// A line of a file. The first line is 1.
    File { name: Arc<str>, line: usize },
    /// The name of an environment variable.
    Environment(String),
    /// A command-line option, such as `--listen`.
    CommandLine(String),
}

/// One complaint: the key, its location, the value found and what was expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Complaint {
    origin: Option<Origin>,
    problem: Problem,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Problem {
    Syntax { message: String, line: String },
    Wrong { key: String, expected: String, found: Option<String> },
    Unknown { key: String, similar: Option<String>, known: Vec<String> },
    Plain { message: String },
}

/// All complaints about one set of settings. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Complaints(Vec<Complaint>);

// === impl Origin ===

impl Origin {
    pub(super) fn is_file(&self) -> bool {
        matches!(self, Origin::File { .. })
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::File { name, line } => write!(f, "{name}:{line}"),
            Origin::Environment(name) => write!(f, "environment {name}"),
            Origin::CommandLine(option) => write!(f, "option {option}"),
        }
    }
}

// === impl Complaint ===

impl Complaint {
    /// A complaint without a key, such as about a file that cannot be read.
    #[must_use]
    pub fn plain(message: String) -> Complaint {
        Complaint { origin: None, problem: Problem::Plain { message } }
    }

    pub(super) fn syntax(origin: Origin, message: &str, line: &str) -> Complaint {
        Complaint {
            origin: Some(origin),
            problem: Problem::Syntax { message: message.to_owned(), line: cut(&without_credentials(line)) },
        }
    }

    pub(super) fn wrong(key: String, found: Option<&Found>, expected: String) -> Complaint {
        let origin = found.map(|f| f.origin.clone());
        Complaint { origin, problem: Problem::Wrong { key, expected, found: found.map(Found::show) } }
    }

    /// About a value that is not shown.
    pub(super) fn hidden(key: &str, origin: Option<Origin>, expected: &str) -> Complaint {
        Complaint { origin, problem: Problem::Plain { message: format!("{key}: expected {expected}") } }
    }

    /// `known` holds all known keys, `here` those of the same section.
    pub(super) fn unknown(key: String, origin: Origin, known: &BTreeSet<String>, here: &[String]) -> Complaint {
        let similar = most_similar(&key, &known.iter().chain(here).collect::<Vec<_>>());
        Complaint { origin: Some(origin), problem: Problem::Unknown { key, similar, known: here.to_vec() } }
    }
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(origin) = &self.origin {
            write!(f, "{origin}: ")?;
        }
        match &self.problem {
            // By far the most common mistake is an address, a duration or a path without quotes.
            Problem::Syntax { message, line } => write!(f, "not TOML: {message} (strings need quotes), got `{line}`"),
            Problem::Plain { message } => f.write_str(message),
            Problem::Wrong { key, expected, found: Some(found) } => {
                write!(f, "{key}: expected {expected}, got {found}")
            }
            Problem::Wrong { key, expected, found: None } => write!(f, "{key} (not set): expected {expected}"),
            Problem::Unknown { key, similar, known } => {
                let spell = |key: &str| match &self.origin {
                    Some(Origin::Environment(_)) => environment_name(key),
                    _ => key.to_owned(),
                };
                match &self.origin {
                    Some(Origin::Environment(_)) => write!(f, "unknown key")?,
                    _ => write!(f, "unknown key `{key}`")?,
                }
                match similar {
                    Some(similar) => write!(f, "; did you mean `{}`?", spell(similar)),
                    None if known.is_empty() => Ok(()),
                    None => {
                        let known: Vec<String> = known.iter().map(|key| spell(key)).collect();
                        write!(f, "; known here: {}", known.join(", "))
                    }
                }
            }
        }
    }
}

fn environment_name(key: &str) -> String {
    format!("{ENVIRONMENT_PREFIX}{}", key.replace('.', "__").to_uppercase())
}

// === impl Complaints ===

impl Complaints {
    /// Sorts complaints by location. `Ok` if there are none.
    ///
    /// A line with a syntax error gets one complaint only, because other errors on it are guesses of the parser.
    pub(super) fn from_all(mut complaints: Vec<Complaint>) -> Result<(), Complaints> {
        let broken: BTreeSet<Origin> = complaints
            .iter()
            .filter(|c| matches!(c.problem, Problem::Syntax { .. }))
            .filter_map(|c| c.origin.clone())
            .collect();
        complaints.sort_by(|a, b| a.origin.cmp(&b.origin));
        let mut reported = BTreeSet::new();
        complaints.retain(|c| match &c.origin {
            Some(origin) if broken.contains(origin) => {
                matches!(c.problem, Problem::Syntax { .. }) && reported.insert(origin.clone())
            }
            _ => true,
        });
        if complaints.is_empty() { Ok(()) } else { Err(Complaints(complaints)) }
    }

    pub fn iter(&self) -> std::slice::Iter<'_, Complaint> {
        self.0.iter()
    }
}

impl From<Complaint> for Complaints {
    fn from(complaint: Complaint) -> Complaints {
        Complaints(vec![complaint])
    }
}

impl<'a> IntoIterator for &'a Complaints {
    type Item = &'a Complaint;
    type IntoIter = std::slice::Iter<'a, Complaint>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// One complaint per line.
impl fmt::Display for Complaints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, complaint) in self.0.iter().enumerate() {
            let end = if i == 0 { "" } else { "\n" };
            write!(f, "{end}{complaint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Complaints {}

// === the most similar key ===

/// The known key that was probably meant: one that differs by a typing error, or has the same name in another section.
fn most_similar(key: &str, known: &[&String]) -> Option<String> {
    let leaf = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
    let typed = leaf(key);
    let length = typed.chars().count();
    // Longer names are not compared: the time grows with the product of both lengths, and no key is that long.
    if !(3..=64).contains(&length) || key.len() > 256 {
        return None;
    }
    let closest = known.iter().map(|k| (distance(key, k), *k)).filter(|(d, _)| *d <= length.div_ceil(3)).min();
    let same_name = || known.iter().find(|k| leaf(k) == typed).copied();
    closest.map(|(_, k)| k).or_else(same_name).cloned()
}

/// The number of insertions, deletions, substitutions and swaps of neighbours (optimal string alignment distance).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before_last = vec![0; b.len() + 1];
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let substituted = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = substituted.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before_last[j - 2] + 1);
            }
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}
