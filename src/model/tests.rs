use super::failure::MAX_TEXT_BYTES;
use super::*;
use crate::tensor::{Data, DataType, Shape, Tensor};
use std::sync::Arc;

fn spec(name: &str, datatype: DataType, dims: &[i64]) -> TensorSpec {
    let dims = dims.iter().map(|d| usize::try_from(*d).map_or(Dim::Free(None), Dim::Fixed)).collect();
    TensorSpec { name: name.into(), datatype, dims: Some(dims) }
}

fn named(name: &str, shape: &[usize]) -> NamedTensor {
    let shape = Shape::new(shape);
    let data = Data::zeros(DataType::Fp32, shape.elements().unwrap());
    NamedTensor { name: name.into(), tensor: Tensor::new(shape, data).unwrap() }
}

fn two_by_two() -> Signature {
    Signature::new(
        vec![spec("a", DataType::Fp32, &[-1, 2]), spec("b", DataType::Fp32, &[-1])],
        vec![spec("y", DataType::Fp32, &[-1, 1]), spec("z", DataType::Int64, &[-1])],
    )
}

#[test]
fn a_checked_request_is_in_the_models_order() {
    let request = InferenceRequest {
        inputs: vec![named("b", &[3]), named("a", &[3, 2])],
        outputs: Some(vec!["z".into()]),
        ..Default::default()
    };
    let checked = two_by_two().check(request).unwrap();
    assert_eq!(&**checked.inputs()[0].shape(), &[3, 2]);
    assert_eq!(checked.wanted(), &[1]);
    assert_eq!(checked.rows(), Some(3));
}

#[test]
fn all_complaints_are_reported_at_once() {
    let request = InferenceRequest {
        inputs: vec![named("a", &[3, 5]), named("a", &[3, 2]), named("c", &[1])],
        ..Default::default()
    };
    let failure = two_by_two().check(request).unwrap_err();
    assert_eq!(failure.code, Code::InvalidTensor);
    assert_eq!(
        failure.details,
        [
            "input \"a\": dimension 1 is fixed at 2, got 5 in shape [3,5]",
            "input \"a\" is given more than once",
            "unknown input \"c\": this model takes \"a\", \"b\"",
            "input \"b\" is missing: expected b FP32 [-1]",
        ]
    );
}

#[test]
fn a_symbol_has_one_extent_within_a_request() {
    let n = |name: &str| TensorSpec {
        name: name.into(),
        datatype: DataType::Fp32,
        dims: Some(vec![Dim::Free(Some("N".into()))]),
    };
    let signature = Signature::new(vec![n("a"), n("b")], vec![n("y")]);
    let request = InferenceRequest { inputs: vec![named("a", &[3]), named("b", &[4])], ..Default::default() };
    let failure = signature.check(request).unwrap_err();
    assert!(failure.message.contains("N is 3 in input \"a\""), "{failure}");
}

#[test]
fn unknown_and_repeated_outputs_are_reported() {
    let inputs = || vec![named("a", &[1, 2]), named("b", &[1])];
    let ask = |names: &[&str]| InferenceRequest {
        inputs: inputs(),
        outputs: Some(names.iter().map(|s| (*s).to_owned()).collect()),
        ..Default::default()
    };
    let failure = two_by_two().check(ask(&["q"])).unwrap_err();
    assert_eq!(failure.message, "unknown output \"q\": this model gives \"y\", \"z\"");
    assert!(two_by_two().check(ask(&["y", "y"])).is_err());
}

#[test]
fn breaking_changes_lists_what_breaks_callers() {
    let old = two_by_two();
    assert!(old.breaking_changes(&old).is_empty());
    let new = Signature::new(
        vec![spec("a", DataType::Fp64, &[-1, 2]), spec("b", DataType::Fp32, &[-1]), spec("c", DataType::Bool, &[])],
        vec![spec("y", DataType::Fp32, &[-1, 1]), spec("extra", DataType::Fp32, &[1])],
    );
    assert_eq!(
        old.breaking_changes(&new),
        [
            "input \"a\" changes from a FP32 [-1,2] to a FP64 [-1,2]",
            "input \"c\" is new: c BOOL []",
            "output \"z\" is removed",
        ]
    );
}

/// `x` [-1,2] and the optional `k` [1] and `flag` [].
fn with_optional() -> Signature {
    let (x, y) = (spec("x", DataType::Fp32, &[-1, 2]), spec("y", DataType::Fp32, &[-1, 2]));
    Signature::new(vec![x], vec![y])
        .with_optional_inputs(vec![spec("k", DataType::Fp32, &[1]), spec("flag", DataType::Fp32, &[])])
}

fn giving(inputs: Vec<NamedTensor>) -> InferenceRequest {
    InferenceRequest { inputs, ..Default::default() }
}

#[test]
fn optional_inputs_are_checked_where_they_are_given() {
    let signature = with_optional();
    let without = signature.check(giving(vec![named("x", &[3, 2])])).unwrap();
    assert_eq!((without.rows(), without.optional().len(), without.elements()), (Some(3), 0, 6));
    assert_eq!((without.input(0).is_some(), without.input(1), without.input(3)), (true, None, None));
    let with = signature.check(giving(vec![named("flag", &[]), named("x", &[3, 2])])).unwrap();
    assert_eq!((with.rows(), with.sent_rows(), with.elements()), (None, Some(3), 7));
    assert_eq!((with.inputs().len(), with.optional()[0].0, with.input(1)), (1, 1, None));
    assert!(with.input(2).is_some());
    assert!(!with.stacks_with(&without) && !with.stacks_with(&with) && !without.stacks_with(&with));
    assert_eq!((with.single_rows(9), with.slice_rows(0, 1)), (None, None), "its value counts for all rows");
    let names: Vec<&str> = signature.given(&with).map(|(spec, _)| &*spec.name).collect();
    assert_eq!(names, ["x", "flag"]);
    for (inputs, message) in [
        (vec![named("k", &[1])], "input \"x\" is missing: expected x FP32 [-1,2]"),
        (vec![named("x", &[1, 2]), named("k", &[2])], "input \"k\": dimension 0 is fixed at 1, got 2 in shape [2]"),
        (vec![named("x", &[1, 2]), named("k", &[1]), named("k", &[1])], "input \"k\" is given more than once"),
        (vec![named("x", &[1, 2]), named("q", &[1])], "unknown input \"q\": this model takes \"x\", \"k\", \"flag\""),
    ] {
        assert_eq!(signature.check(giving(inputs)).unwrap_err().message, message);
    }
}

#[test]
fn a_request_with_optional_inputs_is_checked_against_another_signature_by_name() {
    let signature = with_optional();
    let given = Arc::new(signature.check(giving(vec![named("x", &[1, 2]), named("k", &[1])])).unwrap());
    let again = signature.without_rows().recheck(&signature, &given).unwrap();
    assert_eq!((again.optional().len(), again.sent_rows()), (1, None));
    let outputs = || vec![spec("y", DataType::Fp32, &[-1, 2])];
    let x = || spec("x", DataType::Fp32, &[-1, 2]);
    // There it is an input that every request must give, or there is none.
    let required = Signature::new(vec![spec("k", DataType::Fp32, &[1]), x()], outputs());
    assert_eq!(required.recheck(&signature, &given).unwrap().inputs().len(), 2);
    let none = Signature::new(vec![x()], outputs());
    assert_eq!(none.recheck(&signature, &given).unwrap_err().message, "unknown input \"k\": this model takes \"x\"");
    let left_out = Arc::new(signature.check(giving(vec![named("x", &[1, 2])])).unwrap());
    assert!(none.recheck(&signature, &left_out).is_ok() && required.recheck(&signature, &left_out).is_err());
}

#[test]
fn optional_inputs_that_disappear_break_callers_and_new_ones_do_not() {
    let (signature, plain) = (with_optional(), with_optional().with_optional_inputs(Vec::new()));
    assert_eq!(plain.breaking_changes(&signature), [""; 0]);
    assert_eq!(
        signature.breaking_changes(&plain),
        ["optional input \"k\" is removed", "optional input \"flag\" is removed"]
    );
    let other =
        signature.with_optional_inputs(vec![spec("k", DataType::Fp64, &[1]), spec("flag", DataType::Fp32, &[])]);
    assert_eq!(signature.breaking_changes(&other), ["optional input \"k\" changes from k FP32 [1] to k FP64 [1]"]);
    let all = signature.all_inputs().to_vec();
    assert_eq!(
        signature.breaking_changes(&Signature::new(all, signature.outputs().to_vec())),
        ["input \"k\" is not optional any more", "input \"flag\" is not optional any more"]
    );
}

#[test]
fn invalid_names_are_rejected() {
    for good in ["a", "A.b_c-d", "0", &"x".repeat(128)] {
        assert!(good.parse::<ModelName>().is_ok(), "{good}");
    }
    for bad in ["", "..", ".a", "a/b", "a b", "-a", "é", &"x".repeat(129)] {
        assert!(bad.parse::<ModelName>().is_err(), "{bad}");
    }
    for bad in ["", "0", "01", "-1", "+1", "1.0", "99999999999999999999999"] {
        assert!(bad.parse::<Version>().is_err(), "{bad}");
    }
    assert!("7".parse::<Version>().unwrap() < "10".parse::<Version>().unwrap());
}

#[test]
fn codes_have_distinct_names() {
    let mut names: Vec<_> = Code::ALL.iter().map(|c| c.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), Code::ALL.len());
}

#[test]
fn a_check_of_thousands_of_wrong_names_gives_a_short_error() {
    let long = "n".repeat(1000);
    let outputs: Vec<TensorSpec> = (0..200).map(|i| spec(&format!("{long}{i}"), DataType::Fp32, &[-1])).collect();
    let signature = Signature::new(vec![spec("a", DataType::Fp32, &[-1])], outputs);
    let many = || (0..10_000).map(|i| format!("{long}-{i}"));
    let request =
        InferenceRequest { inputs: vec![named("a", &[1])], outputs: Some(many().collect()), ..Default::default() };
    let failure = signature.check(request).unwrap_err();
    assert_eq!(failure.code, Code::InvalidRequest);
    assert!(size(&failure) < 32 * 1024, "{} bytes", size(&failure));
    assert!(failure.details.last().unwrap().contains("more"), "{:?}", failure.details.last());
    let inputs = many().map(|name| named(&name, &[1])).collect();
    let failure = signature.check(InferenceRequest { inputs, ..Default::default() }).unwrap_err();
    assert_eq!(failure.code, Code::InvalidTensor);
    assert!(size(&failure) < 32 * 1024, "{} bytes", size(&failure));
}

fn size(failure: &Failure) -> usize {
    failure.message.len() + failure.details.iter().map(String::len).sum::<usize>()
}

#[test]
fn a_failure_is_bounded_whatever_it_contains() {
    let huge = "é".repeat(1 << 20);
    let one = Failure::new(Code::Internal, huge.clone());
    assert!(one.message.len() <= MAX_TEXT_BYTES && one.message.ends_with('…'), "{}", one.message.len());
    let several = Failure::several(Code::Conflict, vec![huge; 1000]);
    assert!(size(&several) < 32 * 1024, "{} bytes", size(&several));
    let short = Failure::several(Code::Conflict, (0..1000).map(|i| i.to_string()).collect());
    assert_eq!(short.details.len(), Failure::MAX_DETAILS + 1);
    assert_eq!(short.details.last().unwrap(), "and 936 more");
    assert_eq!(short.message, "0 (and 999 more, see details)");
    let mut again = short.clone();
    again.limit();
    assert_eq!(again, short, "a second limit changes nothing");
    let exact = Failure::several(Code::Conflict, vec!["a".into(); Failure::MAX_DETAILS]);
    assert_eq!(exact.details.len(), Failure::MAX_DETAILS);
    assert_eq!(Failure::several(Code::Conflict, vec![]).details, [""; 0]);
}

#[test]
fn control_characters_in_messages_are_escaped() {
    let failure = Failure::several(Code::Conflict, vec!["a\u{1b}[31m\nb".into(), "c\u{202e}d\u{9b}".into()]);
    assert_eq!(failure.details, ["a\\u{1b}[31m\\nb", "c\\u{202e}d\\u{9b}"]);
    assert!(!failure.message.contains('\n') && !failure.message.contains('\u{1b}'), "{failure}");
    assert_eq!(quoted("a\n\u{1b}\"é"), r#""a\n\u{1b}\"é""#);
    assert!(quoted(&"\n".repeat(100_000)).len() < 300);
}
