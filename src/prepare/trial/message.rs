//! The messages between the server and a trial process: one JSON object a line.

use crate::backend::{EmptyAxes, EngineChoice};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A version to try, from the server to the trial process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Order {
    pub dir: PathBuf,
    /// As `model.toml` spells it.
    pub engine: String,
    /// `[engine]` of `model.toml`: the names of libraries and of providers.
    pub custom_ops: Vec<String>,
    pub providers: Vec<String>,
    /// How many bytes of address space this trial may add to the process.
    pub memory: u64,
    /// Whether plain requests are run.
    pub plain: bool,
    /// Combinations of empty axes that are known from an earlier process, by their index: not tried again.
    pub known: Vec<usize>,
    /// Those of them that ended the process. Combinations that contain them are not tried.
    pub fatal: Vec<usize>,
}

/// What a trial process does, in order. The last one before the process ends says what ended it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Event {
    Loading,
    Loaded {
        engine: String,
    },
    /// The engine does not load it, with its reason. `memory`: for want of memory.
    Refused {
        memory: bool,
        reason: String,
    },
    /// A plain request begins.
    Running {
        what: String,
    },
    /// A request with this combination of empty axes begins.
    Trying {
        combination: usize,
    },
    Survived {
        combination: usize,
        axes: Axes,
    },
    /// The trial is complete. The most memory that the process held beyond what it held before.
    Finished {
        peak_bytes: u64,
    },
}

/// [`EmptyAxes`] in hexadecimal: JSON numbers are too small.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Axes(String);

impl From<EmptyAxes> for Axes {
    fn from(axes: EmptyAxes) -> Axes {
        Axes(format!("{:x}", axes.0))
    }
}

impl Axes {
    /// `None` where the text is no number.
    pub(super) fn get(&self) -> Option<EmptyAxes> {
        u128::from_str_radix(&self.0, 16).ok().map(EmptyAxes)
    }
}

pub(super) const fn engine_name(choice: EngineChoice) -> &'static str {
    match choice {
        EngineChoice::Auto => "auto",
        EngineChoice::OnnxRuntime => "onnxruntime",
        EngineChoice::Tract => "tract",
    }
}

/// The engine of [`Order::engine`].
pub(super) fn engine_choice(name: &str) -> EngineChoice {
    match name {
        "onnxruntime" => EngineChoice::OnnxRuntime,
        "tract" => EngineChoice::Tract,
        _ => EngineChoice::Auto,
    }
}
