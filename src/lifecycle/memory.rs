//! The memory budget, and giving memory back.

use std::fmt;

/// How many bytes of model files may be loaded together.
///
/// Files stand for memory: engines hold the weights once, about as large as on disk, and what they need beside them is not
/// known before they are loaded.
#[derive(Debug)]
pub struct Budget {
    limit: u64,
    used: u64,
}

/// There is not enough left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLarge {
    pub wanted: u64,
    pub used: u64,
    pub limit: u64,
}

impl Budget {
    #[must_use]
    pub fn new(limit: u64) -> Budget {
        Budget { limit, used: 0 }
    }

    /// Takes bytes, to be given back by [`Budget::give_back`].
    ///
    /// # Errors
    /// The numbers, when there is not enough left; nothing is taken then.
    pub fn take(&mut self, wanted: u64) -> Result<(), TooLarge> {
        match self.used.checked_add(wanted).filter(|sum| *sum <= self.limit) {
            Some(sum) => {
                self.used = sum;
                Ok(())
            }
            None => Err(TooLarge { wanted, used: self.used, limit: self.limit }),
        }
    }

    pub fn give_back(&mut self, bytes: u64) {
        self.used = self.used.saturating_sub(bytes);
    }

    /// What is missing for `wanted` bytes to fit; 0 when they do.
    #[must_use]
    pub fn missing(&self, wanted: u64) -> u64 {
        self.used.saturating_add(wanted).saturating_sub(self.limit)
    }
}

impl fmt::Display for TooLarge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TooLarge { wanted, used, limit } = self;
        write!(
            f,
            "its files hold {wanted} bytes, but {used} of the memory budget of {limit} bytes are taken by versions that \
             are loaded; unload one, or raise models.memory_budget"
        )
    }
}

/// Gives the heap's free pages back to the system, which glibc keeps otherwise.
///
/// Measured: three dropped sessions of ONNX Runtime left 169 MB resident, and this brought it down to 34 MB.
pub fn trim() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        #[expect(unsafe_code, reason = "malloc_trim has no safe wrapper")]
        // SAFETY: takes no pointer, is thread-safe (glibc's manual: MT-Safe), and frees only pages no allocation lies in.
        unsafe {
            libc::malloc_trim(0);
        }
    }
}

/// Resident memory of this process in bytes, as the kernel has it; `None` where it does not say.
#[must_use]
pub fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}
