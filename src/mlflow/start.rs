//! Starts and stops the thread that follows the registry.

use super::ACTOR;
use super::api::Api;
use super::config::{Config, Credentials};
use super::follow::Following;
use super::memory::{Memory, NewsReceiver, news};
use super::offers::Registry;
use super::view::View;
use crate::lifecycle::Handle;
use crate::machine::lower_priority;
use crate::mirror::{Make, Other, Trouble};
use crate::registry::Reader;
use crate::telemetry::Telemetry;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How often the state of versions and documents is looked at while an alias waits for it. Each look reads one snapshot.
const LOOK: Duration = Duration::from_millis(200);
/// How often anything else is looked at: tags that could not be written.
const IDLE: Duration = Duration::from_secs(5);
/// The pause after a panic.
const AFTER_PANIC: Duration = Duration::from_mins(1);
/// Everything that answers requests is more urgent.
const NICE: i32 = 10;

/// What operators read about the registry. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Mlflow(Arc<Mutex<View>>);

/// A registry that is read but not followed yet.
#[derive(Debug)]
pub(crate) struct Follower {
    news: NewsReceiver,
    api: Api,
    memory: Memory,
    view: Mlflow,
    config: Config,
    reader: Reader,
}

/// The running thread.
#[derive(Debug)]
pub(crate) struct Stop {
    stop: Sender<()>,
    ended: Receiver<()>,
}

/// Opens the registry that the configuration names: as a source of versions, and what follows its aliases. `mirrored` is the directory into which versions of
/// sources are put. `None` where none is configured.
///
/// # Errors
/// When the authorities to trust cannot be read.
pub(crate) fn open(
    config: &Config,
    credentials: &Credentials,
    reader: &Reader,
    data_dir: &Path,
    mirrored: PathBuf,
) -> io::Result<Option<(Other, Follower)>> {
    let Some(uri) = &config.uri else { return Ok(None) };
    let (sender, receiver) = news();
    let make: Make = {
        let (uri, config, credentials, reader) = (uri.clone(), config.clone(), credentials.clone(), reader.clone());
        Box::new(move || {
            let (reader, mirrored, sender) = (reader.clone(), mirrored.clone(), sender.clone());
            let registry = Registry::new(&uri, &config, &credentials, reader, mirrored, sender);
            Ok(Box::new(registry.map_err(|error| Trouble::new(error.to_string()))?))
        })
    };
    let source = Other { name: format!("mlflow {uri}"), make };
    let api = Api::new(uri, config, credentials).map_err(io::Error::other)?;
    if uri.starts_with("http://") && credentials.are_there() {
        tracing::warn!("the credentials for MLflow cross the network in clear text: give it an address with https://");
    }
    let view = View { uri: Some(uri.clone()), promote_alias: config.promote_alias.clone(), models: Vec::new() };
    let follower = Follower {
        news: receiver,
        api,
        memory: Memory::read(data_dir, uri),
        view: Mlflow(Arc::new(Mutex::new(view))),
        config: config.clone(),
        reader: reader.clone(),
    };
    Ok(Some((source, follower)))
}

impl Mlflow {
    pub(crate) fn view(&self) -> View {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set(&self, change: impl FnOnce(&mut View)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Follower {
    /// Follows the registry on a thread of its own. `read_now` has it read at once.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub(crate) fn follow(
        self,
        handle: Handle,
        read_now: Box<dyn Fn() + Send>,
        telemetry: &Telemetry,
    ) -> io::Result<(Mlflow, Stop)> {
        let Follower { news, api, memory, view, config, reader } = self;
        let calls = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let mut following =
            Following::new((config, memory), api, view.clone(), reader, (handle, calls), read_now, telemetry);
        let (stop, stopping) = bounded(1);
        let (end, ended) = bounded(0);
        std::thread::Builder::new().name(ACTOR.to_owned()).spawn(move || {
            let _ends = end;
            lower_priority(ACTOR, NICE);
            run(&mut following, &news, &stopping);
        })?;
        Ok((view, Stop { stop, ended }))
    }
}

fn run(following: &mut Following, news: &NewsReceiver, stopping: &Receiver<()>) {
    loop {
        let pause = if following.waits() { LOOK } else { IDLE };
        crossbeam_channel::select! {
            recv(stopping) -> _ => return,
            recv(news.signal) -> signal => if signal.is_err() {
                // Nothing reads the registry any more.
                let _ = stopping.recv();
                return;
            },
            default(pause) => {}
        }
        // Without this thread no alias would ever be carried over again, so a panic must not end it.
        let news = news.take();
        let look = catch_unwind(AssertUnwindSafe(|| following.look(news)));
        if let Err(panic) = look {
            let message = crate::model::panic_message(&*panic);
            tracing::error!(message, "following MLflow panicked; it goes on in a minute");
            if !matches!(stopping.recv_timeout(AFTER_PANIC), Err(RecvTimeoutError::Timeout)) {
                return;
            }
        }
    }
}

impl Stop {
    /// Ends the thread. A tag that is being written is not waited for longer than this.
    pub(crate) fn stop(self, within: Duration) {
        let _ = self.stop.try_send(());
        // The thread drops its sender when it ends.
        let ended = self.ended.recv_timeout(within);
        if matches!(ended, Err(RecvTimeoutError::Timeout)) {
            tracing::debug!(
                "MLflow did not answer before the stop; what was not written is written after the next start"
            );
        }
    }
}
