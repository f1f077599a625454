//! Gates: conditions that a candidate must meet in a replay.

use super::error::Error;
use super::paired::{ALPHA, PairedClasses, PairedNumbers, p_alike};
use std::fmt;

/// One condition, such as `within_tolerance>=0.999` or `accuracy>=champion-0.01`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gate {
    figure: Figure,
    operator: Operator,
    limit: Limit,
}

/// What a figure is compared with.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Limit {
    Number(f64),
    /// The same figure of the version that answered, on the same rows, plus this.
    Champion(f64),
}

/// The result of a gate.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    pub gate: Gate,
    pub passed: bool,
    /// `None` if there was no data. The gate fails in that case.
    pub found: Option<f64>,
    /// The comparison with the champion, for a gate that names it.
    pub paired: Option<Paired>,
}

/// A comparison with the champion on the same rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Paired {
    pub rows: u64,
    pub champion: f64,
    /// The candidate's figure minus the champion's.
    pub difference: f64,
    /// The end of the one-sided 95 % interval of the difference on the side that the gate asks about: the lower one of accuracies, the upper one of errors.
    pub bound: Option<f64>,
    /// How likely a difference at least as good would be, were the true one just outside of the gate.
    pub p_value: f64,
    /// Rows on which the candidate alone is right, those on which the champion alone is, and the two-sided p-value of `McNemar`'s test.
    pub discordant: Option<(u64, u64, f64)>,
    /// Why the gate passed or failed.
    pub words: String,
}

/// The rows with labels of a replay.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Labelled {
    pub(super) classes: PairedClasses,
    pub(super) numbers: PairedNumbers,
    /// The sum of the champion's absolute errors on the rows of `numbers`.
    pub(super) champion_error: f64,
    /// Rows with a number as label for which the candidate has no output.
    pub(super) unanswered: u64,
}

/// The figures that a gate can use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Figure {
    /// The share of logged elements that the candidate reproduces within the tolerance. Elements of failed requests and of outputs with
    /// another shape count as different.
    WithinTolerance,
    /// The share of requests in which all elements are within the tolerance.
    Agreement,
    /// The share of requests that failed on the candidate.
    Failed,
    /// The share of score rows whose largest element is at another index.
    Top1Flipped,
    Accuracy,
    MeanAbsoluteError,
    /// The 99th percentile of the candidate's run times, in microseconds, alone on this machine.
    P99Us,
    /// The candidate's time per row divided by that of the version that answered, where both ran alternately on one thread.
    TimeRatio,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    AtLeast,
    AtMost,
    Above,
    Below,
}

impl Figure {
    const ALL: [Figure; 8] = [
        Figure::WithinTolerance,
        Figure::Agreement,
        Figure::Failed,
        Figure::Top1Flipped,
        Figure::Accuracy,
        Figure::MeanAbsoluteError,
        Figure::P99Us,
        Figure::TimeRatio,
    ];

    const fn as_str(self) -> &'static str {
        match self {
            Figure::WithinTolerance => "within_tolerance",
            Figure::Agreement => "agreement",
            Figure::Failed => "failed",
            Figure::Top1Flipped => "top1_flipped",
            Figure::Accuracy => "accuracy",
            Figure::MeanAbsoluteError => "mean_absolute_error",
            Figure::P99Us => "p99_us",
            Figure::TimeRatio => "time_ratio",
        }
    }
}

impl Operator {
    /// Longer signs first, because `>=` begins with `>`.
    const ALL: [(&'static str, Operator); 4] =
        [(">=", Operator::AtLeast), ("<=", Operator::AtMost), (">", Operator::Above), ("<", Operator::Below)];

    fn holds(self, found: f64, number: f64) -> bool {
        match self {
            Operator::AtLeast => found >= number,
            Operator::AtMost => found <= number,
            Operator::Above => found > number,
            Operator::Below => found < number,
        }
    }
}

impl Gate {
    /// Parses `NAME>=NUMBER`, or the same with `<=`, `>` or `<`; the number may be `champion`, `champion-0.01` or `champion+0.5`.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn parse(text: &str) -> Result<Gate, Error> {
        let usage = |why: &str| Error::Usage(format!("the gate {text:?} {why}"));
        let parts = Operator::ALL.iter().find_map(|(sign, operator)| {
            let (name, number) = text.split_once(sign)?;
            Some((name.trim(), *operator, number.trim()))
        });
        let (name, operator, number) =
            parts.ok_or_else(|| usage("has no operator: expected >=, <=, > or <, such as within_tolerance>=0.999"))?;
        let figure = Figure::ALL.into_iter().find(|figure| figure.as_str() == name).ok_or_else(|| {
            let known = Figure::ALL.map(Figure::as_str).join(", ");
            usage(&format!("uses {name:?}: expected one of {known}"))
        })?;
        let finite = |text: &str| text.trim().parse().ok().filter(|number: &f64| number.is_finite());
        let limit = match number.strip_prefix("champion").map(str::trim) {
            None => Limit::Number(
                finite(number)
                    .ok_or_else(|| usage("does not end in a number, or in champion with or without a margin"))?,
            ),
            Some(margin) => {
                let signed = margin.is_empty() || margin.starts_with(['+', '-']);
                // `champion - 0.01` has a space between the sign and the number.
                let compact: String = margin.split_whitespace().collect();
                let margin = if margin.is_empty() { Some(0.0) } else { finite(&compact).filter(|_| signed) };
                Limit::Champion(margin.ok_or_else(|| {
                    usage("has a margin that is no number: expected champion, champion-0.01 or champion+0.5")
                })?)
            }
        };
        let gate = Gate { figure, operator, limit };
        if let Limit::Champion(_) = limit {
            match (figure, operator) {
                (Figure::Accuracy, Operator::AtLeast | Operator::Above)
                | (Figure::MeanAbsoluteError, Operator::AtMost | Operator::Below) => {}
                (Figure::Accuracy, _) => {
                    return Err(usage("asks for a candidate that is less accurate: expected >= or >"));
                }
                (Figure::MeanAbsoluteError, _) => {
                    return Err(usage("asks for a candidate with a larger error: expected <= or <"));
                }
                _ => return Err(usage("cannot name the champion: expected accuracy or mean_absolute_error")),
            }
        }
        Ok(gate)
    }

    /// Judges the gate. `found` returns the value of a figure.
    pub(super) fn judge(self, found: impl Fn(Figure) -> Option<f64>, labelled: &Labelled) -> Verdict {
        let found = found(self.figure);
        match self.limit {
            Limit::Number(number) => {
                let passed = found.is_some_and(|found| self.operator.holds(found, number));
                Verdict { gate: self, passed, found, paired: None }
            }
            Limit::Champion(margin) => {
                let compared = match self.figure {
                    Figure::Accuracy => self.compare_classes(&labelled.classes, margin),
                    _ => self.compare_numbers(labelled, margin),
                };
                let (passed, paired) = compared.map_or((false, None), |(passed, paired)| (passed, Some(paired)));
                Verdict { gate: self, passed, found, paired }
            }
        }
    }

    /// Whether the candidate's accuracy is at least the champion's plus the margin, beyond doubt. `None` without rows.
    fn compare_classes(self, classes: &PairedClasses, margin: f64) -> Option<(bool, Paired)> {
        if classes.rows == 0 {
            return None;
        }
        let discordant = classes.candidate_only + classes.champion_only;
        let is_exact = margin == 0.0;
        // Without a row on which they differ, the candidate is exactly as accurate on these rows. How many rows there are says how much that shows.
        let equal = discordant == 0 && (self.operator == Operator::AtLeast && margin <= 0.0 || margin < 0.0);
        let p_value = match (equal, is_exact) {
            (true, _) => p_alike(classes.rows, -margin),
            (false, true) => classes.p_better(),
            (false, false) => classes.p_above(margin),
        };
        let passed = p_value <= ALPHA;
        let test = if is_exact { "McNemar's exact test" } else { "Tango's score test" };
        let words = if equal {
            alike("no row on which one alone is right", passed, p_value)
        } else {
            format!("{test}, one-sided: p = {p_value:.4}{}", not_shown(passed, p_value))
        };
        let paired = Paired {
            rows: classes.rows,
            champion: classes.champion_correct as f64 / classes.rows as f64,
            difference: classes.difference(),
            bound: Some(classes.at_least()),
            p_value,
            discordant: Some((classes.candidate_only, classes.champion_only, classes.p_two_sided())),
            words,
        };
        Some((passed, paired))
    }

    /// Whether the candidate's mean absolute error is at most the champion's plus the margin, beyond doubt. `None` without rows.
    fn compare_numbers(self, labelled: &Labelled, margin: f64) -> Option<(bool, Paired)> {
        let numbers = &labelled.numbers;
        if numbers.rows == 0 {
            return None;
        }
        let equal = numbers.are_equal() && (self.operator == Operator::AtMost && margin >= 0.0 || margin > 0.0);
        let p_value = if equal { p_alike(numbers.rows, 0.0) } else { numbers.p_below(margin) };
        let complete = labelled.unanswered == 0;
        let passed = complete && p_value <= ALPHA;
        let words = if !complete {
            format!("the candidate has no answer for {} of the rows with a label", labelled.unanswered)
        } else if equal {
            alike("the same error on every row", passed, p_value)
        } else {
            format!("paired t-test, one-sided: p = {p_value:.4}{}", not_shown(passed, p_value))
        };
        let paired = Paired {
            rows: numbers.rows,
            champion: labelled.champion_error / numbers.rows as f64,
            difference: numbers.mean,
            bound: numbers.at_most(),
            p_value,
            discordant: None,
            words,
        };
        Some((passed, paired))
    }
}

/// What a comparison without any difference shows.
fn alike(found: &str, passed: bool, p_value: f64) -> String {
    if passed {
        return found.to_owned();
    }
    format!(
        "{found}, but too few rows: so many would be alike with a probability of {p_value:.2} if they differed on more rows than the gate allows"
    )
}

/// What a one-sided p-value says about a gate that was not passed.
fn not_shown(passed: bool, p_value: f64) -> &'static str {
    match passed {
        true => "",
        false if p_value >= 1.0 - ALPHA => "; these rows show the opposite",
        false => "; not shown with these rows: more labels, or a margin, would decide it",
    }
}

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = Operator::ALL.iter().find(|(_, operator)| *operator == self.operator).map_or("", |(sign, _)| sign);
        write!(f, "{}{sign}", self.figure.as_str())?;
        match self.limit {
            Limit::Number(number) => write!(f, "{number}"),
            Limit::Champion(0.0) => f.write_str("champion"),
            Limit::Champion(margin) => write!(f, "champion{margin:+}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labelled(rows: u64, candidate_only: u64, champion_only: u64) -> Labelled {
        let mut labelled = Labelled::default();
        for i in 0..rows {
            let (champion, candidate) = match i {
                i if i < candidate_only => (false, true),
                i if i < candidate_only + champion_only => (true, false),
                _ => (true, true),
            };
            labelled.classes.add(champion, candidate);
        }
        labelled
    }

    fn passes(gate: &str, labelled: &Labelled) -> bool {
        Gate::parse(gate).unwrap().judge(|_| Some(0.9), labelled).passed
    }

    #[test]
    fn gates_against_the_champion_are_written_with_or_without_a_margin() {
        for (text, shown) in [
            ("accuracy>=champion", "accuracy>=champion"),
            ("accuracy > champion", "accuracy>champion"),
            ("accuracy>=champion - 0.01", "accuracy>=champion-0.01"),
            ("accuracy>=champion+0.02", "accuracy>=champion+0.02"),
            ("mean_absolute_error<=champion+0.5", "mean_absolute_error<=champion+0.5"),
            ("mean_absolute_error<0.5", "mean_absolute_error<0.5"),
        ] {
            assert_eq!(Gate::parse(text).unwrap().to_string(), shown);
        }
        for (text, words) in [
            ("accuracy<=champion", "less accurate: expected >= or >"),
            ("mean_absolute_error>=champion", "larger error: expected <= or <"),
            ("agreement>=champion", "cannot name the champion"),
            ("accuracy>=champion0.1", "a margin that is no number"),
            ("accuracy>=champion-x", "a margin that is no number"),
            ("accuracy>=champion--1", "a margin that is no number"),
            ("accuracy>=champion+inf", "a margin that is no number"),
            ("accuracy>=champions", "a margin that is no number"),
            ("accuracy>=best", "does not end in a number, or in champion"),
        ] {
            let error = Gate::parse(text).unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn a_candidate_passes_only_when_the_claim_is_shown() {
        let better = labelled(1000, 40, 20);
        assert!(passes("accuracy>champion", &better) && passes("accuracy>=champion", &better));
        assert!(!passes("accuracy>=champion+0.02", &better));
        let same = labelled(1000, 30, 30);
        assert!(!passes("accuracy>=champion", &same), "as good is not better");
        assert!(!passes("accuracy>=champion-0.01", &same) && passes("accuracy>=champion-0.02", &same));
        let slightly_better = labelled(1000, 33, 30);
        assert!(!passes("accuracy>=champion", &slightly_better), "three rows are no evidence");
        let identical = labelled(1000, 0, 0);
        assert!(passes("accuracy>=champion", &identical) && !passes("accuracy>champion", &identical));
        assert!(passes("accuracy>=champion-0.01", &identical) && !passes("accuracy>=champion+0.01", &identical));
        let few = labelled(298, 0, 0);
        assert!(!passes("accuracy>=champion", &few) && !passes("accuracy>=champion-0.01", &few));
        assert!(passes("accuracy>=champion-0.02", &few) && passes("accuracy>=champion", &labelled(299, 0, 0)));
        let verdict = Gate::parse("accuracy>=champion").unwrap().judge(|_| Some(1.0), &labelled(2, 0, 0));
        assert!(!verdict.passed && verdict.paired.unwrap().words.contains("alone is right, but too few rows"));
        assert!(!passes("accuracy>=champion", &Labelled::default()), "without labels nothing is shown");
        assert!(!passes("mean_absolute_error<=champion", &Labelled::default()));
    }

    #[test]
    fn a_candidate_without_an_answer_fails_a_gate_of_numbers() {
        let mut labelled = Labelled::default();
        (0..50).for_each(|i| labelled.numbers.add(-1.0 - f64::from(i % 3)));
        assert!(
            passes("mean_absolute_error<champion", &labelled) && passes("mean_absolute_error<=champion-1.5", &labelled)
        );
        assert!(!passes("mean_absolute_error<=champion-2", &labelled));
        labelled.unanswered = 1;
        let verdict = Gate::parse("mean_absolute_error<champion").unwrap().judge(|_| Some(1.0), &labelled);
        assert!(!verdict.passed && verdict.paired.unwrap().words.contains("no answer for 1 of the rows"));
        let mut equal = Labelled::default();
        (0..298).for_each(|_| equal.numbers.add(0.0));
        assert!(!passes("mean_absolute_error<=champion", &equal), "298 equal rows are too few");
        equal.numbers.add(0.0);
        assert!(passes("mean_absolute_error<=champion", &equal) && !passes("mean_absolute_error<champion", &equal));
    }

    /// The promise of the documentation: a candidate at the edge of what a gate allows passes in at most 5 % of replays.
    #[test]
    fn a_candidate_at_the_edge_passes_in_at_most_one_of_twenty_replays() {
        let mut random = fastrand::Rng::with_seed(11);
        // The true shares of rows on which one side alone is right.
        for (gate, candidate, champion) in [("accuracy>=champion", 0.03, 0.03), ("accuracy>=champion-0.02", 0.02, 0.04)]
        {
            let replays = 2_000;
            let mut passed = 0;
            for _ in 0..replays {
                let mut all = Labelled::default();
                for _ in 0..1_000 {
                    let draw = random.f64();
                    let (a, b) = if draw < candidate {
                        (false, true)
                    } else if draw < candidate + champion {
                        (true, false)
                    } else {
                        (true, true)
                    };
                    all.classes.add(a, b);
                }
                passed += u32::from(passes(gate, &all));
            }
            let share = f64::from(passed) / f64::from(replays);
            assert!(share <= 0.065, "{gate}: {share}");
        }
    }
}
