//! The error type: one sentence for the person at the terminal.

use std::fmt;

/// An error message.
#[derive(Debug)]
pub struct Wrong(String);

pub type Result<T> = std::result::Result<T, Wrong>;

impl Wrong {
    pub fn new(sentence: impl Into<String>) -> Self {
        Self(sentence.into())
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Wrong {}

/// Adds to an error what the program was doing.
pub trait While<T> {
    fn while_doing(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: fmt::Display> While<T> for std::result::Result<T, E> {
    fn while_doing(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| Wrong(format!("{}: {e}", what())))
    }
}
