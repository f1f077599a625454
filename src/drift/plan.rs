//! What is counted of a version: its columns, their bins and the reference.

use super::settings::Settings;
use crate::columns::{Cell, Column, ElementNames, Kind, Side, all};
use crate::model::Signature;
use crate::profile::{Bins, ColumnProfile, Profile};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use xxhash_rust::xxh3::xxh3_64;

/// The most columns of a version that are watched.
pub const MAX_COLUMNS: usize = 500;

/// Where the reference of a version comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reference {
    /// `profile.json` of the version.
    Profile,
    /// The rows of the version's own first day.
    FirstDay,
}

/// What is counted of a version. Immutable.
#[derive(Debug)]
pub(super) struct Plan {
    pub reference: Reference,
    pub columns: Vec<Watched>,
    /// The columns alone, in the order of the signature.
    pub cells: Vec<Column>,
    /// Counters of one window: those of all columns, one after the other.
    pub counters: usize,
    /// Rows of the reference, and their time.
    pub rows: u64,
    pub from: Option<jiff::Timestamp>,
    pub to: Option<jiff::Timestamp>,
    /// False alarms per year that are accepted of the model.
    pub false_alarms_per_year: f64,
    /// Remarks for operators.
    pub notes: Vec<String>,
    /// Identifies the bins: saved counts of other bins cannot be used.
    pub digest: u64,
}

/// A column that is watched.
#[derive(Debug)]
pub(super) struct Watched {
    pub column: Column,
    /// Its first counter, and how many it has: its bins, then (numbers only) the non-finite values, then the missing ones.
    pub start: usize,
    pub width: usize,
    pub bins: Binning,
    /// The counts of the reference, one for each counter.
    pub reference: Vec<f64>,
    pub mean: Option<f64>,
    pub deviation: Option<f64>,
    /// The least distance that matters.
    pub floor: f64,
}

#[derive(Debug)]
pub(super) enum Binning {
    /// Ordered bins: one more than edges.
    Edges(Vec<f64>),
    /// One bin for each value, and one for any other. Sorted by key.
    Values { keys: Vec<(u64, usize)>, names: Vec<String> },
}

impl Plan {
    /// A plan from a profile. Columns in `hidden` (`inputs.NAME`) are not recorded as they are, and not watched.
    pub fn new(
        reference: Reference,
        profile: &Profile,
        signature: &Signature,
        names: &ElementNames,
        hidden: &BTreeSet<String>,
        settings: &Settings,
    ) -> Plan {
        let bound = profile.bind(signature, names);
        let mut notes = bound.complaints;
        let shown = notes.len().min(5);
        let more = notes.len() - shown;
        notes.truncate(shown);
        if more > 0 {
            notes.push(format!("and {more} more columns of the profile that cannot be used"));
        }
        let (mut columns, mut counters, mut left_out, mut hidden_columns) = (Vec::new(), 0, 0, 0);
        for (column, of) in bound.columns {
            if hidden.contains(&column.tensor_column(signature)) {
                hidden_columns += 1;
            } else if columns.len() == MAX_COLUMNS {
                left_out += 1;
            } else {
                let watched = Watched::new(column, &of, counters, settings);
                counters += watched.width;
                columns.push(watched);
            }
        }
        if hidden_columns > 0 {
            notes.push(format!("{hidden_columns} columns are dropped, hashed or masked in the log, and not watched"));
        }
        if left_out > 0 {
            notes.push(format!("{left_out} columns are beyond the {MAX_COLUMNS} that are watched"));
        }
        notes.extend(settings.complaints(signature, names));
        let mut text = String::new();
        for watched in &columns {
            // Writing to a String cannot fail.
            let _ = write!(text, "{} {:?} {:?};", watched.column.name, watched.bins, watched.reference);
        }
        Plan {
            reference,
            cells: columns.iter().map(|watched| watched.column.clone()).collect(),
            columns,
            counters,
            rows: profile.rows,
            from: profile.from,
            to: profile.to,
            false_alarms_per_year: settings.false_alarms_per_year,
            notes,
            digest: xxh3_64(text.as_bytes()),
        }
    }

    /// Bytes of memory that one arm needs.
    pub fn bytes_of_arm(&self) -> usize {
        // Five open windows, 24 hours of history, and what the four windows that ended and an alarm showed, with the reference of an hour: four bytes
        // each, eight of those. And about 600 bytes for the results of a column.
        self.counters * 4 * (5 + 24 + 9) + self.columns.len() * 600
    }
}

/// The columns that the first day of a version without a profile is taken of.
pub(super) fn first_day_columns(signature: &Signature, names: &ElementNames, hidden: &BTreeSet<String>) -> Vec<Column> {
    let (columns, _) = all(signature, names, MAX_COLUMNS);
    columns.into_iter().filter(|column| !hidden.contains(&column.tensor_column(signature))).collect()
}

impl Watched {
    fn new(column: Column, of: &ColumnProfile, start: usize, settings: &Settings) -> Watched {
        let float = |n: u64| n as f64;
        let (bins, mut reference) = match &of.bins {
            Bins::Numeric { edges, counts } => {
                let counts: Vec<f64> = counts.iter().copied().map(float).chain([float(of.nonfinite)]).collect();
                (Binning::Edges(edges.clone()), counts)
            }
            Bins::Categorical { values, rest } => {
                let mut keys: Vec<(u64, usize)> =
                    values.iter().enumerate().map(|(i, (text, _))| (key_of_text(column.kind, text), i)).collect();
                keys.sort_unstable();
                let names = values.iter().map(|(text, _)| text.clone()).collect();
                let other = float(*rest) + float(of.nonfinite);
                let counts = values.iter().map(|(_, n)| float(*n)).chain([other]).collect();
                (Binning::Values { keys, names }, counts)
            }
        };
        reference.push(float(of.missing));
        let floor = settings.floor_of(&column);
        Watched {
            width: reference.len(),
            start,
            bins,
            reference,
            mean: of.mean,
            deviation: of.variance.map(f64::sqrt).filter(|deviation| *deviation > 0.0),
            floor,
            column,
        }
    }

    /// The counter of a value, relative to the first. `None` for a column that is hidden in this record.
    pub fn counter(&self, cell: Cell) -> Option<usize> {
        let missing = self.width - 1;
        match (&self.bins, cell) {
            (_, Cell::Hidden) => None,
            (_, Cell::Missing) => Some(missing),
            (Binning::Edges(edges), Cell::Number(number)) => Some(match number {
                number if number.is_nan() => missing,
                number if number.is_infinite() => missing - 1,
                number => edges.partition_point(|edge| *edge <= number),
            }),
            (Binning::Edges(_), _) => Some(missing - 1),
            (Binning::Values { keys, .. }, cell) => {
                let Some(key) = key_of(cell) else { return Some(missing) };
                let known = keys.binary_search_by_key(&key, |(key, _)| *key);
                Some(known.map_or(missing - 1, |at| keys[at].1))
            }
        }
    }

    /// How many of its first counters are ordered bins.
    pub fn ordered(&self) -> usize {
        match &self.bins {
            Binning::Edges(edges) => edges.len() + 1,
            Binning::Values { .. } => 0,
        }
    }

    /// What a counter holds, for people.
    pub fn counter_name(&self, counter: usize) -> String {
        match (&self.bins, self.width - 1 - counter) {
            (_, 0) => "missing".to_owned(),
            (Binning::Edges(_), 1) => "not finite".to_owned(),
            (Binning::Values { .. }, 1) => "a value that the reference does not list".to_owned(),
            (Binning::Values { names, .. }, _) => format!("the value {}", crate::model::quoted(&names[counter])),
            (Binning::Edges(edges), _) => match (counter.checked_sub(1).map(|at| edges[at]), edges.get(counter)) {
                (None, Some(below)) => format!("below {below}"),
                (Some(from), Some(below)) => format!("from {from} to {below}"),
                (Some(from), None) => format!("from {from} on"),
                (None, None) => "any number".to_owned(),
            },
        }
    }

    pub fn is_output(&self) -> bool {
        self.column.side == Side::Outputs
    }
}

fn key_of_text(kind: Kind, text: &str) -> u64 {
    match kind {
        Kind::Text => xxh3_64(text.as_bytes()),
        Kind::Bool => u64::from(text == "true"),
        // A bound profile has numbers here.
        Kind::Integer | Kind::Float => text.parse::<f64>().map_or(u64::MAX, number_key),
    }
}

/// Identifies a value. `None` where there is none, or NaN.
pub(super) fn key_of(cell: Cell) -> Option<u64> {
    match cell {
        Cell::Missing | Cell::Hidden => None,
        Cell::Number(number) => (!number.is_nan()).then(|| number_key(number)),
        Cell::Bool(bool) => Some(u64::from(bool)),
        Cell::Text(text) => Some(xxh3_64(text)),
    }
}

/// 0 and -0 are one value.
fn number_key(number: f64) -> u64 {
    (number + 0.0).to_bits()
}
