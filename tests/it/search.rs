//! Requests of the prediction log: found, looked at, run again and explained, by the API, the command line and the pages.

use crate::support::process::{Served, binary};
use crate::support::{Answer, Gateway, eventually, infer_body, library, onnx};
use serde_json::{Value, json};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

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
    let output = Command::new(binary())
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
        ("?since=yesterday", 400, r#""error":"since: "#),
        ("?status=bad", 400, r#""error":"status "#),
        ("?after=x", 400, "what an earlier answer has as `next`"),
        ("?slower_than=fast", 400, r#""error":"slower_than "#),
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
        ("explain", json!({"request_id": "r1", "row": 99}), 400, "row 99"),
    ];
    for (verb, body, status, words) in refusals {
        let answer = again(verb, body.clone());
        assert!(answer.status == status && text(&answer).contains(words), "{verb} {body}: {}", text(&answer));
    }

    contents_are_for_operators(&gateway);

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

/// A viewer sees that a request was there and how it ended. Its contents, and looking for a person by a key, take an operator, and leave an event.
fn contents_are_for_operators(gateway: &Gateway) {
    let bearers = ["viewer", "approver", "operator", "predict"].map(|role| {
        let made = gateway.admin_send("POST", "/api/v1/tokens", &[], &json!({"name": role, "role": role}));
        (role, format!("Bearer {}", made.json()["token"].as_str().unwrap_or_else(|| panic!("{made:?}"))))
    });
    let of = |role: &str| bearers.iter().find(|(known, _)| *known == role).map(|(_, bearer)| bearer.as_str()).unwrap();
    let as_role = |role: &str, path: &str| gateway.admin_get_with(path, &[("authorization", of(role))]);
    let reads = || {
        let events = gateway.admin_get("/api/v1/audit?model=m&limit=50").json()["events"].as_array().unwrap().clone();
        let reads = events.into_iter().filter(|event| event["action"] == "read_request");
        reads
            .map(|event| (event["actor"].clone(), event["after"]["request_id"].clone(), event["after"]["by"].clone()))
            .collect::<Vec<_>>()
    };
    assert!(reads().is_empty(), "without credentials nobody is known, and no event names them");
    assert_eq!(as_role("predict", &format!("{API}/r39")).status, 403);
    for role in ["viewer", "approver"] {
        let refused = as_role(role, &format!("{API}?route_key=u1"));
        assert!(refused.status == 403 && text(&refused).contains("role operator or admin"), "{}", text(&refused));
        let lines = [("authorization", of(role)), ("accept", "application/x-ndjson")];
        let lines = text(&gateway.admin_get_with(&format!("{API}?disagreed=true&limit=1"), &lines));
        assert!(lines.contains("\"contents\":\"withheld\"") && lines.contains("\"difference\":\"differs\""), "{lines}");
        let list = as_role(role, &format!("{API}?disagreed=true")).json();
        assert_eq!((ids(&list).len(), &list["contents"]), (4, &json!("withheld")), "{list}");
        assert_eq!(list["requests"][0]["difference"], "differs", "{list}");
        assert!(as_role(role, API).json()["requests"].as_array().unwrap().iter().all(|of| of["route_key"].is_null()));
        let one = as_role(role, &format!("{API}/r39")).json();
        assert_eq!((&one["contents"], &one["feedback"]), (&json!("withheld"), &json!([])), "{one}");
        let [primary, shadow] = &one["predictions"].as_array().unwrap()[..] else { panic!("{one}") };
        assert_eq!((&primary["status"], &primary["version"], &primary["rows"]), (&json!("ok"), &json!("1"), &json!(2)));
        assert_eq!(
            (&primary["inputs"][0]["recorded"], &primary["inputs"][0]["data"]),
            (&json!("withheld"), &json!([]))
        );
        assert_eq!(shadow["compared"], json!({"agrees": false, "words": "differs"}));
        assert!(!one.to_string().contains("58.5") && !one.to_string().contains("bad"), "no value is left: {one}");
        let page = text(&as_role(role, "/requests/m/r39"));
        assert!(page.contains("reading what a request holds needs the role operator"), "{page}");
        assert!(!page.contains("58.5") && !page.contains("&lt;i&gt;") && !page.contains("Run it again"), "{page}");
        let worst = as_role(role, "/api/v1/models/m/shadows/2").json()["primaries"][0]["worst"][0].clone();
        assert!(worst["request_id"].is_string() && worst["primary"]["outputs"].is_null(), "{worst}");
    }
    assert!(reads().is_empty(), "who sees no contents leaves no event");
    assert_eq!(count(&as_role("operator", &format!("{API}?route_key=u1")).json()), 10);
    let one = as_role("operator", &format!("{API}/r39")).json();
    assert!(one["contents"] == "shown" && one.to_string().contains("58.5"), "{one}");
    let again = [("authorization", of("operator"))];
    let again = gateway.admin_send("POST", &format!("{API}:reproduce"), &again, &json!({"request_id": "r12"}));
    assert_eq!(again.status, 200, "{again:?}");
    assert!(
        as_role("operator", "/api/v1/models/m/shadows/2").json()["primaries"][0]["worst"][0]["primary"]["outputs"]
            .is_array()
    );
    let list = as_role("operator", "/api/v1/models/m/shadows").json()["shadows"][0]["primaries"][0]["worst"][0].clone();
    assert!(list["request_id"].is_string() && list["primary"]["outputs"].is_null(), "a list has no contents: {list}");
    let lines = [("authorization", of("operator")), ("accept", "application/x-ndjson")];
    assert_eq!(gateway.admin_get_with(&format!("{API}?disagreed=true&limit=1"), &lines).status, 200);
    let replayed =
        gateway.admin_send("POST", "/api/v1/models/m/replay", &lines[..1], &json!({"version": "2", "limit": 1}));
    assert_eq!(replayed.status, 200, "{replayed:?}");
    let event = |id: Value, by: &str| (json!("operator"), id, json!(by));
    let several = |by: &str| event(Value::Null, by);
    assert_eq!(
        reads(),
        [
            several("replay"),
            several("list"),
            several("shadow"),
            event(json!("r12"), "reproduce"),
            event(json!("r39"), "show"),
            several("list")
        ]
    );
    let events = text(&gateway.admin_get("/api/v1/audit?model=m&limit=50"));
    assert!(
        events.contains("[\"route_key\"]") && !events.contains("\"u1\""),
        "how somebody was looked for, and not who: {events}"
    );
}

/// The sealed prediction files of a data directory.
fn sealed(data: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut dirs = vec![data.join("predictions")];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|extension| extension == "parquet") {
                files.push(path);
            }
        }
    }
    files
}

#[test]
fn a_damaged_file_is_named_and_the_rest_of_the_log_is_searched() {
    let gateway = Gateway::start_in(gateway().stop(), "");
    gateway.wait_ready();
    let whole = sealed(&gateway.dir.path().join("data"));
    let day = whole[0].parent().unwrap().to_owned();
    // One that is no Parquet at all, one that was cut off, and copies whose pages are damaged and whose end is not: of a file with the answers to
    // callers, and of one with those of the shadow.
    std::fs::write(day.join("90000001-0.parquet"), "no parquet").unwrap();
    for (number, file) in whole.iter().enumerate() {
        let mut bytes = std::fs::read(file).unwrap();
        std::fs::write(day.join("90000002-0.parquet"), &bytes[..bytes.len() / 2]).unwrap();
        let third = bytes.len() / 3;
        bytes[4..third].fill(0xff);
        std::fs::write(day.join(format!("9000000{}-0.parquet", number + 3)), bytes).unwrap();
    }
    let found = get(&gateway, "?limit=1000");
    assert_eq!((count(&found), &found["ended"]), (40, &json!("beginning")), "what is whole is found: {found}");
    let not_read = &found["not_read"];
    // The answers of the shadow are not looked for, so its file is not read.
    assert!(not_read["files"].as_u64().is_some_and(|files| files >= 3), "{not_read}");
    let named: Vec<&str> =
        not_read["named"].as_array().unwrap().iter().map(|of| of["file"].as_str().unwrap()).collect();
    for name in ["90000001-0.parquet", "90000002-0.parquet"] {
        assert!(named.iter().any(|file| file.ends_with(name)), "{name}: {not_read}");
    }
    assert!(named.iter().all(|file| file.starts_with("predictions/")), "no path of the server: {not_read}");
    assert!(!not_read.to_string().contains(gateway.dir.path().to_str().unwrap()), "{not_read}");
    let one = get(&gateway, "/r12");
    assert!(one["predictions"].as_array().unwrap().len() >= 2 && one["not_read"]["files"].as_u64() > Some(0), "{one}");
    let nobody = gateway.admin_get(&format!("{API}/nobody"));
    assert!(nobody.status == 404 && text(&nobody).contains("damaged"), "{}", text(&nobody));
    assert!(get(&gateway, "?disagreed=true")["requests"].as_array().is_some_and(|found| found.len() == 4));
    let page = text(&gateway.admin_get("/requests?model=m"));
    assert!(page.contains("files of the log are damaged") && page.contains("href=\"/requests/m/r39\""), "{page}");
    let (code, out) = cli(&gateway, "requests m");
    assert!(code == 0 && out.contains("not read: predictions/") && out.contains("r39"), "{out}");
}

/// What somebody left among the files of the log, which would never be opened, or never end.
#[test]
fn a_pipe_and_a_socket_among_the_files_of_the_log_are_named_and_not_waited_for() {
    let gateway = Gateway::start_in(gateway().stop(), "");
    gateway.wait_ready();
    let data = gateway.dir.path().join("data");
    let day = sealed(&data)[0].parent().unwrap().to_owned();
    let pipe = |path: &Path| {
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mkfifoat(rustix::fs::CWD, path, mode).unwrap();
    };
    pipe(&day.join("90000001-0.parquet"));
    let socket = std::os::unix::net::UnixListener::bind(day.join("90000002-0.parquet")).unwrap();
    std::os::unix::fs::symlink("/dev/zero", day.join("90000003-0.parquet")).unwrap();
    // Segments are files of the log too.
    pipe(&data.join("log/00000000000000000001.seg"));
    let found = get(&gateway, "?limit=1000");
    assert_eq!((count(&found), &found["ended"]), (40, &json!("beginning")), "what is whole is found: {found}");
    let not_read = &found["not_read"];
    assert_eq!(not_read["files"], 3, "{not_read}");
    for named in not_read["named"].as_array().unwrap() {
        assert!(named["why"].as_str().unwrap().contains("it is not a regular file"), "{not_read}");
    }
    let one = get(&gateway, "/r12");
    assert!(one["predictions"].as_array().unwrap().len() >= 2 && one["not_read"]["files"] == 3, "{one}");
    drop(socket);

    for (name, words) in
        [("export m -o out.parquet", "90000001-0.parquet"), ("replay m --version 1", "90000001-0.parquet")]
    {
        let mut command = Command::new(binary());
        command.args(name.split(' ')).arg("--data-dir").arg(&data).current_dir(gateway.dir.path());
        if name.starts_with("replay") {
            command.arg("--models").arg(gateway.dir.path().join("models"));
        }
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && said.contains(words) && said.contains("not a regular file"),
            "{name}: {said}"
        );
    }
    // The same for a server that starts: what it reads again, seals and deletes are regular files.
    let gateway = Gateway::start_in(gateway.stop(), "");
    gateway.wait_ready();
    assert!(day.join("90000001-0.parquet").exists());
}

/// The processes that search the log of this data directory.
fn searching(data: &Path) -> Vec<String> {
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let of = |pid: String| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        let place = format!("--data-dir={}", data.display());
        (words.contains(&b"requests".as_slice()) && words.contains(&place.as_bytes())).then_some(pid)
    };
    processes.filter_map(of).collect()
}

/// Adds a file to a day of the log that its disk does not give, until the name that is returned is removed.
fn stuck(day: &Path, name: &str) -> PathBuf {
    let marker = day.join(format!("{name}.stuck"));
    std::fs::write(&marker, "").unwrap();
    std::fs::write(day.join(name), "").unwrap();
    marker
}

/// Searches hang, because a disk does not answer. The server is a process of its own, as the places are those of a process.
#[test]
fn a_search_ends_with_its_client_and_a_third_one_is_told_to_come_again() {
    let dir = tempfile::TempDir::new().unwrap();
    let (models, data) = (dir.path().join("models"), dir.path().join("data"));
    std::fs::create_dir(&models).unwrap();
    onnx::install(&models, "m", 1, &onnx::scaling(1.0));
    let library = dir.path().join("libstuck.so");
    library::compile("stuck.c", &library, &[]);
    let served = Served::start_with(dir.path(), &[("LD_PRELOAD", library.to_str().unwrap())]);
    served.ready();
    let day = data.join("predictions/model=m/date=2026-01-01");
    std::fs::create_dir_all(&day).unwrap();
    let marker = stuck(&day, "90000001-0.parquet");
    let get = |path: &str| {
        let url = format!("http://{}{path}", served.admin);
        let mut answer = ureq::get(&url).config().http_status_as_error(false).build().call().unwrap();
        (answer.status().as_u16(), answer.body_mut().read_to_string().unwrap())
    };
    let ask = || {
        let mut client = TcpStream::connect(&served.admin).unwrap();
        write!(client, "GET {API} HTTP/1.1\r\nhost: {}\r\n\r\n", served.admin).unwrap();
        client
    };
    let clients = [ask(), ask()];
    eventually("two searches run", || (searching(&data).len() == 2).then_some(()));
    // Both wait for a place.
    let ((status, said), (_, page)) = std::thread::scope(|scope| {
        let page = scope.spawn(|| get("/requests?model=m"));
        (get(API), page.join().unwrap())
    });
    assert!(status == 429 && said.contains("TOO_MANY_REQUESTS"), "{status} {said}");
    assert!(said.contains("other searches are in progress"), "{said}");
    assert!(page.contains("other searches are in progress") && page.contains("Route key"), "the form stays: {page}");
    assert_eq!(searching(&data).len(), 2, "no more than two ever run");
    drop(clients);
    eventually("their processes have ended", || searching(&data).is_empty().then_some(()));
    std::fs::remove_file(&marker).unwrap();
    let (status, said) = get(API);
    assert!(status == 200 && said.contains("\"ended\":\"beginning\""), "their places are free again: {status} {said}");
    comes_while_it_is_searched(&served, &day);
}

/// The oldest file does not answer: what newer ones have is there all the same, as lines and on the page.
fn comes_while_it_is_searched(served: &Served, day: &Path) {
    let url = format!("http://{}/v2/models/m/infer", served.data);
    for id in ["r1", "r2"] {
        let sent = ureq::post(&url).header("x-request-id", id).send(infer_body(&[1, 2], &[1.0, 2.0])).unwrap();
        assert_eq!(sent.status(), 200);
    }
    eventually("both are written", || served.admin_get(API).contains("r2").then_some(()));
    let marker = stuck(day, "0-0.parquet");
    let data = day.ancestors().nth(3).unwrap();
    for (path, accept, words, end) in [
        (API, "application/x-ndjson", "{\"request\":{\"request_id\":\"r2\"", "{\"end\""),
        ("/requests?model=m", "text/html", "href=\"/requests/m/r2\"", "</html>"),
        ("/requests?request_id=r2", "text/html", "href=\"/requests/m/r2\"", "</html>"),
    ] {
        let mut client = TcpStream::connect(&served.admin).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        write!(client, "GET {path} HTTP/1.1\r\nhost: {}\r\naccept: {accept}\r\n\r\n", served.admin).unwrap();
        let (mut text, mut piece) = (String::new(), [0; 4096]);
        while !text.contains(words) {
            let read = client.read(&mut piece).unwrap_or_else(|e| panic!("{path}: {e}: {text}"));
            assert_ne!(read, 0, "{path}: {text}");
            text.push_str(&String::from_utf8_lossy(&piece[..read]));
        }
        assert!(!text.contains(end), "{path}: the search goes on: {text}");
        assert_eq!(searching(data).len(), 1, "{path}");
        drop(client);
        eventually("the search ends with its client", || searching(data).is_empty().then_some(()));
    }
    std::fs::remove_file(&marker).unwrap();
    let mut command = Command::new(binary());
    command.args(["requests", "m", "--lines", "--limit", "1"]);
    let output = command.env("SLUICEGATE_ADMIN", format!("http://{}", served.admin)).output().unwrap();
    let lines: Vec<Value> =
        String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0]["begin"], json!({"model": "m", "contents": "shown"}));
    assert_eq!((&lines[1]["request"]["request_id"], &lines[2]["end"]["ended"]), (&json!("r2"), &json!("limit")));
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
    assert!(refused.status == 400 && text(&refused).contains("row 99"), "{}", text(&refused));
    assert_eq!(gateway.admin_form("/requests/m/r39/reproduce", &[("csrf", "x")]).status, 403);
    assert_eq!(gateway.admin_form("/requests/m/r39/dance", &[("csrf", &csrf)]).status, 404);
}
