//! Turns ONNX Runtime's errors into [`LoadError`] and [`RunError`], with readable messages.
//!
//! The engine's messages contain source files, C++ signatures and the path of the model:
//! `/onnxruntime_src/onnxruntime/core/…/element_wise_ops.h:563 void onnxruntime::BroadcastIterator::Init(ptrdiff_t,
//! ptrdiff_t) axis == 1 || … was false. Attempting to broadcast …`.

use super::trap::Trapped;
use crate::backend::{LoadError, OUT_OF_MEMORY, RunError};
use ort::{Error, ErrorCode};
use std::path::Path;

/// Stands for a reason that cannot be shown, because it consists of C++ or a path.
const NO_REASON: &str = "the engine gives no readable reason";

/// Classifies an error of a load.
pub(super) fn load_error(error: &Error, dir: &Path) -> LoadError {
    let message = error.message();
    if is_out_of_memory(message) {
        return LoadError::Memory("not enough memory to load the model".to_owned());
    }
    let message = message.trim().replace(&format!("{}/", dir.display()), "");
    let reason = readable(strip_load_prefix(&message));
    LoadError::Unsupported(match explain(&reason) {
        Some(better) => better,
        None => format!("ONNX Runtime cannot load the model: {reason}"),
    })
}

/// Why a library with custom operators cannot be loaded, by its name: its path is not for everybody who reads the reason.
pub(super) fn library_error<T>(error: &Error<T>, file: &Path) -> Error {
    const MOST: usize = 500;
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let message = error.message().replace(&*file.to_string_lossy(), &name);
    let reason = message.rsplit_once("with error: ").map_or(&*message, |(_, reason)| reason).trim();
    let reason = &reason[..reason.floor_char_boundary(MOST)];
    Error::new(format!("the library {name} with custom operators cannot be loaded: {reason}"))
}

/// Classifies an error of a run.
pub(super) fn run_error(error: &Error) -> RunError {
    classify(error.code(), error.message().trim())
}

/// A run that an operator ended because of the values it got is the caller's to correct. Everything else is a failure of
/// the engine.
///
/// ONNX Runtime has no error code for "these values are wrong": operators report it as `INVALID_ARGUMENT`, `FAIL` or
/// `RUNTIME_EXCEPTION` (a C++ exception, such as a failed `ORT_ENFORCE`), depending on who wrote them. What tells them
/// apart is where the error comes from: the message names the node that was running. A missing implementation has a code
/// of its own, and missing memory is recognised by its message.
fn classify(code: ErrorCode, message: &str) -> RunError {
    let failed = |message: String, internal: &str| RunError::Failed { message, internal: internal.to_owned() };
    if is_out_of_memory(message) {
        return failed(OUT_OF_MEMORY.to_owned(), message);
    }
    let (node, status) = node_and_status(message);
    let is_values = match code {
        ErrorCode::InvalidArgument => true,
        ErrorCode::GenericFailure | ErrorCode::RuntimeException => node.is_some(),
        _ => false,
    };
    match (node, is_values) {
        (Some(node), true) => RunError::Refused(format!("{REFUSED}: {node}: {}", readable(status))),
        (None, true) => RunError::Refused(format!("{REFUSED}: {}", readable(status))),
        (Some(node), false) => failed(format!("the model failed at {node}"), message),
        (None, false) => failed("the model failed on this request".to_owned(), message),
    }
}

const REFUSED: &str = "the model cannot take these values";

pub(super) fn trapped_run(_: Trapped) -> RunError {
    RunError::Refused(format!(
        "{REFUSED}: an integer division in it divides by zero, or divides the smallest integer by -1"
    ))
}

pub(super) fn trapped_load(_: Trapped) -> LoadError {
    LoadError::Unsupported(
        "an integer division among the model's constants divides by zero, or divides the smallest integer by -1"
            .to_owned(),
    )
}

fn is_out_of_memory(message: &str) -> bool {
    ["bad_alloc", "bad allocation", "Failed to allocate memory"].iter().any(|words| message.contains(words))
}

/// Removes `Load model from PATH failed:`: the path is not for callers.
fn strip_load_prefix(message: &str) -> &str {
    match message.strip_prefix("Load model from ").and_then(|rest| rest.split_once(" failed:")) {
        Some((_, rest)) => rest.trim_start(),
        None => message,
    }
}

/// The most frequent messages, with what to do about them.
fn explain(reason: &str) -> Option<String> {
    if let Some(found) = between(reason, "model IR version: ", ",") {
        let most = reason.rsplit(' ').next().unwrap_or_default();
        return Some(format!(
            "the model's IR version is {found}, and this ONNX Runtime reads up to {most}: install a newer one, or export with \
             an older onnx package"
        ));
    }
    if let Some(found) = between(reason, "Opset ", " is under development") {
        let (domain, most) = reason.rsplit_once("support for domain ")?.1.split_once(" is till opset ")?;
        return Some(format!(
            "the model needs opset {found} of {domain}, and this ONNX Runtime supports up to {}: install a newer one, or export \
             with an older opset",
            most.trim_end_matches('.')
        ));
    }
    if let Some(rest) = reason.rsplit_once("No Op registered for ").map(|(_, rest)| rest) {
        let (name, version) = rest.split_once(" with domain_version of ")?;
        return Some(format!(
            "ONNX Runtime has no operator {name} in opset {version}: a newer opset or library may have it, or it is custom; \
             export the model without it"
        ));
    }
    if let Some(name) = between(reason, "Fatal error: ", " is not a registered function/op") {
        return Some(format!(
            "the model uses the custom operator {}, which ONNX Runtime does not have: export the model without it",
            name.trim_end_matches("(-1)")
        ));
    }
    if let Some(locale) = between(reason, "Failed to construct locale with name:", ":") {
        return Some(format!(
            "the model's StringNormalizer needs the locale {locale}, which this machine does not have: install it (Debian and \
             Ubuntu: the package locales-all), or export with locale=\"C\""
        ));
    }
    if reason.contains("Could not find an implementation for ") {
        let operator = between(reason, "Could not find an implementation for ", " node").unwrap_or("an operator");
        return Some(format!(
            "ONNX Runtime has no CPU implementation of {operator} for these types: export the model with others ({reason})"
        ));
    }
    None
}

/// Splits `Non-zero status code returned while running Div node. Name:'d0' Status Message: …` into `its Div node "d0"`
/// and the rest. Errors inside a branch or a loop name every node on the way; the innermost one is returned.
fn node_and_status(message: &str) -> (Option<String>, &str) {
    let (mut node, mut status) = (None, message);
    while let Some((found, rest)) = outer_node(status) {
        node = Some(found);
        status = rest;
    }
    (node, status)
}

fn outer_node(message: &str) -> Option<(String, &str)> {
    let (_, rest) = message.split_once("while running ")?;
    let (operator, rest) = rest.split_once(" node. Name:'")?;
    let (name, status) = rest.split_once("' Status Message: ")?;
    let node = if name.is_empty() { format!("its {operator} node") } else { format!("its {operator} node {name:?}") };
    Some((node, status))
}

/// The message without places in the engine's source.
fn readable(message: &str) -> String {
    // `std::stod` and its like throw exceptions that carry nothing but the function's name.
    if let "stof" | "stod" | "stoi" | "stol" | "stoul" | "stoll" | "stoull" = message.trim() {
        return "a string is not a number of the type needed".to_owned();
    }
    let mut text = message.trim().to_owned();
    while let Some(shorter) = without_location(&text) {
        text = shorter;
    }
    let text = without_status_prefix(&text);
    let is_path = |word: &str| word.starts_with('/') && word[1..].contains('/');
    let is_location = |word: &str| word.contains(".cc:") || word.contains(".h:");
    if text.is_empty() || text.split_whitespace().any(|word| is_path(word) || is_location(word)) {
        return NO_REASON.to_owned();
    }
    text.to_owned()
}

/// Removes the first source location and the C++ signature that follows it. `None` when there is none.
fn without_location(message: &str) -> Option<String> {
    let extension = [".cc:", ".h:"].iter().filter_map(|e| message.find(e).map(|at| at + e.len())).min()?;
    let start = message[..extension].rfind(char::is_whitespace).map_or(0, |at| at + 1);
    let after = message[extension..].trim_start_matches(|c: char| c.is_ascii_digit()).trim_start();
    // A full path is followed by a signature, a bare file name by the name of a function.
    let rest = if message[start..].starts_with('/') {
        skip_signature(after)
    } else {
        after.split_once(' ').map_or("", |(_, rest)| rest)
    };
    // The condition that failed stands before the sentence that explains it.
    let rest = rest.split_once(" was false. ").map_or(rest, |(_, sentence)| sentence);
    Some(format!("{}{}", &message[..start], rest.trim()).trim().to_owned())
}

/// Removes `[ONNXRuntimeError] : 1 : FAIL : `, which a status turned into an exception begins with.
fn without_status_prefix(message: &str) -> &str {
    let rest = message.strip_prefix("[ONNXRuntimeError] : ").and_then(|rest| rest.splitn(3, " : ").nth(2));
    rest.unwrap_or(message).trim()
}

/// The text after `type Class::function(arguments) const [with T = float]`.
fn skip_signature(text: &str) -> &str {
    let mut depth = 0usize;
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' if depth > 0 => {
                depth -= 1;
                let rest = text[at + 1..].trim_start();
                if depth == 0 && !rest.starts_with("::") && !rest.starts_with('(') {
                    let rest = rest.strip_prefix("const ").unwrap_or(rest);
                    let types = rest.strip_prefix("[with ").and_then(|types| types.split_once(']'));
                    return types.map_or(rest, |(_, rest)| rest.trim_start());
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
    fn source_files_and_signatures_are_removed() {
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
            (
                "/onnxruntime_src/onnxruntime/core/providers/cpu/tensor/gather_elements.cc:150 void onnxruntime::core_impl(const \
                 Tensor*, int64_t) [with Tin = long int; int64_t = long int] GatherElements op: Out of range value in index tensor",
                "GatherElements op: Out of range value in index tensor",
            ),
            (
                "/onnxruntime_src/onnxruntime/core/framework/op_kernel.cc:87 virtual OrtValue* onnxruntime::OpKernelContext::\
                 OutputMLValue(int, const onnxruntime::TensorShape&) [ONNXRuntimeError] : 1 : FAIL : tensor.cc:57 \
                 CalculateTensorStorageSize Tensor shape.Size() must be >= 0",
                "Tensor shape.Size() must be >= 0",
            ),
            ("stod", "a string is not a number of the type needed"),
            ("/onnxruntime_src/a.cc:1 f(/b/c.h:2)", NO_REASON),
            ("cannot open /srv/models/m/1/x.bin", NO_REASON),
            ("", NO_REASON),
        ];
        for (message, expected) in cases {
            assert_eq!(readable(message), expected, "{message}");
        }
    }

    #[test]
    fn the_innermost_node_is_named() {
        let message =
            "Non-zero status code returned while running Div node. Name:'d0' Status Message: x.cc:1 Compute words";
        assert_eq!(node_and_status(message), (Some("its Div node \"d0\"".to_owned()), "x.cc:1 Compute words"));
        let nested = format!("Non-zero status code returned while running If node. Name:'' Status Message: {message}");
        assert_eq!(node_and_status(&nested), node_and_status(message));
        assert_eq!(node_and_status("other"), (None, "other"));
    }

    #[test]
    fn only_errors_about_values_are_the_callers() {
        let node = "Non-zero status code returned while running TopK node. Name:'t' Status Message: k is too large";
        let bare = "k is too large";
        let memory = "Non-zero status code returned while running Expand node. Name:'e' Status Message: std::bad_alloc";
        let cases = [
            (ErrorCode::InvalidArgument, bare, true),
            (ErrorCode::InvalidArgument, node, true),
            (ErrorCode::GenericFailure, node, true),
            (ErrorCode::RuntimeException, node, true),
            (ErrorCode::RuntimeException, bare, false),
            (ErrorCode::GenericFailure, bare, false),
            (ErrorCode::NotImplemented, node, false),
            (ErrorCode::ExecutionProviderFailure, node, false),
            (ErrorCode::InvalidGraph, node, false),
            (ErrorCode::RuntimeException, memory, false),
            (ErrorCode::InvalidArgument, memory, false),
        ];
        for (code, message, is_callers) in cases {
            match classify(code, message) {
                RunError::Refused(reason) => {
                    assert!(is_callers && reason.ends_with("k is too large"), "{code:?}: {reason}");
                }
                RunError::Failed { message: shown, internal } => {
                    assert!(!is_callers && internal == message, "{code:?} {message}");
                    assert!(!shown.contains("bad_alloc"), "{shown}");
                }
                other => panic!("an error of the engine is refused or failed: {other:?} of {message}"),
            }
        }
    }

    #[test]
    fn frequent_messages_say_what_would_help() {
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
