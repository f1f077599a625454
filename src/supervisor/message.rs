//! What the parent tells the child when it starts it.

use super::crash::Crash;
use serde::{Deserialize, Serialize};

/// The text in the region of the marks, as JSON.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Message {
    /// How often the parent has started a child again.
    pub(super) restarts: u64,
    /// Crashes that no child has stored yet, oldest first.
    pub(super) crashes: Vec<Crash>,
}

/// The environment variable with the numbers of the inherited descriptors. It is not a key of the configuration.
pub(super) const VARIABLE: &str = "SLUICEGATE_SUPERVISED";

/// The value of [`VARIABLE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Descriptors {
    /// The process id of the parent. A process that has another parent must not use the descriptors.
    pub(super) parent: u32,
    pub(super) marks: i32,
    pub(super) data: i32,
    pub(super) admin: i32,
    /// A copy of the configuration file.
    pub(super) configuration: Option<i32>,
}

impl Descriptors {
    pub(super) fn parse(text: &str) -> Option<Descriptors> {
        let mut numbers = text.split(',').map(str::parse::<i32>);
        let mut next = || numbers.next()?.ok();
        let [parent, marks, data, admin, configuration] = [next()?, next()?, next()?, next()?, next()?];
        let parent = u32::try_from(parent).ok()?;
        let all = [marks, data, admin];
        // 0 to 2 are the standard streams.
        (numbers.next().is_none() && all.iter().all(|fd| *fd > 2)).then_some(Descriptors {
            parent,
            marks,
            data,
            admin,
            configuration: (configuration > 2).then_some(configuration),
        })
    }
}

impl std::fmt::Display for Descriptors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Descriptors { parent, marks, data, admin, configuration } = self;
        write!(f, "{parent},{marks},{data},{admin},{}", configuration.unwrap_or(-1))
    }
}
