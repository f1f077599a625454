//! The loops against a server of a few lines that answers what it is told to, when it is told to.

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

/// A server whose `n`-th answer of a connection is `answer(n)`: version, number, and how long it takes.
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
        // The bodies asked here end so, and nothing else does.
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

/// Runs a load of half a second in one thread; version 1 is known to answer 0.5 to everything.
fn drive(address: SocketAddr, shape: Form, connections: usize) -> Seen {
    let scenario = Scenario::parse("test", SCENARIO).unwrap();
    let mut plan = Plan::new(&scenario, &scenario.phases[0], 1).unwrap();
    for case in &mut plan.kinds[0].cases {
        case.answers.push((1, 0.5));
    }
    let load = Load { address, plan: Arc::new(plan), shape, connections, seconds: 0.5, seed: 1, threads: 1 };
    let thread = start(&load, Instant::now() + Duration::from_millis(50)).swap_remove(0);
    thread.join().unwrap().unwrap()
}

const EVEN: Form = Form::Open { from: 1000.0, to: 1000.0, arrivals: Arrivals::Even };

#[test]
fn a_stall_is_charged_to_every_request_that_was_due_meanwhile() {
    // The 100th answer takes 200 ms; one connection, so that everything behind it waits.
    let address = server(|n| (1, 0.5, Duration::from_millis(if n == 100 { 200 } else { 0 })));
    let seen = drive(address, EVEN, 1);
    assert_eq!(seen.samples.len(), 500, "every request that was due is counted");
    assert!(seen.samples.iter().all(|s| s.outcome == Outcome::Good), "and good: {:?}", seen.complaints);
    let slow = seen.samples.iter().filter(|s| s.latency_ns > 50_000_000).count();
    assert!(slow >= 140, "of 200 requests due in the stall 150 waited for more than 50 ms, and not {slow}");
}

#[test]
fn a_closed_loop_asks_again_once_it_is_answered() {
    let seen = drive(server(|_| (1, 0.5, Duration::from_millis(10))), Form::Closed, 2);
    let n = seen.samples.len();
    assert!((10..=102).contains(&n), "two connections, 10 ms each, for half a second: {n} requests");
}

#[test]
fn another_versions_answer_is_a_failure() {
    let seen = drive(server(|n| (1, if n == 3 { 0.7 } else { 0.5 }, Duration::ZERO)), EVEN, 1);
    let failed = seen.samples.iter().filter(|s| s.outcome == Outcome::Failed).count();
    assert_eq!(failed, 1);
    assert!(seen.complaints[0].contains("version 1 answered 0.7"), "{:?}", seen.complaints);
}
