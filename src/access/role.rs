//! Roles, and the actions that each of them allows.

use std::fmt;
use std::str::FromStr;

/// What a caller wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Action {
    /// Send predictions and feedback, and read what a client of the data plane reads.
    Predict,
    /// Read on the admin plane.
    View,
    /// Change traffic, load, unload, push, roll out, retire.
    Operate,
    /// Approve or reject a version.
    Approve,
    /// Make and revoke tokens; override an approval that is missing.
    Administer,
}

impl Action {
    pub const ALL: [Action; 5] = [Action::Predict, Action::View, Action::Operate, Action::Approve, Action::Administer];

    /// As the documents and the messages spell it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Action::Predict => "predict",
            Action::View => "view",
            Action::Operate => "operate",
            Action::Approve => "approve",
            Action::Administer => "administer",
        }
    }

    /// The roles that allow it, for messages: `operator or admin`.
    pub(super) fn roles(self) -> String {
        let roles: Vec<&str> = Role::ALL.into_iter().filter(|role| role.allows(self)).map(Role::as_str).collect();
        match &roles[..] {
            [] => String::new(),
            [one] => (*one).to_owned(),
            [first @ .., last] => format!("{} or {last}", first.join(", ")),
        }
    }
}

/// What a caller was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    Predict,
    Viewer,
    Operator,
    Approver,
    Admin,
}

impl Role {
    pub const ALL: [Role; 5] = [Role::Predict, Role::Viewer, Role::Operator, Role::Approver, Role::Admin];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Role::Predict => "predict",
            Role::Viewer => "viewer",
            Role::Operator => "operator",
            Role::Approver => "approver",
            Role::Admin => "admin",
        }
    }

    /// The table of docs/SECURITY.md.
    #[must_use]
    pub const fn allows(self, action: Action) -> bool {
        match self {
            Role::Predict => matches!(action, Action::Predict),
            Role::Viewer => matches!(action, Action::View),
            // An operator tries a version with pinned requests before it gets traffic.
            Role::Operator => matches!(action, Action::Predict | Action::View | Action::Operate),
            Role::Approver => matches!(action, Action::View | Action::Approve),
            Role::Admin => true,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A word that is not a role.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a role: expected predict, viewer, operator, approver or admin")]
pub struct NotARole(String);

impl FromStr for Role {
    type Err = NotARole;

    fn from_str(text: &str) -> Result<Role, NotARole> {
        let known = Role::ALL.into_iter().find(|role| role.as_str() == text);
        known.ok_or_else(|| NotARole(text.chars().take(40).collect()))
    }
}
