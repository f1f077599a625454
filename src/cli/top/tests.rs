use super::figures::{Detail, Order, Page, place_of_page, sparkline};
use super::screen::{Next, Question, Screen};
use super::{Seen, TopOptions, draw, every, page, plain};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const HOSTILE: &str = "\u{1b}]0;owned\u{7}\u{1b}[2J\u{9b}31m\u{202e}\r\nforged";

fn options() -> TopOptions {
    TopOptions { every: Duration::from_secs(2), sort: Order::Attention, filter: None }
}

/// Rows of the overview, in the order in which the server has them.
fn models() -> Vec<Value> {
    json!([
        {"name": "broken", "ready": false, "retired": false, "attention": 3, "reason": HOSTILE, "versions": 1, "failed_versions": ["1"]},
        {"name": "fraud", "ready": true, "retired": false, "attention": 2, "versions": 2, "alerts": ["p99", "errors"],
            "answers": [{"version": "1", "share": 0.9}, {"version": "2", "share": 0.1}],
            "figures": {"requests_per_s": 1234.5, "p99_us": 1500, "failed": 0.001, "last_hour": [0.0, 1.0, 2.0]}},
        {"name": "calm", "ready": true, "retired": false, "attention": 0, "answers": [{"version": "1", "share": 1.0}], "versions": 1,
            "figures": {"requests_per_s": 2.0, "p99_us": 9000, "failed": 0.0, "last_hour": []}},
        {"name": "old", "ready": false, "retired": true, "attention": 0, "versions": 0},
    ])
    .as_array()
    .unwrap()
    .clone()
}

fn many(count: usize) -> Vec<Value> {
    let model = |n: usize| json!({"name": format!("model-{n:04}"), "ready": true, "retired": false, "attention": 0, "answers": [], "versions": 0});
    (0..count).map(model).collect()
}

/// What a server with these models answers: filtered, and no more than was asked for.
fn answer(all: &[Value], question: &Question) -> Page {
    let filter = question.filter.to_lowercase();
    let found: Vec<&Value> = all.iter().filter(|row| row["name"].as_str().unwrap().contains(&filter)).collect();
    let wrong = found.iter().filter(|row| row["attention"] != 0).count();
    let asked = |from: usize, limit: usize| {
        assert!(limit <= 300, "{limit}: not the whole list");
        let rows: Vec<&&Value> = found.iter().skip(from).take(limit).collect();
        Ok(json!({"models": all.len(), "found": found.len(), "wrong": wrong, "rows": rows}))
    };
    page(question, asked).unwrap()
}

fn seen(screen: &Screen, all: &[Value]) -> Seen {
    let question = screen.question();
    Seen { page: Ok(answer(all, &question)), question, detail: None }
}

/// The server answers what is asked for now.
fn served(screen: &mut Screen, all: &[Value]) {
    let seen = seen(screen, all);
    screen.take(seen, Instant::now());
}

fn screen(all: &[Value]) -> Screen {
    let mut screen = Screen::new("http://127.0.0.1:8081", &options());
    drawn(&mut screen, 150, 24);
    served(&mut screen, all);
    screen
}

/// The names on the screen.
fn names(screen: &mut Screen) -> Vec<String> {
    let lines = drawn(screen, 150, 24);
    // The last line has the keys.
    let rows = lines[..23].iter().skip_while(|line| !line.starts_with("Model")).skip(1);
    rows.map(|line| line.split(' ').next().unwrap_or_default().to_owned()).filter(|name| !name.is_empty()).collect()
}

fn drawn_at(screen: &mut Screen, width: u16, height: u16, now: Instant) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw::draw(frame, screen, now)).unwrap();
    let buffer = terminal.backend().buffer();
    let cells: Vec<&str> = buffer.content.iter().map(ratatui::buffer::Cell::symbol).collect();
    cells.chunks(usize::from(width).max(1)).map(|line| line.concat().trim_end().to_owned()).collect()
}

fn drawn(screen: &mut Screen, width: u16, height: u16) -> Vec<String> {
    drawn_at(screen, width, height, Instant::now())
}

fn press(screen: &mut Screen, code: KeyCode) -> Next {
    screen.press(KeyEvent::new(code, KeyModifiers::NONE))
}

fn type_text(screen: &mut Screen, text: &str) {
    for c in text.chars() {
        assert_eq!(press(screen, KeyCode::Char(c)), Next::Stay);
    }
}

#[test]
fn what_is_wrong_stands_first_with_the_figures_of_the_console() {
    let lines = drawn(&mut screen(&models()), 150, 8);
    assert!(lines[0].contains("4 models, 2 need attention") && lines[0].contains("as of now"), "{lines:#?}");
    let order: Vec<&str> = lines[2..6].iter().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(order, ["broken", "fraud", "calm", "old"]);
    for part in ["serving", "v1 90 % · v2 10 %", "1\u{202f}235", "1.5 ms", "0.10 %", "▄█"] {
        assert!(lines[3].contains(part), "{part}: {}", lines[3]);
    }
    assert!(lines[3].ends_with("2       2"), "versions and alerts: {}", lines[3]);
    assert!(lines[5].contains("· retired"), "{}", lines[5]);
    assert!(lines[7].contains("sort: what is wrong first"), "{lines:#?}");
}

#[test]
fn texts_of_others_control_nothing() {
    let mut screen = screen(&models());
    let (traffic, model) = (
        json!({"shares": [{"arm": HOSTILE, "version": HOSTILE}]}),
        json!({"name": HOSTILE, "ready": true, "notes": [HOSTILE], "versions": [{"version": HOSTILE, "state": HOSTILE, "engine": HOSTILE, "reason": HOSTILE, "notes": [HOSTILE]}]}),
    );
    let alerts = json!({"alerts": [{"severity": HOSTILE, "summary": HOSTILE}]});
    let rollout = json!({"state": HOSTILE, "to": HOSTILE, "why": HOSTILE});
    let detail = Detail::of(&[model, traffic, json!({}), rollout, alerts]);
    assert!(detail.lines.iter().any(|line| line.contains("⟨U+001B⟩]0;owned")), "{detail:?}");
    screen.open = Some("fraud".to_owned());
    let with = Seen { detail: Some(("fraud".to_owned(), Ok(detail))), ..seen(&screen, &models()) };
    screen.take(with, Instant::now());
    screen.filter = HOSTILE.to_owned();
    let mut all = drawn(&mut screen, 200, 40).concat();
    screen.filter = String::new();
    screen.open = None;
    all += &drawn(&mut screen, 200, 40).concat();
    let away = Seen { page: Err(HOSTILE.to_owned()), ..seen(&screen, &models()) };
    screen.take(away, Instant::now());
    all += &drawn(&mut screen, 200, 40).concat();
    all += &plain(&answer(&models(), &screen.question()).rows).replace('\n', "");
    let bad = all.chars().find(|c| c.is_control() || *c == '\u{202e}');
    assert_eq!(bad, None);
    assert!(all.contains("failed: ⟨U+001B⟩]0;owned"), "{all}");
}

#[test]
fn narrow_terminals_keep_the_important_columns_and_tiny_ones_do_no_harm() {
    let mut screen = screen(&models());
    let heads =
        |screen: &mut Screen, width| drawn(screen, width, 8)[1].split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(heads(&mut screen, 120), "Model State Answers Requests/s p99 Failed Versions Alerts");
    assert_eq!(heads(&mut screen, 80), "Model State Requests/s p99 Failed Alerts");
    assert_eq!(heads(&mut screen, 44), "Model State Requests/s");
    assert_eq!(heads(&mut screen, 20), "Model");
    for (width, height) in [(0, 0), (1, 1), (5, 2), (12, 3), (300, 1), (1, 100)] {
        for open in [None, Some("fraud".to_owned())] {
            screen.open = open;
            drawn(&mut screen, width, height);
        }
    }
}

#[test]
fn the_list_is_filtered_by_typing_and_sorted_by_the_server() {
    let mut screen = screen(&models());
    press(&mut screen, KeyCode::Char('/'));
    type_text(&mut screen, "RAq");
    assert_eq!(screen.question().filter, "RAq", "q is a letter while somebody types");
    assert_eq!(names(&mut screen).len(), 4, "the last answer stays until the next one");
    let late = seen(&screen, &models());
    served(&mut screen, &models());
    assert!(drawn(&mut screen, 80, 8).concat().contains("No model has this in its name"));
    press(&mut screen, KeyCode::Backspace);
    assert_eq!(press(&mut screen, KeyCode::Enter), Next::Stay);
    press(&mut screen, KeyCode::Enter);
    assert_eq!(screen.open, None, "no row of another list is looked at");
    screen.take(late, Instant::now());
    assert!(names(&mut screen).is_empty(), "an answer about another filter came too late");
    served(&mut screen, &models());
    assert_eq!(names(&mut screen), ["fraud"]);
    let lines = drawn(&mut screen, 80, 8);
    assert!(lines[0].contains("1 of 4 models, 1 needs attention") && lines[1].contains("Filter: RA"), "{lines:#?}");
    press(&mut screen, KeyCode::Esc);
    served(&mut screen, &models());
    drawn(&mut screen, 150, 24);
    let mut places = Vec::new();
    for _ in 0..6 {
        let Question { filter, order, from, limit, .. } = screen.question();
        places.push(place_of_page(&filter, order, from, limit));
        press(&mut screen, KeyCode::Char('s'));
    }
    let sorts = ["attention", "name", "requests", "p99", "failed", "alerts"];
    assert_eq!(places, sorts.map(|sort| format!("/api/v1/overview?sort={sort}&filter=&offset=0&limit=63")));
    assert_eq!(screen.order, Order::Attention, "six keys lead back");
    press(&mut screen, KeyCode::Char('r'));
    served(&mut screen, &models());
    assert_eq!(names(&mut screen), ["old", "calm", "fraud", "broken"]);
    press(&mut screen, KeyCode::Char('/'));
    type_text(&mut screen, &"é".repeat(1000));
    assert_eq!(screen.filter.chars().count(), 128, "the filter is bounded");
    let place = place_of_page(&screen.filter, Order::Name, 0, 1);
    assert_eq!(place.matches("%C3%A9").count(), 64, "to the bytes that the server takes: {place}");
    assert!(place_of_page(" a&b=c#d ", Order::Name, 0, 1).contains("filter=a%26b%3Dc%23d&"));
}

#[test]
fn two_thousand_models_scroll_and_the_selected_one_stays_selected() {
    let all = many(2000);
    for reversed in [false, true] {
        let mut screen = screen(&all);
        if reversed {
            press(&mut screen, KeyCode::Char('r'));
            served(&mut screen, &all);
        }
        let name = |place: usize| format!("model-{:04}", if reversed { 1999 - place } else { place });
        let selected = |screen: &Screen| screen.list.at(screen.place).map(|row| row.name.clone());
        let lines = drawn(&mut screen, 80, 24);
        assert!(lines[0].contains("2000 models") && lines[2].starts_with(&name(0)), "{lines:#?}");
        press(&mut screen, KeyCode::End);
        assert!(drawn(&mut screen, 80, 24)[22].starts_with('…'), "the rows are not there yet");
        served(&mut screen, &all);
        let lines = drawn(&mut screen, 80, 24);
        assert!(lines[22].starts_with(&name(1999)), "{lines:#?}");
        press(&mut screen, KeyCode::PageUp);
        let lines = drawn(&mut screen, 80, 24);
        assert_eq!(selected(&screen), Some(name(1979)), "a page before is there at once");
        assert!(lines.iter().any(|line| line.starts_with(&name(1979))), "{lines:#?}");
        // All places, by steps of a page.
        while screen.place > 0 {
            press(&mut screen, KeyCode::PageUp);
            assert_eq!(selected(&screen), Some(name(screen.place)), "a page before is there at once");
            let lines = drawn(&mut screen, 80, 24);
            assert!(lines.iter().any(|line| line.starts_with(&name(screen.place))), "{}: {lines:#?}", screen.place);
            served(&mut screen, &all);
        }
        for _ in 0..5 {
            press(&mut screen, KeyCode::Down);
        }
        // Rows before it, in either order, are gone.
        served(&mut screen, &all[2..1998]);
        assert_eq!((selected(&screen), screen.place), (Some(name(5)), 3), "rows moved");
        served(&mut screen, &[]);
        assert!(drawn(&mut screen, 80, 24).concat().contains("no models yet"));
        press(&mut screen, KeyCode::Enter);
        assert_eq!(screen.open, None, "there is nothing to look at");
    }
}

#[test]
fn one_model_is_looked_at_with_its_arms_and_versions() {
    let mut screen = screen(&models());
    press(&mut screen, KeyCode::Down);
    press(&mut screen, KeyCode::Enter);
    assert_eq!(screen.question().model.as_deref(), Some("fraud"));
    let model = json!({"name": "fraud", "ready": true, "revision": 7, "versions": [
        {"version": "1", "state": "serving", "engine": "tract", "bytes": 4096, "in_flight": 3},
        {"version": "2", "state": "failed", "reason": "golden answers differ"}]});
    let traffic = json!({"shares": [{"arm": "control", "version": "1", "configured": 0.9, "observed": 0.89}]});
    let figures = json!({"series": [{"arm": "control", "version": "1", "requests_per_s": 12.0, "p50_us": 400, "p99_us": 1500, "failed": 0.0, "last_hour": [1.0]}]});
    let rollout = json!({"state": "running", "to": "2", "percent": 10.0, "why": "waits for requests"});
    let alerts = json!({"alerts": [{"severity": "critical", "summary": "p99 is high"}]});
    let detail = Detail::of(&[model, traffic, figures, rollout, alerts]);
    let of = |screen: &Screen, name: &str| {
        let detail = Some((name.to_owned(), Ok(detail.clone())));
        Seen { detail, ..seen(screen, &models()) }
    };
    let calm = of(&screen, "calm");
    screen.take(calm, Instant::now());
    assert_eq!(screen.detail, None, "an answer about another model came too late");
    let fraud = of(&screen, "fraud");
    screen.take(fraud, Instant::now());
    let text = drawn(&mut screen, 140, 30).join("\n");
    for part in [
        "revision 7",
        "✕ critical: p99 is high",
        "rollout to version 2: running, 10 %; waits for requests",
        "control  1        90 %        89 %      12          0.4 ms  1.5 ms  0 %     █",
        "✕ failed",
        "golden answers differ",
        "4 KiB",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    press(&mut screen, KeyCode::End);
    assert!(drawn(&mut screen, 140, 6).concat().contains("golden answers differ"), "it scrolls to its end");
    press(&mut screen, KeyCode::Esc);
    assert_eq!(screen.question().model, None);
    assert!(drawn(&mut screen, 140, 8)[1].starts_with("Model"));
}

#[test]
fn a_server_that_is_away_is_told_and_what_it_said_stays() {
    let mut screen = Screen::new("http://127.0.0.1:8081", &options());
    let began = Instant::now();
    let away = |screen: &Screen| Seen { page: Err("cannot reach the admin API".to_owned()), ..seen(screen, &models()) };
    let none = away(&screen);
    screen.take(none, began);
    let lines = drawn_at(&mut screen, 120, 8, began + Duration::from_secs(3));
    assert!(
        lines[0].contains("no answer yet") && lines[1].starts_with("No answer for 3 s. cannot reach"),
        "{lines:#?}"
    );
    let answered = seen(&screen, &models());
    screen.take(answered, began);
    for seconds in [0, 5] {
        let none = away(&screen);
        screen.take(none, began + Duration::from_secs(seconds));
    }
    let lines = drawn_at(&mut screen, 120, 8, began + Duration::from_secs(6));
    assert!(lines[1].starts_with("No answer for 6 s. This shows the last answer. cannot reach"), "{lines:#?}");
    assert!(lines.concat().contains("fraud"), "{lines:#?}");
    let answered = seen(&screen, &models());
    screen.take(answered, began + Duration::from_secs(7));
    assert!(!drawn(&mut screen, 120, 8).concat().contains("No answer"), "it came back");
}

#[test]
fn q_and_control_c_end_it() {
    let mut screen = screen(&models());
    let control_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    assert_eq!(press(&mut screen, KeyCode::Char('q')), Next::Quit);
    press(&mut screen, KeyCode::Char('/'));
    assert_eq!(screen.press(control_c), Next::Quit, "also while somebody types");
    assert!(!screen.filter.contains('c'));
}

#[test]
fn without_a_terminal_one_table_is_printed() {
    let text = plain(&answer(&models(), &screen(&models()).question()).rows);
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("MODEL") && lines[1].starts_with("broken") && lines.len() == 5, "{text}");
    assert_eq!(plain(&[]), "no models found\n");
}

#[test]
fn rates_become_blocks_of_their_height() {
    assert_eq!(sparkline(&[0.0, 1.0, 2.0], 20), " ▄█");
    assert_eq!(sparkline(&[0.0; 60], 20), "");
    assert_eq!(sparkline(&[], 20), "");
    let rates: Vec<f64> = (0..60).map(f64::from).collect();
    assert_eq!(sparkline(&rates, 20).chars().count(), 20);
    assert_eq!(sparkline(&[f64::NAN, 1.0], 2).chars().count(), 2, "what is no number does no harm");
}

#[test]
fn the_time_between_two_looks_is_bounded() {
    for (text, fits) in
        [("2s", true), ("500ms", true), ("1h", true), ("499ms", false), ("61m", false), ("0s", false), ("x", false)]
    {
        assert_eq!(every(text).is_ok(), fits, "{text}");
    }
}
