//! Abuse of protocols. Beside each attack a well-behaved client sends requests; its failures and its worst latency are asserted. The gateway
//! has one I/O thread, so that attackers and the well-behaved client share it.

#![allow(
    clippy::needless_for_each,
    clippy::large_stack_arrays,
    clippy::format_collect,
    reason = "attackers are written for brevity"
)]

use crate::support::http2::{self, Http2};
use crate::support::tls::{Certificates, Tls, connect as connect_tls, handshake};
use crate::support::{Gateway, eventually, infer_body, onnx};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const INFER: &str = "/v2/models/scale/infer";
/// The worst latency that the well-behaved client may see on a connection that it keeps, and with a new one, which waits behind those of the
/// attacker in the kernel's queue. Tests run beside others on machines with few cores, in a debug build. docs/SECURITY.md has what was measured.
const WORST: Duration = Duration::from_secs(2);
const WORST_NEW: Duration = Duration::from_secs(8);

const LIMITS: &str = "io_threads = 1\nheader_timeout = \"500ms\"\nbody_timeout = \"1s\"\nwrite_timeout = \"500ms\"\nmax_connections = 400\n\
                      max_body = \"1MiB\"\nmax_headers = \"16KiB\"\n";

/// A gateway with TLS on the data plane, or without.
fn gateway(with_tls: bool) -> (Gateway, Certificates) {
    gateway_with(LIMITS, with_tls)
}

fn gateway_with(limits: &str, with_tls: bool) -> (Gateway, Certificates) {
    let dir = TempDir::new().unwrap();
    let certificates = Certificates::make(dir.path());
    let models = dir.path().join("models");
    std::fs::create_dir(&models).unwrap();
    onnx::install(&models, "scale", 1, &onnx::scaling(2.0));
    let tls = if with_tls { certificates.section("server.tls") } else { String::new() };
    let gateway = Gateway::start_in(dir, &format!("[server]\n{limits}{tls}"));
    eventually("the gateway is ready", || (gateway.admin_get("/readyz").status == 200).then_some(()));
    (gateway, certificates)
}

// === the well-behaved client ===

/// Sends predictions, every tenth over a new connection, until it is stopped.
struct Prober {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(usize, [Duration; 2], Vec<String>)>,
}

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

impl Prober {
    fn start(address: SocketAddr, tls: Option<Arc<rustls::ClientConfig>>) -> Prober {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let body = infer_body(&[1, 2], &[1.0, 2.0]);
            let request = format!("POST {INFER} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len())
                .into_bytes();
            let (mut count, mut worst, mut failures) = (0, [Duration::ZERO; 2], Vec::new());
            let mut kept: Option<Box<dyn Stream>> = None;
            while !stopped.load(Ordering::Relaxed) || count < 10 {
                let began = Instant::now();
                if count % 10 == 0 {
                    kept = None;
                }
                let stream = kept.get_or_insert_with(|| match &tls {
                    None => Box::new(connect(address)),
                    Some(client) => Box::new(connect_tls(address, client)),
                });
                let mut answer = [0; 4096];
                let done = stream.write_all(&request).and_then(|()| stream.read(&mut answer));
                match done {
                    Ok(n) if answer[..n].starts_with(b"HTTP/1.1 200") => {}
                    Ok(n) => failures.push(String::from_utf8_lossy(&answer[..n]).into_owned()),
                    Err(error) => failures.push(error.to_string()),
                }
                if failures.len() > 10 {
                    break;
                }
                if !failures.is_empty() {
                    kept = None;
                }
                let of_kind = &mut worst[usize::from(count % 10 == 0)];
                *of_kind = began.elapsed().max(*of_kind);
                count += 1;
                std::thread::park_timeout(Duration::from_millis(2));
            }
            (count, worst, failures)
        });
        Prober { stop, thread }
    }

    fn finish(self, attack: &str) {
        self.stop.store(true, Ordering::Relaxed);
        let (count, [worst, worst_new], failures) = self.thread.join().unwrap();
        println!(
            "{attack}: {count} requests beside it, worst latency {worst:.1?}, with a new connection {worst_new:.1?}"
        );
        assert!(failures.is_empty(), "{attack}: the well-behaved client failed: {failures:?}");
        assert!(worst < WORST, "{attack}: the well-behaved client waited {worst:?}");
        assert!(worst_new < WORST_NEW, "{attack}: the well-behaved client waited {worst_new:?} with a new connection");
    }
}

/// Runs an attack beside the well-behaved client.
fn beside(gateway: &Gateway, certificates: Option<&Certificates>, name: &str, attack: impl FnOnce()) {
    let client = certificates.map(|certificates| certificates.client(&["http/1.1"], None));
    let prober = Prober::start(gateway.data(), client);
    attack();
    prober.finish(name);
}

// === attackers ===

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// The same from another address, so that limits for each peer apply to the attacker alone.
fn from_elsewhere(address: SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 2], 0)).into()).unwrap();
    socket.connect(&address.into()).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream
}

/// Writes `unit` again and again, up to this many bytes, until the server takes no more or has closed. Returns the bytes that it took.
fn flood(stream: &mut (impl Write + ?Sized), unit: &[u8], most: usize) -> usize {
    let chunk = unit.repeat((32 << 10) / unit.len().max(1) + 1);
    let mut sent = 0;
    while sent < most {
        match stream.write(&chunk) {
            Ok(0) | Err(_) => break,
            Ok(n) => sent += n,
        }
    }
    sent
}

/// Reads until the server closes: all that it sent. Fails if the server has not closed after ten seconds.
fn read_to_close(stream: &mut impl Read, what: &str) -> Vec<u8> {
    let (mut all, mut part, until) = (Vec::new(), [0; 16 << 10], Instant::now() + Duration::from_secs(10));
    loop {
        assert!(Instant::now() < until, "{what}: the server sends on and on");
        match stream.read(&mut part) {
            Ok(0) => return all,
            Ok(n) => all.extend(&part[..n]),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                panic!("{what}: the server has not closed the connection")
            }
            Err(_) => return all,
        }
    }
}

fn closed(gateway: &Gateway, reason: &str) -> usize {
    let text = String::from_utf8(gateway.admin_get("/metrics").body).unwrap();
    let series = format!("sluicegate_connections_closed_total{{plane=\"data\",reason=\"{reason}\"}} ");
    text.lines().find_map(|line| line.strip_prefix(&series)).unwrap().parse().unwrap()
}

fn open_connections(gateway: &Gateway) -> usize {
    let text = String::from_utf8(gateway.admin_get("/metrics").body).unwrap();
    let series = "sluicegate_connections{plane=\"data\"} ";
    text.lines().find_map(|line| line.strip_prefix(series)).unwrap().parse().unwrap()
}

// === HTTP/1 ===

#[test]
fn slow_and_silent_clients_of_http1() {
    let (gateway, _) = gateway(false);
    beside(&gateway, None, "slow headers", || {
        let mut slow: Vec<TcpStream> = (0..100).map(|_| connect(gateway.data())).collect();
        let until = Instant::now() + Duration::from_secs(1);
        for byte in b"GET /v2 HTTP/1.1\r\nx: ".iter().chain(std::iter::repeat(&b'a')) {
            slow.iter_mut().for_each(|stream| drop(stream.write(&[*byte])));
            if Instant::now() > until {
                break;
            }
            std::thread::park_timeout(Duration::from_millis(20));
        }
        slow.iter_mut().for_each(|stream| drop(read_to_close(stream, "slow headers")));
    });
    assert!(closed(&gateway, "headers") >= 100);
    beside(&gateway, None, "slow bodies", || {
        let head = format!("POST {INFER} HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n");
        let mut slow: Vec<TcpStream> = (0..100).map(|_| connect(gateway.data())).collect();
        slow.iter_mut().for_each(|stream| stream.write_all(head.as_bytes()).unwrap());
        let until = Instant::now() + Duration::from_millis(1500);
        while Instant::now() < until {
            slow.iter_mut().for_each(|stream| drop(stream.write(b" ")));
            std::thread::park_timeout(Duration::from_millis(50));
        }
        for stream in &mut slow {
            let answer = String::from_utf8_lossy(&read_to_close(stream, "slow bodies")).into_owned();
            assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
        }
    });
    // Twice as many as there are connections for. The longest idle ones make room.
    beside(&gateway, None, "silent connections", || {
        let mut silent: Vec<TcpStream> = (0..800).map(|_| connect(gateway.data())).collect();
        silent.iter_mut().for_each(|stream| drop(read_to_close(stream, "silent connections")));
    });
    eventually("no connection is left", || (open_connections(&gateway) == 0).then_some(()));
}

#[test]
fn floods_of_http1() {
    let (gateway, _) = gateway(false);
    let get = b"GET /v2/models/scale HTTP/1.1\r\nhost: x\r\n\r\n";
    beside(&gateway, None, "pipelined requests, answers not read", || {
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mut stream = connect(gateway.data());
                    stream.set_write_timeout(Some(Duration::from_secs(10))).unwrap();
                    let sent = flood(&mut stream, get, 256 << 20);
                    assert!(sent < 256 << 20, "the server stops reading when its answers are not read, and closes");
                });
            }
        });
        eventually("all are disconnected", || (closed(&gateway, "reader") == 4).then_some(()));
    });
    beside(&gateway, None, "pipelined requests, answers read", || {
        let mut stream = connect(gateway.data());
        let mut reading = stream.try_clone().unwrap();
        let reader = std::thread::spawn(move || {
            let (mut part, mut answers) = ([0; 64 << 10], 0);
            while let Ok(n @ 1..) = reading.read(&mut part) {
                answers += part[..n].windows(9).filter(|w| w == b"HTTP/1.1 ").count();
            }
            answers
        });
        for _ in 0..20_000 {
            stream.write_all(get).unwrap();
        }
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        // Parts may cut the words in two.
        assert!(reader.join().unwrap() > 19_000, "every request is answered");
    });
    beside(&gateway, None, "many headers", || {
        let many = |n: usize| {
            let headers: String = (0..n).map(|i| format!("x-{i}: {i}\r\n")).collect();
            format!("GET /v2 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n")
        };
        let fits = gateway.raw(many(90).as_bytes());
        assert!(fits.starts_with("HTTP/1.1 200"), "{fits}");
        for n in [101, 5_000] {
            let answer = gateway.raw(many(n).as_bytes());
            assert!(answer.starts_with("HTTP/1.1 431"), "{n} headers: {answer}");
        }
    });
    beside(&gateway, None, "headers without an end", || {
        for begin in [&b"GET /v2 HTTP/1.1\r\nx: "[..], b"GET /", b""] {
            let mut stream = connect(gateway.data());
            stream.write_all(begin).unwrap();
            stream.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
            let sent = flood(&mut stream, b"a", 64 << 20);
            assert!(sent < 32 << 20, "{sent} bytes of headers were taken");
            drop(read_to_close(&mut stream, "headers without an end"));
        }
    });
}

#[test]
fn requests_that_two_parsers_could_read_differently() {
    let (gateway, _) = gateway(false);
    let inner = "GET /v2/smuggled HTTP/1.1\r\nhost: x\r\n\r\n";
    let long_extension = format!("5;{}\r\nhello\r\n0\r\n\r\n", "a".repeat(1 << 20));
    let shapes: Vec<(&str, String)> = vec![
        ("both lengths", format!("content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{inner}")),
        ("both lengths, reversed", format!("transfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n0\r\n\r\n{inner}")),
        ("two lengths", format!("content-length: 0\r\ncontent-length: 40\r\n\r\n{inner}")),
        ("a list of lengths", format!("content-length: 0, 40\r\n\r\n{inner}")),
        ("a length with a sign", format!("content-length: +0\r\n\r\n{inner}")),
        ("a negative length", format!("content-length: -1\r\n\r\n{inner}")),
        ("a length in hexadecimal", format!("content-length: 0x0\r\n\r\n{inner}")),
        ("a length with a space inside", format!("content-length: 0 0\r\n\r\n{inner}")),
        ("a length beyond 64 bits", format!("content-length: 99999999999999999999\r\n\r\n{inner}")),
        ("a length in exponents", format!("content-length: 1e3\r\n\r\n{inner}")),
        ("a space before the colon", format!("content-length : 0\r\n\r\n{inner}")),
        ("a folded header", format!("x: a\r\n content-length: 0\r\n\r\n{inner}")),
        ("a null byte", format!("x: a\0b\r\ncontent-length: 0\r\n\r\n{inner}")),
        ("a lone carriage return", format!("x: a\rcontent-length: 0\r\n\r\n{inner}")),
        ("chunked twice", format!("transfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n{inner}")),
        ("chunked is not last", format!("transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n{inner}")),
        ("an unknown encoding", format!("transfer-encoding: xchunked\r\n\r\n0\r\n\r\n{inner}")),
        ("a chunk beyond 64 bits", format!("transfer-encoding: chunked\r\n\r\n1ffffffffffffffff\r\n{inner}")),
        ("a negative chunk", format!("transfer-encoding: chunked\r\n\r\n-1\r\n{inner}")),
        ("a chunk with a sign", format!("transfer-encoding: chunked\r\n\r\n+0\r\n\r\n{inner}")),
        (
            "a chunk that is longer than it says",
            format!("transfer-encoding: chunked\r\n\r\n1\r\nhello\r\n0\r\n\r\n{inner}"),
        ),
        ("a chunk extension without an end", format!("transfer-encoding: chunked\r\n\r\n{long_extension}{inner}")),
    ];
    beside(&gateway, None, "requests of two readings", || {
        for (what, rest) in &shapes {
            let mut stream = connect(gateway.data());
            // Errors are expected: the server may answer and close before it has read everything.
            let _ = stream.write_all(format!("POST {INFER} HTTP/1.1\r\nhost: x\r\n{rest}").as_bytes());
            let answer = String::from_utf8_lossy(&read_to_close(&mut stream, what)).into_owned();
            assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{what}: {answer}");
            assert_eq!(answer.matches("HTTP/1.1 ").count(), usize::from(!answer.is_empty()), "{what}: {answer}");
            assert!(!answer.contains("smuggled"), "{what}: {answer}");
        }
    });
    beside(&gateway, None, "announced lengths", || {
        for length in [(1u64 << 20) + 1, 1 << 40, u64::MAX / 2, u64::MAX] {
            let answer = gateway.raw(
                format!("POST {INFER} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n")
                    .as_bytes(),
            );
            assert!(answer.starts_with("HTTP/1.1 4"), "{length}: {answer}");
        }
    });
}

#[test]
fn bombs_in_compressed_bodies() {
    let (gateway, _) = gateway(false);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    let zeros = vec![b' '; 1 << 20];
    for _ in 0..200 {
        gzip.write_all(&zeros).unwrap();
    }
    let bomb = gzip.finish().unwrap();
    assert!(bomb.len() < 1 << 20, "{} bytes that become 200 MiB", bomb.len());
    beside(&gateway, None, "compressed bombs", || {
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let answer = gateway.post_with(INFER, &[("content-encoding", "gzip")], &bomb);
                    assert!(matches!(answer.status, 413 | 429 | 503), "{answer:?}");
                });
            }
        });
    });
}

// === HTTP/2 ===

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Floods of frames: their name, what comes first, and the part that is repeated.
fn floods() -> Vec<(&'static str, Vec<u8>, Vec<u8>)> {
    let open = frame(http2::HEADERS, http2::END_HEADERS, 1, &http2::head(true, INFER));
    let none = Vec::new;
    vec![
        ("PING", none(), frame(http2::PING, 0, 0, &[7; 8])),
        ("SETTINGS", none(), frame(http2::SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100])),
        ("empty SETTINGS", none(), frame(http2::SETTINGS, 0, 0, &[])),
        ("PRIORITY", none(), frame(2, 0, 1, &[0, 0, 0, 0, 1])),
        ("unknown frames", none(), frame(0xbe, 0, 0, b"?")),
        ("empty DATA", open.clone(), frame(http2::DATA, 0, 1, &[])),
        ("DATA of one byte", open, frame(http2::DATA, 0, 1, b" ")),
        (
            "CONTINUATION",
            frame(http2::HEADERS, 0, 1, &http2::head(false, "/v2")),
            frame(http2::CONTINUATION, 0, 1, &[0, 1, b'a', 1, b'b']),
        ),
        (
            "empty CONTINUATION",
            frame(http2::HEADERS, 0, 1, &http2::head(false, "/v2")),
            frame(http2::CONTINUATION, 0, 1, &[]),
        ),
    ]
}

/// A connection of HTTP/2 that reads nothing while it floods.
fn begin(gateway: &Gateway, client: Option<&Arc<rustls::ClientConfig>>) -> Http2<Box<dyn Stream>> {
    let stream: Box<dyn Stream> = match client {
        None => {
            let stream = connect(gateway.data());
            stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
            Box::new(stream)
        }
        Some(client) => {
            let tls: Tls = handshake(gateway.data(), client);
            tls.sock.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            tls.sock.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
            Box::new(tls)
        }
    };
    Http2::over(stream, 65_535)
}

fn floods_of_frames_end_the_connection(with_tls: bool) {
    let (gateway, certificates) = gateway(with_tls);
    let client = with_tls.then(|| certificates.client(&["h2"], None));
    let over = if with_tls { " over TLS" } else { "" };
    let certificates = with_tls.then_some(&certificates);
    for (name, first, unit) in floods() {
        beside(&gateway, certificates, &format!("{name}{over}"), || {
            let mut attacker = begin(&gateway, client.as_ref());
            attacker.stream.write_all(&first).unwrap();
            let sent = flood(&mut attacker.stream, &unit, 256 << 20);
            assert!(sent < 64 << 20, "{name}: {sent} bytes were taken");
            read_to_close(&mut attacker.stream, name);
        });
    }
    // A request and its end, again and again. Streams have numbers of their own, so this is not one part that is repeated.
    beside(&gateway, certificates, &format!("rapid reset{over}"), || {
        let mut attacker = begin(&gateway, client.as_ref());
        let head = http2::head(false, "/v2/models/scale");
        let mut bytes = Vec::new();
        for stream in (1..400_000).step_by(2) {
            bytes.extend(frame(http2::HEADERS, http2::END_HEADERS | http2::END_STREAM, stream, &head));
            bytes.extend(frame(http2::RST_STREAM, 0, stream, &[0, 0, 0, 8]));
        }
        let sent = attacker.stream.write_all(&bytes);
        assert!(sent.is_err() || !read_to_close(&mut attacker.stream, "rapid reset").is_empty());
    });
    assert!(closed(&gateway, "flood") >= 4, "PING, SETTINGS, PRIORITY and resets are counted");
}

#[test]
fn floods_of_frames_end_the_connection_of_http2() {
    floods_of_frames_end_the_connection(false);
}

#[test]
fn floods_of_frames_end_the_connection_of_http2_over_tls() {
    floods_of_frames_end_the_connection(true);
}

#[test]
fn streams_windows_and_header_tables_of_http2() {
    let (gateway, _) = gateway(false);
    beside(&gateway, None, "more streams than allowed", || {
        let mut attacker = begin(&gateway, None);
        for stream in (1..2_000).step_by(2) {
            attacker.send(http2::HEADERS, http2::END_HEADERS, stream, &http2::head(true, INFER));
        }
        // Requests without a body wait for it; those beyond the limit are refused at once.
        let refused = attacker.next_of(http2::RST_STREAM).map(|frame| frame.payload);
        assert!(
            matches!(refused.as_deref(), Some([0, 0, 0, 7]) | None),
            "REFUSED_STREAM, or the connection ends: {refused:?}"
        );
    });
    beside(&gateway, None, "windows that stay closed", || {
        let mut attackers: Vec<Http2> = (0..20).map(|_| Http2::connect(gateway.data(), 0)).collect();
        for attacker in &mut attackers {
            for stream in (1..200).step_by(2) {
                attacker.request(stream, false, "/v2/models/scale", true);
            }
        }
        for attacker in &mut attackers {
            assert!(attacker.next_of(http2::RST_STREAM).is_some(), "streams that make no progress are reset");
        }
    });
    beside(&gateway, None, "a window beyond its limit", || {
        let mut attacker = begin(&gateway, None);
        for _ in 0..3 {
            attacker.send(8, 0, 0, &(u32::MAX >> 1).to_be_bytes());
        }
        read_to_close(&mut attacker.stream, "a window beyond its limit");
    });
    beside(&gateway, None, "header tables", || {
        // One large entry in the table of HPACK, which each byte after it repeats: 4,000 bytes of headers for one byte.
        let mut attacker = begin(&gateway, None);
        let mut block = http2::head(false, "/v2");
        block.extend([0x40, 1, b'a', 0x7f, 0xa1, 0x1e]);
        block.extend([b'v'; 4_000]);
        attacker.send(http2::HEADERS, http2::END_HEADERS | http2::END_STREAM, 1, &block);
        for stream in (3..41).step_by(2) {
            let mut block = http2::head(false, "/v2");
            block.extend([0xbe; 10_000]);
            attacker.send(http2::HEADERS, http2::END_HEADERS | http2::END_STREAM, stream, &block);
        }
        let mut statuses = Vec::new();
        while let Some(frame) = attacker.next() {
            match frame.kind {
                http2::HEADERS if frame.stream > 1 => statuses.push(frame.payload.clone()),
                http2::RST_STREAM | http2::GOAWAY => break,
                _ => {}
            }
            if statuses.len() == 19 {
                break;
            }
        }
        // 0x08 0x03 "431", as the answer has it: not a status of success, whose number in the static table is 8.
        assert!(statuses.iter().all(|head| head.first() != Some(&0x88)), "{statuses:?}");
    });
    eventually("no connection is left", || (open_connections(&gateway) == 0).then_some(()));
}

// === TLS ===

#[test]
fn floods_of_handshakes() {
    // The well-behaved client has to complete its own handshakes in this time.
    let (gateway, certificates) = gateway_with(
        &LIMITS.replace("\"500ms\"", "\"5s\"").replace("max_connections = 400", "max_connections = 4000"),
        true,
    );
    let client = certificates.client(&["http/1.1"], None);
    let mut hello = Vec::new();
    connect_tls(gateway.data(), &client).conn.write_tls(&mut hello).unwrap();
    beside(&gateway, Some(&certificates), "half handshakes", || {
        // More than there may be at the same time.
        let mut all: Vec<TcpStream> = (0..700).map(|_| from_elsewhere(gateway.data())).collect();
        for (index, stream) in all.iter_mut().enumerate() {
            let part = if index % 2 == 0 { hello.len() } else { 20 };
            // The oldest ones may be closed already.
            let _ = stream.write_all(&hello[..part]);
        }
        all.iter_mut().for_each(|stream| drop(read_to_close(stream, "half handshakes")));
    });
    beside(&gateway, Some(&certificates), "handshakes again and again", || {
        let until = Instant::now() + Duration::from_secs(1);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                // Each without a ticket of the one before.
                scope.spawn(|| {
                    while Instant::now() < until {
                        let client = certificates.client(&["http/1.1"], None);
                        let mut tls = connect_tls(gateway.data(), &client);
                        while tls.conn.is_handshaking() && tls.conn.complete_io(&mut tls.sock).is_ok() {}
                    }
                });
            }
        });
    });
    beside(&gateway, Some(&certificates), "first messages again and again", || {
        let until = Instant::now() + Duration::from_secs(1);
        while Instant::now() < until {
            let _ = from_elsewhere(gateway.data()).write_all(&hello);
            std::thread::park_timeout(Duration::from_millis(1));
        }
    });
    let record = |kind: u8, payload: &[u8]| {
        let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
        [&[kind, 3, 3, length[0], length[1]][..], payload].concat()
    };
    let endless = |first: &[u8], unit: Vec<u8>, what: &'static str| {
        beside(&gateway, Some(&certificates), what, || {
            let mut stream = connect(gateway.data());
            stream.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
            let _ = stream.write_all(first);
            let sent = flood(&mut stream, &unit, 64 << 20);
            assert!(sent < 32 << 20, "{what}: {sent} bytes were taken");
            read_to_close(&mut stream, what);
        });
    };
    endless(&[], hello.clone(), "the first message again and again in one connection");
    endless(&hello, record(20, &[1]), "change_cipher_spec without an end");
    endless(&hello, record(21, &[1, 90]), "warnings without an end");
    endless(&hello, record(23, &[0; 64]), "records that are not encrypted");
    endless(&[], record(22, &[1]), "a first message in records of one byte");
    endless(&record(22, &[1, 0xff, 0xff, 0xff]), record(22, &[0; 1000]), "a first message of 16 MiB");
    endless(&[22, 3, 3, 0xff, 0xff], vec![0; 1000], "a record that is longer than allowed");
    endless(&hello, record(22, &[]), "empty records");
    beside(&gateway, Some(&certificates), "records of one byte", || {
        let mut tls = handshake(gateway.data(), &client);
        let body = infer_body(&[1, 2], &[1.0, 2.0]);
        let request = format!("POST {INFER} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        for byte in request.as_bytes() {
            tls.write_all(&[*byte]).unwrap();
        }
        let mut answer = [0; 100];
        assert!(tls.read(&mut answer).unwrap() > 0 && answer.starts_with(b"HTTP/1.1 200"));
    });
    eventually("no connection is left", || (open_connections(&gateway) == 0).then_some(()));
}
