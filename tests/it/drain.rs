//! Stopping the server while requests run.

use crate::support::{Gateway, eventually, infer_body, onnx};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

#[test]
fn a_running_request_is_answered_before_the_server_stops() {
    let mut gateway = Gateway::start(|models| onnx::install(models, "self", 1, &onnx::answering(1.0, 4, 0)));
    let body = infer_body(&[1, 4], &[0.0; 4]);
    let mut slow = TcpStream::connect(gateway.data()).unwrap();
    slow.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let head = format!("POST /v2/models/self/infer HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
    slow.write_all(head.as_bytes()).unwrap();
    slow.write_all(&body.as_bytes()[..5]).unwrap();
    let app = gateway.app.take().unwrap();
    eventually("the request has been admitted", || (app.in_flight() == 1).then_some(()));
    let address = app.data_address();
    let stopping = std::thread::spawn(move || app.stop());
    eventually("new connections are refused", || TcpStream::connect(address).is_err().then_some(()));
    slow.write_all(&body.as_bytes()[5..]).unwrap();
    let mut answer = String::new();
    slow.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(
        answer.to_ascii_lowercase().contains("connection: close"),
        "the answer announces the end of the connection: {answer}"
    );
    assert!(stopping.join().unwrap(), "all connections ended in time");
}
