//! For tests: a server on loopback that answers what a test wants, with or without TLS.

use crate::tls::{Wanted, make};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What the server does with a request.
#[derive(Debug, Clone)]
pub(crate) enum Reply {
    /// This status and this body.
    Answer(u16, String),
    /// These bytes.
    Raw(&'static [u8]),
    /// A head, and then a byte from time to time.
    Drip,
    /// A body without an end.
    Endless,
    /// Nothing.
    Silence,
}

/// A request as it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Got {
    pub head: String,
    pub body: String,
}

pub(crate) struct TestServer {
    address: SocketAddr,
    scheme: &'static str,
    shared: Arc<Shared>,
    accepting: Option<std::thread::JoinHandle<()>>,
}

struct Shared {
    reply: Mutex<Reply>,
    got: Mutex<Vec<Got>>,
    stopping: AtomicBool,
}

impl TestServer {
    pub(crate) fn http(reply: Reply) -> TestServer {
        TestServer::start(TcpListener::bind("127.0.0.1:0").unwrap(), "http", None, reply)
    }

    /// With a certificate for `name` that signs itself. Also returns the file with it.
    pub(crate) fn https(dir: &Path, name: &str, reply: Reply) -> (TestServer, PathBuf) {
        make(&Wanted { dir: dir.to_owned(), names: vec![name.to_owned()], clients: Vec::new(), days: 30 }).unwrap();
        let (certificate, key) = (dir.join("server.crt"), dir.join("server.key"));
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![CertificateDer::from_pem_file(&certificate).unwrap()],
                PrivateKeyDer::from_pem_file(&key).unwrap(),
            )
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        (TestServer::start(listener, "https", Some(Arc::new(config)), reply), certificate)
    }

    /// A plain server on an address that was in use before.
    pub(crate) fn http_at(address: SocketAddr, reply: Reply) -> TestServer {
        TestServer::start(TcpListener::bind(address).unwrap(), "http", None, reply)
    }

    fn start(listener: TcpListener, scheme: &'static str, tls: Option<Arc<ServerConfig>>, reply: Reply) -> TestServer {
        let address = listener.local_addr().unwrap();
        let (reply, got, stopping) = (Mutex::new(reply), Mutex::default(), AtomicBool::new(false));
        let shared = Arc::new(Shared { reply, got, stopping });
        let serving = Arc::clone(&shared);
        let accepting = std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if serving.stopping.load(Ordering::Acquire) {
                    return;
                }
                let (serving, tls) = (Arc::clone(&serving), tls.clone());
                std::thread::spawn(move || match tls {
                    None => serve(stream, &serving),
                    Some(_) if matches!(*serving.reply.lock().unwrap(), Reply::Silence) => hold(stream),
                    Some(config) => serve(StreamOwned::new(ServerConnection::new(config).unwrap(), stream), &serving),
                });
            }
        });
        TestServer { address, scheme, shared, accepting: Some(accepting) }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}://localhost:{}{path}", self.scheme, self.address.port())
    }

    pub(crate) fn reply(&self, reply: Reply) {
        *self.shared.reply.lock().unwrap() = reply;
    }

    pub(crate) fn requests(&self) -> Vec<Got> {
        self.shared.got.lock().unwrap().clone()
    }
}

impl Drop for TestServer {
    /// New connections are refused after this.
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Release);
        let _ = TcpStream::connect(self.address);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

/// Reads until the other side has had enough.
fn hold(mut stream: impl Read) {
    while stream.read(&mut [0; 1024]).is_ok_and(|n| n > 0) {}
}

fn serve(stream: impl Read + Write, shared: &Shared) {
    let mut stream = BufReader::new(stream);
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        if let Some(text) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = text.trim().parse().unwrap();
        }
        if line.trim().is_empty() {
            break;
        }
        head.push_str(&line);
    }
    let mut body = vec![0; length];
    if stream.read_exact(&mut body).is_err() {
        return;
    }
    shared.got.lock().unwrap().push(Got { head, body: String::from_utf8(body).unwrap() });
    let reply = shared.reply.lock().unwrap().clone();
    let stream = stream.get_mut();
    // Errors mean that the client has closed, which the test looks at.
    let _ = match reply {
        Reply::Answer(status, body) => write!(
            stream,
            "HTTP/1.1 {status} X\r\ncontent-length: {}\r\nlocation: http://127.0.0.1:1/\r\nconnection: close\r\n\r\n{body}",
            body.len()
        ),
        Reply::Raw(bytes) => stream.write_all(bytes),
        Reply::Drip => {
            let mut written = write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n");
            while written.is_ok() {
                std::thread::park_timeout(Duration::from_millis(10));
                written = stream.write_all(b" ").and_then(|()| stream.flush());
            }
            written
        }
        Reply::Endless => {
            let mut written = write!(stream, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n");
            let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x1_0000));
            while written.is_ok() {
                written = stream.write_all(chunk.as_bytes());
            }
            written
        }
        Reply::Silence => {
            hold(&mut *stream);
            Ok(())
        }
    };
    let _ = stream.flush();
}
