//! Checks answers at little cost: the status, the shape, and the first number, which must be what that version answered before the load.

use hyper::HeaderMap;
use memchr::memmem::Finder;

use crate::plan::HEADER_LENGTH;

/// Answers that differ by more than this (relative and absolute) are different. Smaller differences come from batches, which sum in
/// another order.
const RTOL: f32 = 1e-3;
const ATOL: f32 = 1e-5;

/// The expected form of the answers to one kind of request.
#[derive(Debug)]
pub struct Shape {
    text: String,
    needle: Finder<'static>,
    data: Finder<'static>,
    binary: bool,
    /// Size of the output as a binary tensor, in bytes.
    bytes: usize,
}

impl Shape {
    pub fn new(rows: usize, columns: usize, binary: bool) -> Self {
        let text = format!("\"shape\":[{rows},{columns}]");
        let needle = Finder::new(&text).into_owned();
        Self { text, needle, data: Finder::new("\"data\":[").into_owned(), binary, bytes: rows * columns * 4 }
    }

    /// The first number in the output of a 200, or what is wrong with the answer.
    pub fn first_number(&self, headers: &HeaderMap, body: &[u8]) -> Result<f32, String> {
        if self.needle.find(body).is_none() {
            return Err(format!("the answer has no {}: {}", self.text, start(body)));
        }
        if self.binary {
            let head = headers.get(HEADER_LENGTH).and_then(|h| h.to_str().ok()?.parse::<usize>().ok());
            let tensor = head.and_then(|head| body.get(head..)).unwrap_or_default();
            return match tensor.first_chunk() {
                Some(first) if tensor.len() == self.bytes => Ok(f32::from_le_bytes(*first)),
                _ => Err(format!("{} bytes of binary tensor, expected {}", tensor.len(), self.bytes)),
            };
        }
        let from = self.data.find(body).map_or(body.len(), |at| at + self.data.needle().len());
        let length = body[from..].iter().position(|b| matches!(b, b',' | b']')).unwrap_or(0);
        let number = std::str::from_utf8(&body[from..from + length]).ok().and_then(|text| text.parse().ok());
        number.ok_or_else(|| format!("the answer's data does not start with a number: {}", start(body)))
    }
}

/// Checks that `got` is what `version` answered to the same input before the load.
pub fn expected(answers: &[(u32, f32)], version: u32, got: f32) -> Result<(), String> {
    match answers.iter().find(|(v, _)| *v == version) {
        Some((_, known)) if (got - known).abs() <= ATOL + RTOL * known.abs() => Ok(()),
        Some((_, known)) => {
            Err(format!("version {version} answered {got}, but {known} to the same input before the load"))
        }
        None => Err(format!("version {version} answered, which did not exist before the load")),
    }
}

/// The first 200 bytes of a body, for an error message.
pub fn start(body: &[u8]) -> String {
    String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_json_answer_needs_its_shape_and_a_number() {
        let shape = Shape::new(1, 2, false);
        let none = HeaderMap::new();
        let body = br#"{"outputs":[{"name":"y","shape":[1,2],"datatype":"FP32","data":[-1.5e-3,2]}]}"#;
        assert_eq!(shape.first_number(&none, body), Ok(-1.5e-3));
        let other = br#"{"outputs":[{"shape":[1,3],"data":[1,2,3]}]}"#;
        assert!(shape.first_number(&none, other).unwrap_err().contains("no \"shape\":[1,2]"));
        let null = br#"{"outputs":[{"shape":[1,2],"data":[null,2]}]}"#;
        assert!(shape.first_number(&none, null).unwrap_err().contains("does not start with a number"));
    }

    #[test]
    fn a_binary_answer_needs_its_length() {
        let shape = Shape::new(1, 1, true);
        let head = br#"{"outputs":[{"shape":[1,1]}]}"#;
        let mut headers = HeaderMap::new();
        headers.insert(HEADER_LENGTH, head.len().into());
        let body = [head.as_slice(), &2.5_f32.to_le_bytes()].concat();
        assert_eq!(shape.first_number(&headers, &body), Ok(2.5));
        assert!(shape.first_number(&headers, head).unwrap_err().contains("0 bytes"));
    }

    #[test]
    fn answers_are_compared_with_those_of_the_same_version() {
        let answers = [(1, 0.5), (2, 0.7)];
        assert_eq!(expected(&answers, 2, 0.7001), Ok(()));
        assert!(expected(&answers, 1, 0.7).unwrap_err().contains("version 1 answered 0.7"));
        assert!(expected(&answers, 3, 0.7).unwrap_err().contains("did not exist"));
    }
}
