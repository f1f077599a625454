//! Signatures of versions (`docs/MODELS.md`, "Signed versions"), in the file `model.sig` beside the model.
//!
//! - Ed25519 over what `sha256sum` prints for the artifact's files, sorted by name: 64 bytes, or lines of Base64.
//! - ECDSA over the statement of a bundle of `OpenSSF` model signing ([`bundle`]).

mod bundle;

use super::digest::{Digests, artifact_digests};
use super::files;
use crate::registry::Stage;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::rand::{SecureRandom as _, SystemRandom};
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey,
    VerificationAlgorithm,
};
use std::fmt::Write as _;
use std::io;
use std::path::Path;

/// The file with the signature.
pub const SIGNATURE_FILE: &str = "model.sig";

/// The largest file with signatures, and the most signatures in it. A bundle has about 250 bytes for each file of the version.
pub(super) const MAX_FILE: u64 = 1 << 20;
const MAX_SIGNATURES: usize = 32;

/// What stands before the 32 bytes of an Ed25519 private key in its DER form (RFC 8410, 7).
const PRIVATE_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// The keys of which one must have signed a version. None: versions need no signature.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TrustedKeys(Vec<TrustedKey>);

/// A public key with the name that operators read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustedKey {
    name: String,
    key: PublicKey,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum PublicKey {
    Ed25519([u8; 32]),
    /// Uncompressed points: 65 and 97 bytes.
    P256(Vec<u8>),
    P384(Vec<u8>),
}

/// A private key, for `sluicegate sign`.
#[derive(Debug)]
pub struct SigningKey(Ed25519KeyPair);

/// Why a version could not be signed, in words.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    #[error("cannot read the files of {path}: {source}")]
    Files { path: String, source: io::Error },
    #[error(
        "{0} is not an Ed25519 private key as `sluicegate keygen` or `openssl genpkey -algorithm ed25519` write it (PEM, PKCS #8)"
    )]
    Key(String),
    #[error("{0} has no model.onnx: expected the directory of a version, such as models/iris/3")]
    NoModel(String),
    #[error("{0}")]
    Name(String),
}

// === impl TrustedKeys ===

impl TrustedKeys {
    /// Reads `NAME=KEY` for each key: the Base64 of its DER form, as it stands in a PEM file, or of the 32 bytes of an Ed25519 key. `None` when
    /// one is wrong, or a name is there twice.
    #[must_use]
    pub fn parse(texts: &[String]) -> Option<TrustedKeys> {
        let mut keys: Vec<TrustedKey> = Vec::new();
        for text in texts {
            let (name, key) = text.split_once('=')?;
            let is_name = (1..=64).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_graphic());
            if !is_name || keys.iter().any(|known| known.name == name) {
                return None;
            }
            let key = PublicKey::from_der(&STANDARD.decode(key.trim()).ok()?)?;
            keys.push(TrustedKey { name: name.to_owned(), key });
        }
        Some(TrustedKeys(keys))
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Checks that a trusted key signed the files of a version. Returns the key's name; `None` where no keys are configured.
    ///
    /// # Errors
    /// In words: there is no signature, or none of a trusted key for these files.
    pub fn check(&self, dir: &Path, digests: &Digests) -> Result<Option<String>, String> {
        if self.is_empty() {
            return Ok(None);
        }
        let names: Vec<&str> = self.0.iter().map(|key| key.name.as_str()).collect();
        let trusted = names.join(", ");
        let read =
            files::read_beside(dir, SIGNATURE_FILE, MAX_FILE, Stage::Verify).map_err(|failure| failure.reason)?;
        let Some(bytes) = read else {
            return Err(format!(
                "it is not signed: there is no {SIGNATURE_FILE}, and [models] trusted_keys asks for a signature by one of: {trusted}"
            ));
        };
        let by = if bundle::is_bundle(&bytes) {
            bundle::signer(&bytes, &self.0, dir, digests)?
        } else {
            let message = manifest(digests)?;
            let signatures = signatures(&bytes)?;
            let is_ed25519 = |key: &&TrustedKey| matches!(key.key, PublicKey::Ed25519(_));
            self.0
                .iter()
                .filter(is_ed25519)
                .find(|key| signatures.iter().any(|signature| key.key.has_signed(message.as_bytes(), signature)))
        };
        match by {
            Some(key) => Ok(Some(key.name.clone())),
            None => Err(format!(
                "{SIGNATURE_FILE} has no signature of these files by a key in [models] trusted_keys ({trusted}): the files were changed after \
                 they were signed, or another key signed them"
            )),
        }
    }
}

// === impl PublicKey ===

impl PublicKey {
    /// What stands before the bytes of a key in its DER form: RFC 8410, 4; RFC 5480, 2.
    const ED25519_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
    const P256_PREFIX: [u8; 26] = [
        0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48,
        0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
    ];
    const P384_PREFIX: [u8; 23] = [
        0x30, 0x76, 0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x05, 0x2b, 0x81, 0x04,
        0x00, 0x22, 0x03, 0x62, 0x00,
    ];

    fn from_der(bytes: &[u8]) -> Option<PublicKey> {
        // 4: the point is not compressed.
        let is_point = |point: &&[u8], length: usize| point.len() == length && point[0] == 4;
        if let Some(point) = bytes.strip_prefix(&Self::P256_PREFIX) {
            return Some(point).filter(|point| is_point(point, 65)).map(|point| PublicKey::P256(point.to_vec()));
        }
        if let Some(point) = bytes.strip_prefix(&Self::P384_PREFIX) {
            return Some(point).filter(|point| is_point(point, 97)).map(|point| PublicKey::P384(point.to_vec()));
        }
        bytes.strip_prefix(&Self::ED25519_PREFIX).unwrap_or(bytes).try_into().ok().map(PublicKey::Ed25519)
    }

    fn has_signed(&self, message: &[u8], signature: &[u8]) -> bool {
        let (algorithm, key): (&dyn VerificationAlgorithm, &[u8]) = match self {
            PublicKey::Ed25519(key) => (&ED25519, key),
            PublicKey::P256(point) => (&ECDSA_P256_SHA256_ASN1, point),
            PublicKey::P384(point) => (&ECDSA_P384_SHA384_ASN1, point),
        };
        UnparsedPublicKey::new(algorithm, key).verify(message, signature).is_ok()
    }
}

/// The text that is signed: what `sha256sum` prints for the files.
///
/// # Errors
/// When a file has a name that `sha256sum` would write with escapes.
fn manifest(digests: &Digests) -> Result<String, String> {
    let mut text = String::new();
    for (name, digest) in digests {
        if name.contains(['\\', '\n', '\r']) {
            return Err(format!(
                "the file {name:?} has a name that cannot be signed: it has a backslash or a line break"
            ));
        }
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{digest}  {name}");
    }
    Ok(text)
}

/// The signatures in a file: 64 bytes, or lines of Base64.
fn signatures(bytes: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    if bytes.len() == 64 {
        return Ok(vec![bytes.to_vec()]);
    }
    let text = std::str::from_utf8(bytes).unwrap_or_default();
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty()).take(MAX_SIGNATURES + 1);
    let signatures: Vec<Option<Vec<u8>>> =
        lines.map(|line| STANDARD.decode(line).ok().filter(|signature| signature.len() == 64)).collect();
    let wrong = || {
        format!(
            "{SIGNATURE_FILE} is not a signature: expected 64 bytes, 1 to {MAX_SIGNATURES} lines with the Base64 of 64 bytes, or a \
             bundle of `model_signing sign key`"
        )
    };
    if signatures.is_empty() || signatures.len() > MAX_SIGNATURES {
        return Err(wrong());
    }
    signatures.into_iter().collect::<Option<_>>().ok_or_else(wrong)
}

// === impl SigningKey ===

impl SigningKey {
    /// A new key, and its PEM form (PKCS #8), as OpenSSL writes it.
    ///
    /// # Errors
    /// When the system has no random numbers.
    pub fn generate() -> io::Result<(SigningKey, String)> {
        let mut seed = [0; 32];
        SystemRandom::new().fill(&mut seed).map_err(|_| io::Error::other("the system gives no random numbers"))?;
        let key = Ed25519KeyPair::from_seed_unchecked(&seed).expect("a seed has 32 bytes");
        let der: Vec<u8> = PRIVATE_PREFIX.into_iter().chain(seed).collect();
        let pem = format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", STANDARD.encode(der));
        Ok((SigningKey(key), pem))
    }

    /// Reads a PEM file. `name` is for the error.
    ///
    /// # Errors
    /// When it is not an Ed25519 private key.
    pub fn from_pem(name: &str, text: &str) -> Result<SigningKey, SignError> {
        let wrong = || SignError::Key(name.to_owned());
        let (_, rest) = text.split_once("-----BEGIN PRIVATE KEY-----").ok_or_else(wrong)?;
        let (body, _) = rest.split_once("-----END PRIVATE KEY-----").ok_or_else(wrong)?;
        let body: String = body.split_whitespace().collect();
        let der = STANDARD.decode(body).map_err(|_| wrong())?;
        Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der).map(SigningKey).map_err(|_| wrong())
    }

    /// The public key, as `[models] trusted_keys` takes it after the name.
    #[must_use]
    pub fn public(&self) -> String {
        let der: Vec<u8> = PublicKey::ED25519_PREFIX.iter().chain(self.0.public_key().as_ref()).copied().collect();
        STANDARD.encode(der)
    }

    /// Signs the files of a version. Returns the content of `model.sig`.
    ///
    /// # Errors
    /// When the files cannot be read, or one cannot be signed.
    pub fn sign(&self, dir: &Path) -> Result<String, SignError> {
        let path = dir.display().to_string();
        let digests = artifact_digests(dir).map_err(|source| SignError::Files { path: path.clone(), source })?;
        if !digests.iter().any(|(name, _)| name == crate::backend::VersionFiles::MODEL) {
            return Err(SignError::NoModel(path));
        }
        let message = manifest(&digests).map_err(SignError::Name)?;
        Ok(STANDARD.encode(self.0.sign(message.as_bytes())) + "\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(dir: &Path) -> Digests {
        std::fs::write(dir.join("model.onnx"), "model").unwrap();
        std::fs::write(dir.join("weights.bin"), "weights").unwrap();
        artifact_digests(dir).unwrap()
    }

    fn keys(named: &[(&str, &SigningKey)]) -> TrustedKeys {
        let texts: Vec<String> = named.iter().map(|(name, key)| format!("{name}={}", key.public())).collect();
        TrustedKeys::parse(&texts).unwrap()
    }

    #[test]
    fn a_signature_by_a_trusted_key_holds_until_a_file_changes() {
        let dir = tempfile::tempdir().unwrap();
        let digests = version(dir.path());
        let (ours, pem) = SigningKey::generate().unwrap();
        let (other, _) = SigningKey::generate().unwrap();
        let ours = SigningKey::from_pem("key.pem", &pem)
            .map(|read| (read.public() == ours.public()).then_some(ours))
            .unwrap()
            .unwrap();
        assert_eq!(TrustedKeys::default().check(dir.path(), &digests), Ok(None), "without keys nothing is asked for");
        let trusted = keys(&[("ci", &ours), ("ops", &other)]);
        let unsigned = trusted.check(dir.path(), &digests).unwrap_err();
        assert!(unsigned.contains("it is not signed") && unsigned.contains("ci, ops"), "{unsigned}");
        let signature = ours.sign(dir.path()).unwrap();
        let file = dir.path().join(SIGNATURE_FILE);
        std::fs::write(&file, &signature).unwrap();
        assert_eq!(artifact_digests(dir.path()).unwrap(), digests, "the signature is not part of what is signed");
        assert_eq!(trusted.check(dir.path(), &digests), Ok(Some("ci".to_owned())));
        // As OpenSSL writes it, and with a second signature.
        std::fs::write(&file, STANDARD.decode(signature.trim()).unwrap()).unwrap();
        assert_eq!(trusted.check(dir.path(), &digests), Ok(Some("ci".to_owned())));
        std::fs::write(&file, format!("{}\n\n{signature}", other.sign(dir.path()).unwrap())).unwrap();
        assert_eq!(keys(&[("ci", &ours)]).check(dir.path(), &digests), Ok(Some("ci".to_owned())));

        std::fs::write(&file, &signature).unwrap();
        assert!(keys(&[("ops", &other)]).check(dir.path(), &digests).unwrap_err().contains("another key signed them"));
        std::fs::write(dir.path().join("weights.bin"), "Weights").unwrap();
        let changed = artifact_digests(dir.path()).unwrap();
        assert!(trusted.check(dir.path(), &changed).unwrap_err().contains("the files were changed"));
        for wrong in ["", "x", "AAAA", &"A".repeat(64), &format!("{signature}x\n"), &signature.repeat(33)] {
            std::fs::write(&file, wrong).unwrap();
            let error = trusted.check(dir.path(), &digests).unwrap_err();
            assert!(error.contains("signature"), "{wrong:?}: {error}");
        }
        std::fs::write(&file, "A".repeat((1 << 20) + 1)).unwrap();
        assert!(
            trusted.check(dir.path(), &digests).unwrap_err().contains("larger than 1048576 bytes"),
            "a large file is not read"
        );
        std::fs::write(dir.path().join("a\\b"), "").unwrap();
        assert!(ours.sign(dir.path()).unwrap_err().to_string().contains("backslash"));
    }

    #[test]
    fn keys_are_read_as_base64_of_their_bytes_or_of_their_der_form() {
        let (key, _) = SigningKey::generate().unwrap();
        let raw = STANDARD.encode(key.0.public_key().as_ref());
        let read = |texts: &[&str]| TrustedKeys::parse(&texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>());
        let (der, raw) = (format!("ci={}", key.public()), format!("ci={raw}"));
        assert_eq!(read(&[&der]), read(&[&raw]));
        assert!(read(&[&der]).is_some_and(|keys| !keys.is_empty()));
        for wrong in [&["ci"][..], &["ci="], &["=AAAA"], &["ci=AAAA"], &["c i=AAAA"], &[der.as_str(), raw.as_str()]] {
            assert_eq!(read(wrong), None, "{wrong:?}");
        }
        for wrong in [
            "",
            "-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----",
            "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----",
        ] {
            let error = SigningKey::from_pem("key.pem", wrong).unwrap_err().to_string();
            assert!(error.starts_with("key.pem is not an Ed25519 private key"), "{error}");
        }
    }
}
