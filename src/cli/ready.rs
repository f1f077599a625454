//! `sluicegate ready`.

use super::client::{Client, Done, error_message};
use super::{CommandError, ReadyOptions, show};
use std::time::{Duration, Instant};

/// How long one request may take. Below the time limits of health checks, so that the command says why it failed.
const ONE_TRY: Duration = Duration::from_secs(4);
/// The pause between two requests.
const PAUSE: Duration = Duration::from_millis(200);

impl Client {
    /// Asks until the server is ready, or the time is over. The first answer counts where there is no time.
    pub(super) fn ready(&self, options: &ReadyOptions) -> Done {
        let deadline = Instant::now() + options.timeout;
        loop {
            let asked = self.ask_if_ready(options.live);
            let left = deadline.saturating_duration_since(Instant::now());
            match asked {
                // An address that is wrong stays wrong.
                Err(CommandError::Failed(_)) if !left.is_zero() => std::thread::park_timeout(PAUSE.min(left)),
                done => return done,
            }
        }
    }

    fn ask_if_ready(&self, live: bool) -> Done {
        let (place, what) = if live { ("/healthz", "live") } else { ("/readyz", "ready") };
        let request = self.request("GET", place).body(()).map_err(|e| self.bad_address(&e))?;
        let (status, answer) = self.exchange(request, ONE_TRY)?;
        if status != 200 {
            return Err(CommandError::Failed(format!("not {what}: {}", error_message(status, &answer.bytes))));
        }
        self.show(&answer, |shown| {
            let unserved = show::list(shown, "unserved").map(|model| {
                format!(
                    "model {} cannot be served as a whole: {}\n",
                    show::cell(&model["model"]),
                    show::cell(&model["reason"])
                )
            });
            format!("{what}\n{}", unserved.collect::<String>())
        })
    }
}
