//! Counts the allocations of a whole request, from socket to socket, in the default configuration: blocks and bytes. All allocations
//! of the process count, also those of the log's writer. An engine's C++ allocations do not.
//!
//! Run with `cargo bench --bench allocations`. With a file name (`… -- heap.json`) it also writes the call stacks, for DHAT's viewer (<https://nnethercote.github.io/dh_view/dh_view.html>).

use sluicegate::app::App;
use sluicegate::config::{Config, Overrides};
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

/// Requests before counting starts. After these, buffers have grown, and sessions and histograms exist.
const WARM: usize = 2_000;
/// The number of counted requests.
const COUNTED: usize = 2_000;

fn main() {
    let heap = std::env::args().skip(1).find(|argument| argument.contains(".json"));
    if !std::env::args().any(|argument| argument == "--bench") {
        // Started as a test, which only checks that it builds.
        return;
    }
    let counting = dhat::Profiler::builder();
    let _profiler = match heap {
        Some(file) => counting.file_name(file).trim_backtraces(Some(40)).build(),
        None => counting.testing().build(),
    };
    println!("{:<36} {:>8} {:>8}", "request", "blocks", "bytes");
    for (logged, what) in [(true, "log on"), (false, "log off")] {
        let (app, _dir) = serve(logged);
        for (form, request) in [("JSON", json()), ("binary", binary())] {
            let mut caller = Caller::connect(app.data_address(), request);
            caller.repeat(WARM);
            let before = dhat::HeapStats::get();
            caller.repeat(COUNTED);
            let after = dhat::HeapStats::get();
            let each = |after: u64, before: u64| (after - before) as f64 / COUNTED as f64;
            let blocks = each(after.total_blocks, before.total_blocks);
            let bytes = each(after.total_bytes, before.total_bytes);
            println!("{:<36} {blocks:>8.1} {bytes:>8.0}", format!("32 floats as {form}, {what}"));
        }
        app.stop();
    }
}

/// Starts a gateway with the repository's models, on free ports and in a temporary data directory.
fn serve(logged: bool) -> (App, tempfile::TempDir) {
    let dir = tempfile::TempDir::new().expect("a temporary directory");
    let overrides = Overrides {
        listen: Some("127.0.0.1:0".to_owned()),
        admin_listen: Some("127.0.0.1:0".to_owned()),
        models: Some("models".to_owned()),
        data_dir: Some(dir.path().display().to_string()),
        model: None,
        fleet: None,
    };
    let log = ("SLUICEGATE__PREDICTION_LOG__ENABLED".to_owned(), logged.to_string());
    let grace = ("SLUICEGATE__SERVER__SHUTDOWN_GRACE".to_owned(), "1s".to_owned());
    let config = Config::load(None, [log, grace], &overrides).expect("the configuration is valid");
    (App::start(&config).expect("it starts"), dir)
}

fn request(headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST /v2/models/mlp32/infer HTTP/1.1\r\nhost: localhost\r\n{headers}content-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

fn json() -> Vec<u8> {
    let mut body = "{\"inputs\":[{\"name\":\"x\",\"shape\":[1,32],\"datatype\":\"FP32\",\"data\":[".to_owned();
    for i in 0..32 {
        let _ = write!(body, "{}{:.3}", if i == 0 { "" } else { "," }, f64::from(i) * 0.37 - 4.0);
    }
    body.push_str("]}]}");
    request("content-type: application/json\r\n", body.as_bytes())
}

fn binary() -> Vec<u8> {
    let head = "{\"inputs\":[{\"name\":\"x\",\"shape\":[1,32],\"datatype\":\"FP32\",\"parameters\":{\"binary_data_size\":128}}],\
                \"outputs\":[{\"name\":\"y\",\"parameters\":{\"binary_data\":true}}]}";
    let mut body = head.as_bytes().to_vec();
    body.extend((0..32_u8).flat_map(|i| (f32::from(i) * 0.37 - 4.0).to_le_bytes()));
    request(&format!("inference-header-content-length: {}\r\n", head.len()), &body)
}

/// A connection that repeats one request without allocating.
struct Caller {
    stream: TcpStream,
    request: Vec<u8>,
    answer: Vec<u8>,
}

impl Caller {
    /// Connects and waits until the model answers.
    fn connect(address: SocketAddr, request: Vec<u8>) -> Caller {
        let stream = TcpStream::connect(address).expect("it listens");
        stream.set_nodelay(true).expect("the option is set");
        let mut caller = Caller { stream, request, answer: vec![0; 64 << 10] };
        let until = Instant::now() + Duration::from_mins(1);
        while !caller.send().starts_with(b"HTTP/1.1 200 ") {
            assert!(Instant::now() < until, "mlp32 is not served: {}", String::from_utf8_lossy(caller.send()));
            std::thread::park_timeout(Duration::from_millis(20));
        }
        caller
    }

    fn repeat(&mut self, times: usize) {
        for _ in 0..times {
            assert!(self.send().starts_with(b"HTTP/1.1 200 "), "an answer");
        }
    }

    fn send(&mut self) -> &[u8] {
        self.stream.write_all(&self.request).expect("the request is sent");
        let mut got = 0;
        loop {
            let n = self.stream.read(&mut self.answer[got..]).expect("the answer is read");
            assert!(n > 0, "the connection was closed, or the answer is too long");
            got += n;
            let answer = &self.answer[..got];
            let Some(head) = answer.windows(4).position(|w| w == b"\r\n\r\n") else { continue };
            let length = answer[..head].split(|b| *b == b'\n').find_map(|line| line.strip_prefix(b"content-length: "));
            let digits = length.expect("answers have a content-length").iter().take_while(|b| b.is_ascii_digit());
            let length = digits.fold(0, |n, digit| n * 10 + usize::from(digit - b'0'));
            if got == head + 4 + length {
                return &self.answer[..got];
            }
        }
    }
}
