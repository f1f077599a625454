//! The commands `requests` and `request`: they list requests of the prediction log, and show one.

use super::offline::{answer_for_server, finish, parsed, role, time_of};
use crate::cli::{self, LogPlace, RequestOptions, RequestsOptions};
use crate::compare::Tolerance;
use crate::config::Config;
use crate::dataset::{
    self, Cursor, Ended, Error, Filter, Found, Hit, Look, Looked, LookedPrediction, NotRead, RowFeedback, Search,
    ShownTensor, Status,
};
use crate::model::{Code, Label, ModelName, Role};
use crate::record::hashed_key;
use crate::settings::parse_duration;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::io::Write as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How long a server searches for one page.
const FOR_SERVER: Duration = Duration::from_secs(10);
/// The most bytes of the words about a difference.
const WORDS: usize = 400;

/// Lists requests of the prediction log. The exit code is 0 also where none matches.
#[must_use]
pub fn requests(options: &RequestsOptions, json: bool) -> ExitCode {
    begin(&options.place);
    if options.lines {
        let end = requests_as(options, print_lines).map(|found| json!({ "end": ended_json(&found) }));
        return finish(false, end, |end| format!("{end}\n"), Value::clone, |_| true);
    }
    let found = requests_as(options, |_| {}).map(|found| found_json(&options.model, &found));
    finish(json, found, cli::found_requests, Value::clone, |_| true)
}

/// Shows what the prediction log has about one request.
#[must_use]
pub fn request(options: &RequestOptions, json: bool) -> ExitCode {
    begin(&options.place);
    finish(json, request_as(options), cli::one_request, Value::clone, |_| true)
}

fn begin(place: &LogPlace) {
    if place.for_server {
        answer_for_server();
    }
}

/// A line for each request, as soon as it is found. It ends the process where nobody reads any more, such as behind `| head`.
fn print_lines(hits: &[Hit]) {
    let lines: String = hits.iter().map(|hit| json!({ "request": hit_json(hit) }).to_string() + "\n").collect();
    let mut out = std::io::stdout().lock();
    if out.write_all(cli::shown_json(&lines).as_bytes()).and_then(|()| out.flush()).is_err() {
        crate::machine::exit_now(0);
    }
}

fn requests_as(options: &RequestsOptions, as_found: impl FnMut(&[Hit])) -> Result<Found, Error> {
    let model: ModelName = parsed(&options.model, "model name")?;
    let place = |text: &str| text.parse::<Cursor>().map_err(|e| Error::Usage(format!("--after {text:?}: {e}")));
    let slower = |text: &str| {
        let duration = parse_duration(text).and_then(|duration| i64::try_from(duration.as_micros()).ok());
        duration
            .ok_or_else(|| Error::Usage(format!("--slower-than {text:?}: expected a duration, such as 250ms or 2s")))
    };
    let tolerance = tolerance(options.rtol, options.atol)?;
    let what = Search {
        model: &model,
        data: options.place.data_dir(),
        filter: filter(options, options.slower_than.as_deref().map(slower).transpose()?)?,
        non_finite: options.non_finite,
        disagreed: options.disagreed.then_some(tolerance),
        limit: usize::from(options.limit),
        after: options.after.as_deref().map(place).transpose()?,
        until: options.place.for_server.then(|| Instant::now() + FOR_SERVER),
    };
    dataset::search(&what, as_found)
}

fn filter(options: &RequestsOptions, slower_than: Option<i64>) -> Result<Filter, Error> {
    let roles = match &options.role {
        Some(word) => vec![role(word)?],
        None if options.request_id.is_some() => Role::ALL.to_vec(),
        None => Vec::new(),
    };
    let version = options.version.as_deref().map(|word| parsed(word, "version")).transpose()?;
    Ok(Filter {
        from: time_of("--since", options.since.as_deref())?,
        to: time_of("--until", options.until.as_deref())?,
        versions: version.into_iter().collect(),
        arms: options.arm.iter().cloned().collect(),
        roles,
        request_id: options.request_id.clone(),
        route_keys: options
            .route_key
            .as_deref()
            .map_or_else(|| Ok(Vec::new()), |key| route_keys(&options.place, key))?,
        status: options.status.as_deref().map(status).transpose()?,
        slower_than,
    })
}

/// A route key as it may be stored: as it is, or hashed.
fn route_keys(place: &LogPlace, key: &str) -> Result<Vec<String>, Error> {
    let hashed = match &place.hashed_route_key {
        Some(hashed) => Some(hashed.clone()),
        // A server that gives no hash has a caller who may not look for hashed keys.
        None if place.for_server => None,
        None => hashed_key(place.data_dir(), place.hash_key_file.as_deref(), key)
            .map_err(|e| Error::Failed(e.to_string()))?,
    };
    Ok(std::iter::once(key.to_owned()).chain(hashed).collect())
}

fn status(word: &str) -> Result<Status, Error> {
    if word == "error" {
        return Ok(Status::Error);
    }
    if word == "ok" || Code::ALL.iter().any(|code| code.as_str() == word) {
        return Ok(Status::Is(word.to_owned()));
    }
    Err(Error::Usage(format!("--status {word:?}: expected ok, error, or an error code such as DEADLINE_EXCEEDED")))
}

fn tolerance(rtol: Option<f64>, atol: Option<f64>) -> Result<Tolerance, Error> {
    for (name, number) in [("rtol", rtol), ("atol", atol)] {
        if number.is_some_and(|number| !number.is_finite() || number < 0.0) {
            return Err(Error::Usage(format!("--{name} must be a number of at least 0")));
        }
    }
    let shadows = Config::default().shadows;
    Ok(Tolerance { rtol: rtol.unwrap_or(shadows.rtol), atol: atol.unwrap_or(shadows.atol) })
}

fn found_json(model: &str, found: &Found) -> Value {
    let mut json = json!({ "model": model, "requests": found.requests.iter().map(hit_json).collect::<Vec<_>>() });
    if let (Value::Object(json), Value::Object(end)) = (&mut json, ended_json(found)) {
        json.extend(end);
    }
    json
}

/// How a search ended.
fn ended_json(found: &Found) -> Value {
    let ended = match found.ended {
        Ended::Beginning => "beginning",
        Ended::Limit => "limit",
        Ended::Time => "time",
    };
    json!({
        "next": found.next.map(|next| next.to_string()),
        "ended": ended,
        "records_read": found.records,
        "files_gone": found.deleted_files,
        "not_read": not_read_json(&found.not_read),
    })
}

/// Files that are damaged. Paths are below the data directory.
fn not_read_json(files: &NotRead) -> Value {
    let named = files.named.iter().map(|(path, why)| json!({"file": path.display().to_string(), "why": cut(why)}));
    json!({ "files": files.count, "named": named.collect::<Vec<_>>() })
}

fn hit_json(hit: &Hit) -> Value {
    json!({
        "request_id": hit.request_id, "ts": time(hit.ts), "version": hit.version, "sha256": hit.sha256, "arm": hit.arm,
        "role": hit.role, "route_key": hit.route_key, "status": hit.status, "latency_us": hit.latency_us,
        "infer_us": hit.infer_us, "rows": hit.rows, "batch_rows": hit.batch_rows, "traceparent": hit.traceparent,
        "sample_rate": hit.sample_rate, "truncated": hit.truncated,
        "difference": hit.difference.as_deref().map(cut),
    })
}

fn cut(words: &str) -> &str {
    &words[..words.floor_char_boundary(WORDS)]
}

/// A time outside of the calendar is a number.
fn time(us: i64) -> Value {
    Timestamp::from_microsecond(us).map_or_else(|_| us.into(), |at| at.to_string().into())
}

fn request_as(options: &RequestOptions) -> Result<Value, Error> {
    let model: ModelName = parsed(&options.model, "model name")?;
    let what = Look {
        model: &model,
        data: options.place.data_dir(),
        request_id: &options.request_id,
        elements: usize::try_from(options.elements).unwrap_or(usize::MAX),
        tolerance: tolerance(options.rtol, options.atol)?,
    };
    let Looked { predictions, more, feedback, deleted_files, not_read } = dataset::look(&what)?;
    // A server tells its client itself that there is none.
    if predictions.is_empty() && !options.place.for_server {
        let (data, id) = (options.place.data_dir().display(), &options.request_id);
        let damaged = match not_read.named.first() {
            Some((path, why)) => format!("; not read: {} files, such as {}: {why}", not_read.count, path.display()),
            None => String::new(),
        };
        return Err(Error::Failed(format!("{data} has no prediction of {model} with the id {id:?}{damaged}")));
    }
    Ok(json!({
        "model": model,
        "request_id": options.request_id,
        "predictions": predictions.iter().map(prediction_json).collect::<Vec<_>>(),
        "more": more,
        "feedback": feedback.iter().map(feedback_json).collect::<Vec<_>>(),
        "files_gone": deleted_files,
        "not_read": not_read_json(&not_read),
        "commands": {
            "reproduce": format!("sluicegate reproduce {} --model {model}", quoted(&options.request_id)),
            "explain": format!("sluicegate explain {} --model {model}", quoted(&options.request_id)),
        },
    }))
}

/// A word of a shell's command line.
fn quoted(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.:/@".contains(c);
    if !text.is_empty() && !text.starts_with('-') && text.chars().all(is_plain) {
        return text.to_owned();
    }
    format!("{}'{}'", if text.starts_with('-') { "-- " } else { "" }, text.replace('\'', r"'\''"))
}

fn prediction_json(of: &LookedPrediction) -> Value {
    let mut json = hit_json(&of.head);
    json["inputs"] = of.inputs.iter().map(tensor_json).collect();
    json["outputs"] = of.outputs.iter().map(tensor_json).collect();
    json["compared"] =
        of.compared.as_ref().map(|(agrees, words)| json!({"agrees": agrees, "words": cut(words)})).into();
    if let Value::Object(members) = &mut json {
        members.remove("difference");
    }
    json
}

fn tensor_json(tensor: &ShownTensor) -> Value {
    json!({
        "name": tensor.name, "datatype": tensor.datatype.as_str(), "shape": tensor.shape,
        "recorded": tensor.recorded.as_str(), "elements": tensor.elements, "data": tensor.data,
        "cut_texts": tensor.cut_texts,
    })
}

fn feedback_json(of: &RowFeedback) -> Value {
    let label = of.label.as_ref().map(|label| match label {
        Label::Number(number) => json!(number),
        Label::Text(text) => json!(text),
    });
    let values: serde_json::Map<String, Value> =
        of.values.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
    json!({ "row": of.row, "label": label, "values": values, "ts": of.ts.map(time) })
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn ids_are_one_word_of_a_command_line() {
        assert_eq!(quoted("order-12:3"), "order-12:3");
        assert_eq!(quoted("a b'; rm -rf /"), r"'a b'\''; rm -rf /'");
        assert_eq!(quoted("--help"), "-- '--help'");
        assert_eq!(quoted(""), "''");
    }
}
