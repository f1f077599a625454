//! Full disks, stalled disks, torn files, kills, full queues, and the deletion of old files.

use super::*;
use std::sync::atomic::{AtomicBool, AtomicU32};

/// A disk that fails or stalls on request.
#[derive(Debug, Default, Clone)]
struct FaultyDisk(Arc<Faults>);

#[derive(Debug, Default)]
struct Faults {
    full: AtomicBool,
    stalled: Stall,
    sync_fails: AtomicBool,
    syncs: AtomicU32,
}

#[derive(Debug)]
struct FaultyFile(Box<dyn Appender>, Arc<Faults>);

impl Disk for FaultyDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn Appender>> {
        Ok(Box::new(FaultyFile(RealDisk.create(path)?, Arc::clone(&self.0))))
    }
}

impl Appender for FaultyFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.1.stalled.pass();
        if self.1.full.load(Ordering::Relaxed) {
            // A full disk may take a part.
            self.0.append(&bytes[..bytes.len() / 2])?;
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.0.append(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.1.syncs.fetch_add(1, Ordering::Relaxed);
        if self.1.sync_fails.load(Ordering::Relaxed) {
            return Err(io::Error::other("the disk failed"));
        }
        self.0.sync()
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        self.0.truncate(length)
    }
}

fn durable(config: &mut Config) {
    config.acknowledge = Acknowledge::Disk;
    config.flush_interval = Duration::from_millis(20);
}

#[test]
fn a_failing_disk_refuses_answers_recovers_by_itself_and_neither_loses_nor_doubles_records() {
    for failing in ["full", "sync"] {
        let disk = FaultyDisk::default();
        let faults = Arc::clone(&disk.0);
        let switch =
            |on: bool| if failing == "full" { &faults.full } else { &faults.sync_fails }.store(on, Ordering::Relaxed);
        let fixture = Fixture::new(durable, Box::new(disk.clone()));
        let about = simple();
        let stream = fixture.log.stream(&about, &Choice::default()).unwrap();
        let (request, answer) = rows(&about, 1);
        let offer = |id: &str| fixture.offer(&stream, &prediction(id, &request, Ok(&answer)));
        offer("before").unwrap();
        switch(true);
        for i in 0..3 {
            let failure = offer(&format!("during-{i}")).unwrap_err();
            assert_eq!(failure.code, Code::LogUnavailable);
        }
        let ticket = fixture.log.queue_feedback(&about.model, &Choice::default(), &[feedback_for("before")]).unwrap();
        assert_eq!(block_on(ticket.durable(soon())).unwrap_err().code, Code::LogUnavailable);
        assert!(fixture.log.status().failing_since.is_some());
        switch(false);
        eventually("it recovers by itself", || offer("after").is_ok());
        assert_eq!((fixture.log.status().failing_since, fixture.log.status().last_error), (None, None));
        let dropped: u64 =
            fixture.log.dropped().filter(|(reason, _)| *reason == DropReason::Disk).map(|(_, n)| n).sum();
        assert!(dropped >= 3, "{dropped}");
        let dir = fixture.stop();
        assert_eq!(ids(&predictions(dir.path())), ["before", "after"]);
        assert!(files(&dir.path().join("feedback")).is_empty(), "refused feedback is not stored");
        let gaps: Vec<RecordBatch> = files(&dir.path().join("gaps")).values().flat_map(|path| read(path)).collect();
        let missing: i64 = gaps.iter().flat_map(|b| b["records"].as_primitive::<Int64Type>().values().to_vec()).sum();
        assert_eq!(missing.unsigned_abs(), dropped, "{gaps:?}");
        assert_eq!(text(&gaps[0], "reason", 0).unwrap(), "disk");
    }
}

#[test]
fn with_on_failure_serve_predictions_are_answered_while_the_disk_fails() {
    let disk = FaultyDisk::default();
    disk.0.full.store(true, Ordering::Relaxed);
    let serve = |config: &mut Config| {
        durable(config);
        config.on_failure = OnFailure::Serve;
    };
    let fixture = Fixture::new(serve, Box::new(disk));
    let about = simple();
    let stream = fixture.log.stream(&about, &Choice::default()).unwrap();
    let (request, answer) = rows(&about, 2);
    fixture.offer(&stream, &prediction("a", &request, Ok(&answer))).unwrap();
    eventually("it is counted", || fixture.log.dropped().any(|(reason, n)| reason == DropReason::Disk && n == 2));
    fixture.stop();
}

#[test]
fn many_records_share_one_sync() {
    let disk = FaultyDisk::default();
    let syncs = Arc::clone(&disk.0);
    let fixture = Fixture::new(durable, Box::new(disk));
    let about = simple();
    let stream = fixture.log.stream(&about, &Choice::default()).unwrap();
    std::thread::scope(|scope| {
        for t in 0..8 {
            let (fixture, stream, about) = (&fixture, &stream, &about);
            scope.spawn(move || {
                let (request, answer) = rows(about, 1);
                let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
                runtime.block_on(async {
                    for i in 0..20 {
                        // Sixteen at once on one thread, as on an I/O thread.
                        let ids: Vec<String> = (0..16).map(|k| format!("{t}-{i}-{k}")).collect();
                        let tickets: Vec<Ticket> = ids
                            .iter()
                            .map(|id| {
                                fixture
                                    .log
                                    .offer(stream, &prediction(id, &request, Ok(&answer)), true)
                                    .unwrap()
                                    .unwrap()
                            })
                            .collect();
                        for ticket in tickets {
                            ticket.durable(soon()).await.unwrap();
                        }
                    }
                });
            });
        }
    });
    let syncs = syncs.syncs.load(Ordering::Relaxed);
    assert!(syncs <= 8 * 20 + 20, "{syncs} syncs for 2560 answers");
    let dir = fixture.stop();
    let mut found = ids(&predictions(dir.path()));
    found.sort();
    found.dedup();
    assert_eq!(found.len(), 2560);
}

#[test]
fn acknowledged_feedback_is_on_the_disk_and_in_the_live_figures() {
    let fixture = Fixture::new(|_| {}, Box::new(RealDisk));
    let about = simple();
    let stream = fixture.log.stream(&about, &Choice::default()).unwrap();
    let (request, answer) = rows(&about, 1);
    fixture.offer(&stream, &prediction("a", &request, Ok(&answer))).unwrap();
    let entries = [
        feedback_for("a"),
        Feedback { label: Some(Update::Set(Label::Text("x".to_owned()))), values: Vec::new(), ..feedback_for("b") },
        Feedback { label: Some(Update::Retract), values: vec![("v".to_owned(), Update::Retract)], ..feedback_for("c") },
        Feedback { label: None, ..feedback_for("d") },
    ];
    block_on(fixture.log.record_feedback(&about.model, &Choice::default(), &entries, soon())).unwrap();
    let of = fixture.quality.of(&about.model);
    assert_eq!((of.feedback, of.unmatched), (4, 3));
    let figures = &of.arms[&("3".parse().unwrap(), "control".to_owned())];
    assert_eq!((figures.labelled, figures.mean_absolute_error()), (1, Some(0.5)));
    let unsealed = unsealed(fixture.dir.path(), &about.model).unwrap();
    assert_eq!(ids(&unsealed.feedback), ["a", "b", "c", "d"]);
    assert_eq!(ids(&unsealed.predictions[0].1), ["a"]);
    let dir = fixture.stop();
    let sealed = files(&dir.path().join("feedback"));
    assert!(sealed.keys().next().unwrap().starts_with("model=m/date="), "{sealed:?}");
    let batch = &read(sealed.values().next().unwrap())[0];
    assert_eq!(batch.schema(), feedback_schema());
    assert_eq!((text(batch, "label_str", 0), text(batch, "label_str", 1)), (None, Some("x".to_owned())));
    let values = batch["values"].as_map();
    assert_eq!(values.value(0).column(0).as_string::<i32>().value(0), "v");
    let numbers = batch["label_num"].as_primitive::<Float64Type>();
    assert!(numbers.is_valid(2) && numbers.value(2).is_nan(), "a retracted label is stored as NaN");
    assert!(numbers.is_null(3), "an entry without a label says nothing about it");
    let value = |row: usize| values.value(row).column(1).as_primitive::<Float64Type>().value(0);
    assert!(value(2).is_nan(), "so is a retracted value");
    assert_eq!(value(3), 2.0);
}

#[test]
fn records_before_a_torn_end_are_kept_wherever_it_is_torn() {
    let fixture = Fixture::new(durable, Box::new(RealDisk));
    let about = simple();
    let stream = fixture.log.stream(&about, &Choice::default()).unwrap();
    let (request, answer) = rows(&about, 1);
    let mut ends = Vec::new();
    for i in 0..5 {
        fixture.offer(&stream, &prediction(&i.to_string(), &request, Ok(&answer))).unwrap();
        ends.push(fixture.log.0.open_length.load(Ordering::Acquire));
    }
    let path = segment::path(fixture.dir.path(), fixture.log.0.open_segment.load(Ordering::Acquire));
    let whole = std::fs::read(&path).unwrap();
    fixture.stop();
    for length in 0..=ends[4] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(segment::dir(dir.path())).unwrap();
        std::fs::write(segment::path(dir.path(), 7), &whole[..usize::try_from(length).unwrap()]).unwrap();
        let kept = ends.iter().filter(|end| **end <= length).count();
        let expected: Vec<String> = (0..kept).map(|i| i.to_string()).collect();
        let found = unsealed(dir.path(), &about.model).unwrap();
        let found: Vec<String> = found.predictions.iter().flat_map(|(_, batches)| ids(batches)).collect();
        assert_eq!(found, expected, "torn at {length} of {}", ends[4]);
    }
}

#[test]
fn sealing_a_segment_twice_gives_the_same_files_and_no_record_twice() {
    let fixture = Fixture::new(durable, Box::new(RealDisk));
    let about = simple();
    let stream = fixture.log.stream(&about, &Choice::default()).unwrap();
    let (request, answer) = rows(&about, 1);
    fixture.offer(&stream, &prediction("same id", &request, Ok(&answer))).unwrap();
    fixture.offer(&stream, &prediction("same id", &request, Ok(&answer))).unwrap();
    let path = segment::path(fixture.dir.path(), fixture.log.0.open_segment.load(Ordering::Acquire));
    let copy = std::fs::read(&path).unwrap();
    let dir = fixture.stop();
    let before = files(&dir.path().join("predictions"));
    // The state after a kill between the last rename and the deletion.
    std::fs::write(&path, copy).unwrap();
    let dir = Fixture::on(dir, durable, Box::new(RealDisk)).stop();
    assert_eq!(files(&dir.path().join("predictions")), before);
    assert_eq!(ids(&predictions(dir.path())), ["same id", "same id"], "both records with this id are stored once each");
    assert!(files(&segment::dir(dir.path())).is_empty(), "no segment is left, and no marker");
}

#[test]
fn a_killed_server_leaves_a_gap_and_a_stopped_server_does_not() {
    let dir = Fixture::new(durable, Box::new(RealDisk)).stop();
    assert!(files(&dir.path().join("gaps")).is_empty());
    std::fs::write(segment::dir(dir.path()).join("running"), b"").unwrap();
    let dir = Fixture::on(dir, durable, Box::new(RealDisk)).stop();
    let gaps: Vec<RecordBatch> = files(&dir.path().join("gaps")).values().flat_map(|path| read(path)).collect();
    assert_eq!(text(&gaps[0], "reason", 0).unwrap(), "unclean_stop");
    assert!(gaps[0]["records"].is_null(0), "the number is not known");
}

#[test]
fn a_full_queue_drops_records_counts_them_and_leaves_a_gap() {
    let tiny = |config: &mut Config| {
        // Such a log drops what does not fit, and never samples.
        config.acknowledge = Acknowledge::Disk;
        config.queue_bytes = 600;
        config.flush_interval = Duration::from_mins(1);
    };
    let disk = FaultyDisk::default();
    let faults = Arc::clone(&disk.0);
    let fixture = Fixture::new(tiny, Box::new(disk));
    let about = simple();
    let stream = fixture.log.stream(&about, &Choice::default()).unwrap();
    let (request, answer) = rows(&about, 1);
    let (many, answers) = rows(&about, 100);
    let offer = |prediction: &Prediction| drop(fixture.log.offer(&stream, prediction, false).unwrap());
    fixture.offer(&stream, &prediction("large", &many, Ok(&answers))).unwrap();
    let lost = |reason: DropReason| fixture.log.dropped().filter(|(r, _)| *r == reason).map(|(_, n)| n).sum::<u64>();
    assert_eq!(lost(DropReason::TooLarge), 0, "its tensors are left out");
    let entries = vec![feedback_for("large"); 100];
    let refused = fixture.log.queue_feedback(&about.model, &Choice::default(), &entries).unwrap_err();
    assert_eq!(refused.code, Code::BodyTooLarge, "another try would fail too");
    faults.stalled.set(true);
    let offered = 100;
    for _ in 0..offered {
        offer(&prediction("x", &request, Ok(&answer)));
    }
    let full = lost(DropReason::QueueFull);
    assert!(full > 0 && full < offered, "{full}");
    faults.stalled.set(false);
    let dir = fixture.stop();
    assert_eq!(ids(&predictions(dir.path())).len() as u64 + full, 100 + offered);
    let gaps: Vec<RecordBatch> = files(&dir.path().join("gaps")).values().flat_map(|path| read(path)).collect();
    let records: i64 = gaps.iter().flat_map(|b| b["records"].as_primitive::<Int64Type>().values().to_vec()).sum();
    assert_eq!(records.unsigned_abs(), full);
}

#[test]
fn files_that_are_too_old_or_over_the_budget_are_deleted_oldest_first() {
    let dir = tempfile::tempdir().unwrap();
    let day = dir.path().join("predictions/model=m/date=2020-01-01");
    std::fs::create_dir_all(&day).unwrap();
    let old = day.join("00001577836800000000-0.parquet");
    let now = u64::try_from(now()).unwrap();
    let (young, younger) =
        (day.join(format!("{:020}-0.parquet", now - 2)), day.join(format!("{:020}-0.parquet", now - 1)));
    for path in [&old, &young, &younger] {
        std::fs::write(path, vec![0; 1 << 20]).unwrap();
    }
    let keep = |config: &mut Config| {
        config.keep_for = Some(Duration::from_hours(1));
        config.disk_budget = (1 << 20) + 1000;
    };
    let fixture = Fixture::on(dir, keep, Box::new(RealDisk));
    eventually("the old file and the oldest of the others are deleted", || !old.exists() && !young.exists());
    assert!(younger.exists());
    fixture.stop();
}

#[test]
fn records_are_refused_while_segments_that_cannot_be_sealed_fill_the_budget() {
    let small = |config: &mut Config| {
        durable(config);
        config.disk_budget = 20_000;
    };
    let dir = tempfile::tempdir().unwrap();
    // A file where the directory of the predictions should be: no segment can be sealed.
    let obstacle = dir.path().join("predictions");
    std::fs::write(&obstacle, b"").unwrap();
    let fixture = Fixture::on(dir, small, Box::new(RealDisk));
    let about = simple();
    let stream = fixture.log.stream(&about, &Choice::default()).unwrap();
    let (request, answer) = rows(&about, 1);
    let offer = || fixture.offer(&stream, &prediction("x", &request, Ok(&answer)));
    eventually("the segments fill the budget", || offer().is_err());
    let disk = fixture.log.disk_bytes();
    assert!(disk.segments > 19_000 && disk.segments <= 20_000 && disk.sealed == 0, "{disk:?}");
    assert_eq!(disk.segments, bytes_under(&segment::dir(fixture.dir.path())));
    let lost = |reason: DropReason| fixture.log.dropped().filter(|(r, _)| *r == reason).map(|(_, n)| n).sum::<u64>();
    assert!(lost(DropReason::Budget) > 0);
    assert_eq!(fixture.log.left_out(), 0, "what cannot be sealed at all is no reason to sample");
    // Once sealed, they can be deleted, and records are accepted again.
    std::fs::remove_file(&obstacle).unwrap();
    fixture.log.0.wake_sealer();
    eventually("records are accepted again", || offer().is_ok());
    fixture.stop();
}

#[test]
fn a_stalled_disk_holds_nobody_past_the_deadline() {
    for on_failure in [OnFailure::Refuse, OnFailure::Serve] {
        let disk = FaultyDisk::default();
        let faults = Arc::clone(&disk.0);
        let fixture = Fixture::new(
            |config| {
                durable(config);
                config.on_failure = on_failure;
            },
            Box::new(disk),
        );
        let about = simple();
        let stream = fixture.log.stream(&about, &Choice::default()).unwrap();
        let (request, answer) = rows(&about, 1);
        faults.stalled.set(true);
        let deadline = Instant::now() + Duration::from_millis(20);
        let ticket = fixture.log.offer(&stream, &prediction("a", &request, Ok(&answer)), true).unwrap().unwrap();
        let waited = block_on(fixture.log.durable(ticket, deadline));
        match on_failure {
            OnFailure::Refuse => {
                let failure = waited.unwrap_err();
                assert_eq!(failure.code, Code::LogUnavailable);
                assert!(failure.message.contains("deadline") && failure.message.contains("may still"), "{failure:?}");
            }
            OnFailure::Serve => waited.unwrap(),
        }
        let told = block_on(fixture.log.record_feedback(
            &about.model,
            &Choice::default(),
            &[feedback_for("a")],
            Instant::now(),
        ));
        assert_eq!(told.unwrap_err().code, Code::LogUnavailable);
        faults.stalled.set(false);
        let dir = fixture.stop();
        // The failure said "may still be written", and it was: nothing acknowledged is lost, nothing is counted as dropped.
        assert_eq!(ids(&predictions(dir.path())), ["a"]);
        assert!(files(&dir.path().join("gaps")).is_empty());
    }
}

#[test]
fn the_largest_record_does_not_depend_on_the_number_of_shards() {
    let fixture = Fixture::new(
        |config| {
            durable(config);
            config.shards = 32;
            config.queue_bytes = 64 << 20;
        },
        Box::new(RealDisk),
    );
    let about = about(vec![spec("x", DataType::Fp32, &[FREE, FREE])], vec![]);
    let choice = Choice { max_record_bytes: 256 << 20, ..Choice::default() };
    let stream = fixture.log.stream(&about, &choice).unwrap();
    let floats = |n: usize| checked(&about, vec![tensor(&[1, n], Data::Fp32(vec![1.0; n].into()))]);
    // 16 MiB: more than 64 MiB over 32 shards.
    fixture.offer(&stream, &prediction("fits", &floats(4 << 20), Err(Code::EngineFailed))).unwrap();
    fixture.offer(&stream, &prediction("truncated", &floats(17 << 20), Err(Code::EngineFailed))).unwrap();
    assert_eq!(fixture.log.dropped().map(|(_, records)| records).sum::<u64>(), 0);
    let dir = fixture.stop();
    assert_eq!(truncations(dir.path()), [("fits".to_owned(), false), ("truncated".to_owned(), true)]);
}

/// The ids of all records, and whether they were truncated.
fn truncations(dir: &Path) -> Vec<(String, bool)> {
    let of = |batch: RecordBatch| {
        let truncated = batch.column_by_name("truncated").unwrap().as_boolean().clone();
        ids(&[batch]).into_iter().zip(truncated.values().iter()).collect::<Vec<_>>()
    };
    predictions(dir).into_iter().flat_map(of).collect()
}

#[test]
fn a_request_of_many_rows_that_is_larger_than_the_queue_keeps_its_identity_and_outputs() {
    let tiny = |config: &mut Config| {
        durable(config);
        config.queue_bytes = 4000;
    };
    let fixture = Fixture::new(tiny, Box::new(RealDisk));
    let about = simple();
    let stream = fixture.log.stream(&about, &Choice::default()).unwrap();
    // 200 rows: 1,600 bytes of x, over 2,000 of name, 800 of y.
    let (request, answers) = rows(&about, 200);
    fixture.offer(&stream, &prediction("many", &request, Ok(&answers))).unwrap();
    // With 2,000 rows the outputs alone have 8,000 bytes.
    let (request, answers) = rows(&about, 2000);
    fixture.offer(&stream, &prediction("most", &request, Ok(&answers))).unwrap();
    assert_eq!(fixture.log.dropped().map(|(_, records)| records).sum::<u64>(), 0);
    let dir = fixture.stop();
    let truncated = truncations(dir.path());
    assert_eq!(truncated.len(), 2200, "one record for each row");
    assert!(truncated.iter().all(|(_, truncated)| *truncated));
    let batches = predictions(dir.path());
    let many = batches.iter().find(|batch| text(batch, "request_id", 0).as_deref() == Some("many")).unwrap();
    let (inputs, outputs) = (many.column_by_name("inputs").unwrap(), many.column_by_name("outputs").unwrap());
    let field =
        |column: &arrow_array::ArrayRef, name: &str| column.as_struct().column_by_name(name).unwrap().is_null(7);
    assert_eq!(
        (field(inputs, "x"), field(inputs, "name"), field(outputs, "y")),
        (false, true, false),
        "only the largest input had to go"
    );
}

#[test]
fn all_shards_share_one_budget_and_give_it_back() {
    let queue = Queue::new(32, 1000);
    let fill = |bytes: usize| queue.reserve(bytes, 1)?.append(true, None, |out| out.resize(out.len() + bytes, 0));
    std::thread::scope(|scope| {
        for _ in 0..10 {
            scope.spawn(|| fill(100).unwrap().unwrap());
        }
    });
    assert_eq!(fill(1).unwrap_err(), DropReason::QueueFull);
    assert_eq!(queue.bytes(), 1000);
    for filled in queue.take() {
        queue.done(filled, Ok(()));
    }
    assert_eq!(queue.bytes(), 0);
    drop(queue.reserve(1000, 1).unwrap());
    assert!(fill(1000).is_ok(), "a reservation that is not used gives its bytes back");
}

#[test]
fn racing_offers_that_do_not_fit_together_never_refuse_each_other() {
    let queue = Queue::new(4, 100);
    for _ in 0..200 {
        let accepted = std::thread::scope(|scope| {
            let offers: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        queue.reserve(60, 1).and_then(|r| r.append(false, None, |out| out.resize(out.len() + 60, 0)))
                    })
                })
                .collect();
            offers.into_iter().map(|offer| offer.join().unwrap()).map(|offered| u32::from(offered.is_ok())).sum::<u32>()
        });
        assert_eq!(accepted, 1);
        for filled in queue.take() {
            queue.done(filled, Ok(()));
        }
    }
}

#[test]
fn every_offer_around_a_stop_is_written_or_counted_and_every_ticket_resolves() {
    let fixture = Fixture::new(durable, Box::new(RealDisk));
    let about = simple();
    let stream = fixture.log.stream(&about, &Choice::default()).unwrap();
    let log = fixture.log.clone();
    let stopped = AtomicBool::new(false);
    let (mut written, mut refused) = (0, 0);
    let dir = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|t| {
                let (log, stream, about, stopped) = (&log, &stream, &about, &stopped);
                scope.spawn(move || {
                    let (request, answer) = rows(about, 1);
                    let (mut written, mut refused, mut after) = (0u64, 0u64, 0);
                    for i in 0.. {
                        // Some offers after the stop too.
                        after += u32::from(stopped.load(Ordering::Acquire));
                        if after > 50 {
                            break;
                        }
                        // The sealer tries to reopen what the writer closes.
                        log.0.queue.set_over_budget(false);
                        let id = format!("{t}-{i}");
                        let offered = log.offer(stream, &prediction(&id, &request, Ok(&answer)), true);
                        match offered.map(|ticket| block_on(log.durable(ticket.unwrap(), soon()))) {
                            Ok(Ok(())) => written += 1,
                            Ok(Err(_)) | Err(_) => refused += 1,
                        }
                    }
                    (written, refused)
                })
            })
            .collect();
        eventually("some records are written", || log.status().records > 100);
        let dir = fixture.stop();
        stopped.store(true, Ordering::Release);
        for thread in threads {
            let (w, r) = thread.join().unwrap();
            written += w;
            refused += r;
        }
        dir
    });
    let dropped: u64 = log.dropped().filter(|(reason, _)| *reason == DropReason::Stopping).map(|(_, n)| n).sum();
    assert_eq!(dropped, refused, "each refused record is counted");
    assert!(refused >= 200);
    assert_eq!(ids(&predictions(dir.path())).len() as u64, written, "each acknowledged record is stored");
}

#[test]
fn a_log_that_cannot_stop_in_time_resolves_its_tickets_and_counts_what_it_drops() {
    let disk = FaultyDisk::default();
    let faults = Arc::clone(&disk.0);
    let mut fixture = Fixture::new(durable, Box::new(disk));
    let about = simple();
    let stream = fixture.log.stream(&about, &Choice::default()).unwrap();
    let (request, answer) = rows(&about, 1);
    let offer = |id: &str| fixture.log.offer(&stream, &prediction(id, &request, Ok(&answer)), true);
    faults.stalled.set(true);
    let first = offer("with the writer").unwrap().unwrap();
    eventually("the writer took it", || fixture.log.queue_bytes() == 0);
    let second = offer("in the queue").unwrap().unwrap();
    fixture.stop.take().unwrap().stop(Duration::from_millis(10));
    assert!(block_on(second.durable(soon())).is_err());
    assert!(offer("too late").is_err());
    let stopping = fixture.log.dropped().find(|(reason, _)| *reason == DropReason::Stopping);
    assert_eq!(stopping, Some((DropReason::Stopping, 2)));
    faults.stalled.set(false);
    block_on(first.durable(soon())).unwrap();
}
