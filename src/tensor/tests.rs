use super::*;

#[test]
fn a_tensor_holds_exactly_what_its_shape_says() {
    let two = || Data::Fp32(vec![1.0, 2.0].into());
    assert!(Tensor::new(Shape::new(&[2]), two()).is_ok());
    assert!(Tensor::new(Shape::new(&[1, 2, 1]), two()).is_ok());
    let e = Tensor::new(Shape::new(&[3]), two()).unwrap_err();
    assert_eq!(e.to_string(), "shape [3] holds 3 elements, got 2");
    assert!(matches!(Tensor::new(Shape::new(&[usize::MAX, 2]), two()), Err(ShapeError::Overflow { .. })));
}

#[test]
fn a_scalar_holds_one_and_a_zero_extent_none() {
    assert_eq!(Shape::new(&[]).elements(), Some(1));
    assert_eq!(Shape::new(&[usize::MAX, 0, usize::MAX]).elements(), Some(0));
}

#[test]
fn aligned_bytes_are_viewed_and_unaligned_ones_copied_once() {
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
fn every_datatype_keeps_its_name_and_zeros() {
    for d in DataType::ALL {
        assert_eq!(DataType::parse(d.as_str()), Some(d));
        let zeros = Data::zeros(d, 3);
        assert_eq!((zeros.datatype(), zeros.len()), (d, 3));
    }
    assert_eq!(DataType::parse("fp32"), None);
}
