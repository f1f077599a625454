//! Parsing strings: their end, escapes and UTF-8.

use super::{Reader, Syntax};
use bytes::Bytes;
use std::borrow::Cow;
use std::ops::Range;

impl<'a> Reader<'a> {
    /// Parses the string that starts at the cursor.
    pub(in crate::codec) fn string(&mut self) -> Result<Cow<'a, str>, Syntax> {
        let opening = self.at;
        let (content, escaped) = self.scan_string()?;
        let raw = &self.text[content.clone()];
        if escaped {
            return self.unescape(content).map(Cow::Owned);
        }
        match std::str::from_utf8(raw) {
            Ok(text) => Ok(Cow::Borrowed(text)),
            Err(e) => Err(self.syntax_at(opening + 1 + e.valid_up_to(), "UTF-8 text")),
        }
    }

    /// Parses the string that starts at the cursor. The result is a view of the body if the string has no escapes.
    pub(in crate::codec) fn string_bytes(&mut self) -> Result<Bytes, Syntax> {
        match self.string()? {
            Cow::Borrowed(text) => Ok(self.source.slice_ref(text.as_bytes())),
            Cow::Owned(text) => {
                // The text and what the allocator adds to it.
                self.grow(text.len() + 32)?;
                Ok(Bytes::from(text))
            }
        }
    }

    /// Moves past the string that starts at the cursor. Returns its content and whether it has escapes.
    fn scan_string(&mut self) -> Result<(Range<usize>, bool), Syntax> {
        let start = self.at + 1;
        let mut at = start;
        let mut escaped = false;
        loop {
            match self.text.get(at) {
                Some(b'"') => break,
                Some(b'\\') => {
                    escaped = true;
                    at += 2;
                }
                Some(0..=0x1f) => return Err(self.syntax_at(at, "control characters in strings to be escaped")),
                Some(_) => at += 1,
                None => return Err(self.syntax_at(self.text.len(), "the string's closing '\"'")),
            }
        }
        self.at = at + 1;
        Ok((start..at, escaped))
    }

    #[cold]
    fn unescape(&self, content: Range<usize>) -> Result<String, Syntax> {
        let mut plain = Vec::with_capacity(content.len());
        let mut at = content.start;
        while at < content.end {
            let byte = self.text[at];
            at += 1;
            if byte != b'\\' {
                plain.push(byte);
                continue;
            }
            // Never out of range: `scan_string` has skipped the byte after each backslash.
            let escape = self.text[at];
            at += 1;
            plain.push(match escape {
                b'"' | b'\\' | b'/' => escape,
                b'b' => 0x08,
                b'f' => 0x0c,
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                b'u' => {
                    let character = self.unicode_escape(&mut at, content.end)?;
                    plain.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                    continue;
                }
                _ => return Err(self.syntax_at(at - 1, "one of the escapes \\\" \\\\ \\/ \\b \\f \\n \\r \\t \\u")),
            });
        }
        String::from_utf8(plain).map_err(|_| {
            let broken = std::str::from_utf8(&self.text[content.clone()]).map_or_else(|e| e.valid_up_to(), |_| 0);
            self.syntax_at(content.start + broken, "UTF-8 text")
        })
    }

    /// Parses the rest of a `\u` escape: one character, from one escape or (beyond U+FFFF) two.
    fn unicode_escape(&self, at: &mut usize, end: usize) -> Result<char, Syntax> {
        let start = *at;
        let unpaired = || self.syntax_at(start, "a character, or a pair of surrogates for one beyond U+FFFF");
        let high = self.hex4(at, end)?;
        let mut code = high;
        if (0xd800..=0xdbff).contains(&high) && self.text[*at..end].starts_with(b"\\u") {
            *at += 2;
            let low = self.hex4(at, end)?;
            if !(0xdc00..=0xdfff).contains(&low) {
                return Err(unpaired());
            }
            code = 0x1_0000 + ((high - 0xd800) << 10) + (low - 0xdc00);
        }
        char::from_u32(code).ok_or_else(unpaired)
    }

    fn hex4(&self, at: &mut usize, end: usize) -> Result<u32, Syntax> {
        let mut code = 0;
        for _ in 0..4 {
            let digit = (*at < end).then(|| char::from(self.text[*at]).to_digit(16)).flatten();
            code = code << 4 | digit.ok_or_else(|| self.syntax_at(*at, "four hexadecimal digits"))?;
            *at += 1;
        }
        Ok(code)
    }
}
