//! supervisor: a small parent process that owns the listening sockets, and starts the server process again when a signal ended it.
//!
//! - [`run`](fn@run) is the parent. It starts the server as a child process of the same program with the same arguments, and waits. It has one
//!   thread, loads no engine and reads no request.
//! - New connections are never refused: the sockets stay open, and connections wait in the kernel's queue until the next child accepts them.
//! - A child that a signal ended is started again, with a growing delay when that happens often. An exit code ends the parent with the same
//!   code. SIGTERM, SIGINT and SIGHUP are passed on to the child.
//! - When the parent ends for any reason, the kernel kills the child: no process keeps the ports or the data directory.
//! - After a crash the parent reads the [`marks`](crate::marks) of the dead child, and [`attribute`](crash::attribute) decides which version it
//!   is attributed to. The next child gets the [`Crash`](crash::Crash) reports in [`Supervised`], stores them, and says so.
//! - As process 1 of a container the parent also reaps processes that have lost their parent.
//!
//! Uses: marks, machine (the OOM killer's count, files), model.
//!
//! Invariant: the parent never touches a model, a request or the ledger. What it needs to know is passed to [`run`](fn@run).
//!
//! To pass something else to the child: a field of [`Supervised`] and of the message in `message.rs`.

mod child;
mod crash;
mod dump;
mod message;
#[cfg(target_os = "linux")]
mod parent;
#[cfg(target_os = "linux")]
mod signals;
#[cfg(test)]
mod tests;

pub use child::{Inherited, Supervised, inherited};
pub(crate) use crash::signal_name;
#[cfg(target_os = "linux")]
pub use signals::unblock as unblock_signals;

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// The listening sockets, both non-blocking.
#[derive(Debug)]
pub struct Sockets {
    pub data: TcpListener,
    pub admin: TcpListener,
}

/// What the parent has to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where inputs of runs that ended the process are written.
    pub data_dir: PathBuf,
    /// How many bytes of inputs are kept for each thread. 0 keeps none.
    pub crash_inputs: usize,
    /// How long a stop may take, until the child has said so itself.
    pub shutdown_grace: Duration,
    /// The configuration file, of which the parent keeps a copy: a broken file must not keep the child from starting again.
    pub file: Option<PathBuf>,
}

/// Runs the server in a child process until it ends with an exit code, or until it is stopped. Returns the code to exit with.
/// `is_valid`: whether the configuration can be read as it is now.
///
/// # Errors
/// When the first child cannot be started. The sockets can be used by this process then.
#[cfg(target_os = "linux")]
pub fn run(config: &Config, sockets: &Sockets, is_valid: &dyn Fn() -> bool) -> std::io::Result<ExitCode> {
    parent::run(config, sockets, is_valid)
}

/// # Errors
/// Always: the server runs in this process.
#[cfg(not(target_os = "linux"))]
pub fn run(_: &Config, _: &Sockets, _: &dyn Fn() -> bool) -> std::io::Result<ExitCode> {
    Err(std::io::Error::new(std::io::ErrorKind::Unsupported, "a supervisor needs Linux"))
}

/// Signals are blocked only in children of a parent, which needs Linux.
#[cfg(not(target_os = "linux"))]
pub fn unblock_signals() {}
