//! The commands that read the prediction log: `export`, `replay` and `reproduce`.

use super::commands::{FAILED, USAGE};
use super::sources::model_dirs;
use super::uploads;
use crate::admin::pair_json;
use crate::backend::Engines;
use crate::bucket::Prefix;
use crate::cli::{self, ExportOptions, LogAddress, PickOptions, ReplayOptions, ReproduceOptions};
use crate::compare::Tolerance;
use crate::config::Config;
use crate::dataset::{
    self, Budget, Error, Export, Exported, Filter, Format, Gate, LabelFigures, MAX_SAMPLE, Outcome, Paired, Records,
    Replay, Replayed, ReproduceSample, Reproduced, ReproducedSample, STDOUT, Verdict,
};
use crate::machine;
use crate::model::Role;
use crate::stability::Ran;
use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::fmt::{Display, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Writes logged predictions with their feedback to a file.
#[must_use]
pub fn export(options: &ExportOptions, json: bool) -> ExitCode {
    if options.pick.for_server {
        run_for_server();
    }
    if options.output == Path::new(STDOUT) {
        // Standard output has the file alone.
        return match export_as(options) {
            Ok(_) => ExitCode::SUCCESS,
            Err(error) => failed(&error),
        };
    }
    finish(json, export_as(options), exported_text, exported_json, |_| true)
}

/// Runs logged requests through another version. The exit code is 1 if a gate failed.
#[must_use]
pub fn replay(options: &ReplayOptions, json: bool) -> ExitCode {
    if options.pick.for_server {
        run_for_server();
    }
    let passed = |replayed: &Replayed| replayed.verdicts.iter().all(|verdict| verdict.passed);
    finish(json, replay_as(options), replayed_text, replayed_json, passed)
}

/// Runs a logged prediction again. The exit code is 1 unless every output is the same: bit for bit, or within rounding where the request did
/// not run alone.
#[must_use]
pub fn reproduce(options: &ReproduceOptions, json: bool) -> ExitCode {
    if options.for_server {
        run_for_server();
    }
    if let Some(requests) = options.sample {
        let no_different = |sample: &ReproducedSample| ran_of(sample).different == 0;
        return finish(json, reproduce_sample_as(options, requests), sample_text, |s| json!(ran_of(s)), no_different);
    }
    let equal = |all: &Vec<Reproduced>| all.iter().all(Reproduced::is_reproduced);
    finish(
        json,
        reproduce_as(options),
        |all| all.iter().map(reproduced_text).collect(),
        |all| reproduced_json(all),
        equal,
    )
}

/// Prints the result and returns the exit code.
pub(super) fn finish<T>(
    json: bool,
    result: Result<T, Error>,
    as_text: fn(&T) -> String,
    as_json: fn(&T) -> Value,
    is_good: impl Fn(&T) -> bool,
) -> ExitCode {
    let result = match result {
        Ok(result) => result,
        Err(error) => return failed(&error),
    };
    let text = if json { format!("{:#}\n", as_json(&result)) } else { as_text(&result) };
    // Fails when it cannot be written anywhere; the exit code says the rest.
    let _ = cli::print(&text, json);
    if is_good(&result) { ExitCode::SUCCESS } else { ExitCode::from(FAILED) }
}

fn failed(error: &Error) -> ExitCode {
    cli::complain(&error);
    ExitCode::from(if matches!(error, Error::Usage(_)) { USAGE } else { FAILED })
}

/// For a process that a server has started: it gives way to everything else, and ends with its standard input, which the server holds as long as its client
/// waits.
pub(super) fn run_for_server() {
    machine::lower_priority("main", 19);
    machine::run_on_idle_cores("main");
    end_with_server();
}

/// The same for a short command whose answer a person waits for: it gets a little of the processors also where they are busy, as sealing does.
pub(super) fn answer_for_server() {
    machine::lower_priority("main", 15);
    end_with_server();
}

fn end_with_server() {
    let watching = std::thread::Builder::new().name("server-gone".to_owned()).spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        machine::exit_now(FAILED);
    });
    if watching.is_err() {
        // Nothing would end it when the server is gone.
        machine::exit_now(FAILED);
    }
}

/// Where the records are that a command reads.
fn records<'a>(options: &'a PickOptions, bucket: Option<&'a Arc<Prefix>>) -> Records<'a> {
    bucket.map_or_else(|| options.data_dir().into(), Records::Bucket)
}

/// The bucket that `--log` names.
pub(super) fn bucket_of(log: &LogAddress) -> Result<Option<Arc<Prefix>>, Error> {
    log.log.as_deref().map(|address| uploads::bucket(address, log.log_instance_metadata)).transpose()
}

/// The memory of an export or a replay: less for one beside a server.
fn budget(options: &PickOptions) -> Budget {
    if options.for_server { Budget { rows: 200_000, bytes: 32 << 20 } } else { Budget::default() }
}

/// Parses an argument of the command line. `expected` names it in the error.
pub(super) fn parsed<T: FromStr<Err: Display>>(word: &str, expected: &str) -> Result<T, Error> {
    word.parse().map_err(|e| Error::Usage(format!("{word:?} is not a {expected}: {e}")))
}

/// Parses a time of the command line, in microseconds.
pub(super) fn time_of(option: &str, text: Option<&str>) -> Result<Option<i64>, Error> {
    let named = |e: Error| Error::Usage(format!("{option}: {e}"));
    text.map(|text| dataset::parse_time(text).map_err(named)).transpose()
}

/// Parses a role of the command line.
pub(super) fn role(word: &str) -> Result<Role, Error> {
    let known = Role::ALL.into_iter().find(|role| role.as_str() == word);
    known.ok_or_else(|| Error::Usage(format!("{word:?} is not a role: expected primary, pinned or shadow")))
}

fn pick(options: &PickOptions, versions: &[String], roles: &[String]) -> Result<Filter, Error> {
    Ok(Filter {
        from: time_of("--from", options.from.as_deref())?,
        to: time_of("--to", options.to.as_deref())?,
        versions: versions.iter().map(|word| parsed(word, "version")).collect::<Result<_, _>>()?,
        arms: options.arms.clone(),
        roles: roles.iter().map(|word| role(word)).collect::<Result<_, _>>()?,
        ..Filter::default()
    })
}

/// A progress bar on standard error, if that is a terminal.
pub(super) struct Bar(ProgressBar);

impl Bar {
    pub(super) fn new() -> Bar {
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(10));
        let style = ProgressStyle::with_template("{msg:<24} {wide_bar} {human_pos} of {human_len}, {eta} left");
        // Fails only for a wrong template.
        Bar(bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())))
    }

    pub(super) fn show(&self, doing: &'static str, done: usize, of: usize) {
        if !self.0.is_hidden() {
            self.0.set_length(of as u64);
            self.0.set_position(done as u64);
            self.0.set_message(doing);
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

fn export_as(options: &ExportOptions) -> Result<(Exported, std::path::PathBuf), Error> {
    let format = match &options.format {
        None => Format::of(&options.output)?,
        Some(word) => Format::ALL.into_iter().find(|format| format.as_str() == word).ok_or_else(|| {
            Error::Usage(format!("{word:?} is not a format: expected {}", Format::ALL.map(Format::as_str).join(", ")))
        })?,
    };
    let model = parsed(&options.model, "model name")?;
    let bucket = bucket_of(&options.pick.log)?;
    let bar = Bar::new();
    let what = Export {
        model: &model,
        data: records(&options.pick, bucket.as_ref()),
        filter: pick(&options.pick, &options.versions, &options.roles)?,
        require_label: options.require_label,
        format,
        limit: options.limit,
        to: &options.output,
        budget: budget(&options.pick),
    };
    let exported = dataset::export(&what, &|doing, done, of| bar.show(doing, done, of))?;
    Ok((exported, options.output.clone()))
}

fn exported_text((exported, to): &(Exported, std::path::PathBuf)) -> String {
    let Exported { rows, labelled, left_out, bytes, deleted_files: gone } = exported;
    let labels =
        if *labelled > 0 { format!(", {} of them with a label", HumanCount(*labelled as u64)) } else { String::new() };
    let mut text = format!("{}: {} rows{labels}, {}\n", to.display(), HumanCount(*rows as u64), HumanBytes(*bytes));
    for (reason, n) in left_out {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "left out {n}: {reason}");
    }
    text + &gone_text(*gone)
}

fn gone_text(gone: usize) -> String {
    match gone {
        0 => String::new(),
        gone => format!("{gone} files were deleted by retention before they were read\n"),
    }
}

fn exported_json((exported, to): &(Exported, std::path::PathBuf)) -> Value {
    let Exported { rows, labelled, left_out, bytes, deleted_files: gone } = exported;
    json!({
        "file": to.display().to_string(), "rows": rows, "labelled": labelled, "left_out": left_out, "bytes": bytes,
        "files_gone": gone,
    })
}

fn replay_as(options: &ReplayOptions) -> Result<Replayed, Error> {
    let model = parsed(&options.model, "model name")?;
    for (name, number) in [("rtol", options.rtol), ("atol", options.atol)] {
        if number.is_some_and(|number| !number.is_finite() || number < 0.0) {
            return Err(Error::Usage(format!("--{name} must be a number of at least 0")));
        }
    }
    let mut pick = pick(&options.pick, &options.versions, &options.roles)?;
    if pick.roles.is_empty() {
        pick.roles = vec![Role::Primary];
    }
    let gates = options.gates.iter().map(|gate| Gate::parse(gate)).collect::<Result<_, _>>()?;
    let shadows = Config::default().shadows;
    let bucket = bucket_of(&options.pick.log)?;
    let bar = Bar::new();
    let what = Replay {
        model: &model,
        version: parsed(&options.version, "version")?,
        models: &model_dirs(&options.models, options.pick.data_dir()),
        data: records(&options.pick, bucket.as_ref()),
        filter: pick,
        limit: options.limit,
        rtol: options.rtol,
        atol: options.atol,
        default_tolerance: Tolerance { rtol: shadows.rtol, atol: shadows.atol },
        worst: shadows.worst,
        gates,
        budget: budget(&options.pick),
    };
    dataset::replay(&Engines::discover(None), &what, &|doing, done, of| bar.show(doing, done, of))
}

fn replayed_json(replayed: &Replayed) -> Value {
    json!({
        "model": replayed.model,
        "version": replayed.version,
        "sha256": replayed.sha256,
        "engine": replayed.engine,
        "tolerance": { "rtol": replayed.tolerance.rtol, "atol": replayed.tolerance.atol },
        "requests": replayed.requests,
        "records": replayed.records,
        "left_out": replayed.left_out.iter().map(|(reason, n)| (reason.as_str().to_owned(), json!(n))).collect::<serde_json::Map<_, _>>(),
        "primaries": replayed.pairs.iter().map(pair_json).collect::<Vec<_>>(),
        "labels": replayed.labels.iter().map(labels_json).collect::<Vec<_>>(),
        "gates": replayed.verdicts.iter().map(verdict_json).collect::<Vec<_>>(),
        "passed": replayed.verdicts.iter().all(|verdict| verdict.passed),
        "files_gone": replayed.deleted_files,
    })
}

fn labels_json(labels: &LabelFigures) -> Value {
    let both =
        |pair: Option<(f64, f64)>| pair.map(|(logged, candidate)| json!({ "logged": logged, "candidate": candidate }));
    json!({
        "answered_by": labels.version, "labelled": labels.labelled, "unfit": labels.unfit, "unanswered": labels.unanswered,
        "classes": labels.classes, "accuracy": both(labels.accuracy()),
        "numbers": labels.numbers, "mean_absolute_error": both(labels.mean_absolute_error()),
    })
}

fn verdict_json(verdict: &Verdict) -> Value {
    let mut shown = json!({ "gate": verdict.gate.to_string(), "passed": verdict.passed, "found": verdict.found });
    if let Some(paired) = &verdict.paired {
        shown["champion"] = json!({
            "rows": paired.rows, "champion": paired.champion, "difference": paired.difference, "bound": paired.bound,
            "p_value": paired.p_value, "words": paired.words,
            "candidate_only": paired.discordant.map(|(b, _, _)| b), "champion_only": paired.discordant.map(|(_, c, _)| c),
            "mcnemar_p": paired.discordant.map(|(_, _, p)| p),
        });
    }
    shown
}

fn replayed_text(replayed: &Replayed) -> String {
    let Replayed { model, version, engine, tolerance, requests, records, .. } = replayed;
    let mut text = format!(
        "replayed {} requests ({} records) of {model} through version {version} on {engine}; tolerance: rtol {}, atol {}\n",
        HumanCount(*requests),
        HumanCount(*records),
        tolerance.rtol,
        tolerance.atol,
    );
    // Writing to a String cannot fail.
    for (reason, n) in &replayed.left_out {
        let _ = writeln!(text, "left out {}: {}", HumanCount(*n), reason.message());
    }
    text.push_str(&gone_text(replayed.deleted_files));
    text.push_str(&cli::shadow_pairs(&replayed_json(replayed)));
    if !replayed.labels.is_empty() {
        text.push('\n');
        text.push_str(&cli::table(
            &["COMPARED WITH LABELS", "LABELS", "OF ANOTHER TYPE", "LOGGED", "CANDIDATE"],
            &replayed.labels.iter().flat_map(label_rows).collect::<Vec<_>>(),
        ));
    }
    if !replayed.verdicts.is_empty() {
        text.push('\n');
        let row = |verdict: &Verdict| {
            let found = verdict.found.map_or_else(|| "no data".to_owned(), |found| found.to_string());
            vec![verdict.gate.to_string(), if verdict.passed { "passed" } else { "FAILED" }.to_owned(), found]
        };
        let rows: Vec<_> = replayed.verdicts.iter().map(row).collect();
        text.push_str(&cli::table(&["GATE", "RESULT", "FOUND"], &rows));
        for (gate, paired) in replayed.verdicts.iter().filter_map(|v| Some((v.gate, v.paired.as_ref()?))) {
            let _ = writeln!(text, "{}", paired_text(&gate.to_string(), paired));
        }
    }
    text
}

/// The comparison of a gate with the champion.
fn paired_text(gate: &str, paired: &Paired) -> String {
    let Paired { rows, champion, difference, bound, discordant, words, .. } = paired;
    let side = if discordant.is_some() { "at least" } else { "at most" };
    let bound = bound.map_or_else(String::new, |bound| format!(", {side} {bound:+.6} with 95 % confidence"));
    let alone = discordant.map_or_else(String::new, |(candidate, champion, p)| {
        format!("; the candidate alone is right on {candidate} rows, the champion alone on {champion} (McNemar, two-sided: p = {p:.4})")
    });
    format!(
        "{gate}: the champion has {champion:.6} on the same {} rows; difference {difference:+.6}{bound}{alone}; {words}",
        HumanCount(*rows)
    )
}

fn label_rows(labels: &LabelFigures) -> Vec<Vec<String>> {
    let row = |what: &str, (logged, candidate): (f64, f64)| {
        let name = format!("{what}, answered by version {}", labels.version);
        let number = |n: f64| format!("{n:.6}");
        vec![name, labels.labelled.to_string(), labels.unfit.to_string(), number(logged), number(candidate)]
    };
    let figures = [("accuracy", labels.accuracy()), ("mean absolute error", labels.mean_absolute_error())];
    let rows: Vec<_> = figures.into_iter().filter_map(|(what, pair)| Some(row(what, pair?))).collect();
    if !rows.is_empty() {
        return rows;
    }
    let name = format!("answered by version {}", labels.version);
    vec![vec![name, labels.labelled.to_string(), labels.unfit.to_string(), String::new(), String::new()]]
}

fn reproduce_as(options: &ReproduceOptions) -> Result<Vec<Reproduced>, Error> {
    let model = options.model.as_deref().map(|word| parsed(word, "model name")).transpose()?;
    let request_id = options.request_id.as_deref();
    let request_id = request_id.ok_or_else(|| Error::Usage("expected a request id, or --sample".to_owned()))?;
    let engines = Engines::discover(None);
    dataset::reproduce(
        &engines,
        &options.data_dir,
        &model_dirs(&options.models, &options.data_dir),
        model.as_ref(),
        request_id,
    )
}

/// How long a sample is run at most: no request begins later.
const LONGEST_SAMPLE: Duration = Duration::from_mins(1);

fn reproduce_sample_as(options: &ReproduceOptions, requests: usize) -> Result<ReproducedSample, Error> {
    if requests == 0 || requests > MAX_SAMPLE {
        return Err(Error::Usage(format!("--sample: expected 1 to {MAX_SAMPLE} requests, got {requests}")));
    }
    let (Some(model), Some(version)) = (&options.model, &options.version) else {
        return Err(Error::Usage("--sample needs --model and --version".to_owned()));
    };
    let an_hour_ago = || Timestamp::now().as_microsecond() - 3_600_000_000;
    let what = ReproduceSample {
        data: &options.data_dir,
        models: &model_dirs(&options.models, &options.data_dir),
        model: &parsed(model, "model name")?,
        version: parsed(version, "version")?,
        from: time_of("--from", options.from.as_deref())?.unwrap_or_else(an_hour_ago),
        requests,
        deadline: Instant::now() + LONGEST_SAMPLE,
    };
    dataset::reproduce_sample(&Engines::discover(None), &what)
}

/// What came of a sample.
fn ran_of(sample: &ReproducedSample) -> Ran {
    let of = |name: &'static str| sample.ran.iter().filter(move |(_, reproduced)| outcome(reproduced).0 == name);
    let count = |name: &'static str| of(name).count() as u64;
    let different = of("apart").next();
    Ran {
        answered: sample.answered as u64,
        equal: count("equal"),
        close: count("close"),
        different: count("apart"),
        not_run: count("not"),
        first_different: different.map(|(request_id, _)| request_id.clone()),
        words: different.map(|(_, reproduced)| outcome(reproduced).1),
        why_not_run: of("not").next().map(|(_, reproduced)| outcome(reproduced).1),
    }
}

fn sample_text(sample: &ReproducedSample) -> String {
    let ReproducedSample { model, version, ran, .. } = sample;
    let Ran { answered, equal, close, different, not_run, first_different, words, why_not_run } = ran_of(sample);
    let mut text = format!(
        "{model} version {version}: {} of {answered} answers were taken: {equal} are bit for bit as logged, {close} within rounding, {different} different, {not_run} were not run\n",
        ran.len()
    );
    for (what, why) in [(first_different.as_deref().unwrap_or_default(), words), ("not run", why_not_run)] {
        if let Some(why) = why {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{what}: {why}");
        }
    }
    text
}

/// How a request ran that did not run alone and whole.
fn not_alone(reproduced: &Reproduced) -> Option<String> {
    let others = reproduced.batch_rows.saturating_sub(reproduced.records);
    if others > 0 {
        return Some(format!("it ran in a batch with {others} rows of other requests"));
    }
    (reproduced.batch_rows < reproduced.records).then(|| "it was split into several runs".to_owned())
}

/// The outcome, as in the JSON answer and as a sentence.
fn outcome(reproduced: &Reproduced) -> (&'static str, String) {
    let outputs = |n: usize| if n == 1 { "1 output".to_owned() } else { format!("{n} outputs") };
    match &reproduced.outcome {
        Outcome::Equal { outputs: n } => ("equal", format!("{}, bit for bit as logged", outputs(*n))),
        Outcome::Close(comparison) => {
            let how = not_alone(reproduced).unwrap_or_default();
            ("close", format!("the same within rounding, not bit for bit; {how}, and alone now; {comparison}"))
        }
        Outcome::Different(comparison) => {
            let cause = not_alone(reproduced).map(|how| format!("; {how}, which can change the rounding"));
            ("apart", format!("not bit for bit as logged; {comparison}{}", cause.unwrap_or_default()))
        }
        Outcome::NotRun(reason) => ("not", reason.clone()),
    }
}

fn reproduced_json(all: &[Reproduced]) -> Value {
    let one = |reproduced: &Reproduced| {
        let (outcome, sentence) = outcome(reproduced);
        json!({
            "model": reproduced.model, "version": reproduced.version, "role": reproduced.role, "ts": reproduced.at.to_string(),
            "sha256": reproduced.sha256, "records": reproduced.records, "batch_rows": reproduced.batch_rows,
            "ran": reproduced.ran.map(|(version, engine)| json!({ "version": version, "engine": engine })),
            "outcome": outcome, "words": sentence,
        })
    };
    json!({ "predictions": all.iter().map(one).collect::<Vec<_>>() })
}

fn reproduced_text(reproduced: &Reproduced) -> String {
    let Reproduced { model, version, role, at, sha256, records, ran, .. } = reproduced;
    let (outcome, sentence) = outcome(reproduced);
    let by = match ran {
        Some((other, engine)) if other != version => {
            format!("run again with version {other}, which has the same bytes, on {engine}")
        }
        Some((_, engine)) => format!("run again with the same version on {engine}"),
        None => "not run again".to_owned(),
    };
    let verdict = match outcome {
        "equal" => "REPRODUCED",
        "close" => "REPRODUCED within rounding",
        "apart" => "DIFFERENT",
        _ => "NOT RUN",
    };
    let rows = if *records == 1 { String::new() } else { format!(" of {records} rows") };
    format!(
        "{verdict}: {sentence}\n  {role} answer{rows} of {model} version {version}, {at}, sha256 {}; {by}\n  \
         where this version comes from: sluicegate lineage {model} {version}\n",
        sha256.get(..12).unwrap_or(sha256),
    )
}
