//! `[callers]`: how much one caller may have in flight, and how fast it may send.

use crate::access::Pattern;
use crate::callers::{Config, Limits, Network, Rule, Who};
use crate::model::Priority;
use crate::settings::{Table, Value};
use std::num::NonZeroU32;

/// The most rules.
const MOST_RULES: usize = 1000;
const MOST_IN_FLIGHT: usize = 1_000_000;
const MOST_RATE: u32 = 1_000_000_000;

/// `[callers]`: the limits of one caller.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Callers {
    /// The most predict requests of one caller at the same time; a further one is answered with 429. Default 0: as many as
    /// `server.max_in_flight`; some places beyond that are kept for callers that hold few.
    pub max_in_flight: usize,
    /// The most requests per second of one caller. Default 0: no limit, as the gateway does not know what a caller should need.
    pub rate: u32,
    /// The most requests at once before the rate counts. Default 0: as many as the rate allows in a second.
    pub burst: u32,
    /// What is different for some callers: the first rule that fits applies. Default none.
    pub rules: Vec<Rule>,
}

impl Callers {
    pub(super) fn read(t: &mut Table) -> Callers {
        let expected = "a list of rules such as { caller = \"nightly-*\", priority = \"batch\", rate = 100, burst = 200, max_in_flight = 32 } or \
                        { address = \"10.1.0.0/16\", … }, with at least one of priority, rate, burst and max_in_flight";
        let rules = |value: &Value| {
            let items = value.as_list().filter(|items| items.len() <= MOST_RULES)?;
            items.iter().map(rule).collect::<Option<Vec<Rule>>>()
        };
        Callers {
            max_in_flight: t.integer("max_in_flight", 0..=MOST_IN_FLIGHT).unwrap_or_default(),
            rate: t.integer("rate", 0..=MOST_RATE).unwrap_or_default(),
            burst: t.integer("burst", 0..=MOST_RATE).unwrap_or_default(),
            rules: t.custom("rules", expected, rules).unwrap_or_default(),
        }
    }

    /// The limits, where all callers together have so many places.
    #[must_use]
    pub fn with_places(&self, places: usize) -> Config {
        let max_in_flight = if self.max_in_flight == 0 { places } else { self.max_in_flight };
        let limits = Limits { max_in_flight, rate: NonZeroU32::new(self.rate), burst: NonZeroU32::new(self.burst) };
        Config { limits, rules: self.rules.clone() }
    }
}

fn rule(item: &Value) -> Option<Rule> {
    let Value::Table(members) = item else { return None };
    let known = ["caller", "address", "priority", "rate", "burst", "max_in_flight"];
    if members.keys().any(|name| !known.contains(&name.as_str())) {
        return None;
    }
    let text = |key: &str| match members.get(key) {
        None => Some(None),
        Some(value) => value.as_str().map(Some),
    };
    let who = match (text("caller")?, text("address")?) {
        (Some(name), None) => Who::Name(Pattern::for_callers(name)?),
        (None, Some(address)) => Who::Address(Network::parse(address)?),
        _ => return None,
    };
    let priority = text("priority")?.map(Priority::of);
    if priority == Some(None) {
        return None;
    }
    let max_in_flight = match members.get("max_in_flight") {
        None => None,
        Some(value) => Some(number(value, MOST_IN_FLIGHT)?),
    };
    let rate = |key| match members.get(key) {
        None => Some(None),
        Some(value) => number(value, MOST_RATE).map(NonZeroU32::new),
    };
    let rule = Rule { who, priority: priority.flatten(), max_in_flight, rate: rate("rate")?, burst: rate("burst")? };
    let says_something =
        rule.priority.is_some() || max_in_flight.is_some() || rule.rate.is_some() || rule.burst.is_some();
    says_something.then_some(rule)
}

/// A number from 1 to `most`.
fn number<N: TryFrom<i64> + PartialOrd + From<u8>>(value: &Value, most: N) -> Option<N> {
    let number = N::try_from(value.as_integer()?).ok()?;
    (N::from(1)..=most).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(text: &str) -> Option<Vec<Rule>> {
        let mut table = Table::parse("c.toml", &format!("rules = {text}"));
        let callers = Callers::read(&mut table);
        table.finish().is_ok().then_some(callers.rules)
    }

    #[test]
    fn rules_say_whom_they_are_about_and_what_is_different() {
        for wrong in [
            "[{ caller = \"a\" }]",
            "[{ rate = 1 }]",
            "[{ caller = \"a\", address = \"::1\", rate = 1 }]",
            "[{ caller = \"\", rate = 1 }]",
            "[{ caller = \"a\\n\", rate = 1 }]",
            "[{ address = \"10.0.0.1/8\", rate = 1 }]",
            "[{ caller = \"a\", rate = 0 }]",
            "[{ caller = \"a\", rate = 1.5 }]",
            "[{ caller = \"a\", max_in_flight = 1000001 }]",
            "[{ caller = \"a\", priority = \"urgent\" }]",
            "[{ caller = \"a\", rate = 1, rates = 1 }]",
            "{ caller = \"a\", rate = 1 }",
        ] {
            assert_eq!(rules(wrong), None, "{wrong}");
        }
        let right =
            rules("[{ caller = \"a@b *\", rate = 1000000000 }, { address = \"10.0.0.0/8\", priority = \"batch\" }]");
        assert_eq!(right.map(|rules| rules.len()), Some(2));
    }
}
