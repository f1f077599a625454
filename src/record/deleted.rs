//! What the log deleted, for the audit trail: how many files of which days, and nothing of what they held.

use crate::model::ModelName;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// Deletions that were not reported yet. At most one entry for each kind of file, model and reason.
#[derive(Debug, Default)]
pub(super) struct Deletions(Mutex<BTreeMap<Key, Figures>>);

type Key = (Option<ModelName>, String, &'static str);

#[derive(Debug, Clone)]
struct Figures {
    files: u64,
    bytes: u64,
    first_day: String,
    last_day: String,
}

/// Files that were deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Deleted {
    /// `None` for `gaps`.
    #[serde(skip)]
    pub model: Option<ModelName>,
    /// `predictions`, `feedback` or `gaps`.
    pub kind: String,
    /// `age`, `budget`, `uploaded` or `not_uploaded`.
    pub reason: &'static str,
    pub files: u64,
    pub bytes: u64,
    /// The first and the last day that the files were of, in UTC.
    pub first_day: String,
    pub last_day: String,
}

impl Deletions {
    /// Adds a file that was deleted. `file` is below `data`.
    pub fn add(&self, data: &Path, file: &Path, bytes: u64, reason: &'static str) {
        let parts: Vec<&str> =
            file.strip_prefix(data).unwrap_or(file).iter().filter_map(|part| part.to_str()).collect();
        let value = |name: &str| parts.iter().find_map(|part| part.strip_prefix(name)).unwrap_or_default();
        let kind = parts.first().copied().unwrap_or_default().to_owned();
        let (model, day) = (value("model=").parse().ok(), value("date=").to_owned());
        self.merge((model, kind, reason), Figures { files: 1, bytes, first_day: day.clone(), last_day: day });
    }

    /// All deletions since the last call.
    pub fn take(&self) -> Vec<Deleted> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let deleted = |((model, kind, reason), figures): (Key, Figures)| {
            let Figures { files, bytes, first_day, last_day } = figures;
            Deleted { model, kind, reason, files, bytes, first_day, last_day }
        };
        std::mem::take(&mut *all).into_iter().map(deleted).collect()
    }

    /// Puts a deletion back that could not be reported.
    pub fn put_back(&self, deleted: Deleted) {
        let Deleted { model, kind, reason, files, bytes, first_day, last_day } = deleted;
        self.merge((model, kind, reason), Figures { files, bytes, first_day, last_day });
    }

    fn merge(&self, key: Key, more: Figures) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match all.get_mut(&key) {
            None => drop(all.insert(key, more)),
            Some(figures) => {
                figures.files += more.files;
                figures.bytes += more.bytes;
                figures.first_day = more.first_day.min(std::mem::take(&mut figures.first_day));
                figures.last_day = more.last_day.max(std::mem::take(&mut figures.last_day));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deletions_are_counted_per_model_kind_and_reason_until_they_are_taken() {
        let deletions = Deletions::default();
        let data = Path::new("/data");
        let file = |kind: &str, day: u8| data.join(format!("{kind}/date=2026-11-0{day}/1-a.parquet"));
        deletions.add(data, &file("predictions/model=m", 3), 10, "age");
        deletions.add(data, &file("predictions/model=m", 2), 20, "age");
        deletions.add(data, &file("predictions/model=n", 2), 1, "budget");
        deletions.add(data, &file("gaps", 2), 1, "age");
        let all = deletions.take();
        let of = |model: &str| all.iter().find(|d| d.model.as_ref().is_some_and(|m| m.as_str() == model)).unwrap();
        let m = of("m");
        assert_eq!((m.files, m.bytes, m.reason, m.kind.as_str()), (2, 30, "age", "predictions"));
        assert_eq!((m.first_day.as_str(), m.last_day.as_str()), ("2026-11-02", "2026-11-03"));
        assert_eq!((of("n").files, all.len()), (1, 3));
        assert_eq!(deletions.take(), []);
        deletions.put_back(m.clone());
        assert_eq!(deletions.take(), std::slice::from_ref(m));
    }
}
