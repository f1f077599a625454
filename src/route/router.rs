//! Decides which version answers a request, from one document.

use super::document::{Document, Key};
use crate::model::{ModelName, Parameters, Version};
use std::borrow::Cow;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// What the request's URL asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Selector<'a> {
    /// No version: the traffic document decides.
    #[default]
    Traffic,
    /// This version.
    Version(Version),
    /// The version of this label.
    Label(&'a str),
}

/// The parts of a request that a routing decision reads.
pub struct RouteRequest<'a> {
    pub selector: Selector<'a>,
    /// Returns a request header by its lower-case name; `None` where it is absent or not text.
    pub header: &'a dyn Fn(&str) -> Option<&'a str>,
    pub parameters: &'a Parameters,
    /// The key where the document has no sticky key, or the request lacks it.
    pub request_id: &'a str,
}

impl std::fmt::Debug for RouteRequest<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RouteRequest")
            .field("selector", &self.selector)
            .field("request_id", &self.request_id)
            .finish_non_exhaustive()
    }
}

/// A routing decision, by index into the document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// The arm of the split at this index. `keyless`: the document has a sticky key and the request lacks it, so the request id
    /// was used instead.
    Arm { index: usize, keyless: bool },
    /// The rule at this index.
    Rule(usize),
    /// The version in the URL. It may not exist.
    Pinned(Version),
    /// The version of the label in the URL.
    Label(Version),
    /// The document does not have the label in the URL.
    UnknownLabel,
    /// No arm of the split has a weight. Parsing refuses such a document.
    NoArm,
}

/// An arm that can be chosen.
#[derive(Debug)]
struct Candidate {
    /// The arm's index in the split.
    index: usize,
    /// The arm's weight, scaled so that a score cannot overflow.
    weight: f64,
    /// The seed of the arm's score hash.
    seed: u64,
}

/// What an arm scores for a key. The highest score wins.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Score {
    /// The arm's index in the split.
    pub index: usize,
    /// The hash of salt, arm and key, between 0 and 1.
    pub draw: f64,
    /// `-weight / ln(draw)`, where the weights are scaled by a common power of two.
    pub score: f64,
}

/// Makes routing decisions from one document. The decisions are the same in every process.
#[derive(Debug)]
pub struct Router {
    document: Document,
    /// The arms with a positive weight.
    candidates: Vec<Candidate>,
    /// The seed of the hash of a key, which is independent of the arms' scores.
    key_seed: u64,
}

/// Makes the hash of a key differ from the arms' scores.
const KEY: &[u8] = b"key";

impl Router {
    #[must_use]
    pub fn new(model: &ModelName, document: Document) -> Router {
        let salt = xxh3_64(document.salt.as_deref().unwrap_or(model.as_str()).as_bytes());
        let weighted = document.split.iter().enumerate().filter(|(_, arm)| arm.weight > 0.0);
        let scale = scale(document.split.iter().map(|arm| arm.weight).fold(0.0, f64::max));
        let candidates = weighted.map(|(index, arm)| Candidate {
            index,
            weight: arm.weight * scale,
            seed: xxh3_64_with_seed(arm.arm.as_str().as_bytes(), salt),
        });
        Router { candidates: candidates.collect(), document, key_seed: xxh3_64_with_seed(KEY, salt) }
    }

    #[must_use]
    pub fn document(&self) -> &Document {
        &self.document
    }

    /// Decides which version answers: the one pinned by the URL, else the first rule that matches, else the split.
    #[must_use]
    pub fn route(&self, request: &RouteRequest) -> Route {
        self.route_with_key(request).0
    }

    /// The decision, and a hash of the sticky key where the key decided between several arms. The hash says nothing about the arm.
    #[must_use]
    pub fn route_with_key(&self, request: &RouteRequest) -> (Route, Option<u64>) {
        match request.selector {
            Selector::Version(version) => return (Route::Pinned(version), None),
            Selector::Label(label) => {
                let labelled = self.document.labels.get(label);
                return (labelled.map_or(Route::UnknownLabel, |v| Route::Label(*v)), None);
            }
            Selector::Traffic => {}
        }
        // Consecutive rules often name the same header, and finding a header costs ten times as much as comparing it.
        let mut found: (&str, Option<&str>) = ("", None);
        for (i, rule) in self.document.rules.iter().enumerate() {
            if found.0 != rule.header {
                found = (&rule.header, (request.header)(&rule.header));
            }
            if found.1 == Some(rule.equals.as_str()) {
                return (Route::Rule(i), None);
            }
        }
        let key = self.sticky_key(request);
        let keyless = key.is_none() && self.document.sticky_by.is_some();
        let Some(index) = self.arm_for(key.as_deref().unwrap_or(request.request_id)) else {
            return (Route::NoArm, None);
        };
        let hashed = key.filter(|_| self.candidates.len() > 1);
        (Route::Arm { index, keyless }, hashed.map(|key| xxh3_64_with_seed(key.as_bytes(), self.key_seed)))
    }

    /// The request's sticky key, where the document asks for one and the request has it. An empty key counts as absent: otherwise
    /// all callers that send none would get the same arm.
    #[must_use]
    pub fn sticky_key<'a>(&self, request: &RouteRequest<'a>) -> Option<Cow<'a, str>> {
        let key = match self.document.sticky_by.as_ref()? {
            Key::Header(name) => Cow::Borrowed((request.header)(name)?),
            Key::Parameter(name) => Cow::Owned(request.parameters.iter().find(|(n, _)| n == name)?.1.to_string()),
        };
        Some(key).filter(|key| !key.is_empty())
    }

    /// The arm that the split chooses for a key, and the scores of all arms with a weight, in the order of the split. Rules are not looked at.
    #[must_use]
    pub fn explain(&self, key: &str) -> (Option<usize>, Vec<Score>) {
        (self.arm_for(key), self.candidates.iter().map(|candidate| candidate.score(key)).collect())
    }

    /// The index of the arm for a key, by weighted rendezvous hashing: the arm with the highest score wins. An arm's score is
    /// `-weight / ln(u)`, where `u` in (0,1) is a hash of salt, arm and key (Schindelhauer and Schomaker, "Weighted distributed
    /// hash tables", SPAA 2005). Raising a weight raises the scores of that arm alone, so keys only move to it; lowering it
    /// only moves keys away from it. `None` where no arm has a weight.
    pub(super) fn arm_for(&self, key: &str) -> Option<usize> {
        if let [only] = self.candidates.as_slice() {
            return Some(only.index);
        }
        let mut best: Option<(usize, f64)> = None;
        for candidate in &self.candidates {
            let Score { score, .. } = candidate.score(key);
            if best.is_none_or(|(_, highest)| score > highest) {
                best = Some((candidate.index, score));
            }
        }
        best.map(|(index, _)| index)
    }
}

impl Candidate {
    fn score(&self, key: &str) -> Score {
        let hash = xxh3_64_with_seed(key.as_bytes(), self.seed);
        // 53 bits plus one half, so that the draw is never 0 and never 1.
        let draw = ((hash >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        Score { index: self.index, draw, score: -self.weight / draw.ln() }
    }
}

/// A power of two that brings the largest weight near 1, so that scores of very large weights do not overflow to infinity and
/// those of very small ones keep their precision. Scaling by a power of two is exact, so it changes no decision.
fn scale(largest: f64) -> f64 {
    if !largest.is_normal() {
        // Below the smallest normal number: raised as far as one factor can.
        return if largest > 0.0 { 2f64.powi(1000) } else { 1.0 };
    }
    // At most 2^1022 and at least 2^-1023, which a double can hold.
    let exponent = largest.log2().floor().clamp(-1022.0, 1023.0);
    (-exponent).exp2()
}
