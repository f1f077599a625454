//! The files in `deploy/` and the image, held to the tools that read them: Prometheus, Helm and Kubernetes, Compose, systemd. docs/DEPLOY.md says
//! what is checked. `src/telemetry/tests_deploy.rs` compares the metrics of rules and dashboards with the ones that exist.

use crate::support::process::onnxruntime;
use crate::support::{copy, eventually};
use serde_json::Value;
use sluicegate::config::{Config, Overrides};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn python() -> String {
    std::env::var("SLUICEGATE_TEST_PYTHON").unwrap_or_else(|_| root().join(".venv/bin/python").display().to_string())
}

fn printed(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn promtool_accepts_the_alert_rules_their_tests_and_the_scrape_of_the_compose_file() {
    if Command::new("promtool").arg("--version").output().is_err() {
        eprintln!("promtool is not installed (Debian package prometheus): the alert rules are not checked by it");
        return;
    }
    let rules = root().join("deploy/prometheus");
    for arguments in [["check", "rules", "rules.yml"], ["test", "rules", "rules.test.yml"]] {
        let output = Command::new("promtool").args(arguments).current_dir(&rules).output().unwrap();
        assert!(output.status.success(), "promtool {arguments:?}: {}", printed(&output));
    }
    // The container has both files in one directory.
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(rules.join("rules.yml"), dir.path().join("rules.yml")).unwrap();
    std::fs::copy(root().join("deploy/compose/prometheus.yml"), dir.path().join("prometheus.yml")).unwrap();
    let check = ["check", "config", "--syntax-only", "prometheus.yml"];
    let output = Command::new("promtool").args(check).current_dir(dir.path()).output().unwrap();
    assert!(output.status.success(), "promtool {check:?}: {}", printed(&output));
}

#[test]
fn the_chart_the_runtime_and_the_compose_file_are_valid_and_configure_a_server_that_starts() {
    let output = Command::new(python())
        .arg(root().join("tests/python/deploy_files.py"))
        .arg(root().join("deploy"))
        .output()
        .unwrap_or_else(|e| panic!("{} should run (make venv makes it): {e}", python()));
    assert!(output.status.success(), "{}", printed(&output));
    let configurations: Value = serde_json::from_slice(&output.stdout).unwrap();
    let configurations = configurations.as_object().unwrap();
    // The chart in four ways, where its renderer has a wheel, and the Compose file.
    let expected = if cfg!(target_arch = "x86_64") { 5 } else { 1 };
    assert!(configurations.len() >= expected, "{configurations:?}");
    let dir = tempfile::tempdir().unwrap();
    for (name, configuration) in configurations {
        let file = dir.path().join("sluicegate.toml");
        std::fs::write(&file, configuration["file"].as_str().unwrap()).unwrap();
        let environment = configuration["environment"].as_object().unwrap();
        let variables = environment.iter().map(|(name, text)| (name.clone(), text.as_str().unwrap().to_owned()));
        let config = Config::load(Some(&file), variables.collect::<Vec<_>>(), &Overrides::default());
        let config = config.unwrap_or_else(|complaints| panic!("{name}: {complaints}"));
        assert_eq!(config.server.listen.port(), 8080, "{name}");
        assert_eq!(config.models.dir, PathBuf::from("/srv/sluicegate/models"), "{name}");
        assert_eq!(config.data.dir, PathBuf::from("/srv/sluicegate/data"), "{name}");
        let tokens = &config.access.tokens;
        assert_eq!(config.admin.is_loopback(), tokens.is_empty(), "{name}: the admin plane is open only with tokens");
        if let Some(anna) = tokens.iter().find(|token| token.name == "anna") {
            assert_eq!(anna.file, PathBuf::from("/run/secrets/sluicegate/anna"), "{name}");
            assert_eq!(anna.grant.models.texts(), ["fraud-*", "iris"], "{name}");
        }
    }
}

#[test]
fn the_image_serves_as_its_user_keeps_its_data_and_stops_in_time() {
    let unshare = ["--mount", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"];
    let allowed = Command::new("unshare").args(unshare).arg("true").output();
    if !allowed.is_ok_and(|output| output.status.success()) {
        eprintln!("this needs root and namespaces: the steps of the Dockerfile are not carried out");
        return;
    }
    let output = Command::new("unshare")
        .args(unshare)
        .arg(python())
        .arg(root().join("tests/python/image.py"))
        .arg(root())
        .arg(env!("CARGO_BIN_EXE_sluicegate"))
        .output()
        .unwrap();
    assert!(output.status.success() && printed(&output).contains("ok: "), "{}", printed(&output));
}

#[test]
fn systemd_accepts_the_unit_and_finds_little_exposure() {
    let Ok(version) = Command::new("systemd-analyze").arg("--version").output() else {
        eprintln!("systemd-analyze is not installed: the unit is not checked by it");
        return;
    };
    assert!(version.status.success());
    let unit = std::fs::read_to_string(root().join("deploy/systemd/sluicegate.service")).unwrap();
    // The programs have to exist where it is verified, and the user has to be known.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sluicegate.service");
    let local = unit.replace("/usr/local/bin/sluicegate", env!("CARGO_BIN_EXE_sluicegate"));
    std::fs::write(&path, local.replace("=sluicegate\n", "=daemon\n")).unwrap();
    let analyze = |arguments: &[&str]| Command::new("systemd-analyze").args(arguments).arg(&path).output().unwrap();
    let verified = analyze(&["verify", "--man=no"]);
    assert!(verified.status.success() && !printed(&verified).contains("sluicegate.service:"), "{}", printed(&verified));
    let rated = analyze(&["security", "--offline=true", "--threshold=20", "--no-pager"]);
    assert!(rated.status.success(), "{}", printed(&rated));
}

/// The path of a model that ONNX Runtime or tract can run.
fn model() -> PathBuf {
    root().join("models/iris/1/model.onnx")
}

#[test]
fn kserve_mounts_one_models_files_and_they_are_served_under_its_name() {
    for layout in ["model.onnx", "fraud-v7.onnx", "3/model.onnx", "fraud/3/model.onnx"] {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("mnt").join(layout);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::copy(model(), &file).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_sluicegate"))
            .args(["serve", "--model", "fraud=mnt", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"])
            .args(["--data-dir", "data"])
            .current_dir(dir.path())
            .env("ORT_DYLIB_PATH", onnxruntime())
            .env("SLUICEGATE__LOG__FORMAT", "json")
            .env("SLUICEGATE__SERVER__SHUTDOWN_GRACE", "1s")
            .stderr(std::fs::File::create(dir.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        let log = || std::fs::read_to_string(dir.path().join("log")).unwrap();
        let address = eventually("the server has its address", || {
            let log = log();
            let line = log.lines().find(|line| line.contains("\"listening\""))?;
            let line: Value = serde_json::from_str(line).ok()?;
            Some(line["data"].as_str()?.to_owned())
        });
        let answered = eventually(&format!("{layout}: the model is ready: {}", log()), || {
            ureq::get(format!("http://{address}/v2/models/fraud/ready")).call().ok()
        });
        assert_eq!(answered.status(), 200, "{layout}");
        let found = ureq::get(format!("http://{address}/v1/models/fraud")).call().unwrap().body_mut().read_to_string();
        let version = if layout.contains('3') { "\"3\"" } else { "\"1\"" };
        assert!(found.as_ref().unwrap().contains(version), "{layout}: {found:?}");
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(child.wait().unwrap().success(), "{}", log());
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("mnt")).unwrap();
    for (argument, code, words) in [("fraud=mnt", 1, "holds no model fraud"), ("fraud", 2, "NAME=DIRECTORY")] {
        let output = Command::new(env!("CARGO_BIN_EXE_sluicegate"))
            .args(["serve", "--model", argument, "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"])
            .current_dir(dir.path())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(code), "{}", printed(&output));
        assert!(printed(&output).contains(words), "{}", printed(&output));
    }
}

#[test]
fn new_files_are_for_the_user_of_the_server_alone_or_also_for_its_group() {
    use crate::support::process::Served;
    use std::os::unix::fs::PermissionsExt as _;
    for (group_readable, forbidden) in [("false", 0o077), ("true", 0o027)] {
        let dir = tempfile::tempdir().unwrap();
        copy(&root().join("models/iris"), &dir.path().join("models/iris"));
        let mut served = Served::start_with(dir.path(), &[("SLUICEGATE__DATA__GROUP_READABLE", group_readable)]);
        served.ready();
        let body = r#"{"inputs":[{"name":"features","shape":[1,4],"datatype":"FP32","data":[6.7,3.0,5.2,2.3]}]}"#;
        ureq::post(format!("http://{}/v2/models/iris/infer", served.data)).send(body).unwrap();
        let pushed = served.cli(&["push", "iris", "9", &model().display().to_string()]);
        assert!(pushed.status.success(), "{}", printed(&pushed));
        served.stop();
        let mut files = 0;
        let mut directories = vec![dir.path().join("data")];
        while let Some(directory) = directories.pop() {
            for path in
                std::fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()).chain([directory.clone()])
            {
                let mode = std::fs::symlink_metadata(&path).unwrap().permissions().mode();
                assert_eq!(mode & forbidden, 0, "{} has the mode {mode:o}", path.display());
                files += u32::from(path.is_file());
                if path.is_dir() && path != directory {
                    directories.push(path);
                }
            }
        }
        assert!(files > 3, "{files} files");
        let mode = |path: &str| std::fs::metadata(dir.path().join(path)).unwrap().permissions().mode() & 0o777;
        let models = mode("models/iris");
        assert_eq!(
            (mode("models/iris/9"), mode("models/iris/9/model.onnx")),
            (models, models & 0o666),
            "models are not private"
        );
    }
}
