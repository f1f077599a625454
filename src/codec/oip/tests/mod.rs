//! The checklist of the protocol, as tables: what is accepted and what it becomes, what is refused and in which words.

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

/// The one input `x` of a request, out of its members after the name.
pub(super) fn input(members: &str) -> Result<Tensor, Failure> {
    let request = decode_text(&format!("{{\"inputs\":[{{\"name\":\"x\",{members}}}]}}"))?.request;
    Ok(request.inputs.into_iter().next().expect("one input was sent").tensor)
}

/// The data of a flat input of `n` elements.
pub(super) fn data(datatype: &str, n: usize, json: &str) -> Result<Data, Failure> {
    input(&format!("\"shape\":[{n}],\"datatype\":\"{datatype}\",\"data\":{json}")).map(Tensor::into_data)
}

/// Everything a failure says, for looking in it.
pub(super) fn said(failure: &Failure) -> String {
    format!("{} {} {}", failure.code, failure.message, failure.details.join(" | "))
}

/// That each body is refused in words that hold every one of the parts.
pub(super) fn assert_refused(cases: &[(&str, &[&str])]) {
    for (text, parts) in cases {
        match decode_text(text) {
            Ok(request) => panic!("{text} was accepted as {request:?}"),
            Err(failure) => {
                for part in *parts {
                    assert!(
                        said(&failure).contains(part),
                        "{text}\nwas refused with {failure:?}\nwithout saying {part:?}"
                    );
                }
            }
        }
    }
}
