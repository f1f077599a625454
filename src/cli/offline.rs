//! Options of the commands that run in this process and not on a server.

use super::FleetCommand;
use crate::config::Overrides;
use clap::Args;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The functions that run these commands. The last argument says whether to print JSON.
#[derive(Debug, Clone, Copy)]
pub struct Local {
    pub serve: fn(Option<PathBuf>, &Overrides) -> ExitCode,
    pub check: fn(&Path, Option<&Path>, bool) -> ExitCode,
    pub certificate: fn(&CertificateOptions) -> ExitCode,
    pub golden: fn(&GoldenOptions, bool) -> ExitCode,
    pub trial: fn(Option<&Path>, Option<&Path>) -> ExitCode,
    pub export: fn(&ExportOptions, bool) -> ExitCode,
    /// Lists requests of the prediction log.
    pub requests: fn(&RequestsOptions, bool) -> ExitCode,
    /// Shows one of them.
    pub request: fn(&RequestOptions, bool) -> ExitCode,
    pub replay: fn(&ReplayOptions, bool) -> ExitCode,
    pub reproduce: fn(&ReproduceOptions, bool) -> ExitCode,
    pub profile: fn(&ProfileOptions, bool) -> ExitCode,
    pub explain: fn(&ExplainOptions, bool) -> ExitCode,
    /// Removes the records of a person from the data directory of a stopped server.
    pub forget: fn(&ForgetOptions, bool) -> ExitCode,
    /// Changes or lists the tokens in the data directory of a stopped server.
    pub token: fn(&TokenCommand, &Path, bool) -> ExitCode,
    /// `fleet import-state` and `fleet join`.
    pub fleet: fn(&FleetCommand, bool) -> ExitCode,
    pub keygen: fn(&KeygenOptions) -> ExitCode,
    pub sign: fn(&SignOptions) -> ExitCode,
    /// `audit --verify` and `audit --export`.
    pub audit: fn(&AuditOptions, Pages<'_>, bool) -> ExitCode,
}

/// What to do with tokens.
#[derive(Debug, clap::Subcommand)]
pub enum TokenCommand {
    /// Make a token and print it, alone, on standard output. Nobody can read it again.
    #[command(after_help = "Examples:
  sluicegate token create --name root --role admin --data-dir data       the first token, while the server is stopped
  sluicegate token create --name ci --role operator --models 'fraud-*' --expires 90d
  SLUICEGATE_TOKEN=$(sluicegate token create --name shop --role predict --models iris)")]
    Create {
        /// The name that stands in the audit trail: one for each person or program.
        #[arg(long)]
        name: String,
        /// predict, viewer, operator, approver or admin.
        #[arg(long)]
        role: String,
        /// The models it is limited to: names, and patterns with `*`, separated by commas [default: all]
        #[arg(long, value_name = "PATTERN", value_delimiter = ',')]
        models: Vec<String>,
        /// The time until it expires, such as 90d or 12h [default: never]
        #[arg(long, value_name = "DURATION")]
        expires: Option<String>,
        /// Write into this data directory, of a server that is stopped, instead of asking a running server.
        #[arg(long, value_name = "DIR")]
        data_dir: Option<PathBuf>,
    },
    /// Print a new token and store nothing: for a file that `tokens` in the section `[access]` names, such as a secret of a container.
    #[command(after_help = "Examples:
  sluicegate token generate
  kubectl create secret generic gateway-tokens --from-literal=root=$(sluicegate token generate)")]
    Generate,
    /// List the tokens with their roles and when they were used last.
    #[command(after_help = "Examples:
  sluicegate token list
  sluicegate token list --data-dir data")]
    List {
        /// Read this data directory, of a server that is stopped, instead of asking a running server.
        #[arg(long, value_name = "DIR")]
        data_dir: Option<PathBuf>,
    },
    /// Revoke a token: requests with it are refused from then on.
    #[command(after_help = "Examples:
  sluicegate token revoke ci
  sluicegate token revoke ci --data-dir data")]
    Revoke {
        /// The name of the token.
        name: String,
        /// Write into this data directory, of a server that is stopped, instead of asking a running server.
        #[arg(long, value_name = "DIR")]
        data_dir: Option<PathBuf>,
    },
}

impl PickOptions {
    /// The data directory to read without a server. `None`: a server is asked.
    pub(super) fn offline(&self, server_is_named: bool) -> bool {
        self.data_dir.is_some() || self.log.log.is_some() || !server_is_named
    }

    /// The data directory.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        self.data_dir.as_deref().unwrap_or(Path::new("data"))
    }
}

impl TokenCommand {
    /// The data directory of a stopped server; `None` asks a running one. A command that needs neither has an empty path.
    #[must_use]
    pub fn data_dir(&self) -> Option<&Path> {
        match self {
            TokenCommand::Generate => Some(Path::new("")),
            TokenCommand::Create { data_dir, .. }
            | TokenCommand::List { data_dir }
            | TokenCommand::Revoke { data_dir, .. } => data_dir.as_deref(),
        }
    }
}

#[derive(Debug, Args)]
pub struct CertificateOptions {
    /// The names and addresses of the server, separated by commas.
    #[arg(long = "for", value_name = "NAME,…", value_delimiter = ',')]
    pub names: Vec<String>,
    /// The name of a client, which becomes its common name; may be repeated.
    #[arg(long = "client", value_name = "NAME")]
    pub clients: Vec<String>,
    /// The directory to write to, which is created.
    #[arg(long, value_name = "DIR", default_value = "tls")]
    pub dir: PathBuf,
    /// How many days the certificates are valid.
    #[arg(long, value_name = "N", default_value_t = 365, value_parser = clap::value_parser!(u16).range(1..=3650))]
    pub days: u16,
}

#[derive(Debug, Args)]
pub struct GoldenOptions {
    /// The directory of the version, or MODEL/VERSION in the models directory.
    pub version: PathBuf,
    /// The inputs: .npz, .npy, .parquet or .csv.
    #[arg(long, value_name = "FILE")]
    pub inputs: PathBuf,
    /// The outputs that the version must give for them, in one of these formats.
    #[arg(long, value_name = "FILE")]
    pub expected: PathBuf,
    /// The allowed relative difference of a number.
    #[arg(long, value_name = "NUMBER", default_value_t = 1e-4)]
    pub rtol: f64,
    /// The allowed absolute difference of a number, added to the relative one.
    #[arg(long, value_name = "NUMBER", default_value_t = 1e-5)]
    pub atol: f64,
    /// The share of the elements of each output that must agree. Below 1 for decision trees: inputs at a threshold may go the other way when they are
    /// rounded to FP32.
    #[arg(long, value_name = "SHARE", default_value_t = 1.0)]
    pub min_agree: f64,
    /// The file to write [default: golden.json in the version's directory]
    #[arg(short = 'o', long = "output", value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// The models directory.
    #[arg(long, value_name = "DIR", default_value = "models")]
    pub models: PathBuf,
}

#[derive(Debug, Args)]
pub struct ProfileOptions {
    /// A Parquet or CSV file with one row per example. Columns: the names of features, or `inputs` and `outputs` as in an export.
    #[arg(required_unless_present = "from_log", conflicts_with = "from_log")]
    pub data: Option<PathBuf>,
    /// Read the prediction log of this version instead.
    #[arg(long, num_args = 2, value_names = ["MODEL", "VERSION"])]
    pub from_log: Option<Vec<String>>,
    /// Check the names of the columns against this model.
    #[arg(long, requires = "version", conflicts_with = "from_log")]
    pub model: Option<String>,
    /// Check the names of the columns against this version.
    #[arg(long, requires = "model")]
    pub version: Option<String>,
    /// Keep so many whole rows in the profile, drawn at random, for explanations; 0: none. They can be read by everybody who can read the file.
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub sample: usize,
    /// The directory with the models, for --model.
    #[arg(long, value_name = "DIR", default_value = "models")]
    pub models: PathBuf,
    /// The data directory, for --from-log.
    #[arg(long, value_name = "DIR", default_value = "data")]
    pub data_dir: PathBuf,
    #[command(flatten)]
    pub log: LogAddress,
    /// With --from-log: records from this time on (RFC 3339, or a date in UTC).
    #[arg(long, value_name = "TIME", requires = "from_log")]
    pub from: Option<String>,
    /// With --from-log: records before this time.
    #[arg(long, value_name = "TIME", requires = "from_log")]
    pub to: Option<String>,
    /// The file to write.
    #[arg(short = 'o', long = "output", value_name = "FILE")]
    pub output: PathBuf,
}

#[derive(Debug, Args)]
pub struct KeygenOptions {
    /// The new file for the private key (PEM); only its owner can read it.
    #[arg(short = 'o', long = "output", value_name = "FILE")]
    pub output: PathBuf,
    /// The name of the key, which operators read.
    #[arg(long, value_name = "NAME", default_value = "key")]
    pub name: String,
}

#[derive(Debug, Args)]
pub struct SignOptions {
    /// The directory of the version, such as models/iris/3.
    pub version: PathBuf,
    /// The file with the private key (PEM, PKCS #8).
    #[arg(long, value_name = "FILE")]
    pub key: PathBuf,
}

/// Gets the page of the server's audit trail after an event. The error is a message for standard error.
pub type Pages<'p> = &'p mut dyn FnMut(u64) -> Result<Vec<u8>, String>;

#[derive(Debug, Args)]
pub struct AuditOptions {
    /// Only changes of this model.
    #[arg(long, conflicts_with = "whole")]
    pub model: Option<String>,
    /// Only changes since this time (RFC 3339).
    #[arg(long, value_name = "TIME", conflicts_with = "whole")]
    pub since: Option<String>,
    /// At most this many changes.
    #[arg(long, value_name = "N", conflicts_with = "whole")]
    pub limit: Option<u32>,
    /// Verify that no event was altered, removed, inserted or moved; exit code 1 and the event, if one was.
    #[arg(long, group = "whole")]
    pub verify: bool,
    /// Write all events with their hashes to standard output, oldest first, as lines of JSON.
    #[arg(long, group = "whole")]
    pub export: bool,
    /// The trail of the whole fleet: the events of all gateways, oldest first.
    #[arg(long, conflicts_with_all = ["since", "limit", "data_dir", "heads"])]
    pub fleet: bool,
    /// With --verify or --export: read this data directory, without a server.
    #[arg(long, value_name = "DIR", requires = "whole")]
    pub data_dir: Option<PathBuf>,
    /// With --verify: read an export from this file; `-` reads standard input.
    #[arg(long, value_name = "FILE", requires = "verify", conflicts_with = "data_dir")]
    pub file: Option<PathBuf>,
    /// With --verify: compare with the heads in this file, which the server wrote (`heads_file`, `webhook` or its log as JSON).
    #[arg(long, value_name = "FILE", requires = "verify")]
    pub heads: Option<PathBuf>,
    /// With --export: only events after this one.
    #[arg(long, value_name = "ID", requires = "export")]
    pub after: Option<u64>,
}

/// A bucket that gateways upload to.
#[derive(Debug, Args)]
pub struct LogAddress {
    /// Read what gateways uploaded, without a server: `s3://bucket/prefix`, `gs://…`, `az://…` or `file:///directory`
    #[arg(long, value_name = "ADDRESS", conflicts_with = "data_dir")]
    pub log: Option<String>,
    /// With --log: ask the metadata service of the cloud's machine for credentials.
    #[arg(long, requires = "log")]
    pub log_instance_metadata: bool,
}

/// Selects records of the prediction log.
#[derive(Debug, Args)]
pub struct PickOptions {
    /// Read this data directory, without a server [default: data, unless --admin or `SLUICEGATE_ADMIN` names a server]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    #[command(flatten)]
    pub log: LogAddress,
    /// Run for a server: at the lowest priority, in little memory, and only until standard input ends.
    #[arg(long, hide = true)]
    pub for_server: bool,
    /// Only records from this time on: 2026-11-01T08:30:00Z, or a date (its start in UTC).
    #[arg(long, value_name = "TIME")]
    pub from: Option<String>,
    /// Only records before this time.
    #[arg(long, value_name = "TIME")]
    pub to: Option<String>,
    /// Only records of this arm; may be repeated [default: all]
    #[arg(long = "arm", value_name = "ARM")]
    pub arms: Vec<String>,
}

#[derive(Debug, Args)]
pub struct ExportOptions {
    /// The name of the model.
    pub model: String,
    #[command(flatten)]
    pub pick: PickOptions,
    /// Only records answered by this version; may be repeated [default: all]
    #[arg(long = "version", value_name = "VERSION")]
    pub versions: Vec<String>,
    /// Only records of this role: `primary`, `pinned` or `shadow`; may be repeated [default: primary and pinned]
    #[arg(long = "role", value_name = "ROLE")]
    pub roles: Vec<String>,
    /// Leave out records without a label.
    #[arg(long)]
    pub require_label: bool,
    /// `parquet`, `csv`, `golden` or `warmup` [default: from the name of the file]
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
    /// At most this many rows, the oldest first [default: all; 100 golden answers; 20 warm-up requests]
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// The file to write; `-` is standard output. An existing file is replaced when the new one is complete.
    #[arg(short = 'o', long = "output", value_name = "FILE")]
    pub output: PathBuf,
}

#[derive(Debug, Args)]
pub struct ReplayOptions {
    /// The name of the model.
    pub model: String,
    /// The version to run the requests through.
    #[arg(long, value_name = "VERSION")]
    pub version: String,
    /// The models directory. Versions of other sources are found in the data directory.
    #[arg(long, value_name = "DIR", default_value = "models")]
    pub models: PathBuf,
    #[command(flatten)]
    pub pick: PickOptions,
    /// Only records answered by this version; may be repeated [default: all]
    #[arg(long = "answered-by", value_name = "VERSION")]
    pub versions: Vec<String>,
    /// Only records of this role: `primary`, `pinned` or `shadow`; may be repeated [default: primary]
    #[arg(long = "role", value_name = "ROLE")]
    pub roles: Vec<String>,
    /// At most this many requests, the oldest first.
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// Relative tolerance of output values [default: `[shadow]` in model.toml, else 0.001]
    #[arg(long, value_name = "NUMBER")]
    pub rtol: Option<f64>,
    /// Absolute tolerance of output values, added to the relative one [default: `[shadow]` in model.toml, else 0.00001]
    #[arg(long, value_name = "NUMBER")]
    pub atol: Option<f64>,
    /// A condition, such as `within_tolerance>=0.999`; may be repeated. Exit code 1 if one fails.
    #[arg(long = "gate", value_name = "NAME>=NUMBER")]
    pub gates: Vec<String>,
}

#[derive(Debug, Args)]
pub struct ForgetOptions {
    /// Remove all predictions with this route key (the value that `sticky_by` reads), also where it is hashed, and the feedback about them.
    #[arg(long, value_name = "KEY", required_unless_present = "request_id", conflicts_with = "request_id")]
    pub route_key: Option<String>,
    /// Remove the predictions with this request id, and the feedback about them.
    #[arg(long, value_name = "ID")]
    pub request_id: Option<String>,
    /// Only of this model [default: all]
    #[arg(long)]
    pub model: Option<String>,
    /// Why; stored in the audit trail. Do not name the person here.
    #[arg(long)]
    pub reason: String,
    /// The data directory of the stopped server.
    #[arg(long, value_name = "DIR", default_value = "data")]
    pub data_dir: PathBuf,
    /// The file with the key of the hashes, if the configuration names one (`hash_key_file`).
    #[arg(long, value_name = "FILE")]
    pub hash_key_file: Option<PathBuf>,
    /// Leave alone the bucket that this data directory is uploaded to: what is there stays.
    #[arg(long)]
    pub local_only: bool,
    /// Ask the metadata service of the cloud's machine for the credentials of the bucket.
    #[arg(long, conflicts_with = "local_only")]
    pub log_instance_metadata: bool,
}

#[derive(Debug, Args)]
pub struct ExplainOptions {
    /// The request id, as in the answer's header `x-request-id`.
    pub request_id: String,
    /// Search only the predictions of this model.
    #[arg(long)]
    pub model: Option<String>,
    /// The row of the request, counted from 0.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub row: usize,
    /// The output to explain [default: the first one of floating-point numbers]
    #[arg(long, value_name = "NAME")]
    pub output: Option<String>,
    /// Its element within a row, counted from 0 [default: the largest one]
    #[arg(long, value_name = "N")]
    pub element: Option<usize>,
    /// At most this many rows are run; more of them make the standard errors smaller.
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    pub rows: usize,
    /// The models directory. Versions of other sources are found in the data directory.
    #[arg(long, value_name = "DIR", default_value = "models")]
    pub models: PathBuf,
    /// The server's data directory.
    #[arg(long, value_name = "DIR", default_value = "data")]
    pub data_dir: PathBuf,
    /// Run for a server: at the lowest priority, and only until standard input ends.
    #[arg(long, hide = true)]
    pub for_server: bool,
}

#[derive(Debug, Args)]
pub struct ReproduceOptions {
    /// The request id, as in the answer's header `x-request-id`.
    #[arg(required_unless_present = "sample", conflicts_with = "sample")]
    pub request_id: Option<String>,
    /// Search only the predictions of this model.
    #[arg(long)]
    pub model: Option<String>,
    /// Run a random sample of so many answers of a version again instead, and print how many are the same.
    #[arg(long, value_name = "N", requires = "model", requires = "version")]
    pub sample: Option<usize>,
    /// The version, for --sample.
    #[arg(long, requires = "sample")]
    pub version: Option<String>,
    /// Only answers from this time on, for --sample: RFC 3339, or a date [default: the last hour]
    #[arg(long, value_name = "TIME", requires = "sample")]
    pub from: Option<String>,
    /// The models directory. Versions of other sources are found in the data directory.
    #[arg(long, value_name = "DIR", default_value = "models")]
    pub models: PathBuf,
    /// The server's data directory.
    #[arg(long, value_name = "DIR", default_value = "data")]
    pub data_dir: PathBuf,
    /// Run for a server: at the lowest priority, and only until standard input ends.
    #[arg(long, hide = true)]
    pub for_server: bool,
}

/// Selects requests of the prediction log.
#[derive(Debug, Args)]
pub struct RequestsOptions {
    /// The name of the model.
    pub model: String,
    /// Only this request, as in the answer's header `x-request-id`. Answers of all roles.
    #[arg(long, value_name = "ID")]
    pub request_id: Option<String>,
    /// Only requests with this route key (the value that `sticky_by` reads), also where it is hashed. Other users of the machine can read the command
    /// line, and not the environment.
    #[arg(long, value_name = "KEY", env = "SLUICEGATE_ROUTE_KEY", hide_env_values = true)]
    pub route_key: Option<String>,
    /// Only requests from this time on: 2026-11-01T08:30:00Z, or a date (its start in UTC).
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Only requests before this time.
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
    /// Only answers of this version.
    #[arg(long, value_name = "VERSION")]
    pub version: Option<String>,
    /// Only answers of this arm.
    #[arg(long, value_name = "ARM")]
    pub arm: Option<String>,
    /// Only answers of this role: `primary`, `pinned` or `shadow` [default: primary and pinned]
    #[arg(long, value_name = "ROLE")]
    pub role: Option<String>,
    /// Only requests that ended so: `ok`, `error` (anything else), or an error code such as `DEADLINE_EXCEEDED`.
    #[arg(long, value_name = "STATUS")]
    pub status: Option<String>,
    /// Only requests that took longer, such as 250ms or 2s.
    #[arg(long, value_name = "DURATION")]
    pub slower_than: Option<String>,
    /// Only requests with an output of NaN or infinity.
    #[arg(long)]
    pub non_finite: bool,
    /// Only answers of shadows that differ from the primary's.
    #[arg(long, conflicts_with = "role")]
    pub disagreed: bool,
    /// With --disagreed: the relative tolerance [default: 0.001]
    #[arg(long, value_name = "NUMBER", requires = "disagreed")]
    pub rtol: Option<f64>,
    /// With --disagreed: the absolute tolerance, added to the relative one [default: 0.00001]
    #[arg(long, value_name = "NUMBER", requires = "disagreed")]
    pub atol: Option<f64>,
    /// At most this many requests, the newest first.
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub limit: u16,
    /// Go on where an earlier page ended: its `next`.
    #[arg(long, value_name = "PLACE")]
    pub after: Option<String>,
    /// Print each request as soon as it is found: a line of JSON each (`{"request":…}`), and a last one with how the search ended (`{"end":…}`).
    #[arg(long)]
    pub lines: bool,
    #[command(flatten)]
    pub place: LogPlace,
}

#[derive(Debug, Args)]
pub struct RequestOptions {
    /// The name of the model.
    pub model: String,
    /// The request id, as in the answer's header `x-request-id`.
    pub request_id: String,
    /// At most this many elements of each tensor.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub elements: u32,
    /// How far a shadow's answer may differ: the relative tolerance [default: 0.001]
    #[arg(long, value_name = "NUMBER")]
    pub rtol: Option<f64>,
    /// The absolute tolerance, added to the relative one [default: 0.00001]
    #[arg(long, value_name = "NUMBER")]
    pub atol: Option<f64>,
    #[command(flatten)]
    pub place: LogPlace,
}

/// Where the prediction log is.
#[derive(Debug, Args)]
pub struct LogPlace {
    /// Read this data directory, without a server [default: data, unless --admin or `SLUICEGATE_ADMIN` names a server]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// With a data directory: the file with the key of the hashes, if the configuration names one (`hash_key_file`).
    #[arg(long, value_name = "FILE")]
    pub hash_key_file: Option<PathBuf>,
    /// Run for a server: at low priority, for a limited time, and only until standard input ends.
    #[arg(long, hide = true)]
    pub for_server: bool,
    /// The hash of the route key, which a server knows.
    #[arg(long, hide = true, value_name = "HASH")]
    pub hashed_route_key: Option<String>,
}

impl LogPlace {
    /// Whether to read a data directory, and not to ask a server.
    pub(super) fn offline(&self, server_is_named: bool) -> bool {
        self.data_dir.is_some() || !server_is_named
    }

    /// The data directory.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        self.data_dir.as_deref().unwrap_or(Path::new("data"))
    }
}
