//! The trial process: loads the versions that the server names on standard input, runs them, and reports each step on standard output.

use super::message::{Event, Order, engine_choice};
use super::plan;
use crate::backend::{EmptyAxes, EngineOptions, Engines, LoadError, Provider, VersionFiles};
use crate::execute::Runner;
use crate::model::InferenceRequest;
use rustix::process::{Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};
use std::io::{BufRead, Write};
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Duration;

/// A process without work ends after this time, to give its memory back.
const IDLE: Duration = Duration::from_secs(20);
/// The longest line that is read.
const MAX_LINE: u64 = 1 << 20;

/// Serves trials until standard input ends.
pub fn run_trials(onnxruntime: Option<&Path>, custom_ops: Option<&Path>) {
    be_expendable();
    let engines = Engines::discover_with(onnxruntime, custom_ops);
    let orders = read_orders();
    while let Ok(order) = orders.recv_timeout(IDLE) {
        carry_out(&order, &engines, &mut |event| report(&event));
    }
}

/// No core dumps, and the first process that the kernel ends where memory is short. Both may be forbidden; then nothing is lost.
fn be_expendable() {
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: getrlimit(Resource::Core).maximum });
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
}

/// Reads orders on a thread of its own. When the server is gone, the process ends at once, also from within an engine.
fn read_orders() -> mpsc::Receiver<Order> {
    let (orders, receiver) = mpsc::sync_channel(1);
    std::thread::spawn(move || {
        let mut lines = std::io::stdin().lock();
        loop {
            let mut line = String::new();
            let read = std::io::Read::take(&mut lines, MAX_LINE).read_line(&mut line);
            let order = read.ok().filter(|n| *n > 0).and_then(|_| serde_json::from_str(&line).ok());
            let Some(order) = order else { break };
            if orders.send(order).is_err() {
                break;
            }
        }
        // Not `exit`: its handlers would run beside the engine.
        let _ = kill_process(rustix::process::getpid(), Signal::KILL);
    });
    receiver
}

fn report(event: &Event) {
    let mut line = serde_json::to_vec(event).expect("an event has no maps");
    line.push(b'\n');
    // Fails when the server is gone; the reading thread ends this process then.
    let _ = std::io::stdout().lock().write_all(&line);
    let _ = std::io::stdout().flush();
}

fn carry_out(order: &Order, engines: &Engines, report: &mut dyn FnMut(Event)) {
    let before = Memory::now();
    // The highest resident size since now, not since the start of the process.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
    let hard = getrlimit(Resource::As).maximum;
    let soft = before.address_space.saturating_add(order.memory);
    let limit = |current: Option<u64>| {
        let current = current.map_or(hard, |soft| Some(hard.map_or(soft, |hard| hard.min(soft))));
        // Fails only where the limit is below what is used already.
        let _ = setrlimit(Resource::As, Rlimit { current, maximum: hard });
    };
    limit(Some(soft));
    report(Event::Loading);
    let providers = order.providers.iter().filter_map(|name| Provider::of(name)).collect();
    let options = Arc::new(EngineOptions { custom_ops: order.custom_ops.clone(), providers });
    match engines.load(engine_choice(&order.engine), &VersionFiles { dir: order.dir.clone(), options }) {
        Err(error) => {
            let memory = matches!(error, LoadError::Memory(_));
            report(Event::Refused { memory, reason: error.to_string() });
        }
        Ok(model) => {
            report(Event::Loaded { engine: model.engine().to_owned() });
            try_runs(&Runner::new(model), order, report);
        }
    }
    limit(None);
    let peak_bytes = Memory::now().peak.saturating_sub(before.resident);
    report(Event::Finished { peak_bytes });
}

fn try_runs(runner: &Runner, order: &Order, report: &mut dyn FnMut(Event)) {
    let run = |request: InferenceRequest| {
        // An error is an answer: the process is still there.
        if let Ok(checked) = runner.signature().check(request) {
            let _ = runner.run_unmeasured(&checked);
        }
    };
    if order.plain {
        for (what, request) in plan::plain_requests(runner.signature()) {
            report(Event::Running { what: what.to_owned() });
            run(request);
        }
    }
    let combinations = plan::combinations(runner.signature());
    let fatal: Vec<EmptyAxes> = order.fatal.iter().filter_map(|index| combinations.get(*index).copied()).collect();
    for (combination, axes) in combinations.iter().enumerate() {
        if order.known.contains(&combination) || fatal.iter().any(|fatal| axes.contains(*fatal)) {
            continue;
        }
        report(Event::Trying { combination });
        plan::empty_requests(runner.signature(), *axes).into_iter().for_each(run);
        report(Event::Survived { combination, axes: (*axes).into() });
    }
}

/// Memory of this process, in bytes. Zero where the kernel does not report it.
#[derive(Debug, Clone, Copy, Default)]
struct Memory {
    address_space: u64,
    resident: u64,
    /// The highest resident size.
    peak: u64,
}

impl Memory {
    fn now() -> Memory {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let kib = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or_default()
        };
        Memory { address_space: kib("VmSize:") << 10, resident: kib("VmRSS:") << 10, peak: kib("VmHWM:") << 10 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_reports_this_process() {
        let memory = Memory::now();
        assert!(
            memory.address_space > memory.resident && memory.peak >= memory.resident && memory.resident > 0,
            "{memory:?}"
        );
    }
}
