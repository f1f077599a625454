//! What gateways share beside traffic documents, through a real NATS server: loads and unloads, retirements, reviews, tokens; and the way of a state
//! into a fleet and out of it.

use super::fleet::{Nats, install, put, split, wait_for_nodes, wait_for_version, warnings};
use super::support::process::binary;
use super::support::{Answer, Gateway, eventually, infer_body};
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Barrier;
use std::time::{Duration, Instant};

fn post(gateway: &Gateway, place: &str, body: &Value) -> Answer {
    gateway.admin_send("POST", place, &[], body)
}

/// By the holder of a token.
fn post_by(gateway: &Gateway, token: &str, place: &str, body: &Value) -> Answer {
    gateway.admin_send("POST", place, &[("authorization", &format!("Bearer {token}"))], body)
}

fn infer(gateway: &Gateway) -> Answer {
    gateway.post("/v2/models/m/infer", infer_body(&[1, 4], &[0.0; 4]))
}

fn make_token(gateway: &Gateway, name: &str, role: &str) -> String {
    let made = post(gateway, "/api/v1/tokens", &json!({"name": name, "role": role}));
    assert_eq!(made.status, 201, "{:?}", made.json());
    assert_eq!(made.json()["shared"], true);
    made.json()["token"].as_str().unwrap().to_owned()
}

/// Who the gateway takes the holder of a token for; `None` when it refuses the token.
fn knows(gateway: &Gateway, token: &str) -> Option<String> {
    let answer = gateway.admin_get_with("/api/v1/whoami", &[("authorization", &format!("Bearer {token}"))]);
    match answer.status {
        200 => Some(answer.json()["actor"].as_str().unwrap().to_owned()),
        401 => None,
        status => panic!("{status}: {:?}", answer.json()),
    }
}

fn last_event(gateway: &Gateway) -> Value {
    gateway.admin_get("/api/v1/audit?model=m&limit=1").json()["events"][0].clone()
}

fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(binary());
    command.args(arguments).env_remove("SLUICEGATE_TOKEN").env_remove("SLUICEGATE_ADMIN").output().unwrap()
}

#[track_caller]
fn printed(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The hash chain of a data directory, and everything that is stored beside it.
#[track_caller]
fn verify(dir: &Path) {
    let data = dir.join("data");
    printed(&run(&["audit", "--verify", "--data-dir", data.to_str().unwrap()]));
}

#[test]
fn unloads_loads_and_retirements_are_everywhere_also_after_a_restart() {
    let Some(nats) = Nats::start() else { return };
    let (a, b) = (nats.gateway("a", &[1, 2]), nats.gateway("b", &[1, 2]));
    wait_for_nodes(&a, &["a", "b"]);
    wait_for_version(&[&a, &b], "2");

    assert_eq!(post(&a, "/api/v1/models/m/versions/1:unload", &json!({})).status, 200);
    b.wait_state("m", 1, "unloaded");
    let followed = last_event(&b);
    assert_eq!(
        (&followed["action"], &followed["after"]["state"]),
        (&json!("follow"), &json!({"operator_unloaded": ["1"]}))
    );
    assert!(followed["reason"].as_str().unwrap().starts_with("unload on a, revision "), "{followed}");
    let directory = b.stop();
    let b = Gateway::start_in(directory, &nats.config("b"));
    b.wait_ready();
    assert_eq!(b.state("m", 1).as_deref(), Some("unloaded"));
    eventually("b follows again, and loads it for all", || {
        (post(&b, "/api/v1/models/m/versions/1:load", &json!({})).status == 200).then_some(())
    });
    a.wait_state("m", 1, "ready");

    // The whole model.
    assert_eq!(post(&a, "/v2/repository/models/m/unload", &json!({})).status, 200);
    eventually("b answers nothing", || (infer(&b).status == 503).then_some(()));
    eventually("b loads it again, for all", || {
        (post(&b, "/v2/repository/models/m/load", &json!({})).status == 200).then_some(())
    });
    eventually("a answers again", || (infer(&a).status == 200).then_some(()));
    wait_for_version(&[&a, &b], "2");

    let retired = eventually("b retires it", || {
        let answer = b.admin_send("DELETE", "/api/v1/models/m", &[], &json!({"reason": "replaced by n"}));
        (answer.status == 200).then(|| answer.json())
    });
    let refused = eventually("a answers nothing", || Some(infer(&a)).filter(|answer| answer.status == 404));
    assert!(refused.json()["error"].as_str().unwrap().ends_with(": replaced by n"), "{:?}", refused.json());
    a.wait_state("m", 2, "unloaded");
    let history = a.admin_get("/api/v1/models/m/history").json()["history"][0].clone();
    assert_eq!((&history["action"], &history["actor"]), (&json!("retire"), &retired["retired"]["by"]), "{history}");
    let directory = a.stop();
    let a = Gateway::start_in(directory, &nats.config("a"));
    a.wait_ready();
    assert_eq!(infer(&a).status, 404);
    wait_for_nodes(&a, &["a", "b"]);
    eventually("a promotes a version, which brings it back", || (a.promote("m", 1).status == 200).then_some(()));
    wait_for_version(&[&a, &b], "1");

    // b had no part in it, and undoes it all the same.
    let back = eventually("b follows, and goes back", || {
        let answer = post(&b, "/api/v1/models/m:rollback", &json!({"reason": "a test"}));
        (answer.status == 200).then(|| answer.json())
    });
    assert_eq!(back["to"], "2", "{back}");
    wait_for_version(&[&a, &b], "2");
    for gateway in [a, b] {
        verify(gateway.stop().path());
    }
}

#[test]
fn a_person_approves_files_once_for_the_fleet_and_not_those_they_asked_for_on_another_gateway() {
    let Some(nats) = Nats::start() else { return };
    let start = |node: &str| {
        Gateway::start_with(&nats.config(node), |models| {
            for version in [1, 2] {
                install(models, version);
            }
            std::fs::write(models.join("m/model.toml"), "[approval]\nrequired = true\n").unwrap();
        })
    };
    let (a, b) = (start("a"), start("b"));
    let (anna, ben) = (make_token(&a, "anna", "admin"), make_token(&a, "ben", "approver"));
    let approve = |gateway: &Gateway, token: &str, version: u64| {
        let place = format!("/api/v1/models/m/versions/{version}:approve");
        post_by(gateway, token, &place, &json!({"reason": "looked at it"}))
    };
    let promote = |gateway: &Gateway, version: u64| {
        post_by(
            gateway,
            &anna,
            "/api/v1/models/m:promote",
            &json!({"version": version.to_string(), "reason": "better"}),
        )
    };
    eventually("ben can approve", || (approve(&a, &ben, 1).status == 200).then_some(()));
    eventually("anna gives it traffic", || (promote(&a, 1).status == 200).then_some(()));
    wait_for_version(&[&a, &b], "1");

    let refused = promote(&a, 2);
    assert_eq!(refused.status, 409, "{:?}", refused.json());
    assert!(refused.json()["error"].as_str().unwrap().contains("needs an approval"), "{:?}", refused.json());
    // She asked on a, and b knows it.
    let own = approve(&b, &anna, 2);
    assert_eq!((own.status, own.code()), (403, "FORBIDDEN".to_owned()), "{:?}", own.json());
    eventually("ben approves on b", || (approve(&b, &ben, 2).status == 200).then_some(()));
    eventually("anna promotes on a", || (promote(&a, 2).status == 200).then_some(()));
    wait_for_version(&[&a, &b], "2");
    for gateway in [&a, &b] {
        let approval = gateway.admin_get("/api/v1/models/m/versions/2/approval").json();
        assert_eq!((&approval["status"], &approval["review"]["by"]), (&json!("approved"), &json!("ben")), "{approval}");
        assert_eq!(approval["proposers"], json!(["anna"]), "{approval}");
    }
    let (a, b) = (a.stop(), b.stop());
    for path in [a.path(), b.path()] {
        verify(path);
    }
}

#[test]
fn of_two_changes_of_one_model_at_once_one_is_refused_whatever_they_change() {
    let Some(nats) = Nats::start() else { return };
    let (a, b) = (nats.gateway("a", &[1, 2, 3]), nats.gateway("b", &[1, 2, 3]));
    wait_for_nodes(&a, &["a", "b"]);
    eventually("a sends requests to 1 and 2", || (put(&a, 50).status == 200).then_some(()));
    let (mut done, mut refused) = (0, 0);
    for round in 0..100 {
        let barrier = Barrier::new(2);
        let answers = std::thread::scope(|scope| {
            let traffic = scope.spawn(|| {
                barrier.wait();
                put(&a, 1 + round % 90)
            });
            let unload = scope.spawn(|| {
                barrier.wait();
                let verb = if round % 2 == 0 { "unload" } else { "load" };
                post(&b, &format!("/api/v1/models/m/versions/3:{verb}"), &json!({}))
            });
            [traffic.join().unwrap(), unload.join().unwrap()]
        });
        for answer in answers {
            match answer.status {
                200 => done += 1,
                409 => refused += 1,
                status => panic!("{status}: {:?}", answer.json()),
            }
        }
        eventually("both have the same", || {
            (split(&a) == split(&b) && a.state("m", 3) == b.state("m", 3)).then_some(())
        });
        if done > 10 && refused > 0 {
            break;
        }
    }
    assert!(done > 10 && refused > 0, "{done} done, {refused} refused");
}

#[test]
fn a_token_is_valid_on_all_gateways_and_revoked_on_all_within_a_second() {
    let Some(mut nats) = Nats::start() else { return };
    let (a, b) = (nats.gateway("a", &[1]), nats.gateway("b", &[1]));
    wait_for_nodes(&a, &["a", "b"]);
    let ci = make_token(&a, "ci@shop+1", "operator");
    assert_eq!(knows(&a, &ci).as_deref(), Some("ci@shop+1"), "at once where it was made");
    eventually("b knows it", || knows(&b, &ci));
    let again = post(&b, "/api/v1/tokens", &json!({"name": "ci@shop+1", "role": "admin"}));
    assert_eq!((again.status, again.code()), (409, "CONFLICT".to_owned()));

    let began = Instant::now();
    assert_eq!(b.admin_send("DELETE", "/api/v1/tokens/ci@shop+1", &[], &json!({})).status, 200);
    eventually("a refuses it", || knows(&a, &ci).is_none().then_some(()));
    assert!(began.elapsed() < Duration::from_secs(1), "it took {:?}", began.elapsed());
    let events = a.admin_get("/api/v1/audit?limit=10").json()["events"].clone();
    let revoked = events.as_array().unwrap().iter().find(|event| event["action"] == "token_revoke").unwrap().clone();
    assert_eq!(revoked["reason"], "revoked on b", "{revoked}");
    assert_eq!(b.admin_send("DELETE", "/api/v1/tokens/ci@shop+1", &[], &json!({})).status, 404);

    // Cut off, a gateway keeps what it has and changes nothing. What was revoked meanwhile is so when it is back.
    let (kept, name) = (make_token(&b, "kept", "viewer"), make_token(&b, "ci@shop+1", "viewer"));
    eventually("a knows both", || knows(&a, &kept).and(knows(&a, &name)));
    let directory = a.stop();
    assert_eq!(b.admin_send("DELETE", "/api/v1/tokens/kept", &[], &json!({})).status, 200);
    nats.kill();
    eventually("b is cut off", || warnings(&b).contains("degraded").then_some(()));
    let refused = post(&b, "/api/v1/tokens", &json!({"name": "other", "role": "viewer"}));
    assert_eq!((refused.status, refused.code()), (503, "NOT_READY".to_owned()), "{:?}", refused.json());
    let a = Gateway::start_in(directory, &nats.config("a"));
    a.wait_ready();
    assert_eq!((knows(&a, &kept).as_deref(), knows(&a, &name).as_deref()), (Some("kept"), Some("ci@shop+1")));
    nats.again();
    eventually("a refuses what was revoked", || knows(&a, &kept).is_none().then_some(()));
    assert_eq!(knows(&a, &name).as_deref(), Some("ci@shop+1"));
    for gateway in [a, b] {
        verify(gateway.stop().path());
    }
}

#[test]
fn one_gateway_begins_a_fleet_and_a_single_gateway_takes_its_state_over() {
    let Some(nats) = Nats::start() else { return };
    // Alone: with a split, a version that is unloaded, and a token.
    let alone = Gateway::start(|models| [1, 2, 3].iter().for_each(|v| install(models, *v)));
    assert_eq!(put(&alone, 30).status, 200);
    assert_eq!(post(&alone, "/api/v1/models/m/versions/3:unload", &json!({})).status, 200);
    let made = post(&alone, "/api/v1/tokens", &json!({"name": "ci", "role": "operator"})).json();
    assert_eq!(made["shared"], false);
    let ci = made["token"].as_str().unwrap().to_owned();
    let split_before = split(&alone);
    let directory = alone.stop();

    let config = directory.path().join("fleet.toml");
    std::fs::write(&config, nats.config("a")).unwrap();
    let data = directory.path().join("data");
    let seed = |data: &Path| {
        let (config, data) = (config.to_str().unwrap(), data.to_str().unwrap());
        run(&["fleet", "join", "--seed", "--config", config, "--data-dir", data])
    };
    assert!(printed(&seed(&data)).starts_with("the fleet shop has 1 model and 1 token of "));
    let again = seed(&data);
    let words = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(!again.status.success() && words.contains("the fleet shop has a state already"), "{words}");

    // Another gateway takes everything over, before the first one is back.
    let b = nats.gateway("b", &[1, 2, 3]);
    eventually("b has the split", || (split(&b) == split_before).then_some(()));
    b.wait_state("m", 3, "unloaded");
    eventually("b knows the token", || knows(&b, &ci));
    let a = Gateway::start_in(directory, &nats.config("a"));
    wait_for_nodes(&a, &["a", "b"]);
    assert_eq!((split(&a), knows(&a, &ci).as_deref()), (split_before.clone(), Some("ci")));

    eventually("its token is the fleet's", || {
        let tokens = a.admin_get("/api/v1/tokens").json();
        (tokens["tokens"][0]["shared"] == true).then_some(())
    });

    // Out again, into a gateway that never was in the fleet.
    let file = a.dir.path().join("shop.json");
    let admin = format!("http://{}", a.admin());
    printed(&run(&["--admin", &admin, "fleet", "export-state", file.to_str().unwrap()]));
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.contains("\"fleet\":\"shop\"") && !text.contains("tokens"), "{text}");
    printed(&run(&["--admin", &admin, "fleet", "export-state", "--tokens", file.to_str().unwrap()]));
    let new = tempfile::TempDir::new().unwrap();
    let models = new.path().join("models");
    std::fs::create_dir(&models).unwrap();
    for version in [1, 2, 3] {
        install(&models, version);
    }
    let data = new.path().join("data");
    let import =
        |data: &Path| run(&["fleet", "import-state", file.to_str().unwrap(), "--data-dir", data.to_str().unwrap()]);
    let nowhere = String::from_utf8_lossy(&import(&data).stderr).into_owned();
    assert!(nowhere.contains("there is no data directory") && !data.exists(), "{nowhere}");
    std::fs::create_dir(&data).unwrap();
    assert!(printed(&import(&data)).starts_with("1 model of the fleet shop: 1 changed here, and 1 token;"));
    assert!(
        printed(&import(&data)).starts_with("1 model of the fleet shop: 0 changed here, and 0 tokens"),
        "twice is once"
    );
    let single = Gateway::start_in(new, "");
    single.wait_ready();
    assert_eq!((split(&single), knows(&single, &ci).as_deref()), (split_before, Some("ci")));
    single.wait_state("m", 3, "unloaded");
    let events = single.admin_get("/api/v1/audit?model=m").json();
    assert_eq!(events["events"].as_array().unwrap().last().unwrap()["action"], "import_state", "{events}");
    for user in 0..20 {
        let ask = |gateway: &Gateway| {
            let id = format!("user-{user}");
            let answer =
                gateway.post_with("/v2/models/m/infer", &[("x-request-id", &id)], infer_body(&[1, 4], &[0.0; 4]));
            answer.header("x-sluicegate-version").map(str::to_owned)
        };
        assert!(ask(&single).is_some());
        assert_eq!(ask(&single), ask(&a), "the same request gets the same version");
    }
    let in_use = import(&single.dir.path().join("data"));
    assert!(String::from_utf8_lossy(&in_use.stderr).contains("stop it first"), "a running server is left alone");

    // Nothing is changed by what is no state.
    std::fs::write(
        &file,
        r#"{"schema": 1, "fleet": "f", "node": "a", "at": "", "models": {"m": {"document": {"split": 1}}}}"#,
    )
    .unwrap();
    let wrong = String::from_utf8_lossy(&import(&data).stderr).into_owned();
    assert!(wrong.contains("is not the state of a fleet: m: "), "{wrong}");
    drop(single);
    for gateway in [a, b] {
        verify(gateway.stop().path());
    }
}
