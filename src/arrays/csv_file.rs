//! Reads `.csv` files whose first line has the names of the columns.

use super::MAX_BYTES;
use super::table::{Column, Table};
use super::values::{Cells, Values};
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

/// The most columns.
const MAX_COLUMNS: usize = 10_000;

/// All cells of a file.
#[derive(Debug)]
pub(super) struct Csv {
    names: Vec<String>,
    columns: Vec<Cells>,
}

impl Csv {
    pub(super) fn open(path: &Path) -> Result<Csv, String> {
        let not_read = |e: csv::Error| format!("cannot read it: {e}");
        let file = File::open(path).map_err(|e| format!("cannot read it: {e}"))?;
        if file.metadata().map_err(|e| format!("cannot read it: {e}"))?.len() > MAX_BYTES as u64 {
            return Err(format!("it is larger than {MAX_BYTES} bytes"));
        }
        // It may grow while it is read.
        let mut reader = csv::Reader::from_reader(file.take(MAX_BYTES as u64));
        let header = reader.headers().map_err(not_read)?;
        let names: Vec<String> =
            header.iter().map(|name| name.trim_start_matches('\u{feff}').trim().to_owned()).collect();
        if names.len() > MAX_COLUMNS {
            return Err(format!("it has {} columns, the limit is {MAX_COLUMNS}", names.len()));
        }
        let mut columns = vec![Cells::default(); names.len()];
        let mut record = csv::StringRecord::new();
        // The reader refuses rows of another length.
        while reader.read_record(&mut record).map_err(not_read)? {
            columns.iter_mut().zip(&record).for_each(|(column, cell)| column.push(cell));
        }
        Ok(Csv { names, columns })
    }
}

impl Table for Csv {
    fn names(&self) -> &[String] {
        &self.names
    }

    fn column(&mut self, index: usize) -> Result<Column, String> {
        Ok(Column { values: Values::Cells(self.columns[index].clone()), list: None })
    }
}
