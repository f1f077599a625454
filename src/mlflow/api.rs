//! MLflow's REST API: each call, with its limit in bytes and its deadline.

use super::config::{Config, Credentials};
use super::wire::{
    DownloadAnswer, ErrorAnswer, FileInfo, FilesAnswer, ModelVersion, RegisteredModel, RegisteredModelAnswer, Run,
    RunAnswer, VersionAnswer, VersionsAnswer,
};
use crate::mirror::{Sink, Trouble};
use crate::model::{ModelName, Version};
use crate::outbound::{OutboundError, Site, StreamError, Untrusted};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::de::DeserializeOwned;
use serde_json::json;
use std::time::{Duration, Instant};

/// The most bytes of an answer: a page of versions with many tags, or a run with thousands of metrics.
const MAX_ANSWER: u64 = 8 << 20;
/// The most bytes of the text that a version's `MLmodel` has.
pub(super) const MAX_MLMODEL: u64 = 1 << 20;
/// The most characters of MLflow's own message that are shown.
const MAX_SHOWN: usize = 200;
/// The most characters of a tag. MLflow takes 5000.
const MAX_TAG: usize = 1000;

const API: &str = "/api/2.0/mlflow";
const ARTIFACTS: &str = "/api/2.0/mlflow-artifacts/artifacts";

/// What stays as it is in a part of a path, or in a value of a query.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A client of one tracking server.
#[derive(Debug)]
pub(super) struct Api {
    site: Site,
    timeout: Duration,
}

/// An answer that MLflow gives, or why there is none.
enum Failed {
    /// A status that is no success, with MLflow's code.
    Answered {
        status: u16,
        code: String,
        message: String,
    },
    Other(Trouble),
}

impl Api {
    /// # Errors
    /// When the authorities to trust cannot be read.
    pub(super) fn new(uri: &str, config: &Config, credentials: &Credentials) -> Result<Api, Untrusted> {
        let site = Site::new(uri, credentials.authorization(), config.ca.clone())?;
        Ok(Api { site, timeout: config.timeout })
    }

    /// A registered model with its aliases. `None` where there is none of this name.
    pub(super) fn model(&mut self, name: &ModelName, until: Instant) -> Result<Option<RegisteredModel>, Trouble> {
        let path = format!("{API}/registered-models/get?name={}", plain(name.as_str()));
        match self.get::<RegisteredModelAnswer>(&path, until) {
            Ok(answer) => Ok(Some(answer.registered_model)),
            Err(Failed::Answered { code, .. }) if code == "RESOURCE_DOES_NOT_EXIST" => Ok(None),
            Err(failed) => Err(failed.into()),
        }
    }

    /// The newest versions of a model, the newest first.
    pub(super) fn newest(
        &mut self,
        name: &ModelName,
        most: usize,
        until: Instant,
    ) -> Result<Vec<ModelVersion>, Trouble> {
        // A model's name has no quotation marks.
        let filter = plain(&format!("name='{name}'"));
        let order = plain("version_number DESC");
        let path = format!("{API}/model-versions/search?filter={filter}&max_results={most}&order_by={order}");
        let mut versions = self.get::<VersionsAnswer>(&path, until)?.model_versions;
        versions.truncate(most);
        Ok(versions)
    }

    /// One version of a model. `None` where there is none with this number.
    pub(super) fn version(
        &mut self,
        name: &ModelName,
        version: Version,
        until: Instant,
    ) -> Result<Option<ModelVersion>, Trouble> {
        let path = format!("{API}/model-versions/get?name={}&version={version}", plain(name.as_str()));
        match self.get::<VersionAnswer>(&path, until) {
            Ok(answer) => Ok(Some(answer.model_version)),
            Err(Failed::Answered { code, .. }) if code == "RESOURCE_DOES_NOT_EXIST" => Ok(None),
            Err(failed) => Err(failed.into()),
        }
    }

    /// Where the files of a version are, as an address with a scheme.
    pub(super) fn artifact_uri(
        &mut self,
        name: &ModelName,
        version: Version,
        until: Instant,
    ) -> Result<String, Trouble> {
        let path = format!("{API}/model-versions/get-download-uri?name={}&version={version}", plain(name.as_str()));
        Ok(self.get::<DownloadAnswer>(&path, until)?.artifact_uri)
    }

    /// A run. `None` where it was deleted for good.
    pub(super) fn run(&mut self, id: &str, until: Instant) -> Result<Option<Run>, Trouble> {
        match self.get::<RunAnswer>(&format!("{API}/runs/get?run_id={}", plain(id)), until) {
            Ok(answer) => Ok(Some(answer.run)),
            Err(Failed::Answered { code, .. }) if code == "RESOURCE_DOES_NOT_EXIST" => Ok(None),
            Err(failed) => Err(failed.into()),
        }
    }

    /// What is directly in a directory of the artifact store that the server gives access to.
    pub(super) fn files(&mut self, dir: &str, until: Instant) -> Result<Vec<FileInfo>, Trouble> {
        Ok(self.get::<FilesAnswer>(&format!("{ARTIFACTS}?path={}", plain(dir)), until)?.files)
    }

    /// A small file. `None` where there is none.
    pub(super) fn text(&mut self, path: &str, most: u64, until: Instant) -> Result<Option<String>, Trouble> {
        let within = self.within(until)?;
        match self.site.ask(&artifact(path), None, within, most).map_err(|error| trouble(&error))? {
            (200, bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
            (404, _) => Ok(None),
            // What a store that is not the server's own disk answers when a file is missing.
            (500, bytes) if error_of(&bytes).code_says_missing() => Ok(None),
            (status, bytes) => Err(answered(status, &bytes).into()),
        }
    }

    /// The bytes of a file from byte `from` on. The whole time is for this.
    pub(super) fn read(&mut self, path: &str, from: u64, until: Instant, to: &mut Sink<'_>) -> Result<(), Trouble> {
        let within = until.saturating_duration_since(Instant::now());
        self.site.stream(&artifact(path), from, within, |bytes| to(bytes)).map_err(|error| match error {
            StreamError::Outbound(error) => trouble(&error),
            StreamError::Taker(trouble) => trouble,
        })
    }

    /// Writes a tag on a version.
    pub(super) fn set_tag(
        &mut self,
        name: &ModelName,
        version: Version,
        (key, value): (&str, &str),
        until: Instant,
    ) -> Result<(), Trouble> {
        let value: String = value.chars().take(MAX_TAG).collect();
        let body = json!({"name": name, "version": version, "key": key, "value": value}).to_string();
        let within = self.within(until)?;
        let path = format!("{API}/model-versions/set-tag");
        match self.site.ask(&path, Some(body), within, MAX_ANSWER).map_err(|error| trouble(&error))? {
            (200, _) => Ok(()),
            (status, bytes) => Err(answered(status, &bytes).into()),
        }
    }

    fn get<T: DeserializeOwned>(&mut self, path: &str, until: Instant) -> Result<T, Failed> {
        let within = self.within(until).map_err(Failed::Other)?;
        match self.site.ask(path, None, within, MAX_ANSWER).map_err(|error| Failed::Other(trouble(&error)))? {
            (200, bytes) => serde_json::from_slice(&bytes).map_err(|error| {
                let call = path.split('?').next().unwrap_or_default();
                Failed::Other(Trouble::new(format!("the answer to {call} is not what MLflow sends: {error}")))
            }),
            (status, bytes) => Err(answered(status, &bytes)),
        }
    }

    /// The time for one call.
    fn within(&self, until: Instant) -> Result<Duration, Trouble> {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(Trouble::new("MLflow took too long")) } else { Ok(left.min(self.timeout)) }
    }
}

// === impl Failed ===

impl From<Failed> for Trouble {
    fn from(failed: Failed) -> Trouble {
        match failed {
            Failed::Other(trouble) => trouble,
            Failed::Answered { status: status @ (401 | 403), .. } => Trouble::new(format!(
                "MLflow answered {status}: the credentials in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or in \
                 MLFLOW_TRACKING_TOKEN, are missing, wrong, or do not allow it"
            )),
            Failed::Answered { status, code, message } => {
                let code = if code.is_empty() { String::new() } else { format!(" {code}") };
                let message = if message.is_empty() { String::new() } else { format!(": {message}") };
                Trouble::new(format!("MLflow answered {status}{code}{message}"))
            }
        }
    }
}

impl ErrorAnswer {
    fn code_says_missing(&self) -> bool {
        self.message.contains("No such file") || self.message.contains("Not Found") || self.message.contains("404")
    }
}

fn error_of(body: &[u8]) -> ErrorAnswer {
    serde_json::from_slice(body).unwrap_or_default()
}

fn answered(status: u16, body: &[u8]) -> Failed {
    let ErrorAnswer { error_code, message } = error_of(body);
    Failed::Answered { status, code: shown(&error_code), message: shown(&message) }
}

/// A text of the registry, short and without control characters.
pub(super) fn shown(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_SHOWN).collect()
}

fn trouble(error: &OutboundError) -> Trouble {
    Trouble::new(format!("MLflow: {error}"))
}

fn plain(text: &str) -> String {
    utf8_percent_encode(text, PLAIN).to_string()
}

fn artifact(path: &str) -> String {
    let parts: Vec<String> = path.split('/').map(plain).collect();
    format!("{ARTIFACTS}/{}", parts.join("/"))
}
