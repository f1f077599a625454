//! The rules of the protocol as tables: accepted requests with their result, rejected requests with parts of their message.

mod answers;
mod binary;
mod requests;
mod values;

use super::*;
use crate::model::Failure;
use crate::tensor::{Data, Tensor};
use bytes::Bytes;

pub(super) fn body(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

pub(super) fn decode_text(text: &str) -> Result<OipRequest, Failure> {
    decode(&body(text), None)
}

/// Decodes a request with one input `x`, given the members of the input after its name.
pub(super) fn input(members: &str) -> Result<Tensor, Failure> {
    let request = decode_text(&format!("{{\"inputs\":[{{\"name\":\"x\",{members}}}]}}"))?.request;
    Ok(request.inputs.into_iter().next().expect("one input was sent").tensor)
}

/// Decodes a flat input with `n` elements.
pub(super) fn data(datatype: &str, n: usize, json: &str) -> Result<Data, Failure> {
    input(&format!("\"shape\":[{n}],\"datatype\":\"{datatype}\",\"data\":{json}")).map(Tensor::into_data)
}

/// All text of a failure.
pub(super) fn all_text(failure: &Failure) -> String {
    format!("{} {} {}", failure.code, failure.message, failure.details.join(" | "))
}

/// Asserts that each body is rejected with a message that contains all the parts.
pub(super) fn assert_rejected(cases: &[(&str, &[&str])]) {
    for (text, parts) in cases {
        match decode_text(text) {
            Ok(request) => panic!("{text} was accepted as {request:?}"),
            Err(failure) => {
                for part in *parts {
                    assert!(
                        all_text(&failure).contains(part),
                        "{text}\nwas rejected with {failure:?}\nwithout {part:?}"
                    );
                }
            }
        }
    }
}
