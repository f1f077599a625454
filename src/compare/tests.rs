use super::*;
use crate::tensor::{Data, Element};
use bytes::Bytes;
use half::f16;
use proptest::prelude::*;

fn floats(shape: &[usize], data: &[f32]) -> Tensor {
    Tensor::new(Shape::new(shape), Data::Fp32(data.to_vec().into())).unwrap()
}

fn compare_one(expected: Tensor, got: Tensor) -> Comparison {
    compare(&[("y", expected)], &[("y", got)], Tolerance::default())
}

fn elements(comparison: &Comparison) -> &Elements {
    match &comparison.outputs[0].outcome {
        Outcome::Elements(elements) => elements,
        other => panic!("not compared by element: {other:?}"),
    }
}

#[test]
fn the_worst_element_is_named() {
    let expected = floats(&[2, 3], &[0.1, 0.2, 0.7, 0.5, 0.3, 0.2]);
    let got = floats(&[2, 3], &[0.1, 0.2, 0.7, 0.3, 0.45, 0.25]);
    let comparison = compare_one(expected, got);
    assert!(!comparison.agrees());
    let e = elements(&comparison);
    assert_eq!((e.count, e.outside, e.nonfinite), (6, 3, 0));
    assert_eq!(e.worst.as_ref().unwrap().index, [1, 0]);
    assert!((e.largest.unwrap() - 0.2).abs() < 1e-6 && (e.mean.unwrap() - 0.4 / 6.0).abs() < 1e-6);
    assert!((e.share_within() - 0.5).abs() < 1e-12);
    assert_eq!(e.top1, Some(Top1 { flipped: 1, rows: 2 }));
    let words = comparison.to_string();
    assert!(
        words.starts_with("output \"y\": 3 of 6 elements differ (rtol 1e-5, atol 1e-8 for floating-point elements)"),
        "{words}"
    );
    assert!(words.contains(", worst at [1, 0]: expected 0.5, got 0.3;"), "{words}");
    assert!(words.ends_with("the index of the largest element differs in 1 of 2 rows"), "{words}");
}

#[test]
fn the_tolerance_is_relative_to_the_expected_value() {
    let tolerance = Tolerance { rtol: 0.1, atol: 0.0 };
    let agree = |expected: f32, got: f32| {
        compare(&[("y", floats(&[], &[expected]))], &[("y", floats(&[], &[got]))], tolerance).agrees()
    };
    assert!(agree(100.0, 109.9) && agree(100.0, 90.1));
    assert!(!agree(90.0, 100.0), "a tenth of 90 is 9");
    assert!(agree(110.0, 100.0), "a tenth of 110 is 11");
    assert!(agree(0.0, 0.0) && !agree(0.0, 1e-30));
}

#[test]
fn nan_equals_nan_and_infinities_of_one_sign_are_equal() {
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    assert!(compare_one(floats(&[3], &[nan, inf, -inf]), floats(&[3], &[nan, inf, -inf])).agrees());
    let comparison = compare_one(floats(&[4], &[nan, 1.0, inf, 2.0]), floats(&[4], &[1.0, nan, -inf, 2.5]));
    let e = elements(&comparison);
    assert_eq!((e.outside, e.nonfinite), (4, 3));
    assert_eq!(e.worst, Some(Worst { index: vec![0], expected: "NaN".into(), got: "1".into() }));
    assert_eq!((e.largest, e.mean), (Some(0.5), Some(0.5)), "over the one finite pair");
    assert!(comparison.to_string().contains("3 are NaN or infinite on one side only"));
    let e = compare_one(floats(&[1], &[nan]), floats(&[1], &[nan]));
    assert_eq!(elements(&e).largest, None);
}

#[test]
fn all_types_but_floats_must_be_equal() {
    let ints = |v: &[i64]| Tensor::new(Shape::new(&[v.len()]), Data::Int64(v.to_vec().into())).unwrap();
    let comparison = compare_one(ints(&[1, i64::MIN, 3]), ints(&[1, i64::MAX, 4]));
    let e = elements(&comparison);
    assert_eq!((e.outside, e.largest), (2, Some(18_446_744_073_709_551_615.0)));
    assert_eq!(e.worst.as_ref().unwrap().index, [1]);
    let strings = |v: &[&str]| {
        let data = v.iter().map(|s| Bytes::copy_from_slice(s.as_bytes())).collect();
        Tensor::new(Shape::new(&[v.len()]), Data::Bytes(data)).unwrap()
    };
    let comparison = compare_one(strings(&["a", "cat"]), strings(&["a", "dog"]));
    assert_eq!(
        comparison.to_string(),
        "output \"y\": 1 of 2 elements differ, worst at [1]: expected \"cat\", got \"dog\""
    );
    let long = "x".repeat(500);
    assert!(compare_one(strings(&[&long]), strings(&["y"])).to_string().len() < 300, "long strings are cut");
    let bools = |v: &[bool]| Tensor::new(Shape::new(&[v.len()]), Data::Bool(v.to_vec())).unwrap();
    assert!(!compare_one(bools(&[true]), bools(&[false])).agrees());
    let fp16 = |v: f32| Tensor::new(Shape::new(&[1]), Data::Fp16(vec![f16::from_f32(v)].into())).unwrap();
    assert!(compare_one(fp16(1.5), fp16(1.5)).agrees() && !compare_one(fp16(1.5), fp16(1.6)).agrees());
}

#[test]
fn outputs_are_matched_by_name() {
    let t = || floats(&[1], &[1.0]);
    let in_order = [("a", t()), ("b", t())];
    let reversed: [(std::sync::Arc<str>, Tensor); 2] = [("b".into(), t()), ("a".into(), t())];
    assert!(compare(&in_order, &reversed, Tolerance::default()).agrees());
    let comparison = compare(&in_order, &[("b", t()), ("c", t())], Tolerance::default());
    assert_eq!(comparison.to_string(), "output \"a\": is missing; output \"c\": was not expected");
    assert!(!comparison.agrees());
    let comparison = compare_one(t(), floats(&[1, 1], &[1.0]));
    assert_eq!(comparison.to_string(), "output \"y\": expected shape [1], got [1,1]");
    let comparison = compare_one(t(), Tensor::new(Shape::new(&[1]), Data::zeros(DataType::Fp64, 1)).unwrap());
    assert_eq!(comparison.to_string(), "output \"y\": expected datatype FP32, got FP64");
}

#[test]
fn empty_tensors_and_empty_answers_agree() {
    let none = || floats(&[0, 3], &[]);
    let comparison = compare_one(none(), none());
    assert!(comparison.agrees());
    let e = elements(&comparison);
    assert_eq!((e.count, e.largest, e.top1), (0, None, Some(Top1 { flipped: 0, rows: 0 })));
    assert!((e.share_within() - 1.0).abs() < 1e-12);
    assert_eq!(comparison.to_string(), "1 output agrees within rtol 1e-5 and atol 1e-8");
    let empty: [(&str, Tensor); 0] = [];
    assert!(compare(&empty, &empty, Tolerance::default()).agrees());
}

fn tensor_of<T: Element>(data: Vec<T>, wrap: impl Fn(Vec<T>) -> Data) -> Tensor {
    Tensor::new(Shape::new(&[data.len()]), wrap(data)).unwrap()
}

#[test]
fn the_mean_of_very_large_differences_is_finite() {
    let wrap = |v: Vec<f64>| tensor_of(v, |v| Data::Fp64(v.into()));
    let comparison = compare_one(wrap(vec![f64::MAX, -f64::MAX, 0.0]), wrap(vec![-f64::MAX, f64::MAX, 0.0]));
    let e = elements(&comparison);
    assert_eq!(e.largest, Some(f64::MAX));
    assert_eq!(e.mean, Some(f64::MAX / 3.0 * 2.0));
    // 0.1 + 0.1 + 0.1 is more than 0.3.
    let comparison = compare_one(wrap(vec![0.0; 3]), wrap(vec![0.1; 3]));
    assert_eq!(elements(&comparison).mean, Some(0.1));
}

proptest! {
    #[test]
    fn any_tensor_agrees_with_itself(bits in proptest::collection::vec(any::<u32>(), 0..50)) {
        let t = || tensor_of(bits.iter().map(|b| f32::from_bits(*b)).collect(), |v| Data::Fp32(v.into()));
        let comparison = compare_one(t(), t());
        prop_assert!(comparison.agrees());
        prop_assert!(elements(&comparison).worst.is_none());
    }

    #[test]
    fn agreement_is_that_of_numpy_isclose(
        pairs in proptest::collection::vec((any::<f64>(), any::<f64>(), -1e-4..1e-4f64), 1..20),
        rtol in 0.0..1e-3f64,
        atol in 0.0..1e-3f64,
        near in any::<bool>(),
    ) {
        let expected: Vec<f64> = pairs.iter().map(|p| p.0).collect();
        // Random numbers hardly ever agree, so half of the cases use numbers close to each other.
        let got: Vec<f64> = pairs.iter().map(|p| if near { p.0 * (1.0 + p.2) } else { p.1 }).collect();
        let close = |e: f64, g: f64| {
            let finite = e.is_finite() && g.is_finite();
            if finite { (g - e).abs() <= atol + rtol * e.abs() } else { e.to_bits() == g.to_bits() }
        };
        let outside = expected.iter().zip(&got).filter(|(e, g)| !close(**e, **g)).count();
        let wrap = |v: Vec<f64>| Data::Fp64(v.into());
        let comparison =
            compare(&[("y", tensor_of(expected, wrap))], &[("y", tensor_of(got, wrap))], Tolerance { rtol, atol });
        let e = elements(&comparison);
        prop_assert_eq!(e.outside, outside);
        prop_assert_eq!(comparison.agrees(), outside == 0);
        prop_assert_eq!(e.worst.is_some(), outside > 0);
        prop_assert!(e.mean <= e.largest);
    }

    #[test]
    fn the_only_changed_element_is_the_worst(
        dims in proptest::collection::vec(1..4usize, 1..4),
        pick in any::<proptest::sample::Index>(),
    ) {
        let n: usize = dims.iter().product();
        let at = pick.index(n);
        let mut changed = vec![1i32; n];
        changed[at] = 7;
        let wrap = |v: Vec<i32>| Tensor::new(Shape::new(&dims), Data::Int32(v.into())).unwrap();
        let comparison = compare_one(wrap(vec![1; n]), wrap(changed));
        let worst = elements(&comparison).worst.clone().unwrap();
        let flat = worst.index.iter().zip(&dims).fold(0, |flat, (i, extent)| flat * extent + i);
        prop_assert_eq!((flat, worst.expected.as_str(), worst.got.as_str()), (at, "1", "7"));
    }
}

#[test]
fn the_values_of_hidden_outputs_are_not_in_the_words() {
    let text = |text: &'static str| {
        Tensor::new(Shape::new(&[1]), Data::Bytes(vec![bytes::Bytes::from_static(text.as_bytes())])).unwrap()
    };
    let expected = [("label", text("secret")), ("public", text("open"))];
    let got = [("label", text("other secret")), ("public", text("shut"))];
    let comparison = compare(&expected, &got, Tolerance::default());
    let words = comparison.without(&|output| output == "label").to_string();
    assert!(words.contains("output \"label\": 1 of 1 elements differ; its values are private"), "{words}");
    assert!(!words.contains("secret") && words.contains("expected \"open\", got \"shut\""), "{words}");
    assert!(comparison.to_string().contains("secret"), "without a choice nothing is hidden");
}

#[test]
fn the_worst_pairs_are_chosen_by_the_scale_of_each_output() {
    let version = |n: u64| n.to_string().parse().unwrap();
    let mut figures =
        PairFigures::new(version(1), version(2), (String::new(), String::new()), jiff::Timestamp::UNIX_EPOCH);
    let answer = |probability: f32, price: i64| {
        let shape = || Shape::new(&[1]);
        let probability = Tensor::new(shape(), Data::Fp32(vec![probability].into())).unwrap();
        let price = Tensor::new(shape(), Data::Int64(vec![price].into())).unwrap();
        crate::model::Answer::from(vec![("probability".into(), probability), ("price".into(), price)])
    };
    for i in 0..1000_u16 {
        let share = f32::from(i) / 1000.0;
        let price = i64::from(i) * 1000;
        // Every price is off by a hundredth of its range. One probability is off by nearly all of it.
        let (expected, got) = if i == 10 {
            (answer(0.01, price), answer(0.99, price))
        } else {
            (answer(share, price), answer(share, price + 10_000))
        };
        let comparison = compare_answers(&expected, &got, Tolerance::default());
        let id = crate::model::RequestId::from_caller(format!("r{i}")).unwrap();
        let took = std::time::Duration::from_micros(1);
        let pair = Pair {
            request_id: &id,
            arm: "1",
            at: jiff::Timestamp::UNIX_EPOCH,
            primary: Ok((&expected, took)),
            shadow: Ok((&got, took)),
            comparison: Some(&comparison),
            alternated: None,
        };
        figures.record(3, &pair);
    }
    assert_eq!((figures.worst.len(), figures.worst[0].request_id.as_str()), (3, "r10"), "{:?}", figures.worst);
}

proptest::proptest! {
    #[test]
    fn spreads_add_up(a in proptest::collection::vec(-1e3..1e3f64, 0..20), b in proptest::collection::vec(-1e3..1e3f64, 0..20)) {
        let spread = |numbers: &mut dyn Iterator<Item = &f64>| {
            let mut spread = Spread::default();
            numbers.for_each(|x| spread.add(*x));
            spread
        };
        let mut sum = spread(&mut a.iter());
        sum.merge(&spread(&mut b.iter()));
        let whole = spread(&mut a.iter().chain(&b));
        proptest::prop_assert_eq!(sum.count, whole.count);
        proptest::prop_assert!((sum.mean - whole.mean).abs() < 1e-9 * 1e3 && (sum.squares - whole.squares).abs() < 1e-9 * 1e8);
    }
}

#[test]
fn alternated_runs_are_compared_per_row() {
    let mut alternated = Alternated::default();
    assert_eq!((alternated.runs(), alternated.us_per_row(), alternated.ratio(0.5)), (0, None, None));
    let us = std::time::Duration::from_micros;
    for i in 1..=100 {
        // A run in ten is interrupted for a long time, on either side.
        let pause = |at: u64| if i % 10 == at { us(1_000_000) } else { us(0) };
        let rows = usize::try_from(i % 4 + 1).unwrap();
        let each = |us_per_row: u64| us(us_per_row * (i % 4 + 1));
        alternated.record(&Alternation { primary: each(100) + pause(3), shadow: each(150) + pause(7), rows });
    }
    let (primary, shadow) = alternated.us_per_row().unwrap();
    assert!((primary - 100.0).abs() < 2.0 && (shadow - 150.0).abs() < 3.0, "{primary} {shadow}");
    assert!((alternated.ratio(0.5).unwrap() - 1.5).abs() < 0.03);
    assert_eq!(alternated.runs(), 100);
    alternated.record(&Alternation { primary: us(0), shadow: us(0), rows: 0 });
}
