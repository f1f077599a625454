//! Feedback: `{"feedback":[{"request_id":"…","row":0,"label":…,"values":{…},"ts":"RFC 3339"}]}`.

use crate::model::{Complaints, Failure, Feedback, Label, RequestId, quoted};
use jiff::Timestamp;
use serde_json::{Map, Value};

/// The most entries in one request. Larger requests are rejected, because a request is stored completely or not at all.
const MAX_ENTRIES: usize = 10_000;
/// The most values in one entry.
const MAX_VALUES: usize = 100;
/// The most bytes of a label, and of a value's name.
const MAX_TEXT: usize = 4096;
/// How far a `ts` can be in the future, because clocks differ. In microseconds.
const MAX_AHEAD: i64 = 24 * 3600 * 1_000_000;
const MEMBERS: [&str; 5] = ["request_id", "row", "label", "values", "ts"];

/// Decodes a body. `now` is the time for entries without a `ts`, in microseconds since 1970.
///
/// # Errors
/// `INVALID_REQUEST`, with all complaints. Each has the number of its entry.
pub fn decode(body: &[u8], now: i64) -> Result<Vec<Feedback>, Failure> {
    let mut complaints = Complaints::default();
    let feedback = entries(body, now, &mut complaints);
    complaints.into_result(feedback)
}

fn entries(body: &[u8], now: i64, complaints: &mut Complaints) -> Vec<Feedback> {
    let body: Value = match serde_json::from_slice(body) {
        Ok(body) => body,
        Err(e) => {
            complaints.request(format!("the body is not JSON: {e}"));
            return Vec::new();
        }
    };
    let Some(list) = body.get("feedback").and_then(Value::as_array) else {
        let got = body.get("feedback").map_or("nothing", kind);
        complaints.request(format!("feedback: expected a list of entries, got {got}"));
        return Vec::new();
    };
    if list.len() > MAX_ENTRIES {
        complaints.request(format!("feedback: at most {MAX_ENTRIES} entries at once, got {}", list.len()));
        return Vec::new();
    }
    let mut read = Vec::with_capacity(list.len());
    for (i, entry) in list.iter().enumerate() {
        if complaints.is_full() {
            break;
        }
        let mut of_entry = Complaints::default();
        match entry.as_object() {
            Some(members) => read.extend(one(members, now, &mut of_entry)),
            None => of_entry.request(format!("expected an object, got {}", kind(entry))),
        }
        complaints.absorb(of_entry, &format!("feedback[{i}]"));
    }
    read
}

fn one(members: &Map<String, Value>, now: i64, complaints: &mut Complaints) -> Option<Feedback> {
    for unknown in members.keys().filter(|key| !MEMBERS.contains(&key.as_str())) {
        complaints.request(format!("unknown member {}: an entry has {}", quoted(unknown), MEMBERS.join(", ")));
    }
    let request_id = match members.get("request_id") {
        Some(Value::String(id)) if (1..=RequestId::MAX_BYTES).contains(&id.len()) => Some(id.clone()),
        Some(Value::String(id)) => {
            let expected = format!("1 to {} bytes", RequestId::MAX_BYTES);
            complaints.request(format!("request_id: expected {expected}, got {}", id.len()));
            None
        }
        Some(other) => {
            complaints.request(format!("request_id: expected a string, got {}", kind(other)));
            None
        }
        None => {
            complaints.request("request_id is missing: it identifies the prediction");
            None
        }
    };
    let row = match members.get("row") {
        None => Some(0),
        Some(row) => {
            let number = row.as_u64().and_then(|n| i32::try_from(n).ok()).map(i32::unsigned_abs);
            if number.is_none() {
                complaints.request(format!("row: expected an integer from 0 to {}, got {}", i32::MAX, written(row)));
            }
            number
        }
    };
    let label = label(members.get("label"), complaints);
    let values = values(members.get("values"), complaints);
    let ts = members.get("ts").map_or(Some(now), |ts| time(ts, now, complaints));
    if complaints.is_empty() && label.is_none() && values.is_empty() {
        complaints.request("the entry is empty: expected a label, values, or both");
    }
    Some(Feedback { request_id: request_id?, row: row?, ts: ts?, label, values })
}

fn label(label: Option<&Value>, complaints: &mut Complaints) -> Option<Label> {
    match label? {
        Value::Null => None,
        Value::Bool(b) => Some(Label::Number(f64::from(u8::from(*b)))),
        Value::Number(n) => n.as_f64().map(Label::Number),
        Value::String(text) if text.len() <= MAX_TEXT => Some(Label::Text(text.clone())),
        Value::String(text) => {
            complaints.request(format!("label: at most {MAX_TEXT} bytes, got {}", text.len()));
            None
        }
        other => {
            complaints.request(format!("label: expected a number, a string or a boolean, got {}", kind(other)));
            None
        }
    }
}

fn values(values: Option<&Value>, complaints: &mut Complaints) -> Vec<(String, f64)> {
    let members = match values {
        None | Some(Value::Null) => return Vec::new(),
        Some(Value::Object(members)) => members,
        Some(other) => {
            complaints.request(format!("values: expected an object of numbers, got {}", kind(other)));
            return Vec::new();
        }
    };
    if members.len() > MAX_VALUES {
        complaints.request(format!("values: at most {MAX_VALUES}, got {}", members.len()));
        return Vec::new();
    }
    let mut read = Vec::with_capacity(members.len());
    for (name, value) in members {
        if name.is_empty() || name.len() > MAX_TEXT {
            let expected = format!("1 to {MAX_TEXT} bytes");
            complaints.request(format!("values: expected a name of {expected}, got {} bytes", name.len()));
        } else if let Some(number) = value.as_f64() {
            read.push((name.clone(), number));
        } else {
            complaints.request(format!("values.{}: expected a number, got {}", quoted(name), kind(value)));
        }
    }
    read
}

fn time(ts: &Value, now: i64, complaints: &mut Complaints) -> Option<i64> {
    let read = ts.as_str().and_then(|text| text.parse::<Timestamp>().ok()).map(Timestamp::as_microsecond);
    match read {
        None => {
            let expected = "a time of RFC 3339 such as \"2026-11-21T10:00:00Z\"";
            complaints.request(format!("ts: expected {expected}, got {}", written(ts)));
            None
        }
        Some(read) if read > now.saturating_add(MAX_AHEAD) => {
            complaints.request(format!("ts: {} is more than a day ahead of this server's clock", written(ts)));
            None
        }
        read => read,
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// A value for a message: a string or number as it is, anything else by its kind.
fn written(value: &Value) -> String {
    match value {
        Value::String(text) => quoted(text),
        Value::Number(number) => number.to_string(),
        other => kind(other).to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

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
        ]});
        let read = decode(body.to_string().as_bytes(), NOW).unwrap();
        assert_eq!((read[0].row, read[0].ts, &read[0].label), (3, 1_795_251_600_000_000, &Some(Label::Number(1.0))));
        assert_eq!((read[1].row, read[1].ts, &read[1].label), (0, NOW, &Some(Label::Text("cat".to_owned()))));
        assert_eq!(read[1].values, [("revenue".to_owned(), 1.5), ("clicked".to_owned(), 0.0)]);
        assert_eq!((&read[2].label, read[2].values.len()), (&None, 1));
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
                "feedback[1]: label: expected a number, a string or a boolean, got a list",
            ),
            (
                json!({"request_id": "a", "values": {"x": "1"}}),
                "feedback[1]: values.\"x\": expected a number, got a string",
            ),
            (json!({"request_id": "a", "label": 1, "ts": "yesterday"}), "feedback[1]: ts: expected a time of RFC 3339"),
            (
                json!({"request_id": "a", "label": 1, "ts": "2028-01-21T10:00:00Z"}),
                "feedback[1]: ts: \"2028-01-21T10:00:00Z\" is more than a day ahead",
            ),
            (json!({"request_id": "a", "lable": 1}), "feedback[1]: unknown member \"lable\""),
            (json!({"request_id": "a"}), "feedback[1]: the entry is empty"),
            (json!("a"), "feedback[1]: expected an object, got a string"),
        ] {
            let message = refused(&entry);
            assert!(message.starts_with(words), "{message}\n{words}");
        }
        let many = json!({"feedback": vec![json!({"request_id": "a", "label": 1}); MAX_ENTRIES + 1]}).to_string();
        let message = decode(many.as_bytes(), NOW).unwrap_err().message;
        assert_eq!(message, "feedback: at most 10000 entries at once, got 10001");
        assert!(
            decode(b"[]", NOW).unwrap_err().message.starts_with("feedback: expected a list of entries, got nothing")
        );
        assert!(decode(b"{", NOW).unwrap_err().message.starts_with("the body is not JSON"));
    }
}
