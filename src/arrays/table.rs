//! What the table formats have in common.

use super::values::Values;

/// A file with columns.
pub(super) trait Table {
    /// The names of the columns, in the order of the file.
    fn names(&self) -> &[String];

    /// The elements of a column, with the number of elements of each row: 1, or the length of its lists.
    ///
    /// # Errors
    /// When it cannot be read, has another type, or lists of different lengths.
    fn column(&mut self, index: usize) -> Result<Column, String>;
}

/// A column.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Column {
    pub(super) values: Values,
    /// `None` for a column of single elements.
    pub(super) list: Option<usize>,
}
