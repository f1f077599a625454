//! The limit on the memory that this process may allocate.

use super::{Machine, Source};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Lets an allocation fail that a control group cannot hold, instead of the kernel ending the process when the memory is used: an engine
/// answers a failed allocation with an error. The limit is a quarter above the group's, because allocated memory is not all used. Without a
/// group nothing is changed, as the kernel refuses what the whole machine cannot hold. Returns the limit where one was set.
pub fn limit_allocations(machine: &Machine) -> Option<u64> {
    if machine.memory_from != Source::Cgroup {
        return None;
    }
    let limit = getrlimit(Resource::Data);
    let most = machine.memory_bytes.saturating_add(machine.memory_bytes / 4);
    if limit.current.is_some_and(|current| current <= most) || limit.maximum.is_some_and(|maximum| maximum <= most) {
        return None;
    }
    setrlimit(Resource::Data, Rlimit { current: Some(most), maximum: limit.maximum }).ok().map(|()| most)
}
