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
