//! The content of records, and what is left out of them.

use super::*;

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
