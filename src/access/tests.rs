use super::pattern::Models;
use super::secret;
use super::*;
use base64::Engine as _;
use http::HeaderValue;
use jiff::Timestamp;
use proptest::prelude::*;
use std::convert::Infallible;
use std::time::Duration;

fn started(config: Config, tokens: &[StoredToken]) -> Access {
    Access::start(config, tokens).unwrap()
}

fn token(name: &str, role: Role, models: &str) -> (String, StoredToken) {
    new(name, role, models, None).make().unwrap()
}

pub(super) fn new(name: &str, role: Role, models: &str, expires_at: Option<Timestamp>) -> NewToken {
    let grant = Grant { role, models: Models::of(models.split(',')).unwrap() };
    NewToken { name: name.to_owned(), grant, expires_at, created_by: "a test".to_owned() }
}

pub(super) fn bearer(secret: &str) -> HeaderMap {
    [(AUTHORIZATION, HeaderValue::try_from(format!("Bearer {secret}")).unwrap())].into_iter().collect()
}

#[track_caller]
pub(super) fn refused(access: &Access, headers: &HeaderMap, words: &str) {
    let failure = access.identify(headers, None, None).unwrap_err();
    assert_eq!(failure.code, Code::Unauthenticated);
    assert!(failure.message.contains(words), "{words:?} is not in {:?}", failure.message);
}

#[test]
fn a_token_identifies_its_holder_until_it_is_revoked() {
    let (anna, stored_anna) = token("anna", Role::Operator, "fraud-*,iris");
    let (bob, stored_bob) = token("bob", Role::Viewer, "*");
    let access = started(Config::default(), &[stored_anna.clone(), stored_bob]);
    let identity = access.identify(&bearer(&anna), None, None).unwrap().expect("a caller");
    assert_eq!((identity.name.as_str(), identity.via), ("anna", Via::Token));
    assert!(identity.may(Action::Operate, Some("fraud-eu")) && identity.may(Action::Predict, Some("iris")));
    assert!(!identity.may(Action::Operate, Some("risk")) && !identity.may(Action::Operate, None));
    assert!(!identity.may(Action::Administer, Some("iris")));
    assert_eq!(access.identify(&bearer(&bob), None, None).unwrap().expect("a caller").name, "bob");

    access.reload(|| Ok::<_, Infallible>(vec![stored_anna])).unwrap();
    refused(&access, &bearer(&bob), "revoked");
    assert!(access.identify(&bearer(&anna), None, None).is_ok(), "the other token stays");
}

#[test]
fn wrong_credentials_are_refused_and_none_are_nobody() {
    let (secret, stored) = token("anna", Role::Viewer, "*");
    let access = started(Config::default(), &[stored]);
    assert_eq!(access.identify(&HeaderMap::new(), None, None), Ok(None));
    let mut mistyped = secret.clone().into_bytes();
    mistyped[10] = if mistyped[10] == b'a' { b'b' } else { b'a' };
    for (text, words) in [
        (format!("Bearer {}", String::from_utf8(mistyped).unwrap()), "mistyped"),
        (format!("Bearer {}", &secret[..secret.len() - 1]), "cut"),
        ("Bearer ".to_owned(), "not one of this server"),
        ("Bearer".to_owned(), "not of the form"),
        (secret.clone(), "not of the form"),
        (format!("Basic {secret}"), "not of the form"),
        (format!("Bearer {}", token("other", Role::Admin, "*").0), "another server"),
        (format!("Bearer {}", "x".repeat(60_000)), "not one of this server"),
    ] {
        let headers: HeaderMap = [(AUTHORIZATION, HeaderValue::try_from(text).unwrap())].into_iter().collect();
        refused(&access, &headers, words);
    }
    let not_text: HeaderMap =
        [(AUTHORIZATION, HeaderValue::from_bytes(b"Bearer \xff\xfe").unwrap())].into_iter().collect();
    refused(&access, &not_text, "not of the form");
    let mut twice = bearer(&secret);
    twice.append(AUTHORIZATION, HeaderValue::from_static("Bearer x"));
    refused(&access, &twice, "more than one");
    let lower: HeaderMap =
        [(AUTHORIZATION, HeaderValue::try_from(format!("bearer   {secret}")).unwrap())].into_iter().collect();
    assert!(access.identify(&lower, None, None).unwrap().is_some(), "the scheme has no case (RFC 9110)");
}

#[test]
fn an_expired_token_is_refused_and_is_no_credential_to_start_with() {
    let past = Timestamp::now() - Duration::from_secs(1);
    let (secret, stored) = new("anna", Role::Admin, "*", Some(past)).make().unwrap();
    let access = started(Config::default(), &[stored]);
    refused(&access, &bearer(&secret), "expired");
    assert!(!access.has_credentials(true) && !access.has_admin_token());
    assert!(access.tokens()[0].is_expired(Timestamp::now()), "it is listed");
    let (_, predict) = token("shop", Role::Predict, "*");
    assert!(!started(Config::default(), &[predict]).has_credentials(true), "nobody could use the admin plane with it");
    let (_, limited) = token("eu", Role::Admin, "eu-*");
    assert!(!started(Config::default(), &[limited]).has_admin_token());
}

#[test]
fn the_last_use_is_kept_in_memory_and_over_a_reload() {
    let (secret, stored) = token("anna", Role::Viewer, "*");
    let access = started(Config::default(), std::slice::from_ref(&stored));
    assert_eq!((access.tokens()[0].last_used, access.take_uses()), (None, vec![]));
    access.identify(&bearer(&secret), None, None).unwrap();
    access.reload(|| Ok::<_, Infallible>(vec![stored])).unwrap();
    let used = access.tokens()[0].last_used.expect("it was used");
    assert_eq!(access.take_uses(), [("anna".to_owned(), used)]);
    assert_eq!(access.take_uses(), [], "each use is taken once");
}

#[test]
fn the_secret_has_a_form_that_scanners_find_and_is_stored_nowhere() {
    let (secret, stored) = token("anna", Role::Viewer, "*");
    let digits = secret.strip_prefix("sluice_").expect("the prefix");
    assert_eq!(digits.len(), 49);
    assert!(digits.bytes().all(|b| b.is_ascii_alphanumeric()), "{secret}");
    assert!(secret::is_whole(&secret));
    assert!(!format!("{stored:?}").contains(&secret[7..20]));
    // The largest number fits.
    assert!(secret::is_whole(&secret::of_bits([0xff; 32])) && secret::of_bits([0xff; 32]).len() == 56);
    assert_ne!(token("a", Role::Viewer, "*").0, token("a", Role::Viewer, "*").0);
}

#[test]
fn a_stored_token_that_cannot_be_read_is_nobodys() {
    let (secret, stored) = token("anna", Role::Viewer, "*");
    let access = started(Config::default(), &[StoredToken { role: "king".to_owned(), ..stored }]);
    refused(&access, &bearer(&secret), "unknown");
    assert_eq!(access.tokens(), []);
}

#[test]
fn a_refusal_says_what_would_be_needed_and_what_the_caller_has() {
    let (secret, stored) = token("anna", Role::Viewer, "fraud-*");
    let access = started(Config::default(), &[stored]);
    let anna = access.identify(&bearer(&secret), None, None).unwrap().unwrap();
    let words = |refused: Result<(), Failure>| refused.unwrap_err().message;
    assert_eq!(
        words(anna.check(Action::Operate, Some("iris"))),
        "this needs the role operator or admin for model \"iris\"; \"anna\" has viewer for fraud-*"
    );
    assert_eq!(
        words(anna.check(Action::View, None)),
        "this needs the role viewer, operator, approver or admin for all models; \"anna\" has viewer for fraud-*"
    );
    assert_eq!(
        words(anna.check_somewhere(Action::Predict)),
        "this needs the role predict, operator or admin; \"anna\" has viewer for fraud-*"
    );
    assert_eq!(anna.check(Action::View, Some("fraud-2")), Ok(()));
}

#[test]
fn tokens_of_files_are_valid_beside_stored_ones_and_survive_their_changes() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        std::fs::write(dir.path().join(name), text).unwrap();
        let grant = Grant { role: Role::Viewer, models: Models::of(["fraud-*"]).unwrap() };
        TokenRule { name: name.to_owned(), grant, file: dir.path().join(name) }
    };
    let secret = generate_token().unwrap();
    let (other, stored) = token("anna", Role::Operator, "*");
    let tokens = vec![file("metrics", &format!("{secret}\n"))];
    let access = started(Config { tokens, ..Config::default() }, std::slice::from_ref(&stored));
    let who =
        |secret: &str| access.identify(&bearer(secret), None, None).map(|identity| identity.unwrap().name.clone());
    assert_eq!((who(&secret).unwrap().as_str(), who(&other).unwrap().as_str()), ("metrics", "anna"));
    let metrics = access.identify(&bearer(&secret), None, None).unwrap().unwrap();
    assert!(metrics.may(Action::View, Some("fraud-1")) && !metrics.may(Action::View, Some("iris")));
    assert!(access.has_credentials(false) && !access.has_admin_token());
    access.reload(|| Ok::<_, ()>(Vec::new())).unwrap();
    assert!(
        who(&secret).is_ok() && who(&other).is_err(),
        "what the data directory loses does not touch the configured one"
    );
    assert_eq!(access.tokens()[0].created_by, "configuration");

    let refused = |rule: TokenRule| {
        let config = Config { tokens: vec![rule], ..Config::default() };
        Access::start(config, &[]).unwrap_err().to_string()
    };
    for text in ["", "secret", &secret[1..], &format!("{secret}{secret}"), &"x".repeat(100_000)] {
        let words = refused(file("wrong", text));
        assert!(words.contains("\"wrong\"") && words.contains("token generate") && !words.contains(&secret), "{words}");
    }
    let nowhere = TokenRule { file: dir.path().join("nowhere"), ..file("x", "") };
    assert!(refused(nowhere).contains("cannot be read"));
    let directory = TokenRule { file: dir.path().to_owned(), ..file("x", "") };
    assert!(refused(directory).contains("expected a file"));
}

#[test]
fn certificates_are_mapped_by_common_name_or_alternative_name() {
    let rule = |name: &str, role, models: &str| CertificateRule {
        name: name.to_owned(),
        grant: Grant { role, models: Models::of(models.split(',')).unwrap() },
    };
    let certificates = vec![
        rule("ops", Role::Operator, "iris"),
        rule("ops", Role::Approver, "fraud"),
        rule("spiffe://corp/anna", Role::Viewer, "*"),
    ];
    let access = started(Config { certificates, ..Config::default() }, &[]);
    assert!(access.has_credentials(true) && !access.has_credentials(false));
    let with = |subject: &str, names: &[&str]| ClientCertificate {
        subject: subject.to_owned(),
        names: names.iter().map(|name| (*name).to_owned()).collect(),
    };
    let of = |certificate: &ClientCertificate| access.identify(&HeaderMap::new(), Some(certificate), None).unwrap();
    let ops = of(&with("ops", &[])).expect("mapped");
    assert_eq!((ops.name.as_str(), ops.via, ops.grants.len()), ("ops", Via::Certificate, 2));
    assert!(ops.may(Action::Approve, Some("fraud")) && !ops.may(Action::Approve, Some("iris")));
    assert_eq!(of(&with("", &["a.example", "spiffe://corp/anna"])).expect("mapped").name, "spiffe://corp/anna");
    assert_eq!(of(&with("OPS", &["ops.example"])), None);
    let words = credentials_needed(Some(&with("nobody", &[]))).message;
    assert!(words.contains("\"nobody\"") && words.contains("[access]"), "{words}");
    let (secret, stored) = token("anna", Role::Viewer, "*");
    let access = started(Config { certificates: vec![rule("ops", Role::Admin, "*")], ..Config::default() }, &[stored]);
    let both = access.identify(&bearer(&secret), Some(&with("ops", &[])), None).unwrap().unwrap();
    assert_eq!(both.name, "anna", "a token says who uses the connection");
    assert!(
        access.identify(&bearer("wrong"), Some(&with("ops", &[])), None).is_err(),
        "a wrong token is never ignored"
    );
}

#[test]
fn patterns_match_whole_names() {
    let fits = |pattern: &str, name: &str| pattern.parse::<Pattern>().unwrap().fits(name);
    for (pattern, name) in [
        ("iris", "iris"),
        ("*", ""),
        ("fraud-*", "fraud-"),
        ("*-eu", "a-eu"),
        ("a*b*c", "abc"),
        ("a*b*c", "aXbYbZc"),
        ("**", "x"),
    ] {
        assert!(fits(pattern, name), "{pattern} {name}");
    }
    for (pattern, name) in [
        ("iris", "iris2"),
        ("iris", "Iris"),
        ("a*a", "a"),
        ("a*b*c", "acb"),
        ("*-eu", "-eu-x"),
        ("ab*ab", "ab"),
        ("a*", "ba"),
    ] {
        assert!(!fits(pattern, name), "{pattern} {name}");
    }
    for text in ["", "a b", "é", "a/b", "[a]", &"a".repeat(129)] {
        assert!(text.parse::<Pattern>().is_err(), "{text}");
    }
    assert_eq!(Models::of([]), Ok(Models::All));
    assert_eq!(Models::of(["a", "*"]), Ok(Models::All));
    assert!(Models::of(std::iter::repeat_n("a", 65)).unwrap_err().contains("too many"));
}

#[test]
fn names_of_tokens_can_stand_in_a_log_line_and_are_not_those_of_the_server() {
    for name in ["anna", "anna@example.org", "ci-1", "a.b_c+d"] {
        assert!(is_token_name(name), "{name}");
    }
    for name in ["", "local", "system", "a b", "a\n", "ä", &"a".repeat(65)] {
        assert!(!is_token_name(name), "{name}");
    }
}

#[test]
fn security_md_has_the_table_of_roles() {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/SECURITY.md")).unwrap();
    for role in Role::ALL {
        let cells: Vec<&str> =
            Action::ALL.iter().map(|action| if role.allows(*action) { "yes" } else { "–" }).collect();
        let row = format!("| `{role}` | {} |", cells.join(" | "));
        assert!(text.contains(&row), "docs/SECURITY.md has the row {row:?}");
    }
    let head: Vec<&str> = Action::ALL.iter().map(|action| action.as_str()).collect();
    assert!(text.contains(&format!("| role | {} |", head.join(" | "))));
}

/// A slow and simple matcher.
fn fits_simply(pattern: &[u8], name: &[u8]) -> bool {
    match pattern {
        [] => name.is_empty(),
        [b'*', rest @ ..] => (0..=name.len()).any(|at| fits_simply(rest, &name[at..])),
        [c, rest @ ..] => name.first() == Some(c) && fits_simply(rest, &name[1..]),
    }
}

proptest! {
    #[test]
    fn patterns_agree_with_a_simple_matcher(pattern in "[ab*]{1,8}", name in "[ab]{0,10}") {
        let fast = pattern.parse::<Pattern>().unwrap().fits(&name);
        prop_assert_eq!(fast, fits_simply(pattern.as_bytes(), name.as_bytes()));
    }

    #[test]
    fn any_change_of_a_secret_is_noticed(at in 7_usize..56, digit in "[0-9A-Za-z]") {
        let secret = secret::of_bits([7; 32]);
        let mut changed = secret.clone();
        changed.replace_range(at..=at, &digit);
        prop_assert_eq!(secret::is_whole(&changed), changed == secret);
    }
}

/// An identity provider with Ed25519 keys.
pub(super) struct Provider {
    dir: tempfile::TempDir,
    keys: Vec<(String, ring::signature::Ed25519KeyPair, Vec<u8>)>,
}

impl Provider {
    pub(super) fn new() -> Provider {
        let mut provider = Provider { dir: tempfile::tempdir().unwrap(), keys: Vec::new() };
        provider.add("one");
        provider
    }

    fn file(&self) -> std::path::PathBuf {
        self.dir.path().join("jwks.json")
    }

    /// Withdraws a key.
    pub(super) fn remove(&mut self, id: &str) {
        self.keys.retain(|(known, ..)| known != id);
    }

    /// Makes a key. It is known once it is announced.
    pub(super) fn add(&mut self, id: &str) {
        let random = ring::rand::SystemRandom::new();
        let pkcs8 = ring::signature::Ed25519KeyPair::generate_pkcs8(&random).unwrap().as_ref().to_vec();
        let pair = ring::signature::Ed25519KeyPair::from_pkcs8(&pkcs8).unwrap();
        self.keys.push((id.to_owned(), pair, pkcs8));
    }

    pub(super) fn announced(&self) -> String {
        use ring::signature::KeyPair as _;
        let x = |pair: &ring::signature::Ed25519KeyPair| {
            base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(pair.public_key().as_ref())
        };
        let keys: Vec<_> = self
            .keys
            .iter()
            .map(|(id, pair, _)| serde_json::json!({"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": id, "x": x(pair)}))
            .collect();
        serde_json::json!({"keys": keys}).to_string()
    }

    pub(super) fn announce(&self) {
        std::fs::write(self.file(), self.announced()).unwrap();
    }

    pub(super) fn config(&self) -> OidcConfig {
        let rule = |value: &str, role, models: &str| RoleRule {
            value: value.to_owned(),
            grant: Grant { role, models: Models::of(models.split(',')).unwrap() },
        };
        OidcConfig {
            issuer: "https://idp.example".to_owned(),
            audience: "sluicegate".to_owned(),
            keys: KeySource::File(self.file()),
            ca: None,
            refresh: Duration::from_mins(10),
            algorithms: vec![jsonwebtoken::Algorithm::EdDSA],
            leeway: Duration::from_mins(1),
            name_claim: "email".to_owned(),
            roles_claim: "realm.roles".to_owned(),
            roles: vec![rule("ops", Role::Operator, "fraud-*"), rule("risk", Role::Approver, "*")],
        }
    }

    pub(super) fn start(&self) -> Access {
        started(Config { oidc: Some(self.config()), ..Config::default() }, &[])
    }

    pub(super) fn sign(&self, id: &str, algorithm: jsonwebtoken::Algorithm, claims: &serde_json::Value) -> String {
        let (_, _, pkcs8) = self.keys.iter().find(|(known, ..)| known == id).unwrap();
        let header = jsonwebtoken::Header { kid: Some(id.to_owned()), ..jsonwebtoken::Header::new(algorithm) };
        let key = if algorithm == jsonwebtoken::Algorithm::HS256 {
            jsonwebtoken::EncodingKey::from_secret(b"shared")
        } else {
            jsonwebtoken::EncodingKey::from_ed_der(pkcs8)
        };
        jsonwebtoken::encode(&header, claims, &key).unwrap()
    }

    /// Signs the usual claims under any header.
    fn sign_with_header(&self, header: &serde_json::Value) -> String {
        let encode = |text: &str| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text);
        let signed = format!("{}.{}", encode(&header.to_string()), encode(&claims().to_string()));
        let signature = self.keys[0].1.sign(signed.as_bytes());
        format!("{signed}.{}", base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(signature.as_ref()))
    }

    pub(super) fn good(&self, id: &str) -> String {
        self.sign(id, jsonwebtoken::Algorithm::EdDSA, &claims())
    }
}

pub(super) fn claims() -> serde_json::Value {
    let now = Timestamp::now().as_second();
    serde_json::json!({
        "iss": "https://idp.example", "aud": ["other", "sluicegate"], "sub": "1234", "exp": now + 300, "nbf": now - 5,
        "email": "anna@example.org", "realm": {"roles": ["ops", "unknown"]},
    })
}

#[test]
fn a_token_of_the_identity_provider_gives_the_roles_of_its_claims() {
    let provider = Provider::new();
    provider.announce();
    let access = provider.start();
    let anna = access.identify(&bearer(&provider.good("one")), None, None).unwrap().unwrap();
    assert_eq!((anna.name.as_str(), anna.via, anna.grants.len()), ("anna@example.org", Via::Oidc, 1));
    assert!(anna.may(Action::Operate, Some("fraud-eu")) && !anna.may(Action::Operate, Some("iris")));
    let with = |member: &str, value: serde_json::Value| {
        let mut changed = claims();
        changed[member] = value;
        provider.sign("one", jsonwebtoken::Algorithm::EdDSA, &changed)
    };
    let both = with("realm", serde_json::json!({"roles": "risk ops"}));
    let both = access.identify(&bearer(&both), None, None).unwrap().unwrap();
    assert!(both.may(Action::Approve, Some("iris")) && both.may(Action::Operate, Some("fraud-1")));
    for roles in [
        serde_json::json!(null),
        serde_json::json!({"roles": []}),
        serde_json::json!({"roles": {"ops": true}}),
        serde_json::json!("ops"),
    ] {
        let nobody = access.identify(&bearer(&with("realm", roles)), None, None).unwrap().unwrap();
        assert!(nobody.grants.is_empty() && nobody.check_somewhere(Action::View).is_err());
    }
    let now = Timestamp::now().as_second();
    for (member, value, words) in [
        ("iss", serde_json::json!("https://evil.example"), "another issuer"),
        ("aud", serde_json::json!("other"), "another audience"),
        ("exp", serde_json::json!(now - 120), "has expired"),
        ("nbf", serde_json::json!(now + 120), "not valid yet"),
        ("iss", serde_json::json!(["https://idp.example", "https://evil.example"]), "another issuer"),
        ("nbf", serde_json::json!("never"), "is not a number"),
        ("nbf", serde_json::json!([0]), "cannot be accepted"),
        ("exp", serde_json::json!("9999999999"), "cannot be accepted"),
        ("exp", serde_json::json!(null), "cannot be accepted"),
        ("aud", serde_json::json!(null), "cannot be accepted"),
        ("email", serde_json::json!(null), "is not a name"),
        ("email", serde_json::json!("system"), "is not a name"),
        ("email", serde_json::json!("a\nb"), "is not a name"),
        ("email", serde_json::json!("x".repeat(200)), "is not a name"),
    ] {
        refused(&access, &bearer(&with(member, value)), words);
    }
    assert!(
        access.identify(&bearer(&with("exp", serde_json::json!(now - 30))), None, None).is_ok(),
        "within the leeway"
    );
    assert!(access.has_credentials(false));
}

#[test]
fn forged_tokens_of_an_identity_provider_are_refused() {
    let provider = Provider::new();
    provider.announce();
    let access = provider.start();
    let good = provider.good("one");
    let [head, body, signature] = good.split('.').collect::<Vec<_>>()[..] else { panic!("{good}") };
    let encode = |text: &str| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text);
    let none = encode(r#"{"alg":"none","typ":"JWT"}"#);
    // A token that brings its own key, or says where there is one.
    let stranger = Provider::new();
    let bringing = |member: &str, value: serde_json::Value| {
        let mut head = serde_json::json!({"alg": "EdDSA", "typ": "JWT", "kid": "one"});
        head[member] = value;
        stranger.sign_with_header(&head)
    };
    let set: serde_json::Value = serde_json::from_str(&stranger.announced()).unwrap();
    let critical = provider.sign_with_header(
        &serde_json::json!({"alg": "EdDSA", "typ": "JWT", "kid": "one", "crit": ["b64"], "b64": true}),
    );
    let mut admin = claims();
    admin["email"] = "root".into();
    let other_body = encode(&admin.to_string());
    for (token, words) in [
        (format!("{none}.{body}."), "not a JSON Web Token"),
        (format!("{head}.{other_body}.{signature}"), "wrong signature"),
        (format!("{head}.{body}."), "wrong signature"),
        (format!("{head}.{body}.{}", encode("x")), "wrong signature"),
        ("..".to_owned(), "not a JSON Web Token"),
        (format!("{head}.{}.{signature}", "x".repeat(20_000)), "longer than"),
        (provider.sign("one", jsonwebtoken::Algorithm::HS256, &claims()), "signed with HS256: expected EdDSA"),
        (Provider::new().good("one"), "wrong signature"),
        (bringing("jwk", set["keys"][0].clone()), "wrong signature"),
        (bringing("jku", "http://127.0.0.1:1/".into()), "wrong signature"),
        (bringing("x5u", "http://127.0.0.1:1/".into()), "wrong signature"),
        (critical, "an extension (crit)"),
        (format!("{good}.x"), "not one of this server"),
    ] {
        refused(&access, &bearer(&token), words);
    }
}

#[test]
fn keys_are_read_again_when_a_token_names_an_unknown_one_and_stay_when_that_fails() {
    let mut provider = Provider::new();
    provider.announce();
    let access = provider.start();
    assert!(access.identify(&bearer(&provider.good("one")), None, None).is_ok());
    std::fs::write(provider.file(), "{").unwrap();
    provider.add("two");
    let new = provider.good("two");
    refused(&access, &bearer(&new), "key \"two\", which is unknown");
    assert!(access.identify(&bearer(&provider.good("one")), None, None).is_ok(), "the keys stay as they were");
    assert_eq!(
        oidc::usable_keys("{"),
        Err("it is not JSON: EOF while parsing an object at line 1 column 1".to_owned())
    );
    assert!(oidc::usable_keys("{}").unwrap_err().contains("no list"));
    assert!(oidc::usable_keys(r#"{"keys":[]}"#).unwrap_err().contains("no key"));
    let mixed = provider.announced().replacen(
        "{\"keys\":[",
        "{\"keys\":[{\"kty\":\"new\"},7,{\"kty\":\"oct\",\"alg\":\"HS256\",\"k\":\"eA\"},",
        1,
    );
    assert_eq!(oidc::usable_keys(&mixed), Ok(2), "unknown kinds hide nothing, and shared secrets are no keys");
    provider.announce();
    let until = std::time::Instant::now() + Duration::from_secs(30);
    while access.identify(&bearer(&new), None, None).is_err() {
        assert!(std::time::Instant::now() < until, "the new key is found");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}
