//! The engine of a model: `engine = "onnxruntime"`, or the section `[engine]` where there is more to say.

use crate::backend::{EngineChoice, EngineOptions, Provider};
use crate::settings::Table;

const ENGINES: [(&str, EngineChoice); 3] =
    [("auto", EngineChoice::Auto), ("onnxruntime", EngineChoice::OnnxRuntime), ("tract", EngineChoice::Tract)];

/// Reads the key or the section. TOML allows only one of them.
pub(super) fn read(table: &mut Table) -> (EngineChoice, EngineOptions) {
    if !table.section_names().iter().any(|name| name == "engine") {
        return (table.one_of("engine", &ENGINES).unwrap_or_default(), EngineOptions::default());
    }
    let table = table.section("engine");
    let choice = table.one_of("name", &ENGINES).unwrap_or_default();
    let right = "a list of up to 16 file names without a directory, such as [\"libortextensions.so\"]";
    let custom_ops = table.custom("custom_ops", right, |value| {
        let names: Option<Vec<String>> = value
            .as_list()?
            .iter()
            .map(|item| item.as_str().filter(|name| EngineOptions::is_library_name(name)).map(str::to_owned))
            .collect();
        names.filter(|names| names.len() <= EngineOptions::MAX_CUSTOM_OPS)
    });
    let known: Vec<&str> = Provider::ALL.iter().map(|provider| provider.as_str()).collect();
    let right =
        format!("a list of different ones of {}, the best first, such as [\"cuda\", \"cpu\"]", known.join(", "));
    let providers = table.custom("providers", &right, |value| {
        let mut providers: Vec<Provider> = Vec::new();
        for item in value.as_list()? {
            let provider = Provider::of(item.as_str()?).filter(|provider| !providers.contains(provider))?;
            providers.push(provider);
        }
        (!providers.is_empty()).then_some(providers)
    });
    let options =
        EngineOptions { custom_ops: custom_ops.unwrap_or_default(), providers: providers.unwrap_or_default() };
    (choice, options)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<(EngineChoice, EngineOptions), String> {
        let mut table = Table::parse("model.toml", text);
        let read = read(&mut table);
        table.finish().map(|()| read).map_err(|complaints| complaints.to_string())
    }

    #[test]
    fn the_engine_is_a_name_or_a_section() {
        let none = EngineOptions::default();
        assert_eq!(parsed("").unwrap(), (EngineChoice::Auto, none.clone()));
        assert_eq!(parsed("engine = \"tract\"").unwrap(), (EngineChoice::Tract, none));
        let text = "[engine]\nname = \"onnxruntime\"\ncustom_ops = [\"liba.so\"]\nproviders = [\"cuda\", \"cpu\"]\n";
        let (choice, options) = parsed(text).unwrap();
        assert_eq!(choice, EngineChoice::OnnxRuntime);
        assert_eq!(options.custom_ops, ["liba.so"]);
        assert_eq!(options.providers, [Provider::Cuda, Provider::Cpu]);
        for (text, words) in [
            ("engine = \"onnx\"", "\"auto\""),
            ("[engine]\nname = \"onnx\"", "engine.name"),
            ("[engine]\ncustom_ops = [\"a/b.so\"]", "engine.custom_ops"),
            ("[engine]\ncustom_ops = [\"..\"]", "engine.custom_ops"),
            ("[engine]\ncustom_ops = \"a.so\"", "engine.custom_ops"),
            ("[engine]\nproviders = []", "engine.providers"),
            ("[engine]\nproviders = [\"cpu\", \"cpu\"]", "engine.providers"),
            ("[engine]\nproviders = [\"gpu\"]", "cpu, cuda, tensorrt"),
            ("[engine]\nproviderss = [\"cpu\"]", "providers"),
        ] {
            let error = parsed(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
        let many = format!("[engine]\ncustom_ops = [{}]", "\"a.so\",".repeat(17));
        assert!(parsed(&many).is_err());
    }
}
