//! What the history of outcomes keeps of a stored row: the floating-point outputs, and inputs to group by.

use super::about::{Column, Side};
use super::view::{self, TensorView};
use crate::model::Dim;
use crate::quality::{Contents, Layout, Value, element};
use crate::tensor::DataType;
use std::sync::Arc;

/// The texts of each input; empty where it has none that are kept.
pub(super) type Texts<'f> = Vec<Vec<&'f [u8]>>;

/// Which elements of a row are kept, for one stream.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) layout: Arc<Layout>,
    /// The columns of outputs, and how many elements of a row each has.
    outputs: Vec<(usize, usize)>,
    /// The columns of inputs, each with an element of the row, in the order of the cells.
    cells: Vec<(usize, usize)>,
}

impl Kept {
    pub(super) fn new(inputs: &[Column], outputs: &[Column]) -> Kept {
        let mut kept = Kept { layout: Arc::default(), outputs: Vec::new(), cells: Vec::new() };
        let mut layout = Layout::default();
        let mut numbers = 0;
        for (at, column) in outputs.iter().enumerate() {
            let Some(n) = elements_of_row(column).filter(|n| numbers + n <= Layout::MAX_NUMBERS) else { continue };
            if column.spec.datatype.is_float() && is_open(column) {
                layout.outputs.push((Box::from(&*column.spec.name), numbers..numbers + n));
                kept.outputs.push((at, n));
                numbers += n;
            }
        }
        for (at, column) in inputs.iter().enumerate() {
            // What is hashed is hidden from figures too.
            let Some(n) = elements_of_row(column).filter(|_| is_open(column)) else { continue };
            let name = Side::Inputs.column(&column.spec);
            let most = if n > Layout::WIDE { Layout::MAX_OF_WIDE } else { n };
            for i in 0..most.min(Layout::MAX_CELLS.saturating_sub(layout.cells.len())) {
                let name = if n == 1 { name.clone() } else { format!("{name}[{i}]") };
                layout.cells.push(name.into());
                kept.cells.push((at, i));
            }
        }
        kept.layout = Arc::new(layout);
        kept
    }

    /// The texts of the inputs that are kept. They stand one after the other, each after its length, so they are found once for all rows.
    pub(super) fn texts<'f>(&self, inputs: &[Column], tensors: &[Option<TensorView<'f>>]) -> Texts<'f> {
        let mut texts = vec![Vec::new(); inputs.len()];
        for (at, _) in self.cells.iter().filter(|(at, _)| view::element_width(&inputs[*at]).is_none()) {
            if let (true, Some(Some(tensor))) = (texts[*at].is_empty(), tensors.get(*at)) {
                texts[*at].extend(tensor.texts());
            }
        }
        texts
    }

    /// What is kept of one of the `records` rows of a stored prediction.
    pub(super) fn contents(
        &self,
        columns: (&[Column], &[Column]),
        tensors: (&[Option<TensorView>], &[Option<TensorView>]),
        texts: &Texts,
        row: usize,
        records: usize,
    ) -> Contents {
        let mut numbers = Vec::with_capacity(self.layout.outputs.last().map_or(0, |(_, place)| place.end));
        for (at, n) in &self.outputs {
            let bytes = tensors.1.get(*at).and_then(Option::as_ref).map_or(&[][..], |tensor| tensor.bytes);
            let datatype = columns.1[*at].spec.datatype;
            let width = datatype.width().unwrap_or(1);
            // A tensor that was left out, or that has another shape than the signature says, has no numbers.
            let fits = bytes.len() == n * width * records;
            let number = |i: usize| {
                let start = (row * n + i) * width;
                if fits { element(datatype, &bytes[start..start + width]) } else { f64::NAN }
            };
            numbers.extend((0..*n).map(number));
        }
        let cell = |(at, i): &(usize, usize)| {
            let tensor = tensors.0.get(*at).and_then(Option::as_ref);
            tensor.map_or(Value::Missing, |tensor| value(&columns.0[*at], tensor, &texts[*at], (row, *i), records))
        };
        Contents { numbers: numbers.into(), cells: self.cells.iter().map(cell).collect() }
    }
}

/// Whether a column is stored as it is.
fn is_open(column: &Column) -> bool {
    !column.hashed && column.masks.is_empty()
}

/// How many elements of a column one row has. `None` where the signature does not say, or where it has no rows.
fn elements_of_row(column: &Column) -> Option<usize> {
    let dims = column.spec.dims.as_deref()?;
    let (first, rest) = dims.split_first()?;
    let free = matches!(first, Dim::Free(_));
    let mut fixed = rest.iter().map(|dim| if let Dim::Fixed(n) = dim { Some(*n) } else { None });
    let n = fixed.try_fold(1_usize, |product, n| product.checked_mul(n?))?;
    (free && n > 0).then_some(n)
}

/// One element of one row of an input.
fn value(column: &Column, tensor: &TensorView, texts: &[&[u8]], (row, i): (usize, usize), records: usize) -> Value {
    let Some(width) = view::element_width(column) else {
        let each = tensor.shape.elements().unwrap_or(0) / records;
        let text = texts.get(row * each + i).filter(|_| i < each);
        return text.map_or(Value::Missing, |text| Value::Text(String::from_utf8_lossy(text).into_owned()));
    };
    let each = tensor.bytes.len() / records;
    let start = row * each + i * width;
    let Some(bytes) = tensor.bytes.get(start..start + width).filter(|_| (i + 1) * width <= each) else {
        return Value::Missing;
    };
    let number = element(column.spec.datatype, bytes);
    match column.spec.datatype {
        DataType::Bool => Value::Text(if number == 0.0 { "false" } else { "true" }.to_owned()),
        _ if number.is_nan() => Value::Missing,
        _ => Value::Number(number),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::TensorSpec;

    fn column(name: &str, datatype: DataType, elements: &[usize]) -> Column {
        let rest = elements.iter().map(|n| Dim::Fixed(*n));
        let dims = Some(std::iter::once(Dim::Free(None)).chain(rest).collect());
        Column { index: 0, spec: TensorSpec { name: name.into(), datatype, dims }, hashed: false, masks: Vec::new() }
    }

    #[test]
    fn columns_are_kept_up_to_a_limit_and_few_of_an_image() {
        let inputs = [
            column("image", DataType::Uint8, &[28, 28]),
            column("features", DataType::Fp32, &[200]),
            column("more", DataType::Fp32, &[100]),
            column("late", DataType::Fp32, &[1]),
        ];
        let kept = Kept::new(&inputs, &[]);
        let names: Vec<&str> = kept.layout.cells.iter().map(|name| &**name).collect();
        assert_eq!((names.len(), names[15], names[16]), (256, "inputs.image[15]", "inputs.features[0]"));
        assert_eq!((names[215], names[216], names[255]), ("inputs.features[199]", "inputs.more[0]", "inputs.more[39]"));
    }

    #[test]
    fn texts_of_many_rows_are_those_of_their_rows() {
        let inputs = [column("x", DataType::Int32, &[1]), column("t", DataType::Bytes, &[2])];
        let kept = Kept::new(&inputs, &[]);
        let numbers: Vec<u8> = (0..3_i32).flat_map(i32::to_le_bytes).collect();
        let texts: Vec<u8> = (0..6).flat_map(|i| [3, 0, 0, 0, b't', b'0', b'0' + i]).collect();
        let view = |bytes, shape: &[usize]| Some(TensorView { shape: crate::tensor::Shape::new(shape), bytes });
        let tensors = [view(&numbers[..], &[3, 1]), view(&texts[..], &[3, 2])];
        let found = kept.texts(&inputs, &tensors);
        let row = |row: usize| kept.contents((&inputs, &[]), (&tensors, &[]), &found, row, 3).cells;
        let text = |text: &str| Value::Text(text.to_owned());
        assert_eq!(row(0), [Value::Number(0.0), text("t00"), text("t01")]);
        assert_eq!(row(2), [Value::Number(2.0), text("t04"), text("t05")]);
        // The texts were left out of the record.
        let tensors = [view(&numbers[..], &[3, 1]), None];
        let found = kept.texts(&inputs, &tensors);
        assert_eq!(kept.contents((&inputs, &[]), (&tensors, &[]), &found, 1, 3).cells[1], Value::Missing);
    }
}
