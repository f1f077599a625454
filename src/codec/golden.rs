//! The files `golden.json` (infer requests with their expected outputs) and `warmup.json` (infer requests) of a model.
//!
//! The format is that of requests, except that FP16 can be written as numbers, because a file has no binary form.

use super::elements::Rules;
use super::json::{Reader, Seen};
use super::oip::{Blobs, Side, request_body, tensors};
use super::text;
use crate::model::{Code, Complaints, Failure, InferenceRequest, NamedTensor};
use crate::tensor::Data;
use bytes::Bytes;
use sonic_number::{ParserNumber, parse_number};

const RULES: Rules = Rules { fp16_as_numbers: true, base64_objects: false };

/// The outputs that a version must produce before it can serve.
#[derive(Debug, Clone, PartialEq)]
pub struct Golden {
    /// The allowed relative difference of an element from the expected one. The default is 1e-5, as in `numpy.allclose`.
    pub rtol: f64,
    /// The allowed absolute difference, added to the relative one. The default is 1e-8.
    pub atol: f64,
    /// The least share of the elements of each output, over all cases, that must agree. The default is 1: all of them.
    pub min_agree: f64,
    pub cases: Vec<GoldenCase>,
}

impl Default for Golden {
    fn default() -> Golden {
        Golden { rtol: 1e-5, atol: 1e-8, min_agree: 1.0, cases: Vec::new() }
    }
}

/// One request and its expected outputs, in any order. Other outputs are not compared.
#[derive(Debug, Clone, PartialEq)]
pub struct GoldenCase {
    pub request: InferenceRequest,
    pub outputs: Vec<NamedTensor>,
}

impl Golden {
    /// Parses `{"rtol","atol","min_agree","cases":[{"request":<infer body>,"outputs":[<output tensors>]}]}`.
    ///
    /// # Errors
    /// The message has the number of the wrong case, from 0.
    pub fn parse(text: &[u8]) -> Result<Golden, Failure> {
        let source = Bytes::copy_from_slice(text);
        let mut reader = Reader::new(&source);
        let mut golden = Golden::default();
        let members = ["rtol", "atol", "min_agree", "cases"];
        object(&mut reader, &members, &["cases"], |reader, member| {
            match member {
                "rtol" => golden.rtol = number(reader, "rtol", "a non-negative number", |x| x >= 0.0)?,
                "atol" => golden.atol = number(reader, "atol", "a non-negative number", |x| x >= 0.0)?,
                "min_agree" => {
                    let share = "a share above 0 and at most 1";
                    golden.min_agree = number(reader, "min_agree", share, |x| x > 0.0 && x <= 1.0)?;
                }
                _ => golden.cases = list(reader, "cases", "case", case)?,
            }
            Ok(())
        })?;
        reader.end()?;
        Ok(golden)
    }
}

/// Parses `{"requests":[<infer body>]}`.
///
/// # Errors
/// The message has the number of the wrong request, from 0.
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
    /// Whether JSON can represent the case: it has no infinity and no bytes that are not UTF-8. NaN is `null`.
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

/// Writes a golden file, one case per line. Each case must pass [`GoldenCase::is_json`].
#[must_use]
pub fn write_golden(golden: &Golden) -> Vec<u8> {
    let mut out = format!("{{\"rtol\":{:e},\"atol\":{:e},", golden.rtol, golden.atol).into_bytes();
    if golden.min_agree < 1.0 {
        text::plain(&mut out, &format!("\"min_agree\":{},", golden.min_agree));
    }
    text::plain(&mut out, "\"cases\":[");
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

/// Writes a warm-up file, one request per line.
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
        // Fails only for bytes that are not UTF-8, which `is_json` excludes.
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

fn number(reader: &mut Reader<'_>, name: &str, expected: &str, fits: impl Fn(f64) -> bool) -> Result<f64, Failure> {
    let first = reader.peek();
    let start = reader.offset();
    let number = if let Some(b'-' | b'0'..=b'9') = first {
        reader.number(parse_number)?
    } else {
        reader.skip_value()?;
        None
    };
    let number = match number {
        Some(ParserNumber::Unsigned(n)) => Some(n as f64),
        Some(ParserNumber::Float(x)) => Some(x),
        _ => None,
    };
    number
        .filter(|number| fits(*number))
        .ok_or_else(|| invalid(format!("{name:?} is expected to be {expected}, got {}", reader.excerpt(start))))
}

/// Parses an object. Calls `read` for each of `members`, with the cursor before the value. Skips other members.
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
        return Err(invalid(format!("expected an object, got {}", reader.excerpt(start))));
    }
    let mut seen = Seen::new(members);
    let mut first = true;
    while let Some(member) = reader.next_member(&mut first)? {
        if seen.is_repeated(&member) {
            return Err(invalid(format!("member {member:?} is given more than once")));
        }
        if members.contains(&&*member) {
            read(reader, &member)?;
        } else {
            reader.skip_value()?;
        }
    }
    match required.iter().find(|member| !seen.contains(member)) {
        Some(missing) => Err(invalid(format!("member {missing:?} is missing"))),
        None => Ok(()),
    }
}

/// Parses a list. Messages have the number of the item: `case 3: …`.
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
        return Err(invalid(format!("{name:?} is expected to be a list, got {}", reader.excerpt(start))));
    }
    let mut items = Vec::new();
    let mut first = true;
    while reader.next_item(&mut first)? {
        let place = format!("{one} {}: ", items.len());
        items.push(read(reader).map_err(|failure| failure.within(&place))?);
    }
    Ok(items)
}

fn invalid(message: String) -> Failure {
    Failure::new(Code::InvalidRequest, message)
}
