//! Signatures in the format of `OpenSSF` model signing, version 1.0: what `model_signing sign key` writes.
//!
//! The file is a Sigstore bundle in JSON. Its DSSE envelope holds an in-toto statement that lists the files of the model with their SHA-256
//! digests, and ECDSA signatures of that statement. Sources: <https://github.com/sigstore/model-transparency>,
//! <https://github.com/secure-systems-lab/dsse/blob/master/protocol.md> (the encoding that is signed).

use super::super::digest::{Digests, file_sha256};
use super::{MAX_SIGNATURES, SIGNATURE_FILE, TrustedKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::path::{Component, Path};

const MEDIA_TYPE: &str = "application/vnd.dev.sigstore.bundle";
const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
const PREDICATE_TYPE: &str = "https://model_signing/signature/v1.0";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bundle {
    media_type: String,
    dsse_envelope: Envelope,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    payload: String,
    payload_type: String,
    signatures: Vec<Signature>,
}

#[derive(Deserialize)]
struct Signature {
    sig: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Statement {
    #[serde(rename = "_type")]
    kind: String,
    subject: Vec<Subject>,
    predicate_type: String,
    predicate: Predicate,
}

#[derive(Deserialize)]
struct Subject {
    digest: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Predicate {
    resources: Vec<Resource>,
    serialization: Serialization,
}

#[derive(Deserialize)]
struct Resource {
    name: String,
    algorithm: String,
    digest: String,
}

#[derive(Deserialize)]
struct Serialization {
    method: String,
    #[serde(default)]
    hash_type: Option<String>,
}

/// Whether a signature file is a bundle.
pub(super) fn is_bundle(bytes: &[u8]) -> bool {
    bytes.trim_ascii_start().first() == Some(&b'{')
}

/// Finds the key that signed the files of a version. `None`: none of these keys signed the statement.
///
/// # Errors
/// In words: it is not such a bundle, or its statement does not describe these files.
pub(super) fn signer<'k>(
    bytes: &[u8],
    keys: &'k [TrustedKey],
    dir: &Path,
    digests: &Digests,
) -> Result<Option<&'k TrustedKey>, String> {
    let bundle: Bundle = serde_json::from_slice(bytes)
        .map_err(|error| format!("{SIGNATURE_FILE} is not a bundle of `model_signing sign key`: {error}"))?;
    if !bundle.media_type.starts_with(MEDIA_TYPE) {
        return Err(format!("{SIGNATURE_FILE} has the media type {:?}: expected {MEDIA_TYPE}…", bundle.media_type));
    }
    let envelope = &bundle.dsse_envelope;
    let payload = STANDARD
        .decode(&envelope.payload)
        .map_err(|error| format!("{SIGNATURE_FILE}: the payload is not Base64: {error}"))?;
    if envelope.signatures.is_empty() || envelope.signatures.len() > MAX_SIGNATURES {
        let found = envelope.signatures.len();
        return Err(format!("{SIGNATURE_FILE} has {found} signatures: expected 1 to {MAX_SIGNATURES}"));
    }
    // Nothing in the statement is looked at before a trusted key has signed it.
    let signed = pre_authentication_encoding(&envelope.payload_type, &payload);
    let is_by = |key: &TrustedKey| {
        let texts = envelope.signatures.iter().filter_map(|signature| STANDARD.decode(&signature.sig).ok());
        texts.into_iter().any(|signature| key.key.has_signed(&signed, &signature))
    };
    let Some(key) = keys.iter().find(|key| is_by(key)) else { return Ok(None) };
    if envelope.payload_type != PAYLOAD_TYPE {
        return Err(format!("{SIGNATURE_FILE} has a payload of {:?}: expected {PAYLOAD_TYPE}", envelope.payload_type));
    }
    let statement: Statement = serde_json::from_slice(&payload)
        .map_err(|error| format!("{SIGNATURE_FILE}: the signed statement cannot be read: {error}"))?;
    statement.check(dir, digests).map_err(|why| format!("{SIGNATURE_FILE}: {why}"))?;
    Ok(Some(key))
}

/// The bytes that are signed: `PAE` of the DSSE protocol.
fn pre_authentication_encoding(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let mut bytes = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len()).into_bytes();
    bytes.extend_from_slice(payload);
    bytes
}

// === impl Statement ===

impl Statement {
    /// Checks that the statement is about these files: all that belong to the version, each with its digest, and no file that is missing.
    fn check(&self, dir: &Path, digests: &Digests) -> Result<(), String> {
        if self.kind != STATEMENT_TYPE || self.predicate_type != PREDICATE_TYPE {
            return Err(format!(
                "the statement is a {:?} with {:?}: expected {STATEMENT_TYPE} with {PREDICATE_TYPE}",
                self.kind, self.predicate_type
            ));
        }
        let Serialization { method, hash_type } = &self.predicate.serialization;
        if method != "files" || hash_type.as_deref().is_some_and(|kind| kind != "sha256") {
            return Err(format!(
                "the files were hashed by {method:?} with {:?}: expected \"files\" with \"sha256\"",
                hash_type.as_deref().unwrap_or("sha256")
            ));
        }
        let listed = self.listed()?;
        for (name, digest) in digests {
            match listed.get(name.as_str()) {
                Some(signed) if *signed == digest => {}
                Some(_) => return Err(format!("the file {name} was changed after it was signed")),
                None => return Err(format!("the file {name} is not signed")),
            }
        }
        // Files beside the artifact, such as golden.json, need no signature. Where they have one, it must be right.
        let beside = |name: &str| !digests.iter().any(|(known, _)| known == name);
        for (name, signed) in listed.iter().filter(|(name, _)| beside(name)) {
            let found = file_sha256(&dir.join(name))
                .map_err(|error| format!("the signed file {name} cannot be read: {error}"))?;
            if found != **signed {
                return Err(format!("the file {name} was changed after it was signed"));
            }
        }
        Ok(())
    }

    /// The files by name, with the hexadecimal form of their digests.
    fn listed(&self) -> Result<BTreeMap<&str, &str>, String> {
        let mut listed = BTreeMap::new();
        let mut all = Sha256::new();
        for Resource { name, algorithm, digest } in &self.predicate.resources {
            if algorithm != "sha256" {
                return Err(format!("the file {name:?} was hashed with {algorithm:?}: expected sha256"));
            }
            let bytes = from_hex(digest).ok_or_else(|| {
                format!("the digest {digest:?} of {name:?} is not one of SHA-256: expected 64 digits, lower case")
            })?;
            let is_inside = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
            if name.is_empty() || !is_inside {
                return Err(format!("the file {name:?} is not inside the version's directory"));
            }
            if listed.insert(name.as_str(), digest.as_str()).is_some() {
                return Err(format!("the file {name:?} is listed twice"));
            }
            all.update(bytes);
        }
        let expected = match self.subject.as_slice() {
            [subject] => subject.digest.get("sha256"),
            subjects => return Err(format!("the statement has {} subjects: expected 1", subjects.len())),
        };
        let all = format!("{:x}", all.finalize());
        if expected != Some(&all) {
            return Err(format!("the digest of the list is {all}, but the statement says {expected:?}"));
        }
        Ok(listed)
    }
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    let is_digits = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if text.len() != 64 || !text.bytes().all(is_digits) {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prepare::digest::artifact_digests;
    use crate::prepare::signed::{PublicKey, TrustedKeys};
    use ring::rand::SystemRandom;
    use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
    use serde_json::{Value, json};

    /// A version, a key, and bundles that the key signs.
    struct Workspace {
        dir: tempfile::TempDir,
        pair: EcdsaKeyPair,
        keys: TrustedKeys,
    }

    impl Workspace {
        fn new() -> Workspace {
            let dir = tempfile::tempdir().unwrap();
            for (name, text) in [("model.onnx", "model"), ("weights/a.bin", "weights"), ("golden.json", "{}")] {
                let path = dir.path().join(name);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, text).unwrap();
            }
            let random = SystemRandom::new();
            let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).unwrap();
            let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8.as_ref(), &random).unwrap();
            let der = [&PublicKey::P256_PREFIX[..], pair.public_key().as_ref()].concat();
            let keys = TrustedKeys::parse(&[format!("ci={}", STANDARD.encode(der))]).unwrap();
            Workspace { dir, pair, keys }
        }

        fn statement(&self) -> Value {
            let names = ["golden.json", "model.onnx", "weights/a.bin"];
            let digest = |name: &str| file_sha256(&self.dir.path().join(name)).unwrap();
            let resources: Vec<Value> =
                names.iter().map(|name| json!({"name": name, "algorithm": "sha256", "digest": digest(name)})).collect();
            summed(json!({
                "_type": STATEMENT_TYPE, "predicateType": PREDICATE_TYPE, "subject": [{"name": "m", "digest": {}}],
                "predicate": {"resources": resources, "serialization": {"method": "files", "hash_type": "sha256"}},
            }))
        }

        fn bundle(&self, statement: &Value) -> Value {
            let payload = statement.to_string().into_bytes();
            let signed = pre_authentication_encoding(PAYLOAD_TYPE, &payload);
            let signature = self.pair.sign(&SystemRandom::new(), &signed).unwrap();
            json!({
                "mediaType": format!("{MEDIA_TYPE}.v0.3+json"), "verificationMaterial": {"publicKey": {"hint": ""}},
                "dsseEnvelope": {
                    "payload": STANDARD.encode(payload), "payloadType": PAYLOAD_TYPE,
                    "signatures": [{"sig": STANDARD.encode(signature), "keyid": ""}],
                },
            })
        }

        fn check(&self, bundle: &Value) -> Result<Option<String>, String> {
            std::fs::write(self.dir.path().join(SIGNATURE_FILE), bundle.to_string()).unwrap();
            self.keys.check(self.dir.path(), &artifact_digests(self.dir.path()).unwrap())
        }
    }

    /// The statement with the digest of its list.
    fn summed(mut statement: Value) -> Value {
        let mut all = Sha256::new();
        for resource in statement["predicate"]["resources"].as_array().unwrap() {
            all.update(from_hex(resource["digest"].as_str().unwrap()).unwrap_or([0; 32]));
        }
        statement["subject"][0]["digest"]["sha256"] = format!("{:x}", all.finalize()).into();
        statement
    }

    #[test]
    fn bundles_of_the_tool_are_read() {
        // Made by `model_signing` 1.1.1 from the files below. The private keys are gone.
        const P256: &str = "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE6yGriFxZBrNyQYCf8RwHap+q4zQDblOOO1sihHzQZCY3UrA0gW48eO5equ/op8zjzO6UeDC+ECYEuqQzUwpjeA==";
        const P384: &str = "MHYwEAYHKoZIzj0CAQYFK4EEACIDYgAEvZiHuuj0lU0C3Ak6PSjAyX2eYe6iMM5XNRaJZbO2Rf1cejtwXsVrFyMxzHUfX2j2iEmW5IdN+Ypc8dhKMkCZPPe3a+BZg7dLILZASQ0wm4aGEAXOMYecOnz/2ubk8pcL";
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        std::fs::write(dir.path().join("model.onnx"), "hello").unwrap();
        std::fs::write(dir.path().join("sub/weights.bin"), "data").unwrap();
        let digests = artifact_digests(dir.path()).unwrap();
        for (bundle, key, other) in
            [(include_bytes!("p256.sig").as_slice(), P256, P384), (include_bytes!("p384.sig"), P384, P256)]
        {
            std::fs::write(dir.path().join(SIGNATURE_FILE), bundle).unwrap();
            let check = |keys: &[String]| TrustedKeys::parse(keys).unwrap().check(dir.path(), &digests);
            let both = [format!("other={other}"), format!("ci={key}")];
            assert_eq!(check(&both), Ok(Some("ci".to_owned())));
            assert!(check(&both[..1]).unwrap_err().contains("no signature of these files"));
        }
    }

    #[test]
    fn a_bundle_holds_until_a_file_of_it_changes() {
        let workspace = Workspace::new();
        let bundle = workspace.bundle(&workspace.statement());
        assert_eq!(workspace.check(&bundle), Ok(Some("ci".to_owned())));
        for (name, before) in [("weights/a.bin", "weights"), ("golden.json", "{}"), ("model.onnx", "model")] {
            std::fs::write(workspace.dir.path().join(name), "other").unwrap();
            let error = workspace.check(&bundle).unwrap_err();
            assert!(error.contains(&format!("the file {name} was changed")), "{error}");
            std::fs::write(workspace.dir.path().join(name), before).unwrap();
        }
        std::fs::write(workspace.dir.path().join("more.bin"), "").unwrap();
        assert!(workspace.check(&bundle).unwrap_err().contains("the file more.bin is not signed"));
        std::fs::remove_file(workspace.dir.path().join("more.bin")).unwrap();
        std::fs::remove_file(workspace.dir.path().join("golden.json")).unwrap();
        assert!(workspace.check(&bundle).unwrap_err().contains("the signed file golden.json cannot be read"));
    }

    #[test]
    fn another_key_and_other_bytes_are_no_signature() {
        let workspace = Workspace::new();
        let stranger = Workspace::new();
        let error = workspace.check(&stranger.bundle(&workspace.statement())).unwrap_err();
        assert!(error.contains("no signature of these files by a key in [models] trusted_keys (ci)"), "{error}");
        let mut bundle = workspace.bundle(&workspace.statement());
        bundle["dsseEnvelope"]["payload"] = STANDARD.encode(workspace.statement().to_string() + " ").into();
        assert!(workspace.check(&bundle).unwrap_err().contains("no signature of these files"));
    }

    #[test]
    fn statements_of_another_form_are_refused_in_words() {
        let workspace = Workspace::new();
        let changed = |pointer: &str, value: Value| {
            let mut statement = workspace.statement();
            *statement.pointer_mut(pointer).unwrap() = value;
            workspace.check(&workspace.bundle(&statement)).unwrap_err()
        };
        for (pointer, value, part) in [
            ("/_type", json!("other"), "expected https://in-toto.io/Statement/v1"),
            ("/predicateType", json!("other"), "expected https://in-toto.io/Statement/v1 with https://model_signing"),
            ("/predicate/serialization/method", json!("shards"), "were hashed by \"shards\""),
            ("/predicate/serialization/hash_type", json!("blake3"), "with \"blake3\""),
            ("/predicate/resources/0/algorithm", json!("blake2b"), "was hashed with \"blake2b\""),
            ("/predicate/resources/0/digest", json!("AB"), "the digest \"AB\""),
            ("/predicate/resources/0/name", json!("../golden.json"), "is not inside the version's directory"),
            ("/predicate/resources/0/name", json!("/etc/passwd"), "is not inside the version's directory"),
            ("/predicate/resources/0/name", json!(""), "is not inside the version's directory"),
            ("/predicate/resources/0/name", json!("model.onnx"), "is listed twice"),
            ("/subject", json!([]), "has 0 subjects"),
            ("/subject/0/digest", json!({}), "the statement says None"),
            ("/subject/0/digest/sha256", json!("0"), "the digest of the list is"),
            ("/predicate/resources", json!([]), "the digest of the list is"),
            ("/predicate", json!(null), "the signed statement cannot be read"),
        ] {
            let error = changed(pointer, value);
            assert!(error.contains(part), "{pointer}: {part:?} is not in {error}");
        }
        let mut empty = workspace.statement();
        empty["predicate"]["resources"] = json!([]);
        let error = workspace.check(&workspace.bundle(&summed(empty))).unwrap_err();
        assert!(error.contains("model.onnx is not signed"), "{error}");
    }

    #[test]
    fn what_is_no_bundle_is_refused_in_words() {
        let workspace = Workspace::new();
        let good = workspace.bundle(&workspace.statement());
        let changed = |pointer: &str, value: Value| {
            let mut bundle = good.clone();
            *bundle.pointer_mut(pointer).unwrap() = value;
            workspace.check(&bundle).unwrap_err()
        };
        let signature = good["dsseEnvelope"]["signatures"][0].clone();
        for (pointer, value, part) in [
            ("/mediaType", json!("text/plain"), "media type \"text/plain\""),
            ("/dsseEnvelope/payload", json!("!"), "the payload is not Base64"),
            ("/dsseEnvelope/payloadType", json!("text/plain"), "no signature of these files"),
            ("/dsseEnvelope/signatures", json!([]), "has 0 signatures"),
            ("/dsseEnvelope/signatures", json!(vec![signature; 33]), "has 33 signatures"),
            ("/dsseEnvelope/signatures/0/sig", json!("!"), "no signature of these files"),
            ("/dsseEnvelope", json!(1), "is not a bundle of `model_signing sign key`"),
        ] {
            let error = changed(pointer, value);
            assert!(error.contains(part), "{pointer}: {part:?} is not in {error}");
        }
    }
}
