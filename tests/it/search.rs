//! Requests of the prediction log: found, looked at, run again and explained, by the API, the command line and the pages.

use crate::support::{Answer, Gateway, eventually, infer_body, onnx};
use serde_json::{Value, json};
use std::process::Command;

const API: &str = "/api/v1/models/m/requests";

/// Version 1 gives its input back; version 2 is its shadow and differs on four of the forty requests, one of which has an answer of NaN.
fn gateway() -> Gateway {
    let config = "[prediction_log]\nflush_interval = \"50ms\"\n";
    let gateway = Gateway::start_with(config, |models| {
        onnx::install(models, "m", 1, &onnx::scaling(1.0));
        onnx::install(models, "m", 2, &onnx::off_above(35.5, 0.5));
        std::fs::write(models.join("m/model.toml"), "feature_names = [\"<b>age</b>\", \"income\"]\n").unwrap();
    });
    assert_eq!(gateway.promote("m", 1).status, 200);
    let document = json!({"split": [{"version": "1", "weight": 1}], "sticky_by": {"header": "x-user"}, "shadows": [{"version": "2", "sample": 1.0}]});
    assert_eq!(gateway.admin_send("PUT", "/api/v1/models/m/traffic", &[], &document).status, 200);
    for i in 0..40u8 {
        // JSON has no infinity: it becomes null, which is read as NaN.
        let value = if i == 7 { 3.4e38 } else { f32::from(i) };
        let headers = [("x-request-id", format!("r{i}")), ("x-user", format!("u{}", i % 4))];
        let headers = headers.each_ref().map(|(name, value)| (*name, value.as_str()));
        let answer =
            gateway.post_with("/v2/models/m/infer", &headers, infer_body(&[2, 2], &[value, 1.0, 2.0, value * 1.5]));
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    let told = json!({"feedback": [{"request_id": "r39", "row": 1, "label": "<i>bad</i>", "values": {"paid": 2.5}}]});
    assert_eq!(gateway.post("/v1/models/m:feedback", told.to_string()).status, 202);
    eventually("all records are written", || {
        let all = get(&gateway, "?limit=100");
        let shadows = get(&gateway, "?role=shadow&limit=100");
        ((count(&all), count(&shadows)) == (40, 40)).then_some(())
    });
    gateway
}

#[track_caller]
fn get(gateway: &Gateway, rest: &str) -> Value {
    let answer = gateway.admin_get(&format!("{API}{rest}"));
    assert_eq!(answer.status, 200, "{rest}: {}", text(&answer));
    answer.json()
}

fn count(found: &Value) -> usize {
    found["requests"].as_array().unwrap().len()
}

fn ids(found: &Value) -> Vec<&str> {
    found["requests"].as_array().unwrap().iter().map(|of| of["request_id"].as_str().unwrap()).collect()
}

fn text(answer: &Answer) -> String {
    String::from_utf8(answer.body.clone()).unwrap()
}

fn cli(gateway: &Gateway, line: &str) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_sluicegate"))
        .args(line.split(' '))
        .env("SLUICEGATE_ADMIN", format!("http://{}", gateway.admin()))
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8(said).unwrap())
}

/// What holds while the records are in a segment, and after they were sealed.
fn found_by_everything(gateway: &Gateway) {
    let newest = get(gateway, "?limit=3");
    assert_eq!((ids(&newest), &newest["ended"]), (vec!["r39", "r38", "r37"], &json!("limit")));
    let next = get(gateway, &format!("?limit=3&after={}", newest["next"].as_str().unwrap()));
    assert_eq!(ids(&next), ["r36", "r35", "r34"]);
    let one = get(gateway, "?request_id=r12");
    let roles: Vec<&str> = one["requests"].as_array().unwrap().iter().map(|of| of["role"].as_str().unwrap()).collect();
    assert!(ids(&one) == ["r12", "r12"] && roles.contains(&"primary") && roles.contains(&"shadow"), "{one}");
    assert_eq!((&one["next"], &one["requests"][0]["rows"]), (&Value::Null, &json!(2)));
    let of_user = get(gateway, "?route_key=u1");
    assert_eq!((count(&of_user), ids(&of_user)[0]), (10, "r37"), "also where keys are hashed");
    let stored = of_user["requests"][0]["route_key"].as_str().unwrap();
    assert_eq!((stored.len(), count(&get(gateway, &format!("?route_key={stored}")))), (64, 10), "{stored}");
    assert_eq!(ids(&get(gateway, "?non_finite=true")), ["r7"]);
    let differ = get(gateway, "?disagreed=true&limit=2");
    assert_eq!((ids(&differ), &differ["requests"][0]["version"]), (vec!["r39", "r38"], &json!("2")));
    assert!(differ["requests"][0]["difference"].as_str().unwrap().contains('y'), "{differ}");
    assert_eq!(count(&get(gateway, "?status=error")), 0);
    assert_eq!(count(&get(gateway, "?slower_than=1h")), 0);
    assert_eq!(count(&get(gateway, "?until=2026-01-01")), 0);
    assert_eq!(count(&get(gateway, "?since=2026-01-01&version=1&arm=1&role=primary&status=ok&limit=1000")), 40);

    let looked = get(gateway, "/r39?elements=3");
    let [primary, shadow] = &looked["predictions"].as_array().unwrap()[..] else { panic!("{looked}") };
    assert_eq!((&primary["role"], &shadow["role"]), (&json!("primary"), &json!("shadow")));
    let x = &primary["inputs"][0];
    assert_eq!((&x["data"], &x["elements"], &x["shape"]), (&json!([39.0, 1.0, 2.0]), &json!(4), &json!([2, 2])));
    assert_eq!(shadow["compared"]["agrees"], false);
    assert_eq!(primary["lineage"]["same_file"], true, "{looked}");
    let told = &looked["feedback"][0];
    assert_eq!(
        (&told["row"], &told["label"], &told["values"]),
        (&json!(1), &json!("<i>bad</i>"), &json!({"paid": 2.5}))
    );
    assert_eq!(looked["commands"]["reproduce"], "sluicegate reproduce r39 --model m");
    let odd = get(gateway, "/r7");
    assert_eq!(odd["predictions"][0]["outputs"][0]["data"][3], "NaN", "{odd}");
}

#[test]
fn requests_are_found_in_segments_and_in_sealed_files_and_run_again() {
    let gateway = gateway();
    found_by_everything(&gateway);
    let again = |verb: &str, body: Value| gateway.admin_send("POST", &format!("{API}:{verb}"), &[], &body);
    let reproduced = again("reproduce", json!({"request_id": "r39"}));
    assert_eq!(reproduced.status, 200, "{reproduced:?}");
    let outcomes: Vec<Value> =
        reproduced.json()["predictions"].as_array().unwrap().iter().map(|of| of["outcome"].clone()).collect();
    assert_eq!(outcomes, ["equal", "equal"]);
    // Its rows are compared with those before it, all of which are finite.
    let explained = again("explain", json!({"request_id": "r5", "row": 1})).json();
    assert_eq!(
        (&explained["row"], &explained["columns"][0]["column"]),
        (&json!(1), &json!("<b>age</b>")),
        "{explained}"
    );

    for (path, status, words) in [
        ("?limit=0", 400, "limit: expected a number from 1 to 1000"),
        ("?since=yesterday", 400, "is not a time"),
        ("?status=bad", 400, "expected ok, error"),
        ("?after=x", 400, "what an earlier answer has as `next`"),
        ("?slower_than=fast", 400, "expected a duration"),
        ("?role=boss", 400, "is not a role"),
        ("?version=x", 400, "version: expected"),
        ("?rtol=-1", 400, "rtol: expected"),
        ("?colour=red", 400, "unknown parameter"),
        ("?disagreed=maybe", 400, "disagreed: expected true or false"),
        ("/nobody", 404, "the log has no request of m with the id"),
        ("/--help", 404, "the log has no request of m with the id"),
        ("/r1?elements=9999999", 400, "elements: expected"),
    ] {
        let answer = gateway.admin_get(&format!("{API}{path}"));
        let said = text(&answer);
        assert!(answer.status == status && said.contains(words), "{path}: {} {said}", answer.status);
        assert!(!said.contains(gateway.models().parent().unwrap().to_str().unwrap()), "no path of the server: {said}");
    }
    assert_eq!(gateway.admin_get("/api/v1/models/nobody/requests").status, 404);
    assert_eq!(gateway.admin_get(&format!("{API}?request_id={}", "x".repeat(1025))).status, 400);
    let refusals = [
        ("reproduce", json!({"request_id": "nobody"}), 409, "has no prediction of m"),
        ("reproduce", json!({}), 400, "request_id: expected"),
        ("explain", json!({"request_id": "r1", "row": -1}), 400, "row: expected"),
        ("explain", json!({"request_id": "r1", "row": 99}), 400, "--row 99"),
    ];
    for (verb, body, status, words) in refusals {
        let answer = again(verb, body.clone());
        assert!(answer.status == status && text(&answer).contains(words), "{verb} {body}: {}", text(&answer));
    }

    // A viewer sees what is stored. To look for a person by a key that is stored as its hash takes an operator.
    let as_role = |role: &str, rest: &str| {
        let made = gateway.admin_send("POST", "/api/v1/tokens", &[], &json!({"name": role, "role": role}));
        let bearer = format!("Bearer {}", made.json()["token"].as_str().unwrap_or_else(|| panic!("{made:?}")));
        gateway.admin_get_with(&format!("{API}{rest}"), &[("authorization", &bearer)])
    };
    assert_eq!(count(&as_role("operator", "?route_key=u1").json()), 10);
    assert_eq!(count(&as_role("viewer", "?route_key=u1").json()), 0);
    assert_eq!(as_role("predict", "?route_key=u1").status, 403);

    let (code, out) = cli(&gateway, "requests m --request-id r12");
    assert!(code == 0 && out.lines().count() == 3 && out.contains("r12"), "{out}");
    let (code, out) = cli(&gateway, "request m r39");
    assert!(
        code == 0 && out.contains("inputs.x") && out.contains("DISAGREES") && out.contains("label <i>bad</i>"),
        "{out}"
    );
    assert_eq!(cli(&gateway, "request m nobody").0, 1);

    let dir = gateway.stop();
    let offline =
        format!("requests m --disagreed --json --limit 1000 --data-dir {}", dir.path().join("data").display());
    let again = Gateway::start_in(dir, "");
    again.wait_ready();
    found_by_everything(&again);
    let (code, out) = cli(&again, &offline);
    let found: Value = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}"));
    assert_eq!((code, ids(&found)), (0, vec!["r39", "r38", "r37", "r36"]), "sealed files hold the same");
}

#[test]
fn a_person_finds_a_request_by_the_pages_and_runs_it_again() {
    let gateway = gateway();
    let page = |path: &str| {
        let answer = gateway.admin_get(path);
        let page = text(&answer);
        assert!(answer.status == 200 && page.len() < 100_000, "{path}: {} {page}", answer.status);
        page
    };
    let list = page("/requests?model=m&route_key=u1");
    assert!(list.contains("href=\"/requests/m/r37\"") && !list.contains("/requests/m/r36\""), "{list}");
    assert!(list.contains("sluicegate requests m --route-key u1"), "{list}");
    let first = page("/requests");
    assert!(
        first.contains("rel=\"next\"") || first.contains("There are no older ones"),
        "the only model is chosen: {first}"
    );
    assert!(page("/requests?model=m&disagreed=true").contains("Difference"));
    assert!(page("/requests?model=m&request_id=nobody").contains("No request matches"));
    assert!(page("/requests?model=m&since=yesterday").contains("is not a time"));
    assert!(page("/models/m").contains("href=\"/requests?model=m\""));

    let one = page("/requests/m/r39");
    for words in [
        "&lt;b&gt;age&lt;/b&gt;",
        "&lt;i&gt;bad&lt;/i&gt;",
        "mismatch",
        "the same file",
        "sluicegate explain r39 --model m",
    ] {
        assert!(one.contains(words), "{words}: {one}");
    }
    assert!(!one.contains("<i>bad") && !one.contains("<b>age"), "{one}");
    assert!(page("/requests/m/r7").contains("NaN"));
    assert_eq!(gateway.admin_get("/requests/m/nobody").status, 404);

    let mark = "name=\"csrf\" value=\"";
    let csrf = one.split_once(mark).unwrap().1.split('"').next().unwrap().to_owned();
    let done = gateway.admin_form("/requests/m/r39/reproduce", &[("csrf", &csrf)]);
    assert!(done.status == 200 && text(&done).contains("bit for bit as logged"), "{}", text(&done));
    let done = gateway.admin_form("/requests/m/r5/explain", &[("csrf", &csrf), ("row", "1")]);
    assert!(done.status == 200 && text(&done).contains("The parts of the columns add up"), "{}", text(&done));
    let refused = gateway.admin_form("/requests/m/r39/explain", &[("csrf", &csrf), ("row", "99")]);
    assert!(refused.status == 400 && text(&refused).contains("--row 99"), "{}", text(&refused));
    assert_eq!(gateway.admin_form("/requests/m/r39/reproduce", &[("csrf", "x")]).status, 403);
    assert_eq!(gateway.admin_form("/requests/m/r39/dance", &[("csrf", &csrf)]).status, 404);
}
