//! The command `profile`.

use super::offline::{Bar, bucket_of, finish, parsed, time_of};
use super::sources::model_dirs;
use crate::backend::Engines;
use crate::cli::ProfileOptions;
use crate::dataset::{self, Error, Filter, ProfileSource, Profiled, ProfiledVersion, Records};
use crate::model::{ModelName, Version};
use crate::profile::Sample;
use indicatif::{HumanBytes, HumanCount};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

/// Makes a `profile.json`.
#[must_use]
pub fn profile(options: &ProfileOptions, json: bool) -> ExitCode {
    finish(json, profile_as(options), as_text, as_json, |_| true)
}

fn profile_as(options: &ProfileOptions) -> Result<(Profiled, PathBuf), Error> {
    if options.sample > Sample::MAX_ROWS {
        let (most, got) = (Sample::MAX_ROWS, options.sample);
        return Err(Error::Usage(format!("--sample: expected at most {most} rows, got {got}")));
    }
    let bar = Bar::new();
    let progress = |doing, done, of| bar.show(doing, done, of);
    let engines = Engines::discover(None);
    let profiled = match (&options.from_log, &options.data) {
        (Some(named), _) => {
            let [model, version] = named.as_slice() else {
                return Err(Error::Usage("--from-log needs a model and a version".to_owned()));
            };
            let (model, version): (ModelName, Version) = (parsed(model, "model name")?, parsed(version, "version")?);
            let filter = Filter {
                from: time_of("--from", options.from.as_deref())?,
                to: time_of("--to", options.to.as_deref())?,
                versions: vec![version],
                ..Filter::default()
            };
            let bucket = bucket_of(&options.log)?;
            let data = bucket.as_ref().map_or_else(|| options.data_dir.as_path().into(), Records::Bucket);
            let source = ProfileSource::Log { data, model: &model, filter };
            dataset::profile(&source, None, options.sample, &engines, &options.output, &progress)?
        }
        (None, Some(data)) => {
            let model = options.model.as_deref().map(|word| parsed::<ModelName>(word, "model name")).transpose()?;
            let version = options.version.as_deref().map(|word| parsed::<Version>(word, "version")).transpose()?;
            let check = model.as_ref().zip(version);
            let models = model_dirs(&options.models, &options.data_dir);
            let check = check.map(|(model, version)| ProfiledVersion { models: &models, model, version });
            dataset::profile(&ProfileSource::Table(data), check, options.sample, &engines, &options.output, &progress)?
        }
        (None, None) => return Err(Error::Usage("expected a file, or --from-log MODEL VERSION".to_owned())),
    };
    Ok((profiled, options.output.clone()))
}

fn as_text((profiled, to): &(Profiled, PathBuf)) -> String {
    let Profiled { rows, columns, sampled, bytes, notes } = profiled;
    let mut text = format!(
        "{}: {columns} columns of {} rows, {sampled} whole rows for explanations, {}\n",
        to.display(),
        HumanCount(*rows),
        HumanBytes(*bytes)
    );
    for note in notes {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "note: {note}");
    }
    text
}

fn as_json((profiled, to): &(Profiled, PathBuf)) -> Value {
    let Profiled { rows, columns, sampled, bytes, notes } = profiled;
    json!({"file": to.display().to_string(), "rows": rows, "columns": columns, "sampled": sampled, "bytes": bytes, "notes": notes})
}
