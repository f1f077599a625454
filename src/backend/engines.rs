//! The engines on this machine, and the choice of one for each version.

use super::ort::{OnnxRuntime, custom_ops, providers};
use super::tract::{self, Tract};
use super::{Backend, EngineChoice, EngineOptions, LoadError, Model, VersionFiles};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What to do when ONNX Runtime is missing.
const INSTALL_ORT: &str = "`make ort` downloads ONNX Runtime's library; ORT_DYLIB_PATH names an installed one";

/// The variable that sets the directory of libraries with custom operators for a server. Commands without a configuration read it too.
const CUSTOM_OPS_DIR: &str = "SLUICEGATE__ENGINES__CUSTOM_OPS_DIR";

/// One engine, for the log at start and for error messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineInfo {
    pub name: &'static str,
    /// `None` when it is not available.
    pub version: Option<String>,
    pub available: bool,
    /// Where it was found, or why it was not found and what would help.
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

/// All known engines. Cheap to clone.
#[derive(Clone)]
pub struct Engines {
    /// In the order in which `auto` tries them.
    engines: Vec<(EngineInfo, Option<Arc<dyn Backend>>)>,
    custom_ops: Option<PathBuf>,
}

impl fmt::Debug for Engines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.engines.iter().map(|(info, _)| info)).finish()
    }
}

impl Engines {
    /// Looks for ONNX Runtime's library: `ORT_DYLIB_PATH`, `ort_dylib`, `.ort/libonnxruntime.so` in the working
    /// directory, `lib/` beside the executable, the system's library path. tract is built in.
    ///
    /// If a path is given, only that path is tried. The library is loaded once per process; later calls return the same
    /// one.
    #[must_use]
    pub fn discover(ort_dylib: Option<&Path>) -> Engines {
        Engines::discover_with(ort_dylib, Engines::custom_ops_dir_of_environment().as_deref())
    }

    /// The directory of libraries with custom operators, for commands that read no configuration.
    #[must_use]
    pub fn custom_ops_dir_of_environment() -> Option<PathBuf> {
        std::env::var_os(CUSTOM_OPS_DIR).filter(|dir| !dir.is_empty()).map(PathBuf::from)
    }

    /// The same, with the directory whose libraries with custom operators models may name. `None`: they may name none.
    #[must_use]
    pub fn discover_with(ort_dylib: Option<&Path>, custom_ops: Option<&Path>) -> Engines {
        let ort = match OnnxRuntime::find(ort_dylib, custom_ops) {
            Ok(found) => {
                let version = Some(found.version().to_owned());
                let note = format!("found at {}", found.origin());
                let backend: Arc<dyn Backend> = Arc::new(found);
                (EngineInfo { name: OnnxRuntime::NAME, version, available: true, note }, Some(backend))
            }
            Err(reason) => {
                let note = format!("{reason}. {INSTALL_ORT}; until then tract runs the models that it supports");
                (EngineInfo { name: OnnxRuntime::NAME, version: None, available: false, note }, None)
            }
        };
        Engines { engines: vec![ort, built_in_tract()], custom_ops: custom_ops.map(Path::to_owned) }
    }

    /// Whether an integer division that traps in an operator of ONNX Runtime fails its run only (`ort/trap.rs`). Default true; holds for the
    /// process.
    pub fn set_skip_divisions(skip: bool) {
        OnnxRuntime::set_skip_divisions(skip);
    }

    /// tract alone, as on a machine without ONNX Runtime.
    #[must_use]
    pub fn without_onnxruntime() -> Engines {
        let note = format!("left out. {INSTALL_ORT}");
        let absent = EngineInfo { name: OnnxRuntime::NAME, version: None, available: false, note };
        Engines { engines: vec![(absent, None), built_in_tract()], custom_ops: None }
    }

    /// One engine for every choice.
    #[must_use]
    pub fn only(engine: Arc<dyn Backend>) -> Engines {
        let note = "the only engine".to_owned();
        Engines {
            engines: vec![(EngineInfo { name: engine.name(), version: None, available: true, note }, Some(engine))],
            custom_ops: None,
        }
    }

    /// Every known engine, available or not, in the order in which `auto` tries them.
    #[must_use]
    pub fn describe(&self) -> Vec<EngineInfo> {
        self.engines.iter().map(|(info, _)| info.clone()).collect()
    }

    /// The files of libraries with custom operators that a model names.
    ///
    /// # Errors
    /// When one is not allowed, or does not exist.
    pub fn custom_ops_files(&self, names: &[String]) -> Result<Vec<PathBuf>, LoadError> {
        custom_ops::files(self.custom_ops.as_deref(), names)
    }

    /// Whether a model that is set up like this can run elsewhere than on the CPU.
    #[must_use]
    pub fn have_accelerator(&self, options: &EngineOptions) -> bool {
        let is_loaded = |(info, _): &(EngineInfo, _)| info.name == OnnxRuntime::NAME && info.available;
        self.engines.iter().any(is_loaded) && providers::has_accelerator(options)
    }

    /// Loads a version with the chosen engine.
    ///
    /// `auto` tries the available engines in order, until one can run the model.
    ///
    /// # Errors
    /// The engine's error. [`LoadError::NoEngine`] when the chosen engine is not available. With `auto`, when no engine can
    /// run the model, [`LoadError::Unsupported`] with the reason of each one and what would help.
    pub fn load(&self, choice: EngineChoice, files: &VersionFiles) -> Result<Arc<dyn Model>, LoadError> {
        let mut reasons: Vec<String> = Vec::new();
        let mut advice = None;
        for (info, engine) in &self.engines {
            if !self.is_chosen(choice, info) {
                continue;
            }
            let Some(engine) = engine else {
                if choice != EngineChoice::Auto {
                    let message =
                        format!("the model asks for the engine {}, which is not available: {}", info.name, info.note);
                    return Err(LoadError::NoEngine(message));
                }
                advice = Some(format!("ONNX Runtime, which runs more models, is not available: {INSTALL_ORT}"));
                continue;
            };
            match engine.load(files) {
                // What is wrong with the file itself is the same for every engine, and is reported once.
                Err(LoadError::Unsupported(reason)) if reasons.contains(&reason) => {}
                Err(LoadError::Unsupported(reason)) => reasons.push(reason),
                loaded_or_failed => return loaded_or_failed,
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
