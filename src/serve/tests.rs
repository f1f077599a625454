use super::*;
use crate::backend::fake::Fake;
use crate::execute;
use crate::model::{Dim, NamedTensor, Parameters, TensorSpec};
use crate::registry::tests::fixture::{entry, loaded};
use crate::registry::{self, Loaded, Writer};
use crate::route::{Proposal, Selector};
use crate::shadow::{self, Figures};
use crate::tensor::{Data, DataType, Shape, Tensor};
use serde_json::json;
use std::num::NonZeroUsize;

struct House {
    gateway: Gateway,
    _writer: Writer,
    primary: (Fake, Arc<Loaded>),
    shadow: (Fake, Arc<Loaded>),
    runtime: tokio::runtime::Runtime,
}

/// Version 1 answers, version 2 is its shadow; all runs happen at once.
fn house(sample: f64) -> House {
    house_with(sample, Duration::MAX)
}

fn house_with(sample: f64, inline_below: Duration) -> House {
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
    let config = execute::Config { inline_below, queue: 1, workers: NonZeroUsize::MIN, cores: NonZeroUsize::MIN };
    let gateway = Gateway::new(reader, Executor::start(&config).unwrap(), shadows, None);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    House { gateway, _writer: writer, primary, shadow, runtime }
}

impl House {
    fn open(&self, selector: Selector, cohort: Option<&'static str>) -> ActiveRequest {
        let header = |name: &str| cohort.filter(|_| name == "x-cohort");
        let ask = Ask { selector, header: &header, parameters: &Parameters::new(), request_id: "r" };
        self.gateway.open("m", &ask, &RequestId::generate(), Instant::now()).unwrap()
    }

    fn infer(&self, exchange: &mut ActiveRequest, deadline: Duration) -> Result<Ran, Failure> {
        let tensor = Tensor::new(Shape::new(&[1]), Data::Fp32(vec![1.0].into())).unwrap();
        let inputs = vec![NamedTensor { name: "x".to_owned(), tensor }];
        let request = InferenceRequest { inputs, ..InferenceRequest::default() };
        self.runtime.block_on(self.gateway.infer(exchange, request, Instant::now() + deadline))
    }

    fn end(&self, exchange: ActiveRequest, outcome: Result<Ran, Failure>) -> Option<ShadowCopies> {
        let deadline = Instant::now() + Duration::from_secs(10);
        self.runtime.block_on(self.gateway.end(exchange, outcome, deadline)).unwrap()
    }

    /// Whether a request asked for so leaves a copy to make.
    fn is_copied(&self, selector: Selector, cohort: Option<&'static str>) -> bool {
        let mut exchange = self.open(selector, cohort);
        let outcome = self.infer(&mut exchange, Duration::from_secs(10));
        assert!(outcome.is_ok(), "{outcome:?}");
        self.end(exchange, outcome).is_some()
    }
}

#[test]
fn what_the_split_or_a_rule_decides_is_copied_and_what_was_asked_for_by_name_is_not() {
    let house = house(1.0);
    assert!(house.is_copied(Selector::Traffic, None));
    assert!(house.is_copied(Selector::Traffic, Some("beta")));
    assert!(!house.is_copied(Selector::Version("1".parse().unwrap()), None));
    assert!(!house.is_copied(Selector::Label("stable"), None));
    assert!(!house.is_copied(Selector::Version("2".parse().unwrap()), None));
}

#[test]
fn a_caller_never_waits_for_a_shadow() {
    let house = house(1.0);
    house.shadow.0.block();
    for _ in 0..20 {
        let mut exchange = house.open(Selector::Traffic, None);
        let outcome = house.infer(&mut exchange, Duration::from_secs(10));
        house.gateway.mirror(house.end(exchange, outcome).unwrap());
    }
    // All twenty are answered and offered, and the shadow has not run once.
    assert_eq!(house.primary.0.runs(), 20);
    assert_eq!(house.shadow.1.metrics.shadow().offered_so_far(), 20);
    assert_eq!(house.shadow.0.runs(), 0);
    house.shadow.0.unblock();
}

#[test]
fn samples_are_drawn_per_request_whatever_its_id() {
    let house = house(0.25);
    let copied = (0..4000).filter(|_| house.is_copied(Selector::Traffic, None)).count();
    // 1000 ± 7 standard deviations of a binomial.
    assert!((808..=1192).contains(&copied), "{copied} of 4000 at a quarter");
}

#[test]
fn a_failed_engine_is_worth_comparing_and_a_busy_machine_is_not() {
    let house = house(1.0);
    house.primary.0.panic_next();
    let mut exchange = house.open(Selector::Traffic, None);
    let outcome = house.infer(&mut exchange, Duration::from_secs(10));
    assert_eq!(outcome.as_ref().unwrap_err().code, Code::EngineFailed);
    assert!(house.end(exchange, outcome).is_some());
    let mut exchange = house.open(Selector::Traffic, None);
    let outcome = house.infer(&mut exchange, Duration::ZERO);
    assert_eq!(outcome.as_ref().unwrap_err().code, Code::DeadlineExceeded);
    assert!(house.end(exchange, outcome).is_none());
}

#[test]
fn what_does_not_fit_the_signature_is_not_copied() {
    let house = house(1.0);
    let mut exchange = house.open(Selector::Traffic, None);
    let nothing = InferenceRequest::default();
    let outcome = house.runtime.block_on(house.gateway.infer(&mut exchange, nothing, Instant::now()));
    assert_eq!(outcome.as_ref().unwrap_err().code, Code::InvalidTensor);
    assert!(house.end(exchange, outcome).is_none());
}

#[test]
fn an_overload_refuses_unseen_and_never_what_runs_at_once() {
    let house = house_with(1.0, Duration::from_millis(1));
    let (fake, loaded) = &house.primary;
    loaded.runner.cost().learn(1, Duration::from_micros(1));
    loaded.runner.cost().learn(1000, Duration::from_millis(20));
    let ask = |request: InferenceRequest| {
        let mut exchange = house.open(Selector::Traffic, None);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let soon = Instant::now() + Duration::from_mins(1);
        (runtime.block_on(house.gateway.infer(&mut exchange, request, soon)), exchange)
    };
    let large = |name: &str| {
        let tensor = Tensor::new(Shape::new(&[1000]), Data::Fp32(vec![1.0; 1000].into())).unwrap();
        let inputs = vec![NamedTensor { name: name.to_owned(), tensor }];
        InferenceRequest { inputs, ..InferenceRequest::default() }
    };
    fake.block();
    std::thread::scope(|scope| {
        let running = scope.spawn(|| ask(large("x")).0);
        fake.wait_for_waiting(1);
        let waiting = scope.spawn(|| ask(large("x")).0);
        while house.gateway.executor().queue_depth() == 0 {
            std::thread::yield_now();
        }
        // The lane is full. What would be found wrong is refused like the rest, and leaves nothing.
        for name in ["x", "unknown"] {
            let (outcome, exchange) = ask(large(name));
            assert_eq!(outcome.as_ref().unwrap_err().code, Code::Overloaded);
            assert!(exchange.request.is_none() && exchange.fitted, "no record, and not the caller's doing");
            assert!(house.end(exchange, outcome).is_none());
        }
        let admit = |elements| house.gateway.executor().admit(&loaded.runner, elements, Instant::now());
        assert!(admit(1).is_ok(), "it would run at once");
        assert_eq!(admit(1000).unwrap_err().code, Code::DeadlineExceeded);
        fake.unblock();
        assert!(running.join().unwrap().is_ok() && waiting.join().unwrap().is_ok());
    });
}
