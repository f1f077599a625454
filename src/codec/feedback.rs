//! Feedback: `{"feedback":[{"request_id":"…","row":0,"label":…,"values":{…},"ts":"RFC 3339"}]}`. `null` for a label or for one value
//! retracts it. A member that is absent says nothing, and neither does `"values": null`.

use super::json::{Reader, Seen, Syntax};
use crate::budget::Hold;
use crate::model::{Complaints, Failure, Feedback, Label, RequestId, Update, quoted};
use bytes::Bytes;
use jiff::Timestamp;
use sonic_number::{ParserNumber, parse_number};

/// The most entries in one request. Larger requests are rejected, because a request is stored completely or not at all.
const MAX_ENTRIES: usize = 10_000;
/// The most values in one entry.
const MAX_VALUES: usize = 100;
/// The most bytes of a label, and of a value's name.
const MAX_TEXT: usize = 4096;
/// How far a `ts` can be in the future, because clocks differ. In microseconds.
const MAX_AHEAD: i64 = 24 * 3600 * 1_000_000;
/// What a short string takes beside its text.
const STRING: usize = 32;
const MEMBERS: [&str; 5] = ["request_id", "row", "label", "values", "ts"];

/// Decodes a body, entry by entry: there is no tree of it, and the limits apply while it is parsed. `now` is the time for entries without a
/// `ts`, in microseconds since 1970. `hold` counts the entries.
///
/// # Errors
/// `INVALID_REQUEST`, with all complaints. Each has the number of its entry. Those of [`Hold::grow`].
pub fn decode(body: &Bytes, now: i64, hold: &Hold) -> Result<Vec<Feedback>, Failure> {
    let mut complaints = Complaints::default();
    let mut reader = Reader::counted(body, hold);
    reader.refuse_byte_order_mark()?;
    let feedback = entries(&mut reader, now, &mut complaints)?;
    complaints.into_result(feedback)
}

fn entries(reader: &mut Reader<'_>, now: i64, complaints: &mut Complaints) -> Result<Vec<Feedback>, Failure> {
    let mut read = None;
    if kind(reader) == "an object" {
        reader.bump();
        let mut first = true;
        while let Some(member) = reader.next_member(&mut first)? {
            match (&*member, kind(reader)) {
                ("feedback", _) if read.is_some() => {
                    complaints.request("feedback: given more than once");
                    return Ok(Vec::new());
                }
                ("feedback", "a list") => match list(reader, now, complaints)? {
                    Some(entries) => read = Some(entries),
                    // The rest is not read: there are too many entries, or too many complaints.
                    None => return Ok(Vec::new()),
                },
                ("feedback", other) => {
                    complaints.request(format!("feedback: expected a list of entries, got {other}"));
                    return Ok(Vec::new());
                }
                _ => {
                    reader.skip_value()?;
                }
            }
        }
    } else {
        reader.skip_value()?;
    }
    reader.end()?;
    if read.is_none() {
        complaints.request("feedback: expected a list of entries, got nothing");
    }
    Ok(read.unwrap_or_default())
}

/// Reads the entries. `None` where reading stops before their end.
fn list(reader: &mut Reader<'_>, now: i64, complaints: &mut Complaints) -> Result<Option<Vec<Feedback>>, Syntax> {
    reader.bump();
    let mut read = Vec::new();
    let (mut i, mut first) = (0, true);
    while reader.next_item(&mut first)? {
        if i == MAX_ENTRIES {
            complaints.request(format!("feedback: at most {MAX_ENTRIES} entries at once, got more"));
            return Ok(None);
        }
        if complaints.is_full() {
            return Ok(None);
        }
        let mut of_entry = Complaints::default();
        match kind(reader) {
            "an object" => {
                if let Some(entry) = one(reader, now, &mut of_entry)? {
                    reader.room(&mut read, 1)?;
                    read.push(entry);
                }
            }
            other => {
                of_entry.request(format!("expected an object, got {other}"));
                reader.skip_value()?;
            }
        }
        complaints.absorb(of_entry, &format!("feedback[{i}]"));
        i += 1;
    }
    Ok(Some(read))
}

/// Reads one entry, whose `{` comes next.
fn one(reader: &mut Reader<'_>, now: i64, complaints: &mut Complaints) -> Result<Option<Feedback>, Syntax> {
    reader.bump();
    let mut request_id = None;
    let (mut row, mut ts) = (Some(0), Some(now));
    let (mut given_label, mut given_values) = (None, Vec::new());
    let mut seen = Seen::new(&MEMBERS);
    let mut first = true;
    while let Some(member) = reader.next_member(&mut first)? {
        if seen.is_repeated(&member) {
            complaints.request(format!("member {} is given more than once", quoted(&member)));
            reader.skip_value()?;
            continue;
        }
        match &*member {
            "request_id" => request_id = id(reader, complaints)?,
            "row" => row = self::row(reader, complaints)?,
            "label" => given_label = label(reader, complaints)?,
            "values" => given_values = values(reader, complaints)?,
            "ts" => ts = time(reader, now, complaints)?,
            unknown => {
                let known = MEMBERS.join(", ");
                complaints.request(format!("unknown member {}: an entry has {known}", quoted(unknown)));
                reader.skip_value()?;
            }
        }
    }
    if !seen.contains("request_id") {
        complaints.request("request_id is missing: it identifies the prediction");
    }
    if complaints.is_empty() && given_label.is_none() && given_values.is_empty() {
        complaints.request("the entry is empty: expected a label, values, or both");
    }
    let (Some(request_id), Some(row), Some(ts)) = (request_id, row, ts) else { return Ok(None) };
    Ok(Some(Feedback { request_id, row, ts, label: given_label, values: given_values }))
}

fn id(reader: &mut Reader<'_>, complaints: &mut Complaints) -> Result<Option<String>, Syntax> {
    let found = kind(reader);
    if found != "a string" {
        complaints.request(format!("request_id: expected a string, got {found}"));
        reader.skip_value()?;
        return Ok(None);
    }
    let text = reader.string()?;
    if !(1..=RequestId::MAX_BYTES).contains(&text.len()) {
        complaints.request(format!("request_id: expected 1 to {} bytes, got {}", RequestId::MAX_BYTES, text.len()));
        return Ok(None);
    }
    reader.grow(text.len() + STRING)?;
    Ok(Some(text.into_owned()))
}

fn row(reader: &mut Reader<'_>, complaints: &mut Complaints) -> Result<Option<u32>, Syntax> {
    let found = kind(reader);
    let start = reader.offset();
    let number = if found == "a number" {
        match reader.number(parse_number)? {
            Some(ParserNumber::Unsigned(n)) => i32::try_from(n).ok().map(i32::unsigned_abs),
            _ => None,
        }
    } else {
        reader.skip_value()?;
        None
    };
    if number.is_none() {
        let got = written(reader, start, found);
        complaints.request(format!("row: expected an integer from 0 to {}, got {got}", i32::MAX));
    }
    Ok(number)
}

fn label(reader: &mut Reader<'_>, complaints: &mut Complaints) -> Result<Option<Update<Label>>, Syntax> {
    let start = reader.offset();
    match kind(reader) {
        "null" => reader.skip_value().map(|_| Some(Update::Retract)),
        "a boolean" => {
            let range = reader.skip_value()?;
            let number = f64::from(u8::from(reader.text().get(range.start) == Some(&b't')));
            Ok(Some(Update::Set(Label::Number(number))))
        }
        "a number" => {
            let number = number(reader)?;
            if number.is_none() {
                complaints.request(format!("label: expected a double, got {}", reader.excerpt(start)));
            }
            Ok(number.map(Label::Number).map(Update::Set))
        }
        "a string" => {
            let text = reader.string()?;
            if text.len() > MAX_TEXT {
                complaints.request(format!("label: at most {MAX_TEXT} bytes, got {}", text.len()));
                return Ok(None);
            }
            reader.grow(text.len() + STRING)?;
            Ok(Some(Update::Set(Label::Text(text.into_owned()))))
        }
        other => {
            complaints.request(format!("label: expected a number, a string, a boolean or null, got {other}"));
            reader.skip_value()?;
            Ok(None)
        }
    }
}

fn values(reader: &mut Reader<'_>, complaints: &mut Complaints) -> Result<Vec<(String, Update<f64>)>, Syntax> {
    let mut read: Vec<(String, Update<f64>)> = Vec::new();
    match kind(reader) {
        "an object" => reader.bump(),
        "null" => {
            reader.skip_value()?;
            return Ok(read);
        }
        other => {
            complaints.request(format!("values: expected an object of numbers, got {other}"));
            reader.skip_value()?;
            return Ok(read);
        }
    }
    let (mut count, mut first) = (0, true);
    while let Some(name) = reader.next_member(&mut first)? {
        let found = kind(reader);
        count += 1;
        if count > MAX_VALUES || complaints.is_full() {
            reader.skip_value()?;
        } else if name.is_empty() || name.len() > MAX_TEXT {
            let expected = format!("1 to {MAX_TEXT} bytes");
            complaints.request(format!("values: expected a name of {expected}, got {} bytes", name.len()));
            reader.skip_value()?;
        } else if !matches!(found, "a number" | "null") {
            complaints.request(format!("values.{}: expected a number or null, got {found}", quoted(&name)));
            reader.skip_value()?;
        } else if read.iter().any(|(known, _)| *known == name) {
            complaints.request(format!("values.{}: given more than once", quoted(&name)));
            reader.skip_value()?;
        } else {
            let start = reader.offset();
            let update = if found == "null" {
                reader.skip_value()?;
                Some(Update::Retract)
            } else {
                number(reader)?.map(Update::Set)
            };
            match update {
                None => complaints.request(format!(
                    "values.{}: expected a double, got {}",
                    quoted(&name),
                    reader.excerpt(start)
                )),
                Some(update) => {
                    reader.grow(name.len() + STRING)?;
                    reader.room(&mut read, 1)?;
                    read.push((name.into_owned(), update));
                }
            }
        }
    }
    if count > MAX_VALUES {
        complaints.request(format!("values: at most {MAX_VALUES}, got {count}"));
    }
    Ok(read)
}

fn time(reader: &mut Reader<'_>, now: i64, complaints: &mut Complaints) -> Result<Option<i64>, Syntax> {
    let found = kind(reader);
    let start = reader.offset();
    let text = if found == "a string" {
        Some(reader.string()?)
    } else {
        reader.skip_value()?;
        None
    };
    let read = text.and_then(|text| text.parse::<Timestamp>().ok()).map(Timestamp::as_microsecond);
    Ok(match read {
        None => {
            let expected = "a time of RFC 3339 such as \"2026-11-21T10:00:00Z\"";
            complaints.request(format!("ts: expected {expected}, got {}", written(reader, start, found)));
            None
        }
        Some(read) if read > now.saturating_add(MAX_AHEAD) => {
            let got = written(reader, start, found);
            complaints.request(format!("ts: {got} is more than a day ahead of this server's clock"));
            None
        }
        read => read,
    })
}

fn number(reader: &mut Reader<'_>) -> Result<Option<f64>, Syntax> {
    Ok(reader.number(parse_number)?.map(|number| match number {
        ParserNumber::Unsigned(n) => n as f64,
        ParserNumber::Signed(n) => n as f64,
        ParserNumber::Float(x) => x,
    }))
}

/// The kind of the next value.
fn kind(reader: &mut Reader<'_>) -> &'static str {
    match reader.peek() {
        None => "nothing",
        Some(b'n') => "null",
        Some(b't' | b'f') => "a boolean",
        Some(b'"') => "a string",
        Some(b'[') => "a list",
        Some(b'{') => "an object",
        Some(_) => "a number",
    }
}

/// The value at an offset, for a message: a string or number as it is, anything else by its kind.
fn written(reader: &Reader<'_>, at: usize, kind: &str) -> String {
    match kind {
        "a string" => reader.at(at).string().map_or_else(|_| kind.to_owned(), |text| quoted(&text)),
        "a number" => reader.excerpt(at),
        other => other.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Budget;
    use serde_json::{Value, json};

    fn decode(body: &[u8], now: i64) -> Result<Vec<Feedback>, Failure> {
        super::decode(&Bytes::copy_from_slice(body), now, &Hold::uncounted())
    }

    const NOW: i64 = 1_800_000_000_000_000;

    fn refused(entry: &Value) -> String {
        let body = json!({"feedback": [{"request_id": "a", "label": 1}, entry]}).to_string();
        let failure = decode(body.as_bytes(), NOW).unwrap_err();
        assert_eq!(failure.code, crate::model::Code::InvalidRequest);
        failure.message
    }

    #[test]
    fn entries_have_defaults() {
        let body = json!({"feedback": [
            {"request_id": "a", "row": 3, "label": true, "ts": "2026-11-21T10:00:00+01:00"},
            {"request_id": "b", "label": "cat", "values": {"revenue": 1.5, "clicked": 0}},
            {"request_id": "c", "label": null, "values": {"n": 1e300}},
            {"request_id": "d", "values": {"n": null}},
            {"request_id": "e", "label": null, "values": null},
        ]});
        let read = decode(body.to_string().as_bytes(), NOW).unwrap();
        let label = |i: usize| read[i].label.clone();
        assert_eq!(
            (read[0].row, read[0].ts, label(0)),
            (3, 1_795_251_600_000_000, Some(Update::Set(Label::Number(1.0))))
        );
        assert_eq!((read[1].row, read[1].ts, label(1)), (0, NOW, Some(Update::Set(Label::Text("cat".to_owned())))));
        let clicked = ("clicked".to_owned(), Update::Set(0.0));
        assert_eq!(read[1].values, [("revenue".to_owned(), Update::Set(1.5)), clicked]);
        assert_eq!((label(2), read[2].values.len()), (Some(Update::Retract), 1), "null retracts");
        assert_eq!((label(3), &read[3].values[..]), (None, &[("n".to_owned(), Update::Retract)][..]));
        assert_eq!((label(4), read[4].values.len()), (Some(Update::Retract), 0));
        assert_eq!(decode(b"{\"feedback\":[]}", NOW).unwrap(), []);
    }

    #[test]
    fn errors_name_their_entry() {
        for (entry, words) in [
            (json!({"label": 1}), "feedback[1]: request_id is missing"),
            (json!({"request_id": 7, "label": 1}), "feedback[1]: request_id: expected a string, got a number"),
            (json!({"request_id": "", "label": 1}), "feedback[1]: request_id: expected 1 to 1024 bytes, got 0"),
            (
                json!({"request_id": "a", "row": -1, "label": 1}),
                "feedback[1]: row: expected an integer from 0 to 2147483647, got -1",
            ),
            (json!({"request_id": "a", "row": 1.5, "label": 1}), "feedback[1]: row: expected an integer"),
            (
                json!({"request_id": "a", "label": [1]}),
                "feedback[1]: label: expected a number, a string, a boolean or null, got a list",
            ),
            (
                json!({"request_id": "a", "values": {"x": "1"}}),
                "feedback[1]: values.\"x\": expected a number or null, got a string",
            ),
            (json!({"request_id": "a", "label": 1, "ts": "yesterday"}), "feedback[1]: ts: expected a time of RFC 3339"),
            (
                json!({"request_id": "a", "label": 1, "ts": "2028-01-21T10:00:00Z"}),
                "feedback[1]: ts: \"2028-01-21T10:00:00Z\" is more than a day ahead",
            ),
            (json!({"request_id": "a", "lable": 1}), "feedback[1]: unknown member \"lable\""),
            (json!({"request_id": "a"}), "feedback[1]: the entry is empty"),
            (json!({"request_id": "a", "values": null}), "feedback[1]: the entry is empty"),
            (json!("a"), "feedback[1]: expected an object, got a string"),
        ] {
            let message = refused(&entry);
            assert!(message.starts_with(words), "{message}\n{words}");
        }
        let many = json!({"feedback": vec![json!({"request_id": "a", "label": 1}); MAX_ENTRIES + 1]}).to_string();
        let message = decode(many.as_bytes(), NOW).unwrap_err().message;
        assert_eq!(message, "feedback: at most 10000 entries at once, got more");
        assert!(
            decode(b"[]", NOW).unwrap_err().message.starts_with("feedback: expected a list of entries, got nothing")
        );
        let with_mark = decode("\u{feff}{\"feedback\":[]}".as_bytes(), NOW).unwrap_err();
        assert!(with_mark.message.contains("UTF-8 byte order mark"), "{with_mark}");
        assert!(decode(b"{", NOW).unwrap_err().message.starts_with("the body is not valid JSON"));
    }

    #[test]
    fn a_body_is_read_only_up_to_its_limits() {
        // A tree of this body would take 4 GB.
        let many = format!("{{\"feedback\":[{}{{}}]}}", "{},".repeat(9_000_000));
        let budget = Budget::new(1 << 20);
        let hold = Hold::open(&budget, &budget.connection(None)).unwrap();
        let failure = super::decode(&many.into(), NOW, &hold).unwrap_err();
        assert!(failure.message.starts_with("feedback[0]: request_id is missing"), "{}", failure.message);
        let valid = format!("{{\"feedback\":[{}]}}", vec!["{\"request_id\":\"a\",\"label\":1}"; 1_000_000].join(","));
        let failure = super::decode(&valid.into(), NOW, &Hold::uncounted()).unwrap_err();
        assert_eq!(failure.message, "feedback: at most 10000 entries at once, got more");
        assert!(hold.used() < 1000, "nothing of it is kept: {}", hold.used());

        let entry = format!("{{\"request_id\":\"{}\",\"label\":\"{}\"}}", "i".repeat(1000), "l".repeat(4000));
        let long = format!("{{\"feedback\":[{}]}}", vec![entry; 5000].join(","));
        let failure = super::decode(&long.into(), NOW, &hold).unwrap_err();
        assert_eq!(failure.code, crate::model::Code::BodyTooLarge, "the entries are counted: {}", failure.message);
        let values: Vec<String> = (0..101).map(|i| format!("\"v{i}\":1")).collect();
        let message = refused(
            &serde_json::from_str(&format!("{{\"request_id\":\"a\",\"values\":{{{}}}}}", values.join(","))).unwrap(),
        );
        assert_eq!(message, "feedback[1]: values: at most 100, got 101");
    }

    #[test]
    fn members_are_given_once() {
        let twice = br#"{"feedback":[{"request_id":"a","label":1,"label":2}]}"#;
        assert_eq!(decode(twice, NOW).unwrap_err().message, "feedback[0]: member \"label\" is given more than once");
        let lists = br#"{"feedback":[],"feedback":[]}"#;
        assert_eq!(decode(lists, NOW).unwrap_err().message, "feedback: given more than once");
    }
}
