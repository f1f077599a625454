//! The members around the tensors, invalid JSON, deep nesting.

use super::*;
use crate::model::{Code, Parameter};

const X: &str = r#""inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[1]}]"#;

#[test]
fn members_can_be_in_any_order_and_unknown_ones_are_ignored() {
    let text = format!(
        r#" {{ "model_name":"m", "outputs":[{{"parameters":{{"binary_data":true}},"name":"y"}},{{"name":"z"}}], {X},
        "extra":{{"a":[1,{{"b":null}}],"c":"\u00e9"}}, "parameters":{{"user_id":"u\n1","priority":3,"rate":0.5,"on":true}}, "id":"r-1" }} "#
    );
    let OipRequest { request, form } = decode_text(&text).unwrap();
    assert_eq!(request.id.as_deref(), Some("r-1"));
    assert_eq!(request.outputs, Some(vec!["y".to_owned(), "z".to_owned()]));
    assert_eq!(
        request.parameters,
        [
            ("user_id".to_owned(), Parameter::String("u\n1".into())),
            ("priority".to_owned(), Parameter::Integer(3)),
            ("rate".to_owned(), Parameter::Number(0.5)),
            ("on".to_owned(), Parameter::Bool(true)),
        ]
    );
    assert!(form.is_binary("y"));
    assert!(!form.is_binary("z"));
}

#[test]
fn tensor_members_can_be_in_any_order_and_unknown_ones_are_ignored() {
    let expected = input(r#""shape":[2],"datatype":"INT32","data":[1,2]"#).unwrap();
    for members in [
        r#""data":[1,2],"datatype":"INT32","shape":[2]"#,
        r#""datatype":"INT32","data":[1,2],"parameters":{"free":"text"},"shape":[2],"extra":[[[]]]"#,
        r#""data" : [ 1 , 2 ] , "shape" : [ 2 ] , "datatype" : "INT32" , "parameters":null"#,
        r#""da\u0074a":[1,2],"datatype":"INT\u00332","shape":[2]"#,
    ] {
        assert_eq!(input(members).unwrap(), expected, "{members}");
    }
}

#[test]
fn absent_and_empty_outputs_mean_all() {
    for outputs in ["", r#","outputs":[]"#, r#","outputs":null"#] {
        assert_eq!(decode_text(&format!("{{{X}{outputs}}}")).unwrap().request.outputs, None, "{outputs}");
    }
}

#[test]
fn binary_data_of_an_output_overrides_binary_data_output() {
    let text = format!(
        r#"{{{X},"parameters":{{"binary_data_output":true}},"outputs":[{{"name":"y"}},{{"name":"z","parameters":{{"binary_data":false}}}}]}}"#
    );
    let form = decode_text(&text).unwrap().form;
    assert!(form.is_binary("y"));
    assert!(!form.is_binary("z"));
}

#[test]
fn errors_around_the_tensors_are_reported() {
    assert_rejected(&[
        ("", &["INVALID_REQUEST", "body is empty", "inputs"]),
        (" \n ", &["body is empty"]),
        ("\u{feff}{\"inputs\":[]}", &["UTF-8 byte order mark (EF BB BF)", "without it"]),
        ("{}", &["\"inputs\" is missing"]),
        ("[]", &["expected a JSON object", "got a list"]),
        ("5", &["expected a JSON object", "got 5"]),
        (r#"{"inputs":{}}"#, &["\"inputs\" is expected to be a list", "an object"]),
        (r#"{"inputs":null}"#, &["\"inputs\" is expected to be a list", "null"]),
        (r#"{"inputs":[5]}"#, &["inputs[0]: expected an object, got 5"]),
        (r#"{"id":5,"inputs":[]}"#, &["\"id\" is expected to be a string, got 5"]),
        (r#"{"inputs":[],"inputs":[]}"#, &["\"inputs\" is given more than once"]),
        (r#"{"inputs":[],"id":"a","id":"a"}"#, &["\"id\" is given more than once"]),
        (r#"{"inputs":[],"parameters":[]}"#, &["\"parameters\" is expected to be an object, got a list"]),
        (r#"{"inputs":[],"parameters":"a"}"#, &["\"parameters\" is expected to be an object"]),
        (
            r#"{"inputs":[],"parameters":{"binary_data_output":[1]}}"#,
            &["parameter \"binary_data_output\"", "a string, a number or a boolean", "a list"],
        ),
        (r#"{"inputs":[],"parameters":{"content_type":{}}}"#, &["parameter \"content_type\"", "an object"]),
        (r#"{"inputs":[],"parameters":{"content_type":1e400}}"#, &["parameter \"content_type\"", "1e400", "overflows"]),
        (r#"{"inputs":[],"parameters":{"a":1,"a":2}}"#, &["parameter \"a\" is given more than once"]),
        (r#"{"inputs":[],"parameters":{"binary_data_output":1}}"#, &["binary_data_output", "true or false, got 1"]),
        (r#"{"inputs":[],"outputs":{}}"#, &["\"outputs\" is expected to be a list"]),
        (r#"{"inputs":[],"outputs":["y"]}"#, &["outputs[0]: expected an object", "the string \"y\""]),
        (r#"{"inputs":[],"outputs":[{}]}"#, &["outputs[0]", "\"name\" is missing"]),
        (r#"{"inputs":[],"outputs":[{"name":1}]}"#, &["outputs[0]", "\"name\" is expected to be a string, got 1"]),
        (
            r#"{"inputs":[],"outputs":[{"name":"y","parameters":{"binary_data":"yes"}}]}"#,
            &["\"y\"", "binary_data", "yes"],
        ),
        (
            r#"{"inputs":[],"outputs":[{"name":"y","parameters":{"classification":3}}]}"#,
            &["\"y\"", "classification", "not supported"],
        ),
        (
            r#"{"inputs":[],"outputs":[{"name":"y","parameters":{"shared_memory_region":"r"}}]}"#,
            &["\"y\"", "shared_memory_region", "not supported"],
        ),
    ]);
}

#[test]
fn errors_in_a_tensors_members_are_reported() {
    let cases: &[(&str, &[&str])] = &[
        (r#"{"shape":[1],"datatype":"FP32","data":[1]}"#, &["INVALID_REQUEST", "inputs[0]", "\"name\" is missing"]),
        (
            r#"{"name":7,"shape":[1],"datatype":"FP32","data":[1]}"#,
            &["inputs[0]", "\"name\" is expected to be a string"],
        ),
        (r#"{"name":"x","shape":[1],"data":[1]}"#, &["input \"x\"", "\"datatype\" is missing"]),
        (r#"{"name":"x","datatype":"FP32","data":[1]}"#, &["input \"x\"", "\"shape\" is missing"]),
        (r#"{"name":"x","shape":[1],"datatype":"FP32"}"#, &["input \"x\"", "neither \"data\" nor"]),
        (
            r#"{"name":"x","shape":[1],"datatype":"float32","data":[1]}"#,
            &["unknown datatype \"float32\"", "BOOL, UINT8", "BYTES"],
        ),
        (r#"{"name":"x","shape":[1],"datatype":"BF16","data":[1]}"#, &["unknown datatype \"BF16\""]),
        (r#"{"name":"x","shape":[1],"datatype":1,"data":[1]}"#, &["\"datatype\" is expected to be a string, got 1"]),
        (r#"{"name":"x","shape":[1],"datatype":"FP16","data":[1]}"#, &["FP16", "binary form only"]),
        (r#"{"name":"x","data":[1],"shape":[1],"datatype":"FP16"}"#, &["FP16", "binary form only"]),
        (
            r#"{"name":"x","name":"x","shape":[1],"datatype":"FP32","data":[1]}"#,
            &["member \"name\" is given more than once"],
        ),
        (
            r#"{"name":"x","shape":[1],"datatype":"FP32","data":[1],"data":[1]}"#,
            &["member \"data\" is given more than once"],
        ),
        (r#"{"name":"x","shape":1,"datatype":"FP32","data":[1]}"#, &["shape is expected to be a list", "got 1"]),
        (
            r#"{"name":"x","shape":[2,-3],"datatype":"FP32","data":[1]}"#,
            &["INVALID_TENSOR", "input \"x\"", "dimension 1", "got -3"],
        ),
        (r#"{"name":"x","shape":[1.5],"datatype":"FP32","data":[1]}"#, &["dimension 0", "got 1.5"]),
        (r#"{"name":"x","shape":["1"],"datatype":"FP32","data":[1]}"#, &["dimension 0", "the string \"1\""]),
        (
            r#"{"name":"x","shape":[99999999999999999999],"datatype":"FP32","data":[1]}"#,
            &["dimension 0", "99999999999999999999"],
        ),
        (
            r#"{"name":"x","shape":[4294967296,4294967296],"datatype":"FP32","data":[1]}"#,
            &["4294967296", "more elements than"],
        ),
        (
            r#"{"name":"x","shape":[3],"datatype":"FP32","data":[1,2]}"#,
            &["INVALID_TENSOR", "input \"x\"", "holds 3 elements, got 2"],
        ),
        (r#"{"name":"x","shape":[2],"datatype":"FP32","data":[1,2,3]}"#, &["holds 2 elements, got 3"]),
        (r#"{"name":"x","shape":[1],"datatype":"FP32","data":1}"#, &["expected to be a list", "[1]"]),
        (r#"{"name":"x","shape":[1],"datatype":"FP32","data":null}"#, &["expected to be a list"]),
        (r#"{"name":"x","shape":[1],"datatype":"FP32","data":{}}"#, &["element 0", "got an object"]),
        (
            r#"{"name":"x","shape":[1],"datatype":"FP32","parameters":{"shared_memory_region":"r","shared_memory_byte_size":4}}"#,
            &["shared memory is not supported"],
        ),
    ];
    for (tensor, parts) in cases {
        assert_rejected(&[(&format!("{{\"inputs\":[{tensor}]}}"), parts)]);
    }
    let dims = vec!["1"; 65].join(",");
    assert_rejected(&[(
        &format!(r#"{{"inputs":[{{"name":"x","shape":[{dims}],"datatype":"FP32","data":[1]}}]}}"#),
        &["more than 64 dimensions"],
    )]);
}

#[test]
fn several_complaints_are_reported_at_once_up_to_a_limit() {
    let failure =
        decode_text(r#"{"id":1,"inputs":[{"name":"a","shape":[2],"datatype":"INT8","data":[1,300]},{"name":"b"}]}"#)
            .unwrap_err();
    assert_eq!(failure.code, Code::InvalidRequest);
    assert_eq!(
        failure.details,
        [
            "\"id\" is expected to be a string, got 1",
            "input \"a\": element 1 is expected to be an integer from -128 to 127 (INT8), got 300",
            "input \"b\": member \"shape\" is missing",
            "input \"b\": member \"datatype\" is missing",
        ]
    );
    let many = format!("{{\"inputs\":[{}]}}", vec!["{}"; 100_000].join(","));
    let failure = decode_text(&many).unwrap_err();
    assert_eq!(failure.details.len(), 33);
    assert!(failure.details[32].contains("there may be more"), "{}", failure.details[32]);
}

#[test]
fn long_names_do_not_make_long_messages() {
    let long = "n".repeat(100_000);
    for text in [
        format!(r#"{{"inputs":[{{"name":"{long}"}}]}}"#),
        format!(r#"{{"inputs":[{{"name":"{long}","data":[1,NaN]}}]}}"#),
        format!(r#"{{"inputs":[],"parameters":{{"{long}":1,"{long}":2}}}}"#),
        format!(r#"{{"inputs":[],"parameters":{{"binary_data_output":"{long}"}}}}"#),
        format!(r#"{{"inputs":[],"outputs":[{{"name":"{long}","parameters":{{"classification":1}}}}]}}"#),
        format!(r#"{{"inputs":[],"id":["{long}"],"outputs":"{long}"}}"#),
    ] {
        assert!(all_text(&decode_text(&text).unwrap_err()).len() < 2000, "{}", &text[..60]);
    }
}

#[test]
fn syntax_errors_have_a_place_and_the_expected_token() {
    assert_rejected(&[
        (
            "{",
            &["not valid JSON", "line 1, column 2 (byte 1)", "expected a member's name or '}'", "the end of the body"],
        ),
        ("{\n\"inputs\" 5}", &["line 2, column 10 (byte 11)", "expected ':'", "found 5"]),
        (r#"{"inputs":[]"#, &["expected ',' or '}'", "the end of the body"]),
        (r#"{"inputs":[],}"#, &["expected a member's name", "'}'"]),
        (r#"{"inputs":[] x}"#, &["expected ',' or '}', found x"]),
        (r"{inputs:[]}", &["expected a member's name or '}', found inputs"]),
        (r#"{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[1]}]} x"#, &["nothing more", "found x"]),
        (r#"{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[1]}]}{}"#, &["nothing more", "an object"]),
        (r#"{"a":tru}"#, &["expected a value, found tru"]),
        (r#"{"a":nul}"#, &["expected a value, found nul"]),
        (r#"{"a":01}"#, &["expected ',' or '}', found 1"]),
        (r#"{"a":1.}"#, &["expected a digit, found '}'"]),
        (r#"{"a":-}"#, &["expected a digit, found '}'"]),
        (r#"{"a":1e}"#, &["expected a digit"]),
        (r#"{"a":.5}"#, &["expected a value, found .5"]),
        (r#"{"a":+1}"#, &["expected a value, found +1"]),
        (r#"{"a":'b'}"#, &["expected a value, found '''"]),
        (r#"{"a":"b}"#, &["closing"]),
        ("{\"a\":\"b\nc\"}", &["control characters in strings to be escaped"]),
        (r#"{"a":"\x"}"#, &["escapes"]),
        (r#"{"a":"\u12"}"#, &["four hexadecimal digits"]),
        (r#"{"a":"\ud800"}"#, &["surrogates"]),
        (r#"{"a":"\udc00\ud800"}"#, &["surrogates"]),
        (r#"{"a":"\ud800\u0041"}"#, &["surrogates"]),
        (r#"{"a":[1,]}"#, &["expected a value, found ']'"]),
        (r#"{"a":[1}"#, &["expected ',' or ']', found '}'"]),
        ("{\"a\":NaN}", &["JSON has no NaN"]),
        ("\u{feff}{}", &["UTF-8 byte order mark"]),
    ]);
}

#[test]
fn bytes_that_are_not_utf8_are_rejected_everywhere() {
    for raw in [
        &b"{\"inputs\":[],\"a\":\"\xff\"}"[..],
        b"{\"inputs\":[],\"\xff\":1}",
        b"{\"inputs\":[],\"a\":\xff}",
        b"{\"inputs\":[],\"a\":\"\\n\xc3\"}",
        b"{\"inputs\":[],\"id\":\"\xed\xa0\x80\"}",
    ] {
        let failure = decode(&Bytes::copy_from_slice(raw), None).unwrap_err();
        assert!(failure.message.contains("0xff") || failure.message.contains("UTF-8"), "{raw:?}: {failure}");
    }
}

/// 100,000 brackets, in a thread with half a megabyte of stack: nesting must not use the stack.
#[test]
fn deep_nesting_is_rejected_everywhere() {
    let deep = 100_000;
    let lists = format!("{}{}", "[".repeat(deep), "]".repeat(deep));
    let objects = format!("{}1{}", "{\"a\":".repeat(deep), "}".repeat(deep));
    let mut bodies = vec![lists.clone(), "[".repeat(deep), objects.clone()];
    for nested in [&lists, &objects] {
        bodies.push(format!("{{\"unknown\":{nested}}}"));
        bodies.push(format!("{{\"parameters\":{nested}}}"));
        bodies.push(format!("{{\"parameters\":{{\"a\":{nested}}}}}"));
        bodies.push(format!("{{\"id\":{nested}}}"));
        bodies.push(format!("{{\"inputs\":{nested}}}"));
        bodies.push(format!("{{\"outputs\":{nested}}}"));
        for member in ["name", "shape", "datatype", "data", "parameters", "unknown"] {
            bodies.push(format!("{{\"inputs\":[{{\"{member}\":{nested}}}]}}"));
        }
        for datatype in ["FP32", "INT64", "BOOL", "BYTES"] {
            bodies.push(format!(
                "{{\"inputs\":[{{\"name\":\"x\",\"shape\":[1],\"datatype\":\"{datatype}\",\"data\":{nested}}}]}}"
            ));
        }
    }
    let small = std::thread::Builder::new().stack_size(512 * 1024).spawn(move || {
        for text in bodies {
            let failure = decode_text(&text).unwrap_err();
            let start = &text[..text.len().min(60)];
            assert!(all_text(&failure).contains("nested more than 64 deep"), "{start}: {failure}");
        }
    });
    small.unwrap().join().expect("a small stack is enough");
    let allowed = format!("{{\"inputs\":[],\"a\":{}{}}}", "[".repeat(64), "]".repeat(64));
    assert!(decode_text(&allowed).is_ok(), "64 deep is JSON like any other");
}

#[test]
fn null_members_are_absent_and_unknown_parameters_may_have_any_value() {
    let body = r#"{"id":null,"parameters":{"content_type":"np","headers":null,"trace":{"a":[1]},"binary_data_output":null,"user":7},
        "inputs":[{"name":"x","shape":[1],"datatype":"FP32","parameters":{"content_type":null,"headers":{}},"data":[1]}],"outputs":null}"#;
    let OipRequest { request, form } = decode(&Bytes::from(body), None).unwrap();
    assert_eq!(request.id, None);
    let kept: Vec<&str> = request.parameters.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(kept, ["content_type", "user"]);
    assert_eq!((request.outputs, form.binary), (None, false));
}

#[test]
fn strings_with_the_content_type_base64_are_decoded() {
    let body = |datatype: &str, data: &str| {
        format!(
            r#"{{"inputs":[{{"name":"x","shape":[1],"datatype":"{datatype}","parameters":{{"content_type":"base64"}},"data":[{data}]}}]}}"#
        )
    };
    let decoded =
        |text: &str| decode(&Bytes::from(body("BYTES", text)), None).map(|r| r.request.inputs[0].tensor.data().clone());
    for text in [r#""+/8=""#, r#""+/8""#, r#""-_8=""#] {
        assert_eq!(decoded(text).unwrap(), Data::Bytes(vec![Bytes::from_static(&[0xfb, 0xff])]), "{text}");
    }
    let refused = decoded(r#""no base64!""#).unwrap_err();
    assert!(refused.message.contains("data[0] is not base64"), "{refused:?}");
    assert!(decode(&Bytes::from(body("INT32", "5")), None).is_ok(), "numbers are not base64");
}
