//! Requests that fail, and outputs that are not finite, by the counts of the arms of all splits.

use crate::alerts::{About, Burn, Burning, Finding, Now, Rule, Severity};
use crate::model::{ModelName, Version};
use crate::registry::Reader;
use crate::settings::show_duration;
use crate::telemetry::ArmTotals;
use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

/// The arms of all models with what they counted, each under a name that no other arm, version or revision of its model has.
fn arms(reader: &Reader) -> Vec<(ModelName, Version, String, ArmTotals)> {
    let snapshot = reader.snapshot();
    let mut all = Vec::new();
    for entry in snapshot.models() {
        for served in entry.arms() {
            let version = served.loaded.version;
            let name = format!("{version}/{}/{}", served.arm(), entry.revision());
            all.push((entry.name().clone(), version, name, served.metrics.totals()));
        }
    }
    all
}

/// Models whose requests fail faster than the error budget allows.
pub(super) fn error_budget(reader: &Reader, burn: &mut Burn, budget: f64, now: Now) -> Vec<Finding> {
    let totals = arms(reader).into_iter().map(|(model, _, arm, totals)| (model, arm, totals.answered, totals.failed));
    let finding = |burning: Burning| {
        let Burning { model, severity, rate, window, requests, failed } = burning;
        let window = show_duration(window);
        let share = failed as f64 / requests.max(1) as f64 * 100.0;
        Finding {
            about: About::model(Rule::ErrorBudget, &model),
            severity,
            summary: format!(
                "{failed} of {requests} requests for {model} failed in the last {window} ({share:.2} %): {rate:.1} times as many as the budget of {} % allows",
                budget * 100.0
            ),
            how_sure: "counted, not sampled; requests since the last start of the server".to_owned(),
            what_to_do: format!(
                "`sluicegate traffic {model}` and `sluicegate history {model}` show what changed; `sluicegate rollback {model}` goes back"
            ),
            since: None,
            training: None,
        }
    };
    burn.look(now.at, budget, totals).into_iter().map(finding).collect()
}

/// Versions with outputs that are NaN or infinite, lately.
#[derive(Debug)]
pub(super) struct NonFinite {
    began: Instant,
    totals: HashMap<(ModelName, String), ArmTotals>,
    versions: HashMap<(ModelName, Version), VecDeque<Minute>>,
}

#[derive(Debug, Clone, Copy)]
struct Minute {
    index: u64,
    answered: u64,
    nonfinite: u64,
}

/// So many minutes count.
const LATELY: u64 = 10;
/// The least requests with such outputs, and their least share: single ones are mostly a caller's input.
const LEAST: u64 = 3;
const LEAST_SHARE: f64 = 0.001;

impl NonFinite {
    pub(super) fn new(began: Instant) -> NonFinite {
        NonFinite { began, totals: HashMap::new(), versions: HashMap::new() }
    }

    pub(super) fn look(&mut self, reader: &Reader, now: Now) -> Vec<Finding> {
        self.count(arms(reader), now.at)
    }

    fn count(&mut self, arms: Vec<(ModelName, Version, String, ArmTotals)>, at: Instant) -> Vec<Finding> {
        let index = at.saturating_duration_since(self.began).as_secs() / 60;
        let mut seen = HashSet::new();
        for (model, version, arm, totals) in arms {
            let key = (model.clone(), arm);
            let before = self.totals.insert(key.clone(), totals).unwrap_or_default();
            seen.insert(key);
            let answered = totals.answered.saturating_sub(before.answered);
            let nonfinite = totals.nonfinite.saturating_sub(before.nonfinite);
            // Versions without such outputs take no memory until they have the first one.
            if nonfinite == 0 && !self.versions.contains_key(&(model.clone(), version)) {
                continue;
            }
            let minutes = self.versions.entry((model, version)).or_default();
            match minutes.back_mut().filter(|minute| minute.index == index) {
                Some(minute) => {
                    minute.answered += answered;
                    minute.nonfinite += nonfinite;
                }
                None => minutes.push_back(Minute { index, answered, nonfinite }),
            }
        }
        self.totals.retain(|key, _| seen.contains(key));
        self.versions.retain(|_, minutes| {
            minutes.retain(|minute| minute.index + LATELY > index);
            minutes.iter().any(|minute| minute.nonfinite > 0)
        });
        let mut findings = Vec::new();
        for ((model, version), minutes) in &self.versions {
            let answered: u64 = minutes.iter().map(|minute| minute.answered).sum();
            let nonfinite: u64 = minutes.iter().map(|minute| minute.nonfinite).sum();
            let share = nonfinite as f64 / answered.max(nonfinite).max(1) as f64;
            if nonfinite >= LEAST && share >= LEAST_SHARE {
                findings.push(nonfinite_finding(model, *version, nonfinite, answered, share));
            }
        }
        findings
    }
}

fn nonfinite_finding(model: &ModelName, version: Version, nonfinite: u64, answered: u64, share: f64) -> Finding {
    let lately = show_duration(Duration::from_secs(LATELY * 60));
    Finding {
        about: About::version(Rule::NonFinite, model, version),
        severity: if share >= 0.1 { Severity::Critical } else { Severity::Warning },
        summary: format!(
            "{nonfinite} of {answered} answers of version {version} of {model} had NaN or infinite outputs in the last {lately} ({:.2} %)",
            share * 100.0
        ),
        how_sure: "counted, not sampled".to_owned(),
        what_to_do: format!(
            "look for inputs that cause it: `sluicegate export {model} --version {version} -o {model}.parquet`; `sluicegate rollback {model}` goes back"
        ),
        since: None,
        training: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonfinite_outputs_are_found_from_the_third_request_on_and_forgotten_after_ten_minutes() {
        let began = Instant::now();
        let mut watch = NonFinite::new(began);
        let mut look = |minutes: u64, answered, nonfinite| {
            let totals = ArmTotals { answered, failed: 0, nonfinite };
            let arm = ("m".parse().unwrap(), "1".parse().unwrap(), "1/control/3".to_owned(), totals);
            watch.count(vec![arm], began + Duration::from_secs(minutes * 60)).len()
        };
        assert_eq!(look(0, 1000, 0), 0);
        assert_eq!(look(1, 1100, 2), 0, "two may be one caller's inputs");
        assert_eq!(look(2, 1200, 3), 1);
        assert_eq!(look(11, 1300, 3), 0, "the first two are older than ten minutes");
        assert_eq!(look(30, 101_300, 13), 0, "ten of a hundred thousand are too few to matter");
        assert_eq!(look(31, 101_400, 213), 1);
    }
}
