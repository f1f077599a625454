use super::*;
use crate::backend::RunError;
use crate::backend::fake::Fake;
use crate::compare::Tolerance;
use crate::model::{
    Answer, Checked, Code, Dim, Failure, InferenceRequest, ModelName, NamedTensor, RequestId, Role, Signature,
    TensorSpec,
};
use crate::registry::tests::fixture::{self, version};
use crate::registry::{self, Loaded, RequestContext, Snapshot, Timing, Writer};
use crate::route::{Document, Proposal};
use crate::tensor::{Data, DataType, Shape, Tensor};
use std::time::Instant;

fn model() -> ModelName {
    "m".parse().unwrap()
}

fn signature() -> Signature {
    let spec =
        |name: &str| TensorSpec { name: name.into(), datatype: DataType::Fp32, dims: Some(vec![Dim::Free(None)]) };
    Signature::new(vec![spec("x")], vec![spec("y")])
}

fn numbers(values: &[f32]) -> Tensor {
    Tensor::new(Shape::new(&[values.len()]), Data::Fp32(values.to_vec().into())).unwrap()
}

/// A model that answers x + `off(x)`.
fn adding(off: impl Fn(f32) -> f32 + Send + Sync + 'static) -> Fake {
    Fake::new(signature(), move |request: &Checked| {
        let Data::Fp32(x) = request.inputs()[0].data() else { unreachable!() };
        vec![numbers(&x.iter().map(|x| x + off(*x)).collect::<Vec<_>>())]
    })
}

fn loaded(n: u64, fake: &Fake, sha256: &str) -> Arc<Loaded> {
    fixture::loaded(n, fake.model(), sha256)
}

/// A model whose version 1 answers, and its shadows.
struct Fixture {
    writer: Writer,
    shadows: Shadows,
    versions: Vec<Arc<Loaded>>,
    revision: u64,
}

impl Fixture {
    fn new(threads: usize, queue: usize, queue_bytes: usize, versions: Vec<Arc<Loaded>>) -> Fixture {
        let (writer, reader) = registry::new();
        let config = Config { threads: NonZeroUsize::new(threads).unwrap(), queue, queue_bytes };
        let shadows = Shadows::start(config, Figures::new(3), reader, None).unwrap();
        let mut fixture = Fixture { writer, shadows, versions, revision: 0 };
        let all: Vec<u64> = fixture.versions.iter().map(|l| l.version.number()).filter(|n| *n > 1).collect();
        fixture.shadow(&all);
        fixture
    }

    /// Publishes a document in which version 1 answers and these are the shadows.
    fn shadow(&mut self, shadows: &[u64]) {
        let list: Vec<_> = shadows.iter().map(|n| serde_json::json!({"version": n.to_string()})).collect();
        let document = serde_json::json!({"split": [{"version": "1", "weight": 1}], "shadows": list});
        let document: Document = Proposal::parse(&document).unwrap().document;
        self.revision += 1;
        let entry = fixture::entry("m", &self.versions, Some(document), self.revision).unwrap();
        self.writer.publish(Snapshot::default().with(entry));
    }

    fn original(&self, id: &str, x: &[f32], outcome: Result<Vec<f32>, Failure>) -> Original {
        let facts = &self.versions[0].facts;
        let inputs = vec![NamedTensor { name: "x".to_owned(), tensor: numbers(x) }];
        let request = facts.signature.check(InferenceRequest { inputs, ..InferenceRequest::default() }).unwrap();
        Original {
            context: RequestContext {
                id: RequestId::from_caller(id.to_owned()).unwrap(),
                identity: Arc::clone(&Served::new(Arc::clone(&self.versions[0]), Role::Primary, "1").identity),
                revision: self.revision,
                tolerance: Tolerance::default(),
                recording: None,
            },
            request: Arc::new(request),
            outcome: outcome.map(|y| Answer::from(vec![("y".into(), numbers(&y))])),
            timing: Timing { ts: 0, latency: Duration::ZERO, infer: Duration::from_micros(10), batch_rows: 1 },
            recorded: false,
        }
    }

    fn offer(&self, original: Original, busy: bool) {
        let snapshot = self.writer.snapshot();
        let to: Vec<Arc<Served>> =
            snapshot.model("m").unwrap().shadows().iter().map(|s| Arc::clone(&s.served)).collect();
        let admitted: Vec<_> = to.into_iter().filter(|shadow| self.shadows.admit(shadow, busy)).collect();
        let targets = admitted.into_iter().map(|served| Target { served, stream: None });
        self.shadows.offer(original, targets);
    }

    /// Offers a request that version 1 answered with the request's own input.
    fn echoed(&self, id: &str, x: &[f32]) {
        self.offer(self.original(id, x, Ok(x.to_vec())), false);
    }

    fn counts(&self, n: u64) -> &crate::telemetry::ShadowMetrics {
        self.versions.iter().find(|l| l.version == version(n)).unwrap().metrics.shadow()
    }

    fn pair(&self, shadow: u64) -> PairFigures {
        let all = self.shadows.figures().of(&model());
        all.into_iter().find(|pair| pair.shadow == version(shadow)).expect("the pair was compared")
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.shadows.stop();
    }
}

#[track_caller]
fn eventually(what: &str, condition: impl Fn() -> bool) {
    let limit = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < limit, "timed out waiting for {what}");
        std::thread::yield_now();
    }
}

#[test]
fn figures_of_a_known_difference_are_exact() {
    let echo = adding(|_| 0.0);
    let off = adding(|x| if x % 10.0 == 0.0 { 0.5 } else { 0.0 });
    let fixture = Fixture::new(1, 1000, 1 << 20, vec![loaded(1, &echo, "a"), loaded(2, &off, "b")]);
    for i in 0..200u16 {
        fixture.echoed(&format!("r{i}"), &[f32::from(i)]);
    }
    eventually("200 comparisons", || fixture.counts(2).compared_so_far() == 200);
    let pair = fixture.pair(2);
    assert_eq!((pair.primary, pair.pairs, pair.agreed), (version(1), 200, 180));
    assert_eq!(pair.agreement(), Some(0.9));
    let y = &pair.outputs[0];
    assert_eq!((y.name.as_str(), y.pairs, y.agreed, y.elements, y.outside), ("y", 200, 180, 200, 20));
    assert_eq!((y.largest, y.nonfinite, y.incomparable), (Some(0.5), 0, 0));
    assert!((y.mean().unwrap() - 0.05).abs() < 1e-12);
    assert_eq!(y.share_within(), 0.9);
    assert_eq!(fixture.counts(2).disagreed_so_far(), 20);
    let worst: Vec<&str> = pair.worst.iter().map(|w| w.request_id.as_str()).collect();
    assert_eq!(worst, ["r0", "r10", "r20"], "of equally bad answers the first three are kept");
    assert!(matches!(&pair.worst[0].shadow, Side::Answered(answer) if answer.outputs[0].1 == numbers(&[0.5])));
    let agreement = fixture.shadows.figures().agreement(&model(), &[version(1)].into(), version(2));
    assert_eq!(agreement, Agreement { pairs: 200, agreed: 180 });
    let none = fixture.shadows.figures().agreement(&model(), &[version(9)].into(), version(2));
    assert_eq!(none, Agreement::default());
}

#[test]
fn failures_are_counted_by_side_and_rank_as_the_worst() {
    let (echo, shadow) = (adding(|_| 0.0), adding(|_| 1.0));
    let fixture = Fixture::new(1, 1000, 1 << 20, vec![loaded(1, &echo, "a"), loaded(2, &shadow, "b")]);
    let broken = || Failure::new(Code::EngineFailed, "the primary's engine failed");
    fixture.echoed("apart", &[1.0]);
    fixture.offer(fixture.original("primary", &[1.0], Err(broken())), false);
    eventually("two comparisons", || fixture.counts(2).compared_so_far() == 2);
    shadow.fail_next(RunError::Refused("no such class".to_owned()));
    fixture.echoed("shadow", &[1.0]);
    eventually("the third", || fixture.counts(2).compared_so_far() == 3);
    shadow.panic_next();
    fixture.offer(fixture.original("both", &[1.0], Err(broken())), false);
    eventually("the fourth", || fixture.counts(2).compared_so_far() == 4);
    let pair = fixture.pair(2);
    assert_eq!((pair.pairs, pair.agreed), (4, 0));
    assert_eq!((pair.primary_failed, pair.shadow_failed, pair.both_failed), (1, 1, 1));
    assert_eq!(pair.agreement(), Some(0.0));
    let worst: Vec<&str> = pair.worst.iter().map(|w| w.request_id.as_str()).collect();
    assert_eq!(worst, ["primary", "shadow", "apart"]);
    assert_eq!(pair.worst[1].words(), "the shadow failed: no such class");
    assert_eq!(fixture.counts(2).disagreed_so_far(), 1, "failures are counted separately");
    let agreement = fixture.shadows.figures().agreement(&model(), &[version(1)].into(), version(2));
    assert_eq!(agreement, Agreement { pairs: 3, agreed: 0 }, "a pair in which both failed does not count");
}

#[test]
fn too_many_copies_for_one_shadow_do_not_push_out_another() {
    let (echo, flooded, other) = (adding(|_| 0.0), adding(|_| 0.0), adding(|_| 0.0));
    flooded.block();
    let versions = vec![loaded(1, &echo, "a"), loaded(2, &flooded, "b"), loaded(3, &other, "c")];
    let fixture = Fixture::new(1, 4, 1 << 20, versions);
    let snapshot = fixture.writer.snapshot();
    let shadows = snapshot.model("m").unwrap().shadows();
    let offer = |shadow: usize| {
        let served = &shadows[shadow].served;
        if fixture.shadows.admit(served, false) {
            fixture.shadows.offer(
                fixture.original("r", &[1.0], Ok(vec![1.0])),
                [Target { served: Arc::clone(served), stream: None }],
            );
        }
    };
    offer(0);
    flooded.wait_for_waiting(1);
    (0..20).for_each(|_| offer(0));
    (0..3).for_each(|_| offer(1));
    // Of the four copies that are admitted, one is running.
    assert_eq!(fixture.counts(2).dropped_so_far(Dropped::QueueFull), 17);
    assert_eq!((fixture.counts(2).offered_so_far(), fixture.counts(2).compared_so_far()), (21, 0));
    flooded.unblock();
    eventually("the other shadow's comparisons", || fixture.counts(3).compared_so_far() == 3);
    eventually("the comparisons of the full shadow", || fixture.counts(2).compared_so_far() == 4);
}

#[test]
fn copies_for_a_removed_shadow_are_dropped() {
    let (echo, slow) = (adding(|_| 0.0), adding(|_| 0.0));
    slow.block();
    let mut fixture = Fixture::new(1, 100, 1 << 20, vec![loaded(1, &echo, "a"), loaded(2, &slow, "b")]);
    for i in 0..10 {
        fixture.echoed(&format!("r{i}"), &[1.0]);
    }
    slow.wait_for_waiting(1);
    fixture.shadow(&[]);
    eventually("nine dropped copies", || fixture.counts(2).dropped_so_far(Dropped::Gone) == 9);
    slow.unblock();
    eventually("the running copy", || fixture.counts(2).compared_so_far() == 1);
    fixture.writer.collect();
    // Only the loaded version holds the runner: no copy is left.
    let held = || Arc::strong_count(&fixture.versions[1].runner);
    eventually("the version's release", || held() == 1);
}

#[test]
fn copies_made_under_an_older_document_do_not_count_for_the_newer_one() {
    let (echo, slow) = (adding(|_| 0.0), adding(|x| if x > 9.0 { 1.0 } else { 0.0 }));
    slow.block();
    let mut fixture = Fixture::new(1, 100, 1 << 20, vec![loaded(1, &echo, "a"), loaded(2, &slow, "b")]);
    for i in 0..10 {
        fixture.echoed(&format!("old{i}"), &[12.0]);
    }
    slow.wait_for_waiting(1);
    // The same shadow under a newer document. The waiting copies still run, but do not count for the new revision.
    fixture.shadow(&[2]);
    fixture.echoed("new", &[1.0]);
    slow.unblock();
    eventually("all comparisons", || fixture.counts(2).compared_so_far() == 11);
    let figures = fixture.shadows.figures();
    let (model, primaries, shadow) = (model(), [version(1)].into(), version(2));
    assert_eq!(figures.agreement(&model, &primaries, shadow), Agreement { pairs: 11, agreed: 1 });
    let under = |revision| figures.agreement_under(revision, &model, &primaries, shadow);
    assert_eq!(under(2), Agreement { pairs: 1, agreed: 1 });
    assert_eq!(
        (under(1), under(3)),
        (Agreement::default(), Agreement::default()),
        "nothing for an older or a future revision"
    );
}

#[test]
fn dropped_copies_are_counted_by_reason() {
    let (echo, slow) = (adding(|_| 0.0), adding(|_| 0.0));
    slow.block();
    // Enough bytes for two requests of 10 floats in and 10 out.
    let fixture = Fixture::new(1, 100, 2 * 80, vec![loaded(1, &echo, "a"), loaded(2, &slow, "b")]);
    for i in 0..5 {
        fixture.echoed(&format!("r{i}"), &[1.0; 10]);
    }
    let counts = fixture.counts(2);
    assert_eq!(counts.dropped_so_far(Dropped::QueueBytes), 3);
    fixture.offer(fixture.original("busy", &[1.0], Ok(vec![1.0])), true);
    assert_eq!(counts.dropped_so_far(Dropped::Busy), 1);
    slow.wait_for_waiting(1);
    fixture.shadows.stop();
    eventually("the waiting copy", || counts.dropped_so_far(Dropped::Stopping) == 1);
    fixture.echoed("late", &[1.0]);
    assert_eq!(counts.dropped_so_far(Dropped::Stopping), 2);
    slow.unblock();
    eventually("the running copy", || counts.compared_so_far() == 1);
    let dropped: u64 = Dropped::ALL.iter().map(|reason| counts.dropped_so_far(*reason)).sum();
    assert_eq!(counts.offered_so_far(), counts.compared_so_far() + dropped);
}

#[test]
fn bytes_are_released_when_copies_finish() {
    let (echo, shadow) = (adding(|_| 0.0), adding(|_| 0.0));
    let fixture = Fixture::new(1, 100, 8, vec![loaded(1, &echo, "a"), loaded(2, &shadow, "b")]);
    for i in 0..50 {
        fixture.echoed(&format!("r{i}"), &[1.0]);
        eventually("released bytes", || fixture.shadows.0.waiting_bytes.load(Ordering::Acquire) == 0);
    }
    assert_eq!(fixture.counts(2).compared_so_far(), 50);
}

#[test]
fn figures_restart_when_a_versions_bytes_change() {
    let (echo, shadow) = (adding(|_| 0.0), adding(|_| 1.0));
    let mut fixture = Fixture::new(1, 100, 1 << 20, vec![loaded(1, &echo, "a"), loaded(2, &shadow, "b")]);
    fixture.echoed("old", &[1.0]);
    eventually("the comparison of the old bytes", || fixture.counts(2).compared_so_far() == 1);
    assert_eq!(fixture.pair(2).agreed, 0);
    fixture.versions[1] = loaded(2, &adding(|_| 0.0), "c");
    fixture.shadow(&[2]);
    fixture.echoed("new", &[1.0]);
    eventually("the comparison of the new bytes", || fixture.counts(2).compared_so_far() == 1);
    let pair = fixture.pair(2);
    assert_eq!((pair.pairs, pair.agreed, pair.worst.len()), (1, 1, 0));
}

#[test]
fn a_shadow_with_another_signature_runs_where_the_request_fits_and_fails_otherwise() {
    let echo = adding(|_| 0.0);
    let wider = TensorSpec { name: "y".into(), datatype: DataType::Fp32, dims: Some(vec![Dim::Free(None)]) };
    let spec = |name: &str| TensorSpec { name: name.into(), ..wider.clone() };
    // The same input and one more output: only the primary's output is requested.
    let more = Signature::new(vec![spec("x")], vec![spec("z"), spec("y")]);
    let more = Fake::constant(more, vec![numbers(&[9.0]), numbers(&[1.0])]);
    let other = Fake::constant(Signature::new(vec![spec("w")], vec![spec("y")]), vec![numbers(&[1.0])]);
    let versions = vec![loaded(1, &echo, "a"), loaded(2, &more, "b"), loaded(3, &other, "c")];
    let fixture = Fixture::new(1, 100, 1 << 20, versions);
    fixture.echoed("r", &[1.0]);
    eventually("both comparisons", || fixture.counts(2).compared_so_far() + fixture.counts(3).compared_so_far() == 2);
    assert_eq!((fixture.pair(2).pairs, fixture.pair(2).agreed), (1, 1));
    assert_eq!(fixture.pair(3).shadow_failed, 1);
    assert!(fixture.pair(3).worst[0].words().contains("\"x\""), "{}", fixture.pair(3).worst[0].words());
}

#[test]
fn large_outputs_are_not_kept() {
    let (echo, shadow) = (adding(|_| 0.0), adding(|_| 1.0));
    let fixture = Fixture::new(1, 100, 1 << 20, vec![loaded(1, &echo, "a"), loaded(2, &shadow, "b")]);
    fixture.echoed("large", &vec![1.0; 5000]);
    eventually("the comparison", || fixture.counts(2).compared_so_far() == 1);
    let pair = fixture.pair(2);
    assert!(matches!(pair.worst[0].shadow, Side::TooLarge(20_000)), "{:?}", pair.worst[0].shadow);
    assert!(pair.worst[0].words().contains("5000 of 5000 elements differ"), "{}", pair.worst[0].words());
}

#[test]
fn waiting_copies_do_not_keep_the_primary_loaded() {
    let (echo, slow) = (adding(|_| 0.0), adding(|_| 0.0));
    slow.block();
    let mut fixture = Fixture::new(1, 100, 1 << 20, vec![loaded(1, &echo, "a"), loaded(2, &slow, "b")]);
    (0..5).for_each(|i| fixture.echoed(&format!("r{i}"), &[1.0]));
    slow.wait_for_waiting(1);
    fixture.writer.publish(Snapshot::default());
    fixture.writer.collect();
    assert_eq!(Arc::strong_count(&fixture.versions[0]), 1);
    slow.unblock();
}

#[test]
fn a_shadow_thread_that_panics_counts_the_copy_and_goes_on() {
    let echo = adding(|_| 0.0);
    let short = Signature::new(signature().inputs().to_vec(), vec![]);
    // The shadow's signature has no output, so the one the request names cannot be found in it.
    let other = Fake::new(short, |_| vec![]);
    let panicking = adding(|_| panic!("on purpose"));
    let versions = vec![loaded(1, &echo, "a"), loaded(2, &other, "b"), loaded(3, &panicking, "c")];
    let fixture = Fixture::new(1, 100, 1 << 20, versions);
    fixture.echoed("r", &[1.0]);
    fixture.echoed("s", &[1.0]);
    eventually("all comparisons", || fixture.counts(2).compared_so_far() + fixture.counts(3).compared_so_far() == 4);
    assert_eq!((fixture.pair(2).shadow_failed, fixture.pair(3).shadow_failed), (2, 2));
}

#[test]
fn a_copy_whose_run_does_not_end_is_ended_or_its_thread_is_replaced() {
    let (echo, held) = (adding(|_| 0.0), adding(|_| 0.0));
    let fixture = Fixture::new(1, 1000, 1 << 20, vec![loaded(1, &echo, "a"), loaded(2, &held, "b")]);
    held.block();
    fixture.echoed("heeds its interrupt", &[1.0]);
    eventually("the copy fails", || fixture.counts(2).compared_so_far() == 1);
    let pair = fixture.pair(2);
    assert_eq!((pair.pairs, pair.agreed), (1, 0), "the shadow failed");
    held.ignore_interrupts();
    fixture.echoed("ignores it", &[2.0]);
    fixture.echoed("runs on another thread", &[3.0]);
    held.wait_for_waiting(2);
    held.unblock();
    eventually("both copies are compared", || fixture.counts(2).compared_so_far() == 3);
    assert_eq!(fixture.pair(2).agreed, 2);
}
