//! The requests of an OCI registry: manifests and blobs of one repository, with the logins that registries ask for. Every answer that is kept has a limit in
//! bytes, which the client of the crate `oci-client` does not have: its names and types are used, and its client is not.

use super::Config;
use super::offer::{Sink, Trouble};
use super::wire::{Wire, header};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_RANGE, RANGE, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use object_store::client::HttpResponse;
use oci_client::Reference;
use oci_client::client::current_platform_resolver;
use oci_client::manifest::{
    IMAGE_MANIFEST_LIST_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE, OCI_IMAGE_INDEX_MEDIA_TYPE, OCI_IMAGE_MEDIA_TYPE,
    OciImageManifest, OciManifest,
};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use sha2::{Digest as _, Sha256};
use std::time::{Duration, Instant};

/// One repository of a registry.
pub(super) struct Registry {
    wire: Wire,
    image: Reference,
    /// `http` or `https`.
    scheme: &'static str,
    login: Option<Login>,
    /// What the registry asked for last, and until when it is valid.
    authorization: Option<(HeaderValue, Instant)>,
}

/// A user and a password.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Login {
    pub user: String,
    pub password: String,
}

/// What a registry asks for.
#[derive(Debug, PartialEq, Eq)]
enum Challenge {
    Basic,
    /// A token of another server.
    Token {
        realm: String,
        service: Option<String>,
    },
}

/// The largest manifest: what registries take from those who push.
const MAX_MANIFEST: usize = 4 << 20;
/// The largest answer with a token.
const MAX_TOKEN: usize = 64 << 10;
/// How long a token is valid that does not say it (distribution specification, token authentication).
const TOKEN: Duration = Duration::from_mins(1);
/// A token is not used for this long before its end.
const SPARE: Duration = Duration::from_secs(5);
const DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

impl Registry {
    /// `plain`: without TLS.
    ///
    /// # Errors
    /// When the client cannot be made.
    pub(super) fn open(
        image: Reference,
        login: Option<Login>,
        plain: bool,
        config: &Config,
    ) -> Result<Registry, Trouble> {
        let wire = Wire::open(config, plain)?;
        Ok(Registry { wire, image, scheme: if plain { "http" } else { "https" }, login, authorization: None })
    }

    /// From here on with this login, or without one.
    pub(super) fn log_in(&mut self, login: Option<Login>) {
        if login != self.login {
            self.login = login;
            self.authorization = None;
        }
    }

    /// The digest of the manifest that the image has now. `None` where the registry does not say it.
    ///
    /// # Errors
    /// When the image is not there, or the registry refuses.
    pub(super) async fn digest(&mut self) -> Result<Option<String>, Trouble> {
        let name = self.name()?;
        let response = self.get(Method::HEAD, &format!("manifests/{name}"), accept()).await?;
        if response.status() != StatusCode::OK {
            return Err(refused("the image", response.status()));
        }
        let digest = header(response.headers(), &DIGEST).map(str::to_owned);
        Ok(digest.filter(|digest| sha256_of(digest).is_some()))
    }

    /// The manifest with a digest, or the one that the image has now. An index leads to the image of this platform. Returns the digest of what was asked for too.
    ///
    /// # Errors
    /// When it is not there, too large, no manifest of an image, or not the one with the digest.
    pub(super) async fn manifest(&mut self, digest: Option<&str>) -> Result<(OciImageManifest, String), Trouble> {
        let name = digest.map_or_else(|| self.name(), |digest| Ok(digest.to_owned()))?;
        let (manifest, digest) = self.read_manifest(&name).await?;
        let index = match manifest {
            OciManifest::Image(image) => return Ok((image, digest)),
            OciManifest::ImageIndex(index) => index,
        };
        let entry = current_platform_resolver(&index.manifests)
            .ok_or_else(|| Trouble::new("its index has no image for this platform"))?;
        if sha256_of(&entry).is_none() {
            return Err(Trouble::new(format!("its index names {:?}; expected {EXPECTED}", shortened(&entry))));
        }
        match self.read_manifest(&entry).await?.0 {
            OciManifest::Image(image) => Ok((image, digest)),
            OciManifest::ImageIndex(_) => Err(Trouble::new("its index leads to an index; expected an image")),
        }
    }

    /// Gives the bytes of a blob from byte `from` on to `to`.
    ///
    /// # Errors
    /// When it is not there, the registry refuses, or `to` does.
    pub(super) async fn blob(&mut self, digest: &str, from: u64, to: &mut Sink<'_>) -> Result<(), Trouble> {
        let mut headers = HeaderMap::new();
        if from > 0 {
            headers.insert(RANGE, value(format!("bytes={from}-"))?);
        }
        let response = self.get(Method::GET, &format!("blobs/{digest}"), headers).await?;
        let skip = match response.status() {
            StatusCode::OK => from,
            StatusCode::PARTIAL_CONTENT if from > 0 => {
                let range = header(response.headers(), &CONTENT_RANGE).unwrap_or_default();
                if !range.starts_with(&format!("bytes {from}-")) {
                    let range = shortened(range);
                    return Err(Trouble::changed(format!(
                        "the registry sent the range {range:?}, and not from byte {from} on"
                    )));
                }
                0
            }
            StatusCode::RANGE_NOT_SATISFIABLE => return Err(Trouble::changed("it is shorter than before")),
            status => return Err(refused("a layer", status)),
        };
        self.wire.pour(response, skip, to).await
    }

    /// The tag or digest of the configuration.
    fn name(&self) -> Result<String, Trouble> {
        match self.image.digest() {
            Some(digest) if sha256_of(digest).is_none() => {
                Err(Trouble::new(format!("the address has the digest {:?}; expected {EXPECTED}", shortened(digest))))
            }
            Some(digest) => Ok(digest.to_owned()),
            None => Ok(self.image.tag().unwrap_or("latest").to_owned()),
        }
    }

    /// `name`: a tag, or a digest that the bytes are held to.
    async fn read_manifest(&mut self, name: &str) -> Result<(OciManifest, String), Trouble> {
        let response = self.get(Method::GET, &format!("manifests/{name}"), accept()).await?;
        if response.status() != StatusCode::OK {
            return Err(refused("the image", response.status()));
        }
        let bytes = self.wire.body(response, MAX_MANIFEST, "the manifest").await?;
        let digest = format!("sha256:{:x}", Sha256::digest(&bytes));
        if sha256_of(name).is_some() && name != digest {
            return Err(Trouble::new(format!("the manifest has the digest {digest}, expected {name}")));
        }
        Ok((parse(&bytes)?, digest))
    }

    /// Sends a request, and once more with what the registry asks for.
    async fn get(&mut self, method: Method, path: &str, headers: HeaderMap) -> Result<HttpResponse, Trouble> {
        let registry = self.image.resolve_registry();
        let url = format!("{}://{registry}/v2/{}/{path}", self.scheme, self.image.repository());
        self.authorization = self.authorization.take().filter(|(_, until)| Instant::now() < *until);
        let mut with = headers.clone();
        if let Some((authorization, _)) = &self.authorization {
            with.insert(AUTHORIZATION, authorization.clone());
        }
        let response = self.wire.send(method.clone(), &url, with).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        let asked: Vec<&str> =
            response.headers().get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok()).collect();
        let Some(authorization) = self.authorize(challenge(&asked)).await? else { return Ok(response) };
        let mut with = headers;
        with.insert(AUTHORIZATION, authorization.0.clone());
        self.authorization = Some(authorization);
        self.wire.send(method, &url, with).await
    }

    /// `None` where there is nothing to answer a challenge with.
    async fn authorize(&self, challenge: Option<Challenge>) -> Result<Option<(HeaderValue, Instant)>, Trouble> {
        let basic = self.login.as_ref().map(Login::basic).transpose()?;
        let (realm, service) = match (challenge, basic.clone()) {
            (Some(Challenge::Basic), Some(basic)) => {
                return Ok(Some((basic, Instant::now() + Duration::from_hours(24))));
            }
            (None | Some(Challenge::Basic), _) => return Ok(None),
            (Some(Challenge::Token { realm, service }), _) => (realm, service),
        };
        let mut parameters = vec![("scope", format!("repository:{}:pull", self.image.repository()))];
        parameters.extend(service.map(|service| ("service", service)));
        let parameters: Vec<String> = parameters
            .iter()
            .map(|(name, value)| format!("{name}={}", utf8_percent_encode(value, NON_ALPHANUMERIC)))
            .collect();
        let and = if realm.contains('?') { '&' } else { '?' };
        let mut headers = HeaderMap::new();
        if let Some(basic) = basic {
            headers.insert(AUTHORIZATION, basic);
        }
        let response = self.wire.send(Method::GET, &format!("{realm}{and}{}", parameters.join("&")), headers).await?;
        if response.status() != StatusCode::OK {
            return Err(refused("a token", response.status()));
        }
        let bytes = self.wire.body(response, MAX_TOKEN, "the token of the registry").await?;
        token(&bytes).map(Some)
    }
}

impl Login {
    fn basic(&self) -> Result<HeaderValue, Trouble> {
        let mut basic = value(format!("Basic {}", STANDARD.encode(format!("{}:{}", self.user, self.password))))?;
        basic.set_sensitive(true);
        Ok(basic)
    }
}

/// Without the password.
impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login").field("user", &self.user).finish_non_exhaustive()
    }
}

/// What a right digest is, for a complaint.
const EXPECTED: &str = "sha256:<64 hex digits>";

/// The hex digits of a digest.
pub(super) fn sha256_of(digest: &str) -> Option<&str> {
    let hex = digest.strip_prefix("sha256:")?;
    let is_hex = hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    is_hex.then_some(hex)
}

/// Reads the bytes of a manifest.
fn parse(bytes: &[u8]) -> Result<OciManifest, Trouble> {
    let manifest: OciManifest = serde_json::from_slice(bytes).map_err(|error| {
        Trouble::new(format!(
            "the manifest cannot be read: {}; expected one of an image or an index (schema 2)",
            shortened(&error.to_string())
        ))
    })?;
    let version = match &manifest {
        OciManifest::Image(image) => image.schema_version,
        OciManifest::ImageIndex(index) => index.schema_version,
    };
    if version != 2 {
        return Err(Trouble::new(format!("the manifest has the schema version {version}; expected 2")));
    }
    Ok(manifest)
}

fn token(bytes: &[u8]) -> Result<(HeaderValue, Instant), Trouble> {
    #[derive(serde::Deserialize)]
    struct Answer {
        token: Option<String>,
        access_token: Option<String>,
        expires_in: Option<u64>,
    }
    let wrong =
        || Trouble::new("the registry's token cannot be read; expected JSON with \"token\" or \"access_token\"");
    let answer: Answer = serde_json::from_slice(bytes).map_err(|_| wrong())?;
    let token = answer.token.or(answer.access_token).filter(|token| !token.is_empty()).ok_or_else(wrong)?;
    let mut bearer = value(format!("Bearer {token}"))?;
    bearer.set_sensitive(true);
    // A day is more than a token lives, and no sum overflows.
    let valid = answer.expires_in.map_or(TOKEN, |seconds| Duration::from_secs(seconds.min(86_400)));
    Ok((bearer, Instant::now() + valid.saturating_sub(SPARE)))
}

/// Reads `WWW-Authenticate`. A token is preferred.
fn challenge(headers: &[&str]) -> Option<Challenge> {
    let rest_of = |scheme: &str| {
        headers.iter().find_map(|header| {
            let (first, rest) = header.trim_start().split_once(' ').unwrap_or((header, ""));
            first.eq_ignore_ascii_case(scheme).then_some(rest)
        })
    };
    let Some(parameters) = rest_of("bearer") else { return rest_of("basic").map(|_| Challenge::Basic) };
    let parameter = |name: &str| {
        let (mut rest, mut found) = (parameters, None);
        while let Some((key, after)) = rest.split_once("=\"") {
            let (value, after) = after.split_once('"')?;
            if key.trim_matches([' ', ',']).eq_ignore_ascii_case(name) {
                found = found.or(Some(value.to_owned()));
            }
            rest = after;
        }
        found
    };
    Some(Challenge::Token { realm: parameter("realm")?, service: parameter("service") })
}

fn accept() -> HeaderMap {
    let kinds =
        [OCI_IMAGE_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE, OCI_IMAGE_INDEX_MEDIA_TYPE, IMAGE_MANIFEST_LIST_MEDIA_TYPE];
    let mut headers = HeaderMap::new();
    for kind in kinds {
        headers.append(ACCEPT, HeaderValue::from_static(kind));
    }
    headers
}

fn value(text: String) -> Result<HeaderValue, Trouble> {
    HeaderValue::try_from(text).map_err(|_| Trouble::new("a login or token has letters that cannot be sent"))
}

fn refused(what: &str, status: StatusCode) -> Trouble {
    Trouble::new(match status {
        StatusCode::UNAUTHORIZED => "the credentials are missing or wrong (401)".to_owned(),
        StatusCode::FORBIDDEN => "the credentials do not allow it (403)".to_owned(),
        StatusCode::NOT_FOUND => format!("{what} is not there (404)"),
        status => format!("the registry answered {status} for {what}"),
    })
}

fn shortened(text: &str) -> String {
    text.chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn challenges_of_registries_are_read() {
        let hub =
            r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull""#;
        let token = |realm: &str, service: Option<&str>| {
            Some(Challenge::Token { realm: realm.to_owned(), service: service.map(str::to_owned) })
        };
        assert_eq!(challenge(&[hub]), token("https://auth.docker.io/token", Some("registry.docker.io")));
        assert_eq!(challenge(&["Basic realm=\"r\"", r#"bearer realm="https://t?x=1""#]), token("https://t?x=1", None));
        assert_eq!(challenge(&["Basic realm=\"r\""]), Some(Challenge::Basic));
        assert_eq!(challenge(&["basic"]), Some(Challenge::Basic));
        for nothing in ["", "Bearer", "Bearer realm=\"", "Bearer service=\"x\"", "Negotiate"] {
            assert_eq!(challenge(&[nothing]), None, "{nothing}");
        }
    }

    #[test]
    fn tokens_are_read_and_expire() {
        let left =
            |text: &str| token(text.as_bytes()).map(|(_, until)| until.saturating_duration_since(Instant::now()));
        assert!(left(r#"{"token":"a","expires_in":300}"#).unwrap() > Duration::from_secs(290));
        assert!(left(r#"{"access_token":"a"}"#).unwrap() < Duration::from_secs(56));
        assert_eq!(left(r#"{"token":"a","expires_in":1}"#).unwrap(), Duration::ZERO, "it is asked for each time");
        assert!(left(r#"{"token":"a","expires_in":18446744073709551615}"#).unwrap() <= Duration::from_hours(24));
        for wrong in ["", "{}", "[]", r#"{"token":""}"#, r#"{"token":1}"#, "{\"token\":\"a\\nb\"}"] {
            assert!(token(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn other_schemas_are_refused_in_words() {
        let words = |text: &str| parse(text.as_bytes()).unwrap_err().words;
        assert!(words(r#"{"schemaVersion":1,"fsLayers":[]}"#).contains("expected one of an image"), "an old manifest");
        let one = r#"{"schemaVersion":1,"config":{"mediaType":"a","digest":"b","size":1},"layers":[]}"#;
        assert!(words(one).contains("expected 2"), "{}", words(one));
        assert!(words("<html>").contains("cannot be read"));
        assert!(parse("[".repeat(1 << 20).as_bytes()).is_err(), "a deep one");
    }

    proptest! {
        #[test]
        fn no_bytes_of_a_registry_panic(text in "\\PC*", bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = challenge(&[&text, &format!("Bearer {text}"), &format!("Bearer realm=\"{text}\"")]);
            let _ = (token(&bytes).is_ok(), token(text.as_bytes()).is_ok(), parse(&bytes).is_ok());
            prop_assert!(sha256_of(&text).is_none_or(|hex| hex.len() == 64));
        }
    }
}
