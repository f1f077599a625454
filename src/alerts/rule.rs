//! The rules, and how bad what they find is.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// What an alert is about. All rules are on unless `alerts.off` names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// A version is in the state `failed`.
    VersionFailed,
    /// A model's traffic document cannot be served as a whole.
    ModelUnserved,
    /// A version's engine fails, so that requests to it are refused.
    BreakerOpen,
    /// A guardrail was broken, and the traffic went back.
    RolloutTakenBack,
    /// The evidence of an active rollout comes close to breaking a guardrail.
    GuardrailNear,
    /// Requests fail faster than the error budget allows.
    ErrorBudget,
    /// The inputs or outputs of a version are not those of its profile any more.
    Drift,
    /// A version predicts worse than it did.
    Decay,
    /// A version, or the data of its profile, is older than its `model.toml` allows.
    Staleness,
    /// Outputs are NaN or infinite.
    NonFinite,
    /// Outputs are stuck at a constant, or the same inputs give other outputs.
    Unstable,
    /// A version takes longer than on its first day.
    Slower,
    /// The prediction log loses records, or cannot be written.
    LogLoss,
    /// Sealed files do not reach their bucket.
    UploadBehind,
    DiskFull,
    MemoryFull,
    CertificateExpires,
    TokenExpires,
    /// The audit trail was changed.
    AuditBroken,
    /// An admin gave traffic to a version that nobody approved.
    BreakGlass,
    /// This gateway is cut off from its fleet.
    FleetCutOff,
    /// Documents of the fleet are not in force on this gateway.
    FleetBehind,
    /// A gateway of the fleet ended without saying so.
    FleetLost,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Somebody should look at it on a working day.
    Warning,
    /// Somebody should look at it now.
    Critical,
}

/// A text that is not the name of a rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a rule; the rules are {known}", known = Rule::names())]
pub struct NotARule(String);

impl Rule {
    pub const ALL: [Rule; 23] = [
        Rule::VersionFailed,
        Rule::ModelUnserved,
        Rule::BreakerOpen,
        Rule::RolloutTakenBack,
        Rule::GuardrailNear,
        Rule::ErrorBudget,
        Rule::Drift,
        Rule::Decay,
        Rule::Staleness,
        Rule::NonFinite,
        Rule::Unstable,
        Rule::Slower,
        Rule::LogLoss,
        Rule::UploadBehind,
        Rule::DiskFull,
        Rule::MemoryFull,
        Rule::CertificateExpires,
        Rule::TokenExpires,
        Rule::AuditBroken,
        Rule::BreakGlass,
        Rule::FleetCutOff,
        Rule::FleetBehind,
        Rule::FleetLost,
    ];

    /// Stable: receivers and silences depend on it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Rule::VersionFailed => "version_failed",
            Rule::ModelUnserved => "model_unserved",
            Rule::BreakerOpen => "breaker_open",
            Rule::RolloutTakenBack => "rollout_taken_back",
            Rule::GuardrailNear => "guardrail_near",
            Rule::ErrorBudget => "error_budget",
            Rule::Drift => "drift",
            Rule::Decay => "decay",
            Rule::Staleness => "staleness",
            Rule::NonFinite => "non_finite",
            Rule::Unstable => "unstable",
            Rule::Slower => "slower",
            Rule::LogLoss => "log_loss",
            Rule::UploadBehind => "upload_behind",
            Rule::DiskFull => "disk_full",
            Rule::MemoryFull => "memory_full",
            Rule::CertificateExpires => "certificate_expires",
            Rule::TokenExpires => "token_expires",
            Rule::AuditBroken => "audit_broken",
            Rule::BreakGlass => "break_glass",
            Rule::FleetCutOff => "fleet_cut_off",
            Rule::FleetBehind => "fleet_behind",
            Rule::FleetLost => "fleet_lost",
        }
    }

    /// All names, for messages.
    #[must_use]
    pub fn names() -> String {
        Rule::ALL.map(Rule::as_str).join(", ")
    }

    /// How long a finding must be there before its alert begins. What a load or a burst causes for a moment is no alert.
    #[must_use]
    pub(super) const fn begins_after(self) -> Duration {
        match self {
            Rule::ModelUnserved | Rule::FleetLost => Duration::from_secs(15),
            Rule::MemoryFull | Rule::FleetCutOff => Duration::from_secs(30),
            Rule::FleetBehind => Duration::from_mins(1),
            _ => Duration::ZERO,
        }
    }

    /// Whether a new version, trained on newer data, is what helps.
    #[must_use]
    pub(super) const fn asks_for_retraining(self) -> bool {
        matches!(self, Rule::Drift | Rule::Decay)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Rule {
    type Err = NotARule;

    fn from_str(text: &str) -> Result<Rule, NotARule> {
        let known = Rule::ALL.into_iter().find(|rule| rule.as_str() == text);
        known.ok_or_else(|| NotARule(text.chars().take(80).collect()))
    }
}

impl Severity {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Severity::Warning => "warning",
            Severity::Critical => "critical",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
