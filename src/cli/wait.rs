//! `sluicegate wait`.

use super::client::{Client, Done, path, segment};
use super::{CommandError, WaitOptions, show};
use std::time::{Duration, Instant};

/// How long one request waits. The server answers when the state is reached.
const ONE_WAIT: Duration = Duration::from_secs(30);
/// The time that a request may take beyond its wait.
const SLACK: Duration = Duration::from_secs(10);

impl Client {
    /// Asks again until the version has the state, cannot have it any more, or the time is over.
    pub(super) fn wait(&self, options: &WaitOptions) -> Done {
        let WaitOptions { model, version, state, timeout } = options;
        let deadline = Instant::now() + *timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let wait = left.min(ONE_WAIT);
            let query = format!("wait_for={}&timeout={}ms", segment(state), wait.as_millis());
            let place = format!("{}/versions/{}?{query}", path(model, ""), segment(version));
            let request = self.request("GET", &place).body(()).map_err(|e| self.bad_address(&e))?;
            let begun = Instant::now();
            let (status, answer) = self.exchange(request, wait + SLACK)?;
            let is_over = deadline <= Instant::now();
            // A version that does not exist yet is waited for. An answer that comes at once says that there cannot be one.
            if status == 404 && !is_over && begun.elapsed() * 2 >= wait {
                continue;
            }
            if status != 200 {
                return Err(self.refused(status, &answer));
            }
            let shown = answer.json()?;
            let now = show::cell(&shown["state"]);
            let why =
                if shown["reason"].is_null() { String::new() } else { format!(": {}", show::cell(&shown["reason"])) };
            match shown["waited"].as_str() {
                Some("reached") => {
                    return self.show(&answer, |_| format!("version {version} of {model} is {now}\n"));
                }
                // A server that stops answers before the time is over.
                Some("timed_out") if !is_over && begun.elapsed() * 2 < wait => {
                    std::thread::park_timeout(
                        Duration::from_secs(1).min(deadline.saturating_duration_since(Instant::now())),
                    );
                }
                Some("timed_out") if !is_over => {}
                Some("timed_out") => {
                    let seconds = timeout.as_secs_f64();
                    let message =
                        format!("version {version} of {model} is {now} and not {state} after {seconds} s{why}");
                    return Err(CommandError::Failed(message));
                }
                _ => return Err(CommandError::Failed(format!("version {version} of {model} is {now}{why}"))),
            }
        }
    }
}
