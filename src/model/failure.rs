//! Why a request was not answered: one closed set of codes, and words for the caller.

use std::fmt;

/// The stable codes of refusals and failures, on both planes, in metrics and in records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Code {
    /// The body is not JSON, or not the JSON of the protocol.
    InvalidRequest,
    /// A tensor does not fit its own shape or the model's signature.
    InvalidTensor,
    Unauthenticated,
    Forbidden,
    NotFound,
    ModelNotFound,
    VersionNotFound,
    LabelNotFound,
    MethodNotAllowed,
    NotAcceptable,
    BodyTimeout,
    Conflict,
    PreconditionFailed,
    BodyTooLarge,
    UnsupportedMediaType,
    /// Over a configured limit; trying again a little later is right.
    TooManyRequests,
    HeadersTooLarge,
    /// The client went away before its answer was ready.
    ClientClosed,
    Internal,
    /// The engine refused or failed the run.
    EngineFailed,
    NotReady,
    Draining,
    Overloaded,
    DeadlineExceeded,
    /// What must be on the disk before the answer leaves cannot be written.
    LogUnavailable,
}

impl Code {
    pub const ALL: [Code; 25] = [
        Code::InvalidRequest,
        Code::InvalidTensor,
        Code::Unauthenticated,
        Code::Forbidden,
        Code::NotFound,
        Code::ModelNotFound,
        Code::VersionNotFound,
        Code::LabelNotFound,
        Code::MethodNotAllowed,
        Code::NotAcceptable,
        Code::BodyTimeout,
        Code::Conflict,
        Code::PreconditionFailed,
        Code::BodyTooLarge,
        Code::UnsupportedMediaType,
        Code::TooManyRequests,
        Code::HeadersTooLarge,
        Code::ClientClosed,
        Code::Internal,
        Code::EngineFailed,
        Code::NotReady,
        Code::Draining,
        Code::Overloaded,
        Code::DeadlineExceeded,
        Code::LogUnavailable,
    ];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Code::InvalidRequest => "INVALID_REQUEST",
            Code::InvalidTensor => "INVALID_TENSOR",
            Code::Unauthenticated => "UNAUTHENTICATED",
            Code::Forbidden => "FORBIDDEN",
            Code::NotFound => "NOT_FOUND",
            Code::ModelNotFound => "MODEL_NOT_FOUND",
            Code::VersionNotFound => "VERSION_NOT_FOUND",
            Code::LabelNotFound => "LABEL_NOT_FOUND",
            Code::MethodNotAllowed => "METHOD_NOT_ALLOWED",
            Code::NotAcceptable => "NOT_ACCEPTABLE",
            Code::BodyTimeout => "BODY_TIMEOUT",
            Code::Conflict => "CONFLICT",
            Code::PreconditionFailed => "PRECONDITION_FAILED",
            Code::BodyTooLarge => "BODY_TOO_LARGE",
            Code::UnsupportedMediaType => "UNSUPPORTED_MEDIA_TYPE",
            Code::TooManyRequests => "TOO_MANY_REQUESTS",
            Code::HeadersTooLarge => "HEADERS_TOO_LARGE",
            Code::ClientClosed => "CLIENT_CLOSED",
            Code::Internal => "INTERNAL",
            Code::EngineFailed => "ENGINE_FAILED",
            Code::NotReady => "NOT_READY",
            Code::Draining => "DRAINING",
            Code::Overloaded => "OVERLOADED",
            Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
            Code::LogUnavailable => "LOG_UNAVAILABLE",
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A refusal or failure: what the caller reads, and apart from it what only the operator's log may say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub code: Code,
    /// One sentence for the caller: what was wrong, what was expected, what was found. No paths, no backtraces.
    pub message: String,
    /// Each complaint on its own, when there were several at once.
    pub details: Vec<String>,
    /// For the log alone: paths, engine messages, sources.
    pub internal: Option<String>,
}

impl Failure {
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>) -> Failure {
        Failure { code, message: message.into(), details: Vec::new(), internal: None }
    }

    /// Several complaints at once: the first is the message, and all of them are details when there is more than one.
    ///
    /// An empty list is a mistake of the caller's and gives a message that says only the code.
    #[must_use]
    pub fn several(code: Code, mut complaints: Vec<String>) -> Failure {
        if complaints.len() == 1 {
            return Failure::new(code, complaints.remove(0));
        }
        let first = complaints.first().map_or(code.as_str(), String::as_str);
        let message = format!("{first} (and {} more, see details)", complaints.len().saturating_sub(1));
        Failure { code, message, details: complaints, internal: None }
    }

    /// Adds what only the log may say.
    #[must_use]
    pub fn with_internal(mut self, internal: impl Into<String>) -> Failure {
        self.internal = Some(internal.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl Failure {
    /// The text for an operator: the details, or else the message, followed by the internal cause in brackets.
    #[must_use]
    pub fn operator_text(&self) -> String {
        let text = if self.details.is_empty() { self.message.clone() } else { self.details.join("; ") };
        match &self.internal {
            Some(internal) => format!("{text} ({internal})"),
            None => text,
        }
    }
}

/// The text a panic was raised with, or `"no message"` where it carries none.
#[must_use]
pub fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}
