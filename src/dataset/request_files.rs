//! Exports logged requests as `golden.json` or `warmup.json`.

use super::assemble::Assembler;
use super::atomic_file::AtomicFile;
use super::error::Error;
use super::logged::{LoggedRequest, SkipReason};
use super::options::{Export, Exported, no_predictions};
use super::scan::{Progress, ScanOptions, scan};
use super::sources::Sources;
use crate::codec::golden::{Golden, GoldenCase, write_golden, write_warmup};
use crate::model::{InferenceRequest, NamedTensor, Version};
use crate::tensor::Tensor;
use std::collections::BTreeSet;
use std::io::Write as _;
use std::ops::ControlFlow;
use std::sync::Arc;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Golden,
    Warmup,
}

impl Kind {
    /// The number of requests, if none is given.
    const fn default_limit(self) -> usize {
        match self {
            Kind::Golden => 100,
            Kind::Warmup => 20,
        }
    }
}

/// The tolerance of golden answers: the usual difference between engines and processors.
const RTOL: f64 = 1e-3;
const ATOL: f64 = 1e-5;

pub(super) fn write(
    options: &Export,
    sources: &Sources,
    kind: Kind,
    mut file: AtomicFile,
    progress: Progress,
) -> Result<Exported, Error> {
    if options.require_label {
        let message = "--require-label works only with tables: a golden or warm-up file has no labels";
        return Err(Error::Usage(message.to_owned()));
    }
    let versions: BTreeSet<Version> = sources.predictions.iter().map(|source| source.about.version).collect();
    if options.filter.versions.is_empty() && versions.len() > 1 {
        let versions: Vec<String> = versions.iter().map(ToString::to_string).collect();
        return Err(Error::Failed(format!(
            "there are predictions of versions {}, which may answer differently: choose one with --version",
            versions.join(", ")
        )));
    }
    let limit = options.limit.unwrap_or(kind.default_limit());
    let mut exported = Exported { deleted_files: sources.deleted_files, ..Exported::default() };
    let mut cases: Vec<GoldenCase> = Vec::new();
    let mut assembler = Assembler::default();
    let mut add = |logged: LoggedRequest| {
        if cases.len() < limit {
            match case(&logged, kind) {
                Ok(case) => cases.push(case),
                Err(why) => *exported.left_out.entry(why).or_default() += 1,
            }
        }
        cases.len() < limit
    };
    let scan_options = ScanOptions {
        filter: &options.filter,
        join_feedback: false,
        budget: options.budget,
        first_chunk: None,
        progress,
    };
    scan(sources, &scan_options, &mut |scanned| {
        let complete = assembler.push(&scanned).map_err(|error| scanned.source.stored.locate(error))?;
        let go_on = complete.into_iter().all(&mut add);
        Ok(if go_on { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    assembler.finish().map(&mut add);
    if cases.is_empty() {
        if exported.left_out.is_empty() {
            return Err(no_predictions(options.data, options.model));
        }
        let left_out: Vec<String> = exported.left_out.iter().map(|(why, n)| format!("{n} {why}")).collect();
        return Err(Error::Failed(format!("no request can be used: {}", left_out.join(", "))));
    }
    exported.rows = cases.len();
    let text = match kind {
        Kind::Golden => write_golden(&Golden { rtol: RTOL, atol: ATOL, cases, ..Golden::default() }),
        Kind::Warmup => write_warmup(cases.iter().map(|case| &case.request)),
    };
    file.write_all(&text).map_err(|e| Error::at("write", file.path(), e))?;
    exported.bytes = file.finish()?;
    Ok(exported)
}

/// Converts a request to a case.
///
/// # Errors
/// Why it is skipped.
fn case(logged: &LoggedRequest, kind: Kind) -> Result<GoldenCase, &'static str> {
    if logged.status != LoggedRequest::OK {
        return Err("failed");
    }
    let named = |(name, tensor): (Arc<str>, Tensor)| NamedTensor { name: name.to_string(), tensor };
    let inputs = logged.inputs().map_err(SkipReason::as_str)?.into_iter().map(named).collect();
    let outputs: Vec<NamedTensor> = match kind {
        Kind::Warmup => Vec::new(),
        Kind::Golden if logged.truncated => return Err("truncated"),
        Kind::Golden => logged.outputs().map_err(SkipReason::as_str)?.into_iter().map(named).collect(),
    };
    let request = InferenceRequest { inputs, ..InferenceRequest::default() };
    let case = GoldenCase { request, outputs };
    if case.is_json() { Ok(case) } else { Err("not_json") }
}
