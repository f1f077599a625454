//! The memory budget, and returning freed memory to the system.

use crate::machine::Available;
use std::fmt;

/// Files up to this size are not counted twice while they are loaded: what an engine needs beside the weights is more then, and the
/// part of the memory that is not in the budget has room for it.
const PEAK_MATTERS: u64 = 16 << 20;

/// The sizes of a version's files, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct FileBytes {
    pub all: u64,
    /// Of `model.onnx`.
    pub model: u64,
}

impl FileBytes {
    /// A single file.
    #[must_use]
    pub(super) fn of_model(bytes: u64) -> FileBytes {
        FileBytes { all: bytes, model: bytes }
    }

    /// The memory that the load takes at its peak. Afterwards the version takes about the size of its files.
    ///
    /// Measured with ONNX Runtime (`backend::conformance::memory` checks it): weights inside `model.onnx` are in the parsed file and in
    /// the session at the same time, so twice; weights beside it are in the file's bytes too, so three times.
    #[must_use]
    pub(super) fn peak(self) -> u64 {
        let beside = self.all.saturating_sub(self.model);
        let inside = self.all - beside;
        if self.all > PEAK_MATTERS {
            inside.saturating_mul(2).saturating_add(beside.saturating_mul(3))
        } else {
            self.all
        }
    }
}

/// Limits how many bytes of model files are loaded together.
///
/// File sizes stand for memory: engines hold the weights once, at about their size on disk, and the rest of what they need is not
/// known before a model is loaded. While a version is loaded, its peak is reserved ([`FileBytes::peak`]).
#[derive(Debug)]
pub(super) struct Budget {
    limit: u64,
    used: u64,
}

/// The budget has too few bytes left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooLarge {
    pub wanted: u64,
    pub used: u64,
    pub limit: u64,
}

impl Budget {
    #[must_use]
    pub(super) fn new(limit: u64) -> Budget {
        Budget { limit, used: 0 }
    }

    /// Reserves bytes, until [`Budget::release`].
    ///
    /// # Errors
    /// The numbers, when too little is left. Nothing is reserved then.
    pub(super) fn reserve(&mut self, wanted: u64) -> Result<(), TooLarge> {
        match self.used.checked_add(wanted).filter(|sum| *sum <= self.limit) {
            Some(sum) => {
                self.used = sum;
                Ok(())
            }
            None => Err(TooLarge { wanted, used: self.used, limit: self.limit }),
        }
    }

    pub(super) fn release(&mut self, bytes: u64) {
        self.used = self.used.saturating_sub(bytes);
    }

    /// How many bytes must be released before `wanted` bytes fit; 0 when they fit.
    #[must_use]
    pub(super) fn missing(&self, wanted: u64) -> u64 {
        self.used.saturating_add(wanted).saturating_sub(self.limit)
    }
}

impl fmt::Display for TooLarge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TooLarge { wanted, used, limit } = self;
        write!(
            f,
            "its load needs {wanted} bytes, but loaded versions use {used} of the memory budget of {limit} bytes; unload a \
             version, or raise models.memory_budget"
        )
    }
}

/// The system has too little memory left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooLittle {
    pub wanted: u64,
    pub available: Available,
    /// What other loads in progress are about to take.
    pub loading: u64,
}

/// Checks that the peak of a load fits into what this process may still take. `loading`: what loads in progress are about to take.
///
/// # Errors
/// The numbers, where it does not fit. A load that does not fit would end the process, or the machine would end another one.
pub(super) fn check_available(files: FileBytes, loading: u64, available: Option<Available>) -> Result<(), TooLittle> {
    let wanted = files.peak();
    match available {
        Some(available) if files.all > PEAK_MATTERS && available.bytes.saturating_sub(loading) < wanted => {
            Err(TooLittle { wanted, available, loading })
        }
        _ => Ok(()),
    }
}

impl fmt::Display for TooLittle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TooLittle { wanted, available: Available { bytes, by }, loading } = self;
        write!(f, "its load needs {wanted} bytes at its peak, but {by} has only {bytes} left")?;
        if *loading > 0 {
            write!(f, ", of which other loads take {loading}")?;
        }
        f.write_str("; it was not begun")
    }
}

/// Returns the heap's free pages to the system. glibc keeps them otherwise.
///
/// Measured: three dropped sessions of ONNX Runtime left 169 MB resident, and this reduced it to 34 MB.
pub(super) fn trim() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        #[expect(unsafe_code, reason = "malloc_trim has no safe wrapper")]
        // SAFETY: takes no pointer, is thread-safe (glibc's manual: MT-Safe), and frees only pages that hold no allocation.
        unsafe {
            libc::malloc_trim(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Limit;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_peak_of_a_large_load_must_fit_into_what_is_left() {
        let left = |mib: u64| Some(Available { bytes: mib * MIB, by: Limit::Cgroup });
        let inside = |mib: u64| FileBytes::of_model(mib * MIB);
        let beside = FileBytes { all: 381 * MIB, model: 0 };
        assert_eq!(check_available(inside(381), 0, None), Ok(()));
        assert_eq!(check_available(inside(381), 0, left(762)), Ok(()));
        assert_eq!(check_available(beside, 0, left(1143)), Ok(()));
        check_available(beside, 0, left(1142)).unwrap_err();
        let refused = check_available(inside(381), 0, left(761)).unwrap_err().to_string();
        let expected = "its load needs 799014912 bytes at its peak, but the control group has only 797966336 left; it was not begun";
        assert_eq!(refused, expected);
        let refused = check_available(inside(100), 200 * MIB, left(399)).unwrap_err().to_string();
        assert!(refused.contains(", of which other loads take 209715200; "), "{refused}");
        assert_eq!(check_available(inside(1), 0, left(0)), Ok(()), "small versions fit into the reserve");
    }
}
