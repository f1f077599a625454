//! Versions from web servers and buckets: they serve like those of the models directory, and what a source cannot give disturbs nothing.

use crate::support::files::{Fault, FileServer};
use crate::support::process::Served;
use crate::support::{Gateway, eventually, infer_body, onnx};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

fn settings(server: &FileServer, more: &str) -> String {
    format!(
        "[models.sources]\nuris = [\"http://{}/models\"]\ninterval = \"100ms\"\ntimeout = \"1s\"\n{more}",
        server.address
    )
}

/// The version in the list of sources, as soon as `is_so` is true of it.
fn wait_listed(gateway: &Gateway, version: &str, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    eventually(&format!("{version}: {what}"), || {
        let list = gateway.admin_get("/api/v1/sources").json();
        let found = list["sources"][0]["versions"].as_array()?.iter().find(|v| {
            format!("{}/{}", v["model"].as_str().unwrap_or_default(), v["version"].as_str().unwrap_or_default())
                == version
        });
        found.filter(|version| is_so(version)).cloned()
    })
}

fn version(gateway: &Gateway, model: &str, version: u64) -> Value {
    gateway.admin_get(&format!("/api/v1/models/{model}/versions/{version}")).json()
}

#[test]
fn a_version_on_a_web_server_serves_and_one_that_cannot_be_read_says_why() {
    let server = FileServer::start();
    server.put("models/self/1/model.onnx", onnx::answering(1.0, 4, 0));
    server.put("models/self/model.toml", "versions = \"all\"\n");
    let gateway = Gateway::start_with(&settings(&server, ""), |_| {});
    // A server that has nothing is not ready until its sources were read.
    gateway.wait_ready();
    assert_eq!(gateway.state("self", 1).as_deref(), Some("serving"));
    let answer = gateway.post("/v2/models/self/infer", infer_body(&[1, 4], &[0.0; 4]));
    assert_eq!(answer.json()["model_version"], "1", "{answer:?}");

    server.set(Fault::Cuts(10));
    server.put("models/self/2/model.onnx", onnx::answering(2.0, 4, 0));
    wait_listed(&gateway, "self/2", "it failed", |version| version["state"] == "failed");
    let told = eventually("the version says it", || {
        Some(version(&gateway, "self", 2))
            .filter(|version| version["reason"].as_str().is_some_and(|r| r.contains("cannot be read")))
    });
    assert_eq!(told["state"], "pending", "{told}");
    assert_eq!(gateway.state("self", 1).as_deref(), Some("serving"), "what serves is not disturbed");
    server.set(Fault::None);
    gateway.wait_state("self", 2, "ready");
    assert_eq!(gateway.promote("self", 2).status, 200);

    // The source is away: nothing changes, and it is told.
    server.set(Fault::Status(403));
    eventually("the source is failing", || {
        let list = gateway.admin_get("/api/v1/sources").json();
        let source = &list["sources"][0];
        (source["state"] == "failing" && source["message"].as_str()?.contains("403")).then_some(())
    });
    let metrics = String::from_utf8(gateway.admin_get("/metrics").body).unwrap();
    assert!(metrics.contains("sluicegate_source_rounds_total{source=\"http://"), "{metrics}");
    assert_eq!(gateway.state("self", 2).as_deref(), Some("serving"));
    gateway.stop();
}

#[test]
fn a_list_of_digests_is_held_to_and_a_silent_server_is_given_up() {
    let server = FileServer::start();
    let (good, bad) = (onnx::answering(1.0, 4, 0), onnx::answering(2.0, 4, 0));
    server.put("models/self/1/model.onnx", good.clone());
    server.put("models/self/2/model.onnx", bad);
    let sums = format!(
        "{:x}  ./self/1/model.onnx\n{:x}  ./self/2/model.onnx\n",
        Sha256::digest(&good),
        Sha256::digest(b"other")
    );
    server.put("models/SHA256SUMS", sums);
    let gateway = Gateway::start_with(&settings(&server, ""), |_| {});
    gateway.wait_ready();
    gateway.wait_state("self", 1, "serving");
    let failed = wait_listed(&gateway, "self/2", "it failed", |version| version["state"] == "failed");
    assert!(failed["message"].as_str().unwrap().contains("its SHA-256 is"), "{failed}");

    server.set(Fault::Stalls(5));
    let third = onnx::answering(3.0, 4, 0);
    server.put(
        "models/SHA256SUMS",
        format!("{:x}  self/1/model.onnx\n{:x}  self/3/model.onnx\n", Sha256::digest(&good), Sha256::digest(&third)),
    );
    server.put("models/self/3/model.onnx", third);
    eventually("the list is not read", || {
        let list = gateway.admin_get("/api/v1/sources").json();
        let message = list["sources"][0]["message"].as_str()?;
        (message.contains("sent nothing for 1 s") || message.contains("timed out")).then_some(())
    });
    server.set(Fault::None);
    gateway.wait_state("self", 3, "ready");
    gateway.stop();
}

#[test]
fn a_bucket_fills_a_server_that_is_killed_in_the_middle_and_starts_again_without_the_bucket() {
    let mut bucket = FileServer::start();
    let dir = tempfile::TempDir::new().unwrap();
    let model = onnx::answering(1.0, 4, 20_000);
    for file in ["bucket/prod/self/1/model.onnx", "bucket/prod/other/1/model.onnx", "bucket/prodigy/no/1/model.onnx"] {
        bucket.put(file, model.clone());
    }
    for other in 0..5 {
        bucket.put(&format!("bucket/prod/self/1/extra/{other}.txt"), format!("file {other}"));
    }
    let endpoint = format!("http://{}", bucket.address);
    let environment = [
        ("SLUICEGATE__MODELS__SOURCES__URIS", "[\"s3://bucket/prod\"]"),
        ("SLUICEGATE__MODELS__SOURCES__INTERVAL", "100ms"),
        ("SLUICEGATE__MODELS__SOURCES__TIMEOUT", "10s"),
        ("AWS_ENDPOINT_URL", &endpoint),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
    ];
    let middle = model.len() / 2;
    bucket.set(Fault::Stalls(middle));
    let mut served = Served::start_with(dir.path(), &environment);
    let begun = |server: &FileServer| server.reads().iter().any(|read| read.path.ends_with("model.onnx"));
    eventually("the download is in its middle", || {
        let partials = std::fs::read_dir(dir.path().join("data/sources/partial")).ok()?;
        let arrived = partials.flatten().any(|file| file.metadata().is_ok_and(|meta| meta.len() >= middle as u64));
        (arrived && begun(&bucket)).then_some(())
    });
    served.kill();
    bucket.set(Fault::None);
    let mut served = Served::start_with(dir.path(), &environment);
    served.ready();
    served.wait_state("self", 1, "serving");
    assert_eq!(served.version_serving(), "1");
    let reads = bucket.reads();
    assert!(reads.iter().any(|read| read.path.ends_with("model.onnx") && read.from == middle), "it went on: {reads:?}");
    assert!(reads.iter().all(|read| read.signed && !read.path.contains("prodigy")), "{reads:?}");
    let shown = served.cli(&["sources"]);
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("s3://bucket/prod") && shown.contains("2 of 2"), "{shown}");
    served.kill();

    bucket.stop();
    let mut served = Served::start_with(dir.path(), &environment);
    served.ready();
    assert_eq!(served.version_serving(), "1", "from the data directory");
    served.stop();
}

/// Debian's `docker-registry` on a free port.
struct Registry {
    child: std::process::Child,
    address: String,
}

impl Registry {
    /// `None` where the program is not installed (`.ci/run` installs it).
    fn start(dir: &std::path::Path) -> Option<Registry> {
        let config = dir.join("registry.yml");
        let storage = dir.join("registry");
        let text = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:0\n",
            storage.display()
        );
        std::fs::write(&config, text).unwrap();
        let mut child = std::process::Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stderr(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .spawn()
            .ok()?;
        let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stderr.take().unwrap()));
        let address = lines.by_ref().map_while(Result::ok).find_map(|line| {
            let (_, rest) = line.split_once("listening on ")?;
            Some(
                rest.trim_matches(|c: char| !c.is_ascii_digit())
                    .split(|c: char| !c.is_ascii_digit() && c != '.' && c != ':')
                    .next()?
                    .to_owned(),
            )
        });
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Some(Registry { child, address: address.unwrap() })
    }

    /// Uploads bytes, and returns their descriptor.
    fn push_blob(&self, repository: &str, media_type: &str, bytes: &[u8]) -> Value {
        let digest = format!("sha256:{:x}", Sha256::digest(bytes));
        let begun = ureq::post(format!("http://{}/v2/{repository}/blobs/uploads/", self.address)).send_empty().unwrap();
        let location = begun.headers()["location"].to_str().unwrap().to_owned();
        let location = if location.starts_with('/') { format!("http://{}{location}", self.address) } else { location };
        let and = if location.contains('?') { '&' } else { '?' };
        let done = ureq::put(format!("{location}{and}digest={digest}"))
            .header("content-type", "application/octet-stream")
            .send(bytes);
        assert_eq!(done.unwrap().status(), 201);
        serde_json::json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    }

    fn push(&self, repository: &str, tag: &str, layers: &[Value]) {
        const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
        let config = self.push_blob(repository, "application/vnd.oci.image.config.v1+json", b"{}");
        let manifest =
            serde_json::json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
        let url = format!("http://{}/v2/{repository}/manifests/{tag}", self.address);
        let pushed = ureq::put(url).header("content-type", MANIFEST).send(manifest.to_string()).unwrap();
        assert_eq!(pushed.status(), 201);
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A layer as container tools make it: with what else an image has.
fn layer(dir: &std::path::Path, model: &[u8]) -> Vec<u8> {
    let root = dir.join("layer");
    let _ = std::fs::remove_dir_all(&root);
    std::fs::create_dir_all(root.join("models")).unwrap();
    std::fs::create_dir_all(root.join("bin")).unwrap();
    std::fs::write(root.join("bin/busybox"), "no program").unwrap();
    std::os::unix::fs::symlink("busybox", root.join("bin/sh")).unwrap();
    std::fs::write(root.join("models/model.onnx"), model).unwrap();
    let packed = std::process::Command::new("tar").arg("-czf").arg("-").arg("-C").arg(&root).arg(".").output().unwrap();
    assert!(packed.status.success(), "{packed:?}");
    packed.stdout
}

#[test]
fn an_image_and_an_artifact_of_a_registry_serve() {
    let dir = tempfile::TempDir::new().unwrap();
    let Some(registry) = Registry::start(dir.path()) else {
        eprintln!("docker-registry is not installed: this test does nothing");
        return;
    };
    let gzip = "application/vnd.oci.image.layer.v1.tar+gzip";
    let car = registry.push_blob("team/self", gzip, &layer(dir.path(), &onnx::answering(1.0, 4, 0)));
    registry.push("team/self", "v1", &[car]);
    let mut file = registry.push_blob("artifacts/net", "application/onnx", &onnx::answering(2.0, 4, 0));
    file["annotations"] = serde_json::json!({"org.opencontainers.image.title": "net.onnx"});
    registry.push("artifacts/net", "latest", &[file]);
    let address = &registry.address;
    let settings = format!(
        "[models.sources]\ninterval = \"100ms\"\nuris = [\"oci://{address}/team/self:v1\", {{ uri = \"oci://{address}/artifacts/net:latest\", model = \"self\", version = 2 }}]\n"
    );
    let gateway = Gateway::start_with(&settings, |_| {});
    gateway.wait_ready();
    for version in [1, 2] {
        eventually(&format!("version {version} is loaded"), || {
            gateway.state("self", version).filter(|state| state == "ready" || state == "serving")
        });
    }
    // Another image under the same tag is another version for those who push it, and other bytes under a number for the server.
    let other = registry.push_blob("team/self", gzip, &layer(dir.path(), &onnx::answering(3.0, 4, 0)));
    assert_eq!(gateway.promote("self", 1).status, 200);
    registry.push("team/self", "v1", &[other]);
    eventually("the version says it", || {
        let notes = version(&gateway, "self", 1)["notes"].to_string();
        notes.contains("has other bytes for it now").then_some(())
    });
    gateway.stop();
}
