//! Three models are asked all the time and every answer is checked, while other models crash the server, hang, eat memory, and are pushed,
//! promoted, retired and replaced. Nothing checked may be wrong or lost, and liveness must hold. `make chaos` runs it for ten minutes.

use crate::support::process::Served;
use crate::support::{eventually, onnx};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

/// The checked models, and the factor that each multiplies its input with.
const CHECKED: [(&str, f32); 3] = [("double", 2.0), ("triple", 3.0), ("quarter", 0.25)];
/// The pause of a client between two requests: about 200 requests a second and client.
const PAUSE: Duration = Duration::from_millis(5);
/// How many times the steady p99 the p99 beside the events may be, in the long form. The short form runs beside other tests.
const MAX_P99_RATIO: f64 = 3.0;
/// A run this long has enough events and samples for a figure of the p99.
const LONG: Duration = Duration::from_mins(2);

/// One request of a checked client.
#[derive(Debug, Clone)]
struct Asked {
    begun: Instant,
    ended: Instant,
    /// What was wrong with the answer.
    fault: Option<String>,
}

/// A time: of an event, or in which the server was ended and started again.
#[derive(Debug, Clone, Copy)]
struct Span {
    from: Instant,
    until: Instant,
}

impl Span {
    fn touches(&self, asked: &Asked) -> bool {
        asked.ended >= self.from && asked.begun <= self.until
    }
}

fn seconds() -> Duration {
    let seconds = std::env::var("SLUICEGATE_CHAOS_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(20);
    Duration::from_secs(seconds)
}

fn agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(10)))
        .build()
        .into()
}

#[test]
fn checked_answers_stay_right_while_other_models_misbehave() {
    let total = seconds();
    let dir = tempfile::TempDir::new().unwrap();
    let models = dir.path().join("models");
    std::fs::create_dir(&models).unwrap();
    for (name, factor) in CHECKED {
        onnx::install(&models, name, 1, &onnx::scaling(factor));
    }
    onnx::install(&models, "victim", 1, &onnx::scaling(5.0));
    onnx::install(&models, "hanging", 1, &onnx::counting());
    onnx::install(&models, "hungry", 1, &onnx::out_of_memory_above(4));
    onnx::install(&models, "recurrent", 1, &onnx::lstm());
    let served = Served::start_with(
        dir.path(),
        &[
            ("SLUICEGATE__SERVER__REQUEST_TIMEOUT", "1s"),
            ("SLUICEGATE__MODELS__LOAD_TIMEOUT", "3s"),
            ("TEST_ADDRESS_SPACE_KIB", "12582912"),
        ],
    );
    served.ready();
    let story = Mutex::new(String::new());
    // A failure is kept with the server's log: it may not come again for hours.
    let ran = catch_unwind(AssertUnwindSafe(|| run(&served, &models, total, &story)));
    let failure = ran.as_ref().err().map(|panic| panic.downcast_ref::<String>().cloned().unwrap_or_default());
    let kept = keep(failure.as_deref(), &story.into_inner().unwrap_or_else(PoisonError::into_inner), &served.log());
    if let Err(panic) = ran {
        eprintln!("the findings and the server's log are in {}", kept.display());
        resume_unwind(panic);
    }
}

/// Writes what was found, and the server's log, to a file. Returns its path.
fn keep(failure: Option<&str>, story: &str, log: &[String]) -> PathBuf {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/chaos");
    std::fs::create_dir_all(&dir).unwrap();
    let outcome = if failure.is_some() { "failed" } else { "passed" };
    let file = dir.join(format!("{outcome}-{}.log", std::process::id()));
    let text = format!("{}\n\n{story}\n\n{}\n", failure.unwrap_or("passed"), log.join("\n"));
    std::fs::write(&file, text).unwrap();
    file
}

fn run(served: &Served, models: &Path, total: Duration, story: &Mutex<String>) {
    let (data, stop) = (served.data.clone(), Arc::new(AtomicBool::new(false)));
    let asked = Arc::new(Mutex::new(Vec::new()));
    let live = Arc::new(Mutex::new(Vec::new()));
    let clients: Vec<_> = CHECKED
        .iter()
        .map(|&(name, factor)| {
            let (data, stop, asked) = (data.clone(), Arc::clone(&stop), Arc::clone(&asked));
            std::thread::spawn(move || ask_and_check(&data, name, factor, &stop, &asked))
        })
        .chain([{
            let (data, stop, live) = (data.clone(), Arc::clone(&stop), Arc::clone(&live));
            std::thread::spawn(move || look_whether_live(&data, &stop, &live))
        }])
        .collect();

    let begun = Instant::now();
    pause(total / 5);
    let steady_until = Instant::now();
    let mut events = Events { served, models, next_version: 2, past: Vec::new(), restarts: Vec::new() };
    let mut turn = 0;
    let failed = catch_unwind(AssertUnwindSafe(|| {
        while begun.elapsed() < total {
            writeln!(story.lock().unwrap(), "{:.3} s: turn {turn}", begun.elapsed().as_secs_f64()).unwrap();
            events.one(turn);
            turn += 1;
        }
    }));
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.join().unwrap();
    }

    let Events { past, restarts, .. } = events;
    let outside = |asked: &&Asked| !restarts.iter().any(|restart| restart.touches(asked));
    let asked = asked.lock().unwrap();
    let faults: Vec<&Asked> = asked.iter().filter(outside).filter(|asked| asked.fault.is_some()).collect();
    let live = live.lock().unwrap();
    let not_live: Vec<&Asked> = live.iter().filter(outside).filter(|asked| asked.fault.is_some()).collect();
    // Between restarts too, an answer may break off, but it may never be wrong.
    let wrong: Vec<&Asked> =
        asked.iter().filter(|a| a.fault.as_ref().is_some_and(|f| f.starts_with("wrong"))).collect();
    let p99 = |of: &dyn Fn(&&Asked) -> bool| {
        let mut times: Vec<f64> = asked.iter().filter(of).map(|a| (a.ended - a.begun).as_secs_f64() * 1e3).collect();
        times.sort_by(f64::total_cmp);
        times.get(times.len().saturating_sub(1) * 99 / 100).copied().unwrap_or(f64::NAN)
    };
    let during = |what: &str| {
        let spans: Vec<Span> = past.iter().filter(|(of, _)| *of == what).map(|(_, span)| *span).collect();
        let is_during =
            |a: &&Asked| outside(a) && spans.iter().any(|span| a.begun >= span.from && a.begun <= span.until);
        (spans.len(), asked.iter().filter(is_during).count(), p99(&is_during))
    };
    let steady = p99(&|a: &&Asked| a.ended <= steady_until);
    let beside = p99(&|a: &&Asked| a.begun > steady_until && outside(a));
    let longest = restarts.iter().map(|r| (r.until - r.from).as_secs_f64()).fold(0.0, f64::max);
    let mut report = format!(
        "{} checked requests, {} liveness checks, {} restarts (longest {longest:.2} s), p99 steady {steady:.2} ms, beside events {beside:.2} ms; events:",
        asked.len(),
        live.len(),
        restarts.len()
    );
    for what in EVENTS {
        let (times, requests, p99) = during(what);
        write!(report, " {what} {times} (p99 {p99:.2} ms of {requests}),").unwrap();
    }
    println!("{report}");
    let mut all = story.lock().unwrap();
    writeln!(all, "{report}").unwrap();
    for asked in faults.iter().chain(&not_live).chain(&wrong) {
        let at = |time: Instant| time.saturating_duration_since(begun).as_secs_f64();
        writeln!(all, "{:.3} to {:.3} s: {:?}", at(asked.begun), at(asked.ended), asked.fault).unwrap();
    }
    drop(all);
    if let Err(panic) = failed {
        resume_unwind(panic);
    }
    assert!(wrong.is_empty(), "wrong answers: {:?}", &wrong[..wrong.len().min(5)]);
    assert!(
        faults.is_empty(),
        "{} lost outside of restarts: {:?}; {report}",
        faults.len(),
        &faults[..faults.len().min(5)]
    );
    assert!(not_live.is_empty(), "not live outside of restarts: {:?}; {report}", &not_live[..not_live.len().min(5)]);
    assert!(asked.len() > 100 && live.len() > 20, "{report}");
    if total >= LONG {
        assert!(beside <= steady * MAX_P99_RATIO, "{report}");
    }
}

/// Waits, with a channel that nobody sends to.
fn pause(time: Duration) {
    let (_sender, receiver) = mpsc::channel::<()>();
    let _ = receiver.recv_timeout(time);
}

fn ask_and_check(data: &str, name: &str, factor: f32, stop: &AtomicBool, asked: &Mutex<Vec<Asked>>) {
    let (agent, url) = (agent(), format!("http://{data}/v2/models/{name}/infer"));
    let mut number = 0_u16;
    while !stop.load(Ordering::Relaxed) {
        number = (number + 1) % 1000;
        let inputs: Vec<f32> = (0..2 * (1 + number % 4)).map(|i| f32::from(number + i)).collect();
        let body = crate::support::infer_body(&[inputs.len() / 2, 2], &inputs);
        let begun = Instant::now();
        let fault = match agent.post(&url).send(body) {
            Err(error) => Some(format!("{name}: {error}")),
            Ok(mut answer) => {
                let status = answer.status().as_u16();
                match answer.body_mut().read_to_string() {
                    Err(error) => Some(format!("{name}: {error}")),
                    Ok(text) if status != 200 => Some(format!("{name}: {status} {text}")),
                    Ok(text) => {
                        let json: Value = serde_json::from_str(&text).unwrap_or_default();
                        let expected: Vec<f32> = inputs.iter().map(|x| x * factor).collect();
                        let is_right = json["outputs"][0]["data"] == json!(expected);
                        (!is_right).then(|| format!("wrong: {name} of {inputs:?}: {text}"))
                    }
                }
            }
        };
        asked.lock().unwrap().push(Asked { begun, ended: Instant::now(), fault });
        pause(PAUSE);
    }
}

fn look_whether_live(data: &str, stop: &AtomicBool, live: &Mutex<Vec<Asked>>) {
    let (agent, url) = (agent(), format!("http://{data}/v2/health/live"));
    while !stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let fault = match agent.get(&url).call() {
            Err(error) => Some(format!("live: {error}")),
            Ok(answer) => (answer.status() != 200).then(|| format!("live: {}", answer.status())),
        };
        live.lock().unwrap().push(Asked { begun, ended: Instant::now(), fault });
        pause(Duration::from_millis(50));
    }
}

/// What happens, in turn.
const EVENTS: [&str; 7] =
    ["push and promote", "hang", "eat memory", "empty inputs", "retire and promote", "endless load", "crash"];

/// What happens to the models that nobody checks.
struct Events<'s> {
    served: &'s Served,
    models: &'s Path,
    next_version: u64,
    past: Vec<(&'static str, Span)>,
    restarts: Vec<Span>,
}

impl Events<'_> {
    /// The event of a turn.
    fn one(&mut self, turn: usize) {
        let (what, from) = (EVENTS[turn % EVENTS.len()], Instant::now());
        match what {
            "push and promote" => self.push_and_promote(),
            "hang" => self.hang(),
            "eat memory" => self.eat_memory(),
            "empty inputs" => self.empty_inputs(),
            "retire and promote" => self.retire_and_promote(),
            "endless load" => self.endless_load(),
            _ => self.crash(),
        }
        self.past.push((what, Span { from, until: Instant::now() }));
    }

    fn admin(&self, method: &str, path: &str, body: &[u8]) -> (u16, String) {
        let url = format!("http://{}{path}", self.served.admin);
        let request = ureq::http::Request::builder().method(method).uri(url).header("content-type", "application/json");
        let request = request.body(body.to_vec()).unwrap();
        let mut answer = agent().run(request).unwrap_or_else(|e| panic!("{method} {path}: {e}"));
        (answer.status().as_u16(), answer.body_mut().read_to_string().unwrap_or_default())
    }

    fn promote(&self, version: u64) -> (u16, String) {
        let body = json!({ "version": version.to_string(), "reason": "chaos" }).to_string();
        self.admin("POST", "/api/v1/models/victim:promote", body.as_bytes())
    }

    fn push_and_promote(&mut self) {
        let version = self.next_version;
        self.next_version += 1;
        let path = format!("/api/v1/models/victim/versions/{version}");
        let (status, text) = self.admin("PUT", &path, &onnx::scaling(5.0));
        assert!(status < 300, "push: {status} {text}");
        self.served.wait_state("victim", version, "ready");
        let (status, text) = self.promote(version);
        assert_eq!(status, 200, "promote: {text}");
    }

    /// More runs than there are threads, of a loop that would take years.
    fn hang(&self) {
        let url = format!("http://{}/v2/models/hanging/infer", self.served.data);
        let body = json!({ "inputs": [{ "name": "n", "shape": [], "datatype": "INT64", "data": [i64::MAX / 2] }] });
        let asked: Vec<_> = (0..6)
            .map(|_| {
                let (url, body) = (url.clone(), body.to_string());
                std::thread::spawn(move || agent().post(&url).send(body).map(|answer| answer.status().as_u16()))
            })
            .collect();
        for asked in asked {
            let status = asked.join().unwrap().unwrap_or_else(|e| panic!("a hanging request has an answer: {e}"));
            assert!(matches!(status, 503 | 504), "a hanging request ends at its deadline, got {status}");
        }
    }

    fn eat_memory(&self) {
        let url = format!("http://{}/v2/models/hungry/infer", self.served.data);
        let answer = agent().post(&url).send(crate::support::infer_body(&[1, 2], &[5.0, 5.0])).unwrap();
        assert_eq!(answer.status(), 500, "there is not enough memory for this request");
    }

    fn empty_inputs(&self) {
        let url = format!("http://{}/v2/models/recurrent/infer", self.served.data);
        for shape in [[1, 0, 4], [0, 1, 4]] {
            let body = json!({ "inputs": [{ "name": "x", "shape": shape, "datatype": "FP32", "data": [] }] });
            let answer = agent().post(&url).send(body.to_string()).unwrap();
            assert!(matches!(answer.status().as_u16(), 200 | 400), "{shape:?}: {}", answer.status());
        }
    }

    fn retire_and_promote(&self) {
        let reason = json!({ "reason": "chaos" }).to_string();
        let (status, text) = self.admin("DELETE", "/api/v1/models/victim", reason.as_bytes());
        assert_eq!(status, 200, "retire: {text}");
        let version = self.next_version - 1;
        // The version is loaded again first.
        eventually("the retired model is promoted again", || (self.promote(version).0 == 200).then_some(()));
    }

    fn endless_load(&self) {
        onnx::install(self.models, "nested", 1, &onnx::nested_functions(30));
        self.served.wait_state("nested", 1, "failed");
        std::fs::remove_dir_all(self.models.join("nested")).unwrap();
    }

    /// A signal, as from inside an engine. The next server answers for all checked models before this returns.
    fn crash(&mut self) {
        let from = Instant::now();
        let pid = self.served.server_pid().expect("a server process is running");
        rustix::process::kill_process(pid, rustix::process::Signal::SEGV).unwrap();
        // The signal ends the process when a thread of it gets a processor next. Until then it answers as before.
        eventually("another server process was started", || self.served.server_pid().filter(|new| *new != pid));
        for (name, _) in CHECKED {
            let url = format!("http://{}/v2/models/{name}/infer", self.served.data);
            eventually("a checked model answers after a crash", || {
                let answer = agent().post(&url).send(crate::support::infer_body(&[1, 2], &[1.0, 1.0])).ok()?;
                (answer.status() == 200).then_some(())
            });
        }
        self.restarts.push(Span { from, until: Instant::now() });
        // Everything else is loaded again before the next event.
        self.served.ready();
    }
}
