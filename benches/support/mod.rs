//! Prints the rows of the table of targets (docs/PERFORMANCE.md) that benchmarks measure, in the format of the load runner.

use std::path::PathBuf;
use std::time::SystemTime;

/// Results of criterion from this run.
#[derive(Debug)]
pub struct Measured {
    home: PathBuf,
    since: SystemTime,
}

impl Measured {
    /// Only results that are written from now on count.
    pub fn from_now() -> Measured {
        let under = |variable: &str| std::env::var_os(variable).map(PathBuf::from);
        let target =
            || under("CARGO_TARGET_DIR").unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target"));
        Measured {
            home: under("CRITERION_HOME").unwrap_or_else(|| target().join("criterion")),
            since: SystemTime::now(),
        }
    }

    /// The median of `group/bench` in nanoseconds; `None` when a filter excluded it from this run.
    pub fn nanos(&self, bench: &str) -> Option<f64> {
        let file = self.home.join(bench).join("new/estimates.json");
        let fresh = std::fs::metadata(&file).and_then(|m| m.modified()).is_ok_and(|at| at >= self.since);
        let text = fresh.then(|| std::fs::read_to_string(file).ok()).flatten()?;
        serde_json::from_str::<serde_json::Value>(&text).ok()?["median"]["point_estimate"].as_f64()
    }
}

/// Prints a row: the measure, the target, the measured value, and whether the target is met.
pub fn row(measure: &str, target: &str, measured: &str, met: bool) {
    println!("\n{:<72} {:<16} {:<16} verdict", "measure", "target", "measured");
    println!("{measure:<72} {target:<16} {measured:<16} {}", if met { "met" } else { "MISSED" });
}
