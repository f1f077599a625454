//! Keeps the inputs of the runs in progress, so that a run that ended the process can be repeated.

use super::region::{self, Cell, Region, read_bytes};
use super::thread;
use crate::model::{Checked, Signature};
use crate::tensor::{Data, DataType};
use std::sync::atomic::{AtomicU8, Ordering};

/// The inputs of a run that did not end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptInputs {
    inputs: Vec<KeptTensor>,
    outputs: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct KeptTensor {
    name: String,
    datatype: DataType,
    shape: Vec<u64>,
    /// As the binary tensor extension has them.
    data: Vec<u8>,
}

/// Inputs that are kept until this is dropped.
#[derive(Debug)]
pub struct Keeping(Option<&'static Cell>);

impl Drop for Keeping {
    #[inline]
    fn drop(&mut self) {
        if let Some(cell) = self.0 {
            cell.inputs.store(0, Ordering::Relaxed);
        }
    }
}

/// Copies the inputs of a run into the region, if that is switched on and they fit. Does nothing for a run without inputs.
#[inline]
#[must_use]
pub fn keep_inputs(signature: &Signature, request: &Checked) -> Keeping {
    match region::installed() {
        Some(region) if region.keeps_inputs() => Keeping(copy(region, signature, request)),
        _ => Keeping(None),
    }
}

fn copy(region: &Region, signature: &Signature, request: &Checked) -> Option<&'static Cell> {
    let cell = thread::this_cell();
    copy_to(region, cell, signature, request).then_some(cell)
}

/// Returns whether they fit.
pub(super) fn copy_to(region: &Region, cell: &Cell, signature: &Signature, request: &Checked) -> bool {
    let mut writer = Writer { to: region.inputs_of_cell(cell), at: 0 };
    let written = writer.request(signature, request);
    cell.inputs.store(written.map_or(0, |()| writer.at), Ordering::Relaxed);
    written.is_some()
}

/// Writes numbers and bytes one after the other. `None` when they do not fit.
struct Writer {
    to: &'static [AtomicU8],
    at: usize,
}

impl Writer {
    fn request(&mut self, signature: &Signature, request: &Checked) -> Option<()> {
        self.number(signature.given(request).count())?;
        for (spec, tensor) in signature.given(request) {
            self.text(spec.name.as_bytes())?;
            self.number(DataType::ALL.iter().position(|known| *known == tensor.datatype())?)?;
            self.number(tensor.shape().len())?;
            tensor.shape().iter().try_for_each(|extent| self.number(*extent))?;
            match (tensor.data(), tensor.data().le_bytes()) {
                (_, Some(bytes)) => self.text(bytes)?,
                (Data::Bytes(elements), None) => {
                    self.number(elements.iter().map(|element| element.len() + 4).sum())?;
                    for element in elements {
                        self.bytes(&u32::try_from(element.len()).ok()?.to_le_bytes())?;
                        self.bytes(element)?;
                    }
                }
                (_, None) => return None,
            }
        }
        self.number(request.wanted().len())?;
        request.wanted().iter().try_for_each(|output| self.text(signature.outputs().get(*output)?.name.as_bytes()))
    }

    fn number(&mut self, number: usize) -> Option<()> {
        self.bytes(&(number as u64).to_le_bytes())
    }

    fn text(&mut self, bytes: &[u8]) -> Option<()> {
        self.number(bytes.len())?;
        self.bytes(bytes)
    }

    #[expect(unsafe_code, reason = "inputs may be megabytes, and a store for each byte would take milliseconds")]
    fn bytes(&mut self, bytes: &[u8]) -> Option<()> {
        let end = self.at.checked_add(bytes.len()).filter(|end| *end <= self.to.len())?;
        let to = self.to[self.at..end].as_ptr().cast_mut().cast::<u8>();
        // SAFETY: the target has as many bytes as the source and is not part of it: it is shared memory that no tensor points to.
        // Atomic integers may be written through a shared reference. This thread alone uses the cell's part of the region, and the
        // other process reads it only after this one has ended.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        self.at = end;
        Some(())
    }
}

impl KeptInputs {
    /// The inputs of the run that a cell's thread was in. `None` where none are kept, or where they cannot be read.
    pub(super) fn read(region: &Region, cell: &Cell) -> Option<KeptInputs> {
        let length = cell.inputs.load(Ordering::Relaxed);
        let bytes = read_bytes(region.inputs_of_cell(cell).get(..length).filter(|bytes| !bytes.is_empty())?);
        let mut reader = Reader(&bytes);
        let inputs = reader.count()?;
        let inputs = (0..inputs).map(|_| reader.tensor()).collect::<Option<Vec<_>>>()?;
        let outputs = reader.count()?;
        let outputs = (0..outputs).map(|_| reader.text()).collect::<Option<Vec<_>>>()?;
        Some(KeptInputs { inputs, outputs })
    }

    /// The body of a predict request with these inputs: Open Inference Protocol with binary tensors. The binary data begins behind the
    /// closing brace.
    #[must_use]
    pub fn body(&self) -> Vec<u8> {
        let inputs: Vec<serde_json::Value> = self
            .inputs
            .iter()
            .map(|input| {
                serde_json::json!({
                    "name": input.name,
                    "shape": input.shape,
                    "datatype": input.datatype.as_str(),
                    "parameters": {"binary_data_size": input.data.len()},
                })
            })
            .collect();
        let outputs: Vec<serde_json::Value> =
            self.outputs.iter().map(|name| serde_json::json!({ "name": name })).collect();
        let mut body = serde_json::json!({ "inputs": inputs, "outputs": outputs }).to_string().into_bytes();
        self.inputs.iter().for_each(|input| body.extend_from_slice(&input.data));
        body
    }
}

/// Reads what [`Writer`] wrote. `None` at the first part that is not what it should be.
struct Reader<'b>(&'b [u8]);

impl Reader<'_> {
    fn bytes(&mut self, n: usize) -> Option<&[u8]> {
        let (bytes, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(bytes)
    }

    fn number(&mut self) -> Option<u64> {
        self.bytes(8)?.try_into().ok().map(u64::from_le_bytes)
    }

    /// A number of things that follow, each of at least one number.
    fn count(&mut self) -> Option<usize> {
        let count = usize::try_from(self.number()?).ok()?;
        (count <= self.0.len() / 8).then_some(count)
    }

    fn blob(&mut self) -> Option<Vec<u8>> {
        let length = usize::try_from(self.number()?).ok()?;
        self.bytes(length).map(<[u8]>::to_vec)
    }

    fn text(&mut self) -> Option<String> {
        String::from_utf8(self.blob()?).ok()
    }

    fn tensor(&mut self) -> Option<KeptTensor> {
        let name = self.text()?;
        let datatype = DataType::ALL.get(usize::try_from(self.number()?).ok()?).copied()?;
        let rank = self.count()?;
        let shape = (0..rank).map(|_| self.number()).collect::<Option<_>>()?;
        Some(KeptTensor { name, datatype, shape, data: self.blob()? })
    }
}
