//! What an endpoint needs of its caller.

use super::role::Action;

/// What an endpoint needs. There is no default: an endpoint states one, or does not compile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permission {
    /// Nothing: probes, and the description of the API. The reason stands where the endpoint is registered.
    Open,
    /// Any identity, whatever its role.
    AnyIdentity,
    /// An action on what `Scope` says.
    To(Action, Scope),
}

/// What an action is done to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The model that the path names.
    Model,
    /// Whatever the caller may see: the handler leaves out the other models.
    Listed,
    /// All models, or the server itself. A grant that is limited to some models does not allow it.
    Everything,
}
