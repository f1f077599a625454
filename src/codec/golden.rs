//! `golden.json` and `warmup.json`, which lie beside a model: infer bodies as callers send them, and what they are answered.
//!
//! Read and written by the rules of the wire, but FP16 may be written as numbers: a file has no binary form.

use super::elements::Rules;
use super::json::{Reader, Seen};
use super::oip::{Blobs, Side, request_body, tensors};
use super::text;
use crate::model::{Code, Complaints, Failure, InferenceRequest, NamedTensor};
use crate::tensor::Data;
use bytes::Bytes;
use sonic_number::{ParserNumber, parse_number};

const RULES: Rules = Rules { fp16_as_numbers: true, base64_objects: false };

/// Answers a version must give before it may serve.
#[derive(Debug, Clone, PartialEq)]
pub struct Golden {
    /// How far an element may be off relative to the expected one; 1e-5 when the file does not say, as in
    /// `numpy.allclose`.
    pub rtol: f64,
    /// How far an element may be off in absolute terms, on top; 1e-8 when the file does not say.
    pub atol: f64,
    pub cases: Vec<GoldenCase>,
}

/// One request and the outputs expected, by name and in any order; outputs that are not named are not compared.
#[derive(Debug, Clone, PartialEq)]
pub struct GoldenCase {
    pub request: InferenceRequest,
    pub outputs: Vec<NamedTensor>,
}

impl Golden {
    /// Reads `{"rtol","atol","cases":[{"request":<infer body>,"outputs":[<output tensors>]}]}`.
    ///
    /// # Errors
    /// What is wrong, with the number of the case (from 0) it is wrong in.
    pub fn parse(text: &[u8]) -> Result<Golden, Failure> {
        let source = Bytes::copy_from_slice(text);
        let mut reader = Reader::new(&source);
        let mut golden = Golden { rtol: 1e-5, atol: 1e-8, cases: Vec::new() };
        let members = ["rtol", "atol", "cases"];
        object(&mut reader, &members, &["cases"], |reader, member| {
            match member {
                "rtol" => golden.rtol = tolerance(reader, "rtol")?,
                "atol" => golden.atol = tolerance(reader, "atol")?,
                _ => golden.cases = list(reader, "cases", "case", case)?,
            }
            Ok(())
        })?;
        reader.end()?;
        Ok(golden)
    }
}

/// Reads `{"requests":[<infer body>]}`.
///
/// # Errors
/// What is wrong, with the number of the request (from 0) it is wrong in.
pub fn parse_warmup(text: &[u8]) -> Result<Vec<InferenceRequest>, Failure> {
    let source = Bytes::copy_from_slice(text);
    let mut reader = Reader::new(&source);
    let mut requests = Vec::new();
    object(&mut reader, &["requests"], &["requests"], |reader, _| {
        requests = list(reader, "requests", "request", request)?;
        Ok(())
    })?;
    reader.end()?;
    Ok(requests)
}

impl GoldenCase {
    /// Whether a file can hold it as it is: JSON has no infinities, and no bytes that are not UTF-8. NaN is `null`.
    #[must_use]
    pub fn is_json(&self) -> bool {
        self.request.inputs.iter().chain(&self.outputs).all(|named| match named.tensor.data() {
            Data::Fp16(e) => !e.iter().any(|x| x.is_infinite()),
            Data::Fp32(e) => !e.iter().any(|x| x.is_infinite()),
            Data::Fp64(e) => !e.iter().any(|x| x.is_infinite()),
            Data::Bytes(e) => e.iter().all(|bytes| std::str::from_utf8(bytes).is_ok()),
            _ => true,
        })
    }
}

/// Writes what [`Golden::parse`] reads, a case to a line. Each case has to be one that a file can hold ([`GoldenCase::is_json`]).
#[must_use]
pub fn write_golden(golden: &Golden) -> Vec<u8> {
    let mut out = format!("{{\"rtol\":{:e},\"atol\":{:e},\"cases\":[", golden.rtol, golden.atol).into_bytes();
    lines(&mut out, &golden.cases, |out, case| {
        text::plain(out, "{\"request\":");
        write_request(out, &case.request);
        text::plain(out, ",\"outputs\":");
        write_tensors(out, &case.outputs);
        out.push(b'}');
    });
    text::plain(&mut out, "]}\n");
    out
}

/// Writes what [`parse_warmup`] reads, a request to a line; each as [`write_golden`] has them.
#[must_use]
pub fn write_warmup<'r>(requests: impl IntoIterator<Item = &'r InferenceRequest>) -> Vec<u8> {
    let mut out = b"{\"requests\":[".to_vec();
    lines(&mut out, requests, write_request);
    text::plain(&mut out, "]}\n");
    out
}

fn lines<T>(out: &mut Vec<u8>, items: impl IntoIterator<Item = T>, write: impl Fn(&mut Vec<u8>, T)) {
    for (i, item) in items.into_iter().enumerate() {
        text::plain(out, if i == 0 { "\n" } else { ",\n" });
        write(out, item);
    }
}

fn write_request(out: &mut Vec<u8>, request: &InferenceRequest) {
    text::plain(out, "{\"inputs\":");
    write_tensors(out, &request.inputs);
    out.push(b'}');
}

fn write_tensors(out: &mut Vec<u8>, tensors: &[NamedTensor]) {
    out.push(b'[');
    for (i, NamedTensor { name, tensor }) in tensors.iter().enumerate() {
        text::plain(out, if i == 0 { "{\"name\":" } else { ",{\"name\":" });
        text::string(out, name);
        text::plain(out, ",\"shape\":[");
        for (axis, extent) in tensor.shape().iter().enumerate() {
            if axis > 0 {
                out.push(b',');
            }
            text::integer(out, *extent);
        }
        text::plain(out, "],\"datatype\":\"");
        text::plain(out, tensor.datatype().as_str());
        text::plain(out, "\",\"data\":[");
        // Fails only on bytes that no such case has.
        let _ = text::elements(out, tensor.data(), 0..tensor.data().len());
        text::plain(out, "]}");
    }
    out.push(b']');
}

fn case(reader: &mut Reader<'_>) -> Result<GoldenCase, Failure> {
    let mut case = GoldenCase { request: InferenceRequest::default(), outputs: Vec::new() };
    let members = ["request", "outputs"];
    object(reader, &members, &members, |reader, member| {
        if member == "request" {
            case.request = request(reader)?;
            return Ok(());
        }
        let mut complaints = Complaints::default();
        let side = Side { list: "outputs", one: "output" };
        case.outputs = tensors(reader, &mut Blobs::new(None), RULES, side, &mut complaints)?;
        complaints.into_result(())
    })?;
    Ok(case)
}

fn request(reader: &mut Reader<'_>) -> Result<InferenceRequest, Failure> {
    request_body(reader, Blobs::new(None), RULES).map(|body| body.request)
}

fn tolerance(reader: &mut Reader<'_>, name: &str) -> Result<f64, Failure> {
    let first = reader.peek();
    let start = reader.offset();
    let number = if let Some(b'-' | b'0'..=b'9') = first {
        reader.number(parse_number)?
    } else {
        reader.skip_value()?;
        None
    };
    let number = match number {
        Some(ParserNumber::Unsigned(n)) => n as f64,
        Some(ParserNumber::Float(x)) if x >= 0.0 => x,
        _ => {
            return Err(wrong(format!(
                "{name:?} is expected to be a non-negative number, got {}",
                reader.excerpt(start)
            )));
        }
    };
    Ok(number)
}

/// Reads an object, giving each of `members` to `read` with the cursor before its value, and skipping others.
fn object(
    reader: &mut Reader<'_>,
    members: &[&'static str],
    required: &[&'static str],
    mut read: impl FnMut(&mut Reader<'_>, &str) -> Result<(), Failure>,
) -> Result<(), Failure> {
    reader.peek();
    let start = reader.offset();
    if !reader.eat(b'{') {
        reader.skip_value()?;
        return Err(wrong(format!("expected an object, got {}", reader.excerpt(start))));
    }
    let mut seen = Seen::new(members);
    let mut first = true;
    while let Some(member) = reader.next_member(&mut first)? {
        if seen.again(&member) {
            return Err(wrong(format!("member {member:?} is given more than once")));
        }
        if members.contains(&&*member) {
            read(reader, &member)?;
        } else {
            reader.skip_value()?;
        }
    }
    match required.iter().find(|member| !seen.once(member)) {
        Some(missing) => Err(wrong(format!("member {missing:?} is missing"))),
        None => Ok(()),
    }
}

/// Reads a list whose items are numbered in messages: `case 3: …`.
fn list<T>(
    reader: &mut Reader<'_>,
    name: &str,
    one: &str,
    read: impl Fn(&mut Reader<'_>) -> Result<T, Failure>,
) -> Result<Vec<T>, Failure> {
    reader.peek();
    let start = reader.offset();
    if !reader.eat(b'[') {
        reader.skip_value()?;
        return Err(wrong(format!("{name:?} is expected to be a list, got {}", reader.excerpt(start))));
    }
    let mut items = Vec::new();
    let mut first = true;
    while reader.next_item(&mut first)? {
        let place = format!("{one} {}: ", items.len());
        items.push(read(reader).map_err(|failure| failure.within(&place))?);
    }
    Ok(items)
}

fn wrong(what: String) -> Failure {
    Failure::new(Code::InvalidRequest, what)
}
