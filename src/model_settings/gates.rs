//! Gates: conditions that a version must meet before a promote makes it serve. Pure: from evidence to a verdict on each gate.

use crate::model::{Code, Failure, Signature, Version};
use crate::settings::Table;
use crate::shadow::Agreement;
use serde::Serialize;
use serde_json::Value;
use std::fmt::Write as _;

/// The conditions for a promote. The default has none.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Gates {
    /// At least this share of its shadow pairs with the serving versions agreed. From 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shadow_agreement: Option<f64>,
    /// At least this many pairs were compared. 1000 if only `shadow_agreement` is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shadow_pairs: Option<u64>,
    /// In at most this share of the rows of these pairs, the highest score is another one. From 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shadow_top1_flipped: Option<f64>,
    /// It has golden answers. They were checked when it was loaded.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub golden: bool,
    /// Its signature is exactly that of every serving version.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub signature: bool,
}

/// The result of one gate: the condition and what was found, in words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    pub gate: &'static str,
    pub asked: String,
    pub found: String,
    pub passed: bool,
}

/// The results of all gates of one promote. The audit trail stores its serialized form.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Judged {
    #[serde(rename = "from")]
    pub by: GatesFrom,
    pub verdicts: Vec<Verdict>,
    /// The default gates of the model, if the promote replaced them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instead_of: Option<Gates>,
}

/// Where the gates of a promote come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum GatesFrom {
    #[serde(rename = "request")]
    Request,
    #[serde(rename = "model.toml")]
    ModelToml,
}

/// The known facts about a version that is to be promoted.
#[derive(Debug)]
pub struct Evidence<'a> {
    /// The other versions with traffic in the current split. Its answers were compared with theirs.
    pub primaries: Vec<Version>,
    /// The pairs with all primaries together.
    pub agreement: Agreement,
    /// Of these pairs: rows whose highest score is another one, and all rows of scores.
    pub top1: (u64, u64),
    pub golden_cases: usize,
    pub signature: Option<&'a Signature>,
    /// All other serving versions, with the signature if it is known.
    pub serving: Vec<(Version, Option<&'a Signature>)>,
}

/// Default for `shadow_pairs`. A thousand pairs also show differences that occur once in a few hundred requests.
const DEFAULT_PAIRS: u64 = 1000;
const MAX_PAIRS: u64 = 1_000_000_000;
const KNOWN: [&str; 5] = ["shadow_agreement", "shadow_pairs", "golden", "signature", "shadow_top1_flipped"];

impl Gates {
    /// Reads `[gates]` of a `model.toml`.
    pub(super) fn read(table: &mut Table) -> Gates {
        Gates {
            shadow_agreement: table.float("shadow_agreement", 0.0..=1.0),
            shadow_pairs: table.integer("shadow_pairs", 1..=MAX_PAIRS),
            shadow_top1_flipped: table.float("shadow_top1_flipped", 0.0..=1.0),
            golden: table.bool("golden").unwrap_or_default(),
            signature: table.bool("signature").unwrap_or_default(),
        }
    }

    /// Reads the member `gates` of a promote request.
    ///
    /// # Errors
    /// All complaints, each with its key.
    pub fn parse(value: &Value) -> Result<Gates, Vec<String>> {
        let Value::Object(members) = value else {
            return Err(vec![format!(
                "gates: expected an object such as {{\"golden\":true}}, or {{}} for none; got {value}"
            )]);
        };
        let mut complaints: Vec<String> = Vec::new();
        for name in members.keys().filter(|name| !KNOWN.contains(&name.as_str())) {
            let name: String = name.chars().take(80).collect();
            complaints.push(format!("gates.{name}: unknown gate; known here: {}", KNOWN.join(", ")));
        }
        let mut wrong = |name: &str, expected: &str, got: &Value| {
            let got: String = got.to_string().chars().take(80).collect();
            complaints.push(format!("gates.{name}: expected {expected}, got {got}"));
        };
        let given = |name: &str| members.get(name).filter(|value| !value.is_null());
        let mut flag = |name: &str| match given(name) {
            None => false,
            Some(Value::Bool(asked)) => *asked,
            Some(other) => {
                wrong(name, "true or false", other);
                false
            }
        };
        let (golden, signature) = (flag("golden"), flag("signature"));
        let mut share = |name: &str| {
            given(name).and_then(|value| {
                let share = value.as_f64().filter(|share| (0.0..=1.0).contains(share));
                share.or_else(|| {
                    wrong(name, "a share from 0 to 1", value);
                    None
                })
            })
        };
        let (shadow_agreement, shadow_top1_flipped) = (share("shadow_agreement"), share("shadow_top1_flipped"));
        let shadow_pairs = given("shadow_pairs").and_then(|value| {
            let pairs = value.as_u64().filter(|pairs| (1..=MAX_PAIRS).contains(pairs));
            pairs.or_else(|| {
                wrong("shadow_pairs", &format!("a whole number from 1 to {MAX_PAIRS}"), value);
                None
            })
        });
        if complaints.is_empty() {
            Ok(Gates { shadow_agreement, shadow_pairs, shadow_top1_flipped, golden, signature })
        } else {
            Err(complaints)
        }
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Gates::default()
    }

    /// Whether a gate uses shadow pairs. Its verdict can change at any time, because pairs are compared all the time.
    #[must_use]
    pub fn use_shadows(&self) -> bool {
        self.shadow_agreement.is_some() || self.shadow_pairs.is_some() || self.shadow_top1_flipped.is_some()
    }

    /// The verdict on each gate.
    #[must_use]
    pub fn judge(&self, evidence: &Evidence) -> Vec<Verdict> {
        let mut verdicts = Vec::new();
        if self.use_shadows() {
            verdicts.push(judge_pairs(self.shadow_pairs.unwrap_or(DEFAULT_PAIRS), evidence));
        }
        verdicts.extend(self.shadow_agreement.map(|share| judge_agreement(share, evidence)));
        verdicts.extend(self.shadow_top1_flipped.map(|share| judge_top1(share, evidence)));
        if self.golden {
            verdicts.push(judge_golden(evidence.golden_cases));
        }
        if self.signature {
            verdicts.push(judge_signature(evidence));
        }
        verdicts
    }
}

impl Judged {
    /// Judges the gates of a promote request, else those of the model. `None` if there are neither.
    #[must_use]
    pub fn new(requested: Option<&Gates>, default: &Gates, evidence: &Evidence) -> Option<Judged> {
        let (by, gates) = requested.map_or((GatesFrom::ModelToml, default), |gates| (GatesFrom::Request, gates));
        let instead_of = Some(default).filter(|default| !default.is_empty() && *default != gates).cloned();
        if gates.is_empty() && instead_of.is_none() {
            return None;
        }
        Some(Judged { by, verdicts: gates.judge(evidence), instead_of })
    }

    fn failed(&self) -> impl Iterator<Item = &Verdict> {
        self.verdicts.iter().filter(|verdict| !verdict.passed)
    }

    #[must_use]
    pub fn passed(&self) -> bool {
        self.failed().next().is_none()
    }

    /// The error for a promote that does not pass. It lists every failed gate.
    #[must_use]
    pub fn refusal(&self, subject: &str) -> Failure {
        let names: Vec<&str> = self.failed().map(|verdict| verdict.gate).collect();
        let detail = |v: &Verdict| format!("{}: requires {}, found: {}", v.gate, v.asked, v.found);
        let origin = match self.by {
            GatesFrom::Request => "of the request",
            GatesFrom::ModelToml => "of model.toml",
        };
        let (failed, all) = (names.len(), self.verdicts.len());
        let message = format!("{subject} fails {failed} of {all} gates {origin}: {}", names.join(", "));
        let details = self.failed().map(detail).collect();
        Failure { details, ..Failure::new(Code::Conflict, message) }
    }
}

fn judge_pairs(required: u64, evidence: &Evidence) -> Verdict {
    let found = evidence.agreement.pairs;
    Verdict {
        gate: "shadow_pairs",
        asked: format!("at least {required} pairs of answers compared{}", with_those_of(&evidence.primaries)),
        found: if evidence.primaries.is_empty() { no_primary() } else { found.to_string() },
        passed: found >= required,
    }
}

fn judge_agreement(required: f64, evidence: &Evidence) -> Verdict {
    let Agreement { pairs, agreed } = evidence.agreement;
    // Division gives 0.07 for 7 of 100. Multiplying the required share would round differently.
    let share = (pairs > 0).then(|| agreed as f64 / pairs as f64);
    let found = match share {
        _ if evidence.primaries.is_empty() => no_primary(),
        None => "no pair was compared".to_owned(),
        Some(share) => format!("{share} ({agreed} of {pairs})"),
    };
    let asked = format!("at least {required} of the pairs in agreement{}", with_those_of(&evidence.primaries));
    let passed = share.is_some_and(|share| share >= required);
    Verdict { gate: "shadow_agreement", asked, found, passed }
}

/// For retrained models, whose scores all differ a little: does the highest score stay the same?
fn judge_top1(allowed: f64, evidence: &Evidence) -> Verdict {
    let (flipped, rows) = evidence.top1;
    let share = (rows > 0).then(|| flipped as f64 / rows as f64);
    let found = match share {
        _ if evidence.primaries.is_empty() => no_primary(),
        None => "no row of scores was compared".to_owned(),
        Some(share) => format!("{share} ({flipped} of {rows})"),
    };
    let asked = format!(
        "another highest score in at most {allowed} of the rows of scores, compared{}",
        with_those_of(&evidence.primaries)
    );
    let passed = share.is_some_and(|share| share <= allowed);
    Verdict { gate: "shadow_top1_flipped", asked, found, passed }
}

fn judge_golden(cases: usize) -> Verdict {
    let found = match cases {
        0 => "it has no golden.json".to_owned(),
        1 => "1 golden answer, verified when it was loaded".to_owned(),
        n => format!("{n} golden answers, all verified when it was loaded"),
    };
    Verdict { gate: "golden", asked: "golden answers that match".to_owned(), found, passed: cases > 0 }
}

fn judge_signature(evidence: &Evidence) -> Verdict {
    let mut differences: Vec<String> = Vec::new();
    for (version, serving) in &evidence.serving {
        match (evidence.signature, serving) {
            (Some(new), Some(old)) if new == *old => {}
            (Some(new), Some(old)) => differences.push(difference(*version, old, new)),
            _ => differences.push(format!("the signature of version {version} is unknown, because it is not loaded")),
        }
    }
    let others: Vec<Version> = evidence.serving.iter().map(|(version, _)| *version).collect();
    let found = match (others.is_empty(), differences.is_empty()) {
        (true, _) => "no other version serves".to_owned(),
        (false, true) => "the same".to_owned(),
        (false, false) => differences.join("; "),
    };
    let asked = if others.is_empty() {
        "exactly the signature of the serving versions".to_owned()
    } else {
        format!("exactly the signature of {}", listed(&others))
    };
    Verdict { gate: "signature", asked, found, passed: differences.is_empty() }
}

fn difference(version: Version, old: &Signature, new: &Signature) -> String {
    let specs = |signature: &Signature| {
        let inputs = signature.inputs().iter().map(|spec| format!("input {spec}"));
        let optional = signature.optional_inputs().iter().map(|spec| format!("optional input {spec}"));
        inputs
            .chain(optional)
            .chain(signature.outputs().iter().map(|spec| format!("output {spec}")))
            .collect::<Vec<String>>()
    };
    let (old, new) = (specs(old), specs(new));
    let only = |these: &[String], those: &[String]| {
        these.iter().filter(|spec| !those.contains(spec)).cloned().collect::<Vec<String>>().join(", ")
    };
    let mut text = format!("compared with version {version}:");
    let (removed, added) = (only(&old, &new), only(&new, &old));
    if removed.is_empty() && added.is_empty() {
        text.push_str(" the same tensors in another order");
    }
    for (word, specs) in [("without", removed), ("with", added)] {
        if !specs.is_empty() {
            // Writing to a String cannot fail.
            let _ = write!(text, " {word} {specs}");
        }
    }
    text
}

fn with_those_of(primaries: &[Version]) -> String {
    if primaries.is_empty() { String::new() } else { format!(" with those of {}", listed(primaries)) }
}

fn no_primary() -> String {
    "no other version has traffic in the split, so there was nothing to compare with".to_owned()
}

fn listed(versions: &[Version]) -> String {
    let all: Vec<String> = versions.iter().map(ToString::to_string).collect();
    format!("version{} {}", if all.len() == 1 { "" } else { "s" }, all.join(", "))
}
