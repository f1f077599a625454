//! The settings, and the credentials of the environment.

use crate::model::ModelName;
use base64::Engine as _;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// `[models.mlflow]`: MLflow's model registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The address of the tracking server, `http://…` or `https://…`. Default none: no registry is read.
    pub uri: Option<String>,
    /// The registered models to read. Default none: a registry has models of many teams.
    pub models: Vec<ModelName>,
    /// The alias that is a promotion when it moves. Default none: the registry changes no un-pinned traffic.
    pub promote_alias: Option<String>,
    /// The most versions of a model that are offered: those with an alias, then the newest. Default 10: as many as a source keeps of a model.
    pub versions: usize,
    /// The time limit of one request that is not a download. Default 10 s: a registry answers in milliseconds, and one that hangs holds up nothing else.
    pub timeout: Duration,
    /// The file with the authorities that sign the certificate of an `https://` address. Default none: those that the system trusts.
    pub ca: Option<PathBuf>,
    /// The first part of the names of the tags that are written on MLflow's versions. Empty: no tag is written. Default `sluicegate`.
    pub tags: String,
}

/// What proves to MLflow who asks. From the environment, with the names that MLflow's own client reads.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    authorization: Option<String>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            uri: None,
            models: Vec::new(),
            promote_alias: None,
            versions: 10,
            timeout: Duration::from_secs(10),
            ca: None,
            tags: "sluicegate".to_owned(),
        }
    }
}

impl Credentials {
    /// As MLflow's client chooses them: a name and a password come before a token.
    #[must_use]
    pub fn of_environment(variable: impl Fn(&str) -> Option<String>) -> Credentials {
        let read = |name: &str| {
            // A line break at the end comes from files that a shell reads.
            variable(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
        };
        let (name, password) = (read("MLFLOW_TRACKING_USERNAME"), read("MLFLOW_TRACKING_PASSWORD"));
        let authorization = match (name, password, read("MLFLOW_TRACKING_TOKEN")) {
            (Some(name), Some(password), _) => {
                let pair = base64::engine::general_purpose::STANDARD.encode(format!("{name}:{password}"));
                Some(format!("Basic {pair}"))
            }
            (_, _, Some(token)) => Some(format!("Bearer {token}")),
            _ => None,
        };
        Credentials { authorization }
    }

    #[must_use]
    pub fn are_there(&self) -> bool {
        self.authorization.is_some()
    }

    pub(super) fn authorization(&self) -> Option<String> {
        self.authorization.clone()
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("are_there", &self.are_there()).finish()
    }
}
