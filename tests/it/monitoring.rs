//! Profiles and drift, with a server and its files.

use crate::browser::browser;
use crate::support::cdp::Browser;
use crate::support::library::Clock;
use crate::support::process::{Served, binary};
use crate::support::receiver::{Receiver, Reply};
use crate::support::{Gateway, eventually, onnx};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

fn cli(dir: &Path, line: &str) -> (i32, String) {
    let result = Command::new(binary()).args(line.split(' ')).current_dir(dir).output().unwrap();
    let output = format!("{}{}", String::from_utf8_lossy(&result.stdout), String::from_utf8_lossy(&result.stderr));
    (result.status.code().unwrap(), output)
}

fn python() -> String {
    let venv = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(".venv/bin/python");
    std::env::var("SLUICEGATE_TEST_PYTHON").unwrap_or_else(|_| venv.display().to_string())
}

/// Numbers that look random and are the same each time, from 0 to 1.
fn numbers(n: u32) -> impl Iterator<Item = f32> {
    // Multiples of the golden ratio's fraction, in 65,536ths.
    (0..n).map(|i| f32::from(u16::try_from(i.wrapping_mul(40_503) % 65_536).unwrap()) / 65_536.0)
}

/// A profile of two columns that are uniform from 0 to 1.
fn csv(dir: &Path) {
    let mut text = "x[0],x[1]\n".to_owned();
    for x in numbers(5000) {
        writeln!(text, "{x},{}", 1.0 - x).unwrap();
    }
    std::fs::write(dir.join("train.csv"), text).unwrap();
}

fn send(gateway: &Gateway, requests: u32, shift: f32) {
    for (i, x) in numbers(requests).enumerate() {
        let body = json!({"id": format!("r{i}"), "inputs": [
            {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [x + shift, 1.0 - x]}]});
        assert_eq!(gateway.post("/v2/models/m/infer", body.to_string()).status, 200);
    }
}

fn drift(gateway: &Gateway) -> Value {
    gateway.admin_get("/api/v1/models/m/drift").json()
}

/// Makes the hour that a stop interrupted end before: its counts are judged by the next server.
fn age(data: &Path) {
    let path = data.join("drift/m.json");
    let mut state: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let arm = &mut state["arms"][0]["state"];
    let hour = arm["part"][0].as_i64().unwrap() - 3;
    (arm["part"][0], arm["last_hour"], arm["first_hour"]) = (hour.into(), hour.into(), hour.into());
    std::fs::write(&path, state.to_string()).unwrap();
}

#[test]
fn live_rows_are_compared_with_the_profile_over_a_restart() {
    let gateway = Gateway::start(|models| {
        onnx::install(models, "m", 1, &onnx::scaling(1.0));
        std::fs::write(models.join("m/model.toml"), "feature_names = [\"age\", \"fare\"]\n").unwrap();
        let dir = models.parent().unwrap();
        csv(dir);
        let (code, output) = cli(dir, "profile train.csv --model m --version 1 -o models/m/1/profile.json");
        assert!(code == 0 && output.contains("2 columns of 5,000 rows"), "{output}");
    });
    let found = drift(&gateway);
    assert_eq!(found["versions"][0]["reference"], "profile", "{found}");
    assert_eq!(found["versions"][0]["reference_rows"], 5000);
    assert_eq!(found["summary"], "no window has ended yet for m");
    send(&gateway, 300, 0.5);
    eventually("the rows are counted", || (drift(&gateway)["versions"][0]["arms"][0]["counted"] == 300).then_some(()));
    assert_eq!(gateway.admin_get("/api/v1/models/none/drift").status, 404);

    let dir = gateway.stop();
    age(&dir.path().join("data"));
    let gateway = Gateway::start_in(dir, "");
    gateway.wait_ready();
    let troubles = eventually("the hour is judged", || {
        let troubles = drift(&gateway)["troubles"].as_array().unwrap().clone();
        (!troubles.is_empty()).then_some(troubles)
    });
    assert_eq!((troubles.len(), &troubles[0]["column"], &troubles[0]["what"]), (1, &json!("age"), &json!("drift")));
    let words = troubles[0]["words"].as_str().unwrap();
    // In the first hours of a day the day before has ended too, and what a longer window shows counts.
    let of = ["hour", "day"].map(|window| format!("age differs from the profile in the {window} of 300 rows"));
    assert!(of.iter().any(|of| words.contains(of)), "{words}");
    let arm = drift(&gateway)["versions"][0]["arms"][0].clone();
    assert_eq!(
        (&arm["rows"], &arm["columns"][0]["alarm"], &arm["columns"][1]["alarm"]),
        (&json!(300), &json!(true), &json!(false))
    );
    let window = &arm["columns"][0]["windows"][0];
    assert!(window["different"] == true && window["matters"] == true && window["rows"] == 300, "{window}");
    let command = format!("drift m --bins 1 --admin http://{}", gateway.admin());
    let (code, output) = cli(gateway.dir.path(), &command);
    assert!(code == 0 && output.contains("ALARM") && output.contains("profile.json of 5000 rows"), "{output}");
    assert!(output.contains("age, the last ") && output.contains("REFERENCE"), "{output}");
    bins_are_answered_and_drawn(&gateway);
    eventually("the alert fires", || {
        let alerts = gateway.admin_get("/api/v1/alerts").json();
        let fires = |alert: &Value| alert["rule"] == "drift" && alert["model"] == "m";
        alerts["alerts"].as_array().unwrap().iter().any(fires).then_some(())
    });
}

/// All live values of `age` are in the upper half of the reference.
fn bins_are_answered_and_drawn(gateway: &Gateway) {
    let asked = gateway.admin_get("/api/v1/models/m/drift?bins=1").json();
    let columns = &asked["versions"][0]["arms"][0]["columns"];
    assert!(columns[1]["bins"].is_null(), "only the column that moved most: {columns}");
    let bins = &columns[0]["bins"];
    assert!(["hour", "day"].contains(&bins["window"].as_str().unwrap()), "{bins}");
    let (all, ordered) =
        (bins["bins"].as_array().unwrap(), usize::try_from(bins["ordered"].as_u64().unwrap()).unwrap());
    let sum = |side: &str, of: &[Value]| of.iter().map(|bin| bin[side].as_f64().unwrap()).sum::<f64>();
    for side in ["reference", "live"] {
        assert!((sum(side, all) - 1.0).abs() < 1e-9, "the shares of {side} add up to 1: {bins}");
    }
    assert!(sum("live", &all[..ordered / 2 - 1]) < 0.01 && sum("reference", &all[..ordered / 2 - 1]) > 0.3, "{bins}");
    assert_eq!(all.last().unwrap()["name"], "missing", "{bins}");
    for wrong in ["?bins=101", "?bins=-1", "?bin=1"] {
        assert_eq!(gateway.admin_get(&format!("/api/v1/models/m/drift{wrong}")).status, 400, "{wrong}");
    }
    let page = String::from_utf8(gateway.admin_get("/models/m").body).unwrap();
    assert!(page.contains("class=\"reference\"") && page.contains("class=\"live\""), "{page}");
    assert!(page.contains("Line: the live rows of the last ") && page.len() < 100_000, "{page}");
    // docs/console/ has its picture, as the test of the story takes the others.
    if let Some(folder) = std::env::var_os("SLUICEGATE_STORY_PICTURES")
        && let Some(program) = browser()
    {
        let url = format!("http://{}/models/m#drift", gateway.admin());
        Browser::start(&program).pictures(&url, Path::new(&folder), "drift", 10_000.0);
    }
}

/// The time of the server passes by hours; everything else is as in production: one server, its own files, no restart.
#[test]
fn drift_is_told_when_its_hour_is_over_and_the_alert_ends_after_two_days_without_it() {
    const HOUR: Duration = Duration::from_hours(1);
    let receiver = Receiver::start(Reply::Status(204));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    std::fs::create_dir_all(path.join("config")).unwrap();
    let text = format!(
        "[alerts]\ncheck_interval = \"100ms\"\nend_after = \"300ms\"\noff = [\"disk_full\", \"memory_full\"]\n\
         [[alerts.targets]]\nname = \"ops\"\nkind = \"webhook\"\nurl = \"{}\"\nsend = [\"alerts\", \"retrain\"]\n",
        receiver.url("/hook")
    );
    std::fs::write(path.join("config/sluicegate.toml"), text).unwrap();
    onnx::install(&path.join("models"), "m", 1, &onnx::scaling(1.0));
    std::fs::write(path.join("models/m/model.toml"), "feature_names = [\"age\", \"fare\"]\n").unwrap();
    csv(path);
    let (code, output) = cli(path, "profile train.csv --model m --version 1 -o models/m/1/profile.json");
    assert_eq!(code, 0, "{output}");
    // A Friday at five past ten: weeks begin on Thursdays, and no week ends in this test.
    let mut clock = Clock::new(path);
    let today = clock.now().as_second().div_euclid(86_400);
    let friday = (today + 1..today + 8).find(|day| day.rem_euclid(7) == 1).unwrap();
    let begin = jiff::Timestamp::from_second(friday * 86_400 + 10 * 3600 + 300).unwrap();
    clock.pass(Duration::try_from(begin.duration_since(clock.now())).unwrap());
    let mut served = Served::start_with(path, &clock.environment());
    served.ready();
    let get = |path: &str| -> Value { serde_json::from_str(&served.admin_get(path)).unwrap() };
    let arm = || get("/api/v1/models/m/drift")["versions"][0]["arms"][0].clone();
    let mut sent = 0;
    let mut ask = |requests: usize, shift: f32| {
        for xs in numbers(u32::try_from(requests * 32).unwrap()).collect::<Vec<_>>().chunks(32) {
            let data: Vec<f32> = xs.iter().flat_map(|x| [x + shift, 1.0 - x]).collect();
            let body = json!({"inputs": [{"name": "x", "shape": [32, 2], "datatype": "FP32", "data": data}]});
            let url = format!("http://{}/v2/models/m/infer", served.data);
            assert_eq!(ureq::post(&url).send(body.to_string()).unwrap().status(), 200);
        }
        sent += requests * 32;
        sent
    };
    let counted = |rows: usize| eventually("the rows are counted", || (arm()["counted"] == rows).then_some(()));
    counted(ask(10, 0.5));
    assert_eq!((receiver.alerts(), &get("/api/v1/models/m/drift")["troubles"]), (Vec::new(), &json!([])));
    clock.pass(HOUR);
    ask(5, 0.0);
    eventually("the hour is judged", || (receiver.alerts() == ["+drift m/1"]).then_some(()));
    let troubles = get("/api/v1/models/m/drift")["troubles"].clone();
    let words = troubles[0]["words"].as_str().unwrap();
    assert!(words.contains("age differs from the profile in the hour of 320 rows"), "{troubles}");
    let retrained = || receiver.events().iter().filter(|event| *event == "retrain").count();
    eventually("a new version is asked for", || (retrained() == 1).then_some(()));
    // Its day alarms too, until another day is over: now it is eleven, and in 36 hours it is the last hour of Saturday.
    let mut rows = 0;
    for _ in 0..36 {
        clock.pass(HOUR);
        rows = ask(5, 0.0);
        // Each I/O thread has a queue to the thread of the log, which must not find many hours in one and then as many in another.
        let written = format!("sluicegate_log_records_total {rows}\n");
        eventually("the rows are written", || served.admin_get("/metrics").contains(&written).then_some(()));
    }
    counted(rows);
    eventually("it is asked for once a day", || (retrained() == 2).then_some(()));
    assert_eq!(receiver.alerts(), ["+drift m/1"], "{}", arm());
    clock.pass(HOUR + Duration::from_mins(2));
    eventually("the alert ends", || (receiver.alerts() == ["+drift m/1", "-drift m/1"]).then_some(()));
    assert_eq!(arm()["columns"][0]["alarm"], false, "{}", arm());
    served.stop();
}

#[test]
fn a_wrong_profile_is_a_note_and_old_versions_are_stale() {
    let gateway = Gateway::start(|models| {
        onnx::install(models, "m", 1, &onnx::scaling(1.0));
        std::fs::write(models.join("m/1/profile.json"), "{\"format\": 1, \"rows\": 1}").unwrap();
        std::fs::write(models.join("m/1/version.toml"), "[lineage]\ntrained_at = \"2020-01-01\"\n").unwrap();
        std::fs::write(models.join("m/model.toml"), "[staleness]\nmax_age = \"90d\"\n").unwrap();
    });
    let version = gateway.admin_get("/api/v1/models/m/versions/1").json();
    assert_eq!(version["state"], "serving");
    assert!(version.to_string().contains("profile.json is not used: not a profile"), "{version}");
    let found = drift(&gateway);
    assert_eq!(
        (&found["versions"][0]["reference"], &found["versions"][0]["first_day_rows"]),
        (&Value::Null, &json!(0))
    );
    assert!(found["summary"].as_str().unwrap().starts_with("no reference"), "{found}");
    let alert = eventually("the alert fires", || {
        let alerts = gateway.admin_get("/api/v1/alerts").json();
        alerts["alerts"].as_array().unwrap().iter().find(|alert| alert["rule"] == "staleness").cloned()
    });
    assert!(alert["summary"].as_str().unwrap().contains("version 1 of m is stale: it was trained"), "{alert}");
}

#[test]
fn a_profile_is_made_of_the_log_and_of_an_export() {
    let gateway = Gateway::start(|models| onnx::install(models, "m", 1, &onnx::scaling(2.0)));
    send(&gateway, 200, 0.0);
    let dir = gateway.stop();
    let dir = dir.path();
    let (code, output) = cli(dir, "profile --from-log m 1 -o log.json");
    assert!(code == 0 && output.contains("columns of 200 rows"), "{output}");
    for (format, name) in [("parquet", "export.parquet"), ("csv", "export.csv")] {
        let (code, output) = cli(dir, &format!("export m --format {format} -o {name}"));
        assert_eq!(code, 0, "{output}");
        let (code, output) = cli(dir, &format!("profile {name} --model m --version 1 -o {format}.json"));
        assert_eq!(code, 0, "{output}");
        let read = |name: &str| serde_json::from_slice::<Value>(&std::fs::read(dir.join(name)).unwrap()).unwrap();
        let (of_log, of_export) = (read("log.json"), read(&format!("{format}.json")));
        for (name, column) in of_log["columns"].as_object().unwrap() {
            let other = &of_export["columns"][name];
            assert_eq!((&column["count"], &column["counts"]), (&other["count"], &other["counts"]), "{format}");
            // CSV has the shortest decimals of 32-bit numbers.
            let [a, b] = [column, other].map(|column| column["edges"][9].as_f64().unwrap());
            assert!((a - b).abs() < 1e-6, "{format} {name}: {a} {b}");
        }
        let sampled = |profile: &Value| {
            let mut columns: Vec<&str> =
                profile["sample"]["columns"].as_array().unwrap().iter().map(|c| c.as_str().unwrap()).collect();
            columns.sort_unstable();
            (profile["format"] == 2, profile["sample"]["rows"].as_array().unwrap().len(), columns.join(" "))
        };
        let expected = (true, 100, "inputs.x[0] inputs.x[1]".to_owned());
        assert_eq!((sampled(&of_log), sampled(&of_export)), (expected.clone(), expected), "{format}");
        // A row stays a row: the second number is one less the first.
        for row in of_export["sample"]["rows"].as_array().unwrap() {
            assert!((row[0].as_f64().unwrap() + row[1].as_f64().unwrap() - 1.0).abs() < 1e-6, "{row}");
        }
        assert!(of_log["from"].is_string() && of_log["columns"]["inputs.x[0]"]["kind"] == "numeric", "{of_log}");
    }
    let (code, output) = cli(dir, "profile export.csv --sample 0 -o none.json");
    let none: Value = serde_json::from_slice(&std::fs::read(dir.join("none.json")).unwrap()).unwrap();
    assert!(code == 0 && none["format"] == 1 && none["sample"].is_null(), "{output}");
    for (line, words) in [
        ("profile export.csv --sample 101 -o p.json", "--sample: expected at most 100 rows, got 101"),
        ("profile train.txt -o p.json", "expected a file named *.parquet or *.csv"),
        ("profile none.csv -o p.json", "cannot read none.csv"),
        ("profile --from-log other 1 -o p.json", "no matching predictions of other"),
        ("profile log.json --model m -o p.json", "--version"),
        ("profile export.csv --from-log m 1 -o p.json", "cannot be used with"),
    ] {
        let (code, output) = cli(dir, line);
        assert!(code != 0 && output.contains(words), "{line}: {output}");
        assert!(!dir.join("p.json").exists());
    }
}

/// The function in docs/MONITORING.md writes what `sluicegate profile` writes.
#[test]
fn the_documented_python_writes_a_profile() {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/MONITORING.md")).unwrap();
    let code = text.split("```python\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    csv(dir.path());
    let code = format!(
        "{code}\nx = np.genfromtxt('train.csv', delimiter=',', skip_header=1)\n\
         s = np.array(['a', None, 'b', 'a'] * (len(x) // 4), dtype=object)\n\
         json.dump(profile({{'x[0]': x[:, 0], 'x[1]': x[:, 1], 's': s}}), open('python.json', 'w'))\n"
    );
    let output = Command::new(python()).arg("-c").arg(&code).current_dir(dir.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let (exit, words) = cli(dir.path(), "profile train.csv -o rust.json");
    assert_eq!(exit, 0, "{words}");
    let read = |name: &str| serde_json::from_slice::<Value>(&std::fs::read(dir.path().join(name)).unwrap()).unwrap();
    let (python, rust) = (read("python.json"), read("rust.json"));
    for column in ["x[0]", "x[1]"] {
        let (python, rust) = (&python["columns"][column], &rust["columns"][column]);
        assert_eq!((&python["count"], &python["edges"].as_array().unwrap().len()), (&rust["count"], &19));
        for at in 0..19 {
            let [a, b] = [&python["edges"][at], &rust["edges"][at]].map(|edge| edge.as_f64().unwrap());
            assert!((a - b).abs() < 0.001, "{column} {at}: {a} {b}");
        }
    }
    assert_eq!(python["columns"]["s"]["values"], json!([["a", 2500], ["b", 1250]]));
    assert_eq!(python["columns"]["s"]["missing"], 1250);
    // A server reads it.
    let gateway = Gateway::start(|models| {
        onnx::install(models, "m", 1, &onnx::scaling(1.0));
        std::fs::copy(dir.path().join("python.json"), models.join("m/1/profile.json")).unwrap();
    });
    let found = drift(&gateway);
    assert_eq!(found["versions"][0]["reference"], "profile");
    assert!(found["versions"][0]["notes"][0].as_str().unwrap().contains("\"s\" is no column"), "{found}");
}
