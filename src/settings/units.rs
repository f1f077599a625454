//! Durations and sizes as people write them: a number with a unit.

use std::time::Duration;

/// Units with their nanoseconds, largest first.
const DURATIONS: [(&str, u64); 8] = [
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("µs", 1_000),
    ("ns", 1),
];

/// Units with their bytes. Powers of 1,000 and of 1,024 have different names (IEC 80000-13).
const SIZES: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
];

/// Reads whole numbers with units: `200ms`, `10m`, `1h30m`. `None` for anything else, also for a number without a unit.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    let mut nanos: u64 = 0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let (number, after) = leading_number(rest)?;
        let end = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (_, unit) = DURATIONS.iter().find(|(name, _)| *name == after[..end].trim())?;
        nanos = number.checked_mul(*unit).and_then(|n| nanos.checked_add(n))?;
        rest = &after[end..];
    }
    Some(Duration::from_nanos(nanos))
}

/// Reads a whole number with a unit: `64MiB`, `1GB`. Upper and lower case are equal, because bits are not accepted.
pub(super) fn parse_bytes(text: &str) -> Option<u64> {
    let (number, unit) = leading_number(text.trim())?;
    let (_, bytes) = SIZES.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit.trim()))?;
    number.checked_mul(*bytes)
}

fn leading_number(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    Some((text[..end].parse().ok()?, &text[end..]))
}

/// Formats a duration in the largest unit that gives a whole number: `10m`, `1500ms`.
#[must_use]
pub fn show_duration(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    let whole =
        DURATIONS.iter().find(|(_, unit)| nanos >= u128::from(*unit) && nanos.is_multiple_of(u128::from(*unit)));
    whole.map_or_else(|| "0s".to_owned(), |(name, unit)| format!("{}{name}", nanos / u128::from(*unit)))
}

/// Formats a size in the largest unit that gives a whole number: `64MiB`, `1GB`.
#[must_use]
pub fn show_bytes(bytes: u64) -> String {
    let whole =
        SIZES.iter().filter(|(_, unit)| bytes >= *unit && bytes.is_multiple_of(*unit)).max_by_key(|(_, unit)| *unit);
    whole.map_or_else(|| "0B".to_owned(), |(name, unit)| format!("{}{name}", bytes / unit))
}
