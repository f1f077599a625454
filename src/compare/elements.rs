//! Element by element, one pass per tensor.

use super::{Elements, Tolerance, Top1, Worst};
use crate::tensor::{Data, Shape, Tensor};
use bytes::Bytes;

/// Two tensors of the same type and shape.
pub fn compare(expected: &Tensor, got: &Tensor, tolerance: Tolerance) -> Elements {
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
        _ => unreachable!("asked of tensors of one type only"),
    }
}

fn floats<T: Copy + Into<f64> + ToString>(shape: &Shape, expected: &[T], got: &[T], tolerance: Tolerance) -> Elements {
    let mut tally = Tally::new(expected.len());
    for (i, (e, g)) in expected.iter().zip(got).enumerate() {
        let (e, g): (f64, f64) = ((*e).into(), (*g).into());
        if e.is_finite() && g.is_finite() {
            // Two numbers at opposite ends of the range are further apart than it is wide.
            let difference = (g - e).abs().min(f64::MAX);
            tally.measured(difference);
            let excess = difference - (tolerance.atol + tolerance.rtol * e.abs());
            if excess > 0.0 {
                tally.outside(i, excess);
            }
        } else if !same_nonfinite(e, g) {
            tally.nonfinite += 1;
            tally.outside(i, f64::INFINITY);
        }
    }
    let show = |i: usize| (expected[i].to_string(), got[i].to_string());
    Elements { top1: top1(shape, expected, got), ..tally.into_elements(shape, show) }
}

/// NaN is NaN, and an infinity is the infinity of its sign.
fn same_nonfinite(e: f64, g: f64) -> bool {
    e.is_nan() && g.is_nan() || e.is_infinite() && g.is_infinite() && e.is_sign_positive() == g.is_sign_positive()
}

fn integers<T: Copy + PartialEq + Into<i128> + ToString>(shape: &Shape, expected: &[T], got: &[T]) -> Elements {
    let mut tally = Tally::new(expected.len());
    for (i, (e, g)) in expected.iter().zip(got).enumerate() {
        let difference = ((*g).into() - (*e).into()).unsigned_abs() as f64;
        tally.measured(difference);
        if e != g {
            tally.outside(i, difference);
        }
    }
    tally.into_elements(shape, |i| (expected[i].to_string(), got[i].to_string()))
}

fn exact<T: PartialEq>(shape: &Shape, expected: &[T], got: &[T], show: impl Fn(&T) -> String) -> Elements {
    let mut tally = Tally::new(expected.len());
    for (i, (e, g)) in expected.iter().zip(got).enumerate() {
        if e != g {
            tally.outside(i, 1.0);
        }
    }
    tally.into_elements(shape, |i| (show(&expected[i]), show(&got[i])))
}

/// A power of two (so that scaling rounds nothing) small enough that no sum of finite differences leaves the range.
const SCALE: f64 = 1.0 / (1u128 << 64) as f64;

/// What is counted on the way through.
struct Tally {
    count: usize,
    outside: usize,
    nonfinite: usize,
    largest: f64,
    /// Of the differences times [`SCALE`].
    sum: f64,
    measured: usize,
    worst: Option<(usize, f64)>,
}

impl Tally {
    fn new(count: usize) -> Tally {
        Tally { count, outside: 0, nonfinite: 0, largest: 0.0, sum: 0.0, measured: 0, worst: None }
    }

    fn measured(&mut self, difference: f64) {
        self.largest = self.largest.max(difference);
        self.sum += difference * SCALE;
        self.measured += 1;
    }

    /// Of equally bad elements the first is the worst.
    fn outside(&mut self, i: usize, excess: f64) {
        self.outside += 1;
        if self.worst.is_none_or(|(_, most)| excess > most) {
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
            // Rounding may carry the mean of equal differences past them.
            mean: measured.then(|| (self.sum / self.measured as f64 / SCALE).min(self.largest)),
            nonfinite: self.nonfinite,
            worst,
            top1: None,
        }
    }
}

/// The place of the n-th element, row-major.
fn index_of(shape: &Shape, mut n: usize) -> Vec<usize> {
    let mut index = vec![0; shape.len()];
    for (place, extent) in index.iter_mut().zip(shape.iter()).rev() {
        *place = n % extent;
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

/// The first place of the largest element; a NaN is larger than anything, as in `numpy.argmax`.
fn argmax<T: Copy + Into<f64>>(row: &[T]) -> usize {
    let mut best = 0;
    let mut most = f64::NEG_INFINITY;
    for (i, v) in row.iter().enumerate() {
        let v: f64 = (*v).into();
        if v.is_nan() {
            return i;
        }
        if v > most {
            (best, most) = (i, v);
        }
    }
    best
}

fn quoted(bytes: &Bytes) -> String {
    const SHOWN: usize = 60;
    let text = String::from_utf8_lossy(bytes);
    match text.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("{:?}… ({} bytes)", &text[..at], bytes.len()),
        None => format!("{text:?}"),
    }
}
