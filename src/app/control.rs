//! The control thread: it serves the admin API and updates metrics.

use super::Phase;
use super::certificates::Certificates;
use super::retention::Retention;
use super::threads::StuckVersions;
use crate::access::Access;
use crate::admin::{self, Admin};
use crate::config::Config;
use crate::console;
use crate::history::{Arm, EngineTime, Sample};
use crate::http::{self, Acceptor, ConnectionLimits, Connections, DataPlane, Secure, serve_connection};
use crate::lifecycle::Handle;
use crate::machine::{Available, Machine, disk_space};
use crate::quality::Quality;
use crate::record::Log;
use crate::registry::{Entry, Reader, Served};
use crate::shadow::Shadows;
use crate::telemetry::{QualityFigures, Telemetry, names};
use crate::tls::Tls;
use ::http::Request;
use hyper::body::Incoming;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tower::ServiceExt;

/// How often gauges are updated.
const UPKEEP: Duration = Duration::from_secs(1);
/// The largest share of a core for adding samples to histogram buckets. Each pass visits all histograms: with 2,000 models, a pass per
/// second took 6 % of a core. With few models a pass runs every second, because waiting samples take up memory and cache: at 50,000
/// samples per second, passes five seconds apart cost a tenth of the throughput.
const FOLD_SHARE: f64 = 0.02;

/// How often the times at which tokens were used are stored.
const STORE_USES: Duration = Duration::from_mins(1);

/// The most connections of the admin plane; for a further one the longest idle one is closed. Operators, dashboards and scrapers use a
/// few.
const MAX_CONNECTIONS: usize = 128;
/// How long a stop waits for requests to the admin API.
const CUT_OFF: Duration = Duration::from_millis(500);

/// The running control thread.
#[derive(Debug)]
pub(super) struct Control {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    thread: JoinHandle<()>,
}

/// Whether the server is stopping; used by the admin API's readiness.
pub(super) fn stopping(mut phases: watch::Receiver<Phase>) -> Arc<dyn Fn() -> bool + Send + Sync> {
    phases.mark_unchanged();
    Arc::new(move || *phases.borrow() != Phase::Serving)
}

/// Reports what requests and their copies hold, for the admin plane.
pub(super) fn memory(
    data_plane: Arc<DataPlane>,
    shadows: Shadows,
    log: Log,
    config: &Config,
) -> Arc<dyn Fn() -> admin::Memory + Send + Sync> {
    let of = |bytes: usize| u64::try_from(bytes).unwrap_or(u64::MAX);
    let (queue, copies) = (of(config.prediction_log.log.queue_bytes), config.shadows.queue_bytes);
    Arc::new(move || admin::Memory {
        requests: (of(data_plane.budget().held()), of(data_plane.budget().limit())),
        prediction_log: (of(log.queue_bytes()), queue),
        shadows: (of(shadows.waiting_bytes()), copies),
        resident: crate::machine::resident_bytes(),
    })
}

/// Reports what this process may use and uses now, for the admin plane.
pub(super) fn gateway(
    machine: Machine,
    data_plane: Arc<DataPlane>,
    config: &Config,
    tls: Certificates,
) -> Arc<dyn Fn() -> admin::Facts + Send + Sync> {
    let (started, data_dir) = (jiff::Timestamp::now(), config.data.dir.clone());
    let models_bytes = config.models.memory_budget_of(machine.memory_bytes);
    Arc::new(move || admin::Facts {
        started,
        cores: machine.cores,
        cores_limited_by: machine.cores_from.to_string(),
        memory_bytes: machine.memory_bytes,
        memory_limited_by: machine.memory_from.to_string(),
        available_bytes: Available::now().map(|available| available.bytes),
        models_bytes,
        disk: disk_space(&data_dir),
        waiting: data_plane.gateway().executor().queue_depth(),
        certificates: tls.ends(),
    })
}

/// Reads the counts of all arms, for the history of figures.
pub(super) fn samples(reader: Reader) -> impl Fn() -> Vec<Sample> + Send + 'static {
    let sample = |entry: &Entry, served: &Arc<Served>| {
        let (model, version) = (entry.name().clone(), served.loaded.version);
        let of = Arm { model, version, name: served.arm().to_string() };
        let (revision, requests) = (entry.revision(), served.metrics.requests());
        let (ns, rows) = served.metrics.engine();
        let engine = EngineTime { ns, rows };
        Sample { of, revision, requests, evidence: served.metrics.evidence(), engine }
    };
    move || {
        let snapshot = reader.snapshot();
        snapshot.models().flat_map(|entry| entry.arms().iter().map(|served| sample(entry, served))).collect()
    }
}

/// The limits of an admin connection. `memory`: the bytes that requests may hold.
pub(super) fn connection_limits(config: &http::Config, memory: usize) -> ConnectionLimits {
    ConnectionLimits {
        head: config.header_timeout,
        idle: config.idle_timeout,
        write: config.write_timeout,
        max_streams: config.max_streams,
        memory,
    }
}

/// Stores when tokens were used.
#[derive(Debug, Clone)]
struct TokenUses {
    access: Access,
    handle: Handle,
}

impl TokenUses {
    fn store(&self) {
        self.handle.store_token_uses(self.access.take_uses());
    }
}

impl Control {
    pub(super) fn start(
        listener: std::net::TcpListener,
        plane: Admin,
        limits: ConnectionLimits,
        telemetry: Telemetry,
        data_plane: Arc<DataPlane>,
        tls: Certificates,
        retention: Retention,
    ) -> io::Result<Control> {
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, mut stopping) = watch::channel(false);
        let connections = Arc::new(Connections::new(telemetry.process(), "admin"));
        let quality = plane.quality.clone();
        let uses = TokenUses { access: plane.access.clone(), handle: plane.handle.clone() };
        let stuck = StuckVersions::new(plane.reader.clone(), plane.handle.clone(), &telemetry);
        let threads = Arc::clone(&plane.threads);
        let (is_secure, in_fleet) = (tls.admin.is_some(), plane.fleet.is_some());
        let router = admin::router_with(plane, |api| console::pages(api, is_secure, in_fleet))?;
        let secure = |tls: &Arc<Tls>| Secure::new(Arc::clone(tls), "admin", telemetry.process(), MAX_CONNECTIONS);
        let secure = tls.admin.as_ref().map(secure);
        let thread = std::thread::Builder::new().name("control".to_owned()).spawn(move || {
            runtime.block_on(async move {
                let upkeep = tokio::spawn(upkeep(telemetry, data_plane, quality, stuck, threads, uses.clone(), tls));
                let retention = tokio::spawn(retention.run());
                let served = serve(listener, router, limits, secure, &connections);
                tokio::select! {
                    served = served => if let Err(error) = served {
                        tracing::error!(%error, "the admin API ended");
                    },
                    // An error means that the sender was dropped, which is a stop too.
                    _ = stopping.wait_for(|stop| *stop) => {}
                }
                // Requests in progress are answered. An open connection must not delay the stop.
                connections.close_idle();
                let until = Instant::now() + CUT_OFF;
                while connections.count() > 0 && Instant::now() < until {
                    connections.one_ended(until.saturating_duration_since(Instant::now())).await;
                }
                upkeep.abort();
                uses.store();
                retention.abort();
            });
        })?;
        Ok(Control { address, stop, thread })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn stop(self, within: Duration) {
        self.stop.send_replace(true);
        let until = Instant::now() + within;
        while !self.thread.is_finished() && Instant::now() < until {
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }
}

/// Serves the admin API.
async fn serve(
    listener: std::net::TcpListener,
    router: axum::Router,
    limits: ConnectionLimits,
    secure: Option<Arc<Secure>>,
    connections: &Arc<Connections>,
) -> io::Result<()> {
    let mut acceptor = Acceptor::new(listener, "admin", MAX_CONNECTIONS, Arc::clone(connections))?;
    loop {
        let stream = acceptor.next().await;
        let (open, router) = (connections.open(), router.clone());
        let answer = move |request: Request<Incoming>, _| {
            let answering = router.clone().oneshot(request);
            async move { answering.await.unwrap_or_else(|never| match never {}) }
        };
        tokio::spawn(serve_connection(stream, open, limits, secure.clone(), answer));
    }
}

async fn upkeep(
    telemetry: Telemetry,
    data_plane: Arc<DataPlane>,
    quality: Quality,
    mut stuck: StuckVersions,
    threads: Arc<dyn Fn() -> admin::Threads + Send + Sync>,
    uses: TokenUses,
    tls: Certificates,
) {
    let process = telemetry.process();
    let (ready, depth, resident) = (
        process.gauge(&names::READY, &[]),
        process.gauge(&names::QUEUE_DEPTH, &[]),
        process.gauge(&names::RESIDENT_BYTES, &[]),
    );
    let budget = data_plane.budget();
    let (held, refused) =
        (process.gauge(&names::REQUEST_MEMORY, &[]), process.counter(&names::REQUEST_MEMORY_REFUSED, &[]));
    process.gauge(&names::REQUEST_MEMORY_LIMIT, &[]).set(budget.limit() as f64);
    let mut every = tokio::time::interval(UPKEEP);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut due = Instant::now();
    let mut uses_due = Instant::now();
    loop {
        every.tick().await;
        let now = Instant::now();
        if now >= due {
            telemetry.upkeep();
            due = now + now.elapsed().div_f64(FOLD_SHARE);
        }
        ready.set(f64::from(u8::from(data_plane.ready())));
        depth.set(data_plane.gateway().executor().queue_depth() as f64);
        held.set(budget.held() as f64);
        refused.absolute(budget.refused());
        if let Some(bytes) = crate::machine::resident_bytes() {
            resident.set(bytes as f64);
        }
        if now >= uses_due {
            uses.store();
            uses_due = now + STORE_USES;
        }
        stuck.look(&threads());
        tls.look();
        quality.expire(crate::record::now());
        show_quality(&telemetry, &quality);
    }
}

/// Updates the quality metrics of every version on every arm.
fn show_quality(telemetry: &Telemetry, quality: &Quality) {
    let all = quality.all();
    let arms = all.iter().flat_map(|(model, of)| of.arms.iter().map(move |arm| (model, arm)));
    telemetry.show_quality(arms.filter(|(_, (_, figures))| figures.with_feedback > 0).map(
        |(model, ((version, arm), figures))| {
            let values = figures.known_values().map(|(name, m)| (name.as_str(), m.count, m.mean, m.variance()));
            QualityFigures {
                model,
                version: *version,
                arm,
                labelled: figures.labelled,
                accuracy: figures.accuracy(),
                mean_absolute_error: figures.mean_absolute_error(),
                mean_delay: figures.mean_delay(),
                values: values.collect(),
            }
        },
    ));
}
