//! Generated inputs: requests made from a signature alone, for warm-up, timing and the batchability test.

use crate::model::{Dim, InferenceRequest, NamedTensor, Signature, TensorSpec};
use crate::tensor::{Data, DataType, Shape, Tensor};
use bytes::Bytes;
use half::f16;

/// Limit for all inputs of one request together. The dimensions come from the model file, so they may be anything.
const MAX_BYTES: usize = 128 << 20;

/// A request of `rows` rows. Free dimensions that are not the row dimension are 1. `fill` makes the elements of a tensor.
///
/// # Errors
/// When the inputs would be larger than [`MAX_BYTES`].
pub(super) fn generate(
    signature: &Signature,
    rows: usize,
    fill: fn(DataType, usize) -> Data,
) -> Result<InferenceRequest, String> {
    let row_symbol = signature.inputs().iter().find_map(|spec| match spec.dims.as_deref() {
        Some([Dim::Free(Some(symbol)), ..]) if signature.has_rows() => Some(symbol.clone()),
        _ => None,
    });
    let extent = |axis: usize, dim: &Dim| match dim {
        Dim::Fixed(n) => *n,
        Dim::Free(Some(symbol)) if Some(symbol) == row_symbol.as_ref() => rows,
        Dim::Free(_) if axis == 0 && signature.has_rows() => rows,
        Dim::Free(_) => 1,
    };
    let shape = |_, spec: &TensorSpec| match &spec.dims {
        None => Shape::new(&[1]),
        Some(dims) => dims.iter().enumerate().map(|(axis, dim)| extent(axis, dim)).collect(),
    };
    generate_shaped(signature, shape, fill)
}

/// A request whose inputs have the shapes that `shape` gives for an input's index and declaration.
///
/// # Errors
/// When the inputs would be larger than [`MAX_BYTES`].
pub(super) fn generate_shaped(
    signature: &Signature,
    shape: impl Fn(usize, &TensorSpec) -> Shape,
    fill: fn(DataType, usize) -> Data,
) -> Result<InferenceRequest, String> {
    let mut left = MAX_BYTES;
    let tensor = |(input, spec): (usize, &TensorSpec)| {
        let shape = shape(input, spec);
        let width = spec.datatype.width().unwrap_or(size_of::<Bytes>());
        let elements = shape.elements().and_then(|n| Some((n, left.checked_sub(n.checked_mul(width)?)?)));
        let Some((elements, still_left)) = elements else {
            let name = &*spec.name;
            return Err(format!(
                "input {name:?} of shape {shape} is too large to generate: the limit for all inputs is {MAX_BYTES} bytes"
            ));
        };
        left = still_left;
        let tensor = Tensor::new(shape, fill(spec.datatype, elements)).map_err(|e| e.to_string())?;
        Ok(NamedTensor { name: spec.name.to_string(), tensor })
    };
    let inputs = signature.inputs().iter().enumerate().map(tensor).collect::<Result<_, String>>()?;
    Ok(InferenceRequest { inputs, ..InferenceRequest::default() })
}

/// `n` ones (`true`, the text `1`). Some models divide by their input and refuse zeros.
pub(super) fn ones(datatype: DataType, n: usize) -> Data {
    match datatype {
        DataType::Bool => Data::Bool(vec![true; n]),
        DataType::Uint8 => Data::Uint8(vec![1; n].into()),
        DataType::Uint16 => Data::Uint16(vec![1; n].into()),
        DataType::Uint32 => Data::Uint32(vec![1; n].into()),
        DataType::Uint64 => Data::Uint64(vec![1; n].into()),
        DataType::Int8 => Data::Int8(vec![1; n].into()),
        DataType::Int16 => Data::Int16(vec![1; n].into()),
        DataType::Int32 => Data::Int32(vec![1; n].into()),
        DataType::Int64 => Data::Int64(vec![1; n].into()),
        DataType::Fp16 => Data::Fp16(vec![f16::ONE; n].into()),
        DataType::Fp32 => Data::Fp32(vec![1.0; n].into()),
        DataType::Fp64 => Data::Fp64(vec![1.0; n].into()),
        DataType::Bytes => Data::Bytes(vec![Bytes::from_static(b"1"); n]),
    }
}

/// `n` small, different numbers. They are small because a model may use them as indices into a table.
pub(super) fn varied(datatype: DataType, n: usize) -> Data {
    // A fixed seed: every version gets the same numbers at every start.
    let mut random = fastrand::Rng::with_seed(0x51_u64);
    let mut small = || random.u8(0..4);
    macro_rules! integers {
        ($t:ty) => {
            (0..n).map(|_| <$t>::try_from(small()).unwrap_or_default()).collect::<Vec<_>>().into()
        };
    }
    match datatype {
        DataType::Bool => Data::Bool((0..n).map(|_| small() > 1).collect()),
        DataType::Uint8 => Data::Uint8(integers!(u8)),
        DataType::Uint16 => Data::Uint16(integers!(u16)),
        DataType::Uint32 => Data::Uint32(integers!(u32)),
        DataType::Uint64 => Data::Uint64(integers!(u64)),
        DataType::Int8 => Data::Int8(integers!(i8)),
        DataType::Int16 => Data::Int16(integers!(i16)),
        DataType::Int32 => Data::Int32(integers!(i32)),
        DataType::Int64 => Data::Int64(integers!(i64)),
        DataType::Fp16 => {
            Data::Fp16((0..n).map(|_| f16::from_f32(random.f32() * 4.0 - 2.0)).collect::<Vec<_>>().into())
        }
        DataType::Fp32 => Data::Fp32((0..n).map(|_| random.f32() * 4.0 - 2.0).collect::<Vec<_>>().into()),
        DataType::Fp64 => Data::Fp64((0..n).map(|_| random.f64() * 4.0 - 2.0).collect::<Vec<_>>().into()),
        DataType::Bytes => Data::Bytes((0..n).map(|_| Bytes::from(small().to_string())).collect()),
    }
}
