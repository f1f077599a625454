use super::series::{All, Arm, Limits};
use super::*;
use crate::model::Version;
use crate::telemetry::{ArmEvidence, latency_bucket};

fn arm(model: &str, version: u64) -> Arm {
    Arm {
        model: model.parse().unwrap(),
        version: version.to_string().parse::<Version>().unwrap(),
        name: "a,\"b\n".to_owned(),
    }
}

/// Counts: requests that took so many microseconds.
fn sample(of: Arm, revision: u64, counts: &[(u64, u64)], failed: u64) -> Sample {
    let mut evidence = ArmEvidence { failed, ..ArmEvidence::default() };
    for (us, count) in counts {
        evidence.latency[latency_bucket(Duration::from_micros(*us))] += count;
    }
    let requests = counts.iter().map(|(_, count)| count).sum();
    let engine = EngineTime { ns: requests * 50_000, rows: requests };
    Sample { of, revision, requests, evidence, engine }
}

#[test]
fn points_are_differences_of_counts() {
    let mut all = All::default();
    all.take(1000, vec![sample(arm("m", 1), 1, &[(100, 90), (8000, 10)], 0)]);
    all.take(1010, vec![sample(arm("m", 1), 1, &[(100, 190), (8000, 10)], 5)]);
    all.take(1020, vec![sample(arm("m", 1), 1, &[(100, 190), (8000, 10)], 5)]);
    // Another revision counts from zero.
    all.take(1030, vec![sample(arm("m", 1), 2, &[(100, 7)], 0)]);
    let found = all.of(&"m".parse().unwrap(), 0);
    assert_eq!(found.len(), 1);
    let shown: Vec<_> = found[0].points.iter().map(|p| (p.ts, p.requests, p.failed, p.p50_us, p.p99_us)).collect();
    assert_eq!(
        shown,
        [(1000, 100, 0, 96, 7680), (1010, 100, 5, 96, 96), (1030, 7, 0, 96, 96)],
        "no point without requests"
    );
    assert_eq!(found[0].points[1].failed_share(), Some(0.05));
    let model: ModelName = "m".parse().unwrap();
    let Recent { rates, last } = all.recent(1030, 10, 4, |_| true).remove(&model).unwrap();
    assert_eq!(rates, [10.0, 10.0, 0.0, 0.7]);
    assert_eq!(last.len(), 1);
    assert_eq!(all.recent(1030, 10, 4, |_| false).len(), 0, "it is not wanted");
    assert_eq!(all.last(1090, 60).remove(&model), Some(last));
    assert_eq!(all.last(1091, 60).len(), 0, "older than a minute");
    assert!(all.of(&"other".parse().unwrap(), 0).is_empty());
}

#[test]
fn percentiles_are_those_since_the_counts_began_and_no_finer_than_the_requests_can_tell() {
    let mut all = All::default();
    let model = "m".parse().unwrap();
    all.take(1000, vec![sample(arm("m", 1), 1, &[(8000, 50)], 0)]);
    all.take(1010, vec![sample(arm("m", 1), 2, &[(100, 90), (8000, 10)], 0)]);
    let Percentiles { requests, of } = all.of(&model, 0)[0].latency.clone();
    assert_eq!(requests, 100, "the document before does not count");
    assert_eq!(
        of,
        [(0.5, 96), (0.75, 96), (0.9, 96), (0.95, 7680), (0.99, 7680), (1.0, 7680)],
        "one of 100 is not one of 1,000"
    );
    all.take(1020, vec![sample(arm("m", 1), 3, &[], 0)]);
    assert_eq!(all.of(&model, 0)[0].latency, Percentiles::default(), "without requests nothing is known");
    all.take(1030, vec![sample(arm("m", 1), 4, &[(100, 999), (1_000_000, 1)], 0)]);
    let of = &all.of(&model, 0)[0].latency.of;
    assert_eq!(of[5], (0.999, 96));
    assert!(of[6].0 == 1.0 && of[6].1 > 900_000, "{of:?}");
}

#[test]
fn old_points_are_kept_coarsely_and_then_not_at_all() {
    let mut all = All::default();
    let mut total = 0;
    let (begin, end) = (1_000_000, 1_000_000 + 16 * 86_400);
    let model = "m".parse().unwrap();
    let mut now = begin;
    while now < end {
        total += 10;
        all.take(now, vec![sample(arm("m", 1), 1, &[(100, total)], 0)]);
        now += STEP;
    }
    let points = &all.of(&model, 0)[0].points;
    assert!(points.len() <= 2161 + 4033, "{}", points.len());
    assert!(points[0].ts >= end - 14 * 86_400 - 600 && points[0].span == 300, "{:?}", points[0]);
    assert_eq!(points.last().unwrap().span, STEP);
    let spans: u64 = points.iter().map(|point| u64::from(point.span)).sum();
    let requests: u64 = points.iter().map(|point| u64::from(point.requests)).sum();
    assert_eq!(requests, spans, "one request a second, none twice and none missing");
}

#[test]
fn many_arms_share_the_memory_and_idle_ones_take_none() {
    let mut all = All::default();
    all.limits = Limits { points: 2000, arms: 100 };
    for tick in 0..20_u32 {
        let samples = (0..120).map(|n| {
            let busy = if n < 110 { u64::from(tick) + 1 } else { 0 };
            sample(arm(&format!("m{n}"), 1), 1, &[(100, busy)], 0)
        });
        all.take(1000 + tick * STEP, samples.collect());
        assert!(all.fresh().len() <= 110);
    }
    let with_points = |all: &All, n: usize| {
        let found = all.of(&format!("m{n}").parse().unwrap(), 0);
        assert!(found.iter().flat_map(|series| &series.points).all(|point| point.requests == 1), "{found:?}");
        found.iter().map(|series| series.points.len()).sum::<usize>()
    };
    let points: Vec<usize> = (0..120).map(|n| with_points(&all, n)).collect();
    assert_eq!(points.iter().filter(|count| **count > 0).count(), 100, "the first 100 arms have a place");
    assert_eq!(points.iter().max(), Some(&10), "2000 points, half of them fine, for 100 arms");
    // Models that are gone make room for new ones.
    let samples = (100..120).map(|n| sample(arm(&format!("m{n}"), 1), 2, &[(100, 1)], 0));
    all.take(2000, samples.collect());
    assert_eq!((100..120).filter(|n| with_points(&all, *n) > 0).count(), 20);
    assert_eq!((0..100).filter(|n| with_points(&all, *n) > 0).count(), 80);
}

#[test]
fn points_are_there_again_after_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let now = seconds_now();
    let mut files = files::Files::new(dir.path());
    let mut all = All::default();
    for tick in 0..40 {
        all.take(now - 400 + tick * STEP, vec![sample(arm("m", 1), 1, &[(100, u64::from(tick) + 1)], 0)]);
    }
    files.write(now, &all.fresh());
    all.take(now, vec![sample(arm("m", 1), 1, &[(100, 50)], 0)]);
    let mut before = all.of(&"m".parse().unwrap(), 0);
    // The counts of a process end with it.
    before[0].latency = Percentiles::default();
    files.write(now, &all.fresh());
    let read = || {
        let mut restored = All::default();
        files::Files::new(dir.path()).read(now, |arm, fine, point| restored.restore(arm, fine, point));
        restored.of(&"m".parse().unwrap(), 0)
    };
    assert_eq!(read(), before);
    // A crash cuts the last line, and somebody writes nonsense.
    let fine = std::fs::read_dir(dir.path().join("history")).unwrap().map(|entry| entry.unwrap().path());
    for path in fine {
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.truncate(bytes.len() - 4);
        std::fs::write(&path, bytes).unwrap();
    }
    std::fs::write(dir.path().join("history/fine-nonsense.csv"), "x").unwrap();
    std::fs::write(dir.path().join("history/coarse-5.csv"), "m,1,a,4294967295,300,1,1,1,1\n\u{0},,,\n").unwrap();
    assert!(read()[0].points.len() >= before[0].points.len() - 2, "only the cut lines are gone");
    let mut files = files::Files::new(dir.path());
    let point = Point { ts: now, span: STEP, requests: 3, failed: 0, p50_us: 1, p99_us: 1, engine_ns_per_row: 7 };
    files.write(now, &[(arm("m", 2), true, point)]);
    let after = read();
    assert!(
        after.is_empty() || dir.path().join("history/coarse-5.csv").exists() || after.len() == 2,
        "a cut line ends where the next begins: {after:?}"
    );
    assert!(!dir.path().join("history/coarse-5.csv").exists(), "old files go");
}

#[test]
fn the_thread_writes_what_it_has_when_it_stops() {
    let dir = tempfile::tempdir().unwrap();
    let counted = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(5));
    let read = std::sync::Arc::clone(&counted);
    let samples = move || vec![sample(arm("m", 1), 1, &[(100, read.load(Ordering::Relaxed))], 0)];
    let (history, stop) = History::start(dir.path(), samples).unwrap();
    let model: ModelName = "m".parse().unwrap();
    let until = Instant::now() + Duration::from_secs(30);
    while history.of(&model, 0).is_empty() {
        assert!(Instant::now() < until, "the first sample is taken at once");
        std::thread::park_timeout(Duration::from_millis(5));
    }
    counted.store(9, Ordering::Relaxed);
    stop.stop(Duration::from_secs(30));
    let (again, stop) = History::start(dir.path(), Vec::new).unwrap();
    while again.of(&model, 0).is_empty() {
        assert!(Instant::now() < until, "they are read again");
        std::thread::park_timeout(Duration::from_millis(5));
    }
    let requests: u32 = again.of(&model, 0)[0].points.iter().map(|point| point.requests).sum();
    assert!(requests >= 5, "{requests}");
    stop.stop(Duration::from_secs(30));
}
