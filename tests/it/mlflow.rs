//! MLflow's model registry as a source of versions: against MLflow's own server and client, and against a registry that means harm.

use crate::support::process::Served;
use crate::support::tls::Certificates;
use crate::support::{Gateway, eventually, onnx};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;

/// MLflow's server and client, in a process of their own (`tests/python/mlflow_registry.py`).
struct Mlflow {
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
    dir: TempDir,
    port: u16,
}

const USER: &str = "ann";
const PASSWORD: &str = "s3cret";

impl Mlflow {
    fn start() -> Mlflow {
        Mlflow::start_as(&[USER, PASSWORD])
    }

    /// `access`: the last arguments of the script.
    fn start_as(access: &[&str]) -> Mlflow {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let python = std::env::var("SLUICEGATE_TEST_PYTHON")
            .unwrap_or_else(|_| root.join(".venv/bin/python").display().to_string());
        let dir = TempDir::new().unwrap();
        let mut child = Command::new(&python)
            .arg(root.join("tests/python/mlflow_registry.py"))
            .arg(dir.path())
            .args(access)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|e| panic!("{python} does not run (`make venv` creates it): {e}"));
        let commands = child.stdin.take().unwrap();
        let mut answers = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        answers.read_line(&mut line).unwrap();
        let port =
            line.trim().parse().unwrap_or_else(|_| panic!("MLflow did not start (`make venv` installs it): {line:?}"));
        Mlflow { child, commands, answers, dir, port }
    }

    fn uri(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn run(&mut self, command: &Value) -> Value {
        writeln!(self.commands, "{command}").unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        let answer: Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{command}: {e}: {line:?}"));
        assert!(answer.get("error").is_none(), "{command}: {answer}");
        answer["ok"].clone()
    }

    /// Logs and registers a version of `fraud` that answers `answer`. `more`: other arguments.
    fn register(&mut self, answer: f32, more: &Value) -> String {
        let file = self.dir.path().join("model.onnx");
        std::fs::write(&file, onnx::answering(answer, 4, 1000)).unwrap();
        let mut command = json!({"do": "register", "name": "fraud", "file": file});
        command.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap_or_default());
        self.run(&command)["version"].as_str().unwrap().to_owned()
    }

    fn alias(&mut self, alias: &str, version: &str) {
        self.run(&json!({"do": "alias", "name": "fraud", "alias": alias, "version": version}));
    }

    fn tag(&mut self, version: &str, tag: &str) -> String {
        let tags = self.run(&json!({"do": "tags", "name": "fraud", "version": version}));
        tags[tag].as_str().unwrap_or_default().to_owned()
    }

    fn wait_tag(&mut self, version: &str, tag: &str, part: &str) {
        eventually(&format!("the tag {tag} of version {version} says {part:?}"), || {
            self.tag(version, tag).contains(part).then_some(())
        });
    }
}

impl Drop for Mlflow {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn serve(dir: &Path, mlflow: &Mlflow) -> Served {
    let uri = mlflow.uri();
    Served::start_with(
        dir,
        &[
            ("SLUICEGATE__MODELS__MLFLOW__URI", uri.as_str()),
            ("SLUICEGATE__MODELS__MLFLOW__MODELS", "[\"fraud\"]"),
            ("SLUICEGATE__MODELS__MLFLOW__PROMOTE_ALIAS", "champion"),
            ("SLUICEGATE__MODELS__SOURCES__INTERVAL", "200ms"),
            ("SLUICEGATE__MODELS__SETTLE", "100ms"),
            ("MLFLOW_TRACKING_USERNAME", USER),
            ("MLFLOW_TRACKING_PASSWORD", PASSWORD),
        ],
    )
}

fn admin(served: &Served, path: &str) -> Value {
    serde_json::from_str(&served.admin_get(path)).unwrap()
}

/// The version that answers `fraud`, by what it answers.
fn answer(served: &Served) -> f64 {
    let body = json!({"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [0, 0, 0, 0]}]});
    let url = format!("http://{}/v2/models/fraud/infer", served.data);
    let mut answer = ureq::post(&url).send(body.to_string()).unwrap();
    let json: Value = serde_json::from_str(&answer.body_mut().read_to_string().unwrap()).unwrap();
    json["outputs"][0]["data"][0].as_f64().unwrap()
}

/// Has the registry read again. A source that failed waits longer and longer otherwise.
fn read_now(served: &Served) {
    let url = format!("http://{}/api/v1/sources:read", served.admin);
    let answer = ureq::post(&url).content_type("application/json").send("{}").unwrap();
    assert_eq!(answer.status().as_u16(), 202);
}

/// Has the registry read again, and waits until it was. `n` times, so that what was found is also dealt with.
fn rounds(served: &Served, n: usize) {
    for _ in 0..n {
        let read = |served: &Served| admin(served, "/api/v1/sources")["sources"][0]["last_read"].clone();
        let before = read(served);
        read_now(served);
        eventually("the registry was read again", || (read(served) != before).then_some(()));
    }
}

fn alias_state(served: &Served, alias: &str) -> (String, String) {
    let registry = admin(served, "/api/v1/mlflow");
    let aliases = registry["models"][0]["aliases"].as_array().cloned().unwrap_or_default();
    let found = aliases.into_iter().find(|found| found["alias"] == alias).unwrap_or_default();
    let text = |name: &str| found[name].as_str().unwrap_or_default().to_owned();
    (text("state"), text("message"))
}

#[test]
fn versions_aliases_and_lineage_of_mlflows_registry_are_served_and_gates_decide_about_promotions() {
    let mut mlflow = Mlflow::start();
    let commit = json!({"mlflow.source.git.commit": "0badc0de", "mlflow.user": "ann"});
    mlflow.register(1.0, &json!({"params": {"depth": 6}, "metrics": {"auc": 0.97}, "tags": commit}));
    mlflow.register(2.0, &json!({}));
    mlflow.alias("champion", "1");
    mlflow.alias("challenger", "2");
    let dir = TempDir::new().unwrap();
    let settings = dir.path().join("models/fraud");
    std::fs::create_dir_all(&settings).unwrap();
    std::fs::write(settings.join("model.toml"), "[gates]\ngolden = true\n").unwrap();
    let mut served = serve(dir.path(), &mlflow);

    // The version with the alias serves first, although a newer one is there; the other alias is a label.
    served.wait_state("fraud", 1, "serving");
    served.wait_state("fraud", 2, "serving");
    eventually("both aliases are labels", || {
        let traffic = admin(&served, "/api/v1/models/fraud/traffic");
        (traffic["labels"] == json!({"champion": "1", "challenger": "2"})).then_some(())
    });
    let traffic = admin(&served, "/api/v1/models/fraud/traffic");
    assert_eq!((answer(&served), &traffic["split"][0]["version"]), (1.0, &json!("1")));
    assert_eq!(alias_state(&served, "champion").0, "applied");

    // The run is the lineage.
    let lineage = admin(&served, "/api/v1/models/fraud/versions/1/lineage");
    let training = &lineage["training"];
    assert_eq!(training["code"]["commit"], "0badc0de", "{lineage}");
    assert_eq!((&training["parameters"]["depth"], &training["metrics"]["auc"]), (&json!(6), &json!(0.97)));
    let digest = training["data"]["digest"].as_str().unwrap();
    assert!(digest.starts_with("mlflow:"), "{digest}");
    assert_eq!(training["data"]["location"], "s3://training/2026-10");
    let files = lineage["files"]["all"].to_string();
    assert!(!files.contains("MLmodel") && !files.contains("conda.yaml"), "only what an engine reads: {files}");
    assert!(lineage["files"]["all"].as_array().unwrap().len() >= 2, "the weights are beside the model: {files}");

    // A gate refuses the next champion, and MLflow says so. Nothing is tried again while nothing changes.
    mlflow.alias("champion", "2");
    mlflow.wait_tag("2", "sluicegate.promotion", "refused: ");
    assert!(mlflow.tag("2", "sluicegate.promotion").contains("golden"), "{}", mlflow.tag("2", "sluicegate.promotion"));
    assert_eq!(alias_state(&served, "champion").0, "refused");
    let events = admin(&served, "/api/v1/audit")["events"].as_array().unwrap().len();
    rounds(&served, 3);
    assert_eq!(admin(&served, "/api/v1/audit")["events"].as_array().unwrap().len(), events);
    assert_eq!(answer(&served), 1.0);

    // The gate goes: the check of the next round passes, and the promotion is carried out.
    std::fs::write(settings.join("model.toml"), "description = \"no gates\"\n").unwrap();
    mlflow.wait_tag("2", "sluicegate.promotion", "applied: promoted");
    assert_eq!(answer(&served), 2.0);
    let event = admin(&served, "/api/v1/audit")["events"][0].clone();
    assert_eq!((&event["actor"], &event["action"]), (&json!("mlflow"), &json!("promote")));
    assert_eq!(event["reason"], "alias champion of fraud in MLflow is version 2");
    std::fs::write(settings.join("model.toml"), "[gates]\ngolden = true\n").unwrap();

    // A person goes back. An alias that has not moved changes nothing, also after restarts, and while MLflow is away.
    served.admin_post("/api/v1/models/fraud:rollback", &json!({"reason": "too many errors"}));
    rounds(&served, 2);
    let traffic = admin(&served, "/api/v1/models/fraud/traffic");
    assert_eq!(
        (answer(&served), &traffic["labels"]["champion"]),
        (1.0, &json!("1")),
        "label and split go back together"
    );
    mlflow.run(&json!({"do": "stop"}));
    served.kill();
    let mut served = serve(dir.path(), &mlflow);
    served.ready();
    served.wait_state("fraud", 1, "serving");
    served.wait_state("fraud", 2, "serving");
    eventually("the source says that it cannot be read", || {
        let source = admin(&served, "/api/v1/sources")["sources"][0].clone();
        (source["state"] == "failing" && source["message"].as_str()?.contains("MLflow")).then_some(())
    });
    assert_eq!(answer(&served), 1.0);
    mlflow.run(&json!({"do": "start"}));

    // A version without an ONNX flavour is reported and not loaded; one with golden answers passes the gate.
    let plain = mlflow.register(3.0, &json!({"flavor": "none"}));
    mlflow.alias("champion", &plain);
    read_now(&served);
    mlflow.wait_tag(&plain, "sluicegate.promotion", "no ONNX flavour (its flavours: python_function)");
    mlflow.wait_tag(&plain, "sluicegate.version", "not served: it has no ONNX flavour");
    let golden = mlflow.dir.path().join("golden.json");
    let request = json!({"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [0, 0, 0, 0]}]});
    let outputs = json!([{"name": "y", "shape": [1, 1], "datatype": "FP32", "data": [4.0]}]);
    std::fs::write(&golden, json!({"cases": [{"request": request, "outputs": outputs}]}).to_string()).unwrap();
    let tested = mlflow.register(4.0, &json!({"extra_files": [golden]}));
    mlflow.alias("champion", &tested);
    mlflow.wait_tag(&tested, "sluicegate.promotion", "applied: promoted");
    assert_eq!(answer(&served), 4.0);

    // Aliases that are removed, and versions that are deleted.
    mlflow.run(&json!({"do": "unalias", "name": "fraud", "alias": "challenger"}));
    eventually("the label of a removed alias is removed", || {
        admin(&served, "/api/v1/models/fraud/traffic")["labels"].get("challenger").is_none().then_some(())
    });
    mlflow.run(&json!({"do": "delete_version", "name": "fraud", "version": "2"}));
    mlflow.run(&json!({"do": "delete_version", "name": "fraud", "version": tested}));
    eventually("a version that MLflow deleted and nothing names is gone", || {
        let versions = admin(&served, "/api/v1/models/fraud");
        let state = versions["versions"].as_array()?.iter().find(|v| v["version"] == "2").map(|v| v["state"].clone());
        state.is_none_or(|state| state == "unloaded").then_some(())
    });
    assert_eq!(answer(&served), 4.0, "what serves stays");
    let shown = served.cli(&["mlflow"]);
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains(&mlflow.uri()) && shown.contains("no ONNX flavour"), "{shown}");
    served.stop();
}

#[test]
fn a_registry_with_a_private_ca_and_a_token_is_read() {
    let dir = TempDir::new().unwrap();
    let certificates = Certificates::make(dir.path());
    let (certificate, key) = (certificates.path("server.crt"), certificates.path("server.key"));
    let mut mlflow = Mlflow::start_as(&["token", "t0ken", &certificate, &key]);
    mlflow.register(1.0, &json!({}));
    let uri = format!("https://localhost:{}", mlflow.port);
    let serve = |more: &[(&str, &str)]| {
        let settings = [
            ("SLUICEGATE__MODELS__MLFLOW__URI", uri.as_str()),
            ("SLUICEGATE__MODELS__MLFLOW__MODELS", "[\"fraud\"]"),
            ("SLUICEGATE__MODELS__SOURCES__INTERVAL", "200ms"),
            ("SLUICEGATE__MODELS__SETTLE", "100ms"),
        ];
        Served::start_with(dir.path(), &[&settings[..], more].concat())
    };
    let ca = ("SLUICEGATE__MODELS__MLFLOW__CA", certificate.as_str());
    for (more, part) in [
        (vec![("MLFLOW_TRACKING_TOKEN", "t0ken")], "certificate"),
        (vec![ca, ("MLFLOW_TRACKING_TOKEN", "another")], "401"),
    ] {
        let mut served = serve(&more);
        eventually(&format!("the source says {part:?}"), || {
            let source = admin(&served, "/api/v1/sources")["sources"][0].clone();
            source["message"].as_str()?.contains(part).then_some(())
        });
        served.kill();
    }
    let mut served = serve(&[ca, ("MLFLOW_TRACKING_TOKEN", "t0ken")]);
    served.wait_state("fraud", 1, "serving");
    assert_eq!(answer(&served), 1.0);
    served.stop();
}

// === a registry that means harm ===

type Answers = Box<dyn Fn(&str) -> String + Send + Sync>;

/// A server whose answers a test writes, byte by byte.
struct Hostile {
    address: String,
    answers: Arc<Mutex<Answers>>,
}

fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
}

impl Hostile {
    fn start() -> Hostile {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let answers: Arc<Mutex<Answers>> = Arc::new(Mutex::new(Box::new(|_| String::new())));
        let shared = Arc::clone(&answers);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || answer_one(stream, &shared));
            }
        });
        Hostile { address, answers }
    }

    fn set(&self, answers: impl Fn(&str) -> String + Send + Sync + 'static) {
        *self.answers.lock().unwrap() = Box::new(answers);
    }
}

fn answer_one(mut stream: TcpStream, answers: &Mutex<Answers>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let (mut path, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        if let Some(text) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = text.trim().parse().unwrap();
        }
        if path.is_empty() {
            line.split(' ').nth(1).unwrap_or_default().clone_into(&mut path);
        }
        if line.trim().is_empty() {
            break;
        }
    }
    // A tag is an answer to nothing here.
    let _ = reader.take(length).read_to_end(&mut Vec::new());
    let answer = answers.lock().unwrap()(&path);
    // An error means that the gateway has had enough.
    if answer == "endless" {
        let mut written = stream.write_all(b"HTTP/1.1 200 X\r\ntransfer-encoding: chunked\r\n\r\n");
        let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x1_0000));
        while written.is_ok() {
            written = stream.write_all(chunk.as_bytes());
        }
    } else if answer == "silence" {
        while stream.read(&mut [0; 1024]).is_ok_and(|n| n > 0) {}
    } else {
        let _ = stream.write_all(answer.as_bytes());
    }
}

/// The answers of a registry with one version, whose files are `files` and whose `MLmodel` names `data`.
fn one_version(path: &str, version: &Value, files: &Value, data: &str) -> String {
    let uri = "mlflow-artifacts:/1/a";
    if path.contains("/registered-models/get") {
        return ok(&json!({"registered_model": {"name": "fraud", "aliases": [{"alias": "champion", "version": 1}]}})
            .to_string());
    }
    if path.contains("/model-versions/search") {
        return ok(&json!({"model_versions": [{"version": version, "status": "READY", "source": "s", "run_id": ""}]})
            .to_string());
    }
    if path.contains("/model-versions/get?") {
        let body = json!({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such version"}).to_string();
        return ok(&body).replace("200 X", "404 X");
    }
    if path.contains("get-download-uri") {
        return ok(&json!({"artifact_uri": uri}).to_string());
    }
    if path.ends_with("/MLmodel") {
        return ok(&format!("flavors:\n  onnx:\n    data: {data}\n"));
    }
    if path.contains("artifacts?path=1%2Fa%2Fextra_files") {
        return ok("{}");
    }
    if path.contains("artifacts?path=") {
        return ok(&json!({"files": files}).to_string());
    }
    // The bytes of every file, and the answers to tags.
    ok("x")
}

#[test]
fn a_registry_that_means_harm_disturbs_nothing_and_writes_nowhere() {
    let hostile = Hostile::start();
    let config = format!(
        "[models.mlflow]\nuri = \"http://{}\"\nmodels = [\"fraud\"]\npromote_alias = \"champion\"\ntimeout = \"1s\"\n\
         [models.sources]\ninterval = \"100ms\"\n",
        hostile.address
    );
    hostile.set(|_| ok("[]"));
    let gateway = Gateway::start_with(&config, |models| {
        onnx::install(models, "self", 1, &onnx::answering(1.0, 4, 0));
    });
    let source = || gateway.admin_get("/api/v1/sources").json()["sources"][0].clone();
    let says = |part: &str| {
        gateway.admin_send("POST", "/api/v1/sources:read", &[], &json!({}));
        eventually(&format!("the source says {part:?}"), || {
            let source = source();
            let text = format!("{} {}", source["message"], source["remarks"]);
            if text.contains(part) {
                return Some(());
            }
            gateway.admin_send("POST", "/api/v1/sources:read", &[], &json!({}));
            None
        });
    };
    says("is not what MLflow sends");
    hostile.set(|_| "endless".to_owned());
    says("larger than");
    hostile.set(|_| "silence".to_owned());
    says("no complete answer within");
    hostile.set(|_| "HTTP/1.1 302 X\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n".to_owned());
    says("MLflow answered 302");
    hostile.set(|_| "HTTP/1.1 403 X\r\ncontent-length: 0\r\n\r\n".to_owned());
    says("MLFLOW_TRACKING_TOKEN");
    hostile.set(|_| "not HTTP at all".to_owned());
    says("does not speak HTTP");
    hostile.set(|path| one_version(path, &json!(["1"]), &json!([]), "model.onnx"));
    says("is not what MLflow sends");
    hostile.set(|path| one_version(path, &json!("-1"), &json!([]), "model.onnx"));
    says("version \\\"-1\\\" is not valid");
    // The version is remembered by its source, so each case has another one.
    let onnx_file = json!({"path": "model.onnx", "is_dir": false, "file_size": 1});
    for (number, (files, data, part)) in [
        (json!([]), "model.onnx", "which is not there"),
        (json!([onnx_file]), "../../../etc/passwd", "which is refused"),
        (json!([onnx_file, {"path": "../../ledger.db", "file_size": 1}]), "model.onnx", "ledger.db"),
        (json!([onnx_file, {"path": "/etc/cron.d/x", "file_size": 1}]), "model.onnx", "is refused"),
        (json!([onnx_file, {"path": "deep", "is_dir": true}]), "model.onnx", "directories are more than 8 deep"),
        (json!(vec![onnx_file.clone(); 2000]), "model.onnx", "more than 1000 files"),
        (json!([{"path": "x", "is_dir": "yes"}]), "model.onnx", "is not what MLflow sends"),
    ]
    .into_iter()
    .enumerate()
    {
        let source = format!("s{number}");
        hostile.set(move |path| {
            let answer = one_version(path, &json!("1"), &files, data);
            if !path.contains("/model-versions/search") {
                return answer;
            }
            ok(&json!({"model_versions": [{"version": "1", "status": "READY", "source": source, "run_id": ""}]})
                .to_string())
        });
        says(part);
    }
    // A file that is shorter than was listed.
    hostile.set(|path| {
        if path.contains("/model-versions/search") {
            let version = json!({"version": "1", "status": "READY", "source": "short", "run_id": ""});
            return ok(&json!({"model_versions": [version]}).to_string());
        }
        one_version(path, &json!("1"), &json!([{"path": "model.onnx", "file_size": 1000}]), "model.onnx")
    });
    eventually("a file that ends early is said on the version", || {
        let message = source()["versions"][0]["message"].as_str()?.to_owned();
        message.contains("ended after 1 of 1000 bytes").then_some(())
    });
    assert_eq!(gateway.post("/v2/models/self/infer", crate::support::infer_body(&[1, 4], &[0.0; 4])).status, 200);
    assert_eq!(gateway.admin_get("/readyz").status, 200);
    let outside: Vec<String> = std::fs::read_dir(gateway.dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !["models", "data", "sluicegate.toml"].contains(&name.as_str()))
        .collect();
    assert!(outside.is_empty(), "{outside:?}");
    let until = std::time::Instant::now() + Duration::from_secs(5);
    gateway.stop();
    assert!(std::time::Instant::now() < until, "a registry does not delay a stop");
}
