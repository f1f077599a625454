//! Versions that take longer than on their first day.

use crate::alerts::{About, Finding, Rule, Severity};
use crate::history::{Compared, FirstDay, History, LIMIT, Measure, seconds_now};
use crate::ledger::rfc3339;
use crate::model::{ModelName, Version};
use crate::registry::Reader;
use jiff::Timestamp;
use std::time::{Duration, Instant};

/// How often the points are compared: a new one comes every five minutes.
const EVERY: Duration = Duration::from_mins(1);

/// What was found last.
#[derive(Debug)]
pub(super) struct Watched {
    reader: Reader,
    history: History,
    found: Vec<Finding>,
    next: Option<Instant>,
    was_ready: bool,
}

impl Watched {
    pub(super) fn new(reader: Reader, history: History) -> Watched {
        Watched { reader, history, found: Vec::new(), next: None, was_ready: false }
    }

    pub(super) fn look(&mut self) -> Vec<Finding> {
        let snapshot = self.reader.snapshot();
        // At the start models come after the first look, which has not seen them.
        let has_begun = snapshot.ready && !std::mem::replace(&mut self.was_ready, snapshot.ready);
        if has_begun || self.next.is_none_or(|next| Instant::now() >= next) {
            let limit = |model: &ModelName| {
                let entry = snapshot.model(model.as_str())?;
                Some(entry.first_day_limit().unwrap_or(LIMIT))
            };
            // One pass over the points of all models.
            let against = self.history.all_against_first_day(seconds_now(), limit).into_iter();
            let found = against.filter_map(|of| finding(&of.model, of.version, &of.first_day, &of.compared));
            self.found = found.collect();
            self.next = Some(Instant::now() + EVERY);
        }
        self.found.clone()
    }
}

fn finding(model: &ModelName, version: Version, day: &FirstDay, compared: &[Compared]) -> Option<Finding> {
    let slower: Vec<&Compared> = compared.iter().filter(|one| one.slower).collect();
    let words = |one: &&Compared| {
        let now = one.now.map_or_else(|| "much more now".to_owned(), |now| format!("{now:.0} µs in the last 24 hours"));
        format!("{} was {:.0} µs on its first day and is {now}", one.measure.words(), one.first.median)
    };
    let words: Vec<String> = slower.iter().map(words).collect();
    let what_to_do = if slower.iter().any(|one| one.measure == Measure::Engine) {
        format!(
            "compare its inputs with those of its first day (`sluicegate drift {model}`), and look for other load on the machine"
        )
    } else {
        "its time in the engine is as it was: look for more load, longer queues or slower clients".to_owned()
    };
    let since = Timestamp::from_second(day.from.into()).unwrap_or_default();
    (!slower.is_empty()).then(|| Finding {
        about: About::version(Rule::Slower, model, version),
        severity: Severity::Warning,
        summary: format!("version {version} of {model} is slower than on its first day ({}): {}", rfc3339(since), words.join("; ")),
        how_sure: "most of a day, or hours that are far beyond the first day: in 50 simulated years of a version, noise alone did that five times where the limit was 1.5".to_owned(),
        what_to_do,
        since: None,
        training: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Usual;

    #[test]
    fn a_finding_says_what_is_slower_and_where_to_look() {
        let usual = Usual { points: 288, median: 1000.0, upper_quartile: 1100.0, high: 1300.0 };
        let day = FirstDay { from: 1_700_000_000, to: 1_700_086_400, p50: Some(usual), p99: None, engine: Some(usual) };
        let of = |measure, now, slower| Compared { measure, first: usual, now, slower };
        let (model, version) = ("m".parse().unwrap(), "3".parse().unwrap());
        let found = |compared: &[Compared]| finding(&model, version, &day, compared);
        assert_eq!(found(&[of(Measure::P50, Some(1000.0), false)]), None);
        let latency = found(&[of(Measure::P50, Some(2000.4), true), of(Measure::Engine, Some(900.0), false)]).unwrap();
        let words = "the median latency was 1000 µs on its first day and is 2000 µs in the last 24 hours";
        assert!(latency.summary.ends_with(words), "{}", latency.summary);
        assert!(latency.what_to_do.contains("queues"), "{}", latency.what_to_do);
        let engine = found(&[of(Measure::Engine, None, true)]).unwrap();
        assert!(engine.summary.contains("is much more now") && engine.what_to_do.contains("drift m"), "{engine:?}");
    }
}
