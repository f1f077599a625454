//! The certificate of one plane while the server runs.

use super::files::Stamps;
use super::load::{Loaded, load};
use super::{Config, TlsError};
use crate::telemetry::{Scope, names};
use jiff::{SignedDuration, Timestamp};
use metrics::{Counter, Gauge};
use rustls::ServerConfig;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A certificate that ends sooner is reported. Authorities with automatic renewal renew a month before.
const SOON: SignedDuration = SignedDuration::from_hours(14 * 24);
/// How often the log says so.
const REMIND: SignedDuration = SignedDuration::from_hours(24);

/// The certificate of one plane.
#[derive(Debug)]
pub struct Tls {
    plane: &'static str,
    state: Mutex<State>,
    expires: Gauge,
    reloads: [Counter; 2],
}

#[derive(Debug)]
struct State {
    config: Config,
    loaded: Loaded,
    /// The files when they were last loaded, and when they were last looked at.
    tried: Stamps,
    seen: Stamps,
    /// Why the files that are there now are not used.
    refused: Option<String>,
    reminded: Option<Timestamp>,
}

impl Tls {
    /// Loads the files. `plane` is `data` or `admin`, as in the metrics.
    ///
    /// # Errors
    /// When they cannot be used. An expired certificate can be: the log says so.
    pub fn start(config: &Config, plane: &'static str, scope: &Scope) -> Result<Arc<Tls>, TlsError> {
        let stamps = Stamps::of(config);
        let loaded = load(config)?;
        let tls = Tls {
            plane,
            state: Mutex::new(State {
                config: config.clone(),
                loaded,
                tried: stamps.clone(),
                seen: stamps,
                refused: None,
                reminded: None,
            }),
            expires: scope.gauge(&names::TLS_EXPIRES, &[("plane", plane)]),
            reloads: ["ok", "refused"]
                .map(|result| scope.counter(&names::TLS_RELOADS, &[("plane", plane), ("result", result)])),
        };
        let mut state = tls.lock();
        tls.expires.set(state.loaded.not_after.as_second() as f64);
        tls.remind(&mut state, Timestamp::now());
        drop(state);
        Ok(Arc::new(tls))
    }

    /// What a handshake that begins now uses.
    pub(crate) fn current(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.lock().loaded.server)
    }

    /// Loads files that have changed since they were last loaded, once they have not changed between two calls: a certificate and its key
    /// are written one after the other.
    pub fn look(&self) {
        let mut state = self.lock();
        let now = Stamps::of(&state.config);
        if now != state.seen {
            state.seen = now;
        } else if now != state.tried {
            self.load(&mut state);
        }
        self.remind(&mut state, Timestamp::now());
    }

    /// Loads the files at once, which are now those of `config`.
    pub fn reload(&self, config: &Config) {
        let mut state = self.lock();
        state.config = config.clone();
        self.load(&mut state);
        self.remind(&mut state, Timestamp::now());
    }

    /// `data` or `admin`.
    #[must_use]
    pub fn plane(&self) -> &'static str {
        self.plane
    }

    /// When the certificate ends.
    #[must_use]
    pub fn ends(&self) -> Timestamp {
        self.lock().loaded.not_after
    }

    /// Sentences for an operator: the certificate ends soon, or new files are not used.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let state = self.lock();
        let mut warnings = Vec::from_iter(state.refused.clone());
        warnings.extend(self.ending(&state, Timestamp::now()));
        warnings
    }

    fn load(&self, state: &mut State) {
        let stamps = Stamps::of(&state.config);
        let loaded = load(&state.config).and_then(|loaded| {
            let now = Timestamp::now();
            // One that is valid is not given up for one that is not.
            if loaded.not_after <= now && state.loaded.not_after > now {
                let path = state.config.certificate.clone();
                return Err(TlsError::Expired { path, on: loaded.not_after.to_string() });
            }
            Ok(loaded)
        });
        (state.tried, state.seen) = (stamps.clone(), stamps);
        match loaded {
            Ok(loaded) => {
                tracing::info!(plane = self.plane, expires = %loaded.not_after, "certificates were loaded again");
                self.expires.set(loaded.not_after.as_second() as f64);
                self.reloads[0].increment(1);
                (state.loaded, state.refused, state.reminded) = (loaded, None, None);
            }
            Err(error) => {
                self.reloads[1].increment(1);
                let message = format!(
                    "the new certificates of the {} plane are not used, the old ones stay: {error}",
                    self.plane
                );
                tracing::error!("{message}");
                state.refused = Some(message);
            }
        }
    }

    fn ending(&self, state: &State, now: Timestamp) -> Option<String> {
        let end = state.loaded.not_after;
        let left = end.duration_since(now);
        let path = state.config.certificate.display();
        if left > SOON {
            None
        } else if left <= SignedDuration::ZERO {
            Some(format!("the certificate of the {} plane expired on {end} ({path}): clients refuse it", self.plane))
        } else {
            let days = left.as_hours() / 24;
            Some(format!("the certificate of the {} plane expires on {end}, in {days} days ({path})", self.plane))
        }
    }

    fn remind(&self, state: &mut State, now: Timestamp) {
        let is_due = state.reminded.is_none_or(|last| now.duration_since(last).abs() >= REMIND);
        if let Some(sentence) = self.ending(state, now).filter(|_| is_due) {
            tracing::warn!("{sentence}");
            state.reminded = Some(now);
        }
    }

    /// A panic while the lock is held leaves complete state.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
