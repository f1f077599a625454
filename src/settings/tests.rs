use super::units::{parse_bytes, parse_duration, show_bytes};
use super::*;
use proptest::prelude::*;
use std::time::Duration;

const MS: Duration = Duration::from_millis(1);
const MINUTE: Duration = Duration::from_mins(1);

fn table(text: &str) -> Table {
    Table::parse("t.toml", text)
}

fn complaints(table: Table) -> Vec<String> {
    table.finish().map_or_else(|all| all.iter().map(ToString::to_string).collect(), |()| Vec::new())
}

fn variables(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
}

#[test]
fn complaints_do_not_show_credentials_of_addresses() {
    let long = "x".repeat(200);
    let mut t = table(&format!(
        r#"
        urls = ["nats://ok:4222", "nats://u:p@w/secret@h:4222", 1]
        plain = "u:secret@h"
        long = "s3://u:secret@h/{long}"
        mail = "ann@example.org"
        bare = "secret@h:4222"
        all = ["a:4222,secret@h:4222", {{url = "secret@[::1]:4222"}}]
        at = {{ uri = "s3://u:secret@b" }}
        "#
    ));
    t.override_from_environment(variables(&[("SLUICEGATE__AUDIT__WEBHOOK", "https://u:secret@h,x")]));
    for key in ["urls", "plain", "long", "mail", "bare", "all", "at"] {
        assert_eq!(t.custom::<()>(key, "something else", |_| None), None);
    }
    assert_eq!(t.section("audit").custom::<()>("webhook", "something else", |_| None), None);
    let found = complaints(t).join("\n");
    assert!(!found.contains("secret") && !found.contains("p@w"), "{found}");
    for shown in [
        r#"["nats://ok:4222", "nats://…@h:4222", 1]"#,
        r#"got "…@h""#,
        "s3://…@h/xxx",
        r#"got "…@example.org""#,
        r#"got "…@h:4222""#,
        r#"["…@h:4222", { url = "…@[::1]:4222" }]"#,
        "s3://…@b",
        "https://…@h,x",
    ] {
        assert!(found.contains(shown), "{shown}: {found}");
    }
    let broken = complaints(table("webhook = https://u:secret@h/x\n")).join("\n");
    assert!(broken.contains("got `webhook = https://…@h/x`") && !broken.contains("secret"), "{broken}");
}

proptest! {
    #[test]
    fn nothing_before_the_last_at_of_an_address_is_shown(
        scheme in prop_oneof![Just(""), Just("nats://"), Just("tls://"), Just("s3://"), Just("https://")],
        login in "[a-zA-Z0-9:@,%?#é -]{0,40}",
        host in "[a-z0-9.:/,-]{0,40}",
    ) {
        let address = format!("{scheme}{login}@{host}");
        prop_assert_eq!(without_credentials(&address), format!("{scheme}…@{host}"));
        let without = format!("{scheme}{host}");
        prop_assert_eq!(without_credentials(&without), without.as_str());
    }
}

#[test]
fn each_kind_is_read() {
    let mut t = table(
        r#"
        name = "a"
        on = true
        count = 4_096
        share = 1
        wait = "1m30s"
        room = "64MiB"
        plain = 512
        at = "[::1]:8080"
        dir = "models"
        policy = "second"
        names = ["x", "y"]
        deep.inner = 3
        "#,
    );
    assert_eq!(t.string("name").as_deref(), Some("a"));
    assert_eq!(t.bool("on"), Some(true));
    assert_eq!(t.integer("count", 1..=10_000_usize), Some(4096));
    assert_eq!(t.float("share", 0.0..=1.0), Some(1.0));
    assert_eq!(t.duration("wait", MS..=2 * MINUTE), Some(Duration::from_secs(90)));
    assert_eq!(t.bytes("room", 0..=1 << 30), Some(64 << 20));
    assert_eq!(t.bytes("plain", 0..=1 << 30), Some(512));
    assert_eq!(t.socket_addr("at"), Some("[::1]:8080".parse().unwrap()));
    assert_eq!(t.path("dir"), Some("models".into()));
    assert_eq!(t.one_of("policy", &[("first", 1), ("second", 2)]), Some(2));
    assert_eq!(t.string_list("names"), Some(vec!["x".to_owned(), "y".to_owned()]));
    assert_eq!(t.section("deep").integer("inner", 0..=9_u8), Some(3));
    assert_eq!(t.string("absent"), None);
    assert_eq!(t.section("nowhere").string("absent"), None);
    assert_eq!(complaints(t), Vec::<String>::new(), "an absent key is no complaint");
}

#[test]
fn all_complaints_come_at_once_with_line_and_expected_value() {
    let mut t = table(
        "timeout = 10\nwait = \"2h\"\nroom = \"64 megs\"\ncount = 0\nshare = nan\nat = \"localhost:80\"\ndir = \"\"\n\
         policy = \"Second\"\nnames = [\"x\", 1]\non = \"yes\"\nname = 99999999999999999999\ndeep = 1\n",
    );
    assert_eq!(t.duration("timeout", MS..=MINUTE), None);
    t.duration("wait", MS..=MINUTE);
    t.bytes("room", 0..=1 << 30);
    t.integer("count", 1..=9_u32);
    t.float("share", 0.0..=1.0);
    t.socket_addr("at");
    t.path("dir");
    t.one_of("policy", &[("first", 1), ("second", 2)]);
    t.string_list("names");
    t.bool("on");
    t.string("name");
    t.section("deep").string("inner");
    let duration = "a duration with its unit, such as \"200ms\", \"30s\" or \"10m\", from 1ms to 1m";
    assert_eq!(
        complaints(t),
        [
            format!("t.toml:1: timeout: expected {duration}, got 10"),
            format!("t.toml:2: wait: expected {duration}, got \"2h\""),
            "t.toml:3: room: expected a size, such as \"64MiB\", \"1GB\" or a number of bytes, from 0B to 1GiB, got \"64 megs\""
                .to_owned(),
            "t.toml:4: count: expected a whole number from 1 to 9, got 0".to_owned(),
            "t.toml:5: share: expected a number from 0 to 1, got NaN".to_owned(),
            "t.toml:6: at: expected an IP address with its port, such as \"0.0.0.0:8080\" or \"[::]:8080\", got \"localhost:80\""
                .to_owned(),
            "t.toml:7: dir: expected a path that is not empty, got \"\"".to_owned(),
            "t.toml:8: policy: expected \"first\" or \"second\", got \"Second\"".to_owned(),
            "t.toml:9: names: expected a list of strings, such as [\"a\", \"b\"], got [\"x\", 1]".to_owned(),
            "t.toml:10: on: expected true or false, got \"yes\"".to_owned(),
            "t.toml:11: name: expected a string, got 99999999999999999999".to_owned(),
            "t.toml:12: deep: expected a section, written [deep], got 1".to_owned(),
        ]
    );
}

#[test]
fn an_unknown_key_is_a_complaint_with_the_most_similar_key() {
    let mut t = table("lisen = 1\ntimeout = 1\nzzz = 1\n[serve]\nlisten = \"a\"\n[server]\nlisetn = \"a\"\n");
    t.section("server").string("listen");
    t.section("server").string("timeout");
    t.string("name");
    assert_eq!(
        complaints(t),
        [
            "t.toml:1: unknown key `lisen`; known here: name, server",
            "t.toml:2: unknown key `timeout`; did you mean `server.timeout`?",
            "t.toml:3: unknown key `zzz`; known here: name, server",
            "t.toml:4: unknown key `serve`; did you mean `server`?",
            "t.toml:7: unknown key `server.lisetn`; did you mean `server.listen`?",
        ]
    );
}

#[test]
fn a_syntax_error_is_one_complaint_per_line_and_the_rest_is_still_read() {
    let mut t = table("listen = 0.0.0.0:8080\ncount = \"x\n[server\nname = \"n\"\n[other]\ncount = 0\n");
    t.string("listen");
    t.string("count");
    t.section("server").string("name");
    t.section("other").integer("count", 1..=9_u8);
    let found = complaints(t);
    assert!(found[0].starts_with("t.toml:1: not TOML: "), "{found:#?}");
    assert!(found[0].ends_with(" (strings need quotes), got `listen = 0.0.0.0:8080`"), "{found:#?}");
    assert!(found.iter().any(|c| c.starts_with("t.toml:3: not TOML: ")), "{found:#?}");
    assert!(
        found.contains(&"t.toml:6: other.count: expected a whole number from 1 to 9, got 0".to_owned()),
        "{found:#?}"
    );
    assert_eq!(found.iter().filter(|c| c.starts_with("t.toml:1:")).count(), 1, "{found:#?}");
}

#[test]
fn the_environment_overrides_the_file_and_the_command_line_overrides_both() {
    let mut t = table("[a]\nfile = \"f\"\nboth = \"f\"\nall = \"f\"\n");
    t.override_from_environment(variables(&[
        ("SLUICEGATE__A__BOTH", "e"),
        ("SLUICEGATE__A__ALL", "e"),
        ("SLUICEGATE__A__QUOTED", "\"q\""),
        ("SLUICEGATE__A__DIGITS", "123"),
        ("SLUICEGATE__A__COUNT", "123"),
        ("SLUICEGATE__A__ON", "true"),
        ("SLUICEGATE__A__NAMES", "[\"x\"]"),
        ("SLUICEGATE__A__WAIT", "200ms"),
        ("SLUICEGATE__B__C__D", "deep"),
        ("SLUICEGATE_ADMIN", "http://elsewhere"),
        ("PATH", "/bin"),
    ]));
    t.override_from_command_line(&["a", "all"], "--all", "c");
    let a = t.section("a");
    assert_eq!(a.string("file").as_deref(), Some("f"));
    assert_eq!(a.string("both").as_deref(), Some("e"));
    assert_eq!(a.string("all").as_deref(), Some("c"));
    assert_eq!(a.string("quoted").as_deref(), Some("q"), "TOML if that fits");
    assert_eq!(a.string("digits").as_deref(), Some("123"), "else a plain string");
    assert_eq!(a.integer("count", 0..=200_u8), Some(123));
    assert_eq!(a.bool("on"), Some(true));
    assert_eq!(a.string_list("names"), Some(vec!["x".to_owned()]));
    assert_eq!(a.duration("wait", MS..=MINUTE), Some(200 * MS));
    assert_eq!(t.section("b").section("c").string("d").as_deref(), Some("deep"));
    assert_eq!(complaints(t), Vec::<String>::new());
}

#[test]
fn a_variable_with_an_unknown_key_or_a_wrong_value_is_a_complaint() {
    let mut t = table("");
    let deep = format!("SLUICEGATE__{}", "A__".repeat(20_000));
    t.override_from_environment(variables(&[
        ("SLUICEGATE__SERVER__LISEN", "x"),
        ("SLUICEGATE__SERVRE__LISTEN", "x"),
        ("SLUICEGATE__", "x"),
        ("SLUICEGATE__SERVER____X", "x"),
        (&deep, "x"),
        ("SLUICEGATE__SERVER__COUNT", "many"),
        ("SLUICEGATE__LOG", "info"),
    ]));
    t.override_from_command_line(&["server", "listen"], "--listen", "here");
    t.section("server").socket_addr("listen");
    t.section("server").integer("count", 1..=9_u8);
    t.section("log").string("filter");
    let found = complaints(t);
    let has = |text: &str| assert!(found.iter().any(|c| c.contains(text)), "{text} is missing in {found:#?}");
    has("environment SLUICEGATE__SERVER__LISEN: unknown key; did you mean `SLUICEGATE__SERVER__LISTEN`?");
    has("environment SLUICEGATE__SERVRE__LISTEN: unknown key; did you mean `SLUICEGATE__SERVER__LISTEN`?");
    has("environment SLUICEGATE__: unknown key");
    has("environment SLUICEGATE__SERVER____X: unknown key");
    has("environment SLUICEGATE__SERVER__COUNT: server.count: expected a whole number from 1 to 9, got \"many\"");
    has("environment SLUICEGATE__LOG: log: expected a section, written [log], got \"info\"");
    has("option --listen: server.listen: expected an IP address");
    assert_eq!(found.len(), 8);
}

#[test]
fn a_custom_kind_accepts_values_of_several_types() {
    let read = |text: &str| {
        let mut t = table(text);
        let expected = "\"all\", { latest = N } or a list of versions";
        let read = t.custom("versions", expected, |value| match value {
            Value::String(text) if text == "all" => Some("all".to_owned()),
            Value::Table(members) if members.len() == 1 => {
                members.get("latest")?.as_integer().map(|n| format!("latest {n}"))
            }
            Value::List(items) => Some(format!("{} listed", items.len())),
            _ => None,
        });
        (read, complaints(t))
    };
    assert_eq!(read("versions = \"all\"").0.as_deref(), Some("all"));
    assert_eq!(read("versions = { latest = 2 }"), (Some("latest 2".to_owned()), vec![]));
    assert_eq!(read("[versions]\nlatest = 2").0.as_deref(), Some("latest 2"));
    assert_eq!(read("versions = [\"3\"]").0.as_deref(), Some("1 listed"));
    let complaint = "t.toml:1: versions: expected \"all\", { latest = N } or a list of versions, got { oldest = 2 }";
    assert_eq!(read("versions = { oldest = 2 }").1, [complaint]);
}

#[test]
fn unread_keys_are_free_metadata_as_json() {
    let mut t = table("sha256 = \"ab\"\ntrained_at = 2026-11-01T00:00:00Z\nauc = 0.93\n[metrics]\nrecall = [0.5, 1]\n");
    t.string("sha256");
    let rest = serde_json::to_value(t.rest()).unwrap();
    assert_eq!(
        rest,
        serde_json::json!({"trained_at": "2026-11-01T00:00:00Z", "auc": 0.93, "metrics": {"recall": [0.5, 1]}})
    );
    assert_eq!(complaints(t), Vec::<String>::new());
}

#[test]
fn code_can_add_complaints_about_keys_that_must_agree() {
    let mut t = table("least = 5\n");
    t.integer("least", 0..=9_u8);
    t.complain("least", "at most `most`, which is 3");
    t.complain("most", "a number where `least` is set");
    assert_eq!(
        complaints(t),
        [
            "most (not set): expected a number where `least` is set",
            "t.toml:1: least: expected at most `most`, which is 3, got 5",
        ]
    );
}

#[test]
fn known_keys_are_the_keys_that_were_read() {
    let mut t = table("x = 1");
    t.section("server").string("listen");
    t.string("x");
    assert_eq!(t.known_keys().into_iter().collect::<Vec<_>>(), ["server.listen", "x"]);
}

#[test]
fn durations_and_sizes_are_read_with_their_units() {
    for (text, nanos) in [("0s", 0), ("200ms", 200_000_000), ("1h30m", 5_400_000_000_000), (" 5 s ", 5_000_000_000)] {
        assert_eq!(parse_duration(text), Some(Duration::from_nanos(nanos)), "{text}");
    }
    for text in ["", " ", "5", "s", "-5s", "1.5s", "5 parsecs", "5s5", "99999999999999999999s", "9999999999d", "５s"] {
        assert_eq!(parse_duration(text), None, "{text}");
    }
    for (text, bytes) in [("1KiB", 1024), ("1kB", 1000), ("2 gb", 2_000_000_000), ("7B", 7)] {
        assert_eq!(parse_bytes(text), Some(bytes), "{text}");
    }
    for text in ["", "7", "64M", "1.5GiB", "-1B", "99999999TiB"] {
        assert_eq!(parse_bytes(text), None, "{text}");
    }
    assert_eq!(show_duration(Duration::from_millis(1500)), "1500ms");
    assert_eq!(show_duration(Duration::ZERO), "0s");
    assert_eq!(show_bytes(64 << 20), "64MiB");
    assert_eq!(show_bytes(1_000_000_000), "1GB");
    assert_eq!(show_bytes(0), "0B");
}

/// Reads every name as every kind, so that each value is tried as all kinds.
fn read_everything(t: &mut Table, depth: usize) {
    for key in ["a", "b", "server", "listen", ""] {
        t.string(key);
        t.bool(key);
        t.integer(key, 0..=9_u64);
        t.float(key, -1.0..=1.0);
        t.duration(key, Duration::ZERO..=Duration::MAX);
        t.bytes(key, 0..=u64::MAX);
        t.socket_addr(key);
        t.path(key);
        t.one_of(key, &[("a", 1)]);
        t.string_list(key);
        if depth > 0 {
            read_everything(t.section(key), depth - 1);
        }
    }
    t.complain("a", "something else");
}

fn toml_value() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        any::<i64>().prop_map(|n| n.to_string()),
        any::<f64>().prop_map(|x| format!("{x:?}")),
        Just("true".to_owned()),
        Just("2026-11-01T00:00:00Z".to_owned()),
        Just("99999999999999999999999999".to_owned()),
        "[0-9a-zµ.: ]{0,12}".prop_map(|s| format!("{s:?}")),
        "\\PC{0,6}",
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..3).prop_map(|items| format!("[{}]", items.join(", "))),
            ("[ab]|listen", inner).prop_map(|(key, value)| format!("{{ {key} = {value} }}")),
        ]
    })
}

proptest! {
    #[test]
    fn no_text_causes_a_panic(text in "\\PC{0,80}", name in "[A-Z_]{0,12}", value in "\\PC{0,20}") {
        let mut t = table(&text);
        t.override_from_environment([(format!("SLUICEGATE__{name}"), value)]);
        read_everything(&mut t, 1);
        let _ = t.finish().map_err(|all| all.to_string());
    }

    #[test]
    fn no_toml_causes_a_panic(
        lines in proptest::collection::vec(("[ab]|server|listen|a\\.b|\\[server\\]\na|\\[\\[a\\]\\]\nb", toml_value()), 0..8),
        variable in "A|B|SERVER|SERVER__LISTEN|A__B",
        value in toml_value(),
    ) {
        let text = lines.iter().map(|(key, value)| format!("{key} = {value}")).collect::<Vec<_>>().join("\n");
        let mut t = table(&text);
        t.override_from_environment([(format!("SLUICEGATE__{variable}"), value)]);
        read_everything(&mut t, 2);
        let rest = t.rest();
        prop_assert!(serde_json::to_string(&rest).is_ok());
        let _ = t.finish().map_err(|all| all.to_string());
    }

    #[test]
    fn formatted_values_can_be_read_back(nanos in any::<u64>(), bytes in any::<u64>()) {
        let duration = Duration::from_nanos(nanos);
        prop_assert_eq!(parse_duration(&show_duration(duration)), Some(duration));
        prop_assert_eq!(parse_bytes(&show_bytes(bytes)), Some(bytes));
    }
}

#[test]
fn deep_nesting_is_a_complaint() {
    for text in [
        format!("a = {}", "[".repeat(100_000)),
        format!("a = {}", "{a=".repeat(100_000)),
        format!("{} = 1", vec!["a"; 100_000].join(".")),
        format!("[{}]", vec!["a"; 100_000].join(".")),
    ] {
        let mut t = table(&text);
        read_everything(&mut t, 1);
        assert!(!complaints(t).is_empty(), "{}", &text[..20]);
    }
}
