//! Predict in both styles, status and metadata.

use super::*;
use crate::model::{Answer, Code, Dim, Failure, InferenceRequest, Signature, TensorSpec, Version};
use crate::tensor::{Data, DataType, Shape, Tensor};
use bytes::Bytes;

fn spec(name: &str, datatype: DataType, dims: &[i64]) -> TensorSpec {
    let dims = dims.iter().map(|d| usize::try_from(*d).map_or(Dim::Free(None), Dim::Fixed)).collect();
    TensorSpec { name: name.into(), datatype, dims: Some(dims) }
}

fn one(datatype: DataType, dims: &[i64]) -> Signature {
    Signature::new(vec![spec("x", datatype, dims)], vec![])
}

fn two() -> Signature {
    Signature::new(vec![spec("a", DataType::Fp32, &[-1, 2]), spec("b", DataType::Int64, &[-1])], vec![])
}

fn decode(text: &str, signature: &Signature) -> Result<InferenceRequest, Failure> {
    parse(&Bytes::copy_from_slice(text.as_bytes()))?.decode(signature, &crate::budget::Hold::uncounted())
}

/// Name, shape and data of each input.
fn inputs(text: &str, signature: &Signature) -> Vec<(String, String, Data)> {
    let request = decode(text, signature).unwrap_or_else(|failure| panic!("{text}: {failure}"));
    let parts =
        |input: crate::model::NamedTensor| (input.name, input.tensor.shape().to_string(), input.tensor.into_data());
    request.inputs.into_iter().map(parts).collect()
}

fn single(text: &str, signature: &Signature) -> (String, Data) {
    let (name, shape, data) = inputs(text, signature).remove(0);
    assert_eq!(name, "x");
    (shape, data)
}

fn fp32(values: &[f32]) -> Data {
    Data::Fp32(values.to_vec().into())
}

#[test]
fn rows_of_one_input_are_values_or_objects() {
    let x = one(DataType::Fp32, &[-1, 2]);
    let expected = ("[2,2]".to_owned(), fp32(&[1.0, 2.0, 3.0, 4.5]));
    assert_eq!(single(r#"{"instances":[[1,2],[3,4.5]]}"#, &x), expected);
    assert_eq!(single(r#"{"instances":[{"x":[1,2]},{"x":[3,4.5]}],"signature_name":"serving_default"}"#, &x), expected);
    assert_eq!(single(r#"{"instances":[{"x":[1,2]},{"x":[3,4.5]}],"signature_name":""}"#, &x), expected);
    assert_eq!(
        single(r#"{"instances":[1,2]}"#, &one(DataType::Int8, &[-1])),
        ("[2]".to_owned(), Data::Int8(vec![1, 2].into()))
    );
}

#[test]
fn rows_of_several_inputs_are_objects() {
    let text = r#"{"other":[],"instances":[{"a":[1,2],"b":7},{"b":9007199254740993,"a":[3,4]}]}"#;
    assert_eq!(
        inputs(text, &two()),
        [
            ("a".to_owned(), "[2,2]".to_owned(), fp32(&[1.0, 2.0, 3.0, 4.0])),
            ("b".to_owned(), "[2]".to_owned(), Data::Int64(vec![7, 9_007_199_254_740_993].into())),
        ]
    );
}

#[test]
fn columns_are_a_value_or_an_object() {
    assert_eq!(
        single(r#"{"inputs":[[1,2]]}"#, &one(DataType::Fp64, &[-1, 2])),
        ("[1,2]".into(), Data::Fp64(vec![1.0, 2.0].into()))
    );
    assert_eq!(single(r#"{"inputs":5}"#, &one(DataType::Uint8, &[])), ("[]".into(), Data::Uint8(vec![5].into())));
    assert_eq!(
        single(r#"{"inputs":{"x":[true,0]}}"#, &one(DataType::Bool, &[-1])),
        ("[2]".into(), Data::Bool(vec![true, false]))
    );
    let names: Vec<String> = inputs(r#"{"inputs":{"b":[1,2,3],"a":[[1,2]]}}"#, &two())
        .into_iter()
        .map(|(name, shape, _)| name + &shape)
        .collect();
    assert_eq!(names, ["b[3]", "a[1,2]"]);
}

#[test]
fn strings_can_be_base64() {
    let x = one(DataType::Bytes, &[-1]);
    let expected = ("[2]".to_owned(), Data::Bytes(vec![Bytes::from_static(&[0xff, 0]), Bytes::from_static(b"b64")]));
    for text in [
        r#"{"instances":[{"b64":"/wA="},"b64"]}"#,
        r#"{"instances":[{"b64":"/wA"},{"b64":"YjY0"}]}"#,
        r#"{"instances":[{"x":{"b64":"/wA="}},{"x":"b64"}]}"#,
        r#"{"inputs":[{"b64":"/wA="},"b64"]}"#,
        r#"{"inputs":{"x":[{ "b64" : "/wA=" },"b64"]}}"#,
    ] {
        assert_eq!(single(text, &x), expected, "{text}");
    }
    assert_eq!(
        single(r#"{"inputs":{"b64":"YQ=="}}"#, &one(DataType::Bytes, &[])).1,
        Data::Bytes(vec![Bytes::from_static(b"a")])
    );
}

#[test]
fn null_is_nan_and_fp16_can_be_numbers() {
    let (_, Data::Fp16(x)) = single(r#"{"instances":[null,0.5]}"#, &one(DataType::Fp16, &[-1])) else { panic!("FP16") };
    assert!(x[0].is_nan());
    assert_eq!(x[1], half::f16::from_f32(0.5));
}

#[test]
fn extents_inside_an_empty_list_come_from_the_signature() {
    assert_eq!(single(r#"{"inputs":[]}"#, &one(DataType::Fp32, &[-1, 30])).0, "[0,30]");
    assert_eq!(single(r#"{"inputs":[]}"#, &one(DataType::Fp32, &[-1])).0, "[0]");
    assert_eq!(single(r#"{"instances":[[],[]]}"#, &one(DataType::Fp32, &[-1, -1, 4])).0, "[2,0,4]");
    assert_eq!(single(r#"{"instances":[{"x":[]},{"x":[]}]}"#, &one(DataType::Fp32, &[-1, -1, 4])).0, "[2,0,4]");
}

#[test]
fn errors_are_reported() {
    let x = one(DataType::Fp32, &[-1, 2]);
    let cases: &[(&str, &Signature, &[&str])] = &[
        ("", &x, &["INVALID_REQUEST", "body is empty"]),
        ("[]", &x, &["expected a JSON object", "got a list"]),
        ("{}", &x, &["Missing 'inputs' or 'instances' key"]),
        (r#"{"instances":[[1,2]],"inputs":[[1,2]]}"#, &x, &["expecting only one of 'inputs' or 'instances'"]),
        (r#"{"instances":[[1,2]],"instances":[[1,2]]}"#, &x, &["\"instances\" is given more than once"]),
        (r#"{"instances":{"x":1}}"#, &x, &["'instances' to be a list", "an object"]),
        (r#"{"instances":[]}"#, &x, &["No values in 'instances' array"]),
        (r#"{"instances":[[1,2]],"signature_name":"other"}"#, &x, &["serving_default", "the string \"other\""]),
        ("\u{feff}{\"instances\":[[1,2]]}", &x, &["UTF-8 byte order mark (EF BB BF)", "without it"]),
        (r#"{"instances":[[1,2]],"signature_name":null}"#, &x, &["serving_default", "got null"]),
        (r#"{"instances":[[1,2]],"signature_name":5}"#, &x, &["serving_default", "got 5"]),
        (r#"{"instances":[[1,2]"#, &x, &["not valid JSON", "the end of the body"]),
        (r#"{"instances":[[1,2]]}{}"#, &x, &["nothing more"]),
        (r#"{"instances":[[1,NaN]]}"#, &x, &["JSON has no NaN", "null"]),
        (r#"{"instances":[[1,2],[3]]}"#, &x, &["INVALID_TENSOR", "input \"x\"", "ragged"]),
        (r#"{"instances":[[1,2],3]}"#, &x, &["ragged"]),
        (r#"{"instances":[[1,2],[3,true]]}"#, &x, &["input \"x\": element 3", "a number", "got true"]),
        (r#"{"instances":[[1,2],{"x":[1,2]}]}"#, &x, &["input \"x\"", "ragged"]),
        (r#"{"instances":[{"x":[1,2]},[1,2]]}"#, &x, &["instances[1] is expected to be an object", "a list"]),
        (r#"{"instances":[{"x":[1,2]},{"x":[1]}]}"#, &x, &["instances[1]: input \"x\" has shape [1]", "[2]"]),
        (r#"{"instances":[{"x":[1,2]},{}]}"#, &x, &["instances[1]: input \"x\" is missing"]),
        (r#"{"instances":[{"x":[1,2],"x":[1,2]}]}"#, &x, &["instances[0]: input \"x\" is given more than once"]),
        (r#"{"instances":[{"x":[1,2]},{"x":[1,2],"y":1}]}"#, &x, &["instances[1]: unknown input \"y\"", "takes \"x\""]),
        (r#"{"instances":[[1,2]]}"#, &two(), &["plain list", "list of objects", "\"a\", \"b\""]),
        (r#"{"inputs":[[1,2]]}"#, &two(), &["'inputs' is a plain value or list", "an object", "\"a\", \"b\""]),
        (r#"{"inputs":{"a":[[1,2]],"c":1}}"#, &two(), &["unknown input \"c\""]),
        (r#"{"inputs":{"a":[[1,2]],"a":[[1,2]]}}"#, &two(), &["input \"a\" is given more than once"]),
        (r#"{"inputs":{"b":[1.5]}}"#, &two(), &["input \"b\": element 0", "an integer", "got 1.5"]),
        (r#"{"inputs":{"b":[9223372036854775808]}}"#, &two(), &["input \"b\": element 0"]),
        (r#"{"inputs":[{"b64":"!"}]}"#, &one(DataType::Bytes, &[-1]), &["a string (BYTES) or {\"b64\": \"<base64>\"}"]),
        (r#"{"instances":[{"b64":"YQ==","x":1}]}"#, &one(DataType::Bytes, &[-1]), &["unknown input \"b64\""]),
    ];
    for (text, signature, parts) in cases {
        let failure = decode(text, signature).expect_err(text);
        let message = format!("{} {}", failure.code, failure.message);
        assert!(parts.iter().all(|part| message.contains(part)), "{text}: {message}");
    }
    let deep = format!("{{\"instances\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(decode(&deep, &x).unwrap_err().message.contains("nested more than 64 deep"));
}

fn answer(outputs: Vec<(&str, &[usize], Data)>) -> Answer {
    let outputs =
        outputs.into_iter().map(|(name, shape, data)| (name.into(), Tensor::new(Shape::new(shape), data).unwrap()));
    Answer::from(outputs.collect::<Vec<_>>())
}

fn encoded(answer: &Answer, style: Style) -> String {
    String::from_utf8(encode_predict(answer, style).unwrap().body.to_vec()).unwrap()
}

#[test]
fn an_answer_has_the_layout_of_its_request() {
    let one = answer(vec![("y", &[2, 2], fp32(&[1.0, 2.0, 3.0, 0.5]))]);
    assert_eq!(encoded(&one, Style::Rows(2)), r#"{"predictions":[[1.0,2.0],[3.0,0.5]]}"#);
    assert_eq!(encoded(&one, Style::Columns), r#"{"outputs":[[1.0,2.0],[3.0,0.5]]}"#);
    let two = answer(vec![
        ("p", &[2, 1], fp32(&[0.1, f32::NAN])),
        ("label", &[2], Data::Bytes(vec![Bytes::from_static(b"a\""), Bytes::from_static(b"b")])),
        ("raw_bytes", &[2], Data::Bytes(vec![Bytes::from_static(b"\xff"), Bytes::new()])),
    ]);
    assert_eq!(
        encoded(&two, Style::Rows(2)),
        concat!(
            r#"{"predictions":[{"p":[0.1],"label":"a\"","raw_bytes":{"b64":"/w=="}},"#,
            r#"{"p":[null],"label":"b","raw_bytes":{"b64":""}}]}"#
        )
    );
    assert_eq!(
        encoded(&two, Style::Columns),
        r#"{"outputs":{"p":[[0.1],[null]],"label":["a\"","b"],"raw_bytes":[{"b64":"/w=="},{"b64":""}]}}"#
    );
    assert_eq!(encode_predict(&two, Style::Columns).unwrap().nonfinite, 1);
    let deep = answer(vec![("y", &[1, 2, 1, 2], Data::Int8(vec![1, 2, 3, 4].into()))]);
    assert_eq!(encoded(&deep, Style::Rows(1)), r#"{"predictions":[[[[1,2]],[[3,4]]]]}"#);
    let scalar = answer(vec![("y", &[], Data::Bool(vec![true]))]);
    assert_eq!(encoded(&scalar, Style::Columns), r#"{"outputs":true}"#);
    let empty = answer(vec![("y", &[2, 0], fp32(&[]))]);
    assert_eq!(encoded(&empty, Style::Rows(2)), r#"{"predictions":[[],[]]}"#);
}

#[test]
fn an_output_without_rows_requires_the_column_form() {
    for shape in [&[3usize][..], &[]] {
        let odd = answer(vec![("y", shape, fp32(&vec![0.0; shape.iter().product()]))]);
        let failure = encode_predict(&odd, Style::Rows(2)).unwrap_err();
        assert!(failure.message.contains("output \"y\"") && failure.message.contains("column form"), "{failure}");
    }
    let binary = answer(vec![("y", &[1], Data::Bytes(vec![Bytes::from_static(b"\xff")]))]);
    let failure = encode_predict(&binary, Style::Columns).unwrap_err();
    assert_eq!(failure.code, Code::InvalidRequest);
    assert!(failure.message.contains("not UTF-8") && failure.message.contains("_bytes"), "{failure}");
}

#[test]
fn answers_of_mlflow_name_every_output() {
    let one = answer(vec![("y", &[2, 1], fp32(&[0.5, 1.5]))]);
    let text =
        |answer: &Answer, style| String::from_utf8(encode_predict(answer, style).unwrap().body.to_vec()).unwrap();
    assert_eq!(text(&one, Style::Records(2)), r#"{"predictions":[{"y":0.5},{"y":1.5}]}"#);
    assert_eq!(text(&one, Style::Named), r#"{"predictions":{"y":[[0.5],[1.5]]}}"#);
    let two = answer(vec![("y", &[2], Data::Int64(vec![3, 4].into())), ("p", &[2, 2], fp32(&[0.25, 0.75, 1.0, 0.0]))]);
    assert_eq!(text(&two, Style::Records(2)), r#"{"predictions":[{"y":3,"p":[0.25,0.75]},{"y":4,"p":[1.0,0.0]}]}"#);
    assert_eq!(text(&two, Style::Named), r#"{"predictions":{"y":[3,4],"p":[[0.25,0.75],[1.0,0.0]]}}"#);
    assert!(encode_predict(&two, Style::Records(3)).is_err());
}

#[test]
fn dimensions_at_the_end_that_are_1_may_be_left_out() {
    let signature = Signature::new(
        vec![spec("island", DataType::Bytes, &[-1, 1]), spec("mass", DataType::Fp32, &[-1, 1, 1])],
        vec![],
    );
    let expected = [
        (
            "island".to_owned(),
            "[2,1]".to_owned(),
            Data::Bytes(vec![Bytes::from_static(b"a"), Bytes::from_static(b"b")]),
        ),
        ("mass".to_owned(), "[2,1,1]".to_owned(), fp32(&[4200.0, 1.0])),
    ];
    for text in [
        r#"{"instances":[{"island":"a","mass":4200.0},{"mass":1,"island":"b"}]}"#,
        r#"{"instances":[{"island":["a"],"mass":[[4200.0]]},{"island":["b"],"mass":[[1]]}]}"#,
        r#"{"inputs":{"island":["a","b"],"mass":[4200.0,1]}}"#,
    ] {
        assert_eq!(inputs(text, &signature), expected, "{text}");
    }
    assert_eq!(single(r#"{"instances":[1,2]}"#, &one(DataType::Fp32, &[-1, 1])).0, "[2,1]");
    // Only where they are fixed.
    assert_eq!(single(r#"{"instances":[1,2]}"#, &one(DataType::Fp32, &[-1, -1])).0, "[2]");
    assert_eq!(single(r#"{"instances":[1,2]}"#, &one(DataType::Fp32, &[-1, 2])).0, "[2]");
}

#[test]
fn status_and_metadata_have_the_tensorflow_format() {
    let version: Version = "3".parse().unwrap();
    let one = VersionStatus { version, state: "AVAILABLE", error_code: "OK", error_message: "" };
    assert_eq!(
        status_json(&[one], None),
        r#"{"model_version_status":[{"version":"3","state":"AVAILABLE","status":{"error_code":"OK","error_message":""}}]}"#
    );
    assert_eq!(
        status_json(&[], Some(("m", true))),
        r#"{"model_version_status":[],"name":"m","ready":true}"#,
        "KServe's V1 protocol has these members"
    );
    assert_eq!(models_json(["a", "b"].into_iter()), r#"{"models":["a","b"]}"#);
    let any = TensorSpec { name: "any".into(), datatype: DataType::Bytes, dims: None };
    let signature = Signature::new(vec![spec("x", DataType::Fp32, &[-1, 2])], vec![any]);
    assert_eq!(
        metadata_json("m", version, &signature),
        concat!(
            r#"{"model_spec":{"name":"m","signature_name":"","version":"3"},"metadata":{"signature_def":{"signature_def":"#,
            r#"{"serving_default":{"inputs":{"x":{"dtype":"DT_FLOAT","tensor_shape":{"dim":[{"size":"-1","name":""},"#,
            r#"{"size":"2","name":""}],"unknown_rank":false},"name":"x"}},"outputs":{"any":{"dtype":"DT_STRING","#,
            r#""tensor_shape":{"dim":[],"unknown_rank":true},"name":"any"}},"method_name":"tensorflow/serving/predict"}}}}}"#
        )
    );
}
