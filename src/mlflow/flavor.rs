//! The file `MLmodel` of a version: which file is the ONNX model.
//!
//! `MLmodel` is YAML that MLflow writes in block style. Only `flavors.onnx.data` is needed of it, so this reads nested mappings by their indentation and nothing
//! else of YAML. A parser of all of YAML would be far more code that strangers' bytes reach (anchors that grow, tags, merges), for one value.

/// What `MLmodel` says about ONNX.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Flavor {
    /// The path of the model file, relative to `MLmodel`.
    Onnx(String),
    /// There is no ONNX flavour; these are there.
    Others(Vec<String>),
}

/// The most names of other flavours that are shown.
const MAX_OTHERS: usize = 8;

/// Reads the text of an `MLmodel`.
///
/// # Errors
/// In words, when it is not written as MLflow writes it.
pub(super) fn read(text: &str) -> Result<Flavor, String> {
    let lines = block(text)?;
    let flavors = children(&lines, "flavors")?.ok_or("it has no `flavors`")?;
    let Some(onnx) = children(flavors, "onnx")? else {
        let least = flavors.first().map_or(0, |line| line.indent);
        let names =
            flavors.iter().filter(|line| line.indent == least).filter_map(|line| line.entry.map(|(key, _)| key));
        return Ok(Flavor::Others(names.take(MAX_OTHERS).map(super::api::shown).collect()));
    };
    let least = onnx.first().map_or(0, |line| line.indent);
    let mut entries = onnx.iter().filter(|line| line.indent == least).filter_map(|line| line.entry);
    let (_, data) = entries.find(|(key, _)| *key == "data").ok_or("the ONNX flavour has no `data`")?;
    let data = scalar(data)
        .filter(|name| !name.is_empty())
        .ok_or_else(|| format!("flavors.onnx.data: expected a file name, got {data:?}"))?;
    Ok(Flavor::Onnx(data))
}

/// A line that is not empty and no comment.
#[derive(Debug, Clone, Copy)]
struct Line<'t> {
    indent: usize,
    /// The key and the value of an entry of a mapping. `None` for anything else.
    entry: Option<(&'t str, &'t str)>,
}

fn block(text: &str) -> Result<Vec<Line<'_>>, String> {
    let mut lines = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let content = line.trim_start_matches(' ');
        if content.trim().is_empty() || content.starts_with('#') || content.trim_end() == "---" {
            continue;
        }
        if content.starts_with('\t') {
            return Err(format!("line {} begins with a tab, which YAML does not allow", number + 1));
        }
        lines.push(Line { indent: line.len() - content.len(), entry: entry(content.trim_end()) });
    }
    Ok(lines)
}

/// The key and the value of `key: value` or `key:`. A key in quotation marks is none that is looked for.
fn entry(content: &str) -> Option<(&str, &str)> {
    if content.starts_with(['-', '"', '\'', '{', '[', '?', '&', '*', '!', '|', '>', '%', '@']) {
        return None;
    }
    if let Some(key) = content.strip_suffix(':') {
        return Some((key, ""));
    }
    content.split_once(": ").map(|(key, value)| (key, value.trim()))
}

/// The lines below the entry `key`, which is an entry of the outermost mapping of these lines. `None` where there is no such entry.
fn children<'l, 't>(lines: &'l [Line<'t>], key: &str) -> Result<Option<&'l [Line<'t>]>, String> {
    let Some(outermost) = lines.first().map(|line| line.indent) else { return Ok(None) };
    let is_it = |line: &Line<'_>| line.indent == outermost && line.entry.is_some_and(|(name, _)| name == key);
    let Some(at) = lines.iter().position(is_it) else { return Ok(None) };
    match lines[at].entry {
        Some((_, "")) => {}
        None | Some((_, "null" | "~")) => return Ok(None),
        Some((_, value)) => {
            let value = super::api::shown(value);
            return Err(format!("{key}: expected a block of indented lines, as MLflow writes it, got {value:?}"));
        }
    }
    let below = &lines[at + 1..];
    let end = below.iter().position(|line| line.indent <= outermost).unwrap_or(below.len());
    Ok(Some(&below[..end]))
}

/// The text of a plain or quoted scalar on one line.
fn scalar(value: &str) -> Option<String> {
    if let Some(inner) = value.strip_prefix('\'') {
        let inner = inner.strip_suffix('\'')?;
        // Two of them are one.
        return (!inner.replace("''", "").contains('\'')).then(|| inner.replace("''", "'"));
    }
    if let Some(inner) = value.strip_prefix('"') {
        let inner = inner.strip_suffix('"')?;
        return (!inner.contains(['"', '\\'])).then(|| inner.to_owned());
    }
    let value = value.split(" #").next().unwrap_or_default().trim_end();
    let is_plain = !value.is_empty() && !value.starts_with(['{', '[', '&', '*', '!', '|', '>', '%', '@', '`', '#']);
    (is_plain && !matches!(value, "null" | "~" | "true" | "false")).then(|| value.to_owned())
}
