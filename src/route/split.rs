//! Which documents split requests alike, and since when.

use super::Document;
use xxhash_rust::xxh3::xxh3_64;

impl Document {
    /// Whether two documents give every key the same arm, and every arm the same version.
    #[must_use]
    pub fn splits_like(&self, other: &Document) -> bool {
        self.split == other.split
            && self.sticky_by == other.sticky_by
            && self.salt == other.salt
            && self.rules == other.rules
    }

    /// A hash that documents have in common which split alike.
    #[must_use]
    pub fn split_hash(&self) -> u64 {
        let Document { split, sticky_by, salt, rules, .. } = self;
        xxh3_64(format!("{split:?} {sticky_by:?} {salt:?} {rules:?}").as_bytes())
    }
}

/// The oldest revision since which requests have been split as they are now, and its time in microseconds since 1970. `history`: revisions, their
/// times and documents, newest first.
#[must_use]
pub fn began<'h>(history: impl Iterator<Item = (u64, i64, &'h str)>, now: &Document) -> Option<(u64, i64)> {
    let same =
        |(_, _, document): &(u64, i64, &str)| Document::from_json(document).is_ok_and(|then| then.splits_like(now));
    let (revision, at, _) = history.take_while(same).last()?;
    Some((revision, at))
}
