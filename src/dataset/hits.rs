//! What a search lists: one entry for each request, from its records. Only the newest are kept.

use super::columns::{bools, column, doubles, int64s, texts, times};
use super::error::Error;
use super::filter::Filter;
use super::sources::{Source, select};
use super::units::{Missing, Units};
use crate::model::Version;
use crate::record::{About, Side};
use arrow_array::cast::AsArray;
use arrow_array::types::{Float16Type, Float32Type, Float64Type};
use arrow_array::{
    Array, BooleanArray, Float64Array, Int32Array, Int64Array, ListArray, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};
use std::cmp::Ordering;

/// A request of the log, without its tensors.
#[derive(Debug, Clone, PartialEq)]
pub struct Hit {
    pub request_id: String,
    /// Microseconds since 1970.
    pub ts: i64,
    pub version: Version,
    /// The SHA-256 of the model file that answered.
    pub sha256: String,
    pub arm: String,
    pub role: String,
    /// As it is stored: hashed, or as the caller sent it.
    pub route_key: Option<String>,
    pub status: String,
    pub latency_us: i64,
    pub infer_us: i64,
    /// Its records: one per row, or one for the whole request.
    pub rows: usize,
    pub batch_rows: i32,
    pub traceparent: Option<String>,
    pub sample_rate: f64,
    pub truncated: bool,
    /// How it differs from the primary's answer, where that was looked for.
    pub difference: Option<String>,
}

/// The columns of these members.
pub(super) const COLUMNS: [&str; 13] = [
    "request_id",
    "row",
    "ts",
    "arm",
    "role",
    "route_key",
    "status",
    "latency_us",
    "infer_us",
    "batch_rows",
    "traceparent",
    "sample_rate",
    "truncated",
];

/// Typed access to these columns of a batch.
#[derive(Debug)]
pub(super) struct Heads<'b> {
    pub(super) request_id: &'b StringArray,
    pub(super) row: &'b Int32Array,
    pub(super) ts: &'b TimestampMicrosecondArray,
    arm: &'b StringArray,
    role: &'b StringArray,
    route_key: &'b StringArray,
    status: &'b StringArray,
    latency_us: &'b Int64Array,
    infer_us: &'b Int64Array,
    batch_rows: &'b Int32Array,
    traceparent: &'b StringArray,
    sample_rate: &'b Float64Array,
    truncated: &'b BooleanArray,
}

impl<'b> Heads<'b> {
    /// # Errors
    /// When a column is missing or of another type.
    pub(super) fn of(batch: &'b RecordBatch) -> Result<Heads<'b>, Error> {
        Ok(Heads {
            request_id: texts(batch, "request_id")?,
            row: column(batch, "row", "int32")?,
            ts: times(batch, "ts")?,
            arm: texts(batch, "arm")?,
            role: texts(batch, "role")?,
            route_key: texts(batch, "route_key")?,
            status: texts(batch, "status")?,
            latency_us: int64s(batch, "latency_us")?,
            infer_us: int64s(batch, "infer_us")?,
            batch_rows: column(batch, "batch_rows", "int32")?,
            traceparent: texts(batch, "traceparent")?,
            sample_rate: doubles(batch, "sample_rate")?,
            truncated: bools(batch, "truncated")?,
        })
    }

    /// The entry of the request whose first record is `i`.
    pub(super) fn begin(&self, about: &About, i: usize) -> Hit {
        let optional = |texts: &StringArray| texts.is_valid(i).then(|| texts.value(i).to_owned());
        Hit {
            request_id: self.request_id.value(i).to_owned(),
            ts: self.ts.value(i),
            version: about.version,
            sha256: about.sha256.clone(),
            arm: self.arm.value(i).to_owned(),
            role: self.role.value(i).to_owned(),
            route_key: optional(self.route_key),
            status: self.status.value(i).to_owned(),
            latency_us: self.latency_us.value(i),
            infer_us: self.infer_us.value(i),
            rows: 1,
            batch_rows: self.batch_rows.value(i),
            traceparent: optional(self.traceparent),
            sample_rate: self.sample_rate.value(i),
            truncated: self.truncated.value(i),
            difference: None,
        }
    }

    /// Whether record `i` is a further row of this request. Its rows follow one another.
    pub(super) fn continues(&self, hit: &Hit, i: usize) -> bool {
        self.row.value(i) > 0 && self.ts.value(i) == hit.ts && self.request_id.value(i) == hit.request_id
    }
}

/// The newest entries of a unit, at most a given number.
#[derive(Debug)]
pub(super) struct Newest {
    keep: usize,
    /// Only entries from this time back.
    latest: i64,
    /// Entries before this time are not among the newest.
    earliest: i64,
    hits: Vec<Hit>,
}

impl Newest {
    pub(super) fn new(keep: usize, latest: i64) -> Newest {
        Newest { keep: keep.max(1), latest, earliest: i64::MIN, hits: Vec::new() }
    }

    /// Whether an entry of this time can be among them.
    pub(super) fn wants(&self, ts: i64) -> bool {
        (self.earliest..=self.latest).contains(&ts)
    }

    fn push(&mut self, hit: Hit) {
        self.hits.push(hit);
        if self.hits.len() >= 2 * self.keep + 64 {
            self.trim();
        }
    }

    fn trim(&mut self) {
        self.hits.sort_unstable_by(order);
        self.hits.truncate(self.keep);
        if self.hits.len() == self.keep {
            self.earliest = self.hits.last().map_or(i64::MIN, |hit| hit.ts);
        }
    }

    /// The newest first.
    pub(super) fn finish(mut self) -> Vec<Hit> {
        self.trim();
        self.hits
    }
}

/// The newest first. Requests of one time have an order too, so that a page begins where the page before it ended.
fn order(a: &Hit, b: &Hit) -> Ordering {
    b.ts.cmp(&a.ts)
        .then_with(|| a.request_id.cmp(&b.request_id))
        .then_with(|| a.role.cmp(&b.role))
        .then_with(|| a.version.cmp(&b.version))
}

/// Whether a request of a version, given by its id and time, is wanted.
pub(super) type Wanted<'w> = &'w dyn Fn(Version, &str, i64) -> bool;

/// Adds the matching requests of these sources. Returns how many records were read. `non_finite`: only requests with an output of NaN or infinity. A file
/// that turns out to be damaged is noted in `missing`; what was read of it stays.
///
/// # Errors
/// When records in memory cannot be read.
pub(super) fn collect(
    units: &Units,
    sources: &[Source],
    filter: &Filter,
    non_finite: bool,
    wanted: Wanted,
    newest: &mut Newest,
    missing: &mut Missing,
) -> Result<u64, Error> {
    let mut read = 0;
    for source in sources {
        if let Err(error) = collect_from(source, filter, non_finite, wanted, newest, &mut read) {
            units.without(&source.stored, error, missing)?;
        }
    }
    Ok(read)
}

fn collect_from(
    source: &Source,
    filter: &Filter,
    non_finite: bool,
    wanted: Wanted,
    newest: &mut Newest,
    read: &mut u64,
) -> Result<(), Error> {
    let outputs = non_finite.then_some(Side::Outputs.as_str());
    let columns: Vec<&str> = COLUMNS.into_iter().chain(outputs).collect();
    let parts: Vec<usize> = (0..source.stored.parts.len()).collect();
    // A request, and whether it has such an output.
    let mut current: Option<(Hit, bool)> = None;
    let is_wanted = |(hit, has): (Hit, bool)| (has || !non_finite).then_some(hit);
    for batch in source.stored.read(&parts, Some(&columns))? {
        let batch = batch?;
        *read += batch.num_rows() as u64;
        let batch = select(&batch, filter)?;
        let heads = Heads::of(&batch)?;
        let floats = if non_finite { float_outputs(&batch) } else { Vec::new() };
        for i in 0..batch.num_rows() {
            let has = || floats.iter().any(|list| has_non_finite(list, i));
            if let Some((hit, known)) = current.as_mut().filter(|(hit, _)| heads.continues(hit, i)) {
                hit.rows += 1;
                *known |= has();
                continue;
            }
            current.take().and_then(is_wanted).into_iter().for_each(|hit| newest.push(hit));
            let (id, ts) = (heads.request_id.value(i), heads.ts.value(i));
            if newest.wants(ts) && wanted(source.about.version, id, ts) {
                current = Some((heads.begin(&source.about, i), has()));
            }
        }
    }
    current.and_then(is_wanted).into_iter().for_each(|hit| newest.push(hit));
    Ok(())
}

/// The outputs of floating-point numbers.
fn float_outputs(batch: &RecordBatch) -> Vec<ListArray> {
    let outputs = batch.column_by_name(Side::Outputs.as_str()).and_then(|column| column.as_struct_opt());
    let columns = outputs.into_iter().flat_map(|outputs| outputs.columns().iter());
    columns
        .filter_map(|column| column.as_list_opt::<i32>())
        .filter(|list| list.value_type().is_floating())
        .cloned()
        .collect()
}

/// Whether row `i` has NaN or an infinity.
fn has_non_finite(list: &ListArray, i: usize) -> bool {
    if !list.is_valid(i) {
        return false;
    }
    let values = list.value(i);
    if let Some(numbers) = values.as_primitive_opt::<Float32Type>() {
        return numbers.values().iter().any(|n| !n.is_finite());
    }
    if let Some(numbers) = values.as_primitive_opt::<Float64Type>() {
        return numbers.values().iter().any(|n| !n.is_finite());
    }
    values.as_primitive_opt::<Float16Type>().is_some_and(|numbers| numbers.values().iter().any(|n| !n.is_finite()))
}
