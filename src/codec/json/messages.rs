//! Messages about text that is not valid JSON, or not the expected JSON.

use super::{MAX_DEPTH, Reader};
use crate::model::{Code, Failure};

/// Why the text could not be parsed on: a syntax error (where it is, what was expected and what was found), or no memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::codec) struct Syntax(Box<Stop>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Stop {
    Syntax(String),
    NoMemory(Failure),
}

impl Syntax {
    /// Adds the part of the body where the error is.
    #[cold]
    pub(in crate::codec) fn within(mut self, part: &str) -> Syntax {
        if let Stop::Syntax(text) = &mut *self.0 {
            *text = format!("{part}: {text}");
        }
        self
    }

    fn new(text: String) -> Syntax {
        Syntax(Box::new(Stop::Syntax(text)))
    }

    /// There is no memory for what is parsed.
    #[cold]
    pub(in crate::codec) fn no_memory(failure: Failure) -> Syntax {
        Syntax(Box::new(Stop::NoMemory(failure)))
    }
}

impl From<Syntax> for Failure {
    fn from(syntax: Syntax) -> Failure {
        match *syntax.0 {
            Stop::Syntax(text) => Failure::new(Code::InvalidRequest, format!("the body is not valid JSON: {text}")),
            Stop::NoMemory(failure) => failure,
        }
    }
}

impl Reader<'_> {
    /// A syntax error at the cursor.
    #[cold]
    pub(in crate::codec) fn syntax(&self, expected: &str) -> Syntax {
        self.syntax_at(self.at, expected)
    }

    /// Refuses a byte order mark at the cursor. It is invisible in editors, so the error names it and says how to remove it.
    #[inline]
    pub(in crate::codec) fn refuse_byte_order_mark(&self) -> Result<(), Syntax> {
        let Some(mark @ (0xef | 0xfe | 0xff)) = self.text.get(self.at).copied() else { return Ok(()) };
        let rest = &self.text[self.at..];
        let (name, remedy) = match mark {
            0xef if rest.starts_with(b"\xef\xbb\xbf") => (
                "a UTF-8 byte order mark (EF BB BF)",
                "send the text without it (in Python, decode the file as utf-8-sig)",
            ),
            0xfe if rest.starts_with(b"\xfe\xff") => ("a UTF-16 byte order mark (FE FF)", "send the text as UTF-8"),
            0xff if rest.starts_with(b"\xff\xfe") => ("a UTF-16 byte order mark (FF FE)", "send the text as UTF-8"),
            _ => return Ok(()),
        };
        Err(Syntax::new(format!("it begins with {name}, which JSON does not have: {remedy}")))
    }

    /// Whether a token such as `NaN` or `-Infinity` comes next. Clients send them, but JSON does not have them.
    pub(in crate::codec) fn at_nonfinite_token(&self) -> bool {
        let rest = &self.text[self.at.min(self.text.len())..];
        let rest = rest.strip_prefix(b"-").or(rest.strip_prefix(b"+")).unwrap_or(rest);
        [&b"nan"[..], b"inf"].iter().any(|t| rest.get(..3).is_some_and(|start| start.eq_ignore_ascii_case(t)))
    }

    #[cold]
    pub(in crate::codec) fn too_deep(&self) -> Syntax {
        Syntax::new(format!("{}: lists and objects are nested more than {MAX_DEPTH} deep", self.place(self.at)))
    }

    /// The token at an offset, for a message: a scalar as it is (escaped and cut), a list or object by its kind.
    #[cold]
    pub(in crate::codec) fn excerpt(&self, at: usize) -> String {
        const SHOWN: usize = 40;
        let rest = &self.text[at..];
        let cut = |text: &str| match text.char_indices().nth(SHOWN) {
            Some((end, _)) => (text[..end].to_owned(), "…"),
            None => (text.to_owned(), ""),
        };
        match rest.first() {
            None => "the end of the body".to_owned(),
            Some(b'[') => "a list".to_owned(),
            Some(b'{') => "an object".to_owned(),
            Some(b'"') => match self.at(at).string() {
                Ok(text) => {
                    let (shown, more) = cut(&text);
                    format!("the string {shown:?}{more}")
                }
                Err(_) => "a string".to_owned(),
            },
            Some(b'-' | b'+' | b'.' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z') => {
                let end = rest.iter().position(|b| !b.is_ascii_alphanumeric() && !b"+-._".contains(b));
                let (shown, more) = cut(&String::from_utf8_lossy(&rest[..end.unwrap_or(rest.len())]));
                shown + more
            }
            Some(0x20..=0x7e) => format!("'{}'", char::from(rest[0])),
            Some(other) => match String::from_utf8_lossy(&rest[..rest.len().min(4)]).chars().next() {
                Some(c) if c != '\u{fffd}' && !c.is_control() => format!("'{c}'"),
                _ => format!("the byte 0x{other:02x}"),
            },
        }
    }

    #[cold]
    pub(super) fn syntax_at(&self, at: usize, expected: &str) -> Syntax {
        if self.at(at).at_nonfinite_token() {
            return self.nonfinite(at);
        }
        Syntax::new(format!("{}: expected {expected}, found {}", self.place(at), self.excerpt(at)))
    }

    /// The error for a token that starts like a number at `start` but is invalid at `at`.
    #[cold]
    pub(super) fn not_a_number(&self, start: usize, at: usize) -> Syntax {
        if self.at(start).at_nonfinite_token() { self.nonfinite(start) } else { self.syntax_at(at, "a digit") }
    }

    fn nonfinite(&self, at: usize) -> Syntax {
        Syntax::new(format!(
            "{}: found {}, but JSON has no NaN and no Infinity: send null for a missing value (NaN), or the tensor in binary form",
            self.place(at),
            self.excerpt(at)
        ))
    }

    fn place(&self, at: usize) -> String {
        let before = &self.text[..at.min(self.text.len())];
        let line = before.split(|b| *b == b'\n').count();
        let column = before.iter().rev().take_while(|b| **b != b'\n').count() + 1;
        format!("line {line}, column {column} (byte {at})")
    }
}
