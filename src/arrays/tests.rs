use super::{Arrays, MAX_BYTES, Wanted, read};
use crate::model::{Dim, TensorSpec};
use crate::tensor::{Data, DataType};
use arrow_array::builder::{FixedSizeListBuilder, Float32Builder, ListBuilder};
use arrow_array::{ArrayRef, BooleanArray, Int64Array, RecordBatch, StringArray};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// `-1`: a free dimension.
fn spec(name: &str, datatype: DataType, dims: &[i64]) -> TensorSpec {
    let dims = dims.iter().map(|n| usize::try_from(*n).map_or(Dim::Free(None), Dim::Fixed)).collect();
    TensorSpec { name: name.into(), datatype, dims: Some(dims) }
}

fn read_for(path: &Path, specs: &[TensorSpec], names: &[&str]) -> Result<Arrays, String> {
    let element_names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    read(path, &Wanted { side: "input", specs, required: specs.len(), element_names: &element_names })
}

/// The bytes of an `.npy` file.
fn npy(descr: &str, fortran: bool, shape: &str, data: &[u8]) -> Vec<u8> {
    let fortran = if fortran { "True" } else { "False" };
    with_header(&format!("{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n"), data)
}

fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(header.len()).unwrap().to_le_bytes();
    [b"\x93NUMPY\x01\x00", &length[..], header.as_bytes(), data].concat()
}

fn file(dir: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

fn zip(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, bytes) in entries {
        zip.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn le<const N: usize>(values: impl IntoIterator<Item = [u8; N]>) -> Vec<u8> {
    values.into_iter().flatten().collect()
}

#[test]
fn arrays_of_every_type_are_converted_to_the_datatype_of_the_tensor() {
    let dir = tempfile::tempdir().unwrap();
    let fp32 = |x: &[f32]| Data::Fp32(x.to_vec().into());
    let cases: [(&str, Vec<u8>, DataType, Data); 9] = [
        ("'<f8'", le([0.1f64.to_le_bytes(), 2f64.to_le_bytes()]), DataType::Fp32, fp32(&[0.1, 2.0])),
        ("'>f4'", le([1.5f32.to_be_bytes(), f32::INFINITY.to_be_bytes()]), DataType::Fp32, fp32(&[1.5, f32::INFINITY])),
        (
            "'<f2'",
            le([half::f16::from_f32(0.5).to_le_bytes(), half::f16::ZERO.to_le_bytes()]),
            DataType::Fp32,
            fp32(&[0.5, 0.0]),
        ),
        ("'<i8'", le([(-1i64).to_le_bytes(), 7i64.to_le_bytes()]), DataType::Int32, Data::Int32(vec![-1, 7].into())),
        ("'>u2'", le([1u16.to_be_bytes(), 256u16.to_be_bytes()]), DataType::Fp32, fp32(&[1.0, 256.0])),
        ("'|b1'", vec![0, 1], DataType::Int64, Data::Int64(vec![0, 1].into())),
        ("'<i4'", le([0i32.to_le_bytes(), 1i32.to_le_bytes()]), DataType::Bool, Data::Bool(vec![false, true])),
        ("'|S3'", b"ab\0cde".to_vec(), DataType::Bytes, Data::Bytes(vec!["ab".into(), "cde".into()])),
        (
            "'>U2'",
            le([u32::from('é'), 0, u32::from('a'), u32::from('b')].map(u32::to_be_bytes)),
            DataType::Bytes,
            Data::Bytes(vec!["é".into(), "ab".into()]),
        ),
    ];
    for (descr, bytes, datatype, expected) in cases {
        let path = file(dir.path(), "x.npy", &npy(descr, false, "(2,)", &bytes));
        let arrays = read_for(&path, &[spec("x", datatype, &[-1, 1])], &[]).unwrap_or_else(|e| panic!("{descr}: {e}"));
        assert_eq!(arrays.tensors[0].tensor.data(), &expected, "{descr}");
        assert_eq!(&arrays.tensors[0].tensor.shape()[..], [2, 1], "a column vector, although the array has one axis");
    }
}

#[test]
fn numbers_without_a_value_in_the_datatype_are_refused_with_their_place() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |descr: &str, bytes: &[u8], datatype: DataType, words: &str| {
        let path = file(dir.path(), "x.npy", &npy(descr, false, "(2, 1)", bytes));
        let error = read_for(&path, &[spec("x", datatype, &[-1, 1])], &[]).unwrap_err();
        assert!(error.contains(words), "{words:?} in {error:?}");
    };
    let doubles = |a: f64, b: f64| le([a.to_le_bytes(), b.to_le_bytes()]);
    refused("'<f8'", &doubles(1.0, 0.5), DataType::Int64, "row 1: expected a value of INT64, found 0.5");
    refused("'<f8'", &doubles(1e300, 0.0), DataType::Fp32, "row 0: expected a value of FP32, found 1");
    refused("'<f8'", &doubles(0.0, f64::NAN), DataType::Int8, "row 1: expected a value of INT8, found NaN");
    refused("'<f8'", &doubles(300.0, 0.0), DataType::Uint8, "row 0: expected a value of UINT8, found 300");
    refused("'<f8'", &doubles(2.0, 0.0), DataType::Bool, "row 0: expected a value of BOOL, found 2");
    refused("'<f8'", &doubles(2.0, 0.0), DataType::Bytes, "row 0: expected a value of BYTES, found 2");
    refused("'|S2'", b"1\0x\0", DataType::Fp32, "row 0: expected a value of FP32, found \"1\"");
}

#[test]
fn arrays_in_column_major_order_are_read_as_they_are_meant() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = le([1f32, 4.0, 2.0, 5.0, 3.0, 6.0].map(f32::to_le_bytes));
    let path = file(dir.path(), "x.npy", &npy("'<f4'", true, "(2, 3)", &bytes));
    let arrays = read_for(&path, &[spec("x", DataType::Fp32, &[-1, 3])], &[]).unwrap();
    assert_eq!(arrays.tensors[0].tensor.data(), &Data::Fp32(vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0].into()));
}

#[test]
fn hostile_array_files_are_refused_in_words() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |bytes: &[u8], words: &str| {
        let error = read_for(&file(dir.path(), "x.npy", bytes), &[spec("x", DataType::Fp32, &[-1])], &[]).unwrap_err();
        assert!(error.contains(words), "{words:?} in {error:?}");
    };
    refused(b"", "it ends within its header");
    refused(b"PK\x03\x04 and so on", "does not begin with");
    refused(b"\x93NUMPY\x02\x00\xff\xff\xff\xff", "its header has 4294967295 bytes, the limit is 16384");
    refused(&with_header(&"(".repeat(9_000), b""), "nested too deeply");
    refused(&with_header("nonsense", b""), "its header cannot be read");
    refused(&npy("'<f4'", false, "(18446744073709551615, 18446744073709551615)", b""), "its shape is too large");
    refused(&npy("'<f4'", false, "(0, 18446744073709551615, 9)", b""), "its shape is too large");
    refused(
        &npy("'<f4'", false, "(9999999999,)", b""),
        &format!("larger than what is left of the limit of {MAX_BYTES} bytes"),
    );
    refused(&npy("'<f4'", false, "(3,)", &[0; 11]), "it ends after 11 bytes; its shape [3] of dtype <f4 needs 12");
    refused(&npy("'|O'", false, "(3,)", b""), "its dtype is object");
    refused(&npy("[('a', '<f4')]", false, "(3,)", b""), "has fields");
    refused(&npy("'<c8'", false, "(1,)", &[0; 8]), "its dtype <c8 is not supported");
    refused(&npy("'<U1'", false, "(1,)", &[0xff; 4]), "which is no character");
    refused(&npy("'|S0'", false, "(1,)", b""), "has no size");
    refused(&npy("'<f4'", false, "(1, 2)", &[0; 8]), "expected the shape of x FP32 [-1], found [1,2]");
    assert!(read_for(dir.path(), &[], &[]).unwrap_err().contains("it is not a regular file"));
    let text = file(dir.path(), "x.txt", b"1");
    assert!(read_for(&text, &[], &[]).unwrap_err().contains("expected a file whose name ends in"));
}

#[test]
fn archives_hold_arrays_by_the_names_of_the_tensors() {
    let dir = tempfile::tempdir().unwrap();
    let one = |x: f32| npy("'<f4'", false, "(1,)", &x.to_le_bytes());
    let specs = [spec("a", DataType::Fp32, &[-1]), spec("b", DataType::Fp32, &[-1])];
    let both = file(dir.path(), "x.npz", &zip(&[("b.npy", one(2.0)), ("a.npy", one(1.0))]));
    let tensors = read_for(&both, &specs, &[]).unwrap().tensors;
    assert_eq!(tensors.iter().map(|t| t.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    let only = file(dir.path(), "x.npz", &zip(&[("arr_0.npy", one(1.0))]));
    assert_eq!(read_for(&only, &specs[..1], &[]).unwrap().tensors[0].name, "a", "the only array, whatever its name is");
    let refused = |entries: &[(&str, Vec<u8>)], words: &str| {
        let error = read_for(&file(dir.path(), "x.npz", &zip(entries)), &specs, &[]).unwrap_err();
        assert!(error.contains(words), "{words:?} in {error:?}");
    };
    refused(&[("a.npy", one(1.0))], "there is no array for input \"b\"; found \"a\"");
    refused(
        &[("a.npy", one(1.0)), ("c.npy", one(1.0))],
        "array \"c\" is not an input of the model; the model has the inputs \"a\", \"b\"",
    );
    refused(&[("a.txt", vec![1])], "expected names that end in .npy");
    refused(&[("a.npy", one(1.0)), ("b.npy", vec![1])], "array \"b\": it is not an .npy file");
    let bytes = file(dir.path(), "x.npz", b"no archive");
    assert!(read_for(&bytes, &specs, &[]).unwrap_err().contains("it is not an .npz file"));
}

#[test]
fn columns_of_a_table_are_found_by_tensor_by_element_and_by_feature_name() {
    let dir = tempfile::tempdir().unwrap();
    let csv = |text: &str| file(dir.path(), "x.csv", text.as_bytes());
    let two = [spec("x", DataType::Fp32, &[-1, 2])];
    let expected = Data::Fp32(vec![1.0, 2.0, 3.0, f32::NAN].into());
    let same = |data: &Data| format!("{data:?}") == format!("{expected:?}");
    let read = |text: &str, names: &[&str]| read_for(&csv(text), &two, names).unwrap();
    assert!(same(read("x[0],id,x[1]\n1,a,2\n3,b,\n", &[]).tensors[0].tensor.data()));
    assert!(same(read("age,id,height\n1,a,2\n3,b,nan\n", &["age", "height"]).tensors[0].tensor.data()));
    let in_order = read("p,q\n1,2\n3,\n", &[]);
    assert!(same(in_order.tensors[0].tensor.data()));
    assert!(in_order.notes[0].contains("takes the 2 columns in the order of the file: \"p\", \"q\""), "{in_order:?}");

    let several = [spec("age", DataType::Int64, &[-1, 1]), spec("sex", DataType::Bytes, &[-1, 1])];
    let tensors = read_for(&csv("sex,age\nf,30\nm,41.0\n"), &several, &[]).unwrap().tensors;
    assert_eq!(tensors[0].tensor.data(), &Data::Int64(vec![30, 41].into()));
    assert_eq!(tensors[1].tensor.data(), &Data::Bytes(vec!["f".into(), "m".into()]));

    let refused = |text: &str, specs: &[TensorSpec], words: &str| {
        let error = read_for(&csv(text), specs, &["age", "height"]).unwrap_err();
        assert!(error.contains(words), "{words:?} in {error:?}");
    };
    refused(
        "age,h,w\n1,2,3\n",
        &two,
        "expected a column \"x\" or columns \"x[0]\", …, or those of feature_names (\"age\", \"height\"); found \"age\", \"h\", \"w\"",
    );
    refused("x[0],x[1],x[2]\n1,2,3\n", &two, "expected the shape of x FP32 [-1,2], found [1,3]");
    refused("x[0],x[1]\n1,2\n3,z\n", &two, "column \"x[1]\": row 1: expected a value of FP32, found \"z\"");
    refused("age,sex\n1,f\n,m\n", &several, "column \"age\": row 1: expected a value of INT64, found an empty cell");
    refused("x[0],x[1]\n1\n", &two, "cannot read it");
    refused("x[0],x[0]\n1,1\n", &two, "column \"x[0]\" is there more than once");
    refused("", &two, "there is no column for input x");
}

#[test]
fn parquet_columns_are_numbers_texts_and_lists() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.parquet");
    let write = |columns: Vec<(&str, ArrayRef)>| {
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let file = std::fs::File::create(&path).unwrap();
        let mut writer = parquet::arrow::ArrowWriter::try_new(file, batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
    };
    let mut fixed = FixedSizeListBuilder::new(Float32Builder::new(), 2);
    let mut list = ListBuilder::new(Float32Builder::new());
    let mut uneven = ListBuilder::new(Float32Builder::new());
    for (row, x) in [1.0f32, 3.0].into_iter().enumerate() {
        fixed.values().append_slice(&[x, x + 1.0]);
        fixed.append(true);
        list.values().append_slice(&[x, x + 1.0]);
        list.append(true);
        uneven.values().append_slice(&vec![x; row + 1]);
        uneven.append(true);
    }
    write(vec![
        ("fixed", Arc::new(fixed.finish()) as ArrayRef),
        ("list", Arc::new(list.finish())),
        ("uneven", Arc::new(uneven.finish())),
        ("age", Arc::new(Int64Array::from(vec![Some(1), None]))),
        ("member", Arc::new(BooleanArray::from(vec![true, false]))),
        ("sex", Arc::new(StringArray::from(vec!["f", "m"]))),
        ("gap", Arc::new(StringArray::from(vec![Some("f"), None]))),
    ]);
    let one = |spec: TensorSpec| read_for(&path, &[spec], &[]).map(|arrays| arrays.tensors[0].tensor.clone());
    for name in ["fixed", "list"] {
        let tensor = one(spec(name, DataType::Fp32, &[-1, 2])).unwrap();
        assert_eq!((tensor.data(), &tensor.shape()[..]), (&Data::Fp32(vec![1.0, 2.0, 3.0, 4.0].into()), &[2, 2][..]));
    }
    let tensor = one(spec("age", DataType::Fp64, &[-1])).unwrap();
    let Data::Fp64(ages) = tensor.data() else { panic!("{tensor:?}") };
    assert!(ages[0] == 1.0 && ages[1].is_nan());
    assert_eq!(one(spec("member", DataType::Bool, &[-1])).unwrap().data(), &Data::Bool(vec![true, false]));
    assert_eq!(one(spec("sex", DataType::Bytes, &[-1])).unwrap().data(), &Data::Bytes(vec!["f".into(), "m".into()]));
    let refused = |spec: TensorSpec, words: &str| {
        let error = one(spec).unwrap_err();
        assert!(error.contains(words), "{words:?} in {error:?}");
    };
    refused(spec("age", DataType::Int64, &[-1]), "column \"age\": row 1: expected a value of INT64, found NaN");
    refused(
        spec("uneven", DataType::Fp32, &[-1, 2]),
        "row 1: expected a list of 1 as in the first row, found a list of 2",
    );
    refused(spec("gap", DataType::Bytes, &[-1]), "row 1: expected a text, found nothing");
    refused(spec("list", DataType::Fp32, &[-1, 3]), "expected the shape of list FP32 [-1,3], found [2,2]");
    std::fs::write(&path, "no parquet").unwrap();
    refused(spec("age", DataType::Int64, &[-1]), "it is not a Parquet file");
}
