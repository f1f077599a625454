//! Where versions come from: lineage over the API, and signatures of versions.

use crate::support::{Gateway, onnx};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;

/// Runs a command without a server; returns its standard output.
fn sluicegate(arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(env!("CARGO_BIN_EXE_sluicegate")).args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

fn version_toml(models: &Path, model: &str, v: u64, text: &str) {
    std::fs::write(models.join(format!("{model}/{v}/version.toml")), text).unwrap();
}

const DIGEST: &str = "0123456789ABCDEF0123456789abcdef0123456789abcdef0123456789abcdef";

#[test]
fn the_lineage_shows_what_is_known_and_what_is_not() {
    let gateway = Gateway::start(|models| {
        for (model, v) in [("m", 1), ("m", 2), ("m", 3), ("other", 1), ("other", 2)] {
            onnx::install(models, model, v, &onnx::answering(v as f32, 4, 0));
        }
        let full = format!(
            "owner = \"fraud team\"\n[lineage]\ntrainer = \"pipeline 12\"\ntrained_at = 2026-11-20T10:00:00Z\nparent = \"2\"\n\
             [lineage.data]\ndigest = \"sha256:{DIGEST}\"\nfrom = 2026-01-01\nto = \"2026-10-31\"\nrows = 12\n\
             [lineage.code]\ncommit = \"0badc0de\"\nrepository = \"ssh://git/fraud\"\n\
             [lineage.parameters]\ndepth = 6\nloss = \"logistic\"\n[lineage.metrics]\nauc = 0.97\n"
        );
        version_toml(models, "m", 3, &full);
        version_toml(
            models,
            "m",
            2,
            "[lineage]\nparent = \"other/1\"\ntrainer = 7\ncolour = \"blue\"\n[lineage.metrics]\nauc = \"high\"\nf1 = 1\n",
        );
        version_toml(models, "other", 1, "[lineage]\nparent = \"m/3\"\n");
        version_toml(models, "other", 2, "[lineage]\nparent = \"gone/7\"\n");
    });
    gateway.promote("m", 1);
    gateway.promote("m", 3);
    let lineage = |model: &str, v: u64| {
        let answer = gateway.admin_get(&format!("/api/v1/models/{model}/versions/{v}/lineage"));
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()
    };
    let full = lineage("m", 3);
    assert_eq!((&full["model"], &full["version"], &full["state"]), (&json!("m"), &json!("3"), &json!("serving")));
    let training = &full["training"];
    assert_eq!(training["data"]["digest"], DIGEST.to_lowercase());
    assert_eq!((&training["data"]["from"], &training["data"]["to"]), (&json!("2026-01-01"), &json!("2026-10-31")));
    assert_eq!((&training["code"]["commit"], &training["trainer"]), (&json!("0badc0de"), &json!("pipeline 12")));
    assert_eq!(
        (&training["parameters"], &training["metrics"]),
        (&json!({"depth": 6, "loss": "logistic"}), &json!({"auc": 0.97}))
    );
    assert_eq!(full["files"]["all"][0]["name"], "model.onnx");
    assert_eq!(full["files"]["all"][0]["sha256"], full["files"]["sha256"]);
    assert_eq!(full["first_ready_sha256"], full["files"]["sha256"]);
    // 3 → 2 → other/1 → 3 again.
    let parents: Vec<_> = full["parents"].as_array().unwrap().iter().map(|p| (&p["model"], &p["version"])).collect();
    assert_eq!(parents, [(&json!("m"), &json!("2")), (&json!("other"), &json!("1"))]);
    assert!(full["parents_end"].as_str().unwrap().contains("form a cycle"), "{}", full["parents_end"]);
    let newest = &full["events"][0];
    assert_eq!((&newest["action"], &newest["traffic"]), (&json!("promote"), &json!(["split 1.0"])));
    let unknown = full["unknown"].to_string();
    assert!(unknown.contains("no push of it is in the audit trail") && !unknown.contains("lineage."), "{unknown}");

    // What is wrong is left out and reported; the version is ready all the same.
    let broken = lineage("m", 2);
    assert_eq!((&broken["training"]["trainer"], &broken["training"]["metrics"]), (&Value::Null, &json!({"f1": 1.0})));
    let notes = gateway.admin_get("/api/v1/models/m/versions/2").json()["notes"].to_string();
    for part in ["lineage.trainer", "lineage.metrics.auc", "lineage.colour"] {
        assert!(notes.contains(part), "{part} is not in {notes}");
    }
    let nothing = lineage("m", 1);
    let unknown = nothing["unknown"].to_string();
    for part in [
        "lineage.data.digest is not in version.toml",
        "lineage.code.commit",
        "lineage.parent",
        "trusted_keys has no key",
    ] {
        assert!(unknown.contains(part), "{part} is not in {unknown}");
    }
    assert_eq!(nothing["parents_end"], "version 1 of m names no parent");
    let actions: Vec<_> = nothing["events"].as_array().unwrap().iter().map(|e| e["traffic"].to_string()).collect();
    assert!(
        actions.contains(&"[]".to_owned()) && actions.contains(&"[\"split 1.0\"]".to_owned()),
        "it got and lost traffic: {actions:?}"
    );
    assert!(lineage("other", 2)["parents_end"].as_str().unwrap().contains("this server has no version 7 of gone"));

    for (path, status) in [("m/versions/9", 404), ("nobody/versions/1", 404), ("m/versions/x", 404)] {
        assert_eq!(gateway.admin_get(&format!("/api/v1/models/{path}/lineage")).status, status, "{path}");
    }
    // A version whose files are gone stays in the audit trail.
    let pushed = gateway.admin_put_bytes("/api/v1/models/m/versions/4", &onnx::answering(4.0, 4, 0));
    assert_eq!(pushed.status, 201);
    gateway.wait_state("m", 4, "ready");
    let found = lineage("m", 4);
    assert!(!found["unknown"].to_string().contains("no push of it"), "{found}");
    assert_eq!(found["events"][0]["action"], "push");
    let shown = sluicegate(&["--admin", &format!("http://{}", gateway.admin()), "lineage", "m", "3"]).unwrap();
    for part in ["version 3 of m: serving", "metric           auc = 0.97", "parent           m/2", "not known:\n"] {
        assert!(shown.contains(part), "{part:?} is not in {shown}");
    }
}

#[test]
fn where_keys_are_trusted_only_signed_versions_are_loaded() {
    let dir = tempfile::TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let key = |name: &str| {
        let printed = sluicegate(&["keygen", "-o", &path(name), "--name", name]).unwrap();
        printed.trim().to_owned()
    };
    let trusted = key("ci");
    key("stranger");
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(path("ci")).unwrap());
    assert_eq!(mode & 0o777, 0o600, "only the owner can read the key");
    assert!(sluicegate(&["keygen", "-o", &path("ci")]).is_err(), "an existing key is not overwritten");
    let sign = |version: &Path, key: &str| sluicegate(&["sign", version.to_str().unwrap(), "--key", &path(key)]);

    let config = format!("[models]\ntrusted_keys = [\"{trusted}\"]\n");
    let gateway = Gateway::start_with(&config, |models| {
        for v in 1..=4 {
            onnx::install(models, "m", v, &onnx::answering(v as f32, 4, 0));
        }
        sign(&models.join("m/1"), "ci").unwrap();
        sign(&models.join("m/2"), "stranger").unwrap();
        sign(&models.join("m/4"), "ci").unwrap();
        std::fs::write(models.join("m/4/model.onnx"), onnx::answering(5.0, 4, 0)).unwrap();
    });
    let version = |v: u64| gateway.admin_get(&format!("/api/v1/models/m/versions/{v}")).json();
    assert_eq!(version(1)["state"], "serving", "{}", version(1));
    for (v, part) in
        [(2, "another key signed them"), (3, "it is not signed"), (4, "the files were changed after they were signed")]
    {
        let found = version(v);
        assert_eq!((&found["state"], &found["stage"]), (&json!("failed"), &json!("verify")), "{found}");
        assert!(found["reason"].as_str().unwrap().contains(part), "{part:?} is not in {found}");
    }
    let lineage = gateway.admin_get("/api/v1/models/m/versions/1/lineage").json();
    assert_eq!(lineage["files"]["signed_by"], "ci");
    // Signing it afterwards is a change of its files, so that it is tried again.
    sign(&gateway.models().join("m/3"), "ci").unwrap();
    gateway.wait_state("m", 3, "ready");

    // A push brings its signature along.
    let bytes = onnx::answering(6.0, 4, 0);
    let staged = dir.path().join("staged");
    std::fs::create_dir(&staged).unwrap();
    std::fs::write(staged.join("model.onnx"), &bytes).unwrap();
    let refused = gateway.admin_put_bytes("/api/v1/models/m/versions/6", &bytes);
    assert_eq!(refused.status, 400);
    assert!(refused.json()["error"].as_str().unwrap().contains("it is not signed"), "{:?}", refused.json());
    assert!(!gateway.models().join("m/6").exists(), "a refused push leaves nothing behind");
    sign(&staged, "ci").unwrap();
    let (admin, file, signature) =
        (format!("http://{}", gateway.admin()), path("staged/model.onnx"), path("staged/model.sig"));
    sluicegate(&["--admin", &admin, "push", "m", "6", &file, "--signature", &signature]).unwrap();
    gateway.wait_state("m", 6, "ready");

    for (arguments, part) in [
        (["sign", &path("nowhere"), "--key", &path("ci")], "cannot read the files of"),
        (["sign", &path("staged"), "--key", &signature], "is not an Ed25519 private key"),
        (["sign", &path(""), "--key", &path("ci")], "has no model.onnx"),
    ] {
        let error = sluicegate(&arguments).unwrap_err();
        assert!(error.contains(part), "{error}");
    }
}
