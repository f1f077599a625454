//! Traffic documents and rollouts that a person puts together in a form.

use super::actions::{Next, Now, Plan, dry_run, field, without_reason};
use super::api::ApiRequest;
use super::{Fields, show};
use axum::http::Method;
use maud::html;
use serde_json::{Value, json};

/// The most steps of a rollout: as many as the API takes (`rollout::MOST_STEPS`), so that a page never shows more.
pub(super) const MOST_STEPS: usize = 100;

/// A number that JSON can have. NaN and infinities would become null, which means that nothing was given.
fn finite(text: &str) -> Option<f64> {
    text.parse().ok().filter(|number: &f64| number.is_finite())
}

fn put(now: &Now, document: Value, command: String) -> Next {
    let request = ApiRequest {
        method: Method::PUT,
        path: now.api("/traffic"),
        body: Some(document.clone()),
        if_match: Some(now.revision).filter(|revision| *revision > 0),
    };
    let (dry, words) = (Some(dry_run(&request)), String::new());
    Next::Confirm(Box::new(Plan { request, dry, document: Some(document), words, command }))
}

/// A weight for each version that can serve, and the sticky key. The rest of the document stays.
pub(super) fn split(now: &Now, fields: &Fields) -> Result<Next, String> {
    let before = &now.model["document"];
    let mut versions = now.versions(&["ready", "serving"]);
    versions.reverse();
    let given = versions.iter().any(|version| fields.contains_key(&format!("weight-{version}")));
    let arms = before["split"].as_array().map_or(&[][..], Vec::as_slice);
    if !given {
        let weight = |version: &str| {
            let own = arms.iter().filter(|arm| arm["version"] == version);
            own.filter_map(|arm| arm["weight"].as_f64()).sum::<f64>()
        };
        let sticky = ["header", "parameter"]
            .iter()
            .find_map(|kind| before["sticky_by"][*kind].as_str().map(|name| format!("{kind}:{name}")));
        return Ok(Next::Ask(html! {
            p { "Weights are relative: 90 and 10 are the same as 9 and 1." }
            table {
                thead { tr { th scope="col" { "Version" } th scope="col" { "Weight" } } }
                tbody { @for version in &versions { tr {
                    th scope="row" { label for=(format!("weight-{version}")) { (version) } }
                    td { input id=(format!("weight-{version}")) name=(format!("weight-{version}")) type="number" min="0" step="any" value=(weight(version)); }
                } } }
            }
            p {
                label for="sticky" { "The same arm for the same" } " "
                input #sticky name="sticky_by" placeholder="header:x-user-id" value=(sticky.unwrap_or_default()) autocomplete="off" spellcheck="false";
                span .quiet { " header:NAME or parameter:NAME; empty: each request on its own" }
            }
        }));
    }
    let mut chosen = Vec::new();
    for version in versions {
        let text = field(fields, &format!("weight-{version}"));
        let weight: f64 = if text.is_empty() {
            0.0
        } else {
            finite(text).ok_or_else(|| format!("the weight of version {version}: expected a number, got {text:?}"))?
        };
        if weight != 0.0 {
            chosen.push((version, weight));
        }
    }
    let mut document = before.as_object().cloned().unwrap_or_default();
    let arm = |(version, weight): &(&str, f64)| {
        let same = |known: &&Value| known["version"] == *version;
        let name = arms.iter().find(same).and_then(|arm| arm["arm"].as_str()).unwrap_or(version);
        json!({"version": version, "weight": weight, "arm": name})
    };
    document.insert("split".to_owned(), chosen.iter().map(arm).collect());
    let sticky = field(fields, "sticky_by");
    if sticky.is_empty() {
        document.remove("sticky_by");
    } else {
        let (kind, name) = sticky
            .split_once(':')
            .filter(|(kind, _)| matches!(*kind, "header" | "parameter"))
            .ok_or_else(|| format!("the sticky key: expected header:NAME or parameter:NAME, got {sticky:?}"))?;
        document.insert("sticky_by".to_owned(), json!({ kind: name }));
    }
    document.remove("reason");
    let weights: Vec<String> = chosen.iter().map(|(version, weight)| format!("{version}={weight}")).collect();
    let sticky = if sticky.is_empty() { String::new() } else { format!(" --sticky-by {}", show::word(sticky)) };
    let command = format!("sluicegate traffic {} --split {}{sticky} --reason …", now.name, weights.join(","));
    Ok(put(now, Value::Object(document), command))
}

/// Copies of requests to one version. The rest of the document stays.
///
/// # Errors
/// What is wrong with the choice, in words.
pub(super) fn shadow(now: &Now, fields: &Fields) -> Result<Next, String> {
    let before = &now.model["document"];
    let shadows = before["shadows"].as_array().map_or(&[][..], Vec::as_slice);
    if field(fields, "sample").is_empty() {
        let version = now.version_of(&Fields::new(), &["ready", "serving"]).err().unwrap_or_default();
        return Ok(Next::Ask(html! {
            p { "The version runs copies of requests at the lowest priority. Callers never get its answers; they are compared with those that callers get." }
            @for shadow in shadows { p .quiet { "Version " (show::text(shadow["version"].as_str().unwrap_or_default(), 20)) " gets copies of " (show::share(shadow["sample"].as_f64().unwrap_or(1.0))) " now." } }
            (version)
            p { label for="sample" { "Copies of so many percent" } " " input #sample name="sample" type="number" min="0" max="100" step="any" value="100" required; span .quiet { " 0: no copies any more" } }
        }));
    }
    let (version, text) = (field(fields, "version"), field(fields, "sample"));
    let percent = finite(text).ok_or_else(|| format!("the percentage: expected a number, got {text:?}"))?;
    let mut kept: Vec<Value> = shadows.iter().filter(|shadow| shadow["version"] != version).cloned().collect();
    if percent != 0.0 {
        kept.push(json!({"version": version, "sample": percent / 100.0}));
    }
    let document = with(before, "shadows", kept.into());
    let command = format!("sluicegate traffic {} --set traffic.json --reason …", now.name);
    Ok(put(now, document, command))
}

/// One rule more, before the others, or one less. The rest of the document stays.
///
/// # Errors
/// What is wrong with the choice, in words.
pub(super) fn rule(now: &Now, fields: &Fields) -> Result<Next, String> {
    let before = &now.model["document"];
    let mut rules = before["rules"].as_array().cloned().unwrap_or_default();
    let (key, removed) = (field(fields, "key"), field(fields, "remove"));
    if key.is_empty() && removed.is_empty() {
        let version = now.version_of(&Fields::new(), &["ready", "serving"]).err().unwrap_or_default();
        return Ok(Next::Ask(html! {
            p { "Requests with this value go to the version, whatever the split says. The first rule that matches counts; the new one comes first." }
            p { label for="key" { "Header or parameter" } " " input #key name="key" placeholder="header:x-cohort" autocomplete="off" spellcheck="false"; }
            p { label for="equals" { "Its value" } " " input #equals name="equals" autocomplete="off" spellcheck="false"; }
            (version)
            @if !rules.is_empty() { p {
                label for="remove" { "Or remove a rule" } " "
                select #remove name="remove" {
                    option value="" { "none" }
                    @for (at, rule) in rules.iter().take(100).enumerate() { option value=(at) { (at + 1) ": " (show::text(&rule.to_string(), 80)) } }
                }
            } }
        }));
    }
    if removed.is_empty() {
        let (kind, name) = key
            .split_once(':')
            .filter(|(kind, name)| matches!(*kind, "header" | "parameter") && !name.is_empty())
            .ok_or_else(|| format!("expected header:NAME or parameter:NAME, got {key:?}"))?;
        rules.insert(0, json!({kind: name, "equals": field(fields, "equals"), "version": field(fields, "version")}));
    } else {
        let at = removed.parse().ok().filter(|at: &usize| *at < rules.len());
        let at = at.ok_or_else(|| format!("there is no rule {removed:?} any more"))?;
        rules.remove(at);
    }
    let document = with(before, "rules", rules.into());
    let command = format!("sluicegate traffic {} --set traffic.json --reason …", now.name);
    Ok(put(now, document, command))
}

/// The document with another value of a member, and without its reason.
fn with(document: &Value, member: &str, value: Value) -> Value {
    let mut document = document.as_object().cloned().unwrap_or_default();
    document.insert(member.to_owned(), value);
    document.remove("reason");
    Value::Object(document)
}

/// The whole document, as JSON.
pub(super) fn document(now: &Now, fields: &Fields) -> Result<Next, String> {
    let given = field(fields, "document");
    if given.is_empty() {
        let text = serde_json::to_string_pretty(&without_reason(&now.model["document"])).unwrap_or_default();
        let text = show::json_text(&text);
        return Ok(Next::Ask(html! {
            p { label for="document" { "The traffic document: split, sticky_by, rules, shadows, labels, fallback, salt" } }
            textarea #document name="document" rows="24" cols="80" spellcheck="false" { (text) }
        }));
    }
    let document: Value = serde_json::from_str(given).map_err(|error| format!("the document is not JSON: {error}"))?;
    if !document.is_object() {
        return Err("the document is expected to be a JSON object".to_owned());
    }
    let command = format!("sluicegate traffic {} --set traffic.json --reason …", now.name);
    Ok(put(now, document, command))
}

pub(super) fn rollout(now: &Now, fields: &Fields, break_glass: bool) -> Result<Next, String> {
    if field(fields, "steps").is_empty() {
        let version = match now.version_of(fields, &["ready", "serving"]) {
            Ok(version) => {
                html! { input type="hidden" name="version" value=(version); p { "To version " (show::text(version, 20)) } }
            }
            Err(ask) => ask,
        };
        return Ok(Next::Ask(html! {
            (version)
            p { label for="steps" { "Steps, in percent" } " " input #steps name="steps" value="1, 5, 25, 50, 100" required autocomplete="off"; }
            p { label for="hold" { "Each step takes at least" } " " input #hold name="hold" value="10m" required autocomplete="off"; }
        }));
    }
    let version = field(fields, "version");
    let steps: Result<Vec<f64>, String> = field(fields, "steps")
        .split(',')
        .map(|text| {
            let text = text.trim();
            finite(text).ok_or_else(|| format!("steps: expected numbers with commas between them, got {text:?}"))
        })
        .collect();
    let steps = steps?;
    if steps.len() > MOST_STEPS {
        return Err(format!("steps: expected at most {MOST_STEPS} percentages, got {}", steps.len()));
    }
    let hold = field(fields, "hold");
    let shown: Vec<String> = steps.iter().map(|step| format!("{step}")).collect();
    let mut body = json!({"to": version, "steps": steps, "hold": hold});
    if break_glass {
        body["break_glass"] = true.into();
    }
    let words = format!(
        "Version {version} gets {} % of the requests, each step for at least {hold}, as long as no guardrail is violated. It is taken back when one is.",
        shown.join(" %, ")
    );
    let command = format!(
        "sluicegate rollout {} --to {} --steps {} --hold {} --reason …",
        show::word(&now.name),
        show::word(version),
        shown.join(","),
        show::word(hold)
    );
    let request = ApiRequest { method: Method::POST, path: now.api(":rollout"), body: Some(body), if_match: None };
    let dry = Some(dry_run(&request));
    Ok(Next::Confirm(Box::new(Plan { request, dry, document: None, words, command })))
}
