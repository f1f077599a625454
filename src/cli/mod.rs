//! cli: the command line; client commands speak to the admin API, offline ones to the rooms that do the work.
//!
//! - Exit code 0: done. 1: failed, with a message on standard error. 2: the command line or the configuration is wrong.
//! - Client commands send their requests to `--admin URL` (or `SLUICEGATE_ADMIN`), with `SLUICEGATE_TOKEN` if it is set. `--json`
//!   prints the admin API's answer unchanged.
//! - `main.rs` passes the functions for commands that run in this process ([`Local`]), so that this room does not depend on the
//!   rooms that do the work.
//! - Every request has a deadline. Only `rollout --watch` waits as long as the rollout runs.
//!
//! Uses: archive (the files of a push), config, outbound (the authorities to trust), readable (figures of `top`, texts of others), settings (durations).
//!
//! Invariant: no client command reads the models or the data directory; it prints what the server answered. All texts go through `terminal.rs`, so that
//! no text of a caller reaches the terminal as it is.
//!
//! To add a command: a variant of [`Command`] with examples, its request in `client.rs`, its table in `show*.rs`
//! (`docs/how-to-add/admin-command.md`).

mod alerts;
mod approve;
mod client;
mod fleet;
mod log;
mod logged;
mod offline;
mod push;
mod ready;
mod requests;
mod rollout;
mod show;
mod show_access;
mod show_drift;
mod show_execution;
mod show_lineage;
mod show_mlflow;
mod show_outcomes;
mod show_replay;
mod show_requests;
mod show_shadow;
mod show_sources;
mod terminal;
#[cfg(test)]
mod tests;
mod tls;
mod top;
mod wait;

pub use fleet::FleetCommand;
pub use offline::{
    AuditOptions, CertificateOptions, ExplainOptions, ExportOptions, ForgetOptions, GoldenOptions, KeygenOptions,
    Local, LogAddress, LogPlace, Pages, PickOptions, ProfileOptions, ReplayOptions, ReproduceOptions, RequestOptions,
    RequestsOptions, SignOptions, TokenCommand,
};
pub(crate) use show::table;
pub(crate) use show_access::tokens as token_table;
pub(crate) use show_requests::{found as found_requests, one as one_request};
pub(crate) use show_shadow::pairs as shadow_pairs;
pub(crate) use terminal::{complain, json as shown_json, one_line, print, text as shown_text};

use crate::config::Overrides;
use crate::settings::parse_duration;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Serves versioned ONNX models, and switches to new versions without failing a request.
#[derive(Debug, Parser)]
#[command(name = "sluicegate", version, subcommand_required = true, arg_required_else_help = true)]
#[command(after_help = "Examples:
  sluicegate serve                                     serve the models in models/ on port 8080, admin API on 8081
  sluicegate check models/iris/2                       test a version without a server: does it load and compute its golden answers?
  sluicegate promote iris 2 --reason \"better recall\"   send all requests for iris to version 2
  sluicegate rollback iris --reason \"too many errors\"  undo the last change
  sluicegate export iris -o iris.parquet               write logged predictions with their feedback to a file")]
struct Cli {
    #[command(flatten)]
    client: ClientOptions,
    #[command(subcommand)]
    command: Command,
}

/// Options of `quality`.
#[derive(Debug, Args)]
pub(crate) struct QualityOptions {
    /// The name of the model.
    model: String,
    /// How far back, such as 7d.
    #[arg(long, value_name = "DURATION")]
    window: Option<String>,
    /// The length of each period, such as 1d. Without it, the window is one period.
    #[arg(long, value_name = "DURATION")]
    step: Option<String>,
    /// The input to group rows by, such as inputs.sex.
    #[arg(long, value_name = "COLUMN")]
    by: Option<String>,
}

/// How client commands reach the server.
#[derive(Debug, Args)]
pub(crate) struct ClientOptions {
    /// The address of the server's admin API [default: `http://127.0.0.1:8081`]
    #[arg(long, global = true, value_name = "URL", env = "SLUICEGATE_ADMIN")]
    admin: Option<String>,
    /// Sent as a bearer token. Better set in the environment: other users can see the command line.
    #[arg(long, global = true, hide = true, value_name = "TOKEN", env = "SLUICEGATE_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Trust this certificate or authority (PEM) for an https address, instead of those that the system trusts.
    #[arg(long, global = true, value_name = "FILE", env = "SLUICEGATE_CA")]
    ca: Option<PathBuf>,
    /// The certificate that this client proves its identity with (PEM), if the server asks for one.
    #[arg(long, global = true, value_name = "FILE", env = "SLUICEGATE_CLIENT_CERT")]
    client_cert: Option<PathBuf>,
    /// The private key of the client's certificate (PEM).
    #[arg(long, global = true, value_name = "FILE", env = "SLUICEGATE_CLIENT_KEY")]
    client_key: Option<PathBuf>,
    /// Print JSON instead of text. Client commands print the admin API's answer unchanged.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start the server.
    #[command(after_help = "Examples:
  sluicegate serve
  sluicegate serve --config /etc/sluicegate.toml
  sluicegate serve --models /srv/models --listen 127.0.0.1:9000 --data-dir /var/lib/sluicegate
  sluicegate serve --model fraud=/mnt/models
  sluicegate serve --fleet nats://10.0.0.1:4222,nats://10.0.0.2:4222
  SLUICEGATE__LOG__FORMAT=json sluicegate serve")]
    Serve(ServeOptions),
    /// Test an .onnx file, a version, a model or a models directory, without a server.
    #[command(after_help = "Examples:
  sluicegate check model.onnx
  sluicegate check models/iris/2
  sluicegate check models/fraud/3 --input data/crashes/2026-11-28T06-52-37-fraud-3.request
  sluicegate check models --json")]
    Check {
        /// An .onnx file, or the directory of a version, of a model or of all models.
        path: PathBuf,
        /// Run the version in PATH on the request in this file, in a process of its own: an Open Inference Protocol request as JSON, or a
        /// file that the server wrote after a crash.
        #[arg(long, value_name = "FILE")]
        input: Option<PathBuf>,
    },
    /// Make golden.json, the answers that a version must give before it may serve, from arrays of inputs and outputs.
    #[command(after_help = "Examples:
  sluicegate golden models/iris/3 --inputs X_test.npy --expected predictions.npz
  sluicegate golden fraud/7 --inputs X_test.parquet --expected y.csv --min-agree 0.999
  sluicegate golden iris/3 --inputs X_test.csv --expected y.csv --rtol 1e-3 -o golden.json

Arrays are found by the names of the inputs and outputs; the only array of a file is that of the only input or output. The columns of a table are
NAME, or NAME[0], NAME[1], …, or for the only input those of `feature_names` in model.toml. Nothing is written unless the version gives these answers.")]
    Golden(GoldenOptions),
    /// Make certificates for trying TLS: one for a server, which signs itself, and ones for clients.
    #[command(after_help = "Examples:
  sluicegate certificate --for localhost
  sluicegate certificate --for gateway.internal,10.1.2.3 --days 90 --dir /etc/sluicegate/tls
  sluicegate certificate --for localhost --client anna --client ben
  sluicegate certificate --client carl

Files that exist are not overwritten. Private keys are readable by their owner only. The first --client makes an authority (client-ca.crt), and
later ones use it.")]
    Certificate(CertificateOptions),
    /// Try versions for a server, which names them on standard input.
    #[command(
        hide = true,
        after_help = "Examples:
  sluicegate trial"
    )]
    Trial {
        /// The path of ONNX Runtime's library.
        #[arg(long, value_name = "FILE")]
        onnxruntime: Option<PathBuf>,
        /// The directory of libraries with custom operators.
        #[arg(long, value_name = "DIR")]
        custom_ops_dir: Option<PathBuf>,
    },
    /// Write logged predictions with their latest feedback to a file, without a server or from one.
    #[command(after_help = "Examples:
  sluicegate export iris -o iris.parquet
  sluicegate export iris --from 2026-11-01 --to 2026-11-08 --require-label -o week.parquet
  sluicegate export iris --version 2 --role shadow -o shadow.csv
  sluicegate export iris --version 2 --limit 50 -o models/iris/3/golden.json
  sluicegate export iris --version 2 -o models/iris/3/warmup.json
  sluicegate export iris -o iris.parquet --admin http://gateway:8081      from a server: parquet or csv
  sluicegate export iris -o iris.parquet --log s3://ml-records/production      what all gateways uploaded

Without --admin (or SLUICEGATE_ADMIN), and with --data-dir, it reads a data directory.")]
    Export(ExportOptions),
    /// Run logged requests through another version and compare the outputs, without a server or on one.
    #[command(after_help = "Examples:
  sluicegate replay iris --version 3
  sluicegate replay iris --version 3 --from 2026-11-01 --limit 10000
  sluicegate replay iris --version 3 --gate \"within_tolerance>=0.999\" --gate \"failed<=0\" --gate \"accuracy>=0.95\"
  sluicegate replay iris --version 3 --gate \"accuracy>=champion-0.01\"
  sluicegate replay iris --version 3 --admin http://gateway:8081          on a server, at the lowest priority
  sluicegate replay iris --version 3 --log s3://ml-records/production          what all gateways uploaded

Gates, each with >=, <=, > or < and a number:
  within_tolerance     share of the output values that are within the tolerance of the logged ones
  agreement            share of the requests whose outputs are all within the tolerance
  failed               share of the requests that failed
  top1_flipped         share of the rows whose highest output is another one
  accuracy             share of the labels that were predicted
  mean_absolute_error  mean distance from the numeric labels
  p99_us               99th percentile of the run time, in microseconds, alone on this machine
  time_ratio           time per row, divided by that of the version that answered; both run alternately here
A gate without any data fails.

accuracy and mean_absolute_error can be compared with the version that answered, on the same rows with labels: accuracy>champion, accuracy>=champion-0.01,
mean_absolute_error<=champion+0.5. Such a gate passes only when that is shown with 95 % confidence.")]
    Replay(ReplayOptions),
    /// List requests of the prediction log, the newest first, without a server or from one.
    #[command(after_help = "Examples:
  sluicegate requests iris
  sluicegate requests iris --request-id 0199a2f4-7a11-7cc0-9d5e-0b8f6a5e2c11
  sluicegate requests iris --route-key u1 --since 2026-11-01
  sluicegate requests iris --version 2 --status error --slower-than 250ms
  sluicegate requests iris --disagreed --limit 10
  sluicegate requests iris --non-finite --admin http://gateway:8081       from a server, at low priority

Without --admin (or SLUICEGATE_ADMIN), and with --data-dir, it reads a data directory. A server searches for ten seconds at most; the answer then says
where to go on: --after PLACE.")]
    Requests(Box<RequestsOptions>),
    /// Show all that the prediction log has about one request: inputs, answers, shadows' answers, feedback.
    #[command(after_help = "Examples:
  sluicegate request iris 0199a2f4-7a11-7cc0-9d5e-0b8f6a5e2c11
  sluicegate request iris order-1234 --json
  sluicegate request iris order-1234 --elements 100000 --data-dir /var/lib/sluicegate

Without --admin (or SLUICEGATE_ADMIN), and with --data-dir, it reads a data directory.")]
    Request(RequestOptions),
    /// Run a logged prediction again and say whether the outputs are bit for bit the same, without a server.
    #[command(after_help = "Examples:
  sluicegate reproduce 0199a2f4-7a11-7cc0-9d5e-0b8f6a5e2c11
  sluicegate reproduce order-1234 --model iris --data-dir /var/lib/sluicegate
  sluicegate reproduce --sample 100 --model iris --version 3 --from 2026-11-01")]
    Reproduce(ReproduceOptions),
    /// Say which columns of a logged row its answer came from, by Shapley values, without a server.
    #[command(after_help = "Examples:
  sluicegate explain 0199a2f4-7a11-7cc0-9d5e-0b8f6a5e2c11
  sluicegate explain order-1234 --model fraud --row 2 --output probabilities --element 1
  sluicegate explain order-1234 --rows 100000 --data-dir /var/lib/sluicegate --json

It compares the row with the rows in the profile of its version (`sluicegate profile` keeps 100 of them), else with up to 100 rows of other requests to the
model in the hour, day, week or month before it. The parts add up to the difference between its answer and their mean answer. POST /v1/models/M:explain does the same for a row that is sent.")]
    Explain(ExplainOptions),
    /// Remove the records of a person from the prediction log of a stopped server.
    #[command(after_help = "Examples:
  sluicegate forget --route-key u1 --reason \"a request for erasure\"
  sluicegate forget --request-id order-1234 --model iris --data-dir /var/lib/sluicegate --reason \"a request for erasure\"

Files that hold such records are written again without them, also all objects in the bucket that the server uploads to. The audit trail says how many were removed, and not whose they were.")]
    Forget(ForgetOptions),
    /// List all models and the states of their versions.
    #[command(after_help = "Examples:
  sluicegate models
  sluicegate models --json")]
    Models,
    /// Watch all models in the terminal: what serves, how fast, and what is wrong.
    #[command(after_help = "Examples:
  sluicegate top
  sluicegate top --sort requests --filter fraud
  sluicegate top --every 10s --admin https://gateway:8081
  sluicegate top | head                                  no terminal: the table, once

Keys: arrows select a model, Enter shows its arms and versions, / filters by name, s sorts by another column, r reverses, Esc goes back, q quits.")]
    Top(top::TopOptions),
    /// List the versions of a model with their states.
    #[command(after_help = "Examples:
  sluicegate versions iris")]
    Versions {
        /// The name of the model.
        model: String,
    },
    /// Show how long runs of a model take, on which threads they run, and how many requests ran together.
    #[command(after_help = "Examples:
  sluicegate execution iris")]
    Execution {
        /// The name of the model.
        model: String,
    },
    /// Show or change which version of a model gets which requests.
    #[command(after_help = "Examples:
  sluicegate traffic iris
  sluicegate traffic iris --split 1=90,2=10 --sticky-by header:x-user-id --reason \"try version 2\"
  sluicegate traffic iris --key u1
  sluicegate traffic iris --set traffic.json --reason \"try version 2\"
  sluicegate traffic iris --json | jq .split

With --split, a new experiment (from one arm to several, with a sticky key) gets a new salt, so that not the same users are treated again.
--salt sets one. As long as an experiment runs, its salt stays, and changing a weight moves only the keys that have to move.")]
    Traffic(TrafficOptions),
    /// Send all requests that do not ask for a version to this version.
    #[command(after_help = "Examples:
  sluicegate promote iris 2 --reason \"better recall\" --dry-run
  sluicegate promote iris 2 --reason \"better recall\"
  sluicegate promote iris 2 --reason \"as good\" --gate shadow_agreement=0.99 --gate shadow_pairs=5000 --gate golden")]
    Promote(PromoteOptions),
    /// Undo the last change of a model's traffic, or restore an earlier traffic document; a second rollback undoes the first.
    #[command(after_help = "Examples:
  sluicegate rollback iris --dry-run
  sluicegate rollback iris --reason \"errors in checkout\"
  sluicegate rollback iris --to-revision 3 --reason \"the last good one\"
  sluicegate rollback iris --reason \"errors in checkout\" --break-glass      although nobody approved the version before

`sluicegate history` lists the revisions. All steps of a rollout are one change. After a rollout that was taken back or aborted, there is
nothing to undo: --to-revision goes back further.")]
    Rollback(RollbackOptions),
    /// Stop serving a model, also after a restart, until a version of it is promoted. Its files and its history stay.
    #[command(after_help = "Examples:
  sluicegate retire iris --reason \"replaced by iris-2\"
  sluicegate promote iris 3 --reason \"needed again\"      bring it back")]
    Retire {
        /// The name of the model.
        model: String,
        /// Why; callers read it, and it is stored in the history and the audit trail.
        #[arg(long)]
        reason: String,
    },
    /// Move a model's traffic to another version step by step, or show, pause, resume or abort that.
    #[command(after_help = "Examples:
  sluicegate rollout iris --to 4 --reason \"better recall\"
  sluicegate rollout iris --to 4 --steps 1,5,25,50,100 --hold 10m --guardrail p99_latency_ratio=2 --reason \"better recall\"
  sluicegate rollout iris --to 4 --require error_rate_ratio=1.5 --reason \"few requests, so wait for evidence\"
  sluicegate rollout iris --to 4 --require error_rate_ratio=1.5 --reason \"few requests: wait for evidence\"
  sluicegate rollout iris --to 4 --guardrail shadow_disagreement=0.02 --reason \"same answers, faster\" --watch
  sluicegate rollout iris
  sluicegate rollout iris --pause --reason \"the campaign starts\"
  sluicegate rollout iris --abort --reason \"complaints\"

Guardrails: if one is broken, all traffic goes back to the versions before the rollout.
  error_rate_ratio     failed requests of the new version, as a multiple of the old one's rate
  nonfinite_ratio      requests with NaN or infinite outputs, as a multiple of the old one's rate
  p99_latency_ratio    requests slower than the old version's 99th percentile, as a multiple of the old one's rate
  engine_time_ratio    median time in the engine per row, as a multiple of the old version's
  constant_output_ratio  how many times as often the old version's answers may change from one request to the next
  max_error_rate       share of the new version's requests that may fail [default: off]
  max_p99_ms           99th percentile of the new version's latency [default: off]
  p99_before_ratio     99th percentile of both versions, as a multiple of that from before the rollout [default: off]
  shadow_disagreement  share of compared requests in which the new version answers differently; measured before the first step
  false_alarm_rate     share of rollouts of equally good versions that may be stopped by mistake, at most

Required: the next step begins only when the upper end of the interval is at most this.
  error_rate_ratio, error_rate_difference, max_error_rate")]
    Rollout(RolloutOptions),
    /// Compare a model's shadow versions with the versions that answer.
    #[command(after_help = "Examples:
  sluicegate traffic iris --json | jq '.shadows = [{version: \"2\", sample: 1}]' | sluicegate traffic iris --set -
  sluicegate shadow iris
  sluicegate shadow iris 2")]
    Shadow {
        /// The name of the model.
        model: String,
        /// Show this shadow in detail, with its outputs and the largest differences.
        version: Option<String>,
    },
    /// Load a version that was unloaded, or that failed for lack of memory.
    #[command(after_help = "Examples:
  sluicegate load iris 1
  sluicegate load iris 1 --reason \"it is needed again\"")]
    Load {
        /// The name of the model.
        model: String,
        /// The version to load.
        version: String,
        /// Why; it is stored in the audit trail.
        #[arg(long)]
        reason: Option<String>,
    },
    /// Unload a version; it stays unloaded until it is loaded again.
    #[command(after_help = "Examples:
  sluicegate unload iris 1
  sluicegate unload iris 1 --reason \"memory for version 2\"")]
    Unload {
        /// The name of the model.
        model: String,
        /// The version to unload.
        version: String,
        /// Why; it is stored in the audit trail.
        #[arg(long)]
        reason: Option<String>,
    },
    /// Upload a new version of a model: a directory with all its files, or an .onnx file alone.
    #[command(
        override_usage = "sluicegate push [OPTIONS] <MODEL> [VERSION] <DIR|FILE.onnx>",
        after_help = "Examples:
  sluicegate push iris out/iris              all files of a directory, under the next free number
  sluicegate push iris 3 out/iris            under this number
  sluicegate push iris model.onnx
  sluicegate push iris 3 model.onnx --signature model.sig

A directory has model.onnx and, as the models directory, weights, golden.json, warmup.json, version.toml, model.sig and profile.json. Hidden files are
left out. The version lands whole or not at all."
    )]
    Push(PushOptions),
    /// Wait until a version has a state; exit code 1 with the reason if it fails, is unloaded, or does not get there in time.
    #[command(after_help = "Examples:
  sluicegate wait iris 3 --state ready
  sluicegate wait iris 3 --state serving --timeout 10m
  sluicegate wait iris 3 --json

States: pending, loading, verifying, warming, ready, serving, draining, unloaded, failed. A version that serves is ready too. One that does not exist
yet is waited for.")]
    Wait(WaitOptions),
    /// Say whether the server is ready, or live; exit code 1 with what is missing if it is not. For health checks and scripts.
    #[command(after_help = "Examples:
  sluicegate ready
  sluicegate ready --timeout 60s        wait until it is, also for a server that is just being started
  sluicegate ready --live               whether it answers at all, or only a restart helps

It asks the admin plane (/readyz, /healthz), which answers this without credentials.")]
    Ready(ReadyOptions),
    /// Show the quality of a model from feedback: recently, or over windows with intervals.
    #[command(after_help = "Examples:
  sluicegate quality iris
  sluicegate quality iris --window 7d --step 1d
  sluicegate quality titanic --window 30d --by inputs.sex")]
    Quality(QualityOptions),
    /// Compare the arms of the split in force by the metrics of model.toml, with intervals that hold at every look.
    #[command(after_help = "Examples:
  sluicegate experiment recommender
  sluicegate experiment recommender --json")]
    Experiment {
        /// The name of the model.
        model: String,
    },
    /// Show where a version comes from: files, training, parents, changes, comparisons; and what of that is not known.
    #[command(after_help = "Examples:
  sluicegate lineage iris 3
  sluicegate lineage iris 3 --json")]
    Lineage {
        /// The name of the model.
        model: String,
        /// The version.
        version: String,
    },
    /// Show how the values of a model's rows differ from those in training: which columns, since when, and whether it matters.
    #[command(after_help = "Examples:
  sluicegate drift iris
  sluicegate drift iris --json | jq '.troubles'
  sluicegate drift iris --bins 5                   reference and live rows by bin, of the five columns that moved most

The reference is profile.json of each version (sluicegate profile makes one), else the version's own first day.")]
    Drift {
        /// The name of the model.
        model: String,
        /// Of so many columns of each arm, those that moved most, also show reference and live rows by bin, at most 100.
        #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=100))]
        bins: u8,
    },
    /// Make profile.json: what the columns of a version looked like in a file, or in the prediction log.
    #[command(after_help = "Examples:
  sluicegate profile train.parquet -o models/titanic/3/profile.json
  sluicegate profile train.csv --model titanic --version 3 -o profile.json      check the names of the columns
  sluicegate profile --from-log titanic 3 --from 2026-11-01 --to 2026-11-08 -o profile.json")]
    Profile(ProfileOptions),
    /// Make a key for signing versions, and print its public key for `trusted_keys` in the section `[models]`.
    #[command(after_help = "Examples:
  sluicegate keygen -o ci-key.pem --name ci")]
    Keygen(KeygenOptions),
    /// Sign a version: write model.sig beside its model.
    #[command(after_help = "Examples:
  sluicegate sign models/iris/3 --key ci-key.pem")]
    Sign(SignOptions),
    /// List the changes of a model's traffic, newest first.
    #[command(after_help = "Examples:
  sluicegate history iris")]
    History {
        /// The name of the model.
        model: String,
    },
    /// Show what there is to look at before a version gets traffic, and approve it.
    #[command(after_help = "Examples:
  sluicegate approve iris 3                                   show it, and approve nothing
  sluicegate approve iris 3 --reason \"golden answers and shadow agree\"
  sluicegate approve iris 3 --attach replay.json --reason \"replay is fine\"

Who pushed a version or asked for its traffic cannot approve it.")]
    Approve(ReviewOptions),
    /// Show what there is to look at before a version gets traffic, and reject it.
    #[command(after_help = "Examples:
  sluicegate reject iris 3 --reason \"trained on last year's data\"")]
    Reject(ReviewOptions),
    /// Make, list or revoke tokens: who may do what.
    #[command(
        arg_required_else_help = true,
        after_help = "Examples:
  sluicegate token create --name root --role admin --data-dir data
  sluicegate token create --name ci --role operator --models 'fraud-*' --expires 90d
  sluicegate token list
  sluicegate token revoke ci"
    )]
    Token {
        #[command(subcommand)]
        command: TokenCommand,
    },
    /// Show who the server takes you for, and what you may do.
    #[command(after_help = "Examples:
  sluicegate whoami
  SLUICEGATE_TOKEN=$TOKEN sluicegate whoami --json")]
    Whoami,
    /// List the callers of the data plane that send the most requests, and what was refused.
    #[command(after_help = "Examples:
  sluicegate callers
  sluicegate callers --json | jq '.callers[0]'")]
    Callers,
    /// List the sources of models: buckets, web servers and registries, what they have, and what is stored of it.
    #[command(after_help = "Examples:
  sluicegate sources
  sluicegate sources --now              has them read at once
  sluicegate sources --json | jq '.sources[] | select(.state == \"failing\")'")]
    Sources {
        /// Have every source read at once, and not after its interval.
        #[arg(long)]
        now: bool,
    },
    /// Show the state of the prediction log: what was recorded and lost, what is on the disk, and what is uploaded.
    #[command(after_help = "Examples:
  sluicegate log
  sluicegate log --json | jq .upload.last_error")]
    Log,
    /// Show what was found in MLflow's model registry, and what became of its aliases.
    #[command(after_help = "Examples:
  sluicegate mlflow
  sluicegate mlflow --json | jq '.models[].aliases'")]
    Mlflow,
    /// Show the gateways of the fleet, and what each has in force; or take its state out, or bring one in.
    #[command(after_help = "Examples:
  sluicegate fleet
  sluicegate fleet --json | jq '.nodes[].state'
  sluicegate fleet export-state shop.json
  sluicegate fleet import-state shop.json --data-dir data
  sluicegate fleet join --seed --config /etc/sluicegate.toml")]
    Fleet {
        #[command(subcommand)]
        command: Option<FleetCommand>,
    },
    /// List what is wrong now, and who is told; or send a test to a target.
    #[command(after_help = "Examples:
  sluicegate alerts
  sluicegate alerts --model iris --state firing
  sluicegate alerts --json | jq '.alerts[] | {rule, model, summary}'
  sluicegate alerts --test ops              exit code 1 when the target does not accept it")]
    Alerts(AlertsOptions),
    /// Tell nobody of some alerts for a while; or list or end silences.
    #[command(after_help = "Examples:
  sluicegate silence --rule drift --model 'fraud-*' --for 2h --reason \"the sale has begun\"
  sluicegate silence --model iris --version 3 --until 2026-12-01T08:00:00Z --reason \"known, fixed on Monday\"
  sluicegate silence --list
  sluicegate silence --end 9f2c4e5a60718293")]
    Silence(SilenceOptions),
    /// List who changed what, newest first; or verify or export the whole audit trail.
    #[command(after_help = "Examples:
  sluicegate audit
  sluicegate audit --model iris --since 2026-11-01T00:00:00Z --limit 20
  sluicegate audit --verify --heads /mnt/audit/heads.jsonl   verify the trail of a running server
  sluicegate audit --verify --data-dir data                  verify a data directory, without a server
  sluicegate audit --export                                  write all events to standard output
  sluicegate audit --export --after 1024                     write what came since
  sluicegate audit --verify --file audit.jsonl               verify an export, on any machine
  sluicegate audit --fleet                                   who did what on which gateway of the fleet
  sluicegate audit --fleet --verify                          verify the chain of the fleet, and of each gateway in it")]
    Audit(AuditOptions),
}

/// Options of `sluicegate alerts`.
#[derive(Debug, Args)]
pub(crate) struct AlertsOptions {
    /// Only alerts in this state: firing, silenced or resolved.
    #[arg(long)]
    state: Option<String>,
    /// Only alerts about this model.
    #[arg(long)]
    model: Option<String>,
    /// Send a test to this target.
    #[arg(long, value_name = "TARGET", conflicts_with_all = ["state", "model"])]
    test: Option<String>,
}

/// Options of `sluicegate silence`.
#[derive(Debug, Args)]
pub(crate) struct SilenceOptions {
    /// Alerts of this rule.
    #[arg(long)]
    rule: Option<String>,
    /// Alerts about models with this name or pattern.
    #[arg(long, value_name = "PATTERN")]
    model: Option<String>,
    /// Alerts about this version.
    #[arg(long)]
    version: Option<String>,
    /// How long, such as 2h or 3d.
    #[arg(long = "for", value_name = "DURATION", requires = "reason", conflicts_with = "until")]
    duration: Option<String>,
    /// Until when, such as 2026-12-01T08:00:00Z.
    #[arg(long, value_name = "TIME", requires = "reason")]
    until: Option<String>,
    /// Why; the list of silences shows it.
    #[arg(long)]
    reason: Option<String>,
    /// List the silences.
    #[arg(long, conflicts_with_all = ["rule", "model", "version", "duration", "until", "reason", "end"])]
    list: bool,
    /// End the silence with this id.
    #[arg(long, value_name = "ID", conflicts_with_all = ["rule", "model", "version", "duration", "until", "reason"])]
    end: Option<String>,
}

/// Options of `sluicegate wait`.
#[derive(Debug, Args)]
pub(crate) struct WaitOptions {
    /// The name of the model.
    model: String,
    /// The version.
    version: String,
    /// The name of the state to wait for.
    #[arg(long, value_name = "STATE", default_value = "ready")]
    state: String,
    /// The longest wait, such as 30s or 10m.
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration)]
    timeout: Duration,
}

/// Options of `sluicegate ready`.
#[derive(Debug, Args)]
pub(crate) struct ReadyOptions {
    /// The longest wait, such as 30s or 10m. Without it, the first answer counts.
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = duration)]
    timeout: Duration,
    /// Ask for liveness instead.
    #[arg(long)]
    live: bool,
}

/// A duration of the command line, a day at most.
fn duration(text: &str) -> Result<Duration, String> {
    let expected = || "expected a duration of at most 24h, such as 30s or 10m".to_owned();
    parse_duration(text).filter(|duration| *duration <= Duration::from_hours(24)).ok_or_else(expected)
}

/// A share of the gateways of a fleet.
fn quorum(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share: &f64| *share > 0.0 && *share <= 1.0);
    share.ok_or_else(|| "expected a number above 0 and at most 1, such as 0.9".to_owned())
}

/// Options of `sluicegate push`.
#[derive(Debug, Args)]
pub(crate) struct PushOptions {
    /// The name of the model; a new name makes a new model.
    model: String,
    /// The number of the new version, which must not exist yet [default: the next free one], and a directory with the files of the version, or an
    /// .onnx file.
    #[arg(num_args = 1..=2, required = true, value_names = ["VERSION", "DIR|FILE.onnx"])]
    what: Vec<PathBuf>,
    /// The signature of the version, as `sluicegate sign` writes it; needed where the server has trusted keys and a directory has no model.sig.
    #[arg(long, value_name = "FILE")]
    signature: Option<PathBuf>,
}

/// Options of `sluicegate approve` and `reject`.
#[derive(Debug, Args)]
pub(crate) struct ReviewOptions {
    /// The name of the model.
    model: String,
    /// The version.
    version: String,
    /// Why; stored in the audit trail. Without it, only show what there is to look at.
    #[arg(long)]
    reason: Option<String>,
    /// A JSON file that was looked at too; it is kept with the review; may be repeated.
    #[arg(long = "attach", value_name = "FILE", requires = "reason")]
    attachments: Vec<PathBuf>,
}

/// Options of `sluicegate serve`. Each one overrides the configuration.
#[derive(Debug, Args)]
struct ServeOptions {
    /// The configuration file [default: config/sluicegate.toml, if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The models directory [default: models]
    #[arg(long, value_name = "DIR")]
    models: Option<String>,
    /// Serve one model, whose files are in this directory: model.onnx or one file that ends in .onnx, its versions (1/model.onnx), or a models
    /// directory that has it. As KServe mounts them.
    #[arg(long, value_name = "NAME=DIR", conflicts_with = "models")]
    model: Option<String>,
    /// The address for predictions [default: 0.0.0.0:8080]
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
    /// The address of the admin API [default: 127.0.0.1:8081]
    #[arg(long, value_name = "ADDR")]
    admin_listen: Option<String>,
    /// The directory for traffic documents, the audit trail and the prediction log [default: data]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// Share traffic documents, approvals and tokens with other gateways through these NATS servers, separated by commas [default: none]
    #[arg(long, value_name = "URLS")]
    fleet: Option<String>,
}

#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "flags of a command line")]
pub(crate) struct RolloutOptions {
    /// The name of the model. Without other options, show its rollout.
    model: String,
    /// Start a rollout to this version.
    #[arg(long, value_name = "VERSION", requires = "reason")]
    to: Option<String>,
    /// The new version's share of the requests in each step, in percent, rising; at most 100 [default: 1,5,25,50,100]
    #[arg(long, value_name = "PERCENT", value_delimiter = ',', requires = "to")]
    steps: Vec<f64>,
    /// The least time for each step, such as 30s or 10m [default: 10m]
    #[arg(long, value_name = "DURATION", requires = "to")]
    hold: Option<String>,
    /// The least number of requests to the new version in each step [default: 100]
    #[arg(long, value_name = "N", requires = "to")]
    min_requests: Option<u64>,
    /// The least number of compared requests before the first step, with the guardrail `shadow_disagreement` [default: 1000]
    #[arg(long, value_name = "N", requires = "to")]
    min_shadow_pairs: Option<u64>,
    /// Set a guardrail, or switch it off with NAME=off; may be repeated. `metrics.NAME=-0.02`: a business metric may not be worse than this.
    #[arg(long = "guardrail", value_name = "NAME=LIMIT", requires = "to")]
    guardrails: Vec<String>,
    /// A business metric of model.toml: the rollout ends early once it is better beyond doubt.
    #[arg(long, value_name = "METRIC", requires = "to")]
    goal: Option<String>,
    /// Begin the next step only when this is shown with 95 % confidence, such as `error_rate_ratio=1.5`; may be repeated.
    #[arg(long, value_name = "NAME=LIMIT", requires = "to")]
    require: Vec<String>,
    /// Start even if the new version's inputs or outputs do not fit what callers use.
    #[arg(long, requires = "to")]
    allow_signature_change: bool,
    /// Move traffic to the new version although nobody approved it. For admins, in an emergency; the audit trail, the log and a metric
    /// have it.
    #[arg(long, requires = "to", conflicts_with_all = ["pause", "resume", "abort"])]
    break_glass: bool,
    /// Stay at the current step.
    #[arg(long, requires = "reason", conflicts_with_all = ["to", "resume", "abort"])]
    pause: bool,
    /// Continue a paused rollout.
    #[arg(long, requires = "reason", conflicts_with_all = ["to", "abort"])]
    resume: bool,
    /// End the rollout and restore the traffic from before it.
    #[arg(long, requires = "reason", conflicts_with = "to")]
    abort: bool,
    /// Why; stored in the history and the audit trail.
    #[arg(long)]
    reason: Option<String>,
    /// Print every change until the rollout has ended; exit code 1 if it does not finish.
    #[arg(long)]
    watch: bool,
}

#[derive(Debug, Args)]
pub(crate) struct TrafficOptions {
    /// The name of the model. Without other options, show its traffic document.
    model: String,
    /// Replace the traffic document with this file; `-` reads standard input.
    #[arg(long, value_name = "FILE", group = "change", conflicts_with = "split")]
    set: Option<PathBuf>,
    /// Replace only the split: VERSION=WEIGHT or ARM:VERSION=WEIGHT, separated by commas.
    #[arg(long, value_name = "SPLIT", group = "change")]
    split: Option<String>,
    /// With --split: requests with the same `header:NAME` or `parameter:NAME` always get the same arm.
    #[arg(long, value_name = "KEY", requires = "split", conflicts_with = "set")]
    sticky_by: Option<String>,
    /// With --split: the salt of the hash that assigns keys to arms. By default, a new experiment gets one.
    #[arg(long, value_name = "TEXT", requires = "split", conflicts_with = "set")]
    salt: Option<String>,
    /// Show which arm this sticky key gets, and why.
    #[arg(long, value_name = "KEY", conflicts_with = "change")]
    key: Option<String>,
    /// With --split or --set: why; stored in the history and the audit trail. Replaces the reason in the file.
    #[arg(long, requires = "change")]
    reason: Option<String>,
    /// With --split: accept a version whose inputs or outputs do not fit what callers use.
    #[arg(long, requires = "split", conflicts_with = "set")]
    allow_signature_change: bool,
    /// With --split or --set: give traffic to versions that nobody approved. For admins, in an emergency; the audit trail, the log and a
    /// metric have it.
    #[arg(long, requires = "change", requires = "reason")]
    break_glass: bool,
    /// In a fleet: the share of the gateways that must be able to serve it, such as 0.9. By default all that should have the model.
    #[arg(long, value_name = "SHARE", requires = "change", value_parser = quorum)]
    quorum: Option<f64>,
}

#[derive(Debug, Args)]
pub(crate) struct RollbackOptions {
    /// The name of the model.
    model: String,
    /// Restore the traffic document of this revision, instead of the one before the last change.
    #[arg(long, value_name = "N")]
    to_revision: Option<u64>,
    /// Why; stored in the history and the audit trail.
    #[arg(long, required_unless_present = "dry_run")]
    reason: Option<String>,
    /// Show what would change, without changing anything.
    #[arg(long)]
    dry_run: bool,
    /// Go back to versions that nobody approved. For admins, in an emergency; the audit trail, the log and a metric have it.
    #[arg(long, requires = "reason")]
    break_glass: bool,
}

#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "flags of a command line")]
pub(crate) struct PromoteOptions {
    /// The name of the model.
    model: String,
    /// The version to promote.
    version: String,
    /// Why; stored in the history and the audit trail.
    #[arg(long)]
    reason: String,
    /// Show what would change and which gates would fail, without changing anything; exit code 1 if it would be refused.
    #[arg(long)]
    dry_run: bool,
    /// Promote even if the version's inputs or outputs do not fit what callers use.
    #[arg(long)]
    allow_signature_change: bool,
    /// A condition for the promotion, instead of the gates in model.toml: `shadow_agreement=SHARE`, `shadow_pairs=N`,
    /// `shadow_top1_flipped=SHARE`, `golden` or
    /// `signature`; may be repeated.
    #[arg(long = "gate", value_name = "GATE")]
    gates: Vec<String>,
    /// Promote without the gates in model.toml; the audit trail records that.
    #[arg(long, conflicts_with = "gates")]
    no_gates: bool,
    /// Promote although nobody approved the version. For admins, in an emergency; the audit trail, the log and a metric have it.
    #[arg(long)]
    break_glass: bool,
    /// In a fleet: the share of the gateways that must have the version ready, such as 0.9. By default all that should have the model.
    #[arg(long, value_name = "SHARE", value_parser = quorum)]
    quorum: Option<f64>,
}

/// Why a command failed: the message for standard error, and the exit code.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum CommandError {
    /// The command could not be done: exit code 1.
    Failed(String),
    /// The command line is wrong: exit code 2.
    Usage(String),
}

/// Reads the command line and runs the command.
pub fn run(local: &Local) -> ExitCode {
    // Ends the process: with code 2 and a message for a wrong command line, with 0 for --help.
    let Cli { client, command } = Cli::parse();
    let client = client::Client::new(client);
    let result = match command {
        Command::Serve(ServeOptions { config, models, model, listen, admin_listen, data_dir, fleet }) => {
            return (local.serve)(config, &Overrides { listen, admin_listen, models, data_dir, model, fleet });
        }
        Command::Check { path, input } => return (local.check)(&path, input.as_deref(), client.json()),
        Command::Golden(options) => return (local.golden)(&options, client.json()),
        Command::Certificate(options) => return (local.certificate)(&options),
        Command::Trial { onnxruntime, custom_ops_dir } => {
            return (local.trial)(onnxruntime.as_deref(), custom_ops_dir.as_deref());
        }
        Command::Export(options) if options.pick.offline(client.names_server()) => {
            return (local.export)(&options, client.json());
        }
        Command::Export(options) => client.export(&options),
        Command::Replay(options) if options.pick.offline(client.names_server()) => {
            return (local.replay)(&options, client.json());
        }
        Command::Replay(options) => client.replay(&options),
        Command::Requests(options) if options.place.offline(client.names_server()) => {
            return (local.requests)(&options, client.json());
        }
        Command::Requests(options) => client.requests(&options),
        Command::Request(options) if options.place.offline(client.names_server()) => {
            return (local.request)(&options, client.json());
        }
        Command::Request(options) => client.request_of_log(&options),
        Command::Reproduce(options) => return (local.reproduce)(&options, client.json()),
        Command::Explain(options) => return (local.explain)(&options, client.json()),
        Command::Forget(options) => return (local.forget)(&options, client.json()),
        Command::Models => client.models(),
        Command::Top(options) => top::run(client, &options),
        Command::Versions { model } => client.versions(&model),
        Command::Execution { model } => client.execution(&model),
        Command::Traffic(options) => client.traffic(&options),
        Command::Promote(options) => client.promote(&options),
        Command::Rollback(options) => client.rollback(&options),
        Command::Retire { model, reason } => client.retire(&model, &reason),
        Command::Rollout(options) => client.rollout(&options),
        Command::Shadow { model, version } => client.shadow(&model, version.as_deref()),
        Command::Load { model, version, reason } => client.load(&model, &version, "load", reason.as_deref()),
        Command::Unload { model, version, reason } => client.load(&model, &version, "unload", reason.as_deref()),
        Command::Push(options) => client.push(&options),
        Command::Wait(options) => client.wait(&options),
        Command::Ready(options) => client.ready(&options),
        Command::Quality(options) => client.quality(&options),
        Command::Experiment { model } => client.experiment(&model),
        Command::Drift { model, bins } => client.drift(&model, bins),
        Command::Profile(options) => return (local.profile)(&options, client.json()),
        Command::Lineage { model, version } => client.lineage(&model, &version),
        Command::Keygen(options) => return (local.keygen)(&options),
        Command::Sign(options) => return (local.sign)(&options),
        Command::Approve(options) => client.review(&options, true),
        Command::Reject(options) => client.review(&options, false),
        Command::Token { command } => match command.data_dir() {
            Some(dir) => return (local.token)(&command, dir, client.json()),
            None => client.token(&command),
        },
        Command::Whoami => client.whoami(),
        Command::Callers => client.callers(),
        Command::Sources { now } => client.sources(now),
        Command::Log => client.log(),
        Command::Mlflow => client.mlflow(),
        Command::Alerts(options) => client.alerts(&options),
        Command::Fleet { command: None } => client.fleet(),
        Command::Fleet { command: Some(FleetCommand::ExportState { file, tokens }) } => {
            client.export_fleet(&file, tokens)
        }
        Command::Fleet { command: Some(command) } => return (local.fleet)(&command, client.json()),
        Command::Silence(options) => client.silence(&options),
        Command::History { model } => client.history(&model),
        Command::Audit(options) if options.verify || options.export || options.fleet => {
            let fleet = options.fleet;
            return (local.audit)(&options, &mut |after| client.audit_page(after, fleet), client.json());
        }
        Command::Audit(AuditOptions { model, since, limit, .. }) => {
            client.audit(model.as_deref(), since.as_deref(), limit)
        }
    };
    let (message, code) = match result {
        Ok(()) => return ExitCode::SUCCESS,
        Err(CommandError::Failed(message)) => (message, 1),
        Err(CommandError::Usage(message)) => (message, 2),
    };
    terminal::complain(&message);
    ExitCode::from(code)
}
