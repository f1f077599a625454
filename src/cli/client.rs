//! What the client commands ask of the admin API.

use super::{ClientOptions, Failed, PromoteOptions, TrafficOptions, show, show_execution, show_shadow};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::time::Duration;

/// A segment of a path keeps what names are made of.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'.').remove(b'_').remove(b'-');

/// Longer than any load or drain that is waited for.
const PATIENCE: Duration = Duration::from_mins(10);

/// The admin API, from outside.
pub(super) struct Client {
    agent: ureq::Agent,
    options: ClientOptions,
}

/// An answer of the server's that is no error.
pub(super) struct Answer {
    bytes: Vec<u8>,
    etag: Option<String>,
}

impl Answer {
    pub(super) fn json(&self) -> Result<Value, Failed> {
        serde_json::from_slice(&self.bytes).map_err(|e| {
            Failed::Doing(format!("the answer is not JSON ({e}): {}", String::from_utf8_lossy(&self.bytes)))
        })
    }
}

pub(super) type Done = Result<(), Failed>;

impl Client {
    pub(super) fn new(options: ClientOptions) -> Client {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(PATIENCE))
            .timeout_connect(Some(Duration::from_secs(5)))
            // The admin plane is on this machine; a proxy from the environment would only be in the way.
            .proxy(None)
            .build();
        Client { agent: config.into(), options }
    }

    pub(super) fn json(&self) -> bool {
        self.options.json
    }

    pub(super) fn models(&self) -> Done {
        self.show(&self.get("/api/v1/models")?, show::models)
    }

    pub(super) fn versions(&self, model: &str) -> Done {
        self.show(&self.get(&path(model, ""))?, show::versions)
    }

    pub(super) fn execution(&self, model: &str) -> Done {
        self.show(&self.get(&format!("{}/execution", path(model, "")))?, show_execution::execution)
    }

    pub(super) fn traffic(&self, options: &TrafficOptions) -> Done {
        let place = format!("{}/traffic", path(&options.model, ""));
        let (document, if_match) = match (&options.set, &options.split) {
            (Some(file), _) => (read_text(file)?, None),
            (None, Some(split)) => {
                let (document, if_match) = self.with_split(&place, split, options)?;
                (document.to_string().into_bytes(), if_match)
            }
            (None, None) => return self.show(&self.get(&place)?, show::traffic),
        };
        let mut request = self.request("PUT", &place)?.header("content-type", "application/json");
        if let Some(etag) = if_match {
            request = request.header("if-match", etag);
        }
        let request = request.body(document).map_err(|e| self.wrong(&e))?;
        self.show(&self.answer(self.agent.run(request))?, show::traffic)
    }

    /// The document in force with another split, and the tag it had: a change by somebody else in between is not lost.
    fn with_split(
        &self,
        place: &str,
        split: &str,
        options: &TrafficOptions,
    ) -> Result<(Value, Option<String>), Failed> {
        let now = self.get(place)?;
        let mut document = now.json()?;
        document["split"] = parse_split(split, &document)?;
        if let Some(key) = &options.sticky_by {
            document["sticky_by"] = parse_key(key)?;
        }
        document["reason"] = options.reason.clone().map_or(Value::Null, Value::String);
        if options.allow_signature_change {
            document["allow_signature_change"] = true.into();
        }
        Ok((document, now.etag))
    }

    pub(super) fn promote(&self, options: &PromoteOptions) -> Done {
        let PromoteOptions { model, version, reason, dry_run, allow_signature_change, gates, no_gates } = options;
        let mut body = json!({"version": version, "reason": reason, "dry_run": dry_run});
        if *allow_signature_change {
            body["allow_signature_change"] = true.into();
        }
        if *no_gates || !gates.is_empty() {
            body["gates"] = parse_gates(gates)?;
        }
        let answer = self.send("POST", &path(model, ":promote"), &body)?;
        self.show(&answer, |answer| show::promotion(answer, *dry_run))?;
        if *dry_run && answer.json()?["would_pass"] == false {
            return Err(Failed::Doing(format!("{model}: a gate would refuse version {version}")));
        }
        Ok(())
    }

    pub(super) fn rollback(&self, model: &str, reason: &str) -> Done {
        let body = json!({"reason": reason});
        self.show(&self.send("POST", &path(model, ":rollback"), &body)?, show::rollback)
    }

    pub(super) fn shadow(&self, model: &str, version: Option<&str>) -> Done {
        let place = format!("{}/shadows", path(model, ""));
        match version {
            None => self.show(&self.get(&place)?, show_shadow::list),
            Some(version) => self.show(&self.get(&format!("{place}/{}", segment(version)))?, show_shadow::one),
        }
    }

    /// `verb` is `load` or `unload`.
    pub(super) fn load(&self, model: &str, version: &str, verb: &str) -> Done {
        let place = format!("{}/versions/{}:{verb}", path(model, ""), segment(version));
        let answer = self.send("POST", &place, &json!({}))?;
        self.show(&answer, |_| format!("version {version} of {model} is {verb}ed\n"))
    }

    pub(super) fn push(&self, model: &str, version: &str, file: &Path) -> Done {
        let opened = File::open(file).map_err(|e| Failed::Doing(format!("cannot read {}: {e}", file.display())))?;
        let place = format!("{}/versions/{}", path(model, ""), segment(version));
        let request = self.request("PUT", &place)?.header("content-type", "application/octet-stream");
        let request = request.body(ureq::SendBody::from_owned_reader(opened)).map_err(|e| self.wrong(&e))?;
        let answer = self.answer(self.agent.run(request))?;
        self.show(&answer, |_| {
            format!("version {version} of {model} has landed; `sluicegate versions {model}` says when it is ready\n")
        })
    }

    pub(super) fn history(&self, model: &str) -> Done {
        self.show(&self.get(&format!("{}/history", path(model, "")))?, show::history)
    }

    pub(super) fn audit(&self, model: Option<&str>, since: Option<&str>, limit: Option<u32>) -> Done {
        let limit = limit.map(|n| n.to_string());
        let query: Vec<String> = [("model", model), ("since", since), ("limit", limit.as_deref())]
            .into_iter()
            .filter_map(|(name, value)| value.map(|v| format!("{name}={}", segment(v))))
            .collect();
        self.show(&self.get(&format!("/api/v1/audit?{}", query.join("&")))?, show::audit)
    }

    pub(super) fn show(&self, answer: &Answer, table: impl FnOnce(&Value) -> String) -> Done {
        let mut out = io::stdout().lock();
        let written = if self.options.json {
            out.write_all(&answer.bytes)
                .and_then(|()| if answer.bytes.ends_with(b"\n") { Ok(()) } else { out.write_all(b"\n") })
        } else {
            let text = table(&answer.json()?);
            out.write_all(text.as_bytes())
        };
        match written.and_then(|()| out.flush()) {
            // Whoever reads the other end has seen enough (`| head`).
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => other.map_err(|e| Failed::Doing(format!("cannot print the answer: {e}"))),
        }
    }

    pub(super) fn get(&self, place: &str) -> Result<Answer, Failed> {
        let request = self.request("GET", place)?.body(()).map_err(|e| self.wrong(&e))?;
        self.answer(self.agent.run(request))
    }

    pub(super) fn send(&self, method: &str, place: &str, body: &Value) -> Result<Answer, Failed> {
        let request = self.request(method, place)?.header("content-type", "application/json");
        let request = request.body(body.to_string()).map_err(|e| self.wrong(&e))?;
        self.answer(self.agent.run(request))
    }

    fn request(&self, method: &str, place: &str) -> Result<ureq::http::request::Builder, Failed> {
        let base = self.options.admin.trim_end_matches('/');
        if base.starts_with("https://") {
            return Err(Failed::Usage(format!(
                "--admin {base}: the admin plane speaks plain HTTP on loopback; use http://, through a tunnel where it is remote"
            )));
        }
        let mut request = ureq::http::Request::builder().method(method).uri(format!("{base}{place}"));
        if let Some(user) =
            std::env::var("USER").ok().filter(|u| u.bytes().all(|b| b.is_ascii_graphic()) && !u.is_empty())
        {
            // For the audit trail: who says so, as there are no tokens yet that prove it.
            request = request.header("x-sluicegate-actor", user);
        }
        if let Some(token) = &self.options.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        Ok(request)
    }

    fn wrong(&self, error: &ureq::http::Error) -> Failed {
        Failed::Usage(format!(
            "--admin {:?} makes no address: {error}; expected something like http://127.0.0.1:8081",
            self.options.admin
        ))
    }

    fn answer(&self, answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Result<Answer, Failed> {
        let mut answer = answer.map_err(|error| match error {
            ureq::Error::BadUri(_) | ureq::Error::Http(_) => {
                Failed::Usage(format!("--admin {:?} makes no address: {error}", self.options.admin))
            }
            error => Failed::Doing(format!(
                "cannot reach the admin plane at {}: {error}; is a server running there? `sluicegate serve` starts one, and --admin or \
                 SLUICEGATE_ADMIN names another address",
                self.options.admin
            )),
        })?;
        let status = answer.status();
        let etag = answer.headers().get("etag").and_then(|v| v.to_str().ok()).map(str::to_owned);
        let mut bytes = Vec::new();
        let read = answer.body_mut().as_reader().read_to_end(&mut bytes);
        read.map_err(|e| Failed::Doing(format!("the server's answer broke off: {e}")))?;
        if status.is_success() {
            return Ok(Answer { bytes, etag });
        }
        if self.options.json {
            // A script that asked for JSON gets the error as JSON too; the words below go to standard error.
            let _ = io::stdout().write_all(&bytes).and_then(|()| io::stdout().write_all(b"\n"));
        }
        Err(Failed::Doing(words(status.as_u16(), &bytes)))
    }
}

/// The server's own sentence, and each of its complaints where there are several.
fn words(status: u16, bytes: &[u8]) -> String {
    let Ok(problem) = serde_json::from_slice::<Value>(bytes) else {
        return format!("the server answered {status}: {}", String::from_utf8_lossy(bytes));
    };
    let mut text = problem["error"].as_str().map_or_else(|| format!("the server answered {status}"), str::to_owned);
    for detail in problem["details"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        text.push_str("\n  - ");
        text.push_str(detail);
    }
    text
}

fn segment(text: &str) -> String {
    utf8_percent_encode(text, SEGMENT).to_string()
}

pub(super) fn path(model: &str, verb: &str) -> String {
    format!("/api/v1/models/{}{verb}", segment(model))
}

/// As it stands: read and written again, a member that stands twice would be gone before the server could complain of it.
fn read_text(file: &Path) -> Result<Vec<u8>, Failed> {
    let mut text = Vec::new();
    let read = if file == Path::new("-") {
        io::stdin().read_to_end(&mut text)
    } else {
        File::open(file).and_then(|mut file| file.read_to_end(&mut text))
    };
    read.map(|_| text).map_err(|e| Failed::Doing(format!("cannot read {}: {e}", file.display())))
}

/// `1=90,2=10` or `control:1=90,challenger:2=10`; whether the versions and weights are right is the server's to say.
///
/// An arm that is given without a name keeps the one its version has in `now`, so that sticky keys stay where they are.
pub(super) fn parse_split(text: &str, now: &Value) -> Result<Value, Failed> {
    let name_of = |version: &str| {
        let arms = now["split"].as_array().into_iter().flatten();
        let mut arms = arms.filter(|a| a["version"] == version);
        arms.next().filter(|_| arms.next().is_none()).map(|a| a["arm"].clone()).filter(Value::is_string)
    };
    let arms: Option<Vec<Value>> = text
        .split(',')
        .map(|part| {
            let (who, weight) = part.trim().split_once('=')?;
            let weight: f64 = weight.trim().parse().ok().filter(|w: &f64| w.is_finite())?;
            let (arm, version) = match who.split_once(':') {
                Some((arm, version)) => (Some(arm.trim().into()), version.trim()),
                None => (name_of(who.trim()), who.trim()),
            };
            let mut entry = json!({"version": version, "weight": weight});
            if let Some(arm) = arm {
                entry["arm"] = arm;
            }
            Some(entry)
        })
        .collect();
    arms.map(Value::Array).ok_or_else(|| {
        Failed::Usage(format!(
            "--split {text:?}: expected VERSION=WEIGHT or ARM:VERSION=WEIGHT, with commas between, such as 1=90,2=10"
        ))
    })
}

/// `header:x-user-id` or `parameter:user_id`.
pub(super) fn parse_key(text: &str) -> Result<Value, Failed> {
    match text.split_once(':') {
        Some((kind @ ("header" | "parameter"), name)) if !name.is_empty() => Ok(json!({kind: name})),
        _ => Err(Failed::Usage(format!("--sticky-by {text:?}: expected header:NAME or parameter:NAME"))),
    }
}

/// `golden`, `shadow_agreement=0.99`: which gates there are, and what they take, is the server's to say.
pub(super) fn parse_gates(given: &[String]) -> Result<Value, Failed> {
    let mut gates = serde_json::Map::new();
    for gate in given {
        let (name, value) = gate.split_once('=').unwrap_or((gate, "true"));
        let value: Option<Value> = serde_json::from_str(value.trim()).ok();
        let Some(value) = value.filter(|v| (v.is_number() || v.is_boolean()) && !name.trim().is_empty()) else {
            return Err(Failed::Usage(format!(
                "--gate {gate:?}: expected NAME or NAME=NUMBER, such as golden or shadow_agreement=0.99"
            )));
        };
        if gates.insert(name.trim().to_owned(), value).is_some() {
            return Err(Failed::Usage(format!("--gate {gate:?}: this gate is given twice")));
        }
    }
    Ok(gates.into())
}
