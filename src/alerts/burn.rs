//! How fast requests use up the error budget: several windows with several rates, as in chapter 5 of the SRE workbook
//! (<https://sre.google/workbook/alerting-on-slos/>, "Multiwindow, Multi-Burn-Rate Alerts").
//!
//! A rate of 1 uses up the budget of 30 days in 30 days. An alert needs the rate in a long window, so that it is worth somebody's time, and in a
//! short one, so that it ends soon after the failures end.

use super::rule::Severity;
use crate::model::ModelName;
use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

/// The long and the short window, the rate, and how bad it is. Shares of the budget that are used up in the long window: 2 %, 5 %, 10 %.
const RULES: [(Duration, Duration, f64, Severity); 3] = [
    (Duration::from_hours(1), Duration::from_mins(5), 14.4, Severity::Critical),
    (Duration::from_hours(6), Duration::from_mins(30), 6.0, Severity::Critical),
    (Duration::from_hours(72), Duration::from_hours(6), 1.0, Severity::Warning),
];
/// Fewer failed requests in the long window are chance, whatever their share is.
const LEAST_FAILED: u64 = 10;
/// The width of a bucket and the number of buckets, for windows of up to an hour, six hours and three days.
const RINGS: [(u64, u64); 3] = [(60, 60), (300, 72), (3600, 72)];

/// Counts the requests of all models. 276 buckets of a model take 7 KiB at most, and models without requests take none.
#[derive(Debug)]
pub struct Burn {
    began: Instant,
    models: HashMap<ModelName, Rings>,
    /// The totals of each arm at the last look.
    totals: HashMap<(ModelName, String), (u64, u64)>,
}

/// A model whose budget burns.
#[derive(Debug, Clone, PartialEq)]
pub struct Burning {
    pub model: ModelName,
    pub severity: Severity,
    /// How many times as fast as the budget allows, in the long window.
    pub rate: f64,
    pub window: Duration,
    /// In the long window.
    pub requests: u64,
    pub failed: u64,
}

#[derive(Debug, Default)]
struct Rings([VecDeque<Bucket>; RINGS.len()]);

#[derive(Debug, Clone, Copy)]
struct Bucket {
    index: u64,
    requests: u64,
    failed: u64,
}

impl Burn {
    #[must_use]
    pub fn new(began: Instant) -> Burn {
        Burn { began, models: HashMap::new(), totals: HashMap::new() }
    }

    /// Takes the totals of all arms, each with its model, a name that no other arm of the model has, its requests and its failed requests since
    /// it exists. Returns the models whose requests fail faster than `budget` (a share) allows.
    pub fn look(
        &mut self,
        now: Instant,
        budget: f64,
        arms: impl IntoIterator<Item = (ModelName, String, u64, u64)>,
    ) -> Vec<Burning> {
        let seconds = now.saturating_duration_since(self.began).as_secs();
        let mut seen = HashSet::new();
        for (model, arm, requests, failed) in arms {
            let key = (model, arm);
            let (before, failed_before) = self.totals.insert(key.clone(), (requests, failed)).unwrap_or_default();
            let (new, new_failed) = (requests.saturating_sub(before), failed.saturating_sub(failed_before));
            if new > 0 {
                self.models.entry(key.0.clone()).or_default().add(seconds, new, new_failed.min(new));
            }
            seen.insert(key);
        }
        self.totals.retain(|key, _| seen.contains(key));
        self.models.retain(|_, rings| rings.forget(seconds));
        let burning = |(model, rings): (&ModelName, &Rings)| {
            RULES.iter().enumerate().find_map(|(ring, (long, short, rate, severity))| {
                let (requests, failed) = rings.sum(ring, seconds, *long);
                let (recent, recent_failed) = rings.sum(ring, seconds, *short);
                let of = |failed: u64, requests: u64| failed as f64 / requests.max(1) as f64 / budget;
                let found = of(failed, requests);
                let burns = found >= *rate && of(recent_failed, recent) >= *rate && failed >= LEAST_FAILED;
                let model = model.clone();
                burns.then_some(Burning { model, severity: *severity, rate: found, window: *long, requests, failed })
            })
        };
        let mut all: Vec<Burning> = self.models.iter().filter_map(burning).collect();
        all.sort_by(|a, b| a.model.cmp(&b.model));
        all
    }
}

impl Rings {
    fn add(&mut self, seconds: u64, requests: u64, failed: u64) {
        for (ring, (width, _)) in self.0.iter_mut().zip(RINGS) {
            let index = seconds / width;
            match ring.back_mut().filter(|bucket| bucket.index == index) {
                Some(bucket) => {
                    bucket.requests += requests;
                    bucket.failed += failed;
                }
                None => ring.push_back(Bucket { index, requests, failed }),
            }
        }
    }

    /// Removes what is older than all windows. False when nothing is left.
    fn forget(&mut self, seconds: u64) -> bool {
        for (ring, (width, buckets)) in self.0.iter_mut().zip(RINGS) {
            while ring.front().is_some_and(|bucket| bucket.index + buckets <= seconds / width) {
                ring.pop_front();
            }
        }
        self.0.iter().any(|ring| !ring.is_empty())
    }

    fn sum(&self, ring: usize, seconds: u64, window: Duration) -> (u64, u64) {
        let (width, _) = RINGS[ring];
        let (now, buckets) = (seconds / width, window.as_secs() / width);
        let within = self.0[ring].iter().rev().take_while(|bucket| bucket.index + buckets > now);
        within.fold((0, 0), |(requests, failed), bucket| (requests + bucket.requests, failed + bucket.failed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds requests per second with the millionths that fail, for some seconds in steps of ten, and returns what burns at the end.
    struct Feed {
        burn: Burn,
        began: Instant,
        seconds: u64,
        requests: u64,
        failed_millionths: u64,
    }

    impl Feed {
        fn new() -> Feed {
            let began = Instant::now();
            Feed { burn: Burn::new(began), began, seconds: 0, requests: 0, failed_millionths: 0 }
        }

        fn run(&mut self, minutes: u64, per_second: u64, failing: u64) -> Vec<Burning> {
            let mut last = Vec::new();
            for _ in 0..minutes * 6 {
                self.seconds += 10;
                self.requests += per_second * 10;
                self.failed_millionths += per_second * 10 * failing;
                let at = self.began + Duration::from_secs(self.seconds);
                let arm =
                    ("m".parse().unwrap(), "control".to_owned(), self.requests, self.failed_millionths / 1_000_000);
                last = self.burn.look(at, 0.001, [arm]);
            }
            last
        }
    }

    #[test]
    fn an_outage_burns_within_minutes_and_ends_with_its_short_window() {
        let mut feed = Feed::new();
        assert_eq!(feed.run(120, 100, 0), []);
        let burning = feed.run(5, 100, 500_000);
        assert_eq!(
            burning.len(),
            1,
            "half of the requests for five minutes is 4 % of the last hour: 40 times the budget"
        );
        assert_eq!((burning[0].severity, burning[0].window), (Severity::Critical, Duration::from_hours(1)));
        assert!(burning[0].rate > 14.4, "{burning:?}");
        let later = feed.run(6, 100, 0);
        assert_eq!(
            later.first().map(|b| b.window),
            Some(Duration::from_hours(6)),
            "the window of five minutes is clean: {later:?}"
        );
        let later = feed.run(36, 100, 0);
        assert_eq!(
            later.first().map(|b| b.severity),
            Some(Severity::Warning),
            "so is that of thirty minutes: {later:?}"
        );
        assert_eq!(feed.run(360, 100, 0), [], "six hours later nothing burns");
    }

    #[test]
    fn a_rate_within_the_budget_never_burns_and_a_slow_leak_does_in_the_long_window() {
        let mut feed = Feed::new();
        assert_eq!(feed.run(60 * 30, 100, 800), []);
        let burning = feed.run(60 * 30, 100, 2_000);
        assert_eq!(
            burning.first().map(|b| (b.severity, b.window)),
            Some((Severity::Warning, Duration::from_hours(72)))
        );
    }

    #[test]
    fn a_few_failures_of_a_quiet_model_are_chance() {
        let mut feed = Feed::new();
        let began = feed.began;
        let mut look = |seconds, requests, failed| {
            let arm = ("m".parse().unwrap(), "a".to_owned(), requests, failed);
            feed.burn.look(began + Duration::from_secs(seconds), 0.001, [arm])
        };
        assert_eq!(look(1, 20, 9), []);
        assert_eq!(look(2, 21, 10).len(), 1, "the tenth failure counts");
    }

    #[test]
    fn an_arm_that_begins_again_counts_from_zero_and_one_that_is_gone_is_forgotten() {
        let began = Instant::now();
        let mut burn = Burn::new(began);
        let arm = |name: &str, requests, failed| ("m".parse().unwrap(), name.to_owned(), requests, failed);
        burn.look(began, 0.001, [arm("1", 1000, 0)]);
        assert_eq!(burn.look(began, 0.001, [arm("2", 20, 20)]).len(), 1);
        assert_eq!(burn.totals.len(), 1);
        let later = burn.look(began + Duration::from_hours(80), 0.001, []);
        assert_eq!((later, burn.models.len()), (vec![], 0));
    }
}
