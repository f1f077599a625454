//! Parsing nested lists into one flat typed buffer, and the shape of the nesting.

use super::elements::{ElementError, FromJson, Rules};
use super::json::{MAX_DEPTH, Reader, Syntax};
use crate::tensor::{Data, DataType, Shape};
use bytes::Bytes;
use half::f16;
use smallvec::SmallVec;

/// Why the values of a tensor could not be parsed.
#[derive(Debug)]
pub(super) enum ParseError {
    /// The body is not valid JSON, so nothing after this point can be parsed.
    Syntax(Syntax),
    /// Valid JSON, but wrong for this tensor: which element or list, what was expected, what was found.
    WrongValue(String),
}

impl From<Syntax> for ParseError {
    fn from(syntax: Syntax) -> ParseError {
        ParseError::Syntax(syntax)
    }
}

/// The elements of one datatype while they are parsed.
#[derive(Debug)]
pub(super) enum Buffer {
    Bool(Vec<bool>),
    Uint8(Vec<u8>),
    Uint16(Vec<u16>),
    Uint32(Vec<u32>),
    Uint64(Vec<u64>),
    Int8(Vec<i8>),
    Int16(Vec<i16>),
    Int32(Vec<i32>),
    Int64(Vec<i64>),
    Fp16(Vec<f16>),
    Fp32(Vec<f32>),
    Fp64(Vec<f64>),
    Bytes(Vec<Bytes>),
}

macro_rules! each_buffer {
    ($buffer:expr, |$e:ident| $body:expr) => {
        match $buffer {
            Buffer::Bool($e) => $body,
            Buffer::Uint8($e) => $body,
            Buffer::Uint16($e) => $body,
            Buffer::Uint32($e) => $body,
            Buffer::Uint64($e) => $body,
            Buffer::Int8($e) => $body,
            Buffer::Int16($e) => $body,
            Buffer::Int32($e) => $body,
            Buffer::Int64($e) => $body,
            Buffer::Fp16($e) => $body,
            Buffer::Fp32($e) => $body,
            Buffer::Fp64($e) => $body,
            Buffer::Bytes($e) => $body,
        }
    };
}

impl Buffer {
    /// An empty buffer with capacity for the announced number of elements, limited by the number of bytes left in the body: a
    /// shape alone must not cause a large allocation.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub(super) fn new(datatype: DataType, announced: usize, reader: &Reader<'_>) -> Result<Buffer, Syntax> {
        const MAX_RESERVED: usize = 1 << 16;
        let capacity = announced.min(reader.remaining() / 2).min(MAX_RESERVED);
        Ok(match datatype {
            DataType::Bool => Buffer::Bool(empty(capacity, reader)?),
            DataType::Uint8 => Buffer::Uint8(empty(capacity, reader)?),
            DataType::Uint16 => Buffer::Uint16(empty(capacity, reader)?),
            DataType::Uint32 => Buffer::Uint32(empty(capacity, reader)?),
            DataType::Uint64 => Buffer::Uint64(empty(capacity, reader)?),
            DataType::Int8 => Buffer::Int8(empty(capacity, reader)?),
            DataType::Int16 => Buffer::Int16(empty(capacity, reader)?),
            DataType::Int32 => Buffer::Int32(empty(capacity, reader)?),
            DataType::Int64 => Buffer::Int64(empty(capacity, reader)?),
            DataType::Fp16 => Buffer::Fp16(empty(capacity, reader)?),
            DataType::Fp32 => Buffer::Fp32(empty(capacity, reader)?),
            DataType::Fp64 => Buffer::Fp64(empty(capacity, reader)?),
            DataType::Bytes => Buffer::Bytes(empty(capacity, reader)?),
        })
    }

    /// Parses a value, or values in nested lists, and appends them to the buffer.
    pub(super) fn read(&mut self, reader: &mut Reader<'_>, rules: Rules) -> Result<Nesting, ParseError> {
        each_buffer!(self, |elements| read_nested(elements, reader, rules))
    }

    /// Moves the values of each row: the value at `i` goes to `order[i]`, which names each place of the row once.
    pub(super) fn reorder_rows(&mut self, order: &[usize]) {
        if order.is_empty() {
            return;
        }
        each_buffer!(self, |elements| {
            let mut row = Vec::with_capacity(order.len());
            for places in elements.chunks_exact_mut(order.len()) {
                row.extend_from_slice(places);
                for (value, place) in row.drain(..).zip(order) {
                    places[*place] = value;
                }
            }
        });
    }

    /// Turns values that are listed column by column into rows.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub(super) fn columns_to_rows(&mut self, columns: usize, reader: &Reader<'_>) -> Result<(), Syntax> {
        if columns < 2 {
            return Ok(());
        }
        each_buffer!(self, |elements| {
            let rows = elements.len() / columns;
            let mut by_row = Vec::new();
            reader.room(&mut by_row, rows * columns)?;
            for row in 0..rows {
                by_row.extend((0..columns).map(|column| std::mem::take(&mut elements[column * rows + row])));
            }
            *elements = by_row;
        });
        Ok(())
    }

    pub(super) fn finish(self) -> Data {
        match self {
            Buffer::Bool(e) => Data::Bool(e),
            Buffer::Uint8(e) => Data::Uint8(e.into()),
            Buffer::Uint16(e) => Data::Uint16(e.into()),
            Buffer::Uint32(e) => Data::Uint32(e.into()),
            Buffer::Uint64(e) => Data::Uint64(e.into()),
            Buffer::Int8(e) => Data::Int8(e.into()),
            Buffer::Int16(e) => Data::Int16(e.into()),
            Buffer::Int32(e) => Data::Int32(e.into()),
            Buffer::Int64(e) => Data::Int64(e.into()),
            Buffer::Fp16(e) => Data::Fp16(e.into()),
            Buffer::Fp32(e) => Data::Fp32(e.into()),
            Buffer::Fp64(e) => Data::Fp64(e.into()),
            Buffer::Bytes(e) => Data::Bytes(e),
        }
    }
}

fn empty<T>(capacity: usize, reader: &Reader<'_>) -> Result<Vec<T>, Syntax> {
    let mut elements = Vec::new();
    reader.room(&mut elements, capacity)?;
    Ok(elements)
}

/// The extents of nested lists, outermost first. Empty for a value without a list.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Nesting(SmallVec<[usize; 4]>);

impl Nesting {
    pub(super) fn as_shape(&self) -> Shape {
        Shape::new(&self.0)
    }

    pub(super) fn depth(&self) -> usize {
        self.0.len()
    }

    /// Whether values with this nesting are accepted for `shape`. A flat list always is. Deeper lists may split the row-major
    /// elements only where the shape does: `[2,12]` and `[6,4]` are accepted for `[2,3,4]`, `[3,8]` is not.
    pub(super) fn is_accepted_for(&self, shape: &Shape) -> bool {
        let boundaries = |extents: &[usize]| -> SmallVec<[usize; 4]> {
            let split = extents.iter().scan(1usize, |n, d| {
                *n = n.saturating_mul(*d);
                Some(*n)
            });
            split.filter(|n| *n != 1).collect()
        };
        match self.depth() {
            0 => shape.is_empty(),
            1 => true,
            _ => {
                let allowed = boundaries(shape);
                boundaries(&self.0).iter().all(|n| allowed.contains(n))
            }
        }
    }
}

/// The extents found so far.
struct Extents {
    /// The number of items in each open list so far, outermost first.
    open: SmallVec<[usize; 8]>,
    /// The extent of the closed lists, by depth.
    closed: SmallVec<[Option<usize>; 8]>,
    /// The depth of the first element. All others must have the same.
    leaf: Option<usize>,
}

fn read_nested<T: FromJson>(out: &mut Vec<T>, reader: &mut Reader<'_>, rules: Rules) -> Result<Nesting, ParseError> {
    let before = out.len();
    let mut extents = Extents { open: SmallVec::new(), closed: SmallVec::new(), leaf: None };
    loop {
        if reader.peek() == Some(b'[') {
            extents.open(reader)?;
            if reader.peek() != Some(b']') {
                continue;
            }
        } else {
            extents.check_leaf(out.len() - before)?;
            let listed = extents.open.last_mut();
            let read = read_run(out, reader, rules, listed.is_some(), before)?;
            if let Some(items) = listed {
                *items += read;
            }
        }
        while !extents.open.is_empty() {
            if reader.eat(b',') {
                break;
            }
            if !reader.eat(b']') {
                return Err(reader.syntax("',' or ']'").into());
            }
            extents.close(out.len() - before)?;
        }
        if extents.open.is_empty() {
            return Ok(Nesting(extents.closed.into_iter().flatten().collect()));
        }
    }
}

/// Parses an element and, in a list, all that follow it up to the closing bracket. This loop takes most of the time of a request.
#[inline]
fn read_run<T: FromJson>(
    out: &mut Vec<T>,
    reader: &mut Reader<'_>,
    rules: Rules,
    listed: bool,
    before: usize,
) -> Result<usize, ParseError> {
    let start = out.len();
    loop {
        let first = reader.peek().unwrap_or_default();
        match T::read(reader, first, rules) {
            Ok(element) => {
                reader.room(out, 1)?;
                out.push(element);
            }
            Err(error) => return Err(element_error::<T>(error, out.len() - before, reader, rules)),
        }
        if !listed || !reader.eat(b',') {
            return Ok(out.len() - start);
        }
    }
}

#[cold]
fn element_error<T: FromJson>(error: ElementError, index: usize, reader: &Reader<'_>, rules: Rules) -> ParseError {
    match error {
        ElementError::Syntax(syntax) => ParseError::Syntax(syntax.within(&format!("element {index}"))),
        ElementError::WrongValue(at) => {
            let expected = T::EXPECTED;
            let or =
                if rules.base64_objects && expected == Bytes::EXPECTED { " or {\"b64\": \"<base64>\"}" } else { "" };
            ParseError::WrongValue(format!(
                "element {index} is expected to be {expected}{or}, got {}",
                reader.excerpt(at)
            ))
        }
    }
}

impl Extents {
    fn open(&mut self, reader: &mut Reader<'_>) -> Result<(), ParseError> {
        if self.open.len() == MAX_DEPTH {
            return Err(reader.too_deep().into());
        }
        reader.bump();
        self.open.push(0);
        let depth = self.open.len();
        if self.leaf.is_some_and(|leaf| leaf < depth) {
            return Err(ParseError::WrongValue(format!(
                "data is ragged: a list at depth {depth}, but earlier elements are at that depth"
            )));
        }
        if self.closed.len() < depth {
            self.closed.push(None);
        }
        Ok(())
    }

    fn close(&mut self, read: usize) -> Result<(), ParseError> {
        let items = self.open.pop().unwrap_or_default();
        if let Some(outer) = self.open.last_mut() {
            *outer += 1;
        }
        let depth = self.open.len();
        match self.closed[depth] {
            Some(expected) if expected != items => Err(ParseError::WrongValue(format!(
                "data is ragged: a list at depth {} (up to element {read}) holds {items} items, but the lists before it \
                 hold {expected}",
                depth + 1
            ))),
            _ => {
                self.closed[depth] = Some(items);
                Ok(())
            }
        }
    }

    /// Checks that an element has the same depth as the first one, and is not in a list together with lists.
    fn check_leaf(&mut self, index: usize) -> Result<(), ParseError> {
        let depth = self.open.len();
        let leaf = *self.leaf.get_or_insert(depth);
        if leaf != depth || self.closed.len() > depth {
            let expected = leaf.max(self.closed.len());
            return Err(ParseError::WrongValue(format!(
                "data is ragged: element {index} is at depth {depth}, others are at depth {expected}"
            )));
        }
        Ok(())
    }
}
