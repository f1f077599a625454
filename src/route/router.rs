//! A document made ready to decide.

use super::document::{Document, Key};
use crate::model::{ModelName, Parameters, Version};
use std::borrow::Cow;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// What the caller asked for in the URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Selector<'a> {
    /// Whatever the traffic document says.
    #[default]
    Traffic,
    /// This version and no other.
    Version(Version),
    /// Whatever the document's label says.
    Label(&'a str),
}

/// What a decision may look at.
pub struct Ask<'a> {
    pub selector: Selector<'a>,
    /// Finds a request header by its lower-case name; only text headers count.
    pub header: &'a dyn Fn(&str) -> Option<&'a str>,
    pub parameters: &'a Parameters,
    /// The key where the document has none, or the request lacks it.
    pub request_id: &'a str,
}

impl std::fmt::Debug for Ask<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ask")
            .field("selector", &self.selector)
            .field("request_id", &self.request_id)
            .finish_non_exhaustive()
    }
}

/// Who answers, by the document's own indices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// The arm of the split at this index. `keyless`: the document has a sticky key and the request lacks it, so that its id stood
    /// in.
    Arm { index: usize, keyless: bool },
    /// The rule at this index.
    Rule(usize),
    /// The version the URL named; it may not exist.
    Pinned(Version),
    /// The version a label stands for.
    Label(Version),
    /// The URL named a label the document does not have.
    UnknownLabel,
}

/// Decides, from one document, the same way in every process.
#[derive(Debug)]
pub struct Router {
    document: Document,
    /// Per arm: the seed its scores are hashed with. Empty where there is nothing to choose between.
    seeds: Vec<u64>,
}

impl Router {
    #[must_use]
    pub fn new(model: &ModelName, document: Document) -> Router {
        let salt = xxh3_64(document.salt.as_deref().unwrap_or(model.as_str()).as_bytes());
        let weighted = document.split.iter().filter(|a| a.weight > 0.0).count();
        let seeds = if weighted > 1 {
            document.split.iter().map(|a| xxh3_64_with_seed(a.arm.as_str().as_bytes(), salt)).collect()
        } else {
            Vec::new()
        };
        Router { document, seeds }
    }

    #[must_use]
    pub fn document(&self) -> &Document {
        &self.document
    }

    /// Decides who answers: what the URL pins, else the first rule that matches, else the split.
    #[must_use]
    pub fn route(&self, ask: &Ask) -> Route {
        match ask.selector {
            Selector::Version(version) => return Route::Pinned(version),
            Selector::Label(label) => {
                return self.document.labels.get(label).map_or(Route::UnknownLabel, |v| Route::Label(*v));
            }
            Selector::Traffic => {}
        }
        // Rules mostly ask for one header, one after the other; finding it costs ten times what comparing it does.
        let mut found: (&str, Option<&str>) = ("", None);
        for (i, rule) in self.document.rules.iter().enumerate() {
            if found.0 != rule.header {
                found = (&rule.header, (ask.header)(&rule.header));
            }
            if found.1 == Some(rule.equals.as_str()) {
                return Route::Rule(i);
            }
        }
        let key = self.sticky_key(ask);
        let keyless = key.is_none() && self.document.sticky_by.is_some();
        if self.seeds.is_empty() {
            let only = self.document.split.iter().position(|a| a.weight > 0.0);
            return Route::Arm { index: only.expect("a document's weights have a positive sum"), keyless };
        }
        Route::Arm { index: self.arm_for(key.as_deref().unwrap_or(ask.request_id)), keyless }
    }

    /// What the document wants arms to be chosen by, where the request has it. An empty key is none: it would send all who forgot
    /// theirs to one arm.
    #[must_use]
    pub fn sticky_key<'a>(&self, ask: &Ask<'a>) -> Option<Cow<'a, str>> {
        let key = match self.document.sticky_by.as_ref()? {
            Key::Header(name) => Cow::Borrowed((ask.header)(name)?),
            Key::Parameter(name) => Cow::Owned(ask.parameters.iter().find(|(n, _)| n == name)?.1.to_string()),
        };
        Some(key).filter(|key| !key.is_empty())
    }

    /// Weighted rendezvous hashing: the arm with the highest score wins, where an arm's score is `-weight / ln(u)` and `u` in
    /// (0,1) is a hash of salt, arm and key (Schindelhauer and Schomaker, "Weighted distributed hash tables", SPAA 2005).
    /// A raised weight raises that arm's scores alone, so keys only ever move to it; a lowered one likewise only from it.
    fn arm_for(&self, key: &str) -> usize {
        let mut best = (0, f64::NEG_INFINITY);
        for (i, (arm, seed)) in self.document.split.iter().zip(&self.seeds).enumerate() {
            if arm.weight <= 0.0 {
                continue;
            }
            let hash = xxh3_64_with_seed(key.as_bytes(), *seed);
            // 53 bits, in the middle of their bucket: never 0 and never 1.
            let u = ((hash >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
            let score = -arm.weight / u.ln();
            if score > best.1 {
                best = (i, score);
            }
        }
        best.0
    }
}
