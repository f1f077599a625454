//! The command `check --input`: runs a version on the inputs in a file, in a process of its own, and says how that ended.

use super::commands::FAILED;
use crate::backend::{Engines, VersionFiles};
use crate::cli;
use crate::codec::oip;
use crate::prepare;
use crate::supervisor::signal_name;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::io::{self, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

/// Set in the process that runs the version.
const VARIABLE: &str = "SLUICEGATE_CHECK_INPUT";
/// The largest file: the largest `server.max_body`.
const MAX_FILE: u64 = 16 << 30;

/// What is known about the run. The process that runs it writes a line of JSON after each step, so that the last line is left when it dies.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Report {
    path: String,
    input: String,
    engine: Option<String>,
    load_ms: Option<f64>,
    /// Such as `x FP32[1,4]`.
    inputs: Vec<String>,
    run_ms: Option<f64>,
    outputs: Vec<String>,
    /// Why the file, the version or the run failed.
    failure: Option<String>,
    /// The signal that ended the process.
    signal: Option<String>,
}

/// Runs the version in `path` on the request in `input`. The exit code is 0 when the run gave outputs.
pub(super) fn check_input(path: &Path, input: &Path, json: bool) -> ExitCode {
    if std::env::var_os(VARIABLE).is_some() {
        return run_here(path, input);
    }
    let report = match run_in_child(path, input) {
        Ok(report) => report,
        Err(error) => {
            cli::complain(&format_args!("cannot run {} in a process of its own: {error}", path.display()));
            return ExitCode::from(FAILED);
        }
    };
    let text = if json {
        let text = serde_json::to_string_pretty(&report).expect("a report has string keys and finite numbers");
        format!("{text}\n")
    } else {
        show(&report)
    };
    // Fails when it cannot be written anywhere; the exit code says the rest.
    let _ = cli::print(&text, json);
    if report.passes() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) }
}

/// Runs this program again with the same arguments, and reads what it says before it ends.
fn run_in_child(path: &Path, input: &Path) -> io::Result<Report> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(std::env::args_os().skip(1)).env(VARIABLE, "1").stdout(Stdio::piped());
    let output = command.spawn()?.wait_with_output()?;
    let last = output.stdout.split(|byte| *byte == b'\n').rfind(|line| !line.is_empty());
    let mut report: Report = last.and_then(|line| serde_json::from_slice(line).ok()).unwrap_or_default();
    report.path = path.display().to_string();
    report.input = input.display().to_string();
    report.signal = output.status.signal().map(signal_name);
    Ok(report)
}

fn run_here(path: &Path, input: &Path) -> ExitCode {
    let mut report = Report::default();
    if let Err(failure) = run(path, input, &mut report) {
        report.failure = Some(failure);
    }
    report.tell();
    ExitCode::SUCCESS
}

/// Loads the version, runs it, and writes a line before each step that may end the process.
fn run(path: &Path, input: &Path, report: &mut Report) -> Result<(), String> {
    report.tell();
    let begun = Instant::now();
    // The file itself may be named too, as for a check without inputs.
    let is_model = path.is_file() && path.file_name().is_some_and(|name| name == VersionFiles::MODEL);
    let dir = path.parent().filter(|_| is_model).unwrap_or(path);
    let version = prepare::load_offline(&Engines::discover(None), dir)?;
    let runner = version.runner;
    report.engine = Some(runner.engine().to_owned());
    report.load_ms = Some(begun.elapsed().as_secs_f64() * 1e3);
    let at_file = |what: String| format!("{}: {what}", input.display());
    let bytes = std::fs::metadata(input).map_err(|e| at_file(e.to_string()))?.len();
    if bytes > MAX_FILE {
        return Err(at_file(format!("it has {bytes} bytes; at most {MAX_FILE}")));
    }
    let body = Bytes::from(std::fs::read(input).map_err(|e| at_file(e.to_string()))?);
    let request = oip::decode(&body, binary_data(&body)).map_err(|failure| at_file(failure.message))?.request;
    let request = runner.signature().check(request).map_err(|failure| at_file(failure.message))?;
    let given = runner.signature().given(&request);
    report.inputs = given.map(|(spec, tensor)| show_tensor(&spec.name, tensor)).collect();
    report.tell();
    let begun = Instant::now();
    let ran = runner.run(&request).map_err(|failure| failure.operator_text())?;
    report.run_ms = Some(begun.elapsed().as_secs_f64() * 1e3);
    report.outputs = ran.answer.outputs.iter().map(|(name, tensor)| show_tensor(name, tensor)).collect();
    Ok(())
}

/// Where the binary data of a request begins: behind its JSON. `None` for a request that is JSON alone.
fn binary_data(body: &[u8]) -> Option<usize> {
    let mut values = serde_json::Deserializer::from_slice(body).into_iter::<serde::de::IgnoredAny>();
    values.next()?.ok()?;
    let end = values.byte_offset();
    (!body[end..].trim_ascii().is_empty()).then_some(end)
}

fn show_tensor(name: &str, tensor: &crate::tensor::Tensor) -> String {
    format!("{name} {}{}", tensor.datatype(), tensor.shape())
}

impl Report {
    fn passes(&self) -> bool {
        self.failure.is_none() && self.signal.is_none() && self.run_ms.is_some()
    }

    /// A line for the parent. If it is gone, nobody reads the result.
    fn tell(&self) {
        let line = serde_json::to_string(self).expect("a report has string keys and finite numbers");
        let mut out = io::stdout();
        let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    }
}

fn show(report: &Report) -> String {
    let verdict = if report.passes() { "ok" } else { "FAILED" };
    let mut lines = vec![format!("{}: {verdict}", report.path)];
    let millis = |ms: Option<f64>| ms.map_or_else(|| "?".to_owned(), |ms| format!("{ms:.1} ms"));
    if let Some(engine) = &report.engine {
        lines.push(format!("  {engine:<12}loaded in {}", millis(report.load_ms)));
    }
    lines.extend(report.inputs.iter().map(|input| format!("  input       {input}")));
    lines.extend(report.outputs.iter().map(|output| format!("  output      {output}")));
    if report.run_ms.is_some() {
        lines.push(format!("  run         {}", millis(report.run_ms)));
    }
    let step = if report.inputs.is_empty() { "while the version was loaded" } else { "in the run" };
    lines.extend(report.signal.iter().map(|signal| format!("  {signal} ended the process {step}")));
    lines.extend(report.failure.iter().map(|failure| format!("  failed: {failure}")));
    lines.join("\n") + "\n"
}
