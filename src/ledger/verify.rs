//! Verifies the hash chain of the audit trail, and says which event is wrong.

use super::chain::{Beginning, EventHash, Head, Line, StoredEvent};
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::{self, BufRead, Read as _};

/// The problems that are reported one by one; further ones are only counted.
const MAX_PROBLEMS: usize = 100;
/// The most heads that are compared: ten for every hour of eleven years.
const MAX_HEADS: usize = 1_000_000;
/// The longest line of an export or of a file of heads. An event has two traffic documents at most, of 1 MiB each.
const MAX_LINE: u64 = 16 << 20;

/// Heads that were kept outside the data directory.
#[derive(Debug, Clone, Default)]
pub struct Heads {
    /// By the event that they name. Usually one for each event.
    by_event: BTreeMap<u64, Vec<Head>>,
    count: usize,
}

/// Verifies a chain, event by event. Keeps no events.
#[derive(Debug)]
pub struct Verifier {
    /// `None` until the first event of an export says it.
    chain: Option<String>,
    chained_later: Option<u64>,
    heads: Heads,
    heads_compared: usize,
    heads_of_others: usize,
    /// The event before, and the hashes that the next event may name as the one before it.
    last: u64,
    may_follow: Vec<EventHash>,
    last_hash: Option<EventHash>,
    events: u64,
    problems: Vec<Problem>,
    problem_count: usize,
}

/// What is wrong, with the event that shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    pub kind: ProblemKind,
    /// The number of the event, where the problem is at one.
    pub event: Option<u64>,
    /// A sentence.
    pub found: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ProblemKind {
    /// A field was altered.
    Altered,
    /// Events are missing.
    Removed,
    /// An event was written by another program.
    Inserted,
    /// Events stand in another order, or twice.
    Reordered,
    /// The chain was written again from some event on, or belongs to another data directory.
    Rewritten,
    /// A stored document is not the one that the audit trail names.
    Document,
    /// A token is not the one that the audit trail names.
    Token,
    /// An approval or a rejection is not the one that the audit trail names.
    Review,
    /// A line of an export is not an event.
    Unreadable,
}

/// The result of a verification.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verified {
    pub ok: bool,
    /// The identifier of the chain; `None` for an export without events.
    pub chain: Option<String>,
    pub events: u64,
    /// The number and the hash of the last event.
    pub last: u64,
    pub hash: Option<EventHash>,
    /// The last event that was written before the chain existed; its hash was added afterwards. `None` where this is not known.
    pub chained_later: Option<u64>,
    pub heads_compared: usize,
    /// Heads of other data directories, which say nothing about this one.
    pub heads_of_other_chains: usize,
    /// The first [`MAX_PROBLEMS`].
    pub problems: Vec<Problem>,
    pub problem_count: usize,
}

// === impl Heads ===

impl Heads {
    /// Reads heads: one JSON object per line, as in the file and the posts that the server sends, and in its log where that is JSON. Other
    /// lines are ignored.
    ///
    /// # Errors
    /// When the file cannot be read, has too many heads, or none.
    pub fn read(mut from: impl BufRead) -> io::Result<Heads> {
        let mut heads = Heads::default();
        while let Some(line) = next_line(&mut from)? {
            let Ok(value) = serde_json::from_str::<serde_json::Value>(&line) else { continue };
            if let Ok(head) = serde_json::from_value::<Head>(value) {
                heads.add(head)?;
            }
        }
        if heads.count == 0 {
            let words = "it has no head: expected lines such as {\"chain\":\"…\",\"id\":7,\"hash\":\"…\",\"ts\":\"…\"}";
            return Err(io::Error::new(io::ErrorKind::InvalidData, words));
        }
        Ok(heads)
    }

    fn add(&mut self, head: Head) -> io::Result<()> {
        let known = self.by_event.entry(head.id).or_default();
        if known.iter().any(|k| k.hash == head.hash && k.chain == head.chain) {
            return Ok(());
        }
        self.count += 1;
        if self.count > MAX_HEADS {
            let words = format!("it has more than {MAX_HEADS} heads: use its newest lines");
            return Err(io::Error::new(io::ErrorKind::InvalidData, words));
        }
        known.push(head);
        Ok(())
    }
}

/// The next line without its line feed. `None` at the end.
fn next_line(from: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    if from.take(MAX_LINE).read_until(b'\n', &mut line)? == 0 {
        return Ok(None);
    }
    if line.last() != Some(&b'\n') && line.len() as u64 == MAX_LINE {
        let words = format!("it has a line of more than {MAX_LINE} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, words));
    }
    Ok(Some(String::from_utf8_lossy(&line).trim_end().to_owned()))
}

// === impl Verifier ===

impl Verifier {
    /// Verifies an export. Its lines say to which chain they belong.
    #[must_use]
    pub fn of_export(heads: Heads) -> Verifier {
        Verifier {
            chain: None,
            chained_later: None,
            heads,
            heads_compared: 0,
            heads_of_others: 0,
            last: 0,
            may_follow: Vec::new(),
            last_hash: None,
            events: 0,
            problems: Vec::new(),
            problem_count: 0,
        }
    }

    /// Verifies the chain of a data directory.
    #[must_use]
    pub(super) fn of_ledger(beginning: &Beginning, heads: Heads) -> Verifier {
        let mut verifier = Verifier::of_export(heads);
        verifier.begin(&beginning.chain);
        verifier.chained_later = Some(beginning.chained_later);
        verifier
    }

    fn begin(&mut self, chain: &str) {
        let first = EventHash::first(chain);
        self.chain = Some(chain.to_owned());
        self.may_follow = vec![first];
        self.last_hash = Some(first);
        self.compare_heads(0, Some(first));
    }

    /// Verifies a whole export.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(mut self, mut from: impl BufRead) -> io::Result<Verified> {
        while let Some(line) = next_line(&mut from)? {
            self.line(&line);
        }
        Ok(self.finish(None))
    }

    /// Verifies a line of an export.
    pub fn line(&mut self, line: &str) {
        if line.trim().is_empty() {
            return;
        }
        let line: Line = match serde_json::from_str(line) {
            Ok(line) => line,
            Err(error) => {
                let after = self.last;
                let words = format!("the line after event {after} is not an event: {error}");
                return self.report(ProblemKind::Unreadable, None, words);
            }
        };
        match &self.chain {
            None => self.begin(&line.chain.clone()),
            Some(chain) if *chain != line.chain => {
                let event = StoredEvent::from(line);
                let words = format!("event {} belongs to another chain", event.id);
                return self.report(ProblemKind::Inserted, Some(event.id), words);
            }
            Some(_) => {}
        }
        self.event(&line.into());
    }

    /// Verifies the next event.
    pub fn event(&mut self, event: &StoredEvent) {
        let id = event.id;
        self.events += 1;
        let expected = self.last + 1;
        let follows = id == expected;
        if id > expected {
            self.report(ProblemKind::Removed, Some(expected), missing(expected, id - 1));
        } else if id < expected {
            let words = if id == self.last {
                format!("event {id} is there twice")
            } else {
                format!("event {id} stands after event {}", self.last)
            };
            self.report(ProblemKind::Reordered, Some(id), words);
        }
        let computed = event.computed();
        match (event.hash, computed) {
            (Some(hash), Some(computed)) if hash == computed => {}
            (None, _) | (_, None) => {
                let words = format!("event {id} has no hash: another program inserted it, or removed its hash");
                self.report(ProblemKind::Inserted, Some(id), words);
            }
            _ => {
                let words = format!("event {id} was altered: its hash is another one");
                self.report(ProblemKind::Altered, Some(id), words);
            }
        }
        // After a gap the link is broken too, which says nothing new.
        if follows && event.previous.is_some_and(|previous| !self.may_follow.contains(&previous)) {
            let words = if self.last == 0 {
                format!("event {id} does not begin this chain: the chain was written again, or is another one's")
            } else {
                format!(
                    "event {id} does not follow event {}: event {} was altered or replaced together with its hash",
                    self.last, self.last
                )
            };
            self.report(ProblemKind::Rewritten, Some(self.last.max(1)), words);
        }
        self.compare_heads(id, event.hash);
        // The event after an altered one is not reported for that: it may name either hash.
        self.may_follow = event.hash.into_iter().chain(computed).collect();
        if self.may_follow.is_empty() {
            // As the writer does after an event of another program.
            self.may_follow.extend(self.chain.as_deref().map(EventHash::first));
        }
        self.last = self.last.max(id);
        self.last_hash = event.hash;
    }

    /// Compares the heads that name this event.
    fn compare_heads(&mut self, id: u64, hash: Option<EventHash>) {
        for head in self.heads.by_event.remove(&id).unwrap_or_default() {
            if self.chain.as_ref() != Some(&head.chain) {
                self.heads_of_others += 1;
                continue;
            }
            self.heads_compared += 1;
            if hash != Some(head.hash) {
                let words = format!(
                    "event {id} is not the one that the head of {} names: the chain up to it was written again",
                    head.ts
                );
                self.report(ProblemKind::Rewritten, Some(id), words);
            }
        }
    }

    /// A stored value that does not fit the audit trail.
    pub(super) fn report(&mut self, kind: ProblemKind, event: Option<u64>, found: String) {
        self.problem_count += 1;
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(Problem { kind, event, found });
        }
    }

    /// The result. `counted`: how many events the database has numbered, where that is known.
    #[must_use]
    pub fn finish(mut self, counted: Option<u64>) -> Verified {
        let mut end = self.last;
        if let Some(counted) = counted.filter(|counted| *counted > end) {
            let words = format!("{}: the database has numbered {counted} events", missing(end + 1, counted));
            self.report(ProblemKind::Removed, Some(end + 1), words);
            end = counted;
        }
        for head in std::mem::take(&mut self.heads.by_event).into_values().flatten() {
            if self.chain.as_ref() != Some(&head.chain) {
                self.heads_of_others += 1;
                continue;
            }
            self.heads_compared += 1;
            if head.id > end {
                let words = format!("{}: the head of {} names event {}", missing(end + 1, head.id), head.ts, head.id);
                self.report(ProblemKind::Removed, Some(end + 1), words);
                end = head.id;
            }
        }
        if self.heads_compared == 0 && self.heads_of_others > 0 {
            let words = "no head belongs to this chain: the data directory is another one, or its ledger was replaced";
            self.report(ProblemKind::Rewritten, None, words.to_owned());
        }
        Verified {
            ok: self.problem_count == 0,
            chain: self.chain,
            events: self.events,
            last: self.last,
            hash: self.last_hash.filter(|_| self.last > 0),
            chained_later: self.chained_later,
            heads_compared: self.heads_compared,
            heads_of_other_chains: self.heads_of_others,
            problems: self.problems,
            problem_count: self.problem_count,
        }
    }
}

fn missing(from: u64, to: u64) -> String {
    if from == to { format!("event {from} is missing") } else { format!("the events {from} to {to} are missing") }
}
