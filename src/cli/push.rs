//! `sluicegate push`.

use super::client::{Client, Done, LONG, path, read_file, segment};
use super::{CommandError, PushOptions, show};
use crate::archive::pack;
use std::fs::File;
use std::path::Path;

impl Client {
    pub(super) fn push(&self, options: &PushOptions) -> Done {
        let PushOptions { model, what, signature } = options;
        let (version, from) = match what.as_slice() {
            [from] => (None, from),
            [version, from] => (Some(version.display().to_string()), from),
            _ => return Err(CommandError::Usage("expected a directory or an .onnx file".to_owned())),
        };
        let (method, place) = match &version {
            Some(version) => ("PUT", format!("{}/versions/{}", path(model, ""), segment(version))),
            None => ("POST", format!("{}/versions", path(model, ""))),
        };
        let mut request = self.request(method, &place);
        let not_read = |e: &dyn std::fmt::Display| CommandError::Failed(format!("cannot read {}: {e}", from.display()));
        let body = if from.is_dir() {
            if !from.join("model.onnx").is_file() {
                let message = format!("{} has no model.onnx: expected the directory of a version", from.display());
                return Err(CommandError::Failed(message));
            }
            let also = signature.as_deref().map(|file| ("model.sig", file));
            let packed = pack(from, also).map_err(|e| CommandError::Failed(e.to_string()))?;
            request = request.header("content-type", "application/x-tar");
            ureq::SendBody::from_owned_reader(packed)
        } else {
            let file = File::open(from).map_err(|e| not_read(&e))?;
            request = request.header("content-type", "application/octet-stream");
            if let Some(file) = signature {
                request = request.header("x-sluicegate-signature", read_signature(file)?);
            }
            ureq::SendBody::from_owned_reader(file)
        };
        let request = request.body(body).map_err(|e| self.bad_address(&e))?;
        let answer = self.run(request, LONG)?;
        self.show(&answer, |answer| {
            let files = answer["files"].as_array().map_or_else(String::new, |files| {
                let names: Vec<String> = files.iter().map(show::cell).collect();
                format!(" ({})", names.join(", "))
            });
            let version = show::cell(&answer["version"]);
            format!(
                "version {version} of {model} is uploaded{files}; `sluicegate wait {model} {version} --state ready` waits until it is ready\n"
            )
        })
    }
}

fn read_signature(file: &Path) -> Result<String, CommandError> {
    let signature = read_file(file)?;
    if signature.trim_ascii_start().first() == Some(&b'{') {
        let message = format!(
            "{} is a bundle of `model_signing`, which lists all files of a version: push the version's directory",
            file.display()
        );
        return Err(CommandError::Failed(message));
    }
    let text = String::from_utf8(signature).map_err(|_| {
        let message = format!("cannot read {}: it is not Base64; `sluicegate sign` writes it so", file.display());
        CommandError::Failed(message)
    })?;
    Ok(text.trim().to_owned())
}
