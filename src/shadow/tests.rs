use super::*;
use crate::backend::RunError;
use crate::backend::fake::Fake;
use crate::compare::Tolerance;
use crate::model::{
    Answer, Checked, Code, Dim, Failure, InferenceRequest, ModelName, NamedTensor, RequestId, Signature, TensorSpec,
};
use crate::registry::tests::fixture::{self, version};
use crate::registry::{self, Loaded, Snapshot, Writer};
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

/// Answers x + `off(x)`.
fn adding(off: impl Fn(f32) -> f32 + Send + Sync + 'static) -> Fake {
    Fake::new(signature(), move |request: &Checked| {
        let Data::Fp32(x) = request.inputs()[0].data() else { unreachable!() };
        vec![numbers(&x.iter().map(|x| x + off(*x)).collect::<Vec<_>>())]
    })
}

fn loaded(n: u64, fake: &Fake, sha256: &str) -> Arc<Loaded> {
    fixture::loaded(n, fake.model(), sha256)
}

/// A model of version 1, which answers, and shadows.
struct House {
    writer: Writer,
    shadows: Shadows,
    versions: Vec<Arc<Loaded>>,
    revision: u64,
}

impl House {
    fn new(threads: usize, queue: usize, queue_bytes: usize, versions: Vec<Arc<Loaded>>) -> House {
        let (writer, reader) = registry::new();
        let config = Config { threads: NonZeroUsize::new(threads).unwrap(), queue, queue_bytes };
        let shadows = Shadows::start(config, Figures::new(3), reader, None).unwrap();
        let mut house = House { writer, shadows, versions, revision: 0 };
        let all: Vec<u64> = house.versions.iter().map(|l| l.version.number()).filter(|n| *n > 1).collect();
        house.shadow(&all);
        house
    }

    /// Version 1 answers; these are its shadows from now on.
    fn shadow(&mut self, shadows: &[u64]) {
        let list: Vec<_> = shadows.iter().map(|n| serde_json::json!({"version": n.to_string()})).collect();
        let document = serde_json::json!({"split": [{"version": "1", "weight": 1}], "shadows": list});
        let document: Document = Proposal::parse(&document).unwrap().document;
        self.revision += 1;
        let entry = fixture::entry("m", &self.versions, Some(document), self.revision).unwrap();
        self.writer.publish(Snapshot::default().with(entry));
    }

    fn original(&self, id: &str, x: &[f32], outcome: Result<Vec<f32>, Failure>) -> Original {
        let facts = Arc::clone(&self.versions[0].facts);
        let inputs = vec![NamedTensor { name: "x".to_owned(), tensor: numbers(x) }];
        let request = facts.signature.check(InferenceRequest { inputs, ..InferenceRequest::default() }).unwrap();
        Original {
            model: model(),
            primary: version(1),
            facts,
            arm: "1".into(),
            request_id: RequestId::from_caller(id.to_owned()).unwrap(),
            request: Arc::new(request),
            outcome: outcome.map(|y| Answer { outputs: vec![("y".into(), numbers(&y))] }),
            infer: Duration::from_micros(10),
            tolerance: Tolerance::default(),
            revision: self.revision,
            recording: None,
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

    /// Offers a request that version 1 answered with its own input.
    fn echoed(&self, id: &str, x: &[f32]) {
        self.offer(self.original(id, x, Ok(x.to_vec())), false);
    }

    fn counts(&self, n: u64) -> &crate::telemetry::ShadowMetrics {
        self.versions.iter().find(|l| l.version == version(n)).unwrap().metrics.shadow()
    }

    fn pair(&self, shadow: u64) -> PairFigures {
        let all = self.shadows.figures().of(&model());
        all.into_iter().find(|pair| pair.shadow == version(shadow)).expect("compared before")
    }
}

impl Drop for House {
    fn drop(&mut self) {
        self.shadows.stop();
    }
}

#[track_caller]
fn eventually(what: &str, condition: impl Fn() -> bool) {
    let patience = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < patience, "{what} did not come");
        std::thread::yield_now();
    }
}

#[test]
fn a_known_difference_gives_exactly_its_figures() {
    let echo = adding(|_| 0.0);
    let off = adding(|x| if x % 10.0 == 0.0 { 0.5 } else { 0.0 });
    let house = House::new(1, 1000, 1 << 20, vec![loaded(1, &echo, "a"), loaded(2, &off, "b")]);
    for i in 0..200u16 {
        house.echoed(&format!("r{i}"), &[f32::from(i)]);
    }
    eventually("200 comparisons", || house.counts(2).compared_so_far() == 200);
    let pair = house.pair(2);
    assert_eq!((pair.primary, pair.pairs, pair.agreed), (version(1), 200, 180));
    assert_eq!(pair.agreement(), Some(0.9));
    let y = &pair.outputs[0];
    assert_eq!((y.name.as_str(), y.pairs, y.agreed, y.elements, y.outside), ("y", 200, 180, 200, 20));
    assert_eq!((y.largest, y.nonfinite, y.incomparable), (Some(0.5), 0, 0));
    assert!((y.mean().unwrap() - 0.05).abs() < 1e-12);
    assert_eq!(y.share_within(), 0.9);
    assert_eq!(house.counts(2).disagreed_so_far(), 20);
    let worst: Vec<&str> = pair.worst.iter().map(|w| w.request_id.as_str()).collect();
    assert_eq!(worst, ["r0", "r10", "r20"], "the first of equally bad ones, as many as are kept");
    assert!(matches!(&pair.worst[0].shadow, Side::Answered(answer) if answer.outputs[0].1 == numbers(&[0.5])));
    let agreement = house.shadows.figures().agreement(&model(), &[version(1)].into(), version(2));
    assert_eq!(agreement, Agreement { pairs: 200, agreed: 180 });
    let none = house.shadows.figures().agreement(&model(), &[version(9)].into(), version(2));
    assert_eq!(none, Agreement::default());
}

#[test]
fn failures_are_counted_on_their_side_and_are_the_worst() {
    let (echo, shadow) = (adding(|_| 0.0), adding(|_| 1.0));
    let house = House::new(1, 1000, 1 << 20, vec![loaded(1, &echo, "a"), loaded(2, &shadow, "b")]);
    let broken = || Failure::new(Code::EngineFailed, "the primary's engine failed");
    house.echoed("apart", &[1.0]);
    house.offer(house.original("primary", &[1.0], Err(broken())), false);
    eventually("two comparisons", || house.counts(2).compared_so_far() == 2);
    shadow.fail_next(RunError::Refused("no such class".to_owned()));
    house.echoed("shadow", &[1.0]);
    eventually("the third", || house.counts(2).compared_so_far() == 3);
    shadow.panic_next();
    house.offer(house.original("both", &[1.0], Err(broken())), false);
    eventually("the fourth", || house.counts(2).compared_so_far() == 4);
    let pair = house.pair(2);
    assert_eq!((pair.pairs, pair.agreed), (4, 0));
    assert_eq!((pair.primary_failed, pair.shadow_failed, pair.both_failed), (1, 1, 1));
    assert_eq!(pair.agreement(), Some(0.0));
    let worst: Vec<&str> = pair.worst.iter().map(|w| w.request_id.as_str()).collect();
    assert_eq!(worst, ["primary", "shadow", "apart"]);
    assert_eq!(pair.worst[1].words, "the shadow failed: no such class");
    assert_eq!(house.counts(2).disagreed_so_far(), 1, "failures are counted apart");
    let agreement = house.shadows.figures().agreement(&model(), &[version(1)].into(), version(2));
    assert_eq!(agreement, Agreement { pairs: 3, agreed: 0 }, "both failed says nothing");
}

#[test]
fn a_flood_to_one_shadow_pushes_out_no_other() {
    let (echo, flooded, other) = (adding(|_| 0.0), adding(|_| 0.0), adding(|_| 0.0));
    flooded.block();
    let versions = vec![loaded(1, &echo, "a"), loaded(2, &flooded, "b"), loaded(3, &other, "c")];
    let house = House::new(1, 4, 1 << 20, versions);
    let snapshot = house.writer.snapshot();
    let shadows = snapshot.model("m").unwrap().shadows();
    let offer = |shadow: usize| {
        let served = &shadows[shadow].served;
        if house.shadows.admit(served, false) {
            house.shadows.offer(
                house.original("r", &[1.0], Ok(vec![1.0])),
                [Target { served: Arc::clone(served), stream: None }],
            );
        }
    };
    offer(0);
    flooded.wait_for_waiting(1);
    (0..20).for_each(|_| offer(0));
    (0..3).for_each(|_| offer(1));
    // Of four that may wait, one is under way.
    assert_eq!(house.counts(2).dropped_so_far(Dropped::QueueFull), 17);
    assert_eq!((house.counts(2).offered_so_far(), house.counts(2).compared_so_far()), (21, 0));
    flooded.unblock();
    eventually("the other's", || house.counts(3).compared_so_far() == 3);
    eventually("the flooded one's", || house.counts(2).compared_so_far() == 4);
}

#[test]
fn copies_of_what_is_no_shadow_any_more_are_let_go() {
    let (echo, slow) = (adding(|_| 0.0), adding(|_| 0.0));
    slow.block();
    let mut house = House::new(1, 100, 1 << 20, vec![loaded(1, &echo, "a"), loaded(2, &slow, "b")]);
    for i in 0..10 {
        house.echoed(&format!("r{i}"), &[1.0]);
    }
    slow.wait_for_waiting(1);
    house.shadow(&[]);
    eventually("nine copies gone", || house.counts(2).dropped_so_far(Dropped::Gone) == 9);
    slow.unblock();
    eventually("the one that ran", || house.counts(2).compared_so_far() == 1);
    house.writer.collect();
    // The house's own and the published pin's: nothing here holds on to the version.
    let held = || Arc::strong_count(&house.versions[1].runner);
    eventually("the version is free", || held() == 1);
}

#[test]
fn what_an_older_document_copied_is_no_pair_of_the_newer_ones() {
    let (echo, slow) = (adding(|_| 0.0), adding(|x| if x > 9.0 { 1.0 } else { 0.0 }));
    slow.block();
    let mut house = House::new(1, 100, 1 << 20, vec![loaded(1, &echo, "a"), loaded(2, &slow, "b")]);
    for i in 0..10 {
        house.echoed(&format!("old{i}"), &[12.0]);
    }
    slow.wait_for_waiting(1);
    // The same shadow under a newer document: what waits is run, and says nothing of what this one began.
    house.shadow(&[2]);
    house.echoed("new", &[1.0]);
    slow.unblock();
    eventually("all of them", || house.counts(2).compared_so_far() == 11);
    let figures = house.shadows.figures();
    let (model, primaries, shadow) = (model(), [version(1)].into(), version(2));
    assert_eq!(figures.agreement(&model, &primaries, shadow), Agreement { pairs: 11, agreed: 1 });
    let under = |revision| figures.agreement_under(revision, &model, &primaries, shadow);
    assert_eq!(under(2), Agreement { pairs: 1, agreed: 1 });
    assert_eq!((under(1), under(3)), (Agreement::default(), Agreement::default()), "neither older nor yet to come");
}

#[test]
fn what_does_not_fit_is_dropped_by_its_reason() {
    let (echo, slow) = (adding(|_| 0.0), adding(|_| 0.0));
    slow.block();
    // Room for two requests of 10 floats in and 10 out.
    let house = House::new(1, 100, 2 * 80, vec![loaded(1, &echo, "a"), loaded(2, &slow, "b")]);
    for i in 0..5 {
        house.echoed(&format!("r{i}"), &[1.0; 10]);
    }
    let counts = house.counts(2);
    assert_eq!(counts.dropped_so_far(Dropped::QueueBytes), 3);
    house.offer(house.original("busy", &[1.0], Ok(vec![1.0])), true);
    assert_eq!(counts.dropped_so_far(Dropped::Busy), 1);
    slow.wait_for_waiting(1);
    house.shadows.stop();
    eventually("the one that waits", || counts.dropped_so_far(Dropped::Stopping) == 1);
    house.echoed("late", &[1.0]);
    assert_eq!(counts.dropped_so_far(Dropped::Stopping), 2);
    slow.unblock();
    eventually("the one under way", || counts.compared_so_far() == 1);
    let dropped: u64 = Dropped::ALL.iter().map(|why| counts.dropped_so_far(*why)).sum();
    assert_eq!(counts.offered_so_far(), counts.compared_so_far() + dropped);
}

#[test]
fn bytes_are_given_back_when_copies_are_done() {
    let (echo, shadow) = (adding(|_| 0.0), adding(|_| 0.0));
    let house = House::new(1, 100, 8, vec![loaded(1, &echo, "a"), loaded(2, &shadow, "b")]);
    for i in 0..50 {
        house.echoed(&format!("r{i}"), &[1.0]);
        eventually("one after the other", || house.shadows.0.waiting_bytes.load(Ordering::Acquire) == 0);
    }
    assert_eq!(house.counts(2).compared_so_far(), 50);
}

#[test]
fn other_bytes_begin_anew() {
    let (echo, shadow) = (adding(|_| 0.0), adding(|_| 1.0));
    let mut house = House::new(1, 100, 1 << 20, vec![loaded(1, &echo, "a"), loaded(2, &shadow, "b")]);
    house.echoed("old", &[1.0]);
    eventually("the old bytes", || house.counts(2).compared_so_far() == 1);
    assert_eq!(house.pair(2).agreed, 0);
    house.versions[1] = loaded(2, &adding(|_| 0.0), "c");
    house.shadow(&[2]);
    house.echoed("new", &[1.0]);
    eventually("the new bytes", || house.counts(2).compared_so_far() == 1);
    let pair = house.pair(2);
    assert_eq!((pair.pairs, pair.agreed, pair.worst.len()), (1, 1, 0));
}

#[test]
fn a_shadow_of_another_signature_gets_what_fits_it_and_fails_where_nothing_does() {
    let echo = adding(|_| 0.0);
    let wider = TensorSpec { name: "y".into(), datatype: DataType::Fp32, dims: Some(vec![Dim::Free(None)]) };
    let spec = |name: &str| TensorSpec { name: name.into(), ..wider.clone() };
    // The same input, one output more: asked for the primary's output alone.
    let more = Signature::new(vec![spec("x")], vec![spec("z"), spec("y")]);
    let more = Fake::constant(more, vec![numbers(&[9.0]), numbers(&[1.0])]);
    let other = Fake::constant(Signature::new(vec![spec("w")], vec![spec("y")]), vec![numbers(&[1.0])]);
    let versions = vec![loaded(1, &echo, "a"), loaded(2, &more, "b"), loaded(3, &other, "c")];
    let house = House::new(1, 100, 1 << 20, versions);
    house.echoed("r", &[1.0]);
    eventually("both", || house.counts(2).compared_so_far() + house.counts(3).compared_so_far() == 2);
    assert_eq!((house.pair(2).pairs, house.pair(2).agreed), (1, 1));
    assert_eq!(house.pair(3).shadow_failed, 1);
    assert!(house.pair(3).worst[0].words.contains("\"x\""), "{}", house.pair(3).worst[0].words);
}

#[test]
fn large_outputs_are_not_kept() {
    let (echo, shadow) = (adding(|_| 0.0), adding(|_| 1.0));
    let house = House::new(1, 100, 1 << 20, vec![loaded(1, &echo, "a"), loaded(2, &shadow, "b")]);
    house.echoed("large", &vec![1.0; 5000]);
    eventually("it", || house.counts(2).compared_so_far() == 1);
    let pair = house.pair(2);
    assert!(matches!(pair.worst[0].shadow, Side::TooLarge(20_000)), "{:?}", pair.worst[0].shadow);
    assert!(pair.worst[0].words.contains("5000 of 5000 elements differ"), "{}", pair.worst[0].words);
}
