//! Many gateways' followers in one process, on a real NATS server: from a put until all have the document in force, how long they take to start, and what
//! it costs the server. `make fleet-followers` is the long form.

use super::board::Board;
use super::change::Changes;
use super::evidence::{Counted, Evidence};
use super::session::Member;
use super::*;
use crate::drift::Drift;
use crate::ledger::{self, Action, Change, Effect, SharedModel};
use crate::lifecycle::Proposed;
use crate::lifecycle::fake::{Asked, Told, manager};
use crate::model::ModelName;
use crate::quality::Quality;
use std::cell::Cell;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Instant;
use tempfile::TempDir;

/// Documents that are there at the start.
const DOCUMENTS: usize = 100;
const PUTS: usize = 40;

fn followers() -> usize {
    std::env::var("SLUICEGATE_FLEET_FOLLOWERS").ok().and_then(|text| text.parse().ok()).unwrap_or(60)
}

/// A NATS server, and its process.
pub(super) struct Nats {
    process: Child,
    pub(super) url: String,
    _dir: TempDir,
}

impl Nats {
    pub(super) fn start() -> Option<Nats> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let python =
            std::env::var("SLUICEGATE_TEST_PYTHON").map_or_else(|_| root.join(".venv/bin/python"), PathBuf::from);
        let program = python.with_file_name("nats-server");
        if !program.is_file() {
            eprintln!(
                "there is no Python environment with a NATS server: followers are not measured (run `make venv`)"
            );
            return None;
        }
        let dir = TempDir::new().unwrap();
        let path = dir.path().to_str().unwrap();
        let arguments = ["-a", "127.0.0.1", "-p", "-1", "-js", "-sd", path, "--ports_file_dir", path];
        let process =
            Command::new(program).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let url = wait("NATS listens", || {
            let files = fs::read_dir(dir.path()).unwrap().flatten();
            let file = files.map(|file| file.path()).find(|path| path.extension().is_some_and(|end| end == "ports"))?;
            let ports: serde_json::Value = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
            Some(ports["nats"][0].as_str()?.to_owned())
        });
        Some(Nats { process, url, _dir: dir })
    }

    /// Processor seconds so far, and resident memory in MiB.
    fn cost(&self) -> (f64, u64) {
        let read = |file: &str| fs::read_to_string(format!("/proc/{}/{file}", self.process.id())).unwrap();
        let stat = read("stat");
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
        let pages: u64 = read("statm").split(' ').nth(1).unwrap().parse().unwrap();
        (ticks / 100.0, (pages * rustix::param::page_size() as u64) >> 20)
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn wait<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + Duration::from_mins(2);
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < until, "within two minutes: {what}");
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

fn document(n: usize) -> String {
    let rules: Vec<_> = (0..10)
        .map(|rule| serde_json::json!({"header": "x-cohort", "equals": format!("{n}-{rule}"), "version": "1"}))
        .collect();
    serde_json::json!({"split": [{"version": "1", "weight": 1.0}], "rules": rules}).to_string()
}

/// All of them, on two threads.
struct Followers {
    boards: Vec<Board>,
    /// The manager's side of the first one.
    changes: Changes,
    stop: watch::Sender<bool>,
    threads: Vec<JoinHandle<()>>,
    /// The ledger of all of them, which has no tokens.
    _ledger: (ledger::LedgerWriter, TempDir),
}

impl Followers {
    fn start(count: usize, url: &str) -> Followers {
        let (stop, _) = watch::channel(false);
        let handle = manager(|asked: Asked| -> Told { panic!("followers only follow: {asked:?}") });
        let data = TempDir::new().unwrap();
        let (writer, ledger) = ledger::open(data.path()).unwrap();
        let mut boards = Vec::new();
        let mut changes = None;
        let mut shares = [Vec::new(), Vec::new()];
        for n in 0..count {
            let config = Config { urls: vec![url.to_owned()], node: format!("gateway-{n}"), ..Config::default() };
            let board = Board::new(&config);
            let (sender, states) = mpsc::channel(1);
            let (token_sender, token_puts) = mpsc::channel(1);
            let puts = Puts { states, tokens: token_puts };
            let (tokens, rollouts) = (TokenTable::default(), Rollouts::new(board.clone(), config.node.clone()));
            changes.get_or_insert_with(|| Changes {
                board: board.clone(),
                rollouts: rollouts.clone(),
                tokens: tokens.clone(),
                puts: sender.clone(),
                token_puts: token_sender.clone(),
                node: config.node.clone(),
            });
            let (_, reader) = crate::registry::new();
            boards.push(board.clone());
            let place = Place { ledger: ledger.clone(), reload: Arc::new(|| Ok(())) };
            let (id, handle, stranger) = (n.to_string(), handle.clone(), Cell::default());
            let versions =
                Versions { catalogue: Catalogue::default(), board: board.clone(), mirror: Mirror::default() };
            let evidence = Evidence::new(board.clone(), config.node.clone(), id.clone());
            let counted = Counted {
                quality: Quality::default(),
                drift: Drift::default(),
                ledger: ledger.clone(),
                hash_key: None,
            };
            let member = Member {
                config,
                id,
                board,
                rollouts,
                evidence,
                counted,
                handle,
                reader,
                versions,
                tokens,
                place,
                stranger,
            };
            // A sender that is kept: without one a session ends.
            shares[n % 2].push((member, puts, (sender, token_sender)));
        }
        let threads = shares.map(|share| {
            let stop = stop.subscribe();
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                let tasks = tokio::task::LocalSet::new();
                for (member, puts, sender) in share {
                    let stop = stop.clone();
                    tasks.spawn_local(async move {
                        let _sender = sender;
                        member.run(puts, stop).await;
                    });
                }
                runtime.block_on(tasks);
            })
        });
        Followers { boards, changes: changes.unwrap(), stop, threads: threads.into(), _ledger: (writer, data) }
    }

    fn end(self) {
        self.stop.send_replace(true);
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}

#[test]
fn a_change_reaches_many_followers_and_all_of_them_start() {
    let Some(nats) = Nats::start() else { return };
    let count = followers();
    let name = |n: usize| -> ModelName { format!("model-{n}").parse().unwrap() };
    let last = name(DOCUMENTS - 1);

    // One gateway puts all documents into the bucket.
    let mut first = Followers::start(1, &nats.url);
    wait("the first one follows", || first.boards[0].known(&last).ok());
    let put = |followers: &mut Followers, model: &ModelName, document: &str| {
        // The way back needs no gateway that has the version.
        let document = document.to_owned();
        let change = Change {
            model: model.clone(),
            actor: "anna".to_owned(),
            action: Action::Rollback,
            reason: None,
            before: None,
            after: None,
            effect: Effect::SetDocument { document, highest_served: None, auto_promoted: None },
        };
        let proposed = Proposed { local: &SharedModel::default(), change: &change, quorum: None };
        crate::lifecycle::Peers::agree(&mut followers.changes, &proposed).unwrap();
        followers.boards[0].own(model).0
    };
    for n in 0..DOCUMENTS {
        put(&mut first, &name(n), &document(n));
    }
    first.end();

    let (before, _) = nats.cost();
    let began = Instant::now();
    let mut all = Followers::start(count, &nats.url);
    let mut missing: Vec<&Board> = all.boards.iter().collect();
    let mut said = Instant::now();
    while !missing.is_empty() {
        // Not more often: the look itself would take time from the followers.
        std::thread::park_timeout(Duration::from_millis(50));
        missing.retain(|board| !(0..DOCUMENTS).rev().all(|n| board.own(&name(n)).0 > 0));
        if said.elapsed() > Duration::from_secs(10) {
            said = Instant::now();
            let troubles: Vec<String> = all.boards.iter().filter_map(Board::trouble).collect();
            let cut_off: Vec<&String> = troubles.iter().filter(|trouble| trouble.contains("cut off")).collect();
            let first = cut_off.first().map_or("", |trouble| trouble.as_str());
            println!("{} of {count} have not all documents, {} are cut off: {first}", missing.len(), cut_off.len());
        }
        assert!(began.elapsed() < Duration::from_mins(2), "{} have not all documents", missing.len());
    }
    let started = began.elapsed();
    let (after_start, _) = nats.cost();
    println!(
        "{count} followers with {DOCUMENTS} documents: all started after {:.1} s; NATS used {:.1} s of a processor",
        started.as_secs_f64(),
        after_start - before
    );

    // One of them tells what is wrong with the fleet, and each knows all reports where they are needed.
    wait("one gateway is the first", || {
        let known: Option<Vec<bool>> = all.boards.iter().map(Board::tells).collect();
        (known?.into_iter().filter(|tells| *tells).count() == 1).then_some(())
    });
    let following = all.boards.iter().filter(|board| board.knows_all()).count();
    assert!(if count > 50 { following < count } else { following == count }, "{following} follow all reports");
    wait("the reports of all are known", || {
        let last = all.boards.last()?;
        (last.needs_all() && last.others(&name(0)).len() == count - 1).then_some(())
    });
    println!("{count} followers: {following} follow the reports of all");

    let mut times = Vec::new();
    let measured = Instant::now();
    for n in 0..PUTS {
        let model = name(n % DOCUMENTS);
        let began = Instant::now();
        let revision = put(&mut all, &model, &document(n + 1));
        let mut waiting: Vec<&Board> = all.boards.iter().collect();
        wait("all have the document in force", || {
            waiting.retain(|board| {
                let is_there = board.own(&model).0 >= revision;
                if is_there {
                    times.push(began.elapsed());
                }
                !is_there
            });
            waiting.is_empty().then_some(())
        });
        std::thread::park_timeout(Duration::from_millis(100));
    }
    let (after, memory) = nats.cost();
    let share = (after - after_start) / measured.elapsed().as_secs_f64() * 100.0;
    times.sort_unstable();
    let at = |share: usize| times[(times.len() - 1) * share / 100].as_secs_f64() * 1e3;
    println!(
        "{count} followers, {PUTS} puts: from put to in force: median {:.0} ms, p99 {:.0} ms, longest {:.0} ms; NATS: {share:.0} % of a core, {memory} MiB",
        at(50),
        at(99),
        at(100)
    );
    let troubled = all.boards.iter().filter(|board| board.trouble().is_some()).count();
    all.end();
    assert_eq!(troubled, 0, "followers that are cut off or behind");
    assert!(started < Duration::from_secs(30), "all start within 30 s: {started:?}");
}
