//! A server that receives messages and answers them as a test wants.

use serde_json::Value;
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// What it does with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    Status(u16),
    /// Closes each connection at once, as if nobody listened.
    Down,
    /// Takes the request and never answers.
    Hang,
    /// Sends this answer without an end.
    Endless,
}

#[derive(Debug, Clone)]
pub struct Got {
    pub path: String,
    /// Names in lower case.
    pub headers: HashMap<String, String>,
    pub body: String,
}

impl Got {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }
}

pub struct Receiver {
    pub address: SocketAddr,
    reply: Arc<Mutex<Reply>>,
    got: Arc<Mutex<Vec<Got>>>,
    stopping: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

impl Receiver {
    pub fn start(reply: Reply) -> Receiver {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (reply, got, stopping) = (Arc::new(Mutex::new(reply)), Arc::default(), Arc::new(AtomicBool::new(false)));
        let (replies, received, stops) = (Arc::clone(&reply), Arc::clone(&got), Arc::clone(&stopping));
        let accepting = std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if stops.load(Ordering::Acquire) {
                    return;
                }
                let (reply, received) = (Arc::clone(&replies), Arc::clone(&received));
                std::thread::spawn(move || serve(&stream, &reply, &received));
            }
        });
        Receiver { address, reply, got, stopping, accepting: Some(accepting) }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn set(&self, reply: Reply) {
        *self.reply.lock().unwrap() = reply;
    }

    /// Requests that were answered with a status of success, in order.
    pub fn got(&self) -> Vec<Got> {
        self.got.lock().unwrap().clone()
    }

    /// The alerts in all messages, as `+rule model/version` and `-rule model/version`. A message that came twice counts once.
    pub fn alerts(&self) -> Vec<String> {
        let mut keys = Vec::new();
        let mut all = Vec::new();
        for message in self.got().iter().map(Got::json) {
            if keys.contains(&message["key"]) {
                continue;
            }
            keys.push(message["key"].clone());
            for alert in message["alerts"].as_array().unwrap() {
                let sign = if alert["state"] == "firing" { "+" } else { "-" };
                let of = |name: &str| alert[name].as_str().unwrap_or_default().to_owned();
                all.push(format!("{sign}{} {}/{}", of("rule"), of("model"), of("version")));
            }
        }
        all
    }

    /// The kinds of all events, in order.
    pub fn events(&self) -> Vec<String> {
        let messages = self.got();
        let events = messages.iter().flat_map(|got| got.json()["events"].as_array().unwrap().clone());
        events.map(|event| event["event"].as_str().unwrap().to_owned()).collect()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Release);
        let _ = TcpStream::connect(self.address);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

fn serve(stream: &TcpStream, reply: &Mutex<Reply>, received: &Mutex<Vec<Got>>) {
    if *reply.lock().unwrap() == Reply::Down {
        return;
    }
    let mut reader = BufReader::new(stream);
    let (mut path, mut headers) = (String::new(), HashMap::new());
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        match line.trim().split_once(": ") {
            Some((name, value)) => drop(headers.insert(name.to_ascii_lowercase(), value.to_owned())),
            None if line.trim().is_empty() => break,
            None => line.split(' ').nth(1).unwrap_or_default().clone_into(&mut path),
        }
    }
    let length = headers.get("content-length").map_or(0, |length: &String| length.parse().unwrap());
    let mut body = vec![0; length];
    if reader.read_exact(&mut body).is_err() {
        return;
    }
    let got = Got { path, headers, body: String::from_utf8(body).unwrap() };
    let mut stream = stream;
    // Errors mean that the other side has left, which is what some tests want.
    let now = *reply.lock().unwrap();
    match now {
        Reply::Status(status) => {
            if (200..300).contains(&status) {
                received.lock().unwrap().push(got);
            }
            let _ = write!(
                stream,
                "HTTP/1.1 {status} X\r\ncontent-length: 0\r\nlocation: http://127.0.0.1:1/\r\nconnection: close\r\n\r\n"
            );
        }
        Reply::Down => {}
        Reply::Hang => while stream.read(&mut [0; 1024]).is_ok_and(|n| n > 0) {},
        Reply::Endless => {
            received.lock().unwrap().push(got);
            let mut written = write!(stream, "HTTP/1.1 200 X\r\ntransfer-encoding: chunked\r\n\r\n");
            let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x1_0000));
            while written.is_ok() {
                written = stream.write_all(chunk.as_bytes());
            }
        }
    }
}
