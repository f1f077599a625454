//! Two gateways of one name: one of them follows.

use crate::fleet::{Nats, install, seen_from, wait_for_nodes, warnings};
use crate::support::{Gateway, eventually};
use serde_json::json;
use std::sync::Barrier;
use tempfile::TempDir;

const WORDS: &str = "the fleet has another gateway with the name a";

fn directory() -> TempDir {
    let dir = TempDir::new().unwrap();
    std::fs::create_dir(dir.path().join("models")).unwrap();
    install(&dir.path().join("models"), 1);
    dir
}

#[test]
fn two_gateways_of_one_name_that_join_at_once_one_follows() {
    let Some(nats) = Nats::start() else { return };
    let config = nats.config("a");
    let barrier = Barrier::new(2);
    let gateways = std::thread::scope(|scope| {
        let (barrier, config) = (&barrier, &config);
        let start = || {
            scope.spawn(move || {
                let dir = directory();
                barrier.wait();
                Gateway::start_in(dir, config)
            })
        };
        [start(), start()].map(|thread| thread.join().unwrap())
    });
    // Both may lose the name before one of them has it: each looks at the last report, which is that of one of them.
    eventually("one follows, and the other one is told", || {
        let told = gateways.iter().filter(|gateway| warnings(gateway).contains(WORDS)).count();
        let well = gateways.iter().filter(|gateway| warnings(gateway) == "null").count();
        (told == 1 && well == 1).then_some(())
    });
    let first = gateways.iter().find(|gateway| warnings(gateway) == "null").unwrap();
    first.wait_ready();
    wait_for_nodes(first, &["a"]);
    let changed =
        first.admin_send("PUT", "/api/v1/models/m/traffic", &[], &json!({"split": [{"version": "1", "weight": 2}]}));
    assert_eq!(changed.status, 200, "{:?}", changed.json());
}

#[test]
fn a_report_under_the_own_name_ends_the_session_of_a_gateway_that_follows() {
    let Some(nats) = Nats::start() else { return };
    let gateway = nats.gateway("a", &[1, 2]);
    wait_for_nodes(&gateway, &["a"]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = async_nats::connect(format!("nats://127.0.0.1:{}", nats.port)).await.unwrap();
        let nodes = async_nats::jetstream::new(client).get_key_value("shop_nodes").await.unwrap();
        let other = json!({"schema": 1, "id": "another", "program": "0", "ready": true, "since": "2026-11-28T00:00:00Z", "models": {}});
        nodes.put("a", other.to_string().into()).await.unwrap();
    });
    eventually("it is told", || warnings(&gateway).contains(WORDS).then_some(()));
    assert_eq!(seen_from(&gateway)[0].1, "degraded");
    let refused = gateway.promote("m", 1);
    assert_eq!((refused.status, refused.code()), (503, "NOT_READY".to_owned()), "{:?}", refused.json());
    // The other one says nothing more, so the name is free after five seconds.
    eventually("it follows again", || (warnings(&gateway) == "null").then_some(()));
}
