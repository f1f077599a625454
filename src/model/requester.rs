//! Whose request it is, for queues: the caller and the priority.

use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::OnceLock;

/// How long a request may wait, and who is refused first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Priority {
    /// Somebody waits for the answer.
    #[default]
    Interactive,
    /// Nobody looks at the clock: it waits longer, and is refused first.
    Batch,
}

impl Priority {
    pub const ALL: [Priority; 2] = [Priority::Interactive, Priority::Batch];

    /// As headers, settings and metrics spell it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Priority::Interactive => "interactive",
            Priority::Batch => "batch",
        }
    }

    /// The priority with this spelling.
    #[must_use]
    pub fn of(text: &str) -> Option<Priority> {
        Priority::ALL.into_iter().find(|priority| priority.as_str() == text)
    }
}

/// Tells callers apart, and says nothing else about them. Two callers get the same id with a probability of 2⁻⁶⁴ and then share a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct CallerId(u64);

impl CallerId {
    /// The id of what identifies a caller. The hash has a secret of this process, so that nobody can choose to share the id of another caller.
    #[must_use]
    pub fn of(what: impl Hash) -> CallerId {
        static SECRET: OnceLock<RandomState> = OnceLock::new();
        CallerId(SECRET.get_or_init(RandomState::new).hash_one(what))
    }
}

/// Whose request it is. The default is the server itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Requester {
    pub caller: CallerId,
    pub priority: Priority,
}
