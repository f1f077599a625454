//! Parquet files under a temporary name, and how they are written.

use super::about::{About, Side};
use super::columns::{Builder, Layout, TensorColumn};
use super::pace::Pace;
use super::plain::{PlainColumn, PlainKind};
use super::segment::read_view;
use crate::machine::durable::{self, sync_parent, temporary};
use arrow_array::RecordBatch;
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::{ArrowColumnWriter, ArrowRowGroupWriterFactory, compute_leaves};
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::ColumnPath;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Records in a row group; as many as in `DuckDB`'s own row groups, so readers plan for it.
const ROW_GROUP: usize = 122_880;
/// Bytes of a row group, which is held in memory while it is written.
const ROW_GROUP_BYTES: usize = 64 << 20;
/// Bytes of one system call.
const WRITE: usize = 256 << 10;
/// zstd at its fastest level.
pub(super) const ZSTD_LEVEL: i32 = 1;

/// A Parquet file under a temporary name.
pub(super) struct Unfinished {
    path: PathBuf,
    writer: ArrowWriter<PacedFile>,
}

impl Unfinished {
    pub fn begin(path: &Path, schema: &SchemaRef, metadata: &[(&str, String)], pace: &Pace) -> io::Result<Unfinished> {
        let pairs = metadata.iter().map(|(key, value)| KeyValue::new(format!("sluicegate.{key}"), value.clone()));
        let properties = properties(schema, pairs.collect());
        let file = PacedFile::create(path, pace)?;
        let writer = ArrowWriter::try_new(file, Arc::clone(schema), Some(properties)).map_err(as_io)?;
        Ok(Unfinished { path: path.to_owned(), writer })
    }

    pub fn write(&mut self, batch: &RecordBatch) -> io::Result<()> {
        self.writer.write(batch).map_err(as_io)
    }

    pub fn finish(self) -> io::Result<()> {
        self.writer.into_inner().map_err(as_io)?.publish(&self.path)
    }
}

/// A file of predictions. Numbers of large tensors go from the segment to the file as they are ([`PlainColumn`]).
pub(super) struct PredictionFile<'s> {
    writer: SerializedFileWriter<PacedFile>,
    factory: ArrowRowGroupWriterFactory,
    schema: SchemaRef,
    /// The columns that are written as they are.
    plain: Vec<(TensorColumn, PlainColumn<'s>)>,
    /// The other columns of the current row group; `None` where it has no record yet.
    group: Option<Vec<ArrowColumnWriter>>,
    /// Records of the current row group, in its batches and in its plain columns.
    written: usize,
    records: usize,
    bytes: usize,
    pace: &'s Pace,
}

impl<'s> PredictionFile<'s> {
    /// Writes predictions of one stream, given by the bodies of their frames. `shapes`: with the column `shapes`, also where no record needs it.
    pub fn write(path: &Path, about: &Arc<About>, shapes: bool, bodies: &[&'s [u8]], pace: &'s Pace) -> io::Result<()> {
        let mut layout = Layout::new(about);
        if shapes {
            layout.require_shapes();
        }
        let mut sizes = vec![(0, 0); layout.tensors().count()];
        for body in bodies {
            if let Some(view) = read_view(&layout, body) {
                layout.allow(&view);
                for ((bytes, records), column) in sizes.iter_mut().zip(layout.tensors()) {
                    if let Some(Some(tensor)) = view.side(column.side).get(column.at) {
                        *bytes += tensor.bytes.len();
                        *records += view.records();
                    }
                }
            }
        }
        let kinds = layout
            .tensors()
            .zip(sizes)
            .filter_map(|(column, (bytes, records))| Some((column, PlainKind::of(column.datatype?, bytes, records)?)));
        let kinds: Vec<(TensorColumn, PlainKind)> = kinds.collect();
        let metadata = about.file_metadata();
        let unfinished = Unfinished::begin(path, &layout.schema(), &metadata, pace)?;
        if kinds.is_empty() {
            return write_batches(unfinished, &layout, bodies);
        }
        let (writer, factory) = unfinished.writer.into_serialized_writer().map_err(as_io)?;
        let descriptor = |column: TensorColumn| writer.schema_descr().column(column.leaf);
        let plain =
            kinds.into_iter().map(|(column, kind)| (column, PlainColumn::new(kind, descriptor(column)))).collect();
        let schema = layout.schema();
        let file =
            PredictionFile { writer, factory, schema, plain, group: None, written: 0, records: 0, bytes: 0, pace };
        file.write_all(&layout, bodies)?.publish(path)
    }

    fn write_all(mut self, layout: &Layout, bodies: &[&'s [u8]]) -> io::Result<PacedFile> {
        let plain: Vec<TensorColumn> = self.plain.iter().map(|(column, _)| *column).collect();
        let mut builder = Builder::new(layout.clone()).without(&plain);
        for body in bodies {
            let Some(view) = read_view(layout, body) else { continue };
            let records = view.records();
            for (column, plain) in &mut self.plain {
                plain.push(&view, *column);
            }
            self.records += records;
            self.bytes += body.len();
            builder.push(&view, &mut |batch| self.write_batch(&batch))?;
            if self.records >= ROW_GROUP || self.bytes >= ROW_GROUP_BYTES {
                builder.flush(&mut |batch| self.write_batch(&batch))?;
                self.close_group()?;
            }
        }
        builder.flush(&mut |batch| self.write_batch(&batch))?;
        self.close_group()?;
        self.writer.into_inner().map_err(as_io)
    }

    fn write_batch(&mut self, batch: &RecordBatch) -> io::Result<()> {
        let group = match &mut self.group {
            Some(group) => group,
            none => {
                let at = self.writer.flushed_row_groups().len();
                none.insert(self.factory.create_column_writers(at).map_err(as_io)?)
            }
        };
        let mut writers = group.iter_mut().enumerate();
        for (field, array) in self.schema.fields().iter().zip(batch.columns()) {
            for leaf in compute_leaves(field, array).map_err(as_io)? {
                let (at, writer) = writers.next().ok_or_else(|| io::Error::other("a column has no writer"))?;
                if !self.plain.iter().any(|(column, _)| column.leaf == at) {
                    writer.write(&leaf).map_err(as_io)?;
                }
            }
        }
        self.written += batch.num_rows();
        self.pace.rest();
        Ok(())
    }

    fn close_group(&mut self) -> io::Result<()> {
        let Some(writers) = self.group.take() else { return Ok(()) };
        let mut group = self.writer.next_row_group().map_err(as_io)?;
        for (at, writer) in writers.into_iter().enumerate() {
            if let Some((_, plain)) = self.plain.iter_mut().find(|(column, _)| column.leaf == at) {
                let (chunk, close) = plain.take()?;
                group.append_column(&&chunk, close).map_err(as_io)?;
            } else {
                writer.close().map_err(as_io)?.append_to_row_group(&mut group).map_err(as_io)?;
            }
        }
        group.close().map_err(as_io)?;
        (self.written, self.records, self.bytes) = (0, 0, 0);
        Ok(())
    }
}

fn write_batches(mut unfinished: Unfinished, layout: &Layout, bodies: &[&[u8]]) -> io::Result<()> {
    let mut builder = Builder::new(layout.clone());
    for body in bodies {
        if let Some(view) = read_view(layout, body) {
            builder.push(&view, &mut |batch| unfinished.write(&batch))?;
        }
    }
    builder.flush(&mut |batch| unfinished.write(&batch))?;
    unfinished.finish()
}

/// A new file, written by a thread that must not use all of the processor.
pub(super) struct PacedFile {
    file: BufWriter<File>,
    pace: Pace,
    /// Bytes since the thread paused last.
    since: usize,
}

impl PacedFile {
    fn create(path: &Path, pace: &Pace) -> io::Result<PacedFile> {
        if let Some(dir) = path.parent() {
            create_dirs(dir)?;
        }
        let file = File::create(temporary(path))?;
        Ok(PacedFile { file: BufWriter::with_capacity(WRITE, file), pace: pace.clone(), since: 0 })
    }

    fn publish(self, path: &Path) -> io::Result<()> {
        let file = self.file.into_inner().map_err(io::IntoInnerError::into_error)?;
        durable::publish(&file, &temporary(path), path)
    }
}

impl Write for PacedFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.since += bytes.len();
        if self.since >= 4 * WRITE {
            self.since = 0;
            self.pace.rest();
        }
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Creates directories and makes their names durable.
fn create_dirs(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    if let Some(parent) = dir.parent() {
        create_dirs(parent)?;
    }
    match std::fs::create_dir(dir) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
        _ => sync_parent(dir),
    }
}

pub(super) fn as_io(error: ParquetError) -> io::Error {
    match error {
        ParquetError::External(source) => match source.downcast::<io::Error>() {
            Ok(error) => *error,
            Err(source) => io::Error::other(source),
        },
        other => io::Error::other(other),
    }
}

/// Columns whose values are looked up one by one. Each row group has a Bloom filter of them, so that a search opens few files.
const LOOKED_UP: [&str; 2] = ["request_id", "route_key"];
/// The share of row groups without a value that a filter does not rule out. A filter takes 10 to 20 bits for each distinct value.
const FALSE_POSITIVES: f64 = 0.01;

/// How the files are written: zstd at its fastest level, dictionaries for the few columns whose texts repeat, Bloom filters of the columns that are
/// searched, and no smallest and largest element of tensors, which no reader can use.
#[must_use]
pub(crate) fn properties(schema: &Schema, metadata: Vec<KeyValue>) -> WriterProperties {
    let level = ZstdLevel::try_new(ZSTD_LEVEL).expect("1 is a level of zstd");
    let mut builder = WriterProperties::builder()
        .set_compression(Compression::ZSTD(level))
        .set_max_row_group_row_count(Some(ROW_GROUP))
        .set_max_row_group_bytes(Some(ROW_GROUP_BYTES))
        .set_dictionary_enabled(false)
        .set_created_by(concat!("sluicegate ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_key_value_metadata(Some(metadata));
    for column in ["version", "arm", "role", "status", "batch_rows", "sample_rate", "reason"] {
        if schema.column_with_name(column).is_some() {
            builder = builder.set_column_dictionary_enabled(ColumnPath::from(column), true);
        }
    }
    for column in LOOKED_UP {
        if schema.column_with_name(column).is_some() {
            builder = builder.set_column_bloom_filter_fpp(ColumnPath::from(column), FALSE_POSITIVES);
        }
    }
    for side in [Side::Inputs, Side::Outputs].map(Side::as_str) {
        if let Some((_, field)) = schema.column_with_name(side)
            && let DataType::Struct(tensors) = field.data_type()
        {
            for tensor in tensors {
                let path = [side, tensor.name(), "list", Field::LIST_FIELD_DEFAULT_NAME].map(str::to_owned);
                builder =
                    builder.set_column_statistics_enabled(ColumnPath::new(path.to_vec()), EnabledStatistics::None);
            }
        }
    }
    builder.build()
}
