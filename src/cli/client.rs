//! The client commands' requests to the admin API.

use super::{
    ClientOptions, CommandError, PromoteOptions, QualityOptions, RollbackOptions, TokenCommand, TrafficOptions, show,
    show_access, show_drift, show_execution, show_lineage, show_mlflow, show_outcomes, show_shadow, show_sources,
    terminal, tls,
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use std::cell::OnceCell;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::time::Duration;

/// What is percent-encoded in a segment of a path: everything but letters, digits and these.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'.').remove(b'_').remove(b'-');

/// The deadline of a request that waits for a load, a drain or an upload.
pub(super) const LONG: Duration = Duration::from_mins(10);

/// The deadline of all other requests.
const SHORT: Duration = Duration::from_secs(30);

/// The most bytes of an answer that are read: far more than any table.
const MAX_ANSWER: u64 = 1 << 30;

/// A client of the admin API.
pub(super) struct Client {
    /// Made for the first request, which is when certificates are read.
    agent: OnceCell<ureq::Agent>,
    options: ClientOptions,
}

/// A successful answer of the server.
pub(super) struct Answer {
    pub(super) bytes: Vec<u8>,
    etag: Option<String>,
}

impl Answer {
    pub(super) fn json(&self) -> Result<Value, CommandError> {
        serde_json::from_slice(&self.bytes).map_err(|e| {
            CommandError::Failed(format!(
                "the server's answer is not JSON ({e}): {}",
                String::from_utf8_lossy(&self.bytes)
            ))
        })
    }
}

pub(super) type Done = Result<(), CommandError>;

impl Client {
    pub(super) fn new(options: ClientOptions) -> Client {
        Client { agent: OnceCell::new(), options }
    }

    fn agent(&self) -> Result<&ureq::Agent, CommandError> {
        if let Some(agent) = self.agent.get() {
            return Ok(agent);
        }
        let mut config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(SHORT))
            .timeout_connect(Some(Duration::from_secs(5)))
            // The admin API is on this machine or behind a tunnel: a proxy from the environment does not apply.
            .proxy(None);
        let ClientOptions { ca, client_cert, client_key, .. } = &self.options;
        let admin = self.admin();
        if admin.starts_with("https://") {
            config = config.tls_config(tls::config(ca.as_deref(), client_cert.as_deref(), client_key.as_deref())?);
        } else if ca.is_some() || client_cert.is_some() {
            let message = format!("--admin {admin}: --ca and --client-cert need an address that begins with https://");
            return Err(CommandError::Usage(message));
        }
        Ok(self.agent.get_or_init(|| config.build().into()))
    }

    /// The address of the server.
    pub(super) fn admin(&self) -> &str {
        self.options.admin.as_deref().unwrap_or("http://127.0.0.1:8081")
    }

    /// Whether the command line or the environment names a server.
    pub(super) fn names_server(&self) -> bool {
        self.options.admin.is_some()
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
            (Some(file), _) => {
                let mut document = read_file(file)?;
                let reason = options.reason.as_deref().map(|reason| ("reason", reason.into()));
                let break_glass = options.break_glass.then_some(("break_glass", true.into()));
                let quorum = options.quorum.map(|share| ("quorum", share.into()));
                for (name, value) in reason.into_iter().chain(break_glass).chain(quorum) {
                    document = set_member(&document, name, &value).unwrap_or(document);
                }
                (document, None)
            }
            (None, Some(split)) => {
                // Wrong arguments are found without the server.
                parse_split(split, &Value::Null)?;
                options.sticky_by.as_deref().map(parse_key).transpose()?;
                let (document, if_match) = self.with_split(&place, split, options)?;
                (document.to_string().into_bytes(), if_match)
            }
            (None, None) => {
                let Some(key) = &options.key else { return self.show(&self.get(&place)?, show::traffic) };
                let place = format!("{}/assignment?key={}", path(&options.model, ""), segment(key));
                return self.show(&self.get(&place)?, show::assignment);
            }
        };
        let mut request = self.request("PUT", &place).header("content-type", "application/json");
        if let Some(etag) = if_match {
            request = request.header("if-match", etag);
        }
        let request = request.body(document).map_err(|e| self.bad_address(&e))?;
        self.show(&self.run(request, SHORT)?, show::traffic)
    }

    /// The current document with another split, and its `ETag`, so that a change made in between by another operator is not lost.
    fn with_split(
        &self,
        place: &str,
        split: &str,
        options: &TrafficOptions,
    ) -> Result<(Value, Option<String>), CommandError> {
        let now = self.get(place)?;
        let mut document = now.json()?;
        let had_one_arm = has_one_arm(&document);
        document["split"] = parse_split(split, &document)?;
        if let Some(key) = &options.sticky_by {
            document["sticky_by"] = parse_key(key)?;
        }
        if let Some(salt) = &options.salt {
            document["salt"] = salt.as_str().into();
        } else if had_one_arm && !has_one_arm(&document) && !document["sticky_by"].is_null() {
            // A new experiment. With the salt of the last one, mostly the users that it treated would be treated again. Replicas with the
            // same history get the same salt, so that a user has the same arm on all of them.
            document["salt"] = format!("{}-{}", options.model, document["revision"]).into();
        }
        document["reason"] = options.reason.clone().map_or(Value::Null, Value::String);
        if options.allow_signature_change {
            document["allow_signature_change"] = true.into();
        }
        if options.break_glass {
            document["break_glass"] = true.into();
        }
        if let Some(share) = options.quorum {
            document["quorum"] = share.into();
        }
        Ok((document, now.etag))
    }

    pub(super) fn promote(&self, options: &PromoteOptions) -> Done {
        let PromoteOptions {
            model,
            version,
            reason,
            dry_run,
            allow_signature_change,
            gates,
            no_gates,
            break_glass,
            quorum,
        } = options;
        let mut body = json!({"version": version, "reason": reason, "dry_run": dry_run});
        if *allow_signature_change {
            body["allow_signature_change"] = true.into();
        }
        if *break_glass {
            body["break_glass"] = true.into();
        }
        if let Some(share) = quorum {
            body["quorum"] = (*share).into();
        }
        if *no_gates || !gates.is_empty() {
            body["gates"] = parse_gates(gates)?;
        }
        let answer = self.send("POST", &path(model, ":promote"), &body)?;
        self.show(&answer, |answer| show::promotion(answer, *dry_run))?;
        if *dry_run && answer.json()?["would_pass"] == false {
            return Err(CommandError::Failed(format!("{model}: version {version} does not pass its gates")));
        }
        Ok(())
    }

    pub(super) fn rollback(&self, options: &RollbackOptions) -> Done {
        let RollbackOptions { model, to_revision, reason, dry_run, break_glass } = options;
        // A dry run stores nothing, but the API asks for a reason.
        let reason = reason.as_deref().unwrap_or("a dry run");
        let mut body = json!({"reason": reason, "dry_run": dry_run});
        if let Some(revision) = to_revision {
            body["to_revision"] = (*revision).into();
        }
        if *break_glass {
            body["break_glass"] = true.into();
        }
        // It may have to load versions.
        let answer = self.send_and_wait("POST", &path(model, ":rollback"), &body, LONG)?;
        self.show(&answer, |answer| show::rollback(answer, *dry_run))
    }

    pub(super) fn retire(&self, model: &str, reason: &str) -> Done {
        let body = json!({"reason": reason});
        self.show(&self.send("DELETE", &path(model, ""), &body)?, show::retired)
    }

    pub(super) fn shadow(&self, model: &str, version: Option<&str>) -> Done {
        let place = format!("{}/shadows", path(model, ""));
        match version {
            None => self.show(&self.get(&place)?, show_shadow::list),
            Some(version) => self.show(&self.get(&format!("{place}/{}", segment(version)))?, show_shadow::one),
        }
    }

    /// `verb` is `load` or `unload`.
    pub(super) fn load(&self, model: &str, version: &str, verb: &str, reason: Option<&str>) -> Done {
        let place = format!("{}/versions/{}:{verb}", path(model, ""), segment(version));
        let body = reason.map_or_else(|| json!({}), |reason| json!({ "reason": reason }));
        let answer = self.send_and_wait("POST", &place, &body, LONG)?;
        self.show(&answer, |_| format!("version {version} of {model} is {verb}ed\n"))
    }

    pub(super) fn token(&self, command: &TokenCommand) -> Done {
        match command {
            TokenCommand::Create { name, role, models, expires, data_dir: _ } => {
                let mut body = json!({"name": name, "role": role, "expires": expires});
                if !models.is_empty() {
                    body["models"] = json!(models);
                }
                let answer = self.send("POST", "/api/v1/tokens", &body)?;
                self.show(&answer, |answer| show::cell(&answer["token"]) + "\n")
            }
            TokenCommand::Generate => {
                Err(CommandError::Failed("a new token is made here, and not by a server".to_owned()))
            }
            TokenCommand::List { data_dir: _ } => self.show(&self.get("/api/v1/tokens")?, show_access::tokens),
            TokenCommand::Revoke { name, data_dir: _ } => {
                let place = format!("/api/v1/tokens/{}", segment(name));
                self.show(&self.send("DELETE", &place, &json!({}))?, |_| format!("the token {name} is revoked\n"))
            }
        }
    }

    pub(super) fn callers(&self) -> Done {
        self.show(&self.get("/api/v1/callers")?, show_access::callers)
    }

    pub(super) fn sources(&self, now: bool) -> Done {
        if now {
            self.send("POST", "/api/v1/sources:read", &json!({}))?;
        }
        self.show(&self.get("/api/v1/sources")?, show_sources::sources)
    }

    pub(super) fn mlflow(&self) -> Done {
        self.show(&self.get("/api/v1/mlflow")?, show_mlflow::registry)
    }

    pub(super) fn whoami(&self) -> Done {
        self.show(&self.get("/api/v1/whoami")?, show_access::whoami)
    }

    pub(super) fn drift(&self, model: &str, bins: u8) -> Done {
        self.show(&self.get(&path(model, &format!("/drift?bins={bins}")))?, show_drift::drift)
    }

    pub(super) fn lineage(&self, model: &str, version: &str) -> Done {
        let place = format!("{}/versions/{}/lineage", path(model, ""), segment(version));
        self.show(&self.get(&place)?, show_lineage::lineage)
    }

    pub(super) fn quality(&self, options: &QualityOptions) -> Done {
        let QualityOptions { model, window, step, by } = options;
        let query: Vec<String> = [("window", window), ("step", step), ("by", by)]
            .into_iter()
            .filter_map(|(name, value)| value.as_ref().map(|v| format!("{name}={}", segment(v))))
            .collect();
        let place = format!("{}/quality", path(model, ""));
        if query.is_empty() {
            self.show(&self.get(&place)?, show_outcomes::recent)
        } else {
            self.show(&self.get(&format!("{place}?{}", query.join("&")))?, show_outcomes::windows)
        }
    }

    pub(super) fn experiment(&self, model: &str) -> Done {
        self.show(&self.get(&format!("{}/experiment", path(model, "")))?, show_outcomes::experiment)
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

    /// The page of the audit trail after an event, as lines of JSON. Empty after the last event.
    pub(super) fn audit_page(&self, after: u64, fleet: bool) -> Result<Vec<u8>, String> {
        let place = if fleet { "fleet/audit" } else { "audit/export" };
        match self.get(&format!("/api/v1/{place}?after={after}")) {
            Ok(page) => Ok(page.bytes),
            Err(CommandError::Failed(message) | CommandError::Usage(message)) => Err(message),
        }
    }

    pub(super) fn show(&self, answer: &Answer, table: impl FnOnce(&Value) -> String) -> Done {
        if !self.options.json {
            return print(&table(&answer.json()?));
        }
        print_json(&answer.bytes)
    }

    pub(super) fn get(&self, place: &str) -> Result<Answer, CommandError> {
        self.get_within(place, SHORT)
    }

    pub(super) fn get_within(&self, place: &str, deadline: Duration) -> Result<Answer, CommandError> {
        let request = self.request("GET", place).body(()).map_err(|e| self.bad_address(&e))?;
        self.run(request, deadline)
    }

    pub(super) fn send(&self, method: &str, place: &str, body: &Value) -> Result<Answer, CommandError> {
        self.send_and_wait(method, place, body, SHORT)
    }

    /// Sends a body and waits for the answer, `deadline` at most.
    pub(super) fn send_and_wait(
        &self,
        method: &str,
        place: &str,
        body: &Value,
        deadline: Duration,
    ) -> Result<Answer, CommandError> {
        let request = self.request(method, place).header("content-type", "application/json");
        let request = request.body(body.to_string()).map_err(|e| self.bad_address(&e))?;
        self.run(request, deadline)
    }

    pub(super) fn request(&self, method: &str, place: &str) -> ureq::http::request::Builder {
        let base = self.admin().trim_end_matches('/');
        let mut request = ureq::http::Request::builder().method(method).uri(format!("{base}{place}"));
        if let Some(user) =
            std::env::var("USER").ok().filter(|u| u.bytes().all(|b| b.is_ascii_graphic()) && !u.is_empty())
        {
            // For the audit trail of a server that needs no credentials. Nothing proves this name.
            request = request.header("x-sluicegate-actor", user);
        }
        if let Some(token) = &self.options.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        request
    }

    pub(super) fn bad_address(&self, error: &ureq::http::Error) -> CommandError {
        CommandError::Usage(format!(
            "--admin {:?} is not an address: {error}; expected one like http://127.0.0.1:8081",
            self.admin()
        ))
    }

    /// Sends a request and reads the answer, all of it within `deadline`. An answer that is not a success is an error.
    pub(super) fn run(
        &self,
        request: ureq::http::Request<impl ureq::AsSendBody>,
        deadline: Duration,
    ) -> Result<Answer, CommandError> {
        let (status, answer) = self.exchange(request, deadline)?;
        if (200..300).contains(&status) {
            return Ok(answer);
        }
        Err(self.refused(status, &answer))
    }

    /// The error for an answer that is not a success.
    pub(super) fn refused(&self, status: u16, answer: &Answer) -> CommandError {
        if self.options.json {
            // With --json the error is printed as JSON too; the message goes to standard error.
            let _ = print_json(&answer.bytes);
        }
        CommandError::Failed(error_message(status, &answer.bytes))
    }

    /// Sends a request and reads the answer, whatever its status is.
    pub(super) fn exchange(
        &self,
        request: ureq::http::Request<impl ureq::AsSendBody>,
        deadline: Duration,
    ) -> Result<(u16, Answer), CommandError> {
        let mut answer = self.begin(request, deadline)?;
        let etag = answer.headers().get("etag").and_then(|v| v.to_str().ok()).map(str::to_owned);
        let mut bytes = Vec::new();
        let read = answer.body_mut().with_config().limit(MAX_ANSWER).reader().read_to_end(&mut bytes);
        read.map_err(|e| CommandError::Failed(format!("the server's answer is incomplete: {e}")))?;
        Ok((answer.status().as_u16(), Answer { bytes, etag }))
    }

    /// Sends a request and copies the body of a successful answer. Returns its bytes.
    pub(super) fn download(
        &self,
        request: ureq::http::Request<impl ureq::AsSendBody>,
        deadline: Duration,
        to: &mut dyn Write,
    ) -> Result<u64, CommandError> {
        let mut answer = self.begin(request, deadline)?;
        let status = answer.status();
        if status.is_success() {
            let copied = io::copy(&mut answer.body_mut().with_config().limit(u64::MAX).reader(), to);
            return copied.map_err(|e| CommandError::Failed(format!("the server's answer is incomplete: {e}")));
        }
        let mut bytes = Vec::new();
        let read = answer.body_mut().with_config().limit(MAX_ANSWER).reader().read_to_end(&mut bytes);
        read.map_err(|e| CommandError::Failed(format!("the server's answer is incomplete: {e}")))?;
        Err(self.refused(status.as_u16(), &Answer { bytes, etag: None }))
    }

    /// Sends a request and reads the head of the answer.
    fn begin(
        &self,
        request: ureq::http::Request<impl ureq::AsSendBody>,
        deadline: Duration,
    ) -> Result<ureq::http::Response<ureq::Body>, CommandError> {
        let agent = self.agent()?;
        let request = agent.configure_request(request).timeout_global(Some(deadline)).build();
        let admin = self.admin();
        agent.run(request).map_err(|error| match error {
            ureq::Error::BadUri(_) | ureq::Error::Http(_) => {
                CommandError::Usage(format!("--admin {admin:?} is not an address: {error}"))
            }
            ureq::Error::Timeout(ureq::Timeout::Global) => CommandError::Failed(format!(
                "the server at {admin} did not answer within {} s; it may still complete the request",
                deadline.as_secs()
            )),
            error if tls::advice(&error).is_some() => CommandError::Failed(format!(
                "cannot use TLS with {admin}: {error}; {}",
                tls::advice(&error).unwrap_or_default()
            )),
            error => CommandError::Failed(format!(
                "cannot reach the admin API at {admin}: {error}; is the server running? `sluicegate serve` starts it; --admin or \
                 SLUICEGATE_ADMIN sets another address"
            )),
        })
    }
}

/// Prints a text to standard output.
pub(super) fn print(text: &str) -> Done {
    printed(terminal::print(text, false))
}

/// Prints JSON and the end of its line to standard output.
pub(super) fn print_json(bytes: &[u8]) -> Done {
    printed(terminal::print(&String::from_utf8_lossy(bytes), true))
}

fn printed(written: io::Result<()>) -> Done {
    written.map_err(|e| CommandError::Failed(format!("cannot print the answer: {e}")))
}

/// The server's error message, followed by its details. A detail that only repeats the message is left out.
pub(super) fn error_message(status: u16, bytes: &[u8]) -> String {
    let Ok(problem) = serde_json::from_slice::<Value>(bytes) else {
        return format!("the server answered {status}: {}", String::from_utf8_lossy(bytes));
    };
    let message = problem["error"].as_str().map_or_else(|| format!("the server answered {status}"), str::to_owned);
    let details = problem["details"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let new_details = details.filter(|detail| !message.contains(detail)).map(|detail| format!("\n  - {detail}"));
    let new_details: String = new_details.collect();
    message + &new_details
}

pub(super) fn segment(text: &str) -> String {
    utf8_percent_encode(text, SEGMENT).to_string()
}

pub(super) fn path(model: &str, verb: &str) -> String {
    format!("/api/v1/models/{}{verb}", segment(model))
}

/// Reads a file, or standard input for `-`. The text is sent unchanged: after parsing and writing it again, the server could not
/// report a member that is there twice.
pub(super) fn read_file(file: &Path) -> Result<Vec<u8>, CommandError> {
    let mut text = Vec::new();
    let read = if file == Path::new("-") {
        io::stdin().read_to_end(&mut text)
    } else {
        File::open(file).and_then(|mut file| file.read_to_end(&mut text))
    };
    read.map(|_| text).map_err(|e| CommandError::Failed(format!("cannot read {}: {e}", file.display())))
}

/// The document with another value of this member; all other members stay as they are written, also those that are there twice. `None`
/// when the text is not a JSON object: the server then reports what is wrong with it.
pub(super) fn set_member(document: &[u8], set: &str, to: &Value) -> Option<Vec<u8>> {
    let quoted = |text: &str| Value::from(text).to_string();
    let mut members = Vec::new();
    for member in sonic_rs::to_object_iter(document) {
        let (name, value) = member.ok()?;
        if name != set {
            members.push(format!("{}:{}", quoted(&name), value.as_raw_str()));
        }
    }
    // The iterator accepts text after the object.
    serde_json::from_slice::<serde::de::IgnoredAny>(document).ok()?;
    members.push(format!("{}:{to}", quoted(set)));
    Some(format!("{{{}}}", members.join(",")).into_bytes())
}

/// Parses `1=90,2=10` or `control:1=90,challenger:2=10`. The server checks the versions and weights.
///
/// An arm without a name keeps the name that its version has in the document `now`, so that sticky keys keep their arm.
pub(super) fn parse_split(text: &str, now: &Value) -> Result<Value, CommandError> {
    let name_of = |version: &str| {
        let arms = now["split"].as_array().into_iter().flatten();
        let mut arms = arms.filter(|a| a["version"] == version);
        arms.next().filter(|_| arms.next().is_none()).map(|a| a["arm"].clone()).filter(Value::is_string)
    };
    let arms: Option<Vec<Value>> = text
        .split(',')
        .map(|part| {
            let (arm, weight) = part.trim().split_once('=')?;
            let weight: f64 = weight.trim().parse().ok().filter(|w: &f64| w.is_finite())?;
            let (arm, version) = match arm.split_once(':') {
                Some((arm, version)) => (Some(arm.trim().into()), version.trim()),
                None => (name_of(arm.trim()), arm.trim()),
            };
            let mut entry = json!({"version": version, "weight": weight});
            if let Some(arm) = arm {
                entry["arm"] = arm;
            }
            Some(entry)
        })
        .collect();
    arms.map(Value::Array).ok_or_else(|| {
        CommandError::Usage(format!(
            "--split {text:?}: expected VERSION=WEIGHT or ARM:VERSION=WEIGHT, separated by commas, such as 1=90,2=10"
        ))
    })
}

/// Whether at most one arm of a document gets requests.
pub(super) fn has_one_arm(document: &Value) -> bool {
    let arms = document["split"].as_array().into_iter().flatten();
    arms.filter(|arm| arm["weight"].as_f64() > Some(0.0)).count() <= 1
}

/// Parses `header:x-user-id` or `parameter:user_id`.
pub(super) fn parse_key(text: &str) -> Result<Value, CommandError> {
    match text.split_once(':') {
        Some((kind @ ("header" | "parameter"), name)) if !name.is_empty() => Ok(json!({kind: name})),
        _ => Err(CommandError::Usage(format!("--sticky-by {text:?}: expected header:NAME or parameter:NAME"))),
    }
}

/// Parses `golden` or `shadow_agreement=0.99`. The server checks names and values.
pub(super) fn parse_gates(given: &[String]) -> Result<Value, CommandError> {
    let mut gates = serde_json::Map::new();
    for gate in given {
        let (name, value) = gate.split_once('=').unwrap_or((gate, "true"));
        let value: Option<Value> = serde_json::from_str(value.trim()).ok();
        let Some(value) = value.filter(|v| (v.is_number() || v.is_boolean()) && !name.trim().is_empty()) else {
            return Err(CommandError::Usage(format!(
                "--gate {gate:?}: expected NAME or NAME=NUMBER, such as golden or shadow_agreement=0.99"
            )));
        };
        if gates.insert(name.trim().to_owned(), value).is_some() {
            return Err(CommandError::Usage(format!("--gate {gate:?}: this gate is given twice")));
        }
    }
    Ok(gates.into())
}
