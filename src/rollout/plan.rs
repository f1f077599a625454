//! What an operator asked for, checked whole.

use crate::model::Version;
use crate::settings::{parse_duration, show_duration};
use serde_json::{Map, Value, json};
use std::time::Duration;

/// A rollout as it was asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    pub to: Version,
    /// Percentages, ascending, above 0 and at most 100.
    pub steps: Vec<f64>,
    /// For each step, at least.
    pub hold: Duration,
    /// Of the candidate, in each step, at least.
    pub min_requests: u64,
    /// Before the first step, where `shadow_disagreement` is a guardrail.
    pub min_shadow_pairs: u64,
    pub shadow_sample: f64,
    pub guardrails: Guardrails,
    pub allow_signature_change: bool,
    pub reason: String,
}

/// What takes the traffic back. `None`: not watched.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Guardrails {
    /// The candidate's share of failed requests may be this many times the control's.
    pub error_rate_ratio: Option<f64>,
    /// The same for requests with outputs that are NaN or infinite.
    pub nonfinite_ratio: Option<f64>,
    /// The candidate's 99th percentile may be this many times the control's.
    pub p99_latency_ratio: Option<f64>,
    /// Before the first step: the share of shadow pairs that may disagree.
    pub shadow_disagreement: Option<f64>,
    /// The share of rollouts without any difference that are taken back at most.
    pub false_alarm_rate: f64,
}

impl Default for Guardrails {
    fn default() -> Guardrails {
        Guardrails {
            error_rate_ratio: Some(1.0),
            nonfinite_ratio: Some(1.0),
            p99_latency_ratio: Some(1.5),
            shadow_disagreement: None,
            false_alarm_rate: 0.05,
        }
    }
}

impl Guardrails {
    /// The level each single comparison is made at: the false-alarm rate shared among all there are (a union bound): each ratio in
    /// each step that has a control, and the shadow's.
    #[must_use]
    pub fn level(&self, steps: &[f64]) -> f64 {
        let ratios = [self.error_rate_ratio, self.nonfinite_ratio, self.p99_latency_ratio].iter().flatten().count();
        let compared = steps.iter().filter(|percent| **percent < 100.0).count();
        let comparisons = ratios * compared + usize::from(self.shadow_disagreement.is_some());
        self.false_alarm_rate / comparisons.max(1) as f64
    }
}

const KNOWN: [&str; 9] = [
    "to",
    "steps",
    "hold",
    "min_requests",
    "min_shadow_pairs",
    "shadow_sample",
    "guardrails",
    "allow_signature_change",
    "reason",
];
const GUARDRAILS: [&str; 5] =
    ["error_rate_ratio", "nonfinite_ratio", "p99_latency_ratio", "shadow_disagreement", "false_alarm_rate"];
/// A step is looked at ten times a second; what is held a year is forgotten.
const LONGEST_HOLD: Duration = Duration::from_hours(24 * 365);

impl Plan {
    /// Reads a request's body.
    ///
    /// # Errors
    /// Every complaint at once, each with its key, what was expected and what was found.
    pub fn parse(value: &Value) -> Result<Plan, Vec<String>> {
        let Value::Object(members) = value else {
            return Err(vec![format!("expected an object such as {{\"to\":\"4\",\"reason\":\"…\"}}, got {value}")]);
        };
        let mut reader = Reader { complaints: Vec::new() };
        reader.known("", members, &KNOWN);
        let to = reader.version(members.get("to"));
        let steps = reader.steps(members.get("steps"));
        let hold = reader.hold(members.get("hold"));
        let min_requests = reader.count("min_requests", members.get("min_requests"), 100);
        let min_shadow_pairs = reader.count("min_shadow_pairs", members.get("min_shadow_pairs"), 1000);
        let sample = "a number above 0 and at most 1";
        let shadow_sample =
            reader.number("shadow_sample", members.get("shadow_sample"), sample, |n| n > 0.0 && n <= 1.0);
        let guardrails = reader.guardrails(members.get("guardrails"));
        let allow_signature_change = match members.get("allow_signature_change") {
            None | Some(Value::Bool(false)) => false,
            Some(Value::Bool(true)) => true,
            Some(other) => {
                reader.complain("allow_signature_change", "true or false", Some(other));
                false
            }
        };
        let reason = match members.get("reason") {
            Some(Value::String(reason)) if !reason.trim().is_empty() => reason.clone(),
            other => {
                let right = "a reason, which is required and is kept in the audit trail";
                reader.complain("reason", right, other.filter(|v| !v.is_null()));
                String::new()
            }
        };
        match to {
            Some(to) if reader.complaints.is_empty() => Ok(Plan {
                to,
                steps,
                hold,
                min_requests,
                min_shadow_pairs,
                shadow_sample: shadow_sample.unwrap_or(1.0),
                guardrails,
                allow_signature_change,
                reason,
            }),
            _ => Err(reader.complaints),
        }
    }

    /// As it could have been asked for, every member said.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let g = &self.guardrails;
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
                "shadow_disagreement": g.shadow_disagreement,
                "false_alarm_rate": g.false_alarm_rate,
            },
            "allow_signature_change": self.allow_signature_change,
            "reason": self.reason,
        })
    }
}

struct Reader {
    complaints: Vec<String>,
}

impl Reader {
    fn complain(&mut self, key: &str, expected: &str, found: Option<&Value>) {
        let found = found.map_or_else(|| "nothing".to_owned(), Value::to_string);
        let found: String =
            if found.chars().count() > 80 { found.chars().take(77).chain("...".chars()).collect() } else { found };
        self.complaints.push(format!("{key}: expected {expected}, got {found}"));
    }

    fn known(&mut self, at: &str, members: &Map<String, Value>, known: &[&str]) {
        for name in members.keys().filter(|name| !known.contains(&name.as_str())) {
            self.complaints.push(format!("{at}{name}: unknown member; known here: {}", known.join(", ")));
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
        let Some(value) = value.filter(|v| !v.is_null()) else { return vec![1.0, 5.0, 25.0, 50.0, 100.0] };
        let steps: Option<Vec<f64>> =
            value.as_array().and_then(|steps| steps.iter().map(Value::as_f64).collect::<Option<_>>());
        let right = |steps: &Vec<f64>| {
            !steps.is_empty()
                && steps.iter().all(|percent| *percent > 0.0 && *percent <= 100.0)
                && steps.windows(2).all(|pair| pair[0] < pair[1])
        };
        steps.filter(right).unwrap_or_else(|| {
            self.complain(
                "steps",
                "percentages that rise, above 0 and at most 100, such as [1,5,25,50,100]",
                Some(value),
            );
            Vec::new()
        })
    }

    fn hold(&mut self, value: Option<&Value>) -> Duration {
        const DEFAULT: Duration = Duration::from_mins(10);
        let Some(value) = value.filter(|v| !v.is_null()) else { return DEFAULT };
        let hold = value.as_str().and_then(parse_duration).filter(|hold| *hold <= LONGEST_HOLD);
        hold.unwrap_or_else(|| {
            self.complain("hold", "a duration with its unit, such as \"10m\" or \"30s\"", Some(value));
            DEFAULT
        })
    }

    fn count(&mut self, key: &str, value: Option<&Value>, default: u64) -> u64 {
        let Some(value) = value.filter(|v| !v.is_null()) else { return default };
        value.as_u64().unwrap_or_else(|| {
            self.complain(key, "a whole number of 0 or more", Some(value));
            default
        })
    }

    fn number(&mut self, key: &str, value: Option<&Value>, right: &str, fits: fn(f64) -> bool) -> Option<f64> {
        let value = value.filter(|v| !v.is_null())?;
        let number = value.as_f64().filter(|n| fits(*n));
        if number.is_none() {
            self.complain(key, right, Some(value));
        }
        number
    }

    fn guardrails(&mut self, value: Option<&Value>) -> Guardrails {
        let default = Guardrails::default();
        let members = match value {
            None | Some(Value::Null) => return default,
            Some(Value::Object(members)) => members,
            Some(other) => {
                self.complain("guardrails", "an object such as {\"error_rate_ratio\":1.2}", Some(other));
                return default;
            }
        };
        self.known("guardrails.", members, &GUARDRAILS);
        let mut ratio = |key: &str, default: Option<f64>| match members.get(key) {
            None => default,
            value => {
                let right = "a ratio of 0.1 to 50, or null for none";
                self.number(&format!("guardrails.{key}"), value, right, |n| (0.1..=50.0).contains(&n))
            }
        };
        let error_rate_ratio = ratio("error_rate_ratio", default.error_rate_ratio);
        let nonfinite_ratio = ratio("nonfinite_ratio", default.nonfinite_ratio);
        let p99_latency_ratio = ratio("p99_latency_ratio", default.p99_latency_ratio);
        let share = "a share from 0 to below 1, or null for none";
        let shadow_disagreement =
            self.number("guardrails.shadow_disagreement", members.get("shadow_disagreement"), share, |n| {
                (0.0..1.0).contains(&n)
            });
        let rate = "a share above 0 and at most 0.5";
        let false_alarm_rate =
            self.number("guardrails.false_alarm_rate", members.get("false_alarm_rate"), rate, |n| n > 0.0 && n <= 0.5);
        Guardrails {
            error_rate_ratio,
            nonfinite_ratio,
            p99_latency_ratio,
            shadow_disagreement,
            false_alarm_rate: false_alarm_rate.unwrap_or(default.false_alarm_rate),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_has_its_default() {
        let plan = Plan::parse(&json!({"to": "4", "reason": "better"})).unwrap();
        assert_eq!(plan.steps, [1.0, 5.0, 25.0, 50.0, 100.0]);
        assert_eq!((plan.hold, plan.min_requests), (Duration::from_mins(10), 100));
        assert_eq!(plan.guardrails, Guardrails::default());
        // Three ratios in four steps with a control.
        assert!((plan.guardrails.level(&plan.steps) - 0.05 / 12.0).abs() < 1e-15);
    }

    #[test]
    fn a_plan_survives_its_json() {
        let plan = Plan::parse(&json!({
            "to": "4", "steps": [10, 50.5], "hold": "90s", "min_requests": 7, "min_shadow_pairs": 20, "shadow_sample": 0.5,
            "guardrails": {"error_rate_ratio": null, "p99_latency_ratio": 2, "shadow_disagreement": 0.02, "false_alarm_rate": 0.01},
            "allow_signature_change": true, "reason": "better"
        }));
        let plan = plan.unwrap();
        assert_eq!(plan.guardrails.error_rate_ratio, None);
        assert_eq!(plan.guardrails.nonfinite_ratio, Some(1.0));
        assert_eq!(Plan::parse(&plan.to_json()).unwrap(), plan);
    }

    #[test]
    fn every_complaint_is_made_at_once() {
        let complaints = Plan::parse(&json!({
            "to": 4, "steps": [5, 5], "hold": 10, "min_requests": -1, "shadow_sample": 2,
            "guardrails": {"error_rate": 1, "p99_latency_ratio": 0, "shadow_disagreement": 1, "false_alarm_rate": 0},
            "raeson": "typo"
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
            "raeson: unknown",
            "reason:",
        ] {
            assert!(complaints.iter().any(|c| c.starts_with(key)), "{key} in {complaints:#?}");
        }
        for steps in [json!([]), json!([0]), json!([101]), json!([50, 10]), json!("all")] {
            assert!(Plan::parse(&json!({"to": "1", "reason": "r", "steps": steps})).is_err(), "{steps}");
        }
    }
}
