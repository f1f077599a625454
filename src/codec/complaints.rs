//! What is wrong with a request, gathered so that a caller reads all of it at once.

use crate::model::{Code, Failure};

/// A name somebody chose, quoted, and cut where it is longer than anyone reads: refusals are not to grow with the request.
#[cold]
pub(super) fn shown(name: &str) -> String {
    const SHOWN: usize = 100;
    match name.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{:?}…", &name[..end]),
        None => format!("{name:?}"),
    }
}

/// Complaints in the order they were found, at most [`Complaints::MOST`]: a body can hold more mistakes than anyone reads.
#[derive(Debug, Default)]
pub(super) struct Complaints {
    code: Option<Code>,
    said: Vec<String>,
}

impl Complaints {
    const MOST: usize = 32;

    /// About the request as a whole or the form of a member.
    #[cold]
    pub(super) fn request(&mut self, what: impl Into<String>) {
        self.add(Code::InvalidRequest, what.into());
    }

    /// About a tensor: its datatype, shape or values.
    #[cold]
    pub(super) fn tensor(&mut self, what: impl Into<String>) {
        self.add(Code::InvalidTensor, what.into());
    }

    /// Whether there is no use in looking for more.
    pub(super) fn full(&self) -> bool {
        self.said.len() >= Complaints::MOST
    }

    /// Takes over what was said of one part, naming it.
    #[cold]
    pub(super) fn absorb(&mut self, part: Complaints, name: &str) {
        for said in part.said {
            self.add(part.code.unwrap_or(Code::InvalidRequest), format!("{name}: {said}"));
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.said.is_empty()
    }

    /// `value`, if nothing is wrong; else one failure that says everything, under the code of the first complaint.
    pub(super) fn settle<T>(self, value: T) -> Result<T, Failure> {
        match self.code {
            None => Ok(value),
            Some(code) => Err(Failure::several(code, self.said)),
        }
    }

    fn add(&mut self, code: Code, what: String) {
        self.code.get_or_insert(code);
        if !self.full() {
            self.said.push(what);
        }
    }
}
