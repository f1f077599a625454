//! Masks: patterns in texts that are overwritten before a text is stored.

use regex::bytes::{Regex, RegexBuilder};

/// Overwrites what a pattern matches in the texts of a column. The length of a text stays, so the size of a record is known before.
#[derive(Debug, Clone)]
pub struct Mask {
    /// `inputs.NAME`, `outputs.NAME` or `label`.
    pub column: String,
    pattern: Regex,
}

impl PartialEq for Mask {
    fn eq(&self, other: &Mask) -> bool {
        self.column == other.column && self.pattern.as_str() == other.pattern.as_str()
    }
}

impl Eq for Mask {}

/// Bytes of a pattern, and of what it is compiled to.
const MAX_PATTERN: usize = 1000;
const MAX_COMPILED: usize = 1 << 20;

impl Mask {
    /// The most masks of a model.
    pub(crate) const MAX: usize = 32;

    /// `None` where the pattern is not a regular expression, or too large.
    #[must_use]
    pub(crate) fn new(column: &str, pattern: &str) -> Option<Mask> {
        if pattern.is_empty() || pattern.len() > MAX_PATTERN {
            return None;
        }
        let pattern = RegexBuilder::new(pattern).size_limit(MAX_COMPILED).dfa_size_limit(MAX_COMPILED).build().ok()?;
        Some(Mask { column: column.to_owned(), pattern })
    }

    /// Overwrites each byte of each match by `*`. A character of several bytes becomes several.
    pub(super) fn apply(&self, text: &mut [u8]) {
        let found: Vec<_> = self.pattern.find_iter(text).map(|found| found.range()).collect();
        for range in found {
            text[range].fill(b'*');
        }
    }
}
