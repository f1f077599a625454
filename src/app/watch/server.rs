//! The server itself: the prediction log, the disk, memory, certificates, tokens and the audit trail.

use super::super::certificates::Certificates;
use crate::access::TokenFacts;
use crate::alerts::{About, Finding, Now, Rule, Severity};
use crate::ledger::{self, Heads};
use crate::machine::{self, Available, DiskSpace, lower_priority};
use crate::record::{DropReason, Log};
use jiff::{SignedDuration, Timestamp};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::time::{Duration, Instant};

// === the prediction log ===

/// Records that were lost count so long.
const LOSSES: Duration = Duration::from_mins(5);

/// Records that the log lost lately.
pub(super) struct Losses {
    log: Log,
    before: Option<u64>,
    lost: VecDeque<(Instant, u64)>,
}

impl Losses {
    pub(super) fn new(log: Log) -> Losses {
        Losses { log, before: None, lost: VecDeque::new() }
    }

    pub(super) fn look(&mut self, now: Now) -> Vec<Finding> {
        let lost: Vec<(DropReason, u64)> = self.log.dropped().filter(|(_, records)| *records > 0).collect();
        let total: u64 = lost.iter().map(|(_, records)| records).sum();
        let new = total.saturating_sub(self.before.replace(total).unwrap_or(0));
        if new > 0 {
            self.lost.push_back((now.at, new));
        }
        self.lost.retain(|(at, _)| now.at.saturating_duration_since(*at) < LOSSES);
        let status = self.log.status();
        let finding = |subject: &str, severity, summary: String, what_to_do: &str| Finding {
            about: About::server(Rule::LogLoss, subject),
            severity,
            summary,
            how_sure: "counted; each loss is a row in gaps/".to_owned(),
            what_to_do: what_to_do.to_owned(),
            since: None,
            training: None,
        };
        let mut findings = Vec::new();
        if let Some(since) = status.failing_since {
            let error = status.last_error.as_deref().unwrap_or("no reason is known");
            let summary = format!("the prediction log cannot be written: {error}");
            let wrong = finding(
                "writing",
                Severity::Critical,
                summary,
                "make room on the disk of the data directory, or repair it",
            );
            findings.push(Finding { since: Some(since), ..wrong });
        }
        if let Some(error) = &status.seal_error {
            let summary = format!("records of the prediction log cannot be turned into Parquet: {error}");
            findings.push(finding("sealing", Severity::Warning, summary, "the disk of the data directory may be full or read-only; the records wait in their segment until it is repaired"));
        }
        let recent: u64 = self.lost.iter().map(|(_, records)| records).sum();
        if recent > 0 {
            let reasons: Vec<String> =
                lost.iter().map(|(reason, records)| format!("{} {records}", reason.as_str())).collect();
            let summary = format!(
                "the prediction log lost {recent} records in the last five minutes (since the start, by reason: {})",
                reasons.join(", ")
            );
            let what = "raise prediction_log.queue_bytes or seal_cpu_share, or record a share only (sample_rate); docs/RECORDS.md has the rule";
            findings.push(finding("losing", Severity::Warning, summary, what));
        }
        findings
    }
}

// === disk and memory ===

/// A disk with less than both of these free is nearly full; below a fifth of them it is critical.
const DISK_SHARE: f64 = 0.05;
const DISK_BYTES: u64 = 5 << 30;
/// The share of the memory that must be available.
const MEMORY_SHARE: f64 = 0.05;

/// Whether the disk of the data directory is nearly full. `None` where the system does not say.
pub(super) fn disk(dir: &Path) -> Option<Vec<Finding>> {
    Some(Vec::from_iter(nearly_full(machine::disk_space(dir)?)))
}

fn nearly_full(space: DiskSpace) -> Option<Finding> {
    let DiskSpace { free, total } = space;
    let share = free as f64 / total.max(1) as f64;
    if share >= DISK_SHARE || free >= DISK_BYTES {
        return None;
    }
    let critical = share < DISK_SHARE / 5.0 || free < DISK_BYTES / 50;
    Some(Finding {
        about: About::server(Rule::DiskFull, "data.dir"),
        severity: if critical { Severity::Critical } else { Severity::Warning },
        summary: format!("the disk of the data directory has {} MiB free, {:.1} %", free >> 20, share * 100.0),
        how_sure: "certain: the file system says so".to_owned(),
        what_to_do:
            "make room, or lower prediction_log.disk_budget; with a full disk no change of traffic can be stored"
                .to_owned(),
        since: None,
        training: None,
    })
}

/// Whether the memory is nearly used up. `None` where the kernel does not say.
pub(super) fn memory(total: u64) -> Option<Vec<Finding>> {
    Some(Vec::from_iter(nearly_used_up(Available::now()?, total)))
}

fn nearly_used_up(available: Available, total: u64) -> Option<Finding> {
    let share = available.bytes as f64 / total.max(1) as f64;
    (share < MEMORY_SHARE).then(|| Finding {
        about: About::server(Rule::MemoryFull, ""),
        severity: Severity::Critical,
        summary: format!(
            "the process can take only {} MiB more memory, {:.1} % (limited by {})",
            available.bytes >> 20,
            share * 100.0,
            available.by
        ),
        how_sure: "certain for thirty seconds: the kernel says so".to_owned(),
        what_to_do: "unload versions that nobody needs, lower server.memory or models.memory_budget, or give the process more memory".to_owned(),
        since: None,
        training: None,
    })
}

// === certificates and tokens ===

/// A certificate that ends sooner is an alert. Authorities with automatic renewal renew a month before.
const CERTIFICATE: SignedDuration = SignedDuration::from_hours(14 * 24);
/// A token that ends sooner is an alert, and so is one for this time after it has ended.
const TOKEN: SignedDuration = SignedDuration::from_hours(7 * 24);
const TOKEN_ENDED: SignedDuration = SignedDuration::from_hours(24);

pub(super) fn certificates(tls: &Certificates, now: Timestamp) -> Vec<Finding> {
    let finding = |(plane, ends): (&'static str, Timestamp)| {
        let left = ends.duration_since(now);
        let over = left <= SignedDuration::ZERO;
        let summary = if over {
            format!("the certificate of the {plane} plane expired on {ends:.0}: clients refuse it")
        } else {
            format!("the certificate of the {plane} plane expires on {ends:.0}, in {} days", left.as_hours() / 24)
        };
        (left < CERTIFICATE).then(|| Finding {
            about: About::server(Rule::CertificateExpires, &format!("{plane} plane")),
            severity: if left < CERTIFICATE / 7 { Severity::Critical } else { Severity::Warning },
            summary,
            how_sure: "certain: the certificate says so".to_owned(),
            what_to_do: "put a new certificate into its file; it is loaded within seconds".to_owned(),
            since: None,
            training: None,
        })
    };
    tls.ends().into_iter().filter_map(finding).collect()
}

/// Tokens that expire soon, or expired within the last day. One that was made for a short time is reported in the last quarter of it.
pub(super) fn tokens(tokens: &[TokenFacts], now: Timestamp) -> Vec<Finding> {
    let finding = |token: &TokenFacts| {
        let ends = token.expires_at?;
        let left = ends.duration_since(now);
        let soon = TOKEN.min(ends.duration_since(token.created_at) / 4);
        if left > soon || left < -TOKEN_ENDED {
            return None;
        }
        let used = token.last_used.map_or_else(|| "it was never used".to_owned(), |at| format!("last used on {at:.0}"));
        let verb = if left <= SignedDuration::ZERO { "expired" } else { "expires" };
        let (name, role) = (&token.name, token.role.as_str());
        Some(Finding {
            about: About::server(Rule::TokenExpires, name),
            severity: Severity::Warning,
            summary: format!("the token {name} ({role}) {verb} on {ends:.0}; {used}"),
            how_sure: "certain: it was made so".to_owned(),
            what_to_do: format!(
                "make a new one under another name (`sluicegate token create`), give it to its user, and revoke this one: `sluicegate token revoke {name}`"
            ),
            since: None,
            training: None,
        })
    };
    tokens.iter().filter_map(finding).collect()
}

// === the audit trail ===

/// How often the whole audit trail is verified, first at the start.
const VERIFY: Duration = Duration::from_hours(1);

/// Verifies the audit trail on a thread of its own, as a long trail takes seconds.
#[derive(Debug)]
pub(super) struct Trail {
    data: PathBuf,
    began: Option<Instant>,
    running: Option<Receiver<Result<Vec<String>, String>>>,
    /// What the last verification found.
    problems: Option<Vec<String>>,
}

impl Trail {
    pub(super) fn new(data: PathBuf) -> Trail {
        Trail { data, began: None, running: None, problems: None }
    }

    /// `None` before the first verification.
    pub(super) fn look(&mut self, now: Now) -> Option<Vec<Finding>> {
        if let Some(running) = &self.running {
            match running.try_recv() {
                Ok(Ok(problems)) => {
                    self.problems = Some(problems);
                    self.running = None;
                }
                Ok(Err(error)) => {
                    tracing::error!(error, "the audit trail cannot be verified");
                    self.running = None;
                }
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => self.running = None,
            }
        }
        let due = self.began.is_none_or(|began| now.at.saturating_duration_since(began) >= VERIFY);
        if due && self.running.is_none() {
            self.began = Some(now.at);
            self.verify();
        }
        let problems = self.problems.as_ref()?;
        Some(Vec::from_iter(problems.first().map(|first| broken(first, problems.len()))))
    }

    fn verify(&mut self) {
        let (found, running) = sync_channel(1);
        let data = self.data.clone();
        let verify = move || {
            lower_priority("audit-verify", 15);
            let verified = ledger::open_for_reading(&data).and_then(|reader| reader.verify(Heads::default()));
            let problems = verified
                .map(|verified| verified.problems.into_iter().map(|problem| problem.found).collect())
                .map_err(|error| error.to_string());
            // The server may have stopped meanwhile.
            let _ = found.send(problems);
        };
        match std::thread::Builder::new().name("audit-verify".to_owned()).spawn(verify) {
            Ok(_) => self.running = Some(running),
            Err(error) => tracing::error!(%error, "the audit trail cannot be verified: no thread can be started"),
        }
    }
}

fn broken(first: &str, problems: usize) -> Finding {
    let more = if problems > 1 { format!(" (and {} more)", problems - 1) } else { String::new() };
    Finding {
        about: About::server(Rule::AuditBroken, ""),
        severity: Severity::Critical,
        summary: format!("the audit trail was changed: {first}{more}"),
        how_sure: "certain: a hash does not fit. It is verified at each start and every hour".to_owned(),
        what_to_do: "`sluicegate audit --verify --data-dir DIR` lists every problem; compare with the heads that are kept elsewhere (docs/AUDIT.md)"
            .to_owned(),
        since: None,
        training: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::{Models, Role};
    use crate::telemetry::Telemetry;
    use crate::tls;

    fn token(created: Timestamp, lives: SignedDuration) -> TokenFacts {
        TokenFacts {
            name: "ci".to_owned(),
            role: Role::Operator,
            models: Models::All,
            created_at: created,
            created_by: "local".to_owned(),
            expires_at: created.checked_add(lives).ok(),
            last_used: None,
            shared: false,
        }
    }

    #[test]
    fn a_token_is_reported_in_its_last_week_or_quarter_and_for_a_day_after() {
        let made: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let hours = SignedDuration::from_hours;
        let found = |lives: i64, after: i64| {
            let now = made.checked_add(hours(after)).unwrap();
            tokens(&[token(made, hours(lives))], now).pop().map(|finding| finding.summary)
        };
        assert_eq!(found(90 * 24, 82 * 24), None);
        let summary = found(90 * 24, 84 * 24).unwrap();
        assert!(
            summary.starts_with("the token ci (operator) expires on 2026-04-01T00:00:00Z; it was never used"),
            "{summary}"
        );
        assert_eq!(found(8, 5), None, "one for eight hours is not reported from the start");
        assert!(found(8, 7).is_some());
        assert!(found(8, 20).unwrap().contains(" expired on "));
        assert_eq!(found(8, 40), None, "nobody needs to know any more");
        assert_eq!(tokens(&[TokenFacts { expires_at: None, ..token(made, hours(1)) }], made), []);
    }

    #[test]
    fn a_certificate_is_reported_in_its_last_two_weeks_and_is_critical_in_the_last_two_days() {
        let dir = tempfile::TempDir::new().unwrap();
        let wanted = tls::Wanted {
            dir: dir.path().to_owned(),
            names: vec!["localhost".to_owned()],
            clients: Vec::new(),
            days: 90,
        };
        tls::make(&wanted).unwrap();
        let (certificate, key) = (dir.path().join("server.crt"), dir.path().join("server.key"));
        let config = tls::Config { certificate, key, client_ca: None, client_auth: tls::ClientAuth::default() };
        let data = tls::Tls::start(&config, "data", Telemetry::new().process()).unwrap();
        let ends = data.ends();
        let all = Certificates { data: Some(data), admin: None };
        let found = |days: i64| {
            let now = ends.checked_sub(SignedDuration::from_hours(24 * days + 1)).unwrap();
            certificates(&all, now).pop().map(|finding| (finding.severity, finding.summary))
        };
        assert_eq!(found(15), None);
        let (severity, summary) = found(13).unwrap();
        assert!(severity == Severity::Warning && summary.contains("of the data plane expires on "), "{summary}");
        assert!(summary.ends_with(", in 13 days"), "{summary}");
        assert_eq!(found(1).unwrap().0, Severity::Critical);
        let (severity, summary) = found(-3).unwrap();
        assert!(severity == Severity::Critical && summary.contains(" expired on "), "{summary}");
    }

    #[test]
    fn a_disk_is_nearly_full_by_share_and_by_bytes() {
        let gib = 1_u64 << 30;
        let severity = |free, total| nearly_full(DiskSpace { free, total }).map(|finding| finding.severity);
        assert_eq!(severity(10 * gib, 1000 * gib), None, "1 % of a large disk is a lot");
        assert_eq!(severity(gib, 10 * gib), None, "a small disk is not full with a tenth free");
        assert_eq!(severity(4 * gib, 100 * gib), Some(Severity::Warning));
        assert_eq!(severity(gib / 2, 100 * gib), Some(Severity::Critical));
        assert_eq!(severity(0, 0), Some(Severity::Critical));
    }

    #[test]
    fn memory_is_nearly_used_up_below_a_twentieth() {
        let mib = 1 << 20;
        let by = machine::Limit::Cgroup;
        assert_eq!(nearly_used_up(Available { bytes: 100 * mib, by }, 1000 * mib), None);
        let summary = nearly_used_up(Available { bytes: 20 * mib, by }, 1000 * mib).unwrap().summary;
        assert!(summary.contains("20 MiB more memory, 2.0 % (limited by the control group)"), "{summary}");
    }
}
