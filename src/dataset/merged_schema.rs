//! Merges versions with different inputs and outputs into one table.

use super::error::Error;
use super::sources::Source;
use crate::model::Version;
use crate::record::{Layout, SHAPES, Side};
use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, BinaryArray, ListArray, NullArray, RecordBatch, StructArray, new_null_array};
use arrow_schema::{DataType, Field, FieldRef, Fields, Schema, SchemaRef};
use std::sync::Arc;

/// The columns of all sources together: those of the log, with every field of any version in `inputs` and `outputs`.
#[derive(Debug)]
pub(super) struct MergedSchema {
    schema: SchemaRef,
}

/// The column of a tensor, and the version in which it was first found.
struct TensorColumn {
    name: String,
    element: DataType,
    version: Version,
}

impl MergedSchema {
    /// # Errors
    /// When two versions have a tensor of the same name with different types, or a file has unexpected columns.
    pub(super) fn merge(sources: &[Source]) -> Result<Option<MergedSchema>, Error> {
        let Some(first) = sources.first() else { return Ok(None) };
        let (inputs, outputs) = (merge_side(sources, Side::Inputs)?, merge_side(sources, Side::Outputs)?);
        let layout = Layout::new(&first.about).schema();
        let mut fields: Vec<FieldRef> = layout
            .fields()
            .iter()
            .map(|field| match field.name().as_str() {
                "inputs" => Arc::new(field.as_ref().clone().with_data_type(inputs.clone())),
                "outputs" => Arc::new(field.as_ref().clone().with_data_type(outputs.clone())),
                _ => Arc::clone(field),
            })
            .collect();
        if sources.iter().any(|source| source.stored.schema.column_with_name(SHAPES).is_some()) {
            fields.push(Arc::new(Field::new(SHAPES, DataType::Utf8, true)));
        }
        Ok(Some(MergedSchema { schema: Arc::new(Schema::new(fields)) }))
    }

    #[must_use]
    pub(super) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Converts a batch of one source to the merged columns.
    ///
    /// # Errors
    /// When a column is missing or of another type.
    pub(super) fn adapt(&self, batch: &RecordBatch) -> Result<RecordBatch, Error> {
        let column = |field: &FieldRef| -> Result<ArrayRef, Error> {
            let found = batch.column_by_name(field.name());
            match (field.data_type(), found) {
                (DataType::Struct(fields), Some(found)) => adapt_struct(fields, found),
                (DataType::Null, _) => Ok(Arc::new(NullArray::new(batch.num_rows()))),
                (wanted, None) if field.is_nullable() => Ok(new_null_array(wanted, batch.num_rows())),
                (_, None) => Err(Error::Failed(format!("the column {} is missing", field.name()))),
                (wanted, Some(found)) if wanted == found.data_type() => Ok(Arc::clone(found)),
                (wanted, Some(found)) => Err(wrong_type(field.name(), wanted, found.data_type())),
            }
        };
        let columns = self.schema.fields().iter().map(column).collect::<Result<Vec<_>, _>>()?;
        RecordBatch::try_new(Arc::clone(&self.schema), columns).map_err(|e| Error::Failed(e.to_string()))
    }
}

fn wrong_type(name: &str, wanted: &DataType, found: &DataType) -> Error {
    Error::Failed(format!("the column {name} is expected to be {wanted}, found {found}"))
}

fn merge_side(sources: &[Source], side: Side) -> Result<DataType, Error> {
    let mut all: Vec<TensorColumn> = Vec::new();
    for source in sources {
        let version = source.about.version;
        let fields = match source.stored.schema.field_with_name(side.as_str()).map(Field::data_type) {
            Ok(DataType::Struct(fields)) => fields.clone(),
            Ok(DataType::Null) => Fields::empty(),
            Ok(other) => {
                return Err(source.stored.locate(Error::Failed(format!(
                    "the column {} is expected to be a struct, found {other}",
                    side.as_str()
                ))));
            }
            Err(_) => {
                let words = format!("the column {} is missing", side.as_str());
                return Err(source.stored.locate(Error::Failed(words)));
            }
        };
        for field in &fields {
            let DataType::List(element) = field.data_type() else {
                return Err(source.stored.locate(Error::Failed(format!(
                    "the column {}.{} is expected to be a list, found {}",
                    side.as_str(),
                    field.name(),
                    field.data_type()
                ))));
            };
            let element = element.data_type();
            match all.iter_mut().find(|known| known.name == *field.name()) {
                None => all.push(TensorColumn { name: field.name().clone(), element: element.clone(), version }),
                Some(known) => known
                    .widen(element, version)
                    .map_err(|words| Error::Failed(format!("{}.{} {words}", side.as_str(), field.name())))?,
            }
        }
    }
    if all.is_empty() {
        return Ok(DataType::Null);
    }
    let field = |known: TensorColumn| {
        let element = Field::new_list_field(known.element, false);
        Field::new(known.name, DataType::List(Arc::new(element)), true)
    };
    Ok(DataType::Struct(all.into_iter().map(field).collect()))
}

impl TensorColumn {
    /// Strings and binary merge to binary. The log writes a tensor as strings if all of a file is UTF-8, else as binary.
    fn widen(&mut self, element: &DataType, version: Version) -> Result<(), String> {
        match (&self.element, element) {
            (a, b) if a == b => Ok(()),
            (DataType::Utf8 | DataType::Binary, DataType::Utf8 | DataType::Binary) => {
                self.element = DataType::Binary;
                Ok(())
            }
            (a, b) if self.version == version => Err(format!(
                "is a list of {a} in some records of version {version} and of {b} in others (was it hashed at some time?): choose a time with --from and --to"
            )),
            (a, b) => Err(format!(
                "is a list of {a} in version {} and of {b} in version {version}: choose one with --version",
                self.version
            )),
        }
    }
}

fn adapt_struct(wanted: &Fields, found: &ArrayRef) -> Result<ArrayRef, Error> {
    let length = found.len();
    let Some(found) = found.as_struct_opt() else {
        return Ok(new_null_array(&DataType::Struct(wanted.clone()), length));
    };
    let column = |field: &FieldRef| -> Result<ArrayRef, Error> {
        match found.column_by_name(field.name()) {
            None => Ok(new_null_array(field.data_type(), length)),
            Some(column) => adapt_list(field, column),
        }
    };
    let columns = wanted.iter().map(column).collect::<Result<Vec<_>, _>>()?;
    let array = StructArray::try_new(wanted.clone(), columns, found.nulls().cloned());
    Ok(Arc::new(array.map_err(|e| Error::Failed(e.to_string()))?))
}

fn adapt_list(wanted: &FieldRef, found: &ArrayRef) -> Result<ArrayRef, Error> {
    let mismatch = || wrong_type(wanted.name(), wanted.data_type(), found.data_type());
    let (DataType::List(element), Some(found)) = (wanted.data_type(), found.as_list_opt::<i32>()) else {
        return Err(mismatch());
    };
    let values = match (element.data_type(), found.values()) {
        (wanted, values) if wanted == values.data_type() => Arc::clone(values),
        (DataType::Binary, values) => {
            let texts = values.as_string_opt::<i32>().ok_or_else(mismatch)?;
            Arc::new(BinaryArray::from(texts.clone()))
        }
        _ => return Err(mismatch()),
    };
    let array = ListArray::try_new(Arc::clone(element), found.offsets().clone(), values, found.nulls().cloned());
    Ok(Arc::new(array.map_err(|e| Error::Failed(format!("the column {}: {e}", wanted.name())))?))
}
