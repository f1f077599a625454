//! What feedback says, for the scraper.

use super::names;
use super::scope::Telemetry;

/// The figures of one version on one arm.
#[derive(Debug, Clone)]
pub struct QualityShown<'a> {
    pub model: &'a str,
    pub version: &'a str,
    pub arm: &'a str,
    pub labelled: u64,
    pub accuracy: Option<f64>,
    pub mean_absolute_error: Option<f64>,
    pub mean_delay: Option<f64>,
    /// Name, count, mean, variance.
    pub values: Vec<(&'a str, u64, f64, Option<f64>)>,
}

impl Telemetry {
    /// Shows figures until they are shown again. What is not known has no series.
    pub fn show_quality(&self, shown: &QualityShown) {
        let scope = self.process();
        let labels: [(&'static str, &str); 3] =
            [("model", shown.model), ("version", shown.version), ("arm", shown.arm)];
        scope.gauge(&names::QUALITY_LABELLED, &labels).set(shown.labelled as f64);
        for (metric, figure) in [
            (&names::QUALITY_ACCURACY, shown.accuracy),
            (&names::QUALITY_ERROR, shown.mean_absolute_error),
            (&names::QUALITY_DELAY, shown.mean_delay),
        ] {
            if let Some(figure) = figure {
                scope.gauge(metric, &labels).set(figure);
            }
        }
        for (name, count, mean, variance) in &shown.values {
            let labels = [labels[0], labels[1], labels[2], ("value", *name)];
            scope.gauge(&names::QUALITY_VALUES, &labels).set(*count as f64);
            scope.gauge(&names::QUALITY_VALUE_MEAN, &labels).set(*mean);
            if let Some(variance) = variance {
                scope.gauge(&names::QUALITY_VALUE_VARIANCE, &labels).set(*variance);
            }
        }
    }
}
