//! The alert rules in `deploy/`, checked by Prometheus's own tool where it is installed. `src/telemetry/tests_deploy.rs` compares their
//! metrics, and those of the dashboards, with the ones that exist.

use std::path::Path;
use std::process::Command;

#[test]
fn promtool_accepts_the_alert_rules_and_their_tests() {
    if Command::new("promtool").arg("--version").output().is_err() {
        eprintln!("promtool is not installed (Debian package prometheus): the alert rules are not checked by it");
        return;
    }
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/prometheus");
    for arguments in [["check", "rules", "rules.yml"], ["test", "rules", "rules.test.yml"]] {
        let output = Command::new("promtool").args(arguments).current_dir(&dir).output().unwrap();
        let printed = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "promtool {arguments:?}: {printed}");
    }
}
