//! Predictions joined with their latest feedback, as one file.

use super::cases::{self, Kind};
use super::csv::Csv;
use super::error::Error;
use super::labels::Labels;
use super::pick::Pick;
use super::source::{self, Sources};
use super::table::Table;
use super::unfinished::Unfinished;
use super::union::Union;
use super::walk::{Budget, Progress, Step, Way, walk};
use crate::model::{ModelName, Version};
use arrow_array::{BooleanArray, RecordBatch};
use arrow_schema::{Schema, SchemaRef};
use arrow_select::filter::filter_record_batch;
use parquet::file::metadata::KeyValue;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

/// What an export is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Parquet,
    Csv,
    /// Answered requests as a `golden.json` of the models directory.
    Golden,
    /// Requests as a `warmup.json`.
    Warmup,
}

/// What to export, and where to.
#[derive(Debug, Clone)]
pub struct Export<'a> {
    pub model: &'a ModelName,
    pub data: &'a Path,
    pub pick: Pick,
    pub require_label: bool,
    pub format: Format,
    /// Rows of a table; cases of a golden file, requests of a warm-up, which have a limit of their own where there is none.
    pub limit: Option<usize>,
    pub to: &'a Path,
    pub budget: Budget,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Exported {
    /// Rows, cases or requests.
    pub rows: usize,
    /// Rows with a label, where there are rows.
    pub labelled: usize,
    /// Requests that were not taken, by reason.
    pub left_out: BTreeMap<&'static str, usize>,
    pub bytes: u64,
    /// Sealed files that retention deleted while they were looked for.
    pub gone: usize,
}

impl Format {
    pub const ALL: [Format; 4] = [Format::Parquet, Format::Csv, Format::Golden, Format::Warmup];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Format::Parquet => "parquet",
            Format::Csv => "csv",
            Format::Golden => "golden",
            Format::Warmup => "warmup",
        }
    }

    /// By a file's name.
    ///
    /// # Errors
    /// When it does not say.
    pub fn of(path: &Path) -> Result<Format, Error> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        let ending = name.rsplit_once('.').map(|(_, ending)| ending);
        match (name.as_str(), ending) {
            ("golden.json", _) => Ok(Format::Golden),
            ("warmup.json", _) => Ok(Format::Warmup),
            (_, Some("parquet")) => Ok(Format::Parquet),
            (_, Some("csv")) => Ok(Format::Csv),
            _ => Err(Error::Usage(format!(
                "{} does not say its format: expected a name that ends in .parquet or .csv, or is golden.json or warmup.json; or \
                 --format",
                path.display()
            ))),
        }
    }
}

/// Writes the file, whole or not at all.
///
/// # Errors
/// When there is nothing to export, something cannot be read or written, or versions do not fit into one table.
pub fn export(what: &Export, progress: Progress) -> Result<Exported, Error> {
    // First: that it cannot be written is found out before anything is read.
    let file = Unfinished::create(what.to)?;
    let sources = Sources::open(what.data, what.model, &what.pick)?;
    match what.format {
        Format::Golden => cases::write(what, &sources, Kind::Golden, file, progress),
        Format::Warmup => cases::write(what, &sources, Kind::Warmup, file, progress),
        Format::Parquet | Format::Csv => table(what, &sources, file, progress),
    }
}

/// Why an export would be empty, in words.
pub fn nothing(data: &Path, model: &ModelName) -> Error {
    let known = source::models(data).unwrap_or_default();
    let known: Vec<&str> = known.iter().map(ModelName::as_str).collect();
    let words = match known.as_slice() {
        [] => "and none of any other model has been sealed".to_owned(),
        known if known.contains(&model.as_str()) => "though there are others of this model".to_owned(),
        known => format!("there are predictions of {}", known.join(", ")),
    };
    Error::Failed(format!("{} has no predictions of {model} that are asked for; {words}", data.display()))
}

/// A file of rows, in one of its formats.
enum Rows {
    Parquet(Table),
    Csv(Csv),
}

impl Rows {
    fn write(&mut self, batch: &RecordBatch) -> Result<(), Error> {
        match self {
            Rows::Parquet(table) => table.write(batch),
            Rows::Csv(csv) => csv.write(batch),
        }
    }
}

fn table(what: &Export, sources: &Sources, file: Unfinished, progress: Progress) -> Result<Exported, Error> {
    let Some(union) = Union::of(&sources.predictions)? else { return Err(nothing(what.data, what.model)) };
    let fields = union.schema().fields().iter().cloned().chain(Labels::fields());
    let schema: SchemaRef = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    let mut rows = match what.format {
        Format::Csv => Rows::Csv(Csv::begin(file, &schema)?),
        _ => Rows::Parquet(Table::begin(file, Arc::clone(&schema), said(what.model, sources))?),
    };
    let mut exported = Exported { gone: sources.gone, ..Exported::default() };
    let most = what.limit.unwrap_or(usize::MAX);
    let way = Way { pick: &what.pick, labels: true, budget: what.budget, first: what.limit, progress };
    walk(sources, &way, &mut |step| {
        let joined = joined(&step, &union, &schema, what.require_label)?;
        let joined = joined.slice(0, joined.num_rows().min(most - exported.rows));
        exported.rows += joined.num_rows();
        exported.labelled += labelled(&joined);
        rows.write(&joined)?;
        Ok(if exported.rows < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    if exported.rows == 0 && !what.require_label {
        return Err(nothing(what.data, what.model));
    }
    exported.bytes = match rows {
        Rows::Parquet(table) => table.finish()?,
        Rows::Csv(csv) => csv.finish()?,
    };
    Ok(exported)
}

/// A batch with the feedback on its rows.
fn joined(step: &Step, union: &Union, schema: &SchemaRef, require_label: bool) -> Result<RecordBatch, Error> {
    let named = |error| step.source.stored.named(error);
    let adapted = union.adapt(&step.batch).map_err(named)?;
    let heads = super::columns::Heads::of(&step.batch).map_err(named)?;
    let rows = 0..step.batch.num_rows();
    let feedback: Vec<_> = rows.map(|i| step.labels.of(heads.request_id.value(i), heads.row.value(i))).collect();
    let columns = adapted.columns().iter().cloned().chain(step.labels.columns(&feedback)).collect();
    let cannot = |e: arrow_schema::ArrowError| Error::Failed(e.to_string());
    let batch = RecordBatch::try_new(Arc::clone(schema), columns).map_err(cannot)?;
    if !require_label {
        return Ok(batch);
    }
    let has_label = feedback.iter().map(|row| Some(row.is_some_and(|row| row.label.is_some())));
    filter_record_batch(&batch, &has_label.collect::<BooleanArray>()).map_err(cannot)
}

fn labelled(batch: &RecordBatch) -> usize {
    let (numbers, texts) = (batch.column_by_name("label_num"), batch.column_by_name("label_str"));
    // A label is the one or the other.
    [numbers, texts].into_iter().flatten().map(|column| column.len() - column.null_count()).sum()
}

/// What the file says of itself: the model, and which bytes made its answers.
fn said(model: &ModelName, sources: &Sources) -> Vec<KeyValue> {
    let mut versions: BTreeMap<Version, std::collections::BTreeSet<&str>> = BTreeMap::new();
    for source in &sources.predictions {
        versions.entry(source.about.version).or_default().insert(&source.about.sha256);
    }
    let versions: serde_json::Map<String, serde_json::Value> =
        versions.into_iter().map(|(version, sums)| (version.to_string(), serde_json::json!(sums))).collect();
    vec![
        KeyValue::new("sluicegate.model".to_owned(), model.to_string()),
        KeyValue::new("sluicegate.versions".to_owned(), serde_json::Value::from(versions).to_string()),
    ]
}
