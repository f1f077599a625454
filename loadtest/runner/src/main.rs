//! Load for a server, and what came of it: scenarios as folders, open and closed loops, a table and a report.
//!
//! Reading order: a `scenario` says which `models` lie where, which `server`s are started, and in which phases they are asked;
//! `run` does that with `plan` (what is asked), `pace` (when), `drive` (by whom) and `check` (was it right); `figures` are what
//! is known of a phase, `judge` holds them against what the scenario expects, `report` shows both.

mod admin;
mod check;
mod cli;
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
