//! Stopping the server while connections are in use.

use crate::support::http2::{self, Http2};
use crate::support::process::Served;
use crate::support::{Gateway, eventually, infer_body, onnx};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A gateway with a model that answers 1, and one that doubles two columns.
fn gateway(server: &str) -> Gateway {
    Gateway::start_with(&format!("[server]\n{server}\n"), |models| {
        onnx::install(models, "self", 1, &onnx::answering(1.0, 4, 0));
        onnx::install(models, "scale", 1, &onnx::scaling(2.0));
    })
}

/// Begins a stop. Returns once readiness is 503.
fn stop(gateway: &mut Gateway) -> JoinHandle<bool> {
    let app = gateway.app.take().unwrap();
    let mut phases = app.phases();
    let stopping = std::thread::spawn(move || app.stop());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(phases.changed()).unwrap();
    stopping
}

fn predict(rows: &str) -> Vec<u8> {
    let head = format!("POST /v2/models/self/infer HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", rows.len());
    [head.as_bytes(), rows.as_bytes()].concat()
}

fn body() -> String {
    infer_body(&[1, 4], &[0.0; 4])
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

/// Reads one answer with a `content-length`. `None` when the connection closes before its end.
fn answer(stream: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    let mut part = [0; 4096];
    loop {
        if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
            if bytes.len() >= end + 4 + length.parse::<usize>().unwrap() {
                return Some(head);
            }
        }
        match stream.read(&mut part) {
            Ok(n) if n > 0 => bytes.extend(&part[..n]),
            _ => return None,
        }
    }
}

#[test]
fn a_running_request_is_answered_before_the_server_stops() {
    let mut gateway = gateway("");
    let request = predict(&body());
    let mut slow = connect(gateway.data());
    slow.write_all(&request[..request.len() - 20]).unwrap();
    let address = gateway.data();
    let stopping = stop(&mut gateway);
    eventually("new connections are refused", || TcpStream::connect(address).is_err().then_some(()));
    slow.write_all(&request[request.len() - 20..]).unwrap();
    let mut answer = String::new();
    slow.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(
        answer.to_ascii_lowercase().contains("connection: close"),
        "the answer announces the end of the connection: {answer}"
    );
    assert!(stopping.join().unwrap(), "all connections ended in time");
}

#[test]
fn a_supervised_server_refuses_new_connections_while_it_drains() {
    let dir = tempfile::TempDir::new().unwrap();
    onnx::install(&dir.path().join("models"), "self", 1, &onnx::answering(1.0, 4, 0));
    let mut served = Served::start_with(dir.path(), &[("SLUICEGATE__SERVER__SHUTDOWN_GRACE", "8s")]);
    served.ready();
    let address: SocketAddr = served.data.parse().unwrap();
    let request = predict(&body());
    let mut slow = connect(address);
    slow.write_all(&request[..request.len() - 20]).unwrap();
    let pid = rustix::process::Pid::from_child(&served.child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    eventually("new connections are refused", || TcpStream::connect(address).is_err().then_some(()));
    assert!(served.server_pid().is_some(), "the server answers what it has begun");
    slow.write_all(&request[request.len() - 20..]).unwrap();
    assert!(
        answer(&mut slow).is_some_and(|head| head.starts_with("http/1.1 200") && head.contains("connection: close"))
    );
    assert!(served.child.wait().unwrap().success());
}

#[test]
fn a_stop_is_announced_before_connections_close() {
    let mut gateway = gateway("shutdown_grace = \"8s\"\nshutdown_announce = \"3s\"");
    let address = gateway.data();
    let (mut used, mut idle, mut unused) = (connect(address), connect(address), connect(address));
    for stream in [&mut used, &mut idle] {
        stream.write_all(&predict(&body())).unwrap();
        assert!(!answer(stream).unwrap().contains("connection: close"));
    }
    let began = Instant::now();
    let stopping = stop(&mut gateway);
    // While load balancers take note, new connections are served, and told that they close.
    let mut late = connect(address);
    late.write_all(b"GET /v2/health/ready HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let told = answer(&mut late).unwrap();
    assert!(told.starts_with("http/1.1 503") && told.contains("connection: close"), "{told}");
    assert_eq!(late.read(&mut [0]).unwrap(), 0, "it closes after that answer");
    eventually("new connections are refused", || TcpStream::connect(address).is_err().then_some(()));
    used.write_all(&predict(&body())).unwrap();
    let told = answer(&mut used).unwrap();
    assert!(told.starts_with("http/1.1 200") && told.contains("connection: close"), "{told}");
    for stream in [&mut idle, &mut unused] {
        assert_eq!(stream.read(&mut [0]).unwrap(), 0, "a connection without a request is closed");
    }
    assert!(began.elapsed() >= Duration::from_secs(3), "they stay open while the stop is announced");
    assert!(stopping.join().unwrap(), "all connections ended in time");
}

#[test]
fn http2_connections_are_told_twice_and_a_new_one_is_served() {
    let mut gateway = gateway("shutdown_grace = \"10s\"\nshutdown_announce = \"2s\"");
    let address = gateway.data();
    let mut used = Http2::connect(address, 65_535);
    used.request(1, false, "/v2/health/live", true);
    assert!(used.next_of(http2::DATA).is_some());
    // A request whose body is not complete is in flight.
    used.request(3, true, "/v2/models/self/infer", false);
    let stopping = stop(&mut gateway);
    let first = used.next_of(http2::GOAWAY).expect("the first announcement");
    assert_eq!(first.payload[..4], [0x7f, 0xff, 0xff, 0xff], "any request that is on its way is answered");
    let mut new = Http2::connect(address, 65_535);
    new.request(1, false, "/v2", true);
    let answer = new.next_of(http2::HEADERS).expect("a new connection is served");
    assert_eq!(answer.stream, 1);
    let second = used.next_of(http2::GOAWAY).expect("the second announcement");
    assert_eq!(second.payload[..4], [0, 0, 0, 3], "it names the last request that is answered");
    used.send(http2::DATA, http2::END_STREAM, 3, body().as_bytes());
    let answered = used.next_of(http2::DATA).expect("the request in flight is answered");
    assert_eq!(answered.stream, 3);
    assert!(new.next_of(http2::GOAWAY).is_some(), "the new connection is told after its request");
    assert!(stopping.join().unwrap(), "all connections ended in time");
}

/// Delays all bytes between a client and the gateway by 5 ms in each direction, as between two zones.
async fn five_ms_wire(gateway: SocketAddr) -> SocketAddr {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
    const DELAY: Duration = Duration::from_millis(5);

    async fn pipe(mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
        let (sender, mut arrived) = tokio::sync::mpsc::unbounded_channel::<(tokio::time::Instant, Vec<u8>)>();
        let forward = tokio::spawn(async move {
            while let Some((due, bytes)) = arrived.recv().await {
                tokio::time::sleep_until(due).await;
                if bytes.is_empty() || to.write_all(&bytes).await.is_err() {
                    break;
                }
            }
            let _ = to.shutdown().await;
        });
        let mut bytes = vec![0; 1 << 16];
        loop {
            let n = from.read(&mut bytes).await.unwrap_or(0);
            let _ = sender.send((tokio::time::Instant::now() + DELAY, bytes[..n].to_vec()));
            if n == 0 {
                break;
            }
        }
        let _ = forward.await;
    }

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let Ok(server) = tokio::net::TcpStream::connect(gateway).await else { continue };
            let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
            tokio::spawn(pipe(from_client, to_server));
            tokio::spawn(pipe(from_server, to_client));
        }
    });
    address
}

/// What became of kept connections.
#[derive(Debug, Default)]
struct Kept {
    /// Connections that have had an answer.
    in_use: usize,
    answered: usize,
    told: usize,
    closed_while_idle: usize,
    lost: Vec<String>,
}

/// Sends requests with pauses until the connection is told to close.
async fn keep(address: SocketAddr, pause: Duration, mut random: u64, kept: Arc<Mutex<Kept>>, give_up: Arc<AtomicBool>) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let (request, mut buffer) = (predict(&body()), vec![0; 8192]);
    let mut first = true;
    while !give_up.load(Ordering::Relaxed) {
        // A close that has arrived before the request is sent costs nothing.
        match stream.try_read(&mut buffer) {
            Ok(_) => {
                kept.lock().unwrap().closed_while_idle += 1;
                return;
            }
            Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::WouldBlock),
        }
        let sent = stream.write_all(&request).await;
        let mut bytes = Vec::new();
        let whole = loop {
            let text = String::from_utf8_lossy(&bytes).to_ascii_lowercase();
            let length = text.split_once("content-length: ").and_then(|(_, rest)| rest.split_once("\r\n"));
            let end = text.find("\r\n\r\n");
            if let (Some((length, _)), Some(end)) = (length, end)
                && bytes.len() >= end + 4 + length.parse::<usize>().unwrap()
            {
                break Ok(text);
            }
            match stream.read(&mut buffer).await {
                Ok(0) => break Err(format!("closed after {} bytes", bytes.len())),
                Ok(n) => bytes.extend_from_slice(&buffer[..n]),
                Err(e) => break Err(e.to_string()),
            }
        };
        match whole {
            Err(what) => {
                kept.lock().unwrap().lost.push(format!("pause {pause:?}: {what}, sent {sent:?}"));
                return;
            }
            Ok(text) => {
                let mut kept = kept.lock().unwrap();
                kept.answered += usize::from(text.starts_with("http/1.1 200"));
                kept.in_use += usize::from(std::mem::take(&mut first));
                if text.contains("connection: close") {
                    kept.told += 1;
                    return;
                }
            }
        }
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        tokio::time::sleep(pause * u32::try_from(random >> 33 & 0xff).unwrap() / 128).await;
    }
}

#[test]
fn kept_connections_over_a_wire_lose_no_request_at_a_stop() {
    const CONNECTIONS: u64 = 60;
    let mut gateway = gateway("shutdown_grace = \"6s\"\nshutdown_announce = \"3s\"");
    let address = gateway.data();
    let (kept, give_up) = (Arc::new(Mutex::new(Kept::default())), Arc::new(AtomicBool::new(false)));
    let (shared, over) = (Arc::clone(&kept), Arc::clone(&give_up));
    let clients = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let address = five_ms_wire(address).await;
            let mut clients = tokio::task::JoinSet::new();
            for (i, pause) in [0, 5, 20, 100].map(Duration::from_millis).into_iter().enumerate() {
                for j in 0..CONNECTIONS {
                    let random = (i as u64) << 32 | j;
                    clients.spawn(keep(address, pause, random, Arc::clone(&shared), Arc::clone(&over)));
                }
            }
            while let Some(ended) = clients.join_next().await {
                ended.unwrap();
            }
        });
    });
    // The wire accepts one connection after another: one that it has not accepted at the stop would find the gateway closed.
    eventually("all connections are in use", || {
        let kept = kept.lock().unwrap();
        (kept.in_use == 240 && kept.answered > 2000).then_some(())
    });
    let stopping = stop(&mut gateway);
    assert!(stopping.join().unwrap(), "all connections ended in time");
    give_up.store(true, Ordering::Relaxed);
    clients.join().unwrap();
    let kept = kept.lock().unwrap();
    assert!(kept.lost.is_empty(), "{kept:?}");
    assert_eq!(kept.told, 240, "each connection is told: {kept:?}");
}

/// The bytes of tensors in a large answer.
const LARGE: usize = 5 << 23;

/// Asks for 40 MB of binary answer. Returns after the request is sent.
fn ask_for_40_mb(address: SocketAddr) -> TcpStream {
    const ROWS: usize = 5 << 20;
    let json = format!(
        r#"{{"inputs":[{{"name":"x","shape":[{ROWS},2],"datatype":"FP32","parameters":{{"binary_data_size":{}}}}}],"parameters":{{"binary_data_output":true}}}}"#,
        ROWS * 8
    );
    let mut stream = connect(address);
    let head = format!(
        "POST /v2/models/scale/infer HTTP/1.1\r\nhost: x\r\ninference-header-content-length: {}\r\ncontent-length: {}\r\n\r\n{json}",
        json.len(),
        json.len() + ROWS * 8
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&vec![0; ROWS * 8]).unwrap();
    stream
}

#[test]
fn a_large_answer_is_written_to_its_end() {
    let mut gateway = gateway("shutdown_grace = \"20s\"\nshutdown_announce = \"100ms\"\nrequest_timeout = \"60s\"");
    let mut readers: Vec<TcpStream> = (0..2).map(|_| ask_for_40_mb(gateway.data())).collect();
    let mut first = [0; 1];
    for reader in &mut readers {
        reader.read_exact(&mut first).unwrap();
    }
    let address = gateway.data();
    let stopping = stop(&mut gateway);
    eventually("new connections are refused", || TcpStream::connect(address).is_err().then_some(()));
    // The readers take nothing for longer than the announcement, and then all of it in pieces.
    let until = Instant::now() + Duration::from_millis(700);
    eventually("time passes", || (Instant::now() >= until).then_some(()));
    assert!(!stopping.is_finished(), "the answers are not written yet");
    let (mut first, mut second) = (readers.remove(0), readers.remove(0));
    let mut answer = Vec::new();
    second.read_to_end(&mut answer).unwrap();
    assert!(answer.len() > LARGE, "{} bytes", answer.len());
    // This answer had begun before the stop, so its client does not know that its connection closes.
    let mut answer = vec![0; LARGE];
    first.read_exact(&mut answer).unwrap();
    let mut rest = 0;
    while rest < 100 {
        rest += first.read(&mut [0; 4096]).unwrap();
    }
    first.write_all(&predict(&body())).unwrap();
    let mut next = String::new();
    first.read_to_string(&mut next).unwrap();
    assert!(
        next.contains("HTTP/1.1 200") && next.contains("connection: close"),
        "its next request is answered: {next}"
    );
    assert!(stopping.join().unwrap(), "all answers were written");
}

#[test]
fn a_stop_says_when_an_answer_was_cut_off() {
    let mut gateway = gateway("shutdown_grace = \"2s\"\nshutdown_announce = \"100ms\"\nrequest_timeout = \"60s\"");
    let mut reader = ask_for_40_mb(gateway.data());
    reader.read_exact(&mut [0; 1]).unwrap();
    let stopping = stop(&mut gateway);
    assert!(!stopping.join().unwrap(), "the reader took nothing, so the stop is not clean");
}
