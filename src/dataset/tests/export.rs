use super::fixture::{DAY, FeedbackRow, Fixture, Request, about, floats, pairs, read, request, spec, version};
use crate::codec::golden::{Golden, parse_warmup};
use crate::dataset::{Budget, Error, Filter, Format, Gate, parse_time};
use crate::model::{Role, Signature};
use crate::tensor::{Data, DataType, Shape, Tensor};
use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Float64Type, Int32Type, TimestampMicrosecondType};
use arrow_array::{Array, RecordBatch};
use half::f16;

fn feedback(id: &'static str, row: i32, ts: i64, received_at: i64, number: f64) -> FeedbackRow {
    FeedbackRow { id, row, ts, received_at, number: Some(number), ..FeedbackRow::default() }
}

/// The ids, rows and labels of an export.
fn rows(batch: &RecordBatch) -> Vec<(String, i32, Option<f64>)> {
    let (ids, rows) = (batch["request_id"].as_string::<i32>(), batch["row"].as_primitive::<Int32Type>());
    let labels = batch["label_num"].as_primitive::<Float64Type>();
    let label = |i| labels.is_valid(i).then(|| labels.value(i));
    (0..batch.num_rows()).map(|i| (ids.value(i).to_owned(), rows.value(i), label(i))).collect()
}

fn failed<T: std::fmt::Debug>(result: Result<T, Error>) -> String {
    match result.unwrap_err() {
        Error::Failed(message) => message,
        usage @ Error::Usage(_) => panic!("the options are valid: {usage}"),
    }
}

pub(super) fn filled() -> Fixture {
    let fixture = Fixture::new();
    let shadow = Request { role: Role::Shadow, ..request("a", 1, &[1.0, 2.0], &[9.0]) };
    let pinned = Request { role: Role::Pinned, arm: "2", ..request("c", 3, &[0.5, 0.5], &[1.0]) };
    fixture.seal(
        1,
        &about(1, "aa", pairs()),
        &[
            request("a", 1, &[1.0, 2.0], &[3.0]),
            request("b", 2, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &[3.0, 7.0, 11.0]),
            pinned,
        ],
    );
    fixture.seal(1, &about(2, "bb", pairs()), &[shadow]);
    // A request id that is used again.
    fixture.seal(2, &about(1, "aa", pairs()), &[request("a", 86_400_000_000, &[0.0, 0.0], &[f32::NAN])]);
    fixture.add_feedback(
        1,
        &[
            feedback("b", 1, 50, 60, 1.0),
            feedback("a", 0, 50, 60, 2.0),
            feedback("a", 0, 40, 70, 3.0),
            feedback("nobody", 0, 50, 60, 4.0),
            feedback("a", 1, 50, 60, 5.0),
        ],
    );
    fixture.add_feedback(
        2,
        &[
            feedback("b", 1, 50, 61, 6.0),
            FeedbackRow {
                text: Some("cat"),
                number: None,
                values: vec![("revenue", 1.5), ("margin", -2.0)],
                ..feedback("c", 0, 1, 1, 0.0)
            },
            feedback("b", 2, 5, 5, 7.0),
            feedback("b", 2, 5, 5, 8.0),
        ],
    );
    fixture
}

#[test]
fn predictions_are_joined_with_the_latest_feedback() {
    let fixture = filled();
    let (exported, path) = fixture.run("out.parquet", |_| {}).unwrap();
    let batch = read(&path);
    let (a, b, c) = ("a".to_owned(), "b".to_owned(), "c".to_owned());
    let expected = vec![
        (a.clone(), 0, Some(2.0)),
        (b.clone(), 0, None),
        (b.clone(), 1, Some(6.0)),
        (b, 2, Some(8.0)),
        (c, 0, None),
        (a, 0, Some(2.0)),
    ];
    assert_eq!(rows(&batch), expected, "in the order of the predictions, without the shadow's");
    assert_eq!((exported.rows, exported.labelled), (6, 5));
    assert_eq!(exported.bytes, std::fs::metadata(&path).unwrap().len());
    let names: Vec<&str> = batch.schema_ref().fields().iter().map(|f| f.name().as_str()).collect();
    assert_eq!(names[..3], ["request_id", "row", "ts"]);
    assert_eq!(names[14..], ["inputs", "outputs", "label_num", "label_str", "values", "label_ts"]);
    let texts = batch["label_str"].as_string::<i32>();
    assert!(texts.is_null(0) && texts.value(4) == "cat");
    let values = batch["values"].as_map();
    assert!(values.is_null(1), "without feedback the values are null");
    assert_eq!(values.value_length(0), 0, "feedback without values has an empty map");
    let of_c = values.value(4);
    assert_eq!(of_c.column(0).as_string::<i32>().value(1), "margin");
    assert_eq!(of_c.column(1).as_primitive::<Float64Type>().values(), &[1.5, -2.0]);
    assert_eq!(batch["label_ts"].as_primitive::<TimestampMicrosecondType>().value(0), DAY + 50);
    let y = batch["outputs"].as_struct().column(0).as_list::<i32>().value(5);
    assert!(y.as_primitive::<Float32Type>().value(0).is_nan());
    let remaining: Vec<_> = std::fs::read_dir(fixture.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(remaining.len(), 2, "the data directory and the file: {remaining:?}");
}

#[test]
fn feedback_is_merged_field_by_field() {
    let fixture = Fixture::new();
    let ids = ["merged", "late", "retracted", "again"];
    let requests: Vec<_> = (1..).zip(ids).map(|(at, id)| request(id, at, &[1.0, 2.0], &[3.0])).collect();
    fixture.seal(1, &about(1, "aa", pairs()), &requests);
    let value =
        |id, ts, name, value| FeedbackRow { number: None, values: vec![(name, value)], ..feedback(id, 0, ts, ts, 0.0) };
    fixture.add_feedback(
        1,
        &[
            value("merged", 50, "revenue", 5.0),
            feedback("late", 0, 60, 60, 1.0),
            FeedbackRow { values: vec![("revenue", 7.0), ("cost", 2.0)], ..feedback("retracted", 0, 10, 10, 4.0) },
            feedback("again", 0, 20, 20, f64::NAN),
        ],
    );
    fixture.add_feedback(
        2,
        &[
            // Received last, though it is older: its label counts, because no other entry has one.
            FeedbackRow { values: vec![("revenue", 1.0)], ..feedback("merged", 0, 40, 90, 3.0) },
            FeedbackRow { text: Some("old"), number: None, ..feedback("late", 0, 50, 70, 0.0) },
            FeedbackRow { values: vec![("revenue", f64::NAN)], ..feedback("retracted", 0, 20, 20, f64::NAN) },
            feedback("again", 0, 20, 21, 6.0),
        ],
    );
    for budget in [Budget::default(), Budget { rows: 1, bytes: 0 }] {
        let (exported, path) = fixture.run("out.parquet", |options| options.budget = budget).unwrap();
        let batch = read(&path);
        let labels: Vec<_> = rows(&batch).into_iter().map(|(id, _, label)| (id, label)).collect();
        let expected = [Some(3.0), Some(1.0), None, Some(6.0)];
        assert_eq!(labels, ids.iter().map(|id| (*id).to_owned()).zip(expected).collect::<Vec<_>>());
        assert_eq!(batch["label_str"].null_count(), 4, "the text is older than the number");
        let values = batch["values"].as_map();
        let values: Vec<Vec<(String, f64)>> = (0..4)
            .map(|i| {
                let entries = values.value(i);
                let (names, numbers) = (entries.column(0).as_string::<i32>(), entries.column(1));
                let numbers = numbers.as_primitive::<Float64Type>();
                (0..entries.len()).map(|k| (names.value(k).to_owned(), numbers.value(k))).collect()
            })
            .collect();
        let (revenue, cost) = (vec![("revenue".to_owned(), 5.0)], vec![("cost".to_owned(), 2.0)]);
        assert_eq!(values, [revenue, vec![], cost, vec![]], "the later revenue, and the cost that nothing retracts");
        let times = batch["label_ts"].as_primitive::<TimestampMicrosecondType>();
        let times: Vec<i64> = (0..4).map(|i| times.value(i) - DAY).collect();
        assert_eq!(times, [40, 60, 20, 20], "the time of the label, else of the latest entry that counts");
        assert_eq!(exported.labelled, 3);
    }
    let (exported, _) = fixture.run("out.parquet", |options| options.require_label = true).unwrap();
    assert_eq!(exported.rows, 3, "a retracted label is no label");
}

#[test]
fn many_small_chunks_give_the_same_as_a_large_one() {
    let fixture = filled();
    let (_, path) = fixture.run("one.parquet", |_| {}).unwrap();
    for budget in [Budget { rows: 1, bytes: 0 }, Budget { rows: 3, bytes: 20 }, Budget { rows: 100, bytes: 1 }] {
        let (exported, other) = fixture.run("many.parquet", |options| options.budget = budget).unwrap();
        assert_eq!(format!("{:?}", read(&other)), format!("{:?}", read(&path)), "{budget:?}");
        assert_eq!(exported.rows, 6);
    }
}

#[test]
fn records_are_selected_by_time_version_arm_role_label_and_limit() {
    let fixture = filled();
    let selected = |change: &dyn Fn(&mut Filter)| {
        let (_, path) = fixture.run("out.parquet", |options| change(&mut options.filter)).unwrap();
        rows(&read(&path)).into_iter().map(|(id, row, _)| format!("{id}{row}")).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(selected(&|filter| filter.to = Some(DAY + 2)), "a0");
    assert_eq!(selected(&|filter| filter.from = Some(DAY + 3)), "c0 a0");
    assert_eq!(selected(&|filter| filter.from = Some(parse_time("2026-11-04").unwrap())), "a0");
    assert_eq!(selected(&|filter| filter.roles = vec![Role::Shadow]), "a0");
    assert_eq!(selected(&|filter| filter.roles = Role::ALL.to_vec()), "a0 b0 b1 b2 c0 a0 a0");
    assert_eq!(selected(&|filter| filter.arms = vec!["2".to_owned(), "none".to_owned()]), "c0");
    assert_eq!(selected(&|filter| filter.versions = vec![version(1), version(7)]), "a0 b0 b1 b2 c0 a0");
    assert_eq!(selected(&|filter| filter.request_id = Some("b".to_owned())), "b0 b1 b2");
    let (exported, path) = fixture.run("out.parquet", |options| options.require_label = true).unwrap();
    assert_eq!(rows(&read(&path)).len(), 5);
    assert_eq!(exported.labelled, 5);
    let (exported, _) = fixture.run("out.parquet", |options| options.limit = Some(3)).unwrap();
    assert_eq!((exported.rows, exported.labelled), (3, 2));
    let message = failed(fixture.run("none.parquet", |options| options.filter.versions = vec![version(7)]));
    assert!(message.contains("has no matching predictions of m"), "{message}");
    assert!(!fixture.dir.path().join("none.parquet").exists());
}

#[test]
fn versions_with_different_tensors_go_into_one_table_if_types_agree() {
    let fixture = Fixture::new();
    let z = spec("z", DataType::Int64, &[None]);
    let more = Signature::new(vec![pairs().inputs()[0].clone(), z.clone()], vec![spec("s", DataType::Bytes, &[None])]);
    fixture.seal(1, &about(1, "aa", pairs()), &[request("a", 1, &[1.0, 2.0], &[3.0])]);
    let text = |bytes: &'static [u8]| Tensor::new(Shape::new(&[1]), Data::Bytes(vec![bytes.into()])).unwrap();
    let mut second = request("b", 2, &[1.0, 2.0], &[3.0]);
    second.inputs.push(Some(Tensor::new(Shape::new(&[1]), Data::Int64(vec![7].into())).unwrap()));
    second.outputs = Some(vec![Some(text(b"plain"))]);
    let mut third = Request { id: "c".to_owned(), ..second.clone() };
    third.outputs = Some(vec![Some(text(b"\xff"))]);
    fixture.seal(2, &about(2, "bb", more.clone()), &[second]);
    fixture.seal(3, &about(2, "bb", more), &[third]);
    let (_, path) = fixture.run("out.parquet", |_| {}).unwrap();
    let batch = read(&path);
    let (inputs, outputs) = (batch["inputs"].as_struct(), batch["outputs"].as_struct());
    assert_eq!(inputs.column_names(), ["x", "z"]);
    assert_eq!(outputs.column_names(), ["y", "s"]);
    assert!(inputs.column(1).is_null(0) && inputs.column(1).is_valid(1));
    assert!(outputs.column(0).is_valid(0) && outputs.column(0).is_null(2));
    let s = outputs.column(1).as_list::<i32>();
    assert_eq!(s.value(1).as_binary::<i32>().value(0), b"plain", "as binary, because some are not UTF-8");
    assert_eq!(s.value(2).as_binary::<i32>().value(0), b"\xff");

    let other = Signature::new(vec![spec("x", DataType::Fp64, &[None])], vec![z]);
    let mut fourth = request("d", 4, &[1.0, 2.0], &[3.0]);
    fourth.inputs = vec![Some(Tensor::new(Shape::new(&[1]), Data::Fp64(vec![1.0].into())).unwrap())];
    fourth.outputs = None;
    fixture.seal(4, &about(3, "cc", other), &[fourth]);
    let message = failed(fixture.run("none.parquet", |_| {}));
    assert_eq!(
        message,
        "inputs.x is a list of Float32 in version 1 and of Float64 in version 3: choose one with --version"
    );
    assert!(fixture.run("one.parquet", |options| options.filter.versions = vec![version(3)]).is_ok());
}

#[test]
fn without_recorded_inputs_the_column_is_null() {
    let fixture = Fixture::new();
    let mut bare = about(1, "aa", pairs());
    bare.dropped = ["inputs.x".to_owned()].into();
    fixture.seal(1, &bare, &[Request { inputs: Vec::new(), ..request("a", 1, &[0.0, 0.0], &[3.0]) }]);
    let (_, path) = fixture.run("out.parquet", |_| {}).unwrap();
    assert_eq!(read(&path)["inputs"].data_type(), &arrow_schema::DataType::Null);
    fixture.seal(2, &about(1, "aa", pairs()), &[request("b", 2, &[1.0, 2.0], &[3.0])]);
    let (_, path) = fixture.run("out.parquet", |_| {}).unwrap();
    let batch = read(&path);
    assert!(batch["inputs"].is_null(0) && batch["inputs"].is_valid(1));
    fixture.run("out.csv", |_| {}).unwrap();
}

#[test]
fn csv_has_all_values_as_text() {
    let fixture = Fixture::new();
    let half = spec("h", DataType::Fp16, &[None, None]);
    let text = spec("t", DataType::Bytes, &[None, Some(2)]);
    let signature = Signature::new(vec![half, text], vec![spec("y", DataType::Fp64, &[None])]);
    let h = Data::Fp16(vec![f16::from_f32(0.1), f16::NEG_INFINITY].into());
    let t = Data::Bytes(vec!["say \"hi\",\n".into(), (&b"\xff\x00"[..]).into()]);
    let mut one = request("a,b", 1, &[], &[]);
    one.inputs =
        vec![Some(Tensor::new(Shape::new(&[1, 2]), h).unwrap()), Some(Tensor::new(Shape::new(&[1, 2]), t).unwrap())];
    one.outputs = Some(vec![Some(Tensor::new(Shape::new(&[1]), Data::Fp64(vec![f64::NAN].into())).unwrap())]);
    let failed = Request { status: "ENGINE_FAILED", outputs: None, id: "b".to_owned(), ..one.clone() };
    fixture.seal(1, &about(1, "aa", signature), &[one, failed]);
    fixture.add_feedback(
        1,
        &[FeedbackRow { values: vec![("re\"v", 1.5), ("lost", f64::INFINITY)], ..feedback("b", 0, 1, 1, 0.5) }],
    );
    let (exported, path) = fixture.run("out.csv", |_| {}).unwrap();
    assert_eq!((exported.rows, exported.labelled), (2, 1));
    let mut reader = csv::Reader::from_path(&path).unwrap();
    let head: Vec<String> = reader.headers().unwrap().iter().map(str::to_owned).collect();
    let records: Vec<csv::StringRecord> = reader.records().map(Result::unwrap).collect();
    let cell = |row: usize, name: &str| records[row][head.iter().position(|h| h == name).unwrap()].to_owned();
    assert_eq!(cell(0, "request_id"), "a,b");
    assert_eq!(cell(0, "ts"), "2026-11-03T00:00:00.000001Z");
    assert_eq!(cell(0, "inputs.h"), "[0.099975586,-Infinity]");
    assert_eq!(cell(0, "inputs.t"), "[\"say \\\"hi\\\",\\n\",{\"b64\":\"/wA=\"}]");
    assert_eq!(cell(0, "outputs.y"), "[NaN]");
    assert_eq!((cell(1, "outputs.y"), cell(1, "status")), (String::new(), "ENGINE_FAILED".to_owned()));
    assert_eq!((cell(0, "label_num"), cell(1, "label_num")), (String::new(), "0.5".to_owned()));
    assert_eq!(cell(1, "values"), "{\"re\\\"v\":1.5,\"lost\":Infinity}");
    assert_eq!(cell(0, "truncated"), "false");
    assert_eq!(cell(0, "values"), "");
}

#[test]
fn logged_requests_become_golden_answers_and_a_warm_up() {
    let fixture = Fixture::new();
    let infinite = request("c", 3, &[f32::INFINITY, 0.0], &[0.0]);
    let cut = Request { truncated: true, inputs: vec![None], ..request("d", 4, &[0.0, 0.0], &[0.0]) };
    let failed_one = Request { status: "ENGINE_FAILED", outputs: None, ..request("e", 5, &[0.0, 0.0], &[0.0]) };
    fixture.seal(
        1,
        &about(1, "aa", pairs()),
        &[
            request("a", 1, &[0.1, -0.0], &[f32::NAN]),
            request("b", 2, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &[3.0, 7.0, 1e-30]),
            infinite,
            cut,
            failed_one,
        ],
    );
    let (exported, path) = fixture.run("golden.json", |_| {}).unwrap();
    assert_eq!(exported.rows, 2);
    let left_out: Vec<_> = exported.left_out.into_iter().collect();
    assert_eq!(left_out, [("failed", 1), ("not_json", 1), ("truncated", 1)]);
    let golden = Golden::parse(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!((golden.rtol, golden.atol), (1e-3, 1e-5));
    let bits = |tensor: &Tensor| match tensor.data() {
        Data::Fp32(e) => e.iter().map(|x| x.to_bits()).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    let tensor = |case: usize| &golden.cases[case].request.inputs[0].tensor;
    assert_eq!(bits(tensor(0)), [0.1f32.to_bits(), (-0.0f32).to_bits()]);
    assert_eq!(tensor(1), &floats(&[3, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), "its rows are one request");
    assert_eq!(golden.cases[1].outputs[0].name, "y");
    assert_eq!(golden.cases[1].outputs[0].tensor, floats(&[3], &[3.0, 7.0, 1e-30]));
    assert!(matches!(golden.cases[0].outputs[0].tensor.data(), Data::Fp32(e) if e[0].is_nan()));

    let (exported, path) = fixture.run("warmup.json", |options| options.limit = Some(1)).unwrap();
    assert_eq!(exported.rows, 1);
    let requests = parse_warmup(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!((requests.len(), requests[0].inputs[0].name.as_str()), (1, "x"));

    fixture.seal(2, &about(2, "bb", pairs()), &[request("f", 6, &[1.0, 2.0], &[3.0])]);
    let message = failed(fixture.run("golden.json", |_| {}));
    assert!(message.contains("versions 1, 2") && message.contains("--version"), "{message}");
}

#[test]
fn a_failed_export_leaves_no_file() {
    let fixture = filled();
    let message = failed(fixture.run("missing/out.parquet", |_| {}));
    assert!(message.starts_with("there is no directory"), "{message}");
    std::fs::write(fixture.dir.path().join("out.parquet"), "before").unwrap();
    let dir = fixture.data().join("predictions/model=m/date=2026-11-03");
    std::fs::write(dir.join("00000000000000000009-0.parquet"), "not Parquet").unwrap();
    let message = failed(fixture.run("out.parquet", |_| {}));
    assert!(message.contains("00000000000000000009-0.parquet"), "{message}");
    assert_eq!(std::fs::read_to_string(fixture.dir.path().join("out.parquet")).unwrap(), "before");
    assert_eq!(std::fs::read_dir(fixture.dir.path()).unwrap().count(), 2);
    std::fs::write(dir.join("00000000000000000009-0.tmp"), "not Parquet").unwrap();
    std::fs::remove_file(dir.join("00000000000000000009-0.parquet")).unwrap();
    fixture.run("out.parquet", |_| {}).unwrap();
}

#[test]
fn formats_times_and_gates_are_parsed() {
    assert_eq!(Format::of("a/b.PARQUET".as_ref()).unwrap(), Format::Parquet);
    assert_eq!(Format::of("golden.json".as_ref()).unwrap(), Format::Golden);
    assert!(matches!(Format::of("b.json".as_ref()), Err(Error::Usage(_))));
    assert_eq!(parse_time("2026-11-03").unwrap(), DAY);
    assert_eq!(parse_time("2026-11-03T01:00:00+01:00").unwrap(), DAY);
    for bad in ["", "yesterday", "2026-11-03T01:00", "2026-13-01", "20261103"] {
        assert!(matches!(parse_time(bad), Err(Error::Usage(_))), "{bad}");
    }
    for good in ["within_tolerance>=0.999", "failed <= 0", "p99_us<1e4", "top1_flipped<0.01", "accuracy>0.5"] {
        assert!(Gate::parse(good).is_ok(), "{good}");
    }
    assert_eq!(Gate::parse(" agreement >= 0.5").unwrap().to_string(), "agreement>=0.5");
    for (bad, why) in [
        ("agreement", "no operator"),
        ("agreement=1", "no operator"),
        ("agree>=1", "expected one of within_tolerance"),
        ("agreement>=", "number"),
        ("agreement>=NaN", "number"),
        ("agreement>==1", "number"),
    ] {
        let Err(Error::Usage(message)) = Gate::parse(bad) else { panic!("{bad}") };
        assert!(message.contains(why), "{message}");
    }
}
