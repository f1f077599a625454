//! Values that fit the signature and that an operator cannot compute with: the caller's to correct, never a failure of the
//! engine.

use super::*;
use crate::tensor::DataType;

/// One operator with values it cannot take.
struct Case {
    op: &'static str,
    attributes: &'static [(&'static str, i64)],
    inputs: Vec<(&'static str, Tensor)>,
    outputs: &'static [(&'static str, DataType)],
    /// Part of the reason ONNX Runtime gives.
    ort: &'static str,
    /// Part of the reason tract gives; `None` where it does not run the model, or computes the values.
    tract: Option<&'static str>,
}

/// An operator with an output of floats.
fn case(op: &'static str, inputs: Vec<(&'static str, Tensor)>, ort: &'static str, tract: Option<&'static str>) -> Case {
    Case { op, attributes: &[], inputs, outputs: &[("out", DataType::Fp32)], ort, tract }
}

fn row() -> Tensor {
    floats(&[3], &[1., 2., 3.])
}

fn square() -> Tensor {
    floats(&[2, 2], &[1., 2., 3., 4.])
}

fn scalar(n: i64) -> Tensor {
    tensor(&[], Data::Int64(vec![n].into()))
}

fn matrix(shape: &[usize], data: &[i64]) -> Tensor {
    tensor(shape, Data::Int64(data.to_vec().into()))
}

fn sizes_and_shapes() -> Vec<Case> {
    let mask = || tensor(&[5], Data::Bool(vec![true; 5]));
    let equal = Some("the first dimensions of its inputs must be equal and are");
    let x_and = |name: &'static str, values: &[i64]| vec![("x", row()), (name, ints(values))];
    let top: &[(&str, DataType)] = &[("out", DataType::Fp32), ("at", DataType::Int64)];
    vec![
        Case { outputs: top, ..case("TopK", x_and("k", &[9]), "k argument [9] should not be greater than", None) },
        Case { outputs: top, ..case("TopK", x_and("k", &[-1]), "value of k must not be negative", None) },
        case("Reshape", x_and("shape", &[2, 2]), "cannot be reshaped to the requested shape", None),
        case("Reshape", x_and("shape", &[-1, -1]), "At most one dimension can be -1", None),
        case("Reshape", x_and("shape", &[-7, 3]), "A dimension cannot be less than -1, got -7", None),
        case("Expand", x_and("shape", &[2]), "invalid expand shape", None),
        case("Expand", x_and("shape", &[-2, 3]), "Tensor shape.Size() must be >= 0", None),
        case("Expand", x_and("shape", &[1 << 40, 1 << 40, 3]), "Integer overflow", None),
        case("Tile", x_and("repeats", &[-1]), "Tile repeat value must be non-negative", None),
        case("Tile", x_and("repeats", &[1, 2]), "same length", None),
        case("Tile", x_and("repeats", &[1 << 44]), "exceeds the supported maximum", None),
        case("Pad", x_and("pads", &[1]), "Pads tensor size should be equal to twice", None),
        case("Pad", x_and("pads", &[-5, -5]), "Tensor shape.Size() must be >= 0", None),
        case("Unsqueeze", x_and("axes", &[5]), "axis 5 is not in valid range", None),
        case("Squeeze", x_and("axes", &[0]), "must be 1 instead of 3", None),
        case("Split", x_and("split", &[1]), "Cannot split using values in 'split'", None),
        case("ReduceSum", x_and("axes", &[3]), "axis 3 is not in valid range", None),
        case("CumSum", vec![("x", row()), ("axis", scalar(7))], "axis 7 is not in valid range", None),
        case("ConstantOfShape", vec![("shape", ints(&[-1]))], "Tensor shape.Size() must be >= 0", None),
        case("Add", vec![("a", row()), ("b", floats(&[2], &[1., 2.]))], "Attempting to broadcast", equal),
        case("Where", vec![("c", mask()), ("x", row()), ("y", row())], "Attempting to broadcast", equal),
        case("MatMul", vec![("a", square()), ("b", floats(&[3, 1], &[1.; 3]))], "dimension mismatch", equal),
        case("Gemm", vec![("a", square()), ("b", floats(&[3, 1], &[1.; 3]))], "Dimension mismatch", None),
        Case {
            attributes: &[("axis", 0)],
            ..case("Concat", vec![("a", square()), ("b", floats(&[1, 3], &[1.; 3]))], "must match", None)
        },
        case(
            "Conv",
            vec![("x", floats(&[1, 1, 1], &[0.])), ("w", floats(&[1, 1, 3], &[0.; 3]))],
            "Invalid input",
            None,
        ),
        case("Det", vec![("x", floats(&[2, 3], &[0.; 6]))], "Square matrix is expected", None),
    ]
}

fn indices_and_values() -> Vec<Case> {
    let range = Some("an index in it is out of range");
    let slice = |starts: &[i64], ends: &[i64], axis: i64, step: i64| {
        vec![
            ("x", row()),
            ("starts", ints(starts)),
            ("ends", ints(ends)),
            ("axes", ints(&[axis])),
            ("steps", ints(&[step])),
        ]
    };
    let range_of = |from, to, by| vec![("from", scalar(from)), ("to", scalar(to)), ("by", scalar(by))];
    let whole: &[(&str, DataType)] = &[("out", DataType::Int64)];
    let not_a_number = "a string is not a number of the type needed";
    vec![
        case("Gather", vec![("x", row()), ("i", ints(&[0, 1, 7]))], "idx=7 must be within", range),
        Case {
            attributes: &[("axis", 0)],
            ..case(
                "GatherElements",
                vec![("x", row()), ("i", ints(&[0, 0, -9]))],
                "Out of range value in index tensor",
                Some("its node \"the_node\" GatherElements: Invalid GatherElements index -9"),
            )
        },
        case(
            "GatherND",
            vec![("x", square()), ("i", matrix(&[1, 2], &[5, 5]))],
            "invalid index found, index = 5",
            None,
        ),
        case(
            "ScatterElements",
            vec![("x", row()), ("i", ints(&[0, 1, 8])), ("u", row())],
            "idx=8 must be within the inclusive range",
            range,
        ),
        case(
            "ScatterND",
            vec![("x", row()), ("i", matrix(&[3, 1], &[0, 1, 8])), ("u", row())],
            "indice = 8",
            Some("ScatterND index 8 out of bounds"),
        ),
        case("Slice", slice(&[0, 1], &[1], 0, 1), "Starts and ends shape mismatch", None),
        case("Slice", slice(&[0], &[1], 4, 1), "'axes' has an axis outside", None),
        case("Slice", slice(&[0], &[1], 0, 0), "'step' value cannot be 0", None),
        case(
            "OneHot",
            vec![("i", ints(&[1])), ("depth", scalar(-3)), ("v", floats(&[2], &[0., 1.]))],
            "Depth is negative",
            None,
        ),
        Case {
            outputs: whole,
            ..case("Range", range_of(0, 9, 0), "delta in Range operator can not be zero", Some("is too large"))
        },
        Case {
            attributes: &[("batch_axis", 0), ("time_axis", 1)],
            ..case("ReverseSequence", vec![("x", square()), ("n", ints(&[9, 9]))], "Invalid sequence length: 9", None)
        },
        Case {
            attributes: &[("to", 1)],
            ..case("Cast", vec![("x", strings(&[b"one"]))], not_a_number, Some("invalid float literal"))
        },
        Case {
            attributes: &[("to", 7)],
            outputs: whole,
            ..case("Cast", vec![("x", strings(&[b"99999999999999999999"]))], not_a_number, Some("is not a number"))
        },
        Case {
            attributes: &[("to", 7)],
            outputs: whole,
            ..case("Cast", vec![("x", strings(&[b""]))], not_a_number, Some("is not a number"))
        },
    ]
}

#[test]
fn values_an_operator_cannot_take_are_refused_and_are_no_failure_of_the_engine() {
    for case in sizes_and_shapes().into_iter().chain(indices_and_values()) {
        for engine in engines() {
            let expected = if engine.name() == Tract::NAME { case.tract } else { Some(case.ort) };
            let Some(expected) = expected else { continue };
            let dir = tempfile::tempdir().unwrap();
            generated::one_node(dir.path(), case.op, case.attributes, &case.inputs, case.outputs);
            let model = load(&*engine, dir.path());
            match run(&model, &case.inputs, None) {
                Err(RunError::Refused(reason)) => {
                    assert!(reason.starts_with("the model cannot take these values: "), "{}: {reason}", case.op);
                    assert!(reason.contains(expected), "{} on {}: {reason}", engine.name(), case.op);
                    assert!(!reason.contains("onnxruntime") && !reason.contains(".cc:"), "{}: {reason}", case.op);
                }
                other => panic!("{} on {}: {other:?}", engine.name(), case.op),
            }
        }
    }
}

#[test]
fn missing_memory_is_a_failure_of_the_engine_and_not_of_the_values() {
    for engine in engines() {
        let dir = tempfile::tempdir().unwrap();
        let inputs = [("from", scalar(0)), ("to", scalar(1 << 50)), ("by", scalar(1))];
        generated::one_node(dir.path(), "Range", &[], &inputs, &[("out", DataType::Int64)]);
        let model = load(&*engine, dir.path());
        match run(&model, &inputs, None) {
            Err(RunError::Failed { message, .. }) => {
                assert_eq!(message, "there is not enough memory for this request", "{}", engine.name());
            }
            other => panic!("{}: {other:?}", engine.name()),
        }
        // The engine runs on.
        let inputs = [("from", scalar(0)), ("to", scalar(3)), ("by", scalar(1))];
        assert_eq!(run(&model, &inputs, None).unwrap().outputs[0].1, ints(&[0, 1, 2]), "{}", engine.name());
    }
}

#[test]
fn kernels_may_read_the_address_of_a_tensor_without_elements() {
    // ONNX Runtime's InstanceNormalization reads one element of each channel, even if there is none.
    let Some(engine) = onnxruntime() else { return };
    let dir = tempfile::tempdir().unwrap();
    let per_channel = || floats(&[3], &[1., 1., 1.]);
    let inputs = [("x", floats(&[1, 3, 0], &[])), ("scale", per_channel()), ("b", per_channel())];
    generated::one_node(dir.path(), "InstanceNormalization", &[], &inputs, &[("out", DataType::Fp32)]);
    let model = load(&*engine, dir.path());
    let answer = run(&model, &inputs, None).unwrap();
    assert_eq!(answer.outputs[0].1, floats(&[1, 3, 0], &[]));
}
