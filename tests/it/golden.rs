//! Golden answers made from arrays, and what a server makes of them.

use crate::support::{Gateway, onnx};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

/// Runs the command in a directory with `models/`. Returns the exit code and the output.
fn cli(dir: &Path, line: &str) -> (i32, String) {
    let result =
        Command::new(env!("CARGO_BIN_EXE_sluicegate")).args(line.split(' ')).current_dir(dir).output().unwrap();
    let output = format!("{}{}", String::from_utf8_lossy(&result.stdout), String::from_utf8_lossy(&result.stderr));
    (result.status.code().unwrap(), output)
}

#[test]
fn golden_answers_are_made_from_tables_and_hold_the_version_to_them() {
    let dir = tempfile::tempdir().unwrap();
    let models = dir.path().join("models");
    std::fs::create_dir(&models).unwrap();
    onnx::install(&models, "m", 1, &onnx::scaling(2.0));
    let rows = || (0..250).map(|i| (i, 0.5 * f64::from(i)));
    let table = |names: &str, factor: f64| {
        rows().fold(format!("{names}\n"), |text, (i, x)| {
            text + &format!("{},{},{i}\n", factor * f64::from(i), factor * x)
        })
    };
    std::fs::write(dir.path().join("x.csv"), table("x[0],x[1],id", 1.0)).unwrap();
    std::fs::write(dir.path().join("y.csv"), table("y[0],y[1],id", 2.0)).unwrap();
    std::fs::write(dir.path().join("wrong.csv"), table("y[0],y[1],id", 2.1)).unwrap();

    let (code, out) = cli(dir.path(), "golden m/1 --inputs x.csv --expected wrong.csv");
    assert!(code == 1 && out.contains("golden.json: case 0") && out.contains("nothing was written"), "{out}");
    assert!(!models.join("m/1/golden.json").exists());

    let (code, out) = cli(dir.path(), "golden m/1 --inputs x.csv --expected y.csv");
    assert!(code == 0 && out.contains("3 cases of 250 rows"), "{out}");
    assert!(out.contains("output y: 500 of 500 elements agree"), "{out}");
    let (code, out) = cli(dir.path(), "check models/m/1");
    assert!(code == 0 && out.contains("3 golden cases, loaded in"), "{out}");

    for (line, words) in [
        ("golden m/2 --inputs x.csv --expected y.csv", "expected the directory of a version"),
        ("golden m/1 --inputs none.csv --expected y.csv", "none.csv: cannot read it"),
        ("golden m/1 --inputs y.csv --expected y.csv", "y.csv: there is no column for input x FP32"),
        ("golden m/1 --inputs x.csv --expected x.csv", "x.csv: it has none of the outputs of the model: \"y\""),
    ] {
        let (code, out) = cli(dir.path(), line);
        assert!(code == 1 && out.contains(words), "{line}: {out}");
    }
    let (code, out) = cli(dir.path(), "golden m/1 --inputs x.csv --expected y.csv --min-agree 1.5");
    assert!(code == 2 && out.contains("expected a share above 0 and at most 1"), "{out}");
    std::fs::write(dir.path().join("short.csv"), "y[0],y[1]\n0,0\n").unwrap();
    let (code, out) = cli(dir.path(), "golden m/1 --inputs x.csv --expected short.csv");
    assert!(code == 1 && out.contains("output \"y\" has 1 rows, but input \"x\" has 250"), "{out}");
}

#[test]
fn a_share_of_the_elements_may_differ_where_the_golden_answers_say_so() {
    let gateway = Gateway::start(|models| {
        // Its first output element is off by 1 in one of a hundred rows.
        onnx::install(models, "m", 1, &onnx::off_above(98.5, 1.0));
        let rows = (0..100).map(|i| format!("{i},0\n")).collect::<Vec<_>>().concat();
        let dir = models.parent().unwrap();
        std::fs::write(dir.join("x.csv"), format!("a,b\n{rows}")).unwrap();
        let (code, out) = cli(dir, "golden m/1 --inputs x.csv --expected x.csv");
        assert!(code == 1 && out.contains("output \"y\""), "{out}");
        let (code, out) = cli(dir, "golden m/1 --inputs x.csv --expected x.csv --min-agree 0.996");
        assert!(
            code == 1
                && out.contains(
                    "199 of the 200 elements of output \"y\" agree (0.995000), expected a share of at least 0.996"
                ),
            "{out}"
        );
        let (code, out) = cli(dir, "golden m/1 --inputs x.csv --expected x.csv --min-agree 0.99");
        assert!(
            code == 0 && out.contains("199 of 200 elements agree") && out.contains("the first that differs: case 0"),
            "{out}"
        );
        assert!(out.contains("input \"x\" takes the 2 columns in the order of the file"), "{out}");
        let (code, out) = cli(dir, "check models/m/1");
        assert!(code == 0 && out.contains("1 golden cases (0.995000 of the elements agree)"), "{out}");
    });
    gateway.wait_ready();
    let version = gateway.admin_get("/api/v1/models/m/versions/1").json();
    assert_eq!(version["golden_cases"], 1);
    let notes = version["notes"].to_string();
    assert!(notes.contains("199 of the 200 elements") && notes.contains("min_agree is 0.99"), "{version}");
}

#[test]
fn arrays_that_numpy_and_pyarrow_wrote_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let models = dir.path().join("models");
    std::fs::create_dir(&models).unwrap();
    onnx::install(&models, "echo", 1, &onnx::echoing_every_type());
    onnx::install(&models, "m", 1, &onnx::scaling(2.0));
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python =
        std::env::var("SLUICEGATE_TEST_PYTHON").unwrap_or_else(|_| root.join(".venv/bin/python").display().to_string());
    let wrote = Command::new(&python).arg(root.join("tests/python/golden_arrays.py")).arg(dir.path()).output();
    let wrote = wrote.unwrap_or_else(|e| panic!("{python} should run (make venv makes it): {e}"));
    assert!(wrote.status.success(), "{}", String::from_utf8_lossy(&wrote.stderr));
    for (line, elements) in [
        ("golden echo/1 --inputs every_input.npz --expected every_output.npz --json", 13 * 10),
        ("golden m/1 --inputs x.npy --expected y.npy --json", 60),
        ("golden m/1 --inputs x.parquet --expected y.parquet --json", 60),
    ] {
        let (code, out) = cli(dir.path(), line);
        assert_eq!(code, 0, "{line}: {out}");
        let made: Value = serde_json::from_str(&out).unwrap();
        let agreed = made["outputs"].as_array().unwrap().iter().map(|output| output["agreed"].as_u64().unwrap());
        assert_eq!(agreed.sum::<u64>(), elements, "{made}");
    }
    let (code, out) = cli(dir.path(), "golden m/1 --inputs snappy.parquet --expected y.parquet");
    assert!(code == 1 && out.contains("compressed with SNAPPY") && out.contains("compression=\"zstd\""), "{out}");
}
