//! `sluicegate rollout`: start, pause, resume, abort, show and watch.

use super::client::{Client, Done, path};
use super::show::{cell, list, table};
use super::{CommandError, RolloutOptions};
use serde_json::{Map, Value, json};
use std::fmt::Write as _;
use std::time::Duration;

/// The time between two requests of `--watch`.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

impl Client {
    pub(super) fn rollout(&self, options: &RolloutOptions) -> Done {
        let place = format!("{}/rollout", path(&options.model, ""));
        let reason = || json!({"reason": options.reason});
        let answer = if options.to.is_some() {
            self.send("POST", &path(&options.model, ":rollout"), &plan(options)?)?
        } else if options.pause {
            self.send("POST", &format!("{place}:pause"), &reason())?
        } else if options.resume {
            self.send("POST", &format!("{place}:resume"), &reason())?
        } else if options.abort {
            self.send("POST", &format!("{place}:abort"), &reason())?
        } else {
            self.get(&place)?
        };
        self.show(&answer, text)?;
        if options.watch { self.watch(&options.model, &place) } else { Ok(()) }
    }

    /// Prints every change until the rollout has ended.
    fn watch(&self, model: &str, place: &str) -> Done {
        let mut printed = None;
        loop {
            let answer = self.get(place)?;
            let now = answer.json()?;
            let current = (now["state"].clone(), now["percent"].clone());
            if printed.as_ref() != Some(&current) {
                self.show(&answer, line)?;
                printed = Some(current);
            }
            match now["state"].as_str() {
                Some("finished") => return Ok(()),
                Some("shadowing" | "running" | "paused") => std::thread::park_timeout(WATCH_INTERVAL),
                other => {
                    let state = other.unwrap_or("unknown");
                    return Err(CommandError::Failed(format!("the rollout of {model} is {state}: {}", why(&now))));
                }
            }
        }
    }
}

fn plan(options: &RolloutOptions) -> Result<Value, CommandError> {
    let mut plan = json!({"to": options.to, "reason": options.reason});
    let set = |plan: &mut Value, key: &str, value: Option<Value>| {
        if let Some(value) = value {
            plan[key] = value;
        }
    };
    set(&mut plan, "steps", (!options.steps.is_empty()).then(|| json!(options.steps)));
    set(&mut plan, "hold", options.hold.as_ref().map(|hold| json!(hold)));
    set(&mut plan, "min_requests", options.min_requests.map(|n| json!(n)));
    set(&mut plan, "min_shadow_pairs", options.min_shadow_pairs.map(|n| json!(n)));
    set(&mut plan, "allow_signature_change", options.allow_signature_change.then(|| json!(true)));
    set(&mut plan, "break_glass", options.break_glass.then(|| json!(true)));
    for (member, option, texts) in
        [("guardrails", "--guardrail", &options.guardrails), ("require", "--require", &options.require)]
    {
        let limits =
            texts.iter().map(|text| limit(option, text)).collect::<Result<Map<String, Value>, CommandError>>()?;
        let (metrics, mut limits): (Map<String, Value>, Map<String, Value>) =
            limits.into_iter().partition(|(name, _)| member == "guardrails" && name.starts_with("metrics."));
        if !metrics.is_empty() {
            let metrics = metrics.into_iter().map(|(name, limit)| {
                (name.trim_start_matches("metrics.").to_owned(), json!({"not_worse_than": limit}))
            });
            limits.insert("metrics".to_owned(), Value::Object(metrics.collect()));
        }
        set(&mut plan, member, (!limits.is_empty()).then(|| Value::Object(limits)));
    }
    set(&mut plan, "goal", options.goal.as_ref().map(|metric| json!({"metric": metric})));
    Ok(plan)
}

fn limit(option: &str, text: &str) -> Result<(String, Value), CommandError> {
    let usage = || {
        CommandError::Usage(format!("{option} {text:?}: expected NAME=LIMIT or NAME=off, such as error_rate_ratio=1.2"))
    };
    let (name, limit) = text.split_once('=').ok_or_else(usage)?;
    let limit = match limit {
        "off" => Value::Null,
        number => json!(number.parse::<f64>().ok().filter(|n| n.is_finite()).ok_or_else(usage)?),
    };
    Ok((name.to_owned(), limit))
}

/// One line: the state, the share and the reason.
fn line(rollout: &Value) -> String {
    let (to, state) = (cell(&rollout["to"]), cell(&rollout["state"]).replace('_', " "));
    let at = match state.as_str() {
        // Its share is 0 again. What it had says more.
        "aborted" | "taken back" => {
            let had =
                list(rollout, "steps").zip(0..).find(|(_, index)| rollout["step"] == *index).map(|(share, _)| share);
            let had = had.map_or_else(|| "as a shadow".to_owned(), |share| format!("at {} %", number(share)));
            format!("{had}; the traffic is as it was before the rollout")
        }
        _ => format!("at {} %", number(&rollout["percent"])),
    };
    format!("{}: version {to} {state} {at}: {}\n", cell(&rollout["model"]), why(rollout))
}

/// The reason for the state. It may begin with the state's name, which is printed before it.
fn why(rollout: &Value) -> String {
    let (why, state) = (cell(&rollout["why"]), cell(&rollout["state"]));
    why.strip_prefix(&format!("{state}: ")).map_or(why.clone(), str::to_owned)
}

pub(super) fn text(rollout: &Value) -> String {
    let mut text = line(rollout);
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "steps: {} %, each for at least {} and {} requests; this step has run for {}\nstarted by {} at {}: {}",
        list(rollout, "steps").map(number).collect::<Vec<_>>().join(", "),
        cell(&rollout["hold"]),
        rollout["min_requests"],
        cell(&rollout["held"]),
        cell(&rollout["by"]),
        cell(&rollout["started_at"]),
        cell(&rollout["reason"]),
    );
    if !rollout["trouble"].is_null() {
        let _ = writeln!(text, "problem: {} (will be tried again)", cell(&rollout["trouble"]));
    }
    if rollout["fleet"].is_object() {
        text.push_str(&fleet(&rollout["fleet"]));
    }
    let side = |name: &str| {
        let side = &rollout[name];
        vec![
            name.to_owned(),
            cell(&side["requests"]),
            cell(&side["failed"]),
            cell(&side["nonfinite"]),
            cell(&side["p99_us"]),
        ]
    };
    if rollout["candidate"].is_object() {
        text.push('\n');
        let head = ["THIS STEP", "REQUESTS", "FAILED", "NON-FINITE", "P99 (µs)"];
        text.push_str(&table(&head, &[side("candidate"), side("control")]));
    }
    let rows: Vec<Vec<String>> = list(rollout, "guardrails").map(guardrail_row).collect();
    if !rows.is_empty() {
        text.push('\n');
        text.push_str(&table(&["GUARDRAIL", "LIMIT", "CANDIDATE", "CONTROL", &interval_name(rollout), "STATE"], &rows));
    }
    let rows: Vec<Vec<String>> = list(rollout, "metrics").map(metric_row).collect();
    if !rows.is_empty() {
        text.push('\n');
        let head = ["METRIC", "LIMIT", "CANDIDATE", "CONTROL", "DIFFERENCE", "INTERVAL AT EVERY LOOK"];
        text.push_str(&table(&head, &rows));
        text.extend(list(rollout, "metrics").filter_map(adjusted));
    }
    let rows: Vec<Vec<String>> = list(rollout, "moves")
        .map(|m| vec![cell(&m["ts"]), cell(&m["action"]), format!("{} %", number(&m["percent"])), cell(&m["reason"])])
        .collect();
    text.push('\n');
    text.push_str(&table(&["TIME", "CHANGE", "SHARE", "REASON"], &rows));
    text
}

/// Who drives it, and what is in the sum.
fn fleet(fleet: &Value) -> String {
    let age = |age: &Value| age.as_f64().map_or_else(|| "not seen".to_owned(), |age| format!("{age} s ago"));
    let mut text = format!("driven by {}, its lease: {}", cell(&fleet["driver"]), age(&fleet["lease_age"]));
    let counted: Vec<String> = list(fleet, "counted")
        .map(|of| format!("{} ({} requests, {})", cell(&of["node"]), cell(&of["requests"]), age(&of["age"])))
        .collect();
    if !counted.is_empty() {
        let _ = write!(text, "; counted of {}", counted.join(", "));
    }
    if fleet["here"] == false {
        text.push_str("; the guardrails are shown by the driver");
    }
    let silent: Vec<String> = list(fleet, "silent").map(cell).collect();
    if !silent.is_empty() {
        let _ = write!(
            text,
            "\nno counts come from {}: what they had not told is lost if they do not come back",
            silent.join(", ")
        );
    }
    if let Some(why) = fleet["cut_off"].as_str() {
        let _ = write!(text, "\nthis gateway is cut off from the fleet, so this may be old: {why}");
    }
    text.push('\n');
    text
}

/// A number, without `.0` if it is whole.
fn number(value: &Value) -> String {
    value.as_f64().map_or_else(|| cell(value), |number| number.to_string())
}

/// `95 % INTERVAL`: with a false-alarm rate of 5 %, the intervals of all guardrails and steps hold the true values at the same time
/// with this confidence, however often one looks (docs/TRAFFIC.md).
fn interval_name(rollout: &Value) -> String {
    rollout["false_alarm_rate"]
        .as_f64()
        .map_or_else(|| "INTERVAL".to_owned(), |rate| format!("{} % INTERVAL", (1e4 * (1.0 - rate)).round() / 100.0))
}

/// Why a difference is not that of the means beside it (CUPED).
pub(super) fn adjusted(metric: &Value) -> Option<String> {
    let share = metric["cuped"]["variance_explained"].as_f64()?;
    Some(format!(
        "{}: the difference and its interval are without what values from before explain ({:.0} % of the variance, {} units), so the difference is not that of the means\n",
        cell(&metric["metric"]),
        100.0 * share,
        cell(&metric["cuped"]["units"])
    ))
}

fn metric_row(metric: &Value) -> Vec<String> {
    let short = |value: &Value| value.as_f64().map_or_else(String::new, |n| format!("{n:.4}"));
    let side = |side: &str| {
        format!("{} ({} units)", short(&metric[format!("{side}_mean")]), cell(&metric[format!("{side}_units")]))
    };
    let limit = &metric["not_worse_than"];
    let interval = match (short(&metric["low"]), short(&metric["high"])) {
        (low, _) if low.is_empty() => "too few units yet".to_owned(),
        (low, high) => format!("{low} to {high}"),
    };
    vec![
        cell(&metric["metric"]),
        if limit.is_null() { "goal".to_owned() } else { format!("not worse than {}", number(limit)) },
        side("candidate"),
        side("control"),
        short(&metric["difference"]),
        interval,
    ]
}

fn guardrail_row(guardrail: &Value) -> Vec<String> {
    let side = |side: &Value| match side["requests"].as_u64() {
        None => String::new(),
        Some(0) => "no requests".to_owned(),
        Some(requests) => format!("{} of {requests}", side["bad"]),
    };
    let interval = &guardrail["interval"];
    let interval = match (interval[0].as_f64(), interval[1].as_f64()) {
        (Some(low), Some(high)) => format!("{low:.3} to {high:.3}"),
        (Some(low), None) if low > 0.0 => format!("at least {low:.3}"),
        _ => "no data yet".to_owned(),
    };
    vec![
        cell(&guardrail["name"]),
        number(&guardrail["limit"]),
        side(&guardrail["candidate"]),
        side(&guardrail["control"]),
        interval,
        if guardrail["broken"] == true { "BROKEN" } else { "ok" }.to_owned(),
    ]
}
