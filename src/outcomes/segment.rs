//! Groups rows by an input.

use crate::quality::history::Cell;
use crate::quality::{Layout, Row, Snapshot};

/// The most segments. The others, with fewer rows, are put together.
pub(super) const MAX_SEGMENTS: usize = 50;
/// A column of numbers with more different values than this is cut into quarters.
const MAX_NUMBERS: usize = 20;

/// How the rows of a snapshot are grouped.
#[derive(Debug)]
pub(super) struct Segments {
    /// The place of the column in each arm's cells.
    places: Vec<Option<usize>>,
    /// The upper ends of all quarters but the last, where numbers are cut.
    cuts: Option<[f32; 3]>,
}

/// The places of a column in the cells of a layout: its full name `inputs.NAME` or `inputs.NAME[i]`, or without `inputs.`.
fn place(layout: &Layout, column: &str) -> Option<usize> {
    let is = |name: &str| name == column || name.strip_prefix("inputs.") == Some(column);
    layout.cells.iter().position(|name| is(name))
}

impl Segments {
    /// `None` if no arm has the column.
    pub(super) fn new(snapshot: &Snapshot, column: &str) -> Option<Segments> {
        let places: Vec<Option<usize>> = snapshot.arms().iter().map(|arm| place(&arm.layout, column)).collect();
        if places.iter().all(Option::is_none) {
            return None;
        }
        let mut segments = Segments { places, cuts: None };
        let mut numbers: Vec<f32> = Vec::new();
        for row in snapshot.rows() {
            if let Some(Cell::Number(number)) = segments.cell(row) {
                numbers.push(number);
            }
        }
        numbers.sort_by(f32::total_cmp);
        let different = numbers.chunk_by(|a, b| a == b).count();
        if different > MAX_NUMBERS {
            let quantile = |quarter: usize| numbers[(numbers.len() * quarter / 4).min(numbers.len() - 1)];
            segments.cuts = Some([quantile(1), quantile(2), quantile(3)]);
        }
        Some(segments)
    }

    fn cell(&self, row: &Row) -> Option<Cell> {
        let place = self.places.get(usize::from(row.arm)).copied().flatten()?;
        row.cell(place)
    }

    /// The name of a row's segment.
    pub(super) fn of(&self, row: &Row, snapshot: &Snapshot) -> String {
        match (self.cell(row), self.cuts) {
            (None | Some(Cell::Missing), _) => "(missing)".to_owned(),
            (Some(Cell::Other), _) => OTHER.to_owned(),
            (Some(Cell::Text(number)), _) => snapshot.text(number).to_owned(),
            (Some(Cell::Number(number)), None) => number.to_string(),
            (Some(Cell::Number(number)), Some([first, second, third])) => match number {
                n if n < first => format!("below {first}"),
                n if n < second => format!("{first} to below {second}"),
                n if n < third => format!("{second} to below {third}"),
                _ => format!("{third} and above"),
            },
        }
    }
}

/// The segment of all rows that have none of their own.
pub(super) const OTHER: &str = "(other)";
