//! Profiles: what is built, read and refused.

use super::*;
use crate::columns::{Cell, ElementNames, Kind};
use crate::model::{Dim, Signature, TensorSpec};
use crate::tensor::{Data, DataType};

fn built(values: impl IntoIterator<Item = f64>, most: usize, kind: Option<Kind>) -> ColumnProfile {
    let mut builder = Builder::new(most);
    values.into_iter().for_each(|value| builder.add(Cell::Number(value)));
    builder.finish(kind)
}

fn profile(name: &str, column: ColumnProfile) -> Profile {
    Profile {
        format: Profile::FORMAT,
        rows: column.count,
        from: None,
        to: None,
        source: None,
        metrics: [("accuracy".to_owned(), 0.9)].into(),
        columns: [(name.to_owned(), column)].into(),
        sample: None,
    }
}

#[test]
fn numbers_have_bins_of_equal_mass_and_moments() {
    let column = built((0..10_000).map(f64::from).chain([f64::NAN, f64::INFINITY]), 100_000, Some(Kind::Float));
    let Bins::Numeric { edges, counts } = &column.bins else { panic!("{column:?}") };
    assert_eq!((edges.len(), counts.len()), (19, 20));
    assert!(counts.iter().all(|count| *count == 500), "{counts:?}");
    assert_eq!((column.count, column.missing, column.nonfinite), (10_002, 1, 1));
    assert_eq!((column.mean, column.min, column.max), (Some(4999.5), Some(0.0), Some(9999.0)));
    let again = Profile::parse(profile("x", column.clone()).to_json().as_bytes()).unwrap();
    assert_eq!(again.columns["x"], column);
    assert_eq!(again.metrics["accuracy"], 0.9);
}

#[test]
fn a_sample_stands_for_many_rows() {
    let mut random = fastrand::Rng::with_seed(7);
    let column = built((0..200_000).map(|_| random.f64()), 2000, Some(Kind::Float));
    let Bins::Numeric { edges, .. } = &column.bins else { panic!("{column:?}") };
    assert_eq!(column.count, 2000);
    // A quantile of 2,000 values has a standard error of at most 0.011.
    for (i, edge) in edges.iter().enumerate() {
        assert!((edge - (i + 1) as f64 / 20.0).abs() < 0.05, "{i}: {edge}");
    }
}

#[test]
fn few_values_texts_and_booleans_are_categories() {
    let column = built((0..1000).map(|i| f64::from(i % 3)), 10_000, Some(Kind::Float));
    let expected = [("0".to_owned(), 334), ("1".to_owned(), 333), ("2".to_owned(), 333)];
    assert_eq!(column.bins, Bins::Categorical { values: expected.to_vec(), rest: 0 });
    let mut builder = Builder::new(100);
    for i in 0..2000 {
        builder.add(Cell::Text(format!("v{}", if i % 2 == 0 { 0 } else { i }).as_bytes()));
    }
    builder.add(Cell::Missing);
    let column = builder.finish(Some(Kind::Text));
    let Bins::Categorical { values, rest } = &column.bins else { panic!("{column:?}") };
    assert_eq!((&values[0], values.len(), *rest), (&("v0".to_owned(), 1000), 50, 1000 - 49));
    assert_eq!((column.count, column.missing), (2001, 1));
    assert!(Profile::parse(profile("x", column).to_json().as_bytes()).is_ok());
}

#[test]
fn what_is_wrong_with_a_profile_is_said() {
    let with = |column: &str| {
        let text = format!("{{\"format\":1,\"rows\":3,\"columns\":{{\"x\":{column}}}}}");
        Profile::parse(text.as_bytes()).unwrap_err()
    };
    for (column, words) in [
        ("{\"kind\":\"numeric\",\"count\":3,\"edges\":[1,2],\"counts\":[1,2]}", "2 counts for 2 edges"),
        ("{\"kind\":\"numeric\",\"count\":3,\"edges\":[2,1],\"counts\":[1,1,1]}", "to increase"),
        ("{\"kind\":\"numeric\",\"count\":4,\"edges\":[1],\"counts\":[1,2]}", "add up to 3, and count is 4"),
        ("{\"kind\":\"categorical\",\"count\":1,\"values\":[[\"a\",18446744073709551615]],\"rest\":1}", "too large"),
        ("{\"kind\":\"circular\",\"count\":3}", "unknown variant"),
        ("{\"kind\":\"numeric\",\"count\":-1,\"edges\":[],\"counts\":[1]}", "not a profile"),
    ] {
        assert!(with(column).contains(words), "{words} in {}", with(column));
    }
    assert!(
        Profile::parse(b"{\"format\":3,\"rows\":0,\"columns\":{}}").unwrap_err().contains("reads the formats 1 to 2")
    );
    for bytes in [&b""[..], b"null", b"[]", b"\xff", b"{"] {
        assert!(Profile::parse(bytes).is_err(), "{bytes:?}");
    }
}

#[test]
fn columns_are_bound_by_any_form_of_their_names() {
    let dims = |n: usize| Some(vec![Dim::Free(None), Dim::Fixed(n)]);
    let spec = |name: &str, datatype, n| TensorSpec { name: name.into(), datatype, dims: dims(n) };
    let signature = Signature::new(
        vec![spec("x", DataType::Fp32, 2), spec("b", DataType::Bool, 1), spec("s", DataType::Bytes, 1)],
        vec![spec("y", DataType::Int64, 1)],
    );
    let names =
        ElementNames { by_tensor: [("x".into(), vec!["age".into(), "fare".into()])].into(), ..Default::default() };
    let text = r#"{"format":1,"rows":2,"columns":{
        "age":{"kind":"numeric","count":2,"edges":[1.0],"counts":[1,1]},
        "x[0]":{"kind":"numeric","count":2,"edges":[1.0],"counts":[1,1]},
        "y":{"kind":"categorical","count":2,"values":[["1.0",1],["-0",1]]},
        "b":{"kind":"categorical","count":2,"values":[["True",2]]},
        "s":{"kind":"numeric","count":2,"edges":[1.0],"counts":[1,1]},
        "height":{"kind":"numeric","count":2,"edges":[1.0],"counts":[1,1]}}}"#;
    let bound = Profile::parse(text.as_bytes()).unwrap().bind(&signature, &names);
    let found: Vec<_> = bound.columns.iter().map(|(column, of)| (column.name.as_str(), &of.bins)).collect();
    assert_eq!(found[0].0, "inputs.x[0]");
    let of = |values: &[(&str, u64)]| Bins::Categorical {
        values: values.iter().map(|(v, n)| ((*v).to_owned(), *n)).collect(),
        rest: 0,
    };
    assert_eq!(found[1], ("inputs.b", &of(&[("true", 2)])));
    assert_eq!(found[2], ("outputs.y", &of(&[("0", 1), ("1", 1)])));
    assert_eq!(bound.complaints.len(), 3, "{:?}", bound.complaints);
    for words in ["\"height\" is no column", "described twice", "has strings"] {
        assert!(bound.complaints.iter().any(|c| c.contains(words)), "{words} in {:?}", bound.complaints);
    }
}

#[test]
fn numbers_are_rounded_to_the_type_of_the_column() {
    let dims = Some(vec![Dim::Free(None)]);
    let spec = |name: &str, datatype| TensorSpec { name: name.into(), datatype, dims: dims.clone() };
    let inputs = vec![spec("x", DataType::Fp32), spec("c", DataType::Fp32), spec("d", DataType::Fp64)];
    let signature = Signature::new(inputs, vec![spec("y", DataType::Fp16)]);
    let text = r#"{"format":1,"rows":6,"columns":{
        "x":{"kind":"numeric","count":6,"edges":[0.7,0.70000000001,1e300],"counts":[1,2,2,1]},
        "c":{"kind":"categorical","count":6,"values":[["0.1",3],["0.10000000001",1],["2",2]]},
        "d":{"kind":"numeric","count":6,"edges":[0.7],"counts":[3,3]},
        "y":{"kind":"categorical","count":6,"values":[["0.1",6]]}}}"#;
    let bound = Profile::parse(text.as_bytes()).unwrap().bind(&signature, &ElementNames::default());
    assert!(bound.complaints.is_empty(), "{:?}", bound.complaints);
    let bins: Vec<&Bins> = bound.columns.iter().map(|(_, of)| &of.bins).collect();
    assert_eq!(bins[0], &Bins::Numeric { edges: vec![f64::from(0.7f32), 1e300], counts: vec![1, 4, 1] });
    let of = |values: &[(f64, u64)]| Bins::Categorical {
        values: values.iter().map(|(v, n)| (v.to_string(), *n)).collect(),
        rest: 0,
    };
    assert_eq!(bins[1], &of(&[(f64::from(0.1f32), 4), (2.0, 2)]));
    assert_eq!(bins[2], &Bins::Numeric { edges: vec![0.7], counts: vec![3, 3] });
    assert_eq!(bins[3], &of(&[(f64::from(half::f16::from_f64(0.1)), 6)]));
}

/// A request has a number and a text in each row, and an image in each row of the other.
fn signature(pixels: usize) -> Signature {
    let dims = |rest: &[usize]| {
        let rest = rest.iter().map(|n| Dim::Fixed(*n));
        Some(std::iter::once(Dim::Free(None)).chain(rest).collect())
    };
    let spec = |name: &str, datatype, rest: &[usize]| TensorSpec { name: name.into(), datatype, dims: dims(rest) };
    let inputs =
        vec![spec("x", DataType::Fp32, &[pixels]), spec("n", DataType::Int8, &[1]), spec("sex", DataType::Bytes, &[])];
    Signature::new(inputs, vec![spec("y", DataType::Fp32, &[1])])
}

fn names() -> ElementNames {
    ElementNames {
        by_tensor: [("x".to_owned(), vec!["age".to_owned(), "fare".to_owned()])].into(),
        ..ElementNames::default()
    }
}

fn with_sample(sample: &serde_json::Value) -> Result<Profile, String> {
    Profile::parse(serde_json::json!({"format": 2, "rows": 3, "columns": {}, "sample": sample}).to_string().as_bytes())
}

#[test]
fn the_rows_of_a_sample_are_a_request() {
    let sample = serde_json::json!({
        "columns": ["survived", "sex", "inputs.x[1]", "n", "age"],
        "rows": [[1, "male", 7.25, 3, 22], [0, "female", null, -3, 38.5], [1, "male", 8, 300, 1], [1, null, 8, 1, 1], [1, "male", 8, 1.5, 1]],
    });
    let profile = with_sample(&sample).unwrap();
    assert_eq!(Profile::parse(profile.to_json().as_bytes()).unwrap(), profile);
    let request = profile.sample.as_ref().unwrap().request(&signature(2), &names()).unwrap();
    // 300 and 1.5 are no INT8, and a text cannot be missing.
    let [x, n, sex] = request.inputs.as_slice() else { panic!("{request:?}") };
    assert_eq!((&**x.tensor.shape(), &**n.tensor.shape(), &**sex.tensor.shape()), (&[2, 2][..], &[2, 1][..], &[2][..]));
    let Data::Fp32(numbers) = x.tensor.data() else { panic!("{x:?}") };
    assert_eq!((&numbers[..3], numbers[3].is_nan()), (&[22.0, 7.25, 38.5][..], true));
    assert_eq!(n.tensor.data(), &Data::Int8(vec![3, -3].into()));
    assert_eq!(sex.tensor.data(), &Data::Bytes(vec!["male".into(), "female".into()]));
    assert!(signature(2).check(request).is_ok());
}

#[test]
fn samples_that_cannot_be_used_are_refused_in_words() {
    let request = |sample: serde_json::Value, pixels: usize| {
        with_sample(&sample).unwrap().sample.unwrap().request(&signature(pixels), &names()).unwrap_err()
    };
    let rows = |columns: &[&str]| serde_json::json!({"columns": columns, "rows": [vec!["a"; columns.len()]]});
    assert_eq!(request(rows(&["sex", "n", "age"]), 2), "its rows have no column \"fare\"");
    assert_eq!(request(rows(&["sex", "n", "age", "fare"]), 2), "none of its 1 rows has values that fit all inputs");
    assert!(request(rows(&["sex"]), 600).contains("more than 500 columns"));
    for (sample, words) in [
        (serde_json::json!({"columns": ["a"], "rows": [[1, 2]]}), "row 0 of the sample has 2 values for 1 columns"),
        (serde_json::json!({"columns": ["a"], "rows": vec![[1]; 101]}), "at most 100 rows"),
        (serde_json::json!({"columns": vec!["a"; 501], "rows": []}), "of 500 columns"),
        (serde_json::json!({"columns": ["a"], "rows": [["x".repeat(501)]]}), "a text of 501 bytes"),
        (serde_json::json!({"columns": ["a"], "rows": [[{}]]}), "not a profile"),
        (serde_json::json!({"columns": ["a"], "rows": [], "more": 1}), "not a profile"),
    ] {
        assert!(with_sample(&sample).unwrap_err().contains(words), "{words}");
    }
}
