//! The text of a token: a prefix that secret scanners find, 256 random bits, and a checksum.
//!
//! `sluice_` is followed by 43 letters and digits (the random bits in base 62) and 6 more (the CRC-32 of everything before). A scanner
//! finds it with `sluice_[0-9A-Za-z]{49}` and can tell a token from a text that only looks like one without asking a server; a mistyped
//! token is refused before it is hashed.

use sha2::{Digest, Sha256};

pub(super) const PREFIX: &str = "sluice_";
const RANDOM: usize = 43;
const CHECKSUM: usize = 6;
const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// The SHA-256 hash of a token's whole text.
pub(super) type Hash = [u8; 32];

/// The text of a new token.
///
/// # Errors
/// When the system has no random bits.
pub(super) fn generate() -> std::io::Result<String> {
    let mut bits = [0; 32];
    getrandom::fill(&mut bits).map_err(std::io::Error::other)?;
    Ok(of_bits(bits))
}

pub(super) fn of_bits(bits: [u8; 32]) -> String {
    let mut text = String::with_capacity(PREFIX.len() + RANDOM + CHECKSUM);
    text.push_str(PREFIX);
    push_digits(&mut text, bits, RANDOM);
    let sum = checksum(&text);
    text.extend(sum.map(char::from));
    text
}

/// The CRC-32 of a text as digits in base 62, the lowest first.
fn checksum(text: &str) -> [u8; CHECKSUM] {
    let mut rest = crc32fast::hash(text.as_bytes());
    std::array::from_fn(|_| {
        let digit = DIGITS[rest as usize % DIGITS.len()];
        rest /= 62;
        digit
    })
}

/// Adds this many digits of a number in base 62, the lowest first. 62 to the power of 43 is more than 2 to the power of 256.
fn push_digits(text: &mut String, mut number: [u8; 32], count: usize) {
    for _ in 0..count {
        let mut rest = 0_usize;
        for byte in &mut number {
            let value = rest << 8 | usize::from(*byte);
            *byte = u8::try_from(value / 62).unwrap_or(u8::MAX);
            rest = value % 62;
        }
        text.push(char::from(DIGITS[rest]));
    }
}

/// Whether a text has the form of a token, and its checksum is right.
pub(super) fn is_whole(text: &str) -> bool {
    let Some(digits) = text.strip_prefix(PREFIX) else { return false };
    if digits.len() != RANDOM + CHECKSUM || !digits.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return false;
    }
    let (before, sum) = text.split_at(text.len() - CHECKSUM);
    checksum(before) == sum.as_bytes()
}

pub(super) fn hash(text: &str) -> Hash {
    Sha256::digest(text.as_bytes()).into()
}
