//! Reads `.parquet` files, one column at a time.

use super::MAX_BYTES;
use super::table::{Column, Table};
use super::values::Values;
use arrow_array::cast::AsArray;
use arrow_array::types::{
    Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type,
    UInt32Type, UInt64Type,
};
use arrow_array::{Array, ArrayRef, ArrowPrimitiveType, GenericListArray, OffsetSizeTrait};
use arrow_schema::DataType;
use bytes::Bytes;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::basic::Compression;
use parquet::file::metadata::{ColumnChunkMetaData, RowGroupMetaData};
use std::fs::File;
use std::path::Path;

/// The most columns.
const MAX_COLUMNS: usize = 10_000;

/// A file whose columns are read when they are asked for.
#[derive(Debug)]
pub(super) struct Parquet {
    file: File,
    metadata: ArrowReaderMetadata,
    names: Vec<String>,
    /// How many bytes of columns may still be read.
    left: usize,
}

impl Parquet {
    pub(super) fn open(path: &Path) -> Result<Parquet, String> {
        let file = File::open(path).map_err(|e| format!("cannot read it: {e}"))?;
        // Without the types of the program that wrote it, texts are texts and not categories.
        let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
        let metadata =
            ArrowReaderMetadata::load(&file, options).map_err(|e| format!("it is not a Parquet file: {e}"))?;
        let names: Vec<String> = metadata.schema().fields().iter().map(|field| field.name().clone()).collect();
        if names.len() > MAX_COLUMNS {
            return Err(format!("it has {} columns, the limit is {MAX_COLUMNS}", names.len()));
        }
        let chunks = metadata.metadata().row_groups().iter().flat_map(RowGroupMetaData::columns);
        let unknown = chunks.map(ColumnChunkMetaData::compression);
        let is_known =
            |compression: &Compression| matches!(compression, Compression::UNCOMPRESSED | Compression::ZSTD(_));
        if let Some(compression) = unknown.into_iter().find(|compression| !is_known(compression)) {
            return Err(format!(
                "it is compressed with {}, which is not supported; expected zstd or none: write it with compression=\"zstd\" (pandas, Polars, pyarrow)",
                compression.to_string().split('(').next().unwrap_or_default()
            ));
        }
        Ok(Parquet { file, metadata, names, left: MAX_BYTES })
    }
}

impl Table for Parquet {
    fn names(&self) -> &[String] {
        &self.names
    }

    fn column(&mut self, index: usize) -> Result<Column, String> {
        let not_read = |e: &dyn std::fmt::Display| format!("cannot read it: {e}");
        let file = self.file.try_clone().map_err(|e| not_read(&e))?;
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(file, self.metadata.clone());
        let mask = ProjectionMask::roots(builder.parquet_schema(), [index]);
        let reader = builder.with_projection(mask).build().map_err(|e| not_read(&e))?;
        let mut gathered = Gathered::default();
        for batch in reader {
            let batch = batch.map_err(|e| not_read(&e))?;
            let column = batch.column(0);
            let bytes = column.get_buffer_memory_size();
            self.left = self
                .left
                .checked_sub(bytes)
                .ok_or_else(|| format!("the columns have more than {MAX_BYTES} bytes together"))?;
            gathered.add(column)?;
        }
        Ok(Column { values: gathered.values.unwrap_or(Values::Floats(Vec::new())), list: gathered.list })
    }
}

/// The batches of a column, together.
#[derive(Default)]
struct Gathered {
    values: Option<Values>,
    list: Option<usize>,
    rows: usize,
}

impl Gathered {
    fn add(&mut self, column: &dyn Array) -> Result<(), String> {
        let lengths: Option<Vec<usize>> = match column.data_type() {
            DataType::List(_) => Some(column.as_list::<i32>().offsets().lengths().collect()),
            DataType::LargeList(_) => Some(column.as_list::<i64>().offsets().lengths().collect()),
            DataType::FixedSizeList(_, n) => Some(vec![usize::try_from(*n).unwrap_or(0); column.len()]),
            _ => None,
        };
        let Some(lengths) = lengths else {
            self.rows += column.len();
            return self.extend(column);
        };
        for (row, length) in lengths.iter().enumerate() {
            let expected = *self.list.get_or_insert(*length);
            if *length != expected || column.is_null(row) {
                let found = if column.is_null(row) { "nothing".to_owned() } else { format!("a list of {length}") };
                return Err(format!(
                    "row {}: expected a list of {expected} as in the first row, found {found}",
                    self.rows + row
                ));
            }
        }
        self.rows += column.len();
        // A slice of a list array has the elements of the whole one.
        let elements = match column.data_type() {
            DataType::List(_) => within(column.as_list::<i32>()),
            DataType::LargeList(_) => within(column.as_list::<i64>()),
            _ => {
                let list = column.as_fixed_size_list();
                let width = usize::try_from(list.value_length()).unwrap_or(0);
                list.values().slice(list.offset() * width, list.len() * width)
            }
        };
        self.extend(&elements)
    }

    fn extend(&mut self, column: &dyn Array) -> Result<(), String> {
        let next = elements(column)?;
        self.values = Some(match (self.values.take(), next) {
            (None, next) => next,
            (Some(Values::Bools(mut a)), Values::Bools(b)) => {
                a.extend(b);
                Values::Bools(a)
            }
            (Some(Values::Signed(mut a)), Values::Signed(b)) => {
                a.extend(b);
                Values::Signed(a)
            }
            (Some(Values::Unsigned(mut a)), Values::Unsigned(b)) => {
                a.extend(b);
                Values::Unsigned(a)
            }
            (Some(Values::Texts(mut a)), Values::Texts(b)) => {
                a.extend(b);
                Values::Texts(a)
            }
            // Integers and booleans with missing values are floating-point numbers; so a column may begin with the one and go on with the other.
            (Some(a), b) => {
                let (mut a, b) = (as_floats(a)?, as_floats(b)?);
                a.extend(b);
                Values::Floats(a)
            }
        });
        Ok(())
    }
}

/// The elements of the lists of an array, which may be a slice of another one.
fn within<O: OffsetSizeTrait>(lists: &GenericListArray<O>) -> ArrayRef {
    let (start, end) = (lists.offsets()[0].as_usize(), lists.offsets()[lists.len()].as_usize());
    lists.values().slice(start, end - start)
}

fn as_floats(values: Values) -> Result<Vec<f64>, String> {
    match values {
        Values::Floats(v) => Ok(v),
        Values::Signed(v) => Ok(v.into_iter().map(|n| n as f64).collect()),
        Values::Unsigned(v) => Ok(v.into_iter().map(|n| n as f64).collect()),
        Values::Bools(v) => Ok(v.into_iter().map(|b| f64::from(u8::from(b))).collect()),
        Values::Texts(_) | Values::Cells(_) => Err("its type changes within the file".to_owned()),
    }
}

/// The elements of an array without lists. A missing number is NaN.
fn elements(column: &dyn Array) -> Result<Values, String> {
    fn numbers<T: ArrowPrimitiveType, N>(column: &dyn Array, each: fn(T::Native) -> N) -> Vec<N> {
        column.as_primitive::<T>().values().iter().map(|n| each(*n)).collect()
    }
    macro_rules! integers {
        ($kind:ident, $type:ty) => {{
            if column.null_count() == 0 {
                Values::$kind(numbers::<$type, _>(column, Into::into))
            } else {
                let array = column.as_primitive::<$type>();
                Values::Floats(array.iter().map(|n| n.map_or(f64::NAN, |n| i128::from(n) as f64)).collect())
            }
        }};
    }
    macro_rules! floats {
        ($type:ty, $each:expr) => {
            Values::Floats(column.as_primitive::<$type>().iter().map(|n| n.map_or(f64::NAN, $each)).collect())
        };
    }
    let text = |row: usize, bytes: Option<&[u8]>| {
        bytes.map(Bytes::copy_from_slice).ok_or_else(|| format!("row {row}: expected a text, found nothing"))
    };
    Ok(match column.data_type() {
        DataType::Boolean if column.null_count() == 0 => Values::Bools(column.as_boolean().values().iter().collect()),
        DataType::Boolean => {
            let number = |b: Option<bool>| b.map_or(f64::NAN, |b| f64::from(u8::from(b)));
            Values::Floats(column.as_boolean().iter().map(number).collect())
        }
        DataType::Int8 => integers!(Signed, Int8Type),
        DataType::Int16 => integers!(Signed, Int16Type),
        DataType::Int32 => integers!(Signed, Int32Type),
        DataType::Int64 => integers!(Signed, Int64Type),
        DataType::UInt8 => integers!(Unsigned, UInt8Type),
        DataType::UInt16 => integers!(Unsigned, UInt16Type),
        DataType::UInt32 => integers!(Unsigned, UInt32Type),
        DataType::UInt64 => integers!(Unsigned, UInt64Type),
        DataType::Float16 => floats!(Float16Type, f64::from),
        DataType::Float32 => floats!(Float32Type, f64::from),
        DataType::Float64 => floats!(Float64Type, f64::from),
        DataType::Utf8 => {
            let texts = column.as_string::<i32>().iter().enumerate();
            Values::Texts(texts.map(|(row, t)| text(row, t.map(str::as_bytes))).collect::<Result<_, _>>()?)
        }
        DataType::Binary => {
            let texts = column.as_binary::<i32>().iter().enumerate();
            Values::Texts(texts.map(|(row, t)| text(row, t)).collect::<Result<_, _>>()?)
        }
        other => return Err(format!("its type is {other}; expected numbers, booleans or texts, or lists of them")),
    })
}
