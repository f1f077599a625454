//! Handlers of shadows: how their answers compare with the primary's, and the pairs that differ most.

use super::Admin;
use super::caller::Caller;
use super::contents;
use super::error::ErrorResponse;
use super::extract::Target;
use super::responses::models::unknown_version;
use super::schemas::Problem;
use crate::codec::oip::{AnswerForm, AnswerHead, encode};
use crate::ledger::rfc3339;
use crate::model::{Answer, ModelName, Version};
use crate::record::{Choice, Log};
use crate::registry::{Entry, ShadowRoute};
use crate::shadow::{Alternated, Latency, OutputFigures, PairFigures, Side, WorstPair};
use crate::telemetry::{Dropped, ShadowMetrics};
use axum::Json;
use axum::extract::State;
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use utoipa::ToSchema;

/// The versions of a model that are shadows, or were and still have figures.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Shadows {
    #[schema(value_type = String)]
    model: ModelName,
    shadows: Vec<Shadow>,
}

/// One shadow. Its counts begin when the version is loaded and end when it is unloaded.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Shadow {
    #[schema(value_type = String)]
    model: ModelName,
    #[schema(value_type = String)]
    version: Version,
    /// The share of requests that are copied; null if it is not a shadow in the current traffic document.
    sample: Option<f64>,
    /// All sampled copies: compared, dropped or waiting.
    offered: u64,
    compared: u64,
    disagreed: u64,
    /// By reason: `queue_full`, `queue_bytes`, `busy`, `gone`, `stopping`.
    dropped: BTreeMap<&'static str, u64>,
    waiting: u64,
    tolerance: ToleranceAnswer,
    /// Figures for each version that answered, since the last change of either version's bytes, at most since the server started.
    primaries: Vec<Pair>,
}

/// `|shadow - primary| <= atol + rtol * |primary|`
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ToleranceAnswer {
    rtol: f64,
    atol: f64,
}

/// A shadow compared with one primary version.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Pair {
    #[schema(value_type = String)]
    primary: Version,
    #[schema(format = DateTime)]
    since: String,
    #[schema(format = DateTime)]
    until: String,
    /// Pairs of answers, failures included.
    pairs: u64,
    /// Pairs with every element of every output within the tolerance.
    agreed: u64,
    /// From 0 to 1: the share that agreed of the pairs in which at most one side failed; null before the first.
    agreement: Option<f64>,
    /// From 0 to 1: the share that agreed of the pairs in which both sides answered; null before the first.
    agreement_of_answers: Option<f64>,
    primary_failed: u64,
    shadow_failed: u64,
    both_failed: u64,
    latency: LatencyAnswer,
    outputs: Vec<Output>,
    /// Worst first. The inputs are in the prediction log under the request id. Answers, and words about them, are for operators of the model.
    worst: Vec<Worst>,
}

/// Times inside the engine, to two digits. `primary` and `shadow` are as the pairs ran: the primary for callers, the shadow at the lowest
/// priority, so they cannot be compared with each other. The ratios are from runs of both, one directly after the other on one thread.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct LatencyAnswer {
    primary: Times,
    shadow: Times,
    alternated: AlternatedAnswer,
    /// The shadow's time per row divided by the primary's, where both ran alternately on one thread; null before the first.
    ratio_of_means: Option<f64>,
    ratio_of_p50: Option<f64>,
    ratio_of_p99: Option<f64>,
}

/// Runs of both sides, alternately on one thread: of one copy in eight.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AlternatedAnswer {
    runs: u64,
    /// Medians of the time inside the engine, in microseconds per row; null before the first run.
    primary_us_per_row: Option<f64>,
    shadow_us_per_row: Option<f64>,
}

impl AlternatedAnswer {
    fn of(alternated: &Alternated) -> AlternatedAnswer {
        let (primary_us_per_row, shadow_us_per_row) = alternated.us_per_row().unzip();
        AlternatedAnswer { runs: alternated.runs(), primary_us_per_row, shadow_us_per_row }
    }
}

#[derive(Debug, Serialize, ToSchema)]
#[expect(clippy::struct_field_names, reason = "JSON members carry their unit")]
pub(super) struct Times {
    mean_us: Option<f64>,
    p50_us: Option<u64>,
    p99_us: Option<u64>,
}

/// One output, over the pairs in which both sides answered.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Output {
    name: String,
    pairs: u64,
    /// Pairs in which all its elements agreed (labels and strings: exactly).
    agreed: u64,
    /// Pairs in which it was missing on one side or had another type or shape.
    incomparable: u64,
    elements: u64,
    /// From 0 to 1: the share of elements within the tolerance (floating point) or equal (other types).
    share_within: f64,
    /// Absolute differences; null for types without a difference.
    largest_difference: Option<f64>,
    mean_difference: Option<f64>,
    /// Elements that were NaN or infinite on one side only.
    nonfinite: u64,
    /// Rows whose largest score is at another position, and all rows of scores.
    top1_flipped: u64,
    top1_rows: u64,
    /// From 0 to 1; null if the output is not a list of scores.
    top1_flip_share: Option<f64>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Worst {
    request_id: String,
    #[schema(format = DateTime)]
    ts: String,
    /// The arm of the primary.
    arm: String,
    /// The difference, in words.
    words: String,
    primary: SideAnswer,
    shadow: SideAnswer,
}

/// The answer of one side: outputs or an error.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SideAnswer {
    /// In the form of the Open Inference Protocol; null if there are none or they were not kept.
    #[schema(value_type = Option<Vec<Object>>)]
    outputs: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'static str>,
    /// Why the outputs are not shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
}

/// Why contents are not shown.
const FOR_OPERATORS: &str = "not shown: what a request holds is for operators";
const LOOK_AT_ONE: &str = "not shown in this list";

/// A model's shadows
///
/// Those of its traffic document, and earlier ones that still have figures. Answers of the worst pairs are shown with one shadow only.
#[utoipa::path(
    get, path = "/api/v1/models/{model}/shadows", operation_id = "list_shadows", tag = "traffic",
    params(("model" = String, Path)),
    responses(
        (status = 200, description = "Ordered by version", body = Shadows),
        (status = 404, description = "No model has this name", body = Problem),
    )
)]
pub(super) async fn list(State(admin): State<Arc<Admin>>, target: Target) -> Result<Json<Shadows>, ErrorResponse> {
    let snapshot = admin.reader.snapshot();
    let entry = target.entry(&snapshot)?;
    let pairs = admin.figures.of(entry.name());
    let configured =
        entry.document().map(|d| d.shadows.iter().map(|s| s.version).collect::<Vec<_>>()).unwrap_or_default();
    let mut versions: Vec<Version> = configured.into_iter().chain(pairs.iter().map(|pair| pair.shadow)).collect();
    versions.sort_unstable();
    versions.dedup();
    let shadow = |version| Shadow::of(&admin.log, entry, version, &pairs).without_contents(LOOK_AT_ONE);
    let shadows = versions.into_iter().map(shadow).collect();
    Ok(Json(Shadows { model: entry.name().clone(), shadows }))
}

/// One version as a shadow
///
/// How its answers compare with the primary's: per output the differences, top-1 flips and agreement; failures and times; and the worst
/// pairs with both answers, for operators; the audit trail has who read them.
#[utoipa::path(
    get, path = "/api/v1/models/{model}/shadows/{version}", operation_id = "show_shadow", tag = "traffic",
    params(("model" = String, Path), ("version" = String, Path)),
    responses(
        (status = 200, description = "All zero if it was never a shadow", body = Shadow),
        (status = 404, description = "The model has no such version", body = Problem),
    )
)]
pub(super) async fn show(
    State(admin): State<Arc<Admin>>,
    Caller(caller): Caller,
    target: Target,
) -> Result<Json<Shadow>, ErrorResponse> {
    let entry = Arc::clone(target.entry(&admin.reader.snapshot())?);
    let version = target.version()?;
    if !entry.versions().contains_key(&version) {
        return Err(unknown_version(&entry, version));
    }
    let shadow = Shadow::of(&admin.log, &entry, version, &admin.figures.of(entry.name()));
    if !contents::may_read(&caller, entry.name()) {
        return Ok(Json(shadow.without_contents(FOR_OPERATORS)));
    }
    if shadow.primaries.iter().any(|pair| !pair.worst.is_empty()) {
        let looked = json!({ "by": "shadow", "version": version });
        contents::note_of_several(&admin, &caller, entry.name(), looked).await?;
    }
    Ok(Json(shadow))
}

impl Shadow {
    /// `log` hides in the worst pairs what it hides in its records.
    pub(super) fn of(log: &Log, entry: &Entry, version: Version, pairs: &[PairFigures]) -> Shadow {
        let privacy = Privacy { log, choice: entry.choice() };
        let served = |shadowing: &&ShadowRoute| shadowing.served.loaded.version == version;
        let sample = entry.document().and_then(|d| d.shadows.iter().find(|s| s.version == version)).map(|s| s.sample);
        let loaded = entry.shadows().iter().find(served).map(|s| &s.served.loaded);
        let loaded = loaded.or_else(|| entry.versions().get(&version)?.loaded.as_ref());
        let counts = loaded.and_then(|loaded| loaded.metrics.shadow_so_far());
        let count = |of: fn(&ShadowMetrics) -> u64| counts.map_or(0, of);
        let dropped = Dropped::ALL.map(|reason| (reason.as_str(), counts.map_or(0, |c| c.dropped_so_far(reason))));
        Shadow {
            model: entry.name().clone(),
            version,
            sample,
            offered: count(ShadowMetrics::offered_so_far),
            compared: count(ShadowMetrics::compared_so_far),
            disagreed: count(ShadowMetrics::disagreed_so_far),
            dropped: dropped.into(),
            waiting: count(ShadowMetrics::waiting),
            tolerance: ToleranceAnswer { rtol: entry.tolerance().rtol, atol: entry.tolerance().atol },
            primaries: pairs
                .iter()
                .filter(|pair| pair.shadow == version)
                .map(|pair| Pair::of(pair, Some(privacy)))
                .collect(),
        }
    }
}

impl Shadow {
    /// Without the answers of the worst pairs, and with `why` instead of the words about them.
    pub(super) fn without_contents(mut self, why: &str) -> Shadow {
        for worst in self.primaries.iter_mut().flat_map(|pair| &mut pair.worst) {
            why.clone_into(&mut worst.words);
            for side in [&mut worst.primary, &mut worst.shadow] {
                (side.outputs, side.error, side.note) = (None, None, None);
            }
        }
        self
    }
}

/// What is hidden in the worst pairs.
#[derive(Clone, Copy)]
struct Privacy<'a> {
    log: &'a Log,
    choice: &'a Choice,
}

/// One pair of versions in the form of the API. The replay command reports the same members. It reads the log, which holds nothing that is
/// hidden.
pub(crate) fn pair_json(pair: &PairFigures) -> Value {
    serde_json::to_value(Pair::of(pair, None)).expect("names and numbers are JSON")
}

impl Pair {
    fn of(pair: &PairFigures, privacy: Option<Privacy>) -> Pair {
        let answered = pair.pairs - pair.primary_failed - pair.shadow_failed - pair.both_failed;
        Pair {
            primary: pair.primary,
            since: rfc3339(pair.since),
            until: rfc3339(pair.until),
            pairs: pair.pairs,
            agreed: pair.agreed,
            agreement: pair.agreement(),
            agreement_of_answers: (answered > 0).then(|| pair.agreed as f64 / answered as f64),
            primary_failed: pair.primary_failed,
            shadow_failed: pair.shadow_failed,
            both_failed: pair.both_failed,
            latency: LatencyAnswer {
                primary: Times::of(&pair.primary_latency),
                shadow: Times::of(&pair.shadow_latency),
                alternated: AlternatedAnswer::of(&pair.alternated),
                ratio_of_means: pair.alternated.ratio_of_means(),
                ratio_of_p50: pair.alternated.ratio(0.5),
                ratio_of_p99: pair.alternated.ratio(0.99),
            },
            outputs: pair.outputs.iter().map(Output::of).collect(),
            worst: pair.worst.iter().map(|worst| Worst::of(worst, privacy)).collect(),
        }
    }
}

impl Times {
    fn of(latency: &Latency) -> Times {
        let quantile = |q| latency.quantile_us(q);
        Times { mean_us: latency.mean_us(), p50_us: quantile(0.5), p99_us: quantile(0.99) }
    }
}

impl Output {
    fn of(output: &OutputFigures) -> Output {
        let flips = || output.top1_flipped as f64 / output.top1_rows as f64;
        Output {
            name: output.name.clone(),
            pairs: output.pairs,
            agreed: output.agreed,
            incomparable: output.incomparable,
            elements: output.elements,
            share_within: output.share_within(),
            largest_difference: output.largest,
            mean_difference: output.mean(),
            nonfinite: output.nonfinite,
            top1_flipped: output.top1_flipped,
            top1_rows: output.top1_rows,
            top1_flip_share: (output.top1_rows > 0).then(flips),
        }
    }
}

impl Worst {
    fn of(pair: &WorstPair, privacy: Option<Privacy>) -> Worst {
        let hides = |output: &str| privacy.is_some_and(|privacy| privacy.choice.hides_output(output));
        let hide_messages = privacy.is_some_and(|privacy| privacy.choice.hides_any_input());
        Worst {
            request_id: pair.request_id.as_str().to_owned(),
            ts: rfc3339(pair.at),
            arm: pair.arm.clone(),
            words: pair.words_without(&hides, hide_messages),
            primary: SideAnswer::of(&pair.primary, privacy),
            shadow: SideAnswer::of(&pair.shadow, privacy),
        }
    }
}

impl SideAnswer {
    fn of(side: &Side, privacy: Option<Privacy>) -> SideAnswer {
        let nothing = SideAnswer { outputs: None, error: None, code: None, note: None };
        match side {
            Side::Failed { code, .. } if privacy.is_some_and(|privacy| privacy.choice.hides_any_input()) => {
                SideAnswer {
                    code: Some(code.as_str()),
                    note: Some("the message is not shown: it may quote inputs, and some are private".to_owned()),
                    ..nothing
                }
            }
            Side::Failed { code, message } => {
                SideAnswer { error: Some(message.clone()), code: Some(code.as_str()), ..nothing }
            }
            Side::TooLarge(bytes) => SideAnswer {
                note: Some(format!(
                    "the outputs were too large to keep ({bytes} bytes); the member words has the largest difference"
                )),
                ..nothing
            },
            Side::Answered(answer) => {
                let (answer, left_out) = shown(answer, privacy);
                let note = (!left_out.is_empty())
                    .then(|| format!("not shown, because it is private: {}", left_out.join(", ")));
                match outputs(&answer) {
                    Ok(outputs) => SideAnswer { outputs: Some(outputs), note, ..nothing },
                    Err(note) => SideAnswer { note: Some(note), ..nothing },
                }
            }
        }
    }
}

/// The answer with its private outputs as the log stores them, and the names of those that are left out.
fn shown(answer: &Answer, privacy: Option<Privacy>) -> (Answer, Vec<String>) {
    let Some(Privacy { log, choice }) = privacy else { return (answer.clone(), Vec::new()) };
    let (mut shown, mut left_out) = (Vec::new(), Vec::new());
    for (name, tensor) in answer.outputs.iter() {
        match log.stored_output(choice, name, tensor) {
            Some(tensor) => shown.push((Arc::clone(name), tensor)),
            None => left_out.push(name.to_string()),
        }
    }
    (Answer::from(shown), left_out)
}

/// The outputs as a caller would get them. FP16 and strings that are not UTF-8 have no JSON form.
fn outputs(answer: &Answer) -> Result<Value, String> {
    let head = AnswerHead { model_name: "", model_version: None, id: "" };
    let encoded = encode(answer, &head, &AnswerForm::json()).map_err(|failure| failure.message)?;
    let mut whole: Value = serde_json::from_slice(&encoded.body).map_err(|error| error.to_string())?;
    Ok(whole["outputs"].take())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::{Pair as ComparedPair, Tolerance, compare_answers};
    use crate::model::{Code, Failure, RequestId};
    use crate::quality::Quality;
    use crate::record::Config;
    use crate::telemetry::Telemetry;
    use crate::tensor::{Data, Shape, Tensor};
    use std::time::Duration;

    fn answer(text: &'static str) -> Answer {
        let text = Data::Bytes(vec![bytes::Bytes::from_static(text.as_bytes())]);
        let tensor = || Tensor::new(Shape::new(&[1]), text.clone()).unwrap();
        Answer::from(vec![("label".into(), tensor()), ("gone".into(), tensor()), ("open".into(), tensor())])
    }

    #[test]
    fn the_worst_pairs_hide_what_the_log_hides() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::start(Config::of(dir.path().to_owned()), Quality::default(), &Telemetry::new());
        let (log, stop) = log.unwrap();
        let version = |n: u64| n.to_string().parse().unwrap();
        let at = jiff::Timestamp::UNIX_EPOCH;
        let mut figures = PairFigures::new(version(1), version(2), (String::new(), String::new()), at);
        let (expected, got, id) = (answer("alice"), answer("bob"), RequestId::from_caller("r".to_owned()).unwrap());
        let comparison = compare_answers(&expected, &got, Tolerance::default());
        let failure = Failure::new(Code::EngineFailed, "index 17 of alice");
        let primary = Ok((&expected, Duration::ZERO));
        let pair = ComparedPair {
            request_id: &id,
            arm: "1",
            at,
            primary,
            shadow: Ok((&got, Duration::ZERO)),
            comparison: Some(&comparison),
            alternated: None,
        };
        figures.record(5, &pair);
        figures.record(5, &ComparedPair { shadow: Err(&failure), comparison: None, ..pair });
        let show = |choice: &Choice| {
            let pair = Pair::of(&figures, Some(Privacy { log: &log, choice }));
            serde_json::to_value(pair).unwrap()["worst"].take()
        };
        let plain = show(&Choice::default());
        assert!(
            plain.to_string().contains("index 17 of alice") && plain.to_string().contains("got \\\"bob\\\""),
            "{plain}"
        );

        let hidden = Choice {
            hash: ["outputs.label".to_owned()].into(),
            drop: ["outputs.gone", "inputs.x"].map(str::to_owned).into(),
            ..Choice::default()
        };
        let worst = show(&hidden);
        let (failed, differs) = (&worst[0], &worst[1]);
        assert_eq!((&failed["words"], &failed["shadow"]["error"]), (&"the shadow failed".into(), &Value::Null));
        assert_eq!(failed["shadow"]["code"], "ENGINE_FAILED");
        let outputs = differs["primary"]["outputs"].as_array().unwrap();
        let names: Vec<&str> = outputs.iter().map(|output| output["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["label", "open"], "what is dropped is left out");
        assert_eq!(outputs[0]["data"][0].as_str().unwrap().len(), 64, "a hash");
        assert_eq!(outputs[1]["data"][0], "alice", "other outputs stay");
        assert!(differs["primary"]["note"].as_str().unwrap().contains("private: gone"), "{differs}");
        let words = differs["words"].as_str().unwrap();
        assert!(words.contains("output \"label\": 1 of 1 elements differ; its values are private"), "{words}");
        assert_eq!(words.matches("alice").count(), 1, "only that of the open output: {words}");
        stop.stop(Duration::from_secs(10));
    }
}
