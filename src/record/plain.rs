//! Parquet column chunks of tensors of numbers and booleans, without a look at any element.
//!
//! Parquet's encoding PLAIN of a number is the number's bytes, as they are in a segment. So a page needs only its header and its levels,
//! which are two runs for each list, before the bytes of the lists. Integers of one and two bytes, which PLAIN would store as four, are
//! indices into a dictionary of all 256 or 65,536 numbers. Booleans are packed, eight at a time. A trial on a part of the bytes decides
//! whether the pages are compressed.
//!
//! The formats: <https://github.com/apache/parquet-format/blob/master/README.md#data-pages> and `Encodings.md` there; the page header is a
//! Thrift struct in the compact protocol
//! (<https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md>).

use super::columns::TensorColumn;
use super::parquet_file::{ZSTD_LEVEL, as_io};
use super::view::PredictionView;
use crate::tensor::DataType;
use bytes::Bytes;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::column::writer::ColumnCloseResult;
use parquet::errors::Result as ParquetResult;
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::reader::{ChunkReader, Length};
use parquet::schema::types::ColumnDescPtr;
use std::io::{self, Read};

/// How the bytes of a column are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PlainKind {
    /// As PLAIN, in this many bytes per number.
    Plain(usize),
    /// As indices of all integers of this many bytes.
    Indices { width: usize, signed: bool },
    /// Booleans, as bits.
    Bits,
}

/// The lists of one column in one row group.
#[derive(Debug)]
pub(super) struct PlainColumn<'s> {
    kind: PlainKind,
    descriptor: ColumnDescPtr,
    lists: Vec<Entry<'s>>,
}

#[derive(Debug, Clone, Copy)]
enum Entry<'s> {
    /// The record has no tensors on this side.
    NoSide,
    /// The record has no such tensor.
    NoTensor,
    Elements(&'s [u8]),
}

/// The bytes of a column chunk, in order.
#[derive(Debug)]
pub(super) struct Chunk<'s> {
    pieces: Vec<Piece<'s>>,
    length: usize,
}

#[derive(Debug)]
enum Piece<'s> {
    Own(Vec<u8>),
    OfSegment(&'s [u8]),
}

/// Bytes of a record, on average, from which a column is stored this way. Below, the levels take more than the numbers.
const SMALLEST: usize = 64;
/// Bytes of a column from which two-byte integers are stored this way: their dictionary has 256 KiB.
const SMALLEST_OF_TWO_BYTES: usize = 1 << 20;
/// Bytes of a page that holds more than one list.
const PAGE: usize = 1 << 20;
/// The parts of a column that are compressed on trial, and the bytes of each.
const TRIALS: usize = 8;
const TRIAL: usize = 8 << 10;
/// The column is compressed if the parts become smaller than this share. Reading it is much slower then.
const WORTH: f64 = 0.9;

// Definition levels of `optional group side { optional group tensor (LIST) { repeated group list { required element } } }`.
const NO_SIDE: u8 = 0;
const NO_TENSOR: u8 = 1;
const EMPTY: u8 = 2;
const ELEMENT: u8 = 3;
const LEVEL_BITS: [u8; 2] = [1, 2];

impl PlainKind {
    /// `None` where the column has to be encoded element by element, or is so small that it may as well be.
    pub fn of(datatype: DataType, bytes: usize, records: usize) -> Option<PlainKind> {
        if bytes < SMALLEST.saturating_mul(records.max(1)) {
            return None;
        }
        match datatype {
            DataType::Uint8 => Some(PlainKind::Indices { width: 1, signed: false }),
            DataType::Int8 => Some(PlainKind::Indices { width: 1, signed: true }),
            DataType::Uint16 | DataType::Int16 => {
                let signed = datatype == DataType::Int16;
                (bytes >= SMALLEST_OF_TWO_BYTES).then_some(PlainKind::Indices { width: 2, signed })
            }
            DataType::Bool => Some(PlainKind::Bits),
            DataType::Fp16 => Some(PlainKind::Plain(2)),
            DataType::Int32 | DataType::Uint32 | DataType::Fp32 => Some(PlainKind::Plain(4)),
            DataType::Int64 | DataType::Uint64 | DataType::Fp64 => Some(PlainKind::Plain(8)),
            DataType::Bytes => None,
        }
    }

    /// Bytes of an element in a segment.
    fn width(self) -> usize {
        match self {
            PlainKind::Plain(width) | PlainKind::Indices { width, .. } => width,
            PlainKind::Bits => 1,
        }
    }

    /// All integers of the type, in the order of their bits, as Parquet has them.
    fn dictionary(self) -> Option<Vec<u8>> {
        let PlainKind::Indices { width, signed } = self else { return None };
        let bits = 8 * width;
        let number = |index: i32| if signed && index >> (bits - 1) == 1 { index - (1 << bits) } else { index };
        Some((0..1 << bits).flat_map(|index| number(index).to_le_bytes()).collect())
    }
}

impl<'s> PlainColumn<'s> {
    pub fn new(kind: PlainKind, descriptor: ColumnDescPtr) -> PlainColumn<'s> {
        PlainColumn { kind, descriptor, lists: Vec::new() }
    }

    /// Adds the lists of a prediction's records.
    pub fn push(&mut self, view: &PredictionView<'s>, column: TensorColumn) {
        let records = view.records();
        let none = if view.has(column.side) { Entry::NoTensor } else { Entry::NoSide };
        match view.side(column.side).get(column.at) {
            Some(Some(tensor)) => {
                let each = tensor.bytes.len() / records;
                self.lists.extend((0..records).map(|row| Entry::Elements(&tensor.bytes[row * each..(row + 1) * each])));
            }
            _ => self.lists.extend(std::iter::repeat_n(none, records)),
        }
    }

    /// The column chunk of all lists that were added since the last call.
    ///
    /// # Errors
    /// When a page cannot be compressed or described.
    pub fn take(&mut self) -> io::Result<(Chunk<'s>, ColumnCloseResult)> {
        let lists = std::mem::take(&mut self.lists);
        let compressed = is_worth_compressing(&lists, self.kind)?;
        let mut chunk = Chunk { pieces: Vec::new(), length: 0 };
        let mut uncompressed = 0;
        if let Some(numbers) = self.kind.dictionary() {
            uncompressed += chunk.push_page(&[&numbers], compressed, |uncompressed, stored| {
                dictionary_header(uncompressed, stored, numbers.len() / 4)
            })?;
        }
        let data_at = chunk.length;
        let mut values = 0;
        let mut rest = &lists[..];
        while !rest.is_empty() {
            let (page, after) = rest.split_at(page_end(rest));
            rest = after;
            let page = Page::of(page, self.kind);
            values += page.levels;
            let encoding = if data_at == 0 { Encoding::PLAIN } else { Encoding::RLE_DICTIONARY };
            let parts: Vec<&'s [u8]> = page.parts;
            uncompressed +=
                chunk.push_data_page(&page.before, &parts, &page.after, compressed, |uncompressed, stored| {
                    data_header(uncompressed, stored, page.levels, encoding)
                })?;
        }
        let mut encodings = vec![Encoding::PLAIN, Encoding::RLE];
        encodings.extend((data_at > 0).then_some(Encoding::RLE_DICTIONARY));
        let codec = if compressed {
            Compression::ZSTD(ZstdLevel::try_new(ZSTD_LEVEL).map_err(as_io)?)
        } else {
            Compression::UNCOMPRESSED
        };
        let length = as_i64(chunk.length)?;
        let metadata = ColumnChunkMetaData::builder(self.descriptor.clone())
            .set_compression(codec)
            .set_encodings(encodings)
            .set_num_values(as_i64(values)?)
            .set_total_compressed_size(length)
            .set_total_uncompressed_size(as_i64(uncompressed)?)
            .set_data_page_offset(as_i64(data_at)?)
            .set_dictionary_page_offset((data_at > 0).then_some(0))
            .build()
            .map_err(as_io)?;
        let close = ColumnCloseResult {
            bytes_written: chunk.length as u64,
            rows_written: lists.len() as u64,
            metadata,
            bloom_filter: None,
            column_index: None,
            offset_index: None,
        };
        Ok((chunk, close))
    }
}

fn as_i64(n: usize) -> io::Result<i64> {
    i64::try_from(n).map_err(io::Error::other)
}

/// The number of lists in the next page: at least one, and no more than fit into [`PAGE`].
fn page_end(lists: &[Entry]) -> usize {
    let mut bytes = 0;
    let fits = |list: &&Entry| {
        bytes += match list {
            Entry::Elements(elements) => elements.len() + 8,
            Entry::NoSide | Entry::NoTensor => 8,
        };
        bytes <= PAGE
    };
    lists.iter().take_while(fits).count().max(1)
}

fn is_worth_compressing(lists: &[Entry], kind: PlainKind) -> io::Result<bool> {
    let mut full = lists.iter().filter_map(|list| match list {
        Entry::Elements(elements) if !elements.is_empty() => Some(*elements),
        _ => None,
    });
    // From lists all over the column, as much of each as makes a trial together.
    let step = (lists.len() / TRIALS).max(1);
    let (mut before, mut after) = (0, 0);
    let mut part = Vec::with_capacity(TRIAL);
    while before < TRIALS * TRIAL {
        part.clear();
        while part.len() < TRIAL
            && let Some(elements) = full.next()
        {
            part.extend_from_slice(&elements[..elements.len().min(TRIAL - part.len())]);
        }
        if part.is_empty() {
            break;
        }
        before += part.len();
        // As they are stored.
        let bits = (kind == PlainKind::Bits).then(|| packed(&[&part]));
        let stored = bits.as_deref().unwrap_or(&part);
        // A trial of bits counts as much as one of bytes.
        after += zstd::bulk::compress(stored, ZSTD_LEVEL)?.len() * part.len() / stored.len();
        // Skips to the next part of the column.
        if step > 1 {
            let _ = full.nth(step - 2);
        }
    }
    Ok((after as f64) < WORTH * before as f64)
}

/// A page before its header: levels, and the bytes of the lists.
struct Page<'s> {
    /// The number of levels of each kind, which Parquet calls the values of the page.
    levels: usize,
    before: Vec<u8>,
    parts: Vec<&'s [u8]>,
    after: Vec<u8>,
}

impl<'s> Page<'s> {
    fn of(lists: &[Entry<'s>], kind: PlainKind) -> Page<'s> {
        let [mut repetition, mut definition] = LEVEL_BITS.map(|_| Runs::default());
        let mut parts = Vec::with_capacity(lists.len());
        let (mut levels, mut numbers) = (0, 0);
        for list in lists {
            let (level, n) = match list {
                Entry::NoSide => (NO_SIDE, 0),
                Entry::NoTensor => (NO_TENSOR, 0),
                Entry::Elements(elements) => match elements.len() / kind.width() {
                    0 => (EMPTY, 0),
                    n => {
                        parts.push(*elements);
                        (ELEMENT, n)
                    }
                },
            };
            // The first level of a list begins a record. A list without elements has one level too.
            repetition.push(0, 1);
            repetition.push(1, n.saturating_sub(1));
            definition.push(level, n.max(1));
            levels += n.max(1);
            numbers += n;
        }
        let mut before = Vec::new();
        repetition.write(&mut before);
        definition.write(&mut before);
        let mut after = Vec::new();
        match kind {
            PlainKind::Plain(_) => {}
            PlainKind::Indices { width, .. } => {
                // One run of bit-packed indices, in groups of eight.
                before.push(if width == 1 { 8 } else { 16 });
                let groups = numbers.div_ceil(8);
                write_varint(&mut before, (groups as u64) << 1 | 1);
                after.resize((groups * 8 - numbers) * width, 0);
            }
            PlainKind::Bits => after = packed(&std::mem::take(&mut parts)),
        }
        Page { levels, before, parts, after }
    }
}

/// Booleans of a byte each as bits, the first one lowest. The last byte is filled with zeros.
fn packed(parts: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::with_capacity(parts.iter().map(|part| part.len()).sum::<usize>().div_ceil(8));
    // Those of the next byte that earlier parts ended with.
    let (mut begun, mut length) = ([0u8; 8], 0);
    for part in parts {
        let (first, rest) = part.split_at(part.len().min((8 - length) % 8));
        begun[length..length + first.len()].copy_from_slice(first);
        length += first.len();
        if length == 8 {
            out.push(pack(begun));
            (begun, length) = ([0; 8], 0);
        }
        let (eights, last) = rest.as_chunks::<8>();
        out.extend(eights.iter().map(|eight| pack(*eight)));
        if !last.is_empty() {
            begun[..last.len()].copy_from_slice(last);
            length = last.len();
        }
    }
    if length > 0 {
        out.push(pack(begun));
    }
    out
}

/// Eight booleans as bits, the first one lowest.
fn pack(eight: [u8; 8]) -> u8 {
    // Multiplied by 2^56 + 2^49 + … + 2^7, bit 8 * i becomes bit 56 + i, and no two products meet.
    (u64::from_le_bytes(eight).wrapping_mul(0x0102_0408_1020_4080) >> 56).to_le_bytes()[0]
}

/// Levels as runs of equal values.
#[derive(Default)]
struct Runs {
    bytes: Vec<u8>,
    value: u8,
    length: usize,
}

impl Runs {
    fn push(&mut self, value: u8, times: usize) {
        if times == 0 {
            return;
        }
        if value != self.value {
            self.end_run();
            self.value = value;
        }
        self.length += times;
    }

    fn end_run(&mut self) {
        if self.length > 0 {
            write_varint(&mut self.bytes, (self.length as u64) << 1);
            self.bytes.push(self.value);
            self.length = 0;
        }
    }

    /// Appends the runs after their length in bytes.
    fn write(mut self, out: &mut Vec<u8>) {
        self.end_run();
        let length = u32::try_from(self.bytes.len()).expect("the runs of a page are much smaller than 4 GiB");
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(&self.bytes);
    }
}

impl<'s> Chunk<'s> {
    /// Adds a page of our own bytes. Returns its size without compression, with its header.
    fn push_page(
        &mut self,
        parts: &[&[u8]],
        compressed: bool,
        header: impl Fn(usize, usize) -> io::Result<Vec<u8>>,
    ) -> io::Result<usize> {
        let plain = parts.concat();
        let stored = if compressed { zstd::bulk::compress(&plain, ZSTD_LEVEL)? } else { plain.clone() };
        let header = header(plain.len(), stored.len())?;
        let size = header.len() + plain.len();
        self.push(Piece::Own(header));
        self.push(Piece::Own(stored));
        Ok(size)
    }

    /// Adds a page whose middle is bytes of the segment.
    fn push_data_page(
        &mut self,
        before: &[u8],
        parts: &[&'s [u8]],
        after: &[u8],
        compressed: bool,
        header: impl Fn(usize, usize) -> io::Result<Vec<u8>>,
    ) -> io::Result<usize> {
        if compressed {
            let all: Vec<&[u8]> = std::iter::once(before).chain(parts.iter().copied()).chain([after]).collect();
            return self.push_page(&all, true, header);
        }
        let length = before.len() + parts.iter().map(|part| part.len()).sum::<usize>() + after.len();
        let mut start = header(length, length)?;
        let size = start.len() + length;
        start.extend_from_slice(before);
        self.push(Piece::Own(start));
        for part in parts {
            self.push(Piece::OfSegment(part));
        }
        self.push(Piece::Own(after.to_vec()));
        Ok(size)
    }

    fn push(&mut self, piece: Piece<'s>) {
        if !piece.bytes().is_empty() {
            self.length += piece.bytes().len();
            self.pieces.push(piece);
        }
    }
}

impl Piece<'_> {
    fn bytes(&self) -> &[u8] {
        match self {
            Piece::Own(bytes) => bytes,
            Piece::OfSegment(bytes) => bytes,
        }
    }
}

// === the chunk as the file's writer reads it ===

/// Reads a chunk from its start to its end.
pub(super) struct ChunkBytes<'c> {
    pieces: std::slice::Iter<'c, Piece<'c>>,
    current: &'c [u8],
}

impl Read for ChunkBytes<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            let Some(next) = self.pieces.next() else { return Ok(0) };
            self.current = next.bytes();
        }
        self.current.read(out)
    }
}

/// A chunk that is read from its start.
impl<'c> Length for &'c Chunk<'c> {
    fn len(&self) -> u64 {
        self.length as u64
    }
}

impl<'c> ChunkReader for &'c Chunk<'c> {
    type T = ChunkBytes<'c>;

    fn get_read(&self, start: u64) -> ParquetResult<ChunkBytes<'c>> {
        // The file's writer begins with the first page, which is at the chunk's start.
        debug_assert_eq!(start, 0);
        Ok(ChunkBytes { pieces: self.pieces.iter(), current: &[] })
    }

    fn get_bytes(&self, start: u64, length: usize) -> ParquetResult<Bytes> {
        let mut bytes = Vec::with_capacity(length);
        let mut reader = self.get_read(0)?;
        io::copy(&mut reader.by_ref().take(start), &mut io::sink())?;
        reader.take(length as u64).read_to_end(&mut bytes)?;
        Ok(bytes.into())
    }
}

// === page headers ===

const DATA_PAGE: i32 = 0;
const DICTIONARY_PAGE: i32 = 2;

/// `PageHeader { 1: type, 2: uncompressed size, 3: compressed size, 5: DataPageHeader { 1: values, 2: encoding, 3: encoding of the
/// definition levels, 4: of the repetition levels } }`
fn data_header(uncompressed: usize, stored: usize, values: usize, encoding: Encoding) -> io::Result<Vec<u8>> {
    let mut out = Vec::with_capacity(48);
    write_i32s(&mut out, &[DATA_PAGE, as_i32(uncompressed)?, as_i32(stored)?]);
    out.push(2 << 4 | STRUCT);
    write_i32s(&mut out, &[as_i32(values)?, encoding as i32, Encoding::RLE as i32, Encoding::RLE as i32]);
    out.extend_from_slice(&[STOP, STOP]);
    Ok(out)
}

/// `PageHeader { 1: type, 2: uncompressed size, 3: compressed size, 7: DictionaryPageHeader { 1: values, 2: encoding } }`
fn dictionary_header(uncompressed: usize, stored: usize, values: usize) -> io::Result<Vec<u8>> {
    let mut out = Vec::with_capacity(32);
    write_i32s(&mut out, &[DICTIONARY_PAGE, as_i32(uncompressed)?, as_i32(stored)?]);
    out.push(4 << 4 | STRUCT);
    write_i32s(&mut out, &[as_i32(values)?, Encoding::PLAIN as i32]);
    out.extend_from_slice(&[STOP, STOP]);
    Ok(out)
}

const I32: u8 = 5;
const STRUCT: u8 = 12;
const STOP: u8 = 0;

/// Appends fields of a struct that are numbered from 1.
fn write_i32s(out: &mut Vec<u8>, numbers: &[i32]) {
    for n in numbers {
        // The distance to the number of the field before, and the type.
        out.push(1 << 4 | I32);
        let zigzag = ((n << 1) ^ (n >> 31)).cast_unsigned();
        write_varint(out, u64::from(zigzag));
    }
}

fn write_varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n.to_le_bytes()[0] | 0x80);
        n >>= 7;
    }
    out.push(n.to_le_bytes()[0]);
}

fn as_i32(n: usize) -> io::Result<i32> {
    i32::try_from(n).map_err(|_| io::Error::other(format!("a page of {n} bytes is larger than Parquet allows")))
}
