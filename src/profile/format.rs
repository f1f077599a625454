//! The file `profile.json`.

use super::sample::Sample;
use crate::columns::{self, Column, ElementNames, Kind};
use crate::model::{Signature, quoted};
use crate::tensor::DataType;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What the values of a version's columns looked like in a sample of rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// The version of the format: 1, or 2 with a sample of rows.
    pub format: u32,
    /// Rows that were seen.
    pub rows: u64,
    /// The time of the rows, RFC 3339, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<jiff::Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<jiff::Timestamp>,
    /// Where the rows came from, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Figures of the training, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metrics: BTreeMap<String, f64>,
    /// By the name of the column, in any form that docs/MONITORING.md allows.
    pub columns: BTreeMap<String, ColumnProfile>,
    /// Whole rows, at most [`Sample::MAX_ROWS`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample: Option<Sample>,
}

/// The values of one column.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ColumnProfile {
    /// Rows that were counted: those in `bins`, the missing and the non-finite ones.
    pub count: u64,
    /// Rows without a value, NaN included.
    #[serde(default)]
    pub missing: u64,
    /// Infinite values.
    #[serde(default)]
    pub nonfinite: u64,
    #[serde(flatten)]
    pub bins: Bins,
    /// Of the finite numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variance: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
}

/// Counts of the values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Bins {
    /// `counts[i]` numbers are at least `edges[i - 1]` and below `edges[i]`: there is one count more than edges.
    Numeric { edges: Vec<f64>, counts: Vec<u64> },
    /// The most frequent values with their counts. Numbers as their shortest decimal form, booleans `true` and `false`.
    Categorical {
        values: Vec<(String, u64)>,
        /// Rows with any other value.
        #[serde(default)]
        rest: u64,
    },
}

/// The columns of a signature that a profile describes.
#[derive(Debug, Clone, Default)]
pub struct Bound {
    pub columns: Vec<(Column, ColumnProfile)>,
    /// What cannot be used, in words.
    pub complaints: Vec<String>,
}

impl Profile {
    /// The name of the file in a version's directory.
    pub const FILE: &'static str = "profile.json";
    pub const FORMAT: u32 = 1;
    /// With a sample of rows, which servers that know only format 1 cannot read.
    pub const FORMAT_WITH_SAMPLE: u32 = 2;
    /// Limits of a file.
    pub const MAX_BYTES: u64 = 16 << 20;
    pub const MAX_COLUMNS: usize = 2000;
    /// Limits of a column.
    pub const MAX_BINS: usize = 100;
    pub const MAX_VALUES: usize = 200;
    /// Bytes of a name or a value.
    pub const MAX_TEXT: usize = 500;
    /// Counts beyond this are not exact in a 64-bit floating-point number.
    const MAX_COUNT: u64 = 1 << 53;

    /// Reads a file.
    ///
    /// # Errors
    /// In words: what is wrong, expected and found.
    pub fn parse(bytes: &[u8]) -> Result<Profile, String> {
        if bytes.len() as u64 > Profile::MAX_BYTES {
            return Err(format!("{} bytes: expected at most {}", bytes.len(), Profile::MAX_BYTES));
        }
        let mut profile: Profile = serde_json::from_slice(bytes).map_err(|e| format!("not a profile: {e}"))?;
        if !(Profile::FORMAT..=Profile::FORMAT_WITH_SAMPLE).contains(&profile.format) {
            let (format, newest) = (profile.format, Profile::FORMAT_WITH_SAMPLE);
            return Err(format!("format {format}: this server reads the formats {} to {newest}", Profile::FORMAT));
        }
        profile.sample.iter().try_for_each(Sample::check)?;
        if profile.columns.len() > Profile::MAX_COLUMNS {
            let found = profile.columns.len();
            return Err(format!("{found} columns: expected at most {}", Profile::MAX_COLUMNS));
        }
        for (name, column) in &mut profile.columns {
            let wrong = |why: String| format!("the column {}: {why}", quoted(name));
            if name.len() > Profile::MAX_TEXT {
                return Err(wrong(format!("a name of {} bytes: expected at most {}", name.len(), Profile::MAX_TEXT)));
            }
            column.check().map_err(wrong)?;
        }
        Ok(profile)
    }

    /// The text of the file.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).map(|text| text + "\n").expect("numbers and texts are JSON")
    }

    /// The columns of a signature that this profile describes, in the signature's order.
    #[must_use]
    pub fn bind(&self, signature: &Signature, names: &ElementNames) -> Bound {
        let mut bound = Bound::default();
        for (name, column) in &self.columns {
            match columns::resolve(signature, names, name) {
                Err(error) => bound.complaints.push(error.to_string()),
                Ok(found) if bound.columns.iter().any(|(known, _)| known.name == found.name) => {
                    bound.complaints.push(format!("{} is described twice, once as {}", found.name, quoted(name)));
                }
                Ok(found) => match column.clone().for_column(&found) {
                    Ok(column) => bound.columns.push((found, column)),
                    Err(why) => bound.complaints.push(format!("{}: {why}", found.name)),
                },
            }
        }
        bound.columns.sort_by_key(|(column, _)| (column.side, column.tensor, column.element));
        bound
    }
}

impl ColumnProfile {
    fn check(&mut self) -> Result<(), String> {
        fn sum(counts: impl IntoIterator<Item = u64>) -> Option<u64> {
            counts.into_iter().try_fold(0, u64::checked_add)
        }
        let binned = match &self.bins {
            Bins::Numeric { edges, counts } => {
                if counts.len() != edges.len() + 1 || counts.len() > Profile::MAX_BINS {
                    let (counts, edges) = (counts.len(), edges.len());
                    let most = Profile::MAX_BINS;
                    return Err(format!(
                        "{counts} counts for {edges} edges: expected one count more, and at most {most} counts"
                    ));
                }
                if !edges.iter().all(|edge| edge.is_finite()) || !edges.windows(2).all(|pair| pair[0] < pair[1]) {
                    return Err("its edges are expected to be finite and to increase".to_owned());
                }
                sum(counts.iter().copied())
            }
            Bins::Categorical { values, rest } => {
                if values.len() > Profile::MAX_VALUES {
                    return Err(format!("{} values: expected at most {}", values.len(), Profile::MAX_VALUES));
                }
                if let Some((text, _)) = values.iter().find(|(text, _)| text.len() > Profile::MAX_TEXT) {
                    return Err(format!("a value of {} bytes: expected at most {}", text.len(), Profile::MAX_TEXT));
                }
                sum(values.iter().map(|(_, count)| *count).chain([*rest]))
            }
        };
        let total = binned.and_then(|binned| sum([binned, self.missing, self.nonfinite]));
        match total.filter(|total| *total <= Profile::MAX_COUNT) {
            Some(total) if total == self.count => {}
            Some(total) => return Err(format!("its counts add up to {total}, and count is {}", self.count)),
            None => return Err(format!("its counts are too large: expected at most {}", Profile::MAX_COUNT)),
        }
        if self.variance.is_some_and(|variance| variance < 0.0) {
            return Err("its variance is negative".to_owned());
        }
        Ok(())
    }

    /// The profile with values as a column has them: numbers in the precision of its type, and texts as they are compared. 0.7 of a training
    /// set is not the 32-bit number that a request sends, so edges and values are rounded.
    fn for_column(mut self, column: &Column) -> Result<ColumnProfile, String> {
        let round = |number: f64| rounded(number, column.datatype);
        if let Bins::Numeric { edges, counts } = &mut self.bins {
            for edge in edges.iter_mut() {
                *edge = round(*edge);
            }
            // Edges that become equal have no number between them.
            for at in (1..edges.len()).rev() {
                if edges[at] <= edges[at - 1] {
                    edges.remove(at);
                    let count = counts.remove(at);
                    counts[at] += count;
                }
            }
        }
        match (&mut self.bins, column.kind) {
            (Bins::Numeric { .. }, Kind::Text) => {
                Err("its profile is numeric, and the column has strings: expected a categorical one".to_owned())
            }
            (Bins::Numeric { .. }, Kind::Bool) => {
                Err("its profile is numeric, and the column has booleans: expected a categorical one".to_owned())
            }
            (Bins::Categorical { values, .. }, Kind::Integer | Kind::Float) => {
                let number = |text: &str| text.trim().parse::<f64>().ok().filter(|n| n.is_finite());
                for (text, _) in values.iter_mut() {
                    let Some(number) = number(text) else {
                        return Err(format!("its profile has the value {}, and the column has numbers", quoted(text)));
                    };
                    // 0 and -0 are one value.
                    *text = (round(number) + 0.0).to_string();
                }
                // Values that are equal now are one.
                values.sort();
                values.dedup_by(|(text, count), (kept, sum)| {
                    let same = text == kept;
                    *sum += if same { *count } else { 0 };
                    same
                });
                values.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
                Ok(self)
            }
            (Bins::Categorical { values, .. }, Kind::Bool) => {
                for (text, _) in values.iter_mut() {
                    *text = match text.to_ascii_lowercase().as_str() {
                        "true" | "1" => "true".to_owned(),
                        "false" | "0" => "false".to_owned(),
                        _ => {
                            return Err(format!("its profile has the value {}: expected true and false", quoted(text)));
                        }
                    };
                }
                Ok(self)
            }
            (Bins::Categorical { .. }, Kind::Text) | (Bins::Numeric { .. }, _) => Ok(self),
        }
    }
}

/// A number in the precision of a type. One that is too large for it stays as it is.
fn rounded(number: f64, datatype: DataType) -> f64 {
    #[expect(clippy::cast_possible_truncation, reason = "the precision of the type is what is asked for")]
    let narrow = match datatype {
        DataType::Fp32 => f64::from(number as f32),
        DataType::Fp16 => f64::from(half::f16::from_f64(number)),
        _ => number,
    };
    if narrow.is_finite() { narrow } else { number }
}
