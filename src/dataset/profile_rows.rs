//! The columns of tables, one builder for each.

use super::profile_sample::Drawn;
use crate::columns::{Cell, ElementNames, Kind, Side, resolve};
use crate::model::Signature;
use crate::profile::{Builder, ColumnProfile, Profile, Sample};
use arrow_array::cast::AsArray;
use arrow_array::types::{
    Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, TimestampMicrosecondType,
    UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::DataType;
use std::collections::{BTreeMap, BTreeSet};

/// Columns with their builders.
#[derive(Debug)]
pub(super) struct Rows<'v> {
    version: Option<&'v (Signature, ElementNames)>,
    /// By the name of the tensor or column; one builder for each element.
    columns: BTreeMap<String, Elements>,
    hidden: BTreeSet<String>,
    seen: u64,
    /// Elements beyond the most that a profile has.
    left_out: u64,
    /// Columns of types that have no profile.
    unreadable: BTreeSet<String>,
    first: Option<i64>,
    last: Option<i64>,
    drawn: Drawn,
}

#[derive(Debug, Default)]
struct Elements {
    builders: Vec<Builder>,
    /// It came as lists.
    is_list: bool,
}

/// Numbers that are kept of a column: of the first columns more, so that all together stay below 120 MB.
const KEPT: usize = 20_000;
const MANY_COLUMNS: usize = 400;
const KEPT_OF_MANY: usize = 4000;

impl<'v> Rows<'v> {
    /// `sample`: how many whole rows are kept.
    pub(super) fn new(version: Option<&'v (Signature, ElementNames)>, sample: usize) -> Rows<'v> {
        Rows {
            version,
            columns: BTreeMap::new(),
            hidden: BTreeSet::new(),
            seen: 0,
            left_out: 0,
            unreadable: BTreeSet::new(),
            first: None,
            last: None,
            drawn: Drawn::new(sample),
        }
    }

    /// Tensors that are not recorded as they are (`inputs.NAME`), and have no profile.
    pub(super) fn hide(&mut self, tensors: impl Iterator<Item = String>) {
        self.hidden.extend(tensors);
    }

    /// The time of the first and of the last row, microseconds since 1970.
    pub(super) fn times(&self) -> (Option<i64>, Option<i64>) {
        (self.first, self.last)
    }

    /// Adds rows. Where there are columns `inputs` or `outputs`, as in the log and its exports, the others are not of the model.
    pub(super) fn add(&mut self, batch: &RecordBatch) {
        self.seen += batch.num_rows() as u64;
        self.drawn.begin(batch.num_rows());
        let sides = Side::ALL.map(|side| batch.column_by_name(side.as_str()).and_then(|column| column.as_struct_opt()));
        if sides.iter().any(Option::is_some) {
            if let Some(ts) = batch.column_by_name("ts").and_then(|c| c.as_primitive_opt::<TimestampMicrosecondType>())
            {
                for ts in ts.iter().flatten() {
                    self.first = Some(self.first.map_or(ts, |first| first.min(ts)));
                    self.last = Some(self.last.map_or(ts, |last| last.max(ts)));
                }
            }
            for (side, tensors) in Side::ALL.iter().zip(sides) {
                let Some(tensors) = tensors else { continue };
                for (field, column) in tensors.fields().iter().zip(tensors.columns()) {
                    let name = format!("{}.{}", side.as_str(), field.name());
                    if !self.hidden.contains(&name) {
                        self.add_column(&name, column, &|row| tensors.is_valid(row));
                    }
                }
            }
            return;
        }
        let schema = batch.schema();
        for (field, column) in schema.fields().iter().zip(batch.columns()) {
            self.add_column(field.name(), column, &|_| true);
        }
    }

    fn add_column(&mut self, name: &str, column: &ArrayRef, is_there: &dyn Fn(usize) -> bool) {
        if let Some(lists) = column.as_list_opt::<i32>() {
            for row in 0..lists.len() {
                let valid = is_there(row) && lists.is_valid(row);
                let offsets = lists.value_offsets();
                let (start, end) = if valid { (offsets[row], offsets[row + 1]) } else { (0, 0) };
                let (start, end) = (usize::try_from(start).unwrap_or(0), usize::try_from(end).unwrap_or(0));
                self.add_list(name, row, (start..end).map(|at| cell(lists.values(), at)));
            }
            return;
        }
        // pandas stores categories as dictionaries.
        let dictionary = column.as_any_dictionary_opt();
        let keys = dictionary.map(arrow_array::AnyDictionaryArray::normalized_keys);
        for row in 0..column.len() {
            let found = match (&keys, dictionary) {
                _ if column.is_null(row) || !is_there(row) => Some(Cell::Missing),
                (Some(keys), Some(dictionary)) => cell(dictionary.values(), keys[row]),
                _ => cell(column, row),
            };
            let Some(cell) = found else {
                self.unreadable.insert(name.to_owned());
                return;
            };
            self.add_cell(name, row, cell);
        }
    }

    /// Adds the value of a column in the next row, which is this one of those that were begun.
    pub(super) fn add_cell(&mut self, name: &str, row: usize, cell: Cell) {
        self.drawn.take(name, None, row, cell);
        let room = self.room();
        let elements = elements(&mut self.columns, name);
        if elements.builders.is_empty() {
            if room == 0 {
                self.left_out += 1;
                return;
            }
            elements.builders.push(Builder::new(kept(Profile::MAX_COLUMNS - room)));
        }
        elements.builders[0].add(cell);
    }

    /// Adds the elements of a tensor in the next row, which is this one of those that were begun.
    pub(super) fn add_list<'c>(&mut self, name: &str, row: usize, cells: impl Iterator<Item = Option<Cell<'c>>>) {
        let mut room = self.room();
        let elements = elements(&mut self.columns, name);
        elements.is_list = true;
        let (mut used, mut left_out) = (0, 0);
        for (at, cell) in cells.enumerate() {
            self.drawn.take(name, Some(at), row, cell.unwrap_or(Cell::Missing));
            if used == elements.builders.len() {
                if room == 0 {
                    left_out += 1;
                    continue;
                }
                elements.builders.push(Builder::new(kept(Profile::MAX_COLUMNS - room)));
                room -= 1;
            }
            elements.builders[used].add(cell.unwrap_or(Cell::Missing));
            used += 1;
        }
        elements.builders[used..].iter_mut().for_each(|builder| builder.add(Cell::Missing));
        self.left_out += left_out;
    }

    /// Begins a row whose cells are added one by one, as row 0.
    pub(super) fn begin_row(&mut self) {
        self.seen += 1;
        self.drawn.begin(1);
    }

    /// Whether a column of the version has texts, so that its numbers are texts too. `None` where that is not known.
    pub(super) fn kind(&self, name: &str) -> Option<Kind> {
        let (signature, names) = self.version?;
        resolve(signature, names, name).ok().map(|column| column.kind)
    }

    fn room(&self) -> usize {
        let columns: usize = self.columns.values().map(|elements| elements.builders.len()).sum();
        Profile::MAX_COLUMNS.saturating_sub(columns)
    }

    /// The number of rows, the profiles, whole rows, and remarks.
    pub(super) fn finish(self) -> (u64, BTreeMap<String, ColumnProfile>, Option<Sample>, Vec<String>) {
        let mut profiles = BTreeMap::new();
        for (name, elements) in &self.columns {
            let alone = elements.builders.len() == 1;
            for (at, builder) in elements.builders.iter().enumerate() {
                let name = if alone || !elements.is_list { name.clone() } else { format!("{name}[{at}]") };
                if name.len() <= Profile::MAX_TEXT {
                    let profile = builder.finish(self.kind(&name));
                    profiles.insert(name, profile);
                }
            }
        }
        let mut notes = Vec::new();
        if self.left_out > 0 {
            notes.push(format!("values beyond {} columns were left out", Profile::MAX_COLUMNS));
        }
        if !self.unreadable.is_empty() {
            let names: Vec<&str> = self.unreadable.iter().map(String::as_str).collect();
            notes.push(format!("left out, as they are neither numbers nor texts nor booleans: {}", names.join(", ")));
        }
        if !self.hidden.is_empty() {
            let names: Vec<&str> = self.hidden.iter().map(String::as_str).collect();
            notes.push(format!("left out, as they are not logged as they are: {}", names.join(", ")));
        }
        let sample = self.drawn.finish().and_then(|sample| match (self.version, sample) {
            (Some((signature, names)), Some(sample)) => of_version(&sample, signature, names).map(Some),
            (_, sample) => Ok(sample),
        });
        let sample = sample.unwrap_or_else(|why| {
            notes.push(why);
            None
        });
        (self.seen, profiles, sample, notes)
    }
}

/// The rows with the columns of a version's inputs alone.
fn of_version(sample: &Sample, signature: &Signature, names: &ElementNames) -> Result<Sample, String> {
    let is_input = |name: &String| resolve(signature, names, name).is_ok_and(|column| column.side == Side::Inputs);
    let kept: Vec<usize> = (0..sample.columns.len()).filter(|at| is_input(&sample.columns[*at])).collect();
    let rows = sample.rows.iter().map(|row| kept.iter().map(|at| row[*at].clone()).collect());
    let columns = kept.iter().map(|at| sample.columns[*at].clone());
    let sample = Sample { columns: columns.collect(), rows: rows.collect() };
    let fits = sample.request(signature, names);
    fits.map(|_| sample).map_err(|why| format!("no whole rows are kept for explanations: {why}"))
}

fn elements<'c>(columns: &'c mut BTreeMap<String, Elements>, name: &str) -> &'c mut Elements {
    if !columns.contains_key(name) {
        columns.insert(name.to_owned(), Elements::default());
    }
    columns.get_mut(name).expect("it was inserted if it was not there")
}

fn kept(columns: usize) -> usize {
    if columns < MANY_COLUMNS { KEPT } else { KEPT_OF_MANY }
}

/// A value of an array. `None` where its type has no profile.
fn cell(array: &ArrayRef, at: usize) -> Option<Cell<'_>> {
    if array.is_null(at) {
        return Some(Cell::Missing);
    }
    macro_rules! number {
        ($t:ty) => {
            Cell::Number(f64::from(array.as_primitive::<$t>().value(at)))
        };
        (wide $t:ty) => {
            Cell::Number(array.as_primitive::<$t>().value(at) as f64)
        };
    }
    Some(match array.data_type() {
        DataType::Boolean => Cell::Bool(array.as_boolean().value(at)),
        DataType::Int8 => number!(Int8Type),
        DataType::Int16 => number!(Int16Type),
        DataType::Int32 => number!(Int32Type),
        DataType::Int64 => number!(wide Int64Type),
        DataType::UInt8 => number!(UInt8Type),
        DataType::UInt16 => number!(UInt16Type),
        DataType::UInt32 => number!(UInt32Type),
        DataType::UInt64 => number!(wide UInt64Type),
        DataType::Float16 => number!(Float16Type),
        DataType::Float32 => number!(Float32Type),
        DataType::Float64 => number!(Float64Type),
        DataType::Utf8 => Cell::Text(array.as_string::<i32>().value(at).as_bytes()),
        DataType::LargeUtf8 => Cell::Text(array.as_string::<i64>().value(at).as_bytes()),
        DataType::Binary => Cell::Text(array.as_binary::<i32>().value(at)),
        DataType::Null => Cell::Missing,
        _ => return None,
    })
}
