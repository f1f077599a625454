//! The sections of the configuration. Each key has its unit, its default and the reason for the default.

use super::{mlflow_section, upload_section};
use crate::budget::Budget;
use crate::heads;
use crate::lifecycle::{CrashLimit, Policy, TimeLimits, TrustedKeys};
use crate::mirror;
use crate::mlflow;
use crate::model::ModelName;
use crate::quality;
use crate::record::{self, Acknowledge, Choice, OnFailure};
use crate::registry::BreakerConfig;
use crate::settings::Table;
use crate::telemetry::LogFormat;
use crate::tls::{self, ClientAuth};
use crate::traces;
use crate::upload;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// `[server]`: the data plane.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a key of the configuration")]
pub struct Server {
    /// Default `0.0.0.0:8080`: callers are on other machines. With port 0 the system chooses a free port.
    pub listen: SocketAddr,
    /// The most predict requests at the same time; further ones are answered with 429. Default 4096: far more than one machine
    /// computes at a time, and few enough that their bodies fit into memory.
    pub max_in_flight: usize,
    /// The most requests whose body is not complete; further ones whose body does not arrive at once are answered with 429. Default
    /// 4096: as many as may run.
    pub max_unfinished: usize,
    /// How many of them may come from one peer: an IPv4 address, or an IPv6 network of 64 bits. Default 0: half of `max_unfinished`, so
    /// that one peer leaves room for others. Behind a proxy all requests come from its address.
    pub max_unfinished_per_peer: usize,
    /// The most open connections; for a further one the longest idle one is closed, and if none is idle it waits. Default 10000: below
    /// the usual limit on open files.
    pub max_connections: usize,
    /// The most requests at the same time on a connection of HTTP/2. Default 100: the least that RFC 9113 recommends.
    pub max_streams: u32,
    /// The most bytes of a request's body, after decompression; more is answered with 413. Default 64 MiB: a batch of hundreds of
    /// images.
    pub max_body: u64,
    /// The most bytes of the tensors of one answer; a larger one is refused with 413. `max_answer` in the `[limits]` of a `model.toml`
    /// overrides it. Default 256 MiB: four times the largest body.
    pub max_answer: u64,
    /// The most bytes that all requests together may hold: bodies, tensors, and answers until they are sent; what does not fit is answered
    /// with 503. Default 0: an eighth of the memory that this process may use; model files may take four fifths, and engines need memory
    /// beside both.
    pub memory: u64,
    /// The most bytes of a request's headers; more is answered with 431. Default 64 KiB: several times the limit of most proxies.
    pub max_headers: u64,
    /// The time limit for a request's headers, from the first byte. Default 10 s: enough for a bad network, too short for an attack
    /// with slow requests.
    pub header_timeout: Duration,
    /// The time limit for a request's body; after it, 408. Default 30 s: 64 MiB at 2 MiB/s.
    pub body_timeout: Duration,
    /// The time after which a connection without a request is closed. Default 10 min: longer than in load balancers, so that they
    /// close first and no request is sent on a closing connection.
    pub idle_timeout: Duration,
    /// The time in which a client must take 16 KiB of an answer that is ready; else it is disconnected. Default 30 s: enough for the
    /// slowest links, and large answers of silent clients do not stay in memory.
    pub write_timeout: Duration,
    /// The deadline of a request that sets none; after it, 504. Default 10 s: hundreds of times a usual inference.
    pub request_timeout: Duration,
    /// The longest deadline that a caller may set with `x-request-timeout-ms`. Default 5 min: enough for the slowest models.
    pub max_request_timeout: Duration,
    /// The time from SIGTERM to exit. Default 20 s: below the 30 s after which Kubernetes kills the process.
    pub shutdown_grace: Duration,
    /// The time from SIGTERM until connections without a request are closed. Until then a client learns from the answer to its next
    /// request that its connection closes. Default 0: half of `shutdown_grace`, longer than the pauses of most clients.
    pub shutdown_announce: Duration,
    /// Whether a small parent process owns the sockets and starts the server again after a crash. Default true: a signal inside an engine
    /// would otherwise end all models, and refuse connections until something else starts the server.
    pub supervise: bool,
    /// The most bytes of a request's inputs that are kept for each thread while it runs a model, to be written to a file when the run ends
    /// the process. Default 0, which keeps none: the copy costs time, and inputs may be personal data.
    pub crash_inputs: u64,
    /// Whether requests need credentials; the probes never do. Default false: callers are known by the network they are in.
    pub require_token: bool,
    /// Whether answers have the headers `x-sluicegate-version`, `x-sluicegate-arm` and `x-sluicegate-fallback`. Default true: callers and
    /// load tests attribute an answer by them. False hides from callers which of their keys reach a candidate.
    pub version_headers: bool,
    /// Whether answers of the Open Inference Protocol have the optional member `model_version`. Default true: clients expect it.
    pub version_in_body: bool,
    /// I/O threads, which read requests and send answers. Default 0: one per core of the CPU budget.
    pub io_threads: usize,
    /// `[server.tls]`: `certificate`, `key`, `client_ca`, `client_auth`. Default none: plain HTTP, for a proxy in front.
    pub tls: Option<tls::Config>,
}

/// `[admin]`: the admin plane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    /// Default `127.0.0.1:8081`: only this machine can connect, so that the plane is safe without credentials.
    pub listen: SocketAddr,
    /// Whether every request needs credentials. Default false, for a machine with one user. On any address but loopback they are always
    /// needed, and the server does not start without any.
    pub require_token: bool,
    /// Make a token for an admin at start and print it to standard output, if there is none. Default false.
    pub first_token: bool,
    /// Host names under which operators reach the admin plane, without a port. Default none: `localhost` and IP addresses are always
    /// allowed. Other names are refused, because a web page could use one of its own to reach the plane (DNS rebinding).
    pub allowed_hosts: Vec<String>,
    /// `[admin.tls]`: the same keys as `[server.tls]`. Default none.
    pub tls: Option<tls::Config>,
}

/// `[approval]`: whether a second person must approve a version before it gets un-pinned traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Approval {
    /// Default false: one person may release a version. True for all models; `model.toml` can require it of one.
    pub required: bool,
}

/// `[models]`: where versions are found, and how they are loaded and unloaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Models {
    /// Default `models`, relative to the directory the server is started in.
    pub dir: PathBuf,
    /// How long a version's files must not change before they are read. Default 700 ms: slow copies pause for less, and a version is
    /// loaded within 2 s of its last write.
    pub settle: Duration,
    /// The time between two scans of the whole directory. Default 5 s: network file systems do not report changes, and a scan takes
    /// microseconds per file.
    pub rescan: Duration,
    /// The most bytes of model files that are loaded at the same time. Default 0: four fifths of the memory that this process may use;
    /// the rest is for requests, and for what engines need beside the weights.
    pub memory_budget: u64,
    /// Versions prepared at the same time. Default 1: loading takes cores from serving, and a second loader would take twice as many.
    pub load_threads: usize,
    /// How long the stages of a version may take: `load_timeout`, `verify_timeout`, `warm_timeout`. Default 60 s each: most versions take
    /// less than a second, and no other version should wait long for one that never ends. `load_timeout` grows with the files, by a second
    /// for every 10 MiB, for slow network disks. There is always a limit.
    pub time_limits: TimeLimits,
    /// How long an unload waits for requests on the version. Default 30 s: longer than the default deadline of a request.
    pub drain_timeout: Duration,
    /// How long a version stays loaded after no traffic document names it any more, if `versions` in `model.toml` does not select it.
    /// `keep_warm` in `model.toml` overrides it. Default 10 min: problems of a new version mostly show within minutes, and a rollback
    /// is then immediate.
    pub keep_warm: Duration,
    /// When a version that ends the process is set aside. `crash_limit`: after how many crashes; default 3: the first may be chance, and
    /// each one breaks the requests of all models. 0: never. `crash_window`: crashes longer ago do not count; default 10 min.
    pub crash_limit: CrashLimit,
    /// What to do when a version does not fit into the memory budget. Default `keep_serving`: no request fails.
    pub policy: Policy,
    /// `NAME=KEY` for each Ed25519 key of which one must have signed a version (`model.sig`); others are `failed{verify}`. Default none: versions
    /// need no signature.
    pub trusted_keys: TrustedKeys,
    /// Whether each version is loaded and run in a process of its own first. Default true: a file can end the engine's process.
    pub trials: bool,
    /// `[models.sources]`: buckets, web servers and registries that versions come from too.
    pub sources: mirror::Config,
    /// `[models.mlflow]`: MLflow's model registry. The fields of [`mlflow::Config`] document the keys and their defaults.
    pub mlflow: mlflow::Config,
}

/// `[engines]`: the engines that run models.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Engines {
    /// The path of ONNX Runtime's library. Default: searched for (`ORT_DYLIB_PATH`, then `.ort/`, then the system's library path).
    pub onnxruntime: Option<PathBuf>,
    /// The directory with the libraries of custom operators that a `model.toml` may name. Default none: models may name none, as they are
    /// native code that runs in the server's process.
    pub custom_ops_dir: Option<PathBuf>,
    /// Whether an integer division that traps in ONNX Runtime's operators `Div` and `Mod` fails that run only. Default true: a value in
    /// one request would otherwise end the process. What it skips is limited to instructions for which that is sound.
    pub skip_divisions: bool,
}

/// `[execute]`: on which threads models run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Execute {
    /// Runs that are expected to take no longer run on the I/O thread that read the request. Default 200 µs: about ten times the cost of
    /// handing a run to a worker, and short enough for the thread's other connections. With 0 every run is handed over.
    pub inline_below: Duration,
    /// The most requests of one version that wait for a worker; further ones are answered with 503. Default 1024: a longer queue would
    /// pass the deadlines.
    pub queue: usize,
    /// The longest expected wait for a worker of a request of interactive priority, or eight times its own expected run where that is more;
    /// with a longer one it is answered with 503. Default 1 s: many callers set no deadline and would not wait for longer.
    pub max_wait: Duration,
    /// Worker threads, for longer runs. Default 0: one per core of the CPU budget.
    pub workers: usize,
}

/// `[shadows]`: copies of requests, for versions whose answers are only compared.
#[derive(Debug, Clone, PartialEq)]
pub struct Shadows {
    /// Threads that run copies, at the lowest priority. Default 0: one per four cores of the CPU budget, at least one, so that shadows
    /// do not slow down live requests.
    pub threads: usize,
    /// The most copies that wait for one shadow; further ones are dropped and counted. Default 256: enough for a burst, too few for a
    /// backlog.
    pub queue: usize,
    /// The most bytes of tensors that wait for all shadows together. Default 64 MiB.
    pub queue_bytes: u64,
    /// How many pairs of answers with the largest differences are kept, per primary and shadow. Default 20: as many as a person reads.
    pub worst: usize,
    /// The tolerance between a shadow's number and the primary's: `|shadow - primary| <= atol + rtol * |primary|`. `model.toml` overrides
    /// it. Default 1e-3 and 1e-5: other engines and orders of summation differ by less, other weights by more.
    pub rtol: f64,
    pub atol: f64,
}

/// `[data]`: the data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Data {
    /// Default `data`, relative to the directory the server is started in. Only one server may use it at a time.
    pub dir: PathBuf,
    /// Whether the group of new files may read them. Default false: they hold what callers sent, which may be personal.
    pub group_readable: bool,
}

/// `[prediction_log]`: what is recorded of predictions. The fields of the rooms' types document the keys and their defaults.
#[derive(Debug, Clone, PartialEq)]
pub struct PredictionLog {
    /// What is recorded, for models whose `model.toml` does not say: `enabled`, `sample_rate`, `hash_route_key`, `max_record_bytes`.
    pub choice: Choice,
    /// How it is recorded. `data`, `shards` and `cores` are not keys of this section; the server sets them at start.
    pub log: record::Config,
    /// The live figures: `quality_rows`, `quality_window`, `quality_bytes`, `quality_history`, `quality_history_bytes`.
    pub quality: quality::Config,
    /// From one sample of a serving version that is run again to the next; zero: never. Default an hour.
    pub reproduce_every: Duration,
    /// Where sealed files are uploaded to: `upload`, and the keys that begin with `upload_`.
    pub upload: upload::Config,
}

/// `[metrics]`: what `/metrics` shows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Metrics {
    /// Triton's names too. Default false: each counter would be there twice.
    pub triton_names: bool,
}

impl Metrics {
    pub(super) fn read(t: &mut Table) -> Metrics {
        Metrics { triton_names: t.bool("triton_names").unwrap_or_default() }
    }
}

/// `[serving]`: how models are called.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Serving {
    /// The model of `/invocations` and `/ping`, whose paths name none. Default none: they are answered with 404.
    pub default_model: Option<ModelName>,
}

impl Serving {
    pub(super) fn read(t: &mut Table) -> Serving {
        let right = "the name of a model, such as \"fraud\": a letter or digit, then up to 127 letters, digits, '.', '_' or '-'";
        Serving { default_model: t.custom("default_model", right, |value| value.as_str()?.parse().ok()) }
    }
}

/// `[log]`: the server's log on standard error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// Default `human`, for a terminal; `json` for collectors.
    pub format: LogFormat,
    /// A `tracing` filter. Default `info`: events that operators act on, and no line per request. `RUST_LOG` overrides it.
    pub filter: String,
}

// === impl Server ===

impl Default for Server {
    fn default() -> Server {
        Server {
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 8080),
            max_in_flight: 4096,
            max_unfinished: 4096,
            max_unfinished_per_peer: 0,
            max_connections: 10_000,
            max_streams: 100,
            max_body: 64 * MIB,
            max_answer: 256 * MIB,
            memory: 0,
            max_headers: 64 * KIB,
            header_timeout: 10 * SECOND,
            body_timeout: 30 * SECOND,
            idle_timeout: 10 * MINUTE,
            write_timeout: 30 * SECOND,
            request_timeout: 10 * SECOND,
            max_request_timeout: 5 * MINUTE,
            shutdown_grace: 20 * SECOND,
            shutdown_announce: Duration::ZERO,
            supervise: true,
            crash_inputs: 0,
            require_token: false,
            version_headers: true,
            version_in_body: true,
            io_threads: 0,
            tls: None,
        }
    }
}

impl Server {
    pub(super) fn read(t: &mut Table) -> Server {
        let d = Server::default();
        let server = Server {
            listen: t.socket_addr("listen").unwrap_or(d.listen),
            max_in_flight: t.integer("max_in_flight", 1..=1_000_000).unwrap_or(d.max_in_flight),
            max_unfinished: t.integer("max_unfinished", 1..=1_000_000).unwrap_or(d.max_unfinished),
            max_unfinished_per_peer: t
                .integer("max_unfinished_per_peer", 0..=1_000_000)
                .unwrap_or(d.max_unfinished_per_peer),
            max_connections: t.integer("max_connections", 1..=1_000_000).unwrap_or(d.max_connections),
            max_streams: t.integer("max_streams", 1..=10_000).unwrap_or(d.max_streams),
            max_body: t.bytes("max_body", KIB..=16 * GIB).unwrap_or(d.max_body),
            max_answer: t.bytes("max_answer", KIB..=64 * GIB).unwrap_or(d.max_answer),
            memory: t.bytes("memory", 0..=u64::MAX).unwrap_or(d.memory),
            // hyper needs at least 8 KiB.
            max_headers: t.bytes("max_headers", 8 * KIB..=16 * MIB).unwrap_or(d.max_headers),
            header_timeout: t.duration("header_timeout", 100 * MS..=10 * MINUTE).unwrap_or(d.header_timeout),
            body_timeout: t.duration("body_timeout", 100 * MS..=HOUR).unwrap_or(d.body_timeout),
            idle_timeout: t.duration("idle_timeout", SECOND..=24 * HOUR).unwrap_or(d.idle_timeout),
            write_timeout: t.duration("write_timeout", 100 * MS..=HOUR).unwrap_or(d.write_timeout),
            request_timeout: t.duration("request_timeout", MS..=HOUR).unwrap_or(d.request_timeout),
            max_request_timeout: t.duration("max_request_timeout", MS..=HOUR).unwrap_or(d.max_request_timeout),
            shutdown_grace: t.duration("shutdown_grace", Duration::ZERO..=HOUR).unwrap_or(d.shutdown_grace),
            shutdown_announce: t.duration("shutdown_announce", Duration::ZERO..=HOUR).unwrap_or(d.shutdown_announce),
            supervise: t.bool("supervise").unwrap_or(d.supervise),
            crash_inputs: t.bytes("crash_inputs", 0..=256 * MIB).unwrap_or(d.crash_inputs),
            require_token: t.bool("require_token").unwrap_or(d.require_token),
            version_headers: t.bool("version_headers").unwrap_or(d.version_headers),
            version_in_body: t.bool("version_in_body").unwrap_or(d.version_in_body),
            io_threads: t.integer("io_threads", 0..=1024).unwrap_or(d.io_threads),
            tls: read_tls(t.section("tls")),
        };
        if server.request_timeout > server.max_request_timeout {
            let most = crate::settings::show_duration(server.max_request_timeout);
            t.complain("request_timeout", format!("at most server.max_request_timeout, which is {most}"));
        }
        if server.shutdown_announce > server.shutdown_grace {
            let most = crate::settings::show_duration(server.shutdown_grace);
            t.complain("shutdown_announce", format!("at most server.shutdown_grace, which is {most}"));
        }
        server
    }

    /// How many requests with an incomplete body may come from one peer.
    #[must_use]
    pub fn unfinished_per_peer(&self) -> usize {
        match self.max_unfinished_per_peer {
            0 => (self.max_unfinished / 2).max(1),
            limit => limit,
        }
    }

    /// The time from the start of a stop until connections without a request are closed.
    #[must_use]
    pub fn announce_for(&self) -> Duration {
        if self.shutdown_announce.is_zero() { self.shutdown_grace / 2 } else { self.shutdown_announce }
    }

    /// The memory for requests in bytes, for a process that may use `memory` bytes.
    #[must_use]
    pub fn memory_of(&self, memory: u64) -> usize {
        if self.memory == 0 { Budget::default_of(memory) } else { usize::try_from(self.memory).unwrap_or(usize::MAX) }
    }
}

/// Reads `[server.tls]` or `[admin.tls]`.
fn read_tls(t: &mut Table) -> Option<tls::Config> {
    let (certificate, key, client_ca) = (t.path("certificate"), t.path("key"), t.path("client_ca"));
    let choices = [("required", ClientAuth::Required), ("optional", ClientAuth::Optional)];
    let client_auth = t.one_of("client_auth", &choices).unwrap_or_default();
    match (certificate, key) {
        (Some(certificate), Some(key)) => Some(tls::Config { certificate, key, client_ca, client_auth }),
        (Some(_), None) => {
            t.complain("key", "the file with the private key of the certificate (PEM)");
            None
        }
        (None, Some(_)) => {
            t.complain("certificate", "the file with the certificate of the key (PEM)");
            None
        }
        (None, None) => {
            if client_ca.is_some() {
                t.complain("certificate", "the certificate of the server too, because client_ca is set");
            }
            None
        }
    }
}

// === impl Admin ===

impl Default for Admin {
    fn default() -> Admin {
        Admin {
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8081),
            require_token: false,
            first_token: false,
            allowed_hosts: Vec::new(),
            tls: None,
        }
    }
}

impl Admin {
    pub(super) fn read(t: &mut Table) -> Admin {
        let admin = Admin {
            listen: t.socket_addr("listen").unwrap_or(Admin::default().listen),
            require_token: t.bool("require_token").unwrap_or_default(),
            first_token: t.bool("first_token").unwrap_or_default(),
            allowed_hosts: t.string_list("allowed_hosts").unwrap_or_default(),
            tls: read_tls(t.section("tls")),
        };
        let is_host_name = |host: &String| {
            let is_allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            !host.is_empty() && host.chars().all(is_allowed)
        };
        if !admin.allowed_hosts.iter().all(is_host_name) {
            t.complain("allowed_hosts", "host names without scheme and port, such as [\"sluicegate.internal\"]");
        }
        admin
    }

    /// Whether only programs on this machine can connect.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        self.listen.ip().is_loopback()
    }

    /// Whether every request needs credentials.
    #[must_use]
    pub fn needs_credentials(&self) -> bool {
        self.require_token || !self.is_loopback()
    }
}

// === impl Approval ===

impl Approval {
    pub(super) fn read(t: &mut Table) -> Approval {
        Approval { required: t.bool("required").unwrap_or_default() }
    }
}

// === impl Models ===

impl Default for Models {
    fn default() -> Models {
        Models {
            dir: PathBuf::from("models"),
            settle: 700 * MS,
            rescan: 5 * SECOND,
            memory_budget: 0,
            load_threads: 1,
            time_limits: TimeLimits { load: MINUTE, verify: MINUTE, warm: MINUTE },
            drain_timeout: 30 * SECOND,
            keep_warm: 10 * MINUTE,
            crash_limit: CrashLimit { crashes: 3, within: 10 * MINUTE },
            policy: Policy::default(),
            trusted_keys: TrustedKeys::default(),
            trials: true,
            sources: mirror::Config::default(),
            mlflow: mlflow::Config::default(),
        }
    }
}

impl Models {
    pub(super) fn read(t: &mut Table) -> Models {
        let d = Models::default();
        let policies = [("keep_serving", Policy::KeepServing), ("make_room", Policy::MakeRoom)];
        Models {
            dir: t.path("dir").unwrap_or(d.dir),
            settle: t.duration("settle", Duration::ZERO..=10 * MINUTE).unwrap_or(d.settle),
            rescan: t.duration("rescan", 100 * MS..=24 * HOUR).unwrap_or(d.rescan),
            memory_budget: t.bytes("memory_budget", 0..=u64::MAX).unwrap_or(d.memory_budget),
            load_threads: t.integer("load_threads", 1..=64).unwrap_or(d.load_threads),
            time_limits: TimeLimits {
                load: t.duration("load_timeout", SECOND..=24 * HOUR).unwrap_or(d.time_limits.load),
                verify: t.duration("verify_timeout", SECOND..=24 * HOUR).unwrap_or(d.time_limits.verify),
                warm: t.duration("warm_timeout", SECOND..=24 * HOUR).unwrap_or(d.time_limits.warm),
            },
            drain_timeout: t.duration("drain_timeout", Duration::ZERO..=24 * HOUR).unwrap_or(d.drain_timeout),
            keep_warm: t.duration("keep_warm", Duration::ZERO..=30 * 24 * HOUR).unwrap_or(d.keep_warm),
            crash_limit: CrashLimit {
                crashes: t.integer("crash_limit", 0..=100).unwrap_or(d.crash_limit.crashes),
                within: t.duration("crash_window", SECOND..=30 * 24 * HOUR).unwrap_or(d.crash_limit.within),
            },
            policy: t.one_of("policy", &policies).unwrap_or(d.policy),
            trusted_keys: t
                .custom(
                    "trusted_keys",
                    "up to 32 public keys with names (Ed25519, as `sluicegate keygen` prints them, or P-256 or P-384), such as [\"ci=MCowBQYDK2VwAyEA…\"]",
                    |value| {
                        let texts: Option<Vec<String>> =
                            value.as_list()?.iter().map(|item| item.as_str().map(str::to_owned)).collect();
                        TrustedKeys::parse(&texts?)
                    },
                )
                .unwrap_or_default(),
            trials: t.bool("trials").unwrap_or(d.trials),
            sources: super::sources_section::read(t.section("sources")),
            mlflow: mlflow_section::read(t.section("mlflow")),
        }
    }

    /// The budget in bytes, for a process that may use `memory` bytes.
    #[must_use]
    pub fn memory_budget_of(&self, memory: u64) -> u64 {
        if self.memory_budget == 0 { memory / 5 * 4 } else { self.memory_budget }
    }
}

// === impl Engines ===

impl Default for Engines {
    fn default() -> Engines {
        Engines { onnxruntime: None, custom_ops_dir: None, skip_divisions: true }
    }
}

impl Engines {
    pub(super) fn read(t: &mut Table) -> Engines {
        let d = Engines::default();
        Engines {
            onnxruntime: t.path("onnxruntime"),
            custom_ops_dir: t.path("custom_ops_dir"),
            skip_divisions: t.bool("skip_divisions").unwrap_or(d.skip_divisions),
        }
    }
}

// === impl Execute ===

impl Default for Execute {
    fn default() -> Execute {
        Execute { inline_below: Duration::from_micros(200), queue: 1024, max_wait: SECOND, workers: 0 }
    }
}

impl Execute {
    pub(super) fn read(t: &mut Table) -> Execute {
        let d = Execute::default();
        Execute {
            inline_below: t.duration("inline_below", Duration::ZERO..=SECOND).unwrap_or(d.inline_below),
            queue: t.integer("queue", 1..=1_000_000).unwrap_or(d.queue),
            max_wait: t.duration("max_wait", MS..=HOUR).unwrap_or(d.max_wait),
            workers: t.integer("workers", 0..=1024).unwrap_or(d.workers),
        }
    }
}

// === impl Shadows ===

impl Default for Shadows {
    fn default() -> Shadows {
        Shadows { threads: 0, queue: 256, queue_bytes: 64 * MIB, worst: 20, rtol: 1e-3, atol: 1e-5 }
    }
}

impl Shadows {
    pub(super) fn read(t: &mut Table) -> Shadows {
        let d = Shadows::default();
        Shadows {
            threads: t.integer("threads", 0..=1024).unwrap_or(d.threads),
            queue: t.integer("queue", 1..=1_000_000).unwrap_or(d.queue),
            queue_bytes: t.bytes("queue_bytes", KIB..=64 * GIB).unwrap_or(d.queue_bytes),
            worst: t.integer("worst", 0..=1000).unwrap_or(d.worst),
            rtol: t.float("rtol", 0.0..=1.0).unwrap_or(d.rtol),
            atol: t.float("atol", 0.0..=f64::MAX).unwrap_or(d.atol),
        }
    }

    /// How many threads to start on a budget of `cores`.
    #[must_use]
    pub fn threads_on(&self, cores: usize) -> usize {
        if self.threads == 0 { (cores / 4).max(1) } else { self.threads }
    }
}

/// `[audit]`: where the hashes of the audit trail are sent. The fields of [`heads::Config`] document the keys and their defaults.
pub(super) fn audit(t: &mut Table) -> heads::Config {
    let d = heads::Config::default();
    let audit = heads::Config {
        interval: t.duration("head_interval", SECOND..=24 * HOUR).unwrap_or(d.interval),
        file: t.path("heads_file"),
        webhook: t.string("webhook"),
        webhook_ca: t.path("webhook_ca"),
        webhook_timeout: t.duration("webhook_timeout", 100 * MS..=MINUTE).unwrap_or(d.webhook_timeout),
    };
    let scheme_of = |url: &String| {
        let uri: ::http::Uri = url.parse().ok()?;
        let scheme = uri.scheme_str().filter(|scheme| ["http", "https"].contains(scheme))?.to_owned();
        uri.host().is_some_and(|host| !host.is_empty()).then_some(scheme)
    };
    let scheme = audit.webhook.as_ref().map(scheme_of);
    if scheme == Some(None) {
        let right = "an address that begins with http:// or https://, such as \"https://audit.internal:9000/heads\"";
        t.complain("webhook", right);
    } else if audit.webhook_ca.is_some() && scheme.flatten().as_deref() != Some("https") {
        t.complain("webhook", "an address that begins with https://, because webhook_ca is set");
    }
    audit
}

/// `[tracing]`: spans of requests for an OpenTelemetry collector. The fields of [`traces::Config`] document the keys and their defaults.
pub(super) fn tracing(t: &mut Table) -> traces::Config {
    let d = traces::Config::default();
    let right =
        "an address that begins with http:// or https://, without a user name, such as \"http://collector:4317\"";
    let protocols =
        [("auto", traces::Protocol::Auto), ("grpc", traces::Protocol::Grpc), ("http", traces::Protocol::Http)];
    let config = traces::Config {
        endpoint: t.custom("otlp_endpoint", right, |value| {
            value.as_str().filter(|text| traces::Config::is_endpoint(text)).map(str::to_owned)
        }),
        sample_rate: t.float("sample_rate", 0.0..=1.0).unwrap_or(d.sample_rate),
        protocol: t.one_of("protocol", &protocols).unwrap_or(d.protocol),
        ca: t.path("ca"),
    };
    let is_secure = |endpoint: &String| endpoint.starts_with("https://");
    if config.ca.is_some() && config.endpoint.as_ref().is_some_and(|endpoint| !is_secure(endpoint)) {
        t.complain("otlp_endpoint", "an address that begins with https://, because ca is set");
    }
    config
}

/// `[breaker]`: when a version whose engine fails is closed to requests. The fields of [`BreakerConfig`] document the keys and their defaults.
pub(super) fn breaker(t: &mut Table) -> BreakerConfig {
    let d = BreakerConfig::default();
    BreakerConfig {
        failures: t.integer("failures", 0..=1_000_000).unwrap_or(d.failures),
        share: t.float("share", 0.01..=1.0).unwrap_or(d.share),
        window: t.duration("window", 100 * MS..=HOUR).unwrap_or(d.window),
        pause: t.duration("pause", 10 * MS..=HOUR).unwrap_or(d.pause),
        probes: t.integer("probes", 1..=1000).unwrap_or(d.probes),
    }
}

// === impl PredictionLog ===

impl Default for PredictionLog {
    fn default() -> PredictionLog {
        PredictionLog {
            choice: Choice::default(),
            log: record::Config::of(PathBuf::new()),
            quality: quality::Config::default(),
            reproduce_every: HOUR,
            upload: upload::Config::default(),
        }
    }
}

impl PredictionLog {
    pub(super) fn read(t: &mut Table) -> PredictionLog {
        let PredictionLog { choice, log, quality, reproduce_every, .. } = PredictionLog::default();
        let acknowledge = [("memory", Acknowledge::Memory), ("disk", Acknowledge::Disk)];
        let on_failure = [("refuse", OnFailure::Refuse), ("serve", OnFailure::Serve)];
        let bytes = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        PredictionLog {
            choice: Choice {
                enabled: t.bool("enabled").unwrap_or(choice.enabled),
                sample_rate: t.float("sample_rate", 0.0..=1.0).unwrap_or(choice.sample_rate),
                hash_route_key: t.bool("hash_route_key").unwrap_or(choice.hash_route_key),
                // A column of larger records would not fit into Arrow's 32-bit offsets.
                max_record_bytes: t.bytes("max_record_bytes", 0..=256 * MIB).map_or(choice.max_record_bytes, bytes),
                ..choice
            },
            log: record::Config {
                acknowledge: t.one_of("acknowledge", &acknowledge).unwrap_or(log.acknowledge),
                on_failure: t.one_of("on_failure", &on_failure).unwrap_or(log.on_failure),
                flush_interval: t.duration("flush_interval", 2 * MS..=MINUTE).unwrap_or(log.flush_interval),
                queue_bytes: t.bytes("queue_bytes", 64 * KIB..=64 * GIB).map_or(log.queue_bytes, bytes),
                seal_cpu_share: t.float("seal_cpu_share", 0.001..=1.0).unwrap_or(log.seal_cpu_share),
                segment_bytes: t.bytes("segment_bytes", 64 * KIB..=GIB).unwrap_or(log.segment_bytes),
                seal_after: t.duration("seal_after", 100 * MS..=24 * HOUR).unwrap_or(log.seal_after),
                keep_for: t
                    .duration("keep_for", Duration::ZERO..=100 * 365 * 24 * HOUR)
                    .map_or(log.keep_for, |keep| Some(keep).filter(|keep| !keep.is_zero())),
                disk_budget: t.bytes("disk_budget", MIB..=u64::MAX).unwrap_or(log.disk_budget),
                hash_key_file: t.path("hash_key_file").or(log.hash_key_file),
                ..log
            },
            quality: quality::Config {
                window: t.duration("quality_window", SECOND..=30 * 24 * HOUR).unwrap_or(quality.window),
                rows: t.integer("quality_rows", 1..=1_000_000_000).unwrap_or(quality.rows),
                bytes: t.bytes("quality_bytes", MIB..=64 * GIB).map_or(quality.bytes, bytes),
                history: t.duration("quality_history", HOUR..=400 * 24 * HOUR).unwrap_or(quality.history),
                history_bytes: t.bytes("quality_history_bytes", MIB..=256 * GIB).map_or(quality.history_bytes, bytes),
            },
            reproduce_every: t.duration("reproduce_every", Duration::ZERO..=30 * 24 * HOUR).unwrap_or(reproduce_every),
            upload: upload_section::read(t),
        }
    }
}

// === impl Data ===

impl Default for Data {
    fn default() -> Data {
        Data { dir: PathBuf::from("data"), group_readable: false }
    }
}

impl Data {
    pub(super) fn read(t: &mut Table) -> Data {
        let d = Data::default();
        Data {
            dir: t.path("dir").unwrap_or(d.dir),
            group_readable: t.bool("group_readable").unwrap_or(d.group_readable),
        }
    }
}

// === impl Log ===

impl Default for Log {
    fn default() -> Log {
        Log { format: LogFormat::Human, filter: "info".to_owned() }
    }
}

impl Log {
    pub(super) fn read(t: &mut Table) -> Log {
        let d = Log::default();
        let formats = [("human", LogFormat::Human), ("json", LogFormat::Json)];
        let right = "a log filter, such as \"info\" or \"warn,sluicegate=debug\"";
        let filter = t.custom("filter", right, |value| {
            let is_filter = |text: &&str| tracing_subscriber::EnvFilter::try_new(text).is_ok();
            value.as_str().filter(is_filter).map(str::to_owned)
        });
        Log { format: t.one_of("format", &formats).unwrap_or(d.format), filter: filter.unwrap_or(d.filter) }
    }
}
