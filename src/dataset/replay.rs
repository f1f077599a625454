//! Replay: runs logged inputs through a candidate, and reports what a shadow would report.

use super::assemble::Assembler;
use super::error::Error;
use super::filter::Filter;
use super::gate::{Figure, Gate, Labelled, Verdict};
use super::logged::{LoggedRequest, SkipReason};
use super::options::no_predictions;
use super::paired::{PairedClasses, PairedNumbers};
use super::records::Records;
use super::reproduce::find_version;
use super::scan::{Budget, Progress, ScanOptions, scan};
use super::sources::Sources;
use crate::compare::{Alternated, Alternation, Latency, Outcome, Pair, PairFigures, Tolerance, compare_answers};
use crate::model::{Answer, Failure, InferenceRequest, ModelName, NamedTensor, RequestId, Version};
use crate::prepare::{Loader, ModelDirs, OfflineVersion, load_offline};
use crate::quality::{LabelResult, Predicted};
use crate::tensor::{Data, Tensor};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

/// The options of a replay.
#[derive(Debug, Clone)]
pub struct Replay<'a> {
    pub model: &'a ModelName,
    /// The candidate.
    pub version: Version,
    pub models: &'a ModelDirs,
    pub data: Records<'a>,
    pub filter: Filter,
    /// Limit for the replayed requests.
    pub limit: Option<usize>,
    /// The tolerance. If absent, `[shadow]` of the model's `model.toml` applies, then `default_tolerance`.
    pub rtol: Option<f64>,
    pub atol: Option<f64>,
    pub default_tolerance: Tolerance,
    /// How many of the worst pairs to keep.
    pub worst: usize,
    pub gates: Vec<Gate>,
    pub budget: Budget,
}

/// The result of a replay.
#[derive(Debug, Clone)]
pub struct Replayed {
    pub model: ModelName,
    pub version: Version,
    pub sha256: String,
    pub engine: &'static str,
    pub tolerance: Tolerance,
    /// The replayed requests, and the number of their records.
    pub requests: u64,
    pub records: u64,
    /// The skipped requests, by reason.
    pub left_out: BTreeMap<SkipReason, u64>,
    /// The comparison with each version that answered. A version whose model file changed has several.
    pub pairs: Vec<PairFigures>,
    pub labels: Vec<LabelFigures>,
    pub verdicts: Vec<Verdict>,
    /// Sealed files that retention deleted before they were opened.
    pub deleted_files: usize,
}

/// The labels of the replayed requests of one version, compared with its answers and with those of the candidate.
#[derive(Debug, Clone, PartialEq)]
pub struct LabelFigures {
    /// The version that answered.
    pub version: Version,
    /// Rows with a label.
    pub labelled: u64,
    /// Rows whose label could not be compared with any output.
    pub unfit: u64,
    /// Rows for which the candidate has no output to compare with. If the label is a class, they count as wrong.
    pub unanswered: u64,
    /// Rows whose label is a class.
    pub classes: u64,
    pub logged_correct: u64,
    pub candidate_correct: u64,
    /// Rows whose label is a number, and for which both have an output.
    pub numbers: u64,
    logged_error: f64,
    candidate_error: f64,
    /// The same rows, as pairs.
    pub paired_classes: PairedClasses,
    pub paired_numbers: PairedNumbers,
    numbers_unanswered: u64,
}

impl LabelFigures {
    fn new(version: Version) -> LabelFigures {
        LabelFigures {
            version,
            labelled: 0,
            unfit: 0,
            unanswered: 0,
            classes: 0,
            logged_correct: 0,
            candidate_correct: 0,
            numbers: 0,
            logged_error: 0.0,
            candidate_error: 0.0,
            paired_classes: PairedClasses::default(),
            paired_numbers: PairedNumbers::default(),
            numbers_unanswered: 0,
        }
    }

    /// The share of correct rows: of the logged version, and of the candidate.
    #[must_use]
    pub fn accuracy(&self) -> Option<(f64, f64)> {
        let share = |correct: u64| correct as f64 / self.classes as f64;
        (self.classes > 0).then(|| (share(self.logged_correct), share(self.candidate_correct)))
    }

    /// The mean absolute error: of the logged version, and of the candidate.
    #[must_use]
    pub fn mean_absolute_error(&self) -> Option<(f64, f64)> {
        let n = self.numbers as f64;
        (self.numbers > 0).then(|| (self.logged_error / n, self.candidate_error / n))
    }

    fn add(&mut self, logged: Option<LabelResult>, candidate: Option<LabelResult>) {
        self.labelled += 1;
        match (logged, candidate) {
            (None, _) => self.unfit += 1,
            (Some(LabelResult::Class { correct }), candidate) => {
                self.classes += 1;
                self.logged_correct += u64::from(correct);
                let candidate = if let Some(LabelResult::Class { correct }) = candidate {
                    correct
                } else {
                    self.unanswered += 1;
                    false
                };
                self.candidate_correct += u64::from(candidate);
                self.paired_classes.add(correct, candidate);
            }
            (Some(LabelResult::Number { error }), Some(LabelResult::Number { error: candidate_error })) => {
                self.numbers += 1;
                self.logged_error += error;
                self.candidate_error += candidate_error;
                self.paired_numbers.add(candidate_error - error);
            }
            (Some(LabelResult::Number { .. }), _) => {
                self.unanswered += 1;
                self.numbers_unanswered += 1;
            }
        }
    }
}

/// Runs logged requests through the candidate.
///
/// # Errors
/// When the candidate does not load, there is nothing to replay, or something cannot be read.
pub fn replay(engines: &dyn Loader, options: &Replay, progress: Progress) -> Result<Replayed, Error> {
    let dir = options.models.version(options.model, options.version);
    if !dir.is_dir() {
        return Err(Error::Failed(format!(
            "there is no version {} of {}: {} does not exist",
            options.version,
            options.model,
            dir.display()
        )));
    }
    let sources = Sources::open(options.data, options.model, &options.filter)?;
    if sources.predictions.is_empty() {
        return Err(no_predictions(options.data, options.model));
    }
    let candidate =
        load_offline(engines, &dir).map_err(|message| Error::Failed(format!("cannot load the candidate {message}")))?;
    let mut run = Run::new(engines, options, &candidate);
    let mut assembler = Assembler::default();
    let scan_options = ScanOptions {
        filter: &options.filter,
        join_feedback: true,
        budget: options.budget,
        first_chunk: options.limit,
        progress,
    };
    scan(&sources, &scan_options, &mut |scanned| {
        let complete = assembler.push(&scanned).map_err(|error| scanned.source.stored.locate(error))?;
        let go_on = complete.into_iter().all(|logged| run.add(&logged));
        Ok(if go_on { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    if let Some(last) = assembler.finish() {
        run.add(&last);
    }
    Ok(run.into_report(sources.deleted_files))
}

/// A running replay.
struct Run<'a> {
    options: &'a Replay<'a>,
    candidate: &'a OfflineVersion,
    engines: &'a dyn Loader,
    /// The versions that answered, by the SHA-256 of their model file. `None`: it is not there any more, or does not load.
    answering: BTreeMap<String, Option<OfflineVersion>>,
    tolerance: Tolerance,
    requests: u64,
    records: u64,
    left_out: BTreeMap<SkipReason, u64>,
    pairs: Vec<PairFigures>,
    labels: Vec<LabelFigures>,
    /// The elements of all replayed outputs, and those that the candidate reproduced.
    elements: u64,
    within: u64,
    latency: Latency,
    /// Over all versions that answered.
    alternated: Alternated,
}

/// The version that answered runs again, beside the candidate, for one request in so many.
const ALTERNATED: u64 = 4;
/// The most versions that are loaded for that.
const MAX_ANSWERING: usize = 8;

impl<'a> Run<'a> {
    fn new(engines: &'a dyn Loader, options: &'a Replay<'a>, candidate: &'a OfflineVersion) -> Run<'a> {
        let tolerance = Tolerance {
            rtol: options.rtol.or(candidate.rtol).unwrap_or(options.default_tolerance.rtol),
            atol: options.atol.or(candidate.atol).unwrap_or(options.default_tolerance.atol),
        };
        Run {
            options,
            candidate,
            engines,
            answering: BTreeMap::new(),
            tolerance,
            requests: 0,
            records: 0,
            left_out: BTreeMap::new(),
            pairs: Vec::new(),
            labels: Vec::new(),
            elements: 0,
            within: 0,
            latency: Latency::default(),
            alternated: Alternated::default(),
        }
    }

    /// Runs a request on the version that answered it, for the time. `None` where that version cannot run, or the request fails.
    fn run_answering(
        &mut self,
        logged: &LoggedRequest,
        inputs: &[(Arc<str>, Tensor)],
        expected: &Answer,
    ) -> Option<Duration> {
        let sha256 = &logged.about.sha256;
        if !self.answering.contains_key(sha256) {
            if self.answering.len() == MAX_ANSWERING {
                return None;
            }
            let version = find_version(self.options.models, logged).ok();
            let version = version.and_then(|(_, dir)| load_offline(self.engines, &dir).ok());
            if let Some(version) = &version {
                // As for the candidate, the first run does not count.
                let _ = run(version, inputs, expected);
            }
            self.answering.insert(sha256.clone(), version);
        }
        let version = self.answering.get(sha256)?.as_ref()?;
        run(version, inputs, expected).ok().map(|(_, took)| took)
    }

    /// Replays a request. Returns false once the limit is reached.
    fn add(&mut self, logged: &LoggedRequest) -> bool {
        let limit = self.options.limit.map_or(u64::MAX, |limit| limit as u64);
        if self.requests >= limit {
            return false;
        }
        if let Err(why) = self.replay(logged) {
            *self.left_out.entry(why).or_default() += 1;
        }
        self.requests < limit
    }

    fn replay(&mut self, logged: &LoggedRequest) -> Result<(), SkipReason> {
        let expected = Answer::from(logged.outputs()?);
        let inputs = logged.inputs()?;
        let request_id = RequestId::from_caller(logged.request_id.clone()).map_err(|_| SkipReason::Unreadable)?;
        let at = Timestamp::from_microsecond(logged.ts).map_err(|_| SkipReason::Unreadable)?;
        if self.requests == 0 {
            // The first run of a model allocates its memory, so its time is not representative.
            let _ = run(self.candidate, &inputs, &expected);
        }
        self.requests += 1;
        self.records += logged.records as u64;
        let runs_both = self.requests % ALTERNATED == 1;
        // Which side runs first alternates too, as the second one finds the inputs in the caches.
        let answering_first = self.requests % (2 * ALTERNATED) == 1;
        let before = if runs_both && answering_first { self.run_answering(logged, &inputs, &expected) } else { None };
        let ran = run(self.candidate, &inputs, &expected);
        let after = if runs_both && !answering_first { self.run_answering(logged, &inputs, &expected) } else { None };
        let rows = logged.records;
        let alternated = before.or(after).zip(ran.as_ref().ok());
        let alternated = alternated.map(|(primary, (_, shadow))| Alternation { primary, shadow: *shadow, rows });
        if let Some(alternation) = &alternated {
            self.alternated.record(alternation);
        }
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
            alternated,
        };
        let worst = self.options.worst;
        self.figures(logged, at).record(worst, &pair);
        self.compare_with_labels(logged, &expected, ran.as_ref().ok().map(|(answer, _)| answer));
        Ok(())
    }

    fn figures(&mut self, logged: &LoggedRequest, at: Timestamp) -> &mut PairFigures {
        let digests = (logged.about.sha256.clone(), self.candidate.sha256.clone());
        let known = self.pairs.iter().position(|pair| pair.primary == logged.version() && pair.sha256 == digests);
        let index = known.unwrap_or_else(|| {
            self.pairs.push(PairFigures::new(logged.version(), self.options.version, digests, at));
            self.pairs.len() - 1
        });
        &mut self.pairs[index]
    }

    fn compare_with_labels(&mut self, logged: &LoggedRequest, expected: &Answer, got: Option<&Answer>) {
        for (row, label) in logged.labels.iter().enumerate() {
            let Some(label) = label else { continue };
            let result = |answer: &Answer| predicted(answer, row, logged.records).and_then(|p| p.compare(label));
            let results = (result(expected), got.and_then(result));
            let version = logged.version();
            let index = self.labels.iter().position(|known| known.version == version).unwrap_or_else(|| {
                self.labels.push(LabelFigures::new(version));
                self.labels.len() - 1
            });
            self.labels[index].add(results.0, results.1);
        }
    }

    fn into_report(mut self, deleted_files: usize) -> Replayed {
        self.pairs.sort_by_key(|pair| (pair.primary, pair.since));
        self.labels.sort_by_key(|labels| labels.version);
        let labelled = self.labelled();
        let verdicts = self.options.gates.iter().map(|gate| gate.judge(|figure| self.value_of(figure), &labelled));
        let verdicts = verdicts.collect();
        Replayed {
            model: self.options.model.clone(),
            version: self.options.version,
            sha256: self.candidate.sha256.clone(),
            engine: self.candidate.runner.engine(),
            tolerance: self.tolerance,
            requests: self.requests,
            records: self.records,
            left_out: self.left_out,
            pairs: self.pairs,
            labels: self.labels,
            verdicts,
            deleted_files,
        }
    }

    /// All rows with labels, whichever version answered.
    fn labelled(&self) -> Labelled {
        let mut all = Labelled::default();
        for labels in &self.labels {
            all.classes.merge(&labels.paired_classes);
            all.numbers.merge(&labels.paired_numbers);
            all.champion_error += labels.logged_error;
            all.unanswered += labels.numbers_unanswered;
        }
        all
    }

    /// The value of a figure for the gates, over all versions that answered.
    fn value_of(&self, figure: Figure) -> Option<f64> {
        let share = |part: u64, of: u64| (of > 0).then(|| part as f64 / of as f64);
        let sum = |of: fn(&PairFigures) -> u64| self.pairs.iter().map(of).sum::<u64>();
        let outputs = || self.pairs.iter().flat_map(|pair| &pair.outputs);
        let labels = |of: fn(&LabelFigures) -> u64| self.labels.iter().map(of).sum::<u64>();
        match figure {
            Figure::WithinTolerance => share(self.within, self.elements),
            Figure::Agreement => share(sum(|pair| pair.agreed), sum(|pair| pair.pairs)),
            Figure::Failed => share(sum(|pair| pair.shadow_failed), sum(|pair| pair.pairs)),
            Figure::Top1Flipped => share(outputs().map(|o| o.top1_flipped).sum(), outputs().map(|o| o.top1_rows).sum()),
            Figure::Accuracy => share(labels(|l| l.candidate_correct), labels(|l| l.classes)),
            Figure::MeanAbsoluteError => {
                let rows = labels(|l| l.numbers);
                (rows > 0).then(|| self.labels.iter().map(|l| l.candidate_error).sum::<f64>() / rows as f64)
            }
            Figure::TimeRatio => self.alternated.ratio(0.5),
            Figure::P99Us => self.latency.quantile_us(0.99).map(|us| us as f64),
        }
    }
}

/// Runs logged inputs on a version, for the outputs that were recorded.
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

/// The prediction in the outputs of one row. `None` if an output has another number of rows.
fn predicted(answer: &Answer, row: usize, rows: usize) -> Option<Predicted> {
    let mut predicted = Predicted::default();
    for (_, tensor) in answer.outputs.iter() {
        if rows > 1 && tensor.shape().first() != Some(&rows) {
            return None;
        }
        let per_row = tensor.data().len() / rows;
        match tensor.data() {
            Data::Bytes(texts) => {
                if let [text] = &texts[row * per_row..(row + 1) * per_row] {
                    predicted.add_text(text);
                }
            }
            data => {
                let bits = data.le_bytes()?;
                let width = bits.len() / data.len().max(1);
                predicted.add(data.datatype(), &bits[row * per_row * width..(row + 1) * per_row * width]);
            }
        }
    }
    Some(predicted)
}
