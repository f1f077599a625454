//! Whether sealed files reach their bucket.

use crate::alerts::{About, Finding, Now, Rule, Severity};
use crate::record::{DiskBytes, Log};
use crate::upload::{Report, Uploads};
use jiff::{SignedDuration, Timestamp};
use std::time::{Duration, Instant};

/// Failures are reported when they last so long: a store may refuse a request now and then.
const FAILING: SignedDuration = SignedDuration::from_mins(5);
/// A file that waits longer is reported, also when others arrive: the bandwidth may be too small.
const WAITING: SignedDuration = SignedDuration::from_hours(1);
/// The share of the budget that files may take while they wait.
const SHARE: f64 = 0.5;
/// Lost files are reported for so long.
const LOST: Duration = Duration::from_hours(1);

/// What is not in the bucket.
pub(super) struct Behind {
    uploads: Option<Uploads>,
    log: Log,
    lost: u64,
    lost_at: Option<Instant>,
}

impl Behind {
    pub(super) fn new(uploads: Option<Uploads>, log: Log) -> Behind {
        Behind { uploads, log, lost: 0, lost_at: None }
    }

    pub(super) fn look(&mut self, now: Now) -> Vec<Finding> {
        let Some(uploads) = &self.uploads else { return Vec::new() };
        let report = uploads.report();
        if report.waiting.lost_files > self.lost {
            self.lost = report.waiting.lost_files;
            self.lost_at = Some(now.at);
        }
        let lost = self.lost_at.is_some_and(|at| now.at.saturating_duration_since(at) < LOST);
        findings(&report, self.log.disk_bytes(), lost, now.ts)
    }
}

fn findings(report: &Report, disk: DiskBytes, lost_lately: bool, now: Timestamp) -> Vec<Finding> {
    let Report { to, waiting, failing_since, last_error, .. } = report;
    let finding = |subject: &str, severity, summary: String, what_to_do: &str| Finding {
        about: About::server(Rule::UploadBehind, subject),
        severity,
        summary,
        how_sure: "counted".to_owned(),
        what_to_do: what_to_do.to_owned(),
        since: None,
        training: None,
    };
    let mut findings = Vec::new();
    if lost_lately {
        let summary = format!(
            "the disk budget was full, and {} files of the prediction log were deleted that are not in {to}: their records are lost",
            waiting.lost_files
        );
        findings.push(finding(
            "lost",
            Severity::Critical,
            summary,
            "repair the uploads, or raise prediction_log.disk_budget until they work",
        ));
    }
    let older = |at: Option<Timestamp>, than| at.is_some_and(|at| now.duration_since(at) >= than);
    let fails = older(*failing_since, FAILING) && waiting.files > 0;
    if fails || older(waiting.oldest, WAITING) {
        let share = waiting.bytes as f64 / disk.budget.max(1) as f64;
        let severity = if share >= SHARE { Severity::Critical } else { Severity::Warning };
        let why = last_error.as_ref().filter(|_| failing_since.is_some());
        let why = why.map_or_else(|| "they come faster than they are sent".to_owned(), Clone::clone);
        let summary = format!(
            "{} files of the prediction log ({} MiB, {:.0} % of disk_budget) wait to be uploaded to {to}: {why}",
            waiting.files,
            waiting.bytes >> 20,
            share * 100.0
        );
        let what = "repair the bucket, its rights or the network, or raise prediction_log.upload_bytes_per_second; when disk_budget is full, the oldest files are deleted (docs/UPLOAD.md)";
        let behind = finding("waiting", severity, summary, what);
        findings.push(Finding { since: *failing_since, ..behind });
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Waiting;

    #[test]
    fn uploads_are_reported_when_they_fail_for_long_wait_for_long_or_lose_files() {
        let now: Timestamp = "2026-11-28T20:00:00Z".parse().unwrap();
        let ago = |minutes| now.checked_sub(SignedDuration::from_mins(minutes)).unwrap();
        let report = |failing: Option<i64>, oldest: i64, bytes| Report {
            to: "s3://b/p".to_owned(),
            node: "n".to_owned(),
            files: 0,
            bytes: 0,
            last_uploaded: None,
            failing_since: failing.map(ago),
            last_error: failing.map(|_| "x: the credentials do not allow it (403)".to_owned()),
            waiting: Waiting { files: 3, bytes, oldest: Some(ago(oldest)), lost_files: 2 },
        };
        let disk = DiskBytes { segments: 0, sealed: 0, budget: 100 << 20 };
        let found = |report: &Report, lost| -> Vec<(Severity, String)> {
            findings(report, disk, lost, now).into_iter().map(|finding| (finding.severity, finding.summary)).collect()
        };
        assert_eq!(found(&report(Some(4), 59, 1), false), [], "neither failed for long nor waits for long");
        let (severity, summary) = found(&report(Some(6), 6, 10 << 20), false).remove(0);
        assert!(severity == Severity::Warning && summary.contains("(10 MiB, 10 % of disk_budget)"), "{summary}");
        assert!(summary.contains("s3://b/p: x: the credentials do not allow it (403)"), "{summary}");
        let (severity, summary) = found(&report(None, 61, 60 << 20), false).remove(0);
        assert!(severity == Severity::Critical && summary.contains("come faster than they are sent"), "{summary}");
        let (severity, summary) = found(&report(None, 1, 1), true).remove(0);
        assert!(
            severity == Severity::Critical && summary.contains("2 files of the prediction log were deleted"),
            "{summary}"
        );
    }
}
