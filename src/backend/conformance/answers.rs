//! The answers of the engines.

use super::*;
use crate::model::Dim;
use crate::tensor::DataType;
use bytes::Bytes;
use half::f16;

/// A model, its inputs, and the outputs it must compute.
struct Case {
    name: &'static str,
    model: &'static str,
    inputs: Vec<(&'static str, Tensor)>,
    /// The outputs to request, in this order. `None`: all, in the model's order.
    outputs: Option<&'static [&'static str]>,
    expected: Vec<(&'static str, Tensor)>,
    /// Engines that do not support the case, and part of the error they must report.
    unsupported: &'static [(&'static str, &'static str)],
}

impl Case {
    fn new(name: &'static str, model: &'static str, inputs: Vec<(&'static str, Tensor)>) -> Case {
        Case { name, model, inputs, outputs: None, expected: Vec::new(), unsupported: &[] }
    }

    fn expects(self, expected: Vec<(&'static str, Tensor)>) -> Case {
        Case { expected, ..self }
    }

    fn requesting(self, outputs: &'static [&'static str]) -> Case {
        Case { outputs: Some(outputs), ..self }
    }

    fn unsupported(self, unsupported: &'static [(&'static str, &'static str)]) -> Case {
        Case { unsupported, ..self }
    }
}

#[test]
fn every_engine_answers_every_case() {
    let mut complaints = Vec::new();
    for engine in engines() {
        for case in cases() {
            if let Err(complaint) = answers(&*engine, &case) {
                complaints.push(format!("{} on {:?}: {complaint}", engine.name(), case.name));
            }
        }
    }
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

fn answers(engine: &dyn Backend, case: &Case) -> Result<(), String> {
    let unsupported = case.unsupported.iter().find(|(name, _)| *name == engine.name()).map(|(_, error)| *error);
    let answer = engine
        .load(&fixture("models", case.model))
        .map_err(|e| e.to_string())
        .and_then(|model| run(&model, &case.inputs, case.outputs).map_err(|e| e.to_string()));
    match (answer, unsupported) {
        (Err(error), Some(expected)) if error.contains(expected) => Ok(()),
        (Err(error), _) => Err(error),
        (Ok(_), Some(_)) => Err("supports this case now: remove it from the list".to_owned()),
        (Ok(answer), None) => {
            let got: Vec<(&str, &Tensor)> = answer.outputs.iter().map(|(name, t)| (&**name, t)).collect();
            let expected: Vec<(&str, &Tensor)> = case.expected.iter().map(|(name, t)| (*name, t)).collect();
            // Compared in the debug form, where NaN equals NaN.
            let (got, expected) = (format!("{got:?}"), format!("{expected:?}"));
            if got == expected { Ok(()) } else { Err(format!("expected {expected}, got {got}")) }
        }
    }
}

fn cases() -> Vec<Case> {
    let mut cases = identities();
    for model in ["mlp", "mlp_ir3", "mlp_external"] {
        for (name, rows) in [("no rows", 0), ("one row", 1), ("seven rows", 7)] {
            let x: Vec<f32> = (0..rows * 2).map(|i| f32::from(u8::try_from(i).unwrap()) - 3.0).collect();
            let y = mlp(&x);
            cases.push(
                Case::new(name, model, vec![("x", floats(&[rows, 2], &x))])
                    .expects(vec![("y", floats(&[rows, 2], &y))]),
            );
        }
    }
    let (a, b) = (floats(&[2, 2], &[1., 2., 3., 4.]), floats(&[2, 1], &[9., -9.]));
    let joined = || floats(&[2, 3], &[1., 2., 9., 3., 4., -9.]);
    let negated = || floats(&[2, 3], &[-1., -2., -9., -3., -4., 9.]);
    let largest = || floats(&[2], &[9., 4.]);
    let several = |name| Case::new(name, "several", vec![("b", b.clone()), ("a", a.clone())]);
    cases.extend([
        several("several inputs and outputs, sent in another order").expects(vec![
            ("joined", joined()),
            ("negated", negated()),
            ("largest", largest()),
        ]),
        several("some outputs, in the caller's order")
            .requesting(&["largest", "joined"])
            .expects(vec![("largest", largest()), ("joined", joined())]),
        Case::new("a scalar", "scalar", vec![("x", floats(&[], &[2.5]))]).expects(vec![("y", floats(&[], &[5.0]))]),
        Case::new("any rank: a vector", "any_rank", vec![("x", floats(&[2], &[1., 2.]))])
            .expects(vec![("y", floats(&[2], &[-1., -2.]))])
            .unsupported(&[(Tract::NAME, "does not declare how many dimensions")]),
        Case::new("any rank: a cube", "any_rank", vec![("x", floats(&[1, 1, 1], &[1.]))])
            .expects(vec![("y", floats(&[1, 1, 1], &[-1.]))])
            .unsupported(&[(Tract::NAME, "does not declare how many dimensions")]),
        Case::new("a shape", "shape_of", vec![("x", floats(&[2, 3], &[0.; 6]))]).expects(vec![("y", ints(&[2, 3]))]),
        Case::new("cumsum", "cumsum", vec![("x", floats(&[3], &[1., 2., 3.]))])
            .expects(vec![("y", floats(&[3], &[1., 3., 6.]))]),
        Case::new("an output without a declared type", "undeclared_output", vec![("i", ints(&[3, 0]))])
            .expects(vec![("y", floats(&[2, 2], &[6., 7., 0., 1.]))]),
        Case::new("strings made upper case", "upper", vec![("x", strings(&[b"red", b"Green"]))])
            .expects(vec![("y", strings(&[b"RED", b"GREEN"]))])
            .unsupported(&[(Tract::NAME, "has no operator StringNormalizer")]),
        Case::new("strings to numbers", "label_encoder", vec![("x", strings(&[b"green", b"blue", b""]))])
            .expects(vec![("y", ints(&[2, -1, -1]))])
            .unsupported(&[(Tract::NAME, "has no operator ai.onnx.ml:LabelEncoder")]),
        Case::new("scikit-learn's scaler", "scaler", vec![("x", floats(&[1, 2], &[3., 4.]))])
            .expects(vec![("y", floats(&[1, 2], &[4., 1.]))])
            .unsupported(&[(Tract::NAME, "has no operator ai.onnx.ml:Scaler")]),
        Case::new("integer division", "div_int64", vec![("a", ints(&[7, -7, i64::MIN])), ("b", ints(&[2, -1, 2]))])
            .expects(vec![("c", ints(&[3, 7, i64::MIN / 2]))]),
    ]);
    cases
}

/// Every datatype, with its extremes, through a model that changes nothing.
fn identities() -> Vec<Case> {
    let all = [
        ("identity_bool", Data::Bool(vec![true, false])),
        ("identity_uint8", Data::Uint8(vec![0, u8::MAX].into())),
        ("identity_uint16", Data::Uint16(vec![0, u16::MAX].into())),
        ("identity_uint32", Data::Uint32(vec![0, u32::MAX].into())),
        ("identity_uint64", Data::Uint64(vec![0, u64::MAX].into())),
        ("identity_int8", Data::Int8(vec![i8::MIN, i8::MAX].into())),
        ("identity_int16", Data::Int16(vec![i16::MIN, i16::MAX].into())),
        ("identity_int32", Data::Int32(vec![i32::MIN, i32::MAX].into())),
        ("identity_int64", Data::Int64(vec![i64::MIN, i64::MAX].into())),
        ("identity_fp16", Data::Fp16(vec![f16::from_f32(-1.5), f16::MAX, f16::NAN].into())),
        ("identity_fp32", Data::Fp32(vec![f32::MIN, f32::INFINITY, f32::NAN, -0.0].into())),
        ("identity_fp64", Data::Fp64(vec![f64::MIN_POSITIVE, f64::NEG_INFINITY, f64::NAN].into())),
        ("identity_bytes", Data::Bytes(vec![Bytes::from_static("\u{e9}t\u{e9}".as_bytes()), Bytes::new()])),
    ];
    assert_eq!(all.len(), DataType::ALL.len(), "one for each datatype");
    let mut cases = Vec::new();
    for (model, data) in all {
        let none = tensor(&[0], Data::zeros(data.datatype(), 0));
        let some = tensor(&[data.len()], data);
        cases.push(Case::new(model, model, vec![("x", some.clone())]).expects(vec![("y", some)]));
        cases.push(Case::new("no elements", model, vec![("x", none.clone())]).expects(vec![("y", none)]));
    }
    let odd = strings(&[b"a\0b", b"\xff\xfe", b""]);
    cases.push(
        Case::new("arbitrary bytes", "identity_bytes", vec![("x", odd.clone())])
            .expects(vec![("y", odd)])
            .unsupported(&[(Tract::NAME, "is not UTF-8")]),
    );
    cases
}

/// The function that `mlp` computes (`tests/fixtures/make.py`).
fn mlp(x: &[f32]) -> Vec<f32> {
    let relu = |v: f32| if v > 0.0 { v } else { 0.0 };
    let row = |x: &[f32]| {
        let h = [relu(x[0] + 2.0 * x[1]), relu(-2.0 * x[0] + x[1] + 1.0), relu(3.0 * x[0] - x[1] - 1.0)];
        [h[0] + 3.0 * h[1] - 2.0 * h[2], 2.0 * h[0] - h[1] + h[2]]
    };
    x.chunks(2).flat_map(row).collect()
}

#[test]
fn signatures_match_the_models() {
    for engine in engines() {
        let shown = |model: &str| {
            let model = load(&*engine, &fixture("models", model).dir);
            let signature = model.signature();
            let side = |specs: &[crate::model::TensorSpec]| {
                specs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
            };
            format!("{} -> {}", side(signature.inputs()), side(signature.outputs()))
        };
        let expected = [
            ("mlp", "x FP32 [N,2] -> y FP32 [N,2]"),
            ("mlp_ir3", "x FP32 [-1,2] -> y FP32 [-1,2]"),
            ("several", "a FP32 [-1,2], b FP32 [-1,1] -> joined FP32 [-1,3], negated FP32 [-1,3], largest FP32 [-1]"),
            ("scalar", "x FP32 [] -> y FP32 []"),
            ("undeclared_output", "i INT64 [N] -> y FP32 [N,2]"),
            ("shape_of", "x FP32 [N,M] -> y INT64 [2]"),
        ];
        for (model, signature) in expected {
            assert_eq!(shown(model), signature, "{} on {model}", engine.name());
        }
    }
    if let Some(ort) = onnxruntime() {
        let model = load(&*ort, &fixture("models", "any_rank").dir);
        assert_eq!(model.signature().inputs()[0].dims, None, "an unknown rank is not a scalar");
        let model = load(&*ort, &fixture("models", "mlp").dir);
        assert_eq!(model.signature().inputs()[0].dims.as_ref().unwrap()[0], Dim::Free(Some("N".into())));
        assert!(model.signature().has_rows());
    }
}

#[test]
fn one_session_runs_with_many_shapes() {
    for engine in engines() {
        let model = load(&*engine, &fixture("models", "mlp").dir);
        let mut session = Arc::clone(&model).session().unwrap();
        for rows in [3, 0, 1, 5, 1] {
            let x: Vec<f32> = (0..rows * 2).map(|i| f32::from(u8::try_from(i).unwrap()) / 2.0).collect();
            let got =
                session.run(&request(&*model, &[("x", floats(&[rows, 2], &x))], None), &Interrupt::new()).unwrap();
            assert_eq!(got, [floats(&[rows, 2], &mlp(&x))], "{} with {rows} rows", engine.name());
        }
    }
}

#[test]
fn threads_that_share_a_model_get_their_own_answers() {
    for engine in engines() {
        let model = load(&*engine, &fixture("models", "mlp").dir);
        std::thread::scope(|scope| {
            for thread in 0..8u8 {
                let model = &model;
                scope.spawn(move || {
                    let mut session = Arc::clone(model).session().unwrap();
                    for run in 0..500u16 {
                        let rows = usize::from(run % 4);
                        let x: Vec<f32> = (0..rows * 2).map(|_| f32::from(thread) * 1000.0 + f32::from(run)).collect();
                        let got = session
                            .run(&request(&**model, &[("x", floats(&[rows, 2], &x))], None), &Interrupt::new())
                            .unwrap();
                        assert_eq!(got, [floats(&[rows, 2], &mlp(&x))], "thread {thread}, run {run}");
                    }
                });
            }
        });
    }
}

#[test]
fn changes_to_weight_files_after_the_load_have_no_effect() {
    for engine in engines() {
        let from = fixture("models", "mlp_external").dir;
        let dir = tempfile::tempdir().unwrap();
        for file in ["model.onnx", "weights.bin"] {
            std::fs::copy(from.join(file), dir.path().join(file)).unwrap();
        }
        let model = load(&*engine, dir.path());
        let ask = || run(&model, &[("x", floats(&[1, 2], &[1.0, 2.0]))], None).unwrap().outputs[0].1.clone();
        let before = ask();
        // Overwritten in place, then truncated. A mapped file would change the answer, then raise SIGBUS.
        let length = std::fs::metadata(dir.path().join("weights.bin")).unwrap().len();
        std::fs::write(dir.path().join("weights.bin"), vec![0u8; usize::try_from(length).unwrap()]).unwrap();
        assert_eq!(ask(), before, "{}", engine.name());
        std::fs::write(dir.path().join("weights.bin"), b"").unwrap();
        assert_eq!(ask(), before, "{}", engine.name());
    }
}

#[test]
fn initializers_that_are_inputs_may_be_given_or_left_out() {
    for engine in engines() {
        let dir = tempfile::TempDir::new().unwrap();
        generated::adjustable(dir.path(), 8, 0);
        let (model, name) = (load(&*engine, dir.path()), engine.name());
        let names = |specs: &[crate::model::TensorSpec]| specs.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(names(model.signature().inputs()), ["x FP32 [N,2]"], "{name}");
        assert_eq!(names(model.signature().optional_inputs()), ["factor FP32 [1]", "shift FP32 [1]"], "{name}");
        assert!(model.signature().has_rows());
        let x = ("x", floats(&[2, 2], &[1.0, 2.0, 3.0, 4.0]));
        let (factor, shift) = (("factor", floats(&[1], &[10.0])), ("shift", floats(&[1], &[-1.0])));
        let mut session = Arc::clone(&model).session().unwrap();
        // Each after the others: what a request gave is not kept.
        for (inputs, expected) in [
            (vec![x.clone()], [2.5, 4.5, 6.5, 8.5]),
            (vec![x.clone(), shift.clone(), factor.clone()], [9.0, 19.0, 29.0, 39.0]),
            (vec![x.clone(), shift], [1.0, 3.0, 5.0, 7.0]),
            (vec![factor, x.clone()], [10.5, 20.5, 30.5, 40.5]),
            (vec![x], [2.5, 4.5, 6.5, 8.5]),
        ] {
            let request = request(&*model, &inputs, None);
            assert_eq!((request.rows().is_some(), request.sent_rows()), (inputs.len() == 1, Some(2)), "{name}");
            let got = session.run(&request, &Interrupt::new()).unwrap();
            assert_eq!(got, [floats(&[2, 2], &expected)], "{name}: {inputs:?}");
        }
    }
}

#[test]
fn weights_that_are_listed_as_inputs_for_another_reason_are_not_optional() {
    for engine in engines() {
        // Before IR version 4 all initializers had to be listed, and exporters with many did it by habit.
        for (ir_version, more) in [(3, 0), (8, 31)] {
            let dir = tempfile::TempDir::new().unwrap();
            generated::adjustable(dir.path(), ir_version, more);
            let model = load(&*engine, dir.path());
            assert_eq!(model.signature().optional_inputs(), [], "{}", engine.name());
            let answer = run(&model, &[("x", floats(&[1, 2], &[1.0, 2.0]))], None).unwrap();
            assert_eq!(answer.outputs[0].1, floats(&[1, 2], &[2.5, 4.5]), "{}", engine.name());
        }
    }
}
