//! Who a caller is.

use super::pattern::Models;
use super::role::{Action, Role};
use crate::model::{Code, Failure, quoted};
use std::fmt;

/// How a caller proved who they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    Token,
    Certificate,
    /// A token of an identity provider.
    Oidc,
    /// Nothing proved it: a plane that needs no credentials. The name is what the client sent.
    Unproven,
}

impl Via {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Via::Token => "token",
            Via::Certificate => "certificate",
            Via::Oidc => "oidc",
            Via::Unproven => "unproven",
        }
    }
}

/// A role, and the models that it is limited to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    pub role: Role,
    pub models: Models,
}

impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} for {}", self.role, self.models)
    }
}

/// Who a caller is, and what was granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The actor in the audit trail.
    pub name: String,
    pub via: Via,
    pub grants: Vec<Grant>,
}

impl Identity {
    /// The caller of a plane that needs no credentials: everything is allowed.
    #[must_use]
    pub fn unproven(name: String) -> Identity {
        Identity { name, via: Via::Unproven, grants: vec![Grant { role: Role::Admin, models: Models::All }] }
    }

    /// Whether this caller may do it to this model; `None`: to everything.
    #[must_use]
    pub fn may(&self, action: Action, model: Option<&str>) -> bool {
        self.grants.iter().filter(|grant| grant.role.allows(action)).any(|grant| match model {
            Some(model) => grant.models.include(model),
            None => grant.models == Models::All,
        })
    }

    /// Whether this caller may do it to some model.
    #[must_use]
    pub fn may_somewhere(&self, action: Action) -> bool {
        self.grants.iter().any(|grant| grant.role.allows(action))
    }

    /// The same as [`Identity::may`], with words.
    ///
    /// # Errors
    /// `FORBIDDEN`, which says what would be needed and what the caller has.
    pub fn check(&self, action: Action, model: Option<&str>) -> Result<(), Failure> {
        if self.may(action, model) {
            Ok(())
        } else {
            Err(self.refusal(action, model.map(Some).unwrap_or_default(), model.is_none()))
        }
    }

    /// The same as [`Identity::may_somewhere`], with words.
    ///
    /// # Errors
    /// `FORBIDDEN`, as [`Identity::check`].
    pub fn check_somewhere(&self, action: Action) -> Result<(), Failure> {
        if self.may_somewhere(action) { Ok(()) } else { Err(self.refusal(action, None, false)) }
    }

    #[cold]
    fn refusal(&self, action: Action, model: Option<&str>, everything: bool) -> Failure {
        let place = match model {
            Some(model) => format!(" for model {}", quoted(model)),
            None if everything => " for all models".to_owned(),
            None => String::new(),
        };
        let has: Vec<String> = self.grants.iter().map(ToString::to_string).collect();
        let has = if has.is_empty() { "no role".to_owned() } else { has.join("; ") };
        let message = format!("this needs the role {}{place}; {} has {has}", action.roles(), quoted(&self.name));
        Failure::new(Code::Forbidden, message)
    }
}
