//! Encoded answers, compared byte by byte.

use super::*;
use crate::model::{Answer, Code};
use crate::tensor::Shape;
use half::f16;

const HEAD: AnswerHead<'static> = AnswerHead { model_name: "m\"1", model_version: Some("3"), id: "r\u{1}-é" };

fn answer(outputs: Vec<(&str, &[usize], Data)>) -> Answer {
    let outputs =
        outputs.into_iter().map(|(name, shape, data)| (name.into(), Tensor::new(Shape::new(shape), data).unwrap()));
    Answer::from(outputs.collect::<Vec<_>>())
}

fn json(data: Data) -> String {
    let n = data.len();
    let encoded = encode(&answer(vec![("y", &[n], data)]), &HEAD, &AnswerForm::json()).unwrap();
    assert_eq!(encoded.json_length, None);
    let text = String::from_utf8(encoded.body.to_vec()).unwrap();
    let start = text.find("\"data\":").unwrap() + 7;
    text[start..].strip_suffix("}]}").unwrap().to_owned()
}

#[test]
fn a_json_answer_has_all_documented_members() {
    let two = vec![("y", &[1, 2][..], Data::Fp32(vec![0.5, -1.0].into())), ("é\n", &[], Data::Bool(vec![true]))];
    let encoded = encode(&answer(two), &HEAD, &AnswerForm::json()).unwrap();
    assert_eq!(
        encoded.body,
        concat!(
            r#"{"model_name":"m\"1","model_version":"3","id":"r\u0001-é","outputs":["#,
            r#"{"name":"y","shape":[1,2],"datatype":"FP32","data":[0.5,-1.0]},"#,
            r#"{"name":"é\n","shape":[],"datatype":"BOOL","data":[true]}]}"#
        )
    );
    let hidden = AnswerHead { model_version: None, ..HEAD };
    let without = encode(&answer(vec![]), &hidden, &AnswerForm::json()).unwrap();
    assert_eq!(without.body, r#"{"model_name":"m\"1","id":"r\u0001-é","outputs":[]}"#, "the version may be left out");
    let none = encode(&answer(vec![]), &HEAD, &AnswerForm::json()).unwrap();
    assert!(none.body.ends_with(b"\"outputs\":[]}"));
}

#[test]
fn floats_are_written_as_the_shortest_text_of_their_width() {
    assert_eq!(
        json(Data::Fp32(vec![0.1, 16_777_216.0, 1e-45, f32::MAX, -0.0].into())),
        "[0.1,16777216.0,1e-45,3.4028235e+38,-0.0]"
    );
    assert_eq!(json(Data::Fp64(vec![0.1, 1e300, 5e-324].into())), "[0.1,1e+300,5e-324]");
    let half = answer(vec![("h", &[1], Data::Fp16(vec![f16::ONE].into()))]);
    let refused = encode(&half, &HEAD, &AnswerForm::json()).unwrap_err();
    assert!(refused.message.contains("\"h\" is FP16"), "{refused}");
    assert!(encode(&half, &HEAD, &AnswerForm::binary()).is_ok());
}

#[test]
fn each_datatype_is_written_as_a_flat_list() {
    assert_eq!(json(Data::Uint64(vec![u64::MAX, 0].into())), "[18446744073709551615,0]");
    assert_eq!(json(Data::Int64(vec![i64::MIN].into())), "[-9223372036854775808]");
    assert_eq!(json(Data::Uint8(vec![].into())), "[]");
    assert_eq!(json(Data::Bool(vec![false, true])), "[false,true]");
    assert_eq!(json(Data::Bytes(vec![body("a\"\\\u{7f}\u{0}"), Bytes::new()])), "[\"a\\\"\\\\\u{7f}\\u0000\",\"\"]");
}

#[test]
fn nonfinite_outputs_are_null_and_counted() {
    let outputs = || {
        answer(vec![
            ("a", &[4], Data::Fp32(vec![f32::NAN, 1.0, f32::INFINITY, f32::NEG_INFINITY].into())),
            ("b", &[2], Data::Fp64(vec![f64::INFINITY, 1.0].into())),
        ])
    };
    let encoded = encode(&outputs(), &HEAD, &AnswerForm::json()).unwrap();
    let text = String::from_utf8(encoded.body.to_vec()).unwrap();
    assert!(text.contains("[null,1.0,null,null]") && text.contains("[null,1.0]"), "{text}");
    assert_eq!(encoded.nonfinite, 4);
    assert_eq!(encode(&outputs(), &HEAD, &AnswerForm::binary()).unwrap().nonfinite, 4);
}

#[test]
fn binary_outputs_follow_the_json_in_order() {
    let outputs = answer(vec![
        ("a", &[2], Data::Uint16(vec![1, 2].into())),
        ("b", &[1], Data::Int8(vec![-1].into())),
        ("c", &[2], Data::Bytes(vec![Bytes::from_static(b"\xff"), Bytes::new()])),
        ("d", &[2], Data::Bool(vec![true, false])),
    ]);
    let form = AnswerForm { binary: true, overrides: vec![("b".into(), false)] };
    let encoded = encode(&outputs, &HEAD, &form).unwrap();
    let json_length = encoded.json_length.unwrap();
    let (json, blobs) = encoded.body.split_at(json_length);
    let json = std::str::from_utf8(json).unwrap();
    assert!(
        json.contains(r#"{"name":"a","shape":[2],"datatype":"UINT16","parameters":{"binary_data_size":4}}"#),
        "{json}"
    );
    assert!(json.contains(r#"{"name":"b","shape":[1],"datatype":"INT8","data":[-1]}"#), "{json}");
    assert_eq!(blobs, [1, 0, 2, 0, 1, 0, 0, 0, 0xff, 0, 0, 0, 0, 1, 0]);
}

#[test]
fn strings_that_are_not_utf8_require_the_binary_form() {
    let outputs = answer(vec![("s", &[2], Data::Bytes(vec![body("ok"), Bytes::from_static(b"\xff")]))]);
    let failure = encode(&outputs, &HEAD, &AnswerForm::json()).unwrap_err();
    assert_eq!(failure.code, Code::InvalidRequest);
    assert!(
        failure.message.contains("output \"s\": element 1") && failure.message.contains("binary_data"),
        "{failure}"
    );
    assert!(encode(&outputs, &HEAD, &AnswerForm::binary()).is_ok());
}
