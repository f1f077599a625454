//! The command line against a server: what it prints, and with which exit code it ends.

use crate::support::onnx;
use crate::support::process::Served;

#[test]
fn commands_print_what_the_server_says_and_end_with_a_code_a_script_can_use() {
    let dir = tempfile::TempDir::new().unwrap();
    std::fs::create_dir(dir.path().join("models")).unwrap();
    for v in 1..=2 {
        onnx::install(&dir.path().join("models"), "self", v, &onnx::answering(v as f32, 4, 0));
    }
    let served = Served::start(dir.path());
    served.ready();
    let run = |line: &str| {
        let output = served.cli(&line.split(' ').collect::<Vec<_>>());
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    };

    let (code, out, _) = run("execution self");
    assert!(code == 0 && out.contains("version 1 (") && out.contains("version 2 ("), "{out}");
    assert!(out.contains("runs:      at once up to 200.0 us, else on one of ") && out.contains("A RUN TAKES"), "{out}");

    let (code, out, err) = run("promote self 1 --reason test --dry-run --gate shadow_pairs=5");
    assert!(out.contains("shadow_pairs  FAILED") && out.contains("it would be refused"), "{out}");
    assert_eq!((code, err.as_str()), (1, "sluicegate: self: a gate would refuse version 1\n"));
    let (code, out, _) = run("promote self 1 --reason test --dry-run");
    assert!(code == 0 && out.contains("nothing was changed"), "{out}");

    let (code, _, err) = run("traffic self --set missing.json --reason test");
    assert!(code == 2 && err.contains("cannot be used with"), "{err}");

    let (code, _, _) = run("traffic self --split control:1=90,2=10 --reason test");
    assert_eq!(code, 0);
    let (_, out, _) = run("history self");
    assert!(out.contains("control:1=90"), "{out}");

    let (code, _, err) = run("execution nobody");
    assert!(code == 1 && err.contains("nobody"), "{err}");
}
