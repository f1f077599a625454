//! Certificates for tests, and a client with TLS.

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use sluicegate::tls::{Wanted, make};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// A connection with TLS.
pub type Tls = StreamOwned<ClientConnection, TcpStream>;

/// A directory with the certificate of a server for `localhost` and 127.0.0.1, and one of the client `anna`.
pub struct Certificates {
    pub dir: PathBuf,
}

impl Certificates {
    pub fn make(dir: &Path) -> Certificates {
        let dir = dir.join("tls");
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        make(&Wanted { dir: dir.clone(), names, clients: vec!["anna".to_owned()], days: 30 }).unwrap();
        Certificates { dir }
    }

    pub fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    /// A section of the configuration, such as `server.tls`.
    pub fn section(&self, section: &str) -> String {
        format!("[{section}]\ncertificate = {:?}\nkey = {:?}\n", self.path("server.crt"), self.path("server.key"))
    }

    /// The same, and clients need a certificate.
    pub fn section_with_clients(&self, section: &str) -> String {
        format!("{}client_ca = {:?}\n", self.section(section), self.path("client-ca.crt"))
    }

    /// A client that trusts the server, offers these protocols, and has the certificate of `identity`.
    pub fn client(&self, protocols: &[&str], identity: Option<&str>) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.path("server.crt")).unwrap()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match identity {
            None => builder.with_no_client_auth(),
            Some(name) => builder
                .with_client_auth_cert(
                    vec![CertificateDer::from_pem_file(self.path(&format!("{name}.crt"))).unwrap()],
                    PrivateKeyDer::from_pem_file(self.path(&format!("{name}.key"))).unwrap(),
                )
                .unwrap(),
        };
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }
}

/// Connects. The handshake happens with the first read or write.
pub fn connect(address: SocketAddr, client: &Arc<ClientConfig>) -> Tls {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.set_nodelay(true).unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    StreamOwned::new(ClientConnection::new(Arc::clone(client), name).unwrap(), stream)
}

/// Connects, and completes the handshake.
pub fn handshake(address: SocketAddr, client: &Arc<ClientConfig>) -> Tls {
    let mut tls = connect(address, client);
    while tls.conn.is_handshaking() {
        tls.conn.complete_io(&mut tls.sock).unwrap();
    }
    tls
}

impl Certificates {
    /// A server on loopback with this certificate. `answer` gets the first line of a request and its body. Returns its address.
    pub fn serve(&self, answer: impl Fn(&str, &str) -> String + Send + Sync + 'static) -> String {
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![CertificateDer::from_pem_file(self.path("server.crt")).unwrap()],
                PrivateKeyDer::from_pem_file(self.path("server.key")).unwrap(),
            )
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("https://localhost:{}", listener.local_addr().unwrap().port());
        let (config, answer) = (Arc::new(config), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (config, answer) = (Arc::clone(&config), Arc::clone(&answer));
                std::thread::spawn(move || {
                    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                    let tls = StreamOwned::new(ServerConnection::new(config).unwrap(), stream);
                    // A client that goes away is the client's affair.
                    let _ = answer_one(tls, &*answer);
                });
            }
        });
        address
    }
}

fn answer_one(
    tls: StreamOwned<ServerConnection, TcpStream>,
    answer: &dyn Fn(&str, &str) -> String,
) -> std::io::Result<()> {
    let mut stream = BufReader::new(tls);
    let (mut first, mut length) = (String::new(), 0);
    stream.read_line(&mut first)?;
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        if let Some(text) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = text.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    let body = answer(first.trim(), &String::from_utf8(body).unwrap());
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
    let tls = stream.get_mut();
    tls.write_all((head + &body).as_bytes())?;
    tls.conn.send_close_notify();
    tls.flush()
}
