//! Exemplars: for each bucket of a latency histogram the last traced request in it, so that a slow bucket leads to a trace.
//!
//! The exporter of `metrics` has none, so they are kept here and added to its lines (`openmetrics.rs`).

use super::names::{self, Kind};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError, TryLockError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// One traced request.
#[derive(Debug, Clone, PartialEq)]
struct Exemplar {
    trace: String,
    seconds: f64,
    at: SystemTime,
}

/// An arm and a status. Both are of bounded sets.
type Series = (String, &'static str);

/// The exemplars of one version, by series and bucket. A series has one for each upper bound and one for `+Inf`.
#[derive(Debug, Default)]
pub(super) struct Exemplars(Mutex<BTreeMap<Series, Vec<Option<Exemplar>>>>);

fn bounds() -> &'static [f64] {
    let Kind::Histogram(bounds) = names::REQUEST_SECONDS_M.kind else { return &[] };
    bounds
}

impl Exemplars {
    /// Notes a traced request. Does nothing where another thread uses the table: the next request is as good.
    pub(super) fn note(&self, arm: &str, status: &'static str, took: Duration, trace: String) {
        let mut table = match self.0.try_lock() {
            Ok(table) => table,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        let (seconds, bounds) = (took.as_secs_f64(), bounds());
        let buckets = table.entry((arm.to_owned(), status)).or_insert_with(|| vec![None; bounds.len() + 1]);
        let bucket = bounds.partition_point(|bound| *bound < seconds);
        buckets[bucket] = Some(Exemplar { trace, seconds, at: SystemTime::now() });
    }

    /// Adds what follows a line of the histogram, by the line's labels as [`key`] writes them.
    pub(super) fn add_to(&self, all: &mut BTreeMap<String, String>, model: &str, version: &str) {
        let table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for ((arm, status), buckets) in &*table {
            for (bucket, exemplar) in buckets.iter().enumerate() {
                let Some(exemplar) = exemplar else { continue };
                let bound = bounds().get(bucket).copied().unwrap_or(f64::INFINITY);
                all.insert(key(model, version, arm, status, bound), exemplar.to_string());
            }
        }
    }
}

/// The labels of a line of the histogram, without the braces and with the bound as [`canonical`] writes it.
fn key(model: &str, version: &str, arm: &str, status: &str, bound: f64) -> String {
    let bound = canonical(bound);
    format!("model=\"{model}\",version=\"{version}\",arm=\"{arm}\",status=\"{status}\",le=\"{bound}\"")
}

/// As OpenMetrics has it behind a sample.
impl std::fmt::Display for Exemplar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let at = self.at.duration_since(UNIX_EPOCH).unwrap_or_default();
        write!(f, " # {{trace_id=\"{}\"}} {} {}.{:03}", self.trace, self.seconds, at.as_secs(), at.subsec_millis())
    }
}

/// A bound as OpenMetrics wants it, which is how Go writes a float: `1.0`, `0.0001`, `2.5e-06`.
pub(super) fn canonical(bound: f64) -> String {
    if bound.is_infinite() {
        return "+Inf".to_owned();
    }
    if bound != 0.0 && bound.abs() < 1e-4 {
        let text = format!("{bound:e}");
        let (digits, exponent) = text.split_once("e-").unwrap_or((&text, "0"));
        return format!("{digits}e-{exponent:0>2}");
    }
    let mut text = String::new();
    let _ = write!(text, "{bound}");
    if !text.contains('.') {
        text.push_str(".0");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_written_as_openmetrics_wants_them() {
        for (bound, text) in [
            (0.000_05, "5e-05"),
            (0.000_002_5, "2.5e-06"),
            (0.000_1, "0.0001"),
            (0.25, "0.25"),
            (1.0, "1.0"),
            (4096.0, "4096.0"),
            (f64::INFINITY, "+Inf"),
        ] {
            assert_eq!(canonical(bound), text);
        }
    }

    #[test]
    fn the_last_request_of_a_bucket_is_kept() {
        let exemplars = Exemplars::default();
        let note = |micros, trace: &str| exemplars.note("a", "ok", Duration::from_micros(micros), trace.to_owned());
        for (micros, trace) in [(50, "first"), (40, "second"), (60, "third"), (60_000_000, "slow")] {
            note(micros, trace);
        }
        let mut all = BTreeMap::new();
        exemplars.add_to(&mut all, "m", "1");
        let of = |bound: &str| all.get(&format!("model=\"m\",version=\"1\",arm=\"a\",status=\"ok\",le=\"{bound}\""));
        assert!(of("5e-05").unwrap().starts_with(" # {trace_id=\"second\"} 0.00004 "), "{all:?}");
        assert!(of("0.0001").unwrap().contains("third") && of("+Inf").unwrap().contains("slow"), "{all:?}");
        assert_eq!(all.len(), 3, "other buckets have none: {all:?}");
    }
}
