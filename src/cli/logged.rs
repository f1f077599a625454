//! `sluicegate export` and `sluicegate replay` on a server.

use super::client::{Client, Done, path, print, print_json};
use super::{CommandError, ExportOptions, PickOptions, ReplayOptions, show_replay};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{self, BufWriter};
use std::path::Path;
use std::time::Duration;

/// The longest export and the longest replay.
const LONGEST: Duration = Duration::from_hours(1);

impl Client {
    pub(super) fn export(&self, options: &ExportOptions) -> Done {
        let extension = options.output.extension().map(|extension| extension.to_string_lossy().into_owned());
        let format = options.format.clone().or(extension);
        let Some(format) = format.filter(|format| ["parquet", "csv"].contains(&format.as_str())) else {
            let message = "a server exports parquet and csv; other formats are made from a data directory (--data-dir)";
            return Err(CommandError::Usage(message.to_owned()));
        };
        let mut body = picked(&options.pick, &options.roles);
        body["format"] = format.into();
        body["versions"] = json!(options.versions);
        body["require_label"] = options.require_label.into();
        body["limit"] = json!(options.limit);
        let request = self.request("POST", &format!("{}/export", path(&options.model, "")));
        let request = request.header("content-type", "application/json");
        let request = request.body(body.to_string()).map_err(|e| self.bad_address(&e))?;
        if options.output == Path::new("-") {
            return self.download(request, LONGEST, &mut io::stdout().lock()).map(drop);
        }
        let to = &options.output;
        let not_written = |e: io::Error| CommandError::Failed(format!("cannot write {}: {e}", to.display()));
        let mut name = to.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.tmp", std::process::id()));
        let temporary = to.with_file_name(name);
        let mut out = BufWriter::new(File::create(&temporary).map_err(not_written)?);
        let written = self.download(request, LONGEST, &mut out).and_then(|bytes| {
            let file = out.into_inner().map_err(|e| not_written(e.into_error()))?;
            file.sync_all().and_then(|()| std::fs::rename(&temporary, to)).map_err(not_written)?;
            Ok(bytes)
        });
        let bytes = written.inspect_err(|_| {
            // If it cannot be removed, its name shows that it is temporary.
            let _ = std::fs::remove_file(&temporary);
        })?;
        if self.json() {
            return print_json(json!({"file": to.display().to_string(), "bytes": bytes}).to_string().as_bytes());
        }
        print(&format!("{}: {bytes} bytes\n", to.display()))
    }

    pub(super) fn replay(&self, options: &ReplayOptions) -> Done {
        let mut body = picked(&options.pick, &options.roles);
        body["version"] = options.version.clone().into();
        body["answered_by"] = json!(options.versions);
        body["limit"] = json!(options.limit);
        body["rtol"] = json!(options.rtol);
        body["atol"] = json!(options.atol);
        body["gates"] = json!(options.gates);
        let place = format!("{}/replay", path(&options.model, ""));
        let answer = self.send_and_wait("POST", &place, &body, LONGEST)?;
        self.show(&answer, show_replay::replayed)?;
        if answer.json()?["passed"] == false {
            return Err(CommandError::Failed(format!(
                "{}: version {} does not pass its gates",
                options.model, options.version
            )));
        }
        Ok(())
    }
}

/// The members that both have.
fn picked(pick: &PickOptions, roles: &[String]) -> Value {
    json!({"from": pick.from, "to": pick.to, "arms": pick.arms, "roles": roles})
}
