//! `[drift]` of `model.toml`.

use crate::columns::{Column, ElementNames, resolve};
use crate::model::Signature;
use std::collections::BTreeMap;

/// What is watched of a model, and how often it may alarm by chance.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Default true.
    pub enabled: bool,
    /// False alarms per year that are accepted, over all columns, arms and windows of the model. Default 1.
    pub false_alarms_per_year: f64,
    /// The least Jensen-Shannon distance that matters. Default 0.05: a shift of a normal distribution by 0.12 standard deviations, or a new
    /// value in 0.5 % of the rows.
    pub floor: f64,
    /// The same for single columns, by any form of their names.
    pub floors: BTreeMap<String, f64>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings { enabled: true, false_alarms_per_year: 1.0, floor: 0.05, floors: BTreeMap::new() }
    }
}

impl Settings {
    /// The most single columns with a floor of their own.
    pub const MAX_FLOORS: usize = 1000;

    pub(super) fn floor_of(&self, column: &Column) -> f64 {
        let short = column.name.split_once('.').map(|(_, short)| short);
        let names = [Some(column.name.as_str()), column.element_name.as_deref(), short];
        names.into_iter().flatten().find_map(|name| self.floors.get(name)).copied().unwrap_or(self.floor)
    }

    /// Floors of columns that do not exist.
    pub(super) fn complaints(&self, signature: &Signature, names: &ElementNames) -> Vec<String> {
        let wrong = self.floors.keys().filter_map(|name| resolve(signature, names, name).err());
        wrong.map(|error| format!("[drift.floors] in model.toml: {error}")).collect()
    }
}
