//! Tests of the limits of callers.

use super::*;
use crate::access::Pattern;
use crate::model::{Code, Priority};
use std::num::NonZeroU32;
use std::time::Duration;

fn limits(max_in_flight: usize, rate: u32) -> Limits {
    Limits { max_in_flight, rate: NonZeroU32::new(rate), burst: None }
}

fn callers(limits: Limits, rules: Vec<Rule>) -> Arc<Callers> {
    Callers::new(Config { limits, rules })
}

fn name(name: &str) -> Key {
    Key::Name(name.into())
}

fn address(text: &str) -> Key {
    Key::Address(text.parse().unwrap())
}

fn rule(who: Who) -> Rule {
    Rule { who, priority: None, max_in_flight: None, rate: None, burst: None }
}

#[test]
fn a_caller_has_its_places_and_others_have_theirs() {
    let callers = callers(limits(3, 0), Vec::new());
    let now = Instant::now();
    let (greedy, other) = (callers.get(name("greedy"), now), callers.get(address("10.0.0.1"), now));
    let mut places: Vec<Place> = std::iter::from_fn(|| greedy.enter().ok()).take(10).collect();
    assert_eq!((places.len(), greedy.in_flight()), (3, 3));
    let failure = greedy.enter().unwrap_err();
    assert_eq!(failure.code, Code::TooManyRequests);
    assert_eq!(greedy.has_room(), Err(failure.clone()));
    assert!(failure.message.contains("3 requests of \"greedy\"") && failure.message.contains("callers.max_in_flight"));
    let held = other.enter().unwrap();
    assert_eq!(callers.share_of(100), 50, "two callers have requests in flight");
    drop(held);
    assert_eq!(callers.share_of(100), 100);
    places.pop();
    let again = callers.get(name("greedy"), now);
    assert!(again.enter().is_ok(), "another connection of the same caller, and one place is free");
    drop(places);
    assert_eq!((greedy.in_flight(), callers.share_of(7)), (0, 7));
}

#[test]
fn a_rate_says_when_the_next_request_may_come() {
    let callers = callers(limits(100, 10), Vec::new());
    let now = Instant::now();
    let caller = callers.get(address("10.0.0.1"), now);
    let taken = std::iter::from_fn(|| caller.send(now).ok()).take(100).count();
    // The burst is a second's worth. The clock goes on while this runs.
    assert!((10..=12).contains(&taken), "{taken}");
    let failure = caller.send(now).unwrap_err();
    assert!(failure.message.contains("the address 10.0.0.1 may send 10 requests per second"), "{failure}");
    let wait = failure.retry_after.unwrap();
    assert!(wait <= Duration::from_millis(100), "{wait:?}");
    assert_eq!(caller.in_flight(), 0, "the rate takes no places");
}

#[test]
fn the_first_rule_that_fits_applies() {
    let batch = Rule { priority: Some(Priority::Batch), ..rule(Who::Name(Pattern::for_callers("nightly-*").unwrap())) };
    let network = Rule { max_in_flight: Some(1), ..rule(Who::Address(Network::parse("10.1.0.0/16").unwrap())) };
    let all = Rule { max_in_flight: Some(2), ..rule(Who::Name(Pattern::for_callers("*").unwrap())) };
    let callers = callers(limits(9, 0), vec![batch, network, all]);
    let now = Instant::now();
    let places = |key| {
        let caller = callers.get(key, now);
        let places: Vec<_> = std::iter::from_fn(|| caller.enter().ok()).take(20).collect();
        (places.len(), caller.priority())
    };
    assert_eq!(places(name("nightly-scores")), (9, Priority::Batch));
    assert_eq!(places(name("anna@bank")), (2, Priority::Interactive));
    assert_eq!(places(name("10.1.2.3")), (2, Priority::Interactive), "a name is not an address");
    assert_eq!(places(address("10.1.2.3")), (1, Priority::Interactive));
    assert_eq!(places(address("10.2.2.3")), (9, Priority::Interactive));
}

#[test]
fn new_settings_apply_to_known_callers() {
    let callers = callers(limits(9, 0), Vec::new());
    let now = Instant::now();
    let caller = callers.get(name("a"), now);
    let held: Vec<_> = (0..5).map(|_| caller.enter().unwrap()).collect();
    callers.apply(Config { limits: limits(3, 0), rules: Vec::new() });
    assert!(caller.enter().is_err());
    drop(held);
    assert!(caller.enter().is_ok());
}

#[test]
fn networks_are_read_and_matched() {
    for wrong in [
        "",
        "10.0.0",
        "10.0.0.1/16",
        "10.0.0.0/33",
        "10.0.0.0/",
        "10.0.0.0/+8",
        "x",
        "::1/129",
        "::1/64",
        "10.0.0.0/999",
    ] {
        assert_eq!(Network::parse(wrong), None, "{wrong}");
    }
    let fits = |network: &str, address: &str| {
        let config = Config {
            limits: limits(1, 0),
            rules: vec![Rule { max_in_flight: Some(2), ..rule(Who::Address(Network::parse(network).unwrap())) }],
        };
        config.of(&Key::Address(address.parse().unwrap())).0.max_in_flight == 2
    };
    assert!(fits("10.0.0.1", "10.0.0.1") && !fits("10.0.0.1", "10.0.0.2"));
    assert!(fits("0.0.0.0/0", "1.2.3.4") && !fits("0.0.0.0/0", "::1"));
    assert!(fits("2001:db8::/32", "2001:db8:1::") && !fits("2001:db8::/32", "2001:db9::"));
    assert!(fits("::/0", "2001:db9::") && !fits("10.0.0.0/31", "10.0.0.2"));
}

#[test]
fn the_busiest_callers_come_first_and_old_requests_are_forgotten() {
    let callers = callers(limits(2, 0), Vec::new());
    let start = Instant::now();
    let (busy, quiet) = (callers.get(name("busy"), start), callers.get(address("10.0.0.1"), start));
    for _ in 0..5 {
        busy.send(start).unwrap();
    }
    let held = [quiet.enter().unwrap(), quiet.enter().unwrap()];
    (0..3).for_each(|_| quiet.send(start).unwrap());
    (0..2).for_each(|_| quiet.count_refused(start));
    let facts = callers.busiest(10, start);
    let seen: Vec<_> = facts.iter().map(|f| (&*f.caller, f.last_minute, f.refused_last_minute, f.in_flight)).collect();
    assert_eq!(seen, [("busy", 5, 0, 0), ("10.0.0.1", 3, 2, 2)]);
    assert_eq!(callers.busiest(1, start).len(), 1);
    let later = start + Duration::from_secs(55);
    busy.send(later).unwrap();
    assert_eq!(callers.busiest(1, later)[0].last_minute, 6);
    let much_later = start + Duration::from_secs(75);
    assert_eq!(callers.busiest(1, much_later)[0].last_minute, 1);
    assert_eq!(callers.busiest(1, much_later)[0].idle, Duration::from_secs(20));
    drop(held);
}

#[test]
fn callers_are_bounded_and_those_in_use_stay() {
    let callers = callers(limits(2, 0), Vec::new());
    let now = Instant::now();
    let used = callers.get(name("used"), now);
    for number in 0..MOST + 100 {
        let at = now + Duration::from_millis(u64::try_from(number).unwrap());
        let key = Key::Address(std::net::Ipv4Addr::from_bits(u32::try_from(number).unwrap()).into());
        callers.get(key, at).send(at).unwrap();
    }
    assert!(callers.lock().callers.len() <= MOST);
    assert!(Arc::ptr_eq(&used, &callers.get(name("used"), now)));
    let newest = Key::Address(std::net::Ipv4Addr::from_bits(u32::try_from(MOST + 99).unwrap()).into());
    assert!(callers.lock().callers.contains_key(&newest) && !callers.lock().callers.contains_key(&address("0.0.0.0")));
}
