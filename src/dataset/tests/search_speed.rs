//! Figures: how long a search takes in many files, and what Bloom filters cost. Run by hand:
//! `SEARCH_FILES=100 SEARCH_ROWS=100000 cargo test --lib dataset::tests::search_speed -- --ignored --nocapture`.

use super::fixture::{DAY, Fixture, about, pairs};
use crate::dataset::{Filter, Look, Search, Status, look, search};
use crate::record::{Layout, parquet_properties};
use arrow_array::builder::{Float32Builder, ListBuilder};
use arrow_array::{
    ArrayRef, BooleanArray, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray, StructArray,
    TimestampMicrosecondArray,
};
use arrow_schema::{DataType, Fields, SchemaRef};
use parquet::arrow::ArrowWriter;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::schema::types::ColumnPath;
use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The id of a row: 32 hexadecimal digits that do not grow with it, so that statistics rule out nothing.
fn id(n: u64) -> String {
    format!("{:016x}{n:016x}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

fn tensors(field: &Fields, width: usize, from: u64, rows: u64) -> ArrayRef {
    let DataType::List(element) = field[0].data_type() else { panic!("{field:?}") };
    let mut lists = ListBuilder::new(Float32Builder::new()).with_field(Arc::clone(element));
    for row in from..from + rows {
        (0..width).for_each(|i| lists.values().append_value((row as f32).sin() + i as f32));
        lists.append(true);
    }
    Arc::new(StructArray::new(field.clone(), vec![Arc::new(lists.finish())], None))
}

fn batch(schema: &SchemaRef, from: u64, rows: u64) -> RecordBatch {
    let each = |f: &dyn Fn(u64) -> i64| (from..from + rows).map(f).collect::<Vec<i64>>();
    let same = |text: &str| -> ArrayRef { Arc::new(StringArray::from_iter_values((0..rows).map(|_| text))) };
    let n = usize::try_from(rows).unwrap();
    let fields = |name: &str| match schema.field_with_name(name).unwrap().data_type() {
        DataType::Struct(fields) => fields.clone(),
        other => panic!("{other}"),
    };
    let ts = TimestampMicrosecondArray::from(each(&|row| DAY + i64::try_from(row).unwrap() * 100)).with_timezone("UTC");
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values((from..from + rows).map(id))),
        Arc::new(Int32Array::from(vec![0; n])),
        Arc::new(ts),
        same("1"),
        same("1"),
        same("primary"),
        Arc::new(StringArray::from_iter_values((from..from + rows).map(|row| format!("user-{}", row % 1_000_003)))),
        same("ok"),
        Arc::new(Int64Array::from(each(&|row| i64::try_from(row % 997).unwrap()))),
        Arc::new(Int64Array::from(each(&|row| i64::try_from(row % 97).unwrap()))),
        Arc::new(Int32Array::from(vec![1; n])),
        Arc::new(StringArray::from(vec![None::<&str>; n])),
        Arc::new(Float64Array::from(vec![1.0; n])),
        Arc::new(BooleanArray::from(vec![false; n])),
        tensors(&fields("inputs"), 2, from, rows),
        tensors(&fields("outputs"), 1, from, rows),
    ];
    RecordBatch::try_new(Arc::clone(schema), columns).unwrap()
}

fn written(path: &std::path::Path, batch: &RecordBatch, properties: WriterProperties) -> (Duration, u64) {
    let file = File::create(path).unwrap();
    let begin = Instant::now();
    let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties)).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
    (begin.elapsed(), std::fs::metadata(path).unwrap().len())
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn shown(what: &str, times: usize, mut run: impl FnMut(usize)) {
    let mut all: Vec<Duration> = (0..times)
        .map(|i| {
            let begin = Instant::now();
            run(i);
            begin.elapsed()
        })
        .collect();
    all.sort_unstable();
    println!("{what}: median {:?}, slowest {:?} of {times}", all[times / 2], all[times - 1]);
}

#[test]
#[ignore = "measures; by hand"]
fn figures_of_a_search_in_many_files() {
    let (files, rows) = (number("SEARCH_FILES", 10), number("SEARCH_ROWS", 10_000));
    let fixture = Fixture::new();
    let about = Arc::new(about(1, "aa", pairs()));
    let schema = Layout::new(&about).schema();
    let metadata =
        || about.file_metadata().map(|(key, value)| KeyValue::new(format!("sluicegate.{key}"), value)).to_vec();
    let dir = fixture.data().join("predictions/model=m/date=2026-11-03");
    std::fs::create_dir_all(&dir).unwrap();
    let (mut with, mut without, mut bytes, mut bytes_without) = (Duration::ZERO, Duration::ZERO, 0, 0);
    for file in 0..files {
        let batch = batch(&schema, file * rows, rows);
        let path = dir.join(format!("{:020}-0.parquet", file + 1));
        if file % 10 == 0 {
            let mut plain = parquet_properties(&schema, metadata()).into_builder();
            for column in ["request_id", "route_key"] {
                plain = plain.set_column_bloom_filter_enabled(ColumnPath::from(column), false);
            }
            let (took, size) = written(&path, &batch, plain.build());
            (without, bytes_without) = (without + took, bytes_without + size);
        }
        let (took, size) = written(&path, &batch, parquet_properties(&schema, metadata()));
        if file % 10 == 0 {
            (with, bytes) = (with + took, bytes + size);
        }
    }
    let each = 1e9 / (files.div_ceil(10) * rows) as f64;
    let per_row = |bytes: u64| bytes as f64 / (files.div_ceil(10) * rows) as f64;
    println!(
        "{files} files of {rows} rows; a row: {:.0} ns and {:.1} bytes with Bloom filters, {:.0} ns and {:.1} bytes without",
        with.as_secs_f64() * each,
        per_row(bytes),
        without.as_secs_f64() * each,
        per_row(bytes_without)
    );
    let data = fixture.data();
    let find = |filter: Filter, limit: usize| {
        let what = Search {
            model: &fixture.model,
            data: &data,
            filter,
            non_finite: false,
            disagreed: None,
            limit,
            after: None,
            until: None,
        };
        search(&what, |_| {}).unwrap()
    };
    let any = |i: usize| id((i as u64 * 7_919_993 + 17) % (files * rows));
    shown("an id, listed", 21, |i| {
        let found = find(Filter { request_id: Some(any(i)), ..Filter::default() }, 50);
        assert_eq!(found.requests.len(), 1);
    });
    shown("an id, with inputs, outputs and feedback", 21, |i| {
        let what = Look {
            model: &fixture.model,
            data: &data,
            request_id: &any(i),
            elements: 1000,
            tolerance: crate::compare::Tolerance::default(),
        };
        assert_eq!(look(&what).unwrap().predictions.len(), 1);
    });
    shown("an id that is not there", 21, |i| {
        let found = find(Filter { request_id: Some(format!("8{i:031}")), ..Filter::default() }, 50);
        assert_eq!(found.requests.len(), 0);
    });
    shown("a route key (ten requests)", 5, |i| {
        let found = find(Filter { route_keys: vec![format!("user-{}", i * 7)], ..Filter::default() }, 50);
        assert!(!found.requests.is_empty());
    });
    shown("the newest 50", 5, |_| assert_eq!(find(Filter::default(), 50).requests.len(), 50));
    shown("errors, of which there are none", 5, |_| {
        assert!(find(Filter { status: Some(Status::Error), ..Filter::default() }, 50).requests.is_empty());
    });
    shown("all columns without tensors", 1, |_| {
        let found = find(
            Filter { route_keys: Vec::new(), arms: vec!["1".to_owned()], slower_than: Some(995), ..Filter::default() },
            1_000_000,
        );
        assert!(found.requests.len() as u64 >= files * rows / 1000);
    });
}
