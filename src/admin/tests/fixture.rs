//! The admin API in process: a published snapshot, a real ledger, and a fake manager whose replies a test chooses.

use crate::access::{self, Access, Grant, Models, NewToken, Role};
use crate::admin::{Admin, Memory, Threads, router};
use crate::backend::{Model, RunError, Session, fake};
use crate::callers::{self, Callers};
use crate::execute::{self, Runner};
use crate::history::History;
use crate::ledger::Retirement;
use crate::ledger::{self, LedgerWriter};
use crate::lifecycle::Retired;
use crate::lifecycle::fake::{Asked, Told, manager};
use crate::lifecycle::{ApprovalState, LoadOutcome, Promotion, Published, Reviewed, RolledBack};
use crate::model::{Dim, ModelName, Signature, TensorSpec, Version};
use crate::quality::{self, Quality};
use crate::record::{self, Log};
use crate::registry::{self, Entry, Facts, Loaded, Reader, Snapshot, Stage, State, VersionStatus, Writer};
use crate::rollout::Rollouts;
use crate::route::Document;
use crate::shadow::Figures;
use crate::telemetry::{Telemetry, VersionMetrics};
use crate::tensor::DataType;
use axum::Router;
use axum::body::Body;
use http::header::HOST;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::Value;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;
use tower::ServiceExt;

pub(super) const MAX_PUSH: u64 = 1000;

pub(super) struct Fixture {
    router: Router,
    runtime: tokio::runtime::Runtime,
    pub dir: TempDir,
    pub writer: Arc<Mutex<Writer>>,
    pub figures: Figures,
    pub quality: Quality,
    pub reader: Reader,
    pub ledger: LedgerWriter,
    pub telemetry: Telemetry,
    pub stopping: Arc<AtomicBool>,
    pub threads: Arc<Mutex<Threads>>,
    pub history: History,
    asked: Arc<Mutex<Vec<Asked>>>,
}

#[derive(Debug)]
pub(super) struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub bytes: Vec<u8>,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The status, the code and the message of an error response. Checks its form.
    #[track_caller]
    pub fn problem(&self) -> (u16, String, String) {
        assert_eq!(self.header("content-type"), "application/json", "{self:?}");
        let json = self.json();
        let text = |name: &str| json[name].as_str().unwrap_or_else(|| panic!("{name} is a string: {json}")).to_owned();
        (self.status.as_u16(), text("code"), text("error"))
    }

    #[track_caller]
    pub fn refused(&self, status: u16, code: &str, words: &str) {
        let (found, found_code, error) = self.problem();
        assert_eq!((found, found_code.as_str()), (status, code), "{error}");
        let details = self.json()["details"].to_string();
        assert!(error.contains(words) || details.contains(words), "{words:?} is in neither {error:?} nor {details}");
    }
}

impl Fixture {
    /// A manager that accepts every command and changes nothing.
    pub fn new() -> Fixture {
        Fixture::answering(accept)
    }

    /// A manager with these replies.
    pub fn answering(answer: impl FnMut(&Asked) -> Told + Send + 'static) -> Fixture {
        Fixture::start(tempfile::tempdir().unwrap(), answer)
    }

    /// The same as [`Fixture::new`], where every request needs credentials. The tokens are the names of these roles and models.
    pub fn closed(tokens: &[(Role, &str)]) -> (Fixture, Vec<String>) {
        let made = tokens.iter().enumerate().map(|(n, (role, models))| {
            let grant = Grant { role: *role, models: Models::of(models.split(',')).unwrap() };
            let name = format!("{role}-{n}");
            NewToken { name, grant, expires_at: None, created_by: "a test".to_owned() }.make().unwrap()
        });
        let (secrets, stored): (Vec<String>, Vec<_>) = made.unzip();
        let access = Access::start(access::Config::default(), &stored).unwrap();
        let mut fixture = Fixture::start_with(tempfile::tempdir().unwrap(), accept, &access, true);
        for token in stored {
            let effect = ledger::TokenEffect::Create(Box::new(token));
            let change = ledger::TokenChange { actor: "a test".to_owned(), reason: None, effect };
            assert!(fixture.ledger.commit_token(&change).unwrap(), "the token is stored");
        }
        (fixture, secrets)
    }

    /// With a data directory that may have a ledger already.
    pub fn start(dir: TempDir, answer: impl FnMut(&Asked) -> Told + Send + 'static) -> Fixture {
        Fixture::start_with(dir, answer, &Access::start(access::Config::default(), &[]).unwrap(), false)
    }

    fn start_with(
        dir: TempDir,
        mut answer: impl FnMut(&Asked) -> Told + Send + 'static,
        access: &Access,
        require_token: bool,
    ) -> Fixture {
        std::fs::create_dir_all(dir.path().join("models")).unwrap();
        let (ledger, ledger_reader) = ledger::open(&dir.path().join("data")).unwrap();
        let (writer, reader) = registry::new();
        let (asked, stopping): (Arc<Mutex<Vec<Asked>>>, Arc<AtomicBool>) = Default::default();
        let (commands, stops) = (Arc::clone(&asked), Arc::clone(&stopping));
        let threads = Arc::new(Mutex::new(Threads { stuck: Vec::new(), serving: true }));
        let reported = Arc::clone(&threads);
        let telemetry = Telemetry::new();
        let handle = manager(move |command| {
            let told = answer(&command);
            commands.lock().unwrap().push(command);
            told
        });
        let (figures, history) = (Figures::default(), History::default());
        let (reading, counting) = (ledger_reader.clone(), telemetry.clone());
        let quality =
            Quality::new(quality::Config { rows: 100, window: Duration::from_mins(1), ..quality::Config::default() });
        let rollouts = Rollouts::start(
            handle.clone(),
            reader.clone(),
            reading,
            figures.clone(),
            quality.history().clone(),
            counting,
            None,
        )
        .unwrap();
        let config = record::Config::of(dir.path().join("data"));
        let (log, stop) = Log::start(config, quality.clone(), &telemetry).unwrap();
        // Nothing is recorded, so there is nothing to flush.
        drop(stop);
        let limits = callers::Limits { max_in_flight: 9, rate: None, burst: None };
        let router = router(Admin {
            quality: quality.clone(),
            history: history.clone(),
            stability: crate::stability::Stability::default(),
            log,
            uploads: None,
            reader: reader.clone(),
            rollouts,
            figures: figures.clone(),
            handle,
            execution: Arc::new(execute::Config { queue: 1, ..execute::Config::default() }),
            ledger: ledger_reader,
            telemetry: telemetry.clone(),
            models_dir: dir.path().join("models"),
            mirror: crate::mirror::Mirror::default(),
            offline: crate::admin::Offline {
                program: None,
                onnxruntime: None,
                custom_ops: None,
                data_dir: dir.path().join("data"),
            },
            max_push: MAX_PUSH,
            access: access.clone(),
            require_token,
            callers: Callers::new(callers::Config { limits, rules: Vec::new() }),
            allowed_hosts: vec!["ops.example".to_owned()],
            warnings: Arc::new(Vec::new),
            fleet: None,
            alerts: crate::alerts::Alerts::idle(&telemetry),
            mlflow: crate::mlflow::Mlflow::default(),
            stopping: Arc::new(move || stops.load(Ordering::Relaxed)),
            threads: Arc::new(move || reported.lock().unwrap().clone()),
            gateway: Arc::new(|| crate::admin::Facts {
                started: jiff::Timestamp::UNIX_EPOCH,
                cores: 2,
                cores_limited_by: "the machine's".to_owned(),
                memory_bytes: 1000,
                memory_limited_by: "the control group's".to_owned(),
                available_bytes: Some(400),
                models_bytes: 800,
                disk: Some(crate::machine::DiskSpace { free: 5, total: 50 }),
                waiting: 3,
                certificates: vec![("admin", jiff::Timestamp::UNIX_EPOCH)],
            }),
            memory: Arc::new(|| Memory { requests: (5, 100), resident: Some(7), ..Memory::default() }),
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let writer = Arc::new(Mutex::new(writer));
        Fixture {
            router,
            runtime,
            dir,
            writer,
            figures,
            quality,
            reader,
            ledger,
            telemetry,
            stopping,
            threads,
            history,
            asked,
        }
    }

    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Answer {
        let mut request = request(method, path, body);
        for (name, value) in headers {
            let name: http::HeaderName = name.parse().unwrap();
            request.headers_mut().append(name, value.parse().unwrap());
        }
        if !request.headers().contains_key(HOST) {
            request.headers_mut().insert(HOST, HeaderValue::from_static("localhost:8081"));
        }
        self.send_request(request)
    }

    /// Sends a request exactly as it is.
    pub fn send_request(&self, request: Request<Body>) -> Answer {
        self.runtime.block_on(async {
            let response = self.router.clone().oneshot(request).await.unwrap();
            let (parts, body) = response.into_parts();
            let bytes = body.collect().await.unwrap().to_bytes().to_vec();
            Answer { status: parts.status, headers: parts.headers, bytes }
        })
    }

    /// Sends a request and disconnects, which drops the handler's future, as soon as `reached` holds.
    pub fn send_and_disconnect(&self, method: &str, path: &str, body: impl Into<Body>, reached: impl Fn() -> bool) {
        let mut request = request(method, path, body);
        request.headers_mut().insert(HOST, HeaderValue::from_static("localhost:8081"));
        let reached = async {
            while !reached() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        self.runtime.block_on(async {
            tokio::select! {
                response = self.router.clone().oneshot(request) => panic!("answered too early: {response:?}"),
                () = reached => {}
            }
        });
    }

    /// Stores an event of a model in the ledger.
    pub fn record(&mut self, model: &str) {
        let effect = ledger::Effect::None;
        let (actor, action) = ("a test".to_owned(), ledger::Action::Load);
        let change =
            ledger::Change { model: name(model), actor, action, reason: None, before: None, after: None, effect };
        self.ledger.commit(change).unwrap();
    }

    pub fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], Body::empty())
    }

    pub fn post(&self, path: &str, body: impl Into<Body>) -> Answer {
        self.send("POST", path, &[], body)
    }

    /// The commands that the manager got since the last call.
    pub fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }

    /// Publishes a model `fraud` with these versions and this document at revision 7.
    pub fn publish(&mut self, versions: Vec<VersionStatus>, document: Option<Document>) {
        self.publish_as("fraud", versions, document, false);
    }

    pub fn publish_as(&mut self, model: &str, versions: Vec<VersionStatus>, document: Option<Document>, out: bool) {
        let versions = versions.into_iter().map(|status| (status.version, status)).collect();
        let revision = if document.is_some() { 7 } else { 0 };
        let entry = Entry::new(name(model), versions, document, revision, out, false).unwrap();
        let mut writer = self.writer.lock().unwrap();
        let mut next = Snapshot::clone(&writer.snapshot()).with(entry);
        next.ready = true;
        writer.publish(next);
    }

    /// The same for `fraud`, where the document names versions that are not loaded.
    pub fn publish_incomplete(&mut self, versions: Vec<VersionStatus>, document: Document) {
        let versions = versions.into_iter().map(|status| (status.version, status)).collect();
        let entry = Entry::new(name("fraud"), versions, Some(document), 7, false, true).unwrap();
        let mut writer = self.writer.lock().unwrap();
        let mut next = Snapshot::clone(&writer.snapshot()).with(entry);
        next.ready = true;
        writer.publish(next);
    }

    /// A loaded version of `fraud`.
    pub fn loaded(&self, n: u64, state: State) -> VersionStatus {
        self.loaded_as("fraud", n, state)
    }

    pub fn loaded_as(&self, model: &str, n: u64, state: State) -> VersionStatus {
        let facts = facts();
        let loaded = Loaded {
            limits: crate::registry::Limits::default(),
            breaker: crate::registry::Breaker::new(None),
            model: name(model),
            version: version(n),
            runner: Arc::new(Runner::new(Arc::new(NeverRun(facts.signature.clone())))),
            metrics: VersionMetrics::new(self.telemetry.scope(), name(model), version(n)),
            facts: Arc::clone(&facts),
        };
        VersionStatus { loaded: Some(Arc::new(loaded)), facts: Some(facts), ..bare(n, state) }
    }
}

/// Publishes `fraud` with two versions that are ready.
pub(super) fn loaded_two(fixture: &mut Fixture) {
    let versions = vec![fixture.loaded(1, State::Ready), fixture.loaded(2, State::Ready)];
    fixture.publish(versions, Some(document(&serde_json::json!({"split": [{"version": "1", "weight": 1}]}))));
}

/// Replies of a manager that accepts every command.
pub(super) fn accept(asked: &Asked) -> Told {
    match asked {
        Asked::Promote { model, ask } => Told::Promoted(promotion(model, ask.version)),
        Asked::Rollback { model, .. } => Told::RolledBack(RolledBack {
            model: model.clone(),
            from: Some(version(9)),
            to: version(1),
            revision: 8,
            restored: 5,
            before: Some(Document::single(version(9))),
            after: Document::single(version(1)),
            loaded: vec![version(1)],
        }),
        Asked::PutTraffic { proposal, .. } => {
            Told::Published(Published { revision: 8, document: proposal.document.clone() })
        }
        Asked::RolloutCommit { steer, .. } => {
            Told::Steered(steer.at.unwrap_or(7) + u64::from(steer.document.is_some()))
        }
        Asked::Retire { model, reason, actor } => Told::Retired(Retired {
            model: model.clone(),
            revision: 8,
            retirement: Retirement { ts: jiff::Timestamp::UNIX_EPOCH, actor: actor.0.clone(), reason: reason.clone() },
            changed: true,
        }),
        Asked::Load { wait: false, .. } | Asked::Unload { wait: false, .. } => Told::Loaded(LoadOutcome::Accepted),
        Asked::Load { .. } | Asked::Unload { .. } => Told::Loaded(LoadOutcome::Done),
        Asked::Token(_) => Told::Stored(true),
        Asked::Approval { .. } => Told::Approval(ApprovalState {
            required: true,
            artifact: Some("cd".repeat(32)),
            review: None,
            proposers: ["ann".to_owned()].into(),
        }),
        Asked::Review { model, ask } => Told::Reviewed(Reviewed {
            model: model.clone(),
            version: ask.version,
            review: ledger::Review {
                artifact: "cd".repeat(32),
                approved: ask.approved,
                actor: ask.actor.0.clone(),
                ts: jiff::Timestamp::UNIX_EPOCH,
                reason: ask.reason.clone(),
            },
        }),
        Asked::LoadModel { .. }
        | Asked::UnloadModel { .. }
        | Asked::Push { .. }
        | Asked::SetAside(_)
        | Asked::Note(_) => Told::Done,
    }
}

/// A version that is not loaded.
pub(super) fn bare(n: u64, state: State) -> VersionStatus {
    VersionStatus {
        version: version(n),
        state,
        stage: None,
        reason: None,
        notes: Vec::new(),
        facts: None,
        loaded: None,
    }
}

pub(super) fn failed(n: u64, stage: Stage, reason: &str) -> VersionStatus {
    VersionStatus { stage: Some(stage), reason: Some(reason.to_owned()), ..bare(n, State::Failed) }
}

fn facts() -> Arc<Facts> {
    let spec = |name: &str, datatype, dims| TensorSpec { name: name.into(), datatype, dims };
    let signature = Signature::new(
        vec![spec("x", DataType::Fp32, Some(vec![Dim::Free(Some("n".into())), Dim::Fixed(30)]))],
        vec![spec("label", DataType::Int64, Some(vec![Dim::Free(None)])), spec("any", DataType::Fp32, None)],
    );
    Arc::new(Facts {
        signature,
        sha256: "ab".repeat(32),
        engine: "tract",
        bytes: 1234,
        load: Duration::from_micros(1500),
        verify: Duration::from_millis(2),
        warm: Duration::from_millis(3),
        golden_cases: 4,
        metadata: serde_json::json!({"git": "abc", "metrics": {"auc": 0.99}}),
        origin: crate::registry::Origin::default(),
        profile: None,
    })
}

#[derive(Debug)]
struct NeverRun(Signature);

impl Model for NeverRun {
    fn engine(&self) -> &'static str {
        "tract"
    }

    fn signature(&self) -> &Signature {
        &self.0
    }

    fake::says_nothing_about_itself!();

    fn session(self: Arc<Self>) -> Result<Box<dyn Session>, RunError> {
        Err(RunError::Refused("never run".to_owned()))
    }
}

/// What the fixture reports as the memory of requests, as `/readyz` shows it.
pub(super) fn memory() -> Value {
    let none = serde_json::json!({"held": 0, "limit": 0});
    let requests = serde_json::json!({"held": 5, "limit": 100});
    serde_json::json!({"requests": requests, "prediction_log": none, "shadows": none, "resident_bytes": 7})
}

pub(super) fn promotion(model: &ModelName, to: Version) -> Promotion {
    let (model, from) = (model.clone(), Some(version(9)));
    let (before, after) = (Some(Document::single(version(9))), Document::single(to));
    Promotion { model, from, to, revision: 8, changed: true, returns: false, before, after, gates: Vec::new() }
}

pub(super) fn name(text: &str) -> ModelName {
    text.parse().unwrap()
}

pub(super) fn version(n: u64) -> Version {
    n.to_string().parse().unwrap()
}

pub(super) fn document(json: &Value) -> Document {
    Document::from_json(&json.to_string()).unwrap()
}

fn request(method: &str, path: &str, body: impl Into<Body>) -> Request<Body> {
    let mut request = Request::new(body.into());
    *request.method_mut() = method.parse::<Method>().unwrap();
    *request.uri_mut() = path.parse().unwrap();
    request
}
