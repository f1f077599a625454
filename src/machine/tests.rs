use super::*;
use std::fs;

const CPUINFO: &str = "processor\t: 0\n\nprocessor\t: 1\n\nprocessor\t: 2\n\nprocessor\t: 3\n";
const MEMINFO: &str = "MemTotal:        8388608 kB\nMemFree:         1 kB\n";
const GIB: u64 = 1 << 30;

/// A machine with 4 cores and 8 GiB, and these files of the kernel in addition.
fn machine(files: &[(&str, &str)], allowed: usize) -> Machine {
    let root = tempfile::tempdir().unwrap();
    for (path, text) in [("proc/cpuinfo", CPUINFO), ("proc/meminfo", MEMINFO)].iter().chain(files) {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    Machine::read(root.path(), allowed)
}

#[test]
fn without_limits_the_whole_machine_is_used() {
    let found =
        machine(&[("proc/self/cgroup", "0::/user.slice\n"), ("sys/fs/cgroup/user.slice/cpu.max", "max 100000\n")], 4);
    let whole = Machine { cores: 4, cores_from: Source::Machine, memory_bytes: 8 * GIB, memory_from: Source::Machine };
    assert_eq!(found, whole);
    assert_eq!(found.to_string(), "4 cores (the machine's), 8.0 GiB of memory (the machine's)");
}

#[test]
fn affinity_limits_cores() {
    let found = machine(&[], 3);
    assert_eq!((found.cores, found.cores_from), (3, Source::Affinity));
}

#[test]
fn in_v2_the_smallest_limit_of_all_groups_counts() {
    let files = [
        ("proc/self/cgroup", "0::/pods/ours\n"),
        ("sys/fs/cgroup/pods/ours/cpu.max", "350000 100000\n"),
        ("sys/fs/cgroup/pods/cpu.max", "250000 100000\n"),
        ("sys/fs/cgroup/pods/ours/memory.max", "1073741824\n"),
        ("sys/fs/cgroup/pods/ours/memory.high", "max\n"),
        ("sys/fs/cgroup/pods/memory.max", "4294967296\n"),
    ];
    let ours = Machine { cores: 2, cores_from: Source::Cgroup, memory_bytes: GIB, memory_from: Source::Cgroup };
    assert_eq!(machine(&files, 4), ours);
}

#[test]
fn in_v1_each_controller_is_read_and_a_path_of_the_host_falls_back_to_the_mount() {
    let files = [
        ("proc/self/cgroup", "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/\n"),
        ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "50000\n"),
        ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n"),
        ("sys/fs/cgroup/memory/memory.limit_in_bytes", "2147483648\n"),
    ];
    let ours = Machine { cores: 1, cores_from: Source::Cgroup, memory_bytes: 2 * GIB, memory_from: Source::Cgroup };
    assert_eq!(machine(&files, 4), ours, "half a core counts as one");
    let unlimited = [
        ("proc/self/cgroup", "5:memory:/\n4:cpu:/\n"),
        ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n"),
        ("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"),
        ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
    ];
    assert_eq!(machine(&unlimited, 4).cores_from, Source::Machine);
    assert_eq!(machine(&unlimited, 4).memory_from, Source::Machine);
}

#[test]
fn detection_never_fails() {
    let root = tempfile::tempdir().unwrap();
    let found = Machine::read(root.path(), 0);
    assert_eq!((found.cores, found.memory_from), (1, Source::Guess));
    let here = Machine::detect();
    assert!(here.cores >= 1 && here.memory_bytes > 64 << 20, "{here}");
}

#[test]
fn oom_kills_are_counted_by_the_group_else_by_the_machine() {
    let count = |files: &[(&str, &str)]| {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        oom_kills_under(root.path())
    };
    let machine = ("proc/vmstat", "oom_kill_disable 9\noom_kill 7\n");
    assert_eq!(count(&[]), 0);
    assert_eq!(count(&[machine]), 7);
    let v2 = [
        machine,
        ("proc/self/cgroup", "0::/pods/ours\n"),
        ("sys/fs/cgroup/pods/ours/memory.events", "low 0\noom 4\noom_kill 3\noom_group_kill 1\n"),
        ("sys/fs/cgroup/pods/memory.events", "oom_kill 5\n"),
    ];
    assert_eq!(count(&v2), 3, "the group of the process, and not the one above it");
    let v1 = [
        ("proc/self/cgroup", "5:memory:/docker/abc\n1:name=systemd:/\n"),
        ("sys/fs/cgroup/memory/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"),
    ];
    assert_eq!(count(&v1), 2, "in a container the mount is the group");
}

#[test]
fn the_process_limit_of_address_space_counts() {
    let limits = |soft: &str| {
        format!(
            "Limit                     Soft Limit           Hard Limit           Units     \nMax address space         {soft}           unlimited            bytes     \n"
        )
    };
    let limited = machine(&[("proc/self/limits", &limits("2147483648"))], 4);
    assert_eq!((limited.memory_bytes, limited.memory_from), (2 * GIB, Source::Process));
    let unlimited = machine(&[("proc/self/limits", &limits("unlimited"))], 4);
    assert_eq!((unlimited.memory_bytes, unlimited.memory_from), (8 * GIB, Source::Machine));
}

#[test]
#[cfg(target_os = "linux")]
fn a_thread_that_waits_for_a_core_is_told() {
    let Some(before) = run_delay() else { return eprintln!("this kernel does not count it (CONFIG_SCHED_INFO)") };
    // More threads than cores, so that some wait.
    let threads = 1 + std::thread::available_parallelism().unwrap().get();
    let delays: Vec<std::time::Duration> = std::thread::scope(|scope| {
        let spin = || {
            let (began, before) = (std::time::Instant::now(), run_delay().unwrap());
            let mut waited = std::time::Duration::ZERO;
            while waited.is_zero() && began.elapsed() < std::time::Duration::from_secs(20) {
                waited = run_delay().unwrap().saturating_sub(before);
            }
            waited
        };
        let spinning: Vec<_> = (0..threads).map(|_| scope.spawn(spin)).collect();
        spinning.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(delays.iter().any(|waited| !waited.is_zero()), "{delays:?}");
    assert!(run_delay().unwrap() >= before);
}

#[test]
fn only_regular_files_are_opened_and_nothing_is_waited_for() {
    use rustix::fs::{CWD, Mode, mkfifoat};
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("file"), "text").unwrap();
    mkfifoat(CWD, at("pipe"), Mode::RUSR | Mode::WUSR).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
    std::os::unix::fs::symlink(at("file"), at("link")).unwrap();
    std::os::unix::fs::symlink(at("pipe"), at("link to a pipe")).unwrap();
    for right in ["file", "link"] {
        let text = std::io::read_to_string(open_regular(&at(right)).unwrap()).unwrap();
        assert_eq!(text, "text", "{right}");
    }
    for wrong in [at("pipe"), at("socket"), at("link to a pipe"), dir.path().to_owned(), "/dev/zero".into()] {
        let error = open_regular(&wrong).unwrap_err();
        assert_eq!(error.to_string(), "it is not a regular file", "{}", wrong.display());
    }
    assert_eq!(open_regular(&at("nothing")).unwrap_err().kind(), std::io::ErrorKind::NotFound);
}
