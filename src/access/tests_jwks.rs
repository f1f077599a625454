//! The keys of an identity provider over HTTP and HTTPS: rotation, and providers that are down, slow, or answer nonsense.

use super::oidc::Pace;
use super::tests::{Provider, bearer, refused};
use super::*;
use crate::outbound::test_server::{Reply, TestServer};
use std::time::{Duration, Instant};

/// Fast enough for a test, and slow enough to count readings.
const FAST: Pace = Pace {
    within: Duration::from_millis(500),
    soonest: Duration::from_millis(200),
    after_failure: Duration::from_millis(200),
};

fn keys(provider: &Provider) -> Reply {
    Reply::Answer(200, provider.announced())
}

fn start(provider: &Provider, url: String, ca: Option<std::path::PathBuf>, pace: Pace) -> Access {
    let oidc = OidcConfig { keys: KeySource::Url(url), ca, ..provider.config() };
    Access::start_at(Config { oidc: Some(oidc), ..Config::default() }, &[], pace).unwrap()
}

fn knows(access: &Access, token: &str) -> bool {
    access.identify(&bearer(token), None, None).is_ok()
}

#[track_caller]
fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < until, "within 30 s: {what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

#[test]
fn keys_are_read_over_http_and_over_https_with_an_authority_of_its_own() {
    let provider = Provider::new();
    let good = provider.good("one");
    let plain = TestServer::http(keys(&provider));
    let access = start(&provider, plain.url("/certs"), None, Pace::USUAL);
    assert!(knows(&access, &good), "the first reading is awaited");
    assert!(plain.requests()[0].head.starts_with("GET /certs HTTP/1.1"), "{:?}", plain.requests());
    let dir = tempfile::tempdir().unwrap();
    let (secure, ca) = TestServer::https(dir.path(), "localhost", keys(&provider));
    assert!(knows(&start(&provider, secure.url("/certs"), Some(ca), Pace::USUAL), &good));
    let other = tempfile::tempdir().unwrap();
    let (_, other_ca) = TestServer::https(other.path(), "localhost", Reply::Silence);
    let access = start(&provider, secure.url("/certs"), Some(other_ca), Pace::USUAL);
    refused(&access, &bearer(&good), "key \"one\", which is unknown");
    let missing = Access::start(
        Config {
            tokens: Vec::new(),
            certificates: Vec::new(),
            oidc: Some(OidcConfig {
                keys: KeySource::Url(secure.url("/")),
                ca: Some("nowhere.crt".into()),
                ..provider.config()
            }),
        },
        &[],
    );
    assert!(missing.unwrap_err().to_string().contains("nowhere.crt"), "a wrong file is reported at the start");
}

#[test]
fn a_new_key_is_read_when_a_token_names_it_and_strangers_cause_no_more_readings() {
    let mut provider = Provider::new();
    let server = TestServer::http(keys(&provider));
    let access = start(&provider, server.url("/"), None, FAST);
    provider.add("two");
    let (old, new) = (provider.good("one"), provider.good("two"));
    let mut strangers = Provider::new();
    for id in ["a", "b", "c"] {
        strangers.add(id);
    }
    let strangers = ["a", "b", "c"].map(|id| strangers.good(id));
    // Strangers send tokens with unknown keys as fast as they can, for the time of several readings.
    let (began, mut sent) = (Instant::now(), 0_u32);
    while began.elapsed() < 5 * FAST.soonest {
        for token in &strangers {
            assert!(!knows(&access, token));
            sent += 1;
        }
        std::thread::park_timeout(Duration::from_millis(1));
    }
    let passed = began.elapsed();
    let readings = server.requests().len();
    let most = 2 + usize::try_from(passed.as_millis() / FAST.soonest.as_millis()).unwrap();
    assert!((2..=most).contains(&readings), "{readings} readings for {sent} tokens in {passed:?}: at most {most}");
    assert!(knows(&access, &old), "known keys are not affected");
    assert!(!knows(&access, &new), "it is not announced");
    server.reply(keys(&provider));
    eventually("the new key is read", || knows(&access, &new));
    assert!(knows(&access, &old));
    // The provider withdraws the old key.
    provider.remove("one");
    server.reply(keys(&provider));
    eventually("the old key is refused after a reading", || {
        let _ = knows(&access, &strangers[0]);
        !knows(&access, &old)
    });
    assert!(knows(&access, &new));
}

#[test]
fn known_keys_cause_no_reading() {
    let provider = Provider::new();
    let server = TestServer::http(keys(&provider));
    let access = start(&provider, server.url("/"), None, FAST);
    let good = provider.good("one");
    let (began, mut asked) = (Instant::now(), 0);
    while began.elapsed() < 3 * FAST.soonest {
        assert!(knows(&access, &good));
        asked += 1;
    }
    assert_eq!(server.requests().len(), 1, "one reading for {asked} tokens");
}

#[test]
fn a_provider_that_is_down_at_the_start_is_asked_again_until_it_answers() {
    let provider = Provider::new();
    let reserved = TestServer::http(Reply::Silence);
    let (address, url) = (reserved.address(), reserved.url("/"));
    drop(reserved);
    let began = Instant::now();
    let access = start(&provider, url, None, FAST);
    assert!(began.elapsed() < Duration::from_secs(10), "the start does not depend on the provider");
    let good = provider.good("one");
    assert!(!knows(&access, &good));
    let _server = TestServer::http_at(address, keys(&provider));
    // Nobody has to ask: it is tried again while there is no key.
    eventually("the keys are there", || knows(&access, &good));
}

#[test]
fn a_provider_that_is_slow_huge_or_answers_nonsense_delays_no_start_and_changes_no_keys() {
    let provider = Provider::new();
    let (good, unknown) = (provider.good("one"), {
        let mut other = Provider::new();
        other.add("two");
        other.good("two")
    });
    for slow in [Reply::Silence, Reply::Drip] {
        let server = TestServer::http(slow);
        let began = Instant::now();
        let access = start(&provider, server.url("/"), None, FAST);
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        assert!(!knows(&access, &good));
        server.reply(keys(&provider));
        eventually("it answers at last", || knows(&access, &good));
    }
    let server = TestServer::http(keys(&provider));
    let access = start(&provider, server.url("/"), None, FAST);
    let text = |text: &str| Reply::Answer(200, text.to_owned());
    for reply in [
        Reply::Endless,
        Reply::Silence,
        Reply::Raw(b"\0\xff\r\n\r\n"),
        Reply::Raw(b""),
        Reply::Answer(500, provider.announced()),
        Reply::Answer(302, provider.announced()),
        text(""),
        text("<html>sign in</html>"),
        text("[1"),
        text("{\"keys\":[]}"),
        text(&format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000))),
    ] {
        let before = server.requests().len();
        server.reply(reply.clone());
        eventually("the keys are read again", || {
            let _ = knows(&access, &unknown);
            server.requests().len() >= before + 2
        });
        assert!(knows(&access, &good), "the keys stay as they were: {reply:?}");
    }
}
