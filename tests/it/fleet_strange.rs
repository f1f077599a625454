//! Strange things in the fleet's buckets, fleets that share a NATS server, and clocks that are wrong.

use crate::fleet::{Nats, document, fleet, install, wait_for_nodes, wait_for_version, warnings};
use crate::support::process::Served;
use crate::support::{Gateway, eventually, infer_body};
use async_nats::jetstream;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Puts values into a bucket as anybody could who has the credentials.
fn put(nats: &Nats, bucket: &str, values: &[(&str, Vec<u8>)]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = async_nats::connect(format!("nats://127.0.0.1:{}", nats.port)).await.unwrap();
        let context = jetstream::new(client);
        let config = jetstream::kv::Config { bucket: bucket.to_owned(), ..jetstream::kv::Config::default() };
        let store = match context.get_key_value(bucket).await {
            Ok(store) => store,
            Err(_) => context.create_key_value(config).await.unwrap(),
        };
        for (key, value) in values {
            store.put(*key, value.clone().into()).await.unwrap();
        }
    });
}

#[test]
fn documents_of_a_newer_program_and_strange_values_change_nothing_and_are_told() {
    let Some(nats) = Nats::start() else { return };
    let (a, b) = (nats.gateway("a", &[1, 2]), nats.gateway("b", &[1, 2]));
    wait_for_nodes(&a, &["a", "b"]);
    wait_for_version(&[&a, &b], "2");
    let newer = json!({"schema": 99, "everything": {"else": true}}).to_string().into_bytes();
    put(&nats, "shop_state", &[("m", newer)]);
    for gateway in [&a, &b] {
        eventually("it says what to do", || warnings(gateway).contains("upgrade this gateway").then_some(()));
    }
    wait_for_version(&[&a, &b], "2");
    let refused = a.promote("m", 1);
    assert!(
        refused.status == 409 && refused.json()["error"].to_string().contains("upgrade this gateway"),
        "{:?}",
        refused.json()
    );

    for value in [
        "",
        "\0\0",
        "[]",
        r#"{"schema":1}"#,
        r#"{"schema":1,"document":{"split":[]},"actor":"x","node":"x","action":"promote","ts":""}"#,
    ] {
        put(&nats, "shop_state", &[("m", value.as_bytes().to_vec()), ("no.model.of.ours", b"1".to_vec())]);
        eventually(&format!("{value:?} is told"), || {
            warnings(&a).contains("are not in force here yet: m").then_some(())
        });
        wait_for_version(&[&a, &b], "2");
    }
    put(&nats, "shop_nodes", &[("x", b"{".to_vec()), ("y", json!({"schema": 99}).to_string().into_bytes())]);
    // A good document is followed again.
    let good = json!({"schema": 1, "document": {"split": [{"version": "1", "weight": 1}]}, "actor": "anna", "node": "x", "action": "promote", "ts": "2026-11-28T00:00:00Z"});
    put(&nats, "shop_state", &[("m", good.to_string().into_bytes())]);
    wait_for_version(&[&a, &b], "1");
    eventually("all is well", || (warnings(&a) == "null" && warnings(&b) == "null").then_some(()));
    let names = fleet(&a)["nodes"].as_array().unwrap().iter().map(|node| node["name"].clone()).collect::<Vec<_>>();
    assert_eq!(names, ["a", "b"], "strange reports are no gateways");
}

#[test]
fn fleets_that_share_a_server_and_buckets_of_others_do_not_meet() {
    let Some(nats) = Nats::start() else { return };
    let a = nats.gateway("a", &[1, 2]);
    let config = nats.config("a").replace("\"shop\"", "\"other\"");
    let b = Gateway::start_with(&config, |models| [1, 2].iter().for_each(|v| install(models, *v)));
    wait_for_nodes(&a, &["a"]);
    wait_for_nodes(&b, &["a"]);
    assert_eq!((warnings(&a), warnings(&b)), ("null".to_owned(), "null".to_owned()), "one name in two fleets");
    assert_eq!(a.promote("m", 1).status, 200);
    wait_for_version(&[&a], "1");
    wait_for_version(&[&b], "2");
    // A bucket of that name that is something else: nothing in it is a model's document, and nothing of it is changed.
    put(&nats, "third_state", &[("m", b"a shopping list".to_vec())]);
    let config = nats.config("c").replace("\"shop\"", "\"third\"");
    let c = Gateway::start_with(&config, |models| install(models, 1));
    eventually("it says so", || warnings(&c).contains("m (revision 1: it cannot be read").then_some(()));
    assert_eq!(
        document(&c)["code"],
        "NOT_FOUND",
        "the fleet may have a document that it cannot read, so it makes none"
    );
    assert_eq!(c.promote("m", 1).status, 409);
}

/// A gateway as a process of its own, with the versions 1 and 2.
fn process(nats: &Nats, node: &str, more: &[(&str, &str)]) -> (TempDir, Served) {
    let dir = TempDir::new().unwrap();
    for version in [1, 2] {
        install(&dir.path().join("models"), version);
    }
    let url = format!("nats://127.0.0.1:{}", nats.port);
    let fleet = [
        ("SLUICEGATE__FLEET__URLS", url.as_str()),
        ("SLUICEGATE__FLEET__NAME", "shop"),
        ("SLUICEGATE__FLEET__NODE", node),
        ("SLUICEGATE__MODELS__SETTLE", "100ms"),
    ];
    let served = Served::start_with(dir.path(), &[&fleet[..], more].concat());
    served.ready();
    (dir, served)
}

#[test]
fn a_gateway_whose_disk_is_full_serves_what_it_has_and_follows_when_there_is_room() {
    let Some(nats) = Nats::start() else { return };
    let a = nats.gateway("a", &[1, 2]);
    let (_dir, full) = process(&nats, "full", &[]);
    wait_for_nodes(&a, &["a", "full"]);
    let get = |path: &str| -> Value { serde_json::from_str(&full.admin_get(path)).unwrap() };
    let answers = || -> Value {
        let url = format!("http://{}/v2/models/m/infer", full.data);
        let mut answer = ureq::post(&url).send(infer_body(&[1, 4], &[0.0; 4])).unwrap();
        serde_json::from_str::<Value>(&answer.body_mut().read_to_string().unwrap()).unwrap()["model_version"].clone()
    };
    assert_eq!(a.promote("m", 1).status, 200);
    eventually("both have version 1", || (answers() == "1").then_some(()));
    // From here on no file of that gateway can grow.
    let pid = full.server_pid().unwrap();
    let limit = |most: Option<u64>| {
        let limit = rustix::process::Rlimit { current: most, maximum: None };
        rustix::process::prlimit(Some(pid), rustix::process::Resource::Fsize, limit).unwrap();
    };
    limit(Some(0));
    assert_eq!(a.promote("m", 2).status, 200);
    wait_for_version(&[&a], "2");
    eventually("it says that it is behind", || {
        get("/readyz")["warnings"].to_string().contains("are not in force here yet: m").then_some(())
    });
    assert_eq!(answers(), "1", "what cannot be stored is not served");
    limit(None);
    eventually("it follows", || (answers() == "2").then_some(()));
    eventually("all is well", || get("/readyz")["warnings"].is_null().then_some(()));
}

/// Where the Debian package `faketime` is installed, its library.
fn faketime() -> Option<String> {
    let mut files =
        std::fs::read_dir("/usr/lib").ok()?.flatten().map(|entry| entry.path().join("faketime/libfaketimeMT.so.1"));
    let found = files.find(|path| path.is_file()).map(|path| path.display().to_string());
    if found.is_none() {
        eprintln!("libfaketime is not installed (Debian package faketime): wrong clocks are not tested");
    }
    found
}

#[test]
fn a_clock_that_is_ten_minutes_off_changes_nothing() {
    let Some(library) = faketime() else { return };
    let Some(nats) = Nats::start() else { return };
    let a = nats.gateway("a", &[1, 2]);
    let more = [("LD_PRELOAD", library.as_str()), ("FAKETIME", "-10m"), ("FAKETIME_DONT_FAKE_MONOTONIC", "1")];
    let (_dir, late) = process(&nats, "late", &more);
    wait_for_nodes(&a, &["a", "late"]);
    let version = || -> Value {
        let traffic: Value = serde_json::from_str(&late.admin_get("/api/v1/models/m/traffic")).unwrap();
        traffic["split"][0]["version"].clone()
    };
    for promoted in [1, 2] {
        let promoted_text = promoted.to_string();
        assert_eq!(a.promote("m", promoted).status, 200);
        eventually("the late one follows", || (version() == promoted_text.as_str()).then_some(()));
    }
    let answer = late.admin_post("/api/v1/models/m:promote", &json!({"version": "1", "reason": "a test"}));
    assert_eq!(answer["to"], "1", "{answer}");
    wait_for_version(&[&a], "1");
    let history: Value = serde_json::from_str(&late.admin_get("/api/v1/models/m/history")).unwrap();
    let ts: jiff::Timestamp = history["history"][0]["ts"].as_str().unwrap().parse().unwrap();
    let behind = jiff::Timestamp::now().as_second() - ts.as_second();
    assert!((590..=700).contains(&behind), "its clock is {behind} s behind");
    assert!(late.admin_get("/readyz").contains("\"ready\":true"));
}
