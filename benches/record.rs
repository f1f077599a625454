//! The cost of a record on the request path while the writer runs (32 floats in and 8 out, 1,000 floats in, a picture of 600 kB), and the
//! cost of sealing a segment of such records, and what the thread of the log takes for a second of 10,000 records of 100 columns, watched for drift and
//! not. `TMPDIR=/dev/shm` leaves the disk out.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group};
use sluicegate::columns::{Cell, ElementNames};
use sluicegate::drift::{Settings, Watch};
use sluicegate::model::{Answer, Checked, Dim, InferenceRequest, NamedTensor, Role, Signature, TensorSpec};
use sluicegate::profile::{Builder, Profile};
use sluicegate::quality::Quality;
use sluicegate::record::{self, About, Acknowledge, Choice, Config, Log, Prediction, Stop};
use sluicegate::telemetry::Telemetry;
use sluicegate::tensor::{Data, DataType, Shape, Tensor};
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::{Measured, row};

mod support;

/// This many records are offered in a row, timed. Then the queue empties, untimed: dropping at a full queue would cost too little.
const BURST: u64 = 4_000;

fn spec(name: &str, width: usize) -> TensorSpec {
    let dims = Some(vec![Dim::Free(None), Dim::Fixed(width)]);
    TensorSpec { name: name.into(), datatype: DataType::Fp32, dims }
}

fn floats(n: usize) -> Tensor {
    // Random, as the pixels of a picture: they do not compress.
    let mut random = fastrand::Rng::with_seed(7);
    let values: Vec<f32> = (0..n).map(|_| random.f32() * 8.0 - 4.0).collect();
    Tensor::new(Shape::new(&[1, n]), Data::Fp32(values.into())).expect("the shape has this number of elements")
}

/// One request with `width` floats in and 8 out, and its answer.
struct Example {
    about: About,
    request: std::sync::Arc<Checked>,
    answer: Answer,
}

impl Example {
    fn new(width: usize) -> Example {
        let signature = Signature::new(vec![spec("x", width)], vec![spec("y", 8)]);
        let input = NamedTensor { name: "x".into(), tensor: floats(width) };
        let request = InferenceRequest { inputs: vec![input], ..InferenceRequest::default() };
        let request = signature.check(request).expect("the request fits the signature");
        let about = About {
            model: "m".parse().expect("a name"),
            version: "1".parse().expect("a version"),
            sha256: "0".repeat(64),
            signature,
            hashed: [].into(),
            dropped: [].into(),
        };
        Example { about, request: request.into(), answer: Answer::from(vec![("y".into(), floats(8))]) }
    }

    fn prediction(&self) -> Prediction<'_> {
        Prediction {
            request_id: "0199a2f4-7a11-7cc0-9d5e-0b8f6a5e2c11",
            ts: record::now(),
            role: Role::Primary,
            arm: "1",
            route_key: None,
            traceparent: None,
            request: &self.request,
            outcome: Ok(&self.answer),
            latency_us: 120,
            infer_us: 20,
            batch_rows: 1,
            sample_rate: 1.0,
        }
    }
}

/// A log that never samples, because its answers wait for the disk; the records here do not wait.
fn start(dir: &Path, segment_bytes: u64) -> (Log, Stop) {
    let config = Config {
        queue_bytes: 256 << 20,
        segment_bytes,
        acknowledge: Acknowledge::Disk,
        disk_budget: u64::MAX,
        ..Config::of(dir.to_owned())
    };
    Log::start(config, Quality::default(), &Telemetry::new()).expect("a log")
}

fn offer(c: &mut Criterion) {
    let mut group = c.benchmark_group("record_offer");
    for (width, burst) in [(32, BURST), (1000, BURST), (150_528, 100)] {
        let dir = tempfile::TempDir::new().expect("a temporary directory");
        let (log, stop) = start(dir.path(), 64 << 20);
        let example = Example::new(width);
        let stream = log.stream(&example.about, &Choice::default()).expect("the choice is enabled");
        let prediction = example.prediction();
        group.bench_function(BenchmarkId::from_parameter(format!("{width}_floats")), |b| {
            b.iter_custom(|times| {
                let mut took = Duration::ZERO;
                let mut left = times;
                while left > 0 {
                    let now = left.min(burst);
                    let started = Instant::now();
                    for _ in 0..now {
                        let _ = black_box(log.offer(&stream, black_box(&prediction), false));
                    }
                    took += started.elapsed();
                    left -= now;
                    while log.queue_bytes() > 0 {
                        std::thread::yield_now();
                    }
                }
                took
            });
        });
        assert_eq!(log.dropped().map(|(_, records)| records).sum::<u64>(), 0, "no record was dropped");
        stop.stop(Duration::from_mins(1));
    }
    group.finish();
}

/// The segment that a killed server leaves after about this many bytes of records.
fn segment(width: usize, bytes: usize) -> Vec<u8> {
    let dir = tempfile::TempDir::new().expect("a temporary directory");
    let (log, stop) = start(dir.path(), 1 << 30);
    let example = Example::new(width);
    let stream = log.stream(&example.about, &Choice::default()).expect("the choice is enabled");
    for _ in 0..bytes / (4 * width + 200) {
        let _ = log.offer(&stream, &example.prediction(), false);
    }
    let written = || {
        std::fs::read_dir(dir.path().join("log")).expect("a directory").flatten().find_map(|entry| {
            let path = entry.path();
            path.extension().is_some_and(|e| e == "seg").then(|| std::fs::read(path).expect("a segment"))
        })
    };
    let until = Instant::now() + Duration::from_secs(30);
    let mut before = 0;
    let segment = loop {
        let segment = written().unwrap_or_default();
        // Nothing waits, and nothing came since the last look.
        if log.queue_bytes() == 0 && !segment.is_empty() && segment.len() == before {
            break segment;
        }
        assert!(Instant::now() < until, "the segment is not written");
        before = segment.len();
        std::thread::park_timeout(Duration::from_millis(200));
    };
    stop.stop(Duration::from_mins(1));
    segment
}

fn seal(c: &mut Criterion) {
    const BYTES: usize = 64 << 20;
    let mut group = c.benchmark_group("record_seal");
    group.sample_size(10).throughput(Throughput::Bytes(BYTES as u64));
    for width in [32, 1000, 150_528] {
        let segment = segment(width, BYTES);
        group.bench_function(BenchmarkId::from_parameter(format!("{width}_floats")), |b| {
            b.iter_custom(|times| {
                let mut took = Duration::ZERO;
                for _ in 0..times {
                    let dir = tempfile::TempDir::new().expect("a temporary directory");
                    std::fs::create_dir(dir.path().join("log")).expect("a directory");
                    std::fs::write(dir.path().join("log/00000000000000000007.seg"), &segment).expect("a segment");
                    let started = Instant::now();
                    let (_log, stop) = start(dir.path(), 64 << 20);
                    stop.stop(Duration::from_mins(1));
                    took += started.elapsed();
                    let left = std::fs::read_dir(dir.path().join("log")).expect("a directory").count();
                    assert_eq!(left, 0, "the segment is sealed");
                }
                took
            });
        });
    }
    group.finish();
}

/// A profile of all columns of an example with this many floats in.
fn profile(width: usize) -> Arc<Profile> {
    let mut random = fastrand::Rng::with_seed(3);
    let columns = (0..width).map(|i| format!("inputs.x[{i}]")).chain((0..8).map(|i| format!("outputs.y[{i}]")));
    let of_column = |name: String| {
        let mut builder = Builder::new(10_000);
        (0..10_000).for_each(|_| builder.add(Cell::Number(f64::from(random.f32() * 8.0 - 4.0))));
        (name, builder.finish(None))
    };
    let columns = columns.map(of_column).collect();
    let (from, to, source, sample) = (None, None, None, None);
    Arc::new(Profile { format: Profile::FORMAT, rows: 10_000, from, to, source, metrics: [].into(), sample, columns })
}

/// The time that threads of this process with this name had a core.
fn core_time(name: &str) -> Duration {
    let threads = std::fs::read_dir("/proc/self/task").expect("the threads of this process").flatten();
    let nanos = threads.filter_map(|thread| {
        let read = |file: &str| std::fs::read_to_string(thread.path().join(file)).ok();
        let is_it = read("comm")?.trim() == name;
        read("schedstat")?.split_whitespace().next()?.parse::<u64>().ok().filter(|_| is_it)
    });
    Duration::from_nanos(nanos.sum())
}

/// The time on a core, in a second of 10,000 requests. The queue is filled at once: what is measured does not depend on when records come, except that a
/// thread that is woken for each batch of records takes longer for both.
fn watch(c: &mut Criterion) {
    const RECORDS: i64 = 10_000;
    const COLUMNS: usize = 100;
    let mut group = c.benchmark_group("record_watch");
    group.sample_size(20);
    for (name, watched) in [("unwatched", false), ("watched", true)] {
        let dir = tempfile::TempDir::new().expect("a temporary directory");
        let (log, stop) = start(dir.path(), 1 << 30);
        let example = Example::new(COLUMNS);
        let stream = log.stream(&example.about, &Choice::default()).expect("the choice is enabled");
        if watched {
            log.drift().watch(&Watch {
                model: &example.about.model,
                version: example.about.version,
                signature: &example.about.signature,
                names: &ElementNames::default(),
                hidden: [].into(),
                profile: Some(&profile(COLUMNS)),
                settings: &Settings::default(),
            });
        }
        let (ids, mut second) =
            ((0..RECORDS).map(|i| format!("request-{i}")).collect::<Vec<_>>(), record::now() / 1_000_000);
        let mut one_second = || {
            second += 1;
            let before = core_time("log");
            for (i, request_id) in (0..).zip(&ids) {
                let prediction = Prediction { request_id, ts: second * 1_000_000 + i * 100, ..example.prediction() };
                let _ = log.offer(&stream, &prediction, false);
            }
            let mut took = Duration::ZERO;
            loop {
                std::thread::park_timeout(Duration::from_millis(30));
                let now = core_time("log").saturating_sub(before);
                if now == took && log.queue_bytes() == 0 {
                    return took;
                }
                took = now;
            }
        };
        // The first second is counted whole: its rate is not known before.
        one_second();
        group.bench_function(name, |b| b.iter_custom(|times| (0..times).map(|_| one_second()).sum()));
        let report = log.drift().report(&example.about.model, 0);
        assert_eq!(log.dropped().map(|(_, records)| records).sum::<u64>(), 0, "no record was dropped");
        println!("{name}: {report:?}");
        stop.stop(Duration::from_mins(1));
    }
    group.finish();
}

criterion_group!(benches, offer, seal, watch);

fn main() {
    let measured = Measured::from_now();
    benches();
    Criterion::default().configure_from_args().final_summary();
    if let (Some(without), Some(with)) =
        (measured.nanos("record_watch/unwatched"), measured.nanos("record_watch/watched"))
    {
        let percent = (with - without) / 1e9 * 100.0;
        row(
            "100 columns watched for drift at 10,000/s: share of a core (%)",
            "at most 1",
            &format!("{percent:.2}"),
            percent <= 1.0,
        );
    }
    if let Some(nanos) = measured.nanos("record_offer/32_floats") {
        let micros = nanos / 1000.0;
        row(
            "a record of 32 floats in and 8 out, on the request path (us)",
            "at most 1",
            &format!("{micros:.2}"),
            micros <= 1.0,
        );
    }
}
