//! Lower scheduling priority for background threads.

/// Sets the nice value of the calling thread, so that threads that answer requests run first.
///
/// `thread` is the thread's name in the log. A failure is only logged.
pub fn lower_priority(thread: &str, nice: i32) {
    // On Linux the call changes only the calling thread. Elsewhere it would slow the whole process.
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::setpriority_process(None, nice) {
        tracing::debug!(%error, "the thread {thread} keeps its priority");
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (thread, nice);
}

/// Like [`lower_priority`], for another thread of this process.
#[cfg(target_os = "linux")]
pub fn lower_priority_of(id: rustix::process::Pid, thread: &str, nice: i32) {
    if let Err(error) = rustix::process::setpriority_process(Some(id), nice) {
        tracing::debug!(%error, "the thread {thread} keeps its priority");
    }
}

/// Asks the system to run the calling thread only on idle cores. A merely nice thread would delay a caller's thread that wakes up, and make its core
/// look taken. `thread` is the thread's name in the log.
pub fn run_on_idle_cores(thread: &str) {
    #[cfg(target_os = "linux")]
    {
        use thread_priority::{NormalThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy};
        let policy = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle);
        let id = thread_priority::thread_native_id();
        if let Err(error) = thread_priority::set_thread_priority_and_policy(id, ThreadPriority::Min, policy) {
            tracing::warn!(?error, "the thread {thread} runs at normal priority: its priority could not be lowered");
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = thread;
}
