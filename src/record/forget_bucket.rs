//! Removes what holds a person from the objects that gateways uploaded: what may hold them is found by ranges, and written again as a whole.

use super::forget::{ids_in, matching, named, rewrite};
use crate::bucket::{Listed, Object, Prefix};
use crate::machine::durable::temporary;
use crate::model::ModelName;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeSet, HashSet};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// The objects below a prefix.
pub(super) struct InBucket<'a> {
    pub prefix: &'a Arc<Prefix>,
    /// A file for the object that is written again.
    pub scratch: PathBuf,
}

/// The length of Bloom filters that are read, as in `dataset`.
const FILTER_BYTES: std::ops::RangeInclusive<i32> = 33..=16 << 20;

impl InBucket<'_> {
    /// The models that have objects.
    pub(super) fn models(&self) -> io::Result<BTreeSet<ModelName>> {
        let mut models = BTreeSet::new();
        for kind in ["predictions", "feedback"] {
            let dirs = self.prefix.dirs(kind)?;
            models.extend(dirs.iter().filter_map(|dir| dir.strip_prefix("model=")?.parse().ok()));
        }
        Ok(models)
    }

    /// The objects of a model.
    pub(super) fn files(&self, kind: &str, model: &ModelName) -> io::Result<Vec<Listed>> {
        let listed = self.prefix.list(&format!("{kind}/model={model}"), None, None)?;
        Ok(listed.into_iter().filter(|object| object.name.ends_with(".parquet")).collect())
    }

    /// The request ids of the predictions with one of these route keys.
    pub(super) fn ids(&self, predictions: &[Listed], keys: [&str; 2]) -> io::Result<HashSet<String>> {
        let mut ids = HashSet::new();
        for listed in predictions {
            if let Some(builder) = self.open(listed, "route_key", &mut keys.into_iter())? {
                ids_in(builder, &self.at(listed), keys, &mut ids)?;
            }
        }
        Ok(ids)
    }

    /// Writes an object again without the rows that have one of these texts in a column, or removes it where none is left. Returns how many rows were
    /// removed.
    pub(super) fn rewrite(&self, listed: &Listed, column: &str, texts: &HashSet<String>) -> io::Result<u64> {
        let Some(builder) = self.open(listed, column, &mut texts.iter().map(String::as_str))? else { return Ok(0) };
        let has = |text: &str| texts.contains(text);
        if matching(builder, &self.at(listed), column, has)? == 0 {
            return Ok(0);
        }
        if let Some(dir) = self.scratch.parent() {
            std::fs::create_dir_all(dir)?;
        }
        let removed = self.prefix.fetch(listed, &self.scratch).and_then(|()| {
            let removed = rewrite(&self.scratch, &[column], |batch| named(batch, column, has))?;
            match std::fs::File::open(&self.scratch) {
                Ok(mut file) => {
                    let mut digest = Sha256::new();
                    io::copy(&mut file, &mut digest)?;
                    self.prefix.replace(&listed.name, &self.scratch, &format!("{:x}", digest.finalize()))?;
                }
                // No row is left.
                Err(error) if error.kind() == io::ErrorKind::NotFound => self.prefix.remove(&listed.name)?,
                Err(error) => return Err(error),
            }
            Ok(removed)
        });
        self.clean();
        removed
    }

    /// Removes what is here of an object, as it may hold what must not stay.
    pub(super) fn clean(&self) {
        for file in [&self.scratch, &temporary(&self.scratch)] {
            // Mostly it is not there.
            let _ = std::fs::remove_file(file);
        }
    }

    /// Opens an object, unless its Bloom filters rule out that a column has one of these texts, or it is gone.
    fn open(
        &self,
        listed: &Listed,
        column: &str,
        texts: &mut dyn Iterator<Item = &str>,
    ) -> io::Result<Option<ParquetRecordBatchReaderBuilder<Object>>> {
        let texts: Vec<&str> = texts.collect();
        let object = Object::new(self.prefix, listed.clone());
        let builder = match ParquetRecordBatchReaderBuilder::try_new(object) {
            Ok(builder) => builder,
            Err(parquet::errors::ParquetError::External(cause)) => match cause.downcast::<io::Error>() {
                Ok(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Ok(error) => return Err(*error),
                Err(cause) => return Err(io::Error::other(format!("{}: {cause}", self.at(listed).display()))),
            },
            Err(error) => return Err(io::Error::other(format!("{}: {error}", self.at(listed).display()))),
        };
        let mut may_hold = false;
        for (group, metadata) in builder.metadata().row_groups().iter().enumerate() {
            let at = metadata.columns().iter().position(|known| known.column_path().string() == column);
            let Some(at) = at else { continue };
            let length = metadata.column(at).bloom_filter_length();
            let filter = if length.is_some_and(|bytes| !FILTER_BYTES.contains(&bytes)) {
                None
            } else {
                // One that cannot be read rules out nothing.
                builder.get_row_group_column_bloom_filter(group, at).unwrap_or(None)
            };
            may_hold |= filter.is_none_or(|filter| texts.iter().any(|text| filter.check(text.as_bytes())));
        }
        Ok(may_hold.then_some(builder))
    }

    fn at(&self, listed: &Listed) -> PathBuf {
        PathBuf::from(format!("{}/{}", self.prefix, listed.name))
    }
}
