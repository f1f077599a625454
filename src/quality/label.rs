//! Compares a label with a prediction: was the class correct, or how large was the error? Pure.

use crate::columns::number;
use crate::model::Label;
use crate::tensor::{Data, DataType, Tensor};
use serde::{Deserialize, Serialize};

/// The prediction in the outputs of one row, in the form in which a label can be compared with it.
///
/// - An output of one integer, boolean or string is a **class**.
/// - An output of one floating-point number is a **number**.
/// - An output of several floating-point numbers is a list of scores: its class is the index of the largest, as `numpy.argmax`.
///
/// If several outputs are of one kind, the first counts.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Predicted {
    class: Option<Class>,
    number: Option<f64>,
    top_score: Option<usize>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Class {
    Number(f64),
    Text(Box<str>),
}

/// The result of comparing a label with a prediction.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum LabelResult {
    Class {
        correct: bool,
    },
    Number {
        /// The absolute error.
        error: f64,
    },
}

impl Predicted {
    /// From the outputs of one row.
    #[must_use]
    pub fn from_outputs<'t>(outputs: impl IntoIterator<Item = &'t Tensor>) -> Predicted {
        let mut predicted = Predicted::default();
        for output in outputs {
            match output.data() {
                Data::Bytes(e) => {
                    if let [text] = e.as_slice() {
                        predicted.add_text(text);
                    }
                }
                numbers => predicted.add(numbers.datatype(), numbers.le_bytes().unwrap_or_default()),
            }
        }
        predicted
    }

    /// Bytes of text that it keeps.
    #[must_use]
    pub fn text_bytes(&self) -> usize {
        if let Some(Class::Text(text)) = &self.class { text.len() } else { 0 }
    }

    /// Adds an output of numbers, as little-endian bytes.
    pub fn add(&mut self, datatype: DataType, bytes: &[u8]) {
        let Some(width) = datatype.width() else { return };
        let mut numbers = bytes.chunks_exact(width).map(|bytes| element(datatype, bytes));
        match (datatype.is_float(), bytes.len() / width) {
            (_, 0) => {}
            (false, 1) => self.class = self.class.take().or(numbers.next().map(Class::Number)),
            (true, 1) => self.number = self.number.or(numbers.next()),
            (true, _) if self.top_score.is_none() => self.top_score = argmax(numbers),
            _ => {}
        }
    }

    /// Adds an output of one string.
    pub fn add_text(&mut self, text: &[u8]) {
        let text = || Class::Text(String::from_utf8_lossy(text).into());
        self.class = Some(self.class.take().unwrap_or_else(text));
    }

    /// The predicted class, where it is a number: that of an output, else the index of the largest score.
    #[must_use]
    pub fn class(&self) -> Option<f64> {
        match &self.class {
            Some(Class::Number(number)) => Some(*number),
            Some(Class::Text(_)) => None,
            None => self.top_score.map(|top| top as f64),
        }
    }

    /// Compares a label with the class if there is one, else with the number, else with the scores. `None` where the label cannot be
    /// compared with any of them.
    #[must_use]
    pub fn compare(&self, label: &Label) -> Option<LabelResult> {
        let class = |correct| Some(LabelResult::Class { correct });
        match (label, &self.class) {
            (Label::Text(label), Some(Class::Text(text))) => class(**text == **label),
            (Label::Text(label), Some(Class::Number(n))) => class(label.trim().parse() == Ok(*n)),
            (Label::Number(label), Some(Class::Number(n))) => class(label == n),
            (Label::Number(label), Some(Class::Text(text))) => class(text.trim().parse() == Ok(*label)),
            (Label::Number(label), None) => match (self.number, self.top_score) {
                (Some(number), _) => Some(LabelResult::Number { error: (number - label).abs() }),
                (None, Some(top)) => class(top as f64 == *label),
                (None, None) => None,
            },
            (Label::Text(_), None) => None,
        }
    }
}

/// One number, from its little-endian bytes. NaN where `bytes` do not have the width of the type.
pub(crate) fn element(datatype: DataType, bytes: &[u8]) -> f64 {
    number(datatype, bytes).unwrap_or(f64::NAN)
}

/// The index of the first largest number. NaN counts as the largest, as in `numpy.argmax`.
fn argmax(numbers: impl Iterator<Item = f64>) -> Option<usize> {
    let mut best: Option<(usize, f64)> = None;
    for (i, n) in numbers.enumerate() {
        if n.is_nan() {
            return Some(i);
        }
        if best.is_none_or(|(_, largest)| n > largest) {
            best = Some((i, n));
        }
    }
    best.map(|(i, _)| i)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Shape;
    use half::f16;

    fn one(data: Data) -> Predicted {
        let shape = Shape::new(&[1, data.len()]);
        Predicted::from_outputs([&Tensor::new(shape, data).unwrap()])
    }

    #[test]
    fn labels_are_compared_with_classes_numbers_and_scores() {
        let correct = Some(LabelResult::Class { correct: true });
        let wrong = Some(LabelResult::Class { correct: false });
        let class = one(Data::Int64(vec![2].into()));
        assert_eq!(class.compare(&Label::Number(2.0)), correct);
        assert_eq!(class.compare(&Label::Number(1.0)), wrong);
        assert_eq!(class.compare(&Label::Text("2".into())), correct);
        let text = one(Data::Bytes(vec!["cat".into()]));
        assert_eq!(text.compare(&Label::Text("cat".into())), correct);
        assert_eq!(text.compare(&Label::Text("dog".into())), wrong);
        assert_eq!(text.compare(&Label::Number(1.0)), wrong);
        let scores = one(Data::Fp32(vec![0.1, 0.7, 0.2].into()));
        assert_eq!(scores.compare(&Label::Number(1.0)), correct);
        assert_eq!(scores.compare(&Label::Number(0.5)), wrong);
        assert_eq!(scores.compare(&Label::Text("b".into())), None);
        let number = one(Data::Fp64(vec![1.5].into()));
        assert_eq!(number.compare(&Label::Number(2.0)), Some(LabelResult::Number { error: 0.5 }));
        assert_eq!(number.compare(&Label::Text("2".into())), None);
        assert_eq!(
            one(Data::Fp16(vec![f16::ONE].into())).compare(&Label::Number(1.0)),
            Some(LabelResult::Number { error: 0.0 })
        );
    }

    #[test]
    fn a_class_takes_precedence_over_scores() {
        let label = Tensor::new(Shape::new(&[1]), Data::Int64(vec![7].into())).unwrap();
        let scores = Tensor::new(Shape::new(&[1, 2]), Data::Fp32(vec![0.9, 0.1].into())).unwrap();
        assert_eq!(
            Predicted::from_outputs([&scores, &label]).compare(&Label::Number(7.0)),
            Some(LabelResult::Class { correct: true })
        );
    }
}
