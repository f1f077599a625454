//! Whether a label says that a prediction was right, or how far off it was; pure.

use crate::model::Label;
use crate::tensor::{Data, DataType, Tensor};
use half::f16;

/// What a row's outputs predicted, as far as a label can be held against it.
///
/// - An output of one integer, boolean or string is a **class**.
/// - An output of one floating-point number is a **number**.
/// - An output of several floating-point numbers is a list of scores: its class is the index of the largest, as `numpy.argmax`.
///
/// Of several outputs of one kind the first counts.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Predicted {
    class: Option<Class>,
    number: Option<f64>,
    top: Option<usize>,
}

#[derive(Debug, Clone, PartialEq)]
enum Class {
    Number(f64),
    Text(Box<str>),
}

/// A label held against a prediction.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fit {
    Class {
        right: bool,
    },
    /// The absolute difference.
    Number {
        error: f64,
    },
}

impl Predicted {
    /// Of one row's outputs.
    #[must_use]
    pub fn of<'t>(outputs: impl IntoIterator<Item = &'t Tensor>) -> Predicted {
        let mut predicted = Predicted::default();
        for output in outputs {
            match output.data() {
                Data::Bool(e) => predicted.add(DataType::Bool, &e.iter().map(|b| u8::from(*b)).collect::<Vec<_>>()),
                Data::Uint8(e) => predicted.add(DataType::Uint8, e),
                Data::Uint16(e) => predicted.add(DataType::Uint16, e.as_bytes()),
                Data::Uint32(e) => predicted.add(DataType::Uint32, e.as_bytes()),
                Data::Uint64(e) => predicted.add(DataType::Uint64, e.as_bytes()),
                Data::Int8(e) => predicted.add(DataType::Int8, e.as_bytes()),
                Data::Int16(e) => predicted.add(DataType::Int16, e.as_bytes()),
                Data::Int32(e) => predicted.add(DataType::Int32, e.as_bytes()),
                Data::Int64(e) => predicted.add(DataType::Int64, e.as_bytes()),
                Data::Fp16(e) => predicted.add(DataType::Fp16, e.as_bytes()),
                Data::Fp32(e) => predicted.add(DataType::Fp32, e.as_bytes()),
                Data::Fp64(e) => predicted.add(DataType::Fp64, e.as_bytes()),
                Data::Bytes(e) => {
                    if let [text] = e.as_slice() {
                        predicted.add_text(text);
                    }
                }
            }
        }
        predicted
    }

    /// Takes in an output of numbers, little-endian one after the other.
    pub fn add(&mut self, datatype: DataType, bytes: &[u8]) {
        let Some(width) = datatype.width() else { return };
        let mut numbers = bytes.chunks_exact(width).map(|bytes| number(datatype, bytes));
        match (datatype.is_float(), bytes.len() / width) {
            (_, 0) => {}
            (false, 1) => self.class = self.class.take().or(numbers.next().map(Class::Number)),
            (true, 1) => self.number = self.number.or(numbers.next()),
            (true, _) if self.top.is_none() => self.top = argmax(numbers),
            _ => {}
        }
    }

    /// Takes in an output of one string.
    pub fn add_text(&mut self, text: &[u8]) {
        let text = || Class::Text(String::from_utf8_lossy(text).into());
        self.class = Some(self.class.take().unwrap_or_else(text));
    }

    /// Holds a label against it: against the class where there is one, else against the number, else against the scores. `None` where
    /// the label fits none of them.
    #[must_use]
    pub fn against(&self, label: &Label) -> Option<Fit> {
        let class = |right| Some(Fit::Class { right });
        match (label, &self.class) {
            (Label::Text(label), Some(Class::Text(text))) => class(**text == **label),
            (Label::Text(label), Some(Class::Number(n))) => class(label.trim().parse() == Ok(*n)),
            (Label::Number(label), Some(Class::Number(n))) => class(label == n),
            (Label::Number(label), Some(Class::Text(text))) => class(text.trim().parse() == Ok(*label)),
            (Label::Number(label), None) => match (self.number, self.top) {
                (Some(number), _) => Some(Fit::Number { error: (number - label).abs() }),
                (None, Some(top)) => class(top as f64 == *label),
                (None, None) => None,
            },
            (Label::Text(_), None) => None,
        }
    }
}

fn number(datatype: DataType, bytes: &[u8]) -> f64 {
    /// The bytes of one element, of which there are as many as its type is wide.
    macro_rules! read {
        ($t:ty) => {
            bytes.try_into().map_or(f64::NAN, |bytes| <$t>::from_le_bytes(bytes).into())
        };
        (wide $t:ty) => {
            bytes.try_into().map_or(f64::NAN, |bytes| <$t>::from_le_bytes(bytes) as f64)
        };
    }
    match datatype {
        DataType::Bool | DataType::Uint8 => read!(u8),
        DataType::Uint16 => read!(u16),
        DataType::Uint32 => read!(u32),
        DataType::Uint64 => read!(wide u64),
        DataType::Int8 => read!(i8),
        DataType::Int16 => read!(i16),
        DataType::Int32 => read!(i32),
        DataType::Int64 => read!(wide i64),
        DataType::Fp16 => read!(f16),
        DataType::Fp32 => read!(f32),
        DataType::Fp64 => read!(f64),
        DataType::Bytes => f64::NAN,
    }
}

/// The first place of the largest; a NaN is larger than anything, as in `numpy.argmax`.
fn argmax(numbers: impl Iterator<Item = f64>) -> Option<usize> {
    let mut best: Option<(usize, f64)> = None;
    for (i, n) in numbers.enumerate() {
        if n.is_nan() {
            return Some(i);
        }
        if best.is_none_or(|(_, most)| n > most) {
            best = Some((i, n));
        }
    }
    best.map(|(i, _)| i)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Shape;

    fn one(data: Data) -> Predicted {
        let shape = Shape::new(&[1, data.len()]);
        Predicted::of([&Tensor::new(shape, data).unwrap()])
    }

    #[test]
    fn labels_fit_classes_numbers_and_scores() {
        let right = Some(Fit::Class { right: true });
        let wrong = Some(Fit::Class { right: false });
        let class = one(Data::Int64(vec![2].into()));
        assert_eq!(class.against(&Label::Number(2.0)), right);
        assert_eq!(class.against(&Label::Number(1.0)), wrong);
        assert_eq!(class.against(&Label::Text("2".into())), right);
        let text = one(Data::Bytes(vec!["cat".into()]));
        assert_eq!(text.against(&Label::Text("cat".into())), right);
        assert_eq!(text.against(&Label::Text("dog".into())), wrong);
        assert_eq!(text.against(&Label::Number(1.0)), wrong);
        let scores = one(Data::Fp32(vec![0.1, 0.7, 0.2].into()));
        assert_eq!(scores.against(&Label::Number(1.0)), right);
        assert_eq!(scores.against(&Label::Number(0.5)), wrong);
        assert_eq!(scores.against(&Label::Text("b".into())), None);
        let number = one(Data::Fp64(vec![1.5].into()));
        assert_eq!(number.against(&Label::Number(2.0)), Some(Fit::Number { error: 0.5 }));
        assert_eq!(number.against(&Label::Text("2".into())), None);
        assert_eq!(
            one(Data::Fp16(vec![f16::ONE].into())).against(&Label::Number(1.0)),
            Some(Fit::Number { error: 0.0 })
        );
    }

    #[test]
    fn a_class_goes_before_the_scores_beside_it() {
        let label = Tensor::new(Shape::new(&[1]), Data::Int64(vec![7].into())).unwrap();
        let scores = Tensor::new(Shape::new(&[1, 2]), Data::Fp32(vec![0.9, 0.1].into())).unwrap();
        assert_eq!(Predicted::of([&scores, &label]).against(&Label::Number(7.0)), Some(Fit::Class { right: true }));
    }
}
