//! Parsing one JSON value as one element, for each datatype.

use super::json::{Reader, Syntax};
use base64::Engine as _;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use half::f16;
use sonic_number::{ParserNumber, parse_float32, parse_number};

/// Why an element could not be parsed.
#[derive(Debug)]
pub(super) enum ElementError {
    Syntax(Syntax),
    /// Valid JSON, but wrong for the datatype. The offset of the value.
    WrongValue(usize),
}

impl From<Syntax> for ElementError {
    fn from(syntax: Syntax) -> ElementError {
        ElementError::Syntax(syntax)
    }
}

/// The rules in which the wire formats differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Rules {
    /// FP16 can be written as numbers. The Open Inference Protocol allows only the binary form.
    pub(super) fp16_as_numbers: bool,
    /// BYTES can also be `{"b64": "…"}`, as in TensorFlow Serving.
    pub(super) base64_objects: bool,
}

/// An element type with a JSON form.
pub(super) trait FromJson: Sized {
    /// The end of the message "is expected to be …".
    const EXPECTED: &'static str;

    /// Parses the element at the cursor. Its first byte is `first`.
    fn read(reader: &mut Reader<'_>, first: u8, rules: Rules) -> Result<Self, ElementError>;
}

impl FromJson for f32 {
    const EXPECTED: &'static str = "a number within ±3.4028235e38 (FP32)";

    #[inline]
    fn read(reader: &mut Reader<'_>, first: u8, _: Rules) -> Result<f32, ElementError> {
        if !starts_number(first) {
            return null_as_nan(reader, first).map(|()| f32::NAN);
        }
        if let Some(value) = reader.quick_single() {
            return Ok(value);
        }
        let start = reader.offset();
        reader.number(parse_float32)?.ok_or(ElementError::WrongValue(start))
    }
}

impl FromJson for f64 {
    const EXPECTED: &'static str = "a number within ±1.7976931348623157e308 (FP64)";

    #[inline]
    fn read(reader: &mut Reader<'_>, first: u8, _: Rules) -> Result<f64, ElementError> {
        if !starts_number(first) {
            return null_as_nan(reader, first).map(|()| f64::NAN);
        }
        let start = reader.offset();
        match reader.number(parse_number)? {
            Some(ParserNumber::Float(x)) if x == 0.0 && first == b'-' => Ok(-0.0),
            Some(ParserNumber::Float(x)) => Ok(x),
            Some(ParserNumber::Unsigned(x)) => Ok(x as f64),
            Some(ParserNumber::Signed(x)) => Ok(x as f64),
            None => Err(ElementError::WrongValue(start)),
        }
    }
}

impl FromJson for f16 {
    const EXPECTED: &'static str = "a number within ±65504 (FP16)";

    fn read(reader: &mut Reader<'_>, first: u8, rules: Rules) -> Result<f16, ElementError> {
        let start = reader.offset();
        let wide = f64::read(reader, first, rules)?;
        let narrow = f16::from_f64(wide);
        if narrow.is_infinite() { Err(ElementError::WrongValue(start)) } else { Ok(narrow) }
    }
}

impl FromJson for bool {
    const EXPECTED: &'static str = "true, false, 0 or 1 (BOOL)";

    fn read(reader: &mut Reader<'_>, first: u8, _: Rules) -> Result<bool, ElementError> {
        let start = reader.offset();
        match first {
            b't' => reader.word("true").map(|()| true).map_err(ElementError::Syntax),
            b'f' => reader.word("false").map(|()| false).map_err(ElementError::Syntax),
            b'-' | b'0'..=b'9' => match reader.number(parse_number)? {
                Some(ParserNumber::Unsigned(bit @ (0 | 1))) => Ok(bit == 1),
                _ => Err(ElementError::WrongValue(start)),
            },
            _ => Err(wrong_value(reader)),
        }
    }
}

impl FromJson for Bytes {
    const EXPECTED: &'static str = "a string (BYTES)";

    fn read(reader: &mut Reader<'_>, first: u8, rules: Rules) -> Result<Bytes, ElementError> {
        match first {
            b'"' => Ok(reader.string_bytes()?),
            b'{' if rules.base64_objects => base64_object(reader),
            _ => Err(wrong_value(reader)),
        }
    }
}

macro_rules! integers {
    ($($t:ident $expected:literal),* $(,)?) => {$(
        impl FromJson for $t {
            const EXPECTED: &'static str = $expected;

            #[inline]
            fn read(reader: &mut Reader<'_>, first: u8, _: Rules) -> Result<$t, ElementError> {
                let start = reader.offset();
                if !starts_number(first) {
                    return Err(wrong_value(reader));
                }
                let fits = match reader.number(parse_number)? {
                    Some(ParserNumber::Unsigned(n)) => $t::try_from(n).ok(),
                    Some(ParserNumber::Signed(n)) => $t::try_from(n).ok(),
                    Some(ParserNumber::Float(_)) | None => {
                        exact_integer(&reader.text()[start..reader.offset()]).and_then(|n| $t::try_from(n).ok())
                    }
                };
                fits.ok_or(ElementError::WrongValue(start))
            }
        }
    )*};
}

integers! {
    u8 "an integer from 0 to 255 (UINT8)",
    u16 "an integer from 0 to 65535 (UINT16)",
    u32 "an integer from 0 to 4294967295 (UINT32)",
    u64 "an integer from 0 to 18446744073709551615 (UINT64)",
    i8 "an integer from -128 to 127 (INT8)",
    i16 "an integer from -32768 to 32767 (INT16)",
    i32 "an integer from -2147483648 to 2147483647 (INT32)",
    i64 "an integer from -9223372036854775808 to 9223372036854775807 (INT64)",
}

#[inline]
fn starts_number(first: u8) -> bool {
    first == b'-' || first.is_ascii_digit()
}

/// JSON has no NaN. In floating-point tensors, `null` means NaN.
#[cold]
fn null_as_nan(reader: &mut Reader<'_>, first: u8) -> Result<(), ElementError> {
    if first != b'n' {
        return Err(wrong_value(reader));
    }
    // `nan` also starts with an n. It fails here.
    Ok(reader.word("null")?)
}

/// The error for a value of the wrong kind, or for text that is not a value.
#[cold]
fn wrong_value(reader: &Reader<'_>) -> ElementError {
    let mut ahead = *reader;
    match ahead.peek() {
        Some(b'"' | b'[' | b'{' | b't' | b'f' | b'n' | b'-' | b'0'..=b'9') if !ahead.at_nonfinite_token() => {
            ElementError::WrongValue(ahead.offset())
        }
        _ => ElementError::Syntax(ahead.syntax("a value")),
    }
}

/// The exact value of a number with a fraction or an exponent (`2.0`, `1e3`), or of `-0`, if it is an integer within ±2^53.
///
/// This looks at the digits. Converted to `f64`, 4503599627370497.4 would be an integer.
#[cold]
fn exact_integer(literal: &[u8]) -> Option<i64> {
    const LARGEST: i64 = 1 << 53;
    let text = std::str::from_utf8(literal).ok()?;
    let (negative, text) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (digits, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let mut digits: Vec<u8> = whole.bytes().chain(fraction.bytes()).collect();
    let mut zeros = i64::try_from(fraction.len()).ok()?.checked_neg()?;
    while digits.last() == Some(&b'0') {
        digits.pop();
        zeros += 1;
    }
    if digits.is_empty() {
        return Some(0);
    }
    // An exponent that does not fit `i64` gives a value out of range, or a fraction.
    zeros = zeros.checked_add(exponent.parse().ok()?)?;
    let mut value = 0i64;
    for digit in digits.into_iter().skip_while(|d| *d == b'0') {
        value = value.checked_mul(10)?.checked_add(i64::from(digit - b'0'))?;
    }
    value = value.checked_mul(10i64.checked_pow(u32::try_from(zeros).ok()?)?)?;
    (value <= LARGEST).then_some(if negative { -value } else { value })
}

/// Parses `{"b64": "…"}`, without other members.
fn base64_object(reader: &mut Reader<'_>) -> Result<Bytes, ElementError> {
    let start = reader.offset();
    reader.bump();
    let mut first = true;
    if reader.next_member(&mut first)?.as_deref() != Some("b64") || reader.peek() != Some(b'"') {
        return Err(ElementError::WrongValue(start));
    }
    let text = reader.string()?;
    if !reader.eat(b'}') {
        return Err(ElementError::WrongValue(start));
    }
    reader.grow(text.len() + 32)?;
    decode_base64(text.as_bytes()).map(Bytes::from).ok_or(ElementError::WrongValue(start))
}

/// Decodes base64 in the standard or the URL-safe alphabet, with or without padding. `None` if it is neither.
pub(super) fn decode_base64(text: &[u8]) -> Option<Vec<u8>> {
    let url_safe = text.iter().any(|byte| matches!(byte, b'-' | b'_'));
    if url_safe { URL_SAFE.decode(text) } else { STANDARD.decode(text) }.ok()
}

const ANY_PADDING: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&base64::alphabet::STANDARD, ANY_PADDING);
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&base64::alphabet::URL_SAFE, ANY_PADDING);
