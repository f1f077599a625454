//! Writing elements as JSON text, directly into the bytes of the answer.

use crate::tensor::Data;
use base64::Engine as _;
use half::f16;
use std::ops::Range;

/// The index of a string element that is not UTF-8, which JSON cannot represent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NotUtf8(pub(super) usize);

/// Writes a range of a tensor's elements, separated by commas. Returns how many are not finite. Those are written as `null`.
///
/// Floats are written as the shortest text that parses to the same value in their own width (FP16 as FP32).
pub(super) fn elements(out: &mut Vec<u8>, data: &Data, range: Range<usize>) -> Result<usize, NotUtf8> {
    match data {
        Data::Bool(e) => list(out, &e[range], |out, b| plain(out, if *b { "true" } else { "false" })),
        Data::Uint8(e) => list(out, &e[range], |out, n| integer(out, *n)),
        Data::Uint16(e) => list(out, &e[range], |out, n| integer(out, *n)),
        Data::Uint32(e) => list(out, &e[range], |out, n| integer(out, *n)),
        Data::Uint64(e) => list(out, &e[range], |out, n| integer(out, *n)),
        Data::Int8(e) => list(out, &e[range], |out, n| integer(out, *n)),
        Data::Int16(e) => list(out, &e[range], |out, n| integer(out, *n)),
        Data::Int32(e) => list(out, &e[range], |out, n| integer(out, *n)),
        Data::Int64(e) => list(out, &e[range], |out, n| integer(out, *n)),
        Data::Fp16(e) => return Ok(floats(out, e[range].iter().map(|x: &f16| x.to_f32()))),
        Data::Fp32(e) => return Ok(floats(out, e[range].iter().copied())),
        Data::Fp64(e) => return Ok(floats(out, e[range].iter().copied())),
        Data::Bytes(e) => {
            for (i, s) in range.clone().zip(&e[range.clone()]) {
                if i > range.start {
                    out.push(b',');
                }
                string(out, std::str::from_utf8(s).map_err(|_| NotUtf8(i))?);
            }
        }
    }
    Ok(0)
}

/// Writes strings as `{"b64": "…"}`, which can represent any bytes.
pub(super) fn base64_objects(out: &mut Vec<u8>, strings: &[bytes::Bytes]) {
    list(out, strings, |out, s| {
        plain(out, "{\"b64\":\"");
        plain(out, &base64::engine::general_purpose::STANDARD.encode(s));
        plain(out, "\"}");
    });
}

/// An estimate of the bytes per element in JSON, including the comma.
pub(super) fn estimated_width(data: &Data) -> usize {
    match data {
        Data::Bool(_) | Data::Uint16(_) | Data::Int16(_) => 6,
        Data::Uint8(_) | Data::Int8(_) => 5,
        Data::Uint32(_) | Data::Int32(_) => 8,
        Data::Uint64(_) | Data::Int64(_) | Data::Fp16(_) | Data::Fp32(_) => 13,
        Data::Fp64(_) => 20,
        Data::Bytes(_) => 24,
    }
}

/// Writes a JSON string.
pub(super) fn string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    escaped(out, text.as_bytes());
    out.push(b'"');
}

/// Writes UTF-8 text as the inside of a JSON string.
pub(super) fn escaped(out: &mut Vec<u8>, bytes: &[u8]) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut copied = 0;
    for (i, byte) in bytes.iter().enumerate() {
        let short = match byte {
            b'"' => b'"',
            b'\\' => b'\\',
            b'\n' => b'n',
            b'\r' => b'r',
            b'\t' => b't',
            0..=0x1f => b'u',
            _ => continue,
        };
        out.extend_from_slice(&bytes[copied..i]);
        out.extend_from_slice(&[b'\\', short]);
        if short == b'u' {
            out.extend_from_slice(&[b'0', b'0', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
        }
        copied = i + 1;
    }
    out.extend_from_slice(&bytes[copied..]);
}

pub(super) fn plain(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(text.as_bytes());
}

#[inline]
pub(super) fn integer(out: &mut Vec<u8>, n: impl itoa::Integer) {
    out.extend_from_slice(itoa::Buffer::new().format(n).as_bytes());
}

#[inline]
fn list<T>(out: &mut Vec<u8>, elements: &[T], mut write: impl FnMut(&mut Vec<u8>, &T)) {
    let start = out.len();
    for element in elements {
        write(out, element);
        out.push(b',');
    }
    trim_comma(out, start);
}

trait Float: zmij::Float + Copy {
    fn finite(self) -> bool;
}

impl Float for f32 {
    fn finite(self) -> bool {
        self.is_finite()
    }
}

impl Float for f64 {
    fn finite(self) -> bool {
        self.is_finite()
    }
}

#[inline]
fn floats<T: Float>(out: &mut Vec<u8>, elements: impl Iterator<Item = T>) -> usize {
    let start = out.len();
    let mut nonfinite = 0;
    for x in elements {
        if x.finite() {
            out.extend_from_slice(zmij::Buffer::new().format_finite(x).as_bytes());
        } else {
            nonfinite += 1;
            out.extend_from_slice(b"null");
        }
        out.push(b',');
    }
    trim_comma(out, start);
    nonfinite
}

/// Removes the comma after the last element of a list that starts at `start`, if it has elements.
fn trim_comma(out: &mut Vec<u8>, start: usize) {
    if out.len() > start {
        out.pop();
    }
}
