//! The models that a grant is limited to: names, and patterns with `*`.

use std::fmt;
use std::str::FromStr;

/// A model's name, in which `*` stands for any characters or none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(Box<str>);

/// A text that is not a pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a model's name or pattern: expected 1 to 128 letters, digits, `.`, `_`, `-` and `*`, such as fraud or fraud-*"
)]
pub struct NotAPattern(String);

impl FromStr for Pattern {
    type Err = NotAPattern;

    fn from_str(text: &str) -> Result<Pattern, NotAPattern> {
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || "._-*".contains(c);
        if (1..=128).contains(&text.len()) && text.chars().all(is_allowed) {
            return Ok(Pattern(text.into()));
        }
        Err(NotAPattern(text.chars().take(80).collect()))
    }
}

impl Pattern {
    /// A pattern for names of callers, which may have any characters that can be printed. `None` where it is empty, too long or cannot be
    /// printed.
    #[must_use]
    pub fn for_callers(text: &str) -> Option<Pattern> {
        ((1..=256).contains(&text.len()) && !text.chars().any(char::is_control)).then(|| Pattern(text.into()))
    }

    /// Whether a name fits. Takes time in proportion to both lengths: each part between stars is searched for once, from the left.
    #[must_use]
    pub fn fits(&self, name: &str) -> bool {
        let Some((first, rest)) = self.0.split_once('*') else { return *self.0 == *name };
        let Some(mut name) = name.strip_prefix(first) else { return false };
        let (middle, last) = rest.rsplit_once('*').unwrap_or(("", rest));
        for part in middle.split('*').filter(|part| !part.is_empty()) {
            let Some(at) = name.find(part) else { return false };
            name = &name[at + part.len()..];
        }
        name.ends_with(last)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The models that a grant is limited to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Models {
    All,
    /// At least one pattern, and at most [`Models::MOST`].
    Some(Vec<Pattern>),
}

impl Models {
    /// The most patterns of one grant.
    pub const MOST: usize = 64;

    /// From names and patterns. None at all, and `*` among them, is every model.
    ///
    /// # Errors
    /// In words: a text that is no pattern, or too many of them.
    pub fn of<'t>(texts: impl IntoIterator<Item = &'t str>) -> Result<Models, String> {
        let patterns: Vec<Pattern> =
            texts.into_iter().map(str::parse).collect::<Result<_, NotAPattern>>().map_err(|e| e.to_string())?;
        if patterns.len() > Models::MOST {
            return Err(format!("{} patterns are too many: at most {}", patterns.len(), Models::MOST));
        }
        if patterns.is_empty() || patterns.iter().any(|pattern| &*pattern.0 == "*") {
            return Ok(Models::All);
        }
        Ok(Models::Some(patterns))
    }

    #[must_use]
    pub fn include(&self, model: &str) -> bool {
        match self {
            Models::All => true,
            Models::Some(patterns) => patterns.iter().any(|pattern| pattern.fits(model)),
        }
    }

    /// The patterns; `["*"]` for every model.
    #[must_use]
    pub fn texts(&self) -> Vec<String> {
        match self {
            Models::All => vec!["*".to_owned()],
            Models::Some(patterns) => patterns.iter().map(ToString::to_string).collect(),
        }
    }
}

impl fmt::Display for Models {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Models::All => f.write_str("all models"),
            Models::Some(_) => f.write_str(&self.texts().join(", ")),
        }
    }
}
