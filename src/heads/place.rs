//! The places that heads are sent to.

use super::Config;
use crate::ledger::Head;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

/// A place outside the data directory.
pub(super) enum Place {
    /// The server's log.
    Log,
    /// A file that lines are appended to. It is opened for each head, so that it may be rotated.
    File(PathBuf),
    Webhook {
        url: String,
        timeout: Duration,
        agent: ureq::Agent,
    },
}

impl Place {
    pub(super) fn all(config: &Config) -> Vec<Place> {
        let mut all = vec![Place::Log];
        all.extend(config.file.clone().map(Place::File));
        if let Some(url) = config.webhook.clone() {
            // A redirection could send the head to a place that nobody configured.
            let agent = ureq::Agent::config_builder().max_redirects(0).http_status_as_error(false).proxy(None).build();
            all.push(Place::Webhook { url, timeout: config.webhook_timeout, agent: agent.into() });
        }
        all
    }

    /// For metrics and the log. The address of a webhook may be a secret, so it is not shown.
    pub(super) const fn label(&self) -> &'static str {
        match self {
            Place::Log => "log",
            Place::File(_) => "file",
            Place::Webhook { .. } => "webhook",
        }
    }

    /// Sends a head. `at_most` shortens the time limit.
    ///
    /// # Errors
    /// In words for the log. Nothing is known then about whether the head arrived.
    pub(super) fn send(&self, head: &Head, at_most: Option<Duration>) -> Result<(), String> {
        match self {
            Place::Log => {
                // Members of their own, so that a log in JSON can be searched for them.
                tracing::info!(chain = head.chain, id = head.id, hash = %head.hash, ts = head.ts, "audit head");
                Ok(())
            }
            Place::File(path) => {
                let mut line = text(head);
                line.push('\n');
                let append = || {
                    let mut file = OpenOptions::new().append(true).create(true).open(path)?;
                    file.write_all(line.as_bytes())?;
                    file.sync_data()
                };
                append().map_err(|e: std::io::Error| format!("cannot append to {}: {e}", path.display()))
            }
            Place::Webhook { url, timeout, agent } => {
                let limit = at_most.map_or(*timeout, |most| most.min(*timeout));
                let request = ureq::http::Request::post(url)
                    .header("content-type", "application/json")
                    .body(text(head))
                    .map_err(|e| format!("the address of the webhook cannot be used: {e}"))?;
                let request = agent.configure_request(request).timeout_global(Some(limit)).build();
                let answer = agent.run(request).map_err(|e| match e {
                    ureq::Error::Timeout(_) => format!("the webhook did not answer within {} ms", limit.as_millis()),
                    // Other errors may show the address.
                    ureq::Error::Io(e) => format!("the webhook cannot be reached: {e}"),
                    ureq::Error::ConnectionFailed => "the webhook cannot be reached".to_owned(),
                    ureq::Error::HostNotFound => "the host of the webhook is not known".to_owned(),
                    _ => "the webhook cannot be used".to_owned(),
                })?;
                let status = answer.status();
                if status.is_success() { Ok(()) } else { Err(format!("the webhook answered {}", status.as_u16())) }
            }
        }
    }
}

fn text(head: &Head) -> String {
    serde_json::to_string(head).expect("texts and numbers always serialize")
}
