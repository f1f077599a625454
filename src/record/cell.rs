//! The value of a column in one row of a record that is in a frame.

use super::stream::Stream;
use super::view::{PredictionView, element_width};
use crate::columns::{Cell, Column, Side};

impl Stream {
    /// The value of a column in a row of a prediction of this stream; rows count from 0 to [`PredictionView::records`]. Dropped and hashed
    /// columns are hidden; a masked text is as it is stored.
    ///
    /// The column must come from this stream's signature. Where the record is of a whole request although its inputs have rows, a row has no
    /// values.
    #[must_use]
    #[allow(dead_code, reason = "segments and drift read it")]
    pub(crate) fn cell<'f>(&self, view: &PredictionView<'f>, column: &Column, row: usize) -> Cell<'f> {
        let recorded = match column.side {
            Side::Inputs => &self.inputs,
            Side::Outputs => &self.outputs,
        };
        let Some((at, recorded)) = recorded.iter().enumerate().find(|(_, of)| of.index == column.tensor) else {
            return Cell::Hidden;
        };
        if recorded.hashed {
            return Cell::Hidden;
        }
        let Some(tensor) = view.side(column.side).get(at).and_then(Option::as_ref) else { return Cell::Missing };
        let width = element_width(recorded);
        let elements = width.map_or_else(|| tensor.shape.elements().unwrap_or(0), |width| tensor.bytes.len() / width);
        let (each, row) = match (column.per_row, view.rows) {
            (true, None) => return Cell::Missing,
            (true, Some(_)) => (elements / view.records(), row),
            (false, _) => (elements, 0),
        };
        if column.element >= each || row >= view.records() {
            return Cell::Missing;
        }
        let index = row * each + column.element;
        match width {
            Some(width) => {
                let bytes = tensor.bytes.get(index * width..(index + 1) * width);
                bytes.map_or(Cell::Missing, |bytes| Cell::of_bytes(recorded.spec.datatype, bytes))
            }
            None => tensor.texts().nth(index).map_or(Cell::Missing, Cell::Text),
        }
    }
}
