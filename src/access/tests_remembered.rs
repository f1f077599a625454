//! What a connection proved last holds exactly as long as its credentials.

use super::tests::{Provider, bearer, claims, new};
use super::*;
use std::convert::Infallible;
use std::time::{Duration, Instant};

fn name(access: &Access, secret: &str, remembered: &Remembered) -> Result<String, String> {
    match access.identify(&bearer(secret), None, Some(remembered)) {
        Ok(identity) => Ok(identity.expect("there are credentials").name.clone()),
        Err(failure) => Err(failure.message),
    }
}

#[test]
fn a_remembered_token_is_gone_at_once_when_it_is_revoked() {
    let (anna, stored_anna) = new("anna", Role::Predict, "*", None).make().unwrap();
    let (ben, stored_ben) = new("ben", Role::Predict, "*", None).make().unwrap();
    let access = Access::start(Config::default(), &[stored_anna.clone(), stored_ben.clone()]).unwrap();
    let remembered = Remembered::default();
    for _ in 0..3 {
        assert_eq!(name(&access, &anna, &remembered), Ok("anna".to_owned()));
        assert_eq!(name(&access, &ben, &remembered), Ok("ben".to_owned()), "one connection may have several callers");
        assert!(name(&access, "wrong", &remembered).is_err());
        assert!(name(&access, &ben[..ben.len() - 1], &remembered).is_err(), "a beginning is not the token");
    }
    assert_eq!(name(&access, &anna, &remembered), Ok("anna".to_owned()));
    access.reload(|| Ok::<_, Infallible>(vec![stored_ben])).unwrap();
    assert!(name(&access, &anna, &remembered).unwrap_err().contains("revoked"));
    access.reload(|| Ok::<_, Infallible>(vec![stored_anna])).unwrap();
    assert_eq!(name(&access, &anna, &remembered), Ok("anna".to_owned()));
    let open = access.name_of(&bearer(&anna), None, &remembered).expect("an open plane names the holder of a token");
    assert_eq!(open.name, "anna");
    assert_eq!(access.take_uses().len(), 1, "a remembered token is used too");
}

#[test]
fn a_remembered_token_expires() {
    let soon = jiff::Timestamp::now() + Duration::from_secs(2);
    let (anna, stored) = new("anna", Role::Predict, "*", Some(soon)).make().unwrap();
    let access = Access::start(Config::default(), &[stored]).unwrap();
    let remembered = Remembered::default();
    let until = Instant::now() + Duration::from_mins(1);
    let mut accepted = 0;
    let refused = loop {
        match name(&access, &anna, &remembered) {
            Ok(_) => accepted += 1,
            Err(words) => break words,
        }
        assert!(Instant::now() < until, "the token has not expired");
        std::thread::park_timeout(Duration::from_millis(10));
    };
    assert!(accepted > 0 && refused.contains("expired"), "{accepted} {refused}");
}

#[test]
fn a_remembered_token_of_a_provider_holds_until_it_expires_or_the_keys_are_read_again() {
    let mut provider = Provider::new();
    provider.announce();
    let access = provider.start();
    let remembered = Remembered::default();
    let good = provider.good("one");
    assert!(name(&access, &good, &remembered).is_ok() && name(&access, &good, &remembered).is_ok());
    // It expires within two seconds: the leeway is 60 s.
    let mut short = claims();
    short["exp"] = (jiff::Timestamp::now().as_second() - 58).into();
    let short = provider.sign("one", jsonwebtoken::Algorithm::EdDSA, &short);
    assert!(name(&access, &short, &remembered).is_ok());
    let until = Instant::now() + Duration::from_mins(1);
    while name(&access, &short, &remembered).is_ok() {
        assert!(Instant::now() < until, "the token has not expired");
        std::thread::park_timeout(Duration::from_millis(10));
    }
    assert!(name(&access, &good, &remembered).is_ok());
    // The provider withdraws the key "one".
    provider.remove("one");
    provider.add("two");
    provider.announce();
    let two = provider.good("two");
    while name(&access, &two, &Remembered::default()).is_err() {
        assert!(Instant::now() < until + Duration::from_mins(1), "the new key is not found");
        std::thread::park_timeout(Duration::from_millis(10));
    }
    assert!(name(&access, &good, &remembered).unwrap_err().contains("unknown"), "its key is gone");
}
