//! The traffic document: what an operator wrote, checked whole.

use crate::model::{ArmName, Version};
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};

/// Arm names the gateway gives to requests that no split decided; a document may not use them.
pub const RESERVED_ARMS: [&str; 3] = ["pinned", "label", "rule"];

/// One arm of a split.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Arm {
    pub version: Version,
    /// Relative, finite, not negative.
    pub weight: f64,
    pub arm: ArmName,
}

/// What the sticky key is read from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Key {
    /// A request header, its name in lower case.
    Header(String),
    /// A request parameter of the Open Inference Protocol.
    Parameter(String),
}

/// Requests whose header equals a text go to a version, before the split.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rule {
    /// In lower case.
    pub header: String,
    pub equals: String,
    pub version: Version,
}

/// A version that gets copies and answers nobody.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Shadow {
    pub version: Version,
    /// Share of requests copied, above 0 and at most 1.
    pub sample: f64,
}

/// One valid traffic document. Serializes to the document's own JSON.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Document {
    /// Never empty; weights have a positive sum; arm names are unique.
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
    pub salt: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A document somebody wants, with what they said about it that is not kept.
#[derive(Debug, Clone, PartialEq)]
pub struct Proposal {
    pub document: Document,
    pub allow_signature_change: bool,
}

impl Document {
    /// All requests to one version.
    #[must_use]
    pub fn single(version: Version) -> Document {
        Document {
            split: vec![Arm { version, weight: 1.0, arm: version.into() }],
            sticky_by: None,
            rules: Vec::new(),
            shadows: Vec::new(),
            labels: BTreeMap::new(),
            salt: None,
            reason: None,
        }
    }

    /// This document with its split replaced by one version, and that version out of the shadows: what a promote makes.
    #[must_use]
    pub fn promoted(&self, version: Version) -> Document {
        let mut next = self.clone();
        next.split = Document::single(version).split;
        next.shadows.retain(|s| s.version != version);
        next
    }

    /// Whether un-pinned requests all go to this version already.
    #[must_use]
    pub fn serves_alone(&self, version: Version) -> bool {
        self.split.iter().all(|arm| arm.version == version) && !self.shadows.iter().any(|s| s.version == version)
    }

    /// The version with the largest share of the split; the first of equals.
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

    /// Every version a request may be answered by un-asked: split, rules and labels. Shadows are not among them.
    #[must_use]
    pub fn serving(&self) -> BTreeSet<Version> {
        let split = self.split.iter().map(|a| a.version);
        let rules = self.rules.iter().map(|r| r.version);
        split.chain(rules).chain(self.labels.values().copied()).collect()
    }

    /// Every version the document names, shadows too: none of these may be unloaded.
    #[must_use]
    pub fn named(&self) -> BTreeSet<Version> {
        let mut named = self.serving();
        named.extend(self.shadows.iter().map(|s| s.version));
        named
    }

    /// The document's JSON text, as the ledger keeps it.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a document has string keys and finite numbers, which JSON can write")
    }

    /// Reads the JSON text the ledger kept.
    ///
    /// # Errors
    /// Every complaint, each naming its key.
    pub fn from_json(text: &str) -> Result<Document, Vec<String>> {
        let value = serde_json::from_str(text).map_err(|e| vec![format!("the document is not JSON: {e}")])?;
        Proposal::parse(&value).map(|p| p.document)
    }
}

impl Proposal {
    /// Reads a document as an operator sends it.
    ///
    /// # Errors
    /// Every complaint at once, each naming its key, what was found and what would be right.
    pub fn parse(value: &Value) -> Result<Proposal, Vec<String>> {
        let Value::Object(members) = value else {
            return Err(vec![format!("a traffic document is a JSON object, got {}", kind(value))]);
        };
        let mut reader = Reader { complaints: Vec::new() };
        let document = reader.document(members);
        let allow_signature_change = match members.get("allow_signature_change") {
            None => false,
            Some(Value::Bool(b)) => *b,
            Some(other) => {
                reader.complain("allow_signature_change", "true or false", other);
                false
            }
        };
        if reader.complaints.is_empty() {
            Ok(Proposal { document, allow_signature_change })
        } else {
            Err(reader.complaints)
        }
    }
}

struct Reader {
    complaints: Vec<String>,
}

impl Reader {
    fn complain(&mut self, key: &str, expected: &str, found: &Value) {
        let found = found.to_string();
        let found =
            if found.chars().count() > 80 { found.chars().take(77).chain("...".chars()).collect() } else { found };
        self.complaints.push(format!("{key}: expected {expected}, got {found}"));
    }

    fn known(&mut self, at: &str, members: &Map<String, Value>, known: &[&str]) {
        for name in members.keys().filter(|name| !known.contains(&name.as_str())) {
            let key = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
            self.complaints.push(format!("{key}: unknown member; known here: {}", known.join(", ")));
        }
    }

    fn document(&mut self, members: &Map<String, Value>) -> Document {
        const KNOWN: [&str; 8] =
            ["split", "sticky_by", "rules", "shadows", "labels", "salt", "reason", "allow_signature_change"];
        self.known("", members, &KNOWN);
        let split = self.split(members.get("split"));
        let sticky_by = members.get("sticky_by").filter(|v| !v.is_null()).and_then(|v| self.key(v));
        let rules = self.list("rules", members.get("rules"), Reader::rule).into_iter().map(|(_, rule)| rule).collect();
        let shadows: Vec<(usize, Shadow)> = self.list("shadows", members.get("shadows"), Reader::shadow);
        for (read, (i, shadow)) in shadows.iter().enumerate() {
            if shadows[..read].iter().any(|(_, s)| s.version == shadow.version) {
                self.complaints.push(format!("shadows[{i}].version: {} is a shadow already", shadow.version));
            }
        }
        let shadows = shadows.into_iter().map(|(_, shadow)| shadow).collect();
        let labels = self.labels(members.get("labels"));
        let salt = self.text("salt", members.get("salt"));
        let reason = self.text("reason", members.get("reason"));
        Document { split, sticky_by, rules, shadows, labels, salt, reason }
    }

    fn split(&mut self, value: Option<&Value>) -> Vec<Arm> {
        // With the places they stand at, as those that cannot be read are left out.
        let split: Vec<(usize, Arm)> = self.list("split", value, Reader::arm);
        let sum: f64 = split.iter().map(|(_, arm)| arm.weight).sum();
        let all_read = value.and_then(Value::as_array).is_some_and(|arms| arms.len() == split.len());
        if value.is_none_or(|v| v.as_array().is_some_and(Vec::is_empty)) {
            self.complaints
                .push("split: expected at least one arm, such as [{\"version\":\"1\",\"weight\":1}]".to_owned());
        } else if all_read && sum <= 0.0 {
            self.complaints.push("split: the weights are all 0; at least one must be positive".to_owned());
        } else if !sum.is_finite() {
            self.complaints.push("split: the sum of the weights overflows; use smaller numbers".to_owned());
        }
        for (read, (i, arm)) in split.iter().enumerate() {
            if split[..read].iter().any(|(_, a)| a.arm == arm.arm) {
                self.complaints.push(format!(
                    "split[{i}].arm: {:?} stands twice; arm names are unique within a split (absent, it is the version)",
                    arm.arm.as_str()
                ));
            }
        }
        split.into_iter().map(|(_, arm)| arm).collect()
    }

    fn list<T>(
        &mut self,
        key: &str,
        value: Option<&Value>,
        item: impl Fn(&mut Reader, &str, &Map<String, Value>) -> Option<T>,
    ) -> Vec<(usize, T)> {
        match value {
            None | Some(Value::Null) => Vec::new(),
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
        self.known(at, members, &["version", "weight", "arm"]);
        let version = self.version(&format!("{at}.version"), members.get("version"));
        let weight = match members.get("weight") {
            Some(Value::Number(n)) if n.as_f64().is_some_and(|w| w >= 0.0 && w.is_finite()) => n.as_f64(),
            other => {
                self.complain(&format!("{at}.weight"), "a number of 0 or more", other.unwrap_or(&Value::Null));
                None
            }
        };
        let arm = match members.get("arm").filter(|v| !v.is_null()) {
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
        self.known(at, members, &["header", "equals", "version"]);
        let header = self.header(&format!("{at}.header"), members.get("header"));
        let equals = match members.get("equals") {
            Some(Value::String(s)) => Some(s.clone()),
            other => {
                self.complain(&format!("{at}.equals"), "a string", other.unwrap_or(&Value::Null));
                None
            }
        };
        let version = self.version(&format!("{at}.version"), members.get("version"));
        Some(Rule { header: header?, equals: equals?, version: version? })
    }

    fn shadow(&mut self, at: &str, members: &Map<String, Value>) -> Option<Shadow> {
        self.known(at, members, &["version", "sample"]);
        let version = self.version(&format!("{at}.version"), members.get("version"));
        let sample = match members.get("sample") {
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
            None | Some(Value::Null) => BTreeMap::new(),
            Some(Value::Object(members)) => members
                .iter()
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

    fn key(&mut self, value: &Value) -> Option<Key> {
        let expected = "{\"header\":\"x-user-id\"} or {\"parameter\":\"user_id\"}";
        let Value::Object(members) = value else {
            self.complain("sticky_by", expected, value);
            return None;
        };
        match (members.get("header"), members.get("parameter"), members.len()) {
            (Some(header), None, 1) => self.header("sticky_by.header", Some(header)).map(Key::Header),
            (None, Some(Value::String(name)), 1) if !name.is_empty() => Some(Key::Parameter(name.clone())),
            _ => {
                self.complain("sticky_by", expected, value);
                None
            }
        }
    }

    fn header(&mut self, key: &str, value: Option<&Value>) -> Option<String> {
        let token =
            |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b));
        match value {
            Some(Value::String(s)) if token(s) => Some(s.to_ascii_lowercase()),
            other => {
                self.complain(key, "a header name", other.unwrap_or(&Value::Null));
                None
            }
        }
    }

    fn text(&mut self, key: &str, value: Option<&Value>) -> Option<String> {
        match value {
            None | Some(Value::Null) => None,
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
                self.complain(key, "a version as a string, such as \"3\"", other.unwrap_or(&Value::Null));
                None
            }
        }
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
