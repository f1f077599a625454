//! Writes the signal that ends the process into the region.
//!
//! The handlers change nothing about how the process ends. A fault is repeated under the handler from before, which for Rust's own handler
//! reports a stack overflow. A signal that a process sent is raised again with its default action.

use super::region::{self, Death};
use super::thread;
use std::mem::MaybeUninit;
use std::sync::OnceLock;
use std::sync::atomic::Ordering;

/// The signals whose default action ends the process because of an error in it.
const SIGNALS: [libc::c_int; 7] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT, libc::SIGTRAP, libc::SIGSYS];

/// The handlers from before, in the order of [`SIGNALS`].
static BEFORE: [OnceLock<libc::sigaction>; SIGNALS.len()] = [const { OnceLock::new() }; SIGNALS.len()];

type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);

/// Installs the handlers, once per process.
#[expect(unsafe_code, reason = "signal handlers are installed through the C library")]
pub fn catch_signals() {
    for (signal, before) in SIGNALS.iter().zip(&BEFORE) {
        before.get_or_init(|| {
            let handler: Handler = on_signal;
            // SAFETY: zeroed is a valid `sigaction` (no flags, an empty mask), and both pointers are to such structs.
            // The handler is async-signal-safe: see there. sigaction(2) cannot fail for these signals and valid pointers.
            unsafe {
                let mut old = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
                let mut new = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
                new.sa_sigaction = handler as libc::sighandler_t;
                // On the alternative stack, which each thread of the standard library has: the usual one may be used up.
                new.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
                libc::sigaction(*signal, &raw const new, &raw mut old);
                old
            }
        });
    }
}

/// It reads initialised statics, writes atomic integers, and calls gettid(2), sigaction(2) and raise(3). All of
/// these are async-signal-safe.
#[expect(unsafe_code, reason = "a signal handler reads what the kernel passes to it")]
extern "C" fn on_signal(signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid pointer to a handler installed with SA_SIGINFO.
    let (code, sender) = unsafe { ((*info).si_code, if (*info).si_code <= 0 { (*info).si_pid() } else { 0 }) };
    if let Some(region) = region::installed() {
        record(&region.layout().death, signal, code, sender);
    }
    let at = SIGNALS.iter().position(|known| *known == signal);
    let before = at.and_then(|at| BEFORE[at].get()).filter(|_| code > 0);
    // SAFETY: zeroed is a valid `sigaction`, with the default action; the pointers are valid or null.
    unsafe {
        let default = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
        libc::sigaction(signal, std::ptr::from_ref(before.unwrap_or(&default)), std::ptr::null_mut());
        if code <= 0 {
            libc::raise(signal);
        }
    }
}

fn record(death: &Death, signal: libc::c_int, code: libc::c_int, sender: libc::c_int) {
    if death.claimed.compare_exchange(0, 1, Ordering::Relaxed, Ordering::Relaxed).is_err() {
        return;
    }
    death.signal.store(signal, Ordering::Relaxed);
    death.code.store(code, Ordering::Relaxed);
    death.sender.store(sender, Ordering::Relaxed);
    death.thread.store(thread::system_id(), Ordering::Relaxed);
    death.complete.store(1, Ordering::Release);
}
