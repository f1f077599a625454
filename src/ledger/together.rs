//! One chain over the audit trails of all gateways of a fleet: the events of each, in the order in which the fleet took them.
//!
//! An event of a gateway is the line of its own export, with the hashes of its own chain. Here it gets the hash of the event before it in the fleet:
//! the SHA-256 of `sluicegate fleet audit 1` and a line feed, the 32 bytes of the hash before, and then the gateway, its chain, the number of the
//! event, the part, the number of parts, and the text: each as its length in bytes as a 64-bit number with the highest byte first, and the
//! text in UTF-8. Before the first event stands the SHA-256 of `sluicegate fleet audit chain `, the fleet's name and a line feed.

use super::chain::EventHash;
use super::verify::{Heads, Verified, Verifier};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// An event in the chain of a fleet, or a part of one that is too large for one message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FleetEvent {
    pub schema: u32,
    pub fleet: String,
    /// The gateway that made it.
    pub node: String,
    /// The chain of that gateway, and the event's number there.
    pub chain: String,
    pub event: u64,
    /// From 1 to `parts`.
    pub part: u32,
    pub parts: u32,
    /// The line of that gateway's export, or a part of it.
    pub text: String,
    pub previous: EventHash,
    pub hash: EventHash,
}

/// Verifies the chain of a fleet, and in it the chains of its gateways.
#[derive(Debug, Default)]
pub struct FleetVerifier {
    last: Option<(u64, EventHash)>,
    fleet: Option<String>,
    chains: BTreeMap<String, Chain>,
    events: u64,
    problems: Vec<String>,
    problem_count: usize,
}

/// One gateway's chain in it.
#[derive(Debug)]
struct Chain {
    node: String,
    verifier: Verifier,
    /// The parts of an event that is not whole yet.
    open: String,
    /// The event and the part that came last.
    at: (u64, u32, u32),
}

/// The result.
#[derive(Debug, Serialize)]
pub struct FleetVerified {
    pub ok: bool,
    pub fleet: Option<String>,
    /// Messages in the chain of the fleet, the number of the last one and its hash.
    pub messages: u64,
    pub last: u64,
    pub hash: Option<EventHash>,
    pub problems: Vec<String>,
    pub problem_count: usize,
    /// The chains of the gateways.
    pub gateways: Vec<GatewayVerified>,
}

#[derive(Debug, Serialize)]
pub struct GatewayVerified {
    pub node: String,
    #[serde(flatten)]
    pub verified: Verified,
}

const SCHEMA: u32 = 1;
const MAX_PROBLEMS: usize = 100;
/// The longest line of an event: two documents of 1 MiB, and their escapes.
const MAX_LINE: usize = 16 << 20;
const MAX_CHAINS: usize = 10_000;

/// A line of the answer of the API: the number of the message, its time, and the event.
#[derive(Debug, Serialize, Deserialize)]
pub struct FleetLine {
    pub id: u64,
    pub ts: String,
    #[serde(flatten)]
    pub event: FleetEvent,
}

impl FleetEvent {
    /// What stands before the first event of a fleet.
    #[must_use]
    pub fn first(fleet: &str) -> EventHash {
        EventHash::of_bytes([format!("sluicegate fleet audit chain {fleet}\n").as_bytes()])
    }

    /// The event after another one.
    #[must_use]
    pub fn after(
        previous: EventHash,
        fleet: &str,
        node: &str,
        of: (&str, u64),
        part: (u32, u32),
        text: &str,
    ) -> FleetEvent {
        let ((chain, event), (part, parts)) = (of, part);
        let mut next = FleetEvent {
            schema: SCHEMA,
            fleet: fleet.to_owned(),
            node: node.to_owned(),
            chain: chain.to_owned(),
            event,
            part,
            parts,
            text: text.to_owned(),
            previous,
            hash: previous,
        };
        next.hash = next.computed();
        next
    }

    fn computed(&self) -> EventHash {
        let (event, part, parts) = (self.event.to_string(), self.part.to_string(), self.parts.to_string());
        let texts = [&self.node, &self.chain, &event, &part, &parts, &self.text];
        let lengths = texts.map(|text| (text.len() as u64).to_be_bytes());
        let previous = self.previous.bytes();
        let head: [&[u8]; 2] = [b"sluicegate fleet audit 1\n", &previous];
        let tail = texts.iter().zip(&lengths).flat_map(|(text, length)| [&length[..], text.as_bytes()]);
        EventHash::of_bytes(head.into_iter().chain(tail))
    }
}

impl FleetVerifier {
    /// Verifies the next line of an export.
    pub fn line(&mut self, line: &str) {
        if line.trim().is_empty() {
            return;
        }
        let FleetLine { id, event, .. } = match serde_json::from_str(line) {
            Ok(line) => line,
            Err(error) => {
                let after = self.last.map_or(0, |(last, _)| last);
                return self.report(format!("the line after message {after} is no event of a fleet: {error}"));
            }
        };
        if event.schema != SCHEMA {
            return self.report(format!("message {id} has the form {}; this program reads {SCHEMA}", event.schema));
        }
        self.events += 1;
        let fleet = self.fleet.get_or_insert_with(|| event.fleet.clone()).clone();
        if event.fleet != fleet {
            self.report(format!("message {id} belongs to the fleet {:?}", event.fleet));
        }
        let (before, expected) = self.last.map_or((0, FleetEvent::first(&fleet)), |last| last);
        if id <= before {
            self.report(format!("message {id} stands after message {before}"));
        }
        if event.computed() != event.hash {
            self.report(format!("message {id} was altered: its hash is another one"));
        }
        if event.previous != expected {
            self.report(if before == 0 {
                format!("message {id} does not begin this chain: messages before it are missing, or the chain was written again")
            } else {
                format!("message {id} does not follow message {before}: one between them is missing, or was altered with its hash")
            });
        }
        self.last = Some((id, event.hash));
        self.of_gateway(id, event);
    }

    fn of_gateway(&mut self, id: u64, event: FleetEvent) {
        let FleetEvent { node, chain, event, part, parts, text, .. } = event;
        if !self.chains.contains_key(&chain) && self.chains.len() >= MAX_CHAINS {
            return self.report(format!("message {id}: more than {MAX_CHAINS} gateways"));
        }
        let of = self.chains.entry(chain).or_insert_with(|| Chain {
            node: node.clone(),
            verifier: Verifier::of_export(Heads::default()),
            open: String::new(),
            at: (0, 1, 1),
        });
        of.node = node;
        let (last, last_part, last_parts) = of.at;
        let follows = if last_part == last_parts { (last + 1, 1) } else { (last, last_part + 1) };
        of.at = (event, part, parts);
        if (event, part) != follows {
            let words = format!(
                "message {id}: expected event {} part {} of the gateway {}, found event {event} part {part}",
                follows.0, follows.1, of.node
            );
            of.open.clear();
            return self.report(words);
        }
        if of.open.len() + text.len() > MAX_LINE {
            of.open.clear();
            return self.report(format!("message {id}: the event has more than {MAX_LINE} bytes"));
        }
        of.open.push_str(&text);
        if part == parts {
            of.verifier.line(&std::mem::take(&mut of.open));
        }
    }

    fn report(&mut self, found: String) {
        self.problem_count += 1;
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(found);
        }
    }

    /// The result.
    #[must_use]
    pub fn finish(self) -> FleetVerified {
        let FleetVerifier { last, fleet, chains, events, problems, problem_count } = self;
        let gateways: Vec<GatewayVerified> = chains
            .into_values()
            .map(|of| GatewayVerified { node: of.node, verified: of.verifier.finish(None) })
            .collect();
        FleetVerified {
            ok: problem_count == 0 && gateways.iter().all(|of| of.verified.ok),
            fleet,
            messages: events,
            last: last.map_or(0, |(id, _)| id),
            hash: last.map(|(_, hash)| hash),
            problems,
            problem_count,
            gateways,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{self, Action, Change, Effect};

    /// The lines of a fleet with two gateways, as the API gives them. One event is in three parts.
    fn lines() -> Vec<String> {
        let mut lines = Vec::new();
        let mut previous = FleetEvent::first("shop");
        for node in ["a", "b"] {
            let data = tempfile::TempDir::new().unwrap();
            let (mut writer, reader) = ledger::open(data.path()).unwrap();
            for _ in 0..2 {
                let change = Change {
                    model: "m".parse().unwrap(),
                    actor: "anna".to_owned(),
                    action: Action::UnloadModel,
                    reason: None,
                    before: None,
                    after: None,
                    effect: Effect::SetModelUnloaded(true),
                };
                writer.commit(change).unwrap();
            }
            let chain = reader.head().unwrap().chain;
            for (at, line) in reader.export(0, 100, 1 << 20).unwrap().lines().enumerate() {
                let event = at as u64 + 1;
                let parts = if event == 2 { 3 } else { 1 };
                let size = line.len().div_ceil(parts);
                for part in 0..parts {
                    let text = &line[part * size..((part + 1) * size).min(line.len())];
                    let of = (u32::try_from(part + 1).unwrap(), u32::try_from(parts).unwrap());
                    let next = FleetEvent::after(previous, "shop", node, (&chain, event), of, text);
                    previous = next.hash;
                    let line = FleetLine { id: lines.len() as u64 + 1, ts: String::new(), event: next };
                    lines.push(serde_json::to_string(&line).unwrap());
                }
            }
        }
        lines
    }

    fn verified(lines: &[String]) -> FleetVerified {
        let mut verifier = FleetVerifier::default();
        for line in lines {
            verifier.line(line);
        }
        verifier.finish()
    }

    #[test]
    fn a_sound_chain_is_ok_and_whatever_is_changed_is_found() {
        let good = lines();
        let result = verified(&good);
        assert!(result.ok, "{result:?}");
        assert_eq!((result.messages, result.gateways.len(), result.last), (8, 2, 8));
        assert!(result.gateways.iter().all(|of| of.verified.events == 2));
        for at in 0..good.len() {
            let mut altered = good.clone();
            altered[at] = altered[at].replace("anna", "bert");
            let mut removed = good.clone();
            removed.remove(at);
            let mut twice = good.clone();
            twice.insert(at, good[at].clone());
            let mut renamed = good.clone();
            renamed[at] = renamed[at].replace("\"node\":\"", "\"node\":\"x");
            let last_is_gone = at + 1 == good.len();
            assert!(altered == good || !verified(&altered).ok, "altered {at}");
            assert!(last_is_gone || !verified(&removed).ok, "removed {at}");
            assert!(!verified(&twice).ok, "twice {at}");
            assert!(!verified(&renamed).ok, "renamed {at}");
        }
        let mut garbage = good.clone();
        garbage.insert(2, "{}".to_owned());
        assert!(!verified(&garbage).ok);
        assert!(verified(&[]).ok);
    }
}
