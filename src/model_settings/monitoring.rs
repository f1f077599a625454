//! `[drift]`, `[staleness]` and `[first_day]` of `model.toml`.

use crate::drift;
use crate::registry::Staleness;
use crate::settings::{Table, Value};
use std::collections::BTreeMap;
use std::time::Duration;

/// Ages: from a minute to ten years.
const AGES: std::ops::RangeInclusive<Duration> = Duration::from_mins(1)..=Duration::from_hours(10 * 365 * 24);

/// Reads `[drift]`: `enabled`, `floor`, `false_alarms_per_year`, and `[drift.floors]` by column.
pub(super) fn drift(table: &mut Table) -> drift::Settings {
    let default = drift::Settings::default();
    let section = table.section("drift");
    let settings = drift::Settings {
        enabled: section.bool("enabled").unwrap_or(default.enabled),
        floor: section.float("floor", 0.0..=1.0).unwrap_or(default.floor),
        false_alarms_per_year: section
            .float("false_alarms_per_year", 0.001..=1000.0)
            .unwrap_or(default.false_alarms_per_year),
        floors: BTreeMap::new(),
    };
    let floors = section.section("floors");
    let mut kept = BTreeMap::new();
    for (column, value) in floors.rest() {
        if kept.len() >= drift::Settings::MAX_FLOORS {
            floors.complain(&column, format!("at most {} columns in this section", drift::Settings::MAX_FLOORS));
            break;
        }
        let number = match value {
            Value::Integer(n) => Some(n as f64),
            Value::Float(number) => Some(number),
            _ => None,
        };
        match number.filter(|number| (0.0..=1.0).contains(number)) {
            Some(number) => drop(kept.insert(column, number)),
            None => floors.complain(&column, "a number from 0 to 1"),
        }
    }
    drift::Settings { floors: kept, ..settings }
}

/// Reads `[staleness]`: `max_age` and `max_data_age`.
pub(super) fn staleness(table: &mut Table) -> Staleness {
    let section = table.section("staleness");
    Staleness { max_age: section.duration("max_age", AGES), max_data_age: section.duration("max_data_age", AGES) }
}

/// Reads `[first_day]`: `limit`.
pub(super) fn first_day_limit(table: &mut Table) -> Option<f64> {
    table.section("first_day").float("limit", 1.1..=100.0)
}

#[cfg(test)]
mod tests {
    use crate::model_settings::ModelSettings;
    use std::time::Duration;

    #[test]
    fn limits_of_drift_and_age_are_read() {
        let text = "[drift]\nfloor = 0.1\nfalse_alarms_per_year = 12\n[drift.floors]\nage = 0.2\n\"inputs.x[1]\" = 1\n\
                    [staleness]\nmax_age = \"90d\"\n[first_day]\nlimit = 2\n";
        let settings = ModelSettings::parse("model.toml", text).unwrap();
        assert_eq!(
            (settings.drift.floor, settings.drift.false_alarms_per_year, settings.drift.enabled),
            (0.1, 12.0, true)
        );
        assert_eq!(settings.drift.floors, [("age".to_owned(), 0.2), ("inputs.x[1]".to_owned(), 1.0)].into());
        assert_eq!(settings.staleness.max_age, Some(Duration::from_hours(90 * 24)));
        assert_eq!(settings.staleness.max_data_age, None);
        assert_eq!(settings.first_day_limit, Some(2.0));
        assert_eq!(ModelSettings::parse("model.toml", "").unwrap().first_day_limit, None);
        assert!(!ModelSettings::parse("model.toml", "[drift]\nenabled = false\n").unwrap().drift.enabled);
    }

    #[test]
    fn wrong_limits_are_reported_at_once() {
        let text = "[drift]\nfloor = 2\nfalse_alarms_per_year = 0\nbudget = 1\n[drift.floors]\nage = \"much\"\nfare = -1\n\
                    [staleness]\nmax_age = 90\n[first_day]\nlimit = 1.0\nhours = 24\n";
        let words = ModelSettings::parse("model.toml", text).unwrap_err();
        for part in [
            "drift.floor: expected a number from 0 to 1",
            "drift.false_alarms_per_year: expected a number from 0.001",
            "unknown key `drift.budget`",
            "drift.floors.age: expected a number from 0 to 1",
            "drift.floors.fare: expected a number from 0 to 1",
            "staleness.max_age: expected a duration",
            "first_day.limit: expected a number from 1.1 to 100",
            "unknown key `first_day.hours`",
        ] {
            assert!(words.contains(part), "{part} in {words}");
        }
    }
}
