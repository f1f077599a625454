//! Ends the process without tearing anything down.

use std::io::Write;

/// Ends the process at once, with this exit code.
///
/// A process that ends normally runs the destructors of its libraries while its threads still run. An engine whose thread is in a run or
/// in a load then works with what was freed, and the process dies by a signal instead of ending with its code. The system frees
/// everything anyway.
#[expect(unsafe_code, reason = "no safe function ends the process without running destructors")]
pub fn exit_now(code: u8) -> ! {
    let _ = std::io::stdout().flush();
    let _ = std::io::stderr().flush();
    // SAFETY: the call has no preconditions and does not return.
    unsafe { libc::_exit(i32::from(code)) }
}
