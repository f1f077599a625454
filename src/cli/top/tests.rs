use super::figures::{Answers, Detail, Order, sparkline};
use super::screen::{Next, Screen};
use super::{Seen, TopOptions, draw, every, plain};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const HOSTILE: &str = "\u{1b}]0;owned\u{7}\u{1b}[2J\u{9b}31m\u{202e}\r\nforged";

fn options() -> TopOptions {
    TopOptions { every: Duration::from_secs(2), sort: Order::Attention, filter: None }
}

fn answers() -> Answers {
    let version = |state: &str| json!({"version": "1", "state": state});
    Answers {
        models: json!({"models": [
            {"name": "calm", "ready": true, "retired": null, "answers": [{"version": "1", "share": 1.0}], "versions": [version("serving")]},
            {"name": "fraud", "ready": true, "retired": null, "versions": [version("serving"), version("ready")],
                "answers": [{"version": "1", "share": 0.9}, {"version": "2", "share": 0.1}]},
            {"name": "old", "ready": false, "retired": {"by": "anna"}, "versions": []},
            {"name": "broken", "ready": false, "retired": null, "reason": HOSTILE, "versions": [version("failed")]},
        ]}),
        figures: json!({"models": {
            "fraud": {"requests_per_s": 1234.5, "p99_us": 1500, "failed": 0.001, "last_hour": [0.0, 1.0, 2.0]},
            "calm": {"requests_per_s": 2.0, "p99_us": 9000, "failed": 0.0, "last_hour": []},
        }}),
        alerts: json!({"alerts": [{"model": "fraud"}, {"model": "fraud"}, {"model": null}]}),
    }
}

fn many(count: usize) -> Answers {
    let model = |n: usize| json!({"name": format!("model-{n:04}"), "ready": true, "retired": null, "answers": [], "versions": []});
    Answers { models: json!({"models": (0..count).map(model).collect::<Vec<Value>>()}), ..Answers::default() }
}

fn screen(answers: &Answers) -> Screen {
    let mut screen = Screen::new("http://127.0.0.1:8081", &options());
    screen.take(Seen { rows: Ok(answers.rows()), detail: None }, Instant::now());
    screen
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
    let lines = drawn(&mut screen(&answers()), 150, 8);
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
    let mut screen = screen(&answers());
    let (traffic, model) = (
        json!({"shares": [{"arm": HOSTILE, "version": HOSTILE}]}),
        json!({"name": HOSTILE, "ready": true, "notes": [HOSTILE], "versions": [{"version": HOSTILE, "state": HOSTILE, "engine": HOSTILE, "reason": HOSTILE, "notes": [HOSTILE]}]}),
    );
    let alerts = json!({"alerts": [{"severity": HOSTILE, "summary": HOSTILE}]});
    let rollout = json!({"state": HOSTILE, "to": HOSTILE, "why": HOSTILE});
    let detail = Detail::of(&[model, traffic, json!({}), rollout, alerts]);
    assert!(detail.lines.iter().any(|line| line.contains("⟨U+001B⟩]0;owned")), "{detail:?}");
    screen.open = Some("fraud".to_owned());
    screen.take(Seen { rows: Ok(answers().rows()), detail: Some(("fraud".to_owned(), Ok(detail))) }, Instant::now());
    screen.filter = HOSTILE.to_owned();
    let mut all = drawn(&mut screen, 200, 40).concat();
    screen.filter = String::new();
    screen.open = None;
    all += &drawn(&mut screen, 200, 40).concat();
    screen.take(Seen { rows: Err(HOSTILE.to_owned()), detail: None }, Instant::now());
    all += &drawn(&mut screen, 200, 40).concat();
    all += &plain(&answers().rows(), &options()).replace('\n', "");
    let bad = all.chars().find(|c| c.is_control() || *c == '\u{202e}');
    assert_eq!(bad, None);
    assert!(all.contains("failed: ⟨U+001B⟩]0;owned"), "{all}");
}

#[test]
fn narrow_terminals_keep_the_important_columns_and_tiny_ones_do_no_harm() {
    let mut screen = screen(&answers());
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
fn the_list_is_filtered_by_typing_and_sorted() {
    let mut screen = screen(&answers());
    press(&mut screen, KeyCode::Char('/'));
    type_text(&mut screen, "RAq");
    let names = |screen: &Screen| screen.shown().iter().map(|row| row.name.clone()).collect::<Vec<_>>();
    assert!(names(&screen).is_empty(), "q is a letter while somebody types");
    assert!(drawn(&mut screen, 80, 8).concat().contains("No model has this in its name"));
    press(&mut screen, KeyCode::Backspace);
    assert_eq!(names(&screen), ["fraud"]);
    assert!(drawn(&mut screen, 80, 8)[1].contains("Filter: RA"));
    press(&mut screen, KeyCode::Enter);
    assert!(drawn(&mut screen, 80, 8)[0].contains("1 of 4 models"));
    press(&mut screen, KeyCode::Esc);
    let by = |screen: &mut Screen, order: Order| {
        screen.order = order;
        names(screen)
    };
    assert_eq!(by(&mut screen, Order::Requests), ["fraud", "calm", "broken", "old"], "unknown figures are last");
    assert_eq!(by(&mut screen, Order::P99), ["calm", "fraud", "broken", "old"]);
    assert_eq!(by(&mut screen, Order::Alerts), ["fraud", "broken", "calm", "old"]);
    press(&mut screen, KeyCode::Char('r'));
    assert_eq!(by(&mut screen, Order::Name), ["old", "fraud", "calm", "broken"]);
    let mut order = Order::Attention;
    for _ in 0..6 {
        order = order.next();
    }
    assert_eq!(order, Order::Attention, "six keys lead back");
    press(&mut screen, KeyCode::Char('/'));
    type_text(&mut screen, &"x".repeat(1000));
    assert_eq!(screen.filter.len(), 128, "the filter is bounded");
}

#[test]
fn two_thousand_models_scroll_and_the_selected_one_stays_selected() {
    let mut screen = screen(&many(2000));
    let selected = |screen: &Screen| {
        let shown = screen.shown();
        shown[screen.place(&shown)].name.clone()
    };
    let lines = drawn(&mut screen, 80, 24);
    assert!(lines[0].contains("2000 models") && lines[2].starts_with("model-0000"), "{lines:#?}");
    press(&mut screen, KeyCode::End);
    let lines = drawn(&mut screen, 80, 24);
    assert!(lines[22].starts_with("model-1999"), "{lines:#?}");
    press(&mut screen, KeyCode::PageUp);
    let lines = drawn(&mut screen, 80, 24);
    assert_eq!(selected(&screen), "model-1979");
    assert!(lines.iter().any(|line| line.starts_with("model-1979")), "{lines:#?}");
    let fewer = Answers {
        models: json!({"models": many(2000).models["models"].as_array().unwrap()[1900..]}),
        ..Answers::default()
    };
    screen.take(Seen { rows: Ok(fewer.rows()), detail: None }, Instant::now());
    assert_eq!(selected(&screen), "model-1979", "rows moved");
    screen.take(Seen { rows: Ok(Vec::new()), detail: None }, Instant::now());
    assert!(drawn(&mut screen, 80, 24).concat().contains("no models yet"));
    assert_eq!(press(&mut screen, KeyCode::Enter), Next::Stay, "there is nothing to look at");
}

#[test]
fn one_model_is_looked_at_with_its_arms_and_versions() {
    let mut screen = screen(&answers());
    press(&mut screen, KeyCode::Down);
    assert_eq!(press(&mut screen, KeyCode::Enter), Next::Look(Some("fraud".to_owned())));
    let model = json!({"name": "fraud", "ready": true, "revision": 7, "versions": [
        {"version": "1", "state": "serving", "engine": "tract", "bytes": 4096, "in_flight": 3},
        {"version": "2", "state": "failed", "reason": "golden answers differ"}]});
    let traffic = json!({"shares": [{"arm": "control", "version": "1", "configured": 0.9, "observed": 0.89}]});
    let figures = json!({"series": [{"arm": "control", "version": "1", "requests_per_s": 12.0, "p50_us": 400, "p99_us": 1500, "failed": 0.0, "last_hour": [1.0]}]});
    let rollout = json!({"state": "running", "to": "2", "percent": 10.0, "why": "waits for requests"});
    let alerts = json!({"alerts": [{"severity": "critical", "summary": "p99 is high"}]});
    let detail = Detail::of(&[model, traffic, figures, rollout, alerts]);
    let seen = |name: &str| Seen { rows: Ok(answers().rows()), detail: Some((name.to_owned(), Ok(detail.clone()))) };
    screen.take(seen("calm"), Instant::now());
    assert_eq!(screen.detail, None, "an answer about another model came too late");
    screen.take(seen("fraud"), Instant::now());
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
    assert_eq!(press(&mut screen, KeyCode::Esc), Next::Look(None));
    assert!(drawn(&mut screen, 140, 8)[1].starts_with("Model"));
}

#[test]
fn a_server_that_is_away_is_told_and_what_it_said_stays() {
    let mut screen = Screen::new("http://127.0.0.1:8081", &options());
    let began = Instant::now();
    let away = || Seen { rows: Err("cannot reach the admin API".to_owned()), detail: None };
    screen.take(away(), began);
    let lines = drawn_at(&mut screen, 120, 8, began + Duration::from_secs(3));
    assert!(
        lines[0].contains("no answer yet") && lines[1].starts_with("No answer for 3 s. cannot reach"),
        "{lines:#?}"
    );
    screen.take(Seen { rows: Ok(answers().rows()), detail: None }, began);
    screen.take(away(), began);
    screen.take(away(), began + Duration::from_secs(5));
    let lines = drawn_at(&mut screen, 120, 8, began + Duration::from_secs(6));
    assert!(lines[1].starts_with("No answer for 6 s. This shows the last answer. cannot reach"), "{lines:#?}");
    assert!(lines.concat().contains("fraud"), "{lines:#?}");
    screen.take(Seen { rows: Ok(answers().rows()), detail: None }, began + Duration::from_secs(7));
    assert!(!drawn(&mut screen, 120, 8).concat().contains("No answer"), "it came back");
}

#[test]
fn q_and_control_c_end_it() {
    let mut screen = screen(&answers());
    let control_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    assert_eq!(press(&mut screen, KeyCode::Char('q')), Next::Quit);
    press(&mut screen, KeyCode::Char('/'));
    assert_eq!(screen.press(control_c), Next::Quit, "also while somebody types");
    assert!(!screen.filter.contains('c'));
}

#[test]
fn without_a_terminal_one_table_is_printed() {
    let text = plain(&answers().rows(), &options());
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("MODEL") && lines[1].starts_with("broken") && lines.len() == 5, "{text}");
    let filtered = plain(&answers().rows(), &TopOptions { filter: Some("CALM".to_owned()), ..options() });
    assert_eq!(filtered.lines().count(), 2, "{filtered}");
    assert_eq!(plain(&[], &options()), "no models found\n");
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
