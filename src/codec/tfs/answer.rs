//! Encoding an answer as `{"predictions": …}` or `{"outputs": …}`, in the style of its request.

use super::Style;
use crate::codec::text::{self, NotUtf8};
use crate::model::{Answer, Code, Failure};
use crate::tensor::{Data, Tensor};
use bytes::Bytes;

/// An encoded predict answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedPredict {
    pub body: Bytes,
    /// The number of elements that are NaN or infinite. They are written as `null`.
    pub nonfinite: usize,
}

/// Encodes an answer in the style of its request. The name of a single output is omitted. BYTES outputs are `{"b64": "…"}` if
/// their name ends in `_bytes`, and text otherwise.
///
/// # Errors
/// `INVALID_REQUEST` if the request has rows and an output does not have one entry per row (the column form has no such rule),
/// or if strings are not UTF-8.
pub fn encode_predict(answer: &Answer, style: Style) -> Result<EncodedPredict, Failure> {
    let outputs: Vec<Output<'_>> = answer.outputs.iter().map(|(name, tensor)| Output::new(name, tensor)).collect();
    let mut writer = Writer { out: Vec::with_capacity(estimated_size(answer)), nonfinite: 0 };
    match style {
        Style::Columns => {
            text::plain(&mut writer.out, "{\"outputs\":");
            writer.entry(&outputs, |writer, output| writer.nested(output, output.tensor.shape(), &mut 0))?;
        }
        Style::Rows(rows) => {
            if let Some(odd) = outputs.iter().find(|o| o.tensor.shape().first() != Some(&rows)) {
                return Err(Failure::new(
                    Code::InvalidRequest,
                    format!(
                        "output {:?} has shape {}, which is not one entry for each of the {rows} instances: send the request \
                         in column form (\"inputs\")",
                        odd.name,
                        odd.tensor.shape()
                    ),
                ));
            }
            text::plain(&mut writer.out, "{\"predictions\":[");
            for row in 0..rows {
                if row > 0 {
                    writer.out.push(b',');
                }
                writer.entry(&outputs, |writer, output| {
                    let mut at = row * (output.tensor.data().len() / rows);
                    writer.nested(output, &output.tensor.shape()[1..], &mut at)
                })?;
            }
            writer.out.push(b']');
        }
    }
    writer.out.push(b'}');
    Ok(EncodedPredict { body: writer.out.into(), nonfinite: writer.nonfinite })
}

struct Output<'a> {
    name: &'a str,
    tensor: &'a Tensor,
    base64: bool,
}

impl<'a> Output<'a> {
    fn new(name: &'a str, tensor: &'a Tensor) -> Output<'a> {
        Output { name, tensor, base64: name.ends_with("_bytes") }
    }
}

struct Writer {
    out: Vec<u8>,
    nonfinite: usize,
}

impl Writer {
    /// Writes one row, or the whole answer in column form: a value for one output, an object for several.
    fn entry(
        &mut self,
        outputs: &[Output<'_>],
        mut write: impl FnMut(&mut Writer, &Output<'_>) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        if let [only] = outputs {
            return write(self, only);
        }
        self.out.push(b'{');
        for (i, output) in outputs.iter().enumerate() {
            if i > 0 {
                self.out.push(b',');
            }
            text::string(&mut self.out, output.name);
            self.out.push(b':');
            write(self, output)?;
        }
        self.out.push(b'}');
        Ok(())
    }

    /// Writes the elements from `at` on, in nested lists with these extents. Recursive: an output has few dimensions.
    fn nested(&mut self, output: &Output<'_>, extents: &[usize], at: &mut usize) -> Result<(), Failure> {
        let (listed, run) = match extents {
            [] => (false, 1),
            [run] => (true, *run),
            [outer, inner @ ..] => {
                self.out.push(b'[');
                for i in 0..*outer {
                    if i > 0 {
                        self.out.push(b',');
                    }
                    self.nested(output, inner, at)?;
                }
                self.out.push(b']');
                return Ok(());
            }
        };
        if listed {
            self.out.push(b'[');
        }
        let range = *at..*at + run;
        *at += run;
        match output.tensor.data() {
            Data::Bytes(strings) if output.base64 => text::base64_objects(&mut self.out, &strings[range]),
            data => {
                self.nonfinite += text::elements(&mut self.out, data, range).map_err(|e| not_utf8(output.name, e))?;
            }
        }
        if listed {
            self.out.push(b']');
        }
        Ok(())
    }
}

fn estimated_size(answer: &Answer) -> usize {
    let outputs = answer.outputs.iter().map(|(name, tensor)| match tensor.data() {
        Data::Bytes(strings) => strings.iter().map(|s| s.len() + 6).sum(),
        data => name.len() + data.len() * text::estimated_width(data),
    });
    outputs.sum::<usize>() + 64
}

#[cold]
fn not_utf8(name: &str, NotUtf8(index): NotUtf8) -> Failure {
    Failure::new(
        Code::InvalidRequest,
        format!(
            "output {name:?}: element {index} is not UTF-8 text, which JSON cannot represent: request it in the binary form of the \
             Open Inference Protocol (/v2), or give the output a name that ends in _bytes"
        ),
    )
}
