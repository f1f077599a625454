//! bucket: clients of object storage: S3 and what speaks like it, Google Cloud Storage, Azure Blob Storage; a directory.
//!
//! - [`open`] makes a client. Credentials are read from the environment, with the names that the clouds' own programs use, and from AWS's profiles; without
//!   any, requests are not signed. [`program::ask`] asks a program for credentials.
//! - [`Address`] is the place of objects in a configuration: `s3://bucket/prefix`. A directory is a bucket too (`local.rs`).
//! - [`Prefix`] lists, reads and replaces objects for threads that may wait; [`Object`] is one for readers of Parquet.
//! - [`words`] says what went wrong, for operators.
//!
//! Uses: machine (files).
//!
//! Invariant: no credentials in an address, an error or a log line.
//!
//! To add a cloud: a [`Scheme`], and its builder in `clouds.rs`.

mod address;
mod bounded;
mod clouds;
mod local;
mod object;
mod prefix;
mod profile;
pub(crate) mod program;

pub use address::{Address, Scheme};
#[cfg(test)]
pub(crate) use bounded::Bounded;
pub(crate) use clouds::{is_true, open, variable};
pub(crate) use local::check_writable;
pub use object::Object;
pub use prefix::{Listed, Prefix};
pub(crate) use prefix::{PART, SHA256, attributes, key};

use object_store::multipart::MultipartStore;
use object_store::{ClientOptions, ObjectStore};
use std::sync::Arc;
use std::time::Duration;

/// How a client waits, and where it finds credentials.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    /// The longest wait for a byte of an answer, from the beginning of its request on.
    pub timeout: Duration,
    /// How often a request is sent again at once.
    pub retries: usize,
    /// Whether to ask the metadata service of the cloud's machine for credentials.
    pub instance_metadata: bool,
}

/// One bucket.
#[derive(Clone)]
pub(crate) struct Client {
    pub objects: Arc<dyn ObjectStore>,
    /// The same bucket, for uploads in parts.
    pub parts: Arc<dyn MultipartStore>,
}

impl Client {
    fn of<S: ObjectStore + MultipartStore>(store: S) -> Client {
        let store = Arc::new(store);
        Client { objects: Arc::clone(&store) as Arc<dyn ObjectStore>, parts: store }
    }
}

/// The clients of the clouds take the process's provider of cryptography.
pub(crate) fn use_ring() {
    // Fails when there is one already: another part of the program installed the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// The settings of a client: a limit for each wait, none for a whole download.
pub(crate) fn options(timeout: Duration, allow_http: bool) -> ClientOptions {
    ClientOptions::new()
        .with_allow_http(allow_http)
        .with_connect_timeout(timeout.min(Duration::from_secs(10)))
        // Longer than each wait for it, whose error says which setting limits it.
        .with_read_timeout(timeout + Duration::from_secs(1))
        .with_timeout_disabled()
}

/// An error of a store, for operators.
pub(crate) fn words(error: &object_store::Error) -> String {
    let words = match error {
        object_store::Error::NotFound { .. } => {
            "it is not there (404): check the address, and that the object was not removed".to_owned()
        }
        object_store::Error::PermissionDenied { .. } => "the credentials do not allow it (403)".to_owned(),
        object_store::Error::Unauthenticated { .. } => "the credentials are missing or wrong (401)".to_owned(),
        // The file system's own words.
        object_store::Error::Generic { store: local::STORE, source } => source.to_string(),
        other => other.to_string(),
    };
    // What a server answered can be long.
    words.chars().take(400).collect()
}
