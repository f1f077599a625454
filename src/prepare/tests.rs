use super::check::{check, read_model_toml};
use super::digest::model_sha256;
use super::failure::StageFailure;
use super::files;
use super::inputs;
use super::verify::verify;
use super::version_toml::VersionToml;
use super::warm::warm;
use crate::backend::fake::Fake;
use crate::backend::{Engines, OUT_OF_MEMORY, RunError};
use crate::execute::Runner;
use crate::model::{Dim, Signature, TensorSpec};
use crate::registry::Stage;
use crate::tensor::{Data, DataType};
use std::fs::File;
use std::os::unix::fs::symlink;
use std::path::Path;

fn spec(name: &str, dims: &[usize]) -> TensorSpec {
    TensorSpec {
        name: name.into(),
        datatype: DataType::Fp32,
        dims: Some(dims.iter().map(|n| Dim::Fixed(*n)).collect()),
    }
}

fn runner() -> Runner {
    Runner::new(Fake::echo(Signature::new(vec![spec("x", &[2])], vec![spec("y", &[2])])).model())
}

fn sparse(path: &Path, bytes: u64) {
    File::create(path).unwrap().set_len(bytes).unwrap();
}

#[test]
fn files_beside_a_model_have_a_size_limit() {
    let dir = tempfile::tempdir().unwrap();
    let runner = runner();
    let too_large = |failure: StageFailure, stage, name: &str, limit: u64| {
        assert_eq!((failure.stage, failure.retryable), (stage, false), "{failure:?}");
        assert_eq!(failure.reason, format!("cannot read {name}: it is larger than {limit} bytes"));
    };
    sparse(&dir.path().join("golden.json"), files::MAX_REQUESTS_BYTES + 1);
    let failure = verify(dir.path(), &VersionToml::default(), "", &runner).unwrap_err();
    too_large(failure, Stage::Verify, "golden.json", files::MAX_REQUESTS_BYTES);
    sparse(&dir.path().join("warmup.json"), files::MAX_REQUESTS_BYTES + 1);
    too_large(warm(dir.path(), &runner).unwrap_err(), Stage::Warm, "warmup.json", files::MAX_REQUESTS_BYTES);
    sparse(&dir.path().join("version.toml"), files::MAX_SETTINGS_BYTES + 1);
    let failure = VersionToml::read(dir.path()).unwrap_err();
    too_large(failure, Stage::Verify, "version.toml", files::MAX_SETTINGS_BYTES);
    let version = dir.path().join("1");
    sparse(&dir.path().join("model.toml"), files::MAX_SETTINGS_BYTES + 1);
    assert_eq!(read_model_toml(&version).unwrap_err(), "model.toml: it is larger than 1048576 bytes");
}

#[test]
fn named_pipes_devices_and_directories_are_not_read() {
    let dir = tempfile::tempdir().unwrap();
    for (name, target) in [("golden.json", "/dev/zero"), ("version.toml", "/dev/zero"), ("model.onnx", "/dev/zero")] {
        symlink(target, dir.path().join(name)).unwrap();
    }
    let pipe = dir.path().join("warmup.json");
    let (here, mode) = (rustix::fs::CWD, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR);
    rustix::fs::mknodat(here, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let runner = runner();
    let failure = verify(dir.path(), &VersionToml::default(), "", &runner).unwrap_err();
    assert_eq!(failure.reason, "cannot read golden.json: it is not a regular file");
    let failure = warm(dir.path(), &runner).unwrap_err();
    assert_eq!(failure.reason, "cannot read warmup.json: it is not a regular file");
    let failure = VersionToml::read(dir.path()).unwrap_err();
    assert_eq!(failure.reason, "cannot read version.toml: it is not a regular file");
    assert_eq!(model_sha256(dir.path()).unwrap_err().to_string(), "it is not a regular file");
    std::fs::remove_file(&pipe).unwrap();
    std::fs::create_dir(&pipe).unwrap();
    assert!(warm(dir.path(), &runner).is_err(), "a directory is not a file");
}

#[test]
fn check_explains_paths_that_hold_no_version() {
    let engines = Engines::discover(None);
    let dir = tempfile::tempdir().unwrap();
    let error = |path: &Path| check(&engines, path).unwrap_err().to_string();
    assert!(error(dir.path()).contains("holds no version"));
    let link = dir.path().join("loop");
    symlink(&link, &link).unwrap();
    assert!(error(&link).contains("symbolic link"), "{}", error(&link));
    assert!(error(dir.path()).contains("holds no version"), "a loop inside of a directory");
    symlink(dir.path(), dir.path().join("7")).unwrap();
    let report = check(&engines, dir.path()).unwrap();
    assert!(!report.passes() && report.versions.len() == 1, "a version that links to its parent: {report:?}");
    assert!(error(Path::new("/dev/null")).contains("neither a file nor a directory"));
    assert!(error(&dir.path().join("missing")).contains("No such file"));
}

#[test]
fn generated_inputs_have_a_size_limit_over_all_inputs() {
    let output = || vec![spec("y", &[1])];
    let most = 128 << 20 >> 2;
    let generate = |inputs: Vec<TensorSpec>| inputs::generate(&Signature::new(inputs, output()), 1, Data::zeros);
    generate(vec![spec("a", &[most])]).unwrap();
    let error = generate(vec![spec("a", &[most]), spec("b", &[1])]).unwrap_err();
    assert!(error.starts_with("input \"b\" of shape [1] is too large to generate"), "{error}");
    for dims in [&[usize::MAX][..], &[usize::MAX, usize::MAX], &[1 << 40]] {
        assert!(generate(vec![spec("a", dims)]).is_err(), "{dims:?}");
    }
}

#[test]
fn a_generated_warm_up_that_fails_for_want_of_memory_fails_the_version() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::echo(Signature::new(vec![spec("x", &[2])], vec![spec("y", &[2])]));
    fake.fail_next(RunError::Failed { message: OUT_OF_MEMORY.to_owned(), internal: "bad alloc".to_owned() });
    let failure = warm(dir.path(), &Runner::new(fake.model())).unwrap_err();
    assert_eq!((failure.stage, failure.retryable), (Stage::Warm, true), "another try may find more memory");
    assert!(failure.reason.contains(OUT_OF_MEMORY), "{failure:?}");

    let fake = Fake::echo(Signature::new(vec![spec("x", &[2])], vec![spec("y", &[2])]));
    fake.fail_next(RunError::Failed { message: "the model failed".to_owned(), internal: String::new() });
    let warmed = warm(dir.path(), &Runner::new(fake.model())).unwrap();
    assert_eq!(warmed.note, None, "ones were accepted");
    assert!(warmed.known_good.is_some(), "they are kept as the known good request");
}
