//! Draws the screen of `top`. Where it is narrow, the less important columns are left out.

use super::figures::{ModelRow, Page, mark, sparkline};
use super::screen::Screen;
use crate::readable::{self, Tone};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, Row, Table};
use std::time::Instant;

/// A column besides the name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Column {
    State,
    Answers,
    Requests,
    P99,
    Failed,
    LastHour,
    Versions,
    Alerts,
}

/// In the order of the screen; each with its head, its width and its rank: a lower rank stays longer where it is narrow.
const COLUMNS: [(Column, &str, u16, u8); 8] = [
    (Column::State, "State", 14, 0),
    (Column::Answers, "Answers", 22, 5),
    (Column::Requests, "Requests/s", 10, 1),
    (Column::P99, "p99", 10, 2),
    (Column::Failed, "Failed", 8, 3),
    (Column::LastHour, "Last hour", 20, 7),
    (Column::Versions, "Versions", 8, 6),
    (Column::Alerts, "Alerts", 6, 4),
];
const GAP: u16 = 2;
/// The least and the most characters of a name.
const NAME: (u16, u16) = (12, 40);

pub(super) fn draw(frame: &mut Frame<'_>, screen: &mut Screen, now: Instant) {
    let message = message(screen, now);
    let between = Constraint::Length(u16::from(message.is_some()));
    let heights = [Constraint::Length(1), between, Constraint::Min(0), Constraint::Length(1)];
    let [head, between, body, foot] = Layout::vertical(heights).areas(frame.area());
    frame.render_widget(Paragraph::new(title(screen, now)), head);
    if let Some(message) = message {
        frame.render_widget(Paragraph::new(message), between);
    }
    if screen.open.is_some() {
        detail(frame, screen, body);
    } else {
        models(frame, screen, body);
    }
    frame.render_widget(Paragraph::new(keys(screen)).style(quiet()), foot);
}

fn quiet() -> Style {
    Style::new().add_modifier(Modifier::DIM)
}

fn bold() -> Style {
    Style::new().add_modifier(Modifier::BOLD)
}

fn colour(tone: Tone) -> Style {
    match tone {
        Tone::Good => Style::new().fg(Color::Green),
        Tone::Warning => Style::new().fg(Color::Yellow),
        Tone::Bad => Style::new().fg(Color::Red),
        Tone::Quiet => quiet(),
    }
}

fn title(screen: &Screen, now: Instant) -> Line<'static> {
    let Page { models: all, found, wrong, .. } = screen.list;
    let of_all = format!("{all} {}", if all == 1 { "model" } else { "models" });
    let models = if found == all { of_all } else { format!("{found} of {of_all}") };
    let wrong = match wrong {
        0 => String::new(),
        1 => ", 1 needs attention".to_owned(),
        wrong => format!(", {wrong} need attention"),
    };
    let age = screen
        .answered
        .map_or_else(|| "no answer yet".to_owned(), |at| format!("as of {}", readable::since(whole_seconds(at, now))));
    Line::from(vec![
        Span::styled("Sluicegate ", bold()),
        Span::styled(format!("{}  ", screen.admin), quiet()),
        Span::raw(format!("{models}{wrong}  ")),
        Span::styled(age, quiet()),
    ])
}

fn whole_seconds(since: Instant, now: Instant) -> i64 {
    i64::try_from(now.saturating_duration_since(since).as_secs()).unwrap_or(i64::MAX)
}

/// What stands above the table: why there is no answer, or the filter.
fn message(screen: &Screen, now: Instant) -> Option<Line<'static>> {
    if let Some((error, since)) = &screen.trouble {
        let seconds = whole_seconds(*since, now);
        let kept = if screen.answered.is_some() { "This shows the last answer. " } else { "" };
        let words = format!("No answer for {seconds} s. {kept}{error}");
        return Some(Line::styled(words, colour(Tone::Bad)));
    }
    if screen.typing {
        let filter = readable::line(&screen.filter, 200);
        return Some(Line::from(vec![Span::styled("Filter: ", bold()), Span::raw(filter), Span::raw("▏")]));
    }
    let filter = readable::line(&screen.filter, 200);
    (!filter.is_empty()).then(|| Line::from(vec![Span::styled("Filter: ", bold()), Span::raw(filter)]))
}

fn keys(screen: &Screen) -> String {
    if screen.typing {
        return "type a part of a name   Enter keep   Esc clear".to_owned();
    }
    if screen.open.is_some() {
        return "Esc back   ↑↓ scroll   / filter   q quit".to_owned();
    }
    let reversed = if screen.reversed { ", reversed" } else { "" };
    format!("↑↓ select   Enter look   / filter   s sort: {}{reversed}   r reverse   q quit", screen.order.words())
}

/// Those that fit beside the name, in the order of the screen.
fn fitting(width: u16, name: u16) -> Vec<(Column, &'static str, u16)> {
    let mut by_rank = COLUMNS;
    by_rank.sort_by_key(|(.., rank)| *rank);
    let mut left = width.saturating_sub(name);
    let fits = by_rank.iter().take_while(|(_, _, width, _)| {
        let needed = width + GAP;
        let fits = needed <= left;
        left = left.saturating_sub(needed);
        fits
    });
    let fits: Vec<Column> = fits.map(|(column, ..)| *column).collect();
    COLUMNS
        .into_iter()
        .filter(|(column, ..)| fits.contains(column))
        .map(|(c, head, width, _)| (c, head, width))
        .collect()
}

fn models(frame: &mut Frame<'_>, screen: &mut Screen, area: Rect) {
    screen.page = usize::from(area.height.saturating_sub(1)).max(1);
    let (offset, place, list) = (screen.first_visible(), screen.place, &screen.list);
    // Rows that are not there yet come with the next answer.
    let visible: Vec<Option<&ModelRow>> =
        (offset..(offset + screen.page).min(list.found)).map(|place| list.at(place)).collect();
    if visible.is_empty() {
        let words = match (screen.answered, list.models) {
            (None, _) => "",
            _ if screen.is_stale => "",
            (Some(_), 0) => "There are no models yet. `sluicegate push NAME 1 model.onnx` uploads one.",
            (Some(_), _) => "No model has this in its name. Esc clears the filter.",
        };
        frame.render_widget(Paragraph::new(words), area);
        return;
    }
    let longest = list.rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0);
    let longest = u16::try_from(longest).unwrap_or(u16::MAX).clamp(NAME.0, NAME.1);
    let columns = fitting(area.width, NAME.0);
    let taken: u16 = columns.iter().map(|(_, _, width)| width + GAP).sum();
    // What is left over goes to the name, then to the state, whose reason may be long.
    let name = longest.min(area.width.saturating_sub(taken));
    let state = visible.iter().flatten().map(|row| row.state_with_mark().chars().count()).max().unwrap_or(0);
    let wanted = u16::try_from(state).unwrap_or(u16::MAX).saturating_sub(COLUMNS[0].2);
    let rest = area.width.saturating_sub(taken + name).min(wanted);
    let widths: Vec<u16> = std::iter::once(name)
        .chain(columns.iter().map(|(column, _, width)| width + if *column == Column::State { rest } else { 0 }))
        .collect();
    let heads =
        std::iter::once(Cell::new("Model")).chain(columns.iter().map(|(column, head, _)| aligned(*column, head)));
    let head = Row::new(heads).style(quiet());
    let rows = visible.iter().enumerate().map(|(index, row)| {
        let style = if offset + index == place { Style::new().add_modifier(Modifier::REVERSED) } else { Style::new() };
        let Some(row) = row else { return Row::new([Cell::new("…")]).style(style) };
        let cells = columns.iter().map(|(column, ..)| cell(*column, row));
        Row::new(std::iter::once(Cell::new(row.name.clone())).chain(cells)).style(style)
    });
    let table = Table::new(rows, widths.into_iter().map(Constraint::Length)).header(head).column_spacing(GAP);
    frame.render_widget(table, area);
    screen.offset = offset;
}

fn cell(column: Column, row: &ModelRow) -> Cell<'static> {
    match column {
        Column::State => Cell::new(row.state_with_mark()).style(colour(row.tone)),
        Column::Answers => Cell::new(row.answers.clone()),
        Column::Requests => aligned(column, &row.requests()),
        Column::P99 => aligned(column, &row.p99()),
        Column::Failed => aligned(column, &row.failed_share()),
        Column::LastHour => Cell::new(sparkline(&row.last_hour, 20)),
        Column::Versions => aligned(column, &row.versions.to_string()),
        Column::Alerts => {
            let tone = if row.alerts > 0 { Tone::Bad } else { Tone::Quiet };
            aligned(column, &row.alerts.to_string()).style(colour(tone))
        }
    }
}

/// Numbers stand at the right.
fn aligned(column: Column, text: &str) -> Cell<'static> {
    let line = Line::raw(text.to_owned());
    let is_text = matches!(column, Column::State | Column::Answers | Column::LastHour);
    Cell::new(if is_text { line } else { line.right_aligned() })
}

fn detail(frame: &mut Frame<'_>, screen: &mut Screen, area: Rect) {
    screen.page = usize::from(area.height.saturating_sub(1)).max(1);
    let name = screen.open.clone().unwrap_or_default();
    let (head, lines) = match &screen.detail {
        None => (Line::styled(name, bold()), vec!["…".to_owned()]),
        Some(Err(error)) => (Line::styled(name, bold()), vec![error.clone()]),
        Some(Ok(detail)) => {
            let head = vec![
                Span::styled(detail.name.clone(), bold()),
                Span::raw(" "),
                Span::styled(mark(detail.tone), colour(detail.tone)),
            ];
            (Line::from(head), detail.lines.clone())
        }
    };
    screen.scroll = screen.scroll.min(lines.len().saturating_sub(screen.page));
    let [top, rest] = Layout::vertical([Constraint::Length(1), Constraint::Min(0)]).areas(area);
    frame.render_widget(Paragraph::new(head), top);
    let lines: Vec<Line<'_>> = lines.into_iter().skip(screen.scroll).take(screen.page).map(Line::raw).collect();
    frame.render_widget(Paragraph::new(lines), rest);
}
