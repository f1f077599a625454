//! Gates: what a version has to show before a promote makes it serve. Pure: from what is known to a verdict on each.

use crate::model::{Code, Failure, Signature, Version};
use crate::settings::Table;
use crate::shadow::Agreement;
use serde::Serialize;
use serde_json::Value;
use std::fmt::Write as _;

/// What is asked of a version before it is promoted. The default asks nothing.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Gates {
    /// Of its pairs with the versions that serve, at least this share agreed. From 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shadow_agreement: Option<f64>,
    /// At least so many pairs were compared; 1000 where only `shadow_agreement` is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shadow_pairs: Option<u64>,
    /// It has golden answers; that it gave them was checked when it was loaded.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub golden: bool,
    /// Its signature is that of every version that serves, exactly.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub signature: bool,
}

/// One gate: what it asked for, what was found, in words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    pub gate: &'static str,
    pub asked: String,
    pub found: String,
    pub passed: bool,
}

/// What came of the gates of one promote. Serializes to what the audit trail keeps of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Judged {
    #[serde(rename = "from")]
    pub by: AskedBy,
    pub verdicts: Vec<Verdict>,
    /// The model's default gates, where the promote brought others, or none, in their place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instead_of: Option<Gates>,
}

/// Where the gates of a promote stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum AskedBy {
    #[serde(rename = "request")]
    Request,
    #[serde(rename = "model.toml")]
    ModelToml,
}

/// What is known of a version that is to be promoted.
#[derive(Debug)]
pub struct Evidence<'a> {
    /// The versions of the split before that answer anybody, the version itself aside: whom its answers were held against.
    pub primaries: Vec<Version>,
    /// With all of them together.
    pub agreement: Agreement,
    pub golden_cases: usize,
    pub signature: Option<&'a Signature>,
    /// Every other version that serves, with its signature where that is known.
    pub serving: Vec<(Version, Option<&'a Signature>)>,
}

/// Hundreds would do to see that two versions are alike; a thousand also show what happens once in some hundred requests.
const PAIRS: u64 = 1000;
const MOST_PAIRS: u64 = 1_000_000_000;
const KNOWN: [&str; 4] = ["shadow_agreement", "shadow_pairs", "golden", "signature"];

impl Gates {
    /// Reads `[gates]` of a `model.toml`.
    pub fn read(table: &mut Table) -> Gates {
        Gates {
            shadow_agreement: table.float("shadow_agreement", 0.0..=1.0),
            shadow_pairs: table.integer("shadow_pairs", 1..=MOST_PAIRS),
            golden: table.bool("golden").unwrap_or_default(),
            signature: table.bool("signature").unwrap_or_default(),
        }
    }

    /// Reads the `gates` of a promote.
    ///
    /// # Errors
    /// Every complaint, each naming its key.
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
        let mut wrong = |name: &str, right: &str, got: &Value| {
            let got: String = got.to_string().chars().take(80).collect();
            complaints.push(format!("gates.{name}: expected {right}, got {got}"));
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
        let shadow_agreement = given("shadow_agreement").and_then(|value| {
            let share = value.as_f64().filter(|share| (0.0..=1.0).contains(share));
            share.or_else(|| {
                wrong("shadow_agreement", "a share from 0 to 1", value);
                None
            })
        });
        let shadow_pairs = given("shadow_pairs").and_then(|value| {
            let pairs = value.as_u64().filter(|pairs| (1..=MOST_PAIRS).contains(pairs));
            pairs.or_else(|| {
                wrong("shadow_pairs", &format!("a whole number from 1 to {MOST_PAIRS}"), value);
                None
            })
        });
        if complaints.is_empty() {
            Ok(Gates { shadow_agreement, shadow_pairs, golden, signature })
        } else {
            Err(complaints)
        }
    }

    #[must_use]
    pub fn ask_nothing(&self) -> bool {
        *self == Gates::default()
    }

    /// Whether the verdict may change while nothing is changed by anybody: pairs are compared all the time.
    #[must_use]
    pub fn ask_shadows(&self) -> bool {
        self.shadow_agreement.is_some() || self.shadow_pairs.is_some()
    }

    /// The verdict on each gate that is asked for.
    #[must_use]
    pub fn judge(&self, evidence: &Evidence) -> Vec<Verdict> {
        let mut verdicts = Vec::new();
        if self.ask_shadows() {
            verdicts.push(pairs(self.shadow_pairs.unwrap_or(PAIRS), evidence));
        }
        verdicts.extend(self.shadow_agreement.map(|share| agreement(share, evidence)));
        if self.golden {
            verdicts.push(golden(evidence.golden_cases));
        }
        if self.signature {
            verdicts.push(signature(evidence));
        }
        verdicts
    }
}

impl Judged {
    /// The verdicts on what a promote asks for, else on the model's own gates; `None` where there are neither.
    #[must_use]
    pub fn new(asked: Option<&Gates>, default: &Gates, evidence: &Evidence) -> Option<Judged> {
        let (by, gates) = asked.map_or((AskedBy::ModelToml, default), |gates| (AskedBy::Request, gates));
        let instead_of = Some(default).filter(|default| !default.ask_nothing() && *default != gates).cloned();
        if gates.ask_nothing() && instead_of.is_none() {
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

    /// What a promote that does not pass is answered: every gate that failed, what it asked for and what was found.
    #[must_use]
    pub fn refusal(&self, what: &str) -> Failure {
        let names: Vec<&str> = self.failed().map(|verdict| verdict.gate).collect();
        let words = |v: &Verdict| format!("{}: asked for {}, found: {}", v.gate, v.asked, v.found);
        let whose = match self.by {
            AskedBy::Request => "that were asked for",
            AskedBy::ModelToml => "of model.toml",
        };
        let (failed, all) = (names.len(), self.verdicts.len());
        let message = format!("{what} fails {failed} of {all} gates {whose}: {}", names.join(", "));
        let details = self.failed().map(words).collect();
        Failure { details, ..Failure::new(Code::Conflict, message) }
    }
}

fn pairs(asked: u64, evidence: &Evidence) -> Verdict {
    let found = evidence.agreement.pairs;
    Verdict {
        gate: "shadow_pairs",
        asked: format!("at least {asked} pairs of answers compared{}", against(&evidence.primaries)),
        found: if evidence.primaries.is_empty() { nobody() } else { found.to_string() },
        passed: found >= asked,
    }
}

fn agreement(asked: f64, evidence: &Evidence) -> Verdict {
    let Agreement { pairs, agreed } = evidence.agreement;
    // Divided, not multiplied: 7 of 100 is 0.07 as it is written.
    let share = (pairs > 0).then(|| agreed as f64 / pairs as f64);
    let found = match share {
        _ if evidence.primaries.is_empty() => nobody(),
        None => "no pair was compared".to_owned(),
        Some(share) => format!("{share} ({agreed} of {pairs})"),
    };
    let asked_words = format!("at least {asked} of the pairs agree{}", against(&evidence.primaries));
    let passed = share.is_some_and(|share| share >= asked);
    Verdict { gate: "shadow_agreement", asked: asked_words, found, passed }
}

fn golden(cases: usize) -> Verdict {
    let found = match cases {
        0 => "it has no golden.json".to_owned(),
        1 => "1 golden answer, given when it was loaded".to_owned(),
        n => format!("{n} golden answers, all given when it was loaded"),
    };
    Verdict { gate: "golden", asked: "golden answers that it gives".to_owned(), found, passed: cases > 0 }
}

fn signature(evidence: &Evidence) -> Verdict {
    let mut differences: Vec<String> = Vec::new();
    for (version, serving) in &evidence.serving {
        match (evidence.signature, serving) {
            (Some(is), Some(was)) if is == *was => {}
            (Some(is), Some(was)) => differences.push(difference(*version, was, is)),
            _ => differences.push(format!("the signature of version {version} is not known, as it is not loaded")),
        }
    }
    let others: Vec<Version> = evidence.serving.iter().map(|(version, _)| *version).collect();
    let found = match (others.is_empty(), differences.is_empty()) {
        (true, _) => "no other version serves".to_owned(),
        (false, true) => "the same".to_owned(),
        (false, false) => differences.join("; "),
    };
    let asked = if others.is_empty() {
        "the signature of the versions that serve, exactly".to_owned()
    } else {
        format!("the signature of {}, exactly", listed(&others))
    };
    Verdict { gate: "signature", asked, found, passed: differences.is_empty() }
}

fn difference(version: Version, was: &Signature, is: &Signature) -> String {
    let specs = |signature: &Signature| {
        let inputs = signature.inputs().iter().map(|spec| format!("input {spec}"));
        inputs.chain(signature.outputs().iter().map(|spec| format!("output {spec}"))).collect::<Vec<String>>()
    };
    let (was, is) = (specs(was), specs(is));
    let only = |these: &[String], those: &[String]| {
        these.iter().filter(|spec| !those.contains(spec)).cloned().collect::<Vec<String>>().join(", ")
    };
    let mut words = format!("against version {version}:");
    let (gone, new) = (only(&was, &is), only(&is, &was));
    if gone.is_empty() && new.is_empty() {
        words.push_str(" the same in another order");
    }
    for (what, specs) in [("without", gone), ("with", new)] {
        if !specs.is_empty() {
            // Writing to a String cannot fail.
            let _ = write!(words, " {what} {specs}");
        }
    }
    words
}

fn against(primaries: &[Version]) -> String {
    if primaries.is_empty() { String::new() } else { format!(" with those of {}", listed(primaries)) }
}

fn nobody() -> String {
    "no other version answers by the split, so there is nothing it was held against".to_owned()
}

fn listed(versions: &[Version]) -> String {
    let all: Vec<String> = versions.iter().map(ToString::to_string).collect();
    format!("version{} {}", if all.len() == 1 { "" } else { "s" }, all.join(", "))
}
