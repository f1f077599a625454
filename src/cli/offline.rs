//! The commands that run here and not on a server.

use crate::config::Overrides;
use clap::Args;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Who does what the client commands do not: the rooms of this program. Each but `serve` is told whether to print JSON.
#[derive(Debug, Clone, Copy)]
pub struct Local {
    pub serve: fn(Option<PathBuf>, &Overrides) -> ExitCode,
    pub check: fn(&Path, bool) -> ExitCode,
    pub export: fn(&ExportOptions, bool) -> ExitCode,
    pub replay: fn(&ReplayOptions, bool) -> ExitCode,
    pub reproduce: fn(&ReproduceOptions, bool) -> ExitCode,
}

/// Which records of the prediction log.
#[derive(Debug, Args)]
pub struct PickOptions {
    /// Where the server keeps its data.
    #[arg(long, value_name = "DIR", default_value = "data")]
    pub data_dir: PathBuf,
    /// From this time on: 2026-11-01T08:30:00Z, or a date, which is its first moment in UTC.
    #[arg(long, value_name = "TIME")]
    pub from: Option<String>,
    /// To before this time.
    #[arg(long, value_name = "TIME")]
    pub to: Option<String>,
    /// Answered on this arm; several times for several [default: all]
    #[arg(long = "arm", value_name = "ARM")]
    pub arms: Vec<String>,
}

#[derive(Debug, Args)]
pub struct ExportOptions {
    pub model: String,
    #[command(flatten)]
    pub pick: PickOptions,
    /// Answered by this version; several times for several [default: all]
    #[arg(long = "version", value_name = "VERSION")]
    pub versions: Vec<String>,
    /// `primary`, `pinned` or `shadow`; several times for several [default: primary and pinned]
    #[arg(long = "role", value_name = "ROLE")]
    pub roles: Vec<String>,
    /// Leave out what has no label.
    #[arg(long)]
    pub require_label: bool,
    /// `parquet`, `csv`, `golden` or `warmup` [default: as the file's name says]
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
    /// At most so many rows, the oldest first; of golden answers 100 and of a warm-up 20 requests, where nothing is said.
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// The file to write; one that is there is replaced once the new one is whole.
    #[arg(short = 'o', long = "output", value_name = "FILE")]
    pub output: PathBuf,
}

#[derive(Debug, Args)]
pub struct ReplayOptions {
    pub model: String,
    /// The candidate.
    #[arg(long, value_name = "VERSION")]
    pub version: String,
    /// The models directory.
    #[arg(long, value_name = "DIR", default_value = "models")]
    pub models: PathBuf,
    #[command(flatten)]
    pub pick: PickOptions,
    /// Answered by this version; several times for several [default: all]
    #[arg(long = "answered-by", value_name = "VERSION")]
    pub versions: Vec<String>,
    /// `primary`, `pinned` or `shadow`; several times for several [default: primary]
    #[arg(long = "role", value_name = "ROLE")]
    pub roles: Vec<String>,
    /// Replay at most so many requests, the oldest first.
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// How far a number may be off, relative to the logged one [default: `[shadow]` of model.toml, else 0.001]
    #[arg(long, value_name = "NUMBER")]
    pub rtol: Option<f64>,
    /// How far a number may be off on top of that [default: `[shadow]` of model.toml, else 0.00001]
    #[arg(long, value_name = "NUMBER")]
    pub atol: Option<f64>,
    /// What the candidate has to show, such as `within_tolerance>=0.999`; several times for several. Exit code 1 where it does not.
    #[arg(long = "gate", value_name = "NAME>=NUMBER")]
    pub gates: Vec<String>,
}

#[derive(Debug, Args)]
pub struct ReproduceOptions {
    /// As the answer gave it.
    pub request_id: String,
    /// Look among this model's predictions alone.
    #[arg(long)]
    pub model: Option<String>,
    /// The models directory.
    #[arg(long, value_name = "DIR", default_value = "models")]
    pub models: PathBuf,
    /// Where the server keeps its data.
    #[arg(long, value_name = "DIR", default_value = "data")]
    pub data_dir: PathBuf,
}
