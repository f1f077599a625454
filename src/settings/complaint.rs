//! What is wrong with a setting, in words for the person who wrote it.

use super::table::{ENVIRONMENT_PREFIX, Found};
use super::value::cut;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

/// Where a setting was written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// A line, counted from 1, of a file.
    File { name: Arc<str>, line: usize },
    /// An environment variable, by its name.
    Environment(String),
    /// An option of the command line, such as `--listen`.
    CommandLine(String),
}

/// One complaint: which key, where it stands, what was found and what would be right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Complaint {
    origin: Option<Origin>,
    what: What,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum What {
    Syntax { message: String, line: String },
    Wrong { key: String, right: String, found: Option<String> },
    Unknown { key: String, likely: Option<String>, known: Vec<String> },
    Plain { message: String },
}

/// Every complaint about one set of settings; never empty.
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
    /// About no key: a file that cannot be read at all.
    #[must_use]
    pub fn plain(message: String) -> Complaint {
        Complaint { origin: None, what: What::Plain { message } }
    }

    pub(super) fn syntax(origin: Origin, message: &str, line: &str) -> Complaint {
        Complaint { origin: Some(origin), what: What::Syntax { message: message.to_owned(), line: cut(line) } }
    }

    pub(super) fn wrong(key: String, found: Option<&Found>, right: String) -> Complaint {
        let origin = found.map(|f| f.origin.clone());
        Complaint { origin, what: What::Wrong { key, right, found: found.map(Found::show) } }
    }

    /// `known` are all the keys there are, `here` those of the same section.
    pub(super) fn unknown(key: String, origin: Origin, known: &BTreeSet<String>, here: &[String]) -> Complaint {
        let likely = likely(&key, &known.iter().chain(here).collect::<Vec<_>>());
        Complaint { origin: Some(origin), what: What::Unknown { key, likely, known: here.to_vec() } }
    }
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(origin) = &self.origin {
            write!(f, "{origin}: ")?;
        }
        match &self.what {
            // The commonest slip by far is an address, a duration or a path without its quotes.
            What::Syntax { message, line } => write!(f, "not TOML: {message} (text stands in quotes), got `{line}`"),
            What::Plain { message } => f.write_str(message),
            What::Wrong { key, right, found: Some(found) } => write!(f, "{key}: expected {right}, got {found}"),
            What::Wrong { key, right, found: None } => write!(f, "{key} (not set): expected {right}"),
            What::Unknown { key, likely, known } => {
                let spell = |key: &str| match &self.origin {
                    Some(Origin::Environment(_)) => environment_name(key),
                    _ => key.to_owned(),
                };
                match &self.origin {
                    Some(Origin::Environment(_)) => write!(f, "names no key")?,
                    _ => write!(f, "unknown key `{key}`")?,
                }
                match likely {
                    Some(likely) => write!(f, "; did you mean `{}`?", spell(likely)),
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
    /// In the order people will look for them; `Ok` when there are none.
    ///
    /// A line that does not parse is complained of once: what else it seems to say is a guess of the parser's.
    pub(super) fn from_all(mut complaints: Vec<Complaint>) -> Result<(), Complaints> {
        let broken: BTreeSet<Origin> = complaints
            .iter()
            .filter(|c| matches!(c.what, What::Syntax { .. }))
            .filter_map(|c| c.origin.clone())
            .collect();
        complaints.sort_by(|a, b| a.origin.cmp(&b.origin));
        let mut said = BTreeSet::new();
        complaints.retain(|c| match &c.origin {
            Some(origin) if broken.contains(origin) => {
                matches!(c.what, What::Syntax { .. }) && said.insert(origin.clone())
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

/// One complaint to a line.
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

// === the likely key ===

/// The known key somebody most likely meant: a slip of the fingers away, or of the same name in another section.
fn likely(key: &str, known: &[&String]) -> Option<String> {
    let leaf = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
    let typed = leaf(key);
    let length = typed.chars().count();
    // Longer names are not compared: the distance takes time in proportion to both lengths, and no key is that long.
    if !(3..=64).contains(&length) || key.len() > 256 {
        return None;
    }
    let near = known.iter().map(|k| (distance(key, k), *k)).filter(|(d, _)| *d <= length.div_ceil(3)).min();
    let namesake = || known.iter().find(|k| leaf(k) == typed).copied();
    near.map(|(_, k)| k).or_else(namesake).cloned()
}

/// Insertions, deletions, substitutions and swaps of neighbours (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before = vec![0; b.len() + 1];
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let substituted = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = substituted.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}
