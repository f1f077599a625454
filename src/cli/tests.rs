use super::client::{error_message, has_one_arm, parse_gates, parse_key, parse_split, set_member};
use super::{Cli, Command, CommandError, rollout, show, show_execution, show_shadow};
use clap::{CommandFactory, Parser};
use serde_json::json;

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn every_command_is_parsed_and_a_wrong_one_is_a_usage_error() {
    for line in [
        "serve",
        "serve --config a.toml --models m --listen 127.0.0.1:1 --admin-listen 127.0.0.1:2 --data-dir d",
        "serve --model fraud=/mnt/models",
        "check models/iris/1",
        "models",
        "top",
        "top --every 10s --sort requests --filter fraud",
        "versions iris --json",
        "execution iris",
        "traffic iris",
        "traffic iris --set -",
        "traffic iris --set f --reason why",
        "traffic iris --split 1=90,2=10 --sticky-by header:x-user-id --reason why",
        "promote iris 2 --reason why --dry-run --allow-signature-change",
        "promote iris 2 --reason why --gate shadow_agreement=0.99 --gate shadow_pairs=1000 --gate golden --gate signature",
        "promote iris 2 --reason why --no-gates",
        "promote iris 2 --reason why --quorum 0.9",
        "rollback iris --reason why",
        "rollback iris --to-revision 3 --reason why",
        "rollback iris --dry-run",
        "rollback iris --reason why --break-glass",
        "rollout iris --to 4 --reason why --break-glass",
        "traffic iris --set f --reason why --break-glass",
        "traffic iris --split 1=1 --reason why --break-glass",
        "traffic iris --key u1",
        "traffic iris --split 1=1,2=1 --sticky-by header:x --salt s",
        "retire iris --reason why",
        "load iris 2",
        "unload iris 2",
        "push iris 3 model.onnx --admin http://127.0.0.1:9",
        "push iris model.onnx",
        "push iris dir",
        "push iris 3 dir --signature s",
        "wait iris 3",
        "wait iris 3 --state serving --timeout 10m",
        "ready",
        "ready --timeout 60s --live --json",
        "token generate",
        "golden iris/3 --inputs x.npz --expected y.csv --rtol 1e-3 --atol 0 --min-agree 0.999 -o g.json --models m",
        "history iris",
        "export iris -o a.parquet",
        "export iris --data-dir d --from 2026-11-01 --to 2026-11-02T00:00:00Z --version 1 --version 2 --arm a --role shadow --require-label --format csv --limit 5 -o a",
        "replay iris --version 3 --models m --data-dir d --from 2026-11-01 --limit 5 --gate within_tolerance>=0.999 --json",
        "export iris -o - --format csv --admin http://127.0.0.1:9",
        "replay iris --version 3 --admin http://127.0.0.1:9",
        "reproduce some-id --model iris --models m --data-dir d",
        "reproduce --sample 20 --model iris --version 3 --from 2026-11-01 --json",
        "explain some-id --model iris --row 1 --output y --element 0 --rows 500 --models m --data-dir d --json",
        "forget --route-key u1 --reason r",
        "forget --request-id i --model m --data-dir d --hash-key-file k --reason r --json",
        "audit --model iris --since 2026-11-01T00:00:00Z --limit 5",
    ] {
        let words = std::iter::once("sluicegate").chain(line.split(' '));
        assert!(Cli::try_parse_from(words).is_ok(), "{line}");
    }
    for line in [
        "promote iris 2",
        "promote iris 2 --reason why --no-gates --gate golden",
        "rollback iris",
        "rollout iris --break-glass",
        "rollout iris --abort --reason why --break-glass",
        "traffic iris --break-glass --reason why",
        "traffic iris --set f --break-glass",
        "retire iris",
        "traffic iris --set f --split 1=1",
        "traffic iris --reason x",
        "traffic iris --salt s",
        "traffic iris --set f --salt s",
        "traffic iris --key u1 --split 1=1",
        "traffic iris --set f --sticky-by header:x",
        "traffic iris --set f --allow-signature-change",
        "nonsense",
        "push iris",
        "push iris 1 2 3",
        "promote iris 2 --reason why --quorum NaN",
        "promote iris 2 --reason why --quorum 0",
        "traffic iris --split 1=1 --reason why --quorum 1.1",
        "wait iris",
        "wait iris 3 --timeout soon",
        "wait iris 3 --timeout 25h",
        "golden iris/3 --inputs x.npz",
        "export iris",
        "replay iris",
        "reproduce",
        "forget --reason r",
        "forget --route-key u1",
        "forget --route-key u1 --request-id i --reason r",
    ] {
        let words = std::iter::once("sluicegate").chain(line.split(' '));
        let error = Cli::try_parse_from(words).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{line}");
    }
}

#[test]
fn every_help_says_what_the_command_does_has_examples_and_describes_every_option() {
    let mut root = Cli::command();
    root.build();
    let mut commands = vec![root];
    while let Some(command) = commands.pop() {
        if command.get_name() == "help" {
            continue;
        }
        let name = command.get_name().to_owned();
        let about = command.get_about().unwrap_or_else(|| panic!("{name} says what it does")).to_string();
        assert!(about.len() > 10 && !about.contains('\n'), "{name}: {about}");
        for argument in command.get_arguments() {
            let described = argument.get_help().is_some_and(|help| help.to_string().len() > 5);
            assert!(described, "{name}: {} is described", argument.get_id());
        }
        let help = command.get_after_help().unwrap_or_else(|| panic!("{name} has examples")).to_string();
        let examples =
            help.strip_prefix("Examples:\n").unwrap_or_else(|| panic!("{name} begins with examples: {help}"));
        // With the names of the commands above it: `sluicegate token revoke`.
        let call = command.get_bin_name().unwrap_or("sluicegate").to_owned();
        assert!(examples.contains(&call), "{name}: {examples}");
        // Every example has to be a command line that is accepted.
        for line in examples.lines().map_while(|line| line.strip_prefix("  sluicegate ")) {
            let line = line.split("  ").next().unwrap().split(" | ").next().unwrap();
            let words = std::iter::once("sluicegate".to_owned()).chain(shell_words(line));
            assert!(Cli::try_parse_from(words).is_ok(), "{line}");
        }
        commands.extend(command.get_subcommands().cloned());
    }
    assert!(matches!(Cli::try_parse_from(["sluicegate", "models"]).unwrap().command, Command::Models));
}

/// Splits at spaces outside of double quotes.
fn shell_words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut is_quoted = false;
    for c in line.chars() {
        match c {
            '"' => is_quoted = !is_quoted,
            ' ' if !is_quoted => words.push(String::new()),
            c => words.last_mut().unwrap().push(c),
        }
    }
    words
}

#[test]
fn the_reason_on_the_command_line_replaces_the_one_in_the_document() {
    let set = |document: &str| {
        set_member(document.as_bytes(), "reason", &json!("a \"b\"")).map(|bytes| String::from_utf8(bytes).unwrap())
    };
    assert_eq!(set("{}").unwrap(), r#"{"reason":"a \"b\""}"#);
    assert_eq!(
        set(r#" { "split": [ {"version":"1", "weight":1.50} ], "reason": "old", "salt":"\u00e9" } "#).unwrap(),
        r#"{"split":[ {"version":"1", "weight":1.50} ],"salt":"\u00e9","reason":"a \"b\""}"#
    );
    assert_eq!(
        set(r#"{"salt":"a","salt":"b","reason":"1","reason":"2"}"#).unwrap(),
        r#"{"salt":"a","salt":"b","reason":"a \"b\""}"#,
        "the server reports the member that is there twice"
    );
    let glass = set_member(br#"{"break_glass":false,"salt":"a"}"#, "break_glass", &json!(true)).unwrap();
    assert_eq!(glass, br#"{"salt":"a","break_glass":true}"#);
    for other in ["", "[]", "null", "{", r#"{"a":1} x"#, r#"{"a":}"#, "\u{0}"] {
        assert_eq!(set(other), None, "{other:?} is sent unchanged, and the server says what is wrong with it");
    }
}

#[test]
fn an_error_is_printed_once() {
    let message = |body: serde_json::Value| error_message(400, body.to_string().as_bytes());
    let refused = "model.onnx is not an ONNX model";
    assert_eq!(message(json!({"error": refused, "details": [refused]})), refused);
    let several = json!({"error": "the request is wrong", "details": ["a: missing", "b: too long"]});
    assert_eq!(message(several), "the request is wrong\n  - a: missing\n  - b: too long");
    assert_eq!(message(json!({})), "the server answered 400");
    assert_eq!(error_message(502, b"<html>"), "the server answered 502: <html>");
}

#[test]
fn splits_and_keys_are_parsed() {
    assert_eq!(
        parse_split("1=90, challenger:2=10", &json!({})).unwrap(),
        json!([{"version": "1", "weight": 90.0}, {"version": "2", "weight": 10.0, "arm": "challenger"}])
    );
    let now = json!({"split": [{"version": "1", "weight": 1, "arm": "control"}]});
    assert_eq!(
        parse_split("1=50,2=50", &now).unwrap()[0]["arm"],
        "control",
        "a version keeps the name of its arm, so that sticky keys keep their arm"
    );
    for bad in ["", "1", "1=x", "1=1,", "1=NaN"] {
        assert!(matches!(parse_split(bad, &json!({})), Err(CommandError::Usage(_))), "{bad}");
    }
    assert_eq!(parse_key("header:x-user-id").unwrap(), json!({"header": "x-user-id"}));
    assert!(matches!(parse_key("cookie:a"), Err(CommandError::Usage(_))));
}

#[test]
fn an_experiment_is_a_split_with_several_arms_that_get_requests() {
    let split = |weights: &[f64]| {
        let arm = |weight: &f64| json!({"version": "1", "weight": weight});
        json!({"split": weights.iter().map(arm).collect::<Vec<_>>()})
    };
    assert!(has_one_arm(&split(&[1.0])) && has_one_arm(&split(&[0.0, 5.0])) && has_one_arm(&split(&[])));
    assert!(!has_one_arm(&split(&[1.0, 0.5])));
}

#[test]
fn an_assignment_is_shown_with_its_scores() {
    let arm = |arm: &str, version: &str, draw: f64| json!({"arm": arm, "version": version, "weight": 1.0, "draw": draw, "score": 2.0});
    let text = show::assignment(&json!({
        "key": "u1", "arm": "b", "version": "2", "revision": 7, "why": "w", "salt": "iris", "default_salt": true,
        "arms": [arm("a", "1", 0.25), arm("b", "2", 0.5)],
    }));
    assert!(text.starts_with("u1: arm b, version 2 (revision 7)\nw\nsalt: iris (the model's name)\n"), "{text}");
    assert!(text.contains("b    2        1.0     0.500000  2.000000"), "{text}");
    let changed =
        json!({"revision": 2, "sticky_by": {"header": "x"}, "moves": {"share": 0.333, "notes": ["arm a is new"]}});
    let text = show::traffic(&changed);
    assert!(text.contains("this change moved about 33.3 % of the keys to another arm\n  arm a is new\n"), "{text}");
}

#[test]
fn gates_are_parsed() {
    let read = |gates: &[&str]| parse_gates(&gates.iter().map(|g| (*g).to_owned()).collect::<Vec<_>>());
    assert_eq!(
        read(&["shadow_agreement=0.99", "shadow_pairs=50", "golden"]).unwrap(),
        json!({"shadow_agreement": 0.99, "shadow_pairs": 50, "golden": true})
    );
    assert_eq!(read(&[]).unwrap(), json!({}));
    for bad in
        [&["shadow_agreement=much"][..], &["=1"], &["golden=\"x\""], &["shadow_agreement=NaN"], &["golden", "golden"]]
    {
        assert!(matches!(read(bad), Err(CommandError::Usage(_))), "{bad:?}");
    }
}

#[test]
fn promotions_and_rollbacks_are_shown() {
    let gate = |gate: &str, passed: bool| json!({"gate": gate, "asked": "a", "found": "f", "passed": passed});
    let answer = json!({"model": "m", "from": "1", "to": "2", "revision": 3, "would_pass": false,
        "gates": [gate("golden", true), gate("shadow_pairs", false)]});
    let text = show::promotion(&answer, true);
    assert!(text.starts_with("dry run: m would change from version 1 to version 2; nothing was changed\n"), "{text}");
    assert!(text.contains("golden        passed") && text.contains("shadow_pairs  FAILED"), "{text}");
    assert!(text.ends_with("the promotion would be refused\n"), "{text}");
    let again = json!({"model": "m", "from": "2", "to": "2", "revision": 3, "gates": []});
    assert_eq!(show::promotion(&again, false), "m: version 2 serves already, revision 3\n");
    assert_eq!(show::promotion(&again, true), "dry run: m: version 2 serves already; nothing was changed\n");
    let other = json!({"model": "m", "from": "1", "to": "1", "revision": 4, "restored": 2, "difference": ["salt: \"s\" → none"]});
    assert_eq!(
        show::rollback(&other, true),
        "dry run: m: version 1 would go on; nothing was changed; what would change:\n  salt: \"s\" → none\n\
         would restore the traffic document of revision 2\n"
    );
    let returned = json!({"model": "m", "from": null, "to": "2", "revision": 5, "returns": true, "gates": []});
    assert_eq!(show::promotion(&returned, false), "m: was retired, and is served again by version 2, revision 5\n");
    assert_eq!(
        show::promotion(&returned, true),
        "dry run: retired model m would be served again, by version 2; nothing was changed\n"
    );
    let back = json!({"model": "m", "from": "2", "to": "1", "revision": 4, "restored": 2, "loaded": ["1", "3"]});
    let text = show::rollback(&back, false);
    let restored = "restored the traffic document of revision 2\n";
    assert_eq!(
        text,
        format!("m: changed from version 2 to version 1, revision 4\n{restored}loaded again first: 1, 3\n")
    );
}

#[test]
fn a_change_names_the_split_it_leaves_and_the_rollout_it_ends() {
    let arm = |name: &str, version: &str, weight: f64| json!({"arm": name, "version": version, "weight": weight});
    let difference = "split: 1=70, canary:2=30 → 1=1";
    let promoted = json!({
        "model": "m", "from": "1", "to": "1", "revision": 5, "gates": [], "difference": [difference],
        "from_split": [arm("1", "1", 70.0), arm("canary", "2", 30.0), arm("3", "3", 0.0)],
        "ends_rollout": {"to": "2", "percent": 30.0, "by": "ann", "revision": 4},
    });
    assert_eq!(
        show::promotion(&promoted, false),
        format!(
            "m: changed from the split 1=70, canary:2=30 to version 1, revision 5\n  {difference}\nthis ended the rollout to version 2 \
             at 30 %, which ann began\n"
        )
    );
    let text = show::promotion(&promoted, true);
    assert!(
        text.starts_with("dry run: m would change from the split 1=70, canary:2=30 to version 1; nothing"),
        "{text}"
    );
    assert!(text.contains("this would end the rollout to version 2 at 30 %"), "{text}");
    let back = json!({
        "model": "m", "from": "1", "to": "1", "revision": 5, "restored": 3, "loaded": ["2"], "difference": ["split: 1=1 → 1=70, 2=30"],
        "from_split": [arm("1", "1", 1.0)], "to_split": [arm("1", "1", 70.0), arm("2", "2", 30.0)],
    });
    assert_eq!(
        show::rollback(&back, true),
        "dry run: m would change from version 1 to the split 1=70, 2=30; nothing was changed\n  split: 1=1 → 1=70, 2=30\nwould restore \
         the traffic document of revision 3\nwould be loaded first: 2\n"
    );
}

#[test]
fn the_audit_trail_shows_the_gates_of_a_promotion() {
    let event = |id: u64, gates: serde_json::Value| json!({"id": id, "ts": "t", "actor": "ann", "action": "promote", "model": "m", "reason": "why", "after": {"gates": gates}});
    let passed = json!({"from": "model.toml", "verdicts": [{"gate": "golden"}, {"gate": "signature"}]});
    let off = json!({"from": "request", "verdicts": [], "instead_of": {"golden": true}});
    let text = show::audit(&json!({"events": [event(3, off), event(2, passed), event(1, json!(null))]}));
    let at = text.find("GATES").unwrap();
    let cells: Vec<&str> = text.lines().skip(1).map(|line| line[at..].split("  ").next().unwrap()).collect();
    assert_eq!(cells, ["off (instead of model.toml)", "golden,signature", ""], "{text}");
}

#[test]
fn tables_line_up() {
    let text = show::table(&["A", "LONG"], &[vec!["wide cell".into(), "x".into()], vec!["y".into(), String::new()]]);
    assert_eq!(text, "A          LONG\nwide cell  x\ny\n");
    let text = show::table(&["A", "B"], &[vec!["two\n  lines".into(), "x".into()]]);
    assert_eq!(text, "A          B\ntwo lines  x\n");
}

#[test]
fn execution_is_shown_with_the_reasons() {
    let version = json!({"version": "2", "engine": "onnxruntime", "at_once": null,
        "batching": {"enabled": true, "why": "8 rows were the same", "max_rows": 64, "worth_elements": 4096},
        "cost": [{"elements": 32, "us": 4.26, "at_once": true}, {"elements": 4096, "us": 1234.0, "at_once": false}],
        "runs": {"alone": 7, "gathered": 2, "gathered_requests": 12, "spread": 5, "cut_in_vain": 1, "together": [{"rows_up_to": 8, "runs": 3}], "taken_apart": 0, "expired": 1, "left": 2,
            "interrupted": 4, "lost": 1}});
    let answer = json!({"model": "m", "at_once_below_us": 200.0, "workers": 2, "versions": [version]});
    let expected = "version 2 (onnxruntime)
runs:      up to 200.0 us on the I/O thread, else on one of 2 workers
batching:  up to 64 rows per run (8 rows were the same)
splitting: when workers are idle and the measured cost says that it is faster
INPUT ELEMENTS  RUN TIME  THREAD
32              4.3 us    I/O thread
4096            1.23 ms   worker
RUNS OF              COUNT
one request          7
batch, up to 8 rows  3
read in one turn and run together: 12 requests in 2 runs
split across idle workers: 5 requests (1 failed splits)
batches that failed and were run again request by request: 0
dropped before they ran: 1 requests past their deadline, 2 cancelled by the caller
ended while they ran: 4 (1 of them did not end)
";
    assert_eq!(show_execution::execution(&answer), expected);
    let pinned = json!({"version": "1", "engine": "tract", "at_once": false, "batching": {"enabled": false, "why": "no rows"},
        "cost": [], "runs": {"alone": 0, "gathered": 0, "gathered_requests": 0, "spread": 0, "cut_in_vain": 0, "together": [], "taken_apart": 0, "expired": 0, "left": 0,
            "interrupted": 0, "lost": 0}});
    let mut looping = pinned.clone();
    looping["never_at_once"] = "operator Loop: values decide how long it takes".into();
    let text = show_execution::execution(&json!({"model": "m", "versions": [pinned]}));
    assert!(text.contains("runs:      always on a worker (set in model.toml)\nbatching:  off (no rows)\n"), "{text}");
    let text = show_execution::execution(&json!({"model": "m", "versions": [looping]}));
    assert!(
        text.contains("runs:      always on a worker (operator Loop: values decide how long it takes)\n"),
        "{text}"
    );
    assert_eq!(show_execution::execution(&json!({"model": "m", "versions": []})), "m has no version loaded\n");
}

#[test]
fn the_history_names_arms_that_differ_from_their_version() {
    let arm = |name: &str, version: &str, weight: f64| json!({"arm": name, "version": version, "weight": weight});
    let document = json!({"split": [arm("control", "1", 0.9), arm("2", "2", 0.1)]});
    let text = show::history(&json!({"history": [{"revision": 1, "document": document}]}));
    assert!(text.contains("control:1=0.9,2=0.1"), "{text}");
}

#[test]
fn a_model_without_shadows_says_so() {
    let text = show_shadow::list(&json!({"model": "m", "shadows": []}));
    assert_eq!(text, "m has no shadows and no results of earlier ones\n");
}

#[test]
fn a_rollout_shows_its_guardrails_with_the_confidence_of_their_intervals() {
    let guardrail = |low: f64, high: Option<f64>, broken: bool| {
        let side = json!({"requests": 10, "bad": 1});
        json!({"name": "error_rate_ratio", "limit": 1.0, "candidate": side, "control": side, "interval": [low, high], "broken": broken})
    };
    let text = rollout::text(&json!({
        "model": "m", "to": "2", "state": "running", "percent": 5.0, "why": "w", "steps": [5.0, 100.0], "hold": "10m",
        "min_requests": 100, "held": "3m", "by": "ann", "started_at": "t", "reason": "r", "false_alarm_rate": 0.05,
        "guardrails": [guardrail(0.5, Some(1.5), false), guardrail(1.2, None, true), guardrail(0.0, None, false)], "moves": [],
    }));
    assert!(text.contains("m: version 2 running at 5 %: w\n"), "{text}");
    let ended = |state: &str, step: serde_json::Value| json!({"model": "m", "to": "2", "state": state, "percent": 0.0, "step": step, "steps": [5.0, 25.0, 100.0], "why": format!("{state}: complaints")});
    let before = "the traffic is as it was before the rollout: complaints\n";
    for (state, step, words) in
        [("aborted", json!(1), "aborted at 25 %"), ("taken_back", json!(null), "taken back as a shadow")]
    {
        let text = rollout::text(&ended(state, step));
        assert!(text.starts_with(&format!("m: version 2 {words}; {before}")), "the state is named once: {text}");
    }
    let metric = json!({"metric": "clicked", "cuped": {"units": 300, "variance_explained": 0.42}});
    assert!(rollout::adjusted(&metric).unwrap().contains("(42 % of the variance, 300 units)"));
    assert_eq!(rollout::adjusted(&json!({"metric": "clicked", "cuped": null})), None);
    assert!(text.contains("each for at least 10m and 100 requests; this step has run for 3m\n"), "{text}");
    assert!(text.contains("95 % INTERVAL"), "{text}");
    let cells: Vec<&str> = text.lines().filter(|line| line.starts_with("error_rate")).collect();
    assert!(cells[0].contains("0.500 to 1.500") && cells[0].ends_with("ok"), "{text}");
    assert!(cells[1].contains("at least 1.200") && cells[1].ends_with("BROKEN"), "{text}");
    assert!(cells[2].contains("no data yet"), "{text}");
}
