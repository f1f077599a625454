//! An export as Parquet.

use super::error::Error;
use super::unfinished::Unfinished;
use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;

/// Rows of a row group: a vector of DuckDB's times sixty, which its threads share out among them.
const GROUP_ROWS: usize = 122_880;
/// Of wide rows fewer: a row group is held in memory until it is whole.
const GROUP_BYTES: usize = 128 << 20;

pub struct Table(ArrowWriter<Unfinished>);

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Table(…)")
    }
}

impl Table {
    /// `said`: key-value metadata.
    pub fn begin(file: Unfinished, schema: SchemaRef, said: Vec<KeyValue>) -> Result<Table, Error> {
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .set_max_row_group_row_count(Some(GROUP_ROWS))
            .set_max_row_group_bytes(Some(GROUP_BYTES))
            .set_key_value_metadata(Some(said))
            .build();
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
