//! Promotions without a failed request, and without memory that stays behind.

use crate::support::process::Served;
use crate::support::{Gateway, eventually, infer_body, onnx};
use serde_json::json;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Sends requests over one connection. Returns a line for each that failed, or that names another version than the one whose
/// weights answered.
fn ask_until_done(address: &str, done: &AtomicBool, asked: &AtomicU64) -> Vec<String> {
    let body = infer_body(&[1, 4], &[1.0, 2.0, 3.0, 4.0]);
    let request =
        format!("POST /v2/models/self/infer HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    let (mut wrong, mut buffer, mut got) = (Vec::new(), [0u8; 8192], Vec::new());
    while !done.load(Ordering::Relaxed) {
        stream.write_all(request.as_bytes()).unwrap();
        got.clear();
        let text = loop {
            let n = stream.read(&mut buffer).unwrap();
            if n == 0 {
                wrong.push(format!("the connection was closed after {:?}", String::from_utf8_lossy(&got)));
                return wrong;
            }
            got.extend_from_slice(&buffer[..n]);
            let text = String::from_utf8_lossy(&got);
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let length = head.lines().find_map(|l| l.strip_prefix("content-length: ")).unwrap();
                if body.len() >= length.parse::<usize>().unwrap() {
                    break text.into_owned();
                }
            }
        };
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let json: serde_json::Value = serde_json::from_str(body).unwrap();
        let named = json["model_version"].as_str().unwrap_or("none");
        let answered = json["outputs"][0]["data"][0].as_f64().unwrap_or(f64::NAN);
        let header = head.lines().find_map(|l| l.strip_prefix("x-sluicegate-version: ")).unwrap_or("none");
        if !head.starts_with("HTTP/1.1 200") || named.parse::<f64>() != Ok(answered) || header != named {
            wrong.push(format!("named {named}, header {header}, weights say {answered}: {text}"));
        }
        asked.fetch_add(1, Ordering::Relaxed);
    }
    wrong
}

/// Promotes versions 1 and 2 in turn while four connections send requests. Returns the number of requests.
fn promote_back_and_forth(served: &Served, times: u64) -> u64 {
    let (done, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (done, asked, address) = (Arc::clone(&done), Arc::clone(&asked), served.data.clone());
            std::thread::spawn(move || ask_until_done(&address, &done, &asked))
        })
        .collect();
    for i in 0..times {
        let before = asked.load(Ordering::Relaxed);
        let to = 1 + i % 2;
        let body = json!({"version": to.to_string(), "reason": "a test"});
        assert_eq!(served.admin_post("/api/v1/models/self:promote", &body)["to"], to.to_string());
        // Every promotion serves some requests before the next one.
        eventually("requests are answered", || (asked.load(Ordering::Relaxed) > before + 4).then_some(()));
    }
    done.store(true, Ordering::Relaxed);
    for client in clients {
        let wrong = client.join().unwrap();
        assert!(wrong.is_empty(), "failed requests, or answers of another version than the one they name: {wrong:#?}");
    }
    asked.load(Ordering::Relaxed)
}

#[test]
fn two_hundred_promotions_under_load_fail_no_request_and_keep_no_memory() {
    let dir = tempfile::TempDir::new().unwrap();
    let models = dir.path().join("models");
    onnx::install(&models, "self", 1, &onnx::answering(1.0, 4, 20_000));
    onnx::install(&models, "self", 2, &onnx::answering(2.0, 4, 20_000));
    let mut served = Served::start(dir.path());
    served.ready();
    promote_back_and_forth(&served, 20);
    let before = served.resident();
    let asked = promote_back_and_forth(&served, 200);
    let after = served.resident();
    assert!(asked > 800, "{asked} requests");
    assert!(after < before + (32 << 20), "memory grew from {} MiB to {} MiB", before >> 20, after >> 20);
    assert!(served.admin_get("/metrics").contains("sluicegate_swap_in_flight_requests"), "swaps have a metric");
    let history: serde_json::Value = serde_json::from_str(&served.admin_get("/api/v1/models/self/history")).unwrap();
    assert!(history.to_string().len() > 200, "the history has every document: {history}");
    served.stop();
}

#[test]
fn a_version_added_to_the_directory_becomes_ready_and_gets_no_traffic() {
    let gateway = Gateway::start(|models| onnx::install(models, "self", 1, &onnx::answering(1.0, 4, 0)));
    let started = std::time::Instant::now();
    onnx::install(&gateway.models(), "self", 2, &onnx::answering(2.0, 4, 0));
    gateway.wait_state("self", 2, "ready");
    assert!(started.elapsed().as_secs() < 5, "noticed within 2 s of its last write; this model loads at once");
    let body = infer_body(&[1, 4], &[0.0; 4]);
    assert_eq!(gateway.post("/v2/models/self/infer", &body).json()["model_version"], "1");
    assert_eq!(gateway.post("/v2/models/self/versions/2/infer", &body).json()["outputs"][0]["data"], json!([2.0]));
    assert_eq!(gateway.promote("self", 2).status, 200);
    assert_eq!(gateway.post("/v2/models/self/infer", &body).json()["model_version"], "2");
    let back = gateway.admin_send("POST", "/api/v1/models/self:rollback", &[], &json!({"reason": "a test"}));
    assert_eq!(back.status, 200, "{back:?}");
    assert_eq!(gateway.post("/v2/models/self/infer", &body).json()["model_version"], "1");
}

#[test]
fn forty_loads_of_a_version_keep_no_memory() {
    const WEIGHTS: usize = 500_000;
    const WEIGHTS_BYTES: u64 = WEIGHTS as u64 * 4;
    let dir = tempfile::TempDir::new().unwrap();
    let models = dir.path().join("models");
    onnx::install(&models, "self", 1, &onnx::answering(1.0, 4, 0));
    let mut served = Served::start(dir.path());
    served.ready();
    // Added after version 1 serves, so that version 2 gets no traffic and may be unloaded.
    onnx::install(&models, "self", 2, &onnx::answering(2.0, 4, WEIGHTS));
    served.wait_state("self", 2, "ready");
    let mut after_five = 0;
    for i in 0..40 {
        served.admin_post("/api/v1/models/self/versions/2:unload", &json!({}));
        if i == 4 {
            after_five = served.resident();
        }
        served.admin_post("/api/v1/models/self/versions/2:load", &json!({}));
    }
    served.admin_post("/api/v1/models/self/versions/2:unload", &json!({}));
    let last = served.resident();
    assert!(
        last < after_five + 35 * WEIGHTS_BYTES / 2,
        "35 loads of 2 MB grew memory from {} MiB to {} MiB: more than half of them stayed",
        after_five >> 20,
        last >> 20
    );
    served.stop();
}
