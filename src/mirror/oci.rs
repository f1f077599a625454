//! One version in an OCI registry: an image with its files under `/models` (KServe's modelcars), or an artifact of files (ORAS).

use super::Config;
use super::address::Address;
use super::bucket::{late, runtime, slow, wait};
use super::login;
use super::offer::{Archive, Compression, Content, Listing, Offer, Place, RemoteFile, Sink, Source, Trouble};
use super::registry::{Login, Registry, sha256_of};
use crate::bucket::is_true;
use crate::model::VersionId;
use oci_client::Reference;
use oci_client::manifest::{OciDescriptor, OciImageManifest};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

pub(super) struct Oci {
    registry: Registry,
    id: VersionId,
    runtime: Runtime,
    /// The digest of the manifest that was read last, and what it lists. A registry counts reads of manifests, and not of their digests.
    known: Option<(String, Listing)>,
    /// The registry whose login is read again after a failure: a password may have changed, and those that helpers give end after hours.
    logs_in: Option<LogsIn>,
}

struct LogsIn {
    registry: String,
    /// The longest that a credential helper is waited for.
    within: Duration,
    /// The last listing failed.
    failed: bool,
}

/// The directory of the files in an image.
const MODELS: &str = "models";
/// The most layers of an image, as of container runtimes.
const MAX_LAYERS: usize = 127;
/// The name of a file in an artifact (OCI image specification, annotations).
const TITLE: &str = "org.opencontainers.image.title";

impl Oci {
    /// # Errors
    /// When the address is not one of an image, or the client cannot be made.
    pub(super) fn open(address: &Address, config: &Config) -> Result<Oci, Trouble> {
        let mut oci = Oci::open_as(address, None, config)?;
        // Read at the first listing, whose trouble is told where people look.
        oci.logs_in = Some(LogsIn { registry: address.place().to_owned(), within: config.timeout, failed: true });
        Ok(oci)
    }

    /// The same with a login that stays, or without one.
    pub(super) fn open_as(address: &Address, login: Option<Login>, config: &Config) -> Result<Oci, Trouble> {
        let name = format!("{}/{}", address.place(), address.path());
        let image: Reference = name
            .parse::<Reference>()
            .map_err(|error| Trouble::new(format!("{name} is not the name of an image: {error}")))?;
        let (model, version) = address.oci_version().ok_or_else(|| {
            Trouble::new(
                "the model or the version is not clear: add model and version to the address, or a tag such as 3 or v3",
            )
        })?;
        // As container runtimes do, and where the environment allows it.
        let plain = is_loopback(address.place()) || is_true("SLUICEGATE_OCI_ALLOW_HTTP");
        let registry = Registry::open(image, login, plain, config)?;
        Ok(Oci { registry, id: VersionId { model, version }, runtime: runtime()?, known: None, logs_in: None })
    }
}

impl Source for Oci {
    fn list(&mut self, until: Instant) -> Result<Listing, Trouble> {
        let Oci { registry, id, runtime, known, logs_in } = self;
        if let Some(LogsIn { registry: name, within, .. }) = logs_in.as_ref().filter(|logs_in| logs_in.failed) {
            let left = until.saturating_duration_since(Instant::now());
            registry.log_in(login::of_environment(name, left.min(*within)).map_err(Trouble::new)?);
        }
        let listed = wait(runtime, until, late, async {
            let digest = registry.digest().await?;
            if let Some((_, listing)) = known.as_ref().filter(|(known, _)| Some(known) == digest.as_ref()) {
                return Ok(listing.clone());
            }
            let (manifest, digest) = registry.manifest(digest.as_deref()).await?;
            let files = files(&manifest)?;
            let listing = Listing { versions: vec![Offer { id: id.clone(), files }], ..Listing::default() };
            *known = Some((digest, listing.clone()));
            Ok(listing)
        });
        if let Some(logs_in) = logs_in {
            logs_in.failed = listed.is_err();
        }
        listed
    }

    fn read(&mut self, place: &Place, from: u64, until: Instant, to: &mut Sink<'_>) -> Result<(), Trouble> {
        let Oci { registry, runtime, .. } = self;
        wait(runtime, until, slow, registry.blob(&place.location, from, to))
    }
}

/// What the layers of a manifest are: archives with files, or files with names.
fn files(manifest: &OciImageManifest) -> Result<Vec<RemoteFile>, Trouble> {
    let layers = &manifest.layers;
    if layers.is_empty() || layers.len() > MAX_LAYERS {
        return Err(Trouble::new(format!("the image has {} layers; expected 1 to {MAX_LAYERS}", layers.len())));
    }
    let titled: Vec<&str> = layers.iter().filter_map(title).collect();
    let only_model = titled.iter().filter(|name| is_model(name)).count() == 1;
    let file = |(number, layer): (usize, &OciDescriptor)| -> Result<RemoteFile, Trouble> {
        let place = place(layer)?;
        let title = title(layer);
        if let (None, Some(compression)) = (title, archive(&layer.media_type)) {
            let archive = Archive { place, compression, below: MODELS.to_owned() };
            return Ok(RemoteFile { path: format!("layer-{number}"), content: Content::Archive(archive) });
        }
        let path = match title {
            Some(name) if only_model && is_model(name) => "model.onnx",
            Some(name) => name.strip_prefix("./").unwrap_or(name),
            None if layers.len() == 1 => "model.onnx",
            None => {
                let kind: String = layer.media_type.chars().take(80).collect();
                return Err(Trouble::new(format!(
                    "layer {number} is {kind:?} without a name; expected a tar archive, or a file with the annotation {TITLE}"
                )));
            }
        };
        Ok(RemoteFile { path: path.to_owned(), content: Content::At(place) })
    };
    layers.iter().enumerate().map(file).collect()
}

fn title(layer: &OciDescriptor) -> Option<&str> {
    layer.annotations.as_ref()?.get(TITLE).map(String::as_str)
}

fn is_model(name: &str) -> bool {
    !name.contains('/')
        && std::path::Path::new(name).extension().is_some_and(|extension| extension.eq_ignore_ascii_case("onnx"))
}

fn place(layer: &OciDescriptor) -> Result<Place, Trouble> {
    let wrong = || {
        let digest: String = layer.digest.chars().take(80).collect();
        Trouble::new(format!(
            "a layer has the digest {digest:?} and {} bytes; expected sha256:<64 hex digits> and a size",
            layer.size
        ))
    };
    let sha256 = sha256_of(&layer.digest).ok_or_else(wrong)?;
    let size = u64::try_from(layer.size).map_err(|_| wrong())?;
    Ok(Place { location: layer.digest.clone(), size: Some(size), tag: None, sha256: Some(sha256.to_owned()) })
}

/// How an archive is compressed, by the media type of a layer. `None` where it is no archive.
fn archive(media_type: &str) -> Option<Compression> {
    let is_layer = media_type.contains(".layer.") || media_type.contains(".rootfs.");
    let (_, rest) = media_type.split_once(".tar").filter(|_| is_layer)?;
    match rest {
        "" => Some(Compression::None),
        "+gzip" | ".gzip" => Some(Compression::Gzip),
        "+zstd" => Some(Compression::Zstd),
        _ => None,
    }
}

fn is_loopback(registry: &str) -> bool {
    let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
    host == "localhost" || host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(media_type: &str, title: Option<&str>) -> OciDescriptor {
        OciDescriptor {
            media_type: media_type.to_owned(),
            digest: format!("sha256:{}", "a".repeat(64)),
            size: 5,
            urls: None,
            annotations: title.map(|title| [(TITLE.to_owned(), title.to_owned())].into()),
            artifact_type: None,
        }
    }

    fn read(layers: Vec<OciDescriptor>) -> Result<Vec<String>, String> {
        let manifest = OciImageManifest { layers, ..OciImageManifest::default() };
        let shown = |file: &RemoteFile| match &file.content {
            Content::Archive(archive) => format!("{} {:?}", file.path, archive.compression),
            _ => file.path.clone(),
        };
        files(&manifest).map(|files| files.iter().map(shown).collect()).map_err(|trouble| trouble.words)
    }

    #[test]
    fn layers_are_archives_or_files_with_names() {
        let gzip = "application/vnd.oci.image.layer.v1.tar+gzip";
        let docker = "application/vnd.docker.image.rootfs.diff.tar.gzip";
        let car = read(vec![
            layer(docker, None),
            layer(gzip, None),
            layer("application/vnd.oci.image.layer.v1.tar+zstd", None),
        ]);
        assert_eq!(car.unwrap(), ["layer-0 Gzip", "layer-1 Gzip", "layer-2 Zstd"]);
        assert_eq!(read(vec![layer("application/octet-stream", None)]).unwrap(), ["model.onnx"]);
        let named = vec![layer("application/onnx", Some("fraud.onnx")), layer("application/json", Some("golden.json"))];
        assert_eq!(read(named).unwrap(), ["model.onnx", "golden.json"]);
        assert!(read(vec![]).unwrap_err().contains("0 layers"));
        assert!(read(vec![layer("text/x", None), layer("text/y", None)]).unwrap_err().contains("without a name"));
        for (digest, size) in
            [("sha512:aa", 1), ("sha256:AA", 1), ("", 1), (&*format!("sha256:{}", "a".repeat(64)), -1)]
        {
            let wrong = OciDescriptor { digest: digest.to_owned(), size, ..layer("x", None) };
            assert!(read(vec![wrong]).unwrap_err().contains("expected sha256"), "{digest} {size}");
        }
    }

    #[test]
    fn the_own_machine_is_spoken_to_without_tls() {
        assert!(is_loopback("127.0.0.1:5000") && is_loopback("localhost") && is_loopback("[::1]:5000"));
        assert!(!is_loopback("registry.example.com:5000"));
    }
}
