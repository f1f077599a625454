//! Push.

use super::fixture::{Fixture, MAX_PUSH, bare, failed, name, version};
use crate::lifecycle::Actor;
use crate::lifecycle::fake::{Asked, Told};
use crate::model::{Code, Failure};
use crate::registry::{Stage, State};
use axum::body::Body;
use bytes::Bytes;
use http_body::Frame;
use serde_json::json;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

const PATH: &str = "/api/v1/models/fraud/versions/3";

fn put(fixture: &Fixture, path: &str, body: impl Into<Body>) -> super::fixture::Answer {
    fixture.send("PUT", path, &[], body)
}

/// A body in pieces, without a content length.
fn pieces(pieces: Vec<Result<Bytes, std::io::Error>>) -> Body {
    Body::new(Pieces(pieces.into_iter()))
}

struct Pieces(std::vec::IntoIter<Result<Bytes, std::io::Error>>);

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<std::io::Result<Frame<Bytes>>>> {
        Poll::Ready(self.0.next().map(|piece| piece.map(Frame::data)))
    }
}

fn files_in(fixture: &Fixture) -> Vec<String> {
    let names = std::fs::read_dir(fixture.dir.path().join("models")).unwrap();
    names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn a_file_is_received_completely_and_handed_to_the_manager() {
    let seen = Arc::new(Mutex::new(Vec::<(String, Vec<u8>)>::new()));
    let kept = Arc::clone(&seen);
    let fixture = Fixture::answering(move |asked| {
        let Asked::Push { staged, .. } = asked else { panic!("a push") };
        let name = staged.file_name().unwrap().to_str().unwrap().to_owned();
        kept.lock().unwrap().push((name, std::fs::read(staged).unwrap()));
        // The manager moves the file to its place.
        std::fs::rename(staged, staged.with_file_name("landed")).unwrap();
        Told::Done
    });
    let sent = (0..4).map(|i| Ok(Bytes::from(vec![i; 200]))).collect();
    let answer = put(&fixture, PATH, pieces(sent));
    assert_eq!((answer.status.as_u16(), answer.header("location")), (201, PATH));
    let json = answer.json();
    assert_eq!((&json["model"], &json["version"], &json["state"]), (&json!("fraud"), &json!("3"), &json!("pending")));
    assert!(json["next"].as_str().unwrap().contains("until it is promoted"), "{json}");
    let seen = seen.lock().unwrap();
    let (staged, bytes) = &seen[0];
    assert!(staged.starts_with('.'), "{staged} is hidden in the models directory");
    assert_eq!(bytes, &(0..4u8).flat_map(|i| [i; 200]).collect::<Vec<u8>>());
    let [Asked::Push { model, version: v, actor, .. }] = &fixture.asked()[..] else { panic!("one push") };
    assert_eq!((model, *v, actor), (&name("fraud"), Some(version(3)), &Actor("local".to_owned())));
    assert_eq!(files_in(&fixture), ["landed"]);
}

#[test]
fn a_refused_push_leaves_no_file_behind() {
    let mut fixture = Fixture::answering(|_| Told::Refused(Failure::new(Code::InvalidRequest, "not an ONNX model")));
    put(&fixture, PATH, "junk").refused(400, "INVALID_REQUEST", "not an ONNX model");
    assert_eq!(fixture.asked().len(), 1);
    put(&fixture, PATH, "").refused(400, "INVALID_REQUEST", "the body is empty");
    let large = usize::try_from(MAX_PUSH).unwrap() + 1;
    put(&fixture, PATH, vec![0; large]).refused(413, "BODY_TOO_LARGE", "1000 bytes");
    let unannounced = vec![Ok(Bytes::from(vec![0; 600])), Ok(Bytes::from(vec![0; 600]))];
    put(&fixture, PATH, pieces(unannounced)).refused(413, "BODY_TOO_LARGE", "1000 bytes");
    let cut = vec![Ok(Bytes::from_static(b"half")), Err(std::io::Error::other("reset"))];
    put(&fixture, PATH, pieces(cut)).refused(400, "INVALID_REQUEST", "ended before the body was complete");
    put(&fixture, "/api/v1/models/.x/versions/0", "x").refused(400, "INVALID_REQUEST", "model name \\\".x\\\"");
    put(&fixture, "/api/v1/models/fraud/versions/-1", "x").refused(400, "INVALID_REQUEST", "positive integer");
    put(&fixture, "/api/v1/models/%2e%2e/versions/1", "x").refused(400, "INVALID_REQUEST", "model name");
    let packed = fixture.send("PUT", PATH, &[("content-encoding", "gzip")], "x");
    packed.refused(415, "UNSUPPORTED_MEDIA_TYPE", "gzip");
    fixture.publish(vec![bare(3, State::Loading)], None);
    put(&fixture, PATH, "x").refused(409, "CONFLICT", "version 3 of model fraud already exists");
    assert!(fixture.asked().is_empty(), "no command reached the manager");
    assert_eq!(files_in(&fixture), [""; 0]);
    fixture.publish(vec![failed(3, Stage::Load, "gone from the directory")], None);
    put(&fixture, PATH, "x").refused(400, "INVALID_REQUEST", "not an ONNX model");
    assert_eq!(fixture.asked().len(), 1, "the manager decides whether a failed version still has files");
}

#[test]
fn an_archive_is_bounded_and_leaves_nothing_behind() {
    let fixture = Fixture::new();
    let next = "/api/v1/models/fraud/versions";
    let send = |fixture: &Fixture, method: &str, path: &str, body: Vec<u8>| {
        fixture.send(method, path, &[("content-type", "application/x-tar")], body)
    };
    for (method, path) in [("PUT", PATH), ("POST", next)] {
        send(&fixture, method, path, vec![0; usize::try_from(MAX_PUSH).unwrap() + 1]).refused(
            413,
            "BODY_TOO_LARGE",
            "1000 bytes",
        );
        send(&fixture, method, path, vec![0; 900]).refused(
            400,
            "INVALID_REQUEST",
            "expected model.onnx at its top, found no file",
        );
        send(&fixture, method, path, vec![1; 900]).refused(400, "INVALID_REQUEST", "it is not a tar archive");
        send(&fixture, method, path, Vec::new()).refused(
            400,
            "INVALID_REQUEST",
            "the body is empty: expected a tar archive",
        );
    }
    let signature = "A".repeat(88);
    let headers = [("content-type", "application/x-tar"), ("x-sluicegate-signature", signature.as_str())];
    fixture.send("PUT", PATH, &headers, "x").refused(400, "INVALID_REQUEST", "an archive has the file model.sig");
    fixture.send("POST", next, &[("content-type", "text/plain")], "x").refused(
        415,
        "UNSUPPORTED_MEDIA_TYPE",
        "application/x-tar",
    );
    fixture.send("POST", "/api/v1/models/.x/versions", &[], "x").refused(400, "INVALID_REQUEST", "model name");
    assert!(fixture.asked().is_empty(), "no command reached the manager");
    assert_eq!(files_in(&fixture), [""; 0]);
    let answer = fixture.send("POST", next, &[("content-type", "application/octet-stream")], "x");
    assert_eq!((answer.status.as_u16(), answer.header("location")), (201, "/api/v1/models/fraud/versions/1"));
    let [Asked::Push { version: None, .. }] = &fixture.asked()[..] else { panic!("one push without a number") };
}

#[test]
fn a_missing_models_directory_is_reported() {
    let fixture = Fixture::new();
    std::fs::remove_dir(fixture.dir.path().join("models")).unwrap();
    let answer = put(&fixture, PATH, "x");
    answer.refused(500, "INTERNAL", "the models directory does not exist");
    let shown = fixture.dir.path().to_str().unwrap();
    assert!(!String::from_utf8_lossy(&answer.bytes).contains(shown), "the error names no path: {answer:?}");
}

#[test]
fn files_that_a_killed_server_left_are_removed_by_the_next_push() {
    let fixture = Fixture::new();
    let file = |name: &str, hours: u64| {
        let path: &Path = &fixture.dir.path().join("models").join(name);
        let old = std::time::SystemTime::now() - std::time::Duration::from_secs(hours * 3600);
        std::fs::File::create(path).unwrap().set_modified(old).unwrap();
    };
    file(".push-old.onnx", 2);
    file(".push-in-progress.onnx", 0);
    file(".somebody-elses", 2);
    assert_eq!(put(&fixture, PATH, "x").status, 201);
    let mut left = files_in(&fixture);
    left.sort();
    assert_eq!(left, [".push-in-progress.onnx", ".somebody-elses"]);
}

/// One piece, and then nothing for ever.
struct Stalled(Option<Bytes>);

impl http_body::Body for Stalled {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<std::io::Result<Frame<Bytes>>>> {
        self.0.take().map_or(Poll::Pending, |piece| Poll::Ready(Some(Ok(Frame::data(piece)))))
    }
}

#[test]
fn a_client_that_disconnects_while_it_sends_leaves_no_file_behind() {
    let fixture = Fixture::new();
    let written = || {
        let files = std::fs::read_dir(fixture.dir.path().join("models")).unwrap();
        files.flatten().any(|file| file.metadata().is_ok_and(|metadata| metadata.len() > 0))
    };
    let body = Body::new(Stalled(Some(Bytes::from_static(b"half a model"))));
    fixture.send_and_disconnect("PUT", PATH, body, written);
    assert_eq!(files_in(&fixture), [""; 0]);
    assert!(fixture.asked().is_empty(), "no command reached the manager");
}

#[test]
fn a_client_that_disconnects_after_it_has_sent_everything_does_not_stop_the_push() {
    let (arrived, disconnected) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (arriving, waiting) = (Arc::clone(&arrived), Arc::clone(&disconnected));
    let fixture = Fixture::answering(move |asked| {
        let Asked::Push { staged, .. } = asked else { return Told::Done };
        arriving.store(true, Ordering::SeqCst);
        while !waiting.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        // Fails when the file was removed together with the handler.
        Told::Refused(match std::fs::rename(staged, staged.with_file_name("landed")) {
            Ok(()) => return Told::Done,
            Err(error) => Failure::new(Code::Internal, error.to_string()),
        })
    });
    fixture.send_and_disconnect("PUT", PATH, "a model", || arrived.load(Ordering::SeqCst));
    disconnected.store(true, Ordering::SeqCst);
    // The manager takes one command after the other, so the push is done when this is answered.
    assert_eq!(fixture.post("/v2/repository/models/fraud/load", "").status, 200);
    assert_eq!(files_in(&fixture), ["landed"]);
}
