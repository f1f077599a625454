//! Decoding the binary tensor extension.

use super::*;
use crate::budget::Hold;
use crate::model::{Dim, Signature, TensorSpec};
use crate::tensor::DataType;

fn with_blob(inputs: &str, blob: &[u8]) -> Result<OipRequest, Failure> {
    let json = format!("{{\"inputs\":[{inputs}]}}");
    let mut all = json.clone().into_bytes();
    all.extend_from_slice(blob);
    decode(&Bytes::from(all), Some(json.len()))
}

fn tensor(datatype: &str, shape: &str, blob: &[u8]) -> Result<Data, Failure> {
    let input = format!(
        r#"{{"name":"x","shape":{shape},"datatype":"{datatype}","parameters":{{"binary_data_size":{}}}}}"#,
        blob.len()
    );
    Ok(with_blob(&input, blob)?.request.inputs.remove(0).tensor.into_data())
}

#[test]
fn binary_and_json_inputs_mix_in_the_order_of_the_inputs() {
    let inputs = r#"{"name":"a","shape":[2],"datatype":"UINT16","parameters":{"binary_data_size":4}},
        {"name":"b","shape":[1],"datatype":"FP32","data":[1.5]},
        {"parameters":{"binary_data_size":3},"name":"c","datatype":"BOOL","shape":[3]}"#;
    let request = with_blob(inputs, &[1, 0, 2, 1, 1, 0, 1]).unwrap().request;
    let data: Vec<Data> = request.inputs.into_iter().map(|i| i.tensor.into_data()).collect();
    assert_eq!(
        data,
        [Data::Uint16(vec![1, 258].into()), Data::Fp32(vec![1.5].into()), Data::Bool(vec![true, false, true])]
    );
}

#[test]
fn each_datatype_is_little_endian() {
    assert_eq!(tensor("INT8", "[2]", &[255, 1]).unwrap(), Data::Int8(vec![-1, 1].into()));
    assert_eq!(tensor("INT32", "[1]", &[1, 0, 0, 128]).unwrap(), Data::Int32(vec![i32::MIN + 1].into()));
    assert_eq!(tensor("UINT64", "[1]", &[0, 0, 0, 0, 0, 0, 0, 1]).unwrap(), Data::Uint64(vec![1 << 56].into()));
    assert_eq!(tensor("FP16", "[]", &[0, 0x3c]).unwrap(), Data::Fp16(vec![half::f16::ONE].into()));
    assert_eq!(tensor("FP64", "[1,1]", &1e300f64.to_le_bytes()).unwrap(), Data::Fp64(vec![1e300].into()));
    assert_eq!(tensor("FP32", "[0,5]", &[]).unwrap(), Data::Fp32(Vec::new().into()));
    let Data::Fp32(x) = tensor("FP32", "[1]", &f32::NAN.to_le_bytes()).unwrap() else { panic!("FP32 was sent") };
    assert!(x[0].is_nan(), "the binary form keeps NaN unchanged");
}

#[test]
fn aligned_tensors_are_not_copied() {
    let mut json =
        r#"{"inputs":[{"name":"x","shape":[2],"datatype":"FP32","parameters":{"binary_data_size":8}}]}"#.to_owned();
    while !json.len().is_multiple_of(8) {
        json.push(' ');
    }
    let mut all = json.clone().into_bytes();
    all.extend_from_slice(&[0; 8]);
    let request = decode(&Bytes::from(all), Some(json.len())).unwrap().request;
    let Data::Fp32(x) = request.inputs[0].tensor.data() else { panic!("FP32 was sent") };
    assert!(x.is_view(), "an allocation of this size starts aligned for f32, and so does the blob");
}

#[test]
fn strings_have_a_length_prefix() {
    let blob = [2, 0, 0, 0, 0xff, 0, 0, 0, 0, 0, 1, 0, 0, 0, b'a'];
    let expected = vec![Bytes::from_static(&[0xff, 0]), Bytes::new(), Bytes::from_static(b"a")];
    assert_eq!(tensor("BYTES", "[3]", &blob).unwrap(), Data::Bytes(expected));
    assert_eq!(tensor("BYTES", "[0]", &[]).unwrap(), Data::Bytes(vec![]));
    for (shape, blob, parts) in [
        ("[1]", &[5, 0, 0, 0, b'a'][..], ["element 0 announces 5 bytes", "only 1 are left"]),
        ("[1]", &[255, 255, 255, 255], ["element 0 announces 4294967295 bytes", "only 0"]),
        ("[1]", &[1, 0], ["element 0", "length in 4 bytes, got 2"]),
        ("[1]", &[0, 0, 0, 0, 0, 0, 0, 0], ["4 bytes are left over", "1 elements"]),
        ("[2]", &[0, 0, 0, 0], ["holds 2 elements", "got 1"]),
        ("[1000000000000]", &[0, 0, 0, 0], ["holds 1000000000000 elements", "got 1"]),
    ] {
        let text = all_text(&tensor("BYTES", shape, blob).unwrap_err());
        assert!(parts.iter().all(|part| text.contains(part)), "{shape} {blob:?}: {text}");
    }
}

#[test]
fn bools_are_the_bytes_0_and_1() {
    let text = all_text(&tensor("BOOL", "[3]", &[0, 1, 2]).unwrap_err());
    assert!(text.contains("INVALID_TENSOR") && text.contains("element 2") && text.contains("got 2"), "{text}");
}

#[test]
fn sizes_must_match_exactly() {
    let sized = |size: &str, blob: &[u8]| {
        let input =
            format!(r#"{{"name":"x","shape":[2],"datatype":"FP32","parameters":{{"binary_data_size":{size}}}}}"#);
        all_text(&with_blob(&input, blob).unwrap_err())
    };
    for (size, blob, parts) in [
        ("8", &[0; 7][..], &["input \"x\"", "announces 8 bytes", "only 7 are left"][..]),
        ("8", &[0; 9], &["1 bytes are left over"]),
        ("4", &[0; 4], &["FP32 in shape [2] takes 8 bytes, got 4"]),
        ("0", &[], &["takes 8 bytes, got 0"]),
        ("-8", &[0; 8], &["non-negative integer, got -8"]),
        ("8.5", &[0; 8], &["non-negative integer, got 8.5"]),
        ("\"8\"", &[0; 8], &["non-negative integer, got \"8\""]),
        ("99999999999999999999", &[0; 8], &["non-negative integer"]),
        ("9223372036854775807", &[0; 8], &["announces 9223372036854775807 bytes"]),
    ] {
        let text = sized(size, blob);
        assert!(parts.iter().all(|part| text.contains(part)), "{size}: {text}");
        assert_eq!(text.contains("left over"), parts[0].contains("left over"), "only one complaint: {text}");
    }
    let huge = r#"{"name":"x","shape":[4611686018427387904,2],"datatype":"FP32","parameters":{"binary_data_size":0}}"#;
    assert!(with_blob(huge, &[]).is_err(), "a size in bytes that overflows is not taken for 0");
}

#[test]
fn data_and_binary_size_exclude_each_other() {
    let both = r#"{"name":"x","shape":[1],"datatype":"UINT8","data":[1],"parameters":{"binary_data_size":1}}"#;
    let text = all_text(&with_blob(both, &[1]).unwrap_err());
    assert!(text.contains("both \"data\" and"), "{text}");
}

#[test]
fn a_binary_size_without_the_length_header_is_rejected() {
    assert_rejected(&[(
        r#"{"inputs":[{"name":"x","shape":[1],"datatype":"UINT8","parameters":{"binary_data_size":1}}]}1"#,
        &["input \"x\"", "Inference-Header-Content-Length"],
    )]);
}

#[test]
fn the_length_header_is_at_most_the_body_length() {
    assert_eq!(header_length(b"12", 12).unwrap(), 12);
    assert_eq!(header_length(b" 0 ", 12).unwrap(), 0);
    for (value, part) in [
        (&b"13"[..], "13 bytes, but the body has 12"),
        (b"-1", "\"-1\""),
        (b"1.5", "\"1.5\""),
        (b"abc", "\"abc\""),
        (b"", "\"\""),
        (b"+5", "\"+5\""),
        (b"\xff", "Inference-Header-Content-Length"),
        (b"99999999999999999999999", "the body has 12"),
    ] {
        let failure = header_length(value, 12).unwrap_err();
        assert!(failure.message.contains(part), "{value:?}: {failure}");
    }
    assert!(decode(&body("{}"), Some(3)).is_err());
    assert!(decode(&body("{\"inputs\":[]}"), Some(5)).unwrap_err().message.contains("not valid JSON"));
}

fn signature(dims: Option<&[i64]>, datatype: DataType) -> Signature {
    let dims = dims.map(|dims| dims.iter().map(|d| usize::try_from(*d).map_or(Dim::Free(None), Dim::Fixed)).collect());
    Signature::new(vec![TensorSpec { name: "x".into(), datatype, dims }], vec![])
}

#[test]
fn a_raw_request_gets_its_shape_from_the_signature() {
    for (dims, bytes, shape) in [
        (&[-1, 2][..], 8, "[1,2]"),
        (&[-1, 2], 24, "[3,2]"),
        (&[-1, 2], 0, "[0,2]"),
        (&[2, 2], 16, "[2,2]"),
        (&[-1, -1], 12, "[1,3]"),
        (&[-1], 8, "[2]"),
        (&[], 4, "[]"),
    ] {
        let raw = decode_raw(&Bytes::from(vec![0; bytes]), &signature(Some(dims), DataType::Fp32), &Hold::uncounted())
            .unwrap();
        assert_eq!(raw.request.inputs[0].name, "x");
        assert_eq!(raw.request.inputs[0].tensor.shape().to_string(), shape, "{dims:?} from {bytes} bytes");
        assert!(raw.form.is_binary("anything"));
    }
    let strings = decode_raw(&body("as it is"), &signature(Some(&[-1]), DataType::Bytes), &Hold::uncounted()).unwrap();
    assert_eq!(strings.request.inputs[0].tensor.data(), &Data::Bytes(vec![body("as it is")]));
}

#[test]
fn a_raw_request_that_does_not_fit_the_signature_is_rejected() {
    for (dims, datatype, bytes, part) in [
        (Some(&[-1, 2][..]), DataType::Fp32, 9, "multiple of 8 bytes"),
        (Some(&[2, 2]), DataType::Fp32, 15, "takes 16 bytes, got 15"),
        (Some(&[2, -1, -1]), DataType::Fp32, 16, "more than one dimension after the first is free"),
        (Some(&[-1, 0]), DataType::Fp32, 16, "multiple of 0 bytes"),
        (None, DataType::Fp32, 16, "number of dimensions is free"),
        (Some(&[2]), DataType::Bytes, 4, "holds 2 elements, got 1"),
    ] {
        let failure =
            decode_raw(&Bytes::from(vec![0; bytes]), &signature(dims, datatype), &Hold::uncounted()).unwrap_err();
        assert!(failure.message.contains(part), "{dims:?} {bytes}: {failure}");
    }
    let two = Signature::new(
        ["a", "b"].map(|name| TensorSpec { name: name.into(), datatype: DataType::Fp32, dims: Some(vec![]) }).into(),
        vec![],
    );
    assert!(
        decode_raw(&Bytes::new(), &two, &Hold::uncounted())
            .unwrap_err()
            .message
            .contains("exactly one input, this one has 2")
    );
    assert!(decode(&Bytes::new(), Some(0)).unwrap_err().message.contains("raw binary request"));
}
