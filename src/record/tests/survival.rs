//! What survives full disks, torn files, kills and floods, and what has to go.

use super::*;

/// A disk that fails when it is told to.
#[derive(Debug, Default, Clone)]
struct Moody(Arc<Mood>);

#[derive(Debug, Default)]
struct Mood {
    full: AtomicBool,
    /// Whoever writes waits.
    held: AtomicBool,
    sync_fails: AtomicBool,
    syncs: AtomicU32,
}

#[derive(Debug)]
struct MoodyFile(Box<dyn Appender>, Arc<Mood>);

impl Disk for Moody {
    fn create(&self, path: &Path) -> io::Result<Box<dyn Appender>> {
        Ok(Box::new(MoodyFile(RealDisk.create(path)?, Arc::clone(&self.0))))
    }
}

impl Appender for MoodyFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        while self.1.held.load(Ordering::Relaxed) {
            std::thread::park_timeout(Duration::from_millis(1));
        }
        if self.1.full.load(Ordering::Relaxed) {
            // As a full disk does: some of it fits.
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

    fn cut(&mut self, length: u64) -> io::Result<()> {
        self.0.cut(length)
    }
}

fn durable(config: &mut Config) {
    config.acknowledge = Acknowledge::Disk;
    config.flush_interval = Duration::from_millis(20);
}

fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < until, "{what}");
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

#[test]
fn a_full_disk_refuses_answers_and_recovers_by_itself_without_a_record_too_many_or_too_few() {
    for failing in ["full", "sync"] {
        let disk = Moody::default();
        let mood = Arc::clone(&disk.0);
        let switch =
            |on: bool| if failing == "full" { &mood.full } else { &mood.sync_fails }.store(on, Ordering::Relaxed);
        let house = House::new(durable, Box::new(disk.clone()));
        let about = simple();
        let stream = house.log.stream(&about, &Choice::default()).unwrap();
        let (request, answer) = rows(&about, 1);
        let offer = |id: &str| house.offer(&stream, &prediction(id, &request, Ok(&answer)));
        offer("before").unwrap();
        switch(true);
        for i in 0..3 {
            let failure = offer(&format!("during-{i}")).unwrap_err();
            assert_eq!(failure.code, Code::LogUnavailable);
        }
        let ticket = house.log.tell(&about.model, &[told("before")]).unwrap();
        assert_eq!(block_on(ticket.durable()).unwrap_err().code, Code::LogUnavailable);
        assert!(house.log.status().failing_since.is_some());
        switch(false);
        eventually("it recovers by itself", || offer("after").is_ok());
        assert_eq!((house.log.status().failing_since, house.log.status().last_error), (None, None));
        let dropped: u64 = house.log.dropped().filter(|(why, _)| *why == Why::Disk).map(|(_, n)| n).sum();
        assert!(dropped >= 3, "{dropped}");
        let dir = house.stop();
        assert_eq!(ids(&predictions(dir.path())), ["before", "after"]);
        assert!(files(&dir.path().join("feedback")).is_empty(), "what was refused is not there");
        let gaps: Vec<RecordBatch> = files(&dir.path().join("gaps")).values().flat_map(|path| read(path)).collect();
        let missing: i64 = gaps.iter().flat_map(|b| b["records"].as_primitive::<Int64Type>().values().to_vec()).sum();
        assert_eq!(missing.unsigned_abs(), dropped, "{gaps:?}");
        assert_eq!(text(&gaps[0], "reason", 0).unwrap(), "disk");
    }
}

#[test]
fn answers_may_leave_all_the_same_where_the_configuration_says_so() {
    let disk = Moody::default();
    disk.0.full.store(true, Ordering::Relaxed);
    let serve = |config: &mut Config| {
        durable(config);
        config.on_failure = OnFailure::Serve;
    };
    let house = House::new(serve, Box::new(disk));
    let about = simple();
    let stream = house.log.stream(&about, &Choice::default()).unwrap();
    let (request, answer) = rows(&about, 2);
    house.offer(&stream, &prediction("a", &request, Ok(&answer))).unwrap();
    eventually("it is counted", || house.log.dropped().any(|(why, n)| why == Why::Disk && n == 2));
    house.stop();
}

#[test]
fn many_answers_share_a_sync() {
    let disk = Moody::default();
    let syncs = Arc::clone(&disk.0);
    let house = House::new(durable, Box::new(disk));
    let about = simple();
    let stream = house.log.stream(&about, &Choice::default()).unwrap();
    std::thread::scope(|scope| {
        for t in 0..8 {
            let (house, stream, about) = (&house, &stream, &about);
            scope.spawn(move || {
                let (request, answer) = rows(about, 1);
                let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                runtime.block_on(async {
                    for i in 0..20 {
                        // Sixteen at once on one thread, as connections are.
                        let ids: Vec<String> = (0..16).map(|k| format!("{t}-{i}-{k}")).collect();
                        let tickets: Vec<Ticket> = ids
                            .iter()
                            .map(|id| {
                                house.log.offer(stream, &prediction(id, &request, Ok(&answer)), true).unwrap().unwrap()
                            })
                            .collect();
                        for ticket in tickets {
                            ticket.durable().await.unwrap();
                        }
                    }
                });
            });
        }
    });
    let syncs = syncs.syncs.load(Ordering::Relaxed);
    assert!(syncs <= 8 * 20 + 20, "{syncs} syncs for 2560 answers");
    let dir = house.stop();
    let mut found = ids(&predictions(dir.path()));
    found.sort();
    found.dedup();
    assert_eq!(found.len(), 2560);
}

#[test]
fn feedback_is_on_the_disk_and_in_the_figures_when_it_is_acknowledged() {
    let house = House::new(|_| {}, Box::new(RealDisk));
    let about = simple();
    let stream = house.log.stream(&about, &Choice::default()).unwrap();
    let (request, answer) = rows(&about, 1);
    house.offer(&stream, &prediction("a", &request, Ok(&answer))).unwrap();
    let entries = [told("a"), Feedback { label: Some(Label::Text("x".to_owned())), values: Vec::new(), ..told("b") }];
    block_on(house.log.tell(&about.model, &entries).unwrap().durable()).unwrap();
    let of = house.quality.of(&about.model);
    assert_eq!((of.feedback, of.unmatched), (2, 1));
    let figures = &of.arms[&("3".parse().unwrap(), "control".to_owned())];
    assert_eq!((figures.labelled, figures.mean_absolute_error()), (1, Some(0.5)));
    let unsealed = unsealed(house.dir.path(), &about.model).unwrap();
    assert_eq!(ids(&unsealed.feedback), ["a", "b"]);
    assert_eq!(ids(&unsealed.predictions[0].1), ["a"]);
    let dir = house.stop();
    let sealed = files(&dir.path().join("feedback"));
    assert!(sealed.keys().next().unwrap().starts_with("model=m/date="), "{sealed:?}");
    let batch = &read(sealed.values().next().unwrap())[0];
    assert_eq!(batch.schema(), feedback_schema());
    assert_eq!((text(batch, "label_str", 0), text(batch, "label_str", 1)), (None, Some("x".to_owned())));
    let values = batch["values"].as_map();
    assert_eq!(values.value(0).column(0).as_string::<i32>().value(0), "v");
}

#[test]
fn a_torn_tail_is_cut_wherever_it_is_torn_and_what_stands_before_it_is_kept() {
    let house = House::new(durable, Box::new(RealDisk));
    let about = simple();
    let stream = house.log.stream(&about, &Choice::default()).unwrap();
    let (request, answer) = rows(&about, 1);
    let mut ends = Vec::new();
    for i in 0..5 {
        house.offer(&stream, &prediction(&i.to_string(), &request, Ok(&answer))).unwrap();
        ends.push(house.log.0.open_length.load(Ordering::Acquire));
    }
    let path = segment::path(house.dir.path(), house.log.0.open_segment.load(Ordering::Acquire));
    let whole = std::fs::read(&path).unwrap();
    house.stop();
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
fn sealing_again_gives_the_same_files_and_no_record_twice() {
    let house = House::new(durable, Box::new(RealDisk));
    let about = simple();
    let stream = house.log.stream(&about, &Choice::default()).unwrap();
    let (request, answer) = rows(&about, 1);
    house.offer(&stream, &prediction("same id", &request, Ok(&answer))).unwrap();
    house.offer(&stream, &prediction("same id", &request, Ok(&answer))).unwrap();
    let path = segment::path(house.dir.path(), house.log.0.open_segment.load(Ordering::Acquire));
    let copy = std::fs::read(&path).unwrap();
    let dir = house.stop();
    let before = files(&dir.path().join("predictions"));
    // As if the server had been killed between the last rename and the deletion.
    std::fs::write(&path, copy).unwrap();
    let dir = House::on(dir, durable, Box::new(RealDisk)).stop();
    assert_eq!(files(&dir.path().join("predictions")), before);
    assert_eq!(
        ids(&predictions(dir.path())),
        ["same id", "same id"],
        "ids may be used again, records are never doubled"
    );
    assert!(files(&segment::dir(dir.path())).is_empty(), "no segment is left, and no mark");
}

#[test]
fn a_server_that_was_killed_leaves_a_gap_and_one_that_stopped_does_not() {
    let dir = House::new(durable, Box::new(RealDisk)).stop();
    assert!(files(&dir.path().join("gaps")).is_empty());
    std::fs::write(segment::dir(dir.path()).join("running"), b"").unwrap();
    let dir = House::on(dir, durable, Box::new(RealDisk)).stop();
    let gaps: Vec<RecordBatch> = files(&dir.path().join("gaps")).values().flat_map(|path| read(path)).collect();
    assert_eq!(text(&gaps[0], "reason", 0).unwrap(), "unclean_stop");
    assert!(gaps[0]["records"].is_null(0), "nobody knows how many");
}

#[test]
fn a_full_queue_drops_counts_and_leaves_a_gap() {
    let tiny = |config: &mut Config| {
        config.queue_bytes = 4 * 600;
        config.flush_interval = Duration::from_mins(1);
    };
    let disk = Moody::default();
    let mood = Arc::clone(&disk.0);
    let house = House::new(tiny, Box::new(disk));
    let about = simple();
    let stream = house.log.stream(&about, &Choice::default()).unwrap();
    let (request, answer) = rows(&about, 1);
    let (many, answers) = rows(&about, 100);
    house.offer(&stream, &prediction("large", &many, Ok(&answers))).unwrap();
    let lost = |why: Why| house.log.dropped().filter(|(w, _)| *w == why).map(|(_, n)| n).sum::<u64>();
    assert_eq!(lost(Why::TooLarge), 100);
    let entries = vec![told("large"); 100];
    let refused = house.log.tell(&about.model, &entries).unwrap_err();
    assert_eq!(refused.code, Code::BodyTooLarge, "trying again would not help");
    mood.held.store(true, Ordering::Relaxed);
    let offered = 100;
    for _ in 0..offered {
        house.offer(&stream, &prediction("x", &request, Ok(&answer))).unwrap();
    }
    let full = lost(Why::QueueFull);
    assert!(full > 0 && full < offered, "{full}");
    mood.held.store(false, Ordering::Relaxed);
    let dir = house.stop();
    assert_eq!(ids(&predictions(dir.path())).len() as u64 + full, offered);
    let gaps: Vec<RecordBatch> = files(&dir.path().join("gaps")).values().flat_map(|path| read(path)).collect();
    let records: i64 = gaps.iter().flat_map(|b| b["records"].as_primitive::<Int64Type>().values().to_vec()).sum();
    assert_eq!(records.unsigned_abs(), 100 + full);
}

#[test]
fn the_oldest_files_go_when_there_are_too_many_or_they_are_too_old() {
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
    let house = House::on(dir, keep, Box::new(RealDisk));
    eventually("the old one and the oldest go", || !old.exists() && !young.exists());
    assert!(younger.exists());
    house.stop();
}

#[test]
fn records_are_refused_while_what_cannot_be_deleted_is_too_much() {
    let small = |config: &mut Config| {
        durable(config);
        config.disk_budget = 1000;
    };
    let house = House::new(small, Box::new(RealDisk));
    let about = simple();
    let stream = house.log.stream(&about, &Choice::default()).unwrap();
    let (request, answer) = rows(&about, 1);
    let offer = || house.offer(&stream, &prediction("x", &request, Ok(&answer)));
    while house.log.0.open_length.load(Ordering::Acquire) <= 1000 {
        offer().unwrap();
    }
    house.log.0.wake_sealer();
    eventually("the open segment alone is too much", || offer().is_err());
    let lost = house.log.dropped().find(|(why, _)| *why == Why::Budget).map(|(_, n)| n);
    assert!(lost.is_some_and(|n| n > 0));
    // Sealed, it can be deleted, and there is room again.
    house.log.0.seal_now.store(true, Ordering::Release);
    eventually("there is room again", || offer().is_ok());
    house.stop();
}
