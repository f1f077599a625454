//! What `top` knows and what the keys do. Drawing it is in `draw.rs`.

use super::figures::{Detail, ModelRow, Order};
use super::{Seen, TopOptions};
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use std::time::Instant;

/// The longest filter that is taken.
const LONGEST_FILTER: usize = 128;

/// What follows from a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Next {
    Stay,
    /// Another model is looked at, or none.
    Look(Option<String>),
    Quit,
}

/// What is shown.
#[derive(Debug)]
pub(super) struct Screen {
    /// The address of the server.
    pub(super) admin: String,
    rows: Vec<ModelRow>,
    /// The last answer.
    pub(super) answered: Option<Instant>,
    /// Why there is no newer answer, and since when.
    pub(super) trouble: Option<(String, Instant)>,
    pub(super) filter: String,
    /// Keys go to the filter.
    pub(super) typing: bool,
    pub(super) order: Order,
    pub(super) reversed: bool,
    /// The name of the selected model, so that it stays selected where rows move.
    selected: Option<String>,
    /// The first row that is visible.
    pub(super) offset: usize,
    /// Rows that fit, as drawn last.
    pub(super) page: usize,
    /// The model that is looked at, and what is known about it.
    pub(super) open: Option<String>,
    pub(super) detail: Option<Result<Detail, String>>,
    /// The first line of it that is visible.
    pub(super) scroll: usize,
}

impl Screen {
    pub(super) fn new(admin: &str, options: &TopOptions) -> Screen {
        Screen {
            admin: crate::readable::line(admin, 200),
            rows: Vec::new(),
            answered: None,
            trouble: None,
            filter: options.filter.clone().unwrap_or_default().chars().take(LONGEST_FILTER).collect(),
            typing: false,
            order: options.sort,
            reversed: false,
            selected: None,
            offset: 0,
            page: 1,
            open: None,
            detail: None,
            scroll: 0,
        }
    }

    /// Takes what the server answered, or why it did not.
    pub(super) fn take(&mut self, seen: Seen, now: Instant) {
        match seen.rows {
            Ok(rows) => {
                self.rows = rows;
                self.answered = Some(now);
                self.trouble = None;
            }
            Err(error) => {
                let since = self.trouble.as_ref().map_or(now, |(_, since)| *since);
                self.trouble = Some((crate::readable::line(&error, 400), since));
            }
        }
        // An answer about another model came too late. Without an answer the last one stays.
        if self.trouble.is_none()
            && let Some((name, detail)) = seen.detail
            && self.open.as_ref() == Some(&name)
        {
            self.detail = Some(detail.map_err(|error| crate::readable::line(&error, 400)));
        }
    }

    /// All models that the filter selects, in order.
    pub(super) fn shown(&self) -> Vec<&ModelRow> {
        shown(&self.rows, &self.filter, self.order, self.reversed)
    }

    /// All models, and how many of them need attention.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.rows.len(), self.rows.iter().filter(|row| row.urgency > 0).count())
    }

    /// The place of the selected model in a list: the first one where it is not there.
    pub(super) fn place(&self, shown: &[&ModelRow]) -> usize {
        let selected = self.selected.as_deref();
        shown.iter().position(|row| Some(row.name.as_str()) == selected).unwrap_or(0)
    }

    pub(super) fn press(&mut self, key: KeyEvent) -> Next {
        let with_control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('c') if with_control => return Next::Quit,
            KeyCode::Char('u') if with_control && self.typing => self.filter.clear(),
            KeyCode::Char(_) if with_control => {}
            KeyCode::Up => self.step(-1),
            KeyCode::Down => self.step(1),
            KeyCode::PageUp => self.step(-self.page_step()),
            KeyCode::PageDown => self.step(self.page_step()),
            KeyCode::Home => self.step(isize::MIN),
            KeyCode::End => self.step(isize::MAX),
            _ if self.typing => self.type_in(key.code),
            code => return self.command(code),
        }
        Next::Stay
    }

    fn type_in(&mut self, code: KeyCode) {
        match code {
            KeyCode::Char(c) if self.filter.chars().count() < LONGEST_FILTER => self.filter.push(c),
            KeyCode::Backspace => {
                self.filter.pop();
            }
            KeyCode::Enter => self.typing = false,
            KeyCode::Esc => {
                self.filter.clear();
                self.typing = false;
            }
            _ => {}
        }
    }

    fn command(&mut self, code: KeyCode) -> Next {
        match code {
            KeyCode::Char('q') => return Next::Quit,
            KeyCode::Char('k') => self.step(-1),
            KeyCode::Char('j') => self.step(1),
            KeyCode::Char('g') => self.step(isize::MIN),
            KeyCode::Char('G') => self.step(isize::MAX),
            KeyCode::Esc | KeyCode::Backspace | KeyCode::Left if self.open.is_some() => return self.close(),
            KeyCode::Esc => self.filter.clear(),
            KeyCode::Char('/') => {
                let closed = self.close();
                self.typing = true;
                return closed;
            }
            KeyCode::Char('s') => self.order = self.order.next(),
            KeyCode::Char('r') => self.reversed = !self.reversed,
            KeyCode::Enter | KeyCode::Right if self.open.is_none() => {
                let shown = self.shown();
                let Some(name) = shown.get(self.place(&shown)).map(|row| row.name.clone()) else { return Next::Stay };
                self.selected = Some(name.clone());
                self.open = Some(name.clone());
                (self.detail, self.scroll) = (None, 0);
                return Next::Look(Some(name));
            }
            _ => {}
        }
        Next::Stay
    }

    fn close(&mut self) -> Next {
        if self.open.take().is_none() {
            return Next::Stay;
        }
        self.detail = None;
        Next::Look(None)
    }

    fn page_step(&self) -> isize {
        isize::try_from(self.page.saturating_sub(1).max(1)).unwrap_or(1)
    }

    /// Moves the selection, or scrolls where one model is shown.
    fn step(&mut self, by: isize) {
        if self.open.is_some() {
            // Drawing knows the end.
            self.scroll = self.scroll.saturating_add_signed(by);
            return;
        }
        let shown = self.shown();
        let Some(last) = shown.len().checked_sub(1) else { return };
        let place = self.place(&shown).saturating_add_signed(by).min(last);
        self.selected = Some(shown[place].name.clone());
    }
}

/// The rows whose names have the filter in them, in order.
pub(super) fn shown<'r>(rows: &'r [ModelRow], filter: &str, order: Order, reversed: bool) -> Vec<&'r ModelRow> {
    let filter = filter.trim().to_lowercase();
    let mut shown: Vec<&ModelRow> = rows.iter().filter(|row| row.name.to_lowercase().contains(&filter)).collect();
    shown.sort_by(|a, b| order.compare(a, b));
    if reversed {
        shown.reverse();
    }
    shown
}
