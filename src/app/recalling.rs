//! The thread that reads the history of outcomes from the log after a start.

use crate::dataset;
use crate::quality::History;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Stops the thread.
#[derive(Debug)]
pub(super) struct Recalling(Arc<AtomicBool>);

/// Of the thread: threads that answer requests run first.
const NICENESS: i32 = 19;

impl Recalling {
    /// Starts the thread. The start of the server does not wait for it.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub(super) fn start(data: PathBuf, history: History) -> io::Result<Recalling> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        history.set_reading(true);
        std::thread::Builder::new().name("history".to_owned()).spawn(move || {
            crate::machine::lower_priority("history", NICENESS);
            let begun = Instant::now();
            let go_on = || !stopped.load(Ordering::Acquire);
            match dataset::recall(&data, &history, crate::record::now(), &go_on) {
                Ok(()) => tracing::debug!(elapsed = ?begun.elapsed(), bytes = history.bytes(), "the history of outcomes was read"),
                Err(error) => tracing::warn!(%error, "a part of the history of outcomes cannot be read; figures over windows and experiments lack it"),
            }
            history.set_reading(false);
        })?;
        Ok(Recalling(stop))
    }

    pub(super) fn stop(&self) {
        self.0.store(true, Ordering::Release);
    }
}
