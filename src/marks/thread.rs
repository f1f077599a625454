//! The mark of the calling thread.

use super::region;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, compiler_fence};

thread_local! {
    // Initialised at compile time and without a destructor, so that reading it is one instruction.
    static CELL: std::cell::Cell<Option<&'static region::Cell>> = const { std::cell::Cell::new(None) };
    static OWNED: std::cell::Cell<Option<Owned>> = const { std::cell::Cell::new(None) };
}

/// For threads that find all cells taken. Their marks overwrite each other and are never read.
static SHARED: region::Cell = region::Cell {
    mark: AtomicU64::new(0),
    thread: AtomicU32::new(0),
    name: [const { AtomicU8::new(0) }; 16],
    inputs: AtomicUsize::new(0),
};

/// A thread inside an engine. Dropping it restores the mark from before.
#[derive(Debug)]
pub struct Inside {
    cell: &'static region::Cell,
    before: u64,
    /// It belongs to one thread.
    _not_send: PhantomData<*const ()>,
}

#[inline]
pub(super) fn enter(mark: u64) -> Inside {
    let cell = this_cell();
    let before = cell.mark.load(Ordering::Relaxed);
    if before == 0 {
        cell.mark.store(mark, Ordering::Relaxed);
    }
    // Keeps the compiler from moving the call into the engine before the store. The processor needs no fence: another
    // process reads the mark, after this one has ended.
    compiler_fence(Ordering::SeqCst);
    Inside { cell, before, _not_send: PhantomData }
}

impl Drop for Inside {
    #[inline]
    fn drop(&mut self) {
        compiler_fence(Ordering::SeqCst);
        self.cell.mark.store(self.before, Ordering::Relaxed);
    }
}

#[inline]
pub(super) fn this_cell() -> &'static region::Cell {
    CELL.try_with(std::cell::Cell::get).ok().flatten().unwrap_or_else(claim)
}

#[cold]
fn claim() -> &'static region::Cell {
    let thread = std::thread::current();
    let claimed = region::current().claim_cell(system_id(), thread.name().unwrap_or_default());
    let cell = claimed.unwrap_or(&SHARED);
    // Fails only while the thread ends.
    let remembered = CELL.try_with(|current| current.set(Some(cell))).is_ok();
    if claimed.is_some() && (!remembered || OWNED.try_with(|owned| owned.set(Some(Owned(cell)))).is_err()) {
        drop(Owned(cell));
        return &SHARED;
    }
    cell
}

/// Frees the cell when the thread ends.
struct Owned(&'static region::Cell);

impl Drop for Owned {
    fn drop(&mut self) {
        let _ = CELL.try_with(|current| current.set(Some(&SHARED)));
        self.0.mark.store(0, Ordering::Relaxed);
        self.0.inputs.store(0, Ordering::Relaxed);
        self.0.thread.store(0, Ordering::Relaxed);
    }
}

/// The id of this thread for the system.
pub(super) fn system_id() -> u32 {
    #[cfg(target_os = "linux")]
    {
        rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs()
    }
    #[cfg(not(target_os = "linux"))]
    {
        // Only tells a cell in use from a free one.
        std::process::id()
    }
}
