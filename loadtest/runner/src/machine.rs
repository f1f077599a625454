//! CPU time of the machine and of processes. CPU time used by others shows how reliable a measurement is.

use std::fs;

use crate::wrong::{Result, While, Wrong};

/// CPU times since boot, in clock ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// Time of all processes and time taken by the hypervisor. Without interrupts, because those of the sockets under load belong to
    /// the test.
    pub busy: u64,
    /// All time, including idle time and interrupts.
    pub all: u64,
    /// The number of cores.
    pub cores: usize,
}

/// The times of all cores together.
pub fn times() -> Result<Times> {
    let stat = fs::read_to_string("/proc/stat").while_doing(|| "reading /proc/stat".into())?;
    parse(&stat).ok_or_else(|| Wrong::new("/proc/stat does not start with the CPU times"))
}

/// User plus system time of a process, in microseconds.
pub fn process_cpu_us(id: u32) -> Result<f64> {
    let path = format!("/proc/{id}/stat");
    let stat = fs::read_to_string(&path).while_doing(|| format!("reading {path}"))?;
    let ticks = process_ticks(&stat).ok_or_else(|| Wrong::new(format!("{path} has no CPU times")))?;
    Ok(ticks as f64 * 1e6 / ticks_per_second())
}

/// The share of the machine's CPU time between two readings that `us` is.
pub fn share(before: Times, after: Times, us: f64) -> f64 {
    us * ticks_per_second() / 1e6 / (after.all.saturating_sub(before.all) as f64).max(1.0)
}

/// The share of the machine's CPU time between two readings that other processes used. `ours_us`: CPU time of the test itself.
pub fn elsewhere(before: Times, after: Times, ours_us: f64) -> f64 {
    let all = after.all.saturating_sub(before.all) as f64;
    let ours = ours_us * ticks_per_second() / 1e6;
    ((after.busy.saturating_sub(before.busy) as f64 - ours) / all.max(1.0)).max(0.0)
}

fn ticks_per_second() -> f64 {
    rustix::param::clock_ticks_per_second() as f64
}

/// `cpu user nice system idle iowait irq softirq steal …`.
fn parse(stat: &str) -> Option<Times> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let fields: Vec<u64> = line.split_whitespace().take(8).map_while(|field| field.parse().ok()).collect();
    let all: u64 = fields.iter().sum();
    let is_core =
        |line: &&str| line.strip_prefix("cpu").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    let cores = stat.lines().filter(is_core).count();
    Some(Times { busy: fields.get(..3)?.iter().sum::<u64>() + fields.get(7)?, all, cores })
}

/// Fields 14 and 15. Counts from the end of the process name, which may contain spaces and parentheses.
fn process_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_times_are_found_after_any_process_name() {
        let stat = "12 (a (b) c) S 1 2 3 4 5 6 7 8 9 10 70 30 0 0 20";
        assert_eq!(process_ticks(stat), Some(100));
    }

    #[test]
    fn time_that_is_neither_idle_nor_ours_belongs_to_others() {
        let before = parse("cpu  100 0 100 1000 0 0 0 0 0 0\n").unwrap();
        let after = parse("cpu  150 0 120 1100 10 0 7 20 0 0\ncpu0 1 2\ncpu1 1 2\nctxt 1\n").unwrap();
        assert_eq!(after, Times { busy: 290, all: 1407, cores: 2 });
        let ours_us = 50.0 * 1e6 / ticks_per_second();
        assert!((share(before, after, ours_us) - 50.0 / 207.0).abs() < 1e-9, "50 of 207");
        assert!((elsewhere(before, after, ours_us) - 40.0 / 207.0).abs() < 1e-9, "90 busy, 50 of them ours");
    }
}
