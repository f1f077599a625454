//! The value of a column in one row of a record that is in a frame.

use super::stream::Stream;
use super::view::{PredictionView, element_width, texts};
use crate::columns::{Cell, Column, Side};

impl Stream {
    /// The value of a column in a row of a prediction of this stream; rows count from 0 to [`PredictionView::records`]. Dropped and hashed
    /// columns are hidden; a masked text is as it is stored.
    ///
    /// The column must come from this stream's signature. Where the record is of a whole request although its inputs have rows, a row has no
    /// values.
    #[cfg(test)]
    pub(super) fn cell<'f>(&self, view: &PredictionView<'f>, column: &Column, row: usize) -> Cell<'f> {
        let mut found = Cell::Missing;
        self.cells(view, std::slice::from_ref(column), row, &mut |_, cell| found = cell);
        found
    }

    /// The values of several columns in a row: calls `each` with the index and the value of each. Columns of one tensor that follow each
    /// other are found once.
    pub(crate) fn cells<'f>(
        &self,
        view: &PredictionView<'f>,
        columns: &[Column],
        row: usize,
        each: &mut dyn FnMut(usize, Cell<'f>),
    ) {
        let mut last: Option<(Side, usize, Source<'f>)> = None;
        for (at, column) in columns.iter().enumerate() {
            let source = match &last {
                Some((side, tensor, source)) if (*side, *tensor) == (column.side, column.tensor) => *source,
                _ => {
                    let source = self.source(view, column, row);
                    last = Some((column.side, column.tensor, source));
                    source
                }
            };
            each(at, source.cell(column));
        }
    }

    /// Where the elements of a column's tensor are, in a row.
    fn source<'f>(&self, view: &PredictionView<'f>, column: &Column, row: usize) -> Source<'f> {
        let recorded = match column.side {
            Side::Inputs => &self.inputs,
            Side::Outputs => &self.outputs,
        };
        // Dropped columns are left out, so a column is at its own index or before.
        let mut before = recorded.iter().enumerate().take(column.tensor + 1).rev();
        let Some((at, recorded)) = before.find(|(_, of)| of.index == column.tensor) else { return Source::Hidden };
        if recorded.hashed {
            return Source::Hidden;
        }
        let Some(tensor) = view.side(column.side).get(at).and_then(Option::as_ref) else { return Source::Missing };
        let width = element_width(recorded);
        let elements = width.map_or_else(|| tensor.shape.elements().unwrap_or(0), |width| tensor.bytes.len() / width);
        let (each, row) = match (column.per_row, view.rows) {
            (true, None) => return Source::Missing,
            (true, Some(_)) => (elements / view.records(), row),
            (false, _) => (elements, 0),
        };
        let first = row * each;
        if row >= view.records() {
            return Source::Missing;
        }
        match width {
            Some(width) => match tensor.bytes.get(first * width..(first + each) * width) {
                Some(bytes) => Source::Numbers { bytes, width },
                None => Source::Missing,
            },
            None => Source::Texts { bytes: tensor.bytes, first, each },
        }
    }
}

/// The elements of one tensor in one row.
#[derive(Debug, Clone, Copy)]
enum Source<'f> {
    Missing,
    Hidden,
    Numbers {
        bytes: &'f [u8],
        width: usize,
    },
    /// All texts of the tensor, and which of them are of the row.
    Texts {
        bytes: &'f [u8],
        first: usize,
        each: usize,
    },
}

impl<'f> Source<'f> {
    fn cell(self, column: &Column) -> Cell<'f> {
        match self {
            Source::Missing => Cell::Missing,
            Source::Hidden => Cell::Hidden,
            Source::Numbers { bytes, width } => {
                let bytes = bytes.get(column.element * width..(column.element + 1) * width);
                bytes.map_or(Cell::Missing, |bytes| Cell::of_bytes(column.datatype, bytes))
            }
            Source::Texts { each, .. } if column.element >= each => Cell::Missing,
            Source::Texts { bytes, first, .. } => {
                texts(bytes).nth(first + column.element).map_or(Cell::Missing, Cell::Text)
            }
        }
    }
}
