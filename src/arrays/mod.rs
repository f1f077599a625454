//! arrays: reads named arrays from npz, npy, Parquet and CSV files, as tensors of a signature.
//!
//! - [`read`](fn@read) returns the tensors of one side of a signature. Arrays are found by the names of the tensors; columns also by the names of the
//!   elements of a tensor (`fit.rs`).
//! - Numbers are converted to the datatype that the signature declares, where they have a value in it (`values.rs`).
//! - Everything is bounded: the file, its header, and the bytes of the arrays. Nothing is reserved because a header says so.
//! - Each error names the file, the array or column, what was expected and what was found.
//!
//! Uses: model, tensor.
//!
//! Invariant: nothing here runs a model or writes a file.
//!
//! To add a file format: a file that returns [`Array`](values::Array)s or a [`Table`](table::Table), and its extension in [`read`](fn@read).

mod csv_file;
mod fit;
mod npy;
mod parquet_file;
mod table;
#[cfg(test)]
mod tests;
mod values;

use crate::model::{NamedTensor, TensorSpec};
use std::path::Path;

/// The most bytes of the arrays of one file, and of a CSV file: as many as a `golden.json` may have.
pub const MAX_BYTES: usize = 256 << 20;

/// The tensors that a file is read for.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'w> {
    /// `input` or `output`, for messages.
    pub side: &'static str,
    pub specs: &'w [TensorSpec],
    /// How many of the first specs must be in the file. 0: at least one of any.
    pub required: usize,
    /// The names of the elements of the only tensor, where they are known.
    pub element_names: &'w [String],
}

/// The tensors of a file.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Arrays {
    /// In the order of the specs. Those that the file does not have are absent.
    pub tensors: Vec<NamedTensor>,
    /// Choices that a person should know, such as columns that were taken in the order of the file.
    pub notes: Vec<String>,
}

/// Reads the wanted tensors from an `.npz`, `.npy`, `.parquet` or `.csv` file.
///
/// # Errors
/// In words, when the file cannot be read, an array is missing, unknown, or does not fit its tensor.
pub fn read(path: &Path, wanted: &Wanted) -> Result<Arrays, String> {
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let at = |message: String| format!("{}: {message}", path.display());
    if !std::fs::metadata(path).map_err(|e| at(format!("cannot read it: {e}")))?.is_file() {
        return Err(at("it is not a regular file".to_owned()));
    }
    match extension.as_str() {
        "npz" => npy::read_npz(path).and_then(|arrays| fit::arrays(arrays, wanted)),
        "npy" => npy::read_npy(path).and_then(|arrays| fit::arrays(arrays, wanted)),
        "parquet" => parquet_file::Parquet::open(path).and_then(|mut table| fit::table(&mut table, wanted)),
        "csv" => csv_file::Csv::open(path).and_then(|mut table| fit::table(&mut table, wanted)),
        other => Err(format!("expected a file whose name ends in .npz, .npy, .parquet or .csv, found {other:?}")),
    }
    .map_err(at)
}
