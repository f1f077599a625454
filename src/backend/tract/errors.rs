//! Turns tract's errors and panics into [`RunError`].

use super::build::shortened;
use crate::backend::{OUT_OF_MEMORY, RunError};
use tract_onnx::prelude::TractError;

const REFUSED: &str = "the model cannot take these values";

/// An error of this crate's own steps around a run.
pub(super) fn failed(message: &str, error: &TractError) -> RunError {
    RunError::Failed { message: message.to_owned(), internal: shortened(&format!("{error:#}")) }
}

/// Classifies an error of a run. Operators end a run because of the values they got; what they do not implement is a failure
/// of the engine.
pub(super) fn run_error(error: &TractError) -> RunError {
    let message = shortened(&format!("{error:#}"));
    if let Some(reason) = unequal_dimensions(&message) {
        return RunError::Refused(format!("{REFUSED}: {reason}"));
    }
    let is_missing = ["not implemented", "unimplemented", "Undetermined symbol"].iter().any(|w| message.contains(w));
    match message.split_once("Evaluating #") {
        Some((_, at)) if !is_missing => {
            // `3 "lookup" Gather: …`; the number means nothing outside the engine.
            let at = at.split_once(' ').map_or(at, |(_, rest)| rest);
            RunError::Refused(format!("{REFUSED}: its node {at}"))
        }
        _ => RunError::Failed { message: "the model failed on this request".to_owned(), internal: message },
    }
}

/// Classifies a panic inside a run. Rust panics on a wrong index, on a division by zero and on an overflow, all of which
/// follow from the values of the request. Other panics are bugs of the engine.
pub(super) fn panicked(panic: &str) -> RunError {
    let reason = if panic.contains("attempt to divide") || panic.contains("attempt to calculate the remainder") {
        "an integer division in it divides by zero, or divides the smallest integer by -1"
    } else if ["out of bounds", "out of range", "OutOfBounds"].iter().any(|words| panic.contains(words)) {
        "an index in it is out of range"
    } else if panic.contains("capacity overflow") || panic.contains("with overflow") {
        "a size in it is too large"
    } else {
        let message =
            if panic.contains("failed to allocate") { OUT_OF_MEMORY } else { "the engine panicked on this request" };
        return RunError::Failed { message: message.to_owned(), internal: format!("panic in tract: {panic}") };
    };
    RunError::Refused(format!("{REFUSED}: {reason}"))
}

/// `Clashing resolution for expression. batch=3 != 2. …`: dimensions that are one symbol in the model have two extents.
fn unequal_dimensions(message: &str) -> Option<String> {
    let (_, rest) = message.split_once("Clashing resolution for expression. ")?;
    let (name, rest) = rest.split_once('=')?;
    let (one, rest) = rest.split_once(" != ")?;
    let other: String = rest.chars().take_while(char::is_ascii_digit).collect();
    let what = if name == "batch" { "the first dimensions".to_owned() } else { format!("the dimensions {name}") };
    Some(format!("{what} of its inputs must be equal and are {one} and {other}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_are_told_apart() {
        let cases = [
            ("attempt to divide by zero", Some("divides by zero")),
            ("attempt to calculate the remainder with overflow", Some("divides by zero")),
            ("index out of bounds: the len is 3 but the index is 7", Some("an index in it is out of range")),
            ("range end index 9 out of range for slice of length 3", Some("an index in it is out of range")),
            ("attempt to multiply with overflow", Some("a size in it is too large")),
            ("capacity overflow", Some("a size in it is too large")),
            ("called `Option::unwrap()` on a `None` value", None),
            ("failed to allocate Layout { size: 9007199254740992, align: 64 }", None),
        ];
        for (panic, refused) in cases {
            match (panicked(panic), refused) {
                (RunError::Refused(reason), Some(words)) => assert!(reason.contains(words), "{panic}: {reason}"),
                (RunError::Failed { message, .. }, None) => assert!(!message.contains(panic), "{message}"),
                (other, _) => panic!("{panic}: {other:?}"),
            }
        }
    }
}
