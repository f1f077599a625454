//! The command line with a running server: the output, and the exit codes.

use crate::support::onnx;
use crate::support::process::Served;
use std::path::Path;
use std::process::Command;

/// A server with two versions of the model `self`.
fn serve(dir: &Path) -> Served {
    std::fs::create_dir(dir.join("models")).unwrap();
    for v in 1..=2 {
        onnx::install(&dir.join("models"), "self", v, &onnx::answering(v as f32, 4, 0));
    }
    let served = Served::start(dir);
    served.ready();
    served
}

/// Runs a command; returns its exit code, standard output and standard error.
fn run(served: &Served, line: &str) -> (i32, String, String) {
    let output = served.cli(&line.split(' ').collect::<Vec<_>>());
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn commands_print_the_servers_answer_and_exit_with_a_code_for_scripts() {
    let dir = tempfile::TempDir::new().unwrap();
    let served = serve(dir.path());
    let run = |line: &str| run(&served, line);

    let (code, out, _) = run("execution self");
    assert!(code == 0 && out.contains("version 1 (") && out.contains("version 2 ("), "{out}");
    assert!(out.contains("runs:      up to 200.0 us on the I/O thread, else on one of "), "{out}");
    assert!(out.contains("RUN TIME"), "{out}");

    let (code, out, err) = run("promote self 1 --reason test --dry-run --gate shadow_pairs=5");
    assert!(out.contains("shadow_pairs  FAILED") && out.contains("the promotion would be refused"), "{out}");
    assert_eq!((code, err.as_str()), (1, "sluicegate: self: version 1 does not pass its gates\n"));
    let (code, _, err) = run("promote self 9 --reason test --dry-run");
    assert!(code == 1 && err.contains('9'), "a dry run that the server refuses fails as well: {err}");
    let (code, out, _) = run("promote self 1 --reason test --dry-run");
    assert!(code == 0 && out.contains("nothing was changed"), "{out}");

    let (code, _, _) = run("traffic self --split control:1=90,2=10 --reason test");
    assert_eq!(code, 0);
    let (_, out, _) = run("history self");
    assert!(out.contains("control:1=90"), "{out}");

    let (code, _, err) = run("execution nobody");
    assert!(code == 1 && err.contains("nobody"), "{err}");
    assert!(run("execution nobody --json").1.contains("\"error\""), "with --json the error is JSON too");
}

#[test]
fn the_reason_on_the_command_line_replaces_the_one_in_the_file() {
    let dir = tempfile::TempDir::new().unwrap();
    let served = serve(dir.path());
    let file = dir.path().join("traffic.json");
    let set = |reason: &str| run(&served, &format!("traffic self --set {} --reason {reason}", file.display()));

    std::fs::write(&file, r#"{"split":[{"version":"1","weight":1}],"reason":"from-the-file"}"#).unwrap();
    let (code, out, err) = set("from-the-command-line");
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("from-the-command-line") && !out.contains("from-the-file"), "{out}");
    let (_, audit, _) = run(&served, "audit --limit 1");
    assert!(audit.contains("from-the-command-line"), "{audit}");

    // What the server would refuse without the option, it refuses with it.
    for wrong in [r#"{"split":[],"split":[]}"#, "[]", "{", "null", ""] {
        std::fs::write(&file, wrong).unwrap();
        let (code, _, err) = set("why");
        assert!(code == 1 && err.starts_with("sluicegate: "), "{wrong}: {err}");
    }
    let (code, _, err) = run(&served, "traffic self --set missing.json --reason why");
    assert!(code == 1 && err.contains("cannot read missing.json"), "{err}");
}

#[test]
fn a_refused_push_prints_its_error_once() {
    let dir = tempfile::TempDir::new().unwrap();
    let served = serve(dir.path());
    let file = dir.path().join("wrong.onnx");
    std::fs::write(&file, b"<html>404</html>").unwrap();
    let (code, out, err) = run(&served, &format!("push self 3 {}", file.display()));
    assert_eq!((code, out.as_str()), (1, ""));
    assert_eq!(err.matches("a web page").count(), 1, "{err}");
    assert_eq!(err.matches("sluicegate: ").count(), 1, "{err}");
    // Both engines refuse this file for the same reason.
    let zipmap = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/refused/zipmap/1/model.onnx");
    let (code, _, err) = run(&served, &format!("push self 3 {}", zipmap.display()));
    assert!(code == 1 && err.matches("is a sequence of maps").count() == 1, "{err}");
    let (code, _, err) = run(&served, "push self 2 missing.onnx");
    assert!(code == 1 && err.contains("cannot read missing.onnx"), "{err}");
}

/// The commands that the help lists.
fn commands() -> Vec<String> {
    let output = Command::new(env!("CARGO_BIN_EXE_sluicegate")).arg("--help").output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    let listed = help.split_once("Commands:\n").unwrap().1.split_once("\n\n").unwrap().0.to_owned();
    // A command begins its line after two spaces; long descriptions continue with more.
    let lines = listed.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let names = lines.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help");
    names.map(str::to_owned).collect()
}

/// Wrong arguments of commands: exit code 2.
const WRONG: [&str; 26] = [
    "serve --listen nowhere --admin-listen 127.0.0.1:0 --data-dir unused",
    "serve --model iris --admin-listen 127.0.0.1:0 --data-dir unused",
    "check",
    "golden iris/1",
    "certificate",
    "export iris",
    "replay iris",
    "reproduce",
    "explain some-id --rows 0",
    "forget --reason why",
    "forget --route-key u --reason why --model a/b",
    "models --admin not-an-address",
    "traffic iris --split 1",
    "promote iris 2",
    "rollback iris",
    "rollout iris --to 2",
    "push iris",
    "wait iris 1 --timeout forever",
    "ready --timeout forever",
    "profile",
    "keygen",
    "sign iris/1",
    "token create",
    "token create --name n --role king --data-dir unused",
    "silence",
    "audit --limit many",
];

/// Commands that cannot be done, as there is no server, directory or file: exit code 1.
const FAILING: [&str; 37] = [
    "serve --data-dir /proc/nowhere --listen 127.0.0.1:0 --admin-listen 127.0.0.1:0",
    "check nowhere",
    "golden nowhere/1 --inputs x.npy --expected y.npy",
    "certificate --for localhost --dir /proc/nowhere",
    "export iris -o iris.parquet --data-dir nowhere",
    "replay iris --version 3 --data-dir nowhere",
    "reproduce some-id --data-dir nowhere",
    "explain some-id --data-dir nowhere",
    "forget --route-key u --reason why --data-dir nowhere",
    "models",
    "versions iris",
    "execution iris",
    "traffic iris",
    "traffic iris --set nowhere --reason why",
    "promote iris 2 --reason why",
    "rollback iris --reason why",
    "retire iris --reason why",
    "rollout iris",
    "shadow iris",
    "load iris 1",
    "push iris 3 nowhere.onnx",
    "wait iris 3",
    "ready",
    "ready --timeout 300ms --live",
    "quality iris",
    "experiment iris",
    "lineage iris 1",
    "drift iris",
    "profile nowhere.csv -o profile.json",
    "keygen -o /proc/nowhere/key",
    "sign nowhere --key nowhere",
    "approve iris 1 --reason why",
    "token list",
    "whoami",
    "alerts",
    "silence --list",
    "audit --export",
];

#[test]
fn wrong_arguments_are_2_and_what_cannot_be_done_is_1() {
    let dir = tempfile::TempDir::new().unwrap();
    let run = |line: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_sluicegate"))
            .args(line.split(' '))
            .current_dir(dir.path())
            .env("SLUICEGATE_ADMIN", "http://127.0.0.1:1")
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for (lines, expected) in [(&WRONG[..], 2), (&FAILING[..], 1)] {
        for line in lines {
            let (code, err) = run(line);
            assert_eq!(code, Some(expected), "{line}: {err}");
            assert!(!err.trim().is_empty() && !err.contains("panicked"), "{line}: {err}");
        }
    }
    let names = commands();
    assert!(names.len() > 30, "{names:?}");
    for name in names {
        let (code, err) = run(&format!("{name} --no-such-option"));
        assert_eq!(code, Some(2), "{name}: {err}");
    }
    assert_eq!(run("no-such-command").0, Some(2));
}

#[test]
fn a_reader_that_has_gone_is_no_failure() {
    let dir = tempfile::TempDir::new().unwrap();
    let served = serve(dir.path());
    for line in [
        "--help",
        "models",
        "models --json",
        "versions self",
        "execution self",
        "traffic self",
        "history self",
        "quality self",
        "audit",
        "audit --export",
        "audit --verify",
        "whoami",
        "callers",
        "alerts",
        "ready",
        "approve self 1",
        "token generate",
        "certificate --for localhost --dir tls",
        "keygen -o key.pem",
        "check models/self/1",
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = Command::new(env!("CARGO_BIN_EXE_sluicegate"))
            .args(line.split(' '))
            .current_dir(dir.path())
            .env("SLUICEGATE_ADMIN", format!("http://{}", served.admin))
            .env("ORT_DYLIB_PATH", crate::support::process::onnxruntime())
            .stdout(writer)
            .output()
            .unwrap();
        let err = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), &*err), (Some(0), ""), "{line}");
    }
}

#[test]
fn ready_says_what_is_missing_and_waits_for_a_server_that_starts() {
    let dir = tempfile::TempDir::new().unwrap();
    let served = serve(dir.path());
    let (code, out, err) = run(&served, "ready");
    assert_eq!((code, out.as_str(), err.as_str()), (0, "ready\n", ""));
    assert_eq!(run(&served, "ready --live").1, "live\n");
    assert!(run(&served, "ready --json").1.contains("\"ready\":true"));

    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut waiting = Command::new(env!("CARGO_BIN_EXE_sluicegate"))
        .args(["ready", "--timeout", "60s", "--admin", &format!("http://127.0.0.1:{port}")])
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let other = tempfile::TempDir::new().unwrap();
    std::fs::create_dir(other.path().join("models")).unwrap();
    onnx::install(&other.path().join("models"), "self", 1, &onnx::answering(1.0, 4, 0));
    let mut child = Command::new(env!("CARGO_BIN_EXE_sluicegate"))
        .args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", &format!("127.0.0.1:{port}")])
        .current_dir(other.path())
        .env("ORT_DYLIB_PATH", crate::support::process::onnxruntime())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    assert!(waiting.wait().unwrap().success());
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn every_help_has_examples() {
    let help = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_sluicegate")).args(arguments).arg("--help").output().unwrap();
        assert!(output.status.success(), "{arguments:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let names = commands();
    assert!(names.len() > 15, "{names:?}");
    for name in &names {
        let text = help(&[name]);
        assert!(text.contains("Examples:") && text.contains(&format!("sluicegate {name}")), "{text}");
    }
}

#[test]
fn commands_work_in_an_empty_environment() {
    let output = Command::new(env!("CARGO_BIN_EXE_sluicegate"))
        .args(["models", "--admin", "http://127.0.0.1:1"])
        .env_clear()
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let err = String::from_utf8(output.stderr).unwrap();
    assert!(err.starts_with("sluicegate: cannot reach the admin API at http://127.0.0.1:1: "), "{err}");
}
