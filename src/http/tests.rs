use super::answer;
use super::endpoint::{Asked, Endpoint};
use crate::model::{Code, Failure, RequestId};
use http::{HeaderMap, Method};

fn parsed(method: &Method, path: &str) -> String {
    match Endpoint::parse(method, path) {
        Ok(endpoint) => format!("{endpoint:?}"),
        Err(refused) => refused.failure.code.to_string(),
    }
}

#[test]
fn each_promised_path_is_its_endpoint() {
    let target =
        |kind: &str, model: &str, version: &str| format!("{kind}(Target {{ model: {model:?}, version: {version} }})");
    let pinned = "Version(Version(3))";
    let get = [
        ("/v2", "ServerMetadata".to_owned()),
        ("/v2/", "ServerMetadata".to_owned()),
        ("/v2/health/live", "Live".to_owned()),
        ("/v2/health/ready", "Ready".to_owned()),
        ("/v2/models/m", target("Metadata", "m", "Any")),
        ("/v2/models/m/versions/3", target("Metadata", "m", pinned)),
        ("/v2/models/m/ready", target("ModelReady", "m", "Any")),
        ("/v2/models/m/versions/3/ready", target("ModelReady", "m", pinned)),
        ("/v1/models/m", target("TfsStatus", "m", "Any")),
        ("/v1/models/m/versions/3", target("TfsStatus", "m", pinned)),
        ("/v1/models/m/labels/stable", target("TfsStatus", "m", "Label(\"stable\")")),
        ("/v1/models/m/metadata", target("TfsMetadata", "m", "Any")),
        ("/v1/models/m/versions/3/metadata", target("TfsMetadata", "m", pinned)),
        ("/v2/models/a%2Eb", target("Metadata", "a.b", "Any")),
    ];
    for (path, endpoint) in get {
        assert_eq!(parsed(&Method::GET, path), endpoint, "GET {path}");
        assert_eq!(parsed(&Method::HEAD, path), endpoint, "HEAD {path}");
        assert_eq!(parsed(&Method::POST, path), "METHOD_NOT_ALLOWED", "POST {path}");
    }
    let post = [
        ("/v2/models/m/infer", target("Infer", "m", "Any")),
        ("/v2/models/m/versions/3/infer", target("Infer", "m", pinned)),
        ("/v1/models/m:predict", target("TfsPredict", "m", "Any")),
        ("/v1/models/m/versions/3:predict", target("TfsPredict", "m", pinned)),
        ("/v1/models/m/labels/canary:predict", target("TfsPredict", "m", "Label(\"canary\")")),
    ];
    for (path, endpoint) in post {
        assert_eq!(parsed(&Method::POST, path), endpoint, "POST {path}");
        assert_eq!(parsed(&Method::DELETE, path), "METHOD_NOT_ALLOWED", "DELETE {path}");
    }
}

#[test]
fn every_other_path_is_refused() {
    for path in [
        "",
        "/",
        "/v2x",
        "/v2/models",
        "/v2/models/m/infer/x",
        "/v2/models/m/versions",
        "/v2/models/m/nope",
        "/v1/models",
        "/v1/models/m:classify",
        "/v1/models/m/labels/:predict",
        "/v1/models/m/x/y/z",
        "/metrics",
    ] {
        assert_eq!(parsed(&Method::GET, path), "NOT_FOUND", "{path}");
    }
    for path in
        ["/v2/models/m/versions/latest/infer", "/v2/models/m/versions/0/infer", "/v1/models/m/versions/x:predict"]
    {
        assert_eq!(parsed(&Method::POST, path), "VERSION_NOT_FOUND", "{path}");
    }
    assert!(
        matches!(Endpoint::parse(&Method::GET, "/v2/models/..%2f/ready"), Ok(Endpoint::ModelReady(t)) if t.model == "../" && t.version == Asked::Any),
        "a strange name is a name that no model has"
    );
}

#[test]
fn a_header_carries_any_id() {
    let shown = |id: &str| {
        let mut headers = HeaderMap::new();
        answer::request_id(&mut headers, &RequestId::from_caller(id.to_owned()).unwrap());
        headers[answer::X_REQUEST_ID].to_str().unwrap().to_owned()
    };
    assert_eq!(shown("order-17/a%20b"), "order-17/a%20b", "what a header can carry stays as it is");
    assert_eq!(shown("a b%"), "a%20b%25");
    assert_eq!(shown("é\n"), "%C3%A9%0A");
    assert_eq!(shown(""), "");
}

#[test]
fn errors_have_their_shape_and_say_nothing_internal() {
    let failure = Failure::several(Code::InvalidTensor, vec!["a".into(), "b".into()]).with_internal("/secret/path");
    let response = super::problem::response(&failure);
    assert_eq!(response.status().as_u16(), 400);
    let json: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
    assert_eq!(
        json,
        serde_json::json!({"error": "a (and 1 more, see details)", "code": "INVALID_TENSOR", "details": ["a", "b"]})
    );
    let busy = super::problem::response(&Failure::new(Code::Overloaded, "busy"));
    assert_eq!((busy.status().as_u16(), busy.headers()["retry-after"].to_str().unwrap()), (503, "1"));
}
