//! The binary tensor extension: tensors as little-endian bytes after the JSON, or as the whole body.

use super::{AnswerForm, OipRequest};
use crate::budget::Hold;
use crate::model::{Code, Complaints, Dim, Failure, InferenceRequest, NamedTensor, Signature, TensorSpec};
use crate::tensor::{Data, DataType, Element, Elements, Shape, Tensor};
use bytes::{Buf as _, Bytes};

/// The bytes after the JSON. The tensors take them in order.
#[derive(Debug)]
pub(in crate::codec) struct Blobs {
    /// `None` if the request does not say where its JSON ends.
    rest: Option<Bytes>,
    taken: usize,
    /// A tensor had an invalid size, so the start of the next one is unknown.
    out_of_sync: bool,
}

impl Blobs {
    pub(in crate::codec) fn new(rest: Option<Bytes>) -> Blobs {
        Blobs { rest, taken: 0, out_of_sync: false }
    }

    /// Takes the next `size` bytes. The error is a complaint.
    pub(super) fn take(&mut self, size: usize) -> Result<Bytes, String> {
        let Some(rest) = &mut self.rest else {
            return Err(
                "parameter \"binary_data_size\" needs the header Inference-Header-Content-Length, which says where \
                        the JSON ends and the tensors begin"
                    .to_owned(),
            );
        };
        if size > rest.len() {
            self.out_of_sync = true;
            return Err(format!(
                "binary_data_size announces {size} bytes, but only {} are left after the JSON and the {} bytes of tensors \
                 before this one",
                rest.len(),
                self.taken
            ));
        }
        self.taken += size;
        Ok(rest.split_to(size))
    }

    pub(super) fn set_out_of_sync(&mut self) {
        self.out_of_sync = true;
    }

    /// Adds a complaint if bytes are left that no tensor announced.
    pub(super) fn finish(&self, complaints: &mut Complaints) {
        match &self.rest {
            Some(rest) if !rest.is_empty() && !self.out_of_sync => complaints.request(format!(
                "{} bytes are left over after the JSON and the {} bytes of tensors announced by binary_data_size",
                rest.len(),
                self.taken
            )),
            _ => {}
        }
    }
}

/// Decodes a raw binary request (`Inference-Header-Content-Length: 0`): the body consists of the bytes of the only input. All
/// outputs are answered in binary form.
///
/// The shape comes from the signature. The number of bytes determines a free dimension. If two are free, the first is 1. For
/// BYTES, the body is one element.
///
/// # Errors
/// If the model does not have exactly one input, the shape cannot be determined from the number of bytes, or the bytes do not fit
/// the shape.
pub fn decode_raw(body: &Bytes, signature: &Signature, hold: &Hold) -> Result<OipRequest, Failure> {
    let [spec] = signature.inputs() else {
        return Err(Failure::new(
            Code::InvalidRequest,
            format!(
                "a raw binary request (Inference-Header-Content-Length: 0) needs a model with exactly one input, this one \
                 has {}",
                signature.inputs().len()
            ),
        ));
    };
    hold.grow(copied_bytes(spec.datatype, usize::MAX, body))?;
    let tensor = raw_tensor(spec, body)
        .map_err(|problem| Failure::new(Code::InvalidTensor, format!("input {:?}: {problem}", &*spec.name)))?;
    let input = NamedTensor { name: spec.name.to_string(), tensor };
    let request = InferenceRequest { inputs: vec![input], ..InferenceRequest::default() };
    Ok(OipRequest { request, form: AnswerForm::binary() })
}

/// Interprets bytes as the elements of a tensor. Copies them only if they are not aligned.
pub(in crate::codec) fn tensor_data(datatype: DataType, shape: &Shape, bytes: Bytes) -> Result<Data, String> {
    let count =
        shape.elements().ok_or_else(|| format!("shape {shape} has more elements than this machine can address"))?;
    let Some(width) = datatype.width() else { return strings(count, shape, bytes).map(Data::Bytes) };
    if count.checked_mul(width) != Some(bytes.len()) {
        let expected = count.saturating_mul(width);
        return Err(format!("{datatype} in shape {shape} takes {expected} bytes, got {}", bytes.len()));
    }
    Ok(match datatype {
        DataType::Bool => return bools(&bytes).map(Data::Bool),
        DataType::Uint8 => Data::Uint8(view(bytes)?),
        DataType::Uint16 => Data::Uint16(view(bytes)?),
        DataType::Uint32 => Data::Uint32(view(bytes)?),
        DataType::Uint64 => Data::Uint64(view(bytes)?),
        DataType::Int8 => Data::Int8(view(bytes)?),
        DataType::Int16 => Data::Int16(view(bytes)?),
        DataType::Int32 => Data::Int32(view(bytes)?),
        DataType::Int64 => Data::Int64(view(bytes)?),
        DataType::Fp16 => Data::Fp16(view(bytes)?),
        DataType::Fp32 => Data::Fp32(view(bytes)?),
        DataType::Fp64 => Data::Fp64(view(bytes)?),
        DataType::Bytes => Data::Bytes(Vec::new()),
    })
}

/// The memory that [`tensor_data`] takes beside the bytes it is given.
pub(in crate::codec) fn copied_bytes(datatype: DataType, count: usize, bytes: &Bytes) -> usize {
    match datatype.width() {
        None => count.min(bytes.len() / 4).saturating_mul(size_of::<Bytes>()),
        Some(_) if datatype == DataType::Bool => bytes.len(),
        Some(width) if !bytes.as_ptr().addr().is_multiple_of(width) => bytes.len(),
        Some(_) => 0,
    }
}

/// The size of a tensor in binary form, in bytes.
pub(in crate::codec) fn binary_size(data: &Data) -> usize {
    match data {
        Data::Bytes(strings) => strings.iter().map(|s| 4 + s.len()).sum(),
        other => other.len() * other.datatype().width().unwrap_or_default(),
    }
}

/// Appends a tensor in binary form.
pub(in crate::codec) fn write(data: &Data, out: &mut Vec<u8>) -> Result<(), String> {
    match data {
        Data::Bytes(e) => {
            for (i, s) in e.iter().enumerate() {
                let length = u32::try_from(s.len())
                    .map_err(|_| format!("element {i} has {} bytes, more than BYTES allows (4 GiB)", s.len()))?;
                out.extend_from_slice(&length.to_le_bytes());
                out.extend_from_slice(s);
            }
        }
        numbers => out.extend_from_slice(numbers.le_bytes().unwrap_or_default()),
    }
    Ok(())
}

/// Checks that a tensor has a binary form: strings have at most 4 GiB.
pub(in crate::codec) fn check_lengths(data: &Data) -> Result<(), String> {
    let Data::Bytes(strings) = data else { return Ok(()) };
    match strings.iter().position(|string| u32::try_from(string.len()).is_err()) {
        Some(i) => Err(format!("element {i} has {} bytes, more than BYTES allows (4 GiB)", strings[i].len())),
        None => Ok(()),
    }
}

/// The position in a tensor that is written in binary form, in pieces.
#[derive(Debug, Default)]
pub(super) struct Blob {
    /// The next string; for numbers 0.
    element: usize,
    /// The next byte of the string, or of all numbers.
    byte: usize,
}

impl Blob {
    /// Appends until `out` has `until` bytes or everything is written. Returns true when everything is written.
    pub(super) fn write(&mut self, data: &Data, out: &mut Vec<u8>, until: usize) -> bool {
        let Data::Bytes(strings) = data else {
            return self.copy(data.le_bytes().unwrap_or_default(), out, until);
        };
        while out.len() < until
            && let Some(string) = strings.get(self.element)
        {
            if self.byte == 0 {
                // Checked by `check_lengths`.
                out.extend_from_slice(&u32::try_from(string.len()).unwrap_or(u32::MAX).to_le_bytes());
            }
            if self.copy(string, out, until.max(out.len() + 1)) {
                (self.element, self.byte) = (self.element + 1, 0);
            }
        }
        self.element == strings.len()
    }

    fn copy(&mut self, bytes: &[u8], out: &mut Vec<u8>, until: usize) -> bool {
        let end = bytes.len().min(self.byte + until.saturating_sub(out.len()));
        out.extend_from_slice(&bytes[self.byte..end]);
        self.byte = end;
        end == bytes.len()
    }
}

fn view<T: Element>(bytes: Bytes) -> Result<Elements<T>, String> {
    let length = bytes.len();
    Elements::view(bytes)
        .ok_or_else(|| format!("{length} bytes are not a whole number of elements, or there is no memory for them"))
}

fn bools(bytes: &[u8]) -> Result<Vec<bool>, String> {
    if let Some(i) = bytes.iter().position(|b| *b > 1) {
        return Err(format!("element {i} is expected to be the byte 0 or 1 (BOOL), got {}", bytes[i]));
    }
    let mut bools = Vec::new();
    bools.try_reserve_exact(bytes.len()).map_err(|_| format!("there is no memory for {} booleans", bytes.len()))?;
    bools.extend(bytes.iter().map(|b| *b == 1));
    Ok(bools)
}

/// Parses BYTES: each element is a little-endian u32 length and that many bytes. Memory is reserved for at most as many elements as
/// the bytes can contain.
fn strings(count: usize, shape: &Shape, mut bytes: Bytes) -> Result<Vec<Bytes>, String> {
    let mut strings = Vec::new();
    let capacity = count.min(bytes.len() / 4);
    strings.try_reserve_exact(capacity).map_err(|_| format!("there is no memory for {capacity} strings"))?;
    while bytes.has_remaining() {
        let i = strings.len();
        if i == count {
            return Err(format!("{} bytes are left over after the {count} elements of shape {shape}", bytes.len()));
        }
        let left = bytes.len();
        let Ok(length) = bytes.try_get_u32_le() else {
            return Err(format!("element {i} is expected to begin with its length in 4 bytes, got {left}"));
        };
        match usize::try_from(length) {
            Ok(length) if length <= bytes.len() => strings.push(bytes.split_to(length)),
            _ => return Err(format!("element {i} announces {length} bytes, but only {} are left", bytes.len())),
        }
    }
    Ok(strings)
}

fn raw_tensor(spec: &TensorSpec, body: &Bytes) -> Result<Tensor, String> {
    let cannot =
        |why: &str| format!("the shape of {spec} is not known in a raw binary request: {why}; send it with JSON");
    let dims = spec.dims.as_deref().ok_or_else(|| cannot("the number of dimensions is free"))?;
    let mut extents: Vec<usize> = Vec::with_capacity(dims.len());
    let mut free: Vec<usize> = Vec::new();
    for (axis, dim) in dims.iter().enumerate() {
        extents.push(if let Dim::Fixed(n) = dim { *n } else { 1 });
        if matches!(dim, Dim::Free(_)) {
            free.push(axis);
        }
    }
    let Some(width) = spec.datatype.width() else {
        return Tensor::new(Shape::new(&extents), Data::Bytes(vec![body.clone()])).map_err(|e| e.to_string());
    };
    let inferred = match free.as_slice() {
        [] => None,
        [only] => Some(*only),
        [0, second] => Some(*second),
        _ => return Err(cannot("more than one dimension after the first is free")),
    };
    if let Some(axis) = inferred {
        // The number of bytes for an extent of 1.
        let step = Shape::new(&extents).elements().and_then(|n| n.checked_mul(width)).unwrap_or(usize::MAX);
        if step == 0 || !body.len().is_multiple_of(step) {
            return Err(format!("expected a multiple of {step} bytes for {spec}, got {}", body.len()));
        }
        extents[axis] = body.len() / step;
    }
    let shape = Shape::new(&extents);
    let data = tensor_data(spec.datatype, &shape, body.clone())?;
    Tensor::new(shape, data).map_err(|e| e.to_string())
}
