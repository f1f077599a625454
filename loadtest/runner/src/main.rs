//! Load tests: scenarios in folders, open and closed loops, a table and a report.
//!
//! Reading order: a `scenario` names the `models`, the `server`s to start and the phases of load. `run` executes it with `plan` (the
//! requests), `pace` (when each is sent), `drive` (the generator threads) and `check` (is the answer right?). `figures` are the results
//! of a phase, `judge` compares them with the expectations, `report` writes both.

mod admin;
mod check;
mod cli;
mod cores;
mod drive;
mod figures;
mod judge;
mod machine;
mod models;
mod onnx;
mod pace;
mod plan;
mod report;
mod run;
mod scenario;
mod server;
mod wrong;

use std::process::ExitCode;

fn main() -> ExitCode {
    match cli::main() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(wrong) => {
            eprintln!("sluicegate-loadtest: {wrong}");
            ExitCode::from(2)
        }
    }
}
