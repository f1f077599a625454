//! Pushing all files of a version, the next free number, and waiting for a state.

use crate::support::process::Served;
use crate::support::{Gateway, onnx};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Runs a client command. Returns the exit code and the output.
fn cli(gateway: &Gateway, dir: &Path, line: &str) -> (i32, String) {
    let result = Command::new(env!("CARGO_BIN_EXE_sluicegate"))
        .args(line.split(' '))
        .env("SLUICEGATE_ADMIN", format!("http://{}", gateway.admin()))
        .current_dir(dir)
        .output()
        .unwrap();
    let output = format!("{}{}", String::from_utf8_lossy(&result.stdout), String::from_utf8_lossy(&result.stderr));
    (result.status.code().unwrap(), output)
}

fn tar(dir: &Path, arguments: &[&str]) -> Vec<u8> {
    let made = Command::new("tar").arg("-C").arg(dir).args(arguments).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    made.stdout
}

fn post(gateway: &Gateway, path: &str, media: &str, body: &[u8]) -> (u16, Value) {
    let url = format!("http://{}{path}", gateway.admin());
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let mut answer = agent.post(&url).header("content-type", media).send(body).unwrap();
    let text = answer.body_mut().read_to_string().unwrap();
    (answer.status().as_u16(), serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}")))
}

/// A version's directory with golden answers that its model gives.
fn version_dir(dir: &Path) {
    std::fs::create_dir_all(dir.join("sub")).unwrap();
    std::fs::write(dir.join("model.onnx"), onnx::scaling(3.0)).unwrap();
    let tensor = |name: &str, factor: f64| json!({"name": name, "shape": [1, 2], "datatype": "FP32", "data": [factor, 2.0 * factor]});
    let golden = json!({"cases": [{"request": {"inputs": [tensor("x", 1.0)]}, "outputs": [tensor("y", 3.0)]}]});
    std::fs::write(dir.join("golden.json"), golden.to_string()).unwrap();
    std::fs::write(dir.join("version.toml"), "git = \"abc\"\n").unwrap();
    std::fs::write(dir.join("sub/notes.bin"), "n").unwrap();
    std::fs::write(dir.join(".DS_Store"), "hidden").unwrap();
}

#[test]
fn a_directory_is_pushed_as_a_whole_under_a_given_number_or_the_next() {
    let gateway = Gateway::start(|models| onnx::install(models, "m", 1, &onnx::scaling(1.0)));
    let dir = tempfile::tempdir().unwrap();
    version_dir(&dir.path().join("out"));
    let (code, out) = cli(&gateway, dir.path(), "push m out");
    assert!(
        code == 0 && out.contains("version 2 of m is uploaded (golden.json, model.onnx, sub/notes.bin, version.toml)"),
        "{out}"
    );
    let (code, out) = cli(&gateway, dir.path(), "wait m 2 --state ready --timeout 50s");
    assert_eq!((code, out.as_str()), (0, "version 2 of m is ready\n"));
    let version = gateway.admin_get("/api/v1/models/m/versions/2").json();
    assert_eq!((&version["golden_cases"], &version["metadata"]["git"]), (&json!(1), &json!("abc")));
    assert!(gateway.models().join("m/2/sub/notes.bin").exists() && !gateway.models().join("m/2/.DS_Store").exists());

    let (code, out) = cli(&gateway, dir.path(), "push m 2 out");
    assert!(code == 1 && out.contains("already"), "{out}");
    let (code, out) = cli(&gateway, dir.path(), "push m 7 out");
    assert!(code == 0 && out.contains("version 7 of m is uploaded"), "{out}");
    let (code, out) = cli(&gateway, dir.path(), "push m out/model.onnx --json");
    let answer: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &answer["version"], &answer["files"]), (0, &json!("8"), &Value::Null), "{out}");
    let (code, out) = cli(&gateway, dir.path(), "push other out/model.onnx");
    assert!(code == 0 && out.contains("version 1 of other is uploaded"), "{out}");
    for (line, words) in [
        ("push m nowhere", "cannot read nowhere"),
        ("push m out/sub", "has no model.onnx"),
        ("push m out --signature nowhere", "cannot read nowhere"),
    ] {
        let (code, out) = cli(&gateway, dir.path(), line);
        assert!(code == 1 && out.contains(words), "{line}: {out}");
    }
    let (code, _) = cli(&gateway, dir.path(), "wait m 8 --state ready");
    assert_eq!(code, 0);
    assert_eq!(gateway.admin_get("/api/v1/models/m/versions/9").status, 404, "a refused push takes no number");
}

#[test]
fn archives_of_tar_are_taken_and_hostile_ones_leave_nothing_behind() {
    let gateway = Gateway::start(|models| onnx::install(models, "m", 1, &onnx::scaling(1.0)));
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    version_dir(&out);
    let place = "/api/v1/models/m/versions";
    for format in ["--format=gnu", "--format=posix", "--format=ustar"] {
        let (status, answer) = post(&gateway, place, "application/x-tar", &tar(&out, &[format, "-c", "."]));
        assert_eq!(status, 201, "{format}: {answer}");
        assert_eq!(answer["files"], json!(["golden.json", "model.onnx", "sub/notes.bin", "version.toml"]));
    }
    let whole = tar(&out, &["-c", "."]);
    std::os::unix::fs::symlink("/etc/passwd", out.join("link")).unwrap();
    let refused = |media: &str, body: &[u8], status: u16, words: &str| {
        let (got, answer) = post(&gateway, place, media, body);
        assert!(got == status && answer["error"].as_str().unwrap().contains(words), "{got} {answer}: {words}");
    };
    refused(
        "application/x-tar",
        &tar(&out, &["-c", "."]),
        400,
        "\"./link\" is a symbolic link; expected regular files",
    );
    refused(
        "application/x-tar",
        &tar(&out, &["-c", "golden.json"]),
        400,
        "expected model.onnx at its top, found \"golden.json\"",
    );
    refused(
        "application/x-tar",
        &tar(dir.path(), &["-c", "out/model.onnx"]),
        400,
        "found \"out/model.onnx\": make the archive within",
    );
    refused(
        "application/x-tar",
        &tar(&out, &["-c", "--transform=s,golden,../golden,", "golden.json"]),
        400,
        "leaves the directory",
    );
    refused("application/x-tar", &tar(&out, &["-cz", "model.onnx"]), 400, "it is compressed");
    refused("application/x-tar", &whole[..whole.len() / 2], 400, "it is incomplete");
    refused("application/x-tar", b"", 400, "the body is empty: expected a tar archive");
    refused("application/x-tar", &onnx::scaling(1.0), 400, "the archive is refused");
    refused("application/octet-stream", &whole, 400, "");
    refused("text/plain", &whole, 415, "expected application/octet-stream or application/x-tar");
    std::fs::remove_file(out.join("link")).unwrap();
    std::fs::write(out.join("model.onnx"), "<html>404</html>").unwrap();
    refused("application/x-tar", &tar(&out, &["-c", "."]), 400, "a web page");
    let hidden = |dir: &Path| {
        let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        entries.filter(|name| name.starts_with('.')).collect::<Vec<_>>()
    };
    assert_eq!(hidden(&gateway.models()), [""; 0]);
    assert_eq!(hidden(&gateway.models().join("m")), [""; 0]);
    assert!(!gateway.models().join("m/5").exists());
}

#[test]
fn waiting_ends_with_the_state_with_a_failure_or_with_the_time() {
    let gateway = Gateway::start(|models| {
        onnx::install(models, "m", 1, &onnx::scaling(1.0));
        std::fs::create_dir_all(models.join("m/2")).unwrap();
        std::fs::write(models.join("m/2/model.onnx"), "no model").unwrap();
    });
    let dir = tempfile::tempdir().unwrap();
    let run = |line: &str| cli(&gateway, dir.path(), line);
    assert_eq!(
        run("wait m 1 --state ready"),
        (0, "version 1 of m is serving\n".to_owned()),
        "serving is more than ready"
    );
    let (code, out) = run("wait m 2 --state ready");
    assert!(code == 1 && out.contains("version 2 of m is failed: "), "{out}");
    assert_eq!(run("wait m 2 --state failed").0, 0);
    let (code, out) = run("wait m 1 --state unloaded --timeout 200ms");
    assert!(code == 1 && out.contains("version 1 of m is serving and not unloaded after 0.2 s"), "{out}");
    let (code, out) = run("wait m 3 --state ready --timeout 200ms");
    assert!(code == 1 && out.contains("no version 3"), "{out}");
    for (line, words) in
        [("wait m 1 --state done", "wait_for: expected a state (pending, loading, "), ("wait m x", "no such version")]
    {
        let (code, out) = run(line);
        assert!(code == 1 && out.contains(words), "{line}: {out}");
    }
    let too_long = gateway.admin_get("/api/v1/models/m/versions/1?wait_for=ready&timeout=2h");
    assert!(
        too_long.status == 400 && too_long.json()["error"].as_str().unwrap().contains("at most 60s"),
        "{too_long:?}"
    );

    // A version that does not exist yet is waited for; it is there two seconds after its last write.
    let waiting = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| run("wait m 3 --timeout 50s"));
        let answer = gateway.admin_get("/api/v1/models/m/versions/3?wait_for=ready&timeout=1ms");
        assert_eq!(answer.status, 404, "nothing is there yet");
        onnx::install(&gateway.models(), "m", 3, &onnx::scaling(2.0));
        waiting.join().unwrap()
    });
    assert_eq!(waiting, (0, "version 3 of m is ready\n".to_owned()));
    let answer = gateway.admin_get("/api/v1/models/m/versions/3?wait_for=ready").json();
    assert_eq!((&answer["waited"], &answer["state"]), (&json!("reached"), &json!("ready")));
}

#[test]
fn a_stop_ends_what_waits() {
    let dir = tempfile::tempdir().unwrap();
    onnx::install(&dir.path().join("models"), "self", 1, &onnx::answering(1.0, 4, 0));
    let mut served = Served::start(dir.path());
    served.ready();
    let url = format!("http://{}/api/v1/models/self/versions/9?wait_for=ready", served.admin);
    let begun = std::time::Instant::now();
    let waiting = std::thread::spawn(move || ureq::get(&url).call());
    served.wait_state("self", 1, "serving");
    served.stop();
    // Whether it is answered or its connection closes: it does not hold the stop.
    let _ = waiting.join().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(45), "{:?}", begun.elapsed());
}
