//! One JSON value → one element, for every datatype: what is accepted, and what is said when it is not.

use super::json::{Reader, Syntax};
use base64::Engine as _;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use half::f16;
use sonic_number::{ParserNumber, parse_float32, parse_number};

/// Why an element could not be read.
#[derive(Debug)]
pub(super) enum Stop {
    Syntax(Syntax),
    /// JSON, but not what the datatype takes; the value starts here.
    Misfit(usize),
}

impl From<Syntax> for Stop {
    fn from(syntax: Syntax) -> Stop {
        Stop::Syntax(syntax)
    }
}

/// How far a wire format's rules differ from one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Rules {
    /// FP16 may be written as numbers (the Open Inference Protocol wants it in binary form only).
    pub(super) fp16_as_numbers: bool,
    /// BYTES may also be `{"b64": "…"}`, as in TensorFlow Serving.
    pub(super) base64_objects: bool,
}

/// An element type with a JSON form.
pub(super) trait FromJson: Sized {
    /// Completes "is expected to be …".
    const EXPECTED: &'static str;

    /// Reads one element whose first byte is `first`, at the cursor.
    fn read(reader: &mut Reader<'_>, first: u8, rules: Rules) -> Result<Self, Stop>;
}

impl FromJson for f32 {
    const EXPECTED: &'static str = "a number within ±3.4028235e38 (FP32)";

    #[inline]
    fn read(reader: &mut Reader<'_>, first: u8, _: Rules) -> Result<f32, Stop> {
        if !starts_number(first) {
            return null_as_nan(reader, first).map(|()| f32::NAN);
        }
        if let Some(quick) = reader.quick_single() {
            return Ok(quick);
        }
        let start = reader.offset();
        reader.number(parse_float32)?.ok_or(Stop::Misfit(start))
    }
}

impl FromJson for f64 {
    const EXPECTED: &'static str = "a number within ±1.7976931348623157e308 (FP64)";

    #[inline]
    fn read(reader: &mut Reader<'_>, first: u8, _: Rules) -> Result<f64, Stop> {
        if !starts_number(first) {
            return null_as_nan(reader, first).map(|()| f64::NAN);
        }
        let start = reader.offset();
        match reader.number(parse_number)? {
            Some(ParserNumber::Float(x)) if x == 0.0 && first == b'-' => Ok(-0.0),
            Some(ParserNumber::Float(x)) => Ok(x),
            Some(ParserNumber::Unsigned(x)) => Ok(x as f64),
            Some(ParserNumber::Signed(x)) => Ok(x as f64),
            None => Err(Stop::Misfit(start)),
        }
    }
}

impl FromJson for f16 {
    const EXPECTED: &'static str = "a number within ±65504 (FP16)";

    fn read(reader: &mut Reader<'_>, first: u8, rules: Rules) -> Result<f16, Stop> {
        let start = reader.offset();
        let wide = f64::read(reader, first, rules)?;
        let narrow = f16::from_f64(wide);
        if narrow.is_infinite() { Err(Stop::Misfit(start)) } else { Ok(narrow) }
    }
}

impl FromJson for bool {
    const EXPECTED: &'static str = "true, false, 0 or 1 (BOOL)";

    fn read(reader: &mut Reader<'_>, first: u8, _: Rules) -> Result<bool, Stop> {
        let start = reader.offset();
        match first {
            b't' => reader.word("true").map(|()| true).map_err(Stop::Syntax),
            b'f' => reader.word("false").map(|()| false).map_err(Stop::Syntax),
            b'-' | b'0'..=b'9' => match reader.number(parse_number)? {
                Some(ParserNumber::Unsigned(bit @ (0 | 1))) => Ok(bit == 1),
                _ => Err(Stop::Misfit(start)),
            },
            _ => Err(misfit(reader)),
        }
    }
}

impl FromJson for Bytes {
    const EXPECTED: &'static str = "a string (BYTES)";

    fn read(reader: &mut Reader<'_>, first: u8, rules: Rules) -> Result<Bytes, Stop> {
        match first {
            b'"' => Ok(reader.string_bytes()?),
            b'{' if rules.base64_objects => base64_object(reader),
            _ => Err(misfit(reader)),
        }
    }
}

macro_rules! integers {
    ($($t:ident $expected:literal),* $(,)?) => {$(
        impl FromJson for $t {
            const EXPECTED: &'static str = $expected;

            #[inline]
            fn read(reader: &mut Reader<'_>, first: u8, _: Rules) -> Result<$t, Stop> {
                let start = reader.offset();
                if !starts_number(first) {
                    return Err(misfit(reader));
                }
                let fits = match reader.number(parse_number)? {
                    Some(ParserNumber::Unsigned(n)) => $t::try_from(n).ok(),
                    Some(ParserNumber::Signed(n)) => $t::try_from(n).ok(),
                    Some(ParserNumber::Float(_)) | None => {
                        exact_integer(&reader.text()[start..reader.offset()]).and_then(|n| $t::try_from(n).ok())
                    }
                };
                fits.ok_or(Stop::Misfit(start))
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

/// JSON has no NaN; in floating-point tensors `null` stands for it.
#[cold]
fn null_as_nan(reader: &mut Reader<'_>, first: u8) -> Result<(), Stop> {
    if first != b'n' {
        return Err(misfit(reader));
    }
    // `nan` starts as `null` does, and is told apart here.
    Ok(reader.word("null")?)
}

/// A value of another kind, or no value at all.
#[cold]
fn misfit(reader: &Reader<'_>) -> Stop {
    let mut ahead = *reader;
    match ahead.peek() {
        Some(b'"' | b'[' | b'{' | b't' | b'f' | b'n' | b'-' | b'0'..=b'9') if !ahead.at_nonfinite_token() => {
            Stop::Misfit(ahead.offset())
        }
        _ => Stop::Syntax(ahead.syntax("a value")),
    }
}

/// The exact value of a number written with a fraction or an exponent (`2.0`, `1e3`), when that value is an integer within
/// ±2^53, and of `-0`.
///
/// Decided on the digits: as a double, 4503599627370497.4 would pass for an integer.
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
    // An exponent too long for its type is out of any range, or as small a fraction.
    zeros = zeros.checked_add(exponent.parse().ok()?)?;
    let mut value = 0i64;
    for digit in digits.into_iter().skip_while(|d| *d == b'0') {
        value = value.checked_mul(10)?.checked_add(i64::from(digit - b'0'))?;
    }
    value = value.checked_mul(10i64.checked_pow(u32::try_from(zeros).ok()?)?)?;
    (value <= LARGEST).then_some(if negative { -value } else { value })
}

/// Reads `{"b64": "…"}`: no other member beside it.
fn base64_object(reader: &mut Reader<'_>) -> Result<Bytes, Stop> {
    let start = reader.offset();
    reader.bump();
    let mut first = true;
    if reader.next_member(&mut first)?.as_deref() != Some("b64") || reader.peek() != Some(b'"') {
        return Err(Stop::Misfit(start));
    }
    let text = reader.string()?;
    if !reader.eat(b'}') {
        return Err(Stop::Misfit(start));
    }
    BASE64.decode(text.as_bytes()).map(Bytes::from).map_err(|_| Stop::Misfit(start))
}

/// The standard alphabet, padded or not, as TensorFlow Serving takes it.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);
