use super::*;
use crate::model::Code;
use std::time::Duration;

fn version_metrics(telemetry: &Telemetry, version: &str) -> std::sync::Arc<VersionMetrics> {
    VersionMetrics::new(telemetry.scope(), "m".parse().unwrap(), version.parse().unwrap())
}

#[test]
fn series_of_a_version_are_removed_with_it_and_stay_while_it_is_idle() {
    let telemetry = Telemetry::new();
    let one = version_metrics(&telemetry, "1");
    let two = version_metrics(&telemetry, "2");
    for metrics in [&one, &two] {
        let arm = ArmMetrics::new(std::sync::Arc::clone(metrics), "control");
        arm.ended(&Ended::of(None, Duration::from_micros(70), true));
        arm.ended(&Ended::of(Some(Code::EngineFailed), Duration::from_micros(70), true));
    }
    telemetry.upkeep();
    let text = telemetry.render();
    assert!(text.contains(r#"sluicegate_requests_total{model="m",version="1",arm="control",status="ok"} 1"#), "{text}");
    assert!(text.contains(r#"status="ENGINE_FAILED",le="0.0001"} 1"#), "{text}");
    assert_eq!(
        text.matches("# TYPE sluicegate_requests_total counter").count(),
        1,
        "each family is there once\n{text}"
    );
    drop(one);
    let text = telemetry.render();
    assert!(!text.contains(r#"version="1""#), "the series of a version are removed with it\n{text}");
    assert!(text.contains(r#"version="2""#), "other series stay\n{text}");
}

#[test]
fn in_flight_counts_the_requests_that_hold_a_version() {
    let telemetry = Telemetry::new();
    let metrics = version_metrics(&telemetry, "1");
    let (a, b) = (metrics.enter(), metrics.enter());
    assert_eq!(metrics.in_flight(), 2);
    let text = telemetry.render();
    assert!(text.contains(r#"sluicegate_in_flight_requests{model="m",version="1"} 2"#), "a scrape shows it\n{text}");
    let known = telemetry.versions();
    assert_eq!(known.iter().map(|v| (v.version(), v.in_flight())).collect::<Vec<_>>(), [("1", 2)]);
    drop(a);
    assert_eq!(metrics.in_flight(), 1);
    drop(b);
    assert_eq!(metrics.in_flight(), 0);
}

#[test]
fn an_arm_keeps_its_counts_when_rebuilt_and_starts_at_zero_under_a_new_revision() {
    let version = version_metrics(&Telemetry::new(), "1");
    let arm = |revision| ArmMetrics::of_revision(std::sync::Arc::clone(&version), "control", revision, Unit::Request);
    let first = arm(1);
    first.ended(&Ended::of(None, Duration::ZERO, true));
    first.ended(&Ended::of(Some(Code::EngineFailed), Duration::ZERO, true));
    let again = arm(1);
    again.ended(&Ended::of(None, Duration::ZERO, true));
    assert_eq!((first.requests(), again.requests()), (3, 3), "both count for the same arm of the same document");
    drop((first, again));
    assert_eq!(arm(1).requests(), 3, "also when no arm was held for a moment");
    let next = arm(2);
    next.ended(&Ended::of(None, Duration::ZERO, true));
    assert_eq!(next.requests(), 1);
}

#[test]
fn code_slots_follow_the_order_of_all() {
    for (i, code) in Code::ALL.iter().enumerate() {
        assert_eq!(*code as usize, i, "{code} has its own slot");
    }
}

#[test]
fn the_documentation_lists_every_metric() {
    let text = include_str!("../../docs/METRICS.md");
    for metric in names::ALL {
        let kind = match metric.kind {
            names::Kind::Counter => "counter",
            names::Kind::Gauge => "gauge",
            names::Kind::Histogram(_) => "histogram",
        };
        let labels = if metric.labels.is_empty() { "–".to_owned() } else { metric.labels.join(", ") };
        let row = format!("| `{}` | {kind} | {labels} | {} |", metric.name, metric.help);
        assert!(text.contains(&row), "docs/METRICS.md lacks this row:\n{row}");
    }
    assert_eq!(text.matches("| `sluicegate_").count(), names::ALL.len(), "and no others");
}

fn figures(model: &crate::model::ModelName, version: u64) -> QualityFigures<'_> {
    QualityFigures {
        model,
        version: version.to_string().parse().unwrap(),
        arm: "control",
        labelled: 3,
        accuracy: Some(0.5),
        mean_absolute_error: None,
        mean_delay: Some(1.5),
        values: vec![("revenue", 2, 30.0, Some(4.0)), ("clicked", 1, 1.0, None)],
    }
}

#[test]
fn quality_series_are_removed_with_their_version_and_stay_while_it_is_idle() {
    let telemetry = Telemetry::new();
    let one = version_metrics(&telemetry, "1");
    let _two = version_metrics(&telemetry, "2");
    let model = "m".parse().unwrap();
    let both = || [figures(&model, 1), figures(&model, 2)];
    telemetry.show_quality(both());
    for _ in 0..3 {
        telemetry.upkeep();
        let text = telemetry.render();
        for version in ["1", "2"] {
            let series = format!(
                r#"sluicegate_quality_value_mean{{model="m",version="{version}",arm="control",value="revenue"}} 30"#
            );
            assert!(text.contains(&series), "{text}");
        }
    }
    drop(one);
    // Late feedback about an unloaded version changes nothing here.
    telemetry.show_quality(both());
    let text = telemetry.render();
    assert!(!text.contains(r#"version="1""#), "{text}");
    assert!(text.contains(r#"sluicegate_quality_accuracy{model="m",version="2",arm="control"} 0.5"#), "{text}");
}

#[test]
fn quality_series_of_an_arm_or_value_that_is_gone_are_removed() {
    let telemetry = Telemetry::new();
    let _one = version_metrics(&telemetry, "1");
    let model = "m".parse().unwrap();
    telemetry.show_quality([figures(&model, 1), QualityFigures { arm: "old arm", ..figures(&model, 1) }]);
    assert!(telemetry.render().contains("old arm"));
    let mut fewer = figures(&model, 1);
    fewer.values.pop();
    fewer.accuracy = None;
    telemetry.show_quality([fewer]);
    let text = telemetry.render();
    assert!(!text.contains("old arm") && !text.contains("clicked") && !text.contains("quality_accuracy"), "{text}");
    assert!(text.contains("revenue"), "{text}");
    telemetry.show_quality([]);
    assert!(!telemetry.render().contains("sluicegate_quality"), "{}", telemetry.render());
}
