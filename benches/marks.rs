//! The time that a mark adds to each call into an engine: entering and leaving, alone and inside another mark.

use criterion::{Criterion, criterion_group, criterion_main};
use sluicegate::marks::{Kind, VersionMark};
use std::hint::black_box;

fn mark(c: &mut Criterion) {
    let (model, version) = ("iris".parse().expect("a name"), "3".parse().expect("a version"));
    let mark = VersionMark::register(&model, version, "");
    c.bench_function("mark_enter_leave", |b| b.iter(|| drop(black_box(black_box(&mark).enter(Kind::Run)))));
    let _outer = mark.enter(Kind::Verify);
    c.bench_function("mark_enter_leave_inside", |b| b.iter(|| drop(black_box(black_box(&mark).enter(Kind::Run)))));
}

criterion_group!(benches, mark);
criterion_main!(benches);
