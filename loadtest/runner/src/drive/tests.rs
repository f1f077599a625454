//! Tests of both loops, against a small server whose answers and delays the test chooses.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Form, Load, Outcome, Seen, start};
use crate::plan::Plan;
use crate::scenario::{Arrivals, Scenario};

const SCENARIO: &str = r#"
    summary = "one model, one phase"
    seconds = 1
    short_seconds = 1
    [[model]]
    name = "m"
    widths = [2, 1]
    versions = [{ seed = 1 }]
    [[server]]
    name = "gateway"
    [[phase]]
    name = "only"
    closed = { connections = 1 }
"#;

/// A server. The `n`-th answer of a connection is `answer(n)`: version, number, and delay.
fn server(answer: fn(usize) -> (u32, f32, Duration)) -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            std::thread::spawn(move || connection(stream, answer));
        }
    });
    address
}

fn connection(mut stream: TcpStream, answer: fn(usize) -> (u32, f32, Duration)) {
    stream.set_nodelay(true).unwrap();
    let (mut read, mut buffer) = (Vec::new(), [0; 4096]);
    let mut n = 0;
    while let Ok(got @ 1..) = stream.read(&mut buffer) {
        read.extend_from_slice(&buffer[..got]);
        // Every request body ends like this, and nothing else does.
        if !read.ends_with(b"]}]}") {
            continue;
        }
        read.clear();
        let (version, number, takes) = answer(n);
        n += 1;
        std::thread::park_timeout(takes);
        let body = format!(r#"{{"outputs":[{{"shape":[1,1],"data":[{number}]}}]}}"#);
        let head =
            format!("HTTP/1.1 200 OK\r\nx-sluicegate-version: {version}\r\ncontent-length: {}\r\n\r\n", body.len());
        if stream.write_all((head + &body).as_bytes()).is_err() {
            return;
        }
    }
}

/// Runs a load of half a second in one thread. Version 1 is expected to answer 0.5 to every input.
fn drive(address: SocketAddr, form: Form, connections: usize) -> Seen {
    let scenario = Scenario::parse("test", SCENARIO).unwrap();
    let mut plan = Plan::new(&scenario, &scenario.phases[0], 1).unwrap();
    for case in &mut plan.kinds[0].cases {
        case.answers.push((1, 0.5));
    }
    let load = Load { address, plan: Arc::new(plan), form, connections, seconds: 0.5, seed: 1, threads: 1 };
    let thread = start(&load, Instant::now() + Duration::from_millis(50)).swap_remove(0);
    thread.join().unwrap().unwrap()
}

const EVEN: Form = Form::Open { from: 1000.0, to: 1000.0, arrivals: Arrivals::Even };

#[test]
fn a_stall_adds_latency_to_every_request_due_during_it() {
    // The 100th answer takes 200 ms, and there is one connection, so that all later requests wait.
    let address = server(|n| (1, 0.5, Duration::from_millis(if n == 100 { 200 } else { 0 })));
    let seen = drive(address, EVEN, 1);
    assert_eq!(seen.samples.len(), 500, "every request that was due is counted");
    assert!(seen.samples.iter().all(|s| s.outcome == Outcome::Good), "every request is good: {:?}", seen.complaints);
    let slow = seen.samples.iter().filter(|s| s.latency_ns > 50_000_000).count();
    assert!(slow >= 140, "{slow} requests took over 50 ms; about 150 of the 200 due during the stall must");
}

#[test]
fn a_closed_loop_sends_the_next_request_after_an_answer() {
    let seen = drive(server(|_| (1, 0.5, Duration::from_millis(10))), Form::Closed, 2);
    let n = seen.samples.len();
    assert!((10..=102).contains(&n), "two connections, 10 ms each, for half a second: {n} requests");
}

#[test]
fn an_answer_of_another_version_is_a_failure() {
    let seen = drive(server(|n| (1, if n == 3 { 0.7 } else { 0.5 }, Duration::ZERO)), EVEN, 1);
    let failed = seen.samples.iter().filter(|s| s.outcome == Outcome::Failed).count();
    assert_eq!(failed, 1);
    assert!(seen.complaints[0].contains("version 1 answered 0.7"), "{:?}", seen.complaints);
}
