//! Sealed files are uploaded to a directory that gateways share, such as a network file system, with the promises of a bucket.

use crate::support::process::{Served, binary};
use crate::support::{copy, eventually, onnx};
use crate::upload::{ask, command, done, duckdb, fill, local, sealed, start, upload, wait_uploaded};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use tempfile::TempDir;

fn environment(share: &Path, node: &str, more: &[(&str, &str)]) -> Vec<(String, String)> {
    let to = format!("file://{}", share.display());
    let all = [
        ("SLUICEGATE__PREDICTION_LOG__UPLOAD", to.as_str()),
        ("SLUICEGATE__PREDICTION_LOG__UPLOAD_NODE", node),
        ("SLUICEGATE__PREDICTION_LOG__SEAL_AFTER", "200ms"),
        ("SLUICEGATE__SERVER__SHUTDOWN_GRACE", "10s"),
        ("SLUICEGATE__SERVER__SHUTDOWN_ANNOUNCE", "100ms"),
    ];
    all.iter().chain(more).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// The files of the directory, by their paths there.
fn shared(share: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut dirs = vec![share.to_owned()];
    while let Some(dir) = dirs.pop() {
        for path in std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                dirs.push(path);
            } else {
                let name = path.strip_prefix(share).unwrap().to_str().unwrap().to_owned();
                // One that was written when it was listed has another name now.
                files.extend(std::fs::read(&path).ok().map(|bytes| (name, bytes)));
            }
        }
    }
    files
}

/// Those of one gateway by the names of their files in the data directory.
fn uploaded(share: &Path, node: &str) -> BTreeMap<String, Vec<u8>> {
    let own = shared(share).into_iter().filter_map(|(name, bytes)| {
        let (stem, rest) = name.split_once('.')?;
        rest.starts_with(&format!("{node}.")).then(|| (format!("{stem}.parquet"), bytes))
    });
    own.collect()
}

#[test]
fn what_two_gateways_put_into_one_directory_is_read_from_there_and_a_person_is_forgotten() {
    let all = TempDir::new().unwrap();
    let (share, models) = (all.path().join("share"), all.path().join("models"));
    std::fs::create_dir(&share).unwrap();
    std::fs::create_dir_all(&models).unwrap();
    onnx::install(&models, "m", 1, &onnx::scaling(1.0));
    std::fs::write(models.join("m/model.toml"), "[prediction_log]\nhash_route_key = false\n").unwrap();
    let mut ids = Vec::new();
    for node in ["eu-1", "eu-2"] {
        let dir = all.path().join(node);
        copy(&models, &dir.join("models"));
        let mut served = start(&dir, &environment(&share, node, &[]));
        served.ready();
        served.wait_state("m", 1, "serving");
        let own = fill(&served, node);
        let report = wait_uploaded(&served, 2);
        assert_eq!(report["to"], format!("file://{}", share.display()), "{report}");
        ids.extend(own);
        ids.push(format!("{node}-6"));
        goes_away_and_comes_back(&served, &share, &format!("{node}-6"));
        served.stop();
        assert!(uploaded(&share, node) == local(&dir.join("data")), "the files are there under their names");
    }
    assert!(shared(&share).keys().all(|name| name.ends_with(".parquet")), "{:?}", shared(&share).keys());

    let log = format!("file://{}", share.display());
    let run = |line: &str| command(all.path(), &[], &line.split(' ').collect::<Vec<_>>());
    let bytes = |name: &str| std::fs::read(all.path().join(name)).unwrap();
    done(&run("export m -o files.parquet --data-dir share"));
    let from_log = done(&run(&format!("export m -o log.parquet --log {log}")));
    assert!(from_log.contains("14 rows, 12 of them with a label"), "{from_log}");
    assert!(bytes("files.parquet") == bytes("log.parquet"), "the export over the address is the one over the files");
    let replayed = done(&run(&format!("replay m --version 1 --log {log} --gate agreement>=1")));
    assert!(replayed.contains("replayed 14 requests"), "{replayed}");
    let none = String::from_utf8(run("export m -o none.parquet --log file:///no/such/directory").stderr).unwrap();
    assert!(none.contains("file:///no/such/directory") && none.contains("there is no such directory"), "{none}");
    for wrong in ["file://share", "file://./share"] {
        let said = String::from_utf8(run(&format!("export m -o none.parquet --log {wrong}")).stderr).unwrap();
        assert!(said.contains("\"file:///an/absolute/path\""), "{said}");
    }

    duckdb(&share, &ids);

    let dir = all.path().join("eu-1");
    let told =
        done(&command(&dir, &[], &["forget", "--route-key", "alice", "--reason", "a request", "--data-dir", "data"]));
    assert!(told.contains("in the bucket: removed 4 records of predictions and 4 of feedback"), "{told}");
    assert!(shared(&share).values().all(|bytes| !bytes.windows(5).any(|text| text == b"alice")));
    assert!(shared(&share).keys().all(|name| name.ends_with(".parquet")), "{:?}", shared(&share).keys());
    done(&run(&format!("export m -o left.csv --log {log}")));
    assert_eq!(String::from_utf8(bytes("left.csv")).unwrap().lines().count(), 11);
}

/// A file system that is not mounted leaves an empty directory or none behind: nothing is written there.
fn goes_away_and_comes_back(served: &Served, share: &Path, id: &str) {
    let away = share.with_extension("away");
    std::fs::rename(share, &away).unwrap();
    ask(served, id, "carol", 7.0);
    let report = eventually("it says why", || {
        let report = upload(served);
        report["last_error"].as_str()?.contains("there is no such directory").then_some(report)
    });
    assert!(report["waiting_files"].as_u64() >= Some(1) && report["failing_since"].is_string(), "{report}");
    assert!(!share.exists(), "it is not made");
    std::fs::rename(&away, share).unwrap();
    let report = wait_uploaded(served, 3);
    assert_eq!(report["last_error"], Value::Null, "{report}");
}

#[test]
fn a_kill_in_the_middle_of_a_file_goes_on_and_parts_that_are_gone_or_damaged_begin_again() {
    let all = TempDir::new().unwrap();
    let (dir, share) = (all.path().join("gateway"), all.path().join("share"));
    std::fs::create_dir_all(&share).unwrap();
    // The first part goes at once, the next one after two seconds.
    let slow = environment(&share, "eu-1", &[("SLUICEGATE__PREDICTION_LOG__UPLOAD_BYTES_PER_SECOND", "4MiB")]);
    let fast = environment(&share, "eu-1", &[("SLUICEGATE__PREDICTION_LOG__UPLOAD_BYTES_PER_SECOND", "0B")]);
    let parts = || -> Option<usize> {
        let begun: Value = serde_json::from_slice(&std::fs::read(dir.join("data/upload/begun.json")).ok()?).ok()?;
        Some(begun["parts"].as_array()?.len())
    };
    let of = |number: u64| {
        let name = format!("{number:020}-0");
        shared(&share).into_iter().filter(|(path, _)| path.contains(&name)).collect::<Vec<_>>()
    };
    for (number, damage) in [(7, "nothing"), (8, "gone"), (9, "other bytes")] {
        let file = sealed(&dir, number, 20 << 20);
        let mut served = start(&dir, &slow);
        eventually("a part is noted", || (parts()? == 1).then_some(()));
        served.kill();
        let begun = of(number);
        assert!(begun.len() == 1 && begun[0].0.ends_with(".unfinished"), "{:?}", begun[0].0);
        let unfinished = share.join(&begun[0].0);
        match damage {
            "gone" => std::fs::remove_file(&unfinished).unwrap(),
            "other bytes" => std::fs::write(&unfinished, vec![7; 8 << 20]).unwrap(),
            _ => {}
        }
        let mut served = start(&dir, &fast);
        eventually("the file is there", || of(number).first()?.0.ends_with(".parquet").then_some(()));
        let whole = of(number);
        assert!(whole.len() == 1 && whole[0].1 == std::fs::read(&file).unwrap(), "{damage}: the bytes of the file");
        // Kills leave small files of gaps.
        let report = wait_uploaded(&served, 1);
        let sent = report["bytes"].as_u64().unwrap() >> 20;
        let expected = match damage {
            "nothing" => 12..=12,
            "gone" => 20..=20,
            // What was missing, and then all of it again.
            _ => 32..=32,
        };
        assert!(expected.contains(&sent), "{damage}: {report}");
        served.kill();
    }
    // The notes are lost: what is there is read, and nothing is sent again.
    std::fs::remove_file(dir.join("data/upload/uploaded.jsonl")).unwrap();
    let before = shared(&share);
    let mut served = start(&dir, &fast);
    let report = wait_uploaded(&served, 3);
    assert!(report["bytes"].as_u64().unwrap() < 1 << 20, "{report}");
    assert!(before.iter().all(|(name, bytes)| shared(&share).get(name) == Some(bytes)));
    served.stop();
}

#[test]
fn a_directory_that_cannot_hold_records_is_refused_in_words() {
    let all = TempDir::new().unwrap();
    let dir = all.path();
    std::fs::create_dir_all(dir.join("models")).unwrap();
    std::fs::create_dir_all(dir.join("data/inside")).unwrap();
    std::fs::write(dir.join("file"), "x").unwrap();
    std::os::unix::fs::symlink(dir.join("data/inside"), dir.join("link")).unwrap();
    let at = |name: &str| format!("file://{}", dir.join(name).display());
    for (to, words) in [
        ("file://share".to_owned(), "\"file:///an/absolute/path\""),
        ("file:///mnt/../data".to_owned(), "\"file:///an/absolute/path\""),
        (at("data"), "it is in the data directory"),
        (at("data/inside"), "it is in the data directory"),
        (at("link"), "it is in the data directory"),
        (at("file"), "it is not a directory"),
        (at("nothing"), "there is no such directory"),
        // Nobody can make files there.
        ("file:///proc".to_owned(), "it cannot be written"),
    ] {
        let mut server = Command::new(binary())
            .args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"])
            .current_dir(dir)
            .env("SLUICEGATE__PREDICTION_LOG__UPLOAD", &to)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let ended = eventually("it ends", || server.try_wait().unwrap());
        let said = std::io::read_to_string(server.stderr.take().unwrap()).unwrap();
        assert!(!ended.success() && said.contains(words), "{to}: {said}");
        assert!(said.contains(&to), "{to}: {said}");
    }
}
