//! The program itself, as a process that can be killed.

use super::{eventually, infer_body};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// The real binary, as `make run` starts it, on ports of the system's choice.
pub struct Served {
    pub child: Child,
    pub data: String,
    pub admin: String,
}

impl Served {
    pub fn start(dir: &Path) -> Served {
        Served::start_with(dir, &[])
    }

    /// The same, with variables of the environment. A file that may not grow is an error, and not the end.
    pub fn start_with(dir: &Path, environment: &[(&str, &str)]) -> Served {
        let mut child = Command::new("sh")
            .args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_sluicegate")])
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
            let line = lines.next().expect("the server says where it listens before it ends").unwrap();
            let json: serde_json::Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"));
            data = data.or(json["data"].as_str().map(str::to_owned));
            admin = admin.or(json["admin"].as_str().map(str::to_owned));
        }
        // Somebody has to read on, or the server would stop at a full pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Served { child, data: data.unwrap(), admin: admin.unwrap() }
    }

    /// Asks it to stop and waits until it has.
    pub fn stop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(self.child.wait().unwrap().success(), "a stop ends with 0");
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn ready(&self) {
        let url = format!("http://{}/v2/health/ready", self.data);
        eventually("the binary is ready", || ureq::get(&url).call().ok().map(drop));
    }

    /// What a request with these headers is answered.
    pub fn ask(&self, headers: &[(&str, &str)]) -> ureq::http::Response<ureq::Body> {
        let url = format!("http://{}/v2/models/self/infer", self.data);
        let request = headers.iter().fold(ureq::post(&url), |request, (name, value)| request.header(*name, *value));
        request.send(infer_body(&[1, 4], &[0.0; 4])).unwrap()
    }

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
