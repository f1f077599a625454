//! What engines answer.

use super::*;
use crate::model::Dim;
use crate::tensor::DataType;
use bytes::Bytes;
use half::f16;

/// A model, what it is given, and what it must answer.
struct Case {
    name: &'static str,
    model: &'static str,
    inputs: Vec<(&'static str, Tensor)>,
    /// Outputs asked for, in this order; `None`: all, in the model's.
    outputs: Option<&'static [&'static str]>,
    expected: Vec<(&'static str, Tensor)>,
    /// Engines that cannot do this one, and the words they must say so with.
    cannot: &'static [(&'static str, &'static str)],
}

impl Case {
    fn new(name: &'static str, model: &'static str, inputs: Vec<(&'static str, Tensor)>) -> Case {
        Case { name, model, inputs, outputs: None, expected: Vec::new(), cannot: &[] }
    }

    fn gives(self, expected: Vec<(&'static str, Tensor)>) -> Case {
        Case { expected, ..self }
    }

    fn wanting(self, outputs: &'static [&'static str]) -> Case {
        Case { outputs: Some(outputs), ..self }
    }

    fn cannot(self, cannot: &'static [(&'static str, &'static str)]) -> Case {
        Case { cannot, ..self }
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
    let cannot = case.cannot.iter().find(|(name, _)| *name == engine.name()).map(|(_, words)| *words);
    let answer = engine
        .load(&fixture("models", case.model))
        .map_err(|e| e.to_string())
        .and_then(|model| run(&model, &case.inputs, case.outputs).map_err(|e| e.to_string()));
    match (answer, cannot) {
        (Err(words), Some(expected)) if words.contains(expected) => Ok(()),
        (Err(words), _) => Err(words),
        (Ok(_), Some(_)) => Err("can do it now: take it off the list".to_owned()),
        (Ok(answer), None) => {
            let got: Vec<(&str, &Tensor)> = answer.outputs.iter().map(|(name, t)| (&**name, t)).collect();
            let expected: Vec<(&str, &Tensor)> = case.expected.iter().map(|(name, t)| (*name, t)).collect();
            // Through the debug form, where a NaN equals itself.
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
                Case::new(name, model, vec![("x", floats(&[rows, 2], &x))]).gives(vec![("y", floats(&[rows, 2], &y))]),
            );
        }
    }
    let (a, b) = (floats(&[2, 2], &[1., 2., 3., 4.]), floats(&[2, 1], &[9., -9.]));
    let joined = || floats(&[2, 3], &[1., 2., 9., 3., 4., -9.]);
    let negated = || floats(&[2, 3], &[-1., -2., -9., -3., -4., 9.]);
    let largest = || floats(&[2], &[9., 4.]);
    let several = |name| Case::new(name, "several", vec![("b", b.clone()), ("a", a.clone())]);
    cases.extend([
        several("several inputs and outputs, given in another order").gives(vec![
            ("joined", joined()),
            ("negated", negated()),
            ("largest", largest()),
        ]),
        several("some outputs, in the caller's order")
            .wanting(&["largest", "joined"])
            .gives(vec![("largest", largest()), ("joined", joined())]),
        Case::new("a scalar", "scalar", vec![("x", floats(&[], &[2.5]))]).gives(vec![("y", floats(&[], &[5.0]))]),
        Case::new("any rank: a vector", "any_rank", vec![("x", floats(&[2], &[1., 2.]))])
            .gives(vec![("y", floats(&[2], &[-1., -2.]))])
            .cannot(&[(Tract::NAME, "does not say how many dimensions")]),
        Case::new("any rank: a cube", "any_rank", vec![("x", floats(&[1, 1, 1], &[1.]))])
            .gives(vec![("y", floats(&[1, 1, 1], &[-1.]))])
            .cannot(&[(Tract::NAME, "does not say how many dimensions")]),
        Case::new("a shape", "shape_of", vec![("x", floats(&[2, 3], &[0.; 6]))]).gives(vec![("y", ints(&[2, 3]))]),
        Case::new("cumsum", "cumsum", vec![("x", floats(&[3], &[1., 2., 3.]))])
            .gives(vec![("y", floats(&[3], &[1., 3., 6.]))]),
        Case::new("an output nobody declared", "undeclared_output", vec![("i", ints(&[3, 0]))])
            .gives(vec![("y", floats(&[2, 2], &[6., 7., 0., 1.]))]),
        Case::new("strings made upper case", "upper", vec![("x", strings(&[b"red", b"Green"]))])
            .gives(vec![("y", strings(&[b"RED", b"GREEN"]))])
            .cannot(&[(Tract::NAME, "has no operator StringNormalizer")]),
        Case::new("strings to numbers", "label_encoder", vec![("x", strings(&[b"green", b"blue", b""]))])
            .gives(vec![("y", ints(&[2, -1, -1]))])
            .cannot(&[(Tract::NAME, "has no operator ai.onnx.ml:LabelEncoder")]),
        Case::new("scikit-learn's scaler", "scaler", vec![("x", floats(&[1, 2], &[3., 4.]))])
            .gives(vec![("y", floats(&[1, 2], &[4., 1.]))])
            .cannot(&[(Tract::NAME, "has no operator ai.onnx.ml:Scaler")]),
        Case::new("integer division", "div_int64", vec![("a", ints(&[7, -7, i64::MIN])), ("b", ints(&[2, -1, 2]))])
            .gives(vec![("c", ints(&[3, 7, i64::MIN / 2]))]),
    ]);
    cases
}

/// Every datatype through a model that changes nothing, with its extremes.
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
        cases.push(Case::new(model, model, vec![("x", some.clone())]).gives(vec![("y", some)]));
        cases.push(Case::new("no elements", model, vec![("x", none.clone())]).gives(vec![("y", none)]));
    }
    let odd = strings(&[b"a\0b", b"\xff\xfe", b""]);
    cases.push(
        Case::new("any bytes at all", "identity_bytes", vec![("x", odd.clone())])
            .gives(vec![("y", odd)])
            .cannot(&[(Tract::NAME, "is not UTF-8")]),
    );
    cases
}

/// What `mlp` computes (`tests/fixtures/make.py`), in plain loops.
fn mlp(x: &[f32]) -> Vec<f32> {
    let relu = |v: f32| if v > 0.0 { v } else { 0.0 };
    let row = |x: &[f32]| {
        let h = [relu(x[0] + 2.0 * x[1]), relu(-2.0 * x[0] + x[1] + 1.0), relu(3.0 * x[0] - x[1] - 1.0)];
        [h[0] + 3.0 * h[1] - 2.0 * h[2], 2.0 * h[0] - h[1] + h[2]]
    };
    x.chunks(2).flat_map(row).collect()
}

#[test]
fn signatures_are_the_models_own() {
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
fn one_session_runs_again_and_again_with_other_shapes() {
    for engine in engines() {
        let model = load(&*engine, &fixture("models", "mlp").dir);
        let mut session = Arc::clone(&model).session().unwrap();
        for rows in [3, 0, 1, 5, 1] {
            let x: Vec<f32> = (0..rows * 2).map(|i| f32::from(u8::try_from(i).unwrap()) / 2.0).collect();
            let got = session.run(&request(&*model, &[("x", floats(&[rows, 2], &x))], None)).unwrap();
            assert_eq!(got, [floats(&[rows, 2], &mlp(&x))], "{} with {rows} rows", engine.name());
        }
    }
}

#[test]
fn many_threads_run_one_model_and_each_gets_its_own_answer() {
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
                        let got = session.run(&request(&**model, &[("x", floats(&[rows, 2], &x))], None)).unwrap();
                        assert_eq!(got, [floats(&[rows, 2], &mlp(&x))], "thread {thread}, run {run}");
                    }
                });
            }
        });
    }
}

#[test]
fn weights_in_files_are_read_once_and_for_all() {
    for engine in engines() {
        let from = fixture("models", "mlp_external").dir;
        let dir = tempfile::tempdir().unwrap();
        for file in ["model.onnx", "weights.bin"] {
            std::fs::copy(from.join(file), dir.path().join(file)).unwrap();
        }
        let model = load(&*engine, dir.path());
        let ask = || run(&model, &[("x", floats(&[1, 2], &[1.0, 2.0]))], None).unwrap().outputs[0].1.clone();
        let before = ask();
        // Cut short and overwritten in place: mapped, this would be another answer, and then SIGBUS.
        let length = std::fs::metadata(dir.path().join("weights.bin")).unwrap().len();
        std::fs::write(dir.path().join("weights.bin"), vec![0u8; usize::try_from(length).unwrap()]).unwrap();
        assert_eq!(ask(), before, "{}", engine.name());
        std::fs::write(dir.path().join("weights.bin"), b"").unwrap();
        assert_eq!(ask(), before, "{}", engine.name());
    }
}
