//! The `sluicegate` binary: a table of contents.

use std::process::ExitCode;

fn main() -> ExitCode {
    sluicegate::cli::run(sluicegate::app::serve, sluicegate::app::check)
}
