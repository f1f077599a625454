//! The reason of a change, which operators give for the audit trail.

/// The most characters. Reasons are kept for ever, and every list of changes has them.
pub const MAX_REASON: usize = 1000;

/// What is expected, for complaints.
pub const REASON: &str = "a reason for the audit trail (required) of at most 1000 characters";

/// Whether a text can be a reason.
#[must_use]
pub fn is_reason(text: &str) -> bool {
    !text.trim().is_empty() && text.chars().nth(MAX_REASON).is_none()
}
