//! How much memory this process may still take, now.

use super::cgroup;
use std::fmt;
use std::path::Path;

/// The memory that this process may still take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Available {
    pub bytes: u64,
    /// What limits it.
    pub by: Limit,
}

/// What limits the memory of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    Machine,
    Cgroup,
    /// `RLIMIT_AS`, as `ulimit -v` sets it. Mapped files and the stacks of threads count.
    AddressSpace,
}

impl Available {
    /// Reads the kernel's files: `MemAvailable`, the limits and the use of the control groups without the files that the kernel can drop,
    /// and the limit of the address space. `None` where the kernel reports none of them.
    #[must_use]
    pub fn now() -> Option<Available> {
        let limit = rustix::process::getrlimit(rustix::process::Resource::As).current;
        Available::read(Path::new("/"), limit)
    }

    fn read(root: &Path, address_space: Option<u64>) -> Option<Available> {
        let text = |path: &str| std::fs::read_to_string(root.join(path)).ok();
        let machine = text("proc/meminfo").and_then(|t| cgroup::kib_of(&t, "MemAvailable:"));
        let group = cgroup::available(root, &text("proc/self/cgroup").unwrap_or_default());
        let used = || text("proc/self/status").and_then(|t| cgroup::kib_of(&t, "VmSize:"));
        let space = address_space.and_then(|limit| Some(limit.saturating_sub(used()?)));
        let limits = [(machine, Limit::Machine), (group, Limit::Cgroup), (space, Limit::AddressSpace)];
        limits.into_iter().filter_map(|(bytes, by)| Some(Available { bytes: bytes?, by })).min_by_key(|a| a.bytes)
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Limit::Machine => "the machine",
            Limit::Cgroup => "the control group",
            Limit::AddressSpace => "the limit of the address space",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn available(files: &[(&str, &str)], address_space: Option<u64>) -> Option<Available> {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        Available::read(root.path(), address_space)
    }

    #[test]
    fn the_smallest_limit_counts_and_droppable_files_are_no_use() {
        let machine = ("proc/meminfo", "MemTotal: 4096000 kB\nMemAvailable: 2048000 kB\n");
        let status = ("proc/self/status", "Name:\tx\nVmSize:\t 1024000 kB\n");
        let found = |files: &[(&str, &str)], limit| available(files, limit).map(|a| (a.bytes, a.by));
        assert_eq!(found(&[], None), None);
        assert_eq!(found(&[machine], None), Some((2_048_000 * 1024, Limit::Machine)));
        assert_eq!(found(&[machine, status], Some(1500 << 20)), Some((500 * MIB, Limit::AddressSpace)));
        assert_eq!(found(&[machine, status], Some(500 << 20)), Some((0, Limit::AddressSpace)));

        let v2 = [
            machine,
            ("proc/self/cgroup", "0::/pods/ours\n"),
            ("sys/fs/cgroup/pods/ours/memory.max", "1073741824\n"),
            ("sys/fs/cgroup/pods/ours/memory.current", "805306368\n"),
            ("sys/fs/cgroup/pods/ours/memory.stat", "anon 1\nactive_file 104857600\ninactive_file 209715200\n"),
            ("sys/fs/cgroup/pods/memory.max", "max\n"),
            ("sys/fs/cgroup/pods/memory.current", "99999999999\n"),
        ];
        // 1024 - 768 + 100 + 200 MiB.
        assert_eq!(found(&v2, None), Some((556 * MIB, Limit::Cgroup)));

        let v1 = [
            ("proc/self/cgroup", "5:memory:/docker/abc\n1:name=systemd:/\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "1073741824\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "1073741824\n"),
            ("sys/fs/cgroup/memory/memory.stat", "total_active_file 1048576\ntotal_inactive_file 2097152\n"),
        ];
        assert_eq!(found(&v1, None), Some((3 * MIB, Limit::Cgroup)));
    }

    #[test]
    fn this_machine_reports_its_memory() {
        let here = Available::now().expect("/proc is mounted");
        assert!(here.bytes > 0 && !here.by.to_string().is_empty(), "{here:?}");
    }
}
