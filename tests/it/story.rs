//! docs/STORY.md: every command of it is run, in its order, against a running server. The test is the shop, its visitors, the trainer and the calendar.

use crate::browser::browser;
use crate::support::cdp::Browser;
use crate::support::eventually;
use crate::support::library::Clock;
use crate::support::onnx;
use crate::support::process::{Served, binary, onnxruntime};
use crate::support::receiver::{Receiver, Reply};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// The lines of the document's `sh` blocks, block by block.
fn blocks() -> Vec<Vec<String>> {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/STORY.md")).unwrap();
    let blocks = text.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    blocks.map(|block| block.lines().map(str::to_owned).collect()).collect()
}

/// The indented block of the document that has this line.
fn settings(line: &str) -> String {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/STORY.md")).unwrap();
    let blocks = text.split("\n\n").filter(|block| block.lines().all(|line| line.starts_with("    ")));
    let block = blocks.map(|block| block.replace("\n    ", "\n").trim().to_owned()).find(|block| block.contains(line));
    block.unwrap_or_else(|| panic!("no block has {line:?}")) + "\n"
}

/// Whether a visitor likes an offer: what follows from price and novelty is right in 95 % of the cases. `sign` turns the taste around.
fn likes(rng: &mut fastrand::Rng, x: [f32; 2], sign: f32) -> bool {
    (sign * (x[1] - x[0]) > 0.0) == (rng.f32() < 0.95)
}

/// Probabilities that follow `weight` times novelty minus price.
fn model(weight: f32) -> Vec<u8> {
    onnx::two_classes([-weight, weight])
}

/// The trainer: a logistic regression on the exported set.
fn train(set: &Path) -> Vec<u8> {
    let mut reader = csv::Reader::from_path(set).unwrap();
    let headers = reader.headers().unwrap().clone();
    let column = |name: &str| headers.iter().position(|header| header == name).unwrap_or_else(|| panic!("{headers:?}"));
    let (x, label) = (column("inputs.x"), column("label_num"));
    let rows: Vec<([f32; 2], f32)> = reader
        .records()
        .map(|row| {
            let row = row.unwrap();
            let x: Vec<f32> = serde_json::from_str(&row[x]).unwrap();
            ([x[0], x[1]], row[label].parse().unwrap())
        })
        .collect();
    assert!(rows.len() >= 500, "{} labelled rows", rows.len());
    let mut weights = [0.0_f32; 2];
    for _ in 0..200 {
        let mut gradient = [0.0_f32; 2];
        for (x, label) in &rows {
            let score = weights[0] * x[0] + weights[1] * x[1];
            let error = label - 1.0 / (1.0 + (-score).exp());
            gradient[0] += error * x[0];
            gradient[1] += error * x[1];
        }
        weights = [0, 1].map(|i| weights[i] + 4.0 * gradient[i] / rows.len() as f32);
    }
    onnx::two_classes(weights)
}

struct Shop {
    served: Served,
    browser: Option<Browser>,
    rng: fastrand::Rng,
    visits: u64,
    /// By how much the offers have become dearer.
    dearer: f32,
}

impl Shop {
    /// Visitors come, each once, and the shop tells what became of the offers.
    fn visits(&mut self, count: u64, sign: f32) {
        let mut feedback = Vec::new();
        for _ in 0..count {
            self.visits += 1;
            let (id, user) = (format!("v{}", self.visits), format!("u{}", self.visits));
            let x = [self.rng.f32() + self.dearer, self.rng.f32()];
            let body = json!({"id": id, "inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": x}]});
            let url = format!("http://{}/v2/models/shop/infer", self.served.data);
            let answer = ureq::post(&url).header("x-user-id", &user).send(body.to_string());
            let text = answer.unwrap().body_mut().read_to_string().unwrap();
            let answer: Value = serde_json::from_str(&text).unwrap();
            let offers = answer["outputs"][0]["data"][1].as_f64().unwrap() > 0.5;
            let likes = likes(&mut self.rng, x, sign);
            let clicked = u8::from(offers == likes);
            feedback.push(json!({"request_id": id, "label": u8::from(likes), "values": {"clicked": clicked}}));
        }
        for part in feedback.chunks(200) {
            let url = format!("http://{}/v1/models/shop:feedback", self.served.data);
            let told = ureq::post(&url).send(json!({ "feedback": part }).to_string()).unwrap();
            assert_eq!(told.status(), 202);
        }
    }

    fn get(&self, path: &str) -> Value {
        serde_json::from_str(&self.served.admin_get(path)).unwrap()
    }

    /// Takes a picture of a whole page of the console, light and dark, where `SLUICEGATE_STORY_PICTURES` names a folder.
    fn picture(&mut self, name: &str, page: &str) {
        let Some(folder) = std::env::var_os("SLUICEGATE_STORY_PICTURES") else { return };
        if self.browser.is_none() {
            self.browser = browser().map(|program| Browser::start(&program));
        }
        let Some(browser) = &mut self.browser else { return };
        // README.md shows this one: it ends behind the versions.
        let highest = if name == "rollout" { 1490.0 } else { 10_000.0 };
        browser.pictures(&format!("http://{}{page}", self.served.admin), Path::new(&folder), name, highest);
    }

    /// Pictures of the ends of what a person began: a pause of the rollout, a silence.
    fn pictures_of_what_was_begun(&mut self) {
        if std::env::var_os("SLUICEGATE_STORY_PICTURES").is_none() {
            return;
        }
        let reason = json!({"reason": "a look at the figures"});
        self.served.admin_post("/api/v1/models/shop/rollout:pause", &reason);
        self.picture("resume", "/models/shop/resume");
        self.served.admin_post("/api/v1/models/shop/rollout:resume", &reason);
        let until = jiff::Timestamp::now().checked_add(jiff::SignedDuration::from_hours(24 * 30)).unwrap();
        let body = json!({"matcher": {"rule": "disk_full"}, "until": until.to_string(), "reason": "the disk is replaced on Monday"});
        let silence = self.served.admin_post("/api/v1/alerts/silences", &body);
        self.picture("end-silence", &format!("/alerts/silences/{}/end", silence["id"].as_str().unwrap()));
    }

    /// Runs the lines of a block. Returns what they printed.
    fn run(&self, dir: &Path, lines: &[String]) -> String {
        let program = binary();
        let program = Path::new(&program).parent().unwrap();
        let path = format!("{}:{}", program.display(), std::env::var("PATH").unwrap());
        let mut all = String::new();
        for line in lines {
            if line.starts_with("python train.py set.csv ") {
                let to = dir.join(line.rsplit(' ').next().unwrap());
                std::fs::create_dir_all(to.parent().unwrap()).unwrap();
                std::fs::write(to, train(&dir.join("set.csv"))).unwrap();
                continue;
            }
            let mut command = Command::new("sh");
            let command = command.args(["-c", line]).current_dir(dir).env("PATH", &path);
            // A profile of recorded rows is made beside the server.
            let command = command.env("SLUICEGATE__DATA__DIR", dir.join("data")).env("ORT_DYLIB_PATH", onnxruntime());
            let output = command.env("SLUICEGATE_ADMIN", format!("http://{}", self.served.admin)).output().unwrap();
            let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
            assert!(output.status.success(), "{line}: {said}");
            all += &said;
        }
        all
    }
}

#[test]
fn a_recommender_is_released_decays_drifts_and_is_trained_again_by_the_commands_of_the_story() {
    let receiver = Receiver::start(Reply::Status(204));
    let dir = tempfile::TempDir::new().unwrap();
    let path = dir.path();
    for folder in ["config", "models/shop", "v1"] {
        std::fs::create_dir_all(path.join(folder)).unwrap();
    }
    let target = settings("[[alerts.targets]]").replace("https://hooks.internal/sluicegate", &receiver.url("/hook"));
    let alerts =
        "[alerts]\ncheck_interval = \"100ms\"\nend_after = \"500ms\"\noff = [\"disk_full\", \"memory_full\"]\n";
    std::fs::write(path.join("config/sluicegate.toml"), format!("{alerts}{target}")).unwrap();
    std::fs::write(path.join("models/shop/model.toml"), settings("feature_names")).unwrap();
    std::fs::write(path.join("v1/version.toml"), settings("[lineage.metrics]")).unwrap();
    std::fs::write(path.join("v1/model.onnx"), model(8.0)).unwrap();
    let mut rng = fastrand::Rng::with_seed(7);
    let rows: Vec<String> = (0..2000).map(|_| format!("{},{}", rng.f32(), rng.f32())).collect();
    std::fs::write(path.join("train.csv"), format!("price,novelty\n{}\n", rows.join("\n"))).unwrap();
    let blocks = blocks();
    let [release, look, decayed, second, shadow, rollout, after, drifted, third] = &blocks[..] else {
        panic!("{blocks:?}")
    };

    let mut clock = Clock::new(path);
    let served = Served::start_with(path, &clock.environment());
    let mut shop = Shop { served, browser: None, rng, visits: 0, dearer: 0.0 };
    shop.served.ready();
    shop.run(path, release);
    shop.visits(300, 1.0);
    let quality = || shop.get("/api/v1/models/shop/quality");
    eventually("the labels count", || (quality()["arms"][0]["labelled"] == 300).then_some(()));
    let said = shop.run(path, look);
    assert!(said.contains("accuracy") && said.contains("no alerts"), "{said}");

    shop.visits(700, -1.0);
    let decays = |shop: &Shop| {
        let alerts = shop.get("/api/v1/alerts?state=firing");
        alerts["alerts"].as_array().unwrap().iter().any(|alert| alert["rule"] == "decay")
    };
    eventually("the decay is told", || decays(&shop).then_some(()));
    let retrain = eventually("the event retrain comes", || {
        let messages = receiver.got();
        messages.iter().map(|got| got.body.clone()).find(|body| body.contains("sluicegate export shop"))
    });
    assert!(retrain.contains("--require-label"), "{retrain}");
    shop.picture("alerts", "/alerts");
    shop.picture("silence", "/alerts/silence?rule=decay&model=shop");
    let said = shop.run(path, decayed);
    assert!(said.contains("worse than 0.9000 in training"), "{said}");

    let said = shop.run(path, second);
    assert!(said.contains("version 2 of shop is ready"), "{said}");
    let document = json!({"split": [{"version": "1", "weight": 1}], "sticky_by": {"header": "x-user-id"}, "shadows": [{"version": "2", "sample": 1}]});
    std::fs::write(path.join("shadow.json"), document.to_string()).unwrap();
    shop.run(path, shadow);
    shop.visits(50, -1.0);
    eventually("copies were compared", || {
        (shop.get("/api/v1/models/shop/shadows/2")["compared"].as_u64() > Some(0)).then_some(())
    });
    shop.picture("begin", "/models/shop/rollout?version=2");
    shop.run(path, rollout);
    shop.visits(40, -1.0);
    shop.picture("rollout", "/models/shop");
    shop.picture("promote", "/models/shop/promote?version=2");
    for (name, page) in [
        ("version", "/models/shop/versions/2"),
        ("rollback", "/models/shop/rollback?to_revision=1"),
        ("split", "/models/shop/split"),
        ("shadow", "/models/shop/shadow"),
        ("rule", "/models/shop/rule"),
        ("document", "/models/shop/document"),
        ("abort", "/models/shop/abort"),
        ("pause", "/models/shop/pause"),
        ("retire", "/models/shop/retire"),
        ("approve", "/models/shop/approve?version=2"),
        ("reject", "/models/shop/reject?version=2"),
        ("sign-in", "/sign-in"),
    ] {
        shop.picture(name, page);
    }
    let differs = shop.get("/api/v1/models/shop/requests?disagreed=true&limit=1")["requests"][0].clone();
    let id = differs["request_id"].as_str().unwrap_or_else(|| panic!("a shadow differs: {differs}"));
    shop.pictures_of_what_was_begun();
    shop.picture("requests", "/requests?model=shop");
    shop.picture("request", &format!("/requests/shop/{id}"));
    let mut tries = 0;
    while shop.get("/api/v1/models/shop/rollout")["state"] == "running" {
        tries += 1;
        assert!(tries < 100, "{}", shop.get("/api/v1/models/shop/rollout"));
        shop.visits(100, -1.0);
    }
    let ended = shop.get("/api/v1/models/shop/rollout");
    assert_eq!(ended["state"], "finished", "{ended}");
    if std::env::var_os("SLUICEGATE_STORY_PICTURES").is_some() {
        shop.visits(300, -1.0);
        eventually("the pictures have figures", || {
            let figures = shop.get("/api/v1/models/shop/figures");
            figures["series"]
                .as_array()
                .unwrap()
                .iter()
                .any(|one| one["latency"]["requests"].as_u64() >= Some(300))
                .then_some(())
        });
    }
    shop.picture("models", "/");
    shop.picture("model", "/models/shop");
    shop.picture("audit", "/audit");
    shop.picture("gateway", "/gateway");
    shop.picture("unload", "/models/shop/unload?version=1");
    shop.picture("load", "/models/shop/load?version=1");
    let said = shop.run(path, after);
    assert!(said.contains("clicked") && said.contains("rollout_finish"), "{said}");
    let traffic = shop.get("/api/v1/models/shop/traffic");
    assert_eq!(traffic["split"][0]["version"], "2", "{traffic}");
    eventually("the alert ends", || (!decays(&shop)).then_some(()));

    // Weeks later, at the beginning of an hour.
    let of_hour = u64::try_from(clock.now().as_second().rem_euclid(3600)).unwrap();
    clock.pass(Duration::from_secs(20 * 24 * 3600 + 3600 - of_hour));
    shop.dearer = 0.5;
    shop.visits(500, -1.0);
    let labelled = || shop.get("/api/v1/models/shop/quality?window=1h")["groups"][0]["labels"]["labelled"].clone();
    eventually("the labels count", || (labelled() == 500).then_some(()));
    let firing = |shop: &Shop| {
        let alerts = shop.get("/api/v1/alerts?state=firing")["alerts"].clone();
        alerts.as_array().unwrap().iter().map(|alert| alert["rule"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(firing(&shop), [""; 0], "the hour is not over");
    clock.pass(Duration::from_mins(62));
    eventually("the drift is told", || (firing(&shop) == ["drift"]).then_some(()));
    let retrain = || receiver.events().iter().filter(|event| *event == "retrain").count();
    eventually("the event retrain comes again", || (retrain() == 2).then_some(()));
    let said = shop.run(path, drifted);
    assert!(
        said.contains("price differs from the profile in the hour of 500 rows") && said.contains("ALARM"),
        "{said}"
    );
    let said = shop.run(path, third);
    assert!(said.contains("version 3 of shop is ready") && said.contains("accuracy>=champion-0.05"), "{said}");
    let traffic = shop.get("/api/v1/models/shop/traffic");
    assert_eq!(traffic["split"][0]["version"], "3", "{traffic}");
    eventually("the alert ends", || firing(&shop).is_empty().then_some(()));
    shop.served.stop();
}
