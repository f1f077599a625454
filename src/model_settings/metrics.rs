//! `[metrics.NAME]` of `model.toml`.

use crate::outcomes::{Better, Kind, Metric, Metrics, UnitOf};
use crate::settings::Table;
use std::time::Duration;

/// More metrics than this are most likely a mistake, and every metric makes the intervals of all others wider.
const MAX_METRICS: usize = 32;
/// The history is not kept longer.
const MAX_DELAY: Duration = Duration::from_hours(400 * 24);

/// Reads all metrics. Wrong keys are reported all at once, with the others of the file.
pub(super) fn read(table: &mut Table) -> Metrics {
    let names = table.section_names();
    let mut metrics = Metrics::new();
    for (at, name) in names.iter().enumerate() {
        if at >= MAX_METRICS {
            table.section(name);
            table.complain(name, format!("at most {MAX_METRICS} metrics"));
        } else if !is_name(name) {
            table.section(name);
            table.complain(name, "a name of at most 64 letters, digits, \"_\", \"-\" and \".\"");
        }
        if let Some(metric) = metric(table.section(name)) {
            metrics.insert(name.clone(), metric);
        }
    }
    metrics
}

fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b))
}

fn metric(table: &mut Table) -> Option<Metric> {
    let kinds = Kind::ALL.map(|kind| (kind.as_str(), kind));
    let kind = table.one_of("kind", &kinds);
    if kind.is_none() && !table.has("kind") {
        table.complain("kind", kinds.map(|(name, _)| format!("{name:?}")).join(" or "));
    }
    let value = table.custom("value", "the name of a business value in feedback", |value| {
        value.as_str().filter(|text| !text.is_empty() && text.len() <= 256).map(str::to_owned)
    });
    let output = table.custom(
        "output",
        "the name of an output, or of one of its elements such as \"probabilities[1]\"",
        |value| output(value.as_str()?),
    );
    let unit = table.one_of("unit", &[("key", UnitOf::Key), ("request", UnitOf::Request)]).unwrap_or_default();
    let better = table.one_of("better", &[("higher", Better::Higher), ("lower", Better::Lower)]);
    let winsorize = table.float("winsorize", 0.5..=1.0);
    let label_delay = table.duration("label_delay", Duration::ZERO..=MAX_DELAY).unwrap_or_default();
    let absent = table.float("absent", f64::MIN..=f64::MAX);
    let kind = kind?;
    let name = kind.as_str();
    if kind.needs_value() && value.is_none() && !table.has("value") {
        table.complain("value", format!("the name of the business value, which kind = \"{name}\" needs"));
    }
    if !kind.needs_value() && value.is_some() {
        table.complain("value", format!("nothing: kind = \"{name}\" is about the label"));
    }
    if !kind.takes_output() && output.is_some() {
        table.complain("output", format!("nothing: kind = \"{name}\" is not about one output"));
    }
    if !kind.needs_value() && absent.is_some() {
        table.complain("absent", format!("nothing: kind = \"{name}\" is about the label"));
    }
    if kind == Kind::Proportion && absent.is_some_and(|absent| !(0.0..=1.0).contains(&absent)) {
        table.complain("absent", "a number from 0 to 1, because kind = \"proportion\"");
    }
    if matches!(kind, Kind::Auc | Kind::Rmse) && winsorize.is_some() {
        table.complain("winsorize", format!("nothing: kind = \"{name}\" is not a mean of values"));
    }
    if kind.better().is_none() && better.is_some() {
        table.complain("better", format!("nothing: kind = \"{name}\" has no better direction"));
    }
    let better = better.unwrap_or(Metric::of(kind).better);
    Some(Metric { kind, value, output, unit, better, winsorize, label_delay, absent })
}

/// `NAME` or `NAME[i]`, with or without `outputs.` before it.
fn output(text: &str) -> Option<(String, usize)> {
    let text = text.strip_prefix("outputs.").unwrap_or(text);
    let (name, index) = match text.strip_suffix(']').and_then(|text| text.rsplit_once('[')) {
        Some((name, index)) => (name, index.parse().ok()?),
        None => (text, 0),
    };
    (!name.is_empty() && name.len() <= 256 && index < 1_000_000).then(|| (name.to_owned(), index))
}

#[cfg(test)]
mod tests {
    use crate::model_settings::ModelSettings;
    use crate::outcomes::{Better, Kind, UnitOf};
    use std::time::Duration;

    #[test]
    fn metrics_have_their_defaults() {
        let text = "[metrics.accuracy]\nkind = \"accuracy\"\n\
            [metrics.revenue]\nkind = \"mean\"\nvalue = \"revenue\"\nunit = \"request\"\nbetter = \"lower\"\nwinsorize = 0.999\nlabel_delay = \"7d\"\nabsent = 0\n\
            [metrics.auc]\nkind = \"auc\"\noutput = \"outputs.probabilities[1]\"\n[metrics.loss]\nkind = \"log_loss\"\noutput = \"p\"\n";
        let metrics = ModelSettings::parse("model.toml", text).unwrap().metrics;
        let of = |name: &str| &metrics[name];
        assert_eq!(
            (of("accuracy").kind, of("accuracy").better, of("accuracy").unit),
            (Kind::Accuracy, Better::Higher, UnitOf::Key)
        );
        let revenue = of("revenue");
        assert_eq!((revenue.unit, revenue.better, revenue.winsorize), (UnitOf::Request, Better::Lower, Some(0.999)));
        assert_eq!((revenue.label_delay, revenue.absent), (Duration::from_hours(168), Some(0.0)));
        assert_eq!(of("auc").output, Some(("probabilities".to_owned(), 1)));
        assert_eq!((of("loss").output.clone(), of("loss").better), (Some(("p".to_owned(), 0)), Better::Lower));
        assert!(ModelSettings::parse("model.toml", "").unwrap().metrics.is_empty());
    }

    #[test]
    fn all_wrong_keys_are_reported_at_once_in_words() {
        let text = "[metrics.a]\nkind = \"best\"\n[metrics.b]\nkind = \"mean\"\n[metrics.c]\nkind = \"auc\"\nvalue = \"x\"\nwinsorize = 0.9\noutput = \"[1]\"\n\
            [metrics.d]\nvalue = \"x\"\n[metrics.e]\nkind = \"proportion\"\nvalue = \"x\"\noutput = \"y\"\nabsent = 2\nwinsorize = 0.1\nlabel_delay = 5\nunits = \"key\"\n\
            [metrics.f]\nkind = \"bias\"\nbetter = \"higher\"\nabsent = 1\n[metrics.\"g h\"]\nkind = \"mae\"\n[metrics]\ni = 5\n";
        let complaints = ModelSettings::parse("model.toml", text).unwrap_err();
        for words in [
            "metrics.a.kind",
            "metrics.b.value",
            "metrics.c.value",
            "metrics.c.winsorize",
            "metrics.c.output",
            "metrics.d.kind",
            "metrics.e.output",
            "metrics.e.absent",
            "metrics.e.winsorize",
            "metrics.e.label_delay",
            "metrics.e.units",
            "metrics.f.better",
            "metrics.f.absent",
            "metrics.g h",
        ] {
            assert!(complaints.contains(words), "{words} in {complaints}");
        }
    }
}
