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
fn files_of_one_model_and_hundreds_without_a_model_keep_no_other_from_being_read() {
    let server = FileServer::start();
    for model in ["aa", "mm", "zz"] {
        server.put(&format!("models/{model}/1/model.onnx"), onnx::answering(1.0, 4, 0));
    }
    server.put("models/mm/model.toml", "#".repeat(2 << 20));
    for number in 0..130 {
        server.put(&format!("models/x{number}/1/other.bin"), "x");
    }
    let gateway = Gateway::start_with(&settings(&server, ""), |_| {});
    gateway.wait_ready();
    gateway.wait_state("aa", 1, "serving");
    gateway.wait_state("zz", 1, "serving");
    let failed = wait_listed(&gateway, "mm/1", "it failed", |version| version["state"] == "failed");
    assert!(
        failed["message"].as_str().unwrap().contains("model.toml of model mm cannot be read: it is larger than"),
        "{failed}"
    );
    let list = gateway.admin_get("/api/v1/sources").json();
    let remarks = list["sources"][0]["remarks"].to_string();
    assert!(
        remarks.contains("30 more versions cannot be read") && remarks.contains("model.toml of model mm"),
        "{remarks}"
    );
    assert_eq!(list["sources"][0]["versions"].as_array().unwrap().len(), 133);
    let models = gateway.admin_get("/api/v1/models").json();
    assert_eq!(models["models"].as_array().unwrap().len(), 103, "as many as are told");
    // The file is mended.
    server.put("models/mm/model.toml", "versions = \"all\"\n");
    gateway.wait_state("mm", 1, "serving");
    gateway.stop();
}

#[test]
fn readiness_names_the_source_that_it_waits_for() {
    // It takes connections and never answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let uri = format!("http://{}/models", silent.local_addr().unwrap());
    let dir = tempfile::TempDir::new().unwrap();
    onnx::install(&dir.path().join("models"), "self", 1, &onnx::answering(1.0, 4, 0));
    let uris = format!("[\"{uri}\"]");
    let settings =
        [("SLUICEGATE__MODELS__SOURCES__URIS", uris.as_str()), ("SLUICEGATE__MODELS__SOURCES__TIMEOUT", "30s")];
    let mut served = Served::start_with(dir.path(), &settings);
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    eventually("the details name it", || {
        let mut answer = agent.get(format!("http://{}/readyz", served.admin)).call().ok()?;
        let text = answer.body_mut().read_to_string().ok()?;
        let named = text.contains(&format!("the source {uri} is read for the first time"));
        (answer.status() == 503 && named).then_some(())
    });
    served.kill();
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
    // The keys may be in the file that AWS's programs share.
    let keys = dir.path().join("credentials");
    std::fs::write(&keys, "[ml]\naws_access_key_id = key\naws_secret_access_key = secret\n").unwrap();
    let of_profile = [("AWS_PROFILE", "ml"), ("AWS_SHARED_CREDENTIALS_FILE", keys.to_str().unwrap())];
    let environment = [&environment[..5], &of_profile].concat();
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

    // Or a program gives them, as single sign-on and roles need it.
    let program = "[ml]\ncredential_process = sh -c 'echo {\\\"Version\\\":1,\\\"AccessKeyId\\\":\\\"key\\\",\\\"SecretAccessKey\\\":\\\"secret\\\"}'\n";
    std::fs::write(&keys, program).unwrap();
    let before = bucket.reads().len();
    std::fs::remove_dir_all(dir.path().join("data")).unwrap();
    let mut served = Served::start_with(dir.path(), &environment);
    served.ready();
    served.wait_state("self", 1, "serving");
    let reads = bucket.reads().split_off(before);
    assert!(!reads.is_empty() && reads.iter().all(|read| read.signed), "{reads:?}");
    served.kill();

    bucket.stop();
    let mut served = Served::start_with(dir.path(), &environment);
    served.ready();
    assert_eq!(served.version_serving(), "1", "from the data directory");
    served.ask(&[("x-request-id", "from-a-bucket")]);
    served.stop();

    // The commands that read the log find the version there too.
    let (models, data) = (dir.path().join("models"), dir.path().join("data"));
    let places = ["--models", models.to_str().unwrap(), "--data-dir", data.to_str().unwrap()];
    let run = |words: &[&str]| served.cli(&[words, &places].concat());
    let reproduced = run(&["reproduce", "from-a-bucket"]);
    assert!(reproduced.status.success(), "{}", String::from_utf8_lossy(&reproduced.stderr));
    let replayed = run(&["replay", "self", "--version", "1"]);
    let text = String::from_utf8_lossy(&replayed.stdout);
    assert!(text.contains("replayed 1 requests") || text.contains("replayed 2 requests"), "{text} {replayed:?}");
}

#[test]
fn buckets_of_google_and_azure_serve_and_a_download_that_broke_goes_on() {
    let (google, azure) = (FileServer::start(), FileServer::start());
    let dir = tempfile::TempDir::new().unwrap();
    let model = onnx::answering(1.0, 4, 20_000);
    for (server, bucket, name) in [(&google, "bucket", "self"), (&azure, "devstoreaccount1/box", "other")] {
        server.put(&format!("{bucket}/prod/{name}/1/model.onnx"), model.clone());
        server.put(&format!("{bucket}/prodigy/no/1/model.onnx"), model.clone());
        for file in 0..5 {
            server.put(&format!("{bucket}/prod/{name}/1/extra/{file} é.txt"), format!("file {file}"));
        }
        server.set(Fault::Cuts(model.len() / 2));
    }
    let (emulator, blobs) = (google.address.to_string(), format!("http://{}", azure.address));
    let mut served = Served::start_with(
        dir.path(),
        &[
            ("SLUICEGATE__MODELS__SOURCES__URIS", "[\"gs://bucket/prod\", \"az://box/prod\"]"),
            ("SLUICEGATE__MODELS__SOURCES__INTERVAL", "100ms"),
            ("SLUICEGATE__MODELS__SOURCES__TIMEOUT", "10s"),
            ("STORAGE_EMULATOR_HOST", &emulator),
            ("AZURE_STORAGE_USE_EMULATOR", "true"),
            ("AZURITE_BLOB_STORAGE_URL", &blobs),
        ],
    );
    for (server, name) in [(&google, "self"), (&azure, "other")] {
        let of_model =
            |server: &FileServer| server.reads().into_iter().filter(|read| read.path.ends_with("model.onnx"));
        eventually("the download broke", || of_model(server).next());
        server.set(Fault::None);
        served.wait_state(name, 1, "serving");
        let reads = server.reads();
        assert!(of_model(server).any(|read| read.from > 0), "it went on: {reads:?}");
        assert!(reads.iter().all(|read| !read.path.contains("prodigy")), "{reads:?}");
        assert!(reads.iter().all(|read| read.signed == (name == "other")), "Azure's requests are signed: {reads:?}");
        assert!(dir.path().join(format!("data/sources/models/{name}/1/extra/4 é.txt")).exists());
    }
    served.stop();
}
