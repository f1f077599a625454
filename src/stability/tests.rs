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

fn config() -> Config {
    Config {
        every: Duration::from_secs(1),
        program: None,
        onnxruntime: None,
        custom_ops: None,
        data: "data".into(),
        models: "models".into(),
    }
}

fn run(script: &str) -> Result<Ran, String> {
    let (dir, config) = (tempfile::tempdir().unwrap(), config());
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
        &config(),
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
    let config = config();
    let (asked, stopped) = crossbeam_channel::bounded::<()>(1);
    drop(asked);
    let program = program(dir.path(), "exec sleep 600");
    let began = Instant::now();
    assert_eq!(child::run(&config, &program, &"m".parse().unwrap(), "3".parse().unwrap(), &stopped), None);
    assert!(began.elapsed() < Duration::from_mins(1), "it did not wait for the program");
}

fn checked(ran: Result<Ran, String>) -> Checked {
    Checked { at: "2026-11-28T12:00:00Z".parse().unwrap(), ran }
}

#[test]
fn what_is_known_stays_known_while_samples_say_nothing_and_over_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let different = Ran { answered: 9, equal: 1, different: 2, ..Ran::default() };
    let named = Ran { first_different: Some("r1".to_owned()), words: Some("off by 3".to_owned()), ..different.clone() };
    let told = Kept::next(None, checked(Ok(named)));
    let found = Kept::next(Some(&told), checked(Ok(different.clone())));
    // No requests in the last hour; then too little memory.
    for nothing in [Ok(Ran::default()), Err("too little memory".to_owned())] {
        let next = Kept::next(Some(&found), checked(nothing.clone()));
        assert_eq!((next.last.ran, next.judged.unwrap().ran), (nothing, Ok(different.clone())));
    }
    let all_equal = Ran { answered: 9, equal: 9, ..Ran::default() };
    assert_eq!(Kept::next(Some(&found), checked(Ok(all_equal.clone()))).judged.unwrap().ran, Ok(all_equal));
    let nothing_yet = Kept::next(None, checked(Err("too little memory".to_owned())));
    assert_eq!(nothing_yet.judged, None);
    kept::write(dir.path(), &[(("m".parse().unwrap(), "1".parse().unwrap()), told)].into());
    let text = std::fs::read_to_string(dir.path().join("reproduced.json")).unwrap();
    assert!(!text.contains("r1") && !text.contains("off by"), "an id and an answer may be about a person: {text}");

    let id = |version: &str| ("m".parse().unwrap(), version.parse().unwrap());
    let results: Results = [(id("1"), found), (id("2"), nothing_yet)].into();
    kept::write(dir.path(), &results);
    assert_eq!(kept::read(dir.path()), results);
    let (config, reader) = (Config { data: dir.path().to_owned(), ..config() }, crate::registry::new().1);
    let (stability, stop) = Stability::start(config, reader.clone()).unwrap();
    assert_eq!(stability.different(&reader), [("m".parse().unwrap(), "1".parse().unwrap(), different)]);
    stop.stop(Duration::from_mins(1));
    for nonsense in ["", "nonsense", "{}", "[{}]", r#"[{"model":"m","version":"1","last":{"at":"now","ran":1}}]"#] {
        std::fs::write(dir.path().join("reproduced.json"), nonsense).unwrap();
        assert_eq!(kept::read(dir.path()), Results::new(), "{nonsense}");
    }
}
