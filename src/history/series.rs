//! The points of each arm, in two rings.

use super::first_day::{Compared, FirstDay};
use super::{COUNTS, STEP};
use crate::model::{ModelName, Version};
use crate::telemetry::{ArmEvidence, LATENCY_BUCKETS, latency_of_bucket};
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

/// A coarse point is this long, in seconds.
const COARSE: u32 = 300;
/// How long points are kept, in seconds.
const FINE_AGE: u32 = 6 * 3600;
const COARSE_AGE: u32 = 14 * 86_400;
/// What is kept at most.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Over all arms; half of them fine.
    pub(super) points: usize,
    pub(super) arms: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { points: 1_500_000, arms: 10_000 }
    }
}

/// An arm.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Arm {
    pub model: ModelName,
    pub version: Version,
    pub name: String,
}

/// The counts of an arm at one time.
#[derive(Debug)]
pub struct Sample {
    pub of: Arm,
    /// Counts begin from zero with each revision of the traffic document.
    pub revision: u64,
    /// Requests with any result.
    pub requests: u64,
    pub evidence: ArmEvidence,
    /// The time in the engine and the rows of all runs of the version, on any arm, since it was loaded.
    pub engine: EngineTime,
}

/// The time of runs in an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EngineTime {
    pub ns: u64,
    pub rows: u64,
}

/// What an arm did in a span of time that ends at `ts`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Point {
    /// Seconds since 1970.
    pub ts: u32,
    /// The length of the span, in seconds.
    pub span: u32,
    pub requests: u32,
    /// Requests that failed, of those that fitted the signature.
    pub failed: u32,
    /// Of the latency, in microseconds; 0 where no request was counted.
    pub p50_us: u32,
    pub p99_us: u32,
    /// The time in the engine for each row, in nanoseconds, over all arms of the version; 0 where it is not known.
    pub engine_ns_per_row: u32,
}

impl Point {
    #[must_use]
    pub fn requests_per_s(&self) -> f64 {
        f64::from(self.requests) / f64::from(self.span.max(1))
    }

    /// The share of the requests that failed; `None` without requests.
    #[must_use]
    pub fn failed_share(&self) -> Option<f64> {
        (self.requests > 0).then(|| f64::from(self.failed) / f64::from(self.requests))
    }
}

/// The points of one arm.
#[derive(Debug, Clone, PartialEq)]
pub struct SeriesOf {
    pub version: Version,
    pub arm: String,
    pub points: Vec<Point>,
    /// Since the counts of the arm began: with the traffic document in force, or with the last one that had the arm.
    pub latency: Percentiles,
}

/// A version against its first day.
#[derive(Debug, Clone, PartialEq)]
pub struct AgainstFirstDay {
    pub model: ModelName,
    pub version: Version,
    pub first_day: FirstDay,
    /// The last 24 hours.
    pub compared: Vec<Compared>,
}

/// What a model did lately, all arms together.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Recent {
    /// Requests per second in each span, the oldest first.
    pub rates: Vec<f64>,
    /// The last point of each arm that had requests in the last minute.
    pub last: Vec<Point>,
}

/// How long requests took.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Percentiles {
    pub requests: u64,
    /// Shares of the requests, rising, each with the microseconds that they took at most; only those that so many requests can tell. The last one is
    /// 1: the longest.
    pub of: Vec<(f64, u32)>,
}

/// The shares that are told. One of 1,000 requests decides the last one before the longest.
const SHARES: [f64; 6] = [0.5, 0.75, 0.9, 0.95, 0.99, 0.999];

impl Percentiles {
    fn of(latency: &[u64]) -> Percentiles {
        let requests: u64 = latency.iter().sum();
        let told = |share: &f64| requests as f64 * (1.0 - share) >= 1.0 - 1e-9;
        let shares = SHARES.into_iter().filter(told).chain(std::iter::once(1.0));
        Percentiles { requests, of: shares.filter_map(|share| Some((share, quantile(latency, share)?))).collect() }
    }
}

/// The latency within which this share of the requests was answered, in microseconds; `None` without requests.
fn quantile(latency: &[u64], share: f64) -> Option<u32> {
    let all: u64 = latency.iter().sum();
    let rank = (all as f64 * share).ceil().max(1.0);
    let mut sum = 0;
    let bucket = latency.iter().position(|count| {
        sum += count;
        sum as f64 >= rank
    });
    bucket.filter(|_| all > 0).map(|bucket| u32::try_from(latency_of_bucket(bucket)).unwrap_or(u32::MAX))
}

/// The first days of versions.
pub(super) type FirstDays = BTreeMap<(ModelName, Version), FirstDay>;

/// What came since the last points were written.
pub(super) type Fresh = Vec<(Arm, bool, Point)>;

#[derive(Debug, Default)]
pub(super) struct All {
    arms: HashMap<Arm, Series>,
    fresh: Fresh,
    /// Of each version that has had one.
    first_days: FirstDays,
    /// The processor time of this process at the last times, the oldest first.
    pub(super) used: VecDeque<(Instant, Duration)>,
    pub(super) limits: Limits,
}

#[derive(Debug, Default)]
struct Series {
    fine: VecDeque<Point>,
    coarse: VecDeque<Point>,
    last: Option<Counts>,
    /// What came since the last coarse point.
    open: Difference,
    open_since: u32,
}

#[derive(Debug)]
struct Counts {
    revision: u64,
    requests: u64,
    failed: u64,
    latency: Box<[u64; LATENCY_BUCKETS]>,
    engine: EngineTime,
}

#[derive(Debug, Default)]
struct Difference {
    requests: u64,
    failed: u64,
    engine: EngineTime,
    /// Empty: no request was counted.
    latency: Vec<u64>,
}

impl EngineTime {
    /// What came since; all of it where the counts began anew.
    fn since(self, before: EngineTime) -> EngineTime {
        if self.ns < before.ns || self.rows < before.rows {
            return self;
        }
        EngineTime { ns: self.ns - before.ns, rows: self.rows - before.rows }
    }
}

impl Difference {
    fn between(before: Option<&Counts>, after: &Sample) -> Difference {
        let engine = before.map_or_else(EngineTime::default, |before| after.engine.since(before.engine));
        let before = before.filter(|before| before.revision == after.revision && before.requests <= after.requests);
        let (requests, failed) = before.map_or((0, 0), |before| (before.requests, before.failed));
        let less = |(bucket, count): (usize, &u64)| count.saturating_sub(before.map_or(0, |b| b.latency[bucket]));
        Difference {
            requests: after.requests.saturating_sub(requests),
            failed: after.evidence.failed.saturating_sub(failed),
            latency: after.evidence.latency.iter().enumerate().map(less).collect(),
            engine,
        }
    }

    fn add(&mut self, other: &Difference) {
        self.requests += other.requests;
        self.failed += other.failed;
        self.engine = EngineTime { ns: self.engine.ns + other.engine.ns, rows: self.engine.rows + other.engine.rows };
        if self.latency.is_empty() {
            self.latency.clone_from(&other.latency);
        } else {
            self.latency.iter_mut().zip(&other.latency).for_each(|(sum, count)| *sum += count);
        }
    }

    fn point(&self, ts: u32, span: u32) -> Point {
        let quantile = |share: f64| quantile(&self.latency, share).unwrap_or(0);
        let fits = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
        let (p50_us, p99_us) = (quantile(0.5), quantile(0.99));
        let engine_ns_per_row = fits(self.engine.ns.checked_div(self.engine.rows).unwrap_or(0));
        Point { ts, span, requests: fits(self.requests), failed: fits(self.failed), p50_us, p99_us, engine_ns_per_row }
    }
}

impl All {
    /// Notes the processor time that this process has used.
    pub(super) fn note_use(&mut self, at: Instant, used: Duration) {
        self.used.push_back((at, used));
        while self.used.len() > COUNTS {
            self.used.pop_front();
        }
    }

    /// Takes the counts of all arms at this time.
    pub(super) fn take(&mut self, now: u32, samples: Vec<Sample>) {
        self.make_room(&samples);
        for sample in samples {
            let arm = sample.of.clone();
            // A later first sample would count all that came before as one point, so an arm without a place has no history at all.
            if self.arms.len() >= self.limits.arms && !self.arms.contains_key(&arm) {
                continue;
            }
            let series = self.arms.entry(arm.clone()).or_default();
            let first = series.last.is_none();
            let difference = Difference::between(series.last.as_ref(), &sample);
            let Sample { revision, requests, evidence, engine, .. } = sample;
            let ArmEvidence { failed, latency, .. } = evidence;
            series.last = Some(Counts { revision, requests, failed, latency, engine });
            if series.open_since == 0 {
                series.open_since = now.saturating_sub(if first { STEP } else { 0 });
            }
            // An arm without requests gets no point: 2,000 models of which most are idle take no memory.
            if difference.requests > 0 {
                let point = difference.point(now, STEP);
                series.fine.push_back(point);
                self.fresh.push((arm.clone(), true, point));
                series.open.add(&difference);
            }
            if now.saturating_sub(series.open_since) >= COARSE {
                let open = std::mem::take(&mut series.open);
                let span = now - std::mem::replace(&mut series.open_since, now);
                if open.requests > 0 {
                    let point = open.point(now, span);
                    series.coarse.push_back(point);
                    self.fresh.push((arm, false, point));
                }
            }
        }
        self.forget(now);
    }

    /// A point that was written before. Points come in the order of their time.
    pub(super) fn restore(&mut self, arm: Arm, fine: bool, point: Point) {
        if self.arms.len() >= self.limits.arms && !self.arms.contains_key(&arm) {
            return;
        }
        let series = self.arms.entry(arm).or_default();
        let ring = if fine { &mut series.fine } else { &mut series.coarse };
        if ring.back().is_none_or(|last| last.ts < point.ts) {
            ring.push_back(point);
        }
    }

    pub(super) fn fresh(&mut self) -> Fresh {
        std::mem::take(&mut self.fresh)
    }

    /// Drops arms that are gone: those without points, and where the places are taken also those with the oldest ones.
    fn make_room(&mut self, samples: &[Sample]) {
        let current: HashSet<&Arm> = samples.iter().map(|sample| &sample.of).collect();
        let last = |series: &Series| series.fine.back().or(series.coarse.back()).map(|point| point.ts);
        self.arms.retain(|arm, series| current.contains(arm) || last(series).is_some());
        let new = current.iter().filter(|arm| !self.arms.contains_key(**arm)).count();
        let excess = (self.arms.len() + new).saturating_sub(self.limits.arms);
        if excess == 0 {
            return;
        }
        let gone = self.arms.iter().filter(|(arm, _)| !current.contains(arm));
        let mut gone: Vec<(Option<u32>, Arm)> = gone.map(|(arm, series)| (last(series), arm.clone())).collect();
        gone.sort();
        for (_, arm) in gone.into_iter().take(excess) {
            self.arms.remove(&arm);
        }
    }

    /// Drops what is too old or too much.
    fn forget(&mut self, now: u32) {
        let Limits { points, arms: most } = self.limits;
        let share = points / 2 / self.arms.len().max(1);
        for series in self.arms.values_mut() {
            for (ring, age) in [(&mut series.fine, FINE_AGE), (&mut series.coarse, COARSE_AGE)] {
                while ring.len() > share || ring.front().is_some_and(|point| now.saturating_sub(point.ts) > age) {
                    ring.pop_front();
                }
            }
        }
        // Where nobody writes, nothing piles up.
        let most = most * 8;
        if self.fresh.len() > most {
            self.fresh.drain(..self.fresh.len() - most);
        }
    }

    /// The coarse points of some versions, over all their arms, in the order of their time.
    fn by_version(&self, wanted: impl Fn(&(ModelName, Version)) -> bool) -> BTreeMap<(ModelName, Version), Vec<Point>> {
        let mut versions: BTreeMap<(ModelName, Version), Vec<Point>> = BTreeMap::new();
        for (arm, series) in &self.arms {
            let version = (arm.model.clone(), arm.version);
            if wanted(&version) {
                versions.entry(version).or_default().extend(&series.coarse);
            }
        }
        for points in versions.values_mut() {
            points.sort_by_key(|point| point.ts);
        }
        versions
    }

    /// Keeps the first days that are over now. Returns all, where there is a new one.
    pub(super) fn learn_first_days(&mut self, now: u32) -> Option<FirstDays> {
        let new = self.by_version(|version| !self.first_days.contains_key(version));
        let mut new: FirstDays =
            new.into_iter().filter_map(|(version, points)| Some((version, FirstDay::of(&points, now)?))).collect();
        if new.is_empty() {
            return None;
        }
        self.first_days.append(&mut new);
        while self.first_days.len() > self.limits.arms {
            let oldest = self.first_days.iter().min_by_key(|(_, day)| day.to).map(|(version, _)| version.clone())?;
            self.first_days.remove(&oldest);
        }
        Some(self.first_days.clone())
    }

    /// First days that were written before.
    pub(super) fn restore_first_days(&mut self, days: FirstDays) {
        self.first_days.extend(days.into_iter().take(self.limits.arms));
    }

    /// The last 24 hours of the versions that had a first day, against it. `limit` returns `None` for a model that is left out.
    pub(super) fn against_first_day(
        &self,
        now: u32,
        limit: impl Fn(&ModelName) -> Option<f64>,
    ) -> Vec<AgainstFirstDay> {
        let wanted = |of: &(ModelName, Version)| limit(&of.0).is_some() && self.first_days.contains_key(of);
        let versions = self.by_version(wanted).into_iter();
        let compared = versions.filter_map(|((model, version), points)| {
            let (first_day, limit) = (*self.first_days.get(&(model.clone(), version))?, limit(&model)?);
            Some(AgainstFirstDay { model, version, first_day, compared: first_day.compare(&points, now, limit) })
        });
        compared.collect()
    }

    pub(super) fn of(&self, model: &ModelName, since: u32) -> Vec<SeriesOf> {
        let mut found: Vec<SeriesOf> = self
            .arms
            .iter()
            .filter(|(arm, _)| arm.model == *model)
            .map(|(arm, series)| {
                let begins = series.fine.front().map_or(u32::MAX, |point| point.ts - STEP);
                let older = series.coarse.iter().filter(|point| point.ts >= since && point.ts <= begins);
                let points = older.chain(series.fine.iter().filter(|point| point.ts >= since)).copied().collect();
                let latency =
                    series.last.as_ref().map(|counts| Percentiles::of(&counts.latency[..])).unwrap_or_default();
                SeriesOf { version: arm.version, arm: arm.name.clone(), points, latency }
            })
            .collect();
        found.sort_by(|a, b| (a.version, &a.arm).cmp(&(b.version, &b.arm)));
        found
    }

    /// One pass over all arms: a pass for each of 2,000 models would take 2,000 times as long.
    pub(super) fn recent(
        &self,
        now: u32,
        span: u32,
        buckets: usize,
        wanted: impl Fn(&ModelName) -> bool,
    ) -> HashMap<ModelName, Recent> {
        let mut models = HashMap::<ModelName, Recent>::new();
        for (arm, series) in self.arms.iter().filter(|(arm, _)| wanted(&arm.model)) {
            let begins = now.saturating_sub(span.saturating_mul(u32::try_from(buckets).unwrap_or(u32::MAX)));
            if series.fine.back().is_none_or(|point| point.ts < begins) {
                continue;
            }
            let recent = models.entry(arm.model.clone()).or_default();
            recent.rates.resize(buckets, 0.0);
            for point in series.fine.iter().rev().take_while(|point| point.ts >= begins) {
                let age = (now.saturating_sub(point.ts) / span) as usize;
                if point.ts <= now && age < buckets {
                    recent.rates[buckets - 1 - age] += f64::from(point.requests) / f64::from(span);
                }
            }
            recent.last.extend(series.fine.back().filter(|point| now.saturating_sub(point.ts) <= 60));
        }
        models
    }

    /// The last points of all arms, by model, that are not older than so many seconds.
    pub(super) fn last(&self, now: u32, seconds: u32) -> HashMap<ModelName, Vec<Point>> {
        let mut models = HashMap::<ModelName, Vec<Point>>::new();
        for (arm, series) in &self.arms {
            if let Some(point) = series.fine.back().filter(|point| now.saturating_sub(point.ts) <= seconds) {
                models.entry(arm.model.clone()).or_default().push(*point);
            }
        }
        models
    }
}
