//! Shared by the tests: a gateway on free ports with directories of its own, and a client.

pub mod cdp;
pub mod files;
pub mod http2;
pub mod library;
pub mod onnx;
pub mod process;
pub mod receiver;
pub mod tls;

use serde_json::Value;
use sluicegate::app::App;
use sluicegate::config::Config;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A gateway that runs in the test process, with its own models and data directories.
pub struct Gateway {
    pub app: Option<App>,
    pub dir: TempDir,
    agent: ureq::Agent,
}

/// An HTTP answer with any status.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: ureq::http::HeaderMap,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("the answer is not JSON ({e}): {}", String::from_utf8_lossy(&self.body)))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|v| v.to_str().ok())
    }

    /// Checks that the answer is an error as the API promises it, and returns its code.
    pub fn code(&self) -> String {
        let json = self.json();
        assert!(json["error"].as_str().is_some_and(|e| !e.is_empty()), "an error has a message: {json}");
        json["code"].as_str().unwrap_or_else(|| panic!("an error has a code: {json}")).to_owned()
    }
}

/// Waits until `condition` gives a value. Fails after a minute with `what` in the message: on a machine that does much else, things take long.
pub fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + Duration::from_mins(1);
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < until, "within a minute: {what}");
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

impl Gateway {
    /// Starts in a new directory and waits until the gateway is ready. `fill` writes models into the models directory first.
    pub fn start(fill: impl FnOnce(&Path)) -> Gateway {
        Gateway::start_with("", fill)
    }

    /// The same, with more lines of configuration.
    pub fn start_with(config: &str, fill: impl FnOnce(&Path)) -> Gateway {
        let dir = TempDir::new().unwrap();
        let models = dir.path().join("models");
        std::fs::create_dir(&models).unwrap();
        fill(&models);
        let gateway = Gateway::start_in(dir, config);
        gateway.wait_ready();
        gateway
    }

    /// Starts in an existing directory, and does not wait until the gateway is ready.
    pub fn start_in(dir: TempDir, config: &str) -> Gateway {
        let program = process::binary().into();
        let app = App::start_with_program(&configuration(dir.path(), config), program).unwrap();
        let agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        Gateway { app: Some(app), dir, agent }
    }

    pub fn wait_ready(&self) {
        eventually("the gateway is ready", || (self.get("/v2/health/ready").status == 200).then_some(()));
    }

    pub fn data(&self) -> SocketAddr {
        self.app.as_ref().unwrap().data_address()
    }

    pub fn admin(&self) -> SocketAddr {
        self.app.as_ref().unwrap().admin_address()
    }

    pub fn models(&self) -> std::path::PathBuf {
        self.dir.path().join("models")
    }

    pub fn data_dir(&self) -> std::path::PathBuf {
        self.dir.path().join("data")
    }

    /// Stops the gateway and returns its directory, for another start.
    pub fn stop(mut self) -> TempDir {
        assert!(self.app.take().unwrap().stop(), "the gateway stops within its grace period");
        std::mem::replace(&mut self.dir, TempDir::new().unwrap())
    }

    fn send(&self, method: &str, url: &str, headers: &[(&str, &str)], body: Option<&[u8]>) -> Answer {
        let mut request = ureq::http::Request::builder().method(method).uri(url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = match body {
            Some(body) => self.agent.run(request.body(body.to_vec()).unwrap()),
            None => self.agent.run(request.body(()).unwrap()),
        };
        let mut answer = answer.unwrap_or_else(|e| panic!("{method} {url}: {e}"));
        let body = answer.body_mut().with_config().limit(1 << 30).read_to_vec().unwrap();
        Answer { status: answer.status().as_u16(), headers: answer.headers().clone(), body }
    }

    pub fn get(&self, path: &str) -> Answer {
        self.send("GET", &format!("http://{}{path}", self.data()), &[], None)
    }

    pub fn post(&self, path: &str, body: impl AsRef<[u8]>) -> Answer {
        self.post_with(path, &[], body)
    }

    pub fn post_with(&self, path: &str, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Answer {
        self.send("POST", &format!("http://{}{path}", self.data()), headers, Some(body.as_ref()))
    }

    pub fn admin_get(&self, path: &str) -> Answer {
        self.send("GET", &format!("http://{}{path}", self.admin()), &[], None)
    }

    pub fn admin_get_with(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.send("GET", &format!("http://{}{path}", self.admin()), headers, None)
    }

    pub fn admin_send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &Value) -> Answer {
        let mut headers = headers.to_vec();
        headers.push(("content-type", "application/json"));
        self.send(method, &format!("http://{}{path}", self.admin()), &headers, Some(body.to_string().as_bytes()))
    }

    /// Sends a form, as a browser does, and follows where the answer leads.
    pub fn admin_form(&self, path: &str, fields: &[(&str, &str)]) -> Answer {
        let escaped =
            |text: &str| percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string();
        let body: Vec<String> = fields.iter().map(|(name, value)| format!("{name}={}", escaped(value))).collect();
        let headers = [("content-type", "application/x-www-form-urlencoded")];
        self.send("POST", &format!("http://{}{path}", self.admin()), &headers, Some(body.join("&").as_bytes()))
    }

    pub fn admin_put_bytes(&self, path: &str, body: &[u8]) -> Answer {
        self.send("PUT", &format!("http://{}{path}", self.admin()), &[], Some(body))
    }

    pub fn promote(&self, model: &str, version: u64) -> Answer {
        let body = serde_json::json!({"version": version.to_string(), "reason": "a test"});
        self.admin_send("POST", &format!("/api/v1/models/{model}:promote"), &[], &body)
    }

    /// A version's state as the admin API names it; `None` when the version is unknown.
    pub fn state(&self, model: &str, version: u64) -> Option<String> {
        let answer = self.admin_get(&format!("/api/v1/models/{model}/versions/{version}"));
        (answer.status == 200).then(|| answer.json()["state"].as_str().unwrap().to_owned())
    }

    pub fn wait_state(&self, model: &str, version: u64, state: &str) {
        eventually(&format!("version {version} of {model} is {state}"), || {
            (self.state(model, version).as_deref() == Some(state)).then_some(())
        });
    }

    /// Sends these bytes over a new connection, and reads until the server closes it (at most ten seconds).
    pub fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.data()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        // Errors are expected: the server may answer and close before it has read everything.
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if let Some(app) = self.app.take() {
            app.stop();
        }
    }
}

/// Copies a directory and everything in it.
pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), &target).unwrap();
        }
    }
}

/// The configuration of a test gateway: free ports, and short times for noticing new files and for stopping.
pub fn configuration(dir: &Path, more: &str) -> Config {
    let file = dir.join("sluicegate.toml");
    let (models, data) = (dir.join("models"), dir.join("data"));
    // A stop spends part of its grace period announcing itself. `settle` is how long files must stay unchanged.
    let missing = |line: &&str| line.split(' ').next().is_some_and(|key| !more.contains(key));
    let stop: String =
        ["shutdown_grace = \"5s\"\n", "shutdown_announce = \"200ms\"\n"].into_iter().filter(missing).collect();
    let mut text = String::new();
    for (section, key) in [("[server]", stop.as_str()), ("[models]", "settle = \"100ms\"")] {
        if !more.contains(section) {
            text.extend([section, "\n", key, "\n"]);
        }
    }
    for line in more.lines() {
        text.push_str(line);
        text.push('\n');
        match line.trim() {
            "[server]" => text.push_str(&stop),
            "[models]" => text.push_str("settle = \"100ms\"\n"),
            _ => {}
        }
    }
    std::fs::write(&file, text).unwrap();
    let overrides = sluicegate::config::Overrides {
        listen: Some("127.0.0.1:0".to_owned()),
        admin_listen: Some("127.0.0.1:0".to_owned()),
        models: Some(models.display().to_string()),
        data_dir: Some(data.display().to_string()),
        model: None,
        fleet: None,
    };
    Config::load(Some(&file), std::iter::empty(), &overrides).unwrap_or_else(|complaints| panic!("{complaints}"))
}

/// An Open Inference Protocol body with one FP32 input `x` of the given shape and values.
pub fn infer_body(shape: &[usize], data: &[f32]) -> String {
    serde_json::json!({"inputs": [{"name": "x", "shape": shape, "datatype": "FP32", "data": data}]}).to_string()
}
