//! The content of records, and what is left out of them.

use super::*;
use crate::bucket::Prefix;

#[test]
fn a_request_with_rows_gives_one_record_per_row_with_the_documented_columns() {
    let fixture = Fixture::new(|_| {}, Box::new(RealDisk));
    let about = simple();
    let stream = fixture.log.stream(&about, &Choice { hash_route_key: false, ..Choice::default() }).unwrap();
    let (request, answer) = rows(&about, 3);
    fixture.offer(&stream, &prediction("a", &request, Ok(&answer))).unwrap();
    fixture.offer(&stream, &prediction("b", &request, Err(Code::EngineFailed))).unwrap();
    let dir = fixture.stop();
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
    let name = inputs.column_by_name("name").unwrap().as_list::<i32>();
    assert_eq!(name.value(1).as_string::<i32>().value(0), "user-1");
    let outputs = batch["outputs"].as_struct();
    assert!(outputs.is_valid(0) && outputs.is_null(3));
    let y = outputs.column_by_name("y").unwrap().as_list::<i32>();
    assert_eq!(y.value(2).as_primitive::<Float32Type>().values(), &[2.5]);
}

#[test]
fn a_request_without_rows_or_with_an_answer_of_other_rows_gives_one_record() {
    let fixture = Fixture::new(|_| {}, Box::new(RealDisk));
    let fixed = about(vec![spec("x", DataType::Int64, &[Dim::Fixed(2)])], vec![spec("y", DataType::Fp16, &[])]);
    let stream = fixture.log.stream(&fixed, &Choice::default()).unwrap();
    let request = checked(&fixed, vec![tensor(&[2], Data::Int64(vec![i64::MIN, 7].into()))]);
    let half = answer(&fixed, vec![tensor(&[], Data::Fp16(vec![f16::NAN].into()))]);
    fixture.offer(&stream, &prediction("namele", &request, Ok(&half))).unwrap();
    let summing = simple();
    let other = fixture.log.stream(&summing, &Choice::default()).unwrap();
    let (request, _) = rows(&summing, 3);
    let sum = answer(&summing, vec![tensor(&[1], Data::Fp32(vec![9.0].into()))]);
    fixture.offer(&other, &prediction("summed", &request, Ok(&sum))).unwrap();
    let (none, nothing) = rows(&summing, 0);
    fixture.offer(&other, &prediction("nothing", &none, Ok(&nothing))).unwrap();
    let dir = fixture.stop();
    let batches = predictions(dir.path());
    assert_eq!(ids(&batches), ["namele", "summed"]);
    let x = batches[0]["inputs"].as_struct().column(0).as_list::<i32>().value(0);
    assert_eq!(x.as_primitive::<Int64Type>().values(), &[i64::MIN, 7]);
    let y = batches[0]["outputs"].as_struct().column(0).as_list::<i32>().value(0);
    assert!(y.as_primitive::<Float16Type>().value(0).is_nan());
    assert_eq!(batches[1]["row"].as_primitive::<Int32Type>().values(), &[0]);
    let x = batches[1]["inputs"].as_struct().column_by_name("x").unwrap().as_list::<i32>().value(0);
    assert_eq!(x.len(), 6, "all rows of the request in one record");
}

#[test]
fn the_column_shapes_exists_where_lengths_do_not_determine_shapes() {
    let fixture = Fixture::new(|_| {}, Box::new(RealDisk));
    let about = about(vec![spec("x", DataType::Uint8, &[FREE, FREE, FREE])], vec![spec("y", DataType::Bool, &[FREE])]);
    let stream = fixture.log.stream(&about, &Choice::default()).unwrap();
    let request = checked(&about, vec![tensor(&[2, 2, 3], Data::Uint8((0..12).collect::<Vec<_>>().into()))]);
    let flags = answer(&about, vec![tensor(&[2], Data::Bool(vec![true, false]))]);
    fixture.offer(&stream, &prediction("a", &request, Ok(&flags))).unwrap();
    let dir = fixture.stop();
    let batches = predictions(dir.path());
    assert_eq!(text(&batches[0], SHAPES, 1).unwrap(), r#"{"inputs":{"x":[1,2,3]}}"#);
    let y = batches[0]["outputs"].as_struct().column(0).as_list::<i32>();
    assert_eq!((y.value(0).as_boolean().value(0), y.value(1).as_boolean().value(0)), (true, false));
}

#[test]
fn all_files_of_a_model_have_the_column_shapes_where_one_version_needs_it() {
    let fixture = Fixture::new(|_| {}, Box::new(RealDisk));
    let (plain, other) = (simple(), About { model: "other".parse().unwrap(), ..simple() });
    let needs = About {
        version: "4".parse().unwrap(),
        ..about(vec![spec("x", DataType::Uint8, &[FREE, FREE, FREE])], vec![spec("y", DataType::Bool, &[FREE])])
    };
    assert!(needs.may_need_shapes() && !plain.may_need_shapes());
    let pairs = about(vec![spec("x", DataType::Fp32, &[FREE, FREE])], vec![spec("y", DataType::Fp32, &[FREE])]);
    assert!(!pairs.may_need_shapes(), "the length of a row is its shape");
    let _needs = fixture.log.stream(&needs, &Choice::default()).unwrap();
    for about in [&plain, &other] {
        let stream = fixture.log.stream(about, &Choice::default()).unwrap();
        let (request, answer) = rows(about, 2);
        fixture.offer(&stream, &prediction("a", &request, Ok(&answer))).unwrap();
    }
    let dir = fixture.stop();
    let columns = |model: &str| {
        let files = files(&dir.path().join("predictions").join(format!("model={model}")));
        let batch = read(files.values().next().unwrap()).remove(0);
        batch.column_by_name(SHAPES).map(|shapes| (shapes.len(), shapes.null_count()))
    };
    assert_eq!((columns("m"), columns("other")), (Some((2, 2)), None), "null where not needed");
}

#[test]
fn texts_that_are_not_utf8_are_stored_as_binary() {
    let fixture = Fixture::new(|_| {}, Box::new(RealDisk));
    let about = simple();
    let stream = fixture.log.stream(&about, &Choice::default()).unwrap();
    let x = || tensor(&[1, 2], Data::Fp32(vec![0.0, f32::NEG_INFINITY].into()));
    let request = checked(&about, vec![x(), tensor(&[1], Data::Bytes(vec![Bytes::from_static(&[0xff, 0])]))]);
    fixture.offer(&stream, &prediction("a", &request, Err(Code::InvalidTensor))).unwrap();
    let dir = fixture.stop();
    let name = predictions(dir.path())[0]["inputs"].as_struct().column_by_name("name").unwrap().clone();
    assert_eq!(name.as_list::<i32>().value(0).as_binary::<i32>().value(0), [0xff, 0]);
}

// === choice and privacy ===

fn hex(key: &HashKey, text: &[u8]) -> String {
    String::from_utf8(key.hash(text).to_vec()).unwrap()
}

#[test]
fn dropped_hashed_and_truncated_values_are_nowhere_on_the_disk() {
    let fixture = Fixture::new(|_| {}, Box::new(RealDisk));
    let about = simple();
    let choice =
        Choice { hash: ["inputs.name".to_owned()].into(), drop: ["outputs.y".to_owned()].into(), ..Choice::default() };
    let stream = fixture.log.stream(&about, &choice).unwrap();
    let (request, answer) = rows(&about, 1);
    fixture.offer(&stream, &prediction("a", &request, Ok(&answer))).unwrap();
    let cut = fixture.log.stream(&about, &Choice { max_record_bytes: 20, ..Choice::default() }).unwrap();
    fixture.offer(&cut, &prediction("cut", &request, Ok(&answer))).unwrap();
    let raw: Vec<u8> =
        files(&segment::dir(fixture.dir.path())).values().flat_map(|path| std::fs::read(path).unwrap()).collect();
    let holds = |needle: &[u8]| raw.windows(needle.len()).any(|window| window == needle);
    assert!(!holds(b"alice") && !holds(b"user-0"));
    let key = Arc::clone(&stream.key);
    let dir = fixture.stop();
    let batches = predictions(dir.path());
    let batch = batches.iter().find(|batch| ids(std::slice::from_ref(*batch)) == ["a"]).unwrap();
    assert_eq!(text(batch, "route_key", 0), Some(hex(&key, b"alice")));
    let name = batch["inputs"].as_struct().column_by_name("name").unwrap().as_list::<i32>().value(0);
    assert_eq!(name.as_string::<i32>().value(0), hex(&key, b"user-0"));
    assert!(batch["outputs"].data_type().is_null(), "no column of the outputs is left");
    assert!(!batch["truncated"].as_boolean().value(0));
    let batch = batches.iter().find(|batch| ids(std::slice::from_ref(*batch)) == ["cut"]).unwrap();
    assert!(batch["truncated"].as_boolean().value(0));
    let inputs = batch["inputs"].as_struct();
    assert!(inputs.column_by_name("name").unwrap().is_null(0), "the largest goes first");
    assert!(inputs.column_by_name("x").unwrap().is_valid(0));
    // The key is the same after a restart, and the hash is standard HMAC-SHA-256.
    let fixture = Fixture::on(dir, |_| {}, Box::new(RealDisk));
    assert_eq!(hex(&fixture.log.0.key, b"alice"), hex(&key, b"alice"));
    let known = HashKey::new(&[0x0b; 20]).unwrap().hash(b"Hi There");
    assert_eq!(known, *b"b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7", "RFC 4231, test case 1");
    fixture.stop();
}

/// A model whose output is a text per row.
fn naming(texts: &[&'static str]) -> (About, Checked, Answer) {
    let about = about(
        vec![spec("name", DataType::Bytes, &[FREE])],
        vec![spec("label", DataType::Bytes, &[FREE]), spec("other", DataType::Bytes, &[FREE])],
    );
    let column =
        || tensor(&[texts.len()], Data::Bytes(texts.iter().map(|text| Bytes::from_static(text.as_bytes())).collect()));
    let (request, answer) = (checked(&about, vec![column()]), answer(&about, vec![column(), column()]));
    (about, request, answer)
}

#[test]
fn patterns_are_masked_in_texts_and_the_length_stays() {
    let fixture = Fixture::new(|_| {}, Box::new(RealDisk));
    let (about, request, answer) = naming(&["call 555-0123 or 555-9999", "Müller: 555-4444", "none"]);
    let mask = |column: &str, pattern: &str| Mask::new(column, pattern).unwrap();
    let choice = Choice {
        mask: vec![mask("inputs.name", r"\d{3}-\d{4}"), mask("inputs.name", "M.ller"), mask("outputs.label", r"\d+")],
        ..Choice::default()
    };
    let stream = fixture.log.stream(&about, &choice).unwrap();
    let record = prediction("a", &request, Ok(&answer));
    let planned = Planned::new(&stream, &record).unwrap();
    let mut frame = Vec::new();
    planned.write(&mut frame, &planned.hash());
    assert_eq!(frame.len(), planned.bytes());
    fixture.offer(&stream, &record).unwrap();
    let dir = fixture.stop();
    let batch = &predictions(dir.path())[0];
    let texts = |side: &str, column: &str| -> Vec<String> {
        let lists = batch[side].as_struct().column_by_name(column).unwrap().as_list::<i32>().clone();
        (0..3).map(|row| lists.value(row).as_string::<i32>().value(0).to_owned()).collect()
    };
    assert_eq!(texts("inputs", "name"), ["call ******** or ********", "*******: ********", "none"]);
    assert_eq!(texts("outputs", "label")[0], "call ***-**** or ***-****");
    assert_eq!(texts("outputs", "other")[0], "call 555-0123 or 555-9999");
    for bad in ["(", "", &"a".repeat(1001), r"\w{1000}{1000}"] {
        assert!(Mask::new("inputs.name", bad).is_none(), "{bad:.20}");
    }
}

#[test]
fn what_the_log_hides_is_joined_with_feedback_before() {
    for choice in [
        Choice { hash: ["outputs.label".to_owned(), "label".to_owned()].into(), ..Choice::default() },
        Choice {
            drop: ["outputs.label", "outputs.other", "label", "values.cost"].map(str::to_owned).into(),
            ..Choice::default()
        },
        Choice {
            mask: ["outputs.label", "label"].map(|column| Mask::new(column, "at").unwrap()).into(),
            ..Choice::default()
        },
    ] {
        let fixture = Fixture::new(|_| {}, Box::new(RealDisk));
        let (about, request, answer) = naming(&["cat", "dog"]);
        let stream = fixture.log.stream(&about, &choice).unwrap();
        let predictions = [prediction("a", &request, Ok(&answer)), prediction("b", &request, Ok(&answer))];
        fixture.offer(&stream, &predictions[0]).unwrap();
        fixture.offer(&stream, &predictions[1]).unwrap();
        let shadow = Prediction { role: Role::Shadow, ..prediction("a", &request, Ok(&answer)) };
        fixture.offer(&stream, &shadow).unwrap();
        let entry = |id: &str, row: u32, label: &str| Feedback {
            row,
            label: Some(Update::Set(Label::Text(label.to_owned()))),
            values: vec![("cost".to_owned(), Update::Set(9.5)), ("revenue".to_owned(), Update::Set(2.0))],
            ..feedback_for(id)
        };
        let entries = [entry("a", 0, "cat"), entry("a", 1, "cat"), entry("b", 0, "cat")];
        block_on(fixture.log.record_feedback(&about.model, &choice, &entries, soon())).unwrap();
        // A later entry is on the disk after the ones before it, so nothing can come twice.
        block_on(fixture.log.record_feedback(&about.model, &choice, &[entry("nobody", 0, "x")], soon())).unwrap();
        let of = fixture.quality.of(&about.model);
        let figures = of.arms.values().next().unwrap();
        assert_eq!((of.arms.len(), figures.predictions, figures.labelled, of.feedback), (1, 4, 3, 4), "{choice:?}");
        assert_eq!((figures.classified, figures.correct, figures.values["cost"].count), (3, 2, 3), "{choice:?}");
        let key = Arc::clone(&fixture.log.0.key);
        let dir = fixture.stop();
        let batch = &read(files(&dir.path().join("feedback")).values().next().unwrap())[0];
        let label = text(batch, "label_str", 0);
        let values = batch["values"].as_map().value_length(0);
        match (choice.hash.is_empty(), choice.drop.is_empty()) {
            (false, _) => {
                assert_eq!((label, values), (Some(hex(&key, b"cat")), 2), "a hashed label equals a hashed output");
            }
            (_, false) => assert_eq!((label, values), (None, 1), "only revenue is stored"),
            _ => assert_eq!((label, values), (Some("c**".to_owned()), 2)),
        }
    }
}

#[test]
fn a_person_is_forgotten_in_predictions_and_feedback() {
    let fixture = Fixture::new(|_| {}, Box::new(RealDisk));
    let about = simple();
    let (request, answer) = rows(&about, 2);
    for hash_route_key in [true, false] {
        let stream = fixture.log.stream(&about, &Choice { hash_route_key, ..Choice::default() }).unwrap();
        for (id, key) in [("a", Some("alice")), ("b", Some("bob")), ("c", None)] {
            let id = format!("{id}-{hash_route_key}");
            let record = Prediction { route_key: key, ..prediction(&id, &request, Ok(&answer)) };
            fixture.offer(&stream, &record).unwrap();
            let feedback = [feedback_for(&id)];
            block_on(fixture.log.record_feedback(&about.model, &Choice::default(), &feedback, soon())).unwrap();
        }
    }
    let other = About { model: "other".parse().unwrap(), ..simple() };
    let stream = fixture.log.stream(&other, &Choice::default()).unwrap();
    fixture.offer(&stream, &prediction("o", &request, Ok(&answer))).unwrap();
    let dir = fixture.stop();
    let data = dir.path();
    let metadata = || {
        let path = files(&data.join("predictions/model=m")).into_values().next().unwrap();
        let builder = ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap()).unwrap();
        let pairs = builder.metadata().file_metadata().key_value_metadata().unwrap().clone();
        (builder.schema().clone(), pairs.into_iter().map(|pair| (pair.key, pair.value)).collect::<BTreeMap<_, _>>())
    };
    let left = |kind: &str| {
        let of_m = files(&data.join(kind).join("model=m"));
        let mut left = ids(&of_m.values().flat_map(|path| read(path)).collect::<Vec<_>>());
        left.sort_unstable();
        left.dedup();
        left.join(" ")
    };
    let before = metadata();
    let model = about.model.clone();
    let alice = Subject::RouteKey("alice".to_owned());
    let done = forget(data, None, Some(&model), &alice, None).unwrap();
    assert_eq!((done.predictions, done.feedback, done.models.len()), (4, 2, 1), "two rows of two requests: {done:?}");
    assert_eq!(
        (left("predictions"), left("feedback")),
        ("b-false b-true c-false c-true".to_owned(), "b-false b-true c-false c-true".to_owned())
    );
    assert_eq!(metadata(), before, "the file says the same about its records");
    let raw: Vec<u8> = files(data).values().flat_map(|path| std::fs::read(path).unwrap()).collect();
    assert!(!raw.windows(7).any(|window| window == b"a-false"), "nothing of the records is left");
    assert_eq!(forget(data, None, Some(&model), &alice, None).unwrap(), Forgotten::default(), "there is nothing more");
    let rest = forget(data, None, None, &alice, None).unwrap();
    assert_eq!((rest.predictions, rest.files), (2, 1), "of another model");
    assert!(files(&data.join("predictions/model=other")).is_empty(), "a file without records is removed");
    let by_id = forget(data, None, None, &Subject::RequestId("c-true".to_owned()), None).unwrap();
    assert_eq!((by_id.predictions, by_id.feedback), (2, 1));
    assert_eq!(left("predictions"), "b-false b-true c-false");
    let empty = tempfile::tempdir().unwrap();
    assert!(
        forget(empty.path(), None, None, &alice, None).unwrap_err().to_string().contains("holds no prediction log")
    );
}

#[test]
fn a_person_is_forgotten_in_the_bucket_of_all_gateways_too() {
    let fixture = Fixture::new(|_| {}, Box::new(RealDisk));
    let about = simple();
    let (request, answer) = rows(&about, 2);
    let choice = Choice { hash_route_key: false, ..Choice::default() };
    let stream = fixture.log.stream(&about, &choice).unwrap();
    for (id, key) in [("a", "alice"), ("b", "bob")] {
        fixture.offer(&stream, &Prediction { route_key: Some(key), ..prediction(id, &request, Ok(&answer)) }).unwrap();
        block_on(fixture.log.record_feedback(&about.model, &choice, &[feedback_for(id)], soon())).unwrap();
    }
    let other = About { model: "other".parse().unwrap(), ..simple() };
    let stream = fixture.log.stream(&other, &choice).unwrap();
    let hers = Prediction { route_key: Some("alice"), ..prediction("o", &request, Ok(&answer)) };
    fixture.offer(&stream, &hers).unwrap();
    let dir = fixture.stop();
    let data = dir.path();
    let bucket = Arc::new(Prefix::in_memory("s3://b/p"));
    let object = |path: &std::path::Path, node: &str| {
        let name = path.strip_prefix(data).unwrap().with_extension(format!("{node}.0a1b2c3d.parquet"));
        name.to_str().unwrap().to_owned()
    };
    let sealed = || -> Vec<std::path::PathBuf> {
        let kinds = ["predictions", "feedback"];
        kinds.iter().flat_map(|kind| files(&data.join(kind)).into_values().collect::<Vec<_>>()).collect()
    };
    for path in sealed() {
        for node in ["eu-1", "eu-2"] {
            bucket.replace(&object(&path, node), &path, "0").unwrap();
        }
    }
    let alice = Subject::RouteKey("alice".to_owned());
    let done = forget(data, None, None, &alice, Some(&bucket)).unwrap();
    assert_eq!((done.predictions, done.feedback, done.files), (4, 1, 3), "{done:?}");
    let uploaded = done.uploaded.unwrap();
    assert_eq!((uploaded.predictions, uploaded.feedback, uploaded.files), (8, 2, 6), "{uploaded:?}");
    assert!(
        bucket.list("predictions/model=other", None, None).unwrap().is_empty(),
        "an object without rows is removed"
    );
    let mut compared = 0;
    for path in sealed() {
        for node in ["eu-1", "eu-2"] {
            let name = object(&path, node);
            let listed = bucket.list(name.rsplit_once('/').unwrap().0, None, None).unwrap();
            let listed = listed.into_iter().find(|listed| listed.name == name).unwrap();
            let bytes = bucket.read(&listed, 0, listed.bytes).unwrap();
            assert!(bytes == std::fs::read(&path).unwrap(), "{name} is the file, without her");
            compared += 1;
        }
    }
    assert_eq!(compared, 4);
    let again = forget(data, None, None, &alice, Some(&bucket)).unwrap();
    assert_eq!(again, Forgotten { uploaded: Some(Removed::default()), ..Forgotten::default() });
    let by_id = forget(data, None, None, &Subject::RequestId("b".to_owned()), Some(&bucket)).unwrap();
    assert_eq!((by_id.predictions, by_id.uploaded.unwrap().predictions), (2, 4), "{by_id:?}");
    assert!(sealed().is_empty() && bucket.list("predictions", None, None).unwrap().is_empty());
    assert!(!data.join("upload").exists() || std::fs::read_dir(data.join("upload")).unwrap().next().is_none());
}

#[test]
fn an_output_is_shown_as_it_is_stored() {
    let fixture = Fixture::new(|_| {}, Box::new(RealDisk));
    let texts = tensor(&[2], Data::Bytes(vec![Bytes::from_static(b"cat 7"), Bytes::from_static(b"dog")]));
    let numbers = tensor(&[2], Data::Int64(vec![3, -1].into()));
    let key = Arc::clone(&fixture.log.0.key);
    let choice = Choice {
        drop: ["outputs.gone".to_owned()].into(),
        hash: ["outputs.hashed".to_owned()].into(),
        mask: vec![Mask::new("outputs.masked", "[0-9]").unwrap()],
        ..Choice::default()
    };
    let stored = |name: &str, tensor: &Tensor| fixture.log.stored_output(&choice, name, tensor);
    assert_eq!(stored("gone", &texts), None);
    assert_eq!(stored("plain", &texts), Some(texts.clone()));
    let shown = |name: &str, of: &Tensor| match stored(name, of).unwrap().data() {
        Data::Bytes(texts) => texts.iter().map(|text| String::from_utf8(text.to_vec()).unwrap()).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    assert_eq!(shown("hashed", &numbers), [hex(&key, b"3"), hex(&key, b"-1")]);
    assert_eq!(shown("masked", &texts), ["cat *", "dog"]);
    assert!(choice.hides_output("hashed") && !choice.hides_output("plain") && !choice.hides_any_input());
    fixture.stop();
}

#[test]
fn samples_depend_on_the_id_and_are_nested() {
    let ids: Vec<String> = (0..10_000).map(|i| format!("id-{i}")).collect();
    let of = |rate: f64| ids.iter().filter(|id| is_sampled(id, rate)).collect::<Vec<_>>();
    let (some, more) = (of(0.1), of(0.3));
    assert!(some.iter().all(|id| more.contains(id)));
    assert!((900..1100).contains(&some.len()) && (2850..3150).contains(&more.len()), "{} {}", some.len(), more.len());
    assert_eq!((of(0.0).len(), of(1.0).len()), (0, 10_000));
}

#[test]
fn unknown_columns_are_reported() {
    let choice = Choice { drop: ["inputs.ssn".to_owned(), "route_key".to_owned()].into(), ..Choice::default() };
    assert_eq!(choice.unknown_columns(&simple()), ["inputs.ssn"]);
    assert!(Choice::is_column("inputs.x", true) && Choice::is_column("route_key", false));
    assert!(
        Choice::is_column("label", true) && ["label", "values", "values.a"].iter().all(|c| Choice::is_column(c, false))
    );
    assert!(!Choice::is_column("values", true) && !Choice::is_column("values.a", true), "numbers have no hash");
    let mask = ["inputs.x", "inputs.name", "outputs.z", "label"].map(|column| Mask::new(column, "a").unwrap());
    let choice = Choice { mask: mask.into(), drop: ["values.a".to_owned()].into(), ..Choice::default() };
    assert_eq!(choice.unknown_columns(&simple()), ["inputs.x", "outputs.z"], "floats have no text");
    assert!(
        !Choice::is_column("route_key", true) && !Choice::is_column("inputs.", false) && !Choice::is_column("x", false)
    );
}

#[test]
fn equal_arguments_give_the_same_stream() {
    let fixture = Fixture::new(|_| {}, Box::new(RealDisk));
    let about = simple();
    let first = fixture.log.stream(&about, &Choice::default()).unwrap();
    assert!(Arc::ptr_eq(&first, &fixture.log.stream(&about, &Choice::default()).unwrap()));
    let other = fixture.log.stream(&about, &Choice { sample_rate: 0.5, ..Choice::default() }).unwrap();
    assert!(!Arc::ptr_eq(&first, &other));
    assert!(fixture.log.stream(&about, &Choice { enabled: false, ..Choice::default() }).is_none());
    fixture.stop();
}

#[test]
fn a_record_is_sized_as_it_is_stored_so_a_large_hashed_tensor_is_left_out_before_it_is_hashed() {
    let fixture = Fixture::new(|_| {}, Box::new(RealDisk));
    let about = about(vec![spec("x", DataType::Uint8, &[FREE, FREE])], vec![]);
    let hash_x = Choice { hash: ["inputs.x".to_owned()].into(), ..Choice::default() };
    let stream = fixture.log.stream(&about, &hash_x).unwrap();
    // 16,384 bytes in memory, 68 times as many as hashes: more than max_record_bytes.
    let request = checked(&about, vec![tensor(&[1, 16_384], Data::Uint8(vec![7; 16_384].into()))]);
    let prediction = prediction("a", &request, Err(Code::EngineFailed));
    let planned = Planned::new(&stream, &prediction).unwrap();
    assert!(planned.bytes() < 300, "the tensor is left out: {}", planned.bytes());
    let small = fixture.log.stream(&about, &Choice { max_record_bytes: 68 * 16_384, ..hash_x }).unwrap();
    let planned = Planned::new(&small, &prediction).unwrap();
    assert!(planned.bytes() > 68 * 16_384, "{}", planned.bytes());
    fixture.stop();
}

#[test]
fn the_planned_size_is_the_written_size() {
    let fixture = Fixture::new(|_| {}, Box::new(RealDisk));
    let about = simple();
    let long = "ä".repeat(40_000);
    for hash in [&[][..], &["inputs.x", "inputs.name", "outputs.y"]] {
        let hash = hash.iter().map(|column| (*column).to_owned()).collect();
        for (hash_route_key, drop) in [(true, None), (false, Some("outputs.y")), (false, Some("route_key"))] {
            let drop = drop.into_iter().map(str::to_owned).collect();
            let choice = Choice { hash: Clone::clone(&hash), hash_route_key, drop, ..Choice::default() };
            let stream = fixture.log.stream(&about, &choice).unwrap();
            for n in [1, 3] {
                let (request, answer) = rows(&about, n);
                for outcome in [Ok(&answer), Err(Code::EngineFailed)] {
                    let record = Prediction {
                        route_key: Some(&long),
                        traceparent: Some("00-a-b-01"),
                        ..prediction("id", &request, outcome)
                    };
                    let planned = Planned::new(&stream, &record).unwrap();
                    let mut out = vec![1, 2, 3];
                    planned.write(&mut out, &planned.hash());
                    assert_eq!(out.len() - 3, planned.bytes(), "{choice:?} {n} {outcome:?}");
                }
            }
        }
    }
    fixture.stop();
}
