//! Versions from OCI registries: Debian's `docker-registry`, open and with logins. `src/mirror/tests_registry.rs` has registries that are wrong.

use crate::support::process::Served;
use crate::support::{Gateway, eventually, onnx};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// `user` with the password `secret`, as `htpasswd -nbBC 4` writes it.
const USERS: &str = "user:$2y$04$wkNFjPBW2nK7hl3zj1ChSegSxnndL6dV/PCNgbPoM2snjaPHUH6mi\n";

/// Debian's `docker-registry` on a free port.
struct Registry {
    child: std::process::Child,
    address: String,
    authorization: Option<String>,
}

impl Registry {
    /// `None` where the program is not installed (`.ci/run` installs it).
    /// With `login`, `user:secret` is needed.
    fn start(dir: &std::path::Path, login: bool) -> Option<Registry> {
        let config = dir.join("registry.yml");
        let storage = dir.join("registry");
        let mut text = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:0\n",
            storage.display()
        );
        if login {
            let users = dir.join("htpasswd");
            std::fs::write(&users, USERS).unwrap();
            text = format!("{text}auth:\n  htpasswd:\n    realm: tests\n    path: {}\n", users.display());
        }
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
        let authorization = login.then(|| format!("Basic {}", STANDARD.encode("user:secret")));
        Some(Registry { child, address: address.unwrap(), authorization })
    }

    /// Uploads bytes, and returns their descriptor.
    fn push_blob(&self, repository: &str, media_type: &str, bytes: &[u8]) -> Value {
        let digest = format!("sha256:{:x}", Sha256::digest(bytes));
        let begun = self.request("POST", &format!("http://{}/v2/{repository}/blobs/uploads/", self.address), "", b"");
        let location = begun.headers()["location"].to_str().unwrap().to_owned();
        let location = if location.starts_with('/') { format!("http://{}{location}", self.address) } else { location };
        let and = if location.contains('?') { '&' } else { '?' };
        let done = self.request("PUT", &format!("{location}{and}digest={digest}"), "application/octet-stream", bytes);
        assert_eq!(done.status(), 201);
        serde_json::json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    }

    fn push(&self, repository: &str, tag: &str, layers: &[Value]) {
        const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
        let config = self.push_blob(repository, "application/vnd.oci.image.config.v1+json", b"{}");
        let manifest =
            serde_json::json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
        let url = format!("http://{}/v2/{repository}/manifests/{tag}", self.address);
        let pushed = self.request("PUT", &url, MANIFEST, manifest.to_string().as_bytes());
        assert_eq!(pushed.status(), 201);
    }

    fn request(&self, method: &str, url: &str, media_type: &str, body: &[u8]) -> ureq::http::Response<ureq::Body> {
        let mut request = ureq::http::Request::builder().method(method).uri(url).header("content-type", media_type);
        if let Some(authorization) = &self.authorization {
            request = request.header("authorization", authorization);
        }
        ureq::run(request.body(body.to_vec()).unwrap()).unwrap()
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
    let Some(registry) = Registry::start(dir.path(), false) else {
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
        let notes = gateway.admin_get("/api/v1/models/self/versions/1").json()["notes"].to_string();
        notes.contains("has other bytes for it now").then_some(())
    });
    gateway.stop();
}

#[test]
fn a_registry_with_logins_is_read_with_the_login_of_docker() {
    let dir = tempfile::TempDir::new().unwrap();
    let Some(registry) = Registry::start(dir.path(), true) else {
        eprintln!("docker-registry is not installed: this test does nothing");
        return;
    };
    let file = registry.push_blob("team/self", "application/onnx", &onnx::answering(1.0, 4, 0));
    registry.push("team/self", "1", &[file]);
    let uris = format!("[\"oci://{}/team/self:1\"]", registry.address);
    let serve = |logins: &[(&str, &str)]| {
        let settings =
            [("SLUICEGATE__MODELS__SOURCES__URIS", uris.as_str()), ("SLUICEGATE__MODELS__SOURCES__INTERVAL", "100ms")];
        Served::start_with(dir.path(), &[&settings[..], logins].concat())
    };
    let docker = dir.path().join("docker");
    std::fs::create_dir(&docker).unwrap();
    let here = ("DOCKER_CONFIG", docker.to_str().unwrap());
    let log_in = |password: &str| {
        let auth = STANDARD.encode(format!("user:{password}"));
        let config = serde_json::json!({"auths": {registry.address.as_str(): {"auth": auth}}});
        std::fs::write(docker.join("config.json"), config.to_string()).unwrap();
    };
    log_in("mellon");
    let mut served = serve(&[here]);
    eventually("the source says that the login is wrong", || {
        let sources: Value = serde_json::from_str(&served.admin_get("/api/v1/sources")).unwrap();
        sources["sources"][0]["message"].as_str()?.contains("credentials are missing or wrong (401)").then_some(())
    });
    assert!(!served.log().concat().contains("mellon"), "no password is logged");
    served.kill();
    log_in("secret");
    // A credential helper gives the login: one that fails at first.
    let programs = dir.path().join("programs");
    std::fs::create_dir(&programs).unwrap();
    let helper = programs.join("docker-credential-test");
    let script = format!(
        "#!/bin/sh\ntest \"$1\" = get && test \"$(cat)\" = {} && test -e {}/open || {{ echo locked >&2; exit 1; }}\n\
         echo '{{\"ServerURL\":\"x\",\"Username\":\"user\",\"Secret\":\"secret\"}}'\n",
        registry.address,
        programs.display()
    );
    std::fs::write(&helper, script).unwrap();
    std::fs::set_permissions(&helper, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let asks = dir.path().join("asks");
    std::fs::create_dir(&asks).unwrap();
    std::fs::write(asks.join("config.json"), r#"{"auths": {}, "credsStore": "test"}"#).unwrap();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let mut served = serve(&[("DOCKER_CONFIG", asks.to_str().unwrap()), ("PATH", &path)]);
    eventually("the source says that the helper failed", || {
        let sources: Value = serde_json::from_str(&served.admin_get("/api/v1/sources")).unwrap();
        let words = "the program docker-credential-test ended with exit code 1: locked";
        sources["sources"][0]["message"].as_str()?.contains(words).then_some(())
    });
    std::fs::write(programs.join("open"), "").unwrap();
    served.ready();
    served.wait_state("self", 1, "serving");
    served.stop();
    std::fs::remove_dir_all(dir.path().join("data")).unwrap();
    for login in [&[here][..], &[("SLUICEGATE_OCI_USERNAME", "user"), ("SLUICEGATE_OCI_PASSWORD", "secret")]] {
        let mut served = serve(login);
        served.ready();
        served.wait_state("self", 1, "serving");
        assert_eq!(served.version_serving(), "1");
        served.stop();
        std::fs::remove_dir_all(dir.path().join("data")).unwrap();
    }
}
