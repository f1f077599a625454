//! One trial process, as the server sees it.

use super::message::{Event, Order};
use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};
use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The program of trial processes: this binary, with the arguments of its command `trial`.
#[derive(Debug, Clone)]
pub struct Program {
    pub path: std::path::PathBuf,
    pub arguments: Vec<OsString>,
}

/// A running trial process. Dropping it ends the process.
#[derive(Debug)]
pub(super) struct TrialProcess {
    stdin: ChildStdin,
    /// Bounded: the process waits when nobody reads. Disconnected when its output has ended.
    events: Receiver<Event>,
    /// Names the process, also after it has ended: its number may then be another's.
    handle: OwnedFd,
    /// How it ended. One message.
    status: Receiver<ExitStatus>,
    /// The end of what the process wrote to standard error.
    said: Arc<Mutex<Vec<u8>>>,
}

/// Why no event came.
#[derive(Debug)]
pub(super) enum NoEvent {
    TooLate,
    Ended(Ended),
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ended {
    /// `signal 11 (SIGSEGV)`, `exit code 1`.
    pub how: String,
    /// Whether it ended for want of memory.
    pub memory: bool,
}

/// How long to wait for the status of a process whose events have ended.
const END: Duration = Duration::from_secs(5);
/// Bytes of standard error that are kept.
const SAID: usize = 4096;
/// Events that may wait.
const EVENTS: usize = 64;
/// The longest line that is read as an event.
const MAX_LINE: u64 = 1 << 20;

impl TrialProcess {
    /// Starts a process.
    ///
    /// # Errors
    /// When the system cannot start it.
    pub(super) fn start(program: &Program) -> io::Result<TrialProcess> {
        let mut child = Command::new(&program.path)
            .arg0("sluicegate")
            .args(&program.arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(stdin), Some(stdout), Some(stderr)) = pipes else {
            return Err(io::Error::other("the process has no pipes"));
        };
        let handle = match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
            Ok(handle) => handle,
            Err(error) => {
                // Nothing could end it later.
                let _ = child.kill();
                let _ = child.wait();
                return Err(error.into());
            }
        };
        let (sender, events) = bounded(EVENTS);
        let (ended, status) = bounded(1);
        let said: Arc<Mutex<Vec<u8>>> = Arc::default();
        let keep = Arc::clone(&said);
        std::thread::Builder::new().name("trial-err".to_owned()).spawn(move || read_said(stderr, &keep))?;
        std::thread::Builder::new().name("trial-out".to_owned()).spawn(move || {
            read_events(stdout, &sender);
            // Before the events end, so that the status is there for who sees their end.
            if let Ok(status) = child.wait() {
                let _ = ended.send(status);
            }
            drop(sender);
        })?;
        Ok(TrialProcess { stdin, events, handle, status, said })
    }

    /// Gives the process an order.
    ///
    /// # Errors
    /// When it has ended.
    pub(super) fn give(&mut self, order: &Order) -> io::Result<()> {
        let mut line = serde_json::to_vec(order)?;
        line.push(b'\n');
        self.stdin.write_all(&line)
    }

    /// The next event, until a time.
    pub(super) fn next(&self, until: Instant) -> Result<Event, NoEvent> {
        match self.events.recv_deadline(until) {
            Ok(event) => Ok(event),
            Err(RecvTimeoutError::Timeout) => Err(NoEvent::TooLate),
            Err(RecvTimeoutError::Disconnected) => Err(NoEvent::Ended(self.ended())),
        }
    }

    /// How the process ended, after its output has ended.
    fn ended(&self) -> Ended {
        let status = self.status.recv_timeout(END).ok();
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let said = String::from_utf8_lossy(&said);
        let memory = is_about_memory(&said);
        let Some(status) = status else {
            return Ended { how: "an unknown end".to_owned(), memory };
        };
        let how = match status.signal() {
            Some(signal) => format!("signal {signal}{}", signal_name(signal)),
            None => format!("exit code {}", status.code().unwrap_or_default()),
        };
        let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
        if !status.success() {
            tracing::warn!(%how, said = last, "a trial process ended");
        }
        // The kernel ends processes with this signal where memory is short; nobody else ends this one. The dynamic linker exits with 127
        // where it gets no memory for a library that an engine needs, such as the one that unwinds C++ exceptions.
        let memory = memory || status.signal() == Some(libc::SIGKILL) || status.code() == Some(127);
        Ended { how, memory }
    }
}

impl Drop for TrialProcess {
    fn drop(&mut self) {
        // Fails only when it has ended. The thread that reads its output waits for it.
        let _ = pidfd_send_signal(&self.handle, Signal::KILL);
    }
}

/// Whether a process that ended said that it got no memory.
fn is_about_memory(said: &str) -> bool {
    let said = said.to_ascii_lowercase();
    ["bad_alloc", "memory allocation of", "out of memory", "cannot allocate"].iter().any(|words| said.contains(words))
}

fn read_events(stdout: ChildStdout, events: &crossbeam_channel::Sender<Event>) {
    let mut reader = BufReader::new(stdout);
    loop {
        let mut line = Vec::new();
        match reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line) {
            Ok(n) if n > 0 => {}
            _ => return,
        }
        // A model's library may print something of its own.
        let Ok(event) = serde_json::from_slice(&line) else { continue };
        if events.send(event).is_err() {
            return;
        }
    }
}

fn read_said(mut stderr: ChildStderr, said: &Mutex<Vec<u8>>) {
    let mut piece = [0; SAID];
    while let Ok(n) = stderr.read(&mut piece)
        && n > 0
    {
        let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
        said.extend_from_slice(&piece[..n]);
        let surplus = said.len().saturating_sub(SAID);
        said.drain(..surplus);
    }
}

const fn signal_name(signal: i32) -> &'static str {
    match signal {
        libc::SIGSEGV => " (SIGSEGV)",
        libc::SIGABRT => " (SIGABRT)",
        libc::SIGFPE => " (SIGFPE)",
        libc::SIGILL => " (SIGILL)",
        libc::SIGBUS => " (SIGBUS)",
        libc::SIGKILL => " (SIGKILL)",
        _ => "",
    }
}
