//! Triton's names for what versions have done, so that dashboards made for Triton show figures (`metrics.triton_names`).

use super::arm::VersionMetrics;
use super::totals::VersionTotals;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

/// A counter by its name in Triton, its help, and its value.
type Name = (&'static str, &'static str, fn(&VersionTotals) -> u128);

const NAMES: [Name; 9] = [
    ("nv_inference_request_success", "Requests that were answered", |t| u128::from(t.succeeded.count)),
    ("nv_inference_request_failure", "Requests that failed", |t| u128::from(t.failed.count)),
    ("nv_inference_count", "Requests that were answered; their rows are not counted", |t| {
        u128::from(t.succeeded.count)
    }),
    ("nv_inference_exec_count", "Runs of the engine", |t| u128::from(t.ran.count)),
    ("nv_inference_request_duration_us", "Time of the requests that were answered", |t| t.succeeded.time.as_micros()),
    ("nv_inference_queue_duration_us", "Time that requests waited for a worker", |t| t.queued.time.as_micros()),
    ("nv_inference_compute_input_duration_us", "Always 0: it is not measured on its own", |_| 0),
    ("nv_inference_compute_infer_duration_us", "Time inside the engine", |t| t.ran.time.as_micros()),
    ("nv_inference_compute_output_duration_us", "Always 0: it is not measured on its own", |_| 0),
];

/// Appends the series of all versions. A version that drains while it is loaded again is one series.
pub(super) fn write(text: &mut String, versions: &[Arc<VersionMetrics>], kind: &str) {
    let mut all: BTreeMap<(&str, &str), VersionTotals> = BTreeMap::new();
    for version in versions {
        let key = (version.model().as_str(), version.version());
        all.entry(key).or_default().add(&version.totals());
    }
    for (name, help, value) in NAMES {
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        for ((model, version), totals) in &all {
            let _ = writeln!(text, "{name}{{model=\"{model}\",version=\"{version}\"}} {}", value(totals));
        }
    }
}

impl VersionTotals {
    fn add(&mut self, other: &VersionTotals) {
        let parts = [
            (&mut self.succeeded, other.succeeded),
            (&mut self.failed, other.failed),
            (&mut self.queued, other.queued),
            (&mut self.ran, other.ran),
        ];
        for (sum, part) in parts {
            sum.count += part.count;
            sum.time = sum.time.checked_add(part.time).unwrap_or(Duration::MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::{ArmMetrics, Ended, Telemetry};

    #[test]
    fn each_version_is_one_series_also_while_it_is_replaced() {
        let telemetry = Telemetry::new();
        let metrics = || VersionMetrics::new(telemetry.scope(), "m".parse().unwrap(), "1".parse().unwrap());
        let both = [metrics(), metrics()];
        for version in &both {
            ArmMetrics::new(Arc::clone(version), "1").ended(&Ended::of(None, Duration::from_millis(2), true));
            version.ran(Duration::from_micros(1500), 1);
        }
        assert!(!telemetry.render().contains("nv_"), "only where it is asked for");
        let text = telemetry.clone().with_triton_names(true).render();
        assert!(text.contains("\nnv_inference_request_success{model=\"m\",version=\"1\"} 2\n"), "{text}");
        assert!(text.contains("\nnv_inference_compute_infer_duration_us{model=\"m\",version=\"1\"} 3000\n"), "{text}");
        assert_eq!(text.matches("nv_inference_exec_count{").count(), 1);
    }
}
