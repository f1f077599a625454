//! The row that is explained, the background rows, and the rows between them.

use crate::columns::{self, Cell, ElementNames};
use crate::model::{Checked, Code, Failure, InferenceRequest, NamedTensor, Signature, TensorSpec};
use crate::tensor::{Data, Shape, Tensor};

/// The most columns of a row. The runs that an explanation takes grow with them.
pub const MAX_COLUMNS: usize = 500;
/// The most background rows that are used. Of more, as many are taken, evenly spaced.
pub const MAX_BACKGROUND: usize = 100;

/// The most bytes of all texts of a row. 256 rows run together.
const MAX_TEXT: usize = 64 << 10;

fn texts_of(tensor: &Tensor) -> impl Iterator<Item = &[u8]> {
    let texts = match tensor.data() {
        Data::Bytes(texts) => texts.as_slice(),
        _ => &[],
    };
    texts.iter().map(AsRef::as_ref)
}

/// One row and the rows that it is compared with. All tensors have the types and the inner shapes of the signature's inputs, in their order.
#[derive(Debug)]
pub(super) struct Rows {
    signature: Signature,
    row: Vec<Tensor>,
    background: Vec<Tensor>,
    /// The number of background rows.
    pub(super) n_background: usize,
    /// The names of the columns.
    pub(super) names: Vec<String>,
    /// Elements of a row of each input.
    widths: Vec<usize>,
}

impl Rows {
    /// Checks that the model is tabular, that there is one row, and that the background fits.
    pub(super) fn new(
        signature: &Signature,
        row: &Checked,
        background: &Checked,
        names: &ElementNames,
    ) -> Result<Rows, Failure> {
        let refused = |message: String| Failure::new(Code::InvalidRequest, message);
        if !signature.has_rows() {
            return Err(refused(
                "explanations are for models whose inputs and outputs have one row for each example (a free first dimension); this one has not".to_owned(),
            ));
        }
        if !row.optional().is_empty() || !background.optional().is_empty() {
            return Err(refused("an explanation takes no optional inputs".to_owned()));
        }
        match row.rows() {
            Some(1) => {}
            rows => {
                let got = rows.map_or_else(|| "inputs of different lengths".to_owned(), |rows| rows.to_string());
                return Err(refused(format!("expected one row to explain, got {got}")));
            }
        }
        let n = background.rows().filter(|n| *n > 0);
        let n = n.ok_or_else(|| {
            refused("background: expected at least one row, the same number in all inputs".to_owned())
        })?;
        let same = row.inputs().iter().zip(background.inputs()).all(|(a, b)| a.stacks_with(b));
        if !same {
            return Err(refused("background: expected rows of the same shape as the row to explain".to_owned()));
        }
        let widths: Vec<usize> = row.inputs().iter().map(|tensor| tensor.data().len()).collect();
        let columns: usize = widths.iter().sum();
        if columns == 0 || columns > MAX_COLUMNS {
            return Err(refused(format!(
                "explanations are for rows of 1 to {MAX_COLUMNS} columns; this one has {columns}"
            )));
        }
        let texts = row.inputs().iter().zip(background.inputs()).map(|(row, background)| {
            let longest = texts_of(background).map(<[u8]>::len).max().unwrap_or(0);
            texts_of(row).map(|text| text.len().max(longest)).sum::<usize>()
        });
        let bytes: usize = texts.sum();
        if bytes > MAX_TEXT {
            return Err(refused(format!(
                "explanations are for rows whose texts have at most {} KiB together, as many rows run together; these have {} KiB",
                MAX_TEXT >> 10,
                bytes.div_ceil(1024)
            )));
        }
        let background = spaced(background.inputs(), n)
            .ok_or_else(|| Failure::new(Code::Overloaded, "there is no memory for the background rows"))?;
        let names = names_of(signature, row.inputs(), names);
        Ok(Rows {
            signature: signature.clone(),
            row: row.inputs().to_vec(),
            background,
            n_background: n.min(MAX_BACKGROUND),
            names,
            widths,
        })
    }

    pub(super) fn columns(&self) -> usize {
        self.names.len()
    }

    /// The values of the explained row, as text.
    pub(super) fn values(&self) -> Vec<String> {
        const MAX_CHARS: usize = 100;
        let mut all = Vec::new();
        for tensor in &self.row {
            match (tensor.data(), tensor.data().le_bytes(), tensor.datatype().width()) {
                (Data::Bytes(texts), ..) => {
                    all.extend(
                        texts.iter().map(|text| String::from_utf8_lossy(text).chars().take(MAX_CHARS).collect()),
                    );
                }
                (data, Some(bytes), Some(width)) => {
                    let cell =
                        |bytes| Cell::of_bytes(data.datatype(), bytes).as_text().unwrap_or_else(|| "NaN".to_owned());
                    all.extend(bytes.chunks_exact(width).map(cell));
                }
                (data, ..) => all.extend((0..data.len()).map(|_| String::new())),
            }
        }
        all
    }

    /// Uses only `n` background rows, evenly spaced.
    pub(super) fn limit_background(&mut self, n: usize) {
        let chosen: Vec<usize> = (0..n).map(|i| i * self.n_background / n).collect();
        let pick = |tensor: &Tensor| {
            let rows: Option<Vec<Tensor>> = chosen.iter().map(|row| tensor.slice_rows(*row, 1)).collect();
            rows.and_then(|rows| Tensor::stack(&rows.iter().collect::<Vec<_>>()))
        };
        if let Some(background) = self.background.iter().map(pick).collect::<Option<Vec<_>>>() {
            (self.background, self.n_background) = (background, n);
        }
    }

    /// The columns in which the row differs from a background row. The others cannot change an answer.
    pub(super) fn differing(&self, background: usize) -> Vec<usize> {
        let mut differing = Vec::new();
        let mut first = 0;
        for ((row, other), width) in self.row.iter().zip(&self.background).zip(&self.widths) {
            for element in 0..*width {
                if !same(row.data(), element, other.data(), background * width + element) {
                    differing.push(first + element);
                }
            }
            first += width;
        }
        differing
    }

    /// A request whose rows are the background row, with those columns from the explained row that a mask has. Outputs: this one alone.
    pub(super) fn between(&self, background: usize, masks: &[Vec<bool>], output: &str) -> Result<Checked, Failure> {
        let mut first = 0;
        let mut inputs = Vec::with_capacity(self.row.len());
        for (((spec, row), other), width) in
            self.signature.inputs().iter().zip(&self.row).zip(&self.background).zip(&self.widths)
        {
            let from = |mask: &Vec<bool>, element: usize| mask[first + element];
            let data = mixed(row.data(), other.data(), background * width, *width, masks, &from);
            let shape: Shape = std::iter::once(masks.len()).chain(row.shape()[1..].iter().copied()).collect();
            inputs.push(named(spec, shape, data)?);
            first += width;
        }
        let outputs = Some(vec![output.to_owned()]);
        self.signature.check(InferenceRequest { inputs, outputs, ..InferenceRequest::default() })
    }

    /// A request of all background rows.
    pub(super) fn all_background(&self, output: &str) -> Result<Checked, Failure> {
        let named = self.signature.inputs().iter().zip(&self.background);
        let inputs = named.map(|(spec, tensor)| NamedTensor { name: spec.name.to_string(), tensor: tensor.clone() });
        let outputs = Some(vec![output.to_owned()]);
        self.signature.check(InferenceRequest { inputs: inputs.collect(), outputs, ..InferenceRequest::default() })
    }
}

fn named(spec: &TensorSpec, shape: Shape, data: Data) -> Result<NamedTensor, Failure> {
    let tensor = Tensor::new(shape, data).map_err(|e| Failure::new(Code::Internal, e.to_string()))?;
    Ok(NamedTensor { name: spec.name.to_string(), tensor })
}

/// At most [`MAX_BACKGROUND`] of `n` rows. `None` without memory for them.
fn spaced(inputs: &[Tensor], n: usize) -> Option<Vec<Tensor>> {
    if n <= MAX_BACKGROUND {
        return Some(inputs.to_vec());
    }
    let pick = |tensor: &Tensor| {
        let rows: Option<Vec<Tensor>> =
            (0..MAX_BACKGROUND).map(|i| tensor.slice_rows(i * n / MAX_BACKGROUND, 1)).collect();
        Tensor::stack(&rows?.iter().collect::<Vec<_>>())
    };
    inputs.iter().map(pick).collect()
}

/// `age`, `features[3]`, or the name of the element in `model.toml`.
fn names_of(signature: &Signature, row: &[Tensor], names: &ElementNames) -> Vec<String> {
    let side = columns::Side::Inputs;
    let mut all = Vec::new();
    for (spec, tensor) in signature.inputs().iter().zip(row) {
        let width = tensor.data().len();
        let elements = names.of(signature, side, spec);
        for element in 0..width {
            all.push(match elements.get(element) {
                Some(name) => name.clone(),
                None if width == 1 => spec.name.to_string(),
                None => format!("{}[{element}]", spec.name),
            });
        }
    }
    all
}

/// Whether two elements are the same, bit for bit.
fn same(a: &Data, i: usize, b: &Data, j: usize) -> bool {
    match (a, b) {
        (Data::Bytes(a), Data::Bytes(b)) => a[i] == b[j],
        _ => match (a.le_bytes(), b.le_bytes(), a.datatype().width()) {
            (Some(a), Some(b), Some(width)) => a[i * width..(i + 1) * width] == b[j * width..(j + 1) * width],
            _ => false,
        },
    }
}

/// One row for each mask: elements of `a` where `from` says so, else those of `b` from `start` on.
fn mixed(
    a: &Data,
    b: &Data,
    start: usize,
    width: usize,
    masks: &[Vec<bool>],
    from: &dyn Fn(&Vec<bool>, usize) -> bool,
) -> Data {
    macro_rules! mix {
        ($($kind:ident),*) => {
            match (a, b) {
                $((Data::$kind(a), Data::$kind(b)) => {
                    let row = |mask| (0..width).map(move |e| if from(mask, e) { a[e].clone() } else { b[start + e].clone() });
                    Data::$kind(masks.iter().flat_map(row).collect::<Vec<_>>().into())
                })*
                // Both were checked against one signature.
                _ => Data::zeros(a.datatype(), masks.len() * width),
            }
        };
    }
    mix!(Bool, Uint8, Uint16, Uint32, Uint64, Int8, Int16, Int32, Int64, Fp16, Fp32, Fp64, Bytes)
}
