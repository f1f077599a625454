//! TLS: real clients, certificates that change, clients with certificates, and ends of connections.

use crate::support::http2::{GOAWAY, HEADERS, Http2, RST_STREAM};
use crate::support::process::Served;
use crate::support::tls::{Certificates, Tls, connect, handshake};
use crate::support::{Gateway, copy, eventually, infer_body, onnx};
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const LIVE: &[u8] = b"GET /v2/health/live HTTP/1.1\r\nhost: localhost\r\n\r\n";

/// A gateway with TLS on the data plane, and models `self` and `scale`.
fn gateway(server: &str) -> (Gateway, Certificates) {
    let dir = TempDir::new().unwrap();
    let certificates = Certificates::make(dir.path());
    let models = dir.path().join("models");
    fs::create_dir(&models).unwrap();
    onnx::install(&models, "self", 1, &onnx::answering(1.0, 4, 0));
    onnx::install(&models, "scale", 1, &onnx::scaling(2.0));
    let config = format!("[server]\n{server}\n{}", certificates.section("server.tls"));
    let gateway = Gateway::start_in(dir, &config);
    eventually("the gateway is ready", || (gateway.admin_get("/readyz").status == 200).then_some(()));
    (gateway, certificates)
}

/// Reads one answer with a `content-length`: its head and its body. `None` when the connection closes before.
fn answer(stream: &mut impl Read) -> Option<(String, Vec<u8>)> {
    let (mut bytes, mut part) = (Vec::new(), [0; 4096]);
    loop {
        if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
            let length: usize = length.parse().unwrap();
            if bytes.len() >= end + 4 + length {
                return Some((head, bytes[end + 4..].to_vec()));
            }
        }
        match stream.read(&mut part) {
            Ok(n) if n > 0 => bytes.extend(&part[..n]),
            _ => return None,
        }
    }
}

fn is_served(stream: &mut Tls) -> bool {
    stream.write_all(LIVE).is_ok() && answer(stream).is_some_and(|(head, _)| head.starts_with("http/1.1 200"))
}

/// Waits until the server closes, and returns how long that took.
fn closed_after(stream: &mut TcpStream) -> Duration {
    let started = Instant::now();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut part = [0; 4096];
    loop {
        match stream.read(&mut part) {
            Ok(n) if n > 0 => {}
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => panic!("it was not closed"),
            _ => return started.elapsed(),
        }
    }
}

fn metric(gateway: &Gateway, series: &str) -> f64 {
    let text = String::from_utf8(gateway.admin_get("/metrics").body).unwrap();
    let line = text.lines().find(|line| line.starts_with(series)).unwrap_or_else(|| panic!("{series}: {text}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn curl(arguments: &[&str]) -> Output {
    let output = Command::new("curl").args(["--silent", "--show-error", "--max-time", "20"]).args(arguments).output();
    output.unwrap_or_else(|e| panic!("curl does not run (.ci/run installs it): {e}"))
}

/// The real binary, with its certificates made by the command, TLS on both planes, and clients with certificates on the admin plane.
fn served(dir: &Path) -> Served {
    let made = Command::new(env!("CARGO_BIN_EXE_sluicegate"))
        .args(["certificate", "--for", "localhost,127.0.0.1", "--client", "anna", "--client", "ben"])
        .current_dir(dir)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", text(&made));
    assert!(text(&made).contains("wrote tls/anna.key   (private)"), "{}", text(&made));
    let models = dir.join("models");
    fs::create_dir(&models).unwrap();
    onnx::install(&models, "self", 1, &onnx::answering(1.0, 4, 0));
    fs::create_dir(dir.join("config")).unwrap();
    let section = |name: &str| format!("[{name}.tls]\ncertificate = \"tls/server.crt\"\nkey = \"tls/server.key\"\n");
    let config = format!("{}{}client_ca = \"tls/client-ca.crt\"\n", section("server"), section("admin"));
    fs::write(dir.join("config/sluicegate.toml"), config).unwrap();
    Served::start(dir)
}

#[test]
fn the_whole_program_with_certificates_of_its_own_for_curl_and_the_command_line() {
    let dir = TempDir::new().unwrap();
    let mut served = served(dir.path());
    let at = |name: &str| dir.path().join("tls").join(name).display().to_string();
    let (ca, data, admin) = (at("server.crt"), format!("https://{}", served.data), format!("https://{}", served.admin));
    let cli = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sluicegate"));
        let output = command.args(arguments).env("SLUICEGATE_ADMIN", &admin).output().unwrap();
        (output.status.code().unwrap(), text(&output))
    };

    // Operators.
    let (anna_cert, anna_key) = (at("anna.crt"), at("anna.key"));
    let anna = ["--ca", &ca, "--client-cert", &anna_cert, "--client-key", &anna_key];
    eventually("the command line reaches the server", || {
        cli(&[&anna[..], &["models"]].concat()).1.contains("self").then_some(())
    });
    let (code, said) = cli(&["--ca", &ca, "models"]);
    assert!(code == 1 && said.contains("the server asks for a certificate: give --client-cert"), "{said}");
    let (code, said) = cli(&[&["--ca", &at("ben.crt")], &anna[2..], &["models"]].concat());
    assert!(code == 1 && said.contains("--ca FILE"), "{said}");
    let (code, said) = cli(&["--ca", &at("nowhere.crt"), "models"]);
    assert!(code == 2 && said.contains("nowhere.crt"), "{said}");
    let (code, said) = cli(&["--ca", &ca, "--client-cert", &anna_cert, "models"]);
    assert!(code == 2 && said.contains("belong together"), "{said}");
    let (code, said) = cli(&["--admin", &format!("http://{}", served.admin), "models"]);
    assert!(code == 1 && said.contains("this port speaks TLS, and the client sent plain HTTP: use https://"), "{said}");
    let with_ben = ["--cacert", &ca, "--cert", &at("ben.crt"), "--key", &at("ben.key"), &format!("{admin}/readyz")];
    eventually("ben is answered", || text(&curl(&with_ben)).contains("\"ready\":true").then_some(()));
    let without = curl(&["--cacert", &ca, &format!("{admin}/readyz")]);
    // curl names the alert, or only that the connection ended, by which of the two it notices first.
    assert!(!without.status.success() && !text(&without).contains("ready"), "{}", text(&without));

    // Callers.
    for (option, version) in [("--http1.1", "1.1"), ("--http2", "2")] {
        let body = infer_body(&[1, 4], &[0.0; 4]);
        let url = format!("{data}/v2/models/self/infer");
        let format = "\n%{http_version} %{http_code}";
        let answer = text(&curl(&["--cacert", &ca, option, "--data", &body, "--write-out", format, &url]));
        assert!(answer.contains("\"data\":[1.0]") && answer.ends_with(&format!("\n{version} 200")), "{answer}");
    }
    let untrusted = curl(&[&data]);
    assert!(!untrusted.status.success() && text(&untrusted).contains("self-signed"), "{}", text(&untrusted));
    let plain = text(&curl(&[&format!("http://{}/v2", served.data)]));
    assert!(plain.contains("this port speaks TLS, and the client sent plain HTTP: use https://"), "{plain}");
    let prior_knowledge = curl(&["--http2-prior-knowledge", &format!("http://{}/v2", served.data)]);
    assert!(!prior_knowledge.status.success(), "{}", text(&prior_knowledge));

    // A new pair, while a connection is kept.
    let address: SocketAddr = served.data.parse().unwrap();
    let certificates = Certificates { dir: dir.path().join("tls") };
    let trusts_old = certificates.client(&["http/1.1"], None);
    let mut kept = handshake(address, &trusts_old);
    assert!(is_served(&mut kept));
    let new = TempDir::new().unwrap();
    let renewed = Certificates::make(new.path());
    let trusts_new = renewed.client(&["http/1.1"], None);
    fs::copy(renewed.path("server.crt"), at("server.crt")).unwrap();
    // To the supervisor, which passes it on.
    let supervisor = rustix::process::Pid::from_child(&served.child);
    rustix::process::kill_process(supervisor, rustix::process::Signal::HUP).unwrap();
    let refused = served.wait_logged("the old ones stay");
    assert!(refused.to_string().contains("do not belong together"), "{refused}");
    assert!(is_served(&mut handshake(address, &trusts_old)), "new connections get the old certificate");
    fs::copy(renewed.path("server.key"), at("server.key")).unwrap();
    served.wait_logged("certificates were loaded again");
    eventually("new connections get the new certificate", || {
        is_served(&mut connect(address, &trusts_new)).then_some(())
    });
    assert!(is_served(&mut kept), "the connection from before stays");
    served.stop();
}

#[test]
fn python_clients_over_tls() {
    let dir = TempDir::new().unwrap();
    let certificates = Certificates::make(dir.path());
    copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models"), &dir.path().join("models"));
    let gateway = Gateway::start_in(dir, &certificates.section_with_clients("server.tls"));
    eventually("the gateway is ready", || (gateway.admin_get("/readyz").status == 200).then_some(()));
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python =
        std::env::var("SLUICEGATE_TEST_PYTHON").unwrap_or_else(|_| root.join(".venv/bin/python").display().to_string());
    let output = Command::new(&python)
        .arg(root.join("tests/python/tls_clients.py"))
        .arg(gateway.data().port().to_string())
        .arg(&certificates.dir)
        .output()
        .unwrap_or_else(|e| panic!("{python} does not run (`make venv` creates it): {e}"));
    assert!(output.status.success() && text(&output).contains("ok"), "{}", text(&output));
    assert!(metric(&gateway, "sluicegate_tls_handshakes_total{plane=\"data\",result=\"failed\"}") >= 4.0);
    let expires = metric(&gateway, "sluicegate_tls_certificate_expires_timestamp_seconds{plane=\"data\"}");
    let days = (expires - jiff::Timestamp::now().as_second() as f64) / 86_400.0;
    assert!((29.0..=32.0).contains(&days), "{days} days");
}

#[test]
fn sessions_are_resumed_by_tickets_unless_clients_have_certificates() {
    let (gateway, certificates) = gateway("");
    let client = certificates.client(&["http/1.1"], None);
    for _ in 0..3 {
        // The ticket arrives with the answer.
        assert!(is_served(&mut handshake(gateway.data(), &client)));
    }
    let handshakes = |result: &str| {
        metric(&gateway, &format!("sluicegate_tls_handshakes_total{{plane=\"data\",result=\"{result}\"}}"))
    };
    assert_eq!((handshakes("full"), handshakes("resumed")), (1.0, 2.0));

    let dir = TempDir::new().unwrap();
    let certificates = Certificates::make(dir.path());
    fs::create_dir(dir.path().join("models")).unwrap();
    let gateway = Gateway::start_in(dir, &certificates.section_with_clients("server.tls"));
    let client = certificates.client(&["http/1.1"], Some("anna"));
    for _ in 0..2 {
        assert!(is_served(&mut handshake(gateway.data(), &client)));
    }
    let full = metric(&gateway, "sluicegate_tls_handshakes_total{plane=\"data\",result=\"full\"}");
    assert_eq!(full, 2.0, "each connection proves its identity");
}

#[test]
fn a_client_that_is_silent_at_any_step_is_disconnected() {
    let (gateway, certificates) = gateway("header_timeout = \"300ms\"");
    let client = certificates.client(&["http/1.1"], None);
    let plain = || TcpStream::connect(gateway.data()).unwrap();
    let mut hello = Vec::new();
    connect(gateway.data(), &client).conn.write_tls(&mut hello).unwrap();
    let mut steps: Vec<(&str, TcpStream)> = vec![("before the first byte", plain())];
    for (what, bytes) in [("after a byte", 1), ("within the first message", hello.len() / 2), ("after it", hello.len())]
    {
        let mut stream = plain();
        stream.write_all(&hello[..bytes]).unwrap();
        steps.push((what, stream));
    }
    let Tls { sock, .. } = handshake(gateway.data(), &client);
    steps.push(("after the handshake", sock));
    let mut tls = handshake(gateway.data(), &client);
    tls.write_all(b"GET /v2 HTT").unwrap();
    steps.push(("within a request", tls.sock));
    for (what, mut stream) in steps {
        let after = closed_after(&mut stream);
        assert!(after < Duration::from_secs(5), "{what}: {after:?}");
    }
    let mut kept = handshake(gateway.data(), &client);
    assert!(is_served(&mut kept));
    // Longer than the limit: between requests another one holds.
    kept.sock.set_read_timeout(Some(Duration::from_millis(700))).unwrap();
    let nothing = kept.read(&mut [0; 16]).unwrap_err();
    assert!(matches!(nothing.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{nothing}");
    kept.sock.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    assert!(is_served(&mut kept));
    assert!(metric(&gateway, "sluicegate_connections_closed_total{plane=\"data\",reason=\"handshake\"}") >= 4.0);
    assert!(metric(&gateway, "sluicegate_connections_closed_total{plane=\"data\",reason=\"headers\"}") >= 2.0);
}

#[test]
fn a_stop_is_announced_and_ends_with_the_message_that_tls_asks_for() {
    let (mut gateway, certificates) = gateway("shutdown_announce = \"1s\"");
    let mut http1 = handshake(gateway.data(), &certificates.client(&["http/1.1"], None));
    assert!(is_served(&mut http1));
    let mut idle = handshake(gateway.data(), &certificates.client(&["http/1.1"], None));
    assert!(is_served(&mut idle));
    let tls = handshake(gateway.data(), &certificates.client(&["h2", "http/1.1"], None));
    assert_eq!(tls.conn.alpn_protocol(), Some(&b"h2"[..]));
    let mut http2 = Http2::over(tls, 65_535);
    http2.request(1, false, "/v2/health/live", true);
    assert!(http2.next_of(HEADERS).is_some());
    let app = gateway.app.take().unwrap();
    let mut phases = app.phases();
    let stopping = std::thread::spawn(move || app.stop());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(phases.changed()).unwrap();
    assert!(http2.next_of(GOAWAY).is_some(), "the end of the connection is announced");
    http1.write_all(LIVE).unwrap();
    let (head, _) = answer(&mut http1).unwrap();
    assert!(head.contains("connection: close"), "{head}");
    for (what, stream) in [("answered", &mut http1), ("idle", &mut idle)] {
        // Without the message the client would report that the connection was cut off.
        assert_eq!(stream.read(&mut [0; 16]).unwrap_or_else(|e| panic!("{what}: {e}")), 0, "{what}");
    }
    drop((http1, idle, http2));
    assert!(stopping.join().unwrap(), "every connection ended in order");
}

/// A request whose answer has this many rows of two values.
fn large(rows: usize) -> Vec<u8> {
    let head = format!(
        "{{\"inputs\":[{{\"name\":\"x\",\"shape\":[{rows},2],\"datatype\":\"FP32\",\"parameters\":{{\"binary_data_size\":{0}}}}}],\"outputs\":[{{\"name\":\"y\",\"parameters\":{{\"binary_data\":true}}}}]}}",
        rows * 8
    );
    let mut request = format!(
        "POST /v2/models/scale/infer HTTP/1.1\r\nhost: localhost\r\ninference-header-content-length: {}\r\ncontent-length: {}\r\n\r\n{head}",
        head.len(),
        head.len() + rows * 8
    )
    .into_bytes();
    for value in 0..rows * 2 {
        request.extend((value as f32).to_le_bytes());
    }
    request
}

#[test]
fn large_bodies_arrive_whole_and_a_reader_that_takes_nothing_is_disconnected() {
    let (gateway, certificates) = gateway("write_timeout = \"500ms\"");
    let client = certificates.client(&["http/1.1"], None);
    let rows = 1 << 20;
    let mut tls = handshake(gateway.data(), &client);
    tls.write_all(&large(rows)).unwrap();
    let (head, body) = answer(&mut tls).unwrap();
    assert!(head.starts_with("http/1.1 200"), "{head}");
    let values = &body[body.len() - rows * 8..];
    for index in [0, 1, 77_777, rows, rows * 2 - 1] {
        let value = f32::from_le_bytes(values[index * 4..index * 4 + 4].try_into().unwrap());
        assert_eq!(value, index as f32 * 2.0, "value {index}");
    }
    assert!(is_served(&mut tls));

    let mut lazy = handshake(gateway.data(), &client);
    lazy.write_all(&large(2 * rows)).unwrap();
    eventually("the reader is disconnected", || {
        let series = "sluicegate_connections_closed_total{plane=\"data\",reason=\"reader\"}";
        (metric(&gateway, series) == 1.0).then_some(())
    });
    assert!(is_served(&mut tls), "others are not affected");
}

#[test]
fn a_client_that_stops_sending_is_answered_with_and_without_the_message_that_tls_asks_for() {
    let (gateway, certificates) = gateway("");
    let client = certificates.client(&["http/1.1"], None);
    for says_so in [true, false] {
        let mut tls = handshake(gateway.data(), &client);
        tls.write_all(LIVE).unwrap();
        if says_so {
            tls.conn.send_close_notify();
            tls.flush().unwrap();
        }
        tls.sock.shutdown(Shutdown::Write).unwrap();
        let (head, _) = answer(&mut tls).unwrap_or_else(|| panic!("it is answered (message: {says_so})"));
        assert!(head.starts_with("http/1.1 200"), "{head}");
        assert_eq!(tls.read(&mut [0; 16]).unwrap(), 0, "the server ends in order too");
    }
    let mut cut_off = handshake(gateway.data(), &client);
    cut_off.write_all(b"POST /v2/models/self/infer HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{").unwrap();
    cut_off.sock.shutdown(Shutdown::Write).unwrap();
    assert!(
        answer(&mut cut_off).is_none_or(|(head, _)| !head.starts_with("http/1.1 200")),
        "half a request is not run"
    );
}

#[test]
fn a_stream_of_http2_whose_window_stays_closed_is_reset_over_tls_too() {
    let (gateway, certificates) = gateway("write_timeout = \"500ms\"");
    let tls = handshake(gateway.data(), &certificates.client(&["h2"], None));
    let mut http2 = Http2::over(tls, 0);
    http2.request(1, false, "/v2/models/self", true);
    let reset = http2.next_of(RST_STREAM).expect("the stream is reset");
    assert_eq!(reset.stream, 1);
    http2.set_window(65_535);
    http2.request(3, false, "/v2/health/live", true);
    assert!(http2.next_of(HEADERS).is_some_and(|frame| frame.stream == 3), "other streams go on");
}

#[test]
fn a_start_with_unusable_certificates_says_which_file_is_wrong() {
    let dir = TempDir::new().unwrap();
    let certificates = Certificates::make(dir.path());
    fs::write(certificates.path("server.key"), "nothing").unwrap();
    fs::create_dir(dir.path().join("models")).unwrap();
    let config = crate::support::configuration(dir.path(), &certificates.section("admin.tls"));
    let refused = sluicegate::app::App::start(&config).unwrap_err().to_string();
    assert!(refused.contains("the certificates of the admin plane cannot be used"), "{refused}");
    assert!(refused.contains("server.key has no private key"), "{refused}");
}
