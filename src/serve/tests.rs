use super::*;
use crate::backend::RunError;
use crate::backend::fake::Fake;
use crate::execute;
use crate::model::{Dim, NamedTensor, Parameters, TensorSpec};
use crate::registry::tests::fixture::{entry, loaded};
use crate::registry::{self, Limits, Loaded, Writer};
use crate::route::Proposal;
use crate::shadow::{self, Figures};
use crate::tensor::{Data, DataType, Shape, Tensor};
use serde_json::json;
use std::num::NonZeroUsize;

struct Fixture {
    gateway: Gateway,
    writer: Writer,
    primary: (Fake, Arc<Loaded>),
    shadow: (Fake, Arc<Loaded>),
    runtime: tokio::runtime::Runtime,
}

/// A model whose version 1 answers and whose version 2 is its shadow. All runs happen at once.
fn fixture(sample: f64) -> Fixture {
    fixture_with(sample, Duration::MAX)
}

fn fixture_with(sample: f64, inline_below: Duration) -> Fixture {
    let spec =
        |name: &str| TensorSpec { name: name.into(), datatype: DataType::Fp32, dims: Some(vec![Dim::Free(None)]) };
    let fake = || Fake::echo(Signature::new(vec![spec("x")], vec![spec("y")]));
    let version = |n: u64| {
        let fake = fake();
        let loaded = loaded(n, fake.model(), "");
        (fake, loaded)
    };
    let (primary, shadow) = (version(1), version(2));
    let document = json!({
        "split": [{"version": "1", "weight": 1}],
        "rules": [{"header": "x-cohort", "equals": "beta", "version": "1"}],
        "labels": {"stable": "1"},
        "shadows": [{"version": "2", "sample": sample}],
    });
    let document = Proposal::parse(&document).unwrap().document;
    let (mut writer, reader) = registry::new();
    let held = [Arc::clone(&primary.1), Arc::clone(&shadow.1)];
    writer.publish(Snapshot::default().with(entry("m", &held, Some(document), 1).unwrap()));
    let config = shadow::Config { threads: NonZeroUsize::MIN, queue: 100_000, queue_bytes: 1 << 30 };
    let shadows = Shadows::start(config, Figures::default(), reader.clone(), None).unwrap();
    let config = execute::Config { inline_below, queue: 1, ..execute::Config::default() };
    let gateway = Gateway::new(reader, Executor::start(&config).unwrap(), shadows, None);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    Fixture { gateway, writer, primary, shadow, runtime }
}

impl Fixture {
    fn open(&self, selector: Selector, cohort: Option<&'static str>) -> ActiveRequest {
        let header = |name: &str| cohort.filter(|_| name == "x-cohort");
        let request = RouteRequest { selector, header: &header, parameters: &Parameters::new(), request_id: "r" };
        let snapshot = self.gateway.snapshot();
        self.gateway.open(&snapshot, "m", &request, &RequestId::generate(), Instant::now()).unwrap()
    }

    fn infer(&self, active: &mut ActiveRequest, deadline: Duration) -> Result<RunOutput, Failure> {
        let tensor = Tensor::new(Shape::new(&[1]), Data::Fp32(vec![1.0].into())).unwrap();
        let inputs = vec![NamedTensor { name: "x".to_owned(), tensor }];
        let request = InferenceRequest { inputs, ..InferenceRequest::default() };
        self.runtime.block_on(self.gateway.infer(active, request, Instant::now() + deadline, Requester::default()))
    }

    fn end(&self, active: ActiveRequest, outcome: Result<RunOutput, Failure>) -> Option<ShadowCopies> {
        let deadline = Instant::now() + Duration::from_secs(10);
        self.runtime.block_on(self.gateway.end(active, outcome, deadline)).unwrap()
    }

    /// Whether such a request is copied to the shadow.
    fn is_copied(&self, selector: Selector, cohort: Option<&'static str>) -> bool {
        let mut active = self.open(selector, cohort);
        let outcome = self.infer(&mut active, Duration::from_secs(10));
        assert!(outcome.is_ok(), "{outcome:?}");
        self.end(active, outcome).is_some()
    }
}

#[test]
fn requests_routed_by_split_or_rule_are_copied_and_pinned_ones_are_not() {
    let fixture = fixture(1.0);
    assert!(fixture.is_copied(Selector::Traffic, None));
    assert!(fixture.is_copied(Selector::Traffic, Some("beta")));
    assert!(!fixture.is_copied(Selector::Version("1".parse().unwrap()), None));
    assert!(!fixture.is_copied(Selector::Label("stable"), None));
    assert!(!fixture.is_copied(Selector::Version("2".parse().unwrap()), None));
}

#[test]
fn a_caller_never_waits_for_a_shadow() {
    let fixture = fixture(1.0);
    fixture.shadow.0.block();
    for _ in 0..20 {
        let mut active = fixture.open(Selector::Traffic, None);
        let outcome = fixture.infer(&mut active, Duration::from_secs(10));
        fixture.gateway.mirror(fixture.end(active, outcome).unwrap());
    }
    // All twenty are answered and offered, and the shadow has not run yet.
    assert_eq!(fixture.primary.0.runs(), 20);
    assert_eq!(fixture.shadow.1.metrics.shadow().offered_so_far(), 20);
    assert_eq!(fixture.shadow.0.runs(), 0);
    fixture.shadow.0.unblock();
}

#[test]
fn each_request_is_sampled_independently_of_its_id() {
    let fixture = fixture(0.25);
    let copied = (0..4000).filter(|_| fixture.is_copied(Selector::Traffic, None)).count();
    // 1000 ± 7 standard deviations of a binomial.
    assert!((808..=1192).contains(&copied), "{copied} of 4000 at a quarter");
}

#[test]
fn engine_failures_are_copied_and_expired_requests_are_not() {
    let fixture = fixture(1.0);
    fixture.primary.0.panic_next();
    let mut active = fixture.open(Selector::Traffic, None);
    let outcome = fixture.infer(&mut active, Duration::from_secs(10));
    assert_eq!(outcome.as_ref().unwrap_err().code, Code::EngineFailed);
    assert!(fixture.end(active, outcome).is_some());
    let mut active = fixture.open(Selector::Traffic, None);
    let outcome = fixture.infer(&mut active, Duration::ZERO);
    assert_eq!(outcome.as_ref().unwrap_err().code, Code::DeadlineExceeded);
    assert!(fixture.end(active, outcome).is_none());
}

#[test]
fn requests_that_do_not_fit_the_signature_are_not_copied() {
    let fixture = fixture(1.0);
    let mut active = fixture.open(Selector::Traffic, None);
    let nothing = InferenceRequest::default();
    let outcome =
        fixture.runtime.block_on(fixture.gateway.infer(&mut active, nothing, Instant::now(), Requester::default()));
    assert_eq!(outcome.as_ref().unwrap_err().code, Code::InvalidTensor);
    assert!(fixture.end(active, outcome).is_none());
}

#[test]
fn under_overload_requests_are_refused_unchecked_unless_they_run_at_once() {
    let fixture = fixture_with(1.0, Duration::from_millis(1));
    let (fake, loaded) = &fixture.primary;
    loaded.runner.cost().learn(1, Duration::from_micros(1));
    loaded.runner.cost().learn(1000, Duration::from_millis(20));
    let infer = |request: InferenceRequest| {
        let mut active = fixture.open(Selector::Traffic, None);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let soon = Instant::now() + Duration::from_mins(1);
        (runtime.block_on(fixture.gateway.infer(&mut active, request, soon, Requester::default())), active)
    };
    let large = |name: &str| {
        let tensor = Tensor::new(Shape::new(&[1000]), Data::Fp32(vec![1.0; 1000].into())).unwrap();
        let inputs = vec![NamedTensor { name: name.to_owned(), tensor }];
        InferenceRequest { inputs, ..InferenceRequest::default() }
    };
    fake.block();
    std::thread::scope(|scope| {
        let running = scope.spawn(|| infer(large("x")).0);
        fake.wait_for_waiting(1);
        let waiting = scope.spawn(|| infer(large("x")).0);
        while fixture.gateway.executor().queue_depth() == 0 {
            std::thread::yield_now();
        }
        // The lane is full. A request that would fail the check is refused like the others and leaves no record.
        for name in ["x", "unknown"] {
            let (outcome, active) = infer(large(name));
            assert_eq!(outcome.as_ref().unwrap_err().code, Code::Overloaded);
            assert!(active.request.is_none() && active.counts_against_version, "no record, and not the caller's fault");
            assert!(fixture.end(active, outcome).is_none());
        }
        let admit =
            |elements| fixture.gateway.executor().admit(&loaded.runner, elements, Instant::now(), Requester::default());
        assert!(admit(1).is_ok(), "it runs at once");
        assert_eq!(admit(1000).unwrap_err().code, Code::DeadlineExceeded);
        fake.unblock();
        assert!(running.join().unwrap().is_ok() && waiting.join().unwrap().is_ok());
    });
}

#[test]
fn values_the_engine_refuses_do_not_count_against_the_arm() {
    let fixture = fixture(1.0);
    fixture.primary.0.fail_next(RunError::Refused("k is larger than the number of elements".to_owned()));
    let mut active = fixture.open(Selector::Traffic, None);
    let arm = Arc::clone(active.served());
    let outcome = fixture.infer(&mut active, Duration::from_secs(10));
    assert_eq!(outcome.as_ref().unwrap_err().code, Code::InvalidTensor);
    fixture.end(active, outcome);
    let evidence = arm.metrics.evidence();
    assert_eq!((arm.metrics.requests(), evidence.requests, evidence.failed), (1, 0, 0));
    fixture.primary.0.panic_next();
    let mut active = fixture.open(Selector::Traffic, None);
    let outcome = fixture.infer(&mut active, Duration::from_secs(10));
    fixture.end(active, outcome);
    let evidence = arm.metrics.evidence();
    assert_eq!((arm.metrics.requests(), evidence.requests, evidence.failed), (2, 1, 1), "a failed engine counts");
}

#[test]
fn a_request_reads_the_snapshot_it_took_also_after_a_publish() {
    let mut fixture = fixture(1.0);
    let snapshot = fixture.gateway.snapshot();
    let none = Parameters::new();
    let request = RouteRequest { selector: Selector::Traffic, header: &|_| None, parameters: &none, request_id: "r" };
    fixture.writer.publish(Snapshot::default());
    assert!(not_found(&snapshot, "m", Selector::Traffic).is_none());
    let id = RequestId::generate();
    assert!(fixture.gateway.open(&snapshot, "m", &request, &id, Instant::now()).is_ok());
    let now = fixture.gateway.snapshot();
    assert_eq!(not_found(&now, "m", Selector::Traffic).unwrap().code, Code::ModelNotFound);
    assert_eq!(not_found(&snapshot, "m", Selector::Label("x")).unwrap().code, Code::LabelNotFound);
}

#[test]
fn a_limit_of_requests_in_flight_admits_exactly_that_many() {
    const ROUNDS: usize = 500;
    let mut fixture = fixture(1.0);
    for limit in [1, 3] {
        let limits = Limits { max_in_flight: Some(limit), max_rows: None, max_answer: None };
        let version = Loaded {
            limits,
            model: fixture.primary.1.model.clone(),
            version: fixture.primary.1.version,
            runner: Arc::clone(&fixture.primary.1.runner),
            metrics: Arc::clone(&fixture.primary.1.metrics),
            facts: Arc::clone(&fixture.primary.1.facts),
            breaker: registry::Breaker::new(None),
        };
        let document = Proposal::parse(&json!({"split": [{"version": "1", "weight": 1}]})).unwrap().document;
        let next = Snapshot::default().with(entry("m", &[Arc::new(version)], Some(document), 2).unwrap());
        fixture.writer.publish(next);
        let (gateway, barrier) = (&fixture.gateway, std::sync::Barrier::new(4));
        let admitted = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..ROUNDS {
                        let none = Parameters::new();
                        let (selector, header) = (Selector::Traffic, |_: &str| None);
                        let request = RouteRequest { selector, header: &header, parameters: &none, request_id: "r" };
                        let (snapshot, id) = (gateway.snapshot(), RequestId::generate());
                        barrier.wait();
                        let opened = gateway.open(&snapshot, "m", &request, &id, Instant::now());
                        match &opened {
                            Ok(_) => _ = admitted.fetch_add(1, std::sync::atomic::Ordering::Relaxed),
                            Err(failure) => assert_eq!(failure.code, Code::TooManyRequests),
                        }
                        barrier.wait();
                        drop(opened);
                    }
                });
            }
        });
        assert_eq!(admitted.into_inner() as u64, limit * ROUNDS as u64, "of four at once, exactly {limit}");
    }
}

// === breakers ===

/// A model of two versions: 1 is the fallback, 2 gets the traffic. Version 2 panics on every request while it is broken, and always on values
/// above 100. `known_good`: whether version 2 has a request that it answers while it is not broken.
struct Breakers {
    fixture: Fixture,
    broken: Arc<std::sync::atomic::AtomicBool>,
    second: Arc<Loaded>,
}

fn request_of(value: f32) -> InferenceRequest {
    let tensor = Tensor::new(Shape::new(&[1]), Data::Fp32(vec![value].into())).unwrap();
    let inputs = vec![NamedTensor { name: "x".to_owned(), tensor }];
    InferenceRequest { inputs, ..InferenceRequest::default() }
}

impl Breakers {
    fn new(known_good: bool, fallback: bool) -> Breakers {
        let mut fixture = fixture(1.0);
        let broken = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let is_broken = Arc::clone(&broken);
        let signature = fixture.primary.1.facts.signature.clone();
        let fake = Fake::new(signature.clone(), move |request| {
            let is_poison = matches!(request.inputs()[0].data(), Data::Fp32(values) if values[0] > 100.0);
            assert!(!is_poison && !is_broken.load(std::sync::atomic::Ordering::Relaxed), "the engine fails");
            request.wanted().iter().map(|i| request.inputs()[*i].clone()).collect()
        });
        let known_good = known_good.then(|| Arc::new(signature.check(request_of(0.0)).unwrap()));
        let second = Arc::into_inner(loaded(2, fake.model(), "")).unwrap();
        let second = Arc::new(Loaded { breaker: registry::Breaker::new(known_good), ..second });
        let mut document = json!({"split": [{"version": "2", "weight": 1}]});
        if fallback {
            document["fallback"] = json!({"version": "1"});
        }
        let document = Proposal::parse(&document).unwrap().document;
        let held = [Arc::clone(&fixture.primary.1), Arc::clone(&second)];
        fixture.writer.publish(Snapshot::default().with(entry("m", &held, Some(document), 2).unwrap()));
        let config =
            BreakerConfig { failures: 3, pause: Duration::from_millis(20), probes: 2, ..BreakerConfig::default() };
        fixture.gateway = fixture.gateway.with_breakers(config);
        Breakers { fixture, broken, second }
    }

    fn set_broken(&self, broken: bool) {
        self.broken.store(broken, std::sync::atomic::Ordering::Relaxed);
    }

    /// The version that answered, and why it was the fallback; or the code of the failure.
    fn ask(&self, selector: Selector, value: f32) -> Result<(String, Option<&'static str>), Code> {
        let request = RouteRequest { selector, header: &|_| None, parameters: &Parameters::new(), request_id: "r" };
        let gateway = &self.fixture.gateway;
        let opened = gateway.open(&gateway.snapshot(), "m", &request, &RequestId::generate(), Instant::now());
        let mut active = opened.map_err(|failure| failure.code)?;
        let answered = (active.served().version_text.to_string(), active.fallback());
        let deadline = Instant::now() + Duration::from_secs(10);
        let outcome = self.fixture.runtime.block_on(gateway.infer(
            &mut active,
            request_of(value),
            deadline,
            Requester::default(),
        ));
        let failed = outcome.as_ref().err().map(|failure| failure.code);
        self.fixture.end(active, outcome);
        failed.map_or(Ok(answered), Err)
    }

    fn state(&self) -> &'static str {
        self.second.breaker.status().state
    }
}

#[test]
fn a_version_whose_engine_fails_is_replaced_by_the_fallback_until_it_answers_again() {
    let breakers = Breakers::new(true, true);
    let two = || Ok(("2".to_owned(), None));
    assert_eq!(breakers.ask(Selector::Traffic, 1.0), two());
    breakers.set_broken(true);
    for _ in 0..3 {
        assert_eq!(breakers.ask(Selector::Traffic, 1.0), Err(Code::EngineFailed));
    }
    assert_eq!(breakers.state(), "open");
    let failed = breakers.second.metrics.in_flight();
    assert_eq!(failed, 0);
    // At most one request tries it, and the others are answered by version 1.
    let answers: Vec<_> = (0..10).map(|_| breakers.ask(Selector::Traffic, 1.0)).collect();
    let by_fallback = answers.iter().filter(|a| **a == Ok(("1".to_owned(), Some("breaker_open")))).count();
    assert!(by_fallback >= 8, "{answers:?}");
    let pinned = breakers.ask(Selector::Version("2".parse().unwrap()), 1.0);
    assert!(
        matches!(pinned, Err(Code::NotReady | Code::EngineFailed)),
        "who names the version gets no other: {pinned:?}"
    );
    breakers.set_broken(false);
    let until = Instant::now() + Duration::from_secs(20);
    while breakers.state() != "closed" {
        assert!(breakers.ask(Selector::Traffic, 1.0).is_ok(), "a try is answered too");
        assert!(Instant::now() < until, "it closes within 20 s");
        std::thread::park_timeout(Duration::from_millis(2));
    }
    assert_eq!(breakers.ask(Selector::Traffic, 1.0), two());
    assert_eq!(breakers.second.breaker.status().opened, 1);
}

#[test]
fn without_a_fallback_requests_are_refused_at_once() {
    let breakers = Breakers::new(false, false);
    breakers.set_broken(true);
    for _ in 0..3 {
        assert_eq!(breakers.ask(Selector::Traffic, 1.0), Err(Code::EngineFailed));
    }
    let codes: Vec<_> = (0..5).map(|_| breakers.ask(Selector::Traffic, 1.0).unwrap_err()).collect();
    assert!(codes.iter().filter(|code| **code == Code::NotReady).count() >= 4, "{codes:?}");
}

#[test]
fn values_that_the_engine_cannot_take_do_not_close_a_version_to_others() {
    let breakers = Breakers::new(true, true);
    for _ in 0..50 {
        assert_eq!(breakers.ask(Selector::Traffic, 666.0), Err(Code::EngineFailed));
    }
    assert_eq!(breakers.ask(Selector::Traffic, 1.0), Ok(("2".to_owned(), None)));
    let status = breakers.second.breaker.status();
    assert_eq!((status.state, status.opened), ("closed", 0));
    assert!(status.spared > 0, "{status:?}");
    // While it is open, a try with such values closes it where the engine works again.
    breakers.set_broken(true);
    // Some failures are counted already.
    for _ in 0..3 {
        let _ = breakers.ask(Selector::Traffic, 1.0);
    }
    assert_eq!(breakers.state(), "open");
    breakers.set_broken(false);
    let until = Instant::now() + Duration::from_secs(20);
    while breakers.state() != "closed" {
        let _ = breakers.ask(Selector::Traffic, 666.0);
        assert!(Instant::now() < until, "it closes within 20 s");
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

#[test]
fn a_version_that_was_set_aside_is_replaced_by_the_fallback() {
    use crate::registry::{Stage, State, VersionStatus};
    let mut breakers = Breakers::new(true, true);
    let status = |state, stage, loaded: Option<&Arc<Loaded>>, n: &str| VersionStatus {
        version: n.parse().unwrap(),
        state,
        stage,
        reason: Some("its runs did not end".to_owned()),
        notes: Vec::new(),
        facts: None,
        loaded: loaded.map(Arc::clone),
    };
    let document = Proposal::parse(&json!({
        "split": [{"version": "2", "weight": 1}], "labels": {"new": "2"}, "fallback": {"version": "1"},
    }));
    let versions = [
        status(State::Serving, None, Some(&breakers.fixture.primary.1), "1"),
        status(State::Failed, Some(Stage::Stuck), None, "2"),
    ];
    let versions = versions.into_iter().map(|status| (status.version, status)).collect();
    let document = Some(document.unwrap().document);
    let aside = Entry::new("m".parse().unwrap(), versions, document, 3, false, true).unwrap();
    breakers.fixture.writer.publish(Snapshot::default().with(aside));
    assert_eq!(breakers.ask(Selector::Traffic, 1.0), Ok(("1".to_owned(), Some("stuck"))));
    assert_eq!(breakers.ask(Selector::Label("new"), 1.0), Err(Code::NotReady));
    assert_eq!(breakers.ask(Selector::Version("2".parse().unwrap()), 1.0), Err(Code::NotReady));
}
