//! The results of earlier trials, so that a restart does not repeat them.
//!
//! A result holds for the same bytes, the same engines and the same release of this program. Only complete trials that failed nowhere are
//! kept. The file is one JSON object a line; a line that cannot be read costs a trial, and so does a line that a crash has cut off.

use super::Findings;
use super::message::Axes;
use crate::machine::durable::write_atomically;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Results that are kept: the newest of as many versions. Each takes about 300 bytes.
const MAX_KNOWN: usize = 50_000;
/// The most bytes of the file that are read.
const MAX_FILE: u64 = 64 << 20;

/// One line of the file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Line {
    /// What was tried: the files, the engines, the release.
    key: String,
    engine: String,
    safe: Vec<Axes>,
    fatal: Vec<usize>,
}

/// The results of complete trials, by what was tried.
#[derive(Debug)]
pub(super) struct Known {
    path: PathBuf,
    lines: Mutex<HashMap<String, Line>>,
}

impl Known {
    /// Reads the results of earlier processes. None where the file does not exist or cannot be read.
    pub(super) fn open(path: &Path) -> Known {
        let mut bytes = Vec::new();
        if let Ok(file) = File::open(path) {
            // What was read before an error is used.
            let _ = file.take(MAX_FILE).read_to_end(&mut bytes);
        }
        let text = String::from_utf8_lossy(&bytes);
        let read: Vec<Line> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let too_long = read.len() > MAX_KNOWN;
        let kept = if too_long { MAX_KNOWN / 2 } else { MAX_KNOWN };
        let mut lines = HashMap::new();
        for line in read.into_iter().rev().take(kept) {
            lines.entry(line.key.clone()).or_insert(line);
        }
        let known = Known { path: path.to_owned(), lines: Mutex::new(lines) };
        if too_long {
            known.rewrite();
        }
        known
    }

    /// The engine and the findings of an earlier trial.
    pub(super) fn get(&self, key: &str) -> Option<(String, Findings)> {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let line = lines.get(key)?;
        let safe = line.safe.iter().map(Axes::get).collect::<Option<_>>()?;
        Some((line.engine.clone(), Findings { safe, fatal: line.fatal.clone(), incomplete: None }))
    }

    /// Keeps the findings of a complete trial.
    pub(super) fn keep(&self, key: &str, engine: &str, findings: &Findings) {
        if findings.incomplete.is_some() {
            return;
        }
        let line = Line {
            key: key.to_owned(),
            engine: engine.to_owned(),
            safe: findings.safe.iter().copied().map(Axes::from).collect(),
            fatal: findings.fatal.clone(),
        };
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() >= MAX_KNOWN {
            return;
        }
        // Not synced: a lost line costs a trial at the next start.
        let written = serde_json::to_string(&line).map_err(std::io::Error::from).and_then(|text| {
            let mut file = File::options().append(true).create(true).open(&self.path)?;
            file.write_all(format!("{text}\n").as_bytes())
        });
        if let Err(error) = written {
            tracing::debug!(%error, file = %self.path.display(), "the result of a trial cannot be kept");
        }
        lines.insert(line.key.clone(), line);
    }

    /// Writes the file anew.
    fn rewrite(&self) {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let text: String = lines.values().filter_map(|l| serde_json::to_string(l).ok()).map(|l| l + "\n").collect();
        if let Err(error) = write_atomically(&self.path, text.as_bytes()) {
            tracing::debug!(%error, file = %self.path.display(), "the results of trials cannot be written");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::EmptyAxes;
    use std::collections::BTreeSet;

    fn findings(fatal: &[usize], incomplete: Option<&str>) -> Findings {
        let safe = BTreeSet::from([EmptyAxes(1), EmptyAxes(1 << 100)]);
        Findings { safe, fatal: fatal.to_vec(), incomplete: incomplete.map(str::to_owned) }
    }

    #[test]
    fn complete_results_survive_and_broken_lines_cost_a_trial() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trials.jsonl");
        let known = Known::open(&path);
        assert!(known.get("a").is_none());
        known.keep("a", "onnxruntime", &findings(&[3], None));
        known.keep("b", "onnxruntime", &findings(&[], Some("it took too long")));
        known.keep("c", "tract", &findings(&[], None));
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("{text}{{\"key\":\"d\",\"eng")).unwrap();

        let again = Known::open(&path);
        let (engine, found) = again.get("a").unwrap();
        assert_eq!((engine.as_str(), found.fatal, found.safe), ("onnxruntime", vec![3], findings(&[], None).safe));
        assert!(again.get("b").is_none(), "an incomplete trial is repeated");
        assert_eq!(again.get("c").unwrap().0, "tract");
        assert!(again.get("d").is_none());
        // The cut-off line does not spoil the one after it for more than one start.
        again.keep("e", "tract", &findings(&[], None));
        again.keep("f", "tract", &findings(&[], None));
        assert!(Known::open(&path).get("f").is_some());
    }

    #[test]
    fn a_file_that_is_too_long_keeps_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trials.jsonl");
        let line = |n: usize| format!("{{\"key\":\"{n}\",\"engine\":\"tract\",\"safe\":[],\"fatal\":[]}}\n");
        std::fs::write(&path, (0..=MAX_KNOWN).map(line).collect::<String>()).unwrap();
        let known = Known::open(&path);
        assert!(known.get("0").is_none() && known.get(&MAX_KNOWN.to_string()).is_some());
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), MAX_KNOWN / 2);
    }
}
