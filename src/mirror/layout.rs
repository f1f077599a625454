//! Groups the files of a bucket or of a web server into versions: the layout of a models directory.

use super::offer::{Content, Listing, Offer, Place, RemoteFile};
use crate::model::{ModelName, Version, VersionId};
use std::collections::{BTreeMap, BTreeSet};

/// The most files of one source that are looked at.
pub(super) const MAX_FILES: usize = 100_000;

/// Groups files by their paths: `<model>/<version>/<file>` and `<model>/model.toml`.
pub(super) fn group(files: impl IntoIterator<Item = (String, Place)>) -> Listing {
    let mut listing = Listing::default();
    let mut versions: BTreeMap<VersionId, Vec<RemoteFile>> = BTreeMap::new();
    for (path, place) in files {
        let mut parts = path.splitn(3, '/');
        let (first, second, rest) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
        if path.split('/').any(|part| part.starts_with('.')) {
            continue;
        }
        let file = |path: &str| RemoteFile { path: path.to_owned(), content: Content::At(place.clone()) };
        match (first.parse::<ModelName>(), second, rest) {
            (Ok(model), Some("model.toml"), None) => drop(listing.settings.insert(model, file("model.toml"))),
            (Ok(model), Some(version), Some(rest)) if version.parse::<Version>().is_ok() => {
                let Ok(version) = version.parse() else { continue };
                versions.entry(VersionId { model, version }).or_default().push(file(rest));
            }
            _ if is_model(&path) => listing.remark(format!(
                "{} is ignored: expected <model>/<version>/model.onnx",
                path.chars().take(120).collect::<String>()
            )),
            _ => {}
        }
    }
    listing.versions = versions.into_iter().map(|(id, files)| Offer { id, files: without_markers(files) }).collect();
    listing
}

fn is_model(path: &str) -> bool {
    std::path::Path::new(path).extension().is_some_and(|extension| extension.eq_ignore_ascii_case("onnx"))
}

/// Without the empty objects that some programs put into buckets in the place of directories.
fn without_markers(mut files: Vec<RemoteFile>) -> Vec<RemoteFile> {
    let dirs: BTreeSet<String> =
        files.iter().flat_map(|f| f.path.match_indices('/').map(|(at, _)| f.path[..at].to_owned())).collect();
    files.retain(|file| file.size() != Some(0) || !dirs.contains(&file.path));
    files
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_version_of_a_listing_has_a_right_name(paths in proptest::collection::vec("([a-c]|1|02|\\.|/|//|model.toml|model.onnx|é){0,6}", 0..12)) {
            let listing = group(paths.iter().map(|path| (path.clone(), place(1))));
            for offer in &listing.versions {
                let (model, version) = (offer.id.model.to_string(), offer.id.version.to_string());
                for file in &offer.files {
                    let path = format!("{model}/{version}/{}", file.path);
                    prop_assert!(paths.contains(&path), "{path}");
                    prop_assert!(!file.path.split('/').any(|part| part.starts_with('.')));
                }
            }
        }
    }

    fn place(size: u64) -> Place {
        Place { location: String::new(), size: Some(size), tag: None, sha256: None }
    }

    #[test]
    fn files_are_grouped_by_model_and_version() {
        let paths = [
            "iris/1/model.onnx",
            "iris/1/weights/a.bin",
            "iris/model.toml",
            "iris/10/model.onnx",
            "iris/latest/model.onnx",
            "iris/01/model.onnx",
            "model.onnx",
            "README.md",
            ".git/1/model.onnx",
            "iris/1/.hidden",
            "fraud/2/model.onnx",
            "iris/1",
            "-x/1/model.onnx",
        ];
        let listing = group(paths.map(|path| (path.to_owned(), place(1))));
        let found: Vec<(String, usize)> = listing.versions.iter().map(|v| (v.id.to_string(), v.files.len())).collect();
        assert_eq!(found, [("fraud/2".to_owned(), 1), ("iris/1".to_owned(), 2), ("iris/10".to_owned(), 1)]);
        assert_eq!(listing.settings.len(), 1);
        assert_eq!(listing.remarks.len(), 4, "{:?}", listing.remarks);
    }

    #[test]
    fn empty_objects_in_the_place_of_directories_are_no_files() {
        let listing =
            group([("m/1/sub", 0), ("m/1/sub/a", 1), ("m/1/empty", 0)].map(|(p, n)| (p.to_owned(), place(n))));
        let paths: Vec<&str> = listing.versions[0].files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(paths, ["sub/a", "empty"]);
    }
}
