use super::*;

#[test]
fn a_tensor_has_exactly_the_elements_of_its_shape() {
    let data = || Data::Fp32(vec![1.0, 2.0].into());
    assert!(Tensor::new(Shape::new(&[2]), data()).is_ok());
    assert!(Tensor::new(Shape::new(&[1, 2, 1]), data()).is_ok());
    let e = Tensor::new(Shape::new(&[3]), data()).unwrap_err();
    assert_eq!(e.to_string(), "shape [3] holds 3 elements, got 2");
    assert!(matches!(Tensor::new(Shape::new(&[usize::MAX, 2]), data()), Err(ShapeError::Overflow { .. })));
}

#[test]
fn a_scalar_has_one_element_and_a_zero_extent_none() {
    assert_eq!(Shape::new(&[]).elements(), Some(1));
    assert_eq!(Shape::new(&[usize::MAX, 0, usize::MAX]).elements(), Some(0));
}

#[test]
fn aligned_bytes_become_a_view_and_unaligned_ones_are_copied() {
    let mut raw = vec![0u8; 4];
    raw.extend_from_slice(&1.5f32.to_le_bytes());
    raw.extend_from_slice(&(-2.0f32).to_le_bytes());
    raw.push(0);
    let all = Bytes::from(raw);
    let base = all.as_ptr().align_offset(4);
    assert_eq!(base, 0, "an allocation of this size starts aligned for f32 here");
    let view = Elements::<f32>::view(all.slice(4..12)).unwrap();
    assert!(view.is_view());
    assert_eq!(&*view, &[1.5, -2.0]);
    let copied = Elements::<f32>::view(all.slice(1..9)).unwrap();
    assert!(!copied.is_view());
    assert!(Elements::<f32>::view(all.slice(0..5)).is_none());
}

#[test]
fn each_datatype_has_a_name_and_zeros() {
    for d in DataType::ALL {
        assert_eq!(DataType::parse(d.as_str()), Some(d));
        let zeros = Data::zeros(d, 3);
        assert_eq!((zeros.datatype(), zeros.len()), (d, 3));
        assert_eq!(zeros.le_bytes().map(<[u8]>::len), d.width().map(|width| 3 * width));
    }
    assert_eq!(DataType::parse("fp32"), None);
    assert_eq!(Data::Bool(vec![true, false]).le_bytes(), Some(&[1, 0][..]));
    assert_eq!(Data::Int16(vec![-2, 1].into()).le_bytes(), Some(&[0xfe, 0xff, 1, 0][..]));
}
