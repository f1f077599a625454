//! The process that runs a sample again.

use super::{Config, LONGEST, REQUESTS, Ran};
use crate::model::{ModelName, Version};
use crossbeam_channel::{Receiver, RecvTimeoutError};
use std::io::{self, Read as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The most bytes that are read of what the process prints. It prints about a hundred.
const MAX_PRINTED: u64 = 64 << 10;
/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// Runs the sample of a version. `None` where the server stops. `Err`: why there is no result, in words.
pub(super) fn run(
    config: &Config,
    program: &Path,
    model: &ModelName,
    version: Version,
    stopped: &Receiver<()>,
) -> Option<Result<Ran, String>> {
    let mut child = match start(config, program, model, version) {
        Ok(child) => child,
        Err(error) => return Some(Err(format!("the process cannot be started: {error}"))),
    };
    let deadline = Instant::now() + LONGEST;
    loop {
        match child.try_wait() {
            Ok(Some(_)) => return Some(result(&mut child)),
            Ok(None) => {}
            Err(error) => return Some(Err(format!("the process is lost: {error}"))),
        }
        let goes_on = matches!(stopped.recv_timeout(LOOK), Err(RecvTimeoutError::Timeout));
        if goes_on && Instant::now() < deadline {
            continue;
        }
        // Fails only if it has ended.
        let _ = child.kill();
        let _ = child.wait();
        return goes_on.then(|| Err(format!("it did not end within {} s", LONGEST.as_secs())));
    }
}

fn start(config: &Config, program: &Path, model: &ModelName, version: Version) -> io::Result<Child> {
    let mut command = Command::new(program);
    command.arg0("sluicegate").args(["reproduce", "--json", "--for-server"]);
    command.arg(format!("--sample={REQUESTS}")).arg(format!("--model={model}")).arg(format!("--version={version}"));
    command.arg("--data-dir").arg(&config.data).arg("--models").arg(&config.models);
    command.env_remove("SLUICEGATE_ADMIN").env_remove("SLUICEGATE_TOKEN");
    if let Some(library) = &config.onnxruntime {
        command.env("ORT_DYLIB_PATH", library);
    }
    if let Some(dir) = &config.custom_ops {
        command.env("SLUICEGATE__ENGINES__CUSTOM_OPS_DIR", dir);
    }
    // It ends when its standard input does.
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()
}

/// What a process that has ended printed.
fn result(child: &mut Child) -> Result<Ran, String> {
    let (mut printed, mut said) = (String::new(), String::new());
    if let Some(output) = child.stdout.take() {
        // What cannot be read is no JSON.
        let _ = output.take(MAX_PRINTED).read_to_string(&mut printed);
    }
    if let Some(errors) = child.stderr.take() {
        let _ = errors.take(MAX_PRINTED).read_to_string(&mut said);
    }
    // An answer that is different has a result and the exit code 1.
    serde_json::from_str(&printed).map_err(|_| {
        let said: String = said.trim().chars().take(500).collect();
        if said.is_empty() { "the process ended without a result".to_owned() } else { said }
    })
}
