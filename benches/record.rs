//! The cost of a record on the request path while the writer runs: 32 floats in and 8 out, and 1,000 floats in.

use criterion::{BenchmarkId, Criterion, criterion_group};
use sluicegate::model::{Answer, Dim, InferenceRequest, NamedTensor, Role, Signature, TensorSpec};
use sluicegate::quality::Quality;
use sluicegate::record::{self, About, Choice, Config, Log, Prediction};
use sluicegate::telemetry::Telemetry;
use sluicegate::tensor::{Data, DataType, Shape, Tensor};
use std::hint::black_box;
use std::time::{Duration, Instant};
use support::{Measured, row};

mod support;

/// This many records are offered in a row, timed. Then the queue empties, untimed: dropping at a full queue would cost too little.
const BURST: u64 = 4_000;

fn spec(name: &str, width: usize) -> TensorSpec {
    let dims = Some(vec![Dim::Free(None), Dim::Fixed(width)]);
    TensorSpec { name: name.into(), datatype: DataType::Fp32, dims }
}

fn floats(n: u16) -> Tensor {
    let values: Vec<f32> = (0..n).map(|i| f32::from(i) * 0.37 - 4.0).collect();
    Tensor::new(Shape::new(&[1, usize::from(n)]), Data::Fp32(values.into()))
        .expect("the shape has this number of elements")
}

fn offer(c: &mut Criterion) {
    let mut group = c.benchmark_group("record_offer");
    for width in [32_u16, 1000] {
        let dir = tempfile::TempDir::new().expect("a temporary directory");
        let config = Config { queue_bytes: 256 << 20, ..Config::of(dir.path().to_owned()) };
        let (log, stop) = Log::start(config, Quality::default(), &Telemetry::new()).expect("a log");
        let signature = Signature::new(vec![spec("x", usize::from(width))], vec![spec("y", 8)]);
        let input = NamedTensor { name: "x".into(), tensor: floats(width) };
        let request = InferenceRequest { inputs: vec![input], ..InferenceRequest::default() };
        let request = signature.check(request).expect("the request fits the signature");
        let answer = Answer::from(vec![("y".into(), floats(8))]);
        let about = About {
            model: "m".parse().expect("a name"),
            version: "1".parse().expect("a version"),
            sha256: "0".repeat(64),
            signature,
            hashed: [].into(),
            dropped: [].into(),
        };
        let stream = log.stream(&about, &Choice::default()).expect("the choice is enabled");
        let prediction = Prediction {
            request_id: "0199a2f4-7a11-7cc0-9d5e-0b8f6a5e2c11",
            ts: record::now(),
            role: Role::Primary,
            arm: "1",
            route_key: None,
            traceparent: None,
            request: &request,
            outcome: Ok(&answer),
            latency_us: 120,
            infer_us: 20,
            batch_rows: 1,
            sample_rate: 1.0,
        };
        group.bench_function(BenchmarkId::from_parameter(format!("{width}_floats")), |b| {
            b.iter_custom(|times| {
                let mut took = Duration::ZERO;
                let mut left = times;
                while left > 0 {
                    let now = left.min(BURST);
                    let started = Instant::now();
                    for _ in 0..now {
                        let _ = black_box(log.offer(&stream, black_box(&prediction), true));
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

criterion_group!(benches, offer);

fn main() {
    let measured = Measured::from_now();
    benches();
    Criterion::default().configure_from_args().final_summary();
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
