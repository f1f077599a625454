//! The `sluicegate` binary: a table of contents.

use sluicegate::{app, cli};
use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run(&cli::Local {
        serve: app::serve,
        check: app::check,
        export: app::export,
        replay: app::replay,
        reproduce: app::reproduce,
    })
}
