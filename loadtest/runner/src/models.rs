//! Creates the models directory of a scenario.

use std::fs;
use std::path::Path;

use crate::onnx;
use crate::scenario::{Model, ModelKind, Version};
use crate::wrong::{Result, While};

/// The names of a model: its own name, or numbered names when it has copies.
pub fn names(model: &Model) -> Vec<String> {
    if model.count == 1 {
        vec![model.name.clone()]
    } else {
        (0..model.count).map(|i| format!("{}-{i:04}", model.name)).collect()
    }
}

/// Writes `models` into `directory`. Paths of model files are relative to `root`.
pub fn write_all<'a>(directory: &Path, root: &Path, models: impl Iterator<Item = &'a Model>) -> Result<()> {
    for model in models {
        for (copy, name) in names(model).iter().enumerate() {
            let folder = directory.join(name);
            for (i, version) in model.versions.iter().enumerate() {
                let bytes = match version {
                    // Every copy has different weights, so that a server cannot share them.
                    Version::Seed { seed, widths } => {
                        let widths = if widths.is_empty() { &model.widths } else { widths };
                        made(model, widths, seed + 1000 * copy as u64)
                    }
                    Version::File { file } => {
                        let path = root.join(file);
                        fs::read(&path).while_doing(|| format!("reading {}", path.display()))?
                    }
                };
                write(&folder.join((i + 1).to_string()).join("model.onnx"), &bytes)?;
            }
            if !model.settings.is_empty() {
                write(&folder.join("model.toml"), model.settings.as_bytes())?;
            }
        }
    }
    Ok(())
}

/// A model from a seed. `Scenario::parse` has checked its dimensions.
fn made(model: &Model, widths: &[usize], seed: u64) -> Vec<u8> {
    match model.kind {
        ModelKind::Perceptron => onnx::perceptron(widths, seed),
        ModelKind::Cnn => onnx::cnn([model.row[0], model.row[1], model.row[2]], widths[1], widths[2], seed),
        ModelKind::Trees { count, leaves } => onnx::trees(widths[0], count, leaves, seed),
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    path.parent()
        .map_or(Ok(()), fs::create_dir_all)
        .and_then(|()| fs::write(path, bytes))
        .while_doing(|| format!("writing {}", path.display()))
}
