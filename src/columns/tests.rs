//! Names against signatures.

use super::*;
use crate::model::{Dim, Signature, TensorSpec};
use crate::tensor::DataType;

fn spec(name: &str, datatype: DataType, dims: &[Option<usize>]) -> TensorSpec {
    let dims = dims.iter().map(|d| d.map_or(Dim::Free(None), Dim::Fixed)).collect();
    TensorSpec { name: name.into(), datatype, dims: Some(dims) }
}

fn titanic() -> Signature {
    let inputs = vec![
        spec("sex", DataType::Bytes, &[None, Some(1)]),
        spec("x", DataType::Fp32, &[None, Some(3)]),
        spec("flag", DataType::Bool, &[None]),
    ];
    let outputs = vec![
        spec("label", DataType::Int64, &[None]),
        spec("probabilities", DataType::Fp32, &[None, Some(2)]),
        spec("x", DataType::Fp32, &[None, None]),
    ];
    Signature::new(inputs, outputs)
}

fn named(tensor: &str, names: &[&str]) -> ElementNames {
    let names = names.iter().map(|name| (*name).to_owned()).collect();
    ElementNames { by_tensor: [(tensor.to_owned(), names)].into(), of_only_input: Vec::new() }
}

fn name_of(signature: &Signature, names: &ElementNames, name: &str) -> Result<String, String> {
    resolve(signature, names, name).map(|column| column.name).map_err(|e| e.to_string())
}

#[test]
fn full_names_and_short_forms_mean_columns() {
    let (signature, none) = (titanic(), ElementNames::default());
    for (name, expected) in [
        ("inputs.sex", "inputs.sex"),
        ("sex", "inputs.sex"),
        ("sex[0]", "inputs.sex"),
        ("inputs.x[2]", "inputs.x[2]"),
        ("probabilities[1]", "outputs.probabilities[1]"),
        ("outputs.x[700]", "outputs.x[700]"),
        ("flag", "inputs.flag"),
    ] {
        assert_eq!(name_of(&signature, &none, name).as_deref(), Ok(expected), "{name}");
    }
    let column = resolve(&signature, &none, "probabilities[1]").unwrap();
    assert_eq!((column.side, column.tensor, column.element, column.kind), (Side::Outputs, 1, 1, Kind::Float));
    assert_eq!(column.tensor_column(&signature), "outputs.probabilities");
}

#[test]
fn what_is_wrong_with_a_name_is_said() {
    let (signature, none) = (titanic(), ElementNames::default());
    let error = |name: &str| name_of(&signature, &none, name).unwrap_err();
    assert!(error("x[1]").contains("may mean inputs.x[1], outputs.x[1]"), "{}", error("x[1]"));
    assert_eq!(
        error("probabilities"),
        "outputs.probabilities has 2 elements per row: name one of them, such as outputs.probabilities[0]"
    );
    assert!(error("probabilities[2]").contains("expected an index from 0 to 1, got 2"));
    let unknown = error("age");
    assert!(unknown.contains("\"age\" is no column") && unknown.contains("inputs.x[0] to inputs.x[2]"), "{unknown}");
    for strange in ["", "[", "[]", "]", "x[", "x[]", "x[-1]", "x[99999999999999999999]", "inputs.", "inputs.x[1][0]"] {
        assert!(name_of(&signature, &none, strange).is_err(), "{strange:?}");
    }
}

#[test]
fn elements_have_the_names_of_model_toml() {
    let signature = titanic();
    let names = named("x", &["age", "fare", "sex"]);
    let column = resolve(&signature, &names, "inputs.age").unwrap();
    assert_eq!((column.name.as_str(), column.shown()), ("inputs.x[0]", "age"));
    // The output of the same name has an open number of elements, and these names as well.
    let ambiguous = name_of(&signature, &names, "fare").unwrap_err();
    assert!(ambiguous.contains("inputs.x[1], outputs.x[1]"), "{ambiguous}");
    // The tensor "sex" and the element "sex" are both meant by "sex"; its full name is clear.
    assert!(name_of(&signature, &names, "sex").unwrap_err().contains("may mean"));
    assert_eq!(names.complaints(&signature), Vec::<String>::new());
    assert_eq!(
        named("x", &["a"]).complaints(&signature),
        ["1 names for the elements of inputs.x, which has 3 per row"]
    );
    assert!(named("y", &["a"]).complaints(&signature)[0].contains("\"y\", which this version does not have"));
}

#[test]
fn feature_names_are_for_one_input() {
    let outputs = vec![spec("y", DataType::Fp32, &[None])];
    let one = Signature::new(vec![spec("x", DataType::Fp32, &[None, None])], outputs);
    let names = ElementNames { of_only_input: vec!["a".into(), "b".into()], ..ElementNames::default() };
    assert_eq!(name_of(&one, &names, "b").as_deref(), Ok("inputs.x[1]"));
    let (columns, total) = all(&one, &names, 100);
    let shown: Vec<&str> = columns.iter().map(Column::shown).collect();
    assert_eq!((shown, total), (vec!["a", "b", "outputs.y"], 3));
    assert!(names.complaints(&titanic())[0].contains("for a model with one input, and this has 3"));
}

#[test]
fn columns_are_listed_up_to_a_limit() {
    let (columns, total) = all(&titanic(), &ElementNames::default(), 4);
    let names: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
    assert_eq!(names, ["inputs.sex", "inputs.x[0]", "inputs.x[1]", "inputs.x[2]"]);
    assert_eq!(total, 8);
}

#[test]
fn a_name_that_looks_like_an_index_is_a_name() {
    let signature = Signature::new(
        vec![spec("a[0]", DataType::Fp32, &[None]), spec("outputs.b", DataType::Fp32, &[None])],
        vec![spec("b", DataType::Fp32, &[None, Some(2)])],
    );
    let none = ElementNames::default();
    assert_eq!(name_of(&signature, &none, "a[0]").as_deref(), Ok("inputs.a[0]"));
    assert_eq!(name_of(&signature, &none, "outputs.b[1]").as_deref(), Ok("outputs.b[1]"));
    assert_eq!(name_of(&signature, &none, "inputs.outputs.b").as_deref(), Ok("inputs.outputs.b"));
}

#[test]
fn cells_are_read_from_bytes() {
    assert_eq!(Cell::of_bytes(DataType::Fp32, &1.5f32.to_le_bytes()), Cell::Number(1.5));
    assert_eq!(Cell::of_bytes(DataType::Int64, &(-3i64).to_le_bytes()).as_text().as_deref(), Some("-3"));
    assert_eq!(Cell::of_bytes(DataType::Bool, &[1]), Cell::Bool(true));
    assert_eq!(Cell::of_bytes(DataType::Fp32, &[1, 2]), Cell::Missing);
    assert_eq!(Cell::Number(f64::NAN).as_number(), None);
    assert_eq!(Cell::Text(b"\xff").as_text().as_deref(), Some("\u{fffd}"));
}
