//! What a closed data plane adds to each request: finding the caller, and checking the permission.

use criterion::{Criterion, criterion_group, criterion_main};
use http::HeaderMap;
use http::header::AUTHORIZATION;
use sluicegate::access::{Access, Action, Config, Grant, Models, NewToken, Remembered, Role};
use std::hint::black_box;

fn callers(c: &mut Criterion) {
    let made = |n: usize| {
        let models = Models::of([&*format!("team-{n}-*"), "iris"]).expect("patterns");
        let grant = Grant { role: Role::Predict, models };
        let new = NewToken { name: format!("caller-{n}"), grant, expires_at: None, created_by: "bench".to_owned() };
        new.make().expect("the system has random bits")
    };
    for count in [1, 1000] {
        let (secrets, stored): (Vec<String>, Vec<_>) = (0..count).map(made).unzip();
        let access = Access::start(Config::default(), &stored).expect("no thread is started");
        let mut headers = HeaderMap::new();
        for (name, value) in
            [("host", "sluicegate.example"), ("content-type", "application/json"), ("user-agent", "wrk")]
        {
            headers.insert(name, value.parse().expect("a header's text"));
        }
        let secret = secrets.last().expect("there is a token");
        headers.insert(AUTHORIZATION, format!("Bearer {secret}").parse().expect("a header's text"));
        c.bench_function(&format!("access_token_of_{count}"), |b| {
            b.iter(|| {
                let caller =
                    access.identify(black_box(&headers), None, None).expect("a valid token").expect("a caller");
                caller.check(Action::Predict, Some(black_box("iris"))).expect("allowed");
            });
        });
        // The second request of a connection with the same credentials, and all later ones.
        let remembered = Remembered::default();
        c.bench_function(&format!("access_remembered_token_of_{count}"), |b| {
            b.iter(|| {
                let caller = access.identify(black_box(&headers), None, Some(&remembered));
                let caller = caller.expect("a valid token").expect("a caller");
                caller.check(Action::Predict, Some(black_box("iris"))).expect("allowed");
            });
        });
        let unknown = made(0).0;
        headers.insert(AUTHORIZATION, format!("Bearer {unknown}").parse().expect("a header's text"));
        c.bench_function(&format!("access_unknown_token_of_{count}"), |b| {
            b.iter(|| access.identify(black_box(&headers), None, None).expect_err("an unknown token"));
        });
    }
}

criterion_group!(benches, callers);
criterion_main!(benches);
