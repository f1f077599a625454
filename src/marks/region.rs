//! The memory that the marks are written to, and its layout.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicI32, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

/// A mark is the number of a name, shifted by this, and a kind. 0: not inside an engine.
pub(super) const KIND_BITS: u32 = 8;

/// Threads that can be marked at the same time. More than a server starts: the limit on I/O threads is 1024.
const CELLS: usize = 4096;
/// Versions that can be named at the same time.
const NAMES: usize = 1 << 14;
const MAX_MODEL: usize = 128;
const MAX_THREAD_NAME: usize = 16;
/// The largest message from the parent to the child.
const MAX_MESSAGE: usize = 1 << 18;
/// Changes with the layout, so that a process never reads a region of another program.
const MAGIC: u64 = 0x736c_6763_6174_6501;

/// The region. All fields are atomic integers: every content is valid, and both processes may hold shared references.
#[repr(C)]
pub(super) struct Layout {
    magic: AtomicU64,
    /// The bytes for inputs behind each cell; 0 keeps none.
    input_bytes: AtomicUsize,
    /// Written by the child: how many reports in the message it has stored.
    pub(super) stored: AtomicUsize,
    /// Written by the child: how long a stop may take, in milliseconds.
    pub(super) stop_within: AtomicU64,
    pub(super) death: Death,
    message_length: AtomicUsize,
    /// Names that were ever in use.
    names_used: AtomicUsize,
    cells_used: AtomicUsize,
    pub(super) cells: [Cell; CELLS],
    names: [Name; NAMES],
    message: [AtomicU8; MAX_MESSAGE],
}

/// What the signal handler of the dying thread writes.
#[repr(C)]
pub(super) struct Death {
    /// The first dying thread claims the fields below.
    pub(super) claimed: AtomicU32,
    /// 1 when the fields below are complete.
    pub(super) complete: AtomicU32,
    pub(super) signal: AtomicI32,
    /// `si_code`: 0 and below for a signal that a process sent.
    pub(super) code: AtomicI32,
    /// The process that sent the signal, where one did.
    pub(super) sender: AtomicI32,
    pub(super) thread: AtomicU32,
}

/// One thread, alone on its cache line.
#[derive(Debug)]
#[repr(C, align(64))]
pub(super) struct Cell {
    pub(super) mark: AtomicU64,
    /// The thread's id for the system; 0 while the cell is free.
    pub(super) thread: AtomicU32,
    pub(super) name: [AtomicU8; MAX_THREAD_NAME],
    /// The bytes of the inputs that are kept for the run in progress.
    pub(super) inputs: AtomicUsize,
}

/// One version.
#[repr(C)]
pub(super) struct Name {
    /// 0 while the entry is free.
    version: AtomicU64,
    model_length: AtomicU32,
    artifact_length: AtomicU32,
    model: [AtomicU8; MAX_MODEL],
    artifact: [AtomicU8; Region::MAX_ARTIFACT],
}

/// Memory for the marks of one process, and the inputs of its runs. Never unmapped, because threads hold references into it.
#[derive(Debug)]
pub struct Region {
    layout: &'static Layout,
    /// `input_bytes` for each cell.
    inputs: &'static [AtomicU8],
    file: Option<OwnedFd>,
    /// Entries of the table of names that were used and are free again.
    free_names: Mutex<Vec<usize>>,
}

static CURRENT: OnceLock<Region> = OnceLock::new();

/// Uses a region for the marks of this process. Must be called before any version is loaded.
///
/// # Errors
/// When marks were made before, or the file is not a region of this program.
pub fn install(file: OwnedFd) -> io::Result<&'static Region> {
    let region = Region::open(file)?;
    CURRENT.set(region).map_err(|_| io::Error::other("marks were made before the region was installed"))?;
    Ok(current())
}

/// The region of this process; private memory where none was installed.
pub(super) fn current() -> &'static Region {
    CURRENT.get_or_init(Region::private)
}

/// The region of this process, if it is in use. Does not make one, so that a signal handler may call it.
pub(super) fn installed() -> Option<&'static Region> {
    CURRENT.get()
}

impl Region {
    /// The longest text that identifies a version's files: a SHA-256 in hexadecimal.
    pub const MAX_ARTIFACT: usize = 64;

    /// Makes a region that a child process can share, with room for `input_bytes` of inputs for each thread.
    ///
    /// # Errors
    /// When the system has no memory for it, or does not know memory files.
    #[cfg(target_os = "linux")]
    pub fn create(input_bytes: usize) -> io::Result<Region> {
        let file = rustix::fs::memfd_create("sluicegate-marks", rustix::fs::MemfdFlags::CLOEXEC)?;
        let size = size_with(input_bytes).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        rustix::fs::ftruncate(&file, size as u64)?;
        let region = Region::map(Some(file), size)?;
        region.layout.magic.store(MAGIC, Ordering::Relaxed);
        region.layout.input_bytes.store(input_bytes, Ordering::Relaxed);
        Ok(Region { inputs: region.inputs_of(input_bytes), ..region })
    }

    /// Maps a region that another process made.
    fn open(file: OwnedFd) -> io::Result<Region> {
        let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let size = rustix::fs::fstat(&file)?.st_size;
        let size = usize::try_from(size).map_err(|_| wrong("the size of the region is negative"))?;
        if size < size_of::<Layout>() {
            return Err(wrong("the region is too small"));
        }
        let region = Region::map(Some(file), size)?;
        let input_bytes = region.layout.input_bytes.load(Ordering::Relaxed);
        if region.layout.magic.load(Ordering::Relaxed) != MAGIC || size_with(input_bytes) != Some(size) {
            return Err(wrong("the region was made by another program"));
        }
        Ok(Region { inputs: region.inputs_of(input_bytes), ..region })
    }

    /// Memory of this process alone. If the system has none left, marks go nowhere.
    fn private() -> Region {
        Region::map(None, size_of::<Layout>()).unwrap_or_else(|error| {
            // 5 MiB of address space, of which few pages are used.
            panic!("cannot reserve memory for marks: {error}")
        })
    }

    #[expect(unsafe_code, reason = "memory that two processes share cannot be a Rust allocation")]
    fn map(file: Option<OwnedFd>, size: usize) -> io::Result<Region> {
        use std::os::fd::AsRawFd as _;
        let (flags, fd) = match &file {
            Some(file) => (libc::MAP_SHARED, file.as_raw_fd()),
            None => (libc::MAP_PRIVATE | libc::MAP_ANON, -1),
        };
        // SAFETY: a new mapping at an address that the system chooses; it overlaps nothing.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size,
                libc::PROT_READ | libc::PROT_WRITE,
                flags | libc::MAP_NORESERVE,
                fd,
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the mapping is at least as large as `Layout`, aligned to a page, and never unmapped. `Layout` holds only
        // atomic integers, for which every content is valid, also one that another process wrote.
        let layout = unsafe { &*at.cast::<Layout>() };
        Ok(Region { layout, inputs: &[], file, free_names: Mutex::new(Vec::new()) })
    }

    /// The inputs behind the layout. The mapping must have been made with this many bytes for each cell.
    #[expect(unsafe_code, reason = "the second part of the mapping has a size that is known at run time")]
    fn inputs_of(&self, input_bytes: usize) -> &'static [AtomicU8] {
        let after = std::ptr::from_ref(self.layout).wrapping_add(1).cast::<AtomicU8>();
        // SAFETY: `create` and `open` mapped `size_with(input_bytes)` bytes: the layout, and these behind it. They are never
        // unmapped, and atomic bytes are valid with any content.
        unsafe { std::slice::from_raw_parts(after, input_bytes * CELLS) }
    }

    #[cfg(test)]
    pub(super) fn private_for_tests() -> Region {
        Region::private()
    }

    #[cfg(test)]
    pub(super) fn open_for_tests(file: OwnedFd) -> io::Result<Region> {
        Region::open(file)
    }

    pub(super) fn layout(&self) -> &'static Layout {
        self.layout
    }

    /// The descriptor to hand to a child process. `None` for private memory.
    #[must_use]
    pub fn file(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(AsFd::as_fd)
    }

    /// Forgets the marks and the death of a process that has ended, for the next one.
    pub fn clear(&self) {
        let layout = self.layout;
        for cell in &layout.cells[..layout.cells_used.load(Ordering::Relaxed).min(CELLS)] {
            cell.mark.store(0, Ordering::Relaxed);
            cell.inputs.store(0, Ordering::Relaxed);
            cell.thread.store(0, Ordering::Relaxed);
        }
        for name in &layout.names[..layout.names_used.load(Ordering::Relaxed).min(NAMES)] {
            name.version.store(0, Ordering::Relaxed);
        }
        let counts = [&layout.cells_used, &layout.names_used, &layout.stored];
        for count in counts {
            count.store(0, Ordering::Relaxed);
        }
        layout.stop_within.store(0, Ordering::Relaxed);
        layout.death.claimed.store(0, Ordering::Relaxed);
        layout.death.complete.store(0, Ordering::Relaxed);
    }

    // === between parent and child ===

    /// Gives the child a text. Returns whether it fits.
    pub fn set_message(&self, text: &str) -> bool {
        let fits = text.len() <= MAX_MESSAGE;
        let written = if fits { text.len() } else { 0 };
        write_bytes(&self.layout.message, &text.as_bytes()[..written]);
        self.layout.message_length.store(written, Ordering::Release);
        fits
    }

    /// The text from the parent.
    #[must_use]
    pub fn message(&self) -> String {
        let length = self.layout.message_length.load(Ordering::Acquire).min(MAX_MESSAGE);
        String::from_utf8_lossy(&read_bytes(&self.layout.message[..length])).into_owned()
    }

    /// Tells the parent how many of its reports are stored.
    pub fn set_stored(&self, reports: usize) {
        self.layout.stored.store(reports, Ordering::Release);
    }

    #[must_use]
    pub fn stored(&self) -> usize {
        self.layout.stored.load(Ordering::Acquire)
    }

    /// Tells the parent how long a stop may take.
    pub fn set_stop_within(&self, time: std::time::Duration) {
        self.layout.stop_within.store(u64::try_from(time.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// `None` until the child has told it.
    #[must_use]
    pub fn stop_within(&self) -> Option<std::time::Duration> {
        let millis = self.layout.stop_within.load(Ordering::Relaxed);
        (millis > 0).then(|| std::time::Duration::from_millis(millis))
    }

    // === threads ===

    /// A free cell, marked with a thread's id and name.
    pub(super) fn claim_cell(&self, thread: u32, name: &str) -> Option<&'static Cell> {
        let layout = self.layout;
        let free = |cell: &&Cell| cell.thread.compare_exchange(0, thread, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        let index = layout.cells.iter().position(|cell| free(&cell))?;
        layout.cells_used.fetch_max(index + 1, Ordering::Relaxed);
        let cell = &layout.cells[index];
        cell.name.iter().for_each(|byte| byte.store(0, Ordering::Relaxed));
        write_bytes(&cell.name, &name.as_bytes()[..name.len().min(MAX_THREAD_NAME)]);
        Some(cell)
    }

    /// The cells that were in use.
    pub(super) fn cells(&self) -> &'static [Cell] {
        &self.layout.cells[..self.layout.cells_used.load(Ordering::Acquire).min(CELLS)]
    }

    /// The part of the region for the inputs of one cell. Empty where inputs are not kept.
    pub(super) fn inputs_of_cell(&self, cell: &Cell) -> &'static [AtomicU8] {
        let input_bytes = self.inputs.len() / CELLS;
        let first = std::ptr::from_ref(&self.layout.cells[0]).addr();
        let index = (std::ptr::from_ref(cell).addr().wrapping_sub(first)) / size_of::<Cell>();
        self.inputs.get(index * input_bytes..(index + 1) * input_bytes).unwrap_or_default()
    }

    /// Whether runs copy their inputs.
    pub(super) fn keeps_inputs(&self) -> bool {
        !self.inputs.is_empty()
    }

    // === names ===

    /// Returns the number of the entry. `None` when the table is full, or a text is too long.
    pub(super) fn add_name(&self, model: &str, version: u64, artifact: &str) -> Option<usize> {
        if model.len() > MAX_MODEL || artifact.len() > Region::MAX_ARTIFACT {
            return None;
        }
        let mut free = self.free_names.lock().unwrap_or_else(PoisonError::into_inner);
        let index = if let Some(index) = free.pop() {
            index
        } else {
            let next = self.layout.names_used.load(Ordering::Relaxed);
            if next >= NAMES {
                return None;
            }
            self.layout.names_used.store(next + 1, Ordering::Relaxed);
            next
        };
        let name = &self.layout.names[index];
        for (bytes, length, text) in
            [(&name.model[..], &name.model_length, model), (&name.artifact[..], &name.artifact_length, artifact)]
        {
            write_bytes(bytes, text.as_bytes());
            length.store(u32::try_from(text.len()).unwrap_or(0), Ordering::Relaxed);
        }
        name.version.store(version, Ordering::Release);
        Some(index)
    }

    pub(super) fn free_name(&self, index: usize) {
        self.layout.names[index].version.store(0, Ordering::Relaxed);
        self.free_names.lock().unwrap_or_else(PoisonError::into_inner).push(index);
    }

    /// Model, version and artifact of an entry that is in use.
    pub(super) fn name(&self, index: usize) -> Option<(String, u64, String)> {
        let name = self.layout.names.get(index)?;
        let version = name.version.load(Ordering::Acquire);
        let text = |bytes: &[AtomicU8], length: &AtomicU32| {
            let length = (length.load(Ordering::Relaxed) as usize).min(bytes.len());
            String::from_utf8(read_bytes(&bytes[..length])).ok()
        };
        let (model, artifact) = (text(&name.model, &name.model_length)?, text(&name.artifact, &name.artifact_length)?);
        (version > 0).then_some((model, version, artifact))
    }
}

fn size_with(input_bytes: usize) -> Option<usize> {
    input_bytes.checked_mul(CELLS)?.checked_add(size_of::<Layout>()).filter(|size| *size <= isize::MAX.unsigned_abs())
}

pub(super) fn write_bytes(to: &[AtomicU8], from: &[u8]) {
    for (to, from) in to.iter().zip(from) {
        to.store(*from, Ordering::Relaxed);
    }
}

pub(super) fn read_bytes(from: &[AtomicU8]) -> Vec<u8> {
    from.iter().map(|byte| byte.load(Ordering::Relaxed)).collect()
}

impl std::fmt::Debug for Layout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Layout").finish_non_exhaustive()
    }
}
