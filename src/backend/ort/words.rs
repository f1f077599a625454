//! ONNX Runtime's error messages, made fit to read.
//!
//! They carry source files, C++ signatures and the model's path:
//! `/onnxruntime_src/onnxruntime/core/…/element_wise_ops.h:563 void onnxruntime::BroadcastIterator::Init(ptrdiff_t,
//! ptrdiff_t) axis == 1 || … was false. Attempting to broadcast …`.

use super::trap::Trapped;
use crate::backend::{LoadError, RunError};
use ort::{Error, ErrorCode};
use std::path::Path;

/// What a failed load means.
pub fn load_error(error: &Error, dir: &Path) -> LoadError {
    let message = error.message();
    if message.contains("bad_alloc") || message.contains("Failed to allocate memory") {
        return LoadError::Memory("not enough memory to load the model".to_owned());
    }
    let words = message.trim().replace(&format!("{}/", dir.display()), "");
    let words = strip_load_prefix(&words);
    let words = without_source(words);
    LoadError::Unsupported(match explain(&words) {
        Some(better) => better,
        None => format!("ONNX Runtime cannot load the model: {words}"),
    })
}

/// What a failed run means: the caller's to mend where the engine says that a value is wrong, else the engine's
/// failure.
pub fn run_error(error: &Error) -> RunError {
    let message = error.message();
    let (node, status) = node_and_status(message);
    let words = without_source(status);
    let said = match &node {
        Some(node) => format!("{node}: {words}"),
        None => words,
    };
    let division = status.contains("division by zero") || status.contains("modulo by zero");
    if error.code() == ErrorCode::InvalidArgument || division {
        return RunError::Refused(format!("the model cannot take these values: {said}"));
    }
    let message = match node {
        Some(node) => format!("the model failed at {node}"),
        None => "the model failed on this request".to_owned(),
    };
    RunError::Failed { message, internal: error.message().trim().to_owned() }
}

pub fn trapped_run(_: Trapped) -> RunError {
    RunError::Refused(
        "the model cannot take these values: an integer division in it divides by zero, or the smallest integer by -1"
            .to_owned(),
    )
}

pub fn trapped_load(_: Trapped) -> LoadError {
    LoadError::Unsupported(
        "an integer division among the model's constants divides by zero, or the smallest integer by -1".to_owned(),
    )
}

/// `Load model from PATH failed:`, of which the path is nobody's business.
fn strip_load_prefix(message: &str) -> &str {
    match message.strip_prefix("Load model from ").and_then(|rest| rest.split_once(" failed:")) {
        Some((_, rest)) => rest.trim_start(),
        None => message,
    }
}

/// The messages people meet most, with what would help.
fn explain(words: &str) -> Option<String> {
    if let Some(found) = between(words, "model IR version: ", ",") {
        let most = words.rsplit(' ').next().unwrap_or_default();
        return Some(format!(
            "the model's IR version is {found}, and this ONNX Runtime reads up to {most}: install a newer one, or export with \
             an older onnx package"
        ));
    }
    if let Some(found) = between(words, "Opset ", " is under development") {
        let (domain, most) = words.rsplit_once("support for domain ")?.1.split_once(" is till opset ")?;
        return Some(format!(
            "the model needs opset {found} of {domain}, and this ONNX Runtime supports up to {}: install a newer one, or export \
             with an older opset",
            most.trim_end_matches('.')
        ));
    }
    if let Some(rest) = words.rsplit_once("No Op registered for ").map(|(_, rest)| rest) {
        let (name, version) = rest.split_once(" with domain_version of ")?;
        return Some(format!(
            "ONNX Runtime has no operator {name} in opset {version}: a newer opset or library may have it, or it is custom; \
             export the model without it"
        ));
    }
    if let Some(name) = between(words, "Fatal error: ", " is not a registered function/op") {
        return Some(format!(
            "the model uses the custom operator {}, which ONNX Runtime does not have: export the model without it",
            name.trim_end_matches("(-1)")
        ));
    }
    if let Some(locale) = between(words, "Failed to construct locale with name:", ":") {
        return Some(format!(
            "the model's StringNormalizer needs the locale {locale}, which this machine does not have: install it (Debian and \
             Ubuntu: the package locales-all), or export with locale=\"C\""
        ));
    }
    if words.contains("Could not find an implementation for ") {
        let operator = between(words, "Could not find an implementation for ", " node").unwrap_or("an operator");
        return Some(format!(
            "ONNX Runtime has no CPU implementation of {operator} for these types: export the model with others ({words})"
        ));
    }
    None
}

/// Splits `Non-zero status code returned while running Div node. Name:'d0' Status Message: …` into `Div "d0"` and the
/// rest.
fn node_and_status(message: &str) -> (Option<String>, &str) {
    let Some((_, rest)) = message.split_once("while running ") else { return (None, message) };
    let Some((operator, rest)) = rest.split_once(" node. Name:'") else { return (None, message) };
    let Some((name, status)) = rest.split_once("' Status Message: ") else { return (None, message) };
    let node = if name.is_empty() { format!("its {operator} node") } else { format!("its {operator} node {name:?}") };
    (Some(node), status)
}

/// Takes out what points into the engine's source: a file and line, and the signature that follows it.
fn without_source(message: &str) -> String {
    let message = message.trim();
    let Some(extension) = [".cc:", ".h:"].iter().filter_map(|e| message.find(e).map(|at| at + e.len())).min() else {
        return message.to_owned();
    };
    let start = message[..extension].rfind(char::is_whitespace).map_or(0, |at| at + 1);
    let after = message[extension..].trim_start_matches(|c: char| c.is_ascii_digit()).trim_start();
    // With the full path comes a signature, which ends at its closing parenthesis; a bare file name is followed by
    // one word.
    let rest = if message[start..].starts_with('/') {
        skip_signature(after)
    } else {
        after.split_once(' ').map_or("", |(_, rest)| rest)
    };
    // The condition that failed stands before the words that explain it.
    let rest = rest.split_once(" was false. ").map_or(rest, |(_, words)| words);
    let kept = format!("{}{}", &message[..start], rest.trim());
    if kept.trim().is_empty() || kept.contains(".cc:") || kept.contains(".h:") {
        return "the engine gave no words fit to repeat".to_owned();
    }
    kept.trim().to_owned()
}

/// What stands behind `type Class::function(arguments) const`.
fn skip_signature(text: &str) -> &str {
    let mut depth = 0usize;
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' if depth > 0 => {
                depth -= 1;
                let rest = text[at + 1..].trim_start();
                if depth == 0 && !rest.starts_with("::") && !rest.starts_with('(') {
                    return rest.strip_prefix("const ").unwrap_or(rest);
                }
            }
            _ => {}
        }
    }
    text
}

fn between<'t>(text: &'t str, before: &str, after: &str) -> Option<&'t str> {
    Some(text.split_once(before)?.1.split_once(after)?.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_files_and_signatures_are_left_out() {
        let cases = [
            (
                "/onnxruntime_src/onnxruntime/core/providers/cpu/math/element_wise_ops.h:563 void \
                 onnxruntime::BroadcastIterator::Init(ptrdiff_t, ptrdiff_t) axis == 1 || axis == largest was false. Attempting \
                 to broadcast an axis by a dimension other than 1. 2 by 4\n",
                "Attempting to broadcast an axis by a dimension other than 1. 2 by 4",
            ),
            ("element_wise_ops.cc:692 Compute Integer division by zero", "Integer division by zero"),
            ("matmul_helper.h:59 Compute MatMul dimension mismatch", "MatMul dimension mismatch"),
            (
                "indices element out of data bounds, idx=7 must be within the inclusive range [-4,3]",
                "indices element out of data bounds, idx=7 must be within the inclusive range [-4,3]",
            ),
            (
                "/onnxruntime_src/onnxruntime/core/framework/op.cc:9 onnxruntime::F::operator()(int, std::function<void(int)>) \
                 const shape is wrong",
                "shape is wrong",
            ),
            ("/onnxruntime_src/a.cc:1 f(/b/c.h:2)", "the engine gave no words fit to repeat"),
        ];
        for (message, expected) in cases {
            assert_eq!(without_source(message), expected);
        }
    }

    #[test]
    fn nodes_are_named() {
        let message =
            "Non-zero status code returned while running Div node. Name:'d0' Status Message: x.cc:1 Compute words";
        assert_eq!(node_and_status(message), (Some("its Div node \"d0\"".to_owned()), "x.cc:1 Compute words"));
        assert_eq!(node_and_status("other"), (None, "other"));
    }

    #[test]
    fn the_messages_people_meet_most_say_what_would_help() {
        let ir = "Unsupported model IR version: 99, max supported IR version: 13";
        assert!(
            explain(ir).unwrap().starts_with("the model's IR version is 99, and this ONNX Runtime reads up to 13:")
        );
        let opset = "ONNX Runtime only *guarantees* support for models stamped with official released onnx opset versions. Opset \
                     99 is under development and support for this is limited. … Current official support for domain ai.onnx is \
                     till opset 26.";
        assert!(
            explain(opset)
                .unwrap()
                .starts_with("the model needs opset 99 of ai.onnx, and this ONNX Runtime supports up to 26:")
        );
        let operator = "This is an invalid model. In Node, (\"n1\", Frobnicate, \"\", -1) : … , Error No Op registered for \
                        Frobnicate with domain_version of 18";
        assert!(explain(operator).unwrap().starts_with("ONNX Runtime has no operator Frobnicate in opset 18:"));
        assert_eq!(explain("anything else"), None);
    }
}
