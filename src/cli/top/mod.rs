//! The command `top`: the console's page of models in a terminal.
//!
//! One thread asks the server, and this one draws and reads keys, so that a server that is slow or away never holds the keys up. The server filters and
//! sorts, and is asked for the rows near those on the screen alone. Where standard output is no terminal, one plain table is printed.

mod draw;
mod figures;
mod screen;
#[cfg(test)]
mod tests;

use super::client::{Client, Done};
use super::{CommandError, table};
use crate::settings::parse_duration;
use clap::Args;
use crossbeam_channel::{Receiver, Sender, bounded};
use figures::{Detail, ModelRow, Order, Page, place_of_page, places_of};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use screen::{Next, Question, Screen};
use serde_json::Value;
use std::io::{self, IsTerminal as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// An answer has to be there within this time; an older one is shown meanwhile.
const DEADLINE: Duration = Duration::from_secs(10);
/// The most rows of an answer.
const MOST_ROWS: usize = 1000;
/// How long a look at the keys waits.
const TICK: Duration = Duration::from_millis(100);
/// Times on the screen count seconds.
const SECOND: Duration = Duration::from_secs(1);

/// Options of `sluicegate top`.
#[derive(Debug, Args)]
pub(crate) struct TopOptions {
    /// How often the server is asked, from 500ms to 1h.
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = every)]
    every: Duration,
    /// What the models are sorted by.
    #[arg(long, value_enum, default_value_t = Order::Attention)]
    sort: Order,
    /// Only models with this in their name.
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
}

fn every(text: &str) -> Result<Duration, String> {
    let known =
        parse_duration(text).filter(|every| (Duration::from_millis(500)..=Duration::from_hours(1)).contains(every));
    known.ok_or_else(|| "expected a duration from 500ms to 1h, such as 2s".to_owned())
}

/// What the server answered in one round.
#[derive(Debug)]
struct Seen {
    question: Question,
    page: Result<Page, String>,
    /// Of the model that is looked at.
    detail: Option<(String, Result<Detail, String>)>,
}

/// What the thread that asks has to know.
#[derive(Debug, Clone)]
struct Wanted {
    question: Arc<Mutex<Option<Question>>>,
    /// Asks at once. One is enough: a second one would ask for the same.
    nudge: Sender<()>,
}

impl Wanted {
    /// Asks at once where something else is asked than before.
    fn ask(&self, question: Question) {
        let mut asked = self.question.lock().unwrap_or_else(PoisonError::into_inner);
        if asked.as_ref() != Some(&question) {
            *asked = Some(question);
            // Full: it asks at once anyway.
            let _ = self.nudge.try_send(());
        }
    }
}

pub(super) fn run(client: Client, options: &TopOptions) -> Done {
    let dumb = std::env::var("TERM").is_ok_and(|term| term == "dumb");
    if client.json() || dumb || !io::stdout().is_terminal() {
        return print_once(&client, options);
    }
    // A wrong address or certificate is an error before the terminal is changed. A server that is away is not: it may come back.
    if let Err(CommandError::Usage(message)) = client.get_within(&place_of_page("", options.sort, 0, 0), DEADLINE) {
        return Err(CommandError::Usage(message));
    }
    let mut screen = Screen::new(client.admin(), options);
    let failed = |what: &str, e: &io::Error| CommandError::Failed(format!("cannot {what}: {e}"));
    let stopped = stop_by_signals().map_err(|e| failed("handle signals", &e))?;
    let (answers, wanted) = ask(client, options.every).map_err(|e| failed("start a thread", &e))?;
    let restore = Restore;
    // It also restores the terminal before a panic is printed.
    let mut terminal = ratatui::try_init().map_err(|e| failed("use this terminal", &e))?;
    let shown = show(&mut terminal, &mut screen, &answers, &wanted, &stopped);
    drop(restore);
    shown.map_err(|e| failed("use this terminal", &e))
}

/// Restores the terminal when it is dropped.
struct Restore;

impl Drop for Restore {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// Draws until somebody quits.
fn show(
    terminal: &mut DefaultTerminal,
    screen: &mut Screen,
    answers: &Receiver<Seen>,
    wanted: &Wanted,
    stopped: &AtomicBool,
) -> io::Result<()> {
    let mut drawn: Option<Instant> = None;
    loop {
        let now = Instant::now();
        if drawn.is_none_or(|drawn| now.duration_since(drawn) >= SECOND) {
            terminal.draw(|frame| draw::draw(frame, screen, now))?;
            drawn = Some(now);
            // How many rows fit is known now.
            wanted.ask(screen.question());
        }
        if stopped.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut wait = TICK;
        while event::poll(wait)? {
            wait = Duration::ZERO;
            drawn = None;
            let Event::Key(key) = event::read()? else { continue };
            if key.kind == KeyEventKind::Release {
                continue;
            }
            match screen.press(key) {
                Next::Stay => wanted.ask(screen.question()),
                Next::Quit => return Ok(()),
            }
        }
        for seen in answers.try_iter() {
            screen.take(seen, Instant::now());
            drawn = None;
        }
    }
}

/// Set by signals that end a process: the terminal has to be restored first.
fn stop_by_signals() -> io::Result<Arc<AtomicBool>> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let stopped = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&stopped);
    let entered = runtime.enter();
    let [mut term, mut hang_up, mut interrupt] =
        [signal(SignalKind::terminate())?, signal(SignalKind::hangup())?, signal(SignalKind::interrupt())?];
    drop(entered);
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = term.recv() => {}
                _ = hang_up.recv() => {}
                _ = interrupt.recv() => {}
            }
        });
        asked.store(true, Ordering::Release);
    })?;
    Ok(stopped)
}

/// Starts the thread that asks the server. It ends when its answers are not taken any more, or with the process.
fn ask(client: Client, every: Duration) -> io::Result<(Receiver<Seen>, Wanted)> {
    // An answer that is not taken yet is not followed by another one: nothing piles up.
    let (to_screen, answers) = bounded(1);
    let (nudge, nudged) = bounded(1);
    let wanted = Wanted { question: Arc::default(), nudge };
    let asked = Arc::clone(&wanted.question);
    std::thread::Builder::new().name("ask".to_owned()).spawn(move || {
        while !matches!(nudged.recv_timeout(every), Err(crossbeam_channel::RecvTimeoutError::Disconnected)) {
            let Some(question) = asked.lock().unwrap_or_else(PoisonError::into_inner).clone() else { continue };
            let detail = question.model.as_ref().map(|name| (name.clone(), detail(&client, name)));
            let page = page(&question, |from, limit| overview(&client, &question.filter, question.order, from, limit));
            if to_screen.send(Seen { question, page, detail }).is_err() {
                return;
            }
        }
    })?;
    Ok((answers, wanted))
}

fn words(error: CommandError) -> String {
    match error {
        CommandError::Failed(message) | CommandError::Usage(message) => message,
    }
}

/// An answer of the overview.
fn overview(client: &Client, filter: &str, order: Order, from: usize, limit: usize) -> Result<Value, String> {
    let place = place_of_page(filter, order, from, limit);
    client.get_within(&place, DEADLINE).and_then(|answer| answer.json()).map_err(words)
}

/// The rows that are asked for. In the reversed order they are counted from the end, which is asked for first.
fn page(question: &Question, ask: impl Fn(usize, usize) -> Result<Value, String>) -> Result<Page, String> {
    let Question { reversed, from, limit, .. } = *question;
    if !reversed {
        return Ok(Page::of(&ask(from, limit)?, from, false));
    }
    let end = Page::of(&ask(0, 0)?, 0, false).found.saturating_sub(from);
    let start = end.saturating_sub(limit);
    Ok(Page::of(&ask(start, end - start)?, start, true))
}

fn detail(client: &Client, model: &str) -> Result<Detail, String> {
    let get = |place: &String| client.get_within(place, DEADLINE).and_then(|answer| answer.json()).map_err(words);
    let places = places_of(model);
    let first = get(&places[0])?;
    let optional = |at: usize| get(&places[at]).unwrap_or(Value::Null);
    Ok(Detail::of(&[first, optional(1), optional(2), optional(3), optional(4)]))
}

/// The table once, for a file or a pipe. With `--json` the overview of the API with the rows of all its pages.
fn print_once(client: &Client, options: &TopOptions) -> Done {
    let filter = options.filter.as_deref().unwrap_or_default();
    let mut rows = Vec::new();
    let mut all = loop {
        let mut answer = overview(client, filter, options.sort, rows.len(), MOST_ROWS).map_err(CommandError::Failed)?;
        let next = answer["rows"].as_array_mut().map(std::mem::take).unwrap_or_default();
        let is_last = next.is_empty();
        rows.extend(next);
        let found = answer["found"].as_u64().unwrap_or(0);
        if is_last || rows.len() as u64 >= found {
            break answer;
        }
    };
    all["rows"] = rows.into();
    let text = if client.json() { all.to_string() + "\n" } else { plain(&Page::of(&all, 0, false).rows) };
    super::client::print(&text)
}

fn plain(rows: &[ModelRow]) -> String {
    if rows.is_empty() {
        return "no models found\n".to_owned();
    }
    let cells = |row: &ModelRow| {
        let (versions, alerts) = (row.versions.to_string(), row.alerts.to_string());
        let (state, answers) = (row.state.clone(), row.answers.clone());
        vec![row.name.clone(), state, answers, row.requests(), row.p99(), row.failed_share(), versions, alerts]
    };
    let rows: Vec<Vec<String>> = rows.iter().map(cells).collect();
    table(&["MODEL", "STATE", "ANSWERS", "REQUESTS/S", "P99", "FAILED", "VERSIONS", "ALERTS"], &rows)
}
