//! Sticky keys over several gateways: each key counts once, whatever gateways answered its requests, and whatever report comes twice.
//!
//! A gateway says which keys it followed ([`KeyNotes`](super::keys::KeyNotes)). The union of these sets has each key once, in whatever order they come.

use super::keys::{Before, FAULTS, Faults, KEYLESS, KeyEvidence, KeyNote};
use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// Keys of one side that are followed at most. If there are more, half as many are followed from then on, as in the table of one gateway.
const MAX_POOLED: usize = 65_536;
/// Beyond that, a key is of no use.
const MAX_HALVINGS: u32 = 31;

/// The two sides of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Candidate,
    Control,
}

/// The keys of both sides of a step, over all gateways.
#[derive(Debug, Clone, Default)]
pub(crate) struct PooledKeys {
    halvings: u32,
    period: u32,
    candidate: OfSide,
    control: OfSide,
}

#[derive(Debug, Clone, Default)]
struct OfSide {
    keys: HashMap<u32, Pooled>,
    counts: KeyEvidence,
}

#[derive(Debug, Clone, Copy)]
struct Pooled {
    had: Faults,
    /// The last period in which it counted.
    period: u32,
}

impl PooledKeys {
    /// Begins a period: each key counts once more.
    pub(crate) fn begin_period(&mut self, period: u32) {
        self.period = self.period.max(period);
    }

    /// Takes what a gateway said of the keys of one side in its `period`. Both sides are followed with the larger number of halvings.
    pub(crate) fn take(&mut self, side: Side, period: u32, halvings: u32, notes: &[KeyNote]) {
        self.follow(halvings);
        let (followed, now) = (self.halvings, self.period);
        let of_side = self.side_mut(side);
        for note in notes.iter().filter(|note| note.tag.leading_zeros() >= followed) {
            of_side.count(*note, now, period == now && note.now);
        }
        while self.side_mut(side).keys.len() > MAX_POOLED && self.halvings < MAX_HALVINGS {
            self.follow(self.halvings + 1);
        }
    }

    /// Follows fewer keys.
    fn follow(&mut self, halvings: u32) {
        if halvings <= self.halvings {
            return;
        }
        self.halvings = halvings.min(MAX_HALVINGS);
        for side in [&mut self.candidate, &mut self.control] {
            side.keys.retain(|tag, _| tag.leading_zeros() >= halvings);
        }
    }

    fn side_mut(&mut self, side: Side) -> &mut OfSide {
        match side {
            Side::Candidate => &mut self.candidate,
            Side::Control => &mut self.control,
        }
    }

    /// The evidence of a side. `keyless`: requests without a key of all gateways, each of which is a key of its own. `weight`: the share of
    /// the split that the side has.
    pub(crate) fn evidence(&self, side: Side, keyless: &[u64; KEYLESS], weight: f64) -> KeyEvidence {
        let of_side = match side {
            Side::Candidate => &self.candidate,
            Side::Control => &self.control,
        };
        let mut evidence = of_side.counts.clone();
        let never = Before::Never as usize;
        evidence.trials[never] += keyless[0];
        for fault in 0..FAULTS {
            evidence.bad[fault][never] += keyless[1 + fault];
            evidence.ever_bad[fault] += keyless[1 + fault];
        }
        evidence.weight = weight * (-f64::from(self.halvings)).exp2();
        evidence
    }
}

impl OfSide {
    /// Counts a key in the period `now`. `again`: the gateway counted it in that period too.
    fn count(&mut self, note: KeyNote, now: u32, again: bool) {
        let KeyEvidence { trials, bad, ever_bad, .. } = &mut self.counts;
        let new_faults = match self.keys.entry(note.tag) {
            Entry::Vacant(vacant) => {
                vacant.insert(Pooled { had: note.had, period: now });
                count(trials, bad, Before::Never, note.first);
                note.had
            }
            Entry::Occupied(mut known) => {
                let known = known.get_mut();
                if again && known.period < now {
                    known.period = now;
                    count(trials, bad, Before::EarlierPeriod, note.first);
                }
                let new = note.had.without(known.had);
                known.had = known.had.and(note.had);
                new
            }
        };
        for (fault, count) in ever_bad.iter_mut().enumerate() {
            *count += u64::from(new_faults.has(fault));
        }
    }
}

fn count(trials: &mut [u64], bad: &mut [[u64; 3]; FAULTS], before: Before, first: Faults) {
    trials[before as usize] += 1;
    for (fault, of_fault) in bad.iter_mut().enumerate() {
        of_fault[before as usize] += u64::from(first.has(fault));
    }
}

#[cfg(test)]
mod tests {
    use super::super::counts::{ArmCounts, Ended, Unit};
    use super::super::keys::{Fault, KeyNotes, PERIOD_TICKS};
    use super::*;
    use crate::model::Code;
    use std::time::Duration;

    const NO_KEYLESS: [u64; KEYLESS] = [0; KEYLESS];

    fn hash(user: u64) -> u64 {
        xxhash_rust::xxh3::xxh3_64(&user.to_le_bytes())
    }

    fn send(arm: &ArmCounts, user: Option<u64>, failed: bool) {
        let failed = failed.then_some(Code::EngineFailed);
        arm.ended(&Ended { key: user.map(hash), ..Ended::of(failed, Duration::ZERO, true) });
    }

    fn notes(arm: &ArmCounts) -> KeyNotes {
        arm.key_notes().unwrap()
    }

    fn take(pool: &mut PooledKeys, arm: &ArmCounts) {
        let notes = notes(arm);
        pool.take(Side::Candidate, notes.period, notes.halvings, &notes.keys);
    }

    #[test]
    fn a_key_that_two_gateways_answered_counts_once() {
        let gateways = [ArmCounts::new(Unit::Key), ArmCounts::new(Unit::Key)];
        let mut pool = PooledKeys::default();
        for user in 0..100 {
            // Good on the one, and bad on the other.
            send(&gateways[0], Some(user), false);
            send(&gateways[1], Some(user), user < 10);
        }
        send(&gateways[1], None, true);
        for _ in 0..3 {
            for arm in &gateways {
                take(&mut pool, arm);
            }
        }
        let evidence = pool.evidence(Side::Candidate, &notes(&gateways[1]).keyless, 1.0);
        assert_eq!((evidence.keys(), evidence.ever_bad(Fault::Failed)), (101, 11));
        assert_eq!(evidence.bad_at_first(Fault::Failed), 1, "its first request was good, but that without a key");
        let empty = pool.evidence(Side::Control, &NO_KEYLESS, 1.0);
        assert_eq!(empty.keys(), 0);
    }

    #[test]
    fn a_period_counts_every_key_once_more_and_late_reports_of_an_earlier_one_do_not() {
        let gateways = [ArmCounts::new(Unit::Key), ArmCounts::new(Unit::Key)];
        let mut pool = PooledKeys::default();
        for arm in &gateways {
            (0..50).for_each(|user| send(arm, Some(user), false));
        }
        let late = notes(&gateways[0]);
        for arm in &gateways {
            take(&mut pool, arm);
        }
        let watch = |tick| super::super::Watch {
            tick,
            slow_us: u64::MAX,
            limit_us: u64::MAX,
            before_us: u64::MAX,
            engine_us: [u64::MAX; super::super::ROW_CLASSES],
        };
        pool.begin_period(1);
        for arm in &gateways {
            arm.watch(&watch(PERIOD_TICKS));
            (0..50).for_each(|user| send(arm, Some(user), true));
        }
        pool.take(Side::Candidate, late.period, late.halvings, &late.keys);
        let before = pool.evidence(Side::Candidate, &NO_KEYLESS, 1.0);
        assert_eq!((before.in_periods(), before.bad_in_periods(Fault::Failed)), (50, 0));
        for _ in 0..2 {
            for arm in &gateways {
                take(&mut pool, arm);
            }
        }
        let after = pool.evidence(Side::Candidate, &NO_KEYLESS, 1.0);
        assert_eq!((after.keys(), after.in_periods(), after.bad_in_periods(Fault::Failed)), (50, 100, 50));
        assert_eq!(after.ever_bad(Fault::Failed), 50);
    }

    #[test]
    fn one_gateway_alone_counts_as_its_own_table_does() {
        let arm = ArmCounts::new(Unit::Key);
        let mut pool = PooledKeys::default();
        for user in 0..1000 {
            send(&arm, Some(user), user % 7 == 0);
        }
        take(&mut pool, &arm);
        let (pooled, own) = (pool.evidence(Side::Candidate, &NO_KEYLESS, 1.0), arm.read().keys.unwrap());
        assert_eq!(pooled, own);
    }

    #[test]
    fn more_keys_than_fit_are_sampled_on_both_sides() {
        let note = |user| KeyNote {
            tag: (hash(user) >> 32) as u32,
            had: Faults::default(),
            first: Faults::default(),
            now: true,
        };
        let mut pool = PooledKeys::default();
        let few: Vec<KeyNote> = (0..1000).map(note).collect();
        pool.take(Side::Control, 0, 0, &few);
        for gateway in 0..5_u64 {
            let many: Vec<KeyNote> = (gateway * 30_000..(gateway + 1) * 30_000).map(note).collect();
            pool.take(Side::Candidate, 0, 0, &many);
        }
        assert_eq!(pool.halvings, 2);
        let weights = [Side::Candidate, Side::Control].map(|side| pool.evidence(side, &NO_KEYLESS, 1.0).weight);
        assert_eq!(weights, [0.25, 0.25]);
        assert!((200..300).contains(&pool.control.keys.len()), "{}", pool.control.keys.len());
        pool.take(Side::Control, 0, 99, &few);
        assert_eq!(pool.halvings, MAX_HALVINGS, "a number from elsewhere is bounded");
    }
}
