//! The command `golden`: makes the golden answers of a version from arrays.

use super::commands::{FAILED, USAGE};
use crate::backend::{Engines, VersionFiles};
use crate::cli::{self, GoldenOptions};
use crate::dataset::{AtomicFile, Error};
use crate::model::{ModelName, Version};
use crate::prepare::{GoldenSource, MadeGolden, make_golden, version_dir};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Writes `golden.json`, if the version gives the answers in it.
#[must_use]
pub fn golden(options: &GoldenOptions, as_json: bool) -> ExitCode {
    let (made, to) = match make(options) {
        Ok(made) => made,
        Err(error) => {
            cli::complain(&error);
            return ExitCode::from(if matches!(error, Error::Usage(_)) { USAGE } else { FAILED });
        }
    };
    let written = match &made.verdict {
        Ok(_) => write(&made, &to),
        Err(_) => Ok(()),
    };
    if let Err(error) = written {
        cli::complain(&error);
        return ExitCode::from(FAILED);
    }
    let text = if as_json { format!("{:#}\n", shown_json(&made, &to)) } else { shown(&made, &to) };
    // Fails when it cannot be written anywhere; the exit code says the rest.
    let _ = cli::print(&text, as_json);
    match &made.verdict {
        Ok(_) => ExitCode::SUCCESS,
        Err(why) => {
            let words = "nothing was written, as the version would fail with these answers; --rtol, --atol and --min-agree say how exact they must be";
            cli::complain(&format_args!("{why}; {words}"));
            ExitCode::from(FAILED)
        }
    }
}

fn make(options: &GoldenOptions) -> Result<(MadeGolden, PathBuf), Error> {
    for (name, number) in [("rtol", options.rtol), ("atol", options.atol)] {
        if !number.is_finite() || number < 0.0 {
            return Err(Error::Usage(format!("--{name}: expected a number of at least 0, got {number}")));
        }
    }
    if !(options.min_agree > 0.0 && options.min_agree <= 1.0) {
        let got = options.min_agree;
        return Err(Error::Usage(format!("--min-agree: expected a share above 0 and at most 1, got {got}")));
    }
    let version = directory(&options.version, &options.models)?;
    let source = GoldenSource {
        version: &version,
        inputs: &options.inputs,
        expected: &options.expected,
        rtol: options.rtol,
        atol: options.atol,
        min_agree: options.min_agree,
    };
    let made = make_golden(&Engines::discover(None), &source).map_err(Error::Failed)?;
    Ok((made, options.output.clone().unwrap_or_else(|| version.join("golden.json"))))
}

/// The directory of a version: a path, or `MODEL/VERSION` in the models directory.
fn directory(version: &Path, models: &Path) -> Result<PathBuf, Error> {
    if version.join(VersionFiles::MODEL).exists() {
        return Ok(version.to_owned());
    }
    let named = version.to_str().and_then(|text| text.split_once('/'));
    let named = named.and_then(|(model, version)| {
        let (model, version): (ModelName, Version) = (model.parse().ok()?, version.parse().ok()?);
        Some(version_dir(models, &model, version))
    });
    if let Some(dir) = named.as_ref().filter(|dir| dir.join(VersionFiles::MODEL).exists()) {
        return Ok(dir.clone());
    }
    let also = named.map_or_else(String::new, |dir| format!(" and {}", dir.display()));
    Err(Error::Failed(format!(
        "{}{also}: expected the directory of a version, with {}",
        version.display(),
        VersionFiles::MODEL
    )))
}

fn write(made: &MadeGolden, to: &Path) -> Result<(), Error> {
    let mut file = AtomicFile::create(to)?;
    file.write_all(&made.text).map_err(|e| Error::Failed(format!("cannot write {}: {e}", to.display())))?;
    file.finish().map(|_| ())
}

fn shown(made: &MadeGolden, to: &Path) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    for note in &made.notes {
        let _ = writeln!(text, "{note}");
    }
    let Ok(result) = &made.verdict else { return text };
    let rows = made.rows.map_or_else(String::new, |rows| format!(" of {rows} rows"));
    let _ = writeln!(text, "{}: {} cases{rows}, {} bytes", to.display(), made.cases, made.text.len());
    for output in &result.outputs {
        let _ = writeln!(
            text,
            "  output {}: {} of {} elements agree on {}",
            output.name, output.agreed, output.elements, made.engine
        );
        if let Some(first) = &output.first_difference {
            let _ = writeln!(text, "    the first that differs: {first}");
        }
    }
    text
}

fn shown_json(made: &MadeGolden, to: &Path) -> Value {
    let outputs = made.verdict.as_ref().map_or_else(
        |_| Vec::new(),
        |result| {
            let output = |o: &crate::prepare::GoldenOutput| json!({ "name": o.name, "elements": o.elements, "agreed": o.agreed });
            result.outputs.iter().map(output).collect::<Vec<_>>()
        },
    );
    json!({
        "file": made.verdict.is_ok().then(|| to.display().to_string()), "cases": made.cases, "rows": made.rows,
        "bytes": made.text.len(), "engine": made.engine, "notes": made.notes, "outputs": outputs,
        "failure": made.verdict.as_ref().err(),
    })
}
