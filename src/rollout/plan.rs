//! The plan of a rollout, read from a request body.

use crate::model::{REASON, Version, is_reason};
use crate::settings::{parse_duration, show_duration};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

/// A rollout as an operator asked for it, with defaults filled in.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Plan {
    pub(crate) to: Version,
    /// The candidate's share in percent, ascending, above 0 and at most 100.
    pub(crate) steps: Vec<f64>,
    /// The shortest time that each step is held.
    pub(crate) hold: Duration,
    /// Requests that the candidate needs in each step.
    pub(crate) min_requests: u64,
    /// Pairs that are needed before the first step when `shadow_disagreement` is a guardrail.
    pub(crate) min_shadow_pairs: u64,
    pub(crate) shadow_sample: f64,
    pub(crate) guardrails: Guardrails,
    pub(crate) require: Require,
    /// `guardrails.metrics`: for business metrics, the least difference to the control that is allowed, where more is better.
    pub(crate) metrics: BTreeMap<String, f64>,
    /// The business metric that ends the rollout early once it is better beyond doubt.
    pub(crate) goal: Option<String>,
    pub(crate) allow_signature_change: bool,
    /// Move traffic to the version although nobody approved it. For admins.
    pub(crate) break_glass: bool,
    pub(crate) reason: String,
}

/// Limits that move the traffic back when they are violated. `None`: not checked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Guardrails {
    /// The candidate's rate of failed requests divided by the control's.
    pub(crate) error_rate_ratio: Option<f64>,
    /// The same for requests with NaN or infinite outputs.
    pub(crate) nonfinite_ratio: Option<f64>,
    /// The candidate's 99th percentile of the latency divided by the control's.
    pub(crate) p99_latency_ratio: Option<f64>,
    /// The candidate's median engine time per row divided by the control's.
    pub(crate) engine_time_ratio: Option<f64>,
    /// How many times as often the control's answers may differ from the answer before.
    pub(crate) constant_output_ratio: Option<f64>,
    /// The share of the candidate's requests that may fail.
    pub(crate) max_error_rate: Option<f64>,
    /// The largest 99th percentile of the candidate's latency.
    pub(crate) max_p99_ms: Option<f64>,
    /// The 99th percentile of the latency of both sides, divided by that from before the rollout.
    pub(crate) p99_before_ratio: Option<f64>,
    /// Before the first step: the share of shadow pairs that may disagree.
    pub(crate) shadow_disagreement: Option<f64>,
    /// The largest share of rollouts that are moved back although the candidate is no worse.
    pub(crate) false_alarm_rate: f64,
}

/// What must be shown before the next step: the upper end of the interval of each is at most this. `None`: not asked for.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Require {
    /// The candidate's rate of failed requests divided by the control's.
    pub(crate) error_rate_ratio: Option<f64>,
    /// The candidate's rate of failed requests less the control's.
    pub(crate) error_rate_difference: Option<f64>,
    /// The candidate's rate of failed requests.
    pub(crate) max_error_rate: Option<f64>,
}

impl Default for Guardrails {
    fn default() -> Guardrails {
        Guardrails {
            error_rate_ratio: Some(1.0),
            nonfinite_ratio: Some(1.0),
            p99_latency_ratio: Some(1.5),
            engine_time_ratio: Some(1.5),
            constant_output_ratio: Some(10.0),
            max_error_rate: None,
            max_p99_ms: None,
            p99_before_ratio: None,
            shadow_disagreement: None,
            false_alarm_rate: 0.05,
        }
    }
}

impl Guardrails {
    /// The comparisons that can raise a false alarm: one per guardrail and step that has a control, and one for the shadow.
    fn comparisons(&self, compared_steps: usize) -> usize {
        let of_a_step = [
            self.error_rate_ratio,
            self.nonfinite_ratio,
            self.p99_latency_ratio,
            self.engine_time_ratio,
            self.constant_output_ratio,
            self.max_error_rate,
            self.max_p99_ms,
            self.p99_before_ratio,
        ];
        let of_a_step = of_a_step.iter().flatten().count();
        of_a_step * compared_steps + usize::from(self.shadow_disagreement.is_some())
    }
}

const MEMBERS: [&str; 12] = [
    "to",
    "steps",
    "hold",
    "min_requests",
    "min_shadow_pairs",
    "shadow_sample",
    "guardrails",
    "require",
    "goal",
    "allow_signature_change",
    "break_glass",
    "reason",
];
const GUARDRAILS: [&str; 11] = [
    "error_rate_ratio",
    "nonfinite_ratio",
    "p99_latency_ratio",
    "engine_time_ratio",
    "constant_output_ratio",
    "max_error_rate",
    "max_p99_ms",
    "p99_before_ratio",
    "shadow_disagreement",
    "false_alarm_rate",
    "metrics",
];
const REQUIRE: [&str; 3] = ["error_rate_ratio", "error_rate_difference", "max_error_rate"];
/// The most steps of a plan. Each is a document of its own in the history, and one per percent is finer than evidence can tell apart.
pub(crate) const MOST_STEPS: usize = 100;
/// A longer hold is most likely a mistake in the unit.
const LONGEST_HOLD: Duration = Duration::from_hours(24 * 365);

impl Plan {
    /// Reads a request body. `null` counts as absent, except in `guardrails`, where it switches a guardrail off.
    ///
    /// # Errors
    /// All complaints at once, each with its key, what was expected and what was found.
    pub(crate) fn parse(value: &Value) -> Result<Plan, Vec<String>> {
        let Value::Object(members) = value else {
            return Err(vec![format!(
                "expected an object such as {{\"to\":\"4\",\"reason\":\"…\"}}, got {}",
                shorten(value)
            )]);
        };
        let mut reader = PlanReader { complaints: Vec::new() };
        reader.refuse_unknown("", members, &MEMBERS);
        let given = |name: &str| members.get(name).filter(|value| !value.is_null());
        let to = reader.version(given("to"));
        let steps = reader.steps(given("steps"));
        let hold = reader.hold(given("hold"));
        let min_requests = reader.count("min_requests", given("min_requests"), 100);
        let min_shadow_pairs = reader.count("min_shadow_pairs", given("min_shadow_pairs"), 1000);
        let sample = "a number above 0 and at most 1";
        let shadow_sample = reader.number("shadow_sample", given("shadow_sample"), sample, |n| n > 0.0 && n <= 1.0);
        let guardrails = reader.guardrails(given("guardrails"));
        let metrics = reader.metrics(given("guardrails").and_then(|guardrails| guardrails.get("metrics")));
        let require = reader.require(given("require"));
        let goal = reader.goal(given("goal"));
        let allow_signature_change = reader.flag("allow_signature_change", given("allow_signature_change"));
        let break_glass = reader.flag("break_glass", given("break_glass"));
        let reason = reader.reason(given("reason"));
        match (to, reason) {
            (Some(to), Some(reason)) if reader.complaints.is_empty() => Ok(Plan {
                to,
                steps,
                hold,
                min_requests,
                min_shadow_pairs,
                shadow_sample: shadow_sample.unwrap_or(1.0),
                guardrails,
                require,
                metrics,
                goal,
                allow_signature_change,
                break_glass,
                reason,
            }),
            _ => Err(reader.complaints),
        }
    }

    /// Steps in which the candidate is compared with a control.
    pub(crate) fn compared_steps(&self) -> usize {
        self.steps.iter().filter(|percent| **percent < 100.0).count()
    }

    /// Whether business metrics decide.
    pub(crate) fn has_metrics(&self) -> bool {
        !self.metrics.is_empty() || self.goal.is_some()
    }

    /// The level α of each single comparison: the false-alarm rate divided by the number of comparisons (a union bound).
    pub(crate) fn level(&self) -> f64 {
        let of_metrics = (self.metrics.len() + usize::from(self.goal.is_some())) * self.compared_steps();
        let comparisons = self.guardrails.comparisons(self.compared_steps()) + of_metrics;
        self.guardrails.false_alarm_rate / comparisons.max(1) as f64
    }

    /// The request body with every default written out.
    pub(crate) fn to_json(&self) -> Value {
        let (g, require) = (&self.guardrails, &self.require);
        json!({
            "to": self.to,
            "steps": self.steps,
            "hold": show_duration(self.hold),
            "min_requests": self.min_requests,
            "min_shadow_pairs": self.min_shadow_pairs,
            "shadow_sample": self.shadow_sample,
            "guardrails": {
                "error_rate_ratio": g.error_rate_ratio,
                "nonfinite_ratio": g.nonfinite_ratio,
                "p99_latency_ratio": g.p99_latency_ratio,
                "engine_time_ratio": g.engine_time_ratio,
                "constant_output_ratio": g.constant_output_ratio,
                "max_error_rate": g.max_error_rate,
                "max_p99_ms": g.max_p99_ms,
                "p99_before_ratio": g.p99_before_ratio,
                "shadow_disagreement": g.shadow_disagreement,
                "false_alarm_rate": g.false_alarm_rate,
                "metrics": self.metrics.iter().map(|(name, limit)| (name.clone(), json!({"not_worse_than": limit}))).collect::<Map<_, _>>(),
            },
            "goal": self.goal.as_ref().map(|metric| json!({"metric": metric})),
            "require": {
                "error_rate_ratio": require.error_rate_ratio,
                "error_rate_difference": require.error_rate_difference,
                "max_error_rate": require.max_error_rate,
            },
            "allow_signature_change": self.allow_signature_change,
            "break_glass": self.break_glass,
            "reason": self.reason,
        })
    }
}

/// Reads members and collects complaints. Every method takes `None` for an absent member.
struct PlanReader {
    complaints: Vec<String>,
}

impl PlanReader {
    fn complain(&mut self, key: &str, expected: &str, found: Option<&Value>) {
        let found = found.map_or_else(|| "nothing".to_owned(), shorten);
        self.complaints.push(format!("{key}: expected {expected}, got {found}"));
    }

    fn refuse_unknown(&mut self, prefix: &str, members: &Map<String, Value>, known: &[&str]) {
        for name in members.keys().filter(|name| !known.contains(&name.as_str())) {
            let name: String = name.chars().take(80).collect();
            self.complaints.push(format!("{prefix}{name}: unknown member; known members: {}", known.join(", ")));
        }
    }

    fn version(&mut self, value: Option<&Value>) -> Option<Version> {
        let version = value.and_then(Value::as_str).and_then(|text| text.parse().ok());
        if version.is_none() {
            self.complain("to", "a version as a string, such as \"4\"", value);
        }
        version
    }

    fn steps(&mut self, value: Option<&Value>) -> Vec<f64> {
        let Some(value) = value else { return vec![1.0, 5.0, 25.0, 50.0, 100.0] };
        if let Some(given) = value.as_array().map(Vec::len).filter(|given| *given > MOST_STEPS) {
            self.complaints.push(format!("steps: expected at most {MOST_STEPS} percentages, got {given}"));
            return Vec::new();
        }
        let steps: Option<Vec<f64>> =
            value.as_array().and_then(|steps| steps.iter().map(Value::as_f64).collect::<Option<_>>());
        let fits = |steps: &Vec<f64>| {
            !steps.is_empty()
                && steps.iter().all(|percent| *percent > 0.0 && *percent <= 100.0)
                && steps.windows(2).all(|pair| pair[0] < pair[1])
        };
        steps.filter(fits).unwrap_or_else(|| {
            let expected = "ascending percentages above 0 and at most 100, such as [1,5,25,50,100]";
            self.complain("steps", expected, Some(value));
            Vec::new()
        })
    }

    fn hold(&mut self, value: Option<&Value>) -> Duration {
        const DEFAULT: Duration = Duration::from_mins(10);
        let Some(value) = value else { return DEFAULT };
        let hold = value.as_str().and_then(parse_duration).filter(|hold| *hold <= LONGEST_HOLD);
        hold.unwrap_or_else(|| {
            self.complain("hold", "a duration with a unit, such as \"10m\" or \"30s\", at most a year", Some(value));
            DEFAULT
        })
    }

    fn count(&mut self, key: &str, value: Option<&Value>, default: u64) -> u64 {
        let Some(value) = value else { return default };
        value.as_u64().unwrap_or_else(|| {
            self.complain(key, "a whole number of 0 or more", Some(value));
            default
        })
    }

    fn number(&mut self, key: &str, value: Option<&Value>, expected: &str, fits: fn(f64) -> bool) -> Option<f64> {
        let value = value?;
        let number = value.as_f64().filter(|n| fits(*n));
        if number.is_none() {
            self.complain(key, expected, Some(value));
        }
        number
    }

    fn flag(&mut self, key: &str, value: Option<&Value>) -> bool {
        match value {
            None => false,
            Some(Value::Bool(flag)) => *flag,
            Some(other) => {
                self.complain(key, "true or false", Some(other));
                false
            }
        }
    }

    fn reason(&mut self, value: Option<&Value>) -> Option<String> {
        match value {
            Some(Value::String(reason)) if is_reason(reason) => Some(reason.clone()),
            other => {
                self.complain("reason", REASON, other);
                None
            }
        }
    }

    fn guardrails(&mut self, value: Option<&Value>) -> Guardrails {
        let default = Guardrails::default();
        let members = match value {
            None => return default,
            Some(Value::Object(members)) => members,
            Some(other) => {
                self.complain("guardrails", "an object such as {\"error_rate_ratio\":1.2}", Some(other));
                return default;
            }
        };
        self.refuse_unknown("guardrails.", members, &GUARDRAILS);
        let mut limit = |key: &str, default: Option<f64>, expected: &str, fits: fn(f64) -> bool| match members.get(key)
        {
            None => default,
            Some(Value::Null) => None,
            value => self.number(&format!("guardrails.{key}"), value, expected, fits),
        };
        let ratio = "a ratio from 0.1 to 50, or null for off";
        let is_ratio = |n| (0.1..=50.0).contains(&n);
        let share = "a share from 0 to below 1, or null for off";
        let rate = "a share above 0 and at most 0.5";
        Guardrails {
            error_rate_ratio: limit("error_rate_ratio", default.error_rate_ratio, ratio, is_ratio),
            nonfinite_ratio: limit("nonfinite_ratio", default.nonfinite_ratio, ratio, is_ratio),
            p99_latency_ratio: limit("p99_latency_ratio", default.p99_latency_ratio, ratio, is_ratio),
            engine_time_ratio: limit("engine_time_ratio", default.engine_time_ratio, ratio, is_ratio),
            constant_output_ratio: limit("constant_output_ratio", default.constant_output_ratio, ratio, is_ratio),
            max_error_rate: limit("max_error_rate", None, share, |n| (0.0..1.0).contains(&n)),
            max_p99_ms: limit("max_p99_ms", None, "milliseconds above 0 and at most 30000, or null for off", |n| {
                n > 0.0 && n <= 30_000.0
            }),
            p99_before_ratio: limit("p99_before_ratio", None, ratio, is_ratio),
            shadow_disagreement: limit("shadow_disagreement", None, share, |n| (0.0..1.0).contains(&n)),
            false_alarm_rate: limit("false_alarm_rate", None, rate, |n| n > 0.0 && n <= 0.5)
                .unwrap_or(default.false_alarm_rate),
        }
    }
}

/// The most business metrics of a plan.
const MAX_METRICS: usize = 16;

impl PlanReader {
    fn metrics(&mut self, value: Option<&Value>) -> BTreeMap<String, f64> {
        let expected = "an object such as {\"clicked\":{\"not_worse_than\":-0.02}} of at most 16 metrics";
        let members = match value {
            None | Some(Value::Null) => return BTreeMap::new(),
            Some(Value::Object(members)) if members.len() <= MAX_METRICS => members,
            other => {
                self.complain("guardrails.metrics", expected, other);
                return BTreeMap::new();
            }
        };
        let mut limits = BTreeMap::new();
        for (name, of) in members {
            let key = format!("guardrails.metrics.{}", name.chars().take(80).collect::<String>());
            let limit = of.get("not_worse_than").and_then(Value::as_f64).filter(|n| (-1e12..=0.0).contains(n));
            if let Some(limit) = limit.filter(|_| of.as_object().is_some_and(|members| members.len() == 1)) {
                limits.insert(name.clone(), limit);
            } else {
                self.complain(&key, "{\"not_worse_than\": a difference of 0 or less}, where more is better", Some(of));
            }
        }
        limits
    }

    fn goal(&mut self, value: Option<&Value>) -> Option<String> {
        let value = value?;
        let metric =
            value.get("metric").and_then(Value::as_str).filter(|_| value.as_object().is_some_and(|o| o.len() == 1));
        if metric.is_none() {
            self.complain("goal", "an object such as {\"metric\":\"revenue\"}", Some(value));
        }
        metric.map(str::to_owned)
    }

    fn require(&mut self, value: Option<&Value>) -> Require {
        let members = match value {
            None => return Require::default(),
            Some(Value::Object(members)) => members,
            Some(other) => {
                self.complain("require", "an object such as {\"error_rate_ratio\":1.5}", Some(other));
                return Require::default();
            }
        };
        self.refuse_unknown("require.", members, &REQUIRE);
        let mut limit = |key: &str, expected: &str, fits: fn(f64) -> bool| {
            let value = members.get(key).filter(|value| !value.is_null());
            self.number(&format!("require.{key}"), value, expected, fits)
        };
        let share = "a share above 0 and below 1";
        let is_share = |n: f64| n > 0.0 && n < 1.0;
        Require {
            error_rate_ratio: limit("error_rate_ratio", "a ratio above 1 and at most 50", |n| n > 1.0 && n <= 50.0),
            error_rate_difference: limit("error_rate_difference", share, is_share),
            max_error_rate: limit("max_error_rate", share, is_share),
        }
    }
}

/// A value as it is quoted in a complaint.
fn shorten(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() > 80 { text.chars().take(77).chain("...".chars()).collect() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_members_have_defaults() {
        let plan = Plan::parse(&json!({"to": "4", "reason": "better"})).unwrap();
        assert_eq!(plan.steps, [1.0, 5.0, 25.0, 50.0, 100.0]);
        assert_eq!((plan.hold, plan.min_requests), (Duration::from_mins(10), 100));
        assert_eq!(plan.guardrails, Guardrails::default());
        // Five ratios in four steps that have a control.
        assert!((plan.level() - 0.05 / 20.0).abs() < 1e-15);
    }

    #[test]
    fn null_counts_as_absent_and_switches_a_guardrail_off() {
        let plan = Plan::parse(&json!({
            "to": "4", "reason": "better", "steps": null, "hold": null, "min_requests": null, "min_shadow_pairs": null,
            "shadow_sample": null, "guardrails": null, "allow_signature_change": null,
            "break_glass": null
        }));
        assert_eq!(plan.unwrap(), Plan::parse(&json!({"to": "4", "reason": "better"})).unwrap());
        let off = json!({"error_rate_ratio": null, "nonfinite_ratio": null, "p99_latency_ratio": null, "engine_time_ratio": null,
                         "constant_output_ratio": null, "max_error_rate": null, "max_p99_ms": null, "p99_before_ratio": null,
                         "shadow_disagreement": null, "false_alarm_rate": null});
        let plan = Plan::parse(&json!({"to": "4", "reason": "better", "guardrails": off})).unwrap();
        let none = Guardrails {
            error_rate_ratio: None,
            nonfinite_ratio: None,
            p99_latency_ratio: None,
            engine_time_ratio: None,
            constant_output_ratio: None,
            ..Guardrails::default()
        };
        assert_eq!(plan.guardrails, none);
        let missing = Plan::parse(&json!({"to": null, "reason": null})).unwrap_err();
        assert!(missing.iter().all(|complaint| complaint.ends_with("got nothing")), "{missing:?}");
        assert_eq!(missing.len(), 2);
    }

    #[test]
    fn a_plan_can_be_read_back_from_its_json() {
        let plan = Plan::parse(&json!({
            "to": "4", "steps": [10, 50.5], "hold": "90s", "min_requests": 7, "min_shadow_pairs": 20, "shadow_sample": 0.5,
            "guardrails": {"error_rate_ratio": null, "p99_latency_ratio": 2, "shadow_disagreement": 0.02, "false_alarm_rate": 0.01,
                           "max_p99_ms": 20.5, "max_error_rate": 0.1, "p99_before_ratio": 2, "metrics": {"clicked": {"not_worse_than": -0.02}}},
            "require": {"error_rate_ratio": 1.5, "max_error_rate": 0.02}, "goal": {"metric": "revenue"},
            "allow_signature_change": true, "break_glass": true, "reason": "better"
        }));
        let plan = plan.unwrap();
        assert_eq!(plan.guardrails.error_rate_ratio, None);
        assert_eq!(plan.guardrails.nonfinite_ratio, Some(1.0));
        assert_eq!((plan.metrics["clicked"], plan.goal.as_deref()), (-0.02, Some("revenue")));
        // Seven guardrails and two metrics in two steps, and the shadow.
        assert!((plan.level() - 0.01 / 19.0).abs() < 1e-15, "{}", plan.level());
        assert_eq!(Plan::parse(&plan.to_json()).unwrap(), plan);
    }

    #[test]
    fn all_complaints_come_at_once() {
        let complaints = Plan::parse(&json!({
            "to": 4, "steps": [5, 5], "hold": 10, "min_requests": -1, "shadow_sample": 2,
            "guardrails": {"error_rate": 1, "p99_latency_ratio": 0, "shadow_disagreement": 1, "false_alarm_rate": 0, "max_p99_ms": 0,
                           "metrics": {"a": {"not_worse_than": 0.1}, "b": -1, "c": {"not_worse_than": -1, "x": 1}}},
            "require": {"error_rate_ratio": 1, "error_rate": 2, "error_rate_difference": 1},
            "goal": "revenue", "raeson": "typo"
        }));
        let complaints = complaints.unwrap_err();
        for key in [
            "to:",
            "steps:",
            "hold:",
            "min_requests:",
            "shadow_sample:",
            "guardrails.error_rate: unknown",
            "guardrails.p99_latency_ratio:",
            "guardrails.shadow_disagreement:",
            "guardrails.false_alarm_rate:",
            "guardrails.max_p99_ms:",
            "guardrails.metrics.a:",
            "guardrails.metrics.b:",
            "guardrails.metrics.c:",
            "goal:",
            "require.error_rate: unknown",
            "require.error_rate_ratio:",
            "require.error_rate_difference:",
            "raeson: unknown",
            "reason:",
        ] {
            assert!(complaints.iter().any(|c| c.starts_with(key)), "{key} in {complaints:#?}");
        }
        for steps in [json!([]), json!([0]), json!([101]), json!([50, 10]), json!("all")] {
            assert!(Plan::parse(&json!({"to": "1", "reason": "r", "steps": steps})).is_err(), "{steps}");
        }
    }

    #[test]
    fn a_plan_has_at_most_a_hundred_steps() {
        let of = |steps: u32| {
            let steps: Vec<f64> = (1..=steps).map(|step| f64::from(step) / 10.0).collect();
            Plan::parse(&json!({"to": "1", "reason": "r", "steps": steps}))
        };
        assert_eq!(of(100).unwrap().steps.len(), MOST_STEPS);
        assert_eq!(of(101).unwrap_err(), ["steps: expected at most 100 percentages, got 101"]);
    }
}
