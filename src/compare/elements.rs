//! Compares two tensors element by element, in one pass.

use super::{Elements, Spread, Tolerance, Top1, Worst};
use crate::tensor::{Data, Shape, Tensor};
use bytes::Bytes;

/// Compares two tensors of the same type and shape.
pub(super) fn compare(expected: &Tensor, got: &Tensor, tolerance: Tolerance) -> Elements {
    use Data::{Bool, Fp16, Fp32, Fp64, Int8, Int16, Int32, Int64, Uint8, Uint16, Uint32, Uint64};
    let shape = expected.shape();
    match (expected.data(), got.data()) {
        (Fp16(e), Fp16(g)) => floats(shape, e, g, tolerance),
        (Fp32(e), Fp32(g)) => floats(shape, e, g, tolerance),
        (Fp64(e), Fp64(g)) => floats(shape, e, g, tolerance),
        (Int8(e), Int8(g)) => integers(shape, e, g),
        (Int16(e), Int16(g)) => integers(shape, e, g),
        (Int32(e), Int32(g)) => integers(shape, e, g),
        (Int64(e), Int64(g)) => integers(shape, e, g),
        (Uint8(e), Uint8(g)) => integers(shape, e, g),
        (Uint16(e), Uint16(g)) => integers(shape, e, g),
        (Uint32(e), Uint32(g)) => integers(shape, e, g),
        (Uint64(e), Uint64(g)) => integers(shape, e, g),
        (Bool(e), Bool(g)) => exact(shape, e, g, ToString::to_string),
        (Data::Bytes(e), Data::Bytes(g)) => exact(shape, e, g, quoted),
        _ => unreachable!("both tensors have the same type"),
    }
}

fn floats<T: Copy + Into<f64> + ToString>(shape: &Shape, expected: &[T], got: &[T], tolerance: Tolerance) -> Elements {
    let mut counts = Counts::new(expected.len());
    for (i, (e, g)) in expected.iter().zip(got).enumerate() {
        let (e, g): (f64, f64) = ((*e).into(), (*g).into());
        if e.is_finite() && g.is_finite() {
            // The difference of two very large numbers may overflow to infinity.
            let difference = (g - e).abs().min(f64::MAX);
            counts.measured(difference);
            counts.spread.add(e);
            let excess = difference - (tolerance.atol + tolerance.rtol * e.abs());
            if excess > 0.0 {
                counts.outside(i, excess);
            }
        } else if !same_nonfinite(e, g) {
            counts.nonfinite += 1;
            counts.outside(i, f64::INFINITY);
        }
    }
    let show = |i: usize| (expected[i].to_string(), got[i].to_string());
    Elements { top1: top1(shape, expected, got), ..counts.into_elements(shape, show) }
}

/// Whether both are NaN, or infinities of the same sign.
fn same_nonfinite(e: f64, g: f64) -> bool {
    e.is_nan() && g.is_nan() || e.is_infinite() && g.is_infinite() && e.is_sign_positive() == g.is_sign_positive()
}

fn integers<T: Copy + PartialEq + Into<i128> + ToString>(shape: &Shape, expected: &[T], got: &[T]) -> Elements {
    let mut counts = Counts::new(expected.len());
    for (i, (e, g)) in expected.iter().zip(got).enumerate() {
        let difference = ((*g).into() - (*e).into()).unsigned_abs() as f64;
        counts.measured(difference);
        counts.spread.add((*e).into() as f64);
        if e != g {
            counts.outside(i, difference);
        }
    }
    counts.into_elements(shape, |i| (expected[i].to_string(), got[i].to_string()))
}

fn exact<T: PartialEq>(shape: &Shape, expected: &[T], got: &[T], show: impl Fn(&T) -> String) -> Elements {
    let mut counts = Counts::new(expected.len());
    for (i, (e, g)) in expected.iter().zip(got).enumerate() {
        if e != g {
            counts.outside(i, 1.0);
        }
    }
    counts.into_elements(shape, |i| (show(&expected[i]), show(&got[i])))
}

/// Small enough that no sum of finite differences overflows, and a power of two, so that scaling is exact.
const SCALE: f64 = 1.0 / (1u128 << 64) as f64;

/// Running counts of one pass.
struct Counts {
    count: usize,
    outside: usize,
    nonfinite: usize,
    largest: f64,
    /// The sum of the differences times [`SCALE`].
    sum: f64,
    measured: usize,
    worst: Option<(usize, f64)>,
    spread: Spread,
}

impl Counts {
    fn new(count: usize) -> Counts {
        Counts {
            count,
            outside: 0,
            nonfinite: 0,
            largest: 0.0,
            sum: 0.0,
            measured: 0,
            worst: None,
            spread: Spread::default(),
        }
    }

    fn measured(&mut self, difference: f64) {
        self.largest = self.largest.max(difference);
        self.sum += difference * SCALE;
        self.measured += 1;
    }

    /// If several elements are equally bad, the first is the worst.
    fn outside(&mut self, i: usize, excess: f64) {
        self.outside += 1;
        if self.worst.is_none_or(|(_, largest)| excess > largest) {
            self.worst = Some((i, excess));
        }
    }

    fn into_elements(self, shape: &Shape, show: impl Fn(usize) -> (String, String)) -> Elements {
        let worst = self.worst.map(|(i, _)| {
            let (expected, got) = show(i);
            Worst { index: index_of(shape, i), expected, got }
        });
        let measured = self.measured > 0;
        Elements {
            count: self.count,
            measured: self.measured,
            outside: self.outside,
            largest: measured.then_some(self.largest),
            // Rounding may make the mean of equal differences larger than each of them.
            mean: measured.then(|| (self.sum / self.measured as f64 / SCALE).min(self.largest)),
            nonfinite: self.nonfinite,
            worst,
            spread: self.spread,
            top1: None,
        }
    }
}

/// The index of the n-th element in row-major order.
fn index_of(shape: &Shape, mut n: usize) -> Vec<usize> {
    let mut index = vec![0; shape.len()];
    for (axis, extent) in index.iter_mut().zip(shape.iter()).rev() {
        *axis = n % extent;
        n /= extent;
    }
    index
}

fn top1<T: Copy + Into<f64>>(shape: &Shape, expected: &[T], got: &[T]) -> Option<Top1> {
    let width = *shape.last().filter(|width| shape.len() >= 2 && **width >= 2)?;
    let mut top1 = Top1 { flipped: 0, rows: 0 };
    for (e, g) in expected.chunks_exact(width).zip(got.chunks_exact(width)) {
        top1.rows += 1;
        top1.flipped += usize::from(argmax(e) != argmax(g));
    }
    Some(top1)
}

/// The index of the first largest element. NaN counts as the largest, as in `numpy.argmax`.
fn argmax<T: Copy + Into<f64>>(row: &[T]) -> usize {
    let mut best = 0;
    let mut largest = f64::NEG_INFINITY;
    for (i, v) in row.iter().enumerate() {
        let v: f64 = (*v).into();
        if v.is_nan() {
            return i;
        }
        if v > largest {
            (best, largest) = (i, v);
        }
    }
    best
}

fn quoted(bytes: &Bytes) -> String {
    const MAX_CHARS: usize = 60;
    let text = String::from_utf8_lossy(bytes);
    match text.char_indices().nth(MAX_CHARS) {
        Some((at, _)) => format!("{:?}… ({} bytes)", &text[..at], bytes.len()),
        None => format!("{text:?}"),
    }
}
