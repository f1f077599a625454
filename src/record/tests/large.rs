//! Tensors that are stored as they are: their files hold what any other way of writing them gives.

use super::*;
use crate::tensor::Elements;
use arrow_array::types::{Int8Type, UInt8Type};
use arrow_select::concat::concat_batches;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use proptest::prelude::*;

/// Types that are stored as they are; two-byte integers only where there are many.
const TYPES: [DataType; 12] = [
    DataType::Fp32,
    DataType::Fp64,
    DataType::Fp16,
    DataType::Int32,
    DataType::Uint32,
    DataType::Int64,
    DataType::Uint64,
    DataType::Uint8,
    DataType::Int8,
    DataType::Uint16,
    DataType::Int16,
    DataType::Bool,
];

fn elements(datatype: DataType, n: usize, random: &mut fastrand::Rng, repeats: bool) -> Data {
    let width = datatype.width().unwrap();
    let mut bytes: Vec<u8> =
        (0..n * width).map(|i| if repeats { (i % 3).to_le_bytes()[0] } else { random.u8(..) }).collect();
    if datatype == DataType::Bool {
        return Data::Bool(bytes.iter().map(|b| b % 2 == 0).collect());
    }
    // NaN of many kinds among them.
    if datatype == DataType::Fp32 && n > 1 {
        bytes[..4].copy_from_slice(&0xffc1_2345u32.to_le_bytes());
    }
    let bytes = Bytes::from(bytes);
    match datatype {
        DataType::Fp32 => Data::Fp32(Elements::view(bytes).unwrap()),
        DataType::Fp64 => Data::Fp64(Elements::view(bytes).unwrap()),
        DataType::Fp16 => Data::Fp16(Elements::view(bytes).unwrap()),
        DataType::Int32 => Data::Int32(Elements::view(bytes).unwrap()),
        DataType::Uint32 => Data::Uint32(Elements::view(bytes).unwrap()),
        DataType::Int64 => Data::Int64(Elements::view(bytes).unwrap()),
        DataType::Uint64 => Data::Uint64(Elements::view(bytes).unwrap()),
        DataType::Uint8 => Data::Uint8(Elements::view(bytes).unwrap()),
        DataType::Int8 => Data::Int8(Elements::view(bytes).unwrap()),
        DataType::Uint16 => Data::Uint16(Elements::view(bytes).unwrap()),
        DataType::Int16 => Data::Int16(Elements::view(bytes).unwrap()),
        other => unreachable!("{other}"),
    }
}

/// Seals one segment of random requests, and returns what is read from the segment and what is read from its files. `most`: elements of a row.
fn both_ways(seed: u64, types: &[DataType], requests: usize, most: usize, repeats: bool) -> (RecordBatch, RecordBatch) {
    let random = &mut fastrand::Rng::with_seed(seed);
    let inputs = types.iter().enumerate().map(|(i, t)| spec(&format!("x{i}"), *t, &[FREE, FREE])).collect();
    let about = about(inputs, vec![spec("y", DataType::Fp32, &[FREE, FREE])]);
    let fixture = Fixture::new(|config| config.acknowledge = Acknowledge::Disk, Box::new(RealDisk));
    let all = Choice { max_record_bytes: usize::MAX, ..Choice::default() };
    let whole = fixture.log.stream(&about, &all).unwrap();
    let cut = Choice { max_record_bytes: 1500, ..Choice::default() };
    let cut = fixture.log.stream(&about, &cut).unwrap();
    for i in 0..requests {
        let rows = random.usize(1..4);
        let tensors = types.iter().map(|datatype| {
            // Some rows have no elements.
            let width = if random.u8(..) < 40 { 0 } else { random.usize(1..most) };
            tensor(&[rows, width], elements(*datatype, rows * width, random, repeats))
        });
        let request = checked(&about, tensors.collect());
        let y = tensor(&[rows, 300], elements(DataType::Fp32, rows * 300, random, repeats));
        let answer = answer(&about, vec![y]);
        let outcome = if i % 5 == 4 { Err(Code::EngineFailed) } else { Ok(&answer) };
        // The tensors of some records are left out, the largest first.
        let stream = if i % 3 == 2 { &cut } else { &whole };
        fixture.offer(stream, &prediction(&i.to_string(), &request, outcome)).unwrap();
    }
    let segment = unsealed(fixture.dir.path(), &about.model).unwrap();
    let segment: Vec<RecordBatch> = segment.predictions.into_iter().flat_map(|(_, batches)| batches).collect();
    let dir = fixture.stop();
    let sealed = predictions(dir.path());
    let join = |batches: &[RecordBatch]| concat_batches(batches[0].schema_ref(), batches).unwrap();
    (join(&segment), join(&sealed))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn sealed_tensors_equal_those_in_the_segment(seed in 0u64..1 << 40, requests in 1usize..20, repeats in proptest::bool::ANY) {
        let mut types = TYPES.to_vec();
        fastrand::Rng::with_seed(seed).shuffle(&mut types);
        let (segment, sealed) = both_ways(seed, &types[..3], requests, 700, repeats);
        prop_assert_eq!(segment.schema_ref().fields(), sealed.schema_ref().fields());
        prop_assert_eq!(segment.num_rows(), sealed.num_rows());
        // Not batch by batch: NaN is not equal to itself there.
        prop_assert_eq!(format!("{:?}", segment.columns()), format!("{:?}", sealed.columns()));
        for (ours, theirs) in segment.columns().iter().zip(sealed.columns()) {
            prop_assert!(ours.to_data() == theirs.to_data());
        }
    }
}

#[test]
fn many_two_byte_integers_and_booleans_equal_those_in_the_segment() {
    for repeats in [false, true] {
        let types = [DataType::Uint16, DataType::Int16, DataType::Bool];
        let (segment, sealed) = both_ways(7, &types, 30, 100_000, repeats);
        assert!(segment.num_rows() > 30 && segment.num_rows() == sealed.num_rows());
        for (ours, theirs) in segment.columns().iter().zip(sealed.columns()) {
            assert!(ours.to_data() == theirs.to_data(), "repeats: {repeats}");
        }
    }
}

fn metadata(dir: &Path) -> parquet::file::metadata::RowGroupMetaData {
    let path = files(&dir.join("predictions")).into_values().next().unwrap();
    let file = ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap()).unwrap();
    file.metadata().row_group(0).clone()
}

#[test]
fn random_numbers_are_stored_as_they_are_and_repeating_ones_are_compressed() {
    let types = [
        (DataType::Fp32, 1.0),
        (DataType::Uint8, 1.0),
        (DataType::Int8, 1.0),
        // With a dictionary of 256 KiB for 4 MB.
        (DataType::Uint16, 1.066),
        (DataType::Int16, 1.066),
        (DataType::Bool, 0.125),
    ];
    for (repeats, codec) in [(false, Compression::UNCOMPRESSED), (true, Compression::ZSTD(ZstdLevel::default()))] {
        for (datatype, stored) in types {
            let (least, most) = if repeats { (0.0, 0.2) } else { (0.99 * stored, 1.01 * stored) };
            let random = &mut fastrand::Rng::with_seed(3);
            let about = about(vec![spec("x", datatype, &[FREE, Dim::Fixed(100_003)])], vec![]);
            let fixture = Fixture::new(|config| config.acknowledge = Acknowledge::Disk, Box::new(RealDisk));
            let stream = fixture.log.stream(&about, &Choice::default()).unwrap();
            for i in 0..20 {
                let request =
                    checked(&about, vec![tensor(&[1, 100_003], elements(datatype, 100_003, random, repeats))]);
                fixture.offer(&stream, &prediction(&i.to_string(), &request, Err(Code::EngineFailed))).unwrap();
            }
            let dir = fixture.stop();
            let group = metadata(dir.path());
            let column = group.columns().iter().find(|c| c.column_path().string().contains("inputs.x")).unwrap();
            let share = column.compressed_size() as f64 / (20 * 100_003 * datatype.width().unwrap()) as f64;
            assert!((least..most).contains(&share), "{datatype}: {share}");
            assert_eq!(
                std::mem::discriminant(&column.compression()),
                std::mem::discriminant(&codec),
                "{datatype}: {column:?}"
            );
            assert!(column.encodings().any(|e| e == Encoding::PLAIN) && column.statistics().is_none(), "{column:?}");
            let list = predictions(dir.path())[0]["inputs"].as_struct().column(0).as_list::<i32>().value(0);
            assert_eq!(list.len(), 100_003);
            if datatype == DataType::Int8 && repeats {
                assert_eq!(&list.as_primitive::<Int8Type>().values()[..4], &[0, 1, 2, 0]);
            }
            if datatype == DataType::Uint8 && repeats {
                assert_eq!(&list.as_primitive::<UInt8Type>().values()[..4], &[0, 1, 2, 0]);
            }
        }
    }
}

#[test]
fn many_row_groups_hold_all_records_in_order() {
    let about =
        about(vec![spec("x", DataType::Fp32, &[FREE, Dim::Fixed(20)])], vec![spec("y", DataType::Fp32, &[FREE])]);
    let fixture = Fixture::new(|config| config.acknowledge = Acknowledge::Disk, Box::new(RealDisk));
    let stream = fixture.log.stream(&about, &Choice::default()).unwrap();
    // More rows than a row group holds.
    let rows = 50_000;
    for i in 0..4usize {
        let x: Vec<f32> = (0..rows * 20).map(|k| (i * rows * 20 + k) as f32).collect();
        let request = checked(&about, vec![tensor(&[rows, 20], Data::Fp32(x.into()))]);
        fixture.offer(&stream, &prediction(&i.to_string(), &request, Err(Code::EngineFailed))).unwrap();
    }
    let dir = fixture.stop();
    let path = files(&dir.path().join("predictions")).into_values().next().unwrap();
    let file = ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap()).unwrap();
    assert!(file.metadata().num_row_groups() > 1);
    let mut at = 0;
    for batch in predictions(dir.path()) {
        let x = batch["inputs"].as_struct().column(0).as_list::<i32>().clone();
        for row in 0..batch.num_rows() {
            assert_eq!(x.value(row).as_primitive::<Float32Type>().value(19), (at * 20 + 19) as f32);
            at += 1;
        }
    }
    assert_eq!(at, 4 * rows);
}
