//! A server for tests that answers what a test wants, however wrong.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// A request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    pub method: String,
    /// Path and query.
    pub target: String,
    pub authorization: Option<String>,
    pub range: Option<String>,
}

pub(super) struct Reply {
    pub status: u16,
    /// Lines, each with its end.
    pub headers: String,
    pub body: Body,
}

pub(super) enum Body {
    Bytes(Vec<u8>),
    /// Bytes until the client goes.
    Endless,
    /// A length, and then nothing.
    Silent,
}

pub(super) struct Hostile {
    pub address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    stopping: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

impl Reply {
    pub(super) fn ok(body: impl Into<Vec<u8>>) -> Reply {
        Reply { status: 200, headers: String::new(), body: Body::Bytes(body.into()) }
    }

    pub(super) fn status(status: u16) -> Reply {
        Reply { status, ..Reply::ok("") }
    }

    pub(super) fn with(self, header: &str) -> Reply {
        Reply { headers: format!("{}{header}\r\n", self.headers), ..self }
    }

    pub(super) fn endless(status: u16) -> Reply {
        Reply { body: Body::Endless, ..Reply::status(status) }
    }
}

impl Hostile {
    pub(super) fn start(answer: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Hostile {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, stopping) = (listener.local_addr().unwrap(), Arc::new(AtomicBool::new(false)));
        let (asked, answer) = (Arc::<Mutex<Vec<Asked>>>::default(), Arc::new(answer));
        let (stops, log) = (Arc::clone(&stopping), Arc::clone(&asked));
        let accepting = std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if stops.load(Ordering::Acquire) {
                    return;
                }
                let (answer, log) = (Arc::clone(&answer), Arc::clone(&log));
                std::thread::spawn(move || serve(stream, &*answer, &log));
            }
        });
        Hostile { address, asked, stopping, accepting: Some(accepting) }
    }

    /// All requests so far.
    pub(super) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Release);
        let _ = TcpStream::connect(self.address);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

/// One request of a connection. It ends when the client goes.
fn serve(mut stream: TcpStream, answer: &dyn Fn(&Asked) -> Reply, log: &Mutex<Vec<Asked>>) -> Option<()> {
    let mut lines = BufReader::new(stream.try_clone().ok()?).lines().map_while(Result::ok);
    let first = lines.next()?;
    let headers: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
    let header = |name: &str| {
        let mut pairs = headers.iter().filter_map(|line| line.split_once(": "));
        pairs.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned())
    };
    let mut words = first.split(' ').map(str::to_owned);
    let (method, target) = (words.next()?, words.next()?);
    let asked = Asked { method, target, authorization: header("authorization"), range: header("range") };
    log.lock().unwrap().push(asked.clone());
    let Reply { status, headers, body } = answer(&asked);
    let length = match &body {
        Body::Bytes(bytes) => format!("content-length: {}", bytes.len()),
        Body::Endless => "transfer-encoding: chunked".to_owned(),
        Body::Silent => "content-length: 1000".to_owned(),
    };
    write!(stream, "HTTP/1.1 {status} x\r\n{headers}{length}\r\nconnection: close\r\n\r\n").ok()?;
    if asked.method == "HEAD" {
        return Some(());
    }
    match body {
        Body::Bytes(bytes) => stream.write_all(&bytes).ok(),
        Body::Endless => {
            let chunk = [b"1000\r\n".as_slice(), &[b' '; 0x1000], b"\r\n"].concat();
            while stream.write_all(&chunk).is_ok() {}
            Some(())
        }
        Body::Silent => stream.read(&mut [0]).ok().map(drop),
    }
}
