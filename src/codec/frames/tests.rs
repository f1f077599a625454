//! Tables in each form, and what is wrong with them.

use super::*;
use crate::model::{Dim, TensorSpec};
use crate::tensor::{Data, DataType};
use proptest::prelude::*;

fn spec(name: &str, datatype: DataType, dims: &[i64]) -> TensorSpec {
    let dims = dims.iter().map(|d| usize::try_from(*d).map_or(Dim::Free(None), Dim::Fixed)).collect();
    TensorSpec { name: name.into(), datatype, dims: Some(dims) }
}

/// Several inputs with a value per row, two of them without a dimension for it, and a wide one.
fn penguins() -> Signature {
    let inputs = vec![
        spec("island", DataType::Bytes, &[-1, 1]),
        spec("mass", DataType::Fp32, &[-1, 1]),
        spec("year", DataType::Int64, &[-1]),
        spec("alive", DataType::Bool, &[-1]),
        spec("bill", DataType::Fp64, &[-1, 2]),
    ];
    Signature::new(inputs, vec![])
}

fn wide(width: i64) -> Signature {
    Signature::new(vec![spec("x", DataType::Fp32, &[-1, width])], vec![])
}

fn names(tensor: &str, names: &[&str]) -> ElementNames {
    let names = names.iter().map(|name| (*name).to_owned()).collect();
    ElementNames { by_tensor: [(tensor.to_owned(), names)].into(), of_only_input: Vec::new() }
}

fn bill() -> ElementNames {
    names("bill", &["length", "depth"])
}

const CSV: Media = Media::Csv { header: None };

fn decoded(
    text: &str,
    media: Media,
    signature: &Signature,
    names: &ElementNames,
) -> Result<(InferenceRequest, Style), Failure> {
    let mut request = parse(&Bytes::copy_from_slice(text.as_bytes()), media)?;
    request.set_names(Arc::new(names.clone()));
    let (request, style) = request.decode(signature, &Hold::uncounted())?;
    signature.check(request.clone()).map(|_| (request, style))
}

/// The shape and the data of each input, by name, and the style of the answer.
fn read(text: &str, media: Media, signature: &Signature, names: &ElementNames) -> (Vec<(String, String, Data)>, Style) {
    let (request, style) = decoded(text, media, signature, names).unwrap_or_else(|failure| panic!("{text}: {failure}"));
    let mut inputs: Vec<_> = request
        .inputs
        .into_iter()
        .map(|input| (input.name, input.tensor.shape().to_string(), input.tensor.into_data()))
        .collect();
    inputs.sort_by(|a, b| a.0.cmp(&b.0));
    (inputs, style)
}

/// The only input.
fn only(text: &str, media: Media, signature: &Signature, names: &ElementNames) -> (String, Data, Style) {
    let (mut inputs, style) = read(text, media, signature, names);
    let (_, shape, data) = inputs.remove(0);
    (shape, data, style)
}

fn fp32(values: &[f32]) -> Data {
    Data::Fp32(values.to_vec().into())
}

fn refused(text: &str, media: Media, signature: &Signature, names: &ElementNames) -> String {
    match decoded(text, media, signature, names) {
        Ok((request, _)) => panic!("{text}: {:?}", request.inputs),
        Err(failure) => {
            assert!(matches!(failure.code, Code::InvalidRequest | Code::InvalidTensor), "{failure:?}");
            failure.message
        }
    }
}

#[test]
fn each_form_of_a_table_is_the_same_request() {
    let expected = vec![
        ("alive".to_owned(), "[2]".to_owned(), Data::Bool(vec![true, false])),
        ("bill".to_owned(), "[2,2]".to_owned(), Data::Fp64(vec![39.5, 17.5, 40.0, 18.0].into())),
        (
            "island".to_owned(),
            "[2,1]".to_owned(),
            Data::Bytes(vec![Bytes::from_static(b"Biscoe"), Bytes::from_static(b"Dr\xc3\xa9am, N")]),
        ),
        ("mass".to_owned(), "[2,1]".to_owned(), fp32(&[4200.0, 3800.5])),
        ("year".to_owned(), "[2]".to_owned(), Data::Int64(vec![2007, 2008].into())),
    ];
    let records = Style::Records(2);
    for (text, media, style) in [
        (
            r#"{"dataframe_split":{"index":[7,8],"columns":["island","mass","year","alive","length","depth"],
             "data":[["Biscoe",4200,2007,true,39.5,17.5],["Dréam, N",3800.5,2008,false,40,18]]},"params":{"a":1}}"#,
            Media::Json,
            records,
        ),
        // Another order of the columns, and elements of an input before and behind others.
        (
            r#"{"dataframe_split":{"data":[[17.5,4200,true,"Biscoe",39.5,2007],[18,3800.5,0,"Dréam, N",40,2008]],
             "columns":["depth","mass","alive","island","length","year"]}}"#,
            Media::Json,
            records,
        ),
        // An input as a whole, as a list in its place.
        (
            r#"{"dataframe_split":{"columns":["bill","mass","alive","island","year"],
             "data":[[[39.5,17.5],[4200],true,["Biscoe"],2007],[[40,18],[3800.5],0,["Dréam, N"],2008]]}}"#,
            Media::Json,
            records,
        ),
        // Each row in an order of its own.
        (
            r#"{"dataframe_records":[{"island":"Biscoe","mass":4200,"year":2007,"alive":true,"length":39.5,"depth":17.5},
             {"depth":18,"length":40,"island":"Dréam, N","alive":false,"year":2008,"mass":3800.5}]}"#,
            Media::Json,
            records,
        ),
        (
            r#"{"instances":[{"depth":17.5,"island":"Biscoe","mass":4200,"year":2007,"alive":true,"length":39.5},
             {"depth":18,"length":40,"island":"Dréam, N","alive":false,"year":2008,"mass":3800.5}]}"#,
            Media::Json,
            Style::Named,
        ),
        (
            r#"{"inputs":{"island":["Biscoe","Dréam, N"],"mass":[4200,3800.5],"year":[2007,2008],"alive":[true,false],
             "depth":[17.5,18],"length":[39.5,40]}}"#,
            Media::Json,
            Style::Named,
        ),
        (
            r#"{"inputs":{"island":[["Biscoe"],["Dréam, N"]],"mass":[4200,3800.5],"year":[2007,2008],"alive":[true,false],
             "bill":[[39.5,17.5],[40,18]]}}"#,
            Media::Json,
            Style::Named,
        ),
        (
            "{\"island\":\"Biscoe\",\"mass\":4200,\"year\":2007,\"alive\":true,\"length\":39.5,\"depth\":17.5}\n\n\
             {\"mass\":3800.5,\"island\":\"Dréam, N\",\"year\":2008,\"alive\":false,\"depth\":18,\"length\":40}\r\n",
            Media::Lines,
            records,
        ),
        (
            "island,mass,year,alive,length,depth\nBiscoe,4200.0,2007,True,39.5,17.5\n\"Dréam, N\",3800.5,2008.0,False,40,18\n",
            CSV,
            records,
        ),
        // With the index that pandas writes, quoted names, line breaks of Windows and none at the end.
        (
            "\u{feff},\"depth\",\"island\",mass,year,alive,length\r\n0,17.5,Biscoe,4.2e3,2007,1,39.5\r\n\r\n1,18,\"Dréam, N\",3800.5,2008,0,40",
            Media::Csv { header: Some(true) },
            records,
        ),
    ] {
        assert_eq!(read(text, media, &penguins(), &bill()), (expected.clone(), style), "{text}");
    }
}

#[test]
fn the_columns_of_the_only_input_are_in_order_or_have_its_names() {
    let expected = ("[2,3]".to_owned(), fp32(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), Style::Records(2));
    let none = ElementNames::default();
    for text in [
        r#"{"dataframe_split":{"columns":["c","b","a"],"data":[[1,2,3],[4,5,6]]}}"#,
        r#"{"dataframe_split":{"columns":[0,1,2],"data":[[1,2,3],[4,5,6]]}}"#,
        r#"{"dataframe_split":{"columns":null,"data":[[1,2,3],[4,5,6]]}}"#,
        r#"{"dataframe_split":{"data":[[1,2,3],[4,5,6]]}}"#,
        r#"{"dataframe_split":{"columns":["x"],"data":[[[1,2,3]],[[4,5,6]]]}}"#,
        r#"{"dataframe_records":[{"c":1,"b":2,"a":3},{"a":6,"b":5,"c":4}]}"#,
        r#"{"dataframe_records":[{"x":[1,2,3]},{"x":[4,5,6]}]}"#,
    ] {
        assert_eq!(only(text, Media::Json, &wide(3), &none), expected, "{text}");
        assert_eq!(only(text, Media::Json, &wide(-1), &none), expected, "{text}, with an open width");
    }
    for text in ["1,2,3\n4,5,6\n", "0,1,2\n1,2,3\n4,5,6", "a,b,c\n1,2,3\n4,5,6\n"] {
        assert_eq!(only(text, CSV, &wide(3), &none), expected, "{text}");
    }
    assert_eq!(only("[1,2,3]\n[4,5,6]\n", Media::Lines, &wide(3), &none), expected);
    // With names the order does not matter, whichever side it is on.
    let named = names("x", &["a", "b", "c"]);
    let by_model = ElementNames { of_only_input: named.by_tensor["x"].clone(), ..ElementNames::default() };
    for names in [&named, &by_model] {
        for text in [
            r#"{"dataframe_split":{"columns":["c","a","b"],"data":[[3,1,2],[6,4,5]]}}"#,
            r#"{"dataframe_split":{"columns":[0,1,2],"data":[[1,2,3],[4,5,6]]}}"#,
            r#"{"dataframe_records":[{"b":2,"a":1,"c":3},{"c":6,"a":4,"b":5}]}"#,
        ] {
            assert_eq!(only(text, Media::Json, &wide(3), names), expected, "{text}");
            assert_eq!(only(text, Media::Json, &wide(-1), names), expected, "{text}, with an open width");
        }
        assert_eq!(only("c,a,b\n3,1,2\n6,4,5\n", CSV, &wide(3), names), expected);
        let columns = r#"{"inputs":{"c":[3,6],"a":[1,4],"b":[2,5]}}"#;
        assert_eq!(only(columns, Media::Json, &wide(3), names), (expected.0.clone(), expected.1.clone(), Style::Named));
        let unknown = refused("c,a,z\n3,1,2\n", CSV, &wide(3), names);
        assert_eq!(unknown, "unknown column \"z\": this model takes \"a\", \"b\", \"c\"");
    }
    // More dimensions than one.
    let picture = Signature::new(vec![spec("x", DataType::Fp32, &[-1, 2, 2])], vec![]);
    let row = r#"{"dataframe_split":{"data":[[1,2,3,4]]}}"#;
    assert_eq!(only(row, Media::Json, &picture, &none).0, "[1,2,2]");
}

#[test]
fn tensors_are_read_as_those_of_tensorflow_serving() {
    let none = ElementNames::default();
    for text in [r#"{"instances":[[1,2],[3,4]]}"#, r#"{"inputs":[[1,2],[3,4]]}"#, r#"{"inputs":{"x":[[1,2],[3,4]]}}"#] {
        let expected = ("[2,2]".to_owned(), fp32(&[1.0, 2.0, 3.0, 4.0]), Style::Named);
        assert_eq!(only(text, Media::Json, &wide(2), &none), expected, "{text}");
    }
}

#[test]
fn missing_values_are_nan_in_columns_of_fractions() {
    let none = ElementNames::default();
    for (text, media) in [
        (r#"{"dataframe_split":{"columns":["a","b"],"data":[[null,2]]}}"#, Media::Json),
        ("a,b\n,2\n", CSV),
        ("a,b\nNaN,2\n", CSV),
        (",2", CSV),
    ] {
        let (shape, data, _) = only(text, media, &wide(2), &none);
        assert!(matches!(data, Data::Fp32(v) if v[0].is_nan() && v[1].to_bits() == 2f32.to_bits()), "{text}");
        assert_eq!(shape, "[1,2]");
    }
    let whole = Signature::new(vec![spec("x", DataType::Int32, &[-1, 2])], vec![]);
    let message = refused("a,b\n,2\n", CSV, &whole, &none);
    assert_eq!(message, "line 2, column \"a\": expected an integer from -2147483648 to 2147483647 (INT32), got \"\"");
}

#[test]
fn a_field_of_csv_may_be_quoted() {
    let texts = Signature::new(vec![spec("s", DataType::Bytes, &[-1])], vec![]);
    let none = ElementNames::default();
    let (_, data, _) = only("s\n\"a \"\"b\"\", c\"\n\"two\nlines\"\n  d \n\"\"\n", CSV, &texts, &none);
    let expected = ["a \"b\", c", "two\nlines", "  d ", ""].map(|text| Bytes::copy_from_slice(text.as_bytes()));
    assert_eq!(data, Data::Bytes(expected.to_vec()));
    let (_, data, _) = only("1\n2\n", Media::Csv { header: Some(false) }, &texts, &none);
    assert_eq!(data, Data::Bytes(vec![Bytes::from_static(b"1"), Bytes::from_static(b"2")]));
    for (text, words) in [
        ("s\n\"a\"b\n", "line 2: expected a comma or the end of the line behind a quoted field, got 'b'"),
        ("s\na\n\"b\n", "line 3: a quoted field has no end"),
        ("s\na\nb,c\n", "line 3: expected 1 fields, as in the first line, got 2"),
        ("s\n", "the table has no rows"),
        (" \n\n", "the body is empty"),
        ("", "the body is empty"),
    ] {
        let message = refused(text, CSV, &texts, &none);
        assert!(message.contains(words), "{text:?}: {message}");
    }
}

#[test]
fn what_is_no_table_of_the_model_is_refused_in_words() {
    let wide = wide(2);
    let none = ElementNames::default();
    for (text, words) in [
        ("", "the body is empty"),
        ("[]", "exactly one of \"dataframe_split\""),
        ("{}", "got none of them"),
        (r#"{"columns":["a"],"data":[[1]]}"#, "got \"columns\", \"data\""),
        (r#"{"messages":[]}"#, "got \"messages\""),
        (r#"{"instances":[[1,2]],"inputs":[[1,2]]}"#, "got several of them"),
        (r#"{"instances":[[1,2]],"instances":[[1,2]]}"#, "\"instances\" is given more than once"),
        (r#"{"dataframe_split":[[1,2]]}"#, "dataframe_split: expected an object"),
        (r#"{"dataframe_split":{"columns":["a","b"]}}"#, "member \"data\" is missing"),
        (r#"{"dataframe_split":{"columns":["a","b"],"data":[]}}"#, "got an empty one"),
        (r#"{"dataframe_split":{"columns":["a","b"],"data":[1]}}"#, "expected a list of rows, got 1 in it"),
        (r#"{"dataframe_split":{"columns":["a","b"],"data":[[1,2],[3]]}}"#, "row 1 is expected to have 2 values"),
        (r#"{"dataframe_split":{"columns":["a","b"],"data":[[1,2],[3,4,5]]}}"#, "row 1 is expected to have 2 values"),
        (r#"{"dataframe_split":{"columns":["a"],"data":[[1]]}}"#, "input \"x\" takes 2 columns"),
        (r#"{"dataframe_split":{"columns":[["a","b"]],"data":[[1]]}}"#, "expected to be a list of names, got a list"),
        (r#"{"dataframe_split":{"columns":{},"data":[[1]]}}"#, "expected to be a list of names, got an object"),
        (r#"{"dataframe_split":{"data":[[1,"two"]]}}"#, "row 0, column 1: element"),
        (
            r#"{"dataframe_split":{"columns":["a","b"],"data":[[1,[2]]]}}"#,
            "row 0, column \"b\": expected one value, got a list",
        ),
        (r#"{"dataframe_records":{}}"#, "dataframe_records: expected a list of objects"),
        (r#"{"dataframe_records":[[1,2]]}"#, "dataframe_records: expected a list of objects"),
        (r#"{"dataframe_records":[]}"#, "got an empty one"),
        (r#"{"dataframe_records":[{"a":1,"b":2},{"a":1}]}"#, "row 1: column \"b\" is missing"),
        (r#"{"dataframe_records":[{"a":1,"b":2},{"b":1}]}"#, "row 1: column \"a\" is missing"),
        (r#"{"dataframe_records":[{"a":1,"b":2},{"a":1,"z":1}]}"#, "row 1: unknown column \"z\""),
        (r#"{"dataframe_records":[{"a":1,"b":2},{"a":1,"a":1}]}"#, "row 1: column \"a\" is given more than once"),
        (r#"{"dataframe_records":[{"a":1,"b":2},{"b":1,"a":1,"b":1}]}"#, "row 1: column \"b\" is given more than once"),
        (r#"{"dataframe_records":[{"a":1,"b":2}"#, "not valid JSON"),
        (r#"{"dataframe_records":[{}]}"#, "input \"x\" takes 2 columns"),
    ] {
        let message = refused(text, Media::Json, &wide, &none);
        assert!(message.contains(words), "{text}: {message}");
    }
    for (text, words) in [
        ("", "the body is empty"),
        ("1\n", "row 0 is expected to be an object or a list, got 1"),
        ("{\"a\":1,\"b\":2} {\"a\":1,\"b\":2}", "expected the end of the line"),
        ("{\"a\":1,\"b\":2}\n[1,2]", "row 1 is expected to be an object like the first one, got a list"),
        ("[1,2]\n{\"a\":1}", "row 1: "),
        ("[1,2]\n[1]", "row 1: "),
    ] {
        let message = refused(text, Media::Lines, &wide, &none);
        assert!(message.contains(words), "{text}: {message}");
    }
    for (text, words) in [
        (r#"{"dataframe_split":{"data":[["a",1]]}}"#, "the columns have no names, but this model has several inputs"),
        (
            r#"{"dataframe_records":[{"island":"a"}]}"#,
            "column \"mass\" is missing: this model takes \"island\", \"mass\", \"year\", \"alive\", \"length\", \"depth\"",
        ),
        (
            r#"{"dataframe_records":[{"island":"a","mass":1,"year":1,"alive":1,"length":1}]}"#,
            "column \"depth\" is missing",
        ),
        (
            r#"{"dataframe_records":[{"island":"a","mass":1,"year":1,"alive":1,"bill":[1,2],"depth":1}]}"#,
            "element of input \"bill\", which is given too",
        ),
        (
            r#"{"dataframe_records":[{"island":"a","mass":1,"year":1.5,"alive":1,"bill":[1,2]}]}"#,
            "row 0, column \"year\": input \"year\": element 0 is expected to be an integer",
        ),
        (
            r#"{"dataframe_records":[{"island":"a","mass":1,"year":1,"alive":1,"bill":[1,2,3]}]}"#,
            "dimension 1 is fixed at 2",
        ),
        (
            r#"{"inputs":{"island":["a"],"mass":[1],"year":[1],"alive":[1],"length":[1]}}"#,
            "column \"depth\" is missing",
        ),
        (
            r#"{"inputs":{"island":["a"],"mass":[1],"year":[1],"alive":[1],"length":[1],"depth":[1,2]}}"#,
            "column \"depth\" has 2 values, but column \"length\" has 1",
        ),
        (
            r#"{"inputs":{"island":["a"],"mass":[1],"year":[1],"alive":[1],"length":1,"depth":[1]}}"#,
            "column \"length\": expected a list with one value for each row",
        ),
        (r#"{"instances":[1]}"#, "'instances' is a plain list"),
    ] {
        let message = refused(text, Media::Json, &penguins(), &bill());
        assert!(message.contains(words), "{text}: {message}");
    }
    for (text, words) in [
        ("1,2,3,4,5,6\n", "unknown column \"1\""),
        ("island,mass,year,alive,bill\na,1,1,1,1\n", "column \"bill\": one value is not a row of"),
        ("island,mass,island\n", "column \"island\" is given more than once"),
    ] {
        let message = refused(text, CSV, &penguins(), &bill());
        assert!(message.contains(words), "{text}: {message}");
    }
    let broken = parse(&Bytes::from_static(b"a,b\n\xff,1\n"), CSV).unwrap_err();
    assert!(broken.message.contains("not UTF-8 text: byte 4"), "{broken}");
}

#[test]
fn an_optional_input_is_no_column() {
    let signature = wide(1).with_optional_inputs(vec![spec("gain", DataType::Fp32, &[1])]);
    let names = names("x", &["a"]);
    let message = refused(r#"{"dataframe_records":[{"a":1,"gain":2}]}"#, Media::Json, &signature, &names);
    assert!(message.contains("input \"gain\" is optional and counts for all rows"), "{message}");
    let (inputs, _) = read(r#"{"inputs":{"x":[[1]],"gain":[2]}}"#, Media::Json, &signature, &names);
    assert_eq!(inputs.len(), 2);
}

#[test]
fn the_memory_of_a_table_is_counted() {
    let budget = crate::budget::Budget::new(1 << 20);
    let (account, signature) = (budget.connection(None), wide(-1));
    for (body, media) in [
        (",".repeat(4 << 20), CSV),
        (
            format!("{{\"dataframe_split\":{{\"columns\":[{}\"\"],\"data\":[[1]]}}}}", "\"\",".repeat(1 << 20)),
            Media::Json,
        ),
        (format!("{{\"dataframe_split\":{{\"data\":[[{}1]]}}}}", "1,".repeat(1 << 20)), Media::Json),
        (format!("{{\"dataframe_records\":[{{{}\"\":1}}]}}", "\"\":1,".repeat(1 << 20)), Media::Json),
        (format!("{{\"inputs\":{{{}\"\":1}}}}", "\"\":1,".repeat(1 << 20)), Media::Json),
    ] {
        let hold = Hold::open(&budget, &account).unwrap();
        let request = parse(&Bytes::from(body), media).unwrap();
        let failure = request.decode(&signature, &hold).unwrap_err();
        assert!(matches!(failure.code, Code::Overloaded | Code::TooManyRequests | Code::BodyTooLarge), "{failure:?}");
    }
}

/// The names of columns, in another order for each seed.
fn shuffled(seed: u64, width: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..width).collect();
    fastrand::Rng::with_seed(seed).shuffle(&mut order);
    order
}

proptest! {
    #[test]
    fn all_forms_of_any_table_are_the_same_tensor(
        (width, cells) in (1usize..5).prop_flat_map(|width| (Just(width), proptest::collection::vec(-1e6f32..1e6, width * 3))),
        seed in any::<u64>(),
    ) {
        let known: Vec<String> = (0..width).map(|i| format!("c {i}")).collect();
        let names = names("x", &known.iter().map(String::as_str).collect::<Vec<_>>());
        let signature = wide(i64::try_from(width).unwrap());
        let order = shuffled(seed, width);
        let columns: Vec<&str> = order.iter().map(|i| known[*i].as_str()).collect();
        let rows: Vec<Vec<f32>> = cells.chunks(width).map(|row| order.iter().map(|i| row[*i]).collect()).collect();
        let split = serde_json::json!({"dataframe_split": {"columns": columns, "data": rows}}).to_string();
        let record = |(at, row): (usize, &[f32])| {
            let members: Vec<String> = shuffled(seed ^ at as u64, width).iter().map(|i| format!("{:?}:{}", known[*i], row[*i])).collect();
            format!("{{{}}}", members.join(","))
        };
        let records: Vec<String> = cells.chunks(width).enumerate().map(record).collect();
        let lines: Vec<String> = rows.iter().map(|row| row.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")).collect();
        let csv = format!("{}\n{}\n", columns.join(","), lines.join("\n"));
        let by_column: serde_json::Map<String, serde_json::Value> =
            known.iter().enumerate().map(|(i, name)| (name.clone(), cells.chunks(width).map(|row| row[i]).collect())).collect();
        for (text, media) in [
            (split, Media::Json),
            (format!("{{\"dataframe_records\":[{}]}}", records.join(",")), Media::Json),
            (serde_json::json!({"inputs": by_column}).to_string(), Media::Json),
            (records.join("\n"), Media::Lines),
            (csv, CSV),
        ] {
            let (shape, data, _) = only(&text, media, &signature, &names);
            prop_assert_eq!(shape, format!("[3,{width}]"));
            prop_assert_eq!(data, fp32(&cells), "{}", text);
        }
    }

    #[test]
    fn any_bytes_are_an_error_or_a_request(bytes in proptest::collection::vec(any::<u8>(), 0..60), text in "[a,\"\\n\\r{}:1 .]{0,40}") {
        for body in [bytes, text.into_bytes()] {
            for media in [Media::Json, Media::Lines, CSV, Media::Csv { header: Some(false) }] {
                if let Ok(request) = parse(&Bytes::from(body.clone()), media) {
                    let _ = request.decode(&wide(-1), &Hold::uncounted());
                    let _ = request.decode(&penguins(), &Hold::uncounted());
                }
            }
        }
    }
}
