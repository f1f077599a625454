pub(crate) mod fixture;

use super::*;
use crate::backend::{Model, RunError, Session};
use crate::model::{Code, Parameters, Role, Signature};
use crate::route::{Ask, Document, Selector};
use fixture::{entry, version};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::ThreadId;

/// A model that never runs and remembers which thread freed it.
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

    fn session(self: Arc<Self>) -> Result<Box<dyn Session>, RunError> {
        Err(RunError::Refused("never run".to_owned()))
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

fn ask<'a>(selector: Selector<'a>, parameters: &'a Parameters) -> Ask<'a> {
    Ask { selector, header: &|_| None, parameters, request_id: "id" }
}

#[test]
fn a_document_cannot_name_what_is_not_held() {
    let freed = Arc::default();
    let missing = entry("m", &[loaded(1, &freed)], Some(Document::single(version(2))), 1).unwrap_err();
    assert_eq!(missing, [version(2)]);
}

#[test]
fn routing_finds_the_arm_the_pin_and_says_what_is_not_there() {
    let freed = Arc::default();
    let entry = entry("m", &[loaded(1, &freed), loaded(2, &freed)], Some(Document::single(version(2))), 1).unwrap();
    let none = Parameters::new();
    let served = entry.route(&ask(Selector::Traffic, &none)).unwrap().served;
    assert_eq!((&*served.version_text, &*served.arm, served.role), ("2", "2", Role::Primary));
    let pinned = entry.route(&ask(Selector::Version(version(1)), &none)).unwrap().served;
    assert_eq!((&*pinned.version_text, pinned.role), ("1", Role::Pinned));
    let unknown = entry.route(&ask(Selector::Version(version(9)), &none)).unwrap_err();
    assert_eq!(unknown.code, Code::VersionNotFound);
    assert_eq!(unknown.message, "model m has no version 9; loaded are 1, 2");
    assert_eq!(entry.route(&ask(Selector::Label("x"), &none)).unwrap_err().code, Code::LabelNotFound);
}

#[test]
fn readers_see_one_whole_snapshot_and_never_free_it() {
    const PUBLISHES: u64 = 3_000;
    let freed_on: Arc<Mutex<Vec<ThreadId>>> = Arc::default();
    let (mut writer, reader) = new();
    let done = Arc::new(AtomicBool::new(false));
    let publish = |writer: &mut Writer, n: u64| {
        // Two models that must always agree, each publish with a version of its own.
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
                    assert_eq!(a.revision(), b.revision(), "a reader sees no half of a publish");
                    assert!(a.revision() >= last, "and nothing older than it saw before");
                    last = a.revision();
                    let served = Arc::clone(a.route(&ask(Selector::Traffic, &none)).unwrap().served);
                    drop(snapshot);
                    assert_eq!(served.loaded.version.number(), last, "routing and what is loaded agree");
                    reads += 1;
                }
                (std::thread::current().id(), reads)
            })
        })
        .collect();
    for n in 2..=PUBLISHES {
        kept.push(publish(&mut writer, n));
        // The manager's part: let go of a version only when nobody else has it.
        kept.retain(|held| Arc::strong_count(&held[0]) > 1);
    }
    done.store(true, Ordering::Relaxed);
    let threads: Vec<ThreadId> = readers.into_iter().map(|r| r.join().unwrap().0).collect();
    assert_eq!(writer.collect(), 0, "nobody holds an old snapshot any more");
    kept.retain(|held| Arc::strong_count(&held[0]) > 1);
    assert_eq!(kept.len(), 1, "only the published version is left");
    let freed = freed_on.lock().unwrap();
    assert_eq!(freed.len() as u64, PUBLISHES - 1);
    assert!(
        freed.iter().all(|id| !threads.contains(id)),
        "memory is freed on the writer's thread, never on a reader's"
    );
}
