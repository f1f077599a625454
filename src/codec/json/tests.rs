//! Compares the parser with `serde_json`: both accept and reject the same text.

use super::*;
use proptest::prelude::*;

fn is_json(text: &[u8]) -> bool {
    let text = Bytes::copy_from_slice(text);
    let mut reader = Reader::new(&text);
    reader.skip_value().and_then(|_| reader.end()).is_ok()
}

/// Whether `serde_json` accepts the text. `IgnoredAny` allows numbers of any size, as this parser does.
fn serde_accepts(text: &[u8]) -> bool {
    std::str::from_utf8(text).is_ok() && serde_json::from_slice::<serde::de::IgnoredAny>(text).is_ok()
}

/// JSON tokens in random order: text that is valid JSON or close to it.
fn nearly_json() -> impl Strategy<Value = String> {
    let token = prop::sample::select(vec![
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        " ",
        "\n",
        "\"a\"",
        "\"\"",
        "\"\\u00e9\"",
        "\"\\ud83d\\ude00\"",
        "\"\\x\"",
        "\"é\"",
        "\"\t\"",
        "\"\\",
        "0",
        "1",
        "-",
        "01",
        "-0",
        "1.5",
        "1.",
        ".5",
        "1e5",
        "1e",
        "1E+5",
        "1e400",
        "true",
        "false",
        "null",
        "tru",
        "NaN",
        "\u{feff}",
    ]);
    prop::collection::vec(token, 0..12).prop_map(|tokens| tokens.concat())
}

/// Valid JSON of all kinds.
fn json() -> impl Strategy<Value = String> {
    let scalar = prop_oneof![
        Just("null".to_owned()),
        any::<bool>().prop_map(|b| b.to_string()),
        any::<i64>().prop_map(|n| n.to_string()),
        any::<f64>().prop_filter("finite", |x| x.is_finite()).prop_map(|x| format!("{x:e}")),
        any::<String>().prop_map(|s| serde_json::to_string(&s).unwrap()),
    ];
    scalar.prop_recursive(5, 40, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(|items| format!("[ {} ]", items.join(" ,\n"))),
            prop::collection::vec((any::<String>(), inner), 0..5).prop_map(|members| {
                let members: Vec<String> =
                    members.iter().map(|(k, v)| format!("{} :{v}", serde_json::to_string(k).unwrap())).collect();
                format!("{{{}}}", members.join(","))
            }),
        ]
    })
}

proptest! {
    #[test]
    fn valid_json_is_accepted(text in json()) {
        prop_assert!(serde_accepts(text.as_bytes()));
        prop_assert!(is_json(text.as_bytes()), "{}", text);
    }

    #[test]
    fn tokens_in_random_order_are_accepted_as_by_serde(text in nearly_json()) {
        prop_assert_eq!(is_json(text.as_bytes()), serde_accepts(text.as_bytes()), "{}", text);
    }

    #[test]
    fn json_with_a_changed_byte_is_accepted_as_by_serde(text in json(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut text = text.into_bytes();
        let at = at.index(text.len());
        text[at] = byte;
        prop_assert_eq!(is_json(&text), serde_accepts(&text), "{:?}", String::from_utf8_lossy(&text));
    }

    #[test]
    fn strings_equal_serde(text in any::<String>()) {
        let json = Bytes::from(serde_json::to_string(&text).unwrap());
        prop_assert_eq!(Reader::new(&json).string().unwrap(), text);
    }

    #[test]
    fn escapes_equal_serde(units in prop::collection::vec(any::<u16>(), 1..6)) {
        let escapes: Vec<String> = units.iter().map(|u| format!("\\u{u:04X}")).collect();
        let json = Bytes::from(format!("\"{}\"", escapes.concat()));
        let expected = serde_json::from_slice::<String>(&json).ok();
        prop_assert_eq!(Reader::new(&json).string().ok().map(Cow::into_owned), expected);
    }

    #[test]
    fn written_strings_are_parsed_by_serde(text in any::<String>()) {
        let mut out = Vec::new();
        crate::codec::text::string(&mut out, &text);
        prop_assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text);
    }
}
