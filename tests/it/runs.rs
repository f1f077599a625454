//! Runs that take too long, on the real binary: they end, and nobody else waits for them.

use crate::support::process::Served;
use crate::support::{eventually, onnx};
use serde_json::{Value, json};
use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// An answer's status and body; `None` where none came within five seconds.
type Answer = Option<(u16, Value)>;

fn agent() -> ureq::Agent {
    let config = ureq::Agent::config_builder().http_status_as_error(false);
    config.timeout_global(Some(Duration::from_secs(10))).build().into()
}

/// Each request has a connection of its own, as those of probes do.
fn get(url: &str) -> Answer {
    let mut answer = agent().get(url).header("connection", "close").call().ok()?;
    let text = answer.body_mut().read_to_string().ok()?;
    Some((answer.status().as_u16(), serde_json::from_str(&text).unwrap_or(Value::String(text))))
}

fn infer(served: &Served, model: &str, inputs: &Value, timeout_ms: u64) -> Answer {
    let url = format!("http://{}/v2/models/{model}/infer", served.data);
    let request = agent().post(&url).header("x-request-timeout-ms", &timeout_ms.to_string());
    let mut answer = request.header("connection", "close").send(json!({ "inputs": inputs }).to_string()).ok()?;
    let text = answer.body_mut().read_to_string().ok()?;
    Some((answer.status().as_u16(), serde_json::from_str(&text).ok()?))
}

fn number(n: i64) -> Value {
    json!([{"name": "n", "shape": [], "datatype": "INT64", "data": [n]}])
}

fn pair() -> Value {
    json!([{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1.0, 2.0]}])
}

fn matrices(a: usize, b: usize, c: usize) -> Value {
    let matrix = |name: &str, rows: usize, columns: usize| json!({"name": name, "shape": [rows, columns], "datatype": "FP32", "data": vec![1.0; rows * columns]});
    json!([matrix("x", a, b), matrix("y", b, c)])
}

fn served(models: &[(&str, Vec<u8>)]) -> (TempDir, Served) {
    let dir = TempDir::new().unwrap();
    for (name, bytes) in models {
        onnx::install(&dir.path().join("models"), name, 1, bytes);
    }
    let served = Served::start(dir.path());
    served.ready();
    (dir, served)
}

fn is_live(served: &Served) {
    let began = Instant::now();
    let live = get(&format!("http://{}/v2/health/live", served.data));
    assert_eq!(live.map(|(status, _)| status), Some(200), "liveness after {:?}", began.elapsed());
}

fn execution(served: &Served, model: &str) -> Value {
    let shown = get(&format!("http://{}/api/v1/models/{model}/execution", served.admin)).unwrap();
    shown.1["versions"][0].clone()
}

const OK: Option<u16> = Some(200);

fn status(answer: Answer) -> Option<u16> {
    answer.map(|(status, _)| status)
}

/// The case of the issue: fast calls first, so that the cost is known to be low, and then more endless ones than there are threads.
#[test]
fn runs_whose_time_lies_in_a_value_end_at_their_deadline_and_hold_nobody() {
    let models = [("count", onnx::counting()), ("ok", onnx::scaling(2.0)), ("product", onnx::product())];
    let (_dir, mut served) = served(&models);
    for _ in 0..30 {
        assert_eq!(status(infer(&served, "count", &number(5), 5_000)), OK);
        assert_eq!(status(infer(&served, "ok", &pair(), 5_000)), OK);
        assert_eq!(status(infer(&served, "product", &matrices(1, 2, 1), 5_000)), OK);
    }
    let shown = execution(&served, "count");
    assert!(shown["never_at_once"].as_str().is_some_and(|why| why.contains("operator Loop")), "{shown}");
    let threads = 2 * std::thread::available_parallelism().map_or(2, usize::from) + 2;
    std::thread::scope(|scope| {
        let ask = || {
            let began = Instant::now();
            (infer(&served, "count", &number(1_000_000_000_000), 1_500), began.elapsed())
        };
        let callers: Vec<_> = (0..threads).map(|_| scope.spawn(ask)).collect();
        eventually("a run is in progress", || {
            let shown = get(&format!("http://{}/metrics", served.admin))?.1;
            shown.as_str()?.contains("sluicegate_in_flight_requests{model=\"count\",version=\"1\"} ").then_some(())
        });
        for _ in 0..5 {
            is_live(&served);
            assert_eq!(status(infer(&served, "ok", &pair(), 5_000)), OK, "a model on the I/O threads answers");
            // A shape that was not run before: on a worker.
            assert_eq!(status(infer(&served, "product", &matrices(2, 3, 4), 5_000)), OK, "a model on workers answers");
        }
        for caller in callers {
            let (answer, took) = caller.join().unwrap();
            let (status, body) = answer.expect("every caller is answered");
            // 503 where too many were waiting already.
            assert!(status == 504 || status == 503, "{status}: {body}");
            assert!(took < Duration::from_secs(5), "the deadline was 1.5 s: {took:?}");
        }
    });
    let answer =
        eventually("the workers are back", || infer(&served, "count", &number(5), 5_000).filter(|a| a.0 == 200));
    assert_eq!(answer.1["outputs"][0]["data"], json!([5.0]));
    let runs = &execution(&served, "count")["runs"];
    assert!(runs["interrupted"].as_u64() > Some(0) && runs["lost"] == 0, "{runs}");
    served.stop();
}

/// The server reads nothing from a connection while it answers, and yet sees that the client has closed it.
#[test]
fn a_run_ends_when_its_caller_leaves() {
    let (_dir, mut served) = served(&[("count", onnx::counting())]);
    let began = Instant::now();
    let body = json!({ "inputs": number(1_000_000_000_000) }).to_string();
    let head = "POST /v2/models/count/infer HTTP/1.1\r\nhost: x\r\nx-request-timeout-ms: 60000\r\n";
    let mut stream = TcpStream::connect(&served.data).unwrap();
    stream.write_all(format!("{head}content-length: {}\r\n\r\n{body}", body.len()).as_bytes()).unwrap();
    eventually("a run is in progress", || {
        let shown = get(&format!("http://{}/metrics", served.admin))?.1;
        // A client that closes at once may still wait for its answer.
        let is_late = began.elapsed() > Duration::from_millis(300);
        let line = "sluicegate_in_flight_requests{model=\"count\",version=\"1\"} 1\n";
        (is_late && shown.as_str()?.contains(line)).then_some(())
    });
    let ended = || execution(&served, "count")["runs"]["interrupted"].as_u64().unwrap();
    assert_eq!(ended(), 0, "it goes on while the caller waits");
    drop(stream);
    eventually("the run was ended", || (ended() == 1).then_some(()));
    assert!(began.elapsed() < Duration::from_secs(30), "long before the deadline: {:?}", began.elapsed());
    served.stop();
}

/// One node that takes minutes does not look at its flag.
#[test]
fn runs_that_ignore_their_flag_cost_workers_that_are_replaced_and_their_version_is_set_aside() {
    let (_dir, mut served) = served(&[("boxes", onnx::keeping_boxes()), ("product", onnx::product())]);
    let kept = infer(&served, "boxes", &number(40), 5_000).unwrap();
    assert_eq!(kept.1["outputs"][0]["data"], json!([40]), "{}", kept.1);
    assert_eq!(status(infer(&served, "product", &matrices(1, 2, 1), 5_000)), OK);
    std::thread::scope(|scope| {
        let ask = || infer(&served, "boxes", &number(1_000_000), 200);
        let callers: Vec<_> = (0..3).map(|_| scope.spawn(ask)).collect();
        for caller in callers {
            let (status, body) = caller.join().unwrap().expect("every caller is answered");
            assert!(status == 504 || status == 503, "{status}: {body}");
        }
    });
    let state = eventually("three runs are lost, and the version is set aside", || {
        is_live(&served);
        let shown = get(&format!("http://{}/api/v1/models/boxes/versions/1", served.admin))?.1;
        if shown["state"] == "failed" {
            return Some(shown);
        }
        // The worker of each lost run was replaced, and so another one can be lost.
        let _ = infer(&served, "boxes", &number(1_000_000), 200);
        None
    });
    assert_eq!(state["stage"], "stuck", "{state}");
    assert!(state["reason"].as_str().unwrap().contains("did not end although they were interrupted"), "{state}");
    let (status_of_boxes, body) = infer(&served, "boxes", &number(40), 5_000).unwrap();
    assert_eq!(status_of_boxes, 503, "{body}");
    assert_eq!(status(infer(&served, "product", &matrices(3, 2, 3), 5_000)), OK, "other versions have workers");
    let (ready, body) = get(&format!("http://{}/readyz", served.admin)).unwrap();
    let stuck = body["stuck_threads"].as_array().map_or(0, Vec::len);
    assert!(ready == 200 && stuck >= 3, "{ready}: {body}");
    eventually("the lost runs are counted", || {
        let metrics = get(&format!("http://{}/metrics", served.admin))?.1;
        let counted = metrics.as_str()?.lines().find_map(|line| line.strip_prefix("sluicegate_runs_lost_total "))?;
        (counted.parse::<u32>().unwrap() >= 3).then_some(())
    });
    // The runs are still inside the engine. Nothing is torn down under them: the exit code is 0.
    served.stop();
}
