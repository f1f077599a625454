//! What a record is, and what is left out of it.

use super::*;

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
