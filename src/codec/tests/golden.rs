//! Golden and warm-up files.

use crate::codec::golden::{Golden, parse_warmup};
use crate::tensor::Data;
use half::f16;

#[test]
fn a_golden_file_is_parsed_with_its_tolerances() {
    let text = br#"{"comment":"ignored","rtol":1e-4,"atol":0,
        "cases":[{"request":{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP16","data":[[0.5,null]]}]},
                  "outputs":[{"name":"y","shape":[2],"datatype":"FP32","data":[1,null]},
                             {"name":"label","shape":[1],"datatype":"BYTES","data":["a"]}]},
                 {"outputs":[],"request":{"inputs":[]}}]}"#;
    let golden = Golden::parse(text).unwrap();
    assert_eq!((golden.rtol, golden.atol), (1e-4, 0.0));
    assert_eq!(golden.cases.len(), 2);
    let Data::Fp16(x) = golden.cases[0].request.inputs[0].tensor.data() else { panic!("FP16 was written") };
    assert_eq!(x[0], f16::from_f32(0.5));
    assert!(x[1].is_nan());
    assert_eq!(golden.cases[0].outputs[1].name, "label");
    let defaults = Golden::parse(br#"{"cases":[]}"#).unwrap();
    assert_eq!((defaults.rtol, defaults.atol), (1e-5, 1e-8));
}

#[test]
fn errors_in_a_golden_file_name_the_case() {
    let good = r#"{"request":{"inputs":[]},"outputs":[]}"#;
    let cases = [
        (r"[]".to_owned(), "expected an object, got a list"),
        (r"{}".to_owned(), "\"cases\" is missing"),
        (r#"{"cases":[],"cases":[]}"#.to_owned(), "\"cases\" is given more than once"),
        (r#"{"cases":{}}"#.to_owned(), "\"cases\" is expected to be a list, got an object"),
        (r#"{"cases":[],"rtol":-1}"#.to_owned(), "\"rtol\" is expected to be a non-negative number, got -1"),
        (r#"{"cases":[],"atol":"0"}"#.to_owned(), "\"atol\" is expected to be a non-negative number"),
        (format!(r#"{{"cases":[{good},{{"request":{{"inputs":[]}}}}]}}"#), "case 1: member \"outputs\" is missing"),
        (format!(r#"{{"cases":[{good},{{"request":{{}},"outputs":[]}}]}}"#), "case 1: member \"inputs\" is missing"),
        (
            r#"{"cases":[{"request":{"inputs":[{"name":"x","shape":[2],"datatype":"INT8","data":[1,300]}]},"outputs":[]}]}"#
                .to_owned(),
            "case 0: input \"x\": element 1",
        ),
        (
            r#"{"cases":[{"request":{"inputs":[]},"outputs":[{"name":"y","shape":[2],"datatype":"INT8","data":[1]}]}]}"#
                .to_owned(),
            "case 0: output \"y\": shape [2] holds 2 elements, got 1",
        ),
        (
            r#"{"cases":[{"request":{"inputs":[]},"outputs":[{"name":"y","shape":[1],"datatype":"FP16","data":[65520]}]}]}"#
                .to_owned(),
            "±65504 (FP16), got 65520",
        ),
        (format!(r#"{{"cases":[{good}]"#), "expected ',' or '}'"),
        (format!(r#"{{"cases":[{good}]}} x"#), "nothing more"),
        (String::new(), "the end of the body"),
    ];
    for (text, part) in cases {
        let failure = Golden::parse(text.as_bytes()).unwrap_err();
        assert!(failure.message.contains(part), "{text}: {failure}");
    }
}

#[test]
fn a_warm_up_file_is_parsed() {
    let one = r#"{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[1]}]}"#;
    let requests = parse_warmup(format!(r#"{{"requests":[{one},{one}]}}"#).as_bytes()).unwrap();
    assert_eq!(requests.len(), 2);
    assert_eq!(requests[0], requests[1]);
    let failure = parse_warmup(format!(r#"{{"requests":[{one},5]}}"#).as_bytes()).unwrap_err();
    assert!(failure.message.starts_with("request 1: expected a JSON object"), "{failure}");
}
