//! Reads the region of a process that has ended.

use super::Kind;
use super::inputs::KeptInputs;
use super::region::{KIND_BITS, Region, read_bytes};
use crate::model::{ModelName, Version};
use std::sync::atomic::Ordering;

/// What a process left behind.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Reading {
    /// What the signal handler of the dying thread wrote. `None` where no handler ran, as with SIGKILL.
    pub death: Option<Death>,
    /// The threads that were inside an engine.
    pub inside: Vec<MarkedThread>,
}

/// The signal that ended the process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Death {
    pub signal: i32,
    pub sent: Caller,
    /// The id of the thread that handled it.
    pub thread: u32,
}

/// Where a signal came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    /// The processor: a fault on the thread itself.
    Fault,
    /// To one thread, as `abort` does: the thread itself, or a process that chose it.
    Thread,
    /// A process sent it to the whole process, so that any thread may have handled it.
    Process(i32),
}

/// A thread inside an engine.
#[derive(Debug, Clone, PartialEq)]
pub struct MarkedThread {
    pub thread: u32,
    /// As the log shows threads: `infer-0`.
    pub name: String,
    pub kind: Kind,
    /// `None` for a version that has no name in the table.
    pub version: Option<Named>,
    pub inputs: Option<KeptInputs>,
}

/// A version, as its mark names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Named {
    pub model: ModelName,
    pub version: Version,
    /// Identifies its files.
    pub artifact: String,
}

impl Region {
    /// The marks of a process that has ended.
    #[must_use]
    pub fn read(&self) -> Reading {
        let death = &self.layout().death;
        let death = (death.complete.load(Ordering::Acquire) == 1).then(|| Death {
            signal: death.signal.load(Ordering::Relaxed),
            sent: match death.code.load(Ordering::Relaxed) {
                1.. => Caller::Fault,
                libc::SI_USER | libc::SI_QUEUE => Caller::Process(death.sender.load(Ordering::Relaxed)),
                _ => Caller::Thread,
            },
            thread: death.thread.load(Ordering::Relaxed),
        });
        let inside = self.cells().iter().filter_map(|cell| {
            let mark = cell.mark.load(Ordering::Relaxed);
            let kind = Kind::ALL.into_iter().find(|kind| u64::from(*kind as u8) == mark & ((1 << KIND_BITS) - 1))?;
            let name = read_bytes(&cell.name);
            let length = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
            Some(MarkedThread {
                thread: cell.thread.load(Ordering::Relaxed),
                name: String::from_utf8_lossy(&name[..length]).into_owned(),
                kind,
                version: self.named(mark >> KIND_BITS),
                inputs: KeptInputs::read(self, cell),
            })
        });
        Reading { death, inside: inside.collect() }
    }

    fn named(&self, number: u64) -> Option<Named> {
        let (model, version, artifact) = self.name(usize::try_from(number).ok()?.checked_sub(1)?)?;
        Some(Named { model: model.parse().ok()?, version: version.to_string().parse().ok()?, artifact })
    }
}

impl Reading {
    /// The thread that died, where it was inside an engine.
    #[must_use]
    pub fn died(&self) -> Option<&MarkedThread> {
        let death = self.death.as_ref()?;
        self.inside.iter().find(|thread| thread.thread == death.thread)
    }
}
