//! Texts by number, a bounded number of them.

use std::collections::HashMap;
use std::sync::Arc;

/// Texts, each once.
#[derive(Debug, Default)]
pub(super) struct Interner {
    numbers: HashMap<Box<str>, u32>,
    texts: Arc<Vec<Box<str>>>,
    pub(super) bytes: usize,
}

/// A longer text is cut.
const MAX_TEXT: usize = 128;

impl Interner {
    /// The number of a text; `None` if it is new and there are `most` already.
    pub(super) fn number(&mut self, text: &str, most: usize) -> Option<u32> {
        let text = &text[..text.floor_char_boundary(MAX_TEXT)];
        if let Some(known) = self.numbers.get(text) {
            return Some(*known);
        }
        let number = u32::try_from(self.texts.len()).ok().filter(|_| self.texts.len() < most)?;
        Arc::make_mut(&mut self.texts).push(text.into());
        self.numbers.insert(text.into(), number);
        self.bytes += 2 * text.len() + 64;
        Some(number)
    }

    pub(super) fn texts(&self) -> Arc<Vec<Box<str>>> {
        Arc::clone(&self.texts)
    }
}
