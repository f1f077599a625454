//! The real binary as a process of its own, which a test can kill and whose memory it can read.

use super::{eventually, infer_body};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// `sluicegate serve` on free ports.
pub struct Served {
    pub child: Child,
    pub data: String,
    pub admin: String,
}

impl Served {
    pub fn start(dir: &Path) -> Served {
        Served::start_with(dir, &[])
    }

    /// The same, with environment variables; `TEST_ADDRESS_SPACE_KIB` limits the address space,
    /// `TEST_OPEN_FILES` the open files. SIGXFSZ is ignored: a file that reaches
    /// its size limit is an error, and does not end the process.
    pub fn start_with(dir: &Path, environment: &[(&str, &str)]) -> Served {
        let mut child = Command::new("sh")
            .args([
                "-c",
                "trap '' XFSZ; ulimit -v ${TEST_ADDRESS_SPACE_KIB:-unlimited}; ulimit -n ${TEST_OPEN_FILES:-$(ulimit -Hn)}; exec \"$0\" \"$@\"",
                env!("CARGO_BIN_EXE_sluicegate"),
            ])
            .envs(environment.iter().copied())
            .args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--models"])
            .arg(dir.join("models"))
            .arg("--data-dir")
            .arg(dir.join("data"))
            .current_dir(dir)
            .env("SLUICEGATE__LOG__FORMAT", "json")
            .env(
                "ORT_DYLIB_PATH",
                std::env::var("ORT_DYLIB_PATH").unwrap_or_else(|_| {
                    Path::new(env!("CARGO_MANIFEST_DIR")).join(".ort/libonnxruntime.so").display().to_string()
                }),
            )
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (mut data, mut admin) = (None, None);
        while data.is_none() || admin.is_none() {
            let line = lines.next().expect("the server logs its addresses before it ends").unwrap();
            let json: serde_json::Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"));
            data = data.or(json["data"].as_str().map(str::to_owned));
            admin = admin.or(json["admin"].as_str().map(str::to_owned));
        }
        // Keep reading, or the server would block on a full pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Served { child, data: data.unwrap(), admin: admin.unwrap() }
    }

    /// Sends SIGTERM and waits until the process has ended.
    pub fn stop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(self.child.wait().unwrap().success(), "the exit code of a stop is 0");
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn ready(&self) {
        let url = format!("http://{}/v2/health/ready", self.data);
        eventually("the binary is ready", || ureq::get(&url).call().ok().map(drop));
    }

    /// Sends one row of zeros to the model `self`, with these headers.
    pub fn ask(&self, headers: &[(&str, &str)]) -> ureq::http::Response<ureq::Body> {
        let url = format!("http://{}/v2/models/self/infer", self.data);
        let request = headers.iter().fold(ureq::post(&url), |request, (name, value)| request.header(*name, *value));
        request.send(infer_body(&[1, 4], &[0.0; 4])).unwrap()
    }

    /// Calls the admin API and returns the body, which must come with a status of success.
    pub fn admin_post(&self, path: &str, body: &Value) -> Value {
        let url = format!("http://{}{path}", self.admin);
        let answer = ureq::post(&url).content_type("application/json").send(body.to_string());
        let mut answer = answer.unwrap_or_else(|e| panic!("POST {url}: {e}"));
        serde_json::from_str(&answer.body_mut().read_to_string().unwrap()).unwrap()
    }

    pub fn admin_get(&self, path: &str) -> String {
        let url = format!("http://{}{path}", self.admin);
        ureq::get(&url).call().unwrap_or_else(|e| panic!("GET {url}: {e}")).body_mut().read_to_string().unwrap()
    }

    /// Waits until a version has this state.
    pub fn wait_state(&self, model: &str, version: u64, state: &str) {
        let path = format!("/api/v1/models/{model}");
        eventually(&format!("version {version} of {model} is {state}"), || {
            let url = format!("http://{}{path}/versions/{version}", self.admin);
            let text = ureq::get(&url).call().ok()?.body_mut().read_to_string().ok()?;
            (serde_json::from_str::<Value>(&text).ok()?["state"] == state).then_some(())
        });
    }

    /// Resident memory of the process, in bytes.
    pub fn resident(&self) -> u64 {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", self.child.id())).unwrap();
        statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * rustix::param::page_size() as u64
    }

    /// The version that answers a request without a version in its URL.
    pub fn version_serving(&self) -> String {
        let url = format!("http://{}/v2/models/self/infer", self.data);
        let mut answer = ureq::post(&url).send(infer_body(&[1, 4], &[0.0; 4])).unwrap();
        let json: serde_json::Value = serde_json::from_str(&answer.body_mut().read_to_string().unwrap()).unwrap();
        json["model_version"].as_str().unwrap().to_owned()
    }

    pub fn cli(&self, arguments: &[&str]) -> std::process::Output {
        Command::new(env!("CARGO_BIN_EXE_sluicegate"))
            .args(arguments)
            .env("SLUICEGATE_ADMIN", format!("http://{}", self.admin))
            .output()
            .unwrap()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
