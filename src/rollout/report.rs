//! What one gateway counted in a step: cumulative values of one start of the process, and what earlier starts had counted.
//!
//! A report replaces the one before, so it does not matter how often it comes. A start of the process takes what the fleet kept of the
//! start before as its `earlier`, so that nothing which was told is lost, and nothing counts twice.

use crate::telemetry::{
    ArmEvidence, Faults, KEYLESS, KeyEvidence, KeyNote, KeyNotes, LATENCY_BUCKETS, ROW_CLASSES, Side, WatchedEvidence,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A gateway's counts of a step.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct Report {
    /// As in [`super::shared::ToldRollout::step`].
    pub(super) step: String,
    /// The start of the process.
    pub(super) start: String,
    /// Of this start.
    pub(super) now: Tally,
    /// Of starts before, and of versions that were loaded again.
    pub(super) earlier: Tally,
    /// The keys of all starts.
    #[serde(default)]
    pub(super) keys: Keys,
}

/// Counts of both sides.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct Tally {
    pub(super) candidate: Counts,
    pub(super) control: Counts,
    /// Pairs of the candidate as a shadow, and those of them that agreed.
    #[serde(default)]
    pub(super) pairs: (u64, u64),
}

/// Counts of one side. Buckets that are 0 are left out.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct Counts {
    pub(super) requests: u64,
    pub(super) failed: u64,
    #[serde(default)]
    pub(super) nonfinite: u64,
    #[serde(default)]
    pub(super) latency: BTreeMap<usize, u64>,
    /// By class of rows and bucket, as one number.
    #[serde(default)]
    pub(super) engine: BTreeMap<usize, u64>,
    #[serde(default)]
    pub(super) changed: u64,
    #[serde(default)]
    pub(super) keyless: [u64; KEYLESS],
}

/// The sticky keys of both sides: six bytes for each, in base64.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct Keys {
    /// Whether the step counts keys.
    pub(super) counted: bool,
    pub(super) period: u32,
    pub(super) halvings: u32,
    #[serde(default)]
    pub(super) candidate: String,
    #[serde(default)]
    pub(super) control: String,
}

/// Keys of one side in a report. If there are more, half as many are told, by their hash: a value in NATS has at most a megabyte.
const MOST_KEYS: usize = 32_768;
/// The largest count. No gateway answers so many requests, and sums of thousands of gateways fit into 64 bits.
const MOST: u64 = 1 << 48;
const BYTES_OF_KEY: usize = 6;
const NOW: u8 = 0x80;

// === impl Report ===

impl Report {
    /// Reads a report.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub(super) fn read(text: &str) -> Result<Report, String> {
        let report: Report = serde_json::from_str(text).map_err(|error| error.to_string())?;
        for tally in [&report.now, &report.earlier] {
            for side in [&tally.candidate, &tally.control] {
                side.check()?;
            }
            if tally.pairs.0 > MOST || tally.pairs.1 > tally.pairs.0 {
                return Err(format!("its pairs are {:?}: at most {MOST} were expected", tally.pairs));
            }
        }
        for keys in [&report.keys.candidate, &report.keys.control] {
            read_keys(keys)?;
        }
        Ok(report)
    }

    /// The text that the fleet keeps.
    pub(super) fn to_json(&self) -> String {
        // Strings, numbers and maps with numbers as keys can always be written.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// The requests of both sides, or the pairs.
    pub(super) fn requests(&self) -> u64 {
        let of = |tally: &Tally| tally.candidate.requests + tally.control.requests + tally.pairs.0;
        of(&self.now) + of(&self.earlier)
    }
}

// === impl Tally ===

impl Tally {
    pub(super) fn add(&mut self, more: &Tally) {
        self.candidate.add(&more.candidate);
        self.control.add(&more.control);
        self.pairs = (self.pairs.0 + more.pairs.0, self.pairs.1 + more.pairs.1);
    }
}

// === impl Counts ===

impl Counts {
    /// The counts of an arm.
    pub(super) fn of(evidence: &ArmEvidence, keyless: [u64; KEYLESS]) -> Counts {
        let filled = |buckets: &[u64], from: usize| -> Vec<(usize, u64)> {
            let counted = buckets.iter().enumerate().filter(|(_, count)| **count > 0);
            counted.map(|(bucket, count)| (from + bucket, *count)).collect()
        };
        let watched = evidence.watched.as_ref();
        let classes = watched.into_iter().flat_map(|watched| watched.engine.iter().enumerate());
        Counts {
            requests: evidence.requests,
            failed: evidence.failed,
            nonfinite: evidence.nonfinite,
            latency: filled(evidence.latency.as_slice(), 0).into_iter().collect(),
            engine: classes.flat_map(|(class, runs)| filled(runs, class * LATENCY_BUCKETS)).collect(),
            changed: watched.map_or(0, |watched| watched.changed),
            keyless,
        }
    }

    pub(super) fn add(&mut self, more: &Counts) {
        self.requests += more.requests;
        self.failed += more.failed;
        self.nonfinite += more.nonfinite;
        self.changed += more.changed;
        for (bucket, count) in &more.latency {
            *self.latency.entry(*bucket).or_default() += count;
        }
        for (bucket, count) in &more.engine {
            *self.engine.entry(*bucket).or_default() += count;
        }
        self.keyless.iter_mut().zip(more.keyless).for_each(|(sum, more)| *sum += more);
    }

    /// Whether these counts began again after `before`: a version was loaded again.
    fn began_again(&self, before: &Counts) -> bool {
        self.requests < before.requests
            || self.failed < before.failed
            || self.nonfinite < before.nonfinite
            || self.changed < before.changed
            || self.keyless[0] < before.keyless[0]
    }

    /// As evidence. `keys`: of all gateways together, where keys are counted.
    pub(super) fn evidence(&self, keys: Option<KeyEvidence>) -> ArmEvidence {
        let mut evidence = ArmEvidence { requests: self.requests, failed: self.failed, ..ArmEvidence::default() };
        evidence.nonfinite = self.nonfinite;
        for (bucket, count) in &self.latency {
            evidence.latency[*bucket] = *count;
        }
        let mut watched = WatchedEvidence { engine: vec![[0; LATENCY_BUCKETS]; ROW_CLASSES], changed: self.changed };
        for (bucket, count) in &self.engine {
            watched.engine[bucket / LATENCY_BUCKETS][bucket % LATENCY_BUCKETS] = *count;
        }
        (evidence.watched, evidence.keys) = (Some(watched), keys);
        evidence
    }

    fn check(&self) -> Result<(), String> {
        let Counts { requests, failed, nonfinite, latency, engine, changed, keyless } = self;
        let largest = [requests, failed, nonfinite, changed].into_iter().chain(latency.values());
        let largest = largest.chain(engine.values()).chain(keyless).max().copied().unwrap_or_default();
        if largest > MOST {
            return Err(format!("it counts {largest}: at most {MOST} was expected"));
        }
        let last = |buckets: &BTreeMap<usize, u64>| buckets.last_key_value().map_or(0, |(bucket, _)| *bucket);
        if last(latency) >= LATENCY_BUCKETS || last(engine) >= LATENCY_BUCKETS * ROW_CLASSES {
            return Err("it has a bucket that does not exist".to_owned());
        }
        Ok(())
    }
}

// === impl Keys ===

impl Keys {
    /// The keys of a side.
    pub(super) fn of(&self, side: Side) -> Vec<KeyNote> {
        let text = match side {
            Side::Candidate => &self.candidate,
            Side::Control => &self.control,
        };
        // It was read before.
        read_keys(text).unwrap_or_default()
    }
}

fn read_keys(text: &str) -> Result<Vec<KeyNote>, String> {
    if text.len() > (MOST_KEYS * BYTES_OF_KEY).div_ceil(3) * 4 {
        return Err(format!("it has more than {MOST_KEYS} keys"));
    }
    let bytes = BASE64.decode(text).map_err(|error| format!("its keys cannot be read: {error}"))?;
    if bytes.len() % BYTES_OF_KEY != 0 {
        return Err("its last key is cut off".to_owned());
    }
    let note = |bytes: &[u8]| KeyNote {
        tag: u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
        had: Faults::from_bits(bytes[4]),
        first: Faults::from_bits(bytes[5]),
        now: bytes[5] & NOW != 0,
    };
    Ok(bytes.chunks_exact(BYTES_OF_KEY).map(note).collect())
}

fn write_keys(keys: &BTreeMap<u32, KeyNote>) -> String {
    let mut bytes = Vec::with_capacity(keys.len() * BYTES_OF_KEY);
    for KeyNote { tag, had, first, now } in keys.values() {
        bytes.extend(tag.to_le_bytes());
        bytes.extend([had.bits(), first.bits() | if *now { NOW } else { 0 }]);
    }
    BASE64.encode(bytes)
}

/// What this gateway reads of a step at one moment, of its own counters.
#[derive(Debug, Clone, Default)]
pub(super) struct Reading {
    pub(super) tally: Tally,
    /// The keys of the candidate and of the control, where keys are counted.
    pub(super) keys: Option<(KeyNotes, KeyNotes)>,
}

/// Makes the reports of this gateway for one step.
#[derive(Debug, Clone)]
pub(super) struct Reporter {
    step: String,
    start: String,
    earlier: Tally,
    earlier_keys: (Vec<KeyNote>, Vec<KeyNote>),
    earlier_period: u32,
    earlier_halvings: u32,
    last: Tally,
}

impl Reporter {
    /// `stored`: what the fleet keeps of this gateway.
    pub(super) fn new(step: &str, start: &str, stored: Option<&Report>) -> Reporter {
        let mut reporter = Reporter {
            step: step.to_owned(),
            start: start.to_owned(),
            earlier: Tally::default(),
            earlier_keys: Default::default(),
            earlier_period: 0,
            earlier_halvings: 0,
            last: Tally::default(),
        };
        // Counts of another step are of no use. Those of this start are read again from the counters.
        if let Some(stored) = stored.filter(|stored| stored.step == step) {
            reporter.earlier = stored.earlier.clone();
            if stored.start != start {
                reporter.earlier.add(&stored.now);
            }
            reporter.earlier_keys = (stored.keys.of(Side::Candidate), stored.keys.of(Side::Control));
            (reporter.earlier_period, reporter.earlier_halvings) = (stored.keys.period, stored.keys.halvings);
        }
        reporter
    }

    /// The report of this moment.
    pub(super) fn report(&mut self, reading: Reading) -> Report {
        let Reading { tally, keys } = reading;
        if tally.candidate.began_again(&self.last.candidate) {
            self.earlier.candidate.add(&self.last.candidate);
        }
        if tally.control.began_again(&self.last.control) {
            self.earlier.control.add(&self.last.control);
        }
        if tally.pairs.0 < self.last.pairs.0 || tally.pairs.1 < self.last.pairs.1 {
            self.earlier.add(&Tally { pairs: self.last.pairs, ..Tally::default() });
        }
        self.last = tally.clone();
        let keys = keys.map_or_else(Keys::default, |keys| self.keys(&keys));
        Report { step: self.step.clone(), start: self.start.clone(), now: tally, earlier: self.earlier.clone(), keys }
    }

    /// The keys of this start with those of the starts before.
    fn keys(&self, (candidate, control): &(KeyNotes, KeyNotes)) -> Keys {
        let period = candidate.period.max(control.period);
        let is_period_of_earlier = self.earlier_period == period;
        let union = |earlier: &[KeyNote], now: &KeyNotes| {
            let was = |note: &KeyNote| KeyNote { now: note.now && is_period_of_earlier, ..*note };
            let mut keys: BTreeMap<u32, KeyNote> = earlier.iter().map(|note| (note.tag, was(note))).collect();
            for note in &now.keys {
                let known = keys.entry(note.tag).or_insert(*note);
                known.had = known.had.and(note.had);
                // The first request of a period stays the first.
                if note.now && !known.now {
                    (known.now, known.first) = (true, note.first);
                }
            }
            keys
        };
        let mut sides = [union(&self.earlier_keys.0, candidate), union(&self.earlier_keys.1, control)];
        let mut halvings = candidate.halvings.max(control.halvings).max(self.earlier_halvings);
        loop {
            for keys in &mut sides {
                keys.retain(|tag, _| tag.leading_zeros() >= halvings);
            }
            if sides.iter().all(|keys| keys.len() <= MOST_KEYS) || halvings >= u32::BITS {
                break;
            }
            halvings += 1;
        }
        let [candidate, control] = sides.each_ref().map(write_keys);
        Keys { counted: true, period, halvings, candidate, control }
    }
}
