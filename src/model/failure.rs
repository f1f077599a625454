//! Errors: one closed set of codes, and a message for the caller.

use std::fmt;
use std::time::Duration;

/// The stable error codes, used on both planes, in metrics and in records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Code {
    /// The body is not valid JSON, or not the JSON that the protocol defines.
    InvalidRequest,
    /// A tensor does not match its own shape or the model's signature.
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
    /// A configured limit is reached. The caller may retry a little later.
    TooManyRequests,
    HeadersTooLarge,
    /// The client disconnected before the answer was ready.
    ClientClosed,
    Internal,
    /// The engine rejected the run, or failed in it.
    EngineFailed,
    NotReady,
    /// Something that other servers have and this one does not. A later try fails too.
    Unsupported,
    Draining,
    Overloaded,
    DeadlineExceeded,
    /// A record that must be on the disk before the answer is sent cannot be written.
    LogUnavailable,
}

impl Code {
    pub const ALL: [Code; 26] = [
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
        Code::Unsupported,
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
            Code::Unsupported => "UNSUPPORTED",
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

/// An error: the text that the caller reads and, separately, the text that only the operator's log may contain.
///
/// The text for the caller is bounded, whatever it quotes: see [`bounded_text`] and [`Failure::several`]. Control characters
/// in it are escaped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub code: Code,
    /// One sentence for the caller: what was wrong, what was expected, what was found. No paths, no backtraces.
    pub message: String,
    /// Each complaint on its own, when there are several.
    pub details: Vec<String>,
    /// For the log only: paths, engine messages, causes.
    pub internal: Option<String>,
    /// When the caller may try again, where that is known.
    pub retry_after: Option<Duration>,
}

impl Failure {
    /// The most entries in `details`. One more entry says how many are not listed.
    pub(crate) const MAX_DETAILS: usize = 64;
    /// The most bytes of all `details` together.
    const MAX_DETAIL_BYTES: usize = 16 * 1024;

    #[must_use]
    pub fn new(code: Code, message: impl Into<String>) -> Failure {
        Failure { code, message: bounded_text(message.into()), details: Vec::new(), internal: None, retry_after: None }
    }

    /// Several complaints at once. The first is the message. All of them are details if there is more than one.
    ///
    /// The list is cut after [`Failure::MAX_DETAILS`] entries or [`Failure::MAX_DETAIL_BYTES`], and then ends with
    /// "and N more". An empty list is a programming error. Its message is the code.
    #[must_use]
    pub fn several(code: Code, mut complaints: Vec<String>) -> Failure {
        if complaints.len() == 1 {
            return Failure::new(code, complaints.remove(0));
        }
        let mut failure =
            Failure { code, message: String::new(), details: complaints, internal: None, retry_after: None };
        let count = failure.details.len();
        failure.limit();
        let first = failure.details.first().map_or(code.as_str(), String::as_str);
        failure.message = format!("{first} (and {} more, see details)", count.saturating_sub(1));
        failure
    }

    /// Says when the caller may try again.
    #[must_use]
    pub fn with_retry_after(mut self, after: Duration) -> Failure {
        self.retry_after = Some(after);
        self
    }

    /// Adds text that only the log may contain.
    #[must_use]
    pub fn with_internal(mut self, internal: impl Into<String>) -> Failure {
        self.internal = Some(internal.into());
        self
    }

    /// Puts `place` in front of the message and of each detail: `case 3: ...`.
    pub(crate) fn within(mut self, place: &str) -> Failure {
        self.message.insert_str(0, place);
        for detail in &mut self.details {
            detail.insert_str(0, place);
        }
        self
    }

    /// Bounds all text for the caller. The constructors do this already; the encoder of error answers does it again, because
    /// the fields are public.
    pub(crate) fn limit(&mut self) {
        self.message = bounded_text(std::mem::take(&mut self.message));
        let mut bytes = 0;
        let mut kept = 0;
        for detail in &mut self.details {
            *detail = bounded_text(std::mem::take(detail));
            bytes += detail.len();
            if kept == Failure::MAX_DETAILS || bytes > Failure::MAX_DETAIL_BYTES {
                break;
            }
            kept += 1;
        }
        // A single entry over the limit stays: it may be the "and N more" of an earlier call.
        let cut = self.details.len() - kept;
        if cut > 1 {
            self.details.truncate(kept);
            self.details.push(format!("and {cut} more"));
        }
    }

    /// The text for an operator: the details, or else the message, followed by the internal cause in brackets.
    pub(crate) fn operator_text(&self) -> String {
        let text = if self.details.is_empty() { self.message.clone() } else { self.details.join("; ") };
        match &self.internal {
            Some(internal) => format!("{text} ({internal})"),
            None => text,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// The most bytes of one message or detail.
pub(super) const MAX_TEXT_BYTES: usize = 4096;

/// A text that is at most [`MAX_TEXT_BYTES`] long and contains no raw control characters: a longer one is cut and ends with
/// "…", a control character is escaped as Rust writes it (`\u{1b}`). Most texts come back unchanged, without a copy.
fn bounded_text(text: String) -> String {
    if text.len() <= MAX_TEXT_BYTES && !text.chars().any(is_control) {
        return text;
    }
    let mut bounded = String::with_capacity(text.len().min(MAX_TEXT_BYTES));
    for c in text.chars() {
        let escaped = is_control(c);
        // "…" takes 3 bytes, and an escape at most 8 (\u{2028}).
        if bounded.len() + if escaped { 8 } else { c.len_utf8() } > MAX_TEXT_BYTES - 3 {
            bounded.push('…');
            break;
        }
        if escaped { bounded.extend(c.escape_default()) } else { bounded.push(c) }
    }
    bounded
}

/// Characters that end a line, or change how a terminal shows the text around them.
fn is_control(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// A name or value that the caller chose, in quotes, for a message: escaped, and cut after 100 characters.
#[cold]
pub(crate) fn quoted(text: &str) -> String {
    const SHOWN: usize = 100;
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

/// The text a panic was raised with, or `"no message"` if it carries none.
pub(crate) fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}
