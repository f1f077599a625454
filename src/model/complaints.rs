//! A list of everything that is wrong with a request, so that the caller can fix all of it at once.

use super::{Code, Failure};

/// Complaints in the order they were found. After [`Complaints::MAX`] the list is full and drops the rest: a body can contain
/// more mistakes than anybody reads.
#[derive(Debug, Default)]
pub(crate) struct Complaints {
    code: Option<Code>,
    list: Vec<String>,
}

impl Complaints {
    pub(crate) const MAX: usize = 32;

    /// A complaint about the request as a whole, or about the form of a member.
    #[cold]
    pub(crate) fn request(&mut self, text: impl Into<String>) {
        self.add(Code::InvalidRequest, text.into());
    }

    /// A complaint about a tensor: its datatype, shape or values.
    #[cold]
    pub(crate) fn tensor(&mut self, text: impl Into<String>) {
        self.add(Code::InvalidTensor, text.into());
    }

    /// Whether the list is full. Loops over input of the caller stop then.
    pub(crate) fn is_full(&self) -> bool {
        self.list.len() >= Complaints::MAX
    }

    /// Adds the complaints about one part of the request, each with the name of the part in front.
    #[cold]
    pub(crate) fn absorb(&mut self, part: Complaints, name: &str) {
        for text in part.list {
            self.add(part.code.unwrap_or(Code::InvalidRequest), format!("{name}: {text}"));
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// `value` if there are no complaints, else one failure with all of them, under the code of the first.
    ///
    /// # Errors
    /// When there are complaints.
    pub(crate) fn into_result<T>(mut self, value: T) -> Result<T, Failure> {
        let Some(code) = self.code else { return Ok(value) };
        if self.is_full() {
            self.list.push(format!("only the first {} problems are listed, there may be more", Complaints::MAX));
        }
        Err(Failure::several(code, self.list))
    }

    fn add(&mut self, code: Code, text: String) {
        self.code.get_or_insert(code);
        if !self.is_full() {
            self.list.push(text);
        }
    }
}
