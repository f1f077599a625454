//! The limits of callers, and which callers have others.

use super::Key;
use crate::access::Pattern;
use crate::model::Priority;
use std::net::IpAddr;
use std::num::NonZeroU32;

/// The limits of one caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Requests in flight. One more is refused with `TOO_MANY_REQUESTS`.
    pub max_in_flight: usize,
    /// Requests per second, on average; `None`: any number.
    pub rate: Option<NonZeroU32>,
    /// Requests at once, before the rate counts; `None`: as many as the rate allows in a second.
    pub burst: Option<NonZeroU32>,
}

/// Whom a rule is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Who {
    /// Callers with a name that fits.
    Name(Pattern),
    /// Callers without a name, by address.
    Address(Network),
}

/// What is different for some callers. What is `None` is as for all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    pub who: Who,
    pub priority: Option<Priority>,
    pub max_in_flight: Option<usize>,
    pub rate: Option<NonZeroU32>,
    pub burst: Option<NonZeroU32>,
}

/// The settings of this room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Of callers that no rule is about.
    pub limits: Limits,
    /// The first one that fits applies.
    pub rules: Vec<Rule>,
}

impl Config {
    /// The limits of a caller, and the priority of its requests.
    pub(super) fn of(&self, key: &Key) -> (Limits, Priority) {
        let Some(rule) = self.rules.iter().find(|rule| rule.who.is(key)) else {
            return (self.limits, Priority::Interactive);
        };
        let limits = Limits {
            max_in_flight: rule.max_in_flight.unwrap_or(self.limits.max_in_flight),
            rate: rule.rate.or(self.limits.rate),
            // A burst of other callers says nothing about another rate.
            burst: rule.burst.or(self.limits.burst.filter(|_| rule.rate.is_none())),
        };
        (limits, rule.priority.unwrap_or_default())
    }
}

impl Who {
    fn is(&self, key: &Key) -> bool {
        match (self, key) {
            (Who::Name(pattern), Key::Name(name)) => pattern.fits(name),
            (Who::Address(network), Key::Address(address)) => network.contains(*address),
            _ => false,
        }
    }
}

/// An address, or a network: `10.1.0.0/16`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    /// With zeros behind the prefix.
    first: u128,
    is_v4: bool,
    /// Bits of the prefix.
    prefix: u8,
}

impl Network {
    /// Reads an address or a network. `None` for anything else, also for a network with bits set behind its prefix, which is probably a mistake.
    #[must_use]
    pub fn parse(text: &str) -> Option<Network> {
        let (address, prefix) = match text.split_once('/') {
            None => (text, None),
            Some((address, prefix)) => {
                let digits = !prefix.is_empty() && prefix.bytes().all(|b| b.is_ascii_digit());
                (address, Some(digits.then(|| prefix.parse::<u8>().ok())??))
            }
        };
        let address: IpAddr = address.parse().ok()?;
        let (bits, is_v4) = bits(address);
        let prefix = prefix.unwrap_or(if is_v4 { 32 } else { 128 });
        let network = Network { first: bits, is_v4, prefix };
        (prefix <= network.width() && network.cut(bits) == bits).then_some(network)
    }

    fn width(self) -> u8 {
        if self.is_v4 { 32 } else { 128 }
    }

    /// An address without the bits behind the prefix.
    fn cut(self, bits: u128) -> u128 {
        let behind = u32::from(self.width() - self.prefix);
        bits.checked_shr(behind).and_then(|bits| bits.checked_shl(behind)).unwrap_or(0)
    }

    fn contains(self, address: IpAddr) -> bool {
        let (bits, is_v4) = bits(address);
        is_v4 == self.is_v4 && self.cut(bits) == self.first
    }
}

fn bits(address: IpAddr) -> (u128, bool) {
    match address {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()), true),
        IpAddr::V6(v6) => (v6.to_bits(), false),
    }
}
