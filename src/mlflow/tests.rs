//! What needs no server: `MLmodel` files, addresses, lineage, and what an alias changes.

use super::alias::{Followed, Now, Outcome, Step};
use super::config::Credentials;
use super::flavor::{Flavor, read};
use super::memory::{Memory, VersionNews};
use super::offers::artifact_path;
use super::provenance::{Identity, is_of, version_toml};
use super::wire::{ModelVersion, Run, RunAnswer};
use crate::model::{ModelName, Version};
use crate::registry::{Stage, State, VersionStatus};
use crate::route::Document;
use proptest::prelude::*;
use serde_json::json;

const MLMODEL: &str = "artifact_path: mlflow-artifacts:/1/models/m-1/artifacts
flavors:
  onnx:
    code: null
    data: model.onnx
    onnx_session_options: null
    providers:
    - CUDAExecutionProvider
    - CPUExecutionProvider
  python_function:
    data: other.pkl
    env:
      conda: conda.yaml
run_id: 94acff38
";

#[expect(clippy::unnecessary_wraps, reason = "it is compared with what was read")]
fn onnx(data: &str) -> Result<Flavor, String> {
    Ok(Flavor::Onnx(data.to_owned()))
}

#[test]
fn the_onnx_flavour_of_an_mlmodel_names_its_file() {
    assert_eq!(read(MLMODEL), onnx("model.onnx"));
    for (written, data) in [
        ("'it''s.onnx'", "it's.onnx"),
        ("\"a.onnx\"", "a.onnx"),
        ("data/model.onnx  # the file", "data/model.onnx"),
        ("../../etc/passwd", "../../etc/passwd"),
    ] {
        assert_eq!(read(&MLMODEL.replace("model.onnx", written)), onnx(data), "{written}");
    }
    assert_eq!(read(&MLMODEL.replace('\n', "\r\n")), onnx("model.onnx"), "line ends of another system");
    let nested = "flavors:\n  onnx:\n    other:\n      data: wrong\n    data: right\n";
    assert_eq!(read(nested), onnx("right"), "only the entries of the flavour itself count");
    let before = "other:\n  flavors:\n    onnx:\n      data: wrong\nflavors:\n  sklearn:\n    a: b\n";
    assert_eq!(read(before), Ok(Flavor::Others(vec!["sklearn".to_owned()])), "only the outermost `flavors` counts");
    let others = "flavors:\n  python_function:\n    data: x\n  sklearn:\n    data: y\n";
    assert_eq!(read(others), Ok(Flavor::Others(vec!["python_function".to_owned(), "sklearn".to_owned()])));
}

proptest! {
    #[test]
    fn an_mlmodel_names_one_file_or_is_refused(
        before in "((a|  b|flavors|- c|#|\t):?( x)?\n){0,4}",
        name in "(onnx|'onnx'|onnx2|  onnx)",
        value in "['\"a-z./{}#\\[&|é ]{0,12}",
    ) {
        let text = format!("{before}flavors:\n  {name}:\n    data: {value}\n  other:\n    data: x\n");
        if let Ok(Flavor::Onnx(data)) = read(&text) {
            prop_assert!(!data.is_empty() && data.len() <= value.len() && !data.contains('\n'), "{data:?} of {text:?}");
        }
    }

    #[test]
    fn no_answer_of_mlflow_panics(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = run_answer().to_string().into_bytes();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(RunAnswer { run }) = serde_json::from_slice(&bytes) {
            let (model, version): (ModelName, Version) = ("fraud".parse().unwrap(), "3".parse().unwrap());
            let of = Identity { uri: "http://m", model: &model, version, source: "s", run_id: "94ac" };
            let text = version_toml(&of, &ModelVersion::default(), Some(&run));
            prop_assert!(toml::from_str::<toml::Table>(&text).is_ok(), "{text}");
        }
    }
}

#[test]
fn an_mlmodel_that_is_not_written_as_mlflow_does_is_refused_in_words() {
    for (text, part) in [
        ("", "no `flavors`"),
        ("flavors: {onnx: {data: model.onnx}}\n", "expected a block of indented lines"),
        ("flavors:\n  onnx: {data: model.onnx}\n", "onnx: expected a block"),
        ("flavors:\n  onnx:\n    code: null\n", "has no `data`"),
        ("flavors:\n  onnx:\n    data: *anchor\n", "expected a file name"),
        ("flavors:\n  onnx:\n    data: |\n      model.onnx\n", "expected a file name"),
        ("flavors:\n  onnx:\n    data:\n      - model.onnx\n", "expected a file name"),
        ("flavors:\n  onnx:\n    data: 'a'b'\n", "expected a file name"),
        ("flavors:\n\tonnx:\n", "begins with a tab"),
    ] {
        let refused = read(text).unwrap_err();
        assert!(refused.contains(part), "{text:?}: {refused}");
    }
    assert_eq!(read("flavors:\n  onnx: null\n"), Ok(Flavor::Others(vec!["onnx".to_owned()])));
    // Any bytes are an answer.
    let mut random = fastrand::Rng::with_seed(7);
    let pieces =
        ["flavors:", "onnx:", "data:", " ", "  ", "\n", "\t", "'", "\"", "- ", "{", "ä", "\u{0}", "x", ": ", "#"];
    for _ in 0..20_000 {
        let text: String = (0..random.usize(0..24)).map(|_| pieces[random.usize(0..pieces.len())]).collect();
        let _ = read(&text);
    }
}

#[test]
fn only_files_that_mlflow_itself_serves_are_read_and_no_path_leaves_them() {
    assert_eq!(artifact_path("mlflow-artifacts:/1/models/m-1/artifacts").unwrap(), "1/models/m-1/artifacts");
    assert_eq!(artifact_path("mlflow-artifacts:///1/run/artifacts/model/").unwrap(), "1/run/artifacts/model");
    for uri in ["s3://bucket/1", "/srv/mlruns/1", "file:///srv/1", "mlflow-artifacts://other.host/1", "models:/m-1", ""]
    {
        assert!(artifact_path(uri).unwrap_err().contains("--serve-artifacts"), "{uri}");
    }
    for uri in
        ["mlflow-artifacts:/../secret", "mlflow-artifacts:/1//2", "mlflow-artifacts:/a/.b", "mlflow-artifacts:/a\\b"]
    {
        assert!(artifact_path(uri).unwrap_err().contains("is refused"), "{uri}");
    }
}

#[test]
fn credentials_are_chosen_as_mlflows_client_chooses_them() {
    let of = |variables: &[(&str, &str)]| {
        let variables: Vec<(String, String)> =
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let find = |name: &str| variables.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
        Credentials::of_environment(find).authorization()
    };
    let (user, password, token) =
        (("MLFLOW_TRACKING_USERNAME", "ann"), ("MLFLOW_TRACKING_PASSWORD", "pass\n"), ("MLFLOW_TRACKING_TOKEN", "t0"));
    assert_eq!(of(&[]), None);
    assert_eq!(of(&[user]), None, "a name alone is none");
    assert_eq!(of(&[token]).unwrap(), "Bearer t0");
    assert_eq!(of(&[user, password, token]).unwrap(), "Basic YW5uOnBhc3M=");
    assert_eq!(of(&[user, token]).unwrap(), "Bearer t0");
    let shown = format!("{:?}", Credentials::of_environment(|_| Some("secret".to_owned())));
    assert!(!shown.contains("secret") && !shown.contains("c2VjcmV0"), "{shown}");
}

fn run() -> Run {
    serde_json::from_value::<RunAnswer>(run_answer()).unwrap().run
}

fn run_answer() -> serde_json::Value {
    let dataset = json!({"name": "train", "digest": "0e60fe4c", "source_type": "s3", "source": "{\"uri\": \"s3://x/y\"}",
        "profile": "{\"num_rows\": 12, \"num_elements\": 48}"});
    json!({"run": {
        "info": {"run_name": "bold", "experiment_id": "1", "user_id": "ann", "start_time": 1, "end_time": "1795895748592"},
        "data": {
            "metrics": [{"key": "auc", "value": 0.97, "step": 0}, {"key": "loss", "value": "NaN"}, {"key": "f1"}],
            "params": [{"key": "depth", "value": "6"}, {"key": "lr", "value": "0.1"}, {"key": "id", "value": "007"},
                       {"key": "fit", "value": "True"}, {"key": "big", "value": "1e999"}, {"key": "note", "value": "ä".repeat(900)}],
            "tags": [{"key": "mlflow.source.git.commit", "value": "0badc0de"}, {"key": "mlflow.user", "value": "root"}],
        },
        "inputs": {"dataset_inputs": [
            {"tags": [{"key": "mlflow.data.context", "value": "testing"}], "dataset": {"name": "t", "digest": "x"}},
            {"tags": [{"key": "mlflow.data.context", "value": "training"}], "dataset": dataset}]},
    }})
}

#[test]
fn the_run_of_a_version_becomes_its_lineage() {
    let model: ModelName = "fraud".parse().unwrap();
    let number: Version = "3".parse().unwrap();
    let version: ModelVersion =
        serde_json::from_value(json!({"version": 3, "description": "a \"good\" one\n"})).unwrap();
    let of = Identity { uri: "http://m", model: &model, version: number, source: "models:/m-1", run_id: "94ac" };
    let text = version_toml(&of, &version, Some(&run()));
    let table: toml::Table = text.parse().unwrap_or_else(|e| panic!("{e}: {text}"));
    let lineage = &table["lineage"];
    assert_eq!(lineage["data"]["digest"].as_str(), Some("mlflow:0e60fe4c"), "that of the training data: {text}");
    assert_eq!(
        (lineage["data"]["rows"].as_integer(), lineage["data"]["location"].as_str()),
        (Some(12), Some("s3://x/y"))
    );
    assert_eq!((lineage["code"]["commit"].as_str(), lineage["trainer"].as_str()), (Some("0badc0de"), Some("root")));
    assert!(lineage["trained_at"].as_str().unwrap().starts_with("2026-11-28T"), "{text}");
    let metrics = lineage["metrics"].as_table().unwrap();
    assert_eq!((metrics.len(), metrics["auc"].as_float()), (1, Some(0.97)), "numbers that are not finite are left out");
    let parameters = &lineage["parameters"];
    assert_eq!((parameters["depth"].as_integer(), parameters["lr"].as_float()), (Some(6), Some(0.1)));
    assert_eq!((parameters["id"].as_str(), parameters["fit"].as_bool()), (Some("007"), Some(true)));
    assert_eq!(parameters["big"].as_str(), Some("1e999"));
    assert!(parameters["note"].as_str().unwrap().len() <= 1000);
    assert_eq!(table["mlflow"]["datasets"].as_array().unwrap().len(), 2);
    assert_eq!(table["mlflow"]["description"].as_str(), Some("a \"good\" one\n"));

    assert!(is_of(&text, &of));
    assert!(!is_of(&text, &Identity { run_id: "other", ..of.clone() }), "another run");
    assert!(!is_of("[mlflow]\nuri = 3\n", &of) && !is_of("]", &of) && !is_of("", &of));
    let bare = version_toml(&of, &version, None);
    assert!(is_of(&bare, &of) && !bare.contains("[lineage"), "{bare}");
}

// === aliases ===

fn version(v: u64) -> Version {
    v.to_string().parse().unwrap()
}

fn status(v: u64, state: State) -> VersionStatus {
    VersionStatus {
        version: version(v),
        state,
        stage: (state == State::Failed).then_some(Stage::Verify),
        reason: (state == State::Failed).then(|| "case 1 differs".to_owned()),
        notes: Vec::new(),
        facts: None,
        loaded: None,
    }
}

fn now<'n>(document: Option<&'n Document>, status: Option<&'n VersionStatus>) -> Now<'n> {
    Now { document, status, version: None, retired: false, look_again: false }
}

fn is(step: &Step, outcome: Outcome, part: &str) {
    let Step::Is(found, words) = step else { panic!("{step:?} is no state") };
    assert_eq!(*found, outcome, "{words}");
    assert!(words.contains(part), "{part:?} is not in {words:?}");
}

#[test]
fn an_alias_that_promotes_waits_for_its_version_and_then_promotes_it() {
    let one = Document::single(version(1));
    let alias = Followed::moved("champion", Some(version(2)), Some(&one));
    let next = |status: Option<&VersionStatus>| alias.next("champion", true, now(Some(&one), status));
    is(&next(None), Outcome::Waiting, "version 2 is not here yet");
    is(&next(Some(&status(2, State::Warming))), Outcome::Waiting, "is warming");
    is(&next(Some(&status(2, State::Failed))), Outcome::Refused, "failed in verify: case 1 differs");
    is(&next(Some(&status(2, State::Unloaded))), Outcome::Refused, "is unloaded");
    let (ready, promote) = (status(2, State::Ready), Step::Promote { version: version(2), check: false });
    assert_eq!(next(Some(&ready)), promote);
    let first = Followed::moved("champion", Some(version(2)), None);
    assert_eq!(first.next("champion", true, now(None, Some(&ready))), promote, "it may be the first document");
    assert_eq!(
        first.next("champion", true, now(Some(&one), Some(&ready))),
        promote,
        "the gateway made a document itself"
    );

    let news = VersionNews { unusable: Some("no ONNX flavour".to_owned()), tag: None };
    let unusable = Now { version: Some(&news), ..now(Some(&one), None) };
    is(&alias.next("champion", true, unusable), Outcome::Refused, "no ONNX flavour");
    let retired = Now { retired: true, ..now(Some(&one), Some(&ready)) };
    is(&alias.next("champion", true, retired), Outcome::Refused, "is retired here");
    let mut served = Document::single(version(2));
    assert_eq!(alias.next("champion", true, now(Some(&served), Some(&ready))), promote, "the label is missing");
    served.labels.insert("champion".to_owned(), version(2));
    is(&alias.next("champion", true, now(Some(&served), Some(&ready))), Outcome::Applied, "it serves");
}

#[test]
fn a_refused_promotion_is_checked_before_it_is_tried_again() {
    let one = Document::single(version(1));
    let ready = status(2, State::Ready);
    let mut alias = Followed::moved("champion", Some(version(2)), Some(&one));
    alias.outcome = Outcome::Refused;
    let at_rest = now(Some(&one), Some(&ready));
    assert_eq!(alias.next("champion", true, at_rest), Step::Nothing);
    let again = Now { look_again: true, ..at_rest };
    assert_eq!(alias.next("champion", true, again), Step::Promote { version: version(2), check: true });
    let three = Document::single(version(3));
    let changed = Now { document: Some(&three), ..again };
    is(&alias.next("champion", true, changed), Outcome::Superseded, "was changed to 3=1");
    for outcome in [Outcome::Applied, Outcome::Superseded] {
        alias.outcome = outcome;
        assert_eq!(alias.next("champion", true, again), Step::Nothing, "an alias that has not moved changes nothing");
    }
}

#[test]
fn other_aliases_become_labels_and_a_label_that_a_person_changed_stays() {
    let one = Document::single(version(1));
    let (ready, waits) = (status(2, State::Ready), status(2, State::Loading));
    let alias = Followed::moved("challenger", Some(version(2)), Some(&one));
    is(&alias.next("challenger", false, now(Some(&one), Some(&waits))), Outcome::Waiting, "is loading");
    is(&alias.next("challenger", false, now(None, Some(&ready))), Outcome::Waiting, "no traffic document yet");
    let Step::Put(next) = alias.next("challenger", false, now(Some(&one), Some(&ready))) else { panic!("a label") };
    assert_eq!((next.labels.get("challenger"), &next.split), (Some(&version(2)), &one.split));
    is(&alias.next("challenger", false, now(Some(&next), Some(&ready))), Outcome::Applied, "the label is set");
    let mut other = one.clone();
    other.labels.insert("challenger".to_owned(), version(7));
    is(&alias.next("challenger", false, now(Some(&other), Some(&ready))), Outcome::Superseded, "move the alias again");

    let removed = Followed::moved("challenger", None, Some(&next));
    let Step::Put(without) = removed.next("challenger", false, now(Some(&next), None)) else { panic!("a removal") };
    assert!(without.labels.is_empty());
    assert_eq!(removed.next("challenger", false, now(Some(&other), None)), Step::Forget, "it is another label now");
    let strange = Followed::moved("_x", Some(version(2)), Some(&one));
    is(&strange.next("_x", false, now(Some(&one), Some(&ready))), Outcome::Refused, "cannot be a label");
    assert_eq!(
        strange.next("_x", true, now(Some(&one), Some(&ready))),
        Step::Promote { version: version(2), check: false },
        "it promotes all the same"
    );
}

#[test]
fn what_became_of_aliases_survives_a_restart_and_a_file_that_cannot_be_read_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let mut memory = Memory::read(dir.path(), "http://one");
    assert!(memory.models.is_empty() && !memory.lost);
    let mut alias = Followed::moved("champion", Some(version(2)), None);
    alias.outcome = Outcome::Refused;
    alias.untold = Some("refused: x".to_owned());
    memory.models.entry("fraud".parse().unwrap()).or_default().insert("champion".to_owned(), alias);
    memory.write();
    assert_eq!(Memory::read(dir.path(), "http://one").models, memory.models);
    assert!(Memory::read(dir.path(), "http://two").models.is_empty(), "another registry has other aliases");
    for broken in ["", "{}", "[1", "{\"uri\":\"http://one\",\"models\":{\"../x\":{}}}"] {
        std::fs::write(dir.path().join("mlflow.json"), broken).unwrap();
        let memory = Memory::read(dir.path(), "http://one");
        assert!(memory.lost && memory.models.is_empty(), "{broken:?}");
    }
}
