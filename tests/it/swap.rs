//! Promotions that no caller notices.

use crate::support::{Gateway, eventually, infer_body, onnx, resident};
use serde_json::json;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// One keep-alive connection that sends a request and checks that the version named is the one whose weights answered.
fn ask_until_done(address: SocketAddr, done: &AtomicBool, asked: &AtomicU64) -> Vec<String> {
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

/// Promotes back and forth while several connections ask without a pause.
fn promote_back_and_forth(gateway: &Gateway, times: u64) -> u64 {
    let (done, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (done, asked, address) = (Arc::clone(&done), Arc::clone(&asked), gateway.data());
            std::thread::spawn(move || ask_until_done(address, &done, &asked))
        })
        .collect();
    for i in 0..times {
        let before = asked.load(Ordering::Relaxed);
        let to = 1 + i % 2;
        let answer = gateway.promote("self", to);
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.json()["to"], to.to_string());
        // Each promotion is felt by requests before the next one.
        eventually("requests go on", || (asked.load(Ordering::Relaxed) > before + 4).then_some(()));
    }
    done.store(true, Ordering::Relaxed);
    for client in clients {
        let wrong = client.join().unwrap();
        assert!(wrong.is_empty(), "no request fails and none is answered by another version's weights: {wrong:#?}");
    }
    asked.load(Ordering::Relaxed)
}

#[test]
fn two_hundred_promotions_under_load_fail_no_request() {
    let gateway = Gateway::start(|models| {
        onnx::install(models, "self", 1, &onnx::answering(1.0, 4, 20_000));
        onnx::install(models, "self", 2, &onnx::answering(2.0, 4, 20_000));
    });
    promote_back_and_forth(&gateway, 20);
    let before = resident();
    let asked = promote_back_and_forth(&gateway, 200);
    let after = resident();
    assert!(asked > 800, "{asked} requests");
    // Other tests of this binary share the process; 64 MiB is what they take, and 200 leaked versions would be far more.
    assert!(after < before + (64 << 20), "memory is flat: {} MiB before, {} MiB after", before >> 20, after >> 20);
    let text = String::from_utf8(gateway.admin_get("/metrics").body).unwrap();
    assert!(text.contains("sluicegate_swap_in_flight_requests"), "a swap's in-flight count is shown");
    let history = gateway.admin_get("/api/v1/models/self/history").json();
    assert!(history.to_string().len() > 200, "every document there has been is kept: {history}");
}

#[test]
fn a_version_dropped_into_the_directory_is_taken_up_and_takes_no_traffic() {
    let gateway = Gateway::start(|models| onnx::install(models, "self", 1, &onnx::answering(1.0, 4, 0)));
    let started = std::time::Instant::now();
    onnx::install(&gateway.models(), "self", 2, &onnx::answering(2.0, 4, 0));
    gateway.wait_state("self", 2, "ready");
    assert!(started.elapsed().as_secs() < 5, "taken up within 2 s of its last write, and this model loads at once");
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
fn two_hundred_versions_come_and_go_and_memory_comes_back() {
    const WEIGHTS: usize = 500_000;
    let gateway = Gateway::start(|models| onnx::install(models, "self", 1, &onnx::answering(1.0, 4, 0)));
    onnx::install(&gateway.models(), "self", 2, &onnx::answering(2.0, 4, WEIGHTS));
    gateway.wait_state("self", 2, "ready");
    let mut after_first = 0;
    for i in 0..40 {
        let unload = gateway.admin_send("POST", "/api/v1/models/self/versions/2:unload", &[], &json!({}));
        assert_eq!(unload.status, 200, "{unload:?}");
        if i == 4 {
            after_first = resident();
        }
        let load = gateway.admin_send("POST", "/api/v1/models/self/versions/2:load", &[], &json!({}));
        assert_eq!(load.status, 200, "{load:?}");
    }
    let last = resident();
    assert!(
        last < after_first + 35 * (WEIGHTS as u64 * 4) / 2,
        "35 loads of 2 MB kept leave at least 35 MB: {} MiB then, {} MiB now",
        after_first >> 20,
        last >> 20
    );
}
