//! Which alerts fire: begins and ends them from what is found at each look. Pure: it reads no clock and stores nothing.

use super::finding::{About, Alert, ChangeBefore, Finding, Now, Told};
use super::rule::Rule;
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The most alerts that fire at the same time; further findings are only counted. Two thousand models with a failed version each fit.
pub(super) const MOST_FIRING: usize = 5_000;
/// Alerts that ended are kept this long, and at most so many of them.
const KEEP_ENDED: Duration = Duration::from_hours(7 * 24);
const MOST_ENDED: usize = 1_000;
/// Begins within this time count as flapping, and lengthen the time after which an alert ends.
const FLAPPING: Duration = Duration::from_hours(1);
/// The longest time that a finding must be gone.
const LONGEST_END: Duration = Duration::from_hours(1);
/// The most alerts of one look for which the change before is searched.
const MOST_CHANGES: usize = 500;
/// The most bytes of each text of an alert.
const MOST_TEXT: usize = 1_000;

/// All alerts.
#[derive(Debug)]
pub(super) struct Book {
    /// How long a finding must be gone before its alert ends.
    end_after: Duration,
    /// The least time between two messages about one rule.
    group: Duration,
    firing: BTreeMap<About, Firing>,
    /// Findings that have not lasted long enough, with the time at which they were first seen.
    pending: BTreeMap<About, Instant>,
    /// Newest first.
    ended: VecDeque<Alert>,
    begins: HashMap<About, Vec<Instant>>,
    told_at: HashMap<Rule, Instant>,
    /// Findings of the last look that did not fit.
    untracked: usize,
    /// Alerts that are not stored as they are, and stored ones that are not kept any more.
    dirty: BTreeSet<String>,
    removed: Vec<String>,
}

#[derive(Debug)]
struct Firing {
    alert: Alert,
    seen: Instant,
}

/// What one source found: its rules, and the findings; `None` where it cannot tell.
pub(super) type Looked = (&'static [Rule], Option<Arc<Vec<Finding>>>);

/// Alerts of one rule that the targets do not know yet, or whose end they do not know.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Group {
    pub rule: Rule,
    /// In the order in which they began and ended.
    pub alerts: Vec<Alert>,
}

// === impl Book ===

impl Book {
    /// With the alerts that were stored. Those that fire do not end before `end_after` has passed again.
    pub(super) fn new(stored: Vec<Alert>, end_after: Duration, group: Duration, at: Instant) -> Book {
        let (firing, mut ended): (Vec<Alert>, Vec<Alert>) = stored.into_iter().partition(Alert::is_firing);
        ended.sort_by_key(|alert| std::cmp::Reverse(alert.until));
        Book {
            end_after,
            group,
            firing: firing.into_iter().map(|alert| (alert.about.clone(), Firing { alert, seen: at })).collect(),
            pending: BTreeMap::new(),
            ended: ended.into(),
            begins: HashMap::new(),
            told_at: HashMap::new(),
            untracked: 0,
            dirty: BTreeSet::new(),
            removed: Vec::new(),
        }
    }

    /// Takes what all sources found. `off`: rules that are switched off. `change_before` finds the change before an alert.
    pub(super) fn look(
        &mut self,
        now: Now,
        looked: &[Looked],
        off: &[Rule],
        mut change_before: impl FnMut(&About, Timestamp) -> Option<ChangeBefore>,
    ) {
        let mut known: BTreeSet<Rule> = BTreeSet::new();
        let mut found: BTreeMap<&About, &Finding> = BTreeMap::new();
        for (rules, findings) in looked {
            match findings {
                // Nothing is known about these rules: their alerts stay as they are.
                None => {
                    let of_these = self.firing.values_mut().filter(|firing| rules.contains(&firing.alert.about.rule));
                    of_these.for_each(|firing| firing.seen = now.at);
                    self.pending.retain(|about, _| !rules.contains(&about.rule));
                }
                Some(findings) => {
                    let own = |finding: &&Finding| rules.contains(&finding.about.rule);
                    found.extend(findings.iter().filter(own).map(|finding| (&finding.about, finding)));
                }
            }
            known.extend(rules.iter().copied());
        }
        found.retain(|about, _| !off.contains(&about.rule));
        self.pending.retain(|about, _| found.contains_key(about));
        self.forget_old(now);
        self.untracked = 0;
        let mut searched = 0;
        for (about, finding) in found {
            if let Some(firing) = self.firing.get_mut(about) {
                firing.seen = now.at;
                firing.alert.renew(finding);
                continue;
            }
            let first = *self.pending.entry(about.clone()).or_insert(now.at);
            if now.at.saturating_duration_since(first) < about.rule.begins_after() {
                continue;
            }
            if self.firing.len() >= MOST_FIRING {
                self.untracked += 1;
                self.pending.remove(about);
                continue;
            }
            self.pending.remove(about);
            searched += 1;
            let since = finding.since.map_or(now.ts, |since| since.min(now.ts));
            let change = if searched > MOST_CHANGES { None } else { change_before(about, since) };
            self.begin(now, finding, since, change);
        }
        let over = |firing: &Firing| {
            let rule = firing.alert.about.rule;
            let gone = now.at.saturating_duration_since(firing.seen);
            let enough = || if known.contains(&rule) { self.end_after_of(&firing.alert) } else { self.end_after };
            off.contains(&rule) || !gone.is_zero() && gone >= enough()
        };
        let over: Vec<About> =
            self.firing.iter().filter(|(_, firing)| over(firing)).map(|(about, _)| about.clone()).collect();
        for about in over {
            if let Some(Firing { mut alert, .. }) = self.firing.remove(&about) {
                alert.until = Some(now.ts);
                self.dirty.insert(alert.id.clone());
                self.ended.push_front(alert);
            }
        }
    }

    fn begin(&mut self, now: Now, finding: &Finding, since: Timestamp, change_before: Option<ChangeBefore>) {
        let Finding { about, severity, summary, how_sure, what_to_do, since: _, training } = finding;
        let begins = self.begins.entry(about.clone()).or_default();
        begins.push(now.at);
        let begun = u32::try_from(begins.len()).unwrap_or(u32::MAX);
        let alert = Alert {
            id: id_of(about, now.ts),
            about: about.clone(),
            severity: *severity,
            since,
            until: None,
            summary: cut(summary).into_owned(),
            how_sure: cut(how_sure).into_owned(),
            what_to_do: cut(what_to_do).into_owned(),
            change_before,
            training: *training,
            begun,
            told: Told::Nothing,
        };
        self.dirty.insert(alert.id.clone());
        self.firing.insert(about.clone(), Firing { alert, seen: now.at });
    }

    /// An alert that begins again and again ends later each time.
    fn end_after_of(&self, alert: &Alert) -> Duration {
        let doublings = alert.begun.saturating_sub(1).min(16);
        self.end_after.saturating_mul(1 << doublings).min(LONGEST_END.max(self.end_after))
    }

    fn forget_old(&mut self, now: Now) {
        self.begins.retain(|_, begins| {
            begins.retain(|at| now.at.saturating_duration_since(*at) < FLAPPING);
            !begins.is_empty()
        });
        let oldest = now.ts.checked_sub(KEEP_ENDED).unwrap_or(Timestamp::MIN);
        let old = |alert: &Alert| alert.until.is_some_and(|until| until < oldest);
        let mut kept = 0;
        let removed = &mut self.removed;
        self.ended.retain(|alert| {
            // What is still to be told is kept. Its number is limited too.
            let keep = kept < MOST_ENDED && !old(alert) || kept < MOST_FIRING && alert.told != Told::End;
            kept += usize::from(keep);
            if !keep {
                removed.push(alert.id.clone());
            }
            keep
        });
    }

    // === telling ===

    /// What is to be told now, one group for each rule. An alert that ended before it was told is in it twice: as it began and as it ended.
    /// A silenced one waits; once it ends, nothing is told.
    pub(super) fn take_untold(&mut self, at: Instant, silenced: impl Fn(&About) -> bool) -> Vec<Group> {
        let mut groups: BTreeMap<Rule, Vec<Alert>> = BTreeMap::new();
        let recently = |rule: Rule, told_at: &HashMap<Rule, Instant>| {
            told_at.get(&rule).is_some_and(|last| at.saturating_duration_since(*last) < self.group)
        };
        for alert in self.ended.iter_mut().rev() {
            match alert.told {
                Told::End => {}
                Told::Nothing if silenced(&alert.about) => {
                    alert.told = Told::End;
                    self.dirty.insert(alert.id.clone());
                }
                _ if recently(alert.about.rule, &self.told_at) => {}
                told => {
                    let group = groups.entry(alert.about.rule).or_default();
                    if told == Told::Nothing {
                        group.push(Alert { until: None, ..alert.clone() });
                    }
                    group.push(alert.clone());
                }
            }
        }
        for Firing { alert, .. } in self.firing.values() {
            let rule = alert.about.rule;
            if alert.told == Told::Nothing && !silenced(&alert.about) && !recently(rule, &self.told_at) {
                groups.entry(rule).or_default().push(alert.clone());
            }
        }
        groups.into_iter().map(|(rule, alerts)| Group { rule, alerts }).collect()
    }

    /// Notes that the groups are in the outbox, and that everything is stored.
    pub(super) fn stored(&mut self, groups: &[Group], at: Instant) {
        for group in groups {
            self.told_at.insert(group.rule, at);
            let ended: BTreeSet<&str> =
                group.alerts.iter().filter(|alert| !alert.is_firing()).map(|alert| alert.id.as_str()).collect();
            for alert in group.alerts.iter().filter(|alert| alert.is_firing()) {
                if let Some(firing) = self.firing.get_mut(&alert.about).filter(|firing| firing.alert.id == alert.id) {
                    firing.alert.told = Told::Begin;
                }
            }
            self.ended.iter_mut().filter(|alert| ended.contains(alert.id.as_str())).for_each(|a| a.told = Told::End);
        }
        self.dirty.clear();
        self.removed.clear();
    }

    /// The alerts to store, as they are once these groups are in the outbox.
    pub(super) fn to_store(&self, groups: &[Group]) -> Vec<Alert> {
        // With most looks nothing is new, and thousands of alerts fire.
        if self.dirty.is_empty() && groups.is_empty() {
            return Vec::new();
        }
        let mut told: HashMap<&str, Told> = HashMap::new();
        for alert in groups.iter().flat_map(|group| &group.alerts) {
            let now = if alert.is_firing() { Told::Begin } else { Told::End };
            told.insert(&alert.id, now);
        }
        let all = self.firing.values().map(|firing| &firing.alert).chain(&self.ended);
        let changed = all.filter(|alert| self.dirty.contains(&alert.id) || told.contains_key(alert.id.as_str()));
        changed
            .map(|alert| Alert { told: told.get(alert.id.as_str()).copied().unwrap_or(alert.told), ..alert.clone() })
            .collect()
    }

    /// The stored alerts that are not kept any more.
    pub(super) fn to_remove(&self) -> Vec<String> {
        self.removed.clone()
    }

    // === reading ===

    pub(super) fn firing(&self) -> impl Iterator<Item = &Alert> {
        self.firing.values().map(|firing| &firing.alert)
    }

    /// Newest first.
    pub(super) fn ended(&self) -> impl Iterator<Item = &Alert> {
        self.ended.iter()
    }

    pub(super) fn untracked(&self) -> usize {
        self.untracked
    }
}

/// The id of an occurrence: the same at every try, and different for the next one.
fn id_of(about: &About, began: Timestamp) -> String {
    let About { rule, model, version, subject } = about;
    let (model, version) = (model.as_ref().map(ToString::to_string), version.map(|version| version.to_string()));
    let text = format!("{rule}\n{}\n{}\n{subject}\n{began}", model.unwrap_or_default(), version.unwrap_or_default());
    hex(&Sha256::digest(text.as_bytes())[..8])
}

pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A text within the limit.
fn cut(text: &str) -> Cow<'_, str> {
    if text.len() <= MOST_TEXT {
        return Cow::Borrowed(text);
    }
    Cow::Owned(format!("{}…", &text[..text.floor_char_boundary(MOST_TEXT)]))
}

impl Alert {
    /// Takes over the texts of the finding as it is now. A text that stays the same is not copied.
    fn renew(&mut self, finding: &Finding) {
        let texts = [
            (&mut self.summary, &finding.summary),
            (&mut self.how_sure, &finding.how_sure),
            (&mut self.what_to_do, &finding.what_to_do),
        ];
        for (text, new) in texts {
            let new = cut(new);
            if *text != new {
                *text = new.into_owned();
            }
        }
        self.training = finding.training;
    }
}
