//! The clients of the clouds' buckets, with the credentials that their own programs find.

use super::bounded::Bounded;
use super::{Client, Scheme, Settings, options, use_ring, words};
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::{BackoffConfig, RetryConfig};
use std::path::{Path as FsPath, PathBuf};
use std::time::Duration;

/// Keys in the files that AWS's programs share.
#[derive(Clone, PartialEq, Eq)]
struct Profile {
    key: String,
    secret: String,
    token: Option<String>,
    region: Option<String>,
}

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
                    Some(profile) => {
                        let region = profile.region.filter(|_| !is_set(&["AWS_REGION", "AWS_DEFAULT_REGION"]));
                        store = store.with_access_key_id(profile.key).with_secret_access_key(profile.secret);
                        store = profile.token.into_iter().fold(store, AmazonS3Builder::with_token);
                        store = region.into_iter().fold(store, AmazonS3Builder::with_region);
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

impl Profile {
    /// `None` where no profile is named, and there is no default one with keys.
    ///
    /// # Errors
    /// When the named profile has no keys.
    fn of_environment() -> Result<Option<Profile>, String> {
        let file = |name: &str, at: &str| {
            let path = variable(name).map(PathBuf::from).or_else(|| Some(FsPath::new(&variable("HOME")?).join(at)));
            path.and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default()
        };
        let credentials = file("AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials");
        let config = file("AWS_CONFIG_FILE", ".aws/config");
        let Some(name) = variable("AWS_PROFILE") else { return Ok(Profile::read(&credentials, &config, "default")) };
        let profile = Profile::read(&credentials, &config, &name);
        let missing = || {
            let name: String = name.chars().take(80).collect();
            format!(
                "AWS_PROFILE is {name:?}, which has no aws_access_key_id and aws_secret_access_key in the files of AWS"
            )
        };
        profile.ok_or_else(missing).map(Some)
    }

    /// `None` where the profile has no keys.
    fn read(credentials: &str, config: &str, name: &str) -> Option<Profile> {
        let section = if name == "default" { name.to_owned() } else { format!("profile {name}") };
        let find = |key: &str| entry(credentials, name, key).or_else(|| entry(config, &section, key));
        Some(Profile {
            key: find("aws_access_key_id")?,
            secret: find("aws_secret_access_key")?,
            token: find("aws_session_token"),
            region: find("region"),
        })
    }
}

/// The value of a key in a section of an INI file.
fn entry(text: &str, section: &str, key: &str) -> Option<String> {
    let (mut inside, mut found) = (false, None);
    for line in text.lines().map(str::trim) {
        if let Some(rest) = line.strip_prefix('[') {
            inside = rest.split(']').next().is_some_and(|name| name.trim() == section);
        } else if inside
            && !line.starts_with(['#', ';'])
            && let Some((name, value)) = line.split_once('=')
            && name.trim().eq_ignore_ascii_case(key)
        {
            found = Some(value.trim().to_owned()).filter(|value| !value.is_empty());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const CREDENTIALS: &str = "# keys\n[default]\naws_access_key_id = A\naws_secret_access_key=s+/=\n\n[ml]\nAWS_ACCESS_KEY_ID = M\r\n\
         aws_secret_access_key = t\naws_session_token = u\n[empty]\naws_access_key_id =\naws_secret_access_key = x\n";
    const CONFIG: &str = "[default]\nregion = eu-north-1\n[profile ml]\nregion = eu-west-1\n; region = no\n\
         [profile sso]\nsso_start_url = https://x\n[profile own]\naws_access_key_id = O\naws_secret_access_key = p\n";

    #[test]
    fn profiles_are_read_as_awss_programs_write_them() {
        let read = |name: &str| {
            let Profile { key, secret, token, region } = Profile::read(CREDENTIALS, CONFIG, name)?;
            Some([key, secret, token.unwrap_or_default(), region.unwrap_or_default()])
        };
        assert_eq!(read("default").unwrap(), ["A", "s+/=", "", "eu-north-1"]);
        assert_eq!(read("ml").unwrap(), ["M", "t", "u", "eu-west-1"]);
        assert_eq!(read("own").unwrap(), ["O", "p", "", ""], "keys may be in the configuration");
        for without in ["sso", "empty", "other", "profile ml", ""] {
            assert_eq!(read(without), None, "{without}");
        }
        for hostile in ["", "[", "[]", "=", "[default", "default]\naws_access_key_id = x", "\u{0}[default]\n=\n"] {
            assert!(Profile::read(hostile, hostile, "default").is_none(), "{hostile:?}");
        }
    }
}
