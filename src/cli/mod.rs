//! cli: the command line; client commands speak to the admin API, offline ones to the rooms that do the work.
//!
//! - Exit code 0: done. 1: failed, with a sentence on standard error. 2: the command line or the configuration is wrong.
//! - Client commands speak to `--admin URL` (or `SLUICEGATE_ADMIN`) and send `SLUICEGATE_TOKEN` where it is set; `--json` prints the
//!   admin API's own answer, byte for byte.
//! - Commands that run here and not on a server are given to [`run`] by `main.rs` ([`Local`]): this room does not know how they work.
//!
//! Uses: config.
//!
//! Invariant: no client command reads the models or the data directory; what it says is what the server said.
//!
//! To add a command: a variant of [`Command`], its call in `client.rs`, its table in `show*.rs` (`docs/how-to-add/admin-command.md`).

mod client;
mod offline;
mod rollout;
mod show;
mod show_execution;
mod show_shadow;
#[cfg(test)]
mod tests;

pub use offline::{ExportOptions, Local, PickOptions, ReplayOptions, ReproduceOptions};
pub use show::table;
pub use show_shadow::pairs as shadow_pairs;

use crate::config::Overrides;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

/// Serves versioned ONNX models, and promotes new versions without anyone noticing.
#[derive(Debug, Parser)]
#[command(name = "sluicegate", version, subcommand_required = true, arg_required_else_help = true)]
#[command(after_help = "Examples:
  sluicegate serve                                     serve models/ on port 8080, admin on 8081
  sluicegate check models/iris/2                       would this version load, and does it answer as it should?
  sluicegate promote iris 2 --reason \"better recall\"   send everybody to version 2
  sluicegate export iris -o iris.parquet               what was predicted, with what happened then")]
struct Cli {
    #[command(flatten)]
    client: ClientOptions,
    #[command(subcommand)]
    command: Command,
}

/// How client commands reach the server.
#[derive(Debug, Args)]
pub(crate) struct ClientOptions {
    /// Where the admin plane listens.
    #[arg(long, global = true, value_name = "URL", env = "SLUICEGATE_ADMIN", default_value = "http://127.0.0.1:8081")]
    admin: String,
    /// Sent as a bearer token; better given by environment than on the command line, which others can see.
    #[arg(long, global = true, hide = true, value_name = "TOKEN", env = "SLUICEGATE_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Print the admin API's own answer.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve a directory of models.
    #[command(after_help = "Examples:
  sluicegate serve
  sluicegate serve --config /etc/sluicegate.toml
  sluicegate serve --models /srv/models --listen 127.0.0.1:9000 --data-dir /var/lib/sluicegate
  SLUICEGATE__LOG__FORMAT=json sluicegate serve")]
    Serve(ServeOptions),
    /// Validate an .onnx file, a version, a model, or a whole models directory, without a server.
    #[command(after_help = "Examples:
  sluicegate check model.onnx
  sluicegate check models/iris/2
  sluicegate check models --json")]
    Check {
        /// An .onnx file, or a directory of a version, of a model, or of models.
        path: PathBuf,
    },
    /// Write logged predictions, joined with their latest feedback, to a file, without a server.
    #[command(after_help = "Examples:
  sluicegate export iris -o iris.parquet
  sluicegate export iris --from 2026-11-01 --to 2026-11-08 --require-label -o week.parquet
  sluicegate export iris --version 2 --role shadow -o shadow.csv
  sluicegate export iris --version 2 --limit 50 -o models/iris/3/golden.json
  sluicegate export iris --version 2 -o models/iris/3/warmup.json")]
    Export(ExportOptions),
    /// Run logged inputs through a version, and compare with what was answered and with feedback, without a server.
    #[command(after_help = "Examples:
  sluicegate replay iris --version 3
  sluicegate replay iris --version 3 --from 2026-11-01 --limit 10000
  sluicegate replay iris --version 3 --gate \"within_tolerance>=0.999\" --gate \"failed<=0\" --gate \"accuracy>=0.95\"

Gates: within_tolerance (share of logged elements that the version gives too), agreement (share of requests), failed (share of requests),
top1_flipped (share of rows), accuracy, mean_absolute_error, p99_us; with >=, <=, > or <. One that cannot be judged fails.")]
    Replay(ReplayOptions),
    /// Run a logged prediction again with the version that answered, and say whether the outputs are the same to the bit.
    #[command(after_help = "Examples:
  sluicegate reproduce 0199a2f4-7a11-7cc0-9d5e-0b8f6a5e2c11
  sluicegate reproduce order-1234 --model iris --data-dir /var/lib/sluicegate")]
    Reproduce(ReproduceOptions),
    /// List the models and what answers for them.
    #[command(after_help = "Example:\n  sluicegate models")]
    Models,
    /// List a model's versions and their states.
    #[command(after_help = "Example:\n  sluicegate versions iris")]
    Versions { model: String },
    /// Show where and how a model's versions run: what runs cost, and which ran together.
    #[command(after_help = "Example:\n  sluicegate execution iris")]
    Execution { model: String },
    /// Show a model's traffic document, or replace it.
    #[command(after_help = "Examples:
  sluicegate traffic iris
  sluicegate traffic iris --set traffic.json
  sluicegate traffic iris --split 1=90,2=10 --sticky-by header:x-user-id --reason \"try 2\"
  sluicegate traffic iris --json | jq .split")]
    Traffic(TrafficOptions),
    /// Send all un-pinned requests to a version.
    #[command(after_help = "Examples:
  sluicegate promote iris 2 --reason \"better recall\" --dry-run
  sluicegate promote iris 2 --reason \"better recall\"
  sluicegate promote iris 2 --reason \"as good\" --gate shadow_agreement=0.99 --gate shadow_pairs=5000 --gate golden")]
    Promote(PromoteOptions),
    /// Put back the traffic document before the last change; twice returns to where you were.
    #[command(after_help = "Example:\n  sluicegate rollback iris --reason \"errors in checkout\"")]
    Rollback {
        model: String,
        /// Kept in the history and the audit trail.
        #[arg(long)]
        reason: String,
    },
    /// Show a model's rollout, or begin, hold or end one.
    #[command(after_help = "Examples:
  sluicegate rollout iris --to 4 --reason \"better recall\"
  sluicegate rollout iris --to 4 --steps 1,5,25,50,100 --hold 10m --guardrail p99_latency_ratio=2 --reason \"better recall\"
  sluicegate rollout iris --to 4 --guardrail shadow_disagreement=0.02 --reason \"same answers, faster\" --watch
  sluicegate rollout iris
  sluicegate rollout iris --pause --reason \"the campaign starts\"
  sluicegate rollout iris --abort --reason \"complaints\"")]
    Rollout(RolloutOptions),
    /// Show how a model's shadows compare with the versions that answer.
    #[command(after_help = "Examples:
  sluicegate traffic iris --json | jq '.shadows = [{version: \"2\", sample: 1}]' | sluicegate traffic iris --set -
  sluicegate shadow iris
  sluicegate shadow iris 2")]
    Shadow {
        model: String,
        /// One of them, with its outputs and its worst pairs.
        version: Option<String>,
    },
    /// Load a version that was unloaded, or failed for want of memory.
    #[command(after_help = "Example:\n  sluicegate load iris 1")]
    Load { model: String, version: String },
    /// Unload a version and keep it unloaded.
    #[command(after_help = "Example:\n  sluicegate unload iris 1")]
    Unload { model: String, version: String },
    /// Add a version from a file.
    #[command(after_help = "Example:\n  sluicegate push iris 3 model.onnx")]
    Push { model: String, version: String, file: PathBuf },
    /// List every traffic document a model has had, newest first.
    #[command(after_help = "Example:\n  sluicegate history iris")]
    History { model: String },
    /// List who changed what, newest first.
    #[command(after_help = "Examples:
  sluicegate audit
  sluicegate audit --model iris --since 2026-11-01T00:00:00Z --limit 20")]
    Audit {
        #[arg(long)]
        model: Option<String>,
        /// An RFC 3339 time.
        #[arg(long, value_name = "TIME")]
        since: Option<String>,
        #[arg(long, value_name = "N")]
        limit: Option<u32>,
    },
}

/// `sluicegate serve`; each option wins over the configuration.
#[derive(Debug, Args)]
struct ServeOptions {
    /// The configuration [default: config/sluicegate.toml, where it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The models directory [default: models]
    #[arg(long, value_name = "DIR")]
    models: Option<String>,
    /// Where callers connect [default: 0.0.0.0:8080]
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
    /// Where operators connect; loopback only [default: 127.0.0.1:8081]
    #[arg(long, value_name = "ADDR")]
    admin_listen: Option<String>,
    /// Where what must survive a restart is kept [default: data]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
}

#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "flags of a command line")]
pub(crate) struct RolloutOptions {
    model: String,
    /// Begin one to this version.
    #[arg(long, value_name = "VERSION", requires = "reason")]
    to: Option<String>,
    /// Percentages that rise, with commas between [default: 1,5,25,50,100]
    #[arg(long, value_name = "PERCENT", value_delimiter = ',', requires = "to")]
    steps: Vec<f64>,
    /// Each step, at least: 10m, 30s [default: 10m]
    #[arg(long, value_name = "DURATION", requires = "to")]
    hold: Option<String>,
    /// Of the new version, in each step, at least [default: 100]
    #[arg(long, value_name = "N", requires = "to")]
    min_requests: Option<u64>,
    /// Before the first step, with a limit on `shadow_disagreement` [default: 1000]
    #[arg(long, value_name = "N", requires = "to")]
    min_shadow_pairs: Option<u64>,
    /// NAME=LIMIT, or NAME=off; several times: `error_rate_ratio`, `nonfinite_ratio`, `p99_latency_ratio`, `shadow_disagreement`,
    /// `false_alarm_rate`.
    #[arg(long = "guardrail", value_name = "NAME=LIMIT", requires = "to")]
    guardrails: Vec<String>,
    /// Begin although the signature breaks callers.
    #[arg(long, requires = "to")]
    allow_signature_change: bool,
    /// Hold it at its step.
    #[arg(long, requires = "reason", conflicts_with_all = ["to", "resume", "abort"])]
    pause: bool,
    /// Go on.
    #[arg(long, requires = "reason", conflicts_with_all = ["to", "abort"])]
    resume: bool,
    /// End it, and put back the document of before it.
    #[arg(long, requires = "reason", conflicts_with = "to")]
    abort: bool,
    /// Kept in the history and the audit trail.
    #[arg(long)]
    reason: Option<String>,
    /// Follow it until it ends; exit code 1 when it does not finish.
    #[arg(long)]
    watch: bool,
}

#[derive(Debug, Args)]
pub(crate) struct TrafficOptions {
    model: String,
    /// Replace it by this file's document; `-` reads standard input.
    #[arg(long, value_name = "FILE", conflicts_with = "split")]
    set: Option<PathBuf>,
    /// Replace its split: VERSION=WEIGHT, or ARM:VERSION=WEIGHT, with commas between; the rest of the document stays.
    #[arg(long, value_name = "SPLIT")]
    split: Option<String>,
    /// With --split: what the arm is chosen by, `header:NAME` or `parameter:NAME`.
    #[arg(long, value_name = "KEY", requires = "split", conflicts_with = "set")]
    sticky_by: Option<String>,
    /// With --split: kept in the history and the audit trail.
    #[arg(long, requires = "split", conflicts_with = "set")]
    reason: Option<String>,
    /// With --split: take the document although a signature breaks callers.
    #[arg(long, requires = "split", conflicts_with = "set")]
    allow_signature_change: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PromoteOptions {
    model: String,
    version: String,
    /// Kept in the history and the audit trail.
    #[arg(long)]
    reason: String,
    /// Say what would change and which gates would fail, and change nothing; exit code 1 where it would be refused.
    #[arg(long)]
    dry_run: bool,
    /// Promote although the signature breaks callers.
    #[arg(long)]
    allow_signature_change: bool,
    /// What the version has to show, in place of the gates of model.toml: `shadow_agreement=SHARE`, `shadow_pairs=N`, `golden`,
    /// `signature`. Once for each.
    #[arg(long = "gate", value_name = "GATE")]
    gates: Vec<String>,
    /// Promote without the gates of model.toml; the audit trail says so.
    #[arg(long, conflicts_with = "gates")]
    no_gates: bool,
}

/// Why a command failed, for standard error, and with which exit code.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Failed {
    /// What was asked for could not be done: exit code 1.
    Doing(String),
    /// What was asked for makes no sense: exit code 2.
    Usage(String),
}

/// Reads the command line and does what it says.
pub fn run(local: &Local) -> ExitCode {
    // Ends the process with code 2 and words on a wrong command line, and with 0 on --help.
    let Cli { client, command } = Cli::parse();
    let client = client::Client::new(client);
    let done = match command {
        Command::Serve(ServeOptions { config, models, listen, admin_listen, data_dir }) => {
            return (local.serve)(config, &Overrides { listen, admin_listen, models, data_dir });
        }
        Command::Check { path } => return (local.check)(&path, client.json()),
        Command::Export(options) => return (local.export)(&options, client.json()),
        Command::Replay(options) => return (local.replay)(&options, client.json()),
        Command::Reproduce(options) => return (local.reproduce)(&options, client.json()),
        Command::Models => client.models(),
        Command::Versions { model } => client.versions(&model),
        Command::Execution { model } => client.execution(&model),
        Command::Traffic(options) => client.traffic(&options),
        Command::Promote(options) => client.promote(&options),
        Command::Rollback { model, reason } => client.rollback(&model, &reason),
        Command::Rollout(options) => client.rollout(&options),
        Command::Shadow { model, version } => client.shadow(&model, version.as_deref()),
        Command::Load { model, version } => client.load(&model, &version, "load"),
        Command::Unload { model, version } => client.load(&model, &version, "unload"),
        Command::Push { model, version, file } => client.push(&model, &version, &file),
        Command::History { model } => client.history(&model),
        Command::Audit { model, since, limit } => client.audit(model.as_deref(), since.as_deref(), limit),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failed::Doing(words)) => {
            eprintln!("sluicegate: {words}");
            ExitCode::from(1)
        }
        Err(Failed::Usage(words)) => {
            eprintln!("sluicegate: {words}");
            ExitCode::from(2)
        }
    }
}
