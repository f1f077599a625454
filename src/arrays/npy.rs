//! Reads `.npy` and `.npz` files of numpy.

use super::MAX_BYTES;
use super::values::{Array, Values};
use bytes::Bytes;
use half::f16;
use npyz::{DType, Endianness, NpyHeader, Order, TypeChar};
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;
use zip::ZipArchive;

/// The most bytes of the header of an array. Those of numpy have about 128.
const MAX_HEADER: usize = 16 << 10;
/// The most arrays of an `.npz`.
const MAX_ARRAYS: usize = 1_000;

/// The only array of an `.npy` file. It has no name.
pub(super) fn read_npy(path: &Path) -> Result<Vec<Array>, String> {
    let file = File::open(path).map_err(|e| format!("cannot read it: {e}"))?;
    let mut left = MAX_BYTES;
    read_array(&mut BufReader::new(file), String::new(), &mut left).map(|array| vec![array])
}

/// The arrays of an `.npz` file, which is a zip archive of `.npy` files.
pub(super) fn read_npz(path: &Path) -> Result<Vec<Array>, String> {
    let file = File::open(path).map_err(|e| format!("cannot read it: {e}"))?;
    let not_npz = |e: zip::result::ZipError| format!("it is not an .npz file: {e}");
    let mut archive = ZipArchive::new(BufReader::new(file)).map_err(not_npz)?;
    if archive.len() > MAX_ARRAYS {
        return Err(format!("it has {} arrays, the limit is {MAX_ARRAYS}", archive.len()));
    }
    let mut left = MAX_BYTES;
    let mut arrays: Vec<Array> = Vec::new();
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).map_err(not_npz)?;
        let name = entry.name().map_err(not_npz)?.into_owned();
        let Some(name) = name.strip_suffix(".npy") else {
            return Err(format!("it is not an .npz file: it has an entry {name:?}, expected names that end in .npy"));
        };
        if arrays.iter().any(|known| known.name == name) {
            return Err(format!("array {name:?} is there more than once"));
        }
        let name = name.to_owned();
        let array = read_array(&mut entry, name.clone(), &mut left);
        arrays.push(array.map_err(|message| format!("array {name:?}: {message}"))?);
    }
    Ok(arrays)
}

/// Reads one array. `left`: how many bytes it may have; less afterwards.
fn read_array(reader: &mut dyn Read, name: String, left: &mut usize) -> Result<Array, String> {
    let header = read_header(reader)?;
    let shape: Option<Vec<usize>> = header.shape().iter().map(|extent| usize::try_from(*extent).ok()).collect();
    let shape = shape.ok_or_else(|| format!("its shape {:?} is too large", header.shape()))?;
    let dtype = header.dtype();
    let DType::Plain(kind) = &dtype else {
        return Err(format!("its dtype {} has fields; expected numbers, booleans or texts", dtype.descr()));
    };
    if header.uses_pickled_array() {
        return Err(
            "its dtype is object; expected numbers, booleans or texts: convert it with .astype(str) or a number type"
                .to_owned(),
        );
    }
    let width = kind.num_bytes().filter(|width| *width > 0).ok_or_else(|| format!("its dtype {kind} has no size"))?;
    let bytes = shape.iter().try_fold(width, |n, extent| n.checked_mul(*extent)).filter(|bytes| bytes <= left);
    let Some(bytes) = bytes else {
        return Err(format!(
            "its shape {shape:?} of dtype {kind} is larger than what is left of the limit of {MAX_BYTES} bytes"
        ));
    };
    *left -= bytes;
    let mut data = Vec::new();
    reader.take(bytes as u64).read_to_end(&mut data).map_err(|e| format!("cannot read it: {e}"))?;
    if data.len() != bytes {
        return Err(format!("it ends after {} bytes; its shape {shape:?} of dtype {kind} needs {bytes}", data.len()));
    }
    let big = kind.endianness() == Endianness::Big;
    let values = decode(kind.type_char(), width, big, &mut data)
        .ok_or_else(|| format!("its dtype {kind} is not supported: expected numbers, booleans or texts"))??;
    let values = if header.order() == Order::Fortran { values.transposed(&shape) } else { values };
    Ok(Array { name, shape, values })
}

/// Reads the header. The parser of `npyz` does not limit its length, its depth, or the product of the extents; so this does.
fn read_header(reader: &mut dyn Read) -> Result<NpyHeader, String> {
    let mut read = |bytes: &mut [u8]| {
        reader.read_exact(bytes).map_err(|_| "it is not an .npy file: it ends within its header".to_owned())
    };
    let mut header = vec![0; 8];
    read(&mut header)?;
    if !header.starts_with(b"\x93NUMPY") {
        return Err("it is not an .npy file: it does not begin with \\x93NUMPY".to_owned());
    }
    let length_bytes = if header[6] == 1 { 2 } else { 4 };
    let mut length = [0; 4];
    read(&mut length[..length_bytes])?;
    header.extend_from_slice(&length[..length_bytes]);
    let length = u32::from_le_bytes(length) as usize;
    if length > MAX_HEADER {
        return Err(format!("its header has {length} bytes, the limit is {MAX_HEADER}"));
    }
    let start = header.len();
    header.resize(start + length, 0);
    read(&mut header[start..])?;
    let text = String::from_utf8_lossy(&header[start..]);
    let depth = text.bytes().scan(0usize, |depth, byte| {
        match byte {
            b'(' | b'[' | b'{' => *depth += 1,
            b')' | b']' | b'}' => *depth = depth.saturating_sub(1),
            _ => {}
        }
        Some(*depth)
    });
    if depth.max().unwrap_or(0) > 4 {
        return Err("its header is nested too deeply".to_owned());
    }
    let numbers = text.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.trim_start_matches('0').is_empty());
    let product = numbers.map(|digits| digits.parse::<u64>().ok()).try_fold(1u64, |n, next| n.checked_mul(next?));
    if product.is_none() {
        return Err(format!("its shape is too large: {}", text.trim().chars().take(200).collect::<String>()));
    }
    NpyHeader::from_reader(header.as_slice()).map_err(|e| format!("its header cannot be read: {e}"))
}

/// The elements in these bytes, or what is wrong with one. `None`: the type is not supported.
fn decode(kind: TypeChar, width: usize, big: bool, data: &mut [u8]) -> Option<Result<Values, String>> {
    // In place, so that the rest reads little-endian elements only. The characters of a text have four bytes.
    let unit = match kind {
        TypeChar::UnicodeStr => 4,
        TypeChar::ByteStr => 1,
        _ => width,
    };
    if big {
        data.chunks_exact_mut(unit).for_each(<[u8]>::reverse);
    }
    macro_rules! each {
        ($as:ty, $to:expr) => {{
            let one = |bytes: &[u8]| {
                let mut element = [0; size_of::<$as>()];
                element.copy_from_slice(bytes);
                $to(<$as>::from_le_bytes(element))
            };
            data.chunks_exact(size_of::<$as>()).map(one).collect()
        }};
    }
    Some(Ok(match (kind, width) {
        (TypeChar::Bool, 1) => Values::Bools(data.iter().map(|byte| *byte != 0).collect()),
        (TypeChar::Int, 1) => Values::Signed(each!(i8, i64::from)),
        (TypeChar::Int, 2) => Values::Signed(each!(i16, i64::from)),
        (TypeChar::Int, 4) => Values::Signed(each!(i32, i64::from)),
        (TypeChar::Int, 8) => Values::Signed(each!(i64, i64::from)),
        (TypeChar::Uint, 1) => Values::Unsigned(each!(u8, u64::from)),
        (TypeChar::Uint, 2) => Values::Unsigned(each!(u16, u64::from)),
        (TypeChar::Uint, 4) => Values::Unsigned(each!(u32, u64::from)),
        (TypeChar::Uint, 8) => Values::Unsigned(each!(u64, u64::from)),
        (TypeChar::Float, 2) => Values::Floats(each!(u16, |bits| f16::from_bits(bits).to_f64())),
        (TypeChar::Float, 4) => Values::Floats(each!(f32, f64::from)),
        (TypeChar::Float, 8) => Values::Floats(each!(f64, f64::from)),
        (TypeChar::ByteStr, _) => {
            let text = |bytes: &[u8]| Bytes::copy_from_slice(trimmed(bytes, &[0]));
            Values::Texts(data.chunks_exact(width).map(text).collect())
        }
        (TypeChar::UnicodeStr, _) => {
            let texts: Result<Vec<Bytes>, String> = data.chunks_exact(width).map(unicode).collect();
            return Some(texts.map(Values::Texts));
        }
        _ => return None,
    }))
}

/// A text of four bytes a character, filled with zeros at its end.
fn unicode(bytes: &[u8]) -> Result<Bytes, String> {
    let code = |c: &[u8]| u32::from_le_bytes([c[0], c[1], c[2], c[3]]);
    let character = |c| char::from_u32(c).ok_or_else(|| format!("it has a text with {c:#x}, which is no character"));
    let text: Result<String, String> = trimmed(bytes, &[0; 4]).chunks_exact(4).map(code).map(character).collect();
    text.map(Bytes::from)
}

/// Without the zeros at the end.
fn trimmed<'b>(mut bytes: &'b [u8], zero: &[u8]) -> &'b [u8] {
    while let Some(shorter) = bytes.strip_suffix(zero) {
        bytes = shorter;
    }
    bytes
}

impl Values {
    /// The elements in row-major order, of those in column-major order.
    fn transposed(self, shape: &[usize]) -> Values {
        fn reorder<T: Clone>(elements: Vec<T>, shape: &[usize]) -> Vec<T> {
            if shape.len() < 2 {
                return elements;
            }
            let mut index = vec![0; shape.len()];
            let mut ordered = Vec::with_capacity(elements.len());
            for _ in 0..elements.len() {
                // In column-major order the first axis varies fastest.
                let place = index.iter().zip(shape).rev().fold(0, |place, (at, extent)| place * extent + at);
                ordered.push(elements[place].clone());
                for (at, extent) in index.iter_mut().zip(shape).rev() {
                    *at += 1;
                    if *at < *extent {
                        break;
                    }
                    *at = 0;
                }
            }
            ordered
        }
        match self {
            Values::Bools(v) => Values::Bools(reorder(v, shape)),
            Values::Signed(v) => Values::Signed(reorder(v, shape)),
            Values::Unsigned(v) => Values::Unsigned(reorder(v, shape)),
            Values::Floats(v) => Values::Floats(reorder(v, shape)),
            Values::Texts(v) => Values::Texts(reorder(v, shape)),
            // Only tables have them.
            Values::Cells(cells) => Values::Cells(cells),
        }
    }
}
