pub(crate) mod fixture;

use super::*;
use crate::backend::{Model, RunError, Session, fake};
use crate::model::{Code, Parameters, Role, Signature};
use crate::route::{Document, RouteRequest, Selector};
use fixture::{entry, version};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::ThreadId;

/// A model that never runs. It records which thread freed it.
#[derive(Debug)]
struct Tracked {
    signature: Signature,
    freed_on: Arc<Mutex<Vec<ThreadId>>>,
}

impl Model for Tracked {
    fn engine(&self) -> &'static str {
        "tracked"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fake::says_nothing_about_itself!();

    fn session(self: Arc<Self>) -> Result<Box<dyn Session>, RunError> {
        Err(RunError::Refused("this model never runs".to_owned()))
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        self.freed_on.lock().unwrap().push(std::thread::current().id());
    }
}

fn loaded(n: u64, freed_on: &Arc<Mutex<Vec<ThreadId>>>) -> Arc<Loaded> {
    let signature = Signature::new(Vec::new(), Vec::new());
    fixture::loaded(n, Arc::new(Tracked { signature, freed_on: Arc::clone(freed_on) }), "")
}

fn request<'a>(selector: Selector<'a>, parameters: &'a Parameters) -> RouteRequest<'a> {
    RouteRequest { selector, header: &|_| None, parameters, request_id: "id" }
}

#[test]
fn a_document_cannot_name_a_version_that_is_not_loaded() {
    let freed = Arc::default();
    let missing = entry("m", &[loaded(1, &freed)], Some(Document::single(version(2))), 1).unwrap_err();
    assert_eq!(missing, [version(2)]);
}

#[test]
fn routing_finds_arms_and_pinned_versions_and_refuses_unknown_ones() {
    let freed = Arc::default();
    let entry = entry("m", &[loaded(1, &freed), loaded(2, &freed)], Some(Document::single(version(2))), 1).unwrap();
    let none = Parameters::new();
    let served = entry.route(&request(Selector::Traffic, &none)).unwrap().served;
    assert_eq!((&*served.version_text, &**served.arm(), served.role()), ("2", "2", Role::Primary));
    let pinned = entry.route(&request(Selector::Version(version(1)), &none)).unwrap().served;
    assert_eq!((&*pinned.version_text, pinned.role()), ("1", Role::Pinned));
    let unknown = entry.route(&request(Selector::Version(version(9)), &none)).unwrap_err();
    assert_eq!(unknown.code, Code::VersionNotFound);
    assert_eq!(unknown.message, "model m has no version 9; loaded are 1, 2");
    assert_eq!(entry.route(&request(Selector::Label("x"), &none)).unwrap_err().code, Code::LabelNotFound);
}

#[test]
fn readers_see_consistent_snapshots_and_never_free_them() {
    const PUBLISHES: u64 = 3_000;
    let freed_on: Arc<Mutex<Vec<ThreadId>>> = Arc::default();
    let (mut writer, reader) = new();
    let done = Arc::new(AtomicBool::new(false));
    let publish = |writer: &mut Writer, n: u64| {
        // Two models that must always agree. Each publish has a version of its own.
        let held = [loaded(n, &freed_on)];
        let next = Snapshot::default()
            .with(entry("a", &held, Some(Document::single(version(n))), n).unwrap())
            .with(entry("b", &held, Some(Document::single(version(n))), n).unwrap());
        writer.publish(next);
        held
    };
    let mut kept = vec![publish(&mut writer, 1)];
    let readers: Vec<_> = (0..3)
        .map(|_| {
            let (reader, done) = (reader.clone(), Arc::clone(&done));
            std::thread::spawn(move || {
                let (mut reads, mut last, none) = (0u64, 0, Parameters::new());
                while !done.load(Ordering::Relaxed) || reads == 0 {
                    let snapshot = reader.snapshot();
                    let (a, b) = (snapshot.model("a").unwrap(), snapshot.model("b").unwrap());
                    assert_eq!(a.revision(), b.revision(), "a reader never sees half of a publish");
                    assert!(a.revision() >= last, "and never an older snapshot than before");
                    last = a.revision();
                    let served = Arc::clone(a.route(&request(Selector::Traffic, &none)).unwrap().served);
                    drop(snapshot);
                    assert_eq!(served.loaded.version.number(), last, "the routed version is the loaded one");
                    reads += 1;
                }
                (std::thread::current().id(), reads)
            })
        })
        .collect();
    for n in 2..=PUBLISHES {
        kept.push(publish(&mut writer, n));
        // What the manager does: drop a version only when no one else holds it.
        kept.retain(|held| Arc::strong_count(&held[0]) > 1);
    }
    done.store(true, Ordering::Relaxed);
    let threads: Vec<ThreadId> = readers.into_iter().map(|r| r.join().unwrap().0).collect();
    assert_eq!(writer.collect(), 0, "no old snapshot is held any more");
    kept.retain(|held| Arc::strong_count(&held[0]) > 1);
    assert_eq!(kept.len(), 1, "only the published version is left");
    let freed = freed_on.lock().unwrap();
    assert_eq!(freed.len() as u64, PUBLISHES - 1);
    assert!(
        freed.iter().all(|id| !threads.contains(id)),
        "memory is freed on the writer's thread and never on a reader's"
    );
}

#[test]
fn every_document_of_a_loaded_model_can_be_routed() {
    let freed = Arc::default();
    let arm = |name: &str, weight: f64| serde_json::json!({"version": "1", "weight": weight, "arm": name});
    for split in [vec![arm("a", 0.0), arm("b", 1.0)], vec![arm("a", 1e308), arm("b", 5e-324)], vec![arm("a", 5e-324)]] {
        let document = serde_json::json!({"split": split, "labels": {"x": null}, "rules": null});
        let document = crate::route::Proposal::parse(&document).unwrap().document;
        let entry = entry("m", &[loaded(1, &freed)], Some(document), 1).unwrap();
        let none = Parameters::new();
        assert_eq!(entry.route(&request(Selector::Traffic, &none)).unwrap().served.role(), Role::Primary);
        assert_eq!(entry.route(&request(Selector::Label("x"), &none)).unwrap_err().code, Code::LabelNotFound);
    }
}

#[test]
fn a_split_without_an_arm_is_answered_with_an_internal_error() {
    let freed = Arc::default();
    let mut document = Document::single(version(1));
    // Parsing refuses an empty split, so it is built here.
    document.split.clear();
    let entry = entry("m", &[loaded(1, &freed)], Some(document), 1).unwrap();
    let none = Parameters::new();
    let failure = entry.route(&request(Selector::Traffic, &none)).unwrap_err();
    assert_eq!(failure.code, Code::Internal);
    assert!(entry.route(&request(Selector::Version(version(1)), &none)).is_ok());
}
