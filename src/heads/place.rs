//! The places that heads are sent to.

use super::Config;
use crate::ledger::Head;
use crate::outbound::{Client, Untrusted};
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
        client: Client,
        timeout: Duration,
    },
}

impl Place {
    /// # Errors
    /// When the authorities that the webhook needs cannot be read.
    pub(super) fn all(config: &Config) -> Result<Vec<Place>, Untrusted> {
        let mut all = vec![Place::Log];
        all.extend(config.file.clone().map(Place::File));
        if let Some(url) = config.webhook.clone() {
            let client = Client::new(url, config.webhook_ca.clone())?;
            all.push(Place::Webhook { client, timeout: config.webhook_timeout });
        }
        Ok(all)
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
    pub(super) fn send(&mut self, head: &Head, at_most: Option<Duration>) -> Result<(), String> {
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
                    let mut file = OpenOptions::new().append(true).create(true).open(&*path)?;
                    file.write_all(line.as_bytes())?;
                    file.sync_data()
                };
                append().map_err(|e: std::io::Error| format!("cannot append to {}: {e}", path.display()))
            }
            Place::Webhook { client, timeout } => {
                let limit = at_most.map_or(*timeout, |most| most.min(*timeout));
                client.post_json(text(head), limit).map_err(|e| format!("the webhook cannot be used: {e}"))
            }
        }
    }
}

fn text(head: &Head) -> String {
    serde_json::to_string(head).expect("texts and numbers always serialize")
}
