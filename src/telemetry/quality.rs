//! Gauges of what feedback says about each version.

use super::names;
use super::scope::{Scope, Telemetry};
use crate::model::{ModelName, Version};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::PoisonError;

/// The figures of one version on one arm.
#[derive(Debug, Clone)]
pub(crate) struct QualityFigures<'a> {
    pub model: &'a ModelName,
    pub version: Version,
    pub arm: &'a str,
    pub labelled: u64,
    pub accuracy: Option<f64>,
    pub mean_absolute_error: Option<f64>,
    /// Seconds.
    pub mean_delay: Option<f64>,
    /// Business values: name, count, mean, variance.
    pub values: Vec<(&'a str, u64, f64, Option<f64>)>,
}

/// The series of every version and arm that has figures.
#[derive(Debug, Default)]
pub(super) struct QualitySeries(BTreeMap<(ModelName, Version, String), ArmSeries>);

/// The series of one version on one arm. They are removed together.
#[derive(Debug)]
struct ArmSeries {
    scope: Scope,
    /// Metric and value name of each series.
    shown: BTreeSet<(&'static str, String)>,
}

impl Telemetry {
    /// Replaces the quality gauges by these figures. Versions that are not loaded, and arms and values without figures, have no series.
    pub(crate) fn show_quality<'a>(&self, all: impl IntoIterator<Item = QualityFigures<'a>>) {
        let loaded: BTreeSet<(ModelName, String)> =
            self.versions().iter().map(|v| (v.model().clone(), v.version().to_owned())).collect();
        let mut series = self.quality().lock().unwrap_or_else(PoisonError::into_inner);
        let mut old = std::mem::take(&mut series.0);
        for figures in all {
            let version = figures.version.to_string();
            if !loaded.contains(&(figures.model.clone(), version.clone())) {
                continue;
            }
            let key = (figures.model.clone(), figures.version, figures.arm.to_owned());
            let gauges = figures.gauges();
            let shown: BTreeSet<_> = gauges.iter().map(|(metric, value, _)| (metric.name, value.to_string())).collect();
            // A recorder cannot remove a single series. Where one is gone, all of this arm begin anew.
            let arm = old.remove(&key).filter(|arm| arm.shown.is_subset(&shown));
            let arm = ArmSeries { scope: arm.map_or_else(Scope::new, |arm| arm.scope), shown };
            for (metric, value, figure) in gauges {
                let labels = [
                    ("model", figures.model.as_str()),
                    ("version", version.as_str()),
                    ("arm", figures.arm),
                    ("value", value),
                ];
                let labels = if value.is_empty() { &labels[..3] } else { &labels[..] };
                arm.scope.gauge(metric, labels).set(figure);
            }
            series.0.insert(key, arm);
        }
    }
}

impl QualityFigures<'_> {
    /// Metric, name of the business value (empty where the metric has none), figure.
    fn gauges(&self) -> Vec<(&'static names::Metric, &str, f64)> {
        let mut gauges = vec![(&names::QUALITY_LABELLED, "", self.labelled as f64)];
        for (metric, figure) in [
            (&names::QUALITY_ACCURACY, self.accuracy),
            (&names::QUALITY_ERROR, self.mean_absolute_error),
            (&names::QUALITY_DELAY, self.mean_delay),
        ] {
            gauges.extend(figure.map(|figure| (metric, "", figure)));
        }
        for (name, count, mean, variance) in &self.values {
            gauges.push((&names::QUALITY_VALUES, name, *count as f64));
            gauges.push((&names::QUALITY_VALUE_MEAN, name, *mean));
            gauges.extend(variance.map(|variance| (&names::QUALITY_VALUE_VARIANCE, *name, variance)));
        }
        gauges
    }
}

impl QualitySeries {
    pub(super) fn scopes(&self) -> impl Iterator<Item = &Scope> {
        self.0.values().map(|arm| &arm.scope)
    }
}
