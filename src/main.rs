//! The `sluicegate` binary: passes the functions of the offline commands to the command line.

use sluicegate::{app, cli};
use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run(&cli::Local {
        serve: app::serve,
        check: app::check,
        trial: app::trial,
        export: app::export,
        replay: app::replay,
        reproduce: app::reproduce,
    })
}
