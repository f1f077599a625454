//! The trace context of a request (<https://www.w3.org/TR/trace-context/>): read from its headers, or made.

use http::{HeaderMap, HeaderName};
use opentelemetry::trace::{SpanId, TraceId, TraceState};
use std::fmt;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// `00-` and 32, 16 and 2 digits.
const LENGTH: usize = 55;
/// The most bytes of a `tracestate` that is passed on. The standard asks for at least this much.
const MAX_STATE: usize = 512;
/// The most members of a `tracestate`, by the standard.
const MAX_MEMBERS: usize = 32;
const SAMPLED: u8 = 1;

/// The caller's span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Parent {
    pub trace: TraceId,
    pub span: SpanId,
    pub sampled: bool,
    flags: u8,
}

/// The span of a request that is traced.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Context {
    pub trace: TraceId,
    pub span: SpanId,
    /// The caller's span.
    pub parent: Option<SpanId>,
    pub flags: u8,
    pub state: TraceState,
}

impl Parent {
    /// The caller's span. `None` where there is none, more than one, or one that is not valid: the standard asks to ignore such a header.
    pub(super) fn of(headers: &HeaderMap) -> Option<Parent> {
        let mut values = headers.get_all(TRACEPARENT).iter();
        let value = values.next()?;
        if values.next().is_some() {
            return None;
        }
        Parent::parse(value.as_bytes())
    }

    pub(super) fn parse(text: &[u8]) -> Option<Parent> {
        let (head, rest) = text.split_at_checked(LENGTH)?;
        let [version, trace, span, flags] = [0..2, 3..35, 36..52, 53..55].map(|part| &head[part]);
        if [2, 35, 52].iter().any(|at| head[*at] != b'-') {
            return None;
        }
        match hex(version)? {
            0 if rest.is_empty() => {}
            // A later version may append more members.
            1..=0xfe if rest.is_empty() || rest[0] == b'-' => {}
            _ => return None,
        }
        let flags = u8::try_from(hex(flags)?).ok()?;
        let (trace, span) = (TraceId::from(hex(trace)?), SpanId::from(u64::try_from(hex(span)?).ok()?));
        let is_valid = trace != TraceId::INVALID && span != SpanId::INVALID;
        is_valid.then_some(Parent { trace, span, sampled: flags & SAMPLED != 0, flags })
    }

    /// The context of a request that this caller wants to be traced.
    pub(super) fn child(self, headers: &HeaderMap) -> Context {
        Context {
            trace: self.trace,
            span: new_span(),
            parent: Some(self.span),
            flags: self.flags,
            state: state(headers),
        }
    }
}

impl Context {
    /// The context of a request without a caller's span.
    pub(super) fn root() -> Context {
        let trace = TraceId::from(fastrand::u128(1..));
        Context { trace, span: new_span(), parent: None, flags: SAMPLED, state: TraceState::NONE }
    }
}

/// In the form of the header.
impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{}-{}-{:02x}", self.trace, self.span, self.flags)
    }
}

pub(super) fn new_span() -> SpanId {
    SpanId::from(fastrand::u64(1..))
}

/// A number in lower-case hexadecimal digits, as the standard wants them.
fn hex(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0, |number: u128, digit| {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u128::from(value))
    })
}

/// The caller's `tracestate`: whole members from the left, as far as the limits allow. Nothing of one that is not valid.
fn state(headers: &HeaderMap) -> TraceState {
    let (mut kept, mut members) = (String::new(), 0);
    for value in headers.get_all(TRACESTATE) {
        let Ok(text) = value.to_str() else { return TraceState::NONE };
        for member in text.split(',').map(str::trim).filter(|member| !member.is_empty()) {
            if members == MAX_MEMBERS || kept.len() + 1 + member.len() > MAX_STATE {
                return kept.parse().unwrap_or_default();
            }
            if !kept.is_empty() {
                kept.push(',');
            }
            kept.push_str(member);
            members += 1;
        }
    }
    kept.parse().unwrap_or_default()
}
