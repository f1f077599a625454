//! Memory that strangers take: bodies that never end, answers that nobody reads, compressed bodies, feedback. None of it ends the server,
//! each is bounded or refused in words, and others go on being answered.

use crate::support::process::Served;
use crate::support::{Answer, Gateway, eventually, infer_body, onnx};
use bytes::Bytes;
use http_body_util::Full;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

const MIB: usize = 1 << 20;

/// A gateway whose requests may hold 32 MiB.
fn gateway() -> Gateway {
    let config =
        "[server]\nmemory = \"32MiB\"\nmax_body = \"8MiB\"\nbody_timeout = \"60s\"\nrequest_timeout = \"60s\"\n";
    Gateway::start_with(config, |models| onnx::install(models, "scale", 1, &onnx::scaling(2.0)))
}

fn still_serves(gateway: &Gateway) {
    let answer = gateway.post("/v2/models/scale/infer", infer_body(&[1, 2], &[1.0, 2.0]));
    assert_eq!(answer.status, 200, "small requests go on: {answer:?}");
    assert_eq!(answer.json()["outputs"][0]["data"], serde_json::json!([2.0, 4.0]));
}

fn metric(gateway: &Gateway, name: &str) -> f64 {
    let text = String::from_utf8(gateway.admin_get("/metrics").body).unwrap();
    let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name} in {text}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

/// Waits until nothing is held any more.
fn wait_idle(gateway: &Gateway) {
    eventually("the memory of all requests is given back", || {
        (metric(gateway, "sluicegate_request_memory_bytes") == 0.0).then_some(())
    });
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

/// Reads what the server has sent so far; empty where it has sent nothing within a moment.
fn peek(stream: &mut TcpStream) -> String {
    stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let mut answer = Vec::new();
    let mut part = [0; 4096];
    loop {
        match stream.read(&mut part) {
            Ok(0) => break,
            Ok(n) => answer.extend_from_slice(&part[..n]),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
            Err(_) => break,
        }
    }
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn bodies_that_never_end_are_refused_in_words_and_others_are_answered() {
    let gateway = gateway();
    let senders: Vec<_> = (0..10)
        .map(|i| {
            let address = gateway.data();
            std::thread::spawn(move || {
                let mut stream = TcpStream::connect(address).unwrap();
                stream.set_write_timeout(Some(Duration::from_secs(10))).unwrap();
                let framing = if i % 2 == 0 { "content-length: 7340032" } else { "transfer-encoding: chunked" };
                let head = format!("POST /v2/models/scale/infer HTTP/1.1\r\nhost: x\r\n{framing}\r\n\r\n");
                stream.write_all(head.as_bytes()).unwrap();
                let part = vec![b' '; 64 << 10];
                // A refusal may close the connection while this sends.
                for _ in 0..100 {
                    let chunk = if i % 2 == 0 { String::new() } else { format!("{:x}\r\n", part.len()) };
                    let sent = stream.write_all(chunk.as_bytes()).and_then(|()| stream.write_all(&part));
                    let end = if i % 2 == 0 { "" } else { "\r\n" };
                    if sent.and_then(|()| stream.write_all(end.as_bytes())).is_err() {
                        break;
                    }
                }
                stream
            })
        })
        .collect();
    let mut streams: Vec<TcpStream> = senders.into_iter().map(|sender| sender.join().unwrap()).collect();
    still_serves(&gateway);
    assert!(metric(&gateway, "sluicegate_request_memory_bytes") <= 32.0 * MIB as f64);
    let refusals = eventually("seven of ten bodies do not fit into 32 MiB", || {
        let answers: Vec<String> = streams.iter_mut().map(peek).filter(|answer| !answer.is_empty()).collect();
        still_serves(&gateway);
        (answers.len() >= 3).then_some(answers)
    });
    for refusal in &refusals {
        assert!(refusal.starts_with("HTTP/1.1 503") || refusal.starts_with("HTTP/1.1 429"), "{refusal}");
        assert!(refusal.contains("memory") && refusal.contains("retry-after"), "{refusal}");
    }
    assert!(
        eventually("refusals are counted", || {
            let refused = metric(&gateway, "sluicegate_request_memory_refused_total");
            (refused >= refusals.len() as f64).then_some(refused)
        }) > 0.0
    );
    drop(streams);
    wait_idle(&gateway);
    still_serves(&gateway);
}

/// A path, headers and a body.
type LargeRequest = (&'static str, Vec<(&'static str, String)>, Vec<u8>);

/// One request for many rows in each protocol.
fn large_requests() -> Vec<LargeRequest> {
    const ROWS: usize = 150_000;
    let rows = vec!["[1,2]"; ROWS].join(",");
    let oip =
        format!("{{\"inputs\":[{{\"name\":\"x\",\"shape\":[{ROWS},2],\"datatype\":\"FP32\",\"data\":[{rows}]}}]}}");
    let binary = format!(
        "{{\"parameters\":{{\"binary_data_output\":true}},\"inputs\":[{{\"name\":\"x\",\"shape\":[{ROWS},2],\"datatype\":\"FP32\",\
         \"parameters\":{{\"binary_data_size\":{}}}}}]}}",
        ROWS * 8
    );
    let length = ("inference-header-content-length", binary.len().to_string());
    let numbers = [1f32, 2.0].map(f32::to_le_bytes).concat().repeat(ROWS);
    let zip = ("content-encoding", "gzip".to_owned());
    vec![
        ("/v2/models/scale/infer", vec![zip.clone()], gzip(oip.as_bytes())),
        ("/v1/models/scale:predict", vec![zip.clone()], gzip(format!("{{\"instances\":[{rows}]}}").as_bytes())),
        ("/v1/models/scale:predict", vec![zip], gzip(format!("{{\"inputs\":[{rows}]}}").as_bytes())),
        ("/v2/models/scale/infer", vec![length], [binary.into_bytes(), numbers].concat()),
    ]
}

fn check_large(answer: &Answer, path: &str) {
    assert_eq!(answer.status, 200, "{path}: {:?}", String::from_utf8_lossy(&answer.body[..answer.body.len().min(300)]));
    if let Some(length) = answer.header("inference-header-content-length") {
        let tensors = &answer.body[length.parse::<usize>().unwrap()..];
        assert!(tensors.chunks(8).all(|row| row == [2f32, 4.0].map(f32::to_le_bytes).concat()));
        assert_eq!(tensors.len(), 150_000 * 8);
        return;
    }
    let json: Value = answer.json();
    if json["outputs"][0]["data"].is_array() {
        let data = json["outputs"][0]["data"].as_array().unwrap();
        assert!(data.len() == 300_000 && data.chunks(2).all(|row| row[0] == 2.0 && row[1] == 4.0));
        return;
    }
    let rows = json["predictions"].as_array().or(json["outputs"].as_array()).unwrap();
    assert!(rows.len() == 150_000 && rows.iter().all(|row| *row == serde_json::json!([2.0, 4.0])));
}

#[test]
fn large_answers_are_complete_in_every_protocol_compressed_or_not() {
    let gateway = gateway();
    for (path, headers, body) in large_requests() {
        for accepted in ["identity", "gzip", "deflate"] {
            let mut headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
            headers.push(("accept-encoding", accepted));
            let mut answer = gateway.post_with(path, &headers, &body);
            if accepted != "identity" {
                assert_eq!(answer.header("content-encoding"), Some(accepted));
                let mut plain = Vec::new();
                if accepted == "gzip" {
                    flate2::read::GzDecoder::new(&answer.body[..]).read_to_end(&mut plain).unwrap();
                } else {
                    flate2::read::ZlibDecoder::new(&answer.body[..]).read_to_end(&mut plain).unwrap();
                }
                answer.body = plain;
            }
            check_large(&answer, path);
        }
    }
    wait_idle(&gateway);
}

#[test]
fn answers_that_nobody_reads_are_bounded() {
    let gateway = gateway();
    let mut unread = Vec::new();
    for (path, headers, body) in large_requests() {
        for _ in 0..6 {
            let mut stream = TcpStream::connect(gateway.data()).unwrap();
            let mut head = format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n", body.len());
            for (name, value) in &headers {
                head.extend([name, ": ", value.as_str(), "\r\n"]);
            }
            stream.write_all(format!("{head}\r\n").as_bytes()).unwrap();
            stream.write_all(&body).unwrap();
            unread.push(stream);
        }
        still_serves(&gateway);
        assert!(metric(&gateway, "sluicegate_request_memory_bytes") <= 32.0 * MIB as f64);
    }
    drop(unread);
    wait_idle(&gateway);
    still_serves(&gateway);
}

#[test]
fn streams_of_http2_without_a_window_are_bounded() {
    let gateway = gateway();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (path, headers, body) = large_requests().remove(1);
    let address = gateway.data();
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(0)
            .handshake::<_, Full<Bytes>>(TokioIo::new(stream))
            .await
            .unwrap();
        let driver = tokio::spawn(connection);
        let mut answers = Vec::new();
        for _ in 0..60 {
            let mut request = hyper::Request::post(format!("http://{address}{path}"));
            for (name, value) in &headers {
                request = request.header(*name, value);
            }
            answers.push(sender.send_request(request.body(Full::new(Bytes::from(body.clone()))).unwrap()));
        }
        let mut statuses = Vec::new();
        for answer in answers {
            let answer = tokio::time::timeout(Duration::from_mins(1), answer).await.unwrap().unwrap();
            statuses.push((answer.status().as_u16(), answer));
        }
        let served = statuses.iter().filter(|(status, _)| *status == 200).count();
        let refused = statuses.iter().filter(|(status, _)| matches!(status, 429 | 503)).count();
        assert_eq!(served + refused, 60, "each is answered or refused");
        assert!(
            served > 0 && refused > 0,
            "60 answers of a megabyte do not fit into half of 32 MiB: {served} were served"
        );
        drop(statuses);
        driver.abort();
    });
    still_serves(&gateway);
    // This closes the connection.
    drop(runtime);
    wait_idle(&gateway);
}

#[test]
fn a_feedback_body_of_millions_of_entries_is_read_as_a_stream() {
    let gateway = Gateway::start(|models| onnx::install(models, "scale", 1, &onnx::scaling(2.0)));
    let body = gzip(format!("{{\"feedback\":[{}{{}}]}}", "{},".repeat(9_000_000)).as_bytes());
    assert!(body.len() < 200_000, "{}", body.len());
    let started = Instant::now();
    let answer = gateway.post_with("/v1/models/scale:feedback", &[("content-encoding", "gzip")], &body);
    assert_eq!((answer.status, answer.code().as_str()), (400, "INVALID_REQUEST"));
    assert!(answer.json()["error"].as_str().unwrap().contains("feedback[0]: request_id is missing"), "{answer:?}");
    assert!(started.elapsed() < Duration::from_secs(10), "it took {:?}", started.elapsed());
    let entry = "{\"request_id\":\"a\",\"label\":1},";
    let body = gzip(format!("{{\"feedback\":[{}{{}}]}}", entry.repeat(100_000)).as_bytes());
    let answer = gateway.post_with("/v1/models/scale:feedback", &[("content-encoding", "gzip")], &body);
    assert_eq!(
        (answer.status, answer.json()["error"].as_str()),
        (400, Some("feedback: at most 10000 entries at once, got more"))
    );
    wait_idle(&gateway);
}

#[test]
fn a_request_that_can_never_fit_is_told_so() {
    let gateway = Gateway::start_with("[server]\nmemory = \"4MiB\"\n", |models| {
        onnx::install(models, "scale", 1, &onnx::scaling(2.0));
    });
    let answer = gateway.post("/v2/models/scale/infer", vec![b' '; 3 * MIB]);
    assert_eq!((answer.status, answer.code().as_str()), (413, "BODY_TOO_LARGE"));
    let error = answer.json()["error"].as_str().unwrap().to_owned();
    assert!(error.contains("[server] memory") && error.contains("2.0 MiB"), "{error}");
    still_serves(&gateway);
    wait_idle(&gateway);
}

#[test]
fn an_answer_may_have_a_limited_size_that_model_toml_overrides() {
    let gateway = Gateway::start_with("[server]\nmax_answer = \"1MiB\"\n", |models| {
        for model in ["scale", "more"] {
            onnx::install(models, model, 1, &onnx::scaling(2.0));
        }
        std::fs::write(models.join("more/model.toml"), "[limits]\nmax_answer = \"2MiB\"\n").unwrap();
    });
    let body = |rows: usize| format!("{{\"instances\":[{}]}}", vec!["[1,2]"; rows].join(","));
    for (model, rows, status) in
        [("scale", 131_072, 200), ("scale", 131_073, 413), ("more", 262_144, 200), ("more", 262_145, 413)]
    {
        let answer = gateway.post(&format!("/v1/models/{model}:predict"), body(rows));
        assert_eq!(answer.status, status, "{model} with {rows} rows");
        if status == 413 {
            let error = answer.json()["error"].as_str().unwrap().to_owned();
            assert_eq!(answer.code(), "BODY_TOO_LARGE");
            assert!(error.contains("the answer has") && error.contains("max_answer"), "{error}");
        }
    }
    still_serves(&gateway);
    wait_idle(&gateway);
}

/// The real process with a limit on its address space: what the engine makes by the caller's number is refused, and the process goes on.
#[test]
fn outputs_that_no_memory_holds_do_not_end_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let models = dir.path().join("models");
    std::fs::create_dir(&models).unwrap();
    onnx::install(&models, "self", 1, &onnx::answering(1.0, 4, 0));
    onnx::install(&models, "zeros", 1, &onnx::zeros());
    onnx::install(&models, "range", 1, &onnx::counting_down());
    let served = Served::start_with(dir.path(), &[("TEST_ADDRESS_SPACE_KIB", "5242880")]);
    served.ready();
    let before = served.server_pid();
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    for (model, input, shape, number) in [
        ("zeros", "shape", "[1]", 393_216_000u32),
        ("range", "end", "[]", 2_147_483_647),
        ("zeros", "shape", "[1]", 70_000_000),
    ] {
        let body = format!(
            "{{\"inputs\":[{{\"name\":\"{input}\",\"shape\":{shape},\"datatype\":\"INT64\",\"data\":[{number}]}}]}}"
        );
        let url = format!("http://{}/v2/models/{model}/infer", served.data);
        let mut answer = agent.post(&url).header("x-request-timeout-ms", "60000").send(body).unwrap();
        let text = answer.body_mut().read_to_string().unwrap();
        assert!(matches!(answer.status().as_u16(), 413 | 500), "{model} of {number}: {} {text}", answer.status());
        assert!(text.contains("the answer has") || text.contains("not enough memory"), "{text}");
        assert_eq!(served.version_serving(), "1");
    }
    assert_eq!(served.server_pid(), before, "the process was not restarted");
}
