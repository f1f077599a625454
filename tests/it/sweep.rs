//! Legal and strange inputs to single operators do not end the server, and have the same answers over HTTP and gRPC (see tests/python/sweep.py). `make sweep` tries all operators.

use std::path::Path;
use std::process::Command;

#[test]
fn strange_inputs_to_operators_are_answered() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python =
        std::env::var("SLUICEGATE_TEST_PYTHON").unwrap_or_else(|_| root.join(".venv/bin/python").display().to_string());
    let library =
        std::env::var("ORT_DYLIB_PATH").unwrap_or_else(|_| root.join(".ort/libonnxruntime.so").display().to_string());
    let output = Command::new(&python)
        .arg(root.join("tests/python/sweep.py"))
        .args(["--binary", env!("CARGO_BIN_EXE_sluicegate")])
        .args(["--operators", "short", "--cases-per-operator", "2", "--requests-per-case", "8"])
        .env("ORT_DYLIB_PATH", library)
        .output()
        .unwrap_or_else(|e| panic!("{python} does not run (`make venv` creates it): {e}"));
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("0 faults") && text.contains(" 0 differences"), "{text}");
}
