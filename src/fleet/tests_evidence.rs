//! Hours of drift that several gateways close and judge, on a real NATS server.

use super::evidence::{Counted, Evidence};
use super::hours::Hours;
use super::rows::now_us;
use super::session::{SharedEvidence, connect};
use super::tests_followers::Nats;
use super::*;
use crate::drift::tests::{Fixture, model, profile};
use crate::drift::{Config as DriftConfig, together::Hour};
use crate::quality::Quality;
use crate::registry;
use std::collections::BTreeSet;
use std::future::Future;
use tempfile::TempDir;

const HOUR_US: i64 = 3_600_000_000;

/// What one gateway has.
struct Member {
    drift: Fixture,
    evidence: Evidence,
    counted: Counted,
    reader: registry::Reader,
    _keep: (registry::Writer, crate::ledger::LedgerWriter, TempDir),
}

impl Member {
    fn new(node: &str) -> Member {
        let config = Config { node: node.to_owned(), ..Config::default() };
        let drift = Fixture::new(DriftConfig::default(), Some(&profile(5000)));
        drift.drift.share();
        let evidence = Evidence::new(Board::new(&config), node.to_owned(), format!("id-{node}"));
        let data = TempDir::new().unwrap();
        let (ledger_writer, ledger) = crate::ledger::open(data.path()).unwrap();
        let counted = Counted { quality: Quality::default(), drift: drift.drift.clone(), ledger, hash_key: None };
        let (writer, reader) = registry::new();
        Member { drift, evidence, counted, reader, _keep: (writer, ledger_writer, data) }
    }

    fn hours<'a>(&'a self, shared: &'a SharedEvidence) -> Hours<'a> {
        let Member { evidence, counted, reader, .. } = self;
        let SharedEvidence { bucket, context, closed, prefix } = shared;
        Hours { evidence, counted, reader, bucket, context, closed, prefix }
    }

    fn offered(&self) -> u64 {
        self.drift.report().arms.iter().map(|arm| arm.offered).sum()
    }
}

/// Runs futures that never end until something holds.
async fn until(what: &str, holds: impl Fn() -> bool, work: impl Future<Output = Result<(), String>>) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        () = wait => {}
        ended = work => panic!("{what}: {ended:?}"),
        () = tokio::time::sleep(Duration::from_secs(30)) => panic!("within 30 s: {what}"),
    }
}

#[test]
fn an_hour_is_closed_once_with_what_all_had_told_and_every_gateway_judges_it() {
    let Some(nats) = Nats::start() else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let config = Config { urls: vec![nats.url.clone()], name: "shop".to_owned(), ..Config::default() };
    let mut members = ["a", "b", "c"].map(Member::new);
    let hour = now_us() / HOUR_US - 3;
    for (at, member) in members.iter_mut().enumerate() {
        member.drift.hour(hour, 100 + i64::try_from(at).unwrap(), |_, _| {});
        member.drift.hour(hour + 1, 50, |_, _| {});
        member.drift.drift.work((hour + 2) * HOUR_US + HOUR_US / 30);
    }
    runtime.block_on(async {
        let client = connect(&config).await.unwrap();
        let shared = SharedEvidence::open(&client, &config).await.unwrap();
        let [a, b, c] = members.each_ref().map(|member| member.hours(&shared));
        // Told twice, as after an answer that was lost.
        for hours in [&a, &b, &c, &b] {
            hours.last().await.unwrap();
        }
        assert_eq!(members[0].evidence.told(), Some(hour + 2));
        let closed =
            || members.iter().all(|member| member.counted.drift.closed(&model()).is_some_and(|of| of.hour == hour + 1));
        let close = async {
            tokio::select! { ended = a.close() => ended, ended = b.close() => ended, ended = c.close() => ended }
        };
        let judge = async {
            tokio::select! { ended = a.judge() => ended, ended = b.judge() => ended, ended = c.judge() => ended }
        };
        let both = async {
            tokio::select! { ended = close => ended, ended = judge => ended }
        };
        Box::pin(until("both hours are closed and judged by all", closed, both)).await;
        let info = shared.closed.get_info().await.unwrap();
        assert_eq!(info.state.messages, 2, "each hour is closed once");
        for member in &members {
            let closed = member.counted.drift.closed(&model()).unwrap();
            assert_eq!(closed.gateways, BTreeSet::from(["a", "b", "c"].map(str::to_owned)));
            assert_eq!(member.offered(), 100 + 101 + 102 + 150, "every row counts once");
        }
        let left = super::rows::keys(&shared.bucket, "tally.>").await.unwrap();
        assert_eq!(left, Vec::<String>::new(), "what was closed is removed");

        // One that comes late does not open it again, and one that starts anew judges the same.
        let stale = Hour::default().write().unwrap();
        shared.bucket.put(format!("tally.m.{hour}.id-x-1"), stale.into()).await.unwrap();
        shared.bucket.put("tally.m.1.id-x-1", b"garbage".to_vec().into()).await.unwrap();
        let gone = async {
            while !super::rows::keys(&shared.bucket, "tally.>").await.unwrap().is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Err("it is gone".to_owned())
        };
        let ended = tokio::select! { ended = a.close() => ended, ended = gone => ended };
        assert_eq!(ended, Err("it is gone".to_owned()));
        assert_eq!(shared.closed.get_info().await.unwrap().state.messages, 2);
        let new = Member::new("d");
        let hours = new.hours(&shared);
        let judged = || new.counted.drift.closed(&model()).is_some_and(|closed| closed.hour == hour + 1);
        until("a new gateway judges what was closed", judged, hours.judge()).await;
        assert_eq!(new.offered(), 453);
    });
}
