//! The rows of one model.

use super::cell::{self, Packed};
use super::exchange::{Block, Part};
use super::interner::Interner;
use super::outcome::Outcome;
use super::snapshot::{ArmOf, Snapshot};
use super::{Cell, Contents, Layout, Row, Value};
use crate::model::Feedback;
use crate::quality::label::Predicted;
use crate::quality::window::Seen;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64;

/// The rows of one model, by the day of their request.
#[derive(Debug, Default)]
pub(super) struct ModelRows {
    arms: Vec<Arm>,
    /// Chunks of at most [`CHUNK`] rows, which are copied when they change while somebody reads them.
    days: BTreeMap<i64, Vec<Arc<Vec<Row>>>>,
    /// The newest row of each key: its day, and its place there.
    index: HashMap<u64, (i64, u32)>,
    texts: Interner,
    values: Interner,
    /// Feedback whose row is not known, and the keys in the order of arrival.
    early: HashMap<u64, Early>,
    early_order: VecDeque<(i64, u64)>,
    row_bytes: usize,
    early_bytes: usize,
    /// The number of the next entry of `early`, and how long entries wait where their row may be another gateway's, in microseconds.
    next_early: u64,
    wait: Option<i64>,
    /// The parts for other gateways, and a number of each that is another one after each change.
    parts: BTreeMap<Part, u64>,
    changes: u64,
}

#[derive(Debug)]
struct Arm {
    of: ArmOf,
    rows: usize,
}

#[derive(Debug)]
struct Early {
    outcome: Outcome,
    arrived: i64,
    number: u64,
}

const CHUNK: usize = 256;
const _: () = assert!(CHUNK == Part::ROWS);
const DAY_US: i64 = 86_400_000_000;
/// Versions on arms. More than any history has; rows of others are not kept.
const MAX_ARMS: usize = 4096;
/// Texts of inputs, and names of business values.
const MAX_TEXTS: usize = 10_000;
const _: () = assert!(MAX_TEXTS <= cell::MAX_TEXTS);
const MAX_VALUE_NAMES: usize = 64;
/// Feedback that waits for its row.
const MAX_EARLY: usize = 4096;
/// The same where the row may be another gateway's.
const MAX_EARLY_SHARED: usize = 65_536;
/// And how long it waits where the row may not be another gateway's.
const EARLY_US: i64 = 3_600_000_000;
/// A row's place in the index, and what the allocator adds to its parts.
const INDEX_BYTES: usize = 64;

/// The key of a row, and the position of its request.
fn key(request_id: &str, row: u32) -> (u64, u32) {
    let request = xxh3_64(request_id.as_bytes());
    // Not the row as the seed: the hash of a short id depends only on the id xor the seed, so "r1" of row 0 and "r0" of row 1 may be one key.
    let key = request ^ u64::from(row).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (key, u32::try_from(request >> 32).unwrap_or(u32::MAX))
}

impl ModelRows {
    pub(super) fn is_empty(&self) -> bool {
        self.days.is_empty() && self.early.is_empty()
    }

    pub(super) fn bytes(&self) -> usize {
        self.row_bytes + self.early_bytes + self.texts.bytes + self.values.bytes
    }

    pub(super) fn insert(
        &mut self,
        seen: &Seen,
        layout: &Arc<Layout>,
        contents: impl FnOnce() -> (Predicted, Contents),
    ) {
        let (key, position) = key(seen.request_id, seen.row);
        let Some(arm) = self.arm(seen, layout) else { return };
        if position.leading_zeros() < self.arms[usize::from(arm)].of.halvings {
            return;
        }
        let newer = match self.row(key) {
            Some(known) if known.ts == seen.ts => return,
            Some(known) => known.ts < seen.ts,
            None => true,
        };
        let (predicted, contents) = contents();
        let unit = xxh3_64(seen.route_key.unwrap_or(seen.request_id).as_bytes());
        let cells = contents.cells.iter().map(|value| match value {
            Value::Missing => Cell::Missing,
            #[expect(clippy::cast_possible_truncation, reason = "groups need no more than the precision of f32")]
            Value::Number(number) => Cell::Number(*number as f32),
            Value::Text(text) => self.texts.number(text, MAX_TEXTS).map_or(Cell::Other, Cell::Text),
        });
        let mut row = Row {
            key,
            position,
            arm,
            is_key: seen.route_key.is_some(),
            ts: seen.ts,
            unit,
            predicted,
            numbers: contents.numbers,
            cells: cells.map(Packed::of).collect(),
            outcome: None,
        };
        if newer && let Some(early) = self.early.remove(&key) {
            self.early_bytes -= early.outcome.bytes();
            self.touch_early(early.number);
            row.outcome = Some(Box::new(early.outcome));
        }
        self.push(row, newer);
    }

    /// Merges an entry into its row, or keeps it until the row comes.
    pub(super) fn merge(&mut self, entry: &Feedback, received_at: i64) {
        let (key, position) = key(&entry.request_id, entry.row);
        let values = &mut self.values;
        let number = |name: &str| values.number(name, MAX_VALUE_NAMES).and_then(|number| u16::try_from(number).ok());
        if let Some((day, at)) = self.index.get(&key).copied()
            && let Some(row) = self.days.get_mut(&day).and_then(|chunks| row_mut(chunks, at))
        {
            let before = row.outcome.as_ref().map_or(0, |outcome| outcome.bytes());
            let outcome = row.outcome.get_or_insert_default();
            outcome.merge(entry, received_at, number);
            self.row_bytes = self.row_bytes + outcome.bytes() - before;
            self.touch(Part::Rows(day, u32::try_from(at as usize / CHUNK).unwrap_or(u32::MAX)));
            return;
        }
        // A request that no arm keeps. Other gateways may keep more.
        let fewest = self.arms.iter().map(|arm| arm.of.halvings).min().unwrap_or(0);
        if self.wait.is_none() && position.leading_zeros() < fewest {
            return;
        }
        let next = &mut self.next_early;
        let early = self.early.entry(key).or_insert_with(|| {
            self.early_order.push_back((received_at, key));
            *next += 1;
            Early { outcome: Outcome::default(), arrived: received_at, number: *next - 1 }
        });
        let before = if early.outcome == Outcome::default() { 0 } else { early.outcome.bytes() };
        early.outcome.merge(entry, received_at, number);
        self.early_bytes = self.early_bytes + early.outcome.bytes() - before;
        let number = early.number;
        self.touch_early(number);
        let most = if self.wait.is_some() { MAX_EARLY_SHARED } else { MAX_EARLY };
        while self.early_order.len() > most {
            self.drop_oldest_early();
        }
    }

    /// Drops rows before `limit`, and feedback that waited too long.
    pub(super) fn expire(&mut self, limit: i64, now: i64) {
        while self
            .early_order
            .front()
            .is_some_and(|(arrived, _)| now.saturating_sub(*arrived) > self.wait.unwrap_or(EARLY_US))
        {
            self.drop_oldest_early();
        }
        let last = limit.div_euclid(DAY_US);
        if self.days.first_key_value().is_some_and(|(day, _)| *day < last) {
            self.retain(|row, _| row.ts >= limit);
        }
    }

    /// Drops about half of what takes the most room.
    pub(super) fn halve(&mut self) {
        if self.early_bytes > self.row_bytes {
            for _ in 0..self.early_order.len().div_ceil(2) {
                self.drop_oldest_early();
            }
            return;
        }
        let Some(largest) = self.arms.iter_mut().max_by_key(|arm| arm.rows) else { return };
        if largest.rows <= 1 {
            // Texts alone: they go with the rows.
            *self = ModelRows { wait: self.wait, changes: self.changes + 1, ..ModelRows::default() };
            return;
        }
        largest.of.halvings += 1;
        self.retain(|row, arm| row.is_within(arm.halvings));
    }

    pub(super) fn snapshot(&self, from: i64) -> Snapshot {
        Snapshot {
            arms: self.arms.iter().map(|arm| arm.of.clone()).collect(),
            chunks: self.days.range(from.div_euclid(DAY_US)..).flat_map(|(_, chunks)| chunks).cloned().collect(),
            texts: self.texts.texts(),
            values: self.values.texts(),
            from,
        }
    }

    fn arm(&mut self, seen: &Seen, layout: &Arc<Layout>) -> Option<u16> {
        let is = |arm: &Arm| {
            arm.of.version == seen.version
                && *arm.of.name == *seen.arm
                && (Arc::ptr_eq(&arm.of.layout, layout) || arm.of.layout == *layout)
        };
        let at = match self.arms.iter().rposition(is) {
            Some(at) => at,
            None if self.arms.len() >= MAX_ARMS => return None,
            None => {
                let layout = Arc::clone(layout);
                let of = ArmOf { version: seen.version, name: seen.arm.into(), layout, halvings: 0 };
                self.arms.push(Arm { of, rows: 0 });
                self.arms.len() - 1
            }
        };
        u16::try_from(at).ok()
    }

    fn row(&self, key: u64) -> Option<&Row> {
        let (day, at) = self.index.get(&key)?;
        let at = *at as usize;
        self.days.get(day)?.get(at / CHUNK)?.get(at % CHUNK)
    }

    /// Appends a row. `newest`: feedback about its key is about it.
    fn push(&mut self, row: Row, newest: bool) {
        let day = row.ts.div_euclid(DAY_US);
        let chunks = self.days.entry(day).or_default();
        if chunks.last().is_none_or(|chunk| chunk.len() >= CHUNK) {
            chunks.push(Arc::new(Vec::with_capacity(CHUNK)));
        }
        let Some(last) = chunks.len().checked_sub(1) else { return };
        let chunk = Arc::make_mut(&mut chunks[last]);
        if newest {
            let at = u32::try_from(last * CHUNK + chunk.len()).unwrap_or(u32::MAX);
            self.index.insert(row.key, (day, at));
        }
        self.row_bytes += bytes(&row);
        self.arms[usize::from(row.arm)].rows += 1;
        chunk.push(row);
        self.touch(Part::Rows(day, u32::try_from(last).unwrap_or(u32::MAX)));
    }

    // === other gateways ===

    /// How long feedback waits for a row that may be another gateway's.
    pub(super) fn wait_for(&mut self, wait: Option<i64>) {
        self.wait = wait;
    }

    pub(super) fn changes(&self) -> u64 {
        self.changes
    }

    pub(super) fn parts(&self) -> &BTreeMap<Part, u64> {
        &self.parts
    }

    fn touch(&mut self, part: Part) {
        self.changes += 1;
        self.parts.insert(part, self.changes);
    }

    fn touch_early(&mut self, number: u64) {
        self.touch(Part::Early(number / CHUNK as u64));
    }

    /// A part, its requests halved so many times more. `None` where it is empty.
    pub(super) fn block(&self, part: Part, halvings: u32) -> Option<Block> {
        let values = self.values.texts();
        let block = match part {
            Part::Rows(day, at) => {
                let chunk = self.days.get(&day)?.get(at as usize)?;
                let of = |arm: u16| {
                    let of = &self.arms[usize::from(arm)].of;
                    ArmOf { halvings: of.halvings + halvings, ..of.clone() }
                };
                let kept = chunk.iter().filter(|row| row.is_within(of(row.arm).halvings));
                Block::of_rows(kept, of, &self.texts.texts(), &values)
            }
            Part::Early(at) => {
                let range = at * CHUNK as u64..(at + 1) * CHUNK as u64;
                Block::new(self.early_in(|number| range.contains(&number)), &values)
            }
        };
        (!block.is_empty()).then_some(block)
    }

    /// All feedback that waits.
    pub(super) fn early_block(&self) -> Block {
        Block::new(self.early_in(|_| true), &self.values.texts())
    }

    fn early_in(&self, is_in: impl Fn(u64) -> bool) -> Vec<(u64, Outcome)> {
        let of = self.early.iter().filter(|(_, early)| is_in(early.number));
        let mut early: Vec<_> = of.map(|(key, early)| (early.number, *key, early.outcome.clone())).collect();
        // The order of a map is another one each time, and the bytes of a part that did not change should be the same.
        early.sort_by_key(|(number, ..)| *number);
        early.into_iter().map(|(_, key, outcome)| (key, outcome)).collect()
    }

    /// Takes a row of some gateway, if it is not known. Its texts and names have the numbers of these rows.
    pub(super) fn absorb(&mut self, mut row: Row, of: &ArmOf) {
        let newest = match self.row(row.key) {
            Some(known) if known.ts == row.ts => return,
            Some(known) => known.ts < row.ts,
            None => true,
        };
        let is = |arm: &Arm| arm.of.version == of.version && arm.of.name == of.name && arm.of.layout == of.layout;
        let at = match self.arms.iter().rposition(is) {
            Some(at) => at,
            None if self.arms.len() >= MAX_ARMS => return,
            None => {
                self.arms.push(Arm { of: of.clone(), rows: 0 });
                self.arms.len() - 1
            }
        };
        row.arm = u16::try_from(at).unwrap_or(u16::MAX);
        self.push(row, newest);
    }

    /// Merges feedback into its row. Returns whether there is one.
    pub(super) fn absorb_feedback(&mut self, key: u64, outcome: &Outcome) -> bool {
        let Some((day, at)) = self.index.get(&key).copied() else { return false };
        let Some(row) = self.days.get_mut(&day).and_then(|chunks| row_mut(chunks, at)) else { return false };
        let before = row.outcome.as_ref().map_or(0, |outcome| outcome.bytes());
        let known = row.outcome.get_or_insert_default();
        known.add(outcome);
        self.row_bytes = self.row_bytes + known.bytes() - before;
        true
    }

    /// A text of an input, by its number here.
    pub(super) fn text(&mut self, text: &str) -> Cell {
        self.texts.number(text, MAX_TEXTS).map_or(Cell::Other, Cell::Text)
    }

    /// An outcome with the numbers that its names have here.
    pub(super) fn renamed(&mut self, outcome: &Outcome, names: &[Box<str>]) -> Outcome {
        let values = &mut self.values;
        outcome.renamed(|name| {
            let number = values.number(names.get(usize::from(name))?, MAX_VALUE_NAMES)?;
            u16::try_from(number).ok()
        })
    }

    /// Keeps the rows that `keep` accepts, and forgets arms and texts that no row has any more.
    fn retain(&mut self, keep: impl Fn(&Row, &ArmOf) -> bool) {
        let days = std::mem::take(&mut self.days);
        let arms = std::mem::take(&mut self.arms);
        let texts = std::mem::take(&mut self.texts).texts();
        (self.index, self.row_bytes) = (HashMap::new(), 0);
        self.parts.retain(|part, _| matches!(part, Part::Early(_)));
        self.changes += 1;
        let mut places: Vec<Option<u16>> = vec![None; arms.len()];
        for chunk in days.into_values().flatten() {
            for mut row in Arc::unwrap_or_clone(chunk) {
                let at = usize::from(row.arm);
                if !keep(&row, &arms[at].of) {
                    continue;
                }
                row.arm = *places[at].get_or_insert_with(|| {
                    self.arms.push(Arm { of: arms[at].of.clone(), rows: 0 });
                    u16::try_from(self.arms.len() - 1).expect("there are no more arms than before")
                });
                for cell in &mut row.cells {
                    if let Cell::Text(number) = cell.cell() {
                        let text = texts.get(number as usize).map_or("", |text| text);
                        *cell = Packed::of(self.texts.number(text, MAX_TEXTS).map_or(Cell::Other, Cell::Text));
                    }
                }
                let newest = self.row(row.key).is_none_or(|known| known.ts < row.ts);
                self.push(row, newest);
            }
        }
        // An arm without rows keeps its share, or it would fill again at once.
        for (at, arm) in arms.into_iter().enumerate() {
            if places[at].is_none() && arm.of.halvings > 0 && self.arms.len() < MAX_ARMS / 2 {
                self.arms.push(Arm { of: arm.of, rows: 0 });
            }
        }
    }

    fn drop_oldest_early(&mut self) {
        let Some((arrived, key)) = self.early_order.pop_front() else { return };
        if self.early.get(&key).is_some_and(|early| early.arrived == arrived)
            && let Some(early) = self.early.remove(&key)
        {
            self.early_bytes -= early.outcome.bytes();
            self.touch_early(early.number);
            // Parts that are over.
            let first = self.early_order.front().and_then(|(_, key)| self.early.get(key)).map(|early| early.number);
            let first = first.unwrap_or(self.next_early) / CHUNK as u64;
            while let Some((Part::Early(at), _)) = self.parts.range(Part::Early(0)..).next()
                && *at < first
            {
                let at = *at;
                self.parts.remove(&Part::Early(at));
                self.changes += 1;
            }
        }
    }
}

fn row_mut(chunks: &mut [Arc<Vec<Row>>], at: u32) -> Option<&mut Row> {
    let at = at as usize;
    Arc::make_mut(chunks.get_mut(at / CHUNK)?).get_mut(at % CHUNK)
}

fn bytes(row: &Row) -> usize {
    let outcome = row.outcome.as_ref().map_or(0, |outcome| outcome.bytes());
    let parts = row.numbers.len() * size_of::<f64>() + row.cells.len() * size_of::<Packed>();
    size_of::<Row>() + INDEX_BYTES + parts + row.predicted.text_bytes() + outcome
}
