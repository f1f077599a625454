//! The real binary as a process of its own, which a test can kill and whose memory it can read.

use super::{eventually, infer_body};
use rustix::process::Pid;
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

/// The path of ONNX Runtime's library.
pub fn onnxruntime() -> String {
    std::env::var("ORT_DYLIB_PATH")
        .unwrap_or_else(|_| Path::new(env!("CARGO_MANIFEST_DIR")).join(".ort/libonnxruntime.so").display().to_string())
}

/// `sluicegate serve` on free ports, with its supervisor.
pub struct Served {
    /// The process that was started: the supervisor, or the server itself where the environment switches supervision off.
    pub child: Child,
    pub data: String,
    pub admin: String,
    log: Arc<Mutex<Vec<String>>>,
}

/// The binary of this build, or the one that `SLUICEGATE_TEST_BINARY` names.
pub fn binary() -> String {
    std::env::var("SLUICEGATE_TEST_BINARY").unwrap_or_else(|_| env!("CARGO_BIN_EXE_sluicegate").to_owned())
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
                &binary(),
            ])
            .envs(environment.iter().copied())
            .args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--models"])
            .arg(dir.join("models"))
            .arg("--data-dir")
            .arg(dir.join("data"))
            .current_dir(dir)
            .env("SLUICEGATE__LOG__FORMAT", "json")
            .env("ORT_DYLIB_PATH", onnxruntime())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (mut data, mut admin, mut said) = (None, None, Vec::new());
        while data.is_none() || admin.is_none() {
            let line =
                lines.next().unwrap_or_else(|| panic!("the server ended before it logged its addresses: {said:?}"));
            let line = line.unwrap();
            said.push(line.clone());
            let json: serde_json::Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"));
            data = data.or(json["data"].as_str().map(str::to_owned));
            admin = admin.or(json["admin"].as_str().map(str::to_owned));
        }
        // Keep reading, or the server would block on a full pipe.
        let log = Arc::new(Mutex::new(Vec::new()));
        let lines_read = Arc::clone(&log);
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| lines_read.lock().unwrap().push(line)));
        Served { child, data: data.unwrap(), admin: admin.unwrap(), log }
    }

    /// The id of the process that serves; `None` while there is none. The supervisor's child, where there is a supervisor.
    pub fn server_pid(&self) -> Option<Pid> {
        let parent = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
        children.split_whitespace().next().and_then(|pid| Pid::from_raw(pid.parse().ok()?))
    }

    /// Waits until another process than `before` serves the model `self`. Returns its id.
    pub fn wait_restarted(&self, before: Pid) -> Pid {
        let pid = eventually("another server process was started", || self.server_pid().filter(|pid| *pid != before));
        self.wait_state("self", 1, "serving");
        pid
    }

    /// Waits for a log line with this message, and returns its fields. Lines before the one with the addresses are not kept.
    pub fn wait_logged(&self, part: &str) -> Value {
        eventually(&format!("the log says {part:?}"), || {
            let log = self.log.lock().unwrap();
            let line = log.iter().find(|line| line.contains(part))?;
            Some(serde_json::from_str(line).unwrap())
        })
    }

    /// All log lines so far, without those before the addresses.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    /// Sends SIGTERM and waits until the process has ended.
    pub fn stop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(self.child.wait().unwrap().success(), "the exit code of a stop is 0");
    }

    /// Kills the process that was started, and waits until the server that it supervised has ended too: until then that one holds the data
    /// directory.
    pub fn kill(&mut self) {
        let server = self.server_pid();
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let Some(server) = server else { return };
        let (stat, tasks) = ["stat", "task"].map(|name| format!("/proc/{}/{name}", server.as_raw_nonzero())).into();
        eventually("the server has ended with its supervisor", || {
            // A dead process stays as a zombie until somebody waits for it.
            let state = std::fs::read_to_string(&stat).ok().and_then(|stat| stat.rsplit(')').next().map(str::to_owned));
            // Other threads may still be in a call of the kernel then, and hold its files.
            let threads = std::fs::read_dir(&tasks).map_or(0, Iterator::count);
            let ended = state.is_none_or(|state| state.trim_start().starts_with(['Z', 'X'])) && threads <= 1;
            ended.then_some(())
        });
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

    /// Resident memory of the server process, in bytes.
    pub fn resident(&self) -> u64 {
        let pid = self.server_pid().expect("a server process is running").as_raw_nonzero();
        let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
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
        Command::new(binary())
            .args(arguments)
            .env("ORT_DYLIB_PATH", onnxruntime())
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
