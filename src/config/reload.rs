//! Compares two configurations: which keys changed, and which of them need a restart.

use super::{Admin, Approval, Callers, Config, Data, Engines, Execute, Log, Models, PredictionLog, Server, Shadows};
use super::{mlflow_section, upload_section};
use crate::access::{self, OidcConfig};
use crate::alerts;
use crate::fleet;
use crate::heads;
use crate::mirror;
use crate::quality;
use crate::record::{self, Choice};
use crate::registry::BreakerConfig;
use crate::tls;
use crate::traces;

/// A key whose value changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// Dotted: `server.listen`.
    pub key: &'static str,
    /// Whether the server keeps the old value until it is restarted.
    pub needs_restart: bool,
}

impl Config {
    /// The keys with another value in `new`, in the order of the file.
    #[must_use]
    pub fn changes(&self, new: &Config) -> Vec<Change> {
        let Config {
            server,
            admin,
            access,
            callers,
            approval,
            models,
            serving,
            engines,
            execute,
            shadows,
            prediction_log,
            data,
            audit,
            alerts,
            breaker,
            metrics,
            tracing,
            fleet,
            log,
        } = self;
        let sections: [Vec<Option<Change>>; 21] = [
            server.changes(&new.server),
            admin.changes(&new.admin),
            access_changes(access, &new.access).into(),
            callers.changes(&new.callers).into(),
            approval.changes(new.approval).into(),
            models.changes(&new.models).into(),
            mlflow_section::changes(&models.mlflow, &new.models.mlflow).into(),
            vec![at_run_time("serving.default_model", &serving.default_model, &new.serving.default_model)],
            engines.changes(&new.engines).into(),
            execute.changes(&new.execute).into(),
            shadows.changes(&new.shadows).into(),
            prediction_log.changes(&new.prediction_log).into(),
            upload_section::changes(&prediction_log.upload, &new.prediction_log.upload).into(),
            data.changes(&new.data).into(),
            audit_changes(audit, &new.audit).into(),
            alerts_changes(alerts, &new.alerts).into(),
            breaker_changes(breaker, &new.breaker).into(),
            fleet_changes(fleet, &new.fleet).into(),
            vec![at_start("metrics.triton_names", &metrics.triton_names, &new.metrics.triton_names)],
            tracing_changes(tracing, &new.tracing).into(),
            log.changes(&new.log).into(),
        ];
        sections.into_iter().flatten().flatten().collect()
    }

    /// This configuration with the keys that can change at run time taken from `new`: the server's configuration after a reload.
    #[must_use]
    pub fn reloaded(&self, new: &Config) -> Config {
        let mut next = self.clone();
        next.server.max_in_flight = new.server.max_in_flight;
        next.server.max_body = new.server.max_body;
        next.server.body_timeout = new.server.body_timeout;
        next.server.request_timeout = new.server.request_timeout;
        next.server.max_request_timeout = new.server.max_request_timeout;
        next.server.version_headers = new.server.version_headers;
        next.server.version_in_body = new.server.version_in_body;
        next.server.shutdown_grace = new.server.shutdown_grace;
        next.server.shutdown_announce = new.server.shutdown_announce;
        for (next, new) in [(&mut next.server.tls, &new.server.tls), (&mut next.admin.tls, &new.admin.tls)] {
            if let (Some(next), Some(new)) = (next, new) {
                next.clone_from(new);
            }
        }
        next.serving.clone_from(&new.serving);
        next.callers.clone_from(&new.callers);
        next.tracing.sample_rate = new.tracing.sample_rate;
        next.log.filter.clone_from(&new.log.filter);
        next
    }
}

/// For keys that are read again for each request: a new value applies at once.
fn at_run_time<T: PartialEq>(key: &'static str, old: &T, new: &T) -> Option<Change> {
    (old != new).then_some(Change { key, needs_restart: false })
}

/// For keys that are used once, at start: a socket, a thread, an open file.
pub(super) fn at_start<T: PartialEq>(key: &'static str, old: &T, new: &T) -> Option<Change> {
    (old != new).then_some(Change { key, needs_restart: true })
}

fn fleet_changes(old: &fleet::Config, new: &fleet::Config) -> [Option<Change>; 8] {
    [
        at_start("fleet.urls", &old.urls, &new.urls),
        at_start("fleet.name", &old.name, &new.name),
        at_start("fleet.node", &old.node, &new.node),
        at_start("fleet.credentials", &old.credentials, &new.credentials),
        at_start("fleet.ca", &old.ca, &new.ca),
        at_start("fleet.replicas", &old.replicas, &new.replicas),
        at_start("fleet.labels", &old.labels, &new.labels),
        at_start("fleet.placement", &old.placement, &new.placement),
    ]
}

/// Other files are read at once. A plane that has no TLS gets it at a restart, and the other way round.
fn tls_changes(
    [certificate, key, client_ca, client_auth]: [&'static str; 4],
    old: Option<&tls::Config>,
    new: Option<&tls::Config>,
) -> [Option<Change>; 4] {
    match (old, new) {
        (Some(old), Some(new)) => [
            at_run_time(certificate, &old.certificate, &new.certificate),
            at_run_time(key, &old.key, &new.key),
            at_run_time(client_ca, &old.client_ca, &new.client_ca),
            at_run_time(client_auth, &old.client_auth, &new.client_auth),
        ],
        _ => [
            at_start(certificate, &old.map(|tls| &tls.certificate), &new.map(|tls| &tls.certificate)),
            at_start(key, &old.map(|tls| &tls.key), &new.map(|tls| &tls.key)),
            at_start(client_ca, &old.map(|tls| &tls.client_ca), &new.map(|tls| &tls.client_ca)),
            at_start(client_auth, &old.map(|tls| tls.client_auth), &new.map(|tls| tls.client_auth)),
        ],
    }
}

// Every struct is destructured completely, so that a new key does not compile until this file says when it can change.

impl Server {
    fn changes(&self, new: &Server) -> Vec<Option<Change>> {
        let Server {
            listen,
            max_in_flight,
            max_unfinished,
            max_unfinished_per_peer,
            max_connections,
            max_streams,
            max_body,
            max_answer,
            memory,
            max_headers,
            header_timeout,
            body_timeout,
            idle_timeout,
            write_timeout,
            request_timeout,
            max_request_timeout,
            shutdown_grace,
            shutdown_announce,
            supervise,
            crash_inputs,
            require_token,
            version_headers,
            version_in_body,
            io_threads,
            tls,
        } = self;
        let keys = ["server.tls.certificate", "server.tls.key", "server.tls.client_ca", "server.tls.client_auth"];
        let tls = tls_changes(keys, tls.as_ref(), new.tls.as_ref());
        let others = [
            at_start("server.listen", listen, &new.listen),
            at_run_time("server.max_in_flight", max_in_flight, &new.max_in_flight),
            at_start("server.max_unfinished", max_unfinished, &new.max_unfinished),
            at_start("server.max_unfinished_per_peer", max_unfinished_per_peer, &new.max_unfinished_per_peer),
            at_start("server.max_connections", max_connections, &new.max_connections),
            at_start("server.max_streams", max_streams, &new.max_streams),
            at_run_time("server.max_body", max_body, &new.max_body),
            at_start("server.max_answer", max_answer, &new.max_answer),
            at_start("server.memory", memory, &new.memory),
            at_start("server.max_headers", max_headers, &new.max_headers),
            at_start("server.header_timeout", header_timeout, &new.header_timeout),
            at_run_time("server.body_timeout", body_timeout, &new.body_timeout),
            at_start("server.idle_timeout", idle_timeout, &new.idle_timeout),
            at_start("server.write_timeout", write_timeout, &new.write_timeout),
            at_run_time("server.request_timeout", request_timeout, &new.request_timeout),
            at_run_time("server.max_request_timeout", max_request_timeout, &new.max_request_timeout),
            at_run_time("server.shutdown_grace", shutdown_grace, &new.shutdown_grace),
            at_run_time("server.shutdown_announce", shutdown_announce, &new.shutdown_announce),
            at_start("server.supervise", supervise, &new.supervise),
            at_start("server.crash_inputs", crash_inputs, &new.crash_inputs),
            at_start("server.require_token", require_token, &new.require_token),
            at_run_time("server.version_headers", version_headers, &new.version_headers),
            at_run_time("server.version_in_body", version_in_body, &new.version_in_body),
            at_start("server.io_threads", io_threads, &new.io_threads),
        ];
        others.into_iter().chain(tls).collect()
    }
}

impl Admin {
    fn changes(&self, new: &Admin) -> Vec<Option<Change>> {
        let Admin { listen, require_token, first_token, allowed_hosts, tls } = self;
        let keys = ["admin.tls.certificate", "admin.tls.key", "admin.tls.client_ca", "admin.tls.client_auth"];
        let tls = tls_changes(keys, tls.as_ref(), new.tls.as_ref());
        let others = [
            at_start("admin.listen", listen, &new.listen),
            at_start("admin.require_token", require_token, &new.require_token),
            at_start("admin.first_token", first_token, &new.first_token),
            at_start("admin.allowed_hosts", allowed_hosts, &new.allowed_hosts),
        ];
        others.into_iter().chain(tls).collect()
    }
}

/// Without an identity provider its keys have their defaults, and nothing of them changed.
fn access_changes(old: &access::Config, new: &access::Config) -> [Option<Change>; 12] {
    let access::Config { certificates, tokens, oidc } = old;
    let of = |pick: fn(&OidcConfig) -> String| (oidc.as_ref().map(pick), new.oidc.as_ref().map(pick));
    let changed = |key, pick: fn(&OidcConfig) -> String| {
        let (old, new) = of(pick);
        at_start(key, &old, &new)
    };
    [
        at_start("access.certificates", certificates, &new.certificates),
        at_start("access.tokens", tokens, &new.tokens),
        changed("access.oidc.issuer", |c| c.issuer.clone()),
        changed("access.oidc.audience", |c| c.audience.clone()),
        changed("access.oidc.jwks", |c| format!("{:?}", c.keys)),
        changed("access.oidc.ca", |c| format!("{:?}", c.ca)),
        changed("access.oidc.refresh", |c| format!("{:?}", c.refresh)),
        changed("access.oidc.algorithms", |c| format!("{:?}", c.algorithms)),
        changed("access.oidc.leeway", |c| format!("{:?}", c.leeway)),
        changed("access.oidc.name_claim", |c| c.name_claim.clone()),
        changed("access.oidc.roles_claim", |c| c.roles_claim.clone()),
        changed("access.oidc.roles", |c| format!("{:?}", c.roles)),
    ]
}

impl Callers {
    fn changes(&self, new: &Callers) -> [Option<Change>; 4] {
        let Callers { max_in_flight, rate, burst, rules } = self;
        [
            at_run_time("callers.max_in_flight", max_in_flight, &new.max_in_flight),
            at_run_time("callers.rate", rate, &new.rate),
            at_run_time("callers.burst", burst, &new.burst),
            at_run_time("callers.rules", rules, &new.rules),
        ]
    }
}

impl Approval {
    fn changes(self, new: Approval) -> [Option<Change>; 1] {
        let Approval { required } = self;
        [at_start("approval.required", &required, &new.required)]
    }
}

impl Models {
    fn changes(&self, new: &Models) -> [Option<Change>; 21] {
        let Models {
            dir,
            settle,
            rescan,
            memory_budget,
            load_threads,
            time_limits,
            drain_timeout,
            keep_warm,
            crash_limit,
            policy,
            trusted_keys,
            trials,
            sources,
            mlflow: _,
        } = self;
        let mirror::Config { uris, interval, cache, versions, timeout, instance_metadata } = sources;
        let new_limits = &new.time_limits;
        [
            at_start("models.dir", dir, &new.dir),
            at_start("models.settle", settle, &new.settle),
            at_start("models.rescan", rescan, &new.rescan),
            at_start("models.memory_budget", memory_budget, &new.memory_budget),
            at_start("models.load_threads", load_threads, &new.load_threads),
            at_start("models.load_timeout", &time_limits.load, &new_limits.load),
            at_start("models.verify_timeout", &time_limits.verify, &new_limits.verify),
            at_start("models.warm_timeout", &time_limits.warm, &new_limits.warm),
            at_start("models.drain_timeout", drain_timeout, &new.drain_timeout),
            at_start("models.keep_warm", keep_warm, &new.keep_warm),
            at_start("models.crash_limit", &crash_limit.crashes, &new.crash_limit.crashes),
            at_start("models.crash_window", &crash_limit.within, &new.crash_limit.within),
            at_start("models.policy", policy, &new.policy),
            at_start("models.trusted_keys", trusted_keys, &new.trusted_keys),
            at_start("models.trials", trials, &new.trials),
            at_start("models.sources.uris", uris, &new.sources.uris),
            at_start("models.sources.interval", interval, &new.sources.interval),
            at_start("models.sources.cache", cache, &new.sources.cache),
            at_start("models.sources.versions", versions, &new.sources.versions),
            at_start("models.sources.timeout", timeout, &new.sources.timeout),
            at_start("models.sources.instance_metadata", instance_metadata, &new.sources.instance_metadata),
        ]
    }
}

impl Engines {
    fn changes(&self, new: &Engines) -> [Option<Change>; 3] {
        let Engines { onnxruntime, custom_ops_dir, skip_divisions } = self;
        [
            at_start("engines.onnxruntime", onnxruntime, &new.onnxruntime),
            at_start("engines.custom_ops_dir", custom_ops_dir, &new.custom_ops_dir),
            at_start("engines.skip_divisions", skip_divisions, &new.skip_divisions),
        ]
    }
}

impl Execute {
    fn changes(&self, new: &Execute) -> [Option<Change>; 4] {
        let Execute { inline_below, queue, max_wait, workers } = self;
        [
            at_start("execute.inline_below", inline_below, &new.inline_below),
            at_start("execute.queue", queue, &new.queue),
            at_start("execute.max_wait", max_wait, &new.max_wait),
            at_start("execute.workers", workers, &new.workers),
        ]
    }
}

impl Shadows {
    fn changes(&self, new: &Shadows) -> [Option<Change>; 6] {
        let Shadows { threads, queue, queue_bytes, worst, rtol, atol } = self;
        [
            at_start("shadows.threads", threads, &new.threads),
            at_start("shadows.queue", queue, &new.queue),
            at_start("shadows.queue_bytes", queue_bytes, &new.queue_bytes),
            at_start("shadows.worst", worst, &new.worst),
            at_start("shadows.rtol", rtol, &new.rtol),
            at_start("shadows.atol", atol, &new.atol),
        ]
    }
}

impl PredictionLog {
    fn changes(&self, new: &PredictionLog) -> [Option<Change>; 20] {
        let PredictionLog { choice, log, quality, reproduce_every, upload: _ } = self;
        // The fields marked `_` are not keys of this section.
        let Choice {
            enabled,
            sample_rate,
            errors: _,
            disagreements: _,
            drop: _,
            hash: _,
            mask: _,
            hash_route_key,
            max_record_bytes,
        } = choice;
        let record::Config {
            data: _,
            acknowledge,
            on_failure,
            flush_interval,
            queue_bytes,
            shards: _,
            cores: _,
            seal_cpu_share,
            segment_bytes,
            seal_after,
            keep_for,
            disk_budget,
            hash_key_file,
            uploads: _,
        } = log;
        let quality::Config { rows, bytes, window, history, history_bytes } = quality;
        [
            at_start("prediction_log.enabled", enabled, &new.choice.enabled),
            at_start("prediction_log.sample_rate", sample_rate, &new.choice.sample_rate),
            at_start("prediction_log.hash_route_key", hash_route_key, &new.choice.hash_route_key),
            at_start("prediction_log.max_record_bytes", max_record_bytes, &new.choice.max_record_bytes),
            at_start("prediction_log.acknowledge", acknowledge, &new.log.acknowledge),
            at_start("prediction_log.on_failure", on_failure, &new.log.on_failure),
            at_start("prediction_log.flush_interval", flush_interval, &new.log.flush_interval),
            at_start("prediction_log.queue_bytes", queue_bytes, &new.log.queue_bytes),
            at_start("prediction_log.seal_cpu_share", seal_cpu_share, &new.log.seal_cpu_share),
            at_start("prediction_log.segment_bytes", segment_bytes, &new.log.segment_bytes),
            at_start("prediction_log.seal_after", seal_after, &new.log.seal_after),
            at_start("prediction_log.keep_for", keep_for, &new.log.keep_for),
            at_start("prediction_log.disk_budget", disk_budget, &new.log.disk_budget),
            at_start("prediction_log.hash_key_file", hash_key_file, &new.log.hash_key_file),
            at_start("prediction_log.quality_window", window, &new.quality.window),
            at_start("prediction_log.quality_rows", rows, &new.quality.rows),
            at_start("prediction_log.quality_bytes", bytes, &new.quality.bytes),
            at_start("prediction_log.quality_history", history, &new.quality.history),
            at_start("prediction_log.quality_history_bytes", history_bytes, &new.quality.history_bytes),
            at_start("prediction_log.reproduce_every", reproduce_every, &new.reproduce_every),
        ]
    }
}

impl Data {
    fn changes(&self, new: &Data) -> [Option<Change>; 2] {
        let Data { dir, group_readable } = self;
        [at_start("data.dir", dir, &new.dir), at_start("data.group_readable", group_readable, &new.group_readable)]
    }
}

fn breaker_changes(old: &BreakerConfig, new: &BreakerConfig) -> [Option<Change>; 5] {
    let BreakerConfig { failures, share, window, pause, probes } = old;
    [
        at_start("breaker.failures", failures, &new.failures),
        at_start("breaker.share", share, &new.share),
        at_start("breaker.window", window, &new.window),
        at_start("breaker.pause", pause, &new.pause),
        at_start("breaker.probes", probes, &new.probes),
    ]
}

fn tracing_changes(old: &traces::Config, new: &traces::Config) -> [Option<Change>; 4] {
    let traces::Config { endpoint, sample_rate, protocol, ca } = old;
    [
        at_start("tracing.otlp_endpoint", endpoint, &new.endpoint),
        at_run_time("tracing.sample_rate", sample_rate, &new.sample_rate),
        at_start("tracing.protocol", protocol, &new.protocol),
        at_start("tracing.ca", ca, &new.ca),
    ]
}

fn audit_changes(old: &heads::Config, new: &heads::Config) -> [Option<Change>; 5] {
    let heads::Config { interval, file, webhook, webhook_ca, webhook_timeout } = old;
    [
        at_start("audit.head_interval", interval, &new.interval),
        at_start("audit.heads_file", file, &new.file),
        at_start("audit.webhook", webhook, &new.webhook),
        at_start("audit.webhook_ca", webhook_ca, &new.webhook_ca),
        at_start("audit.webhook_timeout", webhook_timeout, &new.webhook_timeout),
    ]
}

fn alerts_changes(old: &alerts::Config, new: &alerts::Config) -> [Option<Change>; 10] {
    let alerts::Config {
        enabled,
        check_interval,
        end_after,
        off,
        error_budget,
        name,
        console,
        outbox,
        keep_for,
        targets,
    } = old;
    [
        at_start("alerts.enabled", enabled, &new.enabled),
        at_start("alerts.check_interval", check_interval, &new.check_interval),
        at_start("alerts.end_after", end_after, &new.end_after),
        at_start("alerts.off", off, &new.off),
        at_start("alerts.error_budget", error_budget, &new.error_budget),
        at_start("alerts.name", name, &new.name),
        at_start("alerts.console", console, &new.console),
        at_start("alerts.outbox", outbox, &new.outbox),
        at_start("alerts.keep_for", keep_for, &new.keep_for),
        at_start("alerts.targets", targets, &new.targets),
    ]
}

impl Log {
    fn changes(&self, new: &Log) -> [Option<Change>; 2] {
        let Log { format, filter } = self;
        [at_start("log.format", format, &new.format), at_run_time("log.filter", filter, &new.filter)]
    }
}
