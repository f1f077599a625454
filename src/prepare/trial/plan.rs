//! The trial runs of a version: plain requests, and requests with empty inputs.

use crate::backend::{EmptyAxes, FreeAxis, MAX_FREE_AXES, free_axes};
use crate::model::{Dim, InferenceRequest, Signature, TensorSpec};
use crate::prepare::inputs;
use crate::tensor::{Data, DataType, Shape};

/// The most combinations of empty axes that are tried.
const MAX_COMBINATIONS: usize = 64;
/// Up to this many groups of axes, all combinations are tried.
const ALL_COMBINATIONS_OF: usize = 4;

/// Requests like those of verification and warm-up, with a description. A signature that declares huge inputs has none.
pub(super) fn plain_requests(signature: &Signature) -> Vec<(&'static str, InferenceRequest)> {
    let generate =
        |what, rows, fill: fn(DataType, usize) -> Data| Some((what, inputs::generate(signature, rows, fill).ok()?));
    let single = [generate("a request of zeros", 1, Data::zeros), generate("a request of ones", 1, inputs::ones)];
    // Verification runs 3 and 5 rows too, to see how many rows an output has.
    let many = [
        generate("a request of three rows", 3, inputs::ones),
        generate("a request of five rows", 5, inputs::ones),
        generate("a request of eight rows", 8, inputs::varied),
    ];
    single.into_iter().chain(many).flatten().collect()
}

/// The combinations of empty axes to try: each group of axes alone, then combinations of groups. The same for the same signature.
pub(super) fn combinations(signature: &Signature) -> Vec<EmptyAxes> {
    let axes = free_axes(signature);
    if axes.len() > MAX_FREE_AXES {
        return Vec::new();
    }
    let groups = groups(signature, &axes);
    let union = |chosen: &mut dyn Iterator<Item = EmptyAxes>| EmptyAxes(chosen.fold(0, |all, group| all | group.0));
    let mut found: Vec<EmptyAxes> = groups.clone();
    if groups.len() <= ALL_COMBINATIONS_OF {
        let mut subsets: Vec<u32> = (1..1_u32 << groups.len()).filter(|set| set.count_ones() > 1).collect();
        subsets.sort_by_key(|set| set.count_ones());
        let chosen =
            |set: u32| groups.iter().enumerate().filter(move |(i, _)| set >> i & 1 == 1).map(|(_, group)| *group);
        found.extend(subsets.into_iter().map(|set| union(&mut chosen(set))));
    } else {
        let pairs =
            groups.iter().enumerate().flat_map(|(i, a)| groups[i + 1..].iter().map(move |b| EmptyAxes(a.0 | b.0)));
        found.truncate(MAX_COMBINATIONS - 1);
        let left = MAX_COMBINATIONS - 1 - found.len();
        found.extend(pairs.take(left));
        found.push(union(&mut groups.iter().copied()));
    }
    found
}

/// Groups of axes that have the same extent in every request: the rows, and axes with the same symbol.
fn groups(signature: &Signature, axes: &[FreeAxis]) -> Vec<EmptyAxes> {
    let symbol = |&(input, axis): &FreeAxis| {
        let dim = signature.inputs()[input].dims.as_deref()?.get(axis?)?;
        if let Dim::Free(Some(symbol)) = dim { Some(symbol.clone()) } else { None }
    };
    let is_rows = |&(_, axis): &FreeAxis| signature.has_rows() && axis == Some(0);
    let same =
        |a: &FreeAxis, b: &FreeAxis| (is_rows(a) && is_rows(b)) || symbol(a).is_some_and(|s| symbol(b) == Some(s));
    let mut groups: Vec<(FreeAxis, u128)> = Vec::new();
    for (bit, axis) in axes.iter().enumerate() {
        match groups.iter_mut().find(|(first, _)| same(first, axis)) {
            Some((_, bits)) => *bits |= 1 << bit,
            None => groups.push((*axis, 1 << bit)),
        }
    }
    groups.into_iter().map(|(_, bits)| EmptyAxes(bits)).collect()
}

/// Requests in which exactly these axes are empty. The other free axes have the extents 1, 3 and 2.
pub(super) fn empty_requests(signature: &Signature, empty: EmptyAxes) -> Vec<InferenceRequest> {
    let axes = free_axes(signature);
    let is_empty = |input: usize, axis: Option<usize>| {
        axes.iter().position(|free| *free == (input, axis)).is_some_and(|bit| empty.contains(EmptyAxes(1 << bit)))
    };
    let request = |others: usize, of_unknown_rank: &[usize], fill: fn(DataType, usize) -> Data| {
        let shape = |input: usize, spec: &TensorSpec| match &spec.dims {
            None if is_empty(input, None) => Shape::new(of_unknown_rank),
            None => Shape::new(&[others]),
            Some(dims) => {
                let extent = |(axis, dim): (usize, &Dim)| match dim {
                    Dim::Fixed(n) => *n,
                    Dim::Free(_) if is_empty(input, Some(axis)) => 0,
                    Dim::Free(_) => others,
                };
                dims.iter().enumerate().map(extent).collect()
            }
        };
        inputs::generate_shaped(signature, shape, fill).ok()
    };
    let requests =
        [request(1, &[0], inputs::ones), request(3, &[0, 1], Data::zeros), request(2, &[1, 0], inputs::ones)];
    requests.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signature(inputs: &[&[Option<&str>]]) -> Signature {
        let spec = |(i, dims): (usize, &&[Option<&str>])| TensorSpec {
            name: format!("x{i}").into(),
            datatype: DataType::Fp32,
            dims: Some(
                dims.iter()
                    .map(|d| d.map_or(Dim::Fixed(4), |s| Dim::Free((!s.is_empty()).then(|| s.into()))))
                    .collect(),
            ),
        };
        let specs: Vec<TensorSpec> = inputs.iter().enumerate().map(spec).collect();
        Signature::new(specs.clone(), specs)
    }

    #[test]
    fn rows_and_equal_symbols_are_empty_together() {
        let two = signature(&[&[Some("N"), Some("T"), None], &[Some("N"), Some("T")]]);
        assert_eq!(combinations(&two), [EmptyAxes(0b0101), EmptyAxes(0b1010), EmptyAxes(0b1111)]);
        let requests = empty_requests(&two, EmptyAxes(0b1010));
        let shapes: Vec<String> = requests[1].inputs.iter().map(|input| input.tensor.shape().to_string()).collect();
        assert_eq!(shapes, ["[3,0,4]", "[3,0]"]);
    }

    #[test]
    fn many_axes_give_a_bounded_number_of_combinations() {
        let many: Vec<Option<&str>> = vec![Some(""); 8];
        let wide = signature(&[&many, &many, &many, &many]);
        let found = combinations(&wide);
        assert_eq!(found.len(), MAX_COMBINATIONS);
        assert!(found.contains(&EmptyAxes(u128::from(u32::MAX))), "all at once is tried");
        let too_many: Vec<&[Option<&str>]> = vec![&many; 17];
        assert!(combinations(&signature(&too_many)).is_empty());
        let requests = empty_requests(&wide, EmptyAxes(1));
        assert!(
            requests.iter().all(|r| r.inputs[0].tensor.data().is_empty()),
            "the others have 6,561 elements at most"
        );
    }

    #[test]
    fn a_signature_without_free_axes_has_no_combinations() {
        assert!(combinations(&signature(&[&[None]])).is_empty());
        assert_eq!(plain_requests(&signature(&[&[Some("N"), None]])).len(), 5);
    }
}
