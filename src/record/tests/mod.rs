use super::disk::{Appender, Disk, RealDisk};
use super::hash::HashKey;
use super::prediction::Planned;
use super::queue::Queue;
use super::sampling::is_kept;
use super::stream::is_sampled;
use super::*;
use crate::model::{
    Answer, Checked, Dim, Feedback, InferenceRequest, Label, NamedTensor, Role, Signature, TensorSpec, Update,
};
use crate::quality::{self, Quality};
use crate::telemetry::Telemetry;
use crate::tensor::{Data, DataType, Shape, Tensor};
use arrow_array::cast::AsArray;
use arrow_array::types::{Float16Type, Float32Type, Float64Type, Int32Type, Int64Type, TimestampMicrosecondType};
use arrow_array::{Array, RecordBatch};
use bytes::Bytes;
use half::f16;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

mod cells;
mod keeping_up;
mod large;
mod records;
mod survival;

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

/// Inputs: two floats and a text per row. Output: a float per row.
fn simple() -> About {
    about(
        vec![spec("x", DataType::Fp32, &[FREE, Dim::Fixed(2)]), spec("name", DataType::Bytes, &[FREE])],
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
    let name = tensor(&[n], Data::Bytes((0..n).map(|i| Bytes::from(format!("user-{i}"))).collect()));
    let y = tensor(&[n], Data::Fp32((0..n).map(|i| i as f32 + 0.5).collect::<Vec<_>>().into()));
    (checked(about, vec![x, name]), answer(about, vec![y]))
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

struct Fixture {
    dir: tempfile::TempDir,
    log: Log,
    stop: Option<Stop>,
    quality: Quality,
    telemetry: Telemetry,
}

impl Fixture {
    fn new(config: impl FnOnce(&mut Config), disk: Box<dyn Disk>) -> Fixture {
        Fixture::on(tempfile::tempdir().unwrap(), config, disk)
    }

    fn on(dir: tempfile::TempDir, change: impl FnOnce(&mut Config), disk: Box<dyn Disk>) -> Fixture {
        let mut config = Config::of(dir.path().to_owned());
        change(&mut config);
        let quality = Quality::new(quality::Config::default());
        let telemetry = Telemetry::new();
        let (log, stop) = Log::start_on(config, quality.clone(), &telemetry, disk).unwrap();
        Fixture { dir, log, stop: Some(stop), quality, telemetry }
    }

    /// Stops in order, so that everything is sealed. Sealing has a low priority, so beside other busy threads it may take a minute.
    fn stop(mut self) -> tempfile::TempDir {
        self.stop.take().unwrap().stop(Duration::from_mins(5));
        self.dir
    }

    fn offer(&self, stream: &Stream, prediction: &Prediction) -> Result<(), Failure> {
        match self.log.offer(stream, prediction, true)? {
            Some(ticket) => block_on(self.log.durable(ticket, soon())),
            None => Ok(()),
        }
    }
}

/// A deadline that only a failing test reaches.
fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
}

/// Every file under a directory by its relative path, in order.
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

/// Bytes of all files under a directory.
fn bytes_under(dir: &Path) -> u64 {
    sizes_under(dir).values().sum()
}

/// The size of each file under a directory. Files may come and go meanwhile.
fn sizes_under(dir: &Path) -> BTreeMap<PathBuf, u64> {
    let mut sizes = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(next) = dirs.pop() {
        for entry in std::fs::read_dir(&next).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(meta) if meta.is_dir() => dirs.push(entry.path()),
                meta => drop(sizes.insert(entry.path(), meta.map_or(0, |meta| meta.len()))),
            }
        }
    }
    sizes
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

/// While it is set, writes block.
#[derive(Debug, Default)]
struct Stall(Mutex<bool>, Condvar);

impl Stall {
    fn set(&self, stalled: bool) {
        *self.0.lock().unwrap() = stalled;
        self.1.notify_all();
    }

    fn pass(&self) {
        drop(self.1.wait_while(self.0.lock().unwrap(), |stalled| *stalled).unwrap());
    }
}

fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < until, "{what}");
        std::thread::yield_now();
    }
}

fn text(batch: &RecordBatch, column: &str, row: usize) -> Option<String> {
    let column = batch.column_by_name(column).unwrap().as_string::<i32>();
    column.is_valid(row).then(|| column.value(row).to_owned())
}

fn feedback_for(id: &str) -> Feedback {
    Feedback {
        request_id: id.to_owned(),
        row: 0,
        ts: 5,
        label: Some(Update::Set(Label::Number(1.0))),
        values: vec![("v".to_owned(), Update::Set(2.0))],
    }
}
