//! The sections of the configuration, each key with its unit, its default and the reason for it.

use crate::settings::Table;
use crate::telemetry::LogFormat;
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

/// `[server]`: the public door.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Default `0.0.0.0:8080`: callers are on other machines. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Predict requests at once; one more is answered 429. Default 4096: far more than any one machine computes at once, and few
    /// enough that their bodies fit into memory.
    pub max_in_flight: usize,
    /// Open connections; one more waits in the system's queue. Default 10000: below the usual limit on open files.
    pub max_connections: usize,
    /// Bytes of a request's body, after inflating; more is answered 413. Default 64 MiB: a batch of hundreds of pictures.
    pub max_body: u64,
    /// Bytes of a request's headers; more is answered 431. Default 64 KiB: several times what proxies let through.
    pub max_headers: u64,
    /// For a request's headers to arrive, from the first byte. Default 10 s: seconds on a bad network, not the minutes of an attack.
    pub header_timeout: Duration,
    /// For a request's body to arrive; more is answered 408. Default 30 s: 64 MiB at 2 MiB/s.
    pub body_timeout: Duration,
    /// For a connection with no request on it to be closed. Default 10 min: longer than load balancers keep theirs, so that they
    /// close first and no request meets a closing connection.
    pub idle_timeout: Duration,
    /// A request's deadline where the caller names none; past it, 504. Default 10 s: hundreds of times a usual inference.
    pub request_timeout: Duration,
    /// The longest deadline a caller may ask for with `x-request-timeout-ms`. Default 5 min: the slowest models there are.
    pub max_request_timeout: Duration,
    /// From SIGTERM to exit. Default 20 s: below the 30 s after which Kubernetes kills.
    pub shutdown_grace: Duration,
    /// Threads that read requests and answer them. Default 0: one per core of the CPU budget.
    pub io_threads: usize,
}

/// `[admin]`: the operators' door.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    /// Default `127.0.0.1:8081`. Loopback only, as there are no tokens yet: whoever reaches this port decides what serves.
    pub listen: SocketAddr,
    /// Host names under which operators reach the admin plane, without a port. Default none: `localhost` and IP addresses are always
    /// allowed. Other names are refused, because a web page could use one of its own to reach the plane (DNS rebinding).
    pub allowed_hosts: Vec<String>,
}

/// `[models]`: where versions come from and how they come and go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Models {
    /// Default `models`, relative to the directory the server is started in.
    pub dir: PathBuf,
    /// How long a version's files must be still before they are read. Default 700 ms: slow copies pause for less, and a version
    /// is taken up within 2 s of its last write.
    pub settle: Duration,
    /// Between looks at the whole directory. Default 5 s: network file systems do not tell when files change, and a look costs
    /// microseconds per file.
    pub rescan: Duration,
    /// Bytes of model files that may be loaded together. Default 0: four fifths of the memory this process may use; the rest is for
    /// requests, and for what engines need beside the weights.
    pub memory_budget: u64,
    /// Versions prepared at once. Default 1: loading takes cores from serving, and a second loader would take twice as many.
    pub load_threads: usize,
    /// For the requests on a version that was taken out to end. Default 30 s: longer than any request's default deadline.
    pub drain_timeout: Duration,
    /// How long a version that `versions` in `model.toml` would drop stays ready after a traffic document named it last, for models
    /// that do not say. Default 10 min: what is wrong with a new version mostly shows within minutes, and a rollback is then at once.
    pub keep_warm: Duration,
    pub policy: Policy,
}

/// What happens to the serving version while another is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// It serves until the other is ready: nobody notices, and both are in memory for a while.
    #[default]
    KeepServing,
    /// What is not named by a traffic document goes first, for models that fill the machine.
    MakeRoom,
}

/// `[engines]`: what runs models.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Engines {
    /// ONNX Runtime's library. Default: looked for (`ORT_DYLIB_PATH`, then `.ort/`, then the system's).
    pub onnxruntime: Option<PathBuf>,
}

/// `[execute]`: where and when runs happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Execute {
    /// Runs expected to take no longer happen at once on the thread that read the request. Default 200 µs: some ten times what a
    /// hand-off costs, and short enough for the thread's other connections. 0 hands every run over.
    pub inline_below: Duration,
    /// Requests of one version that may wait for a worker; one more is answered 503. Default 1024: what waits longer has passed its deadline.
    pub queue: usize,
    /// Threads for runs that are not done at once. Default 0: one per core of the CPU budget.
    pub workers: usize,
}

/// `[shadows]`: copies of requests, for versions that answer nobody.
#[derive(Debug, Clone, PartialEq)]
pub struct Shadows {
    /// Threads that run copies, at the lowest priority. Default 0: one per four cores of the CPU budget, and at least one, as what
    /// is measured for tomorrow should not heat the machine that answers today.
    pub threads: usize,
    /// Copies that may wait for one shadow; one more is dropped and counted. Default 256: a burst, and not a backlog.
    pub queue: usize,
    /// Bytes of tensors that may wait for all shadows together. Default 64 MiB.
    pub queue_bytes: u64,
    /// The worst pairs of answers that are kept, of each primary and shadow. Default 20: what a person reads.
    pub worst: usize,
    /// How far a shadow's number may be from the primary's, `|shadow - primary| <= atol + rtol * |primary|`, where the model's
    /// `model.toml` does not say. Default 1e-3 and 1e-5: other engines and orders of summation differ by less, other weights by more.
    pub rtol: f64,
    pub atol: f64,
}

/// `[data]`: what survives a restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Data {
    /// Default `data`, relative to the directory the server is started in. One server owns it at a time.
    pub dir: PathBuf,
}

/// `[prediction_log]`: what is remembered of predictions.
#[derive(Debug, Clone, PartialEq)]
pub struct PredictionLog {
    /// Default true. `[prediction_log] enabled` in a `model.toml` wins for that model, as do the next three.
    pub enabled: bool,
    /// The share of requests that is kept, by a hash of the request id. Default 1.
    pub sample_rate: f64,
    /// Whether what a split goes by is replaced by its keyed hash. Default true: it mostly names a person.
    pub hash_route_key: bool,
    /// Bytes of a record's tensors; the largest are left out beyond. Default 1 MiB: a picture's features, and not the picture.
    pub max_record_bytes: u64,
    /// When an answer may leave: at once (default), or when its record is on the disk.
    pub acknowledge: Acknowledge,
    /// What becomes of an answer whose record cannot be written, where it waits for that: 503 (default), or it leaves all the same.
    pub on_failure: OnFailure,
    /// The most that `kill -9` may cost where answers do not wait. Default 200 ms.
    pub flush_interval: Duration,
    /// Bytes of records that may wait to be written; the newest are dropped and counted beyond. Default 64 MiB: some seconds at full
    /// speed.
    pub queue_bytes: u64,
    /// A segment is sealed into Parquet when it has so many bytes, default 64 MiB, as it is held in memory for that,
    pub segment_bytes: u64,
    /// or when it is so old. Default 10 min.
    pub seal_after: Duration,
    /// Sealed files older than this are deleted. Default 0: they are kept as long as they fit.
    pub keep_for: Duration,
    /// Bytes the log may take on the disk; the oldest sealed files are deleted and counted beyond. Default 10 GiB.
    pub disk_budget: u64,
    /// The secret of keyed hashes, where the environment has no `SLUICEGATE_HASH_KEY`. Default: one made at the first start, in the data
    /// directory.
    pub hash_key_file: Option<PathBuf>,
    /// How far back feedback is joined live. Default 1 h.
    pub quality_window: Duration,
    /// Predicted rows that may wait for it, over all models; some 200 bytes each. Default 250 000.
    pub quality_rows: usize,
}

/// When an answer may leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Acknowledge {
    #[default]
    Memory,
    Disk,
}

/// What becomes of answers that cannot be recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnFailure {
    #[default]
    Refuse,
    Serve,
}

/// `[log]`: what the server says about itself, to standard error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// Default `human`, for a terminal; `json` for collectors.
    pub format: LogFormat,
    /// A `tracing` filter. Default `info`: what operators act on, and no line per request. `RUST_LOG` wins over it.
    pub filter: String,
}

// === impl Server ===

impl Default for Server {
    fn default() -> Server {
        Server {
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 8080),
            max_in_flight: 4096,
            max_connections: 10_000,
            max_body: 64 * MIB,
            max_headers: 64 * KIB,
            header_timeout: 10 * SECOND,
            body_timeout: 30 * SECOND,
            idle_timeout: 10 * MINUTE,
            request_timeout: 10 * SECOND,
            max_request_timeout: 5 * MINUTE,
            shutdown_grace: 20 * SECOND,
            io_threads: 0,
        }
    }
}

impl Server {
    pub fn read(t: &mut Table) -> Server {
        let d = Server::default();
        let server = Server {
            listen: t.socket_addr("listen").unwrap_or(d.listen),
            max_in_flight: t.integer("max_in_flight", 1..=1_000_000).unwrap_or(d.max_in_flight),
            max_connections: t.integer("max_connections", 1..=1_000_000).unwrap_or(d.max_connections),
            max_body: t.bytes("max_body", KIB..=16 * GIB).unwrap_or(d.max_body),
            // hyper refuses to read heads into less than 8 KiB.
            max_headers: t.bytes("max_headers", 8 * KIB..=16 * MIB).unwrap_or(d.max_headers),
            header_timeout: t.duration("header_timeout", 100 * MS..=10 * MINUTE).unwrap_or(d.header_timeout),
            body_timeout: t.duration("body_timeout", 100 * MS..=HOUR).unwrap_or(d.body_timeout),
            idle_timeout: t.duration("idle_timeout", SECOND..=24 * HOUR).unwrap_or(d.idle_timeout),
            request_timeout: t.duration("request_timeout", MS..=HOUR).unwrap_or(d.request_timeout),
            max_request_timeout: t.duration("max_request_timeout", MS..=HOUR).unwrap_or(d.max_request_timeout),
            shutdown_grace: t.duration("shutdown_grace", Duration::ZERO..=HOUR).unwrap_or(d.shutdown_grace),
            io_threads: t.integer("io_threads", 0..=1024).unwrap_or(d.io_threads),
        };
        if server.request_timeout > server.max_request_timeout {
            let most = crate::settings::show_duration(server.max_request_timeout);
            t.complain("request_timeout", format!("at most server.max_request_timeout, which is {most}"));
        }
        server
    }

    /// How many I/O threads to start on a budget of `cores`.
    #[must_use]
    pub fn io_threads_on(&self, cores: usize) -> usize {
        if self.io_threads == 0 { cores } else { self.io_threads }
    }
}

// === impl Admin ===

impl Default for Admin {
    fn default() -> Admin {
        Admin { listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8081), allowed_hosts: Vec::new() }
    }
}

impl Admin {
    pub fn read(t: &mut Table) -> Admin {
        let admin = Admin {
            listen: t.socket_addr("listen").unwrap_or(Admin::default().listen),
            allowed_hosts: t.string_list("allowed_hosts").unwrap_or_default(),
        };
        let is_host_name = |host: &String| {
            let is_allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            !host.is_empty() && host.chars().all(is_allowed)
        };
        if !admin.allowed_hosts.iter().all(is_host_name) {
            t.complain("allowed_hosts", "host names without scheme and port, such as [\"sluicegate.internal\"]");
        }
        if !admin.listen.ip().is_loopback() {
            let right = "a loopback address, such as \"127.0.0.1:8081\": there are no tokens yet, so whoever reaches the \
                         admin plane may change what serves";
            t.complain("listen", right);
        }
        admin
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
            drain_timeout: 30 * SECOND,
            keep_warm: 10 * MINUTE,
            policy: Policy::KeepServing,
        }
    }
}

impl Models {
    pub fn read(t: &mut Table) -> Models {
        let d = Models::default();
        let policies = [("keep_serving", Policy::KeepServing), ("make_room", Policy::MakeRoom)];
        Models {
            dir: t.path("dir").unwrap_or(d.dir),
            settle: t.duration("settle", Duration::ZERO..=10 * MINUTE).unwrap_or(d.settle),
            rescan: t.duration("rescan", 100 * MS..=24 * HOUR).unwrap_or(d.rescan),
            memory_budget: t.bytes("memory_budget", 0..=u64::MAX).unwrap_or(d.memory_budget),
            load_threads: t.integer("load_threads", 1..=64).unwrap_or(d.load_threads),
            drain_timeout: t.duration("drain_timeout", Duration::ZERO..=24 * HOUR).unwrap_or(d.drain_timeout),
            keep_warm: t.duration("keep_warm", Duration::ZERO..=30 * 24 * HOUR).unwrap_or(d.keep_warm),
            policy: t.one_of("policy", &policies).unwrap_or(d.policy),
        }
    }

    /// The budget in bytes, for a process that may use `memory` bytes.
    #[must_use]
    pub fn memory_budget_of(&self, memory: u64) -> u64 {
        if self.memory_budget == 0 { memory / 5 * 4 } else { self.memory_budget }
    }
}

// === impl Engines ===

impl Engines {
    pub fn read(t: &mut Table) -> Engines {
        Engines { onnxruntime: t.path("onnxruntime") }
    }
}

// === impl Execute ===

impl Default for Execute {
    fn default() -> Execute {
        Execute { inline_below: Duration::from_micros(200), queue: 1024, workers: 0 }
    }
}

impl Execute {
    pub fn read(t: &mut Table) -> Execute {
        let d = Execute::default();
        Execute {
            inline_below: t.duration("inline_below", Duration::ZERO..=SECOND).unwrap_or(d.inline_below),
            queue: t.integer("queue", 1..=1_000_000).unwrap_or(d.queue),
            workers: t.integer("workers", 0..=1024).unwrap_or(d.workers),
        }
    }

    /// How many workers to start on a budget of `cores`.
    #[must_use]
    pub fn workers_on(&self, cores: usize) -> usize {
        if self.workers == 0 { cores } else { self.workers }
    }
}

// === impl Shadows ===

impl Default for Shadows {
    fn default() -> Shadows {
        Shadows { threads: 0, queue: 256, queue_bytes: 64 * MIB, worst: 20, rtol: 1e-3, atol: 1e-5 }
    }
}

impl Shadows {
    pub fn read(t: &mut Table) -> Shadows {
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

// === impl PredictionLog ===

impl Default for PredictionLog {
    fn default() -> PredictionLog {
        PredictionLog {
            enabled: true,
            sample_rate: 1.0,
            hash_route_key: true,
            max_record_bytes: MIB,
            acknowledge: Acknowledge::Memory,
            on_failure: OnFailure::Refuse,
            flush_interval: 200 * MS,
            queue_bytes: 64 * MIB,
            segment_bytes: 64 * MIB,
            seal_after: 10 * MINUTE,
            keep_for: Duration::ZERO,
            disk_budget: 10 * GIB,
            hash_key_file: None,
            quality_window: HOUR,
            quality_rows: 250_000,
        }
    }
}

impl PredictionLog {
    pub fn read(t: &mut Table) -> PredictionLog {
        let d = PredictionLog::default();
        let acknowledge = [("memory", Acknowledge::Memory), ("disk", Acknowledge::Disk)];
        let on_failure = [("refuse", OnFailure::Refuse), ("serve", OnFailure::Serve)];
        PredictionLog {
            enabled: t.bool("enabled").unwrap_or(d.enabled),
            sample_rate: t.float("sample_rate", 0.0..=1.0).unwrap_or(d.sample_rate),
            hash_route_key: t.bool("hash_route_key").unwrap_or(d.hash_route_key),
            // Beyond, a column of records would not fit into Arrow's 32-bit offsets.
            max_record_bytes: t.bytes("max_record_bytes", 0..=256 * MIB).unwrap_or(d.max_record_bytes),
            acknowledge: t.one_of("acknowledge", &acknowledge).unwrap_or(d.acknowledge),
            on_failure: t.one_of("on_failure", &on_failure).unwrap_or(d.on_failure),
            flush_interval: t.duration("flush_interval", 2 * MS..=MINUTE).unwrap_or(d.flush_interval),
            queue_bytes: t.bytes("queue_bytes", 64 * KIB..=64 * GIB).unwrap_or(d.queue_bytes),
            segment_bytes: t.bytes("segment_bytes", 64 * KIB..=GIB).unwrap_or(d.segment_bytes),
            seal_after: t.duration("seal_after", 100 * MS..=24 * HOUR).unwrap_or(d.seal_after),
            keep_for: t.duration("keep_for", Duration::ZERO..=100 * 365 * 24 * HOUR).unwrap_or(d.keep_for),
            disk_budget: t.bytes("disk_budget", MIB..=u64::MAX).unwrap_or(d.disk_budget),
            hash_key_file: t.path("hash_key_file"),
            quality_window: t.duration("quality_window", SECOND..=30 * 24 * HOUR).unwrap_or(d.quality_window),
            quality_rows: t.integer("quality_rows", 1..=1_000_000_000).unwrap_or(d.quality_rows),
        }
    }
}

// === impl Data ===

impl Default for Data {
    fn default() -> Data {
        Data { dir: PathBuf::from("data") }
    }
}

impl Data {
    pub fn read(t: &mut Table) -> Data {
        Data { dir: t.path("dir").unwrap_or(Data::default().dir) }
    }
}

// === impl Log ===

impl Default for Log {
    fn default() -> Log {
        Log { format: LogFormat::Human, filter: "info".to_owned() }
    }
}

impl Log {
    pub fn read(t: &mut Table) -> Log {
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
