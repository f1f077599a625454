//! Versions that a fleet's gateways get from its store, and where models are, with a real NATS server.

use super::fleet::{Nats, fleet, wait_for_version, warnings};
use super::support::process::Served;
use super::support::{Answer, Gateway, eventually, infer_body, onnx};
use async_nats::jetstream;
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::process::Command;
use std::sync::Barrier;
use std::time::{Duration, Instant};

/// Fast rounds: what failed is tried again within a second.
const SOURCES: &str = "[models.sources]\ninterval = \"300ms\"\n";

fn gateway(nats: &Nats, node: &str, more: &str) -> Gateway {
    Gateway::start_with(&format!("{}{more}{SOURCES}", nats.config(node)), |_| {})
}

fn again(nats: &Nats, node: &str, before: Gateway) -> Gateway {
    Gateway::start_in(before.stop(), &format!("{}{SOURCES}", nats.config(node)))
}

fn push(gateway: &Gateway, model: &str, version: u64, bytes: &[u8]) -> Answer {
    gateway.admin_put_bytes(&format!("/api/v1/models/{model}/versions/{version}"), bytes)
}

fn pushed(gateway: &Gateway, model: &str, version: u64, bytes: &[u8]) {
    let answer = push(gateway, model, version, bytes);
    assert_eq!(answer.status, 201, "{:?}", answer.json());
}

fn wait_ready(gateways: &[&Gateway], model: &str, version: u64) {
    for gateway in gateways {
        gateway.wait_state(model, version, "ready");
    }
}

fn serves(gateways: &[&Gateway], model: &str, version: u64) {
    for gateway in gateways {
        gateway.wait_state(model, version, "serving");
    }
}

fn version(gateway: &Gateway, model: &str, version: u64) -> Value {
    gateway.admin_get(&format!("/api/v1/models/{model}/versions/{version}")).json()
}

/// Waits until each gateway knows all of these.
fn wait_for(gateways: &[&Gateway], names: &[&str]) {
    for gateway in gateways {
        eventually(&format!("{names:?} are ready"), || {
            let answer = fleet(gateway);
            let nodes = answer["nodes"].as_array()?;
            let found: Vec<&str> = nodes.iter().filter_map(|node| node["name"].as_str()).collect();
            (found == names && nodes.iter().all(|node| node["state"] == "ready" || node["state"] == "starting"))
                .then_some(())
        });
    }
}

/// The archive of a version with a file of so many megabytes beside its model.
fn large_version(version: u64, megabytes: usize) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("model.onnx"), onnx::answering(version as f32, 4, 0)).unwrap();
    let bytes: Vec<u8> = (0..megabytes << 17).flat_map(|n| (n as u64 ^ (version << 40)).to_le_bytes()).collect();
    std::fs::write(dir.path().join("weights.bin"), bytes).unwrap();
    let tar = Command::new("tar").arg("-C").arg(dir.path()).args(["-c", "model.onnx", "weights.bin"]).output().unwrap();
    tar.stdout
}

fn push_large(gateway: &Gateway, version: u64, megabytes: usize) -> Answer {
    let url = format!("http://{}/api/v1/models/m/versions/{version}", gateway.admin());
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let mut answer = agent
        .put(&url)
        .header("content-type", "application/x-tar")
        .send(&large_version(version, megabytes)[..])
        .unwrap();
    let body = answer.body_mut().read_to_vec().unwrap();
    Answer { status: answer.status().as_u16(), headers: answer.headers().clone(), body }
}

/// Runs something with the fleet's objects.
fn with_nats<T>(nats: &Nats, work: impl AsyncFnOnce(jetstream::Context) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = async_nats::connect(format!("127.0.0.1:{}", nats.port())).await.unwrap();
        let done = work(jetstream::new(client.clone())).await;
        client.flush().await.unwrap();
        done
    })
}

/// The names and sizes of the objects, and the subjects that have chunks.
fn stored(nats: &Nats) -> (Vec<(String, usize)>, usize) {
    with_nats(nats, async |context| {
        let store = context.get_object_store("shop_models").await.unwrap();
        let mut list = store.list().await.unwrap();
        let mut objects = Vec::new();
        while let Some(object) = list.next().await {
            let object = object.unwrap();
            objects.push((object.name, object.size));
        }
        let stream = context.get_stream("OBJ_shop_models").await.unwrap();
        let chunks = stream.info_with_subjects("$O.shop_models.C.>").await.unwrap().count().await;
        (objects, chunks)
    })
}

#[test]
fn a_push_on_one_gateway_is_fetched_by_all_and_then_promoted_on_another() {
    let Some(nats) = Nats::start() else { return };
    let [a, b, c] = ["a", "b", "c"].map(|node| gateway(&nats, node, ""));
    wait_for(&[&a, &b, &c], &["a", "b", "c"]);
    pushed(&a, "m", 1, &onnx::answering(1.0, 4, 0));
    serves(&[&a, &b, &c], "m", 1);
    // The same bytes under another number are stored once.
    let bytes = onnx::answering(2.0, 4, 0);
    pushed(&b, "m", 2, &bytes);
    pushed(&c, "m", 3, &bytes);
    wait_ready(&[&a, &b, &c], "m", 2);
    wait_ready(&[&a, &b, &c], "m", 3);
    let (objects, chunks) = stored(&nats);
    let digest = format!("{:x}", Sha256::digest(&bytes));
    assert_eq!((objects.len(), chunks), (2, 2), "{objects:?}");
    assert!(objects.contains(&(digest, bytes.len())), "{objects:?}");
    // A push can be repeated with the same files, and with others it is refused, on every gateway.
    for gateway in [&a, &b, &c] {
        pushed(gateway, "m", 2, &bytes);
        let refused = push(gateway, "m", 2, &onnx::answering(7.0, 4, 0));
        assert_eq!((refused.status, refused.code()), (409, "CONFLICT".to_owned()), "{:?}", refused.json());
        assert!(refused.json()["error"].as_str().unwrap().contains("with other files"), "{:?}", refused.json());
    }
    let wrong = push(&a, "m", 9, b"no model");
    assert_eq!(wrong.status, 400, "it is checked as it is alone: {:?}", wrong.json());
    eventually("all report version 2, and it is promoted", || (c.promote("m", 2).status == 200).then_some(()));
    wait_for_version(&[&a, &b, &c], "2");
    let event = b.admin_get("/api/v1/audit?model=m&limit=20").json()["events"].clone();
    let of_push = |event: &&Value| event["action"] == "push";
    let versions: Vec<&Value> =
        event.as_array().unwrap().iter().filter(of_push).map(|event| &event["after"]["version"]).collect();
    assert_eq!(versions, [&json!("2")], "one event, on the gateway that was asked: {event}");
    assert_eq!(std::fs::read_dir(a.models()).unwrap().count(), 0, "nothing is left of the pushes");

    // Without NATS it starts from what it has.
    let mut nats = nats;
    nats.kill();
    let b = again(&nats, "b", b);
    b.wait_ready();
    wait_for_version(&[&b], "2");
    assert!(warnings(&b).contains("degraded"), "{}", warnings(&b));
    let refused = push(&b, "m", 4, &onnx::answering(4.0, 4, 0));
    assert_eq!(refused.status, 503, "{:?}", refused.json());
    assert!(
        refused.json()["error"].as_str().unwrap().contains("the fleet's store cannot be used"),
        "{:?}",
        refused.json()
    );
    nats.again();
    eventually("pushes are taken again", || {
        (push(&b, "m", 4, &onnx::answering(4.0, 4, 0)).status == 201).then_some(())
    });
    wait_ready(&[&a, &b, &c], "m", 4);
    // A gateway that joins later has everything before it is ready.
    let d = gateway(&nats, "d", "");
    d.wait_ready();
    assert!(d.state("m", 2).is_some(), "it was ready too early");
    serves(&[&d], "m", 2);
}

#[test]
fn two_pushes_of_one_version_at_once_and_of_the_next_free_number() {
    let Some(nats) = Nats::start() else { return };
    let [a, b] = ["a", "b"].map(|node| gateway(&nats, node, ""));
    wait_for(&[&a, &b], &["a", "b"]);
    for number in 1..=5 {
        let barrier = Barrier::new(2);
        let answers = std::thread::scope(|scope| {
            let one = |gateway, answer: f32| {
                let barrier = &barrier;
                scope.spawn(move || {
                    barrier.wait();
                    push(gateway, "m", number, &onnx::answering(answer, 4, 0))
                })
            };
            let (from_a, from_b) = (one(&a, 10.0 + number as f32), one(&b, 20.0 + number as f32));
            [from_a, from_b].map(|thread| thread.join().unwrap())
        });
        let mut statuses = answers.map(|answer| answer.status);
        statuses.sort_unstable();
        assert_eq!(statuses, [201, 409], "one wins");
        eventually("both have the same bytes", || {
            let digests = [&a, &b].map(|gateway| version(gateway, "m", number)["sha256"].as_str().map(str::to_owned));
            (digests[0].is_some() && digests[0] == digests[1]).then_some(())
        });
    }
    // No two get the same number.
    let numbers = std::thread::scope(|scope| {
        let one = |gateway: &Gateway, answer: f32| {
            let url = format!("http://{}/api/v1/models/m/versions", gateway.admin());
            scope.spawn(move || {
                let bytes = onnx::answering(answer, 4, 0);
                let sent = ureq::post(&url).header("content-type", "application/octet-stream").send(&bytes[..]);
                let text = sent.unwrap().body_mut().read_to_string().unwrap();
                serde_json::from_str::<Value>(&text).unwrap()["version"].as_str().unwrap().to_owned()
            })
        };
        let threads = [one(&a, 31.0), one(&b, 32.0), one(&a, 33.0), one(&b, 34.0)];
        threads.map(|thread| thread.join().unwrap())
    });
    let mut sorted: Vec<u64> = numbers.iter().map(|number| number.parse().unwrap()).collect();
    sorted.sort_unstable();
    assert_eq!(sorted, [6, 7, 8, 9]);
}

#[test]
fn an_object_whose_digest_lies_is_told_and_never_loaded() {
    let Some(nats) = Nats::start() else { return };
    let [a, b] = ["a", "b"].map(|node| gateway(&nats, node, ""));
    wait_for(&[&a, &b], &["a", "b"]);
    pushed(&a, "m", 1, &onnx::answering(1.0, 4, 0));
    serves(&[&a, &b], "m", 1);
    let digest = format!("{:x}", Sha256::digest(b"something else"));
    let bytes = onnx::answering(2.0, 4, 0);
    let file = json!({"path": "model.onnx", "sha256": digest, "bytes": bytes.len()});
    let manifest =
        |files: Value| json!({"schema": 1, "files": files, "actor": "eve", "node": "x", "ts": "now"}).to_string();
    with_nats(&nats, async |context| {
        let store = context.get_object_store("shop_models").await.unwrap();
        store.put(digest.as_str(), &mut &bytes[..]).await.unwrap();
        let versions = context.get_key_value("shop_versions").await.unwrap();
        versions.put("m.2", manifest(json!([file])).into()).await.unwrap();
        let outside = json!({"path": "../../x", "sha256": digest, "bytes": 1});
        versions.put("m.3", manifest(json!([outside])).into()).await.unwrap();
        versions.put("m.4", "{\"schema\": 2}".into()).await.unwrap();
        let absent = json!({"path": "model.onnx", "sha256": "0".repeat(64), "bytes": 1});
        versions.put("m.5", manifest(json!([absent])).into()).await.unwrap();
    });
    for gateway in [&a, &b] {
        let said = |number, words: &str| {
            eventually(&format!("version {number}: {words}"), || {
                version(gateway, "m", number)["reason"].as_str()?.contains(words).then_some(())
            });
        };
        said(2, &format!("expected {digest}"));
        said(3, "is refused");
        said(5, "the store has no object");
        let sources = gateway.admin_get("/api/v1/sources").json().to_string();
        assert!(sources.contains("m/4: it has the form 2"), "{sources}");
        assert_ne!(gateway.state("m", 2).as_deref(), Some("ready"));
        assert_ne!(gateway.post("/v2/models/m/versions/2/infer", infer_body(&[1, 4], &[0.0; 4])).status, 200);
    }
    eventually("the reason is known to the other gateway", || {
        let found = fleet(&a)["nodes"][1]["models"]["m"]["failed"]["2"].as_str()?.to_owned();
        found.contains("it cannot be fetched").then_some(())
    });
}

#[test]
fn nats_is_killed_in_the_middle_of_a_push_and_of_a_fetch() {
    const MEGABYTES: usize = 48;
    let Some(mut nats) = Nats::start() else { return };
    let [a, b] = ["a", "b"].map(|node| gateway(&nats, node, ""));
    wait_for(&[&a, &b], &["a", "b"]);
    pushed(&a, "m", 1, &onnx::answering(1.0, 4, 0));
    serves(&[&a, &b], "m", 1);
    let answer = std::thread::scope(|scope| {
        let pushing = scope.spawn(|| push_large(&a, 2, MEGABYTES));
        eventually("chunks arrive", || (stored(&nats).1 >= 2).then_some(()));
        nats.kill();
        pushing.join().unwrap()
    });
    assert_eq!((answer.status, answer.code()), (503, "NOT_READY".to_owned()), "{:?}", answer.json());
    wait_for_version(&[&a, &b], "1");
    nats.again();
    wait_for(&[&a, &b], &["a", "b"]);
    assert_eq!(a.state("m", 2), None, "nobody reads what is left of it");

    // The other gateway is cut off in the middle of the fetch, and goes on when NATS is back.
    let again = push_large(&a, 2, MEGABYTES);
    assert_eq!(again.status, 201, "{:?}", again.json());
    let before = Instant::now();
    eventually("b fetches it", || {
        let partial = b.data_dir().join("sources/partial");
        let sizes = std::fs::read_dir(partial).ok()?.flatten().filter_map(|entry| Some(entry.metadata().ok()?.len()));
        let here: u64 = sizes.sum();
        (here > 0 || b.state("m", 2).as_deref() == Some("ready") || before.elapsed() > Duration::from_secs(5))
            .then_some(())
    });
    nats.kill();
    wait_for_version(&[&b], "1");
    nats.again();
    wait_ready(&[&a, &b], "m", 2);
    eventually("it is promoted", || (b.promote("m", 2).status == 200).then_some(()));
    wait_for_version(&[&a, &b], "2");
}

#[test]
fn a_promote_needs_the_version_everywhere_or_a_quorum() {
    let Some(nats) = Nats::start() else { return };
    let [a, b] = ["a", "b"].map(|node| gateway(&nats, node, ""));
    // Its own file under the number 2 is broken: the models directory comes first.
    let c = Gateway::start_with(&format!("{}{SOURCES}", nats.config("c")), |models| {
        onnx::install(models, "m", 2, b"broken");
    });
    wait_for(&[&a, &b, &c], &["a", "b", "c"]);
    pushed(&a, "m", 1, &onnx::answering(1.0, 4, 0));
    serves(&[&a, &b, &c], "m", 1);
    pushed(&a, "m", 2, &onnx::answering(2.0, 4, 0));
    wait_ready(&[&a, &b], "m", 2);
    let promote = |quorum: Value| {
        let body = json!({"version": "2", "reason": "a test", "quorum": quorum});
        a.admin_send("POST", "/api/v1/models/m:promote", &[], &body)
    };
    eventually("a knows that it failed on c alone", || {
        let refused = promote(Value::Null);
        assert_eq!(refused.status, 409, "{:?}", refused.json());
        let error = refused.json()["error"].as_str()?.to_owned();
        (error.starts_with("not every gateway of the fleet can serve it: version 2 failed on c: ")).then_some(())
    });
    let refused = promote(json!(0.9));
    let error = refused.json()["error"].as_str().unwrap().to_owned();
    assert_eq!(refused.status, 409, "{error}");
    assert!(error.starts_with("2 of 3 gateways of the fleet can serve it, and the quorum is 0.9: "), "{error}");
    for wrong in [json!(0), json!(1.1), json!("most"), json!(-1)] {
        assert_eq!(promote(wrong.clone()).status, 400, "{wrong}");
    }
    assert_eq!(promote(json!(0.6)).status, 200);
    wait_for_version(&[&a, &b], "2");
    wait_for_version(&[&c], "1");
    eventually("c says so", || {
        warnings(&c).contains("documents of the fleet are not in force here yet: m").then_some(())
    });
}

#[test]
fn a_model_is_where_the_placement_says_and_others_say_where() {
    let Some(nats) = Nats::start() else { return };
    let rules = "placement = [{ models = [\"eu-*\"], labels = { region = \"eu\" } }, { models = [\"lost\"], labels = { region = \"mars\" } }]\n";
    let labelled = |node, region| gateway(&nats, node, &format!("labels = {{ region = \"{region}\" }}\n{rules}"));
    let (a, b, c) = (labelled("a", "us"), labelled("b", "eu"), labelled("c", "eu"));
    wait_for(&[&a, &b, &c], &["a", "b", "c"]);
    // Pushed where it is not to be.
    pushed(&a, "eu-m", 1, &onnx::answering(1.0, 4, 0));
    pushed(&b, "everywhere", 1, &onnx::answering(1.0, 4, 0));
    serves(&[&b, &c], "eu-m", 1);
    serves(&[&a, &b, &c], "everywhere", 1);
    eventually("a says where it is", || {
        let answer = a.post("/v2/models/eu-m/infer", infer_body(&[1, 4], &[0.0; 4]));
        assert_eq!((answer.status, answer.code()), (404, "MODEL_NOT_FOUND".to_owned()));
        let error = answer.json()["error"].as_str()?.to_owned();
        (error == "model eu-m is not on this gateway (a) by the fleet's placement: it is on b, c").then_some(())
    });
    assert_eq!(a.get("/v2/models/eu-m").status, 404);
    assert_eq!(
        a.post("/v2/models/nobody/infer", infer_body(&[1, 4], &[0.0; 4])).json()["error"],
        "no model is named \"nobody\""
    );
    let refused = a.promote("eu-m", 1);
    assert_eq!(refused.status, 404, "{:?}", refused.json());
    pushed(&a, "lost", 1, &onnx::answering(1.0, 4, 0));
    eventually("nobody has it", || {
        let answer = a.post("/v2/models/lost/infer", infer_body(&[1, 4], &[0.0; 4]));
        let error = answer.json()["error"].as_str()?.to_owned();
        (error
            == "model lost is not on this gateway (a) by the fleet's placement: no gateway with region=mars is there")
            .then_some(())
    });
    // The check of a promotion asks those that should have it, and no other.
    pushed(&c, "eu-m", 2, &onnx::answering(2.0, 4, 0));
    wait_ready(&[&b, &c], "eu-m", 2);
    eventually("it is promoted", || (b.promote("eu-m", 2).status == 200).then_some(()));
    serves(&[&b, &c], "eu-m", 2);
    assert_eq!(warnings(&a), "null", "a waits for nothing");
    let shown = fleet(&a);
    assert_eq!(shown["nodes"][1]["labels"], json!({"region": "eu"}), "{shown}");
    assert_eq!(a.state("eu-m", 1), None);
    // Other rules are told.
    let d = gateway(&nats, "d", "");
    wait_for(&[&a], &["a", "b", "c", "d"]);
    assert!(warnings(&a).contains("the gateway d has other rules"), "{}", warnings(&a));
    drop(d);
}

#[test]
fn replicas_are_taken_over_only_when_others_have_the_model() {
    let Some(nats) = Nats::start() else { return };
    let rules = "placement = [{ models = [\"*\"], replicas = 1 }]\n";
    let [a, b] = ["a", "b"].map(|node| gateway(&nats, node, rules));
    wait_for(&[&a, &b], &["a", "b"]);
    for number in 0..8 {
        pushed(&a, &format!("m{number}"), 1, &onnx::answering(number as f32, 4, 0));
    }
    let on = |gateway: &Gateway| -> Vec<u64> {
        (0..8).filter(|number| gateway.state(&format!("m{number}"), 1).as_deref() == Some("serving")).collect()
    };
    eventually("each model is on exactly one of them", || {
        let mut all = [on(&a), on(&b)].concat();
        all.sort_unstable();
        (all == (0..8).collect::<Vec<u64>>()).then_some(())
    });
    assert!(!on(&a).is_empty() && !on(&b).is_empty(), "{:?} and {:?}", on(&a), on(&b));
    let before = on(&a);
    // A restart moves nothing.
    let b = Gateway::start_in(b.stop(), &format!("{}{rules}{SOURCES}", nats.config("b")));
    b.wait_ready();
    wait_for(&[&a, &b], &["a", "b"]);
    assert_eq!(on(&a), before);
    // A third gateway takes some, and those that had them drop them when it can serve them.
    let c = gateway(&nats, "c", rules);
    wait_for(&[&a, &b, &c], &["a", "b", "c"]);
    eventually("each model is on exactly one of the three", || {
        let mut all = [on(&a), on(&b), on(&c)].concat();
        all.sort_unstable();
        (all == (0..8).collect::<Vec<u64>>()).then_some(())
    });
}

/// `make fleet-push`: how long a large version takes to be ready on three gateways, and how much memory that takes.
#[test]
fn a_large_push_to_three_gateways_is_measured() {
    let Some(megabytes) = std::env::var("SLUICEGATE_FLEET_PUSH_MB").ok().and_then(|text| text.parse::<usize>().ok())
    else {
        eprintln!("SLUICEGATE_FLEET_PUSH_MB is not set: nothing is measured");
        return;
    };
    let Some(nats) = Nats::start() else { return };
    let url = format!("nats://127.0.0.1:{}", nats.port());
    let gateways: Vec<(tempfile::TempDir, Served)> = ["a", "b", "c"]
        .into_iter()
        .map(|node| {
            let dir = tempfile::tempdir().unwrap();
            std::fs::create_dir(dir.path().join("models")).unwrap();
            let environment = [
                ("SLUICEGATE__FLEET__URLS", url.as_str()),
                ("SLUICEGATE__FLEET__NAME", "shop"),
                ("SLUICEGATE__FLEET__NODE", node),
            ];
            let served = Served::start_with(dir.path(), &environment);
            served.ready();
            (dir, served)
        })
        .collect();
    let peak = |pid: u32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap().trim().to_owned();
        line.trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
    };
    let memory = || {
        let pid = |served: &Served| served.server_pid().unwrap().as_raw_nonzero().get().unsigned_abs();
        let of_gateways: Vec<u64> = gateways.iter().map(|(_, served)| peak(pid(served))).collect();
        (of_gateways, peak(nats.process().as_raw_nonzero().get().unsigned_abs()))
    };
    let before = memory();
    let body = large_version(2, megabytes);
    let began = Instant::now();
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let push = format!("http://{}/api/v1/models/m/versions/2", gateways[0].1.admin);
    let answer = agent.put(&push).header("content-type", "application/x-tar").send(&body[..]).unwrap();
    assert_eq!(answer.status(), 201);
    println!("{megabytes} MB: pushed after {:.1} s", began.elapsed().as_secs_f64());
    let mut left: Vec<&Served> = gateways.iter().map(|(_, served)| served).collect();
    while !left.is_empty() {
        assert!(began.elapsed() < Duration::from_mins(5), "{} gateways are not ready", left.len());
        left.retain(|served| {
            let url = format!("http://{}/api/v1/models/m/versions/2", served.admin);
            let text = agent.get(&url).call().unwrap().body_mut().read_to_string().unwrap();
            let state = serde_json::from_str::<Value>(&text).unwrap()["state"].clone();
            !(state == "ready" || state == "serving")
        });
        std::thread::park_timeout(Duration::from_millis(20));
    }
    println!("{megabytes} MB: ready on three gateways after {:.1} s", began.elapsed().as_secs_f64());
    println!("peak memory in MiB, gateways and NATS: before {before:?}, after {:?}", memory());
}
