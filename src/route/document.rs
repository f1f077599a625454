//! The traffic document: parsed from JSON and validated, with all complaints at once.
//!
//! A member that is `null` is treated as absent, everywhere in the document.

use crate::model::{ArmName, MAX_REASON, Version};
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};

/// Arm names that the gateway uses for requests that no split decided. A document may not use them.
pub const RESERVED_ARMS: [&str; 3] = ["pinned", "label", "rule"];

/// One arm of a split.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Arm {
    pub version: Version,
    /// Relative to the other weights. Finite and not negative.
    pub weight: f64,
    pub arm: ArmName,
}

/// Where the sticky key of a request is read from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Key {
    /// A request header. The name is in lower case.
    Header(String),
    /// A request parameter of the Open Inference Protocol.
    Parameter(String),
}

/// Sends requests whose header has a given value to a version. Rules come before the split.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rule {
    /// The header's name, in lower case.
    pub header: String,
    pub equals: String,
    pub version: Version,
}

/// A version that gets copies of requests and whose answers no caller sees.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Shadow {
    pub version: Version,
    /// The share of requests that are copied: above 0 and at most 1.
    pub sample: f64,
}

/// The version that answers in place of one that cannot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Fallback {
    pub version: Version,
}

/// A valid traffic document. It serializes to JSON that parses to the same document.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Document {
    /// Never empty. The sum of the weights is positive and finite. Arm names are unique.
    pub split: Vec<Arm>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sticky_by: Option<Key>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub shadows: Vec<Shadow>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, Version>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fallback: Option<Fallback>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub salt: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A document as an operator sends it, with the members that are not stored.
#[derive(Debug, Clone, PartialEq)]
pub struct Proposal {
    pub document: Document,
    pub allow_signature_change: bool,
    /// Give traffic to versions that nobody approved. For admins.
    pub break_glass: bool,
    /// Only check it.
    pub dry_run: bool,
    /// The share of the gateways of a fleet that must be able to serve it, over 0 and up to 1. `None`: all.
    pub quorum: Option<f64>,
}

impl Document {
    /// The most arms whose evidence counts keys: the keys of an arm take memory.
    const MAX_ARMS_BY_KEY: usize = 16;

    /// Whether evidence about the arms counts sticky keys and not requests, because all requests of a key go to one of several arms.
    #[must_use]
    pub fn counts_keys(&self) -> bool {
        let weighted = self.split.iter().filter(|arm| arm.weight > 0.0).count();
        self.sticky_by.is_some() && (2..=Document::MAX_ARMS_BY_KEY).contains(&weighted)
    }

    /// A document that sends all requests to one version.
    #[must_use]
    pub fn single(version: Version) -> Document {
        Document {
            split: vec![Arm { version, weight: 1.0, arm: version.into() }],
            sticky_by: None,
            rules: Vec::new(),
            shadows: Vec::new(),
            labels: BTreeMap::new(),
            fallback: None,
            salt: None,
            reason: None,
        }
    }

    /// The document that promoting `version` makes: that version alone in the split and not among the shadows, the rest as before.
    #[must_use]
    pub fn promoted(&self, version: Version) -> Document {
        let mut next = self.clone();
        next.split = Document::single(version).split;
        next.shadows.retain(|s| s.version != version);
        next
    }

    /// Whether the split has this version alone and it is not a shadow, so that promoting it would change nothing.
    #[must_use]
    pub fn serves_alone(&self, version: Version) -> bool {
        self.split.iter().all(|arm| arm.version == version) && !self.shadows.iter().any(|s| s.version == version)
    }

    /// The version with the largest share of the split. The first one wins a tie.
    #[must_use]
    pub fn heaviest(&self) -> Option<Version> {
        let mut shares: Vec<(Version, f64)> = Vec::new();
        for arm in &self.split {
            match shares.iter_mut().find(|(v, _)| *v == arm.version) {
                Some((_, share)) => *share += arm.weight,
                None => shares.push((arm.version, arm.weight)),
            }
        }
        let mut best: Option<(Version, f64)> = None;
        for (version, share) in shares {
            if best.is_none_or(|(_, most)| share > most) {
                best = Some((version, share));
            }
        }
        best.map(|(version, _)| version)
    }

    /// Every version named by the split, a rule or a label. Shadows are not included.
    #[must_use]
    pub fn serving(&self) -> BTreeSet<Version> {
        let split = self.split.iter().map(|a| a.version);
        let rules = self.rules.iter().map(|r| r.version);
        split.chain(rules).chain(self.labels.values().copied()).collect()
    }

    /// Every version that may answer callers: those of [`Document::serving`], and the fallback.
    #[must_use]
    pub fn answering(&self) -> BTreeSet<Version> {
        let mut answering = self.serving();
        answering.extend(self.fallback.map(|fallback| fallback.version));
        answering
    }

    /// Every version the document names, shadows and the fallback included. None of these may be unloaded.
    #[must_use]
    pub fn named(&self) -> BTreeSet<Version> {
        let mut named = self.answering();
        named.extend(self.shadows.iter().map(|s| s.version));
        named
    }

    /// Whether at most one arm of the split gets requests: there is no experiment, and the salt decides nothing.
    #[must_use]
    pub fn has_one_arm(&self) -> bool {
        self.split.iter().filter(|arm| arm.weight > 0.0).count() <= 1
    }

    /// What differs in `next`, member by member, in words: `split: 1=70, 2=30 → 2=100`. The reason is not compared. Empty where nothing differs.
    #[must_use]
    pub fn differences(&self, next: &Document) -> Vec<String> {
        let members = |document: &Document| match serde_json::to_value(document) {
            Ok(Value::Object(members)) => members,
            _ => Map::new(),
        };
        let (before, after) = (members(self), members(next));
        let show = |document: &Document, name: &str, value: Option<&Value>| match (name, value) {
            ("split", _) => document.show_split(),
            (_, Some(value)) => value.to_string(),
            (_, None) => "none".to_owned(),
        };
        // In the order of the document's members.
        let names = ["split", "sticky_by", "rules", "shadows", "labels", "fallback", "salt"];
        let changed = names.into_iter().filter(|name| before.get(*name) != after.get(*name));
        changed
            .map(|name| {
                let (was, is) = (show(self, name, before.get(name)), show(next, name, after.get(name)));
                format!("{name}: {was} → {is}")
            })
            .collect()
    }

    /// The split in words: `1=70, 2=30`, with the names of arms that differ from their version.
    #[must_use]
    pub fn show_split(&self) -> String {
        let arm = |Arm { version, weight, arm }: &Arm| {
            let version = version.to_string();
            if arm.as_str() == version { format!("{version}={weight}") } else { format!("{arm}:{version}={weight}") }
        };
        self.split.iter().map(arm).collect::<Vec<_>>().join(", ")
    }

    /// The document as JSON text, as the ledger stores it.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a document has only string keys, so serializing it cannot fail")
    }

    /// Parses JSON text from the ledger.
    ///
    /// # Errors
    /// All complaints, each with its key.
    pub fn from_json(text: &str) -> Result<Document, Vec<String>> {
        let value = serde_json::from_str(text).map_err(|e| vec![format!("the document is not JSON: {e}")])?;
        Proposal::parse(&value).map(|p| p.document)
    }
}

impl Proposal {
    /// What a quorum is.
    pub const QUORUM: &'static str = "a share of the gateways over 0 and up to 1, such as 0.9";

    /// Parses a document as an operator sends it.
    ///
    /// # Errors
    /// All complaints at once, each with its key, the value found and what was expected.
    pub fn parse(value: &Value) -> Result<Proposal, Vec<String>> {
        let Value::Object(members) = value else {
            return Err(vec![format!("a traffic document is a JSON object, got {}", kind_of(value))]);
        };
        let mut parser = Parser { complaints: Vec::new() };
        let document = parser.document(members);
        let allow_signature_change = match member(members, "allow_signature_change") {
            None => false,
            Some(Value::Bool(b)) => *b,
            Some(other) => {
                parser.complain("allow_signature_change", "true or false", other);
                false
            }
        };
        let break_glass = match member(members, "break_glass") {
            None => false,
            Some(Value::Bool(b)) => *b,
            Some(other) => {
                parser.complain("break_glass", "true or false", other);
                false
            }
        };
        let dry_run = match member(members, "dry_run") {
            None => false,
            Some(Value::Bool(b)) => *b,
            Some(other) => {
                parser.complain("dry_run", "true or false", other);
                false
            }
        };
        let quorum = match member(members, "quorum") {
            None => None,
            Some(value) => {
                let share = value.as_f64().filter(|share| *share > 0.0 && *share <= 1.0);
                if share.is_none() {
                    parser.complain("quorum", Proposal::QUORUM, value);
                }
                share
            }
        };
        if document.reason.as_deref().is_some_and(|reason| reason.chars().nth(MAX_REASON).is_some()) {
            parser.complaints.push(format!("reason: expected at most {MAX_REASON} characters, got more"));
        }
        if parser.complaints.is_empty() {
            Ok(Proposal { document, allow_signature_change, break_glass, dry_run, quorum })
        } else {
            Err(parser.complaints)
        }
    }
}

/// A member of an object; `None` where it is absent or `null`.
fn member<'v>(members: &'v Map<String, Value>, name: &str) -> Option<&'v Value> {
    members.get(name).filter(|value| !value.is_null())
}

struct Parser {
    complaints: Vec<String>,
}

impl Parser {
    fn complain(&mut self, key: &str, expected: &str, found: &Value) {
        const SHOWN: usize = 80;
        let text = found.to_string();
        let found = if text.chars().count() > SHOWN {
            text.chars().take(SHOWN - 3).chain("...".chars()).collect()
        } else {
            text
        };
        self.complaints.push(format!("{key}: expected {expected}, got {found}"));
    }

    /// Complains about a member that is required and has another type, or is missing.
    fn complain_about(&mut self, key: &str, expected: &str, found: Option<&Value>) {
        match found {
            Some(found) => self.complain(key, expected, found),
            None => self.complaints.push(format!("{key}: expected {expected}, got nothing")),
        }
    }

    fn refuse_unknown(&mut self, at: &str, members: &Map<String, Value>, known: &[&str]) {
        for name in members.keys().filter(|name| !known.contains(&name.as_str())) {
            let key = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
            self.complaints.push(format!("{key}: unknown member; known here: {}", known.join(", ")));
        }
    }

    fn document(&mut self, members: &Map<String, Value>) -> Document {
        const KNOWN: [&str; 12] = [
            "split",
            "sticky_by",
            "rules",
            "shadows",
            "labels",
            "fallback",
            "salt",
            "reason",
            "allow_signature_change",
            "break_glass",
            "dry_run",
            "quorum",
        ];
        self.refuse_unknown("", members, &KNOWN);
        let split = self.split(member(members, "split"));
        let sticky_by = member(members, "sticky_by").and_then(|v| self.key(v));
        let rules = self.list("rules", member(members, "rules"), Parser::rule);
        let rules = rules.into_iter().map(|(_, rule)| rule).collect();
        let shadows = self.shadows(member(members, "shadows"));
        let labels = self.labels(member(members, "labels"));
        let fallback = member(members, "fallback").and_then(|v| self.fallback(v));
        let salt = self.text("salt", member(members, "salt"));
        let reason = self.text("reason", member(members, "reason"));
        Document { split, sticky_by, rules, shadows, labels, fallback, salt, reason }
    }

    fn split(&mut self, value: Option<&Value>) -> Vec<Arm> {
        let split: Vec<(usize, Arm)> = self.list("split", value, Parser::arm);
        let sum: f64 = split.iter().map(|(_, arm)| arm.weight).sum();
        let all_valid = value.and_then(Value::as_array).is_some_and(|arms| arms.len() == split.len());
        if value.is_none_or(|v| v.as_array().is_some_and(Vec::is_empty)) {
            self.complaints
                .push("split: expected at least one arm, such as [{\"version\":\"1\",\"weight\":1}]".to_owned());
        } else if all_valid && sum <= 0.0 {
            self.complaints.push("split: the weights are all 0; at least one must be positive".to_owned());
        } else if !sum.is_finite() {
            self.complaints.push("split: the sum of the weights overflows; use smaller numbers".to_owned());
        }
        let mut names = BTreeSet::new();
        for (i, arm) in &split {
            if !names.insert(arm.arm.as_str()) {
                self.complaints.push(format!(
                    "split[{i}].arm: {:?} is there more than once; arm names are unique within a split (absent, it is the version)",
                    arm.arm.as_str()
                ));
            }
        }
        split.into_iter().map(|(_, arm)| arm).collect()
    }

    fn shadows(&mut self, value: Option<&Value>) -> Vec<Shadow> {
        let shadows: Vec<(usize, Shadow)> = self.list("shadows", value, Parser::shadow);
        let mut versions = BTreeSet::new();
        for (i, shadow) in &shadows {
            if !versions.insert(shadow.version) {
                self.complaints.push(format!("shadows[{i}].version: {} is a shadow already", shadow.version));
            }
        }
        shadows.into_iter().map(|(_, shadow)| shadow).collect()
    }

    /// Parses the items of a list. Items that are not valid are left out, so each comes with its index in the list.
    fn list<T>(
        &mut self,
        key: &str,
        value: Option<&Value>,
        item: impl Fn(&mut Parser, &str, &Map<String, Value>) -> Option<T>,
    ) -> Vec<(usize, T)> {
        match value {
            None => Vec::new(),
            Some(Value::Array(items)) => items
                .iter()
                .enumerate()
                .filter_map(|(i, v)| {
                    let at = format!("{key}[{i}]");
                    let Value::Object(members) = v else {
                        self.complain(&at, "an object", v);
                        return None;
                    };
                    item(self, &at, members).map(|item| (i, item))
                })
                .collect(),
            Some(other) => {
                self.complain(key, "a list", other);
                Vec::new()
            }
        }
    }

    fn arm(&mut self, at: &str, members: &Map<String, Value>) -> Option<Arm> {
        self.refuse_unknown(at, members, &["version", "weight", "arm"]);
        let version = self.version(&format!("{at}.version"), member(members, "version"));
        let weight = match member(members, "weight") {
            Some(Value::Number(n)) if n.as_f64().is_some_and(|w| w >= 0.0 && w.is_finite()) => n.as_f64(),
            other => {
                self.complain_about(&format!("{at}.weight"), "a number of 0 or more", other);
                None
            }
        };
        let arm = match member(members, "arm") {
            None => version.map(ArmName::from),
            Some(Value::String(s)) if RESERVED_ARMS.contains(&s.as_str()) => {
                self.complaints.push(format!("{at}.arm: {s:?} is the gateway's own name; choose another"));
                None
            }
            Some(Value::String(s)) => s.parse().map_err(|e| self.complaints.push(format!("{at}.arm: {e}"))).ok(),
            Some(other) => {
                self.complain(&format!("{at}.arm"), "a string", other);
                None
            }
        };
        Some(Arm { version: version?, weight: weight?, arm: arm? })
    }

    fn rule(&mut self, at: &str, members: &Map<String, Value>) -> Option<Rule> {
        self.refuse_unknown(at, members, &["header", "equals", "version"]);
        let header = self.header(&format!("{at}.header"), member(members, "header"));
        let equals = match member(members, "equals") {
            Some(Value::String(s)) => Some(s.clone()),
            other => {
                self.complain_about(&format!("{at}.equals"), "a string", other);
                None
            }
        };
        let version = self.version(&format!("{at}.version"), member(members, "version"));
        Some(Rule { header: header?, equals: equals?, version: version? })
    }

    fn shadow(&mut self, at: &str, members: &Map<String, Value>) -> Option<Shadow> {
        self.refuse_unknown(at, members, &["version", "sample"]);
        let version = self.version(&format!("{at}.version"), member(members, "version"));
        let sample = match member(members, "sample") {
            None => Some(1.0),
            Some(Value::Number(n)) if n.as_f64().is_some_and(|s| s > 0.0 && s <= 1.0) => n.as_f64(),
            Some(other) => {
                self.complain(&format!("{at}.sample"), "a number above 0 and at most 1", other);
                None
            }
        };
        Some(Shadow { version: version?, sample: sample? })
    }

    fn labels(&mut self, value: Option<&Value>) -> BTreeMap<String, Version> {
        match value {
            None => BTreeMap::new(),
            Some(Value::Object(members)) => members
                .iter()
                .filter(|(_, v)| !v.is_null())
                .filter_map(|(label, v)| {
                    let key = format!("labels.{label}");
                    if label.parse::<ArmName>().is_err() {
                        self.complaints
                            .push(format!("{key}: a label is 1 to 64 letters, digits, '.', '_' or '-', got {label:?}"));
                        return None;
                    }
                    self.version(&key, Some(v)).map(|version| (label.clone(), version))
                })
                .collect(),
            Some(other) => {
                self.complain("labels", "an object of label to version", other);
                BTreeMap::new()
            }
        }
    }

    fn fallback(&mut self, value: &Value) -> Option<Fallback> {
        let Value::Object(members) = value else {
            self.complain("fallback", "{\"version\":\"1\"}", value);
            return None;
        };
        self.refuse_unknown("fallback", members, &["version"]);
        self.version("fallback.version", member(members, "version")).map(|version| Fallback { version })
    }

    fn key(&mut self, value: &Value) -> Option<Key> {
        const EXPECTED: &str = "{\"header\":\"x-user-id\"} or {\"parameter\":\"user_id\"}";
        let Value::Object(members) = value else {
            self.complain("sticky_by", EXPECTED, value);
            return None;
        };
        self.refuse_unknown("sticky_by", members, &["header", "parameter"]);
        match (member(members, "header"), member(members, "parameter")) {
            (Some(header), None) => self.header("sticky_by.header", Some(header)).map(Key::Header),
            (None, Some(Value::String(name))) if !name.is_empty() => Some(Key::Parameter(name.clone())),
            _ => {
                self.complain("sticky_by", EXPECTED, value);
                None
            }
        }
    }

    fn header(&mut self, key: &str, value: Option<&Value>) -> Option<String> {
        // The characters of an RFC 9110 token.
        let is_token =
            |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b));
        match value {
            Some(Value::String(s)) if is_token(s) => Some(s.to_ascii_lowercase()),
            other => {
                self.complain_about(key, "a header name", other);
                None
            }
        }
    }

    fn text(&mut self, key: &str, value: Option<&Value>) -> Option<String> {
        match value {
            None => None,
            Some(Value::String(s)) => Some(s.clone()),
            Some(other) => {
                self.complain(key, "a string", other);
                None
            }
        }
    }

    fn version(&mut self, key: &str, value: Option<&Value>) -> Option<Version> {
        match value {
            Some(Value::String(s)) => s.parse().map_err(|e| self.complaints.push(format!("{key}: {e}"))).ok(),
            other => {
                self.complain_about(key, "a version as a string, such as \"3\"", other);
                None
            }
        }
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
