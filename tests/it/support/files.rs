//! A server of files in memory: a directory with HTML listings, or a bucket that speaks as S3 (also for uploads), Google's storage or Azure's, with `ETags`,
//! ranges and the faults that a test wants.

use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read as _, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// What goes wrong with files. Listings are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    None,
    /// The content ends after so many bytes, and the connection stays open.
    Stalls(usize),
    /// The connection closes after so many bytes.
    Cuts(usize),
    /// Everything is answered with this status.
    Status(u16),
    /// The last byte is another one.
    WrongBytes,
    /// So many requests that write are answered; the ones after them are not, and their connections stay open.
    TakesOnly(usize),
}

/// A request for the content of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
    pub path: String,
    /// Where the range begins.
    pub from: usize,
    pub signed: bool,
}

/// A request that wrote something: `PUT`, `POST` or `DELETE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    pub method: String,
    pub path: String,
    pub query: String,
    pub bytes: usize,
}

/// The parts of an upload, by their numbers.
type Parts = BTreeMap<usize, Vec<u8>>;

struct State {
    files: BTreeMap<String, Vec<u8>>,
    /// The metadata `sha256` of objects.
    digests: BTreeMap<String, String>,
    /// Uploads in parts, by their ids: path, digest and parts.
    uploads: BTreeMap<String, (String, String, Parts)>,
    fault: Fault,
    reads: Vec<Read>,
    writes: Vec<Written>,
}

pub struct FileServer {
    pub address: SocketAddr,
    shared: Arc<(Mutex<State>, Condvar)>,
    stopping: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

/// Keys on one page of a listing of a bucket: few, so that tests have several pages.
const PAGE: usize = 3;

impl FileServer {
    pub fn start() -> FileServer {
        let state = State {
            files: BTreeMap::new(),
            digests: BTreeMap::new(),
            uploads: BTreeMap::new(),
            fault: Fault::None,
            reads: Vec::new(),
            writes: Vec::new(),
        };
        let shared = Arc::new((Mutex::new(state), Condvar::new()));
        FileServer::start_on(TcpListener::bind("127.0.0.1:0").unwrap(), shared)
    }

    fn start_on(listener: TcpListener, shared: Arc<(Mutex<State>, Condvar)>) -> FileServer {
        let (address, stopping) = (listener.local_addr().unwrap(), Arc::new(AtomicBool::new(false)));
        let (state, stops) = (Arc::clone(&shared), Arc::clone(&stopping));
        let accepting = std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if stops.load(Ordering::Acquire) {
                    return;
                }
                let (state, stops) = (Arc::clone(&state), Arc::clone(&stops));
                std::thread::spawn(move || answer(stream, &state, &stops));
            }
        });
        FileServer { address, shared, stopping, accepting: Some(accepting) }
    }

    pub fn put(&self, path: &str, bytes: impl Into<Vec<u8>>) {
        self.shared.0.lock().unwrap().files.insert(path.to_owned(), bytes.into());
    }

    pub fn set(&self, fault: Fault) {
        self.shared.0.lock().unwrap().fault = fault;
        self.shared.1.notify_all();
    }

    pub fn reads(&self) -> Vec<Read> {
        self.shared.0.lock().unwrap().reads.clone()
    }

    /// The requests that wrote something and were answered.
    pub fn writes(&self) -> Vec<Written> {
        self.shared.0.lock().unwrap().writes.clone()
    }

    /// All files below a path, with their bytes.
    pub fn files(&self, below: &str) -> BTreeMap<String, Vec<u8>> {
        let state = self.shared.0.lock().unwrap();
        let below = format!("{below}/");
        state
            .files
            .iter()
            .filter_map(|(path, bytes)| Some((path.strip_prefix(&below)?.to_owned(), bytes.clone())))
            .collect()
    }

    /// Forgets uploads in parts that have not ended, as a life-cycle rule does. Returns how many.
    pub fn end_uploads(&self) -> usize {
        std::mem::take(&mut self.shared.0.lock().unwrap().uploads).len()
    }

    /// Refuses all connections from now on.
    pub fn stop(&mut self) {
        self.stopping.store(true, Ordering::Release);
        self.set(Fault::None);
        let _ = TcpStream::connect(self.address);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

impl Drop for FileServer {
    fn drop(&mut self) {
        self.stop();
    }
}

fn answer(stream: TcpStream, shared: &(Mutex<State>, Condvar), stops: &AtomicBool) -> Option<()> {
    stream.set_read_timeout(Some(Duration::from_secs(30))).ok()?;
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut lines = reader.by_ref().lines().map_while(Result::ok);
    let first = lines.next()?;
    let headers: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
    let header = |name: &str| {
        let found = headers.iter().filter_map(|line| line.split_once(": "));
        found.into_iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned())
    };
    let mut words = first.split(' ');
    let (method, target) = (words.next()?, words.next()?);
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let path = percent_encoding::percent_decode_str(path.trim_start_matches('/')).decode_utf8_lossy().into_owned();
    let mut stream = stream;
    let mut body = vec![0; header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0)];
    reader.read_exact(&mut body).ok()?;
    let mut state = shared.0.lock().unwrap();
    if !["GET", "HEAD"].contains(&method)
        && let Fault::TakesOnly(left) = state.fault
    {
        if left == 0 {
            // It is never answered: the connection closes when the fault ends.
            while state.fault == Fault::TakesOnly(0) && !stops.load(Ordering::Acquire) {
                state = shared.1.wait(state).unwrap();
            }
            return None;
        }
        state.fault = Fault::TakesOnly(left - 1);
    }
    let fault = state.fault;
    if let Fault::Status(status) = fault {
        return write!(stream, "HTTP/1.1 {status} x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").ok();
    }
    if !["GET", "HEAD"].contains(&method) {
        let digest = header("x-amz-meta-sha256").unwrap_or_default();
        let (method, query, bytes) = (method.to_owned(), query.to_owned(), body.len());
        let (status, more, answer) = write(&mut state, &method, &path, &query, body, digest);
        state.writes.push(Written { method: method.clone(), path, query, bytes });
        drop(state);
        return reply(&mut stream, status, &more, answer.as_bytes(), &method);
    }
    if query.contains("list-type=2") {
        let body = bucket_page(&state.files, &path, query);
        return reply(&mut stream, 200, "content-type: application/xml\r\n", body.as_bytes(), method);
    }
    if query.contains("comp=list") {
        let body = container_page(&state.files, &path, query);
        return reply(&mut stream, 200, "content-type: application/xml\r\n", body.as_bytes(), method);
    }
    let Some(bytes) = state.files.get(&path).cloned() else {
        let dir = if path.is_empty() || path.ends_with('/') { path } else { path + "/" };
        let index = index(&state.files, &dir);
        let status = if index.is_empty() { 404 } else { 200 };
        return reply(&mut stream, status, "content-type: text/html\r\n", index.as_bytes(), method);
    };
    let digest = state.digests.get(&path).cloned();
    drop(state);
    let etag = format!("\"{:x}\"", Sha256::digest(&bytes));
    if header("if-match").is_some_and(|tag| tag != etag) {
        return reply(&mut stream, 412, "", b"", method);
    }
    let is_same = header("if-range").is_none_or(|tag| tag == etag);
    let range = header("range").filter(|_| is_same).and_then(|range| {
        let (from, last) = range.strip_prefix("bytes=")?.split_once('-')?;
        Some((from.parse::<usize>().ok()?, last.parse::<usize>().ok()))
    });
    let from = range.map_or(0, |(from, _)| from).min(bytes.len());
    let last = range.and_then(|(_, last)| last).unwrap_or(usize::MAX).min(bytes.len().saturating_sub(1));
    let mut more = format!("etag: {etag}\r\nlast-modified: Sat, 28 Nov 2026 10:00:00 GMT\r\n");
    if range.is_some() {
        let _ = write!(more, "content-range: bytes {from}-{last}/{}\r\n", bytes.len());
    }
    if let Some(digest) = digest {
        let _ = write!(more, "x-amz-meta-sha256: {digest}\r\n");
    }
    let mut content = if bytes.is_empty() { Vec::new() } else { bytes[from..=last].to_vec() };
    if fault == Fault::WrongBytes
        && let Some(last) = content.last_mut()
    {
        *last ^= 1;
    }
    let end = match fault {
        Fault::Stalls(end) | Fault::Cuts(end) => end.min(content.len()),
        _ => content.len(),
    };
    write!(
        stream,
        "HTTP/1.1 {} x\r\n{more}content-length: {}\r\nconnection: close\r\n\r\n",
        if range.is_some() { 206 } else { 200 },
        content.len()
    )
    .ok()?;
    if method == "HEAD" {
        return Some(());
    }
    stream.write_all(&content[..end]).ok()?;
    let mut state = shared.0.lock().unwrap();
    state.reads.push(Read { path, from, signed: header("authorization").is_some() });
    if end < content.len() && matches!(fault, Fault::Stalls(_)) {
        while state.fault == fault && !stops.load(Ordering::Acquire) {
            state = shared.1.wait(state).unwrap();
        }
    }
    Some(())
}

/// What a bucket does with a request that writes: the status, headers and the body of its answer.
fn write(
    state: &mut State,
    method: &str,
    path: &str,
    query: &str,
    body: Vec<u8>,
    digest: String,
) -> (u16, String, String) {
    let parameter = |name: &str| {
        let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        let (_, value) = pairs.into_iter().find(|(key, _)| *key == name)?;
        Some(percent_encoding::percent_decode_str(value).decode_utf8_lossy().into_owned())
    };
    let etag = |bytes: &[u8]| format!("etag: \"{:x}\"\r\n", Sha256::digest(bytes));
    let none = (404, String::new(), "<Error><Code>NoSuchUpload</Code><Message>none</Message></Error>".to_owned());
    match (method, parameter("uploadId")) {
        ("POST", None) if parameter("uploads").is_some() => {
            let id = format!("upload-{}", state.uploads.len() + state.writes.len());
            state.uploads.insert(id.clone(), (path.to_owned(), digest, BTreeMap::new()));
            let answer =
                format!("<InitiateMultipartUploadResult><UploadId>{id}</UploadId></InitiateMultipartUploadResult>");
            (200, String::new(), answer)
        }
        ("PUT", Some(id)) => {
            let Some((of, _, parts)) = state.uploads.get_mut(&id) else { return none };
            assert_eq!(of.as_str(), path, "a part of another object");
            let more = etag(&body);
            parts.insert(parameter("partNumber").unwrap().parse().unwrap(), body);
            (200, more, String::new())
        }
        ("POST", Some(id)) => {
            let Some((of, digest, parts)) = state.uploads.remove(&id) else { return none };
            assert_eq!(of, path, "another object");
            let bytes: Vec<u8> = parts.into_values().flatten().collect();
            let answer = "<CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>";
            state.digests.insert(path.to_owned(), digest);
            state.files.insert(path.to_owned(), bytes);
            (200, String::new(), answer.to_owned())
        }
        ("DELETE", Some(id)) => {
            state.uploads.remove(&id);
            (204, String::new(), String::new())
        }
        ("PUT", None) => {
            let more = etag(&body);
            state.digests.insert(path.to_owned(), digest);
            state.files.insert(path.to_owned(), body);
            (200, more, String::new())
        }
        ("DELETE", None) => {
            state.files.remove(path);
            (204, String::new(), String::new())
        }
        _ => (400, String::new(), String::new()),
    }
}

fn reply(stream: &mut TcpStream, status: u16, more: &str, body: &[u8], method: &str) -> Option<()> {
    write!(stream, "HTTP/1.1 {status} x\r\n{more}content-length: {}\r\nconnection: close\r\n\r\n", body.len()).ok()?;
    if method == "HEAD" { Some(()) } else { stream.write_all(body).ok() }
}

/// The listing of a directory, as `python -m http.server` writes it. Empty where there is none.
fn index(files: &BTreeMap<String, Vec<u8>>, dir: &str) -> String {
    let dir = dir.trim_start_matches('/');
    let below = files.keys().filter_map(|path| path.strip_prefix(dir));
    let mut names: Vec<String> =
        below.map(|rest| rest.split_inclusive('/').next().unwrap_or(rest).to_owned()).collect();
    names.dedup();
    let lines: Vec<String> = names.iter().map(|name| format!("<li><a href=\"{name}\">{name}</a></li>\n")).collect();
    if lines.is_empty() { String::new() } else { format!("<!DOCTYPE HTML>\n<ul>\n{}</ul>\n", lines.concat()) }
}

/// The objects from the one after the parameter `after` on. Their paths begin with the name of the bucket.
fn objects<'f>(
    files: &'f BTreeMap<String, Vec<u8>>,
    bucket: &str,
    query: &str,
    after: &str,
) -> Vec<(&'f str, &'f Vec<u8>)> {
    let parameter = |name: &str| {
        let value = query.split('&').filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == name);
        let value = value.map_or("", |(_, value)| value);
        percent_encoding::percent_decode_str(value).decode_utf8_lossy().into_owned()
    };
    let (prefix, after) = (parameter("prefix"), parameter(after));
    let bucket = format!("{}/", bucket.trim_end_matches('/'));
    files
        .iter()
        .filter_map(|(path, bytes)| Some((path.strip_prefix(&bucket)?, bytes)))
        .filter(|(key, _)| key.starts_with(&prefix) && *key > after.as_str())
        .collect()
}

/// A page of Azure's `List Blobs`.
fn container_page(files: &BTreeMap<String, Vec<u8>>, container: &str, query: &str) -> String {
    let keys = objects(files, container, query, "marker");
    let mut body = "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n<EnumerationResults><Blobs>".to_owned();
    for (key, bytes) in keys.iter().take(PAGE) {
        let _ = write!(
            body,
            "<Blob><Name>{key}</Name><Properties><Last-Modified>Sat, 28 Nov 2026 10:00:00 GMT</Last-Modified><Etag>&quot;{:x}&quot;</Etag>\
             <Content-Length>{}</Content-Length><Content-Type>application/octet-stream</Content-Type></Properties></Blob>",
            Sha256::digest(bytes),
            bytes.len()
        );
    }
    let next = keys.get(PAGE - 1).filter(|_| keys.len() > PAGE).map_or("", |(last, _)| last);
    let _ = write!(body, "</Blobs><NextMarker>{next}</NextMarker></EnumerationResults>");
    body
}

/// A page of `ListObjectsV2`.
fn bucket_page(files: &BTreeMap<String, Vec<u8>>, bucket: &str, query: &str) -> String {
    let after = if query.contains("continuation-token=") { "continuation-token" } else { "start-after" };
    let keys = objects(files, bucket, query, after);
    let mut body = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">".to_owned();
    if query.contains("delimiter=") {
        let prefix = query.split('&').find_map(|pair| pair.strip_prefix("prefix=")).unwrap_or_default();
        let prefix = percent_encoding::percent_decode_str(prefix).decode_utf8_lossy();
        let dirs: std::collections::BTreeSet<&str> =
            keys.iter().filter_map(|(key, _)| key[prefix.len()..].split_once('/').map(|(dir, _)| dir)).collect();
        for dir in dirs {
            let _ = write!(body, "<CommonPrefixes><Prefix>{prefix}{dir}/</Prefix></CommonPrefixes>");
        }
        return body + "</ListBucketResult>";
    }
    for (key, bytes) in keys.iter().take(PAGE) {
        let _ = write!(
            body,
            "<Contents><Key>{key}</Key><LastModified>2026-11-28T10:00:00.000Z</LastModified><ETag>&quot;{:x}&quot;</ETag><Size>{}</Size></Contents>",
            Sha256::digest(bytes),
            bytes.len()
        );
    }
    if let Some((last, _)) = keys.get(PAGE - 1).filter(|_| keys.len() > PAGE) {
        let _ = write!(body, "<IsTruncated>true</IsTruncated><NextContinuationToken>{last}</NextContinuationToken>");
    }
    body + "</ListBucketResult>"
}
