//! The time of one routing decision: with 1, 2 and 20 arms, with rules, and with a sticky key.

use criterion::{Criterion, criterion_group, criterion_main};
use serde_json::json;
use sluicegate::model::Parameters;
use sluicegate::route::{Proposal, RouteRequest, Router, Selector};
use std::hint::black_box;

fn router(arms: usize, rules: usize, sticky: bool) -> Router {
    let split: Vec<_> =
        (1..=arms).map(|v| json!({"version": v.to_string(), "weight": v, "arm": format!("arm-{v}")})).collect();
    let rules: Vec<_> =
        (0..rules).map(|i| json!({"header": "x-cohort", "equals": format!("cohort-{i}"), "version": "1"})).collect();
    let mut document = json!({"split": split, "rules": rules});
    if sticky {
        document["sticky_by"] = json!({"header": "x-user-id"});
    }
    let proposal = Proposal::parse(&document).expect("a valid document");
    Router::new(&"recommender".parse().expect("a valid name"), proposal.document)
}

fn decision(c: &mut Criterion) {
    let mut headers = http::HeaderMap::new();
    for (name, value) in [
        ("host", "sluicegate.example"),
        ("content-type", "application/json"),
        ("user-agent", "wrk"),
        ("x-user-id", "customer-48121"),
        ("x-cohort", "everyone"),
    ] {
        headers.insert(name, value.parse().expect("a header's text"));
    }
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let none = Parameters::new();
    let request = RouteRequest {
        selector: Selector::Traffic,
        header: &header,
        parameters: &none,
        request_id: "01936f2e-9f7a-7c3e-8b0a-5d2f1e6c9a47",
    };
    let mut group = c.benchmark_group("route");
    for (name, arms, rules, sticky) in [
        ("1_arm", 1, 0, false),
        ("2_arms", 2, 0, false),
        ("20_arms", 20, 0, false),
        ("2_arms_sticky", 2, 0, true),
        ("2_arms_10_rules", 2, 10, false),
        ("20_arms_10_rules_sticky", 20, 10, true),
    ] {
        let router = router(arms, rules, sticky);
        group.bench_function(name, |b| b.iter(|| black_box(router.route(black_box(&request)))));
    }
    group.finish();
}

criterion_group!(benches, decision);
criterion_main!(benches);
