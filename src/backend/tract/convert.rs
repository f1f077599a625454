//! Copies tensors into and out of tract.

use crate::backend::RunError;
use crate::model::TensorSpec;
use crate::tensor::{Data, DataType, Element, Shape, Tensor};
use bytes::Bytes;
use half::f16;
use tract_onnx::prelude::tract_ndarray::ArrayD;
use tract_onnx::prelude::{Datum, DatumType, IntoTValue, TValue, Tensor as TractTensor, TractResult};
use tract_onnx::tract_hir::internal::bail;

/// tract's constant for a type.
pub(super) fn datum_type(datatype: DataType) -> DatumType {
    match datatype {
        DataType::Bool => DatumType::Bool,
        DataType::Uint8 => DatumType::U8,
        DataType::Uint16 => DatumType::U16,
        DataType::Uint32 => DatumType::U32,
        DataType::Uint64 => DatumType::U64,
        DataType::Int8 => DatumType::I8,
        DataType::Int16 => DatumType::I16,
        DataType::Int32 => DatumType::I32,
        DataType::Int64 => DatumType::I64,
        DataType::Fp16 => DatumType::F16,
        DataType::Fp32 => DatumType::F32,
        DataType::Fp64 => DatumType::F64,
        DataType::Bytes => DatumType::String,
    }
}

/// The type in answers for one of tract's types. `None` when there is none.
pub(super) fn datatype(datum_type: DatumType) -> Option<DataType> {
    DataType::ALL.into_iter().find(|d| self::datum_type(*d) == datum_type)
}

/// # Errors
/// [`RunError::Refused`] for a string that is not UTF-8: tract's strings have to be.
pub(super) fn into_tract(tensor: &Tensor) -> Result<TValue, RunError> {
    let shape = tensor.shape();
    let copied = match tensor.data() {
        Data::Bool(e) => TractTensor::from_shape(shape, e),
        Data::Uint8(e) => TractTensor::from_shape(shape, e),
        Data::Uint16(e) => TractTensor::from_shape(shape, e),
        Data::Uint32(e) => TractTensor::from_shape(shape, e),
        Data::Uint64(e) => TractTensor::from_shape(shape, e),
        Data::Int8(e) => TractTensor::from_shape(shape, e),
        Data::Int16(e) => TractTensor::from_shape(shape, e),
        Data::Int32(e) => TractTensor::from_shape(shape, e),
        Data::Int64(e) => TractTensor::from_shape(shape, e),
        Data::Fp16(e) => TractTensor::from_shape(shape, e),
        Data::Fp32(e) => TractTensor::from_shape(shape, e),
        Data::Fp64(e) => TractTensor::from_shape(shape, e),
        Data::Bytes(strings) => {
            let strings = strings.iter().enumerate().map(|(i, s)| utf8(i, s)).collect::<Result<Vec<_>, _>>()?;
            ArrayD::from_shape_vec(&**shape, strings).map(TractTensor::from).map_err(Into::into)
        }
    };
    copied
        .map(IntoTValue::into_tvalue)
        .map_err(|e| super::errors::failed("an input could not be passed to the engine", &e))
}

/// Copies an output, as the type in the signature.
pub(super) fn from_tract(value: &TractTensor, spec: &TensorSpec) -> TractResult<Tensor> {
    let data = match spec.datatype {
        DataType::Bool => Data::Bool(slice::<bool>(value)?.to_vec()),
        DataType::Uint8 => Data::Uint8(elements::<u8>(value)?.into()),
        DataType::Uint16 => Data::Uint16(elements::<u16>(value)?.into()),
        DataType::Uint32 => Data::Uint32(elements::<u32>(value)?.into()),
        DataType::Uint64 => Data::Uint64(elements::<u64>(value)?.into()),
        DataType::Int8 => Data::Int8(elements::<i8>(value)?.into()),
        DataType::Int16 => Data::Int16(elements::<i16>(value)?.into()),
        DataType::Int32 => Data::Int32(elements::<i32>(value)?.into()),
        DataType::Int64 => Data::Int64(elements::<i64>(value)?.into()),
        DataType::Fp16 => Data::Fp16(elements::<f16>(value)?.into()),
        DataType::Fp32 => Data::Fp32(elements::<f32>(value)?.into()),
        DataType::Fp64 => Data::Fp64(elements::<f64>(value)?.into()),
        DataType::Bytes => {
            Data::Bytes(slice::<String>(value)?.iter().map(|s| Bytes::copy_from_slice(s.as_bytes())).collect())
        }
    };
    match Tensor::new(Shape::new(value.shape()), data) {
        Ok(tensor) => Ok(tensor),
        Err(e) => bail!("output {:?}: {e}", &*spec.name),
    }
}

fn utf8(i: usize, string: &Bytes) -> Result<String, RunError> {
    String::from_utf8(string.to_vec()).map_err(|_| {
        RunError::Refused(format!("string {i} of a BYTES input is not UTF-8, which the engine tract requires"))
    })
}

fn elements<T: Datum + Element>(value: &TractTensor) -> TractResult<Vec<T>> {
    slice::<T>(value).map(<[T]>::to_vec)
}

fn slice<T: Datum>(value: &TractTensor) -> TractResult<&[T]> {
    value.try_as_plain_ram()?.as_slice::<T>()
}
