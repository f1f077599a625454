//! The alert `slower`: a version that takes longer than on its first day.

use crate::support::process::Served;
use crate::support::receiver::{Receiver, Reply};
use crate::support::{eventually, onnx};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::Path;

/// A point of the history, in seconds.
const SPAN: i64 = 300;
const HOUR: i64 = 3600;

/// Writes what a server keeps of the figures of an arm: a point each five minutes, from so many hours ago to so many hours ago. Of the first `usual` hours with
/// 1 ms, of the others with 2 ms, in the engine as long as ever.
fn history(dir: &Path, model: &str, from: i64, to: i64, usual: i64) {
    let now = jiff::Timestamp::now().as_second();
    let mut lines = String::new();
    let mut ts = now - from * HOUR;
    while ts < now - to * HOUR {
        // Latencies go up and down a little.
        let noise = ts / SPAN % 7;
        let p50 = if ts < now - (from - usual) * HOUR { 1000 } else { 2000 } + noise;
        writeln!(lines, "{model},1,stable,{ts},{SPAN},500,0,{p50},{},40000", p50 * 3).unwrap();
        ts += SPAN;
    }
    std::fs::create_dir_all(dir.join("data/history")).unwrap();
    let day = now - now % 86_400;
    let path = dir.join(format!("data/history/coarse-{day}.csv"));
    let before = std::fs::read_to_string(&path).unwrap_or_default();
    std::fs::write(path, before + &lines).unwrap();
}

fn limit(dir: &Path, model: &str, limit: f64) {
    std::fs::write(dir.join(format!("models/{model}/model.toml")), format!("[first_day]\nlimit = {limit}\n")).unwrap();
}

#[test]
fn a_version_that_is_slower_than_on_its_first_day_is_told_and_so_is_its_end() {
    let receiver = Receiver::start(Reply::Status(204));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    let text = format!(
        "[alerts]\ncheck_interval = \"100ms\"\nend_after = \"300ms\"\noff = [\"disk_full\", \"memory_full\"]\n\
         [[alerts.targets]]\nname = \"ops\"\nkind = \"webhook\"\nurl = \"{}\"\n",
        receiver.url("/hook")
    );
    std::fs::create_dir_all(path.join("config")).unwrap();
    std::fs::write(path.join("config/sluicegate.toml"), text).unwrap();
    for model in ["slow", "steady", "allowed", "young"] {
        onnx::install(&path.join("models"), model, 1, &onnx::scaling(2.0));
    }
    history(path, "slow", 60, 0, 30);
    history(path, "steady", 60, 0, 60);
    history(path, "allowed", 60, 0, 30);
    limit(path, "allowed", 3.0);
    history(path, "young", 20, 0, 10);

    // First days are learned each minute, and at the stop.
    Served::start(path).stop();
    let mut served = Served::start(path);
    eventually("the alert is told", || (receiver.alerts() == ["+slower slow/1"]).then_some(()));
    let told = receiver.got()[0].json()["alerts"][0].clone();
    let summary = told["summary"].as_str().unwrap();
    assert!(summary.starts_with("version 1 of slow is slower than on its first day ("), "{told}");
    assert!(
        summary.contains("the median latency was 1003 µs on its first day and is 2003 µs in the last 24 hours"),
        "{told}"
    );
    assert!(!summary.contains("the engine"), "{told}");
    assert!(told["what_to_do"].as_str().unwrap().starts_with("its time in the engine is as it was"), "{told}");
    let figures: Value = serde_json::from_str(&served.admin_get("/api/v1/models/slow/figures")).unwrap();
    let measures = figures["first_days"][0]["measures"].as_array().unwrap();
    let slower: Vec<_> = measures.iter().map(|m| (m["measure"].as_str().unwrap(), m["slower"] == true)).collect();
    assert_eq!(slower, [("p50_us", true), ("p99_us", true), ("engine_us_per_row", false)], "{figures}");
    let young: Value = serde_json::from_str(&served.admin_get("/api/v1/models/young/figures")).unwrap();
    assert_eq!(young["first_days"], json!([]), "its first day is not over");
    served.stop();

    // The first day is kept although its points are gone, and the model now says that twice as slow is no matter.
    for file in std::fs::read_dir(path.join("data/history")).unwrap() {
        let file = file.unwrap().path();
        if file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("coarse-")) {
            std::fs::remove_file(file).unwrap();
        }
    }
    history(path, "slow", 24, 0, 0);
    limit(path, "slow", 2.5);
    let mut served = Served::start(path);
    eventually("the alert ends", || (receiver.alerts() == ["+slower slow/1", "-slower slow/1"]).then_some(()));
    let figures: Value = serde_json::from_str(&served.admin_get("/api/v1/models/slow/figures")).unwrap();
    let measure = &figures["first_days"][0]["measures"][0];
    assert_eq!(
        (&measure["first_day"], &measure["now"], &measure["slower"]),
        (&json!(1003.0), &json!(2003.0), &json!(false))
    );
    served.stop();
}
