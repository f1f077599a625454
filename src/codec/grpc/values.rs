//! Typed values in repeated fields: integers as varints, floats as their bits, strings one by one.

use super::wire::{self, Value};
use crate::budget::Hold;
use crate::codec::elements::FromJson;
use crate::model::Failure;
use crate::tensor::{Data, DataType, Elements};
use bytes::{Buf as _, Bytes};
use half::f16;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};

/// Why values were not accepted.
#[derive(Debug)]
pub(super) enum Problem {
    /// A complaint about the tensor.
    Wrong(String),
    /// There is no memory for them.
    Refused(Failure),
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Problem {
        Problem::Refused(failure)
    }
}

/// The most bytes of a tensor that is filled with one value: a small message must not become a large request.
const MOST_FILLED: usize = 4 << 20;

/// Collects the values of one tensor.
#[derive(Debug)]
pub(super) struct Values<'h> {
    data: Collected,
    /// The elements by the tensor's shape. No more are taken.
    expected: usize,
    hold: &'h Hold,
}

/// As [`Data`], but growing.
#[derive(Debug)]
enum Collected {
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
    /// All floats in one run.
    View(Data),
}

macro_rules! each_collected {
    ($data:expr, |$e:ident| $body:expr, $view:ident => $of_view:expr) => {
        match $data {
            Collected::Bool($e) => $body,
            Collected::Uint8($e) => $body,
            Collected::Uint16($e) => $body,
            Collected::Uint32($e) => $body,
            Collected::Uint64($e) => $body,
            Collected::Int8($e) => $body,
            Collected::Int16($e) => $body,
            Collected::Int32($e) => $body,
            Collected::Int64($e) => $body,
            Collected::Fp16($e) => $body,
            Collected::Fp32($e) => $body,
            Collected::Fp64($e) => $body,
            Collected::Bytes($e) => $body,
            Collected::View($view) => $of_view,
        }
    };
}

impl<'h> Values<'h> {
    pub(super) fn new(datatype: DataType, expected: usize, hold: &'h Hold) -> Values<'h> {
        let data = match datatype {
            DataType::Bool => Collected::Bool(Vec::new()),
            DataType::Uint8 => Collected::Uint8(Vec::new()),
            DataType::Uint16 => Collected::Uint16(Vec::new()),
            DataType::Uint32 => Collected::Uint32(Vec::new()),
            DataType::Uint64 => Collected::Uint64(Vec::new()),
            DataType::Int8 => Collected::Int8(Vec::new()),
            DataType::Int16 => Collected::Int16(Vec::new()),
            DataType::Int32 => Collected::Int32(Vec::new()),
            DataType::Int64 => Collected::Int64(Vec::new()),
            DataType::Fp16 => Collected::Fp16(Vec::new()),
            DataType::Fp32 => Collected::Fp32(Vec::new()),
            DataType::Fp64 => Collected::Fp64(Vec::new()),
            DataType::Bytes => Collected::Bytes(Vec::new()),
        };
        Values { data, expected, hold }
    }

    pub(super) fn len(&self) -> usize {
        each_collected!(&self.data, |e| e.len(), view => view.len())
    }

    /// Adds one value, or a run of them.
    pub(super) fn push(&mut self, value: Value) -> Result<(), Problem> {
        let Values { data, expected, hold } = self;
        let (expected, hold) = (*expected, *hold);
        match data {
            Collected::Bool(list) => varints(list, value, expected, hold),
            Collected::Uint8(list) => varints(list, value, expected, hold),
            Collected::Uint16(list) => varints(list, value, expected, hold),
            Collected::Uint32(list) => varints(list, value, expected, hold),
            Collected::Uint64(list) => varints(list, value, expected, hold),
            Collected::Int8(list) => varints(list, value, expected, hold),
            Collected::Int16(list) => varints(list, value, expected, hold),
            Collected::Int32(list) => varints(list, value, expected, hold),
            Collected::Int64(list) => varints(list, value, expected, hold),
            Collected::Fp16(list) => varints(list, value, expected, hold),
            Collected::Fp32(list) => match value {
                Value::Fixed32(bits) => push(list, f32::from_bits(bits), expected, hold),
                Value::Bytes(run) if list.is_empty() && run.len() == expected.saturating_mul(4) => {
                    hold.grow(copied(&run, 4))?;
                    self.data = Collected::View(Data::Fp32(view(run)?));
                    Ok(())
                }
                Value::Bytes(run) => fixed(list, &run, expected, hold, f32::from_le_bytes),
                _ => Err(Problem::Wrong("the values are expected to be FP32, 32 bits each".into())),
            },
            Collected::Fp64(list) => match value {
                Value::Fixed64(bits) => push(list, f64::from_bits(bits), expected, hold),
                Value::Bytes(run) if list.is_empty() && run.len() == expected.saturating_mul(8) => {
                    hold.grow(copied(&run, 8))?;
                    self.data = Collected::View(Data::Fp64(view(run)?));
                    Ok(())
                }
                Value::Bytes(run) => fixed(list, &run, expected, hold, f64::from_le_bytes),
                _ => Err(Problem::Wrong("the values are expected to be FP64, 64 bits each".into())),
            },
            Collected::Bytes(list) => match value {
                Value::Bytes(text) => push(list, text, expected, hold),
                _ => Err(Problem::Wrong("the values are expected to be bytes".into())),
            },
            Collected::View(view) if view.is_empty() => {
                // The shape has no elements, and an empty run came before.
                let is_empty = matches!(&value, Value::Bytes(run) if run.is_empty());
                if is_empty { Ok(()) } else { Err(too_many(0)) }
            }
            Collected::View(view) => match value {
                Value::Bytes(run) if run.is_empty() => Ok(()),
                _ => Err(too_many(view.len())),
            },
        }
    }

    /// Repeats the only value up to the number of elements.
    pub(super) fn fill(&mut self) -> Result<(), Problem> {
        let Values { data, expected, hold } = self;
        let each = match data {
            Collected::Bytes(texts) => texts.first().map_or(0, Bytes::len) + size_of::<Bytes>(),
            _ => size_of::<u64>(),
        };
        if expected.saturating_mul(each) > MOST_FILLED {
            return Err(Problem::Wrong(format!(
                "one value stands for {expected} elements, which together have more than {} MiB: send the values",
                MOST_FILLED >> 20
            )));
        }
        each_collected!(data, |list| repeat(list, *expected, hold), _view => Ok(()))
    }

    pub(super) fn finish(self) -> Data {
        match self.data {
            Collected::Bool(list) => Data::Bool(list),
            Collected::Uint8(list) => Data::Uint8(list.into()),
            Collected::Uint16(list) => Data::Uint16(list.into()),
            Collected::Uint32(list) => Data::Uint32(list.into()),
            Collected::Uint64(list) => Data::Uint64(list.into()),
            Collected::Int8(list) => Data::Int8(list.into()),
            Collected::Int16(list) => Data::Int16(list.into()),
            Collected::Int32(list) => Data::Int32(list.into()),
            Collected::Int64(list) => Data::Int64(list.into()),
            Collected::Fp16(list) => Data::Fp16(list.into()),
            Collected::Fp32(list) => Data::Fp32(list.into()),
            Collected::Fp64(list) => Data::Fp64(list.into()),
            Collected::Bytes(list) => Data::Bytes(list),
            Collected::View(data) => data,
        }
    }
}

fn repeat<T: Clone>(list: &mut Vec<T>, expected: usize, hold: &Hold) -> Result<(), Problem> {
    if let [only] = list.as_slice() {
        let only = only.clone();
        hold.room(list, expected.saturating_sub(1), expected)?;
        list.resize(expected, only);
    }
    Ok(())
}

/// A type whose values are written as varints.
trait Varint: FromJson {
    /// The value of an integer on the wire. As in Protocol Buffers, fields of 32 bits take the lower ones. `None` where it is out of range.
    fn of(wire: u64) -> Option<Self>;
}

macro_rules! varint_types {
    ($($t:ty: |$n:ident| $of:expr),* $(,)?) => {$(
        impl Varint for $t {
            #[inline]
            #[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, clippy::cast_sign_loss, clippy::allow_attributes,
                     reason = "the wire format defines the bits")]
            #[allow(unfulfilled_lint_expectations, reason = "not each of the types needs each cast")]
            fn of($n: u64) -> Option<$t> {
                $of
            }
        }
    )*};
}

varint_types! {
    bool: |n| Some(n != 0),
    u8: |n| u8::try_from(n as u32 as i32).ok(),
    u16: |n| u16::try_from(n as u32 as i32).ok(),
    u32: |n| Some(n as u32),
    u64: |n| Some(n),
    i8: |n| i8::try_from(n as u32 as i32).ok(),
    i16: |n| i16::try_from(n as u32 as i32).ok(),
    i32: |n| Some(n as u32 as i32),
    i64: |n| Some(n as i64),
    f16: |n| u16::try_from(n as u32).ok().map(f16::from_bits),
}

fn varints<T: Varint>(list: &mut Vec<T>, value: Value, expected: usize, hold: &Hold) -> Result<(), Problem> {
    match value {
        Value::Varint(n) => push(list, convert(list.len(), n)?, expected, hold),
        Value::Bytes(mut run) => {
            // Each takes at least a byte.
            hold.room(list, run.len().min(expected.saturating_sub(list.len())), expected)?;
            while !run.is_empty() {
                let index = list.len();
                let n = wire::varint(&mut run)
                    .ok_or_else(|| Problem::Wrong(format!("element {index} is cut off or has more than 64 bits")))?;
                push(list, convert(index, n)?, expected, hold)?;
            }
            Ok(())
        }
        _ => Err(Problem::Wrong(format!("the values are expected to be varints, each {}", T::EXPECTED))),
    }
}

#[inline]
fn convert<T: Varint>(index: usize, n: u64) -> Result<T, Problem> {
    T::of(n).ok_or_else(|| out_of_range::<T>(index, n))
}

#[cold]
#[expect(clippy::cast_possible_wrap, reason = "negative numbers are written as their two's complement")]
fn out_of_range<T: Varint>(index: usize, n: u64) -> Problem {
    Problem::Wrong(format!("element {index} is expected to be {}, got {}", T::EXPECTED, n as i64))
}

#[inline]
fn push<T>(list: &mut Vec<T>, value: T, expected: usize, hold: &Hold) -> Result<(), Problem> {
    if list.len() >= expected {
        return Err(too_many(expected));
    }
    hold.room(list, 1, expected)?;
    list.push(value);
    Ok(())
}

fn fixed<T, const N: usize>(
    list: &mut Vec<T>,
    run: &[u8],
    expected: usize,
    hold: &Hold,
    of: impl Fn([u8; N]) -> T,
) -> Result<(), Problem> {
    let (values, rest) = run.as_chunks::<N>();
    if !rest.is_empty() {
        return Err(Problem::Wrong(format!("{} bytes are not a whole number of values of {N} bytes", run.len())));
    }
    if values.len() > expected.saturating_sub(list.len()) {
        return Err(too_many(expected));
    }
    hold.room(list, values.len(), expected)?;
    list.extend(values.iter().map(|bytes| of(*bytes)));
    Ok(())
}

fn view<T: crate::tensor::Element>(run: Bytes) -> Result<Elements<T>, Problem> {
    Elements::view(run).ok_or_else(|| Problem::Wrong("there is no memory for the values".into()))
}

/// What [`view`] copies.
fn copied(run: &Bytes, width: usize) -> usize {
    if run.as_ptr().addr().is_multiple_of(width) { 0 } else { run.remaining() }
}

#[cold]
fn too_many(expected: usize) -> Problem {
    Problem::Wrong(format!("there are more values than the {expected} of its shape"))
}

// === writing ===

/// The bytes that all values of a tensor take in a field with this number: packed, or strings one by one.
pub(super) fn written_len(field: u32, data: &Data) -> usize {
    if let Data::Bytes(texts) = data {
        let of = |text: &Bytes| key_len(field) + encoded_len_varint(text.len() as u64) + text.len();
        return texts.iter().map(of).sum();
    }
    if data.is_empty() {
        return 0;
    }
    let run = run_len(data);
    key_len(field) + encoded_len_varint(run as u64) + run
}

/// Appends the values of a tensor in a field with this number.
pub(super) fn write(field: u32, data: &Data, out: &mut Vec<u8>) {
    if let Data::Bytes(texts) = data {
        for text in texts {
            write_bytes(field, text, out);
        }
        return;
    }
    if data.is_empty() {
        return;
    }
    encode_key(field, WireType::LengthDelimited, out);
    encode_varint(run_len(data) as u64, out);
    macro_rules! each {
        ($list:expr, $wire:expr) => {
            for value in $list.iter() {
                encode_varint($wire(*value), out);
            }
        };
    }
    match data {
        Data::Bool(_) | Data::Fp32(_) | Data::Fp64(_) => out.extend_from_slice(data.le_bytes().unwrap_or_default()),
        Data::Uint8(list) => each!(list, u64::from),
        Data::Uint16(list) => each!(list, u64::from),
        Data::Uint32(list) => each!(list, u64::from),
        Data::Uint64(list) => each!(list, u64::from),
        Data::Int8(list) => each!(list, |n| signed(i64::from(n))),
        Data::Int16(list) => each!(list, |n| signed(i64::from(n))),
        Data::Int32(list) => each!(list, |n| signed(i64::from(n))),
        Data::Int64(list) => each!(list, signed),
        Data::Fp16(list) => each!(list, |n: f16| u64::from(n.to_bits())),
        Data::Bytes(_) => {}
    }
}

fn run_len(data: &Data) -> usize {
    macro_rules! sum {
        ($list:expr, $wire:expr) => {
            $list.iter().map(|value| encoded_len_varint($wire(*value))).sum()
        };
    }
    match data {
        Data::Bool(_) | Data::Fp32(_) | Data::Fp64(_) => data.le_bytes().map_or(0, <[u8]>::len),
        Data::Uint8(list) => sum!(list, u64::from),
        Data::Uint16(list) => sum!(list, u64::from),
        Data::Uint32(list) => sum!(list, u64::from),
        Data::Uint64(list) => sum!(list, u64::from),
        Data::Int8(list) => sum!(list, |n| signed(i64::from(n))),
        Data::Int16(list) => sum!(list, |n| signed(i64::from(n))),
        Data::Int32(list) => sum!(list, |n| signed(i64::from(n))),
        Data::Int64(list) => sum!(list, signed),
        Data::Fp16(list) => sum!(list, |n: f16| u64::from(n.to_bits())),
        Data::Bytes(_) => 0,
    }
}

/// A negative number is written as its two's complement in 64 bits.
fn signed(n: i64) -> u64 {
    n.cast_unsigned()
}

/// The bytes of a field with bytes, a string or a message of this length.
pub(super) fn bytes_len(field: u32, length: usize) -> usize {
    key_len(field) + encoded_len_varint(length as u64) + length
}

/// Appends a field with bytes, a string or a message.
pub(super) fn write_bytes(field: u32, bytes: &[u8], out: &mut Vec<u8>) {
    write_head(field, bytes.len(), out);
    out.extend_from_slice(bytes);
}

/// Appends the beginning of a field with so many bytes, which the caller appends.
pub(super) fn write_head(field: u32, length: usize, out: &mut Vec<u8>) {
    encode_key(field, WireType::LengthDelimited, out);
    encode_varint(length as u64, out);
}
