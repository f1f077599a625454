//! More records than the log can keep up with: the budget holds, and what is kept says how it was sampled.

use super::*;
use arrow_array::types::Float64Type;

/// A disk on which each write takes this long.
#[derive(Debug)]
struct SlowDisk(Duration);

#[derive(Debug)]
struct SlowFile(Box<dyn Appender>, Duration);

impl Disk for SlowDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn Appender>> {
        Ok(Box::new(SlowFile(RealDisk.create(path)?, self.0)))
    }
}

impl Appender for SlowFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        std::thread::park_timeout(self.1);
        self.0.append(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.0.sync()
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        self.0.truncate(length)
    }
}

fn floats(about: &About, n: usize) -> Checked {
    let mut random = fastrand::Rng::with_seed(5);
    checked(about, vec![tensor(&[1, n], Data::Fp32((0..n).map(|_| random.f32()).collect::<Vec<_>>().into()))])
}

/// The `sample_rate` of each sealed record, by its id.
fn rates(dir: &Path) -> BTreeMap<String, f64> {
    let of_batch = |batch: RecordBatch| {
        let rates = batch["sample_rate"].as_primitive::<Float64Type>().values().to_vec();
        ids(std::slice::from_ref(&batch)).into_iter().zip(rates)
    };
    predictions(dir).into_iter().flat_map(of_batch).collect()
}

/// The probability with which a frame of this size would be kept now.
fn probability(log: &Log, bytes: usize) -> f64 {
    log.0.sampling.probability(bytes, log.0.queue.full_for(bytes))
}

/// A large record, and the probability before and after it was offered.
struct Offered {
    id: String,
    ts: i64,
    probability: [f64; 2],
    took: Duration,
}

/// How far the sum of 1 ÷ rate of what is kept may be from the number of what was offered, but for one case in a billion (Bernstein's
/// inequality). `rates`: of all that was offered. A deviation estimated from what was kept would be too small where records of a small
/// probability happen to be missing.
fn most_error(rates: &[f64]) -> f64 {
    let variance: f64 = rates.iter().map(|rate| (1.0 - rate) / rate).sum();
    let largest = rates.iter().fold(1.0, |largest: f64, rate| largest.max(1.0 / rate));
    let log = 2e9_f64.ln();
    let linear = log * largest / 3.0;
    linear + (linear * linear + 2.0 * log * variance).sqrt()
}

fn lost(log: &Log, reason: DropReason) -> u64 {
    log.dropped().filter(|(r, _)| *r == reason).map(|(_, n)| n).sum()
}

#[test]
fn a_flood_of_large_records_never_exceeds_the_budget_by_more_than_a_segment_and_the_oldest_go_first() {
    const BUDGET: u64 = 4 << 20;
    let flood = |config: &mut Config| {
        config.acknowledge = Acknowledge::Disk;
        config.disk_budget = BUDGET;
        config.queue_bytes = 512 << 10;
    };
    let fixture = Fixture::new(flood, Box::new(RealDisk));
    let about = about(vec![spec("x", DataType::Fp32, &[FREE, FREE])], vec![]);
    let stream = fixture.log.stream(&about, &Choice::default()).unwrap();
    let request = floats(&about, 25_000);
    // A segment has at most a sixteenth of the budget, and what the queue holds.
    let segment = BUDGET / 16 + (512 << 10);
    let done = std::sync::atomic::AtomicBool::new(false);
    let deleted = std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut most = 0;
            let mut before = BTreeMap::new();
            while !done.load(Ordering::Acquire) {
                // Looking takes time. What is the same twice was there at one time.
                let sizes = sizes_under(fixture.dir.path());
                if sizes == before {
                    most = most.max(sizes.values().sum());
                }
                before = sizes;
            }
            most
        });
        for i in 0..400 {
            // Ten times the budget. Records are refused while nothing can be deleted.
            while fixture.offer(&stream, &prediction(&format!("{i:04}"), &request, Err(Code::EngineFailed))).is_err() {
                std::thread::yield_now();
            }
        }
        done.store(true, Ordering::Release);
        let most = watch.join().unwrap();
        assert!(most > BUDGET / 2 && most <= BUDGET + segment, "{most} bytes of {BUDGET}");
        fixture.log.disk_bytes()
    });
    assert!(deleted.sealed + deleted.segments <= BUDGET, "{deleted:?}");
    assert_eq!(fixture.log.left_out(), 0, "a log whose answers wait for the disk never samples");
    let log = fixture.log.clone();
    let dir = fixture.stop();
    let disk = log.disk_bytes();
    assert_eq!((disk.segments, disk.sealed + 64), (0, bytes_under(dir.path())), "and the key for hashes");
    let kept = ids(&predictions(dir.path()));
    let newest: Vec<String> = (400 - kept.len()..400).map(|i| format!("{i:04}")).collect();
    assert_eq!(kept, newest, "the newest are kept");
    assert!(kept.len() > 10, "{}", kept.len());
}

#[test]
fn segments_of_an_earlier_server_count_from_the_start_and_its_unfinished_files_are_removed() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(segment::dir(dir.path())).unwrap();
    for number in 1..=3 {
        std::fs::write(segment::path(dir.path(), number), vec![7; 1 << 20]).unwrap();
    }
    let day = dir.path().join("predictions/model=m/date=2020-01-01");
    std::fs::create_dir_all(&day).unwrap();
    let unfinished = day.join("00000000000000000001-0.tmp");
    std::fs::write(&unfinished, vec![0; 1000]).unwrap();
    std::fs::write(day.join("00000000000000000001-1.parquet"), vec![0; 5000]).unwrap();
    // A file in the way: they cannot be sealed.
    std::fs::write(dir.path().join("gaps"), b"").unwrap();
    let fixture = Fixture::on(dir, |_| {}, Box::new(RealDisk));
    let disk = fixture.log.disk_bytes();
    assert_eq!((disk.segments, disk.sealed), (3 << 20, 5000));
    assert!(!unfinished.exists());
    let shown = fixture.telemetry.render();
    assert!(shown.contains("sluicegate_log_bytes{kind=\"segments\"} 3145728"), "{shown}");
    fixture.stop();
}

#[test]
fn a_queue_that_is_nearly_full_samples_and_the_rates_give_the_number_of_records() {
    let small = |config: &mut Config| {
        config.queue_bytes = 64 << 10;
        config.flush_interval = Duration::from_millis(20);
    };
    let fixture = Fixture::new(small, Box::new(SlowDisk(Duration::from_millis(5))));
    let about = simple();
    let stream = fixture.log.stream(&about, &Choice { sample_rate: 0.5, ..Choice::default() }).unwrap();
    let (request, answer) = rows(&about, 1);
    let bytes = Planned::new(&stream, &prediction("100000", &request, Ok(&answer))).unwrap().bytes();
    let began = Instant::now();
    // The rate of each record, which is at least this: only the writer makes room meanwhile.
    let mut offered = Vec::new();
    // Bursts of half of the queue: the disk takes longer for each than the pause between them.
    while fixture.log.left_out() < 2000 {
        assert!(began.elapsed() < Duration::from_secs(30), "{:?}", fixture.log.status());
        for _ in 0..100 {
            offered.push(0.5 * probability(&fixture.log, bytes));
            // As the server does it: half of the requests, by their ids.
            let id = format!("{:06}", offered.len());
            let ts = id.parse().unwrap();
            if stream.samples(&id) {
                let prediction = Prediction { sample_rate: 0.5, ts, ..prediction(&id, &request, Ok(&answer)) };
                assert!(fixture.log.offer(&stream, &prediction, true).unwrap().is_none());
            }
        }
        std::thread::park_timeout(Duration::from_micros(500));
    }
    let dropped = lost(&fixture.log, DropReason::QueueFull);
    let dir = fixture.stop();
    let kept = rates(dir.path());
    for (id, rate) in &kept {
        assert!(is_kept(id, id.parse().unwrap(), rate / 0.5), "{id} was kept with {rate}");
    }
    assert!(kept.values().any(|rate| *rate < 0.5));
    // A dropped record would have stood for two requests; the gaps say how many there were.
    let seen = kept.values().map(|rate| 1.0 / rate).sum::<f64>() + 2.0 * dropped as f64;
    let (all, most) = (offered.len() as f64, most_error(&offered));
    assert!((seen - all).abs() < most, "{seen} of {all} ± {most}, {dropped} dropped");
}

#[test]
fn while_sealing_is_behind_large_records_are_sampled_and_small_ones_kept_until_it_has_caught_up() {
    let slow = |config: &mut Config| {
        config.segment_bytes = 256 << 10;
        config.seal_cpu_share = 0.001;
        config.flush_interval = Duration::from_millis(20);
    };
    let fixture = Fixture::new(slow, Box::new(RealDisk));
    let large = about(vec![spec("x", DataType::Fp32, &[FREE, FREE])], vec![]);
    let large_stream = fixture.log.stream(&large, &Choice::default()).unwrap();
    let request = floats(&large, 25_000);
    let small = simple();
    let small_stream = fixture.log.stream(&small, &Choice::default()).unwrap();
    let (row, answer) = rows(&small, 1);
    let bytes =
        Planned::new(&large_stream, &prediction("large-00000", &request, Err(Code::EngineFailed))).unwrap().bytes();
    let (mut offered, began) = (Vec::new(), Instant::now());
    while fixture.log.left_out() < 100 {
        assert!(began.elapsed() < Duration::from_secs(30), "{:?}", fixture.log.status());
        let (id, other, ts) = (format!("large-{:05}", offered.len()), format!("small-{}", offered.len()), now());
        let big = Prediction { ts, ..prediction(&id, &request, Err(Code::EngineFailed)) };
        let little = Prediction { ts, ..prediction(&other, &row, Ok(&answer)) };
        let (before, offering) = (probability(&fixture.log, bytes), Instant::now());
        let _ = fixture.log.offer(&large_stream, &big, true).unwrap();
        let probability = [before, probability(&fixture.log, bytes)];
        let took = offering.elapsed();
        offered.push(Offered { id, ts, probability, took });
        let _ = fixture.log.offer(&small_stream, &little, true).unwrap();
        std::thread::park_timeout(Duration::from_millis(1));
    }
    eventually("the status says so", || fixture.log.status().sampling_since.is_some());
    let shown = fixture.telemetry.render();
    assert!(shown.contains("sluicegate_log_left_out_total"), "{shown}");
    let log = fixture.log.clone();
    let dir = fixture.stop();
    assert_eq!(lost(&log, DropReason::QueueFull), 0);
    let rates = rates(dir.path());
    let small = rates.iter().filter(|(id, _)| id.starts_with("small"));
    assert!(small.clone().count() == offered.len() && small.clone().all(|(_, rate)| *rate >= 1.0), "{rates:?}");
    assert!(rates.values().any(|rate| *rate < 1.0), "{rates:?}");
    for Offered { id, ts, probability: [before, after], took } in offered {
        // Within this time the probability was adjusted once at most.
        let is_known = took < Duration::from_millis(100);
        if let Some(rate) = rates.get(&id) {
            assert!(is_kept(&id, ts, *rate), "{id} was kept with {rate}");
            assert!(!is_known || *rate == before || *rate == after, "{id}: {rate} and not {before} or {after}");
        } else {
            assert!(!is_known || !is_kept(&id, ts, before.min(after)), "{id} was left out with {before} or {after}");
        }
    }
    // The next server has nothing to catch up with.
    let fixture = Fixture::on(dir, slow, Box::new(RealDisk));
    let again = fixture.log.stream(&large, &Choice::default()).unwrap();
    let _ = fixture.log.offer(&again, &prediction("again", &request, Err(Code::EngineFailed)), true).unwrap();
    assert!(fixture.log.0.sampling.whole().is_infinite() && fixture.log.left_out() == 0);
    fixture.stop();
}

#[test]
fn a_log_that_keeps_up_again_returns_to_the_full_rate() {
    let fixture = Fixture::new(|config| config.flush_interval = Duration::from_millis(20), Box::new(RealDisk));
    fixture.log.0.sampling.set_whole(1000.0);
    eventually("all records are kept", || fixture.log.0.sampling.whole().is_infinite());
    fixture.stop();
}

#[test]
fn the_writer_is_woken_only_for_an_answer_that_waits_and_for_a_queue_that_is_half_full() {
    let queue = Queue::new(1, 1000);
    let append = |bytes: usize, wait| {
        let reserved = queue.reserve(bytes, 1).unwrap();
        reserved.append(wait, None, |out| out.resize(out.len() + bytes, 0)).unwrap().is_some()
    };
    assert!((0..5).all(|_| !append(100, false)) && !queue.was_woken(), "half of the queue is in use");
    assert!(!append(1, false) && queue.was_woken(), "more than half");
    drop(queue.take());
    assert!(!append(100, false) && !queue.was_woken());
    assert!(append(1, true) && queue.was_woken(), "somebody waits");
}
