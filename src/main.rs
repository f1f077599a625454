//! The `sluicegate` binary: passes the functions of the offline commands to the command line.

use sluicegate::{app, cli};
use std::process::ExitCode;

#[expect(unsafe_code, reason = "the standard library has no safe way to change the environment")]
fn main() -> ExitCode {
    // ONNX Runtime opens a database of usage events in the home directory when its environment is made; its own switch comes too late for that.
    // SAFETY: this is the only thread, so that no other one reads the environment meanwhile.
    unsafe { std::env::set_var("ORT_DISABLE_TELEMETRY", "1") };
    cli::run(&cli::Local {
        serve: app::serve,
        check: app::check,
        golden: app::golden,
        certificate: app::certificate,
        trial: app::trial,
        export: app::export,
        requests: app::requests,
        request: app::request,
        replay: app::replay,
        reproduce: app::reproduce,
        profile: app::profile,
        explain: app::explain,
        forget: app::forget,
        token: app::token,
        fleet: app::fleet_command,
        keygen: app::keygen,
        sign: app::sign,
        audit: app::audit,
    })
}
