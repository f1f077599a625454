//! Clients that take places without using them: unfinished requests, idle connections, answers that nobody reads.

use crate::support::http2::{self, Http2};
use crate::support::process::Served;
use crate::support::{Gateway, eventually, infer_body, onnx};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

const INFER: &str = "/v2/models/scale/infer";

fn gateway(server: &str) -> Gateway {
    Gateway::start_with(&format!("[server]\n{server}\n"), |models| {
        onnx::install(models, "scale", 1, &onnx::scaling(2.0));
    })
}

fn body() -> String {
    infer_body(&[1, 2], &[1.0, 2.0])
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

/// Waits until the server closes the connection.
fn wait_closed(stream: &mut TcpStream, what: &str) {
    let mut bytes = [0; 4096];
    loop {
        match stream.read(&mut bytes) {
            Ok(0) => return,
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::ConnectionReset => return,
            Err(e) => panic!("{what} is closed: {e}"),
        }
    }
}

fn open_connections(gateway: &Gateway) -> usize {
    metric(gateway, "sluicegate_connections{plane=\"data\"}")
}

/// How many connections of the data plane the server closed for this reason.
fn closed(gateway: &Gateway, reason: &str) -> usize {
    metric(gateway, &format!("sluicegate_connections_closed_total{{plane=\"data\",reason=\"{reason}\"}}"))
}

fn metric(gateway: &Gateway, series: &str) -> usize {
    let metrics = String::from_utf8(gateway.admin_get("/metrics").body).unwrap();
    let line =
        metrics.lines().find_map(|line| line.strip_prefix(series)).unwrap_or_else(|| panic!("{series}: {metrics}"));
    line.trim().parse().unwrap()
}

#[test]
fn requests_without_a_body_take_no_place() {
    let gateway = gateway("max_in_flight = 4\nmax_unfinished = 200");
    let mut greedy: Vec<Http2> = (0..16).map(|_| Http2::connect(gateway.data(), 65_535)).collect();
    for connection in &mut greedy {
        for i in 0..100 {
            connection.request(2 * i + 1, true, INFER, false);
        }
    }
    // Half of max_unfinished may come from one peer: the others are refused, over several connections.
    let refused = greedy[15].next_of(http2::HEADERS).or_else(|| greedy[0].next_of(http2::HEADERS));
    assert!(refused.is_some(), "requests beyond the limit are refused");
    for i in 0..50 {
        let answer = gateway.post(INFER, body());
        assert_eq!(answer.status, 200, "request {i} among 1,600 unfinished ones: {answer:?}");
    }
    let app = gateway.app.as_ref().unwrap();
    assert_eq!(app.in_flight(), 0);
}

#[test]
fn unfinished_requests_of_a_peer_are_limited_and_the_limit_is_named() {
    let gateway = gateway("max_unfinished_per_peer = 3");
    let head = b"POST /v2/models/scale/infer HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{";
    let mut slow: Vec<TcpStream> = (0..4).map(|_| connect(gateway.data())).collect();
    for stream in &mut slow {
        stream.write_all(head).unwrap();
    }
    // One of the four is refused; the refusal waits for the rest of the body for two seconds.
    let refused = eventually("one is refused", || {
        slow.iter_mut().position(|stream| {
            stream.set_nonblocking(true).unwrap();
            stream.peek(&mut [0; 1]).is_ok()
        })
    });
    let mut text = vec![0; 4096];
    let n = slow[refused].read(&mut text).unwrap();
    let text = String::from_utf8_lossy(&text[..n]);
    assert!(text.starts_with("HTTP/1.1 429") && text.contains("server.max_unfinished_per_peer"), "{text}");
    assert_eq!(gateway.post(INFER, body()).status, 200, "a complete request is not limited");
}

#[test]
fn a_client_that_leaves_in_the_middle_of_a_body_frees_its_place() {
    let gateway = gateway("body_timeout = \"60s\"\nrequest_timeout = \"60s\"");
    let before = open_connections(&gateway);
    let mut leaving = connect(gateway.data());
    leaving.write_all(b"POST /v2/models/scale/infer HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{").unwrap();
    let until = Instant::now() + Duration::from_millis(300);
    eventually("the body is awaited", || (Instant::now() > until).then_some(()));
    assert_eq!(open_connections(&gateway), before + 1);
    drop(leaving);
    eventually("the connection is closed", || (open_connections(&gateway) == before).then_some(()));
}

#[test]
fn the_longest_idle_connection_makes_room_for_a_new_one() {
    let gateway = gateway("max_connections = 8");
    let address = gateway.data();
    // The client that waited until the gateway is ready keeps a connection, which is the first to go.
    let mut idle: Vec<TcpStream> = Vec::new();
    for _ in 0..8 {
        let mut stream = connect(address);
        stream.write_all(b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        assert!(stream.read(&mut [0; 1024]).unwrap() > 0);
        idle.push(stream);
        let until = Instant::now() + Duration::from_millis(5);
        eventually("each is idle for another time", || (Instant::now() > until).then_some(()));
    }
    assert_eq!((open_connections(&gateway), closed(&gateway, "room")), (8, 1));
    let began = Instant::now();
    let mut new = connect(address);
    new.write_all(b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    new.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(began.elapsed() < Duration::from_secs(10), "it does not wait for the idle limit");
    wait_closed(&mut idle[0], "the longest idle connection");
    for stream in &mut idle[1..] {
        stream.write_all(b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        assert!(stream.read(&mut [0; 1024]).unwrap() > 0, "the others stay open");
    }
    assert_eq!(closed(&gateway, "room"), 2);
}

#[test]
fn incomplete_headers_have_a_time_limit_everywhere() {
    let gateway = gateway("header_timeout = \"300ms\"");
    let mut second = Http2::connect(gateway.data(), 65_535);
    second.request(1, false, "/v2/health/live", true);
    assert!(second.next_of(http2::DATA).is_some(), "the first request is answered");
    second.send(http2::HEADERS, 0, 3, &http2::head(false, "/v2")[..2]);
    let mut continued = Http2::connect(gateway.data(), 65_535);
    continued.request(1, false, "/v2/health/live", true);
    assert!(continued.next_of(http2::DATA).is_some());
    continued.send(http2::HEADERS, 0, 3, &http2::head(false, "/v2"));
    continued.send(http2::CONTINUATION, 0, 3, &[]);
    let mut partial = Http2::connect(gateway.data(), 65_535);
    partial.request(1, false, "/v2/health/live", true);
    assert!(partial.next_of(http2::DATA).is_some());
    partial.stream.write_all(&[0, 0, 50, http2::HEADERS]).unwrap();
    for (mut connection, what) in
        [(second, "half a header block"), (continued, "an empty continuation"), (partial, "a part of a frame")]
    {
        wait_closed(&mut connection.stream, what);
    }
    assert_eq!(closed(&gateway, "headers"), 3);
    for bytes in [&b""[..], b"GET /healthz HTT", b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n"] {
        let mut admin = connect(gateway.admin());
        admin.write_all(bytes).unwrap();
        wait_closed(&mut admin, "an admin connection with incomplete headers");
    }
    // A connection that is idle after a complete request stays open.
    let mut idle = Http2::connect(gateway.data(), 65_535);
    idle.request(1, false, "/v2/health/live", true);
    assert!(idle.next_of(http2::DATA).is_some());
    idle.stream.set_read_timeout(Some(Duration::from_millis(900))).unwrap();
    assert!(idle.next().is_none());
    idle.stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    idle.request(3, false, "/v2/health/live", true);
    assert!(idle.next_of(http2::DATA).is_some(), "it is served");
}

/// A request for about 32 MB of JSON, in a few hundred bytes of gzip.
fn large_request() -> Vec<u8> {
    let text = format!(
        "{{\"inputs\":[{{\"name\":\"x\",\"shape\":[4000000,2],\"datatype\":\"FP32\",\"data\":[{}0]}}]}}",
        "0,".repeat(7_999_999)
    );
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    gzip.write_all(text.as_bytes()).unwrap();
    gzip.finish().unwrap()
}

#[test]
fn a_reader_that_takes_nothing_is_disconnected() {
    let gateway = gateway("write_timeout = \"1s\"\nrequest_timeout = \"60s\"");
    let body = large_request();
    let mut silent = connect(gateway.data());
    let head =
        format!("POST {INFER} HTTP/1.1\r\nhost: x\r\ncontent-encoding: gzip\r\ncontent-length: {}\r\n\r\n", body.len());
    silent.write_all(head.as_bytes()).unwrap();
    silent.write_all(&body).unwrap();
    assert!(silent.peek(&mut [0; 1]).unwrap() > 0, "the answer has begun");
    eventually("the reader is disconnected", || {
        let mut error = [0; 0];
        let _ = silent.peek(&mut error);
        silent.take_error().unwrap().map(|e| assert_eq!(e.kind(), ErrorKind::ConnectionReset))
    });
    assert_eq!(closed(&gateway, "reader"), 1);
}

#[test]
fn a_stream_whose_window_stays_closed_is_reset_and_others_go_on() {
    let gateway = gateway("write_timeout = \"500ms\"");
    let mut client = Http2::connect(gateway.data(), 0);
    client.request(1, false, "/v2", true);
    let reset = client.next_of(http2::RST_STREAM).expect("the stream is reset, the connection stays open");
    assert_eq!(reset.stream, 1);
    client.set_window(65_535);
    client.request(3, false, "/v2", true);
    assert!(client.next_of(http2::DATA).is_some_and(|data| data.stream == 3), "the next request is answered");

    // Here one byte fits into the window, so HTTP/2 has the rest of the answer already: only the connection can be closed.
    let mut client = Http2::connect(gateway.data(), 1);
    client.request(1, false, "/v2", true);
    wait_closed(&mut client.stream, "a connection that holds an answer back");
    assert_eq!((closed(&gateway, "stream"), closed(&gateway, "reader")), (1, 1));
}

#[test]
fn a_client_that_stops_sending_gets_its_answer() {
    let gateway = gateway("");
    let predict = format!("POST {INFER} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{}", body().len(), body());
    for request in ["GET /v2/health/ready HTTP/1.1\r\nhost: x\r\n\r\n", &predict] {
        for i in 0..20 {
            let mut stream = connect(gateway.data());
            stream.write_all(request.as_bytes()).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert!(answer.starts_with("HTTP/1.1 200"), "attempt {i} of {request:?}: {answer:?}");
        }
    }
    // A body that takes a while to arrive.
    let rows = 200_000;
    let large = infer_body(&[rows, 2], &vec![1.0; rows * 2]);
    let mut stream = connect(gateway.data());
    let head = format!("POST {INFER} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", large.len());
    stream.write_all(head.as_bytes()).unwrap();
    let until = Instant::now() + Duration::from_millis(200);
    eventually("time passes", || (Instant::now() > until).then_some(()));
    stream.write_all(large.as_bytes()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "a large body: {:?}", answer.get(..100));
    // A request that is cut off is not complete, however long the server would wait for its body.
    let mut cut_off = connect(gateway.data());
    cut_off.write_all(&predict.as_bytes()[..predict.len() - 5]).unwrap();
    cut_off.shutdown(Shutdown::Write).unwrap();
    let began = Instant::now();
    wait_closed(&mut cut_off, "a connection whose request was cut off");
    assert!(began.elapsed() < Duration::from_secs(8), "at once");
    let mut stream = connect(gateway.admin());
    stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "the admin plane: {answer:?}");
}

/// A burst of clients waits in the kernel's backlog, and a low limit on open files is enough to serve them and the admin plane.
#[test]
fn a_burst_is_served_with_few_file_descriptors() {
    let dir = tempfile::TempDir::new().unwrap();
    let models = dir.path().join("models");
    onnx::install(&models, "self", 1, &onnx::answering(1.0, 4, 0));
    let served = Served::start_with(dir.path(), &[("TEST_OPEN_FILES", "256")]);
    served.ready();
    let data: SocketAddr = served.data.parse().unwrap();
    let backlog: usize = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap().trim().parse().unwrap();
    let pid = served.server_pid().unwrap();
    // While the process is stopped, only the backlog takes connections. The standard library's has room for 128.
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    let burst: Vec<TcpStream> = (0..300.min(backlog))
        .map(|i| {
            TcpStream::connect_timeout(&data, Duration::from_millis(900))
                .unwrap_or_else(|e| panic!("connection {i} finds room in the backlog: {e}"))
        })
        .collect();
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    // These connections never send anything. They are more than the process has descriptors for.
    let mut answer = served.ask(&[]);
    assert_eq!(answer.status(), 200, "a newcomer gets the place of an idle connection");
    assert!(answer.body_mut().read_to_string().unwrap().contains("outputs"));
    assert!(
        served.admin_get("/metrics").contains("sluicegate_connections{plane=\"data\"}"),
        "the admin plane has its own"
    );
    drop(burst);
}

// === HTTP/2 ===

/// The settings and the window of a new connection: (setting, value) pairs, and how much the server lets it send.
fn offered(gateway: &Gateway) -> (Vec<(u16, u32)>, u32) {
    let mut client = Http2::connect(gateway.data(), 65_535);
    let settings = client.next_of(http2::SETTINGS).unwrap();
    let number = |bytes: &[u8]| bytes.iter().fold(0u32, |n, byte| n << 8 | u32::from(*byte));
    let settings =
        settings.payload.chunks(6).map(|pair| (u16::try_from(number(&pair[..2])).unwrap(), number(&pair[2..])));
    let settings = settings.collect();
    client.request(1, false, "/v2/health/live", true);
    let mut window = 65_535;
    while let Some(frame) = client.next() {
        match frame.kind {
            http2::WINDOW_UPDATE if frame.stream == 0 => window += number(&frame.payload),
            http2::HEADERS => break,
            _ => {}
        }
    }
    (settings, window)
}

#[test]
fn the_windows_of_http2_are_a_part_of_the_memory_for_requests() {
    for (memory, connection, stream) in
        [("1GiB", 1 << 20, 1 << 19), ("4MiB", 1 << 18, 1 << 17), ("2MiB", 1 << 17, 1 << 16)]
    {
        let (settings, window) = offered(&gateway(&format!("memory = \"{memory}\"")));
        let setting = |id: u16| settings.iter().find(|(known, _)| *known == id).map(|(_, value)| *value);
        // RFC 9113, 6.5.2: streams, window of a stream, frame, headers. Values that are the protocol's own may be left out.
        assert_eq!((setting(4).unwrap_or(65_535), window), (stream, connection), "{memory}: {settings:?}");
        assert_eq!((setting(5).unwrap_or(16 << 10), setting(6)), (16 << 10, Some(128 << 10)), "{settings:?}");
        assert!(setting(3).is_some(), "{settings:?}");
    }
}

#[test]
fn a_client_of_http2_that_does_not_answer_a_ping_is_gone_and_its_memory_is_free() {
    let gateway = gateway("idle_timeout = \"1s\"\nbody_timeout = \"60s\"\nrequest_timeout = \"60s\"");
    let held = || gateway.admin_get("/readyz").json()["memory"]["requests"]["held"].as_u64().unwrap();
    let mut gone = Http2::connect(gateway.data(), 65_535);
    gone.request(1, true, INFER, false);
    let mut there = Http2::connect(gateway.data(), 65_535);
    there.request(1, true, INFER, false);
    eventually("both requests hold memory", || (held() >= 2 * 16 * 1024).then_some(()));
    // This one answers: `next` does it.
    let until = Instant::now() + Duration::from_millis(2500);
    there.stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let mut pings = 0;
    while Instant::now() < until {
        pings += u32::from(there.next().is_some_and(|frame| frame.kind == http2::PING));
    }
    assert!(pings >= 2, "it was asked {pings} times");
    wait_closed(&mut gone.stream, "a connection whose client answers no ping");
    eventually("one request holds memory", || (held() < 2 * 16 * 1024).then_some(()));
    there.stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    there.send(http2::DATA, http2::END_STREAM, 1, crate::support::infer_body(&[1, 2], &[1.0, 2.0]).as_bytes());
    assert!(there.next_of(http2::DATA).is_some(), "the other one is answered");
}
