//! What `top` knows and what the keys do. Drawing it is in `draw.rs`.

use super::figures::{Detail, Order, Page};
use super::{Seen, TopOptions};
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use std::time::Instant;

/// The longest filter that is taken.
const LONGEST_FILTER: usize = 128;

/// What follows from a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Next {
    Stay,
    Quit,
}

/// What the server is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Question {
    pub(super) filter: String,
    pub(super) order: Order,
    pub(super) reversed: bool,
    /// The place of the first row.
    pub(super) from: usize,
    pub(super) limit: usize,
    /// The model that is looked at.
    pub(super) model: Option<String>,
}

/// What is shown.
#[derive(Debug)]
pub(super) struct Screen {
    /// The address of the server.
    pub(super) admin: String,
    /// The rows near those that are visible.
    pub(super) list: Page,
    /// The filter and the order are not those of the list: its answer is not there yet.
    pub(super) is_stale: bool,
    /// The last answer.
    pub(super) answered: Option<Instant>,
    /// Why there is no newer answer, and since when.
    pub(super) trouble: Option<(String, Instant)>,
    pub(super) filter: String,
    /// Keys go to the filter.
    pub(super) typing: bool,
    pub(super) order: Order,
    pub(super) reversed: bool,
    /// The place of the selected model in the list, and its name where that is known, so that it stays selected where rows move.
    pub(super) place: usize,
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
            list: Page::default(),
            is_stale: false,
            answered: None,
            trouble: None,
            filter: options.filter.clone().unwrap_or_default().chars().take(LONGEST_FILTER).collect(),
            typing: false,
            order: options.sort,
            reversed: false,
            place: 0,
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
        match seen.page {
            Ok(page) => {
                self.answered = Some(now);
                self.trouble = None;
                let Question { filter, order, reversed, .. } = &seen.question;
                // An answer to what was asked before came too late.
                if (filter, *order, *reversed) == (&self.filter, self.order, self.reversed) {
                    self.show(page);
                }
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

    fn show(&mut self, list: Page) {
        self.list = list;
        self.is_stale = false;
        let place = self.selected.as_ref().and_then(|name| self.list.place_of(name)).unwrap_or(self.place);
        let place = place.min(self.list.found.saturating_sub(1));
        // Before somebody moves, the first row is selected, whichever that is.
        if self.selected.is_some() || place > 0 {
            self.select(place);
        } else {
            self.place = 0;
        }
    }

    fn select(&mut self, place: usize) {
        self.place = place;
        self.selected = self.list.at(place).map(|row| row.name.clone());
    }

    /// What is asked for: the rows that are visible, and as many before and after them, so that they are there when the selection moves.
    pub(super) fn question(&self) -> Question {
        let Screen { filter, order, reversed, page, .. } = self;
        let (from, limit) = (self.first_visible().saturating_sub(*page), page.saturating_mul(3).min(super::MOST_ROWS));
        let (filter, model) = (filter.clone(), self.open.clone());
        Question { filter, order: *order, reversed: *reversed, from, limit, model }
    }

    /// The place of the first visible row: the selected one is always visible.
    pub(super) fn first_visible(&self) -> usize {
        let last = self.list.found.saturating_sub(self.page);
        self.offset.min(self.place).max((self.place + 1).saturating_sub(self.page)).min(last)
    }

    /// Another filter or order: the selected model is looked for in the next answer, and else the first one is selected.
    fn change(&mut self, before: &Question) {
        if (&before.filter, before.order, before.reversed) != (&self.filter, self.order, self.reversed) {
            (self.is_stale, self.place, self.offset) = (true, 0, 0);
        }
    }

    pub(super) fn press(&mut self, key: KeyEvent) -> Next {
        let before = self.question();
        let next = self.pressed(key);
        self.change(&before);
        next
    }

    fn pressed(&mut self, key: KeyEvent) -> Next {
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
            KeyCode::Esc | KeyCode::Backspace | KeyCode::Left if self.open.is_some() => self.close(),
            KeyCode::Esc => self.filter.clear(),
            KeyCode::Char('/') => {
                self.close();
                self.typing = true;
            }
            KeyCode::Char('s') => self.order = self.order.next(),
            KeyCode::Char('r') => self.reversed = !self.reversed,
            // The row of a list that is not the one that was asked for may be of another model.
            KeyCode::Enter | KeyCode::Right if self.open.is_none() && !self.is_stale => {
                self.select(self.place);
                self.open.clone_from(&self.selected);
                (self.detail, self.scroll) = (None, 0);
            }
            _ => {}
        }
        Next::Stay
    }

    fn close(&mut self) {
        self.open = None;
        self.detail = None;
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
        let Some(last) = self.list.found.checked_sub(1) else { return };
        self.select(self.place.saturating_add_signed(by).min(last));
    }
}
