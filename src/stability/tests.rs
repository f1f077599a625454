use super::*;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// A program that prints and exits as a script says.
fn program(dir: &Path, script: &str) -> PathBuf {
    let path = dir.join("program");
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn run(script: &str) -> Result<Ran, String> {
    let dir = tempfile::tempdir().unwrap();
    let config = Config {
        every: Duration::from_secs(1),
        program: None,
        onnxruntime: None,
        data: "data".into(),
        models: "models".into(),
    };
    let (_asked, stopped) = crossbeam_channel::bounded(1);
    let program = program(dir.path(), script);
    child::run(&config, &program, &"m".parse().unwrap(), "3".parse().unwrap(), &stopped).unwrap()
}

const PRINTED: &str = r#"{"answered":9,"equal":1,"close":2,"different":3,"not_run":4,"first_different":"r1","words":"w","why_not_run":null}"#;

#[test]
fn the_result_is_what_the_program_prints_whatever_its_exit_code_is() {
    let ran = run(&format!("echo '{PRINTED}'; exit 1")).unwrap();
    assert_eq!((ran.answered, ran.equal, ran.close, ran.different, ran.not_run), (9, 1, 2, 3, 4));
    assert_eq!((ran.first_different.as_deref(), ran.why_not_run), (Some("r1"), None));
    let arguments = run("echo \"$@\" >&2").unwrap_err();
    let expected = "reproduce --json --for-server --sample=20 --model=m --version=3 --data-dir data --models models";
    assert_eq!(arguments, expected);
}

#[test]
fn a_program_without_a_result_is_said_in_words() {
    assert_eq!(run("echo 'no such data' >&2; exit 2"), Err("no such data".to_owned()));
    assert_eq!(run("echo '{}'"), Err("the process ended without a result".to_owned()));
    assert_eq!(run("kill -9 $$"), Err("the process ended without a result".to_owned()));
    let missing = child::run(
        &Config {
            every: Duration::ZERO,
            program: None,
            onnxruntime: None,
            data: PathBuf::new(),
            models: PathBuf::new(),
        },
        Path::new("/no/such/program"),
        &"m".parse().unwrap(),
        "3".parse().unwrap(),
        &crossbeam_channel::bounded(1).1,
    );
    assert!(missing.unwrap().unwrap_err().starts_with("the process cannot be started"));
}

#[test]
fn a_stop_ends_the_program() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config {
        every: Duration::ZERO,
        program: None,
        onnxruntime: None,
        data: PathBuf::new(),
        models: PathBuf::new(),
    };
    let (asked, stopped) = crossbeam_channel::bounded::<()>(1);
    drop(asked);
    let program = program(dir.path(), "exec sleep 600");
    let began = Instant::now();
    assert_eq!(child::run(&config, &program, &"m".parse().unwrap(), "3".parse().unwrap(), &stopped), None);
    assert!(began.elapsed() < Duration::from_mins(1), "it did not wait for the program");
}
