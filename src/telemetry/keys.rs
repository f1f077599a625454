//! Which sticky keys an arm has served under one revision of the traffic document: a bounded table of hashed keys, and counts of keys.
//!
//! Requests of one key are not independent, so evidence counts keys and not requests (docs/EVIDENCE.md). A request looks up its key with
//! one or two cache lines and without a lock. It writes only if it is the first request of its key since the last tick.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// Keys that one arm follows at most. If more come, only those whose hash begins with more zero bits are followed from then on, so half as
/// many: a sample that has nothing to do with what the keys do.
pub(crate) const MAX_KEYS: u32 = 32_768;
/// Two for each followed key, so that hardly any key finds its buckets full (6 in 10,000).
const SLOTS: usize = 2 * MAX_KEYS as usize;
/// The slots of one cache line.
const BUCKET: usize = 8;
/// The largest number of halvings: beyond 2^31 keys.
const MAX_HALVINGS: u32 = 16;
/// Ticks of a period.
pub(crate) const PERIOD_TICKS: u32 = 8;

/// What can be wrong with a request, or with the key that sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Failed,
    /// An output was NaN or infinite.
    Nonfinite,
    /// Slower than [`super::Watch::slow_us`].
    Slow,
    /// Slower than [`super::Watch::limit_us`].
    OverLimit,
    /// Slower than [`super::Watch::before_us`].
    OverBefore,
    /// The engine took longer than [`super::Watch::engine_us`].
    SlowEngine,
    /// The answer differs from the arm's answer before: no fault, but counted like one.
    Changed,
}

/// The number of faults.
pub(crate) const FAULTS: usize = 7;

/// A set of faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Faults(u8);

/// A slot has seven bits for the faults of a period.
const _: () = assert!(FAULTS <= 7, "the slots of the table have no room for another fault");

/// When a key had its last counted request before this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Before {
    /// Never: a new key.
    Never,
    /// In an earlier period.
    EarlierPeriod,
    /// In this period, before this tick.
    ThisPeriod,
}

/// The number of variants of [`Before`].
const BEFORES: usize = 3;

/// A request that counts for its key.
struct Trial {
    before: Before,
    /// The faults that the key has for the first time.
    new_faults: Faults,
}

/// The table and the counts of one arm.
#[derive(Debug)]
pub(super) struct KeyCounts {
    /// 0, or a tag of 32 bits of the key's hash, the tick of its last counted request (16 bits), the faults that it had (8 bits), those of its
    /// first request in the period of that tick (7 bits) and 1. A slot whose key is no longer followed may be given to another key.
    slots: Box<[AtomicU64]>,
    /// The keys that are followed now, nearly.
    followed: AtomicU32,
    /// Only keys whose tag begins with this many zero bits are followed.
    halvings: AtomicU32,
    /// Set by the rollout; 16 bits of it are kept in a slot. After 65,536 ticks, a thousand times the shortest time of a step, a key that
    /// was silent for exactly so long is taken for one of this tick.
    tick: AtomicU32,
    trials: [AtomicU64; BEFORES],
    bad: [[AtomicU64; BEFORES]; FAULTS],
    /// Keys that had a fault at least once.
    ever_bad: [AtomicU64; FAULTS],
    /// Requests without a key, and those of them with each fault.
    keyless: [AtomicU64; KEYLESS],
}

/// Requests without a key, and those of them with each fault.
pub(crate) const KEYLESS: usize = 1 + FAULTS;

/// What the table says of one key, for a driver that counts each key once over several gateways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KeyNote {
    /// Half of the key's hash.
    pub(crate) tag: u32,
    /// Every fault that it had.
    pub(crate) had: Faults,
    /// Those of its first request in the period in which it was counted last.
    pub(crate) first: Faults,
    /// Whether that is the current period.
    pub(crate) now: bool,
}

/// The table at one time.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct KeyNotes {
    pub(crate) period: u32,
    pub(crate) halvings: u32,
    pub(crate) keys: Vec<KeyNote>,
    pub(crate) keyless: [u64; KEYLESS],
}

/// The counts at one time.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct KeyEvidence {
    pub(super) trials: [u64; BEFORES],
    pub(super) bad: [[u64; BEFORES]; FAULTS],
    pub(super) ever_bad: [u64; FAULTS],
    /// The share of keys that this arm is expected to have, times the share of them that is followed.
    pub(crate) weight: f64,
}

// === impl Faults ===

impl Faults {
    /// This fault, if it happened.
    pub(super) fn with(self, fault: Fault, happened: bool) -> Faults {
        Faults(self.0 | u8::from(happened) << fault as u8)
    }

    pub(super) fn has(self, fault: usize) -> bool {
        self.0 >> fault & 1 == 1
    }

    /// The faults of both.
    pub(crate) fn and(self, more: Faults) -> Faults {
        Faults(self.0 | more.0)
    }

    /// Those that `before` has not.
    pub(super) fn without(self, before: Faults) -> Faults {
        Faults(self.0 & !before.0)
    }

    /// One bit for each fault.
    pub(crate) fn bits(self) -> u8 {
        self.0
    }

    /// Bits that stand for no fault are ignored.
    pub(crate) fn from_bits(bits: u8) -> Faults {
        Faults(bits & ((1 << FAULTS) - 1))
    }
}

// === impl KeyCounts ===

impl Default for KeyCounts {
    fn default() -> KeyCounts {
        KeyCounts {
            slots: (0..SLOTS).map(|_| AtomicU64::new(0)).collect(),
            followed: AtomicU32::new(0),
            halvings: AtomicU32::new(0),
            tick: AtomicU32::new(0),
            trials: Default::default(),
            bad: Default::default(),
            ever_bad: Default::default(),
            keyless: Default::default(),
        }
    }
}

impl KeyCounts {
    /// Counts a request of a key. `None`: the request has no key, and counts as a key of its own.
    pub(super) fn record(&self, key: Option<u64>, faults: Faults) {
        let trial = match key {
            None => {
                self.keyless[0].fetch_add(1, Relaxed);
                for fault in (0..FAULTS).filter(|fault| faults.has(*fault)) {
                    self.keyless[1 + fault].fetch_add(1, Relaxed);
                }
                Some(Trial { before: Before::Never, new_faults: faults })
            }
            Some(key) => self.trial(key, faults),
        };
        let Some(Trial { before, new_faults }) = trial else { return };
        self.trials[before as usize].fetch_add(1, Relaxed);
        if faults == Faults::default() {
            return;
        }
        for fault in 0..FAULTS {
            if faults.has(fault) {
                self.bad[fault][before as usize].fetch_add(1, Relaxed);
            }
            if new_faults.has(fault) {
                self.ever_bad[fault].fetch_add(1, Relaxed);
            }
        }
    }

    /// Notes the request in the table. `None` where it does not count: the key had one since the last tick, or is not followed.
    fn trial(&self, key: u64, faults: Faults) -> Option<Trial> {
        let tag = (key >> 32) as u32;
        let halvings = self.halvings.load(Relaxed);
        if tag.leading_zeros() < halvings {
            return None;
        }
        let tick = self.tick.load(Relaxed) & 0xffff;
        let bucket = (key & 0xffff_ffff) as u32 as usize % (SLOTS / BUCKET);
        let mut free = None;
        // A key whose first bucket was full is in the next one.
        for bucket in [bucket, bucket ^ 1] {
            let slots = &self.slots[bucket * BUCKET..][..BUCKET];
            for slot in slots {
                let found = slot.load(Relaxed);
                if found != 0 && tag_of(found) == tag {
                    return again(slot, found, tick, faults);
                }
                if free.is_none() && (found == 0 || tag_of(found).leading_zeros() < halvings) {
                    free = Some((slot, found));
                }
            }
            // A bucket that was never full has sent no key to the next one.
            if slots[BUCKET - 1].load(Relaxed) == 0 {
                break;
            }
        }
        // Where both are full, the key is not followed.
        let (slot, found) = free?;
        // Where another request takes the slot at this moment, the key is counted when it comes again.
        slot.compare_exchange(found, pack(tag, tick, faults, faults), Relaxed, Relaxed).ok()?;
        self.inserted(halvings);
        Some(Trial { before: Before::Never, new_faults: faults })
    }

    /// Halves the share of keys that is followed where there are too many.
    fn inserted(&self, halvings: u32) {
        let followed = self.followed.fetch_add(1, Relaxed) + 1;
        if followed > MAX_KEYS && halvings < MAX_HALVINGS {
            let halved = self.halvings.compare_exchange(halvings, halvings + 1, Relaxed, Relaxed);
            if halved.is_ok() {
                self.followed.fetch_sub(followed / 2, Relaxed);
            }
        }
    }

    /// Begins a tick: the next request of each key counts.
    pub(super) fn set_tick(&self, tick: u32) {
        self.tick.store(tick, Relaxed);
    }

    /// How often the share of keys that is followed was halved.
    pub(super) fn halvings(&self) -> u32 {
        self.halvings.load(Relaxed)
    }

    /// The keys in the table that are followed after so many halvings.
    pub(super) fn distinct(&self, halvings: u32) -> u64 {
        let slots = self.slots.iter().map(|slot| slot.load(Relaxed));
        slots.filter(|slot| *slot != 0 && tag_of(*slot).leading_zeros() >= halvings).count() as u64
    }

    /// What is known of each key.
    pub(super) fn notes(&self) -> KeyNotes {
        let (halvings, tick) = (self.halvings.load(Relaxed), self.tick.load(Relaxed));
        let slots = self.slots.iter().map(|slot| slot.load(Relaxed));
        let followed = slots.filter(|slot| *slot != 0 && tag_of(*slot).leading_zeros() >= halvings);
        let note = |slot: u64| KeyNote {
            tag: tag_of(slot),
            had: Faults((slot >> 8 & 0xff) as u8),
            first: Faults((slot >> 1 & 0x7f) as u8),
            now: (slot >> 16 & 0xffff) as u32 / PERIOD_TICKS == (tick & 0xffff) / PERIOD_TICKS,
        };
        let keys = followed.map(note).collect();
        let keyless = std::array::from_fn(|i| self.keyless[i].load(Relaxed));
        KeyNotes { period: tick / PERIOD_TICKS, halvings, keys, keyless }
    }

    pub(super) fn read(&self) -> KeyEvidence {
        let of = |counts: &[AtomicU64; BEFORES]| std::array::from_fn(|i| counts[i].load(Relaxed));
        // Parts are read before the whole, so that no part is larger.
        let ever_bad = std::array::from_fn(|fault| self.ever_bad[fault].load(Relaxed));
        let bad = std::array::from_fn(|fault| of(&self.bad[fault]));
        KeyEvidence { ever_bad, bad, trials: of(&self.trials), weight: (-f64::from(self.halvings())).exp2() }
    }
}

fn pack(tag: u32, tick: u32, had: Faults, first: Faults) -> u64 {
    u64::from(tag) << 32 | u64::from(tick & 0xffff) << 16 | u64::from(had.0) << 8 | u64::from(first.0 & 0x7f) << 1 | 1
}

fn tag_of(slot: u64) -> u32 {
    (slot >> 32) as u32
}

/// Counts another request of a key that is in the table.
fn again(slot: &AtomicU64, mut found: u64, tick: u32, faults: Faults) -> Option<Trial> {
    let tag = tag_of(found);
    loop {
        let (last, had) = ((found >> 16 & 0xffff) as u32, (found >> 8 & 0xff) as u8);
        if last == tick {
            return None;
        }
        let same = last / PERIOD_TICKS == tick / PERIOD_TICKS;
        let first = if same { Faults((found >> 1 & 0x7f) as u8) } else { faults };
        match slot.compare_exchange_weak(found, pack(tag, tick, Faults(had | faults.0), first), Relaxed, Relaxed) {
            Ok(_) => {
                let before = if same { Before::ThisPeriod } else { Before::EarlierPeriod };
                return Some(Trial { before, new_faults: Faults(faults.0 & !had) });
            }
            Err(now) if tag_of(now) == tag => found = now,
            // The slot was given to another key.
            Err(_) => return None,
        }
    }
}

// === impl KeyEvidence ===

impl KeyEvidence {
    /// Keys so far.
    pub(crate) fn keys(&self) -> u64 {
        self.trials[Before::Never as usize]
    }

    /// Keys that had the fault in the first request of any tick.
    pub(crate) fn ever_bad(&self, fault: Fault) -> u64 {
        self.ever_bad[fault as usize]
    }

    /// Keys whose first request of a period had the fault, summed over the periods.
    pub(crate) fn bad_in_periods(&self, fault: Fault) -> u64 {
        let bad = &self.bad[fault as usize];
        bad[Before::Never as usize] + bad[Before::EarlierPeriod as usize]
    }

    /// Keys whose first request of the step had the fault.
    pub(crate) fn bad_at_first(&self, fault: Fault) -> u64 {
        self.bad[fault as usize][Before::Never as usize]
    }

    /// Keys that had a request in a period, summed over the periods.
    pub(crate) fn in_periods(&self) -> u64 {
        self.trials[Before::Never as usize] + self.trials[Before::EarlierPeriod as usize]
    }

    /// Adds the counts of another arm.
    pub(crate) fn add(&mut self, other: &KeyEvidence) {
        let add = |sum: &mut [u64], more: &[u64]| sum.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
        add(&mut self.trials, &other.trials);
        add(&mut self.ever_bad, &other.ever_bad);
        self.bad.iter_mut().zip(&other.bad).for_each(|(sum, more)| add(sum, more));
        self.weight += other.weight;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Faults = Faults(0);

    fn failed() -> Faults {
        NONE.with(Fault::Failed, true)
    }

    /// A hash for the number of a user.
    fn hash(user: u64) -> u64 {
        xxhash_rust::xxh3::xxh3_64(&user.to_le_bytes())
    }

    #[test]
    fn a_key_counts_once_per_tick_and_as_bad_once_per_step() {
        let keys = KeyCounts::default();
        (0..5).for_each(|_| keys.record(Some(hash(1)), failed()));
        keys.record(Some(hash(2)), NONE);
        let evidence = keys.read();
        assert_eq!((evidence.keys(), evidence.ever_bad(Fault::Failed)), (2, 1));
        // A later tick of the same period: the key that was good is bad now. The other one is not counted again.
        keys.set_tick(1);
        keys.record(Some(hash(1)), failed());
        keys.record(Some(hash(2)), failed());
        let evidence = keys.read();
        assert_eq!(
            (evidence.keys(), evidence.ever_bad(Fault::Failed), evidence.bad_in_periods(Fault::Failed)),
            (2, 2, 1)
        );
        // The next period counts every key again.
        keys.set_tick(PERIOD_TICKS);
        keys.record(Some(hash(1)), failed());
        keys.record(Some(hash(1)), failed());
        let evidence = keys.read();
        assert_eq!(
            (evidence.keys(), evidence.ever_bad(Fault::Failed), evidence.bad_in_periods(Fault::Failed)),
            (2, 2, 2)
        );
        assert_eq!((evidence.ever_bad(Fault::Slow), evidence.weight), (0, 1.0));
    }

    #[test]
    fn the_first_request_of_a_period_decides_whether_the_key_is_bad_in_it() {
        let keys = KeyCounts::default();
        keys.record(Some(hash(1)), NONE);
        keys.record(Some(hash(1)), failed());
        assert_eq!(keys.read().ever_bad(Fault::Failed), 0, "only the first request of a tick counts");
        keys.set_tick(1);
        keys.record(Some(hash(1)), failed());
        let evidence = keys.read();
        assert_eq!(
            (evidence.bad_at_first(Fault::Failed), evidence.ever_bad(Fault::Failed), evidence.in_periods()),
            (0, 1, 1)
        );
    }

    #[test]
    fn a_request_without_a_key_is_a_key_of_its_own() {
        let keys = KeyCounts::default();
        (0..3).for_each(|_| keys.record(None, failed()));
        assert_eq!((keys.read().keys(), keys.read().ever_bad(Fault::Failed)), (3, 3));
        assert_eq!(keys.distinct(0), 0, "it has no place in the table");
    }

    #[test]
    fn more_keys_than_fit_are_sampled_by_their_hash_and_hardly_any_of_the_sample_is_lost() {
        let keys = KeyCounts::default();
        let users = 10 * u64::from(MAX_KEYS);
        (0..users).for_each(|user| keys.record(Some(hash(user)), NONE));
        let halvings = keys.halvings();
        assert_eq!(halvings, 4, "a sixteenth of ten times the limit fits");
        let sampled = (0..users).filter(|user| hash(*user).leading_zeros() >= halvings).count() as u64;
        let distinct = keys.distinct(halvings);
        assert!(distinct <= sampled && distinct as f64 > sampled as f64 * 0.995, "{distinct} of {sampled}");
        assert!((keys.read().weight - 1.0 / 16.0).abs() < 1e-12);
        // The same keys again are not new, and in the next period every followed one counts.
        let before = keys.read();
        keys.set_tick(PERIOD_TICKS);
        (0..users).for_each(|user| keys.record(Some(hash(user)), failed()));
        let after = keys.read();
        let again = after.bad_in_periods(Fault::Failed) - before.bad_in_periods(Fault::Failed);
        assert!(again.abs_diff(sampled) as f64 <= 0.005 * sampled as f64, "{again} of {sampled}");
    }

    #[test]
    fn threads_count_each_key_once() {
        let keys = KeyCounts::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..5000).for_each(|user| keys.record(Some(hash(user)), failed())));
            }
        });
        let evidence = keys.read();
        let twice = evidence.keys() - keys.distinct(0);
        // Two threads may put one key into two slots at the same moment. Its second slot is never found again.
        assert!(evidence.keys().abs_diff(5000) <= 5 && twice == 0, "{} keys", evidence.keys());
        assert_eq!(evidence.keys(), evidence.ever_bad(Fault::Failed));
    }
}
