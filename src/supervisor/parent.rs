//! The parent process: starts the server process, waits for signals, and starts it again.

use super::crash::{Attribution, Crash, CrashedVersion, attribute, signal_name};
use super::message::{Descriptors, Message, VARIABLE};
use super::{Config, Sockets, dump, signals};
use crate::machine;
use crate::marks::Region;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process};
use std::io::{self, Seek as _, Write as _};
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};
use tracing::{error, info, warn};

/// The delay before the second restart in a row; it doubles with each one. The first restart has none.
const FIRST_DELAY: Duration = Duration::from_millis(100);
/// Short enough that a load balancer's probe soon finds the server again.
const LONGEST_DELAY: Duration = Duration::from_secs(10);
/// A child that lived this long did not fail "again".
const STEADY: Duration = Duration::from_mins(1);
/// How much longer than its own limit a stop may take before the child is killed.
const STOP_MARGIN: Duration = Duration::from_secs(5);
/// The longest wait for a signal. Every signal ends the wait, so that any time would do.
const IDLE: Duration = Duration::from_hours(1);
/// The most reports that are kept for the next child. The oldest are dropped.
const MAX_REPORTS: usize = 64;

pub(super) fn run(config: &Config, sockets: &Sockets, is_valid: &dyn Fn() -> bool) -> io::Result<ExitCode> {
    let region = Region::create(config.crash_inputs)?;
    let mut parent = Parent {
        config,
        sockets,
        region,
        configuration: Configuration::open(config)?,
        is_valid,
        restarts: 0,
        reports: Vec::new(),
        in_a_row: 0,
    };
    signals::block();
    let mut child = parent.start().inspect_err(|_| signals::unblock_all())?;
    loop {
        match parent.watch(&mut child) {
            Ended::Code(code) => return Ok(code),
            Ended::Crashed => {}
        }
        child = match parent.start_again() {
            Some(child) => child,
            // Stopped while no child was running: there is nothing to finish.
            None => return Ok(ExitCode::SUCCESS),
        };
    }
}

struct Parent<'c> {
    config: &'c Config,
    sockets: &'c Sockets,
    region: Region,
    configuration: Option<Configuration>,
    /// Whether the server would accept the configuration as it is now.
    is_valid: &'c dyn Fn() -> bool,
    restarts: u64,
    /// Crashes that no child has stored yet.
    reports: Vec<Crash>,
    /// Crashes without a steady child between them.
    in_a_row: u32,
}

/// A running server process.
struct Child {
    pid: Pid,
    since: Instant,
    oom_kills: u64,
    /// When it is killed, once a stop was requested.
    kill_at: Option<Instant>,
}

enum Ended {
    /// The parent ends with this code.
    Code(ExitCode),
    Crashed,
}

impl Parent<'_> {
    fn start(&mut self) -> io::Result<Child> {
        self.region.clear();
        let message = Message { restarts: self.restarts, crashes: self.reports.clone() };
        let text = serde_json::to_string(&message).map_err(io::Error::other)?;
        if !self.region.set_message(&text) {
            // Reports are short and few, so this does not happen. The child must start anyway.
            self.reports.clear();
            self.region
                .set_message(&serde_json::json!(Message { restarts: self.restarts, crashes: Vec::new() }).to_string());
        }
        let marks = self.region.file().ok_or_else(|| io::Error::other("the region has no descriptor"))?;
        let pid = spawn(marks, self.sockets, self.configuration.as_ref())?;
        info!(pid = pid.as_raw_nonzero().get(), restarts = self.restarts, "the server process was started");
        Ok(Child { pid, since: Instant::now(), oom_kills: machine::oom_kills(), kill_at: None })
    }

    /// Starts another child after a delay. `None` when a signal asked for a stop meanwhile.
    fn start_again(&mut self) -> Option<Child> {
        loop {
            let delay = delay(self.in_a_row);
            if !delay.is_zero() {
                warn!(
                    seconds = delay.as_secs_f64(),
                    crashes = self.in_a_row,
                    "waiting before the server process is started again"
                );
            }
            if wait_unless_stopped(delay) {
                return None;
            }
            self.restarts += 1;
            match self.start() {
                Ok(child) => return Some(child),
                Err(error) => error!(%error, "the server process cannot be started"),
            }
            self.in_a_row = self.in_a_row.saturating_add(1);
        }
    }

    /// Passes signals on until the child ends.
    fn watch(&mut self, child: &mut Child) -> Ended {
        loop {
            let now = Instant::now();
            if child.kill_at.is_some_and(|at| at <= now) {
                error!("the server process did not stop in time and is killed");
                send(child.pid, Signal::KILL);
                child.kill_at = Some(now + IDLE);
            }
            let timeout = child.kill_at.map_or(IDLE, |at| at.saturating_duration_since(now));
            match signals::wait(timeout) {
                Some(libc::SIGCHLD) | None => {
                    if let Some(status) = reap(child.pid) {
                        return self.ended(child, status);
                    }
                }
                Some(libc::SIGHUP) => {
                    if let Some(configuration) = self.configuration.as_mut().filter(|_| (self.is_valid)()) {
                        configuration.copy();
                    }
                    send(child.pid, Signal::HUP);
                }
                Some(libc::SIGTSTP) => {
                    // The child is in a process group of its own, which the terminal does not stop.
                    send(child.pid, Signal::STOP);
                    send(rustix::process::getpid(), Signal::STOP);
                    send(child.pid, Signal::CONT);
                }
                Some(stop) => {
                    // Where both happened, the kernel reports the stop first.
                    if let Some(status) = reap(child.pid) {
                        return match self.ended(child, status) {
                            Ended::Crashed => Ended::Code(ExitCode::SUCCESS),
                            code @ Ended::Code(_) => code,
                        };
                    }
                    let within = self.region.stop_within().unwrap_or(self.config.shutdown_grace);
                    child.kill_at.get_or_insert(Instant::now() + within + STOP_MARGIN);
                    send(child.pid, if stop == libc::SIGINT { Signal::INT } else { Signal::TERM });
                }
            }
        }
    }

    fn ended(&mut self, child: &Child, status: WaitStatus) -> Ended {
        let pid = child.pid.as_raw_nonzero().get();
        if let Some(code) = status.exit_status() {
            return Ended::Code(ExitCode::from(u8::try_from(code).unwrap_or(1)));
        }
        // `reap` returns only processes that have ended, so that a signal ended this one.
        let signal = status.terminating_signal().unwrap_or(0);
        let stored = self.region.stored().min(self.reports.len());
        self.reports.drain(..stored);
        if child.kill_at.is_some() {
            error!(pid, signal = signal_name(signal), "a signal ended the server process while it was stopping");
            return Ended::Code(ExitCode::from(u8::try_from(128 + signal).unwrap_or(1)));
        }
        self.in_a_row = if child.since.elapsed() >= STEADY { 1 } else { self.in_a_row.saturating_add(1) };
        let report = self.report(child, signal);
        let version = report.version.as_ref();
        error!(
            pid,
            signal = report.signal,
            model = version.map(|v| tracing::field::display(&v.model)),
            version = version.map(|v| tracing::field::display(v.version)),
            call = version.map(|v| v.call.as_str()),
            inputs = version.and_then(|v| v.inputs.as_deref()),
            "a signal ended the server process: {}",
            report.words
        );
        if self.reports.len() >= MAX_REPORTS {
            self.reports.remove(0);
        }
        self.reports.push(report);
        Ended::Crashed
    }

    fn report(&self, child: &Child, signal: i32) -> Crash {
        let at = format!("{:.6}", jiff::Timestamp::now());
        let reading = self.region.read();
        let oom_killed = machine::oom_kills() > child.oom_kills;
        let Attribution { thread, words } = attribute(signal, &reading, oom_killed);
        let version = thread.and_then(|thread| {
            let inputs = dump::write(&self.config.data_dir, thread, &at).unwrap_or_else(|error| {
                error!(%error, "the inputs of the run that ended the process cannot be written");
                None
            });
            CrashedVersion::of(thread, inputs.map(|path| path.display().to_string()))
        });
        Crash { at, signal: signal_name(signal), words, version }
    }
}

/// Starts this program again, with the same arguments. The child inherits the descriptors.
#[expect(unsafe_code, reason = "code between fork and exec must be declared as async-signal-safe")]
fn spawn(marks: BorrowedFd<'_>, sockets: &Sockets, configuration: Option<&Configuration>) -> io::Result<Pid> {
    let parent = std::process::id();
    let descriptors = Descriptors {
        parent,
        marks: marks.as_raw_fd(),
        data: sockets.data.as_raw_fd(),
        admin: sockets.admin.as_raw_fd(),
        configuration: configuration.map(|configuration| configuration.copy.as_raw_fd()),
    };
    let mut arguments = std::env::args_os();
    // The file that runs now, even if another one has its name meanwhile: parent and child must be the same program.
    let mut command = Command::new("/proc/self/exe");
    command.arg0(arguments.next().unwrap_or_else(|| "sluicegate".into())).args(arguments);
    command.env(VARIABLE, descriptors.to_string()).process_group(0);
    let inherited =
        [Some(descriptors.marks), Some(descriptors.data), Some(descriptors.admin), descriptors.configuration];
    let prepare = move || {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        // The parent may have ended before that call.
        if std::os::unix::process::parent_id() != parent {
            return Err(io::ErrorKind::Interrupted.into());
        }
        for fd in inherited.into_iter().flatten() {
            // SAFETY: the descriptors are open: the parent holds them while it forks.
            rustix::io::fcntl_setfd(unsafe { BorrowedFd::borrow_raw(fd) }, rustix::io::FdFlags::empty())?;
        }
        signals::block_in_child();
        Ok(())
    };
    // SAFETY: `prepare` makes system calls and nothing else; it allocates no memory and takes no lock.
    let child = unsafe { command.pre_exec(prepare) }.spawn()?;
    Pid::from_raw(child.id().cast_signed()).ok_or_else(|| io::Error::other("the child has no process id"))
}

/// Reaps every process that has ended, also those that lost their parent, which process 1 gets. Returns how `child` ended.
fn reap(child: Pid) -> Option<WaitStatus> {
    let mut ended = None;
    while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
        if pid == child {
            ended = Some(status);
        }
    }
    ended
}

fn send(pid: Pid, signal: Signal) {
    // Fails only when the process has just ended.
    let _ = kill_process(pid, signal);
}

/// Waits, and returns whether a signal asked for a stop.
fn wait_unless_stopped(time: Duration) -> bool {
    let until = Instant::now() + time;
    loop {
        match signals::wait(until.saturating_duration_since(Instant::now())) {
            Some(libc::SIGTERM | libc::SIGINT) => return true,
            None if Instant::now() >= until => return false,
            _ => {}
        }
    }
}

/// The delay before the restart that follows the n-th crash in a row.
pub(super) fn delay(in_a_row: u32) -> Duration {
    match in_a_row {
        0 | 1 => Duration::ZERO,
        n => FIRST_DELAY.saturating_mul(1 << (n - 2).min(10)).min(LONGEST_DELAY),
    }
}

/// The configuration file, and a copy of its last content that could be read.
struct Configuration {
    file: std::path::PathBuf,
    copy: std::fs::File,
}

impl Configuration {
    /// `None` where there is no file.
    fn open(config: &Config) -> io::Result<Option<Configuration>> {
        let Some(file) = config.file.clone() else { return Ok(None) };
        let copy = rustix::fs::memfd_create("sluicegate-configuration", rustix::fs::MemfdFlags::CLOEXEC)?;
        let mut configuration = Configuration { file, copy: copy.into() };
        configuration.copy();
        Ok(Some(configuration))
    }

    /// Replaces the copy. A valid configuration was read from the file just before.
    fn copy(&mut self) {
        let copied = std::fs::read(&self.file).and_then(|text| {
            self.copy.set_len(0)?;
            self.copy.rewind()?;
            self.copy.write_all(&text)
        });
        if let Err(error) = copied {
            warn!(file = %self.file.display(), %error, "the configuration file cannot be copied: if it is broken later, a crash ends the server");
        }
    }
}
