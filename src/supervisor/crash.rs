//! What is known about a crash, and which version it is attributed to.

use crate::marks::{Caller, Kind, MarkedThread, Named, Reading};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// The report of one crash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Crash {
    /// RFC 3339.
    pub at: String,
    /// `SIGSEGV`.
    pub signal: String,
    /// What is known about the cause, as the log says it.
    pub words: String,
    /// The version that the crash is attributed to.
    pub version: Option<CrashedVersion>,
}

/// The version that was running on the thread that died.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CrashedVersion {
    pub model: crate::model::ModelName,
    pub version: crate::model::Version,
    /// Identifies its files.
    pub artifact: String,
    /// The kind of call, as [`Kind::as_str`] spells it.
    pub call: String,
    /// The file with the inputs of the run.
    pub inputs: Option<String>,
}

/// The result of [`attribute`].
#[derive(Debug, PartialEq)]
pub(super) struct Attribution<'r> {
    /// The thread whose version the crash is attributed to. It has a version.
    pub(super) thread: Option<&'r MarkedThread>,
    pub(super) words: String,
}

/// Decides which version a crash is attributed to.
///
/// - The signal handler ran on a thread that was inside an engine: that thread's version. Not where a process sent the signal to the
///   whole process, because the kernel chose the thread then.
/// - No handler ran, as when the kernel's OOM killer sends SIGKILL or a stack overflow leaves no stack to run it on: the version that
///   threads were running, if it was only one. SIGKILL counts only when the OOM killer's count rose meanwhile.
/// - Otherwise no version.
pub(super) fn attribute(signal: i32, reading: &Reading, oom_killed: bool) -> Attribution<'_> {
    let name = signal_name(signal);
    let nobody = |words: String| Attribution { thread: None, words };
    let Some(death) = &reading.death else {
        if signal == libc::SIGKILL && !oom_killed {
            return nobody("SIGKILL was sent by a process, and not by the kernel's OOM killer".to_owned());
        }
        let cause = if signal == libc::SIGKILL { "the kernel's OOM killer ended the process".to_owned() } else { name };
        let versions: BTreeSet<_> =
            reading.inside.iter().map(|t| t.version.as_ref().map(|v| (&v.model, v.version))).collect();
        return match (&reading.inside[..], versions.len()) {
            ([], _) => nobody(format!("{cause}; no thread was inside an engine")),
            ([first, ..], 1) if first.version.is_some() => {
                let words = format!("{cause}; the only version inside an engine was {}", show(first));
                Attribution { thread: Some(first), words }
            }
            (all, _) => {
                let all: Vec<String> = all.iter().map(show).collect();
                nobody(format!("{cause}; threads inside an engine were {}", all.join(", ")))
            }
        };
    };
    if let Caller::Process(sender) = death.sent {
        return nobody(format!("process {sender} sent {name} to the server process"));
    }
    match reading.died() {
        Some(thread) if thread.version.is_some() => {
            Attribution { thread: Some(thread), words: format!("{name} in {}", show(thread)) }
        }
        Some(thread) => nobody(format!("{name} in {}", show(thread))),
        None => nobody(format!("{name} on thread {}, which was not inside an engine", death.thread)),
    }
}

/// `version 3 of iris (run, thread infer-0)`
fn show(thread: &MarkedThread) -> String {
    let MarkedThread { thread: id, name, kind, version, .. } = thread;
    let name = if name.is_empty() { id.to_string() } else { name.clone() };
    match version {
        Some(Named { model, version, .. }) => {
            format!("version {version} of {model} ({}, thread {name})", kind.as_str())
        }
        None => format!("a version without a name ({}, thread {name})", kind.as_str()),
    }
}

impl CrashedVersion {
    /// `None` for a thread whose version has no name.
    pub(super) fn of(thread: &MarkedThread, inputs: Option<String>) -> Option<CrashedVersion> {
        let Named { model, version, artifact } = thread.version.clone()?;
        Some(CrashedVersion { model, version, artifact, call: Kind::as_str(thread.kind).to_owned(), inputs })
    }
}

/// `SIGSEGV`, or the number of a signal that does not end a process because of an error.
pub(crate) fn signal_name(signal: i32) -> String {
    let known = [
        (libc::SIGSEGV, "SIGSEGV"),
        (libc::SIGBUS, "SIGBUS"),
        (libc::SIGILL, "SIGILL"),
        (libc::SIGFPE, "SIGFPE"),
        (libc::SIGABRT, "SIGABRT"),
        (libc::SIGTRAP, "SIGTRAP"),
        (libc::SIGSYS, "SIGSYS"),
        (libc::SIGKILL, "SIGKILL"),
        (libc::SIGTERM, "SIGTERM"),
        (libc::SIGINT, "SIGINT"),
        (libc::SIGHUP, "SIGHUP"),
        (libc::SIGQUIT, "SIGQUIT"),
        (libc::SIGXCPU, "SIGXCPU"),
        (libc::SIGXFSZ, "SIGXFSZ"),
    ];
    known
        .iter()
        .find(|(number, _)| *number == signal)
        .map_or_else(|| format!("signal {signal}"), |(_, name)| (*name).to_owned())
}
