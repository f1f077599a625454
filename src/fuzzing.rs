//! Entry points for fuzzing: one function for every decoder of bytes from outside.
//!
//! Each function takes any bytes and must return. It panics when the decoder panics or when an invariant is broken:
//! what was decoded, written again and read again must be the same.
//!
//! The test at the end runs the corpus, and mutations of it from a fixed seed, as part of `make test`; `make fuzz` runs more of
//! them. `fuzz/` has a libFuzzer program for each target. Compiled for tests and with the feature `fuzzing` only.
//!
//! To add a target: a function here, its line in [`TARGETS`], `fuzz/fuzz_targets/NAME.rs`, its `[[bin]]` in
//! `fuzz/Cargo.toml`, and some inputs in `fuzz/corpus/NAME/`.

use crate::backend::{OnnxFile, VersionFiles};
use crate::budget::{Budget, Hold};
use crate::codec::frames::Media;
use crate::codec::golden::{Golden, GoldenCase, parse_warmup, write_golden};
use crate::codec::grpc::answer::InferForm;
use crate::codec::grpc::generated::inference::model_infer_request::InferInputTensor;
use crate::codec::grpc::generated::inference::{ModelInferRequest, ModelInferResponse};
use crate::codec::grpc::generated::tensorflow::serving::PredictResponse;
use crate::codec::grpc::{self, frame};
use crate::codec::oip::{self, AnswerForm, AnswerHead};
use crate::codec::{feedback as feedback_codec, tfs};
use crate::columns::ElementNames;
use crate::model::{Answer, Dim, ModelName, NamedTensor, Signature, TensorSpec};
use crate::model_settings::ModelSettings;
use crate::record;
use crate::route::{Document, Proposal};
use crate::tensor::{Data, DataType};
use bytes::Bytes;
use prost::Message as _;
use std::cell::OnceCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Runs one decoder on these bytes.
pub type Target = fn(&[u8]);

/// Every target by its name, which is also the name of its corpus directory.
pub const TARGETS: [(&str, Target); 13] = [
    ("feedback", feedback),
    ("frames", frames),
    ("golden", golden),
    ("grpc_infer", grpc_infer),
    ("grpc_predict", grpc_predict),
    ("model_toml", model_toml),
    ("oip_binary", oip_binary),
    ("oip_json", oip_json),
    ("onnx_header", onnx_header),
    ("raw", raw),
    ("segment", segment),
    ("tfs", tfs),
    ("traffic", traffic),
];

const HEAD: AnswerHead<'static> = AnswerHead { model_name: "m", model_version: Some("1"), id: "r" };

/// A body of one frame with a `ModelInferRequest`, as it came or inflated.
pub fn grpc_infer(bytes: &[u8]) {
    let Ok((_, message)) = frame::only_message(Bytes::copy_from_slice(bytes)) else { return };
    let Ok(call) = grpc::infer::decode(message, &Hold::uncounted()) else { return };
    let answer = answer_of(&call.request.inputs);
    for raw in [false, true] {
        let form = InferForm { raw, in_stream: false };
        let encoded = grpc::answer::encode(&answer, &HEAD, form, &Hold::uncounted()).expect("every tensor has a form");
        let response = ModelInferResponse::decode(&encoded.framed[frame::HEAD..]).expect("it is a message");
        let inputs = response.outputs.into_iter().map(|output| InferInputTensor {
            name: output.name,
            datatype: output.datatype,
            shape: output.shape,
            contents: output.contents,
            ..InferInputTensor::default()
        });
        let again = ModelInferRequest {
            inputs: inputs.collect(),
            raw_input_contents: response.raw_output_contents,
            ..ModelInferRequest::default()
        };
        match grpc::infer::decode(again.encode_to_vec().into(), &Hold::uncounted()) {
            Ok(again) => assert_same(&call.request.inputs, &again.request.inputs),
            Err(undecoded) => panic!("{:?} in what was written: {again:?}", undecoded.failure),
        }
    }
}

/// A body of one frame with a `PredictRequest` of `TensorFlow` Serving.
pub fn grpc_predict(bytes: &[u8]) {
    let Ok((_, message)) = frame::only_message(Bytes::copy_from_slice(bytes)) else { return };
    // One value may stand for all elements of a shape: the memory is bounded, as it is for every request.
    let budget = Budget::new(64 << 20);
    let hold = Hold::open(&budget, &budget.connection(None)).expect("the first fits");
    let Ok(call) = grpc::predict::decode(message, &hold) else { return };
    let answer = answer_of(&call.request.inputs);
    let Ok(encoded) = grpc::predict::encode(&answer, &grpc::predict::spec("m", None), &hold) else { return };
    let response = PredictResponse::decode(&encoded.framed[frame::HEAD..]).expect("it is a message");
    for NamedTensor { name, .. } in &call.request.inputs {
        assert!(response.outputs.contains_key(name), "{name:?} is among the outputs");
    }
}

/// An Open Inference Protocol request as JSON.
pub fn oip_json(bytes: &[u8]) {
    if let Ok(decoded) = oip::decode(&Bytes::copy_from_slice(bytes), None) {
        assert_oip_round_trip(&decoded.request.inputs);
    }
}

/// An Open Inference Protocol request with binary tensors. The first two bytes (little-endian) are the length of the JSON,
/// which callers send as a header; the body follows.
pub fn oip_binary(bytes: &[u8]) {
    let Some((length, body)) = bytes.split_first_chunk::<2>() else { return };
    let length = usize::from(u16::from_le_bytes(*length));
    let _ = oip::header_length(body, body.len());
    if let Ok(decoded) = oip::decode(&Bytes::copy_from_slice(body), Some(length)) {
        assert_oip_round_trip(&decoded.request.inputs);
    }
}

/// A raw binary request. The first byte chooses the datatype and the rank of the only input; the body follows.
pub fn raw(bytes: &[u8]) {
    let Some((choice, body)) = bytes.split_first() else { return };
    let datatype = DataType::ALL[usize::from(*choice) % DataType::ALL.len()];
    let dims = match usize::from(*choice) / DataType::ALL.len() % 3 {
        0 => vec![Dim::Free(None)],
        1 => vec![Dim::Free(None), Dim::Fixed(2)],
        _ => vec![Dim::Fixed(2), Dim::Free(None), Dim::Free(None)],
    };
    let spec = TensorSpec { name: "x".into(), datatype, dims: Some(dims) };
    let signature = Signature::new(vec![spec], vec![]);
    if let Ok(decoded) = oip::decode_raw(&Bytes::copy_from_slice(body), &signature, &Hold::uncounted()) {
        assert!(signature.check(decoded.request.clone()).is_ok(), "a raw request fits the signature it was read with");
        assert_oip_round_trip(&decoded.request.inputs);
    }
}

/// A TensorFlow Serving predict request, in rows or in columns.
pub fn tfs(bytes: &[u8]) {
    let Ok(request) = tfs::parse(&Bytes::copy_from_slice(bytes)) else { return };
    let spec = |name: &str, datatype, rank| TensorSpec {
        name: name.into(),
        datatype,
        dims: Some(std::iter::repeat_n(Dim::Free(None), rank).collect()),
    };
    let signatures = [
        vec![spec("x", DataType::Fp32, 2)],
        vec![spec("x", DataType::Fp32, 2), spec("s_bytes", DataType::Bytes, 1), spec("i", DataType::Int64, 1)],
        vec![spec("b", DataType::Bool, 1), spec("h", DataType::Fp16, 1), spec("u", DataType::Uint64, 1)],
    ];
    for inputs in signatures {
        if let Ok(decoded) = request.decode(&Signature::new(inputs, vec![]), &Hold::uncounted()) {
            assert_oip_round_trip(&decoded.inputs);
            // Not every request has outputs of the same shapes, so this may refuse; it must not panic.
            let _ = tfs::encode_predict(&answer_of(&decoded.inputs), request.style());
        }
    }
}

/// A table. The first byte chooses the media type and the model; the body follows.
pub fn frames(bytes: &[u8]) {
    const MEDIA: [Media; 5] = [
        Media::Json,
        Media::Lines,
        Media::Csv { header: None },
        Media::Csv { header: Some(true) },
        Media::Csv { header: Some(false) },
    ];
    let Some((choice, body)) = bytes.split_first() else { return };
    let choice = usize::from(*choice);
    let Ok(mut request) = crate::codec::frames::parse(&Bytes::copy_from_slice(body), MEDIA[choice % MEDIA.len()])
    else {
        return;
    };
    let spec =
        |name: &str, datatype, dims: &[Dim]| TensorSpec { name: name.into(), datatype, dims: Some(dims.to_vec()) };
    let (free, one, three) = (Dim::Free(None), Dim::Fixed(1), Dim::Fixed(3));
    let inputs = match choice / MEDIA.len() % 3 {
        0 => vec![spec("x", DataType::Fp32, &[free, three])],
        1 => vec![spec("x", DataType::Fp64, &[free.clone(), free])],
        _ => vec![
            spec("s", DataType::Bytes, &[free.clone(), one.clone()]),
            spec("i", DataType::Int64, std::slice::from_ref(&free)),
            spec("b", DataType::Bool, &[free.clone(), one]),
            spec("x", DataType::Fp16, &[free, three]),
        ],
    };
    if choice / MEDIA.len() / 3 % 2 == 1 {
        let names = ["p", "q", "r"].map(str::to_owned).to_vec();
        request.set_names(Arc::new(ElementNames {
            by_tensor: [("x".to_owned(), names)].into(),
            of_only_input: Vec::new(),
        }));
    }
    let signature = Signature::new(inputs, vec![]);
    if let Ok((decoded, style)) = request.decode(&signature, &Hold::uncounted()) {
        assert_oip_round_trip(&decoded.inputs);
        let answer = answer_of(&decoded.inputs);
        // A request whose lists have different lengths has no answer with rows; it must not panic.
        let _ = tfs::encode_predict(&answer, style);
    }
}

/// The body of a feedback request.
pub fn feedback(bytes: &[u8]) {
    if let Ok(entries) = feedback_codec::decode(&Bytes::copy_from_slice(bytes), 0, &Hold::uncounted()) {
        assert!(entries.len() <= 10_000, "{} entries, where the API allows 10,000", entries.len());
        for (name, value) in entries.iter().flat_map(|e| &e.values) {
            assert!(value.value().is_none_or(|value| value.is_finite()), "the value {name:?} is {value:?}");
        }
    }
}

/// A traffic document.
pub fn traffic(bytes: &[u8]) {
    let Ok(value) = serde_json::from_slice(bytes) else { return };
    if let Ok(proposal) = Proposal::parse(&value) {
        let document = proposal.document;
        assert!(document.split.iter().any(|arm| arm.weight > 0.0), "no arm gets traffic: {document:?}");
        let text = document.to_json();
        assert_eq!(Document::from_json(&text), Ok(document), "read again from {text}");
    }
}

/// A `model.toml`.
pub fn model_toml(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = ModelSettings::parse("model.toml", text);
    }
}

/// A `golden.json`, and the same bytes as a `warmup.json`.
pub fn golden(bytes: &[u8]) {
    let _ = parse_warmup(bytes);
    let Ok(golden) = Golden::parse(bytes) else { return };
    if golden.cases.iter().all(GoldenCase::is_json) {
        let text = write_golden(&golden);
        let again = Golden::parse(&text).unwrap_or_else(|e| panic!("{e:?} in {}", String::from_utf8_lossy(&text)));
        assert_eq!((golden.rtol, golden.atol), (again.rtol, again.atol), "the tolerances stay the same");
        assert_eq!(golden.cases.len(), again.cases.len(), "the cases stay the same");
        for (a, b) in golden.cases.iter().zip(&again.cases) {
            assert_same(&a.request.inputs, &b.request.inputs);
            assert_same(&a.outputs, &b.outputs);
        }
    }
}

/// A segment of the prediction log, as recovery reads it after a crash.
///
/// The input is read twice: as the file itself, and as a list of frames without checksums (kind, length as u16, body), which
/// get valid checksums here. Otherwise no mutation would get past them. A prediction's number of rows is kept below 256:
/// recovery trusts a number under a valid checksum, and makes that many records.
pub fn segment(bytes: &[u8]) {
    const PREDICTION: u8 = 2;
    // Of the number of rows, behind the kind; all but the lowest byte.
    const HIGH_BYTES: std::ops::Range<usize> = 34..37;
    read_segment(bytes);
    let mut file = b"SLUICE01".to_vec();
    let mut rest = bytes;
    while let [kind, low, high, more @ ..] = rest {
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(more.len());
        let (body, after) = more.split_at(length);
        let mut content = [&[*kind], body].concat();
        if *kind == PREDICTION
            && let Some(high) = content.get_mut(HIGH_BYTES)
        {
            high.fill(0);
        }
        file.extend_from_slice(&u32::try_from(content.len()).unwrap_or(u32::MAX).to_le_bytes());
        file.extend_from_slice(&crc32fast::hash(&content).to_le_bytes());
        file.extend_from_slice(&content);
        rest = after;
    }
    read_segment(&file);
}

fn read_segment(bytes: &[u8]) {
    with_file("log/00000000000000000001.seg", bytes, |data| {
        let model: ModelName = "m".parse().expect("one letter is a name");
        let _ = record::unsealed(data, &model);
    });
}

/// The header of a `model.onnx`, as it is read before any engine sees the file.
pub fn onnx_header(bytes: &[u8]) {
    with_file(VersionFiles::MODEL, bytes, |dir| {
        let Ok(file) = OnnxFile::read(&VersionFiles::of(dir)) else { return };
        assert_eq!(file.bytes(), bytes, "the whole file is kept");
        let _ = (file.opset(), file.operators(), file.functions().count(), file.weight_files().len());
        let _ = (file.inputs(), file.outputs());
    });
}

/// Runs `read` on a directory that holds `bytes` as the file `name`.
fn with_file(name: &str, bytes: &[u8], read: impl FnOnce(&Path)) {
    thread_local! { static DIR: OnceCell<ScratchDir> = const { OnceCell::new() } }
    DIR.with(|dir| {
        let dir = &dir.get_or_init(ScratchDir::new).0;
        let path = dir.join(name);
        std::fs::create_dir_all(path.parent().unwrap_or(dir))
            .and_then(|()| std::fs::write(&path, bytes))
            .unwrap_or_else(|e| panic!("writing {}: {e}", path.display()));
        read(dir);
    });
}

/// A directory of one thread, in memory where the system has such a place; removed when the thread ends.
struct ScratchDir(PathBuf);

impl ScratchDir {
    fn new() -> ScratchDir {
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        ScratchDir(parent.join(format!("sluicegate-fuzz-{}-{}", std::process::id(), fastrand::u64(..))))
    }
}

impl Drop for ScratchDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn answer_of(tensors: &[NamedTensor]) -> Answer {
    Answer::from(tensors.iter().map(|t| (t.name.as_str().into(), t.tensor.clone())).collect::<Vec<_>>())
}

/// Writes tensors as an answer, in both forms, and reads them again as a request.
fn assert_oip_round_trip(tensors: &[NamedTensor]) {
    let answer = answer_of(tensors);
    let binary = oip::encode(&answer, &HEAD, &AnswerForm::binary()).expect("the binary form holds every tensor");
    assert_same(tensors, &read_as_request(&binary.body, binary.json_length));
    // FP16 and bytes that are not UTF-8 have no JSON form; NaN and infinities are all `null`.
    if let Ok(json) = oip::encode(&answer, &HEAD, &AnswerForm::json())
        && json.nonfinite == 0
    {
        assert_same(tensors, &read_as_request(&json.body, None));
    }
}

/// An answer differs from a request in the name of its list of tensors.
fn read_as_request(body: &[u8], json_length: Option<usize>) -> Vec<NamedTensor> {
    let (json, blobs) = body.split_at(json_length.unwrap_or(body.len()));
    let json = String::from_utf8_lossy(json).replacen("\"outputs\":", "\"inputs\":", 1);
    let request = Bytes::from([json.as_bytes(), blobs].concat());
    match oip::decode(&request, json_length.map(|_| json.len())) {
        Ok(decoded) => decoded.request.inputs,
        Err(failure) => panic!("{failure:?} in what was written: {}", String::from_utf8_lossy(&request)),
    }
}

fn assert_same(before: &[NamedTensor], after: &[NamedTensor]) {
    assert_eq!(before.len(), after.len(), "the number of tensors");
    for (a, b) in before.iter().zip(after) {
        assert_eq!((&a.name, a.tensor.shape()), (&b.name, b.tensor.shape()), "name and shape");
        assert!(is_same(a.tensor.data(), b.tensor.data()), "{:?} became {:?}", a.tensor.data(), b.tensor.data());
    }
}

/// NaN is equal to NaN here, whatever its bits.
fn is_same(a: &Data, b: &Data) -> bool {
    a == b || format!("{a:?}") == format!("{b:?}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    /// What the formats are made of; mutations that insert these get further than random bytes.
    const TOKENS: [&[u8]; 28] = [
        b"null",
        b"true",
        b"NaN",
        b"1e999",
        b"-0",
        b"-1",
        b"0.5",
        b"18446744073709551616",
        b"\"\"",
        b"\"\\u0000\"",
        b"[]",
        b"{}",
        b"[[",
        b"]",
        b"}",
        b",",
        b":",
        b"\"",
        b"\"inputs\":",
        b"\"shape\":[0]",
        b"\"BYTES\"",
        b"\"FP16\"",
        b"\"parameters\":{\"binary_data_size\":4}",
        b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x00",
        b"\xf0\x9f\x98\x80",
        b"= ",
        b"\n",
    ];

    fn corpus(target: &str) -> Vec<Vec<u8>> {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
        let mut files: Vec<PathBuf> = std::fs::read_dir(&dir)
            .unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
            .map(|entry| entry.unwrap().path())
            .collect();
        files.sort();
        files.iter().map(|file| std::fs::read(file).unwrap()).collect()
    }

    fn mutated(rng: &mut fastrand::Rng, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = seeds[rng.usize(..seeds.len())].clone();
        for _ in 0..rng.usize(1..6) {
            let at = rng.usize(..=bytes.len());
            let end = (at + rng.usize(0..16)).min(bytes.len());
            match rng.u8(0..7) {
                0 if at < bytes.len() => bytes[at] ^= 1 << rng.u8(0..8),
                1 if at < bytes.len() => bytes[at] = rng.u8(..),
                2 => drop(bytes.drain(at..end)),
                3 => drop(bytes.splice(at..at, TOKENS[rng.usize(..TOKENS.len())].iter().copied())),
                4 => {
                    let copy = bytes[at..end].to_vec();
                    let to = rng.usize(..=bytes.len());
                    drop(bytes.splice(to..to, copy));
                }
                5 => {
                    let other = &seeds[rng.usize(..seeds.len())];
                    let from = rng.usize(..=other.len());
                    bytes.truncate(at);
                    bytes.extend_from_slice(&other[from..]);
                }
                _ => bytes.truncate(at),
            }
        }
        bytes
    }

    /// A number from the environment.
    fn number(name: &str, default: u64) -> u64 {
        let text = std::env::var(name).unwrap_or_default();
        if text.is_empty() { default } else { text.parse().unwrap_or_else(|e| panic!("{name}={text}: {e}")) }
    }

    /// `SLUICEGATE_FUZZ_INPUTS` sets the number of mutations per target, `SLUICEGATE_FUZZ_SEED` the seed.
    #[test]
    fn every_decoder_survives_its_corpus_and_mutations_of_it() {
        let count = number("SLUICEGATE_FUZZ_INPUTS", 2_000);
        let seed = number("SLUICEGATE_FUZZ_SEED", 7);
        let mut failed = Vec::new();
        for (name, run) in TARGETS {
            let seeds = corpus(name);
            assert!(!seeds.is_empty(), "fuzz/corpus/{name} holds inputs");
            let mut rng = fastrand::Rng::with_seed(seed);
            let inputs = seeds.clone().into_iter().chain((0..count).map(|_| mutated(&mut rng, &seeds)));
            for input in inputs {
                if catch_unwind(AssertUnwindSafe(|| run(&input))).is_err() {
                    failed.push(format!("{name}: {}", input.escape_ascii()));
                    break;
                }
            }
        }
        assert!(
            failed.is_empty(),
            "decoders that panicked (the messages are above), with the input:\n{}",
            failed.join("\n")
        );
    }

    #[test]
    fn every_target_has_its_program() {
        let manifest = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/Cargo.toml")).unwrap();
        for (name, _) in TARGETS {
            let file = format!("fuzz_targets/{name}.rs");
            assert!(manifest.contains(&file), "fuzz/Cargo.toml names {file}");
            let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(&file)).unwrap();
            assert!(text.contains(&format!("fuzzing::{name}(")), "{file} runs fuzzing::{name}");
        }
    }
}
