//! Predictions over both protocols.

use crate::support::{Gateway, infer_body, onnx};
use serde_json::json;

fn gateway() -> Gateway {
    Gateway::start(|models| {
        onnx::install(models, "scale", 1, &onnx::scaling(2.0));
        onnx::install(models, "scale", 2, &onnx::scaling(3.0));
    })
}

#[test]
fn an_open_inference_answer_names_the_model_version_and_arm() {
    let gateway = gateway();
    let answer = gateway.post_with(
        "/v2/models/scale/infer",
        &[("x-request-id", "from-header"), ("content-type", "application/json")],
        infer_body(&[2, 2], &[1.0, 2.0, 3.0, 4.5]),
    );
    assert_eq!(answer.status, 200, "{answer:?}");
    let body = answer.json();
    assert_eq!(body["model_name"], "scale");
    assert_eq!(body["model_version"], "2", "without a traffic document, the highest ready version serves");
    assert_eq!(body["id"], "from-header");
    assert_eq!(
        body["outputs"],
        json!([{"name": "y", "shape": [2, 2], "datatype": "FP32", "data": [3.0, 6.0, 9.0, 13.5]}])
    );
    assert_eq!(answer.header("x-request-id"), Some("from-header"));
    assert_eq!(answer.header("x-sluicegate-version"), Some("2"));
    assert_eq!(answer.header("x-sluicegate-arm"), Some("2"));
    let timing = answer.header("server-timing").unwrap();
    assert!(timing.contains("queue;dur=") && timing.contains("infer;dur="), "{timing}");
    assert_eq!(answer.header("content-type"), Some("application/json"));
}

#[test]
fn the_id_comes_from_the_body_or_the_header_or_is_generated() {
    let gateway = gateway();
    let with_id =
        json!({"id": "böse id", "inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [[1, 2]]}]});
    let answer = gateway.post_with("/v2/models/scale/infer", &[("x-request-id", "header")], with_id.to_string());
    assert_eq!(answer.json()["id"], "böse id", "the body's id wins");
    assert_eq!(answer.header("x-request-id"), Some("b%C3%B6se%20id"), "the header is percent-encoded");
    let made = gateway.post("/v2/models/scale/infer", infer_body(&[1, 2], &[1.0, 2.0]));
    let id = made.json()["id"].as_str().unwrap().to_owned();
    assert_eq!((id.len(), id.as_bytes()[14]), (36, b'7'), "the generated id is a UUIDv7: {id}");
    assert_eq!(made.header("x-request-id"), Some(id.as_str()));
}

#[test]
fn a_version_in_the_path_answers_and_an_unknown_one_is_404() {
    let gateway = gateway();
    let body = infer_body(&[1, 2], &[1.0, 1.0]);
    let one = gateway.post("/v2/models/scale/versions/1/infer", &body);
    assert_eq!(one.json()["outputs"][0]["data"], json!([2.0, 2.0]));
    assert_eq!(one.header("x-sluicegate-arm"), Some("pinned"));
    let nine = gateway.post("/v2/models/scale/versions/9/infer", &body);
    assert_eq!((nine.status, nine.code().as_str()), (404, "VERSION_NOT_FOUND"));
    assert!(nine.json()["error"].as_str().unwrap().contains("loaded are 1, 2"), "{nine:?}");
}

#[test]
fn binary_tensors_in_request_and_answer() {
    let gateway = gateway();
    let head = json!({
        "inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}],
        "outputs": [{"name": "y", "parameters": {"binary_data": true}}]
    })
    .to_string();
    let mut body = head.clone().into_bytes();
    for value in [1.5f32, f32::NAN] {
        body.extend_from_slice(&value.to_le_bytes());
    }
    let length = head.len().to_string();
    let answer = gateway.post_with("/v2/models/scale/infer", &[("inference-header-content-length", &length)], body);
    assert_eq!(answer.status, 200, "{answer:?}");
    let json_length: usize = answer.header("inference-header-content-length").unwrap().parse().unwrap();
    let (json, tensors) = answer.body.split_at(json_length);
    let json: serde_json::Value = serde_json::from_slice(json).unwrap();
    assert_eq!(json["outputs"][0]["parameters"]["binary_data_size"], 8);
    let values: Vec<f32> = tensors.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    assert_eq!(values[0], 4.5);
    assert!(values[1].is_nan(), "the binary form keeps NaN unchanged");
    assert_eq!(answer.header("content-type"), Some("application/octet-stream"));
}

#[test]
fn null_means_nan_and_is_answered_as_null_and_counted() {
    let gateway = gateway();
    let body = r#"{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[null,1]}]}"#;
    let answer = gateway.post("/v2/models/scale/infer", body);
    assert_eq!(answer.json()["outputs"][0]["data"], json!([null, 3.0]));
    let metrics = String::from_utf8(gateway.admin_get("/metrics").body).unwrap();
    assert!(metrics.contains(r#"sluicegate_nonfinite_outputs_total{model="scale",version="2"} 1"#), "{metrics}");
}

#[test]
fn tensorflow_serving_rows_columns_status_and_metadata() {
    let gateway = gateway();
    let rows = gateway.post("/v1/models/scale:predict", r#"{"instances": [[1, 2], [3, 4]]}"#);
    assert_eq!(rows.json(), json!({"predictions": [[3.0, 6.0], [9.0, 12.0]]}));
    let columns = gateway.post("/v1/models/scale/versions/1:predict", r#"{"inputs": {"x": [[1, 2]]}}"#);
    assert_eq!(columns.json(), json!({"outputs": [[2.0, 4.0]]}));
    let both = gateway.post("/v1/models/scale:predict", r#"{"instances": [[1,2]], "inputs": [[1,2]]}"#);
    assert_eq!(both.status, 400);
    let status = gateway.get("/v1/models/scale").json();
    assert_eq!(status["model_version_status"].as_array().unwrap().len(), 2);
    assert_eq!(status["model_version_status"][0]["state"], "AVAILABLE");
    let metadata = gateway.get("/v1/models/scale/metadata").json();
    assert_eq!(metadata["model_spec"]["name"], "scale");
    let signature = &metadata["metadata"]["signature_def"]["signature_def"]["serving_default"];
    assert_eq!(signature["inputs"]["x"]["dtype"], "DT_FLOAT");
}

#[test]
fn labels_name_versions_in_tensorflow_serving_urls() {
    let gateway = gateway();
    let document = json!({"split": [{"version": "2", "weight": 1}], "labels": {"stable": "1"}, "reason": "labels"});
    let put = gateway.admin_send("PUT", "/api/v1/models/scale/traffic", &[], &document);
    assert_eq!(put.status, 200, "{put:?}");
    let stable = gateway.post("/v1/models/scale/labels/stable:predict", r#"{"instances": [[1, 2]]}"#);
    assert_eq!(stable.json(), json!({"predictions": [[2.0, 4.0]]}));
    let unknown = gateway.post("/v1/models/scale/labels/none:predict", r#"{"instances": [[1, 2]]}"#);
    assert_eq!((unknown.status, unknown.code().as_str()), (404, "LABEL_NOT_FOUND"));
}

#[test]
fn metadata_health_and_readiness() {
    let gateway = gateway();
    assert_eq!(gateway.get("/v2/health/live").status, 200);
    let server = gateway.get("/v2").json();
    assert_eq!(server["name"], "sluicegate");
    assert!(server["extensions"].as_array().unwrap().contains(&json!("binary_tensor_data")), "{server}");
    let model = gateway.get("/v2/models/scale").json();
    assert_eq!(model["versions"], json!(["1", "2"]));
    assert_eq!(model["inputs"], json!([{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]));
    assert_eq!(gateway.get("/v2/models/scale/versions/1").json()["versions"], json!(["1"]));
    assert_eq!(gateway.get("/v2/models/scale/ready").status, 200);
    assert_eq!(gateway.get("/v2/models/scale/versions/1/ready").status, 200);
    assert_eq!(gateway.get("/v2/models/scale/versions/7/ready").status, 404);
    assert_eq!(gateway.get("/v2/models/none/ready").status, 404);
}

#[test]
fn compression_of_request_and_answer() {
    use std::io::{Read, Write};
    let gateway = gateway();
    let plain = infer_body(&[200, 2], &[0.5; 400]);
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(plain.as_bytes()).unwrap();
    let answer = gateway.post_with(
        "/v2/models/scale/infer",
        &[("content-encoding", "gzip"), ("accept-encoding", "deflate;q=0.1, gzip")],
        encoder.finish().unwrap(),
    );
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.header("content-encoding"), Some("gzip"));
    let mut text = String::new();
    flate2::read::GzDecoder::new(&answer.body[..]).read_to_string(&mut text).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["outputs"][0]["data"].as_array().unwrap().len(), 400);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let gateway = gateway();
    let mut bytes = Vec::new();
    for i in 0..5 {
        let body = infer_body(&[1, 2], &[i as f32, 0.0]);
        let close = if i == 4 { "connection: close\r\n" } else { "" };
        bytes.extend_from_slice(
            format!("POST /v2/models/scale/infer HTTP/1.1\r\nhost: x\r\nx-request-id: p{i}\r\n{close}content-length: {}\r\n\r\n{body}", body.len())
                .as_bytes(),
        );
    }
    let answers = gateway.raw(&bytes);
    let order: Vec<usize> = (0..5).map(|i| answers.find(&format!("\"id\":\"p{i}\"")).unwrap()).collect();
    assert!(order.is_sorted(), "{answers}");
}

#[test]
fn http2_with_prior_knowledge_on_the_same_port() {
    let gateway = gateway();
    let address = gateway.data();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (status, version, body) = runtime.block_on(async move {
        use http_body_util::BodyExt;
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let io = hyper_util::rt::TokioIo::new(stream);
        let executor = hyper_util::rt::TokioExecutor::new();
        let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
        tokio::spawn(connection);
        let body = http_body_util::Full::new(bytes::Bytes::from(infer_body(&[1, 2], &[1.0, 2.0])));
        let request = hyper::Request::post(format!("http://{address}/v2/models/scale/infer")).body(body).unwrap();
        let answer = sender.send_request(request).await.unwrap();
        let (status, version) = (answer.status(), answer.version());
        (status, version, answer.into_body().collect().await.unwrap().to_bytes())
    });
    assert_eq!((status.as_u16(), version), (200, hyper::Version::HTTP_2));
    let json: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(json["outputs"][0]["data"], json!([3.0, 6.0]));
}

#[test]
fn a_body_is_read_as_json_whatever_browsers_call_it() {
    let gateway = gateway();
    let oip = infer_body(&[1, 2], &[1.0, 2.0]);
    for media in ["text/plain;charset=UTF-8", "text/plain", "application/x-www-form-urlencoded"] {
        let answer = gateway.post_with("/v2/models/scale/infer", &[("content-type", media)], &oip);
        assert_eq!(answer.status, 200, "{media}: {answer:?}");
    }
    // The metadata of a model has this name, and clients send it back.
    let name = gateway.get("/v1/models/scale/metadata").json()["model_spec"]["signature_name"].clone();
    let body = json!({"signature_name": name, "instances": [[1.0, 2.0]]}).to_string();
    let answer = gateway.post_with("/v1/models/scale:predict", &[("content-type", "text/plain;charset=UTF-8")], body);
    assert_eq!(answer.status, 200, "{answer:?}");
    let with_mark = gateway.post("/v2/models/scale/infer", format!("\u{feff}{oip}"));
    assert_eq!(with_mark.status, 400);
    assert!(with_mark.json()["error"].as_str().unwrap().contains("byte order mark"), "{with_mark:?}");
}
