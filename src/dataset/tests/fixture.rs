//! A data directory as the prediction log writes it, for tests.

use crate::backend::fake::Fake;
use crate::backend::{EngineChoice, LoadError, Model, VersionFiles};
use crate::dataset::{Budget, Error, Export, Exported, Filter, Format, Records, export};
use crate::model::{Dim, ModelName, Role, Signature, TensorSpec, Version};
use crate::prepare::Loader;
use crate::record::{About, Builder, Layout, PredictionView, TensorView, feedback_schema, parquet_properties};
use crate::tensor::{Data, DataType, Shape, Tensor};
use arrow_array::builder::{Float64Builder, MapBuilder, MapFieldNames, StringBuilder};
use arrow_array::{Float64Array, Int32Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow_schema::Field;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::file::metadata::KeyValue;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub struct Fixture {
    pub dir: tempfile::TempDir,
    pub model: ModelName,
}

/// A request in the log.
#[derive(Clone)]
pub struct Request {
    /// By default the request's own rows.
    pub batch_rows: Option<usize>,
    pub id: String,
    pub ts: i64,
    pub role: Role,
    pub arm: &'static str,
    pub status: &'static str,
    pub route_key: Option<&'static str>,
    pub latency_us: i64,
    pub truncated: bool,
    pub by_rows: bool,
    pub inputs: Vec<Option<Tensor>>,
    pub outputs: Option<Vec<Option<Tensor>>>,
}

#[derive(Clone, Default)]
pub struct FeedbackRow {
    pub id: &'static str,
    pub row: i32,
    pub ts: i64,
    pub received_at: i64,
    pub number: Option<f64>,
    pub text: Option<&'static str>,
    pub values: Vec<(&'static str, f64)>,
}

/// 2026-11-03 in microseconds.
pub const DAY: i64 = 1_793_664_000_000_000;

pub fn version(n: u64) -> Version {
    n.to_string().parse().unwrap()
}

pub fn spec(name: &str, datatype: DataType, dims: &[Option<usize>]) -> TensorSpec {
    let dim = |dim: &Option<usize>| dim.map_or(Dim::Free(None), Dim::Fixed);
    TensorSpec { name: name.into(), datatype, dims: Some(dims.iter().map(dim).collect()) }
}

/// Input x: two numbers per row. Output y: one number per row.
pub fn pairs() -> Signature {
    let x = spec("x", DataType::Fp32, &[None, Some(2)]);
    Signature::new(vec![x], vec![spec("y", DataType::Fp32, &[None])])
}

pub fn about(n: u64, sha256: &str, signature: Signature) -> About {
    let model = "m".parse().unwrap();
    About { model, version: version(n), sha256: sha256.into(), signature, hashed: [].into(), dropped: [].into() }
}

pub fn floats(shape: &[usize], values: &[f32]) -> Tensor {
    Tensor::new(Shape::new(shape), Data::Fp32(values.to_vec().into())).unwrap()
}

/// A request for the signature `pairs`. `y` gives the number of rows.
pub fn request(id: &str, at: i64, x: &[f32], y: &[f32]) -> Request {
    Request {
        batch_rows: None,
        id: id.to_owned(),
        ts: DAY + at,
        role: Role::Primary,
        arm: "1",
        status: "ok",
        route_key: None,
        latency_us: 900,
        truncated: false,
        by_rows: true,
        inputs: vec![Some(floats(&[y.len(), 2], x))],
        outputs: Some(vec![Some(floats(&[y.len()], y))]),
    }
}

fn encode(tensor: &Tensor) -> Vec<u8> {
    match tensor.data() {
        Data::Bytes(texts) => {
            let one = |text: &bytes::Bytes| [&u32::try_from(text.len()).unwrap().to_le_bytes()[..], text].concat();
            texts.iter().flat_map(one).collect()
        }
        data => data.le_bytes().unwrap().to_vec(),
    }
}

impl Fixture {
    pub fn new() -> Fixture {
        Fixture { dir: tempfile::tempdir().unwrap(), model: "m".parse().unwrap() }
    }

    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub fn models(&self) -> PathBuf {
        self.dir.path().join("models")
    }

    fn sealed(&self, kind: &str, segment: u64, ts: i64) -> File {
        let date = jiff::Timestamp::from_microsecond(ts).unwrap().strftime("%Y-%m-%d").to_string();
        let dir = self.data().join(kind).join("model=m").join(format!("date={date}"));
        std::fs::create_dir_all(&dir).unwrap();
        (0..).map(|k| dir.join(format!("{segment:020}-{k}.parquet"))).find_map(|p| File::create_new(p).ok()).unwrap()
    }

    /// Writes a sealed file of these requests, with two rows per row group.
    pub fn seal(&self, segment: u64, about: &About, requests: &[Request]) {
        let about = Arc::new(about.clone());
        let mut layout = Layout::new(&about);
        let bytes = |tensors: &[Option<Tensor>]| -> Vec<Option<(Shape, Vec<u8>)>> {
            tensors.iter().map(|t| t.as_ref().map(|t| (t.shape().clone(), encode(t)))).collect()
        };
        let encoded: Vec<_> = requests.iter().map(|r| (bytes(&r.inputs), r.outputs.as_deref().map(bytes))).collect();
        let views: Vec<PredictionView> = requests
            .iter()
            .zip(&encoded)
            .map(|(r, (inputs, outputs))| {
                let rows = inputs.iter().flatten().next().map_or(1, |(shape, _)| shape[0]);
                PredictionView {
                    ts: r.ts,
                    latency_us: r.latency_us,
                    infer_us: 100,
                    batch_rows: u32::try_from(r.batch_rows.unwrap_or(if r.by_rows { rows } else { 1 })).unwrap(),
                    sample_rate: 1.0,
                    role: r.role,
                    truncated: r.truncated,
                    rows: r.by_rows.then(|| u32::try_from(rows).unwrap()),
                    request_id: &r.id,
                    arm: r.arm,
                    status: r.status,
                    route_key: r.route_key,
                    traceparent: None,
                    inputs: tensors(inputs),
                    outputs: outputs.as_deref().map(tensors),
                }
            })
            .collect();
        for view in &views {
            layout.allow(view);
        }
        let mut batches = Vec::new();
        let mut builder = Builder::new(layout);
        for view in &views {
            builder
                .push::<Infallible>(view, &mut |batch| {
                    batches.push(batch);
                    Ok(())
                })
                .unwrap();
        }
        batches.extend(builder.finish());
        let metadata =
            about.file_metadata().map(|(key, value)| KeyValue::new(format!("sluicegate.{key}"), value)).to_vec();
        write(self.sealed("predictions", segment, requests[0].ts), &batches, metadata);
    }

    /// Writes a sealed file of this feedback.
    pub fn add_feedback(&self, segment: u64, feedback: &[FeedbackRow]) {
        let names = MapFieldNames { entry: "key_value".into(), key: "key".into(), value: "value".into() };
        let mut values = MapBuilder::new(Some(names), StringBuilder::new(), Float64Builder::new())
            .with_values_field(Field::new("value", arrow_schema::DataType::Float64, false));
        for t in feedback {
            for (name, value) in &t.values {
                values.keys().append_value(name);
                values.values().append_value(*value);
            }
            values.append(true).unwrap();
        }
        let time = |of: fn(&FeedbackRow) -> i64| {
            Arc::new(TimestampMicrosecondArray::from_iter_values(feedback.iter().map(of)).with_timezone("UTC"))
        };
        let columns: Vec<arrow_array::ArrayRef> = vec![
            Arc::new(StringArray::from_iter_values(feedback.iter().map(|t| t.id))),
            Arc::new(Int32Array::from_iter_values(feedback.iter().map(|t| t.row))),
            time(|t| DAY + t.ts),
            time(|t| DAY + t.received_at),
            Arc::new(feedback.iter().map(|t| t.number).collect::<Float64Array>()),
            Arc::new(feedback.iter().map(|t| t.text).collect::<StringArray>()),
            Arc::new(values.finish()),
        ];
        let batch = RecordBatch::try_new(feedback_schema(), columns).unwrap();
        write(self.sealed("feedback", segment, DAY), &[batch], Vec::new());
    }

    /// Writes a version into the models directory. Returns the SHA-256 of its `model.onnx`.
    pub fn version(&self, n: u64, bytes: &str) -> String {
        let dir = self.models().join("m").join(n.to_string());
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("model.onnx"), bytes).unwrap();
        crate::prepare::model_sha256(&dir).unwrap()
    }

    pub fn export<'a>(&'a self, to: &'a Path) -> Export<'a> {
        // `Export` borrows the path, and the fixture only has the path of its parent.
        let data = Box::leak(self.data().into_boxed_path());
        Export {
            model: &self.model,
            data: Records::Dir(data),
            filter: Filter::default(),
            require_label: false,
            format: Format::of(to).unwrap(),
            limit: None,
            to,
            budget: Budget::default(),
        }
    }

    pub fn run(&self, name: &str, change: impl FnOnce(&mut Export)) -> Result<(Exported, PathBuf), Error> {
        let to = self.dir.path().join(name);
        let mut options = self.export(&to);
        change(&mut options);
        export(&options, &|_, _, _| {}).map(|exported| (exported, to.clone()))
    }
}

fn tensors(encoded: &[Option<(Shape, Vec<u8>)>]) -> smallvec::SmallVec<[Option<TensorView<'_>>; 4]> {
    encoded.iter().map(|t| t.as_ref().map(|(shape, bytes)| TensorView { shape: shape.clone(), bytes })).collect()
}

fn write(file: File, batches: &[RecordBatch], metadata: Vec<KeyValue>) {
    let schema = batches[0].schema();
    let properties = parquet_properties(&schema, metadata).into_builder().set_max_row_group_row_count(Some(2)).build();
    let mut writer = ArrowWriter::try_new(file, schema, Some(properties)).unwrap();
    for batch in batches {
        writer.write(batch).unwrap();
    }
    writer.close().unwrap();
}

/// Reads a Parquet file as one batch.
pub fn read(path: &Path) -> RecordBatch {
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap()).unwrap();
    let schema = Arc::clone(reader.schema());
    let batches: Vec<RecordBatch> = reader.build().unwrap().map(Result::unwrap).collect();
    arrow_select::concat::concat_batches(&schema, &batches).unwrap()
}

/// Loads the fake that has the number of the version directory.
#[derive(Debug, Default)]
pub struct Fakes(pub BTreeMap<u64, Fake>);

impl Loader for Fakes {
    fn load(&self, _: EngineChoice, files: &VersionFiles, _: Option<&str>) -> Result<Arc<dyn Model>, LoadError> {
        let number = files.dir.file_name().and_then(|name| name.to_str()?.parse().ok()).unwrap();
        self.0.get(&number).map(Fake::model).ok_or_else(|| LoadError::Unsupported("unknown version".to_owned()))
    }
}
