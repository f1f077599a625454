//! Decoding an infer request: the members around the tensors.

use super::AnswerForm;
use super::binary::Blobs;
use super::parameters::{parameters, quoted_value};
use super::tensor::{Side, tensors};
use crate::budget::Hold;
use crate::codec::elements::Rules;
use crate::codec::json::{Reader, Seen, Syntax};
use crate::model::{Code, Complaints, Failure, InferenceRequest, Parameter, Parameters, quoted};
use bytes::Bytes;

/// A request, and the requested form of the answer.
#[derive(Debug, Clone, PartialEq)]
pub struct OipRequest {
    pub request: InferenceRequest,
    pub form: AnswerForm,
}

/// Decodes an infer request. `header_length` is the header `Inference-Header-Content-Length`, parsed by [`header_length`].
///
/// A length of 0 means a raw binary request. It is rejected here, because only [`super::decode_raw`] can decode it.
///
/// # Errors
/// `INVALID_REQUEST` or `INVALID_TENSOR`, with the member, input, dimension or element that is wrong, and with several complaints
/// at once where possible.
pub fn decode(body: &Bytes, header_length: Option<usize>) -> Result<OipRequest, Failure> {
    decode_counted(body, header_length, &Hold::uncounted())
}

/// The same, with the memory of the result counted.
///
/// # Errors
/// As [`decode`], and those of [`Hold::grow`].
pub fn decode_counted(body: &Bytes, header_length: Option<usize>, hold: &Hold) -> Result<OipRequest, Failure> {
    let json = match header_length {
        None => body.clone(),
        Some(0) => {
            return Err(Failure::new(
                Code::InvalidRequest,
                "Inference-Header-Content-Length is 0, which means a raw binary request, but a JSON request is expected here",
            ));
        }
        Some(length) if length <= body.len() => body.slice(..length),
        Some(length) => return Err(header_too_long(length, body.len())),
    };
    let blobs = Blobs::new(header_length.map(|length| body.slice(length..)));
    let mut reader = Reader::counted(&json, hold);
    if reader.peek().is_none() {
        return Err(Failure::new(Code::InvalidRequest, "the body is empty: expected a JSON object with \"inputs\""));
    }
    reader.refuse_byte_order_mark()?;
    let request = request_body(&mut reader, blobs, Rules::default())?;
    reader.end()?;
    Ok(request)
}

/// Parses the header `Inference-Header-Content-Length`. `body_length` is the length of the decompressed body.
///
/// # Errors
/// If it is not a number, or greater than the length of the body.
pub fn header_length(value: &[u8], body_length: usize) -> Result<usize, Failure> {
    let text = value.trim_ascii();
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        let got = quoted(&String::from_utf8_lossy(text));
        return Err(Failure::new(
            Code::InvalidRequest,
            format!("Inference-Header-Content-Length is expected to be the JSON's length in bytes, got {got}"),
        ));
    }
    let length = std::str::from_utf8(text).ok().and_then(|t| t.parse().ok()).unwrap_or(usize::MAX);
    if length > body_length { Err(header_too_long(length, body_length)) } else { Ok(length) }
}

/// Parses the request object at the cursor. `blobs` are the bytes after the JSON.
pub(in crate::codec) fn request_body(
    reader: &mut Reader<'_>,
    mut blobs: Blobs,
    rules: Rules,
) -> Result<OipRequest, Failure> {
    const MEMBERS: [&str; 4] = ["id", "parameters", "inputs", "outputs"];
    let mut complaints = Complaints::default();
    let mut request = InferenceRequest::default();
    let mut form = AnswerForm::default();
    reader.peek();
    let start = reader.offset();
    if !reader.eat(b'{') {
        reader.skip_value()?;
        complaints.request(format!("expected a JSON object with \"inputs\", got {}", reader.excerpt(start)));
        return complaints.into_result(OipRequest { request, form });
    }
    let mut seen = Seen::new(&MEMBERS);
    let mut first = true;
    while let Some(member) = reader.next_member(&mut first)? {
        if seen.is_repeated(&member) {
            complaints.request(format!("member {member:?} is given more than once"));
            reader.skip_value()?;
            continue;
        }
        match &*member {
            "id" => request.id = id(reader, &mut complaints)?,
            "parameters" => request.parameters = parameters(reader, &mut complaints)?,
            "inputs" => {
                request.inputs =
                    tensors(reader, &mut blobs, rules, Side { list: "inputs", one: "input" }, &mut complaints)?;
            }
            "outputs" => request.outputs = outputs(reader, &mut form, &mut complaints)?,
            _ => {
                reader.skip_value()?;
            }
        }
        if complaints.is_full() {
            return complaints.into_result(OipRequest { request, form });
        }
    }
    if !seen.contains("inputs") {
        complaints.request("member \"inputs\" is missing: expected a list of tensors");
    }
    form.binary = flag(&request.parameters, "binary_data_output", &mut complaints).unwrap_or_default();
    blobs.finish(&mut complaints);
    complaints.into_result(OipRequest { request, form })
}

fn id(reader: &mut Reader<'_>, complaints: &mut Complaints) -> Result<Option<String>, Syntax> {
    if reader.peek() == Some(b'"') {
        return Ok(Some(reader.string()?.into_owned()));
    }
    let start = reader.offset();
    reader.skip_value()?;
    let got = reader.excerpt(start);
    // A null member is an absent one.
    if got != "null" {
        complaints.request(format!("\"id\" is expected to be a string, got {got}"));
    }
    Ok(None)
}

/// Parses `outputs`: returns the names in order, and adds the requested forms to `form`. `null` counts as absent, which means all.
fn outputs(
    reader: &mut Reader<'_>,
    form: &mut AnswerForm,
    complaints: &mut Complaints,
) -> Result<Option<Vec<String>>, Syntax> {
    reader.peek();
    let start = reader.offset();
    if !reader.eat(b'[') {
        reader.skip_value()?;
        let got = reader.excerpt(start);
        if got != "null" {
            complaints.request(format!("\"outputs\" is expected to be a list, got {got}"));
        }
        return Ok(None);
    }
    let mut names = Vec::new();
    let mut first = true;
    while reader.next_item(&mut first)? && !complaints.is_full() {
        let mut of_output = Complaints::default();
        let (name, parameters) = output(reader, &mut of_output)?;
        let binary = flag(&parameters, "binary_data", &mut of_output);
        for (parameter, value) in &parameters {
            let classes = parameter == "classification" && *value != Parameter::Integer(0);
            if classes || parameter.starts_with("shared_memory_") {
                of_output.request(format!("parameter {} is not supported", quoted(parameter)));
            }
        }
        if !of_output.is_empty() {
            let place = name
                .as_ref()
                .map_or_else(|| format!("outputs[{}]", names.len()), |name| format!("output {}", quoted(name)));
            complaints.absorb(of_output, &place);
        }
        let name = name.unwrap_or_default();
        if let Some(binary) = binary {
            form.overrides.push((name.clone(), binary));
        }
        names.push(name);
    }
    Ok(if names.is_empty() { None } else { Some(names) })
}

/// Parses one entry of `outputs`.
fn output(reader: &mut Reader<'_>, complaints: &mut Complaints) -> Result<(Option<String>, Parameters), Syntax> {
    let (mut name, mut given) = (None, Parameters::new());
    reader.peek();
    let start = reader.offset();
    if !reader.eat(b'{') {
        reader.skip_value()?;
        complaints.request(format!("expected an object with \"name\", got {}", reader.excerpt(start)));
        return Ok((name, given));
    }
    let mut seen = Seen::new(&["name", "parameters"]);
    let mut first = true;
    while let Some(member) = reader.next_member(&mut first)? {
        if seen.is_repeated(&member) {
            complaints.request(format!("member {member:?} is given more than once"));
            reader.skip_value()?;
            continue;
        }
        match &*member {
            "name" if reader.peek() == Some(b'"') => name = Some(reader.string()?.into_owned()),
            "name" => {
                let start = reader.offset();
                reader.skip_value()?;
                complaints.request(format!("\"name\" is expected to be a string, got {}", reader.excerpt(start)));
            }
            "parameters" => given = parameters(reader, complaints)?,
            _ => {
                reader.skip_value()?;
            }
        }
    }
    if !seen.contains("name") {
        complaints.request("member \"name\" is missing");
    }
    Ok((name, given))
}

/// The value of a boolean parameter. Adds a complaint if it is not a boolean.
fn flag(parameters: &Parameters, name: &str, complaints: &mut Complaints) -> Option<bool> {
    match parameters.iter().find(|(given, _)| given == name)? {
        (_, Parameter::Bool(flag)) => Some(*flag),
        (_, other) => {
            complaints
                .request(format!("parameter {name:?} is expected to be true or false, got {}", quoted_value(other)));
            None
        }
    }
}

#[cold]
fn header_too_long(length: usize, body_length: usize) -> Failure {
    Failure::new(
        Code::InvalidRequest,
        format!("Inference-Header-Content-Length says the JSON has {length} bytes, but the body has {body_length}"),
    )
}
