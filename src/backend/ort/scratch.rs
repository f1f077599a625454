//! Where the memory of a run's intermediate tensors comes from, chosen by how long a run takes.

use crate::model::{Checked, Dim, InferenceRequest, NamedTensor, Signature, TensorSpec};
use crate::tensor::{Data, Shape, Tensor};
use std::time::Duration;

/// Where a session takes the memory for a run's intermediate tensors from.
///
/// By measurement (ONNX Runtime 1.31, glibc, two cores):
///
/// - threads that run one session wait for each other at its arena's lock, which a run of a small model takes for each of its
///   tensors: 32 callers of an MLP 32-64-64-8 made 9,000 futex calls a second with the arena, 700 without, and got 3.5 % less;
/// - an arena's memory is cold where many versions take turns, and is 40 kB for each of them: 2,000 such models asked in turn
///   took 1.36 times as long as one with arenas, 1.14 times without;
/// - one run of a CNN on 64 images of 64x64 takes 31 ms with the arena and 48 without, as glibc then maps and unmaps its
///   large buffers each time; after four threads ran it and the version was dropped and trimmed, 47 MB were resident with the
///   arena and 212 to 245 MB without: glibc does not trim the heaps of threads, while an arena goes with its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scratch {
    /// The process's allocator, each time: for runs so short that they need little, and that many threads make at once.
    Process,
    /// An arena of the session's own, behind its lock.
    Arena,
}

/// Runs up to this long are short: in that time no more than a megabyte or two is written. It is also up to where the executor runs
/// on the threads that read requests, unless told otherwise (`execute.inline_below`).
const SHORT: Duration = Duration::from_micros(200);
/// Runs a time is taken of: the first pays for page faults, and the loading thread is one that others interrupt.
const RUNS: usize = 5;
/// After a run of so long, no other will be short.
const HOPELESS: Duration = Duration::from_millis(5);
/// Inputs of more elements are not made up, and no run on so many is short.
const MAX_ELEMENTS: usize = 1 << 18;
/// Up to this size of the file, runs are likely to be short.
const SMALL: usize = 1 << 20;

impl Scratch {
    /// What most models of that size turn out to want, so that most are opened once.
    pub fn guess(bytes: usize) -> Scratch {
        if bytes <= SMALL { Scratch::Process } else { Scratch::Arena }
    }

    /// What a model wants. `run` makes a run on one row of zeros and answers how long it took. Where it fails, or would say nothing
    /// of real requests, the arena: it is never far from the best.
    pub fn of(signature: &Signature, mut run: impl FnMut(&Checked) -> Option<Duration>) -> Scratch {
        let Some(zeros) = one_row(signature) else { return Scratch::Arena };
        for _ in 0..RUNS {
            match run(&zeros) {
                Some(took) if took <= SHORT => return Scratch::Process,
                Some(took) if took <= HOPELESS => {}
                _ => return Scratch::Arena,
            }
        }
        Scratch::Arena
    }
}

/// One row of zeros; `None` where the signature leaves open more than the number of rows, so that real requests may be of any
/// size.
fn one_row(signature: &Signature) -> Option<Checked> {
    let input = |spec: &TensorSpec| {
        let extent = |(axis, dim): (usize, &Dim)| match dim {
            Dim::Fixed(n) => Some(*n),
            Dim::Free(_) => (axis == 0 && signature.has_rows()).then_some(1),
        };
        let shape: Shape = spec.dims.as_deref()?.iter().enumerate().map(extent).collect::<Option<_>>()?;
        let elements = shape.elements().filter(|n| *n <= MAX_ELEMENTS)?;
        let tensor = Tensor::new(shape, Data::zeros(spec.datatype, elements)).ok()?;
        Some(NamedTensor { name: spec.name.to_string(), tensor })
    };
    let inputs = signature.inputs().iter().map(input).collect::<Option<_>>()?;
    signature.check(InferenceRequest { inputs, ..InferenceRequest::default() }).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::DataType;

    fn signature(dims: Vec<Dim>) -> Signature {
        let spec = |name: &str, dims| TensorSpec { name: name.into(), datatype: DataType::Fp32, dims: Some(dims) };
        Signature::new(vec![spec("x", dims)], vec![spec("y", vec![Dim::Free(None), Dim::Fixed(1)])])
    }

    fn rows_of(rest: Dim) -> Signature {
        signature(vec![Dim::Free(Some("batch".into())), rest])
    }

    /// What comes of runs that take so long, one after the other, and how many were made.
    fn after(times: &[Option<Duration>]) -> (Scratch, usize) {
        let mut left = times.iter();
        let scratch = Scratch::of(&rows_of(Dim::Fixed(4)), |_| *left.next().expect("no more runs than that"));
        (scratch, times.len() - left.len())
    }

    #[test]
    fn short_runs_use_the_process_and_long_ones_an_arena() {
        assert_eq!(after(&[Some(SHORT)]), (Scratch::Process, 1));
        assert_eq!(after(&[Some(SHORT * 2); RUNS]), (Scratch::Arena, RUNS));
    }

    #[test]
    fn one_slow_run_does_not_decide_and_a_hopeless_one_does() {
        assert_eq!(after(&[Some(SHORT * 2), Some(SHORT)]), (Scratch::Process, 2));
        assert_eq!(after(&[Some(HOPELESS * 2)]), (Scratch::Arena, 1));
    }

    #[test]
    fn what_zeros_say_nothing_of_gets_an_arena() {
        let never = |_: &Checked| -> Option<Duration> { panic!("run") };
        assert_eq!(Scratch::of(&rows_of(Dim::Free(None)), never), Scratch::Arena);
        assert_eq!(Scratch::of(&rows_of(Dim::Fixed(MAX_ELEMENTS + 1)), never), Scratch::Arena);
        assert_eq!(after(&[None]), (Scratch::Arena, 1), "a model that fails on zeros");
    }

    #[test]
    fn the_zeros_are_one_row() {
        let zeros = one_row(&rows_of(Dim::Fixed(4))).unwrap();
        assert_eq!((zeros.rows(), zeros.elements()), (Some(1), 4));
    }
}
