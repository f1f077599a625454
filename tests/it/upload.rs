//! Sealed files reach their bucket: once, whole, whatever ends in between; and everything reads them from there.

use crate::support::files::{Fault, FileServer};
use crate::support::process::{Served, binary, onnxruntime};
use crate::support::{copy, eventually, onnx};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The environment of a gateway that uploads to the bucket, and of commands.
fn environment(bucket: &FileServer, more: &[(&str, &str)]) -> Vec<(String, String)> {
    let endpoint = format!("http://{}", bucket.address);
    let all = [
        ("SLUICEGATE__PREDICTION_LOG__UPLOAD", "s3://bucket/prod"),
        ("SLUICEGATE__PREDICTION_LOG__UPLOAD_NODE", "eu-1"),
        ("SLUICEGATE__PREDICTION_LOG__SEAL_AFTER", "200ms"),
        ("SLUICEGATE__SERVER__SHUTDOWN_GRACE", "10s"),
        ("SLUICEGATE__SERVER__SHUTDOWN_ANNOUNCE", "100ms"),
        ("AWS_ENDPOINT_URL", &endpoint),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
    ];
    all.iter().chain(more).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

pub fn start(dir: &Path, environment: &[(String, String)]) -> Served {
    let environment: Vec<(&str, &str)> =
        environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    Served::start_with(dir, &environment)
}

pub fn command(dir: &Path, environment: &[(String, String)], words: &[&str]) -> Output {
    let mut command = Command::new(binary());
    command.args(words).current_dir(dir).env("ORT_DYLIB_PATH", onnxruntime());
    command.envs(environment.iter().filter(|(name, _)| name.starts_with("AWS")).cloned()).output().unwrap()
}

/// The output of a command that must succeed.
pub fn done(output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).concat();
    assert!(output.status.success(), "{text}");
    text
}

/// A sealed file of an earlier server. What is in it does not matter for uploads.
pub fn sealed(dir: &Path, number: u64, bytes: usize) -> PathBuf {
    let day = dir.join("data/predictions/model=m/date=2026-11-01");
    std::fs::create_dir_all(&day).unwrap();
    let file = day.join(format!("{number:020}-0.parquet"));
    let content: Vec<u8> = (0..bytes).map(|i| u8::try_from((i * 31 + i / 251) % 251).unwrap()).collect();
    std::fs::write(&file, content).unwrap();
    file
}

pub fn upload(served: &Served) -> Value {
    let status: Value = serde_json::from_str(&served.admin_get("/api/v1/log")).unwrap();
    status["upload"].clone()
}

pub fn wait_uploaded(served: &Served, files: u64) -> Value {
    eventually(&format!("{files} files are uploaded"), || {
        let upload = upload(served);
        (upload["waiting_files"] == 0 && upload["files"].as_u64()? >= files).then_some(upload)
    })
}

/// The sealed files of a data directory, by their paths there.
pub fn local(data: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut dirs: Vec<PathBuf> = ["predictions", "feedback", "gaps"].map(|kind| data.join(kind)).into();
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                dirs.push(entry.path());
            } else {
                let name = entry.path().strip_prefix(data).unwrap().to_str().unwrap().to_owned();
                files.insert(name, std::fs::read(entry.path()).unwrap());
            }
        }
    }
    files
}

/// The objects of one gateway by the names of their files in the data directory.
fn uploaded(bucket: &FileServer, node: &str) -> BTreeMap<String, Vec<u8>> {
    let objects = bucket.files("bucket/prod").into_iter();
    let own = objects.filter_map(|(name, bytes)| {
        let (stem, rest) = name.split_once('.')?;
        let (of, id) = rest.strip_suffix(".parquet")?.split_once('.')?;
        assert!(id.len() == 8 && id.bytes().all(|b| b.is_ascii_hexdigit()), "{name}");
        (of == node).then(|| (format!("{stem}.parquet"), bytes))
    });
    own.collect()
}

pub fn ask(served: &Served, id: &str, user: &str, x: f32) {
    let url = format!("http://{}/v2/models/m/infer", served.data);
    let body = json!({"id": id, "inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [x, 1]}]});
    let answer = ureq::post(&url).header("x-user", user).send(body.to_string());
    assert_eq!(answer.unwrap().status(), 200);
}

fn label(served: &Served, ids: &[String]) {
    let entries: Vec<Value> = ids.iter().map(|id| json!({"request_id": id, "row": 0, "label": 0})).collect();
    let url = format!("http://{}/v1/models/m:feedback", served.data);
    assert_eq!(ureq::post(&url).send(json!({"feedback": entries}).to_string()).unwrap().status(), 202);
}

/// Splits by user, and sends a gateway six requests of two users with their labels. Returns their ids.
pub fn fill(served: &Served, node: &str) -> Vec<String> {
    let document = json!({"split": [{"version": "1", "weight": 1}], "sticky_by": {"header": "x-user"}, "salt": "s"});
    put_traffic(served, &document);
    let own: Vec<String> = (0..6).map(|i| format!("{node}-{i}")).collect();
    for (i, id) in own.iter().enumerate() {
        ask(served, id, if i < 2 { "alice" } else { "bob" }, f32::from(u8::try_from(i).unwrap()));
    }
    label(served, &own);
    own
}

#[test]
fn what_two_gateways_uploaded_is_read_as_from_one_directory_and_a_person_is_forgotten_there() {
    let bucket = FileServer::start();
    let all = TempDir::new().unwrap();
    let nodes = ["eu-1", "eu-2"];
    let models = all.path().join("models");
    std::fs::create_dir_all(&models).unwrap();
    onnx::install(&models, "m", 1, &onnx::scaling(1.0));
    std::fs::write(models.join("m/model.toml"), "[prediction_log]\nhash_route_key = false\n").unwrap();
    let mut ids = Vec::new();
    for node in nodes {
        let dir = all.path().join(node);
        copy(&models, &dir.join("models"));
        let environment = environment(&bucket, &[("SLUICEGATE__PREDICTION_LOG__UPLOAD_NODE", node)]);
        let mut served = start(&dir, &environment);
        served.ready();
        served.wait_state("m", 1, "serving");
        let own = fill(&served, node);
        ids.extend(own);
        wait_uploaded(&served, 2);
        let metrics = served.admin_get("/metrics");
        assert!(metrics.contains("sluicegate_upload_waiting_files 0"), "{metrics}");
        // A stop seals and uploads what was left.
        served.stop();
        assert_eq!(uploaded(&bucket, node), local(&dir.join("data")), "the objects are the files, under their names");
    }
    assert!(bucket.writes().iter().all(|write| write.method == "PUT"), "{:?}", bucket.writes());
    assert!(bucket.reads().iter().all(|read| read.signed), "{:?}", bucket.reads());

    // A copy of the bucket is a data directory for readers.
    let copied = all.path().join("copy");
    for (name, bytes) in bucket.files("bucket/prod") {
        let path = copied.join(&name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    let environment = environment(&bucket, &[]);
    let run = |line: &str| command(all.path(), &environment, &line.split(' ').collect::<Vec<_>>());
    let from_copy = done(&run("export m -o copy.parquet --data-dir copy"));
    assert!(from_copy.contains("12 rows, 12 of them with a label"), "{from_copy}");
    done(&run("export m -o bucket.parquet --log s3://bucket/prod"));
    let bytes = |name: &str| std::fs::read(all.path().join(name)).unwrap();
    assert!(bytes("copy.parquet") == bytes("bucket.parquet"), "the export over the bucket is the one over the files");
    done(&run("export m -o one.csv --data-dir eu-2/data"));
    assert_eq!(
        bytes("one.csv").split(|b| *b == b'\n').filter(|line| !line.is_empty()).count(),
        7,
        "one gateway's alone"
    );
    let replayed = done(&run("replay m --version 1 --log s3://bucket/prod --gate agreement>=1"));
    assert!(replayed.contains("replayed 12 requests"), "{replayed}");
    let profiled = done(&run("profile --from-log m 1 -o profile.json --log s3://bucket/prod"));
    assert!(profiled.contains("of 12 rows"), "{profiled}");
    let before = bucket.reads().len();
    let none = run("export m -o none.parquet --to 2020-01-01 --log s3://bucket/prod");
    let none = String::from_utf8(none.stderr).unwrap();
    assert!(none.contains("s3://bucket/prod has no matching predictions of m"), "{none}");
    let predictions = bucket.reads()[before..].iter().filter(|read| read.path.contains("/predictions/")).count();
    assert_eq!(predictions, 0, "days that do not match are not read");
    let wrong = run("export m -o none.parquet --log s3://other/prod/x/");
    assert!(!wrong.status.success());
    duckdb(&copied, &ids);

    // One gateway forgets her: the objects of both are written again, and nobody else's records change.
    let dir = all.path().join("eu-1");
    let line = ["forget", "--route-key", "alice", "--reason", "a request", "--data-dir", "data"];
    bucket.set(Fault::Status(503));
    let refused = command(&dir, &environment, &line);
    let refused = String::from_utf8(refused.stderr).unwrap();
    assert!(refused.contains("nothing was changed"), "{refused}");
    assert_eq!(uploaded(&bucket, "eu-1"), local(&dir.join("data")), "nothing was");
    bucket.set(Fault::None);
    let told = done(&command(&dir, &environment, &line));
    assert!(told.starts_with("removed 2 records of predictions and 2 of feedback of m"), "{told}");
    assert!(told.contains("in the bucket: removed 4 records of predictions and 4 of feedback"), "{told}");
    assert!(bucket.files("bucket/prod").values().all(|bytes| !bytes.windows(5).any(|text| text == b"alice")));
    done(&run("export m -o left.csv --log s3://bucket/prod"));
    let left = String::from_utf8(bytes("left.csv")).unwrap();
    assert_eq!(left.lines().count(), 9, "{left}");
    assert!(ids.iter().filter(|id| left.contains(id.as_str())).count() == 8, "{left}");
    // The next start compares the files that were written again with their objects, and sends none of them.
    let sent = bucket.writes().len();
    let mut served = start(&dir, &environment);
    wait_uploaded(&served, 1);
    assert_eq!(bucket.writes().len(), sent, "{:?}", &bucket.writes()[sent..]);
    served.kill();
}

fn put_traffic(served: &Served, document: &Value) {
    let url = format!("http://{}/api/v1/models/m/traffic", served.admin);
    let answer = ureq::put(&url).content_type("application/json").send(document.to_string());
    assert_eq!(answer.unwrap_or_else(|e| panic!("{e}: {document}")).status(), 200);
}

/// The query of docs/UPLOAD.md over a copy of the bucket.
pub fn duckdb(copied: &Path, ids: &[String]) {
    let python = std::env::var("SLUICEGATE_TEST_PYTHON").unwrap_or_else(|_| ".venv/bin/python".to_owned());
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/UPLOAD.md")).unwrap();
    let (_, query) = page.split_once("```sql\n").unwrap();
    let query = query.split_once("```").unwrap().0.replace("s3://ml-records/production", &copied.display().to_string());
    let script = format!(
        "import sys\ntry:\n    import duckdb\nexcept ImportError:\n    sys.exit(99)\nc = duckdb.connect()\nc.execute(sys.argv[1])\n\
         rows = c.execute(\"SELECT node, count(DISTINCT request_id), count(DISTINCT date) FROM predictions GROUP BY node ORDER BY node\").fetchall()\n\
         assert [row[:2] for row in rows] == [('eu-1', {half}), ('eu-2', {half})], rows\n",
        half = ids.len() / 2
    );
    let Ok(output) = Command::new(python).args(["-c", &script, &query]).output() else {
        eprintln!("there is no Python: the query is not checked");
        return;
    };
    if output.status.code() == Some(99) {
        eprintln!("there is no DuckDB: the query is not checked");
        return;
    }
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_kill_in_the_middle_of_a_file_goes_on_with_the_part_that_is_missing() {
    let bucket = FileServer::start();
    let dir = TempDir::new().unwrap();
    let file = sealed(dir.path(), 7, 20 << 20);
    let environment = environment(&bucket, &[]);
    // The upload is created, and one of three parts arrives.
    bucket.set(Fault::TakesOnly(2));
    let mut served = start(dir.path(), &environment);
    let begun = dir.path().join("data/upload/begun.json");
    let parts = || -> Option<usize> {
        let begun: Value = serde_json::from_slice(&std::fs::read(&begun).ok()?).ok()?;
        Some(begun["parts"].as_array()?.len())
    };
    eventually("a part is noted", || (parts()? == 1).then_some(()));
    served.kill();
    bucket.set(Fault::None);
    let mut served = start(dir.path(), &environment);
    let report = wait_uploaded(&served, 1);
    let sent = report["bytes"].as_u64().unwrap();
    assert!((12 << 20..13 << 20).contains(&sent), "only the parts that were missing, and small files: {report}");
    let predictions = || -> Vec<(String, Vec<u8>)> {
        uploaded(&bucket, "eu-1").into_iter().filter(|(name, _)| name.starts_with("predictions/")).collect()
    };
    let objects = predictions();
    assert_eq!(objects.len(), 1);
    assert!(objects[0].1 == std::fs::read(&file).unwrap(), "the object has the bytes of the file");
    // Kills leave small files of gaps.
    let written = || -> Vec<String> {
        let of = bucket.writes().into_iter().filter(|write| write.path.contains("/predictions/"));
        of.map(|write| format!("{} {}", write.method, write.query)).collect()
    };
    let queries = written();
    let created = queries.iter().filter(|query| query.contains("uploads")).count();
    assert_eq!((created, queries.len()), (1, 5), "one upload, three parts, one end: {queries:?}");
    served.kill();

    // The note that it arrived is lost: the object is compared, and nothing is sent again.
    std::fs::remove_file(dir.path().join("data/upload/uploaded.jsonl")).unwrap();
    let mut served = start(dir.path(), &environment);
    wait_uploaded(&served, 1);
    assert_eq!(written().len(), 5, "{:?}", written());
    served.kill();

    // The parts of another file are gone when the server is back: it begins again.
    sealed(dir.path(), 8, 9 << 20);
    bucket.set(Fault::TakesOnly(2));
    let mut served = start(dir.path(), &environment);
    eventually("a part is noted", || (parts()? == 1).then_some(()));
    served.kill();
    bucket.set(Fault::None);
    assert_eq!(bucket.end_uploads(), 1);
    let mut served = start(dir.path(), &environment);
    eventually("all files are there", || {
        (uploaded(&bucket, "eu-1") == local(&dir.path().join("data")) && predictions().len() == 2).then_some(())
    });
    served.kill();
}

#[test]
fn files_wait_for_the_bucket_and_are_lost_only_when_the_budget_is_full() {
    let bucket = FileServer::start();
    let dir = TempDir::new().unwrap();
    onnx::install(&dir.path().join("models"), "m", 1, &onnx::scaling(1.0));
    let files: Vec<PathBuf> = (1..=3).map(|number| sealed(dir.path(), number, 400 << 10)).collect();
    let environment = environment(
        &bucket,
        &[
            ("SLUICEGATE__PREDICTION_LOG__DISK_BUDGET", "1MiB"),
            ("SLUICEGATE__PREDICTION_LOG__KEEP_FOR", "1h"),
            ("SLUICEGATE__PREDICTION_LOG__UPLOAD_TIMEOUT", "400ms"),
        ],
    );
    bucket.set(Fault::Status(403));
    let served = start(dir.path(), &environment);
    served.ready();
    served.wait_state("m", 1, "serving");
    let report = eventually("it says why", || {
        let upload = upload(&served);
        upload["last_error"].as_str()?.contains("the credentials do not allow it (403)").then_some(upload)
    });
    assert!(report["failing_since"].is_string() && report["oldest_waiting"].is_string(), "{report}");
    // They are older than keep_for, and stay: the budget has room for two of them.
    let lost = eventually("the oldest is lost", || Some(upload(&served)).filter(|upload| upload["lost_files"] == 1));
    assert!(lost["waiting_files"].as_u64().unwrap() >= 2, "{lost}");
    assert_eq!(files.iter().map(|file| file.exists()).collect::<Vec<_>>(), [false, true, true]);
    ask(&served, "a", "u", 1.0);
    // It takes what is sent, and does not answer.
    bucket.set(Fault::TakesOnly(0));
    eventually("it says why", || {
        upload(&served)["last_error"]
            .as_str()?
            .contains("no answer within 0.4 s (prediction_log.upload_timeout)")
            .then_some(())
    });
    let metrics = served.admin_get("/metrics");
    assert!(metrics.contains("sluicegate_log_files_deleted_total{reason=\"not_uploaded\"} 1"), "{metrics}");
    bucket.set(Fault::None);
    wait_uploaded(&served, 3);
    let report = upload(&served);
    assert_eq!((&report["last_error"], &report["lost_files"]), (&Value::Null, &json!(1)), "{report}");
    // Now they are older than keep_for and uploaded.
    let gone = || (!files.iter().any(|file| file.exists())).then_some(());
    eventually("they are deleted here", gone);
    let objects = uploaded(&bucket, "eu-1");
    assert!(objects.len() >= 3, "{:?}", objects.keys());
    assert_eq!(objects.values().filter(|bytes| bytes.len() == 400 << 10).count(), 2, "and they are in the bucket");
}

#[test]
fn uploaded_files_are_deleted_here_after_their_time_and_the_bandwidth_is_kept() {
    let bucket = FileServer::start();
    let dir = TempDir::new().unwrap();
    let files: Vec<PathBuf> = (1..=3).map(|number| sealed(dir.path(), number, 512 << 10)).collect();
    let content = std::fs::read(&files[0]).unwrap();
    let environment = environment(
        &bucket,
        &[
            ("SLUICEGATE__PREDICTION_LOG__UPLOAD_KEEP_LOCAL", "1h"),
            ("SLUICEGATE__PREDICTION_LOG__UPLOAD_BYTES_PER_SECOND", "512KiB"),
        ],
    );
    let begin = Instant::now();
    let mut served = start(dir.path(), &environment);
    eventually("all are uploaded and deleted", || {
        let here: Vec<bool> = files.iter().map(|file| file.exists()).collect();
        // What is not here any more was in the bucket before.
        let objects = uploaded(&bucket, "eu-1");
        assert!(here.iter().filter(|here| !**here).count() <= objects.len(), "{here:?}");
        here.iter().all(|here| !here).then_some(())
    });
    assert!(
        begin.elapsed() >= Duration::from_secs(2),
        "three times 512 KiB at 512 KiB a second: {:?}",
        begin.elapsed()
    );
    let objects = uploaded(&bucket, "eu-1");
    assert_eq!(objects.len(), 3);
    assert!(objects.values().all(|bytes| *bytes == content), "the objects have the bytes that were here");
    served.stop();
    let audit = command(dir.path(), &environment, &["audit", "--export", "--data-dir", "data"]);
    let audit = String::from_utf8(audit.stdout).unwrap();
    assert!(audit.contains("upload_keep_local"), "{audit}");
}
