//! Writes what the prediction log deleted into the audit trail: which days of which model, and nothing of what the files held.

use crate::ledger::{Action, Note};
use crate::lifecycle::Handle;
use crate::record::{Deleted, Log};
use std::time::Duration;

/// How often deletions are reported. All deletions of one model in between are one event.
const EVERY: Duration = Duration::from_mins(1);
/// How long a stop waits for the last events.
const AT_STOP: Duration = Duration::from_secs(1);

/// Reports deletions.
#[derive(Debug, Clone)]
pub(super) struct Retention {
    pub(super) log: Log,
    pub(super) handle: Handle,
}

impl Retention {
    /// Reports deletions until the task is ended.
    pub(super) async fn run(self) {
        let mut every = tokio::time::interval(EVERY);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            every.tick().await;
            self.report().await;
        }
    }

    /// Reports the deletions so far. What cannot be stored is reported later.
    async fn report(&self) {
        for deleted in self.log.take_deleted() {
            if let Err(failure) = self.handle.note(note(&deleted)).await {
                tracing::error!(error = failure.operator_text(), "deleted log files are not in the audit trail yet");
                self.log.put_deleted_back(deleted);
            }
        }
    }

    /// Reports the last deletions, before the manager stops.
    pub(super) fn stop(&self, within: Duration) {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_time().build() else { return };
        runtime.block_on(async {
            let _ = tokio::time::timeout(within.min(AT_STOP), self.report()).await;
        });
    }
}

fn note(deleted: &Deleted) -> Note {
    let reason = match deleted.reason {
        "age" => "files of the prediction log were older than prediction_log.keep_for",
        "uploaded" => "uploaded files of the prediction log were older than prediction_log.upload_keep_local",
        "not_uploaded" => {
            "the prediction log was larger than prediction_log.disk_budget, and these files could not be uploaded before: they are lost"
        }
        _ => "the prediction log was larger than prediction_log.disk_budget",
    };
    Note {
        model: deleted.model.clone(),
        actor: "sluicegate".to_owned(),
        action: Action::Retention,
        reason: Some(reason.to_owned()),
        before: None,
        after: serde_json::to_string(deleted).ok(),
    }
}
