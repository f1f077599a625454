use super::explainer::Places;
use super::{Explanation, Options, shapley};
use crate::backend::Engines;
use crate::columns::ElementNames;
use crate::model::{
    Answer, CallerId, Checked, Code, Dim, Failure, InferenceRequest, NamedTensor, Signature, TensorSpec,
};
use crate::prepare::{OfflineVersion, load_offline};
use crate::tensor::{Data, DataType, Shape, Tensor};
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

fn spec(name: &str, datatype: DataType, width: usize) -> TensorSpec {
    TensorSpec { name: name.into(), datatype, dims: Some(vec![Dim::Free(None), Dim::Fixed(width)]) }
}

fn tensor(rows: &[Vec<f32>]) -> Tensor {
    let shape = Shape::new(&[rows.len(), rows[0].len()]);
    Tensor::new(shape, Data::Fp32(rows.concat().into())).unwrap()
}

fn checked(signature: &Signature, tensors: Vec<Tensor>) -> Checked {
    let named = signature.inputs().iter().zip(tensors);
    let inputs = named.map(|(spec, tensor)| NamedTensor { name: spec.name.to_string(), tensor }).collect();
    signature.check(InferenceRequest { inputs, ..InferenceRequest::default() }).unwrap()
}

fn later() -> Instant {
    Instant::now() + Duration::from_mins(5)
}

/// Explains with a function of a row of numbers.
fn explained(
    row: &[f32],
    background: &[Vec<f32>],
    options: &Options,
    f: impl Fn(&[f32]) -> f32,
) -> Result<Explanation, Failure> {
    let signature = Signature::new(vec![spec("x", DataType::Fp32, row.len())], vec![spec("y", DataType::Fp32, 1)]);
    let mut run = |request: &Checked| {
        let Data::Fp32(x) = request.inputs()[0].data() else { panic!("FP32") };
        let y: Vec<f32> = x.chunks_exact(row.len()).map(&f).collect();
        let tensor = Tensor::new(Shape::new(&[y.len(), 1]), Data::Fp32(y.into())).unwrap();
        Ok(Answer::from(vec![(Arc::from("y"), tensor)]))
    };
    let (one, others) =
        (checked(&signature, vec![tensor(&[row.to_vec()])]), checked(&signature, vec![tensor(background)]));
    shapley(&signature, &one, &others, &ElementNames::default(), options, later(), &mut run)
}

fn assert_adds_up(explanation: &Explanation) {
    let sum: f64 = explanation.columns.iter().map(|column| column.value).sum();
    let difference = explanation.answer - explanation.base;
    assert!(
        (sum - difference).abs() <= 1e-9 * (1.0 + explanation.answer.abs() + explanation.base.abs()),
        "{sum} {difference}"
    );
}

/// The Shapley values that the shap package computes exactly for a model, made by `tests/python/shap_values.py`.
fn fixture(name: &str) -> (OfflineVersion, Value) {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/explain");
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(fixtures.join(format!("{name}.onnx")), dir.path().join("model.onnx")).unwrap();
    let version = load_offline(&Engines::discover(None), dir.path()).unwrap();
    let values = serde_json::from_slice(&std::fs::read(fixtures.join("values.json")).unwrap()).unwrap();
    (version, values)
}

#[expect(clippy::cast_possible_truncation, reason = "the numbers are FP32, written as decimals")]
fn rows(value: &Value) -> Vec<Vec<f32>> {
    let row = |row: &Value| row.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect();
    value.as_array().unwrap().iter().map(row).collect()
}

fn explain_fixture(name: &str, row: usize, options: &Options) -> (Explanation, Vec<f64>, f64) {
    let (version, values) = fixture(name);
    let signature = version.runner.signature();
    let one = checked(signature, vec![tensor(&[rows(&values["rows"])[row].clone()])]);
    let others = checked(signature, vec![tensor(&rows(&values["background"]))]);
    let mut run = |request: &Checked| version.runner.run(request).map(|ran| ran.answer);
    let explanation = shapley(signature, &one, &others, &ElementNames::default(), options, later(), &mut run).unwrap();
    let expected = values[name]["values"][row].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
    (explanation, expected, values[name]["base"].as_f64().unwrap())
}

#[test]
fn a_linear_model_has_the_exact_values_of_the_shap_package() {
    for row in 0..4 {
        // The fewest runs suffice: each permutation gives the same values.
        let (explanation, expected, base) =
            explain_fixture("linear", row, &Options { rows: 500, ..Options::default() });
        assert_adds_up(&explanation);
        assert_eq!(explanation.background_rows, 40);
        assert!((explanation.base - base).abs() < 1e-5, "{} {base}", explanation.base);
        for (column, expected) in explanation.columns.iter().zip(expected) {
            assert!((column.value - expected).abs() < 1e-5, "{column:?} {expected}");
        }
    }
}

#[test]
fn a_tree_model_has_the_values_of_the_shap_package_within_the_standard_errors() {
    let mut beyond_two = 0;
    for row in 0..4 {
        let (explanation, expected, base) = explain_fixture("tree", row, &Options::default());
        assert_adds_up(&explanation);
        assert!((explanation.base - base).abs() < 1e-4, "{} {base}", explanation.base);
        for (column, expected) in explanation.columns.iter().zip(&expected) {
            let error = (column.value - expected).abs();
            assert!(error <= 4.0 * column.standard_error + 1e-4, "{column:?} {expected}");
            assert!(error <= 0.02 + 0.02 * expected.abs(), "{column:?} {expected}");
            beyond_two += usize::from(error > 2.0 * column.standard_error + 1e-4);
        }
    }
    assert!(beyond_two <= 4, "{beyond_two} of 24 values are beyond two standard errors");
}

#[test]
fn interactions_are_shared_and_columns_without_influence_get_nothing() {
    let background = vec![vec![0.0, 0.0, 5.0], vec![0.0, 0.0, -5.0]];
    let explanation = explained(&[2.0, 3.0, 1.0], &background, &Options::default(), |x| x[0] * x[1]).unwrap();
    let values: Vec<f64> = explanation.columns.iter().map(|column| column.value).collect();
    assert_adds_up(&explanation);
    assert_eq!(values, [3.0, 3.0, 0.0], "the product is halved, by antithetic pairs exactly");
    assert_eq!((explanation.answer, explanation.base), (6.0, 0.0));
    let inputs: Vec<&str> = explanation.columns.iter().map(|column| column.input.as_str()).collect();
    assert_eq!((inputs, explanation.columns[1].name.as_str()), (vec!["2", "3", "1"], "x[1]"));

    // Equal to the background: nothing is left to explain, and nothing more is run.
    let same = explained(&[1.0, 2.0], &[vec![1.0, 2.0]], &Options::default(), |x| x[0] + x[1]).unwrap();
    assert_eq!((same.columns[0].value, same.columns[0].standard_error, same.rows_run), (0.0, 0.0, 2));
    let one = explained(&[4.0], &[vec![1.0], vec![2.0]], &Options::default(), |x| x[0]).unwrap();
    assert_eq!(one.columns[0].value, 2.5, "a single column explains all");
}

#[test]
fn few_rows_use_fewer_background_rows_and_still_add_up() {
    let background: Vec<Vec<f32>> = (0..300).map(|i| (0..20).map(|j| (i * j % 7) as f32).collect()).collect();
    let row: Vec<f32> = (0..20).map(|j| 3.0 + j as f32).collect();
    let f = |x: &[f32]| x.iter().enumerate().map(|(i, v)| v * i as f32).sum::<f32>() + x[0] * x[19];
    let explanation = explained(&row, &background, &Options { rows: 400, ..Options::default() }, f).unwrap();
    assert_eq!((explanation.background_rows, explanation.pairs), (10, 10));
    assert!(explanation.rows_run <= 420, "{}", explanation.rows_run);
    assert_adds_up(&explanation);
    let again = explained(&row, &background, &Options { rows: 400, ..Options::default() }, f).unwrap();
    assert_eq!(again, explanation, "the same seed, the same values");
    let most = explained(&row, &background, &Options { rows: 50_000, ..Options::default() }, f).unwrap();
    assert_eq!((most.background_rows, most.pairs % 100), (100, 0));
    assert!(most.columns[3].standard_error < explanation.columns[3].standard_error);
}

#[test]
fn what_cannot_be_explained_is_refused_in_words() {
    let refused = |result: Result<Explanation, Failure>, words: &str| {
        let failure = result.unwrap_err();
        assert!(failure.code == Code::InvalidRequest && failure.message.contains(words), "{failure:?}: {words}");
    };
    let sum = |x: &[f32]| x.iter().sum::<f32>();
    let wide = vec![0.5; 501];
    refused(
        explained(&wide, &[vec![0.0; 501]], &Options::default(), sum),
        "rows of 1 to 500 columns; this one has 501",
    );
    let options = |change: fn(&mut Options)| {
        let mut options = Options::default();
        change(&mut options);
        options
    };
    let with = |options: Options| explained(&[1.0, 2.0], &[vec![0.0, 0.0]], &options, sum);
    refused(with(options(|o| o.rows = 0)), "rows: expected 1 to 200000, got 0");
    refused(with(options(|o| o.rows = 200_001)), "rows: expected 1 to 200000");
    refused(with(options(|o| o.output = Some("z".to_owned()))), "output: expected one of \"y\", got \"z\"");
    refused(with(options(|o| o.element = Some(1))), "element: expected 0 to 0, as output y has 1 for a row; got 1");
    refused(explained(&[1.0, 2.0], &[vec![0.0, 0.0]], &Options::default(), |x| 1.0 / x[0]), "not finite");

    let x = || spec("x", DataType::Fp32, 2);
    let fixed = Signature::new(
        vec![TensorSpec { dims: Some(vec![Dim::Fixed(1), Dim::Fixed(2)]), ..x() }],
        vec![spec("y", DataType::Fp32, 1)],
    );
    let texts = Signature::new(vec![x()], vec![spec("label", DataType::Bytes, 1)]);
    let mut run = |_: &Checked| -> Result<Answer, Failure> { panic!("nothing is run") };
    let mut ask = |signature: &Signature, rows: usize, background: usize, options: &Options| {
        let row = checked(signature, vec![tensor(&vec![vec![1.0, 2.0]; rows])]);
        let others = match background {
            0 => {
                let none = Tensor::new(Shape::new(&[0, 2]), Data::zeros(DataType::Fp32, 0)).unwrap();
                checked(signature, vec![none])
            }
            n => checked(signature, vec![tensor(&vec![vec![0.0, 0.0]; n])]),
        };
        shapley(signature, &row, &others, &ElementNames::default(), options, later(), &mut run)
    };
    let plain = Signature::new(vec![x()], vec![spec("y", DataType::Fp32, 1)]);
    let worded = Signature::new(vec![spec("x", DataType::Bytes, 1)], vec![spec("y", DataType::Fp32, 1)]);
    let said = |text: usize| {
        let text = bytes::Bytes::from(vec![b'a'; text]);
        checked(&worded, vec![Tensor::new(Shape::new(&[1, 1]), Data::Bytes(vec![text])).unwrap()])
    };
    let mut never = |_: &Checked| -> Result<Answer, Failure> { panic!("nothing is run") };
    let mut explain = |row: usize, background: usize| {
        let (names, options) = (ElementNames::default(), Options::default());
        shapley(&worded, &said(row), &said(background), &names, &options, later(), &mut never)
    };
    refused(explain(70_000, 1), "at most 64 KiB together, as many rows run together; these have 69 KiB");
    refused(explain(1, 70_000), "at most 64 KiB together");
    refused(ask(&fixed, 1, 1, &Options::default()), "one row for each example");
    refused(ask(&plain, 2, 1, &Options::default()), "expected one row to explain, got 2");
    refused(ask(&plain, 1, 0, &Options::default()), "background: expected at least one row");
    refused(ask(&texts, 1, 1, &Options::default()), "got an output of floating-point numbers");
    refused(ask(&texts, 1, 1, &options(|o| o.output = Some("label".to_owned()))), "output label has no numbers");
}

#[test]
fn an_explanation_that_cannot_end_in_time_says_so() {
    let signature = Signature::new(vec![spec("x", DataType::Fp32, 2)], vec![spec("y", DataType::Fp32, 1)]);
    let (row, others) =
        (checked(&signature, vec![tensor(&[vec![1.0, 2.0]])]), checked(&signature, vec![tensor(&[vec![0.0, 0.0]])]));
    let mut run = |request: &Checked| {
        let rows = request.rows().unwrap();
        let y = Tensor::new(Shape::new(&[rows, 1]), Data::zeros(DataType::Fp32, rows)).unwrap();
        Ok(Answer::from(vec![(Arc::from("y"), y)]))
    };
    let failure =
        shapley(&signature, &row, &others, &ElementNames::default(), &Options::default(), Instant::now(), &mut run)
            .unwrap_err();
    assert_eq!(failure.code, Code::DeadlineExceeded);
    assert!(failure.message.contains("0 of 1 background rows"), "{failure:?}");
}

#[test]
fn one_caller_takes_at_most_half_of_the_places() {
    let places = Places::default();
    let [anna, ben] = ["anna", "ben"].map(CallerId::of);
    let (first, _second) = (places.enter(anna).unwrap(), places.enter(anna).unwrap());
    assert_eq!(places.enter(anna).unwrap_err().code, Code::TooManyRequests);
    let _ben = (places.enter(ben).unwrap(), places.enter(ben).unwrap());
    drop(first);
    assert!(places.enter(anna).is_ok(), "an explanation that has ended gives its place back");
}
