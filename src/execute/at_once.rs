//! Decides whether a version's requests may run on the thread that read them.
//!
//! The expected cost is measured by the number of elements. What a `Loop` or a `NonMaxSuppression` takes lies in values, and the cost of
//! a convolution also in the shape. So a version whose graph holds such operators never runs there, neither does one that was shown to be
//! far slower than expected, and a shape with several free dimensions only after it was measured on a worker.

use crate::backend::GraphFacts;
use crate::machine;
use crate::model::{Checked, Dim, Signature};
use crate::tensor::{Data, DataType};
use std::cell::Cell;
use std::hash::Hasher;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A run on the thread that read the request is interrupted after this long and repeated on a worker.
const AT_ONCE_LIMIT: Duration = Duration::from_millis(50);
/// The same for a slow version that `model.toml` has run there: at most this.
const LONGEST: Duration = Duration::from_secs(1);
/// A run was far slower than expected where it took this many times as long …
const FAR_OVER: u32 = 20;
/// … and at least this long. A thread that loses its core for a moment takes a few milliseconds.
const AT_LEAST: Duration = Duration::from_millis(5);
/// After such a run, the version runs on workers for this long. There its processor time is measured, which shows whether the version
/// was slow or the machine was busy.
const SUSPECTED_FOR: Duration = Duration::from_secs(10);
/// After this many interrupted runs on the threads that read requests, the version never runs there again, whatever the cause was.
const MAX_INTERRUPTED: u32 = 5;
/// Bytes of strings in a request up to which it may run at once: the cost is measured by the number of strings.
const MAX_TEXT: usize = 16 * 1024;
/// Shapes that are remembered as measured. A shape that takes the place of another one makes that one run on a worker once more.
const SHAPES: usize = 1024;
/// A shape whose run took longer than this is not remembered.
const SHORT: Duration = Duration::from_millis(1);

/// After a run that took this long, and this many times the expected time, the thread reads how long it waited for a core. Not after every run,
/// because that takes a few microseconds.
const PAUSE: Duration = Duration::from_micros(500);
const SLOW: u32 = 4;
/// How often a thread reads how long it has waited for cores. What it waited since the last time may have been before the run in question.
const READ_DELAY: Duration = Duration::from_millis(10);
/// The same for its processor time, which is read with one system call. Far less than [`AT_LEAST`].
const READ_TIME: Duration = Duration::from_millis(1);
/// Long runs that used little processor time, although no other thread had the core, are excused this often …
const EXCUSED: u64 = 2;
/// … in this time. The virtual machine may not have run. A version whose runs sleep or wait for locks has more of them.
const EXCUSED_WITHIN: Duration = Duration::from_secs(10);

thread_local! {
    /// When this thread last read how long it has waited for cores, and what it read.
    static DELAY: Cell<Option<(Instant, Duration)>> = const { Cell::new(None) };
    /// The same for its processor time.
    static TIME: Cell<Option<(Instant, Duration)>> = const { Cell::new(None) };
}

/// How long a thread was without a core in a run, and maybe shortly before it.
#[derive(Debug, Clone, Copy)]
struct OffCore {
    /// It waited for one that other threads had, or for the quota of its control group.
    waited: Duration,
    /// For any reason. It may have slept, and the virtual machine may not have run.
    all: Duration,
}

/// To be called before a run on the thread that read the request, so that [`off_core`] knows about it.
pub(super) fn before_run(now: Instant) {
    let is_old =
        |read: Option<(Instant, Duration)>, age| read.is_none_or(|(at, _)| now.saturating_duration_since(at) >= age);
    if is_old(DELAY.get(), READ_DELAY) {
        DELAY.set(machine::run_delay().map(|delay| (now, delay)));
    }
    if is_old(TIME.get(), READ_TIME) {
        TIME.set(Some((now, machine::thread_time())));
    }
}

/// To be called after a run that took long.
#[cold]
fn off_core() -> OffCore {
    // The processor time is read last, so that a pause between the two readings is not counted.
    let all = TIME.get().map(|(at, before)| at.elapsed().saturating_sub(machine::thread_time().saturating_sub(before)));
    OffCore { waited: waited_for_core(), all: all.unwrap_or_default() }
}

/// How long this thread may have waited for a core in the run that began after [`before_run`]: on a busy machine, or where the quota of its
/// control group was used up. That says nothing about the version.
#[cold]
fn waited_for_core() -> Duration {
    match (DELAY.get(), machine::run_delay()) {
        (Some((_, before)), Some(now)) => now.saturating_sub(before),
        _ => Duration::ZERO,
    }
}

/// How long a run on the thread that read the request may take. `expected`: the cost of a version that `model.toml` has run there,
/// however slow it is.
pub(super) fn longest(expected: Option<Duration>) -> Duration {
    AT_ONCE_LIMIT.max(expected.unwrap_or_default().saturating_mul(FAR_OVER)).min(LONGEST)
}

/// What one version's runs on reading threads depend on, beyond their expected cost.
#[derive(Debug)]
pub(super) struct AtOnce {
    /// Why its requests never run there.
    never: OnceLock<String>,
    has_text: bool,
    /// The extents that a request may choose, apart from a number of rows that all inputs share. Without them, the elements give the cost.
    many_shapes: bool,
    /// Several inputs have free rows, which a request may give different numbers of.
    rows_may_differ: bool,
    /// Hashes of measured shapes; made by the first one.
    shapes: OnceLock<Box<[AtomicU64]>>,
    created: Instant,
    /// Runs go to workers until this time, in nanoseconds since `created`.
    workers_until: AtomicU64,
    /// Whether a run was far slower than expected and the cause is not known yet.
    suspected: AtomicBool,
    interrupted: AtomicU32,
    /// Long runs that were excused, and when the first of them was.
    excused: AtomicU64,
    excused_since: AtomicU64,
}

impl AtOnce {
    pub(super) fn new(signature: &Signature, graph: &GraphFacts) -> AtOnce {
        let never = OnceLock::new();
        if let Some(operator) = &graph.time_by_values {
            let _ = never.set(format!("operator {operator}: values decide how long it takes"));
        }
        AtOnce {
            never,
            has_text: signature.inputs().iter().any(|spec| spec.datatype == DataType::Bytes),
            many_shapes: has_many_shapes(signature),
            rows_may_differ: signature.has_rows() && signature.inputs().len() > 1,
            shapes: OnceLock::new(),
            created: Instant::now(),
            workers_until: AtomicU64::new(0),
            suspected: AtomicBool::new(false),
            interrupted: AtomicU32::new(0),
            excused: AtomicU64::new(0),
            excused_since: AtomicU64::new(0),
        }
    }

    /// Why the version's requests never run on the thread that read them.
    pub(super) fn never(&self) -> Option<&str> {
        self.never.get().map(String::as_str)
    }

    /// Whether the version's requests may run there now.
    pub(super) fn allows_version(&self) -> bool {
        self.never.get().is_none()
            && (!self.suspected.load(Ordering::Relaxed) || self.now() >= self.workers_until.load(Ordering::Relaxed))
    }

    /// Whether this request's shape was measured, its text is short, and no input is empty.
    pub(super) fn allows_request(&self, request: &Checked) -> bool {
        (!self.many_shapes || self.knows_shape(request))
            && (!self.rows_may_differ || request.rows().is_some())
            // Kernels are written for inputs with elements: some never end without.
            && request.inputs().iter().all(|input| !input.data().is_empty())
            && (!self.has_text || text_bytes(request) <= MAX_TEXT)
    }

    /// Whether the rows of several requests are known to take as long as their elements say.
    pub(super) fn allows_more_rows(&self) -> bool {
        !self.many_shapes
    }

    fn now(&self) -> u64 {
        u64::try_from(self.created.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    // === what was measured ===

    /// Remembers that a run of this shape took this long.
    pub(super) fn measured(&self, request: &Checked, took: Duration) {
        if !self.many_shapes || self.never.get().is_some() || took > SHORT || took.is_zero() {
            return;
        }
        let hash = hash_of_shape(request);
        let shapes = self.shapes.get_or_init(|| (0..SHAPES).map(|_| AtomicU64::new(0)).collect());
        let slot = &shapes[index(hash)];
        if slot.load(Ordering::Relaxed) != hash {
            slot.store(hash, Ordering::Relaxed);
        }
    }

    fn knows_shape(&self, request: &Checked) -> bool {
        let hash = hash_of_shape(request);
        self.shapes.get().is_some_and(|shapes| shapes[index(hash)].load(Ordering::Relaxed) == hash)
    }

    /// A run on the thread that read the request was interrupted after this long.
    pub(super) fn interrupted(&self, took: Duration) {
        self.interrupted_after(took, waited_for_core());
    }

    fn interrupted_after(&self, took: Duration, waited: Duration) {
        if took.saturating_sub(waited) < AT_LEAST {
            return;
        }
        self.suspect();
        if self.interrupted.fetch_add(1, Ordering::Relaxed) + 1 >= MAX_INTERRUPTED {
            let _ = self.never.set(format!(
                "{MAX_INTERRUPTED} runs were ended after {} ms on the thread that read the request",
                AT_ONCE_LIMIT.as_millis()
            ));
        }
    }

    /// A run on the thread that read the request took this long. `expected`: the cost known before. Returns its cost: the time that the
    /// thread had a core.
    pub(super) fn ran(&self, took: Duration, expected: Option<Duration>) -> Duration {
        let looks_slow = took >= PAUSE && expected.is_some_and(|expected| took >= expected.saturating_mul(SLOW));
        if looks_slow { self.ran_long(took, off_core(), expected) } else { took }
    }

    fn ran_long(&self, took: Duration, off: OffCore, expected: Option<Duration>) -> Duration {
        // Some of the time without a core may have been before this run.
        let cost = took.saturating_sub(off.all.max(off.waited)).max(expected.unwrap_or_default().min(took));
        let is_unexplained = || is_far_over(took.saturating_sub(off.waited), expected);
        if is_far_over(cost, expected) || is_unexplained() && !self.excuse() {
            self.suspect();
        }
        cost
    }

    /// Whether one more run may take long without processor time.
    fn excuse(&self) -> bool {
        let (now, within) = (self.now(), u64::try_from(EXCUSED_WITHIN.as_nanos()).unwrap_or(u64::MAX));
        if now.saturating_sub(self.excused_since.load(Ordering::Relaxed)) > within {
            self.excused_since.store(now, Ordering::Relaxed);
            self.excused.store(0, Ordering::Relaxed);
        }
        self.excused.fetch_add(1, Ordering::Relaxed) < EXCUSED
    }

    fn suspect(&self) {
        let until = self.now() + u64::try_from(SUSPECTED_FOR.as_nanos()).unwrap_or(u64::MAX / 2);
        self.workers_until.store(until, Ordering::Relaxed);
        self.suspected.store(true, Ordering::Relaxed);
    }

    /// Whether the processor time of runs on workers is to be measured.
    pub(super) fn is_suspected(&self) -> bool {
        self.suspected.load(Ordering::Relaxed) && self.never.get().is_none()
    }

    /// A run on a worker used this much processor time.
    pub(super) fn used(&self, processor_time: Duration, expected: Option<Duration>) {
        if is_far_over(processor_time, expected) {
            let _ = self.never.set(format!(
                "a run used {:.1} ms of processor time where {:.3} ms were expected",
                processor_time.as_secs_f64() * 1e3,
                expected.unwrap_or_default().as_secs_f64() * 1e3
            ));
        } else if self.now() >= self.workers_until.load(Ordering::Relaxed) {
            self.suspected.store(false, Ordering::Relaxed);
        }
    }
}

fn is_far_over(took: Duration, expected: Option<Duration>) -> bool {
    took >= AT_LEAST && expected.is_some_and(|expected| took >= expected.saturating_mul(FAR_OVER))
}

/// Whether requests can differ in more than one number of rows.
fn has_many_shapes(signature: &Signature) -> bool {
    let is_free = |dim: &Dim| matches!(dim, Dim::Free(_));
    let mut free_rows = 0;
    for spec in signature.inputs() {
        match spec.dims.as_deref() {
            None => return true,
            Some([]) => {}
            Some([rows, others @ ..]) => {
                if others.iter().any(is_free) {
                    return true;
                }
                free_rows += usize::from(is_free(rows));
            }
        }
    }
    // Several inputs with free rows: a request has the same number for all, or it has no rows.
    free_rows > 1 && !signature.has_rows()
}

fn text_bytes(request: &Checked) -> usize {
    let bytes = |data: &Data| match data {
        Data::Bytes(strings) => strings.iter().map(bytes::Bytes::len).sum(),
        _ => 0,
    };
    request.inputs().iter().map(|tensor| bytes(tensor.data())).sum()
}

/// Never 0, which marks a free place.
fn hash_of_shape(request: &Checked) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    for tensor in request.inputs() {
        hasher.write_usize(tensor.shape().len());
        tensor.shape().iter().for_each(|extent| hasher.write_usize(*extent));
    }
    hasher.finish().max(1)
}

fn index(hash: u64) -> usize {
    usize::try_from(hash % SHAPES as u64).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{InferenceRequest, NamedTensor, TensorSpec};
    use crate::tensor::{Shape, Tensor};

    const SLOW_RUN: Duration = Duration::from_millis(30);
    const EXPECTED: Option<Duration> = Some(Duration::from_micros(100));

    fn signature(inputs: &[(&str, DataType, &[Dim])]) -> Signature {
        let spec = |(name, datatype, dims): &(&str, DataType, &[Dim])| TensorSpec {
            name: (*name).into(),
            datatype: *datatype,
            dims: Some(dims.to_vec()),
        };
        let output = ("out", DataType::Fp32, &[Dim::Free(None)][..]);
        Signature::new(inputs.iter().map(spec).collect(), vec![spec(&output)])
    }

    fn request(signature: &Signature, inputs: &[(&str, &[usize])]) -> Checked {
        let inputs = inputs.iter().map(|(name, shape)| {
            let of = signature.inputs().iter().find(|spec| *spec.name == **name).unwrap().datatype;
            let tensor = Tensor::new(Shape::new(shape), Data::zeros(of, shape.iter().product())).unwrap();
            NamedTensor { name: (*name).to_owned(), tensor }
        });
        signature.check(InferenceRequest { inputs: inputs.collect(), ..Default::default() }).unwrap()
    }

    fn at_once(signature: &Signature) -> AtOnce {
        AtOnce::new(signature, &GraphFacts::unknown())
    }

    #[test]
    fn rows_alone_are_judged_by_their_elements() {
        let rows = signature(&[("x", DataType::Fp32, &[Dim::Free(None), Dim::Fixed(4)])]);
        assert!(at_once(&rows).allows_request(&request(&rows, &[("x", &[3, 4])])));
        let fixed = signature(&[("x", DataType::Fp32, &[Dim::Fixed(2), Dim::Fixed(4)])]);
        assert!(at_once(&fixed).allows_request(&request(&fixed, &[("x", &[2, 4])])));
        let two = signature(&[("x", DataType::Fp32, &[Dim::Free(None)]), ("y", DataType::Fp32, &[Dim::Free(None)])]);
        assert!(at_once(&two).allows_request(&request(&two, &[("x", &[3]), ("y", &[3])])));
        assert!(!at_once(&two).allows_request(&request(&two, &[("x", &[3]), ("y", &[2])])), "the rows differ");
    }

    #[test]
    fn a_shape_that_was_not_measured_to_be_short_runs_on_a_worker() {
        let matrix = signature(&[("x", DataType::Fp32, &[Dim::Free(None), Dim::Free(None)])]);
        let (at_once, wide, tall) =
            (at_once(&matrix), request(&matrix, &[("x", &[2, 8])]), request(&matrix, &[("x", &[8, 2])]));
        assert!(!at_once.allows_request(&wide));
        at_once.measured(&wide, Duration::from_micros(50));
        at_once.measured(&tall, Duration::from_secs(1));
        assert!(at_once.allows_request(&wide) && !at_once.allows_request(&tall), "as many elements, another cost");
    }

    #[test]
    fn long_text_runs_on_a_worker() {
        let text = signature(&[("t", DataType::Bytes, &[Dim::Free(None)])]);
        let of = |bytes: usize| {
            let data = Data::Bytes(vec![bytes::Bytes::from(vec![b'a'; bytes])]);
            let tensor = Tensor::new(Shape::new(&[1]), data).unwrap();
            let inputs = vec![NamedTensor { name: "t".to_owned(), tensor }];
            text.check(InferenceRequest { inputs, ..Default::default() }).unwrap()
        };
        let at_once = at_once(&text);
        assert!(at_once.allows_request(&of(MAX_TEXT)) && !at_once.allows_request(&of(MAX_TEXT + 1)));
    }

    #[test]
    fn a_version_is_suspected_by_the_clock_and_judged_by_processor_time() {
        let rows = signature(&[("x", DataType::Fp32, &[Dim::Free(None)])]);
        let at_once = at_once(&rows);
        at_once.ran(Duration::from_millis(4), EXPECTED);
        assert!(at_once.allows_version(), "a pause of the machine");
        let waited = |ms| OffCore { waited: Duration::from_millis(ms), all: Duration::from_millis(ms) };
        assert_eq!(at_once.ran_long(SLOW_RUN, waited(26), EXPECTED), Duration::from_millis(4));
        assert_eq!(
            at_once.ran_long(SLOW_RUN, waited(1000), EXPECTED),
            EXPECTED.unwrap(),
            "it waited before the run too"
        );
        at_once.interrupted_after(SLOW_RUN, Duration::from_millis(26));
        assert!(at_once.allows_version(), "the thread waited for a core nearly all the time");
        at_once.ran_long(SLOW_RUN, waited(20), EXPECTED);
        assert!(!at_once.allows_version() && at_once.is_suspected());
        at_once.used(Duration::from_micros(90), EXPECTED);
        assert_eq!(at_once.never(), None, "the machine was slow, not the version");
        at_once.workers_until.store(0, Ordering::Relaxed);
        assert!(at_once.allows_version(), "the time is over");
        at_once.used(Duration::from_micros(90), EXPECTED);
        assert!(!at_once.is_suspected());
        at_once.interrupted_after(SLOW_RUN, Duration::ZERO);
        at_once.used(SLOW_RUN, EXPECTED);
        assert!(at_once.never().unwrap().contains("30.0 ms of processor time where 0.100 ms were expected"));
        assert!(!at_once.allows_version() && !at_once.is_suspected(), "for good");
    }

    #[test]
    fn runs_without_processor_time_are_excused_twice_in_ten_seconds() {
        let rows = signature(&[("x", DataType::Fp32, &[Dim::Free(None)])]);
        let at_once = at_once(&rows);
        // The virtual machine did not run, or the run slept.
        let away = OffCore { waited: Duration::from_millis(1), all: Duration::from_millis(29) };
        for _ in 0..2 {
            assert_eq!(at_once.ran_long(SLOW_RUN, away, EXPECTED), Duration::from_millis(1));
            assert!(at_once.allows_version());
        }
        at_once.ran_long(SLOW_RUN, away, EXPECTED);
        assert!(!at_once.allows_version() && at_once.is_suspected());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_sleep_is_time_without_a_core_and_a_computation_is_not() {
        let begun = Instant::now();
        before_run(begun);
        std::thread::park_timeout(Duration::from_millis(20));
        let slept = begun.elapsed();
        let off = off_core();
        assert!(off.all + READ_TIME >= slept && off.waited < off.all + READ_DELAY, "{off:?} of {slept:?}");
        let (begun, time) = (Instant::now(), machine::thread_time());
        before_run(begun);
        while machine::thread_time() < time + Duration::from_millis(20) {}
        let off = off_core();
        // The processor time at the begin may have been read earlier.
        assert!(off.all + Duration::from_millis(20) <= begun.elapsed() + READ_TIME, "{off:?}");
    }

    #[test]
    fn the_limit_of_a_run_grows_with_what_model_toml_allows() {
        assert_eq!(longest(None), AT_ONCE_LIMIT);
        assert_eq!(longest(EXPECTED), AT_ONCE_LIMIT);
        assert_eq!(longest(Some(Duration::from_millis(10))), Duration::from_millis(200));
        assert_eq!(longest(Some(Duration::from_secs(3))), LONGEST);
    }

    #[test]
    fn five_interrupted_runs_are_enough() {
        let rows = signature(&[("x", DataType::Fp32, &[Dim::Free(None)])]);
        let at_once = at_once(&rows);
        (0..4).for_each(|_| at_once.interrupted_after(SLOW_RUN, Duration::ZERO));
        assert_eq!(at_once.never(), None);
        at_once.interrupted_after(SLOW_RUN, Duration::ZERO);
        assert!(at_once.never().unwrap().starts_with("5 runs were ended after 50 ms"));
    }

    #[test]
    fn an_operator_whose_time_lies_in_values_is_named() {
        let rows = signature(&[("x", DataType::Fp32, &[Dim::Free(None)])]);
        let facts = GraphFacts { time_by_values: Some("Loop".to_owned()), ..GraphFacts::unknown() };
        let at_once = AtOnce::new(&rows, &facts);
        assert!(!at_once.allows_version());
        assert_eq!(at_once.never(), Some("operator Loop: values decide how long it takes"));
    }
}
