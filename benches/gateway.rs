//! The time of reading the published snapshot, of one whole request without the socket, and of requests that are ready in one turn.

use bytes::Bytes;
use criterion::{Criterion, criterion_group, criterion_main};
use sluicegate::backend::{EngineChoice, Engines, VersionFiles};
use sluicegate::codec::oip;
use sluicegate::execute::{Batching, Config, Executor, Runner};
use sluicegate::model::{ModelName, Parameters, RequestId, Requester, Version};
use sluicegate::registry::{self, Entry, Facts, Limits, Loaded, Snapshot, State, VersionStatus, Writer};
use sluicegate::route::{Document, RouteRequest, Selector};
use sluicegate::serve::Gateway;
use sluicegate::shadow::{self, Figures, Shadows};
use sluicegate::telemetry::{Telemetry, VersionMetrics};
use std::collections::BTreeMap;
use std::hint::black_box;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

fn load(telemetry: &Telemetry, batching: Batching) -> Arc<Loaded> {
    let files = VersionFiles::of("models/mlp32/1");
    let model = Engines::discover(None).load(EngineChoice::Auto, &files).expect("models/mlp32/1 loads");
    let (name, version): (ModelName, Version) = ("mlp32".parse().expect("a name"), "1".parse().expect("a version"));
    let facts = Facts {
        signature: model.signature().clone(),
        sha256: String::new(),
        engine: model.engine(),
        bytes: 0,
        load: Duration::ZERO,
        verify: Duration::ZERO,
        warm: Duration::ZERO,
        golden_cases: 0,
        metadata: serde_json::Value::Null,
        origin: sluicegate::registry::Origin::default(),
        profile: None,
    };
    Arc::new(Loaded {
        metrics: VersionMetrics::new(telemetry.scope(), name.clone(), version),
        runner: Arc::new(Runner::new(model).with_batching(batching)),
        facts: Arc::new(facts),
        limits: Limits::default(),
        breaker: sluicegate::registry::Breaker::new(None),
        version,
        model: name,
    })
}

fn alone() -> Batching {
    Batching::Off { why: String::new() }
}

fn entry(loaded: &Arc<Loaded>) -> Entry {
    let status = VersionStatus {
        version: loaded.version,
        state: State::Serving,
        stage: None,
        reason: None,
        notes: Vec::new(),
        facts: Some(Arc::clone(&loaded.facts)),
        loaded: Some(Arc::clone(loaded)),
    };
    let versions = BTreeMap::from([(loaded.version, status)]);
    Entry::new(loaded.model.clone(), versions, Some(Document::single(loaded.version)), 1, false, false)
        .expect("the document names the loaded version")
}

/// Publishes in the background every `pause`, until `done`.
fn swapping(
    mut writer: Writer,
    loaded: Arc<Loaded>,
    done: Arc<AtomicBool>,
    pause: Duration,
) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        while !done.load(Ordering::Relaxed) {
            writer.publish(Snapshot::default().with(entry(&loaded)));
            std::thread::park_timeout(pause);
        }
    })
}

fn snapshot(c: &mut Criterion) {
    let telemetry = Telemetry::new();
    let loaded = load(&telemetry, alone());
    let mut group = c.benchmark_group("snapshot");
    for (name, pause) in [("read_alone", None), ("read_under_swaps", Some(Duration::from_millis(1)))] {
        let (mut writer, reader) = registry::new();
        writer.publish(Snapshot::default().with(entry(&loaded)));
        let done = Arc::new(AtomicBool::new(false));
        let swapper = pause.map(|pause| swapping(writer, Arc::clone(&loaded), Arc::clone(&done), pause));
        group.bench_function(name, |b| b.iter(|| black_box(reader.snapshot())));
        done.store(true, Ordering::Relaxed);
        if let Some(swapper) = swapper {
            swapper.thread().unpark();
            swapper.join().expect("the swapper ends");
        }
    }
    group.finish();
}

/// A gateway without a log that serves this version.
fn gateway(loaded: &Arc<Loaded>) -> Gateway {
    let (mut writer, reader) = registry::new();
    writer.publish(Snapshot::default().with(entry(loaded)));
    let config = Config { queue: 16, ..Config::default() };
    let shadow_config = shadow::Config { threads: NonZeroUsize::MIN, queue: 16, queue_bytes: 1 << 20 };
    let shadows = Shadows::start(shadow_config, Figures::default(), reader.clone(), None).expect("a shadow thread");
    Gateway::new(reader, Executor::start(&config).expect("a worker thread"), shadows, None)
}

fn json_of_one_row() -> Bytes {
    let data: Vec<String> = (0..32).map(|i| format!("{:.3}", f64::from(i) * 0.37 - 4.0)).collect();
    Bytes::from(format!(
        "{{\"inputs\":[{{\"name\":\"x\",\"shape\":[1,32],\"datatype\":\"FP32\",\"data\":[{}]}}]}}",
        data.join(",")
    ))
}

/// A whole request, from the bytes of its body to the bytes of its answer.
async fn answer(gateway: &Gateway, body: &Bytes) -> Bytes {
    let started = Instant::now();
    let oip::OipRequest { request, form } = oip::decode(body, None).expect("a valid body");
    let id = RequestId::generate();
    let none = Parameters::new();
    let snapshot = gateway.snapshot();
    let mut active = {
        let route =
            RouteRequest { selector: Selector::Traffic, header: &|_| None, parameters: &none, request_id: id.as_str() };
        gateway.open(&snapshot, "mlp32", &route, &id, started).expect("mlp32 is served")
    };
    let deadline = started + Duration::from_secs(10);
    let output = gateway.infer(&mut active, request, deadline, Requester::default()).await.expect("mlp32 answers");
    let version = active.served().version_text.clone();
    let head = oip::AnswerHead { model_name: "mlp32", model_version: Some(&version), id: id.as_str() };
    let answer = oip::encode(&output.answer, &head, &form).expect("floats have a JSON form");
    let ended = gateway.end(active, Ok(output), deadline).await.expect("nothing is recorded");
    assert!(ended.is_none(), "there are no shadows");
    answer.body
}

fn whole_request(c: &mut Criterion) {
    let telemetry = Telemetry::new();
    let gateway = gateway(&load(&telemetry, alone()));
    let body = json_of_one_row();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    c.bench_function("whole_request_json_mlp32", |b| {
        b.iter(|| black_box(runtime.block_on(answer(&gateway, &body))));
    });
    // Samples accumulate until they are folded, which the control thread does every second in a server.
    telemetry.upkeep();
}

/// One I/O thread on which this many requests are ready: `alone` runs each for itself, `together` gathers those of a turn.
fn turn(c: &mut Criterion) {
    let telemetry = Telemetry::new();
    let together = Batching::On { why: String::new(), max_rows: 128 };
    let mut group = c.benchmark_group("turn_json_mlp32");
    for (name, batching) in [("alone", alone()), ("together", together)] {
        let gateway = Arc::new(gateway(&load(&telemetry, batching)));
        let body = json_of_one_row();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            tokio::spawn(gateway.executor().end_turns());
            tokio::task::yield_now().await;
        });
        for ready in [1u64, 8, 32] {
            group.throughput(criterion::Throughput::Elements(ready));
            group.bench_function(format!("{name}_{ready}"), |b| {
                b.iter(|| {
                    runtime.block_on(async {
                        let request = || {
                            let (gateway, body) = (Arc::clone(&gateway), body.clone());
                            tokio::spawn(async move { answer(&gateway, &body).await })
                        };
                        let tasks: Vec<_> = (0..ready).map(|_| request()).collect();
                        for task in tasks {
                            black_box(task.await.expect("no panic"));
                        }
                    });
                });
            });
        }
        telemetry.upkeep();
    }
    group.finish();
}

criterion_group!(benches, snapshot, whole_request, turn);
criterion_main!(benches);
