//! All metrics: name, kind, labels, help and buckets.

/// The kind of a metric, as in `# TYPE` lines and the documentation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Kind {
    Counter,
    Gauge,
    /// With the upper bounds of its buckets.
    Histogram(&'static [f64]),
}

/// One metric family.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    pub labels: &'static [&'static str],
    pub help: &'static str,
}

/// Seconds. From 50 µs, as hardly any request over loopback is faster, to 10 s, the default deadline. With three buckets per decade
/// (1, 2.5, 5), a p99 computed from them is right within a factor of about 1.6.
const REQUEST_SECONDS: &[f64] = &[
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];
/// Seconds. From 2.5 µs, as a small MLP takes 3 µs.
const INFER_SECONDS: &[f64] = &[
    0.000_002_5,
    0.000_005,
    0.000_01,
    0.000_025,
    0.000_05,
    0.000_1,
    0.000_25,
    0.000_5,
    0.001,
    0.002_5,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
];
/// Seconds. A sync takes a third of a millisecond on an idle disk and tens of milliseconds on a busy one.
const LOG_SECONDS: &[f64] =
    &[0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0];
/// Seconds. A load takes from a millisecond (a scikit-learn model) to minutes (gigabytes over a network file system).
const LOAD_SECONDS: &[f64] = &[0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0];

/// Seconds. A change is stored by three servers in some milliseconds; it waits for a version that is loaded for minutes.
const FLEET_SECONDS: &[f64] = &[0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0];

/// Rows. A batch has at most 4096.
const BATCH_ROWS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0];

const ARM: &[&str] = &["model", "version", "arm", "status"];
const VERSION: &[&str] = &["model", "version"];
const QUALITY: &[&str] = &["model", "version", "arm"];
const QUALITY_VALUE: &[&str] = &["model", "version", "arm", "value"];

const fn metric(name: &'static str, kind: Kind, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, kind, labels, help }
}

pub(crate) const SHED: Metric = metric(
    "sluicegate_shed_total",
    Kind::Counter,
    &["reason", "priority"],
    "Requests refused under load, by the limit that refused them (docs/OVERLOAD.md) and their priority",
);
pub(crate) const REQUESTS: Metric = metric(
    "sluicegate_requests_total",
    Kind::Counter,
    ARM,
    "Predict requests that reached a version, by result (ok or the error's code)",
);
pub(crate) const REQUEST_SECONDS_M: Metric = metric(
    "sluicegate_request_duration_seconds",
    Kind::Histogram(REQUEST_SECONDS),
    ARM,
    "Time from the body read to the answer ready",
);
pub(crate) const INFER_SECONDS_M: Metric = metric(
    "sluicegate_inference_duration_seconds",
    Kind::Histogram(INFER_SECONDS),
    VERSION,
    "Time inside the engine, per run",
);
pub(crate) const QUEUE_SECONDS_M: Metric = metric(
    "sluicegate_queue_duration_seconds",
    Kind::Histogram(INFER_SECONDS),
    VERSION,
    "Time a request waited for a worker; requests that ran on an I/O thread did not wait and are not counted",
);
pub(crate) const BATCH_ROWS_M: Metric = metric(
    "sluicegate_batch_rows",
    Kind::Histogram(BATCH_ROWS),
    VERSION,
    "Rows of a run on a worker, or of several requests on an I/O thread: of all requests that ran together, or of the largest part of a split request; runs of one request on an I/O thread are not counted",
);
pub(crate) const NONFINITE: Metric = metric(
    "sluicegate_nonfinite_outputs_total",
    Kind::Counter,
    VERSION,
    "Output elements that were NaN or infinite (answered as null in JSON)",
);
pub(crate) const REPRODUCED: Metric = metric(
    "sluicegate_reproduced_total",
    Kind::Counter,
    &["model", "version", "result"],
    "Logged predictions that the server ran again, by result: equal (bit for bit), close (within rounding, where they had run together with others), different",
);
pub(crate) const STICKY_KEY_MISSING: Metric = metric(
    "sluicegate_sticky_key_missing_total",
    Kind::Counter,
    VERSION,
    "Requests without the key that the split uses; the request id was used instead",
);
pub(crate) const IN_FLIGHT: Metric = metric(
    "sluicegate_in_flight_requests",
    Kind::Gauge,
    VERSION,
    "Requests in flight on this version; while it drains, the requests that it waits for",
);
pub(crate) const LOADED_BYTES: Metric = metric(
    "sluicegate_version_bytes",
    Kind::Gauge,
    VERSION,
    "Bytes of the version's files, as counted against the memory budget",
);
pub(crate) const SHADOW_OFFERED: Metric = metric(
    "sluicegate_shadow_offered_total",
    Kind::Counter,
    VERSION,
    "Copies of requests that were sampled for this shadow, whether they were run or dropped",
);
pub(crate) const SHADOW_COMPARED: Metric = metric(
    "sluicegate_shadow_compared_total",
    Kind::Counter,
    VERSION,
    "Copies that were run and compared with the primary's answer, including failures of either side",
);
pub(crate) const SHADOW_DISAGREED: Metric = metric(
    "sluicegate_shadow_disagreed_total",
    Kind::Counter,
    VERSION,
    "Pairs of answers with an element outside the tolerance, not counting failures",
);
pub(crate) const SHADOW_DROPPED: Metric = metric(
    "sluicegate_shadow_dropped_total",
    Kind::Counter,
    &["model", "version", "reason"],
    "Copies that were not run: queue_full, queue_bytes, busy (requests of callers were waiting for a worker), gone (the version is no longer a shadow), stopping",
);
pub(crate) const LOG_RECORDS: Metric = metric(
    "sluicegate_log_records_total",
    Kind::Counter,
    &[],
    "Prediction records written to the log and synced, one per row or request",
);
pub(crate) const LOG_DROPPED: Metric = metric(
    "sluicegate_log_dropped_total",
    Kind::Counter,
    &["reason"],
    "Prediction records that were dropped: queue_full, disk, too_large, budget, stopping; each is part of a row in gaps/",
);
pub(crate) const LOG_LEFT_OUT: Metric = metric(
    "sluicegate_log_left_out_total",
    Kind::Counter,
    &[],
    "Prediction records left out because the log could not keep up with all; sample_rate of the others accounts for them",
);
pub(crate) const LOG_KEPT_SHARE: Metric = metric(
    "sluicegate_log_kept_share",
    Kind::Gauge,
    &[],
    "Share of the offered prediction records that the log kept lately; 1 while it keeps up",
);
pub(crate) const LOG_QUEUE_BYTES: Metric =
    metric("sluicegate_log_queue_bytes", Kind::Gauge, &[], "Bytes of records that wait to be written");
pub(crate) const LOG_BYTES: Metric = metric(
    "sluicegate_log_bytes",
    Kind::Gauge,
    &["kind"],
    "Bytes of the log on the disk: segments (records that are not sealed yet), and sealed Parquet files; together at most disk_budget",
);
pub(crate) const LOG_SYNC: Metric = metric(
    "sluicegate_log_sync_duration_seconds",
    Kind::Histogram(LOG_SECONDS),
    &[],
    "Time to write and sync the waiting records",
);
pub(crate) const LOG_SEAL: Metric = metric(
    "sluicegate_log_seal_duration_seconds",
    Kind::Histogram(LOAD_SECONDS),
    &[],
    "Time to write the Parquet files of a segment, at low priority",
);
pub(crate) const LOG_FAILING: Metric =
    metric("sluicegate_log_failing", Kind::Gauge, &[], "1 while the log cannot be written, else 0");
pub(crate) const LOG_DELETED: Metric = metric(
    "sluicegate_log_files_deleted_total",
    Kind::Counter,
    &["reason"],
    "Sealed files that were deleted: age (older than keep_for), budget (the oldest, to stay within disk_budget), uploaded (older than upload_keep_local), not_uploaded (disk_budget was full, and they were in no bucket: they are lost)",
);
pub(crate) const UPLOADED_FILES: Metric =
    metric("sluicegate_uploaded_files_total", Kind::Counter, &[], "Sealed files that arrived in the bucket");
pub(crate) const UPLOADED_BYTES: Metric =
    metric("sluicegate_uploaded_bytes_total", Kind::Counter, &[], "Bytes of sealed files that the bucket took");
pub(crate) const UPLOAD_FAILURES: Metric = metric(
    "sluicegate_upload_failures_total",
    Kind::Counter,
    &[],
    "Failed tries to upload a sealed file; it is kept and tried again",
);
pub(crate) const UPLOAD_WAITING_FILES: Metric = metric(
    "sluicegate_upload_waiting_files",
    Kind::Gauge,
    &[],
    "Sealed files that are not in the bucket; absent where nothing is uploaded",
);
pub(crate) const UPLOAD_WAITING_BYTES: Metric =
    metric("sluicegate_upload_waiting_bytes", Kind::Gauge, &[], "Bytes of sealed files that are not in the bucket");
pub(crate) const UPLOAD_WAITING_SECONDS: Metric = metric(
    "sluicegate_upload_waiting_seconds",
    Kind::Gauge,
    &[],
    "How long the sealed file has waited that waits longest for its upload; 0 where none waits",
);
pub(crate) const FEEDBACK: Metric =
    metric("sluicegate_feedback_total", Kind::Counter, &[], "Feedback entries accepted for the log");
pub(crate) const DRIFT_ALARMS: Metric = metric(
    "sluicegate_drift_alarms",
    Kind::Gauge,
    &[],
    "Columns of versions and arms that differ from their reference so that it matters; outputs that are stuck or not finite count too",
);
pub(crate) const DRIFT_SHARE: Metric = metric(
    "sluicegate_drift_counted_share",
    Kind::Gauge,
    &[],
    "The least share of a model's requests that is counted for drift, from 0 to 1; below 1 beyond 100,000 values a second",
);
pub(crate) const QUALITY_LABELLED: Metric = metric(
    "sluicegate_quality_labelled",
    Kind::Gauge,
    QUALITY,
    "Predictions with a label since the start, of those in the live join",
);
pub(crate) const QUALITY_ACCURACY: Metric = metric(
    "sluicegate_quality_accuracy",
    Kind::Gauge,
    QUALITY,
    "Share of labels that the predicted class was equal to, from 0 to 1; absent where labels are not classes",
);
pub(crate) const QUALITY_ERROR: Metric = metric(
    "sluicegate_quality_mean_absolute_error",
    Kind::Gauge,
    QUALITY,
    "Mean absolute difference between labels and predicted numbers; absent where predictions are not numbers",
);
pub(crate) const QUALITY_DELAY: Metric = metric(
    "sluicegate_quality_label_delay_seconds",
    Kind::Gauge,
    QUALITY,
    "Mean time from a prediction to the first feedback about it",
);
pub(crate) const QUALITY_VALUES: Metric = metric(
    "sluicegate_quality_value_count",
    Kind::Gauge,
    QUALITY_VALUE,
    "Predictions with feedback for a business value; at most 32 names of values per version and arm",
);
pub(crate) const QUALITY_VALUE_MEAN: Metric =
    metric("sluicegate_quality_value_mean", Kind::Gauge, QUALITY_VALUE, "Mean of a business value");
pub(crate) const QUALITY_VALUE_VARIANCE: Metric =
    metric("sluicegate_quality_value_variance", Kind::Gauge, QUALITY_VALUE, "Sample variance of a business value");
pub(crate) const REFUSED: Metric = metric(
    "sluicegate_refused_total",
    Kind::Counter,
    &["code"],
    "Predict requests refused before they reached a version (bad JSON, unknown model, too large, over a limit)",
);
pub(crate) const REQUEST_MEMORY: Metric = metric(
    "sluicegate_request_memory_bytes",
    Kind::Gauge,
    &[],
    "Bytes that requests hold: bodies, tensors, and answers until they are sent",
);
pub(crate) const REQUEST_MEMORY_LIMIT: Metric = metric(
    "sluicegate_request_memory_limit_bytes",
    Kind::Gauge,
    &[],
    "The most bytes that requests may hold (server.memory)",
);
pub(crate) const REQUEST_MEMORY_REFUSED: Metric = metric(
    "sluicegate_request_memory_refused_total",
    Kind::Counter,
    &[],
    "Requests refused because the memory for requests was full, or because one client or one request wanted too much of it",
);
pub(crate) const PANICS: Metric = metric(
    "sluicegate_panics_total",
    Kind::Counter,
    &["task"],
    "Panics that were caught in the data plane, by task: request (answered with 500), connection, shadow_copies",
);
pub(crate) const ADMIN_REFUSED: Metric = metric(
    "sluicegate_admin_refused_total",
    Kind::Counter,
    &["code"],
    "Requests to the admin plane that were refused before they reached their endpoint, by code: UNAUTHENTICATED, FORBIDDEN",
);
pub(crate) const BREAK_GLASS: Metric = metric(
    "sluicegate_break_glass_total",
    Kind::Counter,
    &["action"],
    "Changes by which an admin gave traffic to a version that nobody approved, by action; alert on any",
);
pub(crate) const FLEET_CONNECTED: Metric = metric(
    "sluicegate_fleet_connected",
    Kind::Gauge,
    &[],
    "1 while this gateway follows its fleet, 0 while it is cut off; absent in no fleet",
);
pub(crate) const FLEET_NODES: Metric =
    metric("sluicegate_fleet_nodes", Kind::Gauge, &[], "Gateways of the fleet that were heard in the last seconds");
pub(crate) const FLEET_BEHIND: Metric = metric(
    "sluicegate_fleet_documents_behind",
    Kind::Gauge,
    &[],
    "Traffic documents of the fleet that are not in force on this gateway yet",
);
pub(crate) const FLEET_NODES_LOST: Metric = metric(
    "sluicegate_fleet_nodes_lost",
    Kind::Gauge,
    &[],
    "Gateways that were not heard for five seconds and did not say that they leave, in the last ten minutes",
);
pub(crate) const FLEET_WATCH_LAG: Metric = metric(
    "sluicegate_fleet_watch_lag",
    Kind::Gauge,
    &[],
    "Changes of documents that NATS had for this gateway when the last one arrived, and that had not arrived",
);
pub(crate) const FLEET_CHANGE_SECONDS: Metric = metric(
    "sluicegate_fleet_change_duration_seconds",
    Kind::Histogram(FLEET_SECONDS),
    &["made"],
    "Time until a changed document was in force on this gateway, by its own clock: made here (from the put to the fleet's answer) or elsewhere (from its arrival)",
);
pub(crate) const STATES: Metric = metric("sluicegate_versions", Kind::Gauge, &["state"], "Versions in each state");
pub(crate) const STAGE_SECONDS: Metric = metric(
    "sluicegate_stage_duration_seconds",
    Kind::Histogram(LOAD_SECONDS),
    &["stage"],
    "Time of each stage of loading and unloading a version: load, verify, warm, drain",
);
pub(crate) const STAGE_FAILURES: Metric =
    metric("sluicegate_stage_failures_total", Kind::Counter, &["stage"], "Versions that failed, by stage");
pub(crate) const LOADS_LEFT_BEHIND: Metric = metric(
    "sluicegate_loads_left_behind",
    Kind::Gauge,
    &[],
    "Loads that exceeded their time limit and have not ended: each keeps a thread and its memory",
);
pub(crate) const MODELS_UNSERVED: Metric = metric(
    "sluicegate_models_unserved",
    Kind::Gauge,
    &[],
    "Models whose traffic document cannot be served as a whole; /readyz of the admin plane names them",
);
pub(crate) const SWAPS: Metric = metric(
    "sluicegate_traffic_changes_total",
    Kind::Counter,
    &["action"],
    "Published changes of a traffic document, by action",
);
pub(crate) const ROLLOUT_PERCENT: Metric = metric(
    "sluicegate_rollout_percent",
    Kind::Gauge,
    &["model"],
    "The candidate's share of traffic in the current rollout, in percent; 0 after its end",
);
pub(crate) const ROLLOUTS_ENDED: Metric = metric(
    "sluicegate_rollouts_ended_total",
    Kind::Counter,
    &["how"],
    "Rollouts that ended: finished, taken_back, aborted, stopped",
);
pub(crate) const SWAP_IN_FLIGHT: Metric = metric(
    "sluicegate_swap_in_flight_requests",
    Kind::Gauge,
    &[],
    "Requests in flight on the versions that the last traffic change removed, when it was published",
);
pub(crate) const SNAPSHOTS_RETIRED: Metric = metric(
    "sluicegate_snapshots_retired",
    Kind::Gauge,
    &[],
    "Snapshots that are no longer current but still held by a request",
);
pub(crate) const RESIDENT_BYTES: Metric = metric(
    "sluicegate_process_resident_bytes",
    Kind::Gauge,
    &[],
    "Resident memory of the process, read from the kernel",
);
pub(crate) const RUNS_INTERRUPTED: Metric = metric(
    "sluicegate_runs_interrupted_total",
    Kind::Counter,
    &[],
    "Runs that were ended: at their deadline, because their callers left, or because they took too long where they ran",
);
pub(crate) const RUNS_LOST: Metric = metric(
    "sluicegate_runs_lost_total",
    Kind::Counter,
    &[],
    "Runs that went on for two seconds after they were interrupted: each costs a thread until it ends",
);
pub(crate) const THREADS_STUCK: Metric = metric(
    "sluicegate_threads_stuck",
    Kind::Gauge,
    &[],
    "Threads that are held by a run or by other work now: lost workers, and I/O threads that answer nothing",
);
pub(crate) const RESTARTS: Metric = metric(
    "sluicegate_process_restarts_total",
    Kind::Counter,
    &[],
    "Restarts of the server process after a crash, since its supervisor started",
);
pub(crate) const CONNECTIONS: Metric = metric("sluicegate_connections", Kind::Gauge, &["plane"], "Open connections");
pub(crate) const CONNECTIONS_CLOSED: Metric = metric(
    "sluicegate_connections_closed_total",
    Kind::Counter,
    &["plane", "reason"],
    "Connections that the server closed because of a limit, by reason: idle (idle_timeout), room (the longest idle one, at max_connections), \
     headers (header_timeout), handshake (TLS: header_timeout, or too many at the same time), reader (write_timeout), flood (frames of \
     HTTP/2 that carry no request); and streams of HTTP/2 that it reset: stream (write_timeout)",
);
pub(crate) const TLS_HANDSHAKES: Metric = metric(
    "sluicegate_tls_handshakes_total",
    Kind::Counter,
    &["plane", "result"],
    "TLS handshakes by result: full, resumed, failed (what the client sent, or that it left), not_tls (another protocol), closed (a limit)",
);
pub(crate) const TLS_EXPIRES: Metric = metric(
    "sluicegate_tls_certificate_expires_timestamp_seconds",
    Kind::Gauge,
    &["plane"],
    "When the certificate of the plane expires, as a Unix time",
);
pub(crate) const TLS_RELOADS: Metric = metric(
    "sluicegate_tls_reloads_total",
    Kind::Counter,
    &["plane", "result"],
    "Changed certificate files that were loaded (ok), or could not be used, so that the old ones stay (refused)",
);
pub(crate) const QUEUE_DEPTH: Metric =
    metric("sluicegate_queue_depth", Kind::Gauge, &[], "Requests that wait for a worker");
pub(crate) const READY: Metric =
    metric("sluicegate_ready", Kind::Gauge, &[], "1 when the readiness endpoint answers 200, else 0");

pub(crate) const BREAKER_OPEN: Metric = metric(
    "sluicegate_breaker_open",
    Kind::Gauge,
    VERSION,
    "1 while requests to the version are refused because its engine fails, else 0; absent before its breaker opened",
);
pub(crate) const BREAKER_REFUSED: Metric = metric(
    "sluicegate_breaker_refused_total",
    Kind::Counter,
    VERSION,
    "Requests that an open breaker kept from the version: refused, or answered by the fallback",
);
pub(crate) const FALLBACKS: Metric = metric(
    "sluicegate_fallback_total",
    Kind::Counter,
    VERSION,
    "Requests that this version answered as the fallback, in place of one that could not",
);
pub(crate) const AUDIT_EVENTS: Metric =
    metric("sluicegate_audit_events", Kind::Gauge, &[], "The number of the newest event of the audit trail");
pub(crate) const MLFLOW_ALIASES: Metric = metric(
    "sluicegate_mlflow_aliases_total",
    Kind::Counter,
    &["result"],
    "Aliases of MLflow that moved: applied here, or refused (by a gate, or because somebody changed the traffic meanwhile)",
);
pub(crate) const AUDIT_HEADS: Metric = metric(
    "sluicegate_audit_heads_total",
    Kind::Counter,
    &["to"],
    "Heads of the audit trail that were sent, by place: log, file, webhook",
);
pub(crate) const AUDIT_HEAD_FAILURES: Metric = metric(
    "sluicegate_audit_head_failures_total",
    Kind::Counter,
    &["to"],
    "Failed tries to send a head of the audit trail, by place: file, webhook",
);

pub(crate) const TRACES_SENT: Metric = metric(
    "sluicegate_traced_requests_sent_total",
    Kind::Counter,
    &[],
    "Traced requests whose spans the collector took",
);
pub(crate) const TRACES_DROPPED: Metric = metric(
    "sluicegate_traced_requests_dropped_total",
    Kind::Counter,
    &["reason"],
    "Traced requests whose spans were lost: queue_full (more came than the collector took), failed (it did not take them in three tries)",
);
pub(crate) const TRACE_EXPORTS_FAILED: Metric =
    metric("sluicegate_trace_exports_failed_total", Kind::Counter, &[], "Failed tries to send spans to the collector");

pub(crate) const ALERTS_FIRING: Metric =
    metric("sluicegate_alerts_firing", Kind::Gauge, &["rule"], "Alerts that fire now, silenced ones included, by rule");
pub(crate) const ALERT_SENT: Metric = metric(
    "sluicegate_alert_messages_sent_total",
    Kind::Counter,
    &["target"],
    "Messages about alerts and events that a target accepted",
);
pub(crate) const ALERT_FAILED: Metric = metric(
    "sluicegate_alert_messages_failed_total",
    Kind::Counter,
    &["target"],
    "Failed tries to deliver a message to a target; it is tried again",
);
pub(crate) const ALERT_DROPPED: Metric = metric(
    "sluicegate_alert_messages_dropped_total",
    Kind::Counter,
    &["target", "reason"],
    "Messages that were given up: age (alerts.keep_for), full (alerts.outbox), refused (the target called it wrong six times), unreadable",
);
pub(crate) const ALERT_OUTBOX: Metric = metric(
    "sluicegate_alert_outbox_messages",
    Kind::Gauge,
    &["target"],
    "Messages that wait to be delivered to a target",
);

pub(crate) const SOURCE_ROUNDS: Metric = metric(
    "sluicegate_source_rounds_total",
    Kind::Counter,
    &["source", "result"],
    "Times that a source of models was read: ok, or failed (it could not be listed)",
);
pub(crate) const SOURCE_LAST_READ: Metric = metric(
    "sluicegate_source_last_read_timestamp_seconds",
    Kind::Gauge,
    &["source"],
    "When a source of models was last listed completely; absent before the first time",
);
pub(crate) const SOURCE_DOWNLOADS: Metric = metric(
    "sluicegate_source_downloads_total",
    Kind::Counter,
    &["source", "result"],
    "Versions that were read from a source: ok, or failed (it is tried again)",
);
pub(crate) const SOURCE_BYTES: Metric = metric(
    "sluicegate_source_read_bytes_total",
    Kind::Counter,
    &["source"],
    "Bytes of files that arrived from a source of models",
);
pub(crate) const SOURCE_CACHE_BYTES: Metric =
    metric("sluicegate_source_cache_bytes", Kind::Gauge, &[], "Bytes of files from sources in the data directory");

/// All metrics, in the order of the documentation.
pub(crate) const ALL: &[Metric] = &[
    REQUESTS,
    REQUEST_SECONDS_M,
    INFER_SECONDS_M,
    BATCH_ROWS_M,
    QUEUE_SECONDS_M,
    NONFINITE,
    REPRODUCED,
    STICKY_KEY_MISSING,
    IN_FLIGHT,
    LOADED_BYTES,
    SHADOW_OFFERED,
    SHADOW_COMPARED,
    SHADOW_DISAGREED,
    SHADOW_DROPPED,
    LOG_RECORDS,
    LOG_DROPPED,
    LOG_LEFT_OUT,
    LOG_KEPT_SHARE,
    LOG_QUEUE_BYTES,
    LOG_BYTES,
    LOG_SYNC,
    LOG_SEAL,
    LOG_FAILING,
    LOG_DELETED,
    UPLOADED_FILES,
    UPLOADED_BYTES,
    UPLOAD_FAILURES,
    UPLOAD_WAITING_FILES,
    UPLOAD_WAITING_BYTES,
    UPLOAD_WAITING_SECONDS,
    FEEDBACK,
    QUALITY_LABELLED,
    QUALITY_ACCURACY,
    QUALITY_ERROR,
    QUALITY_DELAY,
    QUALITY_VALUES,
    QUALITY_VALUE_MEAN,
    QUALITY_VALUE_VARIANCE,
    DRIFT_ALARMS,
    DRIFT_SHARE,
    REFUSED,
    SHED,
    REQUEST_MEMORY,
    REQUEST_MEMORY_LIMIT,
    REQUEST_MEMORY_REFUSED,
    PANICS,
    ADMIN_REFUSED,
    BREAK_GLASS,
    FLEET_CONNECTED,
    FLEET_NODES,
    FLEET_BEHIND,
    FLEET_NODES_LOST,
    FLEET_WATCH_LAG,
    FLEET_CHANGE_SECONDS,
    STATES,
    STAGE_SECONDS,
    STAGE_FAILURES,
    LOADS_LEFT_BEHIND,
    MODELS_UNSERVED,
    SWAPS,
    ROLLOUT_PERCENT,
    ROLLOUTS_ENDED,
    SWAP_IN_FLIGHT,
    SNAPSHOTS_RETIRED,
    RESIDENT_BYTES,
    RUNS_INTERRUPTED,
    RUNS_LOST,
    THREADS_STUCK,
    RESTARTS,
    CONNECTIONS,
    CONNECTIONS_CLOSED,
    TLS_HANDSHAKES,
    TLS_EXPIRES,
    TLS_RELOADS,
    QUEUE_DEPTH,
    READY,
    BREAKER_OPEN,
    BREAKER_REFUSED,
    FALLBACKS,
    AUDIT_EVENTS,
    MLFLOW_ALIASES,
    AUDIT_HEADS,
    AUDIT_HEAD_FAILURES,
    TRACES_SENT,
    TRACES_DROPPED,
    TRACE_EXPORTS_FAILED,
    ALERTS_FIRING,
    ALERT_SENT,
    ALERT_FAILED,
    ALERT_DROPPED,
    ALERT_OUTBOX,
    SOURCE_ROUNDS,
    SOURCE_LAST_READ,
    SOURCE_DOWNLOADS,
    SOURCE_BYTES,
    SOURCE_CACHE_BYTES,
];
