//! Pages over a made API, so that a test says what the API answers.

use super::*;
use axum::Json;
use axum::body::Body;
use axum::http::header::{COOKIE, SET_COOKIE};
use axum::http::{HeaderMap, Method};
use serde_json::{Value, json};
use std::sync::Mutex;
use tower::ServiceExt as _;

#[derive(Default)]
struct Made {
    /// Requests that change something.
    changes: Mutex<Vec<(String, Value, String)>>,
    /// Whether a token is needed.
    closed: bool,
    /// Answers to changes; the first one comes first.
    answers: Mutex<Vec<(u16, Value)>>,
}

/// Markup, a script, an override of the direction, a bell, an escape sequence of a terminal, a byte order mark and an emoji.
const HOSTILE: &str = "<script>alert(1)</script>\u{202e}\"' onload=x\u{7}\u{1b}[31m\u{feff}\u{1f980}";

fn model() -> Value {
    json!({
        "name": "iris", "ready": true, "reason": null, "retired": null, "revision": 7, "notes": [HOSTILE],
        "document": {"split": [{"version": "1", "weight": 70.0, "arm": HOSTILE}, {"version": "2", "weight": 30.0, "arm": "2"}],
            "sticky_by": {"header": "x-user-id"}, "reason": HOSTILE},
        "answers": [{"arm": HOSTILE, "version": "1", "share": 0.7}, {"arm": "2", "version": "2", "share": 0.3}],
        "versions": [{"version": "1", "state": "serving", "engine": "tract", "bytes": 4096, "in_flight": 0, "notes": [HOSTILE]},
            {"version": "2", "state": "serving", "engine": "tract", "bytes": 4096, "in_flight": 0, "notes": []},
            {"version": "3", "state": "ready", "engine": "tract", "bytes": 4096, "in_flight": 0, "notes": []},
            {"version": "4", "state": "failed", "stage": "load", "reason": HOSTILE, "notes": []}],
    })
}

async fn answer(State(made): State<Arc<Made>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let problem = |status: u16, error: &str| {
        (StatusCode::from_u16(status).unwrap(), Json(json!({"error": error, "code": "X"}))).into_response()
    };
    let given = parts.headers.get("authorization").map(|value| value.to_str().unwrap().to_owned());
    if made.closed && given.as_deref() != Some("Bearer good") {
        return problem(401, "the token is unknown: it was revoked, or another server made it");
    }
    if parts.method != Method::GET {
        let bytes = axum::body::to_bytes(body, 1 << 20).await.unwrap();
        let value: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        let if_match = parts.headers.get("if-match").map_or(String::new(), |value| value.to_str().unwrap().to_owned());
        if value["dry_run"] == true {
            let mut would = model()["document"].clone();
            would["split"] = json!([{"version": "3", "weight": 1.0, "arm": "3"}]);
            let gate = json!({"gate": "golden", "found": HOSTILE, "passed": false});
            return Json(json!({"would_be": would, "difference": [HOSTILE], "gates": [gate]})).into_response();
        }
        made.changes.lock().unwrap().push((format!("{} {}", parts.method, parts.uri), value, if_match));
        let answers = &mut *made.answers.lock().unwrap();
        if answers.is_empty() {
            return Json(json!({})).into_response();
        }
        let (status, body) = answers.remove(0);
        return (StatusCode::from_u16(status).unwrap(), Json(body)).into_response();
    }
    let revision = |n: u64, weight: f64| {
        json!({"revision": n, "ts": "2026-11-28T10:00:00Z", "actor": HOSTILE, "action": "put_traffic", "reason": HOSTILE,
        "document": {"split": [{"version": "1", "weight": weight, "arm": "1"}]}})
    };
    let event = json!({"id": 1, "ts": "2026-11-28T10:00:00Z", "actor": HOSTILE, "action": "promote", "model": "iris", "reason": HOSTILE,
        "before": null, "after": {"x": HOSTILE}});
    let path = parts.uri.path_and_query().unwrap().as_str().to_owned();
    let value = match path.split('?').next().unwrap() {
        "/api/v1/whoami" => json!({"actor": HOSTILE, "actions": ["view", "operate", "approve", "administer"]}),
        "/api/v1/overview" => {
            json!({"models": 2, "found": 2, "wrong": 2, "rows": [
                {"name": "iris", "ready": true, "answers": model()["answers"], "versions": 4, "failed_versions": [HOSTILE], "alerts": [HOSTILE],
                    "figures": {"requests_per_s": 1.5, "last_hour": [1.0, 2.0]}},
                {"name": "broken", "ready": false, "reason": HOSTILE, "answers": [], "versions": 0, "failed_versions": [], "alerts": [], "figures": null}]})
        }
        "/api/v1/models/iris" => model(),
        "/api/v1/models/iris/history" => json!({"history": [revision(7, 70.0), revision(6, 1.0)]}),
        "/api/v1/models/iris/traffic" => {
            json!({"shares": [{"arm": HOSTILE, "version": "1", "configured": 0.7, "observed": 0.69, "requests": 12, "breaker": "closed"}]})
        }
        "/api/v1/models/iris/rollout" => {
            json!({"state": "running", "to": "3", "why": HOSTILE, "steps": [10.0, 100.0], "step": 0, "before": {"split": [{"version": "2", "weight": 1.0, "arm": "2"}]}, "percent": 10.0, "hold": "1m", "held": "5s", "by": HOSTILE, "reason": HOSTILE,
            "started_at": "2026-11-28T10:00:00Z", "moves": [{"ts": "2026-11-28T10:00:00Z", "percent": 10.0, "reason": HOSTILE}],
            "metrics": [{"metric": HOSTILE, "candidate_mean": 0.5, "candidate_units": 9, "control_mean": 0.4, "control_units": 9, "difference": 0.1, "low": -0.2, "high": 0.4, "not_worse_than": null}],
            "guardrails": [{"name": "error_rate_ratio", "limit": 1.0, "candidate": {"bad": 1, "requests": 10}, "control": {"bad": 1, "requests": 90}, "interval": [0.2, null], "broken": false}]})
        }
        "/api/v1/models/iris/versions/1" => {
            json!({"state": "serving", "signature": {"inputs": [{"name": HOSTILE, "datatype": "FP32", "shape": [-1, 4]}]}, "metadata": {"by": HOSTILE, "deep": {"x": {"y": HOSTILE}}}, "notes": []})
        }
        "/api/v1/models/iris/experiment" => {
            json!({"summary": HOSTILE, "unit": "key", "control": HOSTILE, "alpha": 0.05, "began_at_revision": 7, "began": "2026-11-28T10:00:00Z",
            "arms": [{"arm": HOSTILE}, {"arm": "2"}], "metrics": [{"metric": HOSTILE, "arms": [{"arm": HOSTILE, "units": 5, "mean": 0.5}, {"arm": "2", "units": 5, "mean": 0.6}],
                "comparisons": [{"arm": "2", "difference": 0.1, "low": -0.1, "high": 0.3, "verdict": "not_decided", "words": HOSTILE}]}]})
        }
        "/api/v1/models/iris/drift" => {
            json!({"summary": HOSTILE, "troubles": [{"words": HOSTILE}], "versions": [{"version": "1", "reference": HOSTILE, "arms": [{"arm": HOSTILE, "rows": 5,
            "columns": [{"column": HOSTILE, "alarm": true, "since": "2026-11-28T10:00:00Z", "floor": 0.05, "words": HOSTILE, "windows": [{"distance": 0.2}],
                "bins": {"window": HOSTILE, "ordered": 0, "bins": [{"name": HOSTILE, "reference": 0.25, "live": 0.5}, {"name": "missing", "reference": 0.75, "live": 0.5}]}}]}]}]})
        }
        "/api/v1/audit" => json!({"events": [event]}),
        "/api/v1/alerts" => {
            json!({"alerts": [{"state": "firing", "severity": "critical", "rule": HOSTILE, "summary": HOSTILE, "since": "2026-11-28T10:00:00Z", "model": "iris", "what_to_do": HOSTILE}]})
        }
        "/api/v1/models/iris/requests" => {
            assert_eq!(parts.headers["accept"], "application/x-ndjson");
            let request = json!({"request": {"request_id": HOSTILE, "ts": "2026-11-28T10:00:00Z", "version": "1", "arm": HOSTILE, "role": HOSTILE, "status": HOSTILE,
            "latency_us": 1500, "rows": 2, "difference": HOSTILE}});
            let end = json!({"end": {"next": "1.2.3", "ended": "time", "not_read": {"files": 1, "named": [{"file": HOSTILE, "why": HOSTILE}]}}});
            return format!("{{\"begin\":{{}}}}\n{request}\n{end}\n").into_response();
        }
        "/api/v1/models/iris/requests/r%201" => logged(),
        "/api/v1/alerts/silences" => {
            json!({"silences": [{"id": "1", "matcher": {"rule": "drift", "model": HOSTILE, "version": null}, "until": "2026-11-28T10:00:00Z", "created_by": HOSTILE, "created_at": "2026-11-28T09:00:00Z", "reason": HOSTILE}]})
        }
        "/api/v1/models/iris/figures" => {
            json!({"to": "2026-11-28T10:00:00Z", "series": [{"version": HOSTILE, "arm": HOSTILE, "latency": {"requests": 1, "percentiles": [{"share": 0.5, "us": 5}, {"share": 1.0, "us": 5}]}, "points": []}]})
        }
        "/api/v1/models/iris/execution" => {
            json!({"versions": [{"version": HOSTILE, "batching": {"enabled": true, "max_rows": 4, "why": HOSTILE}, "runs": {"alone": 1, "together": []}}]})
        }
        "/readyz" => json!({"ready": true, "memory": {"requests": {"held": 1, "limit": 2}}}),
        "/api/v1/fleet" => {
            json!({"name": HOSTILE, "node": HOSTILE, "nodes": [
                {"name": HOSTILE, "state": HOSTILE, "program": HOSTILE, "since": HOSTILE, "behind": 1, "lag_ms": 12,
                    "models": {HOSTILE: {"revision": 7, "serving": ["1"], "ready": ["1"], "failed": {HOSTILE: HOSTILE}, "waits": HOSTILE}}},
                {"name": "b", "state": "ready", "program": "0.1.0", "since": "", "behind": 0, "lag_ms": null, "models": {}}]})
        }
        _ => return problem(404, HOSTILE),
    };
    Json(value).into_response()
}

/// A request with a wide input, many small ones and hostile texts.
fn logged() -> Value {
    let tensor = |name: &str, elements: usize, data: Vec<Value>| json!({"name": name, "datatype": "FP32", "shape": [2, elements / 2], "recorded": "as_is", "elements": elements, "data": data, "cut_texts": 0});
    let wide = tensor("wide", 20_000, (0..400).map(|i| json!(f64::from(i) / 7.0)).collect());
    let mut inputs: Vec<Value> =
        (0..500).map(|i| tensor(&format!("x{i}"), 2, vec![json!(HOSTILE.repeat(10)), json!(i)])).collect();
    inputs.push(wide.clone());
    inputs.rotate_right(1);
    let prediction = json!({"request_id": "r 1", "ts": "2026-11-28T10:00:00Z", "version": "1", "sha256": HOSTILE, "arm": HOSTILE, "role": "shadow", "route_key": HOSTILE,
        "status": HOSTILE, "latency_us": 1500, "infer_us": 900, "rows": 2, "batch_rows": 8, "traceparent": HOSTILE, "truncated": true, "inputs": inputs,
        "outputs": [wide, tensor(HOSTILE, 2, vec![json!(HOSTILE), json!("NaN")])], "compared": {"agrees": false, "words": HOSTILE},
        "lineage": {"state": HOSTILE, "same_file": false, "training": {"data": {"digest": HOSTILE}, "code": {"commit": HOSTILE}}}});
    let feedback: Vec<Value> =
        (0..1000).map(|row| json!({"row": row, "label": HOSTILE, "values": {HOSTILE: 1.5}, "ts": HOSTILE})).collect();
    json!({"model": "iris", "request_id": "r 1", "predictions": vec![prediction; 20], "more": true, "feedback": feedback,
        "commands": {"reproduce": HOSTILE, "explain": HOSTILE}})
}

fn console(made: &Arc<Made>) -> Router {
    pages(Router::new().fallback(answer).with_state(Arc::clone(made)), true, true).unwrap()
}

struct Got {
    status: u16,
    headers: HeaderMap,
    text: String,
}

fn ask(router: &Router, request: axum::http::request::Builder, body: &str) -> Got {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let response = router.clone().oneshot(request.body(Body::from(body.to_owned())).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = axum::body::to_bytes(body, 10 << 20).await.unwrap();
        Got { status: parts.status.as_u16(), headers: parts.headers, text: String::from_utf8(bytes.to_vec()).unwrap() }
    })
}

fn get(router: &Router, path: &str) -> Got {
    ask(router, Request::builder().uri(path), "")
}

fn post(router: &Router, path: &str, cookie: Option<&str>, fields: &[(&str, &str)]) -> Got {
    let body: Vec<String> = fields.iter().map(|(name, value)| format!("{name}={}", show::escaped(value))).collect();
    let mut request =
        Request::builder().method(Method::POST).uri(path).header("content-type", "application/x-www-form-urlencoded");
    if let Some(cookie) = cookie {
        request = request.header(COOKIE, cookie);
    }
    ask(router, request, &body.join("&"))
}

fn csrf(page: &str) -> String {
    page.split("name=\"csrf\" value=\"").nth(1).and_then(|rest| rest.split('"').next()).expect("a form").to_owned()
}

#[test]
fn no_text_of_others_becomes_markup_on_any_page() {
    let router = console(&Arc::default());
    let paths = [
        "/",
        "/?filter=%3Cscript%3E",
        "/models/iris",
        "/models/iris?done=%3Cscript%3E",
        "/models/iris/versions/1",
        "/models/iris/promote?version=3",
        "/models/iris/rollback?to_revision=6",
        "/models/iris/split",
        "/models/iris/shadow",
        "/models/iris/rule",
        "/models/iris/document",
        "/models/iris/rollout",
        "/models/iris/abort",
        "/models/iris/retire",
        "/models/iris/load?version=%3Cscript%3E",
        "/models/%3Cscript%3E",
        "/audit?model=%3Cscript%3E",
        "/requests?model=iris&route_key=%3Cscript%3E",
        "/requests?request_id=%3Cscript%3E",
        "/requests/iris/r%201",
        "/requests/iris/%3Cscript%3E",
        "/alerts",
        "/alerts/silence?rule=%3Cscript%3E&model=iris&for=%3Cscript%3E",
        "/alerts/silences/1/end",
        "/gateway",
        "/fleet",
        "/sign-in?back=%3Cscript%3E",
    ];
    for path in paths {
        let got = get(&router, path);
        assert!(got.text.starts_with("<!DOCTYPE html>"), "{path}: {}", got.text);
        let scripts = got.text.matches("<script").count();
        assert_eq!(scripts, 1, "{path}: only our own script: {}", got.text);
        for hidden in ['\u{202e}', '\u{7}', '\u{1b}', '\u{feff}'] {
            assert!(!got.text.contains(hidden), "{path}: {hidden:?} is shown as its code");
        }
        assert!(!got.text.contains("style=") && !got.text.contains("onclick"), "{path}");
        assert_eq!(got.headers["content-security-policy"], POLICY, "{path}");
        assert_eq!(got.headers["referrer-policy"], "same-origin", "{path}: else forms have the origin null");
        assert!(got.text.len() < 100_000, "{path}: {} bytes", got.text.len());
    }
    let model = get(&router, "/models/iris").text;
    assert!(model.contains("&lt;script&gt;"), "it is shown as text");
    assert!(
        model.contains("0.1 (-0.1 to 0.3)") && model.contains("0.1 (-0.2 to 0.4)") && model.contains("0.2 of 0.05"),
        "{model}"
    );
    assert_eq!(get(&router, "/models/none").status, 404);
    assert_eq!(get(&router, "/models/iris/dance").status, 404);
    assert!(get(&router, "/nothing").text.starts_with('{'), "other paths are the API's");
}

/// What a page got, until it has these words.
async fn read_until(body: &mut axum::body::BodyDataStream, text: &mut String, words: &str) {
    use futures_util::StreamExt as _;
    while !text.contains(words) {
        let piece = body.next().await.unwrap_or_else(|| panic!("{words} does not come: {text}")).unwrap();
        text.push_str(std::str::from_utf8(&piece).unwrap());
    }
}

#[test]
fn requests_are_shown_while_they_are_found_and_a_closed_page_ends_the_search() {
    let (lines, sent) = tokio::sync::mpsc::channel::<String>(1);
    let sent = Arc::new(tokio::sync::Mutex::new(Some(sent)));
    let api = Router::new().fallback(move |request: Request| {
        let sent = Arc::clone(&sent);
        async move {
            match request.uri().path() {
                "/api/v1/whoami" => Json(json!({"actor": "local", "actions": ["view"]})).into_response(),
                "/api/v1/overview" => Json(json!({"models": 1, "rows": [{"name": "iris"}]})).into_response(),
                _ => {
                    let sent = sent.lock().await.take().expect("one search");
                    let next = |mut sent: tokio::sync::mpsc::Receiver<String>| async move {
                        Some((Ok::<_, std::convert::Infallible>(sent.recv().await?), sent))
                    };
                    Body::from_stream(futures_util::stream::unfold(sent, next)).into_response()
                }
            }
        }
    });
    let router = pages(api, false, false).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let request = Request::builder().uri("/requests?model=iris").body(Body::empty()).unwrap();
        let mut body = router.oneshot(request).await.unwrap().into_body().into_data_stream();
        let mut text = String::new();
        read_until(&mut body, &mut text, "Searching, the newest requests first").await;
        assert!(text.contains("Route key") && !text.contains("<table"), "the form is there at once: {text}");
        let line = |id: &str| format!("{}\n", json!({"request": {"request_id": id, "status": "ok"}}));
        let (first, second) = (line("r2"), line("r1"));
        // A line may come in two parts.
        lines.send(format!("{{\"begin\":{{}}}}\n{first}{}", &second[..9])).await.unwrap();
        read_until(&mut body, &mut text, "/requests/iris/r2").await;
        assert!(!text.contains("r1\"") && !text.contains("</table>"), "{text}");
        lines.send(second[9..].to_owned()).await.unwrap();
        read_until(&mut body, &mut text, "/requests/iris/r1").await;
        assert_eq!(text.matches("<table").count(), 1, "{text}");
        drop(body);
        lines.closed().await;
    });
}

#[test]
fn a_search_that_breaks_off_says_so_below_what_it_found() {
    for (rest, words) in [
        ("", "the search did not say how it ended"),
        ("{\"request\"", "the answer is cut"),
        ("no json\n", "the answer cannot be read"),
        ("{\"end\":{\"next\":null}}\n", "There are no older ones"),
    ] {
        let api = Router::new().fallback(move |request: Request| async move {
            match request.uri().path() {
                "/api/v1/whoami" => Json(json!({"actor": "local", "actions": ["view"]})).into_response(),
                "/api/v1/overview" => Json(json!({"models": 1, "rows": [{"name": "iris"}]})).into_response(),
                _ => format!("{}\n{rest}", json!({"request": {"request_id": "r2"}})).into_response(),
            }
        });
        let page = get(&pages(api, false, false).unwrap(), "/requests").text;
        assert!(
            page.contains("/requests/iris/r2") && page.contains(words) && page.ends_with("</html>"),
            "{words}: {page}"
        );
        assert_eq!((page.matches("<table").count(), page.matches("</table>").count()), (1, 1), "{page}");
        assert!(page.find("</table>") < page.find(words), "{words} stands below the table: {page}");
    }
}

#[test]
fn a_request_is_run_again_with_the_credentials_and_the_token_of_the_form() {
    let made: Arc<Made> = Arc::default();
    let router = console(&made);
    let page = get(&router, "/requests/iris/r%201");
    assert!(page.text.contains("12 of 10000 columns"), "{}", page.text);
    assert!(page.text.contains("60 of 501 inputs") && page.text.contains("20 of 1000 rows"), "{}", page.text);
    let csrf = csrf(&page.text);
    made.answers.lock().unwrap().push((
        200,
        json!({"predictions": [{"version": "1", "role": "primary", "outcome": "apart", "words": HOSTILE}]}),
    ));
    let done = post(&router, "/requests/iris/r%201/reproduce", None, &[("csrf", &csrf)]);
    assert!(done.status == 200 && done.text.contains("mismatch"), "{}", done.text);
    made.answers.lock().unwrap().push((409, json!({"error": HOSTILE, "code": "CONFLICT"})));
    let refused =
        post(&router, "/requests/iris/r%201/explain", None, &[("csrf", &csrf), ("row", "x"), ("output", "y")]);
    assert_eq!(refused.status, 409);
    assert_eq!(post(&router, "/requests/iris/r%201/explain", None, &[("row", "0")]).status, 403);
    for got in [&done, &refused] {
        assert_eq!(got.text.matches("<script").count(), 1, "{}", got.text);
    }
    let changes = std::mem::take(&mut *made.changes.lock().unwrap());
    let sent = |verb: &str, body: Value| (format!("POST /api/v1/models/iris/requests:{verb}"), body, String::new());
    assert_eq!(
        changes,
        [
            sent("reproduce", json!({"request_id": "r 1"})),
            sent("explain", json!({"request_id": "r 1", "row": "x", "output": "y"})),
        ]
    );
}

#[test]
fn a_change_is_shown_first_and_sent_with_the_revision_that_was_looked_at() {
    let made: Arc<Made> = Arc::default();
    let router = console(&made);
    let page = get(&router, "/models/iris/promote?version=3");
    assert_eq!(page.status, 200);
    assert!(
        page.text.contains("Version 3 answers 100 %") && page.text.contains("sluicegate promote iris 3"),
        "{}",
        page.text
    );
    assert!(made.changes.lock().unwrap().is_empty(), "a look changes nothing");
    let csrf = csrf(&page.text);
    let fields = [("csrf", &*csrf), ("revision", "7"), ("version", "3"), ("reason", "better & faster")];
    let done = post(&router, "/models/iris/promote", None, &fields);
    assert_eq!(
        (done.status, done.headers["location"].to_str().unwrap()),
        (303, "/models/iris?done=promote"),
        "{}",
        done.text
    );
    let body = json!({"version": "3", "break_glass": false, "reason": "better & faster"});
    let changes = std::mem::take(&mut *made.changes.lock().unwrap());
    assert_eq!(changes, [("POST /api/v1/models/iris:promote".to_owned(), body, "\"7\"".to_owned())]);

    made.answers.lock().unwrap().push((412, json!({"error": "revision 7 now", "code": "PRECONDITION_FAILED"})));
    let stale = [("csrf", &*csrf), ("revision", "6"), ("version", "3"), ("reason", "x")];
    let refused = post(&router, "/models/iris/promote", None, &stale);
    assert_eq!(refused.status, 412);
    assert!(
        refused.text.contains("changed since you looked at it") && refused.text.contains("split[0].weight"),
        "{}",
        refused.text
    );
    assert!(refused.text.contains("name=\"revision\" value=\"7\""), "the next try is of the traffic that is shown now");

    let forged = post(&router, "/models/iris/promote", None, &[("revision", "7"), ("version", "3"), ("reason", "x")]);
    assert_eq!(forged.status, 403, "without the token of our forms nothing is sent");
    assert_eq!(made.changes.lock().unwrap().len(), 1, "only the stale one was sent");
}

#[test]
fn each_change_is_drawn_before_it_is_made_and_asks_for_a_reason() {
    let made: Arc<Made> = Arc::default();
    let router = console(&made);
    let pages = [
        ("promote?version=3", "Version 3 answers 100 %", "sluicegate promote iris 3 --reason"),
        ("rollback?to_revision=6", "Version 3 answers 100 %", "sluicegate rollback iris --to-revision 6 --reason"),
        (
            "rollout?version=3&steps=10,100&hold=1m",
            "Then, at the first step",
            "sluicegate rollout iris --to 3 --steps 10,100",
        ),
        ("pause", "The traffic stays as it is", "sluicegate rollout iris --pause --reason"),
        ("resume", "The traffic stays as it is", "sluicegate rollout iris --resume --reason"),
        ("abort", "Version 2 answers 100 %", "sluicegate rollout iris --abort --reason"),
        ("retire", "No version answers", "sluicegate retire iris --reason"),
        ("load?version=4", "The traffic stays as it is", "sluicegate load iris 4 --reason"),
        ("unload?version=3", "The traffic stays as it is", "sluicegate unload iris 3 --reason"),
        ("approve?version=3", "The traffic stays as it is", "sluicegate approve iris 3 --reason"),
        ("reject?version=3", "The traffic stays as it is", "sluicegate reject iris 3 --reason"),
    ];
    for (path, words, command) in pages {
        let page = get(&router, &format!("/models/iris/{path}")).text;
        assert!(page.contains(words) && page.contains(command), "{path}: {page}");
        assert!(page.contains("class=\"flow\"") && page.contains("name=\"reason\" required"), "{path}: {page}");
    }
    assert!(made.changes.lock().unwrap().is_empty(), "a look changes nothing");
    let csrf = csrf(&get(&router, "/models/iris/unload?version=3").text);
    let done = post(&router, "/models/iris/unload", None, &[("csrf", &csrf), ("version", "3"), ("reason", "memory")]);
    assert_eq!(done.status, 303, "{}", done.text);
    let (path, body, _) = made.changes.lock().unwrap().remove(0);
    assert_eq!(
        (path.as_str(), body),
        ("POST /api/v1/models/iris/versions/3:unload?wait=false", json!({"reason": "memory"}))
    );
}

#[test]
fn shadows_and_rules_are_chosen_in_forms_and_the_rest_of_the_document_stays() {
    let made: Arc<Made> = Arc::default();
    let router = console(&made);
    let page = get(&router, "/models/iris/shadow").text;
    assert!(page.contains("Copies of so many percent") && page.contains("<option value=\"3\">"), "{page}");
    let csrf = csrf(&page);
    let send = |slug: &str, fields: &[(&str, &str)], last: (&str, &str)| {
        let mut all = vec![("csrf", csrf.as_str()), ("revision", "7")];
        all.extend(fields);
        all.push(last);
        post(&router, &format!("/models/iris/{slug}"), None, &all)
    };
    let (preview, reason) = (("step", "preview"), ("reason", "look"));
    let copies = [("version", "3"), ("sample", "25")];
    let look = send("shadow", &copies, preview).text;
    assert!(look.contains("version 3 gets copies of 25 %") && made.changes.lock().unwrap().is_empty(), "{look}");
    assert_eq!(send("shadow", &copies, reason).status, 303);
    let (path, body, if_match) = made.changes.lock().unwrap().remove(0);
    assert_eq!((path.as_str(), if_match.as_str()), ("PUT /api/v1/models/iris/traffic", "\"7\""));
    assert_eq!(body["shadows"], json!([{"version": "3", "sample": 0.25}]));
    assert_eq!((&body["split"], &body["reason"]), (&model()["document"]["split"], &json!("look")));

    assert!(get(&router, "/models/iris/rule").text.contains("The first rule that matches counts"));
    let cohort = [("key", "header:x-cohort"), ("equals", "beta"), ("version", "2"), ("remove", "")];
    let look = send("rule", &cohort, preview).text;
    assert!(look.contains("x-cohort = beta") && look.contains("1 rule comes first"), "{look}");
    assert_eq!(send("rule", &cohort, reason).status, 303);
    let (_, body, _) = made.changes.lock().unwrap().remove(0);
    assert_eq!(body["rules"], json!([{"header": "x-cohort", "equals": "beta", "version": "2"}]));
    for (slug, wrong, words) in [
        ("shadow", [("version", "3"), ("sample", "all")], "expected a number"),
        ("rule", [("key", "x-cohort"), ("version", "2")], "expected header:NAME"),
        ("rule", [("remove", "5"), ("version", "2")], "there is no rule"),
    ] {
        let refused = send(slug, &wrong, reason);
        assert!(refused.status == 400 && refused.text.contains(words), "{slug}: {}", refused.text);
    }
    assert!(made.changes.lock().unwrap().is_empty());
}

#[test]
fn models_are_sorted_by_what_is_asked_for() {
    let api = Router::new().fallback(|request: Request| async move {
        // The name of the only model says what was asked for.
        let asked = request.uri().query().unwrap_or_default().to_owned();
        match request.uri().path() {
            "/api/v1/whoami" => Json(json!({"actor": "local", "actions": ["view"]})),
            "/api/v1/overview" => {
                Json(json!({"models": 900, "found": 900, "wrong": 0, "rows": [{"name": asked, "ready": true}]}))
            }
            _ => Json(json!({})),
        }
    });
    let router = pages(api, false, false).unwrap();
    let long = "ü".repeat(100);
    for (query, expected) in [
        ("", "sort=attention&amp;filter=&amp;offset=0&amp;limit=80"),
        ("?sort=unknown", "sort=attention&amp;filter=&amp;offset=0&amp;limit=80"),
        ("?sort=name&filter=%20A%26b", "sort=name&amp;filter=A%26b&amp;offset=0&amp;limit=80"),
        ("?sort=requests&page=2", "sort=requests&amp;filter=&amp;offset=160&amp;limit=80"),
        ("?sort=p99&page=99999999", "sort=p99&amp;filter=&amp;offset=880&amp;limit=80"),
        (
            &format!("?filter={}", show::escaped(&long)),
            &format!("filter={}&amp;offset", show::escaped(&long[..128]))[..50],
        ),
    ] {
        let page = get(&router, &format!("/{query}")).text;
        assert!(page.contains(expected), "{query}: {expected} {page}");
    }
    let page = get(&router, "/?sort=p99&filter=s").text;
    assert!(page.contains("aria-sort=\"descending\"") && page.contains("name=\"sort\" value=\"p99\""), "{page}");
    assert!(page.contains("/?sort=requests&amp;filter=s"), "the filter stays: {page}");
}

#[test]
fn sentences_are_right_for_none_one_and_several() {
    let of = |count: usize, wrong: usize, query: &str| {
        let api = Router::new().fallback(move |request: Request| async move {
            let filter = request.uri().query().and_then(|query| query.split("filter=").nth(1)?.split('&').next());
            let found = match filter {
                Some("x") => 0,
                Some("m1") => 1,
                _ => count,
            };
            match request.uri().path() {
                "/api/v1/whoami" => Json(json!({"actor": "local", "actions": ["view"]})),
                "/api/v1/overview" => Json(json!({"models": count, "found": found, "wrong": wrong, "rows": []})),
                _ => Json(json!({})),
            }
        });
        get(&pages(api, false, false).unwrap(), &format!("/{query}")).text
    };
    for (count, wrong, query, words) in [
        (0, 0, "", "There are no models yet"),
        (1, 0, "", "1 model: nothing is wrong with it<"),
        (1, 1, "", "1 model: it needs attention<"),
        (2, 0, "", "2 models: nothing is wrong with any of them<"),
        (2, 1, "", "2 models, 1 needs attention: it comes first<"),
        (3, 2, "", "3 models, 2 need attention: they come first<"),
        (3, 0, "?filter=x", "0 of 3 models: no name contains this<"),
        (3, 0, "?filter=m1", "1 of 3 models: nothing is wrong with it<"),
    ] {
        let page = of(count, wrong, query);
        assert!(page.contains(words), "{count} models, {wrong} wrong, {query}: {page}");
    }
}

#[test]
fn alerts_are_silenced_for_a_time_with_a_reason_and_a_silence_is_ended() {
    let made: Arc<Made> = Arc::default();
    let router = console(&made);
    let page = get(&router, "/alerts/silence?model=ir*&for=12h").text;
    assert!(
        page.contains("sluicegate silence --model &#39;ir*&#39; --for 12h") || page.contains("--model 'ir*' --for 12h"),
        "{page}"
    );
    assert!(page.contains("value=\"12h\" selected"), "{page}");
    assert!(page.contains("class=\"alerts\""), "the alert about iris fits: {page}");
    assert!(get(&router, "/alerts/silence?model=other").text.contains("None that fires now"));
    assert!(get(&router, "/alerts/silence").text.contains("Name a rule, a model or a version"));
    let csrf = csrf(&page);
    let fields =
        [("csrf", &*csrf), ("rule", ""), ("model", "ir*"), ("version", ""), ("for", "4h"), ("reason", "known")];
    let before = jiff::Timestamp::now();
    let done = post(&router, "/alerts/silence", None, &fields);
    assert_eq!(
        (done.status, done.headers["location"].to_str().unwrap()),
        (303, "/alerts?done=silence"),
        "{}",
        done.text
    );
    let (path, body, _) = made.changes.lock().unwrap().remove(0);
    assert_eq!(path, "POST /api/v1/alerts/silences");
    assert_eq!((&body["matcher"], &body["reason"]), (&json!({"model": "ir*"}), &json!("known")));
    let until: jiff::Timestamp = body["until"].as_str().unwrap().parse().unwrap();
    let hours = (until.as_second() - before.as_second()) / 3600;
    assert!((3..=4).contains(&hours), "{until}");
    for (name, value) in [("csrf", "forged"), ("for", "100y")] {
        let mut wrong = fields.to_vec();
        wrong.retain(|(known, _)| *known != name);
        wrong.push((name, value));
        assert!(matches!(post(&router, "/alerts/silence", None, &wrong).status, 400 | 403), "{name}");
    }
    let mut look = fields.to_vec();
    look.push(("step", "preview"));
    assert_eq!(post(&router, "/alerts/silence", None, &look).status, 200);
    assert!(made.changes.lock().unwrap().is_empty(), "nothing of that was sent");
    made.answers.lock().unwrap().push((409, json!({"error": "there are too many silences", "code": "CONFLICT"})));
    let refused = post(&router, "/alerts/silence", None, &fields);
    assert!(
        refused.status == 409 && refused.text.contains("too many silences") && refused.text.contains("value=\"known\"")
    );
    made.changes.lock().unwrap().clear();

    assert!(get(&router, "/alerts").text.contains("/alerts/silences/1/end"));
    assert!(get(&router, "/alerts/silences/1/end").text.contains("sluicegate silence --end 1"));
    assert_eq!(get(&router, "/alerts/silences/2/end").status, 404);
    assert_eq!(post(&router, "/alerts/silences/1/end", None, &[("csrf", "forged")]).status, 403);
    assert_eq!(post(&router, "/alerts/silences/1/end", None, &[("csrf", &csrf)]).status, 303);
    let changes: Vec<String> = made.changes.lock().unwrap().iter().map(|(path, ..)| path.clone()).collect();
    assert_eq!(changes, ["DELETE /api/v1/alerts/silences/1"]);
}

#[test]
fn a_rollout_begins_only_from_the_traffic_that_was_looked_at() {
    let made: Arc<Made> = Arc::default();
    let router = console(&made);
    let csrf = csrf(&get(&router, "/models/iris/rollout?version=3").text);
    let fields = |revision: &'static str| {
        vec![
            ("csrf", csrf.clone()),
            ("revision", revision.to_owned()),
            ("version", "3".to_owned()),
            ("steps", "10, 100".to_owned()),
            ("hold", "1m".to_owned()),
            ("reason", "x".to_owned()),
        ]
    };
    let send = |revision: &'static str| {
        let fields = fields(revision);
        let fields: Vec<(&str, &str)> = fields.iter().map(|(name, value)| (*name, value.as_str())).collect();
        post(&router, "/models/iris/rollout", None, &fields)
    };
    let refused = send("6");
    assert!(refused.status == 412 && refused.text.contains("changed since you looked at it"), "{}", refused.text);
    assert!(made.changes.lock().unwrap().is_empty());
    assert_eq!(send("7").status, 303);
}

#[test]
fn a_split_keeps_the_rest_of_the_document() {
    let made: Arc<Made> = Arc::default();
    let router = console(&made);
    let csrf = csrf(&get(&router, "/models/iris/split").text);
    let choice = [
        ("csrf", &*csrf),
        ("revision", "7"),
        ("weight-1", "50"),
        ("weight-2", "0"),
        ("weight-3", "50"),
        ("sticky_by", "parameter:user"),
    ];
    let mut first = choice.to_vec();
    first.push(("step", "preview"));
    let page = post(&router, "/models/iris/split", None, &first);
    assert!(page.text.contains("version 3 answers 50 %") && page.text.contains("--split 1=50,3=50"), "{}", page.text);
    assert!(made.changes.lock().unwrap().is_empty());
    let mut second = choice.to_vec();
    second.push(("reason", "try 3"));
    assert_eq!(post(&router, "/models/iris/split", None, &second).status, 303);
    let (path, body, if_match) = made.changes.lock().unwrap().remove(0);
    assert_eq!((path.as_str(), if_match.as_str()), ("PUT /api/v1/models/iris/traffic", "\"7\""));
    assert_eq!(body["sticky_by"], json!({"parameter": "user"}));
    assert_eq!(
        body["split"][0],
        json!({"version": "1", "weight": 50.0, "arm": HOSTILE}),
        "an arm keeps its name, and so its users"
    );
    assert_eq!(body["reason"], "try 3");
    for (name, value, words) in
        [("weight-1", "many", "expected a number"), ("sticky_by", "user", "expected header:NAME")]
    {
        let mut wrong = choice.to_vec();
        wrong.retain(|(known, _)| *known != name);
        wrong.extend([(name, value), ("reason", "x")]);
        let got = post(&router, "/models/iris/split", None, &wrong);
        assert!(got.status == 400 && got.text.contains(words), "{}: {}", got.status, got.text);
    }
}

#[test]
fn a_session_stands_for_its_token_and_ends_with_it() {
    let made = Arc::new(Made { closed: true, ..Made::default() });
    let router = console(&made);
    let away = get(&router, "/models/iris");
    assert_eq!((away.status, away.headers["location"].to_str().unwrap()), (303, "/sign-in?back=%2Fmodels%2Firis"));
    let csrf_of_page = csrf(&get(&router, "/sign-in?back=%2Fmodels%2Firis").text);
    let wrong = post(&router, "/sign-in", None, &[("csrf", &csrf_of_page), ("token", "bad")]);
    assert!(wrong.status == 401 && wrong.text.contains("the token is unknown"), "{}", wrong.text);
    let fields = [("csrf", &*csrf_of_page), ("token", " good "), ("back", "/models/iris")];
    let signed_in = post(&router, "/sign-in", None, &fields);
    assert_eq!((signed_in.status, signed_in.headers["location"].to_str().unwrap()), (303, "/models/iris"));
    let cookie = signed_in.headers[SET_COOKIE].to_str().unwrap();
    for part in ["HttpOnly", "SameSite=Strict", "Secure", "Path=/"] {
        assert!(cookie.contains(part), "{cookie}");
    }
    let cookie = cookie.split(';').next().unwrap().to_owned();
    assert!(!cookie.contains("good"), "the cookie does not hold the token");
    let page = ask(&router, Request::builder().uri("/models/iris").header(COOKIE, &cookie), "");
    assert_eq!(page.status, 200);
    let own = csrf(&page.text);
    assert_ne!(own, csrf_of_page, "a form is one person's");
    let foreign = post(&router, "/models/iris/retire", Some(&cookie), &[("csrf", &csrf_of_page), ("reason", "x")]);
    assert_eq!(foreign.status, 403);
    assert_eq!(post(&router, "/sign-out", Some(&cookie), &[("csrf", &own)]).status, 303);
    assert_eq!(
        ask(&router, Request::builder().uri("/").header(COOKIE, &cookie), "").status,
        303,
        "the session is over"
    );
}

#[test]
fn one_never_comes_back_to_another_site() {
    let router = console(&Arc::default());
    let csrf = csrf(&get(&router, "/sign-in").text);
    for back in ["//evil.example/", "https://evil.example", "/\\evil.example", "javascript:alert(1)", "", "/a\nb"] {
        let got = post(&router, "/sign-in", None, &[("csrf", &csrf), ("token", "good"), ("back", back)]);
        assert_eq!(got.headers["location"], "/", "{back:?}");
    }
}

#[test]
fn sessions_are_bounded_and_end_by_time() {
    use std::time::{Duration, Instant};
    let sessions = Sessions::new().unwrap();
    let now = Instant::now();
    let of = |token: &str| Credentials::of_token(token).unwrap();
    let first = sessions.begin(of("a"), now).unwrap();
    assert!(sessions.credentials_at(&first, now + Duration::from_mins(59)).is_some());
    assert!(sessions.credentials_at(&first, now + Duration::from_mins(110)).is_some(), "each use begins a new hour");
    assert!(sessions.credentials_at(&first, now + Duration::from_mins(171)).is_none(), "an hour without use");
    let mut at = now;
    let long = sessions.begin(of("b"), now).unwrap();
    while at < now + Duration::from_hours(12) {
        assert!(sessions.credentials_at(&long, at).is_some());
        at += Duration::from_mins(30);
    }
    assert!(sessions.credentials_at(&long, at).is_none(), "twelve hours");
    assert!(sessions.credentials("guess").is_none());
    let oldest = sessions.begin(of("c"), at).unwrap();
    for n in 0..10_000 {
        sessions.begin(of(&format!("d{n}")), at + Duration::from_millis(n + 1)).unwrap();
    }
    assert!(sessions.credentials_at(&oldest, at + Duration::from_secs(11)).is_none(), "the oldest one made room");
}

#[test]
fn who_signs_in_again_and_again_ends_their_own_sessions_alone() {
    use std::time::{Duration, Instant};
    let sessions = Sessions::new().unwrap();
    let now = Instant::now();
    let of = |token: &str| Credentials::of_token(token).unwrap();
    let others = sessions.begin(of("a"), now).unwrap();
    let all: Vec<String> =
        (0..50).map(|n| sessions.begin(of("b"), now + Duration::from_millis(n + 1)).unwrap()).collect();
    let later = now + Duration::from_secs(1);
    assert!(sessions.credentials_at(&others, later).is_some());
    let left = all.iter().filter(|session| sessions.credentials_at(session, later).is_some()).count();
    assert_eq!(left, 20, "the newest ones");
    assert!(sessions.credentials_at(&all[49], later).is_some() && sessions.credentials_at(&all[29], later).is_none());
}

#[test]
fn numbers_that_are_none_and_a_change_of_no_revision_are_refused() {
    let made: Arc<Made> = Arc::default();
    let router = console(&made);
    let csrf = csrf(&get(&router, "/models/iris/split").text);
    assert_eq!(super::proposals::MOST_STEPS, crate::rollout::MOST_STEPS, "a form takes what the API takes");
    let many = vec!["1"; 100_000].join(",");
    for (slug, fields, words) in [
        ("shadow", vec![("version", "3"), ("sample", "NaN")], "the percentage: expected a number, got &quot;NaN&quot;"),
        ("split", vec![("weight-1", "inf"), ("weight-2", "1")], "the weight of version 1: expected a number"),
        ("rollout", vec![("version", "3"), ("steps", "1, -inf"), ("hold", "1m")], "steps: expected numbers"),
        (
            "rollout",
            vec![("version", "3"), ("steps", &many), ("hold", "1m")],
            "steps: expected at most 100 percentages, got 100000",
        ),
    ] {
        for step in ["preview", ""] {
            let mut all = vec![("csrf", csrf.as_str()), ("revision", "7"), ("reason", "r"), ("step", step)];
            all.extend(fields.clone());
            let refused = post(&router, &format!("/models/iris/{slug}"), None, &all);
            assert!(
                refused.status == 400 && refused.text.contains(words),
                "{slug}: {} {}",
                refused.status,
                refused.text
            );
            assert!(refused.text.len() < 100_000, "{slug}: {} bytes", refused.text.len());
        }
    }
    for revision in ["abc", "", "-1"] {
        let fields = [("csrf", &*csrf), ("revision", revision), ("version", "3"), ("reason", "r")];
        let refused = post(&router, "/models/iris/promote", None, &fields);
        assert!(refused.status == 400 && refused.text.contains("revision: expected the number"), "{}", refused.text);
    }
    assert!(made.changes.lock().unwrap().is_empty(), "nothing was sent");
}

#[test]
fn a_form_that_is_too_long_or_does_not_arrive_is_refused() {
    let router = console(&Arc::default());
    let csrf = csrf(&get(&router, "/sign-in").text);
    let long = "x".repeat(100_000);
    assert_eq!(post(&router, "/sign-in", None, &[("csrf", &csrf), ("token", &long)]).status, 413);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let never = || {
            let body = futures_util::stream::pending::<Result<bytes::Bytes, std::convert::Infallible>>();
            let request = Request::builder().method(Method::POST).uri("/sign-in");
            let request = request.header("content-type", "application/x-www-form-urlencoded");
            request.body(Body::from_stream(body)).unwrap()
        };
        let late = form::read(never(), 100, std::time::Duration::from_millis(20)).await.unwrap_err();
        assert_eq!(
            (late.status, late.error.as_str()),
            (StatusCode::REQUEST_TIMEOUT, "the form did not arrive within 0 s")
        );
        let waiting: Vec<_> = (0..16).map(|_| tokio::spawn(router.clone().oneshot(never()))).collect();
        tokio::task::yield_now().await;
        assert_eq!(router.clone().oneshot(never()).await.unwrap().status(), 429, "strangers take no more places");
        waiting.iter().for_each(tokio::task::JoinHandle::abort);
    });
}

/// Answers of an API that has very much of everything, each text as long as the API allows.
async fn much(request: Request) -> Response {
    // About 5,000 characters.
    let long = "long words that say what is so & <why> ".repeat(130);
    let many = |count: usize, of: &dyn Fn(usize) -> Value| Value::Array((0..count).map(of).collect());
    let ts = "2026-11-28T10:00:00Z";
    let rates = vec![12.345; 60];
    let document = json!({"split": many(40, &|n| json!({"version": n.to_string(), "weight": 1.0, "arm": format!("arm-{n}")})),
        "rules": many(60, &|n| json!({"header": "x-cohort", "equals": format!("{n}-{long}"), "version": "1"})), "reason": long});
    let split = |n: usize| json!({"split": [{"version": n.to_string(), "weight": 1.0, "arm": long}], "reason": long});
    let series = |n: usize| {
        json!({"version": n.to_string(), "arm": long, "requests_per_s": 1.0, "p50_us": 10, "p99_us": 1234, "failed": 0.01, "last_hour": rates,
        "latency": {"requests": 1000, "percentiles": many(7, &|at| json!({"share": ([0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 1.0][at]), "us": 100 * at}))},
        "points": many(360, &|n| json!({"ts": format!("2026-11-28T10:{:02}:{:02}Z", n / 6 % 60, n % 6 * 10), "p99_us": 1000 + n}))})
    };
    let alert = |n: usize| {
        json!({"state": if n.is_multiple_of(2) { "firing" } else { "resolved" }, "severity": "critical", "rule": "drift", "summary": long, "how_sure": long, "what_to_do": long,
        "since": ts, "model": format!("model-{n}"), "version": "1", "change_before": {"action": "promote", "actor": long, "ts": ts, "reason": long}})
    };
    let path = request.uri().path().to_owned();
    let value = match path.as_str() {
        "/api/v1/whoami" => json!({"actor": long, "actions": ["view", "operate", "approve", "administer"]}),
        "/api/v1/overview" => {
            let figures = json!({"requests_per_s": 1234.5, "p99_us": 12_345, "failed": 0.001, "last_hour": (0..60).map(|n| f64::from(n) * 1.7).collect::<Vec<_>>()});
            json!({"models": 2000, "found": 2000, "wrong": 2000, "rows": many(80, &|n| json!({"name": format!("a-model-with-a-longer-name-{n:04}"), "ready": n % 2 == 0, "reason": long,
            "answers": [{"version": "1", "share": 0.7}, {"version": "2", "share": 0.3}], "versions": 2, "failed_versions": ["1", long], "alerts": ["drift", "decay", "slower", "unstable"], "figures": figures}))})
        }
        "/api/v1/models/m" => {
            json!({"name": "m", "ready": true, "revision": 999, "document": document, "notes": many(50, &|_| json!(long)),
            "versions": many(500, &|n| json!({"version": n.to_string(), "state": if n % 2 == 0 { "failed" } else { "ready" }, "stage": "load", "reason": long, "notes": [long, long, long]}))})
        }
        "/api/v1/models/m/history" => {
            json!({"history": many(500, &|n| json!({"revision": 999 - n, "ts": ts, "actor": long, "action": "promote", "reason": long, "document": split(n)}))})
        }
        "/api/v1/models/m/traffic" => {
            json!({"shares": many(40, &|n| json!({"arm": long, "version": n.to_string(), "configured": 0.1, "observed": 0.1, "requests": 5, "breaker": "closed"}))})
        }
        "/api/v1/models/m/figures" => json!({"to": "2026-11-28T10:59:59Z", "series": many(40, &series)}),
        "/api/v1/models/m/execution" => {
            json!({"versions": many(40, &|n| json!({"version": n.to_string(), "batching": {"enabled": true, "max_rows": 64, "why": long},
            "runs": {"alone": 5, "together": many(7, &|at| json!({"rows_up_to": 2 << at, "runs": 3}))}}))})
        }
        "/api/v1/models/m/drift" => {
            json!({"summary": long, "troubles": many(500, &|_| json!({"words": long})), "versions": many(3, &|n| json!({"version": n.to_string(), "reference": "profile", "arms": [{"arm": long, "rows": 5,
            "columns": many(500, &|column| json!({"column": format!("inputs.x[{column}]"), "alarm": column % 3 == 0, "since": ts, "floor": 0.05, "words": long, "windows": [{"distance": 0.001 * column as f64}],
                "bins": if column >= 496 { json!({"window": "four_weeks", "ordered": 20, "bins": many(200, &|n| json!({"name": format!("{n} {}", &long[..500]), "reference": 0.005, "live": 0.005}))}) } else { Value::Null }}))}]}))})
        }
        "/api/v1/models/m/experiment" => {
            json!({"summary": long, "arms": [{}, {}], "metrics": many(50, &|n| json!({"metric": format!("metric-{n}"),
            "arms": many(4, &|arm| json!({"arm": format!("arm-{arm}"), "units": 5, "mean": 0.5})), "comparisons": many(4, &|arm| json!({"arm": format!("arm-{arm}"), "difference": 0.1, "low": -0.1, "high": 0.3, "words": long}))}))})
        }
        "/api/v1/models/m/rollout" => {
            json!({"state": "running", "to": "3", "why": long, "steps": many(100, &|n| json!(n)), "moves": many(500, &|_| json!({"ts": ts, "percent": 1.0, "reason": long})), "reason": long,
            "guardrails": many(12, &|n| json!({"name": format!("guardrail-{n}"), "limit": 1.0, "interval": [0.2, null]}))})
        }
        "/api/v1/models/m/versions/1" => {
            json!({"state": "serving", "signature": {"inputs": many(1000, &|n| json!({"name": format!("{n}-{long}"), "datatype": "FP32", "shape": [-1, 4]}))},
            "metadata": (0..200).map(|n| (format!("key {n}"), json!([{"deep": long}]))).collect::<serde_json::Map<_, _>>(), "notes": [long]})
        }
        "/api/v1/models/m/versions/1/lineage" => {
            (0..200).map(|n| (format!("key {n}"), json!(long))).collect::<serde_json::Map<_, _>>().into()
        }
        "/api/v1/models/m:promote" | "/api/v1/models/m:rollback" => {
            json!({"would_be": split(1), "gates": many(6, &|_| json!({"gate": "golden", "found": long}))})
        }
        "/api/v1/audit" => {
            json!({"events": many(200, &|n| json!({"id": n, "ts": ts, "actor": long, "action": "put_traffic", "model": "m", "reason": long, "before": document, "after": split(n)}))})
        }
        "/api/v1/alerts" => json!({"alerts": many(100, &alert), "found": 2000}),
        "/api/v1/alerts/silences" => {
            json!({"silences": many(500, &|n| json!({"id": format!("{n:016}"), "matcher": {"rule": "drift", "model": "m-*"}, "until": ts, "created_by": long, "created_at": ts, "reason": long}))})
        }
        "/api/v1/callers" => {
            json!({"callers": many(500, &|n| json!({"caller": format!("{n}-{long}"), "in_flight": 1, "last_minute": 5, "refused_last_minute": 0, "priority": "normal"}))})
        }
        "/api/v1/tokens" => {
            json!({"tokens": many(1000, &|n| json!({"name": format!("{n}-{long}"), "role": "viewer", "models": ["a", "b"], "expires_at": ts, "last_used": ts}))})
        }
        "/readyz" => {
            json!({"ready": true, "memory": {}, "warnings": many(500, &|_| json!(long)), "unserved": many(500, &|n| json!({"model": n, "reason": long}))})
        }
        "/api/v1/fleet" => {
            // As long as a gateway reports a reason, and more than an answer of a thousand gateways may have is no test of a page.
            let long = &long[..200];
            let model =
                json!({"revision": 1, "serving": ["1"], "ready": ["1", "2"], "failed": {"3": long}, "waits": long});
            let models: serde_json::Map<_, _> = (0..4).map(|n| (format!("model-{n}"), model.clone())).collect();
            json!({"name": "shop", "node": "a-gateway-0007", "nodes": many(1000, &|n| json!({"name": format!("a-gateway-{n:04}"),
                "state": if n == 999 { "lost" } else { "ready" }, "program": "0.1.0", "since": ts, "behind": 1, "lag_ms": 12.5, "models": models}))})
        }
        _ => json!({}),
    };
    Json(value).into_response()
}

#[test]
fn every_page_is_under_100_kb_however_much_there_is() {
    let router = pages(Router::new().fallback(much), false, true).unwrap();
    let paths = [
        "/",
        "/?page=24",
        "/models/m",
        "/models/m/versions/1",
        "/models/m/promote?version=1",
        "/models/m/rollback",
        "/models/m/rollout?version=1",
        "/models/m/split",
        "/models/m/shadow",
        "/models/m/rule",
        "/models/m/unload?version=1",
        "/alerts",
        "/alerts/silence?rule=drift",
        "/alerts/silences/0000000000000000/end",
        "/audit",
        "/audit?skip=100",
        "/gateway",
        "/fleet",
        "/fleet?page=12",
    ];
    let sizes: Vec<(&str, usize)> = paths.into_iter().map(|path| (path, get(&router, path).text.len())).collect();
    println!("bytes of each page: {sizes:?}");
    let large: Vec<_> = sizes.iter().filter(|(_, size)| *size >= 100_000).collect();
    assert!(large.is_empty(), "{large:?} of {sizes:?}");
    assert!(get(&router, "/models/m").text.contains("left out"), "what is left out is said");
    let audit = get(&router, "/audit").text;
    assert!(
        audit.contains("Older events") && get(&router, "/audit?skip=9950").text.contains("There are no older events")
    );
}

#[test]
fn lists_that_are_cut_say_how_many_there_are() {
    let router = pages(Router::new().fallback(much), false, true).unwrap();
    let models = get(&router, "/").text;
    assert!(models.contains("2\u{202f}000 models, 2000 need attention") && models.contains("Page 1 of 25"), "{models}");
    assert!(models.contains("drift, decay, slower …"), "three rules of an alert are named");
    assert!(get(&router, "/?page=99999").text.contains("Page 25 of 25"));
    let alerts = get(&router, "/alerts").text;
    let more = alerts.split(" more. <a").next().and_then(|text| text.rsplit('>').next()?.parse::<usize>().ok());
    assert!(more.is_some_and(|more| (1900..2000).contains(&more)), "{more:?}");
}

#[test]
fn the_page_of_a_fleet_has_what_is_wrong_first_and_its_link_is_there_only_in_a_fleet() {
    let router = pages(Router::new().fallback(much), false, true).unwrap();
    let page = get(&router, "/fleet").text;
    let first = page.split("<th scope=\"row\">").nth(1).unwrap();
    assert!(first.starts_with("a-gateway-0999") && first.contains("lost"), "{first}");
    assert!(page.contains("1000 gateways, 1000 need attention") && page.contains("Page 1 of 13"));
    assert!(page.contains("sluicegate fleet --json"), "what is left out is said");
    let one = get(&router, "/fleet?filter=GATEWAY-0007").text;
    assert!(one.contains("1 of 1000 gateways, 1 needs attention") && one.contains("(this one)"), "{one}");
    assert!(one.contains("model model-3 waits: long words") && one.contains("version 3 of model-3 failed: long words"));
    assert!(get(&router, "/fleet?filter=none").text.contains("0 of 1000 gateways"));
    let links = |page: &str| page.split("</nav>").next().unwrap().matches("href=\"/fleet\"").count();
    assert_eq!(links(&page), 1);
    assert!(page.find("href=\"/gateway\"").unwrap() < page.find("href=\"/fleet\"").unwrap(), "it is the last link");
    let alone = pages(Router::new().fallback(much), false, false).unwrap();
    assert_eq!(links(&get(&alone, "/alerts").text), 0);
}
