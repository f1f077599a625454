//! The clients of the clouds' buckets, with the credentials that their own programs find, and of directories.

use super::bounded::Bounded;
use super::local::Local;
use super::profile::{FromProgram, Keys, Profile};
use super::{Client, Scheme, Settings, options, use_ring, words};
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::{BackoffConfig, RetryConfig};
use std::path::Path as FsPath;
use std::sync::Arc;
use std::time::Duration;

/// In the home directory.
const GCLOUD: &str = ".config/gcloud/application_default_credentials.json";

/// Makes the client of a bucket, with the credentials of the environment. Without any, requests are not signed.
///
/// # Errors
/// When the environment has settings that cannot be used, or names a profile that has no keys; in words.
pub(crate) fn open(scheme: Scheme, name: &str, settings: &Settings) -> Result<Client, String> {
    use_ring();
    let retry = RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(2),
            base: 2.0,
        },
        max_retries: settings.retries,
        retry_timeout: settings.timeout,
    };
    let is_set = |names: &[&str]| names.iter().any(|name| variable(name).is_some());
    let client: object_store::Result<Client> = match scheme {
        Scheme::S3 => {
            const CREDENTIALS: [&str; 4] = [
                "AWS_ACCESS_KEY_ID",
                "AWS_WEB_IDENTITY_TOKEN_FILE",
                "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
                "AWS_CONTAINER_CREDENTIALS_FULL_URI",
            ];
            let mut store = AmazonS3Builder::from_env()
                .with_bucket_name(name)
                // The request for one object is part of every server that speaks S3; the one for many is not.
                .with_disable_bulk_delete(true)
                .with_client_options(options(settings.timeout, is_true("AWS_ALLOW_HTTP")))
                .with_http_connector(Bounded)
                .with_retry(retry);
            if !is_set(&CREDENTIALS) {
                match Profile::of_environment()? {
                    Some(Profile { keys, region }) => {
                        let region = region.filter(|_| !is_set(&["AWS_REGION", "AWS_DEFAULT_REGION"]));
                        store = region.into_iter().fold(store, AmazonS3Builder::with_region);
                        store = match keys {
                            Keys::Written { key, secret, token } => {
                                store = store.with_access_key_id(key).with_secret_access_key(secret);
                                token.into_iter().fold(store, AmazonS3Builder::with_token)
                            }
                            Keys::Asked(command) => {
                                store.with_credentials(Arc::new(FromProgram::new(command, settings.timeout)))
                            }
                        };
                    }
                    None if settings.instance_metadata => {}
                    None => store = store.with_skip_signature(true),
                }
            }
            store.build().map(Client::of)
        }
        Scheme::Gcs => {
            const CREDENTIALS: [&str; 5] = [
                "GOOGLE_SERVICE_ACCOUNT",
                "GOOGLE_SERVICE_ACCOUNT_PATH",
                "GOOGLE_SERVICE_ACCOUNT_KEY",
                "GOOGLE_APPLICATION_CREDENTIALS",
                "SERVICE_ACCOUNT",
            ];
            // The variable by which Google's own clients find an emulator, with or without a scheme. It takes no credentials.
            let emulator = variable("STORAGE_EMULATOR_HOST");
            // Where `gcloud auth application-default login` writes.
            let logged_in = variable("HOME").is_some_and(|home| FsPath::new(&home).join(GCLOUD).is_file());
            let mut store = GoogleCloudStorageBuilder::from_env()
                .with_bucket_name(name)
                .with_client_options(options(settings.timeout, emulator.is_some() || is_true("GOOGLE_ALLOW_HTTP")))
                .with_http_connector(Bounded)
                .with_retry(retry);
            if let Some(host) = &emulator {
                let url = if host.contains("://") { host.clone() } else { format!("http://{host}") };
                store = store.with_base_url(url.trim_end_matches('/'));
            }
            if emulator.is_some() || !(settings.instance_metadata || logged_in || is_set(&CREDENTIALS)) {
                store = store.with_skip_signature(true);
            }
            store.build().map(Client::of)
        }
        Scheme::Azure => {
            const CREDENTIALS: [&str; 8] = [
                "AZURE_STORAGE_ACCOUNT_KEY",
                "AZURE_STORAGE_ACCESS_KEY",
                "AZURE_STORAGE_SAS_TOKEN",
                "AZURE_STORAGE_SAS_KEY",
                "AZURE_STORAGE_TOKEN",
                "AZURE_CLIENT_SECRET",
                "AZURE_FEDERATED_TOKEN_FILE",
                "AZURE_USE_AZURE_CLI",
            ];
            let emulated = is_true("AZURE_STORAGE_USE_EMULATOR");
            let mut store = MicrosoftAzureBuilder::from_env()
                .with_container_name(name)
                .with_client_options(options(settings.timeout, emulated || is_true("AZURE_ALLOW_HTTP")))
                .with_http_connector(Bounded)
                .with_retry(retry);
            if !settings.instance_metadata && !emulated && !is_set(&CREDENTIALS) {
                store = store.with_skip_signature(true);
            }
            store.build().map(Client::of)
        }
        Scheme::File => Ok(Client::of(Local::new(name))),
    };
    client.map_err(|error| words(&error))
}

/// Whether a variable of the environment is set to yes.
pub(crate) fn is_true(name: &str) -> bool {
    variable(name).is_some_and(|value| ["1", "true", "on", "yes"].contains(&value.to_lowercase().as_str()))
}

/// A variable of the environment that is not empty.
pub(crate) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
