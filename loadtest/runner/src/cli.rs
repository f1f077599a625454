//! The command line.

use std::fs;
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};

use crate::judge::{self, Row, Verdict};
use crate::report;
use crate::run::{self, Effort, Ran};
use crate::scenario::{Scenario, ServerKind};
use crate::server::Programs;
use crate::wrong::{Result, While, Wrong};

/// The scenarios of `targets`, in the order of the table.
const TARGETS: [&str; 17] = [
    "floor",
    "open-loop",
    "binary",
    "picture",
    "json-large",
    "trees",
    "batching",
    "large",
    "swap",
    "load-beside",
    "many-models",
    "log",
    "shadow",
    "log-disk",
    "overload",
    "overload-five",
    "overload-models",
];
/// The folders of `loadtest/` that hold scenarios.
const FOLDERS: [&str; 2] = ["scenarios", "targets"];

/// Load tests for Sluicegate.
///
/// Exit code 0: every target is met. 1: a target is missed or a request failed. 2: the test could not run.
#[derive(Parser, Debug)]
#[command(version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    options: Options,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// List the scenarios and what each shows
    List,
    /// Run scenarios by name or folder, for example: run steady swap --short
    Run {
        #[arg(required = true)]
        scenarios: Vec<String>,
    },
    /// Run all scenarios
    All,
    /// Run the scenarios of the performance targets and print the table of targets
    Targets,
}

#[derive(Args, Debug)]
struct Options {
    /// Seconds of load for each scenario [default: from the scenario]
    #[arg(long, global = true)]
    seconds: Option<f64>,
    /// Run the short version of each scenario
    #[arg(long, global = true, conflicts_with = "seconds")]
    short: bool,
    /// Rounds of each scenario [default: from the scenario]
    #[arg(long, global = true)]
    rounds: Option<u32>,
    /// Seed for inputs and arrival times
    #[arg(long, global = true, default_value_t = 1)]
    seed: u64,
    /// Run the servers on the first half of the cores and the load generator on the others, as scenarios with `pin = true` do
    #[arg(long, global = true)]
    pin: bool,
    /// Root of the repository
    #[arg(long, global = true, default_value = ".", value_name = "DIR")]
    root: PathBuf,
    /// The program to measure [default: target/release/sluicegate in the repository]
    #[arg(long, global = true, value_name = "FILE")]
    sluicegate: Option<PathBuf>,
    /// The floor, a bare server to compare with [default: loadtest/floor/target/release/sluicegate-floor in the repository]
    #[arg(long, global = true, value_name = "FILE")]
    floor: Option<PathBuf>,
    /// Directory for reports [default: target/loadtest in the repository]
    #[arg(long, global = true, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Runs the command. Returns whether every target was met.
pub fn main() -> Result<bool> {
    let cli = Cli::parse();
    let root = fs::canonicalize(&cli.options.root).while_doing(|| format!("--root {}", cli.options.root.display()))?;
    match &cli.command {
        Command::List => list(&root).map(|()| true),
        Command::Run { scenarios } => run_them(&cli.options, &root, scenarios, false),
        Command::All => {
            let of = |folder| names(&root.join("loadtest").join(folder));
            let all = FOLDERS.into_iter().map(of).collect::<Result<Vec<_>>>()?.concat();
            run_them(&cli.options, &root, &all, false)
        }
        Command::Targets => run_them(&cli.options, &root, &TARGETS.map(str::to_owned), true),
    }
}

fn list(root: &Path) -> Result<()> {
    for folder in FOLDERS {
        let folder = root.join("loadtest").join(folder);
        for name in names(&folder)? {
            println!("{name:14} {}", Scenario::read(&folder.join(&name))?.summary.replace('\n', "\n               "));
        }
    }
    Ok(())
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let what = || format!("reading {}", folder.display());
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).while_doing(what)? {
        let path = entry.while_doing(what)?.path();
        if path.join("scenario.toml").is_file() {
            names.extend(path.file_name().map(|name| name.to_string_lossy().into_owned()));
        }
    }
    names.sort();
    Ok(names)
}

fn find(root: &Path, name: &str) -> Result<Scenario> {
    let folders = FOLDERS.iter().map(|folder| root.join("loadtest").join(folder).join(name)).chain([name.into()]);
    match folders.into_iter().find(|folder| folder.join("scenario.toml").is_file()) {
        Some(folder) => Scenario::read(&folder),
        None => Err(Wrong::new(format!("unknown scenario {name:?}; `list` shows all"))),
    }
}

fn run_them(options: &Options, root: &Path, names: &[String], targets: bool) -> Result<bool> {
    let scenarios = names.iter().map(|name| find(root, name)).collect::<Result<Vec<_>>>()?;
    let programs = programs(options, root, &scenarios)?;
    let out = options.out.clone().unwrap_or_else(|| root.join("target/loadtest"));
    let efforts: Vec<_> = scenarios.iter().map(|scenario| effort(options, scenario)).collect();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .while_doing(|| "starting the runtime".into())?;

    let bar = bar(efforts.iter().map(|effort| effort.seconds).sum());
    let mut all: Vec<(Ran, Vec<Row>)> = Vec::new();
    for (scenario, effort) in scenarios.into_iter().zip(&efforts) {
        let name = scenario.name.clone();
        let ran =
            runtime.block_on(until_interrupted(run::run(scenario, effort, &programs, &bar))).while_doing(|| name)?;
        let rows = judge::rows(&ran);
        report::write(&out, &ran, &rows)?;
        for complaint in ran.phases.iter().flat_map(|phase| &phase.complaints) {
            bar.suspend(|| eprintln!("{}: {complaint}", ran.scenario.name));
        }
        all.push((ran, rows));
    }
    bar.finish_and_clear();

    if !targets {
        for (ran, _) in &all {
            print!("{}", report::phases(ran));
        }
    }
    let rows: Vec<_> = all.into_iter().flat_map(|(_, rows)| rows).collect();
    // `targets` shows the targets, and other expectations only when they are missed.
    let shown: Vec<_> = rows.iter().filter(|r| !targets || r.is_target || r.verdict == Verdict::Missed).collect();
    print!("{}", report::table(&shown));
    if targets {
        report::write_rows(&out.join("targets.json"), &shown)?;
    }
    println!("reports: {}", out.display());
    Ok(rows.iter().all(|row| row.verdict != Verdict::Missed))
}

/// Ctrl-C ends the run but not the program, so that servers are stopped and their directories removed.
async fn until_interrupted(run: impl Future<Output = Result<Ran>>) -> Result<Ran> {
    tokio::select! {
        ran = run => ran,
        _ = tokio::signal::ctrl_c() => Err(Wrong::new("interrupted")),
    }
}

fn programs(options: &Options, root: &Path, scenarios: &[Scenario]) -> Result<Programs> {
    let absolute = |given: &Option<PathBuf>, usual: &str, needed: bool| -> Result<PathBuf> {
        let path = given.clone().unwrap_or_else(|| root.join(usual));
        if !needed {
            return Ok(path);
        }
        fs::canonicalize(&path).while_doing(|| format!("{} (`make loadtest` builds it)", path.display()))
    };
    let needs = |kind| scenarios.iter().any(|scenario| scenario.servers.iter().any(|s| s.kind == kind));
    Ok(Programs {
        root: root.to_owned(),
        sluicegate: absolute(&options.sluicegate, "target/release/sluicegate", needs(ServerKind::Sluicegate))?,
        floor: absolute(&options.floor, "loadtest/floor/target/release/sluicegate-floor", needs(ServerKind::Floor))?,
    })
}

fn effort(options: &Options, scenario: &Scenario) -> Effort {
    let usual = if options.short { scenario.short_seconds } else { scenario.seconds };
    // The short version has fewer rounds, so that each is long enough to measure.
    let rounds = if options.short { scenario.rounds.min(3) } else { scenario.rounds };
    Effort {
        seconds: options.seconds.unwrap_or(usual),
        rounds: options.rounds.unwrap_or(rounds).max(1),
        seed: options.seed,
        pin: options.pin,
    }
}

fn bar(seconds: f64) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:30} {percent:>3} % {msg} (left: {eta})")
        .expect("the template is a valid constant");
    ProgressBar::new((seconds * 1e3) as u64).with_style(style)
}
