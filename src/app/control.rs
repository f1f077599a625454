//! The control thread: the admin plane, and the upkeep of metrics.

use super::Phase;
use crate::admin::{self, Admin};
use crate::http::Door;
use crate::quality::Quality;
use crate::telemetry::{QualityShown, Telemetry, names};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// How often gauges are refreshed.
const UPKEEP: Duration = Duration::from_secs(1);
/// Samples are folded into their buckets every so many times, and when somebody looks. Each costs 8 bytes until then (50,000 requests a
/// second: some 5 MB), and each fold goes through all histograms, asked or not: with 2,000 models that took 6 % of a core every second.
const FOLD: u32 = 5;

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
        door: Arc<Door>,
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

async fn upkeep(telemetry: Telemetry, door: Arc<Door>, quality: Quality) {
    let process = telemetry.process();
    let (ready, depth, resident) = (
        process.gauge(&names::READY, &[]),
        process.gauge(&names::QUEUE_DEPTH, &[]),
        process.gauge(&names::RESIDENT_BYTES, &[]),
    );
    let mut every = tokio::time::interval(UPKEEP);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for tick in (0..FOLD).cycle() {
        every.tick().await;
        if tick == 0 {
            telemetry.upkeep();
        }
        ready.set(f64::from(u8::from(door.ready())));
        depth.set(door.gateway().executor().queue_depth() as f64);
        if let Some(bytes) = crate::machine::resident_bytes() {
            resident.set(bytes as f64);
        }
        show_quality(&telemetry, &quality);
    }
}

/// Shows what feedback says of every version on every arm.
fn show_quality(telemetry: &Telemetry, quality: &Quality) {
    for (model, of) in quality.all() {
        for ((version, arm), figures) in of.arms.iter().filter(|(_, figures)| figures.told > 0) {
            let values = figures.values.iter().map(|(name, m)| (name.as_str(), m.count, m.mean, m.variance()));
            telemetry.show_quality(&QualityShown {
                model: model.as_str(),
                version: &version.to_string(),
                arm,
                labelled: figures.labelled,
                accuracy: figures.accuracy(),
                mean_absolute_error: figures.mean_absolute_error(),
                mean_delay: figures.mean_delay(),
                values: values.collect(),
            });
        }
    }
}
