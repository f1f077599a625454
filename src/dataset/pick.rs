//! Which records are wanted.

use super::columns::{Heads, times};
use super::error::Error;
use crate::model::{Role, Version};
use arrow_array::{BooleanArray, RecordBatch};
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::statistics::Statistics;

/// Which records are wanted; the default is everything that somebody was answered.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pick {
    /// Microseconds since 1970: from this one on …
    pub from: Option<i64>,
    /// … to before this one.
    pub to: Option<i64>,
    /// Empty: all.
    pub versions: Vec<Version>,
    /// Empty: all.
    pub arms: Vec<String>,
    /// Empty: those that answer callers, primary and pinned.
    pub roles: Vec<Role>,
    pub request_id: Option<String>,
}

/// Reads an RFC 3339 time, or a date, which is its first moment in UTC; in microseconds since 1970.
///
/// # Errors
/// When it is neither.
pub fn parse_time(text: &str) -> Result<i64, Error> {
    let date = || text.parse::<Date>().ok()?.to_zoned(TimeZone::UTC).ok().map(|zoned| zoned.timestamp());
    // A date-like text that goes on is no date.
    let date = if text.len() == "2026-11-01".len() { date() } else { None };
    let time = date.or_else(|| text.parse::<Timestamp>().ok());
    time.map(Timestamp::as_microsecond).ok_or_else(|| {
        let example = "a time such as 2026-11-01T08:30:00Z, or a date such as 2026-11-01";
        Error::Usage(format!("{text:?} is no time: expected {example}"))
    })
}

impl Pick {
    const ANSWERING: [Role; 2] = [Role::Primary, Role::Pinned];

    fn roles(&self) -> &[Role] {
        if self.roles.is_empty() { &Pick::ANSWERING } else { &self.roles }
    }

    #[must_use]
    pub(super) fn wants_version(&self, version: Version) -> bool {
        self.versions.is_empty() || self.versions.contains(&version)
    }

    /// Whether records of this day (UTC) can be wanted.
    #[must_use]
    pub(super) fn wants_date(&self, date: Date) -> bool {
        let midnight = |date: Date| date.to_zoned(TimeZone::UTC).ok().map(|zoned| zoned.timestamp().as_microsecond());
        let begins_late = midnight(date).zip(self.to).is_some_and(|(begins, to)| begins >= to);
        let ends = date.tomorrow().ok().and_then(midnight);
        let ends_early = ends.zip(self.from).is_some_and(|(ends, from)| ends <= from);
        !begins_late && !ends_early
    }

    /// Whether a row group can hold a record that is wanted, as far as its statistics tell.
    #[must_use]
    pub(super) fn may_be_in(&self, group: &RowGroupMetaData) -> bool {
        let statistics = |name: &str| {
            let column = group.columns().iter().find(|column| column.column_path().string() == name)?;
            column.statistics()
        };
        // Bounds of texts may be cut, and then lie below and above what they bound.
        let may_be = |name: &str, wanted: &[&str]| {
            let bounds = statistics(name).and_then(|s| Some((s.min_bytes_opt()?, s.max_bytes_opt()?)));
            let within = |(least, most): (&[u8], &[u8])| {
                wanted.iter().any(|text| least <= text.as_bytes() && text.as_bytes() <= most)
            };
            bounds.is_none_or(within)
        };
        let in_time = match statistics("ts") {
            Some(Statistics::Int64(ts)) => {
                ts.max_opt().zip(self.from).is_none_or(|(last, from)| *last >= from)
                    && ts.min_opt().zip(self.to).is_none_or(|(first, to)| *first < to)
            }
            _ => true,
        };
        in_time
            && may_be("role", &self.roles().iter().map(|role| role.as_str()).collect::<Vec<_>>())
            && (self.arms.is_empty() || may_be("arm", &self.arms.iter().map(String::as_str).collect::<Vec<_>>()))
            && self.request_id.as_ref().is_none_or(|id| may_be("request_id", &[id]))
    }

    /// Of each record, whether it is wanted; its version is not looked at, as all of a file are of one.
    ///
    /// # Errors
    /// When a column is missing or of another type.
    pub(super) fn mask(&self, batch: &RecordBatch) -> Result<BooleanArray, Error> {
        let heads = Heads::of(batch)?;
        let ts = times(batch, "ts")?;
        let wanted = |i: usize| {
            self.from.is_none_or(|from| ts.value(i) >= from)
                && self.to.is_none_or(|to| ts.value(i) < to)
                && self.roles().iter().any(|role| role.as_str() == heads.role.value(i))
                && (self.arms.is_empty() || self.arms.iter().any(|arm| arm == heads.arm.value(i)))
                && self.request_id.as_ref().is_none_or(|id| id == heads.request_id.value(i))
        };
        Ok((0..batch.num_rows()).map(|i| Some(wanted(i))).collect())
    }
}
