//! Heads against a real ledger, a real file and a receiver that answers what a test wants.

use super::*;
use crate::ledger::{self, Action, LedgerWriter, Note};
use crate::outbound::test_server::{Reply, TestServer};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use tempfile::TempDir;

fn note(writer: &mut LedgerWriter) -> u64 {
    let (actor, action) = ("ann".to_owned(), Action::Retention);
    writer.note(Note { model: None, actor, action, reason: None, before: None, after: None }).unwrap()
}

fn open() -> (TempDir, LedgerWriter, LedgerReader) {
    let dir = tempfile::tempdir().unwrap();
    let (writer, reader) = ledger::open(&dir.path().join("data")).unwrap();
    (dir, writer, reader)
}

fn heads_in(file: &Path) -> Vec<Head> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < until, "within 20 s: {what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// Reads a request and answers it with a status. Returns its body.
fn answer(stream: &mut TcpStream, status: u16) -> String {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().unwrap();
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    write!(stream, "HTTP/1.1 {status} X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").unwrap();
    String::from_utf8(body).unwrap()
}

#[test]
fn the_file_gets_the_newest_head_at_start_after_a_change_and_at_the_stop() {
    let (dir, mut writer, reader) = open();
    let file = dir.path().join("heads.jsonl");
    let config = Config { interval: Duration::from_millis(1), file: Some(file.clone()), ..Config::default() };
    let telemetry = Telemetry::new();
    let heads = Heads::start(&config, reader.clone(), &telemetry).unwrap();
    eventually("the head at the start", || (heads_in(&file).len() == 1).then_some(()));
    assert_eq!(heads_in(&file)[0].id, 0, "the ledger has no event yet");
    let id = note(&mut writer);
    eventually("the head after a change", || heads_in(&file).iter().any(|head| head.id == id).then_some(()));
    let last = note(&mut writer);
    heads.stop(Duration::from_secs(10));
    let found = heads_in(&file).pop().unwrap();
    let now = reader.head().unwrap();
    assert_eq!((found.id, found.hash, found.chain), (last, now.hash, now.chain), "the stop waits for the last head");
    assert!(telemetry.render().contains("sluicegate_audit_heads_total{to=\"file\"} 3"), "{}", telemetry.render());
}

#[test]
fn a_place_that_fails_gets_the_newest_head_later() {
    let (dir, mut writer, reader) = open();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/secret-path", listener.local_addr().unwrap());
    // A directory that does not exist: the file fails, and the webhook does not notice.
    let file = dir.path().join("missing/heads.jsonl");
    let config = Config {
        interval: Duration::from_millis(1),
        file: Some(file.clone()),
        webhook: Some(url),
        webhook_timeout: Duration::from_millis(300),
        ..Config::default()
    };
    let telemetry = Telemetry::new();
    let heads = Heads::start(&config, reader, &telemetry).unwrap();
    let mut hanging = listener.accept().unwrap().0;
    // While the receiver does not answer, changes are stored at once.
    let begun = Instant::now();
    let id = note(&mut writer);
    assert!(begun.elapsed() < Duration::from_secs(2), "a change does not wait for the webhook");
    let mut refused = listener.accept().unwrap().0;
    answer(&mut refused, 500);
    let mut taken = listener.accept().unwrap().0;
    let head: Head = serde_json::from_str(&answer(&mut taken, 204)).unwrap();
    assert_eq!(head.id, id, "the newest head is sent, not the one that failed");
    std::fs::create_dir(dir.path().join("missing")).unwrap();
    eventually("the file gets its head", || heads_in(&file).pop().filter(|head| head.id == id));
    let text = telemetry.render();
    assert!(text.contains("sluicegate_audit_head_failures_total{to=\"webhook\"} 2"), "{text}");
    heads.stop(Duration::from_secs(10));
    let _ = hanging.write_all(b"x");
}

#[test]
fn a_redirection_is_a_failure() {
    let (_dir, _writer, reader) = open();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let mut webhook = Place::all(&Config { webhook: Some(url), ..Config::default() }).unwrap().pop().unwrap();
    let receiver = std::thread::spawn(move || answer(&mut listener.accept().unwrap().0, 307));
    let refused = webhook.send(&reader.head().unwrap(), None).unwrap_err();
    assert!(!refused.contains("127.0.0.1"), "the address is not shown: {refused}");
    assert!(refused.contains("status 307, and redirections are not followed"), "{refused}");
    receiver.join().unwrap();
}

#[test]
fn a_webhook_over_https_gets_heads_when_its_certificate_is_from_the_configured_authority() {
    let (dir, mut writer, reader) = open();
    let id = note(&mut writer);
    let (server, ca) = TestServer::https(&dir.path().join("tls"), "localhost", Reply::Answer(204, String::new()));
    let config = |ca: &Path| Config {
        interval: Duration::from_millis(1),
        webhook: Some(server.url("/secret-path")),
        webhook_ca: Some(ca.to_owned()),
        ..Config::default()
    };
    let heads = Heads::start(&config(&ca), reader.clone(), &Telemetry::new()).unwrap();
    let got = eventually("the head at the start", || server.requests().pop());
    let head: Head = serde_json::from_str(&got.body).unwrap();
    assert_eq!(head.id, id);
    assert!(got.head.starts_with("POST /secret-path HTTP/1.1\r\n"), "{}", got.head);
    heads.stop(Duration::from_secs(10));

    let other = dir.path().join("other");
    let (_, other_ca) = TestServer::https(&other, "localhost", Reply::Silence);
    let before = server.requests().len();
    let mut webhook = Place::all(&config(&other_ca)).unwrap().pop().unwrap();
    let refused = webhook.send(&reader.head().unwrap(), None).unwrap_err();
    assert!(refused.contains("none of the authorities to trust has signed it"), "{refused}");
    assert!(!refused.contains("secret-path") && !refused.contains("localhost"), "{refused}");
    assert_eq!(server.requests().len(), before, "nothing was sent");
    let missing = Heads::start(&config(Path::new("nowhere.crt")), reader, &Telemetry::new()).unwrap_err();
    assert!(missing.to_string().contains("nowhere.crt"), "{missing}");
}
