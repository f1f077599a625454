//! Tables in JSON, row by row: `dataframe_split`, and objects with the values of one row each.

use super::plan::{Model, Plan};
use super::{invalid, wrong};
use crate::codec::json::{Reader, Seen, Syntax};
use crate::codec::tfs::{Column, Style, TfsRequest};
use crate::model::{Failure, NamedTensor, names, quoted};
use bytes::Bytes;
use std::borrow::Cow;
use std::collections::HashMap;

/// Rows that are objects, or (in lines) lists of the values of the only input.
#[derive(Debug, Clone)]
pub(super) struct Records {
    /// The offset of the list, or of the first line.
    start: usize,
    rows: usize,
    layout: Layout,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    Records,
    Instances,
    Lines,
}

/// `{"columns": […], "index": […], "data": [[…], …]}`.
#[derive(Debug, Clone)]
pub(super) struct Split {
    /// The offset of the list of names. Without it the columns have no names.
    columns: Option<usize>,
    data: usize,
    rows: usize,
}

/// The rows of a list, or of lines.
struct Items<'a> {
    reader: Reader<'a>,
    lines: bool,
    first: bool,
}

impl Items<'_> {
    fn next(&mut self) -> Result<bool, Syntax> {
        if self.lines { Ok(self.reader.peek().is_some()) } else { self.reader.next_item(&mut self.first) }
    }
}

// === impl Records ===

impl Records {
    /// Finds the rows of `dataframe_records`, at the cursor.
    pub(super) fn parse(reader: &mut Reader<'_>) -> Result<Records, Failure> {
        let start = reader.offset();
        let rows = count(reader, "dataframe_records", "objects", b'{')?;
        Ok(Records { start, rows, layout: Layout::Records })
    }

    /// The rows of `instances`, which are objects.
    pub(super) fn of_instances(request: &TfsRequest) -> Records {
        let rows = if let Style::Rows(rows) = request.style() { rows } else { 0 };
        Records { start: request.start(), rows, layout: Layout::Instances }
    }

    /// Finds the rows of a body with one in each line.
    pub(super) fn of_lines(body: &Bytes) -> Result<Records, Failure> {
        let mut reader = Reader::new(body);
        reader.peek();
        reader.refuse_byte_order_mark()?;
        let mut rows = 0;
        while let Some(first) = reader.peek() {
            if !matches!(first, b'{' | b'[') {
                let start = reader.offset();
                reader.skip_value()?;
                let got = reader.excerpt(start);
                return Err(invalid(format!("row {rows} is expected to be an object or a list, got {got}")));
            }
            let value = reader.skip_value()?;
            rows += 1;
            let rest = &reader.text()[value.end..];
            let space = rest.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
            if space < rest.len() && !rest[..space].contains(&b'\n') {
                return Err(reader.syntax("the end of the line").into());
            }
        }
        if rows == 0 {
            return Err(invalid("the body is empty: expected a row of JSON in each line"));
        }
        Ok(Records { start: 0, rows, layout: Layout::Lines })
    }

    pub(super) fn style(&self) -> Style {
        if self.layout == Layout::Instances { Style::Named } else { Style::Records(self.rows) }
    }

    pub(super) fn decode(&self, reader: Reader<'_>, model: Model<'_>) -> Result<Vec<NamedTensor>, Failure> {
        let mut items = Items { reader: reader.at(self.start), lines: self.layout == Layout::Lines, first: true };
        if !items.lines {
            items.reader.bump();
        }
        let mut table: Option<Table<'_, '_>> = None;
        let mut row = 0;
        while items.next()? {
            items.reader.peek();
            let start = items.reader.offset();
            if !items.reader.eat(b'{') {
                if row == 0 && items.reader.peek() == Some(b'[') {
                    return self.values(items, model);
                }
                let got = items.reader.excerpt(start);
                return Err(invalid(format!("row {row} is expected to be an object like the first one, got {got}")));
            }
            let table = match &mut table {
                Some(table) => table,
                none => none.insert(Table::of(items.reader, model, self.rows)?),
            };
            table.row(&mut items.reader, row)?;
            row += 1;
        }
        table.map_or_else(|| Ok(Vec::new()), |table| table.plan.finish(row))
    }

    /// Lines with lists: each is a row of the only input. The cursor is at the first one.
    fn values(&self, mut items: Items<'_>, model: Model<'_>) -> Result<Vec<NamedTensor>, Failure> {
        let specs = model.signature.inputs();
        let [spec] = specs else {
            return Err(invalid(format!(
                "row 0 is a list, but expected an object that names the inputs: {}",
                names(specs)
            )));
        };
        let mut column = Column::new(spec, self.rows, &items.reader)?;
        for row in 0..self.rows {
            items.reader.peek();
            column.read(&mut items.reader).map_err(|failure| failure.within(&format!("row {row}: ")))?;
        }
        Ok(vec![column.finish(Some(self.rows))?])
    }
}

/// The columns of objects, in the order of the first one.
struct Table<'a, 's> {
    names: Vec<Cow<'a, str>>,
    /// The places of the names. Made when a row has another order.
    places: HashMap<Cow<'a, str>, usize>,
    /// The offsets of the values of a row that come before their turn, by place; 0 where there is none. As large as `names`, or empty.
    late: Vec<usize>,
    plan: Plan<'s>,
}

impl<'a, 's> Table<'a, 's> {
    /// Reads the names of the first row. The `{` has been consumed.
    fn of(mut reader: Reader<'a>, model: Model<'s>, rows: usize) -> Result<Table<'a, 's>, Failure> {
        let (mut columns, mut first) = (Vec::new(), true);
        while let Some(name) = reader.next_member(&mut first)? {
            reader.skip_value()?;
            reader.room(&mut columns, 1)?;
            columns.push(name);
        }
        let targets = model.targets(&columns)?;
        let plan = Plan::new(model, targets, rows, false, &reader)?;
        Ok(Table { names: columns, places: HashMap::new(), late: Vec::new(), plan })
    }

    /// Reads one row. The `{` has been consumed.
    fn row(&mut self, reader: &mut Reader<'a>, row: usize) -> Result<(), Failure> {
        // The values of a row are read in the order of the first row.
        let (mut at, mut first) = (0, true);
        while let Some(name) = reader.next_member(&mut first)? {
            if self.names.get(at).is_some_and(|expected| *expected == name)
                && self.late.get(at).is_none_or(|at| *at == 0)
            {
                self.value(at, reader, row)?;
                at += 1;
                continue;
            }
            let place = self.place(&name, reader)?.ok_or_else(|| {
                wrong(format!("row {row}: unknown column {}: the first row does not have it", quoted(&name)))
            })?;
            reader.peek();
            if place < at || std::mem::replace(&mut self.late[place], reader.offset()) != 0 {
                return Err(invalid(format!("row {row}: column {} is given more than once", quoted(&name))));
            }
            reader.skip_value()?;
        }
        for column in at..self.names.len() {
            match self.late.get_mut(column).map_or(0, std::mem::take) {
                0 => return Err(wrong(format!("row {row}: column {} is missing", quoted(&self.names[column])))),
                start => self.value(column, &mut reader.at(start), row)?,
            }
        }
        Ok(())
    }

    fn value(&mut self, column: usize, reader: &mut Reader<'a>, row: usize) -> Result<(), Failure> {
        let read = self.plan.read(column, reader);
        read.map_err(|failure| failure.within(&format!("row {row}, column {}: ", quoted(&self.names[column]))))
    }

    /// The place of a name that comes out of order.
    fn place(&mut self, name: &str, reader: &Reader<'_>) -> Result<Option<usize>, Syntax> {
        if self.places.is_empty() {
            reader.grow(self.names.len() * 64)?;
            self.places = self.names.iter().cloned().enumerate().map(|(place, name)| (name, place)).collect();
            reader.room(&mut self.late, self.names.len())?;
            self.late.resize(self.names.len(), 0);
        }
        Ok(self.places.get(name).copied())
    }
}

// === impl Split ===

impl Split {
    /// Finds the parts of `dataframe_split`, at the cursor.
    pub(super) fn parse(reader: &mut Reader<'_>) -> Result<Split, Failure> {
        const MEMBERS: [&str; 3] = ["columns", "index", "data"];
        let start = reader.offset();
        if !reader.eat(b'{') {
            reader.skip_value()?;
            let got = reader.excerpt(start);
            return Err(invalid(format!(
                "dataframe_split: expected an object with \"columns\" and \"data\", got {got}"
            )));
        }
        let (mut columns, mut data, mut first) = (None, None, true);
        let mut seen = Seen::new(&MEMBERS);
        while let Some(member) = reader.next_member(&mut first)? {
            if seen.is_repeated(&member) {
                return Err(invalid(format!("dataframe_split: member {member:?} is given more than once")));
            }
            reader.peek();
            let start = reader.offset();
            match &*member {
                "columns" => {
                    let mut ahead = *reader;
                    reader.skip_value()?;
                    columns = (ahead.peek() != Some(b'n')).then_some(start);
                }
                "data" => data = Some((start, count(reader, "dataframe_split: data", "rows", b'[')?)),
                _ => {
                    reader.skip_value()?;
                }
            }
        }
        let (data, rows) =
            data.ok_or_else(|| invalid("dataframe_split: member \"data\" is missing: expected a list of rows"))?;
        Ok(Split { columns, data, rows })
    }

    pub(super) fn style(&self) -> Style {
        Style::Records(self.rows)
    }

    pub(super) fn decode(&self, reader: Reader<'_>, model: Model<'_>) -> Result<Vec<NamedTensor>, Failure> {
        let columns = self.columns.map(|start| column_names(reader.at(start))).transpose()?.flatten();
        let targets = match &columns {
            Some(columns) => model.targets(columns)?,
            None => model.in_order(values_of_first(reader.at(self.data))?)?,
        };
        let mut plan = Plan::new(model, targets, self.rows, false, &reader)?;
        let shown = |column: usize| columns.as_ref().map_or_else(|| column.to_string(), |names| quoted(&names[column]));
        let mut reader = reader.at(self.data);
        reader.bump();
        let (mut row, mut first_row) = (0, true);
        while reader.next_item(&mut first_row)? {
            reader.eat(b'[');
            let (mut column, mut first) = (0, true);
            while reader.next_item(&mut first)? {
                if column == plan.columns() {
                    return Err(wrong_length(row, "more", column));
                }
                let read = plan.read(column, &mut reader);
                read.map_err(|failure| failure.within(&format!("row {row}, column {}: ", shown(column))))?;
                column += 1;
            }
            if column < plan.columns() {
                return Err(wrong_length(row, &column.to_string(), plan.columns()));
            }
            row += 1;
        }
        plan.finish(row)
    }
}

fn wrong_length(row: usize, got: &str, expected: usize) -> Failure {
    invalid(format!("dataframe_split: row {row} is expected to have {expected} values, one for each column, got {got}"))
}

/// The names of columns. `None` for the numbers from 0 on, which pandas gives to columns without names.
fn column_names(mut reader: Reader<'_>) -> Result<Option<Vec<Cow<'_, str>>>, Failure> {
    const EXPECTED: &str = "dataframe_split: \"columns\" is expected to be a list of names";
    let start = reader.offset();
    if !reader.eat(b'[') {
        return Err(invalid(format!("{EXPECTED}, got {}", reader.excerpt(start))));
    }
    let (mut columns, mut first, mut numbered) = (Vec::new(), true, true);
    while reader.next_item(&mut first)? {
        let name = match reader.peek() {
            Some(b'"') => {
                numbered = false;
                reader.string()?
            }
            Some(b'-' | b'0'..=b'9') => {
                let number = reader.skip_value()?;
                String::from_utf8_lossy(&reader.text()[number])
            }
            _ => return Err(invalid(format!("{EXPECTED}, got {} among them", reader.excerpt(reader.offset())))),
        };
        numbered &= *name == *columns.len().to_string();
        reader.room(&mut columns, 1)?;
        columns.push(name);
    }
    Ok((!numbered).then_some(columns))
}

/// The number of values of the first row of a table.
fn values_of_first(mut reader: Reader<'_>) -> Result<usize, Syntax> {
    // Of the table, and of its first row.
    reader.bump();
    reader.eat(b'[');
    let (mut values, mut first) = (0, true);
    while reader.next_item(&mut first)? {
        reader.skip_value()?;
        values += 1;
    }
    Ok(values)
}

/// Counts the rows of a list. Each must begin with this byte.
fn count(reader: &mut Reader<'_>, place: &str, of: &str, begin: u8) -> Result<usize, Failure> {
    let start = reader.offset();
    if !reader.eat(b'[') {
        reader.skip_value()?;
        return Err(invalid(format!("{place}: expected a list of {of}, got {}", reader.excerpt(start))));
    }
    let (mut rows, mut first) = (0, true);
    while reader.next_item(&mut first)? {
        reader.peek();
        let start = reader.offset();
        let begins = reader.peek() == Some(begin);
        reader.skip_value()?;
        if !begins {
            return Err(invalid(format!("{place}: expected a list of {of}, got {} in it", reader.excerpt(start))));
        }
        rows += 1;
    }
    if rows == 0 {
        return Err(invalid(format!("{place}: expected a list of {of}, got an empty one")));
    }
    Ok(rows)
}
