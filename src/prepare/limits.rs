//! How long the stages of a version may take.

use super::failure::StageFailure;
use crate::execute::{RunLimit, limit_runs};
use crate::registry::Stage;
use std::time::{Duration, Instant};

/// The time limit of each stage: `[models] load_timeout`, `verify_timeout`, `warm_timeout`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeLimits {
    /// For small files. Large ones have one more second for every [`TimeLimits::BYTES_PER_SECOND`].
    pub load: Duration,
    pub verify: Duration,
    pub warm: Duration,
}

impl TimeLimits {
    /// How fast the files of a version are read at least: hashed once and read once more by the engine, from a slow network disk.
    pub const BYTES_PER_SECOND: u64 = 10 << 20;

    /// The time that files of `bytes` bytes add to the limit of the stage `load`.
    #[must_use]
    pub fn reading_time(bytes: u64) -> Duration {
        Duration::from_secs(bytes / Self::BYTES_PER_SECOND)
    }

    /// The limit of a stage, for a version whose files have `bytes` bytes.
    #[must_use]
    pub fn of(&self, stage: Stage, bytes: u64) -> Duration {
        match stage {
            Stage::Load => self.load.saturating_add(Self::reading_time(bytes)),
            Stage::Verify => self.verify,
            // Stages of a version that was ready have no limit here.
            Stage::Warm | Stage::Stuck | Stage::Crashed => self.warm,
        }
    }

    /// The failure of a stage that took longer than its limit.
    #[must_use]
    pub fn exceeded(&self, stage: Stage, bytes: u64) -> StageFailure {
        let (limit, key) = (self.of(stage, bytes).as_secs_f64(), stage.as_str());
        StageFailure::permanent(stage, format!("took longer than {limit} s; models.{key}_timeout sets the limit"))
    }
}

/// The clock of one stage. While it lives, runs of this thread are interrupted at the stage's deadline.
#[derive(Debug)]
pub(super) struct StageClock {
    limits: TimeLimits,
    stage: Stage,
    bytes: u64,
    deadline: Option<Instant>,
    _runs: Option<RunLimit>,
}

impl StageClock {
    /// Starts the clock of a stage of a version whose files have `bytes` bytes.
    pub(super) fn start(limits: TimeLimits, stage: Stage, bytes: u64) -> StageClock {
        // A deadline that the clock cannot express never comes.
        let deadline = Instant::now().checked_add(limits.of(stage, bytes));
        StageClock { limits, stage, bytes, deadline, _runs: deadline.map(limit_runs) }
    }

    /// Ends the stage.
    ///
    /// # Errors
    /// When it took too long.
    pub(super) fn finish(self) -> Result<(), StageFailure> {
        self.check()
    }

    /// # Errors
    /// When the time is over.
    fn check(&self) -> Result<(), StageFailure> {
        if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            Err(self.limits.exceeded(self.stage, self.bytes))
        } else {
            Ok(())
        }
    }

    /// What a stage returned; its time limit explains a failure after the deadline better than what the last run said.
    ///
    /// # Errors
    /// The stage's own, or that it took too long.
    pub(super) fn explain<T>(&self, result: Result<T, StageFailure>) -> Result<T, StageFailure> {
        self.check().and(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: TimeLimits =
        TimeLimits { load: Duration::from_mins(1), verify: Duration::from_secs(50), warm: Duration::from_secs(40) };

    #[test]
    fn large_files_have_more_time_to_load_and_no_more_to_run() {
        let gib = 1 << 30;
        assert_eq!(LIMITS.of(Stage::Load, 1300), Duration::from_mins(1));
        assert_eq!(LIMITS.of(Stage::Load, 10 * gib), Duration::from_secs(60 + 1024));
        assert_eq!(LIMITS.of(Stage::Verify, 10 * gib), Duration::from_secs(50));
        assert_eq!(LIMITS.of(Stage::Warm, gib), Duration::from_secs(40));
        let endless = TimeLimits { load: Duration::MAX, ..LIMITS };
        assert_eq!(endless.of(Stage::Load, u64::MAX), Duration::MAX);
        StageClock::start(endless, Stage::Load, 0).check().unwrap();
    }

    #[test]
    fn a_stage_that_took_too_long_fails_with_its_limit_whatever_it_returned() {
        let clock = StageClock::start(TimeLimits { verify: Duration::ZERO, ..LIMITS }, Stage::Verify, 0);
        let failure = clock.explain(Ok(1)).unwrap_err();
        assert_eq!((failure.stage, failure.retryable), (Stage::Verify, false));
        assert_eq!(failure.reason, "took longer than 0 s; models.verify_timeout sets the limit");
        let other = StageFailure::permanent(Stage::Verify, "case 3 differs");
        assert_eq!(clock.explain::<()>(Err(other.clone())).unwrap_err(), failure);
        assert_eq!(StageClock::start(LIMITS, Stage::Verify, 0).explain::<()>(Err(other.clone())).unwrap_err(), other);
    }
}
