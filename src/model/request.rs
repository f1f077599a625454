//! The inference request and its answer, free of any wire format.

use super::Signature;
use crate::tensor::Tensor;
use smallvec::SmallVec;
use std::sync::Arc;

/// A tensor under the name the caller gave it.
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
    /// The text a sticky key is made of: the bare string, or the number or boolean as JSON writes it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Parameter::String(s) => f.write_str(s),
            Parameter::Integer(i) => write!(f, "{i}"),
            Parameter::Number(n) => write!(f, "{n}"),
            Parameter::Bool(b) => write!(f, "{b}"),
        }
    }
}

/// Parameters in the order they came; few, so a list.
pub type Parameters = Vec<(String, Parameter)>;

/// In what part a version answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// By the split or a rule.
    Primary,
    /// Because the URL named the version or a label.
    Pinned,
    /// To nobody.
    Shadow,
}

impl Role {
    pub const ALL: [Role; 3] = [Role::Primary, Role::Pinned, Role::Shadow];

    /// As records spell it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Role::Primary => "primary",
            Role::Pinned => "pinned",
            Role::Shadow => "shadow",
        }
    }
}

/// What a caller asked, decoded but not yet held against any model.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct InferenceRequest {
    /// The body's own id; the header's and the generated one are the door's business.
    pub id: Option<String>,
    pub parameters: Parameters,
    pub inputs: Vec<NamedTensor>,
    /// Which outputs, in which order; `None` means all, in the model's order.
    pub outputs: Option<Vec<String>>,
}

impl InferenceRequest {
    /// Elements of all inputs together.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.inputs.iter().map(|input| input.tensor.data().len()).sum()
    }
}

/// Indices of outputs: few, for most models.
pub(super) type Wanted = SmallVec<[usize; 4]>;

/// A request that fits the signature it was checked against; made by [`Signature::check`] alone.
#[derive(Debug, Clone, PartialEq)]
pub struct Checked {
    pub(super) inputs: Vec<Tensor>,
    pub(super) wanted: Wanted,
    pub(super) rows: Option<usize>,
}

impl Checked {
    /// The tensors, one per input of the signature, in its order.
    #[must_use]
    pub fn inputs(&self) -> &[Tensor] {
        &self.inputs
    }

    /// Indices into the signature's outputs, in the order the caller wants them. Never empty unless the model has no outputs.
    #[must_use]
    pub fn wanted(&self) -> &[usize] {
        &self.wanted
    }

    /// How many examples the request carries, where the signature has rows ([`Signature::has_rows`]) and all inputs agree.
    #[must_use]
    pub fn rows(&self) -> Option<usize> {
        self.rows
    }

    /// Elements of all inputs together.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.inputs.iter().map(|tensor| tensor.data().len()).sum()
    }

    /// Whether two requests of one signature can be one: lists of examples of the same shape, with the same outputs wanted.
    #[must_use]
    pub fn stacks_with(&self, other: &Checked) -> bool {
        let pairs = || self.inputs.iter().zip(&other.inputs);
        self.rows.is_some()
            && other.rows.is_some()
            && self.wanted == other.wanted
            && pairs().all(|(mine, theirs)| mine.stacks_with(theirs))
    }

    /// One request with the rows of all, in order. `None` where they do not stack, or there is none.
    #[must_use]
    pub fn stack(requests: &[&Checked]) -> Option<Checked> {
        let (first, others) = requests.split_first()?;
        if !others.iter().all(|other| first.stacks_with(other)) {
            return None;
        }
        let rows = requests.iter().try_fold(0usize, |sum, request| sum.checked_add(request.rows?))?;
        let input = |i| Tensor::stack(&requests.iter().map(|request| &request.inputs[i]).collect::<Vec<_>>());
        let inputs = (0..first.inputs.len()).map(input).collect::<Option<Vec<_>>>()?;
        Some(Checked { inputs, wanted: first.wanted.clone(), rows: Some(rows) })
    }

    /// A request for each of its first rows, `most` of them; `None` where it is no list of examples.
    #[must_use]
    pub fn singles(&self, most: usize) -> Option<Vec<Checked>> {
        (0..self.rows?.min(most)).map(|row| self.some(row, 1)).collect()
    }

    /// A request for so many of its rows, from one on; `None` where it has not as many.
    #[must_use]
    pub fn some(&self, from: usize, rows: usize) -> Option<Checked> {
        self.rows?;
        let inputs = self.inputs.iter().map(|tensor| tensor.some(from, rows)).collect::<Option<_>>()?;
        Some(Checked { inputs, wanted: self.wanted.clone(), rows: Some(rows) })
    }
}

/// What a model answered: the wanted outputs, in the wanted order.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    pub outputs: Vec<(Arc<str>, Tensor)>,
}

impl Answer {
    /// Puts the signature's names on what an engine answered for `wanted`.
    ///
    /// `tensors` is one per entry of `wanted`, in its order, as [`crate::model::Checked::wanted`] asked.
    #[must_use]
    pub fn named(signature: &Signature, wanted: &[usize], tensors: Vec<Tensor>) -> Answer {
        debug_assert_eq!(wanted.len(), tensors.len(), "an engine answers each wanted output once");
        let outputs = wanted.iter().zip(tensors).map(|(i, t)| (Arc::clone(&signature.outputs()[*i].name), t)).collect();
        Answer { outputs }
    }

    /// An answer for so many rows each, in order; `None` where some output has another number of rows.
    #[must_use]
    pub fn cut(&self, rows: &[usize]) -> Option<Vec<Answer>> {
        let mut answers: Vec<Answer> = rows.iter().map(|_| Answer { outputs: Vec::new() }).collect();
        for (name, tensor) in &self.outputs {
            for (answer, piece) in answers.iter_mut().zip(tensor.cut(rows)?) {
                answer.outputs.push((Arc::clone(name), piece));
            }
        }
        Some(answers)
    }

    /// One answer with the rows of all, in order. `None` where some output of one has not as many rows as are given for it, or they do
    /// not stack.
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
        Some(Answer { outputs: outputs.collect::<Option<_>>()? })
    }

    /// How many floating-point elements in all outputs are NaN or infinite.
    #[must_use]
    pub fn count_nonfinite(&self) -> usize {
        self.outputs.iter().map(|(_, t)| t.data().count_nonfinite()).sum()
    }
}
