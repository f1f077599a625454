//! What gateways of a fleet give each other of their rows: small parts that replace their own earlier form, and one snapshot of the parts of all.
//!
//! A request is answered by one gateway, so a row is in the parts of one. Feedback about it may reach any of them: what waits there for a row is given
//! too, and finds it where the parts come together. Of each field the latest entry counts, so the order does not matter, and nothing counts twice.

use super::cell::{Cell, Packed};
use super::outcome::Outcome;
use super::rows::ModelRows;
use super::snapshot::{ArmOf, Snapshot};
use super::{History, Layout, Row};
use crate::model::{ModelName, Version};
use crate::quality::label::Predicted;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A part of a model's rows: at most [`Part::ROWS`] rows of one day, or as much feedback that waits for its row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// The day since 1970, and the place in it.
    Rows(i64, u32),
    Early(u64),
}

/// What other gateways of the fleet gave. Implemented by the room `fleet`.
pub trait Others: fmt::Debug + Send + Sync {
    /// What is known of a model. It is asked for again in the background, as long as somebody asks here.
    fn of(&self, model: &ModelName) -> Given;
}

/// What is known of the rows of other gateways.
#[derive(Debug, Clone, Default)]
pub struct Given {
    /// Tells the key that this gateway hashes route keys with apart from those of others.
    pub key: String,
    pub gateways: Vec<Gateway>,
    /// Gateways that are there, answer for the model, and have given nothing that can be read.
    pub missing: Vec<String>,
    /// Why the newest is not known, in words.
    pub waits: Option<String>,
}

/// What one gateway gave: its parts as [`History::part`] wrote them.
#[derive(Debug, Clone)]
pub struct Gateway {
    pub name: String,
    /// When it wrote them, by its clock: microseconds since 1970.
    pub as_of: i64,
    /// Entries of feedback that it had received, and those of them that it did not keep.
    pub feedback: u64,
    pub left_out: u64,
    /// The split that it has in force, as a hash, and since when.
    pub split: Option<(u64, i64)>,
    /// Tells the key that it hashes route keys with apart from those of others: its units are others under another key.
    pub key: String,
    pub parts: Vec<Arc<[u8]>>,
}

/// The rows of a whole fleet; those of this gateway where it is in none.
#[derive(Debug, Clone, Default)]
pub struct Whole {
    pub snapshot: Snapshot,
    /// `None` in no fleet.
    pub fleet: Option<Together>,
    /// Feedback whose row no gateway has: rows, not entries.
    pub unmatched: u64,
}

/// Whose rows are in a [`Whole`], beside this gateway's own.
#[derive(Debug, Clone, Default)]
pub struct Together {
    /// Name, and when it gave its rows.
    pub gateways: Vec<(String, i64)>,
    pub missing: Vec<String>,
    pub waits: Option<String>,
    /// Whether the rows of the others are as new as they can be.
    pub is_new: bool,
    pub feedback: u64,
    pub left_out: u64,
    /// The splits that others have in force, as hashes, and since when.
    pub splits: Vec<(u64, i64)>,
}

/// A part, as it is written.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Block {
    form: u32,
    arms: Vec<BlockArm>,
    texts: Vec<Box<str>>,
    values: Vec<Box<str>>,
    rows: Vec<BlockRow>,
    early: Vec<(u64, Outcome)>,
}

/// Version, arm, the outputs and cells of its rows, and how often its requests were halved.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct BlockArm(Version, Box<str>, Vec<(Box<str>, std::ops::Range<usize>)>, Vec<Box<str>>, u32);

/// Key, position, arm, whether the unit is a key, time, unit; prediction, numbers, cells, outcome.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct BlockRow(u64, u32, u16, bool, i64, u64, Predicted, Box<[f64]>, Box<[u32]>, Option<Box<Outcome>>);

const FORM: u32 = 1;
/// The most bytes of a part before it is compressed. One with its rows at their largest has half as many.
const MAX_PART: usize = 2 << 20;
/// The same after it is compressed: a value of NATS has at most 1 MiB.
const MAX_PACKED: usize = 1_000_000;
/// It is compressed fast: it is written again when a row of it changes.
const LEVEL: i32 = 1;

impl Part {
    /// The most rows, or entries that wait, of a part.
    pub(super) const ROWS: usize = 256;
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Part::Rows(day, at) => write!(f, "r{day}-{at}"),
            Part::Early(at) => write!(f, "e{at}"),
        }
    }
}

impl FromStr for Part {
    type Err = ();

    fn from_str(text: &str) -> Result<Part, ()> {
        let part = match text.split_at_checked(1).ok_or(())? {
            ("e", at) => Part::Early(at.parse().map_err(drop)?),
            ("r", of) => {
                let (day, at) = of.rsplit_once('-').ok_or(())?;
                Part::Rows(day.parse().map_err(drop)?, at.parse().map_err(drop)?)
            }
            _ => return Err(()),
        };
        if part.to_string() == text { Ok(part) } else { Err(()) }
    }
}

impl History {
    /// From now on feedback waits for its row as long as rows are kept, as the row may be another gateway's.
    pub fn share_with(&self, others: Arc<dyn Others>) {
        let keep = self.keep_us();
        *self.0.others.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some((others, keep));
        for model in self.models().values() {
            model.lock().wait_for(Some(keep));
        }
    }

    /// A number that is another one after each change of a model's parts; 0 where there are none.
    #[must_use]
    pub fn changes(&self, model: &ModelName) -> u64 {
        let known = self.models().get(model).cloned();
        known.map_or(0, |model| model.lock().changes())
    }

    /// The parts of a model, and a number of each that is another one after each change.
    #[must_use]
    pub fn parts(&self, model: &ModelName) -> BTreeMap<Part, u64> {
        let known = self.models().get(model).cloned();
        known.map_or_else(BTreeMap::new, |model| model.lock().parts().clone())
    }

    /// The bytes that a model's rows take.
    #[must_use]
    pub fn bytes_of(&self, model: &ModelName) -> usize {
        let known = self.models().get(model).cloned();
        known.map_or(0, |model| model.held.load(std::sync::atomic::Ordering::Relaxed))
    }

    /// The most bytes of all models together.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.0.bytes
    }

    /// A part of a model as it is now, for another gateway. `halvings`: its requests are halved so many times more. `None` where it is empty, or
    /// too large: 256 rows with more than 2 MiB.
    #[must_use]
    pub fn part(&self, model: &ModelName, part: Part, halvings: u32) -> Option<Vec<u8>> {
        let known = self.models().get(model).cloned()?;
        let block = known.lock().block(part, halvings)?;
        block.write()
    }

    /// The rows of a model from `from` on, of all gateways of the fleet.
    #[must_use]
    pub fn whole(&self, model: &ModelName, from: i64) -> Whole {
        let others = self.0.others.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        let own = self.models().get(model).cloned();
        let Some((others, _)) = others else {
            return Whole { snapshot: self.snapshot(model, from), ..Whole::default() };
        };
        let given = others.of(model);
        let is_new = given.waits.is_none();
        let mut together = Together { missing: given.missing, waits: given.waits, is_new, ..Together::default() };
        let mut blocks = Vec::new();
        for gateway in given.gateways {
            // Parts were read and checked when they came. One that cannot be read leaves its gateway out as a whole.
            let read: Result<Vec<Block>, String> = gateway.parts.iter().map(|bytes| Block::read(bytes)).collect();
            let by_key = |read: &Vec<Block>| read.iter().any(|block| block.rows.iter().any(|row| row.3));
            match read {
                Ok(read) if gateway.key != given.key && by_key(&read) => {
                    let name = gateway.name;
                    together.waits = Some(format!(
                        "{name} hashes route keys with another key: give all gateways one (prediction_log.hash_key_file)"
                    ));
                    together.missing.push(name);
                }
                Ok(read) => {
                    blocks.extend(read);
                    together.gateways.push((gateway.name, gateway.as_of));
                    together.feedback += gateway.feedback;
                    together.left_out += gateway.left_out;
                    together.splits.extend(gateway.split);
                }
                Err(_) => together.missing.push(gateway.name),
            }
        }
        let mine = own.as_ref().map(|model| {
            let rows = model.lock();
            (rows.snapshot(from), rows.early_block())
        });
        let (snapshot, early) = mine.unwrap_or_default();
        let merged = Merged::of(&snapshot, &early, &blocks, from, self.0.bytes);
        Whole { snapshot: merged.0, fleet: Some(together), unmatched: merged.1 }
    }
}

/// Whether bytes of another gateway are a part.
///
/// # Errors
/// In words.
pub fn check(bytes: &[u8]) -> Result<(), String> {
    Block::read(bytes).map(drop)
}

impl Block {
    pub(super) fn new(early: Vec<(u64, Outcome)>, values: &[Box<str>]) -> Block {
        Block { form: FORM, early, values: values.to_vec(), ..Block::default() }
    }

    /// Of rows with these arms, texts and names of values.
    pub(super) fn of_rows<'r>(
        rows: impl Iterator<Item = &'r Row>,
        arms: impl Fn(u16) -> ArmOf,
        texts: &[Box<str>],
        values: &[Box<str>],
    ) -> Block {
        let mut block = Block::new(Vec::new(), values);
        let (mut arm_places, mut text_places) = (HashMap::new(), HashMap::new());
        for row in rows {
            let arm = *arm_places.entry(row.arm).or_insert_with(|| {
                let ArmOf { version, name, layout, halvings } = arms(row.arm);
                block.arms.push(BlockArm(
                    version,
                    (&*name).into(),
                    layout.outputs.clone(),
                    layout.cells.clone(),
                    halvings,
                ));
                u16::try_from(block.arms.len() - 1).unwrap_or(u16::MAX)
            });
            let cells = row.cells.iter().map(|packed| match packed.cell() {
                Cell::Text(number) => {
                    let at = *text_places.entry(number).or_insert_with(|| {
                        block.texts.push(texts.get(number as usize).map_or("", |text| text).into());
                        u32::try_from(block.texts.len() - 1).unwrap_or(u32::MAX)
                    });
                    Packed::of(Cell::Text(at)).bits()
                }
                _ => packed.bits(),
            });
            let cells = cells.collect();
            let Row { key, position, is_key, ts, unit, ref predicted, ref numbers, ref outcome, .. } = *row;
            let (predicted, numbers, outcome) = (predicted.clone(), numbers.clone(), outcome.clone());
            block.rows.push(BlockRow(key, position, arm, is_key, ts, unit, predicted, numbers, cells, outcome));
        }
        block
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.early.is_empty()
    }

    fn write(&self) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        ciborium::into_writer(self, &mut bytes).ok()?;
        if bytes.len() > MAX_PART {
            return None;
        }
        zstd::bulk::compress(&bytes, LEVEL).ok().filter(|bytes| bytes.len() <= MAX_PACKED)
    }

    fn read(bytes: &[u8]) -> Result<Block, String> {
        let plain =
            zstd::bulk::decompress(bytes, MAX_PART).map_err(|error| format!("it cannot be decompressed: {error}"))?;
        let block: Block =
            ciborium::from_reader(&plain[..]).map_err(|error| format!("it is not a part of rows: {error}"))?;
        if block.form != FORM {
            return Err(format!("it has the form {}, and this version of Sluicegate reads {FORM}", block.form));
        }
        if block.rows.len().max(block.early.len()) > Part::ROWS {
            return Err(format!("it has more than {} rows", Part::ROWS));
        }
        let arms = block.arms.len();
        if block.rows.iter().any(|row| usize::from(row.2) >= arms) {
            return Err("a row has an arm that is not there".to_owned());
        }
        // Places beyond the numbers of a row would be looked up.
        let fits = |row: &BlockRow| {
            let BlockArm(_, _, outputs, cells, _) = &block.arms[usize::from(row.2)];
            outputs.iter().all(|(_, at)| at.start <= at.end && at.end <= row.7.len()) && cells.len() == row.8.len()
        };
        if !block.rows.iter().all(fits) {
            return Err("a row has other columns than its arm".to_owned());
        }
        let names = block.values.len();
        let outcomes = block.rows.iter().filter_map(|row| row.9.as_deref()).chain(block.early.iter().map(|(_, of)| of));
        if outcomes.flat_map(Outcome::names).any(|name| usize::from(name) >= names) {
            return Err("a value has a name that is not there".to_owned());
        }
        Ok(block)
    }
}

/// Puts the rows of all gateways together.
struct Merged;

impl Merged {
    /// The rows, and how much feedback found none.
    fn of(own: &Snapshot, early: &Block, blocks: &[Block], from: i64, most: usize) -> (Snapshot, u64) {
        let waits = early.early.len() as u64;
        if blocks.is_empty() {
            return (own.clone(), waits);
        }
        let mut rows = ModelRows::default();
        // Arms are compared over one sample of requests, whatever gateway answered them.
        let mut halvings: HashMap<(Version, &str), u32> = HashMap::new();
        let of_own = own.arms.iter().map(|arm| (arm.version, &*arm.name, arm.halvings));
        let of_others = blocks.iter().flat_map(|block| &block.arms).map(|arm| (arm.0, &*arm.1, arm.4));
        for (version, name, of_arm) in of_own.chain(of_others) {
            let most = halvings.entry((version, name)).or_default();
            *most = (*most).max(of_arm);
        }
        let halvings_of = |version: Version, name: &str| halvings.get(&(version, name)).copied().unwrap_or(0);
        let own_block = Block::of_rows(own.rows(), |at| own.arms[usize::from(at)].clone(), &own.texts, &own.values);
        for block in std::iter::once(&own_block).chain(blocks) {
            let arms: Vec<(ArmOf, u32)> = block
                .arms
                .iter()
                .map(|BlockArm(version, name, outputs, cells, _)| {
                    let layout = Arc::new(Layout { outputs: outputs.clone(), cells: cells.clone() });
                    let most = halvings_of(*version, name);
                    (ArmOf { version: *version, name: (&**name).into(), layout, halvings: most }, most)
                })
                .collect();
            for BlockRow(key, position, arm, is_key, ts, unit, predicted, numbers, cells, outcome) in &block.rows {
                let (of, most) = &arms[usize::from(*arm)];
                if position.leading_zeros() < *most || *ts < from {
                    continue;
                }
                let cells = cells.iter().map(|bits| match Packed::from_bits(*bits).cell() {
                    Cell::Text(at) => rows.text(block.texts.get(at as usize).map_or("", |text| text)),
                    cell => cell,
                });
                let cells: Box<[Packed]> = cells.map(Packed::of).collect();
                let outcome = outcome.as_ref().map(|outcome| Box::new(rows.renamed(outcome, &block.values)));
                let row = Row {
                    key: *key,
                    position: *position,
                    arm: 0,
                    is_key: *is_key,
                    ts: *ts,
                    unit: *unit,
                    predicted: predicted.clone(),
                    numbers: numbers.clone(),
                    cells,
                    outcome,
                };
                rows.absorb(row, of);
            }
        }
        let mut unmatched = 0;
        for block in std::iter::once(early).chain(blocks) {
            for (key, outcome) in &block.early {
                let outcome = rows.renamed(outcome, &block.values);
                unmatched += u64::from(!rows.absorb_feedback(*key, &outcome));
            }
        }
        while rows.bytes() > most {
            let before = rows.bytes();
            rows.halve();
            if rows.bytes() >= before {
                break;
            }
        }
        (rows.snapshot(from), unmatched)
    }
}
