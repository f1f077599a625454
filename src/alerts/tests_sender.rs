//! Delivery to a server on this machine: order, tries, what is dropped, and what is sent again.

use super::book::Book;
use super::finding::{About, Finding, Now};
use super::message::{Message, Sender};
use super::rule::{Rule, Severity};
use super::sender::{Outlet, Shared, deliver, refresh};
use super::store::{Batch, NewMessage, Store};
use super::target::{Hidden, Kind, Send, Target};
use crate::outbound::test_server::{Reply, TestServer};
use crate::telemetry::Telemetry;
use jiff::Timestamp;
use serde_json::Value;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

struct Fixture {
    outlet: Outlet,
    shared: Shared,
    telemetry: Telemetry,
}

fn target(kind: Kind, url: String, ca: Option<PathBuf>) -> Target {
    Target {
        name: "ops".to_owned(),
        kind,
        url: Hidden::Here(url),
        ca,
        secret: None,
        send: Send { alerts: true, events: Vec::new() },
        min_severity: Severity::Warning,
        timeout: Duration::from_secs(5),
    }
}

fn sender() -> Sender {
    Sender { gateway: "test".to_owned(), console: String::new() }
}

impl Fixture {
    fn new(target: Target) -> Fixture {
        let telemetry = Telemetry::new();
        let now = Now::read();
        let book = Book::new(Vec::new(), Duration::ZERO, Duration::ZERO, now.at);
        let shared = Shared {
            store: Arc::new(Store::in_memory()),
            book: Arc::new(Mutex::new(book)),
            sender: sender(),
            keep_for: Duration::from_hours(1),
        };
        Fixture { outlet: Outlet::new(target, &telemetry), shared, telemetry }
    }

    fn put(&self, key: &str, created: Timestamp) {
        let message = Message { key: key.to_owned(), ..Message::test(&sender(), created) };
        let body = serde_json::to_string(&message).unwrap();
        let message = NewMessage { target: "ops".to_owned(), key: key.to_owned(), body };
        self.shared
            .store
            .store(&Batch { messages: vec![message], most_waiting: 100, ..Batch::default() }, created)
            .unwrap();
    }

    /// Tries the oldest message: whether it is done with.
    fn try_oldest(&self, failures: u32) -> Option<bool> {
        let waiting = self.shared.store.next("ops").unwrap()?;
        deliver(&self.outlet, &self.shared, &mut None, &waiting, failures)
    }

    fn waiting(&self) -> usize {
        self.shared.store.waiting("ops").unwrap()
    }
}

fn keys(server: &TestServer) -> Vec<String> {
    let body = |text: &str| serde_json::from_str::<Value>(text).unwrap()["key"].as_str().unwrap().to_owned();
    server.requests().iter().map(|got| body(&got.body)).collect()
}

#[test]
fn a_message_that_fails_is_tried_again_before_the_next_one_and_put_into_the_outbox_once() {
    let server = TestServer::http(Reply::Answer(500, String::new()));
    let fixture = Fixture::new(target(Kind::Webhook, server.url("/"), None));
    for key in ["a", "b", "a"] {
        fixture.put(key, Timestamp::now());
    }
    assert_eq!(fixture.waiting(), 2, "a key is in it once");
    assert_eq!((fixture.try_oldest(0), fixture.try_oldest(100)), (Some(false), Some(false)));
    assert_eq!(fixture.outlet.status().last_error.as_deref(), Some("the answer has the status 500"));
    server.reply(Reply::Answer(201, "anything".to_owned()));
    assert_eq!((fixture.try_oldest(2), fixture.try_oldest(0), fixture.try_oldest(0)), (Some(true), Some(true), None));
    assert_eq!(keys(&server), ["a", "a", "a", "b"]);
    let status = fixture.outlet.status().clone();
    assert_eq!((status.sent, status.failed, status.dropped, status.last_error), (2, 2, 0, None));
    let text = fixture.telemetry.render();
    assert!(text.contains("sluicegate_alert_messages_sent_total{target=\"ops\"} 2"), "{text}");
    assert!(text.contains("sluicegate_alert_messages_failed_total{target=\"ops\"} 2"), "{text}");
}

#[test]
fn a_message_is_dropped_when_it_is_too_old_or_was_called_wrong_six_times() {
    let server = TestServer::http(Reply::Answer(400, String::new()));
    let fixture = Fixture::new(target(Kind::Webhook, server.url("/"), None));
    let now = Timestamp::now();
    fixture.put("old", now.checked_sub(Duration::from_secs(3601)).unwrap());
    fixture.put("wrong", now);
    fixture.put("of the future", now.checked_add(Duration::from_hours(48)).unwrap());
    assert_eq!(fixture.try_oldest(0), Some(true));
    assert_eq!(keys(&server), [""; 0], "an old one is not sent");
    let tries: Vec<Option<bool>> = (0..6).map(|failures| fixture.try_oldest(failures)).collect();
    assert_eq!(tries, [[Some(false)].repeat(5), vec![Some(true)]].concat());
    server.reply(Reply::Answer(200, String::new()));
    assert_eq!(fixture.try_oldest(0), Some(true), "a clock that was set back makes nothing old");
    assert_eq!((fixture.waiting(), fixture.outlet.status().dropped), (0, 2));
    let text = fixture.telemetry.render();
    for reason in ["age", "refused"] {
        let series = format!("sluicegate_alert_messages_dropped_total{{target=\"ops\",reason=\"{reason}\"}} 1");
        assert!(text.contains(&series), "{text}");
    }
}

#[test]
fn a_target_over_https_must_be_signed_by_its_authority() {
    let dir = tempfile::TempDir::new().unwrap();
    let (server, ca) = TestServer::https(&dir.path().join("a"), "localhost", Reply::Answer(204, String::new()));
    let (_other, other_ca) = TestServer::https(&dir.path().join("b"), "localhost", Reply::Silence);
    let url = server.url("/secret-path");
    let fixture = Fixture::new(target(Kind::Slack, url.clone(), Some(other_ca)));
    fixture.put("a", Timestamp::now());
    assert_eq!(fixture.try_oldest(0), Some(false));
    let error = fixture.outlet.status().last_error.clone().unwrap();
    assert!(error.contains("none of the authorities to trust has signed it") && !error.contains("secret"), "{error}");
    assert_eq!(server.requests().len(), 0, "nothing was sent");
    let fixture = Fixture::new(target(Kind::Slack, url, Some(ca)));
    fixture.put("a", Timestamp::now());
    assert_eq!(fixture.try_oldest(0), Some(true));
    assert_eq!(server.requests()[0].body, "{\"text\":\"A test of the alerts of Sluicegate on test.\"}");
}

#[test]
fn alertmanager_gets_what_still_fires_again_and_not_what_was_never_told() {
    let server = TestServer::http(Reply::Answer(200, String::new()));
    let fixture = Fixture::new(target(Kind::Alertmanager, server.url("/am/"), None));
    let now = Now::read();
    let finding = |model: &str| Finding {
        about: About::model(Rule::Drift, &model.parse().unwrap()),
        severity: Severity::Warning,
        summary: "s".to_owned(),
        how_sure: "h".to_owned(),
        what_to_do: "w".to_owned(),
        since: None,
        training: None,
    };
    {
        let mut book = fixture.shared.book.lock().unwrap();
        book.look(now, &[(&[Rule::Drift], Some(Arc::new(vec![finding("a"), finding("silenced")])))], &[], |_, _| None);
        let silent = |about: &About| about.model.as_ref().is_some_and(|model| model.as_str() == "silenced");
        let groups = book.take_untold(now.at, silent);
        book.stored(&groups, now.at);
    }
    refresh(&fixture.outlet, &fixture.shared, &mut None);
    let got = server.requests().pop().unwrap();
    assert!(got.head.starts_with("POST /am/api/v2/alerts HTTP/1.1\r\n"), "{}", got.head);
    let posted: Value = serde_json::from_str(&got.body).unwrap();
    let models: Vec<&Value> = posted.as_array().unwrap().iter().map(|alert| &alert["labels"]["model"]).collect();
    assert_eq!(models, ["a"]);
    let ends: Timestamp = posted[0]["endsAt"].as_str().unwrap().parse().unwrap();
    let ahead = ends.duration_since(Timestamp::now()).as_secs();
    assert!((200..=300).contains(&ahead), "beyond the next refresh, and within Alertmanager's five minutes: {ahead}");
}
