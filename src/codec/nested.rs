//! Lists within lists → one flat typed buffer, and the shape the brackets had.

use super::elements::{FromJson, Rules, Stop};
use super::json::{MAX_DEPTH, Reader, Syntax};
use crate::tensor::{Data, DataType, Shape};
use bytes::Bytes;
use half::f16;
use smallvec::SmallVec;

/// Why a tensor's values could not be read.
#[derive(Debug)]
pub(super) enum Unread {
    /// The body is not JSON; nothing after this point can be made out.
    Syntax(Syntax),
    /// JSON, but not this tensor's: which element or list, what was expected, what was found.
    Misfit(String),
}

impl From<Syntax> for Unread {
    fn from(syntax: Syntax) -> Unread {
        Unread::Syntax(syntax)
    }
}

/// Elements of one datatype while they are being read.
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
    /// An empty buffer with room for the elements a shape announces, as far as there are bytes left to spell them: a shape
    /// alone must not make a server allocate.
    pub(super) fn new(datatype: DataType, announced: usize, reader: &Reader<'_>) -> Buffer {
        const MOST_RESERVED: usize = 1 << 16;
        let capacity = announced.min(reader.remaining() / 2).min(MOST_RESERVED);
        match datatype {
            DataType::Bool => Buffer::Bool(Vec::with_capacity(capacity)),
            DataType::Uint8 => Buffer::Uint8(Vec::with_capacity(capacity)),
            DataType::Uint16 => Buffer::Uint16(Vec::with_capacity(capacity)),
            DataType::Uint32 => Buffer::Uint32(Vec::with_capacity(capacity)),
            DataType::Uint64 => Buffer::Uint64(Vec::with_capacity(capacity)),
            DataType::Int8 => Buffer::Int8(Vec::with_capacity(capacity)),
            DataType::Int16 => Buffer::Int16(Vec::with_capacity(capacity)),
            DataType::Int32 => Buffer::Int32(Vec::with_capacity(capacity)),
            DataType::Int64 => Buffer::Int64(Vec::with_capacity(capacity)),
            DataType::Fp16 => Buffer::Fp16(Vec::with_capacity(capacity)),
            DataType::Fp32 => Buffer::Fp32(Vec::with_capacity(capacity)),
            DataType::Fp64 => Buffer::Fp64(Vec::with_capacity(capacity)),
            DataType::Bytes => Buffer::Bytes(Vec::with_capacity(capacity)),
        }
    }

    /// Reads one value, alone or in lists of any depth, to the end of the buffer.
    pub(super) fn read(&mut self, reader: &mut Reader<'_>, rules: Rules) -> Result<Nesting, Unread> {
        each_buffer!(self, |elements| read_nested(elements, reader, rules))
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

/// The extents that brackets spell, outermost first; none for a bare value.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Nesting(SmallVec<[usize; 4]>);

impl Nesting {
    pub(super) fn as_shape(&self) -> Shape {
        Shape::new(&self.0)
    }

    pub(super) fn depth(&self) -> usize {
        self.0.len()
    }

    /// Whether values nested like this may stand for `shape`: a flat list always may, a deeper nesting where it splits
    /// the row-major elements only where the shape does. So `[2,12]` and `[6,4]` may stand for `[2,3,4]`, `[3,8]` may not.
    pub(super) fn may_stand_for(&self, shape: &Shape) -> bool {
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

/// What is known of the extents while lists are open.
struct Extents {
    /// How many items each open list has so far, outermost first.
    open: SmallVec<[usize; 8]>,
    /// The extent of the lists closed so far, by depth.
    closed: SmallVec<[Option<usize>; 8]>,
    /// How many lists are open around the first element.
    leaf: Option<usize>,
}

fn read_nested<T: FromJson>(out: &mut Vec<T>, reader: &mut Reader<'_>, rules: Rules) -> Result<Nesting, Unread> {
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

/// Reads an element and, within a list, all that follow it up to the closing bracket: the loop that tensors spend their
/// time in.
#[inline]
fn read_run<T: FromJson>(
    out: &mut Vec<T>,
    reader: &mut Reader<'_>,
    rules: Rules,
    listed: bool,
    before: usize,
) -> Result<usize, Unread> {
    let start = out.len();
    loop {
        let first = reader.peek().unwrap_or_default();
        match T::read(reader, first, rules) {
            Ok(element) => out.push(element),
            Err(stop) => return Err(unread::<T>(stop, out.len() - before, reader, rules)),
        }
        if !listed || !reader.eat(b',') {
            return Ok(out.len() - start);
        }
    }
}

#[cold]
fn unread<T: FromJson>(stop: Stop, index: usize, reader: &Reader<'_>, rules: Rules) -> Unread {
    match stop {
        Stop::Syntax(syntax) => Unread::Syntax(syntax.within(&format!("element {index}"))),
        Stop::Misfit(at) => {
            let expected = T::EXPECTED;
            let or =
                if rules.base64_objects && expected == Bytes::EXPECTED { " or {\"b64\": \"<base64>\"}" } else { "" };
            Unread::Misfit(format!("element {index} is expected to be {expected}{or}, got {}", reader.excerpt(at)))
        }
    }
}

impl Extents {
    fn open(&mut self, reader: &mut Reader<'_>) -> Result<(), Unread> {
        if self.open.len() == MAX_DEPTH {
            return Err(reader.too_deep().into());
        }
        reader.bump();
        self.open.push(0);
        let depth = self.open.len();
        if self.leaf.is_some_and(|leaf| leaf < depth) {
            return Err(Unread::Misfit(format!(
                "data is ragged: a list stands at depth {depth} where elements stood before it"
            )));
        }
        if self.closed.len() < depth {
            self.closed.push(None);
        }
        Ok(())
    }

    fn close(&mut self, read: usize) -> Result<(), Unread> {
        let items = self.open.pop().unwrap_or_default();
        if let Some(outer) = self.open.last_mut() {
            *outer += 1;
        }
        let depth = self.open.len();
        match self.closed[depth] {
            Some(expected) if expected != items => Err(Unread::Misfit(format!(
                "data is ragged: a list at depth {} (up to element {read}) holds {items} where the ones before it hold \
                 {expected}",
                depth + 1
            ))),
            _ => {
                self.closed[depth] = Some(items);
                Ok(())
            }
        }
    }

    /// Every element stands at the depth of the first, and no list stands beside or below elements.
    fn check_leaf(&mut self, index: usize) -> Result<(), Unread> {
        let depth = self.open.len();
        let leaf = *self.leaf.get_or_insert(depth);
        if leaf != depth || self.closed.len() > depth {
            let expected = leaf.max(self.closed.len());
            return Err(Unread::Misfit(format!(
                "data is ragged: element {index} stands at depth {depth} where others stand at depth {expected}"
            )));
        }
        Ok(())
    }
}
