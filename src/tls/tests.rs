use super::*;
use crate::telemetry::Telemetry;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use tempfile::TempDir;

fn wanted(dir: &Path, names: &[&str], clients: &[&str]) -> Wanted {
    let owned = |all: &[&str]| all.iter().map(|name| (*name).to_owned()).collect();
    Wanted { dir: dir.to_owned(), names: owned(names), clients: owned(clients), days: 30 }
}

fn config(dir: &Path) -> Config {
    Config {
        certificate: dir.join("server.crt"),
        key: dir.join("server.key"),
        client_ca: None,
        client_auth: ClientAuth::Required,
    }
}

/// A directory with a certificate that expires after this many days.
fn pair(days: u16) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    make(&Wanted { days, ..wanted(dir.path(), &["localhost", "127.0.0.1"], &[]) }).unwrap();
    dir
}

fn start(config: &Config) -> Result<std::sync::Arc<Tls>, TlsError> {
    Tls::start(config, "data", Telemetry::new().process())
}

#[test]
fn files_are_made_once_with_private_keys_for_the_owner_alone() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("new/tls");
    let made = make(&wanted(&at, &["localhost", "::1", "*.example.org"], &["anna@example.org", "ben"])).unwrap();
    let names: Vec<_> = made.files.iter().map(|f| f.file_name().unwrap().to_str().unwrap().to_owned()).collect();
    let expected = ["server", "client-ca", "anna@example.org", "ben"];
    assert_eq!(names, expected.iter().flat_map(|n| [format!("{n}.key"), format!("{n}.crt")]).collect::<Vec<_>>());
    for file in &made.files {
        let permissions = fs::metadata(file).unwrap().permissions().mode() & 0o777;
        let is_key = file.extension().unwrap() == "key";
        assert_eq!(permissions, if is_key { 0o600 } else { 0o644 }, "{}", file.display());
    }
    let before = fs::read(at.join("ben.key")).unwrap();
    let refused = make(&wanted(&at, &[], &["carl", "ben"])).unwrap_err();
    assert!(refused.to_string().contains("ben.key already, and it is not overwritten"), "{refused}");
    assert_eq!(fs::read(at.join("ben.key")).unwrap(), before);
    assert!(!at.join("carl.key").exists(), "all files or none");
    make(&wanted(&at, &[], &["carl"])).unwrap();
    let tls = Config { client_ca: Some(at.join("client-ca.crt")), ..config(&at) };
    start(&tls).unwrap();
    fs::remove_file(at.join("client-ca.key")).unwrap();
    let refused = make(&wanted(&at, &[], &["dora"])).unwrap_err();
    assert!(matches!(refused, MakeError::HalfAuthority { .. }), "{refused}");
    fs::copy(at.join("server.key"), at.join("client-ca.key")).unwrap();
    let refused = make(&wanted(&at, &[], &["dora"])).unwrap_err();
    assert!(refused.to_string().contains("is not its key"), "{refused}");
    fs::copy(at.join("server.crt"), at.join("client-ca.crt")).unwrap();
    let refused = make(&wanted(&at, &[], &["dora"])).unwrap_err();
    assert!(refused.to_string().contains("expected the subject"), "{refused}");
}

#[test]
fn names_that_cannot_be_used_are_refused_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let long = "a".repeat(65);
    let many: Vec<String> = (0..101).map(|i| format!("c{i}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    for (names, clients, expected) in [
        (&["local host"][..], &[][..], "expected a host name"),
        (&[""], &[], "expected a host name"),
        (&["a..b"], &[], "expected a host name"),
        (&["https://localhost"], &[], "expected a host name"),
        (&[], &["../anna"], "is not a name for a client"),
        (&[], &["-anna"], "is not a name for a client"),
        (&[], &["anna,O=Risk"], "is not a name for a client"),
        (&[], &[&long], "is not a name for a client"),
        (&[], &["server"], "is the name of a file"),
        (&[], &["anna", "anna"], "is given twice"),
        (&[], &many, "at most 100 names, got 101"),
    ] {
        let refused = make(&wanted(dir.path(), names, clients)).unwrap_err();
        assert!(refused.to_string().contains(expected), "{names:?} {clients:?}: {refused}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn the_identity_of_a_client_is_read_from_its_certificate() {
    let dir = tempfile::tempdir().unwrap();
    make(&wanted(dir.path(), &["localhost", "10.1.2.3"], &["anna"])).unwrap();
    let read = |name: &str| {
        let pem = fs::read(dir.path().join(name)).unwrap();
        ClientCertificate::read(&CertificateDer::from_pem_slice(&pem).unwrap()).unwrap()
    };
    let anna = read("anna.crt");
    assert_eq!((anna.subject.as_str(), anna.common_name.as_deref()), ("CN=anna", Some("anna")));
    assert_eq!(anna.sha256.len(), 64);
    let left = anna.not_after.duration_since(jiff::Timestamp::now()).as_hours() / 24;
    assert!((30..=31).contains(&left), "{left} days");
    let server = read("server.crt");
    assert_eq!(server.dns_names, ["localhost"]);
    assert_eq!(server.addresses, [std::net::IpAddr::from([10, 1, 2, 3])]);
    assert!(ClientCertificate::read(&CertificateDer::from(vec![0x30, 0x82])).is_err());
}

#[test]
fn files_that_cannot_be_used_are_named_with_the_reason() {
    let (dir, other) = (pair(30), pair(30));
    let at = |name: &str, text: &[u8]| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let good = config(dir.path());
    let encrypted = b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let garbage = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let huge = dir.path().join("huge");
    fs::File::create(&huge).unwrap().set_len(2 << 20).unwrap();
    let cases = [
        (Config { certificate: "nowhere.crt".into(), ..good.clone() }, "cannot read nowhere.crt"),
        (Config { certificate: dir.path().to_owned(), ..good.clone() }, "it is not a regular file"),
        (Config { certificate: "/dev/zero".into(), ..good.clone() }, "it is not a regular file"),
        (Config { certificate: huge, ..good.clone() }, "is larger than"),
        (Config { certificate: at("empty.crt", b""), ..good.clone() }, "has no certificate"),
        (Config { certificate: at("garbage.crt", garbage), ..good.clone() }, "certificate 1 cannot be read"),
        (Config { key: at("empty.key", b""), ..good.clone() }, "has no private key"),
        (Config { key: at("encrypted.key", encrypted), ..good.clone() }, "has no private key"),
        (Config { key: other.path().join("server.key"), ..good.clone() }, "do not belong together"),
        (Config { client_ca: Some(at("empty.ca", b"")), ..good.clone() }, "empty.ca has no certificate"),
    ];
    for (config, expected) in cases {
        let refused = start(&config).unwrap_err().to_string();
        assert!(refused.contains(expected), "expected {expected:?}, found {refused:?}");
    }
    start(&good).unwrap();
}

#[test]
fn a_new_pair_is_loaded_when_both_files_stay_unchanged_and_a_broken_one_is_refused() {
    let (dir, new) = (pair(30), pair(60));
    let config = config(dir.path());
    let tls = start(&config).unwrap();
    let first = tls.current();
    let is_first = || std::sync::Arc::ptr_eq(&tls.current(), &first);
    tls.look();
    assert!(is_first(), "nothing has changed");
    fs::copy(new.path().join("server.crt"), &config.certificate).unwrap();
    tls.look();
    assert!(is_first() && tls.warnings().is_empty(), "the key may be written next");
    tls.look();
    assert!(is_first(), "the pair does not fit");
    let warnings = tls.warnings();
    assert!(
        warnings[0].contains("the old ones stay") && warnings[0].contains("do not belong together"),
        "{warnings:?}"
    );
    fs::copy(new.path().join("server.key"), &config.key).unwrap();
    tls.look();
    tls.look();
    assert!(!is_first(), "the new pair fits");
    assert!(tls.warnings().is_empty(), "{:?}", tls.warnings());
    let second = tls.current();
    fs::remove_file(&config.key).unwrap();
    tls.reload(&config);
    assert!(std::sync::Arc::ptr_eq(&tls.current(), &second), "a file that is gone changes nothing");
    assert!(tls.warnings()[0].contains("cannot read"), "{:?}", tls.warnings());
}

#[test]
fn a_certificate_that_ends_soon_is_reported() {
    let soon = pair(3);
    let tls = start(&config(soon.path())).unwrap();
    let warnings = tls.warnings();
    assert!(warnings[0].contains("the certificate of the data plane expires on") && warnings[0].contains("in 3 days"));
    let long = pair(30);
    assert!(start(&config(long.path())).unwrap().warnings().is_empty());
}
