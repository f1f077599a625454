//! Where messages go: the targets of the configuration, with their secrets.

use super::event::EventKind;
use super::rule::Severity;
use std::path::PathBuf;
use std::time::Duration;

/// The most targets. Each has a thread.
pub const MOST_TARGETS: usize = 16;

/// One target of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// 1 to 64 letters, digits, `.`, `_`, `-`: a label of the metrics.
    pub name: String,
    pub kind: Kind,
    /// `http://…` or `https://…`. Of Alertmanager without the path of its API.
    pub url: Hidden,
    /// The file with the authorities that sign its certificate. `None`: those that the system trusts.
    pub ca: Option<PathBuf>,
    /// The key of the signatures of a webhook.
    pub secret: Option<Hidden>,
    pub send: Send,
    /// Alerts below it are not sent.
    pub min_severity: Severity,
    /// The time limit of one post.
    pub timeout: Duration,
}

/// The form of the messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// JSON of our own, which may be signed.
    Webhook,
    /// Version 2 of the API of Prometheus's Alertmanager.
    Alertmanager,
    /// An incoming webhook as Slack defines it: `{"text": …}`.
    Slack,
}

/// A text that is never shown: an address or a key.
#[derive(Clone, PartialEq, Eq)]
pub enum Hidden {
    Here(String),
    File(PathBuf),
    /// The name of an environment variable.
    Environment(String),
}

/// What a target gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Send {
    pub alerts: bool,
    pub events: Vec<EventKind>,
}

/// The most bytes of a file with an address or a key.
const MOST_HIDDEN: u64 = 64 << 10;

impl Kind {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Kind::Webhook => "webhook",
            Kind::Alertmanager => "alertmanager",
            Kind::Slack => "slack",
        }
    }
}

/// Says where the text is, and not what it is.
impl std::fmt::Debug for Hidden {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Hidden::Here(_) => f.write_str("(hidden)"),
            Hidden::File(path) => write!(f, "the file {}", path.display()),
            Hidden::Environment(name) => write!(f, "the environment variable {name}"),
        }
    }
}

impl Hidden {
    /// The text, without white space at its ends. A file is read each time, so that a new secret needs no restart.
    ///
    /// # Errors
    /// In words that do not show it.
    pub fn read(&self) -> Result<String, String> {
        use std::io::Read as _;
        let text = match self {
            Hidden::Here(text) => text.clone(),
            Hidden::Environment(name) => {
                std::env::var(name).map_err(|_| format!("{self:?} is not set, or not valid UTF-8"))?
            }
            Hidden::File(path) => {
                let mut text = String::new();
                let file = std::fs::File::open(path).map_err(|e| format!("{self:?} cannot be read: {e}"))?;
                file.take(MOST_HIDDEN + 1)
                    .read_to_string(&mut text)
                    .map_err(|e| format!("{self:?} cannot be read: {e}"))?;
                if text.len() as u64 > MOST_HIDDEN {
                    return Err(format!("{self:?} is larger than {MOST_HIDDEN} bytes"));
                }
                text
            }
        };
        let text = text.trim();
        if text.is_empty() { Err(format!("{self:?} is empty")) } else { Ok(text.to_owned()) }
    }
}

/// Whether a text is an address that messages can be posted to.
#[must_use]
pub fn is_address(text: &str) -> bool {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let uri: Option<http::Uri> = text.parse().ok();
    rest.is_some() && uri.is_some_and(|uri| uri.host().is_some_and(|host| !host.is_empty()))
}

impl Target {
    /// The address that messages are posted to.
    ///
    /// # Errors
    /// In words that do not show it.
    pub(super) fn address(&self) -> Result<String, String> {
        let url = self.url.read()?;
        if !is_address(&url) {
            return Err("its address does not begin with http:// or https:// and a host".to_owned());
        }
        Ok(match self.kind {
            Kind::Alertmanager => format!("{}/api/v2/alerts", url.trim_end_matches('/')),
            Kind::Webhook | Kind::Slack => url,
        })
    }
}
