//! The command `audit --verify` and `audit --export`: from a data directory, a file, or a server.

use super::commands::FAILED;
use crate::cli::{self, AuditOptions, Pages};
use crate::ledger::{self, FleetLine, FleetVerified, FleetVerifier, Heads, Verified, Verifier};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Write as _};
use std::path::Path;
use std::process::ExitCode;

/// Events in a page of an export, and the bytes after which a page gets no further event.
const PAGE_EVENTS: usize = 1000;
const PAGE_BYTES: usize = 4 << 20;

/// Verifies or exports the audit trail. Exit code 1 when a problem was found, or when the trail cannot be read.
#[must_use]
pub fn audit(options: &AuditOptions, server: Pages<'_>, json: bool) -> ExitCode {
    let done = match (options.export, options.verify) {
        (true, _) => export(options, server).map(|()| true),
        (false, true) if options.fleet => verify_fleet(options, server, json),
        (false, true) => verify(options, server, json),
        (false, false) => list_fleet(options, server, json).map(|()| true),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(FAILED),
        Err(message) => {
            cli::complain(&message);
            ExitCode::from(FAILED)
        }
    }
}

fn export(options: &AuditOptions, server: Pages<'_>) -> Result<(), String> {
    let mut out = io::stdout().lock();
    let after = options.after.unwrap_or(0);
    let written = |page: &[u8]| match out.write_all(page) {
        // The reader has closed the pipe, such as `| head`.
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(false),
        other => other.map(|()| true).map_err(|e| format!("cannot write the export: {e}")),
    };
    match &options.data_dir {
        None => each_page(after, server, written),
        Some(dir) => {
            let ledger = ledger::open_for_reading(dir).map_err(|e| e.to_string())?;
            let mut page = |after| {
                let lines = ledger.export(after, PAGE_EVENTS, PAGE_BYTES).map_err(|e| e.to_string())?;
                Ok(lines.into_bytes())
            };
            each_page(after, &mut page, written)
        }
    }?;
    out.flush().or_else(|e| if e.kind() == ErrorKind::BrokenPipe { Ok(()) } else { Err(e.to_string()) })
}

/// Calls `take` with each page until it returns false or there is no further one.
fn each_page(
    mut after: u64,
    pages: Pages<'_>,
    mut take: impl FnMut(&[u8]) -> Result<bool, String>,
) -> Result<(), String> {
    #[derive(serde::Deserialize)]
    struct Numbered {
        id: u64,
    }
    loop {
        let page = pages(after)?;
        let Some(last) = page.split(|byte| *byte == b'\n').rfind(|line| !line.is_empty()) else { return Ok(()) };
        let Numbered { id } =
            serde_json::from_slice(last).map_err(|e| format!("the answer is not an export of the audit trail: {e}"))?;
        if id <= after {
            return Err(format!("the export after event {after} ends with event {id}: it does not go on"));
        }
        after = id;
        if !take(&page)? {
            return Ok(());
        }
    }
}

fn verify(options: &AuditOptions, server: Pages<'_>, json: bool) -> Result<bool, String> {
    let heads = match &options.heads {
        None => Heads::default(),
        Some(path) => Heads::read(open(path)?).map_err(|e| format!("cannot read {}: {e}", path.display()))?,
    };
    let verified = match (&options.data_dir, &options.file) {
        (Some(dir), _) => {
            let ledger = ledger::open_for_reading(dir).map_err(|e| e.to_string())?;
            ledger.verify(heads).map_err(|e| e.to_string())?
        }
        (None, Some(path)) => {
            Verifier::of_export(heads).read(open(path)?).map_err(|e| format!("cannot read {}: {e}", path.display()))?
        }
        (None, None) => {
            let mut verifier = Verifier::of_export(heads);
            each_page(0, server, |page| {
                String::from_utf8_lossy(page).lines().for_each(|line| verifier.line(line));
                Ok(true)
            })?;
            verifier.finish(None)
        }
    };
    let text = if json {
        let text = serde_json::to_string_pretty(&verified).map_err(|e| e.to_string())?;
        format!("{text}\n")
    } else {
        words(&verified, options.heads.is_some())
    };
    // Fails when it cannot be written anywhere; the exit code says the rest.
    let _ = cli::print(&text, json);
    Ok(verified.ok)
}

/// Verifies the chain of a fleet, and in it those of its gateways.
fn verify_fleet(options: &AuditOptions, server: Pages<'_>, json: bool) -> Result<bool, String> {
    let mut verifier = FleetVerifier::default();
    match &options.file {
        Some(path) => {
            for line in open(path)?.lines() {
                verifier.line(&line.map_err(|e| format!("cannot read {}: {e}", path.display()))?);
            }
        }
        None => each_page(0, server, |page| {
            String::from_utf8_lossy(page).lines().for_each(|line| verifier.line(line));
            Ok(true)
        })?,
    }
    let result = verifier.finish();
    let text = if json {
        serde_json::to_string_pretty(&result).map_err(|e| e.to_string())? + "\n"
    } else {
        words_of_fleet(&result)
    };
    let _ = cli::print(&text, json);
    Ok(result.ok)
}

fn words_of_fleet(verified: &FleetVerified) -> String {
    let mut text = String::new();
    let own = verified.problems.iter().cloned();
    let of_gateways = verified.gateways.iter().flat_map(|of| {
        of.verified.problems.iter().map(move |problem| format!("gateway {}: {}", of.node, problem.found))
    });
    // Writing to a String cannot fail.
    for problem in own.chain(of_gateways) {
        let _ = writeln!(text, "FOUND {problem}");
    }
    let verdict = if verified.ok { "ok" } else { "FAILED" };
    let fleet = verified.fleet.as_deref().unwrap_or("unknown");
    let _ = writeln!(text, "{verdict}: {} messages of the audit trail of the fleet {fleet}", verified.messages);
    if let Some(hash) = verified.hash {
        let _ = writeln!(text, "  newest: message {}, hash {hash}", verified.last);
    }
    for of in &verified.gateways {
        let chain = of.verified.chain.as_deref().unwrap_or("unknown");
        let _ = writeln!(text, "  gateway {}: {} events of its chain {chain}", of.node, of.verified.events);
    }
    text
}

/// Lists who did what on which gateway, oldest first.
fn list_fleet(options: &AuditOptions, server: Pages<'_>, json: bool) -> Result<(), String> {
    let mut out = io::stdout().lock();
    let mut open = String::new();
    let listed = |page: &[u8]| {
        let mut text = String::new();
        for line in String::from_utf8_lossy(page).lines() {
            let Ok(FleetLine { event, .. }) = serde_json::from_str::<FleetLine>(line) else { continue };
            if event.part == 1 {
                open.clear();
            }
            open.push_str(&event.text);
            if event.part != event.parts {
                continue;
            }
            let of = |key: &str, value: &serde_json::Value| cli::one_line(value[key].as_str().unwrap_or("-"));
            let Ok(value) = serde_json::from_str::<serde_json::Value>(&open) else { continue };
            if options.model.as_ref().is_some_and(|model| value["model"] != model.as_str()) {
                continue;
            }
            if json {
                let _ = writeln!(text, "{}", serde_json::json!({"node": event.node, "event": value}));
            } else {
                let (ts, actor, action) = (of("ts", &value), of("actor", &value), of("action", &value));
                let (model, reason) = (of("model", &value), of("reason", &value));
                let _ = writeln!(text, "{ts}  {:<12}  {actor:<16}  {action:<16}  {model:<16}  {reason}", event.node);
            }
        }
        let text = if json { cli::shown_json(&text) } else { cli::shown_text(&text).into() };
        match out.write_all(text.as_bytes()) {
            Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(false),
            other => other.map(|()| true).map_err(|e| format!("cannot write: {e}")),
        }
    };
    each_page(options.after.unwrap_or(0), server, listed)
}

/// Opens a file, or standard input for `-`.
fn open(path: &Path) -> Result<Box<dyn BufRead>, String> {
    if path == Path::new("-") {
        return Ok(Box::new(io::stdin().lock()));
    }
    let file = File::open(path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
    Ok(Box::new(BufReader::new(file)))
}

fn words(verified: &Verified, with_heads: bool) -> String {
    let Verified { ok, chain, events, last, hash, chained_later, problems, problem_count, .. } = verified;
    let mut text = String::new();
    // Writing to a String cannot fail.
    for problem in problems {
        let _ = writeln!(text, "FOUND {}", problem.found);
    }
    if *problem_count > problems.len() {
        let _ = writeln!(text, "and {} further problems", problem_count - problems.len());
    }
    let verdict = if *ok { "ok" } else { "FAILED" };
    let chain = chain.as_deref().unwrap_or("unknown");
    let _ = writeln!(text, "{verdict}: {events} events of the audit trail, chain {chain}");
    if let Some(hash) = hash {
        let _ = writeln!(text, "  newest: event {last}, hash {hash}");
    }
    if let Some(later) = chained_later.filter(|later| *later > 0) {
        let _ = writeln!(
            text,
            "  the events up to {later} are older than the hash chain: changes made before it began do not show"
        );
    }
    if with_heads {
        let _ = writeln!(text, "  compared with {} heads", verified.heads_compared);
        if verified.heads_of_other_chains > 0 {
            let _ = writeln!(text, "  {} heads belong to other data directories", verified.heads_of_other_chains);
        }
    } else {
        text.push_str(
            "  without heads from outside (--heads FILE), a trail that was cut off at its end or written again as a whole does not show\n",
        );
    }
    text
}
