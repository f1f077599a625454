//! More requests than can be answered: callers and priorities take turns, refusals are early and say when to come back, and what is over is
//! over.

use crate::support::process::Served;
use crate::support::{Answer, Gateway, eventually, infer_body, onnx};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const COUNT: &str = "/v2/models/count/infer";
/// Nothing is refused because of its wait, however busy the machine is.
const PATIENT: &str = "max_wait = \"10m\"";

fn count_to(n: i64) -> String {
    json!({"inputs": [{"name": "n", "shape": [], "datatype": "INT64", "data": [n]}]}).to_string()
}

/// One worker, and a model that takes about 10 ms for a request with the returned body.
fn slow(execute: &str, more: &str) -> (Gateway, String) {
    let config = format!("[execute]\nworkers = 1\n{execute}\n{more}");
    let gateway = Gateway::start_with(&config, |models| onnx::install(models, "count", 1, &onnx::counting()));
    let mut n = 100;
    loop {
        let began = Instant::now();
        let answer = gateway.post(COUNT, count_to(n));
        assert_eq!(answer.status, 200, "{answer:?}");
        if began.elapsed() >= Duration::from_millis(10) {
            return (gateway, count_to(n));
        }
        n *= 2;
    }
}

/// A token for predictions, as a header.
fn token(gateway: &Gateway, name: &str) -> String {
    let made = gateway.admin_send("POST", "/api/v1/tokens", &[], &json!({"name": name, "role": "predict"}));
    assert_eq!(made.status, 201, "{made:?}");
    format!("Bearer {}", made.json()["token"].as_str().unwrap())
}

/// Answers that were refusals.
#[derive(Debug, Default)]
struct Counts {
    refused: AtomicU64,
}

impl Counts {
    fn add(&self, answer: &Answer) {
        match answer.status {
            200 => 0,
            // Every refusal says when to come back.
            429 | 503
                if answer.header("retry-after").is_some_and(|after| after.parse::<u64>().is_ok_and(|s| s >= 1)) =>
            {
                self.refused.fetch_add(1, Ordering::Relaxed)
            }
            _ => panic!("{answer:?}"),
        };
    }
}

/// Runs `work` while this many threads send the request with these headers in a closed loop.
fn beside<T>(
    gateway: &Gateway,
    threads: usize,
    headers: &[(&str, &str)],
    body: &str,
    counts: &Counts,
    work: impl FnOnce() -> T,
) -> T {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    counts.add(&gateway.post_with(COUNT, headers, body));
                }
            });
        }
        // The threads end, whatever `work` finds.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        stop.store(true, Ordering::Relaxed);
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn metric(gateway: &Gateway, line: &str) -> u64 {
    let text = String::from_utf8(gateway.admin_get("/metrics").body).unwrap();
    let value = text.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(' '));
    value.map_or(0, |value| value.parse().unwrap())
}

/// Requests that all callers have in flight.
fn in_flight(gateway: &Gateway) -> u64 {
    let callers = gateway.admin_get("/api/v1/callers").json();
    callers["callers"].as_array().unwrap().iter().map(|caller| caller["in_flight"].as_u64().unwrap()).sum()
}

/// Sends groups of requests, each with its headers, while a long run holds the only worker. Returns the groups in the order in which the
/// requests of the last one and those before them were answered.
fn order(gateway: &Gateway, body: &str, groups: &[(usize, &[(&str, &str)])]) -> Vec<usize> {
    let answered = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        // It is one of the first group, as its time counts for the turns too.
        let limited: Vec<_> = [("x-request-timeout-ms", "5000")].iter().chain(groups[0].1).copied().collect();
        scope.spawn(move || assert_eq!(gateway.post_with(COUNT, &limited, count_to(1 << 50)).status, 504));
        eventually("a long run holds the worker", || (in_flight(gateway) == 1).then_some(()));
        let mut waiting = 1;
        for (group, (requests, headers)) in groups.iter().enumerate() {
            for _ in 0..*requests {
                let answered = &answered;
                scope.spawn(move || {
                    let patient: Vec<_> =
                        [("x-request-timeout-ms", "120000")].iter().chain(*headers).copied().collect();
                    let answer = gateway.post_with(COUNT, &patient, body);
                    assert_eq!(answer.status, 200, "{answer:?}");
                    answered.lock().unwrap().push(group);
                });
            }
            waiting += u64::try_from(*requests).unwrap();
            eventually("they wait", || (in_flight(gateway) >= waiting).then_some(()));
        }
        assert!(answered.lock().unwrap().is_empty(), "nothing was answered before all waited");
    });
    answered.into_inner().unwrap()
}

/// How many of the first group were answered before the last one of the second.
fn before_the_last(order: &[usize]) -> usize {
    let last = order.iter().rposition(|group| *group == 1).unwrap();
    order[..last].iter().filter(|group| **group == 0).count()
}

#[test]
fn a_caller_with_few_requests_does_not_wait_behind_one_with_many() {
    let (gateway, body) = slow(PATIENT, "");
    let (greedy, modest) = (token(&gateway, "greedy"), token(&gateway, "modest"));
    let (greedy, modest) = ([("authorization", greedy.as_str())], [("authorization", modest.as_str())]);
    let order = order(&gateway, &body, &[(30, &greedy), (3, &modest)]);
    let before = before_the_last(&order);
    assert!(before <= 6, "they take turns; in the order they came it would be 30: {order:?}");
    let callers = gateway.admin_get("/api/v1/callers").json();
    let counts = |name: &str| {
        let mut all = callers["callers"].as_array().unwrap().iter();
        let caller = all.find(|caller| caller["caller"] == name).unwrap();
        (caller["named"].clone(), caller["last_minute"].clone(), caller["in_flight"].clone())
    };
    assert_eq!(counts("greedy"), (json!(true), json!(31), json!(0)), "{callers}");
    assert_eq!(counts("modest"), (json!(true), json!(3), json!(0)), "{callers}");
}

#[test]
fn batch_requests_give_way_and_do_not_starve() {
    let (gateway, body) = slow(PATIENT, "[callers]\nrules = [{ caller = \"nightly-*\", priority = \"batch\" }]\n");
    let nightly = token(&gateway, "nightly-scores");
    // The header cannot raise the priority.
    let nightly = [("authorization", nightly.as_str()), ("x-sluicegate-priority", "interactive")];
    let asked: [(&str, &str); 1] = [("x-sluicegate-priority", "batch")];
    for batch in [&nightly[..], &asked[..]] {
        let order = order(&gateway, &body, &[(20, batch), (20, &[])]);
        let before = before_the_last(&order);
        assert!(before <= 4, "one of sixteen turns: {order:?}");
        assert_eq!(order.len(), 40, "all of them were answered");
    }
    let answer = gateway.post_with(COUNT, &[("x-sluicegate-priority", "urgent")], &body);
    assert_eq!((answer.status, answer.code().as_str()), (400, "INVALID_REQUEST"));
    assert!(
        String::from_utf8_lossy(&answer.body).contains("expected \\\"interactive\\\" or \\\"batch\\\""),
        "{answer:?}"
    );
}

#[test]
fn a_request_that_cannot_run_in_time_is_refused_before_its_body_and_it_is_over_soon() {
    let (gateway, body) = slow("max_wait = \"50ms\"", "");
    let counts = Counts::default();
    let refused = || metric(&gateway, "sluicegate_shed_total{reason=\"queue\",priority=\"interactive\"}");
    beside(&gateway, 40, &[], &body, &counts, || {
        eventually("requests are refused", || (counts.refused.load(Ordering::Relaxed) > 20).then_some(()));
        eventually("a request without its body is answered", || {
            let mut stream = TcpStream::connect(gateway.data()).unwrap();
            stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            let head =
                format!("POST {COUNT} HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\nexpect: 100-continue\r\n\r\n");
            stream.write_all(head.as_bytes()).unwrap();
            let mut answer = [0; 4096];
            let text = stream.read(&mut answer).map(|n| String::from_utf8_lossy(&answer[..n]).into_owned());
            let text = text.ok()?;
            // Where there is room at this moment, the body is asked for.
            text.starts_with("HTTP/1.1 503").then(|| {
                assert!(text.contains("retry-after: ") && text.contains("the expected wait is"), "{text}");
            })
        });
        assert!(refused() > 20);
    });
    // What waited is done within the longest wait. From then on everything is answered as before.
    let began = Instant::now();
    eventually("a request is answered", || (gateway.post(COUNT, &body).status == 200).then_some(()));
    // Other tests use the machine too; alone it takes a few milliseconds.
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let before = refused();
    for _ in 0..10 {
        assert_eq!(gateway.post(COUNT, &body).status, 200);
    }
    assert_eq!(refused(), before);
}

/// Sends the headers of a request, and not its body. `None` where the body is asked for.
fn refused_without_body(gateway: &Gateway, headers: &str) -> Option<String> {
    let mut stream = TcpStream::connect(gateway.data()).unwrap();
    // The thread is busy: its answer may take a while.
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let head =
        format!("POST {COUNT} HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\nexpect: 100-continue\r\n{headers}\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = [0; 4096];
    let n = stream.read(&mut answer).unwrap();
    let text = String::from_utf8_lossy(&answer[..n]).into_owned();
    text.starts_with("HTTP/1.1 503").then_some(text)
}

#[test]
fn a_thread_that_is_late_refuses_what_cannot_wait_for_it_and_answers_the_others() {
    // Runs at once have no queue: requests wait in their sockets for the only thread, which notices that it is late.
    let config = "[server]\nio_threads = 1\n";
    let (mut products, body) = (4, infer_body(&[1, 2], &[1.0, 2.0]));
    let gateway = loop {
        let gateway = Gateway::start_with(config, |models| {
            onnx::install(models, "count", 1, &onnx::working(128, products));
            std::fs::write(models.join("count/model.toml"), "[execution]\nat_once = true\n").unwrap();
        });
        let began = Instant::now();
        assert_eq!(gateway.post(COUNT, &body).status, 200);
        if began.elapsed() >= Duration::from_millis(5) {
            break gateway;
        }
        products *= 2;
    };
    let shed = |priority: &str| {
        metric(&gateway, &format!("sluicegate_shed_total{{reason=\"thread\",priority=\"{priority}\"}}"))
    };
    assert_eq!((shed("interactive"), shed("batch")), (0, 0));
    let (counts, words) = (Counts::default(), "the thread of this connection is busy: requests wait ");
    beside(&gateway, 40, &[], &body, &counts, || {
        for (headers, priority) in
            [("x-request-timeout-ms: 20\r\n", "interactive"), ("x-sluicegate-priority: batch\r\n", "batch")]
        {
            let answer = eventually("a request that cannot wait is refused before its body", || {
                refused_without_body(&gateway, headers)
            });
            assert!(answer.contains(words) && answer.contains("retry-after: 1\r\n"), "{answer}");
            assert!(answer.contains("\"code\":\"OVERLOADED\""), "{answer}");
            assert!(shed(priority) > 0);
        }
    });
    assert_eq!(counts.refused.load(Ordering::Relaxed), 0, "requests that can wait for the thread are answered");
    eventually("the thread has caught up", || {
        refused_without_body(&gateway, "x-sluicegate-priority: batch\r\n").is_none().then_some(())
    });
    let before = (shed("interactive"), shed("batch"));
    for _ in 0..10 {
        assert_eq!(gateway.post(COUNT, &body).status, 200);
    }
    assert_eq!((shed("interactive"), shed("batch")), before);
}

#[test]
fn rates_and_places_of_callers_hold_and_change_while_the_server_runs() {
    let dir = tempfile::tempdir().unwrap();
    onnx::install(&dir.path().join("models"), "m", 1, &onnx::scaling(2.0));
    std::fs::create_dir(dir.path().join("config")).unwrap();
    let write = |callers: &str| {
        std::fs::write(dir.path().join("config/sluicegate.toml"), format!("[callers]\n{callers}")).unwrap();
    };
    write("rate = 5\nrules = [{ caller = \"fast\", rate = 1000000 }]\n");
    let served = Served::start(dir.path());
    served.ready();
    let made = served.admin_post("/api/v1/tokens", &json!({"name": "fast", "role": "predict"}));
    let fast = format!("Bearer {}", made["token"].as_str().unwrap());
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let url = format!("http://{}/v2/models/m/infer", served.data);
    let ask = |headers: &[(&str, &str)]| {
        let request = headers.iter().fold(agent.post(&url), |request, (name, value)| request.header(*name, *value));
        let mut answer = request.send(infer_body(&[1, 2], &[1.0, 2.0])).unwrap();
        let text = answer.body_mut().read_to_string().unwrap();
        let retry = answer.headers().get("retry-after").map(|value| value.to_str().unwrap().to_owned());
        (answer.status().as_u16(), serde_json::from_str::<Value>(&text).unwrap(), retry)
    };
    let answers: Vec<_> = (0..40).map(|_| ask(&[])).collect();
    let refused = answers.iter().find(|(status, ..)| *status != 200).expect("40 requests are more than 5 a second");
    assert_eq!((refused.0, refused.1["code"].as_str()), (429, Some("TOO_MANY_REQUESTS")));
    let words = refused.1["error"].as_str().unwrap();
    assert!(words.contains("the address 127.0.0.1 may send 5 requests per second"), "{words}");
    assert_eq!(refused.2.as_deref(), Some("1"));
    assert!((0..40).all(|_| ask(&[("authorization", &fast)]).0 == 200), "the rule of the token");
    let unknown = [("authorization", "Bearer sluice_unknown")];
    assert!((0..40).any(|_| ask(&unknown).0 == 429), "a token that proves nothing has no limits of its own");
    let shown = served.cli(&["callers"]);
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("CALLER") && shown.contains("127.0.0.1") && shown.contains("fast"), "{shown}");
    write("rate = 0\n");
    rustix::process::kill_process(served.server_pid().unwrap(), rustix::process::Signal::HUP).unwrap();
    eventually("the new rate applies", || (0..40).all(|_| ask(&[]).0 == 200).then_some(()));
}
