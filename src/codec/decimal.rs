//! A fast conversion from decimal text to single precision, for the numbers that most bodies contain.
//!
//! sonic-number converts all JSON numbers exactly, but for `f32` it always uses its general, slower algorithm.

/// Parses the number that starts at `at`. Returns the value and the end of the number, or `None` if the general algorithm has to
/// do it: more than 18 digits, an exponent, a value too close to the middle between two `f32`, or not a number at all.
///
/// Up to 18 digits fit into an `i64`, which converts to `f64` in one instruction (a `u64` needs several). Dividing that `f64` by
/// an exact power of ten has an error of at most two units in the last place: one from the conversion, one from the division. An
/// `f32` has 29 bits less, so rounding again gives the nearest `f32`, unless the `f64` is within two units of the middle between
/// two `f32`. The range of `f32` is never exceeded: a value that is not 0 is between 10^-18 and 10^18 here.
#[inline]
pub(super) fn quick_single(text: &[u8], at: usize) -> Option<(f32, usize)> {
    const DROPPED: u64 = (1 << 29) - 1;
    const MIDDLE: u64 = 1 << 28;
    let negative = text.get(at) == Some(&b'-');
    let start = at + usize::from(negative);
    let (whole, whole_digits) = digits(text.get(start..)?, 0);
    let mut end = start + whole_digits;
    let (mut mantissa, mut scale) = (whole, 0);
    if text.get(end) == Some(&b'.') {
        (mantissa, scale) = digits(&text[end + 1..], whole);
        end += 1 + scale;
        if scale == 0 {
            return None;
        }
    }
    let leading_zero = whole_digits > 1 && text[start] == b'0';
    let exponent = matches!(text.get(end), Some(b'e' | b'E'));
    if whole_digits == 0 || leading_zero || whole_digits + scale > 18 || exponent {
        return None;
    }
    let size = mantissa.cast_signed() as f64 / TENS[scale];
    if (size.to_bits() & DROPPED).abs_diff(MIDDLE) <= 2 {
        return None;
    }
    #[expect(clippy::cast_possible_truncation, reason = "rounding to the nearest value is intended")]
    let size = size as f32;
    Some((if negative { -size } else { size }, end))
}

#[rustfmt::skip]
const TENS: [f64; 19] =
    [1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18];

/// Appends the leading digits of `text` to a mantissa. Returns it and the number of digits. After 18 digits the mantissa is not
/// meaningful.
#[inline]
fn digits(text: &[u8], mut mantissa: u64) -> (u64, usize) {
    let mut count = 0;
    for byte in text {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            break;
        }
        mantissa = mantissa.wrapping_mul(10).wrapping_add(u64::from(digit));
        count += 1;
    }
    (mantissa, count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn quick(text: &str) -> Option<f32> {
        let mut body = text.to_owned();
        body.push(',');
        quick_single(body.as_bytes(), 0).map(|(single, end)| {
            assert_eq!(end, text.len(), "{text}: the whole text is the number");
            single
        })
    }

    #[test]
    fn long_numbers_exponents_and_invalid_text_are_left_to_the_general_algorithm() {
        for text in [
            "",
            "-",
            ".5",
            "1.",
            "-.5",
            "01",
            "00.5",
            "1e5",
            "1.5E3",
            "1234567890123456789",
            "0.000000000000000001",
            "x",
        ] {
            assert_eq!(quick_single(text.as_bytes(), 0), None, "{text}");
        }
        assert_eq!(quick_single(b"5", 1), None);
        assert_eq!(quick("-0").map(f32::to_bits), Some((-0.0f32).to_bits()));
        assert_eq!(quick("0.30000000000000004"), Some(0.3));
        assert_eq!(quick("999999999999999999"), Some(1e18));
    }

    proptest! {
        #[test]
        fn plain_numbers_equal_the_standard_library(text in "-?(0|[1-9][0-9]{0,11})(\\.[0-9]{1,14})?") {
            if let Some(read) = quick(&text) {
                prop_assert_eq!(read.to_bits(), text.parse::<f32>().unwrap().to_bits(), "{}", text);
            }
        }

        /// Close to the middle between two `f32`, where rounding twice can be wrong.
        #[test]
        fn numbers_near_the_middle_equal_the_standard_library(bits in 0x3000_0000u32..0x5d00_0000, digits in 0usize..18, off in -3i64..=3) {
            let (low, high) = (f64::from(f32::from_bits(bits)), f64::from(f32::from_bits(bits + 1)));
            let near = f64::from_bits(low.midpoint(high).to_bits().wrapping_add_signed(off));
            for text in [format!("{near:.digits$}"), format!("{near}")] {
                if let Some(read) = quick(&text) {
                    prop_assert_eq!(read.to_bits(), text.parse::<f32>().unwrap().to_bits(), "{}", text);
                }
            }
        }
    }
}
