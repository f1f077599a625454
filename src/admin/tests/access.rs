//! Who may do what: every endpoint against every role, and what a caller who is limited to some models sees.

use super::fixture::{Fixture, bare, loaded_two};
use crate::access::{Action, Permission, Role, Scope};
use crate::admin::routes::endpoints;
use crate::registry::State;
use serde_json::{Value, json};

/// The headers of a request with this token.
fn bearer(secret: &str) -> Vec<(&'static str, String)> {
    vec![("authorization", format!("Bearer {secret}"))]
}

fn send(fixture: &Fixture, secret: &str, method: &str, path: &str, body: &str) -> super::fixture::Answer {
    let headers = bearer(secret);
    let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let mut headers = headers;
    if !body.is_empty() {
        headers.push(("content-type", "application/json"));
    }
    fixture.send(method, path, &headers, body.to_owned())
}

fn real(path: &str, model: &str) -> String {
    path.replace("{model}", model).replace("{version}", "1").replace("{token}", "nobody")
}

#[test]
fn every_endpoint_states_a_permission_that_fits_its_path_and_method() {
    for endpoint in endpoints() {
        let (path, of_model) = (endpoint.path, endpoint.path.contains("{model}"));
        match endpoint.permission {
            Permission::Open => assert!(["/healthz", "/readyz", "/openapi.json"].contains(&path), "{path} is open"),
            Permission::AnyIdentity => assert_eq!(path, "/api/v1/whoami"),
            Permission::To(action, scope) => {
                assert_eq!(scope == Scope::Model, of_model, "{path}: the scope fits the path");
                let reads = endpoint.method == "GET" || path == "/v2/repository/index";
                // The state of a fleet has the hashes of its tokens.
                let of_tokens = path.starts_with("/api/v1/tokens") || path == "/api/v1/fleet/state";
                let allowed: &[Action] = if of_tokens {
                    &[Action::Administer]
                } else if reads {
                    &[Action::View]
                } else {
                    &[Action::Operate, Action::Approve]
                };
                assert!(allowed.contains(&action), "{} {path}: {action:?}", endpoint.method);
            }
        }
    }
}

/// The matrix role × endpoint × model.
#[test]
fn every_role_reaches_exactly_the_endpoints_that_its_row_allows() {
    let tokens: Vec<(Role, &str)> = Role::ALL.into_iter().flat_map(|role| [(role, "*"), (role, "fr*")]).collect();
    let (mut fixture, secrets) = Fixture::closed(&tokens);
    for model in ["fraud", "iris"] {
        fixture.publish_as(model, vec![bare(1, State::Failed)], None, false);
    }
    let (mut allowed, mut refused) = (0, 0);
    for endpoint in endpoints() {
        for model in ["fraud", "iris"] {
            let path = real(endpoint.path, model);
            let method = endpoint.method.as_str();
            let anonymous = fixture.send(method, &path, &[], "");
            let is_open = endpoint.permission == Permission::Open;
            assert_eq!(anonymous.status == 401, !is_open, "{method} {path} without credentials: {anonymous:?}");
            if !is_open {
                assert_eq!(anonymous.header("www-authenticate"), "Bearer realm=\"sluicegate\"");
                assert_eq!(anonymous.problem().1, "UNAUTHENTICATED");
                let wrong = send(&fixture, "sluice_wrong", method, &path, "");
                assert_eq!(wrong.status, 401, "{method} {path} with a wrong token");
            }
            for ((role, models), secret) in tokens.iter().zip(&secrets) {
                let all = *models == "*";
                let may = match endpoint.permission {
                    Permission::Open | Permission::AnyIdentity => true,
                    Permission::To(action, Scope::Everything) => role.allows(action) && all,
                    Permission::To(action, Scope::Listed) => role.allows(action),
                    Permission::To(action, Scope::Model) => role.allows(action) && (all || model == "fraud"),
                };
                let answer = send(&fixture, secret, method, &path, "");
                let is_refused = answer.status == 403;
                assert_eq!(is_refused, !may, "{method} {path} as {role} of {models}: {answer:?}");
                assert_ne!(answer.status, 401, "{method} {path} as {role} of {models}");
                if is_refused {
                    let (_, code, words) = answer.problem();
                    assert!(code == "FORBIDDEN" && words.starts_with("this needs the role "), "{words}");
                    refused += 1;
                } else {
                    allowed += 1;
                }
            }
        }
    }
    assert!(allowed > 100 && refused > 100, "{allowed} allowed, {refused} refused");
}

#[test]
fn a_refused_request_reaches_no_handler() {
    let (fixture, secrets) = Fixture::closed(&[(Role::Viewer, "*"), (Role::Operator, "iris")]);
    for (secret, model) in [(&secrets[0], "fraud"), (&secrets[1], "fraud")] {
        send(&fixture, secret, "POST", &format!("/api/v1/models/{model}:rollback"), r#"{"reason":"r"}"#).refused(
            403,
            "FORBIDDEN",
            "operator or admin for model \"fraud\"",
        );
        send(&fixture, secret, "POST", &format!("/api/v1/models/{model}%3Arollback"), r#"{"reason":"r"}"#).refused(
            403,
            "FORBIDDEN",
            "operator or admin",
        );
        send(&fixture, secret, "PUT", &format!("/api/v1/models/{model}/versions/1"), "x").refused(403, "FORBIDDEN", "");
    }
    assert_eq!(fixture.asked(), [], "the manager was asked nothing");
}

#[test]
fn lists_leave_out_the_models_that_a_caller_may_not_see() {
    let (mut fixture, secrets) = Fixture::closed(&[(Role::Viewer, "fr*"), (Role::Viewer, "*")]);
    for model in ["fraud", "iris"] {
        fixture.publish_as(model, vec![bare(1, State::Failed)], None, false);
        fixture.record(model);
    }
    let names = |secret: &str, method: &str, path: &str, list: &str, key: &str| -> Vec<String> {
        let answer = send(&fixture, secret, method, path, "");
        assert_eq!(answer.status, 200, "{answer:?}");
        let json = answer.json();
        let items = if list.is_empty() { &json } else { &json[list] };
        items.as_array().unwrap().iter().map(|item| item[key].as_str().unwrap_or("null").to_owned()).collect()
    };
    for (method, path, list, key) in [
        ("GET", "/api/v1/models", "models", "name"),
        ("POST", "/v2/repository/index", "", "name"),
        ("GET", "/api/v1/audit", "events", "model"),
        ("GET", "/api/v1/audit?limit=1", "events", "model"),
    ] {
        assert_eq!(names(&secrets[0], method, path, list, key), ["fraud"], "{path}");
    }
    assert_eq!(names(&secrets[1], "GET", "/api/v1/models", "models", "name"), ["fraud", "iris"]);
    // The others are the events of the tokens.
    assert_eq!(names(&secrets[1], "GET", "/api/v1/audit?limit=2", "events", "model"), ["iris", "fraud"]);
    assert_eq!(names(&secrets[1], "GET", "/api/v1/audit", "events", "model").len(), 4);
    assert_eq!(names(&secrets[0], "GET", "/api/v1/audit?model=iris", "events", "model"), Vec::<String>::new());
}

#[test]
fn the_actor_is_the_name_of_the_token_whatever_a_header_says() {
    let (mut fixture, secrets) = Fixture::closed(&[(Role::Operator, "*")]);
    loaded_two(&mut fixture);
    let secret = format!("Bearer {}", secrets[0]);
    let headers =
        [("authorization", secret.as_str()), ("x-sluicegate-actor", "the chief"), ("content-type", "application/json")];
    let answer = fixture.send("POST", "/api/v1/models/fraud:rollback", &headers, r#"{"reason":"r"}"#);
    assert_eq!(answer.status, 200, "{answer:?}");
    let asked = format!("{:?}", fixture.asked());
    assert!(asked.contains("operator-0") && !asked.contains("chief"), "{asked}");
}

#[test]
fn whoami_says_who_the_caller_is() {
    let (fixture, secrets) = Fixture::closed(&[(Role::Operator, "fraud,ri*")]);
    let answer = send(&fixture, &secrets[0], "GET", "/api/v1/whoami", "");
    let expected = json!({
        "actor": "operator-0", "via": "token",
        "grants": [{"role": "operator", "models": ["fraud", "ri*"]}],
        "actions": ["predict", "view", "operate"],
    });
    assert_eq!(answer.json(), expected);
    let open = Fixture::new();
    let local = open.get("/api/v1/whoami").json();
    assert_eq!((&local["actor"], &local["via"]), (&json!("local"), &json!("unproven")));
    let named = open.send("GET", "/api/v1/whoami", &[("x-sluicegate-actor", "anna")], "").json();
    assert_eq!(named["actor"], "anna");
    let wrong = open.send("GET", "/api/v1/whoami", &[("authorization", "Bearer wrong")], "");
    assert_eq!(wrong.status, 401, "wrong credentials are refused where none are needed");
}

#[test]
fn a_token_is_made_listed_and_revoked() {
    let fixture = Fixture::new();
    let body = r#"{"name":"ci","role":"operator","models":["fraud-*"],"expires":"90d"}"#;
    let made = fixture.send("POST", "/api/v1/tokens", &[("content-type", "application/json")], body);
    assert_eq!(made.status, 201, "{made:?}");
    let json = made.json();
    assert!(json["token"].as_str().unwrap().starts_with("sluice_"), "{json}");
    assert_eq!(
        (&json["name"], &json["role"], &json["models"]),
        (&json!("ci"), &json!("operator"), &json!(["fraud-*"]))
    );
    let asked = format!("{:?}", fixture.asked());
    assert!(!asked.contains(&json["token"].as_str().unwrap()[..20]), "the manager gets no secret");
    let revoked = fixture.send("DELETE", "/api/v1/tokens/ci", &[], "");
    assert_eq!((revoked.status.as_u16(), revoked.json()), (200, json!({"name": "ci", "revoked": true})));
}

#[test]
fn every_wrong_member_of_a_new_token_is_reported() {
    let fixture = Fixture::new();
    let post =
        |body: Value| fixture.send("POST", "/api/v1/tokens", &[("content-type", "application/json")], body.to_string());
    let answer = post(json!({"name": "a b", "role": "king", "models": [], "expires": "soon", "more": 1}));
    for words in ["name: expected", "role: expected", "models: expected", "expires: expected", "more: unknown member"] {
        answer.refused(400, "INVALID_REQUEST", words);
    }
    post(json!({"name": "a", "role": "viewer", "models": ["a/b"]})).refused(400, "INVALID_REQUEST", "a/b");
    post(json!({"name": "a", "role": "viewer", "expires": "100000d"})).refused(400, "INVALID_REQUEST", "ten years");
    post(json!({"name": "system", "role": "viewer"})).refused(400, "INVALID_REQUEST", "not local or system");
    assert_eq!(fixture.asked(), []);
    let taken = Fixture::answering(|_| crate::lifecycle::fake::Told::Stored(false));
    taken
        .send("POST", "/api/v1/tokens", &[("content-type", "application/json")], r#"{"name":"a","role":"viewer"}"#)
        .refused(409, "CONFLICT", "already");
    taken.send("DELETE", "/api/v1/tokens/a", &[], "").refused(404, "NOT_FOUND", "no token is named");
}

#[test]
fn refusals_are_counted_and_logged_for_whoever_watches() {
    let (fixture, _) = Fixture::closed(&[(Role::Viewer, "*")]);
    fixture.get("/api/v1/models");
    let metrics = fixture.telemetry.render();
    assert!(metrics.contains("sluicegate_admin_refused_total{code=\"UNAUTHENTICATED\"} 1"), "{metrics}");
}
