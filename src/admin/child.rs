//! Runs an offline command of this program for an operator, in a process of its own.
//!
//! The process has the lowest priority, and ends when its standard input does: when the client goes, and when this process ends.

use crate::model::{Code, Failure};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use std::io::{self, Read as _};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::{ChildStdin, Command, Stdio};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::SemaphorePermit;
use tokio::sync::mpsc;

/// The most bytes that are kept of what the process says on standard error.
const MAX_SAID: u64 = 16 << 10;
const PIECE: usize = 64 << 10;
/// The variable of a route key that is looked for.
pub(super) const ROUTE_KEY: &str = "SLUICEGATE_ROUTE_KEY";

/// What such a process is started with.
#[derive(Debug, Clone)]
pub(crate) struct Offline {
    /// The program; `None` where this process is not the one of the command line.
    pub(crate) program: Option<PathBuf>,
    /// The path of ONNX Runtime's library, where the configuration names one.
    pub(crate) onnxruntime: Option<PathBuf>,
    /// The directory of libraries with custom operators, where the configuration names one.
    pub(crate) custom_ops: Option<PathBuf>,
    pub(crate) data_dir: PathBuf,
}

/// A running process. Dropping it ends the process.
#[derive(Debug)]
pub(super) struct Process {
    _stdin: ChildStdin,
    output: mpsc::Receiver<Piece>,
}

/// What comes from a process.
#[derive(Debug)]
pub(super) enum Piece {
    Output(Bytes),
    /// It ended with this code, and said this.
    Failed {
        code: Option<i32>,
        said: String,
    },
}

impl Offline {
    /// Starts the command.
    ///
    /// # Errors
    /// `INTERNAL` where the system cannot start it.
    pub(super) fn start(&self, arguments: &[String]) -> Result<Process, Failure> {
        self.start_with(arguments, &[])
    }

    /// The same with environment variables. Other users of the machine can read a command line, and not the environment.
    ///
    /// # Errors
    /// As [`Offline::start`].
    pub(super) fn start_with(&self, arguments: &[String], environment: &[(&str, String)]) -> Result<Process, Failure> {
        let program = self.program.as_ref();
        let program =
            program.ok_or_else(|| Failure::new(Code::Internal, "this server cannot start other processes"))?;
        let not_started = |e: io::Error| {
            Failure::new(Code::Internal, "the process cannot be started")
                .with_internal(format!("{}: {e}", program.display()))
        };
        let mut command = Command::new(program);
        command.arg0("sluicegate").args(arguments).env_remove("SLUICEGATE_ADMIN").env_remove("SLUICEGATE_TOKEN");
        command.env_remove(ROUTE_KEY).envs(environment.iter().map(|(name, value)| (name, value)));
        if let Some(library) = &self.onnxruntime {
            command.env("ORT_DYLIB_PATH", library);
        }
        if let Some(dir) = &self.custom_ops {
            command.env("SLUICEGATE__ENGINES__CUSTOM_OPS_DIR", dir);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(not_started)?;
        let (Some(stdin), Some(mut stdout), Some(stderr)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(not_started(io::Error::other("it has no pipes")));
        };
        // At most four pieces wait for the client; then the process has to wait.
        let (sender, output) = mpsc::channel(4);
        let said = std::thread::Builder::new().name("offline-err".to_owned()).spawn(move || {
            let mut said = String::new();
            let mut stderr = stderr;
            let _ = (&mut stderr).take(MAX_SAID).read_to_string(&mut said);
            // The rest is read, so that the process does not wait for it.
            let _ = io::copy(&mut stderr, &mut io::sink());
            said
        });
        let said = said.map_err(not_started)?;
        let reading = move || {
            let mut buffer = vec![0; PIECE];
            loop {
                match stdout.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(n) => {
                        if sender.blocking_send(Piece::Output(Bytes::copy_from_slice(&buffer[..n]))).is_err() {
                            // The client has gone.
                            let _ = child.kill();
                            break;
                        }
                    }
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => break,
                }
            }
            drop(stdout);
            let status = child.wait();
            let said = said.join().unwrap_or_default();
            if !status.as_ref().is_ok_and(std::process::ExitStatus::success) {
                let code = status.ok().and_then(|status| status.code());
                // Fails only when the client has gone.
                let _ = sender.blocking_send(Piece::Failed { code, said });
            }
        };
        std::thread::Builder::new().name("offline-out".to_owned()).spawn(reading).map_err(not_started)?;
        Ok(Process { _stdin: stdin, output })
    }

    /// The failure of a command, in words that name no path of this machine.
    pub(super) fn failure(&self, code: Option<i32>, said: &str, models: &std::path::Path) -> Failure {
        const USAGE: i32 = 2;
        let said = as_parameter(said.trim().trim_start_matches("sluicegate: "));
        // Where the files are on this machine is not for callers.
        let data = self.data_dir.display().to_string();
        let said = said.replace(&format!("{data}/"), "<data-dir>/").replace(&data, "the data directory");
        let said = said.replace(&models.display().to_string(), "models");
        match code {
            Some(USAGE) => Failure::new(Code::InvalidRequest, said),
            Some(_) => Failure::new(Code::Conflict, said),
            None => Failure::new(Code::Internal, "the process was ended by a signal, such as for want of memory"),
        }
    }
}

/// The words of a command about an option, about the parameter or member that gave it: `--slower-than "x": …` becomes `slower_than "x": …`.
fn as_parameter(said: &str) -> String {
    let Some(rest) = said.strip_prefix("--") else { return said.to_owned() };
    let end = rest.find(|c: char| !c.is_ascii_lowercase() && c != '-').unwrap_or(rest.len());
    let (option, words) = rest.split_at(end);
    format!("{}{words}", option.replace('-', "_"))
}

impl Process {
    /// The next piece. `None` at the end of a command that succeeded.
    ///
    /// # Errors
    /// `DEADLINE_EXCEEDED` where none comes in time.
    pub(super) async fn next(&mut self, within: Duration) -> Result<Option<Piece>, Failure> {
        let late =
            |_| Failure::new(Code::DeadlineExceeded, format!("there was no result within {} s", within.as_secs()));
        tokio::time::timeout(within, self.output.recv()).await.map_err(late)
    }

    /// Everything, up to a limit. The failure of the command is a piece of its own.
    ///
    /// # Errors
    /// As [`Process::next`].
    pub(super) async fn whole(
        mut self,
        limit: usize,
        within: Duration,
    ) -> Result<Result<Vec<u8>, (Option<i32>, String, Vec<u8>)>, Failure> {
        let deadline = tokio::time::Instant::now() + within;
        let mut bytes = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(tokio::time::Instant::now());
            match self.next(left).await? {
                None => return Ok(Ok(bytes)),
                Some(Piece::Failed { code, said }) => return Ok(Err((code, said, bytes))),
                Some(Piece::Output(piece)) => {
                    if bytes.len() + piece.len() > limit {
                        return Err(Failure::new(Code::Internal, format!("the result has more than {limit} bytes")));
                    }
                    bytes.extend_from_slice(&piece);
                }
            }
        }
    }
}

/// The output of a process as the body of an answer. A command that fails breaks the connection, so that no client takes the part for the whole.
pub(super) struct Output {
    pub(super) first: Option<Bytes>,
    pub(super) process: Process,
    pub(super) _permit: SemaphorePermit<'static>,
    pub(super) until: Pin<Box<tokio::time::Sleep>>,
}

impl Body for Output {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        if self.until.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Some(Err(io::Error::other("the export took too long"))));
        }
        self.process.output.poll_recv(cx).map(|piece| match piece? {
            Piece::Output(bytes) => Some(Ok(Frame::data(bytes))),
            Piece::Failed { said, .. } => {
                tracing::warn!(said, "an export failed after it had begun");
                Some(Err(io::Error::other("the export failed")))
            }
        })
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
