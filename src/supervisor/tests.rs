//! What a crash is attributed to, and what parent and child tell each other.

use super::crash::{Crash, CrashedVersion, attribute};
use super::dump;
use super::message::{Descriptors, Message};
use crate::marks::{Caller, Death, Kind, MarkedThread, Named, Reading};

fn thread(id: u32, model: &str, kind: Kind) -> MarkedThread {
    let version = (!model.is_empty()).then(|| Named {
        model: model.parse().unwrap(),
        version: "3".parse().unwrap(),
        artifact: "abc".to_owned(),
    });
    MarkedThread { thread: id, name: format!("infer-{id}"), kind, version, inputs: None }
}

fn died(signal: i32, sent: Caller, thread: u32) -> Death {
    Death { signal, sent, thread }
}

/// The model that a crash is attributed to, and the words.
fn result(
    signal: i32,
    oom_killed: bool,
    death: impl Into<Option<Death>>,
    inside: Vec<MarkedThread>,
) -> (Option<String>, String) {
    let reading = Reading { death: death.into(), inside };
    let attribution = attribute(signal, &reading, oom_killed);
    (attribution.thread.map(|t| t.version.as_ref().unwrap().model.to_string()), attribution.words)
}

#[test]
fn a_fault_is_attributed_to_the_version_on_its_thread() {
    let both = || vec![thread(7, "good", Kind::Run), thread(8, "bad", Kind::Run)];
    for (signal, sent, name) in [(libc::SIGSEGV, Caller::Fault, "SIGSEGV"), (libc::SIGABRT, Caller::Thread, "SIGABRT")]
    {
        let (model, words) = result(signal, false, died(signal, sent, 8), both());
        assert_eq!(model.as_deref(), Some("bad"));
        assert_eq!(words, format!("{name} in version 3 of bad (run, thread infer-8)"));
    }
}

#[test]
fn a_fault_outside_engines_is_attributed_to_no_version() {
    let inside = vec![thread(7, "good", Kind::Run)];
    let (model, words) = result(libc::SIGSEGV, false, died(libc::SIGSEGV, Caller::Fault, 9), inside);
    assert_eq!((model, words.as_str()), (None, "SIGSEGV on thread 9, which was not inside an engine"));
    let unnamed = vec![thread(7, "", Kind::Load)];
    let (model, words) = result(libc::SIGSEGV, false, died(libc::SIGSEGV, Caller::Fault, 7), unnamed);
    assert_eq!((model, words.as_str()), (None, "SIGSEGV in a version without a name (load, thread infer-7)"));
}

#[test]
fn a_signal_that_a_process_sent_is_attributed_to_no_version() {
    let inside = vec![thread(7, "good", Kind::Run)];
    let (model, words) = result(libc::SIGSEGV, false, died(libc::SIGSEGV, Caller::Process(42), 7), inside.clone());
    assert_eq!((model, words.as_str()), (None, "process 42 sent SIGSEGV to the server process"));
    let (model, words) = result(libc::SIGKILL, false, None, inside);
    assert_eq!((model, words.contains("not by the kernel's OOM killer")), (None, true), "{words}");
}

#[test]
fn without_a_handler_only_a_single_version_is_named() {
    let one = vec![thread(7, "big", Kind::Run), thread(8, "big", Kind::Load)];
    let (model, words) = result(libc::SIGKILL, true, None, one);
    assert_eq!(model.as_deref(), Some("big"));
    assert_eq!(
        words,
        "the kernel's OOM killer ended the process; the only version inside an engine was version 3 of big (run, thread infer-7)"
    );
    let two = vec![thread(7, "big", Kind::Run), thread(8, "good", Kind::Run)];
    let (model, words) = result(libc::SIGSEGV, false, None, two);
    assert_eq!(model, None);
    assert!(words.contains("version 3 of big") && words.contains("version 3 of good"), "{words}");
    assert_eq!(result(libc::SIGKILL, true, None, Vec::new()).0, None);
}

#[test]
#[cfg(target_os = "linux")]
fn restarts_are_delayed_more_and_more() {
    let millis: Vec<u128> = (0..12).map(|n| super::parent::delay(n).as_millis()).collect();
    assert_eq!(millis, [0, 0, 100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000, 10_000]);
    assert_eq!(super::parent::delay(u32::MAX).as_secs(), 10);
}

#[test]
fn descriptors_survive_the_environment() {
    for configuration in [None, Some(9)] {
        let descriptors = Descriptors { parent: 1, marks: 3, data: 4, admin: 5, configuration };
        assert_eq!(Descriptors::parse(&descriptors.to_string()), Some(descriptors));
    }
    for wrong in ["", "1", "1,2,4,5,-1", "1,3,4,5", "1,3,4,5,-1,6", "-1,3,4,5,-1", "x,3,4,5,-1"] {
        assert_eq!(Descriptors::parse(wrong), None, "{wrong:?}");
    }
}

#[test]
fn reports_survive_the_message() {
    let crashed = CrashedVersion::of(&thread(7, "iris", Kind::Warm), Some("data/crashes/x".to_owned())).unwrap();
    let crash = Crash {
        at: "2026-11-28T06:00:00.000000Z".to_owned(),
        signal: "SIGSEGV".to_owned(),
        words: "words".to_owned(),
        version: Some(crashed),
    };
    let message = Message { restarts: 2, crashes: vec![crash] };
    assert_eq!(serde_json::from_str::<Message>(&serde_json::to_string(&message).unwrap()).unwrap(), message);
}

#[test]
fn inputs_are_written_only_where_they_were_kept() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(dump::write(dir.path(), &thread(7, "iris", Kind::Run), "now").unwrap(), None);
    assert!(!dir.path().join("crashes").exists());
}
