use super::client::{parse_gates, parse_key, parse_split};
use super::{Cli, Command, Failed, show, show_execution};
use clap::{CommandFactory, Parser};
use serde_json::json;

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn every_command_is_read_and_a_wrong_one_is_usage() {
    for line in [
        "serve",
        "serve --config a.toml --models m --listen 127.0.0.1:1 --admin-listen 127.0.0.1:2 --data-dir d",
        "check models/iris/1",
        "models",
        "versions iris --json",
        "execution iris",
        "traffic iris",
        "traffic iris --set -",
        "traffic iris --split 1=90,2=10 --sticky-by header:x-user-id --reason why",
        "promote iris 2 --reason why --dry-run --allow-signature-change",
        "promote iris 2 --reason why --gate shadow_agreement=0.99 --gate shadow_pairs=1000 --gate golden --gate signature",
        "promote iris 2 --reason why --no-gates",
        "rollback iris --reason why",
        "load iris 2",
        "unload iris 2",
        "push iris 3 model.onnx --admin http://127.0.0.1:9",
        "history iris",
        "export iris -o a.parquet",
        "export iris --data-dir d --from 2026-11-01 --to 2026-11-02T00:00:00Z --version 1 --version 2 --arm a --role shadow --require-label --format csv --limit 5 -o a",
        "replay iris --version 3 --models m --data-dir d --from 2026-11-01 --limit 5 --gate within_tolerance>=0.999 --json",
        "reproduce some-id --model iris --models m --data-dir d",
        "audit --model iris --since 2026-11-01T00:00:00Z --limit 5",
    ] {
        let words = std::iter::once("sluicegate").chain(line.split(' '));
        assert!(Cli::try_parse_from(words).is_ok(), "{line}");
    }
    for line in [
        "promote iris 2",
        "promote iris 2 --reason why --no-gates --gate golden",
        "rollback iris",
        "traffic iris --set f --split 1=1",
        "traffic iris --reason x",
        "traffic iris --set f --reason x",
        "traffic iris --set f --sticky-by header:x",
        "traffic iris --set f --allow-signature-change",
        "nonsense",
        "push iris",
        "export iris",
        "replay iris",
        "reproduce",
    ] {
        let words = std::iter::once("sluicegate").chain(line.split(' '));
        let error = Cli::try_parse_from(words).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{line}");
    }
}

#[test]
fn help_has_examples_on_every_level() {
    for command in Cli::command().get_subcommands_mut() {
        let help = command.render_long_help().to_string();
        assert!(help.contains("Example"), "{help}");
    }
    assert!(matches!(Cli::try_parse_from(["sluicegate", "models"]).unwrap().command, Command::Models));
}

#[test]
fn splits_and_keys_are_read_as_people_write_them() {
    assert_eq!(
        parse_split("1=90, challenger:2=10", &json!({})).unwrap(),
        json!([{"version": "1", "weight": 90.0}, {"version": "2", "weight": 10.0, "arm": "challenger"}])
    );
    let now = json!({"split": [{"version": "1", "weight": 1, "arm": "control"}]});
    assert_eq!(
        parse_split("1=50,2=50", &now).unwrap()[0]["arm"],
        "control",
        "a version keeps its arm's name, so that sticky keys stay"
    );
    for bad in ["", "1", "1=x", "1=1,", "1=NaN"] {
        assert!(matches!(parse_split(bad, &json!({})), Err(Failed::Usage(_))), "{bad}");
    }
    assert_eq!(parse_key("header:x-user-id").unwrap(), json!({"header": "x-user-id"}));
    assert!(matches!(parse_key("cookie:a"), Err(Failed::Usage(_))));
}

#[test]
fn gates_are_read_as_people_write_them() {
    let read = |gates: &[&str]| parse_gates(&gates.iter().map(|g| (*g).to_owned()).collect::<Vec<_>>());
    assert_eq!(
        read(&["shadow_agreement=0.99", "shadow_pairs=50", "golden"]).unwrap(),
        json!({"shadow_agreement": 0.99, "shadow_pairs": 50, "golden": true})
    );
    assert_eq!(read(&[]).unwrap(), json!({}));
    for bad in
        [&["shadow_agreement=much"][..], &["=1"], &["golden=\"x\""], &["shadow_agreement=NaN"], &["golden", "golden"]]
    {
        assert!(matches!(read(bad), Err(Failed::Usage(_))), "{bad:?}");
    }
}

#[test]
fn verdicts_and_what_was_loaded_are_shown() {
    let gate = |gate: &str, passed: bool| json!({"gate": gate, "asked": "a", "found": "f", "passed": passed});
    let answer = json!({"model": "m", "from": "1", "to": "2", "revision": 3, "would_pass": false,
        "gates": [gate("golden", true), gate("shadow_pairs", false)]});
    let text = show::promotion(&answer, true);
    assert!(text.starts_with("m: would go from version 1 to version 2; nothing was changed\n"), "{text}");
    assert!(text.contains("golden        passed") && text.contains("shadow_pairs  FAILED"), "{text}");
    assert!(text.ends_with("it would be refused\n"), "{text}");
    let back = json!({"model": "m", "from": "2", "to": "1", "revision": 4, "loaded": ["1", "3"]});
    let text = show::rollback(&back);
    assert_eq!(text, "m: from version 2 to version 1, revision 4\nnot loaded any more, so loaded again first: 1, 3\n");
}

#[test]
fn the_audit_trail_shows_the_gates_of_a_promotion() {
    let event = |id: u64, gates: serde_json::Value| json!({"id": id, "ts": "t", "actor": "ann", "action": "promote", "model": "m", "reason": "why", "after": {"gates": gates}});
    let passed = json!({"from": "model.toml", "verdicts": [{"gate": "golden"}, {"gate": "signature"}]});
    let off = json!({"from": "request", "verdicts": [], "instead_of": {"golden": true}});
    let text = show::audit(&json!({"events": [event(3, off), event(2, passed), event(1, json!(null))]}));
    let at = text.find("GATES").unwrap();
    let cells: Vec<&str> = text.lines().skip(1).map(|line| line[at..].split("  ").next().unwrap()).collect();
    assert_eq!(cells, ["off (not model.toml's)", "golden,signature", ""], "{text}");
}

#[test]
fn tables_line_up() {
    let text = show::table(&["A", "LONG"], &[vec!["wide cell".into(), "x".into()], vec!["y".into(), String::new()]]);
    assert_eq!(text, "A          LONG\nwide cell  x\ny\n");
    let text = show::table(&["A", "B"], &[vec!["two\n  lines".into(), "x".into()]]);
    assert_eq!(text, "A          B\ntwo lines  x\n");
}

#[test]
fn where_runs_happen_is_shown_with_the_reasons() {
    let version = json!({"version": "2", "engine": "onnxruntime", "at_once": null,
        "batching": {"enabled": true, "why": "8 rows were the same", "max_rows": 64, "worth_elements": 4096},
        "cost": [{"elements": 32, "us": 4.26, "at_once": true}, {"elements": 4096, "us": 1234.0, "at_once": false}],
        "runs": {"alone": 7, "spread": 5, "cut_in_vain": 1, "together": [{"rows_up_to": 8, "runs": 3}], "taken_apart": 0, "expired": 1, "left": 2}});
    let answer = json!({"model": "m", "at_once_below_us": 200.0, "workers": 2, "versions": [version]});
    let expected = "version 2 (onnxruntime)
runs:      at once up to 200.0 us, else on one of 2 workers
together:  up to 64 rows: 8 rows were the same
cut:       where workers idle and it was measured to pay
ELEMENTS  A RUN TAKES  WHERE
32        4.3 us       at once
4096      1.23 ms      on a worker
ROWS TOGETHER  RUNS
alone          7
up to 8        3
cut by rows over idle workers: 5 requests, 1 in vain
taken apart after a failure: 0 runs; dropped before they ran: 1 past their deadline, 2 whose caller had left
";
    assert_eq!(show_execution::execution(&answer), expected);
    let pinned = json!({"version": "1", "engine": "tract", "at_once": false, "batching": {"enabled": false, "why": "no rows"},
        "cost": [], "runs": {"alone": 0, "spread": 0, "cut_in_vain": 0, "together": [], "taken_apart": 0, "expired": 0, "left": 0}});
    let text = show_execution::execution(&json!({"model": "m", "versions": [pinned]}));
    assert!(text.contains("runs:      on a worker: model.toml says so\ntogether:  never: no rows\n"), "{text}");
    assert_eq!(show_execution::execution(&json!({"model": "m", "versions": []})), "m has no version loaded\n");
}

#[test]
fn the_history_names_arms_that_are_not_called_like_their_version() {
    let arm = |name: &str, version: &str, weight: f64| json!({"arm": name, "version": version, "weight": weight});
    let document = json!({"split": [arm("control", "1", 0.9), arm("2", "2", 0.1)]});
    let text = show::history(&json!({"history": [{"revision": 1, "document": document}]}));
    assert!(text.contains("control:1=0.9,2=0.1"), "{text}");
}
