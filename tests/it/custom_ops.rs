//! Libraries with custom operators, and execution providers by name (docs/ENGINES.md).

use crate::support::process::Served;
use crate::support::{infer_body, library, onnx};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

fn compile(dir: &Path, name: &str, flags: &[&str]) {
    library::compile("twice.c", &dir.join(name), flags);
}

fn install(models: &Path, name: &str, bytes: &[u8], engine: &str) {
    onnx::install(models, name, 1, bytes);
    std::fs::write(models.join(name).join("model.toml"), format!("[engine]\n{engine}\n")).unwrap();
}

fn reason(served: &Served, model: &str) -> String {
    served.wait_state(model, 1, "failed");
    let version = served.admin_get(&format!("/api/v1/models/{model}/versions/1"));
    serde_json::from_str::<Value>(&version).unwrap()["reason"].as_str().unwrap().to_owned()
}

fn infer(served: &Served, model: &str) -> Value {
    let url = format!("http://{}/v2/models/{model}/infer", served.data);
    let mut answer = ureq::post(&url).send(infer_body(&[2, 2], &[1.0, 2.0, 3.0, -4.0])).unwrap();
    serde_json::from_str(&answer.body_mut().read_to_string().unwrap()).unwrap()
}

#[test]
fn a_model_uses_the_libraries_of_the_allowed_directory_and_no_others() {
    let dir = tempfile::tempdir().unwrap();
    let (models, ops) = (dir.path().join("models"), dir.path().join("ops"));
    compile(&ops, "libtwice.so", &[]);
    compile(&ops, "libcrashes.so", &["-DCRASHES"]);
    std::fs::write(ops.join("libtext.so"), "no library").unwrap();
    std::os::unix::fs::symlink("/proc/self/exe", ops.join("libout.so")).unwrap();
    install(&models, "good", &onnx::twice(), "custom_ops = [\"libtwice.so\"]\nproviders = [\"cuda\", \"cpu\"]");
    install(&models, "crashes", &onnx::twice(), "custom_ops = [\"libtwice.so\", \"libcrashes.so\"]");
    install(&models, "text", &onnx::twice(), "custom_ops = [\"libtext.so\"]");
    install(&models, "leads-out", &onnx::twice(), "custom_ops = [\"libout.so\"]");
    install(&models, "without", &onnx::twice(), "name = \"onnxruntime\"");
    install(&models, "tract", &onnx::scaling(2.0), "name = \"tract\"\ncustom_ops = [\"libtwice.so\"]");
    install(&models, "accelerated", &onnx::scaling(2.0), "name = \"onnxruntime\"\nproviders = [\"cuda\"]");
    install(&models, "path", &onnx::twice(), "custom_ops = [\"../ops/libtwice.so\"]");
    let served = Served::start_with(
        dir.path(),
        &[("SLUICEGATE__ENGINES__CUSTOM_OPS_DIR", ops.to_str().unwrap()), ("SLUICEGATE__MODELS__LOAD_THREADS", "2")],
    );
    served.wait_state("good", 1, "serving");
    assert_eq!(infer(&served, "good")["outputs"][0]["data"], serde_json::json!([2.0, 4.0, 6.0, -8.0]));
    for (model, words) in [
        ("crashes", "SIGABRT"),
        ("text", "libtext.so"),
        ("leads-out", "leads out of engines.custom_ops_dir"),
        ("without", "Twice"),
        ("tract", "tract cannot load libraries with custom operators"),
        ("accelerated", "has cpu"),
        ("path", "a list of up to 16 file names without a directory"),
    ] {
        let reason = reason(&served, model);
        assert!(reason.contains(words), "{model}: {reason}");
    }
    assert_eq!(infer(&served, "good")["outputs"][0]["data"][0], 2.0, "it still answers");
}

#[test]
fn without_the_directory_no_model_may_name_a_library() {
    let dir = tempfile::tempdir().unwrap();
    let models = dir.path().join("models");
    install(&models, "good", &onnx::twice(), "custom_ops = [\"libtwice.so\"]");
    // Beside the model it is not looked for.
    compile(&models.join("good/1"), "libtwice.so", &[]);
    let served = Served::start(dir.path());
    let reason = reason(&served, "good");
    assert!(reason.contains("engines.custom_ops_dir") && reason.contains("native code"), "{reason}");
}

/// `onnxruntime-extensions` from `PyPI`, where libpython is installed.
#[test]
fn a_tokenizer_turns_text_into_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python =
        std::env::var("SLUICEGATE_TEST_PYTHON").unwrap_or_else(|_| root.join(".venv/bin/python").display().to_string());
    let output = Command::new(&python)
        .arg(root.join("tests/python/tokenizer_model.py"))
        .arg(dir.path())
        .output()
        .unwrap_or_else(|e| panic!("{python} does not run (`make venv` creates it): {e}"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let libpython = String::from_utf8(output.stdout).unwrap().trim().to_owned();
    if libpython == "none" {
        eprintln!(
            "libpython is not installed (Debian package libpython3.11): the wheel's library cannot be loaded, and is not tested"
        );
        return;
    }
    let ops = dir.path().join("ops");
    let served = Served::start_with(
        dir.path(),
        &[("SLUICEGATE__ENGINES__CUSTOM_OPS_DIR", ops.to_str().unwrap()), ("LD_PRELOAD", &libpython)],
    );
    served.wait_state("tokens", 1, "serving");
    let url = format!("http://{}/v2/models/tokens/infer", served.data);
    let body = r#"{"inputs":[{"name":"text","shape":[1],"datatype":"BYTES","data":["Hello worlds"]}]}"#;
    let mut answer = ureq::post(&url).send(body).unwrap();
    let answer: Value = serde_json::from_str(&answer.body_mut().read_to_string().unwrap()).unwrap();
    let ids = answer["outputs"].as_array().unwrap().iter().find(|output| output["name"] == "ids").unwrap();
    assert_eq!(ids["data"], serde_json::json!([2, 4, 5, 6, 3]), "[CLS] hello world ##s [SEP]: {answer}");
}
