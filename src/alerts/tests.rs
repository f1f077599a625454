//! The book: what begins, what ends, and what is told.

use super::book::{Book, Group};
use super::finding::{About, Alert, Finding, Now, Told};
use super::rule::{Rule, Severity};
use std::sync::Arc;
use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);
const RULES: &[Rule] = &[Rule::VersionFailed, Rule::Drift, Rule::MemoryFull];

fn finding(rule: Rule, model: &str) -> Finding {
    Finding {
        about: About::model(rule, &model.parse().unwrap()),
        severity: Severity::Warning,
        summary: format!("{model} is wrong"),
        how_sure: "certain".to_owned(),
        what_to_do: "nothing".to_owned(),
        since: None,
        training: None,
    }
}

/// A book and its clock.
struct Clock {
    book: Book,
    began: Now,
    seconds: u64,
}

impl Clock {
    fn new(end_after: u64) -> Clock {
        Clock::with(Vec::new(), end_after)
    }

    fn with(stored: Vec<Alert>, end_after: u64) -> Clock {
        let began = Now { ts: "2026-11-28T12:00:00Z".parse().unwrap(), at: Instant::now() };
        let book = Book::new(stored, Duration::from_secs(end_after), Duration::ZERO, began.at);
        Clock { book, began, seconds: 0 }
    }

    fn now(&self) -> Now {
        let passed = Duration::from_secs(self.seconds);
        Now { ts: self.began.ts.checked_add(passed).unwrap(), at: self.began.at + passed }
    }

    /// Looks after so many more seconds. Returns what is told: a sign and the model.
    fn look(&mut self, seconds: u64, findings: Option<Vec<Finding>>) -> Vec<String> {
        self.seconds += seconds;
        let now = self.now();
        self.book.look(now, &[(RULES, findings.map(Arc::new))], &[], |_, _| None);
        let groups = self.tell(|_| false);
        words(&groups)
    }

    fn tell(&mut self, silenced: impl Fn(&About) -> bool) -> Vec<Group> {
        let now = self.now();
        let groups = self.book.take_untold(now.at, silenced);
        self.book.stored(&groups, now.at);
        groups
    }
}

fn words(groups: &[Group]) -> Vec<String> {
    let word = |alert: &Alert| {
        let model = alert.about.model.as_ref().map_or("", |model| model.as_str());
        format!("{}{model}", if alert.is_firing() { "+" } else { "-" })
    };
    groups.iter().flat_map(|group| group.alerts.iter().map(word)).collect()
}

#[expect(clippy::unnecessary_wraps, reason = "what a source returns")]
fn failed(models: &[&str]) -> Option<Vec<Finding>> {
    Some(models.iter().map(|model| finding(Rule::VersionFailed, model)).collect())
}

#[test]
fn an_alert_is_told_once_when_it_begins_and_once_when_it_ends() {
    let mut clock = Clock::new(60);
    assert_eq!(clock.look(0, failed(&["a"])), ["+a"]);
    for _ in 0..20 {
        assert_eq!(clock.look(5, failed(&["a"])), [""; 0]);
    }
    assert_eq!(clock.look(59, failed(&[])), [""; 0], "it was gone for less than a minute");
    assert_eq!(clock.look(1, failed(&["a"])), [""; 0], "and is the same alert");
    assert_eq!(clock.look(60, failed(&[])), ["-a"]);
    assert_eq!(clock.look(60, failed(&[])), [""; 0]);
    let ended: Vec<&Alert> = clock.book.ended().collect();
    assert_eq!(ended.len(), 1);
    assert_eq!((ended[0].since.to_string().as_str(), ended[0].told), ("2026-11-28T12:00:00Z", Told::End));
}

#[test]
fn what_is_not_known_neither_begins_nor_ends_an_alert() {
    let mut clock = Clock::new(60);
    clock.look(0, failed(&["a"]));
    assert_eq!(clock.look(1000, None), [""; 0]);
    assert_eq!(clock.look(59, failed(&[])), [""; 0], "the time without knowledge does not count");
    assert_eq!(clock.look(1, failed(&[])), ["-a"]);
}

#[test]
fn an_alert_that_comes_and_goes_ends_later_each_time() {
    let mut clock = Clock::new(10);
    assert_eq!(clock.look(0, failed(&["a"])), ["+a"]);
    assert_eq!(clock.look(10, failed(&[])), ["-a"]);
    assert_eq!(clock.look(5, failed(&["a"])), ["+a"]);
    assert_eq!(clock.look(19, failed(&[])), [""; 0]);
    assert_eq!(clock.look(1, failed(&[])), ["-a"], "twice the time");
    clock.look(5, failed(&["a"]));
    assert_eq!(clock.look(39, failed(&[])), [""; 0]);
    assert_eq!(clock.look(1, failed(&[])), ["-a"], "four times");
    clock.look(5, failed(&["a"]));
    let told: usize = (0..50).map(|n| clock.look(40, failed(if n % 2 == 0 { &[] } else { &["a"] })).len()).sum();
    assert_eq!(told, 0, "a change every forty seconds is one alert");
    clock.look(7200, failed(&[]));
    clock.look(1, failed(&["a"]));
    assert_eq!(clock.look(10, failed(&[])), ["-a"], "after an hour it is forgotten");
}

#[test]
fn some_rules_wait_before_they_begin() {
    let mut clock = Clock::new(0);
    let full = || Some(vec![finding(Rule::MemoryFull, "a")]);
    assert_eq!(clock.look(0, full()), [""; 0]);
    assert_eq!(clock.look(29, full()), [""; 0]);
    assert_eq!(clock.look(0, Some(Vec::new())), [""; 0]);
    assert_eq!(clock.look(1, full()), [""; 0], "the time begins again");
    assert_eq!(clock.look(30, full()), ["+a"]);
}

#[test]
fn two_thousand_failures_are_one_group_and_their_number_is_limited() {
    let mut clock = Clock::new(60);
    let names: Vec<String> = (0..2_000).map(|n| format!("m{n}")).collect();
    let all = || Some(names.iter().map(|name| finding(Rule::VersionFailed, name)).collect());
    let now = clock.now();
    clock.book.look(now, &[(RULES, all().map(Arc::new))], &[], |_, _| None);
    let groups = clock.tell(|_| false);
    assert_eq!((groups.len(), groups[0].alerts.len()), (1, 2_000));
    let more: Vec<Finding> = (0..6_000).map(|n| finding(Rule::Drift, &format!("d{n}"))).collect();
    let both: Vec<Finding> = all().unwrap().into_iter().chain(more).collect();
    clock.look(5, Some(both));
    assert_eq!(clock.book.firing().count(), super::book::MOST_FIRING);
    assert_eq!(clock.book.untracked(), 3_000);
    clock.look(60, Some(Vec::new()));
    assert_eq!((clock.book.firing().count(), clock.book.untracked()), (0, 0));
    clock.look(5, Some(Vec::new()));
    assert!(clock.book.ended().count() <= 1_000, "{}", clock.book.ended().count());
}

#[test]
fn a_silence_holds_back_the_begin_and_not_the_end() {
    let mut clock = Clock::new(10);
    let look = |clock: &mut Clock, seconds, findings: Option<Vec<Finding>>, silenced: bool| {
        clock.seconds += seconds;
        let now = clock.now();
        clock.book.look(now, &[(RULES, findings.map(Arc::new))], &[], |_, _| None);
        words(&clock.tell(|_| silenced))
    };
    assert_eq!(look(&mut clock, 0, failed(&["a"]), true), [""; 0]);
    assert_eq!(look(&mut clock, 5, failed(&["a"]), false), ["+a"], "it still fires when the silence ends");
    assert_eq!(look(&mut clock, 10, failed(&[]), true), ["-a"], "who knows the begin is told the end");
    assert_eq!(look(&mut clock, 5, failed(&["b"]), true), [""; 0]);
    assert_eq!(look(&mut clock, 10, failed(&[]), true), [""; 0]);
    assert_eq!(look(&mut clock, 10, failed(&[]), false), [""; 0], "of what was silent until its end nobody is told");
}

#[test]
fn an_alert_that_ended_before_it_was_told_is_told_with_both() {
    let mut clock = Clock::new(0);
    let began = clock.now();
    clock.book = Book::new(Vec::new(), Duration::ZERO, 30 * SECOND, began.at);
    assert_eq!(clock.look(0, failed(&["a"])), ["+a"]);
    assert_eq!(clock.look(1, failed(&["a", "b"])), [""; 0], "messages about one rule are thirty seconds apart");
    assert_eq!(clock.look(1, failed(&["a"])), [""; 0]);
    assert_eq!(clock.look(28, failed(&["a", "c"])), ["+b", "-b", "+c"]);
}

#[test]
fn after_a_restart_nothing_is_told_twice_and_nothing_is_missing() {
    let mut clock = Clock::new(60);
    clock.look(0, failed(&["a", "b"]));
    clock.seconds += 5;
    let now = clock.now();
    clock.book.look(now, &[(RULES, failed(&["a", "b", "c"]).map(Arc::new))], &[], |_, _| None);
    let groups = clock.book.take_untold(now.at, |_| false);
    // The server ends before, or after, this is stored.
    let before: Vec<Alert> = clock.book.firing().filter(|alert| alert.told == Told::Begin).cloned().collect();
    let stored = clock.book.to_store(&groups);
    let after: Vec<Alert> = before.iter().cloned().chain(stored).collect();
    for (alerts, told) in [(before, vec!["+c"]), (after, vec![])] {
        let mut next = Clock::with(alerts, 60);
        assert_eq!(next.look(1, None), [""; 0]);
        assert_eq!(next.look(200, None), [""; 0], "while versions are loaded, nothing ends");
        assert_eq!(next.look(59, failed(&["a", "c"])), told);
        assert_eq!(next.look(60, failed(&["a", "c"])), ["-b"]);
    }
}

#[test]
fn a_rule_that_is_off_or_has_no_source_fires_no_alert() {
    let mut clock = Clock::new(0);
    clock.look(0, failed(&["a"]));
    let now = clock.now();
    clock.book.look(now, &[(RULES, failed(&["a", "b"]).map(Arc::new))], &[Rule::VersionFailed], |_, _| None);
    assert_eq!(words(&clock.tell(|_| false)), ["-a"]);
    clock.look(1, failed(&["a"]));
    clock.seconds += 1;
    let now = clock.now();
    clock.book.look(now, &[(&[Rule::Decay], failed(&["x"]).map(Arc::new))], &[], |_, _| None);
    assert_eq!(words(&clock.tell(|_| false)), ["-a"], "and a source reports its own rules only");
}

#[test]
fn names_of_rules_are_read_back_and_in_the_document() {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/ALERTS.md")).unwrap();
    for rule in Rule::ALL {
        assert_eq!(rule.as_str().parse(), Ok(rule));
        assert_eq!(serde_json::to_value(rule).unwrap(), rule.as_str());
        assert!(text.contains(&format!("`{rule}`")), "docs/ALERTS.md lacks {rule}");
    }
    assert!("Drift".parse::<Rule>().unwrap_err().to_string().contains("the rules are version_failed, "));
}
