//! What engines refuse, and the messages.

use super::*;
use crate::backend::{EngineChoice, Engines, LoadError};

fn refusal(engine: &dyn Backend, files: &VersionFiles) -> LoadError {
    match engine.load(files) {
        Ok(_) => panic!("{} loads {}", engine.name(), files.dir.display()),
        Err(error) => error,
    }
}

#[test]
fn models_that_cannot_be_served_are_refused_with_helpful_messages() {
    // The model, the message of ONNX Runtime, and that of tract: empty if it is the same, "-" if tract loads the model.
    let cases = [
        (
            "zipmap",
            "output \"probabilities\" is a sequence of maps, not a tensor; scikit-learn's classifiers give tensors when exported with zipmap=False",
            "",
        ),
        ("sequence", "output \"y\" is a sequence, not a tensor", ""),
        ("bfloat16", "input \"x\" has element type BFLOAT16", ""),
        ("complex", "input \"x\" has element type COMPLEX64", ""),
        (
            "future_opset",
            "the model needs opset 99 of ai.onnx, and this ONNX Runtime supports up to",
            "the model needs opset 99 of ai.onnx, which is newer than tract",
        ),
        ("future_ir", "the model's IR version is 99, and this ONNX Runtime reads up to", "-"),
        ("unknown_operator", "ONNX Runtime has no operator Frobnicate in opset 17", "has no operator Frobnicate"),
        ("custom_operator", "the custom operator my.company:Frobnicate", "has no operator my.company:Frobnicate"),
        ("dangling", "Node input 'nothing' is not a graph input", "nothing in the model computes"),
        (
            "weights_missing",
            "the weight file \"gone.bin\", which holds tensor \"w\", cannot be read beside model.onnx",
            "",
        ),
        ("weights_outside", "is not a file inside the version's directory", ""),
    ];
    for engine in engines() {
        for (name, ort, tract) in cases {
            let words = match (engine.name(), tract) {
                (Tract::NAME, "-") => continue,
                (Tract::NAME, tract) if !tract.is_empty() => tract,
                _ => ort,
            };
            let files = fixture("refused", name);
            let error = refusal(&*engine, &files);
            let said = error.to_string();
            assert!(said.contains(words), "{} on {name} says: {said}", engine.name());
            assert!(!said.contains(env!("CARGO_MANIFEST_DIR")), "{name}: a path in {said}");
            assert!(!said.contains(".cc:") && !said.contains("onnxruntime::"), "{name}: C++ in {said}");
            assert!(!error.is_worth_retrying(), "{name}: the same bytes give the same answer");
        }
    }
}

#[test]
fn files_of_other_formats_are_recognised() {
    let whole = std::fs::read(fixture("models", "mlp").model()).unwrap();
    let cases: [(&[u8], &str); 12] = [
        (b"", "model.onnx is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
        (b"<!DOCTYPE html><html>404</html>", "a web page"),
        (b"PK\x03\x04rest", "a zip archive"),
        (b"\x89HDF\r\n", "an HDF5 file"),
        (b"\x80\x04\x95", "a Python pickle"),
        (b"\x1f\x8b\x08", "compressed with gzip"),
        (b"\x1c\0\0\0TFL3", "a TensorFlow Lite model"),
        (b"\x1c\0\0\0ORTM", "ORT format"),
        (b"hello world", "not an ONNX model"),
        (&whole[..whole.len() / 2], "was truncated after"),
        // A well-formed message without a graph.
        (b"\x08\x08", "holds no graph with an output"),
    ];
    for engine in engines() {
        for (bytes, words) in &cases {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join("model.onnx"), bytes).unwrap();
            let error = refusal(&*engine, &VersionFiles::of(dir.path()));
            assert!(matches!(error, LoadError::Invalid(_)), "{error:?}");
            assert!(error.to_string().contains(words), "{words:?} expected of {error}");
        }
        let empty = tempfile::tempdir().unwrap();
        let error = refusal(&*engine, &VersionFiles::of(empty.path()));
        assert_eq!(error.to_string(), "model.onnx is missing");
    }
}

#[test]
fn weight_files_have_to_be_regular_files_inside_the_directory_of_the_version() {
    let from = fixture("models", "mlp_external").dir;
    let elsewhere = tempfile::tempdir().unwrap();
    std::fs::copy(from.join("weights.bin"), elsewhere.path().join("weights.bin")).unwrap();
    for engine in engines() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::copy(from.join("model.onnx"), dir.path().join("model.onnx")).unwrap();
        let weights = dir.path().join("weights.bin");
        let error = || refusal(&*engine, &VersionFiles::of(dir.path()));

        std::os::unix::fs::symlink(elsewhere.path().join("weights.bin"), &weights).unwrap();
        let outside = error();
        assert!(matches!(outside, LoadError::Invalid(_)), "{outside:?}");
        assert!(outside.to_string().contains("is a link to a file outside of the version's directory"), "{outside}");
        assert!(!outside.to_string().contains(elsewhere.path().to_str().unwrap()), "a path in {outside}");

        // A link within the directory is fine, also when the directory itself is reached over a link.
        std::fs::remove_file(&weights).unwrap();
        std::fs::copy(from.join("weights.bin"), dir.path().join("real.bin")).unwrap();
        std::os::unix::fs::symlink("real.bin", &weights).unwrap();
        load(&*engine, dir.path());
        let link = elsewhere.path().join(engine.name());
        std::os::unix::fs::symlink(dir.path(), &link).unwrap();
        load(&*engine, &link);

        // Opening a named pipe would block the loader for ever.
        for name in ["weights.bin", "model.onnx"] {
            let path = dir.path().join(name);
            std::fs::remove_file(&path).unwrap();
            rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
            let pipe = error();
            assert!(pipe.to_string().contains("is not a regular file"), "{pipe}");
        }
    }
}

#[test]
fn weight_files_are_checked_wherever_the_model_names_them() {
    let whole = generated::external_tensors("../secret.bin");
    for engine in engines() {
        for (place, model) in &whole {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join("model.onnx"), model).unwrap();
            let error = refusal(&*engine, &VersionFiles::of(dir.path()));
            assert!(error.to_string().contains("\"../secret.bin\", which is not a file inside"), "{place}: {error}");
        }
    }
}

#[test]
fn no_prefix_of_a_model_is_loaded_or_crashes() {
    let whole = std::fs::read(fixture("models", "several").model()).unwrap();
    for engine in engines() {
        let dir = tempfile::tempdir().unwrap();
        for length in 0..whole.len() {
            std::fs::write(dir.path().join("model.onnx"), &whole[..length]).unwrap();
            // Without its last field the file may still be a valid model.
            let loaded = engine.load(&VersionFiles::of(dir.path()));
            assert!(
                loaded.is_err() || length > whole.len() - 16,
                "{} loads {length} bytes of {}",
                engine.name(),
                whole.len()
            );
        }
    }
}

#[test]
fn a_division_that_traps_fails_one_run_only() {
    for engine in engines() {
        for (model, least) in [
            ("div_int64", i64::MIN),
            ("mod_int64", i64::MIN),
            ("div_int32", i64::from(i32::MIN)),
            ("mod_int32", i64::from(i32::MIN)),
        ] {
            let model = load(&*engine, &fixture("models", model).dir);
            let input = |v: &[i64]| {
                if model.signature().inputs()[0].datatype == crate::tensor::DataType::Int64 {
                    ints(v)
                } else {
                    let narrow: Vec<i32> = v.iter().map(|v| i32::try_from(*v).unwrap()).collect();
                    tensor(&[v.len()], Data::Int32(narrow.into()))
                }
            };
            let divide = |a: &[i64], b: &[i64]| run(&model, &[("a", input(a)), ("b", input(b))], None);
            for (a, b) in [([8, 8], [3, 0]), ([8, least], [2, -1]), ([least, least], [-1, -1])] {
                match divide(&a, &b) {
                    Err(RunError::Refused(words)) => {
                        assert!(words.contains("division") || words.contains("modulo"), "{words}");
                    }
                    // Without a trap (AArch64, or an operator that checks) overflow wraps, as in ONNX Runtime's narrow
                    // types.
                    Ok(_) if !b.contains(&0) => {}
                    other => panic!("{} on {a:?} / {b:?}: {other:?}", engine.name()),
                }
            }
            assert!(divide(&[8, 7], &[3, -2]).is_ok(), "{}: the next run succeeds", engine.name());
        }
    }
}

#[test]
fn divisions_in_branches_functions_and_constants_are_covered() {
    let Some(engine) = onnxruntime() else { return };
    let (least, minus) = (ints(&[i64::MIN, 4]), ints(&[-1, 2]));
    let traps = cfg!(target_arch = "x86_64");
    let model = load(&*engine, &fixture("models", "div_in_branch").dir);
    let divide = |divide: bool| {
        let choice = tensor(&[], Data::Bool(vec![divide]));
        run(&model, &[("divide", choice), ("a", least.clone()), ("b", minus.clone())], None)
    };
    assert!(!traps || matches!(divide(true), Err(RunError::Refused(_))));
    assert!(divide(false).is_ok());
    let model = load(&*engine, &fixture("models", "div_in_function").dir);
    let divide = |a: &Tensor, b: &Tensor| run(&model, &[("a", a.clone()), ("b", b.clone())], None);
    assert!(!traps || matches!(divide(&least, &minus), Err(RunError::Refused(_))));
    assert!(divide(&minus, &minus).is_ok());
    let loaded = engine.load(&fixture("refused", "div_in_constants"));
    assert!(!traps || matches!(loaded, Err(LoadError::Unsupported(_))), "{loaded:?}");
}

#[test]
fn a_refusal_names_the_node_and_the_reason() {
    let Some(engine) = onnxruntime() else { return };
    let model = load(&*engine, &fixture("models", "undeclared_output").dir);
    match run(&model, &[("i", ints(&[9]))], None) {
        Err(RunError::Refused(reason)) => {
            assert!(reason.starts_with("the model cannot take these values: its Gather node \"lookup\": "), "{reason}");
            assert!(reason.contains("idx=9"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    // Fits the signature, as both first dimensions are free and have no name.
    let model = load(&*engine, &fixture("models", "several").dir);
    match run(&model, &[("a", floats(&[2, 2], &[0.; 4])), ("b", floats(&[3, 1], &[0.; 3]))], None) {
        Err(RunError::Refused(reason)) => assert_eq!(
            reason,
            "the model cannot take these values: its Concat node: Non concat axis dimensions must match: Axis 0 has \
             mismatched dimensions of 3 and 2"
        ),
        other => panic!("{other:?}"),
    }
}

#[test]
fn auto_uses_an_engine_that_runs_the_model_or_says_why_none_does() {
    let tract_only = Engines::without_onnxruntime();
    let loaded = tract_only.load(EngineChoice::Auto, &fixture("models", "mlp")).unwrap();
    assert_eq!(loaded.engine(), Tract::NAME);
    let error = tract_only.load(EngineChoice::Auto, &fixture("models", "scaler")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "tract 0.23.9 has no operator ai.onnx.ml:Scaler; ONNX Runtime, which runs more models, is not available: `make ort` \
         downloads ONNX Runtime's library; ORT_DYLIB_PATH names an installed one"
    );
    let error = tract_only.load(EngineChoice::OnnxRuntime, &fixture("models", "mlp")).unwrap_err();
    assert!(matches!(error, LoadError::NoEngine(_)), "{error}");

    let engines = Engines::discover(None);
    let names: Vec<_> = engines.describe().iter().map(|info| info.name).collect();
    assert_eq!(names, [OnnxRuntime::NAME, Tract::NAME], "in the order in which auto tries them");
    if onnxruntime().is_some() {
        let engine = |choice, model| engines.load(choice, &fixture("models", model)).unwrap().engine();
        assert_eq!(engine(EngineChoice::Auto, "scaler"), OnnxRuntime::NAME);
        assert_eq!(engine(EngineChoice::Tract, "mlp"), Tract::NAME);
        let error = engines.load(EngineChoice::Auto, &fixture("refused", "zipmap")).unwrap_err().to_string();
        assert_eq!(
            error.matches("is a sequence of maps").count(),
            1,
            "a reason of both engines is given once: {error}"
        );
        // ONNX Runtime refuses this IR version, tract does not.
        let model = engines.load(EngineChoice::Auto, &fixture("refused", "future_ir")).unwrap();
        assert_eq!(model.engine(), Tract::NAME);
        let error = engines.load(EngineChoice::Auto, &fixture("refused", "unknown_operator")).unwrap_err().to_string();
        assert!(
            error.contains("ONNX Runtime has no operator Frobnicate") && error.contains("tract 0.23.9 has no operator")
        );
        let error =
            engines.load(EngineChoice::OnnxRuntime, &fixture("refused", "unknown_operator")).unwrap_err().to_string();
        assert!(!error.contains("tract"), "the error is that of the chosen engine alone: {error}");
    }
}
