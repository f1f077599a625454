//! An export as Parquet, compressed and in row groups as the log's own files are.

use super::error::Error;
use super::unfinished::Unfinished;
use crate::record::parquet_properties;
use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use parquet::arrow::ArrowWriter;
use parquet::file::metadata::KeyValue;

pub struct Table(ArrowWriter<Unfinished>);

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Table(…)")
    }
}

impl Table {
    /// `said`: key-value metadata.
    pub fn begin(file: Unfinished, schema: SchemaRef, said: Vec<KeyValue>) -> Result<Table, Error> {
        let properties = parquet_properties(&schema, said);
        let path = file.path().to_owned();
        let writer = ArrowWriter::try_new(file, schema, Some(properties));
        writer.map(Table).map_err(|e| Error::at("write", &path, e))
    }

    pub fn write(&mut self, batch: &RecordBatch) -> Result<(), Error> {
        self.0.write(batch).map_err(|e| Error::at("write", self.0.inner().path(), e))
    }

    pub fn finish(self) -> Result<u64, Error> {
        let path = self.0.inner().path().to_owned();
        self.0.into_inner().map_err(|e| Error::at("write", &path, e))?.finish()
    }
}
