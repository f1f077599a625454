//! Logged inputs through a candidate: what a shadow would have shown, out of the log.

use super::bits;
use super::error::Error;
use super::export::nothing;
use super::gate::{Figure, Gate, Verdict};
use super::pick::Pick;
use super::requests::{Logged, Requests, Unfit};
use super::source::Sources;
use super::walk::{Budget, Progress, Way, walk};
use crate::compare::{Latency, Outcome, Pair, PairFigures, Tolerance, compare_answers};
use crate::model::{Answer, Failure, InferenceRequest, ModelName, NamedTensor, RequestId, Version};
use crate::prepare::{Loader, OfflineVersion, load_offline, version_dir};
use crate::quality::{Fit, Predicted};
use crate::tensor::{Data, Tensor};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// What to replay, and through what.
#[derive(Debug, Clone)]
pub struct Replay<'a> {
    pub model: &'a ModelName,
    /// The candidate.
    pub version: Version,
    pub models: &'a Path,
    pub data: &'a Path,
    pub pick: Pick,
    /// Requests that are replayed at most.
    pub limit: Option<usize>,
    /// How far a number may be off; what is not said here says `[shadow]` of the model's `model.toml`, and then `otherwise`.
    pub rtol: Option<f64>,
    pub atol: Option<f64>,
    pub otherwise: Tolerance,
    /// How many of the worst pairs are kept.
    pub worst: usize,
    pub gates: Vec<Gate>,
    pub budget: Budget,
}

/// What came of it.
#[derive(Debug, Clone)]
pub struct Replayed {
    pub model: ModelName,
    pub version: Version,
    pub sha256: String,
    pub engine: &'static str,
    pub tolerance: Tolerance,
    /// Requests that were replayed, and the records they were logged as.
    pub requests: u64,
    pub records: u64,
    /// Requests that cannot be, by reason.
    pub left_out: BTreeMap<Unfit, u64>,
    /// Against each version that answered, by its number and bytes.
    pub pairs: Vec<PairFigures>,
    pub labels: Vec<LabelFigures>,
    pub verdicts: Vec<Verdict>,
    /// Sealed files that retention deleted while they were looked for.
    pub gone: usize,
}

/// The labels on the replayed answers of one version, held against its answers and the candidate's.
#[derive(Debug, Clone, PartialEq)]
pub struct LabelFigures {
    /// That answered.
    pub version: Version,
    /// Rows with a label.
    pub labelled: u64,
    /// Of them, those whose label fits none of the outputs.
    pub unfit: u64,
    /// Of them, those on which the candidate gave nothing the label could be held against; where the label is a class, they count as
    /// wrong.
    pub unanswered: u64,
    /// Rows whose label is a class.
    pub classes: u64,
    pub logged_right: u64,
    pub candidate_right: u64,
    /// Rows whose label is a number, on which both answered.
    pub numbers: u64,
    logged_error: f64,
    candidate_error: f64,
}

impl LabelFigures {
    fn new(version: Version) -> LabelFigures {
        LabelFigures {
            version,
            labelled: 0,
            unfit: 0,
            unanswered: 0,
            classes: 0,
            logged_right: 0,
            candidate_right: 0,
            numbers: 0,
            logged_error: 0.0,
            candidate_error: 0.0,
        }
    }

    /// The share of rows that were right: of the logged version, and of the candidate.
    #[must_use]
    pub fn accuracy(&self) -> Option<(f64, f64)> {
        let share = |right: u64| right as f64 / self.classes as f64;
        (self.classes > 0).then(|| (share(self.logged_right), share(self.candidate_right)))
    }

    /// The mean absolute error: of the logged version, and of the candidate.
    #[must_use]
    pub fn mean_absolute_error(&self) -> Option<(f64, f64)> {
        let n = self.numbers as f64;
        (self.numbers > 0).then(|| (self.logged_error / n, self.candidate_error / n))
    }

    fn take_in(&mut self, logged: Option<Fit>, candidate: Option<Fit>) {
        self.labelled += 1;
        match (logged, candidate) {
            (None, _) => self.unfit += 1,
            (Some(Fit::Class { right }), candidate) => {
                self.classes += 1;
                self.logged_right += u64::from(right);
                match candidate {
                    Some(Fit::Class { right }) => self.candidate_right += u64::from(right),
                    _ => self.unanswered += 1,
                }
            }
            (Some(Fit::Number { error }), Some(Fit::Number { error: of_candidate })) => {
                self.numbers += 1;
                self.logged_error += error;
                self.candidate_error += of_candidate;
            }
            (Some(Fit::Number { .. }), _) => self.unanswered += 1,
        }
    }
}

/// Runs what was logged through the candidate.
///
/// # Errors
/// When the candidate does not load, there is nothing to replay, or something cannot be read.
pub fn replay(engines: &dyn Loader, what: &Replay, progress: Progress) -> Result<Replayed, Error> {
    let dir = version_dir(what.models, what.model, what.version);
    if !dir.is_dir() {
        return Err(Error::Failed(format!(
            "there is no version {} of {}: no {}",
            what.version,
            what.model,
            dir.display()
        )));
    }
    let sources = Sources::open(what.data, what.model, &what.pick)?;
    if sources.predictions.is_empty() {
        return Err(nothing(what.data, what.model));
    }
    let candidate =
        load_offline(engines, &dir).map_err(|words| Error::Failed(format!("cannot load the candidate {words}")))?;
    let mut run = Run::new(what, &candidate);
    let mut requests = Requests::default();
    let way = Way { pick: &what.pick, labels: true, budget: what.budget, first: what.limit, progress };
    walk(&sources, &way, &mut |step| {
        let whole = requests.push(&step).map_err(|error| step.source.stored.named(error))?;
        let goes_on = whole.into_iter().all(|logged| run.take(&logged));
        Ok(if goes_on { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    if let Some(last) = requests.finish() {
        run.take(&last);
    }
    Ok(run.into_report(sources.gone))
}

/// A replay under way.
struct Run<'a> {
    what: &'a Replay<'a>,
    candidate: &'a OfflineVersion,
    tolerance: Tolerance,
    requests: u64,
    records: u64,
    left_out: BTreeMap<Unfit, u64>,
    pairs: Vec<PairFigures>,
    labels: Vec<LabelFigures>,
    /// All elements of all logged outputs that were replayed, and those the candidate gave too.
    elements: u64,
    within: u64,
    latency: Latency,
}

impl<'a> Run<'a> {
    fn new(what: &'a Replay<'a>, candidate: &'a OfflineVersion) -> Run<'a> {
        let tolerance = Tolerance {
            rtol: what.rtol.or(candidate.rtol).unwrap_or(what.otherwise.rtol),
            atol: what.atol.or(candidate.atol).unwrap_or(what.otherwise.atol),
        };
        Run {
            what,
            candidate,
            tolerance,
            requests: 0,
            records: 0,
            left_out: BTreeMap::new(),
            pairs: Vec::new(),
            labels: Vec::new(),
            elements: 0,
            within: 0,
            latency: Latency::default(),
        }
    }

    /// Takes in one request; whether there may be more.
    fn take(&mut self, logged: &Logged) -> bool {
        let most = self.what.limit.map_or(u64::MAX, |limit| limit as u64);
        if self.requests >= most {
            return false;
        }
        if let Err(why) = self.replay(logged) {
            *self.left_out.entry(why).or_default() += 1;
        }
        self.requests < most
    }

    fn replay(&mut self, logged: &Logged) -> Result<(), Unfit> {
        let expected = Answer { outputs: logged.outputs()? };
        let inputs = logged.inputs()?;
        let request_id = RequestId::from_caller(logged.request_id.clone()).map_err(|_| Unfit::Unreadable)?;
        let at = Timestamp::from_microsecond(logged.ts).map_err(|_| Unfit::Unreadable)?;
        if self.requests == 0 {
            // The first run of a model makes its memory ready, and says nothing of what a run takes.
            let _ = run(self.candidate, &inputs, &expected);
        }
        self.requests += 1;
        self.records += logged.records as u64;
        let ran = run(self.candidate, &inputs, &expected);
        let comparison = ran.as_ref().ok().map(|(got, _)| compare_answers(&expected, got, self.tolerance));
        self.elements += expected.outputs.iter().map(|(_, tensor)| tensor.data().len() as u64).sum::<u64>();
        for output in comparison.iter().flat_map(|comparison| &comparison.outputs) {
            if let Outcome::Elements(elements) = &output.outcome {
                self.within += (elements.count - elements.outside) as u64;
            }
        }
        if let Ok((_, took)) = &ran {
            self.latency.record(*took);
        }
        let pair = Pair {
            request_id: &request_id,
            arm: &logged.arm,
            at,
            primary: Ok((&expected, logged.infer)),
            shadow: ran.as_ref().map(|(answer, took)| (answer, *took)),
            comparison: comparison.as_ref(),
        };
        let worst = self.what.worst;
        self.figures(logged, at).record(worst, &pair);
        self.hold_against_labels(logged, &expected, ran.as_ref().ok().map(|(answer, _)| answer));
        Ok(())
    }

    fn figures(&mut self, logged: &Logged, at: Timestamp) -> &mut PairFigures {
        let sums = (logged.about.sha256.clone(), self.candidate.sha256.clone());
        let known = self.pairs.iter().position(|pair| pair.primary == logged.version() && pair.sha256 == sums);
        let place = known.unwrap_or_else(|| {
            self.pairs.push(PairFigures::new(logged.version(), self.what.version, sums, at));
            self.pairs.len() - 1
        });
        &mut self.pairs[place]
    }

    fn hold_against_labels(&mut self, logged: &Logged, expected: &Answer, got: Option<&Answer>) {
        for (row, label) in logged.labels.iter().enumerate() {
            let Some(label) = label else { continue };
            let fit = |answer: &Answer| predicted(answer, row, logged.records).and_then(|p| p.against(label));
            let fits = (fit(expected), got.and_then(fit));
            let version = logged.version();
            let place = self.labels.iter().position(|known| known.version == version).unwrap_or_else(|| {
                self.labels.push(LabelFigures::new(version));
                self.labels.len() - 1
            });
            self.labels[place].take_in(fits.0, fits.1);
        }
    }

    fn into_report(mut self, gone: usize) -> Replayed {
        self.pairs.sort_by_key(|pair| (pair.primary, pair.since));
        self.labels.sort_by_key(|labels| labels.version);
        let verdicts = self.what.gates.iter().map(|gate| gate.judge(|figure| self.found(figure))).collect();
        Replayed {
            model: self.what.model.clone(),
            version: self.what.version,
            sha256: self.candidate.sha256.clone(),
            engine: self.candidate.runner.engine(),
            tolerance: self.tolerance,
            requests: self.requests,
            records: self.records,
            left_out: self.left_out,
            pairs: self.pairs,
            labels: self.labels,
            verdicts,
            gone,
        }
    }

    /// What gates judge by, over all versions that answered.
    fn found(&self, figure: Figure) -> Option<f64> {
        let share = |part: u64, of: u64| (of > 0).then(|| part as f64 / of as f64);
        let sum = |of: fn(&PairFigures) -> u64| self.pairs.iter().map(of).sum::<u64>();
        let outputs = || self.pairs.iter().flat_map(|pair| &pair.outputs);
        let labels = |of: fn(&LabelFigures) -> u64| self.labels.iter().map(of).sum::<u64>();
        match figure {
            Figure::WithinTolerance => share(self.within, self.elements),
            Figure::Agreement => share(sum(|pair| pair.agreed), sum(|pair| pair.pairs)),
            Figure::Failed => share(sum(|pair| pair.shadow_failed), sum(|pair| pair.pairs)),
            Figure::Top1Flipped => share(outputs().map(|o| o.top1_flipped).sum(), outputs().map(|o| o.top1_rows).sum()),
            Figure::Accuracy => share(labels(|l| l.candidate_right), labels(|l| l.classes)),
            Figure::MeanAbsoluteError => {
                let rows = labels(|l| l.numbers);
                (rows > 0).then(|| self.labels.iter().map(|l| l.candidate_error).sum::<f64>() / rows as f64)
            }
            Figure::P99Us => self.latency.quantile_us(0.99).map(|us| us as f64),
        }
    }
}

/// Asks a version what was asked, for the outputs that were answered.
pub(super) fn run(
    version: &OfflineVersion,
    inputs: &[(Arc<str>, Tensor)],
    expected: &Answer,
) -> Result<(Answer, Duration), Failure> {
    let named = |(name, tensor): &(Arc<str>, Tensor)| NamedTensor { name: name.to_string(), tensor: tensor.clone() };
    let outputs = expected.outputs.iter().map(|(name, _)| name.to_string()).collect();
    let request = InferenceRequest {
        inputs: inputs.iter().map(named).collect(),
        outputs: Some(outputs),
        ..InferenceRequest::default()
    };
    let checked = version.runner.signature().check(request)?;
    version.runner.run(&checked).map(|ran| (ran.answer, ran.infer))
}

/// What one row's outputs predicted; `None` where an output has no such rows.
fn predicted(answer: &Answer, row: usize, rows: usize) -> Option<Predicted> {
    let mut predicted = Predicted::default();
    for (_, tensor) in &answer.outputs {
        if rows > 1 && tensor.shape().first() != Some(&rows) {
            return None;
        }
        let each = tensor.data().len() / rows;
        match tensor.data() {
            Data::Bytes(texts) => {
                if let [text] = &texts[row * each..(row + 1) * each] {
                    predicted.add_text(text);
                }
            }
            data => {
                let bits = bits::of(data)?;
                let width = bits.len() / data.len().max(1);
                predicted.add(data.datatype(), &bits[row * each * width..(row + 1) * each * width]);
            }
        }
    }
    Some(predicted)
}
