//! Response bodies that are shared or long. Short ones stand beside their handlers.

pub(super) mod models;
pub(super) mod traffic;
