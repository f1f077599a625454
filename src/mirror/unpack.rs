//! Takes the files of a version out of an archive.

use super::download::{Blob, disk};
use super::offer::{Archive, Compression, MODEL, Trouble, check_path};
use super::store::{Store, StoredFile};
use crate::archive::{Refused, unpack_below};
use crate::model::VersionId;
use std::fs::File;
use std::io::{self, BufReader, Read};

/// Stores the files of an archive that are below its directory.
///
/// # Errors
/// When it cannot be read as an archive, a file has a name that is not allowed, or it is larger than `most` bytes.
pub(super) fn unpack(store: &Store, blob: &Blob, archive: &Archive, most: u64) -> Result<Vec<StoredFile>, Trouble> {
    let file = BufReader::new(File::open(store.blob(&blob.sha256)).map_err(|e| disk(&e))?);
    let bytes: Box<dyn Read> = match archive.compression {
        Compression::None => Box::new(file),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
        Compression::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(file).map_err(|e| disk(&e))?),
    };
    store
        .with_staging(|dir| -> Result<Vec<StoredFile>, Trouble> {
            let mut bytes = bytes.take(most);
            let names = unpack_below(&mut bytes, dir, &archive.below).map_err(|refused| match refused {
                _ if bytes.limit() == 0 => {
                    Trouble::new(format!("unpacked it is larger than {most} bytes, for which there is room"))
                }
                Refused::Invalid(words) => Trouble::new(words),
                Refused::Disk(error) => failed(&error),
            })?;
            let adopt = |name: String| -> Result<StoredFile, Trouble> {
                check_path(&name)?;
                let (sha256, bytes) = store.adopt(&dir.join(&name)).map_err(|e| disk(&e))?;
                Ok(StoredFile { path: name, bytes, sha256 })
            };
            names.into_iter().map(adopt).collect()
        })
        .map_err(|error: io::Error| disk(&error))?
}

/// A failure of the disk, or of the archive, which is read and written at once.
fn failed(error: &io::Error) -> Trouble {
    use io::ErrorKind::{PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    match error.kind() {
        StorageFull | QuotaExceeded | PermissionDenied | ReadOnlyFilesystem => disk(error),
        _ => Trouble::new(format!("the archive cannot be read: {error}")),
    }
}

/// The files of the version among those of an image: directly in its directory, or below `<version>/` or `<model>/<version>/`.
///
/// # Errors
/// When there is no model among them.
pub(super) fn of_version(files: Vec<StoredFile>, id: &VersionId) -> Result<Vec<StoredFile>, Trouble> {
    let places = [String::new(), format!("{}/", id.version), format!("{}/{}/", id.model, id.version)];
    let has_model = |place: &&String| files.iter().any(|file| file.path.strip_prefix(place.as_str()) == Some(MODEL));
    let Some(place) = places.iter().find(has_model) else {
        let found: Vec<&str> = files.iter().map(|file| file.path.as_str()).take(5).collect();
        return Err(Trouble::new(format!(
            "the image has no /models/model.onnx, /models/{}/model.onnx or /models/{id}/model.onnx; it has {found:?}",
            id.version
        )));
    };
    let below =
        |file: StoredFile| Some(StoredFile { path: file.path.strip_prefix(place.as_str())?.to_owned(), ..file });
    Ok(files.into_iter().filter_map(below).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str) -> StoredFile {
        StoredFile { path: path.to_owned(), bytes: 1, sha256: "a".repeat(64) }
    }

    #[test]
    fn the_files_of_a_version_are_found_in_three_places() {
        let id = VersionId { model: "fraud".parse().unwrap(), version: "3".parse().unwrap() };
        let found = |paths: &[&str]| {
            let files = of_version(paths.iter().map(|path| file(path)).collect(), &id);
            files
                .map(|files| files.into_iter().map(|file| file.path).collect::<Vec<_>>())
                .map_err(|trouble| trouble.words)
        };
        assert_eq!(found(&["model.onnx", "w/a.bin"]).unwrap(), ["model.onnx", "w/a.bin"]);
        assert_eq!(found(&["3/model.onnx", "3/w.bin", "4/model.onnx", "README.md"]).unwrap(), ["model.onnx", "w.bin"]);
        assert_eq!(found(&["fraud/3/model.onnx", "other/3/model.onnx"]).unwrap(), ["model.onnx"]);
        assert!(found(&["4/model.onnx"]).unwrap_err().contains("has no /models/model.onnx"));
    }
}
