//! The control thread: the admin plane, and the upkeep of metrics.

use super::Phase;
use crate::admin::{self, Admin};
use crate::http::DataPlane;
use crate::quality::Quality;
use crate::telemetry::{QualityFigures, Telemetry, names};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// How often gauges are refreshed.
const UPKEEP: Duration = Duration::from_secs(1);
/// Folding samples into their buckets takes no more than this share of a core: it goes through all histograms, asked or not, which with
/// 2,000 models took 6 % of one every second. It is done every second where that is little, as samples that wait are memory that
/// requests walk through: at 50,000 a second, five seconds' samples cost them a tenth of their throughput.
const FOLD_SHARE: f64 = 0.02;

/// The running control thread.
#[derive(Debug)]
pub(super) struct Control {
    address: SocketAddr,
    end: watch::Sender<bool>,
    thread: JoinHandle<()>,
}

/// True once a stop has begun: what the admin plane's readiness asks.
pub(super) fn stopping(mut phases: watch::Receiver<Phase>) -> Arc<dyn Fn() -> bool + Send + Sync> {
    phases.mark_unchanged();
    Arc::new(move || *phases.borrow() != Phase::Serving)
}

impl Control {
    pub(super) fn start(
        listener: std::net::TcpListener,
        plane: Admin,
        telemetry: Telemetry,
        door: Arc<DataPlane>,
    ) -> io::Result<Control> {
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (end, mut ending) = watch::channel(false);
        let mut ended = end.subscribe();
        let quality = plane.quality.clone();
        let router = admin::router(plane);
        let thread = std::thread::Builder::new().name("control".to_owned()).spawn(move || {
            runtime.block_on(async move {
                let upkeep = tokio::spawn(upkeep(telemetry, door, quality));
                let served = async {
                    let listener = tokio::net::TcpListener::from_std(listener)?;
                    axum::serve(listener, router)
                        .with_graceful_shutdown(async move {
                            // An error means the app is gone, which is an end too.
                            let _ = ending.wait_for(|end| *end).await;
                        })
                        .await
                };
                // An operator's connection that stays open must not hold up a stop.
                let cut_off = async {
                    let _ = ended.wait_for(|end| *end).await;
                    tokio::time::sleep(Duration::from_millis(500)).await;
                };
                tokio::select! {
                    served = served => if let Err::<(), io::Error>(error) = served {
                        tracing::error!(%error, "the admin plane ended");
                    },
                    () = cut_off => {}
                }
                upkeep.abort();
            });
        })?;
        Ok(Control { address, end, thread })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn stop(self, within: Duration) {
        self.end.send_replace(true);
        let until = Instant::now() + within;
        while !self.thread.is_finished() && Instant::now() < until {
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }
}

async fn upkeep(telemetry: Telemetry, door: Arc<DataPlane>, quality: Quality) {
    let process = telemetry.process();
    let (ready, depth, resident) = (
        process.gauge(&names::READY, &[]),
        process.gauge(&names::QUEUE_DEPTH, &[]),
        process.gauge(&names::RESIDENT_BYTES, &[]),
    );
    let mut every = tokio::time::interval(UPKEEP);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut due = Instant::now();
    loop {
        every.tick().await;
        let now = Instant::now();
        if now >= due {
            telemetry.upkeep();
            due = now + now.elapsed().div_f64(FOLD_SHARE);
        }
        ready.set(f64::from(u8::from(door.ready())));
        depth.set(door.gateway().executor().queue_depth() as f64);
        if let Some(bytes) = crate::machine::resident_bytes() {
            resident.set(bytes as f64);
        }
        show_quality(&telemetry, &quality);
    }
}

/// Shows what feedback says about every version on every arm.
fn show_quality(telemetry: &Telemetry, quality: &Quality) {
    let all = quality.all();
    let arms = all.iter().flat_map(|(model, of)| of.arms.iter().map(move |arm| (model, arm)));
    telemetry.show_quality(arms.filter(|(_, (_, figures))| figures.with_feedback > 0).map(
        |(model, ((version, arm), figures))| {
            let values = figures.values.iter().map(|(name, m)| (name.as_str(), m.count, m.mean, m.variance()));
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
