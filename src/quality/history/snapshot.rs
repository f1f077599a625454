//! The rows of a model at one moment.

use super::{Layout, Row};
use crate::model::Version;
use std::sync::Arc;

/// The rows of a model at one moment. Cheap to make: it shares the rows with the store until they change.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    pub(super) arms: Vec<ArmOf>,
    pub(super) chunks: Vec<Arc<Vec<Row>>>,
    pub(super) texts: Arc<Vec<Box<str>>>,
    pub(super) values: Arc<Vec<Box<str>>>,
    pub(super) from: i64,
}

/// A version on an arm.
#[derive(Debug, Clone)]
pub struct ArmOf {
    pub version: Version,
    pub name: Arc<str>,
    pub layout: Arc<Layout>,
    /// How often its requests were halved: 2 to the power of minus this is the share that is kept.
    pub halvings: u32,
}

impl ArmOf {
    /// The share of its requests that is kept.
    #[must_use]
    pub fn share(&self) -> f64 {
        (-f64::from(self.halvings)).exp2()
    }
}

impl Snapshot {
    pub fn rows(&self) -> impl Iterator<Item = &Row> {
        let from = self.from;
        self.chunks.iter().flat_map(|chunk| chunk.iter()).filter(move |row| row.ts >= from)
    }

    /// The same rows without those before `from`.
    #[must_use]
    pub fn since(&self, from: i64) -> Snapshot {
        Snapshot { from: self.from.max(from), ..self.clone() }
    }

    #[must_use]
    pub fn arms(&self) -> &[ArmOf] {
        &self.arms
    }

    /// The arm of a row.
    ///
    /// # Panics
    /// For a row of another snapshot.
    #[must_use]
    pub fn arm(&self, row: &Row) -> &ArmOf {
        &self.arms[usize::from(row.arm)]
    }

    /// A text of a cell.
    #[must_use]
    pub fn text(&self, number: u32) -> &str {
        self.texts.get(number as usize).map_or("", |text| text)
    }

    /// The names of business values; their numbers are the places.
    #[must_use]
    pub fn value_names(&self) -> &[Box<str>] {
        &self.values
    }

    /// The number of a value's name. `None` if no feedback ever had it.
    #[must_use]
    pub fn value_number(&self, name: &str) -> Option<u16> {
        self.values.iter().position(|known| **known == *name).and_then(|at| u16::try_from(at).ok())
    }
}
