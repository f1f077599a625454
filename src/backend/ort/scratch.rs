//! Where the memory of a run's intermediate tensors comes from.

use crate::model::{Dim, TensorSpec};

/// Where a session takes the memory for a run's intermediate tensors from.
///
/// By measurement (ONNX Runtime 1.31, glibc, two cores):
///
/// - threads that run one session wait for each other at its arena's lock, which a run takes for each of its tensors: 32 callers of
///   an MLP 32-64-64-1 made 9,000 futex calls a second with the arena and 700 without, which answered 1.04, 1.09 and 0.99
///   times as many (9, 12 and 12 interleaved rounds; the widest quartiles 0.92 and 1.15);
/// - an arena takes memory of its own: each of 2,000 such models 48 to 85 kB beyond what the engine takes by itself, 7 to 8 without;
/// - one run of a CNN on 64 images of 64x64 takes 31 ms with the arena and 48 without, as glibc then maps and unmaps its
///   large buffers each time; after four threads ran it and the version was dropped and trimmed, 47 MB were resident with the
///   arena and 212 to 245 MB without: glibc does not trim the heaps of threads, while an arena goes with its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scratch {
    /// The process's allocator, each time: for runs so short that threads meet at a lock, and that need little.
    Process,
    /// An arena of the session's own, behind its lock.
    Arena,
}

/// Up to this size of the files, runs are short: weights are read once in a run.
const SMALL: usize = 1 << 20;
/// Up to so many numbers in a row of input, no tensor within is large.
const WIDEST: usize = 4096;

impl Scratch {
    /// By what is known before the model is opened: the process for small models of rows of numbers, the arena for images, sequences and
    /// whatever is large. `bytes`: of all files. Where it is wrong, it costs what is said above: a lock, or large buffers made anew.
    pub fn of(bytes: usize, inputs: &[TensorSpec]) -> Scratch {
        if bytes <= SMALL && inputs.iter().all(is_rows_of_numbers) { Scratch::Process } else { Scratch::Arena }
    }
}

/// Whether each row has as many numbers as the signature says, in one list.
fn is_rows_of_numbers(input: &TensorSpec) -> bool {
    match input.dims.as_deref() {
        Some([] | [_]) => true,
        Some([_, Dim::Fixed(n)]) => *n <= WIDEST,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::DataType;

    fn of(bytes: usize, dims: Option<&[Dim]>) -> Scratch {
        let spec = |dims| TensorSpec { name: "x".into(), datatype: DataType::Fp32, dims };
        let rows = vec![Dim::Free(None)];
        Scratch::of(bytes, &[spec(Some(rows)), spec(dims.map(<[Dim]>::to_vec))])
    }

    #[test]
    fn small_models_of_rows_of_numbers_use_the_process() {
        let rows = Dim::Free(Some("batch".into()));
        assert_eq!(of(10_000, Some(&[rows.clone(), Dim::Fixed(32)])), Scratch::Process);
        assert_eq!(of(10_000, Some(&[Dim::Fixed(1), Dim::Fixed(32)])), Scratch::Process);
        assert_eq!(of(10_000, Some(&[rows])), Scratch::Process);
        assert_eq!(of(10_000, Some(&[])), Scratch::Process);
        assert_eq!(Scratch::of(10_000, &[]), Scratch::Process, "no inputs at all");
    }

    #[test]
    fn large_models_images_and_sequences_have_an_arena() {
        let rows = Dim::Free(None);
        assert_eq!(of(SMALL + 1, Some(&[rows.clone(), Dim::Fixed(32)])), Scratch::Arena);
        assert_eq!(of(10_000, Some(&[rows.clone(), Dim::Fixed(WIDEST + 1)])), Scratch::Arena);
        assert_eq!(of(10_000, Some(&[rows.clone(), Dim::Free(Some("sequence".into()))])), Scratch::Arena);
        assert_eq!(of(10_000, Some(&[rows, Dim::Fixed(3), Dim::Fixed(64), Dim::Fixed(64)])), Scratch::Arena);
        assert_eq!(of(10_000, None), Scratch::Arena, "of unknown rank");
    }
}
