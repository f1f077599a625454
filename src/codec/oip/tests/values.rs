//! The JSON values of each datatype, and nested lists.

use super::*;

#[test]
fn each_datatype_accepts_its_values() {
    assert_eq!(data("BOOL", 4, "[true,false,1,0]").unwrap(), Data::Bool(vec![true, false, true, false]));
    assert_eq!(data("UINT8", 3, "[0,255,7]").unwrap(), Data::Uint8(vec![0, 255, 7].into()));
    assert_eq!(data("UINT16", 2, "[0,65535]").unwrap(), Data::Uint16(vec![0, 65535].into()));
    assert_eq!(data("UINT32", 2, "[0,4294967295]").unwrap(), Data::Uint32(vec![0, u32::MAX].into()));
    assert_eq!(
        data("UINT64", 3, "[18446744073709551615,9007199254740993,0]").unwrap(),
        Data::Uint64(vec![u64::MAX, (1 << 53) + 1, 0].into())
    );
    assert_eq!(data("INT8", 2, "[-128,127]").unwrap(), Data::Int8(vec![-128, 127].into()));
    assert_eq!(data("INT16", 2, "[-32768,32767]").unwrap(), Data::Int16(vec![i16::MIN, i16::MAX].into()));
    assert_eq!(data("INT32", 2, "[-2147483648,2147483647]").unwrap(), Data::Int32(vec![i32::MIN, i32::MAX].into()));
    assert_eq!(
        data("INT64", 4, "[-9223372036854775808,9223372036854775807,-9007199254740993,-0]").unwrap(),
        Data::Int64(vec![i64::MIN, i64::MAX, -(1 << 53) - 1, 0].into())
    );
    assert_eq!(
        data("FP32", 5, "[1,-2.5,1e-3,3.4028235e38,-7]").unwrap(),
        Data::Fp32(vec![1.0, -2.5, 1e-3, f32::MAX, -7.0].into())
    );
    assert_eq!(
        data("FP64", 4, "[1,18446744073709551615,0.1,1e308]").unwrap(),
        Data::Fp64(vec![1.0, u64::MAX as f64, 0.1, 1e308].into())
    );
    assert_eq!(
        data("BYTES", 3, r#"["","a\n\u00e9\ud83d\ude00","plain é"]"#).unwrap(),
        Data::Bytes(vec![Bytes::new(), body("a\né😀"), body("plain é")])
    );
}

#[test]
fn null_is_nan_and_negative_zero_keeps_its_sign() {
    let Data::Fp32(single) = data("FP32", 5, "[null,-0,-0.0,0,-0e5]").unwrap() else { panic!("FP32 was asked for") };
    let Data::Fp64(double) = data("FP64", 5, "[ null , -0,-0.0,0,-0e5]").unwrap() else { panic!("FP64 was asked for") };
    assert!(single[0].is_nan() && double[0].is_nan());
    assert_eq!(single[1..].iter().map(|x| x.is_sign_negative()).collect::<Vec<_>>(), [true, true, false, true]);
    assert_eq!(double[1..].iter().map(|x| x.is_sign_negative()).collect::<Vec<_>>(), [true, true, false, true]);
}

#[test]
fn a_literal_with_an_exact_integer_value_is_an_integer() {
    let accepted = "[2.0,1e3,-4.50e1,9007199254740992.0,0.0,0e999999999999,1200e-2,-0.0,1E+2]";
    assert_eq!(data("INT64", 9, accepted).unwrap(), Data::Int64(vec![2, 1000, -45, 1 << 53, 0, 0, 12, 0, 100].into()));
    for refused in [
        "1.5",
        "0.1",
        "4503599627370497.5",
        "9007199254740991.4",
        "1.00000000000000000000001",
        "9007199254740993.0",
        "1e16",
        "1e-1",
        "1e-99999999999999999999",
        "1e99999999999999999999",
        "1e400",
        "9223372036854775808",
        "-9223372036854775809",
        "36893488147419103232",
    ] {
        let failure = data("INT64", 2, &format!("[0,{refused}]")).unwrap_err();
        assert!(all_text(&failure).contains("element 1 is expected to be an integer"), "{refused}: {failure}");
    }
}

#[test]
fn values_that_do_not_fit_the_datatype_are_reported() {
    let cases: &[(&str, &str, &[&str])] = &[
        ("UINT8", "256", &["INVALID_TENSOR", "input \"x\": element 2", "0 to 255 (UINT8)", "got 256"]),
        ("UINT8", "-1", &["got -1"]),
        ("UINT16", "65536", &["UINT16", "65536"]),
        ("UINT32", "4294967296", &["UINT32"]),
        ("UINT64", "18446744073709551616", &["UINT64", "18446744073709551616"]),
        ("UINT64", "-1", &["UINT64"]),
        ("INT8", "-129", &["INT8"]),
        ("INT8", "true", &["got true"]),
        ("INT8", "null", &["got null"]),
        ("INT32", "2147483648", &["INT32"]),
        ("INT32", "\"1\"", &["the string \"1\""]),
        ("INT64", "1.5", &["got 1.5"]),
        ("FP32", "true", &["a number", "got true"]),
        ("FP32", "\"1\"", &["the string \"1\""]),
        ("FP32", "1e39", &["±3.4028235e38 (FP32)", "got 1e39"]),
        ("FP32", "-1e39", &["got -1e39"]),
        ("FP32", "1e400", &["got 1e400"]),
        ("FP64", "1e400", &["FP64", "got 1e400"]),
        ("FP64", "false", &["got false"]),
        ("FP64", "{}", &["an object"]),
        ("BOOL", "2", &["true, false, 0 or 1 (BOOL)", "got 2"]),
        ("BOOL", "1.0", &["got 1.0"]),
        ("BOOL", "null", &["got null"]),
        ("BOOL", "\"true\"", &["the string \"true\""]),
        ("BYTES", "1", &["a string (BYTES)", "got 1"]),
        ("BYTES", "null", &["got null"]),
        ("BYTES", "{\"b64\":\"AA==\"}", &["a string (BYTES)", "an object"]),
    ];
    for (datatype, value, parts) in cases {
        let good = match *datatype {
            "BYTES" => "\"a\"",
            _ => "1",
        };
        for order in [["shape", "datatype", "data"], ["data", "shape", "datatype"]] {
            let members = order.map(|member| match member {
                "shape" => "\"shape\":[4]".to_owned(),
                "datatype" => format!("\"datatype\":\"{datatype}\""),
                _ => format!("\"data\":[{good},{good},{value},{good}]"),
            });
            assert_rejected(&[(&format!("{{\"inputs\":[{{{},\"name\":\"x\"}}]}}", members.join(",")), parts)]);
        }
    }
}

#[test]
fn nan_and_infinity_are_rejected_with_an_explanation() {
    for token in ["NaN", "Infinity", "-Infinity", "nan", "-NaN", "inf", "-inf"] {
        for datatype in ["FP32", "FP64", "INT8", "BYTES"] {
            let failure = data(datatype, 2, &format!("[{},{token}]", if datatype == "BYTES" { "\"a\"" } else { "1" }));
            let text = all_text(&failure.unwrap_err());
            for part in ["INVALID_REQUEST", "input \"x\"", "element 1", "JSON has no NaN", "null", "binary form", token]
            {
                assert!(text.contains(part), "{datatype} {token}: {text}");
            }
        }
    }
}

#[test]
fn numbers_are_rounded_only_once() {
    // These are so close to the middle between two f32 that rounding to f64 first would give the wrong result.
    for text in [
        "17005001.000000000000130",
        "1.00000017881393432617187499",
        "1.00000017881393432617187500",
        "7.0064923216240853546186479164495e-46",
    ] {
        let Data::Fp32(read) = data("FP32", 1, &format!("[{text}]")).unwrap() else { panic!("FP32 was asked for") };
        assert_eq!(read[0].to_bits(), text.parse::<f32>().unwrap().to_bits(), "{text}");
    }
}

#[test]
fn lists_can_be_flat_or_nested_like_the_shape() {
    let flat = input(r#""shape":[2,3],"datatype":"INT8","data":[1,2,3,4,5,6]"#).unwrap();
    for nested in
        ["[[1,2,3],[4,5,6]]", "[[[1,2,3],[4,5,6]]]", "[[[1],[2],[3]],[[4],[5],[6]]]", "[ [ 1 , 2,3 ] ,[4,5,6] ]"]
    {
        assert_eq!(input(&format!(r#""shape":[2,3],"datatype":"INT8","data":{nested}"#)).unwrap(), flat, "{nested}");
    }
    for (shape, data) in [
        ("[]", "5"),
        ("[]", "[5]"),
        ("[0]", "[]"),
        ("[0,4]", "[]"),
        ("[0,4]", "[[]]"),
        ("[2,0]", "[[],[]]"),
        ("[2,2,2]", "[[1,2,3,4],[5,6,7,8]]"),
        ("[2,2,2]", "[[1,2],[3,4],[5,6],[7,8]]"),
        ("[1,2]", "[[1,2]]"),
        ("[2]", "[[1,2]]"),
    ] {
        let read = input(&format!(r#""shape":{shape},"datatype":"INT8","data":{data}"#));
        assert_eq!(read.map(|t| t.shape().to_string()).map_err(|e| e.to_string()), Ok(shape.to_owned()), "{data}");
    }
}

#[test]
fn nesting_that_does_not_fit_the_shape_is_reported() {
    let cases: &[(&str, &str, &[&str])] = &[
        ("[2,3]", "[[1,2],[3,4],[5,6]]", &["INVALID_TENSOR", "input \"x\"", "nested as [3,2]", "shape [2,3]"]),
        ("[4]", "[[1,2],[3,4]]", &["nested as [2,2]", "shape [4]"]),
        ("[2,2]", "[[1,2],[3]]", &["ragged", "depth 2", "holds 1 items", "hold 2"]),
        ("[3]", "[[1,2],[3]]", &["ragged"]),
        ("[3]", "[1,[2,3]]", &["element 1", "got a list"]),
        ("[3]", "[[1,2],3]", &["ragged", "element 2", "depth 1", "depth 2"]),
        ("[2]", "[[1],[[2]]]", &["ragged"]),
        ("[1]", "[[1],[[]]]", &["ragged"]),
        ("[1]", "[[[]],[1]]", &["ragged"]),
        ("[1]", "[[],[1]]", &["ragged"]),
        ("[2,2]", "[[1,2],[3,4],[5,6]]", &["nested as [3,2]"]),
        ("[3]", "[]", &["holds 3 elements, got 0"]),
        ("[]", "[1,2]", &["holds 1 elements, got 2"]),
        ("[]", "[]", &["holds 1 elements, got 0"]),
    ];
    for (shape, data, parts) in cases {
        let text = format!(r#"{{"inputs":[{{"name":"x","shape":{shape},"datatype":"INT8","data":{data}}}]}}"#);
        assert_rejected(&[(&text, parts)]);
    }
}

#[test]
fn strings_without_escapes_are_not_copied() {
    let text = body(r#"{"inputs":[{"name":"x","shape":[1],"datatype":"BYTES","data":["a longer string"]}]}"#);
    let request = decode(&text, None).unwrap().request;
    let Data::Bytes(strings) = request.inputs[0].tensor.data() else { panic!("BYTES was asked for") };
    assert!(text.as_ptr_range().contains(&strings[0].as_ptr()));
}
