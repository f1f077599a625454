//! Writes an export as Parquet, with the compression and the row groups of the log's own files.

use super::atomic_file::AtomicFile;
use super::error::Error;
use crate::record::parquet_properties;
use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use parquet::arrow::ArrowWriter;
use parquet::file::metadata::KeyValue;

pub(super) struct ParquetWriter(ArrowWriter<AtomicFile>);

impl std::fmt::Debug for ParquetWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ParquetWriter(…)")
    }
}

impl ParquetWriter {
    pub(super) fn begin(file: AtomicFile, schema: SchemaRef, metadata: Vec<KeyValue>) -> Result<ParquetWriter, Error> {
        let properties = parquet_properties(&schema, metadata);
        let path = file.path().to_owned();
        let writer = ArrowWriter::try_new(file, schema, Some(properties));
        writer.map(ParquetWriter).map_err(|e| Error::at("write", &path, e))
    }

    pub(super) fn write(&mut self, batch: &RecordBatch) -> Result<(), Error> {
        self.0.write(batch).map_err(|e| Error::at("write", self.0.inner().path(), e))
    }

    pub(super) fn finish(self) -> Result<u64, Error> {
        let path = self.0.inner().path().to_owned();
        self.0.into_inner().map_err(|e| Error::at("write", &path, e))?.finish()
    }
}
