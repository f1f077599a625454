//! What the registry says, on its way to the thread that follows it, and what that thread remembers across restarts.

use super::alias::Followed;
use crate::machine::durable::write_atomically;
use crate::model::{ModelName, Version};
use crossbeam_channel::{Receiver, Sender, bounded};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// What the registry says about the models that are read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct News {
    pub models: BTreeMap<ModelName, ModelNews>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ModelNews {
    pub aliases: BTreeMap<String, Version>,
    pub versions: BTreeMap<Version, VersionNews>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct VersionNews {
    /// Why it cannot be served here.
    pub unusable: Option<String>,
    /// What the tag on it says.
    pub tag: Option<String>,
}

/// Hands on the newest [`News`]. News that were not taken are replaced: only the newest count.
#[derive(Debug, Clone)]
pub(super) struct NewsSender {
    newest: Arc<Mutex<Option<News>>>,
    signal: Sender<()>,
}

#[derive(Debug)]
pub(super) struct NewsReceiver {
    newest: Arc<Mutex<Option<News>>>,
    pub(super) signal: Receiver<()>,
}

pub(super) fn news() -> (NewsSender, NewsReceiver) {
    let newest = Arc::new(Mutex::new(None));
    let (signal, signals) = bounded(1);
    (NewsSender { newest: Arc::clone(&newest), signal }, NewsReceiver { newest, signal: signals })
}

impl NewsSender {
    pub(super) fn send(&self, news: News) {
        *self.newest.lock().unwrap_or_else(PoisonError::into_inner) = Some(news);
        // A signal that was not taken yet stands for these news too.
        let _ = self.signal.try_send(());
    }
}

impl NewsReceiver {
    pub(super) fn take(&self) -> Option<News> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// What became of the aliases, in a file.
#[derive(Debug)]
pub(super) struct Memory {
    path: PathBuf,
    pub(super) models: BTreeMap<ModelName, BTreeMap<String, Followed>>,
    uri: String,
    /// What the file has.
    stored: Vec<u8>,
    /// The file cannot be read. What the aliases say first is then taken as carried over already, since nobody knows whether it was.
    pub(super) lost: bool,
}

/// The form of the file.
#[derive(Serialize, Deserialize)]
struct Stored {
    uri: String,
    models: BTreeMap<ModelName, BTreeMap<String, Followed>>,
}

const FILE: &str = "mlflow.json";
const MAX_FILE: u64 = 16 << 20;

impl Memory {
    /// Reads the file. What it says about another registry does not count.
    pub(super) fn read(data_dir: &Path, uri: &str) -> Memory {
        let path = data_dir.join(FILE);
        let mut memory = Memory { path, models: BTreeMap::new(), uri: uri.to_owned(), stored: Vec::new(), lost: false };
        match memory.load() {
            Ok(()) => {}
            Err(error) => {
                tracing::error!(file = %memory.path.display(), %error,
                    "what became of MLflow's aliases cannot be read; the aliases as they are now change nothing");
                memory.lost = true;
            }
        }
        memory
    }

    fn load(&mut self) -> io::Result<()> {
        let mut bytes = Vec::new();
        match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            file => file?.take(MAX_FILE).read_to_end(&mut bytes)?,
        };
        let stored: Stored = serde_json::from_slice(&bytes)?;
        if stored.uri == self.uri {
            self.models = stored.models;
        }
        self.stored = bytes;
        Ok(())
    }

    /// Writes the file where something changed. After a failure it is tried with the next change.
    pub(super) fn write(&mut self) {
        let stored = Stored { uri: self.uri.clone(), models: self.models.clone() };
        // Texts and numbers, with texts as keys.
        let Ok(bytes) = serde_json::to_vec_pretty(&stored) else { return };
        if bytes == self.stored {
            return;
        }
        match write_atomically(&self.path, &bytes) {
            Ok(()) => self.stored = bytes,
            Err(error) => tracing::error!(file = %self.path.display(), %error,
                "what became of MLflow's aliases cannot be stored; after a restart they may be carried over again"),
        }
    }
}
