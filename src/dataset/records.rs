//! Where records are read from: a data directory, or a bucket that gateways upload to.

use super::error::Error;
use crate::bucket::{Listed, Object, Prefix};
use crate::machine::open_regular;
use crate::model::ModelName;
use bytes::Bytes;
use jiff::civil::Date;
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, Length};
use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where the records are.
#[derive(Debug, Clone, Copy)]
pub enum Records<'a> {
    /// A data directory: sealed files, and segments that are not sealed.
    Dir(&'a Path),
    /// What gateways uploaded.
    Bucket(&'a Arc<Prefix>),
}

/// A sealed file.
#[derive(Debug, Clone)]
pub(super) enum Place {
    File(PathBuf),
    Object(Object),
}

/// An open one, for readers of Parquet.
#[derive(Debug)]
pub(super) enum Input {
    File(File),
    Object(Object),
}

/// Reads one from a place on.
#[derive(Debug)]
pub(super) enum InputRead {
    File(BufReader<File>),
    Object(<Object as ChunkReader>::T),
}

impl<'a> From<&'a Path> for Records<'a> {
    fn from(dir: &'a Path) -> Records<'a> {
        Records::Dir(dir)
    }
}

/// For messages.
impl fmt::Display for Records<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Records::Dir(dir) => dir.display().fmt(f),
            Records::Bucket(prefix) => prefix.fmt(f),
        }
    }
}

impl From<&Path> for Place {
    fn from(path: &Path) -> Place {
        Place::File(path.to_owned())
    }
}

impl Place {
    /// For messages.
    #[must_use]
    pub(super) fn name(&self) -> String {
        match self {
            Place::File(path) => path.display().to_string(),
            Place::Object(object) => object.name(),
        }
    }

    /// # Errors
    /// When a file cannot be opened, or is not a regular one. An object is asked for when it is read.
    pub(super) fn open(&self) -> io::Result<Input> {
        Ok(match self {
            Place::File(path) => Input::File(open_regular(path)?),
            Place::Object(object) => Input::Object(object.clone()),
        })
    }
}

impl Length for Input {
    fn len(&self) -> u64 {
        match self {
            Input::File(file) => file.len(),
            Input::Object(object) => object.len(),
        }
    }
}

impl ChunkReader for Input {
    type T = InputRead;

    fn get_read(&self, start: u64) -> Result<InputRead, ParquetError> {
        Ok(match self {
            Input::File(file) => InputRead::File(file.get_read(start)?),
            Input::Object(object) => InputRead::Object(object.get_read(start)?),
        })
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        match self {
            Input::File(file) => file.get_bytes(start, length),
            Input::Object(object) => object.get_bytes(start, length),
        }
    }
}

impl Read for InputRead {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        match self {
            InputRead::File(file) => file.read(to),
            InputRead::Object(object) => object.read(to),
        }
    }
}

/// The uploaded files of a model, each with the date in its name, in the order of their dates and segments. `days`: the first and the last one.
///
/// # Errors
/// When the bucket cannot be listed.
pub(super) fn objects(
    prefix: &Arc<Prefix>,
    kind: &str,
    model: &ModelName,
    days: (Option<Date>, Option<Date>),
) -> Result<Vec<(Option<Date>, Place)>, Error> {
    let dir = format!("{kind}/model={model}");
    let after = days.0.map(|day| format!("{dir}/date={day}"));
    // After all names that begin with the last day.
    let before = days.1.map(|day| format!("{dir}/date={day}~"));
    let listed = prefix.list(&dir, after.as_deref(), before.as_deref());
    let listed = listed.map_err(|error| Error::Failed(format!("cannot list the records in {error}")))?;
    let dated = |listed: Listed| {
        let (_, rest) = listed.name.split_once("/date=")?;
        let (date, file) = rest.split_once('/')?;
        let date = date.parse().ok();
        file.ends_with(".parquet").then(|| (date, Place::Object(Object::new(prefix, listed.clone()))))
    };
    Ok(listed.into_iter().filter_map(dated).collect())
}

/// The models with uploaded predictions; none where the bucket cannot be listed.
#[must_use]
pub(super) fn models_in_bucket(prefix: &Prefix) -> Vec<ModelName> {
    let dirs = prefix.dirs("predictions").unwrap_or_default();
    dirs.iter().filter_map(|dir| dir.strip_prefix("model=")?.parse().ok()).collect()
}
