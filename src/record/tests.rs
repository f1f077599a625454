use super::*;
use crate::model::{Answer, Checked, Dim, InferenceRequest, Label, NamedTensor, Role, Signature, TensorSpec};
use crate::quality;
use crate::tensor::{Data, DataType, Shape, Tensor};
use arrow_array::cast::AsArray;
use arrow_array::types::{Float16Type, Float32Type, Int32Type, Int64Type, TimestampMicrosecondType};
use arrow_array::{Array, RecordBatch};
use bytes::Bytes;
use disk::Appender;
use half::f16;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::atomic::AtomicU32;

fn spec(name: &str, datatype: DataType, dims: &[Dim]) -> TensorSpec {
    TensorSpec { name: name.into(), datatype, dims: Some(dims.to_vec()) }
}

const FREE: Dim = Dim::Free(None);

fn about(inputs: Vec<TensorSpec>, outputs: Vec<TensorSpec>) -> About {
    About {
        model: "m".parse().unwrap(),
        version: "3".parse().unwrap(),
        sha256: "ab".repeat(32),
        signature: Signature::new(inputs, outputs),
        hashed: [].into(),
        dropped: [].into(),
    }
}

/// Rows of a float and a text in, a float out.
fn simple() -> About {
    about(
        vec![spec("x", DataType::Fp32, &[FREE, Dim::Fixed(2)]), spec("who", DataType::Bytes, &[FREE])],
        vec![spec("y", DataType::Fp32, &[FREE])],
    )
}

fn tensor(shape: &[usize], data: Data) -> Tensor {
    Tensor::new(Shape::new(shape), data).unwrap()
}

fn checked(about: &About, tensors: Vec<Tensor>) -> Checked {
    let names = about.signature.inputs().iter().map(|spec| spec.name.to_string());
    let inputs = names.zip(tensors).map(|(name, tensor)| NamedTensor { name, tensor }).collect();
    about.signature.check(InferenceRequest { inputs, ..InferenceRequest::default() }).unwrap()
}

fn answer(about: &About, tensors: Vec<Tensor>) -> Answer {
    let wanted: Vec<usize> = (0..tensors.len()).collect();
    Answer::named(&about.signature, &wanted, tensors)
}

fn rows(about: &About, n: usize) -> (Checked, Answer) {
    let x = tensor(&[n, 2], Data::Fp32((0..2 * n).map(|i| i as f32).collect::<Vec<_>>().into()));
    let who = tensor(&[n], Data::Bytes((0..n).map(|i| Bytes::from(format!("user-{i}"))).collect()));
    let y = tensor(&[n], Data::Fp32((0..n).map(|i| i as f32 + 0.5).collect::<Vec<_>>().into()));
    (checked(about, vec![x, who]), answer(about, vec![y]))
}

fn prediction<'a>(id: &'a str, request: &'a Checked, outcome: Result<&'a Answer, Code>) -> Prediction<'a> {
    Prediction {
        request_id: id,
        ts: 1_795_000_000_000_000,
        role: Role::Primary,
        arm: "control",
        route_key: Some("alice"),
        traceparent: None,
        request,
        outcome,
        latency_us: 120,
        infer_us: 30,
        batch_rows: request.rows().unwrap_or(1),
        sample_rate: 1.0,
    }
}

struct House {
    dir: tempfile::TempDir,
    log: Log,
    stop: Option<Stop>,
    quality: Quality,
}

impl House {
    fn new(config: impl FnOnce(&mut Config), disk: Box<dyn Disk>) -> House {
        House::on(tempfile::tempdir().unwrap(), config, disk)
    }

    fn on(dir: tempfile::TempDir, change: impl FnOnce(&mut Config), disk: Box<dyn Disk>) -> House {
        let mut config = Config::of(dir.path().to_owned());
        change(&mut config);
        let quality = Quality::new(quality::Config::default());
        let (log, stop) = Log::start_on(config, quality.clone(), &Telemetry::new(), disk).unwrap();
        House { dir, log, stop: Some(stop), quality }
    }

    /// Ends in order: everything is sealed.
    fn stop(mut self) -> tempfile::TempDir {
        self.stop.take().unwrap().stop(Duration::from_secs(30));
        self.dir
    }

    fn offer(&self, stream: &Stream, prediction: &Prediction) -> Result<(), Failure> {
        match self.log.offer(stream, prediction, true)? {
            Some(ticket) => block_on(self.log.durable(ticket)),
            None => Ok(()),
        }
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

/// Every sealed file under a directory, by its path below it, in order.
fn files(dir: &Path) -> BTreeMap<String, PathBuf> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(next) = dirs.pop() {
        for entry in std::fs::read_dir(&next).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else {
                found.insert(path.strip_prefix(dir).unwrap().display().to_string(), path);
            }
        }
    }
    found
}

fn read(path: &Path) -> Vec<RecordBatch> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap()).unwrap().build().unwrap();
    reader.map(Result::unwrap).collect()
}

fn predictions(dir: &Path) -> Vec<RecordBatch> {
    files(&dir.join("predictions")).values().flat_map(|path| read(path)).collect()
}

fn ids(batches: &[RecordBatch]) -> Vec<String> {
    let column = |batch: &RecordBatch| {
        let ids = batch.column_by_name("request_id").unwrap().as_string::<i32>().clone();
        ids.iter().map(|id| id.unwrap().to_owned()).collect::<Vec<_>>()
    };
    batches.iter().flat_map(column).collect()
}

fn text(batch: &RecordBatch, column: &str, row: usize) -> Option<String> {
    let column = batch.column_by_name(column).unwrap().as_string::<i32>();
    column.is_valid(row).then(|| column.value(row).to_owned())
}

// === what a record is ===

#[test]
fn a_request_of_rows_is_a_record_per_row_with_the_promised_columns() {
    let house = House::new(|_| {}, Box::new(RealDisk));
    let about = simple();
    let stream = house.log.stream(&about, &Choice { hash_route_key: false, ..Choice::default() }).unwrap();
    let (request, answer) = rows(&about, 3);
    house.offer(&stream, &prediction("a", &request, Ok(&answer))).unwrap();
    house.offer(&stream, &prediction("b", &request, Err(Code::EngineFailed))).unwrap();
    let dir = house.stop();
    let sealed = files(&dir.path().join("predictions"));
    assert_eq!(sealed.len(), 1, "{sealed:?}");
    assert!(sealed.keys().next().unwrap().starts_with("model=m/date=2026-11-18/"), "{sealed:?}");
    let batches = predictions(dir.path());
    let batch = &batches[0];
    let names: Vec<&str> = batch.schema_ref().fields().iter().map(|f| f.name().as_str()).collect();
    let promised = [
        "request_id",
        "row",
        "ts",
        "version",
        "arm",
        "role",
        "route_key",
        "status",
        "latency_us",
        "infer_us",
        "batch_rows",
        "traceparent",
        "sample_rate",
        "truncated",
        "inputs",
        "outputs",
    ];
    assert_eq!(names, promised);
    assert_eq!(ids(&batches), ["a", "a", "a", "b", "b", "b"]);
    assert_eq!(batch["row"].as_primitive::<Int32Type>().values(), &[0, 1, 2, 0, 1, 2]);
    assert_eq!(batch["ts"].as_primitive::<TimestampMicrosecondType>().value(5), 1_795_000_000_000_000);
    assert_eq!(batch["batch_rows"].as_primitive::<Int32Type>().value(0), 3);
    assert_eq!((text(batch, "version", 0), text(batch, "role", 0)), (Some("3".into()), Some("primary".into())));
    assert_eq!((text(batch, "status", 0), text(batch, "status", 3)), (Some("ok".into()), Some("ENGINE_FAILED".into())));
    assert_eq!((text(batch, "route_key", 0), text(batch, "traceparent", 0)), (Some("alice".into()), None));
    let inputs = batch["inputs"].as_struct();
    let x = inputs.column_by_name("x").unwrap().as_list::<i32>();
    assert_eq!(x.value(2).as_primitive::<Float32Type>().values(), &[4.0, 5.0]);
    let who = inputs.column_by_name("who").unwrap().as_list::<i32>();
    assert_eq!(who.value(1).as_string::<i32>().value(0), "user-1");
    let outputs = batch["outputs"].as_struct();
    assert!(outputs.is_valid(0) && outputs.is_null(3));
    let y = outputs.column_by_name("y").unwrap().as_list::<i32>();
    assert_eq!(y.value(2).as_primitive::<Float32Type>().values(), &[2.5]);
}

#[test]
fn a_request_without_rows_is_one_record_and_so_is_one_whose_answer_has_others() {
    let house = House::new(|_| {}, Box::new(RealDisk));
    let fixed = about(vec![spec("x", DataType::Int64, &[Dim::Fixed(2)])], vec![spec("y", DataType::Fp16, &[])]);
    let stream = house.log.stream(&fixed, &Choice::default()).unwrap();
    let request = checked(&fixed, vec![tensor(&[2], Data::Int64(vec![i64::MIN, 7].into()))]);
    let half = answer(&fixed, vec![tensor(&[], Data::Fp16(vec![f16::NAN].into()))]);
    house.offer(&stream, &prediction("whole", &request, Ok(&half))).unwrap();
    let summing = simple();
    let other = house.log.stream(&summing, &Choice::default()).unwrap();
    let (request, _) = rows(&summing, 3);
    let sum = answer(&summing, vec![tensor(&[1], Data::Fp32(vec![9.0].into()))]);
    house.offer(&other, &prediction("summed", &request, Ok(&sum))).unwrap();
    let (none, nothing) = rows(&summing, 0);
    house.offer(&other, &prediction("nothing", &none, Ok(&nothing))).unwrap();
    let dir = house.stop();
    let batches = predictions(dir.path());
    assert_eq!(ids(&batches), ["whole", "summed"]);
    let x = batches[0]["inputs"].as_struct().column(0).as_list::<i32>().value(0);
    assert_eq!(x.as_primitive::<Int64Type>().values(), &[i64::MIN, 7]);
    let y = batches[0]["outputs"].as_struct().column(0).as_list::<i32>().value(0);
    assert!(y.as_primitive::<Float16Type>().value(0).is_nan());
    assert_eq!(batches[1]["row"].as_primitive::<Int32Type>().values(), &[0]);
    let x = batches[1]["inputs"].as_struct().column_by_name("x").unwrap().as_list::<i32>().value(0);
    assert_eq!(x.len(), 6, "all rows of the request in one record");
}

#[test]
fn shapes_are_there_where_lengths_do_not_tell_them() {
    let house = House::new(|_| {}, Box::new(RealDisk));
    let about = about(vec![spec("x", DataType::Uint8, &[FREE, FREE, FREE])], vec![spec("y", DataType::Bool, &[FREE])]);
    let stream = house.log.stream(&about, &Choice::default()).unwrap();
    let request = checked(&about, vec![tensor(&[2, 2, 3], Data::Uint8((0..12).collect::<Vec<_>>().into()))]);
    let flags = answer(&about, vec![tensor(&[2], Data::Bool(vec![true, false]))]);
    house.offer(&stream, &prediction("a", &request, Ok(&flags))).unwrap();
    let dir = house.stop();
    let batches = predictions(dir.path());
    assert_eq!(text(&batches[0], SHAPES, 1).unwrap(), r#"{"inputs":{"x":[1,2,3]}}"#);
    let y = batches[0]["outputs"].as_struct().column(0).as_list::<i32>();
    assert_eq!((y.value(0).as_boolean().value(0), y.value(1).as_boolean().value(0)), (true, false));
}

#[test]
fn strings_are_text_and_bytes_are_bytes() {
    let house = House::new(|_| {}, Box::new(RealDisk));
    let about = simple();
    let stream = house.log.stream(&about, &Choice::default()).unwrap();
    let x = || tensor(&[1, 2], Data::Fp32(vec![0.0, f32::NEG_INFINITY].into()));
    let request = checked(&about, vec![x(), tensor(&[1], Data::Bytes(vec![Bytes::from_static(&[0xff, 0])]))]);
    house.offer(&stream, &prediction("a", &request, Err(Code::InvalidTensor))).unwrap();
    let dir = house.stop();
    let who = predictions(dir.path())[0]["inputs"].as_struct().column_by_name("who").unwrap().clone();
    assert_eq!(who.as_list::<i32>().value(0).as_binary::<i32>().value(0), [0xff, 0]);
}

// === choice and privacy ===

#[test]
fn what_is_dropped_hashed_or_cut_is_nowhere_on_the_disk() {
    let house = House::new(|_| {}, Box::new(RealDisk));
    let about = simple();
    let choice =
        Choice { hash: ["inputs.who".to_owned()].into(), drop: ["outputs.y".to_owned()].into(), ..Choice::default() };
    let stream = house.log.stream(&about, &choice).unwrap();
    let (request, answer) = rows(&about, 1);
    house.offer(&stream, &prediction("a", &request, Ok(&answer))).unwrap();
    let cut = house.log.stream(&about, &Choice { max_record_bytes: 20, ..Choice::default() }).unwrap();
    house.offer(&cut, &prediction("cut", &request, Ok(&answer))).unwrap();
    let raw: Vec<u8> =
        files(&segment::dir(house.dir.path())).values().flat_map(|path| std::fs::read(path).unwrap()).collect();
    let holds = |needle: &[u8]| raw.windows(needle.len()).any(|window| window == needle);
    assert!(!holds(b"alice") && !holds(b"user-0"));
    let key = Arc::clone(&stream.key);
    let dir = house.stop();
    let batches = predictions(dir.path());
    let batch = batches.iter().find(|batch| ids(std::slice::from_ref(*batch)) == ["a"]).unwrap();
    assert_eq!(text(batch, "route_key", 0), Some(key.hash(b"alice")));
    let who = batch["inputs"].as_struct().column_by_name("who").unwrap().as_list::<i32>().value(0);
    assert_eq!(who.as_string::<i32>().value(0), key.hash(b"user-0"));
    assert!(batch["outputs"].data_type().is_null(), "no column of it is left");
    assert!(!batch["truncated"].as_boolean().value(0));
    let batch = batches.iter().find(|batch| ids(std::slice::from_ref(*batch)) == ["cut"]).unwrap();
    assert!(batch["truncated"].as_boolean().value(0));
    let inputs = batch["inputs"].as_struct();
    assert!(inputs.column_by_name("who").unwrap().is_null(0), "the largest goes first");
    assert!(inputs.column_by_name("x").unwrap().is_valid(0));
    // The same key after a restart, and HMAC-SHA-256 as everybody computes it.
    let house = House::on(dir, |_| {}, Box::new(RealDisk));
    assert_eq!(house.log.0.key.hash(b"alice"), key.hash(b"alice"));
    let known = HashKey::new(&[0x0b; 20]).unwrap().hash(b"Hi There");
    assert_eq!(known, "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7", "RFC 4231, test case 1");
    house.stop();
}

#[test]
fn samples_follow_the_id_and_are_nested() {
    let ids: Vec<String> = (0..10_000).map(|i| format!("id-{i}")).collect();
    let of = |rate: f64| ids.iter().filter(|id| is_sampled(id, rate)).collect::<Vec<_>>();
    let (some, more) = (of(0.1), of(0.3));
    assert!(some.iter().all(|id| more.contains(id)));
    assert!((900..1100).contains(&some.len()) && (2850..3150).contains(&more.len()), "{} {}", some.len(), more.len());
    assert_eq!((of(0.0).len(), of(1.0).len()), (0, 10_000));
}

#[test]
fn misspelt_columns_are_found() {
    let choice = Choice { drop: ["inputs.ssn".to_owned(), "route_key".to_owned()].into(), ..Choice::default() };
    assert_eq!(choice.unknown_columns(&simple()), ["inputs.ssn"]);
    assert!(Choice::is_column("inputs.x", true) && Choice::is_column("route_key", false));
    assert!(
        !Choice::is_column("route_key", true) && !Choice::is_column("inputs.", false) && !Choice::is_column("x", false)
    );
}

// === what survives ===

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

fn told(id: &str) -> Feedback {
    Feedback {
        request_id: id.to_owned(),
        row: 0,
        ts: 5,
        label: Some(Label::Number(1.0)),
        values: vec![("v".to_owned(), 2.0)],
    }
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

#[test]
fn the_same_question_has_the_same_stream() {
    let house = House::new(|_| {}, Box::new(RealDisk));
    let about = simple();
    let first = house.log.stream(&about, &Choice::default()).unwrap();
    assert!(Arc::ptr_eq(&first, &house.log.stream(&about, &Choice::default()).unwrap()));
    let other = house.log.stream(&about, &Choice { sample_rate: 0.5, ..Choice::default() }).unwrap();
    assert!(!Arc::ptr_eq(&first, &other));
    assert!(house.log.stream(&about, &Choice { enabled: false, ..Choice::default() }).is_none());
    house.stop();
}
