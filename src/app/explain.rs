//! The command `explain`: which columns of a logged row its answer came from.

use super::commands::{FAILED, USAGE};
use super::offline::run_for_server;
use super::sources::model_dirs;
use crate::backend::Engines;
use crate::cli::{self, ExplainOptions};
use crate::dataset::{self, Error, Explain, Explained};
use crate::explain::{MAX_ROWS_RUN, Options};
use crate::http::explanation_json;
use serde_json::{Value, json};
use std::process::ExitCode;

/// The columns that are shown as text. JSON has all.
const SHOWN: usize = 30;

#[must_use]
pub fn explain(options: &ExplainOptions, as_json: bool) -> ExitCode {
    if options.for_server {
        run_for_server();
    }
    let explained = match explained(options) {
        Ok(explained) => explained,
        Err(error) => {
            cli::complain(&error);
            return ExitCode::from(if matches!(error, Error::Usage(_)) { USAGE } else { FAILED });
        }
    };
    let text = if as_json { format!("{:#}\n", shown_json(&explained)) } else { shown(&explained) };
    // Fails when it cannot be written anywhere; the exit code says the rest.
    let _ = cli::print(&text, as_json);
    ExitCode::SUCCESS
}

fn explained(options: &ExplainOptions) -> Result<Explained, Error> {
    if options.rows == 0 || options.rows > MAX_ROWS_RUN {
        return Err(Error::Usage(format!("--rows: expected 1 to {MAX_ROWS_RUN}, got {}", options.rows)));
    }
    let model = options.model.as_deref().map(str::parse).transpose();
    let model = model.map_err(|e| Error::Usage(format!("--model: {e}")))?;
    let what = Explain {
        data: &options.data_dir,
        models: &model_dirs(&options.models, &options.data_dir),
        model: model.as_ref(),
        request_id: &options.request_id,
        row: options.row,
        options: Options {
            output: options.output.clone(),
            element: options.element,
            rows: options.rows,
            ..Options::default()
        },
    };
    dataset::explain(&Engines::discover(None), &what)
}

fn shown_json(explained: &Explained) -> Value {
    let mut shown = json!({
        "model": explained.model, "version": explained.version, "ran": explained.ran, "engine": explained.engine,
        "ts": explained.at.to_string(), "row": explained.row,
    });
    if let (Value::Object(shown), Value::Object(values)) =
        (&mut shown, explanation_json(&explained.explanation, &explained.compared_with))
    {
        shown.extend(values);
    }
    shown
}

fn shown(explained: &Explained) -> String {
    let Explained { model, version, engine, at, explanation, compared_with, .. } = explained;
    let mut columns: Vec<_> = explanation.columns.iter().collect();
    columns.sort_by(|a, b| b.value.abs().total_cmp(&a.value.abs()));
    let row = |column: &&crate::explain::ColumnValue| {
        vec![
            column.name.clone(),
            column.input.clone(),
            format!("{:+.6}", column.value),
            format!("{:.6}", column.standard_error),
        ]
    };
    let rows: Vec<Vec<String>> = columns.iter().take(SHOWN).map(row).collect();
    let rest: f64 = columns.iter().skip(SHOWN).map(|column| column.value).sum();
    let more = columns.len().saturating_sub(SHOWN);
    let more = if more == 0 { String::new() } else { format!("{more} other columns: {rest:+.6} together\n") };
    format!(
        "{model} version {version}, {at}, on {engine}: output {}[{}] is {:.6}; the mean of {} {compared_with} is {:.6}\n\n{}{more}\n{} pairs of permutations, {} rows run\n",
        explanation.output,
        explanation.element,
        explanation.answer,
        explanation.background_rows,
        explanation.base,
        cli::table(&["COLUMN", "VALUE", "PART OF THE DIFFERENCE", "STANDARD ERROR"], &rows),
        explanation.pairs,
        explanation.rows_run,
    )
}
