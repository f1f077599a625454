//! Properties of all tensors and of arbitrary bytes.

use crate::budget::Hold;
use crate::codec::golden::{Golden, parse_warmup};
use crate::codec::inflate::{Encoding, compress, inflate};
use crate::codec::oip::{self, AnswerForm, AnswerHead};
use crate::codec::tfs::{self, Style};
use crate::model::{Answer, Dim, NamedTensor, Signature, TensorSpec};
use crate::tensor::{Data, DataType, Shape, Tensor};
use bytes::Bytes;
use half::f16;
use proptest::collection::vec;
use proptest::prelude::*;

const HEAD: AnswerHead<'static> = AnswerHead { model_name: "m", model_version: Some("1"), id: "r" };

fn elements(datatype: DataType, n: usize) -> BoxedStrategy<Data> {
    match datatype {
        DataType::Bool => vec(any::<bool>(), n).prop_map(Data::Bool).boxed(),
        DataType::Uint8 => vec(any::<u8>(), n).prop_map(|v| Data::Uint8(v.into())).boxed(),
        DataType::Uint16 => vec(any::<u16>(), n).prop_map(|v| Data::Uint16(v.into())).boxed(),
        DataType::Uint32 => vec(any::<u32>(), n).prop_map(|v| Data::Uint32(v.into())).boxed(),
        DataType::Uint64 => vec(any::<u64>(), n).prop_map(|v| Data::Uint64(v.into())).boxed(),
        DataType::Int8 => vec(any::<i8>(), n).prop_map(|v| Data::Int8(v.into())).boxed(),
        DataType::Int16 => vec(any::<i16>(), n).prop_map(|v| Data::Int16(v.into())).boxed(),
        DataType::Int32 => vec(any::<i32>(), n).prop_map(|v| Data::Int32(v.into())).boxed(),
        DataType::Int64 => vec(any::<i64>(), n).prop_map(|v| Data::Int64(v.into())).boxed(),
        // All bit patterns, including subnormals, infinities and all NaNs.
        DataType::Fp16 => vec(any::<u16>().prop_map(f16::from_bits), n).prop_map(|v| Data::Fp16(v.into())).boxed(),
        DataType::Fp32 => vec(any::<u32>().prop_map(f32::from_bits), n).prop_map(|v| Data::Fp32(v.into())).boxed(),
        DataType::Fp64 => vec(any::<u64>().prop_map(f64::from_bits), n).prop_map(|v| Data::Fp64(v.into())).boxed(),
        DataType::Bytes => {
            vec(any::<String>(), n).prop_map(|v| Data::Bytes(v.into_iter().map(Bytes::from).collect())).boxed()
        }
    }
}

fn tensor() -> impl Strategy<Value = Tensor> {
    (prop::sample::select(DataType::ALL.to_vec()), vec(0usize..4, 0..4)).prop_flat_map(|(datatype, shape)| {
        let shape = Shape::new(&shape);
        elements(datatype, shape.elements().unwrap()).prop_map(move |data| Tensor::new(shape.clone(), data).unwrap())
    })
}

fn answer() -> impl Strategy<Value = Answer> {
    vec(tensor(), 0..4).prop_map(|tensors| {
        let named = tensors.into_iter().enumerate().map(|(i, t)| (format!("t{i}").into(), t));
        Answer::from(named.collect::<Vec<_>>())
    })
}

fn count_nonfinite(answer: &Answer) -> usize {
    answer.outputs.iter().map(|(_, tensor)| tensor.data().count_nonfinite()).sum()
}

/// FP16 has only a binary form.
fn has_json_form(answer: &Answer) -> bool {
    answer.outputs.iter().all(|(_, t)| t.datatype() != DataType::Fp16)
}

fn json_answer() -> impl Strategy<Value = Answer> {
    answer().prop_map(|answer| {
        let outputs = answer.outputs.iter().filter(|(_, t)| t.datatype() != DataType::Fp16);
        Answer::from(outputs.cloned().collect::<Vec<_>>())
    })
}

/// The elements as bits, so that NaN equals itself. With `json`, all non-finite values are equal, because JSON has only `null`.
fn bits(data: &Data, json: bool) -> String {
    let float = |finite: bool, bits: u64| if json && !finite { "null".to_owned() } else { format!("{bits:x}") };
    let all: Vec<String> = match data {
        Data::Fp16(e) => e.iter().map(|x| float(x.is_finite(), x.to_bits().into())).collect(),
        Data::Fp32(e) => e.iter().map(|x| float(x.is_finite(), x.to_bits().into())).collect(),
        Data::Fp64(e) => e.iter().map(|x| float(x.is_finite(), x.to_bits())).collect(),
        other => return format!("{other:?}"),
    };
    format!("{} {}", data.datatype(), all.join(","))
}

fn assert_same(sent: &Answer, read: &[NamedTensor], json: bool) -> Result<(), TestCaseError> {
    prop_assert_eq!(sent.outputs.len(), read.len());
    for ((name, tensor), read) in sent.outputs.iter().zip(read) {
        prop_assert_eq!(&**name, read.name.as_str());
        prop_assert_eq!(tensor.shape(), read.tensor.shape());
        prop_assert_eq!(bits(tensor.data(), json), bits(read.tensor.data(), json));
    }
    Ok(())
}

/// Turns an encoded answer into a request: only the name of the list differs.
fn as_request(body: &Bytes, json_length: Option<usize>) -> (Bytes, Option<usize>) {
    let json_length = json_length.unwrap_or(body.len());
    let json = std::str::from_utf8(&body[..json_length]).unwrap().replacen("\"outputs\":", "\"inputs\":", 1);
    let mut all = json.clone().into_bytes();
    all.extend_from_slice(&body[json_length..]);
    (all.into(), Some(json.len()))
}

/// A signature whose inputs are these tensors.
fn signature(sent: &Answer) -> Signature {
    let specs = sent.outputs.iter().map(|(name, tensor)| TensorSpec {
        name: name.clone(),
        datatype: tensor.datatype(),
        dims: Some(tensor.shape().iter().map(|d| Dim::Fixed(*d)).collect()),
    });
    Signature::new(specs.collect(), vec![])
}

/// All pieces together.
fn joined(mut pieces: crate::codec::pieces::Pieces) -> Vec<u8> {
    let length = pieces.length();
    let mut all = Vec::new();
    while let Some(piece) = pieces.next_piece() {
        all.extend(piece);
    }
    assert!(length.is_none_or(|length| length == all.len() as u64), "the length that was announced");
    all
}

/// Answers whose pieces end everywhere: in lists, in strings, between rows.
fn long_answer() -> impl Strategy<Value = Answer> {
    let text = prop_oneof![
        Just(String::new()),
        "[a-z\u{e9}\u{20ac}\u{1f600}\"\\\\]{1,9}",
        (1usize..90_000, "[a\u{20ac}\"]").prop_map(|(n, unit)| unit.repeat(n)),
    ];
    let strings = vec(text, 6).prop_map(|v| Data::Bytes(v.into_iter().map(Bytes::from).collect()));
    let numbers = vec(any::<f64>(), 6..7).prop_map(|v| Data::Fp64(v.repeat(4000).into()));
    (strings, numbers, 0usize..3).prop_map(|(strings, numbers, order)| {
        let strings = ("t_bytes".into(), Tensor::new(Shape::new(&[6, 1]), strings).unwrap());
        let text = ("t".into(), strings.1.clone());
        let numbers = ("n".into(), Tensor::new(Shape::new(&[6, 40, 100]), numbers).unwrap());
        let mut all = vec![strings, text, numbers];
        all.rotate_left(order);
        Answer::from(all)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn the_pieces_of_a_long_answer_are_the_whole_answer(sent in long_answer(), binary in any::<bool>()) {
        let form = if binary { AnswerForm::binary() } else { AnswerForm::json() };
        let whole = oip::encode(&sent, &HEAD, &form).unwrap();
        let large = oip::encode_in_pieces(sent.clone(), &HEAD, form, &Hold::uncounted()).unwrap();
        prop_assert_eq!((large.json_length, large.nonfinite), (whole.json_length, whole.nonfinite));
        prop_assert!(joined(large.pieces) == whole.body);
        for style in [Style::Columns, Style::Named, Style::Rows(6), Style::Records(6)] {
            let whole = tfs::encode_predict(&sent, style).unwrap();
            let (pieces, nonfinite) = tfs::predict_in_pieces(sent.clone(), style).unwrap();
            prop_assert_eq!(nonfinite, whole.nonfinite);
            prop_assert!(joined(pieces) == whole.body);
        }
    }
}

proptest! {
    #[test]
    fn the_pieces_of_an_answer_are_the_whole_answer(sent in answer(), json in json_answer(), rows in 1usize..4) {
        let whole = oip::encode(&sent, &HEAD, &AnswerForm::binary()).unwrap();
        let large = oip::encode_in_pieces(sent, &HEAD, AnswerForm::binary(), &Hold::uncounted()).unwrap();
        prop_assert_eq!((large.json_length, large.nonfinite), (whole.json_length, whole.nonfinite));
        prop_assert_eq!(joined(large.pieces), whole.body.to_vec());
        let whole = oip::encode(&json, &HEAD, &AnswerForm::json()).unwrap();
        let large = oip::encode_in_pieces(json.clone(), &HEAD, AnswerForm::json(), &Hold::uncounted()).unwrap();
        prop_assert_eq!(joined(large.pieces), whole.body.to_vec());
        for style in [Style::Columns, Style::Named, Style::Rows(rows), Style::Records(rows)] {
            match tfs::encode_predict(&json, style) {
                Ok(whole) => {
                    let (pieces, nonfinite) = tfs::predict_in_pieces(json.clone(), style).unwrap();
                    prop_assert_eq!(nonfinite, whole.nonfinite);
                    prop_assert_eq!(joined(pieces), whole.body.to_vec());
                }
                Err(failure) => prop_assert_eq!(tfs::predict_in_pieces(json.clone(), style).unwrap_err(), failure),
            }
        }
    }

    #[test]
    fn binary_encoding_is_exact(sent in answer()) {
        let encoded = oip::encode(&sent, &HEAD, &AnswerForm::binary()).unwrap();
        prop_assert_eq!(encoded.nonfinite, count_nonfinite(&sent));
        let (body, json_length) = as_request(&encoded.body, encoded.json_length);
        let read = oip::decode(&body, json_length).unwrap();
        assert_same(&sent, &read.request.inputs, false)?;
    }

    #[test]
    fn json_encoding_is_exact_except_for_non_finite_values(sent in json_answer()) {
        let encoded = oip::encode(&sent, &HEAD, &AnswerForm::json()).unwrap();
        prop_assert_eq!(encoded.nonfinite, count_nonfinite(&sent));
        prop_assert!(serde_json::from_slice::<serde::de::IgnoredAny>(&encoded.body).is_ok());
        // Parsed as a golden file, and as a request.
        let body = String::from_utf8(encoded.body.to_vec()).unwrap();
        let golden = Golden::parse(format!("{{\"cases\":[{{\"request\":{{\"inputs\":[]}},{}]}}", &body[1..]).as_bytes()).unwrap();
        assert_same(&sent, &golden.cases[0].outputs, true)?;
        let (body, _) = as_request(&encoded.body, None);
        assert_same(&sent, &oip::decode(&body, None).unwrap().request.inputs, true)?;
    }

    #[test]
    fn tensorflow_columns_are_exact(sent in answer()) {
        let encoded = tfs::encode_predict(&sent, Style::Columns).unwrap();
        let body = String::from_utf8(encoded.body.to_vec()).unwrap().replacen("\"outputs\":", "\"inputs\":", 1);
        let read = tfs::parse(&Bytes::from(body)).unwrap().decode(&signature(&sent), &Hold::uncounted()).unwrap();
        assert_same(&sent, &read.inputs, true)?;
        prop_assert_eq!(encoded.nonfinite, count_nonfinite(&sent));
    }

    #[test]
    fn tensorflow_rows_are_exact(rows in 1usize..4, shapes in vec(vec(0usize..4, 0..3), 1..3)) {
        let outputs = shapes.iter().enumerate().map(|(i, shape)| {
            let shape: Shape = std::iter::once(rows).chain(shape.iter().copied()).collect();
            let data: Vec<f32> = (0u8..).take(shape.elements().unwrap()).map(f32::from).collect();
            (format!("t{i}").into(), Tensor::new(shape, Data::Fp32(data.into())).unwrap())
        });
        let sent = Answer::from(outputs.collect::<Vec<_>>());
        let encoded = tfs::encode_predict(&sent, Style::Rows(rows)).unwrap();
        let body = String::from_utf8(encoded.body.to_vec()).unwrap().replacen("\"predictions\":", "\"instances\":", 1);
        let request = tfs::parse(&Bytes::from(body)).unwrap();
        prop_assert_eq!(request.style(), Style::Rows(rows));
        assert_same(&sent, &request.decode(&signature(&sent), &Hold::uncounted()).unwrap().inputs, true)?;
    }

    #[test]
    fn numbers_equal_the_standard_library(text in "-?(0|[1-9][0-9]{0,24})(\\.[0-9]{1,24})?([eE][+-]?[0-9]{1,3})?") {
        let read = |datatype: &str| {
            let body = format!(r#"{{"inputs":[{{"name":"x","shape":[],"datatype":"{datatype}","data":{text}}}]}}"#);
            oip::decode(&Bytes::from(body), None).ok().map(|r| bits(r.request.inputs[0].tensor.data(), false))
        };
        let single = Some(text.parse::<f32>().unwrap()).filter(|x| x.is_finite());
        prop_assert_eq!(read("FP32"), single.map(|x| bits(&Data::Fp32(vec![x].into()), false)), "{}", text);
        let double = Some(text.parse::<f64>().unwrap()).filter(|x| x.is_finite());
        prop_assert_eq!(read("FP64"), double.map(|x| bits(&Data::Fp64(vec![x].into()), false)), "{}", text);
        if text.parse::<i128>().is_ok() {
            let whole = text.parse::<i64>().ok();
            prop_assert_eq!(read("INT64"), whole.map(|x| bits(&Data::Int64(vec![x].into()), false)), "{}", text);
        }
    }

    #[test]
    fn compressed_bytes_are_restored(plain in vec(any::<u8>(), 0..2000), gzip in any::<bool>()) {
        let encoding = if gzip { Encoding::Gzip } else { Encoding::Deflate };
        let body = Bytes::from(compress(encoding, &plain));
        prop_assert_eq!(inflate(encoding.as_str(), body, plain.len(), &Hold::uncounted()).unwrap(), plain);
    }

    #[test]
    fn arbitrary_bytes_do_not_panic(body in vec(any::<u8>(), 0..300), length in prop::option::of(0usize..320)) {
        decode_everything(&body.into(), length);
    }

    #[test]
    fn changes_of_a_valid_body_do_not_panic(
        sent in answer(),
        binary in any::<bool>(),
        changes in vec((any::<prop::sample::Index>(), prop::option::of(prop_oneof![any::<u8>(), prop::sample::select(b"[]{},:\"0-.eE\\u".to_vec())])), 1..5),
        longer in -3isize..4,
    ) {
        let binary = binary || !has_json_form(&sent);
        let form = if binary { AnswerForm::binary() } else { AnswerForm::json() };
        let encoded = oip::encode(&sent, &HEAD, &form).unwrap();
        let (body, json_length) = as_request(&encoded.body, encoded.json_length);
        let mut body = body.to_vec();
        for (at, change) in changes {
            match change {
                Some(byte) if !body.is_empty() => { let at = at.index(body.len()); body[at] = byte; }
                None if !body.is_empty() => { body.remove(at.index(body.len())); }
                _ => {}
            }
        }
        decode_everything(&body.into(), json_length.and_then(|n| n.checked_add_signed(longer)));
    }
}

/// Passes bytes to all public decoders. They must return without a panic.
fn decode_everything(body: &Bytes, length: Option<usize>) {
    let spec = |name: &str, datatype| TensorSpec { name: name.into(), datatype, dims: Some(vec![Dim::Free(None); 2]) };
    let signatures = [
        Signature::new(vec![spec("t0", DataType::Fp32)], vec![]),
        Signature::new(vec![spec("t0", DataType::Bytes), spec("t1", DataType::Int64)], vec![]),
    ];
    let _ = oip::decode(body, length);
    let _ = oip::header_length(body, body.len());
    for signature in &signatures {
        let _ = oip::decode_raw(body, signature, &Hold::uncounted());
        let _ = tfs::parse(body).map(|request| request.decode(signature, &Hold::uncounted()));
    }
    let _ = Golden::parse(body);
    let _ = parse_warmup(body);
    for encoding in ["gzip", "deflate"] {
        let _ = inflate(encoding, body.clone(), 1 << 16, &Hold::uncounted());
    }
}
