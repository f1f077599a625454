//! Runs a scenario: starts the servers, runs all phases in rounds, stops the servers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::Uri;
use indicatif::ProgressBar;
use serde::Serialize;
use serde_json::Value;

use crate::cores::Cores;
use crate::drive::{self, Connection, Form, Load};
use crate::figures::{Figures, median};
use crate::machine;
use crate::plan::Plan;
use crate::scenario::{Phase, Scenario, ServerKind};
use crate::server::{Programs, Running};
use crate::wrong::{Result, While, Wrong};

/// Time for the generators to open their connections before the first request.
const LEAD: Duration = Duration::from_millis(200);
/// Pause between phases.
const PAUSE: Duration = Duration::from_millis(200);
/// The longest wait for the background work that a phase leaves (writing logs, freeing memory). It belongs to that phase: it would slow
/// the next one down, and its CPU time is that of the requests.
const SETTLE: Duration = Duration::from_secs(8);
/// A server has settled when it uses less of a core than this over `SETTLE_WINDOW`.
const SETTLED: f64 = 0.1;
const SETTLE_WINDOW: Duration = Duration::from_millis(150);
/// Requests per second that one generator thread can send on time.
const RATE_OF_A_THREAD: f64 = 25_000.0;
const COMPLAINTS: usize = 5;

/// Length, number of rounds, and seed of a run.
#[derive(Debug, Clone)]
pub struct Effort {
    pub seconds: f64,
    pub rounds: u32,
    pub seed: u64,
    /// Servers and generator on cores of their own, whatever the scenario says.
    pub pin: bool,
}

/// The results of a scenario.
#[derive(Debug, Serialize)]
pub struct Ran {
    #[serde(skip)]
    pub scenario: Scenario,
    /// Who ran where; `None` where servers and generator shared all cores.
    pub cores: Option<Cores>,
    pub phases: Vec<PhaseRun>,
}

/// One phase in one round.
#[derive(Debug, Serialize)]
pub struct PhaseRun {
    pub name: String,
    pub round: u32,
    /// Seconds of load before this phase, for the chart over time.
    pub at_s: f64,
    pub seconds: f64,
    /// The share of the machine's CPU time that other processes used (0 to 1).
    pub elsewhere: f64,
    /// The share of the CPU time of its cores that the load generator used (0 to 1). Without pinning these are all cores.
    pub generator: f64,
    /// The same of the server.
    pub server: f64,
    pub figures: Figures,
    pub marks: Vec<Mark>,
    pub complaints: Vec<String>,
}

/// An admin call during a phase.
#[derive(Debug, Serialize)]
pub struct Mark {
    /// Seconds since the start of the phase.
    pub at_s: f64,
    pub what: String,
}

/// Runs a scenario. `bar` shows milliseconds of load.
pub async fn run(scenario: Scenario, effort: &Effort, programs: &Programs, bar: &ProgressBar) -> Result<Ran> {
    let directory = tempfile::tempdir().while_doing(|| "making a directory for the servers".into())?;
    bar.set_message(format!("{}: starting", scenario.name));
    let cores = if scenario.pin || effort.pin { Some(Cores::halves()?) } else { None };
    let _pinned = cores.as_ref().map(Cores::pin_generator).transpose()?;
    let mut servers = Vec::new();
    for server in &scenario.servers {
        let directory = directory.path().join(&server.name);
        servers.push(Running::start(&scenario, server, programs, &directory, cores.as_ref()).await?);
    }
    let shares: f64 = scenario.phases.iter().map(|p| p.share).sum();
    let mut ran = Ran { scenario, cores, phases: Vec::new() };
    let mut plans: Vec<Arc<Plan>> = Vec::new();
    let mut at_s = 0.0;
    for round in 0..effort.rounds {
        // Every second round runs backwards, so that background work of a phase does not always affect the same other phase.
        let count = ran.scenario.phases.len();
        for index in (0..count).map(|i| if round % 2 == 0 { i } else { count - 1 - i }) {
            let phase = &ran.scenario.phases[index];
            let server = servers
                .iter()
                .find(|s| s.name == phase.server)
                .expect("`Scenario::parse` has checked the names of servers");
            bar.set_message(format!("{}: {}", ran.scenario.name, phase.name));
            if plans.len() == index {
                let mut plan = Plan::new(&ran.scenario, phase, effort.seed.wrapping_add(index as u64))?;
                learn(&mut plan, server, &ran.scenario).await?;
                plans.push(Arc::new(plan));
            }
            let seconds = effort.seconds * phase.share / shares / f64::from(effort.rounds);
            let (form, connections) = form(phase, &ran.phases)?;
            let load = Load {
                address: server.data,
                plan: Arc::clone(&plans[index]),
                form,
                connections,
                seconds,
                seed: effort.seed.wrapping_add(u64::from(round) << 8 | index as u64),
                threads: threads(form, connections),
            };
            tokio::time::sleep(PAUSE).await;
            let mut done = one_phase(phase, server, load, ran.cores.as_ref(), bar).await?;
            (done.round, done.at_s) = (round, at_s);
            at_s += seconds;
            ran.phases.push(done);
        }
    }
    Ok(ran)
}

async fn one_phase(
    phase: &Phase,
    server: &Running,
    load: Load,
    cores: Option<&Cores>,
    bar: &ProgressBar,
) -> Result<PhaseRun> {
    let model = load.plan.kinds[0].model.clone();
    if let Some(document) = &phase.traffic {
        let document: Value = serde_json::to_value(document).while_doing(|| format!("traffic of {:?}", phase.name))?;
        admin(server)?.traffic(&model, &document).await?;
    }
    let (server_cpu, own_cpu, machine_before) = (server.cpu_us()?, own_cpu_us()?, machine::times()?);
    let seconds = load.seconds;
    let versions = load.plan.kinds[0].versions;
    let start = Instant::now() + LEAD;
    let threads = drive::start(&load, start);
    let before = bar.position();
    let watch = async {
        while !threads.iter().all(std::thread::JoinHandle::is_finished) {
            tokio::time::sleep(Duration::from_millis(50)).await;
            bar.set_position(before + (start.elapsed().as_secs_f64().min(seconds) * 1e3) as u64);
        }
    };
    let (acted, ()) = tokio::join!(act(phase, server, &model, versions, start, seconds), watch);
    let (mut samples, mut complaints) = (Vec::new(), Vec::new());
    for thread in threads {
        let seen = thread.join().map_err(|_| Wrong::new("a load generator panicked"))??;
        samples.extend(seen.samples);
        complaints.extend(seen.complaints);
    }
    complaints.truncate(COMPLAINTS);
    let (machine_after, own_us) = (machine::times()?, own_cpu_us()? - own_cpu);
    let server_us = server.cpu_us()? - server_cpu;
    let elsewhere = machine::elsewhere(machine_before, machine_after, server_us + own_us);
    let all = machine_after.cores;
    let of_cores = |us, own: Option<usize>| {
        machine::share(machine_before, machine_after, us) * all as f64 / own.unwrap_or(all).max(1) as f64
    };
    let generator = of_cores(own_us, cores.map(|cores| cores.generator.len()));
    let used = of_cores(server_us, cores.map(|cores| cores.servers.len()));
    let resident_kb = server.resident_kb()?;
    settle(server).await?;
    let figures = Figures::new(&samples, seconds, server.cpu_us()? - server_cpu, resident_kb);
    let name = phase.name.clone();
    let marks = acted?;
    Ok(PhaseRun { name, round: 0, at_s: 0.0, seconds, elsewhere, generator, server: used, figures, marks, complaints })
}

/// Waits until a server does nothing more for a phase, for at most `SETTLE`.
async fn settle(server: &Running) -> Result<()> {
    let limit = Instant::now() + SETTLE;
    let mut before = server.cpu_us()?;
    loop {
        let from = Instant::now();
        tokio::time::sleep(SETTLE_WINDOW).await;
        let now = server.cpu_us()?;
        if now - before < SETTLED * from.elapsed().as_secs_f64() * 1e6 || Instant::now() > limit {
            return Ok(());
        }
        before = now;
    }
}

/// Makes the admin calls of a phase.
async fn act(
    phase: &Phase,
    server: &Running,
    model: &str,
    versions: u32,
    start: Instant,
    seconds: f64,
) -> Result<Vec<Mark>> {
    let end = start + Duration::from_secs_f64(seconds);
    let mut marks = Vec::new();
    let mark = |marks: &mut Vec<Mark>, what: String| marks.push(Mark { at_s: start.elapsed().as_secs_f64(), what });
    tokio::time::sleep_until(start.into()).await;
    if let Some(every) = phase.promote_every_ms {
        let admin = admin(server)?;
        let every = Duration::from_millis(every);
        let mut due = start + every;
        let mut version = 1;
        while due < end {
            tokio::time::sleep_until(due.into()).await;
            admin.promote(model, version).await?;
            mark(&mut marks, format!("version {version}"));
            version = version % versions + 1;
            due += every;
        }
    }
    if let Some(other) = &phase.load_and_unload {
        let admin = admin(server)?;
        while Instant::now() < end {
            mark(&mut marks, format!("load {other}"));
            admin.load(other).await?;
            mark(&mut marks, format!("unload {other}"));
            admin.unload(other).await?;
        }
    }
    Ok(marks)
}

/// Sends every input to every version once. Answers under load are compared with these.
async fn learn(plan: &mut Plan, server: &Running, scenario: &Scenario) -> Result<()> {
    let of = scenario.servers.iter().find(|s| s.name == server.name);
    let is_floor = of.is_some_and(|s| s.kind == ServerKind::Floor);
    let local = tokio::task::LocalSet::new();
    local.run_until(learn_from(plan, server.data, is_floor)).await
}

async fn learn_from(plan: &mut Plan, address: SocketAddr, is_floor: bool) -> Result<()> {
    let mut connection = Connection::open(address).await?;
    for k in 0..plan.kinds.len() {
        let versions = if is_floor { 1 } else { plan.kinds[k].versions };
        for version in 1..=versions {
            let kind = &plan.kinds[k];
            let uri: Uri = if is_floor {
                kind.uri.clone()
            } else {
                let pinned = format!("/v2/models/{}/versions/{version}/infer", kind.model);
                pinned.parse().while_doing(|| pinned.clone())?
            };
            let mut answers = Vec::with_capacity(kind.cases.len());
            for case in &kind.cases {
                let answer = connection.answer(kind, uri.clone(), case.body.clone(), None).await;
                answers.push(answer.map_err(|v| Wrong::new(format!("asking {uri} before the load: {}", v.complaint)))?);
            }
            for (case, answer) in plan.kinds[k].cases.iter_mut().zip(answers) {
                case.answers.push(answer);
            }
        }
    }
    Ok(())
}

fn own_cpu_us() -> Result<f64> {
    machine::process_cpu_us(std::process::id())
}

fn admin(server: &Running) -> Result<crate::admin::Admin> {
    server.admin.ok_or_else(|| Wrong::new(format!("server {:?} has no admin plane", server.name)))
}

/// The form of the load and its number of connections. A rate can be a multiple of the throughput of an earlier phase.
fn form(phase: &Phase, before: &[PhaseRun]) -> Result<(Form, usize)> {
    if let Some(closed) = &phase.closed {
        return Ok((Form::Closed, closed.connections));
    }
    let open = phase.open.as_ref().expect("`Scenario::parse` has checked that a phase is open or closed");
    let from = match (open.rate, open.times, &open.of) {
        (Some(rate), ..) => rate,
        (None, Some(times), Some(of)) => {
            times * median(before.iter().filter(|p| p.name == *of).map(|p| p.figures.throughput).collect())
        }
        _ => 0.0,
    };
    if from <= 0.0 {
        return Err(Wrong::new(format!("phase {:?} has no rate: the phase it refers to had no answers", phase.name)));
    }
    let to = open.to.unwrap_or(from);
    Ok((Form::Open { from, to, arrivals: open.arrivals }, open.connections))
}

fn threads(form: Form, connections: usize) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let wanted = match form {
        Form::Closed => cores,
        Form::Open { from, to, .. } => (from.max(to) / RATE_OF_A_THREAD).ceil() as usize,
    };
    wanted.clamp(1, cores.max(1)).min(connections)
}
