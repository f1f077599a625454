//! The supervisor: what callers and operators see when a signal ends the server process.

use crate::support::process::{Served, onnxruntime};
use crate::support::{eventually, infer_body, onnx};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// A new directory in which the model `self` answers with 1.
fn directory() -> tempfile::TempDir {
    let dir = tempfile::TempDir::new().unwrap();
    std::fs::create_dir(dir.path().join("models")).unwrap();
    onnx::install(&dir.path().join("models"), "self", 1, &onnx::answering(1.0, 4, 0));
    dir
}

fn is_alive(pid: Pid) -> bool {
    // A zombie counts as dead.
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(" Z"))
}

fn restarts(served: &Served) -> u64 {
    let metrics = served.admin_get("/metrics");
    let line = metrics.lines().find(|line| line.starts_with("sluicegate_process_restarts_total"));
    line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
}

#[test]
fn connections_wait_for_the_next_process_and_none_is_refused() {
    let dir = directory();
    let served = Served::start(dir.path());
    served.ready();
    let done = AtomicBool::new(false);
    let (answered, broken) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let body = infer_body(&[1, 4], &[0.0; 4]);
    let head = format!(
        "POST /v2/models/self/infer HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let mut stream = TcpStream::connect(&served.data).expect("no connection is refused");
                    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
                    let mut answer = String::new();
                    let sent = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes()));
                    let read = sent.and_then(|()| stream.read_to_string(&mut answer));
                    // A connection that was accepted breaks with its process. One that waits is answered by the next process;
                    // until its model is loaded, with 404 or 503.
                    let count = if read.is_ok() && answer.starts_with("HTTP/1.1 ") { &answered } else { &broken };
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let mut pid = served.server_pid().unwrap();
        for signal in [Signal::SEGV, Signal::ABORT, Signal::KILL] {
            let before = answered.load(Ordering::Relaxed);
            eventually("requests are answered", || (answered.load(Ordering::Relaxed) > before + 20).then_some(()));
            kill_process(pid, signal).unwrap();
            pid = served.wait_restarted(pid);
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(restarts(&served), 3);
    let broken = broken.load(Ordering::Relaxed);
    assert!(broken <= 3 * 4, "only the connections in flight break, at most one for each caller and crash: {broken}");
    let line = served.wait_logged("sent SIGSEGV to the server process");
    assert_eq!((&line["level"], &line["signal"]), (&json!("ERROR"), &json!("SIGSEGV")), "{line}");
    // The third crash in a row waits for 200 ms.
    served.wait_logged("waiting before the server process is started again");
}

#[test]
fn the_end_of_the_supervisor_ends_the_server() {
    let dir = directory();
    let mut served = Served::start(dir.path());
    served.ready();
    let child = served.server_pid().unwrap();
    served.kill();
    eventually("the server process has ended", || (!is_alive(child)).then_some(()));
    // The kernel closes the socket when the last thread has ended.
    eventually("the port is free", || TcpStream::connect(&served.data).is_err().then_some(()));
    // The data directory is free for the next server.
    let again = Served::start(dir.path());
    again.ready();
}

#[test]
fn a_stop_while_no_server_process_runs_ends_the_supervisor() {
    let dir = directory();
    let mut served = Served::start(dir.path());
    served.ready();
    // With every crash the delay grows: 0, 100, 200, 400, 800 ms.
    let mut last = None;
    for _ in 0..5 {
        let pid = eventually("another server process runs", || served.server_pid().filter(|pid| Some(*pid) != last));
        kill_process(pid, Signal::KILL).unwrap();
        last = Some(pid);
    }
    served.wait_logged("\"crashes\":5");
    let parent = Pid::from_child(&served.child);
    kill_process(parent, Signal::TERM).unwrap();
    assert_eq!(served.child.wait().unwrap().code(), Some(0));
}

#[test]
fn new_connections_are_refused_while_the_server_stops() {
    let dir = directory();
    let mut served = Served::start(dir.path());
    served.ready();
    let body = infer_body(&[1, 4], &[0.0; 4]);
    let mut slow = TcpStream::connect(&served.data).unwrap();
    let head = format!("POST /v2/models/self/infer HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
    slow.write_all(head.as_bytes()).unwrap();
    slow.write_all(&body.as_bytes()[..5]).unwrap();
    kill_process(Pid::from_child(&served.child), Signal::TERM).unwrap();
    // The supervisor still holds the socket, but it does not listen any more.
    eventually("new connections are refused", || TcpStream::connect(&served.data).is_err().then_some(()));
    slow.write_all(&body.as_bytes()[5..]).unwrap();
    let mut answer = String::new();
    slow.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "the request in flight is answered: {answer}");
    assert_eq!(served.child.wait().unwrap().code(), Some(0));
}

#[test]
fn sighup_reaches_the_server_and_a_broken_file_does_not_keep_it_from_starting_again() {
    let dir = directory();
    std::fs::create_dir(dir.path().join("config")).unwrap();
    let file = dir.path().join("config/sluicegate.toml");
    std::fs::write(&file, "[server]\nmax_in_flight = 7\n").unwrap();
    let served = Served::start(dir.path());
    served.ready();
    let parent = Pid::from_child(&served.child);
    std::fs::write(&file, "[server]\nmax_in_flight = 8\n").unwrap();
    kill_process(parent, Signal::HUP).unwrap();
    assert_eq!(served.wait_logged("this key changed")["key"], "server.max_in_flight");
    std::fs::write(&file, "[server]\nmax_in_flight = nine\n").unwrap();
    let pid = served.server_pid().unwrap();
    kill_process(pid, Signal::SEGV).unwrap();
    served.wait_restarted(pid);
    served.wait_logged("the server goes on with the configuration from before");
}

#[test]
fn exit_codes_pass_through() {
    let dir = directory();
    let serve = |arguments: &[&str], environment: &[(&str, &str)]| {
        Command::new(env!("CARGO_BIN_EXE_sluicegate"))
            .args(["serve", "--admin-listen", "127.0.0.1:0", "--listen"])
            .args(arguments)
            .envs(environment.iter().copied())
            .current_dir(dir.path())
            .output()
            .unwrap()
    };
    let wrong = serve(&["127.0.0.1:0"], &[("SLUICEGATE__SERVER__SUPERVISE", "perhaps")]);
    assert_eq!(wrong.status.code(), Some(2), "{wrong:?}");
    // The child finds that the data directory is a file.
    std::fs::write(dir.path().join("data"), "").unwrap();
    let unusable = serve(&["127.0.0.1:0"], &[]);
    assert_eq!(unusable.status.code(), Some(1), "{unusable:?}");
    let log = String::from_utf8_lossy(&unusable.stderr).into_owned();
    assert!(log.contains("the server process was started") && log.contains("data directory"), "{log}");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = serve(&[&listener.local_addr().unwrap().to_string()], &[]);
    assert_eq!(taken.status.code(), Some(1), "{taken:?}");
    assert!(!String::from_utf8_lossy(&taken.stderr).contains("was started"), "{taken:?}");
}

#[test]
fn without_a_supervisor_the_server_is_one_process() {
    let dir = directory();
    let mut served = Served::start_with(dir.path(), &[("SLUICEGATE__SERVER__SUPERVISE", "false")]);
    served.ready();
    assert_eq!(served.server_pid(), None);
    let threads = std::fs::read_dir(format!("/proc/{}/task", served.child.id())).unwrap().count();
    assert!(threads > 5, "it serves itself: {threads} threads");
    served.stop();
}

#[test]
fn the_supervisor_is_small() {
    let dir = directory();
    let served = Served::start(dir.path());
    served.ready();
    let status = std::fs::read_to_string(format!("/proc/{}/status", served.child.id())).unwrap();
    let value = |key: &str| -> u64 {
        let line = status.lines().find(|line| line.starts_with(key)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    assert_eq!(value("Threads:"), 1);
    assert!(value("RssAnon:") < 8 << 10, "its own memory is below 8 MiB: {} KiB", value("RssAnon:"));
}

#[test]
fn as_process_1_it_reaps_passes_signals_on_and_ends_with_the_exit_code() {
    let dir = directory();
    // The shell leaves a process behind whose end process 1 has to collect.
    let script = "sh -c 'sleep 0.2 & :'; exec \"$0\" serve --listen 127.0.0.1:0 --admin-listen 127.0.0.1:0";
    let unshare = ["--user", "--map-root-user", "--pid", "--fork", "--mount-proc", "--kill-child"];
    let probe = Command::new("unshare").args(unshare).arg("true").stderr(Stdio::null()).status();
    if !probe.is_ok_and(|status| status.success()) {
        eprintln!("skipped: this machine does not allow a process namespace of its own");
        return;
    }
    let log = dir.path().join("log");
    let mut child = Command::new("unshare")
        .args(unshare)
        .args(["sh", "-c", script, env!("CARGO_BIN_EXE_sluicegate")])
        .current_dir(dir.path())
        .env("SLUICEGATE__LOG__FORMAT", "json")
        .stderr(std::fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let lines = || std::fs::read_to_string(&log).unwrap_or_default();
    let address = eventually("it listens", || {
        let lines = lines();
        let line = lines.lines().find(|line| line.contains("\"listening\""))?.to_owned();
        let line: Value = serde_json::from_str(&line).unwrap();
        Some(line["data"].as_str().unwrap().to_owned())
    });
    let ready = || {
        let url = format!("http://{address}/v2/health/ready");
        eventually("it is ready", || ureq::get(&url).call().ok().map(drop));
    };
    ready();
    // unshare → sluicegate (process 1 inside) → the server process.
    let children = |pid: u32| -> Vec<u32> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        text.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
    };
    let parent = children(child.id())[0];
    eventually("only the server process is left", || (children(parent).len() == 1).then_some(()));
    let server = Pid::from_raw(children(parent)[0].cast_signed()).unwrap();
    kill_process(server, Signal::SEGV).unwrap();
    eventually("it is started again", || lines().contains("\"restarts\":1").then_some(()));
    ready();
    kill_process(Pid::from_raw(parent.cast_signed()).unwrap(), Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0), "{}", lines());
}

// === which version it was ===

/// Installs the model `loops`, whose runs last as long as a request says.
fn install_loops(dir: &Path) {
    onnx::install(&dir.join("models"), "loops", 1, &onnx::looping());
}

/// Starts a run that lasts for minutes, and ends the process by a signal on its thread. Returns when another process serves.
fn crash_in_a_run(served: &Served) {
    let pid = served.server_pid().unwrap();
    let url = format!("http://{}/v2/models/loops/infer", served.data);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
            // It breaks with the process.
            let _ = agent.post(&url).header("x-request-timeout-ms", "60000").send(infer_body(&[1, 2], &[1e9, 2.0]));
        });
        send_to_thread(pid, busy_thread(pid));
    });
    served.wait_restarted(pid);
}

#[expect(unsafe_code, reason = "no safe function sends a signal to a thread of another process")]
fn send_to_thread(pid: Pid, thread: i32) {
    // SAFETY: the call takes numbers only.
    let sent = unsafe { libc::syscall(libc::SYS_tgkill, pid.as_raw_nonzero().get(), thread, libc::SIGSEGV) };
    assert_eq!(sent, 0, "the signal was sent");
}

/// The processor time in a `stat` file of the kernel, in hundredths of a second.
fn user_time(stat: &Path) -> Option<u64> {
    let stat = std::fs::read_to_string(stat).ok()?;
    stat.rsplit(')').next()?.split_whitespace().nth(11)?.parse().ok()
}

/// A thread that answers requests or runs models and has used a core for a quarter of a second.
fn busy_thread(pid: Pid) -> i32 {
    let used = || -> Vec<(i32, u64)> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero())).unwrap();
        let of_task = |task: std::io::Result<std::fs::DirEntry>| {
            let task = task.ok()?;
            let stat = std::fs::read_to_string(task.path().join("stat")).ok()?;
            let (name, rest) = stat.rsplit_once(')')?;
            let runs_models = name.contains("(io-") || name.contains("(infer-");
            let user = rest.split_whitespace().nth(11)?.parse().ok()?;
            runs_models.then_some((task.file_name().to_str()?.parse().ok()?, user))
        };
        tasks.filter_map(of_task).collect()
    };
    let before = used();
    eventually("a thread runs the model", || {
        let now = used();
        let grown = |(thread, ticks): &&(i32, u64)| {
            let earlier = before.iter().find(|(t, _)| t == thread).map_or(0, |(_, ticks)| *ticks);
            *ticks >= earlier + 25
        };
        now.iter().find(grown).map(|(thread, _)| *thread)
    })
}

/// The audit events of a model, oldest first: action and event.
fn audit(served: &Served, model: &str) -> Vec<(String, Value)> {
    let text = served.admin_get(&format!("/api/v1/audit?model={model}"));
    let json: Value = serde_json::from_str(&text).unwrap();
    let mut events: Vec<_> = json["events"].as_array().unwrap().clone();
    events.reverse();
    events.into_iter().map(|event| (event["action"].as_str().unwrap().to_owned(), event)).collect()
}

#[test]
fn a_version_that_ends_the_process_too_often_is_set_aside_until_an_operator_loads_it() {
    let dir = directory();
    install_loops(dir.path());
    let environment = [("SLUICEGATE__MODELS__CRASH_LIMIT", "2"), ("SLUICEGATE__SERVER__CRASH_INPUTS", "4KiB")];
    let mut served = Served::start_with(dir.path(), &environment);
    served.ready();
    let calls = |served: &Served| {
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let url = format!("http://{}/v2/models/loops/infer", served.data);
        let mut answer = agent.post(&url).send(infer_body(&[1, 2], &[1.0, 2.0])).unwrap();
        (answer.status().as_u16(), answer.body_mut().read_to_string().unwrap())
    };
    assert_eq!(calls(&served).0, 200);

    crash_in_a_run(&served);
    let line = served.wait_logged("SIGSEGV in version 1 of loops (run, thread ");
    assert_eq!((&line["model"], &line["version"], &line["call"]), (&json!("loops"), &json!("1"), &json!("run")));
    assert_eq!(calls(&served).0, 200, "one crash is not too many");
    let events = audit(&served, "loops");
    let (action, crash) = events.last().unwrap();
    assert_eq!(
        (action.as_str(), &crash["actor"], &crash["after"]["signal"]),
        ("crash", &json!("system"), &json!("SIGSEGV"))
    );

    // The inputs of the run were kept, for the owner alone.
    let file = dir.path().join(line["inputs"].as_str().expect("the log names the file"));
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let bytes = std::fs::read(&file).unwrap();
    let end = bytes.windows(2).rposition(|pair| pair == b"]}").unwrap() + 2;
    let head: Value = serde_json::from_slice(&bytes[..end]).unwrap();
    assert_eq!((&head["inputs"][0]["name"], &head["inputs"][0]["shape"]), (&json!("x"), &json!([1, 2])));
    assert_eq!(&bytes[end..], [1e9f32.to_le_bytes(), 2.0f32.to_le_bytes()].concat());

    crash_in_a_run(&served);
    served.wait_state("loops", 1, "failed");
    let (status, text) = calls(&served);
    assert_eq!(status, 503, "{text}");
    assert!(text.contains("crashed") && text.contains("2 times within 10 min"), "{text}");
    assert_eq!(served.version_serving(), "1", "the other model serves");
    let actions: Vec<String> = audit(&served, "loops").into_iter().map(|(action, _)| action).collect();
    assert_eq!(actions, ["first_document", "crash", "crash", "set_aside"]);

    // It survives a restart of the whole, and is not told again.
    served.stop();
    let mut served = Served::start_with(dir.path(), &environment);
    served.wait_state("loops", 1, "failed");
    assert_eq!(audit(&served, "loops").len(), 4);
    let loaded = served.cli(&["load", "loops", "1"]);
    assert!(loaded.status.success(), "{loaded:?}");
    assert_eq!(calls(&served).0, 200);
    served.stop();
    let served = Served::start_with(dir.path(), &environment);
    served.ready();
    assert_eq!(calls(&served).0, 200, "the operator's decision survives a restart too");
}

#[test]
fn the_fallback_of_the_document_answers_for_a_version_that_was_set_aside() {
    let dir = directory();
    install_loops(dir.path());
    onnx::install(&dir.path().join("models"), "loops", 2, &onnx::looping());
    let mut served = Served::start_with(dir.path(), &[("SLUICEGATE__MODELS__CRASH_LIMIT", "1")]);
    served.ready();
    let document = dir.path().join("traffic.json");
    let split = json!([{"version": "1", "weight": 1}]);
    std::fs::write(&document, json!({"split": split, "fallback": {"version": "2"}}).to_string()).unwrap();
    let set = served.cli(&["traffic", "loops", "--set", &document.display().to_string()]);
    assert!(set.status.success(), "{set:?}");
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let answered = |served: &Served, version: &str| {
        let url = format!("http://{}/v2/models/loops{version}/infer", served.data);
        let answer = agent.post(&url).send(infer_body(&[1, 2], &[1.0, 2.0])).unwrap();
        let header = |name: &str| answer.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
        (answer.status().as_u16(), header("x-sluicegate-version"), header("x-sluicegate-fallback"))
    };
    assert_eq!(answered(&served, ""), (200, Some("1".to_owned()), None));
    crash_in_a_run(&served);
    served.wait_state("loops", 1, "failed");
    assert_eq!(answered(&served, ""), (200, Some("2".to_owned()), Some("crashed".to_owned())));
    assert_eq!(answered(&served, "/versions/1").0, 503, "whoever names a version gets no other one");
    served.stop();
    let served = Served::start_with(dir.path(), &[("SLUICEGATE__MODELS__CRASH_LIMIT", "1")]);
    served.wait_state("loops", 2, "ready");
    let after = eventually("it answers after a restart too", || {
        Some(answered(&served, "")).filter(|(status, ..)| *status == 200)
    });
    assert_eq!(after, (200, Some("2".to_owned()), Some("crashed".to_owned())));
    drop(served);
    let hidden = [("SLUICEGATE__MODELS__CRASH_LIMIT", "1"), ("SLUICEGATE__SERVER__VERSION_HEADERS", "false")];
    let served = Served::start_with(dir.path(), &hidden);
    served.wait_state("loops", 2, "ready");
    let after = eventually("it answers with hidden headers", || {
        Some(answered(&served, "")).filter(|(status, ..)| *status == 200)
    });
    assert_eq!(after, (200, None, None), "the fallback's headers can be hidden");
}

#[test]
fn a_version_that_was_set_aside_is_loaded_when_its_files_changed() {
    let dir = directory();
    install_loops(dir.path());
    let environment = [("SLUICEGATE__MODELS__CRASH_LIMIT", "1")];
    let mut served = Served::start_with(dir.path(), &environment);
    served.ready();
    crash_in_a_run(&served);
    served.wait_state("loops", 1, "failed");
    served.stop();
    std::fs::remove_dir_all(dir.path().join("models/loops/1")).unwrap();
    onnx::install(&dir.path().join("models"), "loops", 1, &onnx::scaling(2.0));
    let served = Served::start_with(dir.path(), &environment);
    served.wait_state("loops", 1, "serving");
}

#[test]
fn a_version_that_ends_the_process_before_it_is_ready_is_set_aside_and_the_others_serve() {
    let dir = directory();
    let served = Served::start_with(dir.path(), &[("SLUICEGATE__MODELS__CRASH_LIMIT", "1")]);
    served.wait_state("self", 1, "serving");
    let pid = served.server_pid().unwrap();
    // Its warm-up takes so long that the version is not ready when the signal comes.
    let long: Value = serde_json::from_str(&infer_body(&[1, 2], &[1e9, 2.0])).unwrap();
    let hidden = dir.path().join("models/loops/.1.tmp");
    std::fs::create_dir_all(&hidden).unwrap();
    std::fs::write(hidden.join("model.onnx"), onnx::looping()).unwrap();
    std::fs::write(hidden.join("warmup.json"), json!({"requests": [long]}).to_string()).unwrap();
    std::fs::rename(&hidden, dir.path().join("models/loops/1")).unwrap();
    served.wait_state("loops", 1, "warming");
    let thread = eventually("the thread that warms it up is busy", || {
        let mut tasks = std::fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero())).unwrap();
        let is_busy = |task: &std::fs::DirEntry| {
            let name = std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
            name.starts_with("load-") && user_time(&task.path().join("stat")) >= Some(50)
        };
        let task = tasks.find_map(|task| task.ok().filter(is_busy))?;
        task.file_name().to_str()?.parse().ok()
    });
    send_to_thread(pid, thread);
    served.wait_restarted(pid);
    let line = served.wait_logged("SIGSEGV in version 1 of loops (");
    assert_eq!((&line["model"], &line["call"]), (&json!("loops"), &json!("warm")), "{line}");
    served.wait_state("loops", 1, "failed");
    let actions: Vec<String> = audit(&served, "loops").into_iter().map(|(action, _)| action).collect();
    assert_eq!(actions, ["crash", "set_aside"]);
    served.ready();
}

// === check --input ===

fn check(dir: &Path, version: &str, input: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluicegate"));
    command.args(["check", version, "--input", input, "--json"]).current_dir(dir).env("ORT_DYLIB_PATH", onnxruntime());
    command
}

#[test]
fn check_runs_a_version_on_the_inputs_in_a_file() {
    let dir = directory();
    let body = infer_body(&[1, 4], &[0.0; 4]);
    std::fs::write(dir.path().join("as.json"), &body).unwrap();
    let mut binary = json!({"inputs": [
        {"name": "x", "shape": [1, 4], "datatype": "FP32", "parameters": {"binary_data_size": 16}},
    ]})
    .to_string()
    .into_bytes();
    // Bytes that look like the end of a JSON text are data here.
    binary.extend([f32::from_le_bytes(*b"}]}}"), 1.0, 2.0, 3.0].into_iter().flat_map(f32::to_le_bytes));
    std::fs::write(dir.path().join("as.request"), binary).unwrap();
    std::fs::write(dir.path().join("narrow.json"), infer_body(&[1, 3], &[0.0; 3])).unwrap();
    for (version, input) in [("models/self/1", "as.json"), ("models/self/1/model.onnx", "as.request")] {
        let output = check(dir.path(), version, input).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["inputs"], json!(["x FP32[1,4]"]), "{report}");
        assert_eq!(report["outputs"], json!(["y FP32[1,1]"]), "{report}");
    }
    for (version, input, words) in [
        ("models/self/1", "narrow.json", "narrow.json: "),
        ("models/self/1", "none.json", "none.json: "),
        ("models/self/2", "as.json", "models/self/2: "),
    ] {
        let output = check(dir.path(), version, input).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(report["failure"].as_str().unwrap().contains(words), "{report}");
    }
}

#[test]
fn check_says_which_signal_ended_the_run() {
    let dir = directory();
    install_loops(dir.path());
    std::fs::write(dir.path().join("long.json"), infer_body(&[1, 2], &[1e9, 2.0])).unwrap();
    let checking = check(dir.path(), "models/loops/1", "long.json").stdout(Stdio::piped()).spawn().unwrap();
    let child = eventually("the run has a process of its own, and is busy", || {
        let parent = checking.id();
        let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
        let pid: i32 = children.split_whitespace().next()?.parse().ok()?;
        // A second of processor time: it has loaded the version long ago.
        (user_time(Path::new(&format!("/proc/{pid}/stat"))) >= Some(100)).then_some(pid)
    });
    kill_process(Pid::from_raw(child).unwrap(), Signal::ABORT).unwrap();
    let output = checking.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["signal"], &report["run_ms"]), (&json!("SIGABRT"), &Value::Null), "{report}");
    assert_eq!(report["inputs"], json!(["x FP32[1,2]"]), "it died in the run, and not before: {report}");
}
