//! Decoding and encoding of 32 and 1,000 floats, JSON and binary, and decoding of JSON bodies of 64 kB and 1 MB. The baseline is
//! sonic-rs with a struct that has a `Vec<f32>` and checks nothing.
//!
//! Run with `cargo bench --bench codec`.

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group};
use serde::Deserialize;
use sluicegate::codec::oip::{self, AnswerForm, AnswerHead};
use sluicegate::model::Answer;
use sluicegate::tensor::{Data, Shape, Tensor};
use std::fmt::Write as _;
use std::hint::black_box;
use support::{Measured, row};

mod support;

criterion_group!(benches, decode_json, decode_large_json, decode_binary, encode);

/// The names of large bodies, and their sizes in bytes.
const LARGE: [(&str, usize); 2] = [("64k", 64 << 10), ("1m", 1 << 20)];

fn main() {
    let measured = Measured::from_now();
    benches();
    Criterion::default().configure_from_args().final_summary();
    let nanos = |bench: &str| measured.nanos(&format!("codec/{bench}"));
    if let (Some(json), Some(binary)) = (nanos("decode_json_1000"), nanos("decode_binary_1000")) {
        let times = json / binary;
        row("1,000 floats, binary against JSON: decoding alone", "at least 10", &format!("{times:.1}"), times >= 10.0);
    }
    for (name, size) in LARGE {
        let (ours, theirs) = (nanos(&format!("decode_json_{name}")), nanos(&format!("sonic_vec_f32_{name}")));
        if let (Some(ours), Some(theirs)) = (ours, theirs) {
            let (length, ratio) = (large_body(size).len() as f64, theirs / ours);
            let measure = format!("JSON body of {} kB: MB/s decoded against sonic-rs into Vec<f32>", size >> 10);
            let [ours, theirs] = [ours, theirs].map(|nanos| length / nanos * 1e3);
            row(&measure, "at least 1.0", &format!("{ratio:.2} ({ours:.0} to {theirs:.0})"), ratio >= 1.0);
        }
    }
}

/// A request without names and datatypes: the least work for a JSON request.
#[derive(Deserialize)]
struct Bare {
    #[allow(dead_code)]
    inputs: Vec<BareInput>,
}

#[derive(Deserialize)]
struct BareInput {
    #[allow(dead_code)]
    data: Vec<f32>,
}

fn decode_json(c: &mut Criterion) {
    for n in [32, 1000] {
        decode_one(c, &n.to_string(), &json_body(n));
    }
}

fn decode_large_json(c: &mut Criterion) {
    for (name, size) in LARGE {
        decode_one(c, name, &large_body(size));
    }
}

fn decode_one(c: &mut Criterion, name: &str, body: &Bytes) {
    let mut group = c.benchmark_group("codec");
    group.throughput(Throughput::Bytes(body.len() as u64));
    group.bench_function(format!("decode_json_{name}"), |b| {
        b.iter(|| oip::decode(black_box(body), None).expect("the body is valid"));
    });
    group.bench_function(format!("sonic_vec_f32_{name}"), |b| {
        b.iter(|| sonic_rs::from_slice::<Bare>(black_box(body)).expect("the body is valid"));
    });
}

fn decode_binary(c: &mut Criterion) {
    let mut group = c.benchmark_group("codec");
    let values = floats(1000);
    let json = "{\"inputs\":[{\"name\":\"x\",\"shape\":[1,1000],\"datatype\":\"FP32\",\"parameters\":\
                {\"binary_data_size\":4000}}],\"outputs\":[{\"name\":\"y\",\"parameters\":{\"binary_data\":true}}]}";
    let mut body = json.as_bytes().to_vec();
    body.extend(values.iter().flat_map(|x| x.to_le_bytes()));
    let body = Bytes::from(body);
    group.throughput(Throughput::Bytes(body.len() as u64));
    group.bench_function("decode_binary_1000", |b| {
        b.iter(|| oip::decode(black_box(&body), Some(json.len())).expect("the body is valid"));
    });
}

fn encode(c: &mut Criterion) {
    let mut group = c.benchmark_group("codec");
    let head = AnswerHead { model_name: "fraud", model_version: Some("3"), id: "0192b1b2-7c9a-7e8d-9b1e-0f3c5a7d9e11" };
    let cases = [("encode_json_32", 32, false), ("encode_json_1000", 1000, false), ("encode_binary_1000", 1000, true)];
    for (name, n, binary) in cases {
        let tensor = Tensor::new(Shape::new(&[1, n]), Data::Fp32(floats(n).into())).expect("the shape fits");
        let answer = Answer::from(vec![("y".into(), tensor)]);
        let form = if binary { AnswerForm::binary() } else { AnswerForm::json() };
        let length = oip::encode(&answer, &head, &form).expect("floats encode").body.len();
        group.throughput(Throughput::Bytes(length as u64));
        group.bench_function(name, |b| {
            b.iter(|| oip::encode(black_box(&answer), &head, &form).expect("floats encode"));
        });
    }
}

/// Floats of both signs and of magnitudes around 1. The generator has a fixed seed, so each run measures the same.
fn floats(n: usize) -> Vec<f32> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let scales = [0.01, 0.1, 1.0, 10.0, 100.0];
    (0..n).map(|_| ((next() >> 40) as f32 / 16_777_216.0 - 0.5) * scales[(next() % 5) as usize]).collect()
}

/// A body of about `size` bytes.
fn large_body(size: usize) -> Bytes {
    let of_a_thousand = json_body(1000).len();
    json_body(size * 1000 / of_a_thousand)
}

fn json_body(n: usize) -> Bytes {
    let mut body = format!("{{\"inputs\":[{{\"name\":\"x\",\"shape\":[1,{n}],\"datatype\":\"FP32\",\"data\":[");
    for (i, x) in floats(n).iter().enumerate() {
        let _ = write!(body, "{}{x}", if i == 0 { "" } else { "," });
    }
    body.push_str("]}]}");
    body.into()
}
