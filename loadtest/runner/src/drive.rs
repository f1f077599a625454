//! Load generators: threads that each have a runtime and connections, and share nothing while they run.

mod connection;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::task::LocalSet;

use crate::pace::{Schedule, Timer};
use crate::plan::Plan;
use crate::scenario::Arrivals;
use crate::wrong::{Result, While};
pub use connection::Connection;
use connection::Verdict;

/// How long to wait for an answer after the last request. Requests without an answer then count as failed.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// Error messages that each thread keeps; one is usually enough.
const COMPLAINTS: usize = 3;

/// The load of a phase.
#[derive(Debug, Clone)]
pub struct Load {
    pub address: SocketAddr,
    pub plan: Arc<Plan>,
    pub form: Form,
    pub connections: usize,
    pub seconds: f64,
    pub seed: u64,
    pub threads: usize,
}

#[derive(Debug, Clone, Copy)]
pub enum Form {
    Open { from: f64, to: f64, arrivals: Arrivals },
    Closed,
}

/// One request and its result.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// When the request was due, in microseconds since the start of the phase. In a closed loop a request is due when it is sent.
    pub due_us: u32,
    /// Delay of the generator: from due to sent, in microseconds.
    pub late_us: u32,
    /// From due until the whole answer was read, in nanoseconds.
    pub latency_ns: u64,
    /// The version that answered; 0 where the answer names none.
    pub version: u32,
    /// The status of the answer; 0 without an answer.
    pub status: u16,
    pub outcome: Outcome,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Good,
    Refused,
    Failed,
}

/// The results of one thread.
#[derive(Debug, Default)]
pub struct Seen {
    pub samples: Vec<Sample>,
    pub complaints: Vec<String>,
}

/// Starts the threads. `start` is the start of the phase, far enough ahead for them to connect before it.
pub fn start(load: &Load, start: Instant) -> Vec<std::thread::JoinHandle<Result<Seen>>> {
    let users: Arc<[AtomicU32]> = (0..load.plan.users).map(|_| AtomicU32::new(0)).collect();
    (0..load.threads)
        .map(|index| {
            let (load, users) = (load.clone(), Arc::clone(&users));
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .while_doing(|| "starting a load generator".into())?;
                let rng = ChaCha8Rng::seed_from_u64(load.seed ^ (index as u64 + 1) << 32);
                let thread =
                    Rc::new(Thread { load, users, index, start, rng: RefCell::new(rng), seen: RefCell::default() });
                LocalSet::new().block_on(&runtime, Rc::clone(&thread).run())?;
                Ok(thread.seen.take())
            })
        })
        .collect()
}

struct Thread {
    load: Load,
    /// The version that answered each user first; 0 before that.
    users: Arc<[AtomicU32]>,
    index: usize,
    start: Instant,
    rng: RefCell<ChaCha8Rng>,
    seen: RefCell<Seen>,
}

/// Idle connections, and requests that wait for one.
#[derive(Default)]
struct Pool {
    idle: VecDeque<Connection>,
    waiting: VecDeque<Instant>,
    busy: usize,
}

impl Thread {
    async fn run(self: Rc<Self>) -> Result<()> {
        let threads = self.load.threads;
        let mine = (self.load.connections + threads - 1 - self.index) / threads;
        let mut connections = VecDeque::with_capacity(mine);
        for _ in 0..mine {
            connections.push_back(Connection::open(self.load.address).await?);
        }
        match self.load.form {
            Form::Open { from, to, arrivals } => self.open(connections, from, to, arrivals).await,
            Form::Closed => self.closed(connections).await,
        }
    }

    async fn open(self: Rc<Self>, idle: VecDeque<Connection>, from: f64, to: f64, arrivals: Arrivals) -> Result<()> {
        let threads = self.load.threads as f64;
        let offset = self.index as f64 / threads;
        let rng = ChaCha8Rng::seed_from_u64(self.rng.borrow_mut().random());
        let schedule = Schedule::new(from / threads, to / threads, self.load.seconds, arrivals, offset, rng);
        let timer = Timer::new().while_doing(|| "making a timer".into())?;
        let pool = Rc::new(RefCell::new(Pool { idle, ..Pool::default() }));
        for (n, due) in schedule.enumerate() {
            let due = self.start + due;
            timer.until(due).await.while_doing(|| "waiting for a request to be due".into())?;
            if n % 8 == 7 {
                // When the generator is late, `until` never waits. Answers must be read all the same.
                tokio::task::yield_now().await;
            }
            let mut at = pool.borrow_mut();
            let Some(connection) = at.idle.pop_front() else {
                at.waiting.push_back(due);
                continue;
            };
            at.busy += 1;
            drop(at);
            tokio::task::spawn_local(Rc::clone(&self).serve(Rc::clone(&pool), connection, due));
        }
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        while pool.borrow().busy > 0 && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let lost = { pool.borrow().busy + pool.borrow().waiting.len() };
        for _ in 0..lost {
            self.record(
                Instant::now(),
                Instant::now(),
                &Verdict::failed(format!("no answer within {ANSWER_TIMEOUT:?}")),
            );
        }
        Ok(())
    }

    /// Sends the request that was due at `due`, then the ones that wait for a connection.
    async fn serve(self: Rc<Self>, pool: Rc<RefCell<Pool>>, mut connection: Connection, mut due: Instant) {
        loop {
            self.ask(&mut connection, due).await;
            let mut at = pool.borrow_mut();
            let Some(next) = at.waiting.pop_front() else {
                // Connections are used in turn, so that all I/O threads of the server get requests.
                at.idle.push_back(connection);
                at.busy -= 1;
                return;
            };
            due = next;
        }
    }

    async fn closed(self: Rc<Self>, connections: VecDeque<Connection>) -> Result<()> {
        tokio::time::sleep_until(self.start.into()).await;
        let end = self.start + Duration::from_secs_f64(self.load.seconds);
        let tasks: Vec<_> = connections
            .into_iter()
            .map(|mut connection| {
                let thread = Rc::clone(&self);
                tokio::task::spawn_local(async move {
                    loop {
                        let now = Instant::now();
                        if now >= end {
                            return;
                        }
                        if tokio::time::timeout(ANSWER_TIMEOUT, thread.ask(&mut connection, now)).await.is_err() {
                            thread.record(now, now, &Verdict::failed(format!("no answer within {ANSWER_TIMEOUT:?}")));
                            return;
                        }
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.while_doing(|| "a connection of the load generator".into())?;
        }
        Ok(())
    }

    async fn ask(&self, connection: &mut Connection, due: Instant) {
        let plan = &self.load.plan;
        let (kind, case, user) = {
            let mut rng = self.rng.borrow_mut();
            let (kind, case) = plan.draw(&mut *rng);
            (kind, case, (plan.users > 0).then(|| rng.random_range(0..plan.users)))
        };
        let sent = Instant::now();
        let mut verdict = connection.ask(&plan.kinds[kind], case, user).await;
        if let (Some(user), Outcome::Good) = (user, verdict.outcome) {
            let first = &self.users[user as usize];
            if let Err(before) = first.compare_exchange(0, verdict.version, Ordering::Relaxed, Ordering::Relaxed)
                && before != verdict.version
            {
                verdict = Verdict::failed(format!(
                    "user {user} was answered by version {before} and then by {}",
                    verdict.version
                ));
            }
        }
        if verdict.outcome == Outcome::Refused && !plan.may_refuse {
            verdict.outcome = Outcome::Failed;
        }
        self.record(due, sent, &verdict);
    }

    fn record(&self, due: Instant, sent: Instant, verdict: &Verdict) {
        let mut seen = self.seen.borrow_mut();
        seen.samples.push(Sample {
            due_us: micros(due.saturating_duration_since(self.start)),
            late_us: micros(sent.saturating_duration_since(due)),
            latency_ns: due.elapsed().as_nanos().try_into().unwrap_or(u64::MAX),
            version: verdict.version,
            status: verdict.status,
            outcome: verdict.outcome,
        });
        if verdict.outcome == Outcome::Failed && seen.complaints.len() < COMPLAINTS {
            seen.complaints.push(verdict.complaint.clone());
        }
    }
}

fn micros(time: Duration) -> u32 {
    time.as_micros().try_into().unwrap_or(u32::MAX)
}
