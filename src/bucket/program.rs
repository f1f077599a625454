//! Programs of other makers that know credentials: AWS's `credential_process`, Docker's credential helpers.

use std::io::{ErrorKind, Read, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The most bytes of an answer, and of what is said when there is none.
const MAX_ANSWER: u64 = 64 << 10;
const MAX_SAID: u64 = 4 << 10;
/// How often a program that closed its output is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// Runs a program without a shell, gives it `input`, and returns what it prints. It is ended after `within`, and waits for nobody: the calling thread may
/// wait.
///
/// # Errors
/// When it cannot be started, fails, prints too much or does not end; in words, without what it printed, as that may be a password. What it wrote to its
/// standard error is part of the words.
pub(crate) fn ask(command: &[&str], input: &[u8], within: Duration) -> Result<Vec<u8>, Refused> {
    let Some((program, arguments)) = command.split_first() else {
        return Err(Refused::new("no program is named".to_owned()));
    };
    let name: String = program.chars().take(200).collect();
    let deadline = Instant::now() + within;
    let mut spawned = Command::new(program);
    // A group of its own, so that what it started ends with it.
    spawned.args(arguments).process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = spawned.spawn().map_err(|error| {
        let why =
            if error.kind() == ErrorKind::NotFound { "it is not installed".to_owned() } else { error.to_string() };
        Refused::new(format!("the program {name} cannot be started: {why}"))
    })?;
    if let Some(mut standard_input) = child.stdin.take() {
        // A few bytes, for which a pipe has room. A program that does not read them may still answer.
        let _ = standard_input.write_all(input);
    }
    let printed = reading(child.stdout.take(), MAX_ANSWER + 1);
    let said = reading(child.stderr.take(), MAX_SAID);
    let Ok(printed) = printed.recv_deadline(deadline) else { return Err(late(&mut child, &name, within)) };
    if printed.len() as u64 > MAX_ANSWER {
        end(&mut child);
        return Err(Refused::new(format!("the program {name} printed more than {MAX_ANSWER} bytes")));
    }
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < deadline => std::thread::park_timeout(LOOK),
            _ => return Err(late(&mut child, &name, within)),
        }
    };
    if status.success() {
        return Ok(printed);
    }
    let said = said.recv_deadline(deadline).unwrap_or_default();
    let said: String = String::from_utf8_lossy(&said).trim().chars().take(200).collect();
    let code = status.code().map_or_else(|| "a signal".to_owned(), |code| format!("exit code {code}"));
    let because = if said.is_empty() { String::new() } else { format!(": {said}") };
    Err(Refused { words: format!("the program {name} ended with {code}{because}"), printed })
}

/// Why there is no answer.
#[derive(Debug)]
pub(crate) struct Refused {
    pub words: String,
    /// What a program printed that failed.
    pub printed: Vec<u8>,
}

impl Refused {
    fn new(words: String) -> Refused {
        Refused { words, printed: Vec::new() }
    }
}

/// Reads at most so many bytes on a thread of its own: a program may write to both of its outputs. The thread ends with the program.
fn reading(from: Option<impl Read + Send + 'static>, most: u64) -> crossbeam_channel::Receiver<Vec<u8>> {
    let (done, read) = crossbeam_channel::bounded(1);
    let work = move || {
        let mut bytes = Vec::new();
        if let Some(from) = from {
            // What was read before an error is all there is.
            let _ = from.take(most).read_to_end(&mut bytes);
        }
        let _ = done.send(bytes);
    };
    // Without the thread nothing is sent, which the reader finds at once.
    drop(std::thread::Builder::new().name("credentials".to_owned()).spawn(work));
    read
}

fn late(child: &mut Child, name: &str, within: Duration) -> Refused {
    end(child);
    Refused::new(format!("the program {name} did not answer within {} s", within.as_secs_f64()))
}

fn end(child: &mut Child) {
    // Fails only if it has ended.
    if let Some(group) = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
    let _ = child.kill();
    let _ = child.wait();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, input: &[u8], within: Duration) -> Result<Vec<u8>, Refused> {
        ask(&["sh", "-c", script], input, within)
    }

    #[test]
    fn a_program_answers_fails_floods_or_hangs() {
        let minute = Duration::from_mins(1);
        assert_eq!(sh("read line; echo \"got $line\"", b"me\n", minute).unwrap(), b"got me\n");
        assert_eq!(sh("echo done", b"nobody reads this", minute).unwrap(), b"done\n");
        let refused = sh("echo secret; echo 'no login' >&2; exit 3", b"", minute).unwrap_err();
        assert_eq!(
            (refused.words.as_str(), refused.printed),
            ("the program sh ended with exit code 3: no login", b"secret\n".to_vec())
        );
        assert_eq!(sh("kill -9 $$", b"", minute).unwrap_err().words, "the program sh ended with a signal");
        assert!(sh("yes", b"", minute).unwrap_err().words.contains("printed more than 65536 bytes"));
        assert!(sh("yes >&2 | exit 4", b"", minute).is_err(), "what it says is not kept");
        for hangs in ["sleep 600", "exec >&-; sleep 600"] {
            let refused = sh(hangs, b"", Duration::from_millis(200)).unwrap_err();
            assert_eq!(refused.words, "the program sh did not answer within 0.2 s", "{hangs}");
        }
        let missing = ask(&["/no/such/program"], b"", minute).unwrap_err();
        assert_eq!(missing.words, "the program /no/such/program cannot be started: it is not installed");
        assert_eq!(ask(&[], b"", minute).unwrap_err().words, "no program is named");
    }
}
