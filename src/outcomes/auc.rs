//! The area under the ROC curve, and how much each row moves it.

/// One row: its unit, its score, and whether its label is 1.
pub(super) type Scored = (u64, f64, bool);

/// The area, and for each row its influence: the area's error is about the sum of the influences. `None` without both labels.
///
/// The area is the share of pairs of a 1 and a 0 whose scores are in the right order; equal scores count half. The influence of a 1 is
/// (V - area) / (number of ones), where V is the share of zeros below it, and the same for zeros (`DeLong` and others 1988; summed by unit as in
/// Obuchowski 1997).
pub(super) fn auc(rows: &mut [Scored]) -> Option<(f64, Vec<(u64, f64)>)> {
    rows.sort_by(|a, b| a.1.total_cmp(&b.1));
    let ones = rows.iter().filter(|(.., one)| *one).count() as f64;
    let zeros = rows.len() as f64 - ones;
    if ones == 0.0 || zeros == 0.0 {
        return None;
    }
    let (mut ones_below, mut zeros_below) = (0.0, 0.0);
    let mut placements = Vec::with_capacity(rows.len());
    let mut sum = 0.0;
    for tied in rows.chunk_by(|a, b| a.1.total_cmp(&b.1).is_eq()) {
        let tied_ones = tied.iter().filter(|(.., one)| *one).count() as f64;
        let tied_zeros = tied.len() as f64 - tied_ones;
        let of_one = (zeros_below + tied_zeros / 2.0) / zeros;
        let of_zero = (ones - ones_below - tied_ones / 2.0) / ones;
        sum += of_one * tied_ones;
        placements.extend(tied.iter().map(|(unit, _, one)| (*unit, *one, if *one { of_one } else { of_zero })));
        ones_below += tied_ones;
        zeros_below += tied_zeros;
    }
    let area = sum / ones;
    let influence =
        |(unit, one, placement): (u64, bool, f64)| (unit, (placement - area) / if one { ones } else { zeros });
    Some((area, placements.into_iter().map(influence).collect()))
}
