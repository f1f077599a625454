//! Shapley values by sampling permutations.
//!
//! For a background row `b` and a permutation of the columns, the answer changes step by step from that for `b` to that for the explained row `x`, as
//! one column after the other is taken from `x`. A column's change, in the mean over all permutations and background rows, is its Shapley value of the game
//! `v(S) = E_b f(x_S, b_rest)` (Štrumbelj and Kononenko, 2014; interventional, as in the `shap` package). Each permutation is used forwards and
//! backwards (antithetic sampling: Mitchell et al., 2022), and each background row equally often, so that the values add up to `f(x) - mean f(b)`.

use super::rows::Rows;
use crate::columns::{ElementNames, number};
use crate::model::{Answer, Checked, Code, Failure, Signature};
use crate::tensor::{Data, DataType, Tensor};
use std::time::Instant;

/// The most rows that an explanation may run.
pub const MAX_ROWS_RUN: usize = 200_000;
/// The rows of one run of the model.
const ROWS_OF_A_RUN: usize = 256;

/// What to explain, and how exactly.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// The output; `None`: the first one of floating-point numbers.
    pub output: Option<String>,
    /// Its element within a row; `None`: the largest one for the explained row.
    pub element: Option<usize>,
    /// The most rows to run, at most [`MAX_ROWS_RUN`]. More rows make the standard errors smaller.
    pub rows: usize,
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options { output: None, element: None, rows: 20_000, seed: 0 }
    }
}

/// Where an answer came from.
#[derive(Debug, Clone, PartialEq)]
pub struct Explanation {
    pub output: String,
    pub element: usize,
    /// The mean answer for the background rows.
    pub base: f64,
    /// The answer for the explained row.
    pub answer: f64,
    pub columns: Vec<ColumnValue>,
    pub background_rows: usize,
    /// Pairs of permutations, forwards and backwards.
    pub pairs: usize,
    pub rows_run: usize,
}

/// One column's part.
#[derive(Debug, Clone, PartialEq)]
pub struct ColumnValue {
    pub name: String,
    /// The column's value in the explained row, as text.
    pub input: String,
    /// Its Shapley value.
    pub value: f64,
    /// Of `value`, from the spread over the pairs; it includes the spread over the background rows.
    pub standard_error: f64,
}

/// Mean and spread of a column's part (Welford).
#[derive(Debug, Clone, Copy, Default)]
struct Part {
    mean: f64,
    squares: f64,
}

/// Estimates the Shapley values of the columns of `row`. `run` runs a request; it is called on requests of up to 256 rows. Ends after the last whole round
/// over the background rows before `deadline`.
///
/// # Errors
/// `INVALID_REQUEST` where the model is not tabular, the rows do not fit, the output does not exist, is not numeric or not finite, or `options` are out of
/// range; `DEADLINE_EXCEEDED` where not even one round ended in time; what `run` returns.
pub fn shapley(
    signature: &Signature,
    row: &Checked,
    background: &Checked,
    names: &ElementNames,
    options: &Options,
    deadline: Instant,
    run: &mut dyn FnMut(&Checked) -> Result<Answer, Failure>,
) -> Result<Explanation, Failure> {
    let refused = |message: String| Failure::new(Code::InvalidRequest, message);
    let mut rows = Rows::new(signature, row, background, names)?;
    if options.rows == 0 || options.rows > MAX_ROWS_RUN {
        return Err(refused(format!("rows: expected 1 to {MAX_ROWS_RUN}, got {}", options.rows)));
    }
    let output = output_of(signature, options.output.as_deref())?;
    let columns = rows.columns();
    // Forwards and backwards, without the two ends.
    let of_pair = (2 * columns.saturating_sub(1)).max(1);
    let affordable = (options.rows / of_pair).max(2);
    if affordable < rows.n_background {
        rows.limit_background(affordable);
    }
    let n = rows.n_background;
    let mut asked = Asked { output: &output, element: 0, rows_run: 0, run };
    let whole = rows.between(0, &[vec![true; columns]], &output)?;
    let at_row = asked.outputs(&whole)?;
    asked.element = choose(options.element, &at_row, &output)?;
    let answer = asked.pick(&at_row, 1)?[0];
    let mut at_background = Vec::with_capacity(n);
    let all = asked.outputs(&rows.all_background(&output)?)?;
    at_background.extend(asked.pick(&all, n)?);
    let base = mean(&at_background);

    let mut parts = vec![Part::default(); columns];
    let mut random = fastrand::Rng::with_seed(options.seed);
    let (mut pairs, mut rounds) = (0, 0);
    let most_rounds = (affordable / n).max(1);
    'rounds: while rounds < most_rounds {
        let whole_rounds = (parts.clone(), pairs);
        for (background, start) in at_background.iter().enumerate() {
            if Instant::now() >= deadline {
                if rounds == 0 {
                    let message = format!(
                        "the explanation did not end in time: {pairs} of {n} background rows were used; give fewer of them, or a longer \
                         x-request-timeout-ms"
                    );
                    return Err(Failure::new(Code::DeadlineExceeded, message));
                }
                // Only whole rounds use each background row equally often.
                (parts, pairs) = whole_rounds;
                break 'rounds;
            }
            let changes = pair(&rows, &mut asked, &mut random, background, *start, answer)?;
            pairs += 1;
            for (part, change) in parts.iter_mut().zip(changes) {
                part.add(change, pairs);
            }
        }
        rounds += 1;
    }
    let (names, inputs) = (std::mem::take(&mut rows.names), rows.values());
    let columns = names.into_iter().zip(inputs).zip(&parts).map(|((name, input), part)| ColumnValue {
        name,
        input,
        value: part.mean,
        standard_error: part.standard_error(pairs),
    });
    let columns = columns.collect();
    let (element, rows_run) = (asked.element, asked.rows_run);
    Ok(Explanation { output, element, base, answer, columns, background_rows: n, pairs, rows_run })
}

/// The changes of one permutation, forwards and backwards, for one background row.
fn pair(
    rows: &Rows,
    asked: &mut Asked<'_>,
    random: &mut fastrand::Rng,
    background: usize,
    start: f64,
    end: f64,
) -> Result<Vec<f64>, Failure> {
    let columns = rows.columns();
    let mut changes = vec![0.0; columns];
    let mut order = rows.differing(background);
    random.shuffle(&mut order);
    let backwards: Vec<usize> = order.iter().rev().copied().collect();
    let mut masks = Vec::with_capacity(2 * order.len());
    for order in [&order, &backwards] {
        let mut mask = vec![false; columns];
        // The two ends are known.
        for column in order.iter().take(order.len().saturating_sub(1)) {
            mask[*column] = true;
            masks.push(mask.clone());
        }
    }
    let mut answers = Vec::with_capacity(masks.len());
    for masks in masks.chunks(ROWS_OF_A_RUN) {
        let request = rows.between(background, masks, asked.output)?;
        let outputs = asked.outputs(&request)?;
        answers.extend(asked.pick(&outputs, masks.len())?);
    }
    let mut answers = answers.into_iter();
    for order in [&order, &backwards] {
        let mut before = start;
        for (i, column) in order.iter().enumerate() {
            let after = if i + 1 == order.len() { end } else { answers.next().unwrap_or(before) };
            changes[*column] += (after - before) / 2.0;
            before = after;
        }
    }
    Ok(changes)
}

/// The output that is looked at.
struct Asked<'a> {
    output: &'a str,
    element: usize,
    rows_run: usize,
    run: &'a mut dyn FnMut(&Checked) -> Result<Answer, Failure>,
}

impl Asked<'_> {
    fn outputs(&mut self, request: &Checked) -> Result<Tensor, Failure> {
        self.rows_run += request.rows().unwrap_or(1);
        let answer = (self.run)(request)?;
        let found = answer.outputs.iter().find(|(name, _)| **name == *self.output).map(|(_, tensor)| tensor.clone());
        found.ok_or_else(|| Failure::new(Code::Internal, format!("the model gave no output {}", self.output)))
    }

    /// The element of each row.
    fn pick(&self, outputs: &Tensor, rows: usize) -> Result<Vec<f64>, Failure> {
        let width = outputs.data().len() / rows.max(1);
        if outputs.shape().first() != Some(&rows) || self.element >= width {
            let message = format!("output {} has the shape {} for {rows} rows", self.output, outputs.shape());
            return Err(Failure::new(Code::InvalidRequest, message));
        }
        let numbers = (0..rows).map(|row| element(outputs.data(), row * width + self.element));
        let numbers: Option<Vec<f64>> = numbers.collect();
        let numbers = numbers.ok_or_else(|| not_numeric(self.output))?;
        if numbers.iter().all(|number| number.is_finite()) {
            return Ok(numbers);
        }
        let message = format!(
            "output {} is not finite for a row between the explained row and the background, so it cannot be divided among the columns",
            self.output
        );
        Err(Failure::new(Code::InvalidRequest, message))
    }
}

fn element(data: &Data, index: usize) -> Option<f64> {
    let width = data.datatype().width()?;
    number(data.datatype(), data.le_bytes()?.get(index * width..(index + 1) * width)?)
}

/// The named output, or the first one of floating-point numbers.
fn output_of(signature: &Signature, named: Option<&str>) -> Result<String, Failure> {
    let known = || signature.outputs().iter().map(|spec| format!("{:?}", &*spec.name)).collect::<Vec<_>>().join(", ");
    let found = match named {
        Some(name) => signature.outputs().iter().find(|spec| *spec.name == *name),
        None => signature.outputs().iter().find(|spec| spec.datatype.is_float()),
    };
    match found {
        Some(spec) if spec.datatype == DataType::Bytes => Err(not_numeric(&spec.name)),
        Some(spec) => Ok(spec.name.to_string()),
        None => {
            let wanted =
                named.map_or_else(|| "an output of floating-point numbers".to_owned(), |name| format!("{name:?}"));
            Err(Failure::new(Code::InvalidRequest, format!("output: expected one of {}, got {wanted}", known())))
        }
    }
}

/// The element that was asked for, or the largest one.
fn choose(asked: Option<usize>, outputs: &Tensor, output: &str) -> Result<usize, Failure> {
    let width = outputs.data().len();
    match asked {
        Some(element) if element < width => Ok(element),
        _ if width == 0 => Err(Failure::new(Code::InvalidRequest, format!("output {output} has no elements"))),
        Some(element) => {
            let message = format!(
                "element: expected 0 to {}, as output {output} has {width} for a row; got {element}",
                width - 1
            );
            Err(Failure::new(Code::InvalidRequest, message))
        }
        None => {
            let numbers: Option<Vec<f64>> = (0..width).map(|i| element(outputs.data(), i)).collect();
            let numbers = numbers.ok_or_else(|| not_numeric(output))?;
            let largest = (0..width).rev().max_by(|a, b| numbers[*a].total_cmp(&numbers[*b]));
            Ok(largest.unwrap_or(0))
        }
    }
}

fn not_numeric(output: &str) -> Failure {
    Failure::new(Code::InvalidRequest, format!("output {output} has no numbers; expected an output of numbers"))
}

fn mean(numbers: &[f64]) -> f64 {
    numbers.iter().sum::<f64>() / numbers.len() as f64
}

impl Part {
    /// `n`: the number of changes, with this one.
    fn add(&mut self, change: f64, n: usize) {
        let before = change - self.mean;
        self.mean += before / n as f64;
        self.squares += before * (change - self.mean);
    }

    fn standard_error(self, n: usize) -> f64 {
        if n < 2 { f64::NAN } else { (self.squares / (n - 1) as f64 / n as f64).sqrt() }
    }
}
