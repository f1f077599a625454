//! Limits how often a call-site that logs per request may write.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

/// Lines that one call-site may write in a [`WINDOW`].
const LINES: u32 = 10;
const WINDOW: Duration = Duration::from_secs(1);

/// Suppresses lines of call-sites that log per request, beyond the first [`LINES`] in a [`WINDOW`], and counts them.
///
/// A call-site logs per request when it has the field `request_id`. All others (changes of state, what operators did) write every line.
/// Cheap to clone; the clones share their counts.
#[derive(Debug, Clone, Default)]
pub(super) struct Limit(Arc<Mutex<HashMap<Identifier, Site>>>);

/// What one call-site wrote lately.
#[derive(Debug)]
struct Site {
    metadata: &'static Metadata<'static>,
    window: Instant,
    written: u32,
    suppressed: u64,
    /// The message of the first suppressed line.
    message: String,
}

impl Limit {
    /// Counts a line at `now`. Whether it may be written.
    fn allows(&self, event: &Event<'_>, now: Instant) -> bool {
        let metadata = event.metadata();
        if metadata.fields().field("request_id").is_none() {
            return true;
        }
        let mut sites = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let site = sites.entry(metadata.callsite()).or_insert_with(|| Site {
            metadata,
            window: now,
            written: 0,
            suppressed: 0,
            message: String::new(),
        });
        if now.saturating_duration_since(site.window) >= WINDOW {
            (site.window, site.written) = (now, 0);
        }
        if site.written < LINES {
            site.written += 1;
            return true;
        }
        if site.suppressed == 0 {
            site.message.clear();
            event.record(&mut Message(&mut site.message));
        }
        site.suppressed += 1;
        false
    }

    /// Logs how many lines each call-site lost since the last report.
    pub fn report(&self) {
        let mut reports = Vec::new();
        for site in self.0.lock().unwrap_or_else(PoisonError::into_inner).values_mut() {
            if site.suppressed > 0 {
                reports.push((std::mem::take(&mut site.suppressed), std::mem::take(&mut site.message), site.metadata));
            }
        }
        // Without the lock, as each line comes back to `allows`.
        for (suppressed, message, metadata) in reports {
            let source = metadata.file().unwrap_or_default();
            tracing::warn!(source, line = metadata.line(), "{suppressed} similar lines suppressed: {message}");
        }
    }
}

impl<S: Subscriber> Layer<S> for Limit {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        self.allows(event, Instant::now())
    }
}

/// Reads the message of an event.
struct Message<'a>(&'a mut String);

impl Visit for Message<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            // Writing to a String cannot fail.
            let _ = write!(self.0, "{value:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};
    use tracing_subscriber::layer::SubscriberExt as _;

    /// Collects the messages of events.
    #[derive(Clone, Default)]
    struct Seen(Arc<Mutex<Vec<String>>>);

    impl<S: Subscriber> Layer<S> for Seen {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            let mut message = String::new();
            event.record(&mut Message(&mut message));
            self.0.lock().unwrap().push(message);
        }
    }

    fn with_limit(log: impl FnOnce(&Limit)) -> Vec<String> {
        let (seen, limit) = (Seen::default(), Limit::default());
        let registry = tracing_subscriber::registry().with(limit.clone()).with(seen.clone());
        tracing::subscriber::with_default(registry, || log(&limit));
        let seen = seen.0.lock().unwrap();
        seen.clone()
    }

    #[test]
    fn per_request_lines_are_limited_per_call_site_counted_and_reported_once() {
        let seen = with_limit(|limit| {
            for i in 0..1000 {
                tracing::warn!(request_id = i, "prediction failed");
                tracing::warn!(request_id = i, "another call-site");
            }
            limit.report();
            limit.report();
        });
        let count = |start: &str| seen.iter().filter(|line| line.starts_with(start)).count();
        // Two windows when a slow machine needs more than a second.
        assert!((10..=40).contains(&count("prediction failed")), "{}", seen.len());
        let failed: usize = seen
            .iter()
            .filter_map(|line| line.strip_suffix(" similar lines suppressed: prediction failed"))
            .map(|n| n.parse::<usize>().unwrap())
            .sum();
        assert_eq!(failed + count("prediction failed"), 1000, "each line is written or counted");
        assert_eq!(seen.iter().filter(|line| line.contains("suppressed")).count(), 2, "one report per call-site");
    }

    #[test]
    fn lines_without_a_request_id_are_never_suppressed() {
        let seen = with_limit(|limit| {
            for i in 0..1000 {
                tracing::warn!(version = i, "version failed");
            }
            limit.report();
        });
        assert_eq!(seen.len(), 1000);
    }

    /// Asks the limit with a clock of its own.
    struct Clock(Limit, Arc<AtomicU64>, Instant);

    impl<S: Subscriber> Layer<S> for Clock {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            let second = self.1.load(Ordering::Relaxed) / 1000;
            let allowed = self.0.allows(event, self.2 + Duration::from_secs(second));
            self.1.fetch_add(u64::from(allowed), Ordering::Relaxed);
        }
    }

    #[test]
    fn a_new_window_writes_again() {
        let limit = Limit::default();
        let written = Arc::new(AtomicU64::new(0));
        let clock = Clock(limit, Arc::clone(&written), Instant::now());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(clock), || {
            for second in 0..3 {
                written.store(second * 1000, Ordering::Relaxed);
                for i in 0..50 {
                    tracing::warn!(request_id = i, "prediction failed");
                }
                assert_eq!(written.load(Ordering::Relaxed), second * 1000 + 10);
            }
        });
    }
}
