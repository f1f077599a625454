//! Converts tensors: inputs are borrowed by ONNX Runtime, outputs are copied out of it.
#![expect(unsafe_code, reason = "the engine's interface is C")]

use crate::each_data;
use crate::tensor::{Data, DataType, Element, Shape, Tensor};
use bytes::Bytes;
use half::f16;
use ort::sys::{
    ONNXTensorElementDataType as ElementType, OrtAllocator, OrtAllocatorType, OrtMemType, OrtMemoryInfo, OrtStatusPtr,
    OrtTensorTypeAndShapeInfo, OrtValue,
};
use ort::{Error, api};
use smallvec::{SmallVec, smallvec};
use std::ffi::c_void;
use std::marker::PhantomData;
use std::ptr::{NonNull, null_mut};
use std::sync::OnceLock;

/// A value of the engine, over memory that lives for `'m`.
#[derive(Debug)]
pub(super) struct Value<'m> {
    pointer: NonNull<OrtValue>,
    memory: PhantomData<&'m [u8]>,
}

impl Value<'static> {
    /// Takes ownership of a value that the engine made.
    ///
    /// # Safety
    /// The pointer is null, or to a live value that nothing else releases.
    pub(super) unsafe fn take(pointer: *mut OrtValue) -> Option<Value<'static>> {
        Some(Value { pointer: NonNull::new(pointer)?, memory: PhantomData })
    }
}

impl<'m> Value<'m> {
    #[must_use]
    pub(super) fn as_ptr(&self) -> *mut OrtValue {
        self.pointer.as_ptr()
    }

    /// Passes a tensor to the engine without copying it. Strings are copied.
    pub(super) fn lend(tensor: &'m Tensor) -> Result<Value<'m>, Error> {
        let dims: SmallVec<[i64; 8]> = tensor.shape().iter().map(|d| i64::try_from(*d).unwrap_or(i64::MAX)).collect();
        match tensor.data() {
            Data::Bytes(strings) => copy_strings(strings, &dims),
            data => lend_numbers(data, element_type(tensor.datatype()), &dims),
        }
    }
}

impl Drop for Value<'_> {
    fn drop(&mut self) {
        // SAFETY: `self` owns the value. This does not free memory that was lent to it.
        unsafe { (api().ReleaseValue)(self.pointer.as_ptr()) };
    }
}

/// An output that is still in the engine.
pub(super) struct Output {
    value: Value<'static>,
    element_type: ElementType,
    shape: Shape,
    elements: usize,
    /// Bytes of all strings; 0 for numbers.
    text: usize,
}

impl Output {
    /// Finds out what an output is.
    ///
    /// # Errors
    /// The engine's error, or an error when the output is not a tensor.
    pub(super) fn of(value: Value<'static>) -> Result<Output, Error> {
        let (element_type, shape) = type_and_shape(&value)?;
        let elements =
            shape.elements().ok_or_else(|| Error::new("an output is larger than this machine can address"))?;
        let mut text = 0;
        if element_type == ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING {
            // SAFETY: a live tensor of strings.
            check(unsafe { (api().GetStringTensorDataLength)(value.as_ptr(), &raw mut text) })?;
        }
        Ok(Output { value, element_type, shape, elements, text })
    }

    /// Bytes of the copy.
    pub(super) fn bytes(&self) -> usize {
        let width = match self.element_type {
            ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE
            | ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64
            | ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT64 => 8,
            ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16
            | ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16
            | ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16 => 2,
            ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8
            | ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8
            | ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL => 1,
            ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING => size_of::<Bytes>(),
            _ => 4,
        };
        self.elements.saturating_mul(width).saturating_add(self.text)
    }

    /// Copies the output out of the engine, which frees its own copy.
    ///
    /// # Errors
    /// The engine's error, an error when the output is of an unknown type, or when there is no memory for the copy.
    pub(super) fn copy(self) -> Result<Tensor, Error> {
        let Output { value, element_type, shape, elements: n, text } = self;
        let mut at: *mut c_void = null_mut();
        if element_type != ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING {
            // SAFETY: a live tensor of numbers.
            check(unsafe { (api().GetTensorMutableData)(value.as_ptr(), &raw mut at) })?;
        }
        let at = at.cast_const();
        // SAFETY: the tensor holds `n` elements of the type that the engine reports, starting at `at`. With `n` of 0, `at` is
        // not read.
        let data = unsafe {
            match element_type {
                ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT => Data::Fp32(copy::<f32>(at, n)?.into()),
                ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE => Data::Fp64(copy::<f64>(at, n)?.into()),
                ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 => Data::Fp16(copy::<f16>(at, n)?.into()),
                ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 => Data::Int64(copy::<i64>(at, n)?.into()),
                ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32 => Data::Int32(copy::<i32>(at, n)?.into()),
                ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16 => Data::Int16(copy::<i16>(at, n)?.into()),
                ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8 => Data::Int8(copy::<i8>(at, n)?.into()),
                ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT64 => Data::Uint64(copy::<u64>(at, n)?.into()),
                ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32 => Data::Uint32(copy::<u32>(at, n)?.into()),
                ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16 => Data::Uint16(copy::<u16>(at, n)?.into()),
                ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 => Data::Uint8(copy::<u8>(at, n)?.into()),
                // Read as bytes: Rust's `bool` must be 0 or 1, which the engine does not guarantee. The allocation is used again.
                ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL => {
                    Data::Bool(copy::<u8>(at, n)?.into_iter().map(|b| b != 0).collect())
                }
                ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING => Data::Bytes(strings(&value, n, text)?),
                other => {
                    return Err(Error::new(format!(
                        "an output has element type {other:?}, which answers cannot contain"
                    )));
                }
            }
        };
        Tensor::new(shape, data).map_err(|e| Error::new(e.to_string()))
    }
}

/// Converts a status into a result and releases it.
pub(super) fn check(status: OrtStatusPtr) -> Result<(), Error> {
    // SAFETY: every status comes directly from an engine call and is used once.
    unsafe { Error::result_from_status(status) }
}

/// The engine's constant for a type.
#[must_use]
pub(super) fn element_type(datatype: DataType) -> ElementType {
    match datatype {
        DataType::Bool => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL,
        DataType::Uint8 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,
        DataType::Uint16 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16,
        DataType::Uint32 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32,
        DataType::Uint64 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT64,
        DataType::Int8 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8,
        DataType::Int16 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16,
        DataType::Int32 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32,
        DataType::Int64 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64,
        DataType::Fp16 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16,
        DataType::Fp32 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
        DataType::Fp64 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE,
        DataType::Bytes => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING,
    }
}

fn lend_numbers<'m>(data: &'m Data, element_type: ElementType, dims: &[i64]) -> Result<Value<'m>, Error> {
    // Some kernels read from a tensor without elements (InstanceNormalization, LSTM), and its own address may be dangling.
    #[repr(align(64))]
    struct Aligned([u8; 64]);
    static NO_ELEMENTS: Aligned = Aligned([0; 64]);
    let (mut at, bytes): (*const c_void, usize) =
        each_data!(data, |elements| (elements.as_ptr().cast(), size_of_val(&elements[..])));
    if bytes == 0 {
        at = NO_ELEMENTS.0.as_ptr().cast();
    }
    let mut value: *mut OrtValue = null_mut();
    // SAFETY: `at` points at `bytes` bytes of the given type, alive for `'m`. The engine takes a mutable pointer and only
    // reads: it never uses an input as the buffer of an output.
    check(unsafe {
        (api().CreateTensorWithDataAsOrtValue)(
            cpu_memory(),
            at.cast_mut(),
            bytes,
            dims.as_ptr(),
            dims.len(),
            element_type,
            &raw mut value,
        )
    })?;
    own(value)
}

/// Copies strings into the engine's `std::string`s, by length and not as C strings, so that any byte is allowed.
fn copy_strings<'m>(strings: &[Bytes], dims: &[i64]) -> Result<Value<'m>, Error> {
    let value = allocate(ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING, dims)?;
    for (i, string) in strings.iter().enumerate() {
        let mut buffer = null_mut();
        // SAFETY: a live tensor of strings with at least `i + 1` of them.
        check(unsafe {
            (api().GetResizedStringTensorElementBuffer)(value.as_ptr(), i, string.len(), &raw mut buffer)
        })?;
        if !string.is_empty() {
            // SAFETY: the engine has just allocated this many bytes.
            unsafe { std::ptr::copy_nonoverlapping(string.as_ptr(), buffer.cast::<u8>(), string.len()) };
        }
    }
    Ok(value)
}

fn allocate<'m>(element_type: ElementType, dims: &[i64]) -> Result<Value<'m>, Error> {
    let mut allocator: *mut OrtAllocator = null_mut();
    let mut value: *mut OrtValue = null_mut();
    // SAFETY: the default allocator belongs to the engine and is never released. `value` stays null when the call fails.
    unsafe {
        check((api().GetAllocatorWithDefaultOptions)(&raw mut allocator))?;
        check((api().CreateTensorAsOrtValue)(allocator, dims.as_ptr(), dims.len(), element_type, &raw mut value))?;
    }
    own(value)
}

fn own<'m>(value: *mut OrtValue) -> Result<Value<'m>, Error> {
    let pointer = NonNull::new(value).ok_or_else(|| Error::new("the engine returned neither a value nor an error"))?;
    Ok(Value { pointer, memory: PhantomData })
}

/// The engine's description of ordinary memory.
fn cpu_memory() -> *const OrtMemoryInfo {
    struct Info(*mut OrtMemoryInfo);
    // SAFETY: written once before it is shared, then only read, and never released.
    unsafe impl Send for Info {}
    // SAFETY: as above.
    unsafe impl Sync for Info {}
    static INFO: OnceLock<Info> = OnceLock::new();
    INFO.get_or_init(|| {
        let mut info = null_mut();
        // SAFETY: makes a description; the pointer is to a live variable.
        let status = unsafe {
            (api().CreateCpuMemoryInfo)(
                OrtAllocatorType::OrtDeviceAllocator,
                OrtMemType::OrtMemTypeDefault,
                &raw mut info,
            )
        };
        check(status).expect("ONNX Runtime describes ordinary memory");
        Info(info)
    })
    .0
}

fn type_and_shape(value: &Value<'_>) -> Result<(ElementType, Shape), Error> {
    struct Info(*mut OrtTensorTypeAndShapeInfo);
    impl Drop for Info {
        fn drop(&mut self) {
            // SAFETY: the engine made it, and this value owns it.
            unsafe { (api().ReleaseTensorTypeAndShapeInfo)(self.0) };
        }
    }
    let mut info = null_mut();
    let mut element_type = ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
    let mut rank = 0;
    // SAFETY: a live value; the engine returns an error when it is not a tensor. `info` lives until the end of this
    // function.
    unsafe {
        check((api().GetTensorTypeAndShape)(value.as_ptr(), &raw mut info))?;
        let info = Info(info);
        check((api().GetTensorElementType)(info.0, &raw mut element_type))?;
        check((api().GetDimensionsCount)(info.0, &raw mut rank))?;
        let mut dims: SmallVec<[i64; 8]> = smallvec![0; rank];
        check((api().GetDimensions)(info.0, dims.as_mut_ptr(), rank))?;
        let shape = dims.iter().map(|d| usize::try_from(*d)).collect::<Result<Shape, _>>();
        Ok((element_type, shape.map_err(|_| Error::new("an output has a negative dimension"))?))
    }
}

/// # Safety
/// `at` points at `n` elements of `T`, or `n` is 0.
unsafe fn copy<T: Element>(at: *const c_void, n: usize) -> Result<Vec<T>, Error> {
    if n == 0 {
        return Ok(Vec::new());
    }
    let mut out = empty::<T>(n)?;
    // SAFETY: the caller guarantees `n` elements, `out` has capacity for them, and every bit pattern is a valid `T`.
    unsafe {
        std::ptr::copy_nonoverlapping(at.cast::<T>(), out.as_mut_ptr(), n);
        out.set_len(n);
    }
    Ok(out)
}

/// A list with room for `n` elements: the number is the model's or the caller's, so that there may be no memory for it.
fn empty<T>(n: usize) -> Result<Vec<T>, Error> {
    let mut out = Vec::new();
    out.try_reserve_exact(n).map_err(|_| Error::new(format!("{OUT_OF_MEMORY} for {n} elements of an output")))?;
    Ok(out)
}

/// The beginning of a message that is recognised as missing memory.
const OUT_OF_MEMORY: &str = "std::bad_alloc: there is no memory";

/// Copies all strings into one buffer of `total` bytes; each string is a view into it.
fn strings(value: &Value<'_>, n: usize, total: usize) -> Result<Vec<Bytes>, Error> {
    let (mut content, mut starts) = (empty::<u8>(total)?, empty::<usize>(n)?);
    content.resize(total, 0);
    starts.resize(n, 0);
    // SAFETY: a live tensor of strings. The buffers have the sizes that the engine reported.
    check(unsafe {
        (api().GetStringTensorContent)(value.as_ptr(), content.as_mut_ptr().cast(), total, starts.as_mut_ptr(), n)
    })?;
    let content = Bytes::from(content);
    let ends = starts.iter().skip(1).copied().chain([total]);
    let mut strings = empty::<Bytes>(n)?;
    strings.extend(starts.iter().zip(ends).map(|(start, end)| content.slice(*start..end)));
    Ok(strings)
}
