//! Registries and buckets that are wrong in every way: each is told in words, within bounds of time and memory.

use super::address::Address;
use super::bucket::Bucket;
use super::hostile::{Asked, Body, Hostile, Reply};
use super::oci::Oci;
use super::offer::{Place, Source as _};
use super::registry::Login;
use super::{Config, Trouble};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;
use sha2::{Digest as _, Sha256};
use std::time::{Duration, Instant};

fn config() -> Config {
    Config { timeout: Duration::from_millis(500), ..Config::default() }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{:x}", Sha256::digest(bytes))
}

/// A manifest with one file.
fn manifest() -> String {
    let layer = digest(b"model");
    format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{layer}","size":5}},"layers":[{{"mediaType":"application/onnx","digest":"{layer}","size":5}}]}}"#
    )
}

fn oci(server: &Hostile, login: Option<Login>) -> Oci {
    super::use_ring();
    let address = Address::parse(&format!("oci://{}/team/self:3", server.address), None, None).unwrap();
    Oci::open_as(&address, login, &config()).unwrap()
}

/// What listing an image of such a registry says.
fn trouble_of(answer: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> String {
    let server = Hostile::start(answer);
    let began = Instant::now();
    let trouble = oci(&server, None).list(soon()).unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(5), "{trouble}");
    trouble.words
}

#[test]
fn what_a_registry_sends_has_a_limit() {
    let found = |words: String, expected: &str| assert!(words.contains(expected), "{words:?}: expected {expected:?}");
    found(trouble_of(|_| Reply::endless(200)), "the manifest is larger than 4194304 bytes");
    found(trouble_of(|_| Reply::endless(403)), "(403)");
    found(trouble_of(|_| Reply { body: Body::Silent, ..Reply::ok("") }), "sent nothing for 0.5 s");
    found(trouble_of(|_| Reply::ok("[".repeat(100_000))), "the manifest cannot be read");
    let layers = vec!["{\"mediaType\":\"a\",\"digest\":\"b\",\"size\":1}"; 5000].join(",");
    let many = manifest().replacen("\"layers\":[", &format!("\"layers\":[{layers},"), 1);
    found(trouble_of(move |_| Reply::ok(many.clone())), "5001 layers");
}

#[test]
fn a_manifest_is_held_to_its_digest_and_an_index_leads_to_digests_only() {
    let lying = |_: &Asked| Reply::ok(manifest()).with(&format!("docker-content-digest: {}", digest(b"another")));
    assert!(trouble_of(lying).contains("the manifest has the digest"), "{}", trouble_of(lying));
    for entry in ["../../../v2/other/manifests/1", "sha256:AB", "sha512:00", ""] {
        let index = format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"a","digest":"{entry}","size":1,"platform":{{"os":"linux","architecture":"{}"}}}}]}}"#,
            if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" }
        );
        let server = Hostile::start(move |_| Reply::ok(index.clone()));
        let words = oci(&server, None).list(soon()).unwrap_err().words;
        assert!(words.contains("its index names"), "{words}");
        assert!(server.asked().iter().all(|asked| asked.target.ends_with("manifests/3")), "{:?}", server.asked());
    }
}

#[test]
fn a_login_goes_where_the_registry_says_and_its_token_is_kept() {
    let secret = format!("Basic {}", STANDARD.encode("user:secret"));
    let token_server = Hostile::start(move |asked| {
        if asked.authorization.as_deref() == Some(&secret) {
            Reply::ok(r#"{"token":"T","expires_in":300}"#)
        } else {
            Reply::status(401)
        }
    });
    let challenge = format!("www-authenticate: Bearer realm=\"http://{}/token\",service=\"s\"", token_server.address);
    let registry = Hostile::start(move |asked| match asked.authorization.as_deref() {
        Some("Bearer T") if asked.target.contains("/blobs/") => Reply::ok("model"),
        Some("Bearer T") => {
            Reply::ok(manifest()).with(&format!("docker-content-digest: {}", digest(manifest().as_bytes())))
        }
        _ => Reply::status(401).with(&challenge),
    });
    let login = |password: &str| Some(Login { user: "user".to_owned(), password: password.to_owned() });
    let mut image = oci(&registry, login("secret"));
    assert_eq!(image.list(soon()).unwrap().versions.len(), 1);
    assert_eq!(image.list(soon()).unwrap().versions.len(), 1);
    assert_eq!(read(&mut image, 0).unwrap(), b"model");
    let tokens = token_server.asked();
    assert_eq!(tokens.len(), 1, "one token is enough: {tokens:?}");
    assert_eq!(tokens[0].target, "/token?scope=repository%3Ateam%2Fself%3Apull&service=s");
    assert_eq!(registry.asked()[0].authorization, None, "nothing is sent that was not asked for");
    for login in [login("wrong"), None] {
        let words = oci(&registry, login).list(soon()).unwrap_err().words;
        assert!(words.contains("credentials are missing or wrong (401)"), "{words}");
    }
    let endless = Hostile::start(|_| Reply::endless(200));
    let to_endless = format!("www-authenticate: Bearer realm=\"http://{}/t\"", endless.address);
    assert!(trouble_of(move |_| Reply::status(401).with(&to_endless)).contains("token of the registry is larger"));
}

fn read(image: &mut Oci, from: u64) -> Result<Vec<u8>, Trouble> {
    let place = Place { location: digest(b"model"), size: Some(5), tag: None, sha256: None };
    let mut bytes = Vec::new();
    image.read(&place, from, soon(), &mut |piece| {
        bytes.extend_from_slice(piece);
        Ok(())
    })?;
    Ok(bytes)
}

#[test]
fn a_download_goes_on_where_the_registry_says_the_truth_about_it() {
    let server = Hostile::start(|_| Reply::ok("model"));
    assert_eq!(read(&mut oci(&server, None), 2).unwrap(), b"del", "a registry without ranges sends all of it");
    let server = Hostile::start(|_| Reply { status: 206, ..Reply::ok("del") }.with("content-range: bytes 2-4/5"));
    assert_eq!(read(&mut oci(&server, None), 2).unwrap(), b"del");
    assert_eq!(server.asked()[0].range.as_deref(), Some("bytes=2-"));
    assert!(read(&mut oci(&server, None), 3).unwrap_err().changed, "another range");
    let server = Hostile::start(|_| Reply::status(404));
    assert!(read(&mut oci(&server, None), 0).unwrap_err().words.contains("a layer is not there (404)"));
}

fn page(contents: &str, more: &str) -> String {
    format!("<?xml version=\"1.0\"?><ListBucketResult>{contents}{more}</ListBucketResult>")
}

fn object(key: &str, size: &str) -> String {
    format!(
        "<Contents><Key>{key}</Key><LastModified>2026-11-28T10:00:00.000Z</LastModified><ETag>\"e\"</ETag><Size>{size}</Size></Contents>"
    )
}

/// Makes pages lead to each other for ever.
const AGAIN: &str = "<IsTruncated>true</IsTruncated><NextContinuationToken>again</NextContinuationToken>";

#[test]
fn listings_of_buckets_have_limits_of_bytes_and_time() {
    let trouble = |answer: fn(&Asked) -> Reply, within: u64| {
        let server = Hostile::start(answer);
        // A page of 16 MiB takes a while on a busy machine.
        let timeout = if within > 1000 { Duration::from_secs(5) } else { config().timeout };
        let mut bucket = Bucket::of_test(server.address, &Config { timeout, ..config() });
        bucket.list(Instant::now() + Duration::from_millis(within)).unwrap_err().words
    };
    let words = trouble(|_| Reply::endless(200), 10_000);
    assert!(words.contains("larger than 16777216 bytes"), "{words}");
    assert_eq!(trouble(|_| Reply::ok(page("", AGAIN)), 300), "the listing took too long");
    let words = trouble(|_| Reply { body: Body::Silent, ..Reply::ok("") }, 1000);
    assert!(words.contains("sent nothing for 0.5 s"), "{words}");
    for wrong in ["", "<html>", "{}", "<ListBucketResult><Contents>"] {
        let server = Hostile::start(move |_| Reply::ok(wrong));
        let listed = Bucket::of_test(server.address, &config()).list(soon());
        assert!(listed.map(|listing| listing.versions).unwrap_or_default().is_empty(), "{wrong:?}");
    }
}

#[test]
fn the_answer_to_a_change_of_a_bucket_has_a_limit_too() {
    let server = Hostile::start(|_| Reply::endless(200));
    let words = Bucket::of_test(server.address, &config()).begin_upload().unwrap_err().to_string();
    assert!(words.contains("larger than 1048576 bytes"), "{words}");
}

#[test]
fn names_in_a_bucket_that_lead_elsewhere_are_no_versions() {
    let listed = |key: &str| {
        let contents = object(key, "5");
        let server = Hostile::start(move |_| Reply::ok(page(&contents, "")));
        // A name that cannot be one is an error of the whole listing for the library.
        Bucket::of_test(server.address, &config()).list(soon()).map(|listing| listing.versions).unwrap_or_default()
    };
    let right = listed("p/m/1/model.onnx");
    assert_eq!(right.len(), 1);
    assert_eq!((right[0].id.to_string(), right[0].files[0].path.as_str()), ("m/1".to_owned(), "model.onnx"));
    for key in [
        "p/../q/1/model.onnx",
        "/etc/1/model.onnx",
        "p/m/1/../x",
        "p/m/-1/model.onnx",
        "q/m/1/model.onnx",
        "p/../../m/1/x",
    ] {
        for version in listed(key) {
            assert_eq!(version.check(), Ok(()), "{key}");
            assert!(version.files.iter().all(|file| !file.path.contains("..")), "{key}: {version:?}");
            assert_ne!(version.id.model.as_str(), "etc", "{key}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_in_a_listing_panic(at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>()) {
        let mut bytes = page(&(object("p/m/1/model.onnx", "5") + &object("p/m/model.toml", "7")), "").into_bytes();
        let (at, end) = (at.index(bytes.len()), cut.index(bytes.len()) + 1);
        bytes[at] = byte;
        if cut.index(2) == 0 {
            bytes.truncate(end);
        }
        let server = Hostile::start(move |_| Reply::ok(bytes.clone()));
        if let Ok(listing) = Bucket::of_test(server.address, &config()).list(soon()) {
            prop_assert!(listing.versions.len() <= 1);
        }
    }
}
