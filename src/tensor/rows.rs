//! Stacking and splitting tensors along the first dimension, which counts rows.

use super::{Data, Shape, Tensor};

impl Tensor {
    /// Whether the rows of two tensors fit into one tensor: the same datatype, and the same extents after the first.
    #[must_use]
    pub fn stacks_with(&self, other: &Tensor) -> bool {
        self.datatype() == other.datatype()
            && matches!((&self.shape()[..], &other.shape()[..]), ([_, left @ ..], [_, right @ ..]) if left == right)
    }

    /// Copies the rows of all tensors, in order, into one tensor. `None` if they do not stack, if the list is empty, or if there is
    /// no memory for it.
    #[must_use]
    pub fn stack(tensors: &[&Tensor]) -> Option<Tensor> {
        let (first, others) = tensors.split_first()?;
        if !first.stacks_with(first) || !others.iter().all(|other| first.stacks_with(other)) {
            return None;
        }
        // The sum can overflow, because an empty tensor can have any number of rows.
        let rows = tensors.iter().try_fold(0usize, |sum, t| sum.checked_add(t.shape()[0]))?;
        let shape: Shape = std::iter::once(rows).chain(first.shape()[1..].iter().copied()).collect();
        macro_rules! joined {
            ($($kind:ident),*) => {
                match first.data() {
                    $(Data::$kind(_) => {
                        let mut all = Vec::new();
                        all.try_reserve_exact(tensors.iter().map(|t| t.data().len()).sum()).ok()?;
                        for tensor in tensors {
                            // `stacks_with` has checked that all have the same type.
                            if let Data::$kind(elements) = tensor.data() {
                                all.extend_from_slice(elements);
                            }
                        }
                        Data::$kind(all.into())
                    })*
                }
            };
        }
        let data = joined!(Bool, Uint8, Uint16, Uint32, Uint64, Int8, Int16, Int32, Int64, Fp16, Fp32, Fp64, Bytes);
        Tensor::new(shape, data).ok()
    }

    /// Splits the rows into tensors with the given numbers of rows, in order. `None` if the numbers do not add up to all rows.
    #[must_use]
    pub fn split_rows(&self, rows: &[usize]) -> Option<Vec<Tensor>> {
        let (all, _) = self.shape().split_first()?;
        if rows.iter().try_fold(0usize, |sum, n| sum.checked_add(*n)) != Some(*all) {
            return None;
        }
        let mut from = 0;
        let piece = |n: &usize| {
            let piece = self.slice_rows(from, *n);
            from += n;
            piece
        };
        rows.iter().map(piece).collect()
    }

    /// Copies `rows` rows, starting at row `from`. `None` if there are not that many, or if there is no memory for them.
    #[must_use]
    pub fn slice_rows(&self, from: usize, rows: usize) -> Option<Tensor> {
        let (all, inner) = self.shape().split_first()?;
        let end = from.checked_add(rows).filter(|end| end <= all)?;
        let width = Shape::new(inner).elements()?;
        let range = from.checked_mul(width)?..end.checked_mul(width)?;
        if range.end > self.data().len() {
            return None;
        }
        let shape = std::iter::once(rows).chain(inner.iter().copied()).collect();
        Tensor::new(shape, self.data().copy_range(range)?).ok()
    }
}

impl Data {
    /// A copy of a range of the elements. `None` if there is no memory for it.
    fn copy_range(&self, range: std::ops::Range<usize>) -> Option<Data> {
        macro_rules! copied {
            ($($kind:ident),*) => {
                match self {
                    $(Data::$kind(elements) => {
                        let mut copy = Vec::new();
                        copy.try_reserve_exact(range.len()).ok()?;
                        copy.extend_from_slice(&elements[range]);
                        Some(Data::$kind(copy.into()))
                    })*
                }
            };
        }
        copied!(Bool, Uint8, Uint16, Uint32, Uint64, Int8, Int16, Int32, Int64, Fp16, Fp32, Fp64, Bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::DataType;
    use bytes::Bytes;
    use proptest::prelude::*;

    fn numbers(shape: &[usize], from: i64) -> Tensor {
        let n = i64::try_from(Shape::new(shape).elements().unwrap()).unwrap();
        Tensor::new(Shape::new(shape), Data::Int64((from..from + n).collect::<Vec<_>>().into())).unwrap()
    }

    #[test]
    fn tensors_without_rows_or_with_different_rows_do_not_stack() {
        let scalar = Tensor::new(Shape::new(&[]), Data::zeros(DataType::Fp32, 1)).unwrap();
        assert!(Tensor::stack(&[&scalar]).is_none() && scalar.split_rows(&[1]).is_none());
        let (two, three) = (numbers(&[1, 2], 0), numbers(&[1, 3], 0));
        assert!(Tensor::stack(&[&two, &three]).is_none());
        let floats = Tensor::new(Shape::new(&[1, 2]), Data::zeros(DataType::Fp32, 2)).unwrap();
        assert!(Tensor::stack(&[&two, &floats]).is_none());
        assert!(Tensor::stack(&[]).is_none());
        assert!(numbers(&[3, 2], 0).split_rows(&[1, 1]).is_none());
        let endless = numbers(&[usize::MAX, 0], 0);
        assert!(Tensor::stack(&[&endless, &numbers(&[1, 0], 0)]).is_none());
        assert!(numbers(&[0, 1], 0).split_rows(&[usize::MAX, 1]).is_none());
        assert!(
            numbers(&[3, 2], 0).slice_rows(2, 2).is_none() && numbers(&[3, 2], 0).slice_rows(usize::MAX, 2).is_none()
        );
        assert_eq!(numbers(&[3, 2], 0).slice_rows(1, 2), Some(numbers(&[2, 2], 2)));
        assert_eq!(endless.slice_rows(usize::MAX - 1, 1), Some(numbers(&[1, 0], 0)));
    }

    #[test]
    fn string_tensors_stack() {
        let text = |t: &'static [u8]| Tensor::new(Shape::new(&[1]), Data::Bytes(vec![Bytes::from_static(t)])).unwrap();
        let both = Tensor::stack(&[&text(b"a"), &text(b"\xff")]).unwrap();
        assert_eq!(both.split_rows(&[1, 1]).unwrap(), [text(b"a"), text(b"\xff")]);
    }

    proptest! {
        #[test]
        fn splitting_undoes_stacking(rows in prop::collection::vec(0usize..5, 1..6), width in 0usize..4, deep in 1usize..3) {
            let mut from = 0;
            let parts: Vec<Tensor> = rows.iter().map(|n| {
                from += 1000;
                numbers(&[*n, width, deep], from)
            }).collect();
            let whole = Tensor::stack(&parts.iter().collect::<Vec<_>>()).unwrap();
            prop_assert_eq!(whole.shape()[0], rows.iter().sum::<usize>());
            prop_assert_eq!(whole.split_rows(&rows).unwrap(), parts);
        }
    }
}
