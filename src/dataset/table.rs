//! Exports a table: a row per prediction, with its latest feedback.

use super::atomic_file::AtomicFile;
use super::columns::KeyColumns;
use super::csv_writer::CsvWriter;
use super::error::Error;
use super::feedback::FeedbackIndex;
use super::merged_schema::MergedSchema;
use super::options::{Export, Exported, Format, no_predictions};
use super::parquet_writer::ParquetWriter;
use super::scan::{Progress, ScanOptions, ScannedBatch, scan};
use super::sources::Sources;
use crate::model::{ModelName, Version};
use arrow_array::{BooleanArray, RecordBatch};
use arrow_schema::{Schema, SchemaRef};
use arrow_select::filter::filter_record_batch;
use parquet::file::metadata::KeyValue;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;

/// Writes rows in one of the table formats.
enum TableWriter {
    Parquet(ParquetWriter),
    Csv(CsvWriter),
}

impl TableWriter {
    fn write(&mut self, batch: &RecordBatch) -> Result<(), Error> {
        match self {
            TableWriter::Parquet(writer) => writer.write(batch),
            TableWriter::Csv(writer) => writer.write(batch),
        }
    }
}

pub(super) fn write(
    options: &Export,
    sources: &Sources,
    file: AtomicFile,
    progress: Progress,
) -> Result<Exported, Error> {
    let Some(merged) = MergedSchema::merge(&sources.predictions)? else {
        return Err(no_predictions(options.data, options.model));
    };
    let fields = merged.schema().fields().iter().cloned().chain(FeedbackIndex::fields());
    let schema: SchemaRef = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    let mut writer = match options.format {
        Format::Csv => TableWriter::Csv(CsvWriter::begin(file, &schema)?),
        _ => TableWriter::Parquet(ParquetWriter::begin(
            file,
            Arc::clone(&schema),
            file_metadata(options.model, sources),
        )?),
    };
    let mut exported = Exported { deleted_files: sources.deleted_files, ..Exported::default() };
    let limit = options.limit.unwrap_or(usize::MAX);
    let scan_options = ScanOptions {
        filter: &options.filter,
        join_feedback: true,
        budget: options.budget,
        first_chunk: options.limit,
        progress,
    };
    scan(sources, &scan_options, &mut |scanned| {
        let joined = join(&scanned, &merged, &schema, options.require_label)?;
        let joined = joined.slice(0, joined.num_rows().min(limit - exported.rows));
        exported.rows += joined.num_rows();
        exported.labelled += count_labels(&joined);
        writer.write(&joined)?;
        Ok(if exported.rows < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    if exported.rows == 0 && !options.require_label {
        return Err(no_predictions(options.data, options.model));
    }
    exported.bytes = match writer {
        TableWriter::Parquet(writer) => writer.finish()?,
        TableWriter::Csv(writer) => writer.finish()?,
    };
    Ok(exported)
}

/// Adds the feedback columns to a batch.
fn join(
    scanned: &ScannedBatch,
    merged: &MergedSchema,
    schema: &SchemaRef,
    require_label: bool,
) -> Result<RecordBatch, Error> {
    let locate = |error| scanned.source.stored.locate(error);
    let adapted = merged.adapt(&scanned.batch).map_err(locate)?;
    let keys = KeyColumns::of(&scanned.batch).map_err(locate)?;
    let rows = 0..scanned.batch.num_rows();
    let feedback: Vec<_> = rows.map(|i| scanned.feedback.get(keys.request_id.value(i), keys.row.value(i))).collect();
    let columns = adapted.columns().iter().cloned().chain(scanned.feedback.columns(&feedback)).collect();
    let failed = |e: arrow_schema::ArrowError| Error::Failed(e.to_string());
    let batch = RecordBatch::try_new(Arc::clone(schema), columns).map_err(failed)?;
    if !require_label {
        return Ok(batch);
    }
    let has_label = feedback.iter().map(|row| Some(row.is_some_and(|row| row.label().is_some())));
    filter_record_batch(&batch, &has_label.collect::<BooleanArray>()).map_err(failed)
}

fn count_labels(batch: &RecordBatch) -> usize {
    let (numbers, texts) = (batch.column_by_name("label_num"), batch.column_by_name("label_str"));
    // A row has at most one of them.
    [numbers, texts].into_iter().flatten().map(|column| column.len() - column.null_count()).sum()
}

/// The metadata of the file: the model, and the digests of the model files that answered.
fn file_metadata(model: &ModelName, sources: &Sources) -> Vec<KeyValue> {
    let mut versions: BTreeMap<Version, BTreeSet<&str>> = BTreeMap::new();
    for source in &sources.predictions {
        versions.entry(source.about.version).or_default().insert(&source.about.sha256);
    }
    let versions: serde_json::Map<String, serde_json::Value> =
        versions.into_iter().map(|(version, digests)| (version.to_string(), serde_json::json!(digests))).collect();
    vec![
        KeyValue::new("sluicegate.model".to_owned(), model.to_string()),
        KeyValue::new("sluicegate.versions".to_owned(), serde_json::Value::from(versions).to_string()),
    ]
}
