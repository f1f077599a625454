//! Buckets of the clouds: S3 and what speaks like it, Google Cloud Storage, Azure Blob Storage.

use super::address::{Address, Kind};
use super::offer::{Listing, Place, Sink, Source, Trouble};
use super::{Config, layout};
use crate::bucket::{self, Scheme, Settings};
use object_store::path::Path;
use object_store::{ClientOptions, GetOptions, GetRange, ObjectStore};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::time::{timeout, timeout_at};
use tonic::codegen::tokio_stream::StreamExt as _;

/// Marks a tag that is a time of change, which `if-match` does not take.
const TIME: &str = "time ";

/// One prefix of one bucket.
pub(super) struct Bucket {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    /// What stands before the path of each file.
    model: String,
    timeout: Duration,
    runtime: Runtime,
}

/// A longer tag is not kept: the time of the last change stands for it.
const MAX_TAG: usize = 256;

impl Bucket {
    /// # Errors
    /// When the environment has settings that cannot be used.
    pub(super) fn open(address: &Address, config: &Config) -> Result<Bucket, Trouble> {
        let scheme = match address.kind() {
            Kind::S3 => Scheme::S3,
            Kind::Gcs => Scheme::Gcs,
            _ => Scheme::Azure,
        };
        let Config { timeout, instance_metadata, .. } = *config;
        let settings = Settings { timeout, retries: 2, instance_metadata };
        let client = bucket::open(scheme, address.place(), &settings).map_err(Trouble::new)?;
        let store = client.objects;
        let prefix =
            Path::parse(address.path()).map_err(|error| Trouble::new(format!("the prefix cannot be used: {error}")))?;
        Ok(Bucket { store, prefix, model: address.prefix(), timeout: config.timeout, runtime: runtime()? })
    }

    /// The path of an object below the prefix.
    fn below(&self, location: &Path) -> Option<String> {
        let rest = location.as_ref().strip_prefix(self.prefix.as_ref())?;
        let rest = if self.prefix.as_ref().is_empty() { rest } else { rest.strip_prefix('/')? };
        Some(format!("{}{rest}", self.model))
    }
}

impl Source for Bucket {
    fn list(&mut self, until: Instant) -> Result<Listing, Trouble> {
        let prefix = (!self.prefix.as_ref().is_empty()).then_some(&self.prefix);
        let mut objects = self.store.list(prefix);
        let listed = wait(&self.runtime, until, late, async {
            let mut files = Vec::new();
            while let Some(object) = timeout(self.timeout, objects.next()).await.map_err(|_| silent(self.timeout))? {
                let object = object.map_err(|error| said(&error))?;
                let Some(path) = self.below(&object.location) else { continue };
                if files.len() == layout::MAX_FILES {
                    return Err(Trouble::new(format!("it has more than {} files", layout::MAX_FILES)));
                }
                let tag = object
                    .e_tag
                    .filter(|tag| tag.len() <= MAX_TAG)
                    .or_else(|| Some(format!("{TIME}{}", object.last_modified.to_rfc3339())));
                let location = object.location.to_string();
                files.push((path, Place { location, size: Some(object.size), tag, sha256: None }));
            }
            Ok(files)
        });
        listed.map(layout::group)
    }

    fn read(&mut self, place: &Place, from: u64, until: Instant, to: &mut Sink<'_>) -> Result<(), Trouble> {
        let location =
            Path::parse(&place.location).map_err(|error| Trouble::new(format!("its name cannot be used: {error}")))?;
        let options = GetOptions {
            if_match: place.tag.clone().filter(|tag| !tag.starts_with(TIME)),
            range: (from > 0).then_some(GetRange::Offset(from)),
            ..GetOptions::default()
        };
        let store = Arc::clone(&self.store);
        let most = self.timeout;
        wait(&self.runtime, until, slow, async {
            let got = timeout(most, store.get_opts(&location, options)).await.map_err(|_| silent(most))?;
            let got = got.map_err(|error| said(&error))?;
            if place.size.is_some_and(|size| size != got.meta.size) || got.range.start != from {
                return Err(Trouble::changed("it is not the object that was listed"));
            }
            let mut pieces = got.into_stream();
            while let Some(piece) = timeout(most, pieces.next()).await.map_err(|_| silent(most))? {
                to(&piece.map_err(|error| said(&error))?)?;
            }
            Ok(())
        })
    }
}

/// The settings of a client: a limit for each wait, none for a whole download.
pub(super) fn options(config: &Config, allow_http: bool) -> ClientOptions {
    bucket::options(config.timeout, allow_http)
}

/// A runtime for the thread of a source.
pub(super) fn runtime() -> Result<Runtime, Trouble> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(2).build();
    runtime.map_err(|error| Trouble::new(format!("the system refuses what a client needs: {error}")))
}

/// Does `work` until its deadline. `late` is the error after it.
pub(super) fn wait<T>(
    runtime: &Runtime,
    until: Instant,
    late: fn() -> Trouble,
    work: impl Future<Output = Result<T, Trouble>>,
) -> Result<T, Trouble> {
    // A timer can only be made inside of the runtime.
    runtime.block_on(async { timeout_at(until.into(), work).await.unwrap_or_else(|_| Err(late())) })
}

/// An error of a store, in words.
fn said(error: &object_store::Error) -> Trouble {
    match error {
        object_store::Error::Precondition { .. } | object_store::Error::NotModified { .. } => {
            Trouble::changed("it is not the object that was listed")
        }
        error => Trouble::new(bucket::words(error)),
    }
}

pub(super) fn silent(after: Duration) -> Trouble {
    Trouble::new(format!("it sent nothing for {} s (models.sources.timeout)", after.as_secs_f32()))
}

pub(super) fn late() -> Trouble {
    Trouble::new("the listing took too long")
}

pub(super) fn slow() -> Trouble {
    Trouble::new("it arrives too slowly; the next try goes on where this one ended")
}

#[cfg(test)]
impl Bucket {
    /// The prefix `p` of a bucket of S3 at an address.
    pub(super) fn of_test(address: std::net::SocketAddr, config: &Config) -> Bucket {
        use object_store::RetryConfig;
        super::use_ring();
        let store = object_store::aws::AmazonS3Builder::new()
            .with_bucket_name("b")
            .with_region("r")
            .with_endpoint(format!("http://{address}"))
            .with_skip_signature(true)
            .with_client_options(options(config, true))
            .with_retry(RetryConfig { max_retries: 0, ..RetryConfig::default() })
            .with_http_connector(bucket::Bounded);
        Bucket {
            store: Arc::new(store.build().unwrap()),
            prefix: Path::from("p"),
            model: String::new(),
            timeout: config.timeout,
            runtime: runtime().unwrap(),
        }
    }

    pub(super) fn begin_upload(&self) -> object_store::Result<()> {
        let name = Path::from("large");
        let begun = object_store::ObjectStoreExt::put_multipart(&self.store, &name);
        self.runtime.block_on(begun).map(drop)
    }
}
