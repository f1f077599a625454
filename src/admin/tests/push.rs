//! A new version over the wire.

use super::bench::{Bench, MAX_PUSH, bare, failed, name, version};
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
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

const PATH: &str = "/api/v1/models/fraud/versions/3";

fn put(bench: &Bench, path: &str, body: impl Into<Body>) -> super::bench::Answer {
    bench.send("PUT", path, &[], body)
}

/// A body of these pieces, whose length nobody says beforehand.
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

fn left_in(bench: &Bench) -> Vec<String> {
    let names = std::fs::read_dir(bench.dir.path().join("models")).unwrap();
    names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn a_file_arrives_whole_and_is_handed_over() {
    let seen = Arc::new(Mutex::new(Vec::<(String, Vec<u8>)>::new()));
    let kept = Arc::clone(&seen);
    let bench = Bench::answering(move |asked| {
        let Asked::Push { staged, .. } = asked else { panic!("a push") };
        let name = staged.file_name().unwrap().to_str().unwrap().to_owned();
        kept.lock().unwrap().push((name, std::fs::read(staged).unwrap()));
        // What the manager does: the version is this file.
        std::fs::rename(staged, staged.with_file_name("landed")).unwrap();
        Told::Done
    });
    let sent = (0..4).map(|i| Ok(Bytes::from(vec![i; 200]))).collect();
    let answer = put(&bench, PATH, pieces(sent));
    assert_eq!((answer.status.as_u16(), answer.header("location")), (201, PATH));
    let json = answer.json();
    assert_eq!((&json["model"], &json["version"], &json["state"]), (&json!("fraud"), &json!("3"), &json!("pending")));
    assert!(json["next"].as_str().unwrap().contains("until it is promoted"), "{json}");
    let seen = seen.lock().unwrap();
    let (staged, bytes) = &seen[0];
    assert!(staged.starts_with('.'), "{staged} is none of the directory's models");
    assert_eq!(bytes, &(0..4u8).flat_map(|i| [i; 200]).collect::<Vec<u8>>());
    let [Asked::Push { model, version: v, actor, .. }] = &bench.asked()[..] else { panic!("one push") };
    assert_eq!((model, *v, actor), (&name("fraud"), version(3), &Actor("local".to_owned())));
    assert_eq!(left_in(&bench), ["landed"]);
}

#[test]
fn what_is_refused_leaves_nothing_behind() {
    let mut bench = Bench::answering(|_| Told::Refused(Failure::new(Code::InvalidRequest, "not an ONNX model")));
    put(&bench, PATH, "junk").refused(400, "INVALID_REQUEST", "not an ONNX model");
    assert_eq!(bench.asked().len(), 1);
    put(&bench, PATH, "").refused(400, "INVALID_REQUEST", "the body is empty");
    let large = usize::try_from(MAX_PUSH).unwrap() + 1;
    put(&bench, PATH, vec![0; large]).refused(413, "BODY_TOO_LARGE", "1000 bytes");
    let unannounced = vec![Ok(Bytes::from(vec![0; 600])), Ok(Bytes::from(vec![0; 600]))];
    put(&bench, PATH, pieces(unannounced)).refused(413, "BODY_TOO_LARGE", "1000 bytes");
    let cut = vec![Ok(Bytes::from_static(b"half")), Err(std::io::Error::other("reset"))];
    put(&bench, PATH, pieces(cut)).refused(400, "INVALID_REQUEST", "ended before it was whole");
    put(&bench, "/api/v1/models/.x/versions/0", "x").refused(400, "INVALID_REQUEST", "model name \\\".x\\\"");
    put(&bench, "/api/v1/models/fraud/versions/-1", "x").refused(400, "INVALID_REQUEST", "positive integer");
    put(&bench, "/api/v1/models/%2e%2e/versions/1", "x").refused(400, "INVALID_REQUEST", "model name");
    let packed = bench.send("PUT", PATH, &[("content-encoding", "gzip")], "x");
    packed.refused(415, "UNSUPPORTED_MEDIA_TYPE", "gzip");
    bench.publish(vec![bare(3, State::Loading)], None);
    put(&bench, PATH, "x").refused(409, "CONFLICT", "version 3 of model fraud exists already");
    assert!(bench.asked().is_empty(), "nothing of it reached the manager");
    assert_eq!(left_in(&bench), [""; 0]);
    bench.publish(vec![failed(3, Stage::Load, "gone from the directory")], None);
    put(&bench, PATH, "x").refused(400, "INVALID_REQUEST", "not an ONNX model");
    assert_eq!(bench.asked().len(), 1, "whether a version that is not loaded still has files is the manager's to see");
}

#[test]
fn a_models_directory_that_is_not_there_is_said() {
    let bench = Bench::new();
    std::fs::remove_dir(bench.dir.path().join("models")).unwrap();
    let answer = put(&bench, PATH, "x");
    answer.refused(500, "INTERNAL", "the models directory is not there");
    let shown = bench.dir.path().to_str().unwrap();
    assert!(!String::from_utf8_lossy(&answer.bytes).contains(shown), "and no path is told: {answer:?}");
}

#[test]
fn what_a_killed_server_left_is_swept_by_the_next_push() {
    let bench = Bench::new();
    let file = |name: &str, hours: u64| {
        let path: &Path = &bench.dir.path().join("models").join(name);
        let old = std::time::SystemTime::now() - std::time::Duration::from_secs(hours * 3600);
        std::fs::File::create(path).unwrap().set_modified(old).unwrap();
    };
    file(".push-old.onnx", 2);
    file(".push-in-progress.onnx", 0);
    file(".somebody-elses", 2);
    assert_eq!(put(&bench, PATH, "x").status, 201);
    let mut left = left_in(&bench);
    left.sort();
    assert_eq!(left, [".push-in-progress.onnx", ".somebody-elses"]);
}
