//! Encoding an answer as `{"predictions": …}` or `{"outputs": …}`, in the style of its request.

use super::Style;
use crate::codec::pieces::{self, Form, Lists, Pieces, estimated_json};
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

/// Encodes an answer in the style of its request. The name of a single output is omitted, except for `MLflow`. BYTES outputs are `{"b64": "…"}` if
/// their name ends in `_bytes`, and text otherwise.
///
/// # Errors
/// `INVALID_REQUEST` if the request has rows and an output does not have one entry per row (the column form has no such rule),
/// or if strings are not UTF-8.
pub fn encode_predict(answer: &Answer, style: Style) -> Result<EncodedPredict, Failure> {
    let outputs: Vec<Output<'_>> = answer.outputs.iter().map(|(name, tensor)| Output::new(name, tensor)).collect();
    let layout = Layout::of(style);
    let mut writer = Writer { out: Vec::with_capacity(estimated_size(answer)), nonfinite: 0, layout };
    text::plain(&mut writer.out, layout.head);
    match layout.rows {
        None => writer.entry(&outputs, |writer, output| writer.nested(output, output.tensor.shape(), &mut 0))?,
        Some(rows) => {
            check_rows(answer, rows)?;
            for row in 0..rows {
                if row > 0 {
                    writer.out.push(b',');
                }
                writer.entry(&outputs, |writer, output| {
                    let mut at = row * (output.tensor.data().len() / rows);
                    writer.nested(output, layout.of_row(output.tensor), &mut at)
                })?;
            }
        }
    }
    text::plain(&mut writer.out, layout.tail());
    Ok(EncodedPredict { body: writer.out.into(), nonfinite: writer.nonfinite })
}

/// The differences between the styles.
#[derive(Debug, Clone, Copy)]
struct Layout {
    /// What is before the values.
    head: &'static str,
    /// `None`: one entry per tensor, which is written like one row without a list around it.
    rows: Option<usize>,
    /// A single output has its name too.
    named: bool,
    /// A row with one element is written without a list.
    flat: bool,
}

impl Layout {
    const fn of(style: Style) -> Layout {
        let (predictions, listed) = ("{\"predictions\":", "{\"predictions\":[");
        match style {
            Style::Columns => Layout { head: "{\"outputs\":", rows: None, named: false, flat: false },
            Style::Rows(rows) => Layout { head: listed, rows: Some(rows), named: false, flat: false },
            Style::Records(rows) => Layout { head: listed, rows: Some(rows), named: true, flat: true },
            Style::Named => Layout { head: predictions, rows: None, named: true, flat: false },
        }
    }

    /// What is behind the values.
    const fn tail(self) -> &'static str {
        if self.rows.is_some() { "]}" } else { "}" }
    }

    /// The extents of one row of an output.
    fn of_row(self, tensor: &Tensor) -> &[usize] {
        let extents = &tensor.shape()[1..];
        if self.flat && extents.iter().all(|extent| *extent == 1) { &[] } else { extents }
    }
}

/// Whether an answer is encoded in pieces, because its text is large.
#[must_use]
pub fn is_large(answer: &Answer, style: Style) -> bool {
    let names: usize = answer.outputs.iter().map(|(name, _)| name.len() + 8).sum();
    let rows = Layout::of(style).rows.unwrap_or(1);
    let values = answer.outputs.iter().fold(0usize, |sum, (_, tensor)| sum.saturating_add(estimated_json(tensor)));
    rows.saturating_mul(names).saturating_add(values) > 4 * pieces::PIECE
}

/// Prepares to encode an answer in pieces, with the errors of [`encode_predict`]. Returns the number of elements that are not finite too.
///
/// # Errors
/// As [`encode_predict`].
pub fn predict_in_pieces(answer: Answer, style: Style) -> Result<(Pieces, usize), Failure> {
    let mut nonfinite = 0;
    for (name, tensor) in answer.outputs.iter() {
        let output = Output::new(name, tensor);
        if !output.base64
            && let Some(index) = pieces::first_not_utf8(tensor.data())
        {
            return Err(not_utf8(name, NotUtf8(index)));
        }
        nonfinite += tensor.data().count_nonfinite();
    }
    let layout = Layout::of(style);
    if let Some(rows) = layout.rows {
        check_rows(&answer, rows)?;
    }
    let state = TfsPieces { answer, layout, at: Place::Start, lists: None };
    Ok((Pieces(Form::Tfs(state)), nonfinite))
}

/// The state between two pieces.
#[derive(Debug)]
pub(in crate::codec) struct TfsPieces {
    answer: Answer,
    layout: Layout,
    at: Place,
    /// The values that are being written.
    lists: Option<Lists>,
}

#[derive(Debug, Clone, Copy)]
enum Place {
    Start,
    /// The value of an output in a row, or the end of the row.
    Value {
        row: usize,
        output: usize,
    },
    End,
}

impl TfsPieces {
    pub(in crate::codec) fn held(&self) -> usize {
        self.answer.size()
    }

    /// Appends to a piece until it is full or everything is written.
    pub(in crate::codec) fn write(&mut self, out: &mut Vec<u8>) {
        while !pieces::is_full(out) {
            match self.at {
                Place::Start => {
                    text::plain(out, self.layout.head);
                    self.at = Place::Value { row: 0, output: 0 };
                }
                Place::Value { row, .. } if row >= self.layout.rows.unwrap_or(1) => {
                    text::plain(out, self.layout.tail());
                    self.at = Place::End;
                }
                Place::Value { row, output } => self.value(out, row, output),
                Place::End => return,
            }
        }
    }

    fn value(&mut self, out: &mut Vec<u8>, row: usize, output: usize) {
        let layout = self.layout;
        let alone = self.answer.outputs.len() == 1 && !layout.named;
        let Some((name, tensor)) = self.answer.outputs.get(output) else {
            if !alone {
                // Without outputs, a row is an empty object.
                text::plain(out, if output == 0 { begin_row(row) } else { "" });
                out.push(b'}');
            }
            self.at = Place::Value { row: row + 1, output: 0 };
            return;
        };
        let lists = self.lists.get_or_insert_with(|| {
            if alone {
                text::plain(out, if row > 0 { "," } else { "" });
            } else {
                text::plain(out, if output == 0 { begin_row(row) } else { "," });
                text::string(out, name);
                out.push(b':');
            }
            let base64 = Output::new(name, tensor).base64;
            match layout.rows {
                None => Lists::new(tensor.shape(), 0, base64),
                Some(rows) => Lists::new(layout.of_row(tensor), row * (tensor.data().len() / rows), base64),
            }
        });
        if lists.write(out, tensor.data()) {
            (self.lists, self.at) = (None, Place::Value { row, output: output + 1 });
        }
    }
}

fn begin_row(row: usize) -> &'static str {
    if row > 0 { ",{" } else { "{" }
}

fn check_rows(answer: &Answer, rows: usize) -> Result<(), Failure> {
    let Some((name, tensor)) = answer.outputs.iter().find(|(_, tensor)| tensor.shape().first() != Some(&rows)) else {
        return Ok(());
    };
    Err(Failure::new(
        Code::InvalidRequest,
        format!(
            "output {:?} has shape {}, which is not one entry for each of the {rows} instances: send the request in column form \
             (\"inputs\")",
            &**name,
            tensor.shape()
        ),
    ))
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
    layout: Layout,
}

impl Writer {
    /// Writes one row, or the whole answer in column form: a value for one output, an object for several.
    fn entry(
        &mut self,
        outputs: &[Output<'_>],
        mut write: impl FnMut(&mut Writer, &Output<'_>) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        if let [only] = outputs
            && !self.layout.named
        {
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
