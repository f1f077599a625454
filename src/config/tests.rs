use super::*;
use crate::settings::{Complaints, Table};
use std::path::{Path, PathBuf};

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn load(file: Option<&Path>, variables: &[(&str, &str)], overrides: &Overrides) -> Result<Config, Complaints> {
    let variables = variables.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
    Config::load(file, variables.collect::<Vec<_>>(), overrides)
}

#[test]
fn the_documented_defaults_are_the_built_in_ones() {
    let path = repository(Config::DEFAULT_FILE);
    let documented = load(Some(&path), &[], &Overrides::default());
    assert_eq!(documented.unwrap_or_else(|all| panic!("{all}")), Config::default());
}

#[test]
fn every_key_is_documented_with_its_default_and_whether_it_is_live() {
    let text = std::fs::read_to_string(repository(Config::DEFAULT_FILE)).unwrap();
    let mut all = Table::default();
    Config::read(&mut all);
    let mut section = "";
    // Each key with the comment above it.
    let mut documented: Vec<(String, String)> = Vec::new();
    let mut comment = String::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']');
        }
        let key = line.strip_prefix("# ").unwrap_or(line).split_once(" = ").map_or("", |(key, _)| key);
        if !section.is_empty() && !key.is_empty() && key.chars().all(|c| c.is_ascii_lowercase() || c == '_') {
            documented.push((format!("{section}.{key}"), std::mem::take(&mut comment)));
        } else {
            comment.push_str(line.strip_prefix('#').unwrap_or_default());
        }
    }
    let keys: std::collections::BTreeSet<String> = documented.iter().map(|(key, _)| key.clone()).collect();
    assert_eq!(keys, all.known_keys(), "the file documents exactly the known keys");
    for (key, comment) in &documented {
        assert!(comment.len() > 20, "{key} has a comment with the reason");
        let live = LIVE.contains(&key.as_str());
        assert_eq!(
            comment.ends_with("(live)"),
            live,
            "{key} is marked (live) if and only if it can change at run time"
        );
    }
}

#[test]
fn each_invalid_file_fails_with_exactly_the_errors_it_expects() {
    let mut files = 0;
    for entry in std::fs::read_dir(repository("config/invalid")).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let expected: Vec<&str> = text.lines().map_while(|line| line.strip_prefix("# expect: ")).collect();
        assert!(!expected.is_empty(), "{} begins with the expected errors", path.display());
        let Err(complaints) = load(Some(&path), &[], &Overrides::default()) else {
            panic!("{} is refused", path.display());
        };
        let found: Vec<String> = complaints.iter().map(ToString::to_string).collect();
        for words in &expected {
            assert!(found.iter().any(|c| c.contains(words)), "{}: {words:?} is missing in {found:#?}", path.display());
        }
        for complaint in &found {
            let wanted = expected.iter().any(|words| complaint.contains(words));
            assert!(wanted, "{}: unexpected: {complaint:?}", path.display());
        }
        files += 1;
    }
    assert!(files >= 5, "there are files to test");
}

#[test]
fn the_environment_overrides_the_file_and_the_command_line_overrides_both() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.toml");
    std::fs::write(&path, "[server]\nlisten = \"1.1.1.1:1\"\nmax_body = \"1MiB\"\n[models]\ndir = \"from-file\"\n")
        .unwrap();
    let variables =
        [("SLUICEGATE__SERVER__LISTEN", "2.2.2.2:2"), ("SLUICEGATE__MODELS__DIR", "from-env"), ("HOME", "/")];
    let overrides = Overrides {
        listen: Some("3.3.3.3:3".into()),
        admin_listen: Some("[::1]:4".into()),
        models: None,
        data_dir: Some("elsewhere".into()),
        model: None,
        fleet: Some("nats://a:4222, tls://b:4222".into()),
    };
    let config = load(Some(&path), &variables, &overrides).unwrap();
    assert_eq!(config.server.listen, "3.3.3.3:3".parse().unwrap());
    assert_eq!(config.server.max_body, 1 << 20);
    assert_eq!(config.models.dir, PathBuf::from("from-env"));
    assert_eq!(config.admin.listen, "[::1]:4".parse().unwrap());
    assert_eq!(config.data.dir, PathBuf::from("elsewhere"));
    assert_eq!(config.fleet.urls, ["nats://a:4222", "tls://b:4222"]);
    assert_eq!(config.log, Log::default());
}

#[test]
fn errors_of_all_sources_are_reported_at_once() {
    let overrides = Overrides { admin_listen: Some("everywhere".into()), ..Overrides::default() };
    let variables = [("SLUICEGATE__SERVER__IO_THREAD", "2"), ("SLUICEGATE__LOG__FORMAT", "xml")];
    let found = load(None, &variables, &overrides).unwrap_err().to_string();
    let lines: Vec<&str> = found.lines().collect();
    assert_eq!(
        lines[0],
        "environment SLUICEGATE__LOG__FORMAT: log.format: expected \"human\" or \"json\", got \"xml\""
    );
    assert_eq!(
        lines[1],
        "environment SLUICEGATE__SERVER__IO_THREAD: unknown key; did you mean `SLUICEGATE__SERVER__IO_THREADS`?"
    );
    assert!(lines[2].starts_with("option --admin-listen: admin.listen: expected "), "{found}");
    assert_eq!(lines.len(), 3, "{found}");
}

#[test]
fn an_unreadable_file_is_an_error() {
    let missing = load(Some(Path::new("/nowhere/c.toml")), &[], &Overrides::default()).unwrap_err().to_string();
    assert!(missing.starts_with("cannot read the configuration /nowhere/c.toml: "), "{missing}");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.toml");
    std::fs::write(&path, [0xff, 0xfe]).unwrap();
    assert!(load(Some(&path), &[], &Overrides::default()).unwrap_err().to_string().contains("UTF-8"));
}

/// The keys that can change at run time. The others need a restart.
const LIVE: [&str; 16] = [
    "server.max_in_flight",
    "server.max_body",
    "server.body_timeout",
    "server.request_timeout",
    "server.max_request_timeout",
    "server.version_headers",
    "server.version_in_body",
    "server.shutdown_grace",
    "server.shutdown_announce",
    "serving.default_model",
    "callers.max_in_flight",
    "callers.rate",
    "callers.burst",
    "callers.rules",
    "tracing.sample_rate",
    "log.filter",
];

/// A configuration in which every key differs from its default.
const ALL_DIFFERENT: &str = r#"
    [server]
    listen = "1.1.1.1:1"
    max_in_flight = 1
    max_unfinished = 1
    max_unfinished_per_peer = 1
    max_connections = 1
    max_streams = 1
    max_body = "1KiB"
    max_answer = "1KiB"
    memory = "1GiB"
    max_headers = "8KiB"
    header_timeout = "1s"
    body_timeout = "1s"
    idle_timeout = "1s"
    write_timeout = "1s"
    request_timeout = "1s"
    max_request_timeout = "1s"
    shutdown_grace = "1s"
    supervise = false
    crash_inputs = "1KiB"
    shutdown_announce = "1s"
    require_token = true
    version_headers = false
    version_in_body = false
    io_threads = 1
    [server.tls]
    certificate = "x"
    key = "x"
    client_ca = "x"
    client_auth = "optional"
    [admin]
    listen = "127.0.0.1:1"
    require_token = true
    first_token = true
    allowed_hosts = ["ops.example"]
    [admin.tls]
    certificate = "x"
    key = "x"
    client_ca = "x"
    client_auth = "optional"
    [access]
    certificates = [{ name = "ops", role = "viewer" }]
    tokens = [{ name = "metrics", role = "viewer", file = "x" }]
    [access.oidc]
    issuer = "https://idp.example"
    audience = "a"
    jwks = "https://idp.example/keys"
    ca = "x"
    refresh = "1m"
    algorithms = ["ES384"]
    leeway = "2m"
    name_claim = "email"
    roles_claim = "groups"
    roles = [{ value = "ops", role = "operator", models = ["a-*"] }]
    [callers]
    max_in_flight = 1
    rate = 1
    burst = 1
    rules = [{ caller = "nightly-*", priority = "batch" }]
    [approval]
    required = true
    [models]
    dir = "x"
    settle = "1s"
    rescan = "1s"
    memory_budget = 1
    load_threads = 2
    load_timeout = "1s"
    verify_timeout = "1s"
    warm_timeout = "1s"
    crash_limit = 4
    crash_window = "11m"
    drain_timeout = "1s"
    keep_warm = "1s"
    policy = "make_room"
    trusted_keys = ["ci=MCowBQYDK2VwAyEAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="]
    trials = false
    [models.sources]
    uris = ["s3://bucket/prefix", { uri = "https://host/a", model = "m" }]
    interval = "1s"
    cache = "1GiB"
    versions = 1
    timeout = "1s"
    instance_metadata = true
    [models.mlflow]
    uri = "https://mlflow.internal"
    models = ["fraud"]
    promote_alias = "champion"
    versions = 3
    timeout = "1s"
    ca = "x"
    tags = "here"
    [serving]
    default_model = "x"
    [engines]
    onnxruntime = "x"
    custom_ops_dir = "x"
    skip_divisions = false
    [execute]
    inline_below = "1us"
    queue = 1
    max_wait = "2s"
    workers = 1
    [shadows]
    threads = 1
    queue = 1
    queue_bytes = "1MiB"
    worst = 1
    rtol = 0.5
    atol = 0.5
    [prediction_log]
    enabled = false
    sample_rate = 0.5
    hash_route_key = false
    max_record_bytes = "1KiB"
    acknowledge = "disk"
    on_failure = "serve"
    flush_interval = "1s"
    queue_bytes = "1MiB"
    seal_cpu_share = 0.5
    segment_bytes = "1MiB"
    seal_after = "1s"
    keep_for = "1s"
    disk_budget = "1MiB"
    hash_key_file = "x"
    quality_window = "1s"
    quality_rows = 1
    quality_bytes = "1MiB"
    quality_history = "1h"
    quality_history_bytes = "1MiB"
    reproduce_every = "2h"
    upload = "s3://bucket/prefix"
    upload_node = "x"
    upload_bytes_per_second = "1MiB"
    upload_keep_local = "1s"
    upload_timeout = "1s"
    upload_instance_metadata = true
    [data]
    dir = "x"
    group_readable = true
    [breaker]
    failures = 1
    share = 0.25
    window = "1s"
    pause = "2s"
    probes = 1
    [audit]
    head_interval = "1s"
    heads_file = "x"
    webhook = "https://x/"
    webhook_ca = "x"
    webhook_timeout = "1s"
    [metrics]
    triton_names = true
    [tracing]
    otlp_endpoint = "https://x:4317"
    sample_rate = 0.5
    protocol = "http"
    ca = "x"
    [fleet]
    urls = ["nats://x:1"]
    name = "x"
    node = "x"
    credentials = "x"
    ca = "x"
    replicas = 3
    labels = { region = "x" }
    placement = [{ models = ["x"], replicas = 1 }]
    [alerts]
    enabled = false
    check_interval = "1s"
    end_after = "1s"
    off = ["drift"]
    error_budget = 0.5
    name = "x"
    console = "https://x"
    outbox = 1
    keep_for = "1m"
    targets = [{ name = "x", kind = "slack", url = "https://x/" }]
    [log]
    format = "json"
    filter = "warn"
"#;

#[test]
fn a_reload_reports_changed_keys_and_which_need_a_restart() {
    let old = Config::default();
    assert_eq!(old.changes(&old), []);
    let mut table = Table::parse("all", ALL_DIFFERENT);
    let new = Config::read(&mut table);
    let known = table.known_keys();
    table.finish().unwrap();
    let changes = old.changes(&new);
    assert_eq!(changes.iter().map(|c| c.key.to_owned()).collect::<std::collections::BTreeSet<_>>(), known);
    for change in &changes {
        assert_eq!(change.needs_restart, !LIVE.contains(&change.key), "{}", change.key);
    }
    let running = old.reloaded(&new);
    assert!(old.changes(&running).iter().all(|c| !c.needs_restart), "a reload applies only live keys");
    assert!(running.changes(&new).iter().all(|c| c.needs_restart), "a reload applies every live key");
    assert_eq!(running.changes(&new).len(), known.len() - LIVE.len());
}

#[test]
fn the_memory_budget_and_shadow_threads_follow_the_machine_unless_they_are_set() {
    let mut config = Config::default();
    assert_eq!(config.models.memory_budget_of(1000), 800);
    assert_eq!([1, 3, 8].map(|cores| config.shadows.threads_on(cores)), [1, 1, 2]);
    config.models.memory_budget = 7;
    config.shadows.threads = 5;
    assert_eq!(config.models.memory_budget_of(1000), 7);
    assert_eq!(config.shadows.threads_on(8), 5);
}

#[test]
fn other_certificate_files_are_read_at_run_time_but_tls_begins_and_ends_with_a_restart() {
    let read = |text: &str| {
        let mut table = Table::parse("test", text);
        let config = Config::read(&mut table);
        table.finish().unwrap();
        config
    };
    let plain = Config::default();
    let first = read("[server.tls]\ncertificate = \"a.crt\"\nkey = \"a.key\"\n");
    let second = read("[server.tls]\ncertificate = \"b.crt\"\nkey = \"a.key\"\nclient_ca = \"ca.crt\"\n");
    let keys = |changes: Vec<Change>| changes.into_iter().map(|c| (c.key, c.needs_restart)).collect::<Vec<_>>();
    assert_eq!(keys(first.changes(&second)), [("server.tls.certificate", false), ("server.tls.client_ca", false)]);
    assert_eq!(first.reloaded(&second).server.tls, second.server.tls);
    for (old, new) in [(&plain, &first), (&first, &plain)] {
        assert!(old.changes(new).iter().all(|change| change.needs_restart), "{:?}", old.changes(new));
        assert_eq!(old.reloaded(new).server.tls, old.server.tls);
    }
}

#[test]
fn wrong_keys_of_access_are_reported_with_what_would_be_right() {
    let text = r#"
        [access]
        certificates = [{ name = "ops", role = "king" }]
        [access.oidc]
        issuer = "https://idp.example"
        jwks = "http://idp.example/keys"
        algorithms = ["HS256"]
        roles = [{ value = "x", role = "viewer", more = 1 }]
    "#;
    let mut table = Table::parse("access.toml", text);
    Config::read(&mut table);
    let found = table.finish().unwrap_err().to_string();
    for words in [
        "access.certificates: expected a list such as",
        "access.oidc.jwks: expected the path of a file, an https:// address, or an http:// address on this machine",
        "access.oidc.algorithms: expected a list of some of RS256",
        "access.oidc.roles: expected a list such as",
        "access.oidc.audience (not set): expected the claim aud",
    ] {
        assert!(found.contains(words), "{words:?} is missing in {found}");
    }
    for (jwks, right) in [
        ("http://127.0.0.1:9000/keys", true),
        ("http://localhost/keys", true),
        ("http://[::1]:9000/keys", true),
        ("http://localhost.evil.example/keys", false),
        ("ftp://x/keys", false),
        ("keys.json", true),
    ] {
        let text = format!("[access.oidc]\nissuer = \"i\"\naudience = \"a\"\njwks = \"{jwks}\"\n");
        let mut table = Table::parse("access.toml", &text);
        assert_eq!(Config::read(&mut table).access.oidc.is_some(), right, "{jwks}");
        assert_eq!(table.finish().is_ok(), right, "{jwks}");
    }
}

#[test]
fn targets_of_alerts_are_read_and_a_wrong_one_is_named_without_its_address() {
    let read = |text: &str| {
        let mut table = Table::parse("alerts.toml", text);
        let targets = Config::read(&mut table).alerts.targets;
        table.finish().map(|()| targets).map_err(|all| all.to_string())
    };
    let right = read(
        "[[alerts.targets]]\nname = \"ops\"\nkind = \"webhook\"\nurl_env = \"HOOK\"\nsecret_file = \"s\"\nsend = [\"alerts\", \"rollout.*\", \
         \"retrain\", \"retrain\"]\n[[alerts.targets]]\nname = \"am\"\nkind = \"alertmanager\"\nurl = \"http://am:9093/\"\nmin_severity = \
         \"critical\"\ntimeout = \"1s\"\n",
    )
    .unwrap();
    assert_eq!(right.len(), 2);
    let events: Vec<&str> = right[0].send.events.iter().map(|event| event.as_str()).collect();
    assert_eq!(events, ["rollout.moved", "rollout.taken_back", "rollout.finished", "retrain"]);
    assert!(right[0].send.alerts && right[1].send.alerts && right[1].send.events.is_empty());
    for (target, words) in [
        ("name = \"a\"", "kind: \"webhook\", \"alertmanager\" or \"slack\""),
        ("name = \"a b\", kind = \"slack\"", "name: 1 to 64 letters"),
        ("name = \"a\", kind = \"slack\"", "one of url, url_file and url_env"),
        ("name = \"a\", kind = \"slack\", url = \"SECRET\"", "url: an address that begins with http:// or https://"),
        (
            "name = \"a\", kind = \"slack\", url = \"https://SECRET\", url_env = \"E\"",
            "only one of url, url_file and url_env",
        ),
        ("name = \"a\", kind = \"slack\", url = \"https://SECRET\", secret_env = \"E\"", "only a webhook is signed"),
        (
            "name = \"a\", kind = \"webhook\", url = \"https://SECRET\", secret = \"SECRET\"",
            "secret_file or secret_env instead",
        ),
        ("name = \"a\", kind = \"webhook\", url = \"http://SECRET\", ca = \"x\"", "because ca is set"),
        (
            "name = \"a\", kind = \"webhook\", url = \"http://SECRET\", send = [\"x\"]",
            "send: a list of some of alerts, events",
        ),
        (
            "name = \"a\", kind = \"alertmanager\", url = \"http://SECRET\", send = [\"retrain\"]",
            "as Alertmanager has no events",
        ),
        ("name = \"a\", kind = \"webhook\", url = \"http://SECRET\", timeout = \"1h\"", "timeout: a duration from"),
        ("name = \"a\", kind = \"webhook\", url = \"http://SECRET\", colour = 1", "only the keys name, kind"),
    ] {
        let found = read(&format!("[alerts]\ntargets = [{{ {target} }}]")).unwrap_err();
        assert!(found.contains("alerts.targets: expected in target 1: ") && found.contains(words), "{target}: {found}");
        assert!(!found.contains("SECRET"), "{found}");
    }
    let twice = "{ name = \"a\", kind = \"slack\", url = \"https://SECRET\" }";
    let found = read(&format!("[alerts]\ntargets = [{twice}, {twice}]")).unwrap_err();
    assert!(found.contains("another name for target 2: \"a\" is taken") && !found.contains("SECRET"), "{found}");
    assert!(!format!("{:?}", read(&format!("[alerts]\ntargets = [{twice}]")).unwrap()).contains("SECRET"));
}
