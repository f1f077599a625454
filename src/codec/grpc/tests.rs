use super::answer::{self, InferForm};
use super::frame::{self, HEAD};
use super::generated::inference::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use super::generated::inference::{
    InferParameter, InferTensorContents, ModelInferRequest, ModelInferResponse, ModelStreamInferResponse,
    infer_parameter::ParameterChoice,
};
use super::generated::tensorflow::serving::{ModelSpec, PredictRequest, PredictResponse};
use super::generated::tensorflow::{TensorProto, TensorShapeProto, tensor_shape_proto::Dim};
use super::predict::{check_signature, spec};
use super::{NamedVersion, infer, predict};
use crate::budget::{Budget, Hold};
use crate::codec::inflate::Encoding;
use crate::codec::oip::AnswerHead;
use crate::model::{Answer, Code, Failure, Parameter};
use crate::tensor::{Data, DataType, Shape, Tensor};
use bytes::Bytes;
use half::f16;
use proptest::prelude::*;
use prost::Message;
use std::collections::BTreeMap;

const HEAD_OF_ANSWER: AnswerHead<'_> = AnswerHead { model_name: "m", model_version: Some("3"), id: "r" };

fn input(name: &str, datatype: &str, shape: &[i64], contents: Option<InferTensorContents>) -> InferInputTensor {
    let (name, datatype, shape) = (name.to_owned(), datatype.to_owned(), shape.to_vec());
    InferInputTensor { name, datatype, shape, contents, ..InferInputTensor::default() }
}

#[expect(clippy::unnecessary_wraps, reason = "as the field has it")]
fn floats(values: &[f32]) -> Option<InferTensorContents> {
    Some(InferTensorContents { fp32_contents: values.to_vec(), ..InferTensorContents::default() })
}

fn request(inputs: Vec<InferInputTensor>, raw: Vec<&[u8]>) -> ModelInferRequest {
    let raw_input_contents = raw.into_iter().map(Bytes::copy_from_slice).collect();
    ModelInferRequest { model_name: "m".into(), inputs, raw_input_contents, ..ModelInferRequest::default() }
}

fn decode(request: &ModelInferRequest) -> Result<infer::InferCall, Failure> {
    infer::decode(request.encode_to_vec().into(), &Hold::uncounted()).map_err(|undecoded| undecoded.failure)
}

fn refusal(request: &ModelInferRequest) -> String {
    let failure = decode(request).expect_err("it is refused");
    assert!(matches!(failure.code, Code::InvalidRequest | Code::InvalidTensor), "{failure:?}");
    if failure.details.is_empty() { failure.message } else { failure.details.join("; ") }
}

fn tensor(shape: &[usize], data: Data) -> Tensor {
    Tensor::new(Shape::new(shape), data).unwrap()
}

/// A tensor of each datatype, with values at the ends of its range.
fn of_each_type() -> Vec<Tensor> {
    vec![
        tensor(&[3], Data::Bool(vec![true, false, true])),
        tensor(&[2], Data::Uint8(vec![0, 255].into())),
        tensor(&[2], Data::Uint16(vec![0, u16::MAX].into())),
        tensor(&[2], Data::Uint32(vec![0, u32::MAX].into())),
        tensor(&[2], Data::Uint64(vec![0, u64::MAX].into())),
        tensor(&[2], Data::Int8(vec![i8::MIN, i8::MAX].into())),
        tensor(&[2], Data::Int16(vec![i16::MIN, i16::MAX].into())),
        tensor(&[2], Data::Int32(vec![i32::MIN, i32::MAX].into())),
        tensor(&[2, 1], Data::Int64(vec![i64::MIN, i64::MAX].into())),
        tensor(&[2], Data::Fp32(vec![-0.0, f32::MAX].into())),
        tensor(&[], Data::Fp64(vec![f64::MIN_POSITIVE].into())),
        tensor(&[2], Data::Bytes(vec![Bytes::new(), Bytes::from_static(b"\xff\x00")])),
        tensor(&[0, 4], Data::Fp32(vec![].into())),
    ]
}

#[test]
fn the_members_of_a_request_are_read() {
    let parameter = |choice| InferParameter { parameter_choice: Some(choice) };
    let mut given = request(vec![input("x", "FP32", &[1, 2], floats(&[1.5, -2.0]))], vec![]);
    given.model_version = "7".into();
    given.id = "r-1".into();
    given.parameters = BTreeMap::from([
        ("user".to_owned(), parameter(ParameterChoice::StringParam("u1".into()))),
        ("n".to_owned(), parameter(ParameterChoice::Int64Param(-3))),
        ("big".to_owned(), parameter(ParameterChoice::Uint64Param(u64::MAX))),
        ("none".to_owned(), InferParameter::default()),
    ]);
    given.outputs = vec![InferRequestedOutputTensor { name: "y".into(), ..InferRequestedOutputTensor::default() }];
    let call = decode(&given).unwrap();
    assert_eq!((call.named.model.as_str(), call.named.version), ("m", NamedVersion::Version("7".into())));
    assert_eq!(call.request.id.as_deref(), Some("r-1"));
    assert_eq!(call.request.outputs, Some(vec!["y".to_owned()]));
    assert_eq!(call.request.inputs[0].tensor, tensor(&[1, 2], Data::Fp32(vec![1.5, -2.0].into())));
    let value = |name: &str| call.request.parameters.iter().find(|(given, _)| given == name).map(|(_, value)| value);
    assert_eq!(value("user"), Some(&Parameter::String("u1".into())));
    assert_eq!(value("n"), Some(&Parameter::Integer(-3)));
    assert_eq!(value("big"), Some(&Parameter::Number(u64::MAX as f64)));
    assert_eq!(value("none"), None);
    assert!(!call.form.raw);
}

#[test]
fn every_type_survives_both_forms() {
    for tensor in of_each_type().into_iter().chain([self::tensor(&[2], Data::Fp16(vec![f16::MAX, f16::ZERO].into()))]) {
        for raw in [false, true] {
            let answer = Answer::from(vec![("t".into(), tensor.clone())]);
            let encoded =
                answer::encode(&answer, &HEAD_OF_ANSWER, InferForm { raw, in_stream: false }, &Hold::uncounted())
                    .unwrap();
            let response = ModelInferResponse::decode(&encoded.framed[HEAD..]).unwrap();
            assert_eq!((&*response.model_name, &*response.model_version, &*response.id), ("m", "3", "r"));
            let is_half = tensor.datatype() == DataType::Fp16;
            assert_eq!(response.raw_output_contents.len(), usize::from(raw || is_half), "FP16 has only a raw form");
            let output = response.outputs[0].clone();
            let again = ModelInferRequest {
                inputs: vec![InferInputTensor {
                    name: output.name,
                    datatype: output.datatype,
                    shape: output.shape,
                    contents: output.contents,
                    ..InferInputTensor::default()
                }],
                raw_input_contents: response.raw_output_contents,
                ..request(vec![], vec![])
            };
            let call = decode(&again).unwrap_or_else(|e| panic!("{tensor:?}, raw: {raw}: {e:?}"));
            assert_eq!(call.request.inputs[0].tensor, tensor, "raw: {raw}");
            assert_eq!(call.form.raw, raw || is_half);
        }
    }
}

#[test]
fn an_answer_of_a_stream_is_wrapped() {
    let answer = Answer::from(vec![("t".into(), tensor(&[1], Data::Fp32(vec![f32::NAN].into())))]);
    let form = InferForm { raw: true, in_stream: true };
    let encoded = answer::encode(&answer, &HEAD_OF_ANSWER, form, &Hold::uncounted()).unwrap();
    assert_eq!(encoded.nonfinite, 1);
    let response = ModelStreamInferResponse::decode(&encoded.framed[HEAD..]).unwrap();
    assert_eq!(response.infer_response.unwrap().id, "r");
    let failed = answer::failed(&Failure::new(Code::ModelNotFound, "none"), None);
    let response = ModelStreamInferResponse::decode(&failed[HEAD..]).unwrap();
    assert_eq!((response.error_message.as_str(), response.infer_response), ("none", None));
}

#[test]
fn contradictions_are_named_with_input_expected_and_got() {
    let x = |datatype: &str, shape: &[i64], contents| request(vec![input("x", datatype, shape, contents)], vec![]);
    let ints = |values: &[i32]| Some(InferTensorContents { int_contents: values.to_vec(), ..Default::default() });
    let cases = [
        (x("FP32", &[2], floats(&[1.0])), "input \"x\": shape [2] holds 2 elements, got 1"),
        (x("FP32", &[2], floats(&[1.0, 2.0, 3.0])), "input \"x\": there are more values than the 2 of its shape"),
        (x("FP32", &[1], ints(&[1])), "input \"x\": expected fp32_contents for FP32, got int_contents"),
        (
            x("INT8", &[2], ints(&[1, 128])),
            "input \"x\": element 1 is expected to be an integer from -128 to 127 (INT8), got 128",
        ),
        (
            x("FP16", &[1], floats(&[1.0])),
            "input \"x\": FP16 has no typed contents: send the values in raw_input_contents",
        ),
        (
            x("FP32", &[1, -1], floats(&[1.0])),
            "input \"x\": dimension 1 of shape is expected to be a non-negative integer, got -1",
        ),
        (x("FP32", &[1; 65], floats(&[1.0])), "input \"x\": shape has more than 64 dimensions"),
        (x("FP32", &[i64::MAX, 4], floats(&[1.0])), "elements than this machine can address"),
        (x("FLOAT", &[1], floats(&[1.0])), "input \"x\": unknown datatype \"FLOAT\", expected one of BOOL"),
        (x("FP32", &[1], None), "input \"x\": has neither contents, nor an entry in raw_input_contents"),
        (
            request(vec![input("x", "FP32", &[1], floats(&[1.0]))], vec![&[0; 4]]),
            "input \"x\": has contents although the request has raw_input_contents: expected one of the two",
        ),
        (
            request(vec![input("x", "FP32", &[2], None)], vec![&[0; 4]]),
            "input \"x\": FP32 in shape [2] takes 8 bytes, got 4",
        ),
        (
            request(vec![input("x", "BYTES", &[1], None)], vec![&[9, 0, 0, 0, 1]]),
            "input \"x\": element 0 announces 9 bytes, but only 1 are left",
        ),
        (
            request(vec![input("x", "FP32", &[1], None)], vec![&[0; 4], &[0; 4]]),
            "raw_input_contents is expected to have one entry for each of the 1 inputs, got 2",
        ),
        (
            request(vec![InferInputTensor::default()], vec![]),
            "inputs[0]: name is missing; inputs[0]: datatype is missing",
        ),
    ];
    for (request, expected) in cases {
        let got = refusal(&request);
        assert!(got.contains(expected), "expected {expected:?}, got {got:?}");
    }
}

#[test]
fn bytes_that_are_not_a_message_are_refused_in_words() {
    let refused = |bytes: &'static [u8]| {
        infer::decode(Bytes::from_static(bytes), &Hold::uncounted()).expect_err("it is refused").failure.message
    };
    assert!(refused(b"\x0a\x05m").contains("byte 0: field 1 announces 5 bytes, but only 1 are left"));
    assert!(
        refused(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff").contains("the field's key is cut off or too long")
    );
    assert!(refused(b"\x0b").contains("wire type 3"));
    assert!(refused(b"\x02\x00").contains("0 is not the number of a field"));
    assert!(refused(b"\x0a\x01\xff").contains("model_name is not UTF-8 text"));
    assert!(refused(b"\x2a\x03\x22\x05m").contains("inputs[0]: the message is not Protocol Buffers"));
}

#[test]
fn a_small_message_does_not_become_large_in_memory() {
    let budget = Budget::new(1 << 20);
    let hold = Hold::open(&budget, &budget.connection(None)).unwrap();
    // Each of these inputs takes two bytes on the wire.
    let bomb: Vec<u8> = [0x2a, 0x00].repeat(1 << 18);
    let failure = infer::decode(bomb.into(), &hold).expect_err("it is refused").failure;
    assert!(matches!(failure.code, Code::BodyTooLarge | Code::TooManyRequests | Code::Overloaded), "{failure:?}");
    // One value for a billion elements.
    let hold = Hold::open(&budget, &budget.connection(None)).unwrap();
    let tensor = TensorProto {
        dtype: 1,
        tensor_shape: Some(TensorShapeProto {
            dim: vec![Dim { size: 1 << 30, ..Dim::default() }],
            ..Default::default()
        }),
        float_val: vec![1.0],
        ..TensorProto::default()
    };
    let failure = predict::decode(tf_request(tensor).encode_to_vec().into(), &hold).expect_err("it is refused").failure;
    assert!(failure.message.contains("one value stands for 1073741824 elements"), "{failure:?}");
}

// === TensorFlow Serving ===

fn tf_request(tensor: TensorProto) -> PredictRequest {
    PredictRequest {
        model_spec: Some(ModelSpec { name: "m".into(), ..ModelSpec::default() }),
        inputs: BTreeMap::from([("x".to_owned(), tensor)]),
        output_filter: vec![],
    }
}

fn tf_tensor(dtype: i32, sizes: &[i64]) -> TensorProto {
    let dim = sizes.iter().map(|size| Dim { size: *size, ..Dim::default() }).collect();
    let tensor_shape = Some(TensorShapeProto { dim, unknown_rank: false });
    TensorProto { dtype, tensor_shape, ..TensorProto::default() }
}

fn tf_decode(tensor: TensorProto) -> Result<Tensor, Failure> {
    let decoded = predict::decode(tf_request(tensor).encode_to_vec().into(), &Hold::uncounted());
    Ok(decoded.map_err(|undecoded| undecoded.failure)?.request.inputs.remove(0).tensor)
}

#[test]
fn tensors_of_tensorflow_survive_typed_values() {
    let half = tensor(&[2], Data::Fp16(vec![f16::MAX, f16::NEG_ONE].into()));
    for tensor in of_each_type().into_iter().chain([half]) {
        let answer = Answer::from(vec![("x".into(), tensor.clone())]);
        let model_spec = spec("m", Some("3".parse().unwrap()));
        let encoded = predict::encode(&answer, &model_spec, &Hold::uncounted()).unwrap();
        let response = PredictResponse::decode(&encoded.framed[HEAD..]).unwrap();
        assert_eq!(response.model_spec, Some(model_spec));
        assert_eq!(tf_decode(response.outputs["x"].clone()).unwrap(), tensor);
    }
}

#[test]
fn tensor_content_and_single_values_are_read() {
    let content = TensorProto { tensor_content: Bytes::from_static(&[0, 0, 128, 63]), ..tf_tensor(1, &[1, 1]) };
    assert_eq!(tf_decode(content).unwrap(), tensor(&[1, 1], Data::Fp32(vec![1.0].into())));
    let one = TensorProto { int_val: vec![7], ..tf_tensor(6, &[2, 2]) };
    assert_eq!(tf_decode(one).unwrap(), tensor(&[2, 2], Data::Int8(vec![7; 4].into())));
    let text = TensorProto { string_val: vec![Bytes::from_static(b"a")], ..tf_tensor(7, &[2]) };
    assert_eq!(tf_decode(text).unwrap(), tensor(&[2], Data::Bytes(vec![Bytes::from_static(b"a"); 2])));
}

#[test]
fn contradictions_in_tensors_of_tensorflow_are_named() {
    let cases = [
        (
            TensorProto { float_val: vec![1.0, 2.0], ..tf_tensor(1, &[3]) },
            "input \"x\": shape [3] holds 3 elements, got 2",
        ),
        (
            TensorProto { int_val: vec![1], ..tf_tensor(1, &[1]) },
            "input \"x\": expected the values of DT_FLOAT in float_val, got them in int_val",
        ),
        (
            TensorProto { float_val: vec![1.0], ..tf_tensor(1, &[-1]) },
            "dimension 0 of tensor_shape is expected to be a non-negative integer, got -1",
        ),
        (
            TensorProto { float_val: vec![1.0], ..tf_tensor(1, &[1 << 20]) },
            "one value stands for 1048576 elements, which together have more than 4 MiB: send the values",
        ),
        (
            TensorProto { string_val: vec![vec![b'a'; 64 << 10].into()], ..tf_tensor(7, &[65]) },
            "one value stands for 65 elements",
        ),
        (tf_tensor(8, &[1]), "input \"x\": dtype DT_COMPLEX64 is not supported, expected one of DT_BOOL"),
        (tf_tensor(99, &[1]), "input \"x\": dtype 99 is not supported"),
        (TensorProto { tensor_content: Bytes::from_static(&[0; 3]), ..tf_tensor(1, &[1]) }, "DT_FLOAT"),
    ];
    for (tensor, expected) in cases {
        let failure = tf_decode(tensor).unwrap_err();
        // The message of raw bytes names the datatype as the other protocol does.
        let expected =
            if expected == "DT_FLOAT" { "input \"x\": FP32 in shape [1] takes 4 bytes, got 3" } else { expected };
        assert!(failure.message.contains(expected), "expected {expected:?}, got {:?}", failure.message);
    }
    let unnamed = PredictRequest::default().encode_to_vec();
    let failure = predict::decode(unnamed.into(), &Hold::uncounted()).expect_err("it is refused").failure;
    assert!(failure.message.contains("model_spec is missing"), "{failure:?}");
    assert!(check_signature("other").is_err() && check_signature("").is_ok());
}

// === frames ===

#[test]
fn a_call_has_exactly_one_message() {
    let refused = |body: &'static [u8]| frame::only_message(Bytes::from_static(body)).unwrap_err().message;
    assert_eq!(frame::only_message(Bytes::from_static(&[0, 0, 0, 0, 0])).unwrap(), (false, Bytes::new()));
    assert_eq!(frame::only_message(Bytes::from_static(&[1, 0, 0, 0, 1, 9])).unwrap(), (true, Bytes::from_static(&[9])));
    assert!(refused(&[]).contains("no message"));
    assert!(refused(&[0, 0]).contains("only 2"));
    assert!(refused(&[0, 0, 0, 0, 2, 9]).contains("has 2 bytes by its frame, but only 1 arrived"));
    assert!(refused(&[0, 0, 0, 0, 1, 9, 0]).contains("1 bytes follow"));
    assert!(refused(&[2, 0, 0, 0, 0]).contains("the byte 0 or 1, got 2"));
    assert!(frame::encoding(None).is_err() && frame::encoding(Some(b"br")).is_err());
    assert_eq!(frame::encoding(Some(b"gzip")).unwrap(), Encoding::Gzip);
}

#[test]
fn a_message_is_compressed_only_where_that_helps() {
    let framed = |length: usize| [vec![0; HEAD], vec![7; length]].concat();
    assert_eq!(frame::finish(framed(1), Some(Encoding::Gzip)).unwrap()[..], [0, 0, 0, 0, 1, 7]);
    let small = frame::finish(framed(10_000), Some(Encoding::Gzip)).unwrap();
    let head = frame::head(&small).unwrap().unwrap();
    assert!(head.compressed && head.length == small.len() - HEAD && head.length < 1000);
}

proptest! {
    #[test]
    fn any_bytes_are_decoded_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let bytes = Bytes::from(bytes);
        let _ = infer::decode(bytes.clone(), &Hold::uncounted());
        let _ = predict::decode(bytes, &Hold::uncounted());
    }
}
