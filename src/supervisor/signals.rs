//! The parent waits for signals instead of handling them: they stay blocked, and are taken one at a time.

use std::mem::MaybeUninit;
use std::time::Duration;

/// What the parent reacts to. SIGTSTP is the terminal's Ctrl-Z.
const WAITED: [libc::c_int; 5] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGCHLD, libc::SIGTSTP];
/// What the child must not see before it has handlers for it.
const PASSED_ON: [libc::c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// Blocks the signals that [`wait`] takes. From here on none of them ends this process, also when it is process 1.
pub(super) fn block() {
    change(libc::SIG_BLOCK, &WAITED);
}

/// Blocks the signals that the parent passes on, in a child that has just been forked. Async-signal-safe.
pub(super) fn block_in_child() {
    change(libc::SIG_BLOCK, &PASSED_ON);
}

/// Lets the signals through that the parent blocked in its child. Called when the child has handlers for them.
pub fn unblock() {
    change(libc::SIG_UNBLOCK, &PASSED_ON);
}

/// Lets everything through that [`block`] blocked, in a parent that becomes the server itself.
pub(super) fn unblock_all() {
    change(libc::SIG_UNBLOCK, &WAITED);
}

/// Waits for a signal. `None` when the time is over, or when the wait was interrupted.
#[expect(unsafe_code, reason = "sigtimedwait(2) is called through the C library")]
pub(super) fn wait(timeout: Duration) -> Option<libc::c_int> {
    let set = set_of(&WAITED);
    let timeout = libc::timespec {
        tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: libc::c_long::from(timeout.subsec_nanos().cast_signed()),
    };
    // SAFETY: the pointers are to live values; a null siginfo is allowed.
    let signal = unsafe { libc::sigtimedwait(&raw const set, std::ptr::null_mut(), &raw const timeout) };
    (signal > 0).then_some(signal)
}

#[expect(unsafe_code, reason = "signal masks are changed through the C library")]
fn change(how: libc::c_int, signals: &[libc::c_int]) {
    let set = set_of(signals);
    // SAFETY: the pointers are valid or null. It fails only for an invalid `how`.
    unsafe { libc::pthread_sigmask(how, &raw const set, std::ptr::null_mut()) };
}

#[expect(unsafe_code, reason = "signal sets are made through the C library")]
fn set_of(signals: &[libc::c_int]) -> libc::sigset_t {
    // SAFETY: sigemptyset initialises the set. Both calls fail only for invalid numbers.
    unsafe {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigemptyset(set.as_mut_ptr());
        for signal in signals {
            libc::sigaddset(set.as_mut_ptr(), *signal);
        }
        set.assume_init()
    }
}
