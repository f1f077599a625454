//! machine: how many cores and how much memory this process may use, and has used.
//!
//! - [`Machine::detect`] reads the kernel's files once, at start: the cores this process may use, the memory of the machine, and the
//!   limits of the process's control groups (cgroup v1 and v2), and its own limit of address space. The smallest limit counts.
//! - It never fails: a file that cannot be read sets no limit, and the result says where each number comes from.
//! - [`exit_now`] ends the process while other threads are inside an engine.
//! - [`oom_kills`] counts the processes that the kernel's OOM killer has ended near this one.
//! - [`Available::now`] reads how much memory this process may still take.
//! - [`durable`] writes files that survive a power cut; [`lower_priority`] lets the calling thread run after all others.
//! - [`limit_allocations`] lets allocations fail that a control group cannot hold.
//! - [`keep_files_private`] sets who may read the files that the process creates.
//! - [`open_regular`] opens a file that other programs may have put there, without waiting for it.
//! - [`disk_space`] asks how much room a file system has.
//! - [`raise_open_files`] raises the soft limit on open files to the hard one. [`undelivered`] and [`unread`] ask the kernel about a socket.
//!
//! Uses: nothing.
//!
//! Invariant: detection only reads files of the kernel. Nothing here starts threads or keeps state.
//!
//! To add a source: a pure function over a file's text in `cgroup.rs`, and its use in [`Machine::read`].

mod available;
mod cgroup;
pub mod durable;
mod exit;
mod files;
mod own_memory;
mod priority;
mod socket;
#[cfg(test)]
mod tests;

pub use available::Available;
#[cfg(test)]
pub use available::Limit;
pub use exit::exit_now;
pub use files::{DiskSpace, OpenFiles, disk_space, keep_files_private, open_regular, raise_open_files};
pub use own_memory::limit_allocations;
#[cfg(target_os = "linux")]
pub use priority::lower_priority_of;
pub use priority::{lower_priority, run_on_idle_cores};
pub use socket::{undelivered, unread};

use std::fmt;
use std::path::Path;

/// The cores and the memory that this process may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    /// At least 1.
    pub cores: usize,
    pub cores_from: Source,
    pub memory_bytes: u64,
    pub memory_from: Source,
}

/// Where a number comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The whole machine.
    Machine,
    /// The cores that the process may run on (`taskset`, cpusets).
    Affinity,
    /// A control group: a container's limit.
    Cgroup,
    /// The process's own limit (`ulimit -v`, `prlimit --as`).
    Process,
    /// No file could be read.
    Guess,
}

/// The memory that is assumed when the kernel reports none.
const GUESSED_MEMORY: u64 = 2 << 30;

/// How many processes of this process's control group the kernel's OOM killer has ended. Where no control group counts them, those of the
/// whole machine; 0 where nothing does.
#[must_use]
pub fn oom_kills() -> u64 {
    oom_kills_under(Path::new("/"))
}

fn oom_kills_under(root: &Path) -> u64 {
    let text = |path: &str| std::fs::read_to_string(root.join(path)).ok();
    let of_group = text("proc/self/cgroup").and_then(|membership| cgroup::oom_kills(root, &membership));
    of_group.or_else(|| cgroup::count_after("oom_kill", &text("proc/vmstat")?)).unwrap_or(0)
}

impl Machine {
    /// Reads the kernel's files.
    #[must_use]
    pub fn detect() -> Machine {
        let all = std::thread::available_parallelism().map_or(1, usize::from);
        // The call fails on machines with more cores than its set can hold; then the standard library's count is used.
        let allowed = rustix::thread::sched_getaffinity(None).map_or(all, |set| set.count() as usize);
        Machine::read(Path::new("/"), allowed)
    }

    /// Reads the files under `root`, for a process that may run on `allowed` cores.
    fn read(root: &Path, allowed: usize) -> Machine {
        let text = |path: &str| std::fs::read_to_string(root.join(path)).ok();
        let present = text("proc/cpuinfo").map(|t| cgroup::processors(&t)).filter(|n| *n > 0);
        let limits = cgroup::Limits::read(root, &text("proc/self/cgroup").unwrap_or_default());

        let mut cores = allowed.max(1);
        let mut cores_from = if present.is_some_and(|n| cores < n) { Source::Affinity } else { Source::Machine };
        if let Some(quota) = limits.cores.filter(|quota| *quota < cores) {
            (cores, cores_from) = (quota, Source::Cgroup);
        }
        let total = text("proc/meminfo").and_then(|t| cgroup::memory_total(&t));
        let (memory_bytes, memory_from) = match (total, limits.memory) {
            (Some(total), Some(limit)) if limit < total => (limit, Source::Cgroup),
            (Some(total), _) => (total, Source::Machine),
            (None, Some(limit)) => (limit, Source::Cgroup),
            (None, None) => (GUESSED_MEMORY, Source::Guess),
        };
        let own = text("proc/self/limits").and_then(|t| cgroup::address_space(&t)).filter(|own| *own < memory_bytes);
        let (memory_bytes, memory_from) = own.map_or((memory_bytes, memory_from), |own| (own, Source::Process));
        Machine { cores, cores_from, memory_bytes, memory_from }
    }
}

/// A line for the log at start: `2 cores (the machine's), 23.5 GiB of memory (the control group's)`.
impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Machine { cores, cores_from, memory_bytes, memory_from } = self;
        let plural = if *cores == 1 { "" } else { "s" };
        let gib = *memory_bytes as f64 / f64::from(1 << 30);
        write!(f, "{cores} core{plural} ({cores_from}), {gib:.1} GiB of memory ({memory_from})")
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Source::Machine => "the machine's",
            Source::Affinity => "the process's affinity",
            Source::Cgroup => "the control group's",
            Source::Process => "the process's limit",
            Source::Guess => "assumed: the kernel does not report it",
        })
    }
}

/// Resident memory of this process, in bytes. `None` when the kernel does not report it.
#[must_use]
pub fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

/// Processor time used by the calling thread.
#[must_use]
pub fn thread_time() -> std::time::Duration {
    processor_time(rustix::time::ClockId::ThreadCPUTime)
}

/// How long the calling thread has waited for a core since it was started, although it could have run: other threads had the cores, or the quota
/// of the control group was used up. `None` where the kernel does not count it. Reading it takes a few microseconds.
#[must_use]
pub fn run_delay() -> Option<std::time::Duration> {
    // "time on a core, time waiting for a core, time slices", in nanoseconds
    // (<https://docs.kernel.org/scheduler/sched-stats.html>).
    let counts = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    counts.split_ascii_whitespace().nth(1)?.parse().ok().map(std::time::Duration::from_nanos)
}

/// Processor time used by all threads of this process.
#[must_use]
pub fn process_time() -> std::time::Duration {
    processor_time(rustix::time::ClockId::ProcessCPUTime)
}

fn processor_time(of: rustix::time::ClockId) -> std::time::Duration {
    let time = rustix::time::clock_gettime(of);
    // Both clocks are never negative, and the nanoseconds are less than a second.
    std::time::Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}
