//! Which cores the servers run on, and which ones the load generator.
//!
//! On the same cores the generator takes time from the server that it measures, and the more the more it sends. Phases with different rates can
//! then not be compared.

use std::fmt;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::Serialize;

use crate::wrong::{Result, While, Wrong};

/// Cores by number, as the system counts them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Cores {
    pub servers: Vec<usize>,
    pub generator: Vec<usize>,
}

impl Cores {
    /// The first half of the cores that this process may use for the servers, the others for the generator.
    pub fn halves() -> Result<Self> {
        Self::halves_of(&numbers(&current()?))
    }

    fn halves_of(all: &[usize]) -> Result<Self> {
        if all.len() < 2 {
            return Err(Wrong::new(format!(
                "servers and generator need a core each, and this process may use {all:?}"
            )));
        }
        let (servers, generator) = all.split_at(all.len() / 2);
        Ok(Self { servers: servers.to_vec(), generator: generator.to_vec() })
    }

    /// Moves this thread to the generator's cores. Threads that it starts inherit them. Dropping the result moves it back.
    pub fn pin_generator(&self) -> Result<Pinned> {
        Pinned::to(&self.generator)
    }

    /// Runs `start` on the servers' cores. Processes that it starts inherit them, from their first thread on.
    pub fn on_servers<T>(&self, start: impl FnOnce() -> T) -> Result<T> {
        let _pinned = Pinned::to(&self.servers)?;
        Ok(start())
    }
}

impl fmt::Display for Cores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "servers on cores {:?}, generator on cores {:?}", self.servers, self.generator)
    }
}

/// This thread runs on some cores only, until this is dropped.
#[derive(Debug)]
pub struct Pinned {
    before: CpuSet,
}

impl Pinned {
    fn to(cores: &[usize]) -> Result<Self> {
        let before = current()?;
        let mut set = CpuSet::new();
        for &core in cores {
            set.set(core);
        }
        sched_setaffinity(None, &set).while_doing(|| format!("moving to cores {cores:?}"))?;
        Ok(Self { before })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // It was allowed before. If it is not any more, the thread stays where it is.
        let _ = sched_setaffinity(None, &self.before);
    }
}

fn current() -> Result<CpuSet> {
    sched_getaffinity(None).while_doing(|| "asking which cores this process may use".into())
}

fn numbers(set: &CpuSet) -> Vec<usize> {
    (0..CpuSet::MAX_CPU).filter(|&core| set.is_set(core)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_and_generator_share_no_core() {
        let cores = Cores::halves_of(&[0, 2, 3, 5, 6]).unwrap();
        assert_eq!(cores, Cores { servers: vec![0, 2], generator: vec![3, 5, 6] });
        assert_eq!(cores.to_string(), "servers on cores [0, 2], generator on cores [3, 5, 6]");
        assert!(Cores::halves_of(&[4]).is_err(), "one core cannot be divided");
    }

    #[test]
    fn a_started_process_has_the_cores_of_the_servers_and_this_thread_its_own_again() {
        let before = current().unwrap();
        let last = *numbers(&before).last().unwrap();
        let cores = Cores { servers: vec![last], generator: vec![last] };
        let status = cores.on_servers(|| std::process::Command::new("cat").arg("/proc/self/status").output());
        let status = String::from_utf8(status.unwrap().unwrap().stdout).unwrap();
        let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap();
        assert_eq!(allowed.trim(), last.to_string());
        assert_eq!(current().unwrap(), before);
    }
}
