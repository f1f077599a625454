//! Reads limits from control groups and `/proc`: pure functions over the texts of files, and the walk from a process's group up to
//! the root.

use std::path::{Path, PathBuf};

/// The smallest limits of a process's group and the groups above it. `None`: not limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Limits {
    /// Whole cores of processor time, at least 1.
    pub(super) cores: Option<usize>,
    pub(super) memory: Option<u64>,
}

impl Limits {
    /// `membership`: the text of `/proc/self/cgroup`. Control groups are expected under `sys/fs/cgroup`, where all distributions mount
    /// them.
    pub(super) fn read(root: &Path, membership: &str) -> Limits {
        let mut limits = Limits::default();
        for group in membership.lines().filter_map(Group::parse) {
            for mount in group.mounts() {
                for dir in ancestors(&root.join("sys/fs/cgroup").join(mount), group.path) {
                    limits.tighten(&dir, &group);
                }
            }
        }
        limits
    }

    fn tighten(&mut self, dir: &Path, group: &Group<'_>) {
        let text = |name: &str| std::fs::read_to_string(dir.join(name)).ok();
        let quota = if group.is_v2() {
            text("cpu.max").and_then(|t| quota_v2(&t))
        } else {
            text("cpu.cfs_quota_us").zip(text("cpu.cfs_period_us")).and_then(|(q, p)| quota_v1(&q, &p))
        };
        // Above memory.high a process is slowed down, above memory.max it is killed. Models have to stay below both.
        let files = if group.is_v2() { ["memory.max", "memory.high"] } else { ["memory.limit_in_bytes"; 2] };
        let memory = files.iter().filter_map(|name| text(name).and_then(|t| memory_limit(&t))).min();
        self.cores = self.cores.into_iter().chain(quota).min();
        self.memory = self.memory.into_iter().chain(memory).min();
    }
}

/// How many processes of the groups in `membership` the kernel's OOM killer has ended. `None` where no group says so.
pub(super) fn oom_kills(root: &Path, membership: &str) -> Option<u64> {
    let of_group = |group: Group<'_>| {
        let file = if group.is_v2() { "memory.events" } else { "memory.oom_control" };
        // The process's own group counts every process in it, whichever limit was reached.
        let own = |mount: &&str| ancestors(&root.join("sys/fs/cgroup").join(mount), group.path);
        let texts = group.mounts().iter().flat_map(own).find_map(|dir| std::fs::read_to_string(dir.join(file)).ok())?;
        count_after("oom_kill", &texts)
    };
    membership.lines().filter_map(Group::parse).filter_map(of_group).reduce(u64::saturating_add)
}

/// The number in the line `KEY NUMBER`, as in `/proc/vmstat`.
pub(super) fn count_after(key: &str, text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// One line of `/proc/self/cgroup`: `0::/path` (v2) or `4:cpu,cpuacct:/path` (v1).
#[derive(Debug, PartialEq)]
struct Group<'t> {
    controllers: &'t str,
    path: &'t str,
}

impl<'t> Group<'t> {
    /// `None` for controllers that limit neither cores nor memory.
    fn parse(line: &'t str) -> Option<Group<'t>> {
        let mut parts = line.splitn(3, ':').skip(1);
        let group = Group { controllers: parts.next()?, path: parts.next()? };
        let limits = group.is_v2() || group.controllers.split(',').any(|c| c == "cpu" || c == "memory");
        limits.then_some(group)
    }

    fn is_v2(&self) -> bool {
        self.controllers.is_empty()
    }

    /// The directories where this hierarchy may be mounted. v2: alone or beside v1. v1: under the names of all its controllers or of one.
    fn mounts(&self) -> Vec<&str> {
        if self.is_v2() {
            return vec!["", "unified"];
        }
        let mut mounts: Vec<&str> = self.controllers.split(',').filter(|c| *c == "cpu" || *c == "memory").collect();
        if !mounts.contains(&self.controllers) {
            mounts.push(self.controllers);
        }
        mounts
    }
}

/// The group's directory and the directories above it, up to the mount.
///
/// In a container the path may be that of the host and not exist under the mount. Then the mount is the container's group.
fn ancestors(mount: &Path, path: &str) -> Vec<PathBuf> {
    let relative = Path::new(path.trim_start_matches('/'));
    // A path with `..` belongs to a group outside this namespace: only the mount can be read.
    let inside = relative.components().all(|c| matches!(c, std::path::Component::Normal(_)));
    let relative = if inside { relative } else { Path::new("") };
    relative.ancestors().map(|part| mount.join(part)).collect()
}

/// Parses `cpu.max`: `250000 100000` is 2.5 cores, rounded down to 2; `max 100000` is no limit.
fn quota_v2(text: &str) -> Option<usize> {
    let (quota, period) = text.trim().split_once(' ')?;
    quota_v1(quota, period)
}

/// Parses `cpu.cfs_quota_us` and `cpu.cfs_period_us`. A quota of -1 is no limit.
///
/// Rounded down: with one thread more than the quota allows, all threads wait for the next period, up to 100 ms.
fn quota_v1(quota: &str, period: &str) -> Option<usize> {
    let quota: usize = quota.trim().parse().ok()?;
    let period: usize = period.trim().parse().ok()?;
    quota.checked_div(period).map(|cores| cores.max(1))
}

/// Parses `memory.max` and `memory.limit_in_bytes`. No limit is `max` in v2, and a number near 2^63 in v1.
fn memory_limit(text: &str) -> Option<u64> {
    text.trim().parse().ok().filter(|bytes| *bytes < 1 << 60)
}

/// The memory that the process's group and the groups above it may still take. Files that the kernel can drop do not count as used.
/// `None` where none of them has a limit.
pub(super) fn available(root: &Path, membership: &str) -> Option<u64> {
    let groups = membership.lines().filter_map(Group::parse).flat_map(|group| {
        let dirs = group.mounts().into_iter().map(|mount| root.join("sys/fs/cgroup").join(mount));
        let v2 = group.is_v2();
        dirs.flat_map(|mount| ancestors(&mount, group.path)).map(move |dir| (dir, v2)).collect::<Vec<_>>()
    });
    groups.filter_map(|(dir, v2)| available_in(&dir, v2)).min()
}

fn available_in(dir: &Path, v2: bool) -> Option<u64> {
    let text = |name: &str| std::fs::read_to_string(dir.join(name)).ok();
    // A group above memory.high is slowed down, and its memory is reclaimed first; only memory.max ends a process.
    let (limit, used, files) = if v2 {
        ("memory.max", "memory.current", ["active_file ", "inactive_file "])
    } else {
        ("memory.limit_in_bytes", "memory.usage_in_bytes", ["total_active_file ", "total_inactive_file "])
    };
    let limit = text(limit).and_then(|t| memory_limit(&t))?;
    let used: u64 = text(used)?.trim().parse().ok()?;
    let stat = text("memory.stat").unwrap_or_default();
    let number = |key: &&str| stat.lines().find_map(|line| line.strip_prefix(key)?.trim().parse::<u64>().ok());
    let droppable: u64 = files.iter().filter_map(number).fold(0, u64::saturating_add);
    Some(limit.saturating_sub(used.saturating_sub(droppable)))
}

/// `MemTotal` in `/proc/meminfo`, in bytes.
pub(super) fn memory_total(text: &str) -> Option<u64> {
    kib_of(text, "MemTotal:")
}

/// A number of kB in `/proc/meminfo` or `/proc/self/status`, in bytes.
pub(super) fn kib_of(text: &str, key: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: u64 = rest.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The soft limit of address space in `/proc/self/limits`, in bytes. `None`: not limited.
pub(super) fn address_space(text: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix("Max address space"))?;
    rest.split_whitespace().next()?.parse().ok()
}

/// The number of processors in `/proc/cpuinfo`.
pub(super) fn processors(text: &str) -> usize {
    text.lines().filter(|line| line.split(':').next().is_some_and(|key| key.trim() == "processor")).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_parsed_as_the_kernel_writes_them() {
        assert_eq!(quota_v2("250000 100000\n"), Some(2));
        assert_eq!(quota_v1("50000\n", "100000\n"), Some(1));
        assert_eq!(memory_limit("536870912\n"), Some(512 << 20));
        for none in ["max 100000", "", "150000", "150000 0", "-1 100000", "a b"] {
            assert_eq!(quota_v2(none), None, "{none:?}");
        }
        for none in ["max\n", "9223372036854771712", "", "-1"] {
            assert_eq!(memory_limit(none), None, "{none:?}");
        }
        assert_eq!(memory_total("MemFree: 5 kB\nMemTotal:       24684096 kB\n"), Some(24_684_096 * 1024));
        assert_eq!(memory_total("MemTotal: lots"), None);
        assert_eq!(processors("processor\t: 0\nmodel name\t: x\n\nprocessor\t: 1\n"), 2);
    }

    #[test]
    fn the_directories_of_a_group_are_found() {
        let group = Group::parse("4:cpu,cpuacct:/docker/ab:c").unwrap();
        assert_eq!((group.path, group.mounts()), ("/docker/ab:c", vec!["cpu", "cpu,cpuacct"]));
        assert_eq!(Group::parse("0::/").unwrap().mounts(), ["", "unified"]);
        assert_eq!(Group::parse("9:name=systemd:/"), None);
        assert_eq!(Group::parse("nonsense"), None);
        let dirs = ancestors(Path::new("/m"), "/a/b");
        assert_eq!(dirs, [Path::new("/m/a/b"), Path::new("/m/a"), Path::new("/m")]);
        assert_eq!(ancestors(Path::new("/m"), "/../../x"), [Path::new("/m")]);
    }
}
