//! What differs between two JSON documents, member by member.

use super::{layout, show};
use maud::{Markup, html};
use serde_json::Value;

/// One member that differs.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Change {
    /// Such as `split[0].weight`.
    pub(super) member: String,
    /// `None`: it was not there.
    pub(super) before: Option<String>,
    pub(super) after: Option<String>,
}

/// Documents have a few dozen members; a longer list helps nobody.
const MOST: usize = 200;
/// Of the table of one difference.
const BYTES: usize = 20_000;

pub(super) fn between(before: &Value, after: &Value) -> Vec<Change> {
    let mut changes = Vec::new();
    compare(String::new(), Some(before), Some(after), &mut changes);
    changes
}

fn compare(member: String, before: Option<&Value>, after: Option<&Value>, changes: &mut Vec<Change>) {
    if before == after || changes.len() >= MOST {
        return;
    }
    match (before, after) {
        (Some(Value::Object(b)), Some(Value::Object(a))) => {
            let added = a.keys().filter(|name| !b.contains_key(*name));
            for name in b.keys().chain(added) {
                let path = if member.is_empty() { name.clone() } else { format!("{member}.{name}") };
                compare(path, b.get(name), a.get(name), changes);
            }
        }
        (Some(Value::Array(b)), Some(Value::Array(a))) => {
            for index in 0..b.len().max(a.len()) {
                compare(format!("{member}[{index}]"), b.get(index), a.get(index), changes);
            }
        }
        _ => {
            let shown = |value: &Value| match value {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            let null_is_absent = |value: &&Value| !value.is_null();
            let (before, after) = (before.filter(null_is_absent).map(shown), after.filter(null_is_absent).map(shown));
            changes.push(Change { member, before, after });
        }
    }
}

pub(super) fn table(changes: &[Change]) -> Markup {
    let cell = |value: &Option<String>| match value {
        None => html! { td .quiet { "none" } },
        Some(value) => html! { td { code { (show::text(value, 300)) } } },
    };
    let rows = changes.iter().map(|change| {
        html! { tr { th scope="row" { code { (show::text(&change.member, 200)) } } (cell(&change.before)) (cell(&change.after)) } }
    });
    let (rows, shown) = layout::fitting(rows, BYTES);
    html! {
        @if changes.is_empty() {
            p .quiet { "Nothing differs." }
        } @else {
            table .difference {
                thead { tr { th scope="col" { "Member" } th scope="col" { "Before" } th scope="col" { "After" } } }
                tbody { (rows) }
            }
            @if shown < changes.len() || changes.len() >= MOST { p .quiet { "There is more; this shows the first " (shown) "." } }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn members_that_differ_are_named_with_both_values() {
        let before = json!({"split": [{"version": "1", "weight": 1.0}], "reason": "a", "same": [1, {"x": 2}]});
        let after =
            json!({"split": [{"version": "1", "weight": 2.0}, {"version": "2"}], "same": [1, {"x": 2}], "salt": "s"});
        let found = between(&before, &after);
        let found: Vec<_> =
            found.iter().map(|c| (c.member.as_str(), c.before.as_deref(), c.after.as_deref())).collect();
        assert_eq!(
            found,
            [
                ("split[0].weight", Some("1.0"), Some("2.0")),
                ("split[1]", None, Some("{\"version\":\"2\"}")),
                ("reason", Some("a"), None),
                ("salt", None, Some("s")),
            ]
        );
        assert!(between(&after, &after).is_empty());
        assert_eq!(between(&Value::Null, &json!({})).len(), 1);
    }

    #[test]
    fn the_list_is_bounded() {
        let long: Vec<u32> = (0..10_000).collect();
        assert_eq!(between(&json!([]), &json!(long)).len(), MOST);
    }
}
