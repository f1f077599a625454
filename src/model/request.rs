//! The inference request and its answer, independent of any wire format.

use super::Signature;
use crate::tensor::{Data, Tensor};
use smallvec::SmallVec;
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// A tensor with its name.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedTensor {
    pub name: String,
    pub tensor: Tensor,
}

/// A request parameter of the Open Inference Protocol: a string, a number or a boolean.
#[derive(Debug, Clone, PartialEq)]
pub enum Parameter {
    String(String),
    Integer(i64),
    Number(f64),
    Bool(bool),
}

impl std::fmt::Display for Parameter {
    /// The text used as a sticky key: a string without quotes, a number or boolean as in JSON.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Parameter::String(s) => f.write_str(s),
            Parameter::Integer(i) => write!(f, "{i}"),
            Parameter::Number(n) => write!(f, "{n}"),
            Parameter::Bool(b) => write!(f, "{b}"),
        }
    }
}

/// Parameters in the order they were sent. A list, because there are few.
pub type Parameters = Vec<(String, Parameter)>;

/// Why a version runs a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// The split or a rule chose it.
    Primary,
    /// The URL named the version or a label.
    Pinned,
    /// It runs a copy of the request. No caller gets its answer.
    Shadow,
}

impl Role {
    pub const ALL: [Role; 3] = [Role::Primary, Role::Pinned, Role::Shadow];

    /// The name used in records.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Role::Primary => "primary",
            Role::Pinned => "pinned",
            Role::Shadow => "shadow",
        }
    }
}

/// A decoded request that has not been checked against a signature yet.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct InferenceRequest {
    /// The id in the body. The `http` room handles an id in the header and generates missing ones.
    pub id: Option<String>,
    pub parameters: Parameters,
    pub inputs: Vec<NamedTensor>,
    /// The names of the requested outputs, in order. `None` means all, in the model's order.
    pub outputs: Option<Vec<String>>,
}

impl InferenceRequest {
    /// The number of elements in all inputs together.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.inputs.iter().map(|input| input.tensor.data().len()).sum()
    }
}

/// Indices of outputs. Most models have few.
pub(super) type Wanted = SmallVec<[usize; 4]>;

/// A request that fits the signature it was checked against. Only [`Signature::check`] creates one from a caller's request.
#[derive(Debug, Clone, PartialEq)]
pub struct Checked {
    pub(super) inputs: Vec<Tensor>,
    /// The optional inputs that were given, with their indices among the signature's optional inputs. In their order.
    pub(super) optional: Vec<(usize, Tensor)>,
    pub(super) wanted: Wanted,
    pub(super) rows: Option<usize>,
}

impl Checked {
    /// One tensor for each input of the signature that a request must give, in its order.
    #[must_use]
    pub fn inputs(&self) -> &[Tensor] {
        &self.inputs
    }

    /// The optional inputs that were given, each with its index in [`Signature::optional_inputs`], in that order. Mostly none.
    #[must_use]
    pub fn optional(&self) -> &[(usize, Tensor)] {
        &self.optional
    }

    /// All tensors of the request.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> + Clone {
        self.inputs.iter().chain(self.optional.iter().map(|(_, tensor)| tensor))
    }

    /// The tensor for an input of [`Signature::all_inputs`]. `None` for an optional input that was not given.
    #[must_use]
    pub fn input(&self, index: usize) -> Option<&Tensor> {
        match index.checked_sub(self.inputs.len()) {
            None => self.inputs.get(index),
            Some(index) => self.optional.iter().find(|(i, _)| *i == index).map(|(_, tensor)| tensor),
        }
    }

    /// Indices into the signature's outputs, in the requested order. Empty only if the model has no outputs.
    #[must_use]
    pub fn wanted(&self) -> &[usize] {
        &self.wanted
    }

    /// The number of examples in the request, each of which could be a request of its own. `None` if the signature has no rows
    /// ([`Signature::has_rows`]), if the inputs have different numbers of rows, or if an optional input was given: such a request
    /// is one whole.
    #[must_use]
    pub fn rows(&self) -> Option<usize> {
        self.rows.filter(|_| self.optional.is_empty())
    }

    /// The number of rows that were sent, also where an optional input was given.
    #[must_use]
    pub fn sent_rows(&self) -> Option<usize> {
        self.rows
    }

    /// The number of elements in all inputs together.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.tensors().map(|tensor| tensor.data().len()).sum()
    }

    /// Whether two requests of one signature can run as one: both have rows of the same shape and request the same outputs.
    #[must_use]
    pub fn stacks_with(&self, other: &Checked) -> bool {
        let pairs = || self.inputs.iter().zip(&other.inputs);
        self.rows().is_some()
            && other.rows().is_some()
            && self.wanted == other.wanted
            && pairs().all(|(mine, theirs)| mine.stacks_with(theirs))
    }

    /// One request with the rows of all requests, in order. `None` if they do not stack, or if the list is empty.
    #[must_use]
    pub fn stack(requests: &[&Checked]) -> Option<Checked> {
        let (first, others) = requests.split_first()?;
        if !others.iter().all(|other| first.stacks_with(other)) {
            return None;
        }
        let rows = requests.iter().try_fold(0usize, |sum, request| sum.checked_add(request.rows()?))?;
        let input = |i| Tensor::stack(&requests.iter().map(|request| &request.inputs[i]).collect::<Vec<_>>());
        let inputs = (0..first.inputs.len()).map(input).collect::<Option<Vec<_>>>()?;
        Some(Checked { inputs, optional: Vec::new(), wanted: first.wanted.clone(), rows: Some(rows) })
    }

    /// One request for each row, for at most `max` rows. `None` if the request has no rows.
    #[must_use]
    pub fn single_rows(&self, max: usize) -> Option<Vec<Checked>> {
        (0..self.rows()?.min(max)).map(|row| self.slice_rows(row, 1)).collect()
    }

    /// A request with `rows` rows of this one, starting at row `from`. `None` if there are not that many.
    #[must_use]
    pub fn slice_rows(&self, from: usize, rows: usize) -> Option<Checked> {
        self.rows()?;
        let inputs = self.inputs.iter().map(|tensor| tensor.slice_rows(from, rows)).collect::<Option<_>>()?;
        Some(Checked { inputs, optional: Vec::new(), wanted: self.wanted.clone(), rows: Some(rows) })
    }
}

/// The outputs of a run: the requested ones, in the requested order. Clones share the tensors.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    pub outputs: Arc<Vec<(Arc<str>, Tensor)>>,
}

impl From<Vec<(Arc<str>, Tensor)>> for Answer {
    fn from(outputs: Vec<(Arc<str>, Tensor)>) -> Answer {
        Answer { outputs: Arc::new(outputs) }
    }
}

impl Answer {
    /// Adds the names of the signature to the tensors of an engine.
    ///
    /// `wanted` is [`Checked::wanted`] of the request. `tensors` has one entry for each of its entries, in the same order.
    #[must_use]
    pub fn named(signature: &Signature, wanted: &[usize], tensors: Vec<Tensor>) -> Answer {
        debug_assert_eq!(wanted.len(), tensors.len(), "an engine returns each requested output once");
        let named = |(i, tensor): (&usize, _)| (Arc::clone(&signature.outputs()[*i].name), tensor);
        wanted.iter().zip(tensors).map(named).collect::<Vec<_>>().into()
    }

    /// A hash of the beginning of the first outputs: 64 bytes of each of eight, of a string 64 bytes. Equal answers have equal hashes.
    #[must_use]
    pub fn hash_of_beginning(&self) -> u64 {
        const BYTES: usize = 64;
        self.outputs.iter().take(8).fold(0, |hash, (_, tensor)| {
            let bytes = match tensor.data() {
                Data::Bytes(texts) => texts.first().map_or(&[][..], |text| &text[..]),
                data => data.le_bytes().unwrap_or_default(),
            };
            xxh3_64_with_seed(&bytes[..bytes.len().min(BYTES)], hash)
        })
    }

    /// The size of all outputs in memory, in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.outputs.iter().map(|(_, tensor)| tensor.size()).sum()
    }

    /// Splits an answer into answers with the given numbers of rows, in order. `None` if an output does not have exactly
    /// that many rows in all.
    #[must_use]
    pub fn split_rows(&self, rows: &[usize]) -> Option<Vec<Answer>> {
        let mut answers: Vec<Vec<_>> = rows.iter().map(|_| Vec::with_capacity(self.outputs.len())).collect();
        for (name, tensor) in self.outputs.iter() {
            for (outputs, piece) in answers.iter_mut().zip(tensor.split_rows(rows)?) {
                outputs.push((Arc::clone(name), piece));
            }
        }
        Some(answers.into_iter().map(Answer::from).collect())
    }

    /// One answer with the rows of all answers, in order. `None` if an output does not have the given number of rows, or if
    /// the outputs do not stack.
    #[must_use]
    pub fn stack(answers: &[Answer], rows: &[usize]) -> Option<Answer> {
        let output = |at: usize, (name, _): &(Arc<str>, Tensor)| {
            let pieces = answers.iter().zip(rows).map(|(answer, rows)| {
                let (_, piece) = answer.outputs.get(at)?;
                (piece.shape().first() == Some(rows)).then_some(piece)
            });
            let pieces: Vec<&Tensor> = pieces.collect::<Option<_>>()?;
            Some((Arc::clone(name), Tensor::stack(&pieces)?))
        };
        let first = answers.first().filter(|_| answers.len() == rows.len())?;
        let outputs = first.outputs.iter().enumerate().map(|(at, of_first)| output(at, of_first));
        outputs.collect::<Option<Vec<_>>>().map(Answer::from)
    }
}
