//! Makes an integer division that traps inside the engine's operators `Div` and `Mod` fail one run instead of ending the process.
//!
//! ONNX Runtime 1.31 checks both for a divisor of zero, but not for the smallest integer divided by -1. On x86-64 that division
//! raises SIGFPE; in older versions a zero does too. A value in one request must not end the process. So while the engine runs on
//! a thread, the signal handler skips the instruction with a quotient and a remainder of 0 and records the trap; the run's outputs
//! are then dropped and the run is refused. It costs nothing until a trap happens, works anywhere in the model (a branch of an
//! `If`, a function, a constant folded while loading), and refuses nothing that does not trap. On `AArch64` an integer division
//! never traps.
//!
//! Why this is sound: only instructions that `divisions.rs` has seen trap in `Div` and `Mod` are skipped. They divide one element of
//! a tensor by another, and a quotient of 0 with a remainder of 0 is what they compute for other elements. So the engine goes on in a
//! state that it reaches without a trap too. Anywhere else, such as in the computation of a size, a skipped division could lead the engine
//! to write beyond its memory: the signal ends the process there, and the supervisor starts it again.
//!
//! Other causes of SIGFPE (a fault elsewhere, an unmasked floating-point trap, `kill -FPE`) have the effect that they would
//! have without this file. `[engines] skip_divisions = false` switches it off.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering, compiler_fence};

/// The engine is not running on this thread: a trap is a bug in this program.
const IDLE: u8 = 0;
const ARMED: u8 = 1;
const TRAPPED: u8 = 2;
/// Every division is skipped, and its address is learned.
const LEARNING: u8 = 3;

/// The addresses of the instructions that are skipped; 0 is a free place. Far more than compilers make of two operators: what does not fit
/// is not skipped.
static LEARNED: [AtomicUsize; 256] = [const { AtomicUsize::new(0) }; 256];

static ENABLED: AtomicBool = AtomicBool::new(true);

/// Whether divisions that trap are skipped.
pub(super) fn set_enabled(enabled: bool) {
    ENABLED.store(enabled, Ordering::Relaxed);
}

pub(super) fn is_enabled() -> bool {
    ENABLED.load(Ordering::Relaxed)
}

thread_local! {
    // Initialised at compile time and without a destructor, so that a signal handler may read it.
    static STATE: AtomicU8 = const { AtomicU8::new(IDLE) };
}

/// A division trapped and was skipped: the outputs are wrong and must be dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Trapped;

/// Runs engine code. `Err` when an integer division trapped in it.
pub(super) fn guarded<T>(run: impl FnOnce() -> T) -> Result<T, Trapped> {
    if !is_enabled() {
        return Ok(run());
    }
    handler::install();
    set(ARMED);
    let disarm = Disarm;
    let out = run();
    // The handler runs on this thread, before this line. The fence keeps the compiler from loading earlier.
    compiler_fence(Ordering::SeqCst);
    let trapped = STATE.with(|s| s.load(Ordering::Relaxed)) == TRAPPED;
    drop(disarm);
    if trapped { Err(Trapped) } else { Ok(out) }
}

/// Runs code of the engine that is known to divide elements. Each division that traps in it is skipped here and in later runs.
pub(super) fn learning<T>(run: impl FnOnce() -> T) -> T {
    handler::install();
    set(LEARNING);
    let disarm = Disarm;
    let out = run();
    compiler_fence(Ordering::SeqCst);
    drop(disarm);
    out
}

/// Remembers an instruction. Returns false when there is no place left.
fn remember(address: usize) -> bool {
    LEARNED.iter().any(|place| {
        let before = place.compare_exchange(0, address, Ordering::Relaxed, Ordering::Relaxed);
        before.is_ok() || before == Err(address)
    })
}

fn is_learned(address: usize) -> bool {
    LEARNED
        .iter()
        .map(|place| place.load(Ordering::Relaxed))
        .take_while(|known| *known != 0)
        .any(|known| known == address)
}

/// Disarms when dropped, also on a panic.
struct Disarm;

impl Drop for Disarm {
    fn drop(&mut self) {
        set(IDLE);
    }
}

fn set(state: u8) {
    STATE.with(|s| s.store(state, Ordering::Relaxed));
    compiler_fence(Ordering::SeqCst);
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
mod handler {
    /// Does nothing: division does not trap here, or the handler is not written for this platform.
    pub(super) fn install() {}
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[expect(unsafe_code, reason = "a signal handler reads and writes the registers that the kernel saved")]
mod handler {
    use super::{ARMED, IDLE, LEARNING, STATE, TRAPPED, is_learned, remember};
    use std::mem::MaybeUninit;
    use std::sync::OnceLock;
    use std::sync::atomic::Ordering;

    /// The previous handler, for signals with another cause.
    static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

    /// `si_code` of an integer division that traps (`asm-generic/siginfo.h`); on x86-64 also for overflow.
    const FPE_INTDIV: libc::c_int = 1;

    // Register indices are small and positive.
    const RAX: usize = libc::REG_RAX.unsigned_abs() as usize;
    const RDX: usize = libc::REG_RDX.unsigned_abs() as usize;
    const RIP: usize = libc::REG_RIP.unsigned_abs() as usize;

    type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);

    pub(super) fn install() {
        BEFORE.get_or_init(|| {
            let on_trap: Handler = on_trap;
            // SAFETY: zeroed is a valid `sigaction` (no flags, an empty mask), and both pointers are to such structs.
            // The handler is async-signal-safe: it touches a const thread-local, atomic integers, the saved registers
            // and sigaction(2), and nothing else. sigaction(2) cannot fail for SIGFPE and valid pointers.
            unsafe {
                let mut before = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
                let mut action = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
                action.sa_sigaction = on_trap as libc::sighandler_t;
                action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
                libc::sigaction(libc::SIGFPE, &raw const action, &raw mut before);
                before
            }
        });
    }

    extern "C" fn on_trap(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
        let state = STATE.with(|s| s.load(Ordering::Relaxed));
        // SAFETY: the kernel passes valid pointers to a handler installed with SA_SIGINFO; the context is a
        // `ucontext_t`.
        unsafe {
            let code = (*info).si_code;
            if state != IDLE
                && code == FPE_INTDIV
                && skip_division(&mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs, state)
            {
                if state != LEARNING {
                    STATE.with(|s| s.store(TRAPPED, Ordering::Relaxed));
                }
                return;
            }
            // Another cause: restore the previous handler. A fault repeats at once and reaches it; a signal sent by
            // kill(2) (codes of 0 and below) has to be raised again.
            if let Some(before) = BEFORE.get() {
                libc::sigaction(signal, before, std::ptr::null_mut());
            }
            if code <= 0 {
                libc::raise(signal);
            }
        }
    }

    /// Continues after the division, with quotient and remainder 0. `false` when the instruction must not be skipped.
    ///
    /// # Safety
    /// The registers were saved at a fault, so that RIP points at the instruction that faulted.
    unsafe fn skip_division(registers: &mut [libc::greg_t], state: u8) -> bool {
        let Ok(address) = usize::try_from(registers[RIP]) else { return false };
        if state == LEARNING && !remember(address) || state != LEARNING && !is_learned(address) {
            return false;
        }
        let at = std::ptr::with_exposed_provenance::<u8>(address);
        // SAFETY: the processor has just read the whole instruction there, and `division` reads no byte past it.
        let Some(division) = super::decode::division(|i| unsafe { *at.add(i) }) else { return false };
        registers[RAX] = division.clear_rax(registers[RAX]);
        registers[RDX] = division.clear_rdx(registers[RDX]);
        registers[RIP] += i64::from(division.length);
        true
    }

    const _: () = assert!(ARMED != IDLE && TRAPPED != IDLE && LEARNING != IDLE);
}

/// Decodes an x86-64 integer division (Intel's manual, volume 2, `DIV` and `IDIV`: opcodes F6 and F7, /6 and /7).
#[cfg(any(test, all(target_os = "linux", target_arch = "x86_64")))]
mod decode {
    /// The length of the instruction, and how much of rax and rdx it writes.
    #[derive(Debug, PartialEq, Eq)]
    pub(super) struct Division {
        pub(super) length: u8,
        /// Operand size in bytes: 1, 2, 4 or 8.
        pub(super) width: u8,
    }

    impl Division {
        /// rax with a quotient of 0. Writing 32 bits clears the upper half; writing 8 or 16 bits keeps the rest.
        pub(super) fn clear_rax(&self, rax: i64) -> i64 {
            match self.width {
                1 | 2 => rax & !0xffff,
                _ => 0,
            }
        }

        /// rdx with a remainder of 0. The 8-bit form has its remainder in AH.
        pub(super) fn clear_rdx(&self, rdx: i64) -> i64 {
            match self.width {
                1 => rdx,
                2 => rdx & !0xffff,
                _ => 0,
            }
        }
    }

    /// `byte` returns the n-th byte of the instruction. It is not called past the end of the instruction.
    pub(super) fn division(byte: impl Fn(usize) -> u8) -> Option<Division> {
        let mut at = 0;
        let mut narrow = false;
        // Prefixes: operand size, address size, segments, repeat. An instruction has at most 15 bytes, a division at
        // least 2.
        while at < 13 && matches!(byte(at), 0x66 | 0x67 | 0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 | 0xf2 | 0xf3) {
            narrow |= byte(at) == 0x66;
            at += 1;
        }
        let mut wide = false;
        if byte(at) & 0xf0 == 0x40 {
            wide = byte(at) & 0x08 != 0;
            at += 1;
        }
        let width = match (byte(at), wide, narrow) {
            (0xf6, _, _) => 1,
            (0xf7, true, _) => 8,
            (0xf7, false, true) => 2,
            (0xf7, false, false) => 4,
            _ => return None,
        };
        let modrm = byte(at + 1);
        let (mode, operation, register) = (modrm >> 6, (modrm >> 3) & 7, modrm & 7);
        if operation != 6 && operation != 7 {
            return None;
        }
        let sib = mode != 3 && register == 4;
        let base = if sib { byte(at + 2) & 7 } else { register };
        let displacement = match mode {
            0 if base == 5 => 4,
            1 => 1,
            2 => 4,
            _ => 0,
        };
        let length = at + 2 + usize::from(sib) + displacement;
        Some(Division { length: u8::try_from(length).ok()?, width })
    }
}

#[cfg(test)]
mod tests {
    use super::decode::{Division, division};

    fn read(bytes: &[u8]) -> Option<Division> {
        division(|i| bytes[i])
    }

    #[test]
    fn divisions_are_decoded_to_their_last_byte() {
        // In the notation of `objdump -d`.
        let cases: &[(&[u8], u8, &str)] = &[
            (&[0xf7, 0xf9], 4, "idiv %ecx"),
            (&[0x48, 0xf7, 0xf9], 8, "idiv %rcx"),
            (&[0x49, 0xf7, 0xf8], 8, "idiv %r8"),
            (&[0x66, 0xf7, 0xf9], 2, "idiv %cx"),
            (&[0xf6, 0xf9], 1, "idiv %cl"),
            (&[0x41, 0xf6, 0xf0], 1, "div %r8b"),
            (&[0xf7, 0xf1], 4, "div %ecx"),
            (&[0x48, 0xf7, 0x3e], 8, "idivq (%rsi)"),
            (&[0xf7, 0x7e, 0x08], 4, "idivl 8(%rsi)"),
            (&[0xf7, 0xbe, 0, 1, 0, 0], 4, "idivl 256(%rsi)"),
            (&[0x48, 0xf7, 0x3c, 0xce], 8, "idivq (%rsi,%rcx,8)"),
            (&[0xf7, 0x7c, 0x24, 0x10], 4, "idivl 16(%rsp)"),
            (&[0x48, 0xf7, 0xbc, 0xce, 0, 1, 0, 0], 8, "idivq 256(%rsi,%rcx,8)"),
            (&[0xf7, 0x3c, 0x8d, 0, 1, 0, 0], 4, "idivl 256(,%rcx,4)"),
            (&[0xf7, 0x3d, 0, 1, 0, 0], 4, "idivl 256(%rip)"),
            (&[0x65, 0x66, 0x41, 0xf7, 0x79, 0x04], 2, "idivw %gs:4(%r9)"),
        ];
        for (bytes, width, spelled) in cases {
            let length = u8::try_from(bytes.len()).unwrap();
            assert_eq!(read(bytes), Some(Division { length, width: *width }), "{spelled}");
        }
    }

    #[test]
    fn other_instructions_are_not_divisions() {
        // test, not, neg, mul and imul share the opcodes. Then add, vdivps, and prefixes only.
        let cases: [&[u8]; 8] = [
            &[0xf7, 0xc1],
            &[0xf7, 0xd1],
            &[0xf7, 0xd9],
            &[0xf7, 0xe1],
            &[0xf7, 0xe9],
            &[0x01, 0xc8],
            &[0xc5, 0xf4, 0x5e],
            &[0x66; 15],
        ];
        for bytes in cases {
            assert_eq!(read(bytes), None, "{bytes:02x?}");
        }
    }

    #[test]
    fn register_parts_that_a_division_does_not_write_are_kept() {
        let all = |width| Division { length: 2, width };
        assert_eq!((all(8).clear_rax(-1), all(8).clear_rdx(-1)), (0, 0));
        assert_eq!((all(4).clear_rax(-1), all(4).clear_rdx(-1)), (0, 0));
        assert_eq!((all(2).clear_rax(-1), all(2).clear_rdx(-1)), (!0xffff, !0xffff));
        assert_eq!((all(1).clear_rax(-1), all(1).clear_rdx(-1)), (!0xffff, -1));
    }

    /// A division in assembler, so that Rust does not check it. Each use is an instruction of its own.
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    macro_rules! divide {
        ($name:ident) => {
            #[inline(never)]
            #[expect(unsafe_code, reason = "the division is written in assembler")]
            fn $name(dividend: i64, divisor: i64) -> (i64, i64) {
                let (quotient, remainder);
                // SAFETY: pure arithmetic; the tests handle the trap.
                unsafe {
                    std::arch::asm!(
                        "cqo", "idiv {d}",
                        d = in(reg) divisor, inout("rax") dividend => quotient, out("rdx") remainder,
                    );
                }
                (quotient, remainder)
            }
        };
    }

    #[test]
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    fn a_trap_at_a_learned_division_fails_the_run_it_happens_in() {
        use super::{Trapped, guarded, learning};
        divide!(divide);
        assert_eq!(learning(|| divide(7, 0)), (0, 0), "quotient and remainder are 0");
        assert_eq!(guarded(|| divide(7, 2)), Ok((3, 1)));
        assert_eq!(guarded(|| divide(7, 0)), Err(Trapped));
        assert_eq!(guarded(|| divide(i64::MIN, -1)), Err(Trapped));
        assert_eq!(guarded(|| [divide(1, 0), divide(2, 0)]), Err(Trapped));
        assert_eq!(guarded(|| divide(7, -1)), Ok((-7, 0)), "the next run is not affected");
    }

    /// Set in the process that divides.
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    const VARIABLE: &str = "SLUICEGATE_TEST_DIVISION";

    #[test]
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    fn a_trap_anywhere_else_ends_the_process() {
        use std::os::unix::process::ExitStatusExt as _;
        divide!(divide);
        if std::env::var_os(VARIABLE).is_some() {
            let _ = super::guarded(|| divide(7, 0));
            return;
        }
        let name = "backend::ort::trap::tests::a_trap_anywhere_else_ends_the_process";
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        let output = child.args([name, "--exact"]).env(VARIABLE, "1").output().unwrap();
        assert_eq!(output.status.signal(), Some(libc::SIGFPE), "{output:?}");
    }
}
