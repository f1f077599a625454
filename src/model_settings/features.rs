//! `[features]` and `feature_names` of `model.toml`: names for the elements of tensors.

use crate::columns::ElementNames;
use crate::settings::{Table, Value};
use std::collections::BTreeSet;

/// Reads both. Complaints are collected in the table.
pub(super) fn read(table: &mut Table) -> ElementNames {
    let mut names = ElementNames::default();
    let expected = format!("a list of different names, each of 1 to {} bytes", ElementNames::MAX_BYTES);
    names.of_only_input = table.custom("feature_names", &expected, name_list).unwrap_or_default();
    let section = table.section("features");
    for (tensor, value) in section.rest() {
        match name_list(&value) {
            Some(list) => drop(names.by_tensor.insert(tensor, list)),
            None => section.complain(&tensor, &*expected),
        }
        let total: usize = names.by_tensor.values().map(Vec::len).sum();
        if names.by_tensor.len() > ElementNames::MAX_TENSORS || total > ElementNames::MAX_NAMES {
            let (tensors, total) = (ElementNames::MAX_TENSORS, ElementNames::MAX_NAMES);
            table.complain("features", format!("names for at most {tensors} tensors, and at most {total} names"));
            break;
        }
    }
    names
}

fn name_list(value: &Value) -> Option<Vec<String>> {
    let list = value.as_list()?;
    let name = |item: &Value| {
        item.as_str().filter(|name| (1..=ElementNames::MAX_BYTES).contains(&name.len())).map(str::to_owned)
    };
    let names = list.iter().map(name).collect::<Option<Vec<_>>>()?;
    let different = names.iter().collect::<BTreeSet<_>>().len() == names.len();
    (different && (1..=ElementNames::MAX_NAMES).contains(&names.len())).then_some(names)
}

#[cfg(test)]
mod tests {
    use crate::model_settings::ModelSettings;

    #[test]
    fn elements_are_named_by_tensor_or_for_the_only_input() {
        let text = "feature_names = [\"a\", \"b\"]\n[features]\nx = [\"age\", \"fare\"]\n\"t:0\" = [\"c\"]\n";
        let settings = ModelSettings::parse("model.toml", text).unwrap();
        assert_eq!(settings.features.of_only_input, ["a", "b"]);
        assert_eq!(settings.features.by_tensor["x"], ["age", "fare"]);
        assert_eq!(settings.features.by_tensor["t:0"], ["c"]);
        assert_eq!(settings.metadata["feature_names"], serde_json::json!(["a", "b"]));
        assert_eq!(settings.metadata["features"]["x"], serde_json::json!(["age", "fare"]));
    }

    #[test]
    fn every_wrong_name_is_reported() {
        let text = "[features]\nx = [\"a\", \"a\"]\ny = \"age\"\nz = [1]\nempty = []\nlong = [\"".to_owned()
            + &"n".repeat(201)
            + "\"]\n";
        let complaints = ModelSettings::parse("model.toml", &text).unwrap_err();
        for key in ["features.x", "features.y", "features.z", "features.empty", "features.long"] {
            assert!(complaints.contains(&format!("{key}: expected a list of different names")), "{complaints}");
        }
    }
}
