//! Search: lists requests of the log, the newest first, a page at a time.

use super::disagreements::{Differences, differences};
use super::error::Error;
use super::filter::Filter;
use super::hits::{Hit, Newest, collect};
use super::sources::NotRead;
use super::units::{Missing, Number, Units};
use crate::compare::Tolerance;
use crate::model::{ModelName, Role, Version};
use crate::record::{About, PredictionView};
use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::time::Instant;

/// What to look for.
#[derive(Debug, Clone)]
pub struct Search<'a> {
    pub model: &'a ModelName,
    pub data: &'a Path,
    pub filter: Filter,
    /// Only requests with an output of NaN or infinity.
    pub non_finite: bool,
    /// Only shadows' answers that differ from the primary's by more than this.
    pub disagreed: Option<Tolerance>,
    /// At most so many requests, 1 or more.
    pub limit: usize,
    /// Where the page before this one ended.
    pub after: Option<Cursor>,
    /// The search ends after the first part of the log that it has searched by then. `None`: it goes to the beginning of the log.
    pub until: Option<Instant>,
}

/// A place in the log: after some requests of one segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    segment: Number,
    /// The time of the last request before this place.
    ts: i64,
    /// The number of requests of this time before this place.
    skip: usize,
}

/// The most requests of one time that a cursor skips.
const MAX_SKIP: usize = 100_000;

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.segment, self.ts, self.skip)
    }
}

impl FromStr for Cursor {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Cursor, &'static str> {
        const EXPECTED: &str = "expected what an earlier answer has as `next`";
        let parts: Vec<&str> = text.split('.').collect();
        let [segment, ts, skip] = parts[..] else { return Err(EXPECTED) };
        let skip = skip.parse().ok().filter(|skip| *skip <= MAX_SKIP).ok_or(EXPECTED)?;
        Ok(Cursor { segment: segment.parse().map_err(|_| EXPECTED)?, ts: ts.parse().map_err(|_| EXPECTED)?, skip })
    }
}

/// Why a search ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// At the beginning of the log: there are no more requests.
    Beginning,
    /// There were enough.
    Limit,
    /// There was no more time.
    Time,
}

/// A page of requests.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    pub requests: Vec<Hit>,
    /// Where the next page begins; `None` at the beginning of the log.
    pub next: Option<Cursor>,
    pub ended: Ended,
    /// Records whose columns were read. Files that can hold no matching record are not among them.
    pub records: u64,
    /// Files that retention deleted while they were searched.
    pub deleted_files: usize,
    /// Files that are damaged. What they hold is not in the answer.
    pub not_read: NotRead,
}

/// Lists the newest requests that match. Memory is bounded: by one segment, and by the row groups that one became. `as_found` gets the requests of each
/// segment as soon as it was searched, in the order of the list.
///
/// # Errors
/// When a segment or a directory cannot be read. A damaged file is left out, and named.
pub fn search(what: &Search, mut as_found: impl FnMut(&[Hit])) -> Result<Found, Error> {
    let units = Units::list(what.data, what.model)?;
    let mut missing = Missing::default();
    let mut found = page(what, &units, &mut missing, &mut as_found)?;
    (found.deleted_files, found.not_read) = (missing.deleted, missing.not_read);
    Ok(found)
}

fn page(what: &Search, units: &Units, missing: &mut Missing, as_found: &mut dyn FnMut(&[Hit])) -> Result<Found, Error> {
    let mut found = Found {
        requests: Vec::new(),
        next: None,
        ended: Ended::Beginning,
        records: 0,
        deleted_files: 0,
        not_read: NotRead::default(),
    };
    let limit = what.limit.max(1);
    let mut first = true;
    for number in units.newest_first() {
        if what.after.is_some_and(|after| number > after.segment) {
            continue;
        }
        if !first && what.until.is_some_and(|until| Instant::now() >= until) {
            found.next = Some(Cursor { segment: number, ts: i64::MAX, skip: 0 });
            found.ended = Ended::Time;
            return Ok(found);
        }
        first = false;
        let begin = what.after.filter(|after| after.segment == number);
        let begin = begin.unwrap_or(Cursor { segment: number, ts: i64::MAX, skip: 0 });
        let room = limit - found.requests.len();
        let mut hits = unit(what, units, number, begin, room, (&mut found.records, &mut *missing))?;
        let skipped = hits.iter().take(begin.skip).take_while(|hit| hit.ts == begin.ts).count();
        let more = hits.len() > skipped + room || (hits.len() == skipped + room && units.before(number).is_some());
        let before = found.requests.len();
        if !more {
            found.requests.extend(hits.drain(skipped..));
            as_found(&found.requests[before..]);
            continue;
        }
        hits.truncate(skipped + room);
        let ts = hits.last().map_or(begin.ts, |hit| hit.ts);
        let skip = hits.iter().rev().take_while(|hit| hit.ts == ts).count();
        found.requests.extend(hits.drain(skipped..));
        as_found(&found.requests[before..]);
        found.next = Some(Cursor { segment: number, ts, skip });
        found.ended = Ended::Limit;
        return Ok(found);
    }
    Ok(found)
}

/// The newest matching requests of a unit from a place on: those before it that have its time, and one more than there is room for.
fn unit(
    what: &Search,
    units: &Units,
    number: Number,
    begin: Cursor,
    room: usize,
    (records, missing): (&mut u64, &mut Missing),
) -> Result<Vec<Hit>, Error> {
    let most = room + begin.skip + 1;
    let mut newest = Newest::new(most, begin.ts);
    let matches = |about: &About, view: &PredictionView| {
        view.ts <= begin.ts
            && what.filter.matches_view(about.version, view)
            && (!what.non_finite || view.has_non_finite(about))
    };
    let Some(tolerance) = what.disagreed else {
        let sources = units.open(number, &what.filter, Some(most), &matches, missing)?;
        *records += collect(units, &sources, &what.filter, what.non_finite, &|_, _, _| true, &mut newest, missing)?;
        return Ok(newest.finish());
    };
    let filter = Filter { roles: vec![Role::Shadow], ..what.filter.clone() };
    let of_shadows =
        |about: &About, view: &PredictionView| view.ts <= begin.ts && filter.matches_view(about.version, view);
    let shadows = units.open(number, &filter, None, &of_shadows, missing)?;
    let mut differ: Differences = differences(units, number, &shadows, &filter, tolerance, missing)?;
    let key = |version: Version, id: &str, ts: i64| (id.to_owned(), ts, version);
    let wanted = |version, id: &str, ts| differ.contains_key(&key(version, id, ts));
    *records += collect(units, &shadows, &filter, what.non_finite, &wanted, &mut newest, missing)?;
    let mut hits = newest.finish();
    for hit in &mut hits {
        hit.difference = differ.remove(&key(hit.version, &hit.request_id, hit.ts));
    }
    Ok(hits)
}
