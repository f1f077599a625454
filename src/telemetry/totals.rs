//! What a version has done since it was loaded, read from its series: nothing is counted twice for it.

use super::arm::VersionMetrics;
use super::names;
use std::time::Duration;

/// Counts and times of one version, over all arms.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct VersionTotals {
    /// Requests that were answered: from the body read to the answer ready.
    pub succeeded: Total,
    /// Requests that failed.
    pub failed: Total,
    /// Requests that waited for a worker.
    pub queued: Total,
    /// Runs of the engine.
    pub ran: Total,
}

/// A number of events, and the time they took together.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Total {
    pub count: u64,
    pub time: Duration,
}

impl VersionMetrics {
    /// The totals now. Renders the series of the version, so this is for a person or a program that asks now and then.
    #[must_use]
    pub(crate) fn totals(&self) -> VersionTotals {
        totals_of(&self.rendered())
    }
}

/// Reads the sums and counts of the histograms in the text of a scrape.
fn totals_of(text: &str) -> VersionTotals {
    let mut totals = VersionTotals::default();
    for line in text.lines() {
        let Some((series, value)) = line.rsplit_once(' ') else { continue };
        let total = match () {
            () if series.starts_with(names::REQUEST_SECONDS_M.name) => {
                if series.contains("status=\"ok\"") {
                    &mut totals.succeeded
                } else {
                    &mut totals.failed
                }
            }
            () if series.starts_with(names::QUEUE_SECONDS_M.name) => &mut totals.queued,
            () if series.starts_with(names::INFER_SECONDS_M.name) => &mut totals.ran,
            () => continue,
        };
        let name = series.split('{').next().unwrap_or_default();
        if name.ends_with("_count") {
            total.count += value.parse::<u64>().unwrap_or_default();
        } else if name.ends_with("_sum") {
            let seconds = value.parse::<f64>().unwrap_or_default();
            total.time += Duration::try_from_secs_f64(seconds).unwrap_or_default();
        }
    }
    totals
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Code;
    use crate::telemetry::{ArmMetrics, Ended, Scope};
    use std::sync::Arc;

    #[test]
    fn the_totals_are_those_of_the_series() {
        let metrics = VersionMetrics::new(Arc::new(Scope::new()), "m".parse().unwrap(), "1".parse().unwrap());
        assert_eq!(metrics.totals(), VersionTotals::default());
        let millis = Duration::from_millis;
        for arm in ["a", "b"] {
            let arm = ArmMetrics::new(Arc::clone(&metrics), arm);
            arm.ended(&Ended::of(None, millis(4), true));
            arm.ended(&Ended::of(Some(Code::Overloaded), millis(1), true));
        }
        metrics.ran(millis(3), 1);
        metrics.queued(millis(2));
        let totals = metrics.totals();
        let near = |total: Total, count, time: Duration| {
            assert_eq!(total.count, count);
            assert!(total.time.abs_diff(time) < Duration::from_micros(1), "{total:?}");
        };
        near(totals.succeeded, 2, millis(8));
        near(totals.failed, 2, millis(2));
        near(totals.ran, 1, millis(3));
        near(totals.queued, 1, millis(2));
    }
}
