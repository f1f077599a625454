//! What a version's breaker adds to each request: while nothing fails, while failures are counted, and while it is open.

use criterion::{Criterion, criterion_group, criterion_main};
use sluicegate::registry::{Admission, Breaker, BreakerConfig};
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// No failure count is reached, and no window ends while a benchmark runs.
fn config() -> BreakerConfig {
    BreakerConfig {
        failures: 1_000_000,
        window: Duration::from_hours(1),
        pause: Duration::from_hours(1),
        ..BreakerConfig::default()
    }
}

/// A request that the version answers.
fn answered(breaker: &Breaker, config: &BreakerConfig) {
    let admission = black_box(breaker).admit(Instant::now);
    black_box(breaker.answered(config, admission == Admission::Probe, Instant::now));
}

/// A breaker that remembers a failure.
fn counting(config: &BreakerConfig) -> Breaker {
    let breaker = Breaker::new(None);
    breaker.failed(config, false, Instant::now());
    breaker
}

fn requests(c: &mut Criterion) {
    let config = config();
    let clean = Breaker::new(None);
    c.bench_function("breaker_without_failures", |b| b.iter(|| answered(&clean, &config)));

    let counts = counting(&config);
    c.bench_function("breaker_counting", |b| b.iter(|| answered(&counts, &config)));

    let (counts, stop) = (counting(&config), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                answered(&counts, &config);
            }
        });
        c.bench_function("breaker_counting_beside_another_thread", |b| b.iter(|| answered(&counts, &config)));
        stop.store(true, Ordering::Relaxed);
    });

    let open = counting(&config);
    assert!(open.open(&config, Instant::now()), "it was closed");
    c.bench_function("breaker_open_refuses", |b| {
        b.iter(|| {
            let refused = black_box(&open).admit(Instant::now);
            assert!(matches!(refused, Admission::Refused { .. }), "no request may try within the pause");
        });
    });
}

criterion_group!(benches, requests);
criterion_main!(benches);
