//! A models directory, a ledger, a manager and a fake engine whose behaviour the text of each "model" decides.

use super::super::{Config, Handle, Journal, Patience, Policy, Promote, Stop, Stores, start};
use crate::backend::fake::{Fake, FakeEngine};
use crate::backend::{Backend, EngineChoice, LoadError, Model, RunError, VersionFiles};
use crate::compare::Tolerance;
use crate::ledger::{self, Change, Committed, LedgerError, LedgerReader, LedgerWriter, ModelState, Note, Revision};
use crate::lifecycle::{Actor, Rollback};
use crate::model::{Dim, Failure, InferenceRequest, ModelName, NamedTensor, Signature, TensorSpec, Version};
use crate::prepare::{Loader, TimeLimits};
use crate::registry::{self, Entry, Reader, Snapshot, State, VersionStatus};
use crate::route::{Proposal, RouteRequest, Selector};
use crate::shadow::{Agreement, Figures};
use crate::telemetry::Telemetry;
use crate::tensor::{Data, DataType, Shape, Tensor};
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Long enough for a busy machine. A test that waits this long has failed.
const TIMEOUT: Duration = Duration::from_secs(30);

pub fn name(text: &str) -> ModelName {
    text.parse().unwrap()
}

pub fn version(n: u64) -> Version {
    n.to_string().parse().unwrap()
}

pub fn ann() -> Actor {
    Actor("ann".to_owned())
}

/// Waits until a condition holds.
#[track_caller]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + TIMEOUT;
    let never = crossbeam_channel::never::<()>();
    while !holds() {
        assert!(Instant::now() < deadline, "this did not happen: {what}");
        let _ = never.recv_timeout(Duration::from_millis(2));
    }
}

/// Waits for an operator's answer.
pub fn wait<F: Future>(answer: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(answer)
}

/// Blocks loads of the fake engine.
#[derive(Default)]
pub struct Gate {
    /// Directories whose loads wait.
    closed: Mutex<Vec<PathBuf>>,
    changed: Condvar,
}

impl Gate {
    pub fn close(&self, dir: &Path) {
        self.closed.lock().unwrap().push(dir.to_owned());
    }

    pub fn open(&self) {
        self.closed.lock().unwrap().clear();
        self.changed.notify_all();
    }

    fn pass(&self, dir: &Path) {
        let closed = self.closed.lock().unwrap();
        drop(self.changed.wait_while(closed, |closed| closed.iter().any(|d| d == dir)).unwrap());
    }
}

/// The files of a test. Several managers can be started on it, one after the other.
pub struct Workspace {
    pub dir: TempDir,
    pub gate: Arc<Gate>,
    /// The directories that the engine was asked to load.
    pub loads: Arc<Mutex<Vec<PathBuf>>>,
}

/// A running manager with its files.
pub struct Fixture {
    pub workspace: Workspace,
    pub handle: Handle,
    pub stop: Option<Stop>,
    pub reader: Reader,
    pub telemetry: Telemetry,
    pub figures: Figures,
}

impl Workspace {
    pub fn new() -> Workspace {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("models")).unwrap();
        Workspace { dir, gate: Arc::default(), loads: Arc::default() }
    }

    pub fn models(&self) -> PathBuf {
        self.dir.path().join("models")
    }

    pub fn version_dir(&self, model: &str, v: u64) -> PathBuf {
        self.models().join(model).join(v.to_string())
    }

    /// Adds a version at once, by a rename.
    pub fn put(&self, model: &str, v: u64, text: &str) {
        self.put_with(model, v, &[("model.onnx", text)]);
    }

    pub fn put_with(&self, model: &str, v: u64, files: &[(&str, &str)]) {
        let dir = self.version_dir(model, v);
        let aside = self.models().join(model).join(format!(".{v}.aside"));
        std::fs::create_dir_all(&aside).unwrap();
        for (file, text) in files {
            std::fs::write(aside.join(file), text).unwrap();
        }
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::rename(&aside, &dir).unwrap();
    }

    pub fn write(&self, model: &str, file: &str, text: &str) {
        std::fs::create_dir_all(self.models().join(model)).unwrap();
        std::fs::write(self.models().join(model).join(file), text).unwrap();
    }

    pub fn config(&self) -> Config {
        Config {
            models_dir: self.models(),
            mirrored: None,
            awaited: crate::source::Awaited::default(),
            settle: Duration::from_millis(25),
            rescan: Duration::from_millis(200),
            memory_budget: 1 << 20,
            load_threads: 1,
            time_limits: TimeLimits { load: TIMEOUT, verify: TIMEOUT, warm: TIMEOUT },
            trusted_keys: crate::lifecycle::TrustedKeys::default(),
            patience: Patience::default(),
            drain_timeout: Duration::from_secs(20),
            keep_warm: Duration::from_mins(10),
            policy: Policy::default(),
            approval_required: false,
            available: || None,
            tolerance: Tolerance::default(),
            max_answer: usize::MAX,
            recording: None,
            set_aside: Vec::new(),
        }
    }

    pub fn start(self) -> Fixture {
        let config = self.config();
        self.start_with(config)
    }

    pub fn start_with(self, config: Config) -> Fixture {
        let (writer, _) = ledger::open(&self.dir.path().join("data")).unwrap();
        self.start_on(config, Box::new(writer))
    }

    pub fn start_on(self, config: Config, journal: Box<dyn Journal>) -> Fixture {
        let (writer, reader) = registry::new();
        let telemetry = Telemetry::new();
        let (gate, loads) = (Arc::clone(&self.gate), Arc::clone(&self.loads));
        let engine = FakeEngine::new(move |files| {
            loads.lock().unwrap().push(files.dir.clone());
            gate.pass(&files.dir);
            read(files, &gate)
        });
        let engines = Arc::new(OneEngine(engine));
        let figures = Figures::default();
        let (handle, stop) =
            start(config, engines, writer, Stores { journal, peers: None }, figures.clone(), telemetry.clone())
                .unwrap();
        Fixture { workspace: self, handle, stop: Some(stop), reader, telemetry, figures }
    }
}

impl Fixture {
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.reader.snapshot()
    }

    pub fn entry(&self, model: &str) -> Option<Arc<Entry>> {
        self.snapshot().model(model).cloned()
    }

    pub fn status(&self, model: &str, v: u64) -> Option<VersionStatus> {
        self.entry(model)?.versions().get(&version(v)).cloned()
    }

    pub fn state(&self, model: &str, v: u64) -> Option<State> {
        self.status(model, v).map(|s| s.state)
    }

    #[track_caller]
    pub fn wait_state(&self, model: &str, v: u64, state: State) -> VersionStatus {
        eventually(&format!("{model}/{v} is {state}, but {:?}", self.status(model, v)), || {
            self.state(model, v) == Some(state)
        });
        self.status(model, v).unwrap()
    }

    #[track_caller]
    pub fn wait_ready(&self) {
        eventually("the server is ready", || self.snapshot().ready);
    }

    pub fn loads(&self, model: &str, v: u64) -> usize {
        let dir = self.workspace.version_dir(model, v);
        self.workspace.loads.lock().unwrap().iter().filter(|d| **d == dir).count()
    }

    /// The answer to a request without a version.
    pub fn predict(&self, model: &str) -> Result<u64, Failure> {
        self.predict_as(model, Selector::Traffic)
    }

    pub fn predict_as(&self, model: &str, selector: Selector) -> Result<u64, Failure> {
        let snapshot = self.snapshot();
        let entry = snapshot.model(model).expect("the model is there");
        let ask = RouteRequest { selector, header: &|_| None, parameters: &Vec::new(), request_id: "r" };
        let served = entry.route(&ask)?.served;
        let signature = served.loaded.runner.signature();
        let answer = served.loaded.runner.run(&signature.check(request(1)).unwrap())?.answer;
        match answer.outputs[0].1.data() {
            Data::Fp32(y) => Ok(y[0].to_string().parse().expect("these models answer whole numbers")),
            other => panic!("{other:?}"),
        }
    }

    pub fn promote(&self, model: &str, v: u64) -> Result<super::super::Promotion, Failure> {
        self.promote_as(model, promote(v))
    }

    pub fn promote_as(&self, model: &str, request: Promote) -> Result<super::super::Promotion, Failure> {
        wait(self.handle.promote(name(model), request))
    }

    /// Simulates compared answers of a shadow and a primary.
    pub fn compared(&self, model: &str, primary: u64, shadow: u64, pairs: u64, agreed: u64) {
        let sha256 =
            |v| self.status(model, v).and_then(|s| s.facts).map(|facts| facts.sha256.clone()).unwrap_or_default();
        let (versions, bytes) = ((version(primary), version(shadow)), (sha256(primary), sha256(shadow)));
        self.figures.pretend(&name(model), versions, bytes, Agreement { pairs, agreed });
    }

    pub fn put(&self, model: &str, document: &serde_json::Value) -> Result<super::super::Published, Failure> {
        let proposal = Proposal::parse(document).unwrap();
        wait(self.handle.put_traffic(name(model), proposal, None, ann()))
    }

    pub fn rollback(&self, model: &str) -> Result<super::super::RolledBack, Failure> {
        self.roll_back(model, None, false)
    }

    pub fn roll_back(
        &self,
        model: &str,
        to_revision: Option<u64>,
        dry_run: bool,
    ) -> Result<super::super::RolledBack, Failure> {
        let reason = "back".to_owned();
        wait(self.handle.rollback(
            name(model),
            Rollback { to_revision, reason, dry_run, break_glass: false, if_match: None, actor: ann() },
        ))
    }

    pub fn load(&self, model: &str, v: u64) -> Result<super::super::LoadOutcome, Failure> {
        wait(self.handle.load(name(model), version(v), true, None, ann()))
    }

    pub fn unload(&self, model: &str, v: u64) -> Result<super::super::LoadOutcome, Failure> {
        wait(self.handle.unload(name(model), version(v), true, None, ann()))
    }

    /// Stops the manager and returns the files for another one.
    pub fn close(mut self) -> Workspace {
        self.stop.take().unwrap().stop(TIMEOUT);
        self.workspace.loads.lock().unwrap().clear();
        self.workspace
    }
}

/// A promotion with the usual options.
pub fn promote(v: u64) -> Promote {
    Promote {
        version: version(v),
        reason: "why".to_owned(),
        dry_run: false,
        allow_signature_change: false,
        gates: None,
        break_glass: false,
        if_match: None,
        label: None,
        quorum: None,
        actor: ann(),
    }
}

pub fn request(rows: usize) -> InferenceRequest {
    let tensor = Tensor::new(Shape::new(&[rows]), Data::Fp32(vec![7.0; rows].into())).unwrap();
    let inputs = vec![NamedTensor { name: "x".to_owned(), tensor }];
    InferenceRequest { inputs, ..InferenceRequest::default() }
}

/// Reads a "model.onnx" of these tests: one instruction per line.
fn read(files: &VersionFiles, gate: &Arc<Gate>) -> Result<Fake, LoadError> {
    let text = std::fs::read_to_string(files.model())
        .map_err(|source| LoadError::Io { what: "model.onnx".to_owned(), source })?;
    let mut answer = 0.0;
    let (mut wide, mut strict, mut whole) = (false, false, false);
    let mut runs_wait_for = None;
    for line in text.lines() {
        match line.split_once(' ').unwrap_or((line, "")) {
            ("answer", n) => answer = n.parse().unwrap(),
            ("unsupported", _) => return Err(LoadError::Unsupported("the operator Frobnicate".to_owned())),
            ("io", _) => {
                let source = std::io::Error::other("the share is away");
                return Err(LoadError::Io { what: "model.onnx".to_owned(), source });
            }
            ("panic", _) => panic!("the loader panics"),
            // Runs wait until the gate of another directory opens.
            ("runs_wait_for", place) => runs_wait_for = Some(PathBuf::from(place)),
            ("load_waits", _) => gate.pass(Path::new("/nowhere")),
            ("wide", _) => wide = true,
            ("strict", _) => strict = true,
            ("end", _) => whole = true,
            _ => {}
        }
    }
    if !whole {
        return Err(LoadError::Unsupported("the file ends in the middle".to_owned()));
    }
    let spec = |name: &str| TensorSpec {
        name: name.into(),
        datatype: DataType::Fp32,
        dims: Some(vec![Dim::Free(Some("N".into()))]),
    };
    let mut inputs = vec![spec("x")];
    inputs.extend(wide.then(|| spec("extra")));
    let signature = Signature::new(inputs, vec![spec("y")]);
    let gate = Arc::clone(gate);
    let fake = Fake::new(signature, move |request| {
        if let Some(place) = &runs_wait_for {
            gate.pass(place);
        }
        let rows = request.rows().unwrap();
        vec![Tensor::new(Shape::new(&[rows]), Data::Fp32(vec![answer; rows].into())).unwrap()]
    });
    if strict {
        // More than the runs of all trials, and of the warm-up with zeros and with ones.
        for _ in 0..20 {
            fake.fail_next(RunError::Refused("neither zeros nor ones".to_owned()));
        }
    }
    Ok(fake)
}

/// A model that answers with a number.
pub fn answers(n: u64) -> String {
    format!("answer {n}\nend")
}

/// A loader with one engine.
#[derive(Debug)]
struct OneEngine(FakeEngine);

impl Loader for OneEngine {
    fn load(&self, _: EngineChoice, files: &VersionFiles, _: Option<&str>) -> Result<Arc<dyn Model>, LoadError> {
        self.0.load(files)
    }
}

// === the ledger ===

/// A ledger that fails on demand.
pub struct FaultyJournal {
    ledger: LedgerWriter,
    pub reader: LedgerReader,
    fault: FaultSwitch,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    None,
    /// The disk is full.
    Full,
    /// Commits panic.
    Panic,
}

#[derive(Debug, Clone)]
pub struct FaultSwitch(Arc<Mutex<Fault>>);

impl FaultSwitch {
    pub fn set(&self, fault: Fault) {
        *self.0.lock().unwrap() = fault;
    }
}

impl FaultyJournal {
    pub fn new(workspace: &Workspace) -> (FaultyJournal, FaultSwitch) {
        let (ledger, reader) = ledger::open(&workspace.dir.path().join("data")).unwrap();
        let fault = FaultSwitch(Arc::new(Mutex::new(Fault::None)));
        (FaultyJournal { ledger, reader, fault: fault.clone() }, fault)
    }
}

impl Journal for FaultyJournal {
    fn load(&self) -> Result<Vec<ModelState>, LedgerError> {
        self.ledger.load()
    }

    fn previous_document(&self, model: &ModelName) -> Result<Option<Revision>, LedgerError> {
        self.ledger.previous_document(model)
    }

    fn document_at(&self, model: &ModelName, revision: u64) -> Result<Option<Revision>, LedgerError> {
        self.ledger.document_at(model, revision)
    }

    fn last_change(&self, model: &ModelName) -> Result<Option<String>, LedgerError> {
        self.ledger.last_change(model)
    }

    fn commit(&mut self, change: Change) -> Result<Committed, LedgerError> {
        let fault = *self.fault.0.lock().unwrap();
        match fault {
            Fault::None => self.ledger.commit(change),
            Fault::Full => Err(LedgerError::Full { file: "/data/ledger.sqlite3".into() }),
            Fault::Panic => panic!("the ledger panics"),
        }
    }

    fn token_is_shared(&self, name: &str) -> Result<Option<bool>, LedgerError> {
        self.ledger.token_is_shared(name)
    }

    fn commit_token(&mut self, change: &crate::ledger::TokenChange) -> Result<bool, LedgerError> {
        self.ledger.commit_token(change)
    }

    fn store_token_uses(&mut self, uses: &[(String, jiff::Timestamp)]) -> Result<(), LedgerError> {
        self.ledger.store_token_uses(uses)
    }

    fn note(&mut self, note: Note) -> Result<u64, LedgerError> {
        self.ledger.note(note)
    }
}
