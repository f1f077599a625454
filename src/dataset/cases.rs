//! A log window as `golden.json` or `warmup.json`.

use super::error::Error;
use super::export::{Export, Exported, nothing};
use super::requests::{Logged, OK, Requests};
use super::source::Sources;
use super::unfinished::Unfinished;
use super::walk::{Progress, Way, walk};
use crate::codec::golden::{Golden, GoldenCase, write_golden, write_warmup};
use crate::model::{InferenceRequest, NamedTensor, Version};
use crate::tensor::Tensor;
use std::collections::BTreeSet;
use std::io::Write as _;
use std::ops::ControlFlow;
use std::sync::Arc;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Golden,
    Warmup,
}

impl Kind {
    /// Where nobody says how many.
    const fn limit(self) -> usize {
        match self {
            Kind::Golden => 100,
            Kind::Warmup => 20,
        }
    }
}

/// How far a golden answer may be off: what engines and processors differ by, and not more.
const RTOL: f64 = 1e-3;
const ATOL: f64 = 1e-5;

pub fn write(
    what: &Export,
    sources: &Sources,
    kind: Kind,
    mut file: Unfinished,
    progress: Progress,
) -> Result<Exported, Error> {
    if what.require_label {
        let words = "--require-label chooses rows of a table: a golden or warm-up file has no labels";
        return Err(Error::Usage(words.to_owned()));
    }
    let versions: BTreeSet<Version> = sources.predictions.iter().map(|source| source.about.version).collect();
    if what.pick.versions.is_empty() && versions.len() > 1 {
        let versions: Vec<String> = versions.iter().map(ToString::to_string).collect();
        return Err(Error::Failed(format!(
            "there are predictions of versions {}, which may answer differently: choose one with --version",
            versions.join(", ")
        )));
    }
    let most = what.limit.unwrap_or(kind.limit());
    let mut exported = Exported { gone: sources.gone, ..Exported::default() };
    let mut cases: Vec<GoldenCase> = Vec::new();
    let mut requests = Requests::default();
    let mut take = |logged: Logged| {
        if cases.len() < most {
            match case(&logged, kind) {
                Ok(case) => cases.push(case),
                Err(why) => *exported.left_out.entry(why).or_default() += 1,
            }
        }
        cases.len() < most
    };
    let way = Way { pick: &what.pick, labels: false, budget: what.budget, first: None, progress };
    walk(sources, &way, &mut |step| {
        let whole = requests.push(&step).map_err(|error| step.source.stored.named(error))?;
        let goes_on = whole.into_iter().all(&mut take);
        Ok(if goes_on { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    requests.finish().map(&mut take);
    if cases.is_empty() {
        let words = nothing(what.data, what.model).to_string();
        let left_out: Vec<String> = exported.left_out.iter().map(|(why, n)| format!("{n} {why}")).collect();
        let words =
            if left_out.is_empty() { words } else { format!("no request can be taken: {}", left_out.join(", ")) };
        return Err(Error::Failed(words));
    }
    exported.rows = cases.len();
    let text = match kind {
        Kind::Golden => write_golden(&Golden { rtol: RTOL, atol: ATOL, cases }),
        Kind::Warmup => write_warmup(cases.iter().map(|case| &case.request)),
    };
    file.write_all(&text).map_err(|e| Error::at("write", file.path(), e))?;
    exported.bytes = file.finish()?;
    Ok(exported)
}

/// # Errors
/// Why it is none.
fn case(logged: &Logged, kind: Kind) -> Result<GoldenCase, &'static str> {
    if logged.status != OK {
        return Err("failed");
    }
    let named = |(name, tensor): (Arc<str>, Tensor)| NamedTensor { name: name.to_string(), tensor };
    let inputs = logged.inputs().map_err(super::requests::Unfit::as_str)?.into_iter().map(named).collect();
    let outputs: Vec<NamedTensor> = match kind {
        Kind::Warmup => Vec::new(),
        Kind::Golden if logged.truncated => return Err("truncated"),
        Kind::Golden => logged.outputs().map_err(super::requests::Unfit::as_str)?.into_iter().map(named).collect(),
    };
    let request = InferenceRequest { inputs, ..InferenceRequest::default() };
    let case = GoldenCase { request, outputs };
    if case.is_json() { Ok(case) } else { Err("not_json") }
}
