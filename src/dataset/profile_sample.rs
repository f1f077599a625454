//! Whole rows for a profile, drawn at random in one pass.

use crate::columns::{Cell, Side};
use crate::profile::{Profile, Sample, SampleValue};
use std::collections::HashMap;

/// The most bytes of all texts and names together.
const MAX_BYTES: usize = 1 << 20;

/// Rows that are drawn: each with the same probability (reservoir sampling), and with the same result each time.
#[derive(Debug)]
pub(super) struct Drawn {
    most: usize,
    seen: usize,
    random: fastrand::Rng,
    /// Of the rows that are added now: their places among the drawn ones, by row.
    chosen: Vec<(usize, usize)>,
    rows: Vec<Row>,
    /// The names of columns, and their places.
    columns: Vec<String>,
    places: HashMap<String, usize>,
    /// There are more columns than a sample has.
    is_too_wide: bool,
}

#[derive(Debug, Default)]
struct Row {
    values: Vec<(usize, SampleValue)>,
    /// A text is too long, or not UTF-8: the row cannot be kept as it is.
    is_unfit: bool,
}

impl Drawn {
    pub(super) fn new(most: usize) -> Drawn {
        Drawn {
            most: most.min(Sample::MAX_ROWS),
            seen: 0,
            random: fastrand::Rng::with_seed(0),
            chosen: Vec::new(),
            rows: Vec::new(),
            columns: Vec::new(),
            places: HashMap::new(),
            is_too_wide: false,
        }
    }

    /// Begins with the next rows. Those of before are complete.
    pub(super) fn begin(&mut self, rows: usize) {
        self.chosen.clear();
        for row in 0..if self.most > 0 { rows } else { 0 } {
            self.seen += 1;
            let place = if self.rows.len() < self.most {
                self.rows.push(Row::default());
                self.rows.len() - 1
            } else {
                self.random.usize(..self.seen)
            };
            if place < self.most {
                self.chosen.retain(|(_, other)| *other != place);
                self.chosen.push((row, place));
                self.rows[place] = Row::default();
            }
        }
    }

    /// Keeps the value of a column in a row, if the row is drawn. `element`: its index in a list.
    pub(super) fn take(&mut self, name: &str, element: Option<usize>, row: usize, cell: Cell) {
        let Ok(at) = self.chosen.binary_search_by_key(&row, |(row, _)| *row) else { return };
        if name.strip_prefix(Side::Outputs.as_str()).is_some_and(|rest| rest.starts_with('.')) {
            return;
        }
        let value = match cell {
            Cell::Missing | Cell::Hidden => None,
            Cell::Number(number) => Some(SampleValue::Number(number)).filter(|_| number.is_finite()),
            Cell::Bool(bool) => Some(SampleValue::Bool(bool)),
            Cell::Text(text) => {
                if let Some(text) = std::str::from_utf8(text).ok().filter(|text| text.len() <= Profile::MAX_TEXT) {
                    Some(SampleValue::Text(text.to_owned()))
                } else {
                    self.rows[self.chosen[at].1].is_unfit = true;
                    None
                }
            }
        };
        let name = element.map_or_else(|| name.to_owned(), |element| format!("{name}[{element}]"));
        if let (Some(column), Some(value)) = (self.column(name), value) {
            self.rows[self.chosen[at].1].values.push((column, value));
        }
    }

    fn column(&mut self, name: String) -> Option<usize> {
        if let Some(known) = self.places.get(&name) {
            return Some(*known);
        }
        if self.columns.len() >= Sample::MAX_COLUMNS {
            self.is_too_wide = true;
            return None;
        }
        self.columns.push(name.clone());
        self.places.insert(name, self.columns.len() - 1);
        Some(self.columns.len() - 1)
    }

    /// The sample. `None` where no rows were asked for or fit.
    ///
    /// # Errors
    /// In words, why there can be none.
    pub(super) fn finish(self) -> Result<Option<Sample>, String> {
        if self.is_too_wide {
            return Err(format!("no whole rows are kept: they have more than {} columns", Sample::MAX_COLUMNS));
        }
        let mut bytes: usize = self.columns.iter().map(String::len).sum();
        let n = self.columns.len();
        let row = |row: &Row| {
            let mut values = vec![None; n];
            row.values.iter().for_each(|(column, value)| values[*column] = Some(value.clone()));
            values
        };
        let size = |row: &Row| {
            let size = |value: &SampleValue| if let SampleValue::Text(text) = value { text.len() } else { 8 };
            row.values.iter().map(|(_, value)| size(value)).sum::<usize>()
        };
        let fits = |row: &&Row| {
            bytes += size(row);
            bytes <= MAX_BYTES
        };
        let rows: Vec<_> = self.rows.iter().filter(|row| !row.is_unfit).take_while(fits).map(row).collect();
        Ok((!rows.is_empty() && n > 0).then_some(Sample { columns: self.columns, rows }))
    }
}
