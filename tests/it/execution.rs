//! Where and how runs happen, as callers and operators see them.

use crate::support::{Gateway, eventually, infer_body, onnx};
use serde_json::Value;

fn shown(gateway: &Gateway, model: &str) -> Value {
    let answer = gateway.admin_get(&format!("/api/v1/models/{model}/execution"));
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

#[test]
fn only_versions_whose_rows_do_not_interact_are_batched() {
    let gateway = Gateway::start(|models| {
        onnx::install(models, "apart", 1, &onnx::scaling(2.0));
        onnx::install(models, "together", 1, &onnx::softmax_over_rows());
        onnx::install(models, "alike", 1, &onnx::scaling(0.0));
        onnx::install(models, "off", 1, &onnx::scaling(2.0));
        std::fs::write(models.join("off/model.toml"), "[batching]\nenabled = false\n").unwrap();
        onnx::install(models, "pinned", 1, &onnx::scaling(0.0));
        std::fs::write(models.join("pinned/model.toml"), "[batching]\nenabled = true\nmax_rows = 7\n").unwrap();
        onnx::install(models, "stubborn", 1, &onnx::softmax_over_rows());
        std::fs::write(models.join("stubborn/model.toml"), "[batching]\nenabled = true\n").unwrap();
    });
    for (model, enabled, why) in [
        ("apart", true, "gave the same results together as alone"),
        ("together", false, "operator Softmax: it computes across rows"),
        ("alike", false, "every test row gave the same result"),
        ("off", false, "disabled in model.toml"),
        ("pinned", true, "enabled in model.toml, but not confirmed by a test"),
        ("stubborn", true, "enabled in model.toml, although operator Softmax"),
    ] {
        let version = &shown(&gateway, model)["versions"][0];
        assert_eq!(version["batching"]["enabled"], enabled, "{model}: {version}");
        assert!(version["batching"]["why"].as_str().unwrap().contains(why), "{model}: {version}");
        assert!(version["cost"][0]["us"].as_f64().unwrap() > 0.0, "the warm-up measures run times: {version}");
    }
    assert_eq!(shown(&gateway, "pinned")["versions"][0]["batching"]["max_rows"], 7);
    assert_eq!(gateway.admin_get("/api/v1/models/none/execution").status, 404);
}

/// The values of `y` in the answers to requests of one row each, sent at once as streams of one HTTP/2 connection.
async fn streams(address: std::net::SocketAddr, rows: Vec<[f32; 2]>) -> Vec<Vec<f64>> {
    use http_body_util::BodyExt;
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
    tokio::spawn(connection);
    let sent: Vec<_> = rows
        .iter()
        .map(|row| {
            let body = http_body_util::Full::new(bytes::Bytes::from(infer_body(&[1, 2], row)));
            let request = hyper::Request::post(format!("http://{address}/v2/models/s/infer")).body(body).unwrap();
            sender.send_request(request)
        })
        .collect();
    let mut answers = Vec::new();
    for answer in sent {
        let body = answer.await.unwrap().into_body().collect().await.unwrap().to_bytes();
        let json: Value = serde_json::from_slice(&body).unwrap();
        answers.push(serde_json::from_value(json["outputs"][0]["data"].clone()).unwrap());
    }
    answers
}

#[test]
fn requests_of_one_turn_run_together_over_the_wire_and_get_their_own_answers() {
    // Long enough that the first runs of a busy machine happen at once too.
    let config = "[execute]\ninline_below = \"5ms\"\n[server]\nio_threads = 1\n";
    let gateway = Gateway::start_with(config, |models| {
        onnx::install(models, "s", 1, &onnx::scaling(3.0));
        onnx::install(models, "off", 1, &onnx::scaling(3.0));
        std::fs::write(models.join("off/model.toml"), "[batching]\nenabled = false\n").unwrap();
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let gathered = |model: &str| shown(&gateway, model)["versions"][0]["runs"]["gathered_requests"].as_u64().unwrap();
    let mut from = 0_u16;
    eventually("streams of a connection run together", || {
        let rows: Vec<[f32; 2]> = (from..from + 40).map(|i| [f32::from(i), -1.0]).collect();
        from += 40;
        let answers = runtime.block_on(streams(gateway.data(), rows.clone()));
        for (row, answer) in rows.iter().zip(answers) {
            assert_eq!(answer, row.map(|x| 3.0 * f64::from(x)));
        }
        (gathered("s") > 1).then_some(())
    });
    let before = gathered("s");
    eventually("requests of several connections run together", || {
        std::thread::scope(|scope| {
            for thread in 0..8_u16 {
                let gateway = &gateway;
                scope.spawn(move || {
                    for i in 0..25_u16 {
                        let x = [f32::from(thread), f32::from(i)];
                        for model in ["s", "off"] {
                            let answer = gateway.post(&format!("/v2/models/{model}/infer"), infer_body(&[1, 2], &x));
                            assert_eq!(answer.status, 200, "{answer:?}");
                            assert_eq!(
                                answer.json()["outputs"][0]["data"],
                                serde_json::json!(x.map(|x| 3.0 * f64::from(x)))
                            );
                        }
                    }
                });
            }
        });
        (gathered("s") > before).then_some(())
    });
    assert_eq!(gathered("off"), 0, "without batching each request runs alone");
    assert!(
        String::from_utf8_lossy(&gateway.admin_get("/metrics").body)
            .contains("sluicegate_batch_rows_count{model=\"s\"")
    );
}

#[test]
fn requests_that_are_batched_under_load_get_their_own_answers() {
    // One worker and no inline runs: requests that arrive during a run are batched.
    let gateway = Gateway::start_with("[execute]\ninline_below = \"0s\"\nworkers = 1\n", |models| {
        onnx::install(models, "s", 1, &onnx::scaling(3.0));
    });
    std::thread::scope(|scope| {
        for thread in 0..8_u16 {
            let gateway = &gateway;
            scope.spawn(move || {
                for i in 0..50_u16 {
                    let x: Vec<f32> = (0..=i % 3).flat_map(|row| [f32::from(thread), f32::from(i * 4 + row)]).collect();
                    let answer = gateway.post("/v2/models/s/infer", infer_body(&[x.len() / 2, 2], &x));
                    assert_eq!(answer.status, 200, "{answer:?}");
                    let y: Vec<f64> = x.iter().map(|x| 3.0 * f64::from(*x)).collect();
                    assert_eq!(answer.json()["outputs"][0]["data"], serde_json::json!(y));
                }
            });
        }
    });
    let version = &shown(&gateway, "s")["versions"][0];
    let together: u64 =
        version["runs"]["together"].as_array().unwrap().iter().map(|t| t["runs"].as_u64().unwrap()).sum();
    let alone = version["runs"]["alone"].as_u64().unwrap();
    assert!(alone > 0 && together > 0 && version["cost"][0]["at_once"] == false, "{version}");
}

#[test]
fn a_large_request_is_split_across_idle_workers() {
    let gateway = Gateway::start_with("[execute]\ninline_below = \"0s\"\nworkers = 3\n", |models| {
        for (model, spread) in [("several", true), ("one", false)] {
            onnx::install(models, model, 1, &onnx::scaling(3.0));
            std::fs::write(models.join(model).join("model.toml"), format!("[execution]\nspread = {spread}\n")).unwrap();
        }
    });
    let x: Vec<f32> = (0..200_u16).map(f32::from).collect();
    let y: Vec<f64> = x.iter().map(|x| 3.0 * f64::from(*x)).collect();
    for (model, spread) in [("several", true), ("one", false)] {
        // Other processes may keep the workers busy, so repeat until at least two are idle.
        eventually(model, || {
            let answer = gateway.post(&format!("/v2/models/{model}/infer"), infer_body(&[100, 2], &x));
            assert_eq!(answer.status, 200, "{answer:?}");
            assert_eq!(answer.json()["outputs"][0]["data"], serde_json::json!(y));
            let version = &shown(&gateway, model)["versions"][0];
            assert_eq!(version["spread"], spread, "{version}");
            let runs = &version["runs"];
            assert!(spread || runs["spread"] == 0, "{version}");
            (!spread || runs["spread"].as_u64() > Some(0)).then_some(())
        });
    }
}

#[test]
fn model_toml_can_fix_where_runs_happen() {
    let gateway = Gateway::start(|models| {
        for (model, settings) in
            [("free", ""), ("here", "[execution]\nat_once = true\n"), ("there", "[execution]\nat_once = false\n")]
        {
            onnx::install(models, model, 1, &onnx::scaling(2.0));
            std::fs::write(models.join(model).join("model.toml"), settings).unwrap();
        }
    });
    for (model, pinned) in [("free", Value::Null), ("here", true.into()), ("there", false.into())] {
        let answer = gateway.post(&format!("/v2/models/{model}/infer"), infer_body(&[1, 2], &[1.0, 2.0]));
        assert_eq!(answer.status, 200, "{answer:?}");
        let version = &shown(&gateway, model)["versions"][0];
        assert_eq!(version["at_once"], pinned, "{version}");
        assert_eq!(
            version["cost"][0]["at_once"],
            pinned != false,
            "without the setting, a run of microseconds is inline: {version}"
        );
    }
    // Only runs on workers are counted by their rows.
    let metrics = String::from_utf8(gateway.admin_get("/metrics").body).unwrap();
    let counted =
        |model: &str| metrics.contains(&format!("sluicegate_batch_rows_count{{model=\"{model}\",version=\"1\"}}"));
    assert_eq!([counted("free"), counted("here"), counted("there")], [false, false, true], "{metrics}");
}
