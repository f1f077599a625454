//! The client against real servers that answer, refuse, lie, and are silent.

use super::client::OutboundError;
use super::test_server::{Reply, TestServer};
use super::*;
use std::path::Path;
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(300);
const MOST: u64 = 1 << 20;

fn client(url: String) -> Client {
    Client::new(url, None).unwrap()
}

fn get(server: &TestServer, within: Duration) -> Result<Vec<u8>, OutboundError> {
    client(server.url("/a?b=secret")).get(within, MOST)
}

#[test]
fn a_request_is_answered_over_http_and_over_https_with_the_authority_of_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let plain = TestServer::http(Reply::Answer(200, "one".to_owned()));
    assert_eq!(get(&plain, LONG).unwrap(), b"one");
    assert!(plain.requests()[0].head.starts_with("GET /a?b=secret HTTP/1.1\r\n"), "{:?}", plain.requests());
    let (secure, ca) = TestServer::https(dir.path(), "localhost", Reply::Answer(200, "two".to_owned()));
    let mut trusting = Client::new(secure.url("/"), Some(ca)).unwrap();
    for _ in 0..2 {
        assert_eq!(trusting.get(LONG, MOST).unwrap(), b"two");
    }
    secure.reply(Reply::Answer(204, String::new()));
    trusting.post_json("{\"a\":1}".to_owned(), LONG).unwrap();
    let posted = secure.requests().pop().unwrap();
    assert_eq!(posted.body, "{\"a\":1}");
    assert!(posted.head.to_ascii_lowercase().contains("content-type: application/json"), "{}", posted.head);
}

#[test]
fn a_certificate_that_nobody_trusted_signed_or_that_is_for_another_name_is_refused() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (server, ca) = TestServer::https(here.path(), "localhost", Reply::Answer(200, "x".to_owned()));
    let (other, other_ca) = TestServer::https(there.path(), "idp.example", Reply::Answer(200, "x".to_owned()));
    let refused = |server: &TestServer, ca: &Path| {
        let mut client = Client::new(server.url("/"), Some(ca.to_owned())).unwrap();
        let refused = client.get(LONG, MOST).unwrap_err();
        assert!(!refused.to_string().contains("localhost"), "the address is not shown: {refused}");
        refused.to_string()
    };
    assert!(refused(&server, &other_ca).contains("none of the authorities to trust has signed it"));
    assert!(refused(&other, &other_ca).contains("it is for another name"));
    assert!(server.requests().is_empty() && other.requests().is_empty(), "nothing was sent");
    // The authorities are read again after a failure.
    let file = here.path().join("trusted.crt");
    std::fs::copy(&other_ca, &file).unwrap();
    let mut client = Client::new(server.url("/"), Some(file.clone())).unwrap();
    assert!(client.get(LONG, MOST).is_err());
    std::fs::copy(&ca, &file).unwrap();
    assert_eq!(client.get(LONG, MOST).unwrap(), b"x");
    std::fs::remove_file(&file).unwrap();
    assert_eq!(client.get(LONG, MOST).unwrap(), b"x", "the file is not needed while requests succeed");
    server.reply(Reply::Raw(b"nonsense\r\n\r\n"));
    assert!(matches!(client.get(LONG, MOST), Err(OutboundError::Protocol)));
    assert!(matches!(client.get(LONG, MOST), Err(OutboundError::Untrusted(_))));
}

#[test]
fn a_file_without_authorities_is_reported_before_any_request() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ca.crt");
    let refused = |file: &Path| Client::new("https://localhost/".to_owned(), Some(file.to_owned())).unwrap_err();
    assert!(refused(&file).to_string().contains("ca.crt: No such file"), "{}", refused(&file));
    std::fs::write(&file, "nothing").unwrap();
    assert!(refused(&file).to_string().ends_with("ca.crt: it has no certificate (PEM)"), "{}", refused(&file));
    std::fs::File::create(&file).unwrap().set_len(9 << 20).unwrap();
    assert!(refused(&file).to_string().contains("larger than"), "{}", refused(&file));
}

#[test]
fn a_server_that_is_silent_or_sends_a_byte_at_a_time_is_given_up_at_the_deadline() {
    let dir = tempfile::tempdir().unwrap();
    let plain = TestServer::http(Reply::Silence);
    let (secure, ca) = TestServer::https(dir.path(), "localhost", Reply::Silence);
    // Reading the certificate is not a part of what is measured.
    let mut trusting = Client::new(secure.url("/"), Some(ca.clone())).unwrap();
    for (what, reply) in [("silent", Reply::Silence), ("slow", Reply::Drip)] {
        plain.reply(reply.clone());
        secure.reply(reply);
        let began = Instant::now();
        for answer in [
            get(&plain, SHORT),
            trusting.get(SHORT, MOST),
            client(plain.url("/")).post_json("1".into(), SHORT).map(|()| Vec::new()),
        ] {
            // A post does not wait for the body of its answer.
            let ended = answer.as_ref().is_ok_and(|body| body.is_empty() && what == "slow");
            assert!(ended || matches!(answer, Err(OutboundError::Timeout(_))), "{what}: {answer:?}");
        }
        let took = began.elapsed();
        assert!(took >= 2 * SHORT && took < LONG / 2, "{what}: {took:?}");
    }
}

#[test]
fn an_answer_that_is_too_large_not_http_a_redirection_or_an_error_is_a_failure() {
    let server = TestServer::http(Reply::Endless);
    assert!(matches!(get(&server, LONG), Err(OutboundError::TooLarge(MOST))));
    server.reply(Reply::Answer(200, "x".repeat(1 << 20)));
    assert_eq!(get(&server, LONG).unwrap().len(), 1 << 20, "the limit is reached and not exceeded");
    server.reply(Reply::Answer(200, "x".repeat((1 << 20) + 1)));
    assert!(matches!(get(&server, LONG), Err(OutboundError::TooLarge(MOST))));
    let long = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "y".repeat(1 << 20));
    server.reply(Reply::Raw(long.leak().as_bytes()));
    assert!(get(&server, LONG).is_err(), "headers have a limit too");
    for (raw, expected) in [
        (&b"\x16\x03\x01\x00\x05nonsense"[..], "the other side does not speak HTTP"),
        (b"", "it cannot be reached"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nfive!", ""),
    ] {
        server.reply(Reply::Raw(raw));
        let refused = get(&server, LONG).unwrap_err().to_string();
        assert!(refused.contains(expected) && !refused.contains("secret"), "{raw:?}: {refused}");
    }
    for status in [301, 302, 307] {
        server.reply(Reply::Answer(status, "{}".to_owned()));
        assert!(matches!(get(&server, LONG), Err(OutboundError::Redirection(found)) if found == status));
    }
    for status in [204, 404, 500] {
        server.reply(Reply::Answer(status, String::new()));
        assert!(matches!(get(&server, LONG), Err(OutboundError::Status(found)) if found == status));
    }
    let address = server.url("/secret");
    drop(server);
    let refused = client(address).get(LONG, MOST).unwrap_err();
    assert!(matches!(refused, OutboundError::Unreachable(_)) && !refused.to_string().contains("secret"), "{refused}");
    let unknown = client("http://nowhere.invalid/secret".to_owned()).get(LONG, MOST).unwrap_err().to_string();
    assert!(!unknown.contains("nowhere") && !unknown.contains("secret"), "{unknown}");
}
