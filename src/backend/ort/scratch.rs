//! The allocator for a run's intermediate tensors.

use crate::model::{Dim, TensorSpec};

/// The allocator that a session uses for a run's intermediate tensors.
///
/// Measured with ONNX Runtime 1.31 and glibc on two cores:
///
/// - Threads that run one session contend for its arena's lock, which a run takes for each tensor. With 32 callers, an MLP
///   32-64-64-1 made 9,000 futex calls per second with the arena and 700 without. Throughput without the arena was 1.04, 1.09
///   and 0.99 times as high (9, 12 and 12 interleaved rounds; the widest quartiles 0.92 and 1.15).
/// - An arena needs memory: each of 2,000 such models took 48 to 85 kB beyond the engine's own use with the arena, 7 to 8 kB
///   without.
/// - One run of a CNN on 64 images of 64x64 takes 31 ms with the arena and 48 ms without, because glibc then maps and unmaps
///   large buffers in every run. After four threads ran it and the version was dropped and trimmed, 47 MB were resident with
///   the arena and 212 to 245 MB without: glibc does not trim the heaps of threads, and an arena is freed with its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scratch {
    /// The process's allocator: for runs that need little memory and are so short that threads would contend for the arena.
    Process,
    /// The session's arena, which has a lock.
    Arena,
}

/// Bytes of the files up to which runs are short: a run reads the weights once.
const SMALL: usize = 1 << 20;
/// Numbers in a row of input up to which no intermediate tensor is large.
const WIDEST: usize = 4096;

impl Scratch {
    /// Decides by what is known before the model is opened: the process's allocator for small models with rows of numbers, the
    /// arena for images, sequences and large models. `bytes` counts all files. A wrong decision costs what is measured above.
    pub(super) fn of(bytes: usize, inputs: &[TensorSpec]) -> Scratch {
        if bytes <= SMALL && inputs.iter().all(is_rows_of_numbers) { Scratch::Process } else { Scratch::Arena }
    }
}

/// Whether each row is one list of numbers of a known length.
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
    fn small_models_with_rows_of_numbers_use_the_process_allocator() {
        let rows = Dim::Free(Some("batch".into()));
        assert_eq!(of(10_000, Some(&[rows.clone(), Dim::Fixed(32)])), Scratch::Process);
        assert_eq!(of(10_000, Some(&[Dim::Fixed(1), Dim::Fixed(32)])), Scratch::Process);
        assert_eq!(of(10_000, Some(&[rows])), Scratch::Process);
        assert_eq!(of(10_000, Some(&[])), Scratch::Process);
        assert_eq!(Scratch::of(10_000, &[]), Scratch::Process, "no inputs at all");
    }

    #[test]
    fn large_models_images_and_sequences_use_an_arena() {
        let rows = Dim::Free(None);
        assert_eq!(of(SMALL + 1, Some(&[rows.clone(), Dim::Fixed(32)])), Scratch::Arena);
        assert_eq!(of(10_000, Some(&[rows.clone(), Dim::Fixed(WIDEST + 1)])), Scratch::Arena);
        assert_eq!(of(10_000, Some(&[rows.clone(), Dim::Free(Some("sequence".into()))])), Scratch::Arena);
        assert_eq!(of(10_000, Some(&[rows, Dim::Fixed(3), Dim::Fixed(64), Dim::Fixed(64)])), Scratch::Arena);
        assert_eq!(of(10_000, None), Scratch::Arena, "of unknown rank");
    }
}
