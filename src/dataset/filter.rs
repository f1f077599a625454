//! Selects records.

use super::columns::{KeyColumns, int64s, texts, times};
use super::error::Error;
use super::logged::LoggedRequest;
use crate::model::{Role, Version};
use crate::record::PredictionView;
use arrow_array::{Array, BooleanArray, RecordBatch};
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::statistics::Statistics;

/// Which records to read. The default is all records of requests that were answered to a caller.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filter {
    /// Microseconds since 1970: records from this time on …
    pub from: Option<i64>,
    /// … and before this time.
    pub to: Option<i64>,
    /// Empty means all.
    pub versions: Vec<Version>,
    /// Empty means all.
    pub arms: Vec<String>,
    /// Empty means primary and pinned, the roles that answer callers.
    pub roles: Vec<Role>,
    pub request_id: Option<String>,
    /// The route key as it may be stored: as it is, or hashed. Empty means all.
    pub route_keys: Vec<String>,
    pub status: Option<Status>,
    /// Only requests that took longer, in microseconds.
    pub slower_than: Option<i64>,
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// With any code but `ok`.
    Error,
    /// With this code, or `ok`.
    Is(String),
}

impl Status {
    fn matches(&self, status: &str) -> bool {
        match self {
            Status::Error => status != LoggedRequest::OK,
            Status::Is(wanted) => status == wanted,
        }
    }
}

/// Parses an RFC 3339 time, or a date, which means its start in UTC. Returns microseconds since 1970.
///
/// # Errors
/// When it is neither.
pub fn parse_time(text: &str) -> Result<i64, Error> {
    let date = || text.parse::<Date>().ok()?.to_zoned(TimeZone::UTC).ok().map(|zoned| zoned.timestamp());
    // `Date` would also accept a longer text.
    let date = if text.len() == "2026-11-01".len() { date() } else { None };
    let time = date.or_else(|| text.parse::<Timestamp>().ok());
    time.map(Timestamp::as_microsecond).ok_or_else(|| {
        let example = "a time such as 2026-11-01T08:30:00Z, or a date such as 2026-11-01";
        Error::Usage(format!("{text:?} is not a time: expected {example}"))
    })
}

impl Filter {
    const ANSWERING: [Role; 2] = [Role::Primary, Role::Pinned];

    fn roles(&self) -> &[Role] {
        if self.roles.is_empty() { &Filter::ANSWERING } else { &self.roles }
    }

    #[must_use]
    pub(super) fn matches_version(&self, version: Version) -> bool {
        self.versions.is_empty() || self.versions.contains(&version)
    }

    /// The first and the last day (UTC) of records that it can match.
    #[must_use]
    pub(super) fn days(&self) -> (Option<Date>, Option<Date>) {
        let day = |ts: i64| Timestamp::from_microsecond(ts).ok().map(|ts| ts.to_zoned(TimeZone::UTC).date());
        (self.from.and_then(day), self.to.and_then(day))
    }

    /// Whether the filter can match records of this day (UTC).
    #[must_use]
    pub(super) fn matches_date(&self, date: Date) -> bool {
        let midnight = |date: Date| date.to_zoned(TimeZone::UTC).ok().map(|zoned| zoned.timestamp().as_microsecond());
        let starts_too_late = midnight(date).zip(self.to).is_some_and(|(start, to)| start >= to);
        let end = date.tomorrow().ok().and_then(midnight);
        let ends_too_early = end.zip(self.from).is_some_and(|(end, from)| end <= from);
        !starts_too_late && !ends_too_early
    }

    /// Whether a row group can hold a matching record, according to its statistics.
    #[must_use]
    pub(super) fn may_match(&self, group: &RowGroupMetaData) -> bool {
        let statistics = |name: &str| {
            let column = group.columns().iter().find(|column| column.column_path().string() == name)?;
            column.statistics()
        };
        // The bounds of strings may be truncated. Then they are below and above the real bounds.
        let bounds = |name: &str| statistics(name).and_then(|s| Some((s.min_bytes_opt()?, s.max_bytes_opt()?)));
        let may_contain = |name: &str, texts: &[&str]| {
            let bounds = bounds(name);
            let within =
                |(min, max): (&[u8], &[u8])| texts.iter().any(|text| min <= text.as_bytes() && text.as_bytes() <= max);
            bounds.is_none_or(within)
        };
        let in_time = match statistics("ts") {
            Some(Statistics::Int64(ts)) => {
                ts.max_opt().zip(self.from).is_none_or(|(last, from)| *last >= from)
                    && ts.min_opt().zip(self.to).is_none_or(|(first, to)| *first < to)
            }
            _ => true,
        };
        let has_status = match &self.status {
            None => true,
            Some(Status::Is(wanted)) => may_contain("status", &[wanted]),
            Some(Status::Error) => {
                bounds("status") != Some((LoggedRequest::OK.as_bytes(), LoggedRequest::OK.as_bytes()))
            }
        };
        let is_slow = match (self.slower_than, statistics("latency_us")) {
            (Some(us), Some(Statistics::Int64(latency))) => latency.max_opt().is_none_or(|slowest| *slowest > us),
            _ => true,
        };
        in_time
            && has_status
            && is_slow
            && may_contain("role", &self.roles().iter().map(|role| role.as_str()).collect::<Vec<_>>())
            && (self.arms.is_empty() || may_contain("arm", &self.arms.iter().map(String::as_str).collect::<Vec<_>>()))
            && self.request_id.as_ref().is_none_or(|id| may_contain("request_id", &[id]))
            && (self.route_keys.is_empty()
                || may_contain("route_key", &self.route_keys.iter().map(String::as_str).collect::<Vec<_>>()))
    }

    /// The values that Bloom filters of a file can rule out, by column.
    #[must_use]
    pub(super) fn looked_up(&self) -> Vec<(&'static str, Vec<&str>)> {
        let id = self.request_id.iter().map(|id| ("request_id", vec![id.as_str()]));
        let keys: Vec<&str> = self.route_keys.iter().map(String::as_str).collect();
        id.chain((!keys.is_empty()).then_some(("route_key", keys))).collect()
    }

    /// The columns that [`Filter::mask`] needs, besides those that it always needs.
    #[must_use]
    pub(super) fn more_columns(&self) -> Vec<&'static str> {
        let columns = [
            ("route_key", !self.route_keys.is_empty()),
            ("status", self.status.is_some()),
            ("latency_us", self.slower_than.is_some()),
        ];
        columns.into_iter().filter(|(_, needed)| *needed).map(|(name, _)| name).collect()
    }

    /// Whether a prediction in a segment matches. The version is checked too.
    #[must_use]
    pub(super) fn matches_view(&self, version: Version, view: &PredictionView) -> bool {
        self.matches_version(version)
            && self.from.is_none_or(|from| view.ts >= from)
            && self.to.is_none_or(|to| view.ts < to)
            && self.roles().contains(&view.role)
            && (self.arms.is_empty() || self.arms.iter().any(|arm| arm == view.arm))
            && self.request_id.as_ref().is_none_or(|id| id == view.request_id)
            && (self.route_keys.is_empty() || view.route_key.is_some_and(|key| self.is_route_key(key)))
            && self.status.as_ref().is_none_or(|status| status.matches(view.status))
            && self.slower_than.is_none_or(|us| view.latency_us > us)
    }

    fn is_route_key(&self, stored: &str) -> bool {
        self.route_keys.iter().any(|key| key == stored)
    }

    /// Which records of a batch match. The version is not checked, because all records of a file have the same.
    ///
    /// # Errors
    /// When a column is missing or of another type.
    pub(super) fn mask(&self, batch: &RecordBatch) -> Result<BooleanArray, Error> {
        let keys = KeyColumns::of(batch)?;
        let ts = times(batch, "ts")?;
        let route_key = if self.route_keys.is_empty() { None } else { Some(texts(batch, "route_key")?) };
        let status =
            self.status.as_ref().map(|wanted| Ok::<_, Error>((wanted, texts(batch, "status")?))).transpose()?;
        let latency = self.slower_than.map(|us| Ok::<_, Error>((us, int64s(batch, "latency_us")?))).transpose()?;
        let matches = |i: usize| {
            self.from.is_none_or(|from| ts.value(i) >= from)
                && self.to.is_none_or(|to| ts.value(i) < to)
                && self.roles().iter().any(|role| role.as_str() == keys.role.value(i))
                && (self.arms.is_empty() || self.arms.iter().any(|arm| arm == keys.arm.value(i)))
                && self.request_id.as_ref().is_none_or(|id| id == keys.request_id.value(i))
                && route_key.is_none_or(|keys| keys.is_valid(i) && self.is_route_key(keys.value(i)))
                && status.is_none_or(|(wanted, found)| wanted.matches(found.value(i)))
                && latency.is_none_or(|(us, found)| found.value(i) > us)
        };
        Ok((0..batch.num_rows()).map(|i| Some(matches(i))).collect())
    }
}
