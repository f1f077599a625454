//! Which engines this machine has, and which one loads a version.

use super::ort::OnnxRuntime;
use super::tract::{self, Tract};
use super::{Backend, EngineChoice, LoadError, Model, VersionFiles};
use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// What would bring ONNX Runtime where it is missing.
const BRING_IT: &str = "`make ort` fetches ONNX Runtime's library, ORT_DYLIB_PATH names one that is there already";

/// One engine, for start-up lines and `sluicegate check`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineInfo {
    pub name: &'static str,
    /// `None` when it is not there.
    pub version: Option<String>,
    pub available: bool,
    /// Where it was found, or why it was not and what would help.
    pub note: String,
}

impl fmt::Display for EngineInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.version {
            Some(version) => write!(f, "{} {version}: {}", self.name, self.note),
            None => write!(f, "{}: not available: {}", self.name, self.note),
        }
    }
}

/// The engines there are. Cheap to clone.
#[derive(Clone)]
pub struct Engines {
    /// In the order `auto` prefers them.
    engines: Vec<(EngineInfo, Option<Arc<dyn Backend>>)>,
}

impl fmt::Debug for Engines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.engines.iter().map(|(info, _)| info)).finish()
    }
}

impl Engines {
    /// Looks for ONNX Runtime's library: `ORT_DYLIB_PATH`, `ort_dylib`, `.ort/libonnxruntime.so` in the working
    /// directory, `lib/` beside the executable, the system's own. tract is always there.
    ///
    /// A place somebody named is the only one tried. The library is loaded once per process; later calls find the
    /// same one.
    #[must_use]
    pub fn discover(ort_dylib: Option<&Path>) -> Engines {
        let ort = match OnnxRuntime::find(ort_dylib) {
            Ok(found) => {
                let version = Some(found.version().to_owned());
                let note = format!("found at {}", found.origin());
                let backend: Arc<dyn Backend> = Arc::new(found);
                (EngineInfo { name: OnnxRuntime::NAME, version, available: true, note }, Some(backend))
            }
            Err(reason) => {
                let note = format!("{reason}. {BRING_IT}; until then tract serves what it can");
                (EngineInfo { name: OnnxRuntime::NAME, version: None, available: false, note }, None)
            }
        };
        Engines { engines: vec![ort, built_in_tract()] }
    }

    /// tract alone, as where the library is not installed.
    #[must_use]
    pub fn without_onnxruntime() -> Engines {
        let note = format!("left out. {BRING_IT}");
        let absent = EngineInfo { name: OnnxRuntime::NAME, version: None, available: false, note };
        Engines { engines: vec![(absent, None), built_in_tract()] }
    }

    /// One engine for every choice: for tests.
    #[must_use]
    pub fn only(engine: Arc<dyn Backend>) -> Engines {
        let note = "the only engine".to_owned();
        Engines {
            engines: vec![(EngineInfo { name: engine.name(), version: None, available: true, note }, Some(engine))],
        }
    }

    /// Every engine known, there or not, in the order `auto` prefers them.
    #[must_use]
    pub fn describe(&self) -> Vec<EngineInfo> {
        self.engines.iter().map(|(info, _)| info.clone()).collect()
    }

    /// Loads a version with the engine chosen.
    ///
    /// `auto` takes the first engine that is there and, where that one will not run the model, the next.
    ///
    /// # Errors
    /// As the engine says; [`LoadError::NoEngine`] when the chosen one is not there; under `auto`, when every engine
    /// refuses, [`LoadError::Unsupported`] with each one's reason and what would help.
    pub fn load(&self, choice: EngineChoice, files: &VersionFiles) -> Result<Arc<dyn Model>, LoadError> {
        let mut reasons = Vec::new();
        let mut advice = None;
        for (info, engine) in &self.engines {
            if !self.is_chosen(choice, info) {
                continue;
            }
            let Some(engine) = engine else {
                if choice != EngineChoice::Auto {
                    let words =
                        format!("the model asks for the engine {}, which is not available: {}", info.name, info.note);
                    return Err(LoadError::NoEngine(words));
                }
                advice = Some(format!("ONNX Runtime, which runs more models, is not available: {BRING_IT}"));
                continue;
            };
            match engine.load(files) {
                Err(LoadError::Unsupported(reason)) => reasons.push(reason),
                done => return done,
            }
        }
        reasons.extend(advice);
        Err(LoadError::Unsupported(reasons.join("; ")))
    }

    fn is_chosen(&self, choice: EngineChoice, info: &EngineInfo) -> bool {
        match choice {
            _ if self.engines.len() == 1 => true,
            EngineChoice::Auto => true,
            EngineChoice::OnnxRuntime => info.name == OnnxRuntime::NAME,
            EngineChoice::Tract => info.name == Tract::NAME,
        }
    }
}

fn built_in_tract() -> (EngineInfo, Option<Arc<dyn Backend>>) {
    let version = Some(tract::VERSION.to_owned());
    let info = EngineInfo { name: Tract::NAME, version, available: true, note: "built in".to_owned() };
    (info, Some(Arc::new(Tract)))
}
