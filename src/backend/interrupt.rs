//! Asks an engine to end a run, from another thread.

use ort::Error;
use ort::session::RunOptions;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering, fence};

/// One thread's flag, passed to every run on that thread. While it is set, an engine ends its run with
/// [`super::RunError::Interrupted`] as soon as it looks at it: ONNX Runtime and tract look before every node of the graph, ONNX Runtime
/// also in each iteration of a loop. A single node that takes long is not ended.
#[derive(Default)]
pub struct Interrupt {
    requested: AtomicBool,
    /// ONNX Runtime's own flag, made by the first run of that engine on this thread. Kept, because making one allocates.
    ort: OnceLock<RunOptions>,
}

impl std::fmt::Debug for Interrupt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Interrupt").field("requested", &self.requested).finish_non_exhaustive()
    }
}

impl Interrupt {
    #[must_use]
    pub fn new() -> Interrupt {
        Interrupt::default()
    }

    /// Asks the run in progress, and every run until [`Interrupt::clear`], to end. Called by any thread.
    pub fn request(&self) {
        self.requested.store(true, Ordering::Relaxed);
        // Pairs with the fence in `ort_options`: either that thread sees the request, or this one sees its options.
        fence(Ordering::SeqCst);
        if let Some(options) = self.ort.get() {
            // The call only sets a flag and cannot fail for options that exist.
            let _ = options.terminate();
        }
    }

    #[must_use]
    pub fn is_requested(&self) -> bool {
        self.requested.load(Ordering::Relaxed)
    }

    /// Takes the request back, after the run has ended.
    pub fn clear(&self) {
        self.requested.store(false, Ordering::Relaxed);
        if let Some(options) = self.ort.get() {
            let _ = options.unterminate();
        }
    }

    /// The options to pass to a run of ONNX Runtime. A request that came before they existed has to be read from
    /// [`Interrupt::is_requested`] afterwards.
    ///
    /// # Errors
    /// When the engine cannot make them.
    pub(super) fn ort_options(&self) -> Result<&RunOptions, Error> {
        if let Some(options) = self.ort.get() {
            return Ok(options);
        }
        let made = RunOptions::new()?;
        let options = self.ort.get_or_init(|| made);
        fence(Ordering::SeqCst);
        Ok(options)
    }
}
