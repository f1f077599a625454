//! A JSON parser that reads the text in one pass, without a tree and without recursion.
//!
//! It accepts exactly RFC 8259. Skipped values are checked like all others. Nesting is limited to [`MAX_DEPTH`] and uses no stack.

mod messages;
mod strings;
#[cfg(test)]
mod tests;

pub(super) use messages::Syntax;

use super::decimal::quick_single;
use crate::budget::Hold;
use bytes::Bytes;
use std::borrow::Cow;
use std::ops::Range;

/// The deepest nesting of lists and objects.
pub(super) const MAX_DEPTH: usize = 64;

/// For text that is not a caller's.
static UNCOUNTED: Hold = Hold::uncounted();

/// A position in JSON text. Cheap to copy. A copy is used to look ahead.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a> {
    /// The same bytes as `text`, to create views of strings.
    source: &'a Bytes,
    text: &'a [u8],
    at: usize,
    /// Counts the memory of what is parsed.
    hold: &'a Hold,
}

impl<'a> Reader<'a> {
    pub(super) fn new(source: &'a Bytes) -> Reader<'a> {
        Reader { source, text: source, at: 0, hold: &UNCOUNTED }
    }

    /// A reader whose results are counted.
    pub(super) fn counted(source: &'a Bytes, hold: &'a Hold) -> Reader<'a> {
        Reader { source, text: source, at: 0, hold }
    }

    /// Makes room for more elements: see [`Hold::room`].
    #[inline]
    pub(super) fn room<T>(&self, vec: &mut Vec<T>, additional: usize) -> Result<(), Syntax> {
        self.hold.room(vec, additional, usize::MAX).map_err(Syntax::no_memory)
    }

    /// A view of a part of the text.
    pub(super) fn view(&self, part: &str) -> Bytes {
        self.source.slice_ref(part.as_bytes())
    }

    /// Counts memory that is about to be allocated.
    pub(super) fn grow(&self, bytes: usize) -> Result<(), Syntax> {
        self.hold.grow(bytes).map_err(Syntax::no_memory)
    }

    /// A reader of the same text at another offset.
    pub(super) fn at(&self, at: usize) -> Reader<'a> {
        Reader { at, ..*self }
    }

    #[inline]
    pub(super) fn offset(&self) -> usize {
        self.at
    }

    #[inline]
    pub(super) fn text(&self) -> &'a [u8] {
        self.text
    }

    /// The number of bytes after the cursor.
    pub(super) fn remaining(&self) -> usize {
        self.text.len() - self.at
    }

    /// Skips white space. Returns the first byte of the next token without consuming it.
    #[inline]
    pub(super) fn peek(&mut self) -> Option<u8> {
        loop {
            match self.text.get(self.at) {
                Some(b' ' | b'\n' | b'\r' | b'\t') => self.at += 1,
                next => return next.copied(),
            }
        }
    }

    /// Consumes the byte that [`Reader::peek`] returned.
    #[inline]
    pub(super) fn bump(&mut self) {
        self.at += 1;
    }

    /// Consumes `token` if it comes next.
    #[inline]
    pub(super) fn eat(&mut self, token: u8) -> bool {
        let found = self.peek() == Some(token);
        self.at += usize::from(found);
        found
    }

    /// Moves to the value of the next member of an object and returns the member's name. The `{` has been consumed. `None` after the
    /// `}`. `first` must be `true` at the first call.
    pub(super) fn next_member(&mut self, first: &mut bool) -> Result<Option<Cow<'a, str>>, Syntax> {
        match self.peek() {
            Some(b'}') => {
                self.bump();
                return Ok(None);
            }
            Some(b',') if !*first => self.bump(),
            Some(b'"') if *first => {}
            _ if *first => return Err(self.syntax("a member's name or '}'")),
            _ => return Err(self.syntax("',' or '}'")),
        }
        *first = false;
        self.member_name().map(Some)
    }

    /// Moves to the next item of a list. The `[` has been consumed. `false` after the `]`. `first` must be `true` at the first call.
    #[inline]
    pub(super) fn next_item(&mut self, first: &mut bool) -> Result<bool, Syntax> {
        match self.peek() {
            Some(b']') => {
                self.bump();
                return Ok(false);
            }
            Some(b',') if !*first => self.bump(),
            _ if *first => {}
            _ => return Err(self.syntax("',' or ']'")),
        }
        *first = false;
        Ok(true)
    }

    fn member_name(&mut self) -> Result<Cow<'a, str>, Syntax> {
        if self.peek() != Some(b'"') {
            return Err(self.syntax("a member's name"));
        }
        let name = self.string()?;
        if !self.eat(b':') {
            return Err(self.syntax("':'"));
        }
        Ok(name)
    }

    /// Consumes `true`, `false` or `null`.
    pub(super) fn word(&mut self, word: &'static str) -> Result<(), Syntax> {
        if self.text[self.at..].starts_with(word.as_bytes()) {
            self.at += word.len();
            return Ok(());
        }
        Err(self.syntax("a value"))
    }

    /// Consumes the number at the cursor if the fast conversion can parse it.
    #[inline]
    pub(super) fn quick_single(&mut self) -> Option<f32> {
        let (single, end) = quick_single(self.text, self.at)?;
        self.at = end;
        Some(single)
    }

    /// Consumes the number at the cursor with a parser of sonic-number, which checks its syntax. `None` if it is too large.
    #[inline]
    pub(super) fn number<T>(
        &mut self,
        parse: impl FnOnce(&[u8], &mut usize, bool) -> Result<T, sonic_number::Error>,
    ) -> Result<Option<T>, Syntax> {
        let start = self.at;
        let negative = self.text.get(start) == Some(&b'-');
        let mut at = start + usize::from(negative);
        if at == self.text.len() {
            return Err(self.not_a_number(start, at));
        }
        let parsed = parse(self.text, &mut at, negative);
        self.at = at;
        match parsed {
            Ok(value) => Ok(Some(value)),
            Err(sonic_number::Error::FloatMustBeFinite) => Ok(None),
            Err(sonic_number::Error::InvalidNumber) => Err(self.not_a_number(start, at)),
        }
    }

    /// Checks and skips one value of any kind. Returns its position.
    pub(super) fn skip_value(&mut self) -> Result<Range<usize>, Syntax> {
        // One bit per open list (0) or object (1). The innermost is the lowest bit.
        let (mut objects, mut depth) = (0u64, 0);
        self.peek();
        let start = self.at;
        loop {
            let opened = self.skip_scalar_or_open()?;
            if let Some(object) = opened {
                if depth == MAX_DEPTH {
                    return Err(self.too_deep());
                }
                depth += 1;
                objects = objects << 1 | u64::from(object);
                let close = if object { b'}' } else { b']' };
                if self.peek() != Some(close) {
                    if object {
                        self.member_name()?;
                    }
                    continue;
                }
            }
            loop {
                if depth == 0 {
                    return Ok(start..self.at);
                }
                let object = objects & 1 == 1;
                match self.peek() {
                    Some(b',') => {
                        self.bump();
                        if object {
                            self.member_name()?;
                        }
                        break;
                    }
                    Some(b']') if !object => self.bump(),
                    Some(b'}') if object => self.bump(),
                    _ if object => return Err(self.syntax("',' or '}'")),
                    _ => return Err(self.syntax("',' or ']'")),
                }
                depth -= 1;
                objects >>= 1;
            }
        }
    }

    /// Checks that only white space is left.
    pub(super) fn end(&mut self) -> Result<(), Syntax> {
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(self.syntax("nothing more after the closing '}'")),
        }
    }

    /// Skips a scalar value, or consumes the opening bracket of a list (`Some(false)`) or object (`Some(true)`).
    fn skip_scalar_or_open(&mut self) -> Result<Option<bool>, Syntax> {
        match self.peek() {
            Some(b'"') => {
                self.string()?;
            }
            Some(b'-' | b'0'..=b'9') => self.skip_number()?,
            Some(b't') => self.word("true")?,
            Some(b'f') => self.word("false")?,
            Some(b'n') => self.word("null")?,
            Some(b'[') => {
                self.bump();
                return Ok(Some(false));
            }
            Some(b'{') => {
                self.bump();
                return Ok(Some(true));
            }
            _ => return Err(self.syntax("a value")),
        }
        Ok(None)
    }

    fn skip_number(&mut self) -> Result<(), Syntax> {
        let start = self.at;
        self.at += usize::from(self.text[start] == b'-');
        if self.text.get(self.at) == Some(&b'0') {
            self.at += 1;
        } else {
            self.skip_digits(start)?;
        }
        if self.text.get(self.at) == Some(&b'.') {
            self.at += 1;
            self.skip_digits(start)?;
        }
        if let Some(b'e' | b'E') = self.text.get(self.at) {
            self.at += 1;
            if let Some(b'+' | b'-') = self.text.get(self.at) {
                self.at += 1;
            }
            self.skip_digits(start)?;
        }
        Ok(())
    }

    fn skip_digits(&mut self, start: usize) -> Result<(), Syntax> {
        let digits = self.text[self.at..].iter().take_while(|b| b.is_ascii_digit()).count();
        self.at += digits;
        if digits == 0 { Err(self.not_a_number(start, self.at)) } else { Ok(()) }
    }
}

/// The known members of an object that have been found. At most eight are known.
#[derive(Debug)]
pub(super) struct Seen<'m> {
    members: &'m [&'static str],
    bits: u8,
}

impl<'m> Seen<'m> {
    pub(super) fn new(members: &'m [&'static str]) -> Seen<'m> {
        debug_assert!(members.len() <= 8, "one bit per member");
        Seen { members, bits: 0 }
    }

    /// Adds a member. Returns true if it is a known member that was already found.
    pub(super) fn is_repeated(&mut self, member: &str) -> bool {
        let bit = self.bit(member);
        let repeated = self.bits & bit != 0;
        self.bits |= bit;
        repeated
    }

    pub(super) fn contains(&self, member: &str) -> bool {
        self.bits & self.bit(member) != 0
    }

    fn bit(&self, member: &str) -> u8 {
        self.members.iter().position(|m| *m == member).map_or(0, |i| 1 << i)
    }
}
